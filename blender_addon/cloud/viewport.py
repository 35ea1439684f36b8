"""Splats in the 3D view of a Blender without splats of its own.

A draw handler draws every cloud that `show_splats` chose into a target of its own, in display sRGB, hidden by the
scene's depth, and lays the result over the view. Blender itself then shows such a cloud as its bounding box only, so
that it can still be clicked, outlined and framed. What a file keeps is always the node display, so that it shows
Gaussians on a machine without the add-on.
"""

from __future__ import annotations

import traceback
from dataclasses import dataclass

import bpy
import gpu
from gpu_extras.batch import batch_for_shader

from .bones import draw_bones
from .display import DISPLAY_MODIFIER, ViewportDisplay
from .draw import CameraView, SplatScene, splat_clouds
from .engine import ENGINE
from .node_graph import modifier_input, set_modifier_input
from .splat_shader import create_cover_shader

SPLATS_PROPERTY = "effigy_splats"
"""Custom property of a cloud object that is drawn as splats: what the node display shows when it is not."""


def show_splats(ob: bpy.types.Object, shown: bool) -> None:
    """Draw a cloud as splats, or give the view back to the node display. Exactly one of the two is active.

    Args:
        ob: A cloud with a display modifier.
        shown: Which.
    """
    modifier = ob.modifiers.get(DISPLAY_MODIFIER)
    if modifier is None or shown == (SPLATS_PROPERTY in ob):
        return
    if shown:
        ob[SPLATS_PROPERTY] = int(modifier_input(modifier, "Viewport"))
        set_modifier_input(modifier, "Viewport", int(ViewportDisplay.POINTS))
        ob.display_type = "BOUNDS"
    else:
        set_modifier_input(modifier, "Viewport", int(ob[SPLATS_PROPERTY]))
        del ob[SPLATS_PROPERTY]
        ob.display_type = "TEXTURED"


@dataclass
class _Drawer:
    """What lives on the graphics card between two redraws; made on the first."""

    splats: SplatScene
    cover: gpu.types.GPUShader
    screen: gpu.types.GPUBatch
    stale: bool = True
    view: tuple[str, str] = ("", "")
    """Scene and view layer that the clouds were read from."""


class SplatViewport:
    """The draw handler and what tells it that something moved."""

    def __init__(self) -> None:
        """Start drawing."""
        self._drawer: _Drawer | None = None
        self._failed = False
        self._said: set[str] = set()
        self._handle = bpy.types.SpaceView3D.draw_handler_add(self._draw, (), "WINDOW", "POST_VIEW")

    def close(self) -> None:
        """Stop drawing and free the graphics memory."""
        bpy.types.SpaceView3D.draw_handler_remove(self._handle, "WINDOW")
        self._drawer = None
        if bpy.app.timers.is_registered(_give_up):
            bpy.app.timers.unregister(_give_up)

    def scene_changed(self, depsgraph: bpy.types.Depsgraph) -> None:
        """Read the clouds again before the next redraw if the geometry of one may have changed."""
        if self._drawer is None or self._drawer.stale:
            return
        self._drawer.stale = any(
            update.is_updated_geometry and isinstance(update.id, (bpy.types.Object, bpy.types.PointCloud))
            for update in depsgraph.updates
        )

    def forget(self) -> None:
        """Read everything again, after another file or an undo step."""
        self._failed = False
        if self._drawer is not None:
            self._drawer.stale = True

    def _draw(self) -> None:
        """Called by Blender for every 3D view.

        What goes wrong here would go wrong at every redraw: it is said once, and the node display comes back.
        """
        try:
            drawn = self._draw_view(bpy.context)
        except Exception as error:  # whatever it is, a draw handler has nobody above it
            drawn = True
            if not self._failed:
                self._failed = True
                traceback.print_exc()
                self._say(f"the Gaussians are no longer drawn as splats: {error}")
                bpy.app.timers.register(_give_up, first_interval=0.0)
        if not drawn:
            self._failed = False

    def _draw_view(self, context: bpy.types.Context) -> bool:
        """Draw what this view shows; False if no cloud of the scene is to be drawn."""
        depsgraph = context.evaluated_depsgraph_get()
        clouds = [cloud for cloud in splat_clouds(depsgraph) if SPLATS_PROPERTY in cloud.original]
        if not clouds or self._failed:
            return bool(clouds)
        shown = [k for k, cloud in enumerate(clouds) if _is_shown(cloud.owner, context)]
        if not shown:
            return True
        drawer = self._drawer = self._drawer or _make_drawer()
        view = (context.scene.name_full, context.view_layer.name)
        drawer.splats.update(clouds, moved=drawer.stale or drawer.view != view)
        drawer.stale, drawer.view = False, view
        for warning in drawer.splats.warnings:
            self._say(warning)
        _draw_over(context, drawer, shown)
        draw_bones(context)
        return True

    def _say(self, line: str) -> None:
        if line not in self._said:
            self._said.add(line)
            print(f"Effigy: {line}")


