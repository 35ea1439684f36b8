"""Body models behind one interface: Effigy's default body, and a user's own SMPL-X (see smplx_body.py).

The default body is derived from MakeHuman's CC0 base mesh by scripts/make_default_body.py. It has SMPL-X's 55 joints
and names, so motion made for SMPL-X drives it, but its shape numbers are not SMPL-X betas.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache
from pathlib import Path

import numpy as np
import scipy.sparse as sp

from backend.human.bodyparts import WEIGHT_UNIT
from backend.human.lbs import TwistBones
from blender_addon.shared.skeleton import JOINT_NAMES

DEFAULT_BODY_FILE = Path(__file__).parent / "data" / "default_body.npz"
DEFAULT_BODY_NAME = "effigy default body (CC0, MakeHuman)"
SHAPE_COUNT = 20
ACTION_COUNT = 52


class Region(IntEnum):
    """What a vertex belongs to."""

    BODY = 0
    HEAD = 1
    """Skin of the head with ears and jaw, lids, lips and the sockets behind the eyes."""
    LEFT_EYE = 2
    RIGHT_EYE = 3
    MOUTH = 4
    """Bag behind the lips."""
    TONGUE = 5
    UPPER_TEETH = 6
    LOWER_TEETH = 7


@dataclass(frozen=True)
class BodyModel:
    """A rigged body in T-pose: y up, +z front, metres, floor at y = 0, origin between the feet. Arrays are read only.

    Attributes:
        name: What the model is, for the result's record.
        template_m: [V, 3] float32 mean shape.
        triangles: [T, 3] int32, counter-clockwise seen from outside.
        uvs: [T, 3, 2] float32 texture coordinates per corner, origin at the lower left.
        shape_dirs_m: [V, 3, 20] float32 metres per unit of a shape number (unit variance).
        action_dirs_m: [V, 3, 52] float32 metres per unit of a facial action, order of `FACIAL_ACTIONS`.
        has_actions: False where the model has no facial actions (all offsets are 0).
        joint_regressor: csr [55, V] float32.
        skin_weights: [V, 55] float32, rows sum to 1.
        twist: Four helper bones in the arms with their own weights [V, 59].
        regions: uint8 [V], values of `Region`.
        outer: bool [V] visible from outside in the rest pose.
        mirror: int32 [V] the vertex on the other side of the body; itself where the model has no mirror map.
        pose_keypoints: csr [33, V] mediapipe's pose landmarks.
        hand_keypoints: csr [42, V] mediapipe's hand landmarks, 21 of the left hand, 21 of the right.
        face_landmarks: csr [468, V] mediapipe's face mesh points; lips are tied on an open mouth.
        face_landmark_error: [468] error of the tie as a share of the face's height (landmark 10 to 152).
    """

    name: str
    template_m: np.ndarray
    triangles: np.ndarray
    uvs: np.ndarray
    shape_dirs_m: np.ndarray
    action_dirs_m: np.ndarray
    has_actions: bool
    joint_regressor: sp.csr_matrix
    skin_weights: np.ndarray
    twist: TwistBones
    regions: np.ndarray
    outer: np.ndarray
    mirror: np.ndarray
    pose_keypoints: sp.csr_matrix
    hand_keypoints: sp.csr_matrix
    face_landmarks: sp.csr_matrix
    face_landmark_error: np.ndarray

    def __post_init__(self) -> None:
        """Checks shapes and makes the arrays read only.

        Raises:
            ValueError: an array's shape does not fit the others.
        """
        v, t = len(self.template_m), len(self.triangles)
        joints = len(JOINT_NAMES)
        shapes = {
            "template_m": (v, 3),
            "triangles": (t, 3),
            "uvs": (t, 3, 2),
            "shape_dirs_m": (v, 3, SHAPE_COUNT),
            "action_dirs_m": (v, 3, ACTION_COUNT),
            "joint_regressor": (joints, v),
            "skin_weights": (v, joints),
            "regions": (v,),
            "outer": (v,),
            "mirror": (v,),
            "pose_keypoints": (33, v),
            "hand_keypoints": (42, v),
            "face_landmarks": (468, v),
            "face_landmark_error": (468,),
        }
        for key, shape in shapes.items():
            value = getattr(self, key)
            if value.shape != shape:
                raise ValueError(f"{key} has shape {value.shape}, expected {shape}")
            if isinstance(value, np.ndarray):
                value.flags.writeable = False
        if self.twist.skin_weights.shape != (v, joints + len(self.twist.names)):
            raise ValueError(f"twist.skin_weights has shape {self.twist.skin_weights.shape}")
        self.twist.skin_weights.flags.writeable = False

    def rest(self, betas: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The neutral T-pose of a shape.

        Args:
            betas: [20] shape numbers.

        Returns:
            vertices [V, 3] and joints [55, 3], float32, metres.
        """
        vertices = self.template_m + self.shape_dirs_m @ np.asarray(betas, np.float32)
        return vertices, self.joints(vertices)

    def joints(self, vertices_m: np.ndarray) -> np.ndarray:
        """Rest joints [55, 3] of rest vertices [V, 3], float32, metres."""
        return np.asarray(self.joint_regressor @ vertices_m, np.float32)


