"""The ways to a portrait that need image models: Style Aligned Sampling, and an edited photo."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from backend.context import Context
from backend.diffusion.face_adapter import face_crop
from backend.diffusion.load import freed
from backend.diffusion.moments import Moments
from backend.diffusion.style_models import FACE_SCALE, Loaded, Parts, Shelf, Told, load_models, tell
from backend.diffusion.style_statistics import between, picture_statistics, style_statistics
from backend.diffusion.views import ViewTexts
from backend.diffusion.weights import Weights
from backend.errors import UserError
from backend.human.bust import Bust
from backend.human.face_rig import IRIS
from backend.perception.people import Person
from backend.perception.photo import Photo, read_photo
from backend.pipeline import Stage
from backend.splats.bound import Kind
from backend.splats.head_start import HeadFrame, head_start, with_points
from backend.splats.stylise import Stylised, StyliseSettings, Teacher, Teachers, face_settings, stylise
from backend.splats.stylise_bind import bind_stylised, frame_of, start_triangles
from backend.splats.stylise_teachers import AroundConditions, HeadConditions, plain_conditions
from blender_addon.shared.gaussians import GaussianCloud
from blender_addon.shared.methods import PortraitRequest
from blender_addon.shared.styles import find_style

MODELS = {"sas": ("sd15",), "edit": ("flux2-klein", "sd15-inpaint")}
"""sas: what it cannot do without. edit: the editors, of which one is enough; the first is the better."""

STEPS = {"fast": 1000, "balanced": 3000, "best": 3000}
FACE_STEPS = {"fast": 0, "balanced": 300, "best": 600}
"""By preset; 3,000 are the paper's."""

GENTLE = 7.5
"""Scale of the guidance towards strength 0: what pictures are usually made with."""

FACE_POINTS = range(468)
"""MediaPipe's landmarks before those of the irises."""

SLIGHTLY = 0.5
"""Below this strength an edit is asked to be slight."""


@dataclass(frozen=True)
class Scale:
    """How large everything is; tests take less.

    Attributes:
        stylise: Of the loop; its number of steps is replaced by the preset's.
        steps: By preset.
        face_steps: Of the last stage, by preset; 0 leaves it out.
        gaussians: At the start.
        style_images: Pictures of the style.
        style_steps: Of each.
    """

    stylise: StyliseSettings = StyliseSettings()
    steps: dict[str, int] | None = None
    face_steps: dict[str, int] | None = None
    gaussians: int = 10_000
    style_images: int = 20
    style_steps: int = 20


def lacking(way: Literal["sas", "edit"], models: Weights) -> tuple[str, ...]:
    """Ids of the models that a way needs and that are not installed; empty where it can run."""
    if way == "edit" and any(models.installed(name) for name in MODELS["edit"]):
        return ()
    missing = tuple(name for name in MODELS[way] if not models.installed(name))
    return missing[:1] if way == "edit" else missing


def worth_waiting() -> bool:
    """Whether Style Aligned Sampling ends within minutes here: on a processor 3,000 steps take a day."""
    return torch.cuda.is_available() or torch.backends.mps.is_available()


# ---- Style Aligned Sampling ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Drawn:
    """A stylised head.

    Attributes:
        cloud: In the frame of the head.
        steps: That were done.
        warnings: Lines for people.
    """

    cloud: GaussianCloud
    steps: int
    warnings: tuple[str, ...] = ()


class _Kept:
    """The models, loaded when the first stage wants them and let go after the last."""

    def __init__(self, models: Shelf, parts: Parts) -> None:
        self.models, self.parts = models, parts
        self._loaded: Loaded | None = None
        self._for: tuple[str, str] = ("", "")

    def get(self, told: Told, context: Context) -> Loaded:
        """The models on the context's device."""
        wanted = (context.device, told.adapter)
        if self._loaded is None or self._for != wanted:
            self.close()
            self._loaded, self._for = load_models(self.models, self.parts, told.adapter, context), wanted
        return self._loaded

    def close(self) -> None:
        """Let go of their memory."""
        if self._loaded is not None:
            device, self._loaded = self._loaded.placement.device, None
            freed(device)


