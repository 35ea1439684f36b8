"""One job with its folder, log, progress and errors: `generate` on the command line, `perform` for all."""

from __future__ import annotations

import contextlib
import faulthandler
import importlib
import os
import shutil
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TextIO

import numpy as np

from backend import jobs
from backend.context import Context, Sink, TerminalSink
from backend.device import choose_device
from backend.diffusion.weights import Weights
from backend.errors import DONE, FAILED, MODEL_MISSING, Cancelled, Failure, UserError, failure_of
from backend.memory import budget
from backend.perception.photo import Photo, read_photo
from backend.pipeline import Run, Stage, check_chain
from backend.pipeline import run as run_stages
from backend.request_files import RequestFiles, copy_files, read_files
from blender_addon.shared.methods import Request, request_from_settings, request_to_json

GIVEN: tuple[str, ...] = ("photo", "request", "folder", "own_body", "models")
"""What a method's first stage finds: the `Photo`, the request, the folder for the result's files, the user's own
SMPL-X file or None, and the installed models (`Weights`). The files that the request names lie in the folder, and its
names are relative to it."""


class _Both:
    """Progress for people and for the log."""

    def __init__(self, *sinks: Sink) -> None:
        self._sinks = sinks

    def progress(self, stage: str, done: float, total: float, note: str) -> None:
        for sink in self._sinks:
            sink.progress(stage, done, total, note)

    def preview(self, image: np.ndarray) -> None:
        for sink in self._sinks:
            sink.preview(image)

    def warning(self, code: str, text: str) -> None:
        for sink in self._sinks:
            sink.warning(code, text)

    def finishable(self, possible: bool) -> None:
        for sink in self._sinks:
            sink.finishable(possible)


def stages_of(method: str, request: Request, models: Weights) -> Sequence[Stage]:
    """The stages of a method, loaded when asked for and checked: what is installed decides which path it takes.

    Raises:
        UserError: If there is no such method.
        ValueError: If its stages do not fit together.
    """
    from backend.methods import METHODS

    if method not in METHODS:
        raise UserError(f"there is no method '{method}'; choose one of: {', '.join(METHODS)}")
    module, _, function = METHODS[method].partition(":")
    stages = getattr(importlib.import_module(module), function)(request, models)
    check_chain(stages, GIVEN)
    return stages


@dataclass(frozen=True)
class Order:
    """What is asked for.

    Attributes:
        method: Method id.
        request: Its parameters, checked; files by their paths.
        image: The photo.
        out: Folder of the result.
        resume: Take over what an interrupted run of the same job left.
        log: Where the log of a job that fails or stops is kept; None: beside an earlier result, else in the system's
            temporary folder.
        memory_bytes: The user's own limit for the job's memory; 0 for none.
        own_body: The user's own SMPL-X file, for requests that take it.
        device: "auto", "cpu" or "cuda".
    """

    method: str
    request: Request
    image: Path
    out: Path
    resume: bool = False
    log: Path | None = None
    memory_bytes: int = 0
    own_body: Path | None = None
    device: str = "auto"


@dataclass(frozen=True)
class Finished:
    """A published result.

    Attributes:
        folder: Where it lies.
        warnings: Lines for people.
        already: It was there before; nothing ran.
    """

    folder: Path
    warnings: tuple[str, ...] = ()
    already: bool = False


class JobFailedError(Exception):
    """A job that could not be done, with what to say about it and where its log is."""

    def __init__(self, failure: Failure, log: Path | None) -> None:
        """Keep both."""
        self.failure = failure
        self.log = log
        super().__init__(failure.text)


def generate(
    method: str,
    image: Path,
    out: Path,
    settings: Mapping[str, str | tuple[str, ...]],
    resume: bool,
    own_body: Path | None = None,
) -> int:
    """Run one job from the command line and publish its folder.

    Args:
        method: Method id.
        image: The photo.
        out: Folder of the result.
        settings: Parameters as texts; several files as a tuple or with commas.
        resume: Go on where an interrupted run of the same job stopped.
        own_body: The user's own SMPL-X file.

    Returns:
        The exit code; what failed unexpectedly is in the log, and said in one line.

    Raises:
        UserError: If something is wrong that the user can put right. No half-written result is left.
    """
    try:
        request = request_from_settings(method, settings)
    except ValueError as error:
        raise UserError(str(error)) from error
    began = time.perf_counter()
    terminal = TerminalSink(sys.stdout)
    try:
        finished = perform(Order(method, request, image, out, resume, own_body=own_body), terminal, threading.Event())
    except (KeyboardInterrupt, Cancelled):
        print("error: interrupted; the same command with --resume goes on", file=sys.stderr)
        return FAILED
    except JobFailedError as error:
        failure = error.failure
        hint = f"; {failure.hint}" if failure.hint else ""
        log = f" {error.log}" if failure.defect and error.log else ""
        print(f"error: {failure.text}{hint}{log}", file=sys.stderr)
        return failure.code
    finally:
        terminal.close()
    if finished.already:
        print(f"{out} holds this result already")
        return DONE
    for line in finished.warnings:
        print(f"note: {line}")
    print(f"{finished.folder}: done in {time.perf_counter() - began:.1f} s")
    return DONE


