"""Where a stylised head begins: Gaussians sampled on the head, in a frame whose unit is the head's height.

The stylised-portrait paper's numbers (scale 0.02, size threshold 0.01, position rate 1e-3) are not metres: 10,000
points on a head of 23 cm lie 4 mm apart, while 0.02 of the head's height is 4.6 mm. So the loop works where chin to
crown is 1, and what leaves it is brought back to metres.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from blender_addon.shared.gaussians import GaussianCloud, matrices_to_wxyz

GAUSSIANS, OPACITY, SCALE = 10_000, 0.2, 0.02
"""Of the paper, in head heights."""


@dataclass(frozen=True)
class HeadFrame:
    """Y up, face towards +Z; the origin is the middle of the head and one unit its height from chin to crown.

    Attributes:
        centre_m: float64 [3], the origin in the rest pose.
        height_m: One unit, metres.
    """

    centre_m: np.ndarray
    height_m: float

    def __post_init__(self) -> None:
        """Refuse what is no frame.

        Raises:
            ValueError: If the height is not positive or the centre not a finite point.
        """
        centre = np.asarray(self.centre_m, np.float64)
        if centre.shape != (3,) or not np.isfinite(centre).all() or not 0 < self.height_m < np.inf:
            raise ValueError(f"a head's frame needs a point and a height, not {self.centre_m} and {self.height_m}")
        object.__setattr__(self, "centre_m", centre)

    @classmethod
    def of(cls, head_m: np.ndarray, chin_m: np.ndarray) -> HeadFrame:
        """The frame of a head.

        Args:
            head_m: [V, 3] vertices of the head's skin without neck, rest pose; the highest is the crown.
            chin_m: [3] lowest point of the chin.

        Raises:
            ValueError: If the chin is not below the crown.
        """
        points = np.asarray(head_m, np.float64)
        crown, chin = float(points[:, 1].max()), float(chin_m[1])
        above = points[points[:, 1] >= chin]
        middle = 0.5 * (above.min(axis=0) + above.max(axis=0)) if len(above) else np.asarray(chin_m, np.float64)
        return cls(np.array([middle[0], 0.5 * (crown + chin), middle[2]]), crown - chin)

    def to_unit(self, points_m: np.ndarray) -> np.ndarray:
        """Points [..., 3] of the rest pose, metres, in this frame; float64."""
        return (np.asarray(points_m, np.float64) - self.centre_m) / self.height_m

    def to_metres(self, points: np.ndarray) -> np.ndarray:
        """The inverse of `to_unit`."""
        return np.asarray(points, np.float64) * self.height_m + self.centre_m

    def cloud_to_unit(self, cloud: GaussianCloud) -> GaussianCloud:
        """A cloud in metres in this frame."""
        return _moved(cloud, self.to_unit(cloud.positions_m), 1 / self.height_m)

    def cloud_to_metres(self, cloud: GaussianCloud) -> GaussianCloud:
        """The inverse of `cloud_to_unit`, exact up to the record's float32."""
        return _moved(cloud, self.to_metres(cloud.positions_m), self.height_m)


def _moved(cloud: GaussianCloud, positions: np.ndarray, factor: float) -> GaussianCloud:
    scales = np.asarray(cloud.scales_m, np.float64) * factor
    return GaussianCloud(
        positions.astype(np.float32),
        scales.astype(np.float32),
        cloud.rotations_wxyz,
        cloud.opacities,
        cloud.sh_dc,
        cloud.sh_rest,
    )


def head_start(
    vertices: np.ndarray,
    triangles: np.ndarray,
    *,
    count: int = GAUSSIANS,
    seed: int = 0,
    opacity: float = OPACITY,
    scale: float = SCALE,
    flatness: float = 1.0,
) -> GaussianCloud:
    """Gaussians spread evenly over a mesh, in the mesh's own frame.

    Colour coefficients are 0 as in the paper, which is mid grey. Rotations are the paper's identity for round ones;
    flat ones lie in their triangle's plane.

    Args:
        vertices: [V, 3] in head heights.
        triangles: [T, 3] those that get Gaussians: head and neck, without what is inside.
        count: How many.
        seed: Of the places.
        opacity: Of all.
        scale: Standard deviation in head heights; with fewer than the paper's 10,000 it grows as the spacing does.
        flatness: Thickness against width, 0..1; 1 is the paper's ball.

    Raises:
        ValueError: If the mesh has no area.
    """
    corners = np.asarray(vertices, np.float64)[triangles]
    cross = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    area = np.linalg.norm(cross, axis=1)
    if not len(area) or area.sum() <= 0:
        raise ValueError("the mesh has no area to put Gaussians on")
    generator = np.random.default_rng(seed)
    # Systematic sampling: one in every share of the area, so that no triangle is left out by chance.
    marks = (np.arange(count) + generator.random(count)) / count * area.sum()
    chosen = np.minimum(np.searchsorted(np.cumsum(area), marks), len(area) - 1)
    root, along = np.sqrt(generator.random(count)), generator.random(count)
    bary = np.stack([1 - root, root * (1 - along), root * along], axis=1)
    positions = np.einsum("nk,nkc->nc", bary, corners[chosen])
    width = scale * max(np.sqrt(GAUSSIANS / count), 1.0)
    rotations = np.tile([1.0, 0, 0, 0], (count, 1))
    if flatness < 1:
        rotations = matrices_to_wxyz(_planes(corners[chosen], cross[chosen]))
    return GaussianCloud(
        positions.astype(np.float32),
        np.tile(np.array([width, width, width * flatness], np.float32), (count, 1)),
        rotations.astype(np.float32),
        np.full(count, opacity, np.float32),
        np.zeros((count, 3), np.float32),
        np.zeros((count, 0, 3), np.float32),
    )


def _planes(corners: np.ndarray, cross: np.ndarray) -> np.ndarray:
    """[N, 3, 3] axes as columns, the third along the normal."""
    first = corners[:, 1] - corners[:, 0]
    x = first / np.maximum(np.linalg.norm(first, axis=1, keepdims=True), 1e-12)
    z = cross / np.maximum(np.linalg.norm(cross, axis=1, keepdims=True), 1e-12)
    return np.stack([x, np.cross(z, x), z], axis=2)


LARGEST_SHARE = 0.4
"""Of the Gaussians that `with_points` moves."""


def with_points(start: GaussianCloud, points: np.ndarray, *, seed: int = 0) -> GaussianCloud:
    """The same Gaussians, some of them moved to places off the skin, such as hair that the photo shows.

    The paper begins on a bald head. A person's hair reaches several centimetres further, which at its position rates
    takes a third of the steps; so the hair of the photo-only head gets its share of the start.

    Args:
        start: From `head_start`.
        points: [P, 3] in head heights; none leaves the start as it is.
        seed: Of the choice.
    """
    if not len(points):
        return start
    generator = np.random.default_rng(seed + 1)
    count = min(len(points), round(LARGEST_SHARE * len(start)))
    moved = generator.choice(len(start), count, replace=False)
    positions = start.positions_m.copy()
    positions[moved] = np.asarray(points)[generator.choice(len(points), count, replace=False)]
    return GaussianCloud(positions, start.scales_m, start.rotations_wxyz, start.opacities, start.sh_dc, start.sh_rest)
