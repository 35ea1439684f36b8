"""A second SPZ encoder, one Gaussian and one number at a time, written from the description of the format.

It shares nothing with the codec, so the two can be held against each other; it also writes version 2, which the codec
only reads, and containers with any defect.
"""

from __future__ import annotations

import gzip
import math
import struct
from dataclasses import dataclass

import zstandard

from blender_addon.shared.gaussians import GaussianCloud


@dataclass
class Parts:
    """A file before it is packed; tests spoil single fields."""

    version: int
    count: int
    degree: int
    streams: list[bytes]
    magic: bytes = b"NGSP"
    fractional_bits: int = 12
    flags: int = 0
    reserved: int = 0
    extensions: bytes = b""

    def gzipped(self) -> bytes:
        return gzip.compress(self.unzipped(), mtime=0)

    def unzipped(self) -> bytes:
        fields = (self.version, self.count, self.degree, self.fractional_bits, self.flags, self.reserved)
        return struct.pack("<4sIIBBBB", self.magic, *fields) + b"".join(self.streams) + self.extensions

    def zstd(
        self,
        frames: list[bytes] | None = None,
        sizes: list[int] | None = None,
        stream_count: int | None = None,
        offset: int | None = None,
    ) -> bytes:
        contents = [s for s in self.streams if s]
        frames = [zstandard.compress(s) for s in contents] if frames is None else frames
        sizes = [len(s) for s in contents] if sizes is None else sizes
        head = struct.pack(
            "<4sIIBBBBI12s",
            self.magic,
            self.version,
            self.count,
            self.degree,
            self.fractional_bits,
            self.flags,
            len(frames) if stream_count is None else stream_count,
            32 + len(self.extensions) if offset is None else offset,
            bytes([self.reserved] * 12),
        )
        table = b"".join(struct.pack("<QQ", len(f), n) for f, n in zip(frames, sizes, strict=True))
        return head + self.extensions + table + b"".join(frames)


def parts(cloud: GaussianCloud, version: int) -> Parts:
    """Quantise with Python's own arithmetic."""
    streams = [bytearray() for _ in range(6)]
    for i in range(len(cloud)):
        for x in cloud.positions_m[i].tolist():
            streams[0] += round(x * 4096).to_bytes(3, "little", signed=True)
        streams[1].append(byte(float(cloud.opacities[i]) * 255))
        streams[2] += bytes(byte(x * 0.15 * 255 + 127.5) for x in cloud.sh_dc[i].tolist())
        streams[3] += bytes(byte((math.log(s) + 10) * 16) for s in cloud.scales_m[i].tolist())
        w, x, y, z = cloud.rotations_wxyz[i].tolist()
        streams[4] += first_three(x, y, z, w) if version == 2 else smallest_three([x, y, z, w])
        for k, row in enumerate(cloud.sh_rest[i].tolist()):
            bucket = 8 if k < 3 else 16
            streams[5] += bytes(byte((round(v * 128) + 128 + bucket // 2) // bucket * bucket) for v in row)
    return Parts(version, len(cloud), cloud.degree, [bytes(s) for s in streams])


def byte(x: float) -> int:
    return min(max(round(x), 0), 255)


def first_three(x: float, y: float, z: float, w: float) -> bytes:
    length = math.sqrt(x * x + y * y + z * z + w * w) * (-1 if w < 0 else 1)
    return bytes(byte(v / length * 127.5 + 127.5) for v in (x, y, z))


def smallest_three(xyzw: list[float]) -> bytes:
    length = math.sqrt(sum(v * v for v in xyzw))
    q = [v / length for v in xyzw]
    largest = max(range(4), key=lambda i: abs(q[i]))
    bits = largest
    for i in range(4):
        if i != largest:
            negative = (q[i] < 0) != (q[largest] < 0)
            bits = bits << 10 | negative << 9 | min(511, int(511 * abs(q[i]) * math.sqrt(2) + 0.5))
    return bits.to_bytes(4, "little")
