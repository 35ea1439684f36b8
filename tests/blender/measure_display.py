"""Times of the add-on's display and render engine, for `python -m backend bench`. Prints one JSON line.

python measure_display.py engine COUNT WIDTH HEIGHT REPEATS      seconds of F12, and of Cycles with one sample
python measure_display.py viewport COUNT REPEATS                 seconds a redraw reads, sorts and sends, by part
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

import bpy
import numpy as np
from mathutils import Matrix

import blender_addon
from blender_addon.cloud.create import create_cloud_object
from blender_addon.cloud.display import ViewportDisplay, add_display
from blender_addon.cloud.draw import CameraView, SplatScene, splat_clouds
from blender_addon.cloud.engine import ENGINE
from blender_addon.shared.gaussians import GaussianCloud


def figure(count: int) -> GaussianCloud:
    """Discs of a usual size on an upright ellipsoid of the size of a person."""
    rng = np.random.default_rng(0)
    normals = rng.normal(size=(count, 3))
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    turns = rng.normal(size=(count, 4))
    places = normals * [0.35, 0.25, 0.9] + [0, 0, 0.9]
    size = 0.5 / np.sqrt(count)
    return GaussianCloud.from_colours(
        places, rng.uniform(0.5, 1.5, (count, 3)) * size, turns / np.linalg.norm(turns, axis=1, keepdims=True),
        rng.uniform(0.3, 0.99, count), 0.5 + 0.4 * np.sin(7 * places),
    )  # fmt: skip


class _Redraws(bpy.types.RenderEngine):
    """An engine only for its gpu context: it measures what a viewport's redraw does beside drawing."""

    bl_idname, bl_label, bl_use_gpu_context = "EFFIGY_MEASURE", "Measure", True
    repeats = 0
    parts: list[dict[str, float]] = []

    def render(self, depsgraph: bpy.types.Depsgraph) -> None:
        """Two poses of one cloud in turns, as if it moved, from another side each time."""
        splats = SplatScene()
        for turn in range(self.repeats + 2):
            camera = CameraView(Matrix.Rotation(0.1 * turn, 4, "Y"), Matrix.Identity(4), 640, 480)
            start = time.perf_counter()
            clouds = [replace(cloud, key="moving") for cloud in splat_clouds(depsgraph)][turn % 2 :][:1]
            found = time.perf_counter()
            splats.update(clouds)
            read = time.perf_counter()
            splats.sort(camera)
            done = time.perf_counter()
            if turn >= 2:
                parts = {"find": found - start, "read_and_send": read - found, "sort": done - read}
                self.parts.append({**parts, "all": done - start})
        self.end_result(self.begin_result(0, 0, self.resolution_x, self.resolution_y))


def viewport(count: int, repeats: int) -> dict[str, object]:
    """What happens before the first pixel is drawn, seconds."""
    scene = bpy.context.scene
    cloud = figure(count)
    turned = cloud.rotations_wxyz[:, [1, 0, 3, 2]] * np.array([1, -1, 1, -1], np.float32)
    moved = replace(cloud, positions_m=cloud.positions_m * 1.01, rotations_wxyz=turned, scales_m=cloud.scales_m * 1.02)
    create_cloud_object("first", cloud, scene.collection)
    create_cloud_object("second", moved, scene.collection)
    bpy.utils.register_class(_Redraws)
    _Redraws.repeats = repeats
    scene.render.engine = _Redraws.bl_idname
    bpy.ops.render.render()
    bpy.utils.unregister_class(_Redraws)
    return {name: [part[name] for part in _Redraws.parts] for name in _Redraws.parts[0]}


def engine(count: int, width: int, height: int, repeats: int) -> dict[str, object]:
    """F12 of a cloud that fills the height of the frame, seconds; the file stays unwritten on both sides."""
    scene = bpy.context.scene
    cloud = create_cloud_object("figure", figure(count), scene.collection)
    add_display(cloud, scene.collection, ViewportDisplay.POINTS)
    scene.render.resolution_x, scene.render.resolution_y, scene.render.resolution_percentage = width, height, 100
    scene.cycles.samples, scene.cycles.use_denoising, scene.cycles.max_bounces = 1, False, 0
    times: dict[str, list[float]] = {}
    for name, runs in ((ENGINE, repeats + 1), ("CYCLES", 1)):
        scene.render.engine = name
        times[name] = [_timed(bpy.ops.render.render) for _ in range(runs)]
    return {"engine": times[ENGINE][1:], "first": times[ENGINE][0], "cycles": times["CYCLES"]}


def _timed(run: object) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def main() -> int:
    what, numbers = sys.argv[1], [int(word) for word in sys.argv[2:]]
    bpy.ops.wm.read_homefile(use_factory_startup=True)
    bpy.data.batch_remove(list(bpy.data.objects))
    blender_addon.register()
    camera = bpy.data.objects.new("camera", bpy.data.cameras.new("camera"))
    camera.location, camera.rotation_euler = (0.0, -2.7, 0.9), (np.pi / 2, 0.0, 0.0)
    bpy.context.scene.collection.objects.link(camera)
    bpy.context.scene.camera = camera
    result = {"engine": engine, "viewport": viewport}[what](*numbers)
    blender_addon.unregister()
    print("MEASURED " + json.dumps({"blender_version": bpy.app.version_string, **result}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
