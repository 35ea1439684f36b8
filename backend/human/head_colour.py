"""Colours of the head's skin: the photo where it can be trusted, a harmonic continuation over the mesh elsewhere.

Clothes on the neck are told from skin, so that a collar continues round the neck as a collar.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import cv2
import numpy as np
import scipy.sparse as sp
from scipy.sparse.linalg import splu
from scipy.spatial import cKDTree

from backend.human.hair import HairShell
from backend.human.head_fit import SKULL_JOINTS
from backend.human.head_view import FACE_OVAL, INNER_LIPS, LEFT_LIDS, RIGHT_LIDS, HeadView, lab_distance, sample
from backend.human.head_warp import ear_vertices, vertex_normals
from backend.human.model import BodyModel, Region
from backend.human.personal import Personal
from backend.perception.people import Label
from blender_addon.shared.skeleton import FACIAL_ACTIONS

if TYPE_CHECKING:
    from backend.human.head_skin import Seen, Sheet

SEEN_WEIGHT, MIRRORED_WEIGHT, PRIOR_WEIGHT = 400.0, 25.0, 2.0
"""Weights of seen, mirrored and median colours in the harmonic fill; edges weigh 1 / length (prototype)."""
SHADING_POWER = 0.6
"""Share of the fitted shading that the fill keeps: none looks flat, all of it exaggerates a studio light."""

BROWS = (
    *((70, 63, 105, 66, 107), (46, 53, 52, 65, 55)),
    *((300, 293, 334, 296, 336), (276, 283, 282, 295, 285)),
)
PAINTED_LIPS = (
    (61, 184, 74, 73, 72, 11, 302, 303, 304, 408, 291),
    (61, 77, 90, 180, 85, 16, 315, 404, 320, 307, 291),
)
LIPS = (0, 37, 267, 39, 269, 17, 84, 314, 181, 405, 11, 16)
UNROLLED_M = 0.0015
EYE_REACH_M, EYE_SKIN_DISTANCE = 0.016, 10.0
"""Round the eyes only skin this near (Lab) to the tone around is continued over the lids: creases are darker."""
LID_TONE = 0.08
"""Share of the photo's tone on the visible strip of the lids in their colour: make-up, shade."""
CREASE_M = 0.003
"""Over this length a closed lid takes on the tone of what stays in place above and beside it."""
CREASE_SAMPLES = 16
LID_BULGE = 0.07
"""Difference in brightness between the middle of a closed lid and its borders."""
LID_LIGHT, LID_GAIN = 0.97, 1.08
"""A closed lid is nearly as bright as the skin around the eye; at most so much brighter than its fill."""
CAVITY_M = 0.006
"""A vertex whose neighbours rise this far above it would be black (ears have 1 to 2 mm)."""


@dataclass(frozen=True)
class SkinColours:
    """colours [N, 3], confidence [N] 0..1, cloth [N] bool."""

    colours: np.ndarray
    confidence: np.ndarray
    cloth: np.ndarray


