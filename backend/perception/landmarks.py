"""mediapipe's landmark and mask models, as their wheel ships them (no download, no network).

Everything here returns pixels of the image it was given. The models are Apache-2.0 and lie inside the mediapipe
0.10.21 wheel; `model_complexity=1` is the only pose network among them.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np

os.environ.setdefault("GLOG_minloglevel", "2")
import mediapipe as mp  # the log level has to be set before the import

_MIRRORED = np.array([0, 4, 5, 6, 1, 2, 3, 8, 7, 10, 9] + [i + 1 - 2 * (i % 2 == 0) for i in range(11, 33)])
"""[33] index of each landmark's mirror image: left and right swapped."""

_FACE_JITTERS = (
    (0, 0, 1.8, 0),
    (0.06, 0.03, 2.0, 4),
    (-0.06, 0.04, 2.2, -4),
    (0.04, -0.06, 1.9, -8),
    (-0.03, -0.04, 2.1, 8),
)
"""(dx, dy, size) in face heights and a turn in degrees; the median over them halves the landmarks' noise (measured)."""


@dataclass(frozen=True)
class PoseObservation:
    """One run of the pose network.

    Attributes:
        keypoints_px: [33, 2].
        visibility: [33] 0..1.
        world_m: [33, 3] x right, y down, z away from the camera, origin between the hips.
        mask: [H, W] float32 0..1.
    """

    keypoints_px: np.ndarray
    visibility: np.ndarray
    world_m: np.ndarray
    mask: np.ndarray


@contextlib.contextmanager
def _native_log_hidden() -> Iterator[None]:
    """Keep TensorFlow Lite's start-up chatter, which goes straight to descriptor 2, out of the artist's terminal."""
    sys.stderr.flush()
    saved = os.dup(2)
    null = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(null)
        os.close(saved)


def detect_pose(image: np.ndarray, min_confidence: float = 0.3) -> PoseObservation | None:
    """Run the pose network once.

    Args:
        image: [H, W, 3] uint8 RGB.
        min_confidence: Below this nobody is there.
    """
    height, width = image.shape[:2]
    with (
        _native_log_hidden(),
        mp.solutions.pose.Pose(
            static_image_mode=True,
            model_complexity=1,
            enable_segmentation=True,
            min_detection_confidence=min_confidence,
        ) as network,
    ):
        result = network.process(np.ascontiguousarray(image))
    if result.pose_landmarks is None:
        return None
    points = np.array([[p.x * width, p.y * height, p.visibility] for p in result.pose_landmarks.landmark])
    world = np.array([[p.x, p.y, p.z] for p in result.pose_world_landmarks.landmark])
    return PoseObservation(points[:, :2], points[:, 2], world, result.segmentation_mask)


def pose_over_crops(image: np.ndarray, first: PoseObservation) -> tuple[PoseObservation, np.ndarray]:
    """Repeat the detection mirrored and on three crops around the person.

    Args:
        image: [H, W, 3] uint8 RGB in which `first` was found.
        first: The detection on the whole image.

    Returns:
        The median observation, and the median distance of the runs to it [33] in px: how far a landmark can be trusted.
    """
    height, width = image.shape[:2]
    runs = [first]
    flipped = None
    mirrored = detect_pose(image[:, ::-1])
    if mirrored is not None:
        points = mirrored.keypoints_px[_MIRRORED].copy()
        points[:, 0] = width - points[:, 0]
        world = mirrored.world_m[_MIRRORED] * [-1, 1, 1]
        flipped = PoseObservation(points, mirrored.visibility[_MIRRORED], world, mirrored.mask[:, ::-1])
        runs.append(flipped)
    box = visible_box(first)
    for margin in (0.15, 0.35, 0.6):
        x0, y0, x1, y1 = expand_box(box, margin, width, height)
        run = detect_pose(image[y0:y1, x0:x1])
        if run is None:
            continue
        mask = np.zeros((height, width), np.float32)
        mask[y0:y1, x0:x1] = run.mask
        runs.append(PoseObservation(run.keypoints_px + [x0, y0], run.visibility, run.world_m, mask))
    runs = _consistent(runs)
    points = np.stack([r.keypoints_px for r in runs])
    # mediapipe's depth leans to one side (4 degrees of yaw on renders): both mirrorings count alike
    sides = [[r.world_m for r in runs if (r is flipped) == side] for side in (False, True)]
    world_m = np.mean([np.median(side, axis=0) for side in sides if side], axis=0)
    median = np.median(points, axis=0)
    spread = np.median(np.linalg.norm(points - median, axis=-1), axis=0)
    merged = PoseObservation(
        median,
        np.median([r.visibility for r in runs], axis=0),
        world_m,
        np.median([r.mask for r in runs], axis=0).astype(np.float32),
    )
    return merged, spread


