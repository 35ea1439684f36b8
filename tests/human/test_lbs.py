"""Skinning: laws of rigid motion, twist helpers, the inverse, gradients, and a plain numpy reference."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from backend.human import lbs
from backend.human.model import BodyModel, load_default_body
from blender_addon.shared.skeleton import JOINT_NAMES, PARENTS


@pytest.fixture(scope="module")
def body() -> BodyModel:
    return load_default_body()


def random_pose(seed: int, size: float = 0.5) -> np.ndarray:
    return size * np.random.default_rng(seed).standard_normal((55, 3))


def reference_transforms(joints: np.ndarray, pose: np.ndarray) -> np.ndarray:
    """4 x 4 matrices multiplied down the tree, with scipy's rotations."""
    world = np.zeros((55, 4, 4))
    for j, parent in enumerate(PARENTS):
        local = np.eye(4)
        local[:3, :3] = Rotation.from_rotvec(pose[j]).as_matrix()
        local[:3, 3] = joints[j] - (joints[parent] if parent >= 0 else 0.0)
        world[j] = world[parent] @ local if parent >= 0 else local
    for j in range(55):
        back = np.eye(4)
        back[:3, 3] = -joints[j]
        world[j] = world[j] @ back
    return world


@pytest.mark.parametrize("twist", [False, True])
def test_rest_pose_is_the_identity(body: BodyModel, twist: bool) -> None:
    vertices, joints = body.rest(np.ones(20))
    weights = body.twist.skin_weights if twist else body.skin_weights
    transforms = lbs.vertex_transforms(joints, np.zeros((55, 3)), weights, twist=body.twist if twist else None)
    assert np.abs(lbs.apply_transforms(transforms, vertices) - vertices).max() < 1e-6


def test_skinning_equals_plain_matrices(body: BodyModel) -> None:
    vertices, joints = (array.astype(np.float64) for array in body.rest(np.linspace(-1, 1, 20)))
    pose = random_pose(3)
    matrices = np.einsum("vj,jab->vab", body.skin_weights.astype(np.float64), reference_transforms(joints, pose))
    expected = np.einsum("vab,vb->va", matrices, np.c_[vertices, np.ones(len(vertices))])[:, :3] + [0.1, 0.2, 0.3]
    tensors = [
        torch.tensor(x, dtype=torch.float64) for x in (vertices, joints, pose, body.skin_weights, [0.1, 0.2, 0.3])
    ]
    assert np.abs(lbs.skin(*tensors).numpy() - expected).max() < 1e-10


def test_joints_follow_their_parents(body: BodyModel) -> None:
    _, joints = body.rest(np.zeros(20))
    pose = random_pose(5)
    rotations, positions = lbs.joint_transforms(torch.tensor(joints, dtype=torch.float64), torch.tensor(pose))
    world = reference_transforms(joints.astype(np.float64), pose)
    expected = np.einsum("jab,jb->ja", world[:, :3, :3], joints) + world[:, :3, 3]
    assert np.abs(positions.numpy() - expected).max() < 1e-6
    assert np.abs(rotations.numpy() - world[:, :3, :3]).max() < 1e-10


def test_turning_the_root_turns_everything(body: BodyModel) -> None:
    """A root rotation equals turning the posed body about the pelvis, twist helpers included."""
    vertices, joints = body.rest(np.zeros(20))
    pose = random_pose(1)
    pose[0] = 0.0
    turned = pose.copy()
    turned[0] = [0.3, -1.1, 0.7]
    weights, twist = body.twist.skin_weights, body.twist
    before = lbs.apply_transforms(lbs.vertex_transforms(joints, pose, weights, twist=twist), vertices)
    after = lbs.apply_transforms(lbs.vertex_transforms(joints, turned, weights, twist=twist), vertices)
    rotation = Rotation.from_rotvec(turned[0]).as_matrix()
    assert np.abs((before - joints[0]) @ rotation.T + joints[0] - after).max() < 1e-6


