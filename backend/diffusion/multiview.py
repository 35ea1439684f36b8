"""MVDream and ImageDream: four views of one object at once, as diffusers' own UNet.

MVDream is Stable Diffusion 2.1 whose self-attention runs over all views of a group (`CrossViewAttention`) and whose
camera, 16 numbers, is embedded by two layers and added to the time step's embedding: a `UNet2DConditionModel` with a
projected class embedding. ImageDream adds 16 image tokens (its own keys and values, `ImageTokenAttention`) and a fifth
frame that is the reference picture itself, without noise and without a camera.

The published folders hold the network under the names of its first implementation, with code of their own that is not
needed. `convert` writes them once as a diffusers folder, safetensors to safetensors.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from backend.context import Context
from backend.diffusion import gate
from backend.diffusion.attention import CrossViewAttention, join
from backend.diffusion.face_adapter import Adapter, ImageTokens, attach, clip_features, projection, read_adapter
from backend.diffusion.interfaces import Conditions, NoiseSchedule, Source
from backend.diffusion.latent_model import PictureCoder, as_noise, load_coder, read_schedule
from backend.diffusion.load import AGAIN, Folders, load, read_tensors, weights_files
from backend.diffusion.placement import Placement, place
from backend.errors import UserError
from backend.files import sync_file, write_json

VIEWS = 4
"""Views of one object in a group."""

SIZE_PX = 256
"""Size of the pictures of the training."""

MVDREAM_FRONT_DEG, IMAGEDREAM_FRONT_DEG = 90.0, 0.0
"""Azimuth of the front. MVDream's authors begin their orbits at 90; ImageDream counts from the reference picture."""

STEM = "diffusion_pytorch_model"
IMAGE_FILE = "image_tokens.safetensors"
"""ImageDream's part that is not the UNet, in the layout of an IP-Adapter."""


class MultiView:
    """MVDream or ImageDream as a `Denoiser`; a batch holds whole groups of four views."""

    def __init__(
        self,
        unet: Any,
        coder: PictureCoder,
        schedule: NoiseSchedule,
        sources: tuple[Source, ...] = (),
        *,
        reads_image: bool = False,
        size_px: int = SIZE_PX,
    ) -> None:
        """Wrap loaded models.

        Args:
            unet: With `CrossViewAttention` for four views, or five with `reads_image`.
            coder: Of its pictures.
            schedule: It was trained with.
            sources: All that take part.
            reads_image: ImageDream.
            size_px: Of the pictures that it is shown.
        """
        self.unet = unet
        self.size_px = size_px
        self.coder = coder
        self.reads_image = reads_image
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
        """Pictures [B, 3, H, W] in 0..1, brought to `size_px`, to latents [B, 4, h, w]; differentiable."""
        size = (self.size_px, self.size_px)
        if images.shape[-2:] != size:
            images = F.interpolate(images, size, mode="bilinear", antialias=True)
        return self.coder.encode(images)

    def decode(self, latents: Tensor) -> Tensor:
        """Latents to pictures in 0..1."""
        return self.coder.decode(latents)

    def predict(self, noisy: Tensor, timesteps: Tensor, conditions: Conditions) -> Tensor:
        """The noise in `noisy` [4 G, 4, h, w] at `timesteps` [4 G], in float32.

        Raises:
            ValueError: If the batch has no whole groups or no cameras, or ImageDream lacks its picture.
        """
        if conditions.cameras is None or len(noisy) % VIEWS:
            raise ValueError(f"{len(noisy)} views; there must be groups of {VIEWS}, with cameras")
        with torch.no_grad():
            values = noisy.to(self.unet.dtype)
            steps, text = timesteps, conditions.text.to(values)
            cameras = conditions.cameras.reshape(len(values), 16).to(values)
            tokens = conditions.image_tokens
            if self.reads_image:
                if tokens is None or conditions.image_latents is None:
                    raise ValueError("ImageDream needs image tokens and the latents of its picture")
                values = _with_fifth(values, conditions.image_latents)
                cameras = _with_fifth(cameras, torch.zeros_like(cameras[::VIEWS]))
                steps, text, tokens = (_with_fifth(part, part[::VIEWS]) for part in (steps, text, tokens))
            scale = conditions.image_scale
            if isinstance(scale, Tensor) and scale.ndim and self.reads_image:
                scale = _with_fifth(scale, scale[::VIEWS])
            hidden = join(text, tokens, scale)
            output = self.unet(values, steps, hidden, class_labels=cameras, return_dict=False)[0]
            if self.reads_image:
                output = output.unflatten(0, (-1, VIEWS + 1))[:, :VIEWS].flatten(0, 1)
            return as_noise(output.float(), noisy.float(), timesteps, self._schedule)


