"""The models behind a stylised portrait: which are installed, what they are told once, and how they are loaded.

Stable Diffusion 1.5 is the one that cannot be done without. Each of the others is left out where it is not installed,
and what that costs is said: without MVDream a second face may grow on the back, without the control network the
landmarks are not held, without an adapter the face is anybody's.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from backend.context import Context
from backend.diffusion.face_adapter import (
    ENCODER_FOLDER,
    Adapter,
    ImageTokens,
    clip_features,
    embed_identity,
    face_crop,
)
from backend.diffusion.latent_model import embed_texts
from backend.diffusion.load import Folders
from backend.diffusion.multiview import MultiView, load_multi_view
from backend.diffusion.placement import FOOTPRINTS, Placement, budget_bytes, choose, needed_bytes
from backend.diffusion.stable_diffusion import (
    BASE,
    FACE_CONTROL,
    IDENTITY_ADAPTER,
    PLUS_FACE_ADAPTER,
    StableDiffusion,
    embed_face,
    embed_prompts,
    load_stable_diffusion,
    read_identity_adapter,
    read_plus_face,
)
from backend.diffusion.views import VIEW_WORDS
from backend.errors import UserError

AROUND = "mvdream"
IDENTITY_PACK = "insightface-pack"
"""FaceID was trained on the vectors of InsightFace's recogniser; AuraFace's are others."""

FACE_SCALE: dict[str, float] = {"faceid": 0.8, "plus-face": 0.6}
"""How much each adapter counts: plus-face also carries the photo's colours and light, which the style shall replace."""

SUBJECT = "a portrait of a person"
NEGATIVE = "blurry, low quality, deformed, extra faces, text, watermark"

AdapterName = Literal["faceid", "plus-face", "none"]


class Shelf(Folders, Protocol):
    """Folders of models that also say what there is: `weights.Weights`."""

    def installed(self, model_id: str) -> bool:
        """Whether a model is there."""
        ...


@dataclass(frozen=True)
class Parts:
    """What takes part.

    Attributes:
        around: MVDream is installed.
        control: The face's control network is installed.
        adapter: Which face adapter.
    """

    around: bool
    control: bool
    adapter: AdapterName

    @classmethod
    def of(cls, models: Shelf) -> Parts:
        """What is installed."""
        faceid = models.installed(IDENTITY_ADAPTER) and models.installed(IDENTITY_PACK)
        plus = models.installed(PLUS_FACE_ADAPTER)
        adapter: AdapterName = "faceid" if faceid else "plus-face" if plus else "none"
        return cls(models.installed(AROUND), models.installed(FACE_CONTROL), adapter)

    def warnings(self) -> tuple[str, ...]:
        """What is missing and what it costs, a line each."""
        lines = []
        if not self.around:
            lines.append(_missing(AROUND, "nothing keeps a second face from the back of the head"))
        if not self.control:
            lines.append(_missing(FACE_CONTROL, "the person's landmarks are not held"))
        if self.adapter == "none":
            lines.append(_missing(PLUS_FACE_ADAPTER, "the likeness is that of the head's shape only"))
        return tuple(lines)

    def ids(self) -> tuple[str, ...]:
        """The models that take part."""
        adapters = {"faceid": (IDENTITY_ADAPTER, IDENTITY_PACK), "plus-face": (PLUS_FACE_ADAPTER,), "none": ()}
        control, around = (FACE_CONTROL,) if self.control else (), (AROUND,) if self.around else ()
        return (BASE, *control, *adapters[self.adapter], *around)


def _missing(model_id: str, cost: str) -> str:
    return f"{model_id} is not installed, so {cost}; python -m backend models fetch {model_id} brings it"


