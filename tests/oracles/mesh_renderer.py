"""A small z-buffer renderer for oracle meshes: fast enough for a video, and independent of the code it judges."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray

from tests.oracles.meshes import Array, Mesh, vertex_normals
from tests.oracles.scene import Camera

INSIDE_SHADE = 0.55  # cloth is darker where its inner side shows


@dataclass(frozen=True)
class Lamp:
    """An even sky that is brighter above, and one distant light (direction towards it in the figure's axes)."""

    sky: float = 0.62
    sky_slope: float = 0.14
    power: float = 0.42
    direction: tuple[float, float, float] = (-0.45, 0.55, 0.70)

    def shade(self, normals: Array) -> Array:
        """Brightness [N] of surfaces with unit normals [N,3]."""
        towards = np.asarray(self.direction) / np.linalg.norm(self.direction)
        return self.sky + self.sky_slope * normals[:, 1] + self.power * np.clip(normals @ towards, 0, None)


@dataclass(frozen=True)
class Picture:
    """What a camera sees.

    Attributes:
        rgba: uint8 [H,W,4], straight alpha, display sRGB.
        layer: int32 [H,W], the mesh's number, -1 where there is none.
        value: float32 [H,W], the interpolated value that came with the meshes' points, 0 where there is none.
        depth_m: float32 [H,W], distance along the camera's axis, infinite where there is nothing.
        normals: float32 [H,W,3], of the side that is seen, world axes; zero where there is nothing.
    """

    rgba: NDArray[np.uint8]
    layer: NDArray[np.int32]
    value: NDArray[np.float32]
    depth_m: NDArray[np.float32]
    normals: NDArray[np.float32]


def draw(
    meshes: Sequence[Mesh], camera: Camera, lamp: Lamp, values: Sequence[Array] | None = None, samples: int = 2
) -> Picture:
    """Draws opaque meshes, each surface from both sides.

    Args:
        values: one [N] per mesh, drawn beside the colours (what a test needs to know about a pixel).
        samples: supersampling along each axis.
    """
    shift = np.cumsum([0, *(len(mesh.points_m) for mesh in meshes)])
    triangles = np.concatenate([mesh.triangles + start for mesh, start in zip(meshes, shift, strict=False)])
    layers = np.concatenate([np.full(len(mesh.triangles), k, np.int32) for k, mesh in enumerate(meshes)])
    front, back, upright = [], [], []
    for mesh in meshes:
        normals = vertex_normals(mesh.points_m, mesh.triangles)
        upright.append(normals)
        front.append(mesh.colours * lamp.shade(normals)[:, None])
        back.append(mesh.colours * lamp.shade(-normals)[:, None] * INSIDE_SHADE)
    local = camera.to_camera(np.concatenate([mesh.points_m for mesh in meshes]))
    width, height = camera.width * samples, camera.height * samples
    focal = camera.focal_px * samples
    depth = np.maximum(local[:, 2], 1e-3)
    points = np.stack([local[:, 0] / depth * focal + width / 2, local[:, 1] / depth * focal + height / 2, depth], 1)
    carried = np.concatenate(values) if values is not None else np.zeros(len(points))
    normals = np.concatenate(upright)
    colour, value, nearest, layer, normal = _rasterise(
        points, triangles, np.concatenate(front), np.concatenate(back), carried, normals, layers, width, height
    )
    return _reduce(colour, value, nearest, layer, normal, samples)


def _reduce(
    colour: Array, value: Array, nearest: Array, layer: NDArray[np.int32], normal: Array, samples: int
) -> Picture:
    height, width = layer.shape[0] // samples, layer.shape[1] // samples
    cells = (height, samples, width, samples)
    hit = layer.reshape(cells) >= 0
    alpha = hit.mean((1, 3))
    rgb = (np.clip(colour, 0, 1).reshape(*cells, 3) * hit[..., None]).sum((1, 3)) / np.maximum(hit.sum((1, 3)), 1)[
        ..., None
    ]
    rgba = np.round(np.concatenate([rgb, alpha[..., None]], -1) * 255).astype(np.uint8)
    middle = (slice(samples // 2, None, samples), slice(samples // 2, None, samples))
    unit = normal[middle] / np.maximum(np.linalg.norm(normal[middle], axis=-1, keepdims=True), 1e-9)
    return Picture(
        rgba, layer[middle], value[middle].astype(np.float32), nearest[middle].astype(np.float32),
        unit.astype(np.float32),
    )  # fmt: skip


@njit(cache=True)
def _rasterise(points, triangles, front, back, carried, normals, layers, width, height):  # type: ignore[no-untyped-def] # noqa: ANN001, ANN202
    colour = np.zeros((height, width, 3))
    value = np.zeros((height, width))
    nearest = np.full((height, width), np.inf)
    layer = np.full((height, width), -1, np.int32)
    normal = np.zeros((height, width, 3))
    for t in range(len(triangles)):
        a, b, c = triangles[t]
        ax, ay, az = points[a]
        bx, by, bz = points[b]
        cx, cy, cz = points[c]
        area = (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)
        if abs(area) < 1e-12 or min(az, bz, cz) <= 2e-3:
            continue
        seen_from_front = area < 0  # counter-clockwise in the world is clockwise in pixels, whose y points down
        left, right = max(int(np.floor(min(ax, bx, cx))), 0), min(int(np.ceil(max(ax, bx, cx))), width - 1)
        top, bottom = max(int(np.floor(min(ay, by, cy))), 0), min(int(np.ceil(max(ay, by, cy))), height - 1)
        for row in range(top, bottom + 1):
            y = row + 0.5
            for column in range(left, right + 1):
                x = column + 0.5
                wb = ((x - ax) * (cy - ay) - (y - ay) * (cx - ax)) / area
                wc = ((bx - ax) * (y - ay) - (by - ay) * (x - ax)) / area
                wa = 1.0 - wb - wc
                if wa < 0 or wb < 0 or wc < 0:
                    continue
                z = wa * az + wb * bz + wc * cz
                if z >= nearest[row, column]:
                    continue
                nearest[row, column] = z
                layer[row, column] = layers[t]
                value[row, column] = wa * carried[a] + wb * carried[b] + wc * carried[c]
                side = 1.0 if seen_from_front else -1.0
                for k in range(3):
                    normal[row, column, k] = side * (wa * normals[a, k] + wb * normals[b, k] + wc * normals[c, k])
                    if seen_from_front:
                        colour[row, column, k] = wa * front[a, k] + wb * front[b, k] + wc * front[c, k]
                    else:
                        colour[row, column, k] = wa * back[a, k] + wb * back[b, k] + wc * back[c, k]
    return colour, value, nearest, layer, normal
