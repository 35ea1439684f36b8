"""How a cloud is shown in the viewport."""

from __future__ import annotations

import bpy

from ..cloud.create import splat_type
from ..cloud.display import DISPLAY_MODIFIER, ViewportDisplay
from ..cloud.draw import BASE
from ..cloud.node_graph import set_modifier_input
from ..cloud.viewport import show_splats

_MODES = [
    ("SPLATS", "Splats", "True splats, sorted and blended as they were trained"),
    ("DISCS", "Discs", "Small coloured discs: quick, and what a file shows without the add-on"),
    ("POINTS", "Points", "The bare points"),
    ("GAUSSIANS", "Ellipsoids", "An ellipsoid per Gaussian, as Cycles and EEVEE render them"),
]


def is_splat_cloud(ob: bpy.types.Object | None) -> bool:
    """Whether an object is a cloud of Gaussians."""
    return ob is not None and ob.type == "POINTCLOUD" and BASE in ob.data.attributes


class EFFIGY_OT_display(bpy.types.Operator):
    """Choose how the selected Gaussians are shown in the viewport."""

    bl_idname = "effigy.display"
    bl_label = "Show Gaussians As"
    bl_options = {"REGISTER", "UNDO"}

    mode: bpy.props.EnumProperty(name="Show As", items=_MODES)  # pyright: ignore[reportInvalidTypeForm]

    @classmethod
    def poll(cls, context: bpy.types.Context) -> bool:
        """Blender 5.3 draws splats itself."""
        return splat_type() is None and bool(selected_clouds(context))

    def execute(self, context: bpy.types.Context) -> set[str]:
        """Set the display of every selected cloud, or of the clouds of a selected rig."""
        for ob in selected_clouds(context):
            show_splats(ob, False)
            if self.mode == "SPLATS":
                show_splats(ob, True)
            else:
                set_modifier_input(ob.modifiers[DISPLAY_MODIFIER], "Viewport", int(ViewportDisplay[self.mode]))
        return {"FINISHED"}


def selected_clouds(context: bpy.types.Context) -> list[bpy.types.Object]:
    """Clouds with a display modifier that are selected, or whose rig is."""
    chosen = set(context.selected_objects)
    clouds = {ob for ob in chosen if is_splat_cloud(ob)}
    clouds |= {child for ob in chosen for child in ob.children_recursive if is_splat_cloud(child)}
    return sorted((ob for ob in clouds if DISPLAY_MODIFIER in ob.modifiers), key=lambda ob: ob.name)
