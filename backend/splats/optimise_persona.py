"""Optimise a PERSONA avatar on photographs and generated frames, half and half."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from backend.context import Context
from backend.human.skin_field import FIRST_FINGER
from backend.splats.mesh_laplacian import cotangent_laplacian
from backend.splats.perceptual import PerceptualLoss
from backend.splats.persona import PersonaAvatar
from backend.splats.persona_losses import PersonaWeights, TrainingFrame, frame_loss, gaussian_loss

STAGE = "persona"
ADAM_EPSILON = 1e-15
"""3DGS's and PERSONA's."""


@dataclass(frozen=True)
class PersonaSettings:
    """How an avatar is learned; the defaults are the released code's.

    Attributes:
        epochs: Passes over the generated frames; each brings one captured frame with it.
        sampling: "balanced" draws as many captured as generated frames; "uniform" draws every frame equally often, in
            the same number of steps.
        deform: Whether the pose moves the Gaussians.
        refine_poses: Whether the poses of generated frames are learned too.
        offsets_rate, deformation_rate, scales_rate, colours_rate: Adam's rates; offsets in metres.
        pose_rate, fingers_rate: Radians per step, and translations in metres at `pose_rate`.
        drop_at: Share of the steps after which all rates fall to a tenth.
        weights: Of the terms.
    """

    epochs: int = 5
    sampling: Literal["balanced", "uniform"] = "balanced"
    deform: bool = True
    refine_poses: bool = True
    offsets_rate: float = 1e-3
    deformation_rate: float = 1e-3
    scales_rate: float = 1e-2
    colours_rate: float = 1e-2
    pose_rate: float = 1e-3
    fingers_rate: float = 1e-4
    drop_at: float = 0.75
    weights: PersonaWeights = field(default_factory=PersonaWeights)


class PoseCorrections(nn.Module):
    """Small turns of every joint and a shift of every frame; captured frames keep theirs."""

    def __init__(self, frames: int) -> None:
        """Begin with none."""
        super().__init__()
        self.bodies = nn.ParameterList(nn.Parameter(torch.zeros(FIRST_FINGER, 3)) for _ in range(frames))
        self.fingers = nn.ParameterList(nn.Parameter(torch.zeros(55 - FIRST_FINGER, 3)) for _ in range(frames))
        self.shifts = nn.ParameterList(nn.Parameter(torch.zeros(3)) for _ in range(frames))

    def apply_to(self, frame: TrainingFrame, number: int) -> TrainingFrame:
        """The frame with its corrected pose."""
        turns = torch.cat([self.bodies[number], self.fingers[number]])
        return replace(frame, pose=frame.pose + turns, translation_m=frame.translation_m + self.shifts[number])


def schedule(frames: Sequence[TrainingFrame], settings: PersonaSettings, seed: int) -> np.ndarray:
    """Which frame each step looks at, int [steps]: twice the generated frames per epoch, in random order.

    Raises:
        ValueError: If there is no captured or no generated frame.
    """
    captured = np.flatnonzero([frame.captured for frame in frames])
    generated = np.flatnonzero([not frame.captured for frame in frames])
    if not len(captured) or not len(generated):
        raise ValueError("an avatar is learned from at least one captured and one generated frame")
    rng = np.random.default_rng(seed)
    epochs = []
    for epoch in range(settings.epochs):
        if settings.sampling == "balanced":
            # As many photographs as generated frames; several photographs take turns.
            turn = captured[(np.arange(len(generated)) + epoch) % len(captured)]
            epochs.append(rng.permutation(np.concatenate([generated, turn])))
        else:
            drawn = np.resize(rng.permutation(len(frames)), 2 * len(generated))
            epochs.append(rng.permutation(drawn))
    return np.concatenate(epochs)


def optimise_persona(
    avatar: PersonaAvatar,
    frames: Sequence[TrainingFrame],
    settings: PersonaSettings,
    context: Context,
    perceptual: PerceptualLoss | None = None,
) -> PoseCorrections:
    """Learn an avatar; it is changed in place.

    Args:
        avatar: Where to begin; on the frames' device.
        frames: Captured and generated.
        settings: How.
        context: Progress, cancel, checkpoints, seed.
        perceptual: The perceptual term; None leaves it out.

    Returns:
        The corrections of the frames' poses.

    Raises:
        ValueError: If there is no captured or no generated frame.
        FloatingPointError: If the loss is no longer finite; the message says at which step.
        Cancelled: If the user cancelled.
    """
    order = schedule(frames, settings, context.seed)
    learner = _Learner(avatar, frames, settings, perceptual)
    key = _key(avatar, frames, settings, context.seed)
    kept = context.checkpoint.load(STAGE, key)
    first = kept.step if kept is not None else 0
    if kept is not None:
        learner.take_up(kept.arrays)
    for step in range(first, len(order)):
        loss = learner.step(int(order[step]), late=step >= settings.drop_at * len(order))
        done = step + 1
        if done % 10 == 0 or done == len(order):
            if not np.isfinite(value := float(loss)):
                raise FloatingPointError(f"the loss is {value} at step {step}")
            context.progress(STAGE, done, len(order), f"loss {value:.4f}")
        context.raise_if_cancelled()
        if context.checkpoint.due() and done < len(order):
            context.checkpoint.save(STAGE, done, learner.state(), key)
    return learner.corrections


class _Learner:
    """An avatar, its frames' corrections and the state of Adam."""

    def __init__(
        self,
        avatar: PersonaAvatar,
        frames: Sequence[TrainingFrame],
        settings: PersonaSettings,
        perceptual: PerceptualLoss | None,
    ) -> None:
        self.avatar, self.frames, self.settings, self.perceptual = avatar, frames, settings, perceptual
        self.corrections = PoseCorrections(len(frames)).to(avatar.points_m.device)
        self.laplacian = cotangent_laplacian(avatar.template.points_m, avatar.template.triangles)
        self.modules = nn.ModuleDict({"avatar": avatar, "corrections": self.corrections})
        avatar.deforms = settings.deform
        groups = [
            ([avatar.mean_offsets_m], settings.offsets_rate),
            (list(avatar.deformation.parameters()), settings.deformation_rate),
            ([avatar.log_scales], settings.scales_rate),
            ([avatar.colour_logits, avatar.own_colour_logits], settings.colours_rate),
            ([*self.corrections.bodies, *self.corrections.shifts], settings.pose_rate),
            (list(self.corrections.fingers), settings.fingers_rate),
        ]
        self.rates = [rate for _, rate in groups]
        self.adam = torch.optim.Adam([{"params": leaves, "lr": rate} for leaves, rate in groups], eps=ADAM_EPSILON)

    def step(self, number: int, late: bool) -> Tensor:
        """Look at one frame; returns the loss before the step."""
        frame, settings = self.frames[number], self.settings
        if settings.refine_poses and not frame.captured:
            frame = self.corrections.apply_to(frame, number)
        for group, rate in zip(self.adam.param_groups, self.rates, strict=True):
            group["lr"] = 0.1 * rate if late else rate
        # Frames that are not looked at have no gradient at all, so that Adam leaves their corrections alone.
        self.adam.zero_grad(set_to_none=True)
        loss, posed = frame_loss(self.avatar, frame, settings.weights, self.perceptual)
        loss = loss + gaussian_loss(self.avatar, posed, self.laplacian, settings.weights)
        loss.backward()
        self.adam.step()
        return loss.detach()

    def state(self) -> dict[str, np.ndarray]:
        """All that the next step depends on, by name."""
        made = {f"value {name}": _array(leaf) for name, leaf in self.modules.named_parameters()}
        names = {leaf: name for name, leaf in self.modules.named_parameters()}
        for leaf, moments in self.adam.state.items():
            made |= {f"{moment} {names[leaf]}": _array(value) for moment, value in moments.items()}
        weights, calls = self.avatar.asked
        return made | {"calls": np.array(calls)} | ({} if weights is None else {"weights": _array(weights)})

    def take_up(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Go on from `state`."""
        for name, leaf in self.modules.named_parameters():
            leaf.data.copy_(torch.from_numpy(arrays[f"value {name}"]))
            moments = {
                moment: torch.from_numpy(arrays[f"{moment} {name}"]).to(leaf if moment != "step" else "cpu")
                for moment in ("step", "exp_avg", "exp_avg_sq")
                if f"{moment} {name}" in arrays
            }
            if moments:
                self.adam.state[leaf] = moments
        weights = torch.from_numpy(arrays["weights"]).to(self.avatar.points_m) if "weights" in arrays else None
        self.avatar.asked = (weights, int(arrays["calls"]))


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy()


def _key(avatar: PersonaAvatar, frames: Sequence[TrainingFrame], settings: PersonaSettings, seed: int) -> str:
    """What a checkpoint must agree with."""
    digest = hashlib.sha256(repr((settings, avatar.requery_every, avatar.deformation.settings, seed)).encode())
    for array in (avatar.points_m, avatar.colour_logits):
        digest.update(_array(array).tobytes())
    for frame in frames:  # one at a time: a store unpacks them when they are looked at
        digest.update(_array(frame.image).tobytes() + _array(frame.pose).tobytes() + bytes([frame.captured]))
    return digest.hexdigest()
