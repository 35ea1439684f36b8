"""The made-up person of the benches: every term has its target, and both loops begin with the same loss."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from backend.benches.measuring import Options
from backend.benches.persona import make_scene, persona_full, psnr
from backend.splats.optimise_persona import Learner, PersonaSettings, terms_left_out
from backend.splats.perceptual import PyramidLoss
from backend.splats.persona_drawing import drawn_one_by_one


def test_both_loops_learn_the_same_of_the_made_up_person() -> None:
    settings = replace(PersonaSettings.of("fast"), picture_px=96, face_px=24)
    scene = make_scene(settings, 2, "cpu", resolution=16)
    ours = Learner(scene.avatar(100), scene.near, settings, PyramidLoss())
    theirs = Learner(scene.avatar(1), scene.near, settings, PyramidLoss(), drawn_one_by_one)
    assert terms_left_out(ours.avatar, scene.near, settings, PyramidLoss()) == ()
    near, whole = (sum(target.frame.mask.size for target in part.packed) for part in (scene.near, scene.whole))
    assert near < whole
    before = psnr(ours.avatar, scene.unseen)
    for number in (0, 1, 2, 0, 2, 1):
        losses = [float(learner.step(number, late=False)) for learner in (ours, theirs)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-2)
    after = psnr(ours.avatar, scene.unseen), psnr(theirs.avatar, scene.unseen)
    assert after[0] > before and after[0] == pytest.approx(after[1], abs=0.1)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_the_whole_loop_says_that_it_did_not_run() -> None:
    (row,) = persona_full(Options())
    assert row.value is None and row.note.startswith("did not run") and "bench persona_full" in row.note
