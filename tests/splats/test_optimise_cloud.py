"""The shared loop: it reaches known truth, resumes to the same bits, and every densification earns its Gaussians."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from backend.context import Context
from backend.errors import Cancelled
from backend.raster import Cameras, SplatTensors, rasterize
from backend.raster.cameras import orbit_camera
from backend.splats.cloud_parameters import CloudParameters, LearningRates
from backend.splats.densify import Densifier, GradientSettings, NoDensifier, default_densifier
from backend.splats.optimise_cloud import CloudSettings, Draw, FitViews, TargetView, optimise_cloud
from backend.splats.perceptual import perceptual_loss
from backend.splats.relocation import McmcDensifier, McmcSettings
from backend.splats.surface_guided import surface_guided_densifier
from blender_addon.shared.gaussians import GaussianCloud
from scripts.quality_densify import QUICK, fit
from scripts.quality_densify import psnr as quality_psnr
from tests.splats.clouds import grey_start, random_cloud

SIZE_PX = 64
FAST = LearningRates(means=4e-3, means_final=4e-5, scales=1e-2, sh0=1e-2)
"""For a few hundred steps in a scene of 1 m; the defaults are for 30,000."""


def known_cloud(seed: int) -> GaussianCloud:
    """Few large, mostly opaque Gaussians of strong colours."""
    cloud = random_cloud(120, seed)
    rng = np.random.default_rng(seed)
    return replace(cloud, scales_m=cloud.scales_m * 1.5, opacities=rng.uniform(0.6, 0.99, 120))


@cache
def known_views(seed: int = 0) -> tuple[TargetView, ...]:
    """The cloud from all around, drawn by the dense reference in float64."""
    cloud = known_cloud(seed)
    arrays = (cloud.positions_m, cloud.rotations_wxyz, cloud.scales_m, cloud.opacities)
    splats = SplatTensors(*[torch.from_numpy(a).double() for a in arrays])
    views = []
    for number in range(12):
        camera = orbit_camera(np.zeros(3), 1.2, number * 30, 25 * (-1) ** number, 1.2 * SIZE_PX, SIZE_PX)
        output = rasterize(splats, camera, features=torch.from_numpy(cloud.colours).double(), backend="reference")
        assert output.features is not None and output.alpha is not None
        alpha = output.alpha[0].float()
        views.append(TargetView(camera, output.features[0].float() / alpha.clamp_min(1e-4), alpha))
    return tuple(views)


def psnr(parameters: CloudParameters, views: tuple[TargetView, ...]) -> float:
    """Over mid grey, mean of all pixels of all views, dB."""
    errors = []
    with torch.no_grad():
        for view in views:
            assert view.mask is not None
            output = Draw(parameters, torch.full((3,), 0.5), parameters.degree, True)(view.cameras)
            assert output.rgb is not None
            target = view.image * view.mask + 0.5 * (1 - view.mask)
            errors.append(float((output.rgb[0].clamp(0, 1) - target).square().mean()))
    return -10 * float(np.log10(np.mean(errors)))


def test_a_grey_ball_becomes_the_known_cloud() -> None:
    views = known_views()
    parameters = CloudParameters.from_cloud(grey_start(200, 0), 1.0, FAST)
    before = psnr(parameters, views[::4])
    train = [view for number, view in enumerate(views) if number % 4]
    result = optimise_cloud(parameters, FitViews(train), NoDensifier(), CloudSettings(iterations=300), Context.quiet(0))
    assert len(result) == 200
    assert psnr(parameters, views) > before + 10
    assert psnr(parameters, views[::4]) > before + 6  # views it never saw


@dataclass
class Recorder:
    """A sink that keeps what it gets, and cancels after so many reports."""

    cancel_after: int = 10**9
    reports: list[tuple[str, float, float, str]] = field(default_factory=list)
    pictures: list[np.ndarray] = field(default_factory=list)
    context: Context | None = None

    def progress(self, stage: str, done: float, total: float, note: str) -> None:
        self.reports.append((stage, done, total, note))
        if len(self.reports) >= self.cancel_after:
            assert self.context is not None
            self.context.cancel_event.set()

    def preview(self, image: np.ndarray) -> None:
        self.pictures.append(image)


def densifiers(budget: int, iterations: int) -> dict[str, Callable[[], Densifier]]:
    """All three kinds with settings for a short run in a scene of 1 m."""
    when = {"start": iterations // 10, "every": max(10, iterations // 30)}
    gradient = GradientSettings(budget, size=0.03, stop=int(0.7 * iterations), prune_size=0.5, reset_every=0, **when)
    markov = McmcSettings(budget, noise=2e4, stop=int(0.8 * iterations), growth=1.25, least_opacity=0.02, **when)
    return {
        "default": lambda: default_densifier(gradient),
        "surface": lambda: surface_guided_densifier(gradient),
        "mcmc": lambda: McmcDensifier(markov),
    }


@pytest.mark.parametrize("kind", ["default", "surface", "mcmc"])
def test_a_killed_run_goes_on_to_the_same_bits(kind: str, tmp_path: Path) -> None:
    settings = CloudSettings(iterations=60, checkpoint_every=25, preview_every=0)
    views = known_views()[:4]

    def run(sink: Recorder, saved: Path | None) -> GaussianCloud:
        context = replace(Context.quiet(3), sink=sink)
        sink.context = context
        parameters = CloudParameters.from_cloud(grey_start(60, 1), 1.0, FAST)
        return optimise_cloud(parameters, FitViews(views), densifiers(150, 60)[kind](), settings, context, saved=saved)

    straight = run(Recorder(), None)
    saved = tmp_path / "state.npz"
    with pytest.raises(Cancelled):
        run(Recorder(cancel_after=4), saved)
    again = Recorder()
    resumed = run(again, saved)
    assert again.reports[0][1] == 30  # from iteration 25 on
    assert len(straight) > 60
    for name, value in vars(straight).items():
        np.testing.assert_array_equal(getattr(resumed, name), value)


def test_a_checkpoint_of_another_request_or_a_damaged_one_is_not_taken_up(tmp_path: Path) -> None:
    saved, views = tmp_path / "state.npz", known_views()[:2]
    settings = CloudSettings(iterations=20, checkpoint_every=15)

    def reports(seed: int) -> list[tuple[str, float, float, str]]:
        sink = Recorder()
        parameters = CloudParameters.from_cloud(grey_start(20, 1), 1.0, FAST)
        context = replace(Context.quiet(seed), sink=sink)
        optimise_cloud(parameters, FitViews(views), NoDensifier(), settings, context, saved=saved)
        return sink.reports

    assert reports(0)[0][1] == 10
    assert reports(0)[0][1] == 20  # resumed at 15
    assert reports(1)[0][1] == 10  # another seed
    saved.write_bytes(saved.read_bytes()[:200])
    assert reports(1)[0][1] == 10


def test_progress_previews_and_errors() -> None:
    sink = Recorder()
    context = replace(Context.quiet(0), sink=sink)
    views = known_views()[:2]
    parameters = CloudParameters.from_cloud(grey_start(20, 1), 1.0, FAST)
    settings = CloudSettings(iterations=20, preview_every=10, stage="fit")
    objective = FitViews(views, perceptual=perceptual_loss(None), perceptual_weight=0.1)
    optimise_cloud(parameters, objective, NoDensifier(), settings, context, preview=views[0].cameras)
    assert [report[:3] for report in sink.reports] == [("fit", 10, 20), ("fit", 20, 20)]
    assert "20 splats" in sink.reports[0][3]
    assert [picture.shape for picture in sink.pictures] == [(SIZE_PX, SIZE_PX, 3)] * 2
    assert sink.pictures[0].dtype == np.uint8 and not np.array_equal(*sink.pictures)
    with pytest.raises(FloatingPointError, match="iteration 9"):
        optimise_cloud(
            parameters, lambda draw, *_: draw(views[0].cameras).alpha.sum() / 0, NoDensifier(), settings, context
        )
    with pytest.raises(ValueError, match="budget of 5"):
        optimise_cloud(parameters, objective, default_densifier(GradientSettings(5)), settings, context)
    with pytest.raises(ValueError, match="no views"):
        FitViews([])


def test_several_drawings_in_one_iteration_all_count() -> None:
    """Methods that judge several views at once: every drawing's gradients reach the densifier."""
    views = known_views()[:3]
    parameters = CloudParameters.from_cloud(grey_start(80, 1), 1.0, FAST)
    seen = []

    def objective(draw: Draw, iteration: int, generator: torch.Generator) -> torch.Tensor:
        total = torch.zeros(())
        for view in views:
            output = draw(view.cameras)
            assert output.rgb is not None and view.mask is not None
            target = view.image * view.mask + (1 - view.mask) * draw.background[:, None, None]
            total = total + (output.rgb[0] - target).abs().mean()
        seen.append(len(draw.infos))
        return total

    settings = GradientSettings(200, gradient=1e-5, size=0.03, start=2, every=5, stop=50, reset_every=0)
    cloud = optimise_cloud(
        parameters, objective, default_densifier(settings), CloudSettings(iterations=11), Context.quiet(0)
    )
    assert seen == [3] * 11 and 80 < len(cloud) <= 200