def perform(
    order: Order,
    sink: Sink,
    cancel_event: threading.Event,
    capture_stdout: bool = False,
    finish_event: threading.Event | None = None,
) -> Finished:
    """Run one job: what the command line and `serve` share.

    Args:
        order: What is asked for.
        sink: Where progress, previews and warnings go.
        cancel_event: Set from another thread to stop the job.
        capture_stdout: Send what libraries print on stdout to the log too.
        finish_event: Set from another thread to end what the job is improving, and keep what there is.

    Returns:
        The published result.

    Raises:
        JobFailedError: If the job could not be done; nothing half-written is left.
        Cancelled: If it was cancelled; its checkpoints stay for a resume.
        KeyboardInterrupt: As `Cancelled`.
    """
    began = time.perf_counter()
    try:
        device = choose_device(order.device)
        order = _with_body(order)
        photo = _read_photo(order.image)
        files = read_files(order.request)
        order = replace(order, request=files.request)
        request = request_to_json(order.request)
        wanted = jobs.identity(order.method, request, photo, order.own_body, files.sha256)
        if order.resume and jobs.is_finished(order.out, wanted):
            return Finished(order.out, already=True)
        job = jobs.begin(order.out, wanted, order.resume)
    except UserError as error:
        raise JobFailedError(failure_of(error), None) from error
    try:
        with jobs.disk_errors(order.out):
            run = _work(order, photo, files, job, device, sink, (cancel_event, finish_event), capture_stdout)
            if cancel_event.is_set():
                raise Cancelled("cancelled")
            folder = jobs.publish(job, run, photo, device, time.perf_counter() - began)
    except (KeyboardInterrupt, Cancelled):
        _try_save_log(job, order.log)
        jobs.release(job)
        raise
    except Exception as error:  # the outermost border of a job: whatever it is, people get one line and a log
        failure = failure_of(error)
        keep_log = failure.defect or order.log is not None
        log = _try_save_log(job, order.log or _place_of_log(job)) if keep_log else None
        if failure.kind == "OUT_OF_MEMORY" and order.log is not None:
            jobs.release(job)  # a fresh process goes on where this one stopped
        else:
            jobs.discard(job)
        raise JobFailedError(failure, log) from error
    return Finished(folder, tuple(dict.fromkeys([*photo.warnings, *run.warnings])))


def _with_body(order: Order) -> Order:
    """The order with the body that it stands for: what is stored beside the result says which.

    Raises:
        UserError: If it wants an SMPL-X file and none is set up.
    """
    wish = getattr(order.request, "body", None)
    if wish is None:
        return replace(order, own_body=None)  # a method without a body
    if wish == "smplx" and order.own_body is None:
        text = "no SMPL-X file is set up; choose yours in the preferences (command line: --smplx FILE)"
        raise UserError(text, MODEL_MISSING)
    if wish == "effigy" or order.own_body is None:
        return replace(order, request=replace(order.request, body="effigy"), own_body=None)
    if not order.own_body.is_file():
        raise UserError(f"there is no SMPL-X file {order.own_body}; choose yours in the preferences", MODEL_MISSING)
    return replace(order, request=replace(order.request, body="smplx"))


def _read_photo(path: Path) -> Photo:
    try:
        return read_photo(path)
    except UserError as error:
        raise UserError(error.message, error.code, "BAD_IMAGE") from error


def _work(
    order: Order,
    photo: Photo,
    files: RequestFiles,
    job: jobs.Job,
    device: str,
    sink: Sink,
    events: tuple[threading.Event, threading.Event | None],
    capture_stdout: bool,
) -> Run:
    with _log_output(job.log, capture_stdout) as log:
        print(
            f"{order.method} {dict(job.identity)} photo {photo.path.name} {photo.original_size}", file=log, flush=True
        )
        both = _Both(sink, TerminalSink(log))
        try:
            shutil.copyfile(photo.path, job.work / f"input.{photo.format}")
            copy_files(files, job.work)
            for line in photo.warnings:
                both.warning("NOTE", line)
            models = Weights.default()
            stages = stages_of(order.method, order.request, models)
            allowed = budget(device, order.request.preset, order.memory_bytes).allowed_bytes
            cancel_event, finish_event = events[0], events[1] or threading.Event()
            context = Context(
                job.scratch, device, order.request.seed, both, cancel_event, finish_event, memory_bytes=allowed
            )
            given = dict(zip(GIVEN, (photo, order.request, job.work, order.own_body, models), strict=True))
            return run_stages(stages, given, context, job.checkpoints)
        except Exception:
            traceback.print_exc(file=log)
            raise


@contextlib.contextmanager
def _log_output(path: Path, stdout_too: bool) -> Iterator[TextIO]:
    """Send what libraries print to the log, also from native code, so that people see only our own lines."""
    numbers = (1, 2) if stdout_too else (2,)
    sys.stdout.flush()
    sys.stderr.flush()
    had_faulthandler = faulthandler.is_enabled()
    kept = [os.dup(number) for number in numbers]
    with path.open("a", encoding="utf-8", errors="backslashreplace") as log:
        for number in numbers:
            os.dup2(log.fileno(), number)
        faulthandler.enable(log)
        try:
            yield log
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            faulthandler.disable()
            for number, copy in zip(numbers, kept, strict=True):
                os.dup2(copy, number)
                os.close(copy)
            if had_faulthandler:
                faulthandler.enable()


def _place_of_log(job: jobs.Job) -> Path:
    """Where a log can stay: in an earlier result's folder if there is one, else in the system's temporary folder."""
    if job.final.is_dir():
        return job.final / jobs.LOG
    return Path(tempfile.mkdtemp(prefix="effigy-failed-")) / jobs.LOG


def _try_save_log(job: jobs.Job, target: Path | None) -> Path | None:
    """Append the job's log to `target`; a disk that is too full for it changes nothing about the failure."""
    if target is None or not job.log.is_file():
        return None
    try:
        with job.log.open("rb") as source, target.open("ab") as file:
            shutil.copyfileobj(source, file)
    except OSError:
        return None
    return target
