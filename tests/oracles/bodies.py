"""The oracle's bodies and its own linear blend skinning (numpy; independent of the code it judges)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

DATA = Path(__file__).parent / "data" / "figure_bodies.npz"


@dataclass(frozen=True)
class OracleBody:
    """One figure's naked body in T-pose: Y up, facing +Z, metres, soles on y = 0.

    Attributes:
        vertices_m: [V,3]. joints_m: [55,3]. triangles: [T,3]. weights: [V,55] rows sum to one. parents: [55], root -1.
        lips, lids: [V] 0..1, how much a vertex belongs to the lips or moves when the eyes shut.
    """

    name: str
    joint_names: tuple[str, ...]
    vertices_m: Array
    joints_m: Array
    triangles: NDArray[np.int64]
    weights: Array
    parents: NDArray[np.int64]
    lips: Array
    lids: Array

    def joint(self, name: str) -> int:
        """Gives a joint's index by name."""
        return self.joint_names.index(name)

    def dominant(self) -> NDArray[np.int64]:
        """Gives each vertex's joint of largest weight, [V]."""
        return self.weights.argmax(1)


@lru_cache(maxsize=1)
def _archive() -> dict[str, np.ndarray]:
    with np.load(DATA, allow_pickle=False) as archive:
        return {key: archive[key] for key in archive.files}


def body_names() -> tuple[str, ...]:
    """Gives the names of the stored bodies."""
    return tuple(str(name) for name in _archive()["names"])


@lru_cache(maxsize=8)
def load_body(name: str) -> OracleBody:
    """Loads one body by name.

    Raises:
        ValueError: no such body.
    """
    data = _archive()
    index = body_names().index(name)
    quantised = data["first_m_q"].astype(np.int64)
    if index > 0:
        quantised = quantised + data["others_minus_first_q"][index - 1]
    weights = np.zeros((len(quantised), 55))
    np.put_along_axis(weights, data["skin_indices"].astype(np.int64), data["skin_weights_255"] / 255.0, 1)
    return OracleBody(
        name=name,
        joint_names=tuple(str(joint) for joint in data["joint_names"]),
        vertices_m=quantised * float(data["step_m"]),
        joints_m=data["joints_m"][index].astype(np.float64),
        triangles=data["triangles"].astype(np.int64),
        weights=weights,
        parents=data["parents"].astype(np.int64),
        lips=data["lips_255"] / 255.0,
        lids=data["lids_255"] / 255.0,
    )


def rotation_matrix(axis_angle: Array) -> Array:
    """Rodrigues' formula: axis-angle [3] (radians) to a rotation matrix [3,3]."""
    angle = float(np.linalg.norm(axis_angle))
    if angle < 1e-12:
        return np.eye(3)
    x, y, z = axis_angle / angle
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def axis_angle(rotation: Array) -> Array:
    """Logarithm of a rotation matrix [3,3]; the angle stays below pi in all poses used here."""
    cosine = np.clip((np.trace(rotation) - 1) / 2, -1, 1)
    angle = float(np.arccos(cosine))
    if angle < 1e-9:
        return np.zeros(3)
    skew = np.array([rotation[2, 1] - rotation[1, 2], rotation[0, 2] - rotation[2, 0], rotation[1, 0] - rotation[0, 1]])
    return skew * angle / (2 * np.sin(angle))


def joint_transforms(body: OracleBody, pose: Array) -> tuple[Array, Array]:
    """Forward kinematics.

    Args:
        pose: [55,3] axis-angle, each in its parent's frame; row 0 is the global orientation.

    Returns:
        World rotations [55,3,3] and joint positions [55,3] (the pelvis stays where it rests).
    """
    rotations, positions = np.zeros((55, 3, 3)), np.zeros((55, 3))
    for joint, parent in enumerate(body.parents):
        local = rotation_matrix(pose[joint])
        if parent < 0:
            rotations[joint], positions[joint] = local, body.joints_m[joint]
            continue
        rotations[joint] = rotations[parent] @ local
        offset = body.joints_m[joint] - body.joints_m[parent]
        positions[joint] = positions[parent] + rotations[parent] @ offset
    return rotations, positions


def skin(body: OracleBody, pose: Array, points_m: Array, weights: Array) -> Array:
    """Linear blend skinning of rest points [N,3] with weights [N,55]; returns posed points [N,3]."""
    rotations, positions = joint_transforms(body, pose)
    shifts = positions - np.einsum("jab,jb->ja", rotations, body.joints_m)
    blended = (weights @ rotations.reshape(55, 9)).reshape(-1, 3, 3)
    return np.einsum("nab,nb->na", blended, points_m) + weights @ shifts


@dataclass(frozen=True)
class PosedBody:
    """A body in a pose, standing with its lowest point on y = 0.

    Attributes:
        pose: [55,3] axis-angle. translation_m: [3] added after skinning. vertices_m: [V,3]. joints_m: [55,3].
        rotations: [55,3,3] world rotations.
    """

    body: OracleBody
    pose: Array
    translation_m: Array
    vertices_m: Array
    joints_m: Array
    rotations: Array

    def carry(self, points_m: Array, weights: Array) -> Array:
        """Skins other rest points [N,3] with weights [N,55] into this pose."""
        return skin(self.body, self.pose, points_m, weights) + self.translation_m


def stand(body: OracleBody, pose: Array) -> PosedBody:
    """Poses a body, sets it on the floor and its pelvis above the origin."""
    vertices = skin(body, pose, body.vertices_m, body.weights)
    rotations, joints = joint_transforms(body, pose)
    translation = -np.array([joints[0, 0], vertices[:, 1].min(), joints[0, 2]])
    return PosedBody(body, pose, translation, vertices + translation, joints + translation, rotations)
