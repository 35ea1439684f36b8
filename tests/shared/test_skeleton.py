"""The skeleton: names, mirrored bone axes, and the rotation conversion."""

from __future__ import annotations

import numpy as np
import pytest

from blender_addon.shared.skeleton import (
    BONE_NAMES,
    FACIAL_ACTIONS,
    JOINT_NAMES,
    PARENTS,
    axis_angle_to_matrices,
    bone_rest,
    from_bone_rotation,
    to_bone_rotation,
)
from tests.shared.test_gaussians import random_rotations

MIRROR = np.diag([-1.0, 1.0, 1.0])


def symmetric_joints() -> np.ndarray:
    """A made-up mirror-symmetric rest pose with arms along x, fingers spread a little."""
    joints = np.zeros((55, 3))
    rng = np.random.default_rng(0)
    for j, name in enumerate(JOINT_NAMES):
        if name.startswith("right_"):
            continue
        step = rng.normal(size=3) * 0.05 + {"left": [0.1, 0, 0]}.get(name.split("_")[0], [0, 0.1, 0])
        step = np.array([0.06, -0.4, 0.01]) if name in ("left_hip", "left_knee", "left_ankle") else step
        step = np.array([0.01, -0.05, 0.15]) if name == "left_foot" else step
        if not name.startswith("left_"):
            step[0] = 0
        joints[j] = joints[PARENTS[j]] + step if PARENTS[j] >= 0 else [0, 0.9, 0]
    for j, name in enumerate(JOINT_NAMES):
        if name.startswith("right_"):
            joints[j] = MIRROR @ joints[JOINT_NAMES.index("left_" + name[6:])]
    return joints


def test_names_are_complete_and_parents_come_first() -> None:
    assert len(set(JOINT_NAMES)) == len(set(BONE_NAMES)) == len(PARENTS) == 55
    assert len(set(FACIAL_ACTIONS)) == 52
    assert list(FACIAL_ACTIONS) == sorted(FACIAL_ACTIONS)
    assert all(PARENTS[j] < j for j in range(55))
    assert {n[:-2] for n in BONE_NAMES if n.endswith(".L")} == {n[:-2] for n in BONE_NAMES if n.endswith(".R")}


def test_bone_axes_are_rotations_along_the_bone_and_mirrored() -> None:
    rest = bone_rest(symmetric_joints())
    np.testing.assert_allclose(np.linalg.det(rest.matrices), 1, atol=1e-9)
    along = rest.tails_m - rest.heads_m
    np.testing.assert_allclose(rest.matrices[:, :, 1], along / np.linalg.norm(along, axis=1, keepdims=True), atol=1e-12)
    for j, name in enumerate(JOINT_NAMES):
        if not name.startswith("left_"):
            continue
        k = JOINT_NAMES.index("right_" + name[5:])
        np.testing.assert_allclose(rest.matrices[k], MIRROR @ rest.matrices[j] @ np.diag([-1.0, 1, 1]), atol=1e-12)


def test_a_mirrored_pose_has_mirrored_local_quaternion_signs() -> None:
    """What Blender's mirror pose does: local x stays, local y and z change sign."""
    rest = bone_rest(symmetric_joints())
    left, right = JOINT_NAMES.index("left_elbow"), JOINT_NAMES.index("right_elbow")
    for rotation in random_rotations(20, 4):
        local = to_bone_rotation(rotation, rest.matrices[left])
        mirrored = to_bone_rotation(MIRROR @ rotation @ MIRROR, rest.matrices[right])
        flip = np.diag([-1.0, 1, 1])
        np.testing.assert_allclose(mirrored, flip @ local @ flip, atol=1e-12)


def test_bone_rotation_round_trip() -> None:
    rest = bone_rest(symmetric_joints())
    rotations = random_rotations(55, 6)
    np.testing.assert_allclose(
        from_bone_rotation(to_bone_rotation(rotations, rest.matrices), rest.matrices), rotations, atol=1e-12
    )


def test_axis_angle() -> None:
    np.testing.assert_allclose(axis_angle_to_matrices(np.zeros((2, 3))), np.tile(np.eye(3), (2, 1, 1)))
    quarter = axis_angle_to_matrices(np.array([0, 0, np.pi / 2]))
    np.testing.assert_allclose(quarter @ [1, 0, 0], [0, 1, 0], atol=1e-12)


def test_wrong_joints_are_refused() -> None:
    with pytest.raises(ValueError, match="expected"):
        bone_rest(np.zeros((22, 3)))
    with pytest.raises(ValueError, match="no length"):
        bone_rest(np.zeros((55, 3)))
