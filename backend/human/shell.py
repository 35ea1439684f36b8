"""The outline shell: the body surface moved along its normals until it fills the person's mask.

Rim vertices (seen edge on) measure how far the mask reaches beyond them, or how far they stick out of it; a smooth
displacement over the whole mesh takes those values (least squares with a squared Laplacian). Edges across a hem are
nearly cut, so the clothes end in a step.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit
from scipy.sparse import csr_matrix, diags, identity
from scipy.sparse.linalg import spsolve

from backend.human.camera import PinholeCamera
from backend.human.garments import FEET, HANDS, JOINT_PARTS, LEGS, Part
from backend.human.zbuffer import view_mesh
from backend.splats.surface import vertex_normals
from blender_addon.shared.skeleton import JOINT_NAMES, PARENTS


@dataclass(frozen=True)
class ShellSettings:
    """Measured on four prototype figures.

    Attributes:
        passes: Solves; the second starts from the first one's result (+0.01 mask IoU).
        rim: Largest |n.v| of a rim vertex.
        smoothness: Weight of the squared Laplacian against one rim observation.
        pull: Weight that keeps unobserved vertices at their target.
        back_share: What the side turned away takes of the flanks' displacement; 1 makes a balloon at the seat.
        inward_m: Largest displacement into the body where it leaves the mask.
        unseen_share: What limbs that the photo never shows take of the clothes' median displacement.
        hem_link: Weight of mesh edges between different garments.
    """

    passes: int = 2
    rim: float = 0.3
    smoothness: float = 15.0
    pull: float = 2e-4
    back_share: float = 0.75
    inward_m: float = 0.03
    unseen_share: float = 0.8
    hem_link: float = 0.02


CAPS_M = {
    "trunk": 0.12,
    "thigh": 0.12,
    "shin": 0.10,
    "upper_arm": 0.12,
    "forearm": 0.06,
    "ankle": 0.03,
    "foot": 0.015,
}
"""Largest displacement; feet beyond 1.5 cm become clown shoes. Head, neck and hands have none."""


SKIRT_HOLD = 0.3
"""Weight against one rim observation that keeps the body bare under a skirt, which is a surface of its own."""

WIDEST_GAP_M = 0.08
"""Between an arm and the trunk, where the mask has no background."""


@dataclass(frozen=True)
class Shell:
    """A solved shell.

    Attributes:
        displacement_m: [V] along `normals`.
        normals: [V, 3] smoothed unit normals in the world.
        rim_count: Rim vertices that observed the mask in the last pass.
    """

    displacement_m: np.ndarray
    normals: np.ndarray
    rim_count: int


def displacement_caps_m(body_weights: np.ndarray, fixed: np.ndarray) -> np.ndarray:
    """Largest displacement [V] of each vertex.

    Args:
        body_weights: [V, 55] skin weights.
        fixed: [V] bool, vertices that may not move (head, neck).
    """
    kind = {"hip": "thigh", "knee": "shin", "shoulder": "upper_arm", "elbow": "forearm"}
    kind |= {"ankle": "ankle", "foot": "foot"}
    per_joint = np.zeros(len(JOINT_NAMES))
    for j, name in enumerate(JOINT_NAMES):
        bare = name.removeprefix("left_").removeprefix("right_")
        if JOINT_PARTS[j] == Part.TRUNK:
            per_joint[j] = CAPS_M["trunk"]
        elif bare in kind:
            per_joint[j] = CAPS_M[kind[bare]]
    caps = per_joint[body_weights[:, : len(JOINT_NAMES)].argmax(axis=1)]
    return np.where(fixed, 0.0, caps)


def mesh_links(triangles: np.ndarray, count: int, rings: np.ndarray | None, hem_link: float) -> csr_matrix:
    """Symmetric edge weights [V, V]: 1, or `hem_link` between vertices whose garment label `rings` [V] differs."""
    edges = np.concatenate([triangles[:, [0, 1]], triangles[:, [1, 2]], triangles[:, [2, 0]]])
    i, j = np.concatenate([edges, edges[:, ::-1]]).T
    matrix = csr_matrix((np.ones(len(i)), (i, j)), shape=(count, count))
    matrix.data[:] = 1.0
    if rings is not None:
        row, column = matrix.nonzero()
        matrix.data[:] = np.where(rings[row] == rings[column], 1.0, hem_link)
    return matrix


def average_operator(links: csr_matrix) -> csr_matrix:
    """Row-normalised links: the weighted mean of the neighbours."""
    return csr_matrix(diags(1.0 / np.maximum(np.asarray(links.sum(axis=1)).ravel(), 1e-12)) @ links)


def smoothed_normals(vertices_m: np.ndarray, triangles: np.ndarray, average: csr_matrix, rounds: int = 8) -> np.ndarray:
    """Unit normals [V, 3] averaged `rounds` times with 0.6 of the neighbours' mean."""
    n = vertex_normals(vertices_m, triangles)
    for _ in range(rounds):
        n = 0.4 * n + 0.6 * (average @ n)
    return n / np.maximum(np.linalg.norm(n, axis=1, keepdims=True), 1e-12)


