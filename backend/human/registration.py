"""One cloud of points brought onto another: by a similarity, then by a smooth field of displacements.

Both are known as points with normals, which need not correspond; points pair with the nearest of the same direction,
from either side, and pairs that lie far apart lose their say.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import sparse
from scipy.sparse.linalg import splu
from scipy.spatial import cKDTree

_TUKEY = 3.0
"""Pairs further apart than so many medians do not count."""


@dataclass(frozen=True)
class Points:
    """A surface as points.

    Attributes:
        places: [N, 3]. normals: [N, 3] unit, outwards. weights: [N] trust, >= 0.
    """

    places: np.ndarray
    normals: np.ndarray
    weights: np.ndarray

    def __len__(self) -> int:
        """How many."""
        return len(self.places)

    def select(self, rows: np.ndarray) -> Points:
        """Some of them."""
        return Points(self.places[rows], self.normals[rows], self.weights[rows])


@dataclass(frozen=True)
class Similarity:
    """x -> scale * rotation @ x + shift."""

    scale: float
    rotation: np.ndarray
    shift: np.ndarray

    def places(self, points: np.ndarray) -> np.ndarray:
        """Points [N, 3] after it."""
        return self.scale * points @ self.rotation.T + self.shift

    def moved(self, points: Points) -> Points:
        """A surface after it."""
        return Points(self.places(points.places), points.normals @ self.rotation.T, points.weights)

    def after(self, first: Similarity) -> Similarity:
        """This one applied to what another has moved."""
        rotation = self.rotation @ first.rotation
        return Similarity(self.scale * first.scale, rotation, self.places(first.shift[None])[0])


@dataclass(frozen=True)
class SimilaritySettings:
    """How the similarity is looked for.

    Attributes:
        rounds: Of pairing and solving.
        direction: Distance that two opposite normals are worth, of the target's height, half of it.
        least: Below this distance a pair counts in full, of the target's height.
    """

    rounds: int = 60
    direction: float = 0.06
    least: float = 0.004


@dataclass(frozen=True)
class Pairs:
    """Which point belongs to which: rows of source and target, and weights [P]; apart: [P] distance, metres."""

    source: np.ndarray
    target: np.ndarray
    weights: np.ndarray
    apart: np.ndarray


def pairs_of(source: Points, target: Points, direction_m: float, least_m: float) -> Pairs:
    """Pair from both sides: from one alone a scale would shrink to nothing.

    Args:
        source: Where it is now.
        target: What it shall lie on.
        direction_m: Distance that a difference of 1 between unit normals is worth.
        least_m: Pairs nearer than `_TUKEY` times this always count.
    """
    ours = np.concatenate([source.places, direction_m * source.normals], axis=1)
    theirs = np.concatenate([target.places, direction_m * target.normals], axis=1)
    there, back = cKDTree(theirs).query(ours)[1], cKDTree(ours).query(theirs)[1]
    rows = np.concatenate([np.arange(len(source)), back])
    columns = np.concatenate([there, np.arange(len(target))])
    apart = np.linalg.norm(source.places[rows] - target.places[columns], axis=1)
    agree = (source.normals[rows] * target.normals[columns]).sum(axis=1)
    cut = _TUKEY * max(float(np.median(apart)), least_m)
    weight = np.clip(1 - (apart / cut) ** 2, 0, 1) ** 2 * np.clip(2 * agree, 0, 1)
    weight *= source.weights[rows] * target.weights[columns]
    # neither side outweighs the other by having more points
    weight[: len(source)] *= len(target) / max(len(source), 1)
    return Pairs(rows, columns, weight, apart)


def similarity_of(points: np.ndarray, aims: np.ndarray, weights: np.ndarray) -> Similarity:
    """The similarity, without reflection, that brings points [N, 3] to aims [N, 3] with weights [N]; least squares."""
    share = weights / max(float(weights.sum()), 1e-12)
    here, there = share @ points, share @ aims
    a, b = points - here, aims - there
    u, sizes, vt = np.linalg.svd((share[:, None] * b).T @ a)
    signs = np.array([1.0, 1.0, float(np.sign(np.linalg.det(u @ vt))) or 1.0])
    rotation = (u * signs) @ vt
    scale = float((sizes * signs).sum() / max(float(share @ (a * a).sum(axis=1)), 1e-12))
    return Similarity(scale, rotation, there - scale * rotation @ here)


def align(
    source: Points, target: Points, start: Similarity, settings: SimilaritySettings = SimilaritySettings()
) -> tuple[Similarity, float]:
    """Refine a similarity.

    Args:
        source: As it came.
        target: In the world, metres.
        start: Brings the source roughly onto the target.
        settings: See there.

    Returns:
        The similarity, and the mean distance of the pairs, far ones counting up to 5 % of the target's height; metres.
    """
    height = float(np.ptp(target.places[:, 1])) or 1.0
    found = start
    for _ in range(settings.rounds):
        moved = found.moved(source)
        pairs = pairs_of(moved, target, settings.direction * height / 2, settings.least * height)
        if pairs.weights.sum() < 1e-9:
            break
        step = similarity_of(moved.places[pairs.source], target.places[pairs.target], pairs.weights)
        found = step.after(found)
        turn = float(np.arccos(np.clip((np.trace(step.rotation) - 1) / 2, -1, 1)))
        if turn < 1e-4 and abs(step.scale - 1) < 1e-4:
            break
    moved = found.moved(source)
    pairs = pairs_of(moved, target, settings.direction * height / 2, settings.least * height)
    trust = target.weights[pairs.target]
    return found, float((trust * np.minimum(pairs.apart, 0.05 * height)).sum() / max(float(trust.sum()), 1e-12))


@dataclass(frozen=True)
class FieldSettings:
    """How the smooth field is looked for.

    Attributes:
        nodes: Points that carry it.
        stiffness: Weight of smoothness, one per round of pairing: the field may bend more and more.
        direction: As of `SimilaritySettings`.
        reach: Pairs further apart do not count, of the target's height.
        links: Neighbours of every node.
    """

    nodes: int = 1600
    stiffness: tuple[float, ...] = (60.0, 30.0, 15.0, 8.0, 4.0, 2.0, 2.0)
    direction: float = 0.06
    reach: float = 0.045
    links: int = 8


@dataclass(frozen=True)
class Field:
    """Displacements [M, 3] of nodes [M, 3], between which they are interpolated over `width_m`."""

    nodes: np.ndarray
    moves: np.ndarray
    width_m: float

    def at(self, points: np.ndarray) -> np.ndarray:
        """Displacements [N, 3] of points [N, 3]."""
        distance, near = cKDTree(self.nodes).query(points, k=min(8, len(self.nodes)))
        distance, near = distance.reshape(len(points), -1), near.reshape(len(points), -1)
        # relative to the nearest, so that far points follow the nearest node instead of nothing
        weight = np.exp(-0.5 * (distance**2 - distance[:, :1] ** 2) / self.width_m**2)
        return (weight[..., None] * self.moves[near]).sum(axis=1) / weight.sum(axis=1, keepdims=True)


def smooth_field(source: Points, target: Points, seed: int, settings: FieldSettings = FieldSettings()) -> Field:
    """The field that moves a surface the rest of the way, as smooth as the pairs allow.

    Only distances along the target's normals count, so that a surface may slide; where the target is not trusted the
    source follows its neighbourhood.

    Args:
        source: Already aligned by a similarity.
        target: What it shall lie on.
        seed: Of the choice of nodes.
        settings: See there.
    """
    height = float(np.ptp(target.places[:, 1])) or 1.0
    rng = np.random.default_rng(seed)
    nodes = source.select(np.sort(rng.permutation(len(source))[: settings.nodes]))
    laplacian, spacing = _graph(nodes, settings.links)
    bending = laplacian.T @ laplacian
    moves = np.zeros_like(nodes.places)
    for stiffness in settings.stiffness:
        moved = Points(nodes.places + moves, nodes.normals, nodes.weights)
        pairs = pairs_of(moved, target, settings.direction * height / 2, 0.004 * height)
        weight = np.where(pairs.apart < settings.reach * height, pairs.weights, 0.0)
        normal = target.normals[pairs.target]
        gap = ((target.places[pairs.target] - moved.places[pairs.source]) * normal).sum(axis=1)[:, None] * normal
        total = np.bincount(pairs.source, weight, len(nodes))
        mean = [np.bincount(pairs.source, weight * gap[:, k], len(nodes)) for k in range(3)]
        aim = moves + np.stack(mean, axis=1) / np.maximum(total, 1e-9)[:, None]
        trust = np.minimum(total / max(float(np.mean(total[total > 0])) if (total > 0).any() else 1.0, 1e-9), 2.0)
        system = sparse.diags(trust + 1e-6) + stiffness * bending + 0.02 * stiffness * laplacian
        moves = splu(sparse.csc_matrix(system)).solve(trust[:, None] * aim)
    return Field(nodes.places, moves, spacing)


def _graph(nodes: Points, links: int) -> tuple[sparse.csr_matrix, float]:
    """Laplacian [M, M] of the nodes' neighbourhood, and their median distance."""
    count = len(nodes)
    distance, near = cKDTree(nodes.places).query(nodes.places, k=min(links + 1, count))
    spacing = float(np.median(distance[:, 1:]))
    i, j = np.repeat(np.arange(count), near.shape[1] - 1), near[:, 1:].ravel()
    # surfaces that only lie near each other, arm and trunk, are not linked
    close = (distance[:, 1:].ravel() < 3 * spacing) & ((nodes.normals[i] * nodes.normals[j]).sum(axis=1) > 0)
    links_ = sparse.csr_matrix((close.astype(np.float64), (i, j)), shape=(count, count))
    links_ = (links_ + links_.T) / 2
    degree = np.asarray(links_.sum(axis=1)).ravel()
    scale = 1 / max(float(degree.mean()), 1e-9)
    return sparse.csr_matrix((sparse.diags(degree) - links_) * scale), max(spacing, 1e-6)


