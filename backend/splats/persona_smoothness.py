"""What a PERSONA avatar's own Gaussians are held to, whatever the frame shows: smooth, and plain on hands and mouth.

The published weights belong to SMPL-X after two subdivisions, whose face and hands are finer than its body. A Laplacian
grows with the square of the edges where a surface is bent, and a size with the edge itself: vertex by vertex the
weights are brought from that mesh to the avatar's own, so that where it is coarser it is not held stiffer.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from backend.splats.mesh_laplacian import Laplacian, cotangent_laplacian
from backend.splats.persona import PersonaAvatar, PosedPersona
from backend.splats.persona_losses import PersonaWeights
from backend.splats.persona_zones import STIFFNESS, Zone

PUBLISHED_EDGE_M = 0.0052
"""Edge of SMPL-X's body after two subdivisions, estimated from its counts and its surface."""

PUBLISHED_FINE_EDGE_M = 0.0017
"""The same of its face and hands."""

LEAST_EDGE = 0.5
"""Edges count as at least this share of the mean of their zone: a sliver must not outweigh all others."""


class Smoothness(nn.Module):
    """Operators on an avatar's mesh, made once.

    Where the zones are stiff (face, eyes, hands), and on head and feet, whose shape the template knows, a Laplacian is
    taken relative to the template's; elsewhere it is absolute, as in the released code.
    """

    stiff: Tensor
    folds: Tensor
    loose: Tensor
    sizes: Tensor
    coarse_sizes: Tensor
    body: Tensor
    counted: Tensor
    template_bend: Tensor
    hand_edges: Tensor
    hands: Tensor
    mouth: Tensor
    lips: Tensor

    def __init__(self, avatar: PersonaAvatar) -> None:
        """Take the template's mesh."""
        super().__init__()
        template = avatar.template
        fine = cotangent_laplacian(template.points_m, template.triangles)
        self.operator = _Operator(fine)
        count = int(template.coarse.max()) + 1
        self.coarse_count = count if count < len(template) else 0
        if self.coarse_count:
            coarse = cotangent_laplacian(template.points_m[:count], template.coarse)
            self.coarse_operator = _Operator(coarse)
            ratio = _edge_ratios(template.points_m[:count], _edges(template.coarse), template.zones[:count]) * 4
            sizes = ratio[:, None] ** 2 / max(float(coarse.counts.sum()), 1.0)
            self.register_buffer("coarse_sizes", torch.as_tensor(sizes, dtype=torch.float32), persistent=False)
        zones = template.zones
        edges = _edges(template.triangles)
        ratio = _edge_ratios(template.points_m, edges, zones)
        stiff = ratio**4
        for zone, factor in STIFFNESS.items():
            stiff[zones == zone] *= factor
        body = (zones == Zone.BODY).astype(float)
        loose = np.isin(zones, (Zone.HEAD, Zone.FOOT)) * ratio**4
        counted = max(float(fine.counts.sum()), 1.0)
        hands = edges[(zones[edges] == Zone.HAND).all(1)]
        for name, values in (
            ("stiff", stiff[:, None] / counted),
            ("folds", (body * ratio**4)[:, None] / counted),
            ("loose", loose[:, None] / counted),
            ("sizes", ratio[:, None] ** 2 / counted),
            ("body", body[:, None]),
            ("counted", np.array(counted)),
        ):
            self.register_buffer(name, torch.as_tensor(values, dtype=torch.float32), persistent=False)
        own = self.operator(torch.as_tensor(template.points_m))
        self.register_buffer("template_bend", own * (1 - self.body), persistent=False)
        for name, rows in (
            ("hand_edges", hands),
            ("hands", np.flatnonzero(zones == Zone.HAND)),
            ("mouth", np.flatnonzero(zones == Zone.MOUTH)),
            ("lips", np.flatnonzero(zones == Zone.LIPS)),
        ):
            self.register_buffer(name, torch.as_tensor(rows.astype(np.int64)), persistent=False)

    def terms(self, avatar: PersonaAvatar, posed: PosedPersona, weights: PersonaWeights) -> dict[str, Tensor]:
        """Every term by name, with its weight."""
        colours, scales = avatar.colours, avatar.scales_m
        canonical = avatar.points_m + avatar.mean_offsets_m
        stacked = torch.cat([canonical, posed.refined_m, posed.displacement_m, colours, scales[:, None]], 1)
        bends = self.operator(stacked)
        place, refined, displaced, tones, sizes = bends.split([3, 3, 3, 3, 1], 1)
        folds = (self.folds * refined.square()).sum() + (self.loose * displaced.square()).sum()
        size_term = (self.sizes * sizes.square()).sum()
        if self.coarse_count:
            coarse = self.coarse_operator(scales[: self.coarse_count, None])
            size_term = size_term + (self.coarse_sizes * coarse.square()).sum()
        terms = {
            "smooth places": weights.positions * (self.stiff * (place - self.template_bend).square()).sum(),
            "smooth folds": weights.refined_positions * folds,
            "smooth sizes": weights.scales * size_term,
            "smooth colours": weights.colours * tones.square().sum() / self.counted,
        }
        if len(self.hands):
            terms["plain hands"] = weights.hand_variation * self.hand_variation(colours)
            pulled = (colours[self.hands] - avatar.own_colours[self.hands].detach()).abs().mean()
            terms["hands to own colours"] = weights.hand_own * pulled
        if len(self.mouth) and len(self.lips):
            terms["mouth"] = weights.mouth * self.mouth_loss(colours)
        if avatar.layer is not None:
            terms["layer steps"] = weights.layer_steps * (100 * avatar.layer.normal_offsets_m).square().mean()
        return terms

    def hand_variation(self, colours: Tensor) -> Tensor:
        """Mean squared difference of the colours [N, 3] of neighbours on hands."""
        a, b = colours[self.hand_edges].unbind(1)
        return (a - b).square().mean()

    def mouth_loss(self, colours: Tensor) -> Tensor:
        """Mean absolute difference of the mouth's inside to the mean round the lips, which does not follow."""
        return (colours[self.mouth] - colours[self.lips].detach().mean(0)).abs().mean()


