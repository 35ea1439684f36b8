"""Conditioning pictures for the control networks, drawn from our own landmarks in the style each was trained on.

The colours and sizes are facts about the training pictures: of CrucibleAI/ControlNetMediaPipeFace its face mesh
drawings at 512 px, of lllyasviel's openpose network the drawings of controlnet_aux. Both are drawn without smoothing,
as there.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Iterator
from itertools import pairwise

import cv2
import numpy as np
import torch
from torch import Tensor

from blender_addon.shared.skeleton import JOINT_NAMES

Colour = tuple[int, int, int]

TRAINED_PX = 512
"""Size of the training pictures; lines grow with larger ones."""

# ---- face mesh -------------------------------------------------------------------------------------------------------
# Chains of MediaPipe's 468 landmarks; "left" is the person's left. Colours as in the training pictures, RGB.

FACE_CHAINS: tuple[tuple[Colour, tuple[tuple[int, ...], ...]], ...] = (
    (
        (10, 200, 10),  # the face's outline
        (
            (10, 338, 297, 332, 284, 251, 389, 356, 454, 323, 361, 288, 397, 365, 379, 378, 400, 377, 152)
            + (148, 176, 149, 150, 136, 172, 58, 132, 93, 234, 127, 162, 21, 54, 103, 67, 109, 10),
        ),
    ),
    (
        (10, 200, 180),  # left eye
        ((263, 249, 390, 373, 374, 380, 381, 382, 362), (263, 466, 388, 387, 386, 385, 384, 398, 362)),
    ),
    ((10, 220, 180), ((276, 283, 282, 295, 285), (300, 293, 334, 296, 336))),  # left eyebrow
    (
        (180, 200, 10),  # right eye
        ((33, 7, 163, 144, 145, 153, 154, 155, 133), (33, 246, 161, 160, 159, 158, 157, 173, 133)),
    ),
    ((180, 220, 10), ((46, 53, 52, 65, 55), (70, 63, 105, 66, 107))),  # right eyebrow
    (
        (10, 180, 10),  # lips
        (
            (61, 146, 91, 181, 84, 17, 314, 405, 321, 375, 291),
            (61, 185, 40, 39, 37, 0, 267, 269, 270, 409, 291),
            (78, 95, 88, 178, 87, 14, 317, 402, 318, 324, 308),
            (78, 191, 80, 81, 82, 13, 312, 311, 310, 415, 308),
        ),
    ),
)

PUPILS: tuple[tuple[int, Colour], ...] = ((468, (250, 200, 10)), (473, (10, 200, 250)))
"""Centre of the right and of the left iris, and their colours."""

FACE_LINE_PX, PUPIL_HALF_PX = 2, 2

# ---- openpose --------------------------------------------------------------------------------------------------------

BODY_LIMBS = (
    ((1, 2), (1, 5), (2, 3), (3, 4), (5, 6), (6, 7), (1, 8), (8, 9), (9, 10))
    + ((1, 11), (11, 12), (12, 13), (1, 0), (0, 14), (14, 16), (0, 15), (15, 17))
)  # fmt: skip
"""Between OpenPose's 18 points: nose, neck, right shoulder, elbow, wrist, left ones, right hip, knee, ankle, left ones,
right eye, left eye, right ear, left ear."""

BODY_COLOURS: tuple[Colour, ...] = (
    ((255, 0, 0), (255, 85, 0), (255, 170, 0), (255, 255, 0), (170, 255, 0), (85, 255, 0), (0, 255, 0), (0, 255, 85))
    + ((0, 255, 170), (0, 255, 255), (0, 170, 255), (0, 85, 255), (0, 0, 255), (85, 0, 255), (170, 0, 255))
    + ((255, 0, 255), (255, 0, 170), (255, 0, 85))
)  # fmt: skip
"""Of the 18 points; limb k has colour k at 60 %."""

LIMB_SHARE, STICK_PX, POINT_PX = 0.6, 4, 4
HAND_LIMBS = tuple((0 if k % 4 == 0 else k, k + 1) for k in range(20))
HAND_LINE_PX, FACE_POINT_PX = 2, 3

_SMPLX_POINTS = (
    *("", "neck", "right_shoulder", "right_elbow", "right_wrist", "left_shoulder", "left_elbow", "left_wrist"),
    *("right_hip", "right_knee", "right_ankle", "left_hip", "left_knee", "left_ankle"),
    *("right_eye_smplhf", "left_eye_smplhf", "", ""),
)
"""SMPL-X joint of each of the 18 points; nose and ears come from the face's landmarks."""

