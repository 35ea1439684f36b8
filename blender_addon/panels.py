"""The add-on's tab in the sidebar of the 3D view."""

from __future__ import annotations

import json
import time
from dataclasses import fields
from typing import Any

import bpy

from . import session
from .link.jobs import ENDED, Job
from .operators.animate import avatar_rig
from .operators.display import EFFIGY_OT_display
from .operators.edit import splat_objects
from .operators.generate import BUNDLE_PROPERTY
from .shared.methods import REQUESTS

_STATUS_ICONS = {"done": "CHECKMARK", "failed": "ERROR", "cancelled": "X", "interrupted": "TIME"}
_LINE = 44
"""Characters of a sidebar of usual width: Blender's labels do not wrap."""


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
        column = layout.column()
        column.template_ID(settings, "image", open="image.open", text="")
        if settings.image is not None:
            column.template_icon(icon_value=_thumbnail(settings.image), scale=7)
        else:
            column.label(text="Choose a photo, or drop it here", icon="IMAGE_DATA")
        column.operator("effigy.use_editor_image", icon="IMAGE")
        fields_column = layout.column()
        fields_column.use_property_split = True
        fields_column.use_property_decorate = False
        if len(REQUESTS) > 1:
            fields_column.prop(settings, "method")
        group = getattr(settings, settings.method)
        for item in fields(REQUESTS[settings.method]):
            fields_column.prop(group, item.name)
        row = layout.row()
        row.scale_y = 1.6
        row.operator("effigy.generate", icon="OUTLINER_OB_ARMATURE")


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

    def draw(self, context: bpy.types.Context) -> None:
        """The newest first."""
        queue = session.current().queue
        assert queue is not None
        for problem in (queue.problem, session.current().problem):
            if problem:
                _lines(self.layout, problem, "ERROR")
        for job in reversed(queue.jobs):
            _draw_job(self.layout.box(), job)


class EFFIGY_PT_avatar(_AvatarPanel, bpy.types.Panel):
    """What made the active avatar."""

    bl_label = "Avatar"
    bl_idname = "EFFIGY_PT_avatar"
    bl_parent_id = "EFFIGY_PT_main"

    def draw(self, context: bpy.types.Context) -> None:
        """Generators, warnings, and what can be done again."""
        rig, layout = avatar_rig(context), self.layout
        assert rig is not None
        if rig.get("effigy_made_by"):
            _lines(layout, f"Made by {rig['effigy_made_by']}", "INFO")
        for warning in json.loads(rig.get("effigy_warnings", "[]")):
            _lines(layout, str(warning), "ERROR")
        column = layout.column(align=True)
        column.operator("effigy.regenerate", icon="FILE_REFRESH")
        column.operator("effigy.use_settings", icon="DUPLICATE")
        column.operator("effigy.relink", icon="FILE_FOLDER")
        if BUNDLE_PROPERTY in rig:
            column.operator("wm.path_open", text="Show Files", icon="FILEBROWSER").filepath = rig[BUNDLE_PROPERTY]


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
        """Import, copy, export."""
        column = self.layout.column(align=True)
        column.operator("effigy.import_motion", icon="IMPORT")
        column.operator("effigy.copy_motion", icon="ARMATURE_DATA")
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
        for name in ("crop", "clean", "decimate", "colour", "merge", "apply_transform"):
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


def _draw_job(box: bpy.types.UILayout, job: Job) -> None:
    """One job: state, progress, picture, how it ended, and what can be done."""
    header = box.row()
    header.label(text=f"{job.method} {job.job_id.split('-')[2]}", icon=_STATUS_ICONS.get(job.status, "SORTTIME"))
    if job.status not in ENDED:
        header.operator("effigy.cancel", text="", icon="X").job_id = job.job_id
        box.progress(factor=job.fraction, text=_progress_text(job))
        if job.stage:
            _lines(box, f"{job.stage}: {job.note}" if job.note else job.stage)
    else:
        header.operator("effigy.open_log", text="", icon="TEXT").job_id = job.job_id
        header.operator("effigy.dismiss", text="", icon="PANEL_CLOSE").job_id = job.job_id
    if job.preview is not None and job.status not in ENDED:
        icon = session.current().icon(job.preview)
        if icon:
            box.template_icon(icon_value=icon, scale=8)
    for text in (job.text, job.hint, *job.warnings):
        if text:
            _lines(box, text)
    if job.status in ENDED and job.status != "done" and (job.retryable or job.status == "interrupted"):
        box.operator("effigy.again", icon="FILE_REFRESH").job_id = job.job_id


def _progress_text(job: Job) -> str:
    elapsed = job.elapsed_s(time.monotonic())
    if job.status != "running":
        return job.status
    left = f", {_clock(job.remaining_s)} left" if job.remaining_s is not None else ""
    return f"{100 * job.fraction:.0f} %  {_clock(elapsed)}{left}"


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def _thumbnail(image: bpy.types.Image) -> int:
    preview: Any = image.preview_ensure()
    return preview.icon_id if preview is not None else 0


def _lines(layout: bpy.types.UILayout, text: str, icon: str = "NONE") -> None:
    """A text over several labels."""
    column = layout.column(align=True)
    line = ""
    for word in text.split():
        if line and len(line) + 1 + len(word) > _LINE:
            column.label(text=line, icon=icon)
            line, icon = "", "BLANK1" if icon != "NONE" else "NONE"
        line = f"{line} {word}".strip()
    column.label(text=line, icon=icon)
