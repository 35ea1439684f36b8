"""The models that look at training frames, as far as they are installed; each is loaded when its turn comes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final, TypeVar

from backend.diffusion.interfaces import FaceIdentity, SurfaceEstimator
from backend.diffusion.placement import Placement, choose
from backend.errors import UserError
from backend.human.frame_targets import AlbedoModel, FaceModel, Helpers, Matting, Parser

if TYPE_CHECKING:
    from backend.context import Context
    from backend.diffusion.load import Folders

LIKE: Final = {"matting": "dinov2-small", "parsing": "clip-l", "albedo": "marigold-normals"}
"""What the user brings has no footprint of its own: it is placed like a model that is no smaller."""

Made = TypeVar("Made")


def installed_helpers(folders: Folders, context: Context) -> Helpers:
    """What is installed.

    Args:
        folders: Where models lie, such as `Weights.default()`.
        context: Says the device and the memory.
    """

    def identity() -> FaceIdentity | None:
        from backend.perception.identity import identity

        return identity(folders, context.device)

    def surface() -> Sequence[SurfaceEstimator]:
        from backend.diffusion.surface import surface_estimators

        return surface_estimators(folders, context)

    def matting() -> Matting | None:
        from backend.diffusion.matting import ViTMatte

        return _if_there(folders, "matting", lambda: ViTMatte(folders, _place("matting", context)))

    def parsing() -> Parser | None:
        from backend.diffusion.parsing import HumanParser

        return _if_there(folders, "parsing", lambda: HumanParser(folders, _place("parsing", context)))

    def albedo() -> AlbedoModel | None:
        from backend.diffusion.albedo import Albedo

        return _if_there(folders, "albedo", lambda: Albedo(folders, _place("albedo", context)))

    def face() -> FaceModel | None:
        from backend.diffusion.restoration import FaceRestorer

        return _if_there(folders, "restoration", lambda: FaceRestorer(folders, context.device))

    return Helpers(identity=identity, surface=surface, matting=matting, parsing=parsing, albedo=albedo, face=face)


def _place(model_id: str, context: Context) -> Placement:
    return choose(LIKE[model_id], context)


def _if_there(folders: Folders, model_id: str, make: Callable[[], Made]) -> Made | None:
    """The model, or None where it is not installed; one that is there and broken is said."""
    try:
        folders.folder(model_id)
    except UserError as error:
        if error.kind != "NO_MODEL":
            raise
        return None
    return make()


__all__ = ["installed_helpers"]
