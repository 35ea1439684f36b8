"""Edits of clouds by the operators: `python inside_edit.py FOLDER` prints one JSON line, for test_edit.py."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

import bpy
import numpy as np

import blender_addon
from blender_addon.cloud.create import create_cloud_object, read_attribute, read_cloud, write_attributes
from blender_addon.cloud.display import add_display
from blender_addon.cloud.edit import posed_cloud, posed_positions
from blender_addon.rig.assemble import insert_avatar
from blender_addon.shared.formats import write_splats
from blender_addon.shared.gaussians import GaussianCloud
from tests.blender.inside_export import choose, data_counts, refused
from tests.blender.synthetic import make_avatar


def some_cloud(seed: int, coefficients: int = 15, count: int = 500) -> GaussianCloud:
    rng = np.random.default_rng(seed)
    turns = rng.normal(size=(count, 4))
    return GaussianCloud(
        rng.uniform(-1, 1, (count, 3)), rng.uniform(0.01, 0.05, (count, 3)),
        turns / np.linalg.norm(turns, axis=1, keepdims=True), rng.uniform(0.1, 0.9, count), rng.normal(size=(count, 3)),
        rng.normal(0, 0.3, (count, coefficients, 3)),
    )  # fmt: skip


def new_cloud(name: str, seed: int, coefficients: int = 15) -> bpy.types.Object:
    ob = create_cloud_object(name, some_cloud(seed, coefficients), bpy.context.scene.collection)
    add_display(ob, bpy.context.scene.collection)
    return ob


def new_avatar(degree_3: bool = True) -> Any:
    cloud, arrays = make_avatar(400)
    if degree_3:
        cloud = replace(cloud, sh_rest=np.random.default_rng(5).normal(0, 0.3, (400, 15, 3)))
    return insert_avatar("bound", cloud, arrays, "WALK")


def shown(ob: bpy.types.Object) -> int:
    """Points that the modifiers leave, the crop's preview included."""
    display = ob.modifiers["Display"]
    display.show_viewport = False
    count = len(ob.evaluated_get(bpy.context.evaluated_depsgraph_get()).data.points)
    display.show_viewport = True
    return count


def crop_box(folder: Path) -> dict[str, Any]:
    """A free cloud that is turned and scaled, and a bound one in its pose, by one box that is moved about."""
    free, avatar = new_cloud("free", 1), new_avatar()
    free.location, free.rotation_euler, free.scale = (0.2, 0.1, 0.9), (0.3, 0.5, 0.7), (0.5, 0.5, 0.7)
    scene = bpy.context.scene
    scene.frame_set(9)
    clouds = (free, avatar.cloud)
    choose(*clouds)
    before = data_counts()
    bpy.ops.effigy.add_crop_box()
    box = bpy.context.view_layer.objects.active
    answer: dict[str, Any] = {"box": [box.type, box.empty_display_type], "all": [shown(ob) for ob in clouds]}
    modifiers = [m.name for m in avatar.cloud.modifiers]
    box.location.z += 0.6
    box.rotation_euler = (0.2, 0.1, 0.5)
    box.scale = (0.5, 0.3, 0.6)
    bpy.context.view_layer.update()
    inside = []
    for ob in clouds:
        to_box = np.array(box.matrix_world.inverted() @ ob.matrix_world)
        points = posed_positions(ob) @ to_box[:3, :3].T + to_box[:3, 3]
        inside.append((np.abs(points) <= 1).all(axis=1))
    answer |= {"inside": [int(mask.sum()) for mask in inside], "preview": [shown(ob) for ob in clouds]}
    bpy.ops.effigy.crop_side(side="INSIDE")
    answer["other_side"] = [shown(ob) for ob in clouds]
    bpy.ops.effigy.crop_side(side="OUTSIDE")
    kept = [posed_cloud(ob).select(mask) for ob, mask in zip(clouds, inside, strict=True)]
    bpy.ops.effigy.apply_crop()
    errors = []
    for ob, expected in zip(clouds, kept, strict=True):
        scene.frame_set(9)
        seen = posed_cloud(ob)
        errors += [
            float(np.abs(getattr(seen, n) - getattr(expected, n)).max())
            for n in ("positions_m", "scales_m", "opacities", "sh_dc", "sh_rest")
        ]
    scene.frame_set(20)
    answer |= {"errors": errors, "moves": float(np.abs(posed_positions(avatar.cloud) - kept[1].positions_m).max())}
    answer["modifiers"] = [modifiers, [m.name for m in avatar.cloud.modifiers]]
    answer["left"] = [a - b for a, b in zip(data_counts(), before, strict=True)]
    answer["one_step"] = all(
        "UNDO" in getattr(bpy.types, f"EFFIGY_OT_{name}").bl_options for name in ("add_crop_box", "apply_crop", "crop")
    )
    choose(*clouds)
    bpy.ops.effigy.add_crop_box()
    left = [len(ob.data.points) for ob in clouds]
    bpy.ops.effigy.cancel_crop()
    answer["cancelled"] = ["Crop Box" in bpy.data.objects, left == [len(ob.data.points) for ob in clouds]]
    choose(bpy.data.objects["free"])
    bpy.ops.effigy.add_crop_box()
    bpy.data.objects["Crop Box"].location = (50, 50, 50)
    bpy.context.view_layer.update()
    answer["nothing_left"] = refused(bpy.ops.effigy.apply_crop)
    answer["still_there"] = len(bpy.data.objects["free"].data.points)
    bpy.data.objects.remove(bpy.data.objects["Crop Box"])
    answer["no_box"] = refused(bpy.ops.effigy.apply_crop)
    bpy.ops.effigy.cancel_crop()
    return answer


