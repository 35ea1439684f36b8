"""Pictures of a skeleton, drawn as each video model saw them in training.

Colours, order and widths are facts of the published preprocessing: Wan-Animate's (`human_visualization`, called with
its defaults) and VACE's (DWPose's drawing, body and face, its channels stored in reverse). The skeleton has the points
of COCO-WholeBody, which are derived here from SMPL-X's joints.
"""

from __future__ import annotations

import colorsys
import math
from typing import Final

import cv2
import numpy as np

from backend.diffusion.interfaces import PoseTrack
from blender_addon.shared.skeleton import JOINT_NAMES

NOSE, LEFT_EYE, RIGHT_EYE, LEFT_EAR, RIGHT_EAR = range(5)
FEET: Final = slice(17, 23)
FACE: Final = slice(23, 91)
LEFT_HAND: Final = slice(91, 112)
RIGHT_HAND: Final = slice(112, 133)
"""Parts of COCO-WholeBody's 133 points; 5 to 16 are the body's, left before right."""

_BODY_JOINTS: Final = ("shoulder", "elbow", "wrist", "hip", "knee", "ankle")

_LIMBS: Final = (
    *((1, 2), (1, 5), (2, 3), (3, 4), (5, 6), (6, 7), (1, 8), (8, 9), (9, 10), (1, 11), (11, 12), (12, 13)),
    *((1, 0), (0, 14), (14, 16), (0, 15), (15, 17), (13, 18), (10, 19)),
)
"""Pairs of OpenPose's points in drawing order; the last two end at the toes, which only Wan-Animate draws."""

_COLOURS: Final = (
    *((255, 0, 0), (255, 85, 0), (255, 170, 0), (255, 255, 0), (170, 255, 0), (85, 255, 0), (0, 255, 0)),
    *((0, 255, 85), (0, 255, 170), (0, 255, 255), (0, 170, 255), (0, 85, 255), (0, 0, 255), (85, 0, 255)),
    *((170, 0, 255), (255, 0, 255), (255, 0, 170), (255, 0, 85), (200, 200, 0), (100, 100, 0)),
)
"""Of limbs and of points, RGB."""

_LIMB_SHADE: Final = 0.6
_FINGERS: Final = tuple((0 if k == 1 else 4 * f + k - 1, 4 * f + k) for f in range(5) for k in range(1, 5))
_FINGER_COLOURS: Final = tuple(
    tuple(channel * 255 for channel in colorsys.hsv_to_rgb(k / len(_FINGERS), 1, 1)) for k in range(len(_FINGERS))
)
_KNUCKLE: Final = (0, 0, 255)

_VACE_SHORT_SIDE: Final = 1024
_VACE_WIDTH, _VACE_FINGER_WIDTH, _VACE_KNUCKLE, _VACE_FACE = 4, 2, 4, 3

_OPENPOSE_A: Final = (0, 6, 6, 8, 10, 5, 7, 9, 12, 14, 16, 11, 13, 15, 2, 1, 4, 3, 17, 20)
_OPENPOSE_B: Final = (0, 5, 6, 8, 10, 5, 7, 9, 12, 14, 16, 11, 13, 15, 2, 1, 4, 3, 18, 21)
"""OpenPose's 18 points and the toes: each the middle of two of COCO-WholeBody's."""


