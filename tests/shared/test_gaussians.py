"""Laws of the record, its axes and its spherical harmonics."""

from __future__ import annotations

import numpy as np
import pytest

from blender_addon.shared import axes, sh
from blender_addon.shared.gaussians import (
    SH_REST_COUNTS,
    GaussianCloud,
    matrices_to_wxyz,
    wxyz_product,
    wxyz_to_matrices,
)


def random_rotations(count: int, seed: int = 0) -> np.ndarray:
    q = np.random.default_rng(seed).normal(size=(count, 4))
    return wxyz_to_matrices(q)


def random_cloud(count: int = 50, degree: int = 3, seed: int = 0) -> GaussianCloud:
    rng = np.random.default_rng(seed)
    q = rng.normal(size=(count, 4))
    return GaussianCloud(
        rng.normal(size=(count, 3)),
        rng.uniform(0.001, 0.1, (count, 3)),
        q / np.linalg.norm(q, axis=1, keepdims=True),
        rng.uniform(0.01, 0.99, count),
        rng.normal(size=(count, 3)),
        0.3 * rng.normal(size=(count, SH_REST_COUNTS[degree], 3)),
    )


def radiance(cloud: GaussianCloud, directions: np.ndarray) -> np.ndarray:
    coefficients = np.concatenate([cloud.sh_dc[:, None], cloud.sh_rest], axis=1)
    return np.einsum("mk,nkc->nmc", sh.sh_basis(directions, cloud.degree), coefficients)


def unit_directions(count: int) -> np.ndarray:
    d = np.random.default_rng(5).normal(size=(count, 3))
    return d / np.linalg.norm(d, axis=1, keepdims=True)


def test_matrix_and_quaternion_are_inverse_also_at_half_turns() -> None:
    half_turns = np.stack([np.diag(d) for d in ([1.0, -1, -1], [-1.0, 1, -1], [-1.0, -1, 1])])
    for matrices in (random_rotations(500), half_turns, np.eye(3)[None]):
        np.testing.assert_allclose(wxyz_to_matrices(matrices_to_wxyz(matrices)), matrices, atol=1e-12)


def test_quaternion_product_is_the_matrix_product() -> None:
    a, b = random_rotations(100, 1), random_rotations(100, 2)
    product = wxyz_to_matrices(wxyz_product(matrices_to_wxyz(a), matrices_to_wxyz(b)))
    np.testing.assert_allclose(product, a @ b, atol=1e-12)


@pytest.mark.parametrize("degree", [1, 2, 3, 4])
def test_the_basis_is_orthonormal(degree: int) -> None:
    # Gauss-Legendre in z and equal steps around are exact for products of two functions up to degree 4.
    z, weights = np.polynomial.legendre.leggauss(12)
    azimuth = np.arange(24) * 2 * np.pi / 24
    zz, aa = np.meshgrid(z, azimuth, indexing="ij")
    r = np.sqrt(1 - zz**2)
    basis = sh.sh_basis(np.stack([r * np.cos(aa), r * np.sin(aa), zz], axis=-1).reshape(-1, 3), degree)
    w = np.repeat(weights, 24) * 2 * np.pi / 24
    np.testing.assert_allclose(basis.T @ (w[:, None] * basis), np.eye(basis.shape[1]), atol=1e-9)


@pytest.mark.parametrize("degree", [1, 2, 3, 4])
def test_sh_rotation_obeys_the_group_laws(degree: int) -> None:
    a, b = random_rotations(2, 3)
    matrix = lambda r: sh.sh_rotation_matrix(r, degree)  # noqa: E731
    np.testing.assert_allclose(matrix(np.eye(3)), np.eye(SH_REST_COUNTS[degree]), atol=1e-10)
    np.testing.assert_allclose(matrix(a @ b), matrix(a) @ matrix(b), atol=1e-10)
    np.testing.assert_allclose(matrix(a.T) @ matrix(a), np.eye(SH_REST_COUNTS[degree]), atol=1e-10)


@pytest.mark.parametrize("degree", [0, 1, 2, 3, 4])
def test_a_rotated_cloud_shows_the_same_colour_to_a_rotated_viewer(degree: int) -> None:
    cloud, rotation = random_cloud(degree=degree), random_rotations(1, 7)[0]
    directions = unit_directions(40)
    rotated = axes.rotate_cloud(cloud, rotation)
    np.testing.assert_allclose(radiance(rotated, directions @ rotation.T), radiance(cloud, directions), atol=2e-5)
    np.testing.assert_allclose(rotated.positions_m, cloud.positions_m @ rotation.T, atol=1e-5)


def test_axes_round_trips_and_meaning() -> None:
    cloud = random_cloud()
    for there, back in (
        (axes.body_to_blender_cloud, axes.blender_to_body_cloud),
        (axes.y_down_to_body_cloud, axes.y_down_to_body_cloud),
    ):
        again = back(there(cloud))
        np.testing.assert_allclose(again.positions_m, cloud.positions_m, atol=1e-6)
        np.testing.assert_allclose(again.sh_rest, cloud.sh_rest, atol=1e-5)
        np.testing.assert_allclose(
            wxyz_to_matrices(again.rotations_wxyz), wxyz_to_matrices(cloud.rotations_wxyz), atol=1e-5
        )
    up_and_front = axes.body_to_blender_points(np.array([[0.0, 1, 0], [0, 0, 1], [1, 0, 0]]))
    np.testing.assert_array_equal(up_and_front, [[0, 0, 1], [0, -1, 0], [1, 0, 0]])
    np.testing.assert_array_equal(axes.blender_to_body_points(up_and_front), [[0, 1, 0], [0, 0, 1], [1, 0, 0]])


def test_a_reflection_is_no_rotation() -> None:
    with pytest.raises(ValueError, match="proper"):
        axes.rotate_cloud(random_cloud(), np.diag([-1.0, 1, 1]))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("positions_m", np.zeros((3, 2)), "positions_m has shape"),
        ("scales_m", np.zeros((3, 3)), "must be positive"),
        ("rotations_wxyz", np.ones((3, 4)), "unit"),
        ("opacities", np.full(3, 1.5), "0..1"),
        ("sh_dc", np.full((3, 3), np.nan), "not finite"),
        ("sh_rest", np.zeros((3, 5, 3)), "sh_rest has shape"),
    ],
)
def test_the_record_refuses_what_no_gaussian_is(field: str, value: np.ndarray, message: str) -> None:
    good = {
        "positions_m": np.zeros((3, 3)),
        "scales_m": np.ones((3, 3)),
        "rotations_wxyz": np.tile([1.0, 0, 0, 0], (3, 1)),
        "opacities": np.ones(3),
        "sh_dc": np.zeros((3, 3)),
        "sh_rest": np.zeros((3, 0, 3)),
    }
    GaussianCloud(**good)
    with pytest.raises(ValueError, match=message):
        GaussianCloud(**{**good, field: value})


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 131_071, 131_072, 449_999])
def test_one_value_that_is_not_finite_is_found_among_many(value: float, place: int) -> None:
    cloud = random_cloud(10_000, degree=3)
    rest = cloud.sh_rest.copy()
    rest.reshape(-1)[place] = value
    with pytest.raises(ValueError, match="sh_rest has values that are not finite"):
        GaussianCloud(cloud.positions_m, cloud.scales_m, cloud.rotations_wxyz, cloud.opacities, cloud.sh_dc, rest)
