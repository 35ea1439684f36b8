"""The loop of the stylised head on data whose score is exact: it reaches a style, resumes, ends when asked."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from backend.context import Context, QuietSink
from backend.diffusion.guidance import SAS, SAS_STEPS, Guidance
from backend.diffusion.interfaces import Conditions
from backend.diffusion.moments import Moments, moments
from backend.errors import Cancelled
from backend.splats.cloud_parameters import CloudParameters
from backend.splats.head_start import head_start
from backend.splats.optimise_cloud import Draw
from backend.splats.stylise import (
    AROUND,
    GROWTH,
    PRINTED_AROUND,
    RATES,
    Stylised,
    StyliseSettings,
    Teacher,
    Teachers,
    stylise,
    view_weights,
)
from backend.splats.stylise_views import Views, views_at
from backend.step_checkpoints import StepCheckpoints
from blender_addon.shared.gaussians import GaussianCloud
from tests.diffusion.tiny_video import one_thread
from tests.oracles.analytic_denoiser import AnalyticDenoiser, gaussian
from tests.splats.shapes import ellipsoid

pytestmark = pytest.mark.usefixtures("one_thread")
assert one_thread

SHAPE, BLOCK_PX, SIZE_PX = (4, 8, 8), 8, 64
DIMENSIONS = 4 * 8 * 8


@cache
def denoiser() -> AnalyticDenoiser:
    """Mixture 0 knows nothing, so that its estimate is the picture itself; 1 wants one red everywhere."""
    anything = gaussian(torch.zeros(DIMENSIONS), 400 * torch.eye(DIMENSIONS))
    made = AnalyticDenoiser((anything,), SHAPE, block_px=BLOCK_PX)
    red = torch.tensor([0.8, 0.1, 0.1], dtype=torch.float64)[:, None, None].expand(3, SIZE_PX, SIZE_PX)
    return AnalyticDenoiser(
        (anything, gaussian(made.encode(red[None])[0].flatten(), 0.01 * torch.eye(DIMENSIONS))),
        SHAPE,
        block_px=BLOCK_PX,
    )


@cache
def style() -> Moments:
    """Of yellow with some spread."""
    generator = torch.Generator().manual_seed(1)
    colours = torch.tensor([0.75, 0.6, 0.2]) + 0.08 * torch.randn(400, 3, generator=generator)
    picture = colours.T.reshape(1, 3, 20, 20).repeat_interleave(BLOCK_PX, 2).repeat_interleave(BLOCK_PX, 3)
    return moments(denoiser().encode(picture))


def wants(name: int) -> Teacher:
    model = denoiser()

    def conditions(views: Views) -> tuple[Conditions, Conditions]:
        return model.named(name, len(views)), model.named(0, len(views))

    return Teacher(model, conditions)


PLAIN = Guidance(scale=1.0, steps=SAS_STEPS)
SMALL = StyliseSettings(
    iterations=40,
    portrait_px=SIZE_PX,
    around_px=SIZE_PX,
    coarse_px=SIZE_PX // 2,
    portrait=PLAIN,
    around=replace(AROUND, scale=1.0),
    grow=replace(GROWTH, budget=500, every=8),
)


def start(count: int = 300) -> GaussianCloud:
    return head_start(*ellipsoid(), count=count, scale=0.02)


def drawn(cloud: GaussianCloud) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents from four sides, and where the head is in them."""
    parameters = CloudParameters.from_cloud(cloud, 1.0, RATES)
    with torch.no_grad():
        views = views_at((0.0, 90.0, 180.0, -90.0), SIZE_PX).to("cpu")
        output = Draw(parameters, torch.ones(3), 0, antialiased=True)(views.cameras)
    assert output.rgb is not None and output.alpha is not None
    mask = torch.nn.functional.adaptive_avg_pool2d(output.alpha[:, None], SHAPE[1:])
    return denoiser().encode(output.rgb.double()), (mask > 0.95).double()


# ---- what it reaches -------------------------------------------------------------------------------------------------


def test_the_heads_statistics_become_the_styles() -> None:
    """A model without an opinion leaves everything to the style's map."""
    settings = replace(SMALL, iterations=150, coarse_until=0.2)
    made = stylise(start(), Teachers(wants(0), None, style()), settings, Context.quiet())
    before, after = (moments(*drawn(cloud)) for cloud in (start(), made.cloud))
    wanted = style()
    apart = [float((one.mean - wanted.mean).norm()) for one in (before, after)]
    assert apart[1] < 0.25 * apart[0]
    spread = float(after.covariance.trace() / wanted.covariance.trace())
    assert 0.3 < spread < 4.0


