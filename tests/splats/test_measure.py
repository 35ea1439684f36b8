"""The figures that judge an avatar, on shapes whose answer is known."""

import numpy as np
import pytest

from backend.raster.cameras import orbit_camera, orbit_cameras
from backend.splats import measure
from backend.splats.bound import PosedSplats


def ball(centre: tuple[float, float, float] = (0, 1, 0), radius: float = 0.3, count: int = 4000) -> PosedSplats:
    """An evenly covered opaque sphere (Fibonacci lattice)."""
    index = np.arange(count) + 0.5
    height, turn = 1 - 2 * index / count, index * np.pi * (1 + 5**0.5)
    width = np.sqrt(1 - height**2)
    points = radius * np.stack([width * np.cos(turn), height, width * np.sin(turn)], 1) + centre
    spacing = radius * np.sqrt(4 * np.pi / count)
    return PosedSplats(
        points.astype(np.float32),
        np.tile(np.float32([1, 0, 0, 0]), (count, 1)),
        np.full((count, 3), 0.7 * spacing, np.float32),
        np.full(count, 0.95, np.float32),
        np.full((count, 3), 0.5, np.float32),
    )


def select(splats: PosedSplats, keep: np.ndarray) -> PosedSplats:
    return PosedSplats(*[getattr(splats, name)[keep] for name in PosedSplats.__dataclass_fields__])


def join(a: PosedSplats, b: PosedSplats) -> PosedSplats:
    return PosedSplats(*[np.concatenate([getattr(a, n), getattr(b, n)]) for n in PosedSplats.__dataclass_fields__])


def test_a_closed_ball_is_whole_from_every_side() -> None:
    scores = measure.orbit_scores(ball(), 128)
    assert len(scores.holes) == len(measure.AZIMUTHS_DEG) == 12
    assert scores.worst_hole == 0
    assert set(scores.components) == {1} and set(scores.specks) == {0}
    assert measure.cloud_parts(ball()) == (1, 0)


def test_a_crack_through_both_sides_is_a_hole_only_where_one_sees_through() -> None:
    whole = ball()
    x, y, z = (whole.positions_m - [0, 1, 0]).T
    cracked = select(whole, ~((np.abs(y) < 0.02) & (np.abs(x) < 0.1)))
    scores = measure.orbit_scores(cracked, 192)
    assert scores.holes[0] > 0.005 and scores.holes[6] > 0.005
    assert scores.holes[3] == 0 and scores.holes[9] == 0
    assert measure.cloud_parts(cracked) == (1, 0)


def test_two_balls_are_two_parts_except_where_one_hides_the_other() -> None:
    scores = measure.orbit_scores(join(ball(), ball((1.5, 1, 0))), 192)
    assert scores.components[0] == 2 and scores.components[6] == 2
    assert scores.components[3] == 1 and scores.components[9] == 1
    assert measure.cloud_parts(join(ball(), ball((1.5, 1, 0)))) == (2, 0)


def test_a_stray_splat_is_a_speck() -> None:
    stray = select(ball((0, 2, 0)), np.arange(4000) == 0)
    assert measure.cloud_parts(join(ball(), stray)) == (1, 1)
    assert measure.cloud_parts(select(ball(), np.zeros(4000, bool))) == (0, 0)


def test_silhouette_parts_and_holes_of_drawn_masks() -> None:
    alpha = np.zeros((60, 80))
    alpha[10:50, 10:40] = 1.0
    alpha[20:30, 60:70] = 1.0
    alpha[0, 79] = 1.0
    alpha[35, 75] = 0.4
    assert measure.silhouette_parts(alpha) == (2, 1)
    assert measure.hole_share(alpha) == 0
    alpha[30, 20:30] = 0.9
    inner = (40 - 2 * measure.ERODE_PX) * (30 - 2 * measure.ERODE_PX)
    assert 10 / (inner + 100) < measure.hole_share(alpha) <= 10 / inner
    assert measure.hole_share(np.zeros((20, 20))) == 0


def test_psnr_and_iou() -> None:
    target = np.zeros((4, 5, 3))
    where = np.ones((4, 5), bool)
    assert measure.psnr_db(target + 0.1, target, where) == pytest.approx(20)
    assert measure.psnr_db(target, target, where) == np.inf
    assert measure.iou(where, where) == 1 and measure.iou(where, ~where) == 0
    with pytest.raises(ValueError, match="at least one pixel"):
        measure.psnr_db(target, target, ~where)


def test_orbit_cameras_look_at_the_centre_from_where_they_say() -> None:
    centre = np.array([0.3, 1.1, -0.2])
    cameras = orbit_cameras(centre, 2.0, [0.0, 90.0, 200.0], 15.0, 300.0, 64)
    for w2c, azimuth in zip(cameras.w2c.numpy(), (0.0, 90.0, 200.0), strict=True):
        np.testing.assert_allclose(w2c[:3, :3] @ centre + w2c[:3, 3], [0, 0, 2.0], atol=1e-12)
        np.testing.assert_allclose(w2c[:3, :3] @ w2c[:3, :3].T, np.eye(3), atol=1e-12)
        assert np.linalg.det(w2c[:3, :3]) == pytest.approx(1)
        assert w2c[1, 1] < 0 and w2c[0, 1] == pytest.approx(0), "upright, y down"
        eye = -w2c[:3, :3].T @ w2c[:3, 3] - centre
        assert np.degrees(np.arctan2(eye[0], eye[2])) % 360 == pytest.approx(azimuth)
        assert np.degrees(np.arcsin(eye[1] / 2)) == pytest.approx(15)
    with pytest.raises(ValueError):
        orbit_camera(centre, 2.0, 0.0, 90.0, 300.0, 64)
