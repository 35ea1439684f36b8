"""`serve`: jobs for Blender over two pipes, one JSON object per line (blender_addon/shared/protocol.py).

Four threads: the main one works; one reads, so that cancel and ping are answered while it works; one writes, so that
nobody waits for a reader that is slow; one watches the parent. Whatever is on the disk is whole at any moment, hence
this process may end anywhere: it does so at once when its parent is gone, and when a cancelled job does not stop.
Only the standard library is loaded before hello is sent.
"""

from __future__ import annotations

import contextlib
import os
import queue
import sys
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from backend import __version__
from backend.device import query_device
from backend.memory import free_caches, resident_bytes, total_bytes
from backend.offline import forbid_connections
from backend.parent import watch_parent
from backend.pipes import take_pipes
from blender_addon.shared import protocol
from blender_addon.shared.protocol import (
    TERMINAL,
    Accepted,
    BackendMessage,
    Cancel,
    Cancelled,
    Cancelling,
    Capabilities,
    Error,
    Failed,
    Finish,
    Hello,
    LineSplitter,
    Ping,
    Pong,
    Progress,
    ProtocolError,
    Retiring,
    Run,
    Shutdown,
)

STOP_S = 1.2
"""A cancelled job that has not stopped by itself after this is ended with the process: 2 s are promised."""

LEAVE_S = 2.0
"""After a shutdown the running job has so long to stop by itself."""

REMEMBERED_JOBS = 4096


@dataclass(frozen=True)
class ServeOptions:
    """How the backend serves.

    Attributes:
        jobs: Folder of the job folders; nothing is read or written outside it.
        keep_days: See `housekeeping.Policy`; None leaves all jobs where they are.
        keep_bytes: See `housekeeping.Policy`.
        offline: Refuse every connection.
        memory_bytes: The user's own limit for a job's memory; 0 for none.
        own_body: The user's own SMPL-X file, the one file outside that may be read.
        device: "auto", "cpu" or "cuda".
        idle_bytes: A process that holds more after a job asks for a fresh one; 0 for half of the machine's memory.
    """

    jobs: Path
    keep_days: float | None = None
    keep_bytes: int = 20_000_000_000
    offline: bool = False
    memory_bytes: int = 0
    idle_bytes: int = 0
    own_body: Path | None = None
    device: str = "auto"


Worker = Callable[["Ticket", ServeOptions, Callable[[BackendMessage], None]], BackendMessage]
"""Does a job and returns its terminal message; sends what comes before it."""


@dataclass
class Ticket:
    """A job in this process.

    Attributes:
        order: The message that asked for it.
        cancel_event: Set when the user cancels.
        finish_event: Set when the user wants what there is.
        ended: Set when the terminal message is on its way.
        fresh: No job ran in this process before it.
    """

    order: Run
    cancel_event: threading.Event = field(default_factory=threading.Event)
    finish_event: threading.Event = field(default_factory=threading.Event)
    ended: threading.Event = field(default_factory=threading.Event)
    fresh: bool = True


class Outbox:
    """Messages on their way out: never blocks the sender, and a newer progress replaces one that still waits."""

    def __init__(self, descriptor: int, broken: Callable[[], None]) -> None:
        """Write to `descriptor`; call `broken` when nobody reads any more."""
        self._descriptor = descriptor
        self._broken = broken
        self._waiting: deque[BackendMessage] = deque()
        self._writing = False
        self._changed = threading.Condition()
        threading.Thread(target=self._write, name="writer", daemon=True).start()

    def send(self, message: BackendMessage) -> None:
        """Put a message behind the others."""
        with self._changed:
            last = self._waiting[-1] if self._waiting else None
            if isinstance(message, Progress) and isinstance(last, Progress) and last.job_id == message.job_id:
                self._waiting[-1] = message
            else:
                self._waiting.append(message)
            self._changed.notify_all()

    def flush(self, patience_s: float) -> None:
        """Wait until everything is written, but not longer than `patience_s`."""
        with self._changed:
            self._changed.wait_for(lambda: not self._waiting and not self._writing, patience_s)

    def _write(self) -> None:
        while True:
            with self._changed:
                self._writing = False
                self._changed.notify_all()
                self._changed.wait_for(lambda: bool(self._waiting))
                message, self._writing = self._waiting.popleft(), True
            try:
                line = memoryview(protocol.encode(message))
            except ProtocolError as error:  # too long, or text that is no UTF-8: say so instead of saying nothing
                line = memoryview(protocol.encode(_unsayable(message, str(error))))
            try:
                while line:
                    line = line[os.write(self._descriptor, line) :]
            except OSError:
                self._broken()


