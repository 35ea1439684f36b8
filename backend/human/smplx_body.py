"""A user's own SMPL-X file as a `BodyModel`, read without ever unpickling anything.

The `smplx` package opens even .npz files with pickling allowed, so a prepared file could run code, and its terms allow
research only: it is not needed here. What it makes of a file is what the arrays say (tests/human/test_smplx.py holds
both to each other). Pose correctives are left out: they move the surface by a few millimetres and would make binding
depend on the pose.
"""

from __future__ import annotations

from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import scipy.sparse as sp
from scipy.interpolate import RBFInterpolator
from scipy.spatial import KDTree

from backend.errors import BAD_REQUEST, MODEL_MISSING, UserError
from backend.human.bodyparts import closest_on_surface, hand_keypoint_rows, mean_row, twist_bones
from backend.human.model import ACTION_COUNT, SHAPE_COUNT, BodyModel, Region
from blender_addon.shared.skeleton import JOINT_NAMES

NAME = "SMPL-X (user)"
_JOINTS = len(JOINT_NAMES)
_SHAPE_SPACE = 300  # shape components of a full file, before its expressions
_LANDMARKS = 51
# Points of mediapipe's face mesh at dlib's landmarks 18 to 68 (brows, nose, eyes, lips), the order of SMPL-X's 51.
_MESH_OF_LANDMARK = (
    *(70, 63, 105, 66, 107, 336, 296, 334, 293, 300, 168, 197, 5, 4, 75, 97, 2, 326, 305),
    *(33, 160, 158, 133, 153, 144, 362, 385, 387, 263, 373, 380),
    *(61, 39, 37, 0, 267, 269, 291, 405, 314, 17, 84, 181, 78, 82, 13, 312, 308, 317, 14, 87),
)


def read_plain_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an SMPL-X .npz that are used here, read without pickling and checked.

    Args:
        path: The user's file.

    Returns:
        Arrays by SMPL-X's names, as `smplx` needs them; `vt` and `ft` only where the file has them.

    Raises:
        UserError: The file is missing, is not a plain .npz, or its arrays do not fit together.
    """
    if not path.is_file():
        raise UserError(
            f"no SMPL-X file at {path}: choose SMPLX_NEUTRAL.npz of your own SMPL-X download", MODEL_MISSING
        )
    if path.suffix.lower() != ".npz":
        raise UserError(
            f"{path.name} is not an .npz file, and .pkl files are not opened because they can run code: "
            "choose the .npz of the same model from the SMPL-X download",
            BAD_REQUEST,
        )
    needed = (
        "v_template",
        "f",
        "weights",
        "shapedirs",
        "J_regressor",
        "kintree_table",
        "lmk_faces_idx",
        "lmk_bary_coords",
    )
    try:
        with np.load(path, allow_pickle=False) as file:
            missing = [key for key in needed if key not in file.files]
            if missing:
                raise UserError(
                    f"{path.name} is no SMPL-X model: it lacks {', '.join(missing)}; choose SMPLX_NEUTRAL.npz"
                )
            arrays = {key: file[key] for key in needed}
            arrays |= {key: file[key] for key in ("vt", "ft") if key in file.files}
    except (BadZipFile, ValueError, OSError, EOFError) as error:
        raise UserError(
            f"{path.name} cannot be read as plain arrays ({error}); choose an undamaged SMPLX_*.npz"
        ) from error
    count = len(arrays["v_template"])
    shapes = {
        "v_template": (count, 3),
        "f": (len(arrays["f"]), 3),
        "weights": (count, _JOINTS),
        "shapedirs": (count, 3, *arrays["shapedirs"].shape[2:3]),
        "J_regressor": (_JOINTS, count),
        "kintree_table": (2, _JOINTS),
        "lmk_faces_idx": (_LANDMARKS,),
        "lmk_bary_coords": (_LANDMARKS, 3),
    }
    for key, shape in shapes.items():
        if arrays[key].shape != shape:
            raise UserError(
                f"{path.name} is no SMPL-X model: {key} has shape {arrays[key].shape}; choose SMPLX_NEUTRAL.npz"
            )
        if arrays[key].dtype.kind not in "iuf" or not np.isfinite(arrays[key]).all():
            raise UserError(f"{path.name} is damaged: {key} has values that are not numbers; download it again")
    if arrays["f"].min() < 0 or arrays["f"].max() >= count:
        raise UserError(f"{path.name} is damaged: triangles name vertices that do not exist; download it again")
    return arrays


def _create(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Template, shape directions, regressor, weights and faces as the `smplx` package has them after loading."""
    components = arrays["shapedirs"].shape[2]
    betas = SHAPE_COUNT if components >= _SHAPE_SPACE + 100 else 10  # short files: 10 shape, then 10 expression
    return {
        "template_m": arrays["v_template"].astype(np.float64),
        "shape_dirs_m": arrays["shapedirs"][..., : min(betas, components)].astype(np.float64),
        "joint_regressor": arrays["J_regressor"].astype(np.float64),
        "skin_weights": arrays["weights"].astype(np.float64),
        "triangles": arrays["f"].astype(np.int32),
    }