def _consistent(runs: list[PoseObservation]) -> list[PoseObservation]:
    """Drop runs whose shoulders lie elsewhere: crops of a half body sometimes fall for something else (measured)."""
    shoulders = np.stack([r.keypoints_px[[11, 12]] for r in runs])
    middle = np.median(shoulders, axis=0)
    width = max(float(np.linalg.norm(middle[0] - middle[1])), 10.0)
    near = np.linalg.norm(shoulders - middle, axis=-1).max(axis=1) < 0.25 * width
    return [r for r, ok in zip(runs, near, strict=True) if ok] or runs[:1]


def visible_box(pose: PoseObservation, threshold: float = 0.3) -> tuple[float, float, float, float]:
    """(x0, y0, x1, y1) in px around the landmarks that are seen."""
    seen = pose.visibility > threshold
    points = pose.keypoints_px[seen if seen.any() else slice(None)]
    return (*points.min(axis=0), *points.max(axis=0))


def expand_box(
    box: tuple[float, float, float, float], margin: float, width: int, height: int
) -> tuple[int, int, int, int]:
    """A box grown by `margin` of its longer side on every side, clipped to the image, as whole pixels."""
    x0, y0, x1, y1 = box
    grow = margin * max(x1 - x0, y1 - y0)
    left, top = max(0, int(x0 - grow)), max(0, int(y0 - grow))
    return left, top, max(left + 2, min(width, int(x1 + grow))), max(top + 2, min(height, int(y1 + grow)))


def detect_selfie_mask(image: np.ndarray) -> np.ndarray:
    """[H, W] float32 0..1 person probability of the general selfie network (the landscape one leaks)."""
    with _native_log_hidden(), mp.solutions.selfie_segmentation.SelfieSegmentation(model_selection=0) as network:
        return network.process(np.ascontiguousarray(image)).segmentation_mask


def _face_mesh(image: np.ndarray, min_confidence: float) -> np.ndarray | None:
    height, width = image.shape[:2]
    with (
        _native_log_hidden(),
        mp.solutions.face_mesh.FaceMesh(
            static_image_mode=True, refine_landmarks=True, min_detection_confidence=min_confidence
        ) as network,
    ):
        result = network.process(np.ascontiguousarray(image))
    if not result.multi_face_landmarks:
        return None
    return np.array([[p.x * width, p.y * height, p.z * width] for p in result.multi_face_landmarks[0].landmark])


def _square_crop(
    image: np.ndarray, centre: np.ndarray, side: float, size: int, turn_deg: float
) -> tuple[np.ndarray, np.ndarray]:
    scale, angle = size / side, np.deg2rad(turn_deg)
    c, s = np.cos(angle) * scale, np.sin(angle) * scale
    matrix = np.array([[c, -s, size / 2], [s, c, size / 2]])
    matrix[:, 2] -= matrix[:, :2] @ centre
    flags = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    return cv2.warpAffine(image, matrix, (size, size), flags=flags, borderMode=cv2.BORDER_REPLICATE), matrix


def _mesh_in_crop(
    image: np.ndarray, centre: np.ndarray, side: float, turn_deg: float, confidence: float
) -> np.ndarray | None:
    crop, matrix = _square_crop(image, centre, side, 512, turn_deg)
    mesh = _face_mesh(crop, confidence)
    if mesh is None:
        return None
    inverse = cv2.invertAffineTransform(matrix)
    return np.column_stack([mesh[:, :2] @ inverse[:, :2].T + inverse[:, 2], mesh[:, 2] * side / 512])


