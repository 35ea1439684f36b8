"""A render engine for splats: exact Gaussians as they were trained, meshes as holdouts, passes Combined and Depth.

The picture is what `python -m backend render` draws. Meshes hide the splats behind them and are themselves left out, so
that the result lies over a Cycles or EEVEE render of the same scene (see compositing.py).
"""

from __future__ import annotations

from dataclasses import dataclass

import bpy
import gpu
import numpy as np
from gpu_extras.batch import batch_for_shader

from .compositing import follow_scene, splat_scene_of
from .display import points_in_renders
from .draw import CameraView, SplatScene, splat_clouds

ENGINE = "EFFIGY_SPLATS"

FAR_M = 1e10
"""Depth where there is nothing, as Blender's own engines write it."""

_ALPHA_FOR_DEPTH = 0.05
"""Below this alpha a depth means nothing."""

_MESHES = ("MESH", "CURVE", "CURVES", "SURFACE", "META", "FONT")


class EFFIGY_RE_splats(bpy.types.RenderEngine):
    """Gaussian splats, blended in display sRGB as they were trained."""

    bl_idname = ENGINE
    bl_label = "Effigy Splats"
    bl_use_gpu_context = True
    bl_use_preview = False
    bl_use_eevee_viewport = True

    def update_render_passes(self, scene: bpy.types.Scene, view_layer: bpy.types.ViewLayer) -> None:
        """Combined, and Depth where the view layer asks for it."""
        self.register_pass(scene, view_layer, "Combined", 4, "RGBA", "COLOR")
        if view_layer.use_pass_z:
            self.register_pass(scene, view_layer, "Depth", 1, "Z", "VALUE")

    def render(self, depsgraph: bpy.types.Depsgraph) -> None:
        """Draw the scene's camera's picture."""
        scene = depsgraph.scene
        # Not the scene's own resolution: another scene's compositor may ask for a picture of its size.
        width, height = self.resolution_x, self.resolution_y
        picture = draw_picture(depsgraph, width, height)
        for warning in picture.warnings:
            self.report({"WARNING"}, warning)
        background = None if scene.render.film_transparent else _world_colour(scene)
        part = _border(scene.render, width, height)
        colour = _to_linear(picture.colour[part], background)
        result = self.begin_result(0, 0, colour.shape[1], colour.shape[0])
        layer = result.layers[0]
        layer.passes["Combined"].rect.foreach_set(colour.ravel())
        if "Depth" in layer.passes:
            layer.passes["Depth"].rect.foreach_set(picture.depth_m[part].ravel())
        self.end_result(result)

    def view_update(self, context: bpy.types.Context, depsgraph: bpy.types.Depsgraph) -> None:
        """A view that is shaded Rendered: the viewport's draw handler draws the splats there too."""

    def view_draw(self, context: bpy.types.Context, depsgraph: bpy.types.Depsgraph) -> None:
        """The world behind the splats."""
        colour = _world_linear(depsgraph.scene)
        gpu.state.active_framebuffer_get().clear(color=(*colour.tolist(), 1.0))


@dataclass(frozen=True)
class Picture:
    """What a camera sees of the splats; the first row is the lowest.

    Attributes:
        colour: Premultiplied display sRGB and alpha [H, W, 4].
        depth_m: Expected distance along the view [H, W], `FAR_M` where nothing is.
        warnings: What could not be drawn as it should be, one line each.
    """

    colour: np.ndarray
    depth_m: np.ndarray
    warnings: tuple[str, ...]


def draw_picture(depsgraph: bpy.types.Depsgraph, width: int, height: int) -> Picture:
    """What the scene's camera sees of the splats.

    Args:
        depsgraph: Evaluated scene with a camera.
        width: px.
        height: px.
    """
    camera = depsgraph.scene.camera.evaluated_get(depsgraph)
    scene = depsgraph.scene
    projection = camera.calc_matrix_camera(
        depsgraph, x=width, y=height, scale_x=scene.render.pixel_aspect_x, scale_y=scene.render.pixel_aspect_y
    )
    view = camera.matrix_world.normalized().inverted()
    splats = SplatScene()
    splats.update(splat_clouds(depsgraph))
    targets = [gpu.types.GPUTexture((width, height), format="RGBA32F") for _ in range(2)]
    hidden = gpu.types.GPUTexture((width, height), format="DEPTH_COMPONENT32F")
    frame = gpu.types.GPUFrameBuffer(depth_slot=hidden, color_slots=targets)
    with frame.bind():
        frame.clear(color=(0.0, 0.0, 0.0, 0.0), depth=1.0)
        _draw_holdouts(depsgraph, projection @ view)
        gpu.state.depth_test_set("LESS_EQUAL")
        splats.draw(CameraView(view, projection, width, height))
        gpu.state.depth_test_set("NONE")
    colour, distance = (_read(target, width, height) for target in targets)
    alpha = colour[..., 3]
    covered = alpha > _ALPHA_FOR_DEPTH
    depth_m = np.where(covered, distance[..., 0] / np.maximum(distance[..., 3], 1e-6), FAR_M).astype(np.float32)
    return Picture(colour, depth_m, splats.warnings)


