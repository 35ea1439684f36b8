"""The photo's light: found again where it was put, and taken off and on without loss."""

from __future__ import annotations

import numpy as np
import pytest

from backend.splats.light import DARKEST, Light, find_light, relit, to_display, to_linear, usual_light

TO_CAMERA = np.array([0.0, 0.1, 2.0])


def _scene(light: Light, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Normals, display colours, groups and weights of two garments seen from the front under a light."""
    rng = np.random.default_rng(seed)
    normals = rng.normal(size=(6000, 3))
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    groups = rng.integers(0, 2, len(normals))
    dyes = np.array([[0.5, 0.2, 0.1], [0.1, 0.15, 0.3]])[groups] * rng.lognormal(0, 0.1, (len(normals), 1))
    return normals, to_display(dyes * light.at(normals)[:, None]), groups, np.clip(normals[:, 2], 0, 1) ** 2


@pytest.mark.parametrize("direction", [(-0.8, 0.3, 0.5), (0.7, 0.4, 0.6), (0.0, 0.9, 0.4)])
def test_a_lamp_is_found_and_predicts_the_unseen_side(direction: tuple[float, float, float]) -> None:
    true = Light(np.array(direction) / np.linalg.norm(direction), 0.7)
    found = find_light(*_scene(true), TO_CAMERA)
    assert found.direction @ true.direction > np.cos(np.radians(25))
    sides = np.array([[1.0, 0, 0], [-1, 0, 0], [0, 0, -1], [0, 0, 1]])
    np.testing.assert_allclose(found.at(sides), true.at(sides), atol=0.15)


def test_mirrored_light_mirrored_fit() -> None:
    true = Light(np.array([-0.6, 0.3, 0.74]), 0.6)
    normals, rgb, groups, weights = _scene(true)
    flip = np.array([-1.0, 1, 1])
    a = find_light(normals, rgb, groups, weights, TO_CAMERA)
    b = find_light(normals * flip, rgb, groups, weights, TO_CAMERA)
    assert a.direction @ (b.direction * flip) > np.cos(np.radians(20))
    assert a.share == pytest.approx(b.share, abs=0.16)


def test_without_anything_seen_the_usual_light() -> None:
    normals, rgb, groups, weights = _scene(usual_light(TO_CAMERA))
    found = find_light(normals, rgb, groups, 0 * weights, TO_CAMERA)
    np.testing.assert_allclose(found.direction, usual_light(TO_CAMERA).direction)
    front, back = found.at(np.array([[0, 0, 1.0], [0, 0, -1.0]]))
    assert DARKEST <= back < front <= 1


def test_light_goes_off_and_on_again() -> None:
    rng = np.random.default_rng(1)
    rgb, factor = rng.uniform(0, 0.6, (200, 3)), rng.uniform(0.5, 1.0, 200)
    np.testing.assert_allclose(relit(relit(rgb, 1 / factor), factor), rgb, atol=1e-3)
    np.testing.assert_allclose(to_display(to_linear(rgb)), rgb, atol=1e-9)
