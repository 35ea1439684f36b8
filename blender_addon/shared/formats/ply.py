"""Gaussian PLY in the layout of the INRIA code base: logit opacity, log scales, channel-major higher coefficients.

Reads any degree from 0 to 4, any order of properties, extra properties and extra elements of fixed size, ascii and
both byte orders. Writes binary little endian with normals and at least degree 3 padding on request, which is what
every viewer takes.
"""

from __future__ import annotations

import io
import os
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..gaussians import SH_REST_COUNTS, GaussianCloud
from ..limits import MAX_SPLATS, OPACITY_LOGIT_MAX

_TYPES = {
    **{"char": "i1", "int8": "i1", "uchar": "u1", "uint8": "u1", "short": "i2", "int16": "i2", "ushort": "u2"},
    **{"uint16": "u2", "int": "i4", "int32": "i4", "uint": "u4", "uint32": "u4", "float": "f4", "float32": "f4"},
    **{"double": "f8", "float64": "f8"},
}
_MAX_HEADER_BYTES = 64 * 1024
_LOG_SCALE_LIMIT = 80.0  # exp(80) still fits float32; a larger value in a file is damage


class PlyError(ValueError):
    """A file that is no readable Gaussian PLY; the message is one line for the user."""


@dataclass(frozen=True)
class _Element:
    name: str
    count: int
    properties: tuple[tuple[str, str], ...]  # (name, numpy type without byte order)


def read_ply(path: str | os.PathLike[str]) -> GaussianCloud:
    """Read a Gaussian PLY.

    Args:
        path: File to read.

    Raises:
        PlyError: If it is no Gaussian PLY, is cut short, or holds values that no Gaussian has.
        OSError: If the file cannot be opened.
    """
    path = Path(path)
    with path.open("rb") as file:
        head = file.read(_MAX_HEADER_BYTES)
    order, elements, offset = _parse_header(head, path.name)
    index = next((k for k, e in enumerate(elements) if e.name == "vertex"), None)
    if index is None:
        raise PlyError(f"{path.name}: no vertex element, so no Gaussians")
    vertex = elements[index]
    if vertex.count > MAX_SPLATS:
        raise PlyError(f"{path.name}: announces {vertex.count} Gaussians, more than {MAX_SPLATS} are not read")
    table = (
        _read_ascii(path, offset, elements, index)
        if order == ""
        else _read_binary(path, offset, elements, index, order)
    )
    return _to_cloud(table, path.name)


def write_ply(path: str | os.PathLike[str], cloud: GaussianCloud, *, degree: int | None = None) -> None:
    """Write a cloud as binary INRIA PLY; the file appears under its name only when it is whole.

    Args:
        path: File to write.
        cloud: Any degree.
        degree: Degree of the file; higher coefficients that the cloud lacks are zero. None keeps the cloud's. Degree 3
            gives the 62 floats a Gaussian that the strictest viewers ask for.

    Raises:
        ValueError: If `degree` is below the cloud's.
        OSError: If the file cannot be written.
    """
    degree = cloud.degree if degree is None else degree
    if degree < cloud.degree:
        raise ValueError(f"a cloud of degree {cloud.degree} does not fit a file of degree {degree}")
    rest_count = SH_REST_COUNTS[degree]
    names = ["x", "y", "z", "nx", "ny", "nz", "f_dc_0", "f_dc_1", "f_dc_2"]
    names += [f"f_rest_{k}" for k in range(3 * rest_count)]
    names += ["opacity", "scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3"]
    rest = np.zeros((len(cloud), 3, rest_count), np.float32)
    rest[:, :, : cloud.sh_rest.shape[1]] = cloud.sh_rest.transpose(0, 2, 1)
    opacities = np.minimum(cloud.opacities.astype(np.float64), OPACITY_LOGIT_MAX)
    opacities = np.maximum(opacities, 1.0 - OPACITY_LOGIT_MAX)
    columns = np.concatenate(
        [
            cloud.positions_m,
            np.zeros((len(cloud), 3), np.float32),
            cloud.sh_dc,
            rest.reshape(len(cloud), -1),
            np.log(opacities / (1 - opacities))[:, None].astype(np.float32),
            np.log(cloud.scales_m),
            cloud.rotations_wxyz,
        ],
        axis=1,
    ).astype("<f4")
    header = ["ply", "format binary_little_endian 1.0", f"element vertex {len(cloud)}"]
    header += [f"property float {name}" for name in names] + ["end_header", ""]
    path = Path(path)
    part = path.with_name(path.name + ".part")
    try:
        with part.open("wb") as file:
            file.write("\n".join(header).encode("ascii"))
            file.write(columns.tobytes())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _parse_header(head: bytes, name: str) -> tuple[str, list[_Element], int]:
    """Byte order ('<', '>' or '' for ascii), elements, and where the data starts."""
    if not re.match(rb"ply\r?\n", head):
        raise PlyError(f"{name}: not a PLY file")
    end = re.search(rb"end_header\r?\n", head)
    if end is None:
        raise PlyError(f"{name}: the PLY header has no end; the file is cut short or damaged")
    order: str | None = None
    elements: list[tuple[str, int, list[tuple[str, str]]]] = []
    for line in head[: end.start()].decode("ascii", "replace").splitlines()[1:]:
        words = line.split()
        if not words or words[0] in ("comment", "obj_info"):
            continue
        if words[0] == "format" and len(words) >= 2:
            order = {"ascii": "", "binary_little_endian": "<", "binary_big_endian": ">"}.get(words[1])
        elif words[0] == "element" and len(words) == 3 and words[2].isdigit():
            elements.append((words[1], int(words[2]), []))
        elif words[0] == "property" and len(words) == 3 and words[1] in _TYPES and elements:
            elements[-1][2].append((words[2], _TYPES[words[1]]))
        elif words[0] == "property" and len(words) == 5 and words[1] == "list" and elements:
            elements[-1][2].append((words[4], "list"))
        else:
            raise PlyError(f"{name}: the PLY header has a line that makes no sense: {line[:60]!r}")
    if order is None:
        raise PlyError(f"{name}: the PLY header names no known format")
    return order, [_Element(n, c, tuple(p)) for n, c, p in elements], end.end()


