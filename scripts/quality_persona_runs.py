"""Training runs behind the tables of learned avatars, and what is measured on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from backend.context import Context
from backend.splats.optimise_persona import PersonaSettings, optimise_persona
from backend.splats.persona import Branch, PersonaAvatar, PosedPersona, Template
from backend.splats.persona_losses import PersonaWeights, TrainingFrame
from backend.splats.persona_targets import cropped
from backend.splats.pose_deformation import DeformationSettings
from scripts.quality_persona_oracle import Sight, field_of, first_colours

NETWORK = DeformationSettings(plane_size=48, features=12, width=48)
"""Smaller than the published one, as pictures and body are."""

REQUERY_EVERY = 50
LEAST_PIXELS = 12
"""A frame says something about a region that has so many pixels."""


@dataclass(frozen=True)
class Arm:
    """One way to learn: what a table compares.

    Attributes:
        steps: Of the optimisation.
        deform: Whether the pose moves the Gaussians.
        sampling: See `PersonaSettings`.
        image_weighted: Generated frames judge the pose's displacement by the picture, ten to one over geometry.
        rate: Factor on the rates of offsets and network.
        linear: See `DeformationSettings.linear`.
    """

    steps: int
    deform: bool = True
    sampling: str = "balanced"
    image_weighted: bool = False
    rate: float = 1.0
    linear: bool = field(default=False, repr=False)


def settings_of(arm: Arm) -> PersonaSettings:
    """The published settings as far as an oracle's frames have targets for them."""
    weights = PersonaWeights()
    captured = replace(weights.captured, eyes=0.0, first_face=0.0, seam=0.0, albedo=0.0, face_patch=0.0)
    generated = replace(weights.generated, eyes=0.0, hands=0.0)
    if arm.image_weighted:
        generated = replace(generated, refined_image=1.0, geometry=0.1, own_refined_image=0.0)
    weights = replace(weights, captured=captured, generated=generated)
    plain = PersonaSettings()
    return replace(
        plain,
        epochs=1000,
        most_steps=arm.steps,
        sampling=arm.sampling,
        deform=arm.deform,
        offsets_rate=plain.offsets_rate * arm.rate,
        deformation_rate=plain.deformation_rate * arm.rate,
        weights=weights,
    )


def learn(template: Template, body_name: str, frames: Sequence[TrainingFrame], arm: Arm, seed: int) -> PersonaAvatar:
    """Learn an avatar from frames; what it begins with depends on the seed and the frames alone."""
    torch.manual_seed(seed)
    captured = [frame for frame in frames if frame.captured]
    generated = [frame for frame in frames if not frame.captured]
    colours = first_colours(template, [*captured, *generated[:: max(len(generated) // 12, 1)]])
    network = replace(NETWORK, linear=arm.linear)
    avatar = PersonaAvatar(template, field_of(body_name), colours, network, REQUERY_EVERY)
    small = [cropped(frame) for frame in frames]
    optimise_persona(avatar, small, settings_of(arm), Context.quiet(seed), None)
    return avatar


@torch.no_grad()
def picture(avatar: PersonaAvatar, frame: TrainingFrame, branch: Branch = "refined") -> Tensor:
    """[3, H, W] the avatar in a frame's pose, on white."""
    posed = avatar.pose(frame.pose, frame.translation_m, None)
    return drawn(avatar, posed, frame, branch)


def drawn(avatar: PersonaAvatar, posed: PosedPersona, frame: TrainingFrame, branch: Branch = "refined") -> Tensor:
    """[3, H, W] a posed avatar by a frame's camera, on white."""
    return avatar.picture(posed, frame.cameras, branch, behind=1.0)


@dataclass(frozen=True)
class Score:
    """Of one avatar on held-out frames.

    Attributes:
        region_db: PSNR of all pixels of the region, of all frames together. person_db: Likewise of the person.
        shift: Length of the mean difference of the region's colours, in 0..255.
    """

    region_db: float
    person_db: float
    shift: float


def score(avatar: PersonaAvatar, sights: Sequence[Sight], branch: Branch = "refined") -> Score:
    """Compare an avatar's pictures with the truth's."""
    region, person, differences = [], [], []
    for sight in sights:
        difference = (picture(avatar, sight.frame, branch) - sight.frame.image).permute(1, 2, 0).numpy()
        person.append((difference[sight.frame.mask.numpy() > 0.5] ** 2).ravel())
        if sight.region.sum() >= LEAST_PIXELS:
            region.append((difference[sight.region] ** 2).ravel())
            differences.append(difference[sight.region])
    if not region:  # clothes without simulation move nowhere
        return Score(decibels(person), decibels(person), 0.0)
    shift = np.concatenate(differences).mean(0)
    return Score(decibels(region), decibels(person), 255 * float(np.linalg.norm(shift)))


def decibels(squares: Sequence[np.ndarray]) -> float:
    """PSNR of squared differences of pictures 0..1."""
    return float(-10 * np.log10(np.concatenate(squares).mean()))
