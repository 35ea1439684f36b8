"""The back-ends agree: portable with the dense reference, with itself in float32, and with gsplat's own torch code."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from gsplat.cuda._torch_impl import _fully_fused_projection, _quat_scale_to_covar_preci, _spherical_harmonics

from backend.raster import Cameras, SplatTensors, portable, rasterize, reference
from backend.raster.cuda import medians_of_contributions
from tests.raster.scenes import ALL_OUTPUTS, HEIGHT, WIDTH, draw_everything, make_scene, tensors, two_views, with_sh


@pytest.mark.parametrize(("degree", "antialiased"), [(0, True), (1, False), (3, False), (4, True)])
def test_portable_equals_reference_in_float64(degree: int, antialiased: bool) -> None:
    splats, cameras, features = make_scene(150)
    scene = (with_sh(splats, degree), two_views(cameras), features)
    switches = {"geometry_gradient": [True, False, True, False]}
    ours, our_gradients = draw_everything(*scene, "portable", antialiased, **switches)
    theirs, their_gradients = draw_everything(*scene, "reference", antialiased, **switches)
    assert theirs.alpha.max() > 0.99 and theirs.alpha.min() < 0.5, "the scene must exercise both ends"
    for name in ALL_OUTPUTS:
        assert (getattr(ours, name) - getattr(theirs, name)).abs().max() < 1e-11, name
    for name, gradient in their_gradients.items():
        assert gradient.abs().max() > 1e-3, name
        assert (our_gradients[name] - gradient).norm() / gradient.norm() < 1e-11, name


def test_float32_differs_from_float64_by_rounding_and_isolated_threshold_flips() -> None:
    """A Gaussian at the edge of being drawn (1/255) or a pixel at the edge of being finished may fall the other way."""
    splats, cameras, features = make_scene()
    splats = with_sh(splats, 3)
    exact, exact_gradients = draw_everything(splats, cameras, features, "portable")
    single = SplatTensors(*[t.float() for t in (*tensors(splats), splats.sh)])
    rounded, gradients = draw_everything(single, cameras, features.float(), "portable")
    for name in ("rgb", "features", "alpha"):
        error = (getattr(rounded, name).double() - getattr(exact, name)).abs()
        assert getattr(rounded, name).dtype == torch.float32
        assert error.max() < 2 / 255, name
        assert (error > 2e-5).double().mean() < 1e-3, name
    for name, gradient in exact_gradients.items():
        ours = gradients[name].double()
        assert torch.nn.functional.cosine_similarity(ours.ravel(), gradient.ravel(), dim=0) > 0.9999, name


def gradcheck_scene() -> tuple[SplatTensors, Cameras, torch.Tensor]:
    """A few wide, moderately opaque Gaussians, so that no pixel lies near a threshold."""
    splats, cameras, features = make_scene(8, seed=3)
    means = splats.means * 0.2
    scales = 4.0 + 1.0 * torch.rand(8, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    opacities = 0.2 + 0.3 * torch.rand(8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    k = torch.tensor([[[30.0, 0, 18.0], [0, 30.0, 3.0], [0, 0, 1]]], dtype=torch.float64)
    far = cameras.w2c.clone()
    far[:, 2, 3] = 9.0
    sh = 0.1 * torch.randn(8, 9, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    sh[:, 0] += 1.0  # no colour near 0
    return SplatTensors(means, splats.rotations_wxyz, scales, opacities, sh), Cameras(far, k, 36, 6), features


@pytest.mark.parametrize("name", ["means", "rotations_wxyz", "scales", "opacities", "sh", "w2c", "features"])
def test_gradients_are_those_of_the_picture(name: str) -> None:
    splats, cameras, features = gradcheck_scene()

    def draw(leaf: torch.Tensor) -> tuple[torch.Tensor, ...]:
        own = replace(splats, **{name: leaf}) if hasattr(splats, name) else splats
        views = replace(cameras, w2c=leaf) if name == "w2c" else cameras
        carried = leaf if name == "features" else features
        output = rasterize(own, views, features=carried, outputs=("rgb", "features", "alpha", "depth", "normal"))
        assert output.rgb is not None and output.alpha is not None and output.features is not None
        assert output.depth is not None and output.normal is not None
        return output.rgb, output.features, output.alpha, output.depth, output.normal

    source = {"w2c": cameras.w2c, "features": features}.get(name, getattr(splats, name, None))
    assert source is not None
    leaf = source.clone().requires_grad_()
    alpha = draw(leaf)[2]
    assert alpha.min() > 0.2 and alpha.max() < 0.999
    assert torch.autograd.gradcheck(draw, leaf, eps=1e-6, atol=1e-5, rtol=1e-5, fast_mode=True)


@pytest.mark.parametrize("antialiased", [True, False])
def test_projection_equals_gsplats_torch_code(antialiased: bool) -> None:
    splats, cameras, _ = make_scene(2000)
    cameras = two_views(cameras)
    ours = portable.project(*tensors(splats), cameras.w2c, cameras.K, WIDTH, HEIGHT, antialiased)
    covariances, _ = _quat_scale_to_covar_preci(splats.rotations_wxyz, splats.scales, compute_preci=False)
    radii, means_px, depths, conics, shares = _fully_fused_projection(
        splats.means, covariances, cameras.w2c, cameras.K, WIDTH, HEIGHT, calc_compensations=antialiased
    )
    seen = (ours.radii > 0).all(2)
    assert seen.sum() > 1000
    opacities = splats.opacities.expand(2, -1) * (shares if antialiased else 1)
    assert (ours.means_px - means_px)[seen].abs().max() < 1e-10
    assert (ours.conics - conics)[seen].abs().max() < 1e-11
    assert (ours.depths - depths)[seen].abs().max() < 1e-12
    assert (ours.opacities - opacities)[seen].abs().max() < 1e-12
    # gsplat's torch code does not know the opacity: its footprints are at most larger, and equal for an opaque one.
    assert (ours.radii <= radii)[seen].all()
    opaque = portable.project(*tensors(splats)[:3], torch.ones(2000).double(), cameras.w2c, cameras.K, WIDTH, HEIGHT,
                              False).radii  # fmt: skip
    difference = (opaque - radii).abs()[seen]
    assert difference.max() <= 1 and (difference > 0).double().mean() < 0.02  # 3.3290 sigma against 3.33, rounded up
    assert ((opaque > 0).all(2) == (radii > 0).all(2)).double().mean() > 0.99


@pytest.mark.parametrize("degree", [0, 1, 2, 3, 4])
def test_spherical_harmonics_equal_gsplats_torch_code(degree: int) -> None:
    splats, cameras, _ = make_scene(500)
    splats = with_sh(splats, degree)
    cameras = two_views(cameras)
    centres = torch.linalg.inv(cameras.w2c)[:, :3, 3]
    radii = torch.ones(2, 500, 2, dtype=torch.int32)
    inputs = [t.clone().requires_grad_() for t in (splats.sh, splats.means, centres)]
    copies = [t.clone().requires_grad_() for t in (splats.sh, splats.means, centres)]
    ours = portable.shade(*inputs, radii)
    directions = copies[1][None] - copies[2][:, None]
    theirs = _spherical_harmonics(degree, directions, copies[0].expand(2, -1, -1, -1)).add(0.5).clamp_min(0)
    assert (theirs == 0).any() and (theirs > 0).any(), "some colours must be cut"
    assert (ours - theirs).abs().max() < 1e-13
    factors = torch.randn(ours.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    (ours * factors).sum().backward()
    (theirs * factors).sum().backward()
    for mine, other in zip(inputs, copies, strict=True):
        expected = torch.zeros_like(other) if other.grad is None else other.grad  # degree 0 has no direction
        assert (mine.grad - expected).abs().max() < 1e-11 * max(1.0, float(expected.abs().max()))


def test_median_of_listed_contributions_is_that_of_the_kernels() -> None:
    """What the cuda back-end makes of gsplat's lists, on lists from the reference."""
    splats, cameras, _ = make_scene(60)
    projected = portable.project(*tensors(splats), cameras.w2c, cameras.K, WIDTH, HEIGHT, True)
    frame = portable.Projected(*(part[0] for part in projected))
    weights, order = reference._weights(frame, torch.float64, WIDTH, HEIGHT)
    before = 1 - (torch.cumsum(weights, 1) - weights)
    rays, places = torch.nonzero(weights, as_tuple=True)
    medians = medians_of_contributions(order[places], rays, (weights / before)[rays, places], WIDTH * HEIGHT)
    expected = portable.find_medians(projected, WIDTH, HEIGHT)[0]
    assert (expected >= 0).any() and (expected < 0).any()
    assert torch.equal(medians.reshape(HEIGHT, WIDTH), expected)
