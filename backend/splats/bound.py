"""Gaussians bound to the triangles of a proxy mesh.

An avatar's Gaussians are born on a triangle and stay there: the same parameters give every pose. The frame of a
triangle is x = normalised(v1 - v0), z = normalised((v1 - v0) x (v2 - v0)), y = z x x; a Gaussian stores its
barycentric foot point, an offset and a rotation in that frame, and its scales follow sqrt(area ratio), held within
`STRETCH_LIMITS`. Blender's node group (blender_addon/rig) evaluates the same formula.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from enum import IntEnum

import numpy as np

from blender_addon.shared.gaussians import GaussianCloud, matrices_to_wxyz, wxyz_product, wxyz_to_matrices

STRETCH_LIMITS = (0.5, 2.0)
"""A Gaussian grows and shrinks with its triangle within these factors (prototype: beyond, single splats become
visible)."""


class Kind(IntEnum):
    """What a Gaussian shows."""

    SKIN = 0
    CLOTH = 1
    HAIR = 2
    EYE = 3
    TEETH = 4
    MOUTH = 5
    MEMBRANE = 6


@dataclass(frozen=True)
class PosedSplats:
    """Gaussians in one pose.

    Attributes:
        positions_m: [N, 3].
        rotations_wxyz: [N, 4] unit.
        scales_m: [N, 3].
        opacities: [N].
        colours: [N, 3] display sRGB.
    """

    positions_m: np.ndarray
    rotations_wxyz: np.ndarray
    scales_m: np.ndarray
    opacities: np.ndarray
    colours: np.ndarray

    def to_cloud(self) -> GaussianCloud:
        """The record of degree 0 with the same Gaussians."""
        return GaussianCloud.from_colours(
            self.positions_m, self.scales_m, self.rotations_wxyz, self.opacities, self.colours
        )


@dataclass(frozen=True)
class BoundSplats:
    """Gaussians in the frames of their triangles.

    Attributes:
        triangles: [N] int32, index of the proxy's triangle.
        bary: [N, 3] barycentric coordinates of the foot point.
        offsets_m: [N, 3] from the foot point, in the triangle's frame.
        rotations_wxyz: [N, 4] unit, in the triangle's frame; the local z axis is the disc's normal.
        scales_m: [N, 3] standard deviations at rest.
        opacities: [N] 0..1.
        colours: [N, 3] 0..1 display sRGB.
        confidence: [N] 0..1, how far the photo determined the colour.
        kind: [N] uint8, `Kind`.
        colour_gate: [N] 0..1, share of an optimiser's step that the colour takes.
        shape_gate: [N] 0..1, the same for offset, scale and opacity.
        opacity_floor: [N] 0..1, opacity never falls below it.
    """

    triangles: np.ndarray
    bary: np.ndarray
    offsets_m: np.ndarray
    rotations_wxyz: np.ndarray
    scales_m: np.ndarray
    opacities: np.ndarray
    colours: np.ndarray
    confidence: np.ndarray
    kind: np.ndarray
    colour_gate: np.ndarray
    shape_gate: np.ndarray
    opacity_floor: np.ndarray

    def __post_init__(self) -> None:
        """Bring every array to its type and check the shapes.

        Raises:
            ValueError: If an array has another length than `triangles` or another width than documented.
        """
        n = len(self.triangles)
        width = {"bary": 3, "offsets_m": 3, "rotations_wxyz": 4, "scales_m": 3, "colours": 3}
        for field in fields(self):
            dtype = {"triangles": np.int32, "kind": np.uint8}.get(field.name, np.float32)
            value = np.ascontiguousarray(getattr(self, field.name), dtype)
            expected = (n, width[field.name]) if field.name in width else (n,)
            if value.shape != expected:
                raise ValueError(f"{field.name} has shape {value.shape}, expected {expected}")
            object.__setattr__(self, field.name, value)

    def __len__(self) -> int:
        """Number of Gaussians."""
        return len(self.triangles)

    def select(self, index: np.ndarray) -> BoundSplats:
        """The Gaussians at `index` (boolean [N] or integer indices)."""
        return replace(self, **{f.name: getattr(self, f.name)[index] for f in fields(self)})

    def posed(
        self, proxy_vertices_m: np.ndarray, rest_vertices_m: np.ndarray, triangles_all: np.ndarray
    ) -> PosedSplats:
        """The Gaussians on a posed proxy.

        Args:
            proxy_vertices_m: [V, 3] posed vertices.
            rest_vertices_m: [V, 3] vertices of the rest pose, the reference of the stretch.
            triangles_all: [T, 3] vertex indices.
        """
        faces = triangles_all[self.triangles]
        frames, lengths = triangle_frames(proxy_vertices_m, faces)
        _, rest_lengths = triangle_frames(rest_vertices_m, faces)
        foot = np.einsum("nk,nkc->nc", self.bary, proxy_vertices_m[faces])
        positions = foot + np.einsum("nij,nj->ni", frames, self.offsets_m)
        rotations = wxyz_product(matrices_to_wxyz(frames), self.rotations_wxyz)
        stretch = np.clip(lengths / np.maximum(rest_lengths, 1e-9), *STRETCH_LIMITS)
        return PosedSplats(
            positions.astype(np.float32),
            rotations.astype(np.float32),
            (self.scales_m * stretch[:, None]).astype(np.float32),
            self.opacities,
            self.colours,
        )


def triangle_frames(vertices_m: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Frames and sizes of triangles.

    Args:
        vertices_m: [V, 3].
        faces: [N, 3] vertex indices.

    Returns:
        Rotation matrices [N, 3, 3] with the axes as columns, and sqrt of the length of (v1 - v0) x (v2 - v0) [N],
        metres.
    """
    v0, v1, v2 = (np.asarray(vertices_m, np.float64)[faces[:, k]] for k in range(3))
    x = v1 - v0
    z = np.cross(x, v2 - v0)
    double_area = np.linalg.norm(z, axis=1)
    x = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    z = z / np.maximum(double_area, 1e-12)[:, None]
    return np.stack([x, np.cross(z, x), z], axis=2), np.sqrt(double_area)


