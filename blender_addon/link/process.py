"""The backend process as Blender sees it: start, hello, poll, run, cancel, end. Standard library only, no bpy.

Nothing here waits: two threads do the reading and writing, and `poll` takes what has come. Every job given to `run`
ends in exactly one terminal message from `poll`, whatever happens to the process. What an artist is told is one line.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from queue import SimpleQueue

from ..shared import protocol
from ..shared.protocol import (
    TERMINAL,
    BackendMessage,
    Cancel,
    Cancelled,
    Capabilities,
    ClientMessage,
    Error,
    Failed,
    Finish,
    Hello,
    LineSplitter,
    Ping,
    Progress,
    ProtocolError,
    Retiring,
    Run,
    Shutdown,
    UnknownTypeError,
)
from .process_group import ProcessGroup

LARGEST_LOG_BYTES = 4_000_000
MAIN_THREAD = "EFFIGY_STARTED_BY_MAIN_THREAD"
"""Tells the backend that the thread that starts it lives as long as Blender; see backend/parent.py."""


@dataclass(frozen=True)
class Limits:
    """How long things may take, in seconds, and how often they may go wrong."""

    hello_s: float = 30.0  # a cold disk; a warm one takes 0.2 s
    ping_after_s: float = 3.0
    stalled_after_s: float = 30.0
    cancel_s: float = 5.0
    terminate_s: float = 2.5
    kill_s: float = 5.0
    crashes: int = 3
    crash_window_s: float = 60.0


class State(Enum):
    """How the process stands."""

    STOPPED = "stopped"
    STARTING = "starting"
    READY = "ready"
    STALLED = "stalled"
    """It has not said anything for long; it may come back."""
    ENDING = "ending"
    BROKEN = "broken"
    """It is not started again until `forgive` is called."""


class BackendProcess:
    """One backend process at a time, started anew when it has ended.

    Attributes:
        state: How it stands.
        problem: One line with the next step if something is wrong; else empty.
        hello: What it said first, while it runs.
        capabilities: What it can do, when it has said so.
        log: Everything that it and its libraries print.
    """

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        log: Path,
        limits: Limits = Limits(),  # noqa: B008  frozen
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepare; nothing is started yet. The working directory is the log's folder."""
        self.state = State.STOPPED
        self.problem = ""
        self.hello: Hello | None = None
        self.capabilities: Capabilities | None = None
        self.log = log
        self._command, self._environment = command, environment
        self._limits = limits
        self._clock = clock
        self._link: _Link | None = None
        self._open: dict[str, float | None] = {}  # job -> when its cancel was asked for
        self._crashes: deque[float] = deque()
        self._since = self._heard = self._pinged = 0.0
        self._meant = False  # its end was asked for
        self._pending: list[BackendMessage] = []

    @property
    def pid(self) -> int:
        """Process id, 0 if none runs."""
        return self._link.group.pid if self._link else 0

    def start(self) -> bool:
        """Start the process if none runs and it did not crash too often. Its hello comes through `poll`.

        Returns:
            Whether one runs now; if not, `problem` says why.
        """
        if self._link is not None:
            return True
        if self.state is State.BROKEN:
            return False
        try:
            self.log.parent.mkdir(parents=True, exist_ok=True)
            _limit_log(self.log)
            own = {MAIN_THREAD: "1"} if threading.current_thread() is threading.main_thread() else {}
            with self.log.open("ab") as log:
                group = ProcessGroup(self._command, {**self._environment, **own}, self.log.parent, log)
            self._link = _Link(group)
        except OSError as error:
            self.state = State.BROKEN
            self.problem = f"the backend cannot be started ({error.strerror or error}); set it up in the preferences"
            return False
        self.hello = self.capabilities = None
        self.state, self.problem, self._meant = State.STARTING, "", False
        self._since = self._heard = self._pinged = self._clock()
        return True

    def forgive(self) -> None:
        """Forget earlier crashes, because the user wants to try again."""
        self._crashes.clear()
        if self.state is State.BROKEN:
            self.state, self.problem = State.STOPPED, ""

    def run(self, order: Run) -> None:
        """Give a job to the process.

        Raises:
            ValueError: If the process is not ready, the job is known, or the request does not fit into a message.
        """
        if self._link is None or self.state not in (State.READY, State.STALLED):
            raise ValueError("the backend is not ready")
        if order.job_id in self._open:
            raise ValueError(f"job {order.job_id} runs already")
        self._link.send(order)
        self._open[order.job_id] = None

    def cancel(self, job_id: str) -> None:
        """Stop a job: asked for now, forced after `Limits.cancel_s`. Unknown jobs are ignored."""
        if self._link is not None and job_id in self._open and self._open[job_id] is None:
            self._open[job_id] = self._clock()
            self._link.send(Cancel(job_id))

    def finish(self, job_id: str) -> None:
        """Ask a job to end early with what it has; nothing forces it. Unknown and cancelled jobs are ignored."""
        known = self._link is not None and job_id in self._open and self._open[job_id] is None
        older = self.hello is not None and self.hello.protocol.split(".")[:2] == ["1", "0"]
        if known and not older and self._link is not None:
            self._link.send(Finish(job_id))

    def shutdown(self) -> None:
        """Ask the process to end; `poll` takes care that it does."""
        if self._link is None or self.state is State.ENDING:
            return
        self._link.send(Shutdown())
        self._link.close_input()
        self._meant, self.state, self._since = True, State.ENDING, self._clock()

    def close(self, patience_s: float = 0.5) -> None:
        """End the process now, for Blender's exit and for disabling the add-on: waits at most `patience_s`, twice."""
        if self._link is None:
            return
        self.shutdown()
        if self._link.group.wait(patience_s) is None:
            self._link.group.kill()
            self._link.group.wait(patience_s)
        self._ended()

    def poll(self, budget_s: float = 0.002) -> list[BackendMessage]:
        """What has come since the last time; call it from a timer.

        Args:
            budget_s: Stop taking messages after this time; the rest comes the next time.

        Returns:
            Messages in their order. A job whose process ended gets its terminal message here too.
        """
        out, self._pending = self._pending, []
        link = self._link
        if link is None:
            return out
        end = self._clock() + budget_s
        while (item := link.take()) is not None:
            self._heard = self._clock()
            self._receive(item, out)
            if self._clock() >= end:
                break
        if self._link is not None:
            self._watch(link)
        out += self._pending
        self._pending = []
        return out

    def _receive(self, item: BackendMessage | ProtocolError, out: list[BackendMessage]) -> None:
        if self.state is State.STALLED:
            self.state, self.problem = State.READY, ""
        if isinstance(item, UnknownTypeError):
            return  # a newer minor version may say more than we know
        if isinstance(item, ProtocolError):
            self._give_up(f"the backend sent something that is no message ({item}); see {self.log}")
        elif isinstance(item, Hello):
            self._greet(item)
        elif isinstance(item, TERMINAL):
            if item.job_id in self._open:  # else: it was ended here already
                del self._open[item.job_id]
                out.append(item)
        elif isinstance(item, Retiring):
            self._meant, self.state, self._since = True, State.ENDING, self._clock()
        else:
            if isinstance(item, Capabilities):
                self.capabilities = item
            if isinstance(item, Error) and item.job_id in self._open and item.code == "BAD_REQUEST":
                item = self._refused(item)
            out.append(item)

    def _refused(self, error: Error) -> BackendMessage:
        """A job that the backend did not take has ended; a cancel that came too late has not."""
        if self._open[error.job_id] is not None:
            return error
        del self._open[error.job_id]
        return Failed(error.job_id, error.code, error.text)

    def _greet(self, hello: Hello) -> None:
        if problem := protocol.version_problem(hello.protocol):
            self._give_up(problem)
        elif self.state is State.STARTING:
            self.hello, self.state, self.problem = hello, State.READY, ""

    def _give_up(self, problem: str) -> None:
        """End a process that cannot be used; starting it again would not help."""
        assert self._link is not None
        self._link.group.kill()
        self._meant, self.state, self.problem = True, State.BROKEN, problem

    def _watch(self, link: _Link) -> None:
        """Everything that depends on time."""
        now, limits = self._clock(), self._limits
        if link.group.exit_code() is not None:  # which also ends its children, who may hold the pipe open
            if (link.closed and link.is_empty) or now - self._heard > limits.terminate_s:
                self._ended()
            return
        if link.closed and link.is_empty and now - self._heard > limits.terminate_s:
            link.group.kill()  # it closed its output and stays
            return
        if self.state is State.STARTING and now - self._since > limits.hello_s:
            link.group.kill()
        if any(asked is not None and now - asked > limits.cancel_s for asked in self._open.values()):
            self._meant = True
            link.group.kill()
        if self.state is State.ENDING:
            if now - self._since > limits.kill_s:
                link.group.kill()
            elif now - self._since > limits.terminate_s:
                link.group.terminate()
            return
        if self.state is State.READY and now - self._heard > limits.stalled_after_s:
            self.state = State.STALLED
            self.problem = f"the backend has not answered for {limits.stalled_after_s:.0f} s; wait or cancel the job"
        silent = now - max(self._heard, self._pinged)
        if self.state in (State.READY, State.STALLED) and silent > limits.ping_after_s:
            self._pinged = now
            link.send(Ping())

    def _ended(self) -> None:
        """The process is gone: every open job gets its end, and the next start is allowed or not."""
        assert self._link is not None
        code = self._link.group.exit_code()
        self._link.close()
        self._link = None
        self.hello = self.capabilities = None
        reason = f"the backend stopped unexpectedly ({_why(code)})"
        for job_id, asked in self._open.items():
            failed = Failed(job_id, "INTERNAL", reason, "start the job again; it goes on where it stopped", True)
            self._pending.append(failed if asked is None else Cancelled(job_id))
        self._open.clear()
        if self._meant:
            self.state = State.BROKEN if self.state is State.BROKEN else State.STOPPED
            return
        now = self._clock()
        self._crashes.append(now)
        while now - self._crashes[0] > self._limits.crash_window_s:
            self._crashes.popleft()
        broken = len(self._crashes) >= self._limits.crashes
        self.state = State.BROKEN if broken else State.STOPPED
        times = f"{len(self._crashes)} times within a minute"
        self.problem = f"{reason}, {times}; run doctor in the preferences; log: {self.log}" if broken else ""


