"""Import of splat files of other tools, by menu and by dropping them on the 3D view."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import bpy
from bpy_extras.io_utils import ImportHelper

from ..backend_settings import backend_python
from ..cloud.create import create_cloud_object, splat_type
from ..cloud.display import ViewportDisplay, add_display
from ..cloud.viewport import show_splats
from ..link.backend_python import NoBackendError, backend_command, backend_environment
from ..shared.axes import axes_to_blender
from ..shared.cloud_edits import decimate, lower_degree, outliers
from ..shared.formats import SHARED_FORMATS, FormatError, find_reader, read_splats
from ..shared.formats.common import Axes, ReadResult
from ..shared.gaussians import GaussianCloud

SUFFIXES = (*(suffix for row in SHARED_FORMATS for suffix in row.suffixes), ".sog")

_MOST_DISCS = 200_000
"""Larger clouds show their bare points where splats cannot be drawn."""

_BACKEND_SUFFIXES = (".sog", ".spz")
"""What the backend reads and Blender's Python may not: WebP, and the zstd of SPZ 4."""

_AXES = [
    ("AUTO", "Automatic", "What the file says, else what is usual for the format"),
    ("y_up", "Y Up", "Y points up"),
    ("y_down", "Y Down", "Y points down, as most trainers write it"),
    ("z_up", "Z Up", "Z points up, as in Blender"),
]


@dataclass(frozen=True)
class ImportOptions:
    """What is done to a file's cloud before it enters the scene.

    Attributes:
        axes: Of the file; None for what it says itself.
        degree: Highest degree of spherical harmonics that is kept.
        budget: Most Gaussians, 0 for all.
        clean: Leave out damaged, invisible and far ones.
        backend: Python of the backend for formats that need it; None where there is none.
    """

    axes: Axes | None = None
    degree: int = 3
    budget: int = 0
    clean: bool = True
    backend: Path | None = None


@dataclass(frozen=True)
class Imported:
    """A file as it will enter the scene: its cloud in its own axes, and what to tell the user."""

    name: str
    cloud: GaussianCloud
    axes: Axes
    notes: tuple[str, ...]


def load_splats(path: Path, options: ImportOptions) -> Imported:
    """Read a file; touches nothing of Blender, so it may run on any thread.

    Raises:
        FormatError: If it cannot be read.
        OSError: If it cannot be opened.
    """
    try:
        # Not turned here: that is done on the way into the scene, where it costs no copy of the cloud.
        result = find_reader(path, SHARED_FORMATS).read(path, drop_invalid=options.clean)
    except FormatError as error:
        result = _through_backend(path, options, error)
        options = replace(options, axes=None)  # the backend has applied them
    cloud, notes = result.cloud, list(result.notes)
    axes = options.axes or result.axes
    if options.degree < cloud.degree:
        cloud = lower_degree(cloud, options.degree)
    if result.dropped:
        notes.append(f"{result.dropped} damaged Gaussians left out")
    if options.clean:
        bad = outliers(cloud)
        if bad.any() and not bad.all():
            cloud = cloud.select(~bad)
            notes.append(f"{int(bad.sum())} invisible or far Gaussians left out")
    if options.budget and len(cloud) > options.budget:
        notes.append(f"merged from {len(cloud)} Gaussians")
        cloud = decimate(cloud, options.budget)
    return Imported(path.stem, cloud, axes, tuple(notes))


def _backend_or_none(context: bpy.types.Context) -> Path | None:
    try:
        return backend_python(context)
    except NoBackendError:
        return None  # most formats need none; a file that does says so


def _through_backend(path: Path, options: ImportOptions, why: FormatError) -> ReadResult:
    """Formats whose decoder Blender's Python may lack are converted by the backend, where there is one.

    Raises:
        FormatError: `why` where the backend cannot help, else what the backend says.
    """
    if path.suffix.lower() not in _BACKEND_SUFFIXES or options.backend is None:
        raise why
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / "converted.ply"
        arguments = ["convert", str(path), str(plain), "--axes", "y_up"]
        arguments += ["--from-axes", options.axes] if options.axes else []
        arguments += ["--drop-invalid"] if options.clean else []
        done = subprocess.run(
            backend_command(options.backend, *arguments),
            capture_output=True, text=True, encoding="utf-8", errors="replace", env=backend_environment(), check=False,
        )  # fmt: skip
        if done.returncode != 0 or not plain.is_file():
            said = [line.removeprefix("error: ") for line in done.stderr.splitlines() if line.startswith("error: ")]
            defect = said[-1].removeprefix(f"{path.name}: ") if said else "the backend cannot convert it"
            raise FormatError(path, defect, "or export it as PLY from where it was made") from why
        return read_splats(plain, axes="y_up").noting("converted by the backend")


