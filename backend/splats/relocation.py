"""Densification as Markov chain Monte Carlo: dead Gaussians move onto living ones, and positions get noise.

"3D Gaussian Splatting as Markov Chain Monte Carlo" (arXiv:2404.09591), with the constants of gsplat 1.5.3's
`MCMCStrategy`, whose relocation is a CUDA kernel only; here it is torch in float64. Adam's moments are treated as
there: the Gaussians that others move onto start at zero, those that moved keep theirs, which is what parts the twins.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from backend.splats.cloud_losses import sparsity
from backend.splats.cloud_parameters import NAMES, CloudParameters
from backend.splats.densify import Densified, check_budget, normals, rotation_matrices

MOST_COPIES = 51
"""gsplat's n_max: so many Gaussians at one place are counted as this many."""

NOISE_STEEPNESS = 100.0
NOISE_OPACITY = 0.005
"""Noise fades between transparent and opaque by a sigmoid of this steepness around this opacity (paper, eq. 10;
gsplat writes the same as 1 - 0.995)."""

_BINOMIALS = torch.tensor(
    [[float(math.comb(n, k)) for k in range(1, MOST_COPIES + 1)] for n in range(MOST_COPIES + 1)], dtype=torch.float64
)


def relocated(opacities: Tensor, scales: Tensor, copies: Tensor) -> tuple[Tensor, Tensor]:
    """Opacity and scales that n Gaussians at one place must have to look like the one they replace (paper, eq. 9).

    At the centre the n together let through exactly what the one did: 1 - (1 - o')^n = o. Along a line through it the
    integral of their joint opacity equals the one's. The paper's double sum over C(i - 1, k), i = 1..n, is here the
    single sum over C(n, k) that it equals.

    Args:
        opacities: [N] of the Gaussians, 0..1, below 1.
        scales: [N, 3] standard deviations, any unit.
        copies: int [N], how many stand there afterwards, 1..`MOST_COPIES`; others are clamped.

    Returns:
        New opacities [N] and scales [N, 3], in the dtype of the inputs.
    """
    n = copies.clamp(1, MOST_COPIES)
    old = opacities.double()
    new = -torch.expm1(torch.log1p(-old) / n)
    k = torch.arange(1, MOST_COPIES + 1, dtype=torch.float64, device=new.device)
    signs = 1 - 2 * ((k - 1) % 2)
    terms = _BINOMIALS.to(new.device)[n] * signs / k.sqrt() * new[:, None] ** k
    factor = torch.where(n > 1, old / terms.sum(1), torch.ones_like(old))
    return new.to(opacities.dtype), (scales.double() * factor[:, None]).to(scales.dtype)


@dataclass(frozen=True)
class McmcSettings:
    """Defaults are gsplat 1.5.3's `MCMCStrategy`; iterations count optimiser steps from 0.

    Attributes:
        budget: Most Gaussians at any time.
        noise: Factor on the means' learning rate (metres) for the positions' noise; the covariance in square metres
            does the rest, so 5e5 fits scenes whose extent is near 1.
        start: Nothing is moved or added up to this iteration; noise is.
        stop: Nothing is moved or added from this iteration on.
        every: Iterations between two changes.
        least_opacity: Gaussians at or below it are dead and move.
        growth: Factor on the number of Gaussians per change, until the budget.
        opacity_weight: Of the mean opacity in the loss (the paper's lambda_o), so that useless ones fade and move.
        scale_weight: Of the mean scale in scene extents in the loss (the paper's lambda_Sigma).
    """

    budget: int
    noise: float = 5e5
    start: int = 500
    stop: int = 25_000
    every: int = 100
    least_opacity: float = 0.005
    growth: float = 1.05
    opacity_weight: float = 0.01
    scale_weight: float = 0.01


