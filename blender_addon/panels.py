"""The add-on's tab in the sidebar of the 3D view."""

from __future__ import annotations

import bpy


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