def merge(folder: Path) -> dict[str, Any]:
    """Clouds of different degree, turn and size become one; a bound one is refused."""
    first, second = new_cloud("first", 1, 3), new_cloud("second", 2, 15)
    first.location, first.rotation_euler = (1, 0, 0), (0, 0, 1.2)
    second.scale, second.rotation_euler = (2, 2, 2), (0.4, 0, 0)
    bpy.context.view_layer.update()
    choose(first, second)
    bpy.ops.effigy.export_splats(filepath=str(folder / "apart.ply"))
    matrix = np.array(first.matrix_world)
    bpy.ops.effigy.merge()
    bpy.ops.effigy.export_splats(filepath=str(folder / "merged.ply"))
    answer: dict[str, Any] = {
        "objects": sorted(ob.name for ob in bpy.data.objects),
        "clouds": len(bpy.data.pointclouds),
        "stands": float(np.abs(np.array(first.matrix_world) - matrix).max()),
        "degree": read_cloud(first.data).degree,
    }
    avatar = new_avatar()
    choose(first, avatar.cloud)
    answer["bound"] = refused(bpy.ops.effigy.merge)
    answer["bound_transform"] = refused(bpy.ops.effigy.apply_transform)
    answer["untouched"] = float(np.abs(np.array(first.matrix_world) - matrix).max())
    choose(first)
    answer["alone"] = refused(bpy.ops.effigy.merge)
    bpy.ops.effigy.apply_transform()
    bpy.context.view_layer.update()
    bpy.ops.effigy.export_splats(filepath=str(folder / "applied.ply"))
    answer["identity"] = float(np.abs(np.array(first.matrix_world) - np.eye(4)).max())
    return answer


