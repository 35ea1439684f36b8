"""The two motions that a generated video shows a person in, made here to cover how bodies move.

About 900 frames in all, as many as PERSONA's two (M. Sim and G. Moon, arXiv 2508.09973). Key stances are joined by
turns at even pace that start and stop softly; no joint ever leaves the shortest way between two keys, so what holds
for the keys' joint limits holds for all frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.spatial.transform import Rotation, Slerp

from backend.human.stances import FIST, OPEN, PINCH, POINT, Arm, Leg, Stance, stance_pose
from blender_addon.shared.skeleton import FACIAL_ACTIONS, JOINT_NAMES, PARENTS

FRAMES_PER_SECOND = 15.0
FRAMES_BETWEEN_KEYS = 14

LIMITS_DEG: dict[str, float] = {
    "pelvis": 180.0, "hip": 130.0, "knee": 145.0, "ankle": 60.0, "foot": 40.0, "spine1": 35.0, "spine2": 35.0,
    "spine3": 35.0, "neck": 45.0, "head": 50.0, "collar": 32.0, "shoulder": 150.0, "elbow": 150.0, "wrist": 95.0,
    "jaw": 25.0, "eye_smplhf": 30.0, "index1": 95.0, "index2": 110.0, "index3": 90.0, "middle1": 95.0,
    "middle2": 110.0, "middle3": 90.0, "ring1": 95.0, "ring2": 110.0, "ring3": 90.0, "pinky1": 95.0, "pinky2": 110.0,
    "pinky3": 90.0, "thumb1": 70.0, "thumb2": 60.0, "thumb3": 85.0,
}  # fmt: skip
"""Largest turn of a joint from the T-pose about any axis (anatomy, generous; a wrist's holds the forearm's turn)."""

_SOLE_M = {"ankle": ((0.0, -0.035), (0.0, 0.04)), "foot": ((0.0, 0.0), (0.0, 0.055))}
"""Points of the sole by the joint that carries them, as (side, ahead) of it; heel and arch, ball and toes. By eye."""


@dataclass(frozen=True)
class PoseSequence:
    """A motion of the fitted person, body frame: Y up, facing +Z, the floor at y = 0.

    Attributes:
        name: For people.
        poses: float32 [F, 55, 3] axis-angle, radians.
        pelvis_m: float32 [F, 3].
        actions: float32 [F, 52], facial actions 0..1 in the order of `FACIAL_ACTIONS`.
        frames_per_second: Of the motion.
    """

    name: str
    poses: np.ndarray
    pelvis_m: np.ndarray
    actions: np.ndarray
    frames_per_second: float

    def __len__(self) -> int:
        """Number of frames."""
        return len(self.poses)


def training_motions(joints_m: np.ndarray) -> tuple[PoseSequence, PoseSequence]:
    """Both motions for a person with rest joints [55, 3] whose soles touch y = 0 in the T-pose."""
    return (
        sequence("turning and walking", _TURNING, joints_m),
        sequence("reaching and bending", _REACHING, joints_m),
    )


def sequence(name: str, keys: Sequence[Stance], joints_m: np.ndarray) -> PoseSequence:
    """Join stances to a motion of a person.

    Args:
        name: For people.
        keys: At least two stances.
        joints_m: [55, 3] rest joints.
    """
    poses = _between([stance_pose(key) for key in keys])
    faces = _faces(len(keys))
    actions = np.stack([_soft(faces[:, k], len(poses)) for k in range(faces.shape[1])], 1)
    pelvis = ground(poses, joints_m)
    as_float = (array.astype(np.float32) for array in (poses, pelvis, actions))
    return PoseSequence(name, *as_float, FRAMES_PER_SECOND)


def ground(poses: np.ndarray, joints_m: np.ndarray) -> np.ndarray:
    """Where the pelvis must be [F, 3] so that the lower foot stands on the floor and does not slide.

    The foot that stands carries the body from frame to frame. What of this path is travel is taken out, so that the
    person stays before the camera.

    Args:
        poses: [F, 55, 3] axis-angle.
        joints_m: [55, 3] rest joints, soles at y = 0.
    """
    soles = _soles(poses, joints_m)
    lowest = soles[..., 1].min(1)
    standing = soles[..., 1].argmin(1)
    path = np.zeros((len(poses), 3))
    for frame in range(1, len(poses)):
        foot = standing[frame - 1]
        moved = soles[frame, foot] - soles[frame - 1, foot]
        path[frame] = path[frame - 1] - moved * [1.0, 0.0, 1.0]
    path -= _travel(path)
    path[:, 1] = -lowest
    return path + joints_m[0]


def _travel(path: np.ndarray, frames: int = 24) -> np.ndarray:
    """The slow part of a path [F, 3]: a running mean over about two seconds."""
    padded = np.concatenate([np.repeat(path[:1], frames, 0), path, np.repeat(path[-1:], frames, 0)])
    window = np.hanning(2 * frames + 1)
    window /= window.sum()
    return np.stack([np.convolve(padded[:, axis], window, "valid") for axis in range(3)], 1)


def _soles(poses: np.ndarray, joints_m: np.ndarray) -> np.ndarray:
    """Points of both soles [F, P, 3] for a pelvis that stays at its rest place."""
    rotations = np.zeros((len(poses), len(PARENTS), 3, 3))
    places = np.zeros((len(poses), len(PARENTS), 3))
    local = Rotation.from_rotvec(poses.reshape(-1, 3)).as_matrix().reshape(len(poses), -1, 3, 3)
    for joint, parent in enumerate(PARENTS):
        if parent < 0:
            rotations[:, joint] = local[:, joint]
            continue
        rotations[:, joint] = rotations[:, parent] @ local[:, joint]
        offset = joints_m[joint] - joints_m[parent]
        places[:, joint] = places[:, parent] + rotations[:, parent] @ offset
    found = []
    for side in ("left", "right"):
        for name, points in _SOLE_M.items():
            joint = JOINT_NAMES.index(f"{side}_{name}")
            for across, ahead in points:
                offset = np.array([across, -joints_m[joint, 1], ahead])
                found.append(places[:, joint] + rotations[:, joint] @ offset)
    return np.stack(found, 1) + joints_m[0]


def _between(keys: list[np.ndarray]) -> np.ndarray:
    """Frames [F, 55, 3] from key to key, every joint on its shortest way, at a pace that starts and stops softly."""
    count = FRAMES_BETWEEN_KEYS * (len(keys) - 1) + 1
    times = np.arange(count) / FRAMES_BETWEEN_KEYS
    step = np.minimum(np.floor(times), len(keys) - 2)
    share = times - step
    times = step + 0.35 * share + 0.65 * share**2 * (3 - 2 * share)
    made = np.zeros((count, len(JOINT_NAMES), 3))
    for joint in range(len(JOINT_NAMES)):
        turns = Rotation.from_rotvec(np.stack([key[joint] for key in keys]))
        made[:, joint] = Slerp(np.arange(len(keys)), turns)(times).as_rotvec()
    return made


def _soft(values: np.ndarray, count: int) -> np.ndarray:
    """Key values spread over `count` frames along half cosines."""
    at = np.linspace(0, len(values) - 1, count)
    first = np.minimum(at.astype(int), len(values) - 2)
    share = 0.5 - 0.5 * np.cos(np.pi * (at - first))
    return values[first] * (1 - share) + values[first + 1] * share


_EXPRESSIONS: tuple[dict[str, float], ...] = (
    {},
    {"jawOpen": 0.5},
    {"mouthSmile": 0.8, "cheekSquint": 0.4},
    {"eyeBlink": 1.0},
    {"mouthFunnel": 0.7, "jawOpen": 0.2},
    {"browInnerUp": 0.8, "browOuterUp": 0.6, "eyeWide": 0.5},
    {"mouthPucker": 0.8},
    {"browDown": 0.8, "eyeSquint": 0.5, "mouthPress": 0.4},
    {"jawOpen": 0.9, "mouthLowerDown": 0.3},
    {"mouthFrown": 0.7, "mouthShrugLower": 0.4},
    {"eyeLookDown": 0.8, "eyeBlink": 0.3},
    {"mouthStretch": 0.6, "jawOpen": 0.15},
)
"""Faces by actions; a name without its side means both."""


def _faces(keys: int) -> np.ndarray:
    """One expression per key [K, 52], each in its turn."""
    made = np.zeros((keys, len(FACIAL_ACTIONS)))
    for key in range(keys):
        for name, weight in _EXPRESSIONS[key % len(_EXPRESSIONS)].items():
            columns = [k for k, action in enumerate(FACIAL_ACTIONS) if action in (name, f"{name}Left", f"{name}Right")]
            made[key, columns] = weight
    return made


def _step(ahead: str, yaw: float = 0.0) -> Stance:
    """A long step, arms swinging against the legs."""
    fore, hind = Leg(26, 0, 4, 6), Leg(-18, 0, 4, 14)
    swung, back = Arm(26, 80, 14, 30), Arm(22, -70, 10, 12)
    if ahead == "left":
        return Stance(yaw, 0, 4, twist=-8, left_leg=fore, right_leg=hind, left_arm=back, right_arm=swung)
    return Stance(yaw, 0, 4, twist=8, left_leg=hind, right_leg=fore, left_arm=swung, right_arm=back)


def _pass(lifted: str, yaw: float = 0.0) -> Stance:
    """The moment between two steps: one leg stands, the other passes it."""
    high, tall = Leg(24, 0, 4, 52), Leg(0, 1, 4, 6)
    if lifted == "left":
        return Stance(yaw, 0, 3, side=2, left_leg=high, right_leg=tall)
    return Stance(yaw, 0, 3, side=-2, left_leg=tall, right_leg=high)


_A = Arm(42, 15, 10, 16)
_T = Arm(90, 8, 0, 6, hand=OPEN)
_TURNING: tuple[Stance, ...] = (
    Stance(left_arm=_A, right_arm=_A),
    Stance(left_arm=_T, right_arm=_T),
    Stance(35, twist=10, head_yaw=20, left_arm=Arm(60, 70, 0, 40), right_arm=_A),
    Stance(80, left_arm=Arm(85, 85, 0, 10, hand=POINT), right_arm=Arm(24, -60, 0, 10)),
    Stance(125, twist=-15, head_yaw=-30, left_arm=_A, right_arm=Arm(70, 20, 20, 60)),
    Stance(170, left_arm=Arm(120, 10, 0, 20), right_arm=Arm(120, 10, 0, 20)),
    Stance(170, lean=-10, head_pitch=-15, left_arm=_T, right_arm=_A),
    Stance(120, twist=20, left_arm=Arm(30, -50, 0, 30), right_arm=Arm(88, 60, 0, 30)),
    Stance(75, left_arm=_A, right_arm=Arm(95, 40, 0, 60)),
    Stance(30, lean=8, left_arm=Arm(50, 50, 40, 80), right_arm=Arm(30, 0, 0, 20)),
    Stance(-10, side=18, left_arm=Arm(16, 0, 0, 10), right_arm=Arm(150, 20, 0, 25)),
    Stance(-40, twist=-18, head_yaw=30, left_arm=Arm(80, 75, 0, 30, hand=PINCH), right_arm=_A),
    Stance(-85, left_arm=Arm(30, -50, 0, 8), right_arm=Arm(88, 85, 0, 12, hand=OPEN)),
    Stance(-130, lean=14, twist=10, left_arm=_A, right_arm=Arm(60, 60, 10, 50)),
    Stance(-170, side=-14, left_arm=Arm(150, 20, 0, 20), right_arm=Arm(18, 0, 0, 10)),
    Stance(-120, left_arm=_T, right_arm=_T),
    Stance(-60, head_pitch=25, left_arm=Arm(40, 60, 30, 70, hand=FIST), right_arm=Arm(40, 60, 30, 70, hand=FIST)),
    _step("left", -20),
    _pass("right"),
    _step("right", 10),
    _pass("left", 20),
    _step("left", 35),
    _pass("right", 40),
    _step("right", 40),
    _pass("left", 10),
    _step("left", -30),
    _pass("right", -40),
    Stance(0, left_leg=Leg(70, 6, 6, 95), left_arm=Arm(30, -20, 0, 20), right_arm=Arm(60, 70, 10, 60)),
    Stance(0, right_leg=Leg(70, 6, 6, 95), left_arm=Arm(60, 70, 10, 60), right_arm=Arm(30, -20, 0, 20)),
    Stance(0, left_leg=Leg(0, 26, 10, 4), right_leg=Leg(0, 8, 4, 4), side=-8, left_arm=_T, right_arm=_A),
    Stance(0, right_leg=Leg(0, 26, 10, 4), left_leg=Leg(0, 8, 4, 4), side=8, left_arm=_A, right_arm=_T),
    Stance(0, head_yaw=-55, left_arm=_A, right_arm=_A),
    Stance(0, head_yaw=55, head_pitch=10, left_arm=_A, right_arm=_A),
)

_FRONT = Arm(88, 88, 0, 10, hand=OPEN)
_UP = Arm(160, 25, 0, 18, hand=OPEN)
_REACHING: tuple[Stance, ...] = (
    Stance(left_arm=_A, right_arm=_A),
    Stance(left_arm=_FRONT, right_arm=_FRONT),
    Stance(lean=-8, head_pitch=-25, left_arm=_UP, right_arm=_UP),
    Stance(left_arm=Arm(100, 20, 0, 95, hand=FIST), right_arm=Arm(100, 20, 0, 95, hand=FIST)),
    Stance(left_arm=Arm(46, 62, 45, 105, hand=OPEN), right_arm=Arm(40, 55, 20, 60, hand=PINCH)),
    Stance(bow=35, lean=25, head_pitch=-15, left_arm=Arm(70, 85, 0, 10), right_arm=Arm(70, 85, 0, 10)),
    Stance(bow=55, lean=35, head_pitch=5, left_arm=Arm(82, 88, 0, 6, hand=FIST), right_arm=Arm(82, 88, 0, 6)),
    Stance(bow=20, lean=10, left_arm=_T, right_arm=_T),
    Stance(bow=25, lean=14, left_leg=Leg(62, 12, 14, 78), right_leg=Leg(62, 12, 14, 78), left_arm=_FRONT,
           right_arm=_FRONT),
    Stance(bow=28, lean=26, head_pitch=-20, left_leg=Leg(96, 15, 16, 112), right_leg=Leg(96, 15, 16, 112),
           left_arm=_FRONT, right_arm=_FRONT),
    Stance(bow=15, lean=8, left_leg=Leg(45, 10, 10, 60), right_leg=Leg(45, 10, 10, 60), left_arm=_A, right_arm=_T),
    Stance(left_arm=_UP, right_arm=_A, side=-16),
    Stance(left_arm=_A, right_arm=_UP, side=16),
    Stance(twist=30, head_yaw=35, left_arm=Arm(60, -20, 0, 20), right_arm=Arm(80, 80, 10, 40)),
    Stance(twist=-30, head_yaw=-35, left_arm=Arm(80, 80, 10, 40), right_arm=Arm(60, -20, 0, 20)),
    Stance(bow=8, lean=6, left_leg=Leg(58, 4, 6, 72), right_leg=Leg(-24, 4, 6, 30), left_arm=_A, right_arm=_FRONT),
    Stance(bow=8, lean=6, right_leg=Leg(58, 4, 6, 72), left_leg=Leg(-24, 4, 6, 30), left_arm=_FRONT, right_arm=_A),
    Stance(left_leg=Leg(0, 22, 12, 4), right_leg=Leg(0, 22, 12, 4), left_arm=Arm(120, 0, 0, 6, hand=OPEN),
           right_arm=Arm(120, 0, 0, 6, hand=OPEN)),
    Stance(left_leg=Leg(10, 26, 20, 20), right_leg=Leg(34, 24, 20, 58), bow=10, side=-14, left_arm=_T, right_arm=_A),
    Stance(right_leg=Leg(10, 26, 20, 20), left_leg=Leg(34, 24, 20, 58), bow=10, side=14, left_arm=_A, right_arm=_T),
    Stance(left_arm=Arm(88, 20, 0, 90, palm=50, hand=OPEN), right_arm=Arm(88, 20, 0, 90, palm=-50, hand=OPEN)),
    Stance(left_arm=Arm(88, 20, 0, 90, palm=-40, wrist=45), right_arm=Arm(88, 20, 0, 90, palm=40, wrist=-45)),
    Stance(left_arm=Arm(30, -70, 0, 10), right_arm=Arm(30, -70, 0, 10), lean=-8),
    Stance(left_arm=Arm(36, -45, 20, 50), right_arm=Arm(95, 55, 0, 120, hand=POINT), head_roll=10),
    Stance(left_arm=Arm(95, 55, 0, 120, hand=FIST), right_arm=Arm(36, -45, 20, 50), head_roll=-10),
    Stance(left_arm=Arm(60, 70, 40, 75), right_arm=Arm(60, 70, 40, 75), head_pitch=30),
    Stance(left_leg=Leg(85, 8, 8, 40), left_arm=_T, right_arm=_T, lean=10),
    Stance(right_leg=Leg(85, 8, 8, 40), left_arm=_T, right_arm=_T, lean=10),
    Stance(left_leg=Leg(-10, 3, 4, 85), left_arm=_A, right_arm=_FRONT),
    Stance(right_leg=Leg(-10, 3, 4, 85), left_arm=_FRONT, right_arm=_A),
    Stance(left_arm=_UP, right_arm=_UP, left_leg=Leg(0, 16, 8, 3), right_leg=Leg(0, 16, 8, 3), lean=-12),
    Stance(left_arm=_A, right_arm=_A),
)  # fmt: skip
