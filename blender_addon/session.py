"""What lives while the add-on is enabled: the viewport's drawer, the queue of jobs, and their handlers and timer."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import bpy
import bpy.utils.previews

from .backend_settings import backend_python, backend_variables, jobs_folder, serve_arguments
from .cloud import engine
from .cloud.create import splat_type, upgrade_clouds
from .cloud.viewport import SplatViewport, node_display_for_saving, show_splats
from .link.backend_python import NoBackendError, backend_command
from .link.jobs import Job, JobQueue, has_unfinished
from .link.process import BackendProcess
from .shared.avatar import Avatar, read_bundle
from .shared.gaussians import GaussianCloud
from .shared.methods import Request, request_to_json
from .shared.request_files import for_job

TICK_S = 0.05
"""The pipe is looked at this often while there are jobs ..."""

IDLE_TICK_S = 0.5
"""... and this often while there are none, so that an idle backend is ended in time."""

REDRAW_S = 0.1
"""The sidebars are drawn again at most so often when something has changed ..."""

CLOCK_S = 0.5
"""... and so often while a job runs, for its clock."""

_MOST_ICONS = 24
"""Pictures of jobs that are kept for drawing."""

_DRAGGING = ("TRANSFORM", "VIEW3D", "MESH", "OBJECT", "POSE", "ARMATURE", "PAINT", "SCULPT", "WM", "CURVE", "NODE")
"""Groups of Blender's own operators during which nothing should change under the artist's hand."""


@dataclass
class Loaded:
    """A finished job's bundle, read in the background, on its way into the scene.

    Attributes:
        job: The job.
        content: What was read.
        wanted: The artist asked for it now, whatever the mode.
    """

    job: Job
    content: Future[tuple[GaussianCloud, Avatar]]
    wanted: bool = False


@dataclass(frozen=True)
class FileMark:
    """Which file was open: the number of files opened before it in this session, and its path."""

    number: int
    path: str

    def is_open(self, now: FileMark) -> bool:
        """Whether the file is still the open one; a saved file that was opened again counts."""
        return self.number == now.number or (self.path != "" and self.path == now.path)


class Session:
    """One per enabled add-on.

    Attributes:
        viewport: Draws splats; None where Blender draws them itself or has no window.
        queue: The jobs; None until the first is started.
        arriving: Finished jobs on their way into the scene, by id.
        arrived: Ids of the jobs whose results have come into a scene.
        problems: Why a finished avatar could not be brought into the scene, one line, by the job's id.
    """

    def __init__(self) -> None:
        """Attach the handlers."""
        self.viewport = SplatViewport() if splat_type() is None and not bpy.app.background else None
        self.queue: JobQueue | None = None
        self.arriving: dict[str, Loaded] = {}
        self.arrived: set[str] = set()
        self.problems: dict[str, str] = {}
        self._files_opened = 0
        self._started_in: dict[str, FileMark] = {}
        self._shown: tuple[object, ...] = ()
        self._redrawn = 0.0
        self._backend_seen = (-1e9, "")
        # Blender knows a timer by its object, and `self._tick` is a new one each time that it is asked for.
        self._timer = self._tick
        self._pool = ThreadPoolExecutor(1, "effigy-read")
        self._looked = False
        self._icons = bpy.utils.previews.new()
        self._while_saving: list[bpy.types.Object] = []
        self._handlers = {name: _persistent(method) for name, method in self._wanted_handlers().items()}
        for name, handler in self._handlers.items():
            getattr(bpy.app.handlers, name).append(handler)
        if not bpy.app.background:
            self._watch(1.0)  # for jobs that an earlier session left unfinished

    def _wanted_handlers(self) -> dict[str, Callable[..., None]]:
        wanted: dict[str, Callable[..., None]] = {
            "load_post": self._loaded,
            "render_init": engine.before_render,
            "render_complete": engine.after_render,
            "render_cancel": engine.after_render,
        }
        if self.viewport is not None:
            wanted |= {
                "depsgraph_update_post": self._changed,
                "frame_change_post": self._changed,
                "undo_post": self._replaced,
                "redo_post": self._replaced,
                "save_pre": self._saving,
                "save_post": self._saved,
                "save_post_fail": self._saved,
            }
        return wanted

    def close(self) -> None:
        """Take everything back; Blender may have removed parts at exit already. Unfinished jobs can be resumed."""
        for name, handler in self._handlers.items():
            handlers = getattr(bpy.app.handlers, name)
            if handler in handlers:
                handlers.remove(handler)
        if bpy.app.timers.is_registered(self._timer):
            bpy.app.timers.unregister(self._timer)
        if self.queue is not None:
            self.queue.close()
        self._pool.shutdown(wait=False, cancel_futures=True)
        bpy.utils.previews.remove(self._icons)
        if self.viewport is not None:
            self._saving()
            self.viewport.close()

    def jobs(self, context: bpy.types.Context) -> JobQueue:
        """The queue; the first call decides on the backend and the folder.

        Raises:
            NoBackendError: If there is no Python for the backend; one line.
        """
        if self.queue is None:
            root = jobs_folder(context)
            process = BackendProcess(serve_command(context, root), backend_variables(context), root / "backend.log")
            self.queue = JobQueue(process, root)
            self.queue.recover()
        self._watch()
        return self.queue

    def submit(self, context: bpy.types.Context, method: str, request: Request, photo: Path, title: str = "") -> str:
        """Queue a job; its result comes into the scene by itself while this file is open.

        Args:
            context: Where its backend and its folder are looked up.
            method: Method id.
            request: The method's parameters; the files that they name are copied.
            photo: A file; it is copied too.
            title: What people call the job; the photo's name if empty.

        Returns:
            The job's id.

        Raises:
            NoBackendError: If there is no Python for the backend; one line.
            JobError: If the photo or the folder of jobs cannot be used; one line.
            ValueError: If another file that the request names cannot be used; one line.
        """
        stored, files = for_job(request)
        job_id = self.jobs(context).submit(method, request_to_json(stored), photo, title, files)
        self._started_in[job_id] = self._open_file()
        return job_id

    def again(self, context: bpy.types.Context, job_id: str) -> None:
        """Start an ended job again; earlier crashes of the backend are forgiven.

        Raises:
            NoBackendError: If there is no Python for the backend; one line.
        """
        queue = self.jobs(context)
        queue.process.forgive()
        queue.again(job_id)
        self._started_in[job_id] = self._open_file()

    def bring(self, job: Job, wanted: bool) -> None:
        """Read a finished job's result in the background; it comes into the scene when nothing is in its way."""
        if job.job_id not in self.arriving:
            content = self._pool.submit(read_bundle, job.folder / "result")
            self.arriving[job.job_id] = Loaded(job, content, wanted)
        self.arriving[job.job_id].wanted |= wanted
        self._watch()

    def _open_file(self) -> FileMark:
        return FileMark(self._files_opened, bpy.data.filepath)

    def _watch(self, first_s: float = TICK_S) -> None:
        if not bpy.app.timers.is_registered(self._timer):
            # Persistent: loading another file must not leave a running job without its timer.
            bpy.app.timers.register(self._timer, first_interval=first_s, persistent=True)

    def backend_problem(self, context: bpy.types.Context) -> str:
        """One line if there is no Python for the backend; looked for again every two seconds."""
        now = time.monotonic()
        if now - self._backend_seen[0] > 2.0:
            try:
                backend_python(context)
                problem = ""
            except NoBackendError as error:
                problem = str(error)
            self._backend_seen = (now, problem)
        return self._backend_seen[1]

    def forget_backend(self) -> None:
        """Let the next job decide anew, after the preferences changed; nothing happens while jobs run."""
        if self.queue is not None and not self.queue.is_busy():
            self.queue.close()
            self.queue = None

    def icon(self, picture: Path) -> int:
        """Icon of a picture file for the panel; 0 if it cannot be read."""
        try:
            key = f"{picture}:{picture.stat().st_mtime_ns}"
            return (self._icons.get(key) or self._icons.load(key, str(picture), "IMAGE")).icon_id
        except (OSError, RuntimeError, KeyError):
            return 0  # being replaced at this moment; the next redraw shows it

    def _tick(self) -> float | None:
        """Called by Blender's timer; never waits."""
        if self.queue is None and not self._look_for_interrupted():
            return None
        assert self.queue is not None
        ended = self.queue.tick()
        for job in ended:
            here = self._open_file()
            if job.status == "done" and self._started_in.get(job.job_id, here).is_open(here):
                self.bring(job, wanted=False)
        ready = [job_id for job_id, loaded in self.arriving.items() if loaded.content.done()]
        for job_id in ready:
            if self.arriving[job_id].wanted or not obstacle():
                self._insert(job_id)
        active = self.queue.is_busy() or bool(self.arriving)
        self._redraw(active)
        return TICK_S if active else IDLE_TICK_S

    def _look_for_interrupted(self) -> bool:
        """Open the queue if an earlier session left jobs unfinished, once; returns whether it is open."""
        if self._looked:
            return False
        self._looked = True
        try:
            if has_unfinished(jobs_folder(bpy.context)):
                self.jobs(bpy.context)
        except (NoBackendError, OSError):
            return False  # the panel says what is missing; the jobs wait
        return self.queue is not None

    def _redraw(self, active: bool) -> None:
        """Draw the sidebars when what they show has changed, and while a clock runs; not at every tick."""
        assert self.queue is not None
        shown = (self.queue.jobs, self.queue.problem, dict(self.problems), tuple(self.arriving), len(self.arrived))
        now = time.monotonic()
        waited = now - self._redrawn
        if (shown != self._shown and waited >= REDRAW_S) or (active and waited >= CLOCK_S):
            self._shown, self._redrawn = shown, now
            if len(self._icons) > _MOST_ICONS:
                self._icons.clear()  # not while they are being drawn
            redraw_panels()

    def _insert(self, job_id: str) -> None:
        """Bring a result into the scene as one undo step, in whatever window is there."""
        windows = bpy.context.window_manager.windows
        override = {"window": windows[0]} if windows else {}
        try:
            with bpy.context.temp_override(**override):
                bpy.ops.effigy.insert_result("EXEC_DEFAULT", True, job_id=job_id)
            self.problems.pop(job_id, None)
            self.arrived.add(job_id)
        except RuntimeError as error:  # what the operator reported; a timer that raises would be the last
            self.problems[job_id] = str(error).removeprefix("Error: ").strip()
        finally:
            del self.arriving[job_id]

    def _loaded(self, *_: object) -> None:
        """Another file: clouds of older files get the types that this Blender draws as splats."""
        self._files_opened += 1
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