class _Operator(nn.Module):
    """A sparse Laplacian and its transpose, as fast as they multiply."""

    matrix: Tensor
    transposed: Tensor

    def __init__(self, laplacian: Laplacian) -> None:
        super().__init__()
        matrix = laplacian.matrix.float()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
            self.register_buffer("matrix", matrix.to_sparse_csr(), persistent=False)
            self.register_buffer("transposed", matrix.t().coalesce().to_sparse_csr(), persistent=False)

    def forward(self, values: Tensor) -> Tensor:
        """[N, F] of values [N, F]."""
        return _Product.apply(self.matrix, self.transposed, values)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, matrix: Tensor, transposed: Tensor, values: Tensor) -> Tensor:
        ctx.transposed = transposed
        return matrix @ values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *incoming: Any) -> tuple[None, None, Tensor]:
        return None, None, ctx.transposed @ incoming[0]


def _edge_ratios(points_m: np.ndarray, edges: np.ndarray, zones: np.ndarray) -> np.ndarray:
    """[N] published edge over the mean edge at each vertex."""
    lengths = np.linalg.norm(points_m[edges[:, 0]] - points_m[edges[:, 1]], axis=1)
    count = np.maximum(np.bincount(edges.ravel(), minlength=len(points_m)), 1)
    own = np.bincount(edges.ravel(), np.repeat(lengths, 2), len(points_m)) / count
    published = np.where(np.isin(zones, (Zone.BODY, Zone.HEAD, Zone.FOOT)), PUBLISHED_EDGE_M, PUBLISHED_FINE_EDGE_M)
    for zone in np.unique(zones):
        here = zones == zone
        own[here] = np.maximum(own[here], LEAST_EDGE * own[here].mean())
    return published / np.maximum(own, 1e-6)


def _edges(triangles: np.ndarray) -> np.ndarray:
    """[E, 2] every edge once."""
    sides = np.concatenate([triangles[:, [0, 1]], triangles[:, [1, 2]], triangles[:, [2, 0]]])
    return np.unique(np.sort(sides, 1), axis=0)


__all__ = ["PUBLISHED_EDGE_M", "Smoothness"]
