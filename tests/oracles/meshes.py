"""Small mesh tools for the oracle figures: refinable sheets on a body, smoothing, thickness, lofts, noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_matrix, csr_matrix, diags, identity, vstack

Array = NDArray[np.float64]
Ints = NDArray[np.int64]
Surface = Literal["skin", "eye", "cloth", "shiny", "leather", "hair"]


@dataclass(frozen=True)
class Mesh:
    """A posed, coloured triangle mesh: points_m [N,3], triangles [T,3], colours [N,3] display sRGB 0..1."""

    points_m: Array
    triangles: Ints
    colours: Array
    surface: Surface


@dataclass(frozen=True)
class Sheet:
    """A surface whose points are fixed mixtures of body vertices: mix [N,V] sparse, triangles [T,3]."""

    mix: csr_matrix
    triangles: Ints


def sheet_of(vertex_count: int, triangles: Ints, keep: NDArray[np.bool_]) -> Sheet:
    """Takes the triangles whose three vertices are all in ``keep`` [V]."""
    return drop_unused(Sheet(identity(vertex_count, format="csr"), triangles[keep[triangles].all(1)]))


def drop_unused(sheet: Sheet) -> Sheet:
    """Removes points that no triangle uses."""
    used, inverse = np.unique(sheet.triangles, return_inverse=True)
    return Sheet(sheet.mix[used], inverse.reshape(-1, 3).astype(np.int64))


def subdivide(sheet: Sheet, times: int) -> Sheet:
    """Splits every triangle into four at the edges' middles, ``times`` times."""
    for _ in range(times):
        a, b, c = sheet.triangles.T
        edges = np.sort(np.stack([np.r_[a, b, c], np.r_[b, c, a]], 1), 1)
        unique, inverse = np.unique(edges, axis=0, return_inverse=True)
        count, middle = sheet.mix.shape[0], inverse.reshape(3, -1)
        ab, bc, ca = middle + count
        rows = np.repeat(np.arange(len(unique)), 2)
        halves = csr_matrix((np.full(2 * len(unique), 0.5), (rows, unique.ravel())), (len(unique), count))
        corners = [np.stack(t, 1) for t in ((a, ab, ca), (ab, b, bc), (ca, bc, c), (ab, bc, ca))]
        sheet = Sheet(vstack([sheet.mix, halves @ sheet.mix]).tocsr(), np.concatenate(corners))
    return sheet


def clip(sheet: Sheet, inside_m: Array) -> Sheet:
    """Cuts a sheet along ``inside_m`` = 0 and keeps the positive side: a straight edge instead of a jagged one.

    Args:
        inside_m: [N] value per point, linear along edges.
    """
    corners = sheet.triangles
    positive = inside_m[corners] > 0
    whole = corners[positive.all(1)]
    count = sheet.mix.shape[0]
    new_pairs: list[Ints] = []
    new_triangles: list[Ints] = [whole]
    offset = count
    for inside_count in (1, 2):
        group = positive.sum(1) == inside_count
        tri, sign = corners[group], positive[group]
        if not len(tri):
            continue
        # rotate so that the odd one out comes first
        odd = (sign if inside_count == 1 else ~sign).argmax(1)
        order = (odd[:, None] + np.arange(3)) % 3
        p, q, r = np.take_along_axis(tri, order, 1).T
        at_q, at_r = offset + 2 * np.arange(len(p)), offset + 2 * np.arange(len(p)) + 1
        new_pairs.append(np.stack([np.stack([p, q], 1), np.stack([p, r], 1)], 1).reshape(-1, 2))
        offset += 2 * len(p)
        if inside_count == 1:
            new_triangles.append(np.stack([p, at_q, at_r], 1))
        else:
            new_triangles += [np.stack([at_q, q, r], 1), np.stack([at_q, r, at_r], 1)]
    if not new_pairs:
        return drop_unused(sheet)
    pairs = np.concatenate(new_pairs)
    unique, inverse = np.unique(np.sort(pairs, 1), axis=0, return_inverse=True)
    s0, s1 = inside_m[unique[:, 0]], inside_m[unique[:, 1]]
    share = s0 / (s0 - s1)
    rows = np.repeat(np.arange(len(unique)), 2)
    values = np.stack([1 - share, share], 1).ravel()
    cut = csr_matrix((values, (rows, unique.ravel())), (len(unique), count))
    triangles = np.concatenate(new_triangles)
    renumber = np.r_[np.arange(count), count + inverse.ravel()]
    return drop_unused(Sheet(vstack([sheet.mix, cut @ sheet.mix]).tocsr(), renumber[triangles]))


