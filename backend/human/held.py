"""Things in the person's hands or under their feet: part of the mask, but neither body nor clothes."""

from __future__ import annotations

import cv2
import numpy as np

from backend.human.garments import ARMS, FEET, HANDS, JOINT_PARTS, LEGS, Part
from backend.human.lbs import apply_transforms, vertex_transforms
from backend.human.model import BodyModel
from backend.human.personal import Personal
from backend.human.zbuffer import MeshView, view_mesh
from backend.perception.people import Label, Person
from blender_addon.shared.skeleton import JOINT_NAMES

REACH_M = 0.07
"""Loose sleeves and trouser legs stay within this distance of the body; pixels beyond it may be an object."""

FOOT_REACH_M = 0.04
"""The same at the feet: shoes fit closer."""

SMALLEST_SHARE = 0.01
"""Of the mask; smaller pieces are left to the shell."""

SAME_COLOUR = 12.0
"""Distance in (L / 2, a, b) within which two colours may be one dyed cloth in light and shade."""

SAME_CLOTH = 0.65
"""A piece is the limb's own garment when its colours are at least 0.65 times as typical of it as its own pixels."""

TOUCH_M = 0.13
"""Distance from a hand or foot within which a thing can be held or stood on; pieces are looked at from `REACH_M` on."""

BESIDE_M = 0.15
HAND_FREE_M = 0.08
BORDER_SHARE = 0.3
"""A skirt's flank has at least 0.3 of its own area of the same clothes within 15 cm on the body, 8 cm from hands."""

LEAST_REFERENCE = 0.05
"""Share of the visible body from which a garment is judged."""

SKIN_DISTANCE = 9.0
GROWTH_M = 0.22
"""How far over the body an object may reach from the part of it that stands out."""

EDGE_M = 0.015
"""Width of an object's shadow and blurred edge."""

BAY_M = 0.05
"""Radius of the opening that rounds an object off."""

RIM_GROWTH_M = 0.32
RIM_M = 0.035
"""The same for a dark rim, which only counts this close to the convex hull of what was found so far."""

_LAB_WEIGHTS = np.array([0.5, 1.0, 1.0])
_SKIN_WEIGHTS = np.array([0.4, 1.0, 1.0])
_HOLDING = {"elbow", "wrist", "knee", "ankle", "foot"}
"""Joints whose limbs hold things: forearm, hand, shin, foot."""


def outer_triangles(body: BodyModel) -> np.ndarray:
    """[T] bool: triangles with a vertex that can be seen from outside."""
    return body.outer[body.triangles].any(axis=1)