def _unsayable(message: BackendMessage, reason: str) -> BackendMessage:
    job_id: str = getattr(message, "job_id", "")
    if isinstance(message, TERMINAL):
        return Failed(job_id, "INTERNAL", reason, "please report it")
    return Error("INTERNAL", reason, job_id)


def serve(
    options: ServeOptions,
    worker: Worker | None = None,
    capabilities: Callable[[], Capabilities] | None = None,
) -> NoReturn:
    """Serve until the parent says shutdown, closes the pipes or is gone.

    Args:
        options: See there.
        worker: Does the jobs; `serve_job.do_job` by default.
        capabilities: Loads the libraries and says what can be done; `serve_job.load_capabilities` by default.
    """
    source, target = take_pipes()
    watch_parent(_exit_now)
    if options.offline:
        forbid_connections()
    outbox = Outbox(target, _exit_now)
    server = Server(options, outbox, worker or _do_job)
    outbox.send(Hello(protocol.PROTOCOL, __version__, os.getpid(), query_device()))
    threading.Thread(target=server.read, args=(source, _exit_now), name="reader", daemon=True).start()
    outbox.send((capabilities or _load_capabilities)())
    if options.keep_days is not None:
        _tidy(options)
    server.work()
    outbox.flush(LEAVE_S)
    sys.stderr.flush()
    _exit_now()


def _do_job(ticket: Ticket, options: ServeOptions, send: Callable[[BackendMessage], None]) -> BackendMessage:
    from backend.serve_job import do_job  # loads the libraries, hence after hello

    return do_job(ticket, options, send)


def _load_capabilities() -> Capabilities:
    from backend.serve_job import load_capabilities

    return load_capabilities()


def _tidy(options: ServeOptions) -> None:
    from backend.housekeeping import Policy, prune

    assert options.keep_days is not None
    policy = Policy(options.keep_days, options.keep_bytes)
    try:
        removed = prune(options.jobs, policy)
    except OSError as error:  # a folder that cannot be read is no reason to serve nothing
        print(f"old jobs could not be removed: {error}", file=sys.stderr)
        return
    if removed:
        print(f"removed old jobs: {', '.join(removed)}", file=sys.stderr)


def _later(seconds: float, action: Callable[[], None]) -> None:
    timer = threading.Timer(seconds, action)
    timer.daemon = True
    timer.start()


def _exit_now() -> NoReturn:
    """End with code 0. Not `sys.exit`: the main thread may be deep in a library, and leaving torch takes a second."""
    os._exit(0)


