"""What the oracle figures look like: skin, face paint and hair (geometry of its own on the scalp)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tests.oracles.bodies import OracleBody, PosedBody
from tests.oracles.meshes import (
    Array,
    Mesh,
    averaging,
    clip,
    drop_unused,
    grid_triangles,
    icosphere,
    noise,
    sheet_of,
    smooth,
    solidify,
    subdivide,
    vertex_normals,
)

Colour = tuple[float, float, float]
HairKind = Literal["short", "bob", "long", "bun", "curly", "bald_beard"]
HEAD_JOINTS = (15, 22, 23, 24)


@dataclass(frozen=True)
class Face:
    """Colours of the naked figure, display sRGB 0..1."""

    skin: Colour
    lips: Colour
    iris: Colour
    brows: Colour


@dataclass(frozen=True)
class HeadFrame:
    """Rest-pose measures of the head: eyes' middle [3], the distance of the eyes, and lengths relative to it."""

    eyes_m: Array
    unit_m: float  # eye distance / 0.06: 1 for a head of usual size

    def of(self, points_m: Array) -> Array:
        """Gives points relative to the eyes' middle in metres of a usual head, [N,3]."""
        return (points_m - self.eyes_m) / self.unit_m


def head_frame(body: OracleBody) -> HeadFrame:
    """Measures a body's head."""
    eyes = body.joints_m[[body.joint("left_eye"), body.joint("right_eye")]]
    return HeadFrame(eyes.mean(0), float(np.linalg.norm(eyes[0] - eyes[1])) / 0.06)


def _blend(colours: Array, share: Array, target: Array | Colour) -> Array:
    share = np.clip(share, 0, 1)[:, None]
    return colours * (1 - share) + share * np.asarray(target)


def _fall(value: Array, edge: float, width: float) -> Array:
    """1 below ``edge``, 0 above ``edge + width``, smooth between."""
    t = np.clip((value - edge) / width, 0, 1)
    return 1 - t * t * (3 - 2 * t)


def paint_eyeballs(body: OracleBody, rest: Array, eye_share: Array, face: Face) -> Array:
    """Colours [N,3] of the eyes' T-pose points [N,3]; eye_share: [N] how much a point belongs to an eye."""
    colours = np.tile([0.93, 0.92, 0.90], (len(rest), 1))
    for side in ("left_eye", "right_eye"):
        joint = body.joint(side)
        ball = body.vertices_m[body.dominant() == joint]
        direction = rest - (ball.max(0) + ball.min(0)) / 2
        near = (np.linalg.norm(direction, axis=1) < 0.03) & (eye_share > 0.5)
        direction /= np.linalg.norm(direction, axis=1, keepdims=True) + 1e-9
        angle = np.degrees(np.arccos(np.clip(direction[:, 2], -1, 1)))
        painted = _blend(colours, _fall(angle, 26, 3), np.asarray(face.iris) * 0.45)
        painted = _blend(painted, _fall(angle, 21, 4), face.iris)
        painted = _blend(painted, _fall(angle, 10, 3), (0.02, 0.02, 0.02))
        colours[near] = painted[near]
    return colours


