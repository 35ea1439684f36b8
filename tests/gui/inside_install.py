"""Runs in a real Blender with its interface: shows the add-on's preferences, then reports the set-up twice a second.

The test clicks from outside and reads state.json; nothing here presses a button of the set-up.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import bpy

OUT = Path("/out")
MODULE = "bl_ext.user_default.effigy"


def prepare() -> None:
    """The preferences of the add-on, unfolded, in the place of the 3D view."""
    bpy.ops.preferences.addon_show(module=MODULE)
    for window in list(bpy.context.window_manager.windows)[1:]:
        with bpy.context.temp_override(window=window):
            bpy.ops.wm.window_close()
    area = max(bpy.context.window_manager.windows[0].screen.areas, key=lambda area: area.width * area.height)
    area.type = "PREFERENCES"
    bpy.app.timers.register(report, first_interval=0.5, persistent=True)


def report() -> float:
    """Write what an observer wants to know."""
    from bl_ext.user_default.effigy.blender_addon import session, setup

    now, queue = setup.current(), session.current().queue
    there = now.environment(bpy.context)
    progress = now.progress
    rigs = [ob for ob in bpy.data.objects if ob.type == "ARMATURE"]
    area = next((a for a in bpy.context.window_manager.windows[0].screen.areas if a.type == "PREFERENCES"), None)
    regions = {r.type: [r.x, r.y, r.width, r.height] for r in area.regions} if area is not None else {}
    state = {
        "version": bpy.app.version_string,
        "python": list(sys.version_info[:2]),
        "online": bpy.app.online_access,
        "installing": now.is_installing,
        "progress": [progress.state, progress.step, progress.fraction, progress.text] if progress else [],
        "environment": [there.accelerator, there.python, there.tool, str(there.interpreter)] if there else [],
        "findings": now.findings,
        "models": len(now.models),
        "jobs": [[job.job_id, job.status, job.text] for job in queue.jobs] if queue else [],
        "rigs": [rig.name for rig in rigs],
        "splats": [len(ob.data.points) for ob in bpy.data.objects if ob.type == "POINTCLOUD"],
        "regions": regions,
    }
    part = OUT / "state.json.part"
    part.write_text(json.dumps(state), "utf-8")
    part.replace(OUT / "state.json")
    if (OUT / "make").exists():
        (OUT / "make").unlink()
        make()
    return 0.5


def make() -> None:
    """Ask for a job as the panel's button does, when the test says so."""
    scene = bpy.context.scene
    scene.effigy.image = bpy.data.images.load(os.environ["EFFIGY_PHOTO"])
    scene.effigy.body.preset = "fast"
    with bpy.context.temp_override(window=bpy.context.window_manager.windows[0]):
        bpy.ops.effigy.generate("EXEC_DEFAULT", True)


bpy.context.preferences.view.show_splash = False
bpy.app.timers.register(prepare, first_interval=3.0)
