"""Optimise a PERSONA avatar on photographs and generated frames, half and half."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from backend.context import Context
from backend.human.skin_field import FIRST_FINGER
from backend.splats.perceptual import PerceptualLoss
from backend.splats.persona import PersonaAvatar
from backend.splats.persona_drawing import Drawer, draw_frame, drawn_together
from backend.splats.persona_losses import PersonaWeights, TrainingFrame, frame_terms, left_out, side_of, total
from backend.splats.persona_smoothness import Smoothness
from backend.splats.persona_targets import PersonaFrames
from blender_addon.shared.methods import Preset

STAGE = "persona"
ADAM_EPSILON = 1e-15
"""3DGS's and PERSONA's."""

FAST_STEPS = 1800
"""Of the preset "fast": about a fifth of the published ones."""

PREVIEW_EVERY_S = 5.0
"""Between two pictures for people."""

LOOK_EVERY = 10
"""Steps between two looks at the loss: on a graphics card every look waits for all that is under way."""


@dataclass(frozen=True)
class PersonaSettings:
    """How an avatar is learned; the defaults are the released code's.

    Attributes:
        epochs: Passes over the generated frames; each brings one captured frame with it.
        most_steps: Never more steps than these; 0 for no limit.
        sampling: "balanced" draws as many captured as generated frames; "uniform" draws every frame equally often, in
            the same number of steps.
        deform: Whether the pose moves the Gaussians.
        refine_poses: Whether the poses of generated frames are learned too.
        offsets_rate, deformation_rate, scales_rate, colours_rate: Adam's rates; offsets in metres.
        pose_rate, fingers_rate: Radians per step, and translations in metres at `pose_rate`.
        drop_at: Share of the steps after which all rates fall to a tenth.
        weights: Of the terms.
        picture_px: Longest side of a picture of the person, for `persona_targets.persona_frames`.
        face_px: Side of the face patch, likewise.
        subdivisions: Of the body, for `persona.make_template`.
        requery_every: Steps between two questions to the skinning field, for `persona.PersonaAvatar`.
        lpips: Whether the perceptual term should be LPIPS where its weights are installed; without it the substitute,
            which costs a hundredth.
    """

    epochs: int = 5
    most_steps: int = 0
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
    picture_px: int = 1024
    face_px: int = 256
    subdivisions: int = 2
    requery_every: int = 1
    lpips: bool = True

    @classmethod
    def of(cls, preset: Preset, device: str = "cuda") -> PersonaSettings:
        """The settings of a preset.

        "fast" is for two processor cores and ends within ten minutes there; "balanced" is for small graphics cards;
        "best" is as published, but for the field, which is asked at every tenth step. On a processor the larger ones
        learn fewer steps, without LPIPS, and take about half an hour and several hours.

        Args:
            preset: As the artist chose.
            device: Torch device that it runs on.
        """
        if preset == "fast":
            here = cls(
                most_steps=FAST_STEPS, picture_px=256, face_px=96, subdivisions=0, requery_every=100, lpips=False
            )
        elif preset == "balanced":
            here = cls(epochs=3, most_steps=6000, picture_px=512, face_px=192, subdivisions=1, requery_every=25)
        else:
            here = cls(requery_every=10)
        if device != "cpu" or preset == "fast":
            return here
        small = preset == "balanced"
        return replace(
            here,
            lpips=False,
            requery_every=100,
            most_steps=2400 if small else 4000,
            picture_px=384 if small else 768,
            subdivisions=1,
        )


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
    is_captured = np.array(list(_captured(frames)), bool)
    captured, generated = np.flatnonzero(is_captured), np.flatnonzero(~is_captured)
    if not len(captured) or not len(generated):
        raise ValueError("an avatar is learned from at least one captured and one generated frame")
    rng = np.random.default_rng(seed)
    left = settings.most_steps or 2 * len(generated) * settings.epochs
    epochs: list[np.ndarray] = []
    for epoch in range(settings.epochs):
        # the last epoch may be cut short; it stays half and half
        shown = generated if left >= 2 * len(generated) else rng.permutation(generated)[: left // 2]
        if not len(shown):
            break
        if settings.sampling == "balanced":
            # As many photographs as generated frames; several photographs take turns.
            turn = captured[(np.arange(len(shown)) + epoch) % len(captured)]
            epochs.append(rng.permutation(np.concatenate([shown, turn])))
        else:
            drawn = np.resize(rng.permutation(len(frames)), 2 * len(shown))
            epochs.append(rng.permutation(drawn))
        left -= 2 * len(shown)
    return np.concatenate(epochs)


def _captured(frames: Sequence[TrainingFrame]) -> Iterator[bool]:
    """Whether each frame is a photograph; stored frames need not be unpacked for that."""
    return (frame.captured for frame in getattr(frames, "packed", frames))


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
    missing = terms_left_out(avatar, frames, settings, perceptual)
    if missing:
        context.warn(f"The avatar is learned with {', '.join(missing)}.")
    learner = Learner(avatar, frames, settings, perceptual)
    key = _key(avatar, frames, settings, context.seed)
    kept = context.checkpoint.load(STAGE, key)
    first = kept.step if kept is not None else 0
    if kept is not None:
        learner.take_up(kept.arrays)
    shown = time.monotonic()
    for step in range(first, len(order)):
        loss = learner.step(int(order[step]), late=step >= settings.drop_at * len(order))
        done = step + 1
        if time.monotonic() - shown > PREVIEW_EVERY_S:
            context.preview(beside(avatar, frames[int(order[step])]))
            shown = time.monotonic()
        if done % LOOK_EVERY == 0 or done == len(order):
            if not np.isfinite(value := float(loss)):
                raise FloatingPointError(f"the loss is {value} at step {step}")
            context.progress(STAGE, done, len(order), f"loss {value:.4f}")
        context.raise_if_cancelled()
        if context.checkpoint.due() and done < len(order):
            context.checkpoint.save(STAGE, done, learner.state(), key)
    return learner.corrections


@torch.no_grad()
def beside(avatar: PersonaAvatar, frame: TrainingFrame) -> np.ndarray:
    """A frame and the avatar in its pose, side by side: uint8 [H, 2 W, 3]."""
    asked = avatar.asked
    posed = avatar.pose(frame.pose, frame.translation_m, frame.actions)
    avatar.asked = asked  # a look changes nothing about the steps that follow
    both = torch.cat([frame.image, avatar.picture(posed, frame.cameras)], 2)
    return (255 * both.clamp(0, 1)).round().byte().permute(1, 2, 0).cpu().numpy()


def terms_left_out(
    avatar: PersonaAvatar,
    frames: Sequence[TrainingFrame],
    settings: PersonaSettings,
    perceptual: PerceptualLoss | None = None,
) -> tuple[str, ...]:
    """Terms without a target, in words: for the result's record. See `persona_losses.left_out`."""
    kinds = np.array(list(_captured(frames)), bool)
    some = [frames[int(np.argmax(kinds == kind))] for kind in (True, False) if (kinds == kind).any()]
    return left_out(avatar, some, settings.weights, perceptual)


