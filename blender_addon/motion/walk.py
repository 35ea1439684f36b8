"""A walk on the spot, made here: joint angles of normal walking, in the SMPL-X skeleton's rotations."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..shared.skeleton import JOINT_NAMES, axis_angle_to_matrices
from .poses import Motion, lowest_points, matrices_to_axis_angle

if TYPE_CHECKING:
    from ..shared.avatar import Avatar

WALK_FRAMES = 28
"""Frames of one cycle (two steps); at 24 per second 1.17 s, an easy pace."""

# Angles in degrees at every tenth of the cycle, which begins with the leg's own heel strike. Shaped after textbook
# curves of level walking (knee with two bumps, push-off by the ankle), with the hip's extension chosen so that both
# feet reach the floor at heel strike; smoothed by trigonometric interpolation.
_HIP_FLEXION = (25, 23, 16, 6, -6, -17, -13, 6, 21, 27)
_KNEE_FLEXION = (4, 14, 16, 10, 8, 16, 36, 58, 46, 16)
_ANKLE_DORSIFLEXION = (1, -4, 4, 9, 12, 6, -13, -5, 1, 2)

_ARM_DOWN = 72.0
"""Degrees from the T-pose down to the sides; less than 90 keeps hands and sleeves clear of hips and coats."""


def walk_motion(avatar: Avatar) -> Motion:
    """One cycle of a walk on the spot, feet on the floor. The face is left to its sliders: keys would hold them."""
    pose = walk_pose(WALK_FRAMES)
    return Motion("Walk", pose, _pelvis_path(avatar.joints_m, pose), {}, cyclic=True)


def walk_pose(frames: int) -> np.ndarray:
    """Axis-angle [frames, 55, 3] of one cycle, which begins with the left heel strike."""
    phase = np.arange(frames) / frames
    turn = np.cos(2 * np.pi * phase)
    sway = np.sin(2 * np.pi * phase)
    angles: dict[str, list[tuple[str, np.ndarray | float]]] = {
        # Pelvis: the side of the swinging leg drops and the side of the leading leg comes forward; the back turns
        # against it.
        "pelvis": [("y", -4 * turn), ("z", 2.5 * sway), ("x", 2.0)],
        "spine1": [("y", 2.5 * turn), ("z", -1.5 * sway)],
        "spine2": [("y", 2.5 * turn), ("z", -1.0 * sway), ("x", 1.0)],
        "spine3": [("y", 2.0 * turn)],
        "neck": [("y", -1.5 * turn), ("x", -1.0)],
        "head": [("y", -1.5 * turn), ("x", -1.5)],
    }
    for side, sign, start in (("left", 1.0, 0.0), ("right", -1.0, 0.5)):
        own = (phase + start) % 1.0
        forward = -np.cos(2 * np.pi * own)
        angles |= {
            f"{side}_hip": [("x", -_periodic(_HIP_FLEXION, own)), ("z", sign * 1.5)],
            f"{side}_knee": [("x", _periodic(_KNEE_FLEXION, own))],
            f"{side}_ankle": [("x", -_periodic(_ANKLE_DORSIFLEXION, own))],
            # At the end of stance the foot rolls over the toes.
            f"{side}_foot": [("x", -22 * _bump(own, 0.55, 0.09))],
            f"{side}_collar": [("z", -sign * 6.0)],
            f"{side}_shoulder": [("x", -(16 * forward + 3)), ("z", -sign * (_ARM_DOWN - 6.0))],
            f"{side}_elbow": [("y", -sign * (18 + 9 * forward))],
            f"{side}_wrist": [("z", -sign * 4.0)],
        }
        for finger, curl in (("index", 12.0), ("middle", 15.0), ("ring", 17.0), ("pinky", 19.0)):
            for k in (1, 2, 3):
                angles[f"{side}_{finger}{k}"] = [("z", -sign * curl)]
    pose = np.zeros((frames, len(JOINT_NAMES), 3))
    for name, turns in angles.items():
        pose[:, JOINT_NAMES.index(name)] = _compose(turns, frames)
    return pose


def _pelvis_path(joints_m: np.ndarray, pose: np.ndarray) -> np.ndarray:
    """Movement of the pelvis [F, 3]: the lowest point of the feet stays on the floor; a little to the standing side."""
    lowest = lowest_points(joints_m, axis_angle_to_matrices(pose)).min(axis=1)
    path = np.zeros((len(pose), 3))
    path[:, 0] = 0.018 * np.sin(2 * np.pi * np.arange(len(pose)) / len(pose))
    path[:, 1] = -lowest
    return path


def _compose(turns: list[tuple[str, np.ndarray | float]], frames: int) -> np.ndarray:
    """Axis-angle [frames, 3] of turns about axes (degrees), the first one outermost."""
    total = np.broadcast_to(np.eye(3), (frames, 3, 3))
    for axis, degrees in turns:
        vector = np.zeros((frames, 3))
        vector[:, "xyz".index(axis)] = np.radians(degrees)
        total = total @ axis_angle_to_matrices(vector)
    return matrices_to_axis_angle(total)


def _periodic(samples: tuple[float, ...], phase: np.ndarray) -> np.ndarray:
    """Trigonometric interpolation of equally spaced samples of one period at `phase` (0..1)."""
    coefficients = np.fft.rfft(samples) / len(samples)
    order = np.arange(len(coefficients))
    weight = np.where((order == 0) | (2 * order == len(samples)), 1.0, 2.0)
    return (weight * coefficients * np.exp(2j * np.pi * phase[:, None] * order)).real.sum(axis=1)


def _bump(phase: np.ndarray, centre: float, width: float) -> np.ndarray:
    """A smooth bump of height 1 on the circle of phases."""
    distance = np.abs((phase - centre + 0.5) % 1.0 - 0.5)
    return np.exp(-0.5 * (distance / width) ** 2)
