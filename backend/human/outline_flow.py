"""Where a drawn person has to move in a picture to fill the photo's outline: a smooth field that brings edge to edge.

A fit leaves limbs and hems a few centimetres beside where the photo shows them. For colours that is too far: an arm
would get the wall's. The outlines say how to move them, and between outlines the movement is interpolated.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from scipy.spatial import cKDTree

_GREY = np.array([0.299, 0.587, 0.114], np.float32)
GRID_PX = 8
"""The field is computed at every so many pixels and interpolated."""

_NEIGHBOURS = 48
_MOST_POINTS = 4000
_INSIDE_POINTS = 500


@dataclass(frozen=True)
class FlowSettings:
    """How far and how stiffly.

    Attributes:
        reach: Edges that lie further apart do not belong together, of the person's height.
        widths: Widths over which the movement is averaged, of the person's height, one per round.
        alike: Least cosine between the outward directions of edges that belong together.
        rest: Weight of not moving at all, of what an edge one width away weighs.
        inside: How far inside the outline the movement reaches, of the person's height: what lies deeper is shown
            where it is drawn, as far as an outline can tell.
    """

    reach: float = 0.05
    widths: tuple[float, ...] = (0.1, 0.06, 0.04, 0.03, 0.02, 0.015, 0.015)
    alike: float = 0.6
    rest: float = 0.01
    inside: float = 0.15


def outline_flow(drawn: np.ndarray, shown: np.ndarray, settings: FlowSettings = FlowSettings()) -> np.ndarray:
    """The field that moves a drawing onto a photo.

    Args:
        drawn: [H, W] 0..1, what the person covers as drawn.
        shown: [H, W] 0..1, the photo's mask.
        settings: See there.

    Returns:
        float32 [H, W, 2]: what is drawn at pixel (x, y) is shown at (x, y) + flow; zero where either is empty.
    """
    ours, theirs = _outline(drawn), _outline(shown)
    height, width = np.asarray(drawn).shape
    if ours is None or theirs is None:
        return np.zeros((height, width, 2), np.float32)
    (points, outward), (aims, aim_outward) = ours, theirs
    size = float(np.ptp(aims[:, 1])) or 1.0
    reach = settings.reach * size
    tree = cKDTree(np.concatenate([aims, reach * aim_outward], axis=1))
    move = np.zeros_like(points)
    known = np.ones(len(points), bool)
    for share in settings.widths:
        moved = points + move
        _, near = tree.query(np.concatenate([moved, reach * outward], axis=1))
        apart = aims[near] - moved
        known = np.linalg.norm(apart, axis=1) < reach
        known &= (outward * aim_outward[near]).sum(axis=1) > settings.alike
        # only across the edge: along it nothing can be told
        across = (apart * outward).sum(axis=1, keepdims=True) * outward
        if not known.any():
            return np.zeros((height, width, 2), np.float32)
        move = move + _averaged(points[known], across[known], points, share * size, settings.rest)
    return _on_pixels(points, move, (height, width), settings.widths[-1] * size, settings.inside * size)


@dataclass(frozen=True)
class DetailFlowSettings:
    """How far what lies inside the outline is moved; lengths of the person's height.

    Attributes:
        height_px: The person is looked at in this size.
        reach: Largest movement. window: Width over which pictures are compared.
        contrast: What is fainter tells nothing, 0..1.
        cost: Of the largest movement, in correlation.
        gain: Of correlation, from which a movement counts in full.
    """

    height_px: int = 320
    reach: float = 0.016
    window: float = 0.05
    contrast: float = 0.03
    cost: float = 0.15
    gain: float = 0.2


def detail_flow(
    drawn: np.ndarray, shown: np.ndarray, where: np.ndarray, settings: DetailFlowSettings = DetailFlowSettings()
) -> np.ndarray:
    """The field that moves what is drawn inside the outline onto the same in a photo: stripes, belts, hems.

    Only where both have structure that agrees better after a small movement; all else stays.

    Args:
        drawn: [H, W, 3] 0..1.
        shown: [H, W, 3] 0..1.
        where: [H, W] bool, where both show the person.
        settings: See there.

    Returns:
        float32 [H, W, 2], as of `outline_flow`.
    """
    height, width = where.shape
    rows = np.flatnonzero(where.any(axis=1))
    if len(rows) < 32:
        return np.zeros((height, width, 2), np.float32)
    scale = min(1.0, settings.height_px / float(np.ptp(rows)))
    size = (max(8, round(width * scale)), max(8, round(height * scale)))
    a, b = (cv2.resize(np.asarray(p, np.float32) @ _GREY, size, interpolation=cv2.INTER_AREA) for p in (drawn, shown))
    mask = cv2.resize(where.astype(np.float32), size, interpolation=cv2.INTER_AREA)
    tall = float(np.ptp(rows)) * scale
    sigma, reach = settings.window * tall, max(1, round(settings.reach * tall))
    steps = [(y, x) for y in range(-reach, reach + 1) for x in range(-reach, reach + 1) if y * y + x * x <= reach**2]
    still = _correlation(a, b, mask, mask, sigma, settings.contrast)
    best, move = still.copy(), np.zeros((*mask.shape, 2), np.float32)
    for y, x in steps:
        there, also = (np.roll(p, (-y, -x), axis=(0, 1)) for p in (b, mask))
        score = _correlation(a, there, mask, also, sigma, settings.contrast)
        score -= settings.cost * (y * y + x * x) / reach**2
        better = score > best
        best = np.where(better, score, best)
        move[better] = (x, y)
    trust = np.clip((best - still) / settings.gain, 0, 1) * mask
    share = cv2.GaussianBlur(trust, (0, 0), sigma / 2)
    smooth = (
        cv2.GaussianBlur(move * trust[..., None], (0, 0), sigma / 2)
        / np.maximum(cv2.GaussianBlur(mask, (0, 0), sigma / 2), 0.05)[..., None]
    )
    smooth = np.where(share[..., None] > 1e-4, smooth, 0.0).astype(np.float32)
    return cv2.resize(smooth, (width, height), interpolation=cv2.INTER_LINEAR) / np.float32(scale)


def _correlation(
    a: np.ndarray, b: np.ndarray, here: np.ndarray, there: np.ndarray, sigma: float, contrast: float
) -> np.ndarray:
    """[H, W] -1..1 of two grey pictures in a window about every pixel; 0 where either is flat."""
    both = here * there
    total = np.maximum(cv2.GaussianBlur(both, (0, 0), sigma), 1e-3)

    def mean(values: np.ndarray) -> np.ndarray:
        return cv2.GaussianBlur(both * values, (0, 0), sigma) / total

    ma, mb = mean(a), mean(b)
    va, vb = np.maximum(mean(a * a) - ma * ma, 0), np.maximum(mean(b * b) - mb * mb, 0)
    return (mean(a * b) - ma * mb) / np.sqrt((va + contrast**2) * (vb + contrast**2))


def joined(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """One field [H, W, 2] for pulling by `first` and then by `second`."""
    return second + pulled(first, second)


def pulled(picture: np.ndarray, flow: np.ndarray, nearest: bool = False) -> np.ndarray:
    """The photo as it would be if the person stood as drawn.

    Args:
        picture: [H, W] or [H, W, C], float32 or uint8.
        flow: [H, W, 2] of `outline_flow`.
        nearest: Take whole pixels, for labels.
    """
    height, width = flow.shape[:2]
    grid = np.stack(np.meshgrid(np.arange(width), np.arange(height)), axis=-1)
    at = np.asarray(grid + flow, np.float32)
    how = cv2.INTER_NEAREST if nearest else cv2.INTER_LINEAR
    return cv2.remap(picture, at[..., 0], at[..., 1], how, borderMode=cv2.BORDER_REPLICATE)


def _outline(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Points [N, 2] (x, y) on the mask's edge and their outward directions [N, 2]; None of an empty or full mask.

    What lies on the picture's border is no edge of the person.
    """
    inside = np.ascontiguousarray(np.asarray(mask) > 0.5).astype(np.uint8)
    contours, _ = cv2.findContours(inside, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    contours = [c[:, 0, :] for c in contours if len(c) > 20]
    if not contours:
        return None
    points = np.concatenate(contours).astype(np.float64)
    height, width = inside.shape
    within = ((points > 1) & (points < [width - 2, height - 2])).all(axis=1)
    points = points[within]
    soft = cv2.GaussianBlur(inside.astype(np.float32), (0, 0), 2.5)
    x, y = points.astype(int).T
    slope = -np.stack([cv2.Sobel(soft, cv2.CV_32F, 1, 0)[y, x], cv2.Sobel(soft, cv2.CV_32F, 0, 1)[y, x]], axis=1)
    length = np.linalg.norm(slope, axis=1)
    points, slope, length = points[length > 1e-3], slope[length > 1e-3], length[length > 1e-3]
    if len(points) < 20:
        return None
    step = max(1, len(points) // _MOST_POINTS)
    return points[::step], (slope / length[:, None])[::step]


def _averaged(at: np.ndarray, values: np.ndarray, where: np.ndarray, width_px: float, rest: float) -> np.ndarray:
    """Gaussian mean [M, 2] at `where` [M, 2] of `values` [N, 2] that are known `at` [N, 2]."""
    count = min(_NEIGHBOURS, len(at))
    # a thinned set reaches further with the same number of neighbours
    step = max(1, round(len(at) * width_px / max(float(np.ptp(at[:, 1])), 1.0) / 16))
    thin, given = at[::step], values[::step]
    distance, near = cKDTree(thin).query(where, k=min(count, len(thin)))
    distance, near = distance.reshape(len(where), -1), near.reshape(len(where), -1)
    weight = np.exp(-0.5 * (distance / width_px) ** 2)
    total = weight.sum(axis=1, keepdims=True) + rest * weight.shape[1]
    return (weight[..., None] * given[near]).sum(axis=1) / total


def _on_pixels(
    at: np.ndarray, values: np.ndarray, size: tuple[int, int], width_px: float, inside_px: float
) -> np.ndarray:
    """Values [N, 2] known `at` [N, 2] on every pixel, the nearer the more, fading over `inside_px`."""
    height, width = size
    step = max(1, len(at) // _INSIDE_POINTS)
    at, values = at[::step], values[::step]
    rows, columns = np.arange(0, height + GRID_PX, GRID_PX), np.arange(0, width + GRID_PX, GRID_PX)
    where = np.stack(np.meshgrid(columns, rows), axis=-1).reshape(-1, 2).astype(np.float32)
    squared = np.square(where[:, None, :] - at[None].astype(np.float32)).sum(axis=-1)
    weight = (squared + np.float32(width_px**2)) ** -1.5
    field = weight @ values.astype(np.float32) / weight.sum(axis=1, keepdims=True)
    field *= np.exp(-squared.min(axis=1, keepdims=True) / inside_px**2)
    grid = np.stack(np.meshgrid(np.arange(width), np.arange(height)), axis=-1).astype(np.float32) / GRID_PX
    return cv2.remap(field.reshape(len(rows), len(columns), 2), grid[..., 0], grid[..., 1], cv2.INTER_LINEAR)


__all__ = ["DetailFlowSettings", "FlowSettings", "detail_flow", "joined", "outline_flow", "pulled"]
