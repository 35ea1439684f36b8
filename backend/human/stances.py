"""Poses in words of limbs: how an arm is raised, a knee bent, a back leaned, as SMPL-X rotations.

All angles are degrees. Left is the subject's left (+X); a right limb's words mean the mirror image of the left's.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from scipy.spatial.transform import Rotation

from blender_addon.shared.skeleton import JOINT_NAMES

FINGERS = ("index", "middle", "ring", "pinky")
_COLLAR_FROM, _COLLAR_SHARE, _COLLAR_MOST = 30.0, 0.2, 24.0  # the collar bone follows the arm from 30 degrees on
_SPINE_SHARES = {"spine1": 0.35, "spine2": 0.35, "spine3": 0.30}
_NECK_SHARE = 0.4
_ANKLE_UP, _ANKLE_DOWN = 28.0, 42.0  # how far a foot follows the floor


@dataclass(frozen=True)
class Hand:
    """A hand: curl of index, middle, ring and little finger (per joint), thumb across the palm, spread of fingers."""

    curls: tuple[float, float, float, float] = (14.0, 16.0, 18.0, 20.0)
    thumb: float = 15.0
    spread: float = 0.0


RELAXED = Hand()
OPEN = Hand((2.0, 2.0, 2.0, 2.0), 0.0, 10.0)
FIST = Hand((72.0, 76.0, 78.0, 78.0), 40.0)
POINT = Hand((4.0, 70.0, 74.0, 76.0), 38.0)
PINCH = Hand((42.0, 20.0, 16.0, 14.0), 34.0)


@dataclass(frozen=True)
class Arm:
    """An arm.

    Attributes:
        up: 0 hangs at the side, 90 horizontal, 170 overhead.
        ahead: Where it is raised to: 0 to the side, 90 to the front, negative behind the back.
        roll: Inner rotation of the upper arm about itself.
        elbow: Flexion.
        palm: Turn of the forearm, positive turns the palm down or back.
        wrist: Flexion towards the palm.
        hand: The fingers.
    """

    up: float = 14.0
    ahead: float = 10.0
    roll: float = 10.0
    elbow: float = 18.0
    palm: float = 0.0
    wrist: float = 0.0
    hand: Hand = RELAXED


@dataclass(frozen=True)
class Leg:
    """A leg, in the body's yaw frame; the foot stays level as far as an ankle can.

    Attributes:
        ahead: Swung forward.
        out: To the side.
        turn_out: Turned outwards about itself.
        knee: Flexion.
        toes_up: Of the foot, beyond level.
    """

    ahead: float = 0.0
    out: float = 0.0
    turn_out: float = 0.0
    knee: float = 3.0
    toes_up: float = 0.0


@dataclass(frozen=True)
class Stance:
    """A whole pose.

    Attributes:
        yaw: Turn of the whole body, positive to its left.
        bow: The pelvis tips forward over the legs.
        lean, side, twist: Of the back: forward, to the left, turned to the left.
        head_yaw, head_pitch, head_roll: Relative to the chest; positive looks left, down, tilts left.
    """

    yaw: float = 0.0
    bow: float = 0.0
    lean: float = 2.0
    side: float = 0.0
    twist: float = 0.0
    head_yaw: float = 0.0
    head_pitch: float = 0.0
    head_roll: float = 0.0
    left_arm: Arm = field(default_factory=Arm)
    right_arm: Arm = field(default_factory=Arm)
    left_leg: Leg = field(default_factory=Leg)
    right_leg: Leg = field(default_factory=Leg)


def stance_pose(stance: Stance) -> np.ndarray:
    """A stance as axis-angle [55, 3], radians, relative to the T-pose."""
    pose = np.zeros((len(JOINT_NAMES), 3))
    yaw, tip = _turn("y", stance.yaw), _turn("x", stance.bow)
    _put(pose, "pelvis", yaw * tip)
    for name, share in _SPINE_SHARES.items():
        turn = _turn("y", share * stance.twist) * _turn("z", -share * stance.side) * _turn("x", share * stance.lean)
        _put(pose, name, turn)
    for name, share in (("neck", _NECK_SHARE), ("head", 1 - _NECK_SHARE)):
        turn = _turn("y", share * stance.head_yaw) * _turn("x", share * stance.head_pitch)
        _put(pose, name, turn * _turn("z", -share * stance.head_roll))
    for side, arm, leg in (
        ("left", stance.left_arm, stance.left_leg),
        ("right", stance.right_arm, stance.right_leg),
    ):
        mirror = np.array([1.0, 1.0, 1.0]) if side == "left" else np.array([1.0, -1.0, -1.0])
        for name, turn in (_arm(arm) | _leg(leg, tip)).items():
            pose[JOINT_NAMES.index(f"{side}_{name}")] = turn.as_rotvec() * mirror
    return pose


def _arm(arm: Arm) -> dict[str, Rotation]:
    """Of the left arm. It swings on the shortest way from hanging, as the shoulder's ball joint does."""
    up, ahead = np.radians(arm.up), np.radians(arm.ahead)
    direction = np.array([np.sin(up) * np.cos(ahead), -np.cos(up), np.sin(up) * np.sin(ahead)])
    axis = np.cross([0.0, -1.0, 0.0], direction)
    length = np.linalg.norm(axis)
    swing = Rotation.from_rotvec(axis / max(length, 1e-9) * up)
    collar = _turn("z", float(np.clip((arm.up - _COLLAR_FROM) * _COLLAR_SHARE, -4.0, _COLLAR_MOST)))
    shoulder = collar.inv() * swing * _turn("z", -90.0) * _turn("x", arm.roll)
    made = {
        "collar": collar,
        "shoulder": shoulder,
        "elbow": _turn("y", -arm.elbow),
        "wrist": _turn("x", arm.palm) * _turn("z", -arm.wrist),
        "thumb1": _turn("y", -0.6 * arm.hand.thumb) * _turn("z", -0.5 * arm.hand.thumb),
        "thumb2": _turn("y", -0.5 * arm.hand.thumb),
        "thumb3": _turn("y", -0.4 * arm.hand.thumb),
    }
    for finger, curl, fan in zip(FINGERS, arm.hand.curls, (-1.0, -0.2, 0.5, 1.2), strict=True):
        spread = _turn("y", fan * arm.hand.spread)
        made |= {f"{finger}{k}": _turn("z", -curl) if k > 1 else spread * _turn("z", -0.8 * curl) for k in (1, 2, 3)}
    return made


def _leg(leg: Leg, tip: Rotation) -> dict[str, Rotation]:
    """Of the left leg, for a pelvis that is tipped by `tip`."""
    thigh = _turn("x", -leg.ahead) * _turn("z", leg.out) * _turn("y", leg.turn_out)
    knee = _turn("x", leg.knee)
    level = (thigh * knee).inv() * _turn("y", leg.turn_out)
    x, y, z = level.as_rotvec(degrees=True)
    ankle = np.array([np.clip(x, -_ANKLE_UP, _ANKLE_DOWN) - leg.toes_up, np.clip(y, -12, 12), np.clip(z, -16, 16)])
    return {"hip": tip.inv() * thigh, "knee": knee, "ankle": Rotation.from_rotvec(ankle, degrees=True)}


def _turn(axis: str, degrees: float) -> Rotation:
    return Rotation.from_euler(axis, degrees, degrees=True)


def _put(pose: np.ndarray, name: str, rotation: Rotation) -> None:
    pose[JOINT_NAMES.index(name)] = rotation.as_rotvec()
