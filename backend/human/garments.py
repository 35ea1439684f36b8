"""What covers each height of a limb: clothes, skin or shoes, as rings around trunk, legs and arms.

The photo's labels say what is seen. Clothes go round a limb, so the label of the unseen side is that of the same
height: along each limb's axis in the T-pose, bins of `BIN_M` vote, and the best sequence of labels with few changes
(Viterbi) is kept. A hem is then one sharp height around the whole leg.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import cv2
import numpy as np
from scipy.spatial import cKDTree

from backend.human.camera import PinholeCamera
from backend.human.model import BodyModel
from backend.human.zbuffer import MeshView
from backend.perception.people import Label
from backend.splats.rows import best_sequence, cloths
from blender_addon.shared.skeleton import JOINT_NAMES

BIN_M = 0.005
"""Height of a ring; the hem's accuracy. A pixel of a full-body photo is 2 to 3 mm."""

CHANGE_COST_BINS = 4.0
"""Evidence, in fully observed rings, that a change of label must bring: 2 cm."""

MAIN_BONUS = 0.1

FULL_EVIDENCE_PX = 6.0
"""Pixels of a ring that count as a full observation."""

FIRST_CLOTH = len(Label)
"""Codes from here on are cloths: what the labels call upper, lower or other, split and joined by colour."""

MOST_CLOTHS = 8
PATTERN_REACH = 0.05
"""Of the square root of the clothes' area: about 4 cm, the width of a broad stripe."""

PATTERN_MUTUAL = 0.75
PATTERN_AREA = 0.12
"""Smallest share of the clothes of a pattern's colour; fittings and collars have less."""
SHADE_DEPTH = 0.62
SHADE_CHROMA = 0.17
"""A lamp at the side halves the luminance (0.7 of the lightness) of one cloth; a and b fall with the lightness."""

HEM_GAP_M = 0.002
SAME_GARMENT = 5.5
"""Upper and lower clothes of one colour cluster are one garment when their medians are nearer than this in
(L / 2, a, b): a coat reaches over the hips, where the labels begin to say lower."""

CLEARLY = 1.4
TAILS_SHARE = 0.15
"""Least share of the lower clothes' pixels on both sides, to tell a coat's tails from the trousers below them."""

MIXED_DEPTH = 0.5
MIXED_CHROMA = 0.22
"""The same for shades that lie among each other, as the two sides of a striped sleeve."""

INTERLEAVED = 0.7
"""Share of a shade's pixels within `PATTERN_REACH` of another one that makes both one garment in light and shade."""

SHOULDER_M = 0.32
MIRRORED_SHARE = 0.3
"""What an observation of the other side's limb counts."""


SHOE_ABOVE_ANKLE_M = 0.02
"""How far an unseen shoe or boot reaches above the vertices that move with the ankle."""


class Part(IntEnum):
    """Parts of the body that are dressed and filled separately."""

    HEAD = 0
    TRUNK = 1
    LEFT_ARM = 2
    RIGHT_ARM = 3
    LEFT_HAND = 4
    RIGHT_HAND = 5
    LEFT_LEG = 6
    RIGHT_LEG = 7
    LEFT_FOOT = 8
    RIGHT_FOOT = 9


ARMS = (Part.LEFT_ARM, Part.RIGHT_ARM)
HANDS = (Part.LEFT_HAND, Part.RIGHT_HAND)
LEGS = (Part.LEFT_LEG, Part.RIGHT_LEG)
FEET = (Part.LEFT_FOOT, Part.RIGHT_FOOT)


def _joint_part(name: str) -> Part:
    side = 0 if name.startswith("left") else 1
    bare = name.removeprefix("left_").removeprefix("right_")
    if bare in ("neck", "head", "jaw", "eye_smplhf"):
        return Part.HEAD
    if bare in ("pelvis", "spine1", "spine2", "spine3", "collar"):
        return Part.TRUNK
    groups = {"shoulder": ARMS, "elbow": ARMS, "hip": LEGS, "knee": LEGS, "ankle": FEET, "foot": FEET}
    return groups.get(bare, HANDS)[side]


JOINT_PARTS: np.ndarray = np.array([_joint_part(name) for name in JOINT_NAMES], np.uint8)
"""[55] `Part` of each joint."""


def vertex_parts(body: BodyModel) -> np.ndarray:
    """[V] uint8 `Part` with the largest share of each vertex's skin weights."""
    weights = np.asarray(body.skin_weights[:, : len(JOINT_PARTS)], np.float64)
    per_part = np.zeros((len(weights), len(Part)))
    for part in Part:
        per_part[:, part] = weights[:, part == JOINT_PARTS].sum(axis=1)
    return per_part.argmax(axis=1).astype(np.uint8)


