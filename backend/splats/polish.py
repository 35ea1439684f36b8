"""Colours in closed form: with the geometry fixed a picture is linear in them, so the best ones are one solve away."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from scipy import ndimage

from backend.human.camera import PinholeCamera
from backend.splats.blend import Blend
from backend.splats.bound import BoundSplats, Kind, PosedSplats
from backend.splats.render import BACKGROUND
from blender_addon.shared.gaussians import wxyz_to_matrices

OPENS = (0.01, 0.08)
"""Cloth of which the photo shows more than the second share of each disc is free, less than the first as gated."""

OPENS_FACING = (0.05, 0.3)
"""The same for how squarely cloth faces the camera: the inside of a hem is seen below its front, and the photo shows
legs there."""

SKIN_OPENS = 50.0
"""Skin that shows is opened to so many times its gate: lids, kept from gradient steps by a gate near 0, by a share."""

ERODE_PX = 2
"""Pixels this near the mask's edge do not count: photo and background mix there."""


@dataclass(frozen=True)
class PolishSettings:
    """How hard the colours are pulled to the photo."""

    damping: float = 0.15  # weight of staying put, per pixel's worth of what a Gaussian shows
    least_shown_px: float = 0.05  # what shows less is as reluctant as this
    iterations: int = 20  # of conjugate gradients; twice as many add less than 0.1 dB
    window_px: int = 5  # colours stay within what the photo shows in a window of this width
    margin: float = 0.08  # and so much beyond it, display sRGB: wide discs must overshoot to draw an edge


def opened_gates(splats: BoundSplats, uncovered: np.ndarray, facing: np.ndarray) -> np.ndarray:
    """Gates of the colours, opened where cloth and bare skin do show.

    Confidence judges each disc by itself. Between arm and trunk, at a seam or at the frame's edge discs show that it
    calls unseen, and their filled colours would stand in the middle of the photo. What is kept from the photo on
    purpose stays so: skin with a gate of 0 (lids), mouth, teeth, eyes and hair.

    Args:
        splats: N Gaussians.
        uncovered: [N] 0..1, share of each that the photo's camera sees.
        facing: [N] cosine between the discs' normals and the way to the camera.

    Returns:
        [N] float32 0..1, nowhere below the gates of `splats`.
    """
    shows = np.clip((uncovered - OPENS[0]) / (OPENS[1] - OPENS[0]), 0, 1)
    faces = np.clip((facing - OPENS_FACING[0]) / (OPENS_FACING[1] - OPENS_FACING[0]), 0, 1)
    limits = {
        Kind.CLOTH: shows * faces,
        Kind.MEMBRANE: shows,
        Kind.SKIN: np.minimum(shows, SKIN_OPENS * splats.colour_gate),
    }
    opened = np.zeros(len(splats))
    for kind, limit in limits.items():
        opened = np.where(splats.kind == kind, limit, opened)
    return np.maximum(splats.colour_gate, opened).astype(np.float32)


def facing_camera(posed: PosedSplats, camera: PinholeCamera) -> np.ndarray:
    """[N] cosine between the normals of posed discs (their z axes) and the way to the camera; negative from behind."""
    normals = wxyz_to_matrices(posed.rotations_wxyz)[:, :, 2]
    away = posed.positions_m + camera.w2c[:3, :3].T @ camera.w2c[:3, 3]
    return -(normals * away).sum(axis=1) / np.maximum(np.linalg.norm(away, axis=1), 1e-9)


def counted_pixels(mask: np.ndarray, held: np.ndarray) -> np.ndarray:
    """[H, W] bool: where the photo decides colours; inside the mask (0..1), off its edge and off held objects."""
    return ndimage.binary_erosion(np.asarray(mask) > 0.5, iterations=ERODE_PX, border_value=1) & ~np.asarray(held, bool)