def _similarity(source_m: np.ndarray, target_m: np.ndarray) -> tuple[float, np.ndarray]:
    """Scale and shift (no turn: both bodies look to +z) that take source points [P, 3] to target points."""
    a, b = source_m - source_m.mean(0), target_m - target_m.mean(0)
    scale = float((a * b).sum() / (a * a).sum())
    return scale, target_m.mean(0) - scale * source_m.mean(0)


def _face_rows(
    data: dict[str, np.ndarray],
    arrays: dict[str, np.ndarray],
    joints_m: np.ndarray,
    head: np.ndarray,
    default: BodyModel,
) -> sp.csr_matrix:
    """Mediapipe's 468 points [468, V], carried over from the default body by SMPL-X's own 51 landmarks."""
    points = default.face_landmarks @ default.template_m.astype(np.float64)
    corners = data["triangles"][arrays["lmk_faces_idx"].astype(int)]
    marks = (data["template_m"][corners] * arrays["lmk_bary_coords"][..., None]).sum(1)
    mesh = list(_MESH_OF_LANDMARK)
    if marks.std(0).min() > 0.003:  # metres; a file without real landmarks repeats one point
        scale, shift = _similarity(points[mesh], marks)
        moved = scale * points + shift
        moved += RBFInterpolator(moved[mesh], marks - moved[mesh], kernel="linear", smoothing=1e-3)(moved)
    else:
        anchors = [JOINT_NAMES.index(name) for name in ("head", "left_eye_smplhf", "right_eye_smplhf")]
        scale, shift = _similarity(default.joints(default.template_m)[anchors], joints_m[anchors])
        moved = scale * points + shift
    skin = data["triangles"][head[data["triangles"]].all(1)]
    return closest_on_surface(moved, data["template_m"], skin)


def _pose_rows(
    template_m: np.ndarray, regressor: sp.csr_matrix, weights: np.ndarray, face: sp.csr_matrix, head: np.ndarray
) -> sp.csr_matrix:
    """Mediapipe's 33 pose landmarks [33, V]: joints for the limbs, geometry for ears, heels and toes."""
    count = len(template_m)

    def joint(name: str) -> list[sp.csr_matrix]:
        return [regressor[JOINT_NAMES.index(f"{side}_{name}")] for side in ("left", "right")]

    def extreme(name: str, direction: tuple[float, float, float]) -> list[sp.csr_matrix]:
        rows = []
        for side in ("left", "right"):
            names = (f"{side}_ankle", f"{side}_foot") if name == "foot" else ("head",)
            own = weights[:, [JOINT_NAMES.index(key) for key in names]].sum(1) > 0.5
            own = np.flatnonzero(own & (head if name == "head" else True))
            sign = -1.0 if side == "right" else 1.0
            reach = template_m[own] @ (np.array(direction) * [sign, 1.0, 1.0])
            rows.append(mean_row(own[np.argsort(-reach, kind="stable")[:8]], count))
        return rows

    order = [face[1]]
    for inner, outer in ((362, 263), (133, 33)):  # eye corners in the face mesh, left then right
        order += [face[inner], 0.5 * (face[inner] + face[outer]), face[outer]]
    order += [*extreme("head", (1.0, 0.0, 0.0)), face[291], face[61]]
    for name in ("shoulder", "elbow", "wrist", "pinky1", "index1", "thumb2", "hip", "knee", "ankle"):
        order += joint(name)
    order += [*extreme("foot", (0.0, -0.3, -1.0)), *extreme("foot", (0.0, 0.0, 1.0))]
    return sp.csr_matrix(sp.vstack(order), dtype=np.float32)