@dataclass(frozen=True)
class Told:
    """What the models are told, embedded once; arrays, so that a resumed job has them.

    Attributes:
        head: float32 [4, L, D], the person's head from the front, a side, the back and above.
        face: float32 [4, L, D], the same for close-ups.
        style: float32 [1, L, D], the style without view or person.
        negative: float32 [1, L, D].
        tokens: float32 [2, K, D], the person's face and none; None without an adapter.
        adapter: That made them.
        around: float32 [2, M, E], prompt and negative prompt of the multi-view model; None without one.
        words: What the style's statistics depend on.
        warnings: Lines for people.
    """

    head: np.ndarray
    face: np.ndarray
    style: np.ndarray
    negative: np.ndarray
    tokens: np.ndarray | None
    adapter: AdapterName
    around: np.ndarray | None
    words: tuple[str, ...]
    warnings: tuple[str, ...] = ()

    def image_tokens(self, device: str) -> ImageTokens | None:
        """The face's tokens on a device."""
        if self.tokens is None:
            return None
        own, none = torch.from_numpy(self.tokens).to(device).split(1)
        return ImageTokens(own, none)


def tell(
    models: Shelf,
    parts: Parts,
    prompt: str,
    negative: str,
    photo: np.ndarray,
    face_px: np.ndarray,
    context: Context,
) -> Told:
    """Embed the words and the face; every encoder is loaded, used and forgotten.

    Args:
        models: Installed.
        parts: That take part.
        prompt: The style's words, which follow the subject's.
        negative: What to avoid; empty takes a default.
        photo: uint8 [H, W, 3].
        face_px: [478, 2 or more] landmarks of the face in it.
        context: Device, progress and cancelling.

    Raises:
        UserError: If a model is broken.
    """
    placement = choose(BASE, context)
    subject = f"{SUBJECT} {prompt}"
    head, close = f"{subject}, head and neck, plain background", f"a close-up of {subject}, detailed face"
    avoid = negative or NEGATIVE
    texts = [f"{text}, {words}" for text in (head, close) for words in VIEW_WORDS]
    context.progress("read the words", 0, 3)
    embedded = embed_prompts(models, [*texts, head, avoid], placement, context).cpu().numpy()
    context.progress("read the words", 1, 3)
    around = None
    if parts.around:
        words = (f"the head of a person {prompt}, 3d asset", avoid)
        around = embed_texts(models.folder(AROUND), words, placement, context).cpu().numpy()
    context.progress("look at the face", 2, 3)
    tokens, adapter, lines = _tokens(models, parts, photo, face_px, placement, context)
    context.progress("look at the face", 3, 3)
    revisions = tuple(f"{name} {models.source(name).revision}" for name in (BASE,))
    return Told(
        embedded[:4],
        embedded[4:8],
        embedded[8:9],
        embedded[9:10],
        tokens,
        adapter,
        around,
        (head, avoid, *revisions),
        (*parts.warnings(), *lines),
    )


def _tokens(
    models: Shelf, parts: Parts, photo: np.ndarray, face_px: np.ndarray, placement: Placement, context: Context
) -> tuple[np.ndarray | None, AdapterName, tuple[str, ...]]:
    """The face's tokens, by which adapter, and what people should know."""
    lines: tuple[str, ...] = ()
    if parts.adapter == "none":
        return None, "none", lines
    picture = torch.from_numpy(np.ascontiguousarray(photo)).permute(2, 0, 1).float() / 255
    crop = face_crop(picture, torch.from_numpy(np.ascontiguousarray(face_px[:, :2], np.float32)))
    if parts.adapter == "faceid":
        found = _identity_tokens(models, photo, crop, placement, context)
        if found is not None:
            return _array(found), "faceid", lines
        if not models.installed(PLUS_FACE_ADAPTER):
            return None, "none", ("InsightFace found no face in the photo: the likeness is that of the shape only",)
        lines = ("InsightFace found no face in the photo; the plus-face adapter is used instead",)
    adapter = read_plus_face(models, context)
    return _array(embed_face(models, adapter, crop, placement, context)), "plus-face", lines


