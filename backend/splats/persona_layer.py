"""Hair and loose clothes on a PERSONA avatar.

A body's subdivided skin cannot show what hangs beside it. The photo-only path places Gaussians for that between body
and outline (`BoundSplats` on the proxy's triangles); a chosen part of them moves along with the avatar: carried by
their triangle as the bones move it, and shifted by the displacement that a pose gives to it. Learned are their colours
and a small step along the triangle's normal; sizes and opacities stay as placed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from backend.perception.labels import Label
from backend.splats.bound import STRETCH_LIMITS, BoundSplats, Kind
from backend.splats.bound import triangle_frames as rest_frames

REACH_M = 0.01
"""Largest step along the normal."""

LOGIT_MARGIN = 0.02
"""Colours begin at least so far from black and from full, where a sigmoid has no slope."""

KIND_LABELS = {Kind.SKIN: Label.SKIN, Kind.HAIR: Label.HAIR, Kind.EYE: Label.SKIN, Kind.TEETH: Label.SKIN,
               Kind.MOUTH: Label.SKIN}  # fmt: skip
"""What labelled pictures show such Gaussians as, where the caller does not say; clothes are `Label.OTHER`."""


@dataclass(frozen=True)
class PosedLayer:
    """The layer's M Gaussians in the world.

    Attributes:
        plain_m: [M, 3] as the bones carry them.
        refined_m: [M, 3] with the pose's displacement.
        rotations_wxyz: [M, 4], without a gradient. scales_m: [M, 3], likewise.
        normals: [M, 3] unit, outward, without a gradient.
    """

    plain_m: Tensor
    refined_m: Tensor
    rotations_wxyz: Tensor
    scales_m: Tensor
    normals: Tensor


class OutlineLayer(nn.Module):
    """What is learned of Gaussians that hang on the proxy's triangles."""

    corners: Tensor
    faces: Tensor
    owner: Tensor
    feet: Tensor
    bary: Tensor
    offsets_m: Tensor
    own_rotations: Tensor
    own_scales_m: Tensor
    opacities: Tensor
    frames: Tensor
    sizes: Tensor
    first_colours: Tensor

    def __init__(
        self, splats: BoundSplats, rest_m: np.ndarray, triangles: np.ndarray, labels: np.ndarray | None = None
    ) -> None:
        """Begin as placed.

        Args:
            splats: M Gaussians, for instance hair and membranes of a dressed person.
            rest_m: [V, 3] the proxy at rest, the mesh that the avatar's template was made from.
            triangles: [T, 3] all its triangles; `splats.triangles` are rows of it.
            labels: uint8 [M] of `Label`; None takes them from the kinds.
        """
        super().__init__()
        self.splats = splats
        used, owner = np.unique(splats.triangles, return_inverse=True)
        corners, faces = np.unique(np.asarray(triangles)[used], return_inverse=True)
        faces = faces.reshape(-1, 3)
        frames, sizes = rest_frames(rest_m[corners], faces)
        if labels is None:
            labels = np.array([KIND_LABELS.get(Kind(kind), Label.OTHER) for kind in splats.kind], np.uint8)
        self.labels = np.asarray(labels, np.uint8)
        for name, values in (
            ("corners", corners),
            ("faces", faces),
            ("owner", owner),
            ("feet", faces[owner]),
        ):
            self.register_buffer(name, torch.as_tensor(np.asarray(values, np.int64)), persistent=False)
        for name, values in (
            ("bary", splats.bary),
            ("offsets_m", splats.offsets_m),
            ("own_rotations", splats.rotations_wxyz),
            ("own_scales_m", splats.scales_m),
            ("opacities", splats.opacities),
            ("frames", frames),
            ("sizes", sizes),
            ("first_colours", splats.colours),
        ):
            self.register_buffer(name, torch.as_tensor(np.array(values, np.float32)), persistent=False)
        logits = torch.logit(self.first_colours.clamp(LOGIT_MARGIN, 1 - LOGIT_MARGIN))
        self.colour_logits = nn.Parameter(logits)
        self.own_colour_logits = nn.Parameter(logits.clone())
        self.steps_m = nn.Parameter(torch.zeros(len(splats)))

    def __len__(self) -> int:
        """Number of Gaussians."""
        return len(self.splats)

    @property
    def normal_offsets_m(self) -> Tensor:
        """[M] steps along the triangles' normals, within `REACH_M`."""
        return REACH_M * torch.tanh(self.steps_m / REACH_M)

    def pose(self, corners_m: Tensor, displacement_m: Tensor) -> PosedLayer:
        """Where the Gaussians are.

        Args:
            corners_m: [K, 3] the proxy's vertices `corners`, posed in the world without the pose's displacement.
            displacement_m: [K, 3] of the same vertices by the pose, in the canonical pose.
        """
        frames, sizes = triangle_frames(corners_m, self.faces)
        along = torch.zeros_like(self.offsets_m)
        along = torch.cat([along[:, :2], self.normal_offsets_m[:, None]], 1)
        foot = (self.bary[:, :, None] * corners_m[self.feet]).sum(1)
        mine = frames[self.owner]
        plain = foot + (mine * (self.offsets_m + along)[:, None]).sum(2)
        # a displacement in the canonical pose turns with its triangle
        turns = frames @ self.frames.transpose(1, 2)
        shift = (self.bary[:, :, None] * displacement_m[self.feet]).sum(1)
        refined = plain + (turns[self.owner] * shift[:, None]).sum(2)
        with torch.no_grad():
            rotations = _product(to_wxyz(frames)[self.owner], self.own_rotations)
            stretch = (sizes / self.sizes.clamp_min(1e-9)).clamp(*STRETCH_LIMITS)
            scales = self.own_scales_m * stretch[self.owner, None]
            normals = _third_axis(rotations)
        return PosedLayer(plain, refined, rotations, scales, normals)

    def learned(self) -> BoundSplats:
        """The Gaussians with what was learned: shared colours, and offsets with their steps."""
        offsets = self.splats.offsets_m.copy()
        offsets[:, 2] += self.normal_offsets_m.detach().cpu().numpy()
        return replace(self.splats, offsets_m=offsets, colours=self.colour_logits.detach().sigmoid().cpu().numpy())