def posed_body_m(body: BodyModel, personal: Personal, rest_m: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Vertices [V, 3] of `rest_m` in the photo's pose (world), and the transforms [V, 3, 4] that put them there."""
    transforms = vertex_transforms(
        personal.joints_m, personal.pose, body.twist.skin_weights, personal.translation_m, body.twist
    )
    return apply_transforms(transforms, np.asarray(rest_m, np.float64)), transforms


def find_held_objects(person: Person, body: BodyModel, personal: Personal) -> np.ndarray:
    """Find pixels of objects that the person holds or stands on.

    Far from the body, nearest to a forearm, hand, shin or foot and within reach of a hand or foot, larger than 1 % of
    the mask and of another colour than skin, the limb's garment and the clothes beside it; then grown over the body
    where the colour is the object's rather than the clothes'.

    Args:
        person: The photo with mask and labels.
        body: The body model.
        personal: The fitted person.

    Returns:
        [H, W] bool.
    """
    mask = person.mask > 0.5
    posed, _ = posed_body_m(body, personal, personal.vertices_m)
    view = view_mesh(posed, body.triangles[outer_triangles(body)], personal.camera)
    joints = body.skin_weights[:, : len(JOINT_NAMES)].argmax(axis=1)
    covered = view.nearest.covered
    held = np.zeros(mask.shape, bool)
    if not covered.any():
        return held
    px_m = float(np.median(view.nearest.depth_m[covered])) / personal.camera.fx
    owner = np.full(mask.shape, -1)
    owner[covered] = joints[view.triangles[view.nearest.triangle[covered], 0]]
    near = _nearest_owner(covered, owner)
    lab = cv2.cvtColor(person.image.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    skin = _skin_lab(lab, person.labels, view, joints)
    hands_px = np.concatenate([person.left_hand_px, person.right_hand_px, _hands_beyond_edge(posed, joints, personal)])
    reach = max(1, round(REACH_M / px_m))
    at_foot = np.isin(near, np.flatnonzero(np.isin(JOINT_PARTS, FEET)))
    limit = np.where(at_foot, FOOT_REACH_M / px_m, reach)
    far = mask & (cv2.distanceTransform((~covered).astype(np.uint8), cv2.DIST_L2, 5) > limit)
    holding = np.isin(near, _holding_joints())
    foreign = np.linalg.norm((lab - skin) * _SKIN_WEIGHTS, axis=-1) > SKIN_DISTANCE
    seed = (far & holding & foreign & (person.labels != Label.HAIR)).astype(np.uint8)
    seed = cv2.morphologyEx(seed, cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
    count, pieces, stats, _ = cv2.connectedComponentsWithStats(seed)
    for k in range(1, count):
        piece = pieces == k
        if stats[k, cv2.CC_STAT_AREA] < SMALLEST_SHARE * mask.sum():
            continue
        limb = int(np.bincount(near[piece]).argmax())
        if not _is_touched(piece, owner, hands_px, px_m) or _is_cloth(lab, piece, mask & covered, owner, limb, px_m):
            continue
        if _continues_cloth(lab, piece, mask & covered, owner, px_m):
            continue
        core = _grow(lab, piece, mask, covered, holding, person, reach, px_m, GROWTH_M)
        # its own far rim may lie deeper in the body; what does not round the object off is the clothes' own
        far_rim = _grow(lab, piece, mask, covered, holding, person, reach, px_m, RIM_GROWTH_M)
        whole = (core | (far_rim & _around(core, RIM_M / px_m))).astype(np.uint8)
        # what only hangs on by its colour, a badge or a strap, sticks out and falls to an opening
        held |= core | (cv2.morphologyEx(whole, cv2.MORPH_OPEN, _ellipse(BAY_M / px_m)) > 0)
    if held.any():
        # its shadow and its blurred edge belong to nobody
        held = (cv2.dilate(held.astype(np.uint8), _ellipse(max(1.0, EDGE_M / px_m))) > 0) & mask
    return held


def _holding_joints() -> np.ndarray:
    bare = [name.removeprefix("left_").removeprefix("right_") for name in JOINT_NAMES]
    return np.array([j for j, name in enumerate(bare) if name in _HOLDING or JOINT_PARTS[j] in HANDS])


def _nearest_owner(covered: np.ndarray, owner: np.ndarray) -> np.ndarray:
    """[H, W] joint of the nearest covered pixel."""
    _, index = cv2.distanceTransformWithLabels(
        (~covered).astype(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
    )
    table = np.zeros(index.max() + 1, int)
    table[index[covered]] = owner[covered]
    return table[index]


def _skin_lab(lab: np.ndarray, labels: np.ndarray, view: MeshView, joints: np.ndarray) -> np.ndarray:
    """[3] median colour of the face's skin; a mid skin tone where no face is labelled."""
    on_head = np.zeros(labels.shape, bool)
    covered = view.nearest.covered
    head = joints[view.triangles[view.nearest.triangle[covered], 0]] == JOINT_NAMES.index("head")
    on_head[covered] = head
    pixels = on_head & (labels == Label.SKIN)
    return np.median(lab[pixels], axis=0) if pixels.sum() > 10 else np.array([60.0, 15.0, 18.0])


def _is_cloth(lab: np.ndarray, piece: np.ndarray, body: np.ndarray, owner: np.ndarray, limb: int, px_m: float) -> bool:
    """Whether a piece has the main colours of the garment on its own limb, nearer to the trunk.

    The garment is read away from the piece, since what stands out usually covers some of the body too.
    """
    name = JOINT_NAMES[limb]
    side = "left" if name.startswith("left") else "right"
    other = "right" if side == "left" else "left"
    # never the collar: scarves, rings and ties there say nothing about sleeves
    trunk = ["spine1", "spine2"]
    if JOINT_PARTS[limb] in HANDS:
        choices = [[f"{side}_elbow"], [f"{side}_shoulder", f"{other}_elbow"], trunk]
    elif JOINT_PARTS[limb] in ARMS:
        choices = [[f"{side}_shoulder"], [f"{other}_shoulder", f"{other}_elbow"], trunk]
    else:
        choices = [[f"{side}_hip", f"{side}_knee"], [f"{other}_hip", f"{other}_knee"]]
    away = cv2.distanceTransform((~piece).astype(np.uint8), cv2.DIST_L2, 5) * px_m > GROWTH_M
    reference = np.zeros(lab.shape[:2], bool)
    for names in choices:
        reference |= body & away & np.isin(owner, [JOINT_NAMES.index(n) for n in names])
        if reference.sum() >= LEAST_REFERENCE * body.sum():
            break
    if reference.sum() < 50:
        return False
    centres, share = _main_colours(lab[reference] * _LAB_WEIGHTS, 6)
    garment, pixels = (lab[m][:: max(1, int(m.sum()) // 600)] * _LAB_WEIGHTS for m in (reference, piece))
    return _typical_share(pixels, centres, share) > SAME_CLOTH * _typical_share(garment, centres, share)


def _hands_beyond_edge(posed_m: np.ndarray, joints: np.ndarray, personal: Personal) -> np.ndarray:
    """[K, 2] px: where on the picture's edge each hand is that lies outside; it may hold what reaches that edge."""
    found = []
    for part in HANDS:
        vertices = posed_m[JOINT_PARTS[joints] == part]
        if not len(vertices):
            continue
        centre = personal.camera.project(vertices.mean(axis=0)[None])[0]
        at_edge = np.clip(centre, 0, (personal.camera.width - 1, personal.camera.height - 1))
        if not np.array_equal(at_edge, centre):
            found.append(at_edge)
    return np.array(found, np.float64).reshape(-1, 2)


def _is_touched(piece: np.ndarray, owner: np.ndarray, hands_px: np.ndarray, px_m: float) -> bool:
    """Whether a piece comes near a hand or a foot: what hangs beside a shin far from both is a skirt or coat."""
    part = np.where(owner >= 0, JOINT_PARTS[np.maximum(owner, 0)], 255)
    ends = np.isin(part, HANDS + FEET)
    for u, v in hands_px:
        if 0 <= int(v) < ends.shape[0] and 0 <= int(u) < ends.shape[1]:
            ends[int(v), int(u)] = True
    away = cv2.distanceTransform((~ends).astype(np.uint8), cv2.DIST_L2, 5)
    return bool(away[piece].min() * px_m < TOUCH_M)


def _continues_cloth(lab: np.ndarray, piece: np.ndarray, body: np.ndarray, owner: np.ndarray, px_m: float) -> bool:
    """Whether a piece has the colours of the trunk's and legs' clothes beside it, well away from the hands."""
    part = np.where(owner >= 0, JOINT_PARTS[np.maximum(owner, 0)], 255)
    hands = np.isin(part, HANDS)
    beside = cv2.distanceTransform((~piece).astype(np.uint8), cv2.DIST_L2, 5) * px_m < BESIDE_M
    if hands.any():
        beside &= cv2.distanceTransform((~hands).astype(np.uint8), cv2.DIST_L2, 5) * px_m > HAND_FREE_M
    reference = body & beside & np.isin(part, (Part.TRUNK, *LEGS))
    if reference.sum() < BORDER_SHARE * piece.sum():
        return False
    centres, share = _main_colours(lab[reference] * _LAB_WEIGHTS, 6)
    garment, pixels = (lab[m][:: max(1, int(m.sum()) // 600)] * _LAB_WEIGHTS for m in (reference, piece))
    return _typical_share(pixels, centres, share) > SAME_CLOTH * _typical_share(garment, centres, share)


def _typical_share(pixels: np.ndarray, centres: np.ndarray, share: np.ndarray) -> float:
    """Mean over pixels of the share that colours like theirs have in the garment."""
    near = np.linalg.norm(pixels[:, None] - centres[None], axis=2) < SAME_COLOUR
    return float((near * share).sum(axis=1).mean())


def _main_colours(samples: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Cluster centres [K, 3] of colours and their shares [K]."""
    samples = samples[:: max(1, len(samples) // 4000)].astype(np.float32)
    cv2.setRNGSeed(0)
    count = max(1, min(count, len(samples) // 4))
    criteria = (cv2.TERM_CRITERIA_EPS + cv2.TERM_CRITERIA_MAX_ITER, 20, 0.5)
    _, members, centres = cv2.kmeans(samples, count, None, criteria, 2, cv2.KMEANS_PP_CENTERS)
    return centres, np.bincount(members.ravel(), minlength=count) / len(samples)


def _around(piece: np.ndarray, margin_px: float) -> np.ndarray:
    """[H, W] bool: the convex hull of a piece, grown by a margin."""
    outline, _ = cv2.findContours(piece.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    hull = np.zeros(piece.shape, np.uint8)
    cv2.fillConvexPoly(hull, cv2.convexHull(np.concatenate(outline)), 1)
    return cv2.dilate(hull, _ellipse(margin_px)) > 0


def _ellipse(radius_px: float) -> np.ndarray:
    side = 2 * max(1, round(radius_px)) + 1
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))


def _grow(
    lab: np.ndarray,
    piece: np.ndarray,
    mask: np.ndarray,
    covered: np.ndarray,
    holding: np.ndarray,
    person: Person,
    reach: int,
    px_m: float,
    growth_m: float,
) -> np.ndarray:
    """The whole object: `piece`, the rest of it beside the body, and what of it is drawn over the body."""
    weighted = lab * _LAB_WEIGHTS
    distance = cv2.distanceTransform((~piece).astype(np.uint8), cv2.DIST_L2, 5)
    beside = mask & ~covered & holding & (distance <= 1.5 * reach)
    allowed = mask & (distance * px_m <= growth_m) & ~np.isin(person.labels, (Label.HAIR, Label.SKIN))
    clothes = mask & covered & ~allowed & np.isin(person.labels, (Label.UPPER, Label.LOWER, Label.OTHER))
    object_centres, share = _main_colours(weighted[piece], 5)
    object_centres = object_centres[share >= 0.03]
    if clothes.sum() > 50:
        cloth_centres, share = _main_colours(weighted[clothes], 5)
        cloth_centres = cloth_centres[share >= min(0.2, share.max())]
        to_object = np.min([np.linalg.norm(weighted - c, axis=-1) for c in object_centres], axis=0)
        to_cloth = np.min([np.linalg.norm(weighted - c, axis=-1) for c in cloth_centres], axis=0)
        margin = cv2.blur(np.clip(to_cloth - to_object, -20, 20), (5, 5))
        like_object = allowed & (margin > 0)
    else:
        like_object = beside
    reachable = (like_object | piece | (beside & (distance < 3))).astype(np.uint8)
    reachable = cv2.morphologyEx(reachable, cv2.MORPH_OPEN, np.ones((5, 5), np.uint8)) | piece.astype(np.uint8)
    _, parts = cv2.connectedComponents(reachable)
    grown = np.isin(parts, np.unique(parts[piece])) & (reachable > 0)
    # highlights on the object are enclosed by it or lie in its small bays
    side = max(3, round(0.03 / px_m)) | 1
    ellipse = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))
    closed = cv2.morphologyEx(grown.astype(np.uint8), cv2.MORPH_CLOSE, ellipse) > 0
    return (closed & (allowed | beside | piece)) | grown
