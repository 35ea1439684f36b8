"""Labels of the person's pixels: skin, hair, upper and lower clothes, shoes, other.

Each label has a colour model, seeded where the landmarks say what lies there, and a place where it may lie. The costs
are filtered along the image's edges before the cheapest label wins (cost-volume filtering), so that borders follow the
picture.
"""

from __future__ import annotations

from enum import IntEnum

import cv2
import numpy as np


class Label(IntEnum):
    """What a pixel of the person shows."""

    NONE = 0
    SKIN = 1
    HAIR = 2
    UPPER = 3
    LOWER = 4
    SHOES = 5
    OTHER = 6


_COLOUR_WEIGHTS = np.array([0.5, 1.0, 1.0])
"""Lightness counts half: folds and shade change it, dye does not."""

_CENTRES_PER_LABEL = 4
_COLOUR_SIGMA = 9.0
"""Lab distance that counts as one unit of cost, about three just noticeable differences with the weights above."""


def label_person(
    image: np.ndarray,
    mask: np.ndarray,
    keypoints_px: np.ndarray,
    visibility: np.ndarray,
    face_px: np.ndarray,
    hands_px: np.ndarray,
) -> np.ndarray:
    """Label every pixel of the person.

    Args:
        image: [H, W, 3] uint8 RGB.
        mask: [H, W] 0..1 of the person.
        keypoints_px: [33, 2] pose landmarks.
        visibility: [33] 0..1.
        face_px: [478, 3] face landmarks, or [0, 3].
        hands_px: [M, 2] landmarks of the hands that were found; skin too, where there is no face to take it from.

    Returns:
        [H, W] uint8 of `Label`; NONE outside the mask.
    """
    person = mask > 0.5
    lab = cv2.cvtColor(image.astype(np.float32) / 255, cv2.COLOR_RGB2LAB) * _COLOUR_WEIGHTS
    seeds = _seeds(person, keypoints_px, visibility, face_px)
    if not len(face_px):
        for x, y in hands_px:
            seeds[Label.SKIN] |= _disc(person.shape, x, y, 2)
    places = _places(person.shape, keypoints_px, visibility, face_px)
    names = [Label.SKIN, Label.HAIR, Label.UPPER, Label.LOWER, Label.SHOES]
    guide = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32) / 255
    radius = max(2, round(0.008 * max(person.shape)))
    costs = []
    for name in names:
        colour = _colour_cost(lab, seeds[name] & person)
        cost = np.minimum(colour, 3.0) + 2.0 * places[name]
        costs.append(cv2.ximgproc.guidedFilter(guide, cost.astype(np.float32), radius, 1e-3))
    volume = np.stack(costs)
    best = volume.argmin(axis=0)
    labels = np.array(names, np.uint8)[best]
    labels[volume.min(axis=0) > 4.0] = Label.OTHER
    labels[~person] = Label.NONE
    return labels


