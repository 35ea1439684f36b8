"""Mutations of small valid files of every format, and what a reader may do with them.

A reader passes when it returns a valid cloud or raises FormatError in one line, with bounded work and memory. Used by
test_fuzz.py (Hypothesis, bounded) and scripts/fuzz_formats.py (for minutes or hours).
"""

from __future__ import annotations

import base64
import gzip
import io
import json
import re
import signal
import struct
import tracemalloc
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import zstandard

from backend.formats import FORMATS
from blender_addon.shared.formats import FormatError, Reader, read_splats
from tests.formats.sog_oracle import archive, sog
from tests.formats.spz_oracle import parts
from tests.shared.test_gaussians import random_cloud

FREE_BYTES = 200_000_000
CPU_LIMIT_S = 20.0  # thousands of times what a case takes; it ends a hang

KINDS = ("flip", "number", "integer", "float", "delete", "insert", "repeat", "truncate", "swap", "zero")
_URI = "data:application/octet-stream;base64,"
NUMBERS = "0 -1 1 2 7 255 256 65535 65536 2147483647 2147483648 4294967295 9223372036854775807 9223372036854775808 "
NUMBERS += (
    "18446744073709551616 1e9 1e38 1e39 1e308 1e309 -1e309 nan NaN Infinity -0 0.5 1e-45 00 1_0 null true [] {} x"
)
NUMBER_TEXTS = [*NUMBERS.split(), "9" * 400, "9" * 5000, '"1"', ""]
INTEGERS = [0, 1, 2, 3, 4, 5, 127, 128, 255, 256, 32767, 32768, 65535, 65536, 2**24, 2**31 - 1, 2**31, 2**32 - 1]
INTEGERS += [2**32, 2**40, 2**62, 2**63 - 1, 2**63, 2**64 - 1]
FLOATS = [0.0, -0.0, float("nan"), float("inf"), float("-inf"), 1e38, -1e38, 1e-45, 88.8, -104.0, 1e30, 2.0]


@dataclass(frozen=True)
class Mutation:
    """One change: what, where as a share of the file, how long, and a value that means what the kind makes of it."""

    kind: str
    place: float
    length: int
    value: int

    def apply(self, data: bytes) -> bytes:
        at = min(int(self.place * len(data)), max(len(data) - 1, 0))
        end = at + self.length
        if not data or self.kind == "truncate":
            return data[:at]
        if self.kind == "flip":
            return data[:at] + bytes([data[at] ^ 1 << self.value % 8]) + data[at + 1 :]
        if self.kind == "number":
            found = list(re.finditer(rb"-?[0-9]+(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?", data))
            if not found:
                return data
            one = found[int(self.place * len(found))]
            return data[: one.start()] + NUMBER_TEXTS[self.value % len(NUMBER_TEXTS)].encode() + data[one.end() :]
        if self.kind == "integer":
            size = (1, 2, 4, 8)[self.length % 4]
            number = INTEGERS[self.value % len(INTEGERS)] % (1 << 8 * size)
            return data[:at] + number.to_bytes(size, "little" if self.value % 5 else "big") + data[at + size :]
        if self.kind == "float":
            return data[:at] + struct.pack("<f", FLOATS[self.value % len(FLOATS)]) + data[at + 4 :]
        if self.kind == "delete":
            return data[:at] + data[end:]
        if self.kind == "insert":
            return data[:at] + self.value.to_bytes(8, "little") * self.length + data[at:]
        if self.kind == "repeat":
            return data[:end] + data[at:]
        if self.kind == "swap":
            return data[:at] + data[end : end + self.length] + data[at:end] + data[end + self.length :]
        return data[:at] + bytes(len(data[at:end])) + data[end:]


Repack = Callable[[Sequence[Mutation]], bytes]


@dataclass(frozen=True)
class Seed:
    """A valid file and the ways to mutate it.

    Attributes:
        name: Of the seed.
        format: Row of the table of formats.
        suffix: Of the file.
        ways: How mutations reach it: into the file's bytes, or into what is packed in it, which is packed again.
    """

    name: str
    format: str
    suffix: str
    ways: tuple[Repack, ...]

    @property
    def reader(self) -> Reader:
        return next(row.read for row in FORMATS if row.name == self.format)


def apply_all(data: bytes, mutations: Sequence[Mutation]) -> bytes:
    for mutation in mutations:
        data = mutation.apply(data)
    return data


