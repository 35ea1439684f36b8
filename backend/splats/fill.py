"""Colours of what the photo does not show.

Every unseen disc knows its label (which garment, or skin) and its place along the limb. It takes the mirrored disc of the
same label where that is seen, else what goes round the limb at its height (rows.py). The difference to the photo at the
border is carried a little way on, which closes the seams.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_matrix, diags
from scipy.spatial import cKDTree

from backend.splats.colour import SEEN, blend_weight, to_lab, to_rgb
from backend.splats.rows import row_colours

MIRROR_SCALE_M = 0.02
MIRROR_NORMAL = 0.7
MIRROR_REACH = (0.8, 1.6)
"""Mirror partners are nearest in (position / 2 cm, 0.7 x normal); full trust below 0.8, none above 1.6."""

SEAM_DECAY = 0.94
SEAM_STEPS = 40
"""The border's difference fades by 0.94 per disc: half of it is gone after 11 discs, about 7 cm."""

SEAM_LIMIT_LAB = (14.0, 10.0, 10.0)
DETAIL = 0.45
DETAIL_LIMIT_LAB = (6.0, 3.0, 3.0)


@dataclass(frozen=True)
class FillSurface:
    """Discs to be coloured, in the T-pose.

    Attributes:
        positions_m: [N, 3] on the undressed body; x = 0 is the mirror plane.
        normals: [N, 3] unit.
        families: [N] int; rows are shared inside a family (trunk and legs, both arms, both hands, both feet).
        sides: [N] int, -1 right, 0 trunk, 1 left: limbs do not take detail from each other.
        axis_m: [N] coordinate along the limb.
        labels: [N] int label of each disc.
    """

    positions_m: np.ndarray
    normals: np.ndarray
    families: np.ndarray
    sides: np.ndarray
    axis_m: np.ndarray
    labels: np.ndarray


def fill_colours(
    surface: FillSurface,
    photo_rgb: np.ndarray,
    confidence: np.ndarray,
    defaults_rgb: Mapping[int, np.ndarray],
    overall_rgb: np.ndarray,
    seed: int,
) -> np.ndarray:
    """Colour every disc.

    Args:
        surface: Places and labels.
        photo_rgb: [N, 3] the photo's colour at each disc, meaningful where `confidence` > 0.
        confidence: [N] 0..1.
        defaults_rgb: Colours of labels that may be seen nowhere.
        overall_rgb: [3] colour of a label that is neither seen nor in `defaults_rgb`.
        seed: Of the small noise.

    Returns:
        [N, 3] 0..1, finite.
    """
    photo = to_lab(photo_rgb)
    seen = confidence > SEEN
    rows = _row_colours(surface, photo, seen, defaults_rgb, overall_rgb)
    fill = rows + _detail(surface, photo - rows, seen, seed)
    partner, trust = _mirror(surface, seen)
    usable = trust > 0
    fill[usable] += trust[usable, None] * (photo[partner[usable]] - fill[usable])
    fill += _seam_offset(surface, photo - fill, confidence)
    share = blend_weight(confidence)[:, None]
    return to_rgb(share * photo + (1 - share) * fill)


def _row_colours(
    surface: FillSurface,
    photo: np.ndarray,
    seen: np.ndarray,
    defaults_rgb: Mapping[int, np.ndarray],
    overall_rgb: np.ndarray,
) -> np.ndarray:
    """[N, 3] Lab of the row statistics of every disc's family and label."""
    out = np.tile(to_lab(np.asarray(overall_rgb)[None]), (len(photo), 1))
    for label in np.unique(surface.labels):
        mine = surface.labels == label
        source = mine & seen
        if label in defaults_rgb:
            out[mine] = to_lab(np.asarray(defaults_rgb[label])[None])
        elif source.sum() >= 30:
            out[mine] = np.median(photo[source], axis=0)
        for family in np.unique(surface.families[mine]):
            target = mine & (surface.families == family)
            own = target & seen
            if own.sum() >= 40:
                flank = _flanks(surface, own)
                out[target] = row_colours(surface.axis_m[flank], photo[flank], surface.axis_m[target])
    return out


def _flanks(surface: FillSurface, own: np.ndarray) -> np.ndarray:
    """Indices of the discs that stand for the whole circumference: on the trunk those away from the middle.

    Zips, ties, logos and necklaces lie in the middle third and do not go round.
    """
    index = np.flatnonzero(own)
    trunk = index[surface.sides[index] == 0]
    if len(trunk) < 80:
        return index
    away = np.abs(surface.positions_m[trunk, 0])
    flank = trunk[away > 0.4 * np.percentile(away, 95)]
    limbs = index[surface.sides[index] != 0]
    return np.concatenate([flank, limbs]) if len(flank) > 40 else index


