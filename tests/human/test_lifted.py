"""A lift of the photo: brought onto the person, gives back and hair, and is left out where it is not the person."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pytest

from backend.context import Context
from backend.diffusion.interfaces import Lifted
from backend.human.lifted import LiftSettings, WithLift, add_lifted, lift_back
from backend.splats.bound import BoundSplats
from backend.splats.render import to_cameras
from tests.human.oracle_lift import LiftDefects, OracleLift
from tests.human.oracle_splats import behind, dressed, psnr, splats, truth

CONTEXT = Context.quiet(seed=0)
CLEAN = LiftDefects(seed=0, turn_deg=10)
FAULTY = LiftDefects(seed=1, turn_deg=12, warp=0.01, colour=0.03, cast=0.15, stray=0.002)
TURNED = LiftDefects(seed=2, turn_deg=8, yaw_deg=180, warp=0.01, colour=0.03, cast=0.1)


@lru_cache(maxsize=4)
def made(defects: LiftDefects) -> WithLift:
    return lift_back(OracleLift(defects), splats(), dressed(), CONTEXT)


def seen(what: BoundSplats, yaw_deg: float) -> tuple[float, float]:
    camera = behind(yaw_deg)
    return psnr(what, camera, truth(camera, True))


@pytest.mark.parametrize(("defects", "gain_db"), [(CLEAN, 4.0), (FAULTY, 1.0)])
def test_the_back_gains_and_the_front_stays(defects: LiftDefects, gain_db: float) -> None:
    found = made(defects)
    assert found.used and found.warnings == () and found.made_by == ("oracle of lifted figures (GPL-3.0-or-later)",), (
        found
    )
    (before, before_iou), (after, after_iou) = seen(splats(), 180), seen(found.splats, 180)
    assert after > before + gain_db and after_iou > before_iou - 0.01, (before, after)
    assert seen(found.splats, 90)[0] > seen(splats(), 90)[0]
    assert seen(found.splats, 0)[0] > seen(splats(), 0)[0] - 0.2


def test_a_lift_whose_front_is_elsewhere_is_turned_by_its_colours() -> None:
    found = made(TURNED)
    assert found.used and found.report.turn_deg == 180
    assert seen(found.splats, 180)[0] > seen(splats(), 180)[0] + 0.5


def test_it_is_brought_within_a_few_millimetres() -> None:
    assert made(CLEAN).report.gap < 0.006 and made(FAULTY).report.gap < 0.008
    assert made(FAULTY).report.iou > 0.85 and made(FAULTY).report.cover > 0.98


def test_what_comes_in_moves_with_the_body() -> None:
    new = made(CLEAN).splats.select(np.flatnonzero(made(CLEAN).splats.confidence == 0))
    assert np.isin(new.triangles, splats().triangles).all() and np.isfinite(new.offsets_m).all()
    assert np.linalg.norm(new.offsets_m, axis=1).max() < 0.2
    assert new.colours.min() >= 0 and new.colours.max() <= 1 and (new.scales_m > 0).all()
    assert to_cameras(behind()).width == dressed().personal.camera.width


@pytest.mark.parametrize("wrong", ["ball", "other", "empty", "nothing finite"])
def test_a_lift_of_something_else_changes_nothing_and_says_so(wrong: str) -> None:
    if wrong == "ball":
        lifted = OracleLift(LiftDefects(), shape="ball").truth_and_lift()[1]
    else:
        lifted = OracleLift(LiftDefects(seed=3, warp=0.08)).truth_and_lift()[1]
    if wrong == "empty":
        lifted = Lifted(*(np.zeros((0, *a.shape[1:]), np.float32) for a in vars(lifted).values()))
    if wrong == "nothing finite":
        lifted = Lifted(lifted.positions * np.nan, *list(vars(lifted).values())[1:])
    found = add_lifted(splats(), dressed(), lifted, CONTEXT, LiftSettings(points=1500))
    assert not found.used and found.splats is splats() and found.made_by == ()
    assert len(found.warnings) == 1 and "not used" in found.warnings[0] and "\n" not in found.warnings[0]


def test_every_limit_refuses() -> None:
    report = made(CLEAN).report
    assert report.refusal(LiftSettings()) == ""
    for limit in ({"largest_gap": 0.0}, {"least_cover": 1.1}, {"least_iou": 1.1}, {"largest_colour": 0.0}):
        assert report.refusal(LiftSettings(**limit))