def paint_skin(body: OracleBody, rest: Array, lips: Array, lids: Array, face: Face, seed: int) -> Array:
    """Colours skin points: mottling, warm cheeks, lips, lashes, brows, nostrils, nails.

    Args:
        rest: [N,3] T-pose points. lips, lids: [N] the body's paint values at these points.
    """
    frame = head_frame(body)
    at = frame.of(rest)
    side, height, depth = np.abs(at[:, 0]), at[:, 1], at[:, 2]
    base = np.asarray(face.skin)
    mottle = 0.025 * noise(rest, 0.03, seed) + 0.02 * noise(rest, 0.2, seed + 1)
    colours = base * (1 + mottle[:, None])
    on_face = (depth > -0.045) & (np.abs(height) < 0.16) & (side < 0.09)
    blush = np.exp(-(((side - 0.042) / 0.022) ** 2) - ((height + 0.045) / 0.022) ** 2) * on_face
    nose = np.exp(-((side / 0.016) ** 2) - ((height + 0.04) / 0.014) ** 2) * (depth > 0.03)
    colours = _blend(colours, 0.35 * blush + 0.25 * nose, base * [1.02, 0.78, 0.74])
    socket = np.exp(-(((side - 0.031) / 0.017) ** 2) - ((height - 0.004) / 0.013) ** 2) * on_face
    colours = _blend(colours, 0.35 * socket, base * [0.74, 0.64, 0.62])
    mouth = (lips - 0.38) / 0.22 * on_face * (height < -0.045)
    colours = _blend(colours, mouth, face.lips)
    seam = np.exp(-((np.abs(lips - 0.95) / 0.05) ** 2)) * on_face * (height < -0.045) * (depth < 0.028)
    colours = _blend(colours, 0.6 * seam, np.asarray(face.lips) * 0.35)
    nostril = np.exp(-(((side - 0.0075) / 0.0035) ** 2) - ((height + 0.0505) / 0.0035) ** 2) * (depth > 0.02)
    colours = _blend(colours, 0.7 * nostril, base * 0.3)
    along = np.clip((side - 0.012) / 0.040, 0, 1)
    line = 0.0195 + 0.008 * np.sin(np.pi * np.clip(along * 1.15, 0, 1)) - 0.005 * along
    inside = _fall(np.abs(along - 0.5), 0.44, 0.06) * (side > 0.010) * (side < 0.055) * (depth > -0.03)
    brow = _fall(np.abs(height - line), 0.0026, 0.0030) * inside
    brow *= 0.8 + 0.2 * noise(rest, 0.006, seed + 2, (0.5, 2, 1))
    colours = _blend(colours, brow, face.brows)
    for joint in (body.joint("left_eye"), body.joint("right_eye")):
        ball = body.vertices_m[body.dominant() == joint]
        centre, radius = (ball.max(0) + ball.min(0)) / 2, np.ptp(ball, axis=0).min() / 2
        distance = np.linalg.norm(rest - centre, axis=1)
        rim = _fall(distance, radius * 1.07, radius * 0.09) * _fall(-lids, -0.35, 0.1) * (depth > -0.02)
        upper = 0.55 + 0.45 * np.clip((rest[:, 1] - centre[1]) / radius * 3, -1, 1)
        colours = _blend(colours, rim * upper, np.asarray(face.brows) * 0.35)
    return np.clip(colours, 0.01, 1)


def skin_meshes(posed: PosedBody, hidden: NDArray[np.bool_], face: Face, seed: int, detail: int) -> list[Mesh]:
    """Draws what clothes leave uncovered.

    Args:
        hidden: [V] vertices under clothes. detail: subdivisions (2 for real pictures).
    """
    body, posed_m = posed.body, posed.vertices_m
    eye = np.isin(body.dominant(), [23, 24])
    made = []
    for keep, surface in ((~hidden & ~eye, "skin"), (eye, "eye")):
        sheet = subdivide(sheet_of(len(posed_m), body.triangles, keep), detail)
        rest = sheet.mix @ body.vertices_m
        if surface == "eye":
            colours = paint_eyeballs(body, rest, sheet.mix @ eye.astype(float), face)
        else:
            colours = paint_skin(body, rest, sheet.mix @ body.lips, sheet.mix @ body.lids, face, seed)
        made.append(Mesh(sheet.mix @ posed_m, sheet.triangles, colours, "eye" if surface == "eye" else "skin"))
    return made


def _hair_colours(points: Array, base: Colour, seed: int) -> Array:
    streak = 0.16 * noise(points, 0.012, seed, (1, 6, 1)) + 0.12 * noise(points, 0.05, seed + 1)
    return np.clip(np.asarray(base) * (1 + streak[:, None]), 0.01, 1)


def _scalp(at: Array, front_m: float, nape_m: float) -> Array:
    """Positive where hair grows. at: head-frame points [N,3]; front_m: hair line above the eyes; nape_m: below them."""
    above = at[:, 1] - front_m - 0.15 * np.abs(at[:, 0])
    behind = np.minimum(-at[:, 2] - 0.095, at[:, 1] + nape_m)
    return np.maximum(above, behind)


