"""Where landmarks and visibility lie on the default body: rendered views, mediapipe's face mesh, key point rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp
from default_body_shape import local_row, spread
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

from backend.human.bodyparts import closest_on_surface
from backend.human.zbuffer import MeshView, depth_buffer
from blender_addon.shared.skeleton import FACIAL_ACTIONS, JOINT_NAMES

VIEW_COUNT = 40  # directions from which a vertex may be seen
SEEN_WITHIN_M = 0.0025
PIXEL_M = 0.0015
FAR_M = 100.0  # so far away that the depth buffer's perspective is a parallel projection
KEYPOINT_VERTICES = 60
FACE_POINTS = 468
IMAGE_PX = 800
FOCAL_PX = 3000.0
CAMERA_M = 1.6  # distance of the camera from the eyes
LIP_OPENING = 0.45  # jawOpen on the renders to which the lips are tied
# Points of mediapipe's face mesh on the upper lip, outer and inner, without the mouth's corners.
UPPER_LIP = (185, 40, 39, 37, 0, 267, 269, 270, 409, 191, 80, 81, 82, 13, 312, 311, 310, 415)
LOWER_LIP = (146, 91, 181, 84, 17, 314, 405, 321, 375, 95, 88, 178, 87, 14, 317, 402, 318, 324)
LIP_CORNERS = (61, 291, 78, 308)


def vertex_normals(vertices_m: np.ndarray, triangles: np.ndarray) -> np.ndarray:
    """Area-weighted unit normals [V, 3]."""
    a, b, c = (vertices_m[triangles[:, k]] for k in range(3))
    faces = np.cross(b - a, c - a)
    normals = np.zeros_like(vertices_m)
    for k in range(3):
        np.add.at(normals, triangles[:, k], faces)
    return normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)


def seen_from_outside(vertices_m: np.ndarray, triangles: np.ndarray) -> np.ndarray:
    """[V] bool: vertices that face one of 40 evenly spread directions and lie within 2.5 mm of what is seen from there.

    Vertices are tested against depth buffers, because triangles smaller than a pixel go missing from face buffers.
    """
    k = np.arange(VIEW_COUNT) + 0.5
    polar, azimuth = np.arccos(1 - 2 * k / VIEW_COUNT), np.pi * (1 + 5**0.5) * k
    directions = np.stack([np.sin(polar) * np.cos(azimuth), np.cos(polar), np.sin(polar) * np.sin(azimuth)], 1)
    # Symmetric directions for a symmetric flag.
    directions = np.concatenate([directions, directions * [-1.0, 1.0, 1.0]])
    normals = vertex_normals(vertices_m, triangles)
    seen = np.zeros(len(vertices_m), bool)
    for forward in directions:
        right = np.cross(forward, [0.0, 1.0, 0.0])
        right /= np.linalg.norm(right)
        down = np.cross(forward, right)
        points = np.stack([vertices_m @ right, vertices_m @ down], 1) / PIXEL_M
        points -= points.min(0) - 2.0
        width, height = (int(n) + 4 for n in np.ceil(points.max(0)))
        depth = vertices_m @ forward + FAR_M
        buffer = depth_buffer(points, depth, triangles, width, height).depth_m
        x, y = np.floor(points).astype(int).T
        seen |= (depth < buffer[y, x] + SEEN_WITHIN_M) & (normals @ forward < 0.0)
    return seen


@dataclass(frozen=True)
class Head:
    """What the face renders need. Lengths in metres.

    Attributes:
        template_m: [V, 3].
        triangles: [T, 3].
        shape_dirs_m: [V, 3, S].
        actions_m: [V, 3, 52].
        eyes_m: [2, 3] eye joints, left then right.
        colours: [V, 3] painted skin, hair, brows, lips, eyes, mouth.
        jaw_share: [V].
        skin: [V] bool, skin of the head on which landmarks may lie.
    """

    template_m: np.ndarray
    triangles: np.ndarray
    shape_dirs_m: np.ndarray
    actions_m: np.ndarray
    eyes_m: np.ndarray
    colours: np.ndarray
    jaw_share: np.ndarray
    skin: np.ndarray


def paint_head(
    template_m: np.ndarray, eyes_m: np.ndarray, head: np.ndarray, eyes: np.ndarray, lips: np.ndarray, mouth: np.ndarray
) -> np.ndarray:
    """Vertex colours [V, 3] that make a render look like a face: chosen by eye, once, for mediapipe to find it.

    Args:
        template_m: [V, 3].
        eyes_m: [2, 3] centres.
        head: [V] bool skin of the head.
        eyes: [V] bool eyeballs.
        lips: [V] bool.
        mouth: [V] 0 = no, 1 = bag, 2 = tongue, 3 = teeth.
    """
    x, (y, z) = np.abs(template_m[:, 0]), (template_m[:, 1:] - eyes_m[0, 1:]).T
    colours = np.tile([0.80, 0.62, 0.52], (len(template_m), 1))
    colours[head & ((y > 0.065) | ((z < -0.10) & (y > -0.09)))] = [0.20, 0.13, 0.08]
    brow = 0.024 - 8.0 * (x - 0.034) ** 2
    colours[head & (x > 0.011) & (x < 0.050) & (np.abs(y - brow) < 0.0045) & (z > -0.03)] = [0.24, 0.16, 0.11]
    colours[lips] = [0.72, 0.36, 0.36]
    colours[eyes] = 0.95
    for sign in (-1.0, 1.0):
        ball = np.flatnonzero(eyes & (template_m[:, 0] * sign > 0))
        colours[ball[template_m[ball, 2] > template_m[ball, 2].max() - 0.0035]] = [0.15, 0.10, 0.08]
    for kind, colour in ((1, [0.25, 0.08, 0.08]), (2, [0.55, 0.25, 0.25]), (3, [0.92, 0.90, 0.85])):
        colours[mouth == kind] = colour
    return colours


@dataclass(frozen=True)
class View:
    """One render.

    Attributes:
        yaw_deg: turn of the head.
        image: [H, W, 3] uint8.
        face: [H, W] triangle, -1 = none.
        bary: [H, W, 3].
        points_px: [V, 2] the vertices' pixels.
        seen: [V] bool visible skin of the head.
    """

    yaw_deg: float
    image: np.ndarray
    face: np.ndarray
    bary: np.ndarray
    points_px: np.ndarray
    seen: np.ndarray


def render_head(head: Head, vertices_m: np.ndarray, yaw_deg: float, pitch_deg: float) -> View:
    """Renders the head from the front, turned by yaw and pitch about the middle of the eyes."""
    yaw, pitch = np.radians([yaw_deg, pitch_deg])
    turn = np.array([[np.cos(yaw), 0, np.sin(yaw)], [0, 1, 0], [-np.sin(yaw), 0, np.cos(yaw)]])
    turn = np.array([[1, 0, 0], [0, np.cos(pitch), -np.sin(pitch)], [0, np.sin(pitch), np.cos(pitch)]]) @ turn
    camera = (vertices_m - head.eyes_m.mean(0) + [0, 0.03, 0]) @ turn.T * [1, -1, -1] + [0, 0, CAMERA_M]
    points = camera[:, :2] / camera[:, 2:] * FOCAL_PX + IMAGE_PX / 2
    buffer = depth_buffer(points, camera[:, 2], head.triangles, IMAGE_PX, IMAGE_PX)
    depth, face = buffer.depth_m, buffer.triangle
    bary = np.zeros((IMAGE_PX, IMAGE_PX, 3))
    bary[face >= 0] = MeshView(camera, points, head.triangles, buffer).barycentric(*np.nonzero(face >= 0))
    normals = vertex_normals(camera, head.triangles)
    light = np.array([0.4, -0.6, -0.8]) / np.linalg.norm([0.4, -0.6, -0.8])
    shaded = head.colours * (0.45 + 0.55 * np.clip(normals @ light, 0, 1))[:, None]
    image = (shaded[head.triangles[face]] * bary[..., None]).sum(2)
    image[face < 0] = 0.8
    x, y = np.clip(np.floor(points).astype(int), 0, IMAGE_PX - 1).T
    seen = (camera[:, 2] < depth[y, x] + 0.003) & ((normals * camera).sum(1) < 0) & head.skin
    return View(yaw_deg, (np.clip(image, 0, 1) * 255).astype(np.uint8), face, bary, points, seen)


def _detect(mesh: Any, image: np.ndarray) -> np.ndarray | None:
    found = mesh.process(np.ascontiguousarray(image)).multi_face_landmarks
    if not found:
        return None
    return np.array([[p.x * IMAGE_PX, p.y * IMAGE_PX] for p in found[0].landmark[:FACE_POINTS]])


def _hits(
    head: Head, view: View, marks_px: np.ndarray, allowed: dict[int, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Vertices [468, 3] and weights [468, 3] under the landmarks; the nearest allowed vertex where there is none."""
    ids, weights = np.zeros((FACE_POINTS, 3), int), np.zeros((FACE_POINTS, 3))
    for n, (x, y) in enumerate(marks_px):
        mask = allowed.get(n, head.skin)
        column, row = (int(np.clip(value, 0, IMAGE_PX - 1)) for value in (x, y))
        face = view.face[row, column]
        if face >= 0 and mask[head.triangles[face]].all():
            ids[n], weights[n] = head.triangles[face], view.bary[row, column]
            continue
        near = np.flatnonzero(view.seen & mask)
        order = np.argsort(np.linalg.norm(view.points_px[near] - [x, y], axis=1), kind="stable")[:3]
        ids[n], weights[n] = near[order], [1.0, 0.0, 0.0]
    return ids, weights


