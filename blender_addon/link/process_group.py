"""A child process that ends with everything it started. Standard library only.

POSIX: a session of its own, killed as a process group. Windows: a job object that kills when it is closed, which the
system also does when Blender dies.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

_CREATE_NO_WINDOW = 0x08000000
_CREATE_NEW_PROCESS_GROUP = 0x00000200
_EXTENDED_LIMITS = 9
_KILL_ON_CLOSE = 0x2000
_can_look = hasattr(os, "waitid")  # not on Windows, and on macOS from Python 3.13 on only


class ProcessGroup:
    """A child with two pipes and a log."""

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        folder: Path,
        log: IO[bytes] | None,
        inherited: Sequence[int] = (),
    ) -> None:
        """Start it in `folder`.

        Args:
            command: Program and arguments.
            environment: Its variables.
            folder: Its working directory.
            log: Where its errors go; None sends them the way of its output.
            inherited: Descriptors that it keeps open too (POSIX), for locks that shall last as long as it does.

        Raises:
            OSError: If it cannot be started.
        """
        windows = sys.platform == "win32"
        self._child = subprocess.Popen(
            list(command),
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT if log is None else log,
            cwd=folder,
            env=dict(environment),
            start_new_session=not windows,
            pass_fds=() if windows else tuple(inherited),
            creationflags=_CREATE_NO_WINDOW | _CREATE_NEW_PROCESS_GROUP if windows else 0,
        )
        self._job = _kill_on_close(self._child) if windows else None
        assert self._child.stdin is not None and self._child.stdout is not None
        self.stdin, self.stdout = self._child.stdin, self._child.stdout

    @property
    def pid(self) -> int:
        """Process id of the child."""
        return self._child.pid

    def exit_code(self) -> int | None:
        """How the child ended, or None while it runs; what it left behind is ended with it. Never waits."""
        if self._child.returncode is None:
            if _can_look and _has_ended(self._child.pid):
                self._signal_group(kill=True)  # its children, before the id of the group can belong to somebody else
            if self._child.poll() is not None:
                self._close_job()
        return self._child.returncode

    def terminate(self) -> None:
        """Ask the child to end."""
        if self.exit_code() is None:
            self._signal_group(kill=False)

    def kill(self) -> None:
        """End the child and all its children now."""
        if self.exit_code() is None:
            self._signal_group(kill=True)
            self._close_job()

    def wait(self, patience_s: float) -> int | None:
        """Wait for the end, at most `patience_s`."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            if _can_look:
                _wait_unreaped(self._child.pid, patience_s)
            else:
                self._child.wait(patience_s)
        return self.exit_code()

    def _signal_group(self, kill: bool) -> None:
        if sys.platform == "win32":
            (self._child.kill if kill else self._child.terminate)()
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):  # gone; macOS says the second of a zombie
            os.killpg(self._child.pid, signal.SIGKILL if kill else signal.SIGTERM)

    def _close_job(self) -> None:
        if self._job:
            getattr(ctypes, "windll").kernel32.CloseHandle(self._job)  # noqa: B009  exists on Windows only
            self._job = None


def _has_ended(pid: int) -> bool:
    """Whether the child has ended, without taking its exit code."""
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return True


def _wait_unreaped(pid: int, patience_s: float) -> None:
    end = time.monotonic() + patience_s
    while not _has_ended(pid) and time.monotonic() < end:
        time.sleep(0.01)


def _kill_on_close(child: subprocess.Popen[bytes]) -> Any:
    """A job object with the child in it; None where the system refuses one."""
    kernel32: Any = getattr(ctypes, "windll").kernel32  # noqa: B009  exists on Windows only
    kernel32.CreateJobObjectW.restype = ctypes.c_void_p
    job = kernel32.CreateJobObjectW(None, None)
    if not job:
        return None
    # JOBOBJECT_EXTENDED_LIMIT_INFORMATION, 64 bit: LimitFlags is the 32-bit word at byte 16 of 144.
    limits = ctypes.create_string_buffer(144)
    ctypes.c_uint32.from_buffer(limits, 16).value = _KILL_ON_CLOSE
    kernel32.SetInformationJobObject(ctypes.c_void_p(job), _EXTENDED_LIMITS, limits, len(limits))
    kernel32.AssignProcessToJobObject(ctypes.c_void_p(job), ctypes.c_void_p(int(getattr(child, "_handle"))))  # noqa: B009
    return ctypes.c_void_p(job)