_IBUG_NOSE, _IBUG_RIGHT_EAR, _IBUG_LEFT_EAR = 30, 0, 16
"""In the order of iBUG 68; the jaw's ends lie in front of the ears."""

_MEDIAPIPE_POINTS = (0, -1, 12, 14, 16, 11, 13, 15, 24, 26, 28, 23, 25, 27, 5, 2, 8, 7)
"""MediaPipe pose landmark of each of the 18 points; the neck is between the shoulders."""


def draw_face_mesh(points_px: np.ndarray, width: int, height: int) -> np.ndarray:
    """The picture that ControlNetMediaPipeFace was trained on.

    Args:
        points_px: [468 or 478, 2 or more] MediaPipe face landmarks; the last ten are the irises. Rows with NaN are
            left out. None at all ([0, ...]) gives a black picture.
        width: Of the picture, pixels.
        height: Of the picture, pixels.

    Returns:
        uint8 [height, width, 3] RGB.
    """
    canvas = np.zeros((height, width, 3), np.uint8)
    if len(points_px) == 0:
        return canvas
    line, half = scaled(FACE_LINE_PX, width, height), scaled(PUPIL_HALF_PX, width, height)
    for colour, chains in FACE_CHAINS:
        for first, second in (pair for chain in chains for pair in pairwise(chain)):
            draw_line(canvas, points_px[first], points_px[second], colour, line)
    for index, colour in PUPILS:
        if index < len(points_px) and np.isfinite(points_px[index, :2]).all():
            x, y = (int(value) for value in points_px[index, :2])
            if 0 <= x < width and 0 <= y < height:
                canvas[max(y - half, 0) : y + half, max(x - half, 0) : x + half] = colour
    return canvas


def draw_openpose(
    points_px: np.ndarray,
    width: int,
    height: int,
    *,
    hands_px: np.ndarray | None = None,
    face_px: np.ndarray | None = None,
) -> np.ndarray:
    """The picture that the openpose control network was trained on.

    Args:
        points_px: [18, 2] in OpenPose's order; NaN where a point is not seen.
        width: Of the picture, pixels.
        height: Of the picture, pixels.
        hands_px: [2, 21, 2], left and right hand in MediaPipe's order; NaN where not seen.
        face_px: [68 or 70, 2] landmarks in the order of iBUG; NaN where not seen.

    Returns:
        uint8 [height, width, 3] RGB.
    """
    canvas = np.zeros((height, width, 3), np.uint8)
    stick = scaled(STICK_PX, width, height)
    for (first, second), colour in zip(BODY_LIMBS, BODY_COLOURS, strict=False):
        _draw_limb(canvas, points_px[first], points_px[second], colour, stick)
    for point, colour in zip(points_px, BODY_COLOURS, strict=True):
        _draw_dot(canvas, point, colour, scaled(POINT_PX, width, height))
    for hand in () if hands_px is None else hands_px:
        for k, (first, second) in enumerate(HAND_LIMBS):
            draw_line(canvas, hand[first], hand[second], _hue(k / len(HAND_LIMBS)), scaled(HAND_LINE_PX, width, height))
        for point in hand:
            _draw_dot(canvas, point, (0, 0, 255), scaled(POINT_PX, width, height))
    for point in () if face_px is None else face_px:
        _draw_dot(canvas, point, (255, 255, 255), scaled(FACE_POINT_PX, width, height))
    return canvas


def openpose_from_smplx(joints_px: np.ndarray, face_px: np.ndarray | None = None) -> np.ndarray:
    """OpenPose's 18 points [18, 2] of SMPL-X joints [55, 2] and, for nose and ears, iBUG landmarks [68, 2]."""
    points = np.full((18, 2), np.nan, np.float32)
    for k, name in enumerate(_SMPLX_POINTS):
        if name:
            points[k] = joints_px[JOINT_NAMES.index(name), :2]
    # OpenPose's neck is between the shoulders, SMPL-X's higher.
    points[1] = 0.5 * (points[2] + points[5])
    if face_px is not None:
        points[0], points[16], points[17] = face_px[[_IBUG_NOSE, _IBUG_RIGHT_EAR, _IBUG_LEFT_EAR], :2]
    return points


