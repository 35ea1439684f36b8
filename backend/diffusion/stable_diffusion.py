"""Stable Diffusion 1.5 as a `Denoiser`, with control networks and a face adapter.

Text and faces are embedded before (`latent_model.embed_texts`, `face_adapter.embed_picture`), so that only the UNet,
its control networks and the picture encoder stay in memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from backend.context import Context
from backend.diffusion import gate
from backend.diffusion.attention import join
from backend.diffusion.face_adapter import (
    ENCODER_FOLDER,
    PLUS_FACE,
    Adapter,
    ImageTokens,
    attach,
    embed_picture,
    read_adapter,
)
from backend.diffusion.interfaces import Conditions, NoiseSchedule, Source
from backend.diffusion.latent_model import PictureCoder, as_noise, embed_texts, load_coder, read_schedule
from backend.diffusion.load import Folders, load
from backend.diffusion.placement import Placement, place
from backend.errors import UserError

BASE = "sd15"
FACE_CONTROL, POSE_CONTROL, DEPTH_CONTROL = "control-mediapipe-face", "control-openpose", "control-depth"
PLUS_FACE_ADAPTER, IDENTITY_ADAPTER = "ip-adapter-plus-face", "ip-adapter-faceid"

CONTROL_FOLDERS = {FACE_CONTROL: "diffusion_sd15", POSE_CONTROL: None, DEPTH_CONTROL: None}
"""Where a control network lies in its repository."""


class StableDiffusion:
    """A UNet with what steers it; the interface `Denoiser`."""

    def __init__(
        self,
        unet: Any,
        coder: PictureCoder,
        schedule: NoiseSchedule,
        controls: Sequence[Any] = (),
        sources: tuple[Source, ...] = (),
    ) -> None:
        """Wrap loaded models.

        Args:
            unet: `UNet2DConditionModel`, its attention prepared by `face_adapter.attach` where there is one.
            coder: Of its pictures.
            schedule: It was trained with.
            controls: `ControlNetModel`s, in the order of `Conditions.control_images`.
            sources: All that take part.
        """
        self.unet = unet
        self.coder = coder
        self.controls = tuple(controls)
        self._schedule = schedule
        self._sources = sources

    @property
    def sources(self) -> tuple[Source, ...]:
        """All models that take part."""
        return self._sources

    @property
    def schedule(self) -> NoiseSchedule:
        """The forward process of the training."""
        return self._schedule

    def encode(self, images: Tensor) -> Tensor:
        """Pictures [B, 3, H, W] in 0..1 to latents [B, 4, H/8, W/8]; differentiable."""
        return self.coder.encode(images)

    def decode(self, latents: Tensor) -> Tensor:
        """Latents to pictures in 0..1."""
        return self.coder.decode(latents)

    def predict(self, noisy: Tensor, timesteps: Tensor, conditions: Conditions) -> Tensor:
        """The noise in `noisy` [B, 4, h, w] at `timesteps` [B], in float32."""
        with torch.no_grad():
            values = noisy.to(self.unet.dtype)
            text = conditions.text.to(values)
            below, middle = self._steer(values, timesteps, text, conditions)
            output = self.unet(
                values,
                timesteps,
                encoder_hidden_states=join(text, conditions.image_tokens, conditions.image_scale),
                down_block_additional_residuals=below,
                mid_block_additional_residual=middle,
                return_dict=False,
            )[0]
            return as_noise(output.float(), noisy.float(), timesteps, self._schedule)

    def _steer(
        self, values: Tensor, timesteps: Tensor, text: Tensor, conditions: Conditions
    ) -> tuple[list[Tensor] | None, Tensor | None]:
        """Residuals of all control networks together, for the UNet's skips and its middle."""
        if len(conditions.control_images) != len(self.controls) or len(conditions.control_scales) != len(self.controls):
            raise ValueError(
                f"{len(conditions.control_images)} pictures and {len(conditions.control_scales)} scales for "
                f"{len(self.controls)} control networks"
            )
        below: list[Tensor] | None = None
        middle: Tensor | None = None
        for network, image, scale in zip(
            self.controls, conditions.control_images, conditions.control_scales, strict=True
        ):
            share = torch.as_tensor(scale, device=values.device).to(values.dtype).reshape(-1, 1, 1, 1)
            parts, centre = network(
                values, timesteps, text, image.to(values), conditioning_scale=share, return_dict=False
            )
            below = list(parts) if below is None else [a + b for a, b in zip(below, parts, strict=True)]
            middle = centre if middle is None else middle + centre
        return below, middle


