"""The add-on's tab in the sidebar of the 3D view."""

from __future__ import annotations

import bpy

from .operators.animate import avatar_rig
from .operators.display import EFFIGY_OT_display


class EFFIGY_PT_main(bpy.types.Panel):
    """Import of a finished avatar."""

    bl_label = "Effigy"
    bl_idname = "EFFIGY_PT_main"
    bl_space_type = "VIEW_3D"
    bl_region_type = "UI"
    bl_category = "Effigy"

    def draw(self, context: bpy.types.Context) -> None:
        """One button; the rest of the interface follows the generator."""
        self.layout.operator("effigy.import_avatar", icon="ARMATURE_DATA")


class EFFIGY_PT_motion(bpy.types.Panel):
    """Motion of the active avatar."""

    bl_label = "Motion"
    bl_idname = "EFFIGY_PT_motion"
    bl_space_type = "VIEW_3D"
    bl_region_type = "UI"
    bl_category = "Effigy"
    bl_parent_id = "EFFIGY_PT_main"

    @classmethod
    def poll(cls, context: bpy.types.Context) -> bool:
        """Only for an avatar."""
        return avatar_rig(context) is not None

    def draw(self, context: bpy.types.Context) -> None:
        """Import, copy, export."""
        column = self.layout.column()
        column.operator("effigy.import_motion", icon="IMPORT")
        column.operator("effigy.copy_motion", icon="ARMATURE_DATA")
        column.operator("effigy.export_bvh", icon="EXPORT")


class EFFIGY_PT_display(bpy.types.Panel):
    """How the selected Gaussians are shown."""

    bl_label = "Display"
    bl_idname = "EFFIGY_PT_display"
    bl_space_type = "VIEW_3D"
    bl_region_type = "UI"
    bl_category = "Effigy"
    bl_parent_id = "EFFIGY_PT_main"

    @classmethod
    def poll(cls, context: bpy.types.Context) -> bool:
        """Only where there is something to show, in a Blender that cannot draw splats itself."""
        return EFFIGY_OT_display.poll(context)

    def draw(self, context: bpy.types.Context) -> None:
        """One button per way."""
        column = self.layout.column(align=True)
        column.operator_enum("effigy.display", "mode")
