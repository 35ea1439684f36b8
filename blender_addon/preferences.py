"""The add-on's preferences: where the backend is and how it works, its folders, models and health."""

from __future__ import annotations

import contextlib

import bpy

from . import ADDON_ID, setup_panel

_ACCELERATORS = (
    ("auto", "Automatic", "CUDA where the NVIDIA driver is new enough for it, else CPU"),
    ("cpu", "CPU", "Works on every machine"),
    ("cuda", "CUDA", "NVIDIA devices from Turing on, with driver 580 or newer; larger"),
)
_DEVICES = (
    ("auto", "Automatic", "What fits each method best"),
    ("cpu", "CPU", "The processor, always"),
    ("cuda", "CUDA", "The NVIDIA device; a job fails with the reason where it cannot be used"),
)


def _changed(self: bpy.types.AddonPreferences, context: bpy.types.Context) -> None:
    """The next job starts a backend that knows the new settings."""
    from . import session  # which imports this module

    session.current().forget_backend()


def _body_changed(self: bpy.types.AddonPreferences, context: bpy.types.Context) -> None:
    """A file of the user's own is looked at by doctor, in the background."""
    from . import setup
    from .link.backend_python import NoBackendError

    _changed(self, context)
    with contextlib.suppress(NoBackendError):
        setup.current().ask_doctor(context)


class EFFIGY_AP_preferences(bpy.types.AddonPreferences):
    """The add-on's preferences."""

    bl_idname = ADDON_ID

    accelerator: bpy.props.EnumProperty(  # pyright: ignore[reportInvalidTypeForm]
        name="Accelerator", description="Which build of the backend is installed", items=_ACCELERATORS,
    )  # fmt: skip
    device: bpy.props.EnumProperty(  # pyright: ignore[reportInvalidTypeForm]
        name="Device", description="Where jobs work", items=_DEVICES, update=_changed,
    )  # fmt: skip
    memory_gb: bpy.props.FloatProperty(  # pyright: ignore[reportInvalidTypeForm]
        name="Memory Limit (GB)", description="A job plans with so much at most; 0 for what the machine has",
        min=0.0, max=4096.0, precision=1, step=100, update=_changed,
    )  # fmt: skip
    environment_folder: bpy.props.StringProperty(  # pyright: ignore[reportInvalidTypeForm]
        name="Backend", description="Where the backend is installed; empty takes the add-on's own folder",
        subtype="DIR_PATH", update=_changed,
    )  # fmt: skip
    jobs_folder: bpy.props.StringProperty(  # pyright: ignore[reportInvalidTypeForm]
        name="Jobs", description="Where photos, results and logs of jobs go; empty takes the add-on's own folder",
        subtype="DIR_PATH", update=_changed,
    )  # fmt: skip
    models_folder: bpy.props.StringProperty(  # pyright: ignore[reportInvalidTypeForm]
        name="Models", description="Where pretrained models are; empty takes the add-on's own folder",
        subtype="DIR_PATH", update=_changed,
    )  # fmt: skip
    smplx_file: bpy.props.StringProperty(  # pyright: ignore[reportInvalidTypeForm]
        name="SMPL-X File", description="Your own SMPLX_NEUTRAL.npz, in place of the body that comes with Effigy; "
        "its licence is between you and its makers", subtype="FILE_PATH", update=_body_changed,
    )  # fmt: skip
    backend_python: bpy.props.StringProperty(  # pyright: ignore[reportInvalidTypeForm]
        name="Other Python", description="A Python of yours that has the backend's libraries, in place of the "
        "installed backend", subtype="FILE_PATH", update=_changed,
    )  # fmt: skip

    def draw(self, context: bpy.types.Context) -> None:
        """Backend, settings, folders, models, health."""
        setup_panel.draw(self.layout, context, self)
