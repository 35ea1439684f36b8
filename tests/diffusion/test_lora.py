"""Adapters: they learn, they come back from the disk unchanged, and what they do not touch stays as it is."""

from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from backend.context import Context
from backend.diffusion import lora
from backend.diffusion.interfaces import NoiseSchedule, Source
from backend.errors import Cancelled, UserError
from backend.step_checkpoints import StepCheckpoints
from tests.diffusion.tiny_video import StopAfter, one_thread, randomised

SETTINGS = lora.LoraSettings(rank=4, steps=6, learning_rate=2e-3, warmup=1, weight_decay=0.0)
pytestmark = pytest.mark.usefixtures("one_thread")
assert one_thread


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def image_model(seed: int = 1) -> tuple[Any, lora.Objective, list[lora.Example], Callable[[Any], torch.Tensor]]:
    from diffusers import UNet2DConditionModel

    model = UNet2DConditionModel(
        block_out_channels=(32, 64),
        layers_per_block=1,
        norm_num_groups=8,
        sample_size=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=4,
    )
    alphas = torch.linspace(0.9999, 0.05, 1000).sqrt()
    objective = lora.NoiseObjective(NoiseSchedule(alphas, (1 - alphas**2).sqrt(), "epsilon"))
    examples = [lora.Example(random(4, 8, 8, seed=k), {"encoder_hidden_states": random(3, 32, seed=9)}) for k in (1, 2)]
    return (
        frozen(model, seed),
        objective,
        examples,
        lambda m: m(random(1, 4, 8, 8, seed=3), torch.tensor([500]), random(1, 3, 32, seed=4)).sample,
    )


def video_model(seed: int = 1) -> tuple[Any, lora.Objective, list[lora.Example], Callable[[Any], torch.Tensor]]:
    from backend.diffusion.orbit_network import OrbitUNet

    model = OrbitUNet(
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
        cross_attention_dim=32,
        num_attention_heads=(2, 4),
        projection_class_embeddings_input_dim=160,
        addition_time_embed_dim=32,
    )
    conditions = {
        "image_latents": random(4, 8, 8, seed=5),
        "encoder_hidden_states": random(1, 32, seed=6),
        "added_time_ids": random(3, 3, seed=7),
    }
    views = random(1, 3, 3, seed=7)
    return (
        frozen(model, seed),
        lora.VideoObjective(),
        [lora.Example(random(3, 4, 8, 8, seed=1), conditions)],
        lambda m: m(random(1, 3, 8, 8, 8, seed=3), torch.tensor([0.1]), random(1, 1, 32, seed=4), views).sample,
    )


