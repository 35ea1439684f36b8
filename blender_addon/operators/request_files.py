"""Files beside the photo that a method takes: added by the file browser or by dropping, taken away again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import bpy

from .. import session
from ..shared.methods import REQUESTS
from ..shared.request_files import KINDS, FileParameter, file_parameters

_MORE_PHOTOS = "photos"
"""The parameter that dropped pictures go to."""


def _parameter(settings: Any, name: str) -> FileParameter | None:
    """The chosen method's parameter with this name, if it names several files."""
    found = (item for item in file_parameters(REQUESTS[settings.method]) if item.several)
    return next((item for item in found if item.name == name), None)


def _rows(settings: Any, name: str) -> Any:
    return getattr(getattr(settings, settings.method), name)


def _add(settings: Any, name: str, paths: Sequence[str]) -> None:
    """Behind the files that are there already; none twice."""
    rows = _rows(settings, name)
    known = {bpy.path.abspath(row.path) for row in rows}
    for path in dict.fromkeys(bpy.path.abspath(path) for path in paths):
        if path not in known:
            rows.add().path = path


class _Files:
    """What Blender's file browser and its drops give: a folder and names in it."""

    directory: bpy.props.StringProperty(subtype="DIR_PATH", options={"SKIP_SAVE"})  # pyright: ignore[reportInvalidTypeForm]
    files: bpy.props.CollectionProperty(  # pyright: ignore[reportInvalidTypeForm]
        type=bpy.types.OperatorFileListElement, options={"SKIP_SAVE"}
    )

    def paths(self) -> list[str]:
        """The chosen files."""
        return [str(Path(self.directory) / item.name) for item in self.files if item.name]


class EFFIGY_OT_add_files(_Files, bpy.types.Operator):
    """Choose files for this setting; several at once can be chosen."""

    bl_idname = "effigy.add_files"
    bl_label = "Add Files"
    bl_options = {"UNDO", "INTERNAL"}

    parameter: bpy.props.StringProperty(options={"HIDDEN", "SKIP_SAVE"})  # pyright: ignore[reportInvalidTypeForm]
    filter_glob: bpy.props.StringProperty(options={"HIDDEN", "SKIP_SAVE"})  # pyright: ignore[reportInvalidTypeForm]

    def invoke(self, context: bpy.types.Context, event: bpy.types.Event) -> set[str]:
        """Ask for the files; the browser shows those of the right kind."""
        parameter = _parameter(context.scene.effigy, self.parameter)
        if parameter is None:
            return {"CANCELLED"}
        self.filter_glob = ";".join(f"*{ending}" for ending in parameter.kind.endings)
        context.window_manager.fileselect_add(self)
        return {"RUNNING_MODAL"}

    def execute(self, context: bpy.types.Context) -> set[str]:
        """Add them."""
        settings = context.scene.effigy
        if _parameter(settings, self.parameter) is None or not self.paths():
            return {"CANCELLED"}
        _add(settings, self.parameter, self.paths())
        return {"FINISHED"}


class EFFIGY_OT_remove_file(bpy.types.Operator):
    """Take this file away from the setting; the file itself stays."""

    bl_idname = "effigy.remove_file"
    bl_label = "Remove File"
    bl_options = {"UNDO", "INTERNAL"}

    parameter: bpy.props.StringProperty(options={"HIDDEN", "SKIP_SAVE"})  # pyright: ignore[reportInvalidTypeForm]
    number: bpy.props.IntProperty(options={"HIDDEN", "SKIP_SAVE"})  # pyright: ignore[reportInvalidTypeForm]

    def execute(self, context: bpy.types.Context) -> set[str]:
        """Remove the row."""
        settings = context.scene.effigy
        if _parameter(settings, self.parameter) is None:
            return {"CANCELLED"}
        _rows(settings, self.parameter).remove(self.number)
        return {"FINISHED"}


class EFFIGY_OT_drop_more_photos(_Files, bpy.types.Operator):
    """Add pictures of the same person, from behind or from the side."""

    bl_idname = "effigy.drop_more_photos"
    bl_label = "Add as Further Photos"
    bl_options = {"UNDO"}

    def execute(self, context: bpy.types.Context) -> set[str]:
        """Add them behind those that are there."""
        settings = context.scene.effigy
        if _parameter(settings, _MORE_PHOTOS) is None or not self.paths():
            return {"CANCELLED"}
        _add(settings, _MORE_PHOTOS, self.paths())
        session.redraw_panels()
        return {"FINISHED"}


class EFFIGY_FH_more_photos(bpy.types.FileHandler):
    """Picture files dropped on the sidebar when there is a photo: Blender asks what they are."""

    bl_idname = "EFFIGY_FH_more_photos"
    bl_label = "Further Photos of the Same Person"
    bl_import_operator = "effigy.drop_more_photos"
    bl_file_extensions = ";".join(KINDS["picture"].endings)

    @classmethod
    def poll_drop(cls, context: bpy.types.Context) -> bool:
        """Only in the sidebar, and only where a photo is chosen and the method takes further ones."""
        in_sidebar = context.area is not None and context.area.type == "VIEW_3D" and context.region.type == "UI"
        settings = context.scene.effigy
        return in_sidebar and settings.image is not None and _parameter(settings, _MORE_PHOTOS) is not None
