"""The add-on's tab in the sidebar of the 3D view."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import bpy

from . import session
from .job_panel import draw_job, draw_order
from .layouts import text_lines
from .operators.animate import avatar_rig
from .operators.display import EFFIGY_OT_display
from .operators.edit import splat_objects
from .operators.generate import BUNDLE_PROPERTY, REQUEST_PROPERTY, picture_at_hand
from .shared.methods import REQUESTS
from .shared.request_files import FileParameter, file_parameters
from .style_panel import STYLE_PARAMETERS, draw_style

_PRESET = "preset"
"""A method's parameter with this name is shown as a row of buttons above the others."""


class _Sidebar:
    """Where all panels are."""

    bl_space_type = "VIEW_3D"
    bl_region_type = "UI"
    bl_category = "Effigy"


class _AvatarPanel(_Sidebar):
    """Only for an avatar."""

    @classmethod
    def poll(cls, context: bpy.types.Context) -> bool:
        """Whether any part of one is active."""
        return avatar_rig(context) is not None


class EFFIGY_PT_main(_Sidebar, bpy.types.Panel):
    """Photo, method, parameters, Generate Avatar."""

    bl_label = "Effigy"
    bl_idname = "EFFIGY_PT_main"

    def draw(self, context: bpy.types.Context) -> None:
        """Everything that a job needs, from top to bottom."""
        layout, settings = self.layout, context.scene.effigy
        _draw_photo(layout, context, settings)
        _draw_parameters(layout, context, settings)
        row = layout.row()
        row.scale_y = 1.6
        row.operator("effigy.generate", icon="OUTLINER_OB_ARMATURE")
        missing = session.current().backend_problem(context)
        if missing:
            box = layout.box()
            text_lines(box, context, missing[:1].upper() + missing[1:], "ERROR")
            box.operator("effigy.show_preferences", icon="PREFERENCES")


def _draw_photo(layout: bpy.types.UILayout, context: bpy.types.Context, settings: Any) -> None:
    """The reference image: chosen, dropped, or the one that is at hand."""
    column = layout.column()
    column.template_ID(settings, "image", open="image.open", text="")
    box = column.box()
    if settings.image is not None:
        box.template_icon(icon_value=_thumbnail(settings.image), scale=6)
    else:
        hint = box.column()
        hint.alignment = "CENTER"
        hint.scale_y = 1.2
        hint.label(text="Drop a photo here", icon="IMAGE_DATA")
    at_hand = picture_at_hand(context)
    if at_hand is not None and at_hand != settings.image:
        column.operator("effigy.use_editor_image", text=f'Use "{at_hand.name}"', icon="IMAGE")


def _draw_parameters(layout: bpy.types.UILayout, context: bpy.types.Context, settings: Any) -> None:
    """Method, preset, and every other parameter of the method's request."""
    group = getattr(settings, settings.method)
    request = REQUESTS[settings.method]
    names = [item.name for item in fields(request)]
    several = {parameter.name: parameter for parameter in file_parameters(request) if parameter.several}
    column = layout.column()
    column.use_property_split = True
    column.use_property_decorate = False
    column.prop(settings, "method")
    if _PRESET in names:
        names.remove(_PRESET)
        layout.row().prop(group, _PRESET, expand=True)
    if STYLE_PARAMETERS[0] in names:
        names = [name for name in names if name not in STYLE_PARAMETERS]
        style = layout.column()
        style.use_property_split = True
        style.use_property_decorate = False
        draw_style(style, context, group)
    if not names:
        return
    header, body = layout.panel("effigy_parameters")
    header.label(text="Settings")
    if body is not None:
        body.use_property_split = True
        body.use_property_decorate = False
        for name in names:
            if name in several:
                _draw_files(body, getattr(group, name), several[name])
            else:
                body.prop(group, name)


def _draw_files(layout: bpy.types.UILayout, rows: Any, parameter: FileParameter) -> None:
    """A row per file, and what adds one and takes one away; the label stands where those of the others do."""
    split = layout.split(factor=0.4)
    left = split.row()
    left.alignment = "RIGHT"
    left.label(text=parameter.label)
    column = split.column(align=True)
    column.use_property_split = False
    for number, row in enumerate(rows):
        line = column.row(align=True)
        line.label(text=bpy.path.basename(row.path), icon="FILE")  # of a path the sidebar shows only the beginning
        remove = line.operator("effigy.remove_file", text="", icon="X")
        remove.parameter, remove.number = parameter.name, number
    adding = "Add More" if len(rows) else "Add"
    column.operator("effigy.add_files", text=adding, icon="ADD").parameter = parameter.name


class EFFIGY_PT_jobs(_Sidebar, bpy.types.Panel):
    """What is being made, and what has been."""

    bl_label = "Jobs"
    bl_idname = "EFFIGY_PT_jobs"
    bl_parent_id = "EFFIGY_PT_main"

    @classmethod
    def poll(cls, context: bpy.types.Context) -> bool:
        """Only when there are jobs."""
        queue = session.current().queue
        return queue is not None and bool(queue.jobs)

    def draw_header_preset(self, context: bpy.types.Context) -> None:
        """What clears the list, at the header's right end."""
        self.layout.operator("effigy.clear_jobs", text="", icon="TRASH", emboss=False)

    def draw(self, context: bpy.types.Context) -> None:
        """What runs, what waits in its order, then what has ended, the newest first."""
        running = session.current()
        queue = running.queue
        assert queue is not None
        if queue.problem:
            text_lines(self.layout, context, queue.problem, "ERROR")
        for job in draw_order(queue.jobs):
            draw_job(self.layout.box(), context, running, job)


