"""Low-rank adapters (LoRA, by peft): one trainer for image, video and transformer networks, and their files.

A model may carry several adapters by name; `use` says which count and how much. Files are safetensors in diffusers'
layout. Every random number of a training comes from the seed and the step, so that a training that was interrupted goes
on as if nothing had been.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from backend.context import Context
from backend.diffusion import gate
from backend.diffusion.interfaces import NoiseSchedule, Source
from backend.diffusion.load import read_tensors
from backend.errors import BAD_REQUEST, FAILED, UserError
from backend.files import whole_file

ATTENTION: Final = ("to_q", "to_k", "to_v", "to_out.0")
"""Projections of every attention, by the names that diffusers' networks share."""

FLUX2: Final = (*ATTENTION, "attn.to_qkv_mlp_proj", "attn.to_out")
"""The same for FLUX.2, whose single-stream blocks have one projection for everything."""

METADATA: Final = "lora_adapter_metadata"
"""Where diffusers keeps an adapter's configuration in a file."""

_LAYERS: Final = (nn.Linear, nn.Conv2d, nn.Conv3d)
_PREFIXES: Final = ("unet.", "transformer.", "base_model.model.")
_STAGE: Final = "train the adapter"


@dataclass(frozen=True)
class LoraSettings:
    """How an adapter is made.

    Attributes:
        rank: Of every pair of matrices.
        alpha: Its scale is alpha / rank; None for 1.
        targets: Endings of the names of the layers that get one.
        steps: Of training.
        batch: Examples per step.
        learning_rate: Of AdamW.
        warmup: Steps over which the rate rises.
        weight_decay: Of AdamW.
        prior_weight: Share of the loss on what the base model made itself, which keeps it from forgetting.
        largest_gradient: Norm to which gradients are cut.
        checkpointing: Compute activations again instead of keeping them: half the memory, a third more time.
    """

    rank: int = 16
    alpha: int | None = None
    targets: tuple[str, ...] = ATTENTION
    steps: int = 500
    batch: int = 1
    learning_rate: float = 1e-4
    warmup: int = 10
    weight_decay: float = 1e-2
    prior_weight: float = 1.0
    largest_gradient: float = 1.0
    checkpointing: bool = True

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            ValueError: If a number is out of range.
        """
        if min(self.rank, self.steps, self.batch) < 1 or self.learning_rate <= 0 or self.prior_weight < 0:
            raise ValueError(
                "rank, steps and batch are at least 1, the rate is positive, the prior's weight not negative"
            )

    def __str__(self) -> str:
        """All of them: the key under which a training is continued."""
        return ", ".join(f"{field.name}={getattr(self, field.name)!r}" for field in fields(self))


@dataclass(frozen=True)
class Example:
    """One thing to learn, on any device.

    Attributes:
        latents: [...], scaled as the model takes them, without a batch axis.
        conditions: What the model is called with besides, by its own argument names, each without a batch axis.
    """

    latents: Tensor
    conditions: Mapping[str, Tensor]


class Objective(Protocol):
    """What a kind of model is trained to do."""

    def __call__(
        self, model: nn.Module, latents: Tensor, conditions: Mapping[str, Tensor], random: torch.Generator
    ) -> Tensor:
        """Loss of each example [B], float32.

        Args:
            model: With its adapter.
            latents: [B, ...] on the model's device, float32.
            conditions: Each [B, ...] on the model's device.
            random: On the CPU.
        """
        ...


@dataclass(frozen=True)
class NoiseObjective:
    """Image models: find the noise (or v) in a latent at a random time.

    Attributes:
        schedule: The model's forward process.
    """

    schedule: NoiseSchedule

    def __call__(
        self, model: nn.Module, latents: Tensor, conditions: Mapping[str, Tensor], random: torch.Generator
    ) -> Tensor:
        """See `Objective`; conditions are those of diffusers' `UNet2DConditionModel`."""
        count = len(self.schedule.alphas)
        times = torch.randint(count, (len(latents),), generator=random)
        noise = _noise(latents, random)
        alpha, sigma = (
            _like(values.to("cpu", torch.float32)[times].to(latents.device), latents)
            for values in (self.schedule.alphas, self.schedule.sigmas)
        )
        noisy = alpha * latents + sigma * noise
        target = noise if self.schedule.prediction == "epsilon" else alpha * noise - sigma * latents
        made = model(noisy.to(_dtype(model)), times.to(latents.device), **_cast(conditions, model)).sample
        return _squares(made, target)


