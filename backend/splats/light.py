"""The photo's light on the person: one soft lamp and an even sky, fitted to the colours that the photo shows.

What is seen has the light baked in. Fills are made in colours without it and get the light that falls on their own
normals, so that a back is as dark as it would be in the room of the photo.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

WRAP = 0.25
"""A lamp of some size reaches a little beyond 90 degrees."""

USUAL_SHARE = 0.6
SHARE_SPREAD = 0.2
"""The lamp's share of full light where a photo tells nothing, and how far it may be off: people are photographed facing
the light, and the back of their clothes has about half the luminance of the front."""

USUAL_HEIGHT = 0.5
USUAL_SPREAD = 0.7
"""The usual lamp stands behind the camera, this much above it (tangent); spread of the direction (chord length)."""

LARGEST_SHARE = 0.85
NOISE = 0.3
"""Spread of log luminance within a garment that is no lighting: pattern, folds, shadows of other parts."""

INDEPENDENT = 150.0
"""Number of independent observations that a photo is worth: neighbouring discs share their folds."""

DARKEST = 0.25
_SAMPLES = 4000
_FEWEST = 300


@dataclass(frozen=True)
class Light:
    """A lamp at infinity and an even sky.

    Attributes:
        direction: [3] unit, from the person to the lamp.
        share: 0..1 of the lamp in full light.
    """

    direction: np.ndarray
    share: float

    def at(self, normals: np.ndarray) -> np.ndarray:
        """Light on surfaces with unit normals [N, 3]: [N] `DARKEST`..1 of full light, linear."""
        lamp = np.clip((normals @ self.direction + WRAP) / (1 + WRAP), 0, 1)
        return np.maximum(1 - self.share + self.share * lamp, DARKEST)


def usual_light(to_camera: np.ndarray) -> Light:
    """The light where nothing is known.

    Args:
        to_camera: [3] from the person to the camera; Y is up.
    """
    level = np.array([to_camera[0], 0.0, to_camera[2]])
    level /= max(float(np.linalg.norm(level)), 1e-9)
    direction = level + np.array([0.0, USUAL_HEIGHT, 0.0])
    return Light(direction / np.linalg.norm(direction), USUAL_SHARE)


def find_light(
    normals: np.ndarray, rgb: np.ndarray, groups: np.ndarray, weights: np.ndarray, to_camera: np.ndarray, seed: int = 0
) -> Light:
    """Fit the light to seen colours.

    Args:
        normals: [N, 3] unit, world, in the photo's pose.
        rgb: [N, 3] display sRGB 0..1.
        groups: [N] int, surfaces of one colour (garments, skin).
        weights: [N] trust in each sample, 0 where unseen.
        to_camera: [3] from the person to the camera; Y is up.
        seed: Of the choice of samples.

    Returns:
        The most probable light under the prior of `usual_light`.
    """
    prior = usual_light(to_camera)
    known = np.flatnonzero(weights > 0)
    if len(known) < _FEWEST:
        return prior
    known = np.random.default_rng(seed).permutation(known)[:_SAMPLES]
    normal, weight = normals[known], weights[known] / weights[known].sum()
    luminance = np.log(np.maximum(to_linear(rgb[known]) @ np.array([0.2126, 0.7152, 0.0722]), 2e-3))
    _, group = np.unique(groups[known], return_inverse=True)
    best, lowest = prior, np.inf
    for direction in _directions():
        away = float(((direction - prior.direction) ** 2).sum()) / USUAL_SPREAD**2
        for share in np.arange(0.1, LARGEST_SHARE + 0.01, 0.075):
            light = Light(direction, float(share))
            cost = INDEPENDENT * _misfit(luminance - np.log(light.at(normal)), group, weight)
            cost += 0.5 * away + 0.5 * ((share - USUAL_SHARE) / SHARE_SPREAD) ** 2
            if cost < lowest:
                best, lowest = light, cost
    return best


def _misfit(residual: np.ndarray, group: np.ndarray, weight: np.ndarray) -> float:
    """Mean robust cost of log luminances [S] about their group's mean, in units of `NOISE`."""
    total = np.maximum(np.bincount(group, weight), 1e-12)
    mean = np.bincount(group, weight * residual) / total
    x = (residual - mean[group]) / NOISE
    return float((weight * (np.sqrt(1 + x * x) - 1)).sum())


def _directions() -> np.ndarray:
    """[D, 3] unit directions, about 20 degrees apart, none from below the floor."""
    count = 120
    k = np.arange(count) + 0.5
    y = 1 - 2 * k / count
    angle = np.pi * (1 + np.sqrt(5)) * k
    ring = np.sqrt(1 - y * y)
    points = np.stack([ring * np.cos(angle), y, ring * np.sin(angle)], axis=1)
    return points[y > -0.2]


def relit(rgb: np.ndarray, factor: np.ndarray) -> np.ndarray:
    """Display colours [N, 3] under `factor` [N] times the light, clipped to 0..1."""
    return to_display(to_linear(rgb) * factor[:, None])


def to_linear(rgb: np.ndarray) -> np.ndarray:
    """Display sRGB to linear light."""
    c = np.clip(np.asarray(rgb, np.float64), 0, 1)
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


def to_display(linear: np.ndarray) -> np.ndarray:
    """Linear light to display sRGB, clipped to 0..1."""
    c = np.clip(linear, 0, 1)
    return np.where(c <= 0.0031308, 12.92 * c, 1.055 * np.maximum(c, 1e-9) ** (1 / 2.4) - 0.055)
