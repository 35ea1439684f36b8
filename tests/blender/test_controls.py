"""Learned controls from the bundle into Blender and back: the evaluated clouds against numpy, 4.2, 4.5 and 5.0."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backend.splats.deform import pose_avatar
from blender_addon.shared.avatar import Avatar, read_bundle, write_bundle
from blender_addon.shared.axes import BODY_TO_BLENDER
from blender_addon.shared.gaussians import GaussianCloud, wxyz_to_matrices
from blender_addon.shared.skeleton import JOINT_NAMES
from tests.blender.interpreters import BLENDERS, find_blender
from tests.blender.synthetic import SLIDERS, make_avatar, make_controls

pytestmark = pytest.mark.blender
HERE = Path(__file__).parent
NAMES = ("hair_length", "Skin tone.L", "bulk", "belly", "idle")
DEFAULTS = (0.25, 0.0, 0.0, 35.0, 0.0)
VALUES = (DEFAULTS, DEFAULTS, (2.0, 1.0, -1.5, 80.0, 0.0), (-1.0, 0.3, 2.0, 20.0, 1.0))


def run(blender: str, script: str, *arguments: object) -> dict[str, Any]:
    command = [find_blender(blender), str(HERE / script), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    answer = next(line for line in done.stdout.splitlines() if line.startswith("ANSWER "))
    return json.loads(answer.removeprefix("ANSWER "))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with controls of every channel, and cases.npz: poses and sliders."""
    folder = tmp_path_factory.mktemp("bundle")
    cloud, avatar = make_avatar(1500)
    # Opacities at the very ends have no finite logit.
    opacities = cloud.opacities.copy()
    opacities[:20], opacities[20:40] = 1.0, 0.0
    write_bundle(folder, replace(cloud, opacities=opacities), replace(avatar, controls=make_controls(avatar)))
    rng = np.random.default_rng(4)
    poses = rng.normal(0, 0.35, (len(VALUES), len(JOINT_NAMES), 3)) * np.array([0, 1, 0, 1])[:, None, None]
    np.savez(folder / "cases.npz", poses=poses, sliders=np.array(NAMES), values=np.array(VALUES))
    return folder


@pytest.fixture(scope="module", params=BLENDERS)
def tried(
    request: pytest.FixtureRequest, bundle: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path, dict[str, Any]]:
    blend = tmp_path_factory.mktemp("controls") / "controls.blend"
    return request.param, blend, run(request.param, "inside_controls.py", bundle, blend)


def expected(bundle: Path, case: int) -> GaussianCloud:
    cloud, avatar = read_bundle(bundle)
    cases = np.load(bundle / "cases.npz")
    sliders: dict[str, float] = dict(zip(NAMES, cases["values"][case].tolist(), strict=True))
    return pose_avatar(cloud, avatar, cases["poses"][case], actions={"jawOpen": 0.3} if case else {}, sliders=sliders)


def check(found: dict[str, np.ndarray], label: str, wanted: GaussianCloud) -> None:
    """The brief's bounds: 0.1 mm, 0.1 degrees, 1e-3."""
    values = {name: found[f"{label}:{name}"] for name in ("position", "scale", "rotation", "radiance:base")}
    np.testing.assert_allclose(values["position"], wanted.positions_m @ BODY_TO_BLENDER.T, atol=1e-4, err_msg=label)
    np.testing.assert_allclose(values["scale"], wanted.scales_m, rtol=1e-3, err_msg=label)
    between = np.swapaxes(BODY_TO_BLENDER @ wxyz_to_matrices(wanted.rotations_wxyz), 1, 2)
    between = between @ wxyz_to_matrices(values["rotation"])
    sine = np.linalg.norm(between - np.swapaxes(between, 1, 2), axis=(1, 2)) / np.sqrt(8)
    assert np.degrees(np.arctan2(sine, (np.trace(between, axis1=1, axis2=2) - 1) / 2)).max() < 0.1, label
    np.testing.assert_allclose(values["radiance:base"][:, :3], wanted.sh_dc, atol=1e-3, err_msg=label)
    np.testing.assert_allclose(values["radiance:base"][:, 3], wanted.opacities, atol=1e-3, err_msg=label)


