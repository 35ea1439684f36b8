"""Bones over drawn splats: an armature that is shown in front would otherwise be painted over."""

from __future__ import annotations

import bpy
import gpu
import numpy as np
from gpu_extras.batch import batch_for_shader

_WIDTH_PX = 2.0

Colour = tuple[float, float, float, float]


def draw_bones(context: bpy.types.Context) -> None:
    """Draw the visible bones of all armatures that are shown in front, in the theme's colours, as lines."""
    overlay = context.space_data.overlay
    if not overlay.show_overlays or not overlay.show_bones:
        return
    lines: list[tuple[float, float, float]] = []
    colours: list[Colour] = []
    for ob in context.visible_objects:
        if ob.type != "ARMATURE" or not ob.show_in_front or ob.mode == "EDIT":
            continue
        for bone in ob.pose.bones:
            if _is_hidden(ob, bone):
                continue
            lines += [tuple(ob.matrix_world @ bone.head), tuple(ob.matrix_world @ bone.tail)]
            colours += [_colour(context, ob, bone)] * 2
    if not lines:
        return
    shader = gpu.shader.from_builtin("POLYLINE_FLAT_COLOR")
    batch = batch_for_shader(
        shader, "LINES", {"pos": np.array(lines, np.float32), "color": np.array(colours, np.float32)}
    )
    shader.bind()
    shader.uniform_float("viewportSize", gpu.state.viewport_get()[2:])
    shader.uniform_float("lineWidth", _WIDTH_PX * context.preferences.system.ui_scale)
    gpu.state.blend_set("ALPHA")
    batch.draw(shader)
    gpu.state.blend_set("NONE")


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
    name = "bone_pose_active" if selected and active else "bone_pose" if selected else "wire"
    return (*getattr(theme, name)[:3], 1.0)
