"""A picture sheet of an avatar in poses of motion files: `python scripts/motion_sheet.py BUNDLE SHEET.png FILE...`.

The poses are those that lie farthest apart. Every one is drawn from the front and from behind, through what `render`
draws with; look for joints that wring, holes at armpits and hips, and one limb's colours on another.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from backend.preview import draw_view
from backend.splats.controls import control_weights
from backend.splats.deform import pose_avatar
from blender_addon.motion.files import fit_motion, load_motion
from blender_addon.motion.retarget import RetargetSettings
from blender_addon.shared.avatar import Avatar, read_bundle
from blender_addon.shared.gaussians import GaussianCloud
from blender_addon.shared.skeleton import axis_angle_to_matrices
from scripts.quality_sheets import write_sheet

POSES, CELL_PX = 10, 420
AZIMUTHS_DEG = (15.0, 195.0)


def spread_poses(files: Sequence[Path], avatar: Avatar, count: int) -> tuple[np.ndarray, list[str]]:
    """Poses [count, 55, 3] of motion files that differ most, none turned about the vertical, and where they are from.

    Raises:
        MotionError: If a file is no motion.
    """
    poses: list[np.ndarray] = []
    names: list[str] = []
    for file in files:
        motion = fit_motion(file.stem, load_motion(file), avatar.joints_m, RetargetSettings(fps=5.0))
        poses.append(np.asarray(motion.pose, np.float64))
        names += [f"{file.stem} {number / 5:.1f} s" for number in range(len(motion.pose))]
    every = np.concatenate(poses)
    every[:, 0] = 0  # seen from the same side
    codes = axis_angle_to_matrices(every[:, 1:22])[..., :2].reshape(len(every), -1)
    chosen = [int(np.linalg.norm(codes - codes.mean(0), axis=1).argmax())]
    distance = np.full(len(every), np.inf)
    while len(chosen) < min(count, len(every)):
        distance = np.minimum(distance, np.linalg.norm(codes - codes[chosen[-1]], axis=1))
        chosen.append(int(distance.argmax()))
    return every[chosen], [names[number] for number in chosen]


def motion_sheet(path: Path, cloud: GaussianCloud, avatar: Avatar, poses: np.ndarray, names: Sequence[str]) -> None:
    """Write the sheet: one column per pose [P, 55, 3], in rows of five; the front above the back."""
    shown = [pose_avatar(cloud, avatar, pose) for pose in poses]
    reach = max(float(np.abs(np.percentile(each.positions_m[:, [0, 2]], [0.2, 99.8], axis=0)).max()) for each in shown)
    rows: list[list[tuple[str, np.ndarray]]] = []
    for first in range(0, len(shown), 5):
        part = range(first, min(first + 5, len(shown)))
        for azimuth in AZIMUTHS_DEG:
            cells = []
            for number in part:
                heights = np.percentile(shown[number].positions_m[:, 1], [0.2, 99.8])
                side = max(float(np.ptp(heights)) / 2, 0.7 * reach)
                middle = np.array([0.0, float(heights.mean()), 0.0])
                bounds = (middle - [0.1, side, 0.1], middle + [0.1, side, 0.1])
                cells.append((names[number], draw_view(shown[number], azimuth, 0.0, CELL_PX, bounds)))
            rows.append(cells)
    write_sheet(path, rows, CELL_PX)


def main(arguments: list[str] | None = None) -> int:
    """Draw and say how far the controls answer; the exit code is 0."""
    parser = argparse.ArgumentParser(description="A picture sheet of an avatar in poses of motion files.")
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="folder of an avatar")
    parser.add_argument("sheet", type=Path, metavar="SHEET", help="the .png to write")
    parser.add_argument("motions", type=Path, nargs="+", metavar="FILE", help=".bvh or .npz")
    parser.add_argument("--poses", type=int, default=POSES, metavar="N")
    options = parser.parse_args(arguments)
    cloud, avatar = read_bundle(options.bundle)
    poses, names = spread_poses(options.motions, avatar, options.poses)
    motion_sheet(options.sheet, cloud, avatar, poses, names)
    for pose, name in zip(poses, names, strict=True):
        weights = control_weights(avatar, pose)
        if weights is not None:
            print(f"{name:<32} {int((np.abs(weights) > 1e-3).sum())} of {len(weights)} controls at work")
    print(options.sheet)
    return 0


if __name__ == "__main__":
    sys.exit(main())