def solve_shell(
    posed_m: np.ndarray,
    triangles: np.ndarray,
    mask: np.ndarray,
    ignored: np.ndarray,
    camera: PinholeCamera,
    caps_m: np.ndarray,
    joints: np.ndarray,
    rings: np.ndarray,
    observed: np.ndarray,
    skirt: np.ndarray,
    settings: ShellSettings | None = None,
) -> Shell:
    """Displace a posed body to the outline of a mask.

    Args:
        posed_m: [V, 3] world, in the photo's pose.
        triangles: [T, 3] outer triangles.
        mask: [H, W] bool, the person without held objects.
        ignored: [H, W] bool, pixels of held objects: neither inside nor outside.
        camera: The photo's camera.
        caps_m: [V] largest displacement, 0 where fixed.
        joints: [V] dominant joint of each vertex.
        rings: [V] garment label of each vertex's ring.
        observed: [V] 0..1, how far the photo shows that ring.
        skirt: [V] bool, vertices under a skirt or coat that hangs freely around both legs: they stay bare.
        settings: Defaults when None.
    """
    s = settings or ShellSettings()
    count = len(posed_m)
    plain = average_operator(mesh_links(triangles, count, None, 1.0))
    laplacian = identity(count, format="csr") - average_operator(mesh_links(triangles, count, rings, s.hem_link))
    stiffness = (s.smoothness * (laplacian.T @ laplacian)).tocsr()
    normals = smoothed_normals(posed_m, triangles, plain)
    # beside a hem rays leave the mask below the cloth; there the surface above goes on instead
    crossing = (abs(plain @ rings - rings) > 1e-9).astype(np.float64)
    trust = np.where((plain @ crossing + crossing) > 0, 0.1, 1.0)
    used = np.zeros(count, bool)
    used[triangles.ravel()] = True
    pull = np.full(count, s.pull)
    pull[skirt] = SKIRT_HOLD
    pull[caps_m <= 0] = 50.0
    total, target, seen = np.zeros(count), np.zeros(count), np.zeros(count, bool)
    for k in range(s.passes):
        weight, wanted = _observe_rim(
            posed_m + normals * total[:, None], normals, triangles, mask, ignored, camera, caps_m, joints, used, s
        )
        weight *= np.where(skirt, 0.0, trust)
        if k == 0:
            # limbs out of the picture wear the same garment: without this a bulky suit ends in thin legs
            cloth = (weight > 0.9) & (wanted > 0) & ~np.isin(JOINT_PARTS[joints], FEET + HANDS)
            typical = float(np.median(wanted[cloth])) if cloth.sum() > 20 else 0.0
            unseen = (1.0 - observed) * (caps_m > 0) * np.isin(JOINT_PARTS[joints], LEGS + (Part.TRUNK,))
            target = np.where(skirt, 0.0, np.minimum(s.unseen_share * typical * unseen, 0.5 * caps_m))
        system = (diags(weight + pull) + stiffness).tocsc()
        step = spsolve(system, weight * wanted + pull * (target - total))
        total = np.clip(total + step, -np.minimum(s.inward_m, 0.7 * caps_m), 1.2 * caps_m)
        seen |= weight > 0
    view = posed_m - camera.position_m
    away = np.clip((normals * view).sum(axis=1) / np.linalg.norm(view, axis=1), 0, 1)
    total = np.where(total > 0, total * (1 - (1 - s.back_share) * away), total)
    total[caps_m <= 0] = 0.0
    return Shell(total, normals, int(seen.sum()))


