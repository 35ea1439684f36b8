"""The training motions: within what joints can do, on the floor, clear of themselves, and covering how people move."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pytest
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

from backend.human.model import BodyModel, load_default_body
from backend.human.pose_tracks import LIMITS_DEG, PoseSequence, training_motions
from backend.human.posing import pose_proxy
from backend.human.stances import Arm, Leg, Stance, stance_pose
from blender_addon.shared.skeleton import FACIAL_ACTIONS, JOINT_NAMES

HANDS = tuple(name for name in JOINT_NAMES if name[:-1].endswith(("index", "middle", "ring", "pinky", "thumb")))


@lru_cache(maxsize=1)
def body() -> BodyModel:
    return load_default_body()


@lru_cache(maxsize=1)
def motions() -> tuple[PoseSequence, PoseSequence]:
    return training_motions(body().rest(np.zeros(20))[1])


def posed(motion: PoseSequence, frame: int) -> np.ndarray:
    """Vertices [V, 3] of the default body in a frame."""
    vertices, joints = body().rest(np.zeros(20))
    pose, shift = motion.poses[frame].astype(np.float64), motion.pelvis_m[frame] - joints[0]
    return pose_proxy(body(), vertices, joints, pose, shift)


def limbs(*names: str) -> np.ndarray:
    """Outer vertices [V] whose first joint is one of these."""
    wanted = [JOINT_NAMES.index(name) for name in names]
    return np.isin(body().skin_weights.argmax(1), wanted) & body().outer


def test_about_nine_hundred_frames_start_and_end_alike() -> None:
    assert 800 <= sum(len(motion) for motion in motions()) <= 1000
    for motion in motions():
        assert motion.poses.shape == (len(motion), 55, 3) and motion.pelvis_m.shape == (len(motion), 3)
        assert motion.actions.shape == (len(motion), len(FACIAL_ACTIONS))
        assert 0 <= motion.actions.min() and motion.actions.max() <= 1


@pytest.mark.parametrize("number", [0, 1])
def test_no_joint_turns_further_than_a_joint_can(number: int) -> None:
    turned = np.degrees(np.linalg.norm(motions()[number].poses, axis=-1)).max(0)
    for joint, name in enumerate(JOINT_NAMES):
        limit = next(value for key, value in LIMITS_DEG.items() if name == key or name.endswith(f"_{key}"))
        assert turned[joint] <= limit, f"{name} turns {turned[joint]:.0f} degrees"


@pytest.mark.parametrize("number", [0, 1])
def test_motion_is_smooth(number: int) -> None:
    motion = motions()[number]
    first, second = (Rotation.from_rotvec(part.reshape(-1, 3)) for part in (motion.poses[:-1], motion.poses[1:]))
    assert np.degrees((first.inv() * second).magnitude()).max() < 20
    assert np.linalg.norm(np.diff(motion.pelvis_m, axis=0), axis=1).max() < 0.12


@pytest.mark.parametrize("number", [0, 1])
def test_the_person_stands_on_the_floor_before_the_camera(number: int) -> None:
    motion = motions()[number]
    lowest = [posed(motion, frame)[:, 1].min() for frame in range(0, len(motion), 9)]
    assert np.abs(lowest).max() < 0.025
    assert np.abs(motion.pelvis_m[:, [0, 2]]).max() < 0.75


@pytest.mark.parametrize("number", [0, 1])
def test_no_limb_enters_another(number: int) -> None:
    hands = {side: [name for name in HANDS if name.startswith(side)] for side in ("left", "right")}
    arms = {side: limbs(f"{side}_elbow", f"{side}_wrist", *hands[side]) for side in ("left", "right")}
    shins = {side: limbs(f"{side}_knee", f"{side}_ankle", f"{side}_foot") for side in ("left", "right")}
    trunk = limbs("pelvis", "spine1", "spine2", "spine3", "neck", "head", "jaw", *(f"{s}_hip" for s in shins),
                  *(f"{s}_knee" for s in shins))  # fmt: skip
    pairs = [(arms["left"], trunk), (arms["right"], trunk), (arms["left"], arms["right"]), tuple(shins.values())]
    for frame in range(0, len(motions()[number]), 11):
        vertices = posed(motions()[number], frame)
        normals = _normals(vertices)
        for moving, standing in pairs:
            distance, nearest = cKDTree(vertices[standing]).query(vertices[moving])
            height = ((vertices[moving] - vertices[standing][nearest]) * normals[standing][nearest]).sum(1)
            assert height[distance < 0.08].min(initial=0) > -0.015, f"frame {frame}"


def test_the_pose_space_is_covered() -> None:
    poses = np.concatenate([motion.poses for motion in motions()])
    yaw = Rotation.from_rotvec(poses[:, 0]).apply([0.0, 0.0, 1.0])
    assert np.ptp(np.unwrap(np.arctan2(yaw[:, 0], yaw[:, 2]))) > np.radians(330)  # every side is seen
    for side in ("left", "right"):
        aim = _limb_directions(poses, f"{side}_shoulder", f"{side}_elbow")
        for direction in _sphere(200):
            outwards = direction[0] * (1 if side == "left" else -1)
            if outwards > -0.2 and direction[2] > -0.5:  # where an upper arm can point
                assert (aim @ direction).max() > np.cos(np.radians(42)), (side, direction)
        knee = np.degrees(np.linalg.norm(poses[:, JOINT_NAMES.index(f"{side}_knee")], axis=1))
        elbow = np.degrees(np.linalg.norm(poses[:, JOINT_NAMES.index(f"{side}_elbow")], axis=1))
        assert knee.max() > 100 and elbow.max() > 110 and min(knee.min(), elbow.min()) < 8
    used = np.concatenate([motion.actions for motion in motions()]).max(0)
    assert (used > 0.3).sum() > 25


def test_stances_say_what_their_words_mean() -> None:
    hanging = _limb_directions(stance_pose(Stance(left_arm=Arm(0, 0)))[None], "left_shoulder", "left_elbow")[0]
    level = _limb_directions(stance_pose(Stance(lean=0, left_arm=Arm(90, 0)))[None], "left_shoulder", "left_elbow")[0]
    forward = _limb_directions(stance_pose(Stance(lean=0, left_arm=Arm(90, 90)))[None], "left_shoulder", "left_elbow")
    thigh = _limb_directions(stance_pose(Stance(bow=30, left_leg=Leg(90)))[None], "left_hip", "left_knee")[0]
    assert hanging[1] < -0.97 and level[0] > 0.97 and forward[0][2] > 0.97 and thigh[2] > 0.95
    mirrored = stance_pose(Stance(left_arm=Arm(50, 40, 10, 60), right_arm=Arm(50, 40, 10, 60)))
    left, right = (mirrored[JOINT_NAMES.index(f"{side}_shoulder")] for side in ("left", "right"))
    np.testing.assert_allclose(right, left * [1, -1, -1], atol=1e-9)


def _limb_directions(poses: np.ndarray, first: str, second: str) -> np.ndarray:
    """Directions [F, 3] from one joint to another, relative to the pelvis' turn."""
    from backend.human.pose_tracks import PARENTS

    joints = body().rest(np.zeros(20))[1]
    start, end = JOINT_NAMES.index(first), JOINT_NAMES.index(second)
    chain = [start]
    while PARENTS[chain[-1]] > 0:
        chain.append(int(PARENTS[chain[-1]]))
    turn = Rotation.identity(len(poses))
    for joint in reversed(chain):
        turn = turn * Rotation.from_rotvec(poses[:, joint])
    if "hip" in first:
        turn = Rotation.from_rotvec(poses[:, 0]) * turn
    rest = joints[end] - joints[start]
    return turn.apply(rest / np.linalg.norm(rest))


def _sphere(count: int) -> np.ndarray:
    k = np.arange(count) + 0.5
    height, turn = 1 - 2 * k / count, np.pi * (1 + 5**0.5) * k
    radius = np.sqrt(1 - height**2)
    return np.stack([radius * np.cos(turn), height, radius * np.sin(turn)], 1)


def _normals(vertices: np.ndarray) -> np.ndarray:
    triangles = body().triangles
    a, b, c = (vertices[triangles[:, k]] for k in range(3))
    face = np.cross(b - a, c - a)
    normals = np.zeros_like(vertices)
    for k in range(3):
        np.add.at(normals, triangles[:, k], face)
    return normals / (np.linalg.norm(normals, axis=1, keepdims=True) + 1e-12)
