"""Rows 10, 11, 12 and 19 of the fault matrix in a real Blender: no exception, no dead reference, no process left.

The backend is a stand-in whose jobs take seconds; what it does wrong is said by the photo's name.
"""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from tests.gui.desktop import Desktop

pytestmark = pytest.mark.gui

SCENARIOS = ("files", "undo", "hand", "pictures", "waiting", "lies", "disable", "quitting", "pair")

STAND_IN = """
printf '#!/bin/sh\\nexec python3 {root}/tests/gui/stand_in.py "$@"\\n' > /out/stand-in
chmod +x /out/stand-in
"""
"""Makes /out/stand-in, which is called like the backend's Python."""

_PLAY = """
export EFFIGY_BACKEND_PYTHON=/out/stand-in EFFIGY_STAND_IN_S=3
play() {
  timeout 300 blender --window-geometry 0 0 900 650 -P {root}/tests/gui/inside_faults.py -- $1 > /out/$1.log 2>&1
  echo $? > /out/$1.code; }
"""

_AFTER_QUIT = """
PID=$(python3 -c "import json; print(json.load(open('/out/quitting.json'))['pid'])")
for k in $(seq 10); do kill -0 $PID 2> /dev/null || break; sleep 0.1; done
kill -0 $PID 2> /dev/null && echo alive > /out/quitting.after || echo gone > /out/quitting.after
cat $(python3 -c "import json; print(json.load(open('/out/quitting.json'))['folder'])")/state.json > /out/quitting.state
"""

_EXPECTED = ("Not freed memory", "avatar.npz cannot be read")
"""Blender's own at its exit, and what the artist is told of a damaged result."""


@pytest.fixture(scope="module")
def answers(desktop: Desktop) -> dict[str, dict[str, Any]]:
    """All scenarios on one screen, one Blender after the other; the pair at the same time."""
    lines = [f"play {name}" for name in SCENARIOS if name != "pair"]
    lines.insert(lines.index("play quitting") + 1, _AFTER_QUIT)
    script = "\n".join([STAND_IN, _PLAY, *lines, "play pair_a & A=$!; play pair_b & B=$!; wait $A $B"])
    Desktop(desktop.debian, desktop.out, (900, 650)).play(script, timeout_s=1500)
    found = {}
    for name in (*SCENARIOS[:-1], "pair_a", "pair_b"):
        log = (desktop.out / f"{name}.log").read_text("utf-8", errors="replace")
        place = desktop.out / f"{name}.json"
        assert place.is_file(), f"{name} did not come to its end:\n{log[-3000:]}"
        found[name] = json.loads(place.read_text("utf-8")) | {"console": log}
        found[name]["exit"] = (desktop.out / f"{name}.code").read_text().strip()
        assert "error" not in found[name], f"{name}: {found[name]['error']}"
    return found


@pytest.mark.parametrize("name", [*SCENARIOS[:-1], "pair_a", "pair_b"])
def test_11_blender_prints_no_traceback_and_ends_well(answers: dict[str, Any], name: str) -> None:
    log = answers[name]["console"]
    assert "Traceback" not in log and "ReferenceError" not in log and "EXCEPTION" not in log, log[-3000:]
    bad = [line for line in log.splitlines() if re.match(r"\s*Error", line) and not any(h in line for h in _EXPECTED)]
    assert bad == [] and answers[name]["exit"] == "0"


def test_11_a_new_file_is_left_alone_and_the_result_waits_to_be_brought(answers: dict[str, Any]) -> None:
    answer = answers["files"]
    assert answer["alive"], "File > New ended the job"
    assert answer["in_new_file"] == [] and answer["brought"] == ["slow_new"]
    assert answer["in_same_file"] == ["slow_again", "slow_new"] and answer["active"] == "slow_again"
    assert answer["places_m"][1] - answer["places_m"][0] > 1.0, "one avatar stands inside the other"