def detect_face(image: np.ndarray, pose: PoseObservation) -> np.ndarray:
    """Face landmarks: the median of five jittered crops.

    Args:
        image: [H, W, 3] uint8 RGB.
        pose: Where the head is.

    Returns:
        [478, 3] x, y, z in px (the last ten are the irises), or [0, 3] where no face is seen.
    """
    head = pose.keypoints_px[:11]
    centre = head.mean(axis=0)
    extent = max(float(np.ptp(head, axis=0).max()), 12.0)
    first = None
    for side in (3.0, 2.2, 4.2):
        for confidence in (0.5, 0.15):
            first = _mesh_in_crop(image, centre, side * extent, 0, confidence)
            if first is not None and np.linalg.norm(first[:468, :2].mean(axis=0) - centre) < 1.5 * extent:
                break
            first = None
        if first is not None:
            break
    if first is None:
        return np.zeros((0, 3))
    height = float(np.ptp(first[:468, 1]))
    middle = (first[:468, :2].min(axis=0) + first[:468, :2].max(axis=0)) / 2
    runs = [first]
    for dx, dy, size, turn in _FACE_JITTERS:
        mesh = _mesh_in_crop(image, middle + [dx * height, dy * height], size * height, turn, 0.3)
        if mesh is not None:
            runs.append(mesh)
    return np.median(runs if len(runs) < 3 else runs[1:], axis=0)


def detect_faces(image: np.ndarray, most: int = 6) -> list[np.ndarray]:
    """Face landmarks wherever the face detector looks by itself, without a body: for pictures of heads.

    Args:
        image: [H, W, 3] uint8 RGB.
        most: Faces at most.

    Returns:
        [478, 3] x, y, z in px of each face, the largest first.
    """
    height, width = image.shape[:2]
    with (
        _native_log_hidden(),
        mp.solutions.face_mesh.FaceMesh(
            static_image_mode=True, max_num_faces=most, refine_landmarks=True, min_detection_confidence=0.3
        ) as network,
    ):
        found = network.process(np.ascontiguousarray(image)).multi_face_landmarks or []
    faces = [np.array([[p.x * width, p.y * height, p.z * width] for p in face.landmark]) for face in found]
    return sorted(faces, key=lambda face: -float(np.prod(np.ptp(face[:, :2], axis=0))))


def detect_hand(image: np.ndarray, pose: PoseObservation, side: str) -> tuple[np.ndarray, np.ndarray]:
    """Landmarks of one hand, looked for around the pose's wrist.

    Args:
        image: [H, W, 3] uint8 RGB.
        pose: Where the wrist is.
        side: "left" or "right", the subject's own.

    Returns:
        [21, 2] px and [21, 3] metres (x right, y down, z away, about the hand's centre), or two empty arrays.
    """
    elbow, wrist, pinky, index = (13, 15, 17, 19) if side == "left" else (14, 16, 18, 20)
    empty = (np.zeros((0, 2)), np.zeros((0, 3)))
    if pose.visibility[wrist] < 0.4:
        return empty
    points = pose.keypoints_px
    knuckles = (points[pinky] + points[index]) / 2
    forearm = float(np.linalg.norm(points[wrist] - points[elbow]))
    reach = max(float(np.linalg.norm(knuckles - points[wrist])), 0.3 * forearm, 8.0)
    centre = points[wrist] + 0.8 * (knuckles - points[wrist])
    for factor in (4.5, 6.5):
        crop, matrix = _square_crop(image, centre, factor * reach, 384, 0)
        with (
            _native_log_hidden(),
            mp.solutions.hands.Hands(static_image_mode=True, max_num_hands=2, min_detection_confidence=0.4) as network,
        ):
            result = network.process(np.ascontiguousarray(crop))
        if not result.multi_hand_landmarks:
            continue
        inverse = cv2.invertAffineTransform(matrix)
        found = []
        for hand, world in zip(result.multi_hand_landmarks, result.multi_hand_world_landmarks, strict=True):
            px = np.array([[p.x * 384, p.y * 384] for p in hand.landmark]) @ inverse[:, :2].T + inverse[:, 2]
            found.append(
                (float(np.linalg.norm(px[0] - points[wrist])), px, np.array([[p.x, p.y, p.z] for p in world.landmark]))
            )
        distance, px, world_m = min(found, key=lambda item: item[0])
        # The palm of somebody else, or of the other hand, is farther than the hand is long.
        if distance < 1.2 * max(float(np.linalg.norm(px[0] - px[9])), reach):
            return px, world_m
    return empty
