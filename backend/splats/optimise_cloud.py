"""The loop that methods share: draw a cloud of free Gaussians, compare, step, densify; resumable bit for bit."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from backend import checkpoint
from backend.context import Context
from backend.raster import Cameras, Output, RasterOutput, rasterize
from backend.splats.cloud_losses import mask_loss, photometric_loss
from backend.splats.cloud_parameters import CloudParameters
from backend.splats.densify import Densifier, check_budget
from backend.splats.perceptual import PerceptualLoss
from backend.splats.render import BACKGROUND, to_uint8
from blender_addon.shared.gaussians import GaussianCloud


@dataclass(frozen=True)
class CloudSettings:
    """How long and how; learning rates belong to `CloudParameters`, growth to the densifier.

    Attributes:
        iterations: Optimiser steps; the means' learning rate falls over all of them.
        antialiased: Rasterise with opacity compensation.
        random_background: A new background colour in every step, so that only opaque surfaces fit; else mid grey.
        degree_every: Iterations after which one more degree of spherical harmonics is used (3DGS: 1000).
        preview_every: Iterations between two previews; 0 for none.
        checkpoint_every: Iterations between two checkpoints.
        stage: Name of the stage, shown to people.
    """

    iterations: int = 3000
    antialiased: bool = True
    random_background: bool = True
    degree_every: int = 1000
    preview_every: int = 100
    checkpoint_every: int = 250
    stage: str = "optimise"


class Draw:
    """Draws the cloud of one iteration and remembers the rasteriser's information on every drawing.

    Attributes:
        background: [3] of this iteration, 0..1 display sRGB.
        infos: One per call, in gsplat's layout.
    """

    def __init__(self, parameters: CloudParameters, background: Tensor, degree: int, antialiased: bool) -> None:
        """Activate the parameters once for all drawings."""
        self.background = background
        self.infos: list[dict[str, Any]] = []
        self._splats = parameters.activated(degree)
        self._antialiased = antialiased

    def __call__(self, cameras: Cameras, outputs: Sequence[Output] = ("rgb", "alpha")) -> RasterOutput:
        """Draw over the background; see `backend.raster.rasterize`."""
        output = rasterize(
            self._splats, cameras, background=self.background, antialiased=self._antialiased, outputs=outputs
        )
        self.infos.append(output.info)
        return output


Objective = Callable[[Draw, int, torch.Generator], Tensor]
"""(draw, iteration, generator) -> loss: draws what it wants to see, once or several times, and judges it."""


@dataclass(frozen=True)
class TargetView:
    """One picture that the cloud shall look like.

    Attributes:
        cameras: One camera.
        image: [3, H, W] 0..1 display sRGB, not multiplied with the mask.
        mask: [H, W] 0..1, where the subject is; None: everywhere.
    """

    cameras: Cameras
    image: Tensor
    mask: Tensor | None = None


class FitViews:
    """The objective of known pictures: 3DGS's photometric loss, alpha against the mask, and optionally how it looks.

    Each iteration takes one view at random.
    """

    def __init__(
        self,
        views: Sequence[TargetView],
        structure: float = 0.2,
        mask_weight: float = 0.5,
        perceptual: PerceptualLoss | None = None,
        perceptual_weight: float = 0.0,
    ) -> None:
        """Compare with at least one view.

        Args:
            views: Pictures; frame sizes may differ.
            structure: Share of SSIM in the photometric loss.
            mask_weight: Weight of the alpha loss where a view has a mask.
            perceptual: Used when its weight is above 0.
            perceptual_weight: Its weight.

        Raises:
            ValueError: If there are no views.
        """
        if not views:
            raise ValueError("there are no views to fit")
        self.views = list(views)
        self._structure, self._mask_weight = structure, mask_weight
        self._perceptual, self._perceptual_weight = perceptual, perceptual_weight

    def __call__(self, draw: Draw, iteration: int, generator: torch.Generator) -> Tensor:
        """See `Objective`."""
        view = self.views[int(torch.randint(len(self.views), (1,), generator=generator))]
        output = draw(view.cameras)
        assert output.rgb is not None and output.alpha is not None
        image, alpha, target = output.rgb[0], output.alpha[0], view.image
        if view.mask is not None:
            target = target * view.mask + (1 - view.mask) * draw.background[:, None, None]
        loss = photometric_loss(image, target, structure=self._structure)
        if view.mask is not None:
            loss = loss + self._mask_weight * mask_loss(alpha, view.mask)
        if self._perceptual is not None and self._perceptual_weight > 0:
            loss = loss + self._perceptual_weight * self._perceptual(image[None], target[None])
        return loss


def optimise_cloud(
    parameters: CloudParameters,
    objective: Objective,
    densifier: Densifier,
    settings: CloudSettings,
    context: Context,
    *,
    preview: Cameras | None = None,
    saved: Path | None = None,
) -> GaussianCloud:
    """Optimise free Gaussians.

    With `saved`, a run that was stopped anywhere goes on from its last checkpoint to the same result, bit for bit on
    the same machine. The file belongs to one job: it is taken up only if the starting cloud, the settings and the seed
    are the same, but it cannot know the objective.

    Args:
        parameters: The start; changed in place.
        objective: What to look like.
        densifier: How Gaussians are added.
        settings: See there.
        context: Progress, preview, cancel, seed.
        preview: Camera of the previews; None for none.
        saved: Checkpoint file; None for none.

    Raises:
        ValueError: If the cloud is larger than the densifier's budget.
        FloatingPointError: If the loss is no longer finite; the message says at which iteration.
        Cancelled: If the user cancelled.
    """
    budget = getattr(getattr(densifier, "settings", None), "budget", len(parameters))
    check_budget(parameters, budget)
    generator = torch.Generator().manual_seed(context.seed)
    key = _key(parameters, densifier, settings, context)
    first = _resume(saved, key, parameters, densifier, generator)
    for iteration in range(first, settings.iterations):
        context.raise_if_cancelled()
        loss = _iterate(parameters, objective, densifier, settings, iteration, generator)
        done = iteration + 1
        if done % 10 == 0 or done == settings.iterations:
            if not np.isfinite(value := float(loss)):
                raise FloatingPointError(f"the loss is {value} at iteration {iteration}")
            context.progress(settings.stage, done, settings.iterations, f"loss {value:.4f}, {len(parameters)} splats")
        if preview is not None and settings.preview_every and done % settings.preview_every == 0:
            context.preview(picture(parameters, preview, settings.antialiased))
        if saved is not None and done % settings.checkpoint_every == 0 and done < settings.iterations:
            state = {
                "key": key, "iteration": done, "parameters": parameters.state_dict(),
                "densifier": densifier.state_dict(), "generator": generator.get_state().numpy(),
            }  # fmt: skip
            checkpoint.save(saved, state)
    return parameters.to_cloud()


def _iterate(
    parameters: CloudParameters,
    objective: Objective,
    densifier: Densifier,
    settings: CloudSettings,
    iteration: int,
    generator: torch.Generator,
) -> Tensor:
    """One step; returns the loss before it."""
    device = parameters.params["means"].device
    parameters.set_rates(iteration, settings.iterations)
    parameters.zero_grad()
    background = torch.rand(3, generator=generator) if settings.random_background else torch.tensor(BACKGROUND)
    draw = Draw(parameters, background.to(device), iteration // max(settings.degree_every, 1), settings.antialiased)
    loss = objective(draw, iteration, generator)
    own = densifier.loss(parameters)
    total = loss if own is None else loss + own
    for info in draw.infos:
        densifier.before_backward(info)
    total.backward()
    parameters.optimizer_step()
    densifier.step(parameters, draw.infos, iteration, generator)
    return loss.detach()


@torch.no_grad()
def picture(parameters: CloudParameters, cameras: Cameras, antialiased: bool = True) -> np.ndarray:
    """uint8 [H, W, 3] of the first camera over mid grey."""
    background = torch.tensor(BACKGROUND).to(parameters.params["means"])
    output = Draw(parameters, background, parameters.degree, antialiased)(cameras, ("rgb",))
    assert output.rgb is not None
    return to_uint8(output.rgb[0].permute(1, 2, 0).cpu().numpy())


def _key(parameters: CloudParameters, densifier: Densifier, settings: CloudSettings, context: Context) -> str:
    """What a checkpoint must agree with."""
    given = (settings, type(densifier).__name__, getattr(densifier, "settings", None), parameters.rates)
    digest = hashlib.sha256(repr((*given, parameters.extent_m, context.seed)).encode())
    for name, leaf in parameters.params.items():
        digest.update(name.encode() + leaf.detach().cpu().numpy().tobytes())
    return digest.hexdigest()


def _resume(
    saved: Path | None, key: str, parameters: CloudParameters, densifier: Densifier, generator: torch.Generator
) -> int:
    """Take up a checkpoint if it fits; returns the next iteration."""
    if saved is None or not saved.exists():
        return 0
    try:
        state = checkpoint.load(saved)
    except checkpoint.CheckpointError:
        return 0  # damaged: made anew from the start
    if not isinstance(state, dict) or state.get("key") != key:
        return 0
    parameters.load_state_dict(state["parameters"])
    densifier.load_state_dict(state["densifier"])
    generator.set_state(torch.from_numpy(state["generator"]))
    return int(state["iteration"])
