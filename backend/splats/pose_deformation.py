"""Offsets of Gaussians that follow the pose: a triplane and a small network (PERSONA, arXiv 2508.09973, section 3).

The features of three planes at a point's place in the template meet the rotations of the joints near it; the network
gives the point's displacement in the canonical pose. Sizes and the mask of joints are those of the released module.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from blender_addon.shared.skeleton import PARENTS

BODY_JOINTS = tuple(range(1, 22))
"""SMPL-X's 21 body joints, whose local rotations drive the offsets; the root's turn deforms nothing."""


@dataclass(frozen=True)
class DeformationSettings:
    """Sizes of the network.

    Attributes:
        plane_size: Cells along each side of a plane.
        features: Of each plane.
        width: Of the hidden layers.
        hidden: Number of hidden layers.
        span_m: The planes cover a cube of this side about the origin of `PoseDeformation.forward`'s points.
        hops: A point listens to joints at most so many bones from its own.
        unit_m: Metres per unit of the network's output.
        linear: The network sees the place alone and gives a linear map of the pose's code: what controls in Blender
            can follow without an error of their weights. Not as published, whose network also bends with the pose.
    """

    plane_size: int = 128
    features: int = 32
    width: int = 128
    hidden: int = 3
    span_m: float = 2.0
    hops: int = 4
    unit_m: float = 0.01
    linear: bool = False


class PoseDeformation(nn.Module):
    """Displacement of points as a function of the pose."""

    def __init__(self, settings: DeformationSettings | None = None) -> None:
        """Begin with planes of small noise and an output of exactly zero."""
        super().__init__()
        self.settings = settings = settings or DeformationSettings()
        self.planes = nn.Parameter(0.1 * torch.randn(3, settings.features, settings.plane_size, settings.plane_size))
        layers: list[nn.Module] = []
        code = 6 * len(BODY_JOINTS)
        inputs = 3 * settings.features + (0 if settings.linear else code)
        for _ in range(settings.hidden):
            layers += [nn.Linear(inputs, settings.width), _GroupNorm(4, settings.width), nn.ReLU()]
            inputs = settings.width
        last = nn.Linear(inputs, 3 * (1 + code) if settings.linear else 3)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.layers = nn.Sequential(*layers, last)

    def forward(self, template_m: Tensor, pose: Tensor, listens: Tensor) -> Tensor:
        """Displacements.

        Args:
            template_m: [N, 3] where the points are in the template, about the template's own middle.
            pose: [21, 6] first two columns of the body joints' local rotations, see `pose_code`.
            listens: [N, 21] 0 or 1, see `joint_mask`.

        Returns:
            [N, 3] metres, in the canonical pose.
        """
        unit = template_m / (0.5 * self.settings.span_m)
        pairs = torch.stack([unit[:, [0, 1]], unit[:, [1, 2]], unit[:, [2, 0]]])
        sampled = torch.nn.functional.grid_sample(
            self.planes, pairs[:, None], mode="bilinear", padding_mode="border", align_corners=True
        )
        features = sampled[:, :, 0].permute(2, 0, 1).flatten(1)
        if self.settings.linear:
            maps = self.layers(features).unflatten(1, (3, -1))
            seen = (listens[:, :, None] * pose).flatten(1)
            return self.settings.unit_m * (maps[:, :, 0] + (maps[:, :, 1:] * seen[:, None]).sum(2))
        # The first layer: every joint's share is made once, and a point takes those of the joints it listens to.
        first = self.layers[0]
        assert isinstance(first, nn.Linear)
        on_features, on_pose = first.weight.split([features.shape[1], pose.numel()], 1)
        shares = torch.einsum("wjk,jk->jw", on_pose.reshape(-1, *pose.shape), pose)
        hidden = torch.addmm(features @ on_features.T + first.bias, listens, shares)
        for layer in self.layers[1:]:
            hidden = layer(hidden)
        return self.settings.unit_m * hidden


class _GroupNorm(nn.GroupNorm):
    """The same values; torch's own is several times slower on a processor where every group is one row."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        grouped = input.reshape(len(input), self.num_groups, -1)
        plain = torch.nn.functional.layer_norm(grouped, grouped.shape[-1:], eps=self.eps).reshape(input.shape)
        return plain * self.weight + self.bias


def pose_code(rotations: Tensor) -> Tensor:
    """[21, 6] of local rotations [55, 3, 3]: the first two columns less those of no turn, so that rest is zero."""
    body = rotations[list(BODY_JOINTS)]
    rest = torch.eye(3, dtype=rotations.dtype, device=rotations.device)
    return (body - rest)[:, :, :2].transpose(1, 2).flatten(1)


def joint_mask(weights: np.ndarray, hops: int = DeformationSettings.hops) -> np.ndarray:
    """Which body joints a point listens to.

    Args:
        weights: [N, 55 or more] skinning weights; helper bones count for nothing.
        hops: Largest number of bones between a joint and the point's first one.

    Returns:
        [N, 21] float32, 0 or 1.
    """
    count = len(PARENTS)
    steps = np.full((count, count), count)
    np.fill_diagonal(steps, 0)
    for joint, parent in enumerate(PARENTS):
        if parent >= 0:
            steps[joint, parent] = steps[parent, joint] = 1
    for via in range(count):
        steps = np.minimum(steps, steps[:, via : via + 1] + steps[via])
    first = weights[:, :count].argmax(1)
    return (steps[first][:, list(BODY_JOINTS)] <= hops).astype(np.float32)
