"""`convert`: a splat file of any known format to any format that is written, saying what was lost on the way."""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np

from backend.errors import DONE, FAILED, UserError
from backend.formats import FORMATS, with_spz_version
from blender_addon.shared.axes import body_to_axes_cloud
from blender_addon.shared.formats import FormatError, ReadResult, SplatFormat, find_writer, read_splats
from blender_addon.shared.formats.common import Axes, limit_degree
from blender_addon.shared.formats.ply import write_ply
from blender_addon.shared.gaussians import SH_REST_COUNTS, GaussianCloud

QUANTISATION: Final[Mapping[str, str]] = {
    "compressed ply": "positions and scales to 11, 10 and 11 bits of the range of 256 neighbours, rotations to 10 "
    "bits a component, colours and opacity to 8 bits",
    "splat": "rotations, colours and opacity to 8 bits, no spherical harmonics",
    "sog": "positions to 16 bits of their logarithm's range, rotations to 8 bits a component, scales and colours to "
    "256 values that fit the cloud, opacity to 8 bits",
    "spz": "positions to 0.24 mm, scales to 6 percent, opacity and colours to 8 bits, rotations to 10 bits a "
    "component, spherical harmonics to 5 bits in degree 1 and 4 bits above",
}
"""What a format cannot keep of any cloud, by its name; a format that is not named keeps float32."""

_AXES_ARE_FREE: Final = ("ply", "splat")  # the other formats fix theirs


def convert(options: Namespace) -> int:
    """Convert one file.

    Args:
        options: Of the command line: `source`, `target`, `degree`, `axes`, `from_axes`, `spz_version`, `drop_invalid`.

    Returns:
        The exit code.

    Raises:
        UserError: If the source cannot be read, the target cannot be written or an option makes no sense.
    """
    source, target = _source_file(options.source), options.target
    if _is_same(source, target):
        raise UserError(f"{target} is the file to be read; choose another name for the result")
    row, write = _writer(target, options.spz_version, options.axes)
    result = _read(source, options.from_axes, options.drop_invalid)
    cloud, lost = result.cloud, []
    if options.degree is not None:
        cloud, notes = _with_degree(cloud, options.degree)
        lost += notes
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        lost += write(target, cloud)
    except FormatError as error:
        raise UserError(str(error)) from error
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{target} cannot be written ({reason}); choose another place", FAILED) from error
    if row.name in QUANTISATION:
        lost.append(f"precision: {QUANTISATION[row.name]}")
    _report(source, target, result, cloud, lost)
    return DONE


def _source_file(source: Path) -> Path:
    """A bundle stands for its Gaussians."""
    return source / "gaussians.ply" if source.is_dir() else source


def _is_same(source: Path, target: Path) -> bool:
    if source.resolve() == target.resolve():
        return True
    return source.exists() and target.exists() and os.path.samefile(source, target)


def _writer(
    target: Path, spz_version: int, axes: Axes | None
) -> tuple[SplatFormat, Callable[[Path, GaussianCloud], tuple[str, ...]]]:
    """The format of the target and what writes a cloud of the body frame in it."""
    try:
        row, write = find_writer(target, with_spz_version(spz_version))
    except FormatError as error:
        raise UserError(str(error)) from error
    if axes is not None and row.name not in _AXES_ARE_FREE:
        raise UserError(f"--axes is for .ply and .splat; the axes of {row.name} are fixed, leave the option out")
    if axes is not None and row.name == "ply":
        write = partial(write_ply, axes=axes)  # says so in its header
    file_axes = axes or row.axes

    def write_body(path: Path, cloud: GaussianCloud) -> tuple[str, ...]:
        return write(path, body_to_axes_cloud(cloud, file_axes))

    return row, write_body


def _read(source: Path, axes: Axes | None, drop_invalid: bool) -> ReadResult:
    try:
        return read_splats(source, formats=FORMATS, axes=axes, drop_invalid=drop_invalid)
    except FormatError as error:
        raise UserError(str(error)) from error
    except OSError as error:
        raise UserError(f"{source} cannot be read ({error.strerror or error}); give a splat file") from error
    except MemoryError as error:
        raise UserError(f"{source} does not fit into memory; split it or use a larger machine", FAILED) from error


def _with_degree(cloud: GaussianCloud, degree: int) -> tuple[GaussianCloud, tuple[str, ...]]:
    """The cloud with exactly this degree, and what was lost."""
    cloud, lost = limit_degree(cloud, degree)
    missing = SH_REST_COUNTS[degree] - cloud.sh_rest.shape[1]
    if missing > 0:
        cloud = replace(cloud, sh_rest=np.pad(cloud.sh_rest, ((0, 0), (0, missing), (0, 0))))
    return cloud, lost


def _report(source: Path, target: Path, result: ReadResult, cloud: GaussianCloud, lost: list[str]) -> None:
    print(f"{source.name} -> {target}: {len(cloud)} Gaussians, spherical harmonics of degree {cloud.degree}")
    if result.colour_space == "linear":
        lost = ["colours: from linear light to display sRGB; overlapping Gaussians blend differently", *lost]
    for note in result.notes:
        print(f"  read: {note}")
    for line in lost:
        print(f"  lost: {line}")
    if not lost:
        print("  lost: nothing")
