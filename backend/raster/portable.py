"""The portable back-end: the numba kernels as torch autograd functions on the CPU.

Each function takes all cameras at once; the kernels run camera after camera.
"""

from typing import Any, NamedTuple

import numba
import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from backend.raster import projection, sorting, spherical, tiles


class Projected(NamedTuple):
    """2D Gaussians in every frame; a culled one has zeros everywhere, radii included."""

    means_px: Tensor  # [C, N, 2], pixel centres at +0.5
    conics: Tensor  # [C, N, 3] inverse covariance xx, xy, yy, 1/px^2
    opacities: Tensor  # [C, N]
    depths: Tensor  # [C, N] camera z, world units
    radii: Tensor  # int32 [C, N, 2] half sizes of the footprint, px


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
    """Project Gaussians into every camera (EWA); differentiable in the first five arguments.

    Args:
        means: [N, 3] world units, float32 or float64; the next three share its dtype.
        rotations_wxyz: [N, 4], normalised here.
        scales: [N, 3] standard deviations, world units.
        opacities: [N] 0..1.
        w2c: [C, 4, 4] world to camera, OpenCV axes.
        intrinsics: [C, 3, 3] px.
        width: px.
        height: px.
        antialiased: scale opacities by the area that the 0.3 px^2 blur added.
    """
    return Projected(
        *_Project.apply(means, rotations_wxyz, scales, opacities, w2c, intrinsics, width, height, antialiased)
    )


def shade(sh: Tensor, means: Tensor, centres: Tensor, radii: Tensor) -> Tensor:
    """Colours from spherical harmonics as every camera sees them; differentiable in the first three arguments.

    Args:
        sh: [N, K, 3], K = 1, 4, 9, 16 or 25.
        means: [N, 3] world units.
        centres: [C, 3] the cameras' places, world units.
        radii: int32 [C, N, 2] from `project`.

    Returns:
        [C, N, 3] max(sum + 0.5, 0), and 0 for what is culled.
    """
    return _Shade.apply(sh, means, centres, radii)


