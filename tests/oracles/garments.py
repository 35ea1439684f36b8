"""Loose clothes of the oracle figures: sheets offset from the posed body, draped tubes, collars, hoods, shoes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates
from scipy.sparse import identity

from tests.oracles.bodies import OracleBody, PosedBody
from tests.oracles.meshes import (
    Array,
    Mesh,
    Sheet,
    Surface,
    averaging,
    boundary_edges,
    clip,
    grid_triangles,
    noise,
    sheet_of,
    smooth,
    solidify,
    subdivide,
    vertex_normals,
)

Colour = tuple[float, float, float]
GarmentKind = Literal["top", "bottom", "skirt", "shoes", "collar", "hood"]
Pattern = Literal["plain", "stripes", "checks", "placket", "logo", "side_stripe", "dots"]


@dataclass(frozen=True)
class Garment:
    """One piece of clothing. Lengths in metres on a 1.7 m person; they scale with the body's height.

    Attributes:
        loose_m: distance from the body; end_loose_m: at the sleeve's or leg's end.
        sleeve: 0 none (tank), 1 elbow, 2 wrist, fractions between. leg: 1 knee, 2 ankle.
        hem_m: top: height of the lower edge above the crotch (negative values are not used); skirt: length below it.
        over_m: top: how far it keeps from the body below the waist, where it hangs over other clothes (0: tucked in).
        rise_m: bottom: its upper edge above the crotch (None: the waist); short under a shirt that hangs over it.
        flare: a skirt's growth of radius per metre; folds: number of folds round it.
    """

    kind: GarmentKind
    colour: Colour
    second: Colour = (0.1, 0.1, 0.1)
    pattern: Pattern = "plain"
    loose_m: float = 0.012
    end_loose_m: float = 0.02
    sleeve: float = 1.0
    leg: float = 2.0
    hem_m: float = 0.03
    neck_m: float = 0.075
    flare: float = 0.15
    folds: int = 9
    wrinkle_m: float = 0.003
    over_m: float = 0.0
    rise_m: float | None = None
    surface: Surface = "cloth"
    extra: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Worn:
    """A garment's meshes and the body vertices [V] that it hides."""

    meshes: list[Mesh]
    hidden: NDArray[np.bool_]


@dataclass(frozen=True)
class Measures:
    """What clothes are cut by: lengths of a body in T-pose, metres."""

    size: float  # body height over 1.7 m, at most 1.1
    crotch_y: float
    waist_y: float
    neck: Array  # [3]


def measures_of(body: OracleBody) -> Measures:
    """Takes a body's measures."""
    v, dominant = body.vertices_m, body.dominant()
    middle = (np.abs(v[:, 0]) < 0.012) & np.isin(dominant, [0, 1, 2, 3])
    spine1 = body.joints_m[body.joint("spine1")]
    neck = body.joints_m[body.joint("neck")] + [0, 0.01, 0.03]
    return Measures(min(v[:, 1].max() / 1.7, 1.1), float(v[middle][:, 1].min()), float(spine1[1]), neck)


def _along(value: Array, start: float, elbow: float, end: float) -> Array:
    """Gives 0 at the limb's root, 1 at its middle joint, 2 at its end."""
    first = (value - start) / (elbow - start)
    return np.where(first < 1, first, 1 + (value - elbow) / (end - elbow))


def _arm_share(body: OracleBody, rest: Array) -> Array:
    shoulder, elbow, wrist = (abs(body.joints_m[body.joint(f"left_{j}"), 0]) for j in ("shoulder", "elbow", "wrist"))
    return _along(np.abs(rest[:, 0]), shoulder, elbow, wrist)


def _leg_share(body: OracleBody, rest: Array) -> Array:
    hip, knee, ankle = (body.joints_m[body.joint(f"left_{j}"), 1] for j in ("hip", "knee", "ankle"))
    return _along(-rest[:, 1], -hip, -knee, -ankle)


