"""What the optimisation compares: views of the photo with their weights, and the terms of the loss."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage
from scipy.spatial import cKDTree
from torch import Tensor

from backend.human.camera import PinholeCamera
from backend.raster import Cameras
from backend.splats.render import to_cameras
from backend.splats.ssim import ssim_loss

ERODE_PX = 2.0
"""Colours count this far inside the mask only: at its edge photo and background mix (prototype: pale rims)."""

EDGE_WEIGHT = 0.3
"""Weight of the alpha loss on soft mask pixels, where the mask itself is a guess."""

NEIGHBOURS = 6


@dataclass(frozen=True)
class View:
    """A part of the photo, resampled, with what counts in it.

    Attributes:
        cameras: one camera.
        image: [3, H, W] 0..1, zero where nothing of the photo counts.
        mask: [H, W] 0..1.
        colour_weight: [H, W] 0 or 1: inside the eroded mask, no held object, inside the photo.
        alpha_weight: [H, W] 0..1: the trimap.
    """

    cameras: Cameras
    image: Tensor
    mask: Tensor
    colour_weight: Tensor
    alpha_weight: Tensor


def make_view(
    camera: PinholeCamera,
    image: np.ndarray,
    mask: np.ndarray,
    held: np.ndarray,
    box_px: tuple[float, float, float, float],
    size_px: int,
) -> View:
    """Cut a box out of the photo and resample it so that its longer side has `size_px` pixels.

    Args:
        camera: of the photo.
        image: uint8 [H, W, 3].
        mask: float [H, W] 0..1, the person with what they hold.
        held: bool [H, W], what they hold; its pixels influence nothing.
        box_px: x0, y0, x1, y1 in the photo; may reach beyond it, where nothing counts.
        size_px: longer side of the view.
    """
    x0, y0 = np.floor(box_px[:2]).astype(int)
    x1, y1 = np.maximum(np.ceil(box_px[2:]).astype(int), (x0 + 1, y0 + 1))
    scale = size_px / max(x1 - x0, y1 - y0)
    width, height = max(1, round((x1 - x0) * scale)), max(1, round((y1 - y0) * scale))
    counts = ~np.asarray(held, bool)
    kept_mask = np.where(counts, np.asarray(mask, np.float32), 0.0)
    inside = np.asarray(mask) > 0.5
    layers = np.concatenate(
        [
            np.where(counts[..., None], np.asarray(image, np.float32) / 255.0, 0.0),
            np.stack([kept_mask, counts, inside], 2),
        ],
        2,
    ).astype(np.float32)
    resampled = torch.nn.functional.interpolate(
        torch.from_numpy(_cut(layers, x0, y0, x1, y1)).permute(2, 0, 1)[None],
        size=(height, width),
        mode="bilinear",
        antialias=True,
        align_corners=False,
    )[0]
    # A pixel counts when everything that it was resampled from counts.
    valid = (resampled[4] > 0.999).float()
    radius = max(ERODE_PX, ERODE_PX * scale)
    # The frame's edge is no edge of the person: pixels beyond it are outside the photo, or simply not in this view.
    padded = np.pad(resampled[5].numpy() > 0.5, int(np.ceil(radius)) + 1, mode="edge")
    border = int(np.ceil(radius)) + 1
    eroded = (ndimage.distance_transform_edt(padded) > radius)[border:-border, border:-border]
    soft = (resampled[3] > 0.02) & (resampled[3] < 0.98)
    moved = PinholeCamera(
        camera.w2c,
        camera.fx * width / (x1 - x0),
        camera.fy * height / (y1 - y0),
        (camera.cx - x0) * width / (x1 - x0),
        (camera.cy - y0) * height / (y1 - y0),
        width,
        height,
    )
    return View(
        cameras=to_cameras(moved),
        image=(resampled[:3] * valid).contiguous(),
        mask=(resampled[3] * valid).contiguous(),
        colour_weight=torch.from_numpy(eroded.astype(np.float32)) * valid,
        alpha_weight=torch.where(soft, EDGE_WEIGHT, 1.0) * valid,
    )


def _cut(layers: np.ndarray, x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
    """The box of [H, W, K], zeros where it reaches beyond."""
    height, width = layers.shape[:2]
    cut = np.zeros((y1 - y0, x1 - x0, layers.shape[2]), layers.dtype)
    left, top, right, bottom = max(x0, 0), max(y0, 0), min(x1, width), min(y1, height)
    if left < right and top < bottom:
        cut[top - y0 : bottom - y0, left - x0 : right - x0] = layers[top:bottom, left:right]
    return cut


def box_of_mask(mask: np.ndarray, margin: float = 0.04) -> tuple[float, float, float, float]:
    """Box x0, y0, x1, y1 of mask > 0.5 [H, W], px, widened by a share of its longer side.

    Raises:
        ValueError: If the mask is empty.
    """
    rows, columns = np.nonzero(np.asarray(mask) > 0.5)
    if len(rows) == 0:
        raise ValueError("the mask is empty: there is nothing to optimise towards")
    x0, x1, y0, y1 = columns.min(), columns.max() + 1, rows.min(), rows.max() + 1
    extra = margin * max(x1 - x0, y1 - y0)
    return x0 - extra, y0 - extra, x1 + extra, y1 + extra


def photometric_loss(drawn: Tensor, alpha: Tensor, view: View, background: Tensor) -> Tensor:
    """0.8 L1 + 0.2 (1 - SSIM) over one background colour, where colours count.

    Args:
        drawn: [3, H, W] without background.
        alpha: [H, W].
        view: what it should look like.
        background: [3], new in every step, so that only an opaque surface fits.
    """
    behind = background[:, None, None]
    weight = view.colour_weight
    # Elsewhere both pictures are the background, so that SSIM's box brings nothing in from outside.
    picture = torch.where(weight > 0, drawn + (1 - alpha) * behind, behind)
    target = torch.where(weight > 0, view.image * view.mask + (1 - view.mask) * behind, behind)
    l1 = (picture - target).abs().sum() / (3 * weight.sum().clamp_min(1))
    return 0.8 * l1 + 0.2 * ssim_loss(picture, target, weight)


def alpha_loss(alpha: Tensor, view: View) -> Tensor:
    """Weighted L1 between alpha and the mask, per pixel of the mask."""
    return ((alpha - view.mask).abs() * view.alpha_weight).sum() / view.mask.sum().clamp_min(1)


@dataclass(frozen=True)
class Neighbourhood:
    """The nearest Gaussians of the same kind: rows [N, K], and weights [N, K] that sum to 1 or are all 0."""

    rows: Tensor
    weights: Tensor

    @classmethod
    def of(cls, positions_m: np.ndarray, kind: np.ndarray) -> Neighbourhood:
        """Among `NEIGHBOURS` nearest positions [N, 3], those of the same kind [N]."""
        count = min(NEIGHBOURS, len(positions_m) - 1)
        if count < 1:
            empty = torch.zeros(len(positions_m), 0)
            return cls(empty.long(), empty)
        rows = cKDTree(positions_m).query(positions_m, count + 1)[1][:, 1:]
        same = (kind[rows] == kind[:, None]).astype(np.float32)
        weights = same / np.maximum(same.sum(1, keepdims=True), 1)
        return cls(torch.from_numpy(rows), torch.from_numpy(weights))


def roughness(heights: Tensor, neighbours: Neighbourhood) -> Tensor:
    """Mean square of how far heights [N] stand out from their neighbours' mean.

    The mean is held constant: the pull on a Gaussian is the same up to a factor, and no scatter is needed.
    """
    around = (heights.detach()[neighbours.rows] * neighbours.weights).sum(1)
    alone = neighbours.weights.sum(1) == 0
    return torch.where(alone, torch.zeros_like(heights), heights - around).square().mean()
