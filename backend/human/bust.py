"""Head, neck and upper chest of a fitted person, cut like a sculptor's bust: arms lowered, clean lower edge, closed."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import scipy.sparse as sp
from scipy.spatial import cKDTree

from backend.human.head_fit import SKULL_JOINTS
from backend.human.model import BodyModel, Region
from backend.human.personal import Personal
from backend.human.posing import pose_proxy
from backend.splats.bound import BoundSplats, Kind, bind_points, concatenate, wxyz_to_matrices
from backend.splats.detail import four_parts
from backend.splats.surface import disc_frames
from blender_addon.shared.skeleton import JOINT_NAMES

ARM_DEGREES, COLLAR_DEGREES = 76.0, 6.0
"""How far upper arm and collar bone are lowered from the T-pose."""

EDGE_SIZES_M, EDGE_REACH = (0.0024, 0.0012, 0.0006), 2.0
"""At the lower edge Gaussians are split until they are no larger than this, so that it is sharp."""

CHEST = JOINT_NAMES.index("spine3")
HEAD_BONES = (JOINT_NAMES.index("neck"), *SKULL_JOINTS)


@dataclass(frozen=True)
class BustSettings:
    """Where the bust ends, in units of the distance between the shoulder joints.

    Attributes:
        half_width: From the middle to the cut through the upper arms.
        level: Height of the arc's ends below the shoulder joints.
        depth: How far the edge's arc falls below that in the middle.
        cap_spacing_m: Between the Gaussians of the closing surface.
        bulge_m: How far that surface, rounded like worked stone, stands out between its rims.
    """

    half_width: float = 0.57
    level: float = -0.08
    depth: float = 0.74
    cap_spacing_m: float = 0.004
    bulge_m: float = 0.012


@dataclass(frozen=True)
class Cut:
    """The lower edge: an arc in the frontal plane, straight through from front to back.

    Attributes:
        middle_m: [2] x and y of the arc's centre.
        radii_m: [2] half width and depth of the arc.
    """

    middle_m: np.ndarray
    radii_m: np.ndarray

    def height(self, points_m: np.ndarray) -> np.ndarray:
        """[N] > 0 inside the bust, < 0 beyond the edge, about 1 per radius."""
        away = (points_m[:, :2] - self.middle_m) / self.radii_m
        below = 1 - np.linalg.norm(away, axis=1)
        return np.where(away[:, 1] > 0, 1 - abs(away[:, 0]), below)

    def distance_m(self, points_m: np.ndarray) -> np.ndarray:
        """[N] distance to the edge, > 0 inside; near the edge it is exact to some per cent."""
        return self.height(points_m) * self.radii_m.min()

    def at(self, share: np.ndarray) -> np.ndarray:
        """[K, 2] points of the arc from the subject's right (0) to the left (1)."""
        angle = np.pi * (1 + share)
        return self.middle_m + self.radii_m * np.stack([np.cos(angle), np.sin(angle)], axis=1)


@dataclass(frozen=True)
class Bust:
    """A bust with its rig; arrays as those of a whole person, with vertices and triangles of its own.

    Attributes:
        body: The body model cut to the bust; its chest is rigid.
        personal: The person on it.
        vertices_m: [V, 3] rest proxy, clothes included, arms lowered.
        splats: Gaussians bound to its triangles.
    """

    body: BodyModel
    personal: Personal
    vertices_m: np.ndarray
    splats: BoundSplats


def find_cut(joints_m: np.ndarray, settings: BustSettings = BustSettings()) -> Cut:
    """The lower edge for a person with these rest joints [55, 3]."""
    left, right = (joints_m[JOINT_NAMES.index(f"{side}_shoulder")] for side in ("left", "right"))
    width = float(np.linalg.norm(left - right))
    middle = 0.5 * (left + right)[:2] - [0, settings.level * width]
    return Cut(middle, width * np.array([settings.half_width, settings.depth]))


