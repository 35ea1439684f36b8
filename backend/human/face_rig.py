"""The person's facial actions: eyeballs that fit, closing blinks, looks that turn the eyes, teeth behind the lips."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.interpolate import RBFInterpolator
from scipy.spatial.transform import Rotation

from backend.human.camera import PinholeCamera
from backend.human.model import BodyModel, Region
from blender_addon.shared.skeleton import FACIAL_ACTIONS

LOOK_DEGREES = 22.0
"""Turn of an eyeball at full eyeLook*; larger turns show the eyeball's rim (prototype)."""
LID_GAP_M = 0.0006
"""Lids keep this distance from the eyeball, about the thickness of the disc that covers them."""

ARCH_FRONT_M, ARCH_SIDE_M, ARCH_DEPTH_M = 0.009, 0.016, 0.010
"""Half width of the nearly straight front teeth; so far beside it the arch lies so much deeper than the model's."""

UPPER_LIDS = {
    Region.LEFT_EYE: (386, 385, 387, 384, 388, 398, 466),
    Region.RIGHT_EYE: (159, 158, 160, 157, 161, 173, 246),
}
LOWER_LIDS = {Region.LEFT_EYE: (374, 380, 373, 381, 390, 382, 249), Region.RIGHT_EYE: (145, 153, 144, 154, 163, 155, 7)}
EYE_CORNERS = {Region.LEFT_EYE: (362, 263), Region.RIGHT_EYE: (133, 33)}
EYE_SURROUNDINGS = {
    Region.LEFT_EYE: (336, 296, 334, 293, 300, 450, 449, 448, 452, 453, 340, 346, 168, 8),
    Region.RIGHT_EYE: (107, 66, 105, 63, 70, 230, 229, 228, 232, 233, 111, 117, 168, 8),
}
IRIS = {Region.LEFT_EYE: (473, 474, 475, 476, 477), Region.RIGHT_EYE: (468, 469, 470, 471, 472)}
SIDES = {Region.LEFT_EYE: "Left", Region.RIGHT_EYE: "Right"}


@dataclass(frozen=True)
class Eyeball:
    """One eyeball in rest space: centre_m [3], radius_m, unit direction of the photo's gaze [3], iris_radius_m."""

    region: Region
    centre_m: np.ndarray
    radius_m: float
    gaze: np.ndarray
    iris_radius_m: float


def action_index(name: str) -> int:
    """Position of a facial action in `FACIAL_ACTIONS`."""
    return FACIAL_ACTIONS.index(name)


def eyeball_of(body: BodyModel, rest_m: np.ndarray, region: Region) -> tuple[np.ndarray, float]:
    """Centre [3] and radius (m) of an eyeball's vertices, cornea left out."""
    points = rest_m[body.regions == region]
    low, high = points.min(axis=0), points.max(axis=0)
    radius = float((high - low)[:2].mean() / 2)
    centre = (low + high) / 2
    centre[2] = low[2] + radius
    return centre, radius


def fit_eyeball(
    body: BodyModel, region: Region, before_m: np.ndarray, neutral_m: np.ndarray, photo_rest_m: np.ndarray
) -> tuple[np.ndarray, float]:
    """Centre [3] and radius of the eyeball behind the person's lids.

    Args:
        body: The body model.
        region: LEFT_EYE or RIGHT_EYE.
        before_m: [V, 3] rest vertices before the warp, where eyeball and lids agree.
        neutral_m: [V, 3] warped, neutral.
        photo_rest_m: [V, 3] warped, with the photo's actions.
    """
    centre, radius = eyeball_of(body, before_m, region)
    skin = body.regions == Region.HEAD
    lids = skin & (np.linalg.norm(before_m - centre, axis=1) < 1.2 * radius) & (before_m[:, 2] > centre[2])
    if lids.sum() < 8:
        return centre, radius
    rim = list(UPPER_LIDS[region] + LOWER_LIDS[region] + EYE_CORNERS[region])
    moved = body.face_landmarks[rim] @ (neutral_m - before_m)
    fitted = centre + (moved.max(axis=0) + moved.min(axis=0)) / 2 * 0.5 + moved.mean(axis=0) * 0.5
    distances = np.concatenate([np.linalg.norm(state[lids] - fitted, axis=1) for state in (neutral_m, photo_rest_m)])
    return fitted, float(np.clip(np.percentile(distances, 10) - LID_GAP_M, 0.8 * radius, 1.1 * radius))


