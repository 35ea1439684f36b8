"""The set-up that goes on while Blender works: the backend's installation, doctor, the list of models, downloads."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import bpy

from . import backend_settings as settings
from .link import accelerator, environments
from .link.backend_python import NoBackendError, backend_command
from .link.environments import Environment
from .link.install import Installation, Mode, Order, Progress, tidy
from .link.task import Task

TICK_S = 0.1
DOCTOR = "doctor"
LIST = "models"


@dataclass
class Download:
    """A model that is being fetched, or why it was not.

    Attributes:
        task: The process; None when it has ended.
        fraction: 0..1 of the file that is fetched now.
        text: For people.
        problem: One line if it failed.
    """

    task: Task | None
    fraction: float = 0.0
    text: str = "Asking"
    problem: str = ""


@dataclass
class Setup:
    """One per enabled add-on.

    Attributes:
        installation: The running or the last installation.
        findings: What doctor said; empty before it was asked.
        models: What `models list` said; empty before it was asked.
        downloads: Fetched models by id.
        problems: Why doctor or the list of models failed, one line each, by `DOCTOR` and `LIST`.
    """

    installation: Installation | None = None
    findings: list[dict[str, Any]] = field(default_factory=list)
    models: list[dict[str, Any]] = field(default_factory=list)
    downloads: dict[str, Download] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)
    _tasks: dict[str, Task] = field(default_factory=dict)
    _choice: Future[accelerator.Choice] | None = None
    _environment: tuple[tuple[str, str], Environment | None, str] = (("", ""), None, "")
    _told: bool = True
    _timer: Any = None

    def __post_init__(self) -> None:
        """Keep one object as the timer: Blender knows it by that."""
        self._timer = self._tick
        self._pool = ThreadPoolExecutor(1, "effigy-setup")

    def close(self) -> None:
        """End every child."""
        if bpy.app.timers.is_registered(self._timer):
            bpy.app.timers.unregister(self._timer)
        for task in [*self._tasks.values(), *(d.task for d in self.downloads.values() if d.task is not None)]:
            task.close()
        if self.installation is not None:
            self.installation.close()
        self._pool.shutdown(wait=False, cancel_futures=True)

    @property
    def is_installing(self) -> bool:
        """Whether an installation runs, or its end was not noticed yet."""
        return self.installation is not None and (self.installation.is_running or not self._told)

    @property
    def progress(self) -> Progress | None:
        """Of the running or the last installation."""
        return self.installation.progress if self.installation is not None else None

    def is_busy(self, name: str) -> bool:
        """Whether `DOCTOR` or `LIST` runs."""
        return name in self._tasks

    def environment(self, context: bpy.types.Context) -> Environment | None:
        """The installed environment, as it was when the set-up was opened or an installation ended."""
        self._look(context)
        return self._environment[1]

    def other_python(self, context: bpy.types.Context) -> str:
        """The Python that is used in place of an installed environment; empty if there is none."""
        self._look(context)
        return self._environment[2]

    def _look(self, context: bpy.types.Context) -> None:
        """Look at the disk when the preferences have changed; not at every drawing."""
        root, given = settings.environments_root(context), settings.chosen_path(context, "backend_python")
        key = (str(root), str(given or ""))
        if self._environment[0] != key:
            best = environments.best(root)
            try:
                python = settings.backend_python(context)
            except NoBackendError:
                python = None
            other = python is not None and (best is None or python != best.interpreter)
            self._environment = (key, best, str(python) if other else "")

    def choice(self, wish: str) -> accelerator.Choice | None:
        """The accelerator for a wish; None while the driver is asked, in the background."""
        if wish != "auto":
            return accelerator.choose(wish)
        if self._choice is None:
            self._choice = self._pool.submit(accelerator.choose)
            self._watch()
        return self._choice.result() if self._choice.done() else None

    def install(self, context: bpy.types.Context, mode: Mode) -> None:
        """Begin to install, repair or remove."""
        from . import session  # which needs this module's neighbours

        session.current().forget_backend()  # an idle backend of ours would count as a use of its environment
        own = settings.preferences(context)
        wish = own.accelerator if own is not None else "auto"
        choice = self.choice(wish) or accelerator.choose(wish)
        order = Order(
            settings.environments_root(context),
            choice.accelerator,
            mode,
            online=settings.online() or mode == "remove",
            blender=settings.pythons_of_blender(),
        )
        self.installation, self._told = Installation(order), False
        self._watch()

    def ask_doctor(self, context: bpy.types.Context) -> None:
        """Run doctor.

        Raises:
            NoBackendError: If there is no backend to ask.
        """
        places = ["--jobs", str(settings.jobs_folder(context)), "--models", str(settings.models_folder(context))]
        body = settings.chosen_path(context, "smplx_file")
        own = ["--smplx", str(body)] if body is not None else []
        self._start(context, DOCTOR, ["doctor", "--json", *places, *own], whole=True)

    def list_models(self, context: bpy.types.Context) -> None:
        """Ask which models there are.

        Raises:
            NoBackendError: If there is no backend to ask.
        """
        if not self.is_busy(LIST):
            self.models = []
        self._start(context, LIST, ["models", "--json", "--offline", "list"])

    def fetch(self, context: bpy.types.Context, model_id: str, licence: str) -> None:
        """Download a model whose licence was accepted.

        Raises:
            NoBackendError: If there is no backend to do it.
        """
        command = ["models", "--json", *([] if settings.online() else ["--offline"])]
        command += ["fetch", model_id, "--accept", licence]
        self.downloads[model_id] = Download(self._task(context, f"fetch-{model_id}", command))
        self._watch()

    def cancel_fetch(self, model_id: str) -> None:
        """Stop a download; what has come is kept."""
        download = self.downloads.get(model_id)
        if download is not None and download.task is not None:
            download.task.cancel()
            download.text = "Stopping ..."

    def _start(self, context: bpy.types.Context, name: str, arguments: list[str], whole: bool = False) -> None:
        if name not in self._tasks:
            self._tasks[name] = self._task(context, name, arguments, whole)
            self.problems.pop(name, None)
            self._watch()

    def _task(self, context: bpy.types.Context, name: str, arguments: list[str], whole: bool = False) -> Task:
        cache = settings.user_folder() / "cache"
        command = backend_command(settings.backend_python(context), *arguments)
        try:
            return Task(command, settings.backend_variables(context), cache, cache / f"{name}.log", whole)
        except OSError as error:
            raise NoBackendError(f"{command[0]} cannot be started ({error.strerror or error}); press Repair") from error

    def _watch(self) -> None:
        if not bpy.app.timers.is_registered(self._timer):
            bpy.app.timers.register(self._timer, first_interval=TICK_S, persistent=True)

    def _tick(self) -> float | None:
        """Called by Blender's timer; never waits."""
        for name in list(self._tasks):
            self._look_at(name)
        for model_id, download in self.downloads.items():
            self._look_at_download(model_id, download)
        if self.installation is not None and not self._told and not self.installation.is_running:
            self._installed()
        redraw_preferences()
        open_downloads = any(download.task is not None for download in self.downloads.values())
        asking = self._choice is not None and not self._choice.done()
        return TICK_S if self._tasks or open_downloads or asking or not self._told else None

    def _installed(self) -> None:
        """An installation has ended, one way or another."""
        from . import session

        self._told = True
        self._environment = (("", ""), None, "")
        session.current().forget_backend()
        assert self.installation is not None
        if self.installation.progress.state == "ready":
            order = self.installation.order
            self._pool.submit(tidy, order.root, order.folder)  # our own backend held the old environment until now
            self._after(self.ask_doctor)

    def _look_at(self, name: str) -> None:
        task = self._tasks[name]
        messages = task.poll()
        if name == DOCTOR:
            for message in messages:
                self.findings = [row for row in message.get("findings", []) if isinstance(row, dict)]
        else:
            self.models += [message for message in messages if message.get("type") == "model"]
        if not task.is_running:
            del self._tasks[name]
            if task.code not in (0, 3):
                lines = task.errors.splitlines()
                self.problems[name] = lines[-1] if lines else f"the backend ended with code {task.code}"

    def _look_at_download(self, model_id: str, download: Download) -> None:
        if download.task is None:
            return
        for message in download.task.poll():
            kind = message.get("type")
            if kind == "plan":
                download.text = f"{message.get('bytes', 0) / 1e6:.0f} MB"
            elif kind == "progress":
                done, total = float(message.get("done", 0)), float(message.get("total", 0))
                download.fraction = done / total if total else 0.0
                download.text = f"{message.get('note') or message.get('stage', '')}: {done:.0f} of {total:.0f} MB"
            elif kind == "failed":
                download.problem = str(message.get("text", "it failed"))
        if not download.task.is_running:
            if download.task.code != 0 and not download.problem:
                download.problem = (download.task.errors.splitlines() or ["the download failed; try again"])[-1]
            download.task = None
            self._after(self.list_models)

    def _after(self, question: Any) -> None:
        """Ask something as the consequence of something else; without a backend there is nothing to ask."""
        try:
            question(bpy.context)
        except NoBackendError as error:
            self.problems[LIST] = str(error)


def redraw_preferences() -> None:
    """Draw the windows of the preferences again."""
    for window in bpy.context.window_manager.windows:
        for area in window.screen.areas:
            if area.type == "PREFERENCES":
                area.tag_redraw()


_setups: list[Setup] = []
"""The running set-up, at most one: Blender calls `register` and `unregister` as plain functions."""


def begin() -> None:
    """Start it."""
    _setups.append(Setup())


def end() -> None:
    """End it."""
    while _setups:
        _setups.pop().close()


def current() -> Setup:
    """The running set-up.

    Raises:
        IndexError: If the add-on is not enabled.
    """
    return _setups[-1]
