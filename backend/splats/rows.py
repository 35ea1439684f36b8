"""Colours of a garment along a limb, as it would look all round."""

from __future__ import annotations

import cv2
import numpy as np
from scipy.ndimage import gaussian_filter1d, median_filter

ROW_M = 0.01
CHROMA_SIGMA_ROWS = 2.0
LIGHTNESS_MEDIAN_ROWS = 17
LIGHTNESS_SIGMA_ROWS = 4.0
"""Lightness is smoothed over 17 cm (median, keeps real steps), chroma over 4 cm: shading changes lightness."""

SAME_CLOTH = 14.0
"""Clusters nearer than this in (L / 2, a, b) are one cloth in light and shade."""

BRIDGE_SHARE = 0.03
"""Of the area; clusters below it do not join two others into one cloth."""

MAIN_BONUS = 0.35
"""Advantage of the garment's main colour in every row; patches, straps and shadows below 65 % of a row lose."""

CHANGE_COST_ROWS = 2.0

PATTERN_WINDOW_M = 0.08
PATTERN_SHARE = 0.2
"""In a pattern nearly every stretch of 8 cm has 20 % of other colours; a badge or a collar is in one of them."""

_LAB_WEIGHTS = np.array([0.5, 1.0, 1.0])


def best_sequence(score: np.ndarray, change_cost: float) -> np.ndarray:
    """The sequence [B] of states with the largest sum of scores [B, S] minus `change_cost` per change (Viterbi)."""
    bins, count = score.shape
    best = score[0].copy()
    came = np.zeros((bins, count), int)
    for b in range(1, bins):
        leader = int(best.argmax())
        change = best[leader] - change_cost > best
        came[b] = np.where(change, leader, np.arange(count))
        best = np.where(change, best[leader] - change_cost, best) + score[b]
    path = np.zeros(bins, int)
    path[-1] = int(best.argmax())
    for b in range(bins - 1, 0, -1):
        path[b - 1] = came[b, path[b]]
    return path


def row_colours(
    axis_m: np.ndarray, lab: np.ndarray, cloth: np.ndarray, weights: np.ndarray, wanted_m: np.ndarray
) -> np.ndarray:
    """What goes round the limb at given heights.

    Each row takes one of the cloths, the main one unless another fills the row, so that a badge, a zip or a deep fold
    stays where it was seen. Lightness is smoothed over a longer stretch than chroma.

    Args:
        axis_m: [S] coordinate of the samples along the limb.
        lab: [S, 3] their colours, CIE Lab.
        cloth: [S] from `cloths`, 0 the main one.
        weights: [S] area of each sample.
        wanted_m: [M] coordinates to fill.

    Returns:
        [M, 3] CIE Lab.
    """
    start = float(axis_m.min()) - ROW_M
    count = int((axis_m.max() - start) / ROW_M) + 3
    row = ((axis_m - start) / ROW_M).astype(int)
    share = np.zeros((count, int(cloth.max()) + 1))
    np.add.at(share, (row, cloth), weights)
    total = share.sum(axis=1, keepdims=True)
    score = share / np.maximum(total, 1e-12) * np.minimum(total / (6 * weights.mean()), 1)
    if (cloth == 0).any():
        score[:, 0] += MAIN_BONUS
    chosen = best_sequence(score, CHANGE_COST_ROWS)
    fits = chosen[row] == cloth
    if not fits.any():
        fits = np.ones(len(row), bool)
    medians, known = _row_medians(row[fits], lab[fits], count)
    centres = start + (np.arange(count) + 0.5) * ROW_M
    table = _smooth(medians, known, chosen)
    values = np.stack([np.interp(wanted_m, centres, table[:, c]) for c in range(3)], axis=1)
    # far beyond what was seen the main cloth's median is safer than the last row
    rows_seen = centres[known]
    beyond = np.maximum(rows_seen[0] - wanted_m, wanted_m - rows_seen[-1])
    t = np.clip((beyond - 0.02) / 0.10, 0, 1)[:, None]
    main = cloth == 0 if (cloth == 0).any() else fits
    return (1 - t) * values + t * np.median(lab[main], axis=0)


