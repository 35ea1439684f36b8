"""How far values on a mesh stand out from their neighbours': a regulariser for Gaussians bound to triangles.

Two operators of the same form L = I - W, whose rows of W sum to 1: the cotangent Laplacian for one value per vertex,
and one for any number of Gaussians per triangle. Both take constants to zero and, on a flat mesh, linear functions too:
neither a level nor a slope costs anything, only a bend. Uniform weights would charge for slopes on uneven meshes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from backend.splats.bound import triangle_frames

NEIGHBOURS = 12
"""A Gaussian is compared with at most this many of the nearest on the same and on touching triangles."""

SLOPE_RIDGE = 1e-9
"""Keeps the local fit solvable when all neighbours lie on a line; relative to their squared spread."""

LARGEST_GAIN = 3.0
"""Where the absolute weights of a row sum to more, its neighbours are all far on one side: such rows do not count."""


@dataclass(frozen=True)
class Laplacian:
    """A sparse operator on N values, without unit: it gives differences in the values' own unit.

    Attributes:
        matrix: [N, N] sparse; rows sum to 0.
        counts: float [N], 1 where the row says something, 0 for edges of the mesh and for values without neighbours.
    """

    matrix: Tensor
    counts: Tensor

    def differences(self, values: Tensor) -> Tensor:
        """[N, F] how far each of the values [N, F] stands out; 0 where nothing can be said."""
        return torch.sparse.mm(self.matrix.to(values), values)


def laplacian_loss(laplacian: Laplacian, values: Tensor, reference: Tensor | None = None) -> Tensor:
    """Mean over the rows that count of the squared length of the differences.

    Args:
        laplacian: Of N values.
        values: [N, F] or [N], e.g. heights above the proxy in metres, log scales, colours. Components in frames that
            differ between neighbours (a triangle's x and y) must be turned to common axes first.
        reference: Of the same shape; given, its own differences are what costs nothing.

    Returns:
        Scalar, in squared units of the values.
    """
    flat = values.reshape(len(values), -1)
    differences = laplacian.differences(flat if reference is None else flat - reference.reshape(flat.shape))
    return differences.square().sum() / laplacian.counts.sum().clamp_min(1).to(flat)


def cotangent_laplacian(vertices_m: np.ndarray, triangles: np.ndarray) -> Laplacian:
    """For one value per vertex: w_ij = (cot a + cot b) / sum, of the angles opposite to the edge.

    Vertices on the mesh's border, and those whose weights cancel, do not count.

    Args:
        vertices_m: [V, 3].
        triangles: [T, 3] vertex indices.
    """
    count = len(vertices_m)
    corners = np.asarray(vertices_m, np.float64)[triangles]
    one, two, cotangents = [], [], []
    for k in range(3):
        i, j = (k + 1) % 3, (k + 2) % 3
        u, v = corners[:, i] - corners[:, k], corners[:, j] - corners[:, k]
        area = np.linalg.norm(np.cross(u, v), axis=1)
        cotangents.append(np.einsum("nc,nc->n", u, v) / np.maximum(area, 1e-12 * (u * u).sum(1) + 1e-300))
        one.append(triangles[:, i])
        two.append(triangles[:, j])
    rows, columns = np.concatenate([*one, *two]), np.concatenate([*two, *one])
    weights = np.tile(np.concatenate(cotangents), 2)
    matrix = sparse.csr_matrix((weights, (rows, columns)), (count, count))
    # An edge that belongs to one triangle only is the border.
    uses = sparse.csr_matrix((np.ones(len(rows)), (rows, columns)), (count, count)).tocoo()
    inner = np.ones(count, bool)
    inner[uses.row[uses.data < 1.5]] = False
    total = np.asarray(matrix.sum(1))[:, 0]
    size = np.asarray(abs(matrix).sum(1))[:, 0]
    counts = inner & (total > 1e-3 * size) & (size > 0)
    share = np.where(counts, 1 / np.where(counts, total, 1), 0)
    return _laplacian(sparse.diags(counts.astype(float)) - sparse.diags(share) @ matrix, counts)


def bound_laplacian(
    triangles: np.ndarray, bary: np.ndarray, vertices_m: np.ndarray, triangles_all: np.ndarray
) -> Laplacian:
    """For N Gaussians anywhere on a mesh: each against a linear fit to its neighbours on touching triangles.

    The fit is in the plane of the Gaussian's own triangle, weighted with the inverse squared distance. Gaussians
    without neighbours, or with all of them far on one side, do not count.

    Args:
        triangles: int [N] triangle of each Gaussian.
        bary: [N, 3] its foot point.
        vertices_m: [V, 3] at rest.
        triangles_all: [T, 3] vertex indices.
    """
    vertices = np.asarray(vertices_m, np.float64)
    faces = np.asarray(triangles_all)[triangles]
    feet = np.einsum("nk,nkc->nc", np.asarray(bary, np.float64), vertices[faces])
    rows, columns = _nearest_touching(faces, feet, len(vertices))
    frames, _ = triangle_frames(vertices, faces)
    away = np.einsum("nji,nj->ni", frames[rows], feet[columns] - feet[rows])
    count, squared = len(feet), np.maximum((away**2).sum(1), 1e-18)
    theta = 1 / (squared + 1e-3 * np.maximum(np.bincount(rows, squared, count), 1e-18)[rows])
    # Normal equations of a + b u + c v per row, in units of the row's own spread.
    spread = np.sqrt(np.bincount(rows, squared, count) / np.maximum(np.bincount(rows, minlength=count), 1))
    basis = np.concatenate([np.ones((len(rows), 1)), away[:, :2] / np.maximum(spread, 1e-9)[rows, None]], 1)
    normal = np.zeros((count, 3, 3))
    np.add.at(normal, rows, theta[:, None, None] * basis[:, :, None] * basis[:, None, :])
    ridge = SLOPE_RIDGE * np.trace(normal, axis1=1, axis2=2) + 1e-300
    normal[:, 1, 1] += ridge
    normal[:, 2, 2] += ridge
    found = np.bincount(rows, minlength=count) > 0
    normal[~found] = np.eye(3)
    level = np.linalg.solve(normal, np.tile([[1.0], [0.0], [0.0]], (count, 1, 1)))[:, :, 0]
    weights = theta * np.einsum("nk,nk->n", level[rows], basis)
    found &= np.bincount(rows, np.abs(weights), count) <= LARGEST_GAIN
    matrix = sparse.csr_matrix((weights * found[rows], (rows, columns)), (count, count))
    return _laplacian(sparse.diags(found.astype(float)) - matrix, found)


def _nearest_touching(faces: np.ndarray, feet: np.ndarray, vertex_count: int) -> tuple[np.ndarray, np.ndarray]:
    """Pairs (Gaussian, neighbour): the nearest on triangles [N, 3] that share a vertex, at most `NEIGHBOURS` each."""
    count = len(faces)
    corner = sparse.csr_matrix(
        (np.ones(3 * count), (np.repeat(np.arange(count), 3), faces.ravel())), (count, vertex_count)
    )
    pairs = (corner @ corner.T).tocoo()
    rows, columns = pairs.row, pairs.col
    rows, columns = rows[rows != columns], columns[pairs.row != pairs.col]
    distance = np.linalg.norm(feet[rows] - feet[columns], axis=1)
    order = np.lexsort((columns, distance, rows))
    rows, columns = rows[order], columns[order]
    first = np.searchsorted(rows, np.arange(count))
    near = np.arange(len(rows)) - first[rows] < NEIGHBOURS
    return rows[near], columns[near]


def _laplacian(matrix: sparse.spmatrix, counts: np.ndarray) -> Laplacian:
    coo = sparse.coo_matrix(matrix)
    places = torch.from_numpy(np.stack([coo.row, coo.col]).astype(np.int64))
    operator = torch.sparse_coo_tensor(places, torch.from_numpy(coo.data), coo.shape, check_invariants=True).coalesce()
    return Laplacian(operator, torch.from_numpy(counts.astype(np.float64)))
