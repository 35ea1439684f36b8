"""Shoes: the bare foot's toes and arch wrapped into one closed shape."""

from __future__ import annotations

import numpy as np
from scipy.sparse import csr_matrix
from scipy.spatial import ConvexHull

SOLE_M = 0.006
"""Thickness of upper and sole around the foot."""


def wrap_feet(
    rest_m: np.ndarray, feet: tuple[np.ndarray, np.ndarray], shod: tuple[bool, bool], average: csr_matrix
) -> np.ndarray:
    """Move the vertices of shod feet outwards to the foot's convex hull, so that toes do not show.

    Args:
        rest_m: [V, 3] vertices in the T-pose, floor at y = 0.
        feet: Vertex indices of the left and right foot, ankle to toes.
        shod: Which of the two wear shoes.
        average: [V, V] mean of the neighbours, to smooth the result.

    Returns:
        [V, 3] new vertices; only vertices of shod feet have moved.
    """
    out = np.array(rest_m, np.float64)
    for index, wears in zip(feet, shod, strict=True):
        if wears and len(index) >= 20:
            _wrap(out, index, average)
    return out


def _wrap(vertices: np.ndarray, index: np.ndarray, average: csr_matrix) -> None:
    foot = vertices[index]
    top = foot[:, 1].max()
    # full wrap at the toes, nothing at the ankle, so that the shoe joins the leg
    share = np.clip((top - foot[:, 1]) / (0.45 * max(top - foot[:, 1].min(), 1e-6)), 0, 1)
    hull = ConvexHull(foot)
    normal, offset = hull.equations[:, :3], hull.equations[:, 3]
    low, high = foot[:, 2].min(), foot[:, 2].max()
    centre = foot.copy()
    centre[:, 0] = np.median(foot[:, 0])
    height = foot[:, 1] - foot[:, 1].min()
    centre[:, 1] = foot[:, 1] - height + 0.35 * np.minimum(height, 0.05) + 0.012
    centre[:, 2] = np.clip(foot[:, 2], low + 0.03, high - 0.03)
    ray = foot - centre
    length = np.maximum(np.linalg.norm(ray, axis=1, keepdims=True), 1e-6)
    ray /= length
    along = ray @ normal.T
    gap = -(centre @ normal.T + offset)
    reach = np.where(along > 1e-6, gap / np.maximum(along, 1e-6), np.inf).min(axis=1)
    wrapped = centre + ray * (reach[:, None] + SOLE_M)
    vertices[index] = foot + share[:, None] * (wrapped - foot)
    inside = np.zeros(len(vertices))
    inside[index] = share
    for _ in range(3):
        vertices[:] = vertices + (0.5 * inside)[:, None] * (average @ vertices - vertices)
    # smoothing shrinks, most at the toes' folds: back onto the hull
    ray = vertices[index] - centre
    length = np.maximum(np.linalg.norm(ray, axis=1, keepdims=True), 1e-6)
    along = (ray / length) @ normal.T
    reach = np.where(along > 1e-6, gap / np.maximum(along, 1e-6), np.inf).min(axis=1)
    full = centre + ray / length * (reach[:, None] + SOLE_M)
    vertices[index] += share[:, None] * (full - vertices[index])
    # the shoe stands on the floor
    vertices[index, 1] = np.maximum(vertices[index, 1], foot[:, 1].min() - 0.5 * SOLE_M)
