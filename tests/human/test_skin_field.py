"""Laws of the diffused skinning field."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch

from backend.human.model import load_default_body
from backend.human.skin_field import CENTRE, FAR, NEAR, FieldSettings, SkinField, diffuse
from blender_addon.shared.skeleton import JOINT_NAMES

SETTINGS = FieldSettings(resolution=48, steps=60)


@lru_cache(maxsize=1)
def rest() -> tuple[np.ndarray, np.ndarray]:
    body = load_default_body()
    return body.rest(np.zeros(20))[0], body.twist.skin_weights


@lru_cache(maxsize=2)
def field(steps: int = SETTINGS.steps) -> SkinField:
    return diffuse(*rest(), FieldSettings(resolution=48, steps=steps))


def test_weights_are_shares_everywhere() -> None:
    points = torch.as_tensor(np.random.default_rng(0).uniform(-2, 2, (500, 3)), dtype=torch.float32)
    weights = field().at(points)
    assert weights.min() >= 0
    torch.testing.assert_close(weights.sum(1), torch.ones(500), atol=1e-5, rtol=0)


def test_at_the_surface_the_field_is_the_surface() -> None:
    vertices, weights = rest()
    thick = np.isin(weights.argmax(1), [JOINT_NAMES.index(n) for n in ("spine2", "left_hip", "left_knee")])
    found = field().at(torch.as_tensor(vertices[thick], dtype=torch.float32)).numpy()
    error = np.abs(found - weights[thick][:, field().bones.numpy()]).max(1)
    assert np.median(error) < 0.06  # a cell is 4 cm wide


def test_fingers_and_face_are_left_to_the_surface() -> None:
    names = [JOINT_NAMES[bone] for bone in field().bones.tolist() if bone < len(JOINT_NAMES)]
    assert "left_wrist" in names and "head" in names and "jaw" not in names
    assert not any(name[:-1].endswith(("index", "thumb")) for name in names)
    vertices, weights = rest()
    finger = weights[:, JOINT_NAMES.index("left_index3")].argmax()
    at = field().at(torch.as_tensor(vertices[[finger]], dtype=torch.float32))[0]
    assert at[names.index("left_wrist")] > 0.9


def test_away_from_the_body_weights_change_smoothly() -> None:
    line = torch.zeros(200, 3)
    line[:, 0], line[:, 1], line[:, 2] = torch.linspace(-0.3, 0.3, 200), 0.55, 0.25  # across the knees, before them
    raw, smooth = (field(steps).at(line) for steps in (0, SETTINGS.steps))
    jumps = [torch.diff(weights, dim=0).abs().amax() for weights in (raw, smooth)]
    assert jumps[1] < 0.35 * jumps[0]


def test_a_gaussian_asks_at_thirteen_points() -> None:
    points, scales = torch.tensor([[0.1, 0.9, 0.1], [0.3, 1.2, 0.0]]), torch.tensor([0.03, 0.05])
    expected = CENTRE * field().at(points)
    for reach, share in ((1, NEAR), (2, FAR)):
        for axis in range(3):
            for sign in (-1, 1):
                moved = points.clone()
                moved[:, axis] += sign * reach * scales
                expected = expected + share * field().at(moved)
    expected = expected / (CENTRE + 6 * NEAR + 6 * FAR)
    torch.testing.assert_close(field().around(points, scales), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(field().around(points, torch.zeros(2)), field().at(points), atol=1e-5, rtol=0)
