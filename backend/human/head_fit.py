"""Head pose, size, shape and facial actions from face landmarks, with the camera of the whole-body fit."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from scipy.optimize import least_squares
from scipy.sparse.linalg import splu
from scipy.spatial.transform import Rotation

from backend.human.camera import PinholeCamera
from backend.human.model import BodyModel, Region
from blender_addon.shared.skeleton import FACIAL_ACTIONS, JOINT_NAMES, PARENTS

NECK = JOINT_NAMES.index("neck")
HEAD = JOINT_NAMES.index("head")
JAW = JOINT_NAMES.index("jaw")
EYES = (JOINT_NAMES.index("left_eye_smplhf"), JOINT_NAMES.index("right_eye_smplhf"))
SKULL_JOINTS = (HEAD, JAW, *EYES)

TIE_LIMIT = 0.011
"""Landmark ties with a larger error (share of the face height) are ignored: keeps 95 % of the default body's."""


@dataclass(frozen=True)
class HeadFitSettings:
    """Weights of the landmark fit; lengths are residuals in millimetres at the head."""

    soft_clip_mm: float = 8.0
    mouth_eye_penalty: float = 8.0
    brow_nose_cheek_penalty: float = 12.0
    smile_penalty: float = (
        5.0  # a smile is the commonest expression on a photo; too hard and it stays in the neutral face
    )
    coupling: float = 8.0  # left and right actions
    shape_penalty: float = 1.0
    shape_directions: int = 10
    feature_penalty: float = 2.0  # per mm: small differences are the person's, large ones the expression's
    depth_sigma_m: float = 0.03  # the neck has to meet the head
    log_scale_sigma: float = 0.06
    prior_weight: float = 5.0
    smallest_action: float = 0.03
    evaluations: int = 30


@dataclass(frozen=True)
class HeadPlacement:
    """Result of the landmark fit.

    Attributes:
        rotation: [3, 3] rest axes to camera axes.
        origin_camera_m: [3] the rest head joint in the camera.
        scale: Head size relative to the body fit's.
        shape_offset_m: [V, 3] of the head, rest axes, before scaling.
        actions: [52] facial actions.
        error_px: Root mean square landmark distance, px of the working image.
    """

    rotation: np.ndarray
    origin_camera_m: np.ndarray
    scale: float
    shape_offset_m: np.ndarray
    actions: np.ndarray
    error_px: float


def fitted_actions() -> list[int]:
    """Actions the fit may use: not gaze (iris landmarks give it) nor those that landmarks cannot tell."""
    left_out = {"tongueOut", "mouthClose", "cheekPuff", "jawForward"}
    return [i for i, n in enumerate(FACIAL_ACTIONS) if n not in left_out and not n.startswith("eyeLook")]


def good_landmarks(body: BodyModel) -> np.ndarray:
    """Indices of the landmarks whose tie to the mesh is trusted."""
    return np.flatnonzero(body.face_landmark_error <= TIE_LIMIT)


def head_shape_basis(body: BodyModel, count: int) -> np.ndarray:
    """Directions of head shape without similarity motion.

    Returns:
        [V, 3, count] metres per unit, sorted by their effect on the head.
    """
    on_head = body.skin_weights[:, list(SKULL_JOINTS)].sum(axis=1) > 0.5
    points = body.template_m[on_head].astype(np.float64)
    points = points - points.mean(axis=0)
    n = len(points)
    similarity = [np.tile(axis, (n, 1)) for axis in np.eye(3)]
    similarity += [np.cross(axis, points) for axis in np.eye(3)] + [points]
    q, _ = np.linalg.qr(np.stack([s.ravel() for s in similarity], axis=1))
    directions = body.shape_dirs_m.astype(np.float64)
    flat = directions[on_head].reshape(3 * n, -1)
    flat = flat - q @ (q.T @ flat)
    _, _, vt = np.linalg.svd(flat, full_matrices=False)
    basis = directions @ vt[:count].T
    return basis - basis[on_head].mean(axis=0)


