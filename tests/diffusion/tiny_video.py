"""Small models of the video and editing pipelines with random numbers, saved in the published layouts."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from backend.context import Context, QuietSink
from backend.diffusion import gate

gate.quiet_imports()


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Tiny models are faster on one thread, and exactly repeatable."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@dataclass
class StopAfter(QuietSink):
    """Cancels when the `limit`-th step has been reported; `calls` says how many were reported in the end."""

    limit: int
    calls: int = 0
    event: threading.Event = field(default_factory=threading.Event)

    def progress(self, stage: str, done: float, total: float, note: str) -> None:
        self.calls += done > 0
        if self.calls >= self.limit:
            self.event.set()

    @property
    def context(self) -> Context:
        quiet = Context.quiet()
        return Context(scratch=quiet.scratch, sink=self, cancel_event=self.event)


def randomised(model: torch.nn.Module, seed: int) -> Any:
    """Numbers in every parameter: some begin as zeros, which would hide a condition."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        # The encoder of faces scales its weights itself.
        fan = parameter[0].numel() if parameter.ndim > 1 and "motion_encoder" not in name else 1
        gain = parameter.ndim == 1 and parameter.data.mean() == 1
        scale = 0.2 if parameter.ndim == 1 else 1 / max(fan, 1) ** 0.5
        parameter.data = (noise * scale + (1.0 if gain else 0.0)).to(parameter.dtype)
    return model.eval()


def clip_vision(projected: bool, layers: int = 2) -> Any:
    from transformers import CLIPVisionConfig, CLIPVisionModel, CLIPVisionModelWithProjection

    config = CLIPVisionConfig(
        hidden_size=4 if not projected else 32,
        intermediate_size=37,
        num_hidden_layers=layers,
        num_attention_heads=2,
        image_size=224,
        patch_size=56,
        projection_dim=32,
    )
    return randomised((CLIPVisionModelWithProjection if projected else CLIPVisionModel)(config), 3)


def write_svd(folder: Path) -> Path:
    from diffusers import AutoencoderKLTemporalDecoder, EulerDiscreteScheduler, UNetSpatioTemporalConditionModel
    from transformers import CLIPImageProcessorPil

    unet = UNetSpatioTemporalConditionModel(
        block_out_channels=(32, 64),
        layers_per_block=1,
        sample_size=8,
        down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
        cross_attention_dim=32,
        num_attention_heads=(2, 4),
        projection_class_embeddings_input_dim=96,
        addition_time_embed_dim=32,
    )
    vae = AutoencoderKLTemporalDecoder(
        block_out_channels=(32, 32, 32, 32), down_block_types=("DownEncoderBlock2D",) * 4, layers_per_block=1
    )
    randomised(unet, 1).save_pretrained(folder / "unet")
    randomised(vae, 2).save_pretrained(folder / "vae")
    clip_vision(projected=True).save_pretrained(folder / "image_encoder")
    CLIPImageProcessorPil(size={"shortest_edge": 224}).save_pretrained(folder / "feature_extractor")
    EulerDiscreteScheduler(
        prediction_type="v_prediction",
        timestep_type="continuous",
        timestep_spacing="leading",
        use_karras_sigmas=True,
        sigma_min=0.002,
        sigma_max=700.0,
        steps_offset=1,
    ).save_pretrained(folder / "scheduler")
    return folder


def t5_tokenizer() -> Any:
    from transformers import T5Tokenizer

    pieces = ["<pad>", "</s>", "<unk>", "▁", *(chr(code) for code in range(33, 127))]
    return T5Tokenizer(vocab=[(piece, 0.0 if k < 3 else -float(k)) for k, piece in enumerate(pieces)], extra_ids=0)


def _wan_common(folder: Path) -> None:
    from diffusers import AutoencoderKLWan, UniPCMultistepScheduler
    from transformers import UMT5Config, UMT5EncoderModel

    vae = AutoencoderKLWan(
        base_dim=3,
        z_dim=16,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
    )
    randomised(vae, 4).save_pretrained(folder / "vae")
    tokenizer = t5_tokenizer()
    tokenizer.save_pretrained(folder / "tokenizer")
    config = UMT5Config(
        vocab_size=len(tokenizer),
        d_model=32,
        d_kv=8,
        d_ff=37,
        num_layers=2,
        num_heads=4,
        feed_forward_proj="gated-gelu",
    )
    randomised(UMT5EncoderModel(config), 5).save_pretrained(folder / "text_encoder")
    UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, num_train_timesteps=1000, flow_shift=3.0
    ).save_pretrained(folder / "scheduler")


