"""glTF 2.0 with KHR_gaussian_splatting, as Khronos ratified it.

Attributes of a POINTS primitive: POSITION, and with the extension's prefix ROTATION (xyzw), SCALE (linear), OPACITY
(linear) and SH_DEGREE_l_COEF_n (one VEC3 a coefficient, degree 0 to 3, the basis of INRIA's code). Rotations, scales
and opacities may be normalised integers; bytes and shorts with a sign are taken for scales too, since the text before
the editorial review of 2026-04 had them. Right-handed, Y up.

Reads .glb and .gltf, all primitives of the scene under their nodes' transforms, and both colour spaces. The colours of
`lin_rec709_display` are composited before the transfer function, which no cloud in display sRGB can repeat: the base
colour is converted exactly and the higher coefficients to first order about it. Writes .glb in `srgb_rec709_display`
with COLOR_0, which the specification wants linear, for viewers without the extension.

No library: pygltflib 1.16 maps JSON to objects and has no bounds checks, which are most of a reader, and nothing about
the extension; inside Blender there is numpy alone.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final, cast

import numpy as np

from ..arrays import Array
from ..gaussians import SH_C0, SH_REST_COUNTS, GaussianCloud, matrices_to_wxyz, wxyz_product, wxyz_to_matrices
from ..limits import MAX_SPLATS
from ..sh import rotate_sh
from .blocks import CloudArrays, in_runs
from .common import (
    ColourSpace,
    FormatError,
    ReadResult,
    atomic_file,
    dropped_notes,
    limit_degree,
    normalised,
    require_count,
    reserve,
    valid_rows,
)
from .gltf_container import MAGIC, Accessor, GltfFile, JsonObject, write_glb

EXTENSION: Final = "KHR_gaussian_splatting"

_PREFIX: Final = EXTENSION + ":"
_FLOAT: Final = (5126,)
_POSITION_TYPES: Final = (5126, 5120, 5121, 5122, 5123)  # integers by KHR_mesh_quantization
_ROTATION_TYPES: Final = (5126, 5120, 5122)
_SCALE_TYPES: Final = (5126, 5120, 5121, 5122, 5123)
_OPACITY_TYPES: Final = (5126, 5121, 5123)
_COLOUR_SPACES: Final[dict[str, ColourSpace]] = {"srgb_rec709_display": "srgb", "lin_rec709_display": "linear"}
_KNOWN: Final = {"kernel": "ellipse", "projection": "perspective", "sortingMethod": "cameraDistance"}
_HARMLESS: Final = ("KHR_materials_", "KHR_texture_", "KHR_lights_", "EXT_texture_", "KHR_animation_", "KHR_xmp")
_UNDERSTOOD: Final = (EXTENSION, "KHR_mesh_quantization")
_MAX_NODES: Final = 100_000
_MAX_PARTS: Final = 10_000
_SCAN_ROWS: Final = 1 << 16
_BLOCK_STRIDE: Final = (
    32  # bytes counted a row: blocks of 16k rows, since every attribute of a block is a read of its own
)
_GROWTH_BYTES: Final = 128 * 1024 * 1024
_FLAT_M: Final = 1e-9  # written for a scale of 0, which the format allows and a Gaussian does not have


@dataclass(frozen=True)
class _Part:
    """One primitive under one node: its accessors, checked, and the node's transform."""

    position: Accessor
    rotation: Accessor
    scale: Accessor
    opacity: Accessor
    coefficients: tuple[Accessor, ...]
    colour_space: ColourSpace
    world: Array  # [4, 4]

    @property
    def degree(self) -> int:
        """Of its spherical harmonics."""
        return {1: 0, 4: 1, 9: 2, 16: 3}[len(self.coefficients)]


def is_gltf(head: bytes) -> bool:
    """Whether a file that begins like this is a .glb, or JSON that may be a .gltf."""
    return head[:4] == MAGIC or (head.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"{" and b'"asset"' in head)


