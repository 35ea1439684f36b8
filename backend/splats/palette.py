"""A style without an image model: colours by the map that Style Aligned Sampling uses on latents, light by a studio.

The colours of the photo, or of a part of the person, get the mean and the covariance of a palette by the
optimal-transport map, in CIE Lab. They are the material's own; a fixed studio then lights them by the Gaussians'
normals, which carry the photo's small differences as a relief. Geometry, binding and opacity stay as they are, so a
painted bust moves as before.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from backend.diffusion import moments as channel_moments
from backend.diffusion.moments import Moments
from backend.human.face_rig import eyeball_of
from backend.human.model import Region
from backend.splats.bound import BoundSplats, Kind
from backend.splats.colour import to_lab, to_rgb
from backend.splats.light import find_light, relit, to_display, to_linear
from backend.splats.palette_detail import (
    HEIGHT_M,
    brush_strokes,
    drawn_lines,
    engraved,
    fine_detail,
    pores,
    prints,
    solid_noise,
    tilted,
    veins,
)
from backend.splats.palette_light import Lit, studio_light
from backend.splats.palette_surface import Surface, surface_of
from blender_addon.shared.styles import Detail, Look, Material, Palette

if TYPE_CHECKING:
    from backend.context import Context
    from backend.human.bust import Bust

GAIN = 3.0
"""Largest factor of the map: a plain shirt does not become a pattern."""

REGULARISER = 1e-3

PICTURE_LOOK = Look(
    material=Material(studio=0.35, wrap=0.3, gloss=0.05, rim=0.15, shadow=0.3, occlusion=0.4),
    detail=Detail(tone=0.3),
)
"""With the colours of a picture."""

BORDER_SHARE, PLAIN, SAME = 0.04, 9.0, 14.0
"""A style picture whose border, this share of it, spreads less than `PLAIN` (Lab) stands before a plain background;
what is nearer than `SAME` to that does not count."""

FLAT_NEIGHBOURS, LIKE_COLOUR = 10, 9.0

TONE_STEP, ONE_HUE = 11.0, 0.5
"""Of flat colours: distance of the steps (Lab), and how far hues go to their part's mean."""

UNSEEN, UNSEEN_DETAIL = 0.05, 0.3
"""Clothes that the photo does not show have the noise of a fill: so much of it is kept."""

FARTHEST = 2.2
"""Standard deviations of a palette within which its colours stay."""

FEATURE = 7.0
"""Detail this strong is painted with a fine brush."""

HAIR_TINT = 0.8
"""Share of its own colour in what shines on hair."""

IRIS_M = 0.0055
DARK_VEIN = (-17.0, 0.5, -1.0)
MOST_LIGHT = 1.3
"""What lay in the photo's shade is not lightened more: it has lost its colour."""
SHOULDER = 0.72
SOFT_PATINA = 0.15
"""Hair and sheets of cloth are layers; the steps between them gather less."""
TONE = 0.022
"""Share of the light that one step of lightness changes."""


def statistics(colours: np.ndarray, weights: np.ndarray | None = None) -> Moments:
    """Mean and covariance of display colours [N, 3] in CIE Lab, weighted by [N]."""
    lab = torch.from_numpy(to_lab(colours).astype(np.float64)).T.reshape(1, 3, 1, -1)
    mask = None if weights is None else torch.from_numpy(np.asarray(weights, np.float64)).reshape(1, 1, 1, -1)
    return channel_moments.moments(lab, mask)


def palette_statistics(palette: Palette) -> Moments:
    """Mean and covariance of a palette."""
    axis = torch.tensor(palette.axis, dtype=torch.float64)
    return Moments(
        torch.tensor(palette.mean, dtype=torch.float64),
        torch.outer(axis, axis) + palette.rest**2 * torch.eye(3, dtype=torch.float64),
    )


