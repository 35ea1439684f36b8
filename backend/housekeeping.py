"""Old jobs make room: what is kept, for how long, and what is never touched."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from backend import jobs
from backend.files import PART, read_json
from blender_addon.shared.protocol import check_job_id

RESULT_FOLDER = "result"
"""Where a job of `serve` has its result, below the job's folder."""

PIN = "keep"
"""A file of this name in a job's folder keeps the folder for good: Blender puts it there for results that are used."""

_DAY_S = 86_400.0


@dataclass(frozen=True)
class Policy:
    """How long jobs stay.

    Attributes:
        keep_days: Finished jobs stay so long.
        keep_bytes: And so many bytes of them together, the newest first.
        keep_partial_days: Failed, cancelled and interrupted ones stay so long, to be resumed.
    """

    keep_days: float = 30.0
    keep_bytes: int = 20_000_000_000
    keep_partial_days: float = 3.0


def prune(root: Path, policy: Policy, now: float | None = None) -> list[str]:
    """Remove old job folders of `root`.

    Never touched: what does not look like a job (no request.json), what a living process works in, pinned jobs, links.

    Args:
        root: The folder of jobs.
        policy: What stays.
        now: Seconds since the epoch; the present by default.

    Returns:
        Names of the removed jobs.
    """
    now = time.time() if now is None else now
    removed: list[str] = []
    kept_bytes = 0
    for folder in sorted(_folders(root), key=_changed, reverse=True):
        finished = (folder / RESULT_FOLDER / jobs.RESULT).is_file()
        age_days = (now - _changed(folder)) / _DAY_S
        if finished:
            kept_bytes += folder_bytes(folder)
            old = age_days > policy.keep_days or kept_bytes > policy.keep_bytes
        else:
            old = age_days > policy.keep_partial_days
        if old and not (folder / PIN).exists() and not is_busy(folder):
            shutil.rmtree(folder, ignore_errors=True)  # on Windows a file may be open elsewhere: next time
            removed.append(folder.name)
        else:
            _sweep(folder)
    return removed


def is_busy(folder: Path) -> bool:
    """Whether a living process works on the job of this folder."""
    result = folder / RESULT_FOLDER
    return any(jobs.is_in_use(work) for work in (jobs.work_folder(result), result.with_name(".result.partial")))


def folder_bytes(folder: Path) -> int:
    """Size of all files below a folder."""
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())


def _folders(root: Path) -> Iterator[Path]:
    if not root.is_dir():
        return
    for folder in root.iterdir():
        named = not check_job_id(folder.name)
        if named and folder.is_dir() and not folder.is_symlink() and (folder / "request.json").is_file():
            yield folder


def _changed(folder: Path) -> float:
    """When the job's state changed last, seconds since the epoch."""
    state = read_json(folder / jobs.STATE)
    updated = state.get("updated") if isinstance(state, dict) else None
    return float(updated) if isinstance(updated, int | float) else folder.stat().st_mtime


def _sweep(folder: Path) -> None:
    """Remove half-written files that a dead process left beside the job's own."""
    if not is_busy(folder):
        for path in [*folder.glob(f"*{PART}"), *folder.glob(f".*.partial/**/*{PART}")]:
            path.unlink(missing_ok=True)
