"""Small differences of a painted bust: what it keeps of the photo's, and what its material adds."""

from __future__ import annotations

import numpy as np
from scipy.spatial import cKDTree

from backend.splats.bound import Kind
from backend.splats.colour import to_lab
from backend.splats.palette_surface import Surface

COARSE_ROUNDS = 3
MOST_DETAIL = 22.0
"""Lightness (Lab) beyond which a difference counts no more: badges and collars are no cliffs."""

CLOTH_DETAIL = 0.7
"""Share of it on clothes, whose weave and prints are no folds."""

FACE_ROUNDS, COLLAR_M = 9, 0.006
"""On the face surroundings are as wide as a brow; so near to a collar skin has no detail."""

CHISEL = 2.0

HEIGHT_M = 1.0e-4
"""Relief of one step of lightness."""

STEEPEST = 0.9
LINE_FROM, LINE_TO = 4.5, 10.0
"""Detail this dark becomes a drawn line."""

STROKE_M = {Kind.HAIR: (0.034, 0.0065), Kind.SKIN: (0.017, 0.0062)}
CLOTH_STROKE_M = (0.040, 0.0120)
"""Length and width of brush strokes."""


def fine_detail(surface: Surface, colours: np.ndarray) -> np.ndarray:
    """[N] lightness (Lab) of display colours [N, 3] against that of the surroundings, softly limited."""
    light = to_lab(colours)[:, 0].astype(np.float64)
    skin = surface.kind == Kind.SKIN
    off = light - surface.smooth(light, COARSE_ROUNDS)
    off[skin] = (light - surface.smooth(light, FACE_ROUNDS))[skin]
    cloth = np.isin(surface.kind, (Kind.CLOTH, Kind.MEMBRANE))
    off[cloth] = CLOTH_DETAIL * surface.smooth(off)[cloth]
    # what mixes with the collar's pixels is no feature
    off[skin] *= 1 - _near_part(surface, skin, surface.kind == Kind.CLOTH, COLLAR_M)
    return MOST_DETAIL * np.tanh(off / MOST_DETAIL)


def engraved(detail: np.ndarray) -> np.ndarray:
    """[N] detail in which dark features count more than light ones: what a chisel would cut in."""
    return np.where(detail < 0, CHISEL * detail, 0.7 * detail)


def tilted(surface: Surface, normals: np.ndarray, height_m: np.ndarray) -> np.ndarray:
    """[N, 3] unit normals of the surface with a relief of heights [N]."""
    arm = surface.positions_m[surface.near] - surface.positions_m[:, None]
    arm = arm - (arm * normals[:, None]).sum(axis=2, keepdims=True) * normals[:, None]
    rise = height_m[surface.near] - height_m[:, None]
    square = (arm**2).sum(axis=2)
    slope = 2 * (arm * rise[..., None]).sum(axis=1) / np.maximum(square.sum(axis=1), 1e-12)[:, None]
    steep = np.linalg.norm(slope, axis=1, keepdims=True)
    slope *= STEEPEST * np.tanh(steep / STEEPEST) / np.maximum(steep, 1e-9)
    out = normals - slope
    return out / np.linalg.norm(out, axis=1, keepdims=True)


def drawn_lines(surface: Surface, detail: np.ndarray) -> np.ndarray:
    """[N] 0..1: lines that a draughtsman would draw: dark features, borders of hair and clothes, deep creases."""
    dark = np.clip((-surface.smooth(detail) - LINE_FROM) / (LINE_TO - LINE_FROM), 0, 1) * (surface.kind == Kind.SKIN)
    crease = np.clip((surface.hollow - 0.35) / 0.4, 0, 1) * np.isin(surface.kind, (Kind.SKIN, Kind.CLOTH))
    return np.maximum(np.maximum(dark, 0.6 * crease), 0.8 * _borders(surface))


