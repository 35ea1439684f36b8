"""What an optimiser may change of bound Gaussians, as differences from where they started.

A difference of zero returns the stored value bit for bit, so what is not touched does not drift through a logarithm
or a logit and back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from backend.raster import SplatTensors
from backend.splats.bound import STRETCH_LIMITS, BoundSplats, triangle_frames

OFFSET_LIMIT = 1.2
"""A Gaussian moves at most this many of its own in-plane standard deviations from its start."""

LOG_SCALE_LIMITS = (-0.9, 0.7)
"""Its in-plane scales change at most by exp of these (the head prototype's; wider ones grow spikes)."""

ANISOTROPY_LIMIT = 6.0
"""Ratio of the in-plane scales, unless it was larger at the start (strands of hair)."""

LOGIT_LIMIT = 6.9
"""Opacity stays below 0.999, where the rasteriser's gradient ends."""

GRADIENT_FLOOR = 1e-9
"""Adam's epsilon. The gradient of a visible Gaussian, of a loss that is a mean over a picture, is near 1e-5; one that
hardly shows must not take full steps after noise."""


@dataclass(frozen=True)
class Posing:
    """How the frames of bound Gaussians lie in one pose; constant while they are optimised."""

    foot_m: Tensor  # [N, 3]
    frames: Tensor  # [N, 3, 3] axes as columns
    rotations_wxyz: Tensor  # [N, 4] in the world
    stretch: Tensor  # [N]

    @classmethod
    def of(
        cls, splats: BoundSplats, posed_proxy_m: np.ndarray, rest_proxy_m: np.ndarray, triangles: np.ndarray
    ) -> Posing:
        """Pose the proxy once.

        Args:
            splats: N bound Gaussians.
            posed_proxy_m: [V, 3].
            rest_proxy_m: [V, 3], the reference of the stretch.
            triangles: [T, 3] vertex indices.
        """
        faces = triangles[splats.triangles]
        frames, lengths = triangle_frames(posed_proxy_m, faces)
        _, rest_lengths = triangle_frames(rest_proxy_m, faces)
        foot = np.einsum("nk,nkc->nc", splats.bary, np.asarray(posed_proxy_m, np.float64)[faces])
        stretch = np.clip(lengths / np.maximum(rest_lengths, 1e-9), *STRETCH_LIMITS)
        rotations = splats.posed(posed_proxy_m, rest_proxy_m, triangles).rotations_wxyz
        return cls(*[torch.from_numpy(np.ascontiguousarray(a, np.float32)) for a in (foot, frames, rotations, stretch)])


class SplatParameters:
    """Leaves of the optimisation: offset, in-plane log scales, opacity logit and colour, all as differences.

    Attributes:
        offsets: [N, 3] in the triangle's frame, in units of the Gaussian's in-plane scale at the start.
        log_scales: [N, 2] of the in-plane axes (x and y of the disc); the thickness stays.
        logits: [N].
        colours: [N, 3].
    """

    def __init__(self, splats: BoundSplats, posing: Posing) -> None:
        """Start at `splats`."""
        count = len(splats)
        self.offsets = torch.zeros(count, 3, requires_grad=True)
        self.log_scales = torch.zeros(count, 2, requires_grad=True)
        self.logits = torch.zeros(count, requires_grad=True)
        self.colours = torch.zeros(count, 3, requires_grad=True)
        self._splats = splats
        self._posing = posing
        start = {name: torch.from_numpy(getattr(splats, name)) for name in ("offsets_m", "scales_m", "colours")}
        self._offsets_m, self._scales_m, self._colours = start.values()
        self._unit_m = self._scales_m[:, :2].clamp_min(1e-9).log().mean(1).exp()
        limit = float(torch.sigmoid(torch.tensor(LOGIT_LIMIT)))
        self._logits = torch.logit(torch.from_numpy(splats.opacities), 1 - limit)
        floor = torch.logit(torch.from_numpy(splats.opacity_floor), 1 - limit)
        self._lowest = (floor - self._logits).clamp_max(0)
        # Half the log of the ratio of the in-plane axes, and how far it may go.
        self._start_shape = 0.5 * torch.log(self._scales_m[:, 0] / self._scales_m[:, 1].clamp_min(1e-9)).clamp(-9, 9)
        self._colour_limits = -self._colours, 1 - self._colours
        self._shape_limit = self._start_shape.abs().clamp_min(0.5 * np.log(ANISOTROPY_LIMIT))

    def posed(self) -> tuple[SplatTensors, Tensor]:
        """The Gaussians in the pose, and their colours [N, 3]; differentiable."""
        posing = self._posing
        offsets = self._offsets_m + self.offsets * self._unit_m[:, None]
        means = posing.foot_m + (posing.frames * offsets[:, None, :]).sum(2)
        thickness = (self._scales_m[:, 2] * posing.stretch)[:, None]
        in_plane = self._scales_m[:, :2] * posing.stretch[:, None] * torch.exp(self.log_scales)
        opacities = torch.sigmoid(self._logits + self.logits)
        splats = SplatTensors(means, posing.rotations_wxyz, torch.cat([in_plane, thickness], 1), opacities)
        return splats, self._colours + self.colours

    @torch.no_grad()
    def clamp_(self) -> None:
        """Bring every parameter back inside its bounds; what never moved stays where it is."""
        self.offsets.mul_((OFFSET_LIMIT / self.offsets.norm(dim=1, keepdim=True).clamp_min(1e-9)).clamp_max(1.0))
        self.log_scales.clamp_(*LOG_SCALE_LIMITS)
        half_ratio = self._start_shape + 0.5 * (self.log_scales[:, 0] - self.log_scales[:, 1])
        excess = half_ratio - torch.maximum(torch.minimum(half_ratio, self._shape_limit), -self._shape_limit)
        self.log_scales.sub_(torch.stack([excess, -excess], 1))
        self.logits.copy_(torch.maximum(self.logits, self._lowest).minimum((LOGIT_LIMIT - self._logits).clamp_min(0)))
        low, high = self._colour_limits
        self.colours.copy_(torch.maximum(torch.minimum(self.colours, high), low))

    def limit_colours(self, low: np.ndarray, high: np.ndarray) -> None:
        """Hold the colours between `low` and `high` [N, 3], display sRGB; where they start must lie between them."""
        self._colour_limits = torch.from_numpy(low) - self._colours, torch.from_numpy(high) - self._colours

    def bound(self) -> BoundSplats:
        """The Gaussians as they are now, in the frames of their triangles."""
        start = self._splats
        with torch.no_grad():
            opacities = torch.sigmoid(self._logits + self.logits).numpy()
            untouched = self.logits.numpy() == 0
            opacities = np.where(untouched, start.opacities, opacities)
            lowest = np.minimum(start.opacity_floor, start.opacities)
            factors = torch.cat([torch.exp(self.log_scales), torch.ones(len(start), 1)], 1)
            return replace(
                start,
                offsets_m=(self._offsets_m + self.offsets * self._unit_m[:, None]).numpy(),
                scales_m=(self._scales_m * factors).numpy(),
                opacities=np.maximum(opacities, lowest),
                colours=np.where(
                    self.colours.numpy() == 0, start.colours, (self._colours + self.colours).clamp(0, 1).numpy()
                ),
            )


class GatedAdam:
    """Adam whose steps, not gradients, are scaled per Gaussian.

    Adam divides a scaled gradient by its own size, so a gate on the gradient does nothing: the step itself is scaled,
    new = old + gate * (step - old). A gate of 0 leaves the parameter as it is, bit for bit.
    """

    def __init__(self, groups: list[tuple[Tensor, np.ndarray, float]]) -> None:
        """Optimise (parameter [N, ...], gate [N] 0..1, learning rate) each."""
        self._parameters = [parameter for parameter, _, _ in groups]
        self._gates = [
            torch.from_numpy(np.ascontiguousarray(gate, np.float32)).reshape(-1, *[1] * (parameter.ndim - 1))
            for parameter, gate, _ in groups
        ]
        self._rates = [rate for _, _, rate in groups]
        settings = [{"params": [p], "lr": rate} for p, rate in zip(self._parameters, self._rates, strict=True)]
        self._adam = torch.optim.Adam(settings, eps=GRADIENT_FLOOR, fused=True)

    def zero_grad(self) -> None:
        """Forget the gradients."""
        self._adam.zero_grad()

    def state(self) -> dict[str, np.ndarray]:
        """Everything that the next step depends on, the parameters included, as arrays by name."""
        found: dict[str, np.ndarray] = {}
        for index, parameter in enumerate(self._parameters):
            found[f"parameter {index}"] = parameter.detach().numpy().copy()
            for name, value in self._adam.state[parameter].items():
                found[f"{name} {index}"] = value.numpy().copy()
        return found

    @torch.no_grad()
    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Go back to what `state` returned; the next step is the same bit for bit."""
        for index, parameter in enumerate(self._parameters):
            parameter.copy_(torch.from_numpy(state[f"parameter {index}"]))
            names = [name.rsplit(" ", 1)[0] for name in state if name.endswith(f" {index}")]
            values = {name: torch.from_numpy(state[f"{name} {index}"].copy()) for name in names if name != "parameter"}
            self._adam.state[parameter] = values

    def step(self, rate_factor: float = 1.0) -> None:
        """One gated step with the learning rates times `rate_factor`."""
        for group, rate in zip(self._adam.param_groups, self._rates, strict=True):
            group["lr"] = rate * rate_factor
        before = [parameter.detach().clone() for parameter in self._parameters]
        self._adam.step()
        with torch.no_grad():
            for parameter, old, gate in zip(self._parameters, before, self._gates, strict=True):
                parameter.copy_(torch.lerp(old, parameter, gate))
