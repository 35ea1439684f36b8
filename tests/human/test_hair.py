"""Pieces of the head that have exact laws: outline rays, tiling of triangles, harmonic fill, the hair label."""

from __future__ import annotations

import numpy as np
import pytest

from backend.human.camera import PinholeCamera
from backend.human.head_fit import fill_harmonic
from backend.human.head_skin import THICKNESS, tile_triangles
from backend.human.head_view import HeadView, paste, sample
from backend.human.head_warp import outline_by_angle

SIZE = 768


def disc(radius_px: float, centre_px: tuple[float, float]) -> np.ndarray:
    """[S, S] float32 mask of a disc."""
    rows, columns = np.mgrid[:SIZE, :SIZE] + 0.5
    return (np.hypot(columns - centre_px[0], rows - centre_px[1]) < radius_px).astype(np.float32)


def view(mask: np.ndarray, hair: np.ndarray) -> HeadView:
    camera = PinholeCamera(np.eye(4), 1500.0, 1500.0, SIZE / 2, SIZE / 2, SIZE, SIZE)
    nothing = np.zeros((SIZE, SIZE), np.uint8)
    return HeadView(np.zeros((SIZE, SIZE, 3), np.float32), mask, hair, nothing, np.zeros((0, 3)), camera, 300.0, 2.0)


def test_rays_leave_a_disc_at_its_radius_and_see_hair_only_where_it_is() -> None:
    mask = disc(200, (384, 300))
    rows = np.mgrid[:SIZE, :SIZE][0]
    thetas = np.linspace(-np.pi, np.pi, 73)[:-1]
    exits, hairy = outline_by_angle(view(mask, mask * (rows < 300)), np.array([384.0, 300.0]), thetas)
    np.testing.assert_allclose(exits, 200, atol=2)
    assert hairy[np.sin(thetas) < -0.1].all() and not hairy[np.sin(thetas) > 0.1].any()


def test_a_ray_that_leaves_the_crop_first_gives_no_outline() -> None:
    exits, _ = outline_by_angle(
        view(np.ones((SIZE, SIZE), np.float32), disc(9, (0, 0))), np.array([384.0, 300.0]), np.array([0.3])
    )
    assert exits[0] == 0


@pytest.mark.parametrize("spacing", [0.001, 0.004])
def test_tiles_cover_a_triangle_evenly(spacing: float) -> None:
    vertices = np.array([[0, 0, 0], [0.01, 0, 0], [0.003, 0.008, 0.002]])
    sheet = tile_triangles(vertices, np.array([[0, 1, 2]]), np.array([0]), np.array([spacing]))
    parts = round(np.sqrt(len(sheet.triangles)))
    longest = np.linalg.norm(vertices[1] - vertices[2])
    assert parts**2 == len(sheet.triangles) and parts == max(1, round(longest / (2.25 * spacing)))
    np.testing.assert_allclose(sheet.bary.sum(axis=1), 1)
    np.testing.assert_allclose(
        sheet.points(vertices, np.array([[0, 1, 2]])).mean(axis=0), vertices.mean(axis=0), atol=1e-9
    )
    np.testing.assert_allclose(sheet.scales_m[:, 2], THICKNESS * sheet.scales_m[:, :2].mean(axis=1))


def test_a_fill_keeps_known_values_and_stays_between_them() -> None:
    n = 12
    triangles = np.array([[r * n + c, r * n + c + 1, (r + 1) * n + c] for r in range(n - 1) for c in range(n - 1)])
    triangles = np.vstack(
        [triangles, [[r * n + c + 1, (r + 1) * n + c + 1, (r + 1) * n + c] for r in range(n - 1) for c in range(n - 1)]]
    )
    known = np.full(n * n, np.nan)
    known[np.arange(n) * n] = 0
    known[np.arange(n) * n + n - 1] = 1
    filled = fill_harmonic(known, triangles).reshape(n, n)
    np.testing.assert_array_equal(filled[:, [0, -1]], known.reshape(n, n)[:, [0, -1]])
    assert (np.diff(filled, axis=1) > 0).all()


def test_a_crop_pasted_back_lies_where_it_was_cut() -> None:
    whole = PinholeCamera(np.eye(4), 800.0, 800.0, 300.0, 250.0, 600, 500)
    cut = whole.cropped(100.0, 60.0, SIZE / 2, SIZE)
    blob = disc(30, (200, 400))
    piece = HeadView(
        np.zeros((SIZE, SIZE, 3), np.float32),
        blob,
        blob,
        np.zeros((SIZE, SIZE), np.uint8),
        np.zeros((0, 3)),
        cut,
        300.0,
        2.0,
    )
    back = paste(blob, piece, whole)
    rows, columns = np.nonzero(back > 0.5)
    assert columns.mean() + 0.5 == pytest.approx(100 + 200 / 2, abs=0.6)
    assert rows.mean() + 0.5 == pytest.approx(60 + 400 / 2, abs=0.6)
    assert sample(back, np.array([[200.0, 260.0]]))[0] > 0.99
