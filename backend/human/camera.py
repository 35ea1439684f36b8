"""The photo's camera."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class PinholeCamera:
    """A pinhole camera in OpenCV convention: x right, y down, z forward, pixel centres at +0.5.

    Attributes:
        w2c: [4, 4] float64, world (Y up, metres) to camera.
        fx: Focal length along x in pixels of the working image.
        fy: Focal length along y, px.
        cx: Principal point, px.
        cy: Principal point, px.
        width: Image width, px.
        height: Image height, px.
    """

    w2c: np.ndarray
    fx: float
    fy: float
    cx: float
    cy: float
    width: int
    height: int

    def __post_init__(self) -> None:
        """Check the matrix.

        Raises:
            ValueError: If `w2c` is not a rigid [4, 4] transform.
        """
        w2c = np.asarray(self.w2c, np.float64)
        if w2c.shape != (4, 4) or not np.allclose(w2c[:3, :3] @ w2c[:3, :3].T, np.eye(3), atol=1e-5):
            raise ValueError("w2c must be a rigid [4, 4] transform")
        object.__setattr__(self, "w2c", w2c)

    @property
    def intrinsics_px(self) -> np.ndarray:
        """[3, 3] float64 intrinsic matrix."""
        return np.array([[self.fx, 0, self.cx], [0, self.fy, self.cy], [0, 0, 1.0]])

    @property
    def position_m(self) -> np.ndarray:
        """[3] camera centre in the world."""
        return -self.w2c[:3, :3].T @ self.w2c[:3, 3]

    def to_camera(self, points_m: np.ndarray) -> np.ndarray:
        """World points [N, 3] in camera coordinates [N, 3]."""
        return points_m @ self.w2c[:3, :3].T + self.w2c[:3, 3]

    def to_world(self, points_camera_m: np.ndarray) -> np.ndarray:
        """Camera points [N, 3] in world coordinates [N, 3]."""
        return (points_camera_m - self.w2c[:3, 3]) @ self.w2c[:3, :3]

    def project(self, points_m: np.ndarray) -> np.ndarray:
        """World points [N, 3] to pixels [N, 2]; points must lie in front of the camera."""
        p = self.to_camera(points_m)
        return np.stack([self.fx * p[:, 0] / p[:, 2] + self.cx, self.fy * p[:, 1] / p[:, 2] + self.cy], axis=1)

    def cropped(self, x0_px: float, y0_px: float, side_px: float, size_px: int) -> PinholeCamera:
        """The camera of a square crop that is resampled to `size_px` pixels a side.

        Args:
            x0_px: Left edge of the crop in this camera's image.
            y0_px: Top edge of the crop.
            side_px: Side of the crop in this camera's pixels.
            size_px: Side of the resampled crop in pixels.
        """
        k = size_px / side_px
        return PinholeCamera(
            self.w2c, self.fx * k, self.fy * k, (self.cx - x0_px) * k, (self.cy - y0_px) * k, size_px, size_px
        )
