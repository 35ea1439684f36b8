"""Colours of what the photo does not show, from further photos of the same person.

Each further photo is fitted (more_photos.py), moved until its outline is the drawn person's (outline_flow.py), brought
to the first photo's light, and mixed in where it faces a surface more squarely than any photo before. What no photo
shows keeps its rule's colour, shifted towards what the photos show beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
from scipy.spatial import cKDTree

from backend.human.camera import PinholeCamera
from backend.human.dress import Dressed
from backend.human.fit import BodyFit
from backend.human.model import BodyModel
from backend.human.more_photos import FurtherPhoto, fit_more_photos
from backend.human.outline_flow import detail_flow, joined, outline_flow, pulled
from backend.human.personal import Personal
from backend.human.video_camera import Subject
from backend.perception.people import Label, Person
from backend.perception.photo import read_photo
from backend.splats.blend import Blend, blend_of
from backend.splats.bound import BoundSplats, Kind, PosedSplats
from backend.splats.colour import SEEN, blend_weight, sample_photo, to_lab, to_rgb
from backend.splats.detail import DetailSettings, rows_for_detail, split_rows
from backend.splats.light import find_light, relit, to_display, to_linear
from backend.splats.polish import PolishSettings, colour_range, counted_pixels, facing_camera, polished_colours
from backend.splats.render import render, to_cameras, to_tensors
from blender_addon.shared.gaussians import wxyz_to_matrices

if TYPE_CHECKING:
    from backend.context import Context

STAGE = "Colour from the further photos"


@dataclass(frozen=True)
class FurtherSettings:
    """How far further photos are trusted.

    Attributes:
        least_uncovered: Share of a Gaussian that has to be seen.
        first: How much more the first photo counts where both show a surface equally well.
        largest_gain: Of what is left of the light's difference; largest_cast: of its colour.
        fewest: Surfaces that must tell it.
        overlap: Confidence of both from which they do.
        edge_share: Over which trust rises from the mask's edge, of the person's height.
        border_share: Width of the border between two labels in which neither is believed, of the person's height.
        hair_margin_lab: How far the hair of a further photo may be off that of the first one.
        beside_m: How far its neighbour's colour reaches over what no photo shows squarely.
        spread_m: How far the difference to the rule's colour is carried on.
        spread_share: Of the difference, beside the border.
        spread_limit_lab: Largest difference that is carried on: a badge is no shade.
    """

    least_uncovered: float = 0.15
    first: float = 3.0
    largest_gain: float = 1.8
    largest_cast: float = 1.15
    fewest: int = 150
    overlap: float = 0.1
    edge_share: float = 0.008
    border_share: float = 0.012
    hair_margin_lab: tuple[float, float, float] = (12.0, 12.0, 12.0)
    beside_m: float = 0.015
    spread_m: float = 0.05
    spread_share: float = 0.8
    spread_limit_lab: tuple[float, float, float] = (14.0, 10.0, 10.0)


@dataclass(frozen=True)
class FittedPhotos:
    """Further photos after their fit.

    Attributes:
        photos: In the order of the request. warnings: For the artist, a line each.
    """

    photos: tuple[FurtherPhoto, ...]
    warnings: tuple[str, ...]


def fit_photos(
    person: Person,
    body: BodyModel,
    fit: BodyFit,
    personal: Personal,
    dressed: Dressed,
    names: Sequence[str],
    folder: Path,
    context: Context,
) -> FittedPhotos:
    """Read and fit further photos.

    Args:
        person: On the first photo.
        body: The body model.
        fit: Of the first photo.
        personal: The fitted person.
        dressed: With what the clothes add.
        names: Of the files.
        folder: Where they lie.
        context: Progress, cancelling, seed.

    Raises:
        UserError: If a photo shows nobody or cannot be read; it says which.
        Cancelled: If the user cancelled.
    """
    read = [read_photo(folder / name) for name in names]
    # an artist knows them by their place in the list, not by the name of the job's copy
    photos = [replace(photo, path=Path(f"further photo {number}")) for number, photo in enumerate(read, 1)]
    made = fit_more_photos(photos, _subject(person, body, personal, dressed), body, fit.betas, context)
    return FittedPhotos(made, tuple(line[:1].upper() + line[1:] for photo in made for line in photo.warnings))


def colour_from_photos(
    person: Person,
    body: BodyModel,
    personal: Personal,
    dressed: Dressed,
    splats: BoundSplats,
    further: FittedPhotos,
    context: Context,
) -> BoundSplats:
    """The Gaussians with colours from further photos; see `add_colours`.

    Raises:
        Cancelled: If the user cancelled.
    """
    return add_colours(splats, _subject(person, body, personal, dressed), further.photos, context)


def _subject(person: Person, body: BodyModel, personal: Personal, dressed: Dressed) -> Subject:
    return Subject(person, dressed.body(body), dressed.wearer(personal), dressed.vertices_m)


def add_colours(
    splats: BoundSplats,
    subject: Subject,
    further: Sequence[FurtherPhoto],
    context: Context,
    settings: FurtherSettings = FurtherSettings(),
) -> BoundSplats:
    """Mix the colours of fitted further photos into Gaussians.

    Args:
        splats: N Gaussians on the subject's proxy, coloured from the first photo and by rule.
        subject: Whose photo was first.
        further: After their fit.
        context: Progress, cancelling, seed.
        settings: See there.

    Returns:
        The Gaussians with gates, confidence and binding as they were; those that were split come last.
    """
    state = _State.before(splats)
    for number, photo in enumerate(further):
        context.progress(STAGE, number, len(further))
        state = _with_photo(state, subject, photo, context.seed, settings)
    context.progress(STAGE, len(further), len(further))
    rest = state.splats.posed(subject.rest_m, subject.rest_m, subject.body.triangles).positions_m
    return replace(state.splats, colours=_carried_on(state, rest, settings))


@dataclass(frozen=True)
class _State:
    """Gaussians on their way.

    Attributes:
        splats: N of them.
        ruled: [N, 3] colours without any further photo.
        known: [N] 0..1, best confidence of any photo.
        left: [N] 0..1, share of `ruled` in the colours.
    """

    splats: BoundSplats
    ruled: np.ndarray
    known: np.ndarray
    left: np.ndarray

    @staticmethod
    def before(splats: BoundSplats) -> _State:
        return _State(splats, splats.colours, splats.confidence, np.ones(len(splats)))

    def split(self, rows: np.ndarray) -> _State:
        splats, parents = split_rows(self.splats, rows)
        return _State(splats, self.ruled[parents], self.known[parents], self.left[parents])


def _with_photo(state: _State, subject: Subject, photo: FurtherPhoto, seed: int, settings: FurtherSettings) -> _State:
    """One more photo's colours."""
    look = _Look.of(subject, state.splats, photo)
    pulled_photo = _PulledPhoto.of(look, photo, settings)
    seen = blend_of(to_tensors(look.posed), to_cameras(look.camera), pulled_photo.where)
    share = _shares(state, look, pulled_photo, seen, settings)[0]
    rows = rows_for_detail(
        state.splats, look.posed, seen.uncovered, share, look.camera, pulled_photo.image, pulled_photo.where,
        DetailSettings(),
    )  # fmt: skip
    if len(rows):
        state = state.split(rows)
        look = _Look.of(subject, state.splats, photo)
        seen = blend_of(to_tensors(look.posed), to_cameras(look.camera), pulled_photo.where)
    share, confidence = _shares(state, look, pulled_photo, seen, settings)
    if not (share > 0).any():
        return state
    colours = pulled_photo.colours(look, seen, state.splats.colours, share)
    colours = relit(colours, _light_factor(state.splats, subject, look, pulled_photo, confidence, colours, seed))
    colours = _levelled(colours, state, confidence, settings)
    mixed = np.clip(share[:, None] * colours + (1 - share[:, None]) * state.splats.colours, 0, 1)
    known = np.where(share > 0.05, np.maximum(state.known, confidence), state.known)
    return _State(replace(state.splats, colours=mixed), state.ruled, known, state.left * (1 - share))


