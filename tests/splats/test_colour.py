"""Photo colours and fills: nothing black, nothing invented, mirrored photos give mirrored avatars."""

from __future__ import annotations

import numpy as np
import pytest

from backend.splats.colour import blend_weight, gates, photo_confidence, sample_photo, to_lab, to_rgb
from backend.splats.fill import FillSurface, fill_colours
from backend.splats.rows import best_sequence, cloths, row_colours

ORANGE, NAVY, PATCH = (np.array(c) for c in ([0.85, 0.4, 0.15], [0.12, 0.14, 0.3], [0.2, 0.8, 0.2]))
CLOTH, SHOE, BARE = 7, 5, 1


def _cylinder(count: int = 6000, seed: int = 0) -> FillSurface:
    """An upright trunk of one label, facing +z, 0.3 m wide and 0.6 m tall."""
    rng = np.random.default_rng(seed)
    angle, height = rng.uniform(-np.pi, np.pi, count), rng.uniform(0, 0.6, count)
    normals = np.stack([np.sin(angle), np.zeros(count), np.cos(angle)], axis=1)
    positions = 0.15 * normals + np.stack([np.zeros(count), height, np.zeros(count)], axis=1)
    zero = np.zeros(count, int)
    return FillSurface(positions, normals, zero, zero, height, np.full(count, CLOTH), np.full(count, 7e-5))


def _confidence(surface: FillSurface) -> np.ndarray:
    return np.clip(surface.normals[:, 2], 0, 1) ** 2


def test_lab_round_trip() -> None:
    rgb = np.random.default_rng(0).random((500, 3))
    np.testing.assert_allclose(to_rgb(to_lab(rgb)), rgb, atol=4e-3)


def test_sampling_hits_pixel_centres_and_low_passes_for_large_discs() -> None:
    image = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)
    rows, columns = np.mgrid[5:30:5, 5:50:5].reshape(2, -1)
    uv = np.stack([columns + 0.5, rows + 0.5], axis=1).astype(float)
    np.testing.assert_allclose(sample_photo(image, uv, np.ones(len(uv))), image[rows, columns] / 255, atol=1e-6)
    assert sample_photo(image, uv, np.full(len(uv), 8.0)).std() < 0.4 * (image[rows, columns] / 255).std()


def test_confidence_needs_visibility_facing_and_a_usable_pixel() -> None:
    depth = np.full((20, 20), 2.0)
    usable = np.ones((20, 20), bool)
    usable[:, :5] = False
    uv = np.array([[10.5, 10.5], [10.5, 10.5], [2.5, 10.5], [30.0, 10.0], [10.5, 10.5]])
    z = np.array([2.0, 2.1, 2.0, 2.0, 2.0])
    c = photo_confidence(np.array([0.8, 0.8, 0.8, 0.8, -0.5]), z, uv, depth, usable)
    np.testing.assert_allclose(c, [0.64, 0, 0, 0, 0], atol=1e-6)


def test_gates_follow_their_formulas() -> None:
    colour, shape = gates(np.array([0.05, 0.1, 0.25, 0.4, 0.0]), np.array([0.5, 0.12, 0.245, 1.0, 1.0]))
    np.testing.assert_allclose(colour, [0, 0, 0.5, 1, 0], atol=1e-6)
    np.testing.assert_allclose(shape, [1, 0, 0.5, 1, 0], atol=1e-6)
    assert (np.diff(blend_weight(np.linspace(0, 1, 50))) >= 0).all()


def test_seen_discs_keep_the_photo_and_the_back_gets_the_cloth() -> None:
    surface = _cylinder()
    rng = np.random.default_rng(1)
    photo = np.clip(ORANGE + 0.02 * rng.normal(size=(len(surface.axis_m), 3)), 0, 1)
    c = _confidence(surface)
    photo[c == 0] = 0  # behind the person the photo shows nothing of it
    out = fill_colours(surface, photo, c, {}, NAVY, seed=0)
    np.testing.assert_allclose(out[c > 0.6], photo[c > 0.6], atol=5e-3)
    back = out[surface.normals[:, 2] < -0.3]
    assert np.abs(back.mean(axis=0) - ORANGE).max() < 0.06
    assert back.std(axis=0).max() < 0.08


def test_a_badge_does_not_go_round_and_a_colour_block_does() -> None:
    surface = _cylinder(12_000)
    photo = np.tile(ORANGE, (len(surface.axis_m), 1))
    photo[surface.axis_m < 0.25] = NAVY
    x, y = surface.positions_m[:, 0], surface.axis_m
    photo[(np.abs(x + 0.05) < 0.03) & (np.abs(y - 0.45) < 0.04)] = PATCH
    out = fill_colours(surface, photo, _confidence(surface), {}, PATCH, seed=0)
    back = surface.normals[:, 2] < -0.3
    nearest = np.argmin([np.linalg.norm(out - c, axis=1) for c in (ORANGE, NAVY, PATCH)], axis=0)
    assert (nearest[back & (y > 0.29)] == 0).mean() > 0.99
    assert (nearest[back & (y < 0.21)] == 1).mean() > 0.99


