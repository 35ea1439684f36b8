"""Colours from further photos: a back photo shows what no rule can guess; front and gates stay; photos move to fit."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from backend.context import Context
from backend.errors import UserError
from backend.human.further_colours import add_colours, fit_photos
from backend.human.model import load_default_body
from backend.human.outline_flow import detail_flow, joined, outline_flow, pulled
from backend.splats.bound import BoundSplats
from tests.human.oracle_splats import behind, dressed, photo_from_behind, psnr, splats, truth

CONTEXT = Context.quiet(seed=0)
TINT = (0.8, 0.9, 1.0)


@lru_cache(maxsize=4)
def coloured(printed: bool, pose_error_deg: float = 0.0) -> BoundSplats:
    photo = photo_from_behind(printed, pose_error_deg, TINT)
    return add_colours(splats(), dressed(), [photo], CONTEXT)


def seen(made: BoundSplats, yaw_deg: float, printed: bool) -> float:
    camera = behind(yaw_deg)
    return psnr(made, camera, truth(camera, printed))[0]


@pytest.mark.parametrize("printed", [False, True])
def test_a_back_photo_gives_the_back_its_colours(printed: bool) -> None:
    before, after = seen(splats(), 180, printed), seen(coloured(printed), 180, printed)
    assert after > before + 1.8, (before, after)
    assert seen(coloured(printed), 90, printed) > seen(splats(), 90, printed) - 0.1


def test_the_front_stays_the_first_photos() -> None:
    assert seen(coloured(True), 0, True) > seen(splats(), 0, True) - 0.05
    sure = splats().confidence > 0.4
    rows = np.flatnonzero(sure)
    kept = np.isin(coloured(True).colours, splats().colours[rows]).all(axis=1).sum()
    assert kept > 0.5 * len(rows), "what the first photo shows well is not touched"


def test_a_fit_that_is_off_still_gains() -> None:
    assert seen(coloured(True, 3.0), 180, True) > seen(splats(), 180, True) + 0.8


def test_split_gaussians_keep_their_binding_and_gates() -> None:
    made = coloured(True)
    assert len(splats()) < len(made) <= 1.16 * len(splats())
    assert set(np.unique(made.kind)) == set(np.unique(splats().kind))
    assert np.isin(made.triangles, splats().triangles).all()
    assert made.colour_gate.max() <= splats().colour_gate.max() and np.isfinite(made.colours).all()
    assert made.colours.min() >= 0 and made.colours.max() <= 1


def test_no_further_photo_changes_nothing() -> None:
    made = add_colours(splats(), dressed(), [], CONTEXT)
    np.testing.assert_allclose(made.colours, splats().colours, atol=2e-3)
    assert len(made) == len(splats())


def test_a_photo_that_shows_nothing_of_use_changes_nothing() -> None:
    photo = photo_from_behind(True)
    empty = replace(photo.picture, mask=np.zeros_like(photo.picture.mask))
    made = add_colours(splats(), dressed(), [replace(photo, picture=empty)], CONTEXT)
    np.testing.assert_allclose(made.colours, splats().colours, atol=2e-3)


def figure_outline(arm_px: int, down_px: int) -> np.ndarray:
    made = np.zeros((400, 260), np.uint8)
    cv2.ellipse(made, (130, 60 + down_px), (24, 32), 0, 0, 360, 1, -1)
    cv2.rectangle(made, (98, 92 + down_px), (162, 230), 1, -1)
    for x in (104, 138):
        cv2.rectangle(made, (x, 230), (x + 20, 380), 1, -1)
    for side in (-1, 1):
        cv2.line(made, (130 + 40 * side, 102 + down_px), (130 + (62 + arm_px) * side, 225), 1, 18)
    return made.astype(np.float32)


def test_a_drawing_is_moved_onto_the_photos_outline() -> None:
    drawn, shown = figure_outline(0, 0), figure_outline(9, 5)
    flow = outline_flow(drawn, shown)
    moved = pulled(shown, flow)
    before, after = (((a > 0.5) & (drawn > 0.5)).sum() / ((a > 0.5) | (drawn > 0.5)).sum() for a in (shown, moved))
    assert after > 0.5 * (1 + before), (before, after)
    assert np.abs(flow).max() < 0.06 * 360 and np.abs(flow[300, 110]).max() < 1.0, "what fits stays"


def striped(up_px: float, contrast: float = 0.5) -> np.ndarray:
    rows = np.arange(400)[:, None] + up_px
    return np.repeat(np.broadcast_to(0.5 + contrast * np.sin(rows / 3.5) * 0.5, (400, 260))[..., None], 3, axis=2)


@pytest.mark.parametrize("up_px", [-3.0, 2.0])
def test_stripes_are_moved_onto_stripes(up_px: float) -> None:
    where = figure_outline(0, 0) > 0.5
    flow = detail_flow(striped(0), striped(up_px), where)
    inside = cv2.erode(where.astype(np.uint8), np.ones((15, 15), np.uint8)) > 0
    assert np.median(flow[inside, 1]) == pytest.approx(-up_px, abs=1.2) and np.abs(np.median(flow[inside, 0])) < 0.5
    both = joined(np.full_like(flow, 2.0), flow)
    np.testing.assert_allclose(both, flow + 2.0, atol=1e-5)


def test_what_the_drawing_does_not_show_moves_nothing() -> None:
    where = figure_outline(0, 0) > 0.5
    assert np.abs(detail_flow(striped(0, 0.0), striped(3.0), where)).max() < 0.3, "a print on a plain back stays"
    assert not detail_flow(striped(0), striped(3.0), np.zeros_like(where)).any()


@pytest.mark.parametrize("empty", [0, 1])
def test_without_an_outline_nothing_moves(empty: int) -> None:
    pictures = [figure_outline(0, 0), figure_outline(0, 0)]
    pictures[empty] = np.zeros_like(pictures[empty])
    assert not outline_flow(*pictures).any()


def test_a_photo_without_anybody_is_named_by_its_place(tmp_path: Path) -> None:
    Image.new("RGB", (160, 200), (120, 120, 120)).save(tmp_path / "photos-0.png")
    someone = dressed()

    class Worn:
        """A proxy that needs no clothes."""

        vertices_m = someone.rest_m
        body = staticmethod(lambda body: body)
        wearer = staticmethod(lambda personal: personal)

    class Fit:
        """Of the first photo."""

        betas = np.zeros(20)

    with pytest.raises(UserError, match="further photo 1: No person"):
        fit_photos(
            someone.person,
            load_default_body(),
            Fit(),
            someone.personal,
            Worn(),
            ["photos-0.png"],
            tmp_path,
            CONTEXT,  # type: ignore[arg-type]
        )
