"""The header of a PLY file: byte order, elements, properties, comments, and where the data starts."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from .common import FormatError

_TYPES = {
    **{"char": "i1", "int8": "i1", "uchar": "u1", "uint8": "u1", "short": "i2", "int16": "i2", "ushort": "u2"},
    **{"uint16": "u2", "int": "i4", "int32": "i4", "uint": "u4", "uint32": "u4", "float": "f4", "float32": "f4"},
    **{"double": "f8", "float64": "f8"},
}
_ORDERS: dict[str, Literal["<", ">", ""]] = {"ascii": "", "binary_little_endian": "<", "binary_big_endian": ">"}
_MAX_HEADER_BYTES = 64 * 1024  # a degree-4 header has 3 kB; one of megabytes is an attack or no header
_MAX_COUNT_DIGITS = 20


@dataclass(frozen=True)
class PlyElement:
    """One element of a header.

    Attributes:
        name: As in the file.
        count: Rows that the header announces; not yet compared with the file's size.
        properties: (name, numpy type without byte order), or (name, "list").
    """

    name: str
    count: int
    properties: tuple[tuple[str, str], ...]

    @property
    def has_lists(self) -> bool:
        """Whether its rows differ in length."""
        return any(kind == "list" for _, kind in self.properties)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the properties in the file's order."""
        return tuple(name for name, _ in self.properties)


@dataclass(frozen=True)
class PlyHeader:
    """A parsed header.

    Attributes:
        order: Byte order of the data, '' for ascii.
        elements: In the file's order.
        comments: Without the word `comment`.
        data_offset: Byte where the data starts.
    """

    order: Literal["<", ">", ""]
    elements: tuple[PlyElement, ...]
    comments: tuple[str, ...]
    data_offset: int

    def dtype(self, path: Path, element: PlyElement) -> np.dtype[np.void]:
        """Type of a row of fixed size; native little endian for ascii.

        Raises:
            FormatError: If the element has list properties.
        """
        if element.has_lists:
            raise FormatError(
                path, f"element {element.name} has list properties; this is a mesh", "choose a Gaussian splat PLY"
            )
        order = self.order or "<"
        return np.dtype([(name, order + kind) for name, kind in element.properties])

    def offset_of(self, path: Path, index: int) -> int:
        """Byte where the data of element `index` of a binary file starts; Python's integers do not overflow."""
        return self.data_offset + sum(e.count * self.dtype(path, e).itemsize for e in self.elements[:index])


def read_ply_header(path: Path) -> PlyHeader:
    """Parse the header of a PLY file; only its first 64 KiB are looked at.

    Raises:
        FormatError: Naming the line or the part that makes no sense.
        OSError: If the file cannot be opened.
    """
    with path.open("rb") as file:
        head = file.read(_MAX_HEADER_BYTES)
    if not re.match(rb"ply\r?\n", head):
        raise FormatError(path, "not a PLY file (it does not begin with 'ply')", "choose a Gaussian splat PLY")
    end = re.search(rb"\nend_header\r?\n", head)
    if end is None:
        defect = "the PLY header has no end"
        if len(head) == _MAX_HEADER_BYTES:
            defect += f" within {_MAX_HEADER_BYTES // 1024} KiB"
        raise FormatError(path, defect)
    orders: list[str] = []
    comments: list[str] = []
    elements: list[tuple[str, int, list[tuple[str, str]]]] = []
    for line in head[: end.start()].decode("ascii", "replace").splitlines()[1:]:
        words = line.split()
        if not words or words[0] == "obj_info":
            continue
        if words[0] == "comment":
            comments.append(line.split(None, 1)[1].strip() if len(words) > 1 else "")
        elif words[0] == "format" and len(words) >= 2:
            orders.append(words[1])
        elif words[0] == "element" and len(words) == 3:
            elements.append((words[1], _count(path, words), []))
        elif words[0] == "property" and len(words) == 3 and words[1] in _TYPES and elements:
            elements[-1][2].append((words[2], _TYPES[words[1]]))
        elif words[0] == "property" and len(words) == 5 and words[1] == "list" and elements:
            elements[-1][2].append((words[4], "list"))
        else:
            raise FormatError(path, f"the PLY header has a line that makes no sense: {line[:60]!r}")
    if len(orders) != 1 or orders[0] not in _ORDERS:
        raise FormatError(path, f"the PLY header names no known format ({', '.join(orders)[:60] or 'none'})")
    parsed = tuple(PlyElement(name, count, tuple(properties)) for name, count, properties in elements)
    _refuse_duplicates(path, parsed)
    return PlyHeader(_ORDERS[orders[0]], parsed, tuple(comments), end.end())


def _count(path: Path, words: list[str]) -> int:
    text = words[2]
    if re.fullmatch(rf"-?[0-9]{{1,{_MAX_COUNT_DIGITS}}}", text) is None:
        raise FormatError(
            path, f"the PLY header gives element {words[1][:40]} the count {text[:40]!r}, which is no count"
        )
    if int(text) < 0:
        raise FormatError(path, f"the PLY header gives element {words[1][:40]} the negative count {text}")
    return int(text)


def _refuse_duplicates(path: Path, elements: tuple[PlyElement, ...]) -> None:
    names = [element.name for element in elements]
    for name in names:
        if names.count(name) > 1:
            raise FormatError(path, f"the PLY header names the element {name[:40]} twice")
    for element in elements:
        if len(set(element.names)) < len(element.names):
            twice = next(n for n in element.names if element.names.count(n) > 1)
            raise FormatError(path, f"the PLY header names a property twice ({twice[:40]} of {element.name[:40]})")
