"""A saved avatar in the Blenders 4.2, 4.5 and 5.0, without the add-on."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from blender_addon.shared.avatar import write_bundle
from tests.blender.interpreters import BLENDERS, ROOT, find_blender
from tests.blender.synthetic import make_avatar as make_tubes
from tests.splats.avatars import make_avatar as make_body

pytestmark = pytest.mark.blender

BUILD = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from blender_addon.operators.build_blend import build_scene, save_blend
build_scene(Path(sys.argv[2]), "PHOTO")
save_blend(Path(sys.argv[2]) / "avatar.blend")
"""


@pytest.fixture(scope="module", params=["tubes", "body"])
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle, its avatar.blend saved by this Blender, and the record's values."""
    folder = tmp_path_factory.mktemp(request.param)
    cloud, avatar = make_tubes(3000) if request.param == "tubes" else make_body(3000)
    write_bundle(folder, cloud, avatar)
    np.savez(
        folder / "cloud.npz",
        positions_m=cloud.positions_m, scales_m=cloud.scales_m, rotations_wxyz=cloud.rotations_wxyz,
    )  # fmt: skip
    run([sys.executable, "-c", BUILD, str(ROOT), str(folder)])
    return folder


def run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("blender", BLENDERS)
def test_the_file_deforms_without_the_addon(saved: Path, blender: str) -> None:
    script = ROOT / "tests" / "blender" / "check_deform.py"
    files = [str(saved / "avatar.blend"), str(saved), str(saved / "cloud.npz")]
    out = run([find_blender(blender), "-I", str(script), *files])
    report = json.loads(next(line for line in out.splitlines() if line.startswith("REPORT ")).removeprefix("REPORT "))
    assert report["python_drivers"] == [] and report["addons"] == [] and report["texts"] == 0
    assert report["rest"]["moved_m"] < 2e-6, "the rest pose is not the bundle's cloud"
    for label in ("rest", "posed"):
        assert report[label]["position_m"] < 1e-4, report
        assert report[label]["rotation_deg"] < 0.1, report
        assert report[label]["collapsed"] < 1e-3, report
        assert report[label]["scale_relative"] < 1e-3, report
    assert report["moved_m"] > 0.5, "the pose moved nothing, so the comparison says nothing"
    assert report["walk"]["frames"] >= 20 and report["walk"]["half_cycle_m"] > 0.2
    assert report["walk"]["whole_cycle_m"] < 1e-4, "the walk does not close"