def _is_shown(ob: bpy.types.Object, context: bpy.types.Context) -> bool:
    """Whether a view shows an object: local view, local collections, the kinds that are switched off.

    No view does while another engine renders into it.
    """
    space = context.space_data
    if space.shading.type == "RENDERED" and context.scene.render.engine != ENGINE:
        return False
    if ob.type == "POINTCLOUD" and not getattr(space, "show_object_viewport_pointcloud", True):
        return False
    return ob.visible_in_viewport_get(space)


def _draw_over(context: bpy.types.Context, drawer: _Drawer, shown: list[int]) -> None:
    """Draw the splats into a target of their own and lay it over the view."""
    region, view = context.region, context.region_data
    frame = gpu.state.active_framebuffer_get()
    x, y, width, height = gpu.state.viewport_get()
    depth = frame.read_depth(x, y, width, height)
    hidden = gpu.types.GPUTexture((width, height), format="R32F", data=_flat(depth, width * height))
    target = gpu.types.GPUTexture((width, height), format="RGBA16F")
    distance = gpu.types.GPUTexture((width, height), format="RGBA16F")
    picture = gpu.types.GPUFrameBuffer(color_slots=[target, distance])
    try:
        with picture.bind():
            picture.clear(color=(0.0, 0.0, 0.0, 0.0))
            gpu.state.depth_test_set("NONE")
            camera = CameraView(view.view_matrix, view.window_matrix, region.width, region.height)
            drawer.splats.draw(camera, hidden, shown)
        gpu.state.depth_test_set("NONE")
        gpu.state.blend_set("ALPHA_PREMULT")
        drawer.cover.bind()
        drawer.cover.uniform_sampler("picture", target)
        drawer.cover.uniform_float("place", (float(x), float(y), 0.0, 0.0))
        drawer.screen.draw(drawer.cover)
    finally:
        gpu.state.blend_set("NONE")


def _give_up() -> None:
    """A timer: nothing of the file may be changed while it is drawn."""
    node_display_for_saving()


def _make_drawer() -> _Drawer:
    cover = create_cover_shader()
    screen = batch_for_shader(cover, "TRI_STRIP", {"corner": [(-1, -1), (1, -1), (-1, 1), (1, 1)]})
    return _Drawer(SplatScene(), cover, screen)


def _flat(buffer: gpu.types.Buffer, length: int) -> gpu.types.Buffer:
    buffer.dimensions = length
    return buffer


def node_display_for_saving() -> list[bpy.types.Object]:
    """Give every drawn cloud its node display, which is what a file keeps; returns them, to be drawn afterwards."""
    drawn = drawn_objects()
    for ob in drawn:
        show_splats(ob, False)
    return drawn


def drawn_objects() -> list[bpy.types.Object]:
    """Objects of this file whose display is drawn splats."""
    return [ob for ob in bpy.data.objects if ob.type == "POINTCLOUD" and SPLATS_PROPERTY in ob]
