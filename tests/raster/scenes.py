"""Scenes and the one functional that the raster tests draw and differentiate."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from backend.raster import Cameras, RasterOutput, SplatTensors, rasterize

WIDTH, HEIGHT = 70, 50
ALL_OUTPUTS = ("rgb", "features", "alpha", "depth", "median_depth", "normal")


def make_scene(
    count: int = 300, seed: int = 0, dtype: torch.dtype = torch.float64
) -> tuple[SplatTensors, Cameras, Tensor]:
    """Gaussians that overlap, some behind the camera, some beyond the frame, in front of a rotated camera."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    means = normal(count, 3) * torch.tensor([0.9, 0.7, 0.8], dtype=torch.float64)
    means[: count // 20, 2] -= 6.0
    scales = 0.08 * torch.exp(0.7 * normal(count, 3))
    splats = (means, normal(count, 4), scales, torch.sigmoid(2.0 * normal(count)))
    view = torch.eye(4, dtype=torch.float64)
    view[:3, :3] = rotation_about([0.3, 1.0, 0.2], 0.4)
    view[:3, 3] = torch.tensor([0.05, -0.1, 2.5], dtype=torch.float64)
    k = torch.tensor([[75.0, 0, 33.0], [0, 80.0, 27.0], [0, 0, 1]], dtype=torch.float64)
    features = torch.rand(count, 4, generator=generator, dtype=torch.float64)
    return SplatTensors(*[t.to(dtype) for t in splats]), Cameras(view[None], k[None], WIDTH, HEIGHT), features.to(dtype)


def with_sh(splats: SplatTensors, degree: int, seed: int = 5) -> SplatTensors:
    """The same Gaussians with colours of their own, some of which are cut at 0."""
    generator = torch.Generator().manual_seed(seed)
    sh = 0.4 * torch.randn(len(splats.means), (degree + 1) ** 2, 3, generator=generator, dtype=torch.float64)
    sh[:, 0] *= 5
    return replace(splats, sh=sh.to(splats.means.dtype))


def two_views(cameras: Cameras) -> Cameras:
    """The camera, and one turned and moved against it."""
    other = torch.eye(4, dtype=torch.float64)
    other[:3, :3] = rotation_about([-0.2, 1.0, 0.4], 0.3)
    other[:3, 3] = torch.tensor([0.1, 0.2, 0.6], dtype=torch.float64)
    return replace(cameras, w2c=torch.cat([cameras.w2c, other @ cameras.w2c]), K=cameras.K.repeat(2, 1, 1))


def rotation_about(axis: list[float], angle: float) -> Tensor:
    x, y, z = torch.nn.functional.normalize(torch.tensor(axis, dtype=torch.float64), dim=0)
    zero = torch.zeros((), dtype=torch.float64)
    cross = torch.stack([torch.stack([zero, -z, y]), torch.stack([z, zero, -x]), torch.stack([-y, x, zero])])
    return torch.matrix_exp(angle * cross)


def tensors(splats: SplatTensors) -> list[Tensor]:
    return [splats.means, splats.rotations_wxyz, splats.scales, splats.opacities]


def functional(output: RasterOutput, seed: int = 9) -> Tensor:
    """A fixed random linear functional of every picture in an output."""
    generator = torch.Generator().manual_seed(seed)
    total = torch.zeros((), dtype=torch.float64)
    for name in ALL_OUTPUTS:
        picture = getattr(output, name)
        if picture is None:
            continue
        if name == "depth":
            # The expected depth of a nearly empty pixel is a quotient of two small numbers: weigh it by alpha.
            assert output.alpha is not None
            picture = picture * output.alpha.detach()
        factors = torch.randn(picture.shape, generator=generator, dtype=torch.float64)
        total = total + (picture * factors.to(picture.device)).sum()
    return total


def draw_everything(
    splats: SplatTensors, cameras: Cameras, features: Tensor, backend: str, antialiased: bool = True, **options: object
) -> tuple[RasterOutput, dict[str, Tensor]]:
    """Every output of Gaussians with SH and features, and the gradients of `functional` by name."""
    assert splats.sh is not None
    leaves = {
        "means": splats.means, "rotations": splats.rotations_wxyz, "scales": splats.scales,
        "opacities": splats.opacities, "sh": splats.sh, "features": features, "poses": cameras.w2c,
        "background": torch.linspace(0.1, 0.9, 3).to(features),
    }  # fmt: skip
    leaves = {name: leaf.detach().clone().requires_grad_() for name, leaf in leaves.items()}
    values = list(leaves.values())
    output = rasterize(
        SplatTensors(*values[:5]), replace(cameras, w2c=values[6]), features=values[5], background=values[7],
        antialiased=antialiased, outputs=ALL_OUTPUTS, backend=backend, **options,
    )  # fmt: skip
    functional(output).backward()
    return output, {name: leaf.grad if leaf.grad is not None else torch.zeros(()) for name, leaf in leaves.items()}
