"""A job that is killed, interrupted or fails: what stays, what is said, and that it goes on where it stopped.

The real command runs as a process of its own, with a small method in the place of `body`.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
PORTRAIT = ROOT / "scripts" / "data" / "collins.png"

METHOD = """
import os, signal, sys
from pathlib import Path
import numpy as np
import backend.methods
from backend.__main__ import main
from backend.pipeline import Outcome, Stage

trace, trouble = Path(sys.argv[1]), sys.argv[2]

def say(word):
    with trace.open("a") as file:
        file.write(word + "\\n")

def first(photo, request, context):
    say("first")
    return np.full(4, request.seed, np.float32)

def second(values, context):
    say("second")
    os.write(2, b"noise of a native library\\n")
    context.progress("second", 1, 2)
    if trouble == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if trouble == "interrupt":
        os.kill(os.getpid(), signal.SIGINT)
    if trouble == "fail":
        raise RuntimeError("a defect\\nin two lines")
    if trouble == "package":
        import effigy_no_such_package
    return float(values.sum())

def third(total, folder, context):
    say("third")
    (folder / "total.txt").write_text(str(total))
    return Outcome(("photo only",), ("mind the gap",))

def stages(request, models):
    return [
        Stage("first", ("photo", "request"), ("values",), first),
        Stage("second", ("values",), ("total",), second),
        Stage("third", ("total", "folder"), ("outcome",), third, keep=False),
    ]

backend.methods.METHODS = {"body": "__main__:stages"}
sys.exit(main(sys.argv[3:]))
"""


class Command:
    def __init__(self, folder: Path) -> None:
        self.out = folder / "results" / "avatar"
        self.trace = folder / "trace.txt"
        self.script = folder / "method.py"
        self.script.write_text(METHOD)
        self.temporary = folder / "tmp"
        self.temporary.mkdir()

    def run(self, trouble: str = "none", *more: str, seed: int = 3) -> subprocess.CompletedProcess[str]:
        arguments = ["generate", "body", "--image", str(PORTRAIT), "--out", str(self.out), "--set", f"seed={seed}"]
        command = [sys.executable, str(self.script), str(self.trace), trouble, *arguments, *more]
        settings = os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(self.temporary)}
        self.trace.write_text("")
        return subprocess.run(command, env=settings, capture_output=True, text=True, check=False)

    @property
    def ran(self) -> list[str]:
        return self.trace.read_text().split()


@pytest.fixture
def command(tmp_path: Path) -> Command:
    return Command(tmp_path)


def test_a_whole_run_says_every_stage_and_keeps_noise_in_the_log(command: Command) -> None:
    done = command.run()
    assert done.returncode == 0 and done.stderr == "", done.stderr
    for index, name in enumerate(("first", "second", "third"), start=1):
        assert f"[{index}/3] {name}" in done.stdout
    assert "mind the gap" in done.stdout
    names = sorted(path.name for path in command.out.iterdir())
    assert names == ["input.png", "log.txt", "result.json", "total.txt"]
    assert "noise of a native library" in (command.out / "log.txt").read_text()
    assert (command.out / "input.png").read_bytes() == PORTRAIT.read_bytes()
    result = json.loads((command.out / "result.json").read_text())
    assert result["schema_version"] == 1 and result["method"] == "body" and result["request"]["seed"] == 3
    assert [stage["name"] for stage in result["stages"]] == ["first", "second", "third"]
    assert result["warnings"] == ["mind the gap"] and result["peak_memory_bytes"] > 0
    assert [path.name for path in command.out.parent.iterdir()] == ["avatar"]


@pytest.mark.parametrize(("trouble", "code"), [("kill", -signal.SIGKILL), ("interrupt", 1)])
def test_a_stopped_job_shows_no_result_and_goes_on_where_it_stopped(command: Command, trouble: str, code: int) -> None:
    stopped = command.run(trouble)
    assert stopped.returncode == code and command.ran == ["first", "second"]
    assert not command.out.exists()
    if trouble == "interrupt":
        assert "--resume" in stopped.stderr and len(stopped.stderr.splitlines()) == 1
    again = command.run("none", "--resume")
    assert again.returncode == 0, again.stderr
    assert command.ran == ["second", "third"]
    assert (command.out / "total.txt").read_text() == "12.0"
    assert [path.name for path in command.out.parent.iterdir()] == ["avatar"]
    assert command.run("none", "--resume").returncode == 0 and command.ran == []


def test_another_request_or_no_resume_begins_anew(command: Command) -> None:
    command.run("kill")
    assert command.run("kill", "--resume", seed=5).returncode != 0
    assert command.ran == ["first", "second"]
    done = command.run("none", seed=5)
    assert done.returncode == 0 and command.ran == ["first", "second", "third"]
    assert (command.out / "total.txt").read_text() == "20.0"


def test_a_defect_is_one_line_with_a_log_and_leaves_nothing(command: Command) -> None:
    failed = command.run("fail")
    assert failed.returncode == 1
    assert len(failed.stderr.splitlines()) == 1 and "a defect in two lines" in failed.stderr
    assert not command.out.parent.exists()
    log = Path(failed.stderr.split()[-1])
    assert "Traceback" in log.read_text() and "RuntimeError" in log.read_text()


def test_a_defect_beside_an_earlier_result_leaves_it_and_logs_there(command: Command) -> None:
    command.run()
    before = (command.out / "result.json").read_text()
    assert command.run("fail", seed=9).returncode == 1
    assert (command.out / "result.json").read_text() == before
    assert command.run("fail", "--resume").returncode == 0  # it is still known as finished
    assert "RuntimeError" in (command.out / "log.txt").read_text()
    assert not (command.out / ".partial").exists()


def test_a_missing_package_is_code_3(command: Command) -> None:
    failed = command.run("package")
    assert failed.returncode == 3 and "effigy_no_such_package is not installed" in failed.stderr
    assert len(failed.stderr.splitlines()) == 1 and not command.out.parent.exists()
