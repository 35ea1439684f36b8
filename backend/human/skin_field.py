"""Skinning weights for points that lie off the body: a field, diffused from the surface.

PERSONA (arXiv 2508.09973; facts of its released module): a grid of 128 cells a side over the canonical body's box
grown by 30 %; cells within 2 cm of the surface keep the surface's weights, all others take part in 100 steps of
diffusion with rate 0.1; fingers are not diffused. A Gaussian asks at 13 points, its centre and one and two standard
deviations along the axes, with weights 1, 0.5 and 0.3.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor

from blender_addon.shared.skeleton import JOINT_NAMES

FIRST_FINGER = JOINT_NAMES.index("left_index1")
FACE = tuple(JOINT_NAMES.index(name) for name in ("jaw", "left_eye_smplhf", "right_eye_smplhf"))
CENTRE, NEAR, FAR = 1.0, 0.5, 0.3
"""Weights of a Gaussian's centre and of its points at one and two standard deviations."""


@dataclass(frozen=True)
class FieldSettings:
    """How a field is made.

    Attributes:
        resolution: Cells along each side.
        grow: The box grows by this share of its size.
        seed_m: Cells nearer than this to the surface keep its weights.
        steps: Of diffusion.
        rate: Share of the Laplacian that a step adds; stable below 1/6.
    """

    resolution: int = 128
    grow: float = 0.30
    seed_m: float = 0.02
    steps: int = 100
    rate: float = 0.1


@dataclass(frozen=True)
class SkinField:
    """Weights of the diffused bones on a grid.

    Attributes:
        grid: [B, D, H, W], bones x cells along z, y, x; they sum to one in every cell.
        bones: [B] int64, the bones' columns in the full weights.
        columns: Number of columns of the full weights.
        low_m: [3], centre of the first cell.
        high_m: [3], centre of the last cell.
    """

    grid: Tensor
    bones: Tensor
    columns: int
    low_m: Tensor
    high_m: Tensor

    def at(self, points_m: Tensor) -> Tensor:
        """Weights [N, B] at rest points [N, 3]; outside the box those of its wall."""
        unit = 2 * (points_m - self.low_m) / (self.high_m - self.low_m) - 1
        found = torch.nn.functional.grid_sample(
            self.grid[None], unit[None, None, None], mode="bilinear", padding_mode="border", align_corners=True
        )
        return found[0, :, 0, 0].T

    def around(self, points_m: Tensor, scales_m: Tensor) -> Tensor:
        """Weights [N, B] of isotropic Gaussians: the 13-point query.

        Args:
            points_m: [N, 3] rest points.
            scales_m: [N] standard deviations.
        """
        axes = torch.cat([torch.eye(3), -torch.eye(3)]).to(points_m)
        total = CENTRE * self.at(points_m)
        for reach, share in ((1.0, NEAR), (2.0, FAR)):
            for axis in axes:
                total = total + share * self.at(points_m + reach * scales_m[:, None] * axis)
        return total / total.sum(1, keepdim=True)


def diffuse(
    vertices_m: np.ndarray, weights: np.ndarray, settings: FieldSettings | None = None, device: str = "cpu"
) -> SkinField:
    """Make the field of a rest body.

    Args:
        vertices_m: [V, 3] rest vertices.
        weights: [V, 55 or more] skinning weights; columns beyond 55 are helper bones and are diffused.
        settings: How.
        device: Torch device of the field.
    """
    settings = settings or FieldSettings()
    fixed = np.isin(np.arange(weights.shape[1]), [*FACE, *range(FIRST_FINGER, len(JOINT_NAMES))])
    bones = np.flatnonzero(~fixed & (weights.max(0) > 0))
    low, high = vertices_m.min(0), vertices_m.max(0)
    middle, half = (low + high) / 2, (high - low) / 2 * (1 + settings.grow)
    low, high = middle - half, middle + half
    sides = [np.linspace(low[axis], high[axis], settings.resolution) for axis in range(3)]
    cells = np.stack(np.meshgrid(*sides[::-1], indexing="ij")[::-1], -1)
    distance, nearest = cKDTree(vertices_m).query(cells.reshape(-1, 3), workers=-1)
    shape = (settings.resolution,) * 3
    surface = torch.as_tensor(_without(weights, fixed)[:, bones], dtype=torch.float32, device=device)
    grid = surface[torch.as_tensor(nearest, device=device)].T.reshape(len(bones), *shape).contiguous()
    seeds = torch.as_tensor((distance < settings.seed_m).reshape(shape), device=device)
    for bone in range(len(bones)):  # one bone at a time: the field is large, its Laplacian need not be
        grid[bone] = _diffused(grid[bone], seeds, settings)
    grid /= grid.sum(0, keepdim=True)
    ends = (torch.as_tensor(end, dtype=torch.float32, device=device) for end in (low, high))
    return SkinField(grid, torch.as_tensor(bones, device=device), weights.shape[1], *ends)


def _without(weights: np.ndarray, fixed: np.ndarray) -> np.ndarray:
    """Weights of the diffused bones alone: what fingers and face carry goes to the wrist and the head."""
    kept = np.where(fixed, 0.0, weights)
    total = kept.sum(1, keepdims=True)
    wrists = {side: JOINT_NAMES.index(f"{side}_wrist") for side in ("left", "right")}
    for column in np.flatnonzero(fixed):
        name = JOINT_NAMES[column]
        carrier = JOINT_NAMES.index("head") if column in FACE else wrists[name.split("_")[0]]
        kept[:, carrier] += weights[:, column]
    return kept / np.maximum(total + weights[:, fixed].sum(1, keepdims=True), 1e-9)


def _diffused(values: Tensor, seeds: Tensor, settings: FieldSettings) -> Tensor:
    """Heat flow [D, H, W] with the seeds held and no flow through the walls."""
    start = values.clone()
    for _ in range(settings.steps):
        flow = torch.zeros_like(values)
        for axis in range(3):
            step = torch.diff(values, dim=axis)
            flow.narrow(axis, 0, step.shape[axis]).add_(step)
            flow.narrow(axis, 1, step.shape[axis]).sub_(step)
        values = torch.where(seeds, start, values + settings.rate * flow)
    return values