def colour_skin(
    view: HeadView,
    body: BodyModel,
    personal: Personal,
    points_m: np.ndarray,
    sheet: Sheet,
    seen: Seen,
    hair: HairShell,
) -> SkinColours:
    """Colour samples of the skin.

    Args:
        view: The head's crop.
        body: The body model.
        personal: The personalised head.
        points_m: [N, 3] samples in rest space.
        sheet: Their triangles.
        seen: How the photo sees them.
        hair: The hair above.
    """
    photo = sample(view.image, seen.uv_px)
    to_vertices = _sample_matrix(sheet, body)
    chin = _chin_height(body, personal)
    neck = points_m[:, 1] < chin - 0.008
    trust = _trust(view, personal, seen, neck)
    if not personal.has_face:  # the model's face does not lie on the photo's
        trust[~neck] = 0
    cloth = _cloth(view, body, seen, photo, trust, neck, to_vertices)
    inner = _cavity_triangles(body, personal)[sheet.triangles]
    trust[~body.outer[body.triangles[sheet.triangles]].any(axis=1)] = 0
    skin_like = lab_distance(photo, view.skin_colour, lightness=0.5) < np.where(_outside_oval(view, seen), 19, 24)
    usable = trust * skin_like * ~cloth * (1 - seen.lid)
    if personal.has_face:
        usable *= _plain_round_eyes(body, personal, points_m, photo, usable)
    shade = _shading(view, seen, photo, usable) ** SHADING_POWER
    shade *= 1 + (_cavities(body, personal, hair, to_vertices) - 1) * (1 - seen.lid)
    fill = _harmonic(to_vertices, body, usable, photo / shade[:, None], view.skin_colour * 0.94) * shade[:, None]
    cloth_seen = trust * cloth
    if cloth.any():
        middle = np.median(photo[cloth_seen > 0.3], axis=0) if (cloth_seen > 0.3).sum() > 20 else np.full(3, 0.25)
        fill[cloth] = _harmonic(to_vertices, body, cloth_seen, photo, middle)[cloth]
    off = lab_distance(photo, fill, lightness=0.7)
    trust *= np.where(_outside_oval(view, seen) & ~cloth, 1 - np.clip((off - 8) / 8, 0, 1), 1)
    fill = _lid_colours(view, personal, seen, photo, trust, fill)
    trust *= 1 - seen.lid
    share = np.clip((trust - 0.08) / 0.35, 0, 1)
    share = (share * share * (3 - 2 * share))[:, None]
    colours = share * photo + (1 - share) * fill * _grain(len(photo))
    if not personal.has_face:
        colours = _painted_face(view, body, personal, points_m, colours)
    colours[inner] = _inner_colours(view, body, personal, points_m[inner])
    covered = (
        hair.covers(points_m) & ~cloth & ~(seen.visible & (seen.facing > 0.2) & (sample(view.hair, seen.uv_px) < 0.4))
    )
    colours[covered], trust[covered] = hair.scalp_colour, 0
    return SkinColours(colours, np.clip(trust, 0, 1), cloth)


def _plain_round_eyes(
    body: BodyModel, personal: Personal, points_m: np.ndarray, photo: np.ndarray, usable: np.ndarray
) -> np.ndarray:
    """[N] bool: false near an eye for creases and make-up, judged by the light on this side of the face."""
    plain = np.ones(len(photo), bool)
    for lids in (LEFT_LIDS, RIGHT_LIDS):
        distance = cKDTree(body.face_landmarks[list(lids)] @ personal.vertices_m).query(points_m)[0]
        around = (distance > 0.4 * EYE_REACH_M) & (distance < EYE_REACH_M) & (usable > 0.5)
        if around.sum() > 20:
            off = lab_distance(photo, np.percentile(photo[around], 75, axis=0), lightness=0.8)
            plain &= (distance > EYE_REACH_M) | (off < EYE_SKIN_DISTANCE)
    return plain


