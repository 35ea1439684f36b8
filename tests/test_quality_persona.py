"""The tables of learned avatars: what they count as met, that a run goes on, and in small that balance keeps a face."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from scripts.quality_persona import CASES, Line, Mean, Piece, lines_of, mean_of, measure, printed, small
from scripts.quality_persona_controls import codes_of, control_scores, limbs_mixed
from scripts.quality_persona_oracle import perform, sights, template_of
from scripts.quality_persona_runs import Arm, learn
from tests.oracles.video_defects import Defects


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def balanced(steps: int, strength: float) -> Piece:
    """The face under drift, in small."""
    case = small(next(case for case in CASES if case.name == "balanced"))
    without, with_ = (replace(arm, steps=steps) for arm in (case.without, case.with_))
    case = replace(case, without=without, with_=with_, cells_m=(0.06, 0.012))
    return Piece(case, False, 0, case.kinds, strength)


def test_a_claim_is_met_by_ten_seeds_whose_interval_excludes_zero() -> None:
    sure = Line("x_gain", "dB", Mean(1.2, 0.4, 10), 1.0)
    assert sure.verdict == "met" and sure.row().n == 10 and "met" in sure.row().note
    for mean in (Mean(0.9, 0.1, 10), Mean(1.2, 1.3, 10), Mean(1.2, 0.4, 9)):
        assert replace(sure, mean=mean).verdict.startswith("FAILED")
    assert replace(sure, target=-0.2, mean=Mean(-0.1, 0.5, 10)).verdict == "met"
    assert replace(sure, target=-0.2, mean=Mean(-0.3, 0.5, 10)).verdict == "FAILED"
    assert replace(sure, target=0.15, at_least=False, mean=Mean(0.1, 0.02, 10)).verdict == "met"
    assert replace(sure, target=None).verdict == "" and "x_gain" in printed(sure)
    some = mean_of([1.0, 2.0, 3.0])
    assert some.value == 2.0 and some.half == pytest.approx(4.303 / np.sqrt(3), rel=1e-3)


def test_balance_keeps_the_face_from_drifting_and_a_result_is_kept(tmp_path: Path) -> None:
    piece = balanced(steps=70, strength=2.5)
    found = measure(piece, tmp_path)
    assert found["with"]["shift"] < 0.85 * found["without"]["shift"]
    assert found["with"]["region_db"] > found["without"]["region_db"]
    before = piece.file(tmp_path).stat().st_mtime_ns
    assert measure(piece, tmp_path) == found and piece.file(tmp_path).stat().st_mtime_ns == before
    assert replace(piece, strength=1.0).file(tmp_path) != piece.file(tmp_path)
    names = {line.name for line in lines_of(piece.case, 2.5, piece.kinds, [found], False)}
    assert {"balanced_2.5_gain", "balanced_2.5_shift_ratio"} <= names


def test_held_out_poses_are_not_learned_from_and_controls_come_near_the_network(tmp_path: Path) -> None:
    performance = perform("dev2", tmp_path, plain=True, hung=True)
    unseen = performance.poses[performance.held_out]
    nearest = np.abs(unseen[:, None] - performance.poses[~performance.held_out][None]).max((2, 3)).min(1)
    assert 0.1 < performance.held_out.mean() < 0.25 and np.median(nearest) > 0.1
    frames = [0, 20, 44, 90]
    shown = [sight.frame for sight in sights(performance, frames, "body", Defects(1, ()))]
    body = performance.figure.body
    avatar = learn(template_of(body, 0.06), body.name, shown, Arm(8), 1)
    torch.nn.init.normal_(avatar.deformation.layers[-1].weight, std=0.3)  # as if it had learned much
    truth = list(sights(performance, [12], "body", Defects(1, ())))
    seen = performance.poses[~performance.held_out][::2]
    found = control_scores(avatar, seen, unseen[::4], truth, 1, body.joint_names)
    assert found["total_96"] < found["total_24"] < 0.8 and found["truncation_96"] < found["truncation_24"]
    for count in (24, 96):
        both = np.hypot(found[f"truncation_{count}"], found[f"coefficients_{count}"])
        assert found[f"total_{count}"] == pytest.approx(both, rel=1e-6)
    assert found["db_96"] > 25


def test_mixed_poses_take_whole_limbs_from_poses_that_were_seen(tmp_path: Path) -> None:
    performance = perform("dev2", tmp_path, plain=True, hung=True)
    names = performance.figure.body.joint_names
    mixed = limbs_mixed(performance.poses, 5, 3, names)
    arm = [names.index("left_shoulder"), names.index("left_elbow")]
    for pose in mixed:
        assert (performance.poses[:, arm] == pose[arm]).all((1, 2)).any()
    assert codes_of(mixed).shape == (5, 21, 6)