def tie_face(head: Head) -> tuple[sp.csr_matrix, np.ndarray, dict[str, np.ndarray]]:
    """Ties mediapipe's 468 face points to the head by finding them on renders of it.

    Each view gives a surface point per landmark; the one that lies best in all views is kept. Lips are found on
    renders with an open mouth, upper and lower apart by what jawOpen moves.

    Returns:
        csr [468, V], error [468] (length of the mean offset of the tied point from the landmark over all views,
        less each view's common shift, as a share of the height of the face), and pictures by name for inspection.

    Raises:
        RuntimeError: mediapipe finds no face on the renders.
    """
    import mediapipe

    upper, lower = head.skin & (head.jaw_share < 0.5), head.skin & (head.jaw_share >= 0.5)
    allowed = {**dict.fromkeys(UPPER_LIP, upper), **dict.fromkeys(LOWER_LIP, lower)}
    rng = np.random.default_rng(0)
    count = head.shape_dirs_m.shape[2]
    shapes = [np.zeros(count)] * 3 + list(0.7 * rng.standard_normal((5, count)))
    angles = [(yaw, pitch) for yaw in (-12.0, 0.0, 12.0) for pitch in (-5.0, 4.0)]
    found: Found = {False: [], True: []}
    pictures: dict[str, np.ndarray] = {}
    options = {"static_image_mode": True, "refine_landmarks": True, "min_detection_confidence": 0.2}
    with mediapipe.solutions.face_mesh.FaceMesh(**options) as mesh:
        for opened in (False, True):
            offset = LIP_OPENING * opened * head.actions_m[..., FACIAL_ACTIONS.index("jawOpen")]
            for s, betas in enumerate(shapes):
                shaped = head.shape_dirs_m @ betas
                eyes_shift = shaped[head.skin].mean(0)  # keeps taller and smaller heads in the picture
                for yaw, pitch in angles:
                    view = render_head(head, head.template_m + shaped - eyes_shift + offset, yaw, pitch)
                    marks = _detect(mesh, view.image)
                    if marks is None:
                        continue
                    ids, weights = _hits(head, view, marks, allowed if opened else {})
                    found[opened].append((marks, ids, weights, view))
                    pictures[f"{'open' if opened else 'closed'}_{s}_{yaw:.0f}_{pitch:.0f}"] = view.image
    if not found[False] or not found[True]:
        raise RuntimeError("mediapipe finds no face on the renders of the head")
    lips = UPPER_LIP + LOWER_LIP + LIP_CORNERS
    rows = _symmetric(head, _agree(head, found, set(lips)), np.isin(np.arange(FACE_POINTS), lips))
    error = _tie_error(rows, found, np.isin(np.arange(FACE_POINTS), lips))
    lip_error = np.median(error[list(UPPER_LIP + LOWER_LIP)])
    print(
        f"face tie: {len(found[False])} + {len(found[True])} views, error as a share of the face's height: "
        f"median {np.median(error):.4f}, lips {lip_error:.4f}, worst {error.max():.4f}, "
        f"{(error > 0.007).sum()} points over 0.007"
    )
    return rows, error, pictures


