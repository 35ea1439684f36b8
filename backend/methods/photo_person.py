"""Stages that several methods share: from the photo to the fitted, dressed person in Gaussians."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from backend.context import Context
from backend.human.cover import body_splats
from backend.human.dress import Dressed, dress, find_held_objects
from backend.human.head import head_splats
from backend.human.model import BodyModel, load_default_body, load_smplx
from backend.human.personal import Personal
from backend.human.posing import photo_expression_m, pose_proxy
from backend.perception.people import Person
from backend.splats.bound import BoundSplats, concatenate
from backend.splats.optimise import OptimiseSettings, optimise_to_photo


def load_body(own_body: Path | None, context: Context) -> BodyModel:
    """The user's own body model, else the one that comes with Effigy."""
    return load_default_body() if own_body is None else load_smplx(own_body)


def dress_person(
    person: Person, body: BodyModel, personal: Personal, outline: bool, context: Context
) -> tuple[np.ndarray, Dressed]:
    """What the person holds [H, W] bool, and the person with the clothes' outline."""
    held = find_held_objects(person, body, personal)
    return held, dress(person, body, personal, held, outline, context)


def place_splats(
    person: Person, body: BodyModel, personal: Personal, dressed: Dressed, held: np.ndarray, context: Context
) -> BoundSplats:
    """Gaussians of the whole person, bound to the dressed proxy."""
    head = head_splats(person, body, personal, context.part("head", 0, 60, 100))
    rest = body_splats(person, body, personal, dressed, held, context.part("clothes and hands", 60, 100, 100))
    return concatenate([head, rest])


def match_photo(
    person: Person,
    body: BodyModel,
    personal: Personal,
    dressed: Dressed,
    held: np.ndarray,
    splats: BoundSplats,
    settings: OptimiseSettings,
    context: Context,
    mask: np.ndarray | None = None,
) -> BoundSplats:
    """The Gaussians after their optimisation against the photo.

    Args:
        person: On the photo.
        body: The body model.
        personal: The fitted person.
        dressed: From `dress_person`.
        held: [H, W] bool, pixels that do not count.
        splats: From `place_splats`.
        settings: How long and how large.
        context: Progress, preview, cancel and seed.
        mask: [H, W] 0..1 that the Gaussians shall fill; None for the person's.
    """
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
        person.mask if mask is None else mask,
        held,
        face_box(person),
        settings,
        context,
    )


def face_box(person: Person) -> tuple[float, float, float, float] | None:
    """(x0, y0, x1, y1) px around the face, or None where there is none."""
    if not len(person.face_px):
        return None
    low, high = person.face_px[:468, :2].min(axis=0), person.face_px[:468, :2].max(axis=0)
    centre, half = (low + high) / 2, 0.59 * float((high - low).max())
    return (*(centre - half), *(centre + half))


def body_title(body: BodyModel) -> str:
    """Name of the body with its terms: a user's own file has them, and what is made with it too."""
    return body.name if body.has_actions else f"{body.name}; its licence allows research only unless you have another"


__all__ = ["body_title", "dress_person", "face_box", "load_body", "match_photo", "place_splats"]