def draw(
    projected: Projected, features: Tensor, width: int, height: int, geometry: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Blend 2D Gaussians front to back; differentiable in centres, conics, opacities and features.

    Args:
        projected: from `project`.
        features: [C, N, F].
        width: px.
        height: px.
        geometry: bool [F] whose gradients reach centres, conics and opacities; None means all.

    Returns:
        Weighted feature sums [C, F, H, W] without background, and alpha [C, H, W].
    """
    if geometry is None:
        geometry = torch.ones(features.shape[2], dtype=torch.bool)
    return _Draw.apply(*projected, features, geometry, width, height)


def find_medians(projected: Projected, width: int, height: int) -> Tensor:
    """Which Gaussian brings each pixel's transmittance to a half or below, the last one drawn if none does.

    Args:
        projected: from `project`.
        width: px.
        height: px.

    Returns:
        int64 [C, H, W], -1 where nothing is drawn.
    """
    follow_torch_threads()
    medians = np.empty((len(projected.means_px), height, width), np.int64)
    for camera, out in enumerate(medians):
        arrays = [_array(part[camera]) for part in projected]
        grid = _Grid.of(arrays, width, height)
        tiles.find_medians(grid.packed, grid.tiles_x, grid.jobs, grid.tile_start, grid.pair_splat, out)
    return torch.from_numpy(medians)


def follow_torch_threads() -> None:
    """Give numba as many threads as torch: two pools of different size fight for the cores."""
    numba.set_num_threads(min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS))


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().contiguous().numpy()


def _blocks(count: int, size: int) -> int:
    return -(-count // size)


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
        follow_torch_threads()
        splats = [_array(tensor) for tensor in (means, rotations, scales, opacities)]
        count, dtype, cameras = len(splats[0]), splats[0].dtype, len(w2c)
        k = _array(intrinsics.double())
        focal_and_centre = np.stack([k[:, 0, 0], k[:, 1, 1], k[:, 0, 2], k[:, 1, 2]], 1)
        frame = (float(width), float(height), bool(antialiased))
        views = [(view, f, *frame) for view, f in zip(_array(w2c.double()), focal_and_centre, strict=True)]
        outputs = [np.empty((cameras, count, columns), dtype) for columns in (2, 3)]
        outputs += [np.empty((cameras, count), dtype) for _ in range(2)]
        outputs.append(np.empty((cameras, count, 2), np.int32))
        for camera, view in enumerate(views):
            projection.project_forward(*splats, *view, *[array[camera] for array in outputs])
        ctx.kept = splats, views, outputs[-1], w2c.dtype
        tensors = tuple(torch.from_numpy(array) for array in outputs)
        ctx.mark_non_differentiable(tensors[-1])
        return tensors

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *incoming: Tensor) -> tuple[Tensor | None, ...]:
        follow_torch_threads()
        splats, views, radii, pose_dtype = ctx.kept
        gradients = [np.zeros_like(array) for array in splats]
        pose = torch.zeros(len(views), 4, 4, dtype=pose_dtype)
        arriving = [_array(gradient) for gradient in incoming[:4]]
        for camera, view in enumerate(views):
            sums = np.zeros((_blocks(len(splats[0]), projection.BLOCK), 12))
            here = [gradient[camera] for gradient in arriving]
            projection.project_backward(*splats, *view, radii[camera], *here, *gradients, sums)
            pose[camera, :3] = torch.from_numpy(sums.sum(0).reshape(3, 4))
        return *[torch.from_numpy(gradient) for gradient in gradients], pose, None, None, None, None


class _Shade(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, sh: Tensor, means: Tensor, centres: Tensor, radii: Tensor) -> Tensor:
        follow_torch_threads()
        arrays = _array(sh), _array(means), _array(centres.double()), _array(radii)
        ctx.kept = *arrays, centres.dtype
        colours = np.empty((len(centres), len(means), 3), arrays[0].dtype)
        for camera, out in enumerate(colours):
            spherical.shade_forward(arrays[0], arrays[1], arrays[2][camera], arrays[3][camera], out)
        return torch.from_numpy(colours)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, incoming: Tensor) -> tuple[Tensor | None, ...]:
        follow_torch_threads()
        sh, means, centres, radii, centre_dtype = ctx.kept
        arriving = _array(incoming)
        grad_sh, grad_means = np.zeros_like(sh), np.zeros_like(means)
        sums = np.zeros((len(centres), _blocks(len(means), spherical.BLOCK), 3))
        for camera, centre in enumerate(centres):
            spherical.shade_backward(
                sh, means, centre, radii[camera], arriving[camera], grad_sh, grad_means, sums[camera]
            )
        grad_centres = torch.from_numpy(sums.sum(1)).to(centre_dtype)
        return torch.from_numpy(grad_sh), torch.from_numpy(grad_means), grad_centres, None


class _Grid(NamedTuple):
    """The Gaussians of one frame sorted into tiles; see `sorting`."""

    packed: np.ndarray
    tiles_x: int
    jobs: np.ndarray
    tile_start: np.ndarray
    pair_splat: np.ndarray
    splat_start: np.ndarray
    splat_pairs: np.ndarray

    @staticmethod
    def of(projected: list[np.ndarray], width: int, height: int) -> "_Grid":
        means_px, conics, opacities, depths, radii = projected
        tiles_x, tiles_y = _blocks(width, sorting.TILE_PX), _blocks(height, sorting.TILE_PX)
        packed = np.empty((len(means_px), sorting.PACKED), means_px.dtype)
        tile_box = np.empty((len(means_px), 4), np.int32)
        sorting.pack(means_px, conics, opacities, radii, tiles_x, tiles_y, packed, tile_box)
        order = sorting.front_to_back(depths.view(f"uint{8 * depths.itemsize}"), tile_box)
        starts = sorting.sort_into_tiles(order, tile_box, tiles_x, tiles_y)
        return _Grid(packed, tiles_x, sorting.share_out(starts[0], numba.get_num_threads()), *starts)


class _Draw(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        means_px: Tensor,
        conics: Tensor,
        opacities: Tensor,
        depths: Tensor,
        radii: Tensor,
        features: Tensor,
        geometry: Tensor,
        width: int,
        height: int,
    ) -> tuple[Tensor, Tensor]:
        follow_torch_threads()
        projected = [_array(tensor) for tensor in (means_px, conics, opacities, depths, radii)]
        values = _array(features)
        cameras, _, channels = values.shape
        image = np.empty((cameras, channels, height, width), values.dtype)
        final = np.empty((cameras, height, width), values.dtype)
        grids = []
        for camera in range(cameras):
            grid = _Grid.of([array[camera] for array in projected], width, height)
            tiles.draw_forward(
                grid.packed, values[camera], grid.tiles_x, grid.jobs, grid.tile_start, grid.pair_splat,
                image[camera], final[camera],
            )  # fmt: skip
            grids.append(grid)
        ctx.kept = grids, values, _array(geometry).astype(values.dtype), image, final
        # A copy: the caller may write into what it receives, and the backward pass needs the image.
        return torch.from_numpy(image.copy()), torch.from_numpy(1 - final)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_image: Tensor, grad_alpha: Tensor) -> tuple[Tensor | None, ...]:
        follow_torch_threads()
        grids, values, geometry, image, final = ctx.kept
        to_image, to_alpha = _array(grad_image), _array(grad_alpha)
        columns = tiles.GEOMETRY + values.shape[2]
        grad_splats = np.empty((*values.shape[:2], columns), values.dtype)
        for camera, grid in enumerate(grids):
            grad_pairs = np.zeros((len(grid.pair_splat), columns), values.dtype)
            tiles.draw_backward(
                grid.packed, values[camera], geometry, grid.tiles_x, grid.jobs, *grid[3:],
                image[camera], final[camera], to_image[camera], to_alpha[camera], grad_pairs, grad_splats[camera],
            )  # fmt: skip
        gradient = torch.from_numpy(grad_splats)
        parts = gradient[..., :2], gradient[..., 2:5], gradient[..., 5], None, None, gradient[..., tiles.GEOMETRY :]
        return *parts, None, None, None
