"""`render`: pictures of an avatar bundle or of a splat file."""

from __future__ import annotations

import math
import os
import sys
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from backend.context import TerminalSink
from backend.errors import DONE, UserError
from backend.formats import FORMATS
from backend.preview import draw_view, photo_actions
from backend.splats.deform import pose_avatar
from blender_addon.shared.avatar import Avatar, BundleError, read_bundle
from blender_addon.shared.formats import Axes, read_splats
from blender_addon.shared.gaussians import GaussianCloud

MAX_SIDE_PX = 8192
MAX_VIEWS = 3600


def render_command(options: Namespace, controls: Mapping[str, str]) -> int:
    """Render one view, or a turntable, to PNG; of several sources one view each, with the camera that frames them all.

    Args:
        options: Of the command line.
        controls: Weights of facial actions and values of learned controls, as texts.

    Returns:
        The exit code.

    Raises:
        UserError: If a source cannot be read, the output cannot be written or an option makes no sense.
    """
    if not 16 <= options.size <= MAX_SIDE_PX:
        raise UserError(f"--size takes 16 to {MAX_SIDE_PX} px, not {options.size}")
    if not 1 <= options.turntable <= MAX_VIEWS:
        raise UserError(f"--turntable takes 1 to {MAX_VIEWS} views, not {options.turntable}")
    if len(options.sources) > 1:
        return _render_sequence(options, controls)
    if options.out.suffix.lower() != ".png":
        raise UserError(f"--out takes the name of a .png file, not {options.out.name}")
    cloud = _posed_source(options.sources[0], options, controls)
    bounds = _bounds(cloud)
    for index in range(options.turntable):
        azimuth = options.azimuth + 360.0 * index / options.turntable
        image = draw_view(cloud, azimuth, options.elevation, options.size, bounds)
        path = options.out
        if options.turntable > 1:
            path = path.with_name(f"{path.stem}_{index:03d}{path.suffix}")
        write_png(path, image)
        print(path)
    return DONE


def _render_sequence(options: Namespace, controls: Mapping[str, str]) -> int:
    if options.turntable > 1:
        raise UserError("--turntable takes one avatar or file, not several")
    if len({source.stem for source in options.sources}) < len(options.sources):
        raise UserError("two of the files have the same name; render them one by one")
    # Read twice: a long sequence need not fit into memory, and the camera has to know every frame.
    corners = [_bounds(_posed_source(source, options, controls)) for source in options.sources]
    low, high = np.min([low for low, _ in corners], axis=0), np.max([high for _, high in corners], axis=0)
    margin = 0.04 * (high - low).max()  # nearer limbs look larger than the box that the camera is set by
    bounds = (low - margin, high + margin)
    sink = TerminalSink(sys.stdout)
    for index, source in enumerate(options.sources):
        cloud = _posed_source(source, options, controls)
        image = draw_view(cloud, options.azimuth, options.elevation, options.size, bounds)
        write_png(options.out / f"{source.stem}.png", image)
        sink.progress("drawing frames", index + 1, len(options.sources), source.stem)
    sink.close()
    return DONE


def _posed_source(source: Path, options: Namespace, controls: Mapping[str, str]) -> GaussianCloud:
    cloud, avatar = read_source(source, options.from_axes)
    pose_name: str = options.pose
    if avatar is not None:
        actions, sliders = parse_controls(controls, avatar)
        pose = avatar.photo_pose if pose_name == "photo" else np.zeros_like(avatar.photo_pose)
        expression = photo_actions(avatar) if pose_name == "photo" else {}
        return pose_avatar(cloud, avatar, pose, actions=expression | actions, sliders=sliders)
    if controls or pose_name != "rest":
        raise UserError(f"{source} is no avatar and cannot be posed; give the folder of an avatar")
    return cloud


def _bounds(cloud: GaussianCloud) -> tuple[np.ndarray, np.ndarray]:
    """Corners of what is framed: the cloud without its outliers."""
    return np.percentile(cloud.positions_m, 0.2, axis=0), np.percentile(cloud.positions_m, 99.8, axis=0)


def read_source(source: Path, axes: Axes | None = None) -> tuple[GaussianCloud, Avatar | None]:
    """The cloud of a bundle folder or of any splat file, and the avatar where it has one.

    What a file's reader has to say besides goes to standard error.

    Args:
        source: Folder or file.
        axes: Of a splat file, where they are not what its format or the file itself says.

    Raises:
        UserError: If it cannot be read.
    """
    try:
        if source.is_dir():
            return read_bundle(source)
        result = read_splats(source, formats=FORMATS, axes=axes, drop_invalid=True)
        for note in result.notes:
            print(f"{source.name}: {note}", file=sys.stderr)
        return result.cloud, None
    except BundleError as error:
        raise UserError(str(error)) from error
    except (OSError, ValueError) as error:
        raise UserError(f"{source} cannot be read ({error}); give the folder of an avatar or a splat file") from error


def parse_controls(controls: Mapping[str, str], avatar: Avatar) -> tuple[dict[str, float], dict[str, float]]:
    """Weights of facial actions, and values of learned controls, from texts.

    Raises:
        UserError: If a name is unknown or a value is no number in its range.
    """
    actions = {str(name): (0.0, 1.0) for name in avatar.shape_key_names}
    learned = avatar.controls
    rows = [] if learned is None else learned.sliders
    sliders = {str(learned.names[k]): tuple(learned.ranges[k, :2].tolist()) for k in rows} if learned else {}
    values: dict[str, float] = {}
    for name, text in controls.items():
        limits = (actions | sliders).get(name)
        if limits is None:
            known = ", ".join([*sliders, *sorted(actions)])
            raise UserError(f"the avatar has no control {name!r}; it has: {known}")
        try:
            values[name] = float(text)
        except ValueError:
            values[name] = math.nan
        if not limits[0] <= values[name] <= limits[1]:
            raise UserError(f"{name} takes a number from {limits[0]:g} to {limits[1]:g}, not {text!r}")
    return (
        {name: value for name, value in values.items() if name in actions},
        {name: value for name, value in values.items() if name in sliders},
    )


def write_png(path: Path, image: np.ndarray) -> None:
    """Write a picture, uint8 [H, W, 3], atomically.

    Raises:
        UserError: If the place cannot be written.
    """
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(part, format="PNG")
        os.replace(part, path)
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror or error}); choose another --out") from error
