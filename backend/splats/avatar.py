"""From fitted parts to the avatar bundle's arrays."""

from __future__ import annotations

import numpy as np

from backend.human.model import BodyModel
from backend.human.personal import Personal
from backend.splats.bound import BoundSplats, triangle_frames
from blender_addon.shared.avatar import PHOTO_KEY, Avatar
from blender_addon.shared.gaussians import GaussianCloud, matrices_to_wxyz
from blender_addon.shared.skeleton import FACIAL_ACTIONS, JOINT_NAMES, PARENTS

SKIN_COLUMNS = 8
"""Bones per vertex in the bundle; the default body has at most nine, the ninth below 1 %."""


def build_avatar(
    body: BodyModel,
    personal: Personal,
    betas: np.ndarray,
    proxy_m: np.ndarray,
    splats: BoundSplats,
    height_m: float = 0.0,
) -> tuple[GaussianCloud, Avatar]:
    """The record of the rest pose and everything that moves it.

    Args:
        body: The body model that the proxy comes from.
        personal: The person's joints, facial actions, and the photo's pose and camera.
        betas: [B] shape numbers of `body`.
        proxy_m: [V, 3] rest proxy with clothes.
        splats: Gaussians bound to its triangles.
        height_m: Body height to scale to; 0 keeps the fitted one.
    """
    scale = height_m / float(np.ptp(personal.vertices_m[:, 1])) if height_m > 0 else 1.0
    vertices = (proxy_m * scale).astype(np.float32)
    faces = body.triangles[splats.triangles]
    frames, lengths = triangle_frames(vertices, faces)
    conjugate = np.array([1, -1, -1, -1], np.float32)
    indices, weights = _strongest(body.twist.skin_weights)
    offsets = np.concatenate([personal.action_offsets_m, personal.photo_offset_m[None]]) * scale
    camera = personal.camera
    w2c = camera.w2c.copy()
    w2c[:3, 3] *= scale
    posed = splats.posed(proxy_m, proxy_m, body.triangles)
    cloud = GaussianCloud.from_colours(
        posed.positions_m * scale, posed.scales_m * scale, posed.rotations_wxyz, posed.opacities, posed.colours
    )
    avatar = Avatar(
        joint_names=np.array(JOINT_NAMES),
        parents=PARENTS,
        joints_m=(personal.joints_m * scale).astype(np.float32),
        vertices_m=vertices,
        triangles=body.triangles,
        uvs=body.uvs,
        skin_indices=indices,
        skin_weights=weights,
        twist_names=np.array(body.twist.names),
        twist_parents=np.asarray(body.twist.parents, np.int32),
        twist_sources=np.asarray(body.twist.sources, np.int32),
        twist_factors=np.asarray(body.twist.factors, np.float32),
        shape_key_names=np.array([*FACIAL_ACTIONS, PHOTO_KEY]),
        shape_key_offsets_m=offsets.astype(np.float32),
        bind_triangle=splats.triangles,
        bind_bary=splats.bary,
        bind_off=(splats.offsets_m * scale).astype(np.float32),
        bind_qinv=(matrices_to_wxyz(frames) * conjugate).astype(np.float32),
        bind_length=lengths.astype(np.float32),
        betas=np.asarray(betas, np.float32),
        body_model=np.array(body.name),
        photo_pose=personal.pose.astype(np.float32),
        photo_translation_m=(personal.translation_m * scale).astype(np.float32),
        photo_actions=personal.actions.astype(np.float32),
        photo_w2c=w2c,
        photo_intrinsics_px=np.array([camera.fx, camera.fy, camera.cx, camera.cy]),
        photo_size_px=np.array([camera.width, camera.height], np.int32),
    )
    return cloud, avatar


def _strongest(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The `SKIN_COLUMNS` largest weights of each vertex [V, B], as bone indices and weights that sum to 1."""
    indices = np.argsort(-weights, axis=1, kind="stable")[:, :SKIN_COLUMNS]
    values = np.take_along_axis(weights, indices, axis=1)
    return indices.astype(np.uint8), (values / values.sum(axis=1, keepdims=True)).astype(np.float32)
