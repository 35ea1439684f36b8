"""Parts of a body that a PERSONA avatar treats in their own way: hands, face, eyes, mouth, feet."""

from __future__ import annotations

from enum import IntEnum

import numpy as np
from scipy import sparse

from backend.human.model import Region
from blender_addon.shared.skeleton import JOINT_NAMES

BORDER_RINGS = 3
"""So many rings of vertices round the face are its border, which is held almost as stiffly."""

LIP_RINGS = 3
"""So many rings of vertices round the mouth's inside give it its colour."""

_ON_HAND = 0.5
_HANDS = tuple(k for k, name in enumerate(JOINT_NAMES) if k >= JOINT_NAMES.index("left_index1") or "wrist" in name)
_EYES = tuple(k for k, name in enumerate(JOINT_NAMES) if "eye" in name)
_HEAD = tuple(JOINT_NAMES.index(name) for name in ("neck", "head", "jaw"))
_FEET = tuple(k for k, name in enumerate(JOINT_NAMES) if "ankle" in name or name.endswith("foot"))


class Zone(IntEnum):
    """What a point of the body belongs to."""

    BODY = 0
    HEAD = 1
    """Neck, ears and scalp."""
    FOOT = 2
    BORDER = 3
    """The rim of the face."""
    FACE = 4
    """All that expressions move, teeth too."""
    LIPS = 5
    """The part of the face that gives the mouth's inside its colour."""
    MOUTH = 6
    """The inside of the mouth without the teeth."""
    EYE = 7
    HAND = 8


IN_FACE = (Zone.FACE, Zone.LIPS)
STIFFNESS = {Zone.FACE: 50.0, Zone.LIPS: 50.0, Zone.MOUTH: 50.0, Zone.EYE: 50.0, Zone.BORDER: 10.0, Zone.HAND: 10.0}
"""Factors on the Laplacian of places (released code); 1 elsewhere."""


def find_zones(
    weights: np.ndarray, moved: np.ndarray, triangles: np.ndarray, regions: np.ndarray | None = None
) -> np.ndarray:
    """Zone of every vertex of a body.

    Args:
        weights: [V, 55 or more] skinning weights.
        moved: bool [V], what facial actions move.
        triangles: [T, 3].
        regions: [V] of `Region`; None where the body has none, and then no mouth.

    Returns:
        uint8 [V] of `Zone`.
    """
    regions = np.zeros(len(weights), np.uint8) if regions is None else regions
    first = weights[:, : len(JOINT_NAMES)].argmax(1)
    zones = np.full(len(weights), Zone.BODY, np.uint8)
    zones[np.isin(first, _HEAD)] = Zone.HEAD
    zones[np.isin(first, _FEET)] = Zone.FOOT
    teeth = np.isin(regions, (Region.UPPER_TEETH, Region.LOWER_TEETH))
    mouth = np.isin(regions, (Region.MOUTH, Region.TONGUE))
    eyes = np.isin(regions, (Region.LEFT_EYE, Region.RIGHT_EYE)) | np.isin(first, _EYES)
    face = (moved | teeth) & ~mouth & ~eyes
    zones[face] = Zone.FACE
    near = _links(triangles, len(weights))
    zones[_grown(face, near, BORDER_RINGS) & ~face] = Zone.BORDER
    zones[_grown(mouth, near, LIP_RINGS) & face & ~teeth] = Zone.LIPS
    zones[mouth], zones[eyes] = Zone.MOUTH, Zone.EYE
    zones[weights[:, list(_HANDS)].sum(1) > _ON_HAND] = Zone.HAND
    return zones


def _links(triangles: np.ndarray, count: int) -> sparse.csr_matrix:
    """[V, V] which vertices share an edge."""
    rows, columns = triangles.ravel(), np.roll(triangles, 1, axis=1).ravel()
    links = sparse.csr_matrix((np.ones(len(rows)), (rows, columns)), (count, count))
    return links + links.T


def _grown(chosen: np.ndarray, links: sparse.csr_matrix, rings: int) -> np.ndarray:
    for _ in range(rings):
        chosen = chosen | (links @ chosen.astype(float) > 0)
    return chosen


def mixed(labels: np.ndarray, mix: sparse.csr_matrix) -> np.ndarray:
    """Labels on a subdivided body, uint8 [N]: what most of a point belongs to, the lower number of equals.

    Args:
        labels: uint8 [V] of the body's vertices, e.g. `frame_targets.vertex_labels`.
        mix: [N, V], `Template.mix`.
    """
    kinds = np.arange(int(labels.max(initial=0)) + 1)
    return np.asarray(mix @ (labels[:, None] == kinds).astype(float)).argmax(1).astype(np.uint8)
