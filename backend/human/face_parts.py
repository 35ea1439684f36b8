"""Gaussians of the eyes, the teeth and the inside of the mouth."""

from __future__ import annotations

import cv2
import numpy as np
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

from backend.human.face_rig import IRIS, eyeball_of, gaze_of
from backend.human.head_skin import Sheet, tile_triangles
from backend.human.head_view import LEFT_LIDS, RIGHT_LIDS, HeadView, mouth_opening, sample
from backend.human.head_warp import PhotoFrame, pixels
from backend.human.model import BodyModel, Region
from backend.human.personal import Personal
from backend.splats.bound import BoundSplats, Kind, bind_points

EYE_GAUSSIANS = 1400
EYE_REACH = -0.45  # cosine of the angle from the pole up to which the eyeball is covered
TEETH_COLOUR = np.array([0.84, 0.79, 0.72])
GUM_COLOUR = np.array([0.62, 0.36, 0.35])
CAVITY_COLOUR = np.array([0.19, 0.06, 0.06])
TONGUE_COLOUR = np.array([0.58, 0.3, 0.3])
CAVITY_DEPTH_M, TONGUE_DEPTH_M = 0.022, 0.034
"""Behind the lips and behind the tongue's tip no light remains."""
IRIS_COLOUR = np.array([0.28, 0.19, 0.12])
SCLERA_COLOUR = np.array([0.86, 0.84, 0.83])


def eye_splats(view: HeadView, body: BodyModel, personal: Personal, frame: PhotoFrame, region: Region) -> BoundSplats:
    """Gaussians on the sphere of one eyeball, bound to its triangles: iris and pupil at the pole, sclera around.

    Args:
        view: The head's crop.
        body: The body model.
        personal: The personalised head.
        frame: Rest space to the camera.
        region: LEFT_EYE or RIGHT_EYE.
    """
    rest = personal.vertices_m.astype(np.float64)
    centre, radius = eyeball_of(body, rest, region)
    directions = _cap(EYE_GAUSSIANS, EYE_REACH)
    axes = np.cross(directions, [0, 1, 0.01])
    axes /= np.linalg.norm(axes, axis=1, keepdims=True)
    rotations = np.stack([axes, np.cross(directions, axes), directions], axis=2)
    points = centre + radius * directions
    triangles = np.flatnonzero((body.regions[body.triangles] == region).all(axis=1))
    triangles = triangles[cKDTree(rest[body.triangles[triangles]].mean(axis=1)).query(points)[1]]
    bary = np.full((len(points), 3), 1 / 3)
    offsets, quaternions = bind_points(points, rotations, triangles, bary, rest, body.triangles)
    colours, seen = _eye_colours(view, personal, frame, body, region, directions, centre, radius)
    spacing = radius * np.sqrt(2 * np.pi * (1 - EYE_REACH) / len(points))
    n = len(points)
    return BoundSplats(
        triangles=triangles,
        bary=bary,
        offsets_m=offsets,
        rotations_wxyz=quaternions,
        scales_m=np.tile([0.62 * spacing, 0.62 * spacing, 0.1 * spacing], (n, 1)),
        opacities=np.full(n, 0.97),
        colours=np.clip(colours, 0, 1),
        confidence=0.8 * seen,
        kind=np.full(n, Kind.EYE),
        colour_gate=0.6 * np.clip((0.8 * seen - 0.05) / 0.3, 0, 1),
        shape_gate=np.zeros(n),
        opacity_floor=np.full(n, 0.9),
    )


def _cap(count: int, lowest: float) -> np.ndarray:
    """[count, 3] even directions about +z with z >= lowest."""
    i = np.arange(count) + 0.5
    z = 1 - (1 - lowest) * i / count
    turn = np.pi * (1 + 5**0.5) * i
    across = np.sqrt(1 - z**2)
    return np.c_[across * np.cos(turn), across * np.sin(turn), z]