def outward_normals(
    points: np.ndarray, seed: int, radius: float = 0.05, most: int = 4000
) -> tuple[np.ndarray, np.ndarray]:
    """Normals of a cloud's surface.

    Args:
        points: [N, 3].
        seed: Of the choice.
        radius: Of the neighbourhood that says where the inside is, of the cloud's height.
        most: So many points are chosen.

    Returns:
        Rows [M] that were chosen, and normals [M, 3] there: the direction of least spread among neighbours, away from
        the middle of what lies around.
    """
    rows = np.sort(np.random.default_rng(seed).permutation(len(points))[:most])
    tree = cKDTree(points)
    _, near = tree.query(points[rows], k=min(24, len(points)))
    around = points[near] - points[near].mean(axis=1, keepdims=True)
    _, _, axes = np.linalg.svd(around, full_matrices=False)
    normals = axes[:, -1]
    height = float(np.ptp(points[:, 1])) or 1.0
    thin = points[rows]
    middle = np.stack([thin[index].mean(axis=0) for index in cKDTree(thin).query_ball_point(thin, 2 * radius * height)])
    sign = np.sign(((thin - middle) * normals).sum(axis=1))
    return rows, normals * np.where(sign == 0, 1.0, sign)[:, None]


__all__ = [
    "Field",
    "FieldSettings",
    "Points",
    "Similarity",
    "SimilaritySettings",
    "align",
    "outward_normals",
    "similarity_of",
    "smooth_field",
]
