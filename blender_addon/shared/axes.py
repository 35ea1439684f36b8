"""Every change of axes in the project, each one named function.

Body (backend, bundle, SMPL-X): right-handed, Y up, facing +Z. Blender: Z up, facing -Y. INRIA PLY of other tools:
usually Y down, facing -Z, which is the body's frame turned by 180 degrees about X.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from .arrays import Array
from .gaussians import GaussianCloud, matrices_to_wxyz, wxyz_product
from .sh import rotate_sh

BODY_TO_BLENDER = np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])
"""[3, 3]: (x, y, z) of the body frame becomes (x, -z, y)."""

Y_DOWN_TO_BODY = np.diag([1.0, -1.0, -1.0])
"""[3, 3]: half a turn about X; its own inverse."""


def body_to_blender_points(points_m: Array) -> Array:
    """Points or vectors [..., 3] from the body frame to Blender's."""
    return points_m @ BODY_TO_BLENDER.T.astype(points_m.dtype)


def blender_to_body_points(points_m: Array) -> Array:
    """Points or vectors [..., 3] from Blender's frame to the body's."""
    return points_m @ BODY_TO_BLENDER.astype(points_m.dtype)


def rotate_cloud(cloud: GaussianCloud, rotation: Array) -> GaussianCloud:
    """Rotate a cloud about the origin: centres, orientations and spherical harmonics.

    Args:
        cloud: Any degree.
        rotation: [3, 3] rotation matrix.

    Raises:
        ValueError: If the matrix is not a rotation.
    """
    matrix = np.asarray(rotation, np.float64)
    if matrix.shape != (3, 3) or not np.allclose(matrix @ matrix.T, np.eye(3), atol=1e-6) or np.linalg.det(matrix) < 0:
        raise ValueError("rotation must be a proper [3, 3] rotation matrix")
    quaternion = matrices_to_wxyz(matrix)
    return GaussianCloud(
        cloud.positions_m @ matrix.T.astype(np.float32),
        cloud.scales_m,
        wxyz_product(quaternion, cloud.rotations_wxyz),
        cloud.opacities,
        cloud.sh_dc,
        rotate_sh(cloud.sh_rest, matrix),
    )


def body_to_blender_cloud(cloud: GaussianCloud) -> GaussianCloud:
    """A cloud of the body frame in Blender's frame."""
    return rotate_cloud(cloud, BODY_TO_BLENDER)


def blender_to_body_cloud(cloud: GaussianCloud) -> GaussianCloud:
    """A cloud of Blender's frame in the body frame."""
    return rotate_cloud(cloud, BODY_TO_BLENDER.T)


def y_down_to_body_cloud(cloud: GaussianCloud) -> GaussianCloud:
    """A cloud with Y down in the body frame; also the way back."""
    return rotate_cloud(cloud, Y_DOWN_TO_BODY)


def axes_to_body_cloud(cloud: GaussianCloud, axes: Literal["y_up", "y_down", "z_up"]) -> GaussianCloud:
    """A cloud of a file's axes in the body frame; `z_up` is Blender's frame."""
    if axes == "y_up":
        return cloud
    return y_down_to_body_cloud(cloud) if axes == "y_down" else blender_to_body_cloud(cloud)


def axes_to_blender(axes: Literal["y_up", "y_down", "z_up"]) -> Array:
    """[3, 3] rotation from a file's axes to Blender's frame; its transpose is the way back."""
    return {"y_up": BODY_TO_BLENDER, "y_down": BODY_TO_BLENDER @ Y_DOWN_TO_BODY, "z_up": np.eye(3)}[axes]


def body_to_axes_cloud(cloud: GaussianCloud, axes: Literal["y_up", "y_down", "z_up"]) -> GaussianCloud:
    """A cloud of the body frame in a file's axes."""
    if axes == "y_up":
        return cloud
    return y_down_to_body_cloud(cloud) if axes == "y_down" else body_to_blender_cloud(cloud)
