"""The portable back-end: the numba kernels of `projection` and `tiles` as torch autograd functions on the CPU."""

from typing import Any, NamedTuple

import numba
import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from backend.raster import projection, tiles


class Projected(NamedTuple):
    """2D Gaussians in one frame; a culled one has `visible` False and zeros elsewhere but in `depths`."""

    means_px: Tensor  # [N, 2], pixel centres at +0.5
    conics: Tensor  # [N, 3] inverse covariance xx, xy, yy, 1/px^2
    opacities: Tensor  # [N]
    depths: Tensor  # [N] camera z, world units
    visible: Tensor  # [N] bool


def project(
    means: Tensor,
    rotations_wxyz: Tensor,
    scales: Tensor,
    opacities: Tensor,
    w2c: Tensor,
    intrinsics: Tensor,
    width: int,
    height: int,
    antialiased: bool,
) -> Projected:
    """Project Gaussians into one camera (EWA); differentiable in the first four arguments.

    Args:
        means: [N, 3] world units, float32 or float64; the others share its dtype.
        rotations_wxyz: [N, 4], normalised here.
        scales: [N, 3] standard deviations, world units.
        opacities: [N] 0..1.
        w2c: [4, 4] world to camera, OpenCV axes.
        intrinsics: [3, 3] px.
        width: px.
        height: px.
        antialiased: scale opacities by the area that the 0.3 px^2 blur added.
    """
    return Projected(
        *_Project.apply(means, rotations_wxyz, scales, opacities, w2c, intrinsics, width, height, antialiased)
    )


def draw(projected: Projected, features: Tensor, width: int, height: int) -> tuple[Tensor, Tensor]:
    """Blend 2D Gaussians front to back; differentiable in centres, conics, opacities and features.

    Args:
        projected: from `project`.
        features: [N, F].
        width: px.
        height: px.

    Returns:
        Weighted feature sums [F, H, W] without background, and alpha [H, W].
    """
    return _Draw.apply(*projected, features, width, height)


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().contiguous().numpy()


def _follow_torch_threads() -> None:
    # Two pools of different size fight for the cores; torch's setting is the one a user knows.
    numba.set_num_threads(min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS))


class _Project(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        means: Tensor,
        rotations: Tensor,
        scales: Tensor,
        opacities: Tensor,
        w2c: Tensor,
        intrinsics: Tensor,
        width: int,
        height: int,
        antialiased: bool,
    ) -> tuple[Tensor, ...]:
        _follow_torch_threads()
        splats = [_array(tensor) for tensor in (means, rotations, scales, opacities)]
        count, dtype = len(splats[0]), splats[0].dtype
        k = _array(intrinsics.double())
        camera = (
            _array(w2c.double()),
            np.array([k[0, 0], k[1, 1], k[0, 2], k[1, 2]]),
            float(width),
            float(height),
            bool(antialiased),
        )
        outputs = [np.empty((count, 2), dtype), np.empty((count, 3), dtype), np.empty(count, dtype)]
        outputs += [np.empty(count, dtype), np.empty(count, np.bool_)]
        projection.project_forward(*splats, *camera, *outputs)
        ctx.kept = splats, camera, outputs[-1]
        tensors = tuple(torch.from_numpy(array) for array in outputs)
        ctx.mark_non_differentiable(tensors[-1])
        return tensors

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *incoming: Tensor) -> tuple[Tensor | None, ...]:
        _follow_torch_threads()
        splats, camera, visible = ctx.kept
        gradients = [np.zeros_like(array) for array in splats]
        projection.project_backward(*splats, *camera, visible, *[_array(g) for g in incoming[:4]], *gradients)
        return *[torch.from_numpy(gradient) for gradient in gradients], None, None, None, None, None


class _Draw(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx | Any,
        means_px: Tensor,
        conics: Tensor,
        opacities: Tensor,
        depths: Tensor,
        visible: Tensor,
        features: Tensor,
        width: int,
        height: int,
    ) -> tuple[Tensor, Tensor]:
        _follow_torch_threads()
        values = _array(features)
        count, channels = values.shape
        dtype = values.dtype
        tiles_x, tiles_y = -(-width // tiles.TILE_PX), -(-height // tiles.TILE_PX)
        packed, tile_box = np.empty((count, tiles.PACKED), dtype), np.empty((count, 4), np.int32)
        tiles.pack(
            _array(means_px), _array(conics), _array(opacities), _array(visible), tiles_x, tiles_y, packed, tile_box
        )
        order = np.argsort(_array(depths), kind="stable")
        tile_start, pair_splat, splat_start, splat_pairs = tiles.sort_into_tiles(order, tile_box, tiles_x, tiles_y)
        image, final = np.empty((channels, height, width), dtype), np.empty((height, width), dtype)
        tiles.draw_forward(packed, values, tiles_x, tiles_y, tile_start, pair_splat, image, final)
        grid = (tiles_x, tiles_y, tile_start, pair_splat, splat_start, splat_pairs)
        ctx.kept = packed, values, grid, image, final
        # A copy: the caller may write into what it receives, and the backward pass needs the image.
        return torch.from_numpy(image.copy()), torch.from_numpy(1 - final)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_image: Tensor, grad_alpha: Tensor) -> tuple[Tensor | None, ...]:
        _follow_torch_threads()
        packed, values, grid, image, final = ctx.kept
        columns = tiles.GEOMETRY + values.shape[1]
        grad_pairs = np.zeros((len(grid[3]), columns), values.dtype)
        grad_splats = np.zeros((len(packed), columns), values.dtype)
        tiles.draw_backward(
            packed, values, *grid, image, final, _array(grad_image), _array(grad_alpha), grad_pairs, grad_splats
        )
        gradient = torch.from_numpy(grad_splats)
        return gradient[:, :2], gradient[:, 2:5], gradient[:, 5], None, None, gradient[:, 6:], None, None
