"""The add-on's render engine against the project's rasteriser: the same cameras, clouds, colours."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from backend.raster import Cameras, SplatTensors, rasterize
from blender_addon.shared.gaussians import GaussianCloud, wxyz_to_matrices
from blender_addon.shared.sh import sh_basis
from tests.blender.interpreters import BLENDERS, find_blender

pytestmark = pytest.mark.blender

FIELDS = ("positions_m", "scales_m", "rotations_wxyz", "opacities", "sh_dc", "sh_rest")
SIZE = (200, 240)


def display_premultiplied(linear: np.ndarray) -> np.ndarray:
    """Display sRGB premultiplied [..., 4] of scene linear premultiplied."""
    alpha = linear[..., 3:]
    colour = linear[..., :3] / np.maximum(alpha, 1e-6)
    colour = np.where(colour <= 0.0031308, colour * 12.92, 1.055 * np.clip(colour, 1e-9, None) ** (1 / 2.4) - 0.055)
    return np.concatenate([colour * alpha, alpha], axis=-1)


def colours_seen(cloud: GaussianCloud, eye: np.ndarray, rest_turns: np.ndarray | None = None) -> np.ndarray:
    """Colours [N, 3]; harmonics of splats that turned since rest are looked at from where they were then."""
    directions = cloud.positions_m - eye
    directions = directions / np.linalg.norm(directions, axis=1, keepdims=True)
    if rest_turns is not None:
        now, rest = wxyz_to_matrices(cloud.rotations_wxyz), wxyz_to_matrices(rest_turns)
        directions = np.einsum("nij,nkj,nk->ni", rest, now, directions)
    basis = sh_basis(directions.astype(np.float64), cloud.degree)
    coefficients = np.concatenate([cloud.sh_dc[:, None], cloud.sh_rest], axis=1)
    return np.maximum(np.einsum("nk,nkc->nc", basis, coefficients) + 0.5, 0)


def rasterised(
    clouds: list[GaussianCloud], rest_turns: np.ndarray | None, w2c: np.ndarray, intrinsics: np.ndarray
) -> np.ndarray:
    """[H, W, 4] display sRGB premultiplied; the first cloud is bound to a rig."""
    eye = -w2c[:3, :3].T @ w2c[:3, 3]
    colours = np.concatenate([colours_seen(clouds[0], eye, rest_turns), colours_seen(clouds[1], eye)])
    tensors = [np.concatenate([getattr(cloud, name) for cloud in clouds]) for name in FIELDS[:4]]
    means, scales, rotations, opacities = (torch.tensor(t, dtype=torch.float32) for t in tensors)
    with torch.no_grad():
        drawn = rasterize(
            SplatTensors(means, rotations, scales, opacities),
            Cameras(torch.tensor(w2c[None]), torch.tensor(intrinsics[None]), *SIZE),
            features=torch.tensor(colours, dtype=torch.float32),
        )
    assert drawn.features is not None and drawn.alpha is not None
    return torch.cat([drawn.features[0], drawn.alpha]).permute(1, 2, 0).numpy()


@pytest.fixture(scope="module", params=BLENDERS)
def scene(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    folder = tmp_path_factory.mktemp("engine")
    script = Path(__file__).parent / "inside_engine.py"
    command = [find_blender(request.param), str(script), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with np.load(folder / "scene.npz") as data:
        return dict(data)


def clouds_of(scene: dict[str, np.ndarray]) -> list[GaussianCloud]:
    figure, ball = (GaussianCloud(*[scene[f"{name}_{k}"] for name in FIELDS]) for k in range(2))
    return [replace(figure, sh_rest=scene["rest_harmonics"]), ball]


def test_three_cameras_agree_with_the_rasteriser(scene: dict[str, np.ndarray]) -> None:
    clouds = clouds_of(scene)
    for view in range(3):
        expected = rasterised(clouds, scene["rest_turns"], scene["w2c"][view], scene["intrinsics"][view])
        seen = display_premultiplied(scene["pictures"][view])
        covered = expected[..., 3] > 0.05
        assert covered.mean() > 0.15, "the figure hardly fills the frame"
        error = np.mean((seen[covered] - expected[covered]) ** 2)
        assert 10 * np.log10(1 / error) >= 40, f"view {view}"
        unturned = rasterised(clouds, None, scene["w2c"][view], scene["intrinsics"][view])
        assert 10 * np.log10(1 / np.mean((seen[covered] - unturned[covered]) ** 2)) < 40, "nothing had to turn"


def test_a_mesh_hides_what_lies_behind_it(scene: dict[str, np.ndarray]) -> None:
    whole, hidden = scene["pictures"][0], scene["hidden"]
    # The plate's edge at x = 0 is seen left of the middle: the camera looks slightly to the right.
    column = int(scene["intrinsics"][0][0, 2] - 0.1 / 2.6 * scene["intrinsics"][0][0, 0])
    assert whole[:, : column - 4, 3].max() > 0.9, "nothing was there to be hidden"
    assert hidden[:, : column - 4, 3].max() == 0
    np.testing.assert_allclose(hidden[:, column + 6 :], whole[:, column + 6 :], atol=1e-5)
