"""A learned avatar inside Blender: `python inside_learned.py BUNDLE OUT.npz MOTION...` plays motion files on it.

For every file and some frames: where the evaluated Gaussians are, and the pose that the file gave. The assertions are
in test_learned.py.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

import bpy
import numpy as np

import blender_addon
from blender_addon.cloud.create import read_attribute
from blender_addon.motion.files import fit_motion, load_motion
from blender_addon.motion.retarget import RetargetSettings
from blender_addon.rig.armature import rest_joints

FRAMES = 5


def main() -> int:
    bundle, out, files = Path(sys.argv[1]), Path(sys.argv[2]), [Path(text) for text in sys.argv[3:]]
    bpy.ops.wm.read_homefile(use_factory_startup=True)
    bpy.data.batch_remove(list(bpy.data.objects))
    blender_addon.register()
    found: dict[str, np.ndarray] = {}
    try:
        bpy.ops.effigy.import_avatar(directory=str(bundle), pose="REST")
        cloud = next(ob for ob in bpy.data.objects if ob.type == "POINTCLOUD")
        rig = next(ob for ob in bpy.data.objects if ob.type == "ARMATURE")
        cloud.modifiers["Display"].show_viewport = False
        scene = bpy.context.scene
        scene.render.fps, scene.frame_start = 24, 1
        for file in files:
            bpy.context.view_layer.objects.active = rig
            assert bpy.ops.effigy.import_motion(filepath=str(file)) == {"FINISHED"}
            motion = fit_motion(file.stem, load_motion(file), rest_joints(rig), RetargetSettings(fps=24.0))
            chosen = np.linspace(0, len(motion.pose) - 1, FRAMES).astype(int)
            positions = []
            for number in chosen:
                scene.frame_set(int(number) + 1)
                data = cloud.evaluated_get(bpy.context.evaluated_depsgraph_get()).data
                positions.append(read_attribute(data, "position"))
            found[f"{file.stem}:position"] = np.stack(positions)
            found[f"{file.stem}:pose"] = motion.pose[chosen]
            found[f"{file.stem}:translation"] = motion.translation_m[chosen]
    finally:
        blender_addon.unregister()
    np.savez(out, **found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
