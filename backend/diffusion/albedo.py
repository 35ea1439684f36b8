"""Colours without light: Marigold's intrinsic decomposition (`MarigoldIntrinsicsPipeline` of diffusers 0.42.1).

The `intrinsic` package (compphoto/Intrinsic) is for research only and loads pickles from the network: it is not used.
Marigold's is published as prs-eth/marigold-iid-appearance-v1-1 and -lighting-v1-1, safetensors in the usual layout.
"""

from __future__ import annotations

import numpy as np

from backend.context import Context
from backend.diffusion import gate
from backend.diffusion.load import Folders
from backend.diffusion.placement import Placement
from backend.diffusion.surface import marigold_pipeline, run_marigold
from backend.errors import MODEL_MISSING, UserError


class Albedo:
    """The picture as it would look in even white light."""

    def __init__(
        self, folders: Folders, placement: Placement, steps: int | None = None, size_px: int | None = None
    ) -> None:
        """Load it; see `surface.MarigoldNormals` for `steps` and `size_px`.

        Raises:
            UserError: Code 3 if the model `albedo` is not there or decomposes into something else.
        """
        diffusers = gate.import_diffusers()
        self._pipeline = marigold_pipeline(
            diffusers.MarigoldIntrinsicsPipeline, folders.folder("albedo"), placement, "target_properties"
        )
        self.sources = (folders.source("albedo"),)
        properties = self._pipeline.target_properties or {}
        names = properties.get("target_names", [])
        if "albedo" not in names:
            raise UserError(
                f"the imported albedo model makes {names or 'nothing known'}; import another", MODEL_MISSING
            )
        self._target = names.index("albedo")
        self._linear = properties.get("albedo", {}).get("prediction_space") == "linear"
        self._steps, self._size_px = steps, size_px

    def albedo(self, image: np.ndarray, context: Context) -> np.ndarray:
        """Uint8 [H, W, 3] display sRGB of uint8 [H, W, 3]; the same for the same seed.

        Raises:
            Cancelled: Within one denoising step.
        """
        targets = run_marigold(self._pipeline, image, self._steps, self._size_px, context)
        colours = targets[self._target].clip(0, 1)
        return np.clip((to_display(colours) if self._linear else colours) * 255 + 0.5, 0, 255).astype(np.uint8)


def to_display(linear: np.ndarray) -> np.ndarray:
    """Linear light 0..1 to display sRGB 0..1 (IEC 61966-2-1)."""
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * np.maximum(linear, 1e-9) ** (1 / 2.4) - 0.055)
