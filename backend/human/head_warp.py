"""Bend the fitted head to the photo: landmark warp, skull outline, ears, closed mouth."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.interpolate import RBFInterpolator
from scipy.ndimage import gaussian_filter1d, median_filter
from scipy.spatial import cKDTree

from backend.human.camera import PinholeCamera
from backend.human.head_fit import EYES, HEAD, NECK, SKULL_JOINTS, global_rotations, good_landmarks
from backend.human.head_view import HeadView, lab_distance, sample
from backend.human.model import BodyModel, Region

INNER_LIP_PAIRS = ((82, 87), (13, 14), (312, 317), (81, 178), (311, 402), (80, 88), (310, 318), (191, 95), (415, 324))
UPPER_LIP_RIM = (40, 39, 37, 0, 267, 269, 270)
LOWER_LIP_RIM = (91, 181, 84, 17, 314, 405, 321)
STILL_LANDMARKS = (
    *(61, 291, 78, 308, 2, 164, 98, 327, 152, 199, 175, 50, 280, 205, 425, 207, 427, 214, 434, 148, 377),
    *(176, 400, 169, 394, 1, 10, 234, 454, 33, 263),
)


@dataclass(frozen=True)
class WarpSettings:
    """Lengths in metres."""

    smoothing: float = 1e-5
    neighbours: int = 60
    damped_depth: float = 0.3  # share of the landmarks' own depth; all of it makes the nose 10 mm too long
    depth_limit_m: float = 0.012
    anchor_distance_m: float = 0.045  # anchors keep this distance from the landmarks
    anchor_stride: int = 14
    outline_limits: tuple[float, float] = (0.88, 1.12)
    hair_depth_m: float = 0.003  # the skull stays at least this far inside the hair's outline
    mouth_reach_m: float = 0.075
    mouth_fade_m: float = 0.02


@dataclass(frozen=True)
class PhotoFrame:
    """Affine map of every vertex from rest space to the photo's camera.

    Attributes:
        linear: [V, 3, 3].
        shift: [V, 3] metres.
    """

    linear: np.ndarray
    shift: np.ndarray

    @staticmethod
    def of(
        body: BodyModel, joints_m: np.ndarray, pose: np.ndarray, translation_m: np.ndarray, camera: PinholeCamera
    ) -> PhotoFrame:
        """The map of linear blend skinning followed by the camera."""
        rotations, positions = global_rotations(joints_m, pose)
        shifts = positions - np.einsum("jab,jb->ja", rotations, joints_m)
        weights = body.skin_weights.astype(np.float64)
        linear = np.einsum("vj,jab->vab", weights, rotations)
        shift = weights @ shifts + translation_m
        view, move = camera.w2c[:3, :3], camera.w2c[:3, 3]
        return PhotoFrame(view @ linear, shift @ view.T + move)

    def to_camera(self, rest_m: np.ndarray) -> np.ndarray:
        """Rest vertices [V, 3] in camera space."""
        return np.einsum("vab,vb->va", self.linear, rest_m) + self.shift

    def to_rest(self, vectors_m: np.ndarray) -> np.ndarray:
        """Camera vectors [V, 3] in rest space."""
        return np.linalg.solve(self.linear, vectors_m[..., None])[..., 0]


def pixels(points_m: np.ndarray, camera: PinholeCamera) -> np.ndarray:
    """Camera points [N, 3] to px [N, 2]."""
    return points_m[:, :2] / points_m[:, 2:] * [camera.fx, camera.fy] + [camera.cx, camera.cy]


def vertex_normals(vertices_m: np.ndarray, triangles: np.ndarray) -> np.ndarray:
    """[V, 3] unit normals, weighted by area."""
    v = vertices_m
    cross = np.cross(v[triangles[:, 1]] - v[triangles[:, 0]], v[triangles[:, 2]] - v[triangles[:, 0]])
    normals = np.zeros_like(v)
    for k in range(3):
        np.add.at(normals, triangles[:, k], cross)
    return normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)


def ear_vertices(body: BodyModel) -> np.ndarray:
    """[V] int8: +1 left ear, -1 right ear, 0 elsewhere; a box beside the skull in units of the eyes' distance."""
    eyes = body.joints(body.template_m)[list(EYES)]
    local = (body.template_m - eyes.mean(axis=0)) / np.linalg.norm(eyes[0] - eyes[1])
    across, up, ahead = abs(local[:, 0]), local[:, 1], local[:, 2]
    box = (across > 1.1) & (up > -1.0) & (up < 0.5) & (ahead > -2.4) & (ahead < -0.83)
    on_head = body.skin_weights[:, list(SKULL_JOINTS)].sum(axis=1) > 0.5
    return np.where(box & on_head, np.sign(local[:, 0]), 0).astype(np.int8)


