"""The published SV3D file (`sv3d_u.safetensors`, `sv3d_p.safetensors`) to a folder in diffusers' layout.

Names on the left are those of Stability-AI/generative-models. Everything is read from the file's own shapes, so that a
file of another size converts the same way.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Literal

import torch
from torch import Tensor

from backend.context import Context
from backend.diffusion import gate
from backend.diffusion.load import check_names, read_shapes
from backend.errors import UserError
from backend.files import sync_file, sync_folder, write_json

Kind = Literal["sv3d-u", "sv3d-p"]

NETWORK: Final = "model.diffusion_model."
ENCODER: Final = "conditioner.embedders.1.encoder."
DECODER: Final = "first_stage_model."
VISION: Final = "conditioner.embedders.0.open_clip.model.visual."

SCHEDULER: Final[Mapping[str, Any]] = {
    "_class_name": "EulerDiscreteScheduler",
    "num_train_timesteps": 1000,
    "prediction_type": "v_prediction",
    "timestep_type": "continuous",
    "timestep_spacing": "leading",
    "use_karras_sigmas": True,
    "sigma_min": 0.002,
    "sigma_max": 700.0,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "interpolation_type": "linear",
    "steps_offset": 1,
}
"""EDM's steps from 700 to 0.002 with v prediction [configs sv3d_*.yaml]."""

PREPROCESSOR: Final[Mapping[str, Any]] = {
    "image_processor_type": "CLIPImageProcessor",
    "crop_size": {"height": 224, "width": 224},
    "do_center_crop": True,
    "do_normalize": True,
    "do_resize": True,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "size": {"shortest_edge": 224},
}
"""CLIP's."""

Shapes = Mapping[str, tuple[int, ...]]
Read = Callable[[str], Tensor]


def convert_sv3d(
    file: Path,
    folder: Path,
    kind: Kind,
    context: Context,
    *,
    dtype: torch.dtype = torch.float16,
    head_size: int = 64,
    vision_head_size: int = 80,
) -> Path:
    """Convert once; afterwards `folder` is loaded like any other model.

    Args:
        file: The published one.
        folder: Must not exist; it is seen whole or not at all.
        kind: Which of the two models it is.
        context: Progress and cancelling, between components and tensors.
        dtype: Of the result.
        head_size: Width of an attention head of the network; 64 as published.
        vision_head_size: The same of the image encoder; 80 as published.

    Returns:
        `folder`.

    Raises:
        UserError: If the file is damaged or is not SV3D, or if the folder exists.
        Cancelled: Nothing is left behind.
    """
    if folder.exists():
        raise UserError(f"{folder.name} exists already; remove it or choose another folder")
    gate.check_safetensors(file)
    gate.quiet_imports()
    from safetensors import safe_open

    folder.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        shapes = read_shapes([file])
        with safe_open(file, framework="pt") as opened:
            parts = (
                ("unet", lambda: network(shapes, opened.get_tensor, kind, head_size)),
                ("vae", lambda: autoencoder(shapes, opened.get_tensor)),
                ("image_encoder", lambda: vision(shapes, opened.get_tensor, vision_head_size)),
            )
            for done, (name, make) in enumerate(parts):
                context.progress("convert SV3D", done, len(parts), name)
                model, tensors = make()
                _save(model, tensors, work / name, dtype, context, file.name)
        for name, content in (("scheduler", SCHEDULER), ("feature_extractor", PREPROCESSOR)):
            (work / name).mkdir()
            stem = "scheduler_config" if name == "scheduler" else "preprocessor_config"
            write_json(work / name / f"{stem}.json", content)
        write_json(work / "model_index.json", _index(shapes))
        os.replace(work, folder)
        sync_folder(folder.parent)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    context.progress("convert SV3D", 1, 1)
    return folder


