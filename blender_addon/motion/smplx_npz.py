"""Motion made for SMPL-X and SMPL-H bodies, as AMASS and the tools around it store it: .npz with axis-angle poses."""

from __future__ import annotations

import math
import os
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..shared.limits import MAX_ARCHIVE_BYTES
from ..shared.skeleton import JOINT_NAMES, axis_angle_to_matrices
from .bvh import MotionError
from .poses import Motion, posed_joints
from .retarget import RetargetSettings, Up, finish, leg_length, resample

_RATES = ("mocap_frame_rate", "mocap_framerate", "fps")
"""The three spellings in use."""

_DEFAULT_FPS = 30.0

_SMPLX_THIGH_M = 0.385
"""Thigh of SMPL-X's mean body, metres: the files' paths are those of bodies whose size they give only as betas."""

_BODY_JOINTS = 22

_JOINT_COUNTS = {66: 22, 72: 24, 156: 52, 165: 55}
"""Numbers a frame -> joints: the body alone, SMPL, SMPL-H and SMPL-X. SMPL's last two are its hands as a whole."""

_RELAXED_DEGREES = ((14, 24, 14), (18, 28, 16), (24, 30, 18), (21, 29, 17), (10, 12, 16))
"""Bend of the three joints of index, middle, pinky, ring and thumb."""

MAX_SOURCE_FRAMES = 500_000
"""Longer files are refused before they are read: an hour of motion at 120 frames a second has 432,000."""

Hands = Literal["auto", "flat", "mean"]


@dataclass(frozen=True)
class SmplxMotion:
    """What a file holds, in its own axes.

    Attributes:
        pose: [F, 55, 3] axis-angle.
        trans: [F, 3] metres.
        rate: Frames a second.
        notes: What the file does not say and had to be made up, one line each.
    """

    pose: np.ndarray
    trans: np.ndarray
    rate: float
    notes: tuple[str, ...] = ()


def read_smplx_npz(path: str | os.PathLike[str], hands: Hands = "auto") -> SmplxMotion:
    """Read a file.

    Args:
        path: .npz with `poses` (22, 24, 52 or 55 joints) or `root_orient`, `pose_body`, ..., with `trans` and a frame
            rate.
        hands: What hand poses count from: "flat" the flat hand, as AMASS stores it; "mean" the mean hand, as SMPL-X
            itself does unless told otherwise; "auto" what the file says (`flat_hand_mean`), else flat.

    Raises:
        MotionError: Naming the file and what is wrong with it.
        OSError: If it cannot be opened.
    """
    path = Path(path)
    data = _load(path)
    pose, notes = _pose(data, path.name)
    if not notes and _hands_from_mean(data, hands):
        pose = pose.copy()
        pose[:, 25:] += relaxed_hands()
        notes = ("hands count from SMPL-X's mean hand: a relaxed hand of our own stands for it",)
    trans = np.asarray(data.get("trans", np.zeros((len(pose), 3))), np.float64)
    if trans.shape != (len(pose), 3) or not np.isfinite(trans).all():
        raise MotionError(f"{path.name}: trans has shape {trans.shape}, expected ({len(pose)}, 3) finite numbers")
    if "trans" not in data:
        notes += ("no trans: the figure stays at its place",)
    rate = next((float(np.ravel(data[name])[0]) for name in _RATES if name in data and data[name].size), None)
    if rate is None:
        rate, notes = _DEFAULT_FPS, (*notes, f"no frame rate: played at {_DEFAULT_FPS:g} frames a second")
    if not 1 <= rate <= 1000:
        raise MotionError(f"{path.name}: plays at {rate:g} frames a second, which no motion does")
    return SmplxMotion(pose, trans, rate, notes)


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
    times = resample(len(source.pose), 1.0 / source.rate, settings, first=0)
    local, trans = times.turns(axis_angle_to_matrices(source.pose)), times.values(source.trans)
    upright = _upright(local[:, 0], settings.up)
    local[:, 0], trans = upright @ local[:, 0], trans @ upright.T

    joints = np.asarray(joints_m, np.float64)
    pelvis = trans * (leg_length(joints, JOINT_NAMES.index) / _SMPLX_THIGH_M)
    rows = [[JOINT_NAMES.index(f"{side}_{part}") for part in ("ankle", "foot")] for side in ("left", "right")]
    feet = posed_joints(joints, local)[:, rows] + pelvis[:, None, None]
    return finish(name, local, joints, pelvis, feet, settings)


