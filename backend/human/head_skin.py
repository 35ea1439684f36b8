"""Gaussians on the skin of head and neck: systematic sampling of the proxy's triangles and their colours."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy.spatial import cKDTree

from backend.human.hair import HairShell
from backend.human.head_colour import colour_skin
from backend.human.head_view import FACE_OVAL, INNER_LIPS, LEFT_LIDS, RIGHT_LIDS, HeadView, sample
from backend.human.head_warp import PhotoFrame, pixels, vertex_normals
from backend.human.lids import Lids, lash_share, lids_of, steps_near_lids, stretch_from_half
from backend.human.model import BodyModel, Region
from backend.human.personal import Personal, head_triangles
from backend.human.zbuffer import depth_buffer
from backend.splats.bound import BoundSplats, Kind

FINE_LANDMARKS = (*LEFT_LIDS, *RIGHT_LIDS, *INNER_LIPS, 61, 291, 0, 17, 37, 267, 84, 314, 4, 98, 327)
SCALE_PER_DEVIATION = 2.5  # 1.7 left 1 to 2 % of holes, 2.1 a fine dot pattern close up
THICKNESS = 0.15  # of the mean in-plane scale
OCCLUSION_M = 0.006
AJAR = 0.02
"""Colour gate of the line of lashes: nearly closed to gradient steps, which would spread it over the closed eye, and
open to the polish, which moves colours by no more than they show."""
LID_SPACING_M = 0.75e-3  # half closed


@dataclass(frozen=True)
class Sheet:
    """Gaussians that tile triangles, N of them.

    Attributes:
        triangles: [N] triangle of the body.
        bary: [N, 3].
        angle: [N] turn of the long axis in the triangle's frame, radians.
        scales_m: [N, 3].
    """

    triangles: np.ndarray
    bary: np.ndarray
    angle: np.ndarray
    scales_m: np.ndarray

    def points(self, vertices_m: np.ndarray, triangles_all: np.ndarray) -> np.ndarray:
        """[N, 3] foot points on a mesh."""
        return np.einsum("nk,nkc->nc", self.bary, vertices_m[triangles_all[self.triangles]])

    def bound(
        self,
        colours: np.ndarray,
        kind: np.ndarray | int,
        confidence: np.ndarray,
        gates: tuple[np.ndarray, np.ndarray],
        opacity: float = 0.95,
        opacity_floor: float = 0.6,
    ) -> BoundSplats:
        """The Gaussians with their colours; gates are those of colour and shape."""
        n = len(self.triangles)
        zero = np.zeros(n)
        return BoundSplats(
            triangles=self.triangles,
            bary=self.bary,
            offsets_m=np.zeros((n, 3)),
            rotations_wxyz=np.stack([np.cos(self.angle / 2), zero, zero, np.sin(self.angle / 2)], axis=1),
            scales_m=self.scales_m,
            opacities=np.full(n, opacity),
            colours=np.clip(colours, 0, 1),
            confidence=confidence,
            kind=np.broadcast_to(np.asarray(kind, np.uint8), (n,)),
            colour_gate=gates[0],
            shape_gate=gates[1],
            opacity_floor=np.full(n, opacity_floor),
        )


def tile_triangles(
    vertices_m: np.ndarray, triangles_all: np.ndarray, chosen: np.ndarray, spacing_m: np.ndarray, most: int = 12
) -> Sheet:
    """Split triangles into n^2 equal parts and lay one Gaussian on each, shaped by the part's second moments.

    Args:
        vertices_m: [V, 3].
        triangles_all: [T, 3].
        chosen: [C] triangle indices.
        spacing_m: [C] wanted distance of neighbours.
        most: Upper limit of n.
    """
    corners = vertices_m[triangles_all[chosen]]
    longest = np.linalg.norm(corners - np.roll(corners, 1, axis=1), axis=2).max(axis=1)
    parts = np.clip(np.round(longest / (2.25 * spacing_m)), 1, most).astype(int)
    angle, deviation = _triangle_moments(corners)
    rows: list[np.ndarray] = []
    bary: list[np.ndarray] = []
    for n in np.unique(parts):
        which = np.flatnonzero(parts == n)
        cells = _sub_centres(n)
        rows.append(np.repeat(which, len(cells)))
        bary.append(np.tile(cells, (len(which), 1)))
    row = np.concatenate(rows)
    scales = SCALE_PER_DEVIATION * deviation
    scales = np.maximum(scales, scales.max(axis=1, keepdims=True) / 6)[row] / parts[row, None]
    scales = np.c_[scales, THICKNESS * scales.mean(axis=1)]
    return Sheet(chosen[row].astype(np.int32), np.concatenate(bary), angle[row], scales)


def _sub_centres(n: int) -> np.ndarray:
    """[n^2, 3] barycentric centres of the n^2 parts of a triangle."""
    cells = [((i + 1 / 3) / n, (j + 1 / 3) / n) for i in range(n) for j in range(n - i)]
    cells += [((i + 2 / 3) / n, (j + 2 / 3) / n) for i in range(n) for j in range(n - i - 1)]
    uv = np.array(cells)
    return np.c_[1 - uv.sum(axis=1), uv]


def _triangle_moments(corners_m: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Direction of the long axis [C] (radians, in the frame x = v1 - v0) and deviations along both axes [C, 2]."""
    x = corners_m[:, 1] - corners_m[:, 0]
    z = np.cross(x, corners_m[:, 2] - corners_m[:, 0])
    x = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    z = z / np.maximum(np.linalg.norm(z, axis=1, keepdims=True), 1e-12)
    arms = corners_m - corners_m.mean(axis=1, keepdims=True)
    flat = np.stack([np.einsum("cki,ci->ck", arms, axis) for axis in (x, np.cross(z, x))], axis=2)
    moments = np.einsum("cka,ckb->cab", flat, flat) / 12
    values, vectors = np.linalg.eigh(moments)
    return np.arctan2(vectors[:, 1, 1], vectors[:, 0, 1]), np.sqrt(np.maximum(values[:, ::-1], 1e-12))


