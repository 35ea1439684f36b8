"""Locks that the system drops when their holder dies, so that none goes stale. Standard library only."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import IO, Any

ENVIRONMENT_STATE = "effigy-environment.json"
"""File of an environment that the add-on made, in its folder ..."""

ENVIRONMENT_IN_USE = "effigy-in-use.lock"
"""... and the lock that every process of the backend in it holds, shared, so that nobody takes it away."""

_WINDOWS_OFFSET = 1 << 20
"""Windows locks bytes against reading too: one far behind the text that says who holds the lock."""


def try_lock(file: IO[bytes], shared: bool = False) -> bool:
    """Take a lock on an open file without waiting.

    Args:
        file: Open for writing; the lock lasts until it and every inherited copy of it is closed.
        shared: Several may hold it at once (POSIX only; on Windows an open file alone hinders its removal).
    """
    try:
        if os.name == "nt":
            if not shared:
                import msvcrt

                os.lseek(file.fileno(), _WINDOWS_OFFSET, os.SEEK_SET)
                msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file.fileno(), (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


@contextlib.contextmanager
def held(path: Path, waiting: Callable[[int], None], pause_s: float = 0.3) -> Generator[IO[bytes]]:
    """Hold the lock `path`, waiting for it if another process has it.

    Args:
        path: The lock's file; its folder exists. It stays behind when the lock is given back.
        waiting: Called again and again with the holder's process id (0: unknown); may raise to give up.
        pause_s: Between two tries.

    Yields:
        The open file: children that inherit its descriptor hold the lock too.

    Raises:
        OSError: If the file cannot be written.
    """
    with path.open("a+b") as file:
        while not try_lock(file):
            waiting(holder(path))
            time.sleep(pause_s)
        file.seek(0)
        file.truncate()
        file.write(json.dumps({"pid": os.getpid()}).encode())
        file.flush()
        yield file


def holder(path: Path) -> int:
    """Process id of the last holder; 0 if unknown."""
    try:
        content: Any = json.loads(path.read_bytes()[:16384])
        return int(content["pid"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0