def _with_fifth(views: Tensor, fifth: Tensor) -> Tensor:
    """[4 G, ...] and [G, ...] as [5 G, ...], the fifth after each four."""
    groups = views.unflatten(0, (-1, VIEWS))
    return torch.cat([groups, fifth[:, None].to(views)], dim=1).flatten(0, 1)


def cameras(w2c: np.ndarray, front_deg: float = MVDREAM_FRONT_DEG) -> Tensor:
    """Camera to world as MVDream takes it, [B, 4, 4] float32.

    Args:
        w2c: [B, 4, 4] world to camera, OpenCV axes, in a world that is Y up and whose subject at the origin faces +Z.
        front_deg: Azimuth that the model calls the front.

    Returns:
        The camera's axes as OpenGL has them, the world Z up with the front at -Y for azimuth 0, at distance 1.
    """
    c2w = np.linalg.inv(np.asarray(w2c, np.float64))
    c2w[:, :3, 1:3] *= -1  # OpenCV's y and z to OpenGL's
    turn = np.deg2rad(front_deg)
    about_up = np.array([[np.cos(turn), 0, np.sin(turn)], [0, 1, 0], [-np.sin(turn), 0, np.cos(turn)]])
    z_up = np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])
    c2w[:, :3] = z_up @ about_up @ c2w[:, :3]
    c2w[:, :3, 3] /= np.maximum(np.linalg.norm(c2w[:, :3, 3], axis=1, keepdims=True), 1e-9)
    return torch.from_numpy(c2w).float()


# ---- the published files ---------------------------------------------------------------------------------------------