def _observe_rim(
    points_m: np.ndarray,
    normals: np.ndarray,
    triangles: np.ndarray,
    mask: np.ndarray,
    ignored: np.ndarray,
    camera: PinholeCamera,
    caps_m: np.ndarray,
    joints: np.ndarray,
    used: np.ndarray,
    s: ShellSettings,
) -> tuple[np.ndarray, np.ndarray]:
    """Weights [V] and signed distances [V] (m) from the current surface to the mask's contour."""
    view = view_mesh(points_m, triangles, camera)
    p = view.points_camera_m
    n = normals @ camera.w2c[:3, :3].T
    edge_on = np.abs((n * p).sum(axis=1)) / np.linalg.norm(p, axis=1) < s.rim
    direction = n[:, :2] - n[:, 2:] * p[:, :2] / np.maximum(p[:, 2:], 1e-6)
    length = np.linalg.norm(direction, axis=1)
    rim = np.flatnonzero(edge_on & used & (caps_m > 0) & (length >= 0.3) & (p[:, 2] > 0.05))
    owner = np.full(mask.shape, -1, np.int32)
    covered = view.nearest.covered
    owner[covered] = joints[triangles[view.nearest.triangle[covered], 0]]
    weight, wanted = np.zeros(len(points_m)), np.zeros(len(points_m))
    depth = np.where(np.isfinite(view.nearest.depth_m), view.nearest.depth_m, 1e9)
    _march(
        rim,
        view.uv_px,
        direction / np.maximum(length, 1e-9)[:, None],
        p[:, 2],
        camera.fx,
        mask,
        ignored,
        depth,
        owner,
        joints.astype(np.int32),
        _FAMILY,
        caps_m,
        s.inward_m,
        weight,
        wanted,
    )
    return weight, wanted


def _joint_family() -> np.ndarray:
    """[55, 55] bool: joints whose surfaces may lie side by side on one limb (neighbours, or both trunk)."""
    near = np.eye(len(JOINT_NAMES), dtype=bool)
    for j, parent in enumerate(PARENTS):
        if parent >= 0:
            near[j, parent] = near[parent, j] = True
    trunk = JOINT_PARTS == Part.TRUNK
    head = JOINT_PARTS == Part.HEAD
    near |= np.outer(trunk, trunk) | np.outer(head, head)
    return near


_FAMILY = _joint_family()


@njit(cache=True)
def _march(
    rim, uv, direction, z, focal, mask, ignored, depth, owner, joints, family, caps, inward, weight, wanted
):  # pragma: no cover
    height, width = mask.shape
    for i in rim:
        x, y = uv[i]
        xi, yi = int(np.floor(x)), int(np.floor(y))
        if not (1 < xi < width - 2 and 1 < yi < height - 2):
            continue
        if owner[yi, xi] >= 0 and z[i] > depth[yi, xi] + 0.06:
            continue  # hidden behind another limb
        gx, gy = direction[i]
        px = z[i] / focal
        if not mask[yi, xi]:
            if ignored[yi, xi]:
                continue
            # outside the mask: how far inwards it begins
            weight[i], s = 0.3, 0.0
            while s < inward / px:
                s += 0.5
                a, b = int(np.floor(x - gx * s)), int(np.floor(y - gy * s))
                if not (1 < a < width - 2 and 1 < b < height - 2):
                    break
                if mask[b, a]:
                    weight[i], wanted[i] = 1.0, -(s + 0.5) * px
                    break
            continue
        s = 0.0
        while s < caps[i] / px:
            s += 0.5
            a, b = int(np.floor(x + gx * s)), int(np.floor(y + gy * s))
            if not (1 < a < width - 2 and 1 < b < height - 2):
                break
            if ignored[b, a]:
                break  # the contour behind a held object is unknown
            if not mask[b, a]:
                weight[i], wanted[i] = 1.0, 0.97 * s * px
                break
            if s > 3 and owner[b, a] >= 0 and not family[joints[i], owner[b, a]]:
                if s * px < WIDEST_GAP_M:
                    # cloth all the way to another limb: each takes half of the gap
                    weight[i], wanted[i] = 0.5, 0.5 * s * px
                break