def read_gltf(path: str | os.PathLike[str], *, drop_invalid: bool = False) -> ReadResult:
    """Read all Gaussians of a glTF scene, in glTF's axes (Y up).

    Args:
        path: A .glb or .gltf file.
        drop_invalid: Leave damaged Gaussians out and count them instead of refusing the file.

    Raises:
        FormatError: If it is damaged, has no Gaussians, or needs what is not read (sparse or compressed accessors).
        OSError: If it, or a buffer beside it, cannot be opened.
    """
    path = Path(path)
    file = GltfFile(path)
    _refuse_required(file)
    notes: list[str] = []
    parts = _collect(file, notes)
    if not parts:
        raise FormatError(path, f"has no primitive with {EXTENSION}", "export it with Gaussian splats")
    count = sum(part.position.count for part in parts)
    require_count(path, count)
    rest_count = SH_REST_COUNTS[max(part.degree for part in parts)]
    needed = count * 4 * (14 + 3 * rest_count)
    if needed > 4 * file.size + _GROWTH_BYTES:
        raise FormatError(path, f"instances its splats until they take {needed >> 20} MiB", "export each of them once")
    arrays = CloudArrays.empty(count, rest_count)
    logarithms = _has_log_scales(path, parts)
    if logarithms:
        notes.append("most scales are negative, so they were taken as logarithms, as drafts before 2026 had them")
    flat: list[int] = []
    start = 0
    for part in parts:
        own = arrays.rows(start, start + part.position.count)
        in_runs(part.position.count, _BLOCK_STRIDE, partial(_fill_run, path, part, logarithms, own, flat))
        start += part.position.count
    if any(flat):
        notes.append(f"{sum(flat)} scales of 0 became {_FLAT_M:g}")
    spaces = {part.colour_space for part in parts}
    if "linear" in spaces:
        notes.append(
            "linear colours were converted to sRGB: the base colour exactly, higher coefficients to first order, and"
            " overlapping Gaussians blend a little differently"
        )
    cloud, dropped = arrays.to_cloud(path, drop_invalid=drop_invalid)
    space: ColourSpace = "linear" if spaces == {"linear"} else "srgb"
    unique = tuple(dict.fromkeys(notes))
    return ReadResult(cloud, "y_up", space, dropped, (*unique, *dropped_notes(dropped)))


