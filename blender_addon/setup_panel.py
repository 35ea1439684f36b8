"""How the preferences look."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import bpy

from . import backend_settings as settings
from . import setup
from .layouts import text_lines
from .link import environments
from .link.accelerator import Choice, supported
from .operators.setup import sizes

_TITLES = {"cpu": "CPU", "cuda": "CUDA", "mac": "Apple"}
_ICONS = {"ok": "CHECKMARK", "none": "DOT", "missing": "ERROR"}


def draw(layout: bpy.types.UILayout, context: bpy.types.Context, own: Any) -> None:
    """Everything, from what an artist needs first to what is rarely needed."""
    now = setup.current()
    _draw_backend(layout.box(), context, own, now)
    _draw_part(layout, context, own, now, "effigy_work", "Performance and Body", _draw_work, closed=False)
    _draw_part(layout, context, own, now, "effigy_folders", "Folders", _draw_folders)
    _draw_part(layout, context, own, now, "effigy_models", "Models", _draw_models)
    _draw_part(layout, context, own, now, "effigy_doctor", "Health", _draw_doctor)


def _draw_part(
    layout: bpy.types.UILayout,
    context: bpy.types.Context,
    own: Any,
    now: setup.Setup,
    name: str,
    title: str,
    draw_body: Any,
    closed: bool = True,
) -> None:
    header, body = layout.panel(name, default_closed=closed)
    header.label(text=title)
    if body is not None:
        draw_body(body, context, own, now)


def _draw_backend(box: bpy.types.UILayout, context: bpy.types.Context, own: Any, now: setup.Setup) -> None:
    """State of the installation and its buttons."""
    choice = now.choice(own.accelerator)
    there = now.environment(context)
    other = now.other_python(context)
    text, icon = _state(there, choice, now, other)
    box.label(text=text, icon=icon)
    if now.is_installing:
        _draw_progress(box, context, now)
        return
    if other:
        text_lines(box, context, f"Jobs use another Python: {other}", "INFO")
    progress = now.progress
    if progress is not None and progress.state in ("failed", "cancelled"):
        text_lines(box, context, progress.text, "ERROR" if progress.state == "failed" else "INFO")
    row = box.row()
    row.use_property_split = True
    row.prop(own, "accelerator")
    if choice is not None and own.accelerator == "auto":
        box.label(text=f"{_TITLES[choice.accelerator]}: {choice.reason}", icon="BLANK1")
    if problem := supported():
        text_lines(box, context, problem, "ERROR")
        return
    if choice is not None and there is None:
        text_lines(box, context, f"{sizes(choice.accelerator)}, in {settings.environments_root(context)}", "BLANK1")
    elif there is not None:
        text_lines(box, context, f"In {there.folder}, made by {there.tool}", "BLANK1")
    if not settings.online():
        line = box.row()
        words = line.row()
        words.alert = True
        words.label(text="Blender's online access is off; nothing is downloaded", icon="INTERNET_OFFLINE")
        line.operator("effigy.system_preferences", icon="PREFERENCES")
    buttons = box.row()
    buttons.scale_y = 1.3
    if there is None or (choice is not None and not _is_wanted(there, choice)):
        text = "Install Backend" if there is None else "Update Backend"
        buttons.operator("effigy.install_backend", text=text, icon="IMPORT")
    if there is not None or _is_begun(context):
        buttons.operator("effigy.repair_backend", icon="TOOL_SETTINGS")
        buttons.operator("effigy.remove_backend", icon="TRASH")
    if progress is not None and progress.state == "failed":
        buttons.operator("effigy.install_log", icon="TEXT")


def _state(
    there: environments.Environment | None, choice: Choice | None, now: setup.Setup, other: str
) -> tuple[str, str]:
    """One line about the backend, and its icon."""
    if now.is_installing:
        return "Installing the backend; Blender can be used meanwhile", "SORTTIME"
    if there is None:
        icon = "INFO" if other else "ERROR"
        return "The backend, which makes the avatars, is not installed", icon
    title = f"{_TITLES.get(there.accelerator, there.accelerator)}, Python {there.python}"
    if choice is not None and not _is_wanted(there, choice):
        return f"An older or another backend is installed ({title}); it is used until the new one works", "INFO"
    return f"The backend is installed ({title})", "CHECKMARK"


def _is_wanted(there: environments.Environment, choice: Choice) -> bool:
    return there.folder.name == environments.wanted_name(choice.accelerator)


def _is_begun(context: bpy.types.Context) -> bool:
    root = settings.environments_root(context)
    return root.is_dir() and any(path.name.startswith(environments.PREFIX) for path in root.iterdir())


def _draw_progress(box: bpy.types.UILayout, context: bpy.types.Context, now: setup.Setup) -> None:
    progress = now.progress
    assert progress is not None
    row = box.row()
    row.progress(factor=progress.fraction, text=f"{progress.step}  {100 * progress.fraction:.0f} %")
    row.operator("effigy.cancel_install", text="", icon="CANCEL")
    box.label(text=progress.text or " ", icon="BLANK1")


def _draw_work(layout: bpy.types.UILayout, context: bpy.types.Context, own: Any, now: setup.Setup) -> None:
    column = _split(layout)
    column.prop(own, "device")
    column.prop(own, "memory_gb")
    column.prop(own, "smplx_file")
    if own.smplx_file:
        row = next((row for row in now.findings if row.get("name") == "own body"), None)
        if not Path(bpy.path.abspath(own.smplx_file)).is_file():
            text_lines(layout, context, "There is no such file", "ERROR")
        elif row is not None:
            text_lines(layout, context, str(row.get("value", "")), "ERROR" if row.get("next_step") else "CHECKMARK")
        else:
            text = "It is being checked" if now.is_busy(setup.DOCTOR) else "It is checked when the backend is installed"
            text_lines(layout, context, text, "INFO")


def _draw_folders(layout: bpy.types.UILayout, context: bpy.types.Context, own: Any, now: setup.Setup) -> None:
    column = _split(layout)
    for name, default in (
        ("environment_folder", settings.environments_root(context)),
        ("jobs_folder", settings.jobs_folder(context)),
        ("models_folder", settings.models_folder(context)),
    ):
        _with_placeholder(column, own, name, str(default))
    _with_placeholder(column, own, "backend_python", "the installed backend")


def _with_placeholder(column: bpy.types.UILayout, own: Any, name: str, text: str) -> None:
    """A field that shows in grey what an empty one means (Blender 4.1 and newer know placeholders)."""
    column.prop(own, name, placeholder=text)


def _split(layout: bpy.types.UILayout) -> bpy.types.UILayout:
    column = layout.column()
    column.use_property_split = True
    column.use_property_decorate = False
    return column


def _draw_models(layout: bpy.types.UILayout, context: bpy.types.Context, own: Any, now: setup.Setup) -> None:
    """All models that the backend knows: licence, size, installed or not."""
    row = layout.row()
    text = "Listing ..." if now.is_busy(setup.LIST) else "List Models" if not now.models else "Refresh"
    row.operator("effigy.list_models", text=text, icon="FILE_REFRESH")
    if problem := now.problems.get(setup.LIST):
        text_lines(layout, context, problem, "ERROR")
    if now.models and not settings.online():
        layout.label(text="Blender's online access is off; nothing is downloaded", icon="INTERNET_OFFLINE")
    for model in sorted(now.models, key=lambda model: not model.get("installed")):
        _draw_model(layout.box(), context, model, now)


def _draw_model(box: bpy.types.UILayout, context: bpy.types.Context, model: dict[str, Any], now: setup.Setup) -> None:
    model_id, installed = str(model.get("id", "")), bool(model.get("installed"))
    download = now.downloads.get(model_id)
    row = box.row()
    row.label(text=str(model.get("title", model_id)), icon="CHECKMARK" if installed else "DOT")
    side = row.row()
    side.alignment = "RIGHT"
    side.label(text=_size(model))
    if download is not None and download.task is not None:
        line = box.row()
        line.progress(factor=download.fraction, text=download.text)
        line.operator("effigy.cancel_fetch", text="", icon="CANCEL").model_id = model_id
    elif not installed and model.get("fetchable"):
        side.operator("effigy.fetch_model", text="Fetch", icon="IMPORT").model_id = model_id
    use = "" if model.get("commercial") else "; not for commercial use"
    kind = "" if model.get("fetchable") else "; you bring it yourself"
    small = box.row()
    small.scale_y = 0.7
    small.active = False
    small.label(text=f"{model.get('role', '')}; licence {model.get('licence', 'unknown')}{use}{kind}", icon="BLANK1")
    if download is not None and download.problem:
        text_lines(box, context, download.problem, "ERROR", most=4)


def _size(model: dict[str, Any]) -> str:
    """On the disk if it is there, else of its files as far as they are known."""
    if model.get("bytes"):
        return f"{model['bytes'] / 1e9:.2f} GB"
    files = [file.get("bytes") for file in model.get("files", ())]
    known = [size for size in files if size]
    if not known:
        return "size unknown" if files else ""
    return f"{'' if len(known) == len(files) else 'over '}{sum(known) / 1e9:.2f} GB"


def _draw_doctor(layout: bpy.types.UILayout, context: bpy.types.Context, own: Any, now: setup.Setup) -> None:
    """What works on this machine."""
    row = layout.row()
    busy = now.is_busy(setup.DOCTOR)
    row.operator("effigy.doctor", text="Checking ..." if busy else "Check the Backend", icon="CHECKMARK")
    row.operator("effigy.copy_doctor", icon="COPYDOWN")
    if problem := now.problems.get(setup.DOCTOR):
        text_lines(layout, context, problem, "ERROR")
    if not now.findings:
        return
    column = layout.box().column(align=True)
    for finding in now.findings:
        line = column.split(factor=0.25)
        line.label(text=str(finding.get("name", "")), icon=_ICONS.get(str(finding.get("state")), "DOT"))
        line.label(text=str(finding.get("value", "")))
        if finding.get("next_step"):
            text_lines(column, context, f"{finding['next_step']}", "FORWARD", most=3)