Found = dict[bool, list[tuple[np.ndarray, np.ndarray, np.ndarray, View]]]


def _rows(ids: np.ndarray, weights: np.ndarray, count: int) -> sp.csr_matrix:
    rows = np.repeat(np.arange(len(ids)), 3)
    return sp.csr_matrix((weights.ravel(), (rows, ids.ravel())), shape=(len(ids), count))


def _agree(head: Head, found: Found, lips: set[int]) -> sp.csr_matrix:
    """The surface point per landmark on which the views agree best."""
    ids, weights = np.zeros((FACE_POINTS, 3), int), np.zeros((FACE_POINTS, 3))
    for n in range(FACE_POINTS):
        views = found[n in lips]
        heights = np.array([np.linalg.norm(marks[152] - marks[10]) for marks, _, _, _ in views])
        corners = np.array([i[n] for _, i, _, _ in views])
        shares = np.array([w[n] for _, _, w, _ in views])
        # Every view's point, seen in every view.
        tied = np.stack([(view.points_px[corners] * shares[..., None]).sum(1) for *_, view in views])
        off = (tied - np.array([marks[n] for marks, _, _, _ in views])[:, None]) / heights[:, None, None]
        # Close on average; the small second term settles ties in favour of points that are close in every view.
        cost = np.linalg.norm(off.mean(0), axis=-1) + 0.2 * np.linalg.norm(off, axis=-1).mean(0)
        best = int(cost.argmin())
        ids[n], weights[n] = corners[best], shares[best]
    return _rows(ids, weights, len(head.template_m))


