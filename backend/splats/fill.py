"""Colours of what the photo does not show.

Every unseen disc knows its label (which garment, or skin) and its place along the limb. It takes the mirrored disc of
the same label where that is seen, else what goes round the limb at its height (rows.py). The difference to the photo at
the border is carried a little way on, which closes the seams. All this happens in colours without the photo's light
(light.py), which is put on again for each disc's own normal.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_matrix, diags
from scipy.spatial import cKDTree

from backend.splats.colour import SEEN, blend_weight, to_lab, to_rgb
from backend.splats.light import relit
from backend.splats.pattern import continued, unrolled, varies_everywhere
from backend.splats.rows import cloths, is_pattern, row_colours

MIRROR_SCALE_M = 0.02
MIRROR_NORMAL = 0.7
MIRROR_REACH = (0.8, 1.6)
"""Mirror partners are nearest in (position / 2 cm, 0.7 x normal); full trust below 0.8, none above 1.6."""

SEAM_DECAY = 0.985
SEAM_STEPS = 80
"""The border's difference fades over about 15 cm: the flank's shade passes into the back without a streak."""

SEAM_LIMIT_LAB = (14.0, 10.0, 10.0)
PLAIN_SHARE = 0.55
DOTTED_SHARE = 0.1
"""Least share of a dotted garment in all that is seen."""

JOIN_M = 0.05
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
        areas_m2: [N] area that each disc stands for.
    """

    positions_m: np.ndarray
    normals: np.ndarray
    families: np.ndarray
    sides: np.ndarray
    axis_m: np.ndarray
    labels: np.ndarray
    areas_m2: np.ndarray


def fill_colours(
    surface: FillSurface,
    photo_rgb: np.ndarray,
    confidence: np.ndarray,
    defaults_rgb: Mapping[int, np.ndarray],
    overall_rgb: np.ndarray,
    seed: int,
    light: np.ndarray | None = None,
) -> np.ndarray:
    """Colour every disc.

    Args:
        surface: Places and labels.
        photo_rgb: [N, 3] the photo's colour at each disc, meaningful where `confidence` > 0.
        confidence: [N] 0..1.
        defaults_rgb: Colours in full light of labels that may be seen nowhere.
        overall_rgb: [3] colour in full light of a label that is neither seen nor in `defaults_rgb`.
        seed: Of the small noise.
        light: [N] 0..1 of full light on each disc in the photo; None where it is even.

    Returns:
        [N, 3] 0..1, finite.
    """
    light = np.ones(len(confidence)) if light is None else light
    photo = to_lab(relit(photo_rgb, 1 / light))
    seen = confidence > SEEN
    cloth = _cloths(surface, photo, seen)
    rows = _join_families(surface, _row_colours(surface, photo, cloth, defaults_rgb, overall_rgb))
    main = cloth == 0
    fill = rows + _detail(surface, photo - rows, main, seen, seed)
    plain = main & (np.abs(photo - fill) < 1.3 * np.array(SEAM_LIMIT_LAB)).all(axis=1)
    partner, trust, whole = _mirror(surface, seen, cloth, plain)
    grain = photo - fill
    grain -= _neighbour_mean(surface.positions_m, grain, main)
    grain = np.clip(grain, *np.multiply.outer((-1.5, 1.5), DETAIL_LIMIT_LAB))
    # a plain cloth gives its folds, not its light: one side of a person is lit, the other is not
    taken = np.where(whole[:, None], photo[partner] - fill, grain[partner])
    fill += trust[:, None] * taken
    fill += _seam_offset(surface, photo - fill, seen, main)
    share = blend_weight(confidence)[:, None]
    made = to_lab(relit(to_rgb(fill), light))
    return to_rgb(share * to_lab(photo_rgb) + (1 - share) * made)