def picture_statistics(picture: np.ndarray) -> Moments:
    """Mean and covariance of a picture's colours, without a plain background.

    Args:
        picture: [H, W, 3] uint8 RGB.
    """
    pixels = picture.reshape(-1, 3).astype(np.float32) / 255
    lab = to_lab(pixels).reshape(picture.shape)
    edge = max(1, round(BORDER_SHARE * min(picture.shape[:2])))
    inner = np.zeros(picture.shape[:2], bool)
    inner[edge:-edge, edge:-edge] = True
    border = lab[~inner]
    middle = np.median(border, axis=0)
    counts = np.ones(picture.shape[:2])
    if np.percentile(np.linalg.norm(border - middle, axis=1), 80) < PLAIN:
        subject = np.linalg.norm(lab - middle, axis=2) > SAME
        if subject.mean() > 0.02:
            counts = subject.astype(np.float64)
    return statistics(pixels, counts.ravel())


def restyled(colours: np.ndarray, target: Moments, weights: np.ndarray | None = None, gain: float = GAIN) -> np.ndarray:
    """Colours with the statistics of a style, each moved as little as such a map can.

    Args:
        colours: [N, 3] display sRGB.
        target: Of the style, CIE Lab.
        weights: [N] of each in its own statistics.
        gain: Largest factor.

    Returns:
        [N, 3] CIE Lab, not yet held in what a display can show.
    """
    own = statistics(colours, weights)
    matrix = channel_moments.transport(own, target, regulariser=REGULARISER, gain=gain)
    lab = torch.from_numpy(to_lab(colours).astype(np.float64)).T.reshape(1, 3, 1, -1)
    return channel_moments.apply(matrix, own, target, lab).reshape(3, -1).T.numpy()


@dataclass(frozen=True)
class Canvas:
    """A bust that is ready to be painted in any style.

    Attributes:
        bust: With its Gaussians.
        surface: What they look like as a surface.
        lit: What the studio's lamps reach.
    """

    bust: Bust
    surface: Surface
    lit: Lit

    @classmethod
    def of(cls, bust: Bust) -> Canvas:
        """Look at a bust."""
        surface = surface_of(bust)
        return cls(bust, surface, Lit.of(surface))

    def paint(self, look: Look, picture: np.ndarray | None, strength: float, seed: int = 0) -> BoundSplats:
        """The bust's Gaussians in a style.

        Args:
            look: The style.
            picture: [H, W, 3] uint8 RGB whose colours are taken instead of the look's; None for none.
            strength: 0 leaves every colour as it is, 1 goes all the way.
            seed: Of strokes, veins and dents.
        """
        splats = self.bust.splats
        if strength <= 0:
            return splats
        before = splats.colours.astype(np.float64)
        after = _styled(self, look, None if picture is None else picture_statistics(picture), seed)
        mixed = before + min(strength, 1.0) * (after - before)
        return replace(splats, colours=np.clip(mixed, 0, 1).astype(np.float32))


def paint(bust: Bust, look: Look, picture: np.ndarray | None, strength: float, context: Context) -> BoundSplats:
    """The bust's Gaussians in a style; see `Canvas.paint`."""
    if strength <= 0:
        return bust.splats
    context.progress("paint", 0, 2, "light and hollows")
    canvas = Canvas.of(bust)
    context.raise_if_cancelled()
    context.progress("paint", 1, 2, "colours")
    styled = canvas.paint(look if picture is None else PICTURE_LOOK, picture, strength, context.seed)
    context.progress("paint", 2, 2)
    return styled