class McmcDensifier:
    """Relocation, addition and noise; needs no information from the rasteriser.

    For long runs: newcomers keep nearly the size of their parents and part from them slowly. On the torus of
    scripts/quality_densify.py it does not pay within 600 iterations, where clone and split gain 1 to 2 dB.
    """

    def __init__(self, settings: McmcSettings) -> None:
        """Settings as given."""
        self.settings = settings

    def before_backward(self, info: dict[str, Any]) -> None:
        """Nothing to keep."""

    def loss(self, parameters: CloudParameters) -> Tensor:
        """The paper's regulariser, which lets useless Gaussians fade so that they can move."""
        splats = parameters.activated()
        s = self.settings
        scales = splats.scales / parameters.extent_m
        return sparsity(splats.opacities, scales, s.opacity_weight, s.scale_weight)

    def step(
        self,
        parameters: CloudParameters,
        infos: Sequence[dict[str, Any]],
        iteration: int,
        generator: torch.Generator,
    ) -> Densified:
        """Move, add and disturb; see `densify.Densifier`."""
        s = self.settings
        check_budget(parameters, s.budget)
        done = Densified()
        if s.start < iteration < s.stop and iteration % s.every == 0:
            moved = self._move_dead(parameters, generator)
            done = Densified(moved=moved, cloned=self._add(parameters, generator))
        self._disturb(parameters, generator)
        return done

    @torch.no_grad()
    def _move_dead(self, parameters: CloudParameters, generator: torch.Generator) -> int:
        opacities = torch.sigmoid(parameters.params["opacities"])
        is_dead = opacities <= self.settings.least_opacity
        dead, alive = is_dead.nonzero()[:, 0], (~is_dead).nonzero()[:, 0]
        if not len(dead) or not len(alive):
            return 0
        targets = alive[_draw(opacities[alive], len(dead), generator)]
        parameters.forget_moments(self._share(parameters, targets), NAMES)
        for leaf in parameters.params.values():
            leaf[dead] = leaf[targets]
        return len(dead)

    @torch.no_grad()
    def _add(self, parameters: CloudParameters, generator: torch.Generator) -> int:
        count = len(parameters)
        new = min(self.settings.budget, int(self.settings.growth * count)) - count
        if new <= 0:
            return 0
        targets = _draw(torch.sigmoid(parameters.params["opacities"]), new, generator)
        self._share(parameters, targets)
        keep = torch.arange(count, device=targets.device)
        parameters.rearrange(keep, {name: leaf[targets] for name, leaf in parameters.params.items()})
        return new

    def _share(self, parameters: CloudParameters, targets: Tensor) -> Tensor:
        """Give the Gaussians at `targets` (with repeats: one per newcomer) the shape that each of the sharers has.

        Returns their rows, each once.
        """
        rows, counts = targets.unique(return_counts=True)
        p = parameters.params
        opacities, scales = relocated(torch.sigmoid(p["opacities"][rows]), p["scales"][rows].exp(), counts + 1)
        ceiling = 1 - torch.finfo(opacities.dtype).eps
        p["opacities"][rows] = torch.logit(opacities.clamp(self.settings.least_opacity, ceiling))
        p["scales"][rows] = scales.log()
        return rows

    @torch.no_grad()
    def _disturb(self, parameters: CloudParameters, generator: torch.Generator) -> None:
        """Move the means along their own covariance, transparent ones most."""
        splats = parameters.activated()
        rate = float(parameters.optimizers["means"].param_groups[0]["lr"])
        fade = torch.sigmoid(NOISE_STEEPNESS * (NOISE_OPACITY - splats.opacities))
        noise = normals((len(parameters), 3), generator).to(splats.means) * (fade * rate * self.settings.noise)[:, None]
        axes = rotation_matrices(splats.rotations_wxyz) * splats.scales[:, None, :]
        parameters.params["means"].add_(torch.einsum("nij,nkj,nk->ni", axes, axes, noise))

    def state_dict(self) -> dict[str, Any]:
        """Nothing lives between two steps."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to load."""


def _draw(weights: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """`count` rows drawn with replacement in proportion to weights [N] > 0.

    By the cumulated weights in float64: torch.multinomial ends at 2^24 rows and needs a generator on the device.
    """
    edges = weights.detach().double().cumsum(0)
    at = torch.rand(count, generator=generator, dtype=torch.float64).to(edges.device) * edges[-1]
    return torch.searchsorted(edges, at, right=True).clamp_max(len(weights) - 1)