def skin_splats(view: HeadView, body: BodyModel, personal: Personal, frame: PhotoFrame, hair: HairShell) -> BoundSplats:
    """Gaussians of the skin of face, ears, scalp and neck, and of cloth on the neck.

    Args:
        view: The head's crop.
        body: The body model.
        personal: The personalised head.
        frame: Rest space to the photo's camera.
        hair: The hair; the scalp below takes its colour.
    """
    rest = personal.vertices_m.astype(np.float64)
    photo = frame.to_camera(personal.photo_rest_m().astype(np.float64))
    chosen = np.flatnonzero(head_triangles(body) & (body.regions[body.triangles] <= Region.HEAD).all(axis=1))
    under_hair = hair.covers(rest)[body.triangles].all(axis=1)[chosen]
    spacing = _spacing(view, body, personal, photo, chosen, under_hair)
    lids = lids_of(body, personal)
    on_lid = lids.share[body.triangles[chosen]].max(axis=1)
    spacing = np.where(on_lid > 0.3, np.minimum(spacing, LID_SPACING_M), spacing)
    sheet = tile_triangles(lids.half_m, body.triangles, chosen, spacing)
    sheet = replace(sheet, scales_m=sheet.scales_m / stretch_from_half(body, personal, lids)[sheet.triangles, None])
    seen = _seen(view, body, frame, photo, sheet, lids)
    colours = colour_skin(view, body, personal, sheet.points(rest, body.triangles), sheet, seen, hair)
    # what the photo shows of the lids is their line of lashes: an optimiser would spread it over the closed eye
    gate = np.clip((colours.confidence - 0.05) / 0.3, 0, 1) * steps_near_lids(seen.closed_m, seen.lid)
    kind = np.where(colours.cloth, Kind.CLOTH, Kind.SKIN)
    colour_gate = np.maximum(gate, AJAR * seen.lashes) if personal.has_face else gate
    return sheet.bound(colours.colours, kind, colours.confidence, (colour_gate, gate))