def _identity_tokens(
    models: Shelf, photo: np.ndarray, crop: Tensor, placement: Placement, context: Context
) -> ImageTokens | None:
    from backend.perception.identity import FacePack

    vector = FacePack(models.folder(IDENTITY_PACK), models.source(IDENTITY_PACK), placement.device).embed(photo)
    if vector is None:
        return None
    adapter = read_identity_adapter(models, context)
    features = None
    if adapter.kind == "faceid-plus":
        if not models.installed(PLUS_FACE_ADAPTER):
            raise UserError(
                f"{adapter.name} also reads the picture: python -m backend models fetch {PLUS_FACE_ADAPTER}"
            )
        encoder = models.folder(PLUS_FACE_ADAPTER) / ENCODER_FOLDER
        features = clip_features(encoder, crop, placement, context)[0].cpu()
    return embed_identity(adapter, torch.from_numpy(vector), features)


def _array(tokens: ImageTokens) -> np.ndarray:
    return torch.cat([tokens.positive, tokens.negative]).float().cpu().numpy()


@dataclass(frozen=True)
class Loaded:
    """Models at their place.

    Attributes:
        portrait: Judges single views.
        around: Judges four views; None where it is not installed.
        placement: Of both.
        split: Memory wants both halves of the guidance one after the other, and no recordings.
    """

    portrait: StableDiffusion
    around: MultiView | None
    placement: Placement
    split: bool = False

    @property
    def recordable(self) -> bool:
        """Whether evaluations can be recorded: nothing is moved or cast on the way."""
        lies_there = self.placement.offload == "none" and self.placement.storage == "same" and not self.split
        return lies_there and torch.device(self.placement.device).type == "cuda"

    def latents(self, size_px: int) -> tuple[int, int, int]:
        """(C, h, w) of the latents of pictures of a size."""
        coder = self.portrait.coder
        return int(coder.vae.config.latent_channels), size_px // coder.factor, size_px // coder.factor


def place_models(parts: Parts, context: Context) -> tuple[Placement, bool]:
    """Where the models go, and whether the halves of the guidance are evaluated one after the other.

    Both models work in every step, so that what leaves the device comes back at once: before that, the guidance is
    split, and then the weights rest in 8 bits.

    Raises:
        UserError: If not even the leanest placement fits.
    """
    if not parts.around:
        return choose("sd15-control-adapter", context), False
    allowed, fast = budget_bytes(context), choose("portrait", context)
    if fast.offload == "none" or torch.device(context.device).type != "cuda":
        return fast, False
    size = FOOTPRINTS["portrait-split"]
    here = Placement(context.device, size.dtype)
    for placement in (here, replace(here, storage="fp8")):
        if needed_bytes(size, placement) <= allowed:
            return placement, True
    return choose("portrait-split", context), True


def load_models(models: Shelf, parts: Parts, adapter: AdapterName, context: Context) -> Loaded:
    """Load what takes part, side by side where memory allows.

    Args:
        models: Installed.
        parts: That take part.
        adapter: Which one made the face's tokens.
        context: Device, memory, progress and cancelling.

    Raises:
        UserError: If a model is broken, or memory is too small even for the leanest placement.
    """
    placement, split = place_models(parts, context)
    read: Adapter | None = None
    name = {"faceid": IDENTITY_ADAPTER, "plus-face": PLUS_FACE_ADAPTER}.get(adapter)
    if adapter == "faceid":
        read = read_identity_adapter(models, context)
    elif adapter == "plus-face":
        read = read_plus_face(models, context)
    portrait = load_stable_diffusion(
        models,
        placement,
        context.part("load the models", 0, 1, 2),
        controls=(FACE_CONTROL,) if parts.control else (),
        adapter=read,
        adapter_source=None if name is None else models.source(name),
    )
    around = None
    if parts.around:
        around = load_multi_view(models, placement, context.part("load the models", 1, 2, 2), model_id=AROUND)
    return Loaded(portrait, around, placement, split)
