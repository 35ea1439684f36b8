"""A bumpy torus with a sharp texture, photographed from around: known truth for fitting clouds to pictures.

Drawn from dense samples of the mesh through a depth buffer of its own, with 3 x 3 samples per pixel. Imports nothing of
the project.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

SAMPLES_PER_CELL = 6
"""Surface samples per part of a pixel of the whole frame, of which the object fills a quarter."""

SUPERSAMPLING = 3
RADIUS_M = 0.36
"""Of a ball around the origin that holds the torus."""


@dataclass(frozen=True)
class Pictures:
    """V square views of one object.

    Attributes:
        w2c: [V, 4, 4] world to camera, OpenCV axes.
        intrinsics: [V, 3, 3] px, pixel centres at +0.5.
        images: float32 [V, 3, H, W] 0..1, of the object alone: not multiplied with the mask.
        masks: float32 [V, H, W] 0..1, share of the pixel that it covers.
        depths_m: float32 [V, H, W] mean camera z of what is seen, 0 where nothing is.
    """

    w2c: np.ndarray
    intrinsics: np.ndarray
    images: np.ndarray
    masks: np.ndarray
    depths_m: np.ndarray


def torus_mesh(rows: int = 96, columns: int = 48) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Vertices [V, 3], outward triangles [T, 3] and texture coordinates of the corners [T, 3, 2] 0..1."""
    u, v = np.meshgrid(np.arange(rows + 1) / rows, np.arange(columns + 1) / columns, indexing="ij")
    around, tube = 2 * np.pi * u, 2 * np.pi * v
    radius = 0.1 * (1 + 0.15 * np.sin(5 * around) * np.cos(2 * tube))
    ring = 0.22 + radius * np.cos(tube)
    vertices = np.stack([ring * np.cos(around), radius * np.sin(tube), ring * np.sin(around)], 2)
    index = np.arange((rows + 1) * (columns + 1)).reshape(rows + 1, columns + 1)
    a, b, c, d = index[:-1, :-1], index[1:, :-1], index[1:, 1:], index[:-1, 1:]
    triangles = np.concatenate([np.stack([a, d, c], 2), np.stack([a, c, b], 2)]).reshape(-1, 3)
    coordinates = np.stack([u, v], 2).reshape(-1, 2)[triangles]
    return vertices.reshape(-1, 3), triangles, coordinates


def texture(uv: np.ndarray) -> np.ndarray:
    """Colours [M, 3] 0..1: half without detail, a quarter of checks, a quarter of dots, under a slow change of hue."""
    u, v = uv.T
    checks = (np.floor(u * 28) + np.floor(v * 14)) % 2
    dots = np.hypot((u * 16) % 1 - 0.5, (v * 8) % 1 - 0.5) < 0.28
    hue = np.stack([0.5 + 0.4 * np.cos(2 * np.pi * (u + shift)) for shift in (0.0, 0.33, 0.66)], 1)
    checked = hue * (0.2 + 0.8 * checks[:, None])
    dotted = np.where(dots[:, None], 1 - hue, hue)
    return np.where((u < 0.5)[:, None], hue, np.where((u < 0.75)[:, None], checked, dotted))


def photograph(views: int, size_px: int, seed: int = 0) -> Pictures:
    """Views from directions that are spread evenly over a sphere, turned at random.

    Args:
        views: Number of pictures.
        size_px: Side.
        seed: Of the turn and of the surface samples.
    """
    rng = np.random.default_rng(seed)
    vertices, triangles, coordinates = torus_mesh()
    corners = vertices[triangles]
    area = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1)
    samples = SAMPLES_PER_CELL * (size_px * SUPERSAMPLING) ** 2
    face = rng.choice(len(triangles), samples, p=area / area.sum())
    bary = rng.dirichlet(np.ones(3), samples)
    points = np.einsum("nk,nkc->nc", bary, corners[face])
    colours = texture(np.einsum("nk,nkc->nc", bary, coordinates[face]))
    w2c = np.stack([_look_at(d) for d in _directions(views, rng)])
    k = np.array([[1.25 * size_px, 0, size_px / 2], [0, 1.25 * size_px, size_px / 2], [0, 0, 1.0]])
    drawn = [_draw(points, colours, pose, k, size_px) for pose in w2c]
    images, masks, depths = (np.stack(parts).astype(np.float32) for parts in zip(*drawn, strict=True))
    return Pictures(w2c, np.tile(k, (views, 1, 1)), images, masks, depths)


def _directions(count: int, rng: np.random.Generator) -> np.ndarray:
    """Unit vectors [count, 3] on a spiral from pole to pole, under one random rotation."""
    height = 1 - 2 * (np.arange(count) + 0.5) / count
    angle = np.pi * (1 + 5**0.5) * np.arange(count)
    ring = np.sqrt(1 - height**2)
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    return np.stack([ring * np.cos(angle), height, ring * np.sin(angle)], 1) @ turn.T


def _look_at(direction: np.ndarray, distance_m: float = 1.1) -> np.ndarray:
    """w2c of a camera at `direction` times the distance that looks at the origin."""
    forward = -direction
    right = np.cross(forward, [0.0, 1.0, 0.0] if abs(direction[1]) < 0.9 else [1.0, 0.0, 0.0])
    right /= np.linalg.norm(right)
    w2c = np.eye(4)
    w2c[:3, :3] = np.stack([right, np.cross(forward, right), forward])
    w2c[:3, 3] = [0, 0, distance_m]
    return w2c


def _draw(
    points: np.ndarray, colours: np.ndarray, w2c: np.ndarray, k: np.ndarray, size_px: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Image [3, H, W], mask [H, W] and depth [H, W] of surface samples: in each part of a pixel the nearest wins."""
    local = points @ w2c[:3, :3].T + w2c[:3, 3]
    fine = size_px * SUPERSAMPLING
    place = np.floor((local[:, :2] / local[:, 2:] * k[0, 0] + k[:2, 2]) * SUPERSAMPLING).astype(int)
    inside = ((place >= 0) & (place < fine)).all(1)
    cell, depth, colour = (place[:, 1] * fine + place[:, 0])[inside], local[inside, 2], colours[inside]
    order = np.lexsort((depth, cell))
    cells, first = np.unique(cell[order], return_index=True)
    layers = np.zeros((fine * fine, 5))
    layers[cells] = np.concatenate([colour[order][first], depth[order][first, None], np.ones((len(cells), 1))], 1)
    blocks = layers.reshape(size_px, SUPERSAMPLING, size_px, SUPERSAMPLING, 5).mean((1, 3))
    mask = blocks[..., 4]
    straight = blocks[..., :4] / np.maximum(mask, 1e-9)[..., None]
    return straight[..., :3].transpose(2, 0, 1), mask, straight[..., 3]