def bound(folder: Path) -> dict[str, Any]:
    """Edits of an avatar's cloud: what is left still follows the rig, and an artist's own attributes come along."""
    avatar = new_avatar()
    ob, scene = avatar.cloud, bpy.context.scene
    scene.frame_set(9)
    count = len(ob.data.points)
    write_attributes(ob.data, {"mine": ("FLOAT", np.arange(count, dtype=np.float32))})
    for kind in ("BOOLEAN", "FLOAT2", "INT8", "BYTE_COLOR"):
        ob.data.attributes.new(f"mine {kind}", kind, "POINT")
    places = posed_positions(ob)
    choose(ob)
    answer: dict[str, Any] = {}
    sides = []
    for name, run in (
        ("clean", lambda: bpy.ops.effigy.clean(opacity=0.5, floaters=False)),
        ("decimate", lambda: bpy.ops.effigy.decimate(budget=100)),
        ("colour", lambda: bpy.ops.effigy.colour(exposure=0.5, warmth=0.3)),
    ):
        run()
        rows = read_attribute(ob.data, "mine").astype(int)
        sides.append(float(np.abs(posed_positions(ob) - places[rows]).max()))
        answer[name] = len(rows)
    answer |= {"moved": sides, "attributes": sorted(a.name for a in ob.data.attributes if a.name.startswith("mine"))}
    answer["bind"] = sorted(a.name for a in ob.data.attributes if a.name.startswith("bind"))
    scene.frame_set(20)
    rows = read_attribute(ob.data, "mine").astype(int)
    answer["follows"] = float(np.abs(posed_positions(ob) - places[rows]).max())
    mesh = bpy.data.meshes.new("ball")
    points = [(x, y, z) for x in (-1, 1) for y in (-1, 1) for z in (1.2, 3)]
    faces = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
    mesh.from_pydata(points, [], faces)
    cutter = bpy.data.objects.new("cutter", mesh)
    scene.collection.objects.link(cutter)
    bpy.context.view_layer.update()
    choose(ob, cutter)
    bpy.ops.effigy.crop(shape="MESH")
    answer["lowest"] = float(posed_positions(ob)[:, 2].min())
    return answer


def sizes(folder: Path) -> dict[str, Any]:
    """Row 24: none and one Gaussian in and out."""
    (folder / "none.ply").write_bytes(
        b"ply\nformat binary_little_endian 1.0\nelement vertex 0\n"
        + b"".join(b"property float %s\n" % n for n in (b"x", b"y", b"z", b"f_dc_0", b"f_dc_1", b"f_dc_2", b"opacity"))
        + b"".join(b"property float %s\n" % n for n in (b"scale_0", b"scale_1", b"scale_2"))
        + b"".join(b"property float rot_%d\n" % k for k in range(4))
        + b"end_header\n"
    )
    before = data_counts()
    answer: dict[str, Any] = {"none": refused(bpy.ops.effigy.import_splats, filepath=str(folder / "none.ply"))}
    answer["nothing"] = data_counts() == before
    write_splats(folder / "one.ply", some_cloud(3, 15, 1))
    bpy.ops.effigy.import_splats(filepath=str(folder / "one.ply"))
    answer["one"] = len(bpy.context.view_layer.objects.active.data.points)
    for suffix in (".ply", ".spz", ".glb"):
        bpy.ops.effigy.export_splats(filepath=str(folder / f"one_out{suffix}"), format=suffix)
    bpy.ops.effigy.decimate(budget=1)
    bpy.ops.effigy.colour(contrast=1.2)
    bpy.ops.effigy.add_crop_box()
    bpy.ops.effigy.apply_crop()
    answer["still_one"] = len(bpy.data.objects["one"].data.points)
    handlers = [cls for cls in bpy.types.FileHandler.__subclasses__() if cls.__name__.startswith("EFFIGY")]
    answer["dropped"] = sorted({ext for cls in handlers for ext in cls.bl_file_extensions.split(";")})
    return answer


def main() -> int:
    folder = Path(sys.argv[1])
    answer = {}
    for question in (crop_box, merge, bound, sizes):
        bpy.ops.wm.read_homefile(use_factory_startup=True)
        bpy.data.batch_remove(list(bpy.data.objects))
        blender_addon.register()
        answer[question.__name__] = question(folder)
        blender_addon.unregister()
    print("ANSWER " + json.dumps({"version": bpy.app.version_string, **answer}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
