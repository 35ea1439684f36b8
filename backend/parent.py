"""Notice that the parent process is gone, beside the end of its pipe: something else may hold that open."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

INTERVAL_S = 0.25
MAIN_THREAD = "EFFIGY_STARTED_BY_MAIN_THREAD"
"""Set by a parent whose starting thread lives as long as itself: Linux ends a child with the thread that started it."""

_SET_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of prctl(2)
_SYNCHRONIZE = 0x00100000
_FOREVER = 0xFFFFFFFF


def watch_parent(gone: Callable[[], None]) -> None:
    """Call `gone` from a thread of its own when the process that started this one has ended."""
    wait = _wait_windows if sys.platform == "win32" else _wait_posix
    parent = os.getppid()
    if sys.platform == "linux" and os.environ.get(MAIN_THREAD):
        # The system does it at once, also while a library keeps all our threads waiting.
        ctypes.CDLL(None).prctl(_SET_DEATH_SIGNAL, signal.SIGKILL)
    threading.Thread(target=lambda: (wait(parent), gone()), name="parent", daemon=True).start()


def _wait_posix(parent: int) -> None:
    """An orphan gets another parent."""
    while os.getppid() == parent:
        time.sleep(INTERVAL_S)


def _wait_windows(parent: int) -> None:
    kernel32: Any = getattr(ctypes, "windll").kernel32  # noqa: B009  exists on Windows only
    kernel32.OpenProcess.restype = ctypes.c_void_p
    kernel32.WaitForSingleObject.argtypes = (ctypes.c_void_p, ctypes.c_uint32)
    handle = kernel32.OpenProcess(_SYNCHRONIZE, False, parent)
    if handle:
        kernel32.WaitForSingleObject(handle, _FOREVER)