def _load(path: Path) -> dict[str, Any]:
    """The numeric arrays of the file; text and other objects are left aside and never unpickled.

    What a header promises is held against the size of its entry before anything is allocated.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(item.file_size for item in archive.infolist()) > MAX_ARCHIVE_BYTES:
                raise MotionError(f"{path.name}: unpacks to more than {MAX_ARCHIVE_BYTES >> 30} GB; it is no motion")
            names = [item.filename for item in archive.infolist() if _is_numeric(archive, item, path.name)]
        with np.load(path, allow_pickle=False) as data:
            return {name.removesuffix(".npy"): data[name.removesuffix(".npy")] for name in names}
    except (zipfile.BadZipFile, EOFError, KeyError, zipfile.LargeZipFile, zlib.error, ValueError) as error:
        if isinstance(error, MotionError):
            raise
        raise MotionError(f"{path.name}: not an .npz file, or damaged ({error})") from error


def _is_numeric(archive: zipfile.ZipFile, item: zipfile.ZipInfo, file_name: str) -> bool:
    """Whether an entry is an array of numbers of at most `MAX_SOURCE_FRAMES` rows whose bytes are all there."""
    if not item.filename.endswith(".npy"):
        return False
    with archive.open(item) as file:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
        head = file.tell()
    if not np.issubdtype(dtype, np.number) and dtype != np.bool_:
        return False  # text, or objects such as AMASS's gender: not needed
    if shape and shape[0] > MAX_SOURCE_FRAMES:
        raise MotionError(
            f"{file_name}: {item.filename.removesuffix('.npy')} has {shape[0]} frames, at most {MAX_SOURCE_FRAMES} are "
            "read; cut it into parts"
        )
    if math.prod(shape) * dtype.itemsize != item.file_size - head:
        raise MotionError(f"{file_name}: damaged: {item.filename} promises {shape} numbers that are not in it")
    return True


def _pose(data: dict[str, Any], file_name: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """Axis-angle [F, 55, 3] in SMPL-X's order, and what had to be made up."""
    if "poses" in data:
        flat = data["poses"]
    elif "pose_body" in data and "root_orient" in data:
        parts = [data["root_orient"], data["pose_body"]]
        frames = len(np.atleast_1d(parts[0]))
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
    joints = _JOINT_COUNTS.get(flat.shape[1] if flat.ndim == 2 else 0)
    if joints is None or not len(flat):
        known = ", ".join(map(str, _JOINT_COUNTS))
        raise MotionError(f"{file_name}: poses have shape {flat.shape}; one of {known} numbers a frame is expected")
    if not np.isfinite(flat).all():
        raise MotionError(f"{file_name}: has poses that are no numbers")
    given = flat.reshape(len(flat), joints, 3)
    if joints == len(JOINT_NAMES):
        return given, ()
    pose = np.zeros((len(flat), len(JOINT_NAMES), 3))
    pose[:, :_BODY_JOINTS] = given[:, :_BODY_JOINTS]
    if joints == 52:
        # SMPL-H has no jaw and no eyes; its hands follow the body at once.
        pose[:, 25:] = given[:, _BODY_JOINTS:]
        return pose, ()
    pose[:, 25:] = relaxed_hands()
    return pose, (f"{joints} joints, no fingers: the hands are relaxed ones",)


def _hands_from_mean(data: dict[str, Any], hands: Hands) -> bool:
    """Whether hand poses count from the mean hand: what the user says, else what the file says, else not."""
    if hands != "auto":
        return hands == "mean"
    flat = data.get("flat_hand_mean")
    return flat is not None and flat.size == 1 and not bool(np.ravel(flat)[0])


def relaxed_hands() -> np.ndarray:
    """[30, 3] axis-angle of both hands at ease, left first, in SMPL-X's order of joints.

    SMPL-X's own mean hand belongs to the licensed model and is not here; these are our own numbers for the same thing.
    """
    hands = np.zeros((2, 15, 3))
    for finger, curls in enumerate(_RELAXED_DEGREES):
        for k, degrees in enumerate(curls):
            # Palms face down in the T-pose: the left hand's fingers bend about -Z, the right hand's about +Z.
            axis = 1 if finger == len(_RELAXED_DEGREES) - 1 else 2
            hands[0, 3 * finger + k, axis] = -np.radians(degrees)
            hands[1, 3 * finger + k, axis] = np.radians(degrees)
    return hands.reshape(30, 3)


def _upright(roots: np.ndarray, said: Up) -> np.ndarray:
    """Rotation [3, 3] from the file's axes to Y up: a body that mostly stands tells which axis is up."""
    up = (roots @ np.array([0.0, 1.0, 0.0])).mean(axis=0)
    if said == "z" or (said == "auto" and abs(up[2]) > abs(up[1])):
        return np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]])
    return np.eye(3)
