"""Sheets where the mask leaves the shell: between the legs of a skirt, along coat tails, beside long hair."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from scipy.ndimage import median_filter
from scipy.sparse import coo_matrix
from scipy.sparse.linalg import splu
from scipy.spatial import cKDTree

from backend.human.camera import PinholeCamera
from backend.human.garments import ARMS, FEET, HANDS, JOINT_PARTS, Part
from backend.human.zbuffer import MeshView

LOCAL_DEPTH_M = 0.05
"""The shell's nearest and farthest depth within this radius bound a membrane."""

SMALLEST_SHARE = 2e-3
"""Of the mask; smaller gaps are left to the optimiser."""

BRIDGE_SHARE = 0.2
"""A sheet with this much of its border on an arm and as much on another part would tear when the arm lifts."""

FEWEST_NEIGHBOURS = 3
"""The corner of a block of points has three."""

COLLAR_ON_NECK = 0.08
"""Least share of a piece's border on the neck or head that makes it the end of a collar."""

COLLAR_OVERLAP_M = 0.06
COLLAR_DEPTH = 0.75
"""Depth behind the neck over half the width; a ring is a little flatter than a circle."""

COLLAR_FOOT_M = 0.03
COLLAR_TAPER = 0.35
"""A collar reaches down behind the shoulders and stands off less there."""

HAIR_THICKNESS = 0.6
THINNEST_M = 0.01


@dataclass(frozen=True)
class Membrane:
    """One two-sided sheet, as points in the photo's pose.

    Attributes:
        points_m: [N, 3] world.
        normals: [N, 3] outward, world.
        pixels: [N, 2] row and column in the working image.
        front: [N] bool, on the side that the camera sees.
        seen: [N] bool, the photo shows the sheet at that pixel.
        spacing_m: Distance between neighbouring points.
        hair: Whether it is hair (moves with the head).
        triangles: [N] row of the body's triangle that carries each point.
        bary: [N, 3] its foot point on that triangle.
    """

    points_m: np.ndarray
    normals: np.ndarray
    pixels: np.ndarray
    front: np.ndarray
    seen: np.ndarray
    spacing_m: float
    hair: bool
    triangles: np.ndarray
    bary: np.ndarray


