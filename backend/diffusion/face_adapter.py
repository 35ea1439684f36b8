"""IP-Adapter: a picture of a face as tokens beside the text, in the published safetensors layout.

A file holds `image_proj.*`, which turns features of the picture into tokens, and `ip_adapter.N.to_k_ip.weight` and
`...to_v_ip.weight` for the UNet's cross-attentions, N = 1, 3, 5... in the order of `unet.attn_processors`. Plus-face,
the default, reads the last but one layer of CLIP ViT-H. FaceID, which a user may bring (research only), reads an
identity vector instead and adds a LoRA, `ip_adapter.M.to_q_lora.down.weight` and so on for all attentions, M = 0, 1...
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backend.context import Context
from backend.diffusion.attention import ImageTokenAttention
from backend.diffusion.load import adopt, freed, load, read_tensors
from backend.diffusion.placement import Placement
from backend.errors import UserError

Kind = Literal["plus", "full", "plain", "faceid", "faceid-plus"]

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""Of CLIP's training pictures."""

PLUS_FACE = "models/ip-adapter-plus-face_sd15.safetensors"
ENCODER_FOLDER = "models/image_encoder"
"""Places in the repository h94/IP-Adapter."""

LORA_PARTS = ("to_q", "to_k", "to_v", "to_out")


@dataclass(frozen=True)
class ImageTokens:
    """A picture for a UNet.

    Attributes:
        positive: [1, K, D].
        negative: [1, K, D], of no picture, for the other side of classifier-free guidance.
    """

    positive: Tensor
    negative: Tensor

    def for_batch(self, count: int) -> tuple[Tensor, Tensor]:
        """Positive and negative tokens [count, K, D]."""
        return self.positive.expand(count, -1, -1), self.negative.expand(count, -1, -1)


@dataclass(frozen=True)
class Adapter:
    """An adapter file in its parts.

    Attributes:
        name: Of the file, for errors.
        kind: What its tokens are made of.
        projection: `image_proj.*` without the prefix.
        attention: `ip_adapter.*` without the prefix.
    """

    name: str
    kind: Kind
    projection: Mapping[str, Tensor]
    attention: Mapping[str, Tensor]


def read_adapter(path: Path, context: Context | None = None) -> Adapter:
    """An adapter from its safetensors file.

    Raises:
        UserError: If it fails the gate or is no IP-Adapter.
    """
    tensors = read_tensors(path, context)
    parts: dict[str, dict[str, Tensor]] = {"image_proj": {}, "ip_adapter": {}}
    for name, tensor in tensors.items():
        group, _, rest = name.partition(".")
        if group not in parts or not rest:
            raise UserError(f"{path.name} has {name}, which no IP-Adapter has; use a file of h94/IP-Adapter")
        parts[group][rest] = tensor
    if not parts["image_proj"] or not parts["ip_adapter"]:
        raise UserError(f"{path.name} lacks image_proj or ip_adapter; use a file of h94/IP-Adapter")
    return Adapter(path.name, _kind(parts["image_proj"]), parts["image_proj"], parts["ip_adapter"])


def _kind(projection: Mapping[str, Tensor]) -> Kind:
    if "perceiver_resampler.proj_in.weight" in projection:
        return "faceid-plus"
    if "latents" in projection:
        return "plus"
    if "proj.3.weight" in projection:
        return "full"
    return "plain" if "proj.weight" in projection else "faceid"


