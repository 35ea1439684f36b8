"""The avatar bundle: what a finished `body`, `head` or `portrait` job leaves in its folder.

result.json, gaussians.ply (rest pose, Y up), avatar.npz (arrays, never pickled), preview.png and log.txt.
"""

from __future__ import annotations

import json
import os
import zipfile
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, cast

import numpy as np

from .arrays import Array
from .controls import ControlError, Controls, controls_from_arrays
from .formats import FormatError
from .formats.ply import read_ply, write_ply
from .gaussians import GaussianCloud
from .limits import MAX_ARCHIVE_BYTES
from .skeleton import FACIAL_ACTIONS, JOINT_NAMES

PHOTO_KEY = "photo"
"""Shape key with what the photo's face has beyond its facial actions."""


RESERVED_NAMES = (
    *FACIAL_ACTIONS, PHOTO_KEY, "Basis", "look_at", "Geometry", "Proxy", "Pose",
    *(f"ik_{limb}.{side}" for limb in ("arm", "leg") for side in "LR"),
)  # fmt: skip
"""What the rig calls its own properties and inputs; no learned control may be called so."""


class BundleError(ValueError):
    """A folder that is no readable avatar bundle; the message is one line for the user."""


@dataclass(frozen=True)
class Avatar:
    """The arrays of avatar.npz. Body frame (Y up, facing +Z), metres, rest = T-pose with a neutral face.

    Attributes:
        joint_names: [55] text.
        parents: [55] int32, -1 for the root.
        joints_m: [55, 3].
        vertices_m: [V, 3] rest proxy, clothes included.
        triangles: [T, 3] int32.
        uvs: [T, 3, 2] texture coordinates of each triangle's corners.
        skin_indices: [V, 8] uint8, columns 0..54 joints, 55..58 twist helpers.
        skin_weights: [V, 8] float32, each row sums to 1.
        twist_names: [4] text.
        twist_parents: [4] int32 joint that carries the helper.
        twist_sources: [4] int32 joint whose local twist it shares.
        twist_factors: [4] float32 share of that twist, about the rest direction of the parent's bone.
        shape_key_names: [K] text: the 52 facial actions, then "photo".
        shape_key_offsets_m: [K, V, 3].
        bind_triangle: [N] int32 triangle of each Gaussian.
        bind_bary: [N, 3] its foot point.
        bind_off: [N, 3] metres, in the triangle's frame.
        bind_qinv: [N, 4] inverse of the triangle's rest rotation, w first.
        bind_length: [N] sqrt of |(v1 - v0) x (v2 - v0)| at rest, metres.
        betas: [B] shape numbers of `body_model`.
        body_model: Which body model this is, one text.
        photo_pose: [55, 3] axis-angle of the photo's pose.
        photo_translation_m: [3].
        photo_actions: [52] 0..1.
        photo_w2c: [4, 4] camera of the photo, OpenCV.
        photo_intrinsics_px: [4] fx, fy, cx, cy.
        photo_size_px: [2] width, height.
        controls: Learned controls, where the avatar has any.
    """

    joint_names: Array
    parents: Array
    joints_m: Array
    vertices_m: Array
    triangles: Array
    uvs: Array
    skin_indices: Array
    skin_weights: Array
    twist_names: Array
    twist_parents: Array
    twist_sources: Array
    twist_factors: Array
    shape_key_names: Array
    shape_key_offsets_m: Array
    bind_triangle: Array
    bind_bary: Array
    bind_off: Array
    bind_qinv: Array
    bind_length: Array
    betas: Array
    body_model: Array
    photo_pose: Array
    photo_translation_m: Array
    photo_actions: Array
    photo_w2c: Array
    photo_intrinsics_px: Array
    photo_size_px: Array
    controls: Controls | None = None

    def __post_init__(self) -> None:
        """Check shapes, indices and names, so that what reads an avatar may rely on them.

        Raises:
            BundleError: Naming the array and what is wrong with it.
        """
        v, n, k = len(self.vertices_m), len(self.bind_triangle), len(self.shape_key_names)
        joints, twists = len(JOINT_NAMES), len(self.twist_names)
        shapes: dict[str, tuple[int | None, ...]] = {
            **{"joint_names": (joints,), "parents": (joints,), "joints_m": (joints, 3), "vertices_m": (v, 3)},
            **{
                "triangles": (None, 3),
                "uvs": (len(self.triangles), 3, 2),
                "skin_indices": (v, 8),
                "skin_weights": (v, 8),
            },
            **{"twist_parents": (twists,), "twist_sources": (twists,), "twist_factors": (twists,)},
            **{"shape_key_offsets_m": (k, v, 3), "bind_bary": (n, 3), "bind_off": (n, 3), "bind_qinv": (n, 4)},
            **{"bind_length": (n,), "photo_pose": (joints, 3), "photo_translation_m": (3,), "photo_w2c": (4, 4)},
            **{"photo_actions": (len(FACIAL_ACTIONS),), "photo_intrinsics_px": (4,), "photo_size_px": (2,)},
        }
        for name, shape in shapes.items():
            actual = np.shape(getattr(self, name))
            if len(actual) != len(shape) or any(a != s for a, s in zip(actual, shape, strict=True) if s is not None):
                raise BundleError(f"avatar.npz: {name} has shape {actual}, expected {shape}")
        if tuple(str(x) for x in self.joint_names) != JOINT_NAMES:
            raise BundleError("avatar.npz: the joints are not SMPL-X's 55")
        if tuple(str(x) for x in self.shape_key_names) != (*FACIAL_ACTIONS, PHOTO_KEY):
            raise BundleError("avatar.npz: the shape keys are not the 52 facial actions and the photo's")
        ranges = {"triangles": v, "bind_triangle": len(self.triangles), "skin_indices": joints + twists}
        for name, limit in ranges.items():
            array = getattr(self, name)
            if array.size and (int(array.min()) < 0 or int(array.max()) >= limit):
                raise BundleError(f"avatar.npz: {name} points outside its table of {limit}")
        for name in _ARRAYS:
            array = getattr(self, name)
            if np.issubdtype(np.asarray(array).dtype, np.floating) and not np.isfinite(array).all():
                raise BundleError(f"avatar.npz: {name} has values that are not finite")
        if self.controls is not None:
            try:
                self.controls.check(n, v, RESERVED_NAMES)
            except ControlError as error:
                raise BundleError(f"avatar.npz: {error}") from error


