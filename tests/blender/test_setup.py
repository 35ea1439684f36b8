"""The preferences' buttons inside Blender: install, cancel, doctor, models; nothing blocks, and all children end."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.blender.interpreters import BLENDERS, find_blender

pytestmark = pytest.mark.blender


@pytest.fixture(scope="module", params=BLENDERS)
def seen(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("setup")
    command = [find_blender(request.param), str(Path(__file__).parent / "inside_setup.py"), str(folder)]
    settings = {name: value for name, value in os.environ.items() if name != "EFFIGY_BACKEND_PYTHON"}
    settings |= {"BLENDER_USER_RESOURCES": str(folder / "user")}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=settings, timeout=120)
    assert done.returncode == 0 and (folder / "seen.json").is_file(), done.stdout[-2000:] + done.stderr[-3000:]
    calls = [json.loads(line) for line in (folder / "calls").read_text().splitlines()]
    return json.loads((folder / "seen.json").read_text()) | {"calls": calls, "folder": str(folder)}


def test_the_backend_is_installed_by_its_button_and_used(seen: dict[str, Any]) -> None:
    steps = seen["install"]
    assert "Online Access" in steps["offline"] or "online access" in steps["offline"].lower()
    assert steps["while"][0] is True and steps["while"][1] == "Install the packages" and "running" in steps["while"][2]
    assert steps["cancelled"] == ["cancelled", True]
    assert steps["ready"] == ["ready", True] and steps["used"] is True
    assert steps["longest_tick_s"] < 0.5, "the timer waited"
    assert seen["other"].endswith("/python"), "a Python of the user's own goes before"


def test_the_preferences_reach_the_backend(seen: dict[str, Any]) -> None:
    command, folder = seen["serve"], seen["folder"]
    assert command[command.index("--memory-gb") + 1] == "3.5" and command[command.index("--device") + 1] == "cpu"
    assert command[command.index("--smplx") + 1] == f"{folder}/SMPLX_NEUTRAL.npz"
    assert command[command.index("--jobs") + 1] == f"{folder}/jobs"
    assert {models for _, models in seen["calls"]} == {f"{folder}/models"}


def test_doctor_answers_in_the_background(seen: dict[str, Any]) -> None:
    assert [row["name"] for row in seen["findings"]] == ["torch"]
    words = next(words for words, _ in seen["calls"] if words[0] == "doctor")
    assert "--json" in words and words[words.index("--jobs") + 1] == f"{seen['folder']}/jobs"


def test_models_are_listed_fetched_refused_and_cancelled(seen: dict[str, Any]) -> None:
    models = seen["models"]
    assert models["listed"] == ["sd15"] and models["failed"] == "no network; try again"
    assert models["text"] == "a.bin: 3 of 4 MB" and models["fetched"] == [["published"]]
    fetches = [words for words, _ in seen["calls"] if "fetch" in words]
    assert all(words[words.index("--accept") + 1] == "L" for words in fetches), "the licence that was shown"
    assert all("--offline" in words for words, _ in seen["calls"] if "list" in words), "listing needs no network"


def test_disabling_the_add_on_ends_every_child(seen: dict[str, Any]) -> None:
    assert seen["child_ended"] is True and seen["unregister_s"] < 5
