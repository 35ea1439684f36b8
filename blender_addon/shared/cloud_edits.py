"""What an artist does to a cloud as a whole: transform, clean, thin out, colour, merge. Numpy only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from .arrays import Array
from .gaussians import SH_C0, SH_REST_COUNTS, GaussianCloud, matrices_to_wxyz, wxyz_product, wxyz_to_matrices
from .sh import rotate_sh

_BLOCK = 65536
"""Gaussians at a time where matrices of each are made."""

_FAR = 10.0
"""A floater lies this many times farther from the middle than 99 of 100 Gaussians ..."""

_HUGE = 1.0
"""... a huge one is as large as the distance of those."""

_DEAD = 1.0 / 255.0
"""What is fainter than this is never drawn."""

_REC709 = np.array([0.2126, 0.7152, 0.0722])

_DISPLAY_GAMMA = 2.2

_BALANCE_STOPS = 0.4
"""Of red and blue against green at the end of the white balance: from daylight to about 3500 K."""


@dataclass(frozen=True)
class ColourChange:
    """A change of display colour, the same in every direction of view.

    Attributes:
        brightness: Factor, 1 changes nothing.
        contrast: Factor about mid grey.
        saturation: 0 is grey, 1 changes nothing.
        tint: Factor per channel.
    """

    brightness: float = 1.0
    contrast: float = 1.0
    saturation: float = 1.0
    tint: tuple[float, float, float] = (1.0, 1.0, 1.0)

    @classmethod
    def of_photo(
        cls,
        exposure: float = 0.0,
        contrast: float = 1.0,
        saturation: float = 1.0,
        warmth: float = 0.0,
        magenta: float = 0.0,
    ) -> ColourChange:
        """A change by a photographer's controls.

        Args:
            exposure: Stops; light is doubled by each, which display values show as a factor of 2^(1 / 2.2).
            contrast: Factor about mid grey.
            saturation: 0 is grey, 1 changes nothing.
            warmth: White balance from blue (-1) to orange (1).
            magenta: White balance from green (-1) to magenta (1).
        """  # fmt: skip
        gains = 2.0 ** (_BALANCE_STOPS * np.array([warmth + 0.5 * magenta, -magenta, -warmth + 0.5 * magenta]))
        gains /= _REC709 @ gains  # grey keeps its brightness
        red, green, blue = gains.tolist()
        return cls(2.0 ** (exposure / _DISPLAY_GAMMA), contrast, saturation, (red, green, blue))

    def matrix(self) -> tuple[Array, Array]:
        """Matrix [3, 3] and offset [3] that act on a colour."""
        grey = np.broadcast_to(_REC709, (3, 3))
        colour = self.saturation * np.eye(3) + (1 - self.saturation) * grey
        linear = self.contrast * self.brightness * np.diag(self.tint) @ colour
        return linear, np.full(3, 0.5 * (1 - self.contrast))


def transform_cloud(cloud: GaussianCloud, matrix: Array) -> GaussianCloud:
    """Move, turn, scale, shear or mirror a cloud.

    Spherical harmonics follow the turn (and the mirroring), which is the orthogonal part of the matrix.

    Args:
        cloud: Any degree.
        matrix: [4, 4] affine.

    Raises:
        ValueError: If the matrix flattens space.
    """
    matrix = np.asarray(matrix, np.float64)
    if np.array_equal(matrix, np.eye(4)):
        return cloud
    linear = matrix[:3, :3]
    left, sizes, right = np.linalg.svd(linear)
    if sizes.min() < 1e-9 * max(sizes.max(), 1e-30):
        raise ValueError("the transform flattens the cloud; give the object a scale that is not zero")
    positions = cloud.positions_m @ linear.T.astype(np.float32) + matrix[:3, 3].astype(np.float32)
    turn = left @ right
    if np.ptp(sizes) < 1e-6 * sizes.max():
        scales = cloud.scales_m * np.float32(sizes.mean())
        # An ellipsoid is its own mirror image through its centre.
        proper = turn * np.sign(np.linalg.det(turn))
        rotations = wxyz_product(matrices_to_wxyz(proper), cloud.rotations_wxyz)
    else:
        scales, rotations = _transform_ellipsoids(cloud, linear)
    rest = rotate_sh(cloud.sh_rest, turn)
    return replace(cloud, positions_m=positions, scales_m=scales, rotations_wxyz=rotations, sh_rest=rest)


def _transform_ellipsoids(cloud: GaussianCloud, linear: Array) -> tuple[Array, Array]:
    """Scales [N, 3] and rotations [N, 4] of A R S: its singular values and left vectors."""
    scales, rotations = np.empty_like(cloud.scales_m), np.empty_like(cloud.rotations_wxyz)
    for start in range(0, len(cloud), _BLOCK):
        rows = slice(start, start + _BLOCK)
        axes = wxyz_to_matrices(cloud.rotations_wxyz[rows].astype(np.float64)) * cloud.scales_m[rows, None, :]
        vectors, values, _ = np.linalg.svd(linear @ axes)
        vectors[np.linalg.det(vectors) < 0, :, 2] *= -1
        scales[rows], rotations[rows] = values, matrices_to_wxyz(vectors)
    return np.maximum(scales, np.finfo(np.float32).tiny), rotations


def outliers(cloud: GaussianCloud) -> Array:
    """[N] bool: invisible Gaussians, far floaters, and ones as large as the whole.

    They are never worth keeping, and a Blender that draws splats itself quantises all others against their range.
    """
    if not len(cloud):
        return np.zeros(0, bool)
    distance = np.linalg.norm(cloud.positions_m - np.median(cloud.positions_m, axis=0), axis=1)
    reach = float(np.percentile(distance, 99))
    dead: Array = cloud.opacities < _DEAD
    if reach <= 0:
        return dead
    return dead | (distance > _FAR * reach) | (cloud.scales_m.max(axis=1) > _HUGE * reach)


def change_colour(cloud: GaussianCloud, change: ColourChange) -> GaussianCloud:
    """Change colours in every direction of view: the colour seen is changed as a picture would be."""
    matrix, offset = change.matrix()
    dc = cloud.sh_dc @ matrix.T + (matrix @ np.full(3, 0.5) + offset - 0.5) / SH_C0
    return replace(cloud, sh_dc=dc, sh_rest=cloud.sh_rest @ matrix.T.astype(np.float32))


def merge_clouds(clouds: Sequence[GaussianCloud]) -> GaussianCloud:
    """All Gaussians of several clouds; lower degrees are filled up with zeros.

    Raises:
        ValueError: If there are none.
    """
    if not clouds:
        raise ValueError("there is nothing to merge")
    if len(clouds) == 1:
        return clouds[0]
    count = max(cloud.sh_rest.shape[1] for cloud in clouds)
    rest = [np.pad(cloud.sh_rest, ((0, 0), (0, count - cloud.sh_rest.shape[1]), (0, 0))) for cloud in clouds]
    names = ("positions_m", "scales_m", "rotations_wxyz", "opacities", "sh_dc")
    parts = {name: np.concatenate([getattr(cloud, name) for cloud in clouds]) for name in names}
    return GaussianCloud(**parts, sh_rest=np.concatenate(rest))


def lower_degree(cloud: GaussianCloud, degree: int) -> GaussianCloud:
    """The cloud without the coefficients above a degree."""
    return replace(cloud, sh_rest=cloud.sh_rest[:, : SH_REST_COUNTS[min(degree, cloud.degree)]])


def decimate(cloud: GaussianCloud, budget: int) -> GaussianCloud:
    """At most `budget` Gaussians that look like the cloud from farther away.

    Gaussians of a cell of a grid are merged into one with their common mean, covariance and colour, weighted by how
    much of a picture each covers (opacity times the area of its two longer axes). The finest grid that meets the
    budget is found by bisection; merging keeps surfaces closed where leaving Gaussians out would tear them.

    Raises:
        ValueError: If the budget is not positive.
    """
    if budget < 1:
        raise ValueError("the budget must be at least one Gaussian")
    if len(cloud) <= budget:
        return cloud
    cells = _cells_within(cloud.positions_m.astype(np.float64), budget)
    ordered = np.sort(cloud.scales_m.astype(np.float64), axis=1)
    weight = cloud.opacities.astype(np.float64) * ordered[:, 1] * ordered[:, 2] + 1e-30
    total = np.bincount(cells, weight)

    def mean(values: Array) -> Array:
        flat = values.reshape(len(values), -1)
        sums = [np.bincount(cells, weight * flat[:, k]) / total for k in range(flat.shape[1])]
        return np.stack(sums, axis=1).reshape(len(total), *values.shape[1:]) if sums else np.zeros((len(total), 0, 3))

    centre = mean(cloud.positions_m)
    axes = wxyz_to_matrices(cloud.rotations_wxyz.astype(np.float64)) * cloud.scales_m[:, None, :]
    offset = cloud.positions_m - centre[cells]
    covariance = mean(axes @ np.swapaxes(axes, 1, 2) + offset[:, :, None] * offset[:, None, :])
    values, vectors = np.linalg.eigh(covariance)
    vectors[np.linalg.det(vectors) < 0, :, 0] *= -1
    scales = np.sqrt(np.maximum(values, 1e-20))
    area = np.bincount(cells, weight) / np.maximum(scales[:, 1] * scales[:, 2], 1e-30)
    # The merged one is as opaque as its parts are on average, or less where they do not fill its area.
    opacities = np.minimum(mean(cloud.opacities[:, None])[:, 0], area)
    return GaussianCloud(centre, scales, matrices_to_wxyz(vectors), opacities, mean(cloud.sh_dc), mean(cloud.sh_rest))


def _cells_within(positions: Array, budget: int) -> Array:
    """Cell [N] of each point, 0 .. M - 1 with M <= budget, on the finest grid that a bisection finds."""
    low = positions.min(axis=0)
    extent = max(float(np.ptp(positions, axis=0).max()), 1e-12)
    coarse, fine = 0.0, 21.0  # log2 of cells along the longest side
    best: Array = np.zeros(len(positions), np.int64)
    for _ in range(18):
        middle = (coarse + fine) / 2
        index = np.floor((positions - low) * (2.0**middle / extent)).astype(np.int64)
        key = (index[:, 0] << 42) | (index[:, 1] << 21) | index[:, 2]
        found: tuple[Array, Array] = np.unique(key, return_inverse=True)
        if len(found[0]) <= budget:
            coarse, best = middle, found[1].reshape(-1)
        else:
            fine = middle
    return best