def _detail(surface: FillSurface, residual: np.ndarray, seen: np.ndarray, seed: int) -> np.ndarray:
    """[N, 3] the cloth's fine structure, from the seen disc at the same height and place across."""
    out = np.zeros_like(residual)
    rng = np.random.default_rng(seed)
    limit = np.array(DETAIL_LIMIT_LAB)
    local = residual - _neighbour_mean(surface.positions_m, residual, seen)
    for label in np.unique(surface.labels):
        plain = (np.abs(residual) < 3 * limit).all(axis=1)
        source = np.flatnonzero(seen & plain & (surface.labels == label))
        target = np.flatnonzero(~seen & (surface.labels == label))
        if len(source) < 30 or len(target) == 0:
            continue
        apart = 0.3 * surface.families + 0.1 * surface.sides
        key = np.stack([surface.axis_m, surface.positions_m[:, 0], apart], axis=1)
        distance, nearest = cKDTree(key[source]).query(key[target])
        close = distance < 0.015
        picked = np.where(close, source[nearest], source[rng.integers(0, len(source), len(target))])
        out[target] = DETAIL * np.clip(local[picked], -limit, limit) * np.where(close, 1.0, 0.5)[:, None]
    return out


def _neighbour_mean(positions: np.ndarray, values: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """[N, 3] mean over the 24 nearest seen discs (zero elsewhere): what is subtracted is the pattern, not the grain."""
    out = np.zeros_like(values)
    index = np.flatnonzero(seen)
    if len(index) < 30:
        return out
    _, near = cKDTree(positions[index]).query(positions[index], k=24)
    out[index] = values[index][near].mean(axis=1)
    return out


def _mirror(surface: FillSurface, seen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mirror partner [N] of each unseen disc among the seen ones of its label and family, and the trust in it [N]."""
    partner, trust = np.zeros(len(seen), int), np.zeros(len(seen))
    flip = np.array([-1.0, 1.0, 1.0])
    key = np.concatenate([surface.positions_m / MIRROR_SCALE_M, MIRROR_NORMAL * surface.normals], axis=1)
    flipped = np.concatenate(
        [surface.positions_m * flip / MIRROR_SCALE_M, MIRROR_NORMAL * surface.normals * flip], axis=1
    )
    group = surface.families * 100 + surface.labels
    for g in np.unique(group[~seen]):
        source, target = np.flatnonzero(seen & (group == g)), np.flatnonzero(~seen & (group == g))
        if len(source) == 0:
            continue
        distance, nearest = cKDTree(key[source]).query(flipped[target])
        partner[target] = source[nearest]
        trust[target] = np.clip((MIRROR_REACH[1] - distance) / (MIRROR_REACH[1] - MIRROR_REACH[0]), 0, 1)
    return partner, trust


def _seam_offset(surface: FillSurface, difference: np.ndarray, confidence: np.ndarray) -> np.ndarray:
    """[N, 3] the seen discs' difference to their own fill, low-passed and carried into the unseen ones with decay.

    Neighbours of another label or turned the other way take no part.
    """
    count = len(confidence)
    k = min(9, count)
    _, near = cKDTree(surface.positions_m).query(surface.positions_m, k=k)
    i, j = np.repeat(np.arange(count), k - 1), near[:, 1:].ravel()
    linked = (surface.labels[i] == surface.labels[j]) & (surface.families[i] == surface.families[j])
    linked &= (surface.normals[i] * surface.normals[j]).sum(axis=1) > 0
    links = csr_matrix((linked.astype(np.float64), (i, j)), shape=(count, count))
    links.eliminate_zeros()
    average = diags(1 / np.maximum(np.asarray(links.sum(axis=1)).ravel(), 1)) @ links
    seen = confidence > SEEN
    limit = np.array(SEAM_LIMIT_LAB)
    # a badge or strap at the border is not the cloth's shade: it is not carried on
    plain = seen & (np.abs(difference) < 1.5 * limit).all(axis=1)
    known = np.where(plain[:, None], np.clip(difference, -limit, limit), 0.0)
    presence = plain.astype(np.float64)
    for _ in range(6):
        # normalised: unseen neighbours do not pull the difference to zero
        mean, share = average @ (known * presence[:, None]), average @ presence
        known = np.where(seen[:, None], mean / np.maximum(share, 1e-6)[:, None], known)
    offset = known.copy()
    for _ in range(SEAM_STEPS):
        offset = np.where(seen[:, None], known, SEAM_DECAY * (average @ offset))
    return offset
