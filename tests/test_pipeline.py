"""The runner: chain checks, order, progress, resume, cancel, and the job folder around it."""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest

from backend import jobs
from backend.context import Context, TerminalSink
from backend.errors import Cancelled, UserError
from backend.perception.photo import Photo
from backend.pipeline import Outcome, Run, Stage, check_chain, run


@dataclass
class Recorder:
    """A sink that remembers."""

    lines: list[tuple[str, float, float, str]] = field(default_factory=list)

    def progress(self, stage: str, done: float, total: float, note: str) -> None:
        self.lines.append((stage, done, total, note))

    def preview(self, image: np.ndarray) -> None:
        self.lines.append(("preview", *image.shape[:2], ""))

    def warning(self, code: str, text: str) -> None:
        self.lines.append(("warning", 0, 0, text))


class Counter:
    """Stages that count how often they run."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def double(self, x: int, context: Context) -> int:
        self.calls.append("double")
        context.progress("doubling", 1, 4, "a note")
        return 2 * x

    def split(self, y: int, context: Context) -> tuple[np.ndarray, Outcome]:
        self.calls.append("split")
        return np.full(3, y), Outcome(("photo only",), ("mind the gap",))

    def write(self, parts: np.ndarray, folder: Path, context: Context) -> None:
        self.calls.append("write")
        (folder / "sum.txt").write_text(str(parts.sum()))

    def stages(self) -> list[Stage]:
        return [
            Stage("double", ("x",), ("y",), self.double),
            Stage("split", ("y",), ("parts", "outcome"), self.split),
            Stage("write", ("parts", "folder"), (), self.write, keep=False),
        ]


def test_stages_run_in_order_and_give_their_values(tmp_path: Path) -> None:
    counter, recorder = Counter(), Recorder()
    context = replace(Context.quiet(), sink=recorder)
    done = run(counter.stages(), {"x": 21, "folder": tmp_path}, context)
    assert counter.calls == ["double", "split", "write"]
    assert done.values["y"] == 42 and (tmp_path / "sum.txt").read_text() == "126"
    assert done.warnings == ("mind the gap",)
    assert [record.name for record in done.records] == ["double", "split", "write"]
    assert all(record.seconds >= 0 and record.peak_memory_bytes > 1e6 for record in done.records)
    # Every stage shows its begin and its end, and inner progress as a share of it.
    assert [line[:3] for line in recorder.lines if line[0].startswith("[1/3]")] == [
        ("[1/3] double", 0, 100), ("[1/3] double", 25, 100), ("[1/3] double", 100, 100),
    ]  # fmt: skip
    assert recorder.lines[1][3] == "doubling: a note"


@pytest.mark.parametrize(
    ("stages", "reason"),
    [
        ([Stage("a", ("missing",), ("b",), min)], "needs missing"),
        ([Stage("a", ("x",), ("b",), min), Stage("c", ("x",), ("b",), min)], "provides b"),
        ([Stage("a", ("x",), ("x",), min)], "provides x"),
        ([Stage("a", ("later",), ("b",), min), Stage("c", ("x",), ("later",), min)], "needs later"),
        ([Stage("a", ("x",), (), min), Stage("a", ("x",), (), min)], "two stages"),
    ],
)
def test_a_wrong_chain_is_refused_before_anything_runs(stages: list[Stage], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        check_chain(stages, ("x",))
    ran: list[int] = []
    first = Stage("first", ("x",), ("first",), lambda x, context: ran.append(x))
    with pytest.raises(ValueError, match=reason):
        run([first, *stages], {"x": 1}, Context.quiet())
    assert ran == []


def test_a_stage_must_return_what_it_promised() -> None:
    stage = Stage("liar", (), ("a", "b"), lambda context: 1)
    with pytest.raises(ValueError, match="liar.*2 values"):
        run([stage], {}, Context.quiet())


def test_resume_takes_what_is_there_and_runs_the_rest(tmp_path: Path) -> None:
    given = {"x": 21, "folder": tmp_path}
    first, second, third = Counter(), Counter(), Counter()
    broken = [*first.stages()[:2], Stage("write", ("parts", "folder"), (), lambda *_: 1 / 0, keep=False)]
    with pytest.raises(ZeroDivisionError):
        run(broken, given, Context.quiet(), tmp_path)
    done = run(second.stages(), given, Context.quiet(), tmp_path)
    assert second.calls == ["write"] and [record.resumed for record in done.records] == [True, True, False]
    assert np.array_equal(done.values["parts"], np.full(3, 42)) and done.warnings == ("mind the gap",)
    # A damaged checkpoint means: from there on everything anew.
    (tmp_path / "01.npz").write_bytes(b"damaged")
    run(third.stages(), given, Context.quiet(), tmp_path)
    assert third.calls == ["double", "split", "write"]


def test_a_changed_stage_does_not_take_the_old_checkpoint(tmp_path: Path) -> None:
    given = {"x": 1, "folder": tmp_path}
    run(Counter().stages(), given, Context.quiet(), tmp_path)
    counter = Counter()
    newer = [counter.stages()[0], replace(counter.stages()[1], version=2), counter.stages()[2]]
    run(newer, given, Context.quiet(), tmp_path)
    assert counter.calls == ["split", "write"]


def test_cancel_stops_at_the_next_progress() -> None:
    event = threading.Event()
    context = replace(Context.quiet(), cancel_event=event)

    def long(context: Context) -> int:
        for i in range(1000):
            context.progress("long", i, 1000)
            if i == 3:
                event.set()
        raise AssertionError("not cancelled")

    with pytest.raises(Cancelled):
        run([Stage("long", (), ("a",), long)], {}, context)


def test_parts_nest() -> None:
    recorder = Recorder()
    outer = replace(Context.quiet(), sink=recorder).part("job", 20, 60, 100)
    inner = outer.part("half", 1, 2, 2)  # the second half of the part
    inner.progress("x", 0, 4)
    inner.progress("x", 2, 4)
    inner.progress("x", 9, 4)  # more than all is all
    assert [line[:3] for line in recorder.lines] == [("job", 40, 100), ("job", 50, 100), ("job", 60, 100)]


def test_terminal_writes_begin_and_end_of_every_stage() -> None:
    class Stream(list[str]):
        def write(self, text: str) -> None:
            self.append(text)

        def flush(self) -> None: ...

        def isatty(self) -> bool:
            return False

    stream = Stream()
    sink = TerminalSink(stream, interval_s=1e9)  # type: ignore[arg-type]
    for i in range(11):
        sink.progress("fit", i, 10, "loss 0.5")
    sink.progress("write", 1, 1, "")
    assert [line.split()[:2] for line in stream] == [["fit", "0/10"], ["fit", "10/10"], ["write", "1/1"]]


# The job folder


def photo(tmp_path: Path) -> Photo:
    return Photo(np.zeros((8, 8, 3), np.uint8), None, (8, 8), "ab" * 32, tmp_path / "p.png", "png")


def begin(out: Path, resume: bool = False, **request: object) -> jobs.Job:
    return jobs.begin(out, jobs.identity("body", request, photo(out.parent)), resume)


def finish(job: jobs.Job, text: str = "result") -> Path:
    (job.work / "gaussians.ply").write_text(text)
    (job.work / "walk").mkdir()
    (job.work / "walk" / "frame_000.png").write_text("frame")
    done = Run({"outcome": Outcome(("photo only",), ("w",))}, ())
    return jobs.publish(job, done, photo(job.final.parent), "cpu", 1.5)


def test_nothing_is_at_the_final_place_until_the_result_is_complete(tmp_path: Path) -> None:
    out = tmp_path / "a" / "b"
    job = begin(out, seed=1)
    assert not out.exists()
    finish(job)
    assert sorted(path.name for path in out.iterdir()) == ["gaussians.ply", "result.json", "walk"]
    assert [path.name for path in out.parent.iterdir()] == ["b"]
    result = json.loads((out / "result.json").read_text())
    assert result["request"] == {"seed": 1} and result["generators"] == ["photo only"] and result["warnings"] == ["w"]
    for entry in result["files"]:
        assert (out / entry["path"]).stat().st_size == entry["bytes"]
        assert jobs.sha256(out / entry["path"]) == entry["sha256"]
    assert [entry["path"] for entry in result["files"]] == ["gaussians.ply", "walk/frame_000.png"]


def test_a_failed_job_leaves_nothing(tmp_path: Path) -> None:
    job = begin(tmp_path / "a" / "b")
    (job.work / "half.ply").write_text("half")
    jobs.discard(job)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_keeps_other_files_and_gets_the_new_result(tmp_path: Path) -> None:
    out = tmp_path / "out"
    finish(begin(out), "old")
    (out / "mine.txt").write_text("mine")
    job = begin(out)
    assert (out / "gaussians.ply").read_text() == "old"
    finish(job, "new")
    names = sorted(path.name for path in out.iterdir())
    assert names == ["gaussians.ply", "mine.txt", "result.json", "walk"]
    assert (out / "gaussians.ply").read_text() == "new" and (out / "mine.txt").read_text() == "mine"


def test_only_an_equal_request_is_resumed(tmp_path: Path) -> None:
    out = tmp_path / "out"
    job = begin(out, seed=1)
    (job.checkpoints / "01.npz").write_text("kept")
    jobs.release(job)
    again = begin(out, resume=True, seed=1)
    assert again.resumed and (again.checkpoints / "01.npz").exists()
    jobs.release(again)
    other = begin(out, resume=True, seed=2)
    assert not other.resumed and not (other.checkpoints / "01.npz").exists()
    jobs.discard(other)


def test_two_jobs_do_not_share_a_folder(tmp_path: Path) -> None:
    job = begin(tmp_path / "out")
    with pytest.raises(UserError, match="another job"):
        begin(tmp_path / "out")
    jobs.discard(job)
    jobs.discard(begin(tmp_path / "out"))


def test_a_finished_job_is_known_by_its_whole_request(tmp_path: Path) -> None:
    out = tmp_path / "out"
    wanted = jobs.identity("body", {"seed": 1}, photo(tmp_path))
    assert not jobs.is_finished(out, wanted)
    finish(jobs.begin(out, wanted, False))
    assert jobs.is_finished(out, wanted)
    assert not jobs.is_finished(out, wanted | {"photo_sha256": "0"})
    assert not jobs.is_finished(out, jobs.identity("body", {"seed": 2}, photo(tmp_path)))
    (out / "gaussians.ply").unlink()
    assert not jobs.is_finished(out, wanted)


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UserError, match="file") as caught:
            begin(out)
        assert caught.value.code == 2
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
