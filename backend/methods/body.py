"""Method `body`: a whole-body avatar from one photograph.

With nothing downloaded this is the photo-only path: perception, body fit, the person's own head, volume for hair and
loose clothes from the outline, Gaussians coloured by the photo where it shows them and filled by rule where it does
not, and a short optimisation against the photo.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from backend.context import Context
from backend.diffusion.weights import Weights
from backend.human.cover import body_splats
from backend.human.dress import Dressed, dress, find_held_objects
from backend.human.fit import BodyFit, fit_body
from backend.human.head import head_splats, personalise_head
from backend.human.model import BodyModel, load_default_body, load_smplx
from backend.human.personal import Personal
from backend.human.posing import photo_expression_m, pose_proxy
from backend.perception.people import Person, find_person
from backend.perception.photo import Photo
from backend.pipeline import Outcome, Stage
from backend.preview import write_contact_sheet
from backend.splats.avatar import build_avatar
from backend.splats.bound import BoundSplats, concatenate
from backend.splats.optimise import OptimiseSettings, optimise_to_photo
from blender_addon.shared.avatar import write_bundle
from blender_addon.shared.methods import BodyRequest

ITERATIONS = {"fast": 90, "balanced": 180, "best": 400}
"""Steps against the photo by preset: each is worth its time in the front view only; the demo's portrait reaches 32 dB
inside its eroded mask with 180 (measured)."""


def stages(request: BodyRequest, models: Weights) -> list[Stage]:
    """The stages in their order; what is there at the start is `backend.generate.GIVEN`."""
    return [
        Stage("Load the body", ("own_body",), ("body",), _load, keep=False),
        Stage("Find the person", ("photo", "request"), ("person",), _find, version=2),
        Stage("Fit the body", ("person", "body"), ("fit",), fit_body, version=2),
        Stage("Fit the head", ("person", "body", "fit"), ("personal",), personalise_head),
        Stage("Dress the body", ("person", "body", "personal", "request"), ("held", "dressed"), _dress, version=2),
        Stage("Place the Gaussians", ("person", "body", "personal", "dressed", "held"), ("splats",), _place, version=3),
        Stage(
            "Match the photo",
            ("person", "body", "personal", "dressed", "held", "splats", "request"),
            ("matched",),
            _match,
            version=2,
            economies=("matched at 256 px instead of 512",),
        ),
        Stage(
            "Write the avatar",
            ("person", "body", "fit", "personal", "dressed", "matched", "request", "folder"),
            ("outcome",),
            _write,
            keep=False,
        ),
    ]


def _load(own_body: Path | None, context: Context) -> BodyModel:
    return load_default_body() if own_body is None else load_smplx(own_body)


def _find(photo: Photo, request: BodyRequest, context: Context) -> Person:
    return find_person(photo.image, request.person, context)


def _dress(
    person: Person, body: BodyModel, personal: Personal, request: BodyRequest, context: Context
) -> tuple[np.ndarray, Dressed]:
    held = find_held_objects(person, body, personal)
    return held, dress(person, body, personal, held, request.outline, context)


def _place(
    person: Person, body: BodyModel, personal: Personal, dressed: Dressed, held: np.ndarray, context: Context
) -> BoundSplats:
    head = head_splats(person, body, personal, context.part("head", 0, 60, 100))
    rest = body_splats(person, body, personal, dressed, held, context.part("clothes and hands", 60, 100, 100))
    return concatenate([head, rest])


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
    body, personal = dressed.body(body), dressed.wearer(personal)
    rest = dressed.vertices_m
    photo_rest = rest + photo_expression_m(personal)
    posed = pose_proxy(body, photo_rest, personal.joints_m, personal.pose, personal.translation_m)
    return optimise_to_photo(
        splats,
        posed,
        rest,
        body.triangles,
        personal.camera,
        person.image,
        person.mask,
        held,
        _face_box(person),
        OptimiseSettings(iterations=ITERATIONS[request.preset], size_px=512 >> context.economy),
        context,
    )


def _title(body: BodyModel) -> str:
    """Name of the body with its terms: a user's own file has them, and what is made with it too."""
    return body.name if body.has_actions else f"{body.name}; its licence allows research only unless you have another"


def _face_box(person: Person) -> tuple[float, float, float, float] | None:
    """(x0, y0, x1, y1) px around the face, or None where there is none."""
    if not len(person.face_px):
        return None
    low, high = person.face_px[:468, :2].min(axis=0), person.face_px[:468, :2].max(axis=0)
    centre, half = (low + high) / 2, 0.59 * float((high - low).max())
    return (*(centre - half), *(centre + half))


def _write(
    person: Person,
    body: BodyModel,
    fit: BodyFit,
    personal: Personal,
    dressed: Dressed,
    matched: BoundSplats,
    request: BodyRequest,
    folder: Path,
    context: Context,
) -> Outcome:
    body, personal = dressed.body(body), dressed.wearer(personal)
    cloud, avatar = build_avatar(body, personal, fit.betas, dressed.vertices_m, matched, request.height_m)
    write_bundle(folder, cloud, avatar)
    write_contact_sheet(folder / "preview.png", person.image, cloud, avatar, context)
    return Outcome(
        generators=("photo only (no generative model)", _title(body), "mediapipe 0.10.21 (Apache-2.0)"),
    )