def _top_inside(body: OracleBody, garment: Garment) -> Callable[[Array], Array]:
    measures, size = measures_of(body), measures_of(body).size
    shoulder_x = abs(body.joints_m[body.joint("left_shoulder"), 0])
    arm_length = abs(body.joints_m[body.joint("left_wrist"), 0]) - shoulder_x

    def inside(rest: Array) -> Array:
        low = rest[:, 1] - measures.crotch_y - garment.hem_m * size
        sleeve = (garment.sleeve - _arm_share(body, rest)) * arm_length / 2
        if garment.sleeve <= 0:
            sleeve = (shoulder_x + 0.01) - np.abs(rest[:, 0]) + 0.3 * (rest[:, 1] - measures.neck[1] + 0.07).clip(0)
        radii = np.array([1.0, 0.9, 1.15]) * garment.neck_m * size
        neck = (np.linalg.norm((rest - measures.neck) / radii, axis=1) - 1) * garment.neck_m * size
        above = np.where(rest[:, 1] > measures.neck[1] + 0.03, -1.0, 1.0)
        return np.minimum(np.minimum(low, sleeve), np.where(above < 0, -0.05, neck))

    return inside


def _bottom_inside(body: OracleBody, garment: Garment) -> Callable[[Array], Array]:
    measures = measures_of(body)
    hip, ankle = (body.joints_m[body.joint(f"left_{j}"), 1] for j in ("hip", "ankle"))
    top = measures.waist_y + 0.02 if garment.rise_m is None else measures.crotch_y + garment.rise_m * measures.size

    def inside(rest: Array) -> Array:
        leg = (garment.leg - _leg_share(body, rest)) * (hip - ankle) / 2
        return np.minimum(top - rest[:, 1], leg)

    return inside


def _looseness(body: OracleBody, garment: Garment, rest: Array) -> Array:
    size = measures_of(body).size
    if garment.kind == "top":
        share = np.clip(_arm_share(body, rest) / max(garment.sleeve, 0.3), 0, 1)
    elif garment.kind == "bottom":
        share = np.clip(_leg_share(body, rest) / garment.leg, 0, 1) ** 1.5
    else:
        share = np.zeros(len(rest))
    return (garment.loose_m + (garment.end_loose_m - garment.loose_m) * share) * size


def pattern_colours(body: OracleBody, garment: Garment, rest: Array, seed: int) -> Array:
    """Colours [N,3] of a garment's points [N,3], which lie as in T-pose."""
    measures = measures_of(body)
    colours = np.tile(np.asarray(garment.colour), (len(rest), 1))
    second = np.asarray(garment.second)
    x, y, z = rest.T
    chest_z = body.joints_m[body.joint("spine3"), 2]
    along = np.where(np.abs(x) > 0.2, np.abs(x), y) if garment.kind == "top" else y
    front = z > chest_z
    if garment.pattern == "stripes":
        colours[(along / 0.055) % 1 < 0.42] = second
    elif garment.pattern == "checks":
        colours = colours * np.where((x / 0.05) % 1 < 0.4, 0.72, 1.0)[:, None]
        colours = colours * np.where((y / 0.05) % 1 < 0.4, 0.72, 1.0)[:, None]
        colours[(y / 0.05 - 0.15) % 1 < 0.08] = second
    elif garment.pattern == "placket":
        colours[front & (np.abs(x - 0.012) < 0.004)] *= 0.45
        button = front & (np.hypot(x - 0.026, ((y / 0.075) % 1 - 0.5) * 0.075) < 0.009)
        colours[button] = second
    elif garment.pattern == "logo":
        at = np.hypot(x, y - measures.neck[1] + 0.20)
        colours[front & (at < 0.075) & (at > 0.050)] = second
        colours[front & (np.abs(x) < 0.035) & (np.abs(y - measures.neck[1] + 0.20) < 0.012)] = second
    elif garment.pattern == "side_stripe":
        arm = np.abs(x) > 0.24
        outer = arm & (np.abs(z - body.joints_m[body.joint("left_elbow"), 2]) < 0.018) & (y > measures.waist_y)
        ankle = np.abs(body.joints_m[body.joint("left_ankle"), 0])
        outer |= (~arm) & (y < measures.waist_y) & (np.abs(z) < 0.022) & (np.abs(x) > ankle * 0.85)
        colours[outer] = second
    elif garment.pattern == "dots":
        row = np.floor(y / 0.05)
        colours[np.hypot(((x / 0.05 + 0.5 * (row % 2)) % 1 - 0.5), (y / 0.05) % 1 - 0.5) < 0.26] = second
    weave = 1 + 0.05 * noise(rest, 0.012, seed) + 0.05 * noise(rest, 0.3, seed + 1)
    return np.clip(colours * weave[:, None], 0.01, 1)