class Server:
    """The state of one serving process."""

    def __init__(self, options: ServeOptions, outbox: Outbox, worker: Worker) -> None:
        """Serve the jobs of `options.jobs`; `worker` does the work."""
        self._options = options
        self._outbox = outbox
        self._worker = worker
        self._lock = threading.RLock()
        self._known: dict[str, Ticket] = {}
        self._queue: queue.SimpleQueue[Ticket | None] = queue.SimpleQueue()
        self._running: Ticket | None = None
        self._leaving = False
        self._fresh = True

    def read(self, descriptor: int, gone: Callable[[], None]) -> None:
        """Read and answer until nobody writes any more, then call `gone`."""
        splitter = LineSplitter()
        with contextlib.suppress(OSError):  # a broken pipe means the same as a closed one
            while data := os.read(descriptor, 1 << 16):
                for line in splitter.feed(data):
                    self.answer(line)
        if not self._leaving:
            gone()

    def answer(self, line: bytes | ProtocolError) -> None:
        """Answer one line."""
        try:
            if isinstance(line, ProtocolError):
                raise line
            message = protocol.decode_client(line)
        except ProtocolError as error:
            self._outbox.send(Error("PROTOCOL", str(error)))
            return
        if isinstance(message, Ping):
            self._outbox.send(Pong())
        elif isinstance(message, Run):
            self._accept(message)
        elif isinstance(message, Cancel):
            self._cancel(message.job_id)
        elif isinstance(message, Finish):
            self._finish_early(message.job_id)
        elif isinstance(message, Shutdown):
            self.leave()

    def work(self) -> None:
        """Do one job after the other until the process is to end."""
        while (ticket := self._queue.get()) is not None:
            with self._lock:
                if ticket.ended.is_set():  # cancelled while it waited
                    continue
                self._running, ticket.fresh, self._fresh = ticket, self._fresh, False
            end = self._worker(ticket, self._options, self._outbox.send)
            self._finish(ticket, end)
            if reason := self._reason_to_retire(end):
                self._retire(reason)
                return

    def leave(self) -> None:
        """Cancel everything and end; the running job has a moment to stop."""
        with self._lock:
            self._leaving = True
            tickets = list(self._known.values())
        for ticket in tickets:
            if not ticket.ended.is_set():
                self._stop(ticket)
        self._queue.put(None)
        _later(LEAVE_S, self._end)

    def _accept(self, order: Run) -> None:
        problem = protocol.check_job_id(order.job_id)
        ticket = Ticket(order)
        with self._lock:
            if order.job_id in self._known:
                problem = "this job is known already; give every job its own name"
            if self._leaving:
                problem = "the backend is ending; start it again"
            if not problem:
                self._known[order.job_id] = ticket
                self._forget_old()
        if problem:
            self._outbox.send(Error("BAD_REQUEST", problem, order.job_id))
            return
        self._outbox.send(Accepted(order.job_id))
        self._queue.put(ticket)

    def _forget_old(self) -> None:
        ended = [job_id for job_id, ticket in self._known.items() if ticket.ended.is_set()]
        for job_id in ended[: max(len(self._known) - REMEMBERED_JOBS, 0)]:
            del self._known[job_id]

    def _cancel(self, job_id: str) -> None:
        ticket = self._open_ticket(job_id)
        if ticket is not None:
            self._outbox.send(Cancelling(job_id))
            self._stop(ticket)

    def _finish_early(self, job_id: str) -> None:
        ticket = self._open_ticket(job_id)
        if ticket is not None:
            ticket.finish_event.set()

    def _open_ticket(self, job_id: str) -> Ticket | None:
        """The job, if it has not ended; else the answer to who asked for it."""
        with self._lock:
            ticket = self._known.get(job_id)
        if ticket is None or ticket.ended.is_set():
            what = "there is no such job" if ticket is None else "the job has ended already"
            self._outbox.send(Error("BAD_REQUEST", what, job_id))
            return None
        return ticket

    def _stop(self, ticket: Ticket) -> None:
        """Cancel a job: at once if it waits, else at its next check, else with the process."""
        with self._lock:
            first = not ticket.cancel_event.is_set()
            ticket.cancel_event.set()
            if self._running is not ticket:
                self._finish(ticket, Cancelled(ticket.order.job_id))
            elif first:
                _later(STOP_S, lambda: self._give_up(ticket))

    def _give_up(self, ticket: Ticket) -> None:
        if self._finish(ticket, Cancelled(ticket.order.job_id)):
            self._retire("a cancelled job did not stop")
            self._end()

    def _finish(self, ticket: Ticket, message: BackendMessage) -> bool:
        """Send a job's terminal message, unless it has had one."""
        with self._lock:
            if ticket.ended.is_set():
                return False
            ticket.ended.set()
            if self._running is ticket:
                self._running = None
            self._outbox.send(message)
            return True

    def _reason_to_retire(self, end: BackendMessage) -> str:
        """Why the next job needs a fresh process; empty if this one will do."""
        if isinstance(end, Failed) and end.code == "OUT_OF_MEMORY":
            return "memory ran out, and what a library keeps after that comes back only with a fresh process"
        free_caches()
        limit = self._options.idle_bytes or total_bytes() // 2
        if limit and resident_bytes() > limit:
            return "the models in memory leave too little for others"
        return ""

    def _retire(self, reason: str) -> None:
        with self._lock:
            self._leaving = True
            waiting = [ticket for ticket in self._known.values() if not ticket.ended.is_set()]
        for ticket in waiting:
            self._finish(ticket, Failed(ticket.order.job_id, "INTERNAL", reason, "it is started again", True))
        self._outbox.send(Retiring(reason))
        self._outbox.flush(LEAVE_S)

    def _end(self) -> None:
        self._outbox.flush(1.0)
        os._exit(0)
