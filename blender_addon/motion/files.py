"""Motion files by their kind."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from .bvh import Bvh, MotionError, read_bvh
from .poses import Motion
from .retarget import RetargetSettings, retarget_bvh, source_joints
from .smplx_npz import Hands, SmplxMotion, read_smplx_npz, retarget_smplx

SUFFIXES = (".bvh", ".npz")


Source = Bvh | SmplxMotion


def load_motion(path: Path, hands: Hands = "auto") -> Source:
    """Read a motion file and see that it can be played.

    Args:
        path: BVH of any skeleton, or SMPL-X or AMASS .npz.
        hands: What the hands of an .npz count from, see `read_smplx_npz`.

    Raises:
        MotionError: If it is no motion, or one whose joints cannot be told.
        OSError: If it cannot be opened.
    """
    suffix = path.suffix.lower()
    if suffix == ".npz":
        return read_smplx_npz(path, hands)
    if suffix == ".bvh":
        bvh = read_bvh(path)
        source_joints(bvh)
        return bvh
    raise MotionError(f"{path.name}: no motion file that is known here; give one of {', '.join(SUFFIXES)}")


def fit_motion(name: str, source: Source, joints_m: np.ndarray, settings: RetargetSettings | None = None) -> Motion:
    """A loaded motion as an avatar's.

    Args:
        name: Of the motion.
        source: From `load_motion`.
        joints_m: [55, 3] rest joints of who shall move, body frame, floor at height 0.
        settings: None takes the defaults.

    Raises:
        MotionError: If the rest pose of its skeleton does not stand upright.
    """
    if isinstance(source, Bvh):
        return retarget_bvh(name, source, joints_m, settings)
    return retarget_smplx(name, source, joints_m, settings)