@dataclass(frozen=True)
class VideoObjective:
    """SVD and SV3D: EDM's denoising with v prediction, weighted so that every noise level counts alike.

    Attributes:
        log_sigma_mean: Of the noise levels that are drawn.
        log_sigma_deviation: The same.
        dropout: How often the picture is withheld, which guidance needs.
    """

    log_sigma_mean: float = 0.7
    log_sigma_deviation: float = 1.6
    dropout: float = 0.1

    def __call__(
        self, model: nn.Module, latents: Tensor, conditions: Mapping[str, Tensor], random: torch.Generator
    ) -> Tensor:
        """See `Objective`.

        `latents` are [B, F, 4, h, w]; conditions are `image_latents` [B, 4, h, w], `encoder_hidden_states` [B, 1, C]
        and `added_time_ids`.
        """
        drawn = torch.randn(len(latents), generator=random) * self.log_sigma_deviation + self.log_sigma_mean
        kept = (torch.rand(len(latents), generator=random) >= self.dropout).to(latents)
        noise, sigma = _noise(latents, random), _like(drawn.exp().to(latents.device), latents)
        inner = (sigma**2 + 1).rsqrt()
        noisy = (latents + sigma * noise) * inner
        target = (noise - sigma * latents) * inner
        given = dict(conditions)
        picture = given.pop("image_latents")[:, None].expand(-1, latents.shape[1], -1, -1, -1)
        picture = picture * _like(kept, picture)
        given["encoder_hidden_states"] = given["encoder_hidden_states"] * _like(kept, given["encoder_hidden_states"])
        sample = torch.cat([noisy, picture.to(noisy)], dim=2).to(_dtype(model))
        made = model(sample, (drawn / 4).to(latents.device), **_cast(given, model)).sample
        return _squares(made, target)


@dataclass(frozen=True)
class FlowObjective:
    """Transformers: the straight way from noise to the latent.

    Attributes:
        time_scale: What the model is told at pure noise: 1 for FLUX.2, 1000 for Wan.
        shift: More than 1 draws more noise levels near pure noise, as large pictures and videos want.
        tokens: Latents are token sequences [B, L, D], and `condition_latents` [B, M, D] are seen behind them.
    """

    time_scale: float = 1.0
    shift: float = 1.0
    tokens: bool = True

    def __call__(
        self, model: nn.Module, latents: Tensor, conditions: Mapping[str, Tensor], random: torch.Generator
    ) -> Tensor:
        """See `Objective`."""
        share = torch.sigmoid(torch.randn(len(latents), generator=random))
        share = (self.shift * share / (1 + (self.shift - 1) * share)).to(latents.device)
        noise, sigma = _noise(latents, random), _like(share, latents)
        sample, given = (1 - sigma) * latents + sigma * noise, dict(conditions)
        if (beside := given.pop("condition_latents", None)) is not None:
            sample = torch.cat([sample, beside.to(sample)], dim=1)
        times = share.to(_dtype(model)) * self.time_scale
        made = model(hidden_states=sample.to(_dtype(model)), timestep=times, return_dict=False, **_cast(given, model))[
            0
        ]
        if self.tokens:
            made = made[:, : latents.shape[1]]
        return _squares(made, noise - latents)


def add_adapter(model: nn.Module, name: str, settings: LoraSettings, seed: int = 0) -> None:
    """Give a model a new adapter that does nothing yet; others stay, but do not count until `use` says so.

    Args:
        model: A diffusers model.
        name: Letters, digits and underscores.
        settings: Rank, scale and layers.
        seed: Of the adapter's first half; the second is zero.

    Raises:
        UserError: If the name is taken or is none, or no layer matches.
    """
    gate.quiet_imports()
    from peft import LoraConfig

    _check_name(model, name)
    endings = tuple(f".{target}" for target in settings.targets)
    layers = {path.removesuffix(".base_layer"): layer for path, layer in model.named_modules() if ".lora_" not in path}
    targets = [path for path, layer in layers.items() if path.endswith(endings) and isinstance(layer, _LAYERS)]
    if not targets:
        raise UserError(f"no layer of {type(model).__name__} ends in {', '.join(settings.targets)}", BAD_REQUEST)
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.rank if settings.alpha is None else settings.alpha,
        target_modules=targets,
        init_lora_weights="gaussian",
    )
    _peft(model).add_adapter(config, adapter_name=name)
    random = torch.Generator().manual_seed(seed)
    for path, parameter in _parameters(model, name):
        parameter.requires_grad_(False)
        if ".lora_A." in path:  # by our own generator: the library's draws from the global one
            values = torch.randn(parameter.shape, generator=random) / settings.rank
            parameter.data = values.to(parameter.device, torch.float32)
        else:
            parameter.data = torch.zeros(parameter.shape, dtype=torch.float32, device=parameter.device)