def _cloths(surface: FillSurface, photo: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """[N] cloth of each seen disc within its label, 0 the main one; -1 where unseen or where too little is seen."""
    cloth = np.full(len(photo), -1)
    for label in np.unique(surface.labels[seen]):
        source = np.flatnonzero(seen & (surface.labels == label))
        if len(source) >= 30:
            cloth[source] = cloths(photo[source], surface.areas_m2[source])
    return cloth


def _row_colours(
    surface: FillSurface,
    photo: np.ndarray,
    cloth: np.ndarray,
    defaults_rgb: Mapping[int, np.ndarray],
    overall_rgb: np.ndarray,
) -> np.ndarray:
    """[N, 3] Lab of what goes round at the place of every disc, by family and label."""
    out = np.tile(to_lab(np.asarray(overall_rgb)[None]), (len(photo), 1))
    lateral = np.where(np.isin(surface.families, (1, 2)), surface.positions_m[:, 1], surface.positions_m[:, 0])
    angle, radius = unrolled(surface.positions_m, surface.axis_m, lateral, 3 * surface.families + surface.sides)
    for label in np.unique(surface.labels):
        mine = surface.labels == label
        if label in defaults_rgb:
            out[mine] = to_lab(np.asarray(defaults_rgb[label])[None])
        elif (mine & (cloth == 0)).any():
            out[mine] = np.median(photo[mine & (cloth == 0)], axis=0)
        # a collar or a glove with fittings is no dotted garment
        large = (mine & (cloth >= 0)).sum() > DOTTED_SHARE * (cloth >= 0).sum()
        for family in np.unique(surface.families[mine]):
            target = mine & (surface.families == family)
            own = target & (cloth >= 0)
            if own.sum() >= 40:
                flank = _flanks(surface, own)
                places = np.flatnonzero(own), np.flatnonzero(target)
                dotted = large and varies_everywhere(photo, surface.axis_m, angle, radius, places[0])
                if dotted or is_pattern(surface.axis_m[flank], cloth[flank], surface.areas_m2[flank]):
                    out[target] = continued(photo, surface.axis_m, angle, radius, *places)
                    continue
                out[target] = row_colours(
                    surface.axis_m[flank], photo[flank], cloth[flank], surface.areas_m2[flank], surface.axis_m[target]
                )
    return out


def _join_families(surface: FillSurface, rows: np.ndarray) -> np.ndarray:
    """Row colours [N, 3] that pass into each other where an arm meets the trunk in the same label."""
    out = rows.copy()
    for label in np.unique(surface.labels):
        mine = np.flatnonzero(surface.labels == label)
        for family in np.unique(surface.families[mine]):
            own, other = mine[surface.families[mine] == family], mine[surface.families[mine] != family]
            if len(other) == 0:
                continue
            tree = cKDTree(surface.positions_m[other])
            distance, nearest = tree.query(surface.positions_m[own], k=min(12, len(other)))
            distance, nearest = distance.reshape(len(own), -1), nearest.reshape(len(own), -1)
            share = 0.5 * np.exp(-distance.mean(axis=1) / JOIN_M)[:, None]
            out[own] += share * (rows[other[nearest]].mean(axis=1) - rows[own])
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


def _detail(surface: FillSurface, residual: np.ndarray, main: np.ndarray, seen: np.ndarray, seed: int) -> np.ndarray:
    """[N, 3] the cloth's fine structure, from the seen disc of the main cloth at the same height and place across."""
    out = np.zeros_like(residual)
    rng = np.random.default_rng(seed)
    limit = np.array(DETAIL_LIMIT_LAB)
    # well inside the main cloth: the rim of a badge is not its grain
    purity = _neighbour_mean(surface.positions_m, main[:, None].astype(float), seen)[:, 0]
    local = residual - _neighbour_mean(surface.positions_m, residual, main)
    apart = 0.3 * surface.families + 0.1 * surface.sides
    key = np.stack([surface.axis_m, surface.positions_m[:, 0], apart], axis=1)
    for label in np.unique(surface.labels):
        source = np.flatnonzero(main & (purity > 0.9) & (surface.labels == label))
        target = np.flatnonzero(~seen & (surface.labels == label))
        if len(source) < 30 or len(target) == 0:
            continue
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


def _mirror(
    surface: FillSurface, seen: np.ndarray, cloth: np.ndarray, plain: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mirror partner [N] of each unseen disc among the seen ones of its label and family, and the trust in it [N].

    Where one cloth makes up most of a garment, its patches are no partners (half a badge looks like a stain); the third
    result [N] says where this is not so and the partner's whole colour is wanted.
    """
    partner, trust, whole = np.zeros(len(seen), int), np.zeros(len(seen)), np.zeros(len(seen), bool)
    flip = np.array([-1.0, 1.0, 1.0])
    key = np.concatenate([surface.positions_m / MIRROR_SCALE_M, MIRROR_NORMAL * surface.normals], axis=1)
    flipped = np.concatenate(
        [surface.positions_m * flip / MIRROR_SCALE_M, MIRROR_NORMAL * surface.normals * flip], axis=1
    )
    group = surface.families * 100 + surface.labels
    for g in np.unique(group[~seen]):
        source, target = np.flatnonzero(seen & (group == g)), np.flatnonzero(~seen & (group == g))
        area = surface.areas_m2[source]
        if len(source) and (area * (cloth[source] == 0)).sum() > PLAIN_SHARE * area.sum():
            source = source[plain[source]]
        else:
            whole[target] = True
        if len(source) == 0:
            continue
        distance, nearest = cKDTree(key[source]).query(flipped[target])
        partner[target] = source[nearest]
        trust[target] = np.clip((MIRROR_REACH[1] - distance) / (MIRROR_REACH[1] - MIRROR_REACH[0]), 0, 1)
    return partner, trust, whole


def _seam_offset(surface: FillSurface, difference: np.ndarray, seen: np.ndarray, main: np.ndarray) -> np.ndarray:
    """[N, 3] the seen discs' difference to their own fill, low-passed and carried into the unseen ones with decay.

    Neighbours of another label or turned the other way take no part.
    """
    count = len(seen)
    k = min(9, count)
    _, near = cKDTree(surface.positions_m).query(surface.positions_m, k=k)
    i, j = np.repeat(np.arange(count), k - 1), near[:, 1:].ravel()
    linked = (surface.labels[i] == surface.labels[j]) & (surface.families[i] == surface.families[j])
    linked &= (surface.normals[i] * surface.normals[j]).sum(axis=1) > 0
    links = csr_matrix((linked.astype(np.float64), (i, j)), shape=(count, count))
    links.eliminate_zeros()
    average = diags(1 / np.maximum(np.asarray(links.sum(axis=1)).ravel(), 1)) @ links
    limit = np.array(SEAM_LIMIT_LAB)
    # a badge or strap at the border is not the cloth's shade: it is not carried on
    plain = main & (np.abs(difference) < 1.5 * limit).all(axis=1)
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