def _borders(surface: Surface, reach_m: float = 0.005) -> np.ndarray:
    """[N] 0..1 where another part begins within reach."""
    out = np.zeros(len(surface.kind))
    parts = (surface.kind == Kind.HAIR, surface.kind == Kind.SKIN, np.isin(surface.kind, (Kind.CLOTH, Kind.MEMBRANE)))
    for own, other in ((0, 1), (0, 2), (2, 1)):
        out[parts[own]] = np.maximum(out[parts[own]], _near_part(surface, parts[own], parts[other], reach_m))
    return out


def _near_part(surface: Surface, own: np.ndarray, other: np.ndarray, reach_m: float) -> np.ndarray:
    """[own] 0..1: how near the Gaussians of one part [N] bool are to another's."""
    if not own.any() or not other.any():
        return np.zeros(int(own.sum()))
    places = surface.positions_m
    distance = cKDTree(places[other]).query(places[own], distance_upper_bound=reach_m)[0]
    return np.clip(1.5 - 1.5 * distance / reach_m, 0, 1)


def solid_noise(points_m: np.ndarray, size_m: float, seed: int, octaves: int = 4) -> np.ndarray:
    """[N] smooth noise in space, about -1..1: a sum of random waves, each octave half as large and half as strong.

    Args:
        points_m: [N, 3].
        size_m: Of the largest blobs.
        seed: Of the waves.
        octaves: How many sizes.
    """
    rng = np.random.default_rng(seed)
    out = np.zeros(len(points_m))
    for k in range(octaves):
        waves = rng.standard_normal((10, 3))
        waves *= np.pi / (size_m * 0.5**k) / np.linalg.norm(waves, axis=1, keepdims=True)
        waves *= rng.uniform(0.6, 1.4, (10, 1))
        out += 0.5**k * np.sin(points_m @ waves.T + rng.uniform(0, 2 * np.pi, 10)).sum(axis=1) / np.sqrt(10)
    return out


def veins(points_m: np.ndarray, seed: int) -> np.ndarray:
    """[N] 0..1: thin branching veins of stone."""
    bend = np.stack([solid_noise(points_m, 0.16, seed + k, 4) for k in range(3)], axis=1)
    warped = points_m + 0.035 * bend
    out = np.zeros(len(points_m))
    for k, (size, width, strength) in enumerate(((0.16, 0.055, 1.0), (0.09, 0.05, 0.5))):
        field = solid_noise(warped, size, seed + 10 + k, 2)
        patchy = np.clip(0.55 + 0.6 * solid_noise(points_m, 0.2, seed + 20 + k, 2), 0.1, 1)
        out = np.maximum(out, strength * patchy * np.exp(-((field / width) ** 2)))
    return np.clip(out, 0, 1)


def prints(points_m: np.ndarray, seed: int) -> np.ndarray:
    """[N] height (m) of pressed and smeared clay: thumb-sized dents, finer grain, and faint ridges in some dents."""
    dents = solid_noise(points_m, 0.022, seed, 2)
    grain = solid_noise(points_m, 0.006, seed + 1, 2)
    ridged = np.clip(solid_noise(points_m, 0.03, seed + 2, 1) - 0.5, 0, 1)
    ridges = ridged * np.sin(2 * np.pi * (points_m @ [0.5, 0.8, 0.3] + 0.006 * dents) / 0.0032)
    return 6e-4 * dents + 1.2e-4 * grain + 1.5e-4 * ridges


def pores(points_m: np.ndarray, seed: int) -> np.ndarray:
    """[N] height (m) of thick, uneven skin."""
    return 3.0e-4 * solid_noise(points_m, 0.011, seed, 2) - 3.0e-4 * np.clip(
        solid_noise(points_m, 0.004, seed + 1, 1), 0, 1
    )