def use(model: nn.Module, scales: Mapping[str, float]) -> None:
    """Which adapters count, and how much: 0 is not at all, 1 as trained. An empty mapping turns all off.

    Raises:
        UserError: If the model has no such adapter.
    """
    known = adapters(model)
    if unknown := [name for name in scales if name not in known]:
        raise UserError(f"there is no adapter {unknown[0]}; there are: {', '.join(known) or 'none'}", BAD_REQUEST)
    if not known:
        return
    if not scales:
        _peft(model).disable_lora()
        return
    _peft(model).enable_lora()
    _peft(model).set_adapters(list(scales), weights=list(scales.values()))
    for parameter in model.parameters():
        parameter.requires_grad_(False)


def adapters(model: nn.Module) -> tuple[str, ...]:
    """Names of a model's adapters."""
    return tuple(getattr(model, "peft_config", {}))


def remove_adapter(model: nn.Module, name: str) -> None:
    """Take an adapter away again.

    Raises:
        UserError: If there is none of that name.
    """
    if name not in adapters(model):
        raise UserError(f"there is no adapter {name}", BAD_REQUEST)
    _peft(model).delete_adapters(name)


def train(
    model: nn.Module,
    name: str,
    objective: Objective,
    examples: Sequence[Example],
    settings: LoraSettings,
    context: Context,
    prior: Sequence[Example] = (),
) -> np.ndarray:
    """Train the adapter `name`, which must exist; everything else of the model stays as it is.

    Args:
        model: Placed so that gradients can pass: `Placement.differentiable`.
        name: The adapter; it counts alone while it is trained, and afterwards.
        objective: What the model is to do.
        examples: What it is to learn.
        settings: Of the training.
        context: Progress, cancelling, seed, and `checkpoint`: an interrupted training goes on where it was.
        prior: What the base model makes of the general words; seen along with the examples, at `prior_weight`.

    Returns:
        float32 [steps] loss of every step; NaN for steps before a continued training.

    Raises:
        UserError: If there are no examples, there is no such adapter, or the loss is not finite.
        Cancelled: Within one step.
    """
    if not examples:
        raise UserError("an adapter needs at least one example to learn", BAD_REQUEST)
    if name not in adapters(model):
        raise UserError(f"there is no adapter {name} to train", BAD_REQUEST)
    use(model, {name: 1.0})
    learned = _parameters(model, name)
    loop = f"lora-{name.lower().replace('_', '-')}"[:31]
    key = f"{settings}; {type(model).__name__}; {name}; {len(examples)}+{len(prior)} examples; seed {context.seed}"
    losses = np.full(settings.steps, np.nan, np.float32)
    with _training(model, [parameter for _, parameter in learned], settings.checkpointing):
        optimiser = torch.optim.AdamW(
            [parameter for _, parameter in learned], settings.learning_rate, weight_decay=settings.weight_decay
        )
        begin = _resume(context, loop, key, learned, optimiser)
        for step in range(begin, settings.steps):
            context.progress(_STAGE, step, settings.steps, f"loss {losses[step - 1]:.4f}" if step > begin else "")
            random = torch.Generator().manual_seed(_seed(context.seed, step))
            for group in optimiser.param_groups:
                group["lr"] = settings.learning_rate * min(1.0, (step + 1) / max(settings.warmup, 1))
            optimiser.zero_grad(set_to_none=True)
            losses[step] = _backward(model, objective, examples, prior, settings, random)
            if not np.isfinite(losses[step]):
                raise UserError(f"training broke at step {step}: the loss is not finite; lower the rate", FAILED)
            nn.utils.clip_grad_norm_([parameter for _, parameter in learned], settings.largest_gradient)
            optimiser.step()
            if context.checkpoint.due() and step + 1 < settings.steps:
                context.checkpoint.save(loop, step + 1, _state(learned, optimiser), key)
    context.progress(_STAGE, settings.steps, settings.steps)
    return losses


