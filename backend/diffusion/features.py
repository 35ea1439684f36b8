"""Pictures and texts as vectors: DINOv2, CLIP and LPIPS, differentiable in the pictures.

A loss needs gradients, so pictures are prepared by torch with the numbers of the model's own `preprocessor_config.json`
(transformers' processors, whose ...Pil classes need no torchvision, round to bytes on the way). The tests hold the two
together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from backend.diffusion import gate
from backend.diffusion.load import Folders, load, read_tensors
from backend.diffusion.placement import Placement
from backend.errors import MODEL_MISSING, UserError
from backend.splats.perceptual import Lpips, expected_shapes

LPIPS_FILES = ("vgg16.safetensors", "lpips.safetensors")
"""torchvision's VGG16 and LPIPS's linear layers (or both in one file), under the names of their sources."""

UNUSED_POSITIONS = r"position_ids$"
"""A buffer that old files of CLIP store and transformers makes itself."""


@dataclass(frozen=True)
class Preparation:
    """How a vision model wants its pictures.

    Attributes:
        shortest_px: The shorter side after resizing; 0 leaves it.
        crop_px: Height and width of the middle that is kept; (0, 0) keeps all.
        mean: Of R, G, B in 0..1.
        deviation: Of R, G, B.
    """

    shortest_px: int
    crop_px: tuple[int, int]
    mean: tuple[float, ...]
    deviation: tuple[float, ...]

    @classmethod
    def of(cls, processor: Any) -> Preparation:
        """The numbers of a processor of transformers."""
        size, crop = dict(processor.size), dict(processor.crop_size or {})
        shortest = size.get("shortest_edge") or min(size["height"], size["width"])
        kept = (crop["height"], crop["width"]) if processor.do_center_crop else (0, 0)
        return cls(
            shortest if processor.do_resize else 0, kept, tuple(processor.image_mean), tuple(processor.image_std)
        )

    def __call__(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] in 0..1, display sRGB, to what the model takes; differentiable."""
        height, width = images.shape[-2:]
        if self.shortest_px:
            factor = self.shortest_px / min(height, width)
            # The longer side is cut off, not rounded, as transformers does it.
            height, width = (max(int(side * factor + 1e-6), self.shortest_px) for side in (height, width))
            images = functional.interpolate(images, (height, width), mode="bicubic", antialias=True).clamp(0, 1)
        if self.crop_px[0]:
            top, left = (height - self.crop_px[0]) // 2, (width - self.crop_px[1]) // 2
            images = images[..., top : top + self.crop_px[0], left : left + self.crop_px[1]]
        mean, deviation = (images.new_tensor(numbers)[:, None, None] for numbers in (self.mean, self.deviation))
        return (images - mean) / deviation


class Dino:
    """DINOv2: what a picture shows, as one vector or as one per patch."""

    def __init__(self, folders: Folders, placement: Placement, model_id: str = "dinov2-small") -> None:
        """Load it; `model_id` is dinov2-small or dinov2-base.

        Raises:
            UserError: Code 3 if the model is not there or not whole.
        """
        transformers, folder = gate.import_transformers(), folders.folder(model_id)
        self.sources = (folders.source(model_id),)
        processor = transformers.BitImageProcessorPil.from_pretrained(folder, local_files_only=True)
        self._prepare = Preparation.of(processor)
        self._model = load(transformers.Dinov2Model, folder, placement=placement.differentiable)
        self._placement = placement
        self.patch_px: int = self._model.config.patch_size

    def embed(self, images: Tensor) -> Tensor:
        """Unit vectors [B, D] of pictures [B, 3, H, W] in 0..1."""
        return functional.normalize(self._run(self._prepare(images))[:, 0].float(), dim=-1)

    def patches(self, images: Tensor) -> Tensor:
        """Features [B, h, w, D] of the patches of pictures [B, 3, H, W] in 0..1, of which nothing is cut off.

        H and W are brought to multiples of the patch by resizing; one patch is one feature.
        """
        sides = [max(round(side / self.patch_px), 1) for side in images.shape[-2:]]
        sized = functional.interpolate(images, [side * self.patch_px for side in sides], mode="bicubic", antialias=True)
        whole = Preparation(0, (0, 0), self._prepare.mean, self._prepare.deviation)
        tokens = self._run(whole(sized.clamp(0, 1)))[:, 1:]
        return tokens.float().unflatten(1, sides)

    def similarity(self, one: Tensor, other: Tensor) -> Tensor:
        """Cosine [B] of two batches of pictures [B, 3, H, W] in 0..1."""
        return (self.embed(one) * self.embed(other)).sum(-1)

    def _run(self, pixels: Tensor) -> Tensor:
        out = self._model(pixel_values=pixels.to(self._placement.device, self._placement.dtype))
        return out.last_hidden_state