@dataclass(frozen=True)
class _Look:
    """The Gaussians as a photo's camera sees them.

    Attributes:
        posed: In the photo's pose. camera: The photo's. facing: [N] cosine, 1 towards the camera.
        uv_px: [N, 2]. depth_m: [N]. normals: [N, 3] world, towards the outside.
    """

    posed: PosedSplats
    camera: PinholeCamera
    facing: np.ndarray
    uv_px: np.ndarray
    depth_m: np.ndarray
    normals: np.ndarray

    @staticmethod
    def of(subject: Subject, splats: BoundSplats, photo: FurtherPhoto | None = None) -> _Look:
        """In a further photo, or in the first one."""
        if photo is None:
            personal = subject.personal
            pose, shift, actions, camera = personal.pose, personal.translation_m, personal.actions, personal.camera
        else:
            shown = photo.picture
            pose, shift, actions, camera = shown.pose, shown.translation_m, shown.actions, shown.camera
        proxy = subject.posed_m(np.asarray(pose, np.float64), np.asarray(shift, np.float64), np.asarray(actions))
        posed = splats.posed(proxy, subject.rest_m, subject.body.triangles)
        depth = camera.to_camera(posed.positions_m)[:, 2]
        normals = wxyz_to_matrices(posed.rotations_wxyz)[:, :, 2]
        return _Look(posed, camera, facing_camera(posed, camera), camera.project(posed.positions_m), depth, normals)

    def at(self, picture: np.ndarray) -> np.ndarray:
        """What a picture [H, W, ...] holds at the Gaussians' middles; outside it what its border holds."""
        height, width = picture.shape[:2]
        x = np.clip(np.floor(self.uv_px[:, 0]), 0, width - 1).astype(int)
        return picture[np.clip(np.floor(self.uv_px[:, 1]), 0, height - 1).astype(int), x]

    def inside(self) -> np.ndarray:
        """[N] bool: in front of the camera and within its picture."""
        within = ((self.uv_px > 0) & (self.uv_px < [self.camera.width, self.camera.height])).all(axis=1)
        return within & (self.depth_m > 0.05)


