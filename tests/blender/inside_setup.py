"""Run by a Python with bpy: `python inside_setup.py FOLDER`. The set-up of the preferences, ticked by hand.

Writes what was seen to FOLDER/seen.json. The backend is a script that says what the real one would say.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

import bpy  # noqa: E402

import blender_addon  # noqa: E402
from blender_addon import backend_settings, session, setup  # noqa: E402
from tests.link.tiny_index import TinyIndex  # noqa: E402

FOLDER = Path(sys.argv[1])
MODEL = {"type": "model", "id": "sd15", "title": "SD", "licence": "L", "commercial": False, "fetchable": True}
FAKE = f"""#!{sys.executable}
import json, os, pathlib, sys, time
words = sys.argv[sys.argv.index("backend") + 1:]
here = pathlib.Path({str(FOLDER)!r})
(here / "calls").open("a").write(json.dumps([words, os.environ.get("EFFIGY_MODELS")]) + "\\n")
if words[0] == "doctor":
    print(json.dumps({{"findings": [{{"name": "torch", "value": "2", "state": "ok", "next_step": ""}}]}}, indent=1))
elif "list" in words:
    print(json.dumps({MODEL!r} | {{"installed": ["published"] if (here / "fetched").exists() else []}}))
else:
    print(json.dumps({{"type": "plan", "model": "sd15", "bytes": 4000000}}), flush=True)
    for k in range(1, 4):
        print(json.dumps({{"type": "progress", "stage": "fetch", "done": k, "total": 4, "note": "a.bin"}}), flush=True)
        time.sleep(0.2)
    while (here / "slow").exists():
        time.sleep(0.05)
    if (here / "bad").exists():
        print(json.dumps({{"type": "failed", "code": "OFFLINE", "text": "no network; try again"}}), flush=True)
        sys.exit(3)
    (here / "fetched").touch()
    print(json.dumps({{"type": "done", "model": "sd15", "bytes": 4000000}}))
"""


def tick_until(condition: Callable[[], bool], timeout_s: float = 30.0) -> float:
    """Call the timer as Blender would; returns the longest call, seconds."""
    end, longest = time.monotonic() + timeout_s, 0.0
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        began = time.perf_counter()
        setup.current()._tick()
        longest = max(longest, time.perf_counter() - began)
        time.sleep(0.02)
    return longest


def refusal(operator: Any) -> str:
    """What Blender answers when an operator may not run."""
    try:
        operator()
    except RuntimeError as error:
        return str(error)
    return ""


def settings_reach_the_backend(own: Any) -> list[str]:
    """The command line of `serve` with every preference set."""
    own.memory_gb, own.device, own.smplx_file = 3.5, "cpu", str(FOLDER / "SMPLX_NEUTRAL.npz")
    own.models_folder, own.jobs_folder = str(FOLDER / "models"), str(FOLDER / "jobs")
    command = session.serve_command(bpy.context, backend_settings.jobs_folder(bpy.context))
    own.smplx_file = ""
    return command[command.index("serve") :]


def install(index: TinyIndex) -> dict[str, Any]:
    """Offline, then online with tiny wheels and a stand-in for uv, cancelled once, then to the end."""
    seen: dict[str, Any] = {"offline": refusal(bpy.ops.effigy.install_backend)}
    backend_settings.online = lambda: True
    real = setup.Order
    setup.Order = lambda root, accelerator, mode, **_: index.order(root, mode=mode)
    index.hang("packages:effigy_tiny_two")
    bpy.ops.effigy.install_backend()
    tick_until((index.folder / "hanging").exists)
    seen["while"] = [
        setup.current().is_installing,
        setup.current().progress.step,
        refusal(bpy.ops.effigy.repair_backend),
    ]
    bpy.ops.effigy.cancel_install()
    tick_until(lambda: not setup.current().is_installing)
    seen["cancelled"] = [setup.current().progress.state, setup.current().environment(bpy.context) is None]
    index.heal()
    bpy.ops.effigy.install_backend()
    seen["longest_tick_s"] = tick_until(lambda: not setup.current().is_installing)
    there = setup.current().environment(bpy.context)
    seen["ready"] = [setup.current().progress.state, there is not None]
    seen["used"] = there is not None and backend_settings.backend_python(bpy.context) == there.interpreter
    setup.Order = real
    return seen


def models() -> dict[str, Any]:
    """Listed, fetched, failed, cancelled."""
    now, seen = setup.current(), {}
    bpy.ops.effigy.list_models()
    tick_until(lambda: not now.is_busy(setup.LIST))
    seen["listed"] = [model["id"] for model in now.models]
    (FOLDER / "bad").touch()
    bpy.ops.effigy.fetch_model(model_id="sd15")
    tick_until(lambda: now.downloads["sd15"].task is None and not now.is_busy(setup.LIST))
    seen["failed"] = now.downloads["sd15"].problem
    (FOLDER / "bad").unlink()
    (FOLDER / "slow").touch()
    bpy.ops.effigy.fetch_model(model_id="sd15")
    tick_until(lambda: now.downloads["sd15"].fraction == 0.75)
    seen["text"] = now.downloads["sd15"].text
    bpy.ops.effigy.cancel_fetch(model_id="sd15")
    tick_until(lambda: now.downloads["sd15"].task is None and not now.is_busy(setup.LIST))
    (FOLDER / "slow").unlink()
    bpy.ops.effigy.fetch_model(model_id="sd15")
    tick_until(lambda: now.downloads["sd15"].task is None and not now.is_busy(setup.LIST))
    seen["fetched"] = [model["installed"] for model in now.models]
    return seen


def main() -> None:
    fake = FOLDER / "python"
    fake.write_text(FAKE)
    fake.chmod(0o755)
    blender_addon.register()
    addon = bpy.context.preferences.addons.new()
    addon.module = blender_addon.ADDON_ID
    own = addon.preferences
    own.environment_folder = str(FOLDER / "environments")
    seen: dict[str, Any] = {"install": install(TinyIndex.make(FOLDER / "index"))}
    own.backend_python = str(fake)
    seen["other"] = setup.current().other_python(bpy.context)
    seen["serve"] = settings_reach_the_backend(own)
    tick_until(lambda: not setup.current().is_busy(setup.DOCTOR))  # asked by itself after an installation
    bpy.ops.effigy.doctor()
    tick_until(lambda: not setup.current().is_busy(setup.DOCTOR))
    seen["findings"] = setup.current().findings
    seen["models"] = models()
    (FOLDER / "slow").touch()
    bpy.ops.effigy.fetch_model(model_id="sd15")
    tick_until(lambda: setup.current().downloads["sd15"].fraction > 0)
    task = setup.current().downloads["sd15"].task
    began = time.monotonic()
    blender_addon.unregister()
    seen["unregister_s"] = time.monotonic() - began
    assert task is not None
    end = time.monotonic() + 5
    while task.is_running and time.monotonic() < end:
        task.poll()
    seen["child_ended"] = not task.is_running
    (FOLDER / "seen.json").write_text(json.dumps(seen))
    sys.stdout.flush()
    os._exit(0)


main()
