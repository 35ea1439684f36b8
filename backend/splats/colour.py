"""Colours from the photo: sampling at a disc's size, confidence, and how far an optimiser may change a disc."""

from __future__ import annotations

import cv2
import numpy as np
from scipy.ndimage import map_coordinates

SEEN = 0.14
"""Confidence above which a disc counts as seen, 68 degrees from facing the camera."""

BLEND = (0.03, 0.25)
"""Between these confidences photo and fill are mixed."""

VISIBLE_WITHIN_M = 0.012
"""A disc this far behind the nearest surface still counts as visible (half the distance between skin and sleeve)."""


def to_lab(rgb: np.ndarray) -> np.ndarray:
    """Display sRGB [N, 3] in 0..1 to CIE Lab [N, 3] float32 (L 0..100)."""
    flat = np.clip(np.asarray(rgb, np.float32), 0, 1).reshape(1, -1, 3)
    return cv2.cvtColor(flat, cv2.COLOR_RGB2LAB)[0] if flat.size else flat[0]


def to_rgb(lab: np.ndarray) -> np.ndarray:
    """CIE Lab [N, 3] to display sRGB [N, 3], clipped to 0..1."""
    flat = np.asarray(lab, np.float32).reshape(1, -1, 3)
    return np.clip(cv2.cvtColor(flat, cv2.COLOR_LAB2RGB)[0], 0, 1) if flat.size else flat[0]


def sample_photo(image: np.ndarray, uv_px: np.ndarray, footprint_px: np.ndarray) -> np.ndarray:
    """Colours of the photo at a disc's size.

    Args:
        image: [H, W, 3] uint8 RGB.
        uv_px: [N, 2] pixel positions, centres at +0.5; outside the image the border is repeated.
        footprint_px: [N] spacing of the discs in pixels; the photo is low-passed to about half of it.

    Returns:
        [N, 3] float32, 0..1.
    """
    photo = image.astype(np.float32) / 255
    sigmas = (0.0, 0.6, 1.2, 2.4)
    wanted = np.maximum(0.45 * footprint_px - 0.4, 0)
    level = np.abs(np.asarray(sigmas)[None] - wanted[:, None]).argmin(axis=1)
    out = np.zeros((len(uv_px), 3), np.float32)
    for k, sigma in enumerate(sigmas):
        at = level == k
        if not at.any():
            continue
        blurred = photo if sigma == 0 else cv2.GaussianBlur(photo, (0, 0), sigma)
        where = np.stack([uv_px[at, 1] - 0.5, uv_px[at, 0] - 0.5])
        for c in range(3):
            out[at, c] = map_coordinates(blurred[..., c], where, order=1, mode="nearest")
    return out


def photo_confidence(
    facing: np.ndarray, depth_m: np.ndarray, uv_px: np.ndarray, surface_depth_m: np.ndarray, usable: np.ndarray
) -> np.ndarray:
    """How far the photo determines each disc's colour.

    Args:
        facing: [N] -n.v, 1 facing the camera, negative turned away.
        depth_m: [N] depth of the disc.
        uv_px: [N, 2] pixel positions.
        surface_depth_m: [H, W] nearest depth of the surface, inf where there is none.
        usable: [H, W] bool, pixels whose colour may be taken (eroded mask without held objects).

    Returns:
        [N] 0..1: facing^2 where the disc is visible on a usable pixel, else 0.
    """
    height, width = usable.shape
    column, row = np.floor(uv_px[:, 0]).astype(int), np.floor(uv_px[:, 1]).astype(int)
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height) & (depth_m > 0)
    row, column = np.clip(row, 0, height - 1), np.clip(column, 0, width - 1)
    visible = depth_m < surface_depth_m[row, column] + VISIBLE_WITHIN_M
    return (np.clip(facing, 0, 1) ** 2 * (inside & visible & usable[row, column])).astype(np.float32)


def blend_weight(confidence: np.ndarray) -> np.ndarray:
    """[N] 0..1 smooth step over `BLEND`: the photo's share in a disc's colour."""
    t = np.clip((confidence - BLEND[0]) / (BLEND[1] - BLEND[0]), 0, 1)
    return t * t * (3 - 2 * t)


def gates(confidence: np.ndarray, facing: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Shares of an optimiser's step that a disc takes.

    Args:
        confidence: [N] of the photo's colour.
        facing: [N] -n.v.

    Returns:
        colour_gate [N] = clip((c - 0.1) / 0.3) and shape_gate [N] = clip((|n.v| - 0.12) / 0.25), the latter 0 for
        unseen discs: free rim discs leave pale rims in other views.
    """
    colour = np.clip((confidence - 0.1) / 0.3, 0, 1)
    shape = np.clip((np.abs(facing) - 0.12) / 0.25, 0, 1) * (confidence > 0)
    return colour.astype(np.float32), shape.astype(np.float32)
