"""Editors on tiny models: outside the mask nothing changes, sizes are kept, instruction and seed count."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from backend.context import Context
from backend.diffusion import edit
from backend.diffusion.interfaces import Source
from backend.diffusion.placement import Placement
from backend.diffusion.running import fitted_size
from backend.errors import Cancelled, UserError
from tests.diffusion.tiny_video import StopAfter, noise_picture, one_thread, write_inpaint, write_klein

SOURCE = Source("tiny", "", "CC0-1.0", True)
SIZES = {"smallest_px": 64, "area_px": 96 * 96}
pytestmark = pytest.mark.usefixtures("one_thread")
assert one_thread
BOTH = pytest.mark.parametrize("name", ["klein", "inpaint"])


@pytest.fixture(scope="module")
def editors(tmp_path_factory: pytest.TempPathFactory) -> dict[str, edit.Klein | edit.Inpaint]:
    base, quiet = tmp_path_factory.mktemp("edit"), Context.quiet()
    klein = dataclasses.replace(edit.KLEIN, steps=2, **SIZES)
    inpaint = dataclasses.replace(edit.INPAINT, steps=2, multiple=8, whole_strength=1.0, **SIZES)
    return {
        "klein": edit.Klein(write_klein(base / "klein"), SOURCE, Placement(), quiet, klein),
        "inpaint": edit.Inpaint(write_inpaint(base / "inpaint"), SOURCE, Placement(), quiet, inpaint),
    }


def soft_disc(width: int, height: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    away = np.hypot(x - width * 0.4, y - height * 0.45)
    return np.clip((min(width, height) * 0.25 - away) / 6, 0, 1).astype(np.float32)


@BOTH
def test_outside_the_mask_nothing_changes(editors: dict[str, edit.Klein | edit.Inpaint], name: str) -> None:
    image, mask = noise_picture(101, 83), soft_disc(101, 83)
    made = editors[name].edit(image, "a red hat", mask, Context.quiet())
    assert made.shape == image.shape and made.dtype == np.uint8
    assert np.array_equal(made[mask == 0], image[mask == 0])
    assert (made[mask == 1] != image[mask == 1]).mean() > 0.5
    before = image.copy()
    editors[name].edit(image, "a red hat", mask, Context.quiet())
    assert np.array_equal(before, image)


@BOTH
def test_without_a_mask_the_size_stays(editors: dict[str, edit.Klein | edit.Inpaint], name: str) -> None:
    image = noise_picture(101, 70)
    made = editors[name].edit(image, "a red hat", None, Context.quiet())
    assert made.shape == image.shape and not np.array_equal(made, image)


@BOTH
@pytest.mark.parametrize("masked", [True, False])
def test_same_seed_same_edit_and_every_condition_counts(
    editors: dict[str, edit.Klein | edit.Inpaint], name: str, masked: bool
) -> None:
    editor, image = editors[name], noise_picture(64, 64)
    mask = soft_disc(64, 64) if masked else None
    first = editor.edit(image, "a red hat", mask, Context.quiet())
    assert np.array_equal(first, editor.edit(image, "a red hat", mask, Context.quiet()))
    others = {
        "seed": editor.edit(image, "a red hat", mask, Context.quiet(seed=1)),
        "instruction": editor.edit(image, "zebra stripes", mask, Context.quiet()),
    }
    if mask is not None or name == "klein":
        others["picture"] = editor.edit(noise_picture(64, 64, 1), "a red hat", mask, Context.quiet())
    inside = np.ones((64, 64), bool) if mask is None else mask > 0.5
    for condition, other in others.items():
        assert not np.array_equal(first[inside], other[inside]), condition


@BOTH
@pytest.mark.parametrize("masked", [True, False])
def test_a_cancelled_edit_stops_within_a_step(
    editors: dict[str, edit.Klein | edit.Inpaint], name: str, masked: bool
) -> None:
    editor = editors[name]
    few = editor.settings
    editor.settings = dataclasses.replace(few, steps=40)
    stop = StopAfter(3)
    with pytest.raises(Cancelled):
        editor.edit(noise_picture(64, 64), "a red hat", soft_disc(64, 64) if masked else None, stop.context)
    editor.settings = few
    assert stop.calls == 3


def test_an_empty_mask_changes_nothing_and_a_wrong_one_is_refused(
    editors: dict[str, edit.Klein | edit.Inpaint],
) -> None:
    image = noise_picture(70, 66)
    faint = np.full((66, 70), 1e-4, np.float32)
    for mask in (np.zeros((66, 70), np.float32), faint):
        made = editors["klein"].edit(image, "a red hat", mask, Context.quiet())
        assert np.array_equal(made, image) and made is not image
    with pytest.raises(UserError, match="the mask is"):
        editors["klein"].edit(image, "a red hat", np.zeros((70, 66), np.float32), Context.quiet())
    with pytest.raises(UserError, match="not finite"):
        editors["klein"].edit(image, "a red hat", np.full((66, 70), np.nan, np.float32), Context.quiet())


def test_the_box_of_a_mask_holds_it_and_stays_in_the_picture() -> None:
    random = np.random.default_rng(0)
    for _ in range(200):
        height, width = random.integers(4, 90, 2)
        mask = np.zeros((height, width), np.float32)
        top, left = random.integers(0, height), random.integers(0, width)
        mask[top : random.integers(top, height) + 1, left : random.integers(left, width) + 1] = 1
        box = edit.mask_box(mask, float(random.uniform(0, 1)))
        assert box is not None
        x0, y0, x1, y1 = box
        assert 0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height
        assert mask[y0:y1, x0:x1].sum() == mask.sum()


def test_working_sizes_are_multiples_within_bounds() -> None:
    random = np.random.default_rng(0)
    for _ in range(300):
        width, height = (int(v) for v in random.integers(8, 5000, 2))
        if max(width, height) > 12 * min(width, height):
            continue
        w, h = fitted_size(width, height, 16, 64, 1024 * 1024)
        assert w % 16 == h % 16 == 0 and min(w, h) >= 64 and w * h <= 1024 * 1024
        assert abs(np.log(w / h) - np.log(width / height)) < 0.5
    assert fitted_size(1280, 720, 16, 16, 1280 * 720) == (1280, 720)
    with pytest.raises(UserError, match="too narrow"):
        fitted_size(5000, 3, 16, 512, 768 * 768)


def test_a_model_that_does_not_inpaint_is_refused(tmp_path: Path) -> None:
    from diffusers import UNet2DConditionModel

    folder = write_inpaint(tmp_path / "model")
    config = UNet2DConditionModel.load_config(folder / "unet")
    UNet2DConditionModel.from_config(config, in_channels=4).save_pretrained(folder / "unet")
    with pytest.raises(UserError, match="sd15-inpaint"):
        edit.Inpaint(folder, SOURCE, Placement(), Context.quiet())
