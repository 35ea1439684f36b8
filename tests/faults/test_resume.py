"""Rows 8, 12, 27, 28, 29 and 31 of the fault matrix: cancelled, killed, out of space, out of memory, and going on."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from backend import checkpoint, jobs
from backend.context import Context
from backend.errors import UserError
from backend.files import whole_file
from backend.housekeeping import PIN, Policy, prune
from backend.pipeline import Stage, run
from backend.step_checkpoints import StepCheckpoints
from tests.faults.client import ROOT, Client, half_files, make_job, serving, wait_until

LOOP = {"steps": 60, "step_s": 0.02, "seed": 4}


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Client]:
    with serving(tmp_path) as client:
        yield client


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Hash of what the loop makes when nothing happens to it."""
    with serving(tmp_path_factory.mktemp("whole")) as client:
        folder = client.run("one", **LOOP)
        client.wait("result", job_id="one")
        return jobs.sha256(folder / "result" / "values.npy")


def test_08_a_job_that_waits_is_cancelled_at_once(client: Client) -> None:
    client.run("one", **LOOP)
    client.run("two", **LOOP)
    client.wait("progress", job_id="one")
    client.send(type="cancel", job_id="two")
    client.wait("cancelled", job_id="two")
    assert client.terminals("one") == []
    assert client.wait_end("one")["type"] == "result"


@pytest.mark.parametrize("seed", range(4))
def test_08_a_job_is_cancelled_at_any_moment_and_the_next_one_succeeds(client: Client, seed: int) -> None:
    client.wait("capabilities")
    folder = client.run("one", **LOOP)
    client.wait("accepted", job_id="one")
    time.sleep(random.Random(seed).uniform(0.0, 1.8))
    client.send(type="cancel", job_id="one")
    end = client.wait_end("one")
    assert end["type"] in ("cancelled", "result")  # it may just have been done
    assert (folder / "result").exists() == (end["type"] == "result")
    assert half_files(folder) == []
    client.run("two", steps=3)
    assert client.wait_end("two")["type"] == "result"


def test_08_cancel_while_libraries_are_loaded(tmp_path: Path) -> None:
    with serving(tmp_path, "--import-s", "3") as client:
        client.wait("hello")
        client.run("one", steps=1)
        client.wait("accepted", job_id="one")
        client.send(type="cancel", job_id="one")
        client.wait("cancelled", job_id="one")
        assert client.of("capabilities") == []
        client.run("two", steps=1)
        assert client.wait_end("two")["type"] == "result"


def test_08_a_job_that_does_not_stop_is_ended_with_its_process(tmp_path: Path) -> None:
    with serving(tmp_path) as client:
        folder = client.run("one", trouble="stuck", **LOOP)
        client.run("two", steps=1)
        wait_until(lambda: list(folder.rglob("stuck")), "the stuck step")
        client.send(type="cancel", job_id="one")
        client.wait("cancelled", job_id="one")
        assert client.wait("failed", job_id="two")["retryable"]
        assert "did not stop" in client.wait("retiring")["reason"]
        assert client.wait_exit() == 0
        assert len(client.terminals("one")) == len(client.terminals("two")) == 1
        assert not (folder / "result").exists()
    with serving(tmp_path) as client:  # and the folder is free again
        client.run("one", new=False, resume=True, **LOOP)
        assert client.wait_end("one")["type"] == "result"


def test_31_killed_at_random_moments_and_resumed_it_makes_the_same(tmp_path: Path, uninterrupted: str) -> None:
    rng = random.Random(7)
    ends = 0
    folder = make_job(tmp_path / "jobs", "one")
    for _ in range(5):
        with serving(tmp_path) as client:
            client.run("one", new=False, resume=True, **LOOP)
            client.wait("accepted", job_id="one")
            time.sleep(rng.uniform(0.3, 0.9))
            ends += bool(client.terminals("one"))
            client.child.kill()
            client.child.wait()
        assert (folder / "result").exists() == bool(ends)
    with serving(tmp_path) as client:
        client.run("one", new=False, resume=True, **LOOP)
        client.wait("result", job_id="one")
    assert jobs.sha256(folder / "result" / "values.npy") == uninterrupted
    assert half_files(folder) == []


def test_31_a_damaged_checkpoint_is_passed_over_for_the_one_before(tmp_path: Path, uninterrupted: str) -> None:
    with serving(tmp_path) as client:
        folder = client.run("one", trouble="kill", **LOOP)
        client.wait_exit()
    newest = sorted(folder.rglob("loop.*.npz"))[-1]
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 0xFF
    newest.write_bytes(data)
    with serving(tmp_path) as client:
        client.send(
            type="run", job_id="one", method="stub", request=LOOP | {"trouble": "kill"}, image="input.png", resume=True
        )
        client.wait_exit()  # the same request, so that it is resumed, and killed again at the same step
    steps = sorted(path.name for path in folder.rglob("loop.*.npz"))
    assert steps == ["loop.000000029.npz", "loop.000000030.npz"]
    assert uninterrupted


