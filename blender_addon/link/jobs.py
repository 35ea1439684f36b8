"""The queue of jobs as a panel sees it. Standard library only, no bpy.

Each job has a folder of its own with everything that it depends on: the request, and copies of the files it names. The
backend gets one job at a time; what waits, waits here. `tick` is called from a timer and never waits: copying and
checking of files happens in threads.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Literal

from ..shared import protocol
from ..shared.protocol import (
    TERMINAL,
    Accepted,
    BackendMessage,
    Cancelling,
    Failed,
    File,
    Finishable,
    Preview,
    Progress,
    Result,
    Run,
)
from ..shared.request_files import safe_ending
from .process import BackendProcess, State
from .timings import Timings

Status = Literal[
    "preparing", "waiting", "running", "cancelling", "checking", "done", "failed", "cancelled", "interrupted"
]
ENDED: tuple[Status, ...] = ("done", "failed", "cancelled", "interrupted")
REQUEST = "request.json"
STATE = "state.json"
LARGEST_IMAGE_BYTES = 512 * 1024**2
_ATTEMPTS = 2


class JobError(ValueError):
    """A job that cannot be submitted; the text is one line for the user."""


@dataclass(frozen=True)
class Job:
    """How a job stands.

    Attributes:
        job_id: Its name and that of its folder.
        folder: Everything that belongs to it.
        method: Method id.
        request: The method's parameters.
        image: Name of the photo in the folder.
        status: See `Status`; "interrupted" is found after a crash and can be resumed.
        stage: What is being done, for people.
        note: A few words on it.
        fraction: How much of the whole job is done, 0..1; never falls.
        began: When it began to run, seconds of the queue's clock; None before.
        ended: When it ended.
        remaining_s: Estimate from earlier jobs of this kind; None without any.
        preview: Newest picture of the work.
        warnings: Lines for people.
        text: One line on how it ended; empty when done.
        hint: What to do next; may be empty.
        code: The failure's code; empty if it did not fail.
        retryable: Starting it again may help.
        log: File with the rest, if there is one.
        files: What the result consists of, checked.
        resume: Take over what an interrupted run left.
        attempts: How often it was given to the backend.
        finishable: It could end early with what it has.
        finishing: That was asked for.
        title: What people call the job: the photo's own name without its ending; may be empty.
    """

    job_id: str
    folder: Path
    method: str
    request: Mapping[str, Any]
    image: str
    status: Status = "preparing"
    stage: str = ""
    note: str = ""
    fraction: float = 0.0
    began: float | None = None
    ended: float | None = None
    remaining_s: float | None = None
    preview: Path | None = None
    warnings: tuple[str, ...] = ()
    text: str = ""
    hint: str = ""
    code: str = ""
    retryable: bool = False
    log: Path | None = None
    files: tuple[File, ...] = ()
    resume: bool = False
    attempts: int = 0
    title: str = ""
    finishable: bool = False
    finishing: bool = False

    def elapsed_s(self, now: float) -> float:
        """How long it has been running, or ran."""
        return 0.0 if self.began is None else (now if self.ended is None else self.ended) - self.began

    def file(self, role: str) -> Path | None:
        """The result's file with this role ("gaussians", "avatar", "preview", "result")."""
        return next((self.folder / item.path for item in self.files if item.role == role), None)


