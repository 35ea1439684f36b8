"""The pose's offsets: nothing at the start, near joints only, and able to learn what a pose does."""

from __future__ import annotations

import numpy as np
import torch

from backend.human.lbs import rotation_matrices
from backend.splats.pose_deformation import BODY_JOINTS, DeformationSettings, PoseDeformation, joint_mask, pose_code
from blender_addon.shared.skeleton import JOINT_NAMES

SMALL = DeformationSettings(plane_size=16, features=8, width=32)
ELBOW = JOINT_NAMES.index("left_elbow")


def one_hot(*names: str) -> np.ndarray:
    weights = np.zeros((len(names), 59))
    weights[np.arange(len(names)), [JOINT_NAMES.index(name) for name in names]] = 1
    return weights


def code(joint: int, degrees: float) -> torch.Tensor:
    pose = torch.zeros(55, 3)
    pose[joint, 1] = np.radians(degrees)
    return pose_code(rotation_matrices(pose))


def test_it_starts_at_zero_and_rest_is_zero() -> None:
    torch.manual_seed(0)
    points, listens = torch.randn(20, 3), torch.ones(20, 21)
    assert PoseDeformation(SMALL)(points, code(ELBOW, 70), listens).abs().max() == 0
    assert code(ELBOW, 0).abs().max() == 0 and code(ELBOW, 70).abs().max() > 0.5


def test_the_root_and_the_fingers_deform_nothing() -> None:
    assert code(0, 90).abs().max() == 0
    assert code(JOINT_NAMES.index("left_index2"), 90).abs().max() == 0


def test_a_point_listens_to_joints_within_four_bones() -> None:
    mask = joint_mask(one_hot("left_wrist", "pelvis", "left_index2"))
    heard = [{JOINT_NAMES[joint] for joint, on in zip(BODY_JOINTS, row, strict=True) if on} for row in mask]
    assert {"left_wrist", "left_elbow", "left_shoulder", "left_collar", "spine3"} == heard[0]
    assert "left_foot" in heard[1] and "left_elbow" not in heard[1] and "spine3" in heard[1]
    assert "left_wrist" in heard[2] and "left_collar" not in heard[2]


def test_a_turn_of_a_far_joint_moves_no_point() -> None:
    torch.manual_seed(0)
    network = PoseDeformation(SMALL)
    torch.nn.init.normal_(network.layers[-1].weight)
    points, listens = torch.randn(2, 3), torch.as_tensor(joint_mask(one_hot("left_wrist", "right_ankle")))
    rest, bent = (network(points, code(ELBOW, degrees), listens) for degrees in (0, 80))
    assert (bent - rest)[0].abs().max() > 1e-4 and (bent - rest)[1].abs().max() == 0


def test_it_learns_an_offset_that_follows_an_elbow() -> None:
    torch.manual_seed(0)
    network = PoseDeformation(SMALL)
    points = torch.rand(64, 3) - 0.5
    listens = torch.ones(64, 21)

    def truth(degrees: float) -> torch.Tensor:
        return 0.02 * np.sin(np.radians(degrees)) * torch.stack([points[:, 1], -points[:, 0], points[:, 2]], 1)

    optimiser = torch.optim.Adam(network.parameters(), 3e-3)
    for step in range(250):
        degrees = (17.0 * step) % 90
        loss = ((network(points, code(ELBOW, degrees), listens) - truth(degrees)) ** 2).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    for degrees in (25.0, 55.0, 80.0):  # among them none that it saw
        error = (network(points, code(ELBOW, degrees), listens) - truth(degrees)).square().mean().sqrt()
        assert error < 0.35 * truth(degrees).square().mean().sqrt()


def test_a_linear_network_is_a_linear_map_of_the_code_and_hears_near_joints_only() -> None:
    torch.manual_seed(0)
    network = PoseDeformation(DeformationSettings(plane_size=16, features=4, width=16, linear=True))
    torch.nn.init.normal_(network.layers[-1].weight)  # type: ignore[arg-type]
    points, listens = torch.rand(30, 3) - 0.5, (torch.rand(30, 21) > 0.5).float()
    first, second, rest = torch.rand(21, 6), torch.rand(21, 6), torch.zeros(21, 6)

    def moved(code: torch.Tensor) -> torch.Tensor:
        return network(points, code, listens) - network(points, rest, listens)

    both = 0.3 * moved(first) + 0.7 * moved(second)
    torch.testing.assert_close(moved(0.3 * first + 0.7 * second), both, atol=1e-6, rtol=1e-4)
    far = rest.clone()
    far[4] = 1.0
    assert (moved(far).norm(dim=1) > 0).eq(listens[:, 4] > 0).all()
