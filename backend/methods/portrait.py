"""Method `portrait`: a stylised bust that blinks, speaks and turns.

The person is made from the photo as for `body`, cut to a bust, and then styled in one of three ways: with nothing
downloaded by a palette and a material that answer to a fixed studio; by Style Aligned Sampling with Stable Diffusion;
or before all that, by an image model that edits the photo.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

import cv2
import numpy as np

from backend.context import Context
from backend.diffusion.weights import Weights
from backend.errors import MODEL_MISSING, UserError
from backend.human.bust import Bust, beyond_bust, cut_bust, inside_bust
from backend.human.dress import Dressed
from backend.human.fit import BodyFit, fit_body
from backend.human.head import personalise_head
from backend.human.model import BodyModel
from backend.human.personal import Personal
from backend.human.zbuffer import view_mesh
from backend.methods import portrait_sas
from backend.methods.photo_person import body_title, dress_person, load_body, match_photo, place_splats
from backend.perception.people import Person, find_person
from backend.perception.photo import Photo, read_photo
from backend.pipeline import Outcome, Stage
from backend.preview import write_bust_sheet
from backend.splats.avatar import build_avatar
from backend.splats.bound import BoundSplats, Kind, concatenate
from backend.splats.detail import four_parts
from backend.splats.optimise import OptimiseSettings
from blender_addon.shared.avatar import write_bundle
from blender_addon.shared.methods import PortraitRequest
from blender_addon.shared.styles import STYLES, find_style

ITERATIONS = {"fast": 30, "balanced": 60, "best": 250}
"""Steps against the photo by preset; most of what they gain is hidden by a style."""

FINEST_CLOTH_M = 0.0026
"""Clothes fill the picture of a bust: larger Gaussians (standard deviation) are split into four."""

UNSEEN_GROWTH = 1.25
"""Clothes that the photo does not show stay as they are laid: so much wider, light does not shine through."""

NOSE_REACH = 1.1
"""The nose's tip is so far from the middle of the head, in half widths of the face."""

TURNED_DEG, PROFILE_DEG = 28.0, 51.0
"""From here on the result says so; beyond the second a face is refused. Landmarks tell 30 from 60 degrees to 2 degrees,
and never more than 60."""

PALETTE = "colours and material by rule (no generative model)"


def stages(request: PortraitRequest, models: Weights) -> list[Stage]:
    """The stages in their order; what is there at the start is `backend.generate.GIVEN`.

    Raises:
        UserError: If the style or the way needs a model that is not installed.
    """
    way = choose_way(request, models)
    edited = portrait_sas.edit_stages(request, models) if way == "edit" else []
    shown = "edited" if way == "edit" else "photo"
    chain = [
        *edited,
        Stage("Load the body", ("own_body",), ("body",), load_body, keep=False),
        Stage("Find the face", (shown, "request"), ("person",), _find),
        Stage("Fit the body", ("person", "body"), ("fit",), fit_body),
        Stage("Fit the head", ("person", "body", "fit"), ("personal",), personalise_head),
        Stage("Dress the body", ("person", "body", "personal"), ("held", "dressed"), _dress),
        Stage("Place the Gaussians", ("person", "body", "personal", "dressed", "held"), ("placed",), _place),
        Stage(
            "Match the photo",
            ("person", "body", "personal", "dressed", "held", "placed", "request"),
            ("matched",),
            _match,
            economies=("matched at 256 px instead of 512",),
        ),
        Stage("Cut the bust", ("body", "personal", "dressed", "matched"), ("bust",), _cut),
    ]
    if way == "sas":
        chain += portrait_sas.sas_stages(request, models)
    elif way == "palette":
        chain += [Stage("Paint the style", ("bust", "request", "folder"), ("styled", "made_by"), _paint)]
    else:
        chain += [Stage("Keep the edited colours", ("bust",), ("styled",), _as_matched)]
    return [*chain, _written(notes(request, way))]


def _written(warnings: tuple[str, ...]) -> Stage:
    needs = ("person", "body", "fit", "bust", "styled", "made_by", "folder")
    return Stage("Write the portrait", needs, ("outcome",), partial(_write, warnings), keep=False)


def notes(request: PortraitRequest, way: str) -> tuple[str, ...]:
    """What of a request has no influence on its way, a line each."""
    if way != "palette":
        return ()
    lines: list[str] = []
    if request.negative.strip():
        lines.append("What to avoid is for image models; without one it was not used.")
    if request.style_image and request.style.strip() and request.style != PortraitRequest().style:
        lines.append(f"The style picture's colours were taken, not the style '{request.style.strip()[:40]}'.")
    return tuple(lines)


def choose_way(request: PortraitRequest, models: Weights) -> Literal["palette", "sas", "edit"]:
    """Which way a request goes with what is installed.

    Raises:
        UserError: Code 3 if it cannot go any: the line names the presets and the command that fetches the models.
    """
    if request.way in ("sas", "edit"):
        missing = portrait_sas.lacking(request.way, models)
        if missing:
            raise UserError(
                f"way={request.way} needs {', '.join(missing)}, not installed: {_fetch(missing)}; or leave way=auto",
                MODEL_MISSING,
            )
        return request.way
    missing = portrait_sas.lacking("sas", models)
    known = bool(request.style_image) or find_style(request.style) is not None
    if request.way == "auto" and not missing and (portrait_sas.worth_waiting() or not known):
        return "sas"
    if not known:
        words = " ".join(request.style.split())[:60]
        raise UserError(
            f"no preset is called '{words}', and without an image model there are only presets: {', '.join(STYLES)};"
            f" name one, give a style picture, or fetch the model: {_fetch(missing or portrait_sas.MODELS['sas'])}",
            MODEL_MISSING,
        )
    return "palette"


