"""Pictures of posed Gaussians without gradients: previews, sheets and measurements."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from backend.human.camera import PinholeCamera
from backend.raster import Cameras, SplatTensors, rasterize
from backend.splats.bound import PosedSplats

BACKGROUND = (0.5, 0.5, 0.5)
"""Mid grey, display sRGB: dark and light rims both show on it."""


def to_tensors(splats: PosedSplats) -> SplatTensors:
    """The rasteriser's record of posed Gaussians, float32."""
    arrays = (splats.positions_m, splats.rotations_wxyz, splats.scales_m, splats.opacities)
    return SplatTensors(*[torch.from_numpy(np.ascontiguousarray(a, np.float32)) for a in arrays])


def to_cameras(camera: PinholeCamera) -> Cameras:
    """The rasteriser's record of one pinhole camera."""
    return Cameras(
        torch.from_numpy(camera.w2c)[None], torch.from_numpy(camera.intrinsics_px)[None], camera.width, camera.height
    )


def render(
    splats: PosedSplats, cameras: Cameras, background: Sequence[float] = BACKGROUND
) -> tuple[np.ndarray, np.ndarray]:
    """Draw posed Gaussians.

    Args:
        splats: N Gaussians.
        cameras: C cameras.
        background: [3] display sRGB 0..1.

    Returns:
        Colours float32 [C, H, W, 3] 0..1 and alpha float32 [C, H, W].
    """
    with torch.no_grad():
        output = rasterize(
            to_tensors(splats),
            cameras,
            features=torch.from_numpy(np.ascontiguousarray(splats.colours, np.float32)),
            background=torch.tensor(background, dtype=torch.float32),
        )
    return output.features.permute(0, 2, 3, 1).contiguous().numpy(), output.alpha.numpy()


def to_uint8(image: np.ndarray) -> np.ndarray:
    """A picture 0..1 as uint8, rounded to nearest."""
    return (np.clip(image, 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8)