def transformer_model(seed: int = 1) -> tuple[Any, lora.Objective, list[lora.Example], Callable[[Any], torch.Tensor]]:
    from diffusers import Flux2Transformer2DModel

    model = Flux2Transformer2DModel(
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
    ids = torch.cartesian_prod(torch.arange(1), torch.arange(2), torch.arange(2), torch.arange(1)).float()
    beside = ids + torch.tensor([10.0, 0, 0, 0])
    conditions = {
        "encoder_hidden_states": random(5, 48, seed=2),
        "txt_ids": torch.cartesian_prod(*(torch.arange(n) for n in (1, 1, 1, 5))).float(),
        "img_ids": torch.cat([ids, beside]),
        "condition_latents": random(4, 16, seed=8),
    }

    def call(m: Any) -> torch.Tensor:
        given = {key: value[None] for key, value in conditions.items() if key != "condition_latents"}
        sample = torch.cat([random(1, 4, 16, seed=3), conditions["condition_latents"][None]], 1)
        return m(hidden_states=sample, timestep=torch.tensor([0.5]), return_dict=False, **given)[0]

    return frozen(model, seed), lora.FlowObjective(), [lora.Example(random(4, 16, seed=1), conditions)], call


def frozen(model: torch.nn.Module, seed: int) -> Any:
    return randomised(model, seed).requires_grad_(False)


MODELS = {"image": image_model, "video": video_model, "transformer": transformer_model}
ALL = pytest.mark.parametrize("kind", list(MODELS))


def shown(call: Callable[[Any], torch.Tensor], model: Any) -> torch.Tensor:
    with torch.no_grad():
        return call(model)


def mean_loss(model: Any, objective: lora.Objective, examples: list[lora.Example], draws: int = 12) -> float:
    """Over the same noise for every model."""
    losses = []
    with torch.no_grad():
        for k in range(draws):
            latents, conditions = lora._batch(examples, 2, torch.Generator().manual_seed(k), model)
            losses.append(objective(model, latents, conditions, torch.Generator().manual_seed(k)).mean())
    return float(torch.stack(losses).mean())


@ALL
def test_training_lowers_the_loss_and_touches_nothing_else(kind: str) -> None:
    model, objective, examples, _ = MODELS[kind]()
    before = {name: p.clone() for name, p in model.named_parameters()}
    settings = dataclasses.replace(SETTINGS, steps=16)
    if kind == "transformer":
        settings = dataclasses.replace(settings, steps=60, learning_rate=2e-2, targets=lora.FLUX2)
    lora.add_adapter(model, "style", settings)
    first = mean_loss(model, objective, examples)
    losses = lora.train(model, "style", objective, examples, settings, Context.quiet())
    assert losses.shape == (settings.steps,) and np.isfinite(losses).all()
    assert mean_loss(model, objective, examples) < 0.97 * first
    after = {name.replace(".base_layer", ""): p for name, p in model.named_parameters() if ".lora_" not in name}
    assert set(after) == set(before) and all(torch.equal(after[name], before[name]) for name in before)
    assert not any(p.requires_grad for p in model.parameters())


@ALL
def test_an_adapter_comes_back_from_the_disk_unchanged(kind: str, tmp_path: Path) -> None:
    model, objective, examples, call = MODELS[kind]()
    base = shown(call, model)
    lora.add_adapter(model, "style", SETTINGS)
    assert torch.equal(shown(call, model), base)  # a new one does nothing
    lora.train(model, "style", objective, examples, SETTINGS, Context.quiet())
    trained = shown(call, model)
    assert (trained - base).abs().max() > 1e-4
    source = Source("SV3D", "abc", "sv3d-nc", False)
    lora.save_adapter(model, "style", tmp_path / "a.safetensors", (source,))
    other, _, _, _ = MODELS[kind]()
    lora.load_adapter(other, tmp_path / "a.safetensors", "again")
    assert torch.equal(shown(call, other), trained)
    lora.use(other, {"again": 0.0})
    assert torch.equal(shown(call, other), base)
    lora.use(other, {"again": 0.5})
    assert not torch.equal(shown(call, other), trained) and not torch.equal(shown(call, other), base)
    lora.use(other, {})
    assert torch.equal(shown(call, other), base)
    lora.remove_adapter(other, "again")
    assert lora.adapters(other) == () and (shown(call, other) - base).abs().max() < 1e-5
    from safetensors import safe_open

    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        assert "non-commercial" in file.metadata()["sources"]


def test_a_scale_other_than_one_comes_back_too(tmp_path: Path) -> None:
    model, objective, examples, call = image_model()
    settings = dataclasses.replace(SETTINGS, alpha=12)
    lora.add_adapter(model, "style", settings)
    lora.train(model, "style", objective, examples, settings, Context.quiet())
    lora.save_adapter(model, "style", tmp_path / "a.safetensors")
    other, _, _, _ = image_model()
    lora.load_adapter(other, tmp_path / "a.safetensors", "style")
    assert torch.equal(shown(call, other), shown(call, model))


@ALL
def test_two_adapters_are_independent(kind: str) -> None:
    model, objective, examples, call = MODELS[kind]()
    base = shown(call, model)
    lora.add_adapter(model, "one", SETTINGS)
    lora.train(model, "one", objective, examples, SETTINGS, Context.quiet())
    one = shown(call, model)
    kept = {path: p.clone() for path, p in lora._parameters(model, "one")}
    lora.add_adapter(model, "two", dataclasses.replace(SETTINGS, rank=2), seed=3)
    lora.train(model, "two", objective, examples, dataclasses.replace(SETTINGS, rank=2), Context.quiet(seed=5))
    two = shown(call, model)
    assert all(torch.equal(p, kept[path]) for path, p in lora._parameters(model, "one"))
    assert lora.adapters(model) == ("one", "two") and not torch.equal(one, two)
    lora.use(model, {"one": 1.0})
    assert torch.equal(shown(call, model), one)
    lora.use(model, {"one": 1.0, "two": 0.0})
    assert torch.equal(shown(call, model), one)
    lora.use(model, {"one": 1.0, "two": 1.0})
    both = shown(call, model)
    assert not torch.equal(both, one) and not torch.equal(both, two)
    lora.remove_adapter(model, "one")
    lora.use(model, {"two": 1.0})
    assert torch.equal(shown(call, model), two) and not torch.equal(two, base)


def test_a_training_that_was_interrupted_goes_on_as_if_nothing_had_been(tmp_path: Path) -> None:
    def train(context: Context) -> torch.Tensor:
        model, objective, examples, call = image_model()
        lora.add_adapter(model, "style", settings)
        lora.train(model, "style", objective, examples, settings, context, prior=examples[:1])
        return shown(call, model)

    settings = dataclasses.replace(SETTINGS, steps=8, warmup=5, weight_decay=1e-2)
    whole = train(Context.quiet())
    keeper = StepCheckpoints(tmp_path / "keep", interval_s=0.0, clock=lambda: 0.0)
    stop = StopAfter(5)
    with pytest.raises(Cancelled):
        train(dataclasses.replace(stop.context, checkpoint=keeper))
    continued = keeper.load("lora-style", _key(settings))
    assert continued is not None and 0 < continued.step < 8
    assert torch.equal(train(dataclasses.replace(Context.quiet(), checkpoint=keeper)), whole)
    # Another training does not take over what this one left.
    assert keeper.load("lora-style", _key(dataclasses.replace(settings, rank=3))) is None


def _key(settings: lora.LoraSettings) -> str:
    return f"{settings}; UNet2DConditionModel; style; 2+1 examples; seed 0"


def test_a_cancelled_training_stops_within_a_step() -> None:
    model, objective, examples, _ = image_model()
    lora.add_adapter(model, "style", SETTINGS)
    stop = StopAfter(2)
    with pytest.raises(Cancelled):
        settings = dataclasses.replace(SETTINGS, steps=100)
        lora.train(model, "style", objective, examples, settings, stop.context)
    assert stop.calls == 2
    assert not any(p.requires_grad for p in model.parameters())


@ALL
def test_checkpointing_costs_memory_only(kind: str) -> None:
    """The same adapter comes out, whether activations are kept or computed again."""
    results = []
    for checkpointing in (True, False):
        model, objective, examples, call = MODELS[kind]()
        settings = dataclasses.replace(SETTINGS, steps=2, checkpointing=checkpointing)
        lora.add_adapter(model, "style", settings)
        lora.train(model, "style", objective, examples, settings, Context.quiet())
        results.append(shown(call, model))
        assert not getattr(model, "is_gradient_checkpointing", False)
    assert torch.allclose(results[0], results[1], atol=1e-6)


def test_the_prior_keeps_the_model_from_forgetting() -> None:
    """What the base model makes of other words changes less when it is part of the training."""
    drift = {}
    for weight in (0.0, 1.0):
        model, objective, examples, _ = image_model()
        words = random(1, 3, 32, seed=20)
        noisy, times = random(6, 4, 8, 8, seed=21), torch.arange(100, 700, 100)
        with torch.no_grad():
            before = model(noisy, times, words.expand(6, -1, -1)).sample
        prior = [lora.Example(random(4, 8, 8, seed=k), {"encoder_hidden_states": words[0]}) for k in range(30, 36)]
        settings = dataclasses.replace(SETTINGS, steps=14, prior_weight=weight)
        one = [dataclasses.replace(examples[0], conditions=examples[0].conditions)]
        lora.add_adapter(model, "style", settings)
        teacher = _Teacher(image_model()[0], objective)
        lora.train(model, "style", teacher, one, settings, Context.quiet(), prior)
        with torch.no_grad():
            drift[weight] = float((model(noisy, times, words.expand(6, -1, -1)).sample - before).square().mean())
    assert drift[1.0] < 0.5 * drift[0.0]


class _Teacher:
    """The prior's target is what the base model itself says, as when its own pictures are learned again."""

    def __init__(self, base: Any, objective: lora.Objective) -> None:
        self.base, self.objective = base, objective

    def __call__(self, model: Any, latents: torch.Tensor, conditions: Any, generator: torch.Generator) -> torch.Tensor:
        if torch.equal(conditions["encoder_hidden_states"][0], random(3, 32, seed=9)):
            return self.objective(model, latents, conditions, generator)
        times = torch.randint(1000, (len(latents),), generator=generator)
        with torch.no_grad():
            target = self.base(latents, times, conditions["encoder_hidden_states"]).sample
        made = model(latents, times, conditions["encoder_hidden_states"]).sample
        return (made - target).square().flatten(1).mean(1)


class Evil:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return (exec, ("raise SystemExit('opened')",))


def test_a_pickled_adapter_is_never_opened(tmp_path: Path) -> None:
    model, _, _, _ = image_model()
    for name in ("a.bin", "a.pt", "a.ckpt", "a.safetensors"):
        (tmp_path / name).write_bytes(pickle.dumps(Evil()))
        with pytest.raises(UserError):
            lora.load_adapter(model, tmp_path / name, "evil")
    (tmp_path / "zip.safetensors").write_bytes(b"PK\x03\x04" + b"\0" * 200)
    with pytest.raises(UserError):
        lora.load_adapter(model, tmp_path / "zip.safetensors", "evil")
    assert lora.adapters(model) == ()


def test_an_adapter_of_another_model_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    model, objective, examples, _ = image_model()
    lora.add_adapter(model, "style", SETTINGS)
    lora.train(model, "style", objective, examples, SETTINGS, Context.quiet())
    lora.save_adapter(model, "style", tmp_path / "a.safetensors")
    tensors = load_file(tmp_path / "a.safetensors")
    fresh, _, _, _ = image_model()
    name = next(key for key in tensors if "lora_A" in key)
    wrong = {
        "place": {f"elsewhere.{key}": value for key, value in tensors.items()},
        "shape": tensors | {name: torch.zeros(4, 7)},
        "half": {key: value for key, value in tensors.items() if key != name},
    }
    for kind, content in wrong.items():
        save_file(content, tmp_path / f"{kind}.safetensors")
        with pytest.raises(UserError):
            lora.load_adapter(fresh, tmp_path / f"{kind}.safetensors", "style")
    save_file({f"unet.{key}": value for key, value in tensors.items()}, tmp_path / "named.safetensors")
    lora.load_adapter(fresh, tmp_path / "named.safetensors", "style")
    other, _, _, _ = video_model()
    with pytest.raises(UserError, match="another model"):
        lora.load_adapter(other, tmp_path / "a.safetensors", "style")
    with pytest.raises(UserError, match="already"):
        lora.add_adapter(model, "style", SETTINGS)
    with pytest.raises(UserError, match="no layer"):
        lora.add_adapter(model, "none", dataclasses.replace(SETTINGS, targets=("nothing",)))
    with pytest.raises(UserError, match="there is no adapter"):
        lora.use(model, {"other": 1.0})
    with pytest.raises(UserError, match="at least one example"):
        lora.train(model, "style", objective, [], SETTINGS, Context.quiet())
