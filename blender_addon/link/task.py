"""One command of the backend that says what it does as JSON lines: models listed or fetched, doctor. No bpy."""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .process_group import ProcessGroup

_LONGEST_LINE = 1 << 20


class Task:
    """A child process whose output is read by a thread; whoever shows it calls `poll` now and then.

    Attributes:
        whole: All of standard output is one JSON value instead of one per line.
        code: Exit code; None while it runs.
        errors: What it said on standard error, the last lines.
    """

    def __init__(
        self, command: Sequence[str], variables: Mapping[str, str], folder: Path, log: Path, whole: bool = False
    ) -> None:
        """Start it.

        Raises:
            OSError: If it cannot be started, or its log cannot be written.
        """
        self.whole = whole
        self.code: int | None = None
        self._log = log
        self._messages: deque[dict[str, Any]] = deque()
        self._asked: float | None = None
        folder.mkdir(parents=True, exist_ok=True)
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as errors:
            self._group = ProcessGroup(command, variables, folder, errors)
        self._thread = threading.Thread(target=self._read, name="effigy task", daemon=True)
        self._thread.start()

    @property
    def errors(self) -> str:
        """The last lines that it wrote to standard error."""
        with contextlib.suppress(OSError):
            return self._log.read_text("utf-8", errors="replace")[-2000:].strip()
        return ""

    @property
    def is_running(self) -> bool:
        """Whether it still works."""
        return self.code is None

    def poll(self) -> list[dict[str, Any]]:
        """What it has said since the last time. Never waits."""
        out = []
        while self._messages:
            out.append(self._messages.popleft())
        if self.code is None and not self._thread.is_alive():
            self.code = self._group.exit_code()
            while self._messages:  # said between the loop above and its end
                out.append(self._messages.popleft())
        if self.code is None and self._asked is not None and time.monotonic() - self._asked > 5.0:
            self._group.kill()
        return out

    def cancel(self) -> None:
        """Ask it to end; `poll` ends it after five seconds if it does not."""
        if self._asked is None:
            self._asked = time.monotonic()
            self._group.terminate()

    def close(self) -> None:
        """End it now."""
        self._group.kill()
        self._group.wait(0.5)

    def _read(self) -> None:
        kept = b""
        with contextlib.suppress(OSError):
            while data := os.read(self._group.stdout.fileno(), 1 << 16):
                kept += data
                if not self.whole:
                    *lines, kept = kept.split(b"\n")
                    for line in lines:
                        self._take(line)
                if len(kept) > _LONGEST_LINE:
                    kept = b""  # no message of ours
        self._take(kept)
        self._group.stdout.close()

    def _take(self, text: bytes) -> None:
        with contextlib.suppress(ValueError):
            content = json.loads(text)
            if isinstance(content, dict):
                self._messages.append(content)
