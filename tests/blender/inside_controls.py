"""Learned controls inside Blender: `python inside_controls.py BUNDLE BLEND` imports, tries, keys and saves an avatar.

Prints one JSON line. The assertions are in test_controls.py.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

import bpy
import numpy as np

import blender_addon
from blender_addon.cloud.create import read_attribute
from blender_addon.cloud.edit import keep_points
from blender_addon.rig.controls import slider_groups
from tests.blender.synthetic import SLIDERS


def rig() -> bpy.types.Object:
    return next(ob for ob in bpy.data.objects if ob.type == "ARMATURE")


def seen() -> dict[str, np.ndarray]:
    """Positions and radiance of the cloud."""
    cloud = next(ob for ob in bpy.data.objects if ob.type == "POINTCLOUD")
    bpy.context.view_layer.update()
    data = cloud.evaluated_get(bpy.context.evaluated_depsgraph_get()).data
    return {name: read_attribute(data, name) for name in ("position", "radiance:base")}


def distance(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> float:
    return max(float(np.abs(a[name] - b[name]).max()) for name in a)


def sliders(answer: dict[str, Any]) -> None:
    """Properties with ranges in groups; moved by hand, reset by the operator, undone and done again."""
    ob = rig()
    answer["groups"] = slider_groups(ob)
    answer["ranges"] = {name: [ob.id_properties_ui(name).as_dict()[key] for key in ("min", "max")] for name in SLIDERS}
    drivers = [
        c for o in (*bpy.data.objects, *bpy.data.shape_keys) if o.animation_data for c in o.animation_data.drivers
    ]
    answer["invalid"] = [c.data_path for c in drivers if not c.driver.is_valid or c.driver.type == "SCRIPTED"]
    rest = seen()
    bpy.ops.ed.undo_push(message="before")
    for name, value in SLIDERS.items():
        ob[name] = value
    ob.update_tag()
    bpy.ops.ed.undo_push(message="sliders")
    moved = seen()
    answer["moved"] = distance(rest, moved)
    bpy.ops.ed.undo()
    answer["undone"] = distance(rest, seen())
    bpy.ops.ed.redo()
    answer["redone"] = distance(moved, seen())
    bpy.context.view_layer.objects.active = rig()
    bpy.ops.effigy.mirror_pose(only_face=True)
    answer["swapped"] = [rig()[f"Skin tone.{side}"] for side in "LR"]
    bpy.ops.effigy.reset_controls()
    answer["reset"] = distance(rest, seen())


def mirror(answer: dict[str, Any], path: Path) -> None:
    """A lopsided pose, flipped by Blender: what is seen is kept for the comparison with numpy."""
    ob = rig()
    bpy.context.view_layer.objects.active = ob
    ob.animation_data.action = None
    rng = np.random.default_rng(2)
    for name in ("upper_arm.L", "forearm.L", "thigh.R", "spine.001"):
        if name in ob.pose.bones:
            ob.pose.bones[name].rotation_quaternion = (1.0, *rng.normal(0, 0.2, 3))
    bpy.context.view_layer.update()
    bpy.ops.object.mode_set(mode="POSE")
    bpy.ops.pose.select_all(action="SELECT")
    bpy.ops.pose.copy()
    bpy.ops.pose.paste(flipped=True)
    bpy.ops.object.mode_set(mode="OBJECT")
    found = seen()
    turns = {bone["smplx_joint"]: list(ob.pose.bones[bone.name].rotation_quaternion) for bone in ob.data.bones
             if "smplx_joint" in bone}  # fmt: skip
    matrices = {bone["smplx_joint"]: np.array(bone.matrix_local)[:3, :3].tolist() for bone in ob.data.bones
                if "smplx_joint" in bone}  # fmt: skip
    answer["mirror"] = {"turns": turns, "rest": matrices}
    np.savez(path, positions=found["position"], radiance=found["radiance:base"])
    for bone in ob.pose.bones:
        bone.rotation_quaternion = (1.0, 0.0, 0.0, 0.0)


def crop(answer: dict[str, Any]) -> None:
    """Every third Gaussian, with the sliders at work: what is left is where it was."""
    cloud = next(ob for ob in bpy.data.objects if ob.type == "POINTCLOUD")
    bpy.context.scene.frame_set(10)
    before = seen()
    kept = np.arange(len(cloud.data.points)) % 3 == 0
    keep_points(cloud, kept)
    answer["cropped"] = distance({name: values[kept] for name, values in before.items()}, seen())


def key(blend: Path) -> None:
    """Sliders keyed at frames 1 and 10 over the T-pose, and the file."""
    ob = rig()
    ob.animation_data.action = bpy.data.actions["T-pose"]
    slots = getattr(bpy.data.actions["T-pose"], "slots", None)
    if slots and ob.animation_data.action_slot is None:
        ob.animation_data.action_slot = slots[0]
    for name, value in SLIDERS.items():
        for frame, share in ((1, 0.5), (10, 1.0)):
            ob[name] = value * share
            ob.keyframe_insert(f'["{name}"]', frame=frame)
    bpy.context.scene.frame_set(1)
    bpy.ops.wm.save_as_mainfile(filepath=str(blend), compress=True)


def main() -> int:
    bundle, blend = Path(sys.argv[1]), Path(sys.argv[2])
    bpy.ops.wm.read_homefile(use_factory_startup=True)
    bpy.data.batch_remove(list(bpy.data.objects))
    blender_addon.register()
    answer: dict[str, Any] = {}
    try:
        bpy.ops.effigy.import_avatar(directory=str(bundle), pose="REST")
        cloud = next(ob for ob in bpy.data.objects if ob.type == "POINTCLOUD")
        cloud.modifiers["Display"].show_viewport = False
        sliders(answer)
        mirror(answer, blend.with_suffix(".mirror.npz"))
        key(blend)
        crop(answer)
    finally:
        blender_addon.unregister()
    print("ANSWER " + json.dumps(answer))
    return 0


if __name__ == "__main__":
    sys.exit(main())