def test_31_a_checkpoint_of_other_settings_is_not_taken(tmp_path: Path) -> None:
    steps = StepCheckpoints(tmp_path / "steps")
    steps.save("loop", 3, {"x": np.arange(4)}, "size 512")
    steps.save("loop", 4, {"x": np.arange(5)}, "size 256")
    assert steps.load("loop", "size 1024") is None and steps.load("other", "size 512") is None
    found = steps.load("loop", "size 512")
    assert found and found.step == 3 and np.array_equal(found.arrays["x"], np.arange(4))


def test_31_only_the_newest_states_are_kept_and_none_after_the_stage(tmp_path: Path) -> None:
    seen: list[list[str]] = []

    def loop(context: Context) -> int:
        for step in range(1, 6):
            context.checkpoint.save("loop", step, {"x": np.full(3, step)})
        seen.append(sorted(path.name for path in tmp_path.rglob("loop*")))
        return 5

    run([Stage("Loop", (), ("five",), loop)], {}, Context.quiet(), tmp_path)
    assert seen == [["loop.000000004.npz", "loop.000000005.npz"]]
    assert [path.name for path in tmp_path.rglob("*")] == ["01.npz"]


def test_31_saving_takes_a_small_share_of_the_time(tmp_path: Path) -> None:
    times = iter([0.0, 1.0, 10.0, 11.0, 15.0, 18.0, 30.9, 31.1])
    steps = StepCheckpoints(tmp_path, interval_s=10.0, clock=lambda: next(times))
    assert not steps.due() and steps.due()
    steps.save("loop", 1, {"x": np.zeros(1)})  # began at 11, took 4 s: due again after 80 s, not after 10
    assert not steps.due() and not steps.due()


@pytest.mark.parametrize("name", ["../x", "", "A", "x/y"])
def test_31_a_loops_name_stays_in_its_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="lower-case"):
        StepCheckpoints(tmp_path).save(name, 1, {})


KILLED_WRITER = """
import os, signal, sys, threading
from pathlib import Path
import numpy as np
from backend import checkpoint
path = Path(sys.argv[1])
checkpoint.save(path, {"version": 0, "array": np.full(200_000, 0)})
print("begun", flush=True)
version = 0
while True:
    version += 1
    checkpoint.save(path, {"version": version, "array": np.full(200_000, version)})
"""


@pytest.mark.parametrize("seed", range(3))
def test_28_a_killed_writer_leaves_a_whole_file(tmp_path: Path, seed: int) -> None:
    path = tmp_path / "x.npz"
    settings = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", KILLED_WRITER, str(path)]
    with subprocess.Popen(command, env=settings, stdout=subprocess.PIPE) as child:
        assert child.stdout and child.stdout.readline() == b"begun\n"
        time.sleep(random.Random(seed).uniform(0.0, 0.1))
        child.kill()
    content = checkpoint.load(path)
    assert set(content["array"].tolist()) == {content["version"]}


def test_28_a_writer_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_text("old")
    with pytest.raises(KeyError), whole_file(path) as file:
        file.write(b"half of the new one")
        raise KeyError
    assert path.read_text() == "old" and [item.name for item in tmp_path.iterdir()] == ["x.txt"]


@contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[Path]:
    """A disk of its own, where the system lets us."""
    folder.mkdir()
    options = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)]
    if subprocess.run(options, capture_output=True, check=False).returncode:
        pytest.skip("no right to mount a small disk")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mounts a tmpfs")
def test_27_a_disk_that_fills_up_is_said_and_cleaned(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 400) as disk, serving(disk) as client:
        ballast = disk / "ballast"
        folder = client.run("one", steps=120, step_s=0.02, trouble="fill")
        client.wait("progress", job_id="one", stage="Loop")
        with ballast.open("wb") as file:
            file.write(bytes(300_000_000))
        failed = client.wait("failed", job_id="one")
        assert failed["code"] == "DISK_FULL" and "free some space" in failed["text"], failed
        assert not (folder / "result").exists() and not (folder / ".result.partial").exists()
        assert half_files(disk) == []
        ballast.unlink()
        client.run("two", steps=1)
        assert client.wait_end("two")["type"] == "result"
        earlier = jobs.sha256(disk / "jobs" / "two" / "result" / "result.json")
        ballast.write_bytes(bytes(200_000_000))
        client.run("three", steps=1)
        failed = client.wait("failed", job_id="three")
        assert failed["code"] == "DISK_FULL" and "needs up to 300 MB" in failed["text"]  # said before anything is done
        assert client.of("progress", job_id="three") == []
        assert jobs.sha256(disk / "jobs" / "two" / "result" / "result.json") == earlier