def write_wan_animate(folder: Path) -> Path:
    from diffusers import WanAnimateTransformer3DModel
    from transformers import CLIPImageProcessorPil

    _wan_common(folder)
    transformer = WanAnimateTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=36,
        latent_channels=16,
        out_channels=16,
        text_dim=32,
        freq_dim=16,
        ffn_dim=32,
        num_layers=2,
        image_dim=4,
        added_kv_proj_dim=24,
        rope_max_seq_len=32,
        motion_encoder_channel_sizes={"4": 16, "8": 16, "16": 16},
        motion_encoder_size=16,
        motion_style_dim=8,
        motion_dim=4,
        motion_encoder_dim=16,
        face_encoder_hidden_dim=16,
        face_encoder_num_heads=2,
        inject_face_latents_blocks=2,
    )
    randomised(transformer, 6).save_pretrained(folder / "transformer")
    clip_vision(projected=False).save_pretrained(folder / "image_encoder")
    CLIPImageProcessorPil(size={"shortest_edge": 224}).save_pretrained(folder / "image_processor")
    return folder


def write_vace(folder: Path) -> Path:
    from diffusers import WanVACETransformer3DModel

    _wan_common(folder)
    transformer = WanVACETransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=16,
        out_channels=16,
        text_dim=32,
        freq_dim=16,
        ffn_dim=32,
        num_layers=3,
        rope_max_seq_len=32,
        vace_layers=[0, 2],
        vace_in_channels=96,
    )
    randomised(transformer, 7).save_pretrained(folder / "transformer")
    return folder


CHAT = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def byte_characters() -> list[str]:
    """GPT-2's 256 characters that stand for bytes."""
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [b for b in range(256) if b not in kept]
    table = {b: chr(b) for b in kept} | {b: chr(256 + k) for k, b in enumerate(rest)}
    return [table[b] for b in range(256)]


def write_klein(folder: Path) -> Path:
    from diffusers import AutoencoderKLFlux2, FlowMatchEulerDiscreteScheduler, Flux2Transformer2DModel
    from transformers import Qwen2TokenizerFast, Qwen3Config, Qwen3ForCausalLM

    transformer = Flux2Transformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=48,
        timestep_guidance_channels=16,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=False,
    )
    randomised(transformer, 8).save_pretrained(folder / "transformer")
    vae = AutoencoderKLFlux2(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
    )
    randomised(vae, 9).save_pretrained(folder / "vae")
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    vocab = {token: k for k, token in enumerate([*byte_characters(), *special])}
    tokenizer = Qwen2TokenizerFast(vocab=vocab, merges=[], pad_token="<|endoftext|>", eos_token="<|im_end|>")
    tokenizer.add_special_tokens({"additional_special_tokens": special[1:]})
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(folder / "tokenizer")
    text = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=28,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        max_position_embeddings=1024,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    Qwen3ForCausalLM(text).save_pretrained(folder / "text_encoder")
    FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15, shift=3.0
    ).save_pretrained(folder / "scheduler")
    index = {"_class_name": "Flux2KleinPipeline", "is_distilled": True}
    (folder / "model_index.json").write_text(json.dumps(index), "utf-8")
    return folder


def write_inpaint(folder: Path) -> Path:
    """SD 1.5 inpainting: nine channels into the network."""
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    unet = UNet2DConditionModel(
        in_channels=9,
        block_out_channels=(32, 64),
        layers_per_block=1,
        norm_num_groups=8,
        sample_size=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=4,
    )
    vae = AutoencoderKL(
        block_out_channels=(16, 16, 16, 16),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        norm_num_groups=8,
    )
    randomised(unet, 10).save_pretrained(folder / "unet")
    randomised(vae, 11).save_pretrained(folder / "vae")
    letters = byte_characters()
    tokens = [*letters, *(f"{c}</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(vocab={token: k for k, token in enumerate(tokens)}, merges=[], model_max_length=77)
    tokenizer.save_pretrained(folder / "tokenizer")
    text = CLIPTextConfig(
        vocab_size=len(tokens),
        hidden_size=32,
        intermediate_size=37,
        num_hidden_layers=2,
        num_attention_heads=4,
        bos_token_id=512,
        eos_token_id=513,
        pad_token_id=513,
    )
    torch.manual_seed(1)
    CLIPTextModel(text).save_pretrained(folder / "text_encoder")
    DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    ).save_pretrained(folder / "scheduler")
    return folder


def noise_picture(width: int, height: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