class JobQueue:
    """Jobs of one Blender and the process that does them."""

    def __init__(
        self, process: BackendProcess, root: Path, clock: Callable[[], float] = time.monotonic, idle_stop_s: float = 600
    ) -> None:
        """Keep the jobs below `root`.

        Args:
            process: Does them; it serves the same `root`.
            root: Folder of the job folders.
            clock: Seconds.
            idle_stop_s: With nothing to do for so long, the process is ended to give its memory back.
        """
        self.process = process
        self.root = root
        self._clock = clock
        self._idle_stop_s = idle_stop_s
        self._idle_since = clock()
        self._jobs: dict[str, Job] = {}
        self._active = ""
        self._ended: list[str] = []
        self._results: SimpleQueue[tuple[str, str, str]] = SimpleQueue()
        self._timings = Timings(root / "timings.json")

    @property
    def jobs(self) -> tuple[Job, ...]:
        """All jobs of this session, oldest first."""
        return tuple(self._jobs.values())

    @property
    def problem(self) -> str:
        """One line if the backend cannot work; else empty."""
        return self.process.problem

    def job(self, job_id: str) -> Job | None:
        """One job."""
        return self._jobs.get(job_id)

    def is_busy(self) -> bool:
        """Whether anything waits or runs."""
        return any(job.status not in ENDED for job in self._jobs.values())

    def submit(
        self,
        method: str,
        request: Mapping[str, Any],
        image: Path,
        title: str = "",
        files: Mapping[str, Path] | None = None,
    ) -> str:
        """Put a job behind the others; its files are copied, so that they may change or vanish afterwards.

        Args:
            method: Method id.
            request: The method's parameters; files by their names in the job's folder.
            image: The photo.
            title: What people call the job; the photo's name without its ending if empty.
            files: Where each further file that the request names comes from, by its name in the job's folder.

        Returns:
            The job's id.

        Raises:
            JobError: If the photo is not there or too large, or the folder cannot be written.
        """
        try:
            size = image.stat().st_size
        except OSError as error:
            raise JobError(f"{image} cannot be read ({error.strerror}); choose another picture") from error
        if size > LARGEST_IMAGE_BYTES or not image.is_file():
            raise JobError(f"{image.name} is no picture of at most {LARGEST_IMAGE_BYTES >> 20} MB; choose another")
        job_id = f"{method}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"
        folder = self.root / job_id
        job = Job(job_id, folder, method, dict(request), "input" + safe_ending(image), title=title or image.stem)
        content = {"job_id": job_id, "method": method, "request": job.request, "image": job.image}
        content["name"] = job.title + image.suffix
        copies = {job.image: image, **(files or {})}
        content["files"] = {name: source.name for name, source in copies.items()}
        try:
            folder.mkdir(parents=True)
            _write_json(folder / REQUEST, content)
            _write_state(folder, "waiting")
        except OSError as error:
            raise JobError(f"{folder} cannot be written ({error.strerror}); choose another folder of jobs") from error
        self._jobs[job_id] = job
        self._in_background(job_id, "copied", lambda: _copy(copies, folder))
        return job_id

    def cancel(self, job_id: str) -> None:
        """Stop a job, whether it waits or runs."""
        job = self._jobs.get(job_id)
        if job is None or job.status in ENDED:
            return
        if job_id == self._active and job.status in ("running", "cancelling"):
            self._set(job_id, status="cancelling")
            self.process.cancel(job_id)
        else:
            self._end(job_id, "cancelled")

    def finish(self, job_id: str) -> None:
        """Let a running job end early with what it has."""
        job = self._jobs.get(job_id)
        if job is not None and job_id == self._active and job.status == "running":
            self._set(job_id, finishing=True)
            self.process.finish(job_id)

    def again(self, job_id: str) -> None:
        """Start an ended job again; it goes on where it stopped."""
        job = self._jobs.get(job_id)
        if job is not None and job.status in ENDED and job.status != "done":
            self._jobs[job_id] = Job(
                job.job_id, job.folder, job.method, job.request, job.image, "waiting", resume=True, title=job.title
            )
            _write_state(job.folder, "waiting")

    def remove(self, job_id: str) -> None:
        """Forget an ended job and remove its folder."""
        job = self._jobs.get(job_id)
        if job is not None and job.status in ENDED:
            del self._jobs[job_id]
            shutil.rmtree(job.folder, ignore_errors=True)  # what is open elsewhere goes with the next clean-up

    def forget(self, job_id: str) -> None:
        """Take an ended job off the list; its folder stays."""
        job = self._jobs.get(job_id)
        if job is not None and job.status in ENDED:
            del self._jobs[job_id]

    def recover(self) -> tuple[Job, ...]:
        """Find jobs that an earlier session left unfinished; they are listed as interrupted, for `again`."""
        found: list[Job] = []
        for folder in sorted(self.root.iterdir()) if self.root.is_dir() else ():
            content, state = _read_json(folder / REQUEST), _read_json(folder / STATE)
            if protocol.check_job_id(folder.name) or folder.name in self._jobs or not content or not state:
                continue
            if state.get("state") not in ("waiting", "running") or _is_alive(state.get("pid")):
                continue
            try:
                method, request, image = str(content["method"]), dict(content["request"]), str(content["image"])
                names = [image, *dict(content.get("files", {}))]
            except (KeyError, TypeError, ValueError):
                continue  # not written by us
            text = "this job was interrupted; start it again to go on where it stopped"
            title = Path(str(content.get("name", ""))).stem
            job = Job(
                folder.name, folder, method, request, image, "interrupted", text=text, retryable=True, title=title
            )
            if _are_there(folder, names):
                self._jobs[folder.name] = job
                found.append(job)
        return tuple(found)

    def tick(self, budget_s: float = 0.002) -> tuple[Job, ...]:
        """Take what has come and give the next job to the backend.

        Returns:
            Jobs that ended since the last time, those included that were cancelled while they waited; each once.
        """
        for message in self.process.poll(budget_s):
            self._receive(message)
        self._take_results()
        self._dispatch()
        ended, self._ended = self._ended, []
        return tuple(self._jobs[job_id] for job_id in ended if job_id in self._jobs)

    def close(self) -> None:
        """End the process; the next session finds unfinished jobs as interrupted ones."""
        self.process.close()
        for job in self._jobs.values():
            if job.status not in ENDED:
                _write_state(job.folder, "waiting")  # the backend has just written "cancelled" for one that ran

    def _dispatch(self) -> None:
        waiting = next((job for job in self._jobs.values() if job.status == "waiting"), None)
        now = self._clock()
        if self._active or waiting is None:
            self._idle_since = now if self.is_busy() else self._idle_since
            if self.process.state is State.READY and now - self._idle_since > self._idle_stop_s:
                self.process.shutdown()
            return
        self._idle_since = now
        if self.process.state is State.STOPPED:
            self.process.start()
        if self.process.state is not State.READY:
            return
        try:
            self.process.run(Run(waiting.job_id, waiting.method, waiting.request, waiting.image, waiting.resume))
        except ValueError as error:  # the request does not fit into a message
            self._end(waiting.job_id, "failed", text=str(error), code="BAD_REQUEST")
            return
        self._active = waiting.job_id
        self._set(waiting.job_id, status="running", began=now, attempts=waiting.attempts + 1)

    def _receive(self, message: BackendMessage) -> None:
        job_id: str = getattr(message, "job_id", "")
        job = self._jobs.get(job_id)
        if job is None:
            return
        if isinstance(message, Progress):
            self._set(job_id, **self._progress(job, message))
        elif isinstance(message, Preview):
            if not protocol.check_relative(message.file):
                self._set(job_id, preview=job.folder / message.file)
        elif isinstance(message, protocol.Warning):
            self._set(job_id, warnings=tuple(dict.fromkeys([*job.warnings, message.text])))
        elif isinstance(message, Finishable):
            self._set(job_id, finishable=message.possible)
        elif isinstance(message, Accepted | Cancelling):
            pass
        elif isinstance(message, TERMINAL):
            self._active = "" if self._active == job_id else self._active
            self._terminal(job, message)

    def _progress(self, job: Job, message: Progress) -> dict[str, Any]:
        inside = min(max(message.done / message.total, 0.0), 1.0) if message.total > 0 else 1.0
        kind = (job.method, str(job.request.get("preset", "")))
        fraction, remaining = self._timings.estimate(kind, message.index, message.count, inside)
        fraction = max(job.fraction, min(fraction, 1.0))
        return {"stage": message.stage, "note": message.note, "fraction": fraction, "remaining_s": remaining}

    def _terminal(self, job: Job, message: BackendMessage) -> None:
        if isinstance(message, Result):
            self._set(job.job_id, status="checking", files=message.files, note="")
            self._in_background(job.job_id, "checked", lambda: check_files(job.folder, message.files))
        elif isinstance(message, Failed):
            if message.code == "OUT_OF_MEMORY" and message.retryable and job.attempts < _ATTEMPTS:
                self._set(job.job_id, status="waiting", resume=True)  # in a fresh process there is more
                return
            log = job.folder / message.log if message.log and not protocol.check_relative(message.log) else None
            more = {"text": message.text, "hint": message.hint, "code": message.code, "retryable": message.retryable}
            self._end(job.job_id, "failed", log=log or self._find_log(job), **more)
        else:
            self._end(job.job_id, "cancelled", text="cancelled", retryable=True)

    def _find_log(self, job: Job) -> Path | None:
        """The log of a job whose process is gone: where it was being written, else the process's own."""
        places = (job.folder / "log.txt", job.folder / ".result.partial" / "log.txt", self.process.log)
        return next((path for path in places if path.is_file()), None)

    def _take_results(self) -> None:
        """What the threads have finished."""
        while True:
            try:
                job_id, what, problem = self._results.get_nowait()
            except Empty:
                return
            job = self._jobs.get(job_id)
            if job is None or job.status in ENDED:
                continue
            if problem:
                self._end(job_id, "failed", text=problem, code="INTERNAL", log=self._find_log(job), files=())
            elif what == "copied":
                self._set(job_id, status="waiting")
            else:
                self._timings.learn((job.method, str(job.request.get("preset", ""))), job.folder / "result")
                self._end(job_id, "done", fraction=1.0, remaining_s=0.0)

    def _in_background(self, job_id: str, what: str, work: Callable[[], str]) -> None:
        """Do `work`, which returns a problem or nothing, in a thread."""

        def do() -> None:
            try:
                problem = work()
            except OSError as error:
                problem = f"{error.filename or 'a file'} cannot be used ({error.strerror}); try again"
            self._results.put((job_id, what, problem))

        threading.Thread(target=do, name="effigy files", daemon=True).start()

    def _set(self, job_id: str, **changes: Any) -> None:
        self._jobs[job_id] = replace(self._jobs[job_id], **changes)

    def _end(self, job_id: str, status: Status, **changes: Any) -> None:
        self._set(job_id, status=status, ended=self._clock(), **changes)
        self._ended.append(job_id)
        folder = self._jobs[job_id].folder
        state = _read_json(folder / STATE)
        if not state or state.get("state") != status:  # the backend has written it, unless it could not
            _write_state(folder, status)


