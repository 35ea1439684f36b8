"""The rig's controls: IK and its switch, finger curls, gaze, face, mirroring; in Blender 4.2, 4.5 and 5.0."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from blender_addon.shared.skeleton import FACIAL_ACTIONS
from tests.blender.interpreters import BLENDERS, find_blender

pytestmark = pytest.mark.blender


def run(blender: str, script: str, *arguments: str) -> dict[str, Any]:
    command = [find_blender(blender), str(Path(__file__).parent / script), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    answer = next(line for line in done.stdout.splitlines() if line.startswith("ANSWER "))
    return json.loads(answer.removeprefix("ANSWER "))


@pytest.fixture(scope="module", params=BLENDERS)
def tried(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("rig")
    return request.param, folder, run(request.param, "inside_rig.py", str(folder))


def test_ik_reaches_targets_and_bends_towards_the_pole(tried: tuple[str, Path, dict[str, Any]]) -> None:
    answer = tried[2]["reach"]
    assert answer["missed_m"] < 1e-3
    assert answer["towards_pole"] > 0.99
    assert answer["jump_m"] < 1e-3 and answer["jump_deg"] < 0.5, "controls at rest do not show the rest pose"


def test_snapping_keeps_the_visible_pose(tried: tuple[str, Path, dict[str, Any]]) -> None:
    for motion, (ik_m, ik_deg, fk_m, fk_deg, unseen_m) in tried[2]["snap"].items():
        assert max(ik_m, fk_m) < 1e-3 and max(ik_deg, fk_deg) < 0.5, motion
        assert unseen_m < 1e-5, "the bones' own channels show through IK"
    frames = tried[2]["frames"]
    assert frames["error_m"] < 1e-3 and frames["switch"] == 1.0 and frames["moved_m"] > 0.05
    assert frames["switches"] == [1.0, 0.0] and frames["again_m"] < 1e-3


def test_curls_bend_towards_the_palm_and_add_to_keys(tried: tuple[str, Path, dict[str, Any]]) -> None:
    answer = tried[2]["curl"]
    tips = {value: {name: np.array(p) for name, p in named.items()} for value, named in answer["tips"].items()}
    for name, straight in tips["0.0"].items():
        right = name.endswith(".R")
        mirrored = tips["1.0"][name.replace(".R", ".L") if right else name] * ([-1, 1, 1] if right else [1, 1, 1])
        np.testing.assert_allclose(tips["1.0"][name], mirrored, atol=1e-5)
        assert np.linalg.norm(tips["1.0"][name] - straight) > 0.04
        if not name.startswith("thumb"):
            # Palms face down in the T-pose.
            assert tips["0.5"][name][2] < straight[2] - 0.02 and tips["-0.2"][name][2] > straight[2] + 0.005
    assert answer["added_deg"] == pytest.approx(0.5 * 95.0, abs=0.1)


def test_flipped_paste_mirrors_body_fingers_and_ik(tried: tuple[str, Path, dict[str, Any]]) -> None:
    for kind, answer in tried[2]["mirror"].items():
        assert answer["lopsided_m"] > 0.1, "the pose was symmetric, so its mirror image says nothing"
        assert answer["error_m"] < 1e-3, kind
        assert answer["curls"] == [0.0, pytest.approx(0.9)]


def test_the_mirror_knows_switches_and_the_face(tried: tuple[str, Path, dict[str, Any]]) -> None:
    answer = tried[2]["mirror_all"]
    assert answer["lopsided_m"] > 0.1 and answer["error_m"] < 1e-3
    on = {"ik_arm.R": 1.0, "eyeBlinkRight": pytest.approx(0.7), "jawLeft": pytest.approx(0.4)}
    assert answer["values"] == {name: on.get(name, 0.0) for name in answer["values"]}
    assert answer["curls"] == [pytest.approx(0.8), 0.0]
    assert answer["keyed"], "auto keying was on"
    assert answer["face_only"] == [pytest.approx(0.7), 1.0], "the face alone was to change"


def test_eyes_look_at_the_target(tried: tuple[str, Path, dict[str, Any]]) -> None:
    assert tried[2]["look"]["0.0"] > 5.0 and tried[2]["look"]["1.0"] < 0.1


def test_face_is_reset_by_region(tried: tuple[str, Path, dict[str, Any]]) -> None:
    answer = tried[2]["face"]
    jaw = sum(name.startswith("jaw") for name in FACIAL_ACTIONS)
    assert answer["after_jaw"] == pytest.approx(0.5 * (len(FACIAL_ACTIONS) - jaw)) and answer["after_all"] == 0


def test_keyed_switches_play_without_the_addon(tried: tuple[str, Path, dict[str, Any]]) -> None:
    blender, folder, answer = tried
    wanted = answer["file"]
    played = run(blender, "check_rig.py", str(folder / "rig.blend"))
    assert played["addons"] == [] and len(played["shapes"]) == 4
    np.testing.assert_allclose(played["10"]["hand.L"], wanted["goal"], atol=1e-3)
    assert np.linalg.norm(np.subtract(played["1"]["hand.L"], wanted["goal"])) > 0.2
    for frame in ("1", "10"):
        for bone, place in wanted[frame].items():
            np.testing.assert_allclose(played[frame][bone], place, atol=1e-4)
