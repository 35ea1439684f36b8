"""Laws of the edits of whole clouds."""

from __future__ import annotations

import numpy as np
import pytest

from blender_addon.shared.cloud_edits import (
    ColourChange,
    change_colour,
    decimate,
    lower_degree,
    merge_clouds,
    outliers,
    transform_cloud,
)
from blender_addon.shared.gaussians import GaussianCloud, wxyz_product, wxyz_to_matrices
from blender_addon.shared.sh import rotate_sh, rotate_sh_each, sh_basis


def make_cloud(seed: int = 0, count: int = 200, coefficients: int = 15) -> GaussianCloud:
    rng = np.random.default_rng(seed)
    quaternions = rng.normal(size=(count, 4))
    return GaussianCloud(
        rng.normal(size=(count, 3)), np.exp(rng.normal(-3, 0.7, (count, 3))),
        quaternions / np.linalg.norm(quaternions, axis=1, keepdims=True), rng.uniform(0.1, 1, count),
        rng.normal(0, 1, (count, 3)), rng.normal(0, 0.3, (count, coefficients, 3)),
    )  # fmt: skip


def covariances(cloud: GaussianCloud) -> np.ndarray:
    axes = wxyz_to_matrices(cloud.rotations_wxyz.astype(np.float64)) * cloud.scales_m[:, None, :]
    return axes @ np.swapaxes(axes, 1, 2)


def colours_towards(cloud: GaussianCloud, directions: np.ndarray) -> np.ndarray:
    basis = sh_basis(directions, cloud.degree)
    return np.einsum("nk,nkc->nc", basis, np.concatenate([cloud.sh_dc[:, None], cloud.sh_rest], axis=1)) + 0.5


MATRICES = {
    "turn and scale": np.array([[0, -2, 0, 1], [2, 0, 0, 2], [0, 0, 2, 3], [0, 0, 0, 1.0]]),
    "mirror": np.diag([-1.0, 1, 1, 1]),
    "stretch": np.diag([1.0, 3, 0.5, 1]),
    "shear": np.array([[1, 0.7, 0, 0], [0, 1, 0, 0], [0.2, 0, 1, 5], [0, 0, 0, 1.0]]),
}