@dataclass(frozen=True)
class _PulledPhoto:
    """A further photo, moved onto the outline of what is drawn.

    Attributes:
        image: uint8 [H, W, 3]. labels: uint8 [H, W]. where: [H, W] bool, pixels that count.
        edge: float32 [H, W] 0..1, rises from the mask's edge inwards.
        border: [H, W] bool, near the border between hair, skin and clothes.
    """

    image: np.ndarray
    labels: np.ndarray
    where: np.ndarray
    edge: np.ndarray
    border: np.ndarray

    @staticmethod
    def of(look: _Look, photo: FurtherPhoto, settings: FurtherSettings) -> _PulledPhoto:
        shown = photo.picture
        colours, alpha = (picture[0] for picture in render(look.posed, to_cameras(look.camera)))
        flow = outline_flow(alpha, shown.mask)
        mask = pulled(np.asarray(shown.mask, np.float32), flow)
        # the rule goes on with the rows of the front, so that stripes and belts meet at the flanks
        inner = detail_flow(colours, pulled(shown.image, flow) / 255.0, (mask > 0.5) & (alpha > 0.5))
        flow = joined(flow, inner)
        mask = pulled(np.asarray(shown.mask, np.float32), flow)
        labels = pulled(np.asarray(photo.labels, np.uint8), flow, nearest=True)
        where = counted_pixels(mask, np.zeros(mask.shape, bool))
        rows = np.flatnonzero((mask > 0.5).any(axis=1))
        size = float(np.ptp(rows)) if len(rows) else 1.0
        deep = cv2.distanceTransform((mask > 0.5).astype(np.uint8), cv2.DIST_L2, 3)
        edge = np.clip((deep - 1) / max(settings.edge_share * size, 1.0), 0, 1)
        width = max(1, round(settings.border_share * size))
        kernel = np.ones((2 * width + 1, 2 * width + 1), np.uint8)
        kinds = _PIXEL_KINDS[labels]
        border = cv2.dilate(kinds, kernel) != cv2.erode(kinds, kernel)
        return _PulledPhoto(pulled(shown.image, flow), labels, where, edge.astype(np.float32), border)

    def colours(self, look: _Look, seen: Blend, before: np.ndarray, share: np.ndarray) -> np.ndarray:
        """[N, 3] colours whose picture is this photo, as far as `share` lets them."""
        size = np.sqrt(look.posed.scales_m[:, 0] * look.posed.scales_m[:, 1])
        footprint = 1.5 * size * look.camera.fx / np.maximum(look.depth_m, 0.05)
        sampled = np.where(share[:, None] > 0, sample_photo(self.image, look.uv_px, footprint), before)
        polish = PolishSettings()
        limits = colour_range(self.image, self.where, look.camera, look.posed.positions_m, sampled, polish)
        target = np.asarray(self.image, np.float32)[self.where] / 255
        return polished_colours(sampled, share.astype(np.float32), seen, target, limits, polish)