def _hem_distance(points: Array, triangles: NDArray[np.int64]) -> Array:
    from scipy.spatial import cKDTree  # noqa: PLC0415

    rim = np.unique(boundary_edges(triangles))
    return cKDTree(points[rim]).query(points)[0] if len(rim) else np.full(len(points), np.inf)


def _wear_sheet(posed: PosedBody, garment: Garment, seed: int, detail: int) -> Worn:
    body, posed_m = posed.body, posed.vertices_m
    inside_of = (_top_inside if garment.kind == "top" else _bottom_inside)(body, garment)
    dominant = body.dominant()
    banned = [15, 22, 23, 24, *range(25, 55)]
    banned += [20, 21] if garment.kind != "top" or garment.sleeve < 2 else []
    base_inside = inside_of(body.vertices_m)
    keep = ~np.isin(dominant, banned)
    if garment.kind != "top":
        keep &= ~np.isin(dominant, [13, 14, 16, 17, 18, 19, 12])
    sheet = subdivide(sheet_of(len(posed_m), body.triangles, keep & (base_inside > -0.08)), 1)
    sheet = clip(sheet, inside_of(sheet.mix @ body.vertices_m))
    sheet = subdivide(sheet, max(0, detail - 1))
    rest, body_points = sheet.mix @ body.vertices_m, sheet.mix @ posed_m
    neighbours = averaging(len(rest), sheet.triangles)
    normals = smooth(vertex_normals(body_points, sheet.triangles), neighbours, 10)
    normals /= np.linalg.norm(normals, axis=1, keepdims=True) + 1e-9
    if garment.over_m > 0:  # cloth that hangs free keeps its height
        normals[:, 1] *= 1 - np.clip((measures_of(body).waist_y - rest[:, 1]) / 0.05, 0, 1)
        normals /= np.linalg.norm(normals, axis=1, keepdims=True) + 1e-9
    loose = smooth(_looseness(body, garment, rest), neighbours, 6)
    hang = 1 + 0.7 * np.clip(-normals[:, 1], 0, 1) * (loose > 0.015)
    points = body_points + normals * (loose * hang)[:, None]
    hem = _hem_distance(points, sheet.triangles)
    rounds = (int(400 * min(loose.mean(), 0.05)) + 1) * 4 ** max(0, detail - 1)
    free = np.clip(hem / 0.05, 0, 1)[:, None]  # a hem would shrink: it has no neighbours beyond
    points = points + free * (smooth(points, neighbours, rounds) - points)
    short = np.minimum(0.7 * loose, 0.012) - ((points - body_points) * normals).sum(1)
    points = points + normals * np.clip(short, 0, None)[:, None]
    if garment.over_m > 0:
        points = _hang_over(posed, points, rest, garment.over_m * measures_of(body).size)
    bend = rest + 0.04 * np.stack([noise(rest, 0.3, seed + k) for k in (6, 7, 8)], 1)
    rise = garment.wrinkle_m * (noise(bend, 0.22, seed) + 0.7 * (0.8 - np.abs(noise(bend, 0.17, seed + 5))))
    points = points + normals * np.maximum(rise, -0.5 * loose)[:, None]
    if garment.pattern != "plain":  # crisp edges of stripes and checks
        fine = subdivide(Sheet(identity(len(points), format="csr"), sheet.triangles), 1)
        points, rest, sheet = fine.mix @ points, fine.mix @ rest, Sheet(fine.mix @ sheet.mix, fine.triangles)
    colours = pattern_colours(body, garment, rest, seed)
    hem = _hem_distance(points, sheet.triangles)
    colours[(hem > 0.016) & (hem < 0.020)] *= 0.78
    if garment.extra.get("band"):
        colours[hem < 0.035] = np.asarray(garment.second)
    points, triangles = solidify(points, sheet.triangles, 0.003)
    mesh = Mesh(points, triangles, np.concatenate([colours, colours * 0.55]), garment.surface)
    return Worn([mesh], keep & (base_inside > 0.035))