class EFFIGY_PT_avatar(_AvatarPanel, bpy.types.Panel):
    """What made the active avatar."""

    bl_label = "Avatar"
    bl_idname = "EFFIGY_PT_avatar"
    bl_parent_id = "EFFIGY_PT_main"

    def draw(self, context: bpy.types.Context) -> None:
        """Request, generators, warnings, and what can be done again."""
        rig, layout = avatar_rig(context), self.layout
        assert rig is not None
        column = layout.column(align=True)
        _fact(column, "Name", rig.name)
        method, preset, changed = _request_texts(rig)
        if method:
            _fact(column, "Method", f"{method}, {preset}" if preset else method)
        for name, value in changed:
            _fact(column, name, value)
        if rig.get("effigy_made_by"):
            text_lines(layout, context, f"Made by {rig['effigy_made_by']}", "INFO")
        for warning in json.loads(rig.get("effigy_warnings", "[]")):
            text_lines(layout, context, str(warning), "ERROR")
        column = layout.column(align=True)
        column.operator("effigy.regenerate", icon="FILE_REFRESH")
        column.operator("effigy.use_settings", icon="DUPLICATE")
        bundle = rig.get(BUNDLE_PROPERTY, "")
        if bundle and not Path(bundle).is_dir():
            text_lines(layout, context, f"Its files are no longer in {bundle}: show where they are", "ERROR")
        column = layout.column(align=True)
        column.operator("effigy.relink", icon="FILE_FOLDER")
        if bundle:
            row = column.row(align=True)
            row.operator("wm.path_open", text="Files", icon="FILEBROWSER").filepath = bundle
            row.operator("effigy.open_log", text="Log", icon="TEXT").job_id = ""


def _request_texts(rig: bpy.types.Object) -> tuple[str, str, list[tuple[str, str]]]:
    """Method and preset for people, and label and value of every parameter that is not at its default."""
    try:
        memory = json.loads(rig.get(REQUEST_PROPERTY, "{}"))
        method, values = str(memory["method"]), dict(memory["request"])
    except (ValueError, KeyError, TypeError):
        return "", "", []
    known = fields(REQUESTS[method]) if method in REQUESTS else ()
    changed = [
        (item.metadata["label"], _value_text(values[item.name], item.metadata["unit"]))
        for item in known
        if item.name != _PRESET and values.get(item.name, item.default) not in (item.default, [])
    ]
    return method.title(), str(values.get(_PRESET, "")), changed


def _value_text(value: object, unit: str) -> str:
    """A parameter's value for people; of several files only how many."""
    if isinstance(value, list):
        return f"{len(value)} file" if len(value) == 1 else f"{len(value)} files"
    return f"{value} {unit}".strip()


def _fact(layout: bpy.types.UILayout, name: str, value: str) -> None:
    """A line with a name and its value."""
    split = layout.split(factor=0.35)
    left = split.row()
    left.alignment, left.active = "RIGHT", False
    left.label(text=name)
    split.label(text=value)


class EFFIGY_PT_files(_Sidebar, bpy.types.Panel):
    """Avatars and splats from files, and into them."""

    bl_label = "Files"
    bl_idname = "EFFIGY_PT_files"
    bl_parent_id = "EFFIGY_PT_main"
    bl_options = {"DEFAULT_CLOSED"}

    def draw(self, context: bpy.types.Context) -> None:
        """Import and export."""
        column = self.layout.column(align=True)
        column.operator("effigy.import_avatar", icon="ARMATURE_DATA")
        column.operator("effigy.import_splats", icon="IMPORT")
        column.operator("effigy.export_splats", icon="EXPORT")


class EFFIGY_PT_motion(_AvatarPanel, bpy.types.Panel):
    """Motion of the active avatar."""

    bl_label = "Motion"
    bl_idname = "EFFIGY_PT_motion"
    bl_parent_id = "EFFIGY_PT_main"

    def draw(self, context: bpy.types.Context) -> None:
        """Import, copy, bake, export."""
        column = self.layout.column(align=True)
        column.operator("effigy.import_motion", icon="IMPORT")
        column.operator("effigy.copy_motion", icon="ARMATURE_DATA")
        column.operator("effigy.bake_motion", icon="KEY_HLT")
        column.operator("effigy.export_bvh", icon="EXPORT")


class EFFIGY_PT_edit(_Sidebar, bpy.types.Panel):
    """Editing of the selected Gaussians."""

    bl_label = "Edit"
    bl_idname = "EFFIGY_PT_edit"
    bl_parent_id = "EFFIGY_PT_main"
    bl_options = {"DEFAULT_CLOSED"}

    @classmethod
    def poll(cls, context: bpy.types.Context) -> bool:
        """Only where clouds are selected."""
        return bool(splat_objects(context))

    def draw(self, context: bpy.types.Context) -> None:
        """One button per operator."""
        column = self.layout.column(align=True)
        for name in ("clean", "decimate", "colour", "merge", "apply_transform"):
            column.operator(f"effigy.{name}")


class EFFIGY_PT_display(_Sidebar, bpy.types.Panel):
    """How the selected Gaussians are shown."""

    bl_label = "Display"
    bl_idname = "EFFIGY_PT_display"
    bl_parent_id = "EFFIGY_PT_main"

    @classmethod
    def poll(cls, context: bpy.types.Context) -> bool:
        """Only where there is something to show, in a Blender that cannot draw splats itself."""
        return EFFIGY_OT_display.poll(context)

    def draw(self, context: bpy.types.Context) -> None:
        """One button per way."""
        column = self.layout.column(align=True)
        column.operator_enum("effigy.display", "mode")
        self.layout.operator("effigy.setup_compositing", icon="NODE_COMPOSITING")


def _thumbnail(image: bpy.types.Image) -> int:
    preview: Any = image.preview_ensure()
    return preview.icon_id if preview is not None else 0
