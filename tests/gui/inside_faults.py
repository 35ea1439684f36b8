"""What goes wrong while a job runs, played in a real Blender: `blender -P inside_faults.py -- SCENARIO`.

A scenario is a generator that yields conditions to wait for; its answer goes to /out/SCENARIO.json, and what Blender
printed is looked at by test_faults.py. The backend is stand_in.py.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import bpy

ADDON = "bl_ext.user_default.effigy"
PHOTO = Path(__file__).resolve().parent.parent.parent / "scripts" / "data" / "collins.png"
PATIENCE_S = 120.0

Answer = dict[str, Any]
Scenario = Iterator[Callable[[], object]]


def session() -> Any:
    from bl_ext.user_default.effigy.blender_addon import session as module

    return module.current()


def view() -> dict[str, Any]:
    window = bpy.context.window_manager.windows[0]
    area = next(a for a in window.screen.areas if a.type == "VIEW_3D")
    return {"window": window, "area": area, "region": next(r for r in area.regions if r.type == "WINDOW")}


def call(operator: str, *arguments: Any, **options: Any) -> set[str]:
    """An operator as the artist would call it, with its undo step."""
    group, name = operator.split(".")
    with bpy.context.temp_override(**view()):
        return getattr(getattr(bpy.ops, group), name)(*(arguments or ("EXEC_DEFAULT", True)), **options)


def open_sidebar() -> None:
    view()["area"].spaces[0].show_region_ui = True


def choose_tab() -> float | None:
    """Our tab, so that the panels are drawn while things happen; a timer until the sidebar has been drawn once."""
    try:
        next(r for r in view()["area"].regions if r.type == "UI").active_panel_category = "Effigy"
    except AttributeError:
        return 0.3
    return None


def generate(name: str) -> str:
    """Press Generate Avatar with a photo of this name; returns the job's id."""
    photo = Path(os.environ["EFFIGY_SCENARIO"] + "-photos") / f"{name}.png"
    photo = Path("/tmp") / photo
    photo.parent.mkdir(exist_ok=True)
    shutil.copyfile(PHOTO, photo)
    call("effigy.drop_photo", filepath=str(photo))
    assert call("effigy.generate") == {"FINISHED"}
    return session().queue.jobs[-1].job_id


def job(job_id: str) -> Any:
    return session().queue.job(job_id)


def is_running(job_id: str) -> Callable[[], bool]:
    return lambda: job(job_id).status == "running" and job(job_id).fraction > 0.05


def has_ended(job_id: str) -> Callable[[], bool]:
    return lambda: job(job_id).status in ("done", "failed", "cancelled") and not session().arriving


def after(seconds: float) -> Callable[[], bool]:
    end = time.monotonic() + seconds
    return lambda: time.monotonic() > end


def rigs() -> list[str]:
    return sorted(ob.name for ob in bpy.context.scene.objects if ob.type == "ARMATURE")


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def files(answer: Answer) -> Scenario:
    """File > New and a file that is opened again, while a job runs."""
    first = generate("slow_new")
    yield is_running(first)
    pid = session().queue.process.pid
    bpy.ops.wm.read_homefile()
    yield after(0.5)
    open_sidebar()
    yield lambda: choose_tab() is None
    answer["alive"] = is_alive(pid) and job(first).status == "running"
    yield has_ended(first)
    yield after(1.5)
    answer["in_new_file"] = rigs()
    call("effigy.bring", job_id=first)
    yield lambda: rigs() != []
    answer["brought"] = rigs()
    bpy.ops.wm.save_as_mainfile(filepath="/tmp/kept.blend")
    second = generate("slow_again")
    yield is_running(second)
    bpy.ops.wm.open_mainfile(filepath="/tmp/kept.blend")
    yield has_ended(second)
    answer["in_same_file"] = rigs()
    answer["active"] = bpy.context.view_layer.objects.active.name
    answer["places_m"] = sorted(ob.location.x for ob in bpy.context.scene.objects if ob.type == "ARMATURE")


