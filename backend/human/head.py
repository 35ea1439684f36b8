"""The person's own head: placed and bent to the photo, with personalised facial actions, and its Gaussians."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.spatial.transform import Rotation

from backend.context import Context
from backend.human.face_parts import eye_splats, mouth_splats, teeth_splats
from backend.human.face_rig import (
    IRIS,
    Eyeball,
    action_index,
    eyeball_of,
    fit_eyeball,
    gaze_actions,
    gaze_of,
    lengthen_teeth,
    place_teeth,
    set_blink,
    set_looks,
)
from backend.human.fit import BodyFit
from backend.human.hair import hair_splats
from backend.human.head_fit import (
    EYES,
    HEAD,
    NECK,
    SKULL_JOINTS,
    HeadFitSettings,
    HeadPlacement,
    global_rotations,
    head_weight,
    place_head,
)
from backend.human.head_skin import skin_splats
from backend.human.head_view import HeadView, head_view, paste, teeth_edge_row
from backend.human.head_warp import (
    PhotoFrame,
    WarpSettings,
    close_mouth,
    ear_vertices,
    flatten_ears,
    hidden_ears,
    pixels,
    warp_to_photo,
)
from backend.human.model import BodyModel, Region
from backend.human.personal import Personal
from backend.perception.people import Person
from backend.splats.bound import BoundSplats, concatenate
from blender_addon.shared.skeleton import FACIAL_ACTIONS, PARENTS

NECK_SHARE = 0.4
"""Part of the head's turn against the chest that the neck takes."""


@dataclass(frozen=True)
class HeadSettings:
    """All settings of `personalise_head`."""

    fit: HeadFitSettings = HeadFitSettings()
    warp: WarpSettings = WarpSettings()


@dataclass(frozen=True)
class _Placed:
    """The body fit with the landmark fit's head before the warp: rest vertices, joints, pose, head weight, actions."""

    rest_m: np.ndarray
    joints_m: np.ndarray
    pose: np.ndarray
    weight: np.ndarray
    actions: np.ndarray
    scale: float


def personalise_head(
    person: Person, body: BodyModel, fit: BodyFit, context: Context, settings: HeadSettings = HeadSettings()
) -> Personal:
    """Give the fitted body the person's head.

    With the camera of the body fit, head and neck are turned to the face landmarks, the head is scaled, shaped and
    bent to them, the photo's expression is taken out of the neutral face, and the 52 actions are adapted.

    Args:
        person: The person on the photo.
        body: The body model.
        fit: The whole-body fit.
        context: Progress and cancelling.
        settings: Settings.

    Returns:
        The proxy in rest pose. Without a face the head stays the model's and only the hair label is filled.
    """
    context.raise_if_cancelled()
    rest, joints = (np.asarray(a, np.float64) for a in body.rest(fit.betas))
    view = _view_of(person, body, rest, joints, fit)
    hair = paste(view.hair, view, fit.camera)
    if not len(person.face_px):
        return _model_head(body, fit, rest, joints, hair)
    context.progress("head", 0, 3, "landmarks")
    placed = _place(person, body, fit, rest, joints, settings)
    context.progress("head", 1, 3, "warp")
    frame = PhotoFrame.of(body, placed.joints_m, placed.pose, fit.translation_m, fit.camera)
    offsets = placed.scale * np.moveaxis(body.action_dirs_m.astype(np.float64), 2, 0)
    neutral, photo = _bend(view, body, placed, frame, offsets, settings.warp)
    context.raise_if_cancelled()
    context.progress("head", 2, 3, "actions")
    return _finish(view, body, fit, placed, frame, offsets, neutral, photo, hair)


