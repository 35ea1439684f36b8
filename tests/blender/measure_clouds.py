"""Times of point clouds in and out of Blender, for `python -m backend bench`. Prints one JSON line.

python measure_clouds.py import FILE REPEATS       seconds of our importer and of Blender's own, in turns
python measure_clouds.py memory FILE               most bytes that our importer adds to a fresh process
python measure_clouds.py export FILE OUT REPEATS   seconds to write the imported cloud
"""

from __future__ import annotations

import gc
import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

import bpy

import blender_addon


def ours(path: str) -> None:
    """File > Import > Gaussian Splats with its defaults."""
    assert bpy.ops.effigy.import_splats(filepath=path) == {"FINISHED"}


def blenders_own(path: str) -> None:
    """File > Import > Stanford PLY with its defaults."""
    assert bpy.ops.wm.ply_import(filepath=path) == {"FINISHED"}


def clear() -> None:
    """Remove what was imported, outside the clock."""
    for blocks in (bpy.data.objects, bpy.data.meshes, bpy.data.pointclouds, bpy.data.node_groups, bpy.data.materials):
        bpy.data.batch_remove(list(blocks))
    gc.collect()


def measure_import(path: str, repeats: str) -> dict[str, object]:
    """In turns, one round to warm up."""
    times: dict[str, list[float]] = {"ours": [], "blender": []}
    for turn in range(int(repeats) + 1):
        for name, run in (("ours", ours), ("blender", blenders_own)):
            start = time.perf_counter()
            run(path)
            seconds = time.perf_counter() - start
            clear()
            if turn:
                times[name].append(seconds)
    return times


def measure_memory(path: str) -> dict[str, object]:
    """The high-water mark of this process above what it held before (Linux)."""
    before = _status("VmRSS")
    ours(path)
    return {"added": _status("VmHWM") - before, "held": _status("VmRSS") - before}


def measure_export(path: str, out: str, repeats: str) -> dict[str, object]:
    """As posed, with defaults."""
    ours(path)
    times = []
    for _ in range(int(repeats) + 1):
        start = time.perf_counter()
        assert bpy.ops.effigy.export_splats(filepath=out) == {"FINISHED"}
        times.append(time.perf_counter() - start)
    return {"ours": times[1:]}


def _status(key: str) -> int:
    for line in Path("/proc/self/status").read_text("ascii").splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    raise KeyError(key)


def main() -> int:
    what, *words = sys.argv[1:]
    bpy.ops.wm.read_homefile(use_factory_startup=True)
    blender_addon.register()
    run = {"import": measure_import, "memory": measure_memory, "export": measure_export}[what]
    result = run(*words)
    blender_addon.unregister()
    print("MEASURED " + json.dumps({"blender_version": bpy.app.version_string, **result}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
