"""Do the learned controls of a saved avatar work without the add-on? Needs bpy and numpy, nothing of Effigy.

    python check_controls.py controls.blend bundle_folder cases.npz out.npz [link]

Plays frames 1 and 10 of the file's action, then poses the bones and sets the sliders as cases.npz says, and writes the
evaluated clouds. With `link` the avatar is linked into a new file and overridden, and that file is saved and opened
again before anything is read. Prints one JSON line with what else must hold.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import bpy
import numpy as np
from check_deform import python_drivers, set_pose

ATTRIBUTES = (("position", 3), ("scale", 3), ("rotation", 4), ("radiance:base", 4))
KEYS = {"FLOAT_VECTOR": "vector", "QUATERNION": "value", "FLOAT_COLOR": "color", "FLOAT4": "vector"}


def main() -> int:
    blend, bundle, cases_file, out = sys.argv[1:5]
    linked = len(sys.argv) > 5
    bpy.context.preferences.filepaths.use_scripts_auto_execute = False
    cases = dict(np.load(cases_file, allow_pickle=False))
    report: dict[str, Any] = {"version": bpy.app.version_string}
    if linked:
        path = Path(out).with_suffix(".blend")
        link(Path(blend), path)
        armature, _ = parts()
        # A slider that is set in the overriding file has to be there when it is opened again.
        armature["idle"] = 0.5
        bpy.ops.wm.save_as_mainfile(filepath=str(path))
        bpy.ops.wm.open_mainfile(filepath=str(path))
        armature, _ = parts()
        report |= {"overridden": armature.override_library is not None, "kept": armature["idle"]}
        armature["idle"] = 0.0
        armature.update_tag()
    else:
        bpy.ops.wm.open_mainfile(filepath=blend)
    armature, splats = parts()
    splats.modifiers["Display"].show_viewport = False
    report["addons"] = [name for name in bpy.context.preferences.addons.keys() if "effigy" in name]
    report["python_drivers"] = python_drivers()
    found = {}
    for frame in (1, 10):
        bpy.context.scene.frame_set(frame)
        found |= {f"frame{frame}:{key}": value for key, value in evaluated(splats, report).items()}
    armature.animation_data.action = None
    arrays = dict(np.load(f"{bundle}/avatar.npz", allow_pickle=False))
    for case in range(len(cases["poses"])):
        for name, value in zip(cases["sliders"], cases["values"][case], strict=True):
            armature[str(name)] = float(value)
        face = {"jawOpen": 0.3} if case else {}
        set_pose(armature, arrays, cases["poses"][case], face, np.zeros(3))
        found |= {f"case{case}:{key}": value for key, value in evaluated(splats, report).items()}
    np.savez(out, **found)
    print("ANSWER " + json.dumps(report))
    return 0


def parts() -> tuple[bpy.types.Object, bpy.types.Object]:
    """Armature and cloud of the scene."""
    objects = bpy.context.scene.objects
    return next(ob for ob in objects if ob.type == "ARMATURE"), next(ob for ob in objects if ob.type == "POINTCLOUD")


def link(blend: Path, path: Path) -> None:
    """A new file in which the avatar of another one is linked and overridden."""
    bpy.ops.wm.read_homefile(use_factory_startup=True)
    bpy.data.batch_remove(list(bpy.data.objects))
    bpy.ops.wm.save_as_mainfile(filepath=str(path))
    with bpy.data.libraries.load(str(blend), link=True) as (source, target):
        target.collections = [name for name in source.collections if name.startswith("Effigy")]
    scene = bpy.context.scene
    collection = target.collections[0]
    scene.collection.children.link(collection)
    override = collection.override_hierarchy_create(scene, bpy.context.view_layer, do_fully_editable=True)
    assert override is not None
    if collection.name in scene.collection.children and collection.library is not None:
        scene.collection.children.unlink(collection)


def evaluated(splats: bpy.types.Object, report: dict[str, Any]) -> dict[str, np.ndarray]:
    """Attributes of the cloud as it is seen."""
    data = splats.evaluated_get(bpy.context.evaluated_depsgraph_get()).data
    report["types"] = {name: data.attributes[name].data_type for name, _ in ATTRIBUTES}
    report["carried"] = [a.name for a in data.attributes if a.name.startswith("control_")]
    out = {}
    for name, width in ATTRIBUTES:
        attribute = data.attributes[name]
        values = np.empty(len(data.points) * width, np.float32)
        attribute.data.foreach_get(KEYS[attribute.data_type], values)
        out[name] = values.reshape(-1, width)
    return out


if __name__ == "__main__":
    sys.exit(main())