def triangle_frames(points_m: Tensor, faces: Tensor) -> tuple[Tensor, Tensor]:
    """Frames and sizes of triangles as `bound.triangle_frames` has them, differentiable.

    Args:
        points_m: [K, 3].
        faces: int64 [U, 3].

    Returns:
        [U, 3, 3] with the axes as columns, and [U] the root of the doubled area, metres.
    """
    a, b, c = points_m[faces].unbind(1)
    x = b - a
    z = torch.linalg.cross(x, c - a)
    area = z.norm(dim=1).clamp_min(1e-12)
    x = torch.nn.functional.normalize(x, dim=1, eps=1e-12)
    z = z / area[:, None]
    return torch.stack([x, torch.linalg.cross(z, x), z], 2), area.sqrt()


def to_wxyz(matrices: Tensor) -> Tensor:
    """Unit quaternions [U, 4] of rotation matrices [U, 3, 3]; no gradient is meant to pass."""
    m = matrices
    x, y, z = m[:, 0, 0], m[:, 1, 1], m[:, 2, 2]
    # each row is the quaternion times four times one of its parts; the largest part divides best
    rows = torch.stack([
        torch.stack([1 + x + y + z, m[:, 2, 1] - m[:, 1, 2], m[:, 0, 2] - m[:, 2, 0], m[:, 1, 0] - m[:, 0, 1]], 1),
        torch.stack([m[:, 2, 1] - m[:, 1, 2], 1 + x - y - z, m[:, 1, 0] + m[:, 0, 1], m[:, 0, 2] + m[:, 2, 0]], 1),
        torch.stack([m[:, 0, 2] - m[:, 2, 0], m[:, 1, 0] + m[:, 0, 1], 1 - x + y - z, m[:, 2, 1] + m[:, 1, 2]], 1),
        torch.stack([m[:, 1, 0] - m[:, 0, 1], m[:, 0, 2] + m[:, 2, 0], m[:, 2, 1] + m[:, 1, 2], 1 - x - y + z], 1),
    ], 1)  # fmt: skip
    best = rows.diagonal(dim1=1, dim2=2).argmax(1)
    chosen = rows.gather(1, best[:, None, None].expand(-1, 1, 4))[:, 0]
    return torch.nn.functional.normalize(chosen, dim=1)


def _product(a: Tensor, b: Tensor) -> Tensor:
    """Quaternions [M, 4] of turns b, then a."""
    aw, av, bw, bv = a[:, :1], a[:, 1:], b[:, :1], b[:, 1:]
    real = aw * bw - (av * bv).sum(1, keepdim=True)
    return torch.cat([real, aw * bv + bw * av + torch.linalg.cross(av, bv)], 1)


def _third_axis(wxyz: Tensor) -> Tensor:
    """[M, 3] z axes of unit quaternions [M, 4]."""
    w, x, y, z = wxyz.unbind(1)
    return torch.stack([2 * (x * z + w * y), 2 * (y * z - w * x), 1 - 2 * (x * x + y * y)], 1)


__all__ = ["REACH_M", "OutlineLayer", "PosedLayer", "to_wxyz", "triangle_frames"]
