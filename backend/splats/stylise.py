"""A head drawn to a style by diffusion models: the loop of the stylised-portrait paper, with its equations put right.

In every step random views are drawn. One model, conditioned on the person, says by Style Aligned Sampling what it
would change about them (`backend.diffusion.guidance`), another looks at four views at once so that there is one face
only, and Gaussians are cloned and split along the surface. Models, conditions and the style's statistics are given;
nothing here knows where they come from. Everything lies in the head's frame (`head_start.HeadFrame`).

Chosen where the paper is silent:

- Each view's loss is divided by the number of values in its latents, and the four views of the second model are added:
  else its 0.05 would be a 320th, since its latents are a quarter as large and a mean over four views divides once more.
  The gradient threshold 2e-4 then means what it means in 3DGS, a gradient of a mean over pixels.
- What the single views say counts less from behind: a model of portraits likes faces from everywhere, while the four
  views know where the back is. Without the second model the factor changes little, since Adam divides it out.
- The number of Gaussians may grow to a budget that itself grows with time: distillation pulls at every Gaussian, and a
  fixed budget would be filled by what the first, coarsest hundred steps pull at.
- Colours are kept within 0..1 after every step: encoders know no others.
- The statistics of an estimate are those of one step, pooled over its views. A running average over steps was tried on
  paper and left out: they depend on the time step far more than on the view, so old ones are those of another noise.
- The result is the mean of the parameters over the last steps, in which no Gaussian comes or goes: a step's noise is
  not part of the head.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from backend.context import Context
from backend.diffusion.captured import CapturedGuidance
from backend.diffusion.guidance import SAS, SAS_STEPS, Guidance, Guided, TimeSteps, guide
from backend.diffusion.interfaces import Conditions, Denoiser
from backend.diffusion.moments import Moments
from backend.diffusion.views import off_front_deg
from backend.splats.cloud_parameters import NAMES, CloudParameters, LearningRates
from backend.splats.densify import GradientDensifier, GradientSettings, default_densifier
from backend.splats.optimise_cloud import Draw
from backend.splats.render import BACKGROUND, to_uint8
from backend.splats.stylise_views import (
    FACE_CAMERAS,
    GROUP,
    PREVIEW_CAMERAS,
    CameraSampling,
    Views,
    draw_groups,
    draw_views,
    views_at,
)
from blender_addon.shared.gaussians import GaussianCloud

SH_C0 = 0.28209479177387814
PREVIEW_S, PREVIEW_PX = 2.0, 256
PRINTED_AROUND = 0.05
"""The paper's weight of the four views. Where a model strongly prefers faces it leaves a second one on some heads; four
times as much leaves fewer, at equal identity and a little more saturation (`scripts/quality.py --method portrait`)."""

READ_EVERY = 10
"""Steps between two looks at the loss: reading it waits for the device."""

RATES = LearningRates(means=1e-3, means_final=1e-4, scales=1e-3, quats=1e-3, opacities=5e-2, sh0=1e-2, shN=1e-2 / 20)
"""Of the paper, in head heights."""

GROWTH = GradientSettings(
    budget=40_000, start=0, every=100, prune_opacity=0.01, prune_size=0.1, prune_size_after=1000, reset_every=0
)
"""Threshold, size and interval are the paper's; it prints no pruning and no budget. 40,000 on a head are 2 mm apart."""

AROUND = Guidance(scale=10.0, steps=SAS_STEPS, group=GROUP)
"""The paper's scale for the four views."""


FACE_TIMES = TimeSteps(((0.0, 0.02, 0.35), (1.0, 0.02, 0.25)))
"""Of the last stage: detail of a face that is there already, not another face."""


@dataclass(frozen=True)
class Teacher:
    """A model and what it is told about views.

    Attributes:
        denoiser: The model.
        conditions: From views to what is wanted of them and what is not, batches of as many.
        recorded: Replay its evaluations as CUDA graphs; for models that lie on the device as a whole.
    """

    denoiser: Denoiser
    conditions: Callable[[Views], tuple[Conditions, Conditions]]
    recorded: bool = False