def test_27_a_file_that_may_not_grow_counts_as_a_full_disk(tmp_path: Path) -> None:
    """RLIMIT_FSIZE: every write beyond it fails, at whichever file that happens first."""
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)); import runpy\n"
        "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    )

    def limited(folder: Path, *more: str) -> list[str]:
        stub = str(Path(__file__).parent / "stub_backend.py")
        return [sys.executable, "-u", "-c", code, stub, "--jobs", str(folder), *more]

    with serving(tmp_path, command=limited) as client:
        folder = client.run("one", **LOOP)
        assert client.wait("failed", job_id="one")["code"] == "DISK_FULL"
        assert half_files(folder) == [] and not (folder / ".result.partial").exists()


def test_29_memory_that_runs_out_once_is_a_warning(client: Client) -> None:
    folder = client.run("one", trouble="exhaust once", steps=4)
    assert client.wait_end("one")["type"] == "result"
    warnings = client.of("warning", job_id="one", code="MEMORY")
    assert len(warnings) == 1 and "half the size" in warnings[0]["text"] and "were needed" in warnings[0]["text"]
    assert json.loads((folder / "result" / "result.json").read_text())["warnings"] == [warnings[0]["text"]]


def test_29_memory_that_runs_out_for_good_names_needed_and_free_and_asks_for_a_fresh_process(client: Client) -> None:
    client.run("one", steps=1)
    client.wait("result", job_id="one")
    client.run("two", trouble="exhaust", steps=4)
    failed = client.wait("failed", job_id="two")
    assert failed["code"] == "OUT_OF_MEMORY" and failed["retryable"]
    assert "more were needed" in failed["text"] and "were free" in failed["text"]
    client.wait("retiring")
    assert client.wait_exit() == 0


def test_29_in_a_fresh_process_it_is_not_tried_again(client: Client) -> None:
    client.run("one", trouble="exhaust", steps=4)
    assert not client.wait("failed", job_id="one")["retryable"]


def test_12_two_processes_and_one_folder(tmp_path: Path) -> None:
    with serving(tmp_path) as first, serving(tmp_path) as second:
        folder = first.run("one", **LOOP | {"steps": 1000})
        first.wait("progress", job_id="one", stage="Loop")
        second.run("one", new=False, resume=True, **LOOP | {"steps": 1000})
        failed = second.wait("failed", job_id="one")
        assert f"process {first.child.pid}" in failed["text"] and failed["code"] == "BAD_REQUEST"
        assert prune(tmp_path / "jobs", Policy(0, 0, 0), now=time.time() + 1e9) == []
        first.kill()
        assert folder.exists()
        second.run("two", **LOOP)
        assert second.wait_end("two")["type"] == "result"
        make_job(tmp_path / "other", "one")
    with serving(tmp_path) as third:  # the lock went with its owner
        third.run("one", new=False, resume=True, **LOOP)
        assert third.wait_end("one")["type"] == "result"


def finished(root: Path, name: str, age_days: float, size: int, now: float) -> Path:
    folder = make_job(root, name)
    (folder / "result").mkdir()
    (folder / "result" / "result.json").write_text("{}")
    (folder / "result" / "data").write_bytes(bytes(size))
    (folder / jobs.STATE).write_text(json.dumps({"state": "done", "updated": now - age_days * 86400}))
    return folder


def test_old_jobs_make_room_by_age_and_size_and_what_is_used_stays(tmp_path: Path) -> None:
    now = time.time()
    root = tmp_path / "jobs"
    for name, age, size in (("new", 0, 5000), ("middle", 1, 5000), ("large", 2, 5000), ("old", 50, 10)):
        finished(root, name, age, size, now)
    (finished(root, "pinned", 99, 10, now) / PIN).touch()
    broken = make_job(root, "broken")
    (broken / jobs.STATE).write_text(json.dumps({"state": "running", "updated": now - 5 * 86400}))
    fresh = make_job(root, "fresh")
    (fresh / "x.part").touch()
    (root / "Mine").mkdir()
    (root / "notes.txt").write_text("mine")
    (root / "plain").mkdir()
    assert sorted(prune(root, Policy(30, 12_000, 3), now)) == ["broken", "large", "old"]
    kept = ["Mine", "fresh", "middle", "new", "notes.txt", "pinned", "plain"]
    assert sorted(path.name for path in root.iterdir()) == kept
    assert half_files(root) == []
    assert prune(tmp_path / "missing", Policy()) == []


def test_a_full_disk_is_said_before_the_start(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="needs up to") as caught:
        jobs.begin(tmp_path / "new" / "out", {}, False, needed_bytes=2**62)
    assert caught.value.kind == "DISK_FULL" and list(tmp_path.iterdir()) == []


def test_a_context_without_a_job_keeps_nothing(tmp_path: Path) -> None:
    context = replace(Context.quiet(), scratch=tmp_path)
    context.checkpoint.save("loop", 1, {"x": np.zeros(1)})
    assert context.checkpoint.load("loop") is None and not context.checkpoint.due() and list(tmp_path.iterdir()) == []