def build_membranes(
    mask: np.ndarray,
    hair: np.ndarray,
    view: MeshView,
    posed_m: np.ndarray,
    triangles_all: np.ndarray,
    outer: np.ndarray,
    on_head: np.ndarray,
    joints: np.ndarray,
    camera: PinholeCamera,
    spacing_m: float,
) -> tuple[Membrane, ...]:
    """Sheets over the parts of a mask that the shell does not cover.

    Args:
        mask: [H, W] bool to be covered: the person without held objects and without what the head's splats cover.
        hair: [H, W] bool, hair among it.
        view: The shell (and head) in the photo.
        posed_m: [V, 3] the shell in the photo's pose.
        triangles_all: [T, 3].
        outer: [T] bool, triangles that may carry a point.
        on_head: [T] bool, triangles of the head; hair is bound to these and clothes to the others.
        joints: [V] dominant joint per vertex.
        camera: The photo's camera.
        spacing_m: Wanted distance between points.
    """
    covered = view.nearest.covered
    if not covered.any():
        return ()
    px_m = float(np.median(view.nearest.depth_m[covered])) / camera.fx
    residual = cv2.morphologyEx((mask & ~covered).astype(np.uint8), cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
    count, pieces, stats, _ = cv2.connectedComponentsWithStats(residual)
    part = _nearest_part(view, joints)
    contour_px = cv2.distanceTransform((mask | covered).astype(np.uint8), cv2.DIST_L2, 5)
    bounds = _local_bounds(view, max(2, round(LOCAL_DEPTH_M / px_m)))
    membranes = []
    collar = _collar_ends(pieces, stats, hair, covered, part, px_m, max(25.0, SMALLEST_SHARE * float(mask.sum())))
    if collar:
        carrier = np.flatnonzero(outer & ~on_head)
        ends = np.isin(pieces, collar)
        membranes.append(_collar(ends, covered, bounds, camera, posed_m, triangles_all, carrier, spacing_m, px_m))
    for k in range(1, count):
        piece = pieces == k
        if k in collar:
            continue
        if stats[k, cv2.CC_STAT_AREA] < max(25, SMALLEST_SHARE * mask.sum()):
            continue
        is_hair = bool(hair[piece].mean() > 0.5)
        if not is_hair and (np.isin(part[piece], HANDS + FEET).mean() > 0.5 or _bridges_arm(piece, covered, part)):
            continue  # fingers or toes that the pose missed, or a gap beside an arm: a sheet would fly with the limb
        if not is_hair and _at_border(piece):
            continue
        sheet = _sheet(piece, covered, bounds, contour_px, px_m, is_hair)
        if sheet is None:
            continue
        carrier = np.flatnonzero(outer & (on_head == is_hair))
        membranes.append(
            _sample(piece, sheet, contour_px, camera, posed_m, triangles_all, carrier, spacing_m, px_m, is_hair)
        )
    return tuple(m for m in membranes if m is not None)


def _collar_ends(
    pieces: np.ndarray,
    stats: np.ndarray,
    hair: np.ndarray,
    covered: np.ndarray,
    part: np.ndarray,
    px_m: float,
    smallest_px: float,
) -> tuple[int, int] | tuple[()]:
    """The two pieces left and right of the neck that are one collar, hood or ring, which the neck hides; or nothing."""
    head = covered & (part == Part.HEAD)
    if not head.any():
        return ()
    middle = float(np.nonzero(head)[1].mean())
    found: dict[bool, int] = {}
    for k in range(1, len(stats)):
        piece = pieces == k
        if stats[k, cv2.CC_STAT_AREA] < smallest_px or hair[piece].mean() > 0.5 or _at_border(piece):
            continue
        border = (cv2.dilate(piece.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0) & covered
        right = bool(np.nonzero(piece)[1].mean() > middle)
        best = right not in found or stats[k, cv2.CC_STAT_AREA] > stats[found[right], cv2.CC_STAT_AREA]
        if border.any() and head[border].mean() > COLLAR_ON_NECK and best:
            found[right] = k
    if len(found) < 2:
        return ()
    a, b = found[False], found[True]
    top = max(stats[a, cv2.CC_STAT_TOP], stats[b, cv2.CC_STAT_TOP])
    foot = min(stats[k, cv2.CC_STAT_TOP] + stats[k, cv2.CC_STAT_HEIGHT] for k in (a, b))
    return (a, b) if (top - foot) * px_m < COLLAR_OVERLAP_M else ()


def _collar(
    ends: np.ndarray,
    covered: np.ndarray,
    bounds: tuple[np.ndarray, np.ndarray],
    camera: PinholeCamera,
    posed_m: np.ndarray,
    triangles_all: np.ndarray,
    carrier: np.ndarray,
    spacing_m: float,
    px_m: float,
) -> Membrane | None:
    """A band from one visible end of a collar to the other, round behind the neck.

    Args:
        ends: [H, W] bool, what is seen of it left and right of the neck.
        covered: [H, W] bool, the shell.
        bounds: Nearest and farthest depth [H, W] of the shell around.
        camera: The photo's camera.
        posed_m: [V, 3].
        triangles_all: [T, 3].
        carrier: Rows of the triangles that may carry a point.
        spacing_m: Wanted distance between points.
        px_m: Metres per pixel.
    """
    columns = np.flatnonzero(ends.any(axis=0))
    # a sliver of background beside the hair is no edge of the collar
    smooth = 2 * max(1, len(columns) // 20) + 1
    tops = median_filter(ends[:, columns].argmax(axis=0).astype(np.float64), smooth, mode="nearest")
    feet = median_filter(len(ends) - 1.0 - ends[::-1, columns].argmax(axis=0), smooth, mode="nearest")
    border = covered & (cv2.dilate(ends.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0)
    near, far = float(np.median(bounds[0][border])), float(np.median(bounds[1][border]))
    # half a disc's width inside, so that the discs end at the outline
    inset = 0.5 * spacing_m / px_m
    middle, half = 0.5 * (columns[0] + columns[-1] + 1), max(0.5 * (columns[-1] - columns[0] + 1) - inset, 1.0)
    deep = max(COLLAR_DEPTH * half * px_m, 0.5 * (far - near) + 2 * THINNEST_M)
    tall = (feet.max() - tops.min()) * px_m + COLLAR_FOOT_M
    around = np.linspace(-np.pi / 2, np.pi / 2, max(8, round(np.pi * half * px_m / spacing_m)))
    down = np.linspace(0, 1, max(3, round(tall / spacing_m)))
    angle, t = (g.ravel() for g in np.meshgrid(around, down))
    edge = middle + half * np.sin(angle)
    top, foot = np.interp(edge, columns, tops), np.interp(edge, columns, feet)
    # where it is hidden it reaches down to the shoulders, narrower there
    foot = 0.5 * (foot + feet.max()) + COLLAR_FOOT_M / px_m
    narrow = 1 - COLLAR_TAPER * np.clip((t - 0.4) / 0.6, 0, 1)
    u, v = middle + half * narrow * np.sin(angle), top + inset + t * (foot - top)
    z = 0.5 * (near + far) + deep * narrow * np.cos(angle)
    row, column = np.floor(v).astype(int), np.clip(np.floor(u).astype(int), 0, ends.shape[1] - 1)
    ok = (row < len(ends)) & (ends | covered)[np.minimum(row, len(ends) - 1), column]
    if not ok.any():
        return None
    u, v, z, angle, row, column = u[ok], v[ok], z[ok], angle[ok], row[ok], column[ok]
    radial = np.stack([np.sin(angle), np.zeros(len(z)), np.cos(angle)], axis=1) @ camera.w2c[:3, :3]
    points = camera.to_world(np.stack([(u - camera.cx) * z / camera.fx, (v - camera.cy) * z / camera.fy, z], axis=1))
    where = np.concatenate([points - 0.5 * THINNEST_M * radial, points + 0.5 * THINNEST_M * radial])
    triangles, bary = nearest_on_triangles(where, posed_m, triangles_all, carrier)
    pixels = np.tile(np.stack([row, column], axis=1), (2, 1))
    front, seen = np.repeat([True, False], len(z)), ends[pixels[:, 0], pixels[:, 1]]
    normals = np.concatenate([-radial, radial])
    return Membrane(where, normals, pixels, front, seen, spacing_m, False, triangles, bary)


def _nearest_part(view: MeshView, joints: np.ndarray) -> np.ndarray:
    """[H, W] `Part` of the nearest drawn pixel."""
    covered = view.nearest.covered
    _, index = cv2.distanceTransformWithLabels(
        (~covered).astype(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
    )
    table = np.zeros(index.max() + 1, np.uint8)
    table[index[covered]] = JOINT_PARTS[joints[view.triangles[view.nearest.triangle[covered], 0]]]
    return table[index]


def _at_border(piece: np.ndarray) -> bool:
    """Whether a piece is cut by the picture's border: the shell did not look there, and the rest is unknown."""
    return bool(piece[:2].any() or piece[-2:].any() or piece[:, :2].any() or piece[:, -2:].any())


def _bridges_arm(piece: np.ndarray, covered: np.ndarray, part: np.ndarray) -> bool:
    """Whether a piece lies between an arm and another part."""
    border = (cv2.dilate(piece.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0) & covered
    if not border.any():
        return False
    arm = float(np.isin(part[border], ARMS + HANDS).mean())
    return BRIDGE_SHARE < arm < 1 - BRIDGE_SHARE


def _local_bounds(view: MeshView, radius_px: int) -> tuple[np.ndarray, np.ndarray]:
    """Nearest and farthest depth [H, W] of the shell within a radius."""
    covered = view.nearest.covered
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius_px + 1,) * 2)
    near = np.where(covered, view.nearest.depth_m, 1e3).astype(np.float32)
    far = np.where(covered, view.farthest().depth_m, -1e3).astype(np.float32)
    return -cv2.dilate(-near, kernel), cv2.dilate(far, kernel)


def _sheet(
    piece: np.ndarray,
    covered: np.ndarray,
    bounds: tuple[np.ndarray, np.ndarray],
    contour_px: np.ndarray,
    px_m: float,
    is_hair: bool,
) -> tuple[np.ndarray, np.ndarray] | None:
    """Front and back depth [H, W] (m) over a piece, nan elsewhere; None where it does not touch the shell."""
    rows, columns = np.nonzero(piece)
    border = (cv2.dilate(piece.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0) & covered
    if border.sum() < 4:
        return None
    depth = _harmonic(piece, border, bounds)
    front, back = depth[:, 0], depth[:, 1]
    middle, half = 0.5 * (front + back), np.maximum(0.5 * (back - front), THINNEST_M)
    # round in cross-section: full thickness one half-thickness away from the contour, none at it
    width = np.minimum(half / px_m, max(2.0, float(np.percentile(contour_px[rows, columns], 95))))
    t = np.clip(contour_px[rows, columns] / width, 0, 1)
    thick = np.minimum(half, 1.2 * width * px_m) * np.sqrt(np.clip(1 - (1 - t) ** 2, 0, 1))
    if is_hair:
        thick, middle = HAIR_THICKNESS * thick, middle + 0.01
    sheet = np.full((2, *piece.shape), np.nan)
    sheet[0, rows, columns], sheet[1, rows, columns] = middle - thick, middle + thick
    return sheet[0], sheet[1]


def _harmonic(piece: np.ndarray, border: np.ndarray, bounds: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Depths [N, 2] of a piece's pixels: harmonic between the values of `bounds` on the border pixels."""
    height, width = piece.shape
    rows, columns = np.nonzero(piece)
    count = len(rows)
    number = np.full(piece.shape, -1)
    number[rows, columns] = np.arange(count)
    mean = np.array([bounds[0][border].mean(), bounds[1][border].mean()])
    diagonal = np.full(count, 1e-6)
    right = np.tile(1e-6 * mean, (count, 1))
    i, j = [], []
    for dy, dx in ((0, 1), (1, 0), (0, -1), (-1, 0)):
        y, x = np.clip(rows + dy, 0, height - 1), np.clip(columns + dx, 0, width - 1)
        other = number[y, x]
        inside, fixed = other >= 0, (other < 0) & border[y, x]
        i.append(np.flatnonzero(inside))
        j.append(other[inside])
        diagonal += inside + fixed
        right[fixed, 0] += bounds[0][y, x][fixed]
        right[fixed, 1] += bounds[1][y, x][fixed]
    i_all, j_all = np.concatenate(i), np.concatenate(j)
    values = np.concatenate([-np.ones(len(i_all)), diagonal])
    index = np.concatenate([i_all, np.arange(count)]), np.concatenate([j_all, np.arange(count)])
    return splu(coo_matrix((values, index), shape=(count, count)).tocsc()).solve(right)


def _sample(
    piece: np.ndarray,
    sheet: tuple[np.ndarray, np.ndarray],
    contour_px: np.ndarray,
    camera: PinholeCamera,
    posed_m: np.ndarray,
    triangles_all: np.ndarray,
    carrier: np.ndarray,
    spacing_m: float,
    px_m: float,
    is_hair: bool,
) -> Membrane | None:
    """Points on a pixel grid of both sides, bound to the nearest triangle."""
    step = max(1, round(spacing_m / px_m))
    rows, columns = np.nonzero(piece & (contour_px >= min(0.4 * step, 2.0)))
    grid = (rows % step == 0) & (columns % step == 0)
    rows, columns = without_tails(rows[grid] // step, columns[grid] // step)
    rows, columns = rows * step, columns * step
    if len(rows) == 0 or len(carrier) == 0:
        return None
    points, normals = [], []
    for depth, sign in ((sheet[0], -1.0), (sheet[1], 1.0)):
        z = depth[rows, columns]
        p = np.stack([(columns + 0.5 - camera.cx) * z / camera.fx, (rows + 0.5 - camera.cy) * z / camera.fy, z], axis=1)
        gy, gx = np.gradient(depth)
        slope = np.nan_to_num(np.stack([gx[rows, columns], gy[rows, columns]], axis=1)) * camera.fx / z[:, None]
        # the surface z(x, y) faces the camera with (slope, -1)
        n = -sign * np.concatenate([np.clip(slope, -3, 3), -np.ones((len(z), 1))], axis=1)
        points.append(camera.to_world(p))
        normals.append((n / np.linalg.norm(n, axis=1, keepdims=True)) @ camera.w2c[:3, :3])
    where = np.concatenate(points)
    triangles, bary = nearest_on_triangles(where, posed_m, triangles_all, carrier)
    front = np.repeat([True, False], len(rows))
    pixels = np.tile(np.stack([rows, columns], axis=1), (2, 1))
    seen = np.ones(len(front), bool)
    return Membrane(where, np.concatenate(normals), pixels, front, seen, step * px_m, is_hair, triangles, bary)


def without_tails(rows: np.ndarray, columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Grid points [N] without those of lines one point wide, which from the side are loose blobs.

    Args:
        rows: [N] integer rows.
        columns: [N] integer columns.

    Returns:
        Rows and columns of the points that keep at least `FEWEST_NEIGHBOURS` of eight neighbours.
    """
    if len(rows) == 0:
        return rows, columns
    grid = np.zeros((rows.max() + 3, columns.max() + 3), np.uint8)
    grid[rows + 1, columns + 1] = 1
    while True:
        around = cv2.filter2D(grid, -1, np.ones((3, 3), np.float32), borderType=cv2.BORDER_CONSTANT) - grid
        kept = grid * (around >= FEWEST_NEIGHBOURS).astype(np.uint8)
        if (kept == grid).all():
            break
        grid = kept
    still = grid[rows + 1, columns + 1] > 0
    return rows[still], columns[still]


def nearest_on_triangles(
    points_m: np.ndarray, vertices_m: np.ndarray, triangles_all: np.ndarray, subset: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The triangle [N] of `subset` nearest to each point [N, 3], and the foot point's barycentric coordinates [N, 3].

    The foot is the plane's projection held inside the triangle; exact where it falls inside.
    """
    corners = vertices_m[triangles_all[subset]]
    _, near = cKDTree(corners.mean(axis=1)).query(points_m, k=min(6, len(subset)))
    near = near.reshape(len(points_m), -1)
    best = np.full(len(points_m), np.inf)
    choice, bary = np.zeros(len(points_m), int), np.zeros((len(points_m), 3))
    for k in range(near.shape[1]):
        c = corners[near[:, k]]
        e1, e2, d = c[:, 1] - c[:, 0], c[:, 2] - c[:, 0], points_m - c[:, 0]
        a11, a12, a22 = (e1 * e1).sum(1), (e1 * e2).sum(1), (e2 * e2).sum(1)
        b1, b2 = (e1 * d).sum(1), (e2 * d).sum(1)
        det = np.maximum(a11 * a22 - a12 * a12, 1e-18)
        v, w = (a22 * b1 - a12 * b2) / det, (a11 * b2 - a12 * b1) / det
        candidate = np.maximum(np.stack([1 - v - w, v, w], axis=1), 0)
        candidate /= candidate.sum(axis=1, keepdims=True)
        foot = np.einsum("nk,nkc->nc", candidate, c)
        distance = np.linalg.norm(points_m - foot, axis=1)
        closer = distance < best
        best[closer], choice[closer], bary[closer] = distance[closer], near[closer, k], candidate[closer]
    return subset[choice].astype(np.int32), bary