def serve_command(context: bpy.types.Context, root: Path) -> list[str]:
    """The command line of the backend that does the jobs in `root`.

    Raises:
        NoBackendError: If there is no Python for it.
    """
    arguments = ["serve", "--jobs", str(root), "--keep-days", "30", *serve_arguments(context)]
    return backend_command(backend_python(context), *arguments)


def obstacle() -> str:
    """Why nothing should come into the scene at this moment, for people; empty if it can.

    An artist in another mode, with something in the hand, or with a render running is not to be disturbed.
    """
    if bpy.app.is_job_running("RENDER"):
        return "Comes into the scene when the render is done"
    windows = bpy.context.window_manager.windows
    with bpy.context.temp_override(**({"window": windows[0]} if windows else {})):
        mode = bpy.context.mode
    if mode != "OBJECT":
        return "Comes into the scene when you are back in Object Mode"
    running = [operator.bl_idname for window in windows for operator in getattr(window, "modal_operators", ())]
    if any(name.split("_OT_")[0] in _DRAGGING for name in running):
        return "Comes into the scene when your hand is free"
    return ""


def redraw_panels() -> None:
    """Let the sidebars show the newest state."""
    for window in bpy.context.window_manager.windows:
        for area in window.screen.areas:
            if area.type == "VIEW_3D":
                for region in area.regions:
                    if region.type == "UI":
                        region.tag_redraw()


def _persistent(method: Callable[..., None]) -> Callable[..., None]:
    """A plain function, which Blender can mark to outlive the loading of a file."""

    @bpy.app.handlers.persistent
    def handler(*arguments: object) -> None:
        method(*arguments)

    return handler


_sessions: list[Session] = []
"""The running session, at most one: Blender calls `register` and `unregister` as plain functions."""


def begin() -> None:
    """Start the session."""
    _sessions.append(Session())


def end() -> None:
    """End it."""
    while _sessions:
        _sessions.pop().close()


def current() -> Session:
    """The running session.

    Raises:
        IndexError: If the add-on is not enabled.
    """
    return _sessions[-1]
