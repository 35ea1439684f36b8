"""What the panel is made of, as far as it needs no window: parameters, memory of avatars, texts, refused motion."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.blender.interpreters import find_blender

pytestmark = pytest.mark.blender


def ask(question: str, folder: Path) -> dict[str, Any]:
    script = Path(__file__).parent / "inside_panel.py"
    environment = os.environ | {"BLENDER_USER_RESOURCES": str(folder)}
    command = [find_blender("this"), str(script), question, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    answer = next(line for line in done.stdout.splitlines() if line.startswith("ANSWER "))
    return json.loads(answer.removeprefix("ANSWER "))


def test_a_method_added_to_the_table_appears_with_labels_ranges_units_and_tooltips(tmp_path: Path) -> None:
    answer = ask("parameters", tmp_path)
    assert ["echo", "Echo", "Says it back. And more"] in answer["methods"]
    assert answer["shown"] == {
        "preset": ["Preset", "How long it takes", "ENUM", "NONE", [], ["fast", "balanced", "best"]],
        "loud": ["Loud", "So that everybody hears it", "BOOLEAN", "NONE", [], []],
        "times": ["Times", "How often it comes back", "INT", "NONE", [1, 9], []],
        "depth_m": ["Depth", "Of the valley", "FLOAT", "LENGTH", [0.0, 4.0], []],
        "loss": ["Loss (dB)", "Per echo", "FLOAT", "NONE", [0.0, 0.1], []],
        "words": ["Words", "What is said", "STRING", "NONE", [], []],
        "look": ["Look", "A picture", "STRING", "NONE", [], []],
        "photos": ["More photos", "Of the same echo", "COLLECTION", "NONE", [], []],
    }
    assert answer["subtype"] == "FILE_PATH"
    assert answer["default"] and answer["shown_again"] == ["echo", True]
    assert answer["exact"] == [0.1, 2.7], "the request has Blender's single precision"


def test_files_are_added_dropped_taken_away_and_shown_again(tmp_path: Path) -> None:
    answer = ask("files", tmp_path)
    done, refused = ["FINISHED"], ["CANCELLED"]
    assert answer["told"] == [
        done, ["back.png", "left.png"], done, ["back.png", "left.png", "right.png"], done, ["left.png", "right.png"],
        refused, refused, ["left.png", "right.png"],
    ]  # fmt: skip
    assert answer["whole"] and answer["shown"] and answer["relative"]
    assert answer["many"] == "photos takes at most 3 files, not 5"


def test_an_avatar_remembers_its_request_and_finds_its_files_again(tmp_path: Path) -> None:
    answer = ask("memory", tmp_path)
    assert answer["finished"] == [True] * 4
    assert answer["made_by"] == "photo only" and json.loads(answer["warnings"]) == ["dark"]
    assert answer["panel"] == ["input.png", "best", 1.7, 1, ["photos-0.png"]]
    assert "photos-0.png" in answer["gone"] and "Relink Bundle" in answer["gone"] and answer["further"]
    assert "is gone" in answer["outside"], "a stored request leads out of the bundle"
    assert len(answer["refused"]) == 2 and all(text and "\n" not in text for text in answer["refused"])
    assert answer["kept"] and answer["linked"] == [True, True]
    assert answer["apart_m"][0] > 1.0 and answer["apart_m"][0] == pytest.approx(answer["apart_m"][1])


def test_25_a_bad_motion_file_is_one_line_and_changes_nothing(tmp_path: Path) -> None:
    answer = ask("bad_motion", tmp_path)
    assert not answer["canary"], "a pickle was loaded"
    assert answer["same"]
    for name, text in answer["said"].items():
        assert text.startswith("Error: ") and "\n" not in text and "Traceback" not in text, (name, text)


def test_texts_fit_the_sidebar(tmp_path: Path) -> None:
    answer = ask("lines", tmp_path)
    assert answer["widest"] <= 180 and answer["lines"] > 5 and answer["kept"] and answer["empty"] == []


def test_a_job_that_could_end_early_offers_it(tmp_path: Path) -> None:
    answer = ask("buttons", tmp_path)
    assert answer["shown"] == {
        "running": ["effigy.cancel"],
        "finishable": ["effigy.finish", "effigy.cancel"],
        "finishing": ["Finishing with what there is ...", "effigy.cancel"],
        "stopping": [],
    }
    assert answer["alone"] == ["FINISHED"]
