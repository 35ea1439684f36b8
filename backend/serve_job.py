"""One job of `serve`: from its message to its terminal message, all inside the job's folder."""

from __future__ import annotations

import importlib.metadata
import json
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from backend import jobs
from backend.context import Context
from backend.diffusion.weights import Weights
from backend.errors import Cancelled, Failure, UserError, failure_of, missing_package
from backend.files import whole_file
from backend.generate import JobFailedError, Order, perform, stages_of
from backend.housekeeping import RESULT_FOLDER
from backend.pipeline import split_title
from backend.serve import ServeOptions, Ticket
from blender_addon.shared import protocol
from blender_addon.shared.methods import REQUESTS, request_from_json
from blender_addon.shared.protocol import BackendMessage, Capabilities, Failed, File, Preview, Progress, Result, Run
from blender_addon.shared.request_files import located, named_files

PROGRESS_S = 0.1
"""Progress inside a stage is sent this often at most; a panel draws ten times a second at most."""

PREVIEW_S = 1.0
PREVIEWS_KEPT = 2
ROLES = {"gaussians.ply": "gaussians", "avatar.npz": "avatar", "preview.png": "preview", jobs.RESULT: "result"}
PACKAGES = ("torch", "numba", "numpy", "scipy", "mediapipe", "gsplat", "diffusers")

_STATES: dict[type, str] = {Result: "done", Failed: "failed", protocol.Cancelled: "cancelled"}

Send = Callable[[BackendMessage], None]


class JobSink:
    """A job's progress, pictures and warnings as messages."""

    def __init__(self, job_id: str, folder: Path, send: Send, clock: Callable[[], float] = time.monotonic) -> None:
        """Pictures become files of `folder`."""
        self._job_id = job_id
        self._folder = folder
        self._send = send
        self._clock = clock
        self._stage = ""
        self._next_progress = self._next_preview = 0.0
        self._previews = 0

    def progress(self, stage: str, done: float, total: float, note: str) -> None:
        """Send a new stage, its end, and now and then what lies between."""
        now = self._clock()
        if stage == self._stage and done < total and now < self._next_progress:
            return
        self._stage, self._next_progress = stage, now + PROGRESS_S
        index, count, name = split_title(stage)
        self._send(Progress(self._job_id, name, done, max(total, 1e-9), note, index, count))

    def preview(self, image: np.ndarray) -> None:
        """Write the picture, uint8 [H, W, 3], and send its name; every picture has its own."""
        if self._clock() < self._next_preview:
            return
        self._previews += 1
        path = self._folder / _preview_name(self._previews)
        with whole_file(path, durable=False) as file:
            Image.fromarray(image).save(file, "PNG", compress_level=1)
        (self._folder / _preview_name(self._previews - PREVIEWS_KEPT)).unlink(missing_ok=True)
        self._send(Preview(self._job_id, path.name))
        self._next_preview = self._clock() + PREVIEW_S

    def warning(self, code: str, text: str) -> None:
        """Send it."""
        self._send(protocol.Warning(self._job_id, code, text))

    def finishable(self, possible: bool) -> None:
        """Send it."""
        self._send(protocol.Finishable(self._job_id, possible))


def do_job(ticket: Ticket, options: ServeOptions, send: Send) -> BackendMessage:
    """Do the job and say how it ended; nothing that happens inside it leaves this function as an exception."""
    order = ticket.order
    folder = options.jobs / order.job_id
    try:
        checked = _check(order, options)
    except UserError as error:
        return _failed(order.job_id, failure_of(error))
    try:
        jobs.write_state(folder, "running", method=order.method)
        end = _perform(ticket, checked, folder, send)
        jobs.write_state(folder, _STATES[type(end)], method=order.method)
        return end
    except OSError as error:  # of the state's file
        return _failed(order.job_id, failure_of(error))


def _perform(ticket: Ticket, order: Order, folder: Path, send: Send) -> BackendMessage:
    job_id = ticket.order.job_id
    sink = JobSink(job_id, folder, send)
    try:
        finished = perform(order, sink, ticket.cancel_event, capture_stdout=True, finish_event=ticket.finish_event)
        return Result(job_id, _files(finished.folder, folder))
    except Cancelled:
        return protocol.Cancelled(job_id)
    except JobFailedError as error:
        if ticket.cancel_event.is_set():  # a library that was stopped half-way may say anything
            return protocol.Cancelled(job_id)
        log = error.log.name if error.log and error.log.parent == folder else ""
        return _failed(job_id, error.failure, log, ticket.fresh)
    except BaseException as error:  # the last line of defence: one job never takes the others with it
        traceback.print_exc(file=sys.stderr)
        return _failed(job_id, failure_of(error))


def _failed(job_id: str, failure: Failure, log: str = "", fresh: bool = True) -> Failed:
    retryable = failure.kind == "OUT_OF_MEMORY" and not fresh
    return Failed(job_id, failure.kind, failure.text, failure.hint, retryable, log)


def _check(order: Run, options: ServeOptions) -> Order:
    """The message as an order whose every path lies inside the job's folder.

    Raises:
        UserError: With the field that is wrong.
    """
    folder = options.jobs / order.job_id
    inside = folder.resolve() == options.jobs.resolve() / order.job_id
    if not inside or not folder.is_dir():
        raise UserError(f"the job's folder {order.job_id} is not in the folder of jobs; submit the job again")
    image = _inside(folder, "image", order.image)
    try:
        request = request_from_json(order.method, order.request)
    except (ValueError, TypeError) as error:
        raise UserError(str(error)) from error
    for parameter, names in named_files(request).items():
        for name in names:
            _inside(folder, parameter, name)
    request = located(request, folder)
    out, log = folder / RESULT_FOLDER, folder / jobs.LOG
    return Order(
        order.method, request, image, out, order.resume, log, options.memory_bytes, options.own_body, options.device
    )


def _inside(folder: Path, field: str, name: str) -> Path:
    """The file of the job's folder that a field of the message names.

    Raises:
        UserError: If it would lie elsewhere.
    """
    if problem := protocol.check_relative(name):
        raise UserError(f"{field}: {problem}")
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise UserError(f"{field}: a file's name cannot leave the job's folder")
    return path


def _files(result: Path, folder: Path) -> tuple[File, ...]:
    """What the result's own list says, and that list."""
    listed = json.loads((result / jobs.RESULT).read_text("utf-8"))["files"]
    entries = [(item["path"], item["bytes"], item["sha256"]) for item in listed]
    own = result / jobs.RESULT
    entries.append((jobs.RESULT, own.stat().st_size, jobs.sha256(own)))
    base = result.relative_to(folder).as_posix()
    return tuple(File(_role(path), f"{base}/{path}", size, digest) for path, size, digest in entries)


def _role(path: str) -> str:
    """What a file of the result is for; "input" for the photo."""
    return ROLES.get(path) or path.split(".")[0]


def _preview_name(number: int) -> str:
    return f"preview-{number:04d}.png"


def load_capabilities() -> Capabilities:
    """Import what the methods need, so that the first job finds it warm, and say what can be done."""
    methods: list[str] = []
    problem = ""
    for method in REQUESTS:
        try:
            stages_of(method, REQUESTS[method](), Weights.default())
            methods.append(method)
        except ImportError as error:
            package = missing_package(error)
            problem = f"{package or error} is not installed; run doctor"
    packages = {name: _version(name) for name in PACKAGES}
    return Capabilities(tuple(methods), Context.quiet().device, {k: v for k, v in packages.items() if v}, problem)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""