def _styled(canvas: Canvas, look: Look, target: Moments | None, seed: int) -> np.ndarray:
    """[N, 3] display colours of the style in full."""
    surface, detail, material = canvas.surface, look.detail, look.material
    photo = canvas.bust.splats.colours.astype(np.float64)
    small = fine_detail(surface, photo)
    unseen = (canvas.bust.splats.confidence < UNSEEN) & np.isin(surface.kind, (Kind.CLOTH, Kind.MEMBRANE))
    small = np.where(unseen, UNSEEN_DETAIL * small, small)
    own = _without_light(canvas, photo, material.studio)
    own = _flat(surface, own, detail.smooth)
    if material.studio:
        own = np.where(unseen[:, None], surface.smooth(own, 2), own)
    albedo, height = _material_colours(canvas, look, own, target), HEIGHT_M * detail.relief * _relief(surface, small)
    if detail.tones:
        albedo = _in_tones(canvas, albedo)
    if detail.texture == "veins":
        vein = veins(surface.positions_m, seed)[:, None] * detail.texture_amount
        albedo = to_rgb(to_lab(albedo) + vein * np.array(DARK_VEIN)).astype(np.float64)
    elif detail.texture == "prints":
        height = height + detail.texture_amount * prints(surface.positions_m, seed)
    elif detail.texture == "pores":
        height = height + detail.texture_amount * pores(surface.positions_m, seed) * (surface.kind == Kind.SKIN)
    elif detail.texture == "strokes":
        strokes, paint_m = brush_strokes(surface, albedo, seed)
        free = detail.texture_amount * (1 - 0.85 * np.clip(surface.smooth(abs(small), 2) / FEATURE, 0, 1))
        albedo = albedo + free[:, None] * (strokes - albedo)
        height = height + free * paint_m
    normals = tilted(surface, surface.normals, height) if np.any(height) else surface.normals
    if detail.carved_eyes:
        albedo, normals = _carve_eyes(canvas, albedo, normals)
    colours = _lit(canvas, look, albedo, normals, small, seed)
    if detail.lines:
        colours = colours * (1 - 0.85 * detail.lines * drawn_lines(surface, small))[:, None]
    return to_display(colours)


def _relief(surface: Surface, small: np.ndarray) -> np.ndarray:
    """[N] detail without the photo's noise; strands keep their edges."""
    return np.where(surface.kind == Kind.HAIR, 1.5 * small, surface.smooth(small))


def _without_light(canvas: Canvas, photo: np.ndarray, share: float) -> np.ndarray:
    """The photo's colours with a share of its own light taken out."""
    if share <= 0:
        return photo
    surface, splats = canvas.surface, canvas.bust.splats
    groups = np.where(np.isin(splats.kind, (Kind.CLOTH, Kind.MEMBRANE)), Kind.CLOTH, splats.kind)
    light = find_light(surface.normals, photo, groups, splats.confidence.astype(np.float64), np.array([0.0, 0.0, 1.0]))
    inner = np.isin(splats.kind, (Kind.MOUTH, Kind.TEETH, Kind.EYE))
    return relit(photo, np.where(inner, 1.0, np.minimum(light.at(surface.normals) ** -share, MOST_LIGHT)))


def _flat(surface: Surface, colours: np.ndarray, rounds: int) -> np.ndarray:
    """Colours averaged with neighbours of like colour."""
    lab, near = to_lab(colours), surface.near[:, :FLAT_NEIGHBOURS]
    for _ in range(rounds):
        others = lab[near]
        weight = np.exp(-((others - lab[:, None]) ** 2).sum(axis=2) / LIKE_COLOUR**2)
        lab = (others * weight[..., None]).sum(axis=1) / weight.sum(axis=1, keepdims=True)
    return to_rgb(lab).astype(np.float64) if rounds else colours


def _material_colours(canvas: Canvas, look: Look, own: np.ndarray, target: Moments | None) -> np.ndarray:
    """[N, 3] display colours of the material under even light."""
    kind, area = canvas.surface.kind, canvas.surface.area_m2
    out = own.copy()
    for kinds, palette in _groups(look) if target is None else [(tuple(Kind), None)]:
        rows = np.flatnonzero(np.isin(kind, kinds))
        if len(rows):
            weights = area[rows] * (canvas.surface.sky[rows] > 0.05) + 1e-12
            wanted = target or (
                _own_target(own[rows], weights, look) if palette is None else palette_statistics(palette)
            )
            lab = restyled(own[rows], wanted, weights)
            out[rows] = to_rgb(lab if palette is None else _within(lab, wanted))
    inner = kind == Kind.MOUTH
    if inner.any() and (look.skin is not None or target is not None):
        skin = kind == Kind.SKIN
        tone = to_linear(np.average(out[skin], axis=0, weights=area[skin]))
        depth = to_linear(own[inner]).mean(axis=1, keepdims=True)
        out[inner] = to_display(tone * np.clip(2.2 * depth, 0, 0.9))
    return out


