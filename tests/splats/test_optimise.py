"""Refining bound Gaussians to a photo: it gets there, and it leaves alone what it must."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from backend.context import Context
from backend.errors import Cancelled
from backend.human.camera import PinholeCamera
from backend.raster.cameras import orbit_camera
from backend.splats import parameters
from backend.splats.bound import BoundSplats, Kind, PosedSplats, concatenate
from backend.splats.losses import Neighbourhood, make_view, roughness
from backend.splats.measure import photo_scores
from backend.splats.optimise import OptimiseSettings, optimise_to_photo
from backend.splats.parameters import GatedAdam
from backend.splats.polish import PolishSettings, colour_range, counted_pixels
from backend.splats.render import render, to_cameras, to_uint8
from backend.splats.ssim import ssim_loss

WIDTH, HEIGHT = 96, 128
QUICK = OptimiseSettings(iterations=6, size_px=64, final_whole_views=2, preview_every=3, detail=None)


def ellipsoid(rows: int = 14, columns: int = 20) -> tuple[np.ndarray, np.ndarray]:
    """Vertices [V, 3] and outward triangles [T, 3] of a closed mesh around (0, 1, 0)."""
    polar = np.linspace(0, np.pi, rows)[1:-1, None]
    around = np.arange(columns)[None] / columns * 2 * np.pi
    x, y, z = 0.2 * np.sin(polar) * np.sin(around), 0.3 * np.cos(polar), 0.15 * np.sin(polar) * np.cos(around)
    ring = np.stack(np.broadcast_arrays(x, y, z), -1)
    vertices = np.concatenate([ring.reshape(-1, 3), [[0, 0.3, 0]], [[0, -0.3, 0]]]) + [0, 1, 0]
    top, bottom = len(vertices) - 2, len(vertices) - 1
    triangles = []
    for column in range(columns):
        beside = (column + 1) % columns
        triangles += [(top, column, beside)]
        last = (rows - 3) * columns
        triangles += [(bottom, last + beside, last + column)]
        for row in range(rows - 3):
            a, b = row * columns + column, row * columns + beside
            triangles += [(a, a + columns, b), (b, a + columns, b + columns)]
    return vertices, np.array(triangles, np.int32)


class Scene:
    """A grey cloud on an ellipsoid, and the photo of a textured one that is a little larger."""

    def __init__(self, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.vertices, self.triangles = ellipsoid()
        count = 3000
        corners = self.vertices[self.triangles]
        area = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1)
        ones = np.ones(count)
        self.splats = BoundSplats(
            triangles=rng.choice(len(self.triangles), count, p=area / area.sum()),
            bary=rng.dirichlet(np.ones(3), count),
            offsets_m=np.zeros((count, 3)),
            rotations_wxyz=np.tile([1.0, 0, 0, 0], (count, 1)),
            scales_m=np.tile([0.012, 0.012, 0.003], (count, 1)),
            opacities=0.9 * ones,
            colours=np.full((count, 3), 0.5),
            confidence=ones,
            kind=np.zeros(count),
            colour_gate=ones,
            shape_gate=ones,
            opacity_floor=0.6 * ones,
        )
        w2c = orbit_camera(np.array([0, 1.0, 0]), 1.5, 20.0, 10.0, 1.0, 1).w2c[0].numpy()
        self.camera = PinholeCamera(w2c, 230.0, 230.0, WIDTH / 2, HEIGHT / 2, WIDTH, HEIGHT)
        larger = (self.vertices - [0, 1, 0]) * [1.05, 1.03, 1.0] + [0, 1, 0]
        truth = self.splats.posed(larger, self.vertices, self.triangles)
        x, y, _ = truth.positions_m.T
        colours = np.stack(
            [0.5 + 0.4 * np.sin(30 * x), 0.5 + 0.4 * np.sin(25 * y), 0.5 + 0.4 * np.cos(20 * (x + y))], 1
        )
        truth = PosedSplats(
            truth.positions_m, truth.rotations_wxyz, truth.scales_m, np.ones(count, np.float32), colours
        )
        (picture,), (self.mask,) = render(truth, to_cameras(self.camera), (0.1, 0.7, 0.2))
        self.image = to_uint8(picture)
        self.held = np.zeros((HEIGHT, WIDTH), bool)

    def posed(self, splats: BoundSplats) -> PosedSplats:
        return splats.posed(self.vertices, self.vertices, self.triangles)

    def optimise(
        self,
        splats: BoundSplats | None = None,
        settings: OptimiseSettings = QUICK,
        context: Context | None = None,
        **changes,
    ) -> BoundSplats:
        inputs = {"image": self.image, "mask": self.mask, "held": self.held, "face_box_px": (30, 20, 70, 60)} | changes
        return optimise_to_photo(
            self.splats if splats is None else splats, self.vertices, self.vertices, self.triangles, self.camera,
            settings=settings, context=context or Context.quiet(), **inputs,
        )  # fmt: skip


@pytest.fixture(scope="module")
def scene() -> Scene:
    return Scene()


def equal(a: BoundSplats, b: BoundSplats, names: tuple[str, ...]) -> bool:
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in names)


ALL = tuple(BoundSplats.__dataclass_fields__)
SHAPE = ("offsets_m", "scales_m", "opacities")


def test_a_grey_cloud_becomes_the_photo(scene: Scene) -> None:
    settings = OptimiseSettings(iterations=80, size_px=128, final_whole_views=20, detail=None)
    result = scene.optimise(settings=settings)
    before = photo_scores(scene.posed(scene.splats), scene.camera, scene.image, scene.mask, scene.held)
    after = photo_scores(scene.posed(result), scene.camera, scene.image, scene.mask, scene.held)
    assert after.psnr_eroded_db > before.psnr_eroded_db + 8
    assert after.alpha_iou > before.alpha_iou
    unchanged = set(ALL) - {*SHAPE, "colours"}
    assert equal(result, scene.splats, tuple(unchanged))


def test_bounds_hold_at_absurd_rates(scene: Scene) -> None:
    wild = replace(
        QUICK, polish=None, iterations=15, colour_rate=1.0, opacity_rate=5.0, scale_rate=1.0, offset_rate=3.0
    )
    result = scene.optimise(settings=wild)
    moved = np.linalg.norm(result.offsets_m - scene.splats.offsets_m, axis=1) / 0.012
    factors = np.log(result.scales_m / scene.splats.scales_m)
    assert moved.max() <= parameters.OFFSET_LIMIT * 1.0001
    assert factors.min() >= parameters.LOG_SCALE_LIMITS[0] - 1e-5
    assert factors.max() <= parameters.LOG_SCALE_LIMITS[1] + 1e-5
    assert np.array_equal(result.scales_m[:, 2], scene.splats.scales_m[:, 2])
    assert np.exp(np.abs(factors[:, 0] - factors[:, 1])).max() <= parameters.ANISOTROPY_LIMIT * 1.001
    assert result.opacities.min() >= np.float32(0.6) and result.opacities.max() < 1
    assert result.colours.min() >= 0 and result.colours.max() <= 1
    for reached in (
        moved.max() > 1.19,
        factors.max() > 0.69,
        result.opacities.min() < 0.61,
        result.colours.max() > 0.99,
    ):
        assert reached, "the rates must press against every bound"


def test_gradient_steps_keep_within_what_the_photo_shows(scene: Scene) -> None:
    settings = replace(QUICK, iterations=15, colour_rate=1.0)
    result = scene.optimise(settings=settings)
    positions = scene.posed(scene.splats).positions_m
    low, high = colour_range(
        scene.image, counted_pixels(scene.mask, scene.held), scene.camera, positions, scene.splats.colours,
        PolishSettings(),
    )  # fmt: skip
    assert (result.colours >= low - 1e-6).all() and (result.colours <= high + 1e-6).all()
    free = scene.optimise(settings=replace(settings, polish=None))
    assert (free.colours > high + 0.1).any(), "the rate must press against the range"


def test_what_hair_covers_takes_no_steps(scene: Scene) -> None:
    height = scene.posed(scene.splats).positions_m[:, 1]
    hair = scene.splats.select(height > 1.0)
    nothing = np.zeros(len(hair))
    hair = replace(
        hair,
        kind=np.full(len(hair), Kind.HAIR),
        offsets_m=hair.offsets_m + [0, 0, 0.02],
        opacities=np.full(len(hair), 0.99),
        colour_gate=nothing,
        shape_gate=nothing,
    )
    both = concatenate([scene.splats, hair])
    result = scene.optimise(both)
    moved = np.abs(result.colours - both.colours).max(axis=1)[: len(scene.splats)]
    assert np.percentile(moved[height > 1.06], 95) == 0
    assert np.percentile(moved[height < 0.94], 50) > 0.01


def test_a_strand_longer_than_the_limit_may_stay_but_not_grow(scene: Scene) -> None:
    strand = replace(scene.splats, scales_m=np.tile([0.03, 0.003, 0.003], (len(scene.splats), 1)))
    result = scene.optimise(strand, replace(QUICK, scale_rate=1.0))
    ratio = result.scales_m[:, 0] / result.scales_m[:, 1]
    assert ratio.max() <= 10.001
    assert ratio.max() > parameters.ANISOTROPY_LIMIT and not np.allclose(ratio, 10, rtol=1e-3)


def test_closed_gates_leave_everything_bit_for_bit(scene: Scene) -> None:
    odd = np.random.default_rng(3)
    splats = replace(
        scene.splats,
        opacities=odd.uniform(0.3, 1.0, len(scene.splats)),
        colours=odd.uniform(0, 1, (len(scene.splats), 3)),
        scales_m=odd.uniform(0.002, 0.02, (len(scene.splats), 3)),
        offsets_m=odd.normal(0, 0.004, (len(scene.splats), 3)),
        colour_gate=np.arange(len(scene.splats)) % 2,
        shape_gate=np.arange(len(scene.splats)) // 2 % 2,
        opacity_floor=np.full(len(scene.splats), 0.5),
    )
    result = scene.optimise(splats)
    for names, gate in ((("colours",), splats.colour_gate), (SHAPE, splats.shape_gate)):
        shut = gate == 0
        assert equal(result.select(shut), splats.select(shut), names)
        assert not any(equal(result.select(~shut), splats.select(~shut), (name,)) for name in names)


def test_a_gate_scales_the_step_and_not_the_gradient() -> None:
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(50, 3, generator=generator)
    moves = []
    for gate in (1.0, 0.5, 0.25):
        leaf = start.clone().requires_grad_()
        adam = GatedAdam([(leaf, np.full(50, gate), 0.1)])
        (leaf * torch.linspace(-1, 1, 150).reshape(50, 3)).sum().backward()
        adam.step(0.7)
        moves.append((leaf - start).detach())
    assert torch.allclose(moves[0].abs(), torch.tensor(0.07), rtol=1e-4), "Adam's first step is the rate itself"
    assert torch.allclose(moves[1], 0.5 * moves[0], atol=1e-6)
    assert torch.allclose(moves[2], 0.25 * moves[0], atol=1e-6)


def test_held_pixels_and_pixels_outside_the_mask_have_no_influence_on_colours(scene: Scene) -> None:
    held = scene.held.copy()
    held[60:90, 30:60] = True
    other = scene.image.copy()
    other[held] = 255 - other[held]
    mask = scene.mask.copy()
    mask[held] = 0.3
    base = scene.optimise(held=held)
    assert equal(base, scene.optimise(held=held, image=other), ALL)
    assert not equal(base, scene.optimise(image=other), ALL)
    assert not equal(base, scene.optimise(), ALL), "the held region must matter when it is not excluded"
    outside = scene.image.copy()
    outside[scene.mask == 0] = (255, 0, 255)
    assert equal(scene.optimise(), scene.optimise(image=outside), ALL)


def test_what_is_behind_the_held_object_does_not_move(scene: Scene) -> None:
    everything = np.ones_like(scene.held)
    result = scene.optimise(held=everything, settings=replace(QUICK, roughness_weight=0.0, scale_drift_weight=0.0))
    assert equal(result, scene.splats, ALL)


def test_the_seed_decides(scene: Scene) -> None:
    first = scene.optimise(context=Context.quiet(seed=1))
    assert equal(first, scene.optimise(context=Context.quiet(seed=1)), ALL)
    assert not equal(first, scene.optimise(context=Context.quiet(seed=2)), ("colours",))


def test_a_face_box_partly_outside_the_photo_and_no_face_box_both_work(scene: Scene) -> None:
    outside = scene.optimise(face_box_px=(-40, -30, 50, 60))
    without = scene.optimise(face_box_px=None)
    assert not equal(outside, without, ("colours",))
    for result in (outside, without):
        assert all(np.isfinite(getattr(result, name)).all() for name in (*SHAPE, "colours"))


def test_progress_preview_and_cancel(scene: Scene) -> None:
    class Recorder:
        def __init__(self) -> None:
            self.steps: list[tuple[float, float]] = []
            self.previews: list[np.ndarray] = []

        def progress(self, stage: str, done: float, total: float, note: str) -> None:
            self.steps.append((done, total))
            if done == 4:
                context.cancel_event.set()

        def preview(self, image: np.ndarray) -> None:
            self.previews.append(image)

    sink = Recorder()
    context = replace(Context.quiet(), sink=sink)
    with pytest.raises(Cancelled):
        scene.optimise(context=context)
    assert sink.steps == [(1, 6), (2, 6), (3, 6), (4, 6)]
    assert len(sink.previews) == 1
    assert sink.previews[0].dtype == np.uint8 and sink.previews[0].shape[0] == QUICK.size_px


def test_nothing_to_do_returns_the_input(scene: Scene) -> None:
    none = scene.splats.select(np.zeros(len(scene.splats), bool))
    assert len(scene.optimise(none)) == 0
    assert equal(scene.optimise(settings=replace(QUICK, iterations=0)), scene.splats, ALL)


def test_wrong_sizes_and_an_empty_mask_are_named(scene: Scene) -> None:
    with pytest.raises(ValueError, match="mask is 96 x 64 px, the camera 96 x 128 px"):
        scene.optimise(mask=scene.mask[:64])
    with pytest.raises(ValueError, match="mask is empty"):
        scene.optimise(mask=np.zeros_like(scene.mask))


def test_a_view_shows_the_same_pixels_through_its_camera(scene: Scene) -> None:
    """Drawing with the view's camera gives the resampled photo, wherever the box lies."""
    splats = scene.posed(scene.splats)
    # Without the blur of the rasteriser in the way: large soft Gaussians.
    splats = replace(splats, scales_m=splats.scales_m * 3)
    (picture,), (mask,) = render(splats, to_cameras(scene.camera))
    for box in ((10, 20, 80, 100), (-10, 5, 40, 60)):
        view = make_view(scene.camera, to_uint8(picture), mask, scene.held, box, 128)
        (drawn,), _ = render(splats, view.cameras)
        weight = view.colour_weight.numpy() > 0
        assert weight.sum() > 1000
        assert np.abs(drawn[weight] - view.image.permute(1, 2, 0).numpy()[weight]).mean() < 0.01


