"""Colours in closed form and finer discs: the matrix is the rasteriser's, the solve gets there, the bounds hold."""

from dataclasses import replace

import numpy as np
import pytest

from backend.splats.blend import LEAST_WEIGHT, blend_of
from backend.splats.bound import BoundSplats, Kind
from backend.splats.detail import DetailSettings, split_for_detail
from backend.splats.measure import psnr_db
from backend.splats.polish import (
    PolishSettings,
    colour_range,
    counted_pixels,
    facing_camera,
    opened_gates,
    polished_colours,
)
from backend.splats.render import BACKGROUND, render, to_cameras, to_tensors
from tests.splats.test_optimise import HEIGHT, WIDTH, Scene

EVERYWHERE = np.ones((HEIGHT, WIDTH), bool)


@pytest.fixture(scope="module")
def scene() -> Scene:
    return Scene()


@pytest.fixture(scope="module")
def coloured(scene: Scene) -> BoundSplats:
    odd = np.random.default_rng(4)
    count = len(scene.splats)
    return replace(
        scene.splats, colours=odd.uniform(0, 1, (count, 3)), opacities=odd.uniform(0.2, 0.999, count).astype(np.float32)
    )


def test_the_matrix_times_the_colours_is_the_picture(scene: Scene, coloured: BoundSplats) -> None:
    posed, cameras = scene.posed(coloured), to_cameras(scene.camera)
    (picture,), (alpha,) = render(posed, cameras, (0, 0, 0))
    blend = blend_of(to_tensors(posed), cameras, EVERYWHERE)
    # what is not listed is small, and little
    assert np.abs((blend.weights @ coloured.colours).reshape(picture.shape) - picture).max() < 30 * LEAST_WEIGHT
    assert np.abs(np.asarray(blend.weights.sum(axis=1)).reshape(alpha.shape) - alpha).max() < 30 * LEAST_WEIGHT
    part = scene.mask > 0.9
    rows = blend_of(to_tensors(posed), cameras, part).weights
    assert rows.shape == (part.sum(), len(coloured))
    assert abs(rows - blend.weights[part.ravel()]).max() < 1e-6


def test_uncovered_tells_front_from_back(scene: Scene) -> None:
    posed, cameras = scene.posed(scene.splats), to_cameras(scene.camera)
    blend = blend_of(to_tensors(posed), cameras, EVERYWHERE)
    towards = scene.camera.to_camera(posed.positions_m)[:, 2]
    middle = np.median(towards)
    assert blend.uncovered.min() >= 0 and blend.uncovered.max() <= 1 + 1e-6
    assert np.median(blend.uncovered[towards > middle + 0.05]) < 0.002
    assert np.median(blend.uncovered[towards < middle - 0.05]) > 0.05
    single = scene.posed(scene.splats.select(np.arange(len(towards)) == towards.argmin()))
    alone = blend_of(to_tensors(single), cameras, EVERYWHERE)
    assert alone.uncovered == pytest.approx(1, abs=0.02)


def test_a_matrix_needs_one_camera_and_its_pixels(scene: Scene) -> None:
    with pytest.raises(ValueError, match="one camera and its pixels"):
        blend_of(to_tensors(scene.posed(scene.splats)), to_cameras(scene.camera), EVERYWHERE[:5])


def polish(scene: Scene, splats: BoundSplats, gate: np.ndarray, settings: PolishSettings) -> np.ndarray:
    posed = scene.posed(splats)
    where = counted_pixels(scene.mask, scene.held)
    blend = blend_of(to_tensors(posed), to_cameras(scene.camera), where)
    limits = colour_range(scene.image, where, scene.camera, posed.positions_m, splats.colours, settings)
    return polished_colours(splats.colours, gate, blend, scene.image[where] / 255, limits, settings)


def test_the_polished_picture_is_the_photo_and_no_other_start_is_better(scene: Scene) -> None:
    settings = PolishSettings(damping=0.01, iterations=80)
    where = counted_pixels(scene.mask, scene.held)
    ones = np.ones(len(scene.splats))
    scores = []
    for start in (0.5, 0.2):
        splats = replace(scene.splats, colours=np.full_like(scene.splats.colours, start))
        done = replace(splats, colours=polish(scene, splats, ones, settings))
        (picture,), _ = render(scene.posed(done), to_cameras(scene.camera), BACKGROUND)
        scores.append(psnr_db(picture, scene.image / 255, where))
    (before,), _ = render(scene.posed(scene.splats), to_cameras(scene.camera), BACKGROUND)
    assert min(scores) > psnr_db(before, scene.image / 255, where) + 10
    assert abs(scores[0] - scores[1]) < 3


