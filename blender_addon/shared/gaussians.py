"""`GaussianCloud`: the one record of 3D Gaussians, post-activation, numpy float32.

Log, logit and channel-major layouts exist only inside the format readers and writers.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np

from .arrays import Array

SH_C0 = 0.28209479177387814
"""Constant of the degree-0 spherical harmonic, 1 / (2 sqrt(pi)); colour = SH_C0 * sh_dc + 0.5."""

SH_REST_COUNTS = (0, 3, 8, 15, 24)
"""Number of higher coefficients for degree 0 to 4."""

_PIECE = 1 << 17  # 512 KiB of float32


@dataclass(frozen=True)
class GaussianCloud:
    """N Gaussians.

    Attributes:
        positions_m: [N, 3] centres, metres.
        scales_m: [N, 3] linear standard deviations, metres, > 0.
        rotations_wxyz: [N, 4] unit quaternions, w first.
        opacities: [N] 0..1.
        sh_dc: [N, 3] degree-0 coefficients; colour = 0.28209479 * sh_dc + 0.5 in display sRGB.
        sh_rest: [N, K, 3] higher coefficients, K = 0, 3, 8, 15 or 24.
    """

    positions_m: Array
    scales_m: Array
    rotations_wxyz: Array
    opacities: Array
    sh_dc: Array
    sh_rest: Array

    def __post_init__(self) -> None:
        """Bring the arrays to float32 and check them.

        Raises:
            ValueError: Naming the field and what is wrong with it.
        """
        n = len(self.positions_m)
        shapes: dict[str, tuple[int, ...]] = {
            "positions_m": (n, 3),
            "scales_m": (n, 3),
            "rotations_wxyz": (n, 4),
            "opacities": (n,),
            "sh_dc": (n, 3),
        }
        for name in (*shapes, "sh_rest"):
            value = np.ascontiguousarray(getattr(self, name), np.float32)
            if name == "sh_rest":
                if (
                    value.ndim != 3
                    or value.shape[0] != n
                    or value.shape[1] not in SH_REST_COUNTS
                    or value.shape[2] != 3
                ):
                    raise ValueError(
                        f"sh_rest has shape {value.shape}, expected ({n}, K, 3) with K in {SH_REST_COUNTS}"
                    )
            elif value.shape != shapes[name]:
                raise ValueError(f"{name} has shape {value.shape}, expected {shapes[name]}")
            if not is_finite(value):
                raise ValueError(f"{name} has values that are not finite")
            object.__setattr__(self, name, value)
        if n == 0:
            return
        if float(self.scales_m.min()) <= 0:
            raise ValueError("scales_m must be positive")
        if float(self.opacities.min()) < 0 or float(self.opacities.max()) > 1:
            raise ValueError("opacities must lie in 0..1")
        lengths = np.sqrt(np.einsum("ij,ij->i", self.rotations_wxyz, self.rotations_wxyz))
        if abs(float(lengths.min()) - 1) > 1e-3 or abs(float(lengths.max()) - 1) > 1e-3:
            raise ValueError("rotations_wxyz must be unit quaternions")

    def __len__(self) -> int:
        """Number of Gaussians."""
        return len(self.positions_m)

    @property
    def degree(self) -> int:
        """Spherical harmonics degree, 0 to 4."""
        return SH_REST_COUNTS.index(self.sh_rest.shape[1])

    @property
    def colours(self) -> Array:
        """[N, 3] degree-0 colour in display sRGB, clamped to 0..1."""
        return np.clip(self.sh_dc * SH_C0 + 0.5, 0, 1)

    @classmethod
    def from_colours(
        cls,
        positions_m: Array,
        scales_m: Array,
        rotations_wxyz: Array,
        opacities: Array,
        colours: Array,
    ) -> GaussianCloud:
        """A cloud of degree 0 from colours [N, 3] in display sRGB."""
        empty = np.zeros((len(positions_m), 0, 3), np.float32)
        return cls(positions_m, scales_m, rotations_wxyz, opacities, (np.asarray(colours) - 0.5) / SH_C0, empty)

    @classmethod
    def of_checked(
        cls,
        positions_m: Array,
        scales_m: Array,
        rotations_wxyz: Array,
        opacities: Array,
        sh_dc: Array,
        sh_rest: Array,
    ) -> GaussianCloud:
        """A cloud without the checks, for a reader that made them block by block while the values were in the cache.

        Everything that construction promises must hold already: float32, contiguous, the shapes, finite values.
        """
        cloud = object.__new__(cls)
        values = (positions_m, scales_m, rotations_wxyz, opacities, sh_dc, sh_rest)
        for field, value in zip(fields(cls), values, strict=True):
            object.__setattr__(cloud, field.name, value)
        return cloud

    def select(self, index: Array) -> GaussianCloud:
        """The Gaussians at `index` (boolean [N] or integer indices)."""
        names = ("positions_m", "scales_m", "rotations_wxyz", "opacities", "sh_dc", "sh_rest")
        return replace(self, **{name: getattr(self, name)[index] for name in names})


def is_finite(values: Array) -> bool:
    """Whether all of a contiguous float array is finite; no temporary, and the memory is walked through once."""
    flat = values.reshape(-1)
    for start in range(0, len(flat), _PIECE):
        piece = flat[start : start + _PIECE]  # the second reduction finds it in the cache
        if not (np.isfinite(piece.max()) and np.isfinite(piece.min())):  # nan wins in both
            return False
    return True


def wxyz_product(a: Array, b: Array) -> Array:
    """Hamilton product a b of quaternions [..., 4], w first: rotate by b, then by a."""
    aw, ax, ay, az = np.moveaxis(a, -1, 0)
    bw, bx, by, bz = np.moveaxis(b, -1, 0)
    return np.stack(
        [
            aw * bw - ax * bx - ay * by - az * bz,
            aw * bx + ax * bw + ay * bz - az * by,
            aw * by - ax * bz + ay * bw + az * bx,
            aw * bz + ax * by - ay * bx + az * bw,
        ],
        axis=-1,
    )


def wxyz_to_matrices(quaternions: Array) -> Array:
    """Rotation matrices [..., 3, 3] of quaternions [..., 4], w first; they are normalised first."""
    q = quaternions / np.linalg.norm(quaternions, axis=-1, keepdims=True)
    w, x, y, z = np.moveaxis(q, -1, 0)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)


def matrices_to_wxyz(matrices: Array) -> Array:
    """Unit quaternions [..., 4], w first and >= 0, of rotation matrices [..., 3, 3].

    Takes the largest of the four candidate components for each matrix, so that no division is by a small number.
    """
    m = np.asarray(matrices)
    d0, d1, d2 = m[..., 0, 0], m[..., 1, 1], m[..., 2, 2]
    squared = np.stack([1 + d0 + d1 + d2, 1 + d0 - d1 - d2, 1 - d0 + d1 - d2, 1 - d0 - d1 + d2], axis=-1)
    off = [
        (m[..., 2, 1] - m[..., 1, 2], m[..., 0, 2] - m[..., 2, 0], m[..., 1, 0] - m[..., 0, 1]),
        (m[..., 1, 0] + m[..., 0, 1], m[..., 0, 2] + m[..., 2, 0], m[..., 2, 1] + m[..., 1, 2]),
    ]
    (a, b, c), (p, q, r) = off
    rows = np.stack(
        [
            np.stack([squared[..., 0], a, b, c], axis=-1),
            np.stack([a, squared[..., 1], p, q], axis=-1),
            np.stack([b, p, squared[..., 2], r], axis=-1),
            np.stack([c, q, r, squared[..., 3]], axis=-1),
        ],
        axis=-2,
    )
    best = squared.argmax(axis=-1)
    quaternion = np.take_along_axis(rows, best[..., None, None], axis=-2)[..., 0, :]
    quaternion = quaternion / np.linalg.norm(quaternion, axis=-1, keepdims=True)
    return np.where(quaternion[..., :1] < 0, -quaternion, quaternion)
