"""Pictures from a denoiser: deterministic DDIM, and the statistics of a style made with it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from backend.context import Context
from backend.diffusion.guidance import stacked
from backend.diffusion.interfaces import Conditions, Denoiser
from backend.diffusion.moments import Moments, moments

STYLE_IMAGES, STYLE_STEPS, STYLE_SCALE = 20, 20, 7.5
"""How the SAS paper samples a style."""


def sample(
    denoiser: Denoiser,
    noise: Tensor,
    positive: Conditions,
    negative: Conditions,
    *,
    context: Context,
    steps: int = STYLE_STEPS,
    scale: float = STYLE_SCALE,
    stage: str = "pictures",
) -> Tensor:
    """Latents [B, C, h, w] from noise of the same shape, by DDIM without added noise.

    Args:
        denoiser: The model.
        noise: Standard normal; the same noise gives the same pictures.
        positive: For a batch of B.
        negative: For a batch of B.
        context: Progress, and cancelling within one step.
        steps: At most as many as the schedule has.
        scale: Of classifier-free guidance.
        stage: Name of the progress.

    Raises:
        Cancelled: Within one step.
    """
    schedule = denoiser.schedule
    both, latents = stacked((negative, positive)), noise
    times = torch.linspace(schedule.steps, 0, steps + 1).round().long()[:-1] - 1
    for index, time in enumerate(times.tolist()):
        context.progress(stage, index, steps)
        batch = torch.full((2 * len(latents),), time, dtype=torch.int64, device=latents.device)
        with torch.no_grad():
            unwanted, wanted = denoiser.predict(latents.repeat(2, 1, 1, 1), batch, both).to(latents).chunk(2)
        predicted = unwanted + scale * (wanted - unwanted)
        clean = (latents - schedule.sigmas[time].to(latents) * predicted) / schedule.alphas[time].to(latents)
        if index + 1 == steps:
            latents = clean
        else:
            after = int(times[index + 1])
            latents = schedule.alphas[after].to(latents) * clean + schedule.sigmas[after].to(latents) * predicted
    context.progress(stage, steps, steps)
    return latents


def style_of(
    denoiser: Denoiser,
    positive: Conditions,
    negative: Conditions,
    size: tuple[int, int, int],
    *,
    context: Context,
    generator: torch.Generator,
    mask_of: Callable[[Tensor], Tensor] | None = None,
    images: int = STYLE_IMAGES,
    steps: int = STYLE_STEPS,
) -> Moments:
    """Channel statistics of a style's latents, made once and kept.

    Args:
        denoiser: The model that is to be guided.
        positive: The style's prompt, a batch of one.
        negative: A batch of one.
        size: (C, h, w) of the latents.
        context: Progress and cancelling.
        generator: Of the noise.
        mask_of: From pictures [1, 3, H, W] to their foreground [1, 1, h, w] at the latents' size: a plain background
            would otherwise count as the style's colour. None counts everything.
        images: How many.
        steps: Of each.
    """
    latents, masks = [], []
    for index in range(images):
        part = context.part("style", index, index + 1, images)
        noise = torch.randn(1, *size, generator=generator, device=generator.device)
        latents.append(sample(denoiser, noise, positive, negative, context=part, steps=steps))
        if mask_of is not None:
            masks.append(mask_of(denoiser.decode(latents[-1])))
    return moments(torch.cat(latents), torch.cat(masks) if masks else None)