def _symmetric(head: Head, rows: sp.csr_matrix, lips: np.ndarray) -> sp.csr_matrix:
    """Averages each point with the mirror image of its counterpart; lips on the open mouth, where they are apart."""
    flip = np.array([-1.0, 1.0, 1.0])
    skin = head.triangles[head.skin[head.triangles].all(1)]
    opened = head.template_m + LIP_OPENING * head.actions_m[..., FACIAL_ACTIONS.index("jawOpen")]
    result = rows.tolil()
    for own, vertices in ((~lips, head.template_m), (lips, opened)):
        numbers = np.flatnonzero(own)
        points = (rows @ vertices)[numbers]
        _, partner = linear_sum_assignment(cdist(points, points * flip))
        paired = partner[partner] == np.arange(len(partner))
        middle = 0.5 * (points + points[partner] * flip)
        result[numbers[paired]] = closest_on_surface(middle[paired], vertices, skin)
        print(f"face tie: {paired.sum()} of {len(paired)} points made symmetric")
    return sp.csr_matrix(result)


def _tie_error(rows: sp.csr_matrix, found: Found, lips: np.ndarray) -> np.ndarray:
    """Error of the tie [468]; see `tie_face`.

    mediapipe's noise from view to view (0.5 % of the face) and its sliding over the skin with the yaw, which has the
    opposite sign on the other side, are not the tie's and average away.
    """
    error = np.zeros(FACE_POINTS)
    for opened, views in found.items():
        off = np.stack(
            [(rows @ view.points_px - marks) / np.linalg.norm(marks[152] - marks[10]) for marks, _, _, view in views]
        )
        off -= np.median(off, axis=1, keepdims=True)
        own = lips == opened
        error[own] = np.linalg.norm(off.mean(0), axis=1)[own]
    return error


