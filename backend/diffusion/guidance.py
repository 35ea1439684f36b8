"""Score distillation: what a diffusion model would change about rendered pictures, as a loss.

A picture's latents z are noised, z_t = alpha z + sigma eps, and the model's prediction eps_p of the noise gives a
one-step estimate of the clean latents, z' = z - (sigma / alpha) (eps_p - eps).

- SDS, noise form: gradient w (eps_p - eps). Form x0: gradient w (z - z'), the same direction with w sigma / alpha.
- SAS (Style Aligned Sampling): gradient w (z - z'_m), where z'_m has the channel statistics of a style. They are those
  of z' inside the mask, pooled over the views, carried to the style's by the optimal-transport map (`moments`). At
  strength 0 it is SDS in form x0. The equations of the paper as printed (12 to 14) have the wrong sign and the wrong
  mean; tests/diffusion/test_guidance.py keeps them as the counter-example.
- Several views at once (MVDream): views of one group share a time step and the rescaling.

Nothing here waits for the device: no value is read back, and the gradient goes through the encoder only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Literal

import torch
from torch import Tensor

from backend.diffusion import moments as channel_moments
from backend.diffusion.interfaces import Conditions, Denoiser, NoiseSchedule
from backend.diffusion.moments import GAIN, REGULARISER, Moments

Form = Literal["noise", "x0"]
Weight = Literal["one", "sigma_squared", "sigma_alpha"]


@dataclass(frozen=True)
class TimeSteps:
    """From which share of all time steps one is drawn, over the course of an optimisation.

    Attributes:
        keys: (progress 0..1, lowest share, highest share) in order of progress, linear in between; two keys at one
            progress make a jump.
    """

    keys: tuple[tuple[float, float, float], ...] = ((0.0, 0.02, 0.98), (1.0, 0.02, 0.98))

    def __post_init__(self) -> None:
        """Refuse what is not a range."""
        if not self.keys or any(not 0 <= low <= high <= 1 for _, low, high in self.keys):
            raise ValueError(f"time steps need ranges within 0..1, not {self.keys}")
        if any(after[0] < before[0] for before, after in zip(self.keys, self.keys[1:], strict=False)):
            raise ValueError(f"time steps need keys in order of progress, not {self.keys}")

    def at(self, progress: float) -> tuple[float, float]:
        """Lowest and highest share at `progress`."""
        before = [key for key in self.keys if key[0] <= progress] or [self.keys[0]]
        after = [key for key in self.keys if key[0] > progress] or [self.keys[-1]]
        (start, low, high), (end, next_low, next_high) = before[-1], after[0]
        share = (progress - start) / (end - start) if end > start else 0.0
        share = min(max(share, 0.0), 1.0)
        return low + share * (next_low - low), high + share * (next_high - high)

    def draw(self, progress: float, count: int, steps: int, generator: torch.Generator) -> Tensor:
        """`count` time steps of `steps`, int64, on the generator's device."""
        low, high = self.at(progress)
        shares = low + (high - low) * torch.rand(count, generator=generator, device=generator.device)
        return (shares * steps).long().clamp(0, steps - 1)


SAS_STEPS = TimeSteps(((0.0, 0.02, 0.98), (1 / 3, 0.02, 0.98), (1 / 3, 0.02, 0.5), (1.0, 0.02, 0.5)))
"""Of the SAS paper: the first third of 3,000 iterations draws from the whole range, the rest from its lower half."""

MVDREAM_STEPS = TimeSteps(((0.0, 0.98, 0.98), (0.8, 0.02, 0.5), (1.0, 0.02, 0.5)))
"""Of MVDream's own recipe: lowest 0.98 to 0.02 and highest 0.98 to 0.50 over the first 8,000 of 10,000 iterations."""

ANNEALED_STEPS = TimeSteps(((0.0, 0.98, 0.98), (1.0, 0.02, 0.02)))
"""One time step that falls linearly, as in DreamGaussian."""


