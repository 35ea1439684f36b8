"""Bones over drawn splats: an armature that is shown in front would otherwise be painted over."""

from __future__ import annotations

from collections.abc import Callable

import bpy
import gpu
import numpy as np
from gpu_extras.batch import batch_for_shader
from mathutils import Matrix

_WIDTH_PX = 2.0

Colour = tuple[float, float, float, float]


def draw_bones(context: bpy.types.Context) -> None:
    """Draw the visible bones of all armatures that are shown in front, or their shapes, in their colours, as lines."""
    overlay = context.space_data.overlay
    if not overlay.show_overlays or not overlay.show_bones:
        return
    lines: dict[Colour, list[np.ndarray]] = {}
    shape_lines = _shape_reader()
    for ob in context.visible_objects:
        if ob.type != "ARMATURE" or not ob.show_in_front or ob.mode == "EDIT":
            continue
        for bone in ob.pose.bones:
            if _is_hidden(ob, bone):
                continue
            shape = shape_lines(ob, bone)
            points = np.array([bone.head, bone.tail]) if shape is None else shape
            world = np.array(ob.matrix_world)
            lines.setdefault(_colour(context, ob, bone), []).append(points @ world[:3, :3].T + world[:3, 3])
    if not lines:
        return
    # One colour at a time: Blender 5.2's polyline shader with a colour per point shows no more than its red.
    shader = gpu.shader.from_builtin("POLYLINE_UNIFORM_COLOR")
    shader.bind()
    shader.uniform_float("viewportSize", gpu.state.viewport_get()[2:])
    shader.uniform_float("lineWidth", _WIDTH_PX * context.preferences.system.ui_scale)
    gpu.state.blend_set("ALPHA")
    for colour, points in lines.items():
        shader.uniform_float("color", colour)
        batch_for_shader(shader, "LINES", {"pos": np.concatenate(points).astype(np.float32)}).draw(shader)
    gpu.state.blend_set("NONE")


def _shape_reader() -> Callable[[bpy.types.Object, bpy.types.PoseBone], np.ndarray | None]:
    """A function for the ends [2 E, 3] of a bone's shape's edges, armature space, or None; it reads each mesh once."""
    meshes: dict[str, np.ndarray] = {}

    def read(ob: bpy.types.Object, bone: bpy.types.PoseBone) -> np.ndarray | None:
        shape = bone.custom_shape
        if shape is None or shape.type != "MESH" or not ob.data.show_bone_custom_shapes:
            return None
        if shape.name not in meshes:
            points = np.empty(len(shape.data.vertices) * 3, np.float32)
            shape.data.vertices.foreach_get("co", points)
            ends = np.empty(len(shape.data.edges) * 2, np.int32)
            shape.data.edges.foreach_get("vertices", ends)
            meshes[shape.name] = points.reshape(-1, 3)[ends]
        size = bone.bone.length if bone.use_custom_shape_bone_size else 1.0
        local = Matrix.LocRotScale(
            bone.custom_shape_translation, bone.custom_shape_rotation_euler, bone.custom_shape_scale_xyz * size
        )
        place = np.array((bone.custom_shape_transform or bone).matrix @ local)
        return meshes[shape.name] @ place[:3, :3].T + place[:3, 3]

    return read


def _is_hidden(ob: bpy.types.Object, bone: bpy.types.PoseBone) -> bool:
    collections = bone.bone.collections
    shown = not collections or any(collection.is_visible_effectively for collection in collections)
    # From Blender 5.0 the pose bone is hidden, before that the bone.
    return not shown or bool(getattr(bone, "hide", False)) or bool(getattr(bone.bone, "hide", False))


def _colour(context: bpy.types.Context, ob: bpy.types.Object, bone: bpy.types.PoseBone) -> Colour:
    theme = context.preferences.themes[0].view_3d
    if ob.mode != "POSE":
        name = "wire" if not ob.select_get() else "object_active" if ob == context.active_object else "object_selected"
        return (*getattr(theme, name)[:3], 1.0)
    selected = bool(getattr(bone, "select", False) or getattr(bone.bone, "select", False))
    active = ob.data.bones.active is not None and ob.data.bones.active.name == bone.name
    colour = bone.color if bone.color.palette != "DEFAULT" else bone.bone.color
    if colour.palette != "DEFAULT":
        sets = context.preferences.themes[0].bone_color_sets
        chosen = colour.custom if colour.is_custom else sets[int(colour.palette.removeprefix("THEME")) - 1]
        return (*(chosen.active if selected and active else chosen.select if selected else chosen.normal)[:3], 1.0)
    name = "bone_pose_active" if selected and active else "bone_pose" if selected else "wire"
    return (*getattr(theme, name)[:3], 1.0)