def openpose_from_mediapipe(
    keypoints_px: np.ndarray, visibility: np.ndarray, least_visibility: float = 0.3
) -> np.ndarray:
    """OpenPose's 18 points [18, 2] of MediaPipe's pose landmarks [33, 2] and their visibility [33]."""
    points = np.full((18, 2), np.nan, np.float32)
    for k, index in enumerate(_MEDIAPIPE_POINTS):
        if index >= 0 and visibility[index] >= least_visibility:
            points[k] = keypoints_px[index, :2]
    points[1] = 0.5 * (points[2] + points[5])
    return points


def depth_image(depth_m: Tensor, mask: Tensor) -> Tensor:
    """Conditioning pictures of the depth control network: disparity, near white, background black.

    Args:
        depth_m: [B, H, W] along the camera's axis, > 0 where there is something.
        mask: [B, H, W] in 0..1 or bool.

    Returns:
        [B, 3, H, W] in 0..1, each picture using the whole range as the estimators of the training did.
    """
    seen = mask > 0.5
    disparity = 1.0 / depth_m.clamp_min(1e-6)
    low = torch.where(seen, disparity, torch.inf).amin((1, 2), keepdim=True)
    high = torch.where(seen, disparity, -torch.inf).amax((1, 2), keepdim=True)
    # The farthest place is still told from the background.
    level = 0.1 + 0.9 * (disparity - low) / (high - low).clamp_min(1e-12)
    return torch.where(seen, level.nan_to_num(0.0), 0.0).clamp(0, 1)[:, None].repeat(1, 3, 1, 1)


def as_tensor(images: np.ndarray, like: Tensor | None = None) -> Tensor:
    """Pictures uint8 [B, H, W, 3] as a control network takes them, [B, 3, H, W] in 0..1."""
    tensor = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 255
    return tensor if like is None else tensor.to(like)


def draw_line(canvas: np.ndarray, first: np.ndarray, second: np.ndarray, colour: Colour, line_px: int) -> None:
    """A line between two points [2]; nothing where one is NaN or both lie outside."""
    if not (np.isfinite(first[:2]).all() and np.isfinite(second[:2]).all()):
        return
    cv2.line(canvas, _pixel(first), _pixel(second), colour, line_px)


def scaled(size_px: int, width: int, height: int) -> int:
    """A size of the training pictures for a picture of another size; never below one."""
    return max(round(size_px * max(width, height) / TRAINED_PX), 1)


def _draw_limb(canvas: np.ndarray, first: np.ndarray, second: np.ndarray, colour: Colour, stick_px: int) -> None:
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        return
    centre, (dx, dy) = 0.5 * (first + second), first - second
    axes = (int(math.hypot(dx, dy) / 2), stick_px)
    shape = np.asarray(cv2.ellipse2Poly(_pixel(centre), axes, int(math.degrees(math.atan2(dy, dx))), 0, 360, 1))
    dark = tuple(int(LIMB_SHARE * value) for value in colour)
    cv2.fillConvexPoly(canvas, shape, dark)


def _draw_dot(canvas: np.ndarray, point: np.ndarray, colour: Colour, radius_px: int) -> None:
    if np.isfinite(point[:2]).all():
        cv2.circle(canvas, _pixel(point), radius_px, colour, thickness=-1)


def _pixel(point: np.ndarray) -> tuple[int, int]:
    # Far outside: OpenCV's coordinates are 16 bits with fractions.
    return int(np.clip(point[0], -16000, 16000)), int(np.clip(point[1], -16000, 16000))


def _hue(share: float) -> Colour:
    red, green, blue = colorsys.hsv_to_rgb(share, 1.0, 1.0)
    return round(255 * red), round(255 * green), round(255 * blue)


def face_edges() -> Iterator[tuple[int, int]]:
    """All lines of the face drawing, for tests and other drawings."""
    return ((a, b) for _, chains in FACE_CHAINS for chain in chains for a, b in pairwise(chain))
