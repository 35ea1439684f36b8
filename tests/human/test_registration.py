"""One surface brought onto another: closed forms, and shapes whose way is known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from backend.human.registration import Points, Similarity, align, outward_normals, similarity_of, smooth_field


def shape(count: int, seed: int) -> Points:
    """A body with two unlike limbs, 1.7 m high."""
    rng = np.random.default_rng(seed)
    parts = [
        ((0, 0.9, 0), (0.16, 0.45, 0.1)),
        ((0.25, 0.6, 0.05), (0.06, 0.4, 0.06)),
        ((-0.1, 1.5, 0.1), (0.1, 0.2, 0.12)),
    ]
    places, normals = [], []
    for middle, radii in parts:
        unit = rng.normal(size=(count // 3, 3))
        unit /= np.linalg.norm(unit, axis=1, keepdims=True)
        across = unit / radii
        places.append(unit * radii + middle)
        normals.append(across / np.linalg.norm(across, axis=1, keepdims=True))
    points = np.concatenate(places)
    return Points(points, np.concatenate(normals), np.ones(len(points)))


def random_similarity(seed: int, degrees: float) -> Similarity:
    rng = np.random.default_rng(seed)
    axis = rng.normal(size=3)
    turn = Rotation.from_rotvec(np.radians(degrees) * axis / np.linalg.norm(axis)).as_matrix()
    return Similarity(float(rng.uniform(0.6, 1.6)), turn, rng.normal(size=3))


@pytest.mark.parametrize("seed", range(3))
def test_a_similarity_is_found_in_closed_form(seed: int) -> None:
    wanted, points = random_similarity(seed, 150), np.random.default_rng(seed).normal(size=(50, 3))
    found = similarity_of(points, wanted.places(points), np.random.default_rng(1).uniform(0.1, 1, 50))
    assert found.scale == pytest.approx(wanted.scale) and np.linalg.det(found.rotation) == pytest.approx(1)
    np.testing.assert_allclose(found.rotation, wanted.rotation, atol=1e-9)
    np.testing.assert_allclose(found.shift, wanted.shift, atol=1e-9)


def test_mirrored_points_are_not_reflected() -> None:
    points = np.random.default_rng(0).normal(size=(50, 3))
    assert np.linalg.det(similarity_of(points, points * [-1, 1, 1], np.ones(50)).rotation) == pytest.approx(1)


def test_one_after_the_other() -> None:
    a, b = random_similarity(1, 40), random_similarity(2, 70)
    points = np.random.default_rng(3).normal(size=(9, 3))
    np.testing.assert_allclose(a.after(b).places(points), a.places(b.places(points)), atol=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_surfaces_without_correspondences_are_aligned(seed: int) -> None:
    target, other = shape(3000, 0), shape(2400, 1)
    off = random_similarity(seed, 20)
    off = Similarity(1 + 0.3 * (off.scale - 1), off.rotation, 0.1 * off.shift)
    found, gap = align(off.moved(other), target, Similarity(1.0, np.eye(3), np.zeros(3)))
    whole = found.after(off)
    assert gap < 0.02
    assert whole.scale == pytest.approx(1, abs=0.03)
    np.testing.assert_allclose(whole.rotation, np.eye(3), atol=0.06)
    np.testing.assert_allclose(whole.places(other.places), other.places, atol=0.05)


def test_strays_do_not_pull() -> None:
    target, other = shape(3000, 0), shape(2400, 1)
    rng = np.random.default_rng(2)
    stray = rng.permutation(len(other))[:240]
    places = other.places.copy()
    places[stray] += rng.uniform(-1, 1, (240, 3))
    off = random_similarity(5, 12)
    off = Similarity(1.1, off.rotation, 0.1 * off.shift)
    found, _ = align(
        off.moved(Points(places, other.normals, other.weights)), target, Similarity(1.0, np.eye(3), np.zeros(3))
    )
    np.testing.assert_allclose(found.after(off).rotation, np.eye(3), atol=0.03)


def test_a_smooth_warp_is_undone_and_untrusted_parts_follow() -> None:
    target, other = shape(4500, 0), shape(4500, 1)
    bend = 0.05 * np.sin(2.5 * other.places[:, 1:2]) * [1.0, 0.0, 0.6]
    warped = Points(other.places + bend, other.normals, other.weights)
    field = smooth_field(warped, target, 0)
    left = np.linalg.norm(warped.places + field.at(warped.places) - other.places, axis=1)
    across = np.abs(((warped.places + field.at(warped.places) - other.places) * other.normals).sum(axis=1))
    assert across.mean() < 0.25 * np.abs((bend * other.normals).sum(axis=1)).mean()
    assert left.mean() < 0.6 * np.linalg.norm(bend, axis=1).mean()
    blind = Points(target.places, target.normals, (target.places[:, 1] < 1.3).astype(float))
    moves = smooth_field(warped, blind, 0).at(warped.places)
    high = other.places[:, 1] > 1.4
    assert np.linalg.norm(moves[high], axis=1).max() < 0.2, "it follows its neighbourhood"


def test_normals_look_outwards() -> None:
    body = shape(6000, 0)
    rows, normals = outward_normals(body.places, 0)
    agree = (normals * body.normals[rows]).sum(axis=1)
    assert (agree > 0.7).mean() > 0.95
