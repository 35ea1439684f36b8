"""The fixed studio that a painted bust stands in, and how a material answers to it.

Gaussians of degree 0 look the same from everywhere, so what would follow the viewer is seen as by somebody who stands
in front of each point, a little towards the front of the bust.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from backend.splats.bound import Kind
from backend.splats.palette_surface import Surface
from blender_addon.shared.styles import Detail, Material


@dataclass(frozen=True)
class Lamp:
    """A soft lamp.

    Attributes:
        direction: Towards it; +x is the subject's left, +y up, +z the front.
        strength: Of full light.
        behind: It stands behind, for the rim.
    """

    direction: tuple[float, float, float]
    strength: float
    behind: bool = False


STUDIO = (
    Lamp((-0.62, 0.60, 0.52), 1.0),
    Lamp((0.85, 0.10, 0.50), 0.20),
    Lamp((0.72, 0.42, -0.72), 0.70, behind=True),
    Lamp((-0.85, 0.35, -0.60), 0.45, behind=True),
)
"""Key, fill and two lamps behind."""

SKY_STRENGTH, FLOOR_SHARE = 0.30, 0.30
"""Light from all around; from below comes this share of it."""

FRONT_SHARE = 0.45
SHADED_SKY = 0.12
"""Of a hollow's light that always remains."""


@dataclass(frozen=True)
class Light:
    """What falls on N Gaussians, linear; 1 is full light.

    Attributes:
        diffuse: [N].
        highlight: [N].
        mirror: [N] brightness of the reflected room.
    """

    diffuse: np.ndarray
    highlight: np.ndarray
    mirror: np.ndarray


@dataclass(frozen=True)
class Lit:
    """What the lamps reach, which is the same for all materials: [L, N] 0..1 per lamp of `STUDIO`."""

    reached: np.ndarray

    @classmethod
    def of(cls, surface: Surface) -> Lit:
        """Look from every lamp."""
        return cls(np.stack([surface.reached(_direction(lamp)) for lamp in STUDIO]))


def studio_light(
    surface: Surface, lit: Lit, normals: np.ndarray, material: Material, detail: Detail, hair_gloss: float
) -> Light:
    """The studio on a material.

    Args:
        surface: The bust.
        lit: What the lamps reach.
        normals: [N, 3] unit, with the relief.
        material: Answer to light.
        detail: For steps of light.
        hair_gloss: Strength of the highlight along strands.
    """
    view = _viewers(normals)
    sky = 1 - material.occlusion * (1 - np.clip(surface.sky, 0, 1))
    up = 0.5 + 0.5 * normals[:, 1]
    diffuse = SKY_STRENGTH * (FLOOR_SHARE + (1 - FLOOR_SHARE) * up) * np.maximum(sky, SHADED_SKY)
    highlight = np.zeros(len(normals))
    hair = surface.kind == Kind.HAIR
    for lamp, reached in zip(STUDIO, lit.reached, strict=True):
        direction = _direction(lamp)
        strength = lamp.strength * (0.45 + material.rim if lamp.behind else 1.0)
        free = 1 - material.shadow * (1 - reached)
        cosine = np.clip((normals @ direction + material.wrap) / (1 + material.wrap), 0, 1)
        fall = _steps(cosine * free, detail.tones) if detail.tones else cosine * free
        diffuse = diffuse + strength * fall
        middle = view + direction
        middle /= np.linalg.norm(middle, axis=1, keepdims=True)
        shine = material.gloss * np.clip((normals * middle).sum(axis=1), 0, 1) ** material.sharpness
        across = (surface.along * middle).sum(axis=1)
        strand = hair_gloss * np.sqrt(np.clip(1 - across**2, 0, 1)) ** (2 * material.sharpness)
        facing = np.clip(3 * cosine, 0, 1)
        highlight += strength * free * facing * np.where(hair, 0.4 * shine + 0.6 * strand, shine)
    seen = np.maximum(sky, SHADED_SKY) if material.occlusion else 1.0
    return Light(diffuse, highlight, _room(normals, view) * seen)


def _viewers(normals: np.ndarray) -> np.ndarray:
    """[N, 3] unit: from each point to who looks at it, on its level and a little to the front."""
    level = normals * [1, 0, 1]
    towards = level + FRONT_SHARE * np.clip(normals[:, 2:3] + 0.4, 0, 1) * np.array([0, 0, 1.0])
    towards = towards + np.array([0, 0, 1e-3])
    return towards / np.maximum(np.linalg.norm(towards, axis=1, keepdims=True), 1e-9)


def _room(normals: np.ndarray, view: np.ndarray) -> np.ndarray:
    """[N] brightness of what a mirror shows: floor, dark horizon, a light band, dark ceiling, tall windows."""
    ray = 2 * (normals * view).sum(axis=1, keepdims=True) * normals - view
    height = ray[:, 1]
    room = 0.05 + 0.20 * _rise(height, -0.45, -0.1) - 0.17 * _rise(height, -0.06, 0.08)
    room += 0.62 * _rise(height, 0.14, 0.46) * (1 - _rise(height, 0.62, 0.96))
    azimuth = np.arctan2(ray[:, 0], ray[:, 2])
    for middle, width, strength in ((-0.95, 0.36, 1.1), (1.30, 0.20, 0.6), (2.70, 0.28, 0.5)):
        away = abs((azimuth - middle + np.pi) % (2 * np.pi) - np.pi)
        room += strength * (1 - _rise(away, width * 0.6, width * 1.4)) * _rise(height, -0.3, -0.05)
    return room


def _steps(light: np.ndarray, tones: int) -> np.ndarray:
    """Light 0..1 in a few tones with soft borders."""
    scaled = light * tones
    base = np.floor(scaled)
    return np.clip((base + _rise(scaled - base, 0.40, 0.55)) / tones, 0, 1)


def _rise(x: np.ndarray, low: float, high: float) -> np.ndarray:
    t = np.clip((x - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def _direction(lamp: Lamp) -> np.ndarray:
    direction = np.array(lamp.direction)
    return direction / np.linalg.norm(direction)


__all__ = ["STUDIO", "Lamp", "Light", "Lit", "studio_light"]