@dataclass(frozen=True)
class Teachers:
    """Who judges; each may be absent, but not both.

    Attributes:
        portrait: Single views, conditioned on the person.
        around: Groups of four views.
        style: Channel statistics of the style's latents, as `portrait` encodes; None is plain distillation.
    """

    portrait: Teacher | None
    around: Teacher | None = None
    style: Moments | None = None


@dataclass(frozen=True)
class StyliseSettings:
    """Defaults are the paper's where it prints one.

    Attributes:
        iterations: Steps.
        views: Single views per step.
        portrait_px: Side of the pictures that `portrait` is shown.
        around_px: Side of those that `around` is shown.
        coarse_px: Side at which pictures are drawn in the beginning, and then enlarged.
        coarse_until: Share of the steps for which that holds.
        portrait: Guidance of the single views; `style_strength` 0 or no statistics make it SDS.
        portrait_weight: Of its loss; 0 leaves it out.
        back_weight: Factor of that weight straight from behind; 1 for the same from everywhere.
        back_deg: Angles from the front between which the weight falls to it.
        around: Guidance of the four views.
        around_weight: Of the loss of each of them; 0 leaves it out. The paper prints `PRINTED_AROUND`.
        cameras: From where.
        backgrounds: Greys or colours behind the head, drawn in turn by chance; display sRGB.
        rates: Adam's, in head heights.
        grow: Splitting, cloning and pruning; its `stop` is replaced by `grow_until`. None: the number stays.
        grow_until: Share of the steps after which the number stays.
        budget_until: Share of the steps at which the whole budget may be used.
        surface_guided: New Gaussians lie along the surface; False: as in 3DGS.
        average_last: Share of the steps whose parameters are averaged for the result.
        earliest: Share of the steps below which a wish to finish waits.
        stage: Name of the progress.
    """

    iterations: int = 3000
    views: int = 1
    portrait_px: int = 512
    around_px: int = 256
    coarse_px: int = 256
    coarse_until: float = 1 / 3
    portrait: Guidance = SAS
    portrait_weight: float = 1.0
    back_weight: float = 0.25
    back_deg: tuple[float, float] = (60.0, 120.0)
    around: Guidance = AROUND
    around_weight: float = 0.2
    cameras: CameraSampling = CameraSampling()
    backgrounds: tuple[tuple[float, float, float], ...] = ((1.0, 1.0, 1.0), (0.5, 0.5, 0.5))
    rates: LearningRates = RATES
    grow: GradientSettings | None = GROWTH
    grow_until: float = 0.95
    budget_until: float = 0.8
    surface_guided: bool = True
    average_last: float = 0.04
    earliest: float = 0.1
    stage: str = "stylise"

    def __post_init__(self) -> None:
        """Refuse what cannot run.

        Raises:
            ValueError: With the value that is wrong.
        """
        if self.iterations < 1 or self.views < 1 or min(self.portrait_px, self.around_px, self.coarse_px) < 8:
            raise ValueError("there must be at least one step, one view and 8 px")
        if not self.backgrounds or min(self.portrait_weight, self.around_weight, self.back_weight) < 0:
            raise ValueError("there must be a background, and weights must not be negative")


