"""The job folder: worked on beside its final place, published when complete, so that no half-written result is seen."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from backend import __version__
from backend.errors import FAILED, UserError, full_disk
from backend.files import read_json, sync_file, sync_folder, write_json
from backend.perception.photo import Photo
from backend.pipeline import Run

SCHEMA_VERSION = 1
RESULT = "result.json"
LOG = "log.txt"
STATE = "state.json"
NEEDED_BYTES = 300_000_000
"""What a job may write before it is published: checkpoints, states of loops and the result, with half as much again."""

_SOMETIMES = ("body_sha256", "files_sha256")
"""Of a job's identity, what only some jobs have."""

_REQUEST = "request.json"
_CHECKPOINTS = "checkpoints"
_SCRATCH = "scratch"
_LOCK = ".lock"
_LOCKED_BYTE = 1 << 20  # far behind the text, which others can read while the byte is locked (Windows)


@dataclass(frozen=True)
class Job:
    """A job that is being worked on.

    Attributes:
        final: Where the result goes.
        work: The folder that is worked in; hidden, on the same disk as `final`.
        identity: What must be equal for a resume: method, request, photo and version.
        resumed: An earlier run's checkpoints are there.
        made_parents: Folders above `work` that were made for this job, innermost first.
        lock: Held while the job runs.
    """

    final: Path
    work: Path
    identity: Mapping[str, Any]
    resumed: bool
    made_parents: tuple[Path, ...]
    lock: IO[bytes]

    @property
    def checkpoints(self) -> Path:
        """Folder of the stages' values."""
        return self.work / _CHECKPOINTS

    @property
    def scratch(self) -> Path:
        """Folder for temporary files."""
        return self.work / _SCRATCH

    @property
    def log(self) -> Path:
        """The job's log."""
        return self.work / LOG


