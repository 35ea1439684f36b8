"""Panels of cropping and of export."""

from __future__ import annotations

import bpy

from .export.usd_avatar import has_usd
from .operators.crop_box import deletes_inside, previewed_clouds
from .operators.edit import splat_objects


class _Sidebar:
    """Where the panels are."""

    bl_space_type = "VIEW_3D"
    bl_region_type = "UI"
    bl_category = "Effigy"
    bl_parent_id = "EFFIGY_PT_main"


class EFFIGY_PT_crop(_Sidebar, bpy.types.Panel):
    """Crop by a box that is moved in the view."""

    bl_label = "Crop"
    bl_idname = "EFFIGY_PT_crop"

    @classmethod
    def poll(cls, context: bpy.types.Context) -> bool:
        """Where clouds are selected, and as long as a box is in use."""
        return bool(previewed_clouds(context)) or bool(splat_objects(context))

    def draw(self, context: bpy.types.Context) -> None:
        """The box, then what to do with it."""
        layout, clouds = self.layout, previewed_clouds(context)
        if not clouds:
            layout.operator("effigy.add_crop_box", icon="MESH_CUBE")
            layout.operator("effigy.crop", icon="MESH_DATA")
            return
        inside = deletes_inside(clouds[0])
        row = layout.row(align=True)
        for side, text in (("OUTSIDE", "Delete Outside"), ("INSIDE", "Delete Inside")):
            row.operator("effigy.crop_side", text=text, depress=(side == "INSIDE") == inside).side = side
        layout.label(text="Move, turn and scale the box", icon="INFO")
        row = layout.row(align=True)
        row.operator("effigy.apply_crop", icon="CHECKMARK")
        row.operator("effigy.cancel_crop", text="Cancel", icon="X")


class EFFIGY_PT_export(_Sidebar, bpy.types.Panel):
    """Everything that leaves Blender."""

    bl_label = "Export"
    bl_idname = "EFFIGY_PT_export"
    bl_options = {"DEFAULT_CLOSED"}

    def draw(self, context: bpy.types.Context) -> None:
        """Splats, avatar, motion; a button is grey while nothing fitting is selected."""
        column = self.layout.column(align=True)
        column.operator("effigy.export_splats", text="Splats", icon="EXPORT")
        column.operator("effigy.export_sequence", text="Splat Sequence", icon="SEQUENCE")
        column = self.layout.column(align=True)
        column.operator("effigy.export_gltf", text="Avatar (glTF)", icon="ARMATURE_DATA")
        if has_usd():
            column.operator("effigy.export_usd", text="Avatar (USD)", icon="ARMATURE_DATA")
        column.operator("effigy.export_bvh", text="Motion (BVH)", icon="ANIM")
