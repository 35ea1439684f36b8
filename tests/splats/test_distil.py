"""Controls in place of a network: exact where it is linear and low-rank, honest about both errors where it is not."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from backend.human.lbs import rotation_matrices
from backend.splats.distil import Distilled, distil, errors, limbs_of, regions_of
from backend.splats.pose_deformation import BODY_JOINTS, joint_mask, pose_code
from blender_addon.shared.controls import pack_controls
from blender_addon.shared.skeleton import JOINT_NAMES, axis_angle_to_matrices

COUNT = 60
ARM, LEG = JOINT_NAMES.index("left_elbow"), JOINT_NAMES.index("right_knee")


def poses(count: int, seed: int) -> np.ndarray:
    """[P, 55, 3] axis-angle."""
    made = np.zeros((count, 55, 3))
    made[:, 1:22] = np.random.default_rng(seed).normal(0, 0.4, (count, 21, 3))
    return made


def codes_of(given: np.ndarray) -> np.ndarray:
    return np.stack([pose_code(rotation_matrices(torch.as_tensor(pose))).numpy() for pose in given])


def skin_weights() -> np.ndarray:
    """Half of the Gaussians on an arm, half on a leg."""
    weights = np.zeros((COUNT, 55))
    weights[: COUNT // 2, ARM] = weights[COUNT // 2 :, LEG] = 1
    return weights


def linear_network(codes: np.ndarray, rank: int, seed: int = 0) -> np.ndarray:
    """Displacements [P, N, 3], of `rank` in each half, that obey the mask of joints."""
    rng = np.random.default_rng(seed)
    listens = joint_mask(skin_weights())
    made = np.zeros((len(codes), COUNT, 3))
    for half in (slice(0, COUNT // 2), slice(COUNT // 2, COUNT)):
        mask = listens[half][0][:, None]
        for _ in range(rank):
            weights, delta = rng.normal(size=(21, 6)) * mask, 0.01 * rng.normal(size=(COUNT // 2, 3))
            made[:, half] += np.einsum("pjk,jk->p", codes, weights)[:, None, None] * delta
    return made


def fit(rank: int, controls: int, rest: float = 0.0, bend: float = 0.0) -> tuple[Distilled, np.ndarray, np.ndarray]:
    """Distilled on 300 poses; displacements and codes of 80 others."""

    def network(codes: np.ndarray) -> np.ndarray:
        value = linear_network(codes, rank)
        return value + bend * value**2 / 0.05 + rest

    train, test = codes_of(poses(300, 1)), codes_of(poses(80, 2))
    weights = skin_weights()
    regions = regions_of(weights, joint_mask(weights))
    return distil(network(train), train, np.full((COUNT, 3), rest), regions, controls), network(test), test


def test_what_is_linear_and_of_low_rank_is_found_exactly() -> None:
    distilled, wanted, codes = fit(rank=3, controls=6)
    found = errors(distilled, wanted, codes)
    assert len(distilled.codes) == 6 and sorted(distilled.owners) == [0, 0, 0, 1, 1, 1]
    assert found.truncation < 0.01 and found.total < 0.02


def test_more_controls_truncate_less_and_the_two_errors_add_up() -> None:
    before = None
    for controls in (2, 4, 8):
        distilled, wanted, codes = fit(rank=6, controls=controls)
        found = errors(distilled, wanted, codes)
        assert found.total**2 == pytest.approx(found.truncation**2 + found.coefficients**2, rel=1e-6)
        assert before is None or found.truncation < before
        before = found.truncation


def test_what_is_not_linear_in_the_pose_counts_as_an_error_of_the_coefficients() -> None:
    straight, bent = (errors(*fit(rank=1, controls=40, bend=bend)) for bend in (0.0, 0.5))
    assert straight.coefficients < 0.02 < bent.coefficients


def test_the_rest_pose_is_what_it_was() -> None:
    distilled, _, _ = fit(rank=2, controls=4, rest=0.02)
    np.testing.assert_allclose(distilled.displacements(np.zeros((1, 21, 6)))[0], 0.02, atol=1e-9)


def test_a_region_listens_to_near_joints_only() -> None:
    distilled, _, _ = fit(rank=2, controls=4)
    heard = [{JOINT_NAMES[BODY_JOINTS[k]] for k in np.flatnonzero(codes.any(1))} for codes in distilled.codes]
    for owner, names in zip(distilled.owners, heard, strict=True):
        far = "right_ankle" if distilled.regions[owner].name == "left elbow" else "left_wrist"
        assert names and far not in names


def test_blender_reads_the_same_weights() -> None:
    distilled, _, _ = fit(rank=3, controls=5)
    packed = pack_controls(distilled.controls())
    given = poses(3, 7)
    for pose, codes in zip(given, codes_of(given), strict=True):
        weights = packed.pose_coefficients(axis_angle_to_matrices(pose))
        moved = packed.bases["position"].weighted(weights, COUNT)
        np.testing.assert_allclose(moved, distilled.displacements(codes[None])[0], atol=1e-3)


def test_too_few_poses_are_refused() -> None:
    codes = codes_of(poses(3, 1))
    with pytest.raises(ValueError, match="4 controls cannot be learned from 3 poses"):
        distil(np.zeros((3, COUNT, 3)), codes, np.zeros((COUNT, 3)), (), 4)


def test_joined_to_limbs_every_gaussian_is_still_in_one_region_and_few_controls_show_more() -> None:
    rng = np.random.default_rng(4)
    weights = np.zeros((COUNT, 55))
    weights[np.arange(COUNT), rng.choice([*range(22)], COUNT)] = 1
    listens = joint_mask(weights)
    fine = regions_of(weights, listens)
    limbs = limbs_of(fine)
    assert len(limbs) == 5 < len(fine)
    np.testing.assert_array_equal(np.sort(np.concatenate([limb.members for limb in limbs])), np.arange(COUNT))
    codes = codes_of(poses(200, 1))
    along = np.einsum("pjk,jk,nj->pn", codes, rng.normal(size=(21, 6)), listens)[..., None] * rng.normal(
        size=(COUNT, 3)
    )
    few = [errors(distil(along, codes, np.zeros((COUNT, 3)), r, 8), along, codes).truncation for r in (fine, limbs)]
    assert few[1] < few[0]
