"""A bundle's avatar in any pose: the same formula as Blender's armature, shape keys and binding nodes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from backend.human.lbs import TwistBones, apply_transforms, vertex_transforms
from backend.splats.bound import STRETCH_LIMITS, triangle_frames
from backend.splats.controls import apply_controls, control_weights, move_proxy
from blender_addon.shared.avatar import Avatar
from blender_addon.shared.gaussians import GaussianCloud, matrices_to_wxyz, wxyz_product
from blender_addon.shared.skeleton import PARENTS


def pose_vertices(
    avatar: Avatar,
    pose: np.ndarray,
    translation_m: np.ndarray | None = None,
    actions: Mapping[str, float] | None = None,
    weights: np.ndarray | None = None,
) -> np.ndarray:
    """The proxy in a pose.

    Args:
        avatar: A bundle's arrays.
        pose: [55, 3] axis-angle, `pose[0]` turns the whole body about its pelvis.
        translation_m: [3] added last.
        actions: Weights of shape keys by name, 0..1.
        weights: [C] of the learned controls, from `control_weights`; None leaves them out.

    Returns:
        [V, 3] float64, metres.

    Raises:
        KeyError: If an action is none of the avatar's shape keys.
    """
    rest = avatar.vertices_m.astype(np.float64)
    names = {str(name): k for k, name in enumerate(avatar.shape_key_names)}
    for name, weight in (actions or {}).items():
        rest = rest + weight * avatar.shape_key_offsets_m[names[name]]
    if weights is not None:
        rest = rest + move_proxy(avatar, weights)
    skin = np.zeros((len(rest), len(PARENTS) + len(avatar.twist_names)))
    np.add.at(skin, (np.arange(len(rest))[:, None], avatar.skin_indices), avatar.skin_weights)
    ends = np.array([np.flatnonzero(parent == PARENTS)[0] for parent in avatar.twist_parents])
    twist = TwistBones(
        tuple(str(n) for n in avatar.twist_names),
        avatar.twist_parents,
        avatar.twist_sources,
        ends,
        avatar.twist_factors,
        skin,
    )
    return apply_transforms(vertex_transforms(avatar.joints_m, pose, skin, translation_m, twist), rest)


def deform_cloud(
    cloud: GaussianCloud, avatar: Avatar, vertices_m: np.ndarray, weights: np.ndarray | None = None
) -> GaussianCloud:
    """The rest cloud on a posed proxy.

    Args:
        cloud: The bundle's gaussians.ply, rest pose.
        avatar: The bundle's arrays.
        vertices_m: [V, 3] posed proxy.
        weights: [C] of the learned controls, from `control_weights`; None leaves them out.
    """
    offsets = avatar.bind_off
    if weights is not None:
        cloud, offsets = apply_controls(cloud, avatar, weights)
    faces = avatar.triangles[avatar.bind_triangle]
    frames, lengths = triangle_frames(vertices_m, faces)
    foot = np.einsum("nk,nkc->nc", avatar.bind_bary, vertices_m[faces])
    positions = foot + np.einsum("nij,nj->ni", frames, offsets)
    turn = wxyz_product(matrices_to_wxyz(frames), avatar.bind_qinv)
    stretch = np.clip(lengths / np.maximum(avatar.bind_length, 1e-9), *STRETCH_LIMITS)
    return GaussianCloud(
        positions,
        cloud.scales_m * stretch[:, None],
        wxyz_product(turn, cloud.rotations_wxyz),
        cloud.opacities,
        cloud.sh_dc,
        cloud.sh_rest,
    )


def pose_avatar(
    cloud: GaussianCloud,
    avatar: Avatar,
    pose: np.ndarray,
    translation_m: np.ndarray | None = None,
    actions: Mapping[str, float] | None = None,
    sliders: Mapping[str, float] | None = None,
) -> GaussianCloud:
    """The bundle's Gaussians in a pose, with its learned controls.

    Args:
        cloud: The bundle's gaussians.ply, rest pose.
        avatar: The bundle's arrays.
        pose: [55, 3] axis-angle.
        translation_m: [3] added last.
        actions: Weights of shape keys by name.
        sliders: Values of learned controls by name; the others have their defaults.

    Raises:
        KeyError: If an action or a slider is none of the avatar's.
    """
    weights = control_weights(avatar, pose, sliders)
    return deform_cloud(cloud, avatar, pose_vertices(avatar, pose, translation_m, actions, weights), weights)
