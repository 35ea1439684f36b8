"""Which stages complete what the photo does not show, and what the result says of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backend.context import Context
from backend.diffusion.weights import Weights
from backend.errors import MODEL_MISSING, UserError
from backend.generate import GIVEN
from backend.methods.body import stages
from backend.methods.body_completion import LIFT_MODELS, completing_stages, lift_stage
from backend.pipeline import check_chain
from blender_addon.shared.methods import BodyRequest
from tests.human.oracle_lift import LiftDefects, OracleLift
from tests.human.oracle_splats import dressed, splats


class Some(Weights):
    """Models that count as installed."""

    def __init__(self, root: Path, ids: tuple[str, ...]) -> None:
        super().__init__(root)
        object.__setattr__(self, "ids", ids)

    def installed(self, model_id: str, storage: Any = None) -> bool:
        return model_id in self.ids  # type: ignore[attr-defined]


class Worn:
    """A proxy that needs no clothes."""

    vertices_m = dressed().rest_m
    body = staticmethod(lambda body: body)
    wearer = staticmethod(lambda personal: personal)


def run(make: Any, device: str = "cpu") -> Any:
    someone = dressed()
    context = Context.quiet(seed=0, device=device)
    stage = lift_stage(make)
    return stage.run(someone.person, someone.body, someone.personal, Worn(), splats(), None, context)


@pytest.mark.parametrize(
    ("request_", "installed", "wanted", "placed"),
    [
        (BodyRequest(), (), [], "splats"),
        (BodyRequest(), ("triposplat",), ["Lift back and hair"], "lifted"),
        (BodyRequest(), ("trellis",), ["Lift back and hair"], "lifted"),
        (BodyRequest(lift=False), LIFT_MODELS, [], "splats"),
        (BodyRequest(photos=("a.png",)), (), ["Find the person again", "Colour from the further photos"], "coloured"),
        (
            BodyRequest(photos=("a.png",)),
            LIFT_MODELS,
            ["Lift back and hair", "Find the person again", "Colour from the further photos"],
            "coloured",
        ),
    ],
)
def test_stages_follow_the_request_and_what_is_installed(
    request_: BodyRequest, installed: tuple[str, ...], wanted: list[str], placed: str, tmp_path: Path
) -> None:
    models = Some(tmp_path, installed)
    found, name = completing_stages(request_, models)
    assert ([stage.name for stage in found], name) == (wanted, placed)
    whole = stages(request_, models)
    check_chain(whole, GIVEN)
    match = next(stage for stage in whole if stage.name == "Match the photo")
    assert placed in match.needs
    assert ("lift_notes" in whole[-1].needs) == ("lifted" in [n for stage in found for n in stage.provides])


def test_a_lift_is_named_in_the_result() -> None:
    made, notes = run(lambda folders, device: OracleLift(LiftDefects(turn_deg=4)))
    assert len(made) > len(splats()) and notes.warnings == ()
    assert notes.made_by == ("oracle of lifted figures (GPL-3.0-or-later)",)


def test_a_lift_that_cannot_be_made_is_a_line_and_no_failure() -> None:
    def missing(folders: object, device: str) -> Any:
        raise UserError("TripoSplat is not installed", MODEL_MISSING)

    def broken(folders: object, device: str) -> Any:
        raise UserError("a file is damaged", 1, "BAD_MODEL")

    made, notes = run(missing)
    assert made is splats() and notes.made_by == () and "TripoSplat is not installed" in notes.warnings[0]
    made, notes = run(None)
    assert made is splats() and "graphics card" in notes.warnings[0]
    with pytest.raises(UserError, match="damaged"):
        run(broken)


def test_another_shape_changes_nothing_and_is_a_warning() -> None:
    made, notes = run(lambda folders, device: OracleLift(shape="ball"))
    assert made is splats() and notes.made_by == () and "were not used" in notes.warnings[0]
    assert np.isfinite(made.colours).all()
