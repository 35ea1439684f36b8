"""What Stable Diffusion and MVDream share: the picture encoder, the text encoder, the noise schedule."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from backend.context import Context
from backend.diffusion import gate
from backend.diffusion.interfaces import NoiseSchedule
from backend.diffusion.load import AGAIN, freed, load
from backend.diffusion.placement import Placement
from backend.errors import MODEL_MISSING, UserError


class PictureCoder:
    """An `AutoencoderKL` between pictures in 0..1 and scaled latents; differentiable in the pictures."""

    def __init__(self, vae: Any) -> None:
        """Wrap a loaded encoder and decoder."""
        self.vae = vae
        self.scale = float(vae.config.scaling_factor)

    @property
    def factor(self) -> int:
        """Pixels of a picture per pixel of its latents, along each side."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    def encode(self, images: Tensor) -> Tensor:
        """Mean of the latents [B, C, h, w] of pictures [B, 3, H, W], scaled.

        The mean, not a sample: its spread is a hundredth of the latents' own, and only noise to an optimiser.
        """
        if self.vae.dtype != torch.float16:
            return self._encode(images)
        scale: list[Tensor] = []
        return _ScaleDown.apply(self._encode(_ScaleUp.apply(images, scale)).float(), scale)

    def _encode(self, images: Tensor) -> Tensor:
        values = 2 * images.to(self.vae.dtype) - 1
        return self.vae.encode(values).latent_dist.mean * self.scale

    def decode(self, latents: Tensor) -> Tensor:
        """Pictures [B, 3, H, W] in 0..1 of scaled latents."""
        with torch.no_grad():
            values = self.vae.decode((latents / self.scale).to(self.vae.dtype)).sample
        return (0.5 * values.float() + 0.5).clamp(0, 1)


class _ScaleDown(torch.autograd.Function):
    """On the way back, the gradient is brought to a largest value of 1, so that float16 neither over- nor underflows.

    Applied to the result of a network in float16; `_ScaleUp` on its input gives the gradient its size again. Nothing
    is read back from the device.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor, scale: list[Tensor]) -> Tensor:
        ctx.scale = scale
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,) = gradients
        ctx.scale[:] = [gradient.abs().amax().clamp_min(1e-30)]
        return gradient / ctx.scale[0], None


class _ScaleUp(torch.autograd.Function):
    """See `_ScaleDown`."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, scale: list[Tensor]) -> Tensor:
        ctx.scale = scale
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,) = gradients
        return gradient * ctx.scale[0].to(gradient), None


def load_coder(folder: Path, placement: Placement, context: Context, subfolder: str = "vae") -> PictureCoder:
    """The encoder and decoder of a model's folder; gradients pass through it, so its weights stay where they are."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    return PictureCoder(load(AutoencoderKL, folder, subfolder, placement=placement.differentiable, context=context))


def read_schedule(folder: Path, device: str, subfolder: str = "scheduler") -> NoiseSchedule:
    """The forward process of a model's `scheduler_config.json`.

    Raises:
        UserError: If the file is missing or describes another kind of process.
    """
    path = folder / subfolder / "scheduler_config.json"
    try:
        config = json.loads(path.read_text("utf-8"))
        steps, kind = int(config["num_train_timesteps"]), config["beta_schedule"]
        first, last = float(config["beta_start"]), float(config["beta_end"])
        prediction = config.get("prediction_type", "epsilon")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path.name} cannot be read ({error}); {AGAIN}", MODEL_MISSING) from error
    roots = {"scaled_linear": 0.5, "linear": 1.0}
    names: dict[str, Literal["epsilon", "v"]] = {"epsilon": "epsilon", "v_prediction": "v"}
    if kind not in roots or prediction not in names or not 0 < first <= last < 1 or steps < 1:
        raise UserError(f"{path.name} describes a process that is not known ({kind}, {prediction}); {AGAIN}")
    power = roots[kind]
    betas = torch.linspace(first**power, last**power, steps, dtype=torch.float64) ** (1 / power)
    cumulative = (1 - betas).cumprod(0)
    alphas, sigmas = cumulative.sqrt(), (1 - cumulative).sqrt()
    if torch.device(device).type == "mps":
        alphas, sigmas = alphas.float(), sigmas.float()
    return NoiseSchedule(alphas.to(device), sigmas.to(device), names[prediction])


def as_noise(output: Tensor, noisy: Tensor, timesteps: Tensor, schedule: NoiseSchedule) -> Tensor:
    """The predicted noise of a network's output, whatever it predicts."""
    if schedule.prediction == "epsilon":
        return output
    alpha = schedule.alphas[timesteps].to(noisy)[:, None, None, None]
    sigma = schedule.sigmas[timesteps].to(noisy)[:, None, None, None]
    return alpha * output + sigma * noisy


def embed_texts(folder: Path, texts: Sequence[str], placement: Placement, context: Context) -> Tensor:
    """Embeddings [N, L, D] of prompts, in float32; the text encoder is loaded, used and forgotten.

    Args:
        folder: Of a model with `tokenizer` and `text_encoder`.
        texts: Any; longer ones are cut at the tokenizer's limit, with a warning.
        placement: Where to compute.
        context: For cancelling, and the warning.
    """
    gate.check_folder(folder / "tokenizer")
    gate.quiet_imports()
    from transformers import CLIPTextModel, CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
    encoder = load(CLIPTextModel, folder, "text_encoder", placement=placement, context=context, spare=(POSITIONS,))
    limit = min(tokenizer.model_max_length, encoder.config.max_position_embeddings)
    full = tokenizer(list(texts), verbose=False).input_ids
    if cut := [text for text, ids in zip(texts, full, strict=True) if len(ids) > limit]:
        context.warn(f"the prompt is cut after {limit - 2} tokens: {cut[0][:60]}...")
    tokens = tokenizer(list(texts), padding="max_length", max_length=limit, truncation=True, return_tensors="pt")
    with torch.no_grad():
        embedded = encoder(tokens.input_ids.to(placement.device))[0].float()
    embedded = embedded.clone()
    del encoder
    freed(placement.device)
    return embedded


POSITIONS = r"position_ids$"
"""A constant that older files hold."""
