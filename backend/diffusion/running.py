"""What running any pipeline has in common: placing it, watching its steps, noise by seed, pictures in and out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from PIL import Image

from backend.context import Context
from backend.diffusion import gate
from backend.diffusion.placement import Placement, place
from backend.errors import BAD_REQUEST, MODEL_MISSING, UserError

PIXELS_1MP: Final = 1024 * 1024

LARGEST_STRETCH: Final = 0.5
"""Logarithm of how much a picture may be stretched in one direction to reach a size that a model takes."""


def resting(placement: Placement) -> Placement:
    """Where parts are loaded before the whole pipeline is placed: in memory, in the working dtype."""
    return replace(placement, device="cpu", storage="same", offload="none", tiling=False)


def placed(pipeline: Any, placement: Placement) -> Any:
    """A pipeline at its place, without a progress bar of its own."""
    pipeline.set_progress_bar_config(disable=True)
    return place(pipeline, placement)


def plain(cls: type[Any], folder: Path, subfolder: str, **changes: Any) -> Any:
    """A scheduler, tokenizer or image processor: what has a configuration and no weights.

    Args:
        cls: The class itself; what the folder names is not looked at.
        folder: Of the whole model.
        subfolder: Of this part.
        **changes: Values that replace the configuration's own.

    Raises:
        UserError: If it is not there or cannot be read.
    """
    base = folder / subfolder
    if not base.is_dir():
        raise UserError(f"{base.name} is missing beside the weights; fetch the model again", MODEL_MISSING, "BAD_MODEL")
    gate.check_folder(base)
    try:
        return cls.from_pretrained(str(base), local_files_only=True, **changes)
    except (OSError, ValueError, KeyError, TypeError) as error:
        text = f"{base.name} cannot be read ({error}); fetch the model again"
        raise UserError(text, MODEL_MISSING, "BAD_MODEL") from error


@dataclass
class StepWatch:
    """Called by a pipeline after every step: shows progress and stops a cancelled job there.

    Attributes:
        context: Of the job.
        stage: Shown to people.
        total: Steps in all, of every segment.
        done: Steps so far.
    """

    context: Context
    stage: str
    total: int
    done: int = 0

    def __call__(self, pipeline: object, step: int, timestep: object, values: Mapping[str, Any]) -> dict[str, Any]:
        """Diffusers' signature of `callback_on_step_end`.

        Raises:
            Cancelled: If the user cancelled the job.
        """
        self.done += 1
        self.context.progress(self.stage, min(self.done, self.total), self.total)
        return dict(values)


def noise_source(seed: int) -> torch.Generator:
    """Random numbers that are the same on every device: they are always drawn on the CPU."""
    return torch.Generator("cpu").manual_seed(seed)


def picture(image: np.ndarray) -> Image.Image:
    """uint8 [H, W, 3] as a PIL picture.

    Raises:
        UserError: If it is something else.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise UserError(f"a picture is uint8 [H, W, 3], not {image.dtype} {list(image.shape)}", BAD_REQUEST)
    return Image.fromarray(np.ascontiguousarray(image))


def as_uint8(values: np.ndarray | torch.Tensor) -> np.ndarray:
    """0..1 to 0..255, rounded; NaN, which a half-precision overflow leaves, is refused.

    Raises:
        UserError: If there are numbers that are not finite.
    """
    array = (
        values.detach().float().cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values, np.float32)
    )
    if not np.isfinite(array).all():
        raise UserError("the model made numbers that are not finite; choose another precision", 1)
    return np.rint(np.clip(array, 0.0, 1.0) * 255).astype(np.uint8)


def fitted_size(width: int, height: int, multiple: int, smallest: int, largest_area: int) -> tuple[int, int]:
    """The size in which a model works on a picture of `width` x `height`: near its shape, a multiple, within bounds.

    Args:
        width: Pixels.
        height: Pixels.
        multiple: Both sides are multiples of this.
        smallest: Shortest side that the model takes, pixels.
        largest_area: Most pixels that the model takes.

    Returns:
        Width and height.

    Raises:
        UserError: If no such size has roughly the picture's shape.
    """
    smallest = -(-smallest // multiple) * multiple
    scale = min(max(smallest / min(width, height), 1.0), math.sqrt(largest_area / (width * height)))
    w, h = (max(round(side * scale / multiple) * multiple, smallest) for side in (width, height))

    def stretch(size: tuple[int, int]) -> float:
        return abs(math.log(size[0] / size[1]) - math.log(width / height))

    while w * h > largest_area:
        w, h = min(((w - multiple, h), (w, h - multiple)), key=stretch)
    if min(w, h) < smallest or stretch((w, h)) > LARGEST_STRETCH:
        text = f"a picture of {width} x {height} px is too narrow for this model; crop it closer to a square"
        raise UserError(text, BAD_REQUEST)
    return w, h