def _fetch(missing: tuple[str, ...]) -> str:
    return f"python -m backend models fetch {' '.join(missing)}"


def _find(photo: Photo, request: PortraitRequest, context: Context) -> Person:
    person = find_person(photo.image, request.person, context, from_behind=True)
    if not len(person.face_px):
        raise UserError(
            "No face was recognised in the photo; use one in which the face is larger and seen from the front.",
            kind="BAD_IMAGE",
        )
    turn = face_turn_deg(person.face_px)
    if turn > PROFILE_DEG:
        raise UserError(
            f"The face is seen in profile, turned by about {turn:.0f} degrees; use a photo in which it looks towards"
            " the camera.",
            kind="BAD_IMAGE",
        )
    if turn < TURNED_DEG:
        return person
    line = f"The face is turned by {turn:.0f} degrees: its hidden side is guessed; one from the front is better."
    return replace(person, warnings=(*person.warnings, line))


def face_turn_deg(face_px: np.ndarray) -> float:
    """By how much a face is turned to a side, from its landmarks [478, 3] px: the nose's place between the cheeks."""
    nose, right, left = (face_px[k, 0] for k in (1, 234, 454))
    half = max(abs(left - right) / 2, 1e-6)
    return float(np.degrees(np.arctan(abs(nose - 0.5 * (left + right)) / half / NOSE_REACH)))


def _dress(person: Person, body: BodyModel, personal: Personal, context: Context) -> tuple[np.ndarray, Dressed]:
    return dress_person(person, body, personal, True, context)


def _place(
    person: Person, body: BodyModel, personal: Personal, dressed: Dressed, held: np.ndarray, context: Context
) -> BoundSplats:
    splats = place_splats(person, body, personal, dressed, held, context)
    worn = dressed.body(body), dressed.wearer(personal)
    kept = inside_bust(*worn, dressed.vertices_m, splats)
    if not shows_shoulders(person):  # sheets of clothes that the picture cuts off would stand alone
        kept &= splats.kind != Kind.MEMBRANE
    splats = splats.select(kept)
    coarse = np.isin(splats.kind, (Kind.CLOTH, Kind.MEMBRANE)) & (splats.scales_m.max(axis=1) > FINEST_CLOTH_M)
    fine = concatenate([splats.select(~coarse), *four_parts(splats.select(coarse))])
    unseen = np.isin(fine.kind, (Kind.CLOTH, Kind.MEMBRANE)) & (fine.confidence == 0)
    grown = np.where(unseen, UNSEEN_GROWTH, 1.0)[:, None] * [1, 1, 0] + [0, 0, 1]
    return replace(fine, scales_m=fine.scales_m * grown)


def shows_shoulders(person: Person) -> bool:
    """Whether both shoulders are on the photo."""
    height, width = person.mask.shape
    points = person.keypoints_px[[11, 12]]
    inside = ((points > 0) & (points < [width, height])).all()
    return bool(inside and person.keypoint_visibility[[11, 12]].min() > 0.5)


def _match(
    person: Person,
    body: BodyModel,
    personal: Personal,
    dressed: Dressed,
    held: np.ndarray,
    placed: BoundSplats,
    request: PortraitRequest,
    context: Context,
) -> BoundSplats:
    settings = OptimiseSettings(iterations=ITERATIONS[request.preset], size_px=512 >> context.economy)
    away = _beyond(person, dressed.body(body), dressed.wearer(personal), dressed)
    mask = np.where(away, 0, person.mask).astype(np.float32)
    return match_photo(person, body, personal, dressed, held | away, placed, settings, context, mask)


def _beyond(person: Person, body: BodyModel, personal: Personal, dressed: Dressed) -> np.ndarray:
    """[H, W] bool: pixels of what the bust does not keep, each counted to the nearest part of the body."""
    view = view_mesh(dressed.posed_m.astype(np.float64), body.triangles, personal.camera)
    covered = view.nearest.covered
    if not covered.any():
        return np.zeros(person.mask.shape, bool)
    gone = beyond_bust(body, personal, dressed.vertices_m)[body.triangles].any(axis=1)
    _, index = cv2.distanceTransformWithLabels(
        (~covered).astype(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
    )
    table = np.zeros(index.max() + 1, bool)
    table[index[covered]] = gone[view.nearest.triangle[covered]]
    return table[index]


def _cut(body: BodyModel, personal: Personal, dressed: Dressed, matched: BoundSplats, context: Context) -> Bust:
    return cut_bust(dressed.body(body), dressed.wearer(personal), dressed.vertices_m, matched)


def _as_matched(bust: Bust, context: Context) -> BoundSplats:
    return bust.splats


def _paint(bust: Bust, request: PortraitRequest, folder: Path, context: Context) -> tuple[BoundSplats, tuple[str, ...]]:
    from backend.splats.palette import paint

    style = find_style(request.style) or STYLES["realistic"]
    picture = read_photo(folder / request.style_image).image if request.style_image else None
    return paint(bust, style.look, picture, request.strength, context), (PALETTE,)


def _write(
    warnings: tuple[str, ...],
    person: Person,
    body: BodyModel,
    fit: BodyFit,
    bust: Bust,
    styled: BoundSplats,
    made_by: tuple[str, ...],
    folder: Path,
    context: Context,
) -> Outcome:
    cloud, avatar = build_avatar(bust.body, bust.personal, fit.betas, bust.vertices_m, styled)
    write_bundle(folder, cloud, avatar)
    write_bust_sheet(folder / "preview.png", person.image, cloud, avatar, context)
    return Outcome(generators=(*made_by, body_title(body), "mediapipe 0.10.21 (Apache-2.0)"), warnings=warnings)


__all__ = ["choose_way", "face_turn_deg", "notes", "shows_shoulders", "stages"]