def _eye_colours(
    view: HeadView,
    personal: Personal,
    frame: PhotoFrame,
    body: BodyModel,
    region: Region,
    directions: np.ndarray,
    centre: np.ndarray,
    radius: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Colours [N, 3] and which points the photo shows [N]."""
    angle = np.arccos(np.clip(directions[:, 2], -1, 1))
    if not personal.has_face:
        iris = np.arcsin(0.0055 / radius)
        return _eye_pattern(angle, iris, np.tile(IRIS_COLOUR, (5, 1)), SCLERA_COLOUR, directions), np.zeros(len(angle))
    ball = body.regions == region
    turn, shift = frame.linear[ball].mean(axis=0), frame.shift[ball].mean(axis=0)
    gaze, iris_m = gaze_of(view.landmarks_px[list(IRIS[region]), :2], turn @ centre + shift, radius, view.camera)
    iris = float(np.arcsin(np.clip(iris_m / radius, 0, 0.9)))
    look = Rotation.align_vectors(np.linalg.solve(turn, gaze)[None], [[0, 0, 1]])[0].as_matrix()
    uv = pixels((centre + radius * directions @ look.T) @ turn.T + shift, view.camera)
    lids = LEFT_LIDS if region == Region.LEFT_EYE else RIGHT_LIDS
    opening = cv2.erode(view.polygon(lids), np.ones((3, 3), np.uint8))
    seen = (sample(opening, uv) > 0.9) & (directions[:, 2] > 0.2)
    photo = sample(view.image, uv)
    pixels_inside = view.image[opening > 0]
    bright = pixels_inside.mean(axis=1)
    white = pixels_inside[bright >= np.percentile(bright, 75)] if len(bright) else SCLERA_COLOUR[None]
    sclera = 0.65 * np.median(white, axis=0) + 0.35 * SCLERA_COLOUR * np.clip(white.mean() / 0.75, 0.6, 1)
    rings = _iris_rings(photo, seen, angle, iris, directions)
    pattern = _eye_pattern(angle, iris, rings, sclera, directions)
    return np.where(seen[:, None], 0.35 * pattern + 0.65 * photo, pattern), seen.astype(np.float64)


def _iris_rings(
    photo: np.ndarray, seen: np.ndarray, angle: np.ndarray, iris: float, directions: np.ndarray
) -> np.ndarray:
    """[5, 3] median colours from the pupil to the limbus, from the lower half, which the lid does not shade."""
    ring = (angle / iris * 5).astype(int)
    lower = directions[:, 1] < 0.35 * np.sin(iris)
    out = np.tile(IRIS_COLOUR, (5, 1))
    for k in range(5):
        chosen = seen & (ring == k) & lower
        chosen = chosen if chosen.sum() > 3 else seen & (ring == k)
        if chosen.sum() > 2:
            out[k] = np.median(photo[chosen], axis=0)
    out[0], out[1] = np.minimum(out[0], 0.07), np.minimum(out[1], 0.12)
    return out


def _eye_pattern(
    angle: np.ndarray, iris: float, rings: np.ndarray, sclera: np.ndarray, directions: np.ndarray
) -> np.ndarray:
    """[N, 3] generic eye: dark pupil, iris by rings, darker limbus, sclera shaded to the sides and under the lid."""
    shade = np.clip(1.03 - 0.25 * (angle / 1.5) ** 2 - 0.18 * np.clip(directions[:, 1] - 0.1, 0, 1), 0.5, 1)
    colours = sclera * shade[:, None]
    inside = angle < 1.02 * iris
    position = np.clip(angle[inside] / iris * 5 - 0.5, 0, 4)
    low = np.floor(position).astype(int)
    mix = (position - low)[:, None]
    grain = 1 + 0.06 * np.random.default_rng(1).standard_normal((int(inside.sum()), 1))
    colours[inside] = (rings[low] * (1 - mix) + rings[np.minimum(low + 1, 4)] * mix) * grain
    limbus = (angle > 0.88 * iris) & (angle < 1.05 * iris)
    colours[limbus] *= 0.75
    # a small light on the cornea keeps the eye alive where the photo shows none
    light = np.array([0.16, 0.2, 1.0]) / np.linalg.norm([0.16, 0.2, 1.0])
    glint = np.exp(-((np.arccos(np.clip(directions @ light, -1, 1)) / 0.055) ** 2))[:, None]
    return colours * (1 - 0.75 * glint) + 0.75 * glint


def mouth_splats(body: BodyModel, personal: Personal) -> BoundSplats:
    """Gaussians of the bag behind the lips and the tongue; dark, darker with depth, never changed by a photo."""
    rest = personal.vertices_m.astype(np.float64)
    inside = np.isin(body.regions, [Region.MOUTH, Region.TONGUE])
    chosen = np.flatnonzero(
        inside[body.triangles].any(axis=1) & (body.regions[body.triangles] != Region.BODY).all(axis=1)
    )
    if not len(chosen):
        return _nothing()  # SMPL-X has no inside of the mouth
    sheet = tile_triangles(rest, body.triangles, chosen, np.full(len(chosen), 2.2e-3))
    points = sheet.points(rest, body.triangles)
    tongue = (body.regions[body.triangles[sheet.triangles]] == Region.TONGUE).any(axis=1)
    lips = (body.face_landmarks[[13, 14]] @ rest)[:, 2].min()
    colours = CAVITY_COLOUR * (1.1 - 1.0 * np.clip((lips - points[:, 2]) / CAVITY_DEPTH_M, 0, 1))[:, None]
    if tongue.any():
        colours[tongue] = _tongue_colours(points[tongue])
    zero = np.zeros(len(points))
    return sheet.bound(colours, Kind.MOUTH, zero, (zero, zero), opacity_floor=0.9)


def _tongue_colours(points_m: np.ndarray) -> np.ndarray:
    """[N, 3] light at the tip, dark towards the throat, with the furrow along the middle."""
    behind = np.clip((points_m[:, 2].max() - points_m[:, 2]) / TONGUE_DEPTH_M, 0, 1)
    aside = points_m[:, 0] - 0.5 * (points_m[:, 0].min() + points_m[:, 0].max())
    furrow = 0.14 * np.exp(-((aside / 0.0018) ** 2))
    edge = 0.3 * np.clip((abs(aside) - 0.012) / 0.01, 0, 1)
    light = (1 - 0.9 * behind**0.7) * (1 - furrow) * (1 - edge)
    return CAVITY_COLOUR * 0.15 + light[:, None] * TONGUE_COLOUR


def teeth_splats(view: HeadView, body: BodyModel, personal: Personal, frame: PhotoFrame) -> BoundSplats:
    """Gaussians of both rows of teeth; where the photo shows teeth between the lips, in its colours."""
    rest = personal.vertices_m.astype(np.float64)
    teeth = np.isin(body.regions, [Region.UPPER_TEETH, Region.LOWER_TEETH])
    chosen = np.flatnonzero(teeth[body.triangles].all(axis=1))
    if not len(chosen):
        return _nothing()
    sheet = tile_triangles(rest, body.triangles, chosen, np.full(len(chosen), 0.9e-3))
    points = sheet.points(rest, body.triangles)
    upper = (body.regions[body.triangles[sheet.triangles]] == Region.UPPER_TEETH).all(axis=1)
    tone, photo, share = _seen_teeth(view, body, personal, frame, sheet)
    pattern = np.zeros((len(points), 3))
    for row in (upper, ~upper):
        pattern[row] = _tooth_pattern(points[row], tone, is_upper=bool(row is upper))
    colours = share[:, None] * photo + (1 - share[:, None]) * pattern
    zero = np.zeros(len(points))
    return sheet.bound(colours, Kind.TEETH, 0.3 * share, (0.12 * (share > 0.1), zero), opacity_floor=0.9)


def _seen_teeth(
    view: HeadView, body: BodyModel, personal: Personal, frame: PhotoFrame, sheet: Sheet
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Colour of the person's teeth [3], the photo at the samples [N, 3] and its share [N]."""
    n = len(sheet.triangles)
    nothing = TEETH_COLOUR, np.zeros((n, 3)), np.zeros(n)
    if not personal.has_face:
        return nothing
    mouth = mouth_opening(view)
    if mouth is None:
        return nothing
    shown = view.image[mouth]
    bright = shown[shown.mean(axis=1) > np.percentile(shown.mean(axis=1), 60)] if len(shown) > 100 else shown[:0]
    tone = np.median(bright, axis=0) if len(bright) > 40 and bright.mean() > 0.5 else TEETH_COLOUR
    uv = pixels(sheet.points(frame.to_camera(personal.photo_rest_m().astype(np.float64)), body.triangles), view.camera)
    photo = sample(view.image, uv)
    light = np.clip((photo.mean(axis=1) - 0.42) / 0.15, 0, 1)
    return tone, photo, 0.85 * light * (sample(mouth.astype(np.float32), uv) > 0.9)


def _tooth_pattern(points_m: np.ndarray, tone: np.ndarray, *, is_upper: bool) -> np.ndarray:
    """[N, 3] single teeth along the arc, gums at the root, darker towards the corners."""
    order = np.argsort(points_m[:, 0])
    knots = np.linspace(points_m[:, 0].min(), points_m[:, 0].max(), 60)
    depth = np.interp(knots, points_m[order, 0], points_m[order, 2])
    length = np.r_[0, np.cumsum(np.hypot(np.diff(knots), np.diff(depth)))]
    along = np.interp(points_m[:, 0], knots, length) - length[-1] / 2
    width = np.where(abs(along) < 0.009, 0.0085, 0.0072)
    gap = abs(along / width) % 1
    gap = np.minimum(gap, 1 - gap)
    low, high = points_m[:, 1].min(), points_m[:, 1].max()
    root = (points_m[:, 1] - low) / (high - low)
    root = root if is_upper else 1 - root
    colours = tone * (1 - 0.3 * np.exp(-((gap / 0.05) ** 2)))[:, None] * (1 if is_upper else 0.9)
    gum = np.clip((root - 0.72) / 0.1, 0, 1)[:, None]
    shadow = (0.8 * np.clip((abs(along) - 0.008) / 0.024, 0, 1) ** 1.3)[:, None]  # the corners lie in the cavity's
    return (colours * (1 - gum) + GUM_COLOUR * gum) * (1 - shadow) + CAVITY_COLOUR * shadow


def _nothing() -> BoundSplats:
    zero = np.zeros(0)
    three = np.zeros((0, 3))
    return BoundSplats(zero, three, three, np.zeros((0, 4)), three, zero, three, zero, zero, zero, zero, zero)
