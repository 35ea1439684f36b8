"""The CUDA back-end: gsplat 1.5.3's kernels, where they really work.

Same contract as `portable`. gsplat leaves the rows of culled Gaussians unset, so they are zeroed here; its kernels know
float32 only.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import sys

import torch
from torch import Tensor

from backend.raster.portable import Projected

TILE_PX = 16  # gsplat's default
CHANNELS_AT_ONCE = 32  # gsplat's default; more need too much shared memory
MEDIAN_TRANSMITTANCE = 0.5


@functools.cache
def why_not() -> str:
    """Why gsplat cannot be used here, in one line; empty if it can.

    The first call of a process tries a tiny drawing with its gradients. Where gsplat has no kernels yet, that builds
    them, which takes minutes.
    """
    if not torch.cuda.is_available():
        return "torch sees no CUDA device" if torch.version.cuda else "this torch is built without CUDA"
    absent = [name for name in ("gsplat", "packaging", "rich", "ninja") if importlib.util.find_spec(name) is None]
    if absent:
        return f"{absent[0]} is not installed"
    # The build talks to stdout, which belongs to the protocol of `serve`.
    with contextlib.redirect_stdout(sys.stderr):
        try:
            from gsplat.cuda import _backend

            if _backend._C is None:
                return "gsplat has no kernels: no CUDA toolkit (nvcc) was found to build them"
            return _fault_of_tiny_drawing()
        except Exception as error:  # whatever it is, it means "not here", and the line says what it was
            lines = str(error).strip().splitlines()
            return f"gsplat does not run: {type(error).__name__}: {lines[0] if lines else 'no message'}"


def _fault_of_tiny_drawing() -> str:
    """Draw one Gaussian in the middle of 16 x 16 px; empty if alpha and gradient are what they must be."""
    device = torch.device("cuda")
    means = torch.tensor([[0.0, 0.0, 2.0]], device=device, requires_grad=True)
    view = torch.eye(4, device=device)[None]
    intrinsics = torch.tensor([[[16.0, 0, 8.5], [0, 16.0, 8.5], [0, 0, 1]]], device=device)
    rotations = torch.tensor([[1.0, 0, 0, 0]], device=device)
    scales, opacities = torch.full((1, 3), 0.25, device=device), torch.full((1,), 0.5, device=device)
    projected = project(means, rotations, scales, opacities, view, intrinsics, 16, 16, False)
    image, alpha = draw(projected, torch.ones(1, 1, 1, device=device), 16, 16)
    image[0, 0, 8, 10].backward()
    drawn, gradient = float(alpha[0, 8, 8]), float(means.grad[0, 0]) if means.grad is not None else 0.0
    if abs(drawn - 0.5) > 1e-3 or not gradient > 0:
        return f"gsplat draws wrongly: alpha {drawn:.4f} where 0.5 must be, gradient {gradient:.3g}"
    return ""


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
    """Same contract as `backend.raster.portable.project`."""
    from gsplat.cuda._wrapper import fully_fused_projection

    radii, means_px, depths, conics, shares = fully_fused_projection(
        means, None, rotations_wxyz, scales, w2c.to(means), intrinsics.to(means), width, height,
        calc_compensations=antialiased, opacities=opacities,
    )  # fmt: skip
    seen = (radii > 0).all(2)
    # Zeroed before the product: what is unset may be not-a-number, and would spoil the opacities' gradient.
    shared = opacities * _kept(shares, seen) if antialiased else opacities.expand(len(w2c), -1)
    return Projected(_kept(means_px, seen), _kept(conics, seen), _kept(shared, seen), _kept(depths, seen), radii)


def _kept(values: Tensor, seen: Tensor) -> Tensor:
    mask = seen.reshape(*seen.shape, *[1] * (values.ndim - 2))
    return torch.where(mask, values, torch.zeros_like(values))


def shade(sh: Tensor, means: Tensor, centres: Tensor, radii: Tensor) -> Tensor:
    """Same contract as `backend.raster.portable.shade`."""
    from gsplat.cuda._wrapper import spherical_harmonics

    degree = round(sh.shape[1] ** 0.5) - 1
    seen = (radii > 0).all(2)
    directions = means[None] - centres.to(means)[:, None]
    colours = spherical_harmonics(degree, directions, sh[None].expand(len(centres), -1, -1, -1), masks=seen)
    return _kept((colours + 0.5).clamp_min(0), seen)


def _tiles(projected: Projected, width: int, height: int) -> tuple[Tensor, Tensor]:
    from gsplat.cuda._wrapper import isect_offset_encode, isect_tiles

    tiles_x, tiles_y = -(-width // TILE_PX), -(-height // TILE_PX)
    cameras = len(projected.radii)
    _, tile_ids, splat_ids = isect_tiles(
        projected.means_px, projected.radii, projected.depths, TILE_PX, tiles_x, tiles_y, n_images=cameras
    )
    return isect_offset_encode(tile_ids, cameras, tiles_x, tiles_y), splat_ids


def draw(
    projected: Projected, features: Tensor, width: int, height: int, geometry: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Same contract as `backend.raster.portable.draw`."""
    offsets, splat_ids = _tiles(projected, width, height)
    shape = (projected.means_px, projected.conics, projected.opacities)
    fixed = tuple(part.detach() for part in shape)
    channels = features.shape[2]
    moves = [True] * channels if geometry is None else geometry.tolist()
    if not channels:  # alpha alone
        features, moves = features.new_zeros(*features.shape[:2], 1), [True]
    parts: list[Tensor] = [features.new_empty(0)] * len(moves)
    alpha: Tensor | None = None
    for moving in (True, False):
        picked = [channel for channel, move in enumerate(moves) if move is moving]
        for start in range(0, len(picked), CHANNELS_AT_ONCE):
            now = picked[start : start + CHANNELS_AT_ONCE]
            image, covered = _draw_channels(
                shape if moving else fixed, features[:, :, now], width, height, offsets, splat_ids
            )
            alpha = covered if moving and alpha is None else alpha
            for channel, plane in zip(now, image.unbind(3), strict=True):
                parts[channel] = plane
    if alpha is None:  # no channel moves the geometry, but alpha always does
        _, alpha = _draw_channels(shape, features[:, :, :1].detach(), width, height, offsets, splat_ids)
    return torch.stack(parts[:channels], 1) if channels else alpha.new_zeros(len(alpha), 0, height, width), alpha


