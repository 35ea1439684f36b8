"""From the demo's photograph to the .blend, as a stranger runs it: the real method, the real files, three Blenders."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from backend.splats.deform import pose_avatar
from blender_addon.shared.avatar import read_bundle, read_result
from blender_addon.shared.skeleton import JOINT_NAMES
from scripts.quality_figures import BundleAvatar
from scripts.quality_sheets import score_portrait
from tests.blender.interpreters import BLENDERS, ROOT, find_blender

pytestmark = [pytest.mark.blender, pytest.mark.slow]

PORTRAIT = ROOT / "scripts" / "data" / "collins.png"


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished `scripts/batch.py` run with walk frames."""
    folder = tmp_path_factory.mktemp("job") / "avatar"
    command = [sys.executable, str(ROOT / "scripts" / "batch.py"), "--method", "body", "--input", str(PORTRAIT)]
    command += ["--output", str(folder), "--motion", "walk", "--render", "--set", "preset=fast"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    for stage in ("Find the person", "Fit the body", "Fit the head", "Dress the body", "Match the photo"):
        assert stage in done.stdout, f"no progress shown for {stage}"
    return folder


def test_everything_is_there_and_says_what_made_it(job: Path) -> None:
    result = read_result(job)
    assert result["method"] == "body"
    assert any("photo only" in str(line) for line in result["generators"])  # type: ignore[union-attr]
    assert json.loads((job / "summary.json").read_text())["items"][0]["code"] == 0
    assert Image.open(job / "preview.png").size[0] > 1000
    frames = sorted((job / "walk").glob("*.png"))
    assert len(frames) >= 20
    first, middle = (np.asarray(Image.open(f).convert("RGB"), int) for f in (frames[0], frames[len(frames) // 2]))
    assert (np.abs(first - middle).max(axis=2) > 40).mean() > 0.01, "the walk does not move"


def test_the_avatar_matches_its_photo_and_is_whole_from_every_side(job: Path) -> None:
    scores = score_portrait(PORTRAIT, BundleAvatar(job), None)
    assert scores.alpha_iou >= 0.97
    assert scores.psnr_db >= 26  # the preset `fast`; `balanced` reaches 28
    assert max(scores.holes) <= 0.005
    assert set(scores.components) == {1}
    assert scores.cloud_components == 1


def test_no_held_helmet_sticks_to_the_arm(job: Path) -> None:
    cloud, avatar = read_bundle(job)
    for side, sign in (("left", 1.0), ("right", -1.0)):
        elbow, wrist = (sign * avatar.joints_m[JOINT_NAMES.index(f"{side}_{part}")][0] for part in ("elbow", "wrist"))
        reach = cloud.positions_m[:, 0] * sign
        on_forearm = (reach > elbow + 0.05) & (reach < wrist) & (cloud.positions_m[:, 1] > 1.0)
        assert on_forearm.sum() > 300
        black = cloud.colours[on_forearm].max(axis=1) < 0.25
        assert black.mean() < 0.1, f"the {side} sleeve is black; the suit is orange"


def test_the_face_moves_and_the_rest_stays(job: Path) -> None:
    cloud, avatar = read_bundle(job)
    rest = pose_avatar(cloud, avatar, np.zeros((55, 3)))
    on_face = cloud.positions_m[:, 1] > avatar.joints_m[12, 1] - 0.03
    for action in ("jawOpen", "mouthSmileLeft", "eyeBlinkLeft", "eyeLookOutLeft"):
        moved = pose_avatar(cloud, avatar, np.zeros((55, 3)), actions={action: 1.0})
        distance = np.linalg.norm(moved.positions_m - rest.positions_m, axis=1)
        assert distance[on_face].max() > 0.003, action
        assert distance[~on_face].max() < 0.002, action
        # A tear shows as neighbours that part by more than the action moves anything.
        assert distance.max() < 0.06, action


@pytest.mark.parametrize("blender", BLENDERS)
def test_the_saved_file_deforms_in_every_blender_without_the_addon(job: Path, blender: str) -> None:
    cloud, _ = read_bundle(job)
    values = {name: getattr(cloud, name) for name in ("positions_m", "scales_m", "rotations_wxyz")}
    np.savez(job.parent / "cloud.npz", **values)
    script = ROOT / "tests" / "blender" / "check_deform.py"
    files = [str(job / "avatar.blend"), str(job), str(job.parent / "cloud.npz")]
    done = subprocess.run(
        [find_blender(blender), "-I", str(script), *files], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    line = next(line for line in done.stdout.splitlines() if line.startswith("REPORT "))
    report = json.loads(line.removeprefix("REPORT "))
    for label in ("rest", "posed"):
        assert report[label]["position_m"] < 1e-4, report
        assert report[label]["rotation_deg"] < 0.1, report
        assert report[label]["collapsed"] < 1e-3, report