class Clip:
    """CLIP: pictures and texts in one space."""

    def __init__(self, folders: Folders, placement: Placement, model_id: str = "clip-l") -> None:
        """Load it.

        Raises:
            UserError: Code 3 if the model is not there or not whole.
        """
        transformers, folder = gate.import_transformers(), folders.folder(model_id)
        self.sources = (folders.source(model_id),)
        self._prepare = Preparation.of(
            transformers.CLIPImageProcessorPil.from_pretrained(folder, local_files_only=True)
        )
        self._tokenizer = transformers.CLIPTokenizer.from_pretrained(folder, local_files_only=True)
        self._model = load(
            transformers.CLIPModel, folder, placement=placement.differentiable, spare=(UNUSED_POSITIONS,)
        )
        self._placement = placement

    def embed_images(self, images: Tensor) -> Tensor:
        """Unit vectors [B, D] of pictures [B, 3, H, W] in 0..1."""
        pixels = self._prepare(images).to(self._placement.device, self._placement.dtype)
        return functional.normalize(self._model.get_image_features(pixel_values=pixels).pooler_output.float(), dim=-1)

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Unit vectors [B, D] of texts, each cut at the model's longest."""
        tokens = self._tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt")
        parts = {name: tokens[name].to(self._placement.device) for name in ("input_ids", "attention_mask")}
        return functional.normalize(self._model.get_text_features(**parts).pooler_output.float(), dim=-1)

    def similarity(self, images: Tensor, texts: Sequence[str]) -> Tensor:
        """Cosine [B, T] of pictures [B, 3, H, W] in 0..1 and texts."""
        return self.embed_images(images) @ self.embed_texts(texts).T.to(self._placement.device)

    def directional(self, before: Tensor, after: Tensor, text_before: str, text_after: str) -> Tensor:
        """Cosine [B] of the way from one picture to another and of the way from one text to another."""
        way = functional.normalize(self.embed_images(after) - self.embed_images(before), dim=-1)
        texts = self.embed_texts([text_before, text_after])
        return way @ functional.normalize(texts[1] - texts[0], dim=-1).to(way.device)


def lpips(folders: Folders, device: str = "cpu") -> Lpips:
    """LPIPS on VGG16 from the folder `lpips-vgg`: both files of `LPIPS_FILES`, or one with the tensors of both.

    Raises:
        UserError: Code 3 if the model is not there, or a tensor is missing or of another shape.
    """
    folder = folders.folder("lpips-vgg")
    tensors: dict[str, Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        tensors |= read_tensors(path)
    for name, shape in expected_shapes().items():
        # The package's own file calls the layers lin0.model.1.weight; some conversions leave the dropout out.
        tensor = tensors.get(name, tensors.get(name.replace(".model.1.", ".model.0.")))
        if tensor is None or tuple(tensor.shape) != shape:
            found = "is missing" if tensor is None else f"has shape {list(tensor.shape)}, not {list(shape)}"
            raise UserError(
                f"LPIPS: {name} {found}; put {' and '.join(LPIPS_FILES)} into {folder.name} again", MODEL_MISSING
            )
        tensors[name] = tensor
    return Lpips({name: tensors[name].float().to(device) for name in expected_shapes()})
