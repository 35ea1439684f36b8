"""More and smaller Gaussians where the photo shows more than the present ones can draw: badges, seams, features."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy import ndimage

from backend.human.camera import PinholeCamera
from backend.splats.bound import BoundSplats, Kind, PosedSplats, concatenate
from blender_addon.shared.gaussians import wxyz_to_matrices

LEVELS_PX = (1.0, 2.0, 4.0)
"""Sizes of Gaussians for which the detail of the photo is looked up."""

CHILD_SCALE = 0.55
"""In-plane scale of each of four parts relative to the whole; 0.5 would tile as densely, the rest hides seams."""

CHILD_OFFSET = 0.35
"""Distance of the parts' centres from the middle, along both axes, in standard deviations of the whole."""


@dataclass(frozen=True)
class DetailSettings:
    """Which Gaussians are worth four."""

    most_share: float = 0.05  # of all Gaussians are split, so there are at most 15 % more
    least_contrast: float = 0.02  # root mean square of what is finer than the Gaussian, display sRGB
    least_gate: float = 0.5  # others may not follow the photo anyway
    least_uncovered: float = 0.08  # others hardly show
    smallest_px: float = 0.6  # standard deviation on the photo; smaller ones resolve a pixel already


def split_for_detail(
    splats: BoundSplats,
    posed: PosedSplats,
    uncovered: np.ndarray,
    camera: PinholeCamera,
    image: np.ndarray,
    where: np.ndarray,
    settings: DetailSettings = DetailSettings(),
) -> BoundSplats:
    """Replace discs that are coarser than what the photo shows there by four each.

    Args:
        splats: N Gaussians.
        posed: The same in the photo's pose.
        uncovered: [N] 0..1, share of each that the photo's camera sees.
        camera: Of the photo.
        image: uint8 [H, W, 3].
        where: [H, W] bool, the pixels that count.
        settings: See there.

    Returns:
        The Gaussians that stay, in their order, and then the parts of the others.
    """
    rows = rows_for_detail(splats, posed, uncovered, splats.colour_gate, camera, image, where, settings)
    return split_rows(splats, rows)[0]


def rows_for_detail(
    splats: BoundSplats,
    posed: PosedSplats,
    uncovered: np.ndarray,
    gate: np.ndarray,
    camera: PinholeCamera,
    image: np.ndarray,
    where: np.ndarray,
    settings: DetailSettings = DetailSettings(),
) -> np.ndarray:
    """Which Gaussians are worth four, in ascending order.

    Args as for `split_for_detail`, and gate: [N] 0..1, how freely each follows this picture.
    """
    size_px = np.sqrt(posed.scales_m[:, 0] * posed.scales_m[:, 1]) * camera.fx
    size_px = size_px / np.maximum(camera.to_camera(posed.positions_m)[:, 2], 1e-6)
    uv = camera.project(posed.positions_m)
    inside = ((uv > 0) & (uv < [camera.width, camera.height])).all(axis=1)
    worth = inside & (size_px > settings.smallest_px) & (uncovered > settings.least_uncovered)
    worth &= (gate >= settings.least_gate) & np.isin(splats.kind, (Kind.CLOTH, Kind.SKIN, Kind.MEMBRANE))
    rows = np.flatnonzero(worth)
    contrast = _finer_contrast(image, where, uv[rows], size_px[rows])
    rows, contrast = rows[contrast > settings.least_contrast], contrast[contrast > settings.least_contrast]
    # what it misses, over the area that it is responsible for
    most = int(settings.most_share * len(splats))
    return np.sort(rows[np.argsort(-contrast * size_px[rows], kind="stable")[:most]])


def split_rows(splats: BoundSplats, rows: np.ndarray) -> tuple[BoundSplats, np.ndarray]:
    """Replace some Gaussians by four each.

    Args:
        splats: N Gaussians.
        rows: Which.

    Returns:
        The Gaussians that stay, in their order, and then the parts of the others; and of which one each was made.
    """
    every = np.arange(len(splats))
    if not len(rows):
        return splats, every
    stays = np.ones(len(splats), bool)
    stays[rows] = False
    made = concatenate([splats.select(stays), *four_parts(splats.select(rows))])
    return made, np.concatenate([every[stays], *[every[rows]] * 4])


def four_parts(splats: BoundSplats) -> list[BoundSplats]:
    """The four parts of each Gaussian, first all first ones; they share its plane and colour."""
    axes = wxyz_to_matrices(splats.rotations_wxyz)
    scales = splats.scales_m * [CHILD_SCALE, CHILD_SCALE, 1]
    parts = []
    for x in (-CHILD_OFFSET, CHILD_OFFSET):
        for y in (-CHILD_OFFSET, CHILD_OFFSET):
            moved = axes[:, :, 0] * (x * splats.scales_m[:, :1]) + axes[:, :, 1] * (y * splats.scales_m[:, 1:2])
            parts.append(replace(splats, offsets_m=splats.offsets_m + moved, scales_m=scales))
    return parts


def _finer_contrast(image: np.ndarray, where: np.ndarray, uv_px: np.ndarray, size_px: np.ndarray) -> np.ndarray:
    """[N] root mean square, over colours and a Gaussian's size, of what is finer in the photo than the Gaussian."""
    counts = np.asarray(where, np.float32)[..., None]
    photo = np.asarray(image, np.float32) / 255 * counts
    level = np.clip(np.round(np.log2(np.maximum(size_px, 1e-6) / LEVELS_PX[0])), 0, len(LEVELS_PX) - 1)
    at = np.floor(uv_px[:, ::-1].T).astype(int)
    out = np.zeros(len(uv_px))
    for k, sigma in enumerate(LEVELS_PX):
        which = level == k
        if which.any():
            blur = (sigma, sigma, 0)
            coarse = ndimage.gaussian_filter(photo, blur) / np.maximum(ndimage.gaussian_filter(counts, blur), 1e-3)
            power = ndimage.gaussian_filter(np.square((photo - coarse) * counts).mean(axis=2), sigma)
            out[which] = np.sqrt(power[at[0, which], at[1, which]])
    return out


__all__ = ["DetailSettings", "four_parts", "rows_for_detail", "split_for_detail", "split_rows"]
