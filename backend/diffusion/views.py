"""What depends on the side from which an object is seen: prompts, and how much a face counts.

Azimuth 0 is the front and 90 the object's left side; elevation 90 is straight above. The picture's own landmarks on
every view would ask for a face on the back of the head, so the face's conditions fade as it turns away.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from backend.diffusion.face_adapter import ImageTokens
from backend.diffusion.interfaces import Conditions

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


@dataclass(frozen=True)
class ViewControl:
    """Drawings for one control network.

    Attributes:
        images: [B, 3, H, W] in 0..1, one per view.
        scale: Of the network.
        of_face: It asks for a face, and fades where the face is not seen.
    """

    images: Tensor
    scale: float = 1.0
    of_face: bool = False


def view_conditions(
    texts: ViewTexts,
    negative_text: Tensor,
    azimuths_deg: Tensor,
    elevations_deg: Tensor,
    *,
    face: ImageTokens | None = None,
    face_scale: float = 1.0,
    controls: Sequence[ViewControl] = (),
) -> tuple[Conditions, Conditions]:
    """Positive and negative conditions of rendered views.

    Args:
        texts: The prompt for four sides.
        negative_text: [1, L, D].
        azimuths_deg: [B], 0 at the front.
        elevations_deg: [B].
        face: Tokens of the face adapter.
        face_scale: Of the face adapter at the front.
        controls: In the order of the denoiser's control networks; both sides of the guidance see them.
    """
    count, share = len(azimuths_deg), face_share(azimuths_deg)
    own, none = (None, None) if face is None else face.for_batch(count)
    images = tuple(control.images for control in controls)
    scales = tuple(control.scale * (share if control.of_face else torch.ones_like(share)) for control in controls)
    text = texts.at(azimuths_deg, elevations_deg)
    plain = negative_text.expand(count, -1, -1)
    return (
        Conditions(text, own, face_scale * share, control_images=images, control_scales=scales),
        Conditions(plain, none, face_scale * share, control_images=images, control_scales=scales),
    )


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
