"""The ways to a portrait that need image models: Style Aligned Sampling, and an edited photo."""

from __future__ import annotations

from typing import Literal

from backend.diffusion.weights import Weights
from backend.pipeline import Stage
from blender_addon.shared.methods import PortraitRequest

MODELS = {"sas": ("sd15",), "edit": ("flux2-klein",)}
"""What each way cannot do without, by the models' ids."""


def lacking(way: Literal["sas", "edit"], models: Weights) -> tuple[str, ...]:
    """Ids of the models that a way needs and that are not installed; empty where it can run."""
    return tuple(name for name in MODELS[way] if not models.installed(name))


def sas_stages(request: PortraitRequest, models: Weights) -> list[Stage]:
    """From the photo-only bust to the stylised one."""
    raise NotImplementedError


def edit_stages(request: PortraitRequest, models: Weights) -> list[Stage]:
    """From the photo to the edited one."""
    raise NotImplementedError
