"""Splat files through the import and export operators: `python inside_clouds.py FOLDER`, for test_clouds.py.

Imports each `in_*.ply` of the folder, saves what the scene then holds as npz, moves the object, and exports it.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

import bpy
import numpy as np
from mathutils import Euler, Matrix

import blender_addon
from blender_addon.cloud.create import read_cloud

FIELDS = ("positions_m", "scales_m", "rotations_wxyz", "opacities", "sh_dc", "sh_rest")
PLACE = Matrix.LocRotScale((1.0, 2.0, 3.0), Euler((0.3, -0.8, 1.9)), (2.0, 2.0, 2.0))


def main() -> int:
    folder = Path(sys.argv[1])
    bpy.ops.wm.read_homefile(use_factory_startup=True)
    blender_addon.register()
    for path in sorted(folder.glob("in_*.ply")):
        bpy.data.batch_remove(list(bpy.data.objects))
        assert bpy.ops.effigy.import_splats(filepath=str(path), degree=4) == {"FINISHED"}
        ob = bpy.context.active_object
        cloud = read_cloud(ob.data)
        np.savez(folder / f"{path.stem}.npz", **{name: getattr(cloud, name) for name in FIELDS})
        out = folder / path.name.replace("in_", "out_")
        assert bpy.ops.effigy.export_splats(filepath=str(out)) == {"FINISHED"}
        ob.matrix_world = PLACE
        bpy.context.view_layer.update()
        assert bpy.ops.effigy.export_splats(filepath=str(out.with_stem(f"{out.stem}_moved"))) == {"FINISHED"}
    np.save(folder / "place.npy", np.array(PLACE))
    blender_addon.unregister()
    return 0


if __name__ == "__main__":
    sys.exit(main())