def _within(lab: np.ndarray, palette: Moments) -> np.ndarray:
    """Colours [N, 3] (Lab) drawn in to where a palette still is one material: no badge stays purple on marble."""
    mean, inverse = palette.mean.numpy(), np.linalg.inv(palette.covariance.numpy())
    off = lab - mean
    away = np.sqrt(np.maximum(np.einsum("nc,cd,nd->n", off, inverse, off), 1e-12))
    return mean + off * np.minimum(1.0, FARTHEST / away)[:, None]


def _groups(look: Look) -> list[tuple[tuple[Kind, ...], Palette | None]]:
    """Parts of the person that are mapped together, and their palettes."""
    whole: list[Kind] = [Kind.SKIN]
    groups: list[tuple[tuple[Kind, ...], Palette | None]] = []
    parts = ((look.hair, (Kind.HAIR,)), (look.cloth, (Kind.CLOTH, Kind.MEMBRANE)), (look.eyes, (Kind.EYE, Kind.TEETH)))
    for palette, kinds in parts:
        if palette is None and look.skin is not None:
            whole += kinds
        else:
            groups.append((kinds, palette))
    return [(tuple(whole), look.skin), *groups]


def _own_target(colours: np.ndarray, weights: np.ndarray, look: Look) -> Moments:
    """The colours' own statistics, more vivid, lighter or of more contrast."""
    own = statistics(colours, weights)
    factors = torch.tensor([look.contrast, look.vivid, look.vivid], dtype=torch.float64)
    mean = own.mean * torch.tensor([1.0, look.vivid, look.vivid], dtype=torch.float64)
    mean[0] += look.lighten
    return Moments(mean, own.covariance * torch.outer(factors, factors))


def _in_tones(canvas: Canvas, colours: np.ndarray) -> np.ndarray:
    """[N, 3] colours of each part in a few steps of lightness and nearly one hue; eyes and mouth stay as they are."""
    kind, area = canvas.surface.kind, canvas.surface.area_m2
    lab = to_lab(colours).astype(np.float64)
    for kinds in ((Kind.SKIN,), (Kind.HAIR,)):
        rows = np.flatnonzero(np.isin(kind, kinds))
        if not len(rows):
            continue
        mean = np.average(lab[rows], axis=0, weights=area[rows])
        off = (lab[rows, 0] - mean[0]) / TONE_STEP
        whole = np.floor(off)
        t = np.clip((off - whole - 0.35) / 0.3, 0, 1)
        lab[rows, 0] = mean[0] + TONE_STEP * (whole + t * t * (3 - 2 * t) - 0.5)
        lab[rows, 1:] += ONE_HUE * (mean[1:] - lab[rows, 1:])
    return to_rgb(lab).astype(np.float64)