class Learner:
    """An avatar, its frames' corrections and the state of Adam."""

    def __init__(
        self,
        avatar: PersonaAvatar,
        frames: Sequence[TrainingFrame],
        settings: PersonaSettings,
        perceptual: PerceptualLoss | None,
        drawer: Drawer = drawn_together,
        mark: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Begin with no corrections.

        Args:
            avatar: See `optimise_persona`, as for the next three.
            frames: Captured and generated.
            settings: How.
            perceptual: The perceptual term, or None.
            drawer: How the pictures of a frame are drawn.
            mark: Is told the name of each part of a step when it is done, for measuring.
        """
        self.avatar, self.frames, self.settings, self.perceptual = avatar, frames, settings, perceptual
        self.drawer, self.mark = drawer, mark
        self.corrections = PoseCorrections(len(frames)).to(avatar.points_m.device)
        self.smoothness = Smoothness(avatar).to(avatar.points_m.device)
        self.modules = nn.ModuleDict({"avatar": avatar, "corrections": self.corrections})
        avatar.deforms = settings.deform
        groups = [
            ([avatar.mean_offsets_m], settings.offsets_rate),
            (list(avatar.deformation.parameters()), settings.deformation_rate),
            ([avatar.log_scales], settings.scales_rate),
            ([avatar.colour_logits, avatar.own_colour_logits, avatar.part_logits], settings.colours_rate),
            ([*self.corrections.bodies, *self.corrections.shifts], settings.pose_rate),
            (list(self.corrections.fingers), settings.fingers_rate),
        ]
        if avatar.layer is not None and avatar.layer_part_logits is not None:
            layer = avatar.layer
            tones = [layer.colour_logits, layer.own_colour_logits, avatar.layer_part_logits]
            groups += [(tones, settings.colours_rate), ([layer.steps_m], settings.offsets_rate)]
        self.rates = [rate for _, rate in groups]
        self.adam = torch.optim.Adam(
            [{"params": leaves, "lr": rate} for leaves, rate in groups], eps=ADAM_EPSILON, fused=True
        )

    def step(self, number: int, late: bool) -> Tensor:
        """Look at one frame; returns the loss before the step."""
        frame, settings = self.frames[number], self.settings
        if settings.refine_poses and not frame.captured:
            frame = self.corrections.apply_to(frame, number)
        for group, rate in zip(self.adam.param_groups, self.rates, strict=True):
            group["lr"] = 0.1 * rate if late else rate
        # Frames that are not looked at have no gradient at all, so that Adam leaves their corrections alone.
        self.adam.zero_grad(set_to_none=True)
        self.mark("frame")
        loss = self.loss(frame)
        loss.backward()
        self.mark("backward")
        self.adam.step()
        self.mark("Adam")
        return loss.detach()

    def loss(self, frame: TrainingFrame) -> Tensor:
        """All terms of a frame and of the Gaussians themselves."""
        weights = self.settings.weights
        posed = self.avatar.pose(frame.pose, frame.translation_m, frame.actions)
        self.mark("pose and field")
        drawing = draw_frame(self.avatar, posed, frame, side_of(frame, weights), self.drawer)
        self.mark("drawing")
        terms = frame_terms(frame, drawing, weights, self.perceptual)
        held = self.smoothness.terms(self.avatar, posed, weights)
        loss = total(terms, frame.image) + total(held, frame.image)
        self.mark("losses")
        return loss

    def state(self) -> dict[str, np.ndarray]:
        """All that the next step depends on, by name."""
        made = {f"value {name}": _array(leaf) for name, leaf in self.modules.named_parameters()}
        names: dict[Tensor, str] = {leaf: name for name, leaf in self.modules.named_parameters()}
        for leaf, moments in self.adam.state.items():
            made |= {f"{moment} {names[leaf]}": _array(value) for moment, value in moments.items()}
        weights, calls = self.avatar.asked
        return made | {"calls": np.array(calls)} | ({} if weights is None else {"weights": _array(weights)})

    def take_up(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Go on from `state`."""
        for name, leaf in self.modules.named_parameters():
            leaf.data.copy_(torch.from_numpy(arrays[f"value {name}"]))
            moments = {
                moment: torch.from_numpy(arrays[f"{moment} {name}"]).to(leaf)
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
    for array in (*avatar.buffers(), *avatar.parameters()):
        digest.update(_array(array).tobytes())
    if isinstance(frames, PersonaFrames):
        return digest.hexdigest() + frames.digest()
    for frame in frames:  # one at a time: a store unpacks them when they are looked at
        digest.update(_array(frame.image).tobytes() + _array(frame.pose).tobytes() + bytes([frame.captured]))
    return digest.hexdigest()
