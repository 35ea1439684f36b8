"""What goes into `rasterize` and what comes out of it, and the check that it fits together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from torch import Tensor

Backend = Literal["auto", "portable", "cuda", "reference"]
Output = Literal["rgb", "features", "alpha", "depth", "median_depth", "normal"]
SH_COUNTS = (1, 4, 9, 16, 25)  # coefficients per colour of degree 0 to 4


@dataclass(frozen=True)
class SplatTensors:
    """Gaussians in world space, float32 or float64, post-activation."""

    means: Tensor  # [N, 3] world units
    rotations_wxyz: Tensor  # [N, 4] any length above zero
    scales: Tensor  # [N, 3] standard deviations, world units
    opacities: Tensor  # [N] 0..1
    sh: Tensor | None = None  # [N, K, 3] with degree 0 first, K = 1, 4, 9, 16, 25; colour = max(sum + 0.5, 0)


@dataclass(frozen=True)
class Cameras:
    """Pinhole cameras that share one frame size."""

    w2c: Tensor  # [C, 4, 4] world to camera, OpenCV axes: x right, y down, z forward; receives gradients
    K: Tensor  # [C, 3, 3] fx, fy, cx, cy in px, no skew; pixel centres at +0.5; receives none
    width: int
    height: int


@dataclass(frozen=True)
class RasterOutput:
    """What was asked for; the rest is None."""

    features: Tensor | None = None  # [C, F, H, W]
    alpha: Tensor | None = None  # [C, H, W]
    depth: Tensor | None = None  # [C, H, W] expected camera z, world units; 0 where alpha is 0
    rgb: Tensor | None = None  # [C, 3, H, W] display sRGB, not cut at 1
    median_depth: Tensor | None = None  # [C, H, W] camera z where half of the light is gone; 0 where alpha is 0
    normal: Tensor | None = None  # [C, 3, H, W] sums of weight * normal in world space, at most as long as alpha
    # What densification reads, by gsplat's names and in its layout: means2d [C, N, 2] px, radii int32 [C, N, 2] px,
    # depths, conics, opacities, gaussian_ids (None: nothing is packed), width, height, n_cameras and so on. Absolute
    # gradients per pixel (gsplat's `absgrad`) are not collected.
    info: dict[str, Any] = field(default_factory=dict)


def default_outputs(splats: SplatTensors, features: Tensor | None) -> tuple[Output, ...]:
    """The colours that there are, and alpha."""
    colours: tuple[Output, ...] = () if splats.sh is None else ("rgb",)
    return (*colours, "alpha") if features is None else (*colours, "features", "alpha")


def check(
    splats: SplatTensors,
    cameras: Cameras,
    features: Tensor | None,
    background: Tensor | None,
    geometry_gradient: bool | Sequence[bool],
    outputs: Sequence[str],
) -> None:
    """Raise ValueError on the first thing that does not fit."""
    unknown = [name for name in outputs if name not in get_args(Output)]
    if unknown:
        raise ValueError(f"outputs may hold {', '.join(get_args(Output))}, not {unknown[0]!r}")
    for name, source, what in (("rgb", splats.sh, "splats.sh"), ("features", features, "features")):
        if name in outputs and source is None:
            raise ValueError(f"the output {name!r} needs {what}")
    if cameras.w2c.ndim != 3 or cameras.w2c.shape[0] < 1 or tuple(cameras.w2c.shape[1:]) != (4, 4):
        raise ValueError(f"cameras.w2c must have shape [C, 4, 4] with C >= 1, not {list(cameras.w2c.shape)}")
    if tuple(cameras.K.shape) != (len(cameras.w2c), 3, 3):
        raise ValueError(f"cameras.K must have shape [{len(cameras.w2c)}, 3, 3], not {list(cameras.K.shape)}")
    if cameras.width < 1 or cameras.height < 1:
        raise ValueError(f"cameras must be at least 1 x 1 px, not {cameras.width} x {cameras.height}")
    channels = features.shape[-1] if features is not None and features.ndim else 0
    if not isinstance(geometry_gradient, bool) and len(geometry_gradient) != channels:
        raise ValueError(f"geometry_gradient must be a bool or {channels} of them, not {len(geometry_gradient)}")
    _check_tensors(splats, features, background, channels)


def _check_tensors(splats: SplatTensors, features: Tensor | None, background: Tensor | None, channels: int) -> None:
    count, means = len(splats.means), splats.means
    expected: dict[str, tuple[Tensor, tuple[int, ...]]] = {
        "means": (means, (count, 3)),
        "rotations_wxyz": (splats.rotations_wxyz, (count, 4)),
        "scales": (splats.scales, (count, 3)),
        "opacities": (splats.opacities, (count,)),
    }
    if splats.sh is not None:
        coefficients = splats.sh.shape[1] if splats.sh.ndim == 3 else 0
        if coefficients not in SH_COUNTS:
            raise ValueError(f"sh must have shape [N, 1, 4, 9, 16 or 25, 3], not {list(splats.sh.shape)}")
        expected["sh"] = (splats.sh, (count, coefficients, 3))
    if features is not None:
        expected["features"] = (features, (count, channels))
    if background is not None:
        expected["background"] = (background, (channels if splats.sh is None else 3,))
    for name, (tensor, shape) in expected.items():
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{name} must have shape {list(shape)}, not {list(tensor.shape)}")
        if tensor.dtype != means.dtype or tensor.dtype not in (torch.float32, torch.float64):
            raise ValueError(f"{name} must be float32 or float64 like means ({means.dtype}), not {tensor.dtype}")
        if tensor.device != means.device:
            raise ValueError(f"{name} must be on {means.device} like means, not on {tensor.device}")