INNER_FEATURES = (33, 133, 159, 145, 105, 107, 70, 98, 61, 40, 91, 205)
OUTER_FEATURES = (50, 172, 127, 234, 67)
MIDDLE_FEATURES = (4, 168, 0, 17, 152, 10)


def feature_basis(body: BodyModel, rest_m: np.ndarray) -> np.ndarray:
    """Local directions of identity: symmetric bumps round the features of the face, across and along the face.

    The model's own shape numbers carry little identity (0.06 to 0.6 mm each), and actions must not stand in for it.

    Args:
        body: The body model.
        rest_m: [V, 3] rest vertices.

    Returns:
        [V, 3, B] metres per millimetre of the bump's height, that is 1e-3 at its top.
    """
    unit = np.ptp(body.face_landmarks[[10, 152]] @ rest_m, axis=0)[1]
    fields = []
    for features, reach in ((INNER_FEATURES, 0.10), (OUTER_FEATURES, 0.22), (MIDDLE_FEATURES, 0.12)):
        for centre in body.face_landmarks[list(features)] @ rest_m:
            near = np.exp(-0.5 * (((rest_m - centre) / (reach * unit)) ** 2).sum(axis=1))
            other = np.exp(-0.5 * (((rest_m - centre * [-1, 1, 1]) / (reach * unit)) ** 2).sum(axis=1))
            across, along = np.zeros(rest_m.shape), np.zeros(rest_m.shape)
            across[:, 0] = near - other
            along[:, 1] = np.maximum(near, other) if features is MIDDLE_FEATURES else near + other
            fields += [along] if features is MIDDLE_FEATURES else [across, along]
    return 1e-3 * np.stack(fields, axis=2)


def place_head(
    landmarks_px: np.ndarray,
    body: BodyModel,
    rest_m: np.ndarray,
    head_joint_m: np.ndarray,
    camera: PinholeCamera,
    start_rotation: np.ndarray,
    start_origin_m: np.ndarray,
    settings: HeadFitSettings,
) -> HeadPlacement:
    """Fit rotation, position, size, shape and actions of the head to landmarks.

    Args:
        landmarks_px: [478, 3] face landmarks in px of the working image.
        body: The body model.
        rest_m: [V, 3] rest vertices of the body fit.
        head_joint_m: [3] rest position of the head joint.
        camera: The photo's camera.
        start_rotation: [3, 3] rest axes to camera axes, from the body fit.
        start_origin_m: [3] the head joint in the camera, from the body fit; its depth is a prior.
        settings: Weights.
    """
    rows = good_landmarks(body)
    tie = body.face_landmarks[rows]
    basis = np.concatenate([head_shape_basis(body, settings.shape_directions), feature_basis(body, rest_m)], axis=2)
    use = fitted_actions()
    mean = tie @ (rest_m - head_joint_m)
    shape = np.stack([tie @ basis[..., k] for k in range(basis.shape[2])], axis=-1)
    action = np.stack([tie @ body.action_dirs_m[..., k].astype(np.float64) for k in use], axis=-1)
    problem = _LandmarkProblem(mean, shape, action, landmarks_px[rows, :2], camera, start_origin_m[2], use, settings)
    solution = problem.solve(start_rotation, start_origin_m)
    actions = np.zeros(len(FACIAL_ACTIONS))
    actions[use] = solution[7 + shape.shape[2] :]
    actions[actions < settings.smallest_action] = 0
    error = np.sqrt(((problem.project(solution) - problem.target) ** 2).sum(axis=1).mean())
    return HeadPlacement(
        rotation=Rotation.from_rotvec(solution[:3]).as_matrix(),
        origin_camera_m=solution[3:6],
        scale=float(np.exp(solution[6])),
        shape_offset_m=basis @ solution[7 : 7 + shape.shape[2]],
        actions=actions,
        error_px=float(error),
    )