def test_without_statistics_it_is_plain_distillation() -> None:
    settings = replace(SMALL, iterations=120, portrait=replace(PLAIN, weight="sigma_alpha"))
    red = stylise(start(), Teachers(wants(1)), settings, Context.quiet()).cloud.colours.mean(0)
    assert red[0] > 0.65 and red[1] < 0.3 and red[2] < 0.3
    off = replace(settings, iterations=10, portrait=replace(PLAIN, style_strength=0.0))
    with_style = stylise(start(), Teachers(wants(1), None, style()), off, Context.quiet())
    without = stylise(start(), Teachers(wants(1)), off, Context.quiet())
    assert np.array_equal(with_style.cloud.sh_dc, without.cloud.sh_dc)


def test_every_term_can_be_switched_off_and_each_counts() -> None:
    few = replace(SMALL, iterations=10)
    both = Teachers(wants(0), wants(1), style())

    def colours(teachers: Teachers, settings: StyliseSettings) -> np.ndarray:
        return stylise(start(), teachers, settings, Context.quiet()).cloud.sh_dc

    whole = colours(both, few)
    for name, value in (("around_weight", 0.0), ("portrait_weight", 0.0), ("back_weight", 1.0)):
        assert not np.array_equal(whole, colours(both, replace(few, **{name: value}))), name
    eager = replace(few, grow=replace(GROWTH, budget=500, every=3, gradient=0.0))
    assert not np.array_equal(colours(both, eager)[:400], colours(both, replace(eager, surface_guided=False))[:400])
    assert np.array_equal(colours(both, replace(few, around_weight=0.0)), colours(replace(both, around=None), few))
    with pytest.raises(ValueError, match="nobody judges"):
        colours(Teachers(None), few)
    with pytest.raises(ValueError, match="nobody judges"):
        colours(both, replace(few, around_weight=0.0, portrait_weight=0.0))


def test_a_view_from_behind_counts_less() -> None:
    angles = torch.tensor([0.0, 60.0, -60.0, 90.0, 120.0, 180.0, -150.0])
    weights = view_weights(angles, 0.25, (60.0, 120.0))
    assert weights.tolist() == pytest.approx([1.0, 1.0, 1.0, 0.625, 0.25, 0.25, 0.25])
    assert view_weights(angles, 1.0, (60.0, 120.0)).eq(1).all()


def test_pictures_have_the_size_that_their_judge_wants() -> None:
    seen: list[tuple[int, int, int]] = []

    @dataclass
    class Watch(AnalyticDenoiser):
        def __init__(self) -> None:
            self.__dict__.update(denoiser().__dict__)

        def encode(self, images: torch.Tensor) -> torch.Tensor:
            low, high = images.detach().aminmax()
            assert low >= 0 and high <= 1
            seen.append((len(images), images.shape[2], images.shape[3]))
            return super().encode(images)

    watch, calls = Watch(), []

    def conditions(views: Views) -> tuple[Conditions, Conditions]:
        calls.append((len(views), views.size_px))
        return denoiser().named(0, len(views)), denoiser().named(0, len(views))

    teacher = Teacher(watch, conditions)
    settings = replace(SMALL, iterations=6, views=2, coarse_until=0.5)
    stylise(start(), Teachers(teacher, teacher, style()), settings, Context.quiet())
    assert seen == [(2, 64, 64), (4, 64, 64)] * 6 and calls == [(2, 64), (4, 64)] * 6


# ---- how many --------------------------------------------------------------------------------------------------------


def test_the_number_grows_gradually_and_never_beyond_the_budget() -> None:
    settings = replace(SMALL, iterations=60, grow=replace(GROWTH, budget=420, every=5, gradient=0.0))
    made = stylise(start(), Teachers(wants(1)), settings, Context.quiet())
    assert made.counts and max(made.counts) <= 420 and len(made.cloud) <= 420
    assert max(made.counts) > 380  # what may grow does
    for number, count in enumerate(made.counts, start=1):
        assert count <= 300 + 120 * min(5 * number / 48, 1) + 1
    still = stylise(start(), Teachers(wants(1)), replace(settings, grow=None), Context.quiet())
    assert len(still.cloud) == 300 and still.counts == ()
    with pytest.raises(ValueError, match="budget of 200"):
        stylise(start(), Teachers(wants(1)), replace(settings, grow=replace(GROWTH, budget=200)), Context.quiet())


def test_the_transparent_are_pruned() -> None:
    cloud = start()
    faint = replace(cloud, opacities=np.where(np.arange(300) < 50, 0.002, cloud.opacities).astype(np.float32))
    settings = replace(SMALL, iterations=6, grow=replace(GROWTH, budget=300, every=2, gradient=1e9))
    assert len(stylise(faint, Teachers(wants(1)), settings, Context.quiet()).cloud) <= 255


# ---- stopping and going on -------------------------------------------------------------------------------------------