def network(shapes: Shapes, read: Read, kind: Kind, head_size: int) -> tuple[torch.nn.Module, dict[str, Callable]]:
    """The video network: an empty model and, by its names, how to read each tensor.

    Raises:
        UserError: If the file has no such network.
    """
    from backend.diffusion.orbit_network import OrbitUNet

    own = {name.removeprefix(NETWORK): shape for name, shape in shapes.items() if name.startswith(NETWORK)}
    downs = sorted(int(m[1]) for name in own if (m := re.fullmatch(r"input_blocks\.(\d+)\.0\.op\.weight", name)))
    if not downs or "label_emb.0.0.weight" not in own:
        raise UserError("this file holds no SV3D network; choose sv3d_u.safetensors or sv3d_p.safetensors")
    layers = downs[0] - 1
    firsts = [1 + level * (layers + 1) for level in range(len(downs) + 1)]
    channels = [own[f"input_blocks.{first}.0.out_layers.3.weight"][0] for first in firsts]
    crosses = [f"input_blocks.{first}.1.norm.weight" in own for first in firsts]
    context_name = next((name for name in own if name.endswith("transformer_blocks.0.attn2.to_k.weight")), "")
    if not context_name:
        raise UserError("this file holds no SV3D network; choose sv3d_u.safetensors or sv3d_p.safetensors")
    extra = own["label_emb.0.0.weight"][1]
    config = {
        "in_channels": own["input_blocks.0.0.weight"][1],
        "out_channels": own["out.2.weight"][0],
        "down_block_types": [f"{'CrossAttn' * crosses[k]}DownBlockSpatioTemporal" for k in range(len(channels))],
        "up_block_types": [f"{'CrossAttn' * crosses[~k]}UpBlockSpatioTemporal" for k in range(len(channels))],
        "block_out_channels": channels,
        "layers_per_block": layers,
        "num_attention_heads": [size // head_size for size in channels],
        "cross_attention_dim": own[context_name][1],
        "projection_class_embeddings_input_dim": extra,
        "addition_time_embed_dim": extra // 5 if kind == "sv3d-p" else extra,
        "num_frames": 21,
        "sample_size": 72,
    }
    with torch.device("meta"):
        model = OrbitUNet(**config)
    names = {network_name(name, layers): name for name in own}
    return model, {new: _reader(read, NETWORK + old) for new, old in names.items()}


def network_name(name: str, layers: int) -> str:
    """A published name of the video network in diffusers' words.

    Args:
        name: Without `model.diffusion_model.`.
        layers: Residual blocks of a level.
    """
    for pattern, place in (
        (r"time_embed\.0\.", "time_embedding.linear_1."),
        (r"time_embed\.2\.", "time_embedding.linear_2."),
        (r"label_emb\.0\.0\.", "add_embedding.linear_1."),
        (r"label_emb\.0\.2\.", "add_embedding.linear_2."),
        (r"input_blocks\.0\.0\.", "conv_in."),
        (r"out\.0\.", "conv_norm_out."),
        (r"out\.2\.", "conv_out."),
    ):
        if match := re.match(pattern, name):
            return place + name[match.end() :]
    side, index, rest = name.split(".", 2)
    if side == "middle_block":
        part, inner = int(index), rest
        return _layer(f"mid_block.{'attentions.0' if part == 1 else f'resnets.{part // 2}'}", inner)
    part, inner = rest.split(".", 1)
    if side == "input_blocks":
        level, layer = divmod(int(index) - 1, layers + 1)
        if inner.startswith("op."):
            return f"down_blocks.{level}.downsamplers.0.conv.{inner[3:]}"
        return _layer(f"down_blocks.{level}.{'attentions' if part == '1' else 'resnets'}.{layer}", inner)
    level, layer = divmod(int(index), layers + 1)
    if inner.startswith("conv."):
        return f"up_blocks.{level}.upsamplers.0.{inner}"
    return _layer(f"up_blocks.{level}.{'attentions' if part == '1' else 'resnets'}.{layer}", inner)


_RESIDUAL: Final = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}


def _layer(place: str, inner: str) -> str:
    if ".attentions." in place:
        for old, new in (
            ("time_stack.", "temporal_transformer_blocks."),
            ("time_pos_embed.0.", "time_pos_embed.linear_1."),
            ("time_pos_embed.2.", "time_pos_embed.linear_2."),
        ):
            if inner.startswith(old):
                return f"{place}.{new}{inner.removeprefix(old)}"
        return f"{place}.{inner}"
    return f"{place}.{_residual(inner)}"


def _residual(inner: str) -> str:
    if inner.startswith("time_mixer."):
        return inner
    block = "temporal_res_block" if inner.startswith("time_stack.") else "spatial_res_block"
    stem, _, kind = inner.removeprefix("time_stack.").rpartition(".")
    return f"{block}.{_RESIDUAL.get(stem, stem)}.{kind}"