def bind_points(
    positions_m: np.ndarray,
    rotations: np.ndarray,
    triangles: np.ndarray,
    bary: np.ndarray,
    proxy_vertices_m: np.ndarray,
    triangles_all: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Express points of a posed proxy in the frames of their triangles.

    Args:
        positions_m: [N, 3] in the proxy's space.
        rotations: [N, 3, 3] rotation matrices in the proxy's space.
        triangles: [N] triangle of each point.
        bary: [N, 3] foot point on that triangle.
        proxy_vertices_m: [V, 3] posed vertices.
        triangles_all: [T, 3] vertex indices.

    Returns:
        offsets_m [N, 3] and rotations_wxyz [N, 4] in the triangles' frames; `BoundSplats.posed` with the same vertices
        returns the given positions and rotations.
    """
    faces = triangles_all[triangles]
    frames, _ = triangle_frames(proxy_vertices_m, faces)
    foot = np.einsum("nk,nkc->nc", bary, proxy_vertices_m[faces])
    offsets = np.einsum("nji,nj->ni", frames, positions_m - foot)
    local = np.einsum("nji,njk->nik", frames, rotations)
    return offsets.astype(np.float32), matrices_to_wxyz(local).astype(np.float32)


def concatenate(parts: Sequence[BoundSplats]) -> BoundSplats:
    """All Gaussians of `parts`, in order."""
    names = [f.name for f in fields(BoundSplats)]
    return BoundSplats(**{name: np.concatenate([getattr(p, name) for p in parts]) for name in names})


__all__ = [
    "STRETCH_LIMITS",
    "BoundSplats",
    "Kind",
    "PosedSplats",
    "bind_points",
    "concatenate",
    "triangle_frames",
    "wxyz_to_matrices",
]