def test_gates_hold_and_what_is_not_seen_stays(scene: Scene) -> None:
    gate = (np.arange(len(scene.splats)) % 2).astype(np.float32)
    out = polish(scene, scene.splats, gate, PolishSettings())
    assert np.array_equal(out[gate == 0], scene.splats.colours[gate == 0])
    where = counted_pixels(scene.mask, scene.held)
    blend = blend_of(to_tensors(scene.posed(scene.splats)), to_cameras(scene.camera), where)
    shown = np.asarray(blend.weights.sum(axis=0)).ravel()
    moved = np.abs(out - scene.splats.colours).max(axis=1)
    hidden, plain = (gate > 0) & (shown < 1e-4), (gate > 0) & (shown > 1)
    assert hidden.sum() > 50 and plain.sum() > 50
    assert moved[hidden].max() < 0.01
    assert np.median(moved[plain]) > 0.1


def test_colours_stay_within_what_the_photo_shows_around(scene: Scene) -> None:
    settings = PolishSettings(damping=1e-4, iterations=60)
    out = polish(scene, scene.splats, np.ones(len(scene.splats)), settings)
    where = counted_pixels(scene.mask, scene.held)
    posed = scene.posed(scene.splats)
    low, high = colour_range(scene.image, where, scene.camera, posed.positions_m, scene.splats.colours, settings)
    assert (out >= low - 1e-6).all() and (out <= high + 1e-6).all()
    assert ((out == low) | (out == high)).any(), "the solve must press against the bounds"
    nowhere = colour_range(
        scene.image, np.zeros_like(where), scene.camera, posed.positions_m, scene.splats.colours, settings
    )
    assert all(np.array_equal(bound, scene.splats.colours) for bound in nowhere)


def test_gates_open_for_cloth_that_shows_and_never_close(scene: Scene) -> None:
    count = len(scene.splats)
    kinds = np.resize(np.array(list(Kind), np.uint8), count)
    gates = np.where(np.arange(count) < count // 2, 0.0, 0.3)
    splats = replace(scene.splats, kind=kinds, colour_gate=gates)
    towards = np.ones(count)
    opened = opened_gates(splats, np.full(count, 0.5), towards)
    cloth = np.isin(kinds, (Kind.CLOTH, Kind.MEMBRANE))
    skin = kinds == Kind.SKIN
    assert (opened[cloth] == 1).all() and (opened[skin & (gates > 0)] == 1).all()
    assert (opened[skin & (gates == 0)] == 0).all(), "lids are kept from the photo"
    assert np.array_equal(opened[~cloth & ~skin], splats.colour_gate[~cloth & ~skin])
    assert np.array_equal(opened_gates(splats, np.zeros(count), towards), splats.colour_gate)
    away = opened_gates(splats, np.full(count, 0.5), -towards)
    inside = kinds == Kind.CLOTH
    assert np.array_equal(away[inside], splats.colour_gate[inside]), "the inside of a hem is not opened"


def test_facing_is_positive_in_front_and_negative_behind(scene: Scene) -> None:
    posed = scene.posed(scene.splats)
    facing = facing_camera(posed, scene.camera)
    depth = scene.camera.to_camera(posed.positions_m)[:, 2]
    near, far = depth < np.percentile(depth, 20), depth > np.percentile(depth, 80)
    assert facing[near].min() > 0 > facing[far].max()
    assert np.abs(facing).max() <= 1 + 1e-6 and facing.max() > 0.97


def split(scene: Scene, splats: BoundSplats, settings: DetailSettings, image: np.ndarray) -> BoundSplats:
    posed, where = scene.posed(splats), counted_pixels(scene.mask, scene.held)
    seen = blend_of(to_tensors(posed), to_cameras(scene.camera), where).uncovered
    return split_for_detail(splats, posed, seen, scene.camera, image, where, settings)


def test_discs_are_split_where_the_photo_has_detail(scene: Scene) -> None:
    image = np.full_like(scene.image, 128)
    column = np.arange(WIDTH) % 2 * 120 + 60
    image[: HEIGHT // 2] = column[None, :, None]  # fine stripes in the upper half, plain cloth below
    out = split(scene, scene.splats, DetailSettings(most_share=0.1), image)
    parts = len(out) - len(scene.splats)
    assert parts > 0 and parts % 3 == 0 and parts <= 3 * 0.1 * len(scene.splats)
    new = out.scales_m[:, 0] < 0.9 * scene.splats.scales_m[0, 0]
    assert new.sum() == parts // 3 * 4
    rows = scene.camera.project(scene.posed(out).positions_m[new])[:, 1]
    assert rows.max() < HEIGHT // 2 + 6
    assert split(scene, scene.splats, DetailSettings(), np.full_like(scene.image, 128)) is scene.splats


def test_splitting_hardly_changes_the_picture(scene: Scene) -> None:
    noise = np.random.default_rng(0).integers(0, 255, scene.image.shape, np.uint8)
    smooth = replace(scene.splats, colours=np.full_like(scene.splats.colours, 0.7))
    out = split(scene, smooth, DetailSettings(most_share=0.3), noise)
    assert len(out) > 1.3 * len(smooth)
    (before,), (alpha,) = render(scene.posed(smooth), to_cameras(scene.camera))
    (after,), (finer,) = render(scene.posed(out), to_cameras(scene.camera))
    assert psnr_db(after, before, alpha > 0.99) > 45
    assert np.abs(finer - alpha).mean() < 0.01