def is_pattern(axis_m: np.ndarray, cloth: np.ndarray, weights: np.ndarray) -> bool:
    """Whether a garment is striped, checked or dotted: other colours than the main one along most of its length.

    Args:
        axis_m: [S] coordinate of the samples along the limb.
        cloth: [S] from `cloths`.
        weights: [S] area of each sample.
    """
    window = np.floor((axis_m - axis_m.min()) / PATTERN_WINDOW_M).astype(int)
    total = np.bincount(window, weights)
    other = np.bincount(window, weights * (cloth != 0))
    filled = total > 0.2 * total.max()
    if filled.sum() < 3:
        return False
    return bool((other[filled] > PATTERN_SHARE * total[filled]).mean() > 0.7)


def cloths(lab: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Group colours into cloths: clusters that are linked where they are near, so that light and shade stay together.

    Args:
        lab: [S, 3] CIE Lab.
        weights: [S] area of each sample.

    Returns:
        [S] int cloth of each sample; 0 has the largest area.
    """
    samples = (lab * _LAB_WEIGHTS).astype(np.float32)
    cv2.setRNGSeed(0)
    criteria = (cv2.TERM_CRITERIA_EPS + cv2.TERM_CRITERIA_MAX_ITER, 20, 0.5)
    count = max(1, min(8, len(samples) // 10))
    _, member, centres = cv2.kmeans(samples, count, None, criteria, 2, cv2.KMEANS_PP_CENTERS)
    apart = np.linalg.norm(centres[:, None] - centres[None], axis=2)
    share = np.bincount(member.ravel(), weights, count) / max(float(weights.sum()), 1e-12)
    group = _linked(apart, share > BRIDGE_SHARE)[member.ravel()]
    order = np.argsort(-np.bincount(group, weights, count), kind="stable")
    rank = np.empty(count, int)
    rank[order] = np.arange(count)
    return rank[group]


def _linked(apart: np.ndarray, large: np.ndarray) -> np.ndarray:
    """Group [K] of each cluster, by chains of near ones.

    Small clusters are often mixtures (edges, seams): they join one group and do not bridge two.

    Args:
        apart: [K, K] distances of the centres.
        large: [K] bool.
    """
    linked = (apart < SAME_CLOTH) & (large[:, None] == large[None])
    small = np.flatnonzero(~large)
    for k in small if large.any() else ():
        nearest = np.where(large, apart[k], np.inf).argmin()
        if apart[k, nearest] < SAME_CLOTH:
            linked[k], linked[:, k] = False, False
            linked[k, k] = linked[k, nearest] = linked[nearest, k] = True
    for _ in range(len(apart)):
        linked = (linked.astype(int) @ linked.astype(int)) > 0
    return linked.argmax(axis=1)


def _row_medians(row: np.ndarray, lab: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Median colour [B, 3] per row, and which rows have at least three samples [B]."""
    medians, known = np.zeros((count, 3)), np.zeros(count, bool)
    order = np.argsort(row, kind="stable")
    for members in np.split(order, np.flatnonzero(np.diff(row[order])) + 1):
        medians[row[members[0]]] = np.median(lab[members], axis=0)
        known[row[members[0]]] = len(members) >= 3
    if not known.any():
        medians[:], known[:] = np.median(lab, axis=0), True
    return medians, known


def _smooth(medians: np.ndarray, known: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Row colours [B, 3] without gaps; smoothed inside each stretch of one cloth, so that its borders stay sharp."""
    index = np.arange(len(known))
    table = np.zeros_like(medians)
    for first, last in _stretches(chosen):
        inside = known & (index >= first) & (index < last)
        use = inside if inside.any() else known
        part = np.stack([np.interp(index[first:last], index[use], medians[use, c]) for c in range(3)], axis=1)
        part[:, 0] = median_filter(part[:, 0], LIGHTNESS_MEDIAN_ROWS, mode="nearest")
        part[:, 0] = gaussian_filter1d(part[:, 0], LIGHTNESS_SIGMA_ROWS, mode="nearest")
        part[:, 1:] = median_filter(part[:, 1:], (7, 1), mode="nearest")
        part[:, 1:] = gaussian_filter1d(part[:, 1:], CHROMA_SIGMA_ROWS, axis=0, mode="nearest")
        table[first:last] = part
    return table


def _stretches(chosen: np.ndarray) -> list[tuple[int, int]]:
    """Half-open ranges of equal values."""
    cuts = [0, *(np.flatnonzero(np.diff(chosen)) + 1).tolist(), len(chosen)]
    return list(zip(cuts[:-1], cuts[1:], strict=True))