class _Link:
    """The two pipes of a process and the threads that serve them."""

    def __init__(self, group: ProcessGroup) -> None:
        self.group = group
        self.closed = False
        self._inbox: deque[BackendMessage | ProtocolError] = deque()
        self._outbox: SimpleQueue[bytes | None] = SimpleQueue()
        self._lock = threading.Lock()
        for work in (self._read, self._write):
            threading.Thread(target=work, name="effigy backend", daemon=True).start()

    @property
    def is_empty(self) -> bool:
        """Whether nothing waits to be taken."""
        return not self._inbox

    def take(self) -> BackendMessage | ProtocolError | None:
        """The oldest message that has come, or what came instead of one; None if nothing waits."""
        with self._lock:
            return self._inbox.popleft() if self._inbox else None

    def send(self, message: ClientMessage) -> None:
        """Hand a message to the writing thread.

        Raises:
            ValueError: If it does not fit into a line.
        """
        try:
            self._outbox.put(protocol.encode(message))
        except ProtocolError as error:
            raise ValueError(str(error)) from error

    def close_input(self) -> None:
        """Let the process see the end of its input once everything is written."""
        self._outbox.put(None)

    def close(self) -> None:
        """Let the threads end, who close the pipes: the process has ended, so nothing holds them."""
        self.close_input()

    def _read(self) -> None:
        splitter = LineSplitter()
        descriptor = self.group.stdout.fileno()
        with contextlib.suppress(OSError):
            while data := os.read(descriptor, 1 << 16):
                for line in splitter.feed(data):
                    self._put(line)
        self.group.stdout.close()
        self.closed = True

    def _put(self, line: bytes | ProtocolError) -> None:
        try:
            item = line if isinstance(line, ProtocolError) else protocol.decode_backend(line)
        except ProtocolError as error:
            item = error
        with self._lock:
            last = self._inbox[-1] if self._inbox else None
            if isinstance(item, Progress) and isinstance(last, Progress) and last.job_id == item.job_id:
                self._inbox[-1] = item  # nobody looked at the older one
            else:
                self._inbox.append(item)

    def _write(self) -> None:
        with contextlib.suppress(OSError):  # the process is gone, which the reader notices too
            while (line := self._outbox.get()) is not None:
                view = memoryview(line)
                while view:
                    view = view[os.write(self.group.stdin.fileno(), view) :]
        self.group.stdin.close()


def _why(code: int | None) -> str:
    if code is None or code >= 0:
        return f"code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"


def _limit_log(log: Path) -> None:
    """Keep one older log beside a log that has grown large."""
    if log.exists() and log.stat().st_size > LARGEST_LOG_BYTES:
        log.replace(log.with_suffix(".old" + log.suffix))
