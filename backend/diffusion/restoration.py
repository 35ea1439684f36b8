"""A face with more detail: GFPGAN by the `spandrel` package (0.4.2, MIT), weights as safetensors only.

spandrel also reads `.pth`, which is a pickle: the model's folder must hold one `.safetensors` instead. CodeFormer and
ResShift are for research only and are not offered. The face is turned upright into the frame in which such networks
were trained, restored, and put back.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import torch

from backend.context import Context
from backend.diffusion import gate, outside
from backend.diffusion.load import Folders
from backend.diffusion.outside import only_file
from backend.errors import MODEL_MISSING, UserError

SIZE_PX = 512
"""Side of GFPGAN's picture."""

FRAME_PX = np.array(
    [[192.98138, 239.94708], [318.90277, 240.1936], [256.63416, 314.01935]]
    + [[201.26117, 371.41043], [313.08905, 371.15118]],
    np.float32,
)
"""[5, 2] left eye, right eye, nose tip, mouth corners (as the picture shows them) in that picture: FFHQ's average face,
the template of facexlib 0.3."""

EDGE_PX = 32
"""Over which the restored face fades into the photo."""


class FaceRestorer:
    """GFPGAN."""

    def __init__(self, folders: Folders, device: str = "cpu") -> None:
        """Load it.

        Raises:
            UserError: Code 3 if spandrel or the weights are not there, or the weights are no face network.
        """
        folder = folders.folder("restoration")
        gate.check_folder(folder)
        with outside.guarded("spandrel"):
            package = outside.require("restoration")
            found = package.ModelLoader(device=device).load_from_file(only_file(folder, "*.safetensors", "spandrel"))
        if getattr(found, "purpose", "") != "FaceSR":
            raise UserError("the imported restoration model is no face network (GFPGAN); import one", MODEL_MISSING)
        self.sources = (folders.source("restoration"),)
        self._model = found.model.eval().requires_grad_(False)
        self._device = device

    def restore(self, image: np.ndarray, landmarks_px: np.ndarray, strength: float, context: Context) -> np.ndarray:
        """The picture with its face restored, uint8 [H, W, 3].

        Args:
            image: uint8 [H, W, 3].
            landmarks_px: [5, 2] eyes, nose tip and mouth corners in the order of `FRAME_PX`.
            strength: 0 leaves the photo, 1 takes the network's face.
            context: For cancelling.
        """
        context.raise_if_cancelled()
        height, width = image.shape[:2]
        to_frame, _ = cv2.estimateAffinePartial2D(landmarks_px.astype(np.float32), FRAME_PX, method=cv2.LMEDS)
        if to_frame is None:
            raise ValueError("the landmarks of the face lie on one point")
        face = cv2.warpAffine(image, to_frame, (SIZE_PX, SIZE_PX), flags=cv2.INTER_AREA, borderMode=cv2.BORDER_REFLECT)
        restored = self._run(face)
        back = cv2.invertAffineTransform(to_frame)
        over = cv2.warpAffine(restored, back, (width, height), flags=cv2.INTER_LINEAR)
        share = cv2.warpAffine(_fading_frame(), back, (width, height))[..., None] * strength
        return np.clip(image * (1 - share) + over * share + 0.5, 0, 255).astype(np.uint8)

    def _run(self, face: np.ndarray) -> np.ndarray:
        """Float32 [512, 512, 3] 0..255 for uint8; the network itself works in -1..1 and its noise is the stored one."""
        pixels = torch.from_numpy(face.copy()).permute(2, 0, 1)[None].float().to(self._device) / 127.5 - 1
        with torch.no_grad():
            out: Any = self._model(pixels, return_rgb=False, randomize_noise=False)
        restored = out[0] if isinstance(out, tuple | list) else out
        return ((restored[0].float().clamp(-1, 1) + 1) * 127.5).permute(1, 2, 0).cpu().numpy()


def _fading_frame() -> np.ndarray:
    """Float32 [512, 512]: 1 inside, 0 at the border."""
    ramp = np.minimum(np.arange(SIZE_PX), np.arange(SIZE_PX)[::-1]) / EDGE_PX
    ramp = np.clip(ramp, 0, 1).astype(np.float32)
    return np.minimum(ramp[:, None], ramp[None])
