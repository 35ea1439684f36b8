"""Which Gaussian makes how much of which pixel: a picture is this sparse matrix times the colours."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
import torch
from numba import njit

from backend.raster import Cameras, SplatTensors
from backend.raster.portable import project
from backend.raster.sorting import ALPHA_FLOOR
from backend.raster.tiles import ALPHA_CEILING, TRANSMITTANCE_FLOOR

LEAST_WEIGHT = 1e-3
"""Smaller shares of a pixel are not listed: a quarter of a step of an 8-bit colour, and half of the entries."""


@dataclass(frozen=True)
class Blend:
    """What one camera sees of N Gaussians in P pixels.

    Attributes:
        weights: float32 [P, N] share of each Gaussian in each pixel; the rows sum to alpha, but for small shares.
        alone: float64 [N] sum over these pixels if nothing lay in front of the Gaussian.
    """

    weights: sp.csr_matrix
    alone: np.ndarray

    @property
    def uncovered(self) -> np.ndarray:
        """[N] 0..1: the share of each Gaussian that others leave to be seen; 0 where it touches none of the pixels."""
        shown = np.asarray(self.weights.sum(axis=0), np.float64).ravel()
        return np.where(self.alone > 0, shown / np.maximum(self.alone, 1e-12), 0.0)


def blend_of(splats: SplatTensors, cameras: Cameras, where: np.ndarray) -> Blend:
    """List the weights with which one camera blends Gaussians, by the rasteriser's rules.

    Args:
        splats: N Gaussians on the CPU.
        cameras: One camera.
        where: bool [H, W], the P pixels to list, row by row.

    Raises:
        ValueError: If there is not exactly one camera, or `where` is not of its size.
    """
    if len(cameras.w2c) != 1 or where.shape != (cameras.height, cameras.width):
        raise ValueError(f"blend_of needs one camera and its pixels, not {len(cameras.w2c)} cameras and {where.shape}")
    with torch.no_grad():
        flat = project(
            splats.means, splats.rotations_wxyz, splats.scales, splats.opacities,
            cameras.w2c, cameras.K, cameras.width, cameras.height, True,
        )  # fmt: skip
    depths = flat.depths[0].numpy()
    visible = (flat.radii[0] > 0).all(dim=1).numpy() & (flat.opacities[0].numpy() >= ALPHA_FLOOR)
    order = np.argsort(depths, kind="stable")
    order = order[visible[order]]
    row_of_pixel = np.where(where, np.cumsum(where.ravel()).reshape(where.shape) - 1, -1)
    arrays = [part[0].double().contiguous().numpy() for part in (flat.means_px, flat.conics, flat.opacities)]
    alone = np.zeros(len(depths))
    nothing = np.empty(0, np.int32)
    entries = _list_weights(order, *arrays, row_of_pixel, nothing, nothing, np.empty(0, np.float32), alone)
    rows, columns, values = np.empty(entries, np.int32), np.empty(entries, np.int32), np.empty(entries, np.float32)
    _list_weights(order, *arrays, row_of_pixel, rows, columns, values, alone)
    shape = (int(where.sum()), len(depths))
    return Blend(sp.csr_matrix((values, (rows, columns)), shape=shape), alone)


@njit(error_model="numpy", cache=True)
def _list_weights(order, means_px, conics, opacities, row_of_pixel, rows, columns, values, alone):
    """Blend front to back; returns the number of entries and, where there is room, writes them.

    Args:
        order: int [K] Gaussians to draw, nearest first.
        means_px: [N, 2], pixel centres at +0.5.
        conics: [N, 3] inverse covariance xx, xy, yy, 1/px^2.
        opacities: [N].
        row_of_pixel: int [H, W] row of the matrix, -1 for none.
        rows: out int32 [E], or empty to count only.
        columns: out int32 [E].
        values: out float32 [E].
        alone: out [N] sum of alpha over the listed pixels.
    """
    height, width = row_of_pixel.shape
    transmittance = np.ones((height, width))
    count = 0
    for i in order:
        x, y, a, b, c = means_px[i, 0], means_px[i, 1], conics[i, 0], conics[i, 1], conics[i, 2]
        reach = 2.0 * math.log(opacities[i] / ALPHA_FLOOR)
        determinant = a * c - b * b
        if not determinant > 0.0:
            continue
        half_width, half_height = math.sqrt(reach * c / determinant), math.sqrt(reach * a / determinant)
        if x + half_width < 0 or x - half_width > width or y + half_height < 0 or y - half_height > height:
            continue
        left, right = max(math.floor(x - half_width), 0), min(math.ceil(x + half_width), width)
        top, bottom = max(math.floor(y - half_height), 0), min(math.ceil(y + half_height), height)
        alone[i] = 0.0
        for py in range(top, bottom):
            dy = py + 0.5 - y
            for px in range(left, right):
                before = transmittance[py, px]
                listed = row_of_pixel[py, px] >= 0
                if before == 0.0 and not listed:
                    continue
                dx = px + 0.5 - x
                alpha = min(opacities[i] * math.exp(-0.5 * (a * dx * dx + c * dy * dy) - b * dx * dy), ALPHA_CEILING)
                if alpha < ALPHA_FLOOR:
                    continue
                if listed:
                    alone[i] += alpha
                if before == 0.0:
                    continue
                after = before * (1.0 - alpha)
                if after <= TRANSMITTANCE_FLOOR:
                    transmittance[py, px] = 0.0
                    continue
                transmittance[py, px] = after
                if listed and alpha * before > LEAST_WEIGHT:
                    if len(rows):
                        rows[count], columns[count], values[count] = row_of_pixel[py, px], i, alpha * before
                    count += 1
    return count


__all__ = ["LEAST_WEIGHT", "Blend", "blend_of"]
