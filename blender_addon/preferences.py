"""Where the backend is and how it works; what it can do."""

from __future__ import annotations

from pathlib import Path

import bpy

from . import ADDON_ID
from .link.backend_python import find_backend_python
from .link.environments import environments_folder


class EFFIGY_AP_preferences(bpy.types.AddonPreferences):
    """The add-on's preferences."""

    bl_idname = ADDON_ID

    backend_python: bpy.props.StringProperty(  # pyright: ignore[reportInvalidTypeForm]
        name="Backend Python", description="Python that has the backend's libraries; empty searches the usual places",
        subtype="FILE_PATH",
    )  # fmt: skip
    jobs_folder: bpy.props.StringProperty(  # pyright: ignore[reportInvalidTypeForm]
        name="Jobs Folder", description="Where photos, results and logs of the jobs go; empty takes the user's folder",
        subtype="DIR_PATH",
    )  # fmt: skip
    environment_folder: bpy.props.StringProperty(  # pyright: ignore[reportInvalidTypeForm]
        name="Environment Folder", description="Where the backend is installed; empty takes the user's folder",
        subtype="DIR_PATH",
    )  # fmt: skip
    doctor: bpy.props.StringProperty(options={"HIDDEN", "SKIP_SAVE"})  # pyright: ignore[reportInvalidTypeForm]

    def draw(self, context: bpy.types.Context) -> None:
        """Folders, and what doctor says."""
        layout = self.layout
        layout.use_property_split = True
        layout.prop(self, "backend_python")
        layout.prop(self, "jobs_folder")
        layout.operator("effigy.doctor", icon="CHECKMARK")
        box = layout.box() if self.doctor else None
        for line in self.doctor.splitlines():
            assert box is not None
            box.label(text=line)


def preferences(context: bpy.types.Context) -> EFFIGY_AP_preferences | None:
    """The add-on's preferences; None where it runs from a checkout without being enabled as an add-on."""
    addon = context.preferences.addons.get(ADDON_ID)
    return addon.preferences if addon is not None else None


def user_folder() -> Path:
    """The extension's own folder, which survives updates; made if it is missing."""
    if ADDON_ID.startswith("bl_ext."):
        return Path(bpy.utils.extension_path_user(ADDON_ID, create=True))
    return Path(bpy.utils.user_resource("DATAFILES", path="effigy", create=True))


def backend_python(context: bpy.types.Context) -> Path:
    """The Python that runs the backend: the preferences' choice, else the usual places.

    Raises:
        NoBackendError: If there is none; one line.
    """
    own = preferences(context)
    given = bpy.path.abspath(own.backend_python) if own is not None and own.backend_python else None
    return find_backend_python(given, environments_root(context))


def environments_root(context: bpy.types.Context) -> Path:
    """Folder of the backend's environments."""
    own = preferences(context)
    if own is not None and own.environment_folder:
        return Path(bpy.path.abspath(own.environment_folder))
    return environments_folder(user_folder())


def jobs_folder(context: bpy.types.Context) -> Path:
    """Folder of the jobs."""
    own = preferences(context)
    if own is not None and own.jobs_folder:
        return Path(bpy.path.abspath(own.jobs_folder))
    return user_folder() / "jobs"