def has_unfinished(root: Path) -> bool:
    """Whether `JobQueue.recover` may find something below `root`; nothing is opened or started for the question."""
    folders = root.iterdir() if root.is_dir() else ()
    return any(_read_json(folder / STATE).get("state") in ("waiting", "running") for folder in folders)


def check_files(folder: Path, files: tuple[File, ...]) -> str:
    """Whether a result is what the backend says it is.

    Returns:
        What is wrong, one line; empty if every file lies inside `folder` and has its size and hash.
    """
    root = folder.resolve()
    for item in files:
        path = folder / item.path
        if protocol.check_relative(item.path) or not path.resolve().is_relative_to(root):
            return f"the result names {item.path!r}, which is outside its folder; it was not used"
        if not path.is_file() or path.stat().st_size != item.bytes:
            return f"the result's {item.path} is missing or cut off; start the job again"
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != item.sha256:
                return f"the result's {item.path} is damaged; start the job again"
    return ""


def _copy(sources: Mapping[str, Path], folder: Path) -> str:
    for name, source in sources.items():
        unfinished = folder / f"{name}.part"
        shutil.copyfile(source, unfinished)
        unfinished.replace(folder / name)
    return ""


def _are_there(folder: Path, names: Iterable[object]) -> bool:
    """Whether files with these names lie in the folder itself."""
    return all(isinstance(n, str) and not protocol.check_relative(n) and (folder / n).is_file() for n in names)


def _write_state(folder: Path, state: str) -> None:
    try:
        _write_json(folder / STATE, {"state": state, "pid": os.getpid(), "updated": time.time()})
    except OSError:
        return  # a full disk: the state is only needed after a crash, and then the job counts as interrupted


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    unfinished = path.with_name(path.name + ".part")
    unfinished.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", "utf-8")
    unfinished.replace(path)


def _read_json(path: Path) -> dict[str, Any]:
    """The object in a file; empty if there is none."""
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _is_alive(pid: object) -> bool:
    """Whether a process with this id runs; the id may belong to another one by now, then the job is offered later."""
    if not isinstance(pid, int) or pid <= 0 or pid == os.getpid():
        return False
    if os.name == "nt":
        import ctypes

        handle = getattr(ctypes, "windll").kernel32.OpenProcess(0x1000, False, pid)  # noqa: B009  query only
        if handle:
            getattr(ctypes, "windll").kernel32.CloseHandle(handle)  # noqa: B009
        return bool(handle)
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