def unet_config(published: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of diffusers' UNet for a published `unet/config.json`.

    Raises:
        UserError: If a value is missing or describes a network that this one cannot be.
    """
    try:
        channels = [int(published["model_channels"]) * int(factor) for factor in published["channel_mult"]]
        attended = {int(value) for value in published["attention_resolutions"]}
        crossing = [2**level in attended for level in range(len(channels))]
        heads = [width // int(published["num_head_channels"]) for width in channels]
        return {
            "in_channels": int(published["in_channels"]),
            "out_channels": int(published["out_channels"]),
            "block_out_channels": channels,
            "layers_per_block": int(published["num_res_blocks"]),
            "cross_attention_dim": int(published["context_dim"]),
            "attention_head_dim": heads,  # diffusers' name for the number of heads
            "use_linear_projection": True,
            "down_block_types": ["CrossAttnDownBlock2D" if has else "DownBlock2D" for has in crossing],
            "up_block_types": ["CrossAttnUpBlock2D" if has else "UpBlock2D" for has in reversed(crossing)],
            "class_embed_type": "projection",
            "projection_class_embeddings_input_dim": int(published["camera_dim"]),
            "sample_size": int(published.get("image_size", 32)),
        }
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"the configuration of the multi-view network is not as published ({error}); {AGAIN}"
        ) from error


def convert_network(
    tensors: Mapping[str, Tensor], config: Mapping[str, Any]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The network's tensors under diffusers' names, and what belongs to image tokens in the layout of an IP-Adapter.

    Args:
        tensors: As published.
        config: From `unet_config`.

    Returns:
        UNet, and image part (empty for MVDream).

    Raises:
        UserError: If tensors are missing.
    """
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    prefixed = {f"model.diffusion_model.{name}": tensor for name, tensor in tensors.items()}
    plain = {**config, "class_embed_type": None}
    try:
        network = convert_ldm_unet_checkpoint(prefixed, plain)
        for old, new in (("0", "linear_1"), ("2", "linear_2")):
            for part in ("weight", "bias"):
                network[f"class_embedding.{new}.{part}"] = tensors[f"camera_embed.{old}.{part}"]
    except KeyError as error:
        raise UserError(f"the multi-view network lacks {error}; {AGAIN}") from error
    image = {f"image_proj.{name[12:]}": tensor for name, tensor in tensors.items() if name.startswith("image_embed.")}
    marks = [name for name in network if name.endswith(("to_k_ip.weight", "to_v_ip.weight"))]
    numbers = {layer: 2 * k + 1 for k, layer in enumerate(_attention_order(config, network))}
    for name in marks:
        layer, _, part = name.rpartition(".attn2.")
        image[f"ip_adapter.{numbers[layer]}.{part}"] = network.pop(name)
    return network, image


def _attention_order(config: Mapping[str, Any], network: Mapping[str, Tensor]) -> list[str]:
    """Transformer blocks in the order of `unet.attn_processors`: down, up, middle."""
    from accelerate import init_empty_weights
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    with init_empty_weights():
        unet: Any = UNet2DConditionModel.from_config(dict(config))
    names = [name.rpartition(".attn2.")[0] for name in unet.attn_processors if ".attn2." in name]
    if missing := [name for name in names if f"{name}.attn2.to_q.weight" not in network]:
        raise UserError(f"the multi-view network lacks {missing[0]}; {AGAIN}")
    return names


def convert(published: Path, target: Path, context: Context) -> Path:
    """Write the UNet of a published folder as a diffusers folder, once.

    Args:
        published: The downloaded model.
        target: Gets `config.json`, `diffusion_pytorch_model.safetensors` and, for ImageDream, the image part.
        context: For cancelling.

    Returns:
        `target`. What is there already is kept.

    Raises:
        UserError: If the published files are broken.
    """
    if (target / "config.json").is_file():
        return target
    gate.check_folder(published / "unet")
    gate.quiet_imports()
    from safetensors.torch import save_file

    config = unet_config(json.loads((published / "unet" / "config.json").read_text("utf-8")))
    (file, *_), _ = weights_files(published / "unet")
    network, image = convert_network(read_tensors(file, context), config)
    context.raise_if_cancelled()
    target.mkdir(parents=True, exist_ok=True)
    parts = {f"{STEM}.safetensors": network, IMAGE_FILE: image}
    for name, part in parts.items():
        if part:
            unfinished = target / f"{name}.part"
            save_file({key: tensor.contiguous() for key, tensor in part.items()}, unfinished)
            sync_file(unfinished)
            unfinished.replace(target / name)
    # Last: a folder without it is not finished.
    write_json(target / "config.json", {"_class_name": "UNet2DConditionModel", **config})
    return target


def load_multi_view(
    folders: Folders,
    placement: Placement,
    context: Context,
    *,
    model_id: str = "mvdream",
    converted: Path | None = None,
) -> MultiView:
    """MVDream or ImageDream.

    Args:
        folders: Where the models lie.
        placement: Where it goes.
        context: Progress and cancelling.
        model_id: "mvdream" or "imagedream".
        converted: Where the converted network is kept; None: beside the published folder.

    Raises:
        UserError: If the model is missing or broken.
    """
    gate.quiet_imports()
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    published = folders.folder(model_id)
    context.progress("models", 0, 3, "conversion")
    own = convert(published, converted or published.with_name(f"{published.name}-diffusers"), context)
    context.progress("models", 1, 3, "encoder")
    coder = load_coder(published, placement, context)
    context.progress("models", 2, 3, "denoiser")
    resting = replace(placement, device="cpu", storage="same", offload="none", tiling=False)
    reads_image = (own / IMAGE_FILE).is_file()
    unet = load(UNet2DConditionModel, own, placement=resting, context=context)
    if reads_image:
        attach(unet, read_adapter(own / IMAGE_FILE, context))
    see_across(unet, VIEWS + 1 if reads_image else VIEWS)
    place(unet, placement)
    context.progress("models", 3, 3)
    return MultiView(
        unet,
        coder,
        read_schedule(published, placement.device),
        (folders.source(model_id),),
        reads_image=reads_image,
    )


def see_across(unet: Any, views: int) -> None:
    """Let the self-attention of a UNet run over groups of views."""
    processors = dict(unet.attn_processors)
    for name in processors:
        if name.endswith("attn1.processor"):
            processors[name] = CrossViewAttention(views)
    unet.set_attn_processor(processors)


def embed_reference(
    folders: Folders,
    image: Tensor,
    model: MultiView,
    placement: Placement,
    context: Context,
    *,
    model_id: str = "imagedream",
    converted: Path | None = None,
) -> tuple[ImageTokens, Tensor, Tensor]:
    """ImageDream's reference picture [3, H, W] in 0..1, on white: tokens, latents [1, C, h, w] and those of none."""
    published = folders.folder(model_id)
    own = converted or published.with_name(f"{published.name}-diffusers")
    adapter: Adapter = read_adapter(own / IMAGE_FILE, context)
    features, none = clip_features(published / "image_encoder", image, placement, context, zero="features")
    module = projection(adapter).to(features.device)
    with torch.no_grad():
        tokens = ImageTokens(module(features), module(none))
        latents = model.encode(image[None].to(placement.device)).float()
    return tokens, latents, torch.zeros_like(latents)
