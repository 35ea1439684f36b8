from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from backend.context import Context
from backend.diffusion.placement import Placement
from backend.diffusion.surface import (
    DepthAnything,
    MarigoldNormals,
    surface_estimators,
    to_unit_range,
    unit,
)
from backend.errors import Cancelled, UserError
from tests.diffusion.tiny_video import StopAfter, noise_picture, one_thread  # noqa: F401
from tests.diffusion.tiny_vision import Shelf, write_depth_anything, write_marigold

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    root = tmp_path_factory.mktemp("models")
    return Shelf(
        root,
        marigold_normals=lambda to: write_marigold(to, default_denoising_steps=2, default_processing_resolution=64),
        depth_anything=write_depth_anything,
    )


@pytest.fixture(scope="module")
def marigold(shelf: Shelf) -> MarigoldNormals:
    return MarigoldNormals(shelf, Placement())


def test_marigold_gives_unit_normals_of_the_pictures_size(marigold: MarigoldNormals) -> None:
    image = noise_picture(48, 72)
    normals = marigold.estimate(image, Context.quiet()).normals
    assert normals is not None and normals.shape == (72, 48, 3) and normals.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(normals, axis=-1), 1, atol=1e-5)
    assert marigold.sources[0].name == "marigold-normals"


def test_marigold_repeats_with_its_seed_and_follows_the_picture(marigold: MarigoldNormals) -> None:
    image, other = noise_picture(32, 32, 0), noise_picture(32, 32, 1)
    first, again, seeded, changed = (
        marigold.estimate(picture, Context.quiet(seed)).normals
        for picture, seed in ((image, 0), (image, 0), (image, 1), (other, 0))
    )
    assert first is not None and seeded is not None and changed is not None
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - seeded).max() > 0.05 and np.abs(first - changed).max() > 0.01


def test_marigolds_axes_are_turned_into_the_cameras(marigold: MarigoldNormals, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wall facing the camera, a floor, a wall on the left; Marigold has x right, y up, z to the observer."""
    told = np.array([[[0, 0, 1], [0, 1, 0], [1, 0, 0]]], np.float32)
    monkeypatch.setattr("backend.diffusion.surface.run_marigold", lambda *_: told[None])
    normals = marigold.estimate(np.zeros((1, 3, 3), np.uint8), Context.quiet()).normals
    np.testing.assert_array_equal(normals, [[[0, 0, -1], [0, -1, 0], [1, 0, 0]]])


def test_marigold_stops_within_one_step(shelf: Shelf) -> None:
    estimator = MarigoldNormals(shelf, Placement(), steps=20)
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    estimator._pipeline.unet.register_forward_hook(count)
    sink = StopAfter(2)
    with pytest.raises(Cancelled):
        estimator.estimate(noise_picture(32, 32), sink.context)
    assert calls <= 3


def test_marigolds_text_encoder_is_gone_after_loading(marigold: MarigoldNormals) -> None:
    assert marigold._pipeline.text_encoder is None and marigold._pipeline.empty_text_embedding.shape[1] == 2


def test_a_changed_prompt_embedding_changes_the_normals(marigold: MarigoldNormals) -> None:
    image, pipeline = noise_picture(32, 32), marigold._pipeline
    before = marigold.estimate(image, Context.quiet()).normals
    kept = pipeline.empty_text_embedding
    pipeline.empty_text_embedding = -kept
    after = marigold.estimate(image, Context.quiet()).normals
    pipeline.empty_text_embedding = kept
    assert np.abs(before - after).max() > 1e-3


def test_fp8_storage_gives_nearly_the_same_normals(shelf: Shelf, marigold: MarigoldNormals) -> None:
    image = noise_picture(32, 32)
    lean = MarigoldNormals(shelf, Placement(storage="fp8"))
    assert any(p.dtype == torch.float8_e4m3fn for p in lean._pipeline.unet.parameters())
    full, small = (each.estimate(image, Context.quiet()).normals for each in (marigold, lean))
    assert full is not None and small is not None
    angles = np.degrees(np.arccos(np.clip((full * small).sum(-1), -1, 1)))
    assert 0 < np.median(angles) < 15


def test_depth_anything_gives_disparity_of_the_pictures_size(shelf: Shelf) -> None:
    estimator = DepthAnything(shelf, Placement())
    image, other = noise_picture(60, 40, 0), noise_picture(60, 40, 1)
    first, again, changed = (
        estimator.estimate(picture, Context.quiet()).disparity for picture in (image, image, other)
    )
    assert first is not None and changed is not None
    assert first.shape == (40, 60) and first.dtype == np.float32 and (first.min(), first.max()) == (0, 1)
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - changed).max() > 0.01


def test_what_is_installed_is_used_and_nothing_is_no_error(shelf: Shelf, tmp_path: Path) -> None:
    quiet = Context.quiet()
    assert [type(e).__name__ for e in surface_estimators(shelf, quiet)] == ["MarigoldNormals", "DepthAnything"]
    assert surface_estimators(Shelf(tmp_path), quiet) == ()
    only_depth = Shelf(tmp_path, depth_anything=write_depth_anything)
    assert [type(e).__name__ for e in surface_estimators(only_depth, quiet)] == ["DepthAnything"]


def test_a_pickle_beside_the_weights_is_refused(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path, depth_anything=write_depth_anything)
    (shelf.folder("depth-anything") / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(UserError, match="only .safetensors") as caught:
        surface_estimators(shelf, replace(Context.quiet(), memory_bytes=10**12))
    assert caught.value.kind == "BAD_MODEL"


def test_ranges_and_units() -> None:
    np.testing.assert_allclose(to_unit_range(np.array([[2.0, 4.0, np.inf]])), [[0, 1, 0]])
    np.testing.assert_array_equal(to_unit_range(np.full((2, 2), 3.0)), np.zeros((2, 2)))
    np.testing.assert_allclose(unit(np.array([[0.0, 3.0, 4.0], [0, 0, 0]])), [[0, 0.6, 0.8], [0, 0, -1]], atol=1e-6)
