"""Learned controls with numpy: the reference of what Blender's node groups do (blender_addon/shared/controls.py)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from blender_addon.shared.avatar import Avatar
from blender_addon.shared.gaussians import GaussianCloud, wxyz_product, wxyz_to_matrices
from blender_addon.shared.limits import OPACITY_LOGIT_MAX
from blender_addon.shared.skeleton import axis_angle_to_matrices


def control_weights(avatar: Avatar, pose: np.ndarray, sliders: Mapping[str, float] | None = None) -> np.ndarray | None:
    """Weights of all learned controls.

    Args:
        avatar: A bundle's arrays.
        pose: [55, 3] axis-angle.
        sliders: Values by name; the others have their defaults.

    Returns:
        [C] float64; None if the avatar has no controls.

    Raises:
        KeyError: If a slider is none of the avatar's.
    """
    if avatar.controls is None:
        if sliders:
            raise KeyError(next(iter(sliders)))
        return None
    coefficients = avatar.controls.pose_coefficients(axis_angle_to_matrices(np.asarray(pose, np.float64)))
    return avatar.controls.weights(coefficients, sliders or {})


def apply_controls(cloud: GaussianCloud, avatar: Avatar, weights: np.ndarray) -> tuple[GaussianCloud, np.ndarray]:
    """The rest cloud and its offsets with the controls at work.

    Args:
        cloud: The bundle's gaussians.ply. Its positions stay: it is the offsets that move.
        avatar: The bundle's arrays.
        weights: [C].

    Returns:
        The cloud, and the offsets [N, 3] in the triangles' frames, metres.
    """
    bases = {} if avatar.controls is None else avatar.controls.bases
    sums = {channel: basis.weighted(weights, len(cloud)) for channel, basis in bases.items() if channel != "proxy"}
    scales, rotations = cloud.scales_m, cloud.rotations_wxyz
    opacities, radiance = cloud.opacities, cloud.sh_dc
    if "log_scale" in sums:
        scales = scales * np.exp(sums["log_scale"])
    if "rotation" in sums:
        rotations = wxyz_product(rotations.astype(np.float64), rotation_vectors_to_wxyz(sums["rotation"]))
    if "radiance" in sums:
        radiance = radiance + sums["radiance"]
    if "opacity_logit" in sums:
        opacities = shift_opacities(opacities, sums["opacity_logit"][:, 0])
    offsets = avatar.bind_off + sums.get("position", 0.0)
    return GaussianCloud(cloud.positions_m, scales, rotations, opacities, radiance, cloud.sh_rest), offsets


def move_proxy(avatar: Avatar, weights: np.ndarray) -> np.ndarray:
    """What the controls add to the rest proxy's vertices, [V, 3] metres."""
    basis = None if avatar.controls is None else avatar.controls.bases.get("proxy")
    count = len(avatar.vertices_m)
    return np.zeros((count, 3)) if basis is None else basis.weighted(weights, count)


def shift_opacities(opacities: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """Opacities [N] after logits [N] are added to theirs; where nothing is added nothing changes."""
    odds = np.exp(np.clip(logits, -60.0, 60.0))
    clamped = np.clip(opacities.astype(np.float64), 1.0 - OPACITY_LOGIT_MAX, OPACITY_LOGIT_MAX)
    return np.where(logits == 0.0, opacities, clamped * odds / (1.0 - clamped + clamped * odds))


def rotation_vectors_to_wxyz(vectors: np.ndarray) -> np.ndarray:
    """Quaternions [N, 4] of rotation vectors [N, 3], radians."""
    angles = np.linalg.norm(vectors, axis=1, keepdims=True)
    # sin(a / 2) / a, which is 1 / 2 at 0; sinc is sin(pi x) / (pi x).
    return np.concatenate([np.cos(0.5 * angles), 0.5 * np.sinc(angles / (2.0 * np.pi)) * vectors], axis=1)


def to_triangle_frames(deltas_m: np.ndarray, avatar: Avatar) -> np.ndarray:
    """Position deltas as a control stores them.

    Args:
        deltas_m: [N, 3] in the rest pose, body frame, metres.
        avatar: A bundle's arrays.

    Returns:
        [N, 3] in the frames of the Gaussians' triangles.
    """
    return np.einsum("nij,nj->ni", wxyz_to_matrices(avatar.bind_qinv.astype(np.float64)), deltas_m)
