"""`generate`: one job from the command line, with its folder, log, progress and errors."""

from __future__ import annotations

import contextlib
import faulthandler
import importlib
import os
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TextIO

import numpy as np

from backend import jobs
from backend.context import Context, Sink, TerminalSink
from backend.errors import DONE, FAILED, INSTALL, MODEL_MISSING, Cancelled, UserError, missing_package
from backend.perception.photo import Photo, read_photo
from backend.pipeline import Run, Stage, check_chain
from backend.pipeline import run as run_stages
from blender_addon.shared.methods import BodyRequest, request_from_settings, request_to_json

GIVEN: tuple[str, ...] = ("photo", "request", "folder")
"""What a method's first stage finds: the `Photo`, the request and the folder for the result's files."""


class _Both:
    """Progress for people and for the log."""

    def __init__(self, *sinks: TerminalSink) -> None:
        self._sinks = sinks

    def progress(self, stage: str, done: float, total: float, note: str) -> None:
        for sink in self._sinks:
            sink.progress(stage, done, total, note)

    def preview(self, image: np.ndarray) -> None:
        for sink in self._sinks:
            sink.preview(image)

    def close(self) -> None:
        for sink in self._sinks:
            sink.close()


def stages_of(method: str, request: BodyRequest) -> Sequence[Stage]:
    """The stages of a method, loaded when asked for and checked.

    Raises:
        UserError: If there is no such method.
        ValueError: If its stages do not fit together.
    """
    from backend.methods import METHODS

    if method not in METHODS:
        raise UserError(f"there is no method '{method}'; choose one of: {', '.join(METHODS)}")
    module, _, function = METHODS[method].partition(":")
    stages = getattr(importlib.import_module(module), function)(request)
    check_chain(stages, GIVEN)
    return stages


def generate(method: str, image: Path, out: Path, settings: Mapping[str, str], resume: bool) -> int:
    """Run one job and publish its folder.

    Args:
        method: Method id.
        image: The photo.
        out: Folder of the result.
        settings: Parameters as texts.
        resume: Go on where an interrupted run of the same job stopped.

    Returns:
        The exit code; what failed unexpectedly is in the log, and said in one line.

    Raises:
        UserError: If something is wrong that the user can put right. No half-written result is left.
    """
    try:
        request = request_from_settings(method, settings)
    except ValueError as error:
        raise UserError(str(error)) from error
    photo = read_photo(image)
    wanted = jobs.identity(method, request_to_json(request), photo)
    if resume and jobs.is_finished(out, wanted):
        print(f"{out} holds this result already")
        return DONE
    job = jobs.begin(out, wanted, resume)
    began = time.perf_counter()
    try:
        with jobs.disk_errors(out):
            device = "cpu"  # the portable rasteriser is the only one so far
            run = _work(method, request, photo, job, device)
            folder = jobs.publish(job, run, photo, device, time.perf_counter() - began)
    except (KeyboardInterrupt, Cancelled):
        jobs.release(job)
        print("error: interrupted; the same command with --resume goes on", file=sys.stderr)
        return FAILED
    except UserError:
        jobs.discard(job)
        raise
    except MemoryError:
        jobs.discard(job)
        raise UserError("the memory is full; close other programs or use --preset fast", FAILED) from None
    except Exception as error:  # the command's outermost border: whatever it is, people get one line and a log
        if package := missing_package(error):
            jobs.discard(job)
            raise UserError(f"{package} is not installed; {INSTALL}", MODEL_MISSING) from error
        log = _save_log(job)
        jobs.discard(job)
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        print(f"error: the job failed ({reason}); please report it with {log}", file=sys.stderr)
        return FAILED
    for line in dict.fromkeys([*photo.warnings, *run.warnings]):
        print(f"note: {line}")
    print(f"{folder}: done in {time.perf_counter() - began:.1f} s")
    return DONE


def _work(method: str, request: BodyRequest, photo: Photo, job: jobs.Job, device: str) -> Run:
    with _log_stderr(job.log) as log:
        print(f"{method} {dict(job.identity)} photo {photo.path.name} {photo.original_size}", file=log, flush=True)
        sink = _Both(TerminalSink(sys.stdout), TerminalSink(log))
        try:
            shutil.copyfile(photo.path, job.work / f"input.{photo.format}")
            stages = stages_of(method, request)
            context = _context(request, job, device, sink)
            given = dict(zip(GIVEN, (photo, request, job.work), strict=True))
            return run_stages(stages, given, context, job.checkpoints)
        except Exception:
            traceback.print_exc(file=log)
            raise
        finally:
            sink.close()


def _context(request: BodyRequest, job: jobs.Job, device: str, sink: Sink) -> Context:
    return Context(scratch=job.scratch, device=device, seed=request.seed, sink=sink)


@contextlib.contextmanager
def _log_stderr(path: Path) -> Iterator[TextIO]:
    """Send what libraries print on stderr to the log, also from native code, so that people see only our own lines."""
    sys.stderr.flush()
    kept = os.dup(2)
    with path.open("a", encoding="utf-8", errors="backslashreplace") as log:
        os.dup2(log.fileno(), 2)
        faulthandler.enable(log)
        try:
            yield log
        finally:
            sys.stderr.flush()
            faulthandler.disable()
            os.dup2(kept, 2)
            os.close(kept)


def _save_log(job: jobs.Job) -> Path:
    """Move the log to where it can stay: the result folder if there is one, else the system's temporary folder."""
    if job.final.is_dir():
        target = job.final / jobs.LOG
    else:
        target = Path(tempfile.mkdtemp(prefix="effigy-failed-")) / jobs.LOG
    with job.log.open("rb") as source, target.open("ab") as file:
        shutil.copyfileobj(source, file)
    return target
