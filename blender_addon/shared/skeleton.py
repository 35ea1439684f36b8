"""The SMPL-X skeleton as bones: names, hierarchy, tails, rolls, and the one rotation conversion.

A joint's rotation in SMPL-X is R, in the axes of the body frame. A bone's rest matrix B has the bone's own axes as
columns (y from head to tail). The same turn in the bone's own axes is B^-1 R B, and since Blender's frame is the
body's turned by a fixed matrix, the result is the same in both.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .arrays import Array

_FINGERS = ("index", "middle", "pinky", "ring", "thumb")

JOINT_NAMES: tuple[str, ...] = (
    *("pelvis", "left_hip", "right_hip", "spine1", "left_knee", "right_knee", "spine2", "left_ankle", "right_ankle"),
    *("spine3", "left_foot", "right_foot", "neck", "left_collar", "right_collar", "head"),
    *("left_shoulder", "right_shoulder", "left_elbow", "right_elbow", "left_wrist", "right_wrist"),
    *("jaw", "left_eye_smplhf", "right_eye_smplhf"),
    *(f"{side}_{finger}{k}" for side in ("left", "right") for finger in _FINGERS for k in (1, 2, 3)),
)
"""SMPL-X's 55 joints in SMPL-X's order."""

PARENTS: Array = np.array(
    [-1, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 9, 12, 13, 14, 16, 17, 18, 19, 15, 15, 15]
    + [20, 25, 26, 20, 28, 29, 20, 31, 32, 20, 34, 35, 20, 37, 38]
    + [21, 40, 41, 21, 43, 44, 21, 46, 47, 21, 49, 50, 21, 52, 53],
    np.int32,
)
"""[55] parent of each joint, -1 for the root."""

_BONE_OF_JOINT = {
    "hip": "thigh",
    "knee": "shin",
    "ankle": "foot",
    "foot": "toe",
    "collar": "shoulder",
    "shoulder": "upper_arm",
    "elbow": "forearm",
    "wrist": "hand",
    "eye_smplhf": "eye",
}


def _bone_name(joint: str) -> str:
    side, _, rest = joint.partition("_")
    if side not in ("left", "right"):
        return joint
    name = _BONE_OF_JOINT.get(rest) or f"{rest[:-1]}_0{rest[-1]}"
    return f"{name}.{side[0].upper()}"


BONE_NAMES: tuple[str, ...] = tuple(_bone_name(joint) for joint in JOINT_NAMES)
"""Blender's name of each joint's bone, sides as .L and .R."""

FACIAL_ACTIONS: tuple[str, ...] = tuple(
    """browDownLeft browDownRight browInnerUp browOuterUpLeft browOuterUpRight cheekPuff cheekSquintLeft
    cheekSquintRight eyeBlinkLeft eyeBlinkRight eyeLookDownLeft eyeLookDownRight eyeLookInLeft eyeLookInRight
    eyeLookOutLeft eyeLookOutRight eyeLookUpLeft eyeLookUpRight eyeSquintLeft eyeSquintRight eyeWideLeft eyeWideRight
    jawForward jawLeft jawOpen jawRight mouthClose mouthDimpleLeft mouthDimpleRight mouthFrownLeft mouthFrownRight
    mouthFunnel mouthLeft mouthLowerDownLeft mouthLowerDownRight mouthPressLeft mouthPressRight mouthPucker mouthRight
    mouthRollLower mouthRollUpper mouthShrugLower mouthShrugUpper mouthSmileLeft mouthSmileRight mouthStretchLeft
    mouthStretchRight mouthUpperUpLeft mouthUpperUpRight noseSneerLeft noseSneerRight tongueOut""".split()
)
"""The 52 facial actions by ARKit's names, alphabetical."""

_TAIL_CHILD = {"pelvis": "spine1", "spine3": "neck"}
"""Which child the tail points to where a joint has several."""

_LEAF_TAILS_M = {
    "head": (0, 0.18, 0),
    "jaw": (0, -0.035, 0.08),
    "left_eye_smplhf": (0, 0, 0.03),
    "right_eye_smplhf": (0, 0, 0.03),
}
"""Tails of the face's joints relative to their heads, metres, of an adult; by eye."""