def _draw_holdouts(depsgraph: bpy.types.Depsgraph, to_clip: object) -> None:
    """Write the depth, and nothing else, of everything that has faces."""
    shader = gpu.shader.from_builtin("UNIFORM_COLOR")
    gpu.state.color_mask_set(False, False, False, False)
    gpu.state.depth_test_set("LESS_EQUAL")
    gpu.state.depth_mask_set(True)
    try:
        for instance in depsgraph.object_instances:
            if instance.object.type not in _MESHES or not instance.show_self:
                continue
            points, triangles = _mesh_arrays(instance.object)
            if not len(triangles):
                continue
            batch = batch_for_shader(shader, "TRIS", {"pos": points}, indices=triangles)
            shader.bind()
            with gpu.matrix.push_pop(), gpu.matrix.push_pop_projection():
                gpu.matrix.load_projection_matrix(to_clip)
                gpu.matrix.load_matrix(instance.matrix_world)
                shader.uniform_float("color", (0.0, 0.0, 0.0, 1.0))
                batch.draw(shader)
    finally:
        gpu.state.color_mask_set(True, True, True, True)
        gpu.state.depth_mask_set(False)


def _mesh_arrays(ob: bpy.types.Object) -> tuple[np.ndarray, np.ndarray]:
    """Vertices [V, 3] and triangles [T, 3] of an evaluated object."""
    mesh = ob.to_mesh()
    if mesh is None:
        return np.empty((0, 3), np.float32), np.empty((0, 3), np.int32)
    try:
        mesh.calc_loop_triangles()
        points = np.empty(len(mesh.vertices) * 3, np.float32)
        triangles = np.empty(len(mesh.loop_triangles) * 3, np.int32)
        mesh.vertices.foreach_get("co", points)
        mesh.loop_triangles.foreach_get("vertices", triangles)
        return points.reshape(-1, 3), triangles.reshape(-1, 3)
    finally:
        ob.to_mesh_clear()


def _read(target: gpu.types.GPUTexture, width: int, height: int) -> np.ndarray:
    values = target.read()
    values.dimensions = width * height * 4
    return np.array(values, np.float32).reshape(height, width, 4)


def _to_linear(colour: np.ndarray, background: np.ndarray | None) -> np.ndarray:
    """Scene linear premultiplied [H, W, 4] of display sRGB premultiplied, over a display colour [3] if one is given."""
    if background is not None:
        rest = 1.0 - colour[..., 3:]
        colour = np.concatenate([colour[..., :3] + rest * background, np.ones_like(rest)], axis=2)
    alpha = colour[..., 3:]
    linear = np.zeros((*alpha.shape[:2], 4), np.float32)
    seen = alpha[..., 0] > 0
    display = np.clip(colour[seen][:, :3] / np.maximum(alpha[seen], 1e-6), 0.0, None)
    bright = ((display + 0.055) / 1.055) ** 2.4
    linear[seen, :3] = np.where(display <= 0.04045, display / 12.92, bright) * alpha[seen]
    linear[..., 3:] = alpha
    return linear


def _border(render: bpy.types.RenderSettings, width: int, height: int) -> tuple[slice, slice]:
    """Rows and columns of the picture that are asked for."""
    if not render.use_border:
        return slice(0, height), slice(0, width)
    rows = slice(int(render.border_min_y * height), int(render.border_max_y * height))
    return rows, slice(int(render.border_min_x * width), int(render.border_max_x * width))


def _world_colour(scene: bpy.types.Scene) -> np.ndarray:
    """Display colour [3] of a plain world."""
    linear = _world_linear(scene)
    return np.where(linear <= 0.0031308, linear * 12.92, 1.055 * np.clip(linear, 0, None) ** (1 / 2.4) - 0.055)


def _world_linear(scene: bpy.types.Scene) -> np.ndarray:
    """Scene linear colour [3] of a plain world."""
    linear = np.zeros(3)
    if scene.world is not None:
        linear = np.array(scene.world.color[:3], float)
        nodes = scene.world.node_tree.nodes if scene.world.node_tree else ()
        plain = next((n for n in nodes if n.bl_idname == "ShaderNodeBackground"), None)
        if plain is not None:
            strength = float(plain.inputs["Strength"].default_value)
            linear = np.array(plain.inputs["Color"].default_value[:3], float) * strength
    return linear


def before_render(scene: bpy.types.Scene, *_: object) -> None:
    """The engine draws points: the display modifier must not turn them into ellipsoids."""
    partner = splat_scene_of(scene)
    if partner is not None:
        follow_scene(scene, partner)
    if scene.render.engine == ENGINE or partner is not None:
        points_in_renders(True)


def after_render(scene: bpy.types.Scene, *_: object) -> None:
    """Back to what other engines, and files without the add-on, show."""
    points_in_renders(False)