def brush_strokes(surface: Surface, colours: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Colours as if laid on with a brush, stroke over stroke.

    Args:
        surface: N Gaussians.
        colours: [N, 3] display sRGB.
        seed: Of places, order and small differences of colour.

    Returns:
        Colours [N, 3] and the height of the paint [N], m.
    """
    rng = np.random.default_rng(seed)
    out, height = colours.copy(), np.zeros(len(colours))
    along = _stroke_directions(surface, colours)
    parts = ((Kind.HAIR,), (Kind.SKIN,), (Kind.CLOTH, Kind.MEMBRANE))
    for kinds in parts:
        rows = np.flatnonzero(np.isin(surface.kind, kinds))
        length, width = STROKE_M.get(kinds[0], CLOTH_STROKE_M)
        if len(rows) < 50:
            continue
        points, normals = surface.positions_m[rows], surface.normals[rows]
        area = surface.area_m2[rows]
        chance = area / area.sum()
        count = min(len(rows), int(3.2 * 2.5 * area.sum() / (length * width)) + 8)
        seeds = np.sort(rng.choice(len(rows), count, replace=False, p=chance))
        order = rng.permutation(count)
        tone = colours[rows][seeds] * rng.normal(1, 0.07, (count, 1)) + rng.normal(0, 0.022, (count, 3))
        _, near = cKDTree(points[seeds]).query(points, k=min(12, count))
        near = near.reshape(len(rows), -1)
        arm = points[:, None] - points[seeds][near]
        axis = along[rows][seeds][near]
        ahead = (arm * axis).sum(axis=2)
        side = np.cross(normals[seeds], along[rows][seeds])[near]
        beside = (arm * side).sum(axis=2)
        ragged = 1 + 0.25 * np.sin(9000 * beside + 3.0 * order[near])
        inside = (abs(ahead) < 0.5 * length * ragged) & (abs(beside) < 0.5 * width)
        inside &= (normals[:, None] * normals[seeds][near]).sum(axis=2) > 0.3
        rank = np.where(inside, order[near] + 1, 0)
        top = rank.argmax(axis=1)
        hit = rank[np.arange(len(rows)), top] > 0
        chosen = near[np.arange(len(rows)), top]
        b = beside[np.arange(len(rows)), top]
        bristle = np.sin(2 * np.pi * b / (0.22 * width) + order[chosen])
        profile = np.clip(1 - (2 * b / width) ** 4, 0, 1) + 0.35 * bristle
        out[rows[hit]] = tone[chosen[hit]] * (1 + 0.03 * bristle[hit, None])
        height[rows[hit]] = 3.5e-4 * profile[hit]
    return np.clip(out, 0, 1), height


def _stroke_directions(surface: Surface, colours: np.ndarray) -> np.ndarray:
    """[N, 3] unit: along strands, and elsewhere along edges of the picture, continued smoothly."""
    light = surface.smooth(to_lab(colours)[:, 0].astype(np.float64))
    arm = surface.positions_m[surface.near] - surface.positions_m[:, None]
    gradient = (arm * (light[surface.near] - light[:, None])[..., None]).sum(axis=1)
    gradient -= (gradient * surface.normals).sum(axis=1, keepdims=True) * surface.normals
    edge = np.cross(surface.normals, gradient)
    size = np.linalg.norm(edge, axis=1, keepdims=True)
    edge = edge / np.maximum(size, 1e-9)
    flow = np.cross(surface.normals, [0.25, 1.0, 0.1])
    flow /= np.maximum(np.linalg.norm(flow, axis=1, keepdims=True), 1e-9)
    strength = size / (np.median(size) + 1e-12)
    tensor = strength[:, :, None] * edge[:, :, None] * edge[:, None] + 0.3 * flow[:, :, None] * flow[:, None]
    hair = surface.kind == Kind.HAIR
    tensor[hair] = 4 * surface.along[hair][:, :, None] * surface.along[hair][:, None]
    tensor = surface.smooth(tensor.reshape(-1, 9), 3).reshape(-1, 3, 3)
    axis = np.linalg.eigh(tensor)[1][:, :, 2]
    axis = axis - (axis * surface.normals).sum(axis=1, keepdims=True) * surface.normals
    return axis / np.maximum(np.linalg.norm(axis, axis=1, keepdims=True), 1e-9)


__all__ = [
    "brush_strokes",
    "drawn_lines",
    "engraved",
    "fine_detail",
    "pores",
    "prints",
    "solid_noise",
    "tilted",
    "veins",
]
