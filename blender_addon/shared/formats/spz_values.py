"""The values of SPZ and their quantisation, as numbers without the container around them.

Positions are 24-bit fixed point, logarithms of scales go in steps of 1/16 from -10 up, opacities in 255 steps,
degree-0 coefficients in steps of 1 / (255 * 0.15) around 0, rotations by their three smallest components with a sign
and 9 bits each (version 2: x, y, z of 8 bits), higher coefficients in 8 bits from -1 to 1, of which the writer uses 5
for degree 1 and 4 above. Constants from nianticlabs/spz (load-spz.cc).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from ..gaussians import SH_REST_COUNTS, GaussianCloud

Floats: TypeAlias = npt.NDArray[np.float32]
Bytes: TypeAlias = npt.NDArray[np.uint8]

STREAM_NAMES: Final = ("positions", "opacities", "colours", "scales", "rotations", "spherical harmonics")
MAX_FRACTIONAL_BITS: Final = 24
FRACTIONAL_BITS: Final = 12
"""Of a position in metres, as the reference writes it: steps of 0.24 mm, up to 2048 m from the origin."""

COLOUR_SCALE: Final = 0.15
"""Wider than the 0.282 of a colour, so that coefficients beyond white and black fit."""

_CHUNK = 1 << 18  # Gaussians at a time, so that intermediate arrays stay small
_OTHERS = np.array([[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]])  # the components beside the largest, of x y z w
_SIN_45 = float(np.sqrt(0.5))  # the largest value that one of the three smallest components can have
_SH_STEPS = np.array([8] * 3 + [16] * 21, np.int16)  # of 256: 5 bits for degree 1, 4 bits above


@dataclass(frozen=True)
class Packed:
    """The content of a file.

    Attributes:
        count: Gaussians.
        degree: Of the spherical harmonics, 0 to 4.
        version: 2 has the older rotations, 3 and 4 the newer ones.
        fractional_bits: Of a position.
        streams: Six byte strings in the order of STREAM_NAMES, of the lengths that `stream_sizes` tells.
    """

    count: int
    degree: int
    version: int
    fractional_bits: int
    streams: tuple[bytes | memoryview, ...]


def stream_sizes(count: int, degree: int, version: int) -> tuple[int, ...]:
    """Bytes of each of the six streams."""
    rotation = 3 if version == 2 else 4
    return 9 * count, count, 3 * count, 3 * count, rotation * count, 3 * SH_REST_COUNTS[degree] * count


def unpack(packed: Packed) -> GaussianCloud:
    """The cloud in the stored frame."""
    count, terms = packed.count, SH_REST_COUNTS[packed.degree]
    shapes = (9,), (), (3,), (3,), (3,) if packed.version == 2 else (4,), (terms, 3)
    raw = [np.frombuffer(s, np.uint8).reshape(count, *shape) for s, shape in zip(packed.streams, shapes, strict=True)]
    positions, scales, colours = (np.empty((count, 3), np.float32) for _ in range(3))
    rotations = np.empty((count, 4), np.float32)
    opacities = np.empty(count, np.float32)
    harmonics = np.empty((count, terms, 3), np.float32)
    unpack_rotations = _unpack_first_three if packed.version == 2 else _unpack_smallest_three
    for part in _chunks(count):
        positions[part] = _unpack_positions(raw[0][part], packed.fractional_bits)
        opacities[part] = raw[1][part] / np.float32(255)
        colours[part] = (raw[2][part] / np.float32(255) - np.float32(0.5)) / np.float32(COLOUR_SCALE)
        scales[part] = np.exp(raw[3][part] / np.float32(16) - np.float32(10))
        rotations[part] = unpack_rotations(raw[4][part])
        harmonics[part] = (raw[5][part].astype(np.float32) - 128) / 128
    # Every pattern of bits is a Gaussian, so nothing has to be looked at again.
    return GaussianCloud.of_checked(positions, scales, rotations, opacities, colours, harmonics)


def pack(cloud: GaussianCloud, version: int) -> tuple[Packed, tuple[str, ...]]:
    """Quantise a cloud for version 3 or 4.

    Returns:
        The content, and what was lost beyond the quantisation, one line each.

    Raises:
        ValueError: If a position is too far from the origin for the format.
    """
    bits, notes = _fractional_bits(cloud.positions_m)
    count, terms = len(cloud), cloud.sh_rest.shape[1]
    widths = stream_sizes(1, cloud.degree, version)
    streams = [np.empty((count, width), np.uint8) for width in widths]
    clamped = {"scales": 0, "colours": 0, "spherical harmonics": 0}
    for part in _chunks(count):
        rows = len(range(*part.indices(count)))
        streams[0][part] = _pack_positions(cloud.positions_m[part], bits)
        streams[1][part] = _to_bytes(cloud.opacities[part] * np.float32(255))[:, None]
        colours = cloud.sh_dc[part] * np.float32(255 * COLOUR_SCALE) + np.float32(127.5)
        streams[2][part] = _to_bytes(colours)
        scales = (np.log(cloud.scales_m[part]) + np.float32(10)) * np.float32(16)
        streams[3][part] = _to_bytes(scales)
        streams[4][part] = _pack_smallest_three(cloud.rotations_wxyz[part])
        # Beyond +-200 all is clamped, and 16 bits hold what is not.
        harmonics = np.rint(np.clip(cloud.sh_rest[part], -200, 200) * np.float32(128)).astype(np.int16) + np.int16(128)
        steps = _SH_STEPS[:terms, None]
        rounded = (harmonics + steps // 2) & -steps  # down to a multiple of a power of two
        streams[5][part] = np.clip(rounded, 0, 255).reshape(rows, -1)
        clamped["scales"] += _outside(scales)
        clamped["colours"] += _outside(colours)
        clamped["spherical harmonics"] += _outside(harmonics)
    notes += [f"{k} Gaussians have {name} beyond the format's range; clamped" for name, k in clamped.items() if k]
    return Packed(count, cloud.degree, version, bits, tuple(s.tobytes() for s in streams)), tuple(notes)


def _chunks(count: int) -> Iterator[slice]:
    return (slice(start, min(start + _CHUNK, count)) for start in range(0, count, _CHUNK))


def _fractional_bits(positions: npt.NDArray[Any]) -> tuple[int, list[str]]:
    reach = float(np.abs(positions).max(initial=0))
    bits = next((b for b in range(FRACTIONAL_BITS, -1, -1) if np.rint(reach * 2.0**b) < 2**23), -1)
    if bits < 0:
        raise ValueError(f"a Gaussian is {reach:.3g} m from the origin, SPZ reaches 8388 km")
    coarse = f"positions are stored in steps of {1000 / 2**bits:.3g} mm, because they reach {reach:.0f} m"
    return bits, [coarse] if bits < FRACTIONAL_BITS else []


def _unpack_positions(raw: Bytes, fractional_bits: int) -> Floats:
    """[n, 9] bytes to [n, 3]."""
    words = np.zeros((len(raw), 3, 4), np.uint8)
    words[:, :, 1:] = raw.reshape(-1, 3, 3)
    fixed = words.view("<i4")[:, :, 0] >> 8  # the shift brings the sign along
    return fixed.astype(np.float32) * np.float32(2.0**-fractional_bits)


def _pack_positions(positions: Floats, fractional_bits: int) -> Bytes:
    fixed = np.rint(positions.astype(np.float64) * 2.0**fractional_bits).astype("<i4")
    return np.ascontiguousarray(fixed).view(np.uint8).reshape(-1, 3, 4)[:, :, :3].reshape(-1, 9)


def _unpack_first_three(raw: Bytes) -> Floats:
    """[n, 3] bytes x, y, z to [n, 4] wxyz; w is what is missing to length 1."""
    xyz = raw / np.float32(127.5) - np.float32(1)
    w = np.sqrt(np.maximum(1 - np.einsum("ij,ij->i", xyz, xyz), 0))
    q = np.concatenate([w[:, None], xyz], axis=1)
    return q / np.linalg.norm(q, axis=1, keepdims=True)


def _unpack_smallest_three(raw: Bytes) -> Floats:
    """[n, 4] bytes to [n, 4] wxyz: which component is the largest, then sign and 9 bits of each other one."""
    words = np.ascontiguousarray(raw).view("<u4")[:, 0]
    fields = (words[:, None] >> np.array([20, 10, 0], np.uint32)) & 0x3FF
    values = (fields & 0x1FF).astype(np.float32) * np.float32(_SIN_45 / 511)
    values = np.where(fields & 0x200, -values, values)
    largest = (words >> 30).astype(np.intp)
    xyzw = np.empty((len(raw), 4), np.float32)
    np.put_along_axis(xyzw, _OTHERS[largest], values, axis=1)
    missing = np.sqrt(np.maximum(1 - np.einsum("ij,ij->i", values, values), 0))
    np.put_along_axis(xyzw, largest[:, None], missing[:, None], axis=1)
    q = np.roll(xyzw, 1, axis=1)
    return q / np.linalg.norm(q, axis=1, keepdims=True)


def _pack_smallest_three(rotations_wxyz: Floats) -> Bytes:
    q = np.roll(rotations_wxyz.astype(np.float64), -1, axis=1)
    q /= np.linalg.norm(q, axis=1, keepdims=True)
    largest = np.abs(q).argmax(axis=1)
    q *= np.where(np.take_along_axis(q, largest[:, None], axis=1) < 0, -1.0, 1.0)  # -q is the same rotation
    others = np.take_along_axis(q, _OTHERS[largest], axis=1)
    fields = np.minimum(np.floor(np.abs(others) * (511 / _SIN_45) + 0.5), 511).astype(np.uint32)
    fields |= np.where(others < 0, 0x200, 0).astype(np.uint32)
    words = largest.astype(np.uint32) << 30 | fields[:, 0] << 20 | fields[:, 1] << 10 | fields[:, 2]
    return words.astype("<u4")[:, None].view(np.uint8)


def _to_bytes(values: npt.NDArray[Any]) -> Bytes:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def _outside(values: npt.NDArray[Any]) -> int:
    """Rows with a value that a byte does not reach, beyond the half step that rounding may take."""
    rows = values.reshape(len(values), -1)
    return int(((rows < -0.5) | (rows > 255.5)).any(axis=1).sum()) if rows.shape[1] else 0