def _lid_colours(
    view: HeadView, personal: Personal, seen: Seen, photo: np.ndarray, trust: np.ndarray, fill: np.ndarray
) -> np.ndarray:
    """[N, 3] the fill with a touch of the lids' own tone and the line of lashes."""
    strip = (seen.lid > 0.9) & (trust > 0.2)
    if not personal.has_face or strip.sum() < 20:
        tone, lashes = fill, view.skin_colour * [0.45, 0.38, 0.35]
    else:
        shown = photo[strip]
        dark = np.argsort(shown.mean(axis=1))[: max(5, len(shown) // 10)]
        tone, lashes = np.median(shown, axis=0), 0.65 * np.median(shown[dark], axis=0)
    mix = (LID_TONE * seen.lid)[:, None]
    # a lid bulges: lighter across its middle than at the crease and the margin
    bulge = 1 + LID_BULGE * seen.lid * (np.exp(-(((seen.normals[:, 1] + 0.05) / 0.3) ** 2)) - 0.4)
    out = ((1 - mix) * fill + mix * tone) * bulge[:, None]
    around, on_lid = np.flatnonzero((seen.lid < 0.3) & (trust > 0.3)), np.flatnonzero(seen.lid >= 0.3)
    if personal.has_face and len(around) > CREASE_SAMPLES and len(on_lid):
        distance, near = cKDTree(seen.closed_m[around]).query(seen.closed_m[on_lid], k=CREASE_SAMPLES)
        soft = 0.85 * np.exp(-((distance.mean(axis=1) / CREASE_M) ** 2))[:, None]
        out[on_lid] = (1 - soft) * out[on_lid] + soft * photo[around][near].mean(axis=1)
    out = _as_light_as_around(out, photo, seen, trust)
    line = (0.9 * seen.lashes)[:, None]
    return (1 - line) * out + line * lashes


def _as_light_as_around(fill: np.ndarray, photo: np.ndarray, seen: Seen, trust: np.ndarray) -> np.ndarray:
    """[N, 3] the fill with each eye's lids brought up to the skin around them, which the crease shades."""
    out, lid = fill.copy(), seen.lid > 0.9
    if not lid.any():
        return out
    middle = seen.closed_m[lid, 0].mean()
    for side in (-1, 1):
        mine = side * (seen.closed_m[:, 0] - middle) > 0
        if not (mine & lid).any():
            continue
        distance = cKDTree(seen.closed_m[mine & lid]).query(seen.closed_m, distance_upper_bound=EYE_REACH_M)[0]
        around = np.isfinite(distance) & (seen.lid < 0.1) & (trust > 0.3)
        if around.sum() > CREASE_SAMPLES:
            wanted = LID_LIGHT * np.percentile(photo[around].mean(axis=1), 60)  # not its creases
            gain = np.clip(wanted / np.median(fill[mine & lid].mean(axis=1)), 1, LID_GAIN)
            out[mine] *= 1 + (gain - 1) * seen.lid[mine, None]
    return out


def _chin_height(body: BodyModel, personal: Personal) -> float:
    """Rest height of the chin's tip, m."""
    return float((body.face_landmarks[[152]] @ personal.vertices_m)[0, 1])


def _cavity_triangles(body: BodyModel, personal: Personal) -> np.ndarray:
    """[T] bool: skin that never shows (sockets, nostrils, inside of the lips); folds that a blink unrolls do show."""
    blinks = [FACIAL_ACTIONS.index(n) for n in ("eyeBlinkLeft", "eyeBlinkRight")]
    unrolled = np.linalg.norm(personal.action_offsets_m[blinks], axis=2).max(axis=0) > UNROLLED_M
    return ~(body.outer | unrolled)[body.triangles].any(axis=1)


def _inner_colours(view: HeadView, body: BodyModel, personal: Personal, points_m: np.ndarray) -> np.ndarray:
    """[N, 3]: the lips' colour inside the lips, dark elsewhere."""
    dark = view.skin_colour * [0.5, 0.36, 0.34]
    lips = body.face_landmarks[list(LIPS)] @ personal.vertices_m
    tone = view.skin_colour * [0.85, 0.6, 0.6]
    if personal.has_face:
        tone = np.median(sample(view.image, view.landmarks_px[list(LIPS), :2]), axis=0) * 0.85
    near = np.clip(1.5 - cKDTree(lips).query(points_m)[0] / 0.012, 0, 1)[:, None]
    return near * tone + (1 - near) * dark


def _painted_face(
    view: HeadView, body: BodyModel, personal: Personal, points_m: np.ndarray, colours: np.ndarray
) -> np.ndarray:
    """[N, 3] plain skin with brows and lips, for a head without a recognised face."""
    out = colours.copy()
    paints = ((BROWS, [0.45, 0.38, 0.35], 0.003, 0.7), (PAINTED_LIPS, [0.9, 0.65, 0.65], 0.004, 0.75))
    for lines, tint, reach, share in paints:
        spots = np.concatenate([_along(body.face_landmarks[list(line)] @ personal.vertices_m) for line in lines])
        near = share * np.exp(-((cKDTree(spots).query(points_m)[0] / reach) ** 2))[:, None]
        out = near * view.skin_colour * tint + (1 - near) * out
    return out


def _along(corners_m: np.ndarray, steps: int = 8) -> np.ndarray:
    """Points along a polyline [K, 3], `steps` per segment."""
    at = np.linspace(0, len(corners_m) - 1, (len(corners_m) - 1) * steps + 1)
    return np.stack([np.interp(at, np.arange(len(corners_m)), corners_m[:, c]) for c in range(3)], axis=1)


def _sample_matrix(sheet: Sheet, body: BodyModel) -> sp.csr_matrix:
    """[N, V] barycentric weights."""
    n = len(sheet.triangles)
    rows = np.repeat(np.arange(n), 3)
    columns = body.triangles[sheet.triangles].ravel()
    return sp.csr_matrix((sheet.bary.ravel(), (rows, columns)), shape=(n, len(body.template_m)))


def _outside_oval(view: HeadView, seen: Seen) -> np.ndarray:
    """[N] bool: beyond the shrunken face oval, where contour pixels mix with hair and shadow."""
    if not len(view.landmarks_px):
        return np.ones(len(seen.facing), bool)
    return sample(view.polygon(FACE_OVAL, shrink=0.86, blur_px=4), seen.uv_px) < 0.5


def _trust(view: HeadView, personal: Personal, seen: Seen, neck: np.ndarray) -> np.ndarray:
    """[N] 0..1: how far the photo's pixel shows this point of the skin (or cloth)."""
    hair = sample(view.hair, seen.uv_px)
    trust = np.clip((seen.facing - 0.12) / 0.55, 0, 1) ** 2 * seen.visible * sample(view.mask_inside, seen.uv_px)
    trust *= 1 - np.clip(1.6 * hair, 0, 1)
    outside = _outside_oval(view, seen) & ~neck
    trust *= np.where(outside, np.clip((seen.facing - 0.42) / 0.2, 0, 1), 1)
    near_hair = cv2.GaussianBlur(cv2.dilate(view.hair, np.ones((17, 17), np.uint8)), (0, 0), 2)
    trust *= np.where(outside, 1 - np.clip(1.5 * sample(near_hair, seen.uv_px), 0, 1), 1)
    if personal.has_face:
        for opening in _openings(view):
            trust *= 1 - (sample(opening, seen.uv_px) > 0.3)
    return trust


def _openings(view: HeadView) -> list[np.ndarray]:
    """Masks [S, S] of what shows through the face: the open mouth and the eyes."""
    out = []
    gap = np.linalg.norm(view.landmarks_px[13, :2] - view.landmarks_px[14, :2])
    if gap > 0.012 * view.face_height_px:
        out.append(cv2.dilate(view.polygon(INNER_LIPS), np.ones((3, 3), np.uint8)))
    # the white of the eye is mixed into the pixels of the rim
    out += [cv2.dilate(view.polygon(lids), np.ones((3, 3), np.uint8)) for lids in (LEFT_LIDS, RIGHT_LIDS)]
    return out


def _cloth(
    view: HeadView,
    body: BodyModel,
    seen: Seen,
    photo: np.ndarray,
    trust: np.ndarray,
    neck: np.ndarray,
    to_vertices: sp.csr_matrix,
) -> np.ndarray:
    """[N] bool: cloth on the neck; told by label and colour where seen, continued over the mesh elsewhere."""
    label = sample((np.isin(view.labels, [Label.UPPER, Label.LOWER, Label.OTHER])).astype(np.float32), seen.uv_px)
    bare = sample((view.labels == Label.SKIN).astype(np.float32), seen.uv_px)
    far = np.clip((lab_distance(photo, view.skin_colour, lightness=0.35) - 16) / 12, 0, 1)
    evidence = np.clip(far + 0.35 * label - 0.35 * bare, 0, 1) * neck
    skull = body.skin_weights[:, list(SKULL_JOINTS)].sum(axis=1) > 0.97
    known = (body.regions == Region.HEAD) & skull & (np.asarray(to_vertices.sum(axis=0)).ravel() > 0)
    # a shadow under the chin has lost its hue: only the label can call it cloth
    shadow = (photo.mean(axis=1) < 0.4 * view.skin_colour.mean()) & (label < 0.5)
    weight = trust * neck * ~shadow
    held = known & ~((to_vertices.T @ neck.astype(float)) > 0)
    field = _harmonic(
        to_vertices,
        body,
        weight,
        evidence[:, None],
        np.array([0.0]),
        prior=1e-3,
        fixed=held,
    )[:, 0]
    return (field > 0.5) & neck


def _harmonic(
    to_vertices: sp.csr_matrix,
    body: BodyModel,
    weight: np.ndarray,
    values: np.ndarray,
    prior_value: np.ndarray,
    prior: float = PRIOR_WEIGHT,
    fixed: np.ndarray | None = None,
) -> np.ndarray:
    """Continue sample values over the mesh.

    Args:
        to_vertices: [N, V] of the samples.
        body: The body model (triangles and mirror map).
        weight: [N] trust in the samples.
        values: [N, C].
        prior_value: [C] weak pull everywhere.
        prior: Weight of the pull.
        fixed: [V] bool, vertices that are held at the prior value.

    Returns:
        [N, C] smooth field at the samples.
    """
    used = np.flatnonzero(np.asarray(to_vertices.sum(axis=0)).ravel() > 0)
    matrix = to_vertices[:, used]
    mass = matrix.T @ weight
    mean = (matrix.T @ (weight[:, None] * values)) / np.maximum(mass, 1e-9)[:, None]
    place = np.full(len(body.template_m), -1)
    place[used] = np.arange(len(used))
    own = np.clip(mass / 0.5, 0, 1)
    other = place[body.mirror[used]]
    mirrored = np.where((other >= 0) & (own < 0.2), own[other], 0)
    total = SEEN_WEIGHT * own * (own >= 0.05) + MIRRORED_WEIGHT * mirrored
    target = SEEN_WEIGHT * (own * (own >= 0.05))[:, None] * mean + (MIRRORED_WEIGHT * mirrored)[:, None] * mean[other]
    pull = np.full(len(used), prior)
    if fixed is not None:
        pull[fixed[used]] = SEEN_WEIGHT
    system = _edge_laplacian(body, place, len(used)) + sp.diags(total + pull)
    solved = splu(system.tocsc()).solve(target + pull[:, None] * prior_value)
    return matrix @ solved


def _edge_laplacian(body: BodyModel, place: np.ndarray, count: int) -> sp.csr_matrix:
    """Graph Laplacian of the used vertices with edge weights 1 / length of the template."""
    triangles = body.triangles[(place[body.triangles] >= 0).all(axis=1)]
    edges = np.unique(
        np.sort(np.vstack([triangles[:, [0, 1]], triangles[:, [1, 2]], triangles[:, [2, 0]]]), axis=1), axis=0
    )
    length = np.linalg.norm(body.template_m[edges[:, 0]] - body.template_m[edges[:, 1]], axis=1)
    a, b = place[edges[:, 0]], place[edges[:, 1]]
    graph = sp.coo_matrix((1 / np.maximum(length, 5e-4), (a, b)), shape=(count, count)).tocsr()
    graph = graph + graph.T
    return sp.diags(np.asarray(graph.sum(axis=1)).ravel()) - graph


def _shading(view: HeadView, seen: Seen, photo: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """[N] relative brightness by direction: first-order harmonics fitted to the trusted skin, 1 on its average."""
    chosen = weight > 0.3
    if chosen.sum() < 200:  # nothing to fit: a soft light from above and in front (camera axes)
        return 0.9 - 0.1 * seen.normals[:, 1] - 0.12 * seen.normals[:, 2]
    basis = np.c_[np.ones(len(photo)), seen.normals]
    light = photo @ [0.299, 0.587, 0.114]
    a = basis[chosen] * weight[chosen, None]
    ridge = np.diag([1e-3, 0.02, 0.02, 0.02]) * len(a)
    factors = np.linalg.solve(a.T @ a + ridge, a.T @ (light[chosen] * weight[chosen]))
    return np.clip(basis @ factors / np.median(basis[chosen] @ factors), 0.6, 1.12)


def _cavities(body: BodyModel, personal: Personal, hair: HairShell, to_vertices: sp.csr_matrix) -> np.ndarray:
    """[N] darkening of folds, as between ear and skull, from how far the neighbours rise above a vertex."""
    vertices = personal.vertices_m.astype(np.float64)
    t = body.triangles
    edges = np.vstack([t[:, [0, 1]], t[:, [1, 2]], t[:, [2, 0]]])
    edges = np.vstack([edges, edges[:, ::-1]])
    n = len(vertices)
    graph = sp.coo_matrix((np.ones(len(edges)), (edges[:, 0], edges[:, 1])), shape=(n, n)).tocsr()
    degree = np.maximum(np.asarray(graph.sum(axis=1)).ravel(), 1)[:, None]
    rise = ((graph @ vertices / degree - vertices) * vertex_normals(vertices, t)).sum(axis=1)
    rise = rise / CAVITY_M
    rise = 0.5 * rise + 0.5 * (graph @ rise) / degree[:, 0]
    ears = ear_vertices(body)
    for side, hidden in zip((1, -1), hair.hidden_ears, strict=True):
        if hidden:  # pressed flat: its creases are crumpled
            rise[ears == side] = 0
    return 1 - np.clip(to_vertices @ rise, -0.05, 0.35)


def _grain(count: int) -> np.ndarray:
    """[N, 1] faint brightness noise, so that filled skin does not look like plastic."""
    return 1 + 0.006 * np.random.default_rng(5).standard_normal((count, 1))


__all__ = ["SkinColours", "colour_skin"]
