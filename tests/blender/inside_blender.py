"""Questions that test_avatar.py asks, answered inside Blender: `python inside_blender.py QUESTION FOLDER`.

Each answer is a JSON line; the assertions are in the test.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

import bpy
import numpy as np
from bpy_extras.object_utils import world_to_camera_view

import blender_addon
from blender_addon import session
from blender_addon.cloud.create import create_cloud_object, read_attribute, read_cloud
from blender_addon.cloud.display import add_display
from blender_addon.cloud.edit import posed_cloud
from blender_addon.link.jobs import Job
from blender_addon.operators.generate import photo_file, remembered_request
from blender_addon.rig.assemble import insert_avatar
from blender_addon.shared.avatar import read_bundle
from blender_addon.shared.formats import write_splats
from blender_addon.shared.gaussians import GaussianCloud
from blender_addon.shared.skeleton import BONE_NAMES
from tests.blender.synthetic import make_avatar, write_synthetic_bundle


def empty_file() -> None:
    bpy.ops.wm.read_homefile(use_factory_startup=True)
    bpy.data.batch_remove(list(bpy.data.objects))
    bpy.data.orphans_purge(do_recursive=True)


def random_cloud(coefficients: int, count: int = 1000) -> GaussianCloud:
    rng = np.random.default_rng(coefficients)
    quaternions = rng.normal(size=(count, 4))
    return GaussianCloud(
        rng.normal(size=(count, 3)), np.exp(rng.normal(-4, 1, (count, 3))),
        quaternions / np.linalg.norm(quaternions, axis=1, keepdims=True), rng.random(count),
        rng.normal(0, 2, (count, 3)), rng.normal(size=(count, coefficients, 3)),
    )  # fmt: skip


def round_trip(folder: Path) -> dict[str, Any]:
    answer = {}
    for coefficients in (0, 3, 8, 15, 24):
        cloud = random_cloud(coefficients)
        ob = create_cloud_object("round", cloud, bpy.context.scene.collection)
        back = read_cloud(ob.data)
        names = ("positions_m", "scales_m", "rotations_wxyz", "opacities", "sh_dc", "sh_rest")
        answer[coefficients] = {n: bool(np.array_equal(getattr(cloud, n), getattr(back, n))) for n in names}
    types = {a.name: a.data_type for a in ob.data.attributes}
    helpers = len(bpy.data.meshes) + len(bpy.data.node_groups)
    return {"equal": answer, "types": types, "object": ob.type, "helpers": helpers}


def avatar(folder: Path) -> dict[str, Any]:
    cloud, arrays = make_avatar(2000)
    objects = insert_avatar("tester", cloud, arrays, "PHOTO")
    scene, armature = bpy.context.scene, objects.armature
    width, height = (int(x) for x in arrays.photo_size_px)
    scene.render.resolution_x, scene.render.resolution_y = width, height
    bpy.context.view_layer.update()
    pixels = []
    for name in BONE_NAMES:
        view = world_to_camera_view(scene, objects.camera, armature.matrix_world @ armature.pose.bones[name].head)
        pixels.append([view.x * width, (1 - view.y) * height])
    depsgraph = bpy.context.evaluated_depsgraph_get()
    shown = [i.object.data for i in depsgraph.object_instances if i.object.type == "MESH"]
    discs = next(mesh for mesh in shown if len(mesh.polygons) == len(cloud))
    colours = np.empty(len(discs.vertices) * 4, np.float32)
    discs.color_attributes.active_color.data.foreach_get("color", colours)
    keys = objects.proxy.evaluated_get(depsgraph).data.shape_keys
    bones = armature.data.bones
    return {
        "pixels": pixels,
        "camera_y": objects.camera.matrix_world.translation.y,
        "pelvis": list(armature.pose.bones["pelvis"].head),
        "face": {k.name: k.value for k in (keys or objects.proxy.data.shape_keys).key_blocks[1:]},
        "parents": [b.parent.name if b.parent else "" for b in (bones[name] for name in BONE_NAMES)],
        "deform": sorted(b.name for b in bones if b.use_deform),
        "smplx": [bones[name]["smplx_joint"] for name in BONE_NAMES],
        "disc_colours": colours.reshape(len(cloud), 4, 4)[:, 0, :3].tolist(),
        "active": bpy.context.view_layer.objects.active.name,
        "collection": objects.collection.name,
        "actions": sorted(action.name for action in bpy.data.actions),
        "action": armature.animation_data.action.name,
        "proxy_seen": [not objects.proxy.hide_viewport, not objects.proxy.hide_render],
        "libraries": len(bpy.data.libraries),
    }


def operator(folder: Path) -> dict[str, Any]:
    write_synthetic_bundle(folder / "someone", 500)
    (folder / "nothing").mkdir()
    blender_addon.register()
    before = len(bpy.data.objects)
    try:
        bpy.ops.effigy.import_avatar(directory=str(folder / "nothing"))
        refused = ""
    except RuntimeError as error:
        refused = str(error)
    left = len(bpy.data.objects) - before
    result = list(bpy.ops.effigy.import_avatar(directory=str(folder / "someone"), pose="WALK"))
    names = sorted(ob.name for ob in bpy.data.objects)
    second = list(bpy.ops.effigy.import_avatar(directory=str(folder / "someone"), pose="REST"))
    count = len(bpy.data.objects)
    blender_addon.unregister()
    return {
        "refused": refused, "left": left, "result": result, "names": names, "second": second, "count": count,
        "registered": hasattr(bpy.types, "EFFIGY_OT_import_avatar"),
    }  # fmt: skip


def falloff(folder: Path) -> dict[str, Any]:
    """Render one turned ellipsoid with Cycles, orthographic, on a transparent film."""
    scale, opacity = np.array([[0.05, 0.12, 0.2]]), 0.8
    quaternion = np.array([[0.8, 0.2, -0.4, 0.4]])
    colour = np.array([[0.9, 0.4, 0.1]])
    cloud = GaussianCloud.from_colours(np.zeros((1, 3)), scale, quaternion, np.array([opacity]), colour)
    ob = create_cloud_object("one", cloud, bpy.context.scene.collection)
    add_display(ob, bpy.context.scene.collection)
    camera = bpy.data.objects.new("camera", bpy.data.cameras.new("camera"))
    camera.data.type, camera.data.ortho_scale, camera.location = "ORTHO", 1.0, (0, 0, 3)
    scene = bpy.context.scene
    scene.collection.objects.link(camera)
    scene.camera = camera
    size = 40
    scene.render.resolution_x = scene.render.resolution_y = size
    scene.render.engine, scene.render.film_transparent = "CYCLES", True
    scene.cycles.samples, scene.cycles.use_denoising, scene.cycles.max_bounces = 16, False, 0
    scene.view_settings.view_transform = "Standard"
    scene.render.image_settings.file_format = "OPEN_EXR"
    scene.render.filepath = str(folder / "one.exr")
    bpy.ops.render.render(write_still=True)
    image = bpy.data.images.load(str(folder / "one.exr"))
    pixels = np.array(image.pixels[:]).reshape(size, size, 4)
    return {"pixels": pixels.tolist(), "base": read_attribute(ob.data, "radiance:base").tolist()}


def motion(folder: Path) -> dict[str, Any]:
    """Import a motion, export it, play it on a second avatar by file and by copying from the first."""
    blender_addon.register()
    file = Path(__file__).resolve().parent.parent / "motion" / "data" / "cmu1_jumping_jacks.bvh"
    cloud, arrays = make_avatar(200)
    first, second = (insert_avatar(name, cloud, arrays, "REST") for name in ("first", "second"))
    scene = bpy.context.scene
    scene.render.fps, scene.frame_start, scene.frame_end = 30, 1, 10

    def choose(*objects: bpy.types.Object) -> None:
        for ob in bpy.context.view_layer.objects:
            ob.select_set(ob in objects)
        bpy.context.view_layer.objects.active = objects[0]

    def heads(ob: bpy.types.Object) -> list[list[list[float]]]:
        found = []
        for frame in (1, 40, 90):
            scene.frame_set(frame)
            found.append([list(ob.matrix_world @ ob.pose.bones[name].head) for name in BONE_NAMES])
        return found

    choose(first.cloud)
    results = [bpy.ops.effigy.import_motion(filepath=str(file), keep_contacts=False)]
    answer = {"frames": scene.frame_end, "played": heads(first.armature)}
    choose(first.armature)
    results.append(bpy.ops.effigy.export_bvh(filepath=str(folder / "out.bvh"), names="mixamo"))
    choose(second.armature)
    results.append(bpy.ops.effigy.import_motion(filepath=str(folder / "out.bvh"), keep_contacts=False))
    answer["again"] = heads(second.armature)
    choose(second.armature, first.armature)
    results.append(bpy.ops.effigy.copy_motion(keep_contacts=False))
    answer["copied"] = heads(second.armature)
    (folder / "bad.bvh").write_text("no motion")
    before = second.armature.animation_data.action.name
    try:
        bpy.ops.effigy.import_motion(filepath=str(folder / "bad.bvh"))
        refused = ""
    except RuntimeError as error:
        refused = str(error)
    answer |= {"refused": refused, "kept": second.armature.animation_data.action.name == before}
    blender_addon.unregister()
    return answer | {"finished": [result == {"FINISHED"} for result in results]}


def splat_files(folder: Path) -> dict[str, Any]:
    """Import of every format by the operator, edits, and export again."""
    blender_addon.register()
    wild = random_cloud(15)
    clean = replace(
        wild, positions_m=np.clip(wild.positions_m, -3, 3), scales_m=np.minimum(wild.scales_m, 0.5),
        opacities=np.maximum(wild.opacities, 0.01),
    )  # fmt: skip
    far = np.array(clean.positions_m)
    far[5] = 1e4
    write_splats(folder / "in.ply", replace(clean, positions_m=far))
    counts: dict[str, int] = {}

    def imported(name: str, **options: Any) -> bpy.types.Object:
        bpy.ops.effigy.import_splats(directory=str(folder), files=[{"name": name}], **options)
        ob = bpy.context.view_layer.objects.active
        counts[name] = len(ob.data.points)
        return ob

    ob = imported("in.ply")
    answer: dict[str, Any] = {"dropped": len(clean) - counts["in.ply"]}
    results = []
    for suffix in (".ply", ".compressed.ply", ".spz", ".glb", ".splat"):
        results.append(bpy.ops.effigy.export_splats(filepath=str(folder / f"out{suffix}"), format=suffix))
    for suffix in (".ply", ".compressed.ply", ".spz", ".glb", ".splat"):
        back = imported(f"out{suffix}")
        error = np.abs(read_cloud(back.data).positions_m - read_cloud(ob.data).positions_m)
        answer[f"error{suffix}"] = float(np.sort(error.max(axis=1))[-2]) if suffix != ".compressed.ply" else 0.0
        bpy.data.objects.remove(back)
    few = imported("in.ply", budget=100, degree=1)
    answer["few"] = [counts["in.ply"], read_cloud(few.data).degree]
    bpy.data.objects.remove(few)

    def choose(*objects: bpy.types.Object) -> None:
        for other in bpy.context.view_layer.objects:
            other.select_set(other in objects)
        bpy.context.view_layer.objects.active = objects[0]

    mesh = bpy.data.meshes.new("box")
    mesh.from_pydata([(x, y, z) for x in (0, 9) for y in (-9, 9) for z in (-9, 9)], [], [])
    box = bpy.data.objects.new("box", mesh)
    bpy.context.scene.collection.objects.link(box)
    choose(ob, box)
    results.append(bpy.ops.effigy.crop())
    answer["lowest_x"] = float(read_cloud(ob.data).positions_m[:, 0].min())
    choose(ob)
    before = read_cloud(ob.data)
    ob.location, ob.scale = (1, 2, 3), (2, 2, 2)
    bpy.context.view_layer.update()
    results.append(bpy.ops.effigy.apply_transform())
    after = read_cloud(ob.data)
    answer["applied"] = float(np.abs(after.positions_m - (2 * before.positions_m + [1, 2, 3])).max())
    results.append(bpy.ops.effigy.colour(saturation=0.0))
    answer["grey"] = float(np.ptp(read_cloud(ob.data).sh_dc, axis=1).max())
    results.append(bpy.ops.effigy.clean(opacity=0.5))
    answer["faintest"] = float(read_cloud(ob.data).opacities.min())
    results.append(bpy.ops.effigy.decimate(budget=50))
    answer["left"] = len(ob.data.points)
    answer["display"] = [m.name for m in ob.modifiers]

    cloud, arrays = make_avatar(400)
    objects = insert_avatar("bound", cloud, arrays, "WALK")
    bpy.context.scene.frame_set(9)
    choose(objects.cloud)
    posed = posed_cloud(objects.cloud).positions_m
    strong = read_cloud(objects.cloud.data).opacities >= np.median(cloud.opacities)
    results.append(bpy.ops.effigy.clean(opacity=float(np.median(cloud.opacities)), floaters=False))
    answer["still_bound"] = float(np.abs(posed_cloud(objects.cloud).positions_m - posed[strong]).max())
    (folder / "broken.spz").write_bytes(b"nothing")
    try:
        imported("broken.spz")
        answer["refused"] = ""
    except RuntimeError as error:
        answer["refused"] = str(error)
    blender_addon.unregister()
    return answer | {"counts": counts, "finished": [result == {"FINISHED"} for result in results]}


def arrival(folder: Path) -> dict[str, Any]:
    """Finished jobs come into the scene by the timer; one whose files are damaged is said and stops nothing."""
    os.environ["EFFIGY_BACKEND_PYTHON"] = sys.executable
    blender_addon.register()
    running = session.current()
    queue = running.jobs(bpy.context)
    running.jobs(bpy.context)
    answer: dict[str, Any] = {"ticks": bpy.app.timers.is_registered(running._timer), "before": len(bpy.data.objects)}
    for name in ("whole", "damaged"):
        place = folder / name
        write_synthetic_bundle(place / "result", 300)
        (place / "request.json").write_text(json.dumps({"name": "holiday photo.jpg"}))
        made = {"method": "body", "request": {"preset": "fast"}, "generators": ["photo only"], "warnings": ["dark"]}
        (place / "result" / "result.json").write_text(json.dumps(made) if name == "whole" else "{")
        content: Future[Any] = Future()
        content.set_result(read_bundle(place / "result"))
        job = Job(name, place, "body", {}, "input.png", "done")
        running.arriving[name] = session.Loaded(job, content)
        again = running._timer()
        rigs = [ob for ob in bpy.data.objects if ob.type == "ARMATURE"]
        answer[name] = {
            "rigs": [ob.name for ob in rigs], "problem": running.problems.get(name, ""),
            "waiting": len(running.arriving), "again": again, "kept": (place / "keep").is_file(),
        }  # fmt: skip
    answer["made_by"] = rigs[0]["effigy_made_by"]
    bpy.context.view_layer.objects.active = rigs[0]
    answer["request"] = [str(part) for part in remembered_request(rigs[0])]
    timer = running._timer
    blender_addon.unregister()
    return answer | {"jobs": len(queue.jobs), "ticks_after": bpy.app.timers.is_registered(timer)}


def painted_photo(folder: Path) -> dict[str, Any]:
    """A picture with unsaved paint is used as it looks, and stays unsaved."""
    blender_addon.register()
    path = folder / "photo.png"
    picture = bpy.data.images.new("photo", 8, 8)
    picture.save(filepath=str(path))
    image = bpy.data.images.load(str(path))
    untouched = str(photo_file(image))
    image.pixels[0] = 1.0
    written = photo_file(image)
    red = bpy.data.images.load(str(written)).pixels[0]
    state = {"path": image.filepath, "unsaved": image.is_dirty, "red": red, "untouched": untouched}
    blender_addon.unregister()
    return state | {"written": str(written), "original": str(path)}


def main() -> int:
    question: Callable[[Path], dict[str, Any]] = globals()[sys.argv[1]]
    empty_file()
    print("ANSWER " + json.dumps(question(Path(sys.argv[2]))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
