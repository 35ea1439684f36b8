"""Before which camera a motion is shown to a video model, and the picture of the person that it gets.

PERSONA's camera is fixed: 576 x 1024 pixels, a focal length of 2000 px, the principal point in the middle; ours stands
as near as the motion allows. The reference shows the masked photo on white, where the track's first pose stands.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np

from backend.diffusion.interfaces import PoseTrack
from backend.diffusion.pose_track import pose_track
from backend.human.camera import PinholeCamera
from backend.human.lbs import apply_transforms, vertex_transforms
from backend.human.model import BodyModel
from backend.human.personal import Personal
from backend.human.pose_tracks import PoseSequence
from backend.perception.people import Person

PUBLISHED_HEIGHT_PX, PUBLISHED_FOCAL_PX = 1024, 2000.0
MARGIN = 0.03
"""Free border around the motion, of the picture's height: hair and clothes reach beyond the body."""

_BOUND_POINTS = 500
_STEADY = (0, 2, 5, 7, 8, 11, 12, 23, 24, 25, 26, 27, 28, 29, 30, 31, 32)
"""Landmarks of head, trunk and legs: arms seldom hang in the photo as in the motion's first pose."""


@dataclass(frozen=True)
class Subject:
    """The fitted and dressed person.

    Attributes:
        person: The photo.
        body: The body model with what the clothes add to its mesh (`Dressed.body`).
        personal: The fitted person on that mesh (`Dressed.wearer`).
        rest_m: [V, 3] rest vertices, dressed, neutral face.
    """

    person: Person
    body: BodyModel
    personal: Personal
    rest_m: np.ndarray

    def translations_m(self, motion: PoseSequence) -> np.ndarray:
        """[F, 3] float64 that put the pelvis where the motion has it."""
        return np.asarray(motion.pelvis_m, np.float64) - self.personal.joints_m[0]

    def posed_m(self, pose: np.ndarray, translation_m: np.ndarray, actions: np.ndarray | None = None) -> np.ndarray:
        """[V, 3] dressed vertices in a pose [55, 3] with facial actions [52]."""
        rest = np.asarray(self.rest_m, np.float64)
        if actions is not None and actions.any():
            rest = rest + np.tensordot(actions, self.personal.action_offsets_m, axes=1)
        weights, twist = self.body.twist.skin_weights, self.body.twist
        return apply_transforms(vertex_transforms(self.personal.joints_m, pose, weights, translation_m, twist), rest)


def motion_camera(
    subject: Subject, motions: Sequence[PoseSequence], width_px: int = 576, height_px: int = 1024
) -> PinholeCamera:
    """A level camera at +Z, as near as it may stand for the whole of all motions to stay in the frame.

    Args:
        subject: Who moves.
        motions: How.
        width_px: Of a frame.
        height_px: Of a frame; the focal length is the published one for this height.
    """
    chosen = np.flatnonzero(subject.body.outer)
    chosen = chosen[:: max(1, len(chosen) // _BOUND_POINTS)]
    rest = np.asarray(subject.rest_m, np.float64)[chosen]
    weights, twist = subject.body.twist.skin_weights[chosen], subject.body.twist
    points = []
    for motion in motions:
        for pose, shift in zip(motion.poses[::5], subject.translations_m(motion)[::5], strict=True):
            moved = vertex_transforms(subject.personal.joints_m, pose, weights, shift, twist)
            points.append(apply_transforms(moved, rest))
    x, y, z = np.concatenate(points).T
    focal = PUBLISHED_FOCAL_PX * height_px / PUBLISHED_HEIGHT_PX
    free = MARGIN * height_px
    across, up = (width_px / 2 - free) / focal, (height_px / 2 - free) / focal
    # a point is inside where |x - cx| <= across (distance - z): the least distance for which one cx suits all points
    distance = max(
        float((x + across * z).max() - (x - across * z).min()) / (2 * across),
        float((y + up * z).max() - (y - up * z).min()) / (2 * up),
        float(z.max()) + 0.5,
    )
    middle = [((v + k * z).max() + (v - k * z).min()) / 2 for v, k in ((x, across), (y, up))]
    w2c = np.diag([1.0, -1.0, -1.0, 1.0])
    w2c[:3, 3] = -w2c[:3, :3] @ np.array([*middle, distance])
    return PinholeCamera(w2c, focal, focal, width_px / 2, height_px / 2, width_px, height_px)


def motion_track(subject: Subject, motion: PoseSequence, camera: PinholeCamera) -> PoseTrack:
    """A motion before a camera, with the poses that it prescribes."""
    made = pose_track(
        subject.body, subject.rest_m, subject.personal.joints_m, motion.poses, subject.translations_m(motion), camera,
        motion.frames_per_second,
    )  # fmt: skip
    poses, pelvis = motion.poses.astype(np.float32), motion.pelvis_m.astype(np.float32)
    return replace(made, poses=poses, pelvis_m=pelvis, w2c=camera.w2c, focal_px=camera.fx)


def reference_picture(
    subject: Subject, pose: np.ndarray, translation_m: np.ndarray, camera: PinholeCamera
) -> np.ndarray:
    """The masked person on white, scaled and shifted to a pose by least squares of keypoints.

    Args:
        subject: Whose photo.
        pose: [55, 3] the track's first.
        translation_m: [3].
        camera: The track's.

    Returns:
        uint8 [height, width, 3] of the camera's size.
    """
    person = subject.person
    steady = list(_STEADY)
    seen = np.clip(person.keypoint_visibility[steady], 0, 1)
    seen = np.where(seen > 0.5, seen, 0.0)
    tied = np.asarray(subject.body.pose_keypoints.sum(axis=1)).ravel()[steady] > 0.5
    aim = camera.project(subject.body.pose_keypoints @ subject.posed_m(pose, translation_m))[steady]
    scale, shift = _scale_and_shift(person.keypoints_px[steady], aim, seen * tied)
    matrix = np.array([[scale, 0, shift[0]], [0, scale, shift[1]]])
    alpha = np.clip(person.mask, 0, 1)[..., None].astype(np.float32)
    white = person.image * alpha + 255 * (1 - alpha)
    if scale < 1:  # cv2's warps do not average over what they leave out
        sigma = 0.5 * max(1 / scale - 1, 0)
        white = cv2.GaussianBlur(white, (0, 0), sigma) if sigma > 0.1 else white
    flags = cv2.INTER_LINEAR if scale < 1 else cv2.INTER_CUBIC
    shown = cv2.warpAffine(
        white, matrix, (camera.width, camera.height), flags=flags, borderMode=cv2.BORDER_CONSTANT,
        borderValue=(255.0, 255.0, 255.0),
    )  # fmt: skip
    return np.clip(shown + 0.5, 0, 255).astype(np.uint8)


def _scale_and_shift(points: np.ndarray, aim: np.ndarray, weights: np.ndarray) -> tuple[float, np.ndarray]:
    """Factor and shift [2] that bring points [N, 2] to `aim` [N, 2] best."""
    weights = weights if weights.sum() > 0 else np.ones_like(weights)
    share = (weights / weights.sum())[:, None]
    here, there = (share * points).sum(0), (share * aim).sum(0)
    a, b = points - here, aim - there
    scale = float((share * a * b).sum() / max(float((share * a * a).sum()), 1e-9))
    scale = scale if scale > 0 else 1.0
    return scale, there - scale * here


__all__ = ["Subject", "motion_camera", "motion_track", "reference_picture"]
