"""What Blender is told about the add-on."""

from __future__ import annotations

from collections.abc import Callable

import bpy

from . import panels
from .cloud import engine
from .cloud.create import splat_type, upgrade_clouds
from .cloud.viewport import SplatViewport, node_display_for_saving, show_splats
from .operators import animate, display, edit, export_splats, import_avatar, import_splats

_CLASSES: tuple[type, ...] = (
    engine.EFFIGY_RE_splats,
    import_avatar.EFFIGY_OT_import_avatar,
    display.EFFIGY_OT_display,
    import_splats.EFFIGY_OT_import_splats,
    import_splats.EFFIGY_FH_splats,
    export_splats.EFFIGY_OT_export_splats,
    edit.EFFIGY_OT_crop,
    edit.EFFIGY_OT_clean,
    edit.EFFIGY_OT_decimate,
    edit.EFFIGY_OT_colour,
    edit.EFFIGY_OT_merge,
    edit.EFFIGY_OT_apply_transform,
    animate.EFFIGY_OT_import_motion,
    animate.EFFIGY_OT_copy_motion,
    animate.EFFIGY_OT_export_bvh,
    panels.EFFIGY_PT_main,
    panels.EFFIGY_PT_motion,
    panels.EFFIGY_PT_edit,
    panels.EFFIGY_PT_display,
)


class _Session:
    """What lives between `register` and `unregister`: the viewport's drawer and the handlers."""

    def __init__(self) -> None:
        # Blender draws splats of its own from 5.3; without a window nothing is drawn.
        drawn = splat_type() is None and not bpy.app.background
        self.viewport = SplatViewport() if drawn else None
        self._while_saving: list[bpy.types.Object] = []
        handlers: dict[str, Callable[..., None]] = {
            "load_post": self._loaded,
            "render_init": engine.before_render,
            "render_complete": engine.after_render,
            "render_cancel": engine.after_render,
        }
        if self.viewport is not None:
            handlers |= {
                "depsgraph_update_post": self._changed,
                "frame_change_post": self._changed,
                "undo_post": self._replaced,
                "redo_post": self._replaced,
                "save_pre": self._saving,
                "save_post": self._saved,
                "save_post_fail": self._saved,
            }
        self._handlers = {name: _persistent(method) for name, method in handlers.items()}
        for name, handler in self._handlers.items():
            getattr(bpy.app.handlers, name).append(handler)

    def close(self) -> None:
        """Take everything back; Blender may have removed parts at exit already."""
        for name, handler in self._handlers.items():
            handlers = getattr(bpy.app.handlers, name)
            if handler in handlers:
                handlers.remove(handler)
        if self.viewport is not None:
            self._saving()
            self.viewport.close()

    def _loaded(self, *_: object) -> None:
        """Give clouds of older files the types that this Blender draws as splats."""
        upgrade_clouds()
        self._replaced()

    def _changed(self, scene: bpy.types.Scene, depsgraph: bpy.types.Depsgraph) -> None:
        assert self.viewport is not None
        self.viewport.scene_changed(depsgraph)

    def _replaced(self, *_: object) -> None:
        if self.viewport is not None:
            self.viewport.forget()

    def _saving(self, *_: object) -> None:
        self._while_saving = node_display_for_saving()

    def _saved(self, *_: object) -> None:
        for ob in self._while_saving:
            show_splats(ob, True)
        self._while_saving = []


def _persistent(method: Callable[..., None]) -> Callable[..., None]:
    """A plain function, which Blender can mark to outlive the loading of a file."""

    @bpy.app.handlers.persistent
    def handler(*arguments: object) -> None:
        method(*arguments)

    return handler


_sessions: list[_Session] = []
"""The running session, at most one; Blender calls `register` and `unregister` as plain functions."""


def register() -> None:
    """Register the classes and handlers, and start drawing."""
    for cls in _CLASSES:
        bpy.utils.register_class(cls)
    bpy.types.TOPBAR_MT_file_import.append(import_splats.draw_import_menu)
    bpy.types.TOPBAR_MT_file_export.append(export_splats.draw_export_menu)
    _sessions.append(_Session())


def unregister() -> None:
    """The reverse; Blender may have removed parts at exit already."""
    while _sessions:
        _sessions.pop().close()
    bpy.types.TOPBAR_MT_file_import.remove(import_splats.draw_import_menu)
    bpy.types.TOPBAR_MT_file_export.remove(export_splats.draw_export_menu)
    for cls in reversed(_CLASSES):
        if getattr(cls, "is_registered", True):
            bpy.utils.unregister_class(cls)
