"""Splat files in and out of Blender by the operators: nothing is lost, everything is turned with its harmonics."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest

from blender_addon.shared.axes import axes_to_blender, rotate_cloud
from blender_addon.shared.cloud_edits import transform_cloud
from blender_addon.shared.formats import read_splats
from blender_addon.shared.formats.common import Axes
from blender_addon.shared.formats.ply import write_ply
from blender_addon.shared.gaussians import SH_REST_COUNTS, GaussianCloud
from tests.blender.interpreters import BLENDERS, find_blender

pytestmark = pytest.mark.blender

FIELDS = ("positions_m", "scales_m", "rotations_wxyz", "opacities", "sh_dc", "sh_rest")
FILES: tuple[tuple[Axes, int], ...] = (("y_up", 3), ("y_down", 2), ("z_up", 1), ("y_up", 0), ("y_down", 4))
COUNT = 9001
"""More than a block of the writer."""


def some_cloud(degree: int) -> GaussianCloud:
    rng = np.random.default_rng(degree)
    turns = rng.normal(size=(COUNT, 4))
    return GaussianCloud(
        rng.uniform(-1, 1, (COUNT, 3)), rng.uniform(0.01, 0.05, (COUNT, 3)),
        turns / np.linalg.norm(turns, axis=1, keepdims=True), rng.uniform(0.1, 0.9, COUNT), rng.normal(size=(COUNT, 3)),
        rng.normal(size=(COUNT, SH_REST_COUNTS[degree], 3)),
    )  # fmt: skip


def assert_same(seen: GaussianCloud, expected: GaussianCloud) -> None:
    for name in FIELDS:
        a, b = getattr(seen, name), getattr(expected, name)
        if name == "rotations_wxyz":
            a = a * np.sign(np.einsum("ij,ij->i", a, b))[:, None]
        np.testing.assert_allclose(a, b, atol=2e-5, err_msg=name)


@pytest.fixture(scope="module", params=BLENDERS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("clouds")
    for axes, degree in FILES:
        write_ply(made / f"in_{axes}_{degree}.ply", some_cloud(degree), axes=axes)
    script = Path(__file__).parent / "inside_clouds.py"
    command = [find_blender(request.param), str(script), str(made)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return made


def test_a_file_stands_upright_in_blender(folder: Path) -> None:
    for axes, degree in FILES:
        with np.load(folder / f"in_{axes}_{degree}.npz") as seen:
            assert_same(GaussianCloud(**dict(seen)), rotate_cloud(some_cloud(degree), axes_to_blender(axes)))


def test_export_is_the_way_back(folder: Path) -> None:
    for axes, degree in FILES:
        name = f"{axes}_{degree}.ply"
        assert_same(read_splats(folder / f"out_{name}").cloud, read_splats(folder / f"in_{name}").cloud)


def test_export_follows_the_object(folder: Path) -> None:
    """The object is turned, moved and twice as large: in Blender's frame, whatever the file's."""
    to_blender = np.eye(4)
    to_blender[:3, :3] = axes_to_blender("y_up")
    whole = to_blender.T @ np.load(folder / "place.npy") @ to_blender
    for axes, degree in FILES:
        name = f"{axes}_{degree}"
        moved = read_splats(folder / f"out_{name}_moved.ply").cloud
        assert_same(moved, transform_cloud(read_splats(folder / f"in_{name}.ply").cloud, whole))