def seeds(folder: Path) -> list[Seed]:
    """Small valid files: of every writer, in the byte orders and versions that are only read, and of the oracles."""
    found: list[Seed] = []
    for row in FORMATS:
        for suffix in row.suffixes:
            if row.write is None or suffix == ".gltf":  # read only
                continue
            for degree in (0, 2):
                path = folder / f"seed{degree}{suffix}"
                assert row.write is not None
                row.write(path, random_cloud(40, degree, seed=degree))
                data = path.read_bytes()
                found.append(Seed(f"{row.name} {suffix} {degree}", row.name, suffix, ways(data)))
                if suffix == ".glb":
                    found.append(Seed(f"gltf text {degree}", row.name, ".gltf", _text_ways(data)))
    for kind in ("<", ">", ""):
        found.append(Seed(f"ply foreign {kind or 'ascii'}", "ply", ".ply", ways(foreign_ply(kind))))
    for version in (2, 3, 4):
        stored = parts(random_cloud(5, 1), version)
        stored.flags, stored.extensions = 2, struct.pack("<III", 0xADBE0003, 4, 6) + struct.pack("<II", 9, 2) + b"ab"
        data = stored.zstd() if version == 4 else stored.gzipped()
        found.append(Seed(f"spz version {version}", "spz", ".spz", ways(data)))
    for version in (1, 2):
        meta, files = sog(random_cloud(9, 1), version)
        found.append(Seed(f"sog version {version}", "sog", ".sog", ways(archive(meta, files))))
    for seed in found:
        assert outcome(folder, seed, seed.ways[0](()), strict=False) == "read", seed.name
    return found


def ways(data: bytes) -> tuple[Repack, ...]:
    """The file's own bytes first, then what is packed in it."""
    raw: Repack = lambda mutations: apply_all(data, mutations)  # noqa: E731
    if data.startswith(b"\x1f\x8b"):
        payload = gzip.decompress(data)
        return raw, lambda mutations: gzip.compress(apply_all(payload, mutations), 1, mtime=0)
    if data.startswith(b"NGSP"):
        return (raw, *_zstd_ways(data))
    if data.startswith(b"PK"):
        return (raw, *_zip_ways(data))
    if data.startswith(b"glTF"):
        return (raw, *_glb_ways(data))
    return (raw,)


def _zstd_ways(data: bytes) -> tuple[Repack, ...]:
    count, offset = data[15], int.from_bytes(data[16:20], "little")
    table = [struct.unpack_from("<QQ", data, offset + 16 * k) for k in range(count)]
    start, streams = offset + 16 * count, []
    for length, _ in table:
        streams.append(zstandard.decompress(data[start : start + length]))
        start += length

    def header(mutations: Sequence[Mutation]) -> bytes:
        end = offset + 16 * count
        return apply_all(data[:end], mutations) + data[end:]

    def stream(mutations: Sequence[Mutation], honest: bool) -> bytes:
        index = int(mutations[0].place * 1e6) % count if mutations else 0
        changed = [apply_all(s, mutations) if k == index else s for k, s in enumerate(streams)]
        frames = [zstandard.compress(s) for s in changed]
        sizes = [len(s) for s in (changed if honest else streams)]
        rows = b"".join(struct.pack("<QQ", len(f), size) for f, size in zip(frames, sizes, strict=True))
        return data[:offset] + rows + b"".join(frames)

    return header, lambda mutations: stream(mutations, True), lambda mutations: stream(mutations, False)


def _zip_ways(data: bytes) -> tuple[Repack, ...]:
    with zipfile.ZipFile(io.BytesIO(data)) as packed:
        files = {name: packed.read(name) for name in packed.namelist()}
    text = files.pop("meta.json")
    names = sorted(files)

    def picture(mutations: Sequence[Mutation]) -> bytes:
        name = names[int(mutations[0].place * 1e6) % len(names)] if mutations else names[0]
        return archive(text, files | {name: apply_all(files[name], mutations)})

    def entry(mutations: Sequence[Mutation]) -> bytes:
        meta: Any = json.loads(text)
        for mutation in mutations:
            _spoil_entry(meta, mutation)
        return archive(meta, files)

    return lambda mutations: archive(apply_all(text, mutations), files), picture, entry


def _spoil_entry(node: Any, mutation: Mutation) -> None:
    """Replace one value of a JSON tree, found by walking down."""
    value: Any = [None, -1, 0, 2**40, 1e300, "x", [], {}, True, [1], 0.5, 3][mutation.value % 12]
    place = mutation.place
    while True:
        keys: list[Any] = list(node) if isinstance(node, dict) else list(range(len(node)))
        if not keys:
            return
        place *= len(keys)
        key, place = keys[int(place)], place % 1.0
        if isinstance(node[key], dict | list) and node[key] and mutation.length % 4:
            node = node[key]
        else:
            node[key] = value
            return


