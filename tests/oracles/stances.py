"""Standing poses of the oracle figures, in words of limbs, as SMPL-X axis-angles."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from tests.oracles.bodies import Array, OracleBody, axis_angle, rotation_matrix


@dataclass(frozen=True)
class Arm:
    """One arm in degrees: lowered from horizontal, swung forward, inner rotation of the upper arm, elbow flexion."""

    lower: float = 70.0
    forward: float = 0.0
    inner: float = 10.0
    flex: float = 20.0
    wrist: float = 0.0
    curl: float = 24.0


@dataclass(frozen=True)
class Leg:
    """One leg in degrees: swung forward, abducted from the rest stance, knee flexion, ankle (toes up positive)."""

    forward: float = 0.0
    out: float = 0.0
    knee: float = 3.0
    ankle: float = 0.0


@dataclass(frozen=True)
class Stance:
    """A whole pose in degrees. yaw: the body's turn (positive shows its right side); lean: torso forward."""

    yaw: float = 0.0
    lean: float = 3.0
    side_lean: float = 0.0
    twist: float = 0.0
    head_yaw: float = 0.0
    head_pitch: float = 0.0
    left_arm: Arm = field(default_factory=Arm)
    right_arm: Arm = field(default_factory=Arm)
    left_leg: Leg = field(default_factory=Leg)
    right_leg: Leg = field(default_factory=Leg)


def _turn(x: float = 0.0, y: float = 0.0, z: float = 0.0) -> Array:
    """Rotation about fixed axes, first z, then y, then x; degrees."""
    made = np.eye(3)
    for axis, angle in ((2, z), (1, y), (0, x)):
        vector = np.zeros(3)
        vector[axis] = np.radians(angle)
        made = rotation_matrix(vector) @ made
    return made


def _limbs(body: OracleBody, pose: Array, side: str, arm: Arm, leg: Leg) -> None:
    """Writes one side's joints; the right side is the mirror image of the left."""
    mirror = np.array([1.0, 1.0, 1.0]) if side == "left" else np.array([1.0, -1.0, -1.0])

    def put(name: str, rotation: Array) -> None:
        pose[body.joint(f"{side}_{name}")] = axis_angle(rotation) * mirror

    collar = 0.15 * arm.lower
    put("collar", _turn(z=-collar))
    inner = _turn(x=arm.inner)
    put("shoulder", _turn(x=-arm.forward) @ _turn(z=-(arm.lower - collar)) @ inner)
    put("elbow", _turn(y=-arm.flex))
    put("wrist", _turn(z=-arm.wrist))
    for finger in ("index", "middle", "ring", "pinky"):
        for k in (1, 2, 3):
            put(f"{finger}{k}", _turn(z=-arm.curl * (1.0 if k > 1 else 0.7)))
    put("thumb1", _turn(y=-15))
    put("hip", _turn(x=-leg.forward) @ _turn(z=leg.out))
    put("knee", _turn(x=leg.knee))
    put("ankle", _turn(x=leg.forward - leg.knee - leg.ankle))


def pose_of(body: OracleBody, stance: Stance) -> Array:
    """Gives a stance as axis-angle [55,3] in the joints' order, relative to the T-pose."""
    pose = np.zeros((55, 3))
    pose[0] = axis_angle(_turn(y=stance.yaw) @ _turn(x=0.3 * stance.lean))
    share = {"spine1": 0.25, "spine2": 0.25, "spine3": 0.2}
    for name, part in share.items():
        turn = _turn(x=part * stance.lean, z=part * stance.side_lean, y=part * stance.twist)
        pose[body.joint(name)] = axis_angle(turn)
    pose[body.joint("neck")] = axis_angle(_turn(x=0.4 * stance.head_pitch, y=0.4 * stance.head_yaw))
    pose[body.joint("head")] = axis_angle(_turn(x=0.6 * stance.head_pitch, y=0.6 * stance.head_yaw))
    _limbs(body, pose, "left", stance.left_arm, stance.left_leg)
    _limbs(body, pose, "right", stance.right_arm, stance.right_leg)
    return pose