_ARRAYS = tuple(f.name for f in fields(Avatar) if f.name != "controls")


def write_bundle(folder: str | os.PathLike[str], cloud: GaussianCloud, avatar: Avatar) -> None:
    """Write gaussians.ply and avatar.npz into an existing folder.

    Args:
        folder: The job's result folder.
        cloud: The Gaussians of the rest pose, in the order of the `bind_*` arrays.
        avatar: Everything else.

    Raises:
        BundleError: If the cloud and the binding have different lengths.
        OSError: If the folder cannot be written.
    """
    folder = Path(folder)
    if len(cloud) != len(avatar.bind_triangle):
        raise BundleError(f"{len(cloud)} Gaussians but {len(avatar.bind_triangle)} bindings")
    write_ply(folder / "gaussians.ply", cloud, degree=3)
    part = folder / "avatar.npz.part"
    try:
        with part.open("wb") as file:
            controls = {} if avatar.controls is None else avatar.controls.to_arrays()
            arrays: dict[str, Any] = {name: getattr(avatar, name) for name in _ARRAYS} | controls
            np.savez_compressed(file, **arrays)
        part.replace(folder / "avatar.npz")
    finally:
        part.unlink(missing_ok=True)


def read_bundle(folder: str | os.PathLike[str]) -> tuple[GaussianCloud, Avatar]:
    """Read gaussians.ply and avatar.npz of a bundle.

    Raises:
        BundleError: If a file is missing, damaged, or the two do not belong together.
    """
    folder = Path(folder)
    for name in ("gaussians.ply", "avatar.npz"):
        if not (folder / name).is_file():
            raise BundleError(f"{folder} is no avatar bundle: {name} is missing")
    avatar = _read_avatar(folder / "avatar.npz")
    try:
        cloud = read_ply(folder / "gaussians.ply").cloud
    except FormatError as error:
        raise BundleError(f"{folder}: {error}") from error
    if len(cloud) != len(avatar.bind_triangle):
        raise BundleError(
            f"{folder}: gaussians.ply has {len(cloud)} Gaussians, avatar.npz binds {len(avatar.bind_triangle)}"
        )
    # The PLY of a degree-0 avatar is padded to degree 3 for strict viewers; zeros carry nothing.
    if not cloud.sh_rest.any():
        cloud = GaussianCloud(
            cloud.positions_m, cloud.scales_m, cloud.rotations_wxyz, cloud.opacities, cloud.sh_dc, cloud.sh_rest[:, :0]
        )
    return cloud, avatar


def read_result(folder: str | os.PathLike[str]) -> dict[str, object]:
    """result.json of a bundle.

    Raises:
        BundleError: If it is missing or no JSON object.
    """
    path = Path(folder) / "result.json"
    try:
        result: object = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BundleError(f"{path} cannot be read: {error}") from error
    if not isinstance(result, dict):
        raise BundleError(f"{path} is not a JSON object")
    return cast(dict[str, object], result)


def _read_avatar(path: Path) -> Avatar:
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(item.file_size for item in archive.infolist()) > MAX_ARCHIVE_BYTES:
                raise BundleError(
                    f"{path.name}: unpacks to more than {MAX_ARCHIVE_BYTES >> 30} GB; it is not an avatar"
                )
        with np.load(path, allow_pickle=False) as data:
            missing = sorted(set(_ARRAYS) - set(data.files))
            if missing:
                raise BundleError(f"{path.name}: {missing[0]} is missing; the file is from another version")
            controls = controls_from_arrays({name: data[name] for name in data.files if name not in _ARRAYS})
            return Avatar(**{name: data[name] for name in _ARRAYS}, controls=controls)
    except ControlError as error:
        raise BundleError(f"{path.name}: {error}") from error
    except (OSError, zipfile.BadZipFile, ValueError, TypeError) as error:  # TypeError: a number where a table belongs
        if isinstance(error, BundleError):
            raise
        raise BundleError(f"{path.name} cannot be read: {error}") from error
