"""Export of clouds of Gaussians as splat files: as they are posed or at rest, one frame or a sequence."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import bpy
from bpy_extras.io_utils import ExportHelper

from ..backend_settings import backend_python
from ..export.splat_files import BACKEND_FORMATS, FORMATS, SplatExport, export_path, write_clouds, write_frames
from ..link.backend_python import NoBackendError
from ..shared.formats import FormatError
from .edit import splat_objects

_STATES = [
    ("POSED", "As Shown", "Posed, at the current frame"),
    ("REST", "At Rest", "The rest pose, before the rig and all modifiers"),
]

_ERRORS = (FormatError, OSError, ValueError, KeyError, MemoryError)


class _SplatExporter(ExportHelper):
    """What both operators share; annotations only, as Blender's mix-ins want them."""

    filename_ext = ".ply"
    check_extension = None

    @classmethod
    def poll(cls, context: bpy.types.Context) -> bool:
        """Needs a selected cloud, or a selected rig with one."""
        return bool(splat_objects(context))

    def check(self, context: bpy.types.Context) -> bool:
        """Keep the file's suffix the chosen one."""
        wanted = str(export_path(Path(self.filepath), self.format))
        if wanted == self.filepath:
            return False
        self.filepath = wanted
        return True


class EFFIGY_OT_export_splats(_SplatExporter, bpy.types.Operator):
    """Write the selected Gaussians into one splat file, object transforms included."""

    bl_idname = "effigy.export_splats"
    bl_label = "Export Gaussian Splats"
    bl_options = {"PRESET"}

    format: bpy.props.EnumProperty(name="Format", items=[*FORMATS, *BACKEND_FORMATS])  # pyright: ignore[reportInvalidTypeForm]
    state: bpy.props.EnumProperty(name="State", items=_STATES)  # pyright: ignore[reportInvalidTypeForm]

    def execute(self, context: bpy.types.Context) -> set[str]:
        """Write; a failure is one line and leaves no half-written file."""
        path = export_path(Path(bpy.path.abspath(self.filepath)), self.format)
        try:
            lost = write_clouds(
                path, splat_objects(context), SplatExport(self.format, self.state, _backend(context, self.format))
            )
        except _ERRORS as error:
            self.report({"ERROR"}, f"Not written: {_line(error)}")
            return {"CANCELLED"}
        self.report({"INFO"}, "; ".join((f"{path.name} written", *lost)))
        return {"FINISHED"}


class EFFIGY_OT_export_sequence(_SplatExporter, bpy.types.Operator):
    """Write the selected Gaussians into one splat file for every frame of the animation. Esc stops."""

    bl_idname = "effigy.export_sequence"
    bl_label = "Export Splat Sequence"
    bl_options = {"PRESET"}

    format: bpy.props.EnumProperty(name="Format", items=FORMATS)  # pyright: ignore[reportInvalidTypeForm]
    first: bpy.props.IntProperty(name="First Frame", default=1)  # pyright: ignore[reportInvalidTypeForm]
    last: bpy.props.IntProperty(name="Last Frame", default=250)  # pyright: ignore[reportInvalidTypeForm]
    step: bpy.props.IntProperty(name="Step", default=1, min=1)  # pyright: ignore[reportInvalidTypeForm]
    skip_finished: bpy.props.BoolProperty(  # pyright: ignore[reportInvalidTypeForm]
        name="Skip Finished", description="Go on where an earlier export of the same name ended", default=False
    )

    _work: Iterator[int] | None = None
    _timer: bpy.types.Timer | None = None
    _error = ""
    _total = 0
    _done = 0

    def invoke(self, context: bpy.types.Context, event: bpy.types.Event) -> set[str]:
        """Ask for the file; the frames are the scene's."""
        self.first, self.last, self.step = (
            context.scene.frame_start, context.scene.frame_end, context.scene.frame_step,
        )  # fmt: skip
        return super().invoke(context, event)

    def execute(self, context: bpy.types.Context) -> set[str]:
        """Write: a frame per turn of the interface while there is one, all at once without."""
        frames = range(self.first, self.last + 1, self.step)
        if not frames:
            self.report({"ERROR"}, f"There are no frames from {self.first} to {self.last}")
            return {"CANCELLED"}
        path = Path(bpy.path.abspath(self.filepath))
        work = write_frames(path, splat_objects(context), frames, SplatExport(self.format), self.skip_finished)
        self._work, self._total, self._done = work, len(frames), 0
        if bpy.app.background or context.window is None:
            while self._advance():
                pass
            return self._end(context)
        context.window_manager.progress_begin(0, self._total)
        self._timer = context.window_manager.event_timer_add(0.01, window=context.window)
        context.window_manager.modal_handler_add(self)
        return {"RUNNING_MODAL"}

    def modal(self, context: bpy.types.Context, event: bpy.types.Event) -> set[str]:
        """One frame per timer event; nothing else gets through, for it would change what is written."""
        if event.type == "ESC":
            self.cancel(context)
            self.report({"WARNING"}, f"Stopped after {self._done} of {self._total} frames")
            return {"CANCELLED"}
        if event.type == "TIMER":
            if not self._advance():
                return self._end(context)
            context.window_manager.progress_update(self._done)
            context.workspace.status_text_set(f"Frame {self._done} of {self._total} written ...  Esc stops")
        return {"RUNNING_MODAL"}

    def cancel(self, context: bpy.types.Context) -> None:
        """Go back to the frame of before; what is written stays."""
        if self._work is not None:
            self._work.close()  # pyright: ignore[reportAttributeAccessIssue]
            self._work = None
        if self._timer is not None:
            context.window_manager.event_timer_remove(self._timer)
            context.window_manager.progress_end()
            context.workspace.status_text_set(None)
            self._timer = None

    def _advance(self) -> bool:
        """Write the next frame; False at the end, or after an error, which is kept for `_end`."""
        assert self._work is not None
        try:
            next(self._work)
        except StopIteration:
            self._error = ""
            return False
        except _ERRORS as error:
            self._error = _line(error)
            return False
        self._done += 1
        return True

    def _end(self, context: bpy.types.Context) -> set[str]:
        self.cancel(context)
        if self._error:
            self.report({"ERROR"}, f"{self._done} of {self._total} frames written, then: {self._error}")
            return {"CANCELLED"}
        self.report({"INFO"}, f"{self._done} frames written")
        return {"FINISHED"}


def _backend(context: bpy.types.Context, suffix: str) -> Path | None:
    """The backend's Python where a format needs it."""
    if suffix not in (row[0] for row in BACKEND_FORMATS):
        return None
    try:
        return backend_python(context)
    except NoBackendError:
        return None  # the writer says what to do


def _line(error: Exception) -> str:
    return str(error) or "there is not enough memory"


def draw_export_menu(self: bpy.types.Menu, context: bpy.types.Context) -> None:
    """The entries in File > Export."""
    self.layout.operator(EFFIGY_OT_export_splats.bl_idname, text="Gaussian Splats (.ply, .spz, .glb, .splat, .sog)")
    self.layout.operator(EFFIGY_OT_export_sequence.bl_idname, text="Gaussian Splat Sequence (.ply, .spz, ...)")