def _cap(posed: PosedBody, thickness_m: float, lump_m: float, colour: Colour, seed: int,
         line: tuple[float, float], detail: int) -> Mesh:  # fmt: skip
    body, posed_m = posed.body, posed.vertices_m
    frame = head_frame(body)
    unit = frame.unit_m
    head = np.isin(body.dominant(), (*HEAD_JOINTS, 12)) & ~np.isin(body.dominant(), (23, 24))
    at = frame.of(body.vertices_m)
    sheet = sheet_of(len(posed_m), body.triangles, head & (_scalp(at, *line) > -0.03))
    sheet = subdivide(sheet, detail)
    rest = sheet.mix @ body.vertices_m
    sheet = clip(sheet, _scalp(frame.of(rest), *line) + 0.004 * noise(rest, 0.03, seed))
    rest, points = sheet.mix @ body.vertices_m, sheet.mix @ posed_m
    inside = np.clip(_scalp(frame.of(rest), *line) / 0.03, 0, 1)
    neighbours = averaging(len(points), sheet.triangles)
    points = smooth(points, neighbours, 12)
    normals = smooth(vertex_normals(points, sheet.triangles), neighbours, 6)
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    grown = 0.006 + (thickness_m - 0.006) * inside + lump_m * noise(rest, 0.05, seed + 3, (1, 1.8, 1)) * inside
    grown += 0.15 * lump_m * noise(rest, 0.01, seed + 4, (0.6, 4, 1))
    points = points + normals * grown[:, None] * unit
    points, triangles = solidify(points, sheet.triangles, 0.004)
    colours = _hair_colours(rest, colour, seed)
    return Mesh(points, triangles, np.concatenate([colours, colours * 0.7]), "hair")


def _curtain(posed: PosedBody, bottom_m: float, opening: float, colour: Colour, seed: int) -> Mesh:
    """Hair that hangs from the temples round the back, made in T-pose and skinned: head above the chin, chest below.

    Args:
        bottom_m: how far below the eyes it ends. opening: half angle of the face's opening, radians from the front.
    """
    body = posed.body
    frame, unit = head_frame(body), head_frame(body).unit_m
    rows, columns = 40, 140
    allowed = ~np.isin(body.dominant(), (18, 19, 20, 21)) & (np.abs(body.vertices_m[:, 0]) < 0.24)
    at = frame.of(body.vertices_m[allowed])
    angle = np.linspace(-np.pi + opening, np.pi - opening, columns)  # 0 points to the back
    direction = np.stack([np.sin(angle), -np.cos(angle)], 1)
    centre = np.array([0.0, -0.075])
    previous = np.full(columns, 0.0)
    rest = np.zeros((rows, columns, 3))
    for row, height in enumerate(np.linspace(0.085, -bottom_m, rows)):
        near = np.abs(at[:, 1] - height) < 0.018
        reach = ((at[near][:, [0, 2]] - centre) @ direction.T).max(0) if near.any() else previous
        reach = np.minimum(reach, 0.108 + 0.045 * np.clip(np.cos(angle), 0, 1) ** 2)  # over the back, not the shoulders
        kernel = np.hanning(15) / np.hanning(15).sum()
        reach = np.convolve(np.pad(reach, 7, "edge"), kernel, "valid") + 0.016
        previous = np.maximum(reach, previous * 0.985)
        lock = 1 + 0.03 * np.sin(13 * angle + 2 * np.sin(3 * angle + seed) + 6 * height) * min(1.0, row / 8)
        flip = 1 + 0.10 * max(0.0, row / rows - 0.8)
        planar = centre + direction * (previous * lock * flip)[:, None]
        wave = 0.004 * np.sin(40 * angle + seed)
        rest[row] = np.stack([planar[:, 0], np.full(columns, height) + wave * (row == rows - 1), planar[:, 1]], 1)
    points = rest.reshape(-1, 3) * unit + frame.eyes_m
    points, triangles = solidify(points, grid_triangles(rows, columns, closed=False), 0.013 * unit)
    below = np.clip((-(points[:, 1] - frame.eyes_m[1]) / unit - 0.09) / 0.10, 0, 1)
    weights = np.zeros((len(points), 55))
    weights[:, body.joint("head")] = 1 - below
    weights[:, body.joint("spine3")] = below * 0.8
    weights[:, body.joint("neck")] = below * 0.2
    return Mesh(posed.carry(points, weights), triangles, _hair_colours(points, colour, seed), "hair")


def _balls(posed: PosedBody, centres: Array, radii: Array, colour: Colour, seed: int) -> Mesh:
    """Lumpy balls fixed to the head: curls (many) or a bun (one). centres [N,3] in T-pose, radii [N] metres."""
    sphere, faces = icosphere(2 if len(centres) > 3 else 4)
    points = (centres[:, None] + sphere[None] * radii[:, None, None]).reshape(-1, 3)
    lump = 1 + 0.10 * noise(points, float(radii.mean()) * 0.8, seed)[:, None]
    middle = np.repeat(centres, len(sphere), 0)
    points = middle + (points - middle) * lump
    triangles = np.concatenate([faces + k * len(sphere) for k in range(len(centres))])
    weights = np.zeros((len(points), 55))
    weights[:, posed.body.joint("head")] = 1
    return Mesh(posed.carry(points, weights), triangles, _hair_colours(points, colour, seed), "hair")