def _glb_ways(data: bytes) -> tuple[Repack, ...]:
    """Mutations of the JSON, with the lengths around it made right again."""
    length = int.from_bytes(data[12:16], "little")
    text, rest = data[20 : 20 + length], data[20 + length :]

    def packed(changed: bytes) -> bytes:
        changed += b" " * (-len(changed) % 4)
        total = 20 + len(changed) + len(rest)
        return data[:8] + struct.pack("<II", total, len(changed)) + data[16:20] + changed + rest

    def entry(mutations: Sequence[Mutation]) -> bytes:
        tree: Any = json.loads(text)
        for mutation in mutations:
            _spoil_entry(tree, mutation)
        return packed(json.dumps(tree).encode())

    return lambda mutations: packed(apply_all(text, mutations)), entry


def _text_ways(data: bytes) -> tuple[Repack, ...]:
    """The same as a .gltf, its buffer in the text: mutations of the text, of one entry, and of the buffer."""
    length = int.from_bytes(data[12:16], "little")
    tree: Any = json.loads(data[20 : 20 + length])
    content = data[28 + length :]

    def text(changed: bytes = content, spoil: Sequence[Mutation] = ()) -> bytes:
        new = json.loads(json.dumps(tree))
        new["buffers"] = [{"byteLength": len(content), "uri": _URI + base64.b64encode(changed).decode()}]
        for mutation in spoil:
            _spoil_entry(new, mutation)
        return json.dumps(new).encode()

    return (
        lambda mutations: apply_all(text(), mutations),
        lambda mutations: text(spoil=mutations),
        lambda mutations: text(apply_all(content, mutations)),
    )


def foreign_ply(order: str) -> bytes:
    """A PLY of another tool: ascii or either byte order, properties in another order, an element in front."""
    names = "rot_0 rot_1 rot_2 rot_3 scale_0 scale_1 scale_2 opacity f_dc_0 f_dc_1 f_dc_2 x y z extra".split()
    names += [f"f_rest_{k}" for k in range(9)]
    values = np.random.default_rng(3).uniform(-2, 2, (5, len(names))).astype(np.float32)
    kind = {"<": "binary_little_endian", ">": "binary_big_endian", "": "ascii"}[order]
    lines = ["ply", f"format {kind} 1.0", "comment made by another tool", "element camera 2", "property uchar a"]
    lines += ["element vertex 5", *(f"property float {name}" for name in names), "end_header", ""]
    head = "\n".join(lines).encode()
    if order:
        return head + b"\1\2" + values.astype(order + "f4").tobytes()
    return head + b"1\n2\n" + "".join(" ".join(map(str, row)) + "\n" for row in values.tolist()).encode()


class Broken(AssertionError):
    """A reader did something that no reader may do."""


def outcome(folder: Path, seed: Seed, data: bytes, *, strict: bool) -> str:
    """Let the reader loose on the bytes.

    Args:
        folder: For the file.
        seed: Says which reader.
        data: The mutated file.
        strict: Refuse damaged Gaussians instead of dropping them, and go through the reader itself, not the table.

    Returns:
        "read" or "refused".

    Raises:
        Broken: Saying what the reader did.
    """
    path = folder / f"case{seed.suffix}"
    path.write_bytes(data)
    tracemalloc.start()
    try:
        with cpu_limit(), warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)
            if strict:
                result = seed.reader(path, drop_invalid=False)
            else:
                result = read_splats(path, formats=FORMATS, drop_invalid=True)
        peak = tracemalloc.get_traced_memory()[1]
        if len(result.cloud) == 0:
            raise Broken("returned a cloud without Gaussians")
        replace(result.cloud)  # checks every value once more
        if any("\n" in note for note in result.notes):
            raise Broken("wrote a note of several lines")
        said = "read"
    except FormatError as error:
        peak = tracemalloc.get_traced_memory()[1]
        text = str(error)
        if not text.startswith(path.name + ": ") or "\n" in text or len(text) > 400:
            raise Broken(f"refused with a bad line: {text[:500]!r}") from error
        said = "refused"
    except Broken:
        raise
    except Exception as error:
        raise Broken(f"raised {type(error).__name__}: {error}") from error
    finally:
        tracemalloc.stop()
    if peak > 4 * len(data) + FREE_BYTES:
        raise Broken(f"took {peak} bytes for a file of {len(data)}")
    return said


@contextmanager
def cpu_limit() -> Iterator[None]:
    """End a hang: an exception after so much computing time, however long the machine lets us wait."""

    if not hasattr(signal, "setitimer"):  # Windows
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise Broken(f"was still at work after {CPU_LIMIT_S} s of computing")

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, CPU_LIMIT_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