def _colour_cost(lab: np.ndarray, seed: np.ndarray) -> np.ndarray:
    """[H, W] distance to the nearest of the seed's main colours, in units of `_COLOUR_SIGMA`.

    Without a seed it is 1.5 everywhere, so that the place alone decides.
    """
    samples = lab[seed].astype(np.float32)
    if len(samples) < 12:
        return np.full(lab.shape[:2], 1.5, np.float32)
    samples = samples[:: max(1, len(samples) // 4000)]
    cv2.setRNGSeed(0)
    count = min(_CENTRES_PER_LABEL, len(samples) // 3)
    criteria = (cv2.TERM_CRITERIA_EPS + cv2.TERM_CRITERIA_MAX_ITER, 20, 0.5)
    _, members, centres = cv2.kmeans(samples, count, None, criteria, 2, cv2.KMEANS_PP_CENTERS)
    share = np.bincount(members.ravel(), minlength=count) / len(samples)
    distances = [np.linalg.norm(lab - c, axis=-1) / _COLOUR_SIGMA for c in centres[share > 0.05]]
    return np.min(distances, axis=0).astype(np.float32)


def _seeds(
    person: np.ndarray, points: np.ndarray, visibility: np.ndarray, face_px: np.ndarray
) -> dict[Label, np.ndarray]:
    """Where each label is almost certain."""
    shape = person.shape
    torso_px = _torso_px(points)
    upper = _stroke(shape, points, visibility, [(11, 12), (11, 23), (12, 24)], 0.12 * torso_px)
    upper |= _polygon(shape, points[[11, 12, 24, 23]] * 0.8 + points[[11, 12, 24, 23]].mean(axis=0) * 0.2)
    lower = _stroke(shape, points, visibility, [(23, 25), (24, 26), (25, 27), (26, 28)], 0.08 * torso_px)
    shoes = _stroke(shape, points, visibility, [(29, 31), (30, 32)], 0.04 * torso_px)
    skin, hair = np.zeros(shape, bool), np.zeros(shape, bool)
    if len(face_px):
        cheeks = face_px[[50, 280, 205, 425, 117, 346, 151], :2]
        height = np.ptp(face_px[:468, 1])
        for x, y in cheeks:
            skin |= _disc(shape, x, y, 0.06 * height)
        up = face_px[10, :2] - face_px[152, :2]
        top = face_px[10, :2] + 0.16 * up
        side = np.array([-up[1], up[0]])
        for k in (-0.3, -0.15, 0, 0.15, 0.3):
            hair |= _disc(shape, *(top + k * side), 0.05 * height)
    else:
        head = points[:11]
        radius = 0.25 * max(float(np.ptp(head, axis=0).max()), 6.0)
        skin |= _disc(shape, *points[0], radius)
        hair |= _disc(shape, *(points[0] + 2.2 * (points[[2, 5]].mean(axis=0) - points[[9, 10]].mean(axis=0))), radius)
    return {
        Label.SKIN: skin,
        Label.HAIR: hair,
        Label.UPPER: upper & ~skin,
        Label.LOWER: lower & ~upper,
        Label.SHOES: shoes,
    }


def _places(
    shape: tuple[int, int], points: np.ndarray, visibility: np.ndarray, face_px: np.ndarray
) -> dict[Label, np.ndarray]:
    """[H, W] 0..1 for each label: 0 where it may lie, rising to 1 over a third of the torso's length."""
    torso_px = _torso_px(points)
    head = face_px[:468, :2] if len(face_px) else points[:11]
    head_px = max(float(np.ptp(head[:, 1])), 0.15 * torso_px)
    near_head = _disc(shape, *head.mean(axis=0), 1.0 * head_px)
    near_head_wide = _disc(shape, *(head.mean(axis=0) + [0, 0.5 * head_px]), 2.0 * head_px)
    everywhere = np.full((33,), 1.0)
    torso = _polygon(shape, points[[11, 12, 24, 23]])
    arms = _stroke(shape, points, everywhere, [(11, 13), (13, 15), (12, 14), (14, 16)], 0.25 * torso_px)
    hands = _stroke(
        shape, points, everywhere, [(13, 15), (15, 19), (14, 16), (16, 20), (15, 17), (16, 18)], 0.2 * torso_px
    )
    legs = _stroke(shape, points, everywhere, [(23, 25), (24, 26), (25, 27), (26, 28), (23, 24)], 0.25 * torso_px)
    feet = _stroke(shape, points, everywhere, [(27, 29), (28, 30), (29, 31), (30, 32)], 0.12 * torso_px)
    waist = np.zeros(shape, bool)
    waist[max(0, int(points[[23, 24], 1].mean() - 0.15 * torso_px)) :] = True
    upper = (torso | arms) & ~_disc(shape, *head.mean(axis=0), 0.55 * head_px)
    oval = np.zeros(shape, bool)
    if len(face_px):
        oval = _polygon(shape, cv2.convexHull(face_px[:468, :2].astype(np.float32))[:, 0])
    oval = cv2.erode(oval.astype(np.uint8), np.ones((3, 3), np.uint8), iterations=max(1, round(0.04 * head_px))) > 0
    brow_row = face_px[[105, 334], 1].mean() if len(face_px) else 0
    oval[: int(brow_row)] = False  # a fringe may hang over the forehead; below the brows shade is not hair
    regions = {
        Label.SKIN: near_head | hands | arms | legs,
        Label.HAIR: near_head_wide & ~oval,
        Label.UPPER: upper | (legs & ~feet),
        Label.LOWER: legs & waist,
        Label.SHOES: feet,
    }
    away = {name: cv2.distanceTransform((~region).astype(np.uint8), cv2.DIST_L2, 5) for name, region in regions.items()}
    return {name: np.clip(distance / (0.33 * torso_px), 0, 1) for name, distance in away.items()}


def _torso_px(points: np.ndarray) -> float:
    spine = float(np.linalg.norm(points[[11, 12]].mean(axis=0) - points[[23, 24]].mean(axis=0)))
    return max(spine, float(np.linalg.norm(points[11] - points[12])), 20.0)


def _stroke(
    shape: tuple[int, int], points: np.ndarray, visibility: np.ndarray, bones: list[tuple[int, int]], radius_px: float
) -> np.ndarray:
    canvas = np.zeros(shape, np.uint8)
    for a, b in bones:
        if min(visibility[a], visibility[b]) > 0.5:
            start, end = (tuple(int(v) for v in points[k]) for k in (a, b))
            cv2.line(canvas, start, end, 1, max(1, round(2 * radius_px)))
    return canvas > 0


def _polygon(shape: tuple[int, int], corners: np.ndarray) -> np.ndarray:
    canvas = np.zeros(shape, np.uint8)
    cv2.fillPoly(canvas, [corners.astype(np.int32)], 1)
    return canvas > 0


def _disc(shape: tuple[int, int], x: float, y: float, radius_px: float) -> np.ndarray:
    canvas = np.zeros(shape, np.uint8)
    cv2.circle(canvas, (int(x), int(y)), max(1, round(radius_px)), 1, -1)
    return canvas > 0