_LUMINANCE = np.array([0.2126, 0.7152, 0.0722])
_PIXEL_KINDS = np.full(256, 3, np.uint8)
_PIXEL_KINDS[[Label.NONE, Label.SKIN, Label.HAIR]] = 0, 1, 2
_SPLAT_KINDS = np.zeros(256, np.uint8)
_SPLAT_KINDS[[Kind.SKIN, Kind.HAIR, Kind.CLOTH, Kind.MEMBRANE]] = 1, 2, 3, 3


def _shares(
    state: _State, look: _Look, photo: _PulledPhoto, seen: Blend, settings: FurtherSettings
) -> tuple[np.ndarray, np.ndarray]:
    """Share [N] of a photo in the colours, and how far it determines them [N], both 0..1."""
    low = settings.least_uncovered
    shows = np.clip((seen.uncovered - low) / low, 0, 1) * look.inside() * look.at(photo.where) * look.at(photo.edge)
    confidence = np.clip(look.facing, 0, 1) ** 2 * shows
    kind, pixel = _SPLAT_KINDS[state.splats.kind], _PIXEL_KINDS[look.at(photo.labels)]
    # hair that is drawn wider than it is would take the colour of an ear or a cheek
    hair = kind == _SPLAT_KINDS[Kind.HAIR]
    other = ((kind != pixel) & (look.at(photo.border) | hair)) | (
        hair & ~_like_hair(state, look, photo, hair, settings)
    )
    confidence = np.where((kind == 0) | other, 0.0, confidence)
    against = blend_weight(state.known) * (settings.first * state.known) ** 2
    share = blend_weight(confidence) * confidence**2 / np.maximum(confidence**2 + against, 1e-9)
    return share, confidence


def _like_hair(
    state: _State, look: _Look, photo: _PulledPhoto, hair: np.ndarray, settings: FurtherSettings
) -> np.ndarray:
    """[N] bool: where a photo shows colours that the person's hair has, or nearly."""
    if hair.sum() < 50:
        return np.ones(len(hair), bool)
    low, high = np.percentile(to_lab(state.ruled[hair]), (1, 99), axis=0)
    margin = np.array(settings.hair_margin_lab)
    shown = to_lab(look.at(photo.image) / 255.0)
    return ((shown > low - margin) & (shown < high + margin)).all(axis=1)


