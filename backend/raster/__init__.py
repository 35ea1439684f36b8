"""Differentiable rasteriser of 3D Gaussians behind one function, `rasterize`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from types import ModuleType
from typing import Any, get_args

import torch
from torch import Tensor

from backend.raster.records import Backend, Cameras, Output, RasterOutput, SplatTensors, check, default_outputs

__all__ = ["Backend", "Cameras", "Output", "RasterOutput", "SplatTensors", "rasterize"]

# Below this alpha an expected depth means nothing; it also keeps the division finite (gsplat's constant).
_ALPHA_FOR_DEPTH = 1e-10


def rasterize(
    splats: SplatTensors,
    cameras: Cameras,
    *,
    features: Tensor | None = None,
    background: Tensor | None = None,
    antialiased: bool = True,
    outputs: Sequence[Output] | None = None,
    geometry_gradient: bool | Sequence[bool] = True,
    rgb_geometry_gradient: bool = True,
    backend: Backend = "auto",
) -> RasterOutput:
    """Draw Gaussians, differentiable in all splat tensors, features, background and the cameras' poses.

    Args:
        splats: the Gaussians; with `sh` they have colours of their own ("rgb").
        cameras: one or more cameras.
        features: [N, F] what else each Gaussian carries, or its RGB 0..1 in display sRGB where it has no SH.
        background: [3] blended behind "rgb" where the splats have SH, else [F] behind "features"; None for zeros.
        antialiased: compensate the opacity for the 0.3 px^2 blur of the 2D covariance (gsplat's "antialiased").
        outputs: which fields of `RasterOutput` to fill; None means the colours that there are, and alpha.
        geometry_gradient: whether means, rotations, scales, opacities and poses receive the gradient of "features",
            for all channels or for each; where not, only the features themselves do.
        rgb_geometry_gradient: the same for "rgb", the direction in which SH are seen included.
        backend: "auto" takes "cuda" for tensors on a CUDA device where gsplat works, else "portable"; "reference" is
            dense and for tests only.

    Raises:
        ValueError: shapes, dtypes, devices or names do not fit, or "cuda" does not work here; one line says which.
    """
    wanted = tuple(outputs) if outputs is not None else default_outputs(splats, features)
    check(splats, cameras, features, background, geometry_gradient, wanted)
    implementation, moves = _implementation(backend, splats.means.device, splats.means.dtype)
    if moves:
        device = splats.means.device
        drawn = rasterize(
            _moved(splats, torch.device("cpu")), _moved(cameras, torch.device("cpu")),
            features=None if features is None else features.cpu(),
            background=None if background is None else background.cpu(),
            antialiased=antialiased, outputs=wanted, geometry_gradient=geometry_gradient,
            rgb_geometry_gradient=rgb_geometry_gradient, backend="portable",
        )  # fmt: skip
        return _moved(drawn, device)
    projected = implementation.project(
        splats.means, splats.rotations_wxyz, splats.scales, splats.opacities,
        cameras.w2c, cameras.K, cameras.width, cameras.height, antialiased,
    )  # fmt: skip
    blocks, geometry = _channels(
        implementation, splats, cameras, projected, features, wanted, geometry_gradient, rgb_geometry_gradient
    )
    names, values = list(blocks), list(blocks.values())
    together = values[0] if len(values) == 1 else torch.cat(values, 2)
    image, alpha = implementation.draw(projected, together, cameras.width, cameras.height, geometry)
    drawn = dict(zip(names, image.split([value.shape[2] for value in values], 1), strict=True))
    if background is not None:
        behind = "features" if splats.sh is None else "rgb"
        if behind in drawn:
            # Blended here and not in a kernel: every back-end agrees, and its gradient reaches alpha by autograd.
            open_ = torch.where(geometry[: len(background), None, None], alpha[:, None], alpha.detach()[:, None])
            drawn[behind] = drawn[behind] + (1 - open_) * background[:, None, None]
    if "depth" in drawn:
        drawn["depth"] = drawn["depth"][:, 0] / alpha.clamp_min(_ALPHA_FOR_DEPTH)
    if "median_depth" in wanted:
        medians = implementation.find_medians(projected, cameras.width, cameras.height)
        drawn["median_depth"] = _at(projected.depths, medians)
    if "alpha" in wanted:
        drawn["alpha"] = alpha
    return RasterOutput(**{name: drawn[name] for name in wanted}, info=_info(projected, cameras))


def _channels(
    implementation: ModuleType,
    splats: SplatTensors,
    cameras: Cameras,
    projected: Any,
    features: Tensor | None,
    wanted: Sequence[str],
    geometry_gradient: bool | Sequence[bool],
    rgb_geometry_gradient: bool,
) -> tuple[dict[str, Tensor], Tensor]:
    """What is blended, per output [C, N, channels], and which channels move the geometry, bool [all channels].

    The channels that the background belongs to come first.
    """
    count, device = len(splats.means), splats.means.device
    poses = len(cameras.w2c)
    blocks: dict[str, Tensor] = {}
    switches: list[bool] = []
    centres = torch.linalg.inv(cameras.w2c.double())[:, :3, 3] if {"rgb", "normal"} & set(wanted) else None
    if "rgb" in wanted and splats.sh is not None and centres is not None:
        seen = (splats.means, centres) if rgb_geometry_gradient else (splats.means.detach(), centres.detach())
        blocks["rgb"] = implementation.shade(splats.sh, *seen, projected.radii)
        switches += [rgb_geometry_gradient] * 3
    if "features" in wanted and features is not None:
        blocks["features"] = features[None].expand(poses, -1, -1)
        flags = [geometry_gradient] * features.shape[1] if isinstance(geometry_gradient, bool) else geometry_gradient
        switches += [bool(flag) for flag in flags]
    if "depth" in wanted:
        blocks["depth"] = projected.depths[..., None]
        switches.append(True)
    if "normal" in wanted and centres is not None:
        blocks["normal"] = _normals(splats, centres)
        switches += [True] * 3
    if not blocks:
        blocks["nothing"] = splats.means.new_zeros(poses, count, 0)
    return blocks, torch.tensor(switches, dtype=torch.bool, device=device)


def _normals(splats: SplatTensors, centres: Tensor) -> Tensor:
    """[C, N, 3] the shortest axis of each Gaussian in world space, turned towards each camera."""
    quaternions = torch.nn.functional.normalize(splats.rotations_wxyz, dim=1)
    w, v = quaternions[:, :1], quaternions[:, 1:]
    axis = torch.nn.functional.one_hot(splats.scales.detach().argmin(1), 3).to(v.dtype)
    # The axis rotated by the quaternion: a + 2 v x (v x a + w a).
    turned = axis + 2 * torch.cross(v, torch.cross(v, axis, dim=1) + w * axis, dim=1)
    with torch.no_grad():
        away = ((splats.means[None] - centres[:, None].to(v.dtype)) * turned).sum(2, keepdim=True) > 0
    return torch.where(away, -turned, turned)


def _at(depths: Tensor, ids: Tensor) -> Tensor:
    """Depths [C, N] of the Gaussians that `ids` [C, H, W] names, 0 where it names none."""
    if not depths.shape[1]:
        return depths.new_zeros(ids.shape)
    picked = depths.gather(1, ids.clamp_min(0).flatten(1)).reshape(ids.shape)
    return torch.where(ids >= 0, picked, torch.zeros_like(picked))


def _info(projected: Any, cameras: Cameras) -> dict[str, Any]:
    return {
        "means2d": projected.means_px,
        "radii": projected.radii,
        "depths": projected.depths,
        "conics": projected.conics,
        "opacities": projected.opacities,
        "batch_ids": None,
        "camera_ids": None,
        "gaussian_ids": None,
        "width": cameras.width,
        "height": cameras.height,
        "n_batches": 1,
        "n_cameras": len(cameras.w2c),
    }


def _implementation(backend: Backend, device: torch.device, dtype: torch.dtype) -> tuple[ModuleType, bool]:
    """The module of a back-end, and whether the tensors have to move to the CPU for it."""
    if backend not in get_args(Backend):
        raise ValueError(f"backend must be one of {', '.join(get_args(Backend))}, not {backend!r}")
    if backend == "reference":
        from backend.raster import reference

        return reference, False
    if backend == "cuda" or (backend == "auto" and device.type == "cuda"):
        from backend.raster import cuda

        fault = cuda.why_not()
        if not fault and device.type != "cuda":
            fault = f"the tensors are on {device}"
        if not fault and dtype != torch.float32:
            fault = f"gsplat knows float32 only, not {dtype}"
        if not fault:
            return cuda, False
        if backend == "cuda":
            raise ValueError(f"the cuda back-end does not work here: {fault}")
    from backend.raster import portable

    return portable, device.type != "cpu"


def _moved(record: Any, device: torch.device) -> Any:
    """The same record with every tensor on another device; gradients flow back.

    What densification reads stays where it is: it asks for the gradient of the very tensor that was drawn.
    """
    changes = {
        entry.name: value.to(device)
        for entry in fields(record)
        if isinstance(value := getattr(record, entry.name), Tensor)
    }
    return replace(record, **changes)
