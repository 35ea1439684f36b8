"""Soft edges of a person: ViTMatte (transformers) between what is surely the person and what is surely not.

Among the packages for matting, rembg 2.0.86 wants numpy 2.3 or newer, which excludes mediapipe 0.10.21, and downloads
its models by itself; BiRefNet's published classes are code in a model folder. ViTMatte is part of transformers, its
weights are safetensors (hustvl/vitmatte-small-composition-1k, Apache-2.0), and the mask that it needs is already there.
"""

from __future__ import annotations

import cv2
import numpy as np
import torch

from backend.context import Context
from backend.diffusion import gate
from backend.diffusion.load import Folders, load
from backend.diffusion.placement import Placement

SURE = 0.95
"""From here on a soft mask is sure; below 1 - SURE it is sure of the contrary."""

BAND_SHARE = 0.02
"""Half width of the band in which the network decides, of the person's size: hair reaches beyond the mask."""

BACKGROUND, UNKNOWN, FOREGROUND = 0, 128, 255
"""Bytes of a trimap."""


class ViTMatte:
    """Alpha from a picture and a mask."""

    def __init__(self, folders: Folders, placement: Placement) -> None:
        """Load it.

        Raises:
            UserError: Code 3 if the model `matting` is not there or is no ViTMatte.
        """
        transformers, folder = gate.import_transformers(), folders.folder("matting")
        self.sources = (folders.source("matting"),)
        self._processor = transformers.VitMatteImageProcessorPil.from_pretrained(folder, local_files_only=True)
        self._model = load(transformers.VitMatteForImageMatting, folder, placement=placement)
        self._placement = placement

    def alpha(self, image: np.ndarray, mask: np.ndarray, context: Context) -> np.ndarray:
        """Opacity float32 [H, W] of the person.

        Args:
            image: uint8 [H, W, 3].
            mask: float32 [H, W], 0..1: what is known so far.
            context: For cancelling.
        """
        context.raise_if_cancelled()
        known = trimap(mask)
        inputs = self._processor(images=image, trimaps=known, return_tensors="pt")
        with torch.no_grad():
            found = self._model(pixel_values=inputs["pixel_values"].to(self._placement.device, self._placement.dtype))
        height, width = mask.shape
        alpha = found.alphas[0, 0, :height, :width].float().cpu().numpy().clip(0, 1)
        return np.where(known == UNKNOWN, alpha, known / np.float32(255)).astype(np.float32)


def trimap(mask: np.ndarray, band_px: int | None = None) -> np.ndarray:
    """Uint8 [H, W]: foreground, background, and a band between them in which neither is sure.

    Args:
        mask: float32 [H, W], 0..1.
        band_px: Half width of the band; None takes `BAND_SHARE` of the person's size.
    """
    if band_px is None:
        band_px = max(2, round(BAND_SHARE * float(np.sqrt(max((mask > 0.5).sum(), 1)))))
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * band_px + 1, 2 * band_px + 1))
    inside = cv2.erode((mask >= SURE).astype(np.uint8), disc) > 0
    outside = cv2.dilate((mask > 1 - SURE).astype(np.uint8), disc) == 0
    return np.where(inside, FOREGROUND, np.where(outside, BACKGROUND, UNKNOWN)).astype(np.uint8)
