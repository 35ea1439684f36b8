"""Method `body`: a whole-body avatar from one photograph.

With nothing downloaded this is the photo-only path: perception, body fit, the person's own head, volume for hair and
loose clothes from the outline, Gaussians coloured by the photo where it shows them and filled by rule where it does
not, and a short optimisation against the photo. Where a video model is installed, PERSONA's path follows it
(`body_learned`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from backend.context import Context
from backend.diffusion.registry import row
from backend.diffusion.weights import Weights, missing
from backend.errors import MODEL_MISSING, UserError
from backend.human.dress import Dressed
from backend.human.fit import BodyFit, fit_body
from backend.human.head import personalise_head
from backend.human.model import BodyModel
from backend.human.personal import Personal
from backend.methods.body_completion import LiftNotes, completing_stages
from backend.methods.photo_person import body_title, dress_person, load_body, match_photo, place_splats
from backend.perception.people import Person, find_person
from backend.perception.photo import Photo
from backend.pipeline import Outcome, Stage
from backend.preview import write_contact_sheet
from backend.splats.avatar import build_avatar
from backend.splats.bound import BoundSplats
from backend.splats.optimise import OptimiseSettings
from blender_addon.shared.avatar import write_bundle
from blender_addon.shared.methods import BodyRequest

if TYPE_CHECKING:
    from backend.splats.persona_avatar import BoundPersona

PHOTO_ONLY = ("photo only (no generative model)",)

ITERATIONS = {"fast": 90, "balanced": 180, "best": 400}
"""Steps against the photo by preset: each is worth its time in the front view only; the demo's portrait reaches 32 dB
inside its eroded mask with 180 (measured)."""


VIDEO_MODELS = ("wan-animate", "wan-vace")
"""Any of them makes the frames that PERSONA learns from."""


def stages(request: BodyRequest, models: Weights) -> list[Stage]:
    """The stages in their order; what is there at the start is `backend.generate.GIVEN`.

    Raises:
        UserError: Code 3 if generated frames are wanted and no video model is installed.
    """
    complete, placed = completing_stages(request, models)
    photo = photo_stages(complete, placed)
    lift = tuple(name for stage in complete for name in stage.provides if name == "lift_notes")
    if not is_learned(request, models):
        return [*photo, written(lift)]
    from backend.methods.body_learned import learned_stages

    return [*photo, *learned_stages(request), written(("persona", *lift))]


def is_learned(request: BodyRequest, models: Weights) -> bool:
    """Whether a video model shows the person in motion.

    Raises:
        UserError: Code 3 if that is wanted and none is installed.
    """
    if request.frames == "photo":
        return False
    if any(models.installed(model_id) for model_id in VIDEO_MODELS):
        return True
    if request.frames == "generated":
        raise UserError(missing(row(VIDEO_MODELS[-1]), models), MODEL_MISSING)
    return False


def photo_stages(complete: Sequence[Stage] = (), placed: str = "splats") -> list[Stage]:
    """From the photo to Gaussians that match it; `complete` are stages that turn "splats" into `placed` before."""
    return [
        Stage("Load the body", ("own_body",), ("body",), load_body, keep=False),
        Stage("Find the person", ("photo", "request"), ("person",), _find, version=2),
        Stage("Fit the body", ("person", "body"), ("fit",), fit_body, version=2),
        Stage("Fit the head", ("person", "body", "fit"), ("personal",), personalise_head),
        Stage("Dress the body", ("person", "body", "personal", "request"), ("held", "dressed"), _dress, version=2),
        Stage(
            "Place the Gaussians",
            ("person", "body", "personal", "dressed", "held"),
            ("splats",),
            place_splats,
            version=3,
        ),
        *complete,
        Stage(
            "Match the photo",
            ("person", "body", "personal", "dressed", "held", placed, "request"),
            ("matched",),
            _match,
            version=2,
            economies=("matched at 256 px instead of 512",),
        ),
    ]


def written(more: tuple[str, ...]) -> Stage:
    """The last stage; `more` names what the learned path and a lift provide."""
    needs = ("person", "body", "fit", "personal", "dressed", "matched", "request", "folder", *more)
    return Stage("Write the avatar", needs, ("outcome",), _write, keep=False)


def _find(photo: Photo, request: BodyRequest, context: Context) -> Person:
    return find_person(photo.image, request.person, context)


def _dress(
    person: Person, body: BodyModel, personal: Personal, request: BodyRequest, context: Context
) -> tuple[np.ndarray, Dressed]:
    return dress_person(person, body, personal, request.outline, context)


def _match(
    person: Person,
    body: BodyModel,
    personal: Personal,
    dressed: Dressed,
    held: np.ndarray,
    splats: BoundSplats,
    request: BodyRequest,
    context: Context,
) -> BoundSplats:
    settings = OptimiseSettings(iterations=ITERATIONS[request.preset], size_px=512 >> context.economy)
    return match_photo(person, body, personal, dressed, held, splats, settings, context)


def _write(
    person: Person,
    body: BodyModel,
    fit: BodyFit,
    personal: Personal,
    dressed: Dressed,
    matched: BoundSplats,
    request: BodyRequest,
    folder: Path,
    *rest: Any,
) -> Outcome:
    """`rest` is the learned path's `Part` and a lift's notes, where they were made, and the context."""
    *more, context = rest
    lift = next((value for value in more if isinstance(value, LiftNotes)), LiftNotes())
    part = [value for value in more if not isinstance(value, LiftNotes)]
    learned: BoundPersona | None = part[0].value if part else None
    worn, wearer = dressed.body(body), dressed.wearer(personal)
    splats = matched if learned is None else learned.splats
    cloud, avatar = build_avatar(worn, wearer, fit.betas, dressed.vertices_m, splats, request.height_m)
    if learned is not None:
        scale = float(np.ptp(avatar.vertices_m[:, 1])) / float(np.ptp(dressed.vertices_m[:, 1]))
        avatar = replace(avatar, controls=learned.controls(scale))
    write_bundle(folder, cloud, avatar)
    write_contact_sheet(folder / "preview.png", person.image, cloud, avatar, context)
    made_by = (*(() if learned is None else learned.made_by), *lift.made_by) or PHOTO_ONLY
    return Outcome((*made_by, body_title(worn), "mediapipe 0.10.21 (Apache-2.0)"), _unused(request, bool(part)))


def _unused(request: BodyRequest, learned: bool) -> tuple[str, ...]:
    """What the request names and the photo-only path does not look at, a line each."""
    if learned:
        return ()
    if not request.motions:
        return ()
    step = "they count where frames are generated: python -m backend models fetch wan-vace"
    return (f"The motions were not used; {step}",)
