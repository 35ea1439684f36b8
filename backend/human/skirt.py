"""Skirts, dresses and coat tails: one tube round both legs, which a body's two thighs cannot become.

At every height the tube is an ellipse, in front and behind of its own depth: as wide as the mask, as deep as the hips
plus what the cloth gains in width below them, and deep enough for the legs inside.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np
from scipy.ndimage import gaussian_filter1d, median_filter
from scipy.sparse import csr_matrix, hstack

from backend.human.camera import PinholeCamera
from backend.human.garments import ARMS, HANDS, LEGS, Part, Rings
from backend.human.lbs import vertex_transforms
from backend.human.model import BodyModel
from backend.human.personal import Personal
from backend.human.zbuffer import MeshView
from blender_addon.shared.skeleton import JOINT_NAMES

LEVEL_M = 0.015
SHORTEST_M = 0.15
"""Tails shorter than this below the hips are the shell's."""

MORE_LEVELS = 3
MISSED_LEVELS = 6
NARROWING = 0.1
"""How much a side may come in per metre down: a narrow skirt's taper."""

SPECK = 0.025
"""Of the square root of the person's area: about 2 cm."""

BELT_M = 0.01
"""What a belt adds to the bare waist where arms hide it."""

GAP_M = 0.02
"""Holes in a row of the skirt (dots, folds) that do not end it."""

ARM_MARGIN_M = 0.015
HIPS_DEPTH = 0.7
"""Least depth of dressed hips over their width."""

LEG_ROOM_M = 0.01
THIGH_SHARE = 0.8
THIGH_RISE_M = 0.25
THIGH_SPREAD = 4.0
"""A skirt follows the thighs by up to 0.8, reached 25 cm below its top, and the pelvis otherwise; from the right thigh
to the left one over four times the hip joints' distance from the middle."""

HIDDEN_DEPTH_M = 0.08
"""What of a leg lies higher above the hem than this cannot be seen from below either."""

SIDE_COSINE = 0.6
COLUMNS = 96
ROWS_M = 0.02
"""Size of the tube's mesh."""

UNEVEN_M = 0.08
"""How far the hem may differ from the last row that shows most of it."""


