"""Evenly spaced discs on a triangle mesh."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit

CANDIDATES_PER_DISC = 20
"""Random points offered per wanted disc; with 20 the dart throwing is close to maximal (no wide gaps)."""

PACKING = 0.83
"""Dart throwing with exclusion distance r ends near 0.69 / r^2 points per area; 0.83 x spacing gives 1 / spacing^2."""


@dataclass(frozen=True)
class SurfaceSamples:
    """Points on a mesh.

    Attributes:
        triangles: [N] int32 rows of the triangle list.
        bary: [N, 3] barycentric coordinates.
        positions_m: [N, 3].
        spacing_m: [N] wanted distance between neighbours.
    """

    triangles: np.ndarray
    bary: np.ndarray
    positions_m: np.ndarray
    spacing_m: np.ndarray

    def __len__(self) -> int:
        """Number of points."""
        return len(self.triangles)

    def interpolate(self, per_vertex: np.ndarray, triangles_all: np.ndarray) -> np.ndarray:
        """Values [N, ...] of a per-vertex quantity [V, ...] at the points."""
        values = per_vertex[triangles_all[self.triangles]]
        return np.einsum("nk,nk...->n...", self.bary, values)


def sample_surface(
    vertices_m: np.ndarray,
    triangles_all: np.ndarray,
    subset: np.ndarray,
    spacing_m: np.ndarray,
    seed: int,
) -> SurfaceSamples:
    """Poisson-disc points on part of a mesh.

    Two points keep a distance of `PACKING` x their mean spacing when their faces look into the same half space; the two
    sides of a thin part do not disturb each other.

    Args:
        vertices_m: [V, 3].
        triangles_all: [T, 3] vertex indices.
        subset: [S] rows of `triangles_all` to cover.
        spacing_m: [S] wanted spacing on each of them.
        seed: Of the random points.

    Raises:
        ValueError: If a spacing is not positive.
    """
    subset = np.asarray(subset, np.int32)
    spacing = np.asarray(spacing_m, np.float64)
    if len(subset) == 0:
        return SurfaceSamples(np.zeros(0, np.int32), np.zeros((0, 3)), np.zeros((0, 3)), np.zeros(0))
    if not (spacing > 0).all():
        raise ValueError("spacing must be positive")
    corners = np.asarray(vertices_m, np.float64)[triangles_all[subset]]
    cross = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    double_area = np.linalg.norm(cross, axis=1)
    normals = cross / np.maximum(double_area, 1e-15)[:, None]
    wanted = 0.5 * double_area / spacing**2
    rng = np.random.default_rng(seed)
    pick, bary = _random_points(rng, wanted)
    positions = np.einsum("nk,nkc->nc", bary, corners[pick])
    # the exclusion distance rides on the spacing of each point; a hash grid of the largest one finds all neighbours
    radius = PACKING * spacing[pick]
    keep = _throw(positions, normals[pick], radius, float(radius.max()))
    return SurfaceSamples(subset[pick[keep]], bary[keep], positions[keep], spacing[pick[keep]])


def _random_points(rng: np.random.Generator, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Triangle rows [M] and barycentric coordinates [M, 3], in random order, `CANDIDATES_PER_DISC` per wanted disc."""
    count = max(1, int(CANDIDATES_PER_DISC * wanted.sum()))
    pick = rng.choice(len(wanted), count, p=wanted / wanted.sum())
    u, v = rng.random(count), rng.random(count)
    root = np.sqrt(u)
    return pick, np.stack([1 - root, root * (1 - v), root * v], axis=1)


@njit(cache=True)
def _throw(positions, normals, radius, cell):  # pragma: no cover - compiled
    """Greedy dart throwing in the given order; returns the accepted rows."""
    n = len(positions)
    low = np.array([positions[:, 0].min(), positions[:, 1].min(), positions[:, 2].min()])
    high = np.array([positions[:, 0].max(), positions[:, 1].max(), positions[:, 2].max()])
    ny = int((high[1] - low[1]) / cell) + 3
    nz = int((high[2] - low[2]) / cell) + 3
    size = 1 << 18
    head = np.full(size, -1, np.int64)
    link = np.full(n, -1, np.int64)
    code = np.empty(n, np.int64)
    kept = np.empty(n, np.int64)
    count = 0
    for i in range(n):
        gx = int((positions[i, 0] - low[0]) / cell) + 1
        gy = int((positions[i, 1] - low[1]) / cell) + 1
        gz = int((positions[i, 2] - low[2]) / cell) + 1
        free = True
        for dx in range(-1, 2):
            for dy in range(-1, 2):
                for dz in range(-1, 2):
                    if not free:
                        break
                    key = ((gx + dx) * ny + gy + dy) * nz + gz + dz
                    j = head[key % size]
                    while j >= 0:
                        if code[j] == key:
                            ex = positions[i, 0] - positions[j, 0]
                            ey = positions[i, 1] - positions[j, 1]
                            ez = positions[i, 2] - positions[j, 2]
                            reach = 0.5 * (radius[i] + radius[j])
                            if ex * ex + ey * ey + ez * ez < reach * reach:
                                facing = (
                                    normals[i, 0] * normals[j, 0]
                                    + normals[i, 1] * normals[j, 1]
                                    + normals[i, 2] * normals[j, 2]
                                )
                                if facing > -0.2:
                                    free = False
                                    break
                        j = link[j]
        if free:
            key = (gx * ny + gy) * nz + gz
            code[i] = key
            link[i] = head[key % size]
            head[key % size] = i
            kept[count] = i
            count += 1
    return kept[:count].copy()


def disc_frames(normals: np.ndarray) -> np.ndarray:
    """Rotation matrices [N, 3, 3] whose third column is the unit normal [N, 3]; the first two lie in the disc."""
    n = normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)
    helper = np.where(np.abs(n[:, 1:2]) < 0.9, np.array([[0.0, 1.0, 0.0]]), np.array([[1.0, 0.0, 0.0]]))
    t1 = np.cross(helper, n)
    t1 /= np.linalg.norm(t1, axis=1, keepdims=True)
    return np.stack([t1, np.cross(n, t1), n], axis=2)


def vertex_normals(vertices_m: np.ndarray, triangles: np.ndarray) -> np.ndarray:
    """Area-weighted unit normals [V, 3]; vertices without a triangle get zero."""
    v = np.asarray(vertices_m, np.float64)
    cross = np.cross(v[triangles[:, 1]] - v[triangles[:, 0]], v[triangles[:, 2]] - v[triangles[:, 0]])
    normals = np.zeros_like(v)
    for k in range(3):
        for c in range(3):
            normals[:, c] += np.bincount(triangles[:, k], cross[:, c], len(v))
    return normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)
