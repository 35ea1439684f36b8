"""The portable rasteriser against a dense float64 reference, and the laws that any rasteriser keeps."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from backend.raster import Cameras, RasterOutput, SplatTensors, portable, rasterize

WIDTH, HEIGHT = 70, 50
BACKENDS = ("portable", "reference")


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


def two_views(cameras: Cameras) -> Cameras:
    """The camera, and one turned and moved against it."""
    other = torch.eye(4, dtype=torch.float64)
    other[:3, :3] = rotation_about([-0.2, 1.0, 0.4], 0.7)
    other[:3, 3] = torch.tensor([0.1, 0.2, 0.6], dtype=torch.float64)
    return replace(cameras, w2c=torch.cat([cameras.w2c, other @ cameras.w2c]), K=cameras.K.repeat(2, 1, 1))


def rotation_about(axis: list[float], angle: float) -> Tensor:
    x, y, z = torch.nn.functional.normalize(torch.tensor(axis, dtype=torch.float64), dim=0)
    zero = torch.zeros((), dtype=torch.float64)
    cross = torch.stack([torch.stack([zero, -z, y]), torch.stack([z, zero, -x]), torch.stack([-y, x, zero])])
    return torch.matrix_exp(angle * cross)


def tensors(splats: SplatTensors) -> list[Tensor]:
    return [splats.means, splats.rotations_wxyz, splats.scales, splats.opacities]


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


@pytest.mark.parametrize("antialiased", [True, False])
def test_portable_equals_reference_in_float64(antialiased: bool) -> None:
    scene = make_scene()
    ours, our_gradients = draw_with_gradients(*scene, "portable", antialiased)
    theirs, their_gradients = draw_with_gradients(*scene, "reference", antialiased)
    assert theirs.alpha.max() > 0.99 and theirs.alpha.min() < 0.5, "the scene must exercise both ends"
    for name in ("features", "alpha", "depth"):
        assert (getattr(ours, name) - getattr(theirs, name)).abs().max() < 1e-10, name
    for name, ours_, theirs_ in zip(("means", "rotations", "scales", "opacities", "features"), our_gradients,
                                    their_gradients, strict=True):  # fmt: skip
        assert theirs_.abs().max() > 1e-3, name
        assert (ours_ - theirs_).norm() / theirs_.norm() < 1e-8, name


def test_float32_differs_from_float64_by_rounding_and_isolated_threshold_flips() -> None:
    splats, cameras, features = make_scene()
    exact, exact_gradients = draw_with_gradients(splats, cameras, features, "portable", True)
    single = SplatTensors(*[t.float() for t in tensors(splats)])
    rounded, gradients = draw_with_gradients(single, cameras, features.float(), "portable", True)
    error = (rounded.features.double() - exact.features).abs()
    assert rounded.features.dtype == torch.float32
    assert error.max() < 2 / 255
    assert (error > 2e-5).double().mean() < 1e-3
    for ours, theirs in zip(gradients, exact_gradients, strict=True):
        assert torch.nn.functional.cosine_similarity(ours.double().ravel(), theirs.ravel(), dim=0) > 0.9999


def test_gradcheck_of_projection() -> None:
    splats, cameras, _ = make_scene(12, seed=3)
    leaves = [t.clone().requires_grad_() for t in (*tensors(splats), two_views(cameras).w2c)]
    cameras = two_views(cameras)

    def project(*inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(portable.project(*inputs, cameras.K, WIDTH, HEIGHT, True)[:4])

    assert torch.autograd.gradcheck(project, leaves, eps=1e-6, atol=1e-5, rtol=1e-5)


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
    assert torch.autograd.gradcheck(draw, leaves, eps=1e-6, atol=1e-6, rtol=1e-5)


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
