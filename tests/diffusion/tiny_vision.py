"""Small models that look at pictures, with random numbers, saved in the published layouts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from backend.diffusion import gate
from backend.diffusion.interfaces import Source
from backend.errors import MODEL_MISSING, UserError
from backend.splats.perceptual import expected_shapes
from tests.diffusion.tiny_video import byte_characters, randomised

gate.quiet_imports()

import diffusers  # noqa: E402
import transformers  # noqa: E402

MEAN, DEVIATION = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
CLIP_MEAN, CLIP_DEVIATION = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]


class Shelf:
    """Folders by the registry's ids; what nobody put there is not installed."""

    def __init__(self, root: Path, **makers: Callable[[Path], Any]) -> None:
        self.root = root
        self._makers = {name.replace("_", "-"): make for name, make in makers.items()}

    def folder(self, model_id: str) -> Path:
        if model_id not in self._makers:
            raise UserError(f"the model {model_id} is not installed; fetch it", MODEL_MISSING)
        folder = self.root / model_id
        if not folder.is_dir():
            folder.mkdir(parents=True)
            self._makers[model_id](folder)
        return folder

    def source(self, model_id: str) -> Source:
        return Source(model_id, "0" * 40, "random", True)


def write_json(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), "utf-8")


def write_clip_tokenizer(folder: Path) -> int:
    """As vocab.json and merges.txt, the layout of the real repositories; returns the number of tokens."""
    letters = byte_characters()
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    write_json(folder / "vocab.json", {token: number for number, token in enumerate(tokens)})
    (folder / "merges.txt").write_text("#version: 0.2\n", "utf-8")
    special = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
    settings = {**special, "pad_token": "<|endoftext|>", "model_max_length": 77, "tokenizer_class": "CLIPTokenizer"}
    write_json(folder / "tokenizer_config.json", settings)
    write_json(folder / "special_tokens_map.json", special)
    return len(tokens)


def text_config(tokens: int) -> dict[str, Any]:
    return {
        "vocab_size": tokens, "hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 2,
        "num_attention_heads": 4, "bos_token_id": 512, "eos_token_id": 513, "pad_token_id": 513,
    }  # fmt: skip


def write_marigold(folder: Path, targets: int = 1, kind: str = "MarigoldNormalsPipeline", **index: object) -> None:
    """The 16-bit variant, as published: unet of 8 channels (picture and prediction) for one target."""
    unet = diffusers.UNet2DConditionModel(
        sample_size=8, in_channels=4 + 4 * targets, out_channels=4 * targets, block_out_channels=(32, 64),
        layers_per_block=1, norm_num_groups=8, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), cross_attention_dim=32, attention_head_dim=4,
    )  # fmt: skip
    vae = diffusers.AutoencoderKL(
        block_out_channels=(16,) * 4, down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4, layers_per_block=1, norm_num_groups=8,
    )  # fmt: skip
    randomised(unet, 1).half().save_pretrained(folder / "unet", variant="fp16")
    randomised(vae, 2).half().save_pretrained(folder / "vae", variant="fp16")
    tokens = write_clip_tokenizer(folder / "tokenizer")
    torch.manual_seed(3)
    encoder = transformers.CLIPTextModel(transformers.CLIPTextConfig(**text_config(tokens)))
    encoder.half().save_pretrained(folder / "text_encoder", variant="fp16")
    diffusers.DDIMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False, set_alpha_to_one=False,
        steps_offset=1, prediction_type="v_prediction",
    ).save_pretrained(folder / "scheduler")  # fmt: skip
    parts = {"scheduler": ["diffusers", "DDIMScheduler"], "unet": ["diffusers", "UNet2DConditionModel"]}
    write_json(folder / "model_index.json", {"_class_name": kind, **parts, **index})


def dinov2_config(**more: object) -> Any:
    return transformers.Dinov2Config(
        hidden_size=16, num_hidden_layers=4, num_attention_heads=2, mlp_ratio=2, image_size=56, patch_size=14, **more
    )


def write_depth_anything(folder: Path) -> None:
    backbone = dinov2_config(out_indices=[1, 2, 3, 4], reshape_hidden_states=False, apply_layernorm=True)
    config = transformers.DepthAnythingConfig(
        backbone_config=backbone, patch_size=14, reassemble_hidden_size=16, neck_hidden_sizes=[8, 8, 16, 16],
        fusion_hidden_size=8, head_hidden_size=8,
    )  # fmt: skip
    randomised(transformers.DepthAnythingForDepthEstimation(config), 4).save_pretrained(folder)
    write_json(
        folder / "preprocessor_config.json",
        {
            "image_processor_type": "DPTImageProcessor", "do_resize": True, "size": {"height": 56, "width": 56},
            "keep_aspect_ratio": True, "ensure_multiple_of": 14, "resample": 3, "do_rescale": True,
            "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": MEAN, "image_std": DEVIATION,
            "do_pad": False,
        },
    )  # fmt: skip


