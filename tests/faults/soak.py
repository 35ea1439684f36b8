"""Many jobs in a row with kills, cancels and bad requests mixed in at random, through the queue that Blender uses.

    python -m tests.faults.soak --jobs 200 [--seed 1]

Prints what went wrong and the memory of the backend; exit code 1 if a job was lost, ended twice, left a half-written
file or a process behind, or if memory grew by more than 50 MB.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from backend.housekeeping import Policy, prune
from blender_addon.link.jobs import ENDED, JobQueue
from blender_addon.link.process import BackendProcess, Limits
from tests.faults.client import environment, half_files, is_alive, stub_command

GROWTH_LIMIT_BYTES = 50_000_000
PATIENCE_S = 120.0
TROUBLES = ["", "", "", "", "warn", "print", "fail", "kill", "segfault", "orphan", "exhaust once", "package"]


@dataclass
class Report:
    """What was seen."""

    ends: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    growth_bytes: int = 0
    slowest_cancel_s: float = 0.0
    processes: int = 0
    seconds: float = 0.0


def soak(folder: Path, jobs: int, seed: int) -> Report:
    """Run `jobs` jobs below `folder`."""
    rng = random.Random(seed)
    report = Report()
    began = time.monotonic()
    photo = folder / "photo.png"
    Image.new("RGB", (80, 80), (90, 120, 150)).save(photo)
    root = folder / "jobs"
    root.mkdir()
    limits = Limits(crashes=10**9)  # the budget of restarts has its own test
    command = stub_command(root, "--keep-days", "30")  # which also sweeps what killed ones left
    process = BackendProcess(command, environment(), folder / "backend.log", limits)
    queue = JobQueue(process, root)
    pids: set[int] = set()
    first: dict[int, int] = {}  # process -> resident bytes after its first job
    try:
        for number in range(jobs):
            _one_job(queue, photo, rng, number, report, pids, first)
    finally:
        queue.close()
    # A killed writer leaves its .part inside the hidden folder of a job that never ended, and nowhere else.
    report.wrong += [f"half-written: {name}" for name in half_files(root) if ".result.partial/" not in name]
    prune(root, Policy())  # as the next backend does
    report.wrong += [f"not swept: {name}" for name in half_files(root)]
    report.wrong += [f"process {pid} is left" for pid in pids if is_alive(pid)]
    report.wrong += [f"process {pid} is left of a job" for pid in _sleepers(root)]
    report.processes = len(pids)
    report.seconds = time.monotonic() - began
    return report


def _one_job(
    queue: JobQueue,
    photo: Path,
    rng: random.Random,
    number: int,
    report: Report,
    pids: set[int],
    first: dict[int, int],
) -> None:
    trouble = rng.choice(TROUBLES)
    request = {"steps": rng.randrange(1, 12), "step_s": rng.choice([0.0, 0.01]), "trouble": trouble, "seed": number}
    action = rng.choice(["", "", "", "cancel", "bad request", "bad image", "kill"])
    if action == "bad request":
        request["steps"] = -1
    image = photo
    if action == "bad image":
        image = photo.with_name("bad.png")
        image.write_bytes(b"no picture")
    job_id = queue.submit("stub", request, image)
    ended, act_at, asked, killed = 0, time.monotonic() + rng.uniform(0, 0.6), 0.0, False
    end = time.monotonic() + PATIENCE_S
    while not ended and time.monotonic() < end:
        ended += len(queue.tick())
        pids.add(queue.process.pid)
        if action == "cancel" and time.monotonic() > act_at and not asked:
            queue.cancel(job_id)
            asked = time.monotonic()
        if action == "kill" and time.monotonic() > act_at and queue.process.pid and not killed:
            os.kill(queue.process.pid, 9)
            killed = True
        time.sleep(0.005)
    ended += len(queue.tick())
    pids.discard(0)
    job = queue.job(job_id)
    assert job is not None
    if asked:
        report.slowest_cancel_s = max(report.slowest_cancel_s, time.monotonic() - asked)
    report.ends[job.status] += 1
    if ended != 1 or job.status not in ENDED:
        report.wrong.append(f"job {number} ({trouble}, {action}) ended {ended} times, status {job.status}")
    state = json.loads((job.folder / "state.json").read_text())["state"]
    if state != job.status:
        report.wrong.append(f"job {number}: the folder says {state}, the queue {job.status}")
    whole = (job.folder / "result" / "result.json").exists()
    may_be = killed or job.status == "cancelled"  # between the result's place and the word of it
    if whole != (job.folder / "result").exists() or (whole != (job.status == "done") and not (whole and may_be)):
        report.wrong.append(f"job {number}: status {job.status} and the result does not fit")
    if (pid := queue.process.pid) and (job.status == "done" or pid in first):
        resident = _resident_bytes(pid)
        report.growth_bytes = max(report.growth_bytes, resident - first.setdefault(pid, resident))


def _resident_bytes(pid: int) -> int:
    path = Path(f"/proc/{pid}/statm")
    return int(path.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if path.exists() else 0


def _sleepers(root: Path) -> list[int]:
    """Processes that jobs started and nobody ended; they are recognised by their working directory (Linux)."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cwd"):
        try:
            if Path(os.readlink(path)) == root.parent and int(path.parent.name) != os.getpid():
                found.append(int(path.parent.name))
        except OSError:
            continue
    return [pid for pid in found if is_alive(pid)]


def main() -> int:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report = soak(Path(folder), options.jobs, options.seed)
    print(f"{options.jobs} jobs in {report.seconds:.0f} s, {report.processes} processes: {dict(report.ends)}")
    print(f"memory grew by {report.growth_bytes / 1e6:.1f} MB, slowest cancel {report.slowest_cancel_s:.2f} s")
    for line in report.wrong:
        print(f"wrong: {line}")
    return 1 if report.wrong or report.growth_bytes > GROWTH_LIMIT_BYTES else 0


if __name__ == "__main__":
    sys.exit(main())