def _curls(posed: PosedBody, colour: Colour, seed: int) -> Mesh:
    body = posed.body
    rng, frame = np.random.default_rng(seed), head_frame(body)
    grows = (_scalp(frame.of(body.vertices_m), 0.055, 0.09) > 0.0) & np.isin(body.dominant(), HEAD_JOINTS)
    candidates = np.flatnonzero(grows)
    chosen: list[int] = []
    for index in rng.permutation(candidates):
        spread = body.vertices_m[chosen] - body.vertices_m[index] if chosen else np.ones((1, 3))
        if np.linalg.norm(spread, axis=1).min() > 0.016 * frame.unit_m:
            chosen.append(int(index))
    normals = vertex_normals(body.vertices_m, body.triangles)[chosen]
    radii = rng.uniform(0.016, 0.025, len(chosen)) * frame.unit_m
    lift = rng.uniform(0.010, 0.034, (len(chosen), 1)) * frame.unit_m
    return _balls(posed, body.vertices_m[chosen] + normals * lift, radii, colour, seed)


def _beard(posed: PosedBody, colour: Colour, seed: int, detail: int) -> Mesh:
    body, posed_m = posed.body, posed.vertices_m
    frame = head_frame(body)

    def grows(at: Array, lips: Array) -> Array:
        face = np.minimum(-0.047 - at[:, 1] + 0.25 * np.abs(at[:, 0]), at[:, 2] + 0.045)
        low = at[:, 1] + 0.155
        return np.minimum(np.minimum(face, low), 0.02 - 0.12 * lips)

    head = np.isin(body.dominant(), (15, 22, 12))
    inner = np.zeros(len(posed_m), bool)  # the mouth bag lies far behind the lips
    at = frame.of(body.vertices_m)
    inner |= (np.abs(at[:, 0]) < 0.03) & (at[:, 2] < 0.005) & (at[:, 1] > -0.105) & (at[:, 1] < -0.03)
    sheet = sheet_of(len(posed_m), body.triangles, head & ~inner & (grows(at, body.lips) > -0.03))
    sheet = subdivide(sheet, detail)
    value = grows(frame.of(sheet.mix @ body.vertices_m), sheet.mix @ body.lips)
    sheet = drop_unused(clip(sheet, value))
    rest, points = sheet.mix @ body.vertices_m, sheet.mix @ posed_m
    value = np.clip(grows(frame.of(rest), sheet.mix @ body.lips) / 0.012, 0, 1)
    normals = vertex_normals(points, sheet.triangles)
    normals = smooth(normals, averaging(len(points), sheet.triangles), 8)
    grown = (0.002 + 0.014 * value) * frame.unit_m + 0.0025 * noise(rest, 0.012, seed) * value
    return Mesh(points + normals * grown[:, None], sheet.triangles, _hair_colours(rest, colour, seed), "hair")


def hair_meshes(posed: PosedBody, kind: HairKind, colour: Colour, seed: int, detail: int) -> list[Mesh]:
    """Makes a figure's hair."""
    body, frame = posed.body, head_frame(posed.body)
    if kind == "bald_beard":
        return [_beard(posed, colour, seed, detail)]
    if kind == "curly":
        under = _cap(posed, 0.014, 0.002, colour, seed, (0.055, 0.09), detail)
        return [under, _curls(posed, colour, seed)]
    if kind == "short":
        return [_cap(posed, 0.020, 0.004, colour, seed, (0.052, 0.085), detail)]
    if kind == "bun":
        skull = body.vertices_m[np.isin(body.dominant(), HEAD_JOINTS)]
        top = np.array([0.0, skull[:, 1].max(), frame.eyes_m[2] - 0.14 * frame.unit_m])
        bun = _balls(posed, top[None], np.array([0.052 * frame.unit_m]), colour, seed + 9)
        return [_cap(posed, 0.013, 0.0015, colour, seed, (0.056, 0.08), detail), bun]
    bottom, opening = (0.135, 0.95) if kind == "bob" else (0.34, 1.05)
    cap = _cap(posed, 0.024, 0.002, colour, seed, (0.042 if kind == "bob" else 0.052, 0.06), detail)
    return [cap, _curtain(posed, bottom, opening, colour, seed)]
