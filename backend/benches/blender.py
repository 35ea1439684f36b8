"""What the add-on does inside Blender, against Blender itself or against the barest way to do it.

The backend never imports bpy: each bench starts a Python that has it, with a script of tests/blender that measures and
prints one line. EFFIGY_BPY_PYTHON names the interpreter; without it this one is taken, which has bpy in a development
environment.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from backend.benches.formats import _cloud
from backend.benches.measuring import Bench, Options, Row, Times, absent_row, time_row, value_row
from blender_addon.shared.formats.ply import write_ply

_SCRIPTS = Path(__file__).resolve().parent.parent.parent / "tests" / "blender"
_MARK = "MEASURED "
_MILLION = 1_000_000
_CPU = "software drawing on the CPU"


class _NoBlenderError(RuntimeError):
    """One line with the reason."""


def engine_render_100k(options: Options) -> list[Row]:
    """F12 of 100k Gaussians at 480 x 640 with the splat engine; Cycles draws them as ellipsoids with one sample."""
    name, against = "engine_render_100k", "Cycles, 1 sample, the same cloud as ellipsoids"
    try:
        seen = _measure("measure_display.py", "engine", 100_000, 480, 640, options.repeats or 7)
    except _NoBlenderError as error:
        return [absent_row(name, "ms", against, str(error))]
    note = f"at most 700 ms is asked for; first render {seen['first']:.2f} s; {_CPU}; Blender {seen['blender_version']}"
    return [time_row(name, Times(tuple(seen["engine"])), against, Times(tuple(seen["cycles"])), note)]


def viewport_redraw_200k(options: Options) -> list[Row]:
    """What the viewport's draw handler does before it draws 200k Gaussians that all moved: read, send, sort."""
    name = "viewport_redraw_200k"
    try:
        seen = _measure("measure_display.py", "viewport", 200_000, options.repeats or 20)
    except _NoBlenderError as error:
        return [absent_row(name, "ms", "", str(error))]
    times = Times(tuple(seen["all"]))
    parts = ", ".join(f"{key} {1e3 * min(seen[key]):.2g}" for key in ("find", "read_and_send", "sort"))
    note = f"at most 10 ms is asked for; median {times.median_ms:.3g}; {parts} ms; Blender {seen['blender_version']}"
    return [value_row(name, times.least_ms, "ms", "", None, len(times.seconds), note)]


def pointcloud_import_1m(options: Options) -> list[Row]:
    """A PLY of 1M Gaussians of degree 3 into a point cloud, by the operators, and the memory that it takes."""
    name, against = "pointcloud_import_1m", "Blender's own PLY import (a mesh of loose points)"
    path = options.scratch / "cloud.ply"
    write_ply(path, _cloud(_MILLION, 3))
    try:
        seen = _measure("measure_clouds.py", "import", path, options.repeats or 5)
        memory = _measure("measure_clouds.py", "memory", path)
    except _NoBlenderError as error:
        return [absent_row(name, "ms", against, str(error))]
    ours, theirs = Times(tuple(seen["ours"])), Times(tuple(seen["blender"]))
    factor = ours.least_ms / theirs.least_ms
    size = path.stat().st_size
    note = f"{factor:.2f} times as long, at most 2 is asked for; Blender {seen['blender_version']}"
    rows = [time_row(name, ours, against, theirs, note)]
    note = f"{memory['added'] / size:.2f} times the file, at most 1.5 is asked for; a fresh process"
    return [*rows, value_row(f"{name}_memory", memory["added"] / 1e6, "MB", "size of the file", size / 1e6, 1, note)]


def pointcloud_export_1m(options: Options) -> list[Row]:
    """The same cloud from Blender into a PLY."""
    name = "pointcloud_export_1m"
    path, out = options.scratch / "cloud.ply", options.scratch / "out.ply"
    write_ply(path, _cloud(_MILLION, 3))
    try:
        seen = _measure("measure_clouds.py", "export", path, out, options.repeats or 5)
    except _NoBlenderError as error:
        return [absent_row(name, "ms", "", str(error))]
    times = Times(tuple(seen["ours"]))
    note = f"at most 3000 ms is asked for; median {times.median_ms:.4g}; Blender {seen['blender_version']}"
    return [value_row(name, times.least_ms, "ms", "", None, len(times.seconds), note)]


def _frame_set(count: int, options: Options) -> list[Row]:
    """A frame of a walking avatar against the bare prototype of its binding, and with 24 controls that all move."""
    name = f"frame_set_{count // 1000}k"
    against = "armature, proxy and binding nodes alone"
    try:
        seen = _measure("measure_frames.py", count, options.repeats or 60)
    except _NoBlenderError as error:
        return [absent_row(name, "ms", against, str(error))]
    bare, ours = Times(tuple(seen["bare"])), Times(tuple(seen["ours"]))
    factor = ours.least_ms / bare.least_ms
    note = f"{factor:.2f} times as long, at most 1.15 is asked for; Blender {seen['blender_version']}"
    face, idle, learned = (Times(tuple(seen[key])) for key in ("face", "idle", "learned"))
    return [
        time_row(name, ours, against, bare, note),
        time_row(f"{name}_24_controls", learned, "the same avatar, all at 0", idle, "learned, positions, all keyed"),
        time_row(f"{name}_24_actions", face, "the same avatar, none keyed", ours, "facial actions, all keyed"),
    ]


def frame_set_50k(options: Options) -> list[Row]:
    """50k Gaussians."""
    return _frame_set(50_000, options)


def frame_set_200k(options: Options) -> list[Row]:
    """200k Gaussians."""
    return _frame_set(200_000, options)


def _measure(script: str, *words: object) -> dict[str, Any]:
    """Run a script of tests/blender in a Python with bpy.

    Raises:
        _NoBlenderError: If there is no such Python, or the script fails.
    """
    python = os.environ.get("EFFIGY_BPY_PYTHON") or sys.executable
    path = _SCRIPTS / script
    if not path.is_file():
        raise _NoBlenderError(f"{path} is not there: this bench needs the repository")
    command = [python, str(path), *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith(_MARK)]
    if done.returncode or not lines:
        last = (done.stderr.strip().splitlines() or ["nothing was measured"])[-1]
        raise _NoBlenderError(f"{python}: {last}; set EFFIGY_BPY_PYTHON to a Python with bpy")
    return json.loads(lines[-1].removeprefix(_MARK))


BENCHES: dict[str, Bench] = {
    "pointcloud_import_1m": pointcloud_import_1m,
    "pointcloud_export_1m": pointcloud_export_1m,
    "frame_set_50k": frame_set_50k,
    "frame_set_200k": frame_set_200k,
    "engine_render_100k": engine_render_100k,
    "viewport_redraw_200k": viewport_redraw_200k,
}
