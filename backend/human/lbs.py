"""Linear blend skinning over SMPL-X's 55 joints, with optional twist helpers; torch, differentiable, no batches.

Rest frames of all joints are parallel to the body frame (y up, +z front), as in SMPL-X, so a pose is one axis-angle
vector per joint and `pose[0]` turns the whole body about its pelvis.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from blender_addon.shared.skeleton import PARENTS

_SMALL_ANGLE_SQUARED = 1e-8  # below it Taylor series replace sin(a)/a and (1 - cos a)/a^2, exact to float64 rounding


@dataclass(frozen=True)
class TwistBones:
    """Helper bones that spread a joint's twist along the limb.

    A helper sits in its parent joint and turns, in the parent's frame, by `factor` times the twist of the source
    joint's local rotation about the rest axis from the parent joint to `ends`.

    Attributes:
        names: [K] names of the helpers.
        parents: [K] joint that carries the helper.
        sources: [K] joint whose local rotation is split.
        ends: [K] joint at the far end of the axis.
        factors: [K] share of the twist; negative factors undo it.
        skin_weights: [V, 55 + K] weights over joints and helpers; adding a helper's column to its parent's gives the
            55-joint weights.
    """

    names: tuple[str, ...]
    parents: np.ndarray
    sources: np.ndarray
    ends: np.ndarray
    factors: np.ndarray
    skin_weights: np.ndarray

    def merged_weights(self) -> np.ndarray:
        """The 55-joint weights [V, 55]: helpers' columns added to their parents'."""
        count = self.skin_weights.shape[1] - len(self.names)
        merged = self.skin_weights[:, :count].copy()
        for k, parent in enumerate(self.parents):
            merged[:, parent] += self.skin_weights[:, count + k]
        return merged


def _levels() -> tuple[tuple[Tensor, Tensor, Tensor], ...]:
    """(joints, parents, parents' places in the level above) by depth: 10 batched steps pose all 55 joints."""
    depth = [0] * len(PARENTS)
    for joint in range(1, len(PARENTS)):
        depth[joint] = depth[int(PARENTS[joint])] + 1
    levels, above = [], [0]
    for level in range(1, max(depth) + 1):
        joints = [joint for joint in range(len(PARENTS)) if depth[joint] == level]
        parents = [int(PARENTS[joint]) for joint in joints]
        places = [above.index(parent) for parent in parents]
        levels.append((torch.tensor(joints), torch.tensor(parents), torch.tensor(places)))
        above = joints
    return tuple(levels)


_LEVELS = _levels()
_ORDER = torch.argsort(torch.cat([torch.tensor([0]), *(joints for joints, _, _ in _LEVELS)]))


def rotation_matrices(axis_angle: Tensor) -> Tensor:
    """Rodrigues' formula, differentiable everywhere including at zero.

    Args:
        axis_angle: [..., 3] radians.

    Returns:
        [..., 3, 3].
    """
    squared = (axis_angle * axis_angle).sum(-1)
    small = squared < _SMALL_ANGLE_SQUARED
    safe = torch.where(small, torch.ones_like(squared), squared)
    angle = safe.sqrt()
    a = torch.where(small, 1.0 - squared / 6.0, torch.sin(angle) / angle)[..., None, None]
    b = torch.where(small, 0.5 - squared / 24.0, (1.0 - torch.cos(angle)) / safe)[..., None, None]
    x, y, z = axis_angle.unbind(-1)
    zero = torch.zeros_like(x)
    cross = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).reshape(*axis_angle.shape[:-1], 3, 3)
    eye = torch.eye(3, dtype=axis_angle.dtype, device=axis_angle.device)
    return eye + a * cross + b * (cross @ cross)


def twist_angles(axis_angle: Tensor, axes: Tensor) -> Tensor:
    """Angle of the twist part of rotations about given axes (swing-twist decomposition), in (-pi, pi].

    The quaternion's part along the axis, normalised, is the twist, whether swing or twist is applied first.

    Args:
        axis_angle: [K, 3] radians.
        axes: [K, 3] unit axes.

    Returns:
        [K] radians.
    """
    squared = (axis_angle * axis_angle).sum(-1)
    small = squared < _SMALL_ANGLE_SQUARED
    angle = torch.where(small, torch.ones_like(squared), squared).sqrt()
    half_sine = torch.where(small, 0.5 - squared / 48.0, torch.sin(0.5 * angle) / angle)
    cosine = torch.where(small, 1.0 - squared / 8.0, torch.cos(0.5 * angle))
    along = half_sine * (axis_angle * axes).sum(-1)
    sign = torch.where(cosine < 0, -1.0, 1.0).to(axis_angle)  # q and -q are one rotation
    return 2.0 * torch.atan2(sign * along, sign * cosine)


def joint_transforms(joints_m: Tensor, pose: Tensor) -> tuple[Tensor, Tensor]:
    """Forward kinematics.

    Args:
        joints_m: [55, 3] rest joints, metres.
        pose: [55, 3] axis-angle per joint, relative to its parent.

    Returns:
        global rotations [55, 3, 3] and joint positions [55, 3] in metres; the pelvis stays where it is.
    """
    local = rotation_matrices(pose)
    rotations: list[Tensor] = [local[:1]]
    positions: list[Tensor] = [joints_m[:1]]
    for joints, parents, places in _LEVELS:
        up, origin = rotations[-1][places], positions[-1][places]
        rotations.append(up @ local[joints])
        bones = (joints_m[joints] - joints_m[parents])[..., None]
        positions.append(origin + (up @ bones)[..., 0])
    return torch.cat(rotations)[_ORDER], torch.cat(positions)[_ORDER]


