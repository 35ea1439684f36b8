"""Who is in the photo: the chosen person with mask, labels, pose, face and hands."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from backend.context import Context
from backend.errors import UserError
from backend.perception.labels import Label, label_person
from backend.perception.landmarks import (
    PoseObservation,
    detect_face,
    detect_hand,
    detect_pose,
    pose_over_crops,
    visible_box,
)
from backend.perception.mask import person_mask

STAGE = "Find the person"
MAX_PEOPLE = 6


@dataclass(frozen=True)
class Person:
    """What perception knows about the chosen person. All pixels are of the working image.

    Attributes:
        image: [H, W, 3] uint8 RGB.
        mask: [H, W] float32 0..1, the person with what they wear and hold.
        labels: [H, W] uint8 of `Label`.
        keypoints_px: [33, 2] mediapipe's pose landmarks.
        keypoint_visibility: [33] 0..1.
        keypoint_spread_px: [33] median distance of the runs on several crops to their median.
        keypoints_world_m: [33, 3] x right, y down, z away from the camera, origin between the hips.
        face_px: [478, 3] face landmarks x, y, z, or [0, 3].
        left_hand_px: [21, 2] landmarks of the subject's left hand, or [0, 2].
        right_hand_px: The same for the right one.
        left_hand_world_m: [21, 3] or [0, 3].
        right_hand_world_m: [21, 3] or [0, 3].
        warnings: What the user should know, a line each.
    """

    image: np.ndarray
    mask: np.ndarray
    labels: np.ndarray
    keypoints_px: np.ndarray
    keypoint_visibility: np.ndarray
    keypoint_spread_px: np.ndarray
    keypoints_world_m: np.ndarray
    face_px: np.ndarray
    left_hand_px: np.ndarray
    right_hand_px: np.ndarray
    left_hand_world_m: np.ndarray
    right_hand_world_m: np.ndarray
    warnings: tuple[str, ...]


def find_person(image: np.ndarray, which: int, context: Context, from_behind: bool = False) -> Person:
    """Find the people of a photo and describe one of them.

    Args:
        image: [H, W, 3] uint8 RGB working image.
        which: 0 takes the largest person, 1 the next, and so on.
        context: Progress and cancelling.
        from_behind: The person may be seen from behind; there is no face then, whatever the face network says.

    Raises:
        UserError: Nobody is there, there are fewer people than `which` asks for, or the person is seen from behind
            though that is not allowed.
    """
    context.progress(STAGE, 0, 5, "people")
    people = _people(image)
    if not people:
        raise UserError(
            "No person was found in the photo; use a picture that shows one person clearly, from the front.",
            kind="BAD_IMAGE",
        )
    if which >= len(people):
        raise UserError(
            f"The photo shows {len(people)} people, so person={which} is not there; use 0 to {len(people) - 1}."
        )
    warnings = []
    if len(people) > 1 and which == 0:
        warnings.append(f"{len(people)} people were found and the largest was taken; person=1 takes the next one.")
    others = None
    if len(people) > 1:
        others = np.max([p.mask > 0.6 for k, p in enumerate(people) if k != which], axis=0) & (people[which].mask < 0.5)
    first = people[which]
    context.progress(STAGE, 1, 5, "pose")
    shown = image if others is None else _hide(image, others)
    pose, spread_px = pose_over_crops(shown, first)
    context.progress(STAGE, 2, 5, "face and hands")
    face_px = detect_face(shown, pose)
    if is_back := _is_back_view(pose, bool(len(face_px))):
        if not from_behind:
            raise UserError(
                "The person is seen from behind; use a photo in which the face is visible.", kind="BAD_IMAGE"
            )
        face_px = face_px[:0]
    if not len(face_px) and not is_back:
        warnings.append(
            "No face was recognised, so the head keeps the model's face; a larger or clearer face gives a likeness."
        )
    left_px, left_m = detect_hand(shown, pose, "left")
    right_px, right_m = detect_hand(shown, pose, "right")
    context.progress(STAGE, 3, 5, "mask")
    mask = person_mask(image, pose, others)
    if float((mask > 0.5).mean()) < 0.002:
        raise UserError("The person in the photo is too small; crop the picture around the person.", kind="BAD_IMAGE")
    context.progress(STAGE, 4, 5, "labels")
    hands_px = np.concatenate([left_px, right_px])
    labels = label_person(image, mask, pose.keypoints_px, pose.visibility, face_px, hands_px)
    context.progress(STAGE, 5, 5)
    return Person(
        image, mask, labels, pose.keypoints_px, pose.visibility, spread_px, pose.world_m, face_px,
        left_px, right_px, left_m, right_m, tuple(warnings),
    )  # fmt: skip


def _people(image: np.ndarray) -> list[PoseObservation]:
    """Everybody the pose network finds, largest first: it takes one at a time, so each one found is painted over."""
    found: list[PoseObservation] = []
    canvas = image
    for _ in range(MAX_PEOPLE):
        pose = detect_pose(canvas, 0.5 if found else 0.3)
        if pose is None or not _is_person(pose, image, bool(found)):
            break
        found.append(pose)
        canvas = _hide(canvas, pose.mask > 0.3)
    return sorted(found, key=_size, reverse=True)


def _is_person(pose: PoseObservation, image: np.ndarray, strict: bool) -> bool:
    """Whether an observation is a person; after the first one only with a face, since leftovers look like limbs."""
    if float((pose.mask > 0.5).mean()) < 0.002 or pose.visibility[[11, 12]].mean() < 0.5:
        return False
    if not strict:
        return True
    return len(detect_face(image, pose)) > 0 and pose.visibility[[0, 11, 12]].min() > 0.8


def _size(pose: PoseObservation) -> float:
    x0, y0, x1, y1 = visible_box(pose)
    shoulders = float(np.linalg.norm(pose.keypoints_px[11] - pose.keypoints_px[12]))
    return shoulders + 0.2 * max(x1 - x0, y1 - y0)


def _hide(image: np.ndarray, hidden: np.ndarray) -> np.ndarray:
    """The image with a region replaced by its blurred surroundings, so that no edge of a person remains."""
    grown = cv2.dilate(hidden.astype(np.uint8), np.ones((9, 9), np.uint8))
    keep = (1 - grown).astype(np.float32)
    sigma = 0.06 * max(image.shape[:2])
    weight = cv2.GaussianBlur(keep, (0, 0), sigma) + 1e-4
    mean = image[grown == 0].mean(axis=0) if (grown == 0).any() else np.full(3, 128.0)
    around = cv2.GaussianBlur(image * keep[..., None], (0, 0), sigma) + 1e-4 * mean
    filled = np.clip(around / weight[..., None], 0, 255)
    return np.where(grown[..., None] > 0, filled, image).astype(np.uint8)


def _is_back_view(pose: PoseObservation, has_face: bool) -> bool:
    """Whether shoulders and hips are the wrong way round.

    Where both are, a face does not count: the face network sees one in the hair of a head from behind now and then.
    """
    shoulders = pose.keypoints_px[11, 0] < pose.keypoints_px[12, 0]
    hips = pose.keypoints_px[23, 0] < pose.keypoints_px[24, 0]
    hips_unseen = pose.visibility[[23, 24]].min() < 0.5
    return bool(shoulders and ((hips and not hips_unseen) or (not has_face and (hips or hips_unseen))))


__all__ = ["Label", "Person", "find_person"]