def lower_arms(body: BodyModel, personal: Personal, rest_m: np.ndarray) -> np.ndarray:
    """[V, 3] rest vertices with the arms hanging, float64; nothing above the collar bones moves."""
    pose = np.zeros((len(JOINT_NAMES), 3))
    for side, sign in (("left", -1.0), ("right", 1.0)):
        pose[JOINT_NAMES.index(f"{side}_shoulder"), 2] = sign * np.radians(ARM_DEGREES)
        pose[JOINT_NAMES.index(f"{side}_collar"), 2] = sign * np.radians(COLLAR_DEGREES)
    return pose_proxy(body, np.asarray(rest_m, np.float64), personal.joints_m, pose)


def inside_bust(body: BodyModel, personal: Personal, rest_m: np.ndarray, splats: BoundSplats) -> np.ndarray:
    """[N] bool: Gaussians that a bust keeps.

    Args:
        body: The whole body.
        personal: The person on it.
        rest_m: [V, 3] rest proxy, clothes included.
        splats: Bound to it.
    """
    lowered = lower_arms(body, personal, rest_m)
    return find_cut(personal.joints_m).height(splats.posed(lowered, rest_m, body.triangles).positions_m) > 0


def beyond_bust(body: BodyModel, personal: Personal, rest_m: np.ndarray) -> np.ndarray:
    """[V] bool: vertices that a bust does not keep; arguments as those of `inside_bust`."""
    return find_cut(personal.joints_m).height(lower_arms(body, personal, rest_m)) <= 0


def cut_bust(
    body: BodyModel,
    personal: Personal,
    rest_m: np.ndarray,
    splats: BoundSplats,
    settings: BustSettings = BustSettings(),
) -> Bust:
    """Make the bust.

    Args:
        body: The whole body.
        personal: The person on it.
        rest_m: [V, 3] rest proxy, clothes included.
        splats: Bound to it.
        settings: Where it ends.
    """
    cut = find_cut(personal.joints_m, settings)
    lowered = lower_arms(body, personal, rest_m)
    height = cut.height(lowered)
    mesh = _clip(body.triangles, height)
    vertices = np.asarray(mesh.blend @ lowered)
    rim = vertices[len(mesh.kept) :]
    cap, cap_triangles = _cap(cut, rim, settings)
    small = _body_of(body, mesh, cap_triangles, len(cap))
    wearer = replace(
        personal,
        vertices_m=np.concatenate([vertices, cap]).astype(np.float32),
        action_offsets_m=_blend(mesh, personal.action_offsets_m, len(cap), axis=1),
        photo_offset_m=_blend(mesh, personal.photo_offset_m, len(cap)),
    )
    whole = np.concatenate([vertices, cap])
    for size in EDGE_SIZES_M:
        splats = _finer_near_edge(splats, lowered, rest_m, body.triangles, cut, size)
    moved = _moved(splats, lowered, rest_m, body.triangles, cut, mesh, whole, small.triangles)
    closing = _cap_splats(whole, small.triangles, len(cap_triangles), moved, settings)
    return Bust(small, wearer, whole.astype(np.float32), concatenate([moved, closing]))


def _finer_near_edge(
    splats: BoundSplats,
    lowered_m: np.ndarray,
    rest_m: np.ndarray,
    triangles: np.ndarray,
    cut: Cut,
    size_m: float,
) -> BoundSplats:
    """The Gaussians with four for each one larger than `size_m` that reaches beyond the edge."""
    posed = splats.posed(lowered_m, rest_m, triangles)
    size = posed.scales_m.max(axis=1)
    chosen = (size > size_m) & (abs(cut.distance_m(posed.positions_m)) < EDGE_REACH * size)
    return concatenate([splats.select(~chosen), *four_parts(splats.select(chosen))])


@dataclass(frozen=True)
class _Clipped:
    """A mesh without what lies beyond the edge.

    Attributes:
        kept: [K] old rows of the first K new vertices; the others lie on the edge.
        blend: csr [V, old V], new vertices from old ones.
        triangles: [T, 3] new vertices.
        parents: [T] old triangle of each new one.
        corners: [T, 3, 3] barycentric coordinates of the corners in the old triangle.
    """

    kept: np.ndarray
    blend: sp.csr_matrix
    triangles: np.ndarray
    parents: np.ndarray
    corners: np.ndarray


