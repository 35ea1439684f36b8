"""How long the add-on holds Blender up, measured in a real Blender: `blender -P inside_measure.py`; see measure.py.

A job of some seconds runs with a message every 20 ms, then its bundle comes into the scene, five times. Taken apart:
the timer while nothing arrives, the drawing of the panels, and the tick that inserts.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bpy

JOBS = 5
PHOTO = Path(__file__).resolve().parent.parent.parent / "scripts" / "data" / "collins.png"

Times = list[tuple[float, float]]
"""Milliseconds by the clock, and of the processor: on a busy machine only the second repeats."""

ticks_ms: Times = []
inserts_ms: Times = []
draws_ms: Times = []
gaps_ms: dict[str, list[float]] = {"idle": [], "running": []}


def session() -> Any:
    from bl_ext.user_default.effigy.blender_addon import session as module

    return module.current()


class Watch:
    """Measures one call."""

    def __init__(self) -> None:
        self.wall, self.cpu = time.perf_counter(), time.thread_time()

    def take(self) -> tuple[float, float]:
        return 1000 * (time.perf_counter() - self.wall), 1000 * (time.thread_time() - self.cpu)


def time_timer() -> None:
    """Put a clock around the session's timer."""
    current = session()
    inner = current._timer
    if bpy.app.timers.is_registered(inner):
        bpy.app.timers.unregister(inner)

    def timed() -> float | None:
        before = len(current.arrived)
        watch = Watch()
        pause = inner()
        (inserts_ms if len(current.arrived) > before else ticks_ms).append(watch.take())
        return pause

    current._timer = timed


def time_panels() -> None:
    """Put a clock around the drawing of the two panels that follow a job."""
    from bl_ext.user_default.effigy.blender_addon import panels

    for panel in (panels.EFFIGY_PT_main, panels.EFFIGY_PT_jobs):
        panel.draw = timed_draw(panel.draw)


def timed_draw(draw: Callable[..., None]) -> Callable[..., None]:
    def timed(self: Any, context: Any) -> None:
        watch = Watch()
        draw(self, context)
        draws_ms.append(watch.take())

    return timed


last = [0.0]


def pulse() -> float:
    """How late a timer of 5 ms comes, with a job and without; in both cases the sidebar is drawn twice a second."""
    now = time.perf_counter()
    queue = session().queue
    running = queue is not None and any(job.status == "running" for job in queue.jobs)
    if last[0]:
        gaps_ms["running" if running else "idle"].append(1000 * (now - last[0]) - 5)
    last[0] = now
    return 0.005


def redraw() -> float:
    for area in bpy.context.window_manager.windows[0].screen.areas:
        for region in area.regions if area.type == "VIEW_3D" else ():
            if region.type == "UI":
                region.tag_redraw()
    return 0.5


def sidebar() -> None:
    area = next(a for a in bpy.context.window_manager.windows[0].screen.areas if a.type == "VIEW_3D")
    area.spaces[0].show_region_ui = True


def tab() -> float | None:
    """Our tab, as soon as the sidebar has been drawn once; then the clocks."""
    area = next(a for a in bpy.context.window_manager.windows[0].screen.areas if a.type == "VIEW_3D")
    try:
        next(r for r in area.regions if r.type == "UI").active_panel_category = "Effigy"
    except AttributeError:
        return 0.3
    time_timer()
    time_panels()
    return None


def step() -> float | None:
    """Start the next job when the last avatar is in the scene; it is taken out again, so that all are alike."""
    queue, done = session().queue, len(session().arrived)
    if queue is not None and (session().arriving or queue.is_busy() or len(queue.jobs) > done):
        return 0.2
    for ob in [ob for ob in bpy.data.objects if ob.name not in ("Cube", "Camera", "Light")]:
        bpy.data.objects.remove(ob)
    if done == JOBS:
        answer = {"ticks_ms": ticks_ms, "inserts_ms": inserts_ms, "draws_ms": draws_ms, "gaps_ms": gaps_ms}
        Path("/out/measured.json").write_text(json.dumps(answer), "utf-8")
        bpy.ops.wm.quit_blender()
        return None
    photo = Path("/tmp/slow.png")
    shutil.copyfile(PHOTO, photo)
    bpy.ops.effigy.drop_photo(filepath=str(photo))
    bpy.ops.effigy.generate()
    return 0.5


os.environ["EFFIGY_BACKEND_PYTHON"] = "/out/stand-in"
bpy.context.preferences.view.show_splash = False
bpy.app.timers.register(sidebar, first_interval=1.5)
bpy.app.timers.register(tab, first_interval=3.0)
bpy.app.timers.register(pulse, first_interval=4.0)
bpy.app.timers.register(redraw, first_interval=4.0)
bpy.app.timers.register(step, first_interval=8.0)
