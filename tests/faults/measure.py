"""The figures of issue "a process that can be trusted", measured with the real `body` job. Prints one line each.

python -m tests.faults.measure hello                     start to hello, ping to pong, cost of a progress message
python -m tests.faults.measure parent [--times 10]       death of the parent to death of the backend, while it works
python -m tests.faults.measure cancel [--times 10]       acknowledged and done, at random moments of the job
python -m tests.faults.measure resume [--times 20]       killed at random moments: are the results equal bit for bit
python -m tests.faults.measure memory [--times 3]        growth from the first job to the last
python -m tests.faults.measure overhead                  seconds through the protocol against the command line
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from backend.parent import MAIN_THREAD
from tests.faults.client import ROOT, Client, environment, half_files, is_alive, make_job, real_command, serving
from tests.faults.soak import _resident_bytes
from tests.faults.test_protocol import PARENT

PORTRAIT = ROOT / "scripts" / "data" / "collins.png"
REQUEST = {"preset": "fast"}


def run_body(client: Client, job_id: str, resume: bool = False) -> Path:
    """Ask for the job; its folder is made the first time."""
    folder = client.jobs / job_id
    if not folder.exists():
        make_job(client.jobs, job_id, PORTRAIT)
    client.send(type="run", job_id=job_id, method="body", request=REQUEST, image="input.png", resume=resume)
    return folder


def digest(folder: Path) -> str:
    """Hash of gaussians.ply and of every array of avatar.npz."""
    total = hashlib.sha256((folder / "result" / "gaussians.ply").read_bytes())
    with np.load(folder / "result" / "avatar.npz", allow_pickle=False) as arrays:
        for name in sorted(arrays.files):
            total.update(name.encode() + arrays[name].tobytes())
    return total.hexdigest()[:16]


def measure_hello(folder: Path, times: int) -> None:
    """Start to hello, and ping to pong while libraries are loaded and afterwards."""
    began = time.monotonic()
    with serving(folder, command=real_command) as client:
        client.wait("hello")
        hello = client.times[0] - began
        pings = [_round_trip(client, number) for number in range(1, 41)]
        client.wait("capabilities")
        ready = client.times[len(client.messages) - 1] - began
        idle = [_round_trip(client, number) for number in range(41, 61)]
    print(f"hello {hello:.2f} s, capabilities {ready:.1f} s after the start")
    print(f"ping to pong: while libraries are loaded at most {max(pings):.3f} s, idle {max(idle) * 1e3:.1f} ms")
    print(f"a progress message costs the job {_progress_cost() * 1e6:.0f} us")


def _round_trip(client: Client, number: int) -> float:
    began = time.monotonic()
    client.send(type="ping")
    client.wait("pong", count=number)
    time.sleep(0.05)
    pongs = [at for at, m in zip(client.times, client.messages, strict=False) if m["type"] == "pong"]
    return pongs[number - 1] - began


def _progress_cost() -> float:
    from backend.context import Context
    from backend.serve import Outbox
    from backend.serve_job import JobSink

    outbox = Outbox(os.open(os.devnull, os.O_WRONLY), lambda: None)
    context = Context(Path("."), sink=JobSink("one", Path("."), outbox.send))
    began = time.perf_counter()
    for step in range(10_000):
        context.progress(f"[1/2] stage {step}", step, 10_000, "loss 0.1234")  # a new name every time: none is dropped
    return (time.perf_counter() - began) / 10_000


def measure_parent(folder: Path, times: int) -> None:
    """Kill the parent while the backend works, at random moments."""
    rng, seen = random.Random(1), []
    for number in range(times):
        jobs = folder / f"jobs-{number}"
        make_job(jobs, "one", PORTRAIT)
        line = json.dumps({"type": "run", "job_id": "one", "method": "body", "request": REQUEST, "image": "input.png"})
        command = [sys.executable, "-c", PARENT, line, *real_command(jobs)]
        settings = environment() | {MAIN_THREAD: "1"}  # as Blender starts it
        parent = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=settings)
        assert parent.stdout
        pid = int(parent.stdout.readline())
        time.sleep(rng.uniform(0, 25))
        began = time.monotonic()
        parent.kill()
        while is_alive(pid):
            time.sleep(0.002)
        seen.append(time.monotonic() - began)
        parent.wait()
    print(f"parent's death to the backend's: at most {max(seen):.3f} s, median {np.median(seen):.3f} s, n {times}")


def measure_cancel(folder: Path, times: int) -> None:
    """Cancel at random moments of the whole job."""
    rng = random.Random(2)
    rows: list[tuple[float, float, str, str]] = []
    number = 0
    while len(rows) < times:
        with serving(folder, command=real_command) as client:
            client.wait("capabilities")
            while len(rows) < times and client.child.poll() is None and not client.of("retiring"):
                number += 1
                rows += _cancel_once(client, f"job-{number}", rng.uniform(0.0, 40.0))
    for acknowledged, done, stage, how in sorted(rows, key=lambda row: -row[1]):
        print(f"  acknowledged {acknowledged:.3f} s, done {done:.2f} s, in '{stage}'{how}")
    worst = [max(column) for column in list(zip(*rows, strict=True))[:2]]
    print(f"cancel: acknowledged at most {worst[0]:.3f} s, done at most {worst[1]:.2f} s, n {len(rows)}")


def _cancel_once(client: Client, job_id: str, after_s: float) -> list[tuple[float, float, str, str]]:
    folder = run_body(client, job_id)
    client.wait("accepted", job_id=job_id)
    end = time.monotonic() + after_s
    while time.monotonic() < end and not client.terminals(job_id):
        time.sleep(0.01)
    progress = client.of("progress", job_id=job_id)
    began = time.monotonic()
    client.send(type="cancel", job_id=job_id)
    terminal = client.wait_end(job_id)
    if terminal["type"] != "cancelled":
        return []
    assert half_files(folder) == [] and not (folder / "result").exists()
    time.sleep(0.2)
    at = dict(zip([(m["type"], m.get("job_id")) for m in client.messages], client.times, strict=False))
    how = " (with its process)" if client.of("retiring") else ""
    stage = progress[-1]["stage"] if progress else "queue"
    return [(at["cancelling", job_id] - began, at["cancelled", job_id] - began, stage, how)]


def measure_resume(folder: Path, times: int) -> None:
    """Kill a job again and again, let it go on each time, and compare with one that nobody touched."""
    os.environ |= {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
    rng = random.Random(3)
    with serving(folder, command=real_command) as client:
        whole = run_body(client, "whole")
        client.wait("capabilities")
        began = time.monotonic()
        while not client.terminals("whole"):
            time.sleep(0.05)
        assert client.of("result", job_id="whole"), client.terminals("whole")
        expected, seconds = digest(whole), time.monotonic() - began
    print(f"uninterrupted: {expected} in {seconds:.0f} s", flush=True)
    kills, rounds, results = 0, 0, []
    while kills < times:
        rounds += 1
        job_id, ended = f"job-{rounds}", False
        while not ended:
            ended, kill = _go_on(folder, job_id, rng.uniform(0.02, 0.4) * seconds if kills < times else 1e9)
            kills += kill
        results.append(digest(folder / "jobs" / job_id))
        print(f"job {rounds}: {results[-1]} after {kills} kills in all", flush=True)
    equal = all(result == expected for result in results)
    print(f"resume: {kills} kills, {rounds} jobs, results {'equal bit for bit' if equal else 'DIFFER'}")


def _go_on(folder: Path, job_id: str, after_s: float) -> tuple[bool, int]:
    """One life of the backend: (the job is done, it was killed)."""
    with serving(folder, command=real_command) as client:
        client.wait("capabilities")
        run_body(client, job_id, resume=True)
        client.wait("accepted", job_id=job_id)
        end = time.monotonic() + after_s
        while time.monotonic() < end and not client.terminals(job_id):
            time.sleep(0.01)
        if ends := client.terminals(job_id):
            assert ends[0]["type"] == "result", ends
            return True, 0
        last = client.of("progress", job_id=job_id)
        print(f"  killed in '{last[-1]['stage'] if last else ''}' {last[-1]['done'] if last else 0:.0f} %", flush=True)
        client.child.kill()
        return False, 1


def measure_memory(folder: Path, times: int) -> None:
    """Resident memory after every job."""
    with serving(folder, command=real_command) as client:
        seen = []
        for number in range(times):
            run_body(client, f"job-{number}")
            while not client.terminals(f"job-{number}"):
                time.sleep(0.05)
            client.send(type="ping")
            time.sleep(2)
            seen.append(_resident_bytes(client.child.pid) / 1e6)
    print(f"resident after each job: {', '.join(f'{value:.0f}' for value in seen)} MB")


def measure_overhead(folder: Path, times: int) -> None:
    """The same job both ways, in turns, from the start of the process to its end.

    Processor seconds say more than the clock where others work on the machine too.
    """
    rows: dict[str, list[float]] = {"command line": [], "protocol": []}
    processor: dict[str, list[float]] = {"command line": [], "protocol": []}
    for number in range(max(times, 1)):
        began, used = time.monotonic(), _children_s()
        command = [sys.executable, "-m", "backend", "generate", "body", "--image", str(PORTRAIT), "--preset", "fast"]
        out = ["--out", str(folder / f"out-{number}")]
        subprocess.run([*command, *out], env=environment(), check=True, capture_output=True)
        rows["command line"].append(time.monotonic() - began)
        processor["command line"].append(_children_s() - used)
        began, used = time.monotonic(), _children_s()
        with serving(folder, command=real_command) as client:
            run_body(client, f"job-{number}")
            while not client.terminals(f"job-{number}"):
                time.sleep(0.01)
            rows["protocol"].append(client.times[len(client.messages) - 1] - began)
            client.send(type="shutdown")
            client.wait_exit()
        processor["protocol"].append(_children_s() - used)
    for name, seconds in rows.items():
        print(f"{name}: {', '.join(f'{value:.1f}' for value in seconds)} s by the clock", end="; ")
        print(f"{', '.join(f'{value:.1f}' for value in processor[name])} s of processors")
    for what, table in (("clock", rows), ("processors", processor)):
        print(f"{what}: ratio of the smallest {min(table['protocol']) / min(table['command line']):.3f}")


def _children_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


MEASURES: dict[str, tuple[Callable[[Path, int], None], int]] = {
    "hello": (measure_hello, 1),
    "parent": (measure_parent, 10),
    "cancel": (measure_cancel, 10),
    "resume": (measure_resume, 20),
    "memory": (measure_memory, 3),
    "overhead": (measure_overhead, 1),
}


def main() -> None:
    """Run one measurement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=MEASURES)
    parser.add_argument("--times", type=int)
    options = parser.parse_args()
    work, times = MEASURES[options.what]
    with tempfile.TemporaryDirectory() as folder:
        work(Path(folder), options.times or times)


if __name__ == "__main__":
    main()