def test_the_cases_tell_something(bundle: Path) -> None:
    rest, posed, slid = (expected(bundle, case) for case in range(3))
    cloud, avatar = read_bundle(bundle)
    np.testing.assert_allclose(rest.positions_m, cloud.positions_m, atol=1e-5, err_msg="the defaults are not the file")
    assert avatar.controls is not None and len(avatar.controls.followers) == 4
    plain = pose_avatar(cloud, replace(avatar, controls=None), np.load(bundle / "cases.npz")["poses"][1],
                        actions={"jawOpen": 0.3})  # fmt: skip
    assert np.abs(rest.positions_m - slid.positions_m).max() > 0.01
    assert np.abs(posed.positions_m - plain.positions_m).max() > 0.01
    assert np.abs(posed.sh_dc - plain.sh_dc).max() > 0.1
    assert np.abs(posed.opacities - plain.opacities).max() > 0.1
    assert np.abs(slid.scales_m / rest.scales_m - 1).max() > 0.3


def test_sliders_are_properties_with_ranges_that_undo(tried: tuple[str, Path, dict[str, Any]]) -> None:
    answer = tried[2]
    assert answer["groups"] == [
        ["Hair", ["hair_length", "idle"]],
        ["Skin", ["Skin tone.L", "Skin tone.R"]],
        ["Body", ["bulk", "belly"]],
    ]
    assert answer["ranges"] == {"hair_length": [-1, 2], "bulk": [-2, 2], "belly": [20, 80], "Skin tone.L": [0, 1]}
    assert answer["invalid"] == []
    assert answer["moved"] > 0.1
    assert answer["swapped"] == [0.0, 0.5]
    assert answer["cropped"] == 0.0
    assert answer["undone"] == 0.0 and answer["redone"] == 0.0 and answer["reset"] == 0.0


@pytest.mark.parametrize("way", ["open", "link"])
def test_the_saved_file_shows_what_numpy_says(bundle: Path, tried: tuple[str, Path, dict[str, Any]], way: str) -> None:
    blender, blend, _ = tried
    out = blend.with_name(f"{way}.npz")
    report = run(
        blender, "check_controls.py", blend, bundle, bundle / "cases.npz", out, *(["link"] if way == "link" else [])
    )
    assert report["addons"] == [] and report["python_drivers"] == [] and report["carried"] == []
    assert report["types"]["radiance:base"] in ("FLOAT_COLOR", "FLOAT4")
    if way == "link":
        assert report["overridden"] and report["kept"] == 0.5
    found = dict(np.load(out))
    for case in range(len(VALUES)):
        check(found, f"case{case}", expected(bundle, case))
    cloud, avatar = read_bundle(bundle)
    for frame, share in ((1, 0.5), (10, 1.0)):
        sliders = {name: value * share for name, value in SLIDERS.items()}
        check(found, f"frame{frame}", pose_avatar(cloud, avatar, np.zeros((55, 3)), sliders=sliders))


def test_a_mirrored_pose_has_its_own_coefficients(bundle: Path, tried: tuple[str, Path, dict[str, Any]]) -> None:
    _, blend, answer = tried
    cloud, avatar = read_bundle(bundle)
    pose = body_pose(answer["mirror"], avatar)
    names = list(JOINT_NAMES)
    assert np.linalg.norm(pose[names.index("right_elbow")]) > 0.1 > np.linalg.norm(pose[names.index("left_elbow")])
    wanted = pose_avatar(cloud, avatar, pose)
    found = np.load(blend.with_suffix(".mirror.npz"))
    np.testing.assert_allclose(found["positions"], wanted.positions_m @ BODY_TO_BLENDER.T, atol=1e-4)
    np.testing.assert_allclose(found["radiance"][:, :3], wanted.sh_dc, atol=1e-3)


def body_pose(seen: dict[str, Any], avatar: Avatar) -> np.ndarray:
    """[55, 3] axis-angle of bones' quaternions: R = A' B q B' A with the bone's rest axes B."""
    pose = np.zeros((len(avatar.parents), 3))
    for row, name in enumerate(JOINT_NAMES):
        rest = BODY_TO_BLENDER.T @ np.array(seen["rest"][name])
        turn = np.array(seen["turns"][name])
        turn /= np.linalg.norm(turn) * (1 if turn[0] >= 0 else -1)
        axis = rest @ turn[1:]
        length = np.linalg.norm(axis)
        pose[row] = axis * (2 * np.arctan2(length, turn[0]) / length if length > 1e-9 else 2.0)
    return pose
