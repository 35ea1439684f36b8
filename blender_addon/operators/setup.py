"""The buttons of the preferences: install, repair, cancel, remove, doctor, models."""

from __future__ import annotations

import bpy

from .. import backend_settings as settings
from .. import setup
from ..layouts import text_lines
from ..link.backend_python import NoBackendError
from ..link.install import SIZES_GB


class _Online:
    """Only with Blender's online access, and one at a time."""

    @classmethod
    def poll(cls, context: bpy.types.Context) -> bool:
        """Says why not."""
        if not settings.online():
            cls.poll_message_set("Allow Online Access in the preferences under System first")  # pyright: ignore
            return False
        if setup.current().is_installing:
            cls.poll_message_set("An installation is running")  # pyright: ignore
            return False
        return True


class EFFIGY_OT_install_backend(_Online, bpy.types.Operator):
    """Download the backend's libraries and put them into a folder of their own; Blender stays usable meanwhile."""

    bl_idname = "effigy.install_backend"
    bl_label = "Install Backend"

    def execute(self, context: bpy.types.Context) -> set[str]:
        """Begin; the preferences show how far it is."""
        setup.current().install(context, "install")
        return {"FINISHED"}


class EFFIGY_OT_repair_backend(_Online, bpy.types.Operator):
    """Install every library of the backend once more; what was downloaded before is used again."""

    bl_idname = "effigy.repair_backend"
    bl_label = "Repair"

    def execute(self, context: bpy.types.Context) -> set[str]:
        """Begin."""
        setup.current().install(context, "repair")
        return {"FINISHED"}


class EFFIGY_OT_remove_backend(bpy.types.Operator):
    """Delete the backend's libraries; avatars and models stay."""

    bl_idname = "effigy.remove_backend"
    bl_label = "Remove"

    @classmethod
    def poll(cls, context: bpy.types.Context) -> bool:
        """Not while it is being installed."""
        return not setup.current().is_installing

    def invoke(self, context: bpy.types.Context, event: bpy.types.Event) -> set[str]:
        """Ask first."""
        return context.window_manager.invoke_confirm(self, event)

    def execute(self, context: bpy.types.Context) -> set[str]:
        """Begin."""
        setup.current().install(context, "remove")
        return {"FINISHED"}


class EFFIGY_OT_cancel_install(bpy.types.Operator):
    """Stop the installation; what is there stays, and Install goes on with it."""

    bl_idname = "effigy.cancel_install"
    bl_label = "Cancel"

    def execute(self, context: bpy.types.Context) -> set[str]:
        """Stop."""
        installation = setup.current().installation
        if installation is not None:
            installation.cancel()
        return {"FINISHED"}


class EFFIGY_OT_install_log(bpy.types.Operator):
    """Show what the installation wrote, in a text editor."""

    bl_idname = "effigy.install_log"
    bl_label = "Log"

    def execute(self, context: bpy.types.Context) -> set[str]:
        """Load the log as a text and open a window with it."""
        path = settings.environments_root(context) / "install.log"
        if not path.is_file():
            self.report({"WARNING"}, "There is no log yet")
            return {"CANCELLED"}
        text = bpy.data.texts.load(str(path), internal=True)
        if context.window is not None:
            bpy.ops.wm.window_new()
            area = context.window_manager.windows[-1].screen.areas[0]
            area.type = "TEXT_EDITOR"
            area.spaces.active.text = text
        return {"FINISHED"}


class EFFIGY_OT_system_preferences(bpy.types.Operator):
    """Show where Blender's online access is allowed."""

    bl_idname = "effigy.system_preferences"
    bl_label = "Open System Preferences"

    def execute(self, context: bpy.types.Context) -> set[str]:
        """Go there."""
        context.preferences.active_section = "SYSTEM"
        if context.area is None or context.area.type != "PREFERENCES":
            bpy.ops.screen.userpref_show("INVOKE_DEFAULT")
        return {"FINISHED"}


class EFFIGY_OT_doctor(bpy.types.Operator):
    """Ask the backend what works on this machine."""

    bl_idname = "effigy.doctor"
    bl_label = "Check the Backend"

    @classmethod
    def poll(cls, context: bpy.types.Context) -> bool:
        """One at a time."""
        return not setup.current().is_busy(setup.DOCTOR)

    def execute(self, context: bpy.types.Context) -> set[str]:
        """Begin; the preferences show what it says."""
        try:
            setup.current().ask_doctor(context)
        except NoBackendError as error:
            self.report({"ERROR"}, str(error))
            return {"CANCELLED"}
        return {"FINISHED"}


