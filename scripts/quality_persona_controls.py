"""Controls in place of an avatar's network, on held-out poses; and test poses fitted to a frozen avatar."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from backend.human.lbs import rotation_matrices, skinning_transforms
from backend.splats.cloud_losses import photometric_loss
from backend.splats.distil import Distilled, distil, errors, limbs_of, regions_of
from backend.splats.persona import PersonaAvatar, PosedPersona
from backend.splats.persona_losses import TrainingFrame
from backend.splats.pose_deformation import pose_code
from scripts.quality_persona_oracle import Sight
from scripts.quality_persona_runs import drawn

CONTROLS = (24, 96)
MIXED = 160
"""Further poses that the network is asked in: limbs of different training poses put together."""

SIDES = ("left", "right")
FIT_STEPS = 12


def codes_of(poses: np.ndarray) -> np.ndarray:
    """Pose codes [P, 21, 6] of poses [P, 55, 3]."""
    return np.stack([pose_code(rotation_matrices(torch.as_tensor(pose))).numpy() for pose in poses]).astype(np.float64)


def limbs_mixed(poses: np.ndarray, count: int, seed: int, joint_names: Sequence[str]) -> np.ndarray:
    """Poses [count, 55, 3] whose arms, legs and trunk come from different ones of `poses` [P, 55, 3]."""
    rng = np.random.default_rng(seed)
    limbs = [
        [k for k, name in enumerate(joint_names) if name.startswith(side) and any(word in name for word in words)]
        for side in SIDES
        for words in (("hip", "knee", "ankle", "foot"), ("collar", "shoulder", "elbow", "wrist"))
    ]
    made = poses[rng.integers(len(poses), size=count)].copy()
    for limb in limbs:
        made[:, limb] = poses[rng.integers(len(poses), size=count)][:, limb]
    return made


@torch.no_grad()
def displacements(avatar: PersonaAvatar, poses: np.ndarray) -> np.ndarray:
    """[P, N, 3] metres, of the network in poses [P, 55, 3]."""
    avatar.deforms, kept = True, avatar.deforms
    still = torch.zeros(3)
    made = [avatar.pose(torch.as_tensor(p, dtype=torch.float32), still).displacement_m.numpy().copy() for p in poses]
    avatar.deforms = kept
    return np.stack(made)


class Distiller:
    """An avatar's network, asked in training poses and mixtures of them, as any number of controls."""

    def __init__(self, avatar: PersonaAvatar, poses: np.ndarray, seed: int, names: Sequence[str]) -> None:
        """Ask in poses [P, 55, 3]."""
        asked = np.concatenate([poses, limbs_mixed(poses, MIXED, seed, names)])
        self._moved, self._codes = displacements(avatar, asked), codes_of(asked)
        self._rest = displacements(avatar, np.zeros((1, 55, 3)))[0]
        template = avatar.template
        self._regions = limbs_of(regions_of(template.weights, template.listens * ~template.still[:, None]))

    def controls(self, count: int) -> Distilled:
        """So many of them."""
        return distil(self._moved, self._codes, self._rest, self._regions, count)


@torch.no_grad()
def with_controls(avatar: PersonaAvatar, made: Distilled, frame: TrainingFrame) -> Tensor:
    """[3, H, W] an avatar's picture with controls in the network's place."""
    posed = avatar.pose(frame.pose, frame.translation_m, None)
    moved = torch.as_tensor(made.displacements(codes_of(frame.pose.numpy()[None]))[0], dtype=torch.float32)
    assert avatar.asked[0] is not None
    bones = skinning_transforms(avatar.joints_m, frame.pose, avatar.template.twist).reshape(-1, 12)
    turns = (avatar.asked[0] @ bones).reshape(-1, 3, 4)[:, :, :3]
    refined = posed.plain_m + (turns * moved[:, None]).sum(2)
    return drawn(avatar, replace(posed, refined_m=refined, displacement_m=moved), frame)


def control_scores(
    avatar: PersonaAvatar,
    train: np.ndarray,
    unseen: np.ndarray,
    sights: Sequence[Sight],
    seed: int,
    names: Sequence[str],
) -> dict[str, float]:
    """How near controls come to the network.

    Args:
        avatar: With its network.
        train: [P, 55, 3] poses that the controls are fitted in.
        unseen: [Q, 55, 3] held-out poses.
        sights: Of held-out poses, to draw.
        seed: Of the mixed poses.
        names: Of the 55 joints.

    Returns:
        Relative RMS errors as truncation_K, coefficients_K, total_K, and the pictures' PSNR db_K, for K controls.
    """
    moved, codes = displacements(avatar, unseen), codes_of(unseen)
    made: dict[str, float] = {"rms_mm": 1e3 * float(np.sqrt((moved**2).sum(2).mean()))}
    distiller = Distiller(avatar, train, seed, names)
    for count in CONTROLS:
        controls = distiller.controls(count)
        found = errors(controls, moved, codes)
        made |= {f"truncation_{count}": found.truncation, f"coefficients_{count}": found.coefficients}
        made[f"total_{count}"] = found.total
        squares = []
        for sight in sights:
            posed: PosedPersona = avatar.pose(sight.frame.pose, sight.frame.translation_m, None)
            with torch.no_grad():
                difference = with_controls(avatar, controls, sight.frame) - drawn(avatar, posed, sight.frame)
            squares.append((difference.permute(1, 2, 0).numpy()[sight.frame.mask.numpy() > 0.5] ** 2).ravel())
        made[f"db_{count}"] = float(-10 * np.log10(max(np.concatenate(squares).mean(), 1e-12)))
    return made


def fitted(avatar: PersonaAvatar, sight: Sight, deform: bool) -> Sight:
    """A held-out frame with its pose moved to where the frozen avatar looks most like it (Adam, 0.01 and 0.002 m)."""
    frame = sight.frame
    for leaf in avatar.parameters():
        leaf.requires_grad_(False)
    turns, shift = torch.zeros(25, 3, requires_grad=True), torch.zeros(3, requires_grad=True)
    adam = torch.optim.Adam([{"params": [turns], "lr": 0.01}, {"params": [shift], "lr": 0.002}])
    still = torch.zeros(30, 3)
    for _ in range(FIT_STEPS):
        adam.zero_grad()
        posed = avatar.pose(frame.pose + torch.cat([turns, still]), frame.translation_m + shift, None)
        shown = drawn(avatar, posed, frame, "refined" if deform else "plain")
        photometric_loss(shown, frame.image).backward()
        adam.step()
    with torch.no_grad():
        pose = frame.pose + torch.cat([turns, still])
        moved = replace(frame, pose=pose.detach(), translation_m=(frame.translation_m + shift).detach())
    return replace(sight, frame=moved)
