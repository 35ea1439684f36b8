"""SSIM over a 7 px box with its gradient, compiled: torch's pooling takes ten times as long on a CPU."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import torch
from numba import njit, prange
from torch import Tensor
from torch.autograd.function import once_differentiable

RADIUS_PX = 3
_BOX_AREA = float((2 * RADIUS_PX + 1) ** 2)
# The constants of Wang et al. 2004 for values 0..1: (0.01)^2 and (0.03)^2.
LUMINANCE_FLOOR = 1e-4
CONTRAST_FLOOR = 9e-4


def ssim_loss(image: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Weighted mean of 1 - SSIM, differentiable in `image`.

    The box is cut at the frame: pixels beyond count as zero in both pictures.

    Args:
        image: [C, H, W] float32, 0..1.
        target: [C, H, W] float32, 0..1, receives no gradient.
        weight: [H, W] float32 >= 0, where the similarity counts.

    Returns:
        Scalar; 0 where the weights are all zero.
    """
    return _SsimLoss.apply(image, target, weight)


class _SsimLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, image: Tensor, target: Tensor, weight: Tensor) -> Tensor:
        numba.set_num_threads(min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS))
        arrays = [t.detach().contiguous().numpy() for t in (image, target, weight)]
        gradient, sums = np.empty_like(arrays[0]), np.zeros(len(arrays[0]))
        scale = 1.0 / max(float(arrays[2].sum(dtype=np.float64)) * len(sums), 1e-12)
        _channels(*arrays, np.float32(scale), gradient, sums)
        ctx.gradient = gradient
        return image.new_tensor(sums.sum() * scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, incoming: Tensor) -> tuple[Tensor | None, ...]:
        return torch.from_numpy(ctx.gradient) * incoming, None, None


@njit(fastmath={"contract", "reassoc", "nsz"}, error_model="numpy")
def _box_mean(source, rows, out):
    """Mean over the box, zeros beyond the frame; `rows` is work space of the same shape. Its own adjoint."""
    height, width = source.shape
    for y in range(height):
        low, high = max(y - RADIUS_PX, 0), min(y + RADIUS_PX + 1, height)
        for x in range(width):
            rows[y, x] = source[low, x]
        for k in range(low + 1, high):
            for x in range(width):
                rows[y, x] += source[k, x]
    share = np.float32(1.0 / _BOX_AREA)
    for y in range(height):
        row = rows[y]
        for x in range(min(RADIUS_PX, width)):
            out[y, x] = row[: x + RADIUS_PX + 1].sum() * share
        inner = max(width - 2 * RADIUS_PX, 0)
        # Shifted views rather than row[x - 3]: an index that might be negative is not vectorised.
        a, b, c, d, e, f, g = (
            row[0:], row[1:], row[2:], row[3:], row[4:], row[5:], row[6:],
        )  # fmt: skip
        middle = out[y, RADIUS_PX:]
        for x in range(inner):
            middle[x] = (a[x] + b[x] + c[x] + d[x] + e[x] + f[x] + g[x]) * share
        for x in range(max(width - RADIUS_PX, RADIUS_PX), width):
            out[y, x] = row[x - RADIUS_PX :].sum() * share


@njit(parallel=True, fastmath={"contract", "reassoc", "nsz"}, error_model="numpy", cache=True)
def _channels(image, target, weight, scale, gradient, sums):
    """Per channel: sum of weight * (1 - SSIM), and the gradient of `scale` times it."""
    channels, height, width = image.shape
    one, two = np.float32(1), np.float32(2)
    c1, c2 = np.float32(LUMINANCE_FLOOR), np.float32(CONTRAST_FLOOR)
    for channel in prange(channels):
        a, b = image[channel], target[channel]
        work, product = np.empty_like(a), np.empty_like(a)
        mean_a, mean_b = np.empty_like(a), np.empty_like(a)
        mean_aa, mean_bb, mean_ab = np.empty_like(a), np.empty_like(a), np.empty_like(a)
        _box_mean(a, work, mean_a)
        _box_mean(b, work, mean_b)
        product[:] = a * a
        _box_mean(product, work, mean_aa)
        product[:] = b * b
        _box_mean(product, work, mean_bb)
        product[:] = a * b
        _box_mean(product, work, mean_ab)
        total = 0.0
        # The three statistics that depend on `image` are overwritten with the gradients to them.
        for y in range(height):
            for x in range(width):
                ma, mb, w = mean_a[y, x], mean_b[y, x], weight[y, x]
                luminance, luminance_floor = two * ma * mb + c1, ma * ma + mb * mb + c1
                contrast = two * (mean_ab[y, x] - ma * mb) + c2
                contrast_floor = mean_aa[y, x] - ma * ma + mean_bb[y, x] - mb * mb + c2
                similarity = luminance * contrast / (luminance_floor * contrast_floor)
                total += w * (one - similarity)
                g = -w * scale
                to_aa = -g * similarity / contrast_floor
                to_ab = g * two * luminance / (luminance_floor * contrast_floor)
                to_ma = g * two * mb * contrast / (luminance_floor * contrast_floor)
                to_ma -= g * similarity * two * ma / luminance_floor
                mean_a[y, x] = to_ma - two * ma * to_aa - mb * to_ab
                mean_aa[y, x], mean_ab[y, x] = to_aa, to_ab
        sums[channel] = total
        _box_mean(mean_a, work, mean_b)
        _box_mean(mean_aa, work, product)
        _box_mean(mean_ab, work, mean_bb)
        gradient[channel] = mean_b + two * a * product + b * mean_bb
