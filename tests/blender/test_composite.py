"""Splats laid over a Cycles render by one operator: what is in front is seen."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest

from tests.blender.interpreters import BLENDERS, find_blender

pytestmark = pytest.mark.blender

RED, GREEN, BLUE = (0.8, 0.05, 0.05), (0.05, 0.8, 0.05), (0.05, 0.05, 0.8)


@pytest.fixture(scope="module", params=BLENDERS)
def pictures(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    folder = tmp_path_factory.mktemp("composite")
    script = Path(__file__).parent / "inside_composite.py"
    command = [find_blender(request.param), str(script), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    with np.load(folder / "pictures.npz") as data:
        return dict(data)


def test_each_part_of_the_picture_shows_what_is_nearest(pictures: dict[str, np.ndarray]) -> None:
    """A red plate in front of the left half, a green ball of splats in the middle, a blue plate behind."""
    seen = pictures["first"][..., :3]
    height, width = seen.shape[:2]
    middle = height // 2
    np.testing.assert_allclose(seen[middle, width // 2 - 6], RED, atol=0.02)
    np.testing.assert_allclose(seen[middle, width // 2 + 6], GREEN, atol=0.02)
    np.testing.assert_allclose(seen[middle, -3], BLUE, atol=0.02)


def test_the_splats_follow_the_frame(pictures: dict[str, np.ndarray]) -> None:
    """At the second frame the ball is one metre higher, a quarter of the frame's width."""
    seen = pictures["second"][..., :3]
    height, width = seen.shape[:2]
    np.testing.assert_allclose(seen[height // 2, width // 2 + 6], BLUE, atol=0.02)
    metre = width * 50 / 36 / 4
    np.testing.assert_allclose(seen[int(height / 2 - metre), width // 2 + 6], GREEN, atol=0.02)


def test_running_it_again_leaves_one_scene_of_splats(pictures: dict[str, np.ndarray]) -> None:
    assert pictures["scenes"] == 2