def test_stripes_go_round() -> None:
    surface = _cylinder(12_000)
    red = (surface.axis_m / 0.04).astype(int) % 2 == 0
    photo = np.where(red[:, None], PATCH, ORANGE)
    out = fill_colours(surface, photo, _confidence(surface), {}, NAVY, seed=0)
    back = surface.normals[:, 2] < -0.3
    nearest = np.argmin([np.linalg.norm(out - c, axis=1) for c in (ORANGE, PATCH)], axis=0)
    assert (nearest[back] == red[back]).mean() > 0.9


def test_shade_over_height_does_not_become_bands() -> None:
    surface = _cylinder(12_000)
    wave = 0.75 + 0.25 * np.sin(2 * np.pi * surface.axis_m / 0.06)
    photo = ORANGE * wave[:, None]
    out = fill_colours(surface, photo, _confidence(surface), {}, ORANGE, seed=0)
    back = surface.normals[:, 2] < -0.6
    lightness, source = to_lab(out)[:, 0], to_lab(photo)[:, 0]
    rows = (surface.axis_m / 0.01).astype(int)
    banding = np.std([lightness[back & (rows == r)].mean() for r in range(5, 55)])
    assert banding < 0.3 * np.std([source[rows == r].mean() for r in range(5, 55)])


def test_mirrored_photo_mirrored_colours() -> None:
    one = _cylinder(4000, seed=3)
    flip = np.array([-1.0, 1.0, 1.0])
    other = FillSurface(
        one.positions_m * flip, one.normals * flip, one.families, -one.sides, one.axis_m, one.labels, one.areas_m2
    )
    shade = 0.5 + 0.4 * one.positions_m[:, :1] / 0.15
    photo, c = ORANGE * shade, _confidence(one) * (one.positions_m[:, 0] < 0.05)
    a = fill_colours(one, photo, c, {}, NAVY, seed=0)
    b = fill_colours(other, photo, c, {}, NAVY, seed=0)
    # the fine grain is drawn from the neighbours, so single discs may differ a little
    assert np.abs(a - b).mean() < 5e-3
    assert np.percentile(np.abs(a - b), 99) < 0.05


def test_nothing_seen_gives_the_defaults_and_never_black_or_nan() -> None:
    surface = _cylinder(900)
    labels = np.array([CLOTH, SHOE, BARE])[np.arange(900) % 3]
    mixed = FillSurface(
        surface.positions_m, surface.normals, surface.families, surface.sides, surface.axis_m, labels, surface.areas_m2
    )
    skin = np.array([0.8, 0.6, 0.5])
    out = fill_colours(mixed, np.zeros((900, 3)), np.zeros(900), {BARE: skin}, ORANGE, seed=0)
    assert np.isfinite(out).all()
    assert np.abs(out[labels == BARE] - skin).max() < 0.12
    assert np.abs(out[labels == SHOE] - ORANGE).max() < 0.15
    assert out.mean(axis=1).min() > 0.2


def test_best_sequence_is_optimal_on_small_cases() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        score = rng.random((5, 3))
        found = best_sequence(score, 0.4)

        def value(path: tuple[int, ...], table: np.ndarray = score) -> float:
            gain = sum(table[k, s] for k, s in enumerate(path))
            return float(gain - 0.4 * sum(a != b for a, b in zip(path[:-1], path[1:], strict=True)))

        every = np.stack(np.meshgrid(*[range(3)] * 5), axis=-1).reshape(-1, 5)
        assert value(tuple(found)) == pytest.approx(max(value(tuple(p)) for p in every))


def test_cloths_join_shades_and_part_dyes() -> None:
    rng = np.random.default_rng(0)
    shades = ORANGE * rng.uniform(0.6, 1.1, (600, 1))
    lab = to_lab(np.concatenate([shades, np.tile(NAVY, (200, 1)) + 0.01 * rng.normal(size=(200, 3))]))
    names = cloths(lab, np.ones(800))
    assert (names[:600] == 0).all()
    assert len(np.unique(names[600:])) == 1
    assert names[700] != 0


def test_a_few_mixed_colours_do_not_join_two_cloths() -> None:
    rng = np.random.default_rng(0)
    green, mixed, navy = (np.array(c) for c in ([30.0, -12, 5], [23.0, -3, 3], [17.0, 3, -5]))
    counts = (500, 12, 300)
    lab = np.concatenate([np.tile(c, (n, 1)) for c, n in zip((green, mixed, navy), counts, strict=True)])
    names = cloths(lab + 0.5 * rng.normal(size=lab.shape), np.ones(len(lab)))
    assert names[0] != names[-1]


def test_rows_far_beyond_what_was_seen_take_the_main_cloth() -> None:
    axis = np.repeat(np.linspace(1.0, 1.4, 40), 10)
    lab = np.tile(to_lab(ORANGE[None]), (400, 1))
    out = row_colours(axis, lab, np.zeros(400, int), np.ones(400), np.array([0.2, 1.2]))
    np.testing.assert_allclose(out, np.tile(to_lab(ORANGE[None]), (2, 1)), atol=1e-3)