@dataclass(frozen=True)
class Guidance:
    """How the model's opinion becomes a gradient.

    Attributes:
        scale: Of classifier-free guidance; 1 is the conditional prediction itself.
        rescale: Share, 0..1, of the estimate that is scaled back to the spread of the conditional one: against the
            saturation that large scales bring.
        form: What the gradient is made of.
        weight: w of the time step: 1, sigma^2 or sigma alpha.
        steps: Time steps to draw from.
        group: How many consecutive latents share a time step and the rescaling; 0 for all of a batch.
        style_strength: 0 leaves the estimate, 1 gives it the style's statistics in full.
        style_gain: Cap of the style map's factor.
        style_regulariser: Added to both covariances of the style map.
        split: Two predictions of B latents instead of one of 2 B: slower, with less memory.
    """

    scale: float = 7.5
    rescale: float = 0.0
    form: Form = "x0"
    weight: Weight = "one"
    steps: TimeSteps = field(default_factory=TimeSteps)
    group: int = 0
    style_strength: float = 1.0
    style_gain: float = GAIN
    style_regulariser: float = REGULARISER
    split: bool = False

    def __post_init__(self) -> None:
        """Refuse what means nothing."""
        for name in ("rescale", "style_strength"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a share, 0 to 1, not {getattr(self, name)}")
        if self.group < 0 or self.style_gain <= 0 or self.style_regulariser < 0:
            raise ValueError("group and style_regulariser must not be negative, style_gain must be positive")


SAS = Guidance(scale=50.0, steps=SAS_STEPS)
"""The SAS paper's scale and time steps; it prints no weight."""

MVDREAM = Guidance(scale=50.0, rescale=0.5, steps=MVDREAM_STEPS, group=4)
"""MVDream's own x0 reconstruction loss. The SAS paper adds it with scale 10 and weight 0.05."""


@dataclass(frozen=True)
class Guided:
    """What one evaluation said.

    Attributes:
        loss: Scalar, differentiable in the pictures: half the squared length of `gradient`, mean over the views. Its
            gradient with respect to a view's latents is `gradient` / B.
        gradient: [B, C, h, w] of one view's loss with respect to its latents.
        estimate: z' [B, C, h, w], after rescaling.
        target: What the latents are drawn to; z' itself without a style.
        timesteps: int64 [B].
    """

    loss: Tensor
    gradient: Tensor
    estimate: Tensor
    target: Tensor
    timesteps: Tensor


def guide(
    denoiser: Denoiser,
    images: Tensor,
    positive: Conditions,
    negative: Conditions,
    settings: Guidance,
    *,
    progress: float,
    generator: torch.Generator,
    mask: Tensor | None = None,
    style: Moments | None = None,
) -> Guided:
    """The loss of rendered views.

    Args:
        denoiser: The model.
        images: [B, 3, H, W] in 0..1; the gradient goes through the encoder to them.
        positive: What is wanted, for a batch of B.
        negative: What is not, for a batch of B: empty or negative prompt, tokens of no face.
        settings: How.
        progress: Of the optimisation, 0..1.
        generator: Draws time steps and noise; on the device of the pictures.
        mask: [B, 1, H, W] in 0..1: where the object is. Statistics of the style are taken and changed inside it only.
        style: Channel statistics of the style's latents; None is SDS.

    Raises:
        ValueError: If the form is noise with a style, or the batch is no multiple of the group.
    """
    latents = wide(denoiser.encode(images))
    with torch.no_grad():
        clean = latents.detach()
        timesteps, noise, cover = drawn(denoiser, clean, settings, progress, generator, mask)
        result = evaluate(denoiser, clean, timesteps, noise, positive, negative, settings, cover, style)
    return replace(result, loss=surrogate(latents, result.gradient))


def drawn(
    denoiser: Denoiser,
    latents: Tensor,
    settings: Guidance,
    progress: float,
    generator: torch.Generator,
    mask: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """What `guide` draws by chance, time steps and noise, and the mask at the latents' size."""
    timesteps = draw_steps(settings, denoiser.schedule, len(latents), progress, generator)
    noise = torch.randn(latents.shape, generator=generator, device=generator.device).to(latents)
    if mask is None:
        return timesteps, noise, None
    size = (latents.shape[2], latents.shape[3])
    return timesteps, noise, torch.nn.functional.adaptive_avg_pool2d(mask.detach().to(latents), size)


def surrogate(latents: Tensor, gradient: Tensor) -> Tensor:
    """A loss whose gradient in `latents` is `gradient` / B: half the squared distance to where one step leads."""
    aim = (latents - gradient).detach()
    return 0.5 * (latents - aim).square().sum() / len(latents)


def evaluate(
    denoiser: Denoiser,
    latents: Tensor,
    timesteps: Tensor,
    noise: Tensor,
    positive: Conditions,
    negative: Conditions,
    settings: Guidance,
    mask: Tensor | None = None,
    style: Moments | None = None,
) -> Guided:
    """The same for given latents, time steps and noise: the part without an encoder and without chance.

    Args:
        denoiser: The model.
        latents: [B, C, h, w].
        timesteps: int64 [B].
        noise: [B, C, h, w].
        positive: As in `guide`.
        negative: As in `guide`.
        settings: As in `guide`.
        mask: [B, 1, h, w] at the latents' size.
        style: As in `guide`.

    Returns:
        Whose loss has no gradient.
    """
    if style is not None and settings.form == "noise":
        raise ValueError("a style needs the form x0: its statistics are those of the estimate")
    alpha, sigma = factors(denoiser.schedule, timesteps, latents)
    noisy = alpha * latents + sigma * noise
    unwanted, wanted = _predictions(denoiser, noisy, timesteps, positive, negative, settings.split)
    predicted = unwanted + settings.scale * (wanted - unwanted)
    if settings.rescale:
        predicted = _rescaled_noise(noisy, predicted, wanted, alpha, sigma, settings)
    estimate = latents - (sigma / alpha) * (predicted - noise)
    target = estimate
    if style is not None and settings.style_strength:
        target = aligned(estimate, style, settings, mask)
    difference = predicted - noise if settings.form == "noise" else latents - target
    gradient = _weight(settings.weight, alpha, sigma) * difference
    loss = 0.5 * gradient.square().sum() / len(latents)
    return Guided(loss, gradient, estimate, target, timesteps)


def aligned(estimate: Tensor, style: Moments, settings: Guidance, mask: Tensor | None = None) -> Tensor:
    """The estimate with the style's channel statistics inside the mask, as far as `style_strength` says.

    Args:
        estimate: z' [B, C, h, w] of all views of the step; their statistics are pooled.
        style: Of the style's latents.
        settings: Strength, gain and regulariser.
        mask: [B, 1, h, w] in 0..1.
    """
    own, wanted = channel_moments.moments(estimate, mask), style.to(estimate)
    matrix = channel_moments.transport(own, wanted, regulariser=settings.style_regulariser, gain=settings.style_gain)
    moved = channel_moments.apply(matrix, own, wanted, estimate)
    share = settings.style_strength if mask is None else settings.style_strength * mask
    return estimate + share * (moved - estimate)


def wide(latents: Tensor) -> Tensor:
    """At least float32: gradients and statistics do not fit into 16 bits."""
    return latents if latents.dtype in (torch.float32, torch.float64) else latents.float()


def factors(schedule: NoiseSchedule, timesteps: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """The schedule's alpha and sigma, [B, 1, 1, 1], of time steps, in the precision and on the device of `like`."""
    index = timesteps.to(schedule.alphas.device)
    return (
        schedule.alphas[index].to(like)[:, None, None, None],
        schedule.sigmas[index].to(like)[:, None, None, None],
    )


def draw_steps(
    settings: Guidance, schedule: NoiseSchedule, count: int, progress: float, generator: torch.Generator
) -> Tensor:
    """One time step per latent, equal within a group; int64 [count].

    Raises:
        ValueError: If `count` is no multiple of the group.
    """
    group = settings.group or count
    if count % group:
        raise ValueError(f"{count} views cannot be split into groups of {group}")
    return settings.steps.draw(progress, count // group, schedule.steps, generator).repeat_interleave(group)


def stacked(parts: Sequence[Conditions]) -> Conditions:
    """Conditions of several batches as those of one.

    Raises:
        ValueError: If one has what another lacks.
    """
    values: dict[str, object] = {}
    sizes = [len(part.text) for part in parts]
    for name in (item.name for item in fields(Conditions)):
        found = [getattr(part, name) for part in parts]
        if any(value is None for value in found):
            if not all(value is None for value in found):
                raise ValueError(f"{name} is given for one batch only")
            values[name] = None
        elif name == "image_scale":
            values[name] = _joined_scales(found, sizes, parts[0].text)
        elif name == "control_scales":
            values[name] = tuple(
                _joined_scales(list(scales), sizes, parts[0].text) for scales in zip(*found, strict=True)
            )
        elif name == "control_images":
            values[name] = tuple(torch.cat(images) for images in zip(*found, strict=True))
        else:
            values[name] = torch.cat(found)
    return Conditions(**values)  # pyright: ignore[reportArgumentType]


def _joined_scales(scales: Sequence[float | Tensor], sizes: Sequence[int], like: Tensor) -> float | Tensor:
    if all(isinstance(scale, float | int) and scale == scales[0] for scale in scales):
        return scales[0]
    parts = zip(scales, sizes, strict=True)
    return torch.cat([torch.as_tensor(scale, device=like.device).float().expand(size) for scale, size in parts])


def _predictions(
    denoiser: Denoiser, noisy: Tensor, timesteps: Tensor, positive: Conditions, negative: Conditions, split: bool
) -> tuple[Tensor, Tensor]:
    """Noise as predicted for the negative and the positive conditions."""
    if split:
        unwanted = denoiser.predict(noisy, timesteps, negative)
        wanted = denoiser.predict(noisy, timesteps, positive)
    else:
        both = denoiser.predict(noisy.repeat(2, 1, 1, 1), timesteps.repeat(2), stacked((negative, positive)))
        unwanted, wanted = both.chunk(2)
    return unwanted.to(noisy), wanted.to(noisy)


def _rescaled_noise(
    noisy: Tensor, predicted: Tensor, wanted: Tensor, alpha: Tensor, sigma: Tensor, settings: Guidance
) -> Tensor:
    """The guided prediction whose clean estimate is scaled back towards the spread of the conditional one.

    Lin et al., "Common diffusion noise schedules and sample steps are flawed", applied to the estimate as MVDream does.
    """
    guided = (noisy - sigma * predicted) / alpha
    plain = (noisy - sigma * wanted) / alpha
    group = settings.group or len(noisy)
    ratio = (_spread(plain, group) + 1e-8) / (_spread(guided, group) + 1e-8)
    rescaled = guided * (settings.rescale * ratio + (1 - settings.rescale))
    return (noisy - alpha * rescaled) / sigma


def _spread(latents: Tensor, group: int) -> Tensor:
    """Standard deviation over all values of each group, [B, 1, 1, 1]."""
    spread = latents.reshape(len(latents) // group, -1).std(1)
    return spread.repeat_interleave(group)[:, None, None, None]


def _weight(name: Weight, alpha: Tensor, sigma: Tensor) -> Tensor:
    if name == "one":
        return torch.ones_like(alpha)
    return sigma.square() if name == "sigma_squared" else sigma * alpha
