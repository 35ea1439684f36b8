"""Further photographs of the same person, from the side or from behind, as captured frames.

The shape is the first photo's and stays; pose and camera are each photo's own. Photos are brought to the first one's
exposure by the colours of what both show: skin, hair, garments.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from backend.errors import UserError
from backend.human.fit import BodyFit, FitSettings, fit_body
from backend.human.frame_targets import Pictured
from backend.human.model import BodyModel
from backend.human.video_camera import Subject
from backend.perception.people import Label, Person, find_person
from backend.splats.light import to_display, to_linear

if TYPE_CHECKING:
    from backend.context import Context
    from backend.perception.photo import Photo

STAGE = "Fit the further photos"
LARGEST_GAIN = 1.8
"""Exposures that differ by more are taken for other clothes."""

ALIKE = 0.25
"""Mean difference of linear colours, of their sum, above which the clothes are not those of the first photo."""

LEAST_SHARE = 0.02
"""Of the person that a label must cover for its colour to count."""


@dataclass(frozen=True)
class FurtherPhoto:
    """A photo after its fit.

    Attributes:
        picture: As a captured frame. fit: Pose and camera. warnings: For the artist, a line each.
        labels: uint8 [H, W] of `Label`, of its pixels.
    """

    picture: Pictured
    fit: BodyFit
    warnings: tuple[str, ...]
    labels: np.ndarray


def with_fixed_shape(body: BodyModel, betas: np.ndarray) -> BodyModel:
    """The body model of one person: no shape numbers are left to fit."""
    rest, _ = body.rest(betas)
    return replace(body, template_m=rest, shape_dirs_m=np.zeros_like(body.shape_dirs_m))


def fit_further(
    person: Person,
    name: str,
    subject: Subject,
    bare: BodyModel,
    betas: np.ndarray,
    context: Context,
    settings: FitSettings | None = None,
) -> FurtherPhoto:
    """Fit one further photo.

    Args:
        person: What perception found in it.
        name: Of the file, for warnings.
        subject: The person of the first photo.
        bare: The body model that was fitted to it.
        betas: [20] its shape.
        context: Progress and cancelling.
        settings: Of the fit.
    """
    shaped = with_fixed_shape(bare, betas)
    fit = fit_body(person, shaped, context, settings or FitSettings())
    # the pose turns about the pelvis, whose rest place may differ a little between model and dressed person
    pelvis = shaped.rest(np.zeros_like(betas))[1][0]
    shift = np.asarray(fit.translation_m, np.float64) + pelvis - subject.personal.joints_m[0]
    actions = np.zeros_like(np.asarray(subject.personal.actions))
    shown = Pictured(person.image, person.mask, fit.camera, fit.pose.astype(np.float64), shift, actions, True)
    shown, alike = same_exposure(shown, person, subject.person)
    warnings = [f"{name}: {line}" for line in (*person.warnings, *fit.warnings) if "face" not in line]
    if not alike:
        warnings.append(f"{name}: the clothes differ from those of the first photo; leave it out if it is another day.")
    return FurtherPhoto(shown, fit, tuple(warnings), person.labels)


def fit_more_photos(
    photos: Sequence[Photo], subject: Subject, bare: BodyModel, betas: np.ndarray, context: Context
) -> tuple[FurtherPhoto, ...]:
    """Find and fit the person in further photos; see `fit_further`.

    Raises:
        UserError: If a photo shows nobody, with its name.
        Cancelled: If the user cancelled.
    """
    made = []
    for number, photo in enumerate(photos):
        part = context.part(STAGE, number, number + 1, len(photos))
        try:
            person = find_person(photo.image, 0, part, from_behind=True)
            made.append(fit_further(person, photo.path.name, subject, bare, betas, part))
        except UserError as error:
            raise UserError(f"{photo.path.name}: {error.message}", error.code, error.kind) from error
    return tuple(made)


def same_exposure(picture: Pictured, person: Person, first: Person) -> tuple[Pictured, bool]:
    """The photo with one factor per channel, and whether its garments then have the first photo's colours.

    Hair, skin and garments are compared, each by its median: from behind no point of the body is seen twice.
    """
    ours, theirs = _medians(person), _medians(first)
    shared = [label for label in ours if label in theirs]
    if not shared:
        return picture, True
    a, b = (np.stack([medians[label][0] for label in shared]) for medians in (ours, theirs))
    areas = np.array([min(ours[label][1], theirs[label][1]) for label in shared])[:, None]
    logs = (areas * np.log(b / a)).sum(0) / areas.sum()
    gain = np.clip(np.exp(logs), 1 / LARGEST_GAIN, LARGEST_GAIN)
    off = (areas[:, 0] * np.abs(gain * a - b).sum(1) / (gain * a + b).sum(1)).sum() / areas.sum()
    image = np.round(255 * to_display(to_linear(picture.image / 255.0) * gain)).astype(np.uint8)
    return replace(picture, image=image), bool(off < ALIKE)


def _medians(person: Person) -> dict[int, tuple[np.ndarray, float]]:
    """Median linear colour [3] and share of the person of every label that covers enough of it."""
    inside = person.mask > 0.9
    made = {}
    for label in (Label.SKIN, Label.HAIR, Label.UPPER, Label.LOWER, Label.SHOES):
        at = inside & (person.labels == label)
        share = float(at.sum() / max(int(inside.sum()), 1))
        if share > LEAST_SHARE:
            made[int(label)] = np.maximum(np.median(to_linear(person.image[at] / 255.0), axis=0), 2e-3), share
    return made


__all__ = ["FurtherPhoto", "fit_further", "fit_more_photos", "same_exposure", "with_fixed_shape"]