class EFFIGY_OT_import_splats(bpy.types.Operator, ImportHelper):
    """Import Gaussian splats: PLY, compressed PLY, .splat, SPZ, glTF; SOG through the backend."""

    bl_idname = "effigy.import_splats"
    bl_label = "Import Gaussian Splats"
    bl_options = {"REGISTER", "UNDO", "PRESET"}

    directory: bpy.props.StringProperty(subtype="DIR_PATH", options={"SKIP_SAVE", "HIDDEN"})  # pyright: ignore[reportInvalidTypeForm]
    files: bpy.props.CollectionProperty(  # pyright: ignore[reportInvalidTypeForm]
        type=bpy.types.OperatorFileListElement, options={"SKIP_SAVE", "HIDDEN"}
    )
    filter_glob: bpy.props.StringProperty(  # pyright: ignore[reportInvalidTypeForm]
        default=";".join(f"*{suffix}" for suffix in SUFFIXES), options={"HIDDEN"}
    )
    axes: bpy.props.EnumProperty(name="Axes", items=_AXES)  # pyright: ignore[reportInvalidTypeForm]
    degree: bpy.props.IntProperty(  # pyright: ignore[reportInvalidTypeForm]
        name="Harmonics Degree", description="Highest degree of view-dependent colour", default=3, min=0, max=4
    )
    budget: bpy.props.IntProperty(  # pyright: ignore[reportInvalidTypeForm]
        name="At Most", description="Merge neighbours until no more Gaussians are left; 0 keeps all", default=0, min=0
    )
    clean: bpy.props.BoolProperty(  # pyright: ignore[reportInvalidTypeForm]
        name="Clean Up", description="Leave out damaged, invisible and far Gaussians", default=True
    )

    _work: Future[list[Imported]] | None = None
    _pool: ThreadPoolExecutor | None = None
    _timer: bpy.types.Timer | None = None

    def execute(self, context: bpy.types.Context) -> set[str]:
        """Read: in the background while there is a window, at once without one."""
        folder = Path(bpy.path.abspath(self.directory or "."))
        paths = [folder / item.name for item in self.files if item.name] or [Path(bpy.path.abspath(self.filepath))]
        axes = None if self.axes == "AUTO" else self.axes
        options = ImportOptions(axes, self.degree, self.budget, self.clean, _backend_or_none(context))
        if bpy.app.background or context.window is None:
            return self._finish(context, lambda: [load_splats(path, options) for path in paths])
        self._pool = ThreadPoolExecutor(1, "effigy-import")
        self._work = self._pool.submit(lambda: [load_splats(path, options) for path in paths])
        self._timer = context.window_manager.event_timer_add(0.05, window=context.window)
        context.window_manager.modal_handler_add(self)
        context.workspace.status_text_set(f"Reading {', '.join(path.name for path in paths)} ...  Esc cancels")
        return {"RUNNING_MODAL"}

    def modal(self, context: bpy.types.Context, event: bpy.types.Event) -> set[str]:
        """Wait without holding anything up; one undo step at the end."""
        assert self._work is not None
        if event.type == "ESC":
            self.cancel(context)
            return {"CANCELLED"}
        if not self._work.done():
            return {"PASS_THROUGH"}
        self.cancel(context)
        return self._finish(context, self._work.result)

    def cancel(self, context: bpy.types.Context) -> None:
        """Let go of the timer; what is still being read is dropped when it is done."""
        if self._timer is not None:
            context.window_manager.event_timer_remove(self._timer)
            context.workspace.status_text_set(None)
            self._timer = None
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)

    def _finish(self, context: bpy.types.Context, read: Callable[[], list[Imported]]) -> set[str]:
        try:
            clouds = read()
        except (FormatError, OSError, MemoryError) as error:
            self.report({"ERROR"}, str(error) or "The file does not fit into memory; import fewer Gaussians")
            return {"CANCELLED"}
        for ob in context.view_layer.objects:
            ob.select_set(False)
        for imported in clouds:
            ob = insert_cloud(imported, context.collection)
            ob.select_set(True)
            context.view_layer.objects.active = ob
            notes = "; ".join((f"{len(ob.data.points)} Gaussians", *imported.notes))
            self.report({"INFO"}, f"{imported.name}: {notes}")
        return {"FINISHED"}


def insert_cloud(imported: Imported, collection: bpy.types.Collection) -> bpy.types.Object:
    """A cloud object with its display."""
    turn = axes_to_blender(imported.axes)
    ob = create_cloud_object(imported.name, imported.cloud, collection, turn, use_up=True)
    if splat_type() is None:
        # A disc is a quad of its own: of a large cloud they take several times its memory.
        few = len(ob.data.points) <= _MOST_DISCS
        add_display(ob, collection, ViewportDisplay.DISCS if few else ViewportDisplay.POINTS)
        show_splats(ob, not bpy.app.background)
    return ob


class EFFIGY_FH_splats(bpy.types.FileHandler):
    """Splat files dropped on the 3D view."""

    bl_idname = "EFFIGY_FH_splats"
    bl_label = "Gaussian Splats"
    bl_import_operator = "effigy.import_splats"
    bl_file_extensions = ";".join(dict.fromkeys("." + suffix.rsplit(".", 1)[-1] for suffix in SUFFIXES))

    @classmethod
    def poll_drop(cls, context: bpy.types.Context) -> bool:
        """Only the 3D view takes them."""
        return context.area is not None and context.area.type == "VIEW_3D"


def draw_import_menu(self: bpy.types.Menu, context: bpy.types.Context) -> None:
    """The entry in File > Import."""
    self.layout.operator(EFFIGY_OT_import_splats.bl_idname, text="Gaussian Splats (.ply, .spz, .splat, .glb, .sog)")
