"""Binding of a point cloud to the proxy: attributes and the modifier."""

from __future__ import annotations

from typing import TYPE_CHECKING

import bpy
import numpy as np

from ..cloud.create import write_attributes
from ..cloud.node_graph import set_modifier_input
from ..shared.axes import BODY_TO_BLENDER
from ..shared.gaussians import matrices_to_wxyz, wxyz_product
from .controls import connect_controls, write_deltas
from .deform_nodes import build_bind_group

if TYPE_CHECKING:
    from ..shared.avatar import Avatar

BIND_MODIFIER = "Bind"


def bind_cloud(
    cloud_object: bpy.types.Object,
    proxy: bpy.types.Object,
    avatar: Avatar,
    armature: bpy.types.Object,
    pose: bpy.types.Object | None = None,
) -> bpy.types.Modifier:
    """Write the binding of a bundle onto its cloud and add the modifier that moves it.

    The offsets live in the triangles' own frames and are the same in every frame of reference; only the inverse rest
    frames change with the axes: (A R)^-1 = R^-1 A^-1.

    Args:
        cloud_object: The cloud in Blender's frame, in the bundle's order.
        proxy: The proxy mesh object, in Blender's frame.
        avatar: The bundle.
        armature: With the sliders of the avatar's controls.
        pose: What `create_pose_objects` made.

    Raises:
        ValueError: If the cloud and the binding differ in length.
    """
    corners = avatar.triangles[avatar.bind_triangle]
    to_body = matrices_to_wxyz(BODY_TO_BLENDER.T)
    write_attributes(
        cloud_object.data,
        {
            "bind_va": ("INT", corners[:, 0]),
            "bind_vb": ("INT", corners[:, 1]),
            "bind_vc": ("INT", corners[:, 2]),
            "bind_bary": ("FLOAT_VECTOR", avatar.bind_bary),
            "bind_off": ("FLOAT_VECTOR", avatar.bind_off),
            "bind_qinv": ("QUATERNION", wxyz_product(avatar.bind_qinv.astype(np.float64), to_body)),
            "bind_length": ("FLOAT", avatar.bind_length),
        },
    )
    modifier = cloud_object.modifiers.new(BIND_MODIFIER, "NODES")
    modifier.node_group = build_bind_group(avatar.controls)
    set_modifier_input(modifier, "Proxy", proxy)
    if avatar.controls is not None:
        write_deltas(cloud_object.data, avatar.controls)
        connect_controls(modifier, armature, avatar.controls, pose)
    return modifier