def gaze_of(
    iris_px: np.ndarray, centre_m: np.ndarray, radius_m: float, camera: PinholeCamera
) -> tuple[np.ndarray, float]:
    """Direction of the gaze in the camera [3] and iris radius (m).

    Args:
        iris_px: [5, 2] centre and four rim points.
        centre_m: [3] eyeball in the camera.
        radius_m: Eyeball radius.
        camera: Camera of `iris_px`.
    """
    ray = np.r_[(iris_px[0] - [camera.cx, camera.cy]) / [camera.fx, camera.fy], 1]
    ray /= np.linalg.norm(ray)
    along = ray @ centre_m
    inside = along**2 - (centre_m @ centre_m - radius_m**2)
    direction = ray * (along - np.sqrt(max(inside, 0))) - centre_m
    rim = np.linalg.norm(iris_px[1:] - iris_px[0], axis=1).mean() / camera.fx * centre_m[2]
    return direction / np.linalg.norm(direction), float(np.clip(rim, 0.0048, 0.0068))


def gaze_actions(eyes: list[Eyeball]) -> dict[str, float]:
    """eyeLook* values, 0..1, that turn the eyes from straight ahead to the photo's gaze."""
    values: dict[str, float] = {}
    for eye in eyes:
        side, outward = SIDES[eye.region], 1 if eye.region == Region.LEFT_EYE else -1
        yaw = np.degrees(np.arctan2(eye.gaze[0], eye.gaze[2])) * outward / LOOK_DEGREES
        pitch = np.degrees(np.arcsin(np.clip(eye.gaze[1], -1, 1))) / LOOK_DEGREES
        for name, value in (("Out", yaw), ("In", -yaw), ("Up", pitch), ("Down", -pitch)):
            values[f"eyeLook{name}{side}"] = float(np.clip(value, 0, 1))
    return values


def set_looks(offsets_m: np.ndarray, neutral_m: np.ndarray, body: BodyModel, eyes: list[Eyeball]) -> None:
    """Make eyeLook* turn the eyeballs about their centres; the lids keep their own motion. In place.

    Args:
        offsets_m: [52, V, 3] facial actions; eyeballs are cleared in all of them.
        neutral_m: [V, 3] with fitted eyeballs.
        body: The body model.
        eyes: Both eyeballs.
    """
    for eye in eyes:
        chosen = body.regions == eye.region
        offsets_m[:, chosen] = 0
        outward = 1 if eye.region == Region.LEFT_EYE else -1
        turns = {"Out": [0, outward, 0], "In": [0, -outward, 0], "Up": [-1, 0, 0], "Down": [1, 0, 0]}
        for name, axis in turns.items():
            turn = Rotation.from_rotvec(np.radians(LOOK_DEGREES) * np.array(axis, float)).as_matrix()
            arm = neutral_m[chosen] - eye.centre_m
            offsets_m[action_index(f"eyeLook{name}{SIDES[eye.region]}"), chosen] = arm @ turn.T - arm