def autoencoder(shapes: Shapes, read: Read) -> tuple[torch.nn.Module, dict[str, Callable]]:
    """The autoencoder: encoder of the input picture, decoder of the frames, the latter with or without time.

    Raises:
        UserError: If the file has none.
    """
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.autoencoders.autoencoder_kl_temporal_decoder import AutoencoderKLTemporalDecoder

    sources = {
        name[len(prefix) :]: name
        for prefix, keep in ((ENCODER, ("encoder.", "quant_conv.")), (DECODER, ("decoder.", "post_quant_conv.")))
        for name in shapes
        if name.startswith(tuple(prefix + part for part in keep))
    }
    downs = sorted({int(m[1]) for name in sources if (m := re.match(r"encoder\.down\.(\d+)\.", name))})
    if not downs or "decoder.conv_in.weight" not in sources:
        raise UserError("this file holds no autoencoder; choose sv3d_u.safetensors or sv3d_p.safetensors")
    layers = len({m[1] for name in sources if (m := re.match(r"encoder\.down\.0\.block\.(\d+)\.", name))})
    timed = any(".time_stack." in name for name in sources)
    config: dict[str, Any] = {
        "block_out_channels": [shapes[sources[f"encoder.down.{k}.block.0.conv1.weight"]][0] for k in downs],
        "down_block_types": ["DownEncoderBlock2D"] * len(downs),
        "latent_channels": shapes[sources["decoder.conv_in.weight"]][1],
        "layers_per_block": layers,
        "sample_size": 768,
        "scaling_factor": 0.18215,
        "force_upcast": True,
    }
    if not timed:
        config |= {
            "up_block_types": ["UpDecoderBlock2D"] * len(downs),
            "use_quant_conv": "quant_conv.weight" in sources,
            "use_post_quant_conv": "post_quant_conv.weight" in sources,
        }
    with torch.device("meta"):
        model = (AutoencoderKLTemporalDecoder if timed else AutoencoderKL)(**config)
    readers = {}
    for name, old in sources.items():
        if timed and name.startswith("post_quant_conv."):
            continue  # a decoder with time has none
        new = autoencoder_name(name, len(downs), timed)
        flat = ".attentions." in new and not new.endswith(".bias") and ".group_norm." not in new
        readers[new] = _reader(read, old, (lambda tensor: tensor.flatten(1)) if flat else None)
    return model, readers


_MIDDLE: Final = {"block_1": "resnets.0", "block_2": "resnets.1", "attn_1": "attentions.0"}
_ATTENTION: Final = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}


def autoencoder_name(name: str, levels: int, timed: bool) -> str:
    """A published name of the autoencoder in diffusers' words.

    Args:
        name: Begins with `encoder.`, `decoder.`, `quant_conv.` or `post_quant_conv.`.
        levels: Of the picture pyramid.
        timed: The decoder has layers along time.
    """
    if "quant_conv." in name:
        return name
    side, rest = name.split(".", 1)
    if rest.startswith("conv_out.time_mix_conv."):
        return f"{side}.time_conv_out.{rest.removeprefix('conv_out.time_mix_conv.')}"
    if rest.startswith(("conv_in.", "conv_out.")):
        return name
    if rest.startswith("norm_out."):
        return f"{side}.conv_{rest}"
    if rest.startswith("mid."):
        _, part, inner = rest.split(".", 2)
        place = f"{side}.mid_block.{_MIDDLE[part]}"
        if part == "attn_1":
            stem, _, kind = inner.rpartition(".")
            return f"{place}.{_ATTENTION[stem]}.{kind}"
        return f"{place}.{_picture_residual(inner, timed and side == 'decoder')}"
    direction, level, part, inner = rest.split(".", 3)
    index = int(level) if direction == "down" else levels - 1 - int(level)
    place = f"{side}.{direction}_blocks.{index}"
    if part in ("downsample", "upsample"):
        return f"{place}.{part}rs.0.{inner}"
    layer, inner = inner.split(".", 1)
    return f"{place}.resnets.{layer}.{_picture_residual(inner, timed and side == 'decoder')}"


def _picture_residual(inner: str, timed: bool) -> str:
    if inner == "mix_factor":
        return "time_mixer.mix_factor"
    if inner.startswith("time_stack."):
        return _residual(inner)
    inner = inner.replace("nin_shortcut", "conv_shortcut")
    return f"spatial_res_block.{inner}" if timed else inner