def _rows(indices: np.ndarray, values: np.ndarray, columns: int) -> sp.csr_matrix:
    """Padded rows (index [R, K], value [R, K], 0 = nothing) as csr [R, columns] float32."""
    rows = np.repeat(np.arange(len(indices)), indices.shape[1])
    matrix = sp.coo_matrix((values.ravel(), (rows, indices.ravel().astype(np.int64))), shape=(len(indices), columns))
    result = sp.csr_matrix(matrix, dtype=np.float32)
    result.eliminate_zeros()
    return result


@lru_cache(maxsize=1)
def load_default_body() -> BodyModel:
    """Effigy's own body; nothing to download. The arrays are shared by all callers and read only."""
    with np.load(DEFAULT_BODY_FILE, allow_pickle=False) as file:
        data = {key: file[key] for key in file.files}
    template = data["template_m"]
    count = len(template)
    bones = len(JOINT_NAMES) + len(data["twist_names"])
    weights = np.zeros((count, bones), np.float32)
    shares = data["weight_units"].astype(np.float32) / WEIGHT_UNIT
    np.add.at(weights, (np.arange(count)[:, None], data["weight_bones"]), shares)
    twist = TwistBones(
        names=tuple(str(name) for name in data["twist_names"]),
        parents=data["twist_parents"],
        sources=data["twist_sources"],
        ends=data["twist_ends"],
        factors=data["twist_factors"],
        skin_weights=weights,
    )
    sparse = {
        key: _rows(data[f"{key}_vertices"], data[f"{key}_values"], count)
        for key in ("joint_regressor", "pose_keypoints", "hand_keypoints", "face_landmarks")
    }
    return BodyModel(
        name=DEFAULT_BODY_NAME,
        template_m=template,
        triangles=data["triangles"].astype(np.int32),
        uvs=data["texture_points"][data["texture_triangles"]].astype(np.float32),
        shape_dirs_m=data["shape_dirs_m"].astype(np.float32),
        action_dirs_m=data["action_dirs_m"].astype(np.float32),
        has_actions=True,
        skin_weights=twist.merged_weights(),
        twist=twist,
        regions=data["regions"],
        outer=data["outer"],
        mirror=data["mirror"].astype(np.int32),
        face_landmark_error=data["face_landmark_error"],
        **sparse,
    )


def load_smplx(path: str | Path) -> BodyModel:
    """A user's own SMPL-X model file (.npz).

    Args:
        path: SMPLX_NEUTRAL.npz, _FEMALE or _MALE.

    Raises:
        UserError: the file is missing, or not a plain .npz of SMPL-X.
    """
    from backend.human.smplx_body import read_smplx_body

    return read_smplx_body(Path(path), load_default_body())


__all__ = ["ACTION_COUNT", "DEFAULT_BODY_FILE", "SHAPE_COUNT", "BodyModel", "Region", "load_default_body", "load_smplx"]