def undo(answer: Answer) -> Scenario:
    """Undo, redo and deleting while jobs run; one undo takes the avatar and nothing else."""
    first = generate("slow_undo")
    yield is_running(first)
    for place in range(3):
        call("object.empty_add", location=(float(place), 3.0, 0.0))
    for operator in ("ed.undo", "ed.undo", "ed.redo"):
        call(operator, "EXEC_DEFAULT")
        yield after(0.3)
    answer["empties"] = [sum(ob.type == "EMPTY" for ob in bpy.context.scene.objects)]
    yield has_ended(first)
    answer["arrived"] = rigs()
    for operator in ("ed.undo", "ed.redo"):
        call(operator, "EXEC_DEFAULT")
        yield after(0.5)
        answer[operator] = rigs()
        answer["empties"].append(sum(ob.type == "EMPTY" for ob in bpy.context.scene.objects))
    again = call("effigy.regenerate")
    second = session().queue.jobs[-1].job_id
    yield is_running(second)
    call("object.select_all", action="SELECT")
    call("object.delete")
    bpy.data.images.remove(bpy.context.scene.effigy.image)
    for collection in list(bpy.data.collections):
        bpy.data.collections.remove(collection)
    answer["deleted"] = [again == {"FINISHED"}, len(bpy.context.scene.objects)]
    yield has_ended(second)
    answer["after_deletion"] = rigs()


def hand(answer: Answer) -> Scenario:
    """A result waits while the artist is in another mode or has something in the hand."""
    bpy.context.view_layer.objects.active = bpy.data.objects["Cube"]
    first = generate("quick_edit")
    call("object.mode_set", mode="EDIT")
    yield lambda: job(first).status == "done"
    yield after(1.5)
    answer["in_edit_mode"] = [rigs(), bpy.context.mode, list(session().arriving) == [first]]
    call("object.mode_set", mode="OBJECT")
    yield lambda: rigs() != []
    subprocess.run(["xdotool", "mousemove", "300", "300"], check=True)
    yield after(1.0)
    second = generate("quick_drag")
    with bpy.context.temp_override(**view()):
        bpy.ops.transform.translate("INVOKE_DEFAULT")
    yield lambda: job(second).status == "done"
    yield after(1.5)
    answer["while_dragging"] = rigs()
    subprocess.run(["xdotool", "key", "Escape"], check=True)
    yield lambda: len(rigs()) == 2
    answer["after"] = rigs()


def pictures(answer: Answer) -> Scenario:
    """The photo is taken from an Image Editor, and from the active reference image."""
    shown, other = (bpy.data.images.new(name, 8, 8) for name in ("shown", "reference"))
    place = next(a for a in view()["window"].screen.areas if a.type == "PROPERTIES")
    place.ui_type = "IMAGE_EDITOR"
    place.spaces.active.image = shown
    yield after(1.0)
    call("effigy.use_editor_image")
    answer["editor"] = bpy.context.scene.effigy.image.name
    place.ui_type = "PROPERTIES"
    empty = bpy.data.objects.new("reference", None)
    empty.empty_display_type, empty.data = "IMAGE", other
    bpy.context.scene.collection.objects.link(empty)
    bpy.context.view_layer.objects.active = empty
    yield after(1.0)
    call("effigy.use_editor_image")
    answer["reference"] = bpy.context.scene.effigy.image.name


def lies(answer: Answer) -> Scenario:
    """Results that are not what they say, pipes that close, a failure: one line each, and the next job works."""
    for trouble in ("outside", "size", "hash", "damaged", "closes", "stdin", "fails"):
        first = generate("slow_stdin" if trouble == "stdin" else trouble)
        if trouble == "stdin":
            yield is_running(first)
            session().queue.process._link.close_input()
        yield has_ended(first)
        yield after(0.3)
        ended = job(first)
        answer[trouble] = [ended.status, ended.text, ended.hint, session().problems.get(first, ""), rigs()]
    call("effigy.open_log", "EXEC_DEFAULT", job_id=first)
    answer["log"] = [text.name for text in bpy.data.texts], bpy.data.texts[-1].as_string()
    last = generate("quick_last")
    yield has_ended(last)
    answer["next"] = [job(last).status, rigs()]


def waiting(answer: Answer) -> Scenario:
    """Several jobs: one after the other, the cancelled ones left out, a cancelled one started again."""
    names = ("slow_first", "slow_second", "slow_third")
    jobs = [generate(name) for name in names]
    yield is_running(jobs[0])
    yield lambda: job(jobs[2]).status == "waiting"
    answer["at_once"] = [job(job_id).status for job_id in jobs]
    call("effigy.cancel", job_id=jobs[0])
    call("effigy.cancel", job_id=jobs[2])
    yield has_ended(jobs[1])
    answer["then"] = [job(job_id).status for job_id in jobs], rigs()
    call("effigy.again", job_id=jobs[0])
    yield has_ended(jobs[0])
    answer["again"] = rigs()
    call("effigy.clear_jobs", "EXEC_DEFAULT")
    answer["cleared"] = [len(session().queue.jobs), rigs()]


