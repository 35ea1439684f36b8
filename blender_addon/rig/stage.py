"""A scene of its own for an avatar: what a file that batch.py writes looks like when an artist opens it."""

from __future__ import annotations

import bpy

from ..motion.walk import WALK_FRAMES
from ..shared.avatar import Avatar
from .assemble import AvatarObjects

_BACKGROUND = (0.8, 0.8, 0.8, 1.0)


def prepare_scene(objects: AvatarObjects, avatar: Avatar) -> None:
    """Set camera, frames, light background, colour management, render engine and 3D views of the current scene.

    Cycles composites the Gaussians exactly (transparent hits in depth order); the Standard view transform shows the
    colours of the photo unchanged.
    """
    scene = bpy.context.scene
    scene.camera = objects.camera
    scene.frame_start, scene.frame_end = 1, WALK_FRAMES
    scene.render.fps = 24
    scene.render.resolution_x, scene.render.resolution_y = (int(x) for x in avatar.photo_size_px)
    scene.render.resolution_percentage = 100
    scene.view_settings.view_transform = "Standard"
    scene.render.engine = "CYCLES"
    cycles = scene.cycles
    cycles.samples, cycles.use_denoising = 16, False
    cycles.max_bounces, cycles.transparent_max_bounces = 0, 256
    world = scene.world or bpy.data.worlds.new("World")
    scene.world = world
    if world.node_tree is None:
        world.use_nodes = True
    assert world.node_tree is not None
    background = next(n for n in world.node_tree.nodes if n.bl_idname == "ShaderNodeBackground")
    background.inputs["Color"].default_value = _BACKGROUND
    _prepare_views()


def _prepare_views() -> None:
    """Solid view with the discs' own colours, unshaded, from the front."""
    for screen in bpy.data.screens:
        for area in screen.areas:
            if area.type != "VIEW_3D":
                continue
            for space in area.spaces:
                if space.type == "VIEW_3D":
                    _prepare_view(space)


def _prepare_view(space: bpy.types.SpaceView3D) -> None:
    shading = space.shading
    shading.type, shading.light, shading.color_type = "SOLID", "FLAT", "VERTEX"
    shading.show_object_outline = False
    view = space.region_3d
    if view is not None:
        # Blender's front view, in perspective, on a standing person.
        view.view_perspective = "PERSP"
        view.view_rotation = (0.70710678, 0.70710678, 0.0, 0.0)
        view.view_location = (0.0, 0.0, 0.9)
        view.view_distance = 3.4
