"""Tiny random models of the real classes, written in the published layouts: file names, variants, old tensor names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from backend.diffusion import gate
from backend.diffusion.interfaces import Source
from tests.diffusion.mv_reference import Shape, random_network

gate.quiet_imports()

import diffusers  # noqa: E402
import transformers  # noqa: E402

TEXT_SIZE, CLIP_SIZE, IDENTITY_SIZE = 32, 32, 512
MVDREAM = Shape(context_dim=TEXT_SIZE)
IMAGEDREAM = Shape(context_dim=TEXT_SIZE, ip_dim=16, clip_dim=CLIP_SIZE)
FP16, PLAIN = "fp16", ""


class TinyFactory:
    """Folders of tiny models by the registry's ids, each made when it is first asked for; a `load.Folders`."""

    def __init__(self, root: Path, seed: int = 0) -> None:
        self.root = root
        self.seed = seed

    def folder(self, model_id: str) -> Path:
        folder = self.root / model_id
        if not folder.is_dir():
            torch.manual_seed(self.seed + sum(model_id.encode()))
            makers = {
                "sd15": self._sd15,
                "sd15-inpaint": lambda to: self._sd15(to, in_channels=9),
                "control-mediapipe-face": lambda to: self._control(to / "diffusion_sd15"),
                "control-openpose": self._control,
                "control-depth": self._control,
                "ip-adapter-plus-face": self._plus_face,
                "ip-adapter-faceid": self._face_id,
                "mvdream": lambda to: self._multi_view(to, MVDREAM),
                "imagedream": lambda to: self._multi_view(to, IMAGEDREAM),
            }
            makers[model_id](folder)
        return folder

    def source(self, model_id: str) -> Source:
        return Source(model_id, "0" * 40, "random", model_id != "ip-adapter-faceid")

    def _sd15(self, folder: Path, in_channels: int = 4) -> None:
        write_tokenizer(folder / "tokenizer")
        write_text_encoder(folder / "text_encoder", FP16)
        write_vae(folder / "vae", FP16)
        write_scheduler(folder / "scheduler")
        write(sd_unet(in_channels), folder / "unet", FP16)
        index = {"_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "UNet2DConditionModel"]}
        (folder / "model_index.json").write_text(json.dumps(index), "utf-8")

    def _control(self, folder: Path) -> None:
        network = diffusers.ControlNetModel.from_unet(sd_unet(), conditioning_embedding_out_channels=(8, 8, 16, 16))
        randomise(network)  # its last layers begin at zero, and would say nothing
        write(network, folder, FP16)

    def _plus_face(self, folder: Path) -> None:
        write_clip(folder / "models" / "image_encoder")
        shape = Shape(context_dim=TEXT_SIZE, ip_dim=16, clip_dim=CLIP_SIZE)
        projection = {
            f"image_proj.{name.removeprefix('image_embed.')}": tensor
            for name, tensor in random_network(shape, self.seed).items()
            if name.startswith("image_embed.")
        }
        save_file(
            projection | adapter_attention(lora=False), folder / "models" / "ip-adapter-plus-face_sd15.safetensors"
        )

    def _face_id(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        sizes = {"proj.0": (2 * IDENTITY_SIZE, IDENTITY_SIZE), "proj.2": (4 * TEXT_SIZE, 2 * IDENTITY_SIZE)}
        tensors = {"image_proj.norm.weight": torch.ones(TEXT_SIZE), "image_proj.norm.bias": torch.zeros(TEXT_SIZE)}
        for name, (high, wide) in sizes.items():
            tensors[f"image_proj.{name}.weight"] = torch.randn(high, wide) / wide**0.5
            tensors[f"image_proj.{name}.bias"] = torch.zeros(high)
        save_file(tensors | adapter_attention(lora=True), folder / "ip-adapter-faceid_sd15.safetensors")

    def _multi_view(self, folder: Path, shape: Shape) -> None:
        write_tokenizer(folder / "tokenizer")
        write_text_encoder(folder / "text_encoder", PLAIN)
        write_vae(folder / "vae", PLAIN)
        write_scheduler(folder / "scheduler")
        if shape.ip_dim:
            write_clip(folder / "image_encoder", projected=False)
        unet = folder / "unet"
        unet.mkdir()
        save_file(random_network(shape, self.seed), unet / "diffusion_pytorch_model.safetensors")
        config = {"_class_name": "MultiViewUNetModel", "_diffusers_version": "0.25.1", **shape.config()}
        (unet / "config.json").write_text(json.dumps(config), "utf-8")


def sd_unet(in_channels: int = 4) -> Any:
    return diffusers.UNet2DConditionModel(
        sample_size=8,
        in_channels=in_channels,
        block_out_channels=(32, 64),
        layers_per_block=1,
        norm_num_groups=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=TEXT_SIZE,
        attention_head_dim=4,
    )


def randomise(model: nn.Module) -> None:
    """Give every parameter that is zero something to say."""
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(0, 0.2)


def write(model: Any, folder: Path, variant: str, dtype: torch.dtype = torch.float16) -> None:
    model.to(dtype).save_pretrained(folder, variant=variant or None, safe_serialization=True)


def rewrite(file: Path, change: dict[str, str], add: dict[str, Tensor] | None = None) -> None:
    """Give the tensors of a file the names that older versions published."""
    tensors = {}
    for name, tensor in load_file(file).items():
        for new, old in change.items():
            name = name.replace(new, old)
        tensors[name] = tensor
    save_file(tensors | (add or {}), file)


def write_vae(folder: Path, variant: str) -> None:
    """With the attention's names of SD 1.5's own file, which is older than diffusers' present ones."""
    vae = diffusers.AutoencoderKL(
        block_out_channels=(16, 16, 16, 16),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
        norm_num_groups=8,
        layers_per_block=1,
        scaling_factor=0.18215,
    )
    write(vae, folder, variant)
    dot = f".{variant}" if variant else ""
    names = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
    rewrite(folder / f"diffusion_pytorch_model{dot}.safetensors", names)


def write_text_encoder(folder: Path, variant: str) -> None:
    """With the prefix of the published files, and a buffer that present versions no longer have."""
    config = transformers.CLIPTextConfig(
        vocab_size=514, hidden_size=TEXT_SIZE, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=77, bos_token_id=512, eos_token_id=513, pad_token_id=513,
    )  # fmt: skip
    write(transformers.CLIPTextModel(config), folder, variant)
    file = folder / f"model{f'.{variant}' if variant else ''}.safetensors"
    tensors = {name.removeprefix("text_model."): tensor for name, tensor in load_file(file).items()}
    tensors = {f"text_model.{name}": tensor for name, tensor in tensors.items()}
    save_file(tensors | {"text_model.embeddings.position_ids": torch.arange(77)[None]}, file)


def write_clip(folder: Path, projected: bool = True) -> None:
    """CLIP's image encoder: with projection and an old constant as in h94/IP-Adapter, or bare as in ImageDream."""
    config = transformers.CLIPVisionConfig(
        hidden_size=CLIP_SIZE, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4, image_size=224,
        patch_size=56, projection_dim=24,
    )  # fmt: skip
    kind = transformers.CLIPVisionModelWithProjection if projected else transformers.CLIPVisionModel
    model = kind(config)
    with torch.no_grad():  # its own start is so small that pictures would hardly differ
        for parameter in model.parameters():
            parameter.mul_(8.0 if parameter.ndim > 1 else 1.0)
    write(model, folder, PLAIN)
    file = folder / "model.safetensors"
    tensors = {name.removeprefix("vision_model."): tensor for name, tensor in load_file(file).items()}
    named = {f"{'' if 'visual_' in name else 'vision_model.'}{name}": tensor for name, tensor in tensors.items()}
    old = {"vision_model.embeddings.position_ids": torch.arange(17)[None]} if projected else {}
    save_file(named | old, file)


def write_tokenizer(folder: Path) -> None:
    """vocab.json and merges.txt, as the published repositories have them: single characters, no merges."""
    folder.mkdir(parents=True)
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in visible]
    characters = [chr(byte) for byte in visible] + [chr(256 + k) for k in range(len(others))]
    words = [*characters, *(f"{c}</w>" for c in characters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: k for k, word in enumerate(words)}), "utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n", "utf-8")
    special = {"bos_token": words[-2], "eos_token": words[-1], "pad_token": words[-1], "unk_token": words[-1]}
    (folder / "special_tokens_map.json").write_text(json.dumps(special), "utf-8")
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, **special}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), "utf-8")