def write_dino(folder: Path) -> None:
    randomised(transformers.Dinov2Model(dinov2_config()), 5).save_pretrained(folder)
    write_json(
        folder / "preprocessor_config.json",
        {
            "image_processor_type": "BitImageProcessor", "do_resize": True, "size": {"shortest_edge": 64},
            "resample": 3, "do_center_crop": True, "crop_size": {"height": 56, "width": 56}, "do_rescale": True,
            "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": MEAN, "image_std": DEVIATION,
            "do_convert_rgb": True,
        },
    )  # fmt: skip


def write_clip(folder: Path) -> None:
    tokens = write_clip_tokenizer(folder)
    vision = {
        "hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 2, "num_attention_heads": 4,
        "image_size": 32, "patch_size": 8,
    }  # fmt: skip
    config = transformers.CLIPConfig(text_config=text_config(tokens), vision_config=vision, projection_dim=24)
    torch.manual_seed(6)
    transformers.CLIPModel(config).save_pretrained(folder)
    path = folder / "model.safetensors"
    positions = {"text_model.embeddings.position_ids": torch.arange(77)[None]}  # old files have it
    save_file(load_file(path) | positions, path)
    write_json(
        folder / "preprocessor_config.json",
        {
            "image_processor_type": "CLIPImageProcessor", "do_resize": True, "size": {"shortest_edge": 32},
            "resample": 3, "do_center_crop": True, "crop_size": {"height": 32, "width": 32}, "do_rescale": True,
            "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": CLIP_MEAN, "image_std": CLIP_DEVIATION,
            "do_convert_rgb": True,
        },
    )  # fmt: skip


def write_lpips(folder: Path) -> None:
    """The two published files: torchvision's trunk and LPIPS's linear layers."""
    generator = torch.Generator().manual_seed(7)
    parts: dict[str, dict[str, torch.Tensor]] = {"vgg16.safetensors": {}, "lpips.safetensors": {}}
    for name, shape in expected_shapes().items():
        fan = max(torch.Size(shape[1:]).numel(), 1)
        values = torch.randn(shape, generator=generator) / fan**0.5
        file = "lpips.safetensors" if name.startswith("lin") else "vgg16.safetensors"
        parts[file][name] = values.abs() if name.startswith("lin") else values
    for file, tensors in parts.items():
        save_file(tensors, folder / file)


def write_vitmatte(folder: Path) -> None:
    backbone = transformers.VitDetConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, num_channels=4, image_size=64, patch_size=16,
        out_features=["stage2"], use_relative_position_embeddings=True, window_block_indices=[0], window_size=2,
    )  # fmt: skip
    config = transformers.VitMatteConfig(
        backbone_config=backbone, hidden_size=16, convstream_hidden_sizes=[8, 16, 16], fusion_hidden_sizes=[16, 8, 8, 8]
    )
    randomised(transformers.VitMatteForImageMatting(config), 8).save_pretrained(folder)
    write_json(
        folder / "preprocessor_config.json",
        {"image_processor_type": "VitMatteImageProcessor", "do_pad": True, "size_divisibility": 32},
    )


ATR = ("Background Hat Hair Sunglasses Upper-clothes Skirt Pants Dress Belt Left-shoe Right-shoe Face Left-leg "
       "Right-leg Left-arm Right-arm Bag Scarf").split()  # fmt: skip


def write_segformer(folder: Path) -> None:
    config = transformers.SegformerConfig(
        num_encoder_blocks=4, depths=[1] * 4, sr_ratios=[8, 4, 2, 1], hidden_sizes=[8, 8, 16, 16],
        num_attention_heads=[1, 1, 2, 2], decoder_hidden_size=16, id2label=dict(enumerate(ATR)),
        label2id={name: number for number, name in enumerate(ATR)},
    )  # fmt: skip
    randomised(transformers.SegformerForSemanticSegmentation(config), 9).save_pretrained(folder)
    write_json(
        folder / "preprocessor_config.json",
        {"image_processor_type": "SegformerImageProcessor", "size": {"height": 64, "width": 64}},
    )