def vision(shapes: Shapes, read: Read, head_size: int) -> tuple[torch.nn.Module, dict[str, Callable]]:
    """The image encoder (OpenCLIP) as transformers' CLIP.

    Raises:
        UserError: If the file has none.
    """
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    own = {name.removeprefix(VISION): shape for name, shape in shapes.items() if name.startswith(VISION)}
    if "conv1.weight" not in own:
        raise UserError("this file holds no image encoder; choose sv3d_u.safetensors or sv3d_p.safetensors")
    width, _, patch, _ = own["conv1.weight"]
    layers = {m[1] for name in own if (m := re.match(r"transformer\.resblocks\.(\d+)\.", name))}
    config = CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=own["transformer.resblocks.0.mlp.c_fc.weight"][0],
        projection_dim=own["proj"][1],
        num_hidden_layers=len(layers),
        num_attention_heads=width // head_size,
        image_size=patch * round((own["positional_embedding"][0] - 1) ** 0.5),
        patch_size=patch,
        hidden_act="gelu",
    )
    with torch.device("meta"):
        model = CLIPVisionModelWithProjection(config)
    readers = {}
    for old in own:
        readers |= dict(_vision_parts(old, _reader(read, VISION + old), width))
    return model, readers


_VISION_TOP: Final = {
    "class_embedding": "embeddings.class_embedding",
    "positional_embedding": "embeddings.position_embedding.weight",
    "conv1.weight": "embeddings.patch_embedding.weight",
    "ln_pre": "pre_layrnorm",
    "ln_post": "post_layernorm",
}
_VISION_BLOCK: Final = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "attn.out_proj": "self_attn.out_proj",
}


def _vision_parts(name: str, whole: Callable[[], Tensor], width: int) -> Iterator[tuple[str, Callable[[], Tensor]]]:
    """One published tensor is one of ours, or three where query, key and value lie in one."""
    if name == "proj":
        yield "visual_projection.weight", lambda: whole().T.contiguous()
        return
    if match := re.match(r"transformer\.resblocks\.(\d+)\.(.+?)[._](weight|bias)$", name):
        place = f"vision_model.encoder.layers.{match[1]}"
        if match[2] == "attn.in_proj":
            for k, part in enumerate("qkv"):
                rows = slice(k * width, (k + 1) * width)
                yield f"{place}.self_attn.{part}_proj.{match[3]}", lambda rows=rows: whole()[rows].contiguous()
        else:
            yield f"{place}.{_VISION_BLOCK.get(match[2], match[2])}.{match[3]}", whole
        return
    stem, dot, kind = name.partition(".")
    new = _VISION_TOP.get(name) or f"{_VISION_TOP.get(stem, stem)}{dot}{kind}"
    yield f"vision_model.{new}", whole


def _reader(read: Read, name: str, change: Callable[[Tensor], Tensor] | None = None) -> Callable[[], Tensor]:
    return lambda: read(name) if change is None else change(read(name)).contiguous()


def _save(
    model: Any,
    readers: Mapping[str, Callable[[], Tensor]],
    folder: Path,
    dtype: torch.dtype,
    context: Context,
    where: str,
) -> None:
    """Write a component's configuration and tensors, after every name and shape has been held against the model.

    Raises:
        UserError: If a tensor is missing, left over or of another shape.
        Cancelled: Between tensors.
    """
    from diffusers.models.modeling_utils import ModelMixin
    from safetensors.torch import save_file

    tensors: dict[str, Tensor] = {}
    for name, read in readers.items():
        context.raise_if_cancelled()
        tensors[name] = read().to(dtype)
    check_names(model, {name: tuple(tensor.shape) for name, tensor in tensors.items()}, where)
    folder.mkdir()
    if isinstance(model, ModelMixin):
        model.save_config(folder)
        file = folder / "diffusion_pytorch_model.safetensors"
    else:
        model.config.save_pretrained(folder)
        file = folder / "model.safetensors"
    save_file(tensors, file, metadata={"format": "pt"})
    sync_file(file)


def _index(shapes: Shapes) -> dict[str, Any]:
    timed = any(name.startswith(DECODER) and ".time_stack." in name for name in shapes)
    return {
        "_class_name": "StableVideoDiffusionPipeline",
        "feature_extractor": ["transformers", "CLIPImageProcessor"],
        "image_encoder": ["transformers", "CLIPVisionModelWithProjection"],
        "scheduler": ["diffusers", "EulerDiscreteScheduler"],
        "unet": ["diffusers", "UNetSpatioTemporalConditionModel"],
        "vae": ["diffusers", "AutoencoderKLTemporalDecoder" if timed else "AutoencoderKL"],
    }