def _clip(triangles: np.ndarray, height: np.ndarray) -> _Clipped:
    """Cut triangles along height 0; [V] heights, positive ones stay."""
    inside = height > 0
    count = inside[triangles].sum(axis=1)
    kept = np.flatnonzero(inside)
    place = np.full(len(height), -1)
    place[kept] = np.arange(len(kept))
    edges: dict[tuple[int, int], int] = {}
    rows: list[list[int]] = []
    parents: list[int] = []
    corners: list[np.ndarray] = []

    def crossing(t: int, a: int, b: int) -> tuple[int, np.ndarray]:
        """New vertex on the edge between corner a (inside) and b of triangle t, and its place in it."""
        va, vb = int(triangles[t, a]), int(triangles[t, b])
        share = height[va] / (height[va] - height[vb])
        key = (min(va, vb), max(va, vb))
        row = edges.setdefault(key, len(edges))
        bary = np.zeros(3)
        bary[a], bary[b] = 1 - share, share
        return len(kept) + row, bary

    eye = np.eye(3)
    for t in np.flatnonzero((count > 0) & (count < 3)):
        in_corners = [k for k in range(3) if inside[triangles[t, k]]]
        if len(in_corners) == 1:
            a = in_corners[0]
            b, c = (a + 1) % 3, (a + 2) % 3
            (p, at_p), (q, at_q) = crossing(t, a, b), crossing(t, a, c)
            rows.append([int(place[triangles[t, a]]), p, q])
            corners.append(np.stack([eye[a], at_p, at_q]))
            parents.append(int(t))
        else:
            c = next(k for k in range(3) if k not in in_corners)
            a, b = (c + 1) % 3, (c + 2) % 3
            (p, at_p), (q, at_q) = crossing(t, b, c), crossing(t, a, c)
            first, second = int(place[triangles[t, a]]), int(place[triangles[t, b]])
            rows += [[first, second, p], [first, p, q]]
            corners += [np.stack([eye[a], eye[b], at_p]), np.stack([eye[a], at_p, at_q])]
            parents += [int(t), int(t)]
    whole = np.flatnonzero(count == 3)
    pairs = np.array(list(edges), np.int64).reshape(-1, 2)
    share = height[pairs[:, 0]] / (height[pairs[:, 0]] - height[pairs[:, 1]])
    n, m = len(kept), len(pairs)
    row = np.concatenate([np.arange(n), np.arange(n, n + m), np.arange(n, n + m)])
    column = np.concatenate([kept, pairs[:, 0], pairs[:, 1]])
    value = np.concatenate([np.ones(n), 1 - share, share])
    blend = sp.csr_matrix((value, (row, column)), shape=(n + m, len(height)))
    return _Clipped(
        kept,
        blend,
        np.concatenate([place[triangles[whole]], np.array(rows, np.int64).reshape(-1, 3)]).astype(np.int32),
        np.concatenate([whole, np.array(parents, np.int64)]),
        np.concatenate([np.tile(eye, (len(whole), 1, 1)), np.array(corners).reshape(-1, 3, 3)]),
    )


def _blend(mesh: _Clipped, values: np.ndarray, more: int, axis: int = 0) -> np.ndarray:
    """Per-vertex values [.., old V, ..] on the new vertices, zero on `more` others behind them."""
    moved = np.moveaxis(np.asarray(values), axis, 0)
    flat = mesh.blend.astype(np.float32) @ moved.reshape(len(moved), -1)
    flat = np.concatenate([flat, np.zeros((more, flat.shape[1]), np.float32)])
    return np.ascontiguousarray(np.moveaxis(flat.reshape(-1, *moved.shape[1:]), 0, axis)).astype(values.dtype)