def test_several_cameras_in_one_drawing_match_one_by_one() -> None:
    """One drawing of two cameras gives the gradients of two drawings."""
    views = known_views()[:2]
    together = Cameras(
        torch.cat([v.cameras.w2c for v in views]), torch.cat([v.cameras.K for v in views]), SIZE_PX, SIZE_PX
    )
    parameters = CloudParameters.from_cloud(known_cloud(1), 1.0)
    lengths = []
    for cameras in ([together], [view.cameras for view in views]):
        parameters.zero_grad()
        draw = Draw(parameters, torch.zeros(3), 0, True)
        loss = torch.zeros(())
        for camera in cameras:
            output = draw(camera)
            assert output.rgb is not None
            loss = loss + output.rgb.square().sum()
        for info in draw.infos:
            info["means2d"].retain_grad()
        loss.backward()
        lengths.append(torch.cat([info["means2d"].grad for info in draw.infos]))
    torch.testing.assert_close(lengths[0], lengths[1])
    assert lengths[0].shape == (2, 120, 2)


@cache
def unseen_psnr(kind: str, seed: int) -> float:
    """Decibels over views that the optimisation never saw, of a cloud that ends with the whole budget."""
    parameters, unseen = fit(kind, seed, QUICK)
    assert 0.95 * QUICK.budget <= len(parameters) <= QUICK.budget
    return quality_psnr(parameters, unseen)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["default", "surface"])
def test_densification_beats_as_many_gaussians_from_the_start(kind: str) -> None:
    """On a textured mesh, mean of two seeds; `scripts/quality_densify.py` has the larger table, MCMC included.

    MCMC needs more iterations than a test has time for: it does not win in the first few hundred.
    """
    gains = [unseen_psnr(kind, seed) - unseen_psnr("none", seed) for seed in range(QUICK.seeds)]
    assert np.mean(gains) > 0.4
