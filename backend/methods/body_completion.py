"""Stages that complete what the first photo does not show: a lift of it, where installed, and further photos."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from backend.errors import UserError
from backend.human.dress import Dressed
from backend.human.fit import BodyFit
from backend.human.further_colours import FittedPhotos, colour_from_photos, fit_photos
from backend.human.model import BodyModel
from backend.human.personal import Personal
from backend.human.video_camera import Subject
from backend.perception.people import Person
from backend.pipeline import Stage
from backend.splats.bound import BoundSplats

if TYPE_CHECKING:
    from backend.context import Context
    from backend.diffusion.interfaces import LiftGenerator
    from backend.diffusion.load import Folders
    from backend.diffusion.weights import Weights
    from blender_addon.shared.methods import BodyRequest

LIFT_MODELS = ("triposplat", "trellis")
"""Any of them makes Gaussians of the photo."""

WEARING = ("person", "body", "personal", "dressed")
Maker = Callable[["Folders", str], "LiftGenerator"]


@dataclass(frozen=True)
class LiftNotes:
    """What is said of a lift.

    Attributes:
        made_by: The model, where its Gaussians were used. warnings: For the artist, a line each.
    """

    made_by: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def lift_stage(make: Maker | None = None) -> Stage:
    """Back and hair from a lift of the photo; `make` loads the model (tests put an oracle here)."""
    needs = (*WEARING, "splats", "models")
    return Stage("Lift back and hair", needs, ("lifted", "lift_notes"), partial(_lift, make))


def completing_stages(request: BodyRequest, models: Weights) -> tuple[list[Stage], str]:
    """The stages between placing the Gaussians and matching the photo, and what the completed Gaussians are called."""
    stages, placed = [], "splats"
    if request.lift and any(models.installed(model_id) for model_id in LIFT_MODELS):
        stages.append(lift_stage())
        placed = "lifted"
    if request.photos:
        needs = ("person", "body", "fit", "personal", "dressed", "request", "folder")
        stages.append(Stage("Find the person again", needs, ("again",), _fit_photos))
        stages.append(Stage("Colour from the further photos", (*WEARING, placed, "again"), ("coloured",), _colour))
        placed = "coloured"
    return stages, placed


def _fit_photos(
    person: Person,
    body: BodyModel,
    fit: BodyFit,
    personal: Personal,
    dressed: Dressed,
    request: BodyRequest,
    folder: Path,
    context: Context,
) -> FittedPhotos:
    return fit_photos(person, body, fit, personal, dressed, request.photos, folder, context)


def _colour(
    person: Person,
    body: BodyModel,
    personal: Personal,
    dressed: Dressed,
    splats: BoundSplats,
    again: FittedPhotos,
    context: Context,
) -> BoundSplats:
    return colour_from_photos(person, body, personal, dressed, splats, again, context)


def _lift(
    make: Maker | None,
    person: Person,
    body: BodyModel,
    personal: Personal,
    dressed: Dressed,
    splats: BoundSplats,
    models: Folders,
    context: Context,
) -> tuple[BoundSplats, LiftNotes]:
    from backend.diffusion.lift import lift_generator
    from backend.human.lifted import lift_back

    if make is None and context.device == "cpu":
        return splats, LiftNotes(warnings=("Back and hair were not lifted: that needs a graphics card.",))
    try:
        generator = (make or lift_generator)(models, context.device)
    except UserError as error:
        if error.kind != "NO_MODEL":
            raise
        return splats, LiftNotes(warnings=(f"Back and hair were not lifted: {error.message}",))
    subject = Subject(person, dressed.body(body), dressed.wearer(personal), dressed.vertices_m)
    made = lift_back(generator, splats, subject, context)
    return made.splats, LiftNotes(made.made_by, made.warnings)


__all__ = ["LIFT_MODELS", "LiftNotes", "completing_stages", "lift_stage"]
