"""Cloth by position-based dynamics on a moving body: what a pose does to loose clothes, known exactly.

M. Mueller et al., "Position Based Dynamics" (2007), with long-range attachments (Kim et al. 2012) to what skinning
alone would give. Damping is heavy, so that the cloth's shape is mostly a function of the pose, as a method without
memory assumes; what remains of the past is the part that no such method can learn.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from tests.oracles.bodies import PosedBody
from tests.oracles.meshes import Array, Ints, vertex_normals

_SOFT = (15, 20, 21, 22, 23, 24, *range(25, 55))  # head, hands, jaw, eyes and fingers in SMPL-X's order


@dataclass(frozen=True)
class ClothSettings:
    """Of one simulation.

    Attributes:
        substeps: per frame. iterations: passes over the constraints per substep.
        frame_s: time between frames. drag: share of the velocity that a substep takes away.
        stretch, bend: share of a constraint's error that one pass removes.
        margin_m: cloth keeps this far from the skin.
    """

    substeps: int = 5
    iterations: int = 12
    frame_s: float = 1 / 30
    drag: float = 0.08
    stretch: float = 0.9
    bend: float = 0.12
    margin_m: float = 0.005


@dataclass(frozen=True)
class Cloth:
    """A piece of cloth at rest in the body's T-pose.

    Attributes:
        points_m: [N,3]. triangles: [T,3]. weights: [N,55] skinning weights of where it would be without simulation.
        pinned: [N] true where it is sewn to the body (waistband, shoulders). reach_m: [N] how far a point may get
        from its skinned place. extra_margin_m: beyond the settings' margin, for what is worn over other clothes.
    """

    points_m: Array
    triangles: Ints
    weights: Array
    pinned: NDArray[np.bool_]
    reach_m: Array
    extra_margin_m: float = 0.0

    def constraints(self) -> tuple[Ints, Array, Ints, Array]:
        """Edges [E,2] with rest lengths [E], and pairs across edges [B,2] with theirs [B] (bending)."""
        a, b, c = self.triangles.T
        sides = np.sort(np.concatenate([np.stack(p, 1) for p in ((a, b), (b, c), (c, a))]), 1)
        opposite = np.concatenate([c, a, b])
        edges, inverse = np.unique(sides, axis=0, return_inverse=True)
        order = np.argsort(inverse.ravel(), kind="stable")
        group = inverse.ravel()[order]
        same = group[1:] == group[:-1]
        pairs = np.stack([opposite[order][:-1][same], opposite[order][1:][same]], 1)
        return edges, _lengths(self.points_m, edges), pairs, _lengths(self.points_m, pairs)


def _lengths(points: Array, pairs: Ints) -> Array:
    return np.linalg.norm(points[pairs[:, 0]] - points[pairs[:, 1]], axis=1)


class Sweep:
    """A body on its way from one frame to the next, met by all its clothes; hands and face do not push them."""

    def __init__(self, first: PosedBody, last: PosedBody, substeps: int) -> None:
        self.first, self.last = first, last
        solid = ~np.isin(first.body.dominant(), _SOFT)
        self.surfaces: list[tuple[Array, Array, cKDTree]] = []
        for k in range(1, substeps + 1):
            skin = first.vertices_m + (last.vertices_m - first.vertices_m) * (k / substeps)
            normals = vertex_normals(skin, first.body.triangles)[solid]
            self.surfaces.append((skin[solid], normals, cKDTree(skin[solid])))


class ClothSimulation:
    """One piece of cloth, followed from frame to frame. It starts as it is worn in T-pose."""

    def __init__(self, cloth: Cloth, start: PosedBody, settings: ClothSettings | None = None) -> None:
        self.cloth, self.settings = cloth, settings or ClothSettings()
        edges, lengths, pairs, spans = cloth.constraints()
        rng = np.random.default_rng(0)  # a mixed order keeps Gauss-Seidel from dragging the cloth to one side
        first, second = rng.permutation(len(edges)), rng.permutation(len(pairs))
        self._constraints = edges[first], lengths[first], pairs[second], spans[second]
        self._points = start.carry(cloth.points_m, cloth.weights)
        self._before = self._points.copy()

    @property
    def points_m(self) -> Array:
        """[N,3] in the world, now."""
        return self._points

    def skinned_m(self, posed: PosedBody) -> Array:
        """[N,3] where the cloth would be if it only followed the bones."""
        return posed.carry(self.cloth.points_m, self.cloth.weights)

    def step(self, sweep: Sweep) -> Array:
        """Moves on to the end of the body's sweep; gives the points [N,3]."""
        edges, lengths, pairs, spans = self._constraints
        settings, cloth = self.settings, self.cloth
        first, last = self.skinned_m(sweep.first), self.skinned_m(sweep.last)
        free = ~cloth.pinned
        dt = settings.frame_s / len(sweep.surfaces)
        for k, (skin, normals, tree) in enumerate(sweep.surfaces, 1):
            place = first + (last - first) * (k / len(sweep.surfaces))
            moved = self._points + (1 - settings.drag) * (self._points - self._before) * free[:, None]
            moved[free, 1] -= 9.81 * dt * dt
            moved[cloth.pinned] = place[cloth.pinned]
            self._before = self._points
            nearest = tree.query(moved)[1]
            self._points = _relax(
                moved, edges, lengths, pairs, spans, free.astype(np.float64), place, cloth.reach_m, skin[nearest],
                normals[nearest], settings.margin_m + cloth.extra_margin_m, settings.stretch, settings.bend,
                settings.iterations,
            )  # fmt: skip
        return self._points


@njit(cache=True)
def _relax(x, edges, lengths, pairs, spans, free, place, reach, skin, normals, margin, stretch, bend, iterations):  # type: ignore[no-untyped-def] # noqa: ANN001, ANN202
    for _ in range(iterations):
        _project(x, edges, lengths, free, stretch)
        _project(x, pairs, spans, free, bend)
        for i in range(len(x)):
            if free[i] == 0.0:
                continue
            far = 0.0
            for k in range(3):
                far += (x[i, k] - place[i, k]) ** 2
            far = np.sqrt(far)
            if far > reach[i]:
                for k in range(3):
                    x[i, k] = place[i, k] + (x[i, k] - place[i, k]) * reach[i] / far
            height = 0.0
            for k in range(3):
                height += (x[i, k] - skin[i, k]) * normals[i, k]
            if height < margin:
                for k in range(3):
                    x[i, k] += (margin - height) * normals[i, k]
    return x


@njit(cache=True)
def _project(x, pairs, lengths, free, stiffness):  # type: ignore[no-untyped-def] # noqa: ANN001, ANN202
    for e in range(len(pairs)):
        a, b = pairs[e]
        total = free[a] + free[b]
        if total == 0.0:
            continue
        dx, dy, dz = x[b, 0] - x[a, 0], x[b, 1] - x[a, 1], x[b, 2] - x[a, 2]
        now = np.sqrt(dx * dx + dy * dy + dz * dz)
        if now < 1e-12:
            continue
        pull = stiffness * (now - lengths[e]) / now / total
        for k, d in ((0, dx), (1, dy), (2, dz)):
            x[a, k] += free[a] * pull * d
            x[b, k] -= free[b] * pull * d
