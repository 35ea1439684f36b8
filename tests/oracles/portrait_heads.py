"""Heads of known identity in several styles, seen from anywhere: the truth behind the portrait's oracle models.

A head is a bent sphere with nose, ears and hair, one unit high around the origin, Y up, facing +Z. Ten numbers within
-1..1 are its identity: how it is shaped, and where and how large the features of its face are. A style colours the
same head; its colours are baked (light stands still in the head's frame), and none of the styles is a Gaussian cloud
of colours: two tones, a ramp with highlights, skin with spots, stone with thin veins. Imports nothing of the project
but the oracles' own mesh tools.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from tests.oracles.meshes import Array, Ints, icosphere, noise, vertex_normals

Floats = NDArray[np.floating[Any]]

UNIT_M = 0.25
"""What one unit stands for: the height of a head."""

TRAITS = (
    "eye spacing", "eye size", "brow", "mouth width", "mouth height", "hairline", "head width", "beard", "hair shade",
    "nose",
)  # fmt: skip
STYLES = ("photo", "toon", "gold", "green", "marble", "clay", "patina")
HELD_OUT = "patina"
"""The style that was never looked at while method and settings were made."""

RADIUS, FOV_DEG, ELEVATIONS_DEG = 2.5, 27.0, (0.0, 12.0)
"""Camera of all pictures: distance in units, vertical angle of view, and the elevations at which pictures are made."""

GROUND = (0.5, 0.5, 0.5)
"""The plain background of every picture."""

DETAIL = 5
LIGHT = np.array([0.45, 0.55, 0.70]) / np.linalg.norm([0.45, 0.55, 0.70])


@dataclass(frozen=True)
class Head:
    """One person.

    Attributes:
        traits: [10] within -1..1, see `TRAITS`.
        points: [V, 3] units.
        triangles: [T, 3].
        normals: [V, 3] unit.
    """

    traits: Array
    points: Array
    triangles: Ints
    normals: Array


def draw_traits(count: int, seed: int) -> Array:
    """Identities [count, 10]: corners and insides of the cube alike, so that two are rarely near."""
    rng = np.random.default_rng([seed, 88])
    return np.clip(np.sin(rng.uniform(-np.pi / 2, np.pi / 2, (count, len(TRAITS)))), -1, 1)


def make_head(traits: Array) -> Head:
    """The head of an identity [10]; zeros give the mean head."""
    sphere, triangles = _sphere()
    q = np.asarray(traits, float)
    x, y, z = sphere.T
    points = sphere * [0.365 + 0.02 * q[6], 0.5, 0.43]
    jaw = _rise(-y, 0.1, 0.95)
    points[:, 0] *= 1 - 0.22 * jaw
    points[:, 2] += 0.05 * jaw * _rise(z, -0.2, 0.6) - 0.05 * jaw * _rise(-z, 0.0, 0.6)
    nose = np.exp(-((x / 0.16) ** 2) - ((y + 0.22) / 0.17) ** 2) * (z > 0)
    points[:, 2] += (0.075 + 0.03 * q[9]) * nose
    socket = np.exp(-(((np.abs(x) - 0.38) / 0.16) ** 2) - ((y - 0.06) / 0.10) ** 2) * (z > 0)
    points[:, 2] -= 0.018 * socket
    ear = np.exp(-(((z + 0.05) / 0.14) ** 2) - ((y - 0.02) / 0.16) ** 2)
    points[:, 0] += np.sign(x) * 0.045 * ear * _rise(np.abs(x), 0.7, 0.95)
    points += sphere * (0.016 * hair_share(points, q))[:, None]
    return Head(q, points, triangles, vertex_normals(points, triangles))


@cache
def _sphere() -> tuple[Array, Ints]:
    return icosphere(DETAIL)


def _rise(value: Array, low: float, high: float) -> Array:
    t = np.clip((value - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


# ---- what is where ---------------------------------------------------------------------------------------------------


def hair_share(points: Array, q: Array) -> Array:
    """How much hair there is [V], 0..1: above the hair line in front, down to the neck behind."""
    behind = _rise(-points[:, 2], -0.12, 0.16)
    line = (0.27 - 0.07 * q[5]) * (1 - behind) + (-0.30) * behind
    return _rise(points[:, 1] - line, -0.012, 0.012)


def features(points: Array, q: Array) -> dict[str, Array]:
    """Shares [V], 0..1, of what is painted on a face: white, iris, brow, lips, beard, hair, nostril."""
    x, y, z = points.T
    side, front = np.abs(x), _rise(z, 0.08, 0.16)
    spacing, size = 0.150 + 0.032 * q[0], 0.068 + 0.020 * q[1]
    eye = np.hypot((side - spacing) / size, (y - 0.035) / (0.75 * size))
    iris = np.hypot(side - spacing, y - 0.035) / (0.46 * size)
    thick = 0.024 + 0.014 * q[2]
    brow_y = 0.035 + 0.75 * size + 0.052 + 0.02 * (1 - ((side - spacing) / 0.09) ** 2)
    brow = _fall(np.abs(y - brow_y) / thick) * _fall(np.abs(side - spacing) / 0.085)
    wide, tall = 0.120 + 0.045 * q[3], 0.034 + 0.017 * q[4]
    lips = np.hypot(x / wide, (y + 0.285) / tall)
    low = _rise(-y, 0.17, 0.21) * _rise(z, -0.02, 0.06)
    beard = low * _rise(np.full_like(y, q[7]), 0.0, 0.25)
    nostril = np.exp(-(((side - 0.035) / 0.02) ** 2) - ((y + 0.155) / 0.018) ** 2)
    return {
        "hair": hair_share(points, q),
        "beard": beard * (1 - _fall(lips)),
        "white": _fall(eye) * front,
        "iris": _fall(iris) * front,
        "brow": brow * front,
        "lips": _fall(lips) * front,
        "nostril": nostril * front,
    }


def _fall(distance: Array) -> Array:
    return 1 - _rise(distance, 0.85, 1.15)


# ---- styles ----------------------------------------------------------------------------------------------------------


def colours(head: Head, style: str) -> Array:
    """Colours [V, 3] 0..1, display sRGB, of a head in one of `STYLES`."""
    parts = features(head.points, head.traits)
    lit = np.clip(head.normals @ LIGHT, 0, 1)
    seen = _PAINTERS[style](head, parts, lit)
    return np.clip(seen, 0, 1)


def _mixed(base: Array, layers: list[tuple[Array, Array]]) -> Array:
    for share, colour in layers:
        base = base + share[:, None] * (np.asarray(colour) - base)
    return base


def _layers(parts: dict[str, Array], hair: Array, lips: Array, white: Array, iris: Array) -> list[tuple[Array, Array]]:
    return [
        (parts["hair"], hair), (0.85 * parts["beard"], hair), (0.6 * parts["nostril"], 0.35 * lips),
        (parts["brow"], 0.8 * hair), (parts["lips"], lips), (parts["white"], white), (parts["iris"], iris),
    ]  # fmt: skip


def _shade(head: Head) -> float:
    return 0.5 + 0.5 * float(head.traits[8])


def _photo(head: Head, parts: dict[str, Array], lit: Array) -> Array:
    hair = np.array([0.14, 0.10, 0.08]) + _shade(head) * np.array([0.45, 0.33, 0.16])
    skin = np.tile([0.80, 0.62, 0.52], (len(lit), 1)) * (1 + 0.03 * noise(head.points, 0.15, 1))[:, None]
    strands = 1 + 0.10 * noise(head.points, 0.05, 2, (1, 5, 1))
    painted = _mixed(
        skin,
        _layers(parts, hair * strands[:, None], np.array([0.66, 0.34, 0.32]), np.array([0.92, 0.91, 0.9]),
                np.array([0.16, 0.12, 0.10])),
    )  # fmt: skip
    return painted * (0.60 + 0.42 * lit)[:, None]


def _toon(head: Head, parts: dict[str, Array], lit: Array) -> Array:
    """Two tones per material with a hard edge between them."""
    hair = np.array([0.22, 0.10, 0.45]) + _shade(head) * np.array([0.60, 0.10, -0.35])
    skin = np.tile([1.0, 0.76, 0.50], (len(lit), 1))
    painted = _mixed(
        skin,
        _layers(parts, hair, np.array([0.90, 0.22, 0.25]), np.array([1.0, 1.0, 1.0]), np.array([0.05, 0.08, 0.20])),
    )
    tone = np.where(_rise(lit, 0.30, 0.36)[:, None] > 0.5, 1.0, [0.70, 0.58, 0.72])
    return painted * tone


def _gold(head: Head, parts: dict[str, Array], lit: Array) -> Array:
    """A ramp from brown over gold to nearly white highlights; features are engraved."""
    wave = lit + 0.06 * noise(head.points, 0.22, 4)
    ramp = np.stack(
        [np.interp(wave, [0, 0.35, 0.75, 0.97], c) for c in ([0.30, 0.72, 0.93, 1.0], [0.17, 0.48, 0.74, 0.98],
                                                            [0.03, 0.08, 0.22, 0.85])], 1
    )  # fmt: skip
    dark = 1 - np.clip(
        0.35 * (1.2 - _shade(head)) * (parts["hair"] + parts["beard"]) + 0.55 * parts["brow"] + 0.45 * parts["lips"]
        + 0.25 * parts["white"] + 0.6 * parts["iris"] + 0.4 * parts["nostril"], 0, 0.85
    )  # fmt: skip
    return ramp * dark[:, None]


def _green(head: Head, parts: dict[str, Array], lit: Array) -> Array:
    """Green skin with dark spots, yellow eyes."""
    spots = _rise(noise(head.points, 0.14, 6), 1.0, 1.3)[:, None]
    skin = np.array([0.42, 0.66, 0.22]) * (1 - spots) + np.array([0.16, 0.36, 0.12]) * spots
    hair = np.array([0.10, 0.10, 0.10]) + _shade(head) * np.array([0.36, 0.16, 0.05])
    painted = _mixed(
        skin,
        _layers(parts, hair, np.array([0.45, 0.16, 0.22]), np.array([0.95, 0.85, 0.25]), np.array([0.25, 0.05, 0.02])),
    )
    return painted * (0.55 + 0.50 * lit)[:, None]


def _marble(head: Head, parts: dict[str, Array], lit: Array) -> Array:
    """White stone with thin dark veins."""
    vein = np.exp(-((noise(head.points, 0.45, 8) + 0.4 * noise(head.points, 0.12, 9)) ** 2) / 0.02)[:, None]
    stone = np.array([0.93, 0.92, 0.89]) * (1 - 0.75 * vein) + 0.75 * vein * np.array([0.38, 0.42, 0.50])
    return stone * (_carved(head, parts) * (0.62 + 0.40 * lit))[:, None]


def _clay(head: Head, parts: dict[str, Array], lit: Array) -> Array:
    """Burnt clay, with glaze on hair and features."""
    skin = np.tile([0.74, 0.40, 0.26], (len(lit), 1)) * (1 + 0.06 * noise(head.points, 0.06, 10))[:, None]
    hair = np.array([0.22, 0.20, 0.30]) + _shade(head) * np.array([0.40, 0.34, 0.22])
    painted = _mixed(
        skin,
        _layers(parts, hair, np.array([0.42, 0.18, 0.14]), np.array([0.92, 0.86, 0.78]), np.array([0.14, 0.16, 0.30])),
    )
    return painted * (0.62 + 0.42 * lit)[:, None]


def _patina(head: Head, parts: dict[str, Array], lit: Array) -> Array:
    """Copper of which a part has turned green: two colours that share no middle."""
    turned = _rise(noise(head.points, 0.35, 12) - 0.8 * head.points[:, 1], -0.15, 0.15)[:, None]
    copper = np.array([0.72, 0.38, 0.20]) * (1 - turned) + np.array([0.30, 0.68, 0.60]) * turned
    return copper * (_carved(head, parts) * (0.60 + 0.45 * lit))[:, None]


def _carved(head: Head, parts: dict[str, Array]) -> Array:
    """Brightness [V] of one material in which the features are carved."""
    cut = (
        0.45 * (1.15 - _shade(head)) * (parts["hair"] + parts["beard"]) + 0.5 * parts["brow"] + 0.45 * parts["lips"]
        + 0.2 * parts["white"] + 0.6 * parts["iris"] + 0.4 * parts["nostril"]
    )  # fmt: skip
    return 1 - np.clip(cut, 0, 0.8)


_PAINTERS = {
    "photo": _photo, "toon": _toon, "gold": _gold, "green": _green, "marble": _marble, "clay": _clay,
    "patina": _patina,
}  # fmt: skip


# ---- pictures --------------------------------------------------------------------------------------------------------


def world_to_camera(azimuth_deg: float, elevation_deg: float = 0.0, radius: float = RADIUS) -> Array:
    """w2c [4, 4], OpenCV axes, of a camera that looks at the origin; azimuth 0 sees the face, 90 its left side (+X)."""
    a, e = np.radians([azimuth_deg, elevation_deg])
    back = np.array([np.sin(a) * np.cos(e), np.sin(e), np.cos(a) * np.cos(e)])
    right = np.array([np.cos(a), 0.0, -np.sin(a)])
    w2c = np.eye(4)
    w2c[:3, :3] = np.stack([right, np.cross(-back, right), -back])
    w2c[2, 3] = radius
    return w2c


def focal_px(size_px: int, fov_deg: float = FOV_DEG) -> float:
    """Focal length of square pictures."""
    return size_px / (2 * np.tan(np.radians(fov_deg) / 2))


def picture(
    head: Head, painted: Array, azimuth_deg: float, elevation_deg: float = 0.0, size_px: int = 64, samples: int = 2
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """What a camera sees of a painted head.

    Args:
        head: Its surface.
        painted: [V, C] values of its points: colours of one style, or of several side by side.
        azimuth_deg: Of the camera.
        elevation_deg: Of the camera.
        size_px: Side.
        samples: Per pixel, along each axis.

    Returns:
        Values [C, H, W], straight (not multiplied with the cover), and the cover [H, W] 0..1.
    """
    w2c = world_to_camera(azimuth_deg, elevation_deg)
    local = head.points @ w2c[:3, :3].T + w2c[:3, 3]
    side, focal = size_px * samples, focal_px(size_px) * samples
    points = np.stack([*(local[:, :2] / local[:, 2:] * focal + side / 2).T, local[:, 2]], 1)
    values, hit = _rasterise(points, head.triangles, np.ascontiguousarray(painted, np.float32), side)
    cells = (size_px, samples, size_px, samples)
    cover = hit.reshape(cells).sum((1, 3)).astype(np.float32)
    sums = values.reshape(*cells, -1).sum((1, 3))
    straight = sums / np.maximum(cover, 1)[..., None]
    return straight.transpose(2, 0, 1).astype(np.float32), cover / samples**2


def over_ground(straight: Floats, cover: Floats, ground: tuple[float, ...] = GROUND) -> NDArray[np.float32]:
    """Pictures [..., 3, H, W] before the plain background."""
    back = np.asarray(ground, np.float32)[:, None, None]
    return (straight * cover[..., None, :, :] + back * (1 - cover[..., None, :, :])).astype(np.float32)


@njit(cache=True)
def _rasterise(points, triangles, painted, side):  # type: ignore[no-untyped-def] # noqa: ANN001, ANN202
    channels = painted.shape[1]
    values = np.zeros((side, side, channels), np.float32)
    hit = np.zeros((side, side), np.uint8)
    nearest = np.full((side, side), np.inf)
    for t in range(len(triangles)):
        a, b, c = triangles[t]
        ax, ay, az = points[a]
        bx, by, bz = points[b]
        cx, cy, cz = points[c]
        area = (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)
        if area >= -1e-12:  # a closed surface shows its outer side only
            continue
        left, right = max(int(np.floor(min(ax, bx, cx))), 0), min(int(np.ceil(max(ax, bx, cx))), side - 1)
        top, bottom = max(int(np.floor(min(ay, by, cy))), 0), min(int(np.ceil(max(ay, by, cy))), side - 1)
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
                hit[row, column] = 1
                for k in range(channels):
                    values[row, column, k] = wa * painted[a, k] + wb * painted[b, k] + wc * painted[c, k]
    return values, hit