def attach(unet: Any, adapter: Adapter) -> None:
    """Give a UNet the adapter's cross-attention; done before it is placed.

    Args:
        unet: A `UNet2DConditionModel`, on the CPU.
        adapter: Of the same family of models.

    Raises:
        UserError: If the adapter is for another UNet.
    """
    processors = dict(unet.attn_processors)
    crossing = [name for name in processors if name.endswith("attn2.processor")]
    token_size = unet.config.cross_attention_dim
    used = set()
    for index, name in enumerate(crossing):
        number = 2 * index + 1
        layer = unet.get_submodule(name.removesuffix(".processor"))
        with torch.device("meta"):
            processor = ImageTokenAttention(token_size, layer.to_k.out_features)
        keys = {f"{part}.weight": f"{number}.{part}.weight" for part in ("to_k_ip", "to_v_ip")}
        found = {own: adapter.attention[key] for own, key in keys.items() if key in adapter.attention}
        adopt(processor, found, unet.dtype, f"{adapter.name} (layer {number})")
        processors[name] = processor.requires_grad_(False).eval()
        used |= set(keys.values())
    lora = {key for key in adapter.attention if "_lora." in key}
    if surplus := sorted(set(adapter.attention) - used - lora):
        raise UserError(f"{adapter.name} is for another UNet: it has {surplus[0]}, this one {len(crossing)} layers")
    if lora:
        _merge_lora(unet, adapter, list(processors))
    unet.set_attn_processor(processors)


def _merge_lora(unet: Any, adapter: Adapter, names: list[str]) -> None:
    """Add the LoRA of a FaceID file to the attentions' own weights: W + up down, at no cost afterwards."""
    for number, name in enumerate(names):
        layer = unet.get_submodule(name.removesuffix(".processor"))
        for part in LORA_PARTS:
            keys = [f"{number}.{part}_lora.{side}.weight" for side in ("up", "down")]
            if not all(key in adapter.attention for key in keys):
                raise UserError(f"{adapter.name} lacks {keys[0]}; it is for another UNet")
            up, down = (adapter.attention[key].float() for key in keys)
            linear = layer.to_out[0] if part == "to_out" else getattr(layer, part)
            if (len(up), down.shape[1]) != tuple(linear.weight.shape):
                raise UserError(f"{adapter.name}: {keys[0]} does not fit {name}; it is for another UNet")
            with torch.no_grad():
                linear.weight.copy_((linear.weight.float() + up @ down).to(linear.weight.dtype))


def projection(adapter: Adapter, dtype: torch.dtype = torch.float32) -> nn.Module:
    """The module that turns features into tokens, by diffusers' own reading of the layout.

    Raises:
        UserError: If the file does not hold one.
    """
    from diffusers.loaders.unet import UNet2DConditionLoadersMixin

    reader: Any = UNet2DConditionLoadersMixin()
    try:
        module = reader._convert_ip_adapter_image_proj_to_diffusers(dict(adapter.projection), low_cpu_mem_usage=False)
    except (RuntimeError, KeyError, IndexError) as error:
        raise UserError(f"{adapter.name}: its image_proj cannot be read ({error})") from error
    return module.to(dtype).eval().requires_grad_(False)


def embed_picture(
    adapter: Adapter, encoder_folder: Path, image: Tensor, placement: Placement, context: Context
) -> ImageTokens:
    """Tokens of a picture; the image encoder is loaded, used and forgotten.

    Args:
        adapter: Of kind plus, full or plain.
        encoder_folder: Of the CLIP image encoder.
        image: [3, H, W] in 0..1, for plus-face a square crop of the face.
        placement: Where to compute.
        context: For cancelling.

    Returns:
        In float32 on the placement's device.

    Raises:
        UserError: If the adapter wants an identity vector, or the encoder does not fit it.
    """
    if adapter.kind in ("faceid", "faceid-plus"):
        raise UserError(f"{adapter.name} needs the identity vector of a face, not its picture")
    own, none = clip_features(encoder_folder, image, placement, context, pooled=adapter.kind == "plain")
    module = projection(adapter).to(own.device)
    try:
        with torch.no_grad():
            return ImageTokens(module(own), module(none))
    except RuntimeError as error:
        raise UserError(
            f"{adapter.name} and the image encoder in {encoder_folder.name} do not fit ({error})"
        ) from error


