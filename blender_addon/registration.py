"""What Blender is told about the add-on."""

from __future__ import annotations

import bpy

from . import panels
from .cloud.create import upgrade_clouds
from .operators import import_avatar

_CLASSES: tuple[type, ...] = (import_avatar.EFFIGY_OT_import_avatar, panels.EFFIGY_PT_main)


@bpy.app.handlers.persistent
def _after_load(*_: object) -> None:
    """Give clouds of older files the types that this Blender draws as splats."""
    upgrade_clouds()


def register() -> None:
    """Register the classes and the load handler."""
    for cls in _CLASSES:
        bpy.utils.register_class(cls)
    bpy.app.handlers.load_post.append(_after_load)


def unregister() -> None:
    """Unregister in reverse order; Blender may have removed parts at exit already."""
    if _after_load in bpy.app.handlers.load_post:
        bpy.app.handlers.load_post.remove(_after_load)
    for cls in reversed(_CLASSES):
        if getattr(cls, "is_registered", True):
            bpy.utils.unregister_class(cls)
