"""Terms of a loss on rendered pictures and on the Gaussians themselves; each a pure function that returns a scalar.

Pictures are [C, H, W], maps [H, W], weights [H, W] >= 0 say where and how much a pixel counts. All terms are means over
the weight, so that they do not depend on the picture's size, and 0 where nothing counts. The Laplacian of mesh-bound
Gaussians is in `mesh_laplacian`, the perceptual term in `perceptual`.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from backend.splats import ssim
from backend.splats.ssim import CONTRAST_FLOOR, LUMINANCE_FLOOR, RADIUS_PX

LEAST_DEPTH_M = 1e-6
"""A rendered depth at or below it means that nothing was hit there."""


def _mean(values: Tensor, weight: Tensor) -> Tensor:
    """Weighted mean of [H, W]; 0 where the weights are all zero."""
    return (values * weight).sum() / weight.sum().clamp_min(torch.finfo(values.dtype).tiny)


def l1_loss(image: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean absolute difference.

    Args:
        image: [C, H, W], any unit; the loss has the same.
        target: [C, H, W].
        weight: [H, W]; None counts every pixel once.
    """
    difference = (image - target).abs().mean(0)
    return _mean(difference, torch.ones_like(difference) if weight is None else weight)


def ssim_loss(image: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean of 1 - SSIM over a 7 px box, zeros beyond the frame; see `backend.splats.ssim`.

    float32 on the CPU takes the compiled version; elsewhere the same formula runs in torch.

    Args:
        image: [C, H, W] 0..1.
        target: [C, H, W] 0..1, receives no gradient.
        weight: [H, W]; None counts every pixel once.
    """
    weight = torch.ones_like(image[0]) if weight is None else weight
    target = target.detach()
    if image.device.type == "cpu" and image.dtype == torch.float32:
        return ssim.ssim_loss(image, target, weight.float())
    return _mean(1 - _similarity(image, target).mean(0), weight)


def _similarity(a: Tensor, b: Tensor) -> Tensor:
    """SSIM of every pixel and channel [C, H, W]."""

    def box(values: Tensor) -> Tensor:
        return torch.nn.functional.avg_pool2d(values[None], 2 * RADIUS_PX + 1, 1, RADIUS_PX)[0]

    mean_a, mean_b = box(a), box(b)
    spread = box(a * a) - mean_a**2 + box(b * b) - mean_b**2
    contrast = 2 * (box(a * b) - mean_a * mean_b) + CONTRAST_FLOOR
    luminance = (2 * mean_a * mean_b + LUMINANCE_FLOOR) / (mean_a**2 + mean_b**2 + LUMINANCE_FLOOR)
    return luminance * contrast / (spread + CONTRAST_FLOOR)


def photometric_loss(image: Tensor, target: Tensor, weight: Tensor | None = None, structure: float = 0.2) -> Tensor:
    """(1 - structure) L1 + structure (1 - SSIM); 0.2 is 3DGS's lambda_dssim.

    Args:
        image: [C, H, W] 0..1.
        target: [C, H, W] 0..1.
        weight: [H, W]; None counts every pixel once.
        structure: Share of the SSIM term, 0..1.
    """
    return (1 - structure) * l1_loss(image, target, weight) + structure * ssim_loss(image, target, weight)


def mask_loss(alpha: Tensor, mask: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean absolute difference between alpha [H, W] and a soft mask [H, W], both 0..1."""
    return l1_loss(alpha[None], mask[None], weight)


def depth_loss(
    depth: Tensor, target: Tensor, weight: Tensor, kind: Literal["metric", "scale_invariant"] = "metric"
) -> Tensor:
    """Difference of expected depths.

    Args:
        depth: [H, W] expected camera z, metres; 0 where nothing was hit, which then does not count.
        target: [H, W] camera z; metres for "metric", any positive unit for "scale_invariant". Not above 0: unknown.
        weight: [H, W].
        kind: "metric" is the mean absolute difference in metres. "scale_invariant" is the variance of the log ratio
            (Eigen et al. 2014, eq. 1 with the full scale removed): a factor on either depth changes nothing.
    """
    known = (depth > LEAST_DEPTH_M) & (target > LEAST_DEPTH_M)
    counts = torch.where(known, weight.to(depth), torch.zeros_like(depth))
    # Unknown pixels are replaced before the logarithm: a zero weight does not stop a not-a-number gradient.
    ours, theirs = torch.where(known, depth, 1.0), torch.where(known, target.to(depth), 1.0)
    if kind == "metric":
        return _mean((ours - theirs).abs(), counts)
    ratio = ours.log() - theirs.log()
    return _mean((ratio - _mean(ratio, counts)).square(), counts)


def normal_loss(normals: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Mean of 1 - cos of the angle between normals; they need not be of unit length.

    With `depth_normals` of the rendered depth as target it is 2DGS's normal consistency.

    Args:
        normals: [3, H, W] in any space; pixels with a zero vector do not count.
        target: [3, H, W] in the same space; pixels with a zero vector do not count.
        weight: [H, W].
    """
    tiny = 1e-6
    known = (normals.detach().norm(dim=0) > tiny) & (target.detach().norm(dim=0) > tiny)
    up = torch.tensor([0.0, 0.0, 1.0]).to(normals)[:, None, None]
    ours, theirs = (torch.where(known, n, up) for n in (normals, target))
    cosine = (torch.nn.functional.normalize(ours, dim=0) * torch.nn.functional.normalize(theirs, dim=0)).sum(0)
    return _mean(1 - cosine, torch.where(known, weight.to(cosine), torch.zeros_like(cosine)))


def depth_normals(depth: Tensor, intrinsics: Tensor, w2c: Tensor | None = None) -> Tensor:
    """Unit normals [3, H, W] of a depth map by central differences, towards the camera.

    Args:
        depth: [H, W] camera z, metres, > 0 where known.
        intrinsics: [3, 3] px, pixel centres at +0.5.
        w2c: [4, 4]; given, normals are in world axes, else in the camera's (OpenCV).

    Returns:
        Zeros at the frame's edge and where one of the four neighbours is unknown.
    """
    height, width = depth.shape
    k = intrinsics.to(depth)
    y, x = torch.meshgrid(torch.arange(height).to(depth) + 0.5, torch.arange(width).to(depth) + 0.5, indexing="ij")
    points = torch.stack([(x - k[0, 2]) / k[0, 0] * depth, (y - k[1, 2]) / k[1, 1] * depth, depth])
    right = points[:, 1:-1, 2:] - points[:, 1:-1, :-2]
    down = points[:, 2:, 1:-1] - points[:, :-2, 1:-1]
    facing = torch.linalg.cross(down, right, dim=0)
    known = depth > LEAST_DEPTH_M
    around = known[1:-1, 2:] & known[1:-1, :-2] & known[2:, 1:-1] & known[:-2, 1:-1]
    up = torch.tensor([0.0, 0.0, 1.0]).to(depth)[:, None, None]
    unit = torch.nn.functional.normalize(torch.where(around, facing, up), dim=0, eps=1e-20)
    normals = torch.nn.functional.pad(torch.where(around, unit, torch.zeros_like(unit)), (1, 1, 1, 1))
    return normals if w2c is None else torch.einsum("ji,jhw->ihw", w2c[:3, :3].to(depth), normals)


def sparsity(opacities: Tensor, scales: Tensor, opacity_weight: float = 0.01, scale_weight: float = 0.01) -> Tensor:
    """3DGS-MCMC's regulariser: what the picture does not need shrinks and fades.

    Args:
        opacities: [N] 0..1.
        scales: [N, 3] in scene extents.
        opacity_weight: Of the mean opacity; default of the paper and of gsplat's simple_trainer.
        scale_weight: Of the mean scale; likewise.
    """
    return opacity_weight * opacities.mean() + scale_weight * scales.mean()