def _body_of(body: BodyModel, mesh: _Clipped, cap_triangles: np.ndarray, cap_count: int) -> BodyModel:
    """The body model on the bust's mesh; all bones but those of the neck and the head become the chest's."""
    first = mesh.blend.argmax(axis=1)
    nearest = np.asarray(first).ravel()
    new = len(nearest)

    def own(array: np.ndarray, value: float) -> np.ndarray:
        return np.concatenate([array[nearest], np.full((cap_count, *array.shape[1:]), value, array.dtype)])

    chosen = sp.csr_matrix(
        (np.ones(len(mesh.kept), np.float32), (mesh.kept, np.arange(len(mesh.kept)))),
        shape=(len(body.template_m), new + cap_count),
    )

    def columns(matrix: sp.csr_matrix) -> sp.csr_matrix:
        return sp.csr_matrix(matrix @ chosen)

    weights = _rigid_chest(_blend(mesh, body.twist.skin_weights, cap_count))
    back = np.full(len(body.template_m), -1)
    back[mesh.kept] = np.arange(len(mesh.kept))
    mirror = np.arange(new + cap_count, dtype=body.mirror.dtype)
    other = back[body.mirror[mesh.kept]]
    mirror[: len(mesh.kept)] = np.where(other >= 0, other, mirror[: len(mesh.kept)])
    uvs = np.einsum("tkb,tbc->tkc", mesh.corners, body.uvs[mesh.parents])
    return replace(
        body,
        template_m=_blend(mesh, body.template_m, cap_count),
        triangles=np.concatenate([mesh.triangles, cap_triangles + new]).astype(np.int32),
        uvs=np.concatenate([uvs, np.zeros((len(cap_triangles), 3, 2))]).astype(np.float32),
        shape_dirs_m=_blend(mesh, body.shape_dirs_m, cap_count),
        action_dirs_m=_blend(mesh, body.action_dirs_m, cap_count),
        skin_weights=weights[:, : len(JOINT_NAMES)],
        twist=replace(body.twist, skin_weights=weights),
        regions=own(body.regions, Region.BODY),
        outer=own(body.outer, True),
        mirror=mirror,
        joint_regressor=columns(body.joint_regressor),
        pose_keypoints=columns(body.pose_keypoints),
        hand_keypoints=columns(body.hand_keypoints),
        face_landmarks=columns(body.face_landmarks),
    )


def _rigid_chest(weights: np.ndarray) -> np.ndarray:
    """[V, B] skin weights in which everything below the neck moves as one."""
    out = np.zeros_like(weights)
    out[:, list(HEAD_BONES)] = weights[:, list(HEAD_BONES)]
    out[:, CHEST] = 1 - out.sum(axis=1)
    return out


def _cap(cut: Cut, rim_m: np.ndarray, settings: BustSettings) -> tuple[np.ndarray, np.ndarray]:
    """Vertices [C, 3] and triangles [D, 3] of the surface that closes the cut, facing down and outwards."""
    columns = max(8, int(np.pi * cut.radii_m.mean() / (2 * settings.cap_spacing_m)))
    share = (np.arange(columns) + 0.5) / columns
    away = (rim_m[:, :2] - cut.middle_m) / cut.radii_m
    own = np.arctan2(away[:, 1], away[:, 0])
    own = np.clip(np.where(own > 0, own - 2 * np.pi, own) / np.pi + 1, 0, 1)
    own = np.where(away[:, 1] > 0, np.where(away[:, 0] < 0, 0.0, 1.0), own)
    low, high = np.full(columns, np.nan), np.full(columns, np.nan)
    for k, at in enumerate(share):
        near = abs(own - at) < 1.0 / columns
        if near.sum() > 2:
            low[k], high[k] = rim_m[near, 2].min(), rim_m[near, 2].max()
    known = np.isfinite(low)
    if known.sum() < 2:
        return np.zeros((0, 3)), np.zeros((0, 3), np.int64)
    share, low, high = share[known], low[known], high[known]
    across = max(4, int(np.max(high - low) / (2 * settings.cap_spacing_m)))
    through = 0.5 - 0.5 * np.cos(np.linspace(0, np.pi, across + 1))
    depth = low[:, None] + (high - low)[:, None] * through
    round_out = settings.bulge_m * np.sqrt(np.sqrt(np.clip(1 - (2 * through - 1) ** 2, 0, 1)))
    outward = (cut.at(share) - cut.middle_m) / cut.radii_m**2
    outward /= np.linalg.norm(outward, axis=1, keepdims=True)
    place = cut.at(share)[:, None] + outward[:, None] * round_out[:, None]
    vertices = np.concatenate([place, depth[..., None]], axis=2)
    index = np.arange(vertices.shape[0] * vertices.shape[1]).reshape(vertices.shape[:2])
    a, b, c, d = (index[i : len(share) - 1 + i, j : across + j].ravel() for i, j in ((0, 0), (1, 0), (1, 1), (0, 1)))
    return vertices.reshape(-1, 3), np.concatenate([np.stack([a, b, c], 1), np.stack([a, c, d], 1)])


