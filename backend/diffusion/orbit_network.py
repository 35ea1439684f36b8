"""The networks of SVD and SV3D as diffusers models.

Importing this module imports diffusers; `orbit.py` does so only when a model is loaded.
"""

from __future__ import annotations

import functools
from typing import Any, cast

import torch
from diffusers.loaders.peft import PeftAdapterMixin
from diffusers.models.resnet import SpatioTemporalResBlock
from diffusers.models.unets.unet_spatio_temporal_condition import (
    UNetSpatioTemporalConditionModel,
    UNetSpatioTemporalConditionOutput,
)
from torch import Tensor, nn

PUBLISHED_NORM_EPS = 1e-5
"""Of every group norm in a residual block [Stability-AI/generative-models]; diffusers has 1e-6 in one kind of block."""


class VideoUNet(UNetSpatioTemporalConditionModel, PeftAdapterMixin):
    """SVD's network, which takes LoRA adapters."""

    @functools.wraps(UNetSpatioTemporalConditionModel.__init__)  # diffusers reads the configuration's names from it
    def __init__(self, **config: Any) -> None:
        """Build it as diffusers does, with the published epsilon in every residual block."""
        super().__init__(**config)
        for block in self.modules():
            if isinstance(block, SpatioTemporalResBlock):
                for norm in block.modules():
                    if isinstance(norm, nn.GroupNorm):
                        norm.eps = PUBLISHED_NORM_EPS


class OrbitUNet(VideoUNet):
    """SV3D's network: the same as SVD's, but every frame has a camera of its own.

    With d = `addition_time_embed_dim` (256 as published), a frame's numbers are embedded by sinusoids of d (noise on
    the input picture), 2d (polar angle) and 2d (azimuth) numbers; `sv3d_u` has the first only.
    """

    @property
    def has_cameras(self) -> bool:
        """False for `sv3d_u`, whose orbit is fixed."""
        config = cast(Any, self.config)
        return config.projection_class_embeddings_input_dim > config.addition_time_embed_dim

    def camera_embedding(self, cameras: Tensor) -> Tensor:
        """Input of the network's own embedding layers.

        Args:
            cameras: [B, F, 3] noise level, polar angle and azimuth in radians; [B, F, 1] noise level for `sv3d_u`.

        Returns:
            float32 [B, F, D].

        Raises:
            ValueError: If the network wants another number of values.
        """
        unit = cast(Any, self.config).addition_time_embed_dim
        sizes = (unit, 2 * unit, 2 * unit) if self.has_cameras else (unit,)
        if cameras.shape[-1] != len(sizes):
            raise ValueError(f"cameras have {cameras.shape[-1]} numbers a frame, this network takes {len(sizes)}")
        return torch.cat([sinusoid(cameras[..., k], size) for k, size in enumerate(sizes)], dim=-1)

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        encoder_hidden_states: Tensor,
        added_time_ids: Tensor,
        return_dict: bool = True,
    ) -> UNetSpatioTemporalConditionOutput | tuple[Tensor]:
        """Predict v.

        Args:
            sample: [B, F, 8, h, w] noisy latents with the input picture's latent behind them; h and w multiples of 8.
            timestep: A quarter of the logarithm of sigma; a number or [B].
            encoder_hidden_states: [B, 1, C] embedding of the input picture.
            added_time_ids: [B, F, 3] or [B, F, 1], see `camera_embedding`.
            return_dict: As in diffusers.

        Returns:
            [B, F, 4, h, w].
        """
        batch, frames = sample.shape[:2]
        steps = torch.as_tensor(timestep, dtype=torch.float32, device=sample.device).expand(batch)
        time = self.time_embedding(self.time_proj(steps).to(sample.dtype)).repeat_interleave(frames, dim=0)
        cameras = self.add_embedding(self.camera_embedding(added_time_ids).flatten(0, 1).to(sample.dtype))
        common = {
            "temb": time + cameras,
            "image_only_indicator": torch.zeros(batch, frames, dtype=sample.dtype, device=sample.device),
        }
        context = {"encoder_hidden_states": encoder_hidden_states.repeat_interleave(frames, dim=0)}

        hidden = self.conv_in(sample.flatten(0, 1))
        kept: tuple[Tensor, ...] = (hidden,)
        for block in self.down_blocks:
            hidden, more = block(hidden, **common, **(context if _crosses(block) else {}))
            kept += more
        hidden = self.mid_block(hidden, **common, **context)
        for block in self.up_blocks:
            count = len(cast(nn.ModuleList, block.resnets))
            kept, skips = kept[:-count], kept[-count:]
            hidden = block(hidden, res_hidden_states_tuple=skips, **common, **(context if _crosses(block) else {}))
        hidden = self.conv_out(self.conv_act(self.conv_norm_out(hidden)))
        output = hidden.unflatten(0, (batch, frames))
        return UNetSpatioTemporalConditionOutput(sample=output) if return_dict else (output,)


def sinusoid(values: Tensor, size: int) -> Tensor:
    """Cosines, then sines, of `values` [...] at size/2 frequencies from 1 down towards 1/10000; float32 [..., size]."""
    half = size // 2
    frequencies = 10_000.0 ** (-torch.arange(half, dtype=torch.float32, device=values.device) / half)
    angles = values.float()[..., None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def _crosses(block: nn.Module) -> bool:
    return bool(getattr(block, "has_cross_attention", False))
