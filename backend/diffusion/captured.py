"""Guidance recorded once as CUDA graphs and replayed: at these sizes launching kernels costs more than the kernels.

Weights keep their place and shapes do not change during an optimisation, so that replays are all that an iteration
needs: one of the encoder, one of everything up to the gradient, one of the encoder's backward pass. On other devices
the plain calls are used.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from backend.diffusion import guidance
from backend.diffusion.guidance import Guidance, Guided
from backend.diffusion.interfaces import Conditions, Denoiser
from backend.diffusion.moments import Moments

WARM_UP = 3
"""Calls before a recording, in which libraries choose their kernels and allocate their workspaces."""


class Captured:
    """A function of tensors without gradients, recorded at its first call for each set of shapes."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        """Wrap `function`, which returns one tensor and must not read values back from the device."""
        self._function = function
        self._recordings: dict[tuple[object, ...], tuple[torch.cuda.CUDAGraph, list[Tensor], Tensor]] = {}

    def __call__(self, *inputs: Tensor) -> Tensor:
        """The function's result; a copy, so that the next replay does not change it."""
        if inputs[0].device.type != "cuda":
            return self._function(*inputs)
        key = tuple((tuple(tensor.shape), tensor.dtype, tensor.device) for tensor in inputs)
        if key not in self._recordings:
            self._recordings[key] = self._record(inputs)
        graph, places, output = self._recordings[key]
        for place, tensor in zip(places, inputs, strict=True):
            place.copy_(tensor)
        graph.replay()
        return output.clone()

    def _record(self, inputs: Sequence[Tensor]) -> tuple[torch.cuda.CUDAGraph, list[Tensor], Tensor]:
        places = [tensor.detach().clone() for tensor in inputs]
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside), torch.no_grad():
            for _ in range(WARM_UP):
                self._function(*places)
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph), torch.no_grad():
            output = self._function(*places)
        return graph, places, output


class CapturedGuidance:
    """`guidance.guide` with fixed settings, replayed from recordings; same arguments, same results.

    For models that lie on the device as a whole: what is moved or cast layer by layer cannot be recorded.
    """

    def __init__(self, denoiser: Denoiser, settings: Guidance, style: Moments | None = None) -> None:
        """For one model, one way of guidance and one style."""
        self._denoiser = denoiser
        self._settings = settings
        self._style = style
        self._calls: dict[tuple[object, ...], Captured] = {}
        self._encoders: dict[tuple[object, ...], Any] = {}

    def __call__(
        self,
        images: Tensor,
        positive: Conditions,
        negative: Conditions,
        *,
        progress: float,
        generator: torch.Generator,
        mask: Tensor | None = None,
    ) -> Guided:
        """As `guidance.guide`."""
        latents = guidance.wide(self._encode(images))
        with torch.no_grad():
            clean = latents.detach()
            timesteps, noise, cover = guidance.drawn(self._denoiser, clean, self._settings, progress, generator, mask)
            gradient, estimate, target = self._evaluate(clean, timesteps, noise, positive, negative, cover)
        return Guided(guidance.surrogate(latents, gradient), gradient, estimate, target, timesteps)

    def _encode(self, images: Tensor) -> Tensor:
        if images.device.type != "cuda" or not images.requires_grad:
            return self._denoiser.encode(images)
        key = (tuple(images.shape), images.dtype)
        if key not in self._encoders:
            example = torch.zeros_like(images).detach().requires_grad_()
            self._encoders[key] = torch.cuda.make_graphed_callables(self._denoiser.encode, (example,))
        return self._encoders[key](images)

    def _evaluate(
        self,
        latents: Tensor,
        timesteps: Tensor,
        noise: Tensor,
        positive: Conditions,
        negative: Conditions,
        mask: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        wanted, unwanted = taken_apart(positive), taken_apart(negative)
        tensors = [mask, *wanted[0], *unwanted[0]]
        absent = tuple(tensor is None for tensor in tensors)
        if absent not in self._calls:
            # On the device already: a recording cannot fetch it from the host.
            style = None if self._style is None else self._style.to(latents)

            def call(latents: Tensor, timesteps: Tensor, noise: Tensor, *rest: Tensor) -> Tensor:
                given = iter(rest)
                own, *parts = [None if missing else next(given) for missing in absent]
                half = len(wanted[0])
                conditions = wanted[1](parts[:half]), unwanted[1](parts[half:])
                result = guidance.evaluate(
                    self._denoiser, latents, timesteps, noise, *conditions, self._settings, own, style
                )
                return torch.stack([result.gradient, result.estimate, result.target])

            self._calls[absent] = Captured(call)
        given = [tensor for tensor in tensors if tensor is not None]
        gradient, estimate, target = self._calls[absent](latents, timesteps, noise, *given)
        return gradient, estimate, target


def taken_apart(conditions: Conditions) -> tuple[list[Tensor | None], Callable[[list[Tensor | None]], Conditions]]:
    """All tensors of conditions, scales included, and how to put as many new ones together again."""
    count = len(conditions.control_images)
    scales = [_as_scale(scale, conditions.text) for scale in (conditions.image_scale, *conditions.control_scales)]
    parts = [conditions.text, conditions.image_tokens, conditions.cameras, conditions.image_latents]

    def rebuild(tensors: list[Tensor | None]) -> Conditions:
        text, tokens, cameras, latents = tensors[:4]
        images, own, others = tensors[4 : 4 + count], tensors[4 + count], tensors[5 + count :]
        assert text is not None and own is not None
        return replace(
            conditions,
            text=text,
            image_tokens=tokens,
            cameras=cameras,
            image_latents=latents,
            image_scale=own,
            control_images=tuple(image for image in images if image is not None),
            control_scales=tuple(scale for scale in others if scale is not None),
        )

    return [*parts, *conditions.control_images, *scales], rebuild


def _as_scale(scale: float | Tensor, text: Tensor) -> Tensor:
    return torch.as_tensor(scale, device=text.device, dtype=torch.float32).expand(len(text)).contiguous()