@dataclass
class After(QuietSink):
    """Does something after some steps."""

    steps: int
    event: threading.Event
    seen: list[float] = field(default_factory=list)
    offered: list[bool] = field(default_factory=list)
    pictures: list[np.ndarray] = field(default_factory=list)

    def progress(self, stage: str, done: float, total: float, note: str) -> None:
        self.seen.append(done)
        if done == self.steps:
            self.event.set()

    def finishable(self, possible: bool) -> None:
        self.offered.append(possible)

    def preview(self, image: np.ndarray) -> None:
        self.pictures.append(image)


class Always(StepCheckpoints):
    """Saves after every step."""

    def due(self) -> bool:
        return True


def same(one: Stylised, other: Stylised) -> bool:
    names = ("positions_m", "scales_m", "rotations_wxyz", "opacities", "sh_dc")
    return all(np.array_equal(getattr(one.cloud, name), getattr(other.cloud, name)) for name in names)


@pytest.mark.parametrize("stop", [3, 17, 39])
def test_a_stopped_run_goes_on_to_the_same_bits(tmp_path: Path, stop: int) -> None:
    teachers, quiet = Teachers(wants(0), wants(1), style()), Context.quiet(3)
    whole = stylise(start(), teachers, SMALL, quiet)
    sink = After(stop, threading.Event())
    first = replace(quiet, sink=sink, cancel_event=sink.event, checkpoint=Always(tmp_path))
    with pytest.raises(Cancelled):
        stylise(start(), teachers, SMALL, first, key="a")
    assert sink.seen[-1] == stop  # within one step
    counted = After(-1, threading.Event())
    again = replace(quiet, sink=counted, checkpoint=Always(tmp_path))
    assert same(whole, stylise(start(), teachers, SMALL, again, key="a"))
    assert counted.seen[0] in (stop, stop + 1)
    elsewhere: Mapping[str, object] = {"key": "b"}
    other = After(-1, threading.Event())
    stylise(start(), teachers, replace(SMALL, iterations=stop + 1), replace(again, sink=other), key=str(elsewhere))
    assert other.seen[0] == 1  # another prompt is not gone on with


def test_finishing_keeps_what_there_is_but_not_too_early() -> None:
    for asked, reached in ((1, 4), (11, 11)):
        sink = After(asked, threading.Event())
        context = replace(Context.quiet(), sink=sink, finish_event=sink.event)
        made = stylise(start(), Teachers(wants(1)), SMALL, context)
        assert made.finished_early and made.iterations == reached
        assert sink.offered == [True, False]
        early = stylise(start(), Teachers(wants(1)), replace(SMALL, average_last=0.0), Context.quiet())
        assert not np.array_equal(made.cloud.sh_dc, early.cloud.sh_dc) and early.iterations == 40


def test_a_picture_comes_every_two_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    from backend.splats import stylise as module

    now = iter(np.arange(0, 1000, 0.3))
    monkeypatch.setattr(module.time, "monotonic", lambda: float(next(now)))
    sink = After(-1, threading.Event())
    plain = stylise(start(), Teachers(wants(1)), SMALL, Context.quiet())
    shown = stylise(start(), Teachers(wants(1)), SMALL, replace(Context.quiet(), sink=sink))
    assert 4 <= len(sink.pictures) <= 6 and sink.pictures[0].shape == (256, 768, 3)
    assert same(plain, shown)  # looking changes nothing


def test_seeds_repeat_and_differ() -> None:
    few = replace(SMALL, iterations=8)
    one, two, other = (stylise(start(), Teachers(wants(1)), few, Context.quiet(seed)) for seed in (1, 1, 2))
    assert same(one, two) and not same(one, other)


def test_the_papers_settings_are_the_defaults() -> None:
    s = StyliseSettings()
    assert (s.iterations, s.portrait_weight, s.around_weight) == (3000, 1.0, 4 * PRINTED_AROUND)
    assert s.portrait == SAS and s.portrait.scale == 50.0 and s.around.scale == 10.0 and s.around.group == 4
    assert s.portrait.steps.at(999 / 3000) == (0.02, 0.98) and s.around.steps.at(1000 / 3000) == (0.02, 0.5)
    rates = s.rates
    assert (rates.opacities, rates.sh0, rates.quats, rates.scales) == (0.05, 0.01, 0.001, 0.001)
    assert rates.means_at(0, 3000) == pytest.approx(1e-3) and rates.means_at(3000, 3000) == pytest.approx(1e-4)
    assert s.grow is not None and (s.grow.gradient, s.grow.size, s.grow.every) == (2e-4, 0.01, 100)
    for wrong in ({"iterations": 0}, {"backgrounds": ()}, {"around_weight": -1.0}, {"portrait_px": 4}):
        with pytest.raises(ValueError, match="must"):
            replace(s, **wrong)
