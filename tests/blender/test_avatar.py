"""What an imported avatar is in Blender: cloud, rig, photo pose and camera, display, operator."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from blender_addon.motion.poses import posed_joints
from blender_addon.shared.gaussians import wxyz_to_matrices
from blender_addon.shared.skeleton import BONE_NAMES, FACIAL_ACTIONS, JOINT_NAMES, PARENTS, axis_angle_to_matrices
from tests.blender.interpreters import BLENDERS, find_blender
from tests.blender.synthetic import make_avatar

pytestmark = pytest.mark.blender


def ask(question: str, folder: Path, blender: str = "this") -> dict[str, Any]:
    script = Path(__file__).parent / "inside_blender.py"
    command = [find_blender(blender), str(script), question, str(folder)]
    # The user's own settings, jobs and extensions are none of a test's business.
    environment = os.environ | {"BLENDER_USER_RESOURCES": str(folder)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    answer = next(line for line in done.stdout.splitlines() if line.startswith("ANSWER "))
    return json.loads(answer.removeprefix("ANSWER "))


def test_a_record_survives_the_point_cloud_bit_for_bit(tmp_path: Path) -> None:
    answer = ask("round_trip", tmp_path)
    assert answer["object"] == "POINTCLOUD"
    assert all(all(fields.values()) for fields in answer["equal"].values()), answer["equal"]
    expected = {"position": "FLOAT_VECTOR", "scale": "FLOAT_VECTOR", "rotation": "QUATERNION"}
    expected |= {"radiance:base": "FLOAT_COLOR"} | {f"radiance:sh_{k}": "FLOAT_VECTOR" for k in range(24)}
    assert expected.items() <= answer["types"].items()
    assert answer["helpers"] == 0, "the conversion left meshes or node groups behind"


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return ask("avatar", tmp_path_factory.mktemp("avatar"))


def test_the_photo_pose_lies_under_the_photo_camera(imported: dict[str, Any]) -> None:
    _, avatar = make_avatar(2000)
    joints = posed_joints(avatar.joints_m.astype(float), axis_angle_to_matrices(avatar.photo_pose))
    joints = joints + avatar.photo_translation_m
    camera = joints @ avatar.photo_w2c[:3, :3].T + avatar.photo_w2c[:3, 3]
    fx, fy, cx, cy = avatar.photo_intrinsics_px
    pixels = camera[:, :2] / camera[:, 2:] * [fx, fy] + [cx, cy]
    assert np.ptp(pixels[:, 1]) > 300, "the figure is hardly in view"
    np.testing.assert_allclose(imported["pixels"], pixels, atol=0.05)
    assert imported["camera_y"] < -2, "the camera does not stand in front of the figure"
    np.testing.assert_allclose(imported["pelvis"][:2], 0, atol=1e-5)


def test_the_skeleton_is_smplx(imported: dict[str, Any]) -> None:
    assert imported["smplx"] == list(JOINT_NAMES)
    assert imported["parents"] == ["" if p < 0 else BONE_NAMES[p] for p in PARENTS]
    twists = {f"{bone}_twist.{side}" for bone in ("forearm", "upper_arm") for side in "LR"}
    assert set(imported["deform"]) == set(BONE_NAMES) | twists


def test_the_face_of_the_photo_is_on_the_proxy(imported: dict[str, Any]) -> None:
    _, avatar = make_avatar(2000)
    wanted = dict(zip(FACIAL_ACTIONS, avatar.photo_actions, strict=True)) | {"photo": 1.0}
    assert set(imported["face"]) == set(wanted)
    for name, value in wanted.items():
        assert imported["face"][name] == pytest.approx(float(value), abs=1e-5), name


def test_scene_contents(imported: dict[str, Any]) -> None:
    assert imported["collection"] == "Effigy tester" and imported["active"] == "tester"
    assert imported["actions"] == ["Photo pose", "T-pose", "Walk"] and imported["action"] == "Photo pose"
    assert imported["proxy_seen"] == [False, False] and imported["libraries"] == 0


def test_solid_view_gets_the_colours(imported: dict[str, Any]) -> None:
    cloud, _ = make_avatar(2000)
    display = cloud.colours.astype(float)
    linear = np.where(display <= 0.04045, display / 12.92, ((display + 0.055) / 1.055) ** 2.4)
    np.testing.assert_allclose(imported["disc_colours"], linear, atol=1e-4)


def test_operator(tmp_path: Path) -> None:
    answer = ask("operator", tmp_path)
    assert "gaussians.ply is missing" in answer["refused"] and answer["left"] == 0
    assert answer["result"] == ["FINISHED"] and answer["second"] == ["FINISHED"]
    parts = ("", " photo camera", " proxy", " splats", " splats disc")
    shapes = [name for name in answer["names"] if name.startswith("WGT-")]
    assert sorted({*answer["names"]} - {*shapes}) == [f"someone{part}" for part in parts]
    assert answer["count"] == 2 * len(parts) + len(shapes), "a second import does not stand beside the first"
    assert not answer["registered"]


def test_cycles_draws_the_gaussian(tmp_path: Path) -> None:
    """Alpha is the Gaussian's projection, exactly: opacity * exp(-d2 / 2) with the covariance seen from above."""
    pixels = np.array(ask("falloff", tmp_path)["pixels"])
    turn = wxyz_to_matrices(np.array([0.8, 0.2, -0.4, 0.4]))
    covariance = (turn @ np.diag(np.array([0.05, 0.12, 0.2]) ** 2) @ turn.T)[:2, :2]
    size = len(pixels)
    place = (np.arange(size) + 0.5) / size - 0.5
    point = np.stack(np.meshgrid(place, place, indexing="xy"), axis=-1)
    d2 = np.einsum("yxi,ij,yxj->yx", point, np.linalg.inv(covariance), point)
    alpha = np.where(d2 < 9, 0.8 * np.exp(-d2 / 2), np.nan)  # the ellipsoid ends at three deviations or a bit further
    inside = np.isfinite(alpha)
    assert np.abs(pixels[..., 3] - alpha)[inside].max() < 0.03
    assert np.abs(pixels[..., 3] - alpha)[inside].mean() < 0.004
    assert pixels[d2 > 25, 3].max() < 1e-3
    centre = pixels[size // 2, size // 2]
    display = np.array([0.9, 0.4, 0.1])
    linear = np.where(display <= 0.04045, display / 12.92, ((display + 0.055) / 1.055) ** 2.4)
    np.testing.assert_allclose(centre[:3] / centre[3], linear, atol=2e-3)


def test_motion_from_a_file_to_the_rig_and_back(tmp_path: Path) -> None:
    answer = ask("motion", tmp_path)
    assert answer["finished"] == [True] * 4 and answer["frames"] == 125
    played = np.array(answer["played"])
    assert np.abs(played[1] - played[0]).max() > 0.2, "nothing moves"
    # A roll of the hands apart, a motion that goes through a file, or is copied from another rig, is the same motion.
    body = slice(0, 22)
    # The floor is found anew from the heights of the feet, to a centimetre.
    np.testing.assert_allclose(np.array(answer["again"])[:, body], played[:, body], atol=1e-2)
    np.testing.assert_allclose(np.array(answer["copied"])[:, body], played[:, body], atol=1e-2)
    assert "bad.bvh" in answer["refused"] and answer["kept"]


@pytest.mark.parametrize("blender", BLENDERS)
def test_splat_files_in_edited_and_out_again(tmp_path: Path, blender: str) -> None:
    answer = ask("splat_files", tmp_path, blender)
    assert all(answer["finished"]) and len(answer["finished"]) == 11
    assert answer["dropped"] == 1, "the floater stayed, or more than it went"
    for suffix, most in ((".ply", 1e-6), (".spz", 3e-4), (".glb", 1e-6), (".splat", 1e-6)):
        assert answer[f"error{suffix}"] <= most, suffix
    assert answer["few"][0] <= 100 and answer["few"][1] == 1
    assert answer["lowest_x"] >= 0 and answer["applied"] < 1e-5 and answer["grey"] < 1e-5
    assert answer["faintest"] >= 0.5 and 1 <= answer["left"] <= 50 and answer["display"] == ["Display"]
    assert answer["still_bound"] < 1e-6, "what is left no longer follows the rig"
    assert "broken.spz" in answer["refused"]


@pytest.mark.parametrize("blender", BLENDERS)
def test_a_finished_job_arrives_and_a_damaged_one_is_said(tmp_path: Path, blender: str) -> None:
    answer = ask("arrival", tmp_path, blender)
    assert answer["ticks"] and not answer["ticks_after"], "the timer outlives the add-on, or never ran"
    whole, damaged = answer["whole"], answer["damaged"]
    assert whole["rigs"] == ["holiday photo"] and whole["problem"] == "" and whole["kept"]
    assert damaged["rigs"] == whole["rigs"], "half of a damaged result is in the scene"
    assert "result.json" in damaged["problem"] and "Traceback" not in damaged["problem"]
    assert whole["waiting"] == damaged["waiting"] == 0 and damaged["again"] is not None, "the queue has stopped"
    assert answer["made_by"] == "photo only" and answer["request"][0] == "body"
    assert answer["request"][2].endswith("input.png")


@pytest.mark.parametrize("blender", BLENDERS)
def test_a_painted_picture_stays_the_artists(tmp_path: Path, blender: str) -> None:
    answer = ask("painted_photo", tmp_path, blender)
    assert answer["untouched"] == answer["original"], "a picture on disk is used as it is"
    assert answer["written"] != answer["original"] and answer["red"] > 0.9
    assert answer["unsaved"] and answer["path"] == answer["original"]
