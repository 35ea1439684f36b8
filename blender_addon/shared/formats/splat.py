""".splat, the format of antimatter15's viewer: 32 bytes a Gaussian, no header, no magic number, no harmonics.

Position and linear scale are float32, colour and opacity bytes, the quaternion (w first) four bytes of 1/128 about 128.
Axes are those of the PLY that the file was made from, so Y down.

No library: gsply and the viewers' converters bring numba or a JavaScript engine for what one numpy dtype says.
"""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import numpy as np

from ..gaussians import SH_C0, GaussianCloud
from .blocks import CloudArrays, in_runs, read_fully, write_fully
from .common import (
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

_ROW = np.dtype(
    [("position", "<f4", 3), ("scale", "<f4", 3), ("colour", "u1", 3), ("opacity", "u1"), ("turn", "u1", 4)]
)  # 32 bytes


def read_splat(path: str | os.PathLike[str], *, drop_invalid: bool = False) -> ReadResult:
    """Read a .splat file, in the file's axes.

    Args:
        path: File to read.
        drop_invalid: Leave damaged Gaussians out and count them instead of refusing the file.

    Raises:
        FormatError: If its length is no multiple of 32 bytes, or it holds values that no Gaussian has.
        OSError: If the file cannot be opened.
    """
    path = Path(path)
    size = path.stat().st_size
    count, rest = divmod(size, _ROW.itemsize)
    if rest:
        raise FormatError(path, f"has {rest} bytes more than {count} whole Gaussians of {_ROW.itemsize} bytes")
    require_count(path, count)
    arrays = CloudArrays.empty(count, 0)
    in_runs(count, _ROW.itemsize, partial(_read_run, path, arrays))
    cloud, dropped = arrays.to_cloud(path, drop_invalid=drop_invalid)
    return ReadResult(cloud, "y_down", dropped=dropped, notes=dropped_notes(dropped))


def write_splat(path: str | os.PathLike[str], cloud: GaussianCloud) -> tuple[str, ...]:
    """Write a .splat file; Y of the cloud points down, by the format's custom.

    Returns:
        What was lost beyond quantisation, one line each.

    Raises:
        OSError: If the file cannot be written.
    """
    path = Path(path)
    cloud, notes = limit_degree(cloud, 0)
    clipped = int(np.count_nonzero(np.abs(cloud.sh_dc) * SH_C0 > 0.5 + 1e-6))
    if clipped:
        notes += (f"{clipped} colour values outside 0..1 were clipped",)
    with atomic_file(path) as file:
        reserve(file, _ROW.itemsize * len(cloud))
        file.flush()
        in_runs(len(cloud), _ROW.itemsize, partial(_write_run, Path(file.name), cloud))
    return notes


def _read_run(path: Path, arrays: CloudArrays, span: tuple[int, int], rows: int) -> None:
    buffer = np.empty(min(rows, span[1] - span[0]), _ROW)
    with path.open("rb", buffering=0) as file:
        file.seek(span[0] * _ROW.itemsize)
        for start in range(span[0], span[1], len(buffer)):
            part = buffer[: min(start + len(buffer), span[1]) - start]
            read_fully(path, file, part)
            out = arrays.rows(start, start + len(part))
            out.positions[:] = part["position"]
            out.scales[:] = part["scale"]
            out.opacities[:] = part["opacity"] / np.float32(255)
            out.sh_dc[:] = (part["colour"] / np.float32(255) - np.float32(0.5)) / np.float32(SH_C0)
            turns = (part["turn"].astype(np.float32) - 128) / 128
            out.good[:] = valid_rows(out.positions, out.scales, turns, out.opacities)
            with np.errstate(all="ignore"):
                out.rotations[:] = normalised(turns)


def _write_run(path: Path, cloud: GaussianCloud, span: tuple[int, int], rows: int) -> None:
    buffer = np.empty(min(rows, span[1] - span[0]), _ROW)
    with path.open("r+b", buffering=0) as file:
        file.seek(span[0] * _ROW.itemsize)
        for start in range(span[0], span[1], len(buffer)):
            part = buffer[: min(start + len(buffer), span[1]) - start]
            own = slice(start, start + len(part))
            part["position"] = cloud.positions_m[own]
            part["scale"] = cloud.scales_m[own]
            colours = np.clip(cloud.sh_dc[own] * np.float32(SH_C0) + np.float32(0.5), 0, 1)
            part["colour"] = np.rint(colours * 255)
            part["opacity"] = np.rint(cloud.opacities[own] * 255)
            part["turn"] = np.clip(np.rint(cloud.rotations_wxyz[own] * 128 + 128), 0, 255)
            write_fully(file, part.view(np.uint8).data.cast("B"))
