"""A motion of the body model before a fixed camera as the points that video models are driven by."""

from __future__ import annotations

from typing import Final

import numpy as np

from backend.diffusion.interfaces import PoseTrack
from backend.errors import BAD_REQUEST, UserError
from backend.human.camera import PinholeCamera
from backend.human.lbs import apply_transforms, vertex_transforms
from backend.human.model import BodyModel
from blender_addon.shared.skeleton import JOINT_NAMES, PARENTS, axis_angle_to_matrices

IBUG_68: Final = (
    *(162, 234, 93, 58, 172, 136, 149, 148, 152, 377, 378, 365, 397, 288, 323, 454, 389),
    *(71, 63, 105, 66, 107, 336, 296, 334, 293, 301),
    *(168, 197, 5, 4, 75, 97, 2, 326, 305),
    *(33, 160, 158, 133, 153, 144, 362, 385, 387, 263, 373, 380),
    *(61, 39, 37, 0, 267, 269, 291, 405, 314, 17, 84, 181, 78, 82, 13, 312, 308, 317, 14, 87),
)
"""Rows of mediapipe's face mesh that lie nearest to the 68 landmarks of iBUG, in their order."""

_POSE_ROWS: Final = (0, 2, 5, 7, 8, 31, 32)
"""Of mediapipe's 33: nose, left eye, right eye, left ear, right ear, tips of the left and the right foot."""

_FACING: Final = np.array([[0, 0, 1], [0.35, 0, 1], [-0.35, 0, 1], [1, 0, 0], [-1, 0, 0]], np.float64)
"""Where nose, eyes and ears look in the head's own axes."""

_SEEN_ABOVE: Final = np.array([-0.1, 0.0, 0.0, -0.35, -0.35])
"""Cosine between that and the camera above which a detector still finds the point; by eye."""

_FACE_SEEN_ABOVE: Final = -0.1
_HEAD: Final = JOINT_NAMES.index("head")


def pose_track(
    body: BodyModel,
    vertices_m: np.ndarray,
    joints_m: np.ndarray,
    poses: np.ndarray,
    translations_m: np.ndarray,
    camera: PinholeCamera,
    frames_per_second: float,
) -> PoseTrack:
    """Project a motion.

    Args:
        body: Whose points are tied to vertices.
        vertices_m: [V, 3] rest vertices of the person.
        joints_m: [55, 3] rest joints.
        poses: [F, 55, 3] axis-angle.
        translations_m: [F, 3].
        camera: Fixed.
        frames_per_second: Of the motion.

    Returns:
        The track; points of the head that look away from the camera are NaN.

    Raises:
        UserError: If there is no frame, or a frame reaches behind the camera.
    """
    if len(poses) == 0 or poses.shape[1:] != (len(JOINT_NAMES), 3) or len(poses) != len(translations_m):
        raise UserError(f"a motion has poses [F, 55, 3] and F translations, not {list(poses.shape)}", BAD_REQUEST)
    from scipy.sparse import csr_matrix, vstack

    tied = [body.pose_keypoints[list(_POSE_ROWS)], body.face_landmarks[list(IBUG_68)], body.hand_keypoints]
    rows = csr_matrix(vstack(tied))
    used, columns = np.unique(rows.indices, return_inverse=True)
    tie = csr_matrix((rows.data, columns, rows.indptr), shape=(sum(part.shape[0] for part in tied), len(used)))
    rest, weights = np.asarray(vertices_m, np.float64)[used], body.twist.skin_weights[used]
    shown: list[np.ndarray] = []
    joints: list[np.ndarray] = []
    for pose, translation in zip(poses, translations_m, strict=True):
        moved = vertex_transforms(joints_m, pose, weights, translation, body.twist)
        points = tie @ apply_transforms(moved, rest)
        rotations, places = chain(joints_m, pose)
        places = places + translation
        hidden = _hidden(rotations[_HEAD], points[0], camera)
        pixels = _project(camera, points)
        pixels[:75][hidden] = np.nan
        shown.append(pixels)
        joints.append(np.concatenate([_project(camera, places), camera.to_camera(places)[:, 2:]], axis=1))
    pixels, places = np.stack(shown).astype(np.float32), np.stack(joints).astype(np.float32)
    return PoseTrack(
        joints_px=places[..., :2],
        joint_depths_m=places[..., 2],
        face_px=pixels[:, 7:75],
        hands_px=pixels[:, 75:].reshape(len(poses), 2, 21, 2),
        width=camera.width,
        height=camera.height,
        frames_per_second=frames_per_second,
        head_px=pixels[:, :5],
        toes_px=pixels[:, 5:7],
    )


def chain(joints_m: np.ndarray, pose: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Forward kinematics: world rotations [55, 3, 3] and positions [55, 3] of rest joints [55, 3] and pose [55, 3]."""
    local = axis_angle_to_matrices(pose)
    rotations, places = [local[0]], [np.asarray(joints_m[0], np.float64)]
    for joint in range(1, len(PARENTS)):
        parent = int(PARENTS[joint])
        rotations.append(rotations[parent] @ local[joint])
        places.append(places[parent] + rotations[parent] @ (joints_m[joint] - joints_m[parent]))
    return np.stack(rotations), np.stack(places)


def _hidden(head: np.ndarray, nose_m: np.ndarray, camera: PinholeCamera) -> np.ndarray:
    """Bool [75]: which of nose, eyes, ears, toes and 68 face points look away."""
    to_camera = camera.position_m - nose_m
    to_camera = to_camera / max(float(np.linalg.norm(to_camera)), 1e-9)
    directions = _FACING / np.linalg.norm(_FACING, axis=1, keepdims=True)
    away = directions @ head.T @ to_camera < _SEEN_ABOVE
    face = float(head[:, 2] @ to_camera) < _FACE_SEEN_ABOVE
    return np.concatenate([away, [False, False], np.full(68, face)])


def _project(camera: PinholeCamera, points_m: np.ndarray) -> np.ndarray:
    if float(camera.to_camera(points_m)[:, 2].min()) < 0.05:
        raise UserError("the motion reaches behind the camera; move the camera away", BAD_REQUEST)
    return camera.project(points_m)