def _light_factor(
    splats: BoundSplats,
    subject: Subject,
    look: _Look,
    photo: _PulledPhoto,
    confidence: np.ndarray,
    colours: np.ndarray,
    seed: int,
) -> np.ndarray:
    """[N] what the light of the first photo is on every surface, of what it is in this one."""
    first = _Look.of(subject, splats)
    area = splats.scales_m[:, 0] * splats.scales_m[:, 1]
    lights = []
    for seen, labels, trust, rgb in (
        (first, subject.person.labels, splats.confidence, splats.colours),
        (look, photo.labels, confidence, colours),
    ):
        weights = np.where(trust > SEEN, trust * area, 0.0)
        to_camera = seen.camera.position_m - seen.posed.positions_m.mean(axis=0)
        lights.append(find_light(seen.normals, rgb, seen.at(labels), weights, to_camera, seed))
    return lights[0].at(first.normals) / lights[1].at(look.normals)


def _levelled(colours: np.ndarray, state: _State, confidence: np.ndarray, settings: FurtherSettings) -> np.ndarray:
    """Colours [N, 3] brought to what is known of the person: one brightness, and a cast where both photos show it.

    The rule's colours are the garments' under the first photo's light, so on the whole they say how bright the unseen
    side is; what differs in places, a print or another cloth, does not move the median.
    """
    made, known = np.maximum(to_linear(colours), 2e-3), np.maximum(to_linear(state.splats.colours), 2e-3)
    fresh = (confidence > 0.3) & (state.known < SEEN)
    both = np.minimum(confidence, state.known) > settings.overlap
    gain = np.ones(3)
    if both.sum() >= settings.fewest:
        cast = np.exp(np.median(np.log(known[both] / made[both]), axis=0))
        cast = cast / (cast @ _LUMINANCE)
        gain = np.clip(cast, 1 / settings.largest_cast, settings.largest_cast)
    told = np.flatnonzero(fresh | both)
    if len(told) >= settings.fewest:
        bright = np.median(np.log((known[told] @ _LUMINANCE) / ((gain * made[told]) @ _LUMINANCE)))
        gain = gain * np.clip(np.exp(bright), 1 / settings.largest_gain, settings.largest_gain)
    return to_display(gain * to_linear(colours))


def _carried_on(state: _State, rest_m: np.ndarray, settings: FurtherSettings) -> np.ndarray:
    """[N, 3] colours; what no photo shows squarely takes the colour that one shows beside it, fading with distance.

    Very near it is the neighbour's own colour, further away only the difference that the photos make to the rule's.
    """
    colours, kind = state.splats.colours, state.splats.kind
    fresh = (state.left < 0.3) & (state.splats.confidence < SEEN)
    limit = np.array(settings.spread_limit_lab)
    apart = to_lab(colours) - to_lab(state.ruled)
    shade = (np.abs(apart) < 1.5 * limit).all(axis=1)
    rest = state.left * (1 - blend_weight(state.splats.confidence))
    made, touched = to_lab(colours), np.zeros(len(colours), bool)
    for which in np.unique(kind[fresh]):
        wanted = np.flatnonzero((rest > 0.02) & (kind == which))
        plain, given = (np.flatnonzero(fresh & (kind == which) & also) for also in (shade, True))
        if len(given) < 50 or not len(wanted):
            continue
        shift = np.zeros((len(wanted), 3))
        if len(plain) >= 50:
            distance, near = cKDTree(rest_m[plain]).query(rest_m[wanted], k=12)
            weight = np.exp(-distance / settings.spread_m)
            mean = (weight[..., None] * np.clip(apart[plain], -limit, limit)[near]).sum(axis=1)
            shift = settings.spread_share * weight.mean(axis=1)[:, None] * mean / weight.sum(axis=1)[:, None]
        distance, near = cKDTree(rest_m[given]).query(rest_m[wanted])
        beside = np.exp(-0.5 * (distance / settings.beside_m) ** 2)[:, None]
        moved = beside * (made[given[near]] - made[wanted]) + (1 - beside) * shift
        made[wanted] += rest[wanted, None] * moved
        touched[wanted] = True
    return np.where(touched[:, None], to_rgb(made), colours)


__all__ = ["FittedPhotos", "FurtherSettings", "add_colours", "colour_from_photos", "fit_photos"]
