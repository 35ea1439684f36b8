"""Meshes of simple shapes."""

from __future__ import annotations

import numpy as np


def ellipsoid(rings: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """A head-sized ellipsoid, height 1, about the origin: vertices [V, 3] and triangles [T, 3], facing outwards."""
    down, round_ = np.linspace(0, np.pi, rings), np.linspace(0, 2 * np.pi, 2 * rings, endpoint=False)
    tilt, turn = np.meshgrid(down, round_, indexing="ij")
    points = np.stack(
        [0.38 * np.sin(tilt) * np.sin(turn), 0.5 * np.cos(tilt), 0.42 * np.sin(tilt) * np.cos(turn)], axis=-1
    )
    triangles = []
    for i in range(rings - 1):
        for j in range(2 * rings):
            a, b = i * 2 * rings + j, i * 2 * rings + (j + 1) % (2 * rings)
            c, d = a + 2 * rings, b + 2 * rings
            triangles += [(a, c, b), (b, c, d)]
    return points.reshape(-1, 3), np.array(triangles)
