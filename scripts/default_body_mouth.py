"""Teeth of the default body: two curved strips of our own, placed behind the lips and carried along with them."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from default_body_shape import ACTION_MIRROR, FLIP, jaw_motion
from scipy.spatial import KDTree

from blender_addon.shared.skeleton import FACIAL_ACTIONS

COLUMNS = 28
BEHIND_RIM_M = 0.0015  # behind the lips' inner rim, which lies 2 mm behind the line where closed lips touch
JAW_ACTIONS = ("jawForward", "jawLeft", "jawOpen", "jawRight")
# Rows of a strip, from the gum over the biting edge to its inner side: (height over the lips' slit, depth behind the
# arc) in metres. An average adult's crowns are about 10 mm high; the edges stay out of the slit, which is 1 mm open.
UPPER_ROWS = ((0.0085, 0.0008), (0.0040, 0.0), (0.0002, 0.0004), (0.0008, 0.0032))
LOWER_ROWS = ((-0.0085, 0.0026), (-0.0045, 0.0020), (-0.0010, 0.0022), (-0.0016, 0.0050))


@dataclass(frozen=True)
class Teeth:
    """Both strips, upper first.

    Attributes:
        template_m: [2K, 3].
        triangles: [., 3] into the strips' own vertices.
        shape_dirs_m: [2K, 3, S].
        actions_m: [2K, 3, 52].
        mirror: [2K].
        texture: [2K, 2] in the unit square.
        upper: [2K] bool.
    """

    template_m: np.ndarray
    triangles: np.ndarray
    shape_dirs_m: np.ndarray
    actions_m: np.ndarray
    mirror: np.ndarray
    texture: np.ndarray
    upper: np.ndarray


def lip_slit(template_m: np.ndarray, jaw_share: np.ndarray, skin: np.ndarray) -> np.ndarray:
    """Points [P, 3] on the closed lips' line of contact: vertices that follow the jaw next to vertices that do not."""
    upper = np.flatnonzero(skin & (jaw_share < 0.3))
    lower = np.flatnonzero(skin & (jaw_share > 0.7))
    distance, nearest = map(np.asarray, KDTree(template_m[upper]).query(template_m[lower]))
    pair = distance < 0.0025
    return 0.5 * (template_m[lower[pair]] + template_m[upper[nearest[pair]]])


