"""Edits of clouds: the crop box shows what it will do, bound clouds stay bound, refusals change nothing."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from blender_addon.shared.formats.ply import read_ply
from tests.blender.interpreters import BLENDERS, find_blender
from tests.blender.test_clouds import assert_same

pytestmark = pytest.mark.blender


@pytest.fixture(scope="module", params=BLENDERS)
def edited(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("edit")
    command = [find_blender(request.param), str(Path(__file__).parent / "inside_edit.py"), str(folder)]
    environment = {**os.environ, "BLENDER_USER_RESOURCES": str(folder)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
    answer = next(line for line in done.stdout.splitlines() if line.startswith("ANSWER "))
    return folder, json.loads(answer.removeprefix("ANSWER "))


def test_the_box_shows_what_it_will_leave(edited: tuple[Path, dict[str, Any]]) -> None:
    answer = edited[1]["crop_box"]
    assert answer["box"] == ["EMPTY", "CUBE"] and answer["all"] == [500, 400], "a new box hides something"
    assert 20 < min(answer["inside"]) and answer["inside"] == answer["preview"]
    assert answer["other_side"] == [500 - answer["inside"][0], 400 - answer["inside"][1]]
    before, after = answer["modifiers"]
    assert before == ["Bind", "Crop Preview", "Display"] and after == ["Bind", "Display"]


def test_a_crop_keeps_the_rest_as_it_was_and_bound(edited: tuple[Path, dict[str, Any]]) -> None:
    answer = edited[1]["crop_box"]
    assert max(answer["errors"]) == 0.0
    assert answer["moves"] > 0.02, "what is left no longer follows the rig"
    assert answer["left"] == [0] * 8, "box, preview or old points are left behind"
    assert answer["one_step"] and answer["cancelled"] == [False, True]


def test_a_crop_that_makes_no_sense_changes_nothing(edited: tuple[Path, dict[str, Any]]) -> None:
    answer = edited[1]["crop_box"]
    assert "nothing of free would be left" in answer["nothing_left"]
    assert answer["still_there"] == answer["inside"][0]
    assert "box of free has been deleted" in answer["no_box"]


def test_clouds_of_different_degree_turn_and_size_become_one(edited: tuple[Path, dict[str, Any]]) -> None:
    folder, answer = edited[0], edited[1]["merge"]
    assert answer["objects"] == ["first", "first disc"] and answer["clouds"] == 1, "parts of the others stayed"
    assert answer["stands"] == 0.0 and answer["degree"] == 3
    apart, merged, applied = (read_ply(folder / f"{name}.ply").cloud for name in ("apart", "merged", "applied"))
    assert len(apart) == 1000
    assert_same(merged, apart)
    assert_same(applied, apart)
    assert answer["identity"] == 0.0


def test_bound_clouds_are_not_merged_and_not_moved(edited: tuple[Path, dict[str, Any]]) -> None:
    answer = edited[1]["merge"]
    assert "is bound to a rig" in answer["bound"] and "transform the rig instead" in answer["bound_transform"]
    assert answer["untouched"] == 0.0, "the free one was changed before the bound one was refused"
    assert "only one cloud" in answer["alone"]
    assert all(answer[name].count("\n") == 1 for name in ("bound", "bound_transform", "alone"))


def test_edits_of_an_avatar_keep_its_binding_and_the_artists_attributes(edited: tuple[Path, dict[str, Any]]) -> None:
    answer = edited[1]["bound"]
    assert 400 > answer["clean"] > answer["decimate"] == answer["colour"] == 100
    assert max(answer["moved"]) == 0.0 and answer["follows"] > 0.02
    assert len(answer["bind"]) == 7 and len(answer["attributes"]) == 5
    assert 1.2 <= answer["lowest"]


def test_none_and_one_gaussian(edited: tuple[Path, dict[str, Any]]) -> None:
    """Row 24 of the fault matrix."""
    folder, answer = edited[0], edited[1]["sizes"]
    assert "holds no Gaussians" in answer["none"] and answer["nothing"]
    assert answer["one"] == answer["still_one"] == 1
    # The file is written Y down, and what is put into Blender and out again is what was in it.
    assert_same(read_ply(folder / "one_out.ply").cloud, read_ply(folder / "one.ply").cloud)
    assert np.all([(folder / f"one_out{suffix}").is_file() for suffix in (".spz", ".glb")])


def test_every_format_may_be_dropped_on_the_view(edited: tuple[Path, dict[str, Any]]) -> None:
    splats = {".ply", ".splat", ".spz", ".glb", ".gltf", ".sog"}
    assert splats | {".bvh", ".npz", ".png", ".jpg"} <= set(edited[1]["sizes"]["dropped"])