def head_splats(person: Person, body: BodyModel, personal: Personal, context: Context) -> BoundSplats:
    """All Gaussians of head, neck, eyes, teeth, mouth and hair, bound to head triangles.

    Args:
        person: The person on the photo.
        body: The body model.
        personal: Of `personalise_head`.
        context: Progress and cancelling.
    """
    frame = PhotoFrame.of(body, personal.joints_m, personal.pose, personal.translation_m, personal.camera)
    points = frame.to_camera(personal.photo_rest_m().astype(np.float64))
    view = head_view(person, personal.camera, pixels(body.face_landmarks @ points, personal.camera))
    context.progress("head splats", 0, 3, "hair")
    hair = hair_splats(person, view, body, personal, frame)
    context.raise_if_cancelled()
    context.progress("head splats", 1, 3, "skin")
    skin = skin_splats(view, body, personal, frame, hair)
    context.raise_if_cancelled()
    context.progress("head splats", 2, 3, "eyes and mouth")
    parts = [skin, hair.splats, mouth_splats(body, personal), teeth_splats(view, body, personal, frame)]
    for region in IRIS:
        parts.append(eye_splats(view, body, personal, frame, region))
    return concatenate([p for p in parts if len(p)])


def _view_of(person: Person, body: BodyModel, rest: np.ndarray, joints: np.ndarray, fit: BodyFit) -> HeadView:
    frame = PhotoFrame.of(body, joints, fit.pose, fit.translation_m, fit.camera)
    return head_view(person, fit.camera, pixels(body.face_landmarks @ frame.to_camera(rest), fit.camera))


def _model_head(body: BodyModel, fit: BodyFit, rest: np.ndarray, joints: np.ndarray, hair: np.ndarray) -> Personal:
    """The body fit as it is, with the model's actions."""
    offsets = np.moveaxis(body.action_dirs_m.astype(np.float64), 2, 0).copy()
    eyes = [Eyeball(r, *eyeball_of(body, rest, r), np.array([0, 0, 1.0]), 0.0055) for r in IRIS]
    set_looks(offsets, rest, body, eyes)
    for eye in eyes:
        set_blink(offsets, rest, body, eye)
    return Personal(
        vertices_m=rest.astype(np.float32),
        joints_m=joints,
        pose=np.asarray(fit.pose, np.float64),
        translation_m=np.asarray(fit.translation_m, np.float64),
        camera=fit.camera,
        actions=np.zeros(len(FACIAL_ACTIONS)),
        action_offsets_m=offsets.astype(np.float32),
        photo_offset_m=np.zeros_like(rest, dtype=np.float32),
        hair=hair.astype(np.float32),
        has_face=False,
    )


def _place(
    person: Person, body: BodyModel, fit: BodyFit, rest: np.ndarray, joints: np.ndarray, settings: HeadSettings
) -> _Placed:
    """Turn neck and head to the landmarks; what is left of position and size becomes a smooth offset of the head."""
    rotations, positions = global_rotations(joints, fit.pose)
    view = fit.camera.w2c[:3, :3]
    start = fit.camera.to_camera((positions[HEAD] + fit.translation_m)[None])[0]
    landmarks = person.face_px.astype(np.float64)
    found = place_head(landmarks, body, rest, joints[HEAD], fit.camera, view @ rotations[HEAD], start, settings.fit)
    pose = np.asarray(fit.pose, np.float64).copy()
    chest = rotations[PARENTS[NECK]]
    turn = Rotation.from_matrix(chest.T @ view.T @ found.rotation).as_rotvec()
    pose[NECK], pose[HEAD] = NECK_SHARE * turn, (1 - NECK_SHARE) * turn
    pose[list(SKULL_JOINTS[1:])] = 0
    weight = head_weight(body)
    grown = found.scale * (rest - joints[HEAD] + found.shape_offset_m) + joints[HEAD]
    shift = _head_shift(fit, found, joints, pose)
    new_rest = rest + weight[:, None] * (grown + shift - rest)
    new_joints = joints.copy()
    for j in SKULL_JOINTS:
        new_joints[j] = found.scale * (joints[j] - joints[HEAD]) + joints[HEAD] + shift
    return _Placed(new_rest, new_joints, pose, weight, found.actions, found.scale)


def _head_shift(fit: BodyFit, found: HeadPlacement, joints: np.ndarray, pose: np.ndarray) -> np.ndarray:
    """[3] rest offset of the head joint that puts it where the landmarks say, with the neck already turned."""
    rotations, positions = global_rotations(joints, pose)
    target = fit.camera.to_world(found.origin_camera_m[None])[0] - fit.translation_m
    return rotations[NECK].T @ (target - positions[HEAD])


