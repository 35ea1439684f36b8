"""The add-on's tab in the sidebar of the 3D view."""

from __future__ import annotations

import bpy

from .operators.animate import avatar_rig
from .operators.display import EFFIGY_OT_display
from .operators.edit import splat_objects


class EFFIGY_PT_main(bpy.types.Panel):
    """Import of a finished avatar."""

    bl_label = "Effigy"
    bl_idname = "EFFIGY_PT_main"
    bl_space_type = "VIEW_3D"
    bl_region_type = "UI"
    bl_category = "Effigy"

    def draw(self, context: bpy.types.Context) -> None:
        """Import of avatars and splats; the rest of the interface follows the generator."""
        column = self.layout.column()
        column.operator("effigy.import_avatar", icon="ARMATURE_DATA")
        column.operator("effigy.import_splats", icon="IMPORT")
        column.operator("effigy.export_splats", icon="EXPORT")


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


class EFFIGY_PT_edit(bpy.types.Panel):
    """Editing of the selected Gaussians."""

    bl_label = "Edit"
    bl_idname = "EFFIGY_PT_edit"
    bl_space_type = "VIEW_3D"
    bl_region_type = "UI"
    bl_category = "Effigy"
    bl_parent_id = "EFFIGY_PT_main"
    bl_options = {"DEFAULT_CLOSED"}

    @classmethod
    def poll(cls, context: bpy.types.Context) -> bool:
        """Only where clouds are selected."""
        return bool(splat_objects(context))

    def draw(self, context: bpy.types.Context) -> None:
        """One button per operator."""
        column = self.layout.column(align=True)
        for name in ("crop", "clean", "decimate", "colour", "merge", "apply_transform"):
            column.operator(f"effigy.{name}")


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
