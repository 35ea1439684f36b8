"""What painting a bust has to know about its surface: normals, neighbours, hollows, and what lamps and sky reach."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from scipy.spatial import cKDTree

from backend.human.shell import average_operator, mesh_links, smoothed_normals
from backend.human.zbuffer import depth_buffer
from backend.splats.bound import BoundSplats, Kind
from backend.splats.surface import vertex_normals
from blender_addon.shared.gaussians import wxyz_to_matrices
from blender_addon.shared.skeleton import FACIAL_ACTIONS

if TYPE_CHECKING:
    from backend.human.bust import Bust

NEIGHBOURS = 20
GROUPS = np.array([0, 1, 2, 3, 4, 5, 1])
"""Of each `Kind`: neighbours are looked for within a group; cloth and its membranes are one."""

CELL_M = 0.003
"""Of the depth pictures that tell what a lamp reaches."""

BIAS_M, SLOPE_LIMIT = 0.0035, 4.0
SKY = 48
"""Directions from which the sky is looked at."""

CLOSED = ("eyeBlinkLeft", "eyeBlinkRight")
JAW_OPEN = 0.35
MOVED_M = 0.0008
"""A Gaussian that a blink moves by more lies on a lid, and is lit as it lies when closed."""

DRAPE = 12
"""Rounds of averaging over the mesh's edges after which normals are those of cloth, not of the body below it."""

SOFT_ROUNDS, SOFT_SKY, SOFT_HOLLOW = 4, 0.3, 0.3
"""Hair and sheets of cloth are layers with steps between them, which are no hollows: they are smoothed so often, see at
least this share of the sky, and count so much as hollows."""

HOLLOW_M = 0.006
"""Size of the hollows that gather patina."""


@dataclass(frozen=True)
class Surface:
    """N Gaussians as a surface.

    Attributes:
        positions_m: [N, 3] at rest.
        normals: [N, 3] unit, outwards; of lids as they lie when closed.
        along: [N, 3] unit, the long axis: of hair the strand.
        kind: [N] `Kind`.
        area_m2: [N] what each covers.
        near: [N, K] neighbours of the same group, itself first.
        sky: [N] 0..1, share of the sky that it sees, weighted by the cosine.
        hollow: [N] about -1..1: 1 in a groove, -1 on an edge.
    """

    positions_m: np.ndarray
    normals: np.ndarray
    along: np.ndarray
    kind: np.ndarray
    area_m2: np.ndarray
    near: np.ndarray
    sky: np.ndarray
    hollow: np.ndarray
    shades: _Shades

    def reached(self, direction: np.ndarray) -> np.ndarray:
        """[N] 0..1: share of a soft lamp in a direction [3] that each Gaussian sees."""
        side = np.cross(direction, [0.0, 1.0, 0.1])
        side /= np.linalg.norm(side)
        up = np.cross(side, direction)
        turns = ((0, 0), (0.12, 0), (-0.12, 0), (0, 0.12), (0, -0.12), (0.09, 0.09), (-0.09, -0.09))
        return np.mean([self.shades.seen(_unit(direction + a * side + b * up)) for a, b in turns], axis=0)

    def smooth(self, values: np.ndarray, rounds: int = 1) -> np.ndarray:
        """Values [N, ...] averaged over neighbours."""
        for _ in range(rounds):
            values = values[self.near].mean(axis=1)
        return values


