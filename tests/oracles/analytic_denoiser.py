"""A diffusion model whose data are known: a Gaussian or a mixture of Gaussians in latent space, with exact scores.

If z_0 is drawn from sum_k w_k N(m_k, S_k) and z_t = a z_0 + s eps, then z_t is drawn from sum_k w_k N(a m_k, C_k) with
C_k = a^2 S_k + s^2 I, and the best prediction of eps is -s times the gradient of log p(z_t). No network, no training
and no approximation: what guidance computes with it can be held to closed forms.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from backend.diffusion.interfaces import Conditions, NoiseSchedule, Source


@dataclass(frozen=True)
class Mixture:
    """Gaussians over whole latents, flattened.

    Attributes:
        weights: float64 [K], sum 1.
        means: float64 [K, D].
        covariances: float64 [K, D, D], positive definite or zero.
    """

    weights: Tensor
    means: Tensor
    covariances: Tensor

    def log_density(self, noisy: Tensor, alpha: float, sigma: float) -> Tensor:
        """log p(z_t) of `noisy` [B, D], up to nothing: normalised. [B]."""
        return torch.logsumexp(self._joint(noisy, alpha, sigma)[0], dim=1)

    def noise(self, noisy: Tensor, alpha: float, sigma: float) -> Tensor:
        """E[eps | z_t], [B, D], for `noisy` [B, D] in float64."""
        logs, whitened = self._joint(noisy, alpha, sigma)
        return sigma * (torch.softmax(logs, dim=1)[..., None] * whitened).sum(1)

    def _joint(self, noisy: Tensor, alpha: float, sigma: float) -> tuple[Tensor, Tensor]:
        """Log of weight times density [B, K], and C_k^-1 (z_t - a m_k) [B, K, D]."""
        size = noisy.shape[1]
        covariances = alpha**2 * self.covariances + sigma**2 * torch.eye(size, dtype=torch.float64)
        residual = noisy[:, None, :] - alpha * self.means
        whitened = torch.linalg.solve(covariances, residual[..., None])[..., 0]
        squares = (residual * whitened).sum(-1)
        constant = torch.logdet(covariances) + size * torch.log(torch.tensor(2 * torch.pi, dtype=torch.float64))
        return self.weights.log() - 0.5 * (squares + constant), whitened


def gaussian(mean: Tensor, covariance: Tensor) -> Mixture:
    """One Gaussian: mean [D], covariance [D, D]."""
    return Mixture(torch.ones(1, dtype=torch.float64), mean.double()[None], covariance.double()[None])


def cosine_schedule(steps: int = 1000) -> NoiseSchedule:
    """alpha = cos, sigma = sin of the same angle, without either end."""
    angles = torch.linspace(0.02, 1.55, steps, dtype=torch.float64)
    return NoiseSchedule(angles.cos(), angles.sin(), "epsilon")


class AnalyticDenoiser:
    """A `Denoiser` of known data. Pictures become latents by averaging blocks and mixing colours, all linear.

    A condition names its data: `Conditions.text[:, 0, 0]` is the index of the mixture, so that the unconditional
    prediction is one of the mixtures too.
    """

    def __init__(
        self,
        mixtures: tuple[Mixture, ...],
        shape: tuple[int, int, int],
        *,
        block_px: int = 2,
        schedule: NoiseSchedule | None = None,
        seed: int = 0,
    ) -> None:
        """Latents have `shape` (C, h, w); a picture has `block_px` times as many pixels along each side."""
        generator = torch.Generator().manual_seed(seed)
        self.mixtures = mixtures
        self.shape = shape
        self.block_px = block_px
        self.mixing = torch.randn(shape[0], 3, generator=generator, dtype=torch.float64)
        self.offset = torch.randn(shape[0], generator=generator, dtype=torch.float64)
        self._schedule = schedule or cosine_schedule()
        self.calls = 0

    @property
    def sources(self) -> tuple[Source, ...]:
        return (Source("analytic data", "", "CC0-1.0", True),)

    @property
    def schedule(self) -> NoiseSchedule:
        return self._schedule

    def encode(self, images: Tensor) -> Tensor:
        pooled = torch.nn.functional.avg_pool2d(images.double(), self.block_px)
        return torch.einsum("ck,bkhw->bchw", self.mixing, pooled) + self.offset[:, None, None]

    def decode(self, latents: Tensor) -> Tensor:
        colours = torch.einsum("kc,bchw->bkhw", torch.linalg.pinv(self.mixing), latents - self.offset[:, None, None])
        return colours.repeat_interleave(self.block_px, 2).repeat_interleave(self.block_px, 3)

    def predict(self, noisy: Tensor, timesteps: Tensor, conditions: Conditions) -> Tensor:
        self.calls += 1
        names = conditions.text[:, 0, 0].round().long().tolist()
        rows = []
        for row, step, name in zip(noisy.detach().double(), timesteps.tolist(), names, strict=True):
            alpha, sigma = float(self._schedule.alphas[step]), float(self._schedule.sigmas[step])
            rows.append(self.mixtures[name].noise(row.reshape(1, -1), alpha, sigma).reshape(self.shape))
        return torch.stack(rows)

    def named(self, index: int, batch: int) -> Conditions:
        """The condition that asks for the mixture `index`, for a batch."""
        return Conditions(torch.full((batch, 1, 1), float(index), dtype=torch.float64))