def _read_binary(path: Path, offset: int, elements: list[_Element], index: int, order: str) -> np.ndarray:
    for element in elements[:index]:
        offset += element.count * _dtype(element, order, path.name).itemsize
    dtype = _dtype(elements[index], order, path.name)
    count = elements[index].count
    size = path.stat().st_size
    if size < offset + count * dtype.itemsize:
        whole = max(0, (size - offset) // dtype.itemsize)
        raise PlyError(f"{path.name}: cut short, {whole} of {count} Gaussians are there; get the file again")
    return np.fromfile(path, dtype, count, offset=offset)


def _read_ascii(path: Path, offset: int, elements: list[_Element], index: int) -> np.ndarray:
    dtype = _dtype(elements[index], "<", path.name)
    skip = sum(e.count for e in elements[:index])
    count = elements[index].count
    lines = path.read_bytes()[offset:].splitlines()[skip : skip + count]
    if len(lines) < count:
        raise PlyError(f"{path.name}: cut short, {len(lines)} of {count} Gaussians are there; get the file again")
    try:
        values = np.loadtxt(io.BytesIO(b"\n".join(lines)), np.float64, ndmin=2) if count else np.zeros((0, len(dtype)))
    except ValueError:
        raise PlyError(f"{path.name}: has a line that is not {len(dtype)} numbers") from None
    if values.shape[1] != len(dtype):
        raise PlyError(f"{path.name}: has {values.shape[1]} numbers a line, the header says {len(dtype)}")
    table = np.empty(count, dtype)
    for k, column in enumerate(dtype.names or ()):
        table[column] = values[:, k]
    return table


def _dtype(element: _Element, order: str, name: str) -> np.dtype:
    if any(kind == "list" for _, kind in element.properties):
        raise PlyError(f"{name}: element {element.name} has list properties; this is a mesh, not a Gaussian PLY")
    try:
        return np.dtype([(n, order + kind) for n, kind in element.properties])
    except ValueError:
        raise PlyError(f"{name}: the PLY header names a property twice") from None


def _to_cloud(table: np.ndarray, name: str) -> GaussianCloud:
    present = set(table.dtype.names or ())
    groups = {
        "position": ["x", "y", "z"],
        "colour": ["f_dc_0", "f_dc_1", "f_dc_2"],
        "opacity": ["opacity"],
        "scale": ["scale_0", "scale_1", "scale_2"],
        "rotation": ["rot_0", "rot_1", "rot_2", "rot_3"],
    }
    for what, names in groups.items():
        missing = [n for n in names if n not in present]
        if missing:
            raise PlyError(f"{name}: has no {what} ({missing[0]}); this is a point cloud or mesh, not a Gaussian PLY")

    def columns(names: list[str]) -> np.ndarray:
        return np.stack([table[n].astype(np.float32) for n in names], axis=1)

    rest_names = sorted((n for n in present if re.fullmatch(r"f_rest_\d+", n)), key=lambda n: int(n[7:]))
    if len(rest_names) % 3 or len(rest_names) // 3 not in SH_REST_COUNTS:
        raise PlyError(f"{name}: has {len(rest_names)} f_rest properties, which is no spherical harmonics degree")
    count = len(rest_names) // 3
    rest = (
        columns(rest_names).reshape(len(table), 3, count).transpose(0, 2, 1) if count else np.zeros((len(table), 0, 3))
    )
    logit = columns(["opacity"])[:, 0].astype(np.float64)
    opacities = 1 / (1 + np.exp(-np.clip(logit, -700, 700)))
    opacities = np.where(opacities >= OPACITY_LOGIT_MAX - 2.0**-24, 1.0, opacities)
    log_scales = columns(groups["scale"])
    rotations = columns(groups["rotation"])
    norms = np.linalg.norm(rotations, axis=1, keepdims=True)
    finite = all(np.isfinite(a).all() for a in (log_scales, rotations, rest)) and not np.isnan(logit).any()
    if not finite or (np.abs(log_scales) > _LOG_SCALE_LIMIT).any():
        raise PlyError(f"{name}: holds values that are not finite; the file is damaged")
    rotations = np.where(norms > 1e-12, rotations / np.maximum(norms, 1e-12), np.array([1, 0, 0, 0], np.float32))
    try:
        return GaussianCloud(
            columns(groups["position"]), np.exp(log_scales), rotations, opacities, columns(groups["colour"]), rest
        )
    except ValueError as error:
        raise PlyError(f"{name}: {error}") from error
