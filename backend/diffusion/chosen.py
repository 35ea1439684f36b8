"""The best model of each kind that is installed and fits, ready to work."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from backend.context import Context
from backend.diffusion.edit import Inpaint, Klein
from backend.diffusion.load import Folders
from backend.diffusion.orbit import SV3D
from backend.diffusion.placement import Placement, choose
from backend.diffusion.video import WanAnimate, WanVACE
from backend.errors import UserError

T = TypeVar("T")


def video_generator(folders: Folders, context: Context, prompts: Path | None = None) -> WanAnimate | WanVACE:
    """Wan-Animate where it does not crawl, else VACE.

    Args:
        folders: Where models lie.
        context: Device and memory.
        prompts: Where embeddings of prompts are remembered; the job's scratch folder if None.

    Raises:
        UserError: Code 3 if neither is installed, or OUT_OF_MEMORY if what is installed does not fit.
    """
    return _best(
        folders,
        context,
        (
            ("wan-animate", lambda placement: WanAnimate.of(folders, placement, context, prompts)),
            ("wan-vace", lambda placement: WanVACE.of(folders, placement, context, prompts)),
        ),
    )


def orbit_generator(folders: Folders, context: Context) -> SV3D:
    """SV3D with chosen cameras, else the one that knows a level circle only.

    Raises:
        UserError: Code 3 if neither is installed, or OUT_OF_MEMORY if what is installed does not fit.
    """
    return _best(
        folders,
        context,
        (
            ("sv3d-p", lambda placement: SV3D.of(folders, "sv3d-p", placement, context)),
            ("sv3d-u", lambda placement: SV3D.of(folders, "sv3d-u", placement, context)),
        ),
    )


def image_editor(folders: Folders, context: Context) -> Klein | Inpaint:
    """Klein, which follows instructions, else Stable Diffusion inpainting, which follows descriptions.

    Raises:
        UserError: Code 3 if neither is installed, or OUT_OF_MEMORY if what is installed does not fit.
    """
    return _best(
        folders,
        context,
        (
            ("flux2-klein", lambda placement: Klein.of(folders, placement, context)),
            ("sd15-inpaint", lambda placement: Inpaint.of(folders, placement, context)),
        ),
    )


def _best(folders: Folders, context: Context, wanted: Sequence[tuple[str, Callable[[Placement], T]]]) -> T:
    """The first that is there and fits without layer-by-layer loading; else the last that is there and fits at all."""
    slow: tuple[Callable[[Placement], T], Placement] | None = None
    problems: list[UserError] = []
    for model_id, make in wanted:
        try:
            folders.folder(model_id)
            placement = choose(model_id, context)
        except UserError as error:
            if error.kind not in ("NO_MODEL", "OUT_OF_MEMORY"):
                raise
            problems.append(error)
            continue
        if placement.offload != "sequential":
            return make(placement)
        slow = (make, placement)
    if slow is not None:
        make, placement = slow
        return make(placement)
    # A model that is there but does not fit says more than one that is not there.
    raise next((error for error in problems if error.kind == "OUT_OF_MEMORY"), problems[-1])