def colour_range(
    image: np.ndarray,
    where: np.ndarray,
    camera: PinholeCamera,
    positions_m: np.ndarray,
    colours: np.ndarray,
    settings: PolishSettings,
) -> tuple[np.ndarray, np.ndarray]:
    """Least and largest colours [N, 3] that the photo justifies for Gaussians, their present ones included.

    Without them a disc that is seen at a grazing angle takes any colour, and is a bright speck from the side.

    Args:
        image: uint8 [H, W, 3].
        where: [H, W] bool, the pixels that count.
        camera: Of the photo.
        positions_m: [N, 3] in the photo's pose.
        colours: [N, 3] 0..1 at present.
        settings: See there.
    """
    photo = np.asarray(image, np.float32) / 255
    counts, window = where[..., None], (settings.window_px, settings.window_px, 1)
    at = np.clip(np.floor(camera.project(positions_m)), 0, [camera.width - 1, camera.height - 1]).astype(int)
    low = ndimage.minimum_filter(np.where(counts, photo, np.inf), window)[at[:, 1], at[:, 0]] - settings.margin
    high = ndimage.maximum_filter(np.where(counts, photo, -np.inf), window)[at[:, 1], at[:, 0]] + settings.margin
    return np.clip(np.minimum(low, colours), 0, 1), np.clip(np.maximum(high, colours), 0, 1)


def polished_colours(
    colours: np.ndarray,
    gate: np.ndarray,
    blend: Blend,
    target: np.ndarray,
    limits: tuple[np.ndarray, np.ndarray],
    settings: PolishSettings,
) -> np.ndarray:
    """Colours whose picture is nearest to the photo, by damped least squares.

    Minimises |W (c + d) - photo|^2 + sum of damping * m (d / g)^2 over d, with the gates g and what each Gaussian shows
    m (in pixels), so that many small ones follow as willingly as few large ones. What the photo hardly shows hardly
    moves, unlike under an optimiser that scales every step to one size.

    Args:
        colours: [N, 3] 0..1 before.
        gate: [N] 0..1, how freely each may move; 0 keeps it bit for bit.
        blend: W of P pixels.
        target: [P, 3] 0..1, the photo.
        limits: [N, 3] each, least and largest colours.
        settings: See there.

    Returns:
        [N, 3] float32 0..1.
    """
    movable = np.flatnonzero((gate > 0) & (blend.alone > 0))
    if not len(movable) or not len(target):
        return colours
    alpha = np.asarray(blend.weights.sum(axis=1)).reshape(-1, 1)
    wanted = (target - blend.weights @ colours - (1 - alpha) * np.array(BACKGROUND)).astype(np.float32)
    shown = np.asarray(blend.weights.sum(axis=0), np.float32).ravel()[movable]
    free = gate[movable].astype(np.float32) / np.sqrt(np.maximum(shown, settings.least_shown_px))
    matrix = (blend.weights.tocsc()[:, movable] @ sp.diags(free)).tocsr()
    change = _conjugate_gradients(matrix, wanted, settings) * free[:, None]
    out = np.array(colours, np.float32)
    out[movable] = np.clip(colours[movable] + change, limits[0][movable], limits[1][movable])
    return out


def _conjugate_gradients(matrix: sp.csr_matrix, wanted: np.ndarray, settings: PolishSettings) -> np.ndarray:
    """[M, C] that minimises |matrix x - wanted|^2 + damping |x|^2, every column of [P, C] on its own."""
    transposed = matrix.T.tocsr()
    x = np.zeros((matrix.shape[1], wanted.shape[1]), np.float32)
    residual = transposed @ wanted
    direction, size = residual.copy(), np.square(residual).sum(axis=0)
    for _ in range(settings.iterations):
        ahead = transposed @ (matrix @ direction) + settings.damping * direction
        step = size / np.maximum((direction * ahead).sum(axis=0), 1e-20)
        x += step * direction
        residual -= step * ahead
        before, size = size, np.square(residual).sum(axis=0)
        direction = residual + size / np.maximum(before, 1e-20) * direction
    return x


__all__ = ["PolishSettings", "colour_range", "counted_pixels", "facing_camera", "opened_gates", "polished_colours"]
