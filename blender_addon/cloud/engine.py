"""A render engine for splats: exact Gaussians as they were trained, meshes as holdouts, passes Combined and Depth.

The picture is what `python -m backend render` draws. Meshes hide the splats behind them and are themselves left out, so
that the result lies over a Cycles or EEVEE render of the same scene (see operators/composite.py).
"""

from __future__ import annotations

import bpy
import gpu
import numpy as np
from gpu_extras.batch import batch_for_shader

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
        scale = scene.render.resolution_percentage / 100.0
        width, height = (max(1, int(n * scale)) for n in (scene.render.resolution_x, scene.render.resolution_y))
        colour, depth_m = draw_picture(depsgraph, width, height)
        background = None if scene.render.film_transparent else _world_colour(scene)
        result = self.begin_result(0, 0, width, height)
        layer = result.layers[0]
        layer.passes["Combined"].rect.foreach_set(_to_linear(colour, background).ravel())
        if "Depth" in layer.passes:
            layer.passes["Depth"].rect.foreach_set(depth_m.ravel())
        self.end_result(result)


def draw_picture(depsgraph: bpy.types.Depsgraph, width: int, height: int) -> tuple[np.ndarray, np.ndarray]:
    """What the scene's camera sees of the splats.

    Args:
        depsgraph: Evaluated scene with a camera.
        width: px.
        height: px.

    Returns:
        Premultiplied display sRGB and alpha [H, W, 4], and the expected distance along the view in metres [H, W],
        `FAR_M` where nothing is; the first row is the lowest.
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
    return colour, depth_m


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
    display = np.clip(colour[..., :3] / np.maximum(alpha, 1e-6), 0.0, None)
    linear = np.where(display <= 0.04045, display / 12.92, ((display + 0.055) / 1.055) ** 2.4)
    return np.concatenate([linear * alpha, alpha], axis=2).astype(np.float32)


def _world_colour(scene: bpy.types.Scene) -> np.ndarray:
    """Display colour of a plain world."""
    linear = np.zeros(3)
    if scene.world is not None:
        linear = np.array(scene.world.color[:3], float)
        nodes = scene.world.node_tree.nodes if scene.world.node_tree else ()
        plain = next((n for n in nodes if n.bl_idname == "ShaderNodeBackground"), None)
        if plain is not None:
            strength = float(plain.inputs["Strength"].default_value)
            linear = np.array(plain.inputs["Color"].default_value[:3], float) * strength
    return np.where(linear <= 0.0031308, linear * 12.92, 1.055 * np.clip(linear, 0, None) ** (1 / 2.4) - 0.055)


def before_render(scene: bpy.types.Scene, *_: object) -> None:
    """The engine draws points: the display modifier must not turn them into ellipsoids."""
    if scene.render.engine == ENGINE:
        points_in_renders(True)


def after_render(scene: bpy.types.Scene, *_: object) -> None:
    """Back to what other engines, and files without the add-on, show."""
    points_in_renders(False)
