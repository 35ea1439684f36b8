"""A style without an image model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from backend.splats.bound import BoundSplats

if TYPE_CHECKING:
    from backend.context import Context
    from backend.human.bust import Bust
    from blender_addon.shared.styles import Style


def paint(bust: Bust, style: Style, picture: np.ndarray | None, strength: float, context: Context) -> BoundSplats:
    """The bust's Gaussians in a style."""
    return bust.splats