def averaging(count: int, triangles: Ints) -> csr_matrix:
    """Gives the row-normalised neighbour matrix [N,N]; points without neighbours keep themselves."""
    a, b, c = triangles.T
    i, j = np.r_[a, b, c, b, c, a], np.r_[b, c, a, a, b, c]
    links = coo_matrix((np.ones(len(i)), (i, j)), (count, count)).tocsr()
    links.data[:] = 1.0
    degree = np.asarray(links.sum(1)).ravel()
    links = links + diags((degree == 0).astype(float))
    return (diags(1 / np.maximum(degree, 1)) @ links).tocsr()


def vertex_normals(points_m: Array, triangles: Ints) -> Array:
    """Gives area-weighted unit normals [N,3]."""
    a, b, c = (points_m[triangles[:, k]] for k in range(3))
    face = np.cross(b - a, c - a)
    corners, count = triangles.T.ravel(), len(points_m)
    normals = np.stack([np.bincount(corners, np.tile(face[:, axis], 3), count) for axis in range(3)], 1)
    return normals / (np.linalg.norm(normals, axis=1, keepdims=True) + 1e-12)


def smooth(values: Array, neighbours: csr_matrix, times: int, share: float = 0.5) -> Array:
    """Moves each value towards its neighbours' mean, ``times`` times."""
    for _ in range(times):
        values = (1 - share) * values + share * (neighbours @ values)
    return values


def boundary_edges(triangles: Ints) -> Ints:
    """Gives the directed edges [E,2] that belong to one triangle only."""
    a, b, c = triangles.T
    edges = np.stack([np.r_[a, b, c], np.r_[b, c, a]], 1)
    _, inverse, counts = np.unique(np.sort(edges, 1), axis=0, return_inverse=True, return_counts=True)
    return edges[counts[inverse.ravel()] == 1]


def solidify(points_m: Array, triangles: Ints, thickness_m: float) -> tuple[Array, Ints]:
    """Adds an inner side and a rim, so that hems and hair have an edge with thickness.

    Returns:
        Points [2N,3] (the outer ones first) and triangles.
    """
    inner = points_m - vertex_normals(points_m, triangles) * thickness_m
    count, rim = len(points_m), boundary_edges(triangles)
    a, b = rim.T
    sides = np.concatenate([np.stack([b, a, a + count], 1), np.stack([b, a + count, b + count], 1)])
    return np.concatenate([points_m, inner]), np.concatenate([triangles, triangles[:, ::-1] + count, sides])


def noise(points_m: Array, wavelength_m: float, seed: int, stretch: tuple[float, float, float] = (1, 1, 1)) -> Array:
    """Smooth deterministic noise [N] of about unit variance: a sum of 12 plane waves.

    Args:
        stretch: wavelength factors along x, y, z (folds that run along y have a large y factor).
    """
    rng = np.random.default_rng(seed)
    directions = rng.normal(size=(12, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    waves = directions * (2 * np.pi / wavelength_m * rng.uniform(0.6, 1.5, (12, 1))) / np.asarray(stretch)
    return np.sin(points_m @ waves.T + rng.uniform(0, 2 * np.pi, 12)).sum(1) / np.sqrt(6)


def grid_triangles(rows: int, columns: int, closed: bool) -> Ints:
    """Triangles of a grid of rows x columns points (row-major); ``closed`` joins the last column to the first."""
    i, k = np.meshgrid(np.arange(rows - 1), np.arange(columns if closed else columns - 1), indexing="ij")
    a, b = i * columns + k, i * columns + (k + 1) % columns
    quads = [np.stack([a, b, a + columns], -1), np.stack([b, b + columns, a + columns], -1)]
    return np.concatenate([q.reshape(-1, 3) for q in quads])


def icosphere(times: int = 2) -> tuple[Array, Ints]:
    """Gives a unit sphere made from an icosahedron."""
    g = (1 + 5**0.5) / 2
    points = np.array(
        [[-1, g, 0], [1, g, 0], [-1, -g, 0], [1, -g, 0], [0, -1, g], [0, 1, g], [0, -1, -g], [0, 1, -g]]
        + [[g, 0, -1], [g, 0, 1], [-g, 0, -1], [-g, 0, 1]]
    )
    triangles = np.array(
        [[0, 11, 5], [0, 5, 1], [0, 1, 7], [0, 7, 10], [0, 10, 11], [1, 5, 9], [5, 11, 4], [11, 10, 2], [10, 7, 6]]
        + [[7, 1, 8], [3, 9, 4], [3, 4, 2], [3, 2, 6], [3, 6, 8], [3, 8, 9], [4, 9, 5], [2, 4, 11], [6, 2, 10]]
        + [[8, 6, 7], [9, 8, 1]]
    )
    sheet = subdivide(Sheet(identity(12, format="csr"), triangles), times)
    made = sheet.mix @ points
    return made / np.linalg.norm(made, axis=1, keepdims=True), sheet.triangles
