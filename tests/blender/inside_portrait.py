"""A portrait's bundle in Blender: `python inside_portrait.py BUNDLE` imports it, blinks, turns the head, and tells."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

import bpy
import numpy as np

import blender_addon
from blender_addon.shared.avatar import read_bundle


def places() -> np.ndarray:
    """[N, 3] the Gaussians as they are seen, Blender's axes."""
    cloud = next(ob for ob in bpy.data.objects if ob.type == "POINTCLOUD")
    data = cloud.evaluated_get(bpy.context.evaluated_depsgraph_get()).data
    out = np.empty((len(data.points), 3), np.float32)
    data.attributes["position"].data.foreach_get("vector", out.ravel())
    return out


def main() -> int:
    """Import, move, measure."""
    blender_addon.register()
    try:
        answer = measured()
    finally:
        blender_addon.unregister()  # its timers would keep the process alive
    print("ANSWER " + json.dumps(answer))
    return 0


def measured() -> dict[str, Any]:
    """What moves, and what does not."""
    bpy.ops.effigy.import_avatar(directory=sys.argv[1])
    rig = bpy.context.view_layer.objects.active
    cloud_object = next(ob for ob in bpy.data.objects if ob.type == "POINTCLOUD")
    cloud_object.modifiers["Display"].show_viewport = False  # it turns the points into discs
    rig.animation_data.action = None
    for name in list(rig.keys()):
        if isinstance(rig[name], float):
            rig[name] = 0.0
    for bone in rig.pose.bones:
        bone.matrix_basis.identity()
    rig.update_tag()
    bpy.context.view_layer.update()
    rest = places()
    cloud, avatar = read_bundle(sys.argv[1])
    chest = avatar.joints_m[9, 1]
    low = cloud.positions_m[:, 1] < chest + 0.1

    def moved() -> np.ndarray:
        rig.update_tag()
        bpy.context.view_layer.update()
        return np.linalg.norm(places() - rest, axis=1)

    rig["eyeBlinkLeft"] = rig["eyeBlinkRight"] = 1.0
    blink = moved()
    rig["eyeBlinkLeft"] = rig["eyeBlinkRight"] = 0.0
    rig["jawOpen"] = 0.6
    jaw = moved()
    rig["jawOpen"] = 0.0
    head = rig.pose.bones["head"]
    head.rotation_mode = "XYZ"
    head.rotation_euler = (0, 0.5, 0)
    turn = moved()
    eyes = avatar.joints_m[[23, 24], 1].mean()
    return {
        "count": [len(rest), len(cloud)],
        "blink_m": float(blink.max()),
        "blink_share": float((blink > 0.001).mean()),
        "blink_far_from_eyes": int(((blink > 0.001) & (abs(cloud.positions_m[:, 1] - eyes) > 0.05)).sum()),
        "jaw_m": float(jaw.max()),
        "turn_m": float(turn.max()),
        "chest_m": float(turn[low].max()),
        "still_share": float((turn < 1e-4).mean()),
    }


if __name__ == "__main__":
    sys.exit(main())