def axis_m(points_m: np.ndarray, parts: np.ndarray) -> np.ndarray:
    """[N] coordinate along the limb of T-pose points [N, 3]: |x| on arms and hands, height elsewhere."""
    return np.where(np.isin(parts, ARMS + HANDS), np.abs(points_m[:, 0]), points_m[:, 1])


@dataclass(frozen=True)
class Rings:
    """Labels along trunk with legs and along the arms.

    Attributes:
        labels: [4, B] uint8 code per ring of height `BIN_M`: left body, right body, left arm, right arm.
        observed: [4, B] 0..1 how far the photo showed the ring.
        start_m: Axis coordinate of the first ring.
    """

    labels: np.ndarray
    observed: np.ndarray
    start_m: float

    def _index(self, points_m: np.ndarray, parts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        chain = np.where(np.isin(parts, ARMS + HANDS), 2, 0) + _on_right(points_m, parts)
        ring = np.floor((axis_m(points_m, parts) - self.start_m) / BIN_M).astype(int)
        return chain, np.clip(ring, 0, self.labels.shape[1] - 1)

    def at(self, points_m: np.ndarray, parts: np.ndarray) -> np.ndarray:
        """[N] uint8 code at T-pose points [N, 3] of the undressed body with their parts [N]."""
        return self.labels[self._index(points_m, parts)]

    def observed_at(self, points_m: np.ndarray, parts: np.ndarray) -> np.ndarray:
        """[N] 0..1: how far the photo showed the ring of each point."""
        return self.observed[self._index(points_m, parts)]


def _on_right(points_m: np.ndarray, parts: np.ndarray) -> np.ndarray:
    right = np.isin(parts, (Part.RIGHT_ARM, Part.RIGHT_HAND, Part.RIGHT_LEG, Part.RIGHT_FOOT))
    return (right | ((parts == Part.TRUNK) & (points_m[:, 0] < 0))).astype(int)


def garment_codes(image: np.ndarray, labels: np.ndarray, usable: np.ndarray) -> np.ndarray:
    """Labels with the clothes told apart by colour.

    Args:
        image: [H, W, 3] uint8 RGB.
        labels: [H, W] `Label`.
        usable: [H, W] bool, pixels of the person's own.

    Returns:
        [H, W] uint8: NONE, SKIN, HAIR and SHOES as they are, cloths from `FIRST_CLOTH` on, the largest first.
    """
    codes = np.array(labels, np.uint8)
    cloth = np.isin(labels, (Label.UPPER, Label.LOWER, Label.OTHER))
    codes[cloth] = FIRST_CLOTH
    known = cloth & usable
    if known.sum() < 100:
        return codes
    lab = cv2.cvtColor(image.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    lab = cv2.bilateralFilter(lab, 5, 12, 3)
    step = max(1, int(known.sum()) // 20_000)
    sample, label = lab[known][::step], labels[known][::step]
    group = cloths(sample, np.ones(len(sample)))
    state = _garments(sample, label, group)
    scale = np.array([0.5, 1.0, 1.0])
    for lower in (False, True):
        # every pixel takes the garment of the samples of its own half that look like it
        pixels, own = cloth & ((labels == Label.LOWER) == lower), (label == Label.LOWER) == lower
        if not pixels.any() or not own.any():
            continue
        colours, names = _palette(sample[own], state[own])
        nearest = cKDTree(colours * scale).query(lab[pixels] * scale)[1]
        codes[pixels] = FIRST_CLOTH + np.minimum(names[nearest], MOST_CLOTHS - 1)
    return _join_patterns(_join_shades(codes, lab, known, labels == Label.LOWER), known)


def _join_shades(codes: np.ndarray, lab: np.ndarray, known: np.ndarray, half: np.ndarray) -> np.ndarray:
    """Codes [H, W] in which light and shade of one garment are one.

    They have the same chroma for their lightness, and lie in one half of the body or among each other.
    """
    out = codes.copy()
    present = [c for c in range(FIRST_CLOTH, FIRST_CLOTH + MOST_CLOTHS) if ((codes == c) & known).sum() > 30]
    kernel = _reach_kernel(known)
    near = {c: cv2.dilate(((codes == c) & known).astype(np.uint8), kernel) > 0 for c in present}
    colour = {c: np.median(lab[(codes == c) & known], axis=0) for c in present}
    for k, a in enumerate(present):
        for b in present[k + 1 :]:
            dark, bright = sorted((colour[a], colour[b]), key=lambda c: c[0])
            chroma = dark[1:] / max(dark[0], 1.0) - bright[1:] / max(bright[0], 1.0)
            one_half = abs(half[(codes == a) & known].mean() - half[(codes == b) & known].mean()) < 0.5
            mixed = max(near[b][(codes == a) & known].mean(), near[a][(codes == b) & known].mean()) > INTERLEAVED
            depth, limit = (MIXED_DEPTH, MIXED_CHROMA) if mixed else (SHADE_DEPTH, SHADE_CHROMA)
            if (one_half or mixed) and dark[0] > depth * bright[0] and np.linalg.norm(chroma) < limit:
                out[out == out[codes == b][0]] = out[codes == a][0]
    return out


def _join_patterns(codes: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Codes [H, W] in which the colours of one stripe, check or dot pattern have become one garment.

    In a pattern almost every pixel of either colour has the other one near; a badge is near its shirt, but most of the
    shirt is not near its badge.
    """
    area = int(known.sum())
    kernel = _reach_kernel(known)
    out = codes.copy()
    present = [
        c for c in range(FIRST_CLOTH, FIRST_CLOTH + MOST_CLOTHS) if ((codes == c) & known).sum() > PATTERN_AREA * area
    ]
    near = {c: cv2.dilate(((codes == c) & known).astype(np.uint8), kernel) > 0 for c in present}
    for k, a in enumerate(present):
        for b in present[k + 1 :]:
            mutual = min(near[b][(codes == a) & known].mean(), near[a][(codes == b) & known].mean())
            if mutual > PATTERN_MUTUAL:
                out[out == out[codes == b][0]] = out[codes == a][0]
    return out


def _reach_kernel(known: np.ndarray) -> np.ndarray:
    """Disc of radius `PATTERN_REACH` for clothes that cover `known` [H, W]."""
    side = 2 * max(1, round(PATTERN_REACH * np.sqrt(int(known.sum())))) + 1
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))


def _garments(sample: np.ndarray, label: np.ndarray, group: np.ndarray) -> np.ndarray:
    """[S] garment of each sample: 2 x colour group, plus 1 for lower clothes of clearly another shade."""
    state = 2 * group
    for g in np.unique(group):
        lower = (group == g) & (label == Label.LOWER)
        rest = (group == g) & (label != Label.LOWER)
        if min(lower.sum(), rest.sum()) < 30:
            continue
        apart = (np.median(sample[lower], axis=0) - np.median(sample[rest], axis=0)) * [0.5, 1, 1]
        if np.linalg.norm(apart) > SAME_GARMENT:
            state[np.flatnonzero(lower)[~_reaches_down(sample[lower], sample[rest])]] += 1
    _, state = np.unique(state, return_inverse=True)
    order = np.argsort(-np.bincount(state), kind="stable")
    rank = np.empty(len(order), int)
    rank[order] = np.arange(len(order))
    return rank[state]


def _reaches_down(lower: np.ndarray, rest: np.ndarray) -> np.ndarray:
    """[S] bool: lower samples [S, 3] in colours of the upper garment, whose tails the labels call lower.

    Only where others have clearly different colours: trousers of nearly the shirt's colour are all trousers.
    """
    scale = np.array([0.5, 1.0, 1.0])
    cv2.setRNGSeed(0)
    criteria = (cv2.TERM_CRITERIA_EPS + cv2.TERM_CRITERIA_MAX_ITER, 20, 0.5)
    centres = []
    for samples, count in ((lower, 6), (rest, 6)):
        points = (samples * scale).astype(np.float32)
        centres.append(cv2.kmeans(points, min(count, len(points)), None, criteria, 2, cv2.KMEANS_PP_CENTERS))
    (_, member, mine), (_, _, theirs) = centres
    gap = np.linalg.norm(mine[:, None] - theirs[None], axis=2).min(axis=1)
    same = (gap < SAME_GARMENT)[member.ravel()]
    other = (gap > CLEARLY * SAME_GARMENT)[member.ravel()]
    return same if min(same.mean(), other.mean()) > TAILS_SHARE else np.zeros(len(lower), bool)


def _palette(sample: np.ndarray, state: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Colours [K, 3] that stand for garments [K], about forty each."""
    chosen = np.concatenate(
        [np.flatnonzero(state == s)[:: max(1, int((state == s).sum()) // 40)] for s in np.unique(state)]
    )
    return sample[chosen], state[chosen]


def find_rings(
    labels: np.ndarray,
    usable: np.ndarray,
    view: MeshView,
    rest_m: np.ndarray,
    parts: np.ndarray,
    hands_seen: tuple[bool, bool],
) -> Rings:
    """Vote for the label of every ring.

    Args:
        labels: [H, W] codes of the photo, from `garment_codes`.
        usable: [H, W] pixels that may vote (the person's own, not a held object's).
        view: The undressed body in the photo's pose.
        rest_m: [V, 3] the same vertices in the T-pose.
        parts: [V] `Part`.
        hands_seen: Whether the left and right hand's landmarks were found; pixels of other hands do not vote, since the
            model's hand lies elsewhere.
    """
    rows, columns = np.nonzero(view.nearest.covered & usable & ~np.isin(labels, (Label.NONE, Label.HAIR)))
    corners = view.triangles[view.nearest.triangle[rows, columns]]
    points = np.einsum("nk,nkc->nc", view.barycentric(rows, columns), rest_m[corners])
    part = parts[corners[:, 0]]
    lost = [h for h, seen in zip(HANDS, hands_seen, strict=True) if not seen]
    ok = (part != Part.HEAD) & ~np.isin(part, lost)
    points, part, seen = points[ok], part[ok], labels[rows[ok], columns[ok]]

    start = float(min(rest_m[:, 1].min(), 0.0)) - BIN_M
    bins = int(np.ceil((max(rest_m[:, 1].max(), np.abs(rest_m[:, 0]).max()) - start) / BIN_M)) + 2
    votes = _votes(points, part, seen, start, bins)
    prior = _prior(rest_m, parts, start, bins)
    total = votes.sum(axis=2, keepdims=True)
    evidence = np.minimum(total / FULL_EVIDENCE_PX, 1.0)
    score = votes / np.maximum(total, 1e-9) * evidence + prior * np.where(prior >= 0.5, 1.0, 1.0 - evidence)
    # the main cloth goes on where fittings and shadows share a row with it
    score[:, :, FIRST_CLOTH] += MAIN_BONUS * evidence[:, :, 0]
    ring_labels = np.stack([best_sequence(chain, CHANGE_COST_BINS) for chain in score]).astype(np.uint8)
    return Rings(ring_labels, evidence[:, :, 0], start)


def _votes(points: np.ndarray, part: np.ndarray, seen: np.ndarray, start: float, bins: int) -> np.ndarray:
    """[4, B, L] weighted pixel counts. The trunk's flanks count more: its back continues them, not a zip."""
    arm = np.isin(part, ARMS + HANDS)
    right = _on_right(points, part)
    trunk = part == Part.TRUNK
    half_width = np.percentile(np.abs(points[trunk, 0]), 95) if trunk.any() else 0.2
    weight = np.where(trunk, 0.2 + np.minimum(np.abs(points[:, 0]) / max(half_width, 0.05), 1.0) ** 2, 1.0)
    ring = np.clip(np.floor((axis_m(points, part) - start) / BIN_M).astype(int), 0, bins - 1)
    votes = np.zeros((4, bins, FIRST_CLOTH + MOST_CLOTHS))
    # the shoulders are the flanks of the chest: what they wear goes round the back, a collar or ring does not
    shoulder = np.isin(part, ARMS) & (np.abs(points[:, 0]) < SHOULDER_M)
    height = np.clip(np.floor((points[:, 1] - start) / BIN_M).astype(int), 0, bins - 1)
    for chain in range(2):
        np.add.at(votes[chain], (height[shoulder], seen[shoulder]), 1.2)
    for chain in range(4):
        mine = (arm == (chain >= 2)) & ((right == chain % 2) | trunk)
        other = (arm == (chain >= 2)) & (right != chain % 2) & ~trunk
        np.add.at(votes[chain], (ring[mine], seen[mine]), weight[mine])
        np.add.at(votes[chain], (ring[other], seen[other]), MIRRORED_SHARE * weight[other])
    return votes


def _prior(rest_m: np.ndarray, parts: np.ndarray, start: float, bins: int) -> np.ndarray:
    """[4, B, L] what one expects without seeing: bare hands and shod feet firmly, clothes weakly."""
    height = start + (np.arange(bins) + 0.5) * BIN_M
    prior = np.zeros((4, bins, FIRST_CLOTH + MOST_CLOTHS))
    for side in range(2):
        feet, hands = (rest_m[parts == group[side]] for group in (FEET, HANDS))
        ankle = feet[:, 1].max() + SHOE_ABOVE_ANKLE_M if len(feet) else -1.0
        wrist = np.percentile(np.abs(hands[:, 0]), 3) if len(hands) else np.inf
        body, arm = prior[side], prior[2 + side]
        body[height < ankle, Label.SHOES] = 0.6
        # elsewhere the main cloth, so weakly that whatever is seen nearby goes on
        body[height >= ankle, FIRST_CLOTH] = 0.01
        arm[height < wrist, FIRST_CLOTH] = 0.01
        arm[height >= wrist, Label.SKIN] = 0.6
    return prior


def snap_to_hems(rest_m: np.ndarray, triangles: np.ndarray, parts: np.ndarray, rings: Rings) -> np.ndarray:
    """Slide leg vertices next to a hem onto it, so that the mesh has an edge where the garment ends.

    Args:
        rest_m: [V, 3] T-pose vertices.
        triangles: [T, 3].
        parts: [V] `Part`.
        rings: From `find_rings`.

    Returns:
        [V, 3] vertices; those of triangles across a hem lie `HEM_GAP_M` above or below it.
    """
    out = np.array(rest_m, np.float64)
    legs = np.isin(parts, LEGS)
    code = rings.at(rest_m, parts)
    edges = np.concatenate([triangles[:, [0, 1]], triangles[:, [1, 2]], triangles[:, [2, 0]]])
    edges = edges[legs[edges].all(axis=1) & (code[edges[:, 0]] != code[edges[:, 1]])]
    for i, j in np.concatenate([edges, edges[:, ::-1]]):
        high, low = (i, j) if rest_m[i, 1] > rest_m[j, 1] else (j, i)
        hem = _hem_between(rings, rest_m[low], rest_m[high], int(parts[i]))
        if i == high:
            out[i, 1] = hem + HEM_GAP_M
        else:
            out[i, 1] = hem - HEM_GAP_M
    return out


def _hem_between(rings: Rings, low_m: np.ndarray, high_m: np.ndarray, part: int) -> float:
    """Height of the change of code between two points of one limb."""
    first, last = (int(np.floor((y - rings.start_m) / BIN_M)) for y in (low_m[1], high_m[1]))
    edges = rings.start_m + BIN_M * np.arange(first + 1, last + 1)
    limb = np.full(len(edges), part, np.uint8)
    below, above = (
        rings.at(np.stack([np.full(len(edges), low_m[0]), edges + side, np.zeros(len(edges))], axis=1), limb)
        for side in (-0.5 * BIN_M, 0.5 * BIN_M)
    )
    change = np.flatnonzero(below != above)
    return float(edges[change[0]]) if len(change) else float(0.5 * (low_m[1] + high_m[1]))


def skirt_vertices(
    rest_m: np.ndarray,
    posed_m: np.ndarray,
    parts: np.ndarray,
    rings: Rings,
    mask: np.ndarray,
    camera: PinholeCamera,
) -> np.ndarray:
    """Vertices under a skirt, a dress or a coat's tails.

    Both legs wear the trunk's cloth down to a hem, and just above it the mask is closed between the legs, which it is
    not under shorts.

    Args:
        rest_m: [V, 3] T-pose.
        posed_m: [V, 3] in the photo's pose.
        parts: [V] `Part`.
        rings: From `find_rings`.
        mask: [H, W] bool.
        camera: The photo's camera.

    Returns:
        [V] bool.
    """
    skirt = np.zeros(len(rest_m), bool)
    code = rings.at(rest_m, parts)
    hips = (parts == Part.TRUNK) & (rest_m[:, 1] < np.percentile(rest_m[parts == Part.TRUNK, 1], 15))
    cloth = int(np.bincount(code[hips]).argmax()) if hips.any() else 0
    legs = [np.flatnonzero((parts == leg) & (code == cloth)) for leg in LEGS]
    if cloth < FIRST_CLOTH or min(len(leg) for leg in legs) < 10:
        return skirt
    hems = [float(rest_m[leg, 1].min()) for leg in legs]
    bare = [bool(((parts == part) & (code != cloth)).any()) for part in LEGS]
    if not all(bare):
        return skirt
    ends = [posed_m[leg[rest_m[leg, 1] < hem + 0.05]].mean(axis=0) for leg, hem in zip(legs, hems, strict=True)]
    between = np.linspace(ends[0], ends[1], 21)[4:-4]
    column, row = np.floor(camera.project(between)).astype(int).T
    inside = (column >= 0) & (column < mask.shape[1]) & (row >= 0) & (row < mask.shape[0])
    if not inside.all() or not mask[row, column].all():
        return skirt
    skirt[np.concatenate(legs)] = True
    # the crotch hangs behind the same cloth
    trunk = (parts == Part.TRUNK) & (code == cloth)
    top = 0.5 * (float(rest_m[trunk, 1].min()) + float(rest_m[skirt, 1].max())) if trunk.any() else -np.inf
    return skirt | (trunk & (rest_m[:, 1] < top))