def identity(
    method: str,
    request: Mapping[str, Any],
    photo: Photo,
    own_body: Path | None = None,
    files: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Everything that influences the result, as JSON.

    Args:
        method: Method id.
        request: Its parameters; files by their names inside the job.
        photo: The photo.
        own_body: The user's own body file, whose sha256 counts.
        files: sha256 by name of the request's files.
    """
    own: dict[str, Any] = {"body_sha256": sha256(own_body)} if own_body is not None else {}
    own |= {"files_sha256": dict(files)} if files else {}
    common = {"method": method, "request": dict(request), "photo_sha256": photo.sha256}
    return common | {"effigy_version": __version__} | own


def is_finished(out: Path, wanted: Mapping[str, Any]) -> bool:
    """Whether `out` holds the complete result of exactly this job."""
    try:
        result = json.loads((out / RESULT).read_text("utf-8"))
        same = all(result[name] == wanted[name] for name in ("method", "request", "effigy_version"))
        whole = all((out / item["path"]).stat().st_size == item["bytes"] for item in result["files"])
        same = same and all(result.get(name) == wanted.get(name) for name in _SOMETIMES)
        return same and whole and result["input"]["sha256"] == wanted["photo_sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return False


def begin(out: Path, wanted: Mapping[str, Any], resume: bool, needed_bytes: int = NEEDED_BYTES) -> Job:
    """Make the folder to work in.

    Args:
        out: Where the result will go; files that lie there already stay, but for those that the result replaces.
        wanted: The job's `identity`.
        resume: Take over what an interrupted run of the same job left.
        needed_bytes: Free space without which the job does not begin.

    Raises:
        UserError: If the folder cannot be written, the disk is too full, or another job is writing to it.
    """
    out = Path(os.path.abspath(out))
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; give a folder with --out")
    work = work_folder(out)
    parents: list[Path] = []
    above = work.parent
    while not above.exists():
        parents.append(above)
        above = above.parent
    try:
        work.mkdir(parents=True, exist_ok=True)
        lock = _open_lock(work)
    except OSError as error:
        _remove_empty(parents)
        raise UserError(f"{out} cannot be written ({error.strerror}); choose another folder with --out") from error
    if lock is None:
        owner = read_owner(work)
        raise UserError(f"another job{owner} is writing to {out}; wait for it or choose another folder with --out")
    resumed = resume and read_json(work / _REQUEST) == dict(wanted)
    job = Job(out, work, wanted, resumed, tuple(parents), lock)
    try:
        # Only now: of a folder that cannot be written it is the right that is missing, not the space.
        _check_space(work, needed_bytes)
        _prepare(job)
    except UserError:
        release(job) if resumed else discard(job)
        raise
    except OSError as error:
        discard(job)
        raise UserError(f"{out} cannot be written ({error.strerror}); choose another folder with --out") from error
    return job


def work_folder(out: Path) -> Path:
    """Where a job works whose result goes to `out`."""
    return out / ".partial" if out.is_dir() else out.with_name(f".{out.name}.partial")


def _check_space(folder: Path, needed_bytes: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed_bytes:
        raise UserError(
            f"the disk of {folder} has {free / 1e6:.0f} MB free and the job needs up to {needed_bytes / 1e6:.0f} MB; "
            "free some space or choose another folder with --out",
            FAILED,
            "DISK_FULL",
        )


def _open_lock(work: Path) -> IO[bytes] | None:
    """The locked file, or None if another process has it; the system drops the lock when its owner ends."""
    while True:
        lock = (work / _LOCK).open("a+b")
        if not _try_lock(lock.fileno()):
            lock.close()
            return None
        with contextlib.suppress(FileNotFoundError):
            if _is_same(lock, work / _LOCK):
                lock.truncate(0)
                lock.write(str(os.getpid()).encode())
                lock.flush()
                return lock
        lock.close()  # its owner removed the folder between our opening and locking it
        work.mkdir(parents=True, exist_ok=True)


def _is_same(lock: IO[bytes], path: Path) -> bool:
    return os.path.samestat(os.fstat(lock.fileno()), path.stat())


def read_owner(work: Path) -> str:
    """Who works in a folder, for people: " (process 123)"; empty if that is not known."""
    try:
        text = (work / _LOCK).read_bytes()[:20].decode("ascii", errors="replace").strip()
    except OSError:
        return ""
    return f" (process {text})" if text.isdigit() else ""


def is_in_use(work: Path) -> bool:
    """Whether a living process works in this folder."""
    try:
        lock = (work / _LOCK).open("r+b")
    except OSError:
        return False
    with lock:
        return not _try_lock(lock.fileno())


def _prepare(job: Job) -> None:
    for item in job.work.iterdir():
        keep = {_LOCK, *((_REQUEST, _CHECKPOINTS, LOG) if job.resumed else ())}
        if item.name not in keep:
            _remove(item)
    job.checkpoints.mkdir(exist_ok=True)
    job.scratch.mkdir()
    write_json(job.work / _REQUEST, job.identity)


def discard(job: Job) -> None:
    """Leave nothing behind."""
    job.lock.close()
    _remove(job.work)
    _remove_empty(job.made_parents)


def release(job: Job) -> None:
    """Keep the checkpoints for a later resume."""
    job.lock.close()


def publish(job: Job, run: Run, photo: Photo, device: str, seconds: float) -> Path:
    """Write result.json and put the finished folder in its place.

    Args:
        job: The job.
        run: What the pipeline made.
        photo: The input.
        device: Where it ran.
        seconds: Wall time of this run.

    Returns:
        The final folder.
    """
    for name in (_CHECKPOINTS, _SCRATCH, _REQUEST):
        _remove(job.work / name)
    for path in job.work.rglob("*"):
        if path.is_file():
            sync_file(path)
    write_json(job.work / RESULT, describe(job, run, photo, device, seconds))
    job.lock.close()
    _remove(job.work / _LOCK)
    if not job.final.exists():
        job.work.replace(job.final)
        sync_folder(job.final.parent)
        return job.final
    # result.json goes first and comes last: a folder with one is complete.
    (job.final / RESULT).unlink(missing_ok=True)
    for item in sorted(job.work.iterdir(), key=lambda path: path.name == RESULT):
        target = job.final / item.name
        if target.is_dir() or item.is_dir():
            _remove(target)
        item.replace(target)
    job.work.rmdir()
    sync_folder(job.final)
    return job.final


def describe(job: Job, run: Run, photo: Photo, device: str, seconds: float) -> dict[str, Any]:
    """The content of result.json."""
    stages = [
        {"name": r.name, "seconds": round(r.seconds, 3), "peak_memory_bytes": r.peak_memory_bytes, "resumed": r.resumed}
        for r in run.records
    ]
    own = {name: job.identity[name] for name in _SOMETIMES if name in job.identity}
    return own | {
        "schema_version": SCHEMA_VERSION,
        "effigy_version": job.identity["effigy_version"],
        "method": job.identity["method"],
        "request": job.identity["request"],
        "input": {"name": photo.path.name, "sha256": photo.sha256, "size_px": list(photo.original_size)},
        "generators": list(run.outcome.generators),
        "warnings": list(dict.fromkeys([*photo.warnings, *run.warnings])),
        "seconds": round(seconds, 3),
        "stages": stages,
        "peak_memory_bytes": max((r.peak_memory_bytes for r in run.records), default=0),
        "device": device,
        "files": list_files(job.work),
    }


def list_files(folder: Path) -> list[dict[str, Any]]:
    """Name relative to `folder`, bytes and sha256 of every file in it but result.json and the log, which may grow."""
    found = []
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name not in (RESULT, LOG, _LOCK):
            entry = {"path": path.relative_to(folder).as_posix(), "bytes": path.stat().st_size}
            found.append(entry | {"sha256": sha256(path)})
    return found


def sha256(path: Path) -> str:
    """Hash of a file's bytes, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def disk_errors(out: Path) -> Iterator[None]:
    """Turn a full or read-only disk into a line for the user.

    Raises:
        UserError: With code 1.
    """
    try:
        yield
    except Exception as error:
        full = full_disk(error)
        if full is None and isinstance(error, OSError) and error.errno == errno.EROFS:
            full = error
        if full is None:
            raise
        line = f"{out} cannot be written ({full.strerror}); free some space, try again"
        raise UserError(line, FAILED, "DISK_FULL") from error


def write_state(folder: Path, state: str, **more: str | int | float | bool) -> None:
    """Say in a job's folder how the job stands: "running", "done", "failed", "cancelled".

    A folder that says "running" without a living process belongs to a job that was killed, and can be resumed.
    """
    write_json(folder / STATE, {"state": state, "pid": os.getpid(), "updated": time.time(), **more})


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _remove_empty(folders: list[Path] | tuple[Path, ...]) -> None:
    for folder in folders:
        with contextlib.suppress(OSError):  # somebody else has put something there; it stays
            folder.rmdir()


def _try_lock(descriptor: int) -> bool:
    """Take a lock that the system drops when this process ends."""
    try:
        if os.name == "nt":
            import msvcrt

            os.lseek(descriptor, _LOCKED_BYTE, os.SEEK_SET)
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
