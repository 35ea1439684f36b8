"""Colours of a mesh's vertices from the Gaussians that are bound to its triangles. Numpy only."""

from __future__ import annotations

import numpy as np

from ..shared.arrays import Array
from ..shared.gaussians import GaussianCloud

_REACH_M = 0.03
"""A Gaussian counts less the farther it lies from its triangle; hair and cloth of this distance count half."""


def bake_vertex_colours(
    cloud: GaussianCloud, corners: Array, bary: Array, offsets_m: Array, triangles: Array, count: int
) -> Array:
    """Mean colour of the Gaussians around each vertex, in display sRGB.

    Each Gaussian counts for the corners of its triangle by its place in it and by how much of a picture it covers.
    Vertices without any take the colour of their neighbours, step by step.

    Args:
        cloud: The N Gaussians.
        corners: [N, 3] vertices of each one's triangle.
        bary: [N, 3] its place in the triangle.
        offsets_m: [N, 3] its distance from that place.
        triangles: [T, 3] of the whole mesh.
        count: Number of vertices V.

    Returns:
        [V, 3] 0..1; mid grey where nothing is connected to any Gaussian.
    """
    sizes = np.sort(cloud.scales_m.astype(np.float64), axis=1)
    distance = np.linalg.norm(offsets_m, axis=1)
    cover = cloud.opacities * sizes[:, 1] * sizes[:, 2] / (1 + (distance / _REACH_M) ** 2)
    # A corner far from the Gaussian still gets a little: a large triangle with one Gaussian has three vertices.
    share = (np.clip(bary, 0, 1) ** 2 + 0.01) * cover[:, None]
    rows = corners.ravel()
    weight = np.bincount(rows, share.ravel(), count)
    colours = np.repeat(cloud.colours.astype(np.float64), 3, axis=0)
    sums = np.stack([np.bincount(rows, share.ravel() * colours[:, k], count) for k in range(3)], axis=1)
    known = weight > 0
    filled = np.full((count, 3), 0.5)
    filled[known] = sums[known] / weight[known, None]
    return _spread(filled, known, triangles)


def _spread(colours: Array, known: Array, triangles: Array) -> Array:
    """Fill the vertices that are not known with the mean of those neighbours that are, ring by ring."""
    edges = np.concatenate([triangles[:, [0, 1]], triangles[:, [1, 2]], triangles[:, [2, 0]]])
    edges = np.concatenate([edges, edges[:, ::-1]])
    while not known.all():
        front = edges[known[edges[:, 0]] & ~known[edges[:, 1]]]
        if not len(front):
            break
        number = np.bincount(front[:, 1], minlength=len(colours))
        reached = number > 0
        for k in range(3):
            sums = np.bincount(front[:, 1], colours[front[:, 0], k], len(colours))
            colours[reached, k] = sums[reached] / number[reached]
        known = known | reached
    return colours


def display_to_linear(colours: Array) -> Array:
    """Display sRGB to linear light (IEC 61966-2-1)."""
    return np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)
