"""Motion made for SMPL-X and SMPL-H bodies, as AMASS and the tools around it store it: .npz with axis-angle poses."""

from __future__ import annotations

import os
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..shared.limits import MAX_ARCHIVE_BYTES
from ..shared.skeleton import JOINT_NAMES, axis_angle_to_matrices
from .bvh import MotionError
from .poses import Motion, posed_joints
from .retarget import RetargetSettings, finish, leg_length, resample

_RATES = ("mocap_frame_rate", "mocap_framerate", "fps")
"""The three spellings in use."""

_DEFAULT_FPS = 30.0

_SMPLX_THIGH_M = 0.385
"""Thigh of SMPL-X's mean body, metres: the files' paths are those of bodies whose size they give only as betas."""

_BODY_JOINTS = 22


@dataclass(frozen=True)
class SmplxMotion:
    """What a file holds, in its own axes.

    Attributes:
        pose: [F, 55, 3] axis-angle.
        trans: [F, 3] metres.
        rate: Frames a second.
    """

    pose: np.ndarray
    trans: np.ndarray
    rate: float


def read_smplx_npz(path: str | os.PathLike[str]) -> SmplxMotion:
    """Read a file. Hands are rotations from the flat hand, which is what AMASS stores.

    Args:
        path: .npz with `poses` (52 or 55 joints, 156 or 165 numbers a frame) or `root_orient`, `pose_body`, ..., with
            `trans` and a frame rate.

    Raises:
        MotionError: Naming the file and what is wrong with it.
        OSError: If it cannot be opened.
    """
    path = Path(path)
    data = _load(path)
    pose = _pose(data, path.name)
    trans = np.asarray(data.get("trans", np.zeros((len(pose), 3))), np.float64)
    if trans.shape != (len(pose), 3) or not np.isfinite(trans).all():
        raise MotionError(f"{path.name}: trans has shape {trans.shape}, expected ({len(pose)}, 3) finite numbers")
    rate = next((float(np.ravel(data[name])[0]) for name in _RATES if name in data and data[name].size), _DEFAULT_FPS)
    if not 1 <= rate <= 1000:
        raise MotionError(f"{path.name}: plays at {rate:g} frames a second, which no motion does")
    return SmplxMotion(pose, trans, rate)


def retarget_smplx(
    name: str, source: SmplxMotion, joints_m: np.ndarray, settings: RetargetSettings | None = None
) -> Motion:
    """An avatar's motion after one of another SMPL-X body; Y or Z up is told from how the body stands.

    Args:
        name: Of the motion.
        source: The other body's motion.
        joints_m: [55, 3] rest joints of who shall move, body frame, floor at height 0.
        settings: None takes the defaults.
    """
    settings = settings or RetargetSettings()
    picks = resample(len(source.pose), 1.0 / source.rate, settings, first=0)
    local, trans = axis_angle_to_matrices(source.pose[picks]), source.trans[picks]
    upright = _upright(local[:, 0])
    local[:, 0], trans = upright @ local[:, 0], trans @ upright.T

    joints = np.asarray(joints_m, np.float64)
    pelvis = trans * (leg_length(joints, JOINT_NAMES.index) / _SMPLX_THIGH_M)
    rows = [[JOINT_NAMES.index(f"{side}_{part}") for part in ("ankle", "foot")] for side in ("left", "right")]
    feet = posed_joints(joints, local)[:, rows] + pelvis[:, None, None]
    return finish(name, local, joints, pelvis, feet, settings)


def _load(path: Path) -> dict[str, Any]:
    """The numeric arrays of the file; text and other objects are left aside and never unpickled."""
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(item.file_size for item in archive.infolist()) > MAX_ARCHIVE_BYTES:
                raise MotionError(f"{path.name}: unpacks to more than {MAX_ARCHIVE_BYTES >> 30} GB; it is no motion")
        found = {}
        with np.load(path, allow_pickle=False) as data:
            for name in data.files:
                try:
                    found[name] = data[name]
                except ValueError:
                    continue  # an object array, such as AMASS's gender: not needed
    except (zipfile.BadZipFile, EOFError, KeyError, zipfile.LargeZipFile) as error:
        raise MotionError(f"{path.name}: not an .npz file, or damaged ({error})") from error
    return {name: array for name, array in found.items() if np.issubdtype(array.dtype, np.number)}


def _pose(data: dict[str, Any], file_name: str) -> np.ndarray:
    """Axis-angle [F, 55, 3] in SMPL-X's order."""
    if "poses" in data:
        flat = data["poses"]
    elif "pose_body" in data and "root_orient" in data:
        parts = [data["root_orient"], data["pose_body"]]
        frames = len(parts[0])
        face = [data.get(name, np.zeros((frames, size))) for name, size in (("pose_jaw", 3), ("pose_eye", 6))]
        hands = data.get("pose_hand", np.zeros((frames, 90)))
        try:
            flat = np.concatenate([*parts, *face, hands], axis=1)
        except ValueError:
            raise MotionError(f"{file_name}: its arrays differ in length") from None
    else:
        raise MotionError(f"{file_name}: has no poses; it is a shape or another kind of file, not a motion")
    flat = np.asarray(flat, np.float64)
    if flat.ndim == 3 and flat.shape[2] == 3:
        flat = flat.reshape(len(flat), -1)
    joints = {156: 52, 165: 55}.get(flat.shape[1] if flat.ndim == 2 else 0)
    if joints is None or not len(flat):
        raise MotionError(f"{file_name}: poses have shape {flat.shape}; 156 or 165 numbers a frame are expected")
    if not np.isfinite(flat).all():
        raise MotionError(f"{file_name}: has poses that are no numbers")
    pose = np.zeros((len(flat), len(JOINT_NAMES), 3))
    given = flat.reshape(len(flat), joints, 3)
    if joints == len(JOINT_NAMES):
        return given
    # SMPL-H has no jaw and no eyes; its hands follow the body at once.
    pose[:, :_BODY_JOINTS], pose[:, 25:] = given[:, :_BODY_JOINTS], given[:, _BODY_JOINTS:]
    return pose


def _upright(roots: np.ndarray) -> np.ndarray:
    """Rotation [3, 3] from the file's axes to Y up: a body that mostly stands tells which axis is up."""
    up = (roots @ np.array([0.0, 1.0, 0.0])).mean(axis=0)
    if abs(up[2]) > abs(up[1]):
        return np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]])
    return np.eye(3)
