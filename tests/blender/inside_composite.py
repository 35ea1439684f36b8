"""Splats composited over a Cycles render: `python inside_composite.py FOLDER` writes pictures.npz there."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

import bpy
import numpy as np

import blender_addon
from blender_addon.cloud.create import create_cloud_object
from blender_addon.cloud.display import add_display
from blender_addon.shared.gaussians import GaussianCloud

SIZE = (80, 60)
RED, GREEN, BLUE = (0.8, 0.05, 0.05), (0.05, 0.8, 0.05), (0.05, 0.05, 0.8)


def green_ball() -> GaussianCloud:
    """A dense opaque ball of 50 cm radius."""
    rng = np.random.default_rng(0)
    places = rng.normal(size=(4000, 3))
    places *= 0.5 / np.linalg.norm(places, axis=1, keepdims=True)
    turns = np.tile([1.0, 0, 0, 0], (4000, 1))
    display = 1.055 * np.array(GREEN) ** (1 / 2.4) - 0.055
    return GaussianCloud.from_colours(
        places, np.full((4000, 3), 0.03), turns, np.full(4000, 0.99), np.tile(display, (4000, 1))
    )


def plate(name: str, corners: tuple[float, float, float, float], depth_m: float, colour: tuple[float, ...]) -> None:
    """A glowing rectangle [left, right, low, high] facing the camera."""
    left, right, low, high = corners
    mesh = bpy.data.meshes.new(name)
    places = [(left, depth_m, low), (right, depth_m, low), (right, depth_m, high), (left, depth_m, high)]
    mesh.from_pydata(places, [], [(0, 1, 2, 3)])
    material = bpy.data.materials.new(name)
    material.use_nodes = True
    material.node_tree.nodes.clear()
    glow = material.node_tree.nodes.new("ShaderNodeEmission")
    glow.inputs["Color"].default_value = (*colour, 1.0)
    output = material.node_tree.nodes.new("ShaderNodeOutputMaterial")
    material.node_tree.links.new(glow.outputs[0], output.inputs["Surface"])
    mesh.materials.append(material)
    bpy.context.scene.collection.objects.link(bpy.data.objects.new(name, mesh))


def render(path: Path) -> np.ndarray:
    """[H, W, 4] scene linear of the active scene, the first row on top."""
    bpy.context.scene.render.filepath = str(path)
    bpy.ops.render.render(write_still=True)
    image = bpy.data.images.load(str(path))
    pixels = np.empty(image.size[0] * image.size[1] * 4, np.float32)
    image.pixels.foreach_get(pixels)
    return pixels.reshape(image.size[1], image.size[0], 4)[::-1]


def main() -> int:
    folder = Path(sys.argv[1])
    bpy.ops.wm.read_homefile(use_factory_startup=True)
    bpy.data.batch_remove(list(bpy.data.objects))
    blender_addon.register()
    scene = bpy.context.scene
    scene.render.engine = "CYCLES"
    scene.cycles.samples, scene.cycles.use_denoising = 1, False
    scene.view_settings.view_transform = "Standard"
    scene.render.image_settings.file_format = "OPEN_EXR"
    scene.render.image_settings.color_mode, scene.render.image_settings.color_depth = "RGBA", "32"
    camera = bpy.data.objects.new("camera", bpy.data.cameras.new("camera"))
    camera.location, camera.rotation_euler = (0.0, -4.0, 0.0), (np.pi / 2, 0.0, 0.0)
    scene.collection.objects.link(camera)
    scene.camera = camera
    ball = create_cloud_object("ball", green_ball(), scene.collection)
    add_display(ball, scene.collection)
    plate("behind", (-9, 9, -9, 9), 1.0, BLUE)
    plate("before", (-9, 0, -9, 9), -1.0, RED)
    for frame, height in ((1, 0.0), (2, 1.0)):
        ball.location.z = height
        ball.keyframe_insert("location", frame=frame)

    assert bpy.ops.effigy.setup_compositing() == {"FINISHED"}
    assert bpy.ops.effigy.setup_compositing() == {"FINISHED"}, "it can be run again"
    # What the artist changes afterwards counts in both pictures.
    scene.render.resolution_x, scene.render.resolution_y, scene.render.resolution_percentage = *SIZE, 100
    scene.frame_set(1)
    pictures = {"first": render(folder / "first.exr")}
    scene.frame_set(2)
    pictures["second"] = render(folder / "second.exr")
    np.savez(folder / "pictures.npz", scenes=len(bpy.data.scenes), **pictures)
    blender_addon.unregister()
    return 0


if __name__ == "__main__":
    sys.exit(main())
