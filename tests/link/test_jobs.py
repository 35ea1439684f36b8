"""Rows 2, 8, 9 and 19 of the fault matrix as the panel sees them: the queue of jobs with the real serving process."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from blender_addon.link.jobs import ENDED, Job, JobError, JobQueue, check_files
from blender_addon.link.process import BackendProcess, Limits, State
from blender_addon.link.timings import Timings
from blender_addon.shared.protocol import File
from tests.faults.client import environment, half_files, is_alive, stub_command, wait_until
from tests.link.test_process import FAKE, QUICK

LIMITS = Limits(cancel_s=4.0)


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "a photo.PNG"
    Image.new("RGB", (80, 80), (90, 120, 150)).save(path)
    return path


@pytest.fixture
def make_queue(tmp_path: Path) -> Iterator[Callable[..., JobQueue]]:
    made: list[JobQueue] = []

    def make(command: list[str] | None = None, limits: Limits = LIMITS, **more: float) -> JobQueue:
        root = tmp_path / "jobs"
        root.mkdir(exist_ok=True)
        log = tmp_path / "backend.log"
        process = BackendProcess(command or stub_command(root), environment(), log, limits)
        made.append(JobQueue(process, root, **more))
        return made[-1]

    yield make
    for queue in made:
        queue.close()


@pytest.fixture
def queue(make_queue: Callable[..., JobQueue]) -> JobQueue:
    return make_queue()


def state(queue: JobQueue, job_id: str) -> Job:
    job = queue.job(job_id)
    assert job is not None
    return job


def tick_until(queue: JobQueue, condition: Callable[[], object], what: str) -> list[Job]:
    ended: list[Job] = []

    def met() -> bool:
        ended.extend(queue.tick())
        return bool(condition())

    wait_until(met, what)
    return ended


def run_to_end(queue: JobQueue, *job_ids: str) -> list[Job]:
    ended = tick_until(queue, lambda: all(state(queue, i).status in ENDED for i in job_ids), "the end of the jobs")
    assert sorted(job.job_id for job in ended) == sorted(job_ids)  # each is reported once
    return [state(queue, job_id) for job_id in job_ids]


def on_disk(job: Job) -> str:
    return json.loads((job.folder / "state.json").read_text())["state"]


def test_jobs_run_one_after_the_other_and_their_photo_may_vanish(queue: JobQueue, photo: Path) -> None:
    first = queue.submit("stub", {"steps": 8, "step_s": 0.02, "trouble": "warn"}, photo)
    second = queue.submit("stub", {"steps": 2, "seed": 5}, photo)
    tick_until(queue, lambda: state(queue, second).status == "waiting", "the copies")
    photo.unlink()
    assert queue.is_busy() and state(queue, first).elapsed_s(time.monotonic()) >= 0
    one, two = run_to_end(queue, first, second)
    assert one.status == two.status == "done" and one.warnings == ("mind the gap",) and one.fraction == 1.0
    assert one.began is not None and two.began is not None and one.ended is not None and one.began < two.began
    assert one.preview is not None and one.preview.is_file() and one.image == "input.png"
    assert json.loads((one.file("result") or Path()).read_text())["request"]["steps"] == 8
    assert on_disk(one) == "done" and not queue.is_busy()
    assert json.loads((one.folder / "request.json").read_text())["name"] == photo.name


def test_further_files_are_copied_found_by_the_stages_and_part_of_the_result(queue: JobQueue, photo: Path) -> None:
    sources = {}
    for number, text in enumerate(("HIERARCHY one", "HIERARCHY two")):
        source = photo.with_name(f"walk {number}.bvh")
        source.write_text(text)
        sources[f"walks-{number}.bvh"] = source
    job_id = queue.submit("stub", {"steps": 2, "walks": list(sources)}, photo, files=sources)
    tick_until(queue, lambda: state(queue, job_id).status == "waiting", "the copies")
    for source in sources.values():
        source.unlink()
    (job,) = run_to_end(queue, job_id)
    assert job.status == "done", job.text
    result = json.loads((job.file("result") or Path()).read_text())
    assert result["request"]["walks"] == list(sources) == sorted(result["files_sha256"])
    assert (job.folder / "result" / "read.txt").read_text() == "HIERARCHY oneHIERARCHY two"
    assert (job.folder / "result" / "walks-1.bvh").read_text() == "HIERARCHY two"


@pytest.mark.parametrize("name", ["../walk.bvh", "/etc/passwd", "sub/../../walk.bvh", "gone.bvh", "walk\\0.bvh"])
def test_18_a_request_cannot_name_a_file_outside_its_folder(queue: JobQueue, photo: Path, name: str) -> None:
    """Row 18 for the files of a request; one that is not there is a line too."""
    (job,) = run_to_end(queue, queue.submit("stub", {"steps": 1, "walks": [name]}, photo))
    assert job.status == "failed" and job.code == "BAD_REQUEST" and "\n" not in job.text, job.text
    assert "alks: " in job.text


def test_a_file_that_vanishes_before_its_copy_ends_the_job_with_a_line(queue: JobQueue, photo: Path) -> None:
    gone = photo.with_name("gone.bvh")
    (job,) = run_to_end(queue, queue.submit("stub", {"walks": ["w.bvh"]}, photo, files={"w.bvh": gone}))
    assert job.status == "failed" and "gone.bvh cannot be used" in job.text and "\n" not in job.text


def test_an_interrupted_job_is_found_again_with_all_its_files(make_queue: Callable[..., JobQueue], photo: Path) -> None:
    source = photo.with_name("walk.bvh")
    source.write_text("HIERARCHY")
    first = make_queue()
    ids = [first.submit("stub", {"walks": ["w.bvh"], "steps": 1}, photo, files={"w.bvh": source}) for _ in range(2)]
    wait_until(lambda: all((state(first, i).folder / "w.bvh").is_file() for i in ids), "the copies")
    (state(first, ids[0]).folder / "w.bvh").unlink()
    first.close()
    source.unlink()
    later = make_queue()
    assert [job.job_id for job in later.recover()] == [ids[1]], "a job without its files cannot be started again"
    later.again(ids[1])
    (job,) = run_to_end(later, ids[1])
    assert job.status == "done", job.text


def test_progress_never_falls_and_the_second_job_has_an_estimate(queue: JobQueue, photo: Path) -> None:
    seen: dict[str, list[tuple[float, float | None]]] = {}
    for _ in range(2):
        job_id = queue.submit("stub", {"steps": 30, "step_s": 0.02}, photo)
        rows = seen.setdefault(job_id, [])

        def note(job_id: str = job_id, rows: list[tuple[float, float | None]] = rows) -> bool:
            job = state(queue, job_id)
            if job.status == "running":
                rows.append((job.fraction, job.remaining_s))
            return job.status in ENDED

        tick_until(queue, note, "the end")
    for rows in seen.values():
        fractions = [fraction for fraction, _ in rows]
        assert fractions == sorted(fractions) and 0 < max(fractions) <= 1
    first, second = seen.values()
    assert all(rest is None for _, rest in first)
    estimates = [rest for fraction, rest in second if 0.1 < fraction < 0.9]
    assert estimates and all(rest is not None and rest > 0 for rest in estimates)


def test_timings_weigh_stages_by_their_seconds(tmp_path: Path) -> None:
    timings = Timings(tmp_path / "timings.json")
    assert timings.estimate(("body", "fast"), 2, 4, 0.5) == (0.375, None)
    assert timings.estimate(("body", "fast"), 0, 0, 0.5) == (0.0, None)
    stages = [{"seconds": 1.0}, {"seconds": 9.0}]
    (tmp_path / "result.json").write_text(json.dumps({"stages": stages}))
    timings.learn(("body", "fast"), tmp_path)
    assert Timings(tmp_path / "timings.json").estimate(("body", "fast"), 2, 2, 1 / 3) == (0.4, pytest.approx(6.0))
    (tmp_path / "timings.json").write_text("[1, 2")
    assert Timings(tmp_path / "timings.json").estimate(("body", "fast"), 1, 2, 0.5) == (0.25, None)


@pytest.mark.parametrize(
    ("trouble", "code", "words"),
    [("fail", "INTERNAL", "a defect"), ("package", "NO_MODEL", "not installed"), ("kill", "INTERNAL", "SIGKILL")],
)
def test_02_a_failure_is_one_line_with_a_log_and_the_next_job_works(
    queue: JobQueue, photo: Path, trouble: str, code: str, words: str
) -> None:
    bad = queue.submit("stub", {"steps": 4, "trouble": trouble}, photo)
    good = queue.submit("stub", {"steps": 1}, photo)
    failed, done = run_to_end(queue, bad, good)
    assert failed.status == "failed" and failed.code == code and words in failed.text and done.status == "done"
    assert "\n" not in failed.text + failed.hint and "Traceback" not in failed.text
    assert failed.log is not None and failed.log.is_file() and on_disk(failed) == "failed"
    assert queue.problem == ""


def test_02_a_killed_job_goes_on_where_it_stopped(queue: JobQueue, photo: Path) -> None:
    job_id = queue.submit("stub", {"steps": 60, "step_s": 0.02}, photo)
    tick_until(queue, lambda: list((queue.root / job_id).rglob("loop.*.npz")), "the loop")
    os.kill(queue.process.pid, 9)
    (failed,) = run_to_end(queue, job_id)
    assert failed.status == "failed" and failed.retryable
    queue.again(job_id)
    (done,) = run_to_end(queue, job_id)
    assert done.status == "done"
    stages = json.loads((done.folder / "result" / "result.json").read_text())["stages"]
    assert stages[0]["resumed"]


def test_08_cancel_before_during_and_after(queue: JobQueue, photo: Path) -> None:
    running = queue.submit("stub", {"steps": 500, "step_s": 0.02}, photo)
    waiting = queue.submit("stub", {"steps": 1}, photo)
    fresh = queue.submit("stub", {"steps": 1}, photo)
    queue.cancel(fresh)
    assert fresh in [job.job_id for job in tick_until(queue, lambda: state(queue, running).stage == "Loop", "the loop")]
    queue.cancel(waiting)
    queue.cancel(running)
    assert state(queue, running).status == "cancelling" and state(queue, waiting).status == "cancelled"
    pid = queue.process.pid
    run_to_end(queue, running, waiting)
    assert state(queue, running).status == on_disk(state(queue, running)) == "cancelled"
    assert not (queue.root / running / "result").exists() and half_files(queue.root) == []
    after = queue.submit("stub", {"steps": 1}, photo)
    assert run_to_end(queue, after)[0].status == "done"
    assert queue.process.pid == pid  # it stopped by itself: the process stays warm
    queue.cancel(after)
    assert state(queue, after).status == "done"


def test_08_finish_keeps_what_there_is(queue: JobQueue, photo: Path) -> None:
    job_id = queue.submit("stub", {"steps": 1, "trouble": "finishable"}, photo)
    waiting = queue.submit("stub", {"steps": 1}, photo)
    queue.finish(waiting)
    tick_until(queue, lambda: state(queue, job_id).finishable, "the loop")
    assert not state(queue, job_id).finishing and not state(queue, waiting).finishing
    queue.finish(job_id)
    assert state(queue, job_id).finishing and state(queue, job_id).status == "running"
    done = run_to_end(queue, job_id, waiting)
    assert [job.status for job in done] == ["done", "done"] and not state(queue, job_id).finishable
    queue.finish(job_id)
    queue.finish("nobody")


@pytest.mark.parametrize("trouble", ["stuck", "stop"])
def test_08_09_cancel_of_what_does_not_listen(queue: JobQueue, photo: Path, trouble: str) -> None:
    job_id = queue.submit("stub", {"steps": 4, "trouble": trouble}, photo)
    tick_until(queue, lambda: list((queue.root / job_id).rglob("loop.000000002.npz")), "the middle")
    time.sleep(0.1)
    pid = queue.process.pid
    queue.cancel(job_id)
    (job,) = run_to_end(queue, job_id)
    assert job.status == "cancelled" and queue.problem == ""
    tick_until(queue, lambda: not is_alive(pid), "the end of the process")
    again = queue.submit("stub", {"steps": 1}, photo)
    assert run_to_end(queue, again)[0].status == "done"


def test_29_memory_that_runs_out_is_tried_again_in_a_fresh_process(queue: JobQueue, photo: Path) -> None:
    warm = queue.submit("stub", {"steps": 1}, photo)
    run_to_end(queue, warm)
    pid = queue.process.pid
    job_id = queue.submit("stub", {"steps": 4, "trouble": "exhaust"}, photo)
    (job,) = run_to_end(queue, job_id)
    assert job.status == "failed" and job.code == "OUT_OF_MEMORY" and "were needed" in job.text
    assert job.attempts == 2 and not is_alive(pid)


@pytest.mark.parametrize("crash", [True, False])
def test_11_a_session_that_ends_leaves_its_jobs_for_the_next_one(
    make_queue: Callable[..., JobQueue], photo: Path, crash: bool
) -> None:
    queue = make_queue()
    job_id = queue.submit("stub", {"steps": 60, "step_s": 0.02}, photo)
    never = queue.submit("stub", {"steps": 1}, photo)
    tick_until(queue, lambda: list((queue.root / job_id).rglob("loop.*.npz")), "the loop")
    if crash:  # as if the machine had lost its power: the queue does not hear of it
        os.kill(queue.process.pid, 9)
        wait_until(lambda: (queue.process.poll(), queue.process.pid == 0)[1], "the end")
    else:
        queue.close()
    for name in (job_id, never):  # written by the dead session
        path = queue.root / name / "state.json"
        path.write_text(path.read_text().replace(str(os.getpid()), "999999999"))
    (queue.root / "Foreign").mkdir()
    second = make_queue()
    assert sorted(job.job_id for job in second.recover()) == sorted([job_id, never])
    assert state(second, job_id).status == "interrupted" and not second.is_busy()
    second.again(job_id)
    assert run_to_end(second, job_id)[0].status == "done"
    second.remove(never)
    assert not (second.root / never).exists() and second.job(never) is None
    assert second.recover() == ()


@pytest.mark.parametrize("mode", ["lies", "absolute", "missing"])
def test_19_a_result_that_lies_is_not_used(make_queue: Callable[..., JobQueue], photo: Path, mode: str) -> None:
    import sys

    queue = make_queue([sys.executable, "-S", "-E", "-u", str(FAKE), mode], QUICK)
    (queue.root / "elsewhere.txt").write_text("12345")
    (job,) = run_to_end(queue, queue.submit("body", {}, photo))
    assert job.status == "failed" and job.files == () and "result" in job.text


def test_19_every_file_is_checked(tmp_path: Path) -> None:
    folder = tmp_path / "job"
    folder.mkdir()
    (folder / "a").write_bytes(b"hello")
    (tmp_path / "b").write_bytes(b"hello")
    (folder / "link").symlink_to(tmp_path / "b")
    good = File("x", "a", 5, "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824")
    assert check_files(folder, (good,)) == ""
    assert "damaged" in check_files(folder, (good, replace(good, sha256="0" * 64)))
    assert "cut off" in check_files(folder, (replace(good, bytes=6),))
    assert "outside" in check_files(folder, (replace(good, path="../b"),))
    assert "outside" in check_files(folder, (replace(good, path="link"),))


def test_a_backend_that_keeps_crashing_leaves_jobs_waiting_and_says_so_once(
    make_queue: Callable[..., JobQueue], photo: Path
) -> None:
    import sys

    queue = make_queue([sys.executable, "-S", "-E", "-u", str(FAKE), "crash"], QUICK)
    job_id = queue.submit("body", {}, photo)
    ended = tick_until(queue, lambda: queue.process.state is State.BROKEN, "the last crash")
    assert ended == [] and state(queue, job_id).status == "waiting"
    assert "3 times" in queue.problem and "doctor" in queue.problem
    assert queue.tick() == () and queue.process.pid == 0
    queue.cancel(job_id)
    assert not queue.is_busy()


def test_an_idle_backend_gives_its_memory_back(make_queue: Callable[..., JobQueue], photo: Path) -> None:
    queue = make_queue(idle_stop_s=0.2)
    run_to_end(queue, queue.submit("stub", {"steps": 1}, photo))
    tick_until(queue, lambda: queue.process.state is State.STOPPED, "the end of the idle process")
    assert run_to_end(queue, queue.submit("stub", {"steps": 1}, photo))[0].status == "done"


def test_what_cannot_be_submitted(queue: JobQueue, tmp_path: Path) -> None:
    with pytest.raises(JobError, match="cannot be read"):
        queue.submit("stub", {}, tmp_path / "nothing.png")
    with pytest.raises(JobError, match="no picture"):
        queue.submit("stub", {}, tmp_path)
    assert queue.jobs == () and list(queue.root.iterdir()) == []


def test_a_request_that_fits_into_no_message(queue: JobQueue, photo: Path) -> None:
    job_id = queue.submit("stub", {"trouble": "x" * 2_000_000}, photo)
    (job,) = run_to_end(queue, job_id)
    assert job.status == "failed" and job.code == "BAD_REQUEST"
