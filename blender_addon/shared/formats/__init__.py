"""Readers and writers of splat files that need numpy alone, and the table of formats.

Each module has `read_X(path, *, drop_invalid=False) -> ReadResult` and `write_X(path, cloud) -> notes`, both in the
FILE's axes: a codec never turns anything. `read_splats` and `write_splats` find the codec and turn between the file's
axes and the body frame (right-handed, Y up), spherical harmonics included; they are what programs call.

Codecs that need a library are added by the backend: every function takes the table as `formats`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from ..axes import axes_to_body_cloud, body_to_axes_cloud
from ..gaussians import GaussianCloud
from .common import Axes, ColourSpace, FormatError, ReadResult
from .compressed_ply import is_compressed_ply, read_compressed_ply, write_compressed_ply
from .gltf import is_gltf, read_gltf, write_gltf
from .ply import is_ply, read_ply, write_ply_y_down
from .splat import read_splat, write_splat
from .spz import is_spz, read_spz, write_spz

__all__ = [
    "SHARED_FORMATS",
    "Axes",
    "ColourSpace",
    "FormatError",
    "ReadResult",
    "Reader",
    "SplatFormat",
    "Writer",
    "find_reader",
    "find_writer",
    "read_splats",
    "write_splats",
]

HEAD_BYTES = 4096
"""What `SplatFormat.sniff` gets to see: enough for a PLY header up to its second element."""

Writer = Callable[[Path, GaussianCloud], tuple[str, ...]]
"""Writes a cloud of the format's axes; returns one line for each thing that was lost beyond quantisation."""


class Reader(Protocol):
    """Reads a file in its own axes."""

    def __call__(self, path: Path, *, drop_invalid: bool = False) -> ReadResult:
        """Read; with `drop_invalid` damaged Gaussians are left out and counted instead of refusing the file."""
        ...


@dataclass(frozen=True)
class SplatFormat:
    """One row of the table of formats.

    Attributes:
        name: Short, for messages and options.
        suffixes: Lower case with the dot; the longest that fits a file name wins.
        axes: What the writer takes; a reader says in its result what it found.
        sniff: Whether the first HEAD_BYTES of a file (fewer if it is shorter) are of this format. A format without a
            magic number answers False and is found by its suffix.
        read: The reader.
        write: The writer, None where the format is only read.
    """

    name: str
    suffixes: tuple[str, ...]
    axes: Axes
    sniff: Callable[[bytes], bool]
    read: Reader
    write: Writer | None


def _by_name_only(head: bytes) -> bool:
    """For a format whose files have no mark of their own."""
    return False


SHARED_FORMATS: tuple[SplatFormat, ...] = (
    SplatFormat(
        "compressed ply",
        (".compressed.ply",),
        "y_down",
        is_compressed_ply,
        read_compressed_ply,
        write_compressed_ply,
    ),
    SplatFormat("ply", (".ply",), "y_down", is_ply, read_ply, write_ply_y_down),
    SplatFormat("gltf", (".glb", ".gltf"), "y_up", is_gltf, read_gltf, write_gltf),
    SplatFormat("splat", (".splat",), "y_down", _by_name_only, read_splat, write_splat),
    SplatFormat("spz", (".spz",), "y_up", is_spz, read_spz, write_spz),
)
"""In the order in which files are sniffed: a narrower format before the wider one that it looks like."""


def find_reader(path: Path, formats: Sequence[SplatFormat] = SHARED_FORMATS) -> SplatFormat:
    """The format of a file: by its first bytes, or by its name where they say nothing.

    Raises:
        FormatError: If it is none of the table's.
        OSError: If it cannot be opened.
    """
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
    for row in formats:
        if row.sniff(head):
            return row
    by_name = _by_suffix(path, formats)
    if by_name is not None:
        return by_name
    raise FormatError(path, "is no splat file that is known here", f"give one of {_list_suffixes(formats)}")


def find_writer(path: Path, formats: Sequence[SplatFormat] = SHARED_FORMATS) -> tuple[SplatFormat, Writer]:
    """The format that a file name asks for, and its writer.

    Raises:
        FormatError: If the suffix is unknown or the format is only read.
    """
    row = _by_suffix(path, formats)
    writable = [f for f in formats if f.write is not None]
    if row is None:
        raise FormatError(path, "has no known suffix", f"choose one of {_list_suffixes(writable)}")
    if row.write is None:
        raise FormatError(path, f"{row.name} is only read, not written", f"choose one of {_list_suffixes(writable)}")
    return row, row.write


def read_splats(
    path: str | os.PathLike[str],
    *,
    formats: Sequence[SplatFormat] = SHARED_FORMATS,
    axes: Axes | None = None,
    drop_invalid: bool = False,
) -> ReadResult:
    """Read any splat file into the body frame.

    Args:
        path: File to read.
        formats: The table to look it up in.
        axes: The file's axes where the caller knows better than the format's rule and the file itself.
        drop_invalid: Leave damaged Gaussians out and count them instead of refusing the file.

    Raises:
        FormatError: If it is no file of a known format, is damaged, or holds nothing.
        OSError: If it cannot be opened.
    """
    path = Path(path)
    result = find_reader(path, formats).read(path, drop_invalid=drop_invalid)
    found = axes or result.axes
    if found == "y_up":
        return replace(result, axes="y_up")
    turned = axes_to_body_cloud(result.cloud, found)
    return replace(result, cloud=turned, axes="y_up").noting(f"turned from {found} to Y up")


def write_splats(
    path: str | os.PathLike[str],
    cloud: GaussianCloud,
    *,
    formats: Sequence[SplatFormat] = SHARED_FORMATS,
) -> tuple[str, ...]:
    """Write a cloud of the body frame in the format that the file's name asks for, in that format's axes.

    Returns:
        What was lost beyond the format's quantisation, one line each.

    Raises:
        FormatError: If the format is unknown, only read, or cannot hold the cloud.
        OSError: If the file cannot be written.
    """
    path = Path(path)
    row, write = find_writer(path, formats)
    if len(cloud) == 0:
        raise FormatError(path, "there are no Gaussians to write", "choose another source")
    return write(path, body_to_axes_cloud(cloud, row.axes))


def _by_suffix(path: Path, formats: Sequence[SplatFormat]) -> SplatFormat | None:
    name = path.name.lower()
    fitting = [(len(suffix), row) for row in formats for suffix in row.suffixes if name.endswith(suffix)]
    return max(fitting, key=lambda pair: pair[0])[1] if fitting else None


def _list_suffixes(formats: Sequence[SplatFormat]) -> str:
    return ", ".join(dict.fromkeys(suffix for row in formats for suffix in row.suffixes))