@dataclass(frozen=True)
class Seen:
    """How the photo sees samples.

    Attributes:
        uv_px: [N, 2] in the crop.
        facing: [N] n.v.
        visible: [N] bool.
        normals: [N, 3] unit, camera axes; those of the closed lids on the lids.
        lid: [N] 0..1, skin that a blink spreads over the eye.
        lashes: [N] 0..1, the line in which the closed lids meet.
        closed_m: [N, 3] in rest space with closed eyes.
    """

    uv_px: np.ndarray
    facing: np.ndarray
    visible: np.ndarray
    normals: np.ndarray
    lid: np.ndarray
    lashes: np.ndarray
    closed_m: np.ndarray


def _seen(view: HeadView, body: BodyModel, frame: PhotoFrame, photo_m: np.ndarray, sheet: Sheet, lids: Lids) -> Seen:
    points = sheet.points(photo_m, body.triangles)
    uv = pixels(points, view.camera)
    normals = vertex_normals(photo_m, body.triangles)
    normals = np.einsum("nk,nkc->nc", sheet.bary, normals[body.triangles[sheet.triangles]])
    normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-9)
    facing = -(normals * points).sum(axis=1) / np.linalg.norm(points, axis=1)
    size = view.mask.shape[0]
    outside = (body.regions[body.triangles] <= Region.RIGHT_EYE).all(axis=1)
    depth = depth_buffer(pixels(photo_m, view.camera), photo_m[:, 2], body.triangles[outside], size, size).depth_m
    cell = np.clip(uv.astype(int), 0, size - 1)
    front = points[:, 2] < depth[cell[:, 1], cell[:, 0]] + OCCLUSION_M
    lid = np.einsum("nk,nk->n", sheet.bary, lids.share[body.triangles[sheet.triangles]])
    # light falls on the lids as they lie when closed; squeezed open they have no direction to speak of
    closed = frame.to_camera(lids.closed_m + lids.outward) - frame.to_camera(lids.closed_m)
    closed = np.einsum("nk,nkc->nc", sheet.bary, closed[body.triangles[sheet.triangles]])
    normals = normals + lid[:, None] * (closed - normals)
    normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-9)
    at = sheet.points(lids.closed_m, body.triangles)
    visible = front & ((uv > 2) & (uv < size - 3)).all(axis=1)
    return Seen(uv, facing, visible, normals, lid, lash_share(lids, at, lid), at)


def _spacing(
    view: HeadView,
    body: BodyModel,
    personal: Personal,
    photo_m: np.ndarray,
    chosen: np.ndarray,
    under_hair: np.ndarray,
) -> np.ndarray:
    """[C] metres: fine round eyes, lips and nose, then the face, the rest of head and neck, and the covered scalp."""
    triangles = body.triangles[chosen]
    spacing = np.full(len(chosen), 2.4e-3)
    inner = ~body.outer[triangles].any(axis=1)
    spacing[under_hair] = 4.0e-3
    spacing[inner] = 3.5e-3
    if not personal.has_face:
        spots = personal.vertices_m[body.face_landmarks.indices]
        painted = cKDTree(spots).query(personal.vertices_m)[0] < 0.01
        spacing[painted[triangles].any(axis=1) & ~inner] = 1.4e-3
        return spacing
    px_mm = photo_m[triangles[:, 0], 2].mean() / personal.camera.fx * 1e3
    uv = pixels(photo_m, view.camera)
    near = sample(view.polygon(FACE_OVAL, shrink=1.06), uv) > 0.5
    towards = (vertex_normals(photo_m, body.triangles)[:, 2] < 0.1) & near & body.outer
    spacing[towards[triangles].any(axis=1) & ~inner] = np.clip(0.72 * px_mm, 1.0, 1.3) * 1e-3
    spots = photo_m[body.face_landmarks[list(FINE_LANDMARKS)].indices]
    fine = (cKDTree(spots).query(photo_m)[0] < 0.008) & body.outer
    spacing[fine[triangles].any(axis=1) & ~inner] = np.clip(0.45 * px_mm + 0.35, 0.8, 1.2) * 1e-3
    return spacing


__all__ = ["Seen", "Sheet", "skin_splats", "tile_triangles"]
