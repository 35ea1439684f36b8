"""Cameras that look at a subject from around it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from backend.raster import Cameras


def orbit_camera(
    centre_m: np.ndarray, distance_m: float, azimuth_deg: float, elevation_deg: float, focal_px: float, size_px: int
) -> Cameras:
    """A camera on a circle around a point, world Y up.

    Args:
        centre_m: [3] point in the middle of the picture.
        distance_m: From the camera to that point.
        azimuth_deg: 0 looks at the front (from +Z), 90 at the subject's left side (from +X), 180 at the back.
        elevation_deg: Positive looks down from above; within -89..89.
        focal_px: Focal length in px.
        size_px: Side of the square picture.

    Raises:
        ValueError: If the distance is not positive or the elevation would look along the up axis.
    """
    if distance_m <= 0 or abs(elevation_deg) > 89:
        raise ValueError("the camera needs a positive distance and an elevation within -89..89 degrees")
    azimuth, elevation = math.radians(azimuth_deg), math.radians(elevation_deg)
    towards_camera = np.array(
        [math.sin(azimuth) * math.cos(elevation), math.sin(elevation), math.cos(azimuth) * math.cos(elevation)]
    )
    forward = -towards_camera
    right = np.cross(forward, [0.0, 1.0, 0.0])
    right /= np.linalg.norm(right)
    rotation = np.stack([right, np.cross(forward, right), forward])
    w2c = np.eye(4)
    w2c[:3, :3] = rotation
    w2c[:3, 3] = -rotation @ (np.asarray(centre_m, np.float64) + distance_m * towards_camera)
    intrinsics = np.array([[focal_px, 0, size_px / 2], [0, focal_px, size_px / 2], [0, 0, 1.0]])
    return Cameras(torch.tensor(w2c[None]), torch.tensor(intrinsics[None]), size_px, size_px)


def orbit_cameras(
    centre_m: np.ndarray,
    distance_m: float,
    azimuths_deg: Sequence[float],
    elevation_deg: float,
    focal_px: float,
    size_px: int,
) -> Cameras:
    """One camera per azimuth, at least one; see `orbit_camera`."""
    single = [orbit_camera(centre_m, distance_m, a, elevation_deg, focal_px, size_px) for a in azimuths_deg]
    return Cameras(torch.cat([c.w2c for c in single]), torch.cat([c.K for c in single]), size_px, size_px)
