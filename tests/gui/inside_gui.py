"""Runs in a real Blender with its interface (`blender -P`): prepares the scene, then reports its state twice a second.

The test clicks and types from outside and reads state.json; nothing here presses a button.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import bpy

OUT = Path("/out")


def view() -> dict[str, Any]:
    """Window, area and region of the 3D view."""
    window = bpy.context.window_manager.windows[0]
    area = next(a for a in window.screen.areas if a.type == "VIEW_3D")
    return {"window": window, "area": area, "region": next(r for r in area.regions if r.type == "WINDOW")}


def prepare() -> None:
    """An artist's scene: the default cube moved (an undo step of the user), a folder of photos and the sidebar open."""
    window = view()["window"]
    with bpy.context.temp_override(**view()):
        bpy.ops.object.select_all(action="DESELECT")
        bpy.data.objects["Cube"].select_set(True)
        bpy.ops.transform.translate("EXEC_DEFAULT", True, value=(2.0, 0.0, 0.0))
        space = view()["area"].spaces[0]
        space.show_region_ui = True
        space.region_3d.view_location, space.region_3d.view_distance = (0, 0, 1.0), 4.0
        space.region_3d.view_rotation = (0.70710678, 0.70710678, 0.0, 0.0)
    next(area for area in window.screen.areas if area.type == "PROPERTIES").ui_type = "FILES"
    bpy.app.timers.register(show_photos, first_interval=1.0)
    bpy.app.timers.register(report, first_interval=0.5, persistent=True)


def show_photos() -> None:
    """Thumbnails of the photos in the File Browser, which has its folder only once it was drawn."""
    browser = next(a for a in view()["window"].screen.areas if a.type == "FILE_BROWSER").spaces.active
    browser.show_region_toolbar = browser.show_region_ui = False
    browser.params.directory, browser.params.display_type = b"/out/photos/", "THUMBNAIL"


def report() -> float:
    """Write what an observer wants to know."""
    from bl_ext.user_default.effigy.blender_addon import session

    queue = session.current().queue
    rigs = [ob for ob in bpy.data.objects if ob.type == "ARMATURE"]
    browser = next((a for a in view()["window"].screen.areas if a.type == "FILE_BROWSER"), None)
    regions = {region.type: [region.x, region.y, region.width, region.height] for region in view()["area"].regions}
    state = {
        "version": bpy.app.version_string,
        "jobs": [[job.job_id, job.status, job.stage, job.fraction, job.text] for job in queue.jobs] if queue else [],
        "problem": queue.problem if queue else "",
        "objects": sorted(ob.name for ob in bpy.data.objects),
        "rigs": [rig.name for rig in rigs],
        "made_by": [rig.get("effigy_made_by", "") for rig in rigs],
        "splats": [len(ob.data.points) for ob in bpy.data.objects if ob.type == "POINTCLOUD"],
        "cube_x": bpy.data.objects["Cube"].location.x if "Cube" in bpy.data.objects else None,
        "active": bpy.context.view_layer.objects.active.name if bpy.context.view_layer.objects.active else "",
        "photo": bpy.context.scene.effigy.image.name if bpy.context.scene.effigy.image else "",
        "regions": regions,
        "tab": next(r for r in view()["area"].regions if r.type == "UI").active_panel_category,
        "browser": [browser.x, browser.y, browser.width, browser.height] if browser else [],
        "preset": bpy.context.scene.effigy.body.preset,
    }
    part = OUT / "state.json.part"
    part.write_text(json.dumps(state), "utf-8")
    part.replace(OUT / "state.json")
    return 0.5


bpy.context.preferences.view.show_splash = False
bpy.app.timers.register(prepare, first_interval=3.0)
