"""Mean and covariance of latents' channels, and the map that carries one pair to another at the least cost.

What Style Aligned Sampling does to an estimate: its channel statistics become those of a style. Between Gaussians the
optimal-transport (Monge) map is linear, A = G^-1/2 (G^1/2 S G^1/2)^1/2 G^-1/2 for covariances G to S, and it moves the
values by as little as any map with the same result can. All matrices are C by C with C = 4; they are computed by
iterations of products only, since an eigendecomposition on a GPU waits for the host.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

ITERATIONS = 40
"""Of Newton and Schulz. Each multiplies a small eigenvalue by 2.25 until it nears 1: 40 reach 1e-12 of the largest."""

REGULARISER = 1e-3
"""Added to both covariances; the map's result is then off by about as much."""

GAIN = 4.0
"""Largest factor of the map: a nearly flat estimate would be amplified several hundred times otherwise."""


@dataclass(frozen=True)
class Moments:
    """Statistics of latents' channels over all places that count.

    Attributes:
        mean: [C].
        covariance: [C, C].
    """

    mean: Tensor
    covariance: Tensor

    def to(self, other: Tensor) -> Moments:
        """On the device of another tensor, in the precision of matrices there."""
        dtype = precise(other)
        return Moments(self.mean.to(other.device, dtype), self.covariance.to(other.device, dtype))


def precise(tensor: Tensor) -> torch.dtype:
    """float64 where the device has it."""
    return torch.float32 if tensor.device.type == "mps" else torch.float64


def moments(latents: Tensor, mask: Tensor | None = None) -> Moments:
    """Statistics pooled over all pictures and places.

    Args:
        latents: [B, C, h, w].
        mask: [B, 1, h, w] weights 0..1 of places; None counts all alike. Without any weight both are zero.

    Returns:
        In float64 where the device has it.
    """
    values = latents.detach().to(precise(latents))
    weights = torch.ones_like(values[:, :1]) if mask is None else mask.detach().to(values)
    total = weights.sum().clamp_min(1e-12)
    mean = (weights * values).sum((0, 2, 3)) / total
    centred = values - mean[:, None, None]
    covariance = torch.einsum("bchw,bdhw->cd", weights * centred, centred) / total
    return Moments(mean, covariance)


def transport(origin: Moments, target: Moments, *, regulariser: float = REGULARISER, gain: float = GAIN) -> Tensor:
    """The linear part A of the optimal-transport map; the whole map is x -> A (x - origin.mean) + target.mean.

    Args:
        origin: Statistics of what is mapped.
        target: Statistics that it shall have.
        regulariser: Added to both diagonals, >= 0.
        gain: Largest eigenvalue of A; inf for no cap.

    Returns:
        [C, C], symmetric, positive.
    """
    eye = torch.eye(len(origin.mean), dtype=origin.covariance.dtype, device=origin.covariance.device)
    root, inverse = square_roots(origin.covariance + regulariser * eye)
    middle, _ = square_roots(root @ (target.covariance + regulariser * eye) @ root)
    matrix = inverse @ middle @ inverse
    matrix = 0.5 * (matrix + matrix.T)
    if math.isinf(gain):
        return matrix
    # min(a, g) = (a + g - |a - g|) / 2 of every eigenvalue at once.
    excess = matrix - gain * eye
    return 0.5 * (matrix + gain * eye - excess @ sign(excess))


def apply(matrix: Tensor, origin: Moments, target: Moments, latents: Tensor) -> Tensor:
    """The whole map, A (x - origin.mean) + target.mean, for the channels at every place of latents [B, C, h, w]."""
    centred = latents.to(matrix.dtype) - origin.mean[:, None, None]
    moved = torch.einsum("dc,bchw->bdhw", matrix, centred) + target.mean[:, None, None]
    return moved.to(latents.dtype)


def square_roots(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Square root and its inverse of a symmetric positive matrix [C, C], by Newton and Schulz's coupled iteration."""
    eye = torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
    scale = torch.linalg.matrix_norm(matrix).clamp_min(1e-30)
    root, inverse = matrix / scale, eye
    for _ in range(ITERATIONS):
        step = 1.5 * eye - 0.5 * (inverse @ root)
        root, inverse = root @ step, step @ inverse
    return root * scale.sqrt(), inverse / scale.sqrt()


def sign(matrix: Tensor) -> Tensor:
    """Matrix sign of a symmetric [C, C]: every eigenvalue becomes -1 or 1."""
    result = matrix / torch.linalg.matrix_norm(matrix).clamp_min(1e-30)
    for _ in range(ITERATIONS):
        result = 1.5 * result - 0.5 * (result @ result @ result)
    return result