def test_inverse_undoes_forward(body: BodyModel) -> None:
    vertices, joints = body.rest(np.zeros(20))
    transforms = lbs.vertex_transforms(
        joints, random_pose(7, 0.3), body.twist.skin_weights, np.array([1, 2, 3.0]), body.twist
    )
    posed = lbs.apply_transforms(transforms, vertices)
    assert np.abs(posed - vertices).max() > 0.5
    assert np.abs(lbs.undo_transforms(transforms, posed) - vertices).max() < 1e-6


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("degrees", [90.0, -90.0])
def test_wrist_roll_turns_the_middle_of_the_forearm_by_half(body: BodyModel, side: str, degrees: float) -> None:
    """A ring of vertices halfway along the forearm turns by 45 degrees when the hand rolls by 90."""
    vertices, joints = body.rest(np.zeros(20))
    elbow, wrist = JOINT_NAMES.index(f"{side}_elbow"), JOINT_NAMES.index(f"{side}_wrist")
    axis = joints[wrist] - joints[elbow]
    along = (vertices - joints[elbow]) @ axis / (axis @ axis)
    ring = (np.abs(along - 0.55) < 0.05) & (body.skin_weights[:, elbow] > 0.99)
    assert ring.sum() > 8
    pose = np.zeros((55, 3))
    unit = axis / np.linalg.norm(axis)
    pose[wrist] = np.radians(degrees) * unit
    posed = lbs.apply_transforms(
        lbs.vertex_transforms(joints, pose, body.twist.skin_weights, twist=body.twist), vertices
    )
    before, after = (
        (points[ring] - joints[elbow]) @ (np.eye(3) - np.outer(unit, unit)) for points in (vertices, posed)
    )
    angle = np.degrees(np.arctan2(np.cross(before, after) @ unit, (before * after).sum(1)))
    assert np.abs(angle - 0.5 * degrees).max() < 1.0
    still = (along > -0.05) & (along < 0.05) & (body.skin_weights[:, elbow] > 0.3)
    assert np.abs(posed[still] - vertices[still]).max() < 1e-5


def test_upper_arm_helper_undoes_half_of_a_shoulder_roll(body: BodyModel) -> None:
    """Where the helper has all weight the skin turns by 45 degrees, beyond the middle by the full 90."""
    _, joints = body.rest(np.zeros(20))
    shoulder, elbow = JOINT_NAMES.index("left_shoulder"), JOINT_NAMES.index("left_elbow")
    axis = (joints[elbow] - joints[shoulder]) / np.linalg.norm(joints[elbow] - joints[shoulder])
    pose = torch.zeros(55, 3, dtype=torch.float64)
    pose[shoulder] = torch.tensor(np.radians(90) * axis)
    transforms = lbs.skinning_transforms(torch.tensor(joints, dtype=torch.float64), pose, body.twist).numpy()
    helper = transforms[55 + body.twist.names.index("left_upper_arm_twist"), :, :3]
    assert np.abs(Rotation.from_matrix(helper).as_rotvec() - np.radians(45) * axis).max() < 1e-5
    assert np.abs(Rotation.from_matrix(transforms[elbow, :, :3]).as_rotvec() - np.radians(90) * axis).max() < 1e-5


def test_twist_angle_ignores_swing_and_order() -> None:
    """The twist of swing * twist and of twist * swing about an axis is the twist, for swings at right angles to it."""
    rng = np.random.default_rng(2)
    for _ in range(20):
        axis = rng.standard_normal(3)
        axis /= np.linalg.norm(axis)
        swing_axis = np.cross(axis, rng.standard_normal(3))
        swing = Rotation.from_rotvec(rng.uniform(-1.5, 1.5) * swing_axis / np.linalg.norm(swing_axis))
        angle = rng.uniform(-3.0, 3.0)
        twist = Rotation.from_rotvec(angle * axis)
        for whole in (swing * twist, twist * swing):
            found = lbs.twist_angles(torch.tensor(whole.as_rotvec())[None], torch.tensor(axis)[None])
            assert abs(float(found[0]) - angle) < 1e-9


def test_gradients(body: BodyModel) -> None:
    """Analytic gradients of the posed vertices equal finite differences, at the rest pose and away from it."""
    vertices, joints = body.rest(np.zeros(20))
    some = np.linspace(0, len(vertices) - 1, 5).astype(int)
    weights = torch.tensor(body.twist.skin_weights[some], dtype=torch.float64)
    points = torch.tensor(vertices[some], dtype=torch.float64, requires_grad=True)
    rest = torch.tensor(joints, dtype=torch.float64, requires_grad=True)
    for pose in (np.zeros((55, 3)), random_pose(4)):
        pose = torch.tensor(pose, requires_grad=True)
        assert torch.autograd.gradcheck(
            lambda v, j, p: lbs.skin(v, j, p, weights, twist=body.twist), (points, rest, pose), fast_mode=True
        )
    zero = torch.zeros(1, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lbs.rotation_matrices, (zero,))


def test_wrong_weights_are_refused(body: BodyModel) -> None:
    _, joints = body.rest(np.zeros(20))
    with pytest.raises(ValueError, match="59 columns"):
        lbs.vertex_transforms(joints, np.zeros((55, 3)), body.twist.skin_weights)