def test_weights_follow_mask_held_and_frame(scene: Scene) -> None:
    held = scene.held.copy()
    held[50:60, 40:50] = True
    view = make_view(scene.camera, scene.image, scene.mask, held, (-16, 0, 96, 128), 128)
    assert view.mask.shape == (128, 112)
    assert not view.alpha_weight[:, :16].any() and not view.colour_weight[:, :16].any()
    assert not view.alpha_weight[50:60, 56:66].any() and not view.image[:, 50:60, 56:66].any()
    assert view.alpha_weight[2, 30] == 1 and view.colour_weight[2, 30] == 0
    edge = (view.mask > 0.3) & (view.mask < 0.7) & (view.alpha_weight > 0)
    assert edge.any() and torch.allclose(view.alpha_weight[edge], torch.tensor(0.3))
    assert view.colour_weight[64, 40] == 1
    # Two pixels inside the mask no colour counts.
    column = torch.nonzero(view.mask[64] > 0.5)[0, 0]
    assert not view.colour_weight[64, column : column + 2].any() and view.colour_weight[64, column + 3]


def test_roughness_pulls_towards_neighbours_of_the_same_kind() -> None:
    line = np.stack([np.arange(10.0), np.zeros(10), np.zeros(10)], 1)
    kind = np.repeat([0, 1], 5)
    heights = torch.zeros(10)
    heights[5:] = 1.0
    neighbours = Neighbourhood.of(line, kind)
    assert roughness(heights, neighbours) == 0
    heights[2] = 0.5
    heights.requires_grad_()
    roughness(heights, neighbours).backward()
    assert heights.grad[2] > 0 and (heights.grad[[0, 1, 3, 4]] < 0).all() and not heights.grad[5:].any()


