"""The proxy: the body's mesh, skinned by the armature and moved by the facial actions; the Gaussians follow it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import bpy
import numpy as np

from ..shared.axes import body_to_blender_points
from .armature import deform_bone_names
from .controls import add_proxy_controls
from .drivers import drive

if TYPE_CHECKING:
    from ..shared.avatar import Avatar

_MIN_WEIGHT = 1e-6
"""Weights below this are not stored; Blender normalises the rest."""


def create_proxy(
    name: str,
    avatar: Avatar,
    armature: bpy.types.Object,
    collection: bpy.types.Collection,
    pose: bpy.types.Object | None = None,
) -> bpy.types.Object:
    """The proxy mesh object, a child of the armature.

    It is a wire cage that cannot be picked and does not render: the picture is made by the Gaussians.

    Args:
        name: Of the object.
        avatar: The bundle.
        armature: From `create_armature`, with one property per shape key.
        collection: Where the object is linked.
        pose: What `create_pose_objects` made.
    """
    ob = bpy.data.objects.new(name, _create_mesh(name, avatar))
    collection.objects.link(ob)
    ob.parent = armature
    _add_vertex_groups(ob, avatar)
    _add_shape_keys(ob, avatar, armature)
    if avatar.controls is not None:
        add_proxy_controls(ob, armature, avatar.controls, pose)
    modifier = ob.modifiers.new("Armature", "ARMATURE")
    modifier.object = armature
    # Plain linear blend skinning, as in the backend and in other programs.
    modifier.use_deform_preserve_volume = False
    ob.display_type = "WIRE"
    ob.hide_render = True
    ob.hide_select = True
    ob.hide_viewport = True
    return ob


def _create_mesh(name: str, avatar: Avatar) -> bpy.types.Mesh:
    mesh = bpy.data.meshes.new(name)
    triangles = np.ascontiguousarray(avatar.triangles, np.int32)
    mesh.vertices.add(len(avatar.vertices_m))
    mesh.vertices.foreach_set("co", _blender(avatar.vertices_m))
    mesh.loops.add(triangles.size)
    mesh.loops.foreach_set("vertex_index", triangles.ravel())
    mesh.polygons.add(len(triangles))
    mesh.polygons.foreach_set("loop_start", np.arange(0, triangles.size, 3, dtype=np.int32))
    mesh.polygons.foreach_set("use_smooth", np.ones(len(triangles), bool))
    mesh.update(calc_edges=True)
    layer = mesh.uv_layers.new(name="UVMap")
    layer.uv.foreach_set("vector", np.ascontiguousarray(avatar.uvs, np.float32).ravel())
    return mesh


def _add_vertex_groups(ob: bpy.types.Object, avatar: Avatar) -> None:
    """One group per bone. Rigid parts share one weight, so equal weights of a bone go in one call."""
    groups = [ob.vertex_groups.new(name=name) for name in deform_bone_names(avatar)]
    rows, slots = np.nonzero(avatar.skin_weights > _MIN_WEIGHT)
    bones, weights = avatar.skin_indices[rows, slots], avatar.skin_weights[rows, slots]
    order = np.lexsort((weights, bones))
    rows, bones, weights = rows[order], bones[order], weights[order]
    new = np.flatnonzero((bones[1:] != bones[:-1]) | (weights[1:] != weights[:-1])) + 1
    starts = np.concatenate([[0], new])
    # Plain lists: thousands of small arrays would take longer than Blender does.
    members, ends = rows.tolist(), [*new.tolist(), len(rows)]
    for start, end, bone, weight in zip(
        starts.tolist(), ends, bones[starts].tolist(), weights[starts].tolist(), strict=True
    ):
        groups[bone].add(members[start:end], weight, "REPLACE")


def _add_shape_keys(ob: bpy.types.Object, avatar: Avatar, armature: bpy.types.Object) -> None:
    ob.shape_key_add(name="Basis", from_mix=False)
    shapes_m = body_to_blender_points((avatar.vertices_m + avatar.shape_key_offsets_m).astype(np.float32))
    for key, shape_m in zip(avatar.shape_key_names, np.ascontiguousarray(shapes_m), strict=True):
        name = str(key)
        block = ob.shape_key_add(name=name, from_mix=False)
        block.slider_max = 1.5
        # From 4.1 there is a way that copies the whole array at once.
        getattr(block, "points", block.data).foreach_set("co", shape_m.ravel())
        drive(block, "value", armature, f'["{name}"]')


def _blender(points_m: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(body_to_blender_points(points_m.astype(np.float32))).ravel()
