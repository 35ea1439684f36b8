"""Spherical harmonics of Gaussian splats: the real basis that INRIA, gsplat and Blender share, and its rotation."""

from __future__ import annotations

import numpy as np

from .arrays import Array
from .gaussians import SH_C0, SH_REST_COUNTS, wxyz_to_matrices

_BLOCK = 8192
"""Gaussians that are turned at a time: their coefficients stay in the cache."""


def sh_basis(directions: Array, degree: int) -> Array:
    """Real basis functions at directions.

    Args:
        directions: [M, 3] unit vectors from the camera to the Gaussian.
        degree: 0 to 4.

    Returns:
        [M, (degree + 1)^2], orthonormal on the sphere, signs and order as in the INRIA code base.
    """
    x, y, z = directions.T
    xx, yy, zz = x * x, y * y, z * z
    basis = [np.full_like(x, SH_C0)]
    if degree >= 1:
        basis += [-0.4886025119029199 * y, 0.4886025119029199 * z, -0.4886025119029199 * x]
    if degree >= 2:
        basis += [
            1.0925484305920792 * x * y,
            -1.0925484305920792 * y * z,
            0.31539156525252005 * (2 * zz - xx - yy),
            -1.0925484305920792 * x * z,
            0.5462742152960396 * (xx - yy),
        ]
    if degree >= 3:
        basis += [
            -0.5900435899266435 * y * (3 * xx - yy),
            2.890611442640554 * x * y * z,
            -0.4570457994644658 * y * (4 * zz - xx - yy),
            0.3731763325901154 * z * (2 * zz - 3 * xx - 3 * yy),
            -0.4570457994644658 * x * (4 * zz - xx - yy),
            1.445305721320277 * z * (xx - yy),
            -0.5900435899266435 * x * (xx - 3 * yy),
        ]
    if degree >= 4:
        basis += [
            2.5033429417967046 * x * y * (xx - yy),
            -1.7701307697799304 * y * z * (3 * xx - yy),
            0.9461746957575601 * x * y * (7 * zz - 1),
            -0.6690465435572892 * y * z * (7 * zz - 3),
            0.10578554691520431 * (zz * (35 * zz - 30) + 3),
            -0.6690465435572892 * x * z * (7 * zz - 3),
            0.47308734787878004 * (xx - yy) * (7 * zz - 1),
            -1.7701307697799304 * x * z * (xx - 3 * yy),
            0.6258357354491761 * (xx * (xx - 3 * yy) - yy * (3 * xx - yy)),
        ]
    return np.stack(basis, axis=1)


def sh_rotation_matrix(rotation: Array, degree: int) -> Array:
    """[K, K] matrix that rotates the coefficients above degree 0, K = (degree + 1)^2 - 1.

    A rotated function is f'(d) = f(R^-1 d); each band is closed under rotation, so the matrix is block diagonal and
    follows exactly from the basis at more directions than it has functions.

    Args:
        rotation: [3, 3] rotation matrix R.
        degree: 1 to 4.
    """
    directions = _spread_directions(64)  # so many keep every band's least-squares problem well conditioned
    before, after = sh_basis(directions, degree), sh_basis(directions @ rotation, degree)
    result = np.zeros((SH_REST_COUNTS[degree],) * 2)
    for band in range(1, degree + 1):
        index = slice(band * band, (band + 1) ** 2)
        block = np.linalg.lstsq(before[:, index], after[:, index], rcond=None)[0]
        rest = slice(band * band - 1, (band + 1) ** 2 - 1)
        result[rest, rest] = block
    # What the least squares leave of a zero would break the exactness of half and quarter turns.
    result[np.abs(result) < 1e-12] = 0
    return result


def rotate_sh(sh_rest: Array, rotation: Array) -> Array:
    """Rotate higher coefficients [N, K, 3] by a rotation matrix [3, 3]."""
    count = sh_rest.shape[1]
    if count == 0:
        return sh_rest
    matrix = sh_rotation_matrix(rotation, SH_REST_COUNTS.index(count)).astype(np.float32)
    # All three channels in one product of [N, 3 K] with a matrix that keeps them apart, which BLAS does far faster.
    channels = np.kron(matrix.T, np.eye(3, dtype=np.float32))
    flat = np.ascontiguousarray(sh_rest, np.float32).reshape(len(sh_rest), -1)
    turned = np.empty_like(flat)
    for start in range(0, len(flat), _BLOCK):
        np.matmul(flat[start : start + _BLOCK], channels, out=turned[start : start + _BLOCK])
    return turned.reshape(sh_rest.shape)


def rotate_sh_each(sh_rest: Array, rotations_wxyz: Array) -> Array:
    """Rotate the higher coefficients of every Gaussian by a rotation of its own.

    The rotated function f(R^-1 d) is looked at from a few fixed directions d, and its coefficients are what fits the
    values seen there; that is exact, since each band is closed under rotation.

    Args:
        sh_rest: [N, K, 3].
        rotations_wxyz: [N, 4] unit quaternions, w first.

    Returns:
        [N, K, 3] float32.
    """
    number, count = sh_rest.shape[:2]
    turned = np.empty(sh_rest.shape, np.float32)
    if number == 0 or count == 0:
        return turned
    degree = SH_REST_COUNTS.index(count)
    directions = _spread_directions(count + 6)  # condition number below 2 for every degree
    fit = np.linalg.pinv(sh_basis(directions, degree)[:, 1:]).astype(np.float32)
    directions = directions.astype(np.float32)
    for start in range(0, number, _BLOCK):
        rows = slice(start, start + _BLOCK)
        matrices = wxyz_to_matrices(rotations_wxyz[rows]).astype(np.float32)
        back = (directions @ matrices).reshape(-1, 3)  # R^T d of every Gaussian
        basis = sh_basis(back, degree)[:, 1:].astype(np.float32, copy=False)
        seen = basis.reshape(len(matrices), -1, count) @ sh_rest[rows]
        turned[rows] = fit @ seen
    return turned


def _spread_directions(count: int) -> Array:
    """Unit vectors [count, 3] spread evenly over the sphere: a Fibonacci spiral."""
    i = np.arange(count) + 0.5
    polar, azimuth = np.arccos(1 - 2 * i / count), np.pi * (1 + 5**0.5) * i
    return np.stack([np.cos(azimuth) * np.sin(polar), np.sin(azimuth) * np.sin(polar), np.cos(polar)], axis=1)