def _bend(
    view: HeadView,
    body: BodyModel,
    placed: _Placed,
    frame: PhotoFrame,
    offsets: np.ndarray,
    settings: WarpSettings,
) -> tuple[np.ndarray, np.ndarray]:
    """Neutral rest vertices with closed mouth [V, 3] and those of the photo's face [V, 3]; eyeballs follow later."""
    expression = np.tensordot(placed.actions, offsets, axes=1)
    ears = ear_vertices(body)
    before = placed.rest_m + expression
    warp = warp_to_photo(view, body, before, frame, placed.weight, ears, settings)
    hidden = hidden_ears(view, frame.to_camera(before + warp), ears)
    warp += flatten_ears(placed.rest_m, ears, hidden, placed.joints_m, body)
    neutral, photo = placed.rest_m + warp, before + warp
    return neutral + close_mouth(neutral, photo, body, placed.weight, settings), photo


def _finish(
    view: HeadView,
    body: BodyModel,
    fit: BodyFit,
    placed: _Placed,
    frame: PhotoFrame,
    offsets: np.ndarray,
    neutral: np.ndarray,
    photo: np.ndarray,
    hair: np.ndarray,
) -> Personal:
    """Eyeballs, teeth, blink and looks; everything else between neutral and photo becomes the photo offset."""
    joints = placed.joints_m.copy()
    neutral = place_teeth(neutral, placed.rest_m, body)
    row = teeth_edge_row(view)
    if row is not None:
        lengthen_teeth(neutral, body, _height_of_row(view, body, frame, neutral, row))
    eyes: list[Eyeball] = []
    turn = frame.linear[body.regions == Region.LEFT_EYE].mean(axis=0)
    for region, joint in zip(IRIS, EYES, strict=True):
        centre, radius = fit_eyeball(body, region, placed.rest_m, neutral, photo)
        old_centre, old_radius = eyeball_of(body, placed.rest_m, region)
        ball = body.regions == region
        neutral[ball] = (placed.rest_m[ball] - old_centre) * (radius / old_radius) + centre
        camera_centre = turn @ centre + frame.shift[ball].mean(axis=0)
        gaze, iris = gaze_of(view.landmarks_px[list(IRIS[region]), :2], camera_centre, radius, view.camera)
        eyes.append(Eyeball(region, centre, radius, np.linalg.solve(turn, gaze), iris))
        joints[joint] = centre
    actions = placed.actions.copy()
    for name, value in gaze_actions(eyes).items():
        actions[action_index(name)] = value
    set_looks(offsets, neutral, body, eyes)
    for eye in eyes:
        set_blink(offsets, neutral, body, eye)
    rest_of_photo = photo - (neutral + np.tensordot(actions, offsets, axes=1))
    inner = body.regions >= Region.LEFT_EYE
    rest_of_photo[inner & (body.regions != Region.MOUTH)] = 0
    return Personal(
        vertices_m=neutral.astype(np.float32),
        joints_m=joints,
        pose=placed.pose,
        translation_m=np.asarray(fit.translation_m, np.float64),
        camera=fit.camera,
        actions=actions,
        action_offsets_m=offsets.astype(np.float32),
        photo_offset_m=rest_of_photo.astype(np.float32),
        hair=hair.astype(np.float32),
        has_face=True,
    )


def _height_of_row(view: HeadView, body: BodyModel, frame: PhotoFrame, rest: np.ndarray, row_px: float) -> float:
    """Rest height (m) at which the front of the upper teeth crosses a row of the crop."""
    upper = np.flatnonzero(body.regions == Region.UPPER_TEETH)
    if not len(upper):
        return np.inf
    front = upper[rest[upper, 2] > np.percentile(rest[upper, 2], 70)]
    rows = pixels(frame.to_camera(rest)[front], view.camera)[:, 1]
    slope, offset = np.polyfit(rows, rest[front, 1], 1)
    return float(slope * row_px + offset)


__all__ = ["HeadSettings", "head_splats", "personalise_head"]