def write_scheduler(folder: Path, prediction: str = "epsilon") -> None:
    folder.mkdir(parents=True)
    config = {
        "_class_name": "PNDMScheduler", "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
        "num_train_timesteps": 1000, "prediction_type": prediction, "steps_offset": 1,
    }  # fmt: skip
    (folder / "scheduler_config.json").write_text(json.dumps(config), "utf-8")


def adapter_attention(lora: bool) -> dict[str, Tensor]:
    """`ip_adapter.*` for the tiny UNet; with the LoRA of a FaceID file on request."""
    tensors = {}
    for number, name in enumerate(sd_unet().attn_processors):
        channels = 64 if name.startswith("mid") else 32  # the outer level has 32 channels, the inner one no attention
        if ".attn2." in name:
            for part in ("to_k_ip", "to_v_ip"):
                tensors[f"ip_adapter.{number}.{part}.weight"] = torch.randn(channels, TEXT_SIZE) / TEXT_SIZE**0.5
        for part in ("to_q", "to_k", "to_v", "to_out") if lora else ():
            wide = TEXT_SIZE if ".attn2." in name and part in ("to_k", "to_v") else channels
            tensors[f"ip_adapter.{number}.{part}_lora.down.weight"] = 0.2 * torch.randn(4, wide)
            tensors[f"ip_adapter.{number}.{part}_lora.up.weight"] = 0.2 * torch.randn(channels, 4)
    return tensors
