"""Crop by a box that the artist moves: what would be deleted disappears while it is moved."""

from __future__ import annotations

import bpy
import numpy as np

from ..cloud.crop_nodes import (
    BOX_INPUT,
    CROP_MODIFIER,
    INSIDE_INPUT,
    add_crop_preview,
    create_crop_box,
    inside_box,
    remove_crop_preview,
)
from ..cloud.edit import keep_points, posed_positions
from ..cloud.node_graph import modifier_input, set_modifier_input
from .edit import splat_objects


def previewed_clouds(context: bpy.types.Context) -> list[bpy.types.Object]:
    """Clouds of the scene that a box is about to crop."""
    return [ob for ob in context.scene.objects if ob.type == "POINTCLOUD" and CROP_MODIFIER in ob.modifiers]


def deletes_inside(ob: bpy.types.Object) -> bool:
    """Whether the box of a previewed cloud deletes what lies inside it."""
    return bool(modifier_input(ob.modifiers[CROP_MODIFIER], INSIDE_INPUT))


class _OnPreview:
    """Works on the clouds that a box is about to crop."""

    @classmethod
    def poll(cls, context: bpy.types.Context) -> bool:
        """Needs a box in use."""
        return context.mode == "OBJECT" and bool(previewed_clouds(context))


class EFFIGY_OT_add_crop_box(bpy.types.Operator):
    """Put a box around the selected Gaussians; move, turn and scale it, and see at once what would be left."""

    bl_idname = "effigy.add_crop_box"
    bl_label = "Crop by Box"
    bl_options = {"REGISTER", "UNDO"}

    @classmethod
    def poll(cls, context: bpy.types.Context) -> bool:
        """Needs a selected cloud that no box crops yet."""
        chosen = splat_objects(context)
        return context.mode == "OBJECT" and bool(chosen) and not any(CROP_MODIFIER in ob.modifiers for ob in chosen)

    def execute(self, context: bpy.types.Context) -> set[str]:
        """The box becomes the active object, ready to be moved."""
        clouds = splat_objects(context)
        try:
            points = [_to_world(ob, posed_positions(ob)) for ob in clouds]
        except ValueError as error:
            self.report({"ERROR"}, str(error))
            return {"CANCELLED"}
        box = create_crop_box("Crop Box", np.concatenate(points), context.collection)
        for ob in clouds:
            add_crop_preview(ob, box)
        for ob in context.view_layer.objects:
            ob.select_set(ob == box)
        context.view_layer.objects.active = box
        return {"FINISHED"}


class EFFIGY_OT_crop_side(_OnPreview, bpy.types.Operator):
    """Which side of the box is deleted."""

    bl_idname = "effigy.crop_side"
    bl_label = "Delete"
    bl_options = {"REGISTER", "UNDO"}

    side: bpy.props.EnumProperty(  # pyright: ignore[reportInvalidTypeForm]
        name="Delete",
        items=[
            ("OUTSIDE", "Delete Outside", "Keep what lies in the box"),
            ("INSIDE", "Delete Inside", "Delete what lies in the box"),
        ],
    )

    def execute(self, context: bpy.types.Context) -> set[str]:
        """For every previewed cloud."""
        for ob in previewed_clouds(context):
            set_modifier_input(ob.modifiers[CROP_MODIFIER], INSIDE_INPUT, self.side == "INSIDE")
        return {"FINISHED"}


class EFFIGY_OT_apply_crop(_OnPreview, bpy.types.Operator):
    """Delete for good what the box hides; bound Gaussians stay bound. One undo step."""

    bl_idname = "effigy.apply_crop"
    bl_label = "Apply Crop"
    bl_options = {"REGISTER", "UNDO"}

    def execute(self, context: bpy.types.Context) -> set[str]:
        """Nothing is changed unless every cloud keeps something."""
        clouds = previewed_clouds(context)
        try:
            kept = [_kept(ob) for ob in clouds]
        except ValueError as error:
            self.report({"ERROR"}, str(error))
            return {"CANCELLED"}
        removed = sum(keep_points(ob, mask) for ob, mask in zip(clouds, kept, strict=True))
        _end(clouds)
        self.report({"INFO"}, f"{removed} Gaussians deleted")
        return {"FINISHED"}


class EFFIGY_OT_cancel_crop(_OnPreview, bpy.types.Operator):
    """Remove the box; every Gaussian stays."""

    bl_idname = "effigy.cancel_crop"
    bl_label = "Cancel Crop"
    bl_options = {"REGISTER", "UNDO"}

    def execute(self, context: bpy.types.Context) -> set[str]:
        """Remove box and previews."""
        _end(previewed_clouds(context))
        return {"FINISHED"}


def _kept(ob: bpy.types.Object) -> np.ndarray:
    """[N] bool of a previewed cloud.

    Raises:
        ValueError: If the box is gone, or nothing would be left; one line.
    """
    box = modifier_input(ob.modifiers[CROP_MODIFIER], BOX_INPUT)
    if box is None:
        raise ValueError(f"the box of {ob.name} has been deleted; cancel the crop and add a new one")
    kept = inside_box(box, ob.matrix_world, posed_positions(ob)) != deletes_inside(ob)
    if not kept.any():
        raise ValueError(f"nothing of {ob.name} would be left; move the box")
    return kept


def _end(clouds: list[bpy.types.Object]) -> None:
    boxes = {modifier_input(ob.modifiers[CROP_MODIFIER], BOX_INPUT) for ob in clouds}
    for ob in clouds:
        remove_crop_preview(ob)
    for box in boxes - {None}:
        bpy.data.objects.remove(box)


def _to_world(ob: bpy.types.Object, points_m: np.ndarray) -> np.ndarray:
    matrix = np.array(ob.matrix_world)
    return points_m @ matrix[:3, :3].T + matrix[:3, 3]