def _arc(slit_m: np.ndarray, rim_m: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Columns of points [28, 3] on the dental arc, a parabola behind the lips' inner rim, and its inward normals."""
    half_width = np.abs(rim_m[:, 0]).max()
    system = np.stack([np.ones(len(rim_m)), -(rim_m[:, 0] ** 2)], 1)
    front, bend = np.linalg.lstsq(system, rim_m[:, 2], rcond=None)[0]
    columns = np.linspace(-1.0, 1.0, COLUMNS) * half_width
    middle = slit_m[np.abs(slit_m[:, 0]) < 0.006]
    points = np.stack([columns, np.full(COLUMNS, np.median(middle[:, 1])), front - bend * columns**2], 1)
    normals = np.stack([-2.0 * bend * columns, np.zeros(COLUMNS), -np.ones(COLUMNS)], 1)
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    behind = 1000 * (np.median(middle[:, 2]) - front + BEHIND_RIM_M)
    print(f"teeth: arc {2000 * half_width:.0f} mm wide, {behind:.1f} mm behind the lips' contact")
    return points + BEHIND_RIM_M * normals, normals


def _carried(points_m: np.ndarray, around_m: np.ndarray, dirs_m: np.ndarray) -> np.ndarray:
    """Shape directions [K, 3, S] of points, from affine fits to those [P, 3, S] of the vertices around them."""
    middle = around_m.mean(0)
    system = np.concatenate([around_m - middle, 0.01 * np.ones((len(around_m), 1))], 1)
    gram = system.T @ system + len(system) * 1e-7 * np.diag([1.0, 1.0, 1.0, 0.0])
    solution = np.linalg.solve(gram, system.T @ dirs_m.reshape(len(dirs_m), -1))
    own = np.concatenate([points_m - middle, 0.01 * np.ones((len(points_m), 1))], 1)
    return (own @ solution).reshape(len(points_m), 3, -1)


def make_teeth(
    template_m: np.ndarray,
    jaw_share: np.ndarray,
    skin: np.ndarray,
    rim: np.ndarray,
    shape_dirs_m: np.ndarray,
    actions_m: np.ndarray,
) -> Teeth:
    """Builds both strips; the upper one is part of the head, the lower one follows the jaw and its actions rigidly.

    Args:
        template_m: [V, 3].
        jaw_share: [V] 0..1.
        skin: [V] bool, skin of head and mouth.
        rim: indices of the vertices where the lips end and the mouth's bag begins.
        shape_dirs_m: [V, 3, S].
        actions_m: [V, 3, 52].
    """
    slit = lip_slit(template_m, jaw_share, skin)
    arc, normals = _arc(slit, template_m[rim])
    strips, dirs, actions = [], [], []
    for rows, jaw in ((UPPER_ROWS, False), (LOWER_ROWS, True)):
        points = np.concatenate([arc + [0.0, height, 0.0] + depth * normals for height, depth in rows])
        near = np.linalg.norm(template_m - arc.mean(0), axis=1) < 0.04
        around = skin & near & ((jaw_share > 0.9) if jaw else (jaw_share < 0.1))
        strips.append(points)
        dirs.append(_carried(points, template_m[around], shape_dirs_m[around]))
        moved = np.zeros((len(points), 3, len(FACIAL_ACTIONS)))
        for name in JAW_ACTIONS if jaw else ():
            index = FACIAL_ACTIONS.index(name)
            rotation, shift = jaw_motion(template_m, actions_m[..., index])
            moved[..., index] = points @ rotation.T + shift - points
        actions.append(moved)
    count = len(strips[0])
    grid = np.arange(count).reshape(-1, COLUMNS)
    a, b, c, d = grid[:-1, :-1], grid[:-1, 1:], grid[1:, :-1], grid[1:, 1:]
    quads = np.stack([np.stack([a, c, d], -1), np.stack([a, d, b], -1)]).reshape(-1, 3)
    mirror = grid[:, ::-1].ravel()
    v, u = np.meshgrid(np.linspace(0, 1, len(grid)), np.linspace(0, 1, COLUMNS), indexing="ij")
    texture = np.stack([u.ravel(), v.ravel()], 1)
    teeth = Teeth(
        template_m=np.concatenate(strips),
        triangles=np.concatenate([quads, quads[:, ::-1] + count]),  # the lower strip's rows run upwards
        shape_dirs_m=np.concatenate(dirs),
        actions_m=np.concatenate(actions),
        mirror=np.concatenate([mirror, mirror + count]),
        texture=np.concatenate([texture * [1.0, 0.48], texture * [1.0, 0.48] + [0.0, 0.52]]),
        upper=np.arange(2 * count) < count,
    )
    return _symmetric(teeth)


def _symmetric(teeth: Teeth) -> Teeth:
    flip = FLIP[:, None]
    template = 0.5 * (teeth.template_m + teeth.template_m[teeth.mirror] * FLIP)
    dirs = 0.5 * (teeth.shape_dirs_m + teeth.shape_dirs_m[teeth.mirror] * flip)
    actions = 0.5 * (teeth.actions_m + (teeth.actions_m[teeth.mirror] * flip)[..., ACTION_MIRROR])
    return Teeth(template, teeth.triangles, dirs, actions, teeth.mirror, teeth.texture, teeth.upper)


def free_texture_box(texture_points: np.ndarray, texture_triangles: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Corner [2] and size [2] of a box in the unit texture square that no triangle uses (4 : 1)."""
    size = 512
    used = np.zeros((size, size), np.uint8)
    cv2.fillPoly(used, list(np.round(texture_points[texture_triangles] * size).astype(np.int32)), (1,))
    used = cv2.dilate(used, np.ones((5, 5), np.uint8))
    for height in range(48, 3, -2):
        free = cv2.erode(1 - used, np.ones((height, 4 * height), np.uint8), anchor=(0, 0), borderValue=(0,))
        if free.any():
            row, column = np.argwhere(free)[0]
            return np.array([column, row]) / size, np.array([4 * height, height]) / size
    raise ValueError("no room for the teeth in the texture square")


__all__ = ["Teeth", "free_texture_box", "lip_slit", "make_teeth"]
