"""What depends on the side from which an object is seen: prompts, and how much a face counts.

Azimuth 0 is the front and 90 the object's left side; elevation 90 is straight above. The picture's own landmarks on
every view would ask for a face on the back of the head, so the face's conditions fade as it turns away.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

VIEW_WORDS = ("front view", "side view", "back view", "overhead view")
"""Appended to a prompt, in the order of `ViewTexts`."""

FULL_DEG, NONE_DEG = 45.0, 100.0
"""A face counts in full up to the first azimuth and not at all beyond the second."""

OVERHEAD_DEG = (45.0, 75.0)
"""Between these elevations the view from the side becomes one from above."""


def view_prompts(prompt: str) -> tuple[str, str, str, str]:
    """The prompt for the front, a side, the back and from above."""
    return tuple(f"{prompt}, {words}" for words in VIEW_WORDS)  # pyright: ignore[reportReturnType]


@dataclass(frozen=True)
class ViewTexts:
    """Embeddings of one prompt for four sides.

    Attributes:
        embeddings: [4, L, D]: front, side, back, overhead.
    """

    embeddings: Tensor

    def at(self, azimuths_deg: Tensor, elevations_deg: Tensor) -> Tensor:
        """Blended embeddings [B, L, D] for views [B]; continuous in both angles."""
        weights = view_weights(azimuths_deg, elevations_deg).to(self.embeddings)
        return torch.einsum("bk,kld->bld", weights, self.embeddings)


def view_weights(azimuths_deg: Tensor, elevations_deg: Tensor) -> Tensor:
    """Weights [B, 4] of front, side, back and overhead, sum 1, linear in the angles."""
    turned = off_front_deg(azimuths_deg) / 90.0
    low, high = OVERHEAD_DEG
    above = ((elevations_deg - low) / (high - low)).clamp(0.0, 1.0)
    front, back = (1 - turned).clamp_min(0.0), (turned - 1).clamp_min(0.0)
    side = 1 - front - back
    around = torch.stack([front, side, back], dim=1) * (1 - above)[:, None]
    return torch.cat([around, above[:, None]], dim=1)


def face_share(azimuths_deg: Tensor, full_deg: float = FULL_DEG, none_deg: float = NONE_DEG) -> Tensor:
    """How much a face's conditions count, [B] 0..1: in full near the front, smoothly to nothing at the side."""
    left = ((none_deg - off_front_deg(azimuths_deg)) / (none_deg - full_deg)).clamp(0.0, 1.0)
    return left * left * (3 - 2 * left)


def off_front_deg(azimuths_deg: Tensor) -> Tensor:
    """Angle from the front, 0..180, of any azimuth."""
    return ((azimuths_deg + 180.0) % 360.0 - 180.0).abs()