def test_11_undo_redo_and_deleting_while_a_job_runs(answers: dict[str, Any]) -> None:
    answer = answers["undo"]
    assert answer["arrived"] == ["slow_undo"] and answer["ed.undo"] == [] and answer["ed.redo"] == ["slow_undo"]
    assert len(set(answer["empties"])) == 1, "the avatar's undo step took something of the artist's with it"
    assert answer["deleted"] == [True, 0] and answer["after_deletion"] == ["slow_undo"]


def test_a_result_waits_for_a_free_hand(answers: dict[str, Any]) -> None:
    answer = answers["hand"]
    assert answer["in_edit_mode"] == [[], "EDIT_MESH", True]
    assert answer["while_dragging"] == ["quick_edit"] and answer["after"] == ["quick_drag", "quick_edit"]


def test_a_photo_is_taken_from_an_image_editor_and_from_a_reference_image(answers: dict[str, Any]) -> None:
    assert [answers["pictures"][name] for name in ("editor", "reference")] == ["shown", "reference"]


def test_jobs_queue_and_are_cancelled_and_started_again(answers: dict[str, Any]) -> None:
    answer = answers["waiting"]
    assert answer["at_once"] == ["running", "waiting", "waiting"]
    assert answer["then"] == [["cancelled", "done", "cancelled"], ["slow_second"]]
    assert answer["again"] == ["slow_first", "slow_second"]
    assert answer["cleared"] == [0, ["slow_first", "slow_second"]]


@pytest.mark.parametrize(
    ("trouble", "words"), [("outside", "outside"), ("size", "cut off"), ("hash", "damaged")]
)  # fmt: skip
def test_19_a_result_that_lies_is_rejected_in_one_line(answers: dict[str, Any], trouble: str, words: str) -> None:
    status, text, _, problem, rigs = answers["lies"][trouble]
    assert status == "failed" and words in text and "\n" not in text
    assert problem == "" and rigs == []


def test_19_a_result_that_no_reader_takes_is_said_in_one_line(answers: dict[str, Any]) -> None:
    status, _, _, problem, rigs = answers["lies"]["damaged"]
    assert status == "done" and problem and "\n" not in problem and rigs == []


@pytest.mark.parametrize("pipe", ["closes", "stdin"])
def test_10_a_pipe_that_closes_ends_the_job_in_one_line(answers: dict[str, Any], pipe: str) -> None:
    status, text, hint, _, _ = answers["lies"][pipe]
    assert status == "failed" and text.startswith("the backend stopped unexpectedly") and "\n" not in text + hint
    assert hint


def test_a_failure_says_the_next_step_and_has_a_log_and_the_next_job_works(answers: dict[str, Any]) -> None:
    answer = answers["lies"]
    assert answer["fails"][:3] == [
        "failed", "nobody can be seen in the photo", "choose a photo that shows a person",
    ]  # fmt: skip
    assert answer["log"][1].startswith("what the artist need not see")
    assert answer["next"] == ["done", ["quick_last"]]


def test_11_the_disabled_add_on_leaves_nothing_and_its_job_goes_on_afterwards(answers: dict[str, Any]) -> None:
    answer = answers["disable"]
    assert answer["left"] == []
    assert answer["listed"] == [["interrupted", "slow_disable"]]
    assert answer["went_on"] == ["done", ["slow_disable"]]


def test_11_quitting_ends_the_process_and_keeps_the_job(desktop: Desktop, answers: dict[str, Any]) -> None:
    assert (desktop.out / "quitting.after").read_text().strip() == "gone"
    assert json.loads((desktop.out / "quitting.state").read_text())["state"] == "waiting"


def test_12_two_blenders_share_an_environment(answers: dict[str, Any]) -> None:
    first, second = answers["pair_a"], answers["pair_b"]
    assert first["taken"] == second["taken"] == [], "one offers the other's running job as interrupted"
    assert first["first"] == ["done", ["slow_pair_a"]] and second["first"] == ["done", ["slow_pair_b"]]
    assert first["pid"] != second["pid"]
    assert second["second"] == ["done", 2] and second["jobs"] == 2