@dataclass(frozen=True)
class BoneRest:
    """Rest pose of the bones, body frame.

    Attributes:
        heads_m: [55, 3].
        tails_m: [55, 3].
        matrices: [55, 3, 3] bone axes as columns; y runs from head to tail, mirrored bones have mirrored y and z axes.
    """

    heads_m: Array
    tails_m: Array
    matrices: Array


def bone_rest(joints_m: Array) -> BoneRest:
    """Heads, tails and axes of the bones.

    Args:
        joints_m: [55, 3] joints of the rest (T) pose, body frame.

    Raises:
        ValueError: If there are not 55 joints, or two of them coincide where a bone lies between them.
    """
    heads = np.asarray(joints_m, np.float64)
    if heads.shape != (len(JOINT_NAMES), 3):
        raise ValueError(f"joints_m has shape {heads.shape}, expected ({len(JOINT_NAMES)}, 3)")
    tails = np.stack([_tail(j, heads) for j in range(len(JOINT_NAMES))])
    y = tails - heads
    lengths = np.linalg.norm(y, axis=1, keepdims=True)
    if float(lengths.min()) < 1e-4:
        raise ValueError(f"the bone of {JOINT_NAMES[int(lengths.argmin())]} has no length")
    y /= lengths
    # z faces the front, for bones that point forwards (feet, jaw, eyes) up: both references are symmetric in x, so
    # mirrored bones get mirrored axes and Blender's pose mirroring works.
    reference = np.where(np.abs(y[:, 2:3]) > 0.7, [[0.0, 1.0, 0.0]], [[0.0, 0.0, 1.0]])
    z = reference - y * (reference * y).sum(axis=1, keepdims=True)
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    return BoneRest(heads, tails, np.stack([np.cross(y, z), y, z], axis=2))


def _tail(joint: int, heads: Array) -> Array:
    name = JOINT_NAMES[joint]
    if name in _LEAF_TAILS_M:
        return heads[joint] + np.array(_LEAF_TAILS_M[name])
    children = np.flatnonzero(joint == PARENTS)
    if name in _TAIL_CHILD:
        return heads[JOINT_NAMES.index(_TAIL_CHILD[name])]
    if name.endswith("_wrist"):
        # The hand goes on along the forearm, so that turning it about its own y axis is the roll that the twist
        # helpers share.
        forearm = heads[joint] - heads[PARENTS[joint]]
        knuckle = heads[JOINT_NAMES.index(name.replace("wrist", "middle1"))]
        share = np.linalg.norm(knuckle - heads[joint]) / max(float(np.linalg.norm(forearm)), 1e-9)
        return heads[joint] + forearm * share
    if len(children):
        return heads[children[0]]
    if name.endswith("_foot"):
        return heads[joint] + np.array([0, 0, 0.06])
    # The last joint of a finger goes on in the direction of the one before.
    return heads[joint] + 0.8 * (heads[joint] - heads[PARENTS[joint]])


def to_bone_rotation(rotation: Array, bone_matrix: Array) -> Array:
    """A joint's rotation [..., 3, 3] (body axes) in the bone's own axes: B^-1 R B."""
    return np.swapaxes(bone_matrix, -1, -2) @ rotation @ bone_matrix


def from_bone_rotation(rotation: Array, bone_matrix: Array) -> Array:
    """A bone's local rotation [..., 3, 3] in body axes: B R B^-1; the inverse of `to_bone_rotation`."""
    return bone_matrix @ rotation @ np.swapaxes(bone_matrix, -1, -2)


def axis_angle_to_matrices(axis_angle: Array) -> Array:
    """Rotation matrices [..., 3, 3] of axis-angle vectors [..., 3] in radians (Rodrigues)."""
    vector = np.asarray(axis_angle, np.float64)
    angle = np.linalg.norm(vector, axis=-1, keepdims=True)[..., None]
    x, y, z = np.moveaxis(vector / np.maximum(angle[..., 0], 1e-12), -1, 0)
    zero = np.zeros_like(x)
    cross = np.stack([zero, -z, y, z, zero, -x, -y, x, zero], axis=-1).reshape(*vector.shape[:-1], 3, 3)
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * (cross @ cross)


__all__ = [
    "BONE_NAMES",
    "FACIAL_ACTIONS",
    "JOINT_NAMES",
    "PARENTS",
    "BoneRest",
    "axis_angle_to_matrices",
    "bone_rest",
    "from_bone_rotation",
    "to_bone_rotation",
]
