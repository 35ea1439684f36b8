"""The person's soft mask: networks, then a graph cut on colour, then a guided filter."""

from __future__ import annotations

import cv2
import numpy as np

from backend.perception.landmarks import PoseObservation, detect_selfie_mask, expand_box, visible_box

_GRABCUT_SIDE_PX = 640
"""Longer side on which the graph cut runs; it takes 0.4 s at 512 px and finds no more detail above that."""

EDGE_ZONE = 0.06
"""Share of the picture's shorter side within which its edge misleads the networks ..."""

EDGE_DEPTH = 0.04
"""... and how deep inside the person a pixel lies there to be beyond doubt, of the root of the person's area. On the
demo's portrait this frees the sleeve of a piece of the flag behind it."""


def person_mask(image: np.ndarray, pose: PoseObservation, others: np.ndarray | None = None) -> np.ndarray:
    """Soft mask of one person with what they wear and hold.

    Args:
        image: [H, W, 3] uint8 RGB.
        pose: The person's landmarks and pose mask.
        others: [H, W] bool of other people, who are left out.

    Returns:
        [H, W] float32 0..1.
    """
    height, width = image.shape[:2]
    x0, y0, x1, y1 = expand_box(visible_box(pose), 0.3, width, height)
    selfie = _selfie_both_ways(image)
    near = np.zeros((height, width), np.float32)
    near[y0:y1, x0:x1] = _selfie_both_ways(image[y0:y1, x0:x1])
    # Half-hearted selfie pixels that the pose network denies are background of the person's colours (a flag, a
    # curtain).
    likely = np.maximum(np.maximum(selfie, near) ** 3, pose.mask)
    agreed = np.minimum(np.maximum(selfie, near), pose.mask)
    if others is not None:
        likely, agreed = np.where(others, 0, likely), np.where(others, 0, agreed)
    hard = _graph_cut(image, likely, agreed)
    hard = _one_piece(hard, likely, pose)
    return _feather(image, hard)


def _selfie_both_ways(image: np.ndarray) -> np.ndarray:
    """Mean of the image's and its mirror image's mask: one of the two alone may lose what the person holds."""
    mirrored = detect_selfie_mask(image[:, ::-1])
    return (detect_selfie_mask(image) + mirrored[:, ::-1]) / 2


def _graph_cut(image: np.ndarray, likely: np.ndarray, agreed: np.ndarray) -> np.ndarray:
    """[H, W] bool; colour models decide where the networks are unsure."""
    height, width = likely.shape
    scale = min(1.0, _GRABCUT_SIDE_PX / max(height, width))
    size = (max(8, round(width * scale)), max(8, round(height * scale)))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    likely_small = cv2.resize(likely, size, interpolation=cv2.INTER_AREA)
    agreed_small = cv2.resize(agreed, size, interpolation=cv2.INTER_AREA)
    trimap = np.full(likely_small.shape, cv2.GC_PR_BGD, np.uint8)
    trimap[likely_small < 0.2] = cv2.GC_BGD
    trimap[likely_small > 0.5] = cv2.GC_PR_FGD
    trimap[_certain(agreed_small)] = cv2.GC_FGD
    if not np.isin(trimap, (cv2.GC_FGD, cv2.GC_PR_FGD)).any() or not np.isin(trimap, (cv2.GC_BGD, cv2.GC_PR_BGD)).any():
        return likely > 0.5
    cv2.setRNGSeed(0)  # the colour mixtures start from k-means; the same photo gives the same mask
    cv2.grabCut(
        cv2.cvtColor(small, cv2.COLOR_RGB2BGR),
        trimap,
        None,
        np.zeros((1, 65)),
        np.zeros((1, 65)),
        4,
        cv2.GC_INIT_WITH_MASK,
    )
    cut = np.isin(trimap, (cv2.GC_FGD, cv2.GC_PR_FGD)).astype(np.float32)
    return cv2.resize(cut, (width, height), interpolation=cv2.INTER_LINEAR) > 0.5


def _certain(agreed: np.ndarray) -> np.ndarray:
    """[H, W] bool: person beyond doubt. Near the picture's edge, where networks see one half only, just deep inside."""
    sure = agreed > 0.9
    depth = cv2.distanceTransform(np.pad(sure, 1, mode="edge").astype(np.uint8), cv2.DIST_L2, 5)[1:-1, 1:-1]
    rows, columns = np.indices(sure.shape)
    height, width = sure.shape
    to_edge = np.minimum(np.minimum(rows, height - 1 - rows), np.minimum(columns, width - 1 - columns))
    near_edge = to_edge < EDGE_ZONE * min(height, width)
    return sure & (~near_edge | (depth > EDGE_DEPTH * np.sqrt(sure.sum())))


def _one_piece(mask: np.ndarray, likely: np.ndarray, pose: PoseObservation) -> np.ndarray:
    """The component that holds most of the landmarks, with holes closed where the networks say person."""
    opened = cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
    count, components, stats, _ = cv2.connectedComponentsWithStats(opened)
    if count < 2:
        return mask
    height, width = mask.shape
    seen = pose.keypoints_px[pose.visibility > 0.5]
    x = np.clip(seen[:, 0].astype(int), 0, width - 1)
    y = np.clip(seen[:, 1].astype(int), 0, height - 1)
    votes = np.bincount(components[y, x], minlength=count)
    votes[0] = 0
    keep = int(votes.argmax()) if votes.any() else 1 + int(stats[1:, cv2.CC_STAT_AREA].argmax())
    person = components == keep
    count, holes, stats, _ = cv2.connectedComponentsWithStats((~person).astype(np.uint8))
    for k in range(1, count):
        area, hole = stats[k, cv2.CC_STAT_AREA], holes == k
        if area < 3e-4 * mask.size or (area < 0.05 * person.sum() and likely[hole].mean() > 0.6):
            person |= hole
    return person


def _feather(image: np.ndarray, hard: np.ndarray) -> np.ndarray:
    """Soft edge that follows the image (guided filter), exact 0 and 1 away from the contour."""
    radius = max(3, int(0.006 * max(hard.shape))) * 2 + 1
    guide = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32) / 255
    soft = np.clip(cv2.ximgproc.guidedFilter(guide, hard.astype(np.float32), radius // 2, 1e-4), 0, 1)
    kernel = np.ones((radius, radius), np.uint8)
    inside = cv2.erode(hard.astype(np.uint8), kernel) > 0
    outside = cv2.dilate(hard.astype(np.uint8), kernel) == 0
    return np.where(inside, 1, np.where(outside, 0, soft)).astype(np.float32)