def _hang_over(posed: PosedBody, points: Array, rest: Array, clear_m: float) -> Array:
    """Pushes cloth below the waist out to ``clear_m`` beyond the convex outline of hips and thighs at its height."""
    measures = measures_of(posed.body)
    legs = posed.vertices_m[np.isin(posed.body.dominant(), [0, 1, 2, 3, 6])]
    axis = posed.joints_m[0, [0, 2]]
    angles = np.linspace(-np.pi, np.pi, 181)
    heights = np.arange(points[:, 1].min() - 0.02, points[:, 1].max(), 0.015)
    facing = np.cos(angles[:, None] - angles)
    table = np.zeros((len(heights), len(angles)))
    for row, height in enumerate(heights):
        near = legs[np.abs(legs[:, 1] - height) < 0.03]
        if len(near) > 10:
            reach = _support_ring(near[:, [0, 2]] - axis, angles)
            table[row] = np.where(facing > 0.2, reach[:, None] / np.maximum(facing, 0.2), np.inf).min(0)
    flat = points[:, [0, 2]] - axis
    radius, angle = np.linalg.norm(flat, axis=1), np.arctan2(flat[:, 1], flat[:, 0])
    row = (points[:, 1] - heights[0]) / 0.015
    column = (angle + np.pi) / (angles[1] - angles[0])
    wanted = map_coordinates(table, [row, column], order=1, mode="nearest") + clear_m
    low = np.clip((measures.waist_y + 0.06 - rest[:, 1]) / 0.06, 0, 1) * (np.abs(rest[:, 0]) < 0.3)
    grown = 1 + low * (np.maximum(wanted, radius) / np.maximum(radius, 1e-6) - 1)
    made = points.copy()
    made[:, [0, 2]] = axis + flat * grown[:, None]
    return made


def _wear_shoes(posed: PosedBody, garment: Garment, seed: int) -> Worn:
    """Lofts a closed shoe along each foot in T-pose from its slices' outlines, and skins it to ankle and toes."""
    body, rows, columns = posed.body, 48, 72
    hidden = np.zeros(len(posed.vertices_m), bool)
    angles = np.linspace(0, 2 * np.pi, columns, endpoint=False)
    circle = np.stack([np.cos(angles), np.sin(angles)], 1)
    meshes = []
    for side in ("left", "right"):
        ankle, toe = body.joint(f"{side}_ankle"), body.joint(f"{side}_foot")
        top = body.joints_m[ankle, 1] + garment.extra.get("shaft_m", 0.01)
        mine = body.weights[:, [ankle, toe, ankle - 3]].sum(1) > 0.5  # the knee is three joints before the ankle
        foot = body.vertices_m[mine & (body.vertices_m[:, 1] < top)]
        ahead = body.joints_m[toe] - body.joints_m[ankle]
        ahead = np.array([ahead[0], 0, ahead[2]]) / np.hypot(ahead[0], ahead[2])
        across = np.array([ahead[2], 0, -ahead[0]])
        local = np.stack([foot @ across, foot[:, 1], foot @ ahead], 1)
        start, stop = local[:, 2].min() - 0.006, local[:, 2].max() + 0.010
        reach = np.zeros((rows, columns))
        middle = np.zeros((rows, 2))
        for row, z in enumerate(np.linspace(start, stop, rows)):
            near = local[np.abs(local[:, 2] - z) < 0.022][:, :2]
            middle[row] = [(near[:, 0].min() + near[:, 0].max()) / 2, 0.03]
            reach[row] = ((near - middle[row]) @ circle.T).max(0)
        for _ in range(3):
            reach[1:-1] = 0.5 * reach[1:-1] + 0.25 * (reach[:-2] + reach[2:])
            middle[1:-1] = 0.5 * middle[1:-1] + 0.25 * (middle[:-2] + middle[2:])
        reach += garment.loose_m
        t = np.linspace(-1, 1, rows)
        reach *= (np.clip(1 - np.abs(t) ** 8, 0.0, 1) ** 0.5)[:, None]  # round heel and toe
        slope = (np.roll(reach, -1, 1) - np.roll(reach, 1, 1)) / (2 * angles[1])
        x = middle[:, :1] + reach * circle[:, 0] - slope * circle[:, 1]
        y = np.maximum(middle[:, 1:] + reach * circle[:, 1] + slope * circle[:, 0], -0.014)
        z = np.broadcast_to(np.linspace(start, stop, rows)[:, None], x.shape)
        points = x[..., None] * across + y[..., None] * np.array([0, 1.0, 0]) + z[..., None] * ahead
        points = points.reshape(-1, 3)
        weights = np.zeros((len(points), 55))
        toes = np.clip((points @ ahead - body.joints_m[toe] @ ahead) / 0.04 + 0.5, 0, 1)
        shaft = np.clip((points[:, 1] - body.joints_m[ankle, 1]) / 0.06, 0, 1) * (1 - toes)
        weights[:, toe], weights[:, ankle - 3], weights[:, ankle] = toes, shaft, 1 - toes - shaft
        colours = np.tile(np.asarray(garment.colour), (len(points), 1))
        colours = colours * (1 + 0.04 * noise(points, 0.05, seed)[:, None])
        colours[points[:, 1] < 0.008] = np.asarray(garment.second)
        triangles = grid_triangles(rows, columns, closed=True)
        meshes.append(Mesh(posed.carry(points, weights), triangles, np.clip(colours, 0, 1), garment.surface))
        hidden |= mine & (body.vertices_m[:, 1] < top - 0.035)
    return Worn(meshes, hidden)


