"""Splats over a Cycles or EEVEE render."""

from __future__ import annotations

import bpy

from ..cloud.compositing import follow_scene, hide_from_rays, lay_over, make_splat_scene
from ..cloud.create import splat_type
from ..cloud.engine import ENGINE
from .display import is_splat_cloud


class EFFIGY_OT_setup_compositing(bpy.types.Operator):
    """Lay exact Gaussians over this scene's Cycles or EEVEE picture; they hide meshes and are hidden by them."""

    bl_idname = "effigy.setup_compositing"
    bl_label = "Composite over Render"
    bl_options = {"REGISTER", "UNDO"}

    @classmethod
    def poll(cls, context: bpy.types.Context) -> bool:
        """A scene with Gaussians and another engine, in a Blender whose engines do not draw splats themselves."""
        scene = context.scene
        if splat_type() is not None or scene.render.engine == ENGINE:
            return False
        return any(is_splat_cloud(ob) for ob in scene.objects)

    def execute(self, context: bpy.types.Context) -> set[str]:
        """Make the second scene and the compositor nodes."""
        scene = context.scene
        partner = make_splat_scene(scene, ENGINE)
        follow_scene(scene, partner)
        lay_over(scene, partner, context.view_layer.name)
        for ob in scene.objects:
            if is_splat_cloud(ob):
                hide_from_rays(ob)
        line = f"The scene '{partner.name}' renders the Gaussians; render this scene as before"
        if scene.view_settings.view_transform != "Standard":
            line += ". Their exact colours need the view transform Standard (Render properties, Color Management)"
        self.report({"INFO"}, line)
        return {"FINISHED"}
