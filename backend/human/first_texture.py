"""Colours to begin with: the photo's where it sees the body, the generated frames' median where it does not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from scipy import sparse
from scipy.spatial import cKDTree

from backend.human.frame_targets import Pictured
from backend.human.video_camera import Subject
from backend.splats.colour import photo_confidence, sample_photo

SURE = 0.06
"""Confidence (cosine of the view's angle, squared) from which a colour counts: 76 degrees from facing the camera."""

BLEND = (0.06, 0.30)
"""Between these confidences of the photo its colour is mixed with the generated one, so that no seam is drawn."""

_GREY = 0.5


@dataclass(frozen=True)
class FirstTexture:
    """Colours per point of the subdivided body, display sRGB 0..1.

    Attributes:
        colours: float32 [N, 3], for all frames: the photo's, else the generated frames', else the nearest known.
        own_colours: float32 [N, 3], for generated frames: theirs, else the photo's.
        from_photo: float32 [N] 0..1, the photo's share.
        generated: bool [N], seen by generated frames.
    """

    colours: np.ndarray
    own_colours: np.ndarray
    from_photo: np.ndarray
    generated: np.ndarray


def first_texture(
    subject: Subject, mix: sparse.csr_matrix, captured: Sequence[Pictured], generated: Sequence[Pictured]
) -> FirstTexture:
    """Look at the body from all pictures.

    Args:
        subject: Who it is.
        mix: [N, V], points of the subdivided body as mixtures of the proxy's vertices (`Template.mix`).
        captured: Photographs; where several see a point, the one that faces it most decides.
        generated: Some of the generated frames, spread over the motion; the median of those that see a point counts.
    """
    photos = [seen_colours(picture, subject, mix) for picture in captured]
    photo, sure = np.full((_rows(mix), 3), _GREY, np.float32), np.zeros(_rows(mix), np.float32)
    for colours, confidence in photos:
        better = confidence > sure
        photo[better], sure[better] = colours[better], confidence[better]
    middle, found = _median(generated, subject, mix)
    t = np.clip((sure - BLEND[0]) / (BLEND[1] - BLEND[0]), 0, 1)
    share = np.where(found, t * t * (3 - 2 * t), sure > SURE).astype(np.float32)
    known = found | (sure > SURE)
    made = share[:, None] * photo + (1 - share[:, None]) * middle
    own = np.where(found[:, None], middle, photo)
    if known.any() and not known.all():
        rest = mix @ np.asarray(subject.rest_m, np.float64)
        nearest = np.flatnonzero(known)[cKDTree(rest[known]).query(rest[~known])[1]]
        made[~known], own[~known] = made[nearest], own[nearest]
    return FirstTexture(made.astype(np.float32), own.astype(np.float32), share, found)


def _rows(matrix: sparse.csr_matrix) -> int:
    return len(matrix.indptr) - 1


def _median(generated: Sequence[Pictured], subject: Subject, mix: sparse.csr_matrix) -> tuple[np.ndarray, np.ndarray]:
    """Colours [N, 3] that half of the frames lie below, and which points [N] any frame sees."""
    if not generated:
        return np.full((_rows(mix), 3), _GREY, np.float32), np.zeros(_rows(mix), bool)
    stack = np.zeros((len(generated), _rows(mix), 3), np.uint8)
    seen = np.zeros((len(generated), _rows(mix)), bool)
    for number, picture in enumerate(generated):
        colours, confidence = seen_colours(picture, subject, mix)
        stack[number] = np.round(255 * colours)
        seen[number] = confidence > SURE
    count = seen.sum(0)
    # unseen values are sorted behind all others, so that the middle of those that are seen is at a known place
    ordered = np.sort(np.where(seen[..., None], stack.astype(np.int16), 256), axis=0)
    low, high = np.maximum(count - 1, 0) // 2, np.minimum(count // 2, len(generated) - 1)
    at = np.arange(_rows(mix))
    middle = (ordered[low, at] + ordered[high, at]) / 510.0
    return np.where((count > 0)[:, None], middle, _GREY).astype(np.float32), count > 0


def seen_colours(picture: Pictured, subject: Subject, mix: sparse.csr_matrix) -> tuple[np.ndarray, np.ndarray]:
    """Colours [N, 3] of a picture at the body's points, and how far it determines them [N] 0..1."""
    view = picture.proxy(subject)
    points = mix @ view.points_camera_m
    camera = picture.camera
    depth = np.maximum(points[:, 2], 1e-3)
    pixels = points[:, :2] / depth[:, None] * [camera.fx, camera.fy] + [camera.cx, camera.cy]
    corners = view.points_camera_m[view.triangles]
    faces = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    vertices = np.zeros_like(view.points_camera_m)
    for corner in range(3):
        np.add.at(vertices, view.triangles[:, corner], faces)
    normals = mix @ vertices
    sight = -points / np.maximum(np.linalg.norm(points, axis=1, keepdims=True), 1e-9)
    facing = (normals * sight).sum(1) / np.maximum(np.linalg.norm(normals, axis=1), 1e-12)
    usable = cv2.erode((picture.mask > 0.9).astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
    confidence = photo_confidence(facing, points[:, 2], pixels, view.nearest.depth_m, usable)
    footprint = 0.004 * camera.fx / depth  # points of a body that is subdivided twice lie about 4 mm apart
    return sample_photo(picture.image, pixels, footprint), confidence


__all__ = ["SURE", "FirstTexture", "first_texture", "seen_colours"]