def warp_to_photo(
    view: HeadView,
    body: BodyModel,
    photo_rest_m: np.ndarray,
    frame: PhotoFrame,
    weight: np.ndarray,
    ears: np.ndarray,
    settings: WarpSettings,
) -> np.ndarray:
    """Offsets that put the landmarks on the photo's and the skull inside its outline.

    Args:
        view: The head's crop.
        body: The body model.
        photo_rest_m: [V, 3] rest vertices with the photo's facial actions.
        frame: Rest space to the camera.
        weight: [V] 1 on the head, fading over the neck.
        ears: [V] of `ear_vertices`.
        settings: Settings.

    Returns:
        [V, 3] offsets in rest space.
    """
    points = frame.to_camera(photo_rest_m)
    rows = good_landmarks(body)
    tied = body.face_landmarks[rows] @ points
    target = view.landmarks_px[rows]
    c = view.camera
    wanted = (target[:, :2] - [c.cx, c.cy]) / [c.fx, c.fy] * tied[:, 2:]
    shift = np.c_[wanted - tied[:, :2], _damped_depth(target, tied, c, settings)]
    outline = _outline_shift(view, body, points, ears, settings)
    on_head = np.flatnonzero(weight > 0.02)
    away = cKDTree(tied).query(points[on_head])[0] > settings.anchor_distance_m
    anchors = on_head[away & (body.regions[on_head] == Region.HEAD)][:: settings.anchor_stride]
    field = RBFInterpolator(
        np.vstack([tied, points[anchors]]),
        np.vstack([shift, outline[anchors] * weight[anchors, None]]),
        kernel="linear",
        smoothing=settings.smoothing,
        neighbors=settings.neighbours,
    )
    moved = np.zeros_like(points)
    moved[on_head] = field(points[on_head]) * weight[on_head, None]
    return frame.to_rest(moved)


def _damped_depth(target: np.ndarray, tied_m: np.ndarray, camera: PinholeCamera, settings: WarpSettings) -> np.ndarray:
    """[L] part of the landmarks' depth that is believed, metres along the camera's axis."""
    own = target[:, 2] * tied_m[:, 2].mean() / camera.fx
    beyond = (own - own.mean()) - (tied_m[:, 2] - tied_m[:, 2].mean())
    limit = settings.depth_limit_m
    return settings.damped_depth * np.tanh(beyond / limit) * limit


def _outline_shift(
    view: HeadView, body: BodyModel, points_m: np.ndarray, ears: np.ndarray, settings: WarpSettings
) -> np.ndarray:
    """[V, 3] camera offsets that scale the skull in the image to the mask's outline (bare) or inside it (hair)."""
    skull = (body.regions == Region.HEAD) & (body.skin_weights[:, list(SKULL_JOINTS)].sum(axis=1) > 0.8) & (ears == 0)
    uv = pixels(points_m, view.camera)
    centre = skull_centre_px(view, uv, body)
    polar = uv - centre
    angle, radius = np.arctan2(polar[:, 1], polar[:, 0]), np.linalg.norm(polar, axis=1)
    px_per_m = view.camera.fx / points_m[skull, 2].mean()
    thetas = np.linspace(-np.pi, np.pi, 121)[:-1]
    exits, hairy = outline_by_angle(view, centre, thetas)
    ratio = np.full(len(thetas), np.nan)
    ear_angles = angle[ears != 0]
    for i, theta in enumerate(thetas):
        near = skull & (abs((angle - theta + np.pi) % (2 * np.pi) - np.pi) < 0.06)
        covered = len(ear_angles) and abs((ear_angles - theta + np.pi) % (2 * np.pi) - np.pi).min() < 0.1
        if not near.any() or np.sin(theta) > 0.25 or exits[i] <= 0 or (covered and not hairy[i]):
            continue
        model = radius[near].max()
        bare = exits[i] / model
        ratio[i] = min(1.0, (exits[i] - settings.hair_depth_m * px_per_m) / model) if hairy[i] else bare
    known = np.isfinite(ratio)
    if known.sum() < 10:
        return np.zeros_like(points_m)
    ratio = np.interp(thetas, thetas[known], ratio[known], period=2 * np.pi)
    ratio = np.where(np.sin(thetas) > 0.5, 1 + (ratio - 1) * np.clip((0.9 - np.sin(thetas)) / 0.4, 0, 1), ratio)
    ratio = gaussian_filter1d(median_filter(ratio, 7, mode="wrap"), 3, mode="wrap")
    ratio = np.clip(ratio, *settings.outline_limits)
    factor = np.interp(angle, thetas, ratio, period=2 * np.pi) - 1
    out = np.zeros_like(points_m)
    out[:, :2] = polar * factor[:, None] * points_m[:, 2:] / [view.camera.fx, view.camera.fy]
    return out


def skull_centre_px(view: HeadView, uv_px: np.ndarray, body: BodyModel) -> np.ndarray:
    """[2] middle of the head in the crop: between the eyeballs, a quarter of a face height up."""
    eyes = uv_px[(body.regions == Region.LEFT_EYE) | (body.regions == Region.RIGHT_EYE)].mean(axis=0)
    return eyes - [0, 0.12 * view.face_height_px]


