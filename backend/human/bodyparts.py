"""Parts of a body model that follow from its joints and weights alone: twist helpers, hand key points, regions."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
from scipy.spatial import KDTree

from backend.human.lbs import TwistBones
from blender_addon.shared.skeleton import JOINT_NAMES

TWIST_NAMES = ("left_forearm_twist", "right_forearm_twist", "left_upper_arm_twist", "right_upper_arm_twist")
WEIGHT_UNIT = 1 << 15
"""Skin weights are multiples of 1 / 32768: float32 sums of them are exact, so helper columns merge back exactly."""
_HAND_FINGERS = ("thumb", "index", "middle", "ring", "pinky")  # mediapipe's order
_TIP_VERTICES = 6


def quantise_weights(weights: np.ndarray) -> np.ndarray:
    """Rounds rows of skin weights [V, J] to multiples of 1 / WEIGHT_UNIT that sum to exactly 1 (float32)."""
    units = np.round(np.maximum(weights, 0.0) / weights.sum(1, keepdims=True) * WEIGHT_UNIT).astype(np.int64)
    rows = np.arange(len(units))
    units[rows, units.argmax(1)] += WEIGHT_UNIT - units.sum(1)
    return (units / WEIGHT_UNIT).astype(np.float32)


def _along(points_m: np.ndarray, start_m: np.ndarray, end_m: np.ndarray) -> np.ndarray:
    """Smooth rise from 0 at a tenth of the way from start to end to 1 at half of it, [V]."""
    axis = end_m - start_m
    t = np.clip(((points_m - start_m) @ axis / (axis @ axis) - 0.1) / 0.4, 0.0, 1.0)
    return t * t * (3.0 - 2.0 * t)


def twist_bones(template_m: np.ndarray, joints_m: np.ndarray, skin_weights: np.ndarray) -> TwistBones:
    """Helpers that spread the twist of wrists and shoulders along the arms.

    A forearm helper turns by half of the wrist's twist; its share of the elbow's weight rises to 1 at the middle of the
    forearm and stays 1 up to the wrist. An upper-arm helper undoes half of the shoulder's twist; its share of the
    shoulder's weight is 1 at the shoulder and falls to 0 at the middle of the upper arm.

    Args:
        template_m: [V, 3] T-pose vertices.
        joints_m: [55, 3].
        skin_weights: [V, 55].
    """
    index = JOINT_NAMES.index
    parents, sources, ends, factors, columns = [], [], [], [], []
    weights = quantise_weights(skin_weights)
    for limb, far, source, factor in (("elbow", "wrist", "wrist", 0.5), ("shoulder", "elbow", "shoulder", -0.5)):
        for side in ("left", "right"):
            parent, end = index(f"{side}_{limb}"), index(f"{side}_{far}")
            rise = _along(template_m, joints_m[parent], joints_m[end])
            share = (rise if limb == "elbow" else 1.0 - rise) * weights[:, parent]
            share = np.round(share * WEIGHT_UNIT) / WEIGHT_UNIT
            columns.append(share.astype(np.float32))
            weights[:, parent] -= columns[-1]
            parents.append(parent)
            sources.append(index(f"{side}_{source}"))
            ends.append(end)
            factors.append(factor)
    return TwistBones(
        names=TWIST_NAMES,
        parents=np.array(parents, np.int32),
        sources=np.array(sources, np.int32),
        ends=np.array(ends, np.int32),
        factors=np.array(factors, np.float32),
        skin_weights=np.concatenate([weights, np.stack(columns, 1)], 1),
    )


def hand_keypoint_rows(
    template_m: np.ndarray, joint_regressor: sp.csr_matrix, skin_weights: np.ndarray
) -> sp.csr_matrix:
    """Mediapipe's 21 hand landmarks, left then right, as rows over the vertices.

    Wrist and knuckles are rows of the joint regressor; a finger's tip is the mean of the vertices of its last bone that
    reach farthest along it.

    Args:
        template_m: [V, 3] T-pose vertices.
        joint_regressor: [55, V].
        skin_weights: [V, 55].

    Returns:
        [42, V] float32, rows sum to 1.
    """
    index = JOINT_NAMES.index
    joints = joint_regressor @ template_m
    rows = []
    for side in ("left", "right"):
        rows.append(joint_regressor[index(f"{side}_wrist")])
        for finger in _HAND_FINGERS:
            knuckles = [index(f"{side}_{finger}{k}") for k in (1, 2, 3)]
            rows.extend(joint_regressor[k] for k in knuckles)
            own = np.flatnonzero(skin_weights[:, knuckles[2]] > 0.5)
            reach = template_m[own] @ (joints[knuckles[2]] - joints[knuckles[1]])
            tip = own[np.argsort(-reach, kind="stable")[:_TIP_VERTICES]]
            shape = (1, len(template_m))
            rows.append(sp.csr_matrix((np.full(len(tip), 1.0 / len(tip)), (np.zeros(len(tip), int), tip)), shape=shape))
    return sp.csr_matrix(sp.vstack(rows), dtype=np.float32)


def mean_row(vertices: np.ndarray, count: int) -> sp.csr_matrix:
    """[1, count] row that averages the given vertices."""
    ids = np.unique(vertices)
    return sp.csr_matrix((np.full(len(ids), 1.0 / len(ids)), (np.zeros(len(ids), int), ids)), shape=(1, count))


def closest_on_surface(points_m: np.ndarray, vertices_m: np.ndarray, triangles: np.ndarray) -> sp.csr_matrix:
    """Rows [P, V] that give the surface point closest to each point, among triangles round its three nearest vertices.

    Args:
        points_m: [P, 3].
        vertices_m: [V, 3].
        triangles: [T, 3] candidates.
    """
    used = np.unique(triangles)
    nearest = np.asarray(KDTree(vertices_m[used]).query(points_m, k=3)[1])
    rows = sp.lil_matrix((len(points_m), len(vertices_m)))
    for n, point in enumerate(points_m):
        near = triangles[np.isin(triangles, used[nearest[n]]).any(1)]
        corner = vertices_m[near]
        edges = np.stack([corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0]], -1)
        inside = np.einsum("tkc,tc->tk", np.linalg.pinv(edges), point - corner[:, 0])
        shares = np.clip(np.concatenate([1.0 - inside.sum(1, keepdims=True), inside], 1), 0.0, None)
        shares /= shares.sum(1, keepdims=True)
        best = int(np.linalg.norm((shares[..., None] * corner).sum(1) - point, axis=1).argmin())
        rows[n, near[best]] = shares[best]
    return sp.csr_matrix(rows)


__all__ = [
    "TWIST_NAMES",
    "WEIGHT_UNIT",
    "closest_on_surface",
    "hand_keypoint_rows",
    "mean_row",
    "quantise_weights",
    "twist_bones",
]