def _draw_channels(
    shape: tuple[Tensor, Tensor, Tensor], values: Tensor, width: int, height: int, offsets: Tensor, splat_ids: Tensor
) -> tuple[Tensor, Tensor]:
    from gsplat.cuda._wrapper import rasterize_to_pixels

    means_px, conics, opacities = shape
    image, alpha = rasterize_to_pixels(
        means_px, conics, values, opacities, width, height, TILE_PX, offsets, splat_ids
    )  # fmt: skip
    return image, alpha[..., 0]


def find_medians(projected: Projected, width: int, height: int) -> Tensor:
    """Same contract as `backend.raster.portable.find_medians`; slow, and large in memory."""
    from gsplat.cuda._wrapper import rasterize_to_indices_in_range

    offsets, splat_ids = _tiles(projected, width, height)
    means_px, conics, opacities = (part.detach() for part in projected[:3])
    cameras = len(means_px)
    light = means_px.new_ones(cameras, height, width)
    splats, pixels, images = rasterize_to_indices_in_range(
        0, 2**31 - 1, light, means_px, conics, opacities, width, height, TILE_PX, offsets, splat_ids
    )
    centres = torch.stack([pixels % width, pixels // width], 1) + 0.5
    dx, dy = (centres - means_px[images, splats]).unbind(1)
    a, b, c = conics[images, splats].unbind(1)
    alphas = (opacities[images, splats] * torch.exp(-0.5 * (a * dx * dx + c * dy * dy) - b * dx * dy)).clamp_max(0.999)
    medians = medians_of_contributions(splats, images * height * width + pixels, alphas, cameras * height * width)
    return medians.reshape(cameras, height, width)


def medians_of_contributions(splats: Tensor, rays: Tensor, alphas: Tensor, ray_count: int) -> Tensor:
    """The Gaussian per ray at which transmittance falls to a half, the last one if it stays above.

    Args:
        splats: int64 [M] Gaussians that are drawn, nearest first within each ray.
        rays: int64 [M] ray of each.
        alphas: [M].
        ray_count: R.

    Returns:
        int64 [R], -1 for a ray without any.
    """
    rays, order = torch.sort(rays, stable=True)
    splats, passed = splats[order], torch.log1p(-alphas[order].double())
    counts = torch.bincount(rays, minlength=ray_count)
    first = torch.cumsum(counts, 0) - counts
    before = torch.cumsum(passed, 0) - passed
    open_ = torch.exp(before - before[first[rays]]) > MEDIAN_TRANSMITTANCE
    last = first + torch.bincount(rays[open_], minlength=ray_count) - 1
    medians = torch.full((ray_count,), -1, dtype=torch.int64, device=splats.device)
    hit = counts > 0
    medians[hit] = splats[last[hit]]
    return medians
