"""Depth and face-index buffers of a triangle mesh."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit

from backend.human.camera import PinholeCamera


@dataclass(frozen=True)
class DepthBuffer:
    """What a mesh covers in an image.

    Attributes:
        depth_m: [H, W] float64 depth of the kept surface; inf (nearest) or -inf (farthest) where there is none.
        triangle: [H, W] int32 row of the triangle list that was drawn, -1 where there is none.
    """

    depth_m: np.ndarray
    triangle: np.ndarray

    @property
    def covered(self) -> np.ndarray:
        """[H, W] bool: pixels whose centre lies in a triangle."""
        return self.triangle >= 0


def depth_buffer(
    uv_px: np.ndarray, depth_m: np.ndarray, triangles: np.ndarray, width: int, height: int, *, farthest: bool = False
) -> DepthBuffer:
    """Draw triangles into a depth buffer, both sides, pixel centres at +0.5.

    Args:
        uv_px: [V, 2] projected vertices.
        depth_m: [V] depth of the vertices; triangles with a vertex nearer than 1 cm are left out.
        triangles: [T, 3] vertex indices.
        width: Image width, px.
        height: Image height, px.
        farthest: Keep the farthest instead of the nearest surface.
    """
    sign = -1.0 if farthest else 1.0
    depth = np.full((height, width), np.inf)
    index = np.full((height, width), -1, np.int32)
    _draw(
        np.ascontiguousarray(uv_px, np.float64),
        np.ascontiguousarray(depth_m, np.float64),
        np.ascontiguousarray(triangles, np.int32),
        sign,
        depth,
        index,
    )
    return DepthBuffer(sign * depth, index)


@njit(cache=True)
def _draw(uv, z, triangles, sign, depth, index):  # pragma: no cover - compiled
    height, width = depth.shape
    for t in range(len(triangles)):
        a, b, c = triangles[t]
        if min(z[a], z[b], z[c]) < 0.01:
            continue
        ax, ay, bx, by, cx, cy = uv[a, 0], uv[a, 1], uv[b, 0], uv[b, 1], uv[c, 0], uv[c, 1]
        area = (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)
        if abs(area) < 1e-12:
            continue
        x0 = max(0, int(np.ceil(min(ax, bx, cx) - 0.5)))
        x1 = min(width - 1, int(np.floor(max(ax, bx, cx) - 0.5)))
        y0 = max(0, int(np.ceil(min(ay, by, cy) - 0.5)))
        y1 = min(height - 1, int(np.floor(max(ay, by, cy) - 0.5)))
        for y in range(y0, y1 + 1):
            for x in range(x0, x1 + 1):
                px, py = x + 0.5, y + 0.5
                wa = ((bx - px) * (cy - py) - (by - py) * (cx - px)) / area
                wb = ((cx - px) * (ay - py) - (cy - py) * (ax - px)) / area
                wc = 1.0 - wa - wb
                if wa < 0 or wb < 0 or wc < 0:
                    continue
                # 1 / z is linear in the image, z is not
                d = sign / (wa / z[a] + wb / z[b] + wc / z[c])
                if d < depth[y, x]:
                    depth[y, x] = d
                    index[y, x] = t


@dataclass(frozen=True)
class MeshView:
    """A mesh as a camera sees it.

    Attributes:
        points_camera_m: [V, 3] vertices in the camera's frame.
        uv_px: [V, 2] projected vertices.
        triangles: [T, 3] the triangles that were drawn.
        nearest: The surface the camera sees.
    """

    points_camera_m: np.ndarray
    uv_px: np.ndarray
    triangles: np.ndarray
    nearest: DepthBuffer

    def farthest(self) -> DepthBuffer:
        """The surface that a camera behind the mesh would see through this one's pixels."""
        height, width = self.nearest.depth_m.shape
        return depth_buffer(self.uv_px, self.points_camera_m[:, 2], self.triangles, width, height, farthest=True)

    def barycentric(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """Barycentric coordinates [N, 3] of pixel centres in the triangles drawn there (all must be covered)."""
        a, b, c = (self.uv_px[self.triangles[self.nearest.triangle[rows, columns], k]] for k in range(3))
        p = np.stack([columns + 0.5, rows + 0.5], axis=1)
        area = _cross2(b - a, c - a)
        area = np.where(np.abs(area) < 1e-12, 1e-12, area)
        wa, wb = _cross2(b - p, c - p) / area, _cross2(c - p, a - p) / area
        depth = [self.points_camera_m[self.triangles[self.nearest.triangle[rows, columns], k], 2] for k in range(3)]
        w = np.stack([wa / depth[0], wb / depth[1], (1 - wa - wb) / depth[2]], axis=1)
        return w / w.sum(axis=1, keepdims=True)


def _cross2(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return u[:, 0] * v[:, 1] - u[:, 1] * v[:, 0]


def view_mesh(vertices_m: np.ndarray, triangles: np.ndarray, camera: PinholeCamera) -> MeshView:
    """Draw a mesh [V, 3] in world coordinates as `camera` sees it."""
    points = camera.to_camera(vertices_m)
    z = np.maximum(points[:, 2], 1e-6)
    uv = np.stack([camera.fx * points[:, 0] / z + camera.cx, camera.fy * points[:, 1] / z + camera.cy], axis=1)
    buffer = depth_buffer(uv, points[:, 2], triangles, camera.width, camera.height)
    return MeshView(points, uv, triangles, buffer)
