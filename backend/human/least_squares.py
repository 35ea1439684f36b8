"""Levenberg-Marquardt for a batch of small, independent problems with automatic derivatives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.func import jacfwd, vmap

Residuals = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class SolveSettings:
    """How long and how carefully to iterate.

    Attributes:
        iterations: Upper bound of steps.
        damping: First Marquardt damping (relative to the diagonal of J^T J).
        tolerance: Stop when every problem's relative decrease stays below this for two steps.
    """

    iterations: int = 20
    damping: float = 1e-2
    tolerance: float = 1e-4


def minimise(
    residuals: Residuals,
    start: torch.Tensor,
    switches: torch.Tensor,
    settings: SolveSettings,
    on_step: Callable[[int], None] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Minimise half the sum of squared residuals for B problems at once.

    Robust kernels are expressed inside `residuals` (r -> sqrt(rho(r^2))), so the gradient is exact.

    Args:
        residuals: Maps (parameters [P], switches [S]) to residuals [R], pure and differentiable in forward mode.
        start: [B, P] first parameters.
        switches: [B, S] per-problem constants handed to `residuals`.
        settings: Bounds of the iteration.
        on_step: Called with the step's number before each step (progress, cancelling).

    Returns:
        Parameters [B, P] and costs [B].
    """
    both = vmap(lambda x, s: _value_and_jacobian(residuals, x, s))
    value = vmap(residuals)
    x = start.clone()
    damping = torch.full((len(x),), settings.damping, dtype=x.dtype)
    quiet = 0
    r, jacobian = both(x, switches)
    cost = 0.5 * r.square().sum(1)
    for step in range(settings.iterations):
        if on_step is not None:
            on_step(step)
        gradient = torch.einsum("brp,br->bp", jacobian, r)
        hessian = torch.einsum("brp,brq->bpq", jacobian, jacobian)
        diagonal = torch.diagonal(hessian, dim1=1, dim2=2).clamp(min=1e-9)
        move = torch.linalg.solve(hessian + torch.diag_embed(damping[:, None] * diagonal), gradient)
        trial = x - move
        trial_cost = 0.5 * value(trial, switches).square().sum(1)
        better = trial_cost < cost  # a NaN compares false and is refused
        gain = torch.where(better, (cost - trial_cost) / cost.clamp(min=1e-12), torch.zeros_like(cost))
        x = torch.where(better[:, None], trial, x)
        damping = torch.where(better, damping * 0.3, damping * 6.0).clamp(1e-7, 1e6)
        quiet = quiet + 1 if bool((gain < settings.tolerance).all()) else 0
        if quiet >= 2:
            break
        if bool(better.any()):
            r, jacobian = both(x, switches)
            cost = 0.5 * r.square().sum(1)
    return x, cost


def _value_and_jacobian(
    residuals: Residuals, x: torch.Tensor, switches: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Residuals [R] and their Jacobian [R, P]."""

    def twice(y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        r = residuals(y, switches)
        return r, r

    jacobian, value = jacfwd(twice, has_aux=True)(x)
    return value, jacobian