def write_gltf(path: str | os.PathLike[str], cloud: GaussianCloud) -> tuple[str, ...]:
    """Write a .glb of a cloud in the body frame, which is glTF's.

    Returns:
        What was lost beyond float32: coefficients above degree 3, where there are any.

    Raises:
        FormatError: If the name is not that of a .glb, or the file would be too large for one.
        OSError: If the file cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() != ".glb":
        raise FormatError(path, "glTF is written as one binary file only", "choose the suffix .glb")
    cloud, notes = limit_degree(cloud, 3)
    colour = np.concatenate([_srgb_to_linear(cloud.colours), cloud.opacities[:, None]], axis=1)
    attributes: dict[str, Array] = {
        "POSITION": cloud.positions_m,
        "COLOR_0": np.rint(colour * 65535).astype("<u2"),
        _PREFIX + "ROTATION": cloud.rotations_wxyz[:, [1, 2, 3, 0]],
        _PREFIX + "SCALE": cloud.scales_m,
        _PREFIX + "OPACITY": cloud.opacities,
        _PREFIX + "SH_DEGREE_0_COEF_0": cloud.sh_dc,
    }
    for name, k in _rest_names(cloud.degree):
        attributes[name] = cloud.sh_rest[:, k]
    arrays = [np.ascontiguousarray(a, a.dtype.newbyteorder("<")) for a in attributes.values()]
    document = _document(list(attributes), arrays)
    pieces = write_glb(path, document, arrays)
    with atomic_file(path) as file:
        reserve(file, sum(len(piece) for piece in pieces))
        for piece in pieces:
            file.write(piece)
    return notes


def _document(names: list[str], arrays: list[Array]) -> JsonObject:
    """The JSON of a .glb with one primitive."""
    views: list[JsonObject] = []
    accessors: list[JsonObject] = []
    offset = 0
    for name, array in zip(names, arrays, strict=True):
        views.append({"buffer": 0, "byteOffset": offset, "byteLength": array.nbytes, "target": 34962})
        kind = {1: "SCALAR", 3: "VEC3", 4: "VEC4"}[array.shape[1] if array.ndim == 2 else 1]
        accessor: JsonObject = {"bufferView": len(accessors), "count": len(array), "type": kind}
        accessor["componentType"] = 5126 if array.dtype.kind == "f" else 5123
        if name == "COLOR_0":
            accessor["normalized"] = True
        if name == "POSITION":
            accessor |= {"min": array.min(axis=0).tolist(), "max": array.max(axis=0).tolist()}
        accessors.append(accessor)
        offset += array.nbytes + -array.nbytes % 4
    extension = {"colorSpace": "srgb_rec709_display", **_KNOWN}
    primitive = {
        "mode": 0,
        "attributes": {name: k for k, name in enumerate(names)},
        "extensions": {EXTENSION: extension},
    }
    return {
        "asset": {"version": "2.0", "generator": "Effigy"},
        "extensionsUsed": [EXTENSION],
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0, "name": "gaussians"}],
        "meshes": [{"primitives": [primitive]}],
        "buffers": [{"byteLength": offset}],
        "bufferViews": views,
        "accessors": accessors,
    }


def _rest_names(degree: int) -> list[tuple[str, int]]:
    """Attribute of each higher coefficient, and its place in `sh_rest`."""
    return [
        (f"{_PREFIX}SH_DEGREE_{band}_COEF_{n}", band * band - 1 + n)
        for band in range(1, degree + 1)
        for n in range(2 * band + 1)
    ]


def _refuse_required(file: GltfFile) -> None:
    for name in file.list_of(file.json, "extensionsRequired"):
        if name not in _UNDERSTOOD and not str(name).startswith(_HARMLESS):
            raise FormatError(
                file.path, f"needs the extension {str(name)[:60]}, which is not read", "export it without that"
            )


def _collect(file: GltfFile, notes: list[str]) -> list[_Part]:
    """Every splat primitive under every node of the scene, parents before children."""
    meshes: dict[int, list[_Part]] = {}
    parts: list[_Part] = []
    count = 0
    for node, world in _nodes(file):
        if "mesh" not in node:
            continue
        index = file.integer_of(node, "mesh")
        if index not in meshes:
            meshes[index] = _mesh_parts(file, index, notes)
        if meshes[index]:
            _check_transform(file, world)
        parts += [replace(part, world=world) for part in meshes[index]]
        count += sum(part.position.count for part in meshes[index])
        if count > MAX_SPLATS:
            raise file.fail(f"holds more than {MAX_SPLATS} Gaussians")
        if len(parts) > _MAX_PARTS:
            raise FormatError(file.path, f"shows its splats more than {_MAX_PARTS} times", "export each of them once")
    return parts


def _mesh_parts(file: GltfFile, index: int, notes: list[str]) -> list[_Part]:
    parts: list[_Part] = []
    primitives = file.list_of(file.item("meshes", index), "primitives")
    for entry in primitives:
        if not isinstance(entry, dict):
            raise file.fail("a primitive in its JSON is no object")
        primitive = cast(JsonObject, entry)
        if EXTENSION in file.object_of(primitive, "extensions"):
            parts.append(_part(file, primitive, notes))
    if len(parts) < len(primitives):
        notes.append(f"ignored {len(primitives) - len(parts)} primitives of meshes[{index}] that are no Gaussians")
    return parts


def _nodes(file: GltfFile) -> list[tuple[JsonObject, Array]]:
    """Nodes of the scene with their global transforms [4, 4]."""
    scenes = file.list_of(file.json, "scenes")
    if scenes:
        roots = file.list_of(file.item("scenes", file.json.get("scene", 0)), "nodes")
    else:
        nodes = [file.item("nodes", k) for k in range(len(file.list_of(file.json, "nodes")))]
        children = {str(child) for node in nodes for child in file.list_of(node, "children")}
        roots = [k for k in range(len(nodes)) if str(k) not in children]
    found: list[tuple[JsonObject, Array]] = []
    seen: set[int] = set()
    stack: list[tuple[object, Array]] = [(root, np.eye(4)) for root in reversed(roots)]
    while stack:
        index, parent = stack.pop()
        node = file.item("nodes", index)
        assert isinstance(index, int)  # `item` took it
        if index in seen:
            raise file.fail(f"node {index} has two parents or is its own ancestor")
        if len(seen) >= _MAX_NODES:
            raise file.fail(f"has more than {_MAX_NODES} nodes")
        seen.add(index)
        world = parent @ _local(file, node)
        found.append((node, world))
        stack += [(child, world) for child in reversed(file.list_of(node, "children"))]
    return found


def _local(file: GltfFile, node: JsonObject) -> Array:
    def numbers(key: str, default: list[float]) -> Array:
        values = file.list_of(node, key) if key in node else default
        if len(values) != len(default) or any(isinstance(v, bool) or not isinstance(v, (int, float)) for v in values):
            raise file.fail(f"a node has a {key} that is not {len(default)} numbers")
        if not all(abs(value) < 1e30 for value in values):
            raise file.fail(f"a node has a {key} with a number that is out of range")
        return np.array(values, np.float64)

    if "matrix" in node:
        return numbers("matrix", np.eye(4).ravel().tolist()).reshape(4, 4).T
    matrix = np.eye(4)
    x, y, z, w = numbers("rotation", [0.0, 0.0, 0.0, 1.0])
    if w * w + x * x + y * y + z * z < 1e-12:
        raise file.fail("a node has a rotation of length 0")
    matrix[:3, :3] = wxyz_to_matrices(np.array([w, x, y, z])) * numbers("scale", [1.0, 1.0, 1.0])
    matrix[:3, 3] = numbers("translation", [0.0, 0.0, 0.0])
    return matrix


def _part(file: GltfFile, primitive: JsonObject, notes: list[str]) -> _Part:
    extension = file.object_of(file.object_of(primitive, "extensions"), EXTENSION)
    for name in file.object_of(extension, "extensions"):
        if "compression" in name:
            raise FormatError(
                file.path, f"its splats are packed by {name[:60]}, which is not read", "export it without compression"
            )
        notes.append(f"ignored the extension {name[:60]}")
    if file.integer_of(primitive, "mode", 4) != 0:
        raise file.fail("a primitive with Gaussians is not of the mode POINTS")
    for key, value in _KNOWN.items():
        found: object = extension.get(key, value)
        if found != value:
            notes.append(f"{key} {str(found)[:40]!r} is unknown; taken as {value!r}")
    space: object = extension.get("colorSpace")
    if not isinstance(space, str) or space not in _COLOUR_SPACES:
        notes.append(f"colorSpace {str(space)[:40]!r} is unknown; taken as 'srgb_rec709_display'")
    attributes = file.object_of(primitive, "attributes")

    def accessor(name: str, kind: str, types: tuple[int, ...]) -> Accessor:
        if name not in attributes:
            raise file.fail(f"a primitive with Gaussians has no {name}")
        return file.accessor(attributes[name], kind, types)

    part = _Part(
        accessor("POSITION", "VEC3", _POSITION_TYPES),
        accessor(_PREFIX + "ROTATION", "VEC4", _ROTATION_TYPES),
        accessor(_PREFIX + "SCALE", "VEC3", _SCALE_TYPES),
        accessor(_PREFIX + "OPACITY", "SCALAR", _OPACITY_TYPES),
        tuple(accessor(name, "VEC3", _FLOAT) for name in _coefficient_names(file, attributes)),
        _COLOUR_SPACES.get(str(space), "srgb"),
        np.eye(4),
    )
    for other in (part.rotation, part.scale, part.opacity, *part.coefficients):
        if other.count != part.position.count:
            raise file.fail(f"a primitive has {part.position.count} positions and {other.count} of another attribute")
    return part


def _coefficient_names(file: GltfFile, attributes: JsonObject) -> list[str]:
    """Names of degree 0 and of the higher degrees that are there; each of these must be whole."""
    names = [_PREFIX + "SH_DEGREE_0_COEF_0"]
    degree = 0
    for band in range(1, 4):
        present = [f"{_PREFIX}SH_DEGREE_{band}_COEF_{n}" in attributes for n in range(2 * band + 1)]
        if any(present) and not (all(present) and degree == band - 1):
            raise file.fail(f"spherical harmonics of degree {band} are not complete")
        degree = band if any(present) else degree
    return names + [name for name, _ in _rest_names(degree)]


def _check_transform(file: GltfFile, world: Array) -> None:
    """Refuse a global transform that is not a translation, a rotation and positive scales."""
    lengths = np.linalg.norm(world[:3, :3], axis=0)
    good = bool(np.isfinite(world).all() and (lengths > 1e-12).all() and (lengths < 1e12).all())
    if good:
        turn = world[:3, :3] / lengths
        good = bool(np.abs(turn.T @ turn - np.eye(3)).max() < 1e-3) and float(np.linalg.det(turn)) > 0
    if not good:
        raise FormatError(
            file.path,
            "a node's transform shears, mirrors or flattens its Gaussians",
            "apply the transform before export",
        )


def _has_log_scales(path: Path, parts: list[_Part]) -> bool:
    """Whether the file follows a draft of the extension, in which scales were logarithms: most are negative then.

    The ratified text forbids a negative scale, so a few of them are damage, and this many are not.
    """
    negative = 0
    for part in parts:
        for start in range(0, part.scale.count, _SCAN_ROWS):
            scales = part.scale.read(path, start, min(start + _SCAN_ROWS, part.scale.count))
            negative += int(np.count_nonzero(scales.min(axis=1) < 0))
    return 2 * negative > sum(part.position.count for part in parts)


def _fill_run(
    path: Path,
    part: _Part,
    logarithms: bool,
    arrays: CloudArrays,
    flat: list[int],
    span: tuple[int, int],
    rows: int,
) -> None:
    """Fill rows span[0]..span[1] of one part, and note how many scales of 0 there were."""
    for start in range(span[0], span[1], rows):
        stop = min(start + rows, span[1])
        flat.append(_fill(path, part, logarithms, arrays.rows(start, stop), start, stop))


def _fill(path: Path, part: _Part, logarithms: bool, out: CloudArrays, start: int, stop: int) -> int:
    """Read Gaussians start..stop of one part, bring them to the scene's frame, and judge them; see `_fill_run`."""
    out.positions[:] = part.position.read(path, start, stop)
    out.scales[:] = part.scale.read(path, start, stop)
    if logarithms:
        with np.errstate(all="ignore"):  # what overflows is judged below
            np.exp(out.scales, out=out.scales)
    turns = part.rotation.read(path, start, stop)[:, [3, 0, 1, 2]]
    out.opacities[:] = part.opacity.read(path, start, stop)[:, 0]
    out.sh_dc[:] = part.coefficients[0].read(path, start, stop)
    out.sh_rest[:] = 0
    for k, accessor in enumerate(part.coefficients[1:]):
        out.sh_rest[:, k] = accessor.read(path, start, stop)
    flat = (out.scales == 0) & (out.scales.max(axis=1, keepdims=True) > 0)
    out.scales[flat] = _FLAT_M
    out.good[:] = valid_rows(out.positions, out.scales, turns, out.opacities, out.sh_dc, out.sh_rest)
    turns[~out.good] = (1, 0, 0, 0)
    out.rotations[:] = normalised(turns)
    with np.errstate(all="ignore"):  # of rows that are left out
        if part.colour_space == "linear":
            _linear_to_srgb_harmonics(out)
        _transform(part.world, out)
        out.good[:] &= valid_rows(out.positions, out.scales, out.rotations, out.opacities, out.sh_dc)
    return int(np.count_nonzero(flat))