def surface_of(bust: Bust) -> Surface:
    """Look at a bust at rest.

    Args:
        bust: With its Gaussians.
    """
    body, splats = bust.body, bust.splats
    rest = bust.vertices_m.astype(np.float64)
    closed = _with_actions(bust, dict.fromkeys(CLOSED, 1.0))
    points = splats.posed(rest, rest, body.triangles)
    shut = splats.posed(closed, rest, body.triangles)
    positions, axes = points.positions_m.astype(np.float64), wxyz_to_matrices(points.rotations_wxyz)
    near = _neighbours(positions, splats.kind)
    lid = (splats.kind == Kind.SKIN) & (np.linalg.norm(shut.positions_m - positions, axis=1) > MOVED_M)
    normals = _normals(splats, axes, rest, body.triangles)
    normals[lid] = _normals(splats, wxyz_to_matrices(shut.rotations_wxyz), closed, body.triangles)[lid]
    # an optimiser may have pushed a disc a little below the surface that it covers
    faces = body.triangles[splats.triangles]
    sheet = splats.kind == Kind.MEMBRANE
    on_mesh = ~(sheet | np.isin(splats.kind, (Kind.HAIR, Kind.EYE)))
    foot = np.einsum("nk,nkc->nc", splats.bary, np.where(lid[:, None, None], closed[faces], rest[faces]))
    places = np.where(on_mesh[:, None], foot, positions)
    soft = np.isin(splats.kind, (Kind.HAIR, Kind.MEMBRANE))
    solid = body.triangles[body.outer[body.triangles].all(axis=1)]
    shades = _Shades.of(closed, solid, positions[soft], places, normals)
    ajar = _with_actions(bust, {"jawOpen": JAW_OPEN})
    spoken = splats.posed(ajar, rest, body.triangles)
    lips = (splats.kind == Kind.SKIN) & (np.linalg.norm(spoken.positions_m - positions, axis=1) > MOVED_M)
    sky = shades.sky()
    if lips.any():  # the rim of the lips shows when they part
        parted = _Shades.of(ajar, solid, positions[soft], spoken.positions_m[lips].astype(np.float64), normals[lips])
        sky[lips] = 0.4 * sky[lips] + 0.6 * np.maximum(sky[lips], parted.sky())
    scales = np.sort(points.scales_m, axis=1)
    area = (scales[:, 1] * scales[:, 2]).astype(np.float64)
    order = np.argmax(points.scales_m, axis=1)
    along = np.take_along_axis(axes, order[:, None, None].repeat(3, axis=1), axis=2)[..., 0]
    flat = Surface(positions, normals, along, splats.kind, area, near, sky, np.zeros(len(sky)), shades)
    normals = np.where(soft[:, None], _unit(flat.smooth(normals, SOFT_ROUNDS)), normals)
    sky = np.where(soft, SOFT_SKY + (1 - SOFT_SKY) * flat.smooth(sky, SOFT_ROUNDS), flat.smooth(sky))
    hollow = _hollow(positions, normals, near, flat) * np.where(soft, SOFT_HOLLOW, 1.0)
    return replace(flat, normals=normals, sky=sky, hollow=hollow)


def _with_actions(bust: Bust, actions: dict[str, float]) -> np.ndarray:
    """[V, 3] rest vertices with facial actions."""
    out = bust.vertices_m.astype(np.float64)
    for name, weight in actions.items():
        out = out + weight * bust.personal.action_offsets_m[FACIAL_ACTIONS.index(name)]
    return out


def _normals(splats: BoundSplats, axes: np.ndarray, vertices_m: np.ndarray, triangles: np.ndarray) -> np.ndarray:
    """[N, 3] unit: of the smooth mesh for what lies on it, of the draped mesh for clothes, else of the disc."""
    faces = triangles[splats.triangles]
    normals = vertex_normals(vertices_m, triangles)
    skin = np.einsum("nk,nkc->nc", splats.bary, normals[faces])
    average = average_operator(mesh_links(triangles, len(vertices_m), None, 1.0))
    draped = smoothed_normals(vertices_m, triangles, average, DRAPE)
    cloth = np.einsum("nk,nkc->nc", splats.bary, draped[faces])
    disc = axes[:, :, 2] * np.where((axes[:, :, 2] * skin).sum(axis=1) < 0, -1.0, 1.0)[:, None]
    on_mesh = np.isin(splats.kind, (Kind.SKIN, Kind.TEETH, Kind.MOUTH))
    return _unit(np.where(on_mesh[:, None], skin, np.where((splats.kind == Kind.CLOTH)[:, None], cloth, disc)))


def _neighbours(positions_m: np.ndarray, kind: np.ndarray) -> np.ndarray:
    """[N, K] nearest of the same group, itself first."""
    apart = positions_m + 100.0 * GROUPS[kind][:, None]
    _, near = cKDTree(apart).query(apart, k=min(NEIGHBOURS, len(apart)))
    return near.reshape(len(apart), -1)