def outline_by_angle(view: HeadView, centre_px: np.ndarray, thetas: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where rays from the skull's centre leave the person.

    Args:
        view: The head's crop.
        centre_px: [2].
        thetas: [A] angles, image axes (y down).

    Returns:
        Exit radius [A] in px (0 where the ray leaves the crop first) and whether hair lies at the exit [A].
    """
    size = view.mask.shape[0]
    radii = np.arange(2, size, dtype=np.float64)
    x = centre_px[0] + np.cos(thetas)[:, None] * radii
    y = centre_px[1] + np.sin(thetas)[:, None] * radii
    inside_crop = (x > 1) & (x < size - 1) & (y > 1) & (y < size - 1)
    uv = np.stack([x.ravel(), y.ravel()], axis=1)
    mask = (sample(view.mask, uv).reshape(x.shape) > 0.5) & inside_crop
    hair = sample(view.hair, uv).reshape(x.shape)
    last = np.where(mask.all(axis=1), len(radii) - 1, np.argmin(mask, axis=1))
    exits = np.where(inside_crop[np.arange(len(thetas)), np.minimum(last, len(radii) - 1)], radii[last], 0)
    hairy = np.zeros(len(thetas), bool)
    for i, j in enumerate(last):
        band = hair[i, max(0, int(0.88 * j)) : max(1, j - 2)]
        hairy[i] = exits[i] > 0 and len(band) > 0 and band.mean() > 0.5
    return exits, hairy


def hidden_ears(view: HeadView, camera_points_m: np.ndarray, ears: np.ndarray) -> tuple[bool, bool]:
    """Whether left and right ear are covered: fewer than 40 % of their pixels have the skin's colour."""
    uv = pixels(camera_points_m, view.camera)
    skin = lab_distance(sample(view.image, uv), view.skin_colour, lightness=0.5) < 20
    bare = skin & (sample(view.mask, uv) > 0.5) & (sample(view.hair, uv) < 0.4)
    return tuple(bool(bare[ears == side].mean() < 0.4) for side in (1, -1))  # type: ignore[return-value]


def flatten_ears(
    rest_m: np.ndarray, ears: np.ndarray, hidden: tuple[bool, bool], joints_m: np.ndarray, body: BodyModel
) -> np.ndarray:
    """[V, 3] offsets that press hidden ears against the skull, so that they do not pierce the hair."""
    eyes = joints_m[list(EYES)]
    unit = np.linalg.norm(eyes[0] - eyes[1])
    level = abs(rest_m[:, 1] - eyes[:, 1].mean() + 0.17 * unit) < 0.5 * unit
    side = level & (ears == 0) & (body.regions == Region.HEAD)
    limit = np.percentile(abs(rest_m[side, 0]), 97)
    x = rest_m[:, 0]
    flat = np.sign(x) * np.minimum(abs(x), limit - 0.001 + 0.08 * np.maximum(abs(x) - limit, 0))
    chosen = ((ears == 1) & hidden[0]) | ((ears == -1) & hidden[1])
    out = np.zeros_like(rest_m)
    out[chosen, 0] = (flat - x)[chosen]
    return out


def close_mouth(
    neutral_m: np.ndarray, photo_rest_m: np.ndarray, body: BodyModel, weight: np.ndarray, settings: WarpSettings
) -> np.ndarray:
    """Offsets that bring the lips of the neutral face together.

    The field is evaluated at the photo's positions, where open lips lie apart, so that it can move each on its own.

    Args:
        neutral_m: [V, 3] rest vertices without actions.
        photo_rest_m: [V, 3] with the photo's actions.
        body: The body model.
        weight: [V] of the head.
        settings: Settings.
    """
    photo, neutral = body.face_landmarks @ photo_rest_m, body.face_landmarks @ neutral_m
    at: list[np.ndarray] = []
    move: list[np.ndarray] = []
    gaps = np.array([(neutral[u] - neutral[low]) * [1, 1, 0] for u, low in INNER_LIP_PAIRS])
    for (upper, lower), gap in zip(INNER_LIP_PAIRS, gaps, strict=True):
        at += [photo[upper], photo[lower]]
        move += [-0.45 * gap, 0.55 * gap]
    mean_gap = gaps.mean(axis=0)
    for indices, share in ((UPPER_LIP_RIM, -0.25), (LOWER_LIP_RIM, 0.35), (STILL_LANDMARKS, 0.0)):
        at += [photo[i] for i in indices]
        move += [share * mean_gap for _ in indices]
    field = RBFInterpolator(np.array(at), np.array(move), kernel="linear", smoothing=1e-6)
    distance = np.linalg.norm(photo_rest_m - photo[13], axis=1)
    near = np.flatnonzero((distance < settings.mouth_reach_m) & (weight > 0.02))
    fade = np.clip((settings.mouth_reach_m - distance[near]) / settings.mouth_fade_m, 0, 1)
    out = np.zeros_like(neutral_m)
    out[near] = field(photo_rest_m[near]) * fade[:, None]
    return out


__all__ = [
    "HEAD",
    "NECK",
    "PhotoFrame",
    "WarpSettings",
    "close_mouth",
    "ear_vertices",
    "flatten_ears",
    "hidden_ears",
    "outline_by_angle",
    "pixels",
    "skull_centre_px",
    "vertex_normals",
    "warp_to_photo",
]