def _transform(world: Array, out: CloudArrays) -> None:
    """Move Gaussians by a global transform: centres, covariances and harmonics."""
    if np.array_equal(world, np.eye(4)):
        return
    linear = world[:3, :3]
    lengths = np.linalg.norm(linear, axis=0)
    turn = linear / lengths
    out.positions[:] = out.positions @ linear.T + world[:3, 3]
    if np.allclose(lengths, lengths.mean(), rtol=1e-5, atol=0):
        out.scales[:] *= np.float32(lengths.mean())
        out.rotations[:] = wxyz_product(matrices_to_wxyz(turn), out.rotations)
    else:  # a Gaussian under any linear map is one again: its axes are the left singular vectors of M R S
        axes = linear @ (wxyz_to_matrices(out.rotations[out.good]) * out.scales[out.good][:, None, :])
        vectors, values, _ = np.linalg.svd(axes)
        vectors[np.linalg.det(vectors) < 0, :, 0] *= -1
        out.scales[out.good] = values
        out.rotations[out.good] = matrices_to_wxyz(vectors)
    if out.sh_rest.shape[1]:
        out.sh_rest[:] = rotate_sh(out.sh_rest, turn)


def _linear_to_srgb_harmonics(out: CloudArrays) -> None:
    """Turn coefficients of linear colour into those of sRGB by the transfer function's value and first derivative."""
    linear = np.clip(out.sh_dc * np.float32(SH_C0) + np.float32(0.5), 0, None)
    low = linear <= 0.0031308
    encoded = np.where(low, 12.92 * linear, 1.055 * np.maximum(linear, 1e-6) ** (1 / 2.4) - 0.055)
    slope = np.where(low, 12.92, 1.055 / 2.4 * np.maximum(linear, 1e-6) ** (1 / 2.4 - 1))
    out.sh_dc[:] = (encoded - 0.5) / SH_C0
    out.sh_rest[:] = out.sh_rest * slope[:, None, :].astype(np.float32)


def _srgb_to_linear(colours: Array) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4).astype(np.float32)
