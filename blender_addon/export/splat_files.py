"""Clouds of the scene as splat files: posed or at rest, one file or one per frame."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import bpy
import numpy as np

from ..cloud.create import read_cloud
from ..cloud.edit import posed_cloud
from ..link.backend_python import backend_command, backend_environment
from ..shared.axes import axes_to_blender
from ..shared.cloud_edits import merge_clouds, transform_cloud
from ..shared.formats import SHARED_FORMATS, FormatError, find_writer, write_splats
from ..shared.formats.common import Axes
from ..shared.gaussians import GaussianCloud

FORMATS = [
    (".ply", "PLY", "INRIA layout, lossless, opens in every splat viewer"),
    (".compressed.ply", "Compressed PLY", "Four times smaller"),
    (".spz", "SPZ", "Ten times smaller"),
    (".glb", "glTF (KHR_gaussian_splatting)", "For engines and the web"),
    (".splat", "Splat", "32 bytes a Gaussian, no view-dependent colour"),
]
"""Suffix, name and what it is for, as Blender's menus want them."""

BACKEND_FORMATS = [(".sog", "SOG", "Fifteen times smaller; made by the backend")]

State = Literal["POSED", "REST"]


@dataclass(frozen=True)
class SplatExport:
    """How clouds are written.

    Attributes:
        suffix: Of one of `FORMATS` or `BACKEND_FORMATS`.
        state: POSED as they are shown at the current frame, or REST before the rig and all modifiers.
        backend: Python of the backend, None where there is none; only SOG needs it.
    """

    suffix: str = ".ply"
    state: State = "POSED"
    backend: Path | None = None


def export_path(path: Path, suffix: str) -> Path:
    """`path` with this suffix in place of any known one."""
    stem = path.name
    for known in sorted((row[0] for row in (*FORMATS, *BACKEND_FORMATS)), key=len, reverse=True):
        stem = stem.removesuffix(known)
    return path.with_name(f"{stem}{suffix}")


def frame_path(path: Path, suffix: str, frame: int) -> Path:
    """The file of one frame of a sequence."""
    whole = export_path(path, suffix)
    return whole.with_name(f"{whole.name.removesuffix(suffix)}_{frame:04d}{suffix}")


def write_clouds(path: Path, objects: Sequence[bpy.types.Object], settings: SplatExport) -> tuple[str, ...]:
    """Write clouds into one file, which appears under its name only when it is whole.

    Args:
        path: File to write, with the settings' suffix.
        objects: The clouds; where each stands, turns and how large it is goes into the file, harmonics included.
        settings: What to write.

    Returns:
        What was lost beyond the format's quantisation, one line each.

    Raises:
        FormatError: If the format cannot hold the cloud.
        ValueError: If there are no Gaussians, an object flattens them, or the backend is missing; one line.
        OSError: If the file cannot be written.
    """
    if settings.suffix in (row[0] for row in BACKEND_FORMATS):
        return _write_by_backend(path, _collect(objects, settings.state, "y_up"), settings.backend)
    row, write = find_writer(path, SHARED_FORMATS)
    return write(path, _collect(objects, settings.state, row.axes))


def write_frames(
    path: Path,
    objects: Sequence[bpy.types.Object],
    frames: Sequence[int],
    settings: SplatExport,
    skip_finished: bool = False,
) -> Iterator[int]:
    """Write a file per frame and yield the frame after each; ending or closing goes back to the frame of before.

    Args:
        path: The sequence: `name.ply` becomes `name_0001.ply` and so on.
        objects: The clouds.
        frames: The frames, in order.
        settings: What to write.
        skip_finished: Leave files that are there as they are: a file with its name is whole.

    Raises:
        FormatError: See `write_clouds`.
        ValueError: See `write_clouds`.
        OSError: See `write_clouds`.
    """
    scene = bpy.context.scene
    before = scene.frame_current, scene.frame_subframe
    try:
        for frame in frames:
            target = frame_path(path, settings.suffix, frame)
            if not (skip_finished and target.is_file()):
                scene.frame_set(frame)
                write_clouds(target, objects, settings)
            yield frame
    finally:
        scene.frame_set(before[0], subframe=before[1])


def _collect(objects: Sequence[bpy.types.Object], state: State, axes: Axes) -> GaussianCloud:
    to_file = np.eye(4)
    to_file[:3, :3] = axes_to_blender(axes).T
    clouds = [_placed(ob, state, to_file) for ob in objects]
    if not sum(map(len, clouds)):
        raise ValueError("there are no Gaussians")
    return merge_clouds(clouds)


def _placed(ob: bpy.types.Object, state: State, to_file: np.ndarray) -> GaussianCloud:
    """A cloud where its object stands, in the file's axes: one turn for both."""
    cloud = posed_cloud(ob) if state == "POSED" else read_cloud(ob.data)
    try:
        return transform_cloud(cloud, to_file @ np.array(ob.matrix_world))
    except ValueError as error:
        raise ValueError(f"{ob.name}: {error}") from error


def _write_by_backend(path: Path, cloud: GaussianCloud, backend: Path | None) -> tuple[str, ...]:
    if backend is None:
        raise ValueError(f"{path.suffix} is made by the backend, which is not set up; choose SPZ, or set it up")
    # Beside the target, so that the finished file is moved, not copied.
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".effigy-") as folder:
        plain, made = Path(folder) / "cloud.ply", Path(folder) / path.name
        write_splats(plain, cloud)
        done = subprocess.run(
            backend_command(backend, "convert", str(plain), str(made)),
            capture_output=True, text=True, encoding="utf-8", errors="replace", env=backend_environment(), check=False,
        )  # fmt: skip
        if done.returncode != 0 or not made.is_file():
            said = [line.removeprefix("error: ") for line in done.stderr.splitlines() if line.startswith("error: ")]
            raise FormatError(path, said[-1] if said else "the backend cannot write it", "choose SPZ instead")
        made.replace(path)
    return ()
