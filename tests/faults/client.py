"""A client of the real protocol for tests: starts a backend, talks to it, waits on conditions with generous bounds."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

ROOT = Path(__file__).parent.parent.parent
STUB = Path(__file__).parent / "stub_backend.py"
PATIENCE_S = 60.0
"""Of every wait; reached only when something is wrong."""


def wait_until(condition: Callable[[], Any], what: str, patience_s: float = PATIENCE_S) -> Any:
    end = time.monotonic() + patience_s
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.01)
    raise AssertionError(f"waited {patience_s} s for {what}")


def stub_command(jobs: Path, *more: str) -> list[str]:
    return [sys.executable, "-P", "-s", "-u", str(STUB), "--jobs", str(jobs), *more]


def real_command(jobs: Path, *more: str) -> list[str]:
    return [sys.executable, "-P", "-s", "-u", "-m", "backend", "serve", "--jobs", str(jobs), *more]


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT)}


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that only waits to be collected does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state not in ("Z", "X")


def make_job(jobs: Path, job_id: str, image: Path | None = None) -> Path:
    """A job's folder as the add-on makes it."""
    folder = jobs / job_id
    folder.mkdir(parents=True)
    if image is None:
        Image.new("RGB", (80, 80), (90, 120, 150)).save(folder / "input.png")
    else:
        (folder / "input.png").write_bytes(image.read_bytes())
    (folder / "request.json").write_text(json.dumps({"job_id": job_id}))
    return folder


class Client:
    """Raw lines in, raw lines out."""

    def __init__(self, command: list[str], jobs: Path) -> None:
        self.jobs = jobs
        self.log = jobs.parent / f"backend-{time.monotonic_ns()}.log"
        with self.log.open("wb") as log:
            self.child = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, cwd=jobs.parent, env=environment()
            )
        self.messages: list[dict[str, Any]] = []
        self.times: list[float] = []
        self.bad_lines: list[bytes] = []
        self._first = self._ids = 0
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        assert self.child.stdout
        for line in self.child.stdout:
            try:
                message = json.loads(line)
            except ValueError:
                self.bad_lines.append(line)
                continue
            self.times.append(time.monotonic())
            self.messages.append(message)

    def send_bytes(self, data: bytes) -> None:
        assert self.child.stdin
        self.child.stdin.write(data)
        self.child.stdin.flush()

    def send(self, **message: Any) -> None:
        self.send_bytes(json.dumps(message).encode() + b"\n")

    def run(self, job_id: str, resume: bool = False, new: bool = True, method: str = "stub", **request: Any) -> Path:
        folder = make_job(self.jobs, job_id) if new else self.jobs / job_id
        self.send(type="run", job_id=job_id, method=method, request=request, image="input.png", resume=resume)
        return folder

    def of(self, kind: str, **fields: Any) -> list[dict[str, Any]]:
        wanted = fields | {"type": kind}
        recent = self.messages[self._first :]
        return [m for m in recent if all(m.get(name) == value for name, value in wanted.items())]

    def forget(self) -> None:
        """Leave out of sight what came so far, for a client that several tests share."""
        self._first = len(self.messages)

    def new_id(self) -> str:
        """A name that no job of this client has."""
        self._ids += 1
        return f"job-{self._ids}"

    def wait(self, kind: str, count: int = 1, patience_s: float = PATIENCE_S, **fields: Any) -> dict[str, Any]:
        """The `count`-th message of this kind."""

        def found() -> bool:
            done = self.child.poll() is not None and not self._thread.is_alive()
            assert len(self.of(kind, **fields)) >= count or not done, (self.messages[-5:], self.log.read_text()[-2000:])
            return len(self.of(kind, **fields)) >= count

        wait_until(found, f"{kind} {fields}", patience_s)
        return self.of(kind, **fields)[count - 1]

    def terminals(self, job_id: str) -> list[dict[str, Any]]:
        return [m for kind in ("result", "failed", "cancelled") for m in self.of(kind, job_id=job_id)]

    def wait_end(self, job_id: str) -> dict[str, Any]:
        wait_until(lambda: self.terminals(job_id) or self.child.poll() is not None, f"the end of {job_id}")
        return self.terminals(job_id)[0]

    def wait_exit(self) -> int:
        code = self.child.wait(PATIENCE_S)
        self._thread.join(PATIENCE_S)
        return code

    def kill(self) -> None:
        if self.child.poll() is None:
            self.child.send_signal(signal.SIGCONT)
            self.child.kill()
        self.child.wait(PATIENCE_S)
        for pipe in (self.child.stdin, self.child.stdout):
            assert pipe
            self._thread.join(PATIENCE_S)
            pipe.close()


@contextmanager
def serving(folder: Path, *more: str, command: Callable[..., list[str]] = stub_command) -> Iterator[Client]:
    """A backend whose jobs lie in `folder`/jobs; it is gone at the end whatever happens."""
    jobs = folder / "jobs"
    jobs.mkdir(exist_ok=True)
    client = Client(command(jobs, *more), jobs)
    try:
        yield client
    finally:
        client.kill()


def half_files(folder: Path) -> list[str]:
    """Names of files that were left half-written."""
    return [str(path.relative_to(folder)) for path in folder.rglob("*.part")]


def descendants(pid: int) -> list[int]:
    """All processes below one (Linux)."""
    found: list[int] = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(fields[1]) == pid and fields[0] != "Z":
            found += [int(path.parent.name), *descendants(int(path.parent.name))]
    return found


def listening_ports(pid: int) -> list[str]:
    """Internet sockets of a process that listen or are bound (Linux)."""
    inodes = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        try:
            target = os.readlink(link)
        except OSError:
            continue
        if target.startswith("socket:["):
            inodes.add(target[8:-1])
    rows = []
    for table in ("tcp", "tcp6", "udp", "udp6", "raw", "raw6"):
        path = Path(f"/proc/{pid}/net/{table}")
        for line in path.read_text().splitlines()[1:] if path.exists() else ():
            fields = line.split()
            if fields[9] in inodes:
                rows.append(f"{table} {fields[1]}")
    return rows