def embed_identity(
    adapter: Adapter, identity: Tensor, features: Tensor | None = None, strength: float = 1.0
) -> ImageTokens:
    """Tokens of an identity vector, for a FaceID adapter.

    Args:
        adapter: Of kind faceid or faceid-plus.
        identity: [D], unit length, of the network that the adapter was trained with.
        features: [1, L, E] of CLIP for faceid-plus (`clip_features`).
        strength: Of the features in PlusV2.

    Raises:
        UserError: If the adapter wants a picture, or features are missing.
    """
    module: Any = projection(adapter)
    vectors = torch.stack([torch.zeros_like(identity), identity]).float()
    if adapter.kind == "faceid":
        with torch.no_grad():
            none, own = module(vectors).chunk(2)
        return ImageTokens(own, none)
    if adapter.kind != "faceid-plus":
        raise UserError(f"{adapter.name} needs a picture of the face, not its identity vector")
    if features is None:
        raise UserError(f"{adapter.name} needs the face's picture too")
    module.shortcut, module.shortcut_scale = "v2" in adapter.name.lower(), strength
    with torch.no_grad():
        module.clip_embeds = features[None].float()
        own = module(vectors[1:])
        module.clip_embeds = torch.zeros_like(features[None]).float()
        none = module(vectors[:1])
    return ImageTokens(own, none)


def clip_features(
    folder: Path, image: Tensor, placement: Placement, context: Context, *, pooled: bool = False, zero: str = "picture"
) -> tuple[Tensor, Tensor]:
    """Features of a picture and of none by CLIP's image encoder, which is loaded, used and forgotten.

    Args:
        folder: Of the encoder.
        image: [3, H, W] in 0..1.
        placement: Where to compute.
        context: For cancelling.
        pooled: The projected embedding [1, E] instead of the last but one layer [1, L, E].
        zero: What stands for no picture: a "picture" of zeros, or zero "features".

    Returns:
        Both in float32.
    """
    from transformers import CLIPVisionModel, CLIPVisionModelWithProjection

    # Published encoders come with and without the projection, and some with a constant of older versions.
    kind = CLIPVisionModelWithProjection if pooled else CLIPVisionModel
    spare = (r"position_ids$",) if pooled else (r"position_ids$", r"^visual_projection\.")
    encoder: Any = load(kind, folder, placement=placement, context=context, spare=spare)
    pixels = clip_pixels(image.to(placement.device), encoder.config.image_size).to(placement.dtype)
    with torch.no_grad():
        out = encoder(torch.cat([pixels, torch.zeros_like(pixels)]), output_hidden_states=True)
    features = (out.image_embeds if pooled else out.hidden_states[-2]).float()
    own, none = features[:1].clone(), features[1:].clone()
    del encoder, out, features
    freed(placement.device)
    return own, (none if zero == "picture" else torch.zeros_like(own))


def clip_pixels(image: Tensor, size_px: int) -> Tensor:
    """A picture [3, H, W] in 0..1 as CLIP takes it, [1, 3, size, size]: short side to size, middle, normalised."""
    height, width = image.shape[-2:]
    factor = size_px / min(height, width)
    shape = (max(int(height * factor), size_px), max(int(width * factor), size_px))  # cut off, as in CLIP's own
    resized = F.interpolate(image[None].float(), shape, mode="bicubic", antialias=True).clamp(0, 1)
    top, left = (shape[0] - size_px) // 2, (shape[1] - size_px) // 2
    middle = resized[..., top : top + size_px, left : left + size_px]
    mean, std = (torch.tensor(values, device=image.device)[:, None, None] for values in (CLIP_MEAN, CLIP_STD))
    return (middle - mean) / std


def face_crop(image: Tensor, points_px: Tensor, margin: float = 0.35) -> Tensor:
    """Square crop [3, S, S] around a face for plus-face, padded with black where it leaves the picture.

    Args:
        image: [3, H, W].
        points_px: [N, 2] landmarks.
        margin: Added on each side, in shares of the larger extent; hair and chin belong to a face.
    """
    low, high = points_px.amin(0), points_px.amax(0)
    half = float((high - low).max()) * (0.5 + margin)
    left, top = (int(round(float(value) - half)) for value in 0.5 * (low + high))
    size = max(int(round(2 * half)), 1)
    height, width = image.shape[-2:]
    pads = (max(-left, 0), max(left + size - width, 0), max(-top, 0), max(top + size - height, 0))
    padded = F.pad(image, pads)
    return padded[:, top + pads[2] : top + pads[2] + size, left + pads[0] : left + pads[0] + size]
