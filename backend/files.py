"""Files that are whole or not there: written beside their place, brought to the disk, then renamed."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

PART = ".part"
"""Ending of a file that is being written; one that is found was left by a process that died."""


@contextlib.contextmanager
def whole_file(path: Path, durable: bool = True) -> Iterator[IO[bytes]]:
    """Write `path` as a whole: it is seen with its old content or its new one, also after a power cut.

    Args:
        path: The file.
        durable: Wait until the disk has it. False is for what may be lost, never for what may be seen half.
    """
    unfinished = path.with_name(path.name + PART)
    try:
        with unfinished.open("wb") as file:
            yield file
            file.flush()
            if durable:
                os.fsync(file.fileno())
        unfinished.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):  # the first error is the one that counts
            unfinished.unlink(missing_ok=True)
        raise
    if durable:
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Bring names that were made or changed in a folder to the disk; Windows does so by itself."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_file(path: Path) -> None:
    """Bring a file that somebody else wrote to the disk."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def write_json(path: Path, content: Mapping[str, Any], durable: bool = True) -> None:
    """Write JSON for people and programs as a whole file."""
    with whole_file(path, durable) as file:
        file.write((json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode("utf-8"))


def read_json(path: Path) -> Any:
    """The content, or None if the file is missing or no JSON."""
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def shown(path: Path) -> str:
    """A path for messages and logs: the user's own folder, and with it the user's name, is "~"."""
    try:
        return str(Path("~") / path.relative_to(Path.home()))
    except ValueError:
        return str(path)