class _LandmarkProblem:
    """Robust least squares; unknowns: rotation vector 3, origin 3, log scale, shape, actions."""

    def __init__(
        self,
        mean: np.ndarray,
        shape: np.ndarray,
        action: np.ndarray,
        target: np.ndarray,
        camera: PinholeCamera,
        depth: float,
        use: list[int],
        settings: HeadFitSettings,
    ) -> None:
        self.mean, self.shape, self.action, self.target = mean, shape, action, target
        self.camera, self.depth, self.settings = camera, depth, settings
        self.px_per_mm = camera.fy / depth * 1e-3
        self.identity_penalty = np.full(shape.shape[2], settings.feature_penalty)
        self.identity_penalty[: settings.shape_directions] = settings.shape_penalty
        names = [FACIAL_ACTIONS[i] for i in use]
        self.penalty = np.array([_penalty(n, settings) for n in names])
        pairs = [(n, n[:-4] + "Right") for n in names if n.endswith("Left") and n not in ("jawLeft", "mouthLeft")]
        self.left = [names.index(a) for a, _ in pairs]
        self.right = [names.index(b) for _, b in pairs]

    def project(self, x: np.ndarray) -> np.ndarray:
        """[L, 2] landmarks of the model in px."""
        k = self.shape.shape[2]
        points = self.mean + self.shape @ x[7 : 7 + k] + self.action @ x[7 + k :]
        q = np.exp(x[6]) * points @ Rotation.from_rotvec(x[:3]).as_matrix().T + x[3:6]
        c = self.camera
        return q[:, :2] / q[:, 2:] * [c.fx, c.fy] + [c.cx, c.cy]

    def residuals(self, x: np.ndarray) -> np.ndarray:
        s, k = self.settings, self.shape.shape[2]
        r = self._clipped((self.project(x) - self.target) / self.px_per_mm)
        actions = x[7 + k :]
        return np.concatenate(
            [
                r.ravel(),
                s.coupling * (actions[self.left] - actions[self.right]),
                self.identity_penalty * x[7 : 7 + k],
                np.sqrt(actions + 1e-4) * self.penalty,
                [
                    s.prior_weight * (x[5] - self.depth) / s.depth_sigma_m,
                    s.prior_weight * x[6] / s.log_scale_sigma,
                ],
            ]
        )

    def jacobian(self, x: np.ndarray) -> np.ndarray:
        s, k, n = self.settings, self.shape.shape[2], self.action.shape[2]
        c = self.camera
        turn = np.exp(x[6]) * Rotation.from_rotvec(x[:3]).as_matrix()
        points = self.mean + self.shape @ x[7 : 7 + k] + self.action @ x[7 + k :]
        q = points @ turn.T
        by_turn = [(np.exp(x[6]) * points @ _nudged(x[:3], i).T - q) / _NUDGE for i in range(3)]
        moves = [np.stack(by_turn, axis=2), np.broadcast_to(np.eye(3), (len(q), 3, 3)), q[:, :, None]]
        dq = np.concatenate([*moves, turn @ self.shape, turn @ self.action], axis=2)
        q = q + x[3:6]
        focal = np.array([c.fx, c.fy])[:, None]
        along = (q[:, :2] / q[:, 2:])[:, :, None] * dq[:, 2:3]
        dp = (dq[:, :2] - along) * focal / q[:, 2][:, None, None] / self.px_per_mm
        r = (self.project(x) - self.target) / self.px_per_mm
        u = (r / s.soft_clip_mm) ** 2
        dp *= ((1 + u) ** -0.25 - 0.5 * u * (1 + u) ** -1.25)[:, :, None]
        pairs = np.zeros((len(self.left), 7 + k + n))
        rows = np.arange(len(self.left))
        pairs[rows, 7 + k + np.array(self.left)] = s.coupling
        pairs[rows, 7 + k + np.array(self.right)] = -s.coupling
        own = np.zeros((k + n + 2, 7 + k + n))
        own[np.arange(k), 7 + np.arange(k)] = self.identity_penalty
        own[k + np.arange(n), 7 + k + np.arange(n)] = 0.5 * self.penalty / np.sqrt(x[7 + k :] + 1e-4)
        own[k + n, 5], own[k + n + 1, 6] = s.prior_weight / s.depth_sigma_m, s.prior_weight / s.log_scale_sigma
        return np.concatenate([dp.reshape(-1, dp.shape[2]), pairs, own])

    def _clipped(self, r: np.ndarray) -> np.ndarray:
        return r / (1 + (r / self.settings.soft_clip_mm) ** 2) ** 0.25

    def solve(self, rotation: np.ndarray, origin: np.ndarray) -> np.ndarray:
        k, n = self.shape.shape[2], self.action.shape[2]
        c = self.camera
        middle = (self.target.mean(axis=0) - [c.cx, c.cy]) / [c.fx, c.fy] * self.depth
        centre = rotation @ self.mean.mean(axis=0)
        start = np.r_[
            Rotation.from_matrix(rotation).as_rotvec(), middle - centre[:2], origin[2], 0, np.zeros(k), np.full(n, 0.02)
        ]
        low = np.r_[np.full(6, -np.inf), np.log(0.78), np.full(k, -np.inf), np.full(n, -1e-9)]
        high = np.r_[np.full(6, np.inf), np.log(1.28), np.full(k, np.inf), np.ones(n)]
        fit = least_squares(
            self.residuals,
            start,
            jac=self.jacobian,
            bounds=(low, high),
            max_nfev=self.settings.evaluations,
            x_scale="jac",
        )
        return fit.x


