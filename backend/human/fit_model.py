"""The body model reduced to what the fit needs: 22 joints and some points, exact under linear blend skinning."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse import csr_matrix

from backend.human.model import BodyModel

BODY_JOINTS = 22  # pelvis .. right_wrist; fingers, jaw and eyes follow their parents during the body fit
SHAPE_COUNT = 10  # of 20: the first ten explain 99.996 % of the default body's shapes
RELAXED_CURL_RAD = (0.30, 0.42, 0.30)  # knuckle, middle and end joint of a hand that hangs, chosen by eye
DTYPE = torch.float64  # the problems are tiny and J^T J squares the condition number


def fold_onto_body(parents: np.ndarray) -> np.ndarray:
    """For each of the 55 joints the joint below `BODY_JOINTS` that carries it: [55] int64."""
    carrier = np.arange(len(parents))
    for joint in range(BODY_JOINTS, len(parents)):
        parent = int(parents[joint])
        carrier[joint] = carrier[parent] if parent >= BODY_JOINTS else parent
    return carrier


def relaxed_fingers() -> np.ndarray:
    """[55, 3] axis-angle with slightly curled fingers and everything else at rest.

    In the T-pose the palms face down, so a left finger (along +x) bends about -z and a right one about +z. The thumb
    bends mostly towards the palm about the hand's long axis and gets a third of the curl.
    """
    pose = np.zeros((55, 3))
    for side, sign in ((0, -1.0), (1, 1.0)):
        for finger in range(5):
            share = 0.3 if finger == 4 else 1.0
            for part, curl in enumerate(RELAXED_CURL_RAD):
                pose[25 + 15 * side + 3 * finger + part, 2] = sign * share * curl
    return pose


def rodrigues(axis_angle: torch.Tensor) -> torch.Tensor:
    """Rotation matrices [..., 3, 3] of axis-angle vectors [..., 3], smooth at zero and in forward mode."""
    squared = axis_angle.square().sum(-1) + 1e-14
    angle = squared.sqrt()
    first = (torch.sin(angle) / angle)[..., None, None]
    second = ((1.0 - torch.cos(angle)) / squared)[..., None, None]
    x, y, z = axis_angle.unbind(-1)
    zero = torch.zeros_like(x)
    cross = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).reshape(*axis_angle.shape[:-1], 3, 3)
    return torch.eye(3, dtype=axis_angle.dtype) + first * cross + second * (cross @ cross)


@dataclass(frozen=True)
class PointSet:
    """Points that are linear in the vertices, folded with the skin weights.

    Posed point k = sum_j G_j (base[k, j] + shape[k, j] betas) + share[k, j] (p_j - G_j J_j).

    Attributes:
        base: [K, 22, 3].
        shape: [K, 22, 3, SHAPE_COUNT].
        share: [K, 22].
    """

    base: torch.Tensor
    shape: torch.Tensor
    share: torch.Tensor


class FitModel:
    """Forward kinematics of 22 joints and `PointSet`s; immutable after construction."""

    def __init__(self, body: BodyModel, parents: np.ndarray) -> None:
        """Reduce the body.

        Args:
            body: The model; its template must be the T-pose.
            parents: [55] parents, root -1.
        """
        self.parents = [int(p) for p in parents[:BODY_JOINTS]]
        carrier = fold_onto_body(parents)
        self._weights = np.zeros((len(body.template_m), BODY_JOINTS))
        for joint in range(len(parents)):
            self._weights[:, carrier[joint]] += body.skin_weights[:, joint]
        self._template = _curl_fingers(body, parents)
        self._dirs = np.asarray(body.shape_dirs_m[:, :, :SHAPE_COUNT], np.float64)
        regressor = csr_matrix(body.joint_regressor)[:BODY_JOINTS]
        self._joints = torch.tensor(np.asarray(regressor @ body.template_m, np.float64), dtype=DTYPE)
        flat = self._dirs.reshape(len(self._dirs), -1)
        dirs = np.asarray(regressor @ flat).reshape(BODY_JOINTS, 3, -1)
        self._joint_dirs = torch.tensor(dirs, dtype=DTYPE)
        self.levels = self._tree_levels()

    def _tree_levels(self) -> list[list[int]]:
        """Joints grouped by depth below the root, so that a level is one batched product."""
        depth = [0] * BODY_JOINTS
        for joint in range(1, BODY_JOINTS):
            depth[joint] = depth[self.parents[joint]] + 1
        return [[j for j in range(BODY_JOINTS) if depth[j] == d] for d in range(1, max(depth) + 1)]

    def points(self, regressor: csr_matrix) -> PointSet:
        """Fold a regressor [K, V] (rows sum to 1) with weights and shapes."""
        regressor = csr_matrix(regressor, dtype=np.float64)
        count = len(regressor.indptr) - 1
        share = np.asarray(regressor @ self._weights)
        base = np.stack([regressor @ (self._weights[:, [j]] * self._template) for j in range(BODY_JOINTS)], axis=1)
        flat = self._dirs.reshape(len(self._dirs), -1)
        shape = np.zeros((count, BODY_JOINTS, flat.shape[1]))
        for row in range(count):
            columns = regressor.indices[regressor.indptr[row] : regressor.indptr[row + 1]]
            values = regressor.data[regressor.indptr[row] : regressor.indptr[row + 1]]
            shape[row] = (self._weights[columns] * values[:, None]).T @ flat[columns]
        return PointSet(
            torch.tensor(base, dtype=DTYPE),
            torch.tensor(shape.reshape(count, BODY_JOINTS, 3, SHAPE_COUNT), dtype=DTYPE),
            torch.tensor(share, dtype=DTYPE),
        )

    def rest_joints(self, betas: torch.Tensor) -> torch.Tensor:
        """[22, 3] rest joints in metres of `betas` [SHAPE_COUNT]."""
        return self._joints + self._joint_dirs @ betas

    def kinematics(self, joints: torch.Tensor, local: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """World rotations [22, 3, 3] and positions [22, 3] of rest joints [22, 3] under local rotations [22, 3, 3]."""
        rotations: list[torch.Tensor] = [local[0]] * BODY_JOINTS
        positions: list[torch.Tensor] = [joints[0]] * BODY_JOINTS
        for level in self.levels:
            up = [self.parents[j] for j in level]
            parent = torch.stack([rotations[p] for p in up])
            turned = parent @ local[level]
            moved = torch.stack([positions[p] for p in up]) + (parent @ (joints[level] - joints[up])[..., None])[..., 0]
            for row, joint in enumerate(level):
                rotations[joint], positions[joint] = turned[row], moved[row]
        return torch.stack(rotations), torch.stack(positions)

    @staticmethod
    def place(
        points: PointSet, betas: torch.Tensor, joints: torch.Tensor, rotations: torch.Tensor, positions: torch.Tensor
    ) -> torch.Tensor:
        """Posed points [K, 3] in the frame of `positions`."""
        shift = positions - (rotations @ joints[..., None])[..., 0]
        rest = points.base + points.shape @ betas
        return torch.einsum("jab,kjb->ka", rotations, rest) + points.share @ shift


def _curl_fingers(body: BodyModel, parents: np.ndarray) -> np.ndarray:
    """[V, 3] template whose fingers are relaxed, so that knuckles and tips are where landmarks see them."""
    joints = np.asarray(body.joint_regressor @ body.template_m, np.float64)
    local = rodrigues(torch.tensor(relaxed_fingers(), dtype=DTYPE)).numpy()
    rotations, positions = [local[0]], [joints[0]]
    for joint in range(1, len(parents)):
        parent = int(parents[joint])
        rotations.append(rotations[parent] @ local[joint])
        positions.append(positions[parent] + rotations[parent] @ (joints[joint] - joints[parent]))
    shift = np.stack(positions) - np.einsum("jab,jb->ja", np.stack(rotations), joints)
    blended = body.skin_weights @ np.concatenate([np.stack(rotations).reshape(-1, 9), shift], axis=1)
    return np.einsum("vab,vb->va", blended[:, :9].reshape(-1, 3, 3), body.template_m) + blended[:, 9:]