def test_ssim_equals_its_definition_and_its_gradient() -> None:
    generator = torch.Generator().manual_seed(2)
    image, target = torch.rand(2, 2, 13, 17, generator=generator, dtype=torch.float64)
    weight = torch.rand(13, 17, generator=generator, dtype=torch.float64)
    leaf = image.clone().requires_grad_()

    def mean(values: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.avg_pool2d(values[None], 7, 1, 3, count_include_pad=True)[0]

    ma, mb = mean(leaf), mean(target)
    va, vb, cov = mean(leaf * leaf) - ma**2, mean(target**2) - mb**2, mean(leaf * target) - ma * mb
    similarity = (2 * ma * mb + 1e-4) * (2 * cov + 9e-4) / ((ma**2 + mb**2 + 1e-4) * (va + vb + 9e-4))
    expected = ((1 - similarity) * weight).sum() / (2 * weight.sum())
    expected.backward()
    single = image.float().requires_grad_()
    loss = ssim_loss(single, target.float(), weight.float())
    (3 * loss).backward()
    assert torch.allclose(loss.double(), expected, rtol=1e-5)
    assert torch.allclose(single.grad.double(), 3 * leaf.grad, atol=1e-6 * float(leaf.grad.abs().max()) * 50)
    assert float(ssim_loss(single, single.detach(), weight.float()).detach()) == pytest.approx(0, abs=1e-6)
    assert float(ssim_loss(single, target.float(), torch.zeros(13, 17)).detach()) == 0
