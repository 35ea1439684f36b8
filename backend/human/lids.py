"""The skin that a blink draws over the eye: on a photo of open eyes it is squeezed into a dark line."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree

from backend.human.face_rig import EYE_CORNERS, LOWER_LIDS, SIDES, UPPER_LIDS, action_index, eyeball_of
from backend.human.model import BodyModel, Region
from backend.human.personal import Personal
from backend.splats.bound import STRETCH_LIMITS, triangle_frames

LID_TRAVEL = (0.12, 0.4)
"""Of a blink's largest travel: skin that moves less stays where the photo shows it, skin that moves more is lid."""
LASH_M = 0.0018
"""Half width of the line of lashes along the closed lids."""
CALM_M = 0.004
"""Within this distance of the closed lids an optimiser's steps fade out."""
HALF_CLOSED = 0.45
"""Gaussians of the lids are laid out at this share of a blink, between squeezed (open) and spread (closed)."""


@dataclass(frozen=True)
class Lids:
    """Both eyes' lids.

    Attributes:
        share: [V] 0..1, how far a vertex belongs to skin that a blink spreads over the eye.
        closed_m: [V, 3] rest vertices with both eyes closed.
        half_m: [V, 3] rest vertices with both eyes half closed.
        outward: [V, 3] unit, from the nearer eyeball's centre to the closed lids: which way they face.
        margin_m: [M, 3] points along both lines in which the closed lids meet.
    """

    share: np.ndarray
    closed_m: np.ndarray
    half_m: np.ndarray
    outward: np.ndarray
    margin_m: np.ndarray


def lids_of(body: BodyModel, personal: Personal) -> Lids:
    """The lids of a personalised head.

    Args:
        body: The body model.
        personal: The personalised head, whose blinks close exactly.
    """
    rest = personal.vertices_m.astype(np.float64)
    blinks = personal.action_offsets_m[[action_index(f"eyeBlink{side}") for side in SIDES.values()]].astype(np.float64)
    travel = np.linalg.norm(blinks, axis=2)
    travel = (travel / np.maximum(travel.max(axis=1, keepdims=True), 1e-9)).max(axis=0)
    low, high = LID_TRAVEL
    share = np.clip((travel - low) / (high - low), 0, 1) * (body.regions == Region.HEAD)
    closed = rest + blinks.sum(axis=0)
    lines = [_along(body, closed, region) for region in SIDES]
    half = rest + HALF_CLOSED * blinks.sum(axis=0)
    return Lids(share, closed, half, _outward(body, rest, closed), np.concatenate(lines))


def _outward(body: BodyModel, rest_m: np.ndarray, closed_m: np.ndarray) -> np.ndarray:
    arms = np.stack([closed_m - eyeball_of(body, rest_m, region)[0] for region in SIDES])
    length = np.linalg.norm(arms, axis=2)
    nearer = length.argmin(axis=0), np.arange(len(closed_m))
    return arms[nearer] / np.maximum(length[nearer], 1e-9)[:, None]


def _along(body: BodyModel, closed_m: np.ndarray, region: Region, steps: int = 60) -> np.ndarray:
    """[steps, 3] points of the line in which upper and lower lid of one eye meet, from corner to corner."""
    upper, lower = (body.face_landmarks[list(rows[region])] @ closed_m for rows in (UPPER_LIDS, LOWER_LIDS))
    corners = body.face_landmarks[list(EYE_CORNERS[region])] @ closed_m
    line = np.vstack([0.5 * (upper + lower), corners])
    line = line[np.argsort(line[:, 0])]
    x = np.linspace(line[0, 0], line[-1, 0], steps)
    return np.stack([np.interp(x, line[:, 0], line[:, axis]) for axis in range(3)], axis=1)


def stretch_from_half(body: BodyModel, personal: Personal, lids: Lids) -> np.ndarray:
    """[T] size of a triangle with half-closed eyes relative to rest, within what posing follows."""
    half = triangle_frames(lids.half_m, body.triangles)[1]
    rest = triangle_frames(personal.vertices_m.astype(np.float64), body.triangles)[1]
    return np.clip(half / np.maximum(rest, 1e-9), *STRETCH_LIMITS)


def lash_share(lids: Lids, closed_points_m: np.ndarray, share: np.ndarray) -> np.ndarray:
    """[N] 0..1 how far points belong to the line of lashes.

    Args:
        lids: The lids.
        closed_points_m: [N, 3] samples with closed eyes.
        share: [N] of the lids at the samples.
    """
    distance = cKDTree(lids.margin_m).query(closed_points_m)[0]
    return np.exp(-((distance / LASH_M) ** 2)) * share


def steps_near_lids(closed_points_m: np.ndarray, share: np.ndarray) -> np.ndarray:
    """[N] 0..1: share of an optimiser's steps near skin that takes none.

    What is at rest on the lids would otherwise take on the darkness that the photo wants there, as a ring.

    Args:
        closed_points_m: [N, 3] samples with closed eyes.
        share: [N] of the lids at the samples.
    """
    lid = closed_points_m[share > 0.5]
    if not len(lid):
        return 1 - share
    distance = cKDTree(lid).query(closed_points_m, distance_upper_bound=CALM_M)[0]
    return np.clip(distance / CALM_M, 0, 1) ** 2 * (1 - share)


__all__ = ["Lids", "lash_share", "lids_of", "steps_near_lids", "stretch_from_half"]