@dataclass(frozen=True)
class SkirtShape:
    """Cross-sections of a skirt in the photo's pose.

    Attributes:
        right: [3] unit, horizontal, to the right in the picture.
        forward: [3] unit, horizontal, away from the camera.
        hem_levels_m: [C] world height of the edge at `COLUMNS` angles from -pi on.
        levels_m: [L] world heights, rising.
        table_m: [L, 4] middle along `right`, half width, depth in front and depth behind (along `forward`).
        axis_m: Middle along `forward`.
        lift_m: World height minus T-pose height.
    """

    right: np.ndarray
    forward: np.ndarray
    hem_levels_m: np.ndarray
    levels_m: np.ndarray
    table_m: np.ndarray
    axis_m: float
    lift_m: float

    @property
    def hem_m(self) -> float:
        """T-pose height of the lower edge."""
        return float(self.hem_levels_m.mean()) - self.lift_m

    def at(self, heights_m: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Middle, half width, front and back depth [N] at world heights [N]."""
        middle, half, front, back = (np.interp(heights_m, self.levels_m, column) for column in self.table_m.T)
        return middle, half, front, back

    def inside(self, points_m: np.ndarray) -> np.ndarray:
        """[N] radius of world points [N, 3] over the skirt's there: below 1 inside; infinite above and below it."""
        middle, half, front, back = self.at(points_m[:, 1])
        z = points_m @ self.forward - self.axis_m
        radius = np.hypot((points_m @ self.right - middle) / half, z / np.where(z < 0, front, back))
        between = (points_m[:, 1] >= self.levels_m[0]) & (points_m[:, 1] <= self.levels_m[-1])
        return np.where(between, radius, np.inf)

    def points_m(self, heights_m: np.ndarray, angles: np.ndarray) -> np.ndarray:
        """World points [N, 3]; angle 0 faces the camera, pi / 2 is right in the picture."""
        middle, half, front, back = self.at(heights_m)
        across, along = np.sin(angles), -np.cos(angles)
        deep = np.where(along < 0, front, back)
        return (
            (middle + half * across)[:, None] * self.right
            + (self.axis_m + deep * along)[:, None] * self.forward
            + heights_m[:, None] * np.array([0.0, 1.0, 0.0])
        )

    def flat_m(self, points_m: np.ndarray) -> np.ndarray:
        """World points [N, 3] as if the person stood in the T-pose facing +Z: x to the left side, y T-pose height."""
        middle = self.at(points_m[:, 1])[0]
        x, z = points_m @ self.right - middle, self.axis_m - points_m @ self.forward
        return np.stack([x, points_m[:, 1] - self.lift_m, z], axis=1)


@dataclass(frozen=True)
class Skirt:
    """A skirt's own vertices and triangles, which follow those of the body.

    Attributes:
        shape: Its cross-sections.
        rest_m: [M, 3] T-pose.
        posed_m: [M, 3] world, in the photo's pose.
        flat_m: [M, 3] place on the undressed body in the T-pose, for the colours.
        triangles: [K, 3] rows of these.
        uvs: [K, 3, 2].
        weights: [M, 55 + H] skin weights as `body.twist.skin_weights`.
    """

    shape: SkirtShape
    rest_m: np.ndarray
    posed_m: np.ndarray
    flat_m: np.ndarray
    triangles: np.ndarray
    uvs: np.ndarray
    weights: np.ndarray

    def worn_by(self, body: BodyModel) -> BodyModel:
        """The body model with the skirt's vertices and triangles behind its own."""
        count, more = len(body.template_m), len(self.rest_m)

        def tall(array: np.ndarray, value: float) -> np.ndarray:
            return np.concatenate([array, np.full((more, *array.shape[1:]), value, array.dtype)])

        def wide(matrix: csr_matrix) -> csr_matrix:
            return csr_matrix(hstack([matrix, csr_matrix((matrix.shape[0], more), dtype=matrix.dtype)]))

        twist = replace(body.twist, skin_weights=np.concatenate([body.twist.skin_weights, self.weights]))
        columns = np.arange(count, count + more, dtype=body.mirror.dtype)
        return replace(
            body,
            template_m=np.concatenate([body.template_m, self.rest_m.astype(body.template_m.dtype)]),
            triangles=np.concatenate([body.triangles, (self.triangles + count).astype(body.triangles.dtype)]),
            uvs=np.concatenate([body.uvs, self.uvs.astype(body.uvs.dtype)]),
            shape_dirs_m=tall(body.shape_dirs_m, 0),
            action_dirs_m=tall(body.action_dirs_m, 0),
            skin_weights=np.concatenate([body.skin_weights, self.weights[:, : body.skin_weights.shape[1]]]),
            twist=twist,
            regions=tall(body.regions, 0),
            outer=tall(body.outer, True),
            mirror=np.concatenate([body.mirror, columns]),
            joint_regressor=wide(body.joint_regressor),
            pose_keypoints=wide(body.pose_keypoints),
            hand_keypoints=wide(body.hand_keypoints),
            face_landmarks=wide(body.face_landmarks),
        )

    def worn_on(self, personal: Personal) -> Personal:
        """The fitted person with the skirt's vertices behind the body's; the face does not move them."""
        more = len(self.rest_m)
        still = np.zeros((len(personal.action_offsets_m), more, 3), personal.action_offsets_m.dtype)
        return replace(
            personal,
            vertices_m=np.concatenate([personal.vertices_m, self.rest_m.astype(personal.vertices_m.dtype)]),
            action_offsets_m=np.concatenate([personal.action_offsets_m, still], axis=1),
            photo_offset_m=np.concatenate([personal.photo_offset_m, still[0].astype(personal.photo_offset_m.dtype)]),
        )


def skirt_weights(flat_m: np.ndarray, joints_m: np.ndarray, columns: int) -> np.ndarray:
    """Skin weights with which a skirt does not split between the legs.

    Args:
        flat_m: [M, 3] T-pose places of its vertices.
        joints_m: [55, 3].
        columns: Number of bones, helpers included.

    Returns:
        [M, columns] float32; both thighs and the pelvis share smoothly.
    """
    hip = abs(float(joints_m[JOINT_NAMES.index("left_hip"), 0]))
    left = np.clip(0.5 + flat_m[:, 0] / (THIGH_SPREAD * max(hip, 1e-3)), 0, 1)
    left = left * left * (3 - 2 * left)
    thigh = np.clip((flat_m[:, 1].max() - flat_m[:, 1]) / THIGH_RISE_M, 0, 1)
    thigh = THIGH_SHARE * thigh * thigh * (3 - 2 * thigh)
    weights = np.zeros((len(flat_m), columns), np.float32)
    weights[:, JOINT_NAMES.index("left_hip")] = thigh * left
    weights[:, JOINT_NAMES.index("right_hip")] = thigh * (1 - left)
    weights[:, JOINT_NAMES.index("pelvis")] = 1 - weights.sum(axis=1)
    return weights


def shape_skirt(
    skirt: np.ndarray,
    rest_m: np.ndarray,
    posed_m: np.ndarray,
    parts: np.ndarray,
    cloth: np.ndarray,
    mask: np.ndarray,
    view: MeshView,
    camera: PinholeCamera,
) -> SkirtShape | None:
    """Measure a skirt in the mask.

    Args:
        skirt: [V] bool, from `skirt_vertices`.
        rest_m: [V, 3] T-pose.
        posed_m: [V, 3] the undressed body in the photo's pose; its legs are inside.
        parts: [V] `Part`.
        cloth: [H, W] bool, pixels that may belong to the skirt.
        mask: [H, W] bool, the person.
        view: The undressed body in the photo.
        camera: The photo's camera.

    Returns:
        The shape, or None where the picture shows no long enough skirt.
    """
    forward = np.array([camera.w2c[2, 0], 0.0, camera.w2c[2, 2]])
    forward /= np.linalg.norm(forward)
    right = camera.w2c[0, :3]
    trunk = parts == Part.TRUNK
    belt = trunk & (np.abs(rest_m[:, 1] - rest_m[skirt, 1].max()) < 0.02)
    if belt.sum() < 8:
        return None
    depth = posed_m[belt] @ forward
    axis, lateral = 0.5 * (depth.min() + depth.max()), float((posed_m[belt] @ right).mean())
    top = float(posed_m[belt, 1].mean())
    lift = top - float(rest_m[belt, 1].mean())
    foot = float(posed_m[skirt, 1].min()) - 0.15
    levels = np.arange(top, foot, -LEVEL_M)
    points = lateral * right + axis * forward + levels[:, None] * np.array([0.0, 1.0, 0.0])
    sides, filled = _sides_m(points, lateral, cloth, mask, _arms(view, parts, camera), camera)
    hips = int((top - float(posed_m[skirt & np.isin(parts, LEGS), 1].max())) / LEVEL_M)
    length = _length(filled)
    if (length - hips) * LEVEL_M < SHORTEST_M or np.isfinite(sides[:length]).sum() < 5:
        return None
    bare = 0.5 * float(np.ptp(posed_m[belt] @ right))
    left, beside = (_smooth_side(sides[:length, k], sides[:length, 1 - k], bare + BELT_M) for k in (0, 1))
    # an edge that hangs unevenly goes a little lower
    left, beside = (np.concatenate([side, np.full(MORE_LEVELS, side[-1])]) for side in (left, beside))
    levels = top - LEVEL_M * np.arange(length + MORE_LEVELS)
    half = np.maximum(0.5 * (left + beside), 0.03)
    # what the cloth gains over the bare hips at the sides it gains in front and behind
    reach = np.maximum(0.5 * float(np.ptp(depth)) + half - bare, HIPS_DEPTH * half[0] + half - half[0])
    legs = posed_m[np.isin(parts, LEGS)]
    room = [legs[np.abs(legs[:, 1] - y) < LEVEL_M] @ forward for y in levels]
    front = [max(r, axis - f.min() + LEG_ROOM_M) if len(f) else r for r, f in zip(reach, room, strict=True)]
    back = [max(r, f.max() - axis + LEG_ROOM_M) if len(f) else r for r, f in zip(reach, room, strict=True)]
    smooth = [gaussian_filter1d(np.maximum(d, 0.05), 2, mode="nearest") for d in (front, back)]
    table = np.stack([lateral + 0.5 * (beside - left), half, *smooth], axis=1)
    edge = np.full(COLUMNS, levels[length - 1])
    plain = SkirtShape(right, forward, edge, levels[::-1].copy(), table[::-1].copy(), float(axis), lift)
    return replace(plain, hem_levels_m=_hem_levels_m(plain, cloth, camera))


def _hem_levels_m(shape: SkirtShape, cloth: np.ndarray, camera: PinholeCamera) -> np.ndarray:
    """[C] heights of the edge: in front where the cloth's pixels end, behind as at the sides."""
    edge = shape.hem_levels_m
    angles = column_angles()
    out = edge.copy()
    for k in np.flatnonzero(np.cos(angles) > 0.3):
        heights = edge[k] + np.arange(-UNEVEN_M, UNEVEN_M, 0.003)
        points = shape.points_m(heights, np.full(len(heights), angles[k]))
        column, row = np.floor(camera.project(points)).astype(int).T
        inside = (column >= 0) & (column < cloth.shape[1]) & (row >= 0) & (row < cloth.shape[0])
        found = heights[inside][cloth[row[inside], column[inside]]]
        out[k] = found[0] if len(found) else edge[k] + UNEVEN_M
    # the far half is not seen: it goes on where the sides end, which lie as far from the camera as the axis
    sides = (np.cos(angles) > 0.3) & (np.cos(angles) < SIDE_COSINE)
    out[np.cos(angles) <= 0.3] = np.median(out[sides])
    return gaussian_filter1d(median_filter(out, 5, mode="wrap"), 1.0, mode="wrap")


def column_angles() -> np.ndarray:
    """[C] angles of a skirt's columns, from -pi on."""
    return np.linspace(-np.pi, np.pi, COLUMNS, endpoint=False)


def _arms(view: MeshView, parts: np.ndarray, camera: PinholeCamera) -> np.ndarray:
    """[H, W] bool: drawn arms and hands with a margin."""
    arms = np.zeros(view.nearest.depth_m.shape, np.uint8)
    covered = view.nearest.covered
    arms[covered] = np.isin(parts[view.triangles[view.nearest.triangle[covered], 0]], ARMS + HANDS)
    px_m = float(np.median(view.nearest.depth_m[covered])) / camera.fx
    side = 2 * max(1, round(ARM_MARGIN_M / px_m)) + 1
    return cv2.dilate(arms, np.ones((side, side), np.uint8)) > 0


def _sides_m(
    points_m: np.ndarray, lateral_m: float, cloth: np.ndarray, mask: np.ndarray, arms: np.ndarray, camera: PinholeCamera
) -> tuple[np.ndarray, np.ndarray]:
    """How far a skirt reaches to both sides of its axis at every level.

    Args:
        points_m: [L, 3] the axis, world, from above.
        lateral_m: Its coordinate to the right.
        cloth: [H, W] bool.
        mask: [H, W] bool.
        arms: [H, W] bool, where a side's end is not the skirt's.
        camera: The photo's camera.

    Returns:
        [L, 2] metres to the left and right in the picture, nan where unknown; [L] bool, whether most of the row between
        them is the skirt.
    """
    height, width = mask.shape
    sides, filled = np.full((len(points_m), 2), np.nan), np.zeros(len(points_m), bool)
    z = camera.to_camera(points_m)[:, 2]
    uv = camera.project(points_m)
    own = cloth & ~arms
    for k, (u, v) in enumerate(uv):
        row, middle, px_m = int(v), int(np.clip(u, 0, width - 1)), z[k] / camera.fx
        if not 0 <= row < height - 1:
            break
        found = np.flatnonzero(own[row])
        gap = max(2, round(GAP_M / px_m))
        ends = []
        for sign in (-1, 1):
            out = np.sort(sign * (found[sign * (found - middle) >= 0] - middle))
            jump = np.flatnonzero(np.diff(np.concatenate([[0], out])) > gap)
            out = out[: jump[0]] if len(jump) else out
            ends.append(int(out[-1]) if len(out) else 0)
            beyond = middle + sign * (ends[-1] + 1 + np.arange(3))
            inside = (beyond >= 0) & (beyond < width)
            if len(out) and inside.all() and not arms[row, beyond].any() and not mask[row, beyond[-1]]:
                sides[k, len(ends) - 1] = (ends[-1] + 0.5) * px_m
        between = slice(max(middle - ends[0], 0), middle + ends[1] + 1)
        filled[k] = (own | arms)[row, between].mean() > 0.75 and sum(ends) * px_m > 0.1
    return sides, filled


def _length(filled: np.ndarray) -> int:
    """Number of levels down to the hem; rows that are not recognised do not end a skirt below which it goes on."""
    length = 0
    for k in np.flatnonzero(filled):
        if k - length > MISSED_LEVELS:
            break
        length = int(k) + 1
    return length


def _smooth_side(side_m: np.ndarray, other_m: np.ndarray, top_m: float) -> np.ndarray:
    """[L] one side's reach without gaps; where an arm hides it all along, the other's; `top_m` where the belt's is."""
    known = np.isfinite(side_m)
    if known.sum() < 3:
        side_m, known = other_m, np.isfinite(other_m)
    side_m = side_m.copy()
    if not known[:3].any():
        side_m[0], known[0] = top_m, True
    index = np.arange(len(side_m))
    whole = np.interp(index, index[known], side_m[known])
    # the last rows of an uneven hem show its middle only
    fall = NARROWING * LEVEL_M * index
    whole = np.maximum.accumulate(whole + fall) - fall
    return gaussian_filter1d(median_filter(whole, 5, mode="nearest"), 1.5, mode="nearest")


def build_skirt(shape: SkirtShape, body: BodyModel, personal: Personal) -> Skirt:
    """The mesh of a skirt.

    Args:
        shape: From `shape_skirt`.
        body: The body model, for its bones.
        personal: The fitted person.
    """
    angles, top = column_angles(), float(shape.levels_m[-1])
    rows = max(4, round((top - float(shape.hem_levels_m.min())) / ROWS_M)) + 1
    down, column = (g.ravel() for g in np.meshgrid(np.linspace(0, 1, rows), np.arange(COLUMNS), indexing="ij"))
    heights = top + down * (shape.hem_levels_m[column] - top)
    posed = shape.points_m(heights, angles[column])
    flat = shape.flat_m(posed)
    weights = skirt_weights(flat, personal.joints_m, body.twist.skin_weights.shape[1])
    moves = vertex_transforms(personal.joints_m, personal.pose, weights, personal.translation_m, body.twist)
    rest = np.linalg.solve(moves[:, :, :3], (posed - moves[:, :, 3])[..., None])[..., 0]
    r, c = (g.ravel() for g in np.meshgrid(np.arange(rows - 1), np.arange(COLUMNS), indexing="ij"))
    a, b = r * COLUMNS + c, r * COLUMNS + (c + 1) % COLUMNS
    triangles = np.concatenate([np.stack([a, a + COLUMNS, b], 1), np.stack([b, a + COLUMNS, b + COLUMNS], 1)])
    u, v = c / COLUMNS, 1 - r / (rows - 1)
    right, low = u + 1 / COLUMNS, v - 1 / (rows - 1)
    first = np.stack([np.stack([u, v], 1), np.stack([u, low], 1), np.stack([right, v], 1)], 1)
    second = np.stack([np.stack([right, v], 1), np.stack([u, low], 1), np.stack([right, low], 1)], 1)
    return Skirt(shape, rest, posed, flat, triangles, np.concatenate([first, second]), weights)


def without_specks(cloth: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """[H, W] bool: `cloth` without small holes and crumbs (dots, folds, wrong labels), inside `mask`."""
    side = 2 * max(1, round(SPECK * np.sqrt(int(mask.sum())))) + 1
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))
    closed = cv2.morphologyEx(cloth.astype(np.uint8), cv2.MORPH_CLOSE, kernel)
    return (cv2.morphologyEx(closed, cv2.MORPH_OPEN, kernel) > 0) & mask


def legs_below(rings: Rings, hem_m: float, skirt_code: int) -> np.ndarray:
    """[2] what the left and right leg wear below a skirt's hem at T-pose height `hem_m`."""
    heights = hem_m + 0.05 - 0.005 * np.arange(60)
    out = np.full(2, skirt_code, np.uint8)
    for k, leg in enumerate(LEGS):
        points = np.stack([np.full(60, 0.1 - 0.2 * k), heights, np.zeros(60)], axis=1)
        codes = rings.at(points, np.full(60, leg, np.uint8))
        other = codes[codes != skirt_code]
        out[k] = other[0] if len(other) else skirt_code
    return out


__all__ = ["Skirt", "SkirtShape", "build_skirt", "legs_below", "shape_skirt", "skirt_weights", "without_specks"]
