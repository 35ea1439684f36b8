"""What each pixel of a person shows, by a segmentation network of transformers that the user brings.

Two kinds are understood, told apart by the `model_type` of their config: SegFormer (such as those trained on ATR's 18
classes) and Sapiens 2 (29 classes). Their class names are mapped to our labels by words, so any other set of names of
the same kind works too. Sapiens 1 is published as TorchScript only, which is not opened.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

import numpy as np
import torch
from torch.nn import functional

from backend.context import Context
from backend.diffusion import gate
from backend.diffusion.load import Folders, load
from backend.diffusion.placement import Placement
from backend.errors import MODEL_MISSING, UserError
from backend.perception.labels import Label

SAPIENS_SIZE_PX = (1024, 768)
"""Height and width that Sapiens 2 was trained on (its image processor in transformers 5.23)."""

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Mean and deviation of both processors."""

WORDS: tuple[tuple[Label, tuple[str, ...]], ...] = (
    (Label.NONE, ("background",)),
    (Label.HAIR, ("hair",)),
    (Label.SKIN, ("upper_arm", "lower_arm", "upper_leg", "lower_leg")),
    (Label.SHOES, ("shoe", "boot", "sandal", "footwear")),
    (Label.LOWER, ("pant", "skirt", "trouser", "short", "lower_cloth", "lower-cloth", "jean", "legging")),
    (Label.UPPER, ("upper", "dress", "coat", "shirt", "jacket", "apparel", "jumpsuit", "sleeve", "top")),
    (Label.OTHER, ("hat", "glass", "bag", "belt", "scarf", "sock", "glove", "accessor", "eyewear", "jewel", "held",
                   "headwear")),
    (Label.SKIN, ("face", "skin", "neck", "arm", "leg", "hand", "foot", "torso", "head", "lip", "teeth", "tongue",
                  "nose", "ear", "eye", "body")),
)  # fmt: skip
"""Words in class names, the first that is found decides; what has none of them is OTHER."""


class HumanParser:
    """Labels of a person's pixels."""

    def __init__(self, folders: Folders, placement: Placement) -> None:
        """Load it.

        Raises:
            UserError: Code 3 if the model `parsing` is not there or of neither kind.
        """
        transformers, folder = gate.import_transformers(), folders.folder("parsing")
        gate.check_folder(folder)
        config = json.loads((folder / "config.json").read_text("utf-8"))
        kinds = {
            "segformer": transformers.SegformerForSemanticSegmentation,
            "sapiens2": transformers.Sapiens2ForSemanticSegmentation,
        }
        kind = config.get("model_type")
        if kind not in kinds:
            raise UserError(f"human parsing knows SegFormer and Sapiens 2, not '{kind}'; import one", MODEL_MISSING)
        self.sources = (folders.source("parsing"),)
        self._model = load(kinds[kind], folder, placement=placement)
        self._size_px = _input_size(folders, kind)
        self._labels = torch.tensor(label_table(self._model.config.id2label))
        self._placement = placement

    def parse(self, image: np.ndarray, context: Context, mask: np.ndarray | None = None) -> np.ndarray:
        """Uint8 [H, W] of `Label` for uint8 [H, W, 3]; NONE where `mask` (float32 [H, W], 0..1) is below a half."""
        context.raise_if_cancelled()
        pixels = torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float() / 255
        pixels = functional.interpolate(pixels, self._size_px, mode="bilinear", antialias=True)
        mean, deviation = (torch.tensor(numbers)[:, None, None] for numbers in IMAGENET)
        pixels = ((pixels - mean) / deviation).to(self._placement.device, self._placement.dtype)
        with torch.no_grad():
            scores = self._model(pixel_values=pixels).logits.float()
        scores = functional.interpolate(scores, image.shape[:2], mode="bilinear")
        labels = self._labels[scores.argmax(1)[0].cpu()].numpy().astype(np.uint8)
        return labels if mask is None else np.where(mask >= 0.5, labels, np.uint8(Label.NONE)).astype(np.uint8)


def label_table(names: Mapping[int, str]) -> list[int]:
    """Our label of every class, by the words in its name.

    Args:
        names: Class number to name; the numbers are 0 to N - 1.
    """
    return [int(label_of(names[number])) for number in range(len(names))]


def label_of(name: str) -> Label:
    """Our label of one class; NONE for what is no part of a person."""
    text = name.lower().replace(" ", "_")
    return next((label for label, words in WORDS if any(word in text for word in words)), Label.OTHER)


def _input_size(folders: Folders, kind: str) -> tuple[int, int]:
    path = folders.folder("parsing") / "preprocessor_config.json"
    size = json.loads(path.read_text("utf-8")).get("size") if path.is_file() else None
    if isinstance(size, dict) and {"height", "width"} <= set(size):
        return int(size["height"]), int(size["width"])
    return SAPIENS_SIZE_PX if kind == "sapiens2" else (512, 512)