def _grounded(data: dict[str, np.ndarray]) -> None:
    """Puts the template on the floor with its ankles over the origin, and keeps it there for every shape, in place."""
    template, dirs = data["template_m"], data["shape_dirs_m"]
    soles = template[:, 1] < template[:, 1].min() + 0.005
    ankles = data["joint_regressor"][[JOINT_NAMES.index("left_ankle"), JOINT_NAMES.index("right_ankle")]].mean(0)
    dirs[:, 1] -= dirs[soles, 1].mean(0)
    dirs[:, 2] -= np.einsum("v,vk->k", ankles, dirs[:, 2])
    template -= [0.0, template[:, 1].min(), ankles @ template[:, 2]]


def read_smplx_body(path: Path, default: BodyModel) -> BodyModel:
    """Loads a user's SMPL-X file.

    Args:
        path: .npz of SMPL-X (10 or more shape components; those beyond 20 are left out).
        default: Effigy's own body, from which the face's points are carried over.

    Returns:
        The body with SMPL-X's own betas; no facial actions, all vertices count as outer.

    Raises:
        UserError: The file cannot be used.
    """
    arrays = read_plain_arrays(path)
    data = _create(arrays)
    _grounded(data)
    template, count = data["template_m"], len(data["template_m"])
    regressor = sp.csr_matrix(data["joint_regressor"])
    joints = regressor @ template
    twist = twist_bones(template, joints, data["skin_weights"])
    weights = twist.merged_weights()
    regions = np.full(count, Region.BODY, np.uint8)
    head = weights[:, [JOINT_NAMES.index("head"), JOINT_NAMES.index("jaw")]].sum(1) >= 0.5
    regions[head] = Region.HEAD
    for side, region in (("left", Region.LEFT_EYE), ("right", Region.RIGHT_EYE)):
        regions[weights[:, JOINT_NAMES.index(f"{side}_eye_smplhf")] > 0.5] = region
    head = regions == Region.HEAD
    face = _face_rows(data, arrays, joints, head, default)
    shape_dirs = np.zeros((count, 3, SHAPE_COUNT), np.float32)
    shape_dirs[..., : data["shape_dirs_m"].shape[2]] = data["shape_dirs_m"]
    if "vt" in arrays and "ft" in arrays:
        uvs = arrays["vt"][arrays["ft"].astype(int)].astype(np.float32)
    else:
        uvs = np.zeros((len(data["triangles"]), 3, 2), np.float32)
    return BodyModel(
        name=NAME,
        template_m=template.astype(np.float32),
        triangles=data["triangles"],
        uvs=uvs,
        shape_dirs_m=shape_dirs,
        action_dirs_m=np.zeros((count, 3, ACTION_COUNT), np.float32),
        has_actions=False,
        joint_regressor=sp.csr_matrix(regressor, dtype=np.float32),
        skin_weights=weights,
        twist=twist,
        regions=regions,
        outer=np.ones(count, bool),
        mirror=np.asarray(KDTree(template).query(template * [-1.0, 1.0, 1.0])[1], np.int32),
        pose_keypoints=_pose_rows(template, regressor, weights, face, head),
        hand_keypoints=hand_keypoint_rows(template, regressor, weights),
        face_landmarks=sp.csr_matrix(face, dtype=np.float32),
        face_landmark_error=default.face_landmark_error,
    )


__all__ = ["read_plain_arrays", "read_smplx_body"]