_NUDGE = 1e-6


def _nudged(rotvec: np.ndarray, axis: int) -> np.ndarray:
    """Rotation matrix [3, 3] with one component of its vector increased by `_NUDGE`."""
    moved = rotvec.copy()
    moved[axis] += _NUDGE
    return Rotation.from_rotvec(moved).as_matrix()


def _penalty(name: str, settings: HeadFitSettings) -> float:
    if name.startswith(("brow", "nose", "cheek")):
        return settings.brow_nose_cheek_penalty
    if name.startswith(("mouthSmile", "jawOpen")):
        return settings.smile_penalty
    return settings.mouth_eye_penalty


def head_weight(body: BodyModel) -> np.ndarray:
    """[V] 1 on the head, 0 on the trunk, harmonic on the mesh over the neck."""
    skull = body.skin_weights[:, list(SKULL_JOINTS)].sum(axis=1)
    with_neck = skull + body.skin_weights[:, NECK]
    known = np.full(len(skull), np.nan)
    known[with_neck < 0.3] = 0
    known[(skull > 0.85) | (body.regions >= Region.LEFT_EYE)] = 1
    return fill_harmonic(known, body.triangles)


def fill_harmonic(known: np.ndarray, triangles: np.ndarray) -> np.ndarray:
    """Continue known vertex values smoothly over the mesh.

    Args:
        known: [V], NaN where to be filled. Parts of the mesh without any known value get 0.
        triangles: [T, 3].
    """
    n = len(known)
    edges = np.vstack([triangles[:, [0, 1]], triangles[:, [1, 2]], triangles[:, [2, 0]]])
    graph = sp.coo_matrix((np.ones(len(edges)), (edges[:, 0], edges[:, 1])), shape=(n, n)).tocsr()
    graph = ((graph + graph.T) > 0).astype(np.float64)
    laplacian = sp.diags(np.asarray(graph.sum(axis=1)).ravel() + 1e-9) - graph
    free = np.isnan(known)
    values = np.where(free, 0, known)
    if free.any():
        free_index = np.flatnonzero(free)
        rows = laplacian.tocsr()[free_index]
        values[free] = splu(rows[:, free_index].tocsc()).solve(-(rows @ values))
    return values


def global_rotations(joints_m: np.ndarray, pose: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rotations [55, 3, 3] and positions [55, 3] of the posed joints, without the translation."""
    local = Rotation.from_rotvec(np.asarray(pose, np.float64)).as_matrix()
    rotations, positions = local.copy(), np.asarray(joints_m, np.float64).copy()
    for j in range(1, len(PARENTS)):
        p = PARENTS[j]
        rotations[j] = rotations[p] @ local[j]
        positions[j] = positions[p] + rotations[p] @ (joints_m[j] - joints_m[p])
    return rotations, positions