def save_adapter(model: nn.Module, name: str, path: Path, sources: Sequence[Source] = ()) -> None:
    """Write an adapter as one safetensors file, in diffusers' layout.

    Args:
        model: That has it.
        name: Of the adapter.
        path: Ends in .safetensors.
        sources: Models that it was trained on: their terms may go along.

    Raises:
        UserError: If there is no such adapter or the name of the file is another.
    """
    from peft.utils import get_peft_model_state_dict
    from safetensors.torch import save

    _check_path(path)
    if name not in adapters(model):
        raise UserError(f"there is no adapter {name} to save", BAD_REQUEST)
    config = _peft(model).peft_config[name]
    about = {
        "r": config.r,
        "lora_alpha": config.lora_alpha,
        "target_modules": sorted(config.target_modules),
        "peft_type": "LORA",
    }
    metadata = {"format": "pt", METADATA: json.dumps(about, sort_keys=True), "model": type(model).__name__}
    if sources:
        metadata["sources"] = "; ".join(str(source) for source in sources)
    tensors = {
        key: tensor.detach().cpu().contiguous()
        for key, tensor in get_peft_model_state_dict(model, adapter_name=name).items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as file:
        file.write(save(tensors, metadata=metadata))


def load_adapter(model: nn.Module, path: Path, name: str) -> None:
    """Give a model an adapter from a file, at scale 1 and alone.

    Raises:
        UserError: If the file is not safetensors, is damaged, or was made for another model.
    """
    from safetensors import safe_open

    _check_path(path)
    _check_name(model, name)
    tensors = _without_prefix(read_tensors(path))
    _check_fit(model, tensors, path.name)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
    # Names and widths of layers may agree by chance; who wrote the file may have said what it is for.
    made_for = metadata.get("model", "")
    if made_for and made_for not in {base.__name__ for base in type(model).__mro__}:
        raise UserError(f"{path.name} was made for another model: {made_for}, not {type(model).__name__}", BAD_REQUEST)
    about = _read_about(metadata.get(METADATA), path.name)
    gate.quiet_imports()
    # Given as tensors, so that the library opens no file of its own.
    _peft(model).load_lora_adapter(tensors, prefix=None, adapter_name=name, metadata=about)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    use(model, {name: 1.0})


def _backward(
    model: nn.Module,
    objective: Objective,
    examples: Sequence[Example],
    prior: Sequence[Example],
    settings: LoraSettings,
    random: torch.Generator,
) -> float:
    """Gradients of one step; examples and prior one after the other, so that only one is in memory."""
    total = 0.0
    for pool, weight in ((examples, 1.0), (prior, settings.prior_weight)):
        if pool and weight:
            latents, conditions = _batch(pool, settings.batch, random, model)
            loss = weight * objective(model, latents, conditions, random).mean()
            loss.backward()
            total += float(loss.detach())
    return total


def _batch(
    pool: Sequence[Example], count: int, random: torch.Generator, model: nn.Module
) -> tuple[Tensor, dict[str, Tensor]]:
    chosen = [pool[int(k)] for k in torch.randint(len(pool), (count,), generator=random)]
    device = next(model.parameters()).device
    latents = torch.stack([example.latents for example in chosen]).to(device, torch.float32)
    conditions = {
        key: torch.stack([example.conditions[key] for example in chosen]).to(device) for key in chosen[0].conditions
    }
    return latents, conditions


@contextlib.contextmanager
def _training(model: nn.Module, learned: list[nn.Parameter], checkpointing: bool) -> Iterator[None]:
    """Only the adapter has gradients inside, and afterwards nothing has."""
    before = bool(getattr(model, "is_gradient_checkpointing", False))
    wanted = checkpointing and bool(getattr(model, "_supports_gradient_checkpointing", False))
    for parameter in learned:
        parameter.requires_grad_(True)
    try:
        if wanted and not before:
            _peft(model).enable_gradient_checkpointing()
        with torch.enable_grad():
            yield
    finally:
        if wanted and not before:
            _peft(model).disable_gradient_checkpointing()
        for parameter in learned:
            parameter.requires_grad_(False)
            parameter.grad = None


def _state(learned: list[tuple[str, nn.Parameter]], optimiser: torch.optim.AdamW) -> dict[str, np.ndarray]:
    arrays: dict[str, np.ndarray] = {}
    for path, parameter in learned:
        moments = optimiser.state[parameter]
        for kind, tensor in (("value", parameter), ("first", moments["exp_avg"]), ("second", moments["exp_avg_sq"])):
            arrays[f"{kind} {path}"] = tensor.detach().float().cpu().numpy()
    return arrays


def _resume(
    context: Context, loop: str, key: str, learned: list[tuple[str, nn.Parameter]], optimiser: torch.optim.AdamW
) -> int:
    """Put back what an interrupted training had; how many steps it had done."""
    kept = context.checkpoint.load(loop, key)
    if kept is None:
        return 0
    for path, parameter in learned:
        value, first, second = (
            torch.from_numpy(kept.arrays[f"{kind} {path}"]).to(parameter) for kind in ("value", "first", "second")
        )
        parameter.data.copy_(value)
        optimiser.state[parameter] = {
            "step": torch.tensor(float(kept.step)),
            "exp_avg": first.clone(),
            "exp_avg_sq": second.clone(),
        }
    return kept.step


def _parameters(model: nn.Module, name: str) -> list[tuple[str, nn.Parameter]]:
    return [(path, p) for path, p in model.named_parameters() if ".lora_" in path and f".{name}." in f"{path}."]


def _check_name(model: nn.Module, name: str) -> None:
    if not name.isidentifier():
        raise UserError(f"an adapter's name has letters, digits and underscores, not {name!r}", BAD_REQUEST)
    if name in adapters(model):
        raise UserError(f"there is an adapter {name} already", BAD_REQUEST)


def _check_path(path: Path) -> None:
    if path.suffix != ".safetensors":
        raise UserError(f"{path.name} is no safetensors file; adapters in other formats are not opened", BAD_REQUEST)


def _without_prefix(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    for prefix in _PREFIXES:
        if tensors and all(key.startswith(prefix) for key in tensors):
            return {key.removeprefix(prefix): tensor for key, tensor in tensors.items()}
    return dict(tensors)


def _check_fit(model: nn.Module, tensors: Mapping[str, Tensor], where: str) -> None:
    """Every tensor belongs to a layer of this model and has its width; every layer has both halves."""
    layers = {path.replace(".base_layer", ""): layer for path, layer in model.named_modules()}
    if not tensors:
        raise UserError(f"{where} holds no adapter", BAD_REQUEST)
    for key, tensor in tensors.items():
        path, dot, rest = key.rpartition(".lora_")
        layer = layers.get(path)
        if not dot or rest not in ("A.weight", "B.weight") or layer is None:
            raise UserError(f"{where} was made for another model: {key} has no place in this one", BAD_REQUEST)
        weight = getattr(getattr(layer, "base_layer", layer), "weight", None)
        axis = 1 if rest.startswith("A") else 0
        if weight is None or tensor.ndim < 2 or tensor.shape[axis] != weight.shape[axis]:
            raise UserError(f"{where} was made for another model: {key} is {list(tensor.shape)}", BAD_REQUEST)
        if f"{path}.lora_{'B' if axis else 'A'}.weight" not in tensors:
            raise UserError(f"{where} holds half of {path} only", BAD_REQUEST)


def _read_about(text: str | None, where: str) -> dict[str, Any] | None:
    """Of a file's own configuration only what is needed and harmless."""
    if text is None:
        return None
    try:
        about = json.loads(text)
        chosen = {key: about[key] for key in ("r", "lora_alpha", "target_modules")}
        optional = {key: about[key] for key in ("rank_pattern", "alpha_pattern") if about.get(key)}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{where} describes its adapter badly ({error})", BAD_REQUEST) from error
    numbers = isinstance(chosen["r"], int) and isinstance(chosen["lora_alpha"], int | float)
    if not numbers or not isinstance(chosen["target_modules"], list | str):
        raise UserError(f"{where} describes its adapter badly", BAD_REQUEST)
    return {**chosen, **optional, "init_lora_weights": True}


def _peft(model: nn.Module) -> Any:
    """Diffusers mixes the adapter's methods into its models."""
    if not hasattr(model, "load_lora_adapter"):
        raise TypeError(f"{type(model).__name__} takes no adapters")
    return model


def _seed(seed: int, step: int) -> int:
    return int(np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)[0]) >> 1


def _noise(latents: Tensor, random: torch.Generator) -> Tensor:
    return torch.randn(latents.shape, generator=random).to(latents)


def _like(values: Tensor, other: Tensor) -> Tensor:
    """[B] with as many axes as `other` has."""
    return values.reshape(-1, *(1,) * (other.ndim - 1)).to(other)


def _dtype(model: nn.Module) -> torch.dtype:
    """Of the base: adapters are float32."""
    return next(p.dtype for n, p in model.named_parameters() if ".lora_" not in n and p.is_floating_point())


def _cast(conditions: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    dtype = _dtype(model)
    # Positions and cameras keep their precision.
    exact = ("txt_ids", "img_ids", "added_time_ids")
    return {
        key: value.to(dtype) if value.is_floating_point() and key not in exact else value
        for key, value in conditions.items()
    }


def _squares(made: Tensor, target: Tensor) -> Tensor:
    return (made.float() - target.float()).square().flatten(1).mean(dim=1)
