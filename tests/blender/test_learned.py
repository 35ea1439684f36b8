"""A learned avatar in Blender: an AMASS-layout file and a BVH file drive it, and its controls follow live."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from backend.splats.controls import control_weights
from backend.splats.deform import pose_avatar
from blender_addon.shared.avatar import read_bundle
from blender_addon.shared.axes import BODY_TO_BLENDER
from blender_addon.shared.skeleton import JOINT_NAMES
from tests.blender.interpreters import find_blender
from tests.methods.learned import random_bundle

pytestmark = pytest.mark.blender
HERE = Path(__file__).parent
BVH = HERE.parent / "motion" / "data" / "cmu1_jumping_jacks.bvh"


def write_amass(path: Path) -> None:
    """Three seconds of bending and reaching as AMASS stores them: 52 joints, Z up, 60 frames a second."""
    times = np.linspace(0, 1, 180)
    poses = np.zeros((180, 52, 3))
    poses[:, 0, 0] = np.pi / 2
    for joint, axis, angle in (
        ("left_shoulder", 2, -1.1), ("right_shoulder", 2, 0.6), ("left_elbow", 1, -1.3), ("left_hip", 0, -0.9),
        ("left_knee", 0, 1.0), ("spine2", 0, 0.4),
    ):  # fmt: skip
        poses[:, JOINT_NAMES.index(joint), axis] = angle * np.sin(np.pi * times)
    trans = np.tile([0.0, 0.0, 0.95], (180, 1))
    np.savez(path, poses=poses.reshape(180, -1), trans=trans, mocap_framerate=np.array(60.0), betas=np.zeros(16))


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, np.ndarray]]:
    folder = tmp_path_factory.mktemp("learned")
    random_bundle(folder / "bundle")
    write_amass(folder / "reach.npz")
    command = [find_blender("this"), str(HERE / "inside_learned.py"), str(folder / "bundle"), str(folder / "out.npz")]
    done = subprocess.run(
        [*command, str(folder / "reach.npz"), str(BVH)], capture_output=True, text=True, check=False
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    with np.load(folder / "out.npz") as file:
        return folder / "bundle", dict(file)


@pytest.mark.parametrize("name", ["reach", BVH.stem])
def test_a_motion_file_drives_the_avatar_and_its_controls(
    name: str, played: tuple[Path, dict[str, np.ndarray]]
) -> None:
    bundle, found = played
    cloud, avatar = read_bundle(bundle)
    assert avatar.controls is not None and avatar.controls.is_pose.all()
    weights, moved = [], []
    for position, pose, shift in zip(
        *(found[f"{name}:{part}"] for part in ("position", "pose", "translation")), strict=True
    ):
        wanted = pose_avatar(cloud, avatar, pose, shift).positions_m
        np.testing.assert_allclose(position, wanted @ BODY_TO_BLENDER.T, atol=2e-4)
        bare = pose_avatar(cloud, replace(avatar, controls=None), pose, shift).positions_m
        moved.append(np.linalg.norm(wanted - bare, axis=1).max())
        weights.append(control_weights(avatar, pose))
    assert np.ptp(np.array(weights), axis=0).max() > 0.05, "the controls do not follow the pose"
    assert max(moved) > 2e-3