def _carve_eyes(canvas: Canvas, albedo: np.ndarray, normals: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eyes of the material, with an engraved rim of the iris and a drilled pupil with a raised light in it."""
    albedo, normals = albedo.copy(), normals.copy()
    surface, body = canvas.surface, canvas.bust.body
    rest = canvas.bust.vertices_m.astype(np.float64)
    skin = surface.kind == Kind.SKIN
    material = to_linear(np.average(albedo[skin], axis=0, weights=surface.area_m2[skin]))
    triangles = canvas.bust.splats.triangles
    for region in (Region.LEFT_EYE, Region.RIGHT_EYE):
        rows = np.flatnonzero(
            (surface.kind == Kind.EYE) & (body.regions[body.triangles[triangles]] == region).all(axis=1)
        )
        if not len(rows):
            continue
        centre, radius = eyeball_of(body, rest, region)
        arm = surface.positions_m[rows] - centre
        arm /= np.maximum(np.linalg.norm(arm, axis=1, keepdims=True), 1e-9)
        iris = np.arcsin(np.clip(IRIS_M / radius, 0, 0.9))
        away = np.arccos(np.clip(arm[:, 2], -1, 1)) / iris
        left = np.linalg.norm(arm[:, :2] / np.sin(iris) - [-0.2, 0.22], axis=1) < 0.2  # the light stays standing
        depth = 0.45 * np.exp(-(((away - 0.95) / 0.10) ** 2)) + 0.80 * np.clip((0.50 - away) / 0.12, 0, 1) * ~left
        depth = np.maximum(depth, 0.2 * (away < 0.95) * np.clip(0.6 + 0.6 * arm[:, 1] / np.sin(iris), 0, 1))
        albedo[rows] = to_display(material * (1 - np.clip(depth, 0, 0.92))[:, None])
        normals[rows] = arm
    return albedo, normals


def _lit(
    canvas: Canvas, look: Look, albedo: np.ndarray, normals: np.ndarray, small: np.ndarray, seed: int
) -> np.ndarray:
    """[N, 3] linear colours in the studio."""
    surface, material = canvas.surface, look.material
    cut = np.exp(TONE * look.detail.tone * engraved(small))[:, None]
    base = to_linear(albedo)
    rough = np.zeros(len(base))
    if material.patina is not None:
        rough = _patina(surface, material, seed) * ~np.isin(surface.kind, (Kind.MOUTH, Kind.TEETH, Kind.EYE))
        base += rough[:, None] * (to_linear(to_rgb(np.array([material.patina]))) - base)
    if material.wear:
        base *= (1 + material.wear * np.clip(-1.5 * surface.hollow, 0, 1))[:, None]
    light = studio_light(surface, canvas.lit, normals, material, look.detail, look.hair_gloss)
    metal = material.metal * (1 - rough)
    # of metal the reflection is coloured: more strongly than its own dark tone, less than white
    tint = np.clip(1.2 * np.sqrt(base), 0, 1)
    shiny = 1 + metal[:, None] * (tint - 1)
    mirror = material.mirror * (1 - rough)
    colours = base * (light.diffuse * (1 - 0.65 * mirror))[:, None]
    colours += (mirror * light.mirror)[:, None] * shiny
    tinted = np.where(surface.kind == Kind.HAIR, np.maximum(metal, HAIR_TINT), 0.8 * metal)
    colours += (light.highlight * (1 - 0.8 * rough))[:, None] * (1 + tinted[:, None] * (tint - 1))
    colours *= cut
    base = base * cut
    inner = np.isin(surface.kind, (Kind.MOUTH, Kind.TEETH))
    # the inside of the mouth has its own shading, made for an open mouth
    colours[inner] = 0.9 * base[inner]
    return base + material.studio * (_shoulder(colours) - base)


def _patina(surface: Surface, material: Material, seed: int) -> np.ndarray:
    """[N] 0..1: share of what has gathered in hollows and run down from them."""
    uneven = 0.16 * solid_noise(surface.positions_m * [1, 0.45, 1], 0.05, seed + 5, 4)
    soft = np.where(np.isin(surface.kind, (Kind.HAIR, Kind.MEMBRANE)), SOFT_PATINA, 1.0)
    deep = (surface.hollow + 0.9 * (0.72 - surface.sky)) * soft + uneven
    t = surface.smooth(np.clip((deep - 0.05) / 0.5, 0, 1), 2)
    return material.patina_amount * t * t * (3 - 2 * t)


def _shoulder(linear: np.ndarray) -> np.ndarray:
    """Bright light rolls off softly instead of being cut."""
    above = np.maximum(linear - SHOULDER, 0)
    return np.where(linear > SHOULDER, SHOULDER + (1 - SHOULDER) * (1 - np.exp(-above / (1 - SHOULDER))), linear)


__all__ = ["Canvas", "paint", "palette_statistics", "picture_statistics", "restyled", "statistics"]