def _support_ring(flat: Array, angles: Array) -> Array:
    """Largest reach of flat points [N,2] in each direction [K]."""
    return (flat @ np.stack([np.cos(angles), np.sin(angles)])).max(0)


def _wear_skirt(posed: PosedBody, garment: Garment, seed: int) -> Worn:
    """Drapes a tube round waist and legs: each ring's support function encloses the body and never tucks in much."""
    body, posed_m = posed.body, posed.vertices_m
    measures, rows, columns = measures_of(body), 60, 220
    legs = np.isin(body.dominant(), [0, 1, 2, 3, 4, 5, 6])
    drop = posed.joints_m[0, 1] - body.joints_m[0, 1]
    top_y = measures.waist_y + 0.045 + drop
    bottom_y = measures.crotch_y + drop - garment.hem_m * measures.size
    angles = np.linspace(0, 2 * np.pi, columns, endpoint=False)
    axis = posed_m[np.isin(body.dominant(), [0])].mean(0)[[0, 2]]
    rng = np.random.default_rng(seed)
    phase = rng.uniform(0, 2 * np.pi, 3)
    previous: Array | None = None
    rings = []
    cloth = posed_m[legs]
    for row, height in enumerate(np.linspace(top_y, bottom_y, rows)):
        share = row / (rows - 1)
        near = np.abs(cloth[:, 1] - height) < 0.03
        margin = (0.012 + (garment.loose_m - 0.012) * min(1.0, share * 4)) * measures.size
        reach = _support_ring(cloth[near][:, [0, 2]] - axis, angles) + margin
        step = (top_y - bottom_y) / (rows - 1)
        if previous is not None:
            reach = np.maximum(reach, previous + step * garment.flare * min(1.0, share * 3))
        for _ in range(12):
            reach = 0.5 * reach + 0.25 * (np.roll(reach, 1) + np.roll(reach, -1))
        previous = reach
        wave = np.sin(garment.folds * angles + phase[0] + 0.6 * np.sin(3 * angles + phase[1]))
        wave += 0.4 * np.sin(2.3 * garment.folds // 1 * angles + phase[2])
        ring = reach + garment.extra.get("fold_m", 0.014) * share**1.2 * wave
        slope = (np.roll(reach, -1) - np.roll(reach, 1)) / (2 * (angles[1] - angles[0]))
        x = ring * np.cos(angles) - slope * np.sin(angles)
        z = ring * np.sin(angles) + slope * np.cos(angles)
        droop = 0.006 * np.sin(2 * angles + phase[2]) * share
        rings.append(np.stack([axis[0] + x, height + droop, axis[1] + z], 1))
    points = np.concatenate(rings)
    flat = np.stack([np.tile(angles, rows), np.repeat(np.arange(rows), columns) / rows], 1)
    ahead = posed.rotations[0] @ [0.0, 0.0, 1.0]
    flat[:, 0] += np.pi / 2 - np.arctan2(ahead[2], ahead[0])
    colours = skirt_colours(garment, flat, points, seed)
    solid, triangles = solidify(points, grid_triangles(rows, columns, closed=True), 0.004)
    mesh = Mesh(solid, triangles, np.concatenate([colours, colours * 0.5]), garment.surface)
    return Worn([mesh], np.zeros(len(posed_m), bool))


def skirt_colours(garment: Garment, flat: Array, points: Array, seed: int) -> Array:
    """flat: [N,2] angle (front = pi/2) and share of the length."""
    colours = np.tile(np.asarray(garment.colour), (len(points), 1))
    second, front = np.asarray(garment.second), np.abs(np.angle(np.exp(1j * (flat[:, 0] - np.pi / 2))))
    if garment.pattern == "placket":
        colours[front < 0.03] *= 0.45
    elif garment.pattern == "stripes":
        colours[(points[:, 1] / 0.055) % 1 < 0.42] = second
    elif garment.pattern == "dots":
        around = flat[:, 0] * 0.2 / 0.05
        row = np.floor(points[:, 1] / 0.05)
        colours[np.hypot((around + 0.5 * (row % 2)) % 1 - 0.5, (points[:, 1] / 0.05) % 1 - 0.5) < 0.26] = second
    colours[(flat[:, 1] > 0.965) & (flat[:, 1] < 0.975)] *= 0.7
    if garment.extra.get("belt"):
        colours[flat[:, 1] < 0.09] = second
    weave = 1 + 0.05 * noise(points, 0.012, seed) + 0.04 * noise(points, 0.3, seed + 1)
    return np.clip(colours * weave[:, None], 0.01, 1)


def _wear_collar(posed: PosedBody, garment: Garment, seed: int) -> Worn:
    """A collar (stands round the neck) or a hood (a thick roll that lies behind it), as a bent tube."""
    body, posed_m = posed.body, posed.vertices_m
    size, columns, around = measures_of(body).size, 120, 24
    hood = garment.kind == "hood"
    angle = np.linspace(0, 2 * np.pi, columns, endpoint=False)  # 0 is the front
    back = 0.5 - 0.5 * np.cos(angle)
    radius = (0.070 + (0.030 if hood else 0.006) * back) * size * garment.extra.get("wide", 1.0)
    thick = (0.016 + 0.030 * back if hood else np.full(columns, 0.007)) * size
    tall = (0.014 + 0.050 * back if hood else np.full(columns, 0.022)) * size
    height = ((-0.035 + 0.050 * back) if hood else (-0.030 + 0.060 * back)) * size
    path = np.stack([np.sin(angle) * radius, height, np.cos(angle) * radius + 0.012 - 0.03 * hood * back], 1)
    turn = np.linspace(0, 2 * np.pi, around, endpoint=False)
    outward = np.stack([np.sin(angle), np.zeros(columns), np.cos(angle)], 1)
    tube = path[:, None] + outward[:, None] * (thick[:, None] * np.cos(turn))[..., None]
    tube = tube + np.array([0, 1.0, 0]) * (tall[:, None] * np.sin(turn))[..., None]
    local = tube.reshape(-1, 3)
    local = local + garment.wrinkle_m * noise(local, 0.05, seed)[:, None] * np.repeat(outward, around, 0)
    points = local @ posed.rotations[body.joint("spine3")].T + posed.joints_m[body.joint("neck")]
    first = np.arange(columns)[:, None] * around + np.arange(around)
    right = ((np.arange(columns) + 1) % columns)[:, None] * around + np.arange(around)
    up, right_up = np.roll(first, -1, 1), np.roll(right, -1, 1)
    triangles = np.concatenate([np.stack(t, -1).reshape(-1, 3) for t in ((first, right, up), (right, right_up, up))])
    colours = np.tile(np.asarray(garment.colour), (len(points), 1)) * (1 + 0.05 * noise(local, 0.02, seed)[:, None])
    return Worn([Mesh(points, triangles, np.clip(colours, 0, 1), garment.surface)], np.zeros(len(posed_m), bool))


def wear(posed: PosedBody, garment: Garment, seed: int, detail: int) -> Worn:
    """Makes one garment for one pose; detail: subdivisions (2 for real pictures)."""
    if garment.kind == "skirt":
        return _wear_skirt(posed, garment, seed)
    if garment.kind == "shoes":
        return _wear_shoes(posed, garment, seed)
    if garment.kind in ("collar", "hood"):
        return _wear_collar(posed, garment, seed)
    return _wear_sheet(posed, garment, seed, detail)
