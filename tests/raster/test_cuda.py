"""The cuda back-end where there is no CUDA: why it is not taken, and everything around gsplat's kernels.

The kernels are replaced by gsplat's own torch code, and by the portable drawing where gsplat has none.
"""

from __future__ import annotations

import importlib.util

import pytest
import torch
from gsplat.cuda import _torch_impl, _wrapper
from torch import Tensor

import backend.raster
from backend.raster import cuda, portable, rasterize
from backend.raster.portable import Projected
from tests.raster.scenes import ALL_OUTPUTS, draw_everything, make_scene, tensors, two_views, with_sh


@pytest.fixture
def without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """The back-end as it is, on the CPU."""
    kept: list[Projected] = []

    def fused(means: Tensor, _: None, quats: Tensor, scales: Tensor, views: Tensor, k: Tensor, width: int, height: int,
              calc_compensations: bool, opacities: Tensor) -> tuple[Tensor, ...]:  # fmt: skip
        covariances, _ = _torch_impl._quat_scale_to_covar_preci(quats, scales, compute_preci=False)
        radii, *rest = _torch_impl._fully_fused_projection(
            means, covariances, views, k, width, height, calc_compensations=calc_compensations
        )
        culled = (radii == 0).any(2)
        # gsplat's kernels leave such rows unset: nothing of them may reach the result.
        unset = [torch.where(culled.reshape(*culled.shape, *[1] * (part.ndim - 2)), torch.nan, part)
                 for part in rest if part is not None]  # fmt: skip
        return (radii, *unset) if calc_compensations else (radii, *unset, None)

    def harmonics(degree: int, directions: Tensor, sh: Tensor, masks: Tensor) -> Tensor:
        return torch.where(masks[..., None], _torch_impl._spherical_harmonics(degree, directions, sh), torch.nan)

    def tiles(projected: Projected, width: int, height: int) -> tuple[None, None]:
        kept[:] = [projected]
        return None, None

    def channels(shape: tuple[Tensor, ...], values: Tensor, width: int, height: int, *_: None) -> tuple[Tensor, Tensor]:
        assert 0 < values.shape[2] <= cuda.CHANNELS_AT_ONCE
        image, alpha = portable.draw(Projected(*shape, kept[0].depths, kept[0].radii), values, width, height)
        return image.permute(0, 2, 3, 1), alpha

    monkeypatch.setattr(_wrapper, "fully_fused_projection", fused)
    monkeypatch.setattr(_wrapper, "spherical_harmonics", harmonics)
    monkeypatch.setattr(cuda, "_tiles", tiles)
    monkeypatch.setattr(cuda, "_draw_channels", channels)
    monkeypatch.setattr(cuda, "find_medians", portable.find_medians)
    monkeypatch.setattr(backend.raster, "_implementation", lambda name, device, dtype: (
        cuda if name == "cuda" else portable, False))  # fmt: skip


@pytest.mark.parametrize("antialiased", [True, False])
@pytest.mark.parametrize("switch", [True, False, [True, False, False, True]])
def test_what_surrounds_the_kernels_equals_portable(
    without_kernels: None, antialiased: bool, switch: bool | list[bool]
) -> None:
    splats, cameras, features = make_scene(100)
    scene = (with_sh(splats, 2), two_views(cameras), features)
    ours, our_gradients = draw_everything(*scene, "cuda", antialiased, geometry_gradient=switch)
    theirs, their_gradients = draw_everything(*scene, "portable", antialiased, geometry_gradient=switch)
    for name in ALL_OUTPUTS:
        assert (getattr(ours, name) - getattr(theirs, name)).abs().max() < 1e-10, name
    for name, gradient in their_gradients.items():
        assert (our_gradients[name] - gradient).norm() < 1e-8 * gradient.norm(), name


def test_more_channels_than_gsplat_takes_at_once_and_none_at_all(without_kernels: None) -> None:
    splats, cameras, _ = make_scene(50)
    many = torch.rand(50, 70, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    switch = [channel % 3 != 0 for channel in range(70)]
    for fixed in (switch, False):
        ours = rasterize(splats, cameras, features=many, geometry_gradient=fixed, backend="cuda")
        theirs = rasterize(splats, cameras, features=many, geometry_gradient=fixed, backend="portable")
        assert ours.features is not None and torch.allclose(ours.features, theirs.features, atol=1e-11)
    leaf = splats.opacities.clone().requires_grad_()
    alone = rasterize(type(splats)(*tensors(splats)[:3], leaf), cameras, outputs=("alpha",), backend="cuda")
    assert alone.alpha is not None and torch.allclose(alone.alpha, ours.alpha, atol=1e-11)
    alone.alpha.sum().backward()
    assert leaf.grad is not None and leaf.grad.any()


def test_why_not_names_the_first_thing_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert cuda.why_not.__wrapped__() == "torch sees no CUDA device"
    monkeypatch.setattr(torch.version, "cuda", None)
    assert cuda.why_not.__wrapped__() == "this torch is built without CUDA"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "gsplat" else found(name))
    assert cuda.why_not.__wrapped__() == "gsplat is not installed"
