"""Channel statistics of a style's latents: of pictures made for it once and remembered, or of a picture that is given.

The style's pictures have a plain background and count inside their foreground only, as the rendered views do: else the
background's colour would be part of the style. Kept are two small arrays per style as .npz without pickle, in the
user's cache folder, under a name made of everything that they depend on.
"""

from __future__ import annotations

import hashlib
import os
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from backend.context import Context
from backend.diffusion.interfaces import Conditions, Denoiser
from backend.diffusion.moments import Moments, moments
from backend.diffusion.sampling import STYLE_IMAGES, STYLE_SCALE, STYLE_STEPS, style_of
from backend.errors import BAD_REQUEST, UserError
from backend.files import whole_file
from backend.user_folders import user_folder

CACHE = "EFFIGY_CACHE"
"""Environment variable with the folder of what can be made again."""

LAYOUT = 1
"""Counted up when the statistics change meaning."""

EDGE_SHARE = 0.06
"""Width of the border whose colours are the background's, of the picture's side."""

APART = (0.06, 0.16)
"""Distance from the background in display RGB, 0..1, from which a pixel begins to count and counts in full."""

PLAIN_SHARES = (0.08, 0.95)
"""A foreground smaller or larger than these shares of the picture means that the background is not plain."""

ELLIPSE = (0.34, 0.44)
"""Half axes, in shares of the picture, of what counts where the background is not plain: a portrait's usual place."""


def default_cache(environment: Mapping[str, str] = os.environ, platform: str = sys.platform) -> Path:
    """The folder of styles: below the variable EFFIGY_CACHE, else in the user's cache folder."""
    if environment.get(CACHE):
        return Path(environment[CACHE]).expanduser() / "styles"
    return user_folder("cache", environment, platform) / "styles"


def style_statistics(
    denoiser: Denoiser,
    positive: Conditions,
    negative: Conditions,
    size: tuple[int, int, int],
    *,
    name: tuple[str, ...],
    context: Context,
    cache: Path | None = None,
    images: int = STYLE_IMAGES,
    steps: int = STYLE_STEPS,
) -> Moments:
    """Statistics of pictures that the model makes for a style; remembered, so that a style is made once.

    Args:
        denoiser: The model that is to be guided.
        positive: The style's prompt without a person, a batch of one.
        negative: A batch of one.
        size: (C, h, w) of the latents.
        name: What the result depends on beside the arguments: prompt, negative prompt, models with revisions.
        context: Progress, preview of the pictures, cancelling, seed.
        cache: Folder; None for `default_cache`.
        images: How many pictures.
        steps: Of each.

    Raises:
        Cancelled: Within one step; nothing is remembered then.
    """
    about = (*name, str(LAYOUT), *map(str, size), str(images), str(steps), str(STYLE_SCALE), str(context.seed))
    file = (cache or default_cache()) / f"{hashlib.sha256(repr(about).encode()).hexdigest()[:32]}.npz"
    kept = read_statistics(file, size[0])
    if kept is not None:
        context.progress("style", 1, 1, "remembered")
        return kept
    device = positive.text.device
    generator = torch.Generator(device).manual_seed(context.seed)

    def foreground(pictures: Tensor) -> Tensor:
        context.preview((pictures[0].permute(1, 2, 0).clamp(0, 1) * 255).byte().cpu().numpy())
        return F.adaptive_avg_pool2d(plain_foreground(pictures), (size[1], size[2]))

    found = style_of(
        denoiser, positive, negative, size, context=context, generator=generator, mask_of=foreground, images=images,
        steps=steps,
    )  # fmt: skip
    write_statistics(file, found)
    return found