@pytest.mark.parametrize("matrix", MATRICES.values(), ids=MATRICES.keys())
def test_a_transform_moves_every_ellipsoid_as_its_points(matrix: np.ndarray) -> None:
    cloud = make_cloud()
    moved = transform_cloud(cloud, matrix)
    linear = matrix[:3, :3]
    np.testing.assert_allclose(moved.positions_m, cloud.positions_m @ linear.T + matrix[:3, 3], atol=1e-5)
    expected = linear @ covariances(cloud) @ linear.T
    np.testing.assert_allclose(covariances(moved), expected, rtol=1e-3, atol=1e-6)
    back = transform_cloud(moved, np.linalg.inv(matrix))
    np.testing.assert_allclose(covariances(back), covariances(cloud), rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(back.sh_rest, cloud.sh_rest, atol=1e-5)


@pytest.mark.parametrize("name", ["turn and scale", "mirror"])
def test_a_transform_turns_the_colours_with_it(name: str) -> None:
    cloud, matrix = make_cloud(coefficients=24), MATRICES[name]
    directions = np.random.default_rng(1).normal(size=(len(cloud), 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    turned = directions @ matrix[:3, :3].T
    turned /= np.linalg.norm(turned, axis=1, keepdims=True)
    seen = colours_towards(transform_cloud(cloud, matrix), turned)
    np.testing.assert_allclose(seen, colours_towards(cloud, directions), atol=1e-5)


@pytest.mark.parametrize("coefficients", [3, 8, 15, 24])
def test_every_gaussian_turns_its_colours_by_a_rotation_of_its_own(coefficients: int) -> None:
    rest = make_cloud(coefficients=coefficients).sh_rest
    rng = np.random.default_rng(3)
    turns = rng.normal(size=(2, len(rest), 4))
    turns /= np.linalg.norm(turns, axis=2, keepdims=True)
    one_by_one = [rotate_sh(rest[k : k + 1], wxyz_to_matrices(turns[0, k]))[0] for k in range(len(rest))]
    turned = rotate_sh_each(rest, turns[0])
    np.testing.assert_allclose(turned, one_by_one, atol=1e-5)
    # The laws of a group: two turns are their product, the inverse leads back, the identity and its negative keep.
    twice = rotate_sh_each(turned, turns[1])
    np.testing.assert_allclose(twice, rotate_sh_each(rest, wxyz_product(turns[1], turns[0])), atol=1e-5)
    np.testing.assert_allclose(rotate_sh_each(turned, turns[0] * [1, -1, -1, -1]), rest, atol=1e-5)
    np.testing.assert_allclose(rotate_sh_each(rest, np.tile([-1.0, 0, 0, 0], (len(rest), 1))), rest, atol=1e-5)


def test_nothing_to_turn_is_nothing() -> None:
    assert rotate_sh_each(np.zeros((5, 0, 3), np.float32), np.ones((5, 4))).shape == (5, 0, 3)
    assert rotate_sh_each(np.zeros((0, 8, 3), np.float32), np.ones((0, 4))).shape == (0, 8, 3)


def test_white_balance_and_exposure_are_a_photographers() -> None:
    neutral = ColourChange.of_photo()
    np.testing.assert_allclose(neutral.matrix()[0], np.eye(3), atol=1e-12)
    grey = np.full(3, 0.4)
    warm = ColourChange.of_photo(warmth=1.0).matrix()[0] @ grey
    assert warm[0] > warm[1] > warm[2]
    assert warm @ [0.2126, 0.7152, 0.0722] == pytest.approx(0.4)
    green = ColourChange.of_photo(magenta=-1.0).matrix()[0] @ grey
    assert green[1] > max(green[0], green[2])
    # Two stops are four times the light.
    bright = ColourChange.of_photo(exposure=2.0).matrix()[0] @ grey
    np.testing.assert_allclose(bright**2.2, 4 * grey**2.2, rtol=1e-9)


def test_a_flat_transform_is_refused() -> None:
    with pytest.raises(ValueError, match="flattens"):
        transform_cloud(make_cloud(), np.diag([1.0, 0, 1, 1]))


def test_a_change_of_colour_is_the_same_from_everywhere() -> None:
    cloud = make_cloud()
    change = ColourChange(brightness=1.3, contrast=0.8, saturation=0.5, tint=(1.0, 0.9, 0.7))
    matrix, offset = change.matrix()
    directions = np.random.default_rng(2).normal(size=(len(cloud), 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    expected = colours_towards(cloud, directions) @ matrix.T + offset
    np.testing.assert_allclose(colours_towards(change_colour(cloud, change), directions), expected, atol=1e-5)
    grey = change_colour(cloud, ColourChange(saturation=0.0))
    assert np.ptp(grey.sh_dc, axis=1).max() < 1e-5
    np.testing.assert_allclose(change_colour(cloud, ColourChange()).sh_dc, cloud.sh_dc, atol=1e-6)


def test_merged_clouds_hold_every_gaussian() -> None:
    first, second = make_cloud(0, 30, 15), make_cloud(1, 50, 3)
    both = merge_clouds([first, second])
    assert len(both) == 80 and both.degree == 3
    np.testing.assert_array_equal(both.select(np.arange(30)).sh_rest, first.sh_rest)
    np.testing.assert_array_equal(both.sh_rest[30:, :3], second.sh_rest)
    assert not both.sh_rest[30:, 3:].any()
    assert lower_degree(both, 1).degree == 1


def test_outliers_are_the_far_the_huge_and_the_invisible() -> None:
    cloud = make_cloud(count=500)
    positions, scales, opacities = (np.array(a) for a in (cloud.positions_m, cloud.scales_m, cloud.opacities))
    positions[3], scales[40, 1], opacities[77] = [500, 0, 0], 20.0, 0.001
    spoiled = GaussianCloud(positions, scales, cloud.rotations_wxyz, opacities, cloud.sh_dc, cloud.sh_rest)
    assert np.flatnonzero(outliers(spoiled)).tolist() == [3, 40, 77]
    assert not outliers(cloud).any()


@pytest.mark.parametrize("budget", [1, 7, 300, 1999, 5000])
def test_thinning_never_exceeds_the_budget_and_keeps_the_whole(budget: int) -> None:
    cloud = make_cloud(count=2000)
    thin = decimate(cloud, budget)
    assert 1 <= len(thin) <= budget
    if budget >= len(cloud):
        assert thin is cloud
    if budget >= 7:
        assert len(thin) > 0.3 * min(budget, len(cloud)), "far fewer than were allowed"

    def weights(c: GaussianCloud) -> np.ndarray:
        ordered = np.sort(c.scales_m, axis=1)
        return c.opacities * ordered[:, 1] * ordered[:, 2]

    # Merging keeps the centre and the spread of a single cell exactly.
    if budget == 1:
        w = weights(cloud) / weights(cloud).sum()
        centre = w @ cloud.positions_m
        offsets = cloud.positions_m - centre
        spread = np.einsum("n,nij->ij", w, covariances(cloud)) + (w[:, None] * offsets).T @ offsets
        np.testing.assert_allclose(thin.positions_m[0], centre, atol=1e-4)
        np.testing.assert_allclose(covariances(thin)[0], spread, rtol=1e-3, atol=1e-4)
    with pytest.raises(ValueError, match="budget"):
        decimate(cloud, 0)
