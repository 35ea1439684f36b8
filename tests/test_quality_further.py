"""The measure that forgives small shifts: it forgives them, and nothing else."""

from __future__ import annotations

import numpy as np

from scripts.quality_further import SHIFT_PX, tolerant_psnr


def person(up_px: int, contrast: float = 0.4, seed: int = 0) -> np.ndarray:
    """A striped figure with some grain."""
    rows = np.arange(360)[:, None] + up_px
    stripes = 0.5 + contrast * np.sign(np.sin(rows / 4.0)) * 0.5
    grain = 0.02 * np.random.default_rng(seed).normal(size=(360, 200, 3))
    alpha = np.zeros((360, 200))
    alpha[20:340, 60:140] = 1
    return np.dstack([np.clip(np.broadcast_to(stripes[..., None], (360, 200, 3)) + grain, 0, 1), alpha])


def test_small_shifts_are_forgiven_and_others_are_not() -> None:
    truth = person(0)
    same, shifted = (tolerant_psnr(person(up, seed=1), truth) for up in (0, SHIFT_PX - 2))
    assert same > 28 and shifted > 22, "blocks at the outline lose a little"
    assert tolerant_psnr(person(0, 0.0, 1), truth) < 16, "a plain back is no striped one"


def test_one_brightness_for_all_is_forgiven() -> None:
    truth, darker = person(0), person(0, seed=1)
    darker[..., :3] *= 0.7
    assert tolerant_psnr(darker, truth) > 28
