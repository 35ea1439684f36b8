"""The poses that a bundle brings, the photo's and the T-pose, placed so that the figure stands at the origin."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..shared.gaussians import matrices_to_wxyz
from ..shared.skeleton import FACIAL_ACTIONS, JOINT_NAMES, PARENTS, axis_angle_to_matrices

if TYPE_CHECKING:
    from ..shared.avatar import Avatar

_FEET = tuple(JOINT_NAMES.index(name) for name in ("left_ankle", "right_ankle", "left_foot", "right_foot"))


@dataclass(frozen=True)
class Motion:
    """A motion of the SMPL-X skeleton, body frame.

    Attributes:
        name: Of the action.
        pose: [F, 55, 3] axis-angle per frame and joint.
        translation_m: [F, 3] movement of the pelvis from its rest place.
        face: Facial action -> weight, constant over the motion.
        cyclic: The last frame leads into the first.
    """

    name: str
    pose: np.ndarray
    translation_m: np.ndarray
    face: dict[str, float]
    cyclic: bool = False


@dataclass(frozen=True)
class PhotoPlacement:
    """The photo's pose and camera, moved together: the figure stands on the origin, the camera in front of it.

    Attributes:
        pose: [55, 3] axis-angle.
        translation_m: [3].
        w2c: [4, 4] OpenCV camera, body frame.
    """

    pose: np.ndarray
    translation_m: np.ndarray
    w2c: np.ndarray


def face_of_photo(avatar: Avatar) -> dict[str, float]:
    """Weights of all shape keys that show the photo's face."""
    return {**{name: float(w) for name, w in zip(FACIAL_ACTIONS, avatar.photo_actions, strict=True)}, "photo": 1.0}


def photo_motion(avatar: Avatar) -> Motion:
    """The photo's pose and expression as a motion of one frame."""
    placement = place_photo(avatar)
    return Motion("Photo pose", placement.pose[None], placement.translation_m[None], face_of_photo(avatar))


def rest_motion(avatar: Avatar) -> Motion:
    """The T-pose with a neutral face."""
    face = {str(name): 0.0 for name in avatar.shape_key_names}
    return Motion("T-pose", np.zeros((1, len(JOINT_NAMES), 3)), np.zeros((1, 3)), face)


def place_photo(avatar: Avatar) -> PhotoPlacement:
    """Turn the photo's world about the vertical and move it.

    The photo's own world has its origin wherever the fit put it. Here the pelvis stands above the origin, the lower
    foot on the floor, and the camera in direction +Z, so Blender's front view (numpad 1) shows the photo's side of
    the person.
    """
    pose = np.asarray(avatar.photo_pose, np.float64)
    joints = np.asarray(avatar.joints_m, np.float64)
    posed = posed_joints(joints, axis_angle_to_matrices(pose)) + avatar.photo_translation_m
    w2c = np.asarray(avatar.photo_w2c, np.float64)
    camera = -w2c[:3, :3].T @ w2c[:3, 3]
    to_camera = camera - posed[0]
    yaw = -np.arctan2(to_camera[0], to_camera[2])
    turn = axis_angle_to_matrices(np.array([0.0, yaw, 0.0]))
    turned = posed @ turn.T
    floor = float((turned[_FEET, 1] - joints[_FEET, 1]).min())
    shift = -np.array([turned[0, 0], floor, turned[0, 2]])

    moved = np.eye(4)
    moved[:3, :3], moved[:3, 3] = turn, shift
    pose = pose.copy()
    pose[0] = matrices_to_axis_angle(turn @ axis_angle_to_matrices(pose[0]))
    return PhotoPlacement(pose, turned[0] + shift - joints[0], w2c @ np.linalg.inv(moved))


def posed_joints(joints_m: np.ndarray, rotations: np.ndarray) -> np.ndarray:
    """Forward kinematics.

    Args:
        joints_m: [55, 3] rest joints.
        rotations: [..., 55, 3, 3] local rotations.

    Returns:
        [..., 55, 3] joints, the root where it rests.
    """
    positions, world = [joints_m[0] + np.zeros((*rotations.shape[:-3], 3))], [rotations[..., 0, :, :]]
    for joint in range(1, len(joints_m)):
        parent = int(PARENTS[joint])
        positions.append(positions[parent] + world[parent] @ (joints_m[joint] - joints_m[parent]))
        world.append(world[parent] @ rotations[..., joint, :, :])
    return np.stack(positions, axis=-2)


def world_rotations(rotations: np.ndarray) -> np.ndarray:
    """Global rotations [..., 55, 3, 3] of local ones."""
    world = rotations.copy()
    for joint in range(1, world.shape[-3]):
        world[..., joint, :, :] = world[..., PARENTS[joint], :, :] @ rotations[..., joint, :, :]
    return world


def local_rotations(world: np.ndarray) -> np.ndarray:
    """Local rotations [..., 55, 3, 3] of global ones; the inverse of `world_rotations`."""
    local = world.copy()
    local[..., 1:, :, :] = np.swapaxes(world[..., PARENTS[1:], :, :], -1, -2) @ world[..., 1:, :, :]
    return local


def lowest_points(joints_m: np.ndarray, rotations: np.ndarray) -> np.ndarray:
    """Height of the lowest point of each foot, the root where it rests.

    Args:
        joints_m: [55, 3] rest joints; the floor is at height 0.
        rotations: [F, 55, 3, 3] local rotations.

    Returns:
        [F, 2] metres, left and right.
    """
    rest = np.asarray(joints_m, np.float64)
    posed, world = posed_joints(rest, rotations), world_rotations(rotations)
    lowest = np.full((len(rotations), 2), np.inf)
    for side, name in enumerate(("left", "right")):
        ankle, ball = (JOINT_NAMES.index(f"{name}_{part}") for part in ("ankle", "foot"))
        # Heel below and behind the ankle, ball below its joint, and the tip of the toes in front of it.
        points = {
            ankle: [(0.0, -rest[ankle, 1], -0.05)],
            ball: [(0.0, -rest[ball, 1], 0.0), (0.0, -rest[ball, 1], 0.06)],
        }
        for joint, offsets in points.items():
            for offset in offsets:
                height = posed[:, joint, 1] + (world[:, joint] @ np.array(offset))[:, 1]
                lowest[:, side] = np.minimum(lowest[:, side], height)
    return lowest


def matrices_to_axis_angle(rotations: np.ndarray) -> np.ndarray:
    """Axis-angle [..., 3] of rotation matrices [..., 3, 3], radians."""
    quaternion = matrices_to_wxyz(rotations)
    length = np.linalg.norm(quaternion[..., 1:], axis=-1, keepdims=True)
    angle = 2 * np.arctan2(length, quaternion[..., :1])
    return quaternion[..., 1:] * np.where(length > 1e-12, angle / np.maximum(length, 1e-12), 2.0)