def disable(answer: Answer) -> Scenario:
    """The add-on is switched off while a job runs, and on again: nothing is left, and the job goes on."""
    from bl_ext.user_default.effigy.blender_addon import session as module

    first = generate("slow_disable")
    yield is_running(first)
    old, pid = module.current(), module.current().queue.process.pid
    began = time.monotonic()
    bpy.ops.preferences.addon_disable(module=ADDON)
    answer["seconds"] = time.monotonic() - began
    yield lambda: not is_alive(pid)
    yield after(1.0)
    answer["left"] = left_behind(old)
    bpy.ops.preferences.addon_enable(module=ADDON)
    yield lambda: session().queue is not None and session().queue.jobs
    answer["listed"] = [[found.status, found.title] for found in session().queue.jobs]
    call("effigy.again", job_id=first)
    yield has_ended(first)
    answer["went_on"] = [job(first).status, rigs()]


def left_behind(old: Any) -> list[str]:
    """What a closed session has not taken back."""
    left = []
    for name in dir(bpy.app.handlers):
        handlers = getattr(bpy.app.handlers, name)
        if isinstance(handlers, list):
            left += [f"handler {name}" for handler in handlers if "effigy" in getattr(handler, "__module__", "")]
    if bpy.app.timers.is_registered(old._timer):
        left.append("timer")
    try:
        bpy.types.SpaceView3D.draw_handler_remove(old.viewport._handle, "WINDOW")
        left.append("draw handler")
    except ValueError:
        pass  # it was removed, as it should be
    left += [thread.name for thread in threading.enumerate() if thread.name.startswith("effigy")]
    left += [name for name in dir(bpy.types) if name.startswith("EFFIGY_")]
    return left + (["Scene.effigy"] if hasattr(bpy.types.Scene, "effigy") else [])


def quitting(answer: Answer) -> Scenario:
    """Blender is quit while a job runs."""
    first = generate("slow_quit")
    yield is_running(first)
    answer["pid"] = session().queue.process.pid
    answer["folder"] = str(job(first).folder)


def pair(answer: Answer) -> Scenario:
    """Two Blenders with one environment and one folder of jobs, both at work; the first quits in the middle."""
    name = os.environ["EFFIGY_SCENARIO"]
    other = Path("/out") / ("pair_b.at" if name == "pair_a" else "pair_a.at")
    first = generate(f"slow_{name}")
    yield is_running(first)
    (Path("/out") / f"{name}.at").write_text(first)
    yield other.exists
    answer["taken"] = [found.job_id for found in session().queue.recover()]
    yield has_ended(first)
    answer["first"] = [job(first).status, rigs()]
    second = generate(f"slow_{name}")
    yield is_running(second)
    answer["pid"] = session().queue.process.pid
    if name == "pair_a":
        return
    yield has_ended(second)
    answer["second"] = [job(second).status, len(rigs())]
    answer["jobs"] = sum(found.title == f"slow_{name}" for found in session().queue.jobs)


class Player:
    """Plays a scenario by a timer."""

    def __init__(self, name: str) -> None:
        self.name, self.answer = name, {}
        self.steps = globals()[name.split("_")[0]](self.answer)
        self.condition: Callable[[], object] = after(0.0)
        self.limit = time.monotonic() + PATIENCE_S

    def tick(self) -> float | None:
        try:
            if not self.condition():
                if time.monotonic() > self.limit:
                    raise TimeoutError(f"waited in vain, line {self.steps.gi_frame.f_lineno}: {session().queue.jobs}")
            else:
                self.condition, self.limit = next(self.steps), time.monotonic() + PATIENCE_S
        except StopIteration:
            return self.end()
        except Exception:
            self.answer["error"] = traceback.format_exc()
            return self.end()
        return 0.05

    def end(self) -> None:
        (Path("/out") / f"{self.name}.json").write_text(json.dumps(self.answer), "utf-8")
        bpy.ops.wm.quit_blender()


def main() -> None:
    name = sys.argv[sys.argv.index("--") + 1]
    os.environ["EFFIGY_SCENARIO"] = name
    bpy.context.preferences.view.show_splash = False
    player = Player(name)

    def tick() -> float | None:
        return player.tick()

    bpy.app.timers.register(open_sidebar, first_interval=1.5)
    bpy.app.timers.register(choose_tab, first_interval=2.5)
    bpy.app.timers.register(tick, first_interval=3.5, persistent=True)


main()