def sas_stages(request: PortraitRequest, models: Shelf, scale: Scale = Scale()) -> list[Stage]:  # noqa: B008  frozen
    """From the photo-only bust to the stylised one.

    Args:
        request: The artist's choice.
        models: Installed.
        scale: How large everything is.
    """
    kept = _Kept(models, Parts.of(models))
    spare = ("both halves of the guidance one after the other", "as before, and half as many Gaussians")

    def bound(run: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *values: run(kept, scale, *values)

    return [
        Stage("Read the style and the face", ("person", "request"), ("told",), bound(_tell)),
        Stage("Load the image models", ("told",), (), bound(_load), keep=False),
        Stage("Make pictures of the style", ("told", "person", "request", "folder"), ("style",), bound(_style)),
        Stage("Draw the portrait", ("bust", "told", "style", "request"), ("drawn",), bound(_draw), economies=spare),
        Stage("Draw the face", ("bust", "told", "style", "drawn", "request"), ("finer",), bound(_face),
              economies=spare),
        Stage("Bind the portrait", ("bust", "finer"), ("styled", "made_by"), bound(_bind)),
    ]  # fmt: skip


def style_words(request: PortraitRequest) -> tuple[str, str]:
    """Prompt and negative prompt of a request: of the style that it names, else its own words."""
    style = find_style(request.style)
    words = f"in this style: {request.style}" if style is None else style.prompt
    return words, request.negative or ("" if style is None else style.negative)


def _tell(kept: _Kept, scale: Scale, person: Person, request: PortraitRequest, context: Context) -> Told:
    prompt, negative = style_words(request)
    return tell(kept.models, kept.parts, prompt, negative, person.image, person.face_px, context)


def _load(kept: _Kept, scale: Scale, told: Told, context: Context) -> None:
    kept.get(told, context)


def _style(
    kept: _Kept, scale: Scale, told: Told, person: Person, request: PortraitRequest, folder: Path, context: Context
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance, as arrays that can be kept; at less than full strength on the way from the photo's own."""
    loaded, size_px = kept.get(told, context), scale.stylise.portrait_px
    if request.style_image:
        picture = read_photo(folder / request.style_image).image
        found = picture_statistics(loaded.portrait, picture, size_px, context.device)
    else:
        controls = len(loaded.portrait.controls)
        positive, negative = (
            plain_conditions(controls, torch.from_numpy(text).to(context.device), size_px)
            for text in (told.style, told.negative)
        )
        found = style_statistics(
            loaded.portrait,
            positive,
            negative,
            loaded.latents(size_px),
            name=told.words,
            context=context,
            images=scale.style_images,
            steps=scale.style_steps,
        )
    if request.strength < 1:
        image, mask = (_head_crop(part, person.face_px) for part in (person.image, person.mask))
        own = picture_statistics(loaded.portrait, image, size_px, context.device, mask)
        found = between(own, found, request.strength)
    return found.mean.cpu().numpy(), found.covariance.cpu().numpy()


def _head_crop(picture: np.ndarray, face_px: np.ndarray) -> np.ndarray:
    """The square around the face, [S, S] or [S, S, 3], of the picture's own type."""
    channels = torch.from_numpy(np.ascontiguousarray(picture)).reshape(*picture.shape[:2], -1).permute(2, 0, 1)
    crop = face_crop(channels, torch.from_numpy(np.ascontiguousarray(face_px[:, :2], np.float32)))
    return crop.permute(1, 2, 0).reshape(*crop.shape[1:], *picture.shape[2:]).numpy()


def teachers_of(
    loaded: Loaded, told: Told, style: tuple[np.ndarray, np.ndarray], landmarks: np.ndarray, device: str, *, close: bool
) -> Teachers:
    """Who judges a head.

    Args:
        loaded: The models.
        told: What they are told.
        style: Mean [C] and covariance [C, C] of the style's latents.
        landmarks: [478, 3] on the head, in its frame, as `head_of` has them.
        device: Of the embeddings.
        close: For close-ups of the face, which only the portrait's model judges.
    """
    texts, negative = (torch.from_numpy(part).to(device) for part in (told.face if close else told.head, told.negative))
    conditions = HeadConditions(
        ViewTexts(texts),
        negative,
        told.image_tokens(device),
        FACE_SCALE.get(told.adapter, 0.0),
        landmarks if loaded.portrait.controls else None,
    )
    around = None
    if loaded.around is not None and told.around is not None and not close:
        own, none = torch.from_numpy(told.around).to(device).split(1)
        around = Teacher(loaded.around, AroundConditions(own, none), loaded.recordable)
    moments = Moments(*(torch.from_numpy(part) for part in style))
    return Teachers(Teacher(loaded.portrait, conditions, loaded.recordable), around, moments)


def _settings(scale: Scale, request: PortraitRequest, context: Context, split: bool) -> StyliseSettings:
    s = scale.stylise
    steps = (scale.steps or STEPS)[request.preset]
    split = split or context.economy > 0
    # The statistics already lie between the person's and the style's; the words too count less then.
    weaker = min(GENTLE, s.portrait.scale)
    scale_of = weaker + (s.portrait.scale - weaker) * request.strength
    portrait = replace(s.portrait, scale=scale_of, split=split)
    grow = s.grow
    if grow is not None and context.economy > 1:
        grow = replace(grow, budget=max(grow.budget // 2, scale.gaussians))
    return replace(s, iterations=steps, portrait=portrait, around=replace(s.around, split=split), grow=grow)


def head_of(bust: Bust) -> tuple[HeadFrame, np.ndarray]:
    """Frame of a bust's head, and MediaPipe's landmarks [478, 3] on it, in that frame.

    Of the irises only the centres are known, where the eyes look straight ahead; the other eight are NaN.
    """
    rest = np.asarray(bust.vertices_m, np.float64)
    frame, irises = frame_of(bust.body, rest), np.full((10, 3), np.nan)
    for region, rows in IRIS.items():
        ball = rest[bust.body.regions == region]
        if len(ball):
            irises[rows[0] - len(FACE_POINTS)] = ball[ball[:, 2].argmax()]
    return frame, frame.to_unit(np.concatenate([bust.body.face_landmarks @ rest, irises]))


def start_of(bust: Bust, count: int, seed: int) -> GaussianCloud:
    """Where the loop begins: on the skin of head and neck, and where the photo-only head has hair."""
    frame, _ = head_of(bust)
    triangles = bust.body.triangles[start_triangles(bust.body)]
    start = head_start(frame.to_unit(bust.vertices_m), triangles, count=count, seed=seed)
    hair = bust.splats.select(bust.splats.kind == Kind.HAIR)
    placed = hair.posed(bust.vertices_m, bust.vertices_m, bust.body.triangles).positions_m
    points = frame.to_unit(placed)
    lowest = float(start.positions_m[:, 1].min())
    return with_points(start, points[points[:, 1] > lowest], seed=seed)


def _draw(
    kept: _Kept,
    scale: Scale,
    bust: Bust,
    told: Told,
    style: tuple[np.ndarray, np.ndarray],
    request: PortraitRequest,
    context: Context,
) -> Drawn:
    loaded, (_, landmarks) = kept.get(told, context), head_of(bust)
    teachers = teachers_of(loaded, told, style, landmarks, context.device, close=False)
    start = start_of(bust, scale.gaussians, context.seed)
    settings = _settings(scale, request, context, loaded.split)
    made = stylise(start, teachers, settings, context, key=repr(told.words))
    early = (f"the portrait was finished after {made.iterations} steps, as asked",) if made.finished_early else ()
    return Drawn(made.cloud, made.iterations, early)


def _face(
    kept: _Kept,
    scale: Scale,
    bust: Bust,
    told: Told,
    style: tuple[np.ndarray, np.ndarray],
    drawn: Drawn,
    request: PortraitRequest,
    context: Context,
) -> GaussianCloud:
    """The face once more, in windows of pictures of about 1024 px."""
    steps = (scale.face_steps or FACE_STEPS)[request.preset]
    if not steps or context.finish_asked:
        return drawn.cloud
    loaded, (_, landmarks) = kept.get(told, context), head_of(bust)
    settings = face_settings(_settings(scale, request, context, loaded.split), steps, len(drawn.cloud))
    teachers = teachers_of(loaded, told, style, landmarks, context.device, close=True)
    made: Stylised = stylise(drawn.cloud, teachers, settings, context, key=repr(told.words))
    return made.cloud


def _bind(kept: _Kept, scale: Scale, bust: Bust, finer: GaussianCloud, context: Context) -> Any:
    kept.close()
    frame, _ = head_of(bust)
    styled = bind_stylised(frame.cloud_to_metres(finer), bust.body, bust.personal, bust.vertices_m, bust.splats)
    return styled, tuple(str(kept.models.source(name)) for name in kept.parts.ids())


# ---- edit first ------------------------------------------------------------------------------------------------------


def edit_stages(request: PortraitRequest, models: Weights) -> list[Stage]:
    """From the photo to the edited one."""

    def restyle(photo: Photo, context: Context) -> tuple[Photo, tuple[str, ...]]:
        return _restyle(photo, request, models, context)

    return [Stage("Restyle the photo", ("photo",), ("edited", "made_by"), restyle)]


def _restyle(photo: Photo, request: PortraitRequest, models: Shelf, context: Context) -> tuple[Photo, tuple[str, ...]]:
    from backend.diffusion.chosen import image_editor
    from backend.diffusion.edit import Inpaint

    prompt, negative = style_words(request)
    editor = image_editor(models, context)
    try:
        if isinstance(editor, Inpaint):
            # It reads a description, and its strength is the share of the steps that are done anew.
            own = editor.settings
            strength = own.whole_strength * max(request.strength, 0.1)
            editor.settings = replace(own, whole_strength=strength, negative=negative or own.negative)
            words = f"a portrait of the same person {prompt}"
        else:
            how = "Slightly restyle" if request.strength < SLIGHTLY else "Restyle"
            words = f"{how} this portrait so that the person appears {prompt}. Keep face, expression, pose and framing."
        image = editor.edit(photo.image, words, None, context)
    finally:
        editor.close()
    if not np.isfinite(image).all() or image.shape != photo.image.shape:
        raise UserError("the image editor returned no picture; try again with another seed")
    context.preview(image)
    return replace(photo, image=image), tuple(str(source) for source in editor.sources)


__all__ = [
    "MODELS",
    "Drawn",
    "Scale",
    "edit_stages",
    "head_of",
    "lacking",
    "sas_stages",
    "start_of",
    "style_words",
    "teachers_of",
    "worth_waiting",
]