def picture_statistics(
    denoiser: Denoiser, image: np.ndarray, size_px: int, device: str, mask: np.ndarray | None = None
) -> Moments:
    """Statistics of one picture's latents, inside its foreground where its background is plain, else of all of it.

    Args:
        denoiser: Whose encoder is used.
        image: uint8 [H, W, 3].
        size_px: Shorter side at which it is encoded; what is longer is cut off on both ends.
        device: Of the encoder.
        mask: [H, W] 0..1, what counts instead.

    Raises:
        UserError: If it is no picture.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or min(image.shape[:2]) < 8:
        raise UserError("the style picture is too small or no colour picture; choose another", BAD_REQUEST, "BAD_IMAGE")
    square = _square(torch.from_numpy(np.ascontiguousarray(image)).to(device).permute(2, 0, 1)[None] / 255, size_px)
    with torch.no_grad():
        latents = denoiser.encode(square)
    if mask is None:
        counts = plain_foreground(square, fallback="all")
    else:
        counts = _square(torch.from_numpy(np.ascontiguousarray(mask)).to(device)[None, None], size_px)
    return moments(latents, F.adaptive_avg_pool2d(counts, (latents.shape[2], latents.shape[3])))


def between(own: Moments, style: Moments, strength: float) -> Moments:
    """Statistics on the way from a person's (strength 0) to a style's (1)."""
    style = Moments(style.mean.to(own.mean), style.covariance.to(own.covariance))
    return Moments(torch.lerp(own.mean, style.mean, strength), torch.lerp(own.covariance, style.covariance, strength))


def _square(picture: Tensor, size_px: int) -> Tensor:
    height, width = picture.shape[-2:]
    factor = size_px / min(height, width)
    shape = (max(round(height * factor), size_px), max(round(width * factor), size_px))
    resized = F.interpolate(picture.float(), shape, mode="bilinear", antialias=True).clamp(0, 1)
    top, left = (shape[0] - size_px) // 2, (shape[1] - size_px) // 2
    return resized[..., top : top + size_px, left : left + size_px]


def plain_foreground(pictures: Tensor, fallback: str = "ellipse") -> Tensor:
    """What stands out from a plain background.

    Args:
        pictures: [B, 3, H, W] in 0..1.
        fallback: What counts where the background is not plain: the middle "ellipse", or "all".

    Returns:
        [B, 1, H, W] in 0..1.
    """
    height, width = pictures.shape[-2:]
    edge = max(round(EDGE_SHARE * min(height, width)), 1)
    # Not the lower edge: a portrait is cut off there.
    border = torch.cat(
        [pictures[..., :edge, :].flatten(2), pictures[..., :, :edge].flatten(2), pictures[..., :, -edge:].flatten(2)], 2
    )
    background = border.median(2).values[..., None, None]
    low, high = APART
    away = (pictures - background).square().mean(1, keepdim=True).sqrt()
    mask = ((away - low) / (high - low)).clamp(0, 1)
    share = mask.mean((1, 2, 3))
    plain = (share > PLAIN_SHARES[0]) & (share < PLAIN_SHARES[1])
    other = torch.ones_like(mask) if fallback == "all" else _ellipse(height, width).to(mask).expand_as(mask)
    return torch.where(plain[:, None, None, None], mask, other)


def _ellipse(height: int, width: int) -> Tensor:
    y = (torch.arange(height) + 0.5) / height - 0.5
    x = (torch.arange(width) + 0.5) / width - 0.5
    inside = (x[None] / ELLIPSE[0]) ** 2 + (y[:, None] / ELLIPSE[1]) ** 2 < 1
    return inside.float()[None, None]


def read_statistics(file: Path, channels: int) -> Moments | None:
    """What was remembered; None where it is missing, damaged or of another kind."""
    try:
        with np.load(file, allow_pickle=False) as stored:
            mean, covariance = stored["mean"], stored["covariance"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    right = mean.shape == (channels,) and covariance.shape == (channels, channels)
    if not right or mean.dtype != np.float64 or covariance.dtype != np.float64:
        return None
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all() and np.allclose(covariance, covariance.T)):
        return None
    if np.linalg.eigvalsh(covariance)[0] < -1e-9 * max(float(np.trace(covariance)), 1e-12):
        return None
    return Moments(torch.from_numpy(mean), torch.from_numpy(covariance))


def write_statistics(file: Path, found: Moments) -> None:
    """Remember; a folder that cannot be written is no reason to fail."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(file, durable=False) as opened:
            np.savez(opened, mean=found.mean.double().cpu().numpy(), covariance=found.covariance.double().cpu().numpy())
    except OSError:
        return


__all__ = [
    "between",
    "default_cache",
    "picture_statistics",
    "plain_foreground",
    "read_statistics",
    "style_statistics",
    "write_statistics",
]
