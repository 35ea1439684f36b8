"""Differentiable rasteriser of 3D Gaussians behind one function, `rasterize`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from backend.raster import portable

Backend = Literal["auto", "portable", "reference"]
Output = Literal["features", "alpha", "depth"]

# Below this alpha an expected depth means nothing; it also keeps the division finite (gsplat's constant).
_ALPHA_FOR_DEPTH = 1e-10


@dataclass(frozen=True)
class SplatTensors:
    """Gaussians in world space, float32 or float64, post-activation."""

    means: Tensor  # [N, 3] world units
    rotations_wxyz: Tensor  # [N, 4] any length above zero
    scales: Tensor  # [N, 3] standard deviations, world units
    opacities: Tensor  # [N] 0..1


@dataclass(frozen=True)
class Cameras:
    """Pinhole cameras that share one frame size; they receive no gradient."""

    w2c: Tensor  # [C, 4, 4] world to camera, OpenCV axes: x right, y down, z forward
    K: Tensor  # [C, 3, 3] fx, fy, cx, cy in px, no skew; pixel centres at +0.5
    width: int
    height: int


@dataclass(frozen=True)
class RasterOutput:
    """What was asked for; the rest is None."""

    features: Tensor | None  # [C, F, H, W] blended over the background
    alpha: Tensor | None  # [C, H, W]
    depth: Tensor | None = None  # [C, H, W] expected camera z, world units; 0 where alpha is 0


def rasterize(
    splats: SplatTensors,
    cameras: Cameras,
    *,
    features: Tensor,
    background: Tensor | None = None,
    antialiased: bool = True,
    outputs: Sequence[Output] = ("features", "alpha"),
    backend: Backend = "auto",
) -> RasterOutput:
    """Draw Gaussians with any feature channels, differentiable in all splat tensors, features and background.

    Args:
        splats: the Gaussians.
        cameras: one or more cameras.
        features: [N, F] what each Gaussian carries, for example RGB 0..1 in display sRGB.
        background: [F] blended behind, None for zeros.
        antialiased: compensate the opacity for the 0.3 px^2 blur of the 2D covariance (gsplat's "antialiased").
        outputs: which of "features", "alpha", "depth" to return.
        backend: "auto" takes the fastest that works here; "reference" is dense and for tests only.

    Raises:
        ValueError: shapes, dtypes, devices or names do not fit; one line says which.
    """
    _check(splats, cameras, features, background, outputs)
    project, draw = _functions(backend)
    with_depth = "depth" in outputs
    images, alphas, depths = [], [], []
    for w2c, intrinsics in zip(cameras.w2c, cameras.K, strict=True):
        projected = project(
            splats.means, splats.rotations_wxyz, splats.scales, splats.opacities,
            w2c, intrinsics, cameras.width, cameras.height, antialiased,
        )  # fmt: skip
        channels = torch.cat([features, projected.depths[:, None]], 1) if with_depth else features
        image, alpha = draw(projected, channels, cameras.width, cameras.height)
        if with_depth:
            depths.append(image[-1] / alpha.clamp_min(_ALPHA_FOR_DEPTH))
            image = image[:-1]
        # Blended here and not in a kernel: every back-end agrees on it, and its gradient reaches alpha by autograd.
        images.append(image if background is None else image + (1 - alpha) * background[:, None, None])
        alphas.append(alpha)
    return RasterOutput(
        features=torch.stack(images) if "features" in outputs else None,
        alpha=torch.stack(alphas) if "alpha" in outputs else None,
        depth=torch.stack(depths) if with_depth else None,
    )


def _functions(backend: Backend) -> tuple[Callable[..., portable.Projected], Callable[..., tuple[Tensor, Tensor]]]:
    """The projection and drawing functions of a back-end; a faster one that "auto" should prefer is chosen here."""
    if backend in ("auto", "portable"):
        return portable.project, portable.draw
    if backend == "reference":
        from backend.raster import reference

        return reference.project, reference.draw
    raise ValueError(f"backend must be one of {', '.join(get_args(Backend))}, not {backend!r}")


def _check(
    splats: SplatTensors, cameras: Cameras, features: Tensor, background: Tensor | None, outputs: Sequence[str]
) -> None:
    """Raise ValueError on the first thing that does not fit."""
    count = len(splats.means)
    expected = {
        "means": (splats.means, (count, 3)),
        "rotations_wxyz": (splats.rotations_wxyz, (count, 4)),
        "scales": (splats.scales, (count, 3)),
        "opacities": (splats.opacities, (count,)),
        "features": (features, (count, features.shape[-1] if features.ndim else 0)),
    }
    if background is not None:
        expected["background"] = (background, (features.shape[-1] if features.ndim else 0,))
    for name, (tensor, shape) in expected.items():
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{name} must have shape {list(shape)}, not {list(tensor.shape)}")
        if tensor.dtype != splats.means.dtype or tensor.dtype not in (torch.float32, torch.float64):
            raise ValueError(f"{name} must be float32 or float64 like means ({splats.means.dtype}), not {tensor.dtype}")
        if tensor.device.type != "cpu":
            raise ValueError(f"{name} must be on the CPU for this backend, not on {tensor.device}")
    if cameras.w2c.ndim != 3 or cameras.w2c.shape[0] < 1 or tuple(cameras.w2c.shape[1:]) != (4, 4):
        raise ValueError(f"cameras.w2c must have shape [C, 4, 4] with C >= 1, not {list(cameras.w2c.shape)}")
    if tuple(cameras.K.shape) != (len(cameras.w2c), 3, 3):
        raise ValueError(f"cameras.K must have shape [{len(cameras.w2c)}, 3, 3], not {list(cameras.K.shape)}")
    if cameras.width < 1 or cameras.height < 1:
        raise ValueError(f"cameras must be at least 1 x 1 px, not {cameras.width} x {cameras.height}")
    unknown = [name for name in outputs if name not in get_args(Output)]
    if unknown:
        raise ValueError(f"outputs may hold {', '.join(get_args(Output))}, not {unknown[0]!r}")
