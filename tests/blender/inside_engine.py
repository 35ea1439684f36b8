"""Pictures by the add-on's render engine, with what it takes to draw them again: `python inside_engine.py FOLDER`.

Writes scene.npz for test_engine.py: the clouds in world space, the cameras in OpenCV axes, and what Blender rendered.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

import bpy
import numpy as np
from mathutils import Euler, Matrix, Vector

import blender_addon
from blender_addon.cloud.create import create_cloud_object, read_cloud
from blender_addon.cloud.engine import ENGINE
from blender_addon.rig.assemble import insert_avatar
from blender_addon.shared.axes import blender_to_body_cloud, rotate_cloud
from blender_addon.shared.gaussians import GaussianCloud
from tests.blender.synthetic import make_avatar

SIZE = (200, 240)
FIELDS = ("positions_m", "scales_m", "rotations_wxyz", "opacities", "sh_dc", "sh_rest")


def coloured_ball(count: int) -> GaussianCloud:
    """Discs on a sphere of 25 cm whose colour changes with the direction of view."""
    rng = np.random.default_rng(5)
    normals = rng.normal(size=(count, 3))
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    quaternions = rng.normal(size=(count, 4))
    return GaussianCloud(
        0.25 * normals, rng.uniform(0.004, 0.03, (count, 3)),
        quaternions / np.linalg.norm(quaternions, axis=1, keepdims=True), rng.uniform(0.05, 1, count),
        rng.normal(0, 1, (count, 3)), rng.normal(0, 0.3, (count, 15, 3)),
    )  # fmt: skip


def evaluated_cloud(ob: bpy.types.Object) -> GaussianCloud:
    """In the body frame, where the object stands."""
    display = ob.modifiers.get("Display")
    if display is not None:
        display.show_viewport = False
    cloud = read_cloud(ob.evaluated_get(bpy.context.evaluated_depsgraph_get()).data)
    place = np.array(ob.matrix_world)
    turned = rotate_cloud(cloud, place[:3, :3])
    moved = GaussianCloud(
        turned.positions_m + place[:3, 3].astype(np.float32), *[getattr(turned, f) for f in FIELDS[1:]]
    )
    return blender_to_body_cloud(moved)


def look(ob: bpy.types.Object, position: tuple[float, float, float], target: tuple[float, float, float]) -> None:
    """Put the camera at a place and turn it."""
    ob.location = position
    ob.rotation_euler = (Vector(target) - Vector(position)).to_track_quat("-Z", "Y").to_euler()
    bpy.context.view_layer.update()


def opencv(camera: bpy.types.Object) -> tuple[np.ndarray, np.ndarray]:
    """World (body frame) to camera [4, 4] and intrinsics [3, 3] px of a Blender camera, from its own matrices."""
    projection = np.array(camera.calc_matrix_camera(bpy.context.evaluated_depsgraph_get(), x=SIZE[0], y=SIZE[1]))
    to_blender = np.eye(4)
    to_blender[:3, :3] = [[1, 0, 0], [0, 0, -1], [0, 1, 0]]
    w2c = np.diag([1.0, -1.0, -1.0, 1.0]) @ np.array(camera.matrix_world.inverted()) @ to_blender
    width, height = SIZE
    intrinsics = np.array(
        [
            [projection[0, 0] * width / 2, 0, (1 - projection[0, 2]) * width / 2],
            [0, projection[1, 1] * height / 2, (1 + projection[1, 2]) * height / 2],
            [0, 0, 1],
        ]
    )
    return w2c, intrinsics


def render(path: Path) -> np.ndarray:
    """[H, W, 4] scene linear, premultiplied, first row on top."""
    scene = bpy.context.scene
    scene.render.filepath = str(path)
    bpy.ops.render.render(write_still=True)
    image = bpy.data.images.load(str(path))
    pixels = np.empty(SIZE[0] * SIZE[1] * 4, np.float32)
    image.pixels.foreach_get(pixels)
    return pixels.reshape(SIZE[1], SIZE[0], 4)[::-1]


def main() -> int:
    folder = Path(sys.argv[1])
    bpy.ops.wm.read_homefile(use_factory_startup=True)
    bpy.data.batch_remove(list(bpy.data.objects))
    blender_addon.register()
    cloud, avatar = make_avatar(20000)
    # View-dependent colour on a bound cloud: it has to turn with every splat.
    cloud = replace(cloud, sh_rest=np.random.default_rng(6).normal(0, 0.15, (len(cloud), 8, 3)))
    objects = insert_avatar("posed", cloud, avatar, "WALK")
    ball = create_cloud_object("ball", coloured_ball(3000), bpy.context.scene.collection)
    ball.matrix_world = Matrix.Translation((0.5, -0.2, 1.2)) @ Euler((0.4, 1.1, -0.7)).to_matrix().to_4x4()
    scene = bpy.context.scene
    scene.frame_set(8)
    scene.render.resolution_x, scene.render.resolution_y = SIZE
    scene.render.engine, scene.render.film_transparent = ENGINE, True
    scene.view_settings.view_transform = "Standard"
    scene.render.image_settings.file_format = "OPEN_EXR"
    scene.render.image_settings.color_mode, scene.render.image_settings.color_depth = "RGBA", "32"
    camera = objects.camera
    scene.camera = camera
    pictures, matrices, intrinsics = [], [], []
    views = (((0, -2.6, 1.0), (0.1, 0, 1.0)), ((1.6, -1.2, 1.5), (0.1, 0, 1.2)), ((-1.0, 1.4, 0.9), (0, 0, 1.2)))
    for index, (position, target) in enumerate(views):
        look(camera, position, target)
        pictures.append(render(folder / f"{index}.exr"))
        w2c, k = opencv(camera)
        matrices.append(w2c)
        intrinsics.append(k)
    # A plate half a metre in front of the figure hides the left half of the first view.
    look(camera, *views[0])
    mesh = bpy.data.meshes.new("plate")
    mesh.from_pydata([(-9, -0.9, -9), (0, -0.9, -9), (0, -0.9, 9), (-9, -0.9, 9)], [], [(0, 1, 2, 3)])
    scene.collection.objects.link(bpy.data.objects.new("plate", mesh))
    hidden = render(folder / "plate.exr")
    clouds = [evaluated_cloud(objects.cloud), evaluated_cloud(ball)]
    arrays = {f"{name}_{k}": getattr(c, name) for k, c in enumerate(clouds) for name in FIELDS}
    arrays |= {"rest_turns": cloud.rotations_wxyz, "rest_harmonics": cloud.sh_rest}
    np.savez(folder / "scene.npz", pictures=pictures, w2c=matrices, intrinsics=intrinsics, hidden=hidden, **arrays)
    blender_addon.unregister()
    return 0


if __name__ == "__main__":
    sys.exit(main())