class EFFIGY_OT_copy_doctor(bpy.types.Operator):
    """Copy what doctor said, for a report."""

    bl_idname = "effigy.copy_doctor"
    bl_label = "Copy"

    @classmethod
    def poll(cls, context: bpy.types.Context) -> bool:
        """Needs something to copy."""
        return bool(setup.current().findings)

    def execute(self, context: bpy.types.Context) -> set[str]:
        """Put it on the clipboard."""
        lines = [f"Blender {bpy.app.version_string}"]
        for row in setup.current().findings:
            step = f"  -> {row['next_step']}" if row.get("next_step") else ""
            lines.append(f"{row.get('name', ''):<20} {row.get('value', '')}{step}")
        context.window_manager.clipboard = "\n".join(lines)
        self.report({"INFO"}, "Copied")
        return {"FINISHED"}


class EFFIGY_OT_list_models(bpy.types.Operator):
    """Ask the backend which pretrained models there are and which are installed."""

    bl_idname = "effigy.list_models"
    bl_label = "List Models"

    @classmethod
    def poll(cls, context: bpy.types.Context) -> bool:
        """One at a time."""
        return not setup.current().is_busy(setup.LIST)

    def execute(self, context: bpy.types.Context) -> set[str]:
        """Begin."""
        try:
            setup.current().list_models(context)
        except NoBackendError as error:
            self.report({"ERROR"}, str(error))
            return {"CANCELLED"}
        return {"FINISHED"}


class EFFIGY_OT_fetch_model(bpy.types.Operator):
    """Read the licence of this model, accept it and download the model."""

    bl_idname = "effigy.fetch_model"
    bl_label = "Accept Licence and Fetch"

    model_id: bpy.props.StringProperty(options={"HIDDEN"})  # pyright: ignore[reportInvalidTypeForm]

    @classmethod
    def poll(cls, context: bpy.types.Context) -> bool:
        """Only with Blender's online access."""
        if not settings.online():
            cls.poll_message_set("Allow Online Access in the preferences under System first")
            return False
        return True

    def invoke(self, context: bpy.types.Context, event: bpy.types.Event) -> set[str]:
        """Show the licence; its acceptance is the press of the button."""
        return context.window_manager.invoke_props_dialog(self, width=460)

    def draw(self, context: bpy.types.Context) -> None:
        """What is accepted."""
        row, layout = self._row(), self.layout
        layout.label(text=row.get("title", self.model_id), icon="PACKAGE")
        layout.label(text=f"Licence: {row.get('licence', 'unknown')}")
        if not row.get("commercial"):
            layout.label(text="Not for commercial use", icon="ERROR")
        if row.get("licence_url"):
            layout.operator("wm.url_open", text="Read the Licence", icon="URL").url = row["licence_url"]
        if row.get("note"):
            text_lines(layout.column(), context, str(row["note"]), most=6)
        layout.label(text="With OK you accept this licence, and the model is downloaded.")

    def execute(self, context: bpy.types.Context) -> set[str]:
        """Begin."""
        row = self._row()
        if not row:
            return {"CANCELLED"}
        try:
            setup.current().fetch(context, self.model_id, str(row.get("licence", "")))
        except NoBackendError as error:
            self.report({"ERROR"}, str(error))
            return {"CANCELLED"}
        return {"FINISHED"}

    def _row(self) -> dict[str, object]:
        return next((row for row in setup.current().models if row.get("id") == self.model_id), {})


class EFFIGY_OT_cancel_fetch(bpy.types.Operator):
    """Stop this download; what has come is kept."""

    bl_idname = "effigy.cancel_fetch"
    bl_label = "Cancel"

    model_id: bpy.props.StringProperty(options={"HIDDEN"})  # pyright: ignore[reportInvalidTypeForm]

    def execute(self, context: bpy.types.Context) -> set[str]:
        """Stop."""
        setup.current().cancel_fetch(self.model_id)
        return {"FINISHED"}


def sizes(accelerator: str) -> str:
    """Download and disk of an accelerator, for people."""
    download, disk = SIZES_GB[accelerator]
    return f"About {download:g} GB to download, {disk:g} GB on the disk"


def classes() -> tuple[type, ...]:
    """What Blender is told about."""
    return (
        EFFIGY_OT_install_backend,
        EFFIGY_OT_repair_backend,
        EFFIGY_OT_remove_backend,
        EFFIGY_OT_cancel_install,
        EFFIGY_OT_install_log,
        EFFIGY_OT_system_preferences,
        EFFIGY_OT_doctor,
        EFFIGY_OT_copy_doctor,
        EFFIGY_OT_list_models,
        EFFIGY_OT_fetch_model,
        EFFIGY_OT_cancel_fetch,
    )
