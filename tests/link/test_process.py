"""Rows 2, 3, 5, 6, 9 and 10 of the fault matrix from Blender's side: the process behind `BackendProcess`."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from blender_addon.link import process as process_module
from blender_addon.link.backend_python import backend_environment
from blender_addon.link.process import BackendProcess, Limits, State
from blender_addon.shared import protocol
from blender_addon.shared.protocol import TERMINAL, BackendMessage, Cancelled, Failed, Progress, Result, Run
from tests.faults.client import is_alive, wait_until

FAKE = Path(__file__).parent / "fake_backend.py"
QUICK = Limits(
    hello_s=20, ping_after_s=0.1, stalled_after_s=0.5, cancel_s=0.5, terminate_s=0.3, kill_s=0.6, crash_window_s=60
)
Make = Callable[..., BackendProcess]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    made: list[BackendProcess] = []

    def start(mode: str, limits: Limits = QUICK) -> BackendProcess:
        command = [sys.executable, "-S", "-E", "-u", str(FAKE), mode]
        process = BackendProcess(command, dict(os.environ), tmp_path / "log" / "backend.log", limits)
        made.append(process)
        assert process.start()
        return process

    yield start
    for process in made:
        process.close()


def poll_until(process: BackendProcess, condition: Callable[[], object], what: str) -> list[BackendMessage]:
    seen: list[BackendMessage] = []

    def met() -> bool:
        seen.extend(process.poll())
        return bool(condition())

    wait_until(met, what)
    return seen


def ready(process: BackendProcess) -> BackendProcess:
    poll_until(process, lambda: process.state is State.READY, "hello")
    return process


def end_of(process: BackendProcess, job_id: str = "one") -> list[BackendMessage]:
    """All terminal messages of a job up to the first, and of half a second after it."""
    ends: list[BackendMessage] = []

    def met() -> bool:
        ends.extend(m for m in process.poll() if isinstance(m, TERMINAL) and m.job_id == job_id)
        return bool(ends)

    wait_until(met, "the job's end")
    for _ in range(10):
        time.sleep(0.02)
        ends.extend(m for m in process.poll() if isinstance(m, TERMINAL) and m.job_id == job_id)
    return ends


def order(job_id: str = "one") -> Run:
    return Run(job_id, "body", {"seed": 1}, "input.png")


def test_hello_run_and_shutdown(make: Make) -> None:
    process = ready(make("good"))
    assert process.hello and process.hello.pid == process.pid and process.hello.device.name == "a machine"
    process.run(order())
    ends = end_of(process)
    assert [type(end) for end in ends] == [Result]
    assert process.capabilities and process.capabilities.methods == ("body",)
    process.shutdown()
    poll_until(process, lambda: process.state is State.STOPPED, "the end")
    assert process.problem == "" and process.pid == 0
    assert process.start()
    ready(process)


def test_starting_twice_is_one_process(make: Make) -> None:
    process = ready(make("good"))
    pid = process.pid
    assert process.start() and process.pid == pid


def test_jobs_need_a_ready_process_and_a_new_id(make: Make) -> None:
    process = make("works")
    if process.state is State.STARTING:
        with pytest.raises(ValueError, match="not ready"):
            process.run(order())
    ready(process).run(order())
    with pytest.raises(ValueError, match="runs already"):
        process.run(order())
    with pytest.raises(ValueError, match="bytes"):
        process.run(Run("two", "body", {"text": "x" * 2_000_000}, "input.png"))
    process.cancel("nobody")


def test_02_a_backend_that_dies_ends_its_job_and_the_next_start_works(make: Make) -> None:
    process = ready(make("dies"))
    process.run(order())
    (end,) = end_of(process)
    assert isinstance(end, Failed) and end.retryable and end.code == "INTERNAL"
    assert "SIGKILL" in end.text and "\n" not in end.text and end.hint
    assert process.state is State.STOPPED and process.start()
    ready(process)


def test_03_after_three_crashes_it_is_not_started_again_until_the_user_says_so(make: Make) -> None:
    process = make("crash")
    for _ in range(2):
        poll_until(process, lambda: process.state is State.STOPPED, "a crash")
        assert process.start()
    poll_until(process, lambda: process.state is State.BROKEN, "the last crash")
    assert not process.start() and process.pid == 0
    assert "3 times" in process.problem and "doctor" in process.problem and str(process.log) in process.problem
    assert "\n" not in process.problem
    assert process.log.read_text().count("something terrible") == 3
    process.forgive()
    assert process.start()


def test_a_python_that_is_not_there(tmp_path: Path) -> None:
    process = BackendProcess([str(tmp_path / "python")], {}, tmp_path / "log.txt")
    assert not process.start() and process.state is State.BROKEN
    assert "set it up" in process.problem and process.poll() == []


@pytest.mark.parametrize("mode", ["garbage", "flood"])
def test_05_what_is_no_message_ends_the_process_with_one_line(make: Make, mode: str) -> None:
    process = make(mode)
    poll_until(process, lambda: process.state is State.BROKEN and process.pid == 0, "the end")
    assert "no message" in process.problem and "\n" not in process.problem and not process.start()


@pytest.mark.parametrize(
    ("mode", "words"), [("old", "update the backend"), ("new", "update the add-on"), ("odd", "set")]
)
def test_06_another_major_version_is_refused(make: Make, mode: str, words: str) -> None:
    process = make(mode)
    poll_until(process, lambda: process.state is State.BROKEN and process.pid == 0, "the refusal")
    assert words in process.problem and process.hello is None


def test_06_another_minor_version_works(make: Make) -> None:
    process = ready(make("minor"))
    process.run(order())
    assert isinstance(end_of(process)[0], Result)


def test_08_a_cancel_that_is_ignored_is_forced(make: Make) -> None:
    process = ready(make("deaf"))
    process.run(order())
    poll_until(process, lambda: True, "nothing")
    pid = process.pid
    process.cancel("one")
    process.cancel("one")
    assert end_of(process) == [Cancelled("one")]
    assert not is_alive(pid) and process.state is State.STOPPED and process.problem == ""


def test_09_a_stopped_backend_is_stalled_and_comes_back_or_is_killed(make: Make) -> None:
    process = ready(make("works"))
    process.run(order())
    pid = process.pid
    os.kill(pid, 19)  # SIGSTOP
    poll_until(process, lambda: process.state is State.STALLED, "stalled")
    assert "wait or cancel" in process.problem
    os.kill(pid, 18)  # SIGCONT
    poll_until(process, lambda: process.state is State.READY, "the return")
    assert process.problem == ""
    os.kill(pid, 19)
    poll_until(process, lambda: process.state is State.STALLED, "stalled again")
    process.cancel("one")
    assert end_of(process) == [Cancelled("one")]
    assert not is_alive(pid)


def test_09_an_answering_backend_is_never_stalled(make: Make) -> None:
    process = ready(make("works"))
    end = time.monotonic() + 1.5
    while time.monotonic() < end:
        process.poll()
        assert process.state is State.READY
        time.sleep(0.02)


def test_a_backend_that_never_says_hello_is_ended(make: Make) -> None:
    process = make("silent", Limits(hello_s=0.3))
    pid = process.pid
    poll_until(process, lambda: process.pid == 0, "the end")
    assert not is_alive(pid)


def test_10_a_closed_output_is_an_end(make: Make) -> None:
    process = make("closes output")
    pid = process.pid
    poll_until(process, lambda: process.pid == 0, "the end")
    assert not is_alive(pid)


@pytest.mark.parametrize("polite", [True, False])
def test_shutdown_is_a_ladder(make: Make, polite: bool) -> None:
    process = ready(make("stays"))
    pid = process.pid
    process.run(order())
    if polite:
        process.shutdown()
        poll_until(process, lambda: process.pid == 0, "the end")
    else:
        process.close(patience_s=0.2)
    assert not is_alive(pid) and process.state is State.STOPPED


def test_close_of_what_never_ran(tmp_path: Path) -> None:
    process = BackendProcess(["nothing"], {}, tmp_path / "log.txt")
    process.close()
    process.shutdown()
    assert process.poll() == [] and list(tmp_path.iterdir()) == []


def test_what_the_backend_left_behind_is_ended_with_it(make: Make) -> None:
    process = ready(make("leaves a child"))
    group = process.pid
    process.run(order())
    assert isinstance(end_of(process)[0], Failed)
    living = subprocess.run(["ps", "-o", "stat=", "-g", str(group)], capture_output=True, text=True, check=False)
    assert [line for line in living.stdout.split() if not line.startswith("Z")] == []


def test_a_job_has_one_end_even_if_the_backend_says_two(make: Make) -> None:
    process = ready(make("twice"))
    process.run(order())
    assert [type(end) for end in end_of(process)] == [Result]


def test_a_job_that_is_refused_has_ended(make: Make) -> None:
    process = ready(make("refuses"))
    process.run(order())
    (end,) = end_of(process)
    assert isinstance(end, Failed) and end.code == "BAD_REQUEST"


def test_a_retiring_backend_is_no_crash(make: Make) -> None:
    for _ in range(4):
        process = ready(make("retires"))
        process.run(order())
        assert isinstance(end_of(process)[0], Result)
        poll_until(process, lambda: process.pid == 0, "the end")  # noqa: B023  called at once
        assert process.problem == "" and process.state is State.STOPPED


def test_newer_progress_replaces_older(make: Make) -> None:
    process = ready(make("chatty"))
    process.run(order())
    time.sleep(0.5)  # nobody polls meanwhile, as while Blender renders
    seen = poll_until(process, lambda: not process._open, "the end")
    assert len([m for m in seen if isinstance(m, Progress)]) < 200
    assert isinstance(seen[-1], Result)


def test_poll_never_waits_for_a_stopped_process(make: Make) -> None:
    process = ready(make("works", Limits()))
    os.kill(process.pid, 19)
    for number in range(2000):  # far more than a pipe holds
        process._link.send(order(f"job-{number}" + "x" * 40))  # type: ignore[union-attr]
    # what it can do may have been said just before it was stopped
    assert [message for message in process.poll() if not isinstance(message, protocol.Capabilities)] == []
    os.kill(process.pid, 18)


def test_a_large_log_is_put_aside(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_module, "LARGEST_LOG_BYTES", 5)
    process = make("crash")
    poll_until(process, lambda: process.state is State.STOPPED, "a crash")
    process.start()
    poll_until(process, lambda: process.state is State.STOPPED, "a crash")
    assert sorted(path.name for path in process.log.parent.iterdir()) == ["backend.log", "backend.old.log"]


def test_37_the_child_gets_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "DB_PASSWORD", "MY_API_KEY"):
        monkeypatch.setenv(name, "hunter2")
    assert "hunter2" not in backend_environment().values() and "PATH" in backend_environment()


def test_the_link_needs_the_standard_library_only() -> None:
    root = Path(__file__).parent.parent.parent
    names = ", ".join(f"blender_addon.link.{name}" for name in ("process", "jobs", "timings", "process_group"))
    code = f"import sys; sys.modules['numpy'] = sys.modules['bpy'] = None; import {names}"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", f"import sys; sys.path.insert(0, {str(root)!r}); {code}"])
    assert done.returncode == 0


@pytest.mark.parametrize("cls", [*protocol._CLIENT.values(), *protocol._BACKEND.values()])
def test_every_message_survives_its_line(cls: type) -> None:
    values = {name: _example(hint) for name, hint, _ in protocol._layout(cls)}
    message = cls(**values)
    decode = protocol.decode_client if cls in protocol._CLIENT.values() else protocol.decode_backend
    line = protocol.encode(message)
    assert line.endswith(b"\n") and line.count(b"\n") == 1
    assert decode(line[:-1]) == message


def _example(hint: object) -> object:
    if hint == protocol.FailureCode:
        return "OFFLINE"
    if hint is protocol.Device:
        return protocol.Device("cuda", "größer \u2028 device", 3, 2, "1", 4)
    if hint == tuple[protocol.File, ...]:
        return (protocol.File("role", "a/b", 7, "0" * 64),)
    if hint == tuple[str, ...]:
        return ("a", "b\nc")
    plain = {str: "two\nlines \U0001f600", int: 5, float: 0.25, bool: True}
    return plain.get(hint, {"a": [1, None]})  # type: ignore[call-overload]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_05_lines_come_whole_whatever_the_pieces(size: int) -> None:
    data = b"one\n\r\n\ntwo\r\n" + b"x" * 50 + b"\nthree\n" + b"y" * 21 + b"\nz\nrest"
    splitter = protocol.LineSplitter(20)
    found = [line for at in range(0, len(data), size) for line in splitter.feed(data[at : at + size])]
    plain = [line for line in found if isinstance(line, bytes)]
    assert plain == [b"one", b"two", b"three", b"z"]
    assert [i for i, line in enumerate(found) if not isinstance(line, bytes)] == [2, 4]
    assert list(splitter.feed(b"\n")) == [b"rest"]


@pytest.mark.parametrize("path", ["a", "a/b.ply", "result/größe.npz"])
def test_18_relative_names(path: str) -> None:
    assert protocol.check_relative(path) == ""


@pytest.mark.parametrize("path", ["", "/a", "../a", "a/../b", "a//b", "a\\b", "c:a", "a/.", "x\0", "a/" * 400 + "b"])
def test_18_names_that_may_lead_elsewhere(path: str) -> None:
    assert protocol.check_relative(path)
