"""Patterns continued round a cylinder of known colours."""

from __future__ import annotations

import numpy as np

from backend.splats.pattern import continued, unrolled, varies_everywhere


def _cylinder() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points [N, 3] on an upright cylinder of radius 0.15 m, their angles and which of them are seen in front."""
    angle, y = (
        g.ravel() for g in np.meshgrid(np.linspace(-np.pi, np.pi, 140, endpoint=False), np.arange(0, 0.6, 0.006))
    )
    points = np.stack([0.15 * np.sin(angle), y, 0.15 * np.cos(angle)], axis=1)
    return points, angle, np.abs(angle) < 1.2


def test_angles_are_those_of_the_cylinder() -> None:
    points, angle, _ = _cylinder()
    found, radius = unrolled(points, points[:, 1], points[:, 0], np.zeros(len(points), int))
    np.testing.assert_allclose(found, angle, atol=0.03)
    np.testing.assert_allclose(radius, 0.15, atol=0.01)


def test_stripes_go_round_in_phase_at_the_wanted_contrast() -> None:
    points, angle, seen = _cylinder()
    stripe = np.where(np.floor(points[:, 1] / 0.03) % 2 == 0, 80.0, 30.0)
    photo = np.where(seen[:, None], np.stack([stripe, 0 * stripe, 0 * stripe], axis=1), -1000.0)
    radius = np.full(len(points), 0.15)
    for kept in (1.0, 0.5):
        made = continued(photo, points[:, 1], angle, radius, np.flatnonzero(seen), np.flatnonzero(~seen), kept)
        inner = np.abs(points[~seen, 1] - 0.3) < 0.2
        middle, swing = 55.0, 25.0 * kept
        sign = np.where(stripe[~seen] > 55, 1, -1)
        error = np.abs(made[inner, 0] - (middle + sign * swing)[inner])
        assert np.median(error) < 3
        assert error.max() < 60 * kept


def test_both_ends_meet_behind() -> None:
    points, angle, seen = _cylinder()
    photo = np.stack([50 + 20 * angle, 0 * angle, 0 * angle], axis=1)
    made = continued(
        photo, points[:, 1], angle, np.full(len(points), 0.15), np.flatnonzero(seen), np.arange(len(points)), 1.0
    )
    left, right = (made[np.abs(angle - a) < 0.1, 0].mean() for a in (-3.08, 3.04))
    assert abs(left - right) < 5  # both are the middle of the front, which differs from its ends by 48
    border = (made[np.abs(angle - a) < 0.1, 0].mean() for a in (-1.2, 1.2))
    assert abs(np.subtract(*border)) > 35


def test_dots_vary_everywhere_and_a_badge_does_not() -> None:
    points, angle, seen = _cylinder()
    radius, source = np.full(len(points), 0.15), np.flatnonzero(seen)
    across = 0.15 * angle
    dots = (np.hypot((across % 0.05) - 0.025, (points[:, 1] % 0.05) - 0.025) < 0.013).astype(float)
    badge = ((np.abs(across) < 0.05) & (np.abs(points[:, 1] - 0.4) < 0.05)).astype(float)
    for pattern, expected in ((dots, True), (badge, False)):
        photo = np.array([50.0, -20, -10]) + pattern[:, None] * np.array([40.0, 20, 15])
        assert varies_everywhere(photo, points[:, 1], angle, radius, source) is expected
