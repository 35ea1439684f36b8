"""Train the small network of heads: `python -m tests.oracles.train_portrait [--minutes 8] [--steps 4500]`.

Goes on from out/portrait_training.safetensors where there is one, so that it can be done in pieces; at the last step
the running mean of the weights is written to tests/oracles/data. The pictures are drawn once and kept beside it.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from backend.diffusion.views import view_weights
from tests.oracles.portrait_heads import STYLES, colours, draw_traits, make_head, over_ground, picture
from tests.oracles.portrait_model import SIZE_PX, encode, sd_schedule
from tests.oracles.portrait_network import WEIGHTS, Network, angle

ROOT = Path(__file__).resolve().parents[2]
KEPT = ROOT / "out" / "portrait_training.safetensors"
PICTURES_FILE = ROOT / "out" / "portrait_pictures.safetensors"
PEOPLE, PICTURES, PEOPLE_SEED = 320, 24, 4000
FACE_BIAS = 0.5
BATCH, RATE, MEAN, STEPS = 32, 1.5e-3, 0.998, 4500


def draw_data(people: int = PEOPLE, pictures: int = PICTURES) -> dict[str, Tensor]:
    """Latents [P, K, S, 4, 16, 16] (float16) of people from random sides, covers, traits and azimuths; every fourth
    picture is a front."""
    rng = np.random.default_rng(PEOPLE_SEED)
    traits = draw_traits(people, PEOPLE_SEED)
    latents, covers, azimuths = [], [], np.zeros((people, pictures))
    for p, row in enumerate(traits):
        head = make_head(row)
        painted = np.concatenate([colours(head, style) for style in STYLES], 1)
        for k in range(pictures):
            azimuths[p, k] = rng.normal(0, 18) if k % 4 == 0 else rng.uniform(-180, 180)
            straight, cover = picture(head, painted, azimuths[p, k], rng.uniform(-4, 16), SIZE_PX)
            shown = over_ground(straight.reshape(len(STYLES), 3, SIZE_PX, SIZE_PX), cover)
            latents.append(encode(torch.from_numpy(shown)).half())
            covers.append(torch.nn.functional.avg_pool2d(torch.from_numpy(cover)[None], 4).half())
    shape = (people, pictures)
    return {
        "latents": torch.stack(latents).unflatten(0, shape),
        "covers": torch.stack(covers).unflatten(0, shape),
        "traits": torch.from_numpy(traits).float(),
        "azimuths": torch.from_numpy(azimuths).float(),
    }


def draw_batch(data: dict[str, Tensor], count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Latents [B, 4, 16, 16] and the words [B, W] they are shown under."""

    def rand(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    people, pictures, styles = data["latents"].shape[:3]
    person = (rand(count) * people).long()
    style = (rand(count) * styles).long()
    front = rand(count) < FACE_BIAS
    shown = torch.where(front, 4 * (rand(count) * (pictures // 4)).long(), (rand(count) * pictures).long())
    latents, cover = data["latents"][person, shown, style].float(), data["covers"][person, shown].float()
    said = torch.where(front, 360 * rand(count) - 180, data["azimuths"][person, shown])
    words = torch.nn.functional.one_hot(style, styles).float()
    sides = view_weights(said, torch.zeros(count))
    trust = torch.where(rand(count) < 0.6, torch.ones(count), rand(count))
    other = torch.where(rand(count) < trust, person, (rand(count) * people).long())
    identity = torch.cat([data["traits"][other], trust[:, None]], 1)
    drop = rand(count, 3) < torch.tensor([0.25, 0.2, 0.3])
    words, sides, identity = (
        part * ~gone[:, None] for part, gone in zip((words, sides, identity), drop.T, strict=True)
    )
    return varied(latents, cover, generator), torch.cat([words, sides, identity], 1)


def varied(latents: Tensor, cover: Tensor, generator: torch.Generator) -> Tensor:
    """Pictures of one style differ in exposure, contrast, saturation and tint."""
    chance = torch.randn(len(latents), 8, generator=generator)
    gains = torch.exp(chance[:, :4] * torch.tensor([0.18, 0.0, 0.0, 0.0]))
    gains[:, 1:3] = torch.exp(0.3 * chance[:, 1:2])
    gains[:, 3] = gains[:, 0]
    offsets = chance[:, 4:] * torch.tensor([0.35, 0.25, 0.25, 0.0])
    return gains[:, :, None, None] * latents + offsets[:, :, None, None] * cover


def train(minutes: float, steps: int) -> bool:
    """Go on training.

    Returns:
        Whether the last step is done.
    """
    torch.manual_seed(0)
    network, schedule = Network(), sd_schedule()
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=1e-3)
    means = {name: part.clone() for name, part in network.state_dict().items()}
    began, losses = time.monotonic(), []
    done = _take_up(network, optimizer, means)
    if not PICTURES_FILE.exists():
        PICTURES_FILE.parent.mkdir(parents=True, exist_ok=True)
        save_file(draw_data(), PICTURES_FILE)
    data = load_file(PICTURES_FILE)
    print(f"pictures after {time.monotonic() - began:.0f} s, goes on at step {done}", flush=True)
    while done < steps and time.monotonic() - began < 60 * minutes:
        generator = torch.Generator().manual_seed(10_000 + done)
        latents, words = draw_batch(data, BATCH, generator)
        index = (torch.rand(BATCH, generator=generator) * schedule.steps).long()
        a, s = schedule.alphas[index].float(), schedule.sigmas[index].float()
        noise = torch.randn(latents.shape, generator=generator)
        a4, s4 = a[:, None, None, None], s[:, None, None, None]
        predicted = network(a4 * latents + s4 * noise, angle(a, s), words)
        loss = (predicted - (a4 * noise - s4 * latents)).square().mean()
        rate = RATE * min(1.0, (done + 1) / 200) * (0.5 + 0.5 * np.cos(np.pi * done / steps))
        optimizer.param_groups[0]["lr"] = float(rate) + 1e-5
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        done += 1
        keep = min(MEAN, done / (done + 10))
        with torch.no_grad():
            for name, part in network.state_dict().items():
                means[name].lerp_(part, 1 - keep)
        losses.append(float(loss.detach()))
        if done % 250 == 0:
            print(f"step {done}, loss {np.mean(losses[-250:]):.4f}, {time.monotonic() - began:.0f} s", flush=True)
    _keep(network, optimizer, means, done)
    if done >= steps:
        save_file({name: part.half().contiguous() for name, part in means.items()}, WEIGHTS)
    return done >= steps


def _keep(network: Network, optimizer: torch.optim.Optimizer, means: dict[str, Tensor], done: int) -> None:
    """Everything that the next piece needs, as one file of tensors."""
    kept = {f"network.{name}": part for name, part in network.state_dict().items()}
    kept |= {f"mean.{name}": part for name, part in means.items()}
    for name, part in network.named_parameters():
        kept |= {f"adam.{name}.{key}": value.clone() for key, value in optimizer.state[part].items()}
    save_file({**kept, "done": torch.tensor(done)}, KEPT)


def _take_up(network: Network, optimizer: torch.optim.Optimizer, means: dict[str, Tensor]) -> int:
    """The inverse of `_keep`; 0 without a file, else the steps done."""
    if not KEPT.exists():
        return 0
    kept = load_file(KEPT)
    network.load_state_dict({name[8:]: part for name, part in kept.items() if name.startswith("network.")})
    for name in means:
        means[name] = kept[f"mean.{name}"]
    for name, part in network.named_parameters():
        optimizer.state[part] = {key: kept[f"adam.{name}.{key}"] for key in ("step", "exp_avg", "exp_avg_sq")}
    return int(kept["done"])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=8.0, help="stop after that long")
    parser.add_argument("--steps", type=int, default=STEPS, help="of the whole training")
    given = parser.parse_args()
    print("done" if train(given.minutes, given.steps) else "not yet: run it again")
