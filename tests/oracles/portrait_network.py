"""A small diffusion network trained on pictures of heads: the third kind of oracle beside the exact densities.

Nobody knows its density, as with the published models: it has learnt from a few hundred people in all styles, with
exposure and tint that vary, and generalises to people it never saw. `face_bias` of the pictures of any side were fronts
(see `portrait_model`), so that it prefers a face in every view. `python -m tests.oracles.train_portrait` makes it.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from backend.diffusion.interfaces import Conditions, NoiseSchedule, Source
from tests.oracles.portrait_heads import STYLES, TRAITS
from tests.oracles.portrait_model import decode, encode, sd_schedule

WEIGHTS = Path(__file__).with_name("data") / "portrait_network.safetensors"
WORDS = len(STYLES) + 4 + len(TRAITS) + 1
"""Style, side, identity and how far the identity is to be trusted."""

WIDTHS = (48, 80, 112)
STEP_WAVES = 32


class _Block(nn.Module):
    """Two convolutions whose middle is scaled and shifted by what is asked for."""

    def __init__(self, before: int, after: int, asked: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(before, after, 3, padding=1)
        self.second = nn.Conv2d(after, after, 3, padding=1)
        self.norms = nn.ModuleList([nn.GroupNorm(8 if before % 8 == 0 else 1, before), nn.GroupNorm(8, after)])
        self.film = nn.Linear(asked, 2 * after)
        self.past = nn.Conv2d(before, after, 1) if before != after else nn.Identity()
        nn.init.zeros_(self.second.weight)

    def forward(self, x: Tensor, asked: Tensor) -> Tensor:
        scale, shift = self.film(asked)[..., None, None].chunk(2, 1)
        hidden = self.first(functional.silu(self.norms[0](x)))
        hidden = self.norms[1](hidden) * (1 + scale) + shift
        return self.past(x) + self.second(functional.silu(hidden))


class _Look(nn.Module):
    """Self-attention over all places: both eyes shall agree."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.all, self.out = (
            nn.GroupNorm(8, width),
            nn.Conv2d(width, 3 * width, 1),
            nn.Conv2d(width, width, 1),
        )
        nn.init.zeros_(self.out.weight)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.all(self.norm(x)).flatten(2).unflatten(1, (3, 4, -1)).transpose(3, 4)
        seen = functional.scaled_dot_product_attention(parts[:, 0], parts[:, 1], parts[:, 2])
        return x + self.out(seen.transpose(2, 3).reshape(x.shape))


class Network(nn.Module):
    """Noisy latents [B, 4, 16, 16], angles of the noise [B] and words [B, `WORDS`] to v = alpha eps - sigma z_0."""

    def __init__(self) -> None:
        super().__init__()
        a, b, c = WIDTHS
        asked = 160
        self.words = nn.Sequential(
            nn.Linear(WORDS + 2 * STEP_WAVES, asked), nn.SiLU(), nn.Linear(asked, asked), nn.SiLU()
        )
        self.place = nn.Parameter(torch.zeros(1, a, 16, 16))
        self.enter, self.leave = nn.Conv2d(4, a, 3, padding=1), nn.Conv2d(a, 4, 3, padding=1)
        self.down = nn.ModuleList([_Block(a, a, asked), _Block(a, b, asked), _Block(b, b, asked)])
        self.middle = nn.ModuleList([_Block(b, c, asked), _Block(c, c, asked), _Block(c, c, asked)])
        self.look = nn.ModuleList([_Look(b), _Look(c)])
        self.up = nn.ModuleList([_Block(b + c, b, asked), _Block(b, b, asked), _Block(a + b, a, asked)])
        self.norm = nn.GroupNorm(8, a)
        nn.init.zeros_(self.leave.weight)

    def forward(self, noisy: Tensor, angles: Tensor, words: Tensor) -> Tensor:
        waves = angles[:, None] * 0.5 * 1.2 ** torch.arange(STEP_WAVES, device=angles.device)
        asked = self.words(torch.cat([words, waves.sin(), waves.cos()], 1))
        fine = self.down[0](self.enter(noisy) + self.place, asked)
        half = self.down[2](self.down[1](functional.avg_pool2d(fine, 2), asked), asked)
        half = self.look[0](half)
        low = self.middle[0](functional.avg_pool2d(half, 2), asked)
        low = self.middle[2](self.look[1](self.middle[1](low, asked)), asked)
        wide = self.up[0](torch.cat([half, functional.interpolate(low, scale_factor=2.0)], 1), asked)
        wide = self.up[1](wide, asked)
        whole = self.up[2](torch.cat([fine, functional.interpolate(wide, scale_factor=2.0)], 1), asked)
        return self.leave(functional.silu(self.norm(whole)))


def words_of(conditions: Conditions) -> Tensor:
    """What a network is told [B, `WORDS`]: the text, then the identity and its scale; zeros where nothing is said."""
    text = conditions.text[:, 0].float()
    person = torch.zeros(len(text), len(TRAITS) + 1)
    if conditions.image_tokens is not None:
        token = conditions.image_tokens[:, 0].float()
        scale = torch.as_tensor(conditions.image_scale, dtype=torch.float32).expand(len(text))[:, None]
        trust = (token[:, -1:] * scale).clamp(0, 1)
        person = torch.cat([token[:, :-1] * (trust > 0.02), trust], 1)
    return torch.cat([text, person], 1)


class LearntPortraits:
    """The network as a `Denoiser`; conditioned as `portrait_model.Portraits` is."""

    def __init__(self, path: Path = WEIGHTS) -> None:
        """Load it.

        Raises:
            FileNotFoundError: If it was not trained yet.
        """
        self._network = Network()
        self._network.load_state_dict({name: part.float() for name, part in load_file(path).items()})
        self._network.eval()
        self._schedule = sd_schedule()
        self.calls = 0

    @property
    def sources(self) -> tuple[Source, ...]:
        """Trained on our own pictures."""
        return (Source("small network of heads", "", "CC0-1.0", True),)

    @property
    def schedule(self) -> NoiseSchedule:
        """Stable Diffusion's."""
        return self._schedule

    def encode(self, images: Tensor) -> Tensor:
        """See `portrait_model.encode`."""
        return encode(images)

    def decode(self, latents: Tensor) -> Tensor:
        """See `portrait_model.decode`."""
        return decode(latents)

    @torch.no_grad()
    def predict(self, noisy: Tensor, timesteps: Tensor, conditions: Conditions) -> Tensor:
        """The noise [B, 4, 16, 16]."""
        self.calls += 1
        alphas = self._schedule.alphas[timesteps.cpu()].float()
        sigmas = self._schedule.sigmas[timesteps.cpu()].float()
        values = noisy.float()
        v = self._network(values, angle(alphas, sigmas), words_of(conditions))
        return (sigmas[:, None, None, None] * values + alphas[:, None, None, None] * v).to(noisy)


def angle(alphas: Tensor, sigmas: Tensor) -> Tensor:
    """Where a time step lies between the picture (0) and the noise (pi / 2)."""
    return torch.atan2(sigmas, alphas)