def sparse_row(dense: np.ndarray, samples_m: np.ndarray) -> np.ndarray:
    """A row of at most 60 vertices that gives what a dense row gives on posed samples.

    Args:
        dense: [V] weights that sum to 1.
        samples_m: [N, V, 3] in various poses and shapes.

    Returns:
        [V] weights.
    """
    target = np.einsum("v,nvc->nc", dense, samples_m)
    candidates = np.argsort(-np.abs(dense), kind="stable")[:600]
    candidates = candidates[np.abs(dense[candidates]) > 0.02 * np.abs(dense).max()]
    points = samples_m.mean(0)[candidates]
    ids = candidates[spread(points, 0, KEYPOINT_VERTICES)]
    row = np.zeros(len(dense))
    row[ids] = local_row(samples_m[:, ids], target, 0.001)
    return row


def pose_rows(
    coco: dict[str, np.ndarray],
    regressor: sp.csr_matrix,
    face: sp.csr_matrix,
    samples_m: np.ndarray,
    mirror: np.ndarray,
) -> sp.csr_matrix:
    """Mediapipe's 33 pose landmarks as rows over the vertices.

    Args:
        coco: anny's dense rows [V] by name.
        regressor: [55, V].
        face: [468, V].
        samples_m: [N, V, 3] posed and shaped bodies; the sparse rows are fitted on one half and checked on the other.
        mirror: [V] vertices' counterparts.

    Returns:
        csr [33, V]; prints the worst error of a sparse row.
    """
    half = len(samples_m) // 2
    rows: dict[str, sp.csr_matrix] = {}
    worst = ("", 0.0)
    for part in ("ear", "shoulder", "elbow", "wrist", "hip", "knee", "ankle", "heel", "big_toe"):
        left, right = f"left_{part}", f"right_{part}"
        dense = 0.5 * (coco[left] + coco[right][mirror])
        row = sparse_row(dense, samples_m[:half])
        rows[left], rows[right] = sp.csr_matrix(row), sp.csr_matrix(row[mirror])
        gap = np.einsum("v,nvc->nc", row - dense, samples_m[half:])
        worst = max(worst, (left, float(np.sqrt((gap**2).sum(1).mean()))), key=lambda item: item[1])
    print(f"pose key points: worst sparse row {worst[0]} {1000 * worst[1]:.2f} mm rms")
    eye = {"left": (362, 263), "right": (133, 33)}  # inner and outer corners in the face mesh
    order: list[sp.csr_matrix] = [face[1]]
    for side in ("left", "right"):
        inner, outer = (face[k] for k in eye[side])
        order += [inner, 0.5 * (inner + outer), outer]
    order += [rows["left_ear"], rows["right_ear"], face[291], face[61]]
    for part in ("shoulder", "elbow", "wrist"):
        order += [rows[f"left_{part}"], rows[f"right_{part}"]]
    for joint in ("pinky1", "index1", "thumb2"):
        order += [regressor[JOINT_NAMES.index(f"{side}_{joint}")] for side in ("left", "right")]
    for part in ("hip", "knee", "ankle", "heel", "big_toe"):
        order += [rows[f"left_{part}"], rows[f"right_{part}"]]
    return sp.csr_matrix(sp.vstack(order))


__all__ = ["Head", "paint_head", "pose_rows", "render_head", "seen_from_outside", "tie_face", "vertex_normals"]