def set_blink(offsets_m: np.ndarray, neutral_m: np.ndarray, body: BodyModel, eye: Eyeball) -> None:
    """Scale and bend eyeBlink* so that the lids of the neutral face just close over the eyeball. In place.

    Args:
        offsets_m: [52, V, 3].
        neutral_m: [V, 3].
        body: The body model.
        eye: The eyeball.
    """
    index = action_index(f"eyeBlink{SIDES[eye.region]}")
    upper, lower = list(UPPER_LIDS[eye.region]), list(LOWER_LIDS[eye.region])
    blink = offsets_m[index].astype(np.float64)
    tie = body.face_landmarks
    opening = (tie[upper[:3]] @ neutral_m - tie[lower[:3]] @ neutral_m)[:, 1].mean()
    travel = (tie[lower[:3]] @ blink - tie[upper[:3]] @ blink)[:, 1].mean()
    blink *= np.clip(opening / max(travel, 1e-6), 0.3, 1.6)
    skin = body.regions == Region.HEAD
    distance = np.linalg.norm(neutral_m - eye.centre_m, axis=1)
    near = np.flatnonzero(skin & (distance < 2.2 * eye.radius_m) & (neutral_m[:, 2] > eye.centre_m[2]))
    fade = np.clip((2.2 * eye.radius_m - distance[near]) / (0.8 * eye.radius_m), 0, 1)[:, None]
    still = lower + list(EYE_CORNERS[eye.region] + EYE_SURROUNDINGS[eye.region])
    for _ in range(3):  # pushing the lid out of the eyeball opens it a little again
        closed = neutral_m + blink
        gap = tie[upper] @ closed - tie[lower] @ closed
        gap[:, 1] += 0.0004  # overlap: margins are drawn as discs
        at = np.vstack([tie[upper] @ neutral_m, tie[still] @ neutral_m])
        field = RBFInterpolator(at, np.vstack([-gap, np.zeros((len(still), 3))]), kernel="linear", smoothing=1e-7)
        blink[near] += field(neutral_m[near]) * fade
        arm = neutral_m[near] + blink[near] - eye.centre_m
        length = np.linalg.norm(arm, axis=1, keepdims=True)
        inside = np.clip(eye.radius_m + LID_GAP_M - length, 0, None)
        blink[near] += np.where(length < 1.05 * eye.radius_m, arm / length * inside * fade, 0)
    offsets_m[index] = blink


def place_teeth(
    rest_m: np.ndarray, before_m: np.ndarray, body: BodyModel, scale_limits: tuple[float, float] = (0.92, 1.08)
) -> np.ndarray:
    """[V, 3] vertices with the teeth moved rigidly behind the person's neutral lips.

    Args:
        rest_m: [V, 3] neutral, warped.
        before_m: [V, 3] before the warp, where teeth and lips agree.
        body: The body model.
        scale_limits: Limits of the arcs' width relative to the model's.
    """
    tie = body.face_landmarks
    corners = [78, 308]
    old, new = (
        np.r_[(tie[corners] @ v)[:, 0].mean(), (tie[[13, 14]] @ v)[:, 1:].mean(axis=0)] for v in (before_m, rest_m)
    )
    wide, narrow = (np.linalg.norm(np.diff(tie[corners] @ v, axis=0)) for v in (rest_m, before_m))
    scale = np.array([np.clip(wide / narrow, *scale_limits), 1, 1])
    out = rest_m.copy()
    chosen = np.isin(body.regions, [Region.UPPER_TEETH, Region.LOWER_TEETH])
    arm = (before_m[chosen] - old) * scale
    # behind the canines the rows turn back: flat ones would come through the corners of a smile
    arm[:, 2] -= ARCH_DEPTH_M * (np.clip(abs(arm[:, 0]) - ARCH_FRONT_M, 0, None) / ARCH_SIDE_M) ** 2
    out[chosen] = arm + new
    return out


def lengthen_teeth(rest_m: np.ndarray, body: BodyModel, lowest_y_m: float, most: float = 1.8) -> None:
    """Stretch the upper teeth down to where the photo's smile shows their edge. In place.

    Args:
        rest_m: [V, 3] neutral vertices with placed teeth.
        body: The body model.
        lowest_y_m: Rest height of the edge on the photo.
        most: Upper limit of the stretch.
    """
    upper = body.regions == Region.UPPER_TEETH
    if not upper.any():
        return
    x, y = rest_m[upper, 0], rest_m[upper, 1]
    aside = np.clip((abs(x - x.mean()) - ARCH_FRONT_M) / ARCH_SIDE_M, 0, 1)  # the hidden ones keep their length
    stretch = 1 + (np.clip((y.max() - lowest_y_m) / np.ptp(y), 1.0, most) - 1) * (1 - aside)
    rest_m[upper, 1] = y.max() + (y - y.max()) * stretch