def wan_animate_frames(track: PoseTrack) -> np.ndarray:
    """Frames uint8 [F, height, width, 3] as Wan-Animate wants them: body with feet, and hands; the face comes apart."""
    width = max(int(min(track.height, track.width) / 200) - 1, 1)
    frames = []
    for points in whole_body(track):
        canvas = np.zeros((track.height, track.width, 3), np.uint8)
        _draw_body(canvas, openpose(points), width, feet=True)
        for hand in (LEFT_HAND, RIGHT_HAND):
            _draw_hand(canvas, points[hand], max(width // 2, 1), max(width // 2, 1))
        frames.append(canvas)
    return np.stack(frames)


def vace_frames(track: PoseTrack, *, hands: bool = False) -> np.ndarray:
    """Frames uint8 [F, height, width, 3] as VACE's own preprocessing makes them: body and face.

    Args:
        track: What to draw.
        hands: Draw them too; the published preprocessing knows how, but leaves them out.
    """
    scale = _VACE_SHORT_SIDE / min(track.height, track.width)
    height, width = (max(round(side * scale / 64), 1) * 64 for side in (track.height, track.width))
    grow = np.array([width / track.width, height / track.height])
    larger = track.height * track.width > height * width
    frames = []
    for points in whole_body(track) * grow:
        canvas = np.zeros((height, width, 3), np.uint8)
        _draw_body(canvas, openpose(points), _VACE_WIDTH, feet=False)
        if hands:
            for hand in (LEFT_HAND, RIGHT_HAND):
                _draw_hand(canvas, points[hand], _VACE_FINGER_WIDTH, _VACE_KNUCKLE)
        for point in points[FACE]:
            if np.isfinite(point).all():
                cv2.circle(canvas, _pixel(point), _VACE_FACE, (255, 255, 255), thickness=-1)
        how = cv2.INTER_LANCZOS4 if larger else cv2.INTER_AREA
        frames.append(cv2.resize(canvas[..., ::-1], (track.width, track.height), interpolation=how))
    return np.stack(frames)


def whole_body(track: PoseTrack) -> np.ndarray:
    """COCO-WholeBody's 133 points from SMPL-X's joints; float64 [F, 133, 2] pixels, NaN where nothing is to be drawn.

    Points outside the picture are NaN, as no detector finds them. Both points of a foot's front are its middle; heels
    are not known.
    """
    frames = len(track.joints_px)
    points = np.full((frames, 133, 2), np.nan)
    points[:, :5] = _head(track)
    for k, name in enumerate(_BODY_JOINTS):
        for side, word in enumerate(("left", "right")):
            points[:, 5 + 2 * k + side] = track.joints_px[:, JOINT_NAMES.index(f"{word}_{name}")]
    toes = _toes(track)
    for side in range(2):
        points[:, 17 + 3 * side : 19 + 3 * side] = toes[:, side, None]
    points[:, FACE] = track.face_px
    points[:, LEFT_HAND], points[:, RIGHT_HAND] = track.hands_px[:, 0], track.hands_px[:, 1]
    with np.errstate(invalid="ignore"):
        outside = ~((points > 0) & (points < (track.width, track.height))).all(axis=-1)
    points[outside] = np.nan
    return points


def openpose(points: np.ndarray) -> np.ndarray:
    """OpenPose's 18 points and both toes [..., 20, 2] of COCO-WholeBody's [..., 133, 2]."""
    return (points[..., _OPENPOSE_A, :] + points[..., _OPENPOSE_B, :]) / 2


def face_crop(picture: np.ndarray, face_px: np.ndarray, size_px: int = 512) -> np.ndarray:
    """The face of a picture as Wan-Animate's preprocessing cuts it out.

    Args:
        picture: uint8 [H, W, 3].
        face_px: [N, 2] landmarks of the face; NaN rows are passed over.
        size_px: Side of the result.

    Returns:
        uint8 [size, size, 3]; black where there are no landmarks.
    """
    seen = face_px[np.isfinite(face_px).all(axis=-1)]
    if len(seen) < 2:
        return np.zeros((size_px, size_px, 3), np.uint8)
    low, high = seen.min(axis=0), seen.max(axis=0)
    grow = (math.sqrt(1.3) - 1) * (high - low)  # 1.3 times the area; above it three times as much as below
    low, high = low - grow * (0.5, 0.75), high + grow * (0.5, 0.25)
    bounds = np.array([picture.shape[1], picture.shape[0]])
    x0, y0 = np.clip(low, 0, bounds - 1).astype(int)
    x1, y1 = np.clip(high, (x0 + 1, y0 + 1), bounds).astype(int)
    return cv2.resize(picture[y0:y1, x0:x1], (size_px, size_px))


def _head(track: PoseTrack) -> np.ndarray:
    """Nose, eyes and ears [F, 5, 2]; without points of their own, from the face's landmarks and the eyes' joints."""
    if track.head_px is not None:
        return track.head_px
    face, joints = track.face_px, track.joints_px
    left, right = face[:, 42:48].mean(axis=1), face[:, 36:42].mean(axis=1)
    for eye, name in ((left, "left_eye_smplhf"), (right, "right_eye_smplhf")):
        missing = ~np.isfinite(eye).all(axis=-1)
        eye[missing] = joints[missing, JOINT_NAMES.index(name)]
    return np.stack([face[:, 30], left, right, face[:, 16], face[:, 0]], axis=1)


def _toes(track: PoseTrack) -> np.ndarray:
    """Fronts of both feet [F, 2, 2]; without points of their own, on from ankle and ball."""
    if track.toes_px is not None:
        return track.toes_px
    ankle, ball = (
        track.joints_px[:, [JOINT_NAMES.index(f"{side}_{name}") for side in ("left", "right")]]
        for name in ("ankle", "foot")
    )
    return ball + 0.4 * (ball - ankle)


def _draw_body(canvas: np.ndarray, points: np.ndarray, width: int, *, feet: bool) -> None:
    """Limbs as flat ellipses in a darker shade, then the points; [20, 2] with NaN for hidden ones."""
    seen = np.isfinite(points).all(axis=-1)
    limbs = _LIMBS if feet else _LIMBS[:17]
    for (a, b), colour in zip(limbs, _COLOURS, strict=False):
        if seen[a] and seen[b]:
            (ax, ay), (bx, by) = points[a], points[b]
            angle = math.degrees(math.atan2(ay - by, ax - bx))
            half = int(math.hypot(ax - bx, ay - by) / 2)
            middle = (int((ax + bx) / 2), int((ay + by) / 2))
            outline = np.asarray(cv2.ellipse2Poly(middle, (half, width), int(angle), 0, 360, 1))
            cv2.fillConvexPoly(canvas, outline, [int(channel * _LIMB_SHADE) for channel in colour])
    for point, there, colour in zip(points[: 20 if feet else 18], seen, _COLOURS, strict=False):
        if there:
            cv2.circle(canvas, _pixel(point), width, colour, thickness=-1)


def _draw_hand(canvas: np.ndarray, points: np.ndarray, width: int, knuckle: int) -> None:
    seen = np.isfinite(points).all(axis=-1)
    for (a, b), colour in zip(_FINGERS, _FINGER_COLOURS, strict=True):
        if seen[a] and seen[b]:
            cv2.line(canvas, _pixel(points[a]), _pixel(points[b]), colour, thickness=width)
    for point in points[seen]:
        cv2.circle(canvas, _pixel(point), knuckle, _KNUCKLE, thickness=-1)


def _pixel(point: np.ndarray) -> tuple[int, int]:
    return int(point[0]), int(point[1])