def load_stable_diffusion(
    folders: Folders,
    placement: Placement,
    context: Context,
    *,
    controls: Sequence[str] = (FACE_CONTROL,),
    adapter: Adapter | None = None,
    adapter_source: Source | None = None,
    base: str = BASE,
) -> StableDiffusion:
    """Stable Diffusion 1.5 with control networks and a face adapter.

    Args:
        folders: Where the models lie.
        placement: Where they go.
        context: Progress and cancelling, between components.
        controls: Ids of control networks, in the order of `Conditions.control_images`.
        adapter: From `read_plus_face`, or a user's own.
        adapter_source: What the adapter is, for the result.
        base: Id of another model of the same layout.

    Raises:
        UserError: If a model is missing or broken.
        Cancelled: Between components.
    """
    gate.quiet_imports()
    from diffusers.models.controlnets.controlnet import ControlNetModel
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    folder, total = folders.folder(base), 2 + len(controls)
    context.progress("models", 0, total, "encoder")
    coder = load_coder(folder, placement, context)
    context.progress("models", 1, total, "denoiser")
    # Adapters are attached before the model is placed: what moves or casts layers must see theirs too.
    resting = replace(placement, device="cpu", storage="same", offload="none", tiling=False)
    unet = load(UNet2DConditionModel, folder, "unet", placement=resting, context=context)
    if adapter is not None:
        attach(unet, adapter)
    unet = place(unet, placement)
    networks = []
    for number, name in enumerate(controls):
        if name not in CONTROL_FOLDERS:
            raise UserError(f"there is no control network '{name}'; there are {', '.join(CONTROL_FOLDERS)}")
        context.progress("models", 2 + number, total, name)
        own = folders.folder(name)
        networks.append(load(ControlNetModel, own, CONTROL_FOLDERS[name], placement=placement, context=context))
    sources = [folders.source(base), *(folders.source(name) for name in controls)]
    if adapter_source is not None:
        sources.append(adapter_source)
    context.progress("models", total, total)
    return StableDiffusion(unet, coder, read_schedule(folder, placement.device), networks, tuple(sources))


def read_plus_face(folders: Folders, context: Context) -> Adapter:
    """The default face adapter's file."""
    return read_adapter(folders.folder(PLUS_FACE_ADAPTER) / PLUS_FACE, context)


def read_identity_adapter(folders: Folders, context: Context) -> Adapter:
    """The FaceID adapter that a user brought: the only safetensors file of its folder.

    Raises:
        UserError: If there is none or more than one.
    """
    folder = folders.folder(IDENTITY_ADAPTER)
    files: list[Path] = sorted(folder.rglob("*.safetensors"))
    if len(files) != 1:
        raise UserError(f"{IDENTITY_ADAPTER} has {len(files)} safetensors files; leave the one that is to be used")
    return read_adapter(files[0], context)


def embed_prompts(folders: Folders, texts: Sequence[str], placement: Placement, context: Context) -> Tensor:
    """Embeddings [N, 77, 768] of prompts for Stable Diffusion 1.5."""
    return embed_texts(folders.folder(BASE), texts, placement, context)


def embed_face(folders: Folders, adapter: Adapter, face: Tensor, placement: Placement, context: Context) -> ImageTokens:
    """Tokens of a square picture of a face [3, S, S] in 0..1 (`face_adapter.face_crop`) by the default encoder."""
    return embed_picture(adapter, folders.folder(PLUS_FACE_ADAPTER) / ENCODER_FOLDER, face, placement, context)
