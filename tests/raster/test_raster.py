"""The laws that any rasteriser keeps, and what it says to what does not fit. See also test_agreement."""

import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from backend.raster import Cameras, RasterOutput, SplatTensors, portable, rasterize
from tests.raster.scenes import HEIGHT, WIDTH, make_scene, rotation_about, tensors, two_views, with_sh

ROOT = Path(__file__).parents[2]
BACKENDS = ("portable", "reference")


def draw_with_gradients(
    splats: SplatTensors, cameras: Cameras, features: Tensor, backend: str, antialiased: bool
) -> tuple[RasterOutput, list[Tensor]]:
    """All outputs, and the gradients of a fixed random functional of them."""
    leaves = [t.clone().requires_grad_() for t in (*tensors(splats), features)]
    background = torch.linspace(0.1, 0.9, features.shape[1], dtype=features.dtype)
    output = rasterize(
        SplatTensors(*leaves[:4]), cameras, features=leaves[4], background=background, antialiased=antialiased,
        outputs=("features", "alpha", "depth"), backend=backend,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(9)
    total = sum(
        (t * torch.randn(t.shape, generator=generator, dtype=torch.float64)).sum()
        # The expected depth of a nearly empty pixel is a quotient of two small numbers: weigh it by alpha.
        for t in (output.features, output.alpha, output.depth * output.alpha.detach())
    )
    total.backward()
    return output, [leaf.grad for leaf in leaves]


def test_gradcheck_of_drawing() -> None:
    # Footprints so wide and opacities so moderate that no pixel lies near a threshold, on an image with two tiles.
    count, width, height = 5, 40, 6
    generator = torch.Generator().manual_seed(4)
    means = torch.rand(count, 2, generator=generator, dtype=torch.float64) * torch.tensor([width, height])
    conics = torch.tensor([[0.0011, 0.0002, 0.0016]], dtype=torch.float64).repeat(count, 1)
    conics *= 1 + 0.2 * torch.rand(count, 3, generator=generator, dtype=torch.float64)
    opacities = 0.5 + 0.3 * torch.rand(count, generator=generator, dtype=torch.float64)
    features = torch.rand(count, 2, generator=generator, dtype=torch.float64)
    depths, radii = torch.arange(1.0, count + 1, dtype=torch.float64), torch.full((1, count, 2), 99, dtype=torch.int32)
    leaves = [t[None].clone().requires_grad_() for t in (means, conics, opacities, features)]

    def draw(means_px: Tensor, conics: Tensor, opacities: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        return portable.draw(
            portable.Projected(means_px, conics, opacities, depths[None], radii), features, width, height
        )

    image, alpha = draw(*leaves)
    assert alpha.min() > 0.1 and alpha.max() < 0.9999
    assert torch.autograd.gradcheck(draw, leaves, eps=1e-6, atol=1e-6, rtol=1e-5, fast_mode=True)


def test_one_gaussian_has_the_closed_form() -> None:
    """On the optical axis, isotropic: variance (f s / z)^2 + 0.3, peak opacity times the ratio of the areas."""
    focal, sigma, depth, opacity = 60.0, 0.1, 3.0, 0.8
    splats = SplatTensors(
        torch.tensor([[0.0, 0.0, depth]], dtype=torch.float64),
        torch.tensor([[2.0, 0.0, 0.0, 0.0]], dtype=torch.float64),
        torch.full((1, 3), sigma, dtype=torch.float64),
        torch.tensor([opacity], dtype=torch.float64),
    )
    k = torch.tensor([[focal, 0, 16.5], [0, focal, 12.5], [0, 0, 1]])
    cameras = Cameras(torch.eye(4)[None], k[None], 33, 25)
    colour = torch.tensor([[0.7]], dtype=torch.float64)
    output = rasterize(splats, cameras, features=colour, outputs=("features", "alpha", "depth"))
    sharp = (focal * sigma / depth) ** 2
    y, x = np.mgrid[:25, :33]
    square = (x + 0.5 - 16.5) ** 2 + (y + 0.5 - 12.5) ** 2
    expected = opacity * sharp / (sharp + 0.3) * np.exp(-square / 2 / (sharp + 0.3))
    expected[expected < 1 / 255] = 0
    np.testing.assert_allclose(output.alpha[0], expected, atol=1e-12)
    np.testing.assert_allclose(output.features[0, 0], 0.7 * expected, atol=1e-12)
    np.testing.assert_allclose(output.depth[0][expected > 0], depth, atol=1e-9)
    assert (output.depth[0][expected == 0] == 0).all()


def test_order_of_input_changes_nothing() -> None:
    splats, cameras, features = make_scene()
    order = torch.randperm(len(features), generator=torch.Generator().manual_seed(1))
    image, gradients = draw_with_gradients(splats, cameras, features, "portable", True)
    shuffled = SplatTensors(*[t[order] for t in tensors(splats)])
    other, other_gradients = draw_with_gradients(shuffled, cameras, features[order], "portable", True)
    assert torch.equal(image.features, other.features)
    for ours, theirs in zip(gradients, other_gradients, strict=True):
        assert torch.equal(ours[order], theirs)


def test_background_is_linear_and_weighted_by_what_is_left() -> None:
    splats, cameras, features = make_scene()
    plain = rasterize(splats, cameras, features=features)
    background = torch.tensor([0.2, 0.4, 0.6, 0.8], dtype=torch.float64, requires_grad=True)
    blended = rasterize(splats, cameras, features=features, background=background)
    left = 1 - plain.alpha
    assert torch.allclose(blended.features, plain.features + left[:, None] * background[:, None, None], atol=1e-14)
    blended.features.sum().backward()
    assert torch.allclose(background.grad, left.sum().expand(4))


def test_moving_camera_and_splats_together_changes_nothing() -> None:
    splats, cameras, features = make_scene()
    shift = torch.tensor([0.7, -1.3, 2.1], dtype=torch.float64)
    move = torch.eye(4, dtype=torch.float64)
    move[:3, 3] = -shift
    moved = rasterize(replace(splats, means=splats.means + shift), replace(cameras, w2c=cameras.w2c @ move),
                      features=features, outputs=("features", "depth"))  # fmt: skip
    still = rasterize(splats, cameras, features=features, outputs=("features", "depth"))
    assert torch.allclose(moved.features, still.features, atol=1e-11)
    assert torch.allclose(moved.depth, still.depth, atol=1e-9)


def test_rotating_camera_and_splats_together_changes_nothing() -> None:
    splats, cameras, features = make_scene()
    axis, angle = [1.0, -0.4, 0.6], 1.1
    rotation = rotation_about(axis, angle)
    turn = torch.eye(4, dtype=torch.float64)
    turn[:3, :3] = rotation.T
    unit = torch.nn.functional.normalize(torch.tensor(axis, dtype=torch.float64), dim=0)
    half = torch.cat([torch.tensor([math.cos(angle / 2)]).double(), math.sin(angle / 2) * unit])
    w, v = splats.rotations_wxyz[:, :1], splats.rotations_wxyz[:, 1:]
    product = torch.cat(
        [half[0] * w - v @ half[1:, None], half[0] * v + w * half[1:] + torch.cross(half[1:].expand_as(v), v, dim=1)], 1
    )
    turned = rasterize(replace(splats, means=splats.means @ rotation.T, rotations_wxyz=product),
                       replace(cameras, w2c=cameras.w2c @ turn), features=features)  # fmt: skip
    still = rasterize(splats, cameras, features=features)
    assert torch.allclose(turned.features, still.features, atol=1e-11)


def test_cameras_are_independent_of_each_other() -> None:
    splats, cameras, features = make_scene()
    other = cameras.w2c.clone()
    other[0, :3, 3] += torch.tensor([0.2, 0.1, 0.5])
    both = Cameras(torch.cat([cameras.w2c, other]), cameras.K.repeat(2, 1, 1), WIDTH, HEIGHT)
    together = rasterize(splats, both, features=features)
    alone = rasterize(splats, replace(cameras, w2c=other), features=features)
    assert together.features.shape == (2, 4, HEIGHT, WIDTH)
    assert torch.equal(together.features[1], alone.features[0])
    assert not torch.equal(together.features[0], together.features[1])


def test_a_picture_is_part_of_a_larger_one() -> None:
    """Neither the frame's size nor the place of the tiles shows in a pixel, away from the clamped rays at the edge."""
    splats, cameras, features = make_scene()
    centres = portable.project(*tensors(splats), cameras.w2c, cameras.K, WIDTH, HEIGHT, True).means_px[0]
    inside = ((centres > 0) & (centres < torch.tensor([WIDTH, HEIGHT]))).all(1)
    splats, features = SplatTensors(*[t[inside] for t in tensors(splats)]), features[inside]
    small = rasterize(splats, cameras, features=features)
    k = cameras.K.clone()
    k[:, 0, 2] += 13
    k[:, 1, 2] += 21
    large = rasterize(splats, Cameras(cameras.w2c, k, WIDTH + 40, HEIGHT + 40), features=features)
    window = large.features[..., 21 : 21 + HEIGHT, 13 : 13 + WIDTH]
    assert inside.sum() > 100
    assert torch.allclose(window, small.features, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_splats_leave_the_background(backend: str) -> None:
    _, cameras, _ = make_scene()
    empty = SplatTensors(torch.zeros(0, 3), torch.zeros(0, 4), torch.zeros(0, 3), torch.zeros(0))
    background = torch.tensor([0.25, 0.5, 0.75])
    output = rasterize(empty, cameras, features=torch.zeros(0, 3), background=background, backend=backend,
                       outputs=("features", "alpha", "depth"))  # fmt: skip
    assert torch.equal(output.features, background[None, :, None, None].expand(1, 3, HEIGHT, WIDTH))
    assert not output.alpha.any() and not output.depth.any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_splats_behind_the_camera_or_without_opacity_are_not_drawn(backend: str) -> None:
    splats, cameras, features = make_scene(40)
    back = -cameras.w2c[0, :3, :3].T[:, 2] * 20
    hidden = SplatTensors(
        torch.cat([splats.means, splats.means + back, splats.means]),
        splats.rotations_wxyz.repeat(3, 1),
        splats.scales.repeat(3, 1),
        torch.cat([splats.opacities, splats.opacities, torch.full_like(splats.opacities, 1e-3)]),
    )
    image, gradients = draw_with_gradients(hidden, cameras, features.repeat(3, 1), backend, True)
    alone, _ = draw_with_gradients(splats, cameras, features, backend, True)
    assert torch.allclose(image.features, alone.features, atol=1e-13)
    for gradient in gradients:
        assert torch.isfinite(gradient).all()
        assert not gradient[40:].any()


@pytest.mark.parametrize("field", ["means", "rotations_wxyz", "scales", "opacities"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_broken_splat_does_not_spoil_the_picture(field: str, value: float) -> None:
    splats, cameras, features = make_scene(30)
    broken = getattr(splats, field).clone()
    broken[7] = value
    image = rasterize(replace(splats, **{field: broken}), cameras, features=features).features
    assert torch.isfinite(image).all()
    if not (field == "opacities" and value == math.inf):  # infinitely opaque is drawn like opaque
        rest = [i for i in range(30) if i != 7]
        without = rasterize(SplatTensors(*[t[rest] for t in tensors(splats)]), cameras, features=features[rest])
        assert torch.equal(image, without.features)


def test_strided_inputs_give_the_same_as_contiguous_ones() -> None:
    splats, cameras, features = make_scene(60)
    strided = SplatTensors(*[torch.stack([t, t], -1)[..., 0] for t in tensors(splats)])
    wide = features.T.contiguous().T
    assert not strided.means.is_contiguous() and not wide.is_contiguous()
    ours, our_gradients = draw_with_gradients(strided, cameras, wide, "portable", True)
    theirs, their_gradients = draw_with_gradients(splats, cameras, features, "portable", True)
    assert torch.equal(ours.features, theirs.features)
    for a, b in zip(our_gradients, their_gradients, strict=True):
        assert torch.equal(a, b)


def test_a_picture_that_the_caller_changes_does_not_change_the_gradient() -> None:
    splats, cameras, features = make_scene(60)
    gradients = []
    for spoil in (False, True):
        leaf = splats.means.clone().requires_grad_()
        output = rasterize(replace(splats, means=leaf), cameras, features=features)
        total = (output.features**2).sum().detach() * 0 + output.features.sum()
        if spoil:
            output.features.data.zero_()
            output.alpha.data.zero_()
        total.backward()
        gradients.append(leaf.grad)
    assert torch.equal(*gradients)


def test_runs_are_identical_whatever_the_thread_count() -> None:
    scene = make_scene(2000)
    runs = []
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 1):
            torch.set_num_threads(count)
            runs.append(draw_with_gradients(*scene, "portable", True))
    finally:
        torch.set_num_threads(threads)
    for image, gradients in runs[1:]:
        assert torch.equal(image.features, runs[0][0].features)
        assert all(torch.equal(a, b) for a, b in zip(gradients, runs[0][1], strict=True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"means": torch.zeros(5, 2).double()}, "means must have shape"),
        ({"rotations_wxyz": torch.zeros(5, 3).double()}, "rotations_wxyz must have shape"),
        ({"scales": torch.zeros(4, 3).double()}, "scales must have shape"),
        ({"opacities": torch.zeros(5, 1).double()}, "opacities must have shape"),
        ({"opacities": torch.zeros(5)}, "opacities must be float32 or float64"),
        ({"features": torch.zeros(4, 3).double()}, "features must have shape"),
        ({"background": torch.zeros(4).double()}, "background must have shape"),
        ({"w2c": torch.eye(4)}, "cameras.w2c must have shape"),
        ({"K": torch.eye(3).repeat(2, 1, 1)}, "cameras.K must have shape"),
        ({"width": 0}, "at least 1 x 1 px"),
        ({"outputs": ("colour",)}, "outputs may hold"),
        ({"outputs": ("rgb",)}, "needs splats.sh"),
        ({"features": None, "outputs": ("features",)}, "needs features"),
        ({"sh": torch.zeros(5, 3, 3).double()}, "sh must have shape"),
        ({"geometry_gradient": [True]}, "geometry_gradient must be a bool or 3"),
        ({"backend": "cuda"}, "the cuda back-end does not work here"),
        ({"backend": "opengl"}, "backend must be one of"),
    ],
)
def test_what_does_not_fit_is_named_in_one_line(change: dict, message: str) -> None:
    splats, cameras, features = make_scene(5)
    splats = replace(splats, **{k: v for k, v in change.items() if hasattr(splats, k)})
    cameras = replace(cameras, **{k: v for k, v in change.items() if hasattr(cameras, k)})
    options = {k: v for k, v in change.items() if k in ("background", "outputs", "backend", "geometry_gradient")}
    with pytest.raises(ValueError, match=message) as error:
        rasterize(splats, cameras, features=change.get("features", features[:, :3]), **options)
    assert "\n" not in str(error.value)


def test_colours_from_sh_are_those_of_the_same_features() -> None:
    """Degree 0 has no direction: rgb is the picture of the features 0.5 + C0 sh, cut at 0."""
    splats, cameras, _ = make_scene(80)
    splats = with_sh(splats, 0)
    assert splats.sh is not None
    features = (splats.sh[:, 0] * 0.28209479177387814 + 0.5).clamp_min(0)
    background = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    rgb = rasterize(splats, cameras, background=background).rgb
    plain = rasterize(replace(splats, sh=None), cameras, features=features, background=background).features
    assert rgb is not None and torch.allclose(rgb, plain, atol=1e-13)


def test_colours_turn_with_the_direction_from_the_camera() -> None:
    """A Gaussian whose SH grow along +x is brighter for a camera that looks along +x than along -x."""
    sh = torch.zeros(1, 4, 3)
    sh[0, 3] = -0.5  # the third function of degree 1 is -0.4886 x
    splats = SplatTensors(torch.zeros(1, 3), torch.tensor([[1.0, 0, 0, 0]]), torch.full((1, 3), 0.2), torch.ones(1), sh)
    k = torch.tensor([[[20.0, 0, 8.5], [0, 20.0, 8.5], [0, 0, 1]]])
    seen = []
    for towards in (1.0, -1.0):
        view = torch.tensor([[0, 0, -towards, 0], [0, 1, 0, 0], [towards, 0, 0, 2.0], [0, 0, 0, 1]])
        output = rasterize(splats, Cameras(view[None], k, 17, 17))
        assert output.rgb is not None and output.alpha is not None
        seen.append(float((output.rgb[0, 0] / output.alpha[0])[8, 8]))
    np.testing.assert_allclose(seen, [0.5 + 0.5 * 0.4886025, 0.5 - 0.5 * 0.4886025], atol=1e-5)


def test_normals_are_the_short_axes_turned_to_the_camera() -> None:
    thin = torch.tensor([[0.3, 0.3, 0.001]])
    tilt = torch.tensor([[math.cos(0.2), math.sin(0.2), 0.0, 0.0]])  # 0.4 about x
    expected = torch.tensor([0.0, math.sin(0.4), -math.cos(0.4)])
    k = torch.tensor([[[20.0, 0, 8.5], [0, 20.0, 8.5], [0, 0, 1]]])
    view = torch.eye(4)
    view[2, 3] = 2.0
    for rotation in (tilt, torch.tensor([[-math.sin(0.2), math.cos(0.2), 0.0, 0.0]])):  # and turned over, about x
        splats = SplatTensors(torch.zeros(1, 3), rotation, thin, torch.ones(1))
        output = rasterize(splats, Cameras(view[None], k, 17, 17), outputs=("normal", "alpha"), antialiased=False)
        assert output.normal is not None and output.alpha is not None
        np.testing.assert_allclose(output.normal[0, :, 8, 8] / output.alpha[0, 8, 8], expected, atol=1e-5)


def test_median_depth_is_where_half_of_the_light_is_gone() -> None:
    opacities, depths = [0.3, 0.4, 0.5], [2.0, 3.0, 4.0]  # 0.7, 0.42, 0.21 of the light are left
    means = torch.tensor([[0.0, 0.0, z] for z in depths], requires_grad=True)
    splats = SplatTensors(means, torch.tensor([[1.0, 0, 0, 0]]).repeat(3, 1), torch.full((3, 3), 0.25),
                          torch.tensor(opacities))  # fmt: skip
    k = torch.tensor([[[20.0, 0, 8.5], [0, 20.0, 8.5], [0, 0, 1]]])
    cameras = Cameras(torch.eye(4)[None], k, 17, 17)
    output = rasterize(splats, cameras, outputs=("median_depth",), antialiased=False)
    assert output.median_depth is not None
    assert output.median_depth[0, 8, 8] == 3.0
    (gradient,) = torch.autograd.grad(output.median_depth[0, 8, 8], means)
    assert torch.equal(gradient, torch.tensor([[0.0, 0, 0], [0, 0, 1], [0, 0, 0]]))
    faint = rasterize(replace(splats, opacities=torch.full((3,), 0.05)), cameras, outputs=("median_depth", "alpha"))
    assert faint.median_depth is not None and faint.alpha is not None
    assert faint.median_depth[0, 8, 8] == 4.0, "where half of the light is never gone, the last one that is drawn"
    assert (faint.median_depth[faint.alpha == 0] == 0).all() and (faint.alpha == 0).any()


def test_a_switched_off_channel_moves_only_itself() -> None:
    """All off: only the features get a gradient. One of two off: the geometry's gradient is that of the other alone."""
    splats, cameras, features = make_scene(80)
    background = torch.tensor([0.3, 0.6], dtype=torch.float64)

    def gradients(switch: bool | list[bool], seen: list[int]) -> list[Tensor]:
        leaves = [t.clone().requires_grad_() for t in (*tensors(splats), features[:, :2], cameras.w2c)]
        output = rasterize(SplatTensors(*leaves[:4]), replace(cameras, w2c=leaves[5]), features=leaves[4],
                           background=background, geometry_gradient=switch)  # fmt: skip
        assert output.features is not None
        output.features[:, seen].square().sum().backward()
        return [leaf.grad if leaf.grad is not None else torch.zeros_like(leaf) for leaf in leaves]

    both, first = gradients(True, [0, 1]), gradients(True, [0])
    mixed, none = gradients([True, False], [0, 1]), gradients(False, [0, 1])
    assert torch.allclose(mixed[4], both[4]) and torch.allclose(none[4], both[4])
    for i in (0, 1, 2, 3, 5):
        assert not none[i].any() and both[i].any()
        assert torch.allclose(mixed[i], first[i], atol=1e-12) and not torch.allclose(mixed[i], both[i])


def test_colours_may_leave_the_geometry_alone() -> None:
    splats, cameras, _ = make_scene(60)
    splats = with_sh(splats, 2)
    leaves = [t.clone().requires_grad_() for t in (*tensors(splats), splats.sh, cameras.w2c)]
    output = rasterize(SplatTensors(*leaves[:5]), replace(cameras, w2c=leaves[5]), rgb_geometry_gradient=False)
    assert output.rgb is not None
    output.rgb.sum().backward()
    assert leaves[4].grad is not None and leaves[4].grad.any()
    for i in (0, 1, 2, 3, 5):
        gradient = leaves[i].grad
        assert gradient is None or not gradient.any()


def test_two_cameras_give_the_sum_of_the_gradients() -> None:
    splats, cameras, _ = make_scene(60)
    splats, pair = with_sh(splats, 3), two_views(cameras)

    def gradients(views: Cameras) -> list[Tensor]:
        leaves = [t.clone().requires_grad_() for t in (*tensors(splats), splats.sh)]
        output = rasterize(SplatTensors(*leaves), views)
        assert output.rgb is not None
        output.rgb.square().sum().backward()
        return [leaf.grad for leaf in leaves]

    single = [gradients(replace(pair, w2c=pair.w2c[i : i + 1], K=pair.K[i : i + 1])) for i in range(2)]
    for together, a, b in zip(gradients(pair), *single, strict=True):
        assert torch.allclose(together, a + b, rtol=1e-10, atol=1e-12)


def test_a_camera_that_is_off_finds_its_way_back() -> None:
    """Pose refinement by gradient descent on the picture alone."""
    splats, cameras, features = make_scene(100)
    target = rasterize(splats, cameras, features=features).features
    true = cameras.w2c[0, :3, 3]
    offset = (true + torch.tensor([0.03, -0.02, 0.05], dtype=torch.float64)).requires_grad_()
    optimiser = torch.optim.Adam([offset], lr=5e-3)
    for _ in range(40):
        optimiser.zero_grad()
        pose = torch.cat([cameras.w2c[0, :3, :3], offset[:, None]], 1)
        w2c = torch.cat([pose, cameras.w2c[0, 3:]])[None]
        output = rasterize(splats, replace(cameras, w2c=w2c), features=features)
        (output.features - target).abs().mean().backward()
        optimiser.step()
    assert (offset.detach() - true).norm() < 0.01


def test_a_second_call_with_other_layouts_compiles_nothing() -> None:
    splats, cameras, features = make_scene(30, dtype=torch.float32)
    kernels = [portable.projection.project_forward, portable.sorting.pack, portable.tiles.draw_forward,
               portable.tiles.draw_backward, portable.projection.project_backward]  # fmt: skip

    def run(splats: SplatTensors, features: Tensor, cameras: Cameras) -> None:
        leaves = [t.clone().requires_grad_() for t in tensors(splats)]
        output = rasterize(SplatTensors(*leaves), cameras, features=features, outputs=("features", "depth"))
        assert output.features is not None
        output.features.permute(0, 2, 3, 1)[:, ::2].sum().backward()

    run(splats, features, cameras)
    before = [len(kernel.signatures) for kernel in kernels]
    wide = torch.stack([features, features], 2)[..., 0]
    odd = SplatTensors(*[torch.cat([t, t])[::2] for t in tensors(splats)])
    run(odd, wide, Cameras(cameras.w2c.float(), cameras.K.transpose(1, 2).contiguous().transpose(1, 2), 33, 70))
    run(splats, features[:, :1], replace(cameras, width=1, height=1))
    assert [len(kernel.signatures) for kernel in kernels] == before


def test_a_second_process_loads_every_kernel_from_the_cache_on_disk() -> None:
    """What this process compiled or loaded, the next one must not compile again."""
    run = """
import numba, torch
from backend.raster import Cameras, SplatTensors, projection, rasterize, sorting, spherical, tiles
means = torch.tensor([[0.0, 0.0, 2.0]], requires_grad=True)
splats = SplatTensors(means, torch.ones(1, 4), torch.full((1, 3), 0.1), torch.ones(1), torch.zeros(1, 4, 3))
cameras = Cameras(torch.eye(4)[None], torch.tensor([[[9.0, 0, 4], [0, 9, 4], [0, 0, 1]]]), 8, 8)
output = rasterize(splats, cameras, outputs=("rgb", "depth", "median_depth"))
(output.rgb.sum() + output.median_depth.sum()).backward()
found = [kernel for module in (projection, sorting, spherical, tiles) for kernel in vars(module).values()
         if isinstance(kernel, numba.core.dispatcher.Dispatcher) and kernel.signatures]
assert all(sum(kernel.stats.cache_misses.values()) == 0 for kernel in found), found
print(sum(sum(kernel.stats.cache_hits.values()) for kernel in found))
"""
    exec(compile(run, "<first process>", "exec"), {"print": lambda hits: None, "all": lambda _: True})
    done = subprocess.run([sys.executable, "-c", run], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 10