def skinning_transforms(joints_m: Tensor, pose: Tensor, twist: TwistBones | None = None) -> Tensor:
    """Matrices that take rest points to posed points, one per joint and helper.

    Args:
        joints_m: [55, 3] rest joints, metres.
        pose: [55, 3] axis-angle.
        twist: adds its helpers behind the joints.

    Returns:
        [55 or 55 + K, 3, 4]; x -> M[:, :3] x + M[:, 3].
    """
    rotations, positions = joint_transforms(joints_m, pose)
    origins = joints_m
    if twist is not None:
        parents = torch.as_tensor(twist.parents, dtype=torch.long)
        axes = joints_m[torch.as_tensor(twist.ends, dtype=torch.long)] - joints_m[parents]
        axes = axes / axes.norm(dim=-1, keepdim=True)
        angles = twist_angles(pose[torch.as_tensor(twist.sources, dtype=torch.long)], axes)
        factors = torch.as_tensor(twist.factors, dtype=pose.dtype, device=pose.device)
        helpers = rotations[parents] @ rotation_matrices((factors * angles)[:, None] * axes)
        rotations = torch.cat([rotations, helpers])
        positions = torch.cat([positions, positions[parents]])
        origins = torch.cat([joints_m, joints_m[parents]])
    shifts = positions - (rotations @ origins[..., None])[..., 0]
    return torch.cat([rotations, shifts[..., None]], -1)


def blend(transforms: Tensor, weights: Tensor) -> Tensor:
    """Blended matrices per vertex: weights [V, J] (dense or sparse) times transforms [J, 3, 4] -> [V, 3, 4]."""
    return (weights @ transforms.reshape(-1, 12)).reshape(-1, 3, 4)


def skin(
    vertices_m: Tensor,
    joints_m: Tensor,
    pose: Tensor,
    weights: Tensor,
    translation_m: Tensor | None = None,
    twist: TwistBones | None = None,
) -> Tensor:
    """Poses vertices.

    Args:
        vertices_m: [V, 3] rest vertices.
        joints_m: [55, 3] rest joints.
        pose: [55, 3] axis-angle.
        weights: [V, 55], or [V, 55 + K] with `twist` (its own `skin_weights`, or the rows of some vertices).
        translation_m: [3] added last.
        twist: helpers to use.

    Returns:
        [V, 3] posed vertices, metres.

    Raises:
        ValueError: the weights' columns do not match the bones.
    """
    bones = len(PARENTS) + (len(twist.names) if twist is not None else 0)
    if weights.shape[1] != bones:
        raise ValueError(f"skin weights have {weights.shape[1]} columns, the skeleton has {bones} bones")
    matrices = blend(skinning_transforms(joints_m, pose, twist), weights)
    posed = (matrices[:, :, :3] @ vertices_m[..., None])[..., 0] + matrices[:, :, 3]
    return posed if translation_m is None else posed + translation_m


def vertex_transforms(
    joints_m: np.ndarray,
    pose: np.ndarray,
    weights: np.ndarray,
    translation_m: np.ndarray | None = None,
    twist: TwistBones | None = None,
) -> np.ndarray:
    """The blended matrix of every vertex, for posing and un-posing with numpy; computed in float64.

    Args:
        joints_m: [55, 3].
        pose: [55, 3] axis-angle.
        weights: [V, 55], or [V, 55 + K] with `twist`.
        translation_m: [3] added last.
        twist: helpers to use.

    Returns:
        [V, 3, 4] float64; posed = M[:, :, :3] rest + M[:, :, 3].

    Raises:
        ValueError: the weights' columns do not match the bones.
    """
    bones = len(PARENTS) + (len(twist.names) if twist is not None else 0)
    if weights.shape[1] != bones:
        raise ValueError(f"skin weights have {weights.shape[1]} columns, the skeleton has {bones} bones")
    joints = torch.as_tensor(np.asarray(joints_m, np.float64))
    transforms = skinning_transforms(joints, torch.as_tensor(np.asarray(pose, np.float64)), twist)
    matrices = blend(transforms, torch.as_tensor(np.asarray(weights, np.float64))).numpy()
    if translation_m is not None:
        matrices[:, :, 3] += translation_m
    return matrices


def apply_transforms(transforms: np.ndarray, points_m: np.ndarray) -> np.ndarray:
    """Rest points [V, 3] to posed points by per-vertex matrices [V, 3, 4]."""
    return (transforms[:, :, :3] @ points_m[..., None])[..., 0] + transforms[:, :, 3]


def undo_transforms(transforms: np.ndarray, posed_m: np.ndarray) -> np.ndarray:
    """Posed points [V, 3] back to rest by the inverse of the blended matrices [V, 3, 4]."""
    return np.linalg.solve(transforms[:, :, :3], (posed_m - transforms[:, :, 3])[..., None])[..., 0]


__all__ = [
    "TwistBones",
    "apply_transforms",
    "blend",
    "joint_transforms",
    "rotation_matrices",
    "skin",
    "skinning_transforms",
    "twist_angles",
    "undo_transforms",
    "vertex_transforms",
]