def _hollow(positions: np.ndarray, normals: np.ndarray, near: np.ndarray, flat: Surface) -> np.ndarray:
    """How far the neighbours rise above each point, over two sizes."""
    arm = positions[near] - positions[:, None]
    length = np.maximum(np.linalg.norm(arm, axis=2), 1e-6)
    rise = (arm * normals[:, None]).sum(axis=2) / length
    # neighbours on the other side of a thin edge say nothing
    facing = (normals[near] * normals[:, None]).sum(axis=2) > -0.2
    weight = facing * (length > 1e-5)
    fine = (rise * weight).sum(axis=1) / np.maximum(weight.sum(axis=1), 1)
    middle = flat.smooth(positions, 6)
    coarse = ((middle - positions) * normals).sum(axis=1) / HOLLOW_M
    return np.clip(1.5 * flat.smooth(fine) + 1.5 * coarse, -1, 1)


@dataclass(frozen=True)
class _Shades:
    """Depth pictures of the bust from far away, and the points that are looked up in them.

    Attributes:
        vertices_m: [V, 3].
        triangles: [T, 3] solid ones.
        soft_m: [S, 3] points that throw shadows too.
        points_m: [N, 3].
        normals: [N, 3].
    """

    vertices_m: np.ndarray
    triangles: np.ndarray
    soft_m: np.ndarray
    points_m: np.ndarray
    normals: np.ndarray

    @classmethod
    def of(
        cls, vertices: np.ndarray, triangles: np.ndarray, soft: np.ndarray, points: np.ndarray, normals: np.ndarray
    ) -> _Shades:
        return cls(vertices, triangles, soft, points, normals)

    def seen(self, direction: np.ndarray) -> np.ndarray:
        """[N] 0..1: what a far lamp in a unit direction reaches."""
        side = np.cross([0.13, 1.0, 0.21], direction)
        side /= np.linalg.norm(side)
        frame = np.stack([side, np.cross(direction, side), -direction])
        mesh, soft, points = (a @ frame.T for a in (self.vertices_m, self.soft_m, self.points_m))
        low = np.minimum(mesh.min(axis=0), points.min(axis=0)) - 2 * CELL_M
        width, height = (np.ceil((mesh.max(axis=0)[:2] - low[:2]) / CELL_M) + 3).astype(int)
        uv = (mesh[:, :2] - low[:2]) / CELL_M
        depth = depth_buffer(uv, mesh[:, 2] - low[2] + 1.0, self.triangles, int(width), int(height)).depth_m
        if len(soft):
            cell = np.clip(((soft[:, :2] - low[:2]) / CELL_M).astype(int), 0, [width - 1, height - 1])
            np.minimum.at(depth, (cell[:, 1], cell[:, 0]), soft[:, 2] - low[2] + 1.0)
        at = (points[:, :2] - low[:2]) / CELL_M - 0.5
        cosine = np.clip(self.normals @ direction, 0.05, 1)
        bias = BIAS_M + CELL_M * np.minimum(np.sqrt(1 - cosine**2) / cosine, SLOPE_LIMIT)
        own = points[:, 2] - low[2] + 1.0 - bias
        base = np.clip(np.floor(at).astype(int), 0, [width - 2, height - 2])
        share = np.clip(at - base, 0, 1)
        free = 0.0
        for dy in (0, 1):
            for dx in (0, 1):
                weight = (share[:, 0] if dx else 1 - share[:, 0]) * (share[:, 1] if dy else 1 - share[:, 1])
                free = free + weight * (own < depth[base[:, 1] + dy, base[:, 0] + dx])
        return np.asarray(free)

    def sky(self) -> np.ndarray:
        """[N] 0..1: share of all directions that a point sees, weighted by the cosine."""
        k = np.arange(SKY) + 0.5
        y, turn = 1 - 2 * k / SKY, np.pi * (1 + np.sqrt(5)) * k
        ring = np.sqrt(1 - y * y)
        directions = np.stack([ring * np.cos(turn), y, ring * np.sin(turn)], axis=1)
        total, free = np.zeros(len(self.points_m)), np.zeros(len(self.points_m))
        for direction in directions:
            weight = np.clip(self.normals @ direction, 0, 1)
            total += weight
            free += weight * self.seen(direction)
        return free / np.maximum(total, 1e-6)


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


__all__ = ["Surface", "surface_of"]