def _moved(
    splats: BoundSplats,
    lowered_m: np.ndarray,
    rest_m: np.ndarray,
    triangles: np.ndarray,
    cut: Cut,
    mesh: _Clipped,
    vertices_m: np.ndarray,
    new_triangles: np.ndarray,
) -> BoundSplats:
    """The Gaussians inside the edge on the new mesh."""
    posed = splats.posed(lowered_m, rest_m, triangles)
    first = np.full(len(triangles), -1)
    first[mesh.parents[::-1]] = np.arange(len(mesh.parents))[::-1]
    chosen = np.flatnonzero((cut.height(posed.positions_m) > 0) & (first[splats.triangles] >= 0))
    row = first[splats.triangles[chosen]]
    # of a quadrilateral's two triangles the one that the foot point lies in
    local = np.linalg.solve(mesh.corners[row].transpose(0, 2, 1), splats.bary[chosen].astype(np.float64)[..., None])
    following = np.minimum(row + 1, len(mesh.parents) - 1)
    outside = (local[..., 0].min(axis=1) < -1e-6) & (mesh.parents[following] == mesh.parents[row])
    row = np.where(outside, following, row)
    local = np.linalg.solve(mesh.corners[row].transpose(0, 2, 1), splats.bary[chosen].astype(np.float64)[..., None])
    bary = np.clip(local[..., 0], 0, 1)
    bary /= bary.sum(axis=1, keepdims=True)
    offsets, rotations = bind_points(
        posed.positions_m[chosen].astype(np.float64),
        wxyz_to_matrices(posed.rotations_wxyz[chosen].astype(np.float64)),
        row,
        bary,
        vertices_m,
        new_triangles,
    )
    return replace(
        splats.select(chosen),
        triangles=row,
        bary=bary,
        offsets_m=offsets,
        rotations_wxyz=rotations,
        scales_m=posed.scales_m[chosen],
    )


def _cap_splats(
    vertices_m: np.ndarray, triangles: np.ndarray, count: int, above: BoundSplats, settings: BustSettings
) -> BoundSplats:
    """Gaussians on the last `count` triangles, in the colours of what lies nearest to them."""
    rows = np.arange(len(triangles) - count, len(triangles))
    corners = vertices_m[triangles[rows]]
    centre = corners.mean(axis=1)
    normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    third = np.full((count, 3), 1 / 3)
    offsets, rotations = bind_points(centre, disc_frames(normal), rows, third, vertices_m, triangles)
    chest = np.flatnonzero(np.isin(above.kind, [Kind.CLOTH, Kind.SKIN]))
    colours = np.full((count, 3), 0.5, np.float32)
    if len(chest) and count:
        places = above.select(chest).posed(vertices_m, vertices_m, triangles).positions_m
        _, near = cKDTree(places).query(centre, k=min(12, len(chest)))
        colours = np.median(above.colours[chest][near.reshape(count, -1)], axis=1)
    side = np.sqrt(np.linalg.norm(normal, axis=1) / 2)[:, None]
    zero = np.zeros(count)
    return BoundSplats(
        triangles=rows,
        bary=third,
        offsets_m=offsets,
        rotations_wxyz=rotations,
        scales_m=np.maximum(side, 1e-4) * np.array([[0.75, 0.75, 0.12]]),
        opacities=np.full(count, 0.95),
        colours=colours,
        confidence=zero,
        kind=np.full(count, Kind.CLOTH),
        colour_gate=zero,
        shape_gate=zero,
        opacity_floor=np.full(count, 0.9),
    )


__all__ = ["Bust", "BustSettings", "Cut", "beyond_bust", "cut_bust", "find_cut", "inside_bust", "lower_arms"]
