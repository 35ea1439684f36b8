"""Does a saved rig play its keyed switches without the add-on? `python check_rig.py rig.blend`; needs bpy alone."""

from __future__ import annotations

import json
import sys

import bpy


def main() -> int:
    bpy.context.preferences.filepaths.use_scripts_auto_execute = False
    bpy.ops.wm.open_mainfile(filepath=sys.argv[1])
    armature = next(ob for ob in bpy.data.objects if ob.type == "ARMATURE")
    answer = {"addons": [name for name in bpy.context.preferences.addons.keys() if "effigy" in name]}
    for frame in (1, 10):
        bpy.context.scene.frame_set(frame)
        bones = armature.evaluated_get(bpy.context.evaluated_depsgraph_get()).pose.bones
        answer[str(frame)] = {name: list(bones[name].head) for name in ("hand.L", "index_03.L")}
    shapes = {bone.custom_shape.name for bone in armature.pose.bones if bone.custom_shape}
    answer["shapes"] = sorted(shapes)
    print("ANSWER " + json.dumps(answer))
    return 0


if __name__ == "__main__":
    sys.exit(main())