def face_settings(settings: StyliseSettings, steps: int, count: int) -> StyliseSettings:
    """The last stage's: close-ups from the front, small time steps, rates of the loop's end, room for finer Gaussians.

    Args:
        settings: Of the loop before.
        steps: How many.
        count: Gaussians there are.
    """
    grow = settings.grow or GROWTH
    finer = replace(grow, budget=max(grow.budget, count) + grow.budget // 2, size=grow.size / 2, prune_size_after=steps)
    low = settings.rates.means_final
    return replace(
        settings,
        iterations=steps,
        cameras=FACE_CAMERAS,
        coarse_until=0.0,
        portrait=replace(settings.portrait, steps=FACE_TIMES),
        around_weight=0.0,
        rates=replace(settings.rates, means=low, means_final=low / 3, sh0=settings.rates.sh0 / 2),
        grow=finer,
        stage="face-detail",
        earliest=0.0,
    )


@dataclass(frozen=True)
class Stylised:
    """What came of it.

    Attributes:
        cloud: In the head's frame, SH degree 0.
        iterations: Steps that were done.
        finished_early: Because the user asked for it.
        counts: Gaussians after every growth.
    """

    cloud: GaussianCloud
    iterations: int
    finished_early: bool
    counts: tuple[int, ...] = ()


def stylise(
    start: GaussianCloud, teachers: Teachers, settings: StyliseSettings, context: Context, *, key: str = ""
) -> Stylised:
    """Draw a head to a style.

    With a keeper in the context, a run that was stopped anywhere goes on to the same result, bit for bit on the same
    machine.

    Args:
        start: From `head_start`, or an earlier result; head's frame.
        teachers: Who judges.
        settings: See there.
        context: Progress, preview every two seconds, cancel and finish within a step, device, seed.
        key: What the teachers are, for a resume: prompt, models and the like.

    Raises:
        ValueError: If nobody judges, or there are more Gaussians than the budget.
        FloatingPointError: If the loss is no longer finite.
        Cancelled: If the user cancelled.
    """
    loop = _Loop(start, teachers, settings, context, key)
    loop.resume()
    with context.finishable():
        return loop.run()


@dataclass
class _Mean:
    """Running mean of leaves."""

    sums: dict[str, Tensor] = field(default_factory=dict)
    count: int = 0

    def add(self, leaves: dict[str, Any]) -> None:
        for name, leaf in leaves.items():
            value = leaf.detach()
            self.sums[name] = value.clone() if name not in self.sums else self.sums[name] + value
        self.count += 1

    def put_into(self, leaves: dict[str, Any]) -> None:
        with torch.no_grad():
            for name, total in self.sums.items():
                leaves[name].copy_(total / self.count)


class _Loop:
    """Everything that a step changes."""

    def __init__(
        self, start: GaussianCloud, teachers: Teachers, settings: StyliseSettings, context: Context, key: str
    ) -> None:
        self.settings, self.context, self.teachers = settings, context, teachers
        self.portrait = teachers.portrait if settings.portrait_weight > 0 else None
        self.around = teachers.around if settings.around_weight > 0 else None
        if self.portrait is None and self.around is None:
            raise ValueError("nobody judges: give a teacher with a weight above 0")
        self.parameters = CloudParameters.from_cloud(start, 1.0, settings.rates, degree=0, device=context.device)
        self.first = len(start)
        self.densifier = self._densifier()
        self.chance = torch.Generator().manual_seed(context.seed)
        self.noise = torch.Generator(context.device).manual_seed(context.seed + 1)
        self.mean, self.counts, self.done = _Mean(), [], 0
        self.key = _key(start, settings, context, key)
        self.guides = {
            "portrait": _guide(self.portrait, settings.portrait, teachers.style),
            "around": _guide(self.around, settings.around, None),
        }

    def _densifier(self) -> GradientDensifier | None:
        from backend.splats.surface_guided import surface_guided_densifier

        grow = self.settings.grow
        if grow is None:
            return None
        if self.first > grow.budget:
            raise ValueError(f"the head begins with {self.first} Gaussians, more than its budget of {grow.budget}")
        own = replace(grow, stop=round(self.settings.grow_until * self.settings.iterations))
        return surface_guided_densifier(own) if self.settings.surface_guided else default_densifier(own)

    # ---- steps ---------------------------------------------------------------------------------------------------

    def run(self) -> Stylised:
        s, early = self.settings, False
        averaged_from = s.iterations - max(round(s.average_last * s.iterations), 1)
        shown = time.monotonic()
        while self.done < s.iterations:
            self.context.raise_if_cancelled()
            if self.context.finish_asked and self.done >= s.earliest * s.iterations:
                early = True
                break
            loss = self._step()
            if self.done >= averaged_from:
                self.mean.add(self.parameters.params)
            self.done += 1
            self._report(loss)
            if time.monotonic() - shown >= PREVIEW_S:
                self.context.preview(self._picture())
                shown = time.monotonic()
            if self.context.checkpoint.due() and self.done < s.iterations:
                self.context.checkpoint.save(s.stage, self.done, self._state(), self.key)
        if self.mean.count:
            self.mean.put_into(self.parameters.params)
        return Stylised(self.parameters.to_cloud(), self.done, early, tuple(self.counts))

    def _step(self) -> Tensor:
        """One step; returns the loss before it."""
        s, progress = self.settings, self.done / self.settings.iterations
        parameters = self.parameters
        parameters.set_rates(self.done, s.iterations)
        parameters.zero_grad()
        chosen = int(torch.randint(len(s.backgrounds), (1,), generator=self.chance))
        background = torch.tensor(s.backgrounds[chosen], device=self.context.device)
        draw = Draw(parameters, background, 0, antialiased=True)
        loss, watched = torch.zeros((), device=self.context.device), 0
        if self.portrait is not None:
            views = draw_views(s.cameras, s.views, self._drawn_px(progress), self.chance)
            seen = view_weights(views.azimuths_deg, s.back_weight, s.back_deg)
            guided = self._judge("portrait", self.portrait, draw, views, s.portrait_px, progress, seen)
            loss, watched = loss + s.portrait_weight * guided.loss / guided.gradient[0].numel(), 1
        if self.around is not None:
            views = draw_groups(s.cameras, 1, s.around_px, self.chance)
            guided = self._judge("around", self.around, draw, views, s.around_px, progress)
            loss = loss + s.around_weight * len(views) * guided.loss / guided.gradient[0].numel()
        # The first drawing says where Gaussians are wanted: the single views are larger, and their loss weighs more.
        infos = draw.infos[: watched or 1]
        if self.densifier is not None:
            for info in infos:
                self.densifier.before_backward(info)
        loss.backward()
        parameters.optimizer_step()
        with torch.no_grad():
            parameters.params["sh0"].clamp_(-0.5 / SH_C0, 0.5 / SH_C0)
        self._grow(infos)
        return loss.detach()

    def _drawn_px(self, progress: float) -> int:
        s = self.settings
        return min(s.coarse_px, s.portrait_px) if progress < s.coarse_until else s.portrait_px

    def _judge(
        self,
        name: str,
        teacher: Teacher,
        draw: Draw,
        views: Views,
        size_px: int,
        progress: float,
        weights: Tensor | None = None,
    ) -> Guided:
        """What a teacher says about views that are drawn for it, each counting as its weight [B] says."""
        output = draw(views.to(self.context.device).cameras)
        assert output.rgb is not None and output.alpha is not None
        images, mask = output.rgb, output.alpha.detach()[:, None]
        if views.size_px != size_px:
            size = (size_px, size_px)
            images = F.interpolate(images, size, mode="bilinear", align_corners=False)
            mask = F.interpolate(mask, size, mode="bilinear", align_corners=False)
        images = images.clamp_max(1.0)
        if weights is not None:
            share = weights.to(images)[:, None, None, None]
            images = share * images + ((1 - share) * images).detach()  # the same picture, a weighted gradient
        positive, negative = teacher.conditions(views.resized(size_px))
        return self.guides[name](images, positive, negative, progress=progress, generator=self.noise, mask=mask)

    def _grow(self, infos: list[dict[str, Any]]) -> None:
        s, densifier = self.settings, self.densifier
        if densifier is None or s.grow is None:
            return
        share = min(self.done / max(s.budget_until * s.iterations, 1), 1.0)
        budget = round(self.first + share * (s.grow.budget - self.first))
        # What is already there may stay: pruning may have made room that a smaller budget would deny.
        densifier.settings = replace(densifier.settings, budget=max(budget, len(self.parameters)))
        if densifier.step(self.parameters, infos, self.done, self.chance).changed:
            self.counts.append(len(self.parameters))

    # ---- what people see -----------------------------------------------------------------------------------------

    def _report(self, loss: Tensor) -> None:
        s, note = self.settings, f"{len(self.parameters)} splats"
        if self.done % READ_EVERY == 0 or self.done == s.iterations:
            if not np.isfinite(value := float(loss)):
                raise FloatingPointError(f"the loss is {value} at step {self.done}")
            note = f"loss {value:.4g}, {note}"
        self.context.progress(s.stage, self.done, s.iterations, note)

    @torch.no_grad()
    def _picture(self) -> np.ndarray:
        """The head from the front, a side and the back, uint8 [H, 3 H, 3]."""
        background = torch.tensor(BACKGROUND, device=self.context.device)
        views = views_at(PREVIEW_CAMERAS, PREVIEW_PX).to(self.context.device)
        drawn = Draw(self.parameters, background, 0, antialiased=True)(views.cameras, ("rgb",)).rgb
        assert drawn is not None
        return np.concatenate(list(to_uint8(drawn.permute(0, 2, 3, 1).cpu().numpy())), axis=1)

    # ---- resuming ------------------------------------------------------------------------------------------------

    def _state(self) -> dict[str, np.ndarray]:
        arrays = {f"p.{name}": value for name, value in self.parameters.state_dict().items()}
        if self.densifier is not None:
            arrays |= {f"d.{name}": value for name, value in self.densifier.state_dict().items()}
        arrays |= {f"m.{name}": value.cpu().numpy() for name, value in self.mean.sums.items()}
        arrays["mean count"] = np.array(self.mean.count)
        arrays["counts"] = np.array(self.counts, np.int64)
        arrays["chance"] = self.chance.get_state().numpy()
        arrays["noise"] = self.noise.get_state().numpy()
        return arrays

    def resume(self) -> None:
        """Take up what an interrupted run kept, if there is anything."""
        kept = self.context.checkpoint.load(self.settings.stage, self.key)
        if kept is None:
            return
        groups: dict[str, dict[str, np.ndarray]] = {"p": {}, "d": {}, "m": {}}
        for name, array in kept.arrays.items():
            group, dot, rest = name.partition(".")
            if dot and group in groups:
                groups[group][rest] = array
        self.parameters.load_state_dict(groups["p"])
        if self.densifier is not None:
            self.densifier.load_state_dict(groups["d"])
        sums = {name: torch.from_numpy(array.copy()).to(self.context.device) for name, array in groups["m"].items()}
        self.mean = _Mean({name: sums[name] for name in NAMES if name in sums}, int(kept.arrays["mean count"]))
        self.counts = kept.arrays["counts"].tolist()
        self.chance.set_state(torch.from_numpy(kept.arrays["chance"].copy()))
        self.noise.set_state(torch.from_numpy(kept.arrays["noise"].copy()))
        self.done = kept.step


def view_weights(azimuths_deg: Tensor, back: float, between_deg: tuple[float, float]) -> Tensor:
    """How much single views count, [B]: 1 near the front, smoothly down to `back`; see `StyliseSettings`."""
    low, high = between_deg
    turned = ((off_front_deg(azimuths_deg) - low) / max(high - low, 1e-6)).clamp(0.0, 1.0)
    return 1 + (back - 1) * turned * turned * (3 - 2 * turned)


def _guide(teacher: Teacher | None, settings: Guidance, style: Moments | None) -> Callable[..., Guided]:
    """Plain guidance, or its recordings."""
    if teacher is None:
        return _nobody
    if teacher.recorded:
        return CapturedGuidance(teacher.denoiser, settings, style)

    def call(images: Tensor, positive: Conditions, negative: Conditions, **rest: Any) -> Guided:
        return guide(teacher.denoiser, images, positive, negative, settings, style=style, **rest)

    return call


def _nobody(*_: Any, **__: Any) -> Guided:
    raise AssertionError("an absent teacher was asked")


def _key(start: GaussianCloud, settings: StyliseSettings, context: Context, given: str) -> str:
    """What a kept state must agree with."""
    digest = hashlib.sha256(repr((settings, context.seed, context.device, given)).encode())
    for array in (start.positions_m, start.scales_m, start.rotations_wxyz, start.opacities, start.sh_dc):
        digest.update(array.tobytes())
    return digest.hexdigest()
