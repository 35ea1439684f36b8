"""The styles of the method `portrait`: one row each.

A row serves both ways to make a portrait: its prompts go to the image model where one is installed, its look paints the
head where none is. To add a style, add a row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Colour = tuple[float, float, float]
"""CIE Lab: lightness 0..100, a green to red, b blue to yellow."""

Texture = Literal["none", "veins", "prints", "strokes", "pores"]


@dataclass(frozen=True)
class Palette:
    """Colour statistics of a material without light.

    Attributes:
        mean: Its colour.
        axis: Along which its colours spread most, by one standard deviation.
        rest: Standard deviation in every direction.
    """

    mean: Colour
    axis: Colour = (4.0, 0.0, 0.0)
    rest: float = 1.0


@dataclass(frozen=True)
class Material:
    """How a surface answers to the studio's lamps; shares 0..1 where nothing else is said.

    Attributes:
        studio: Share of the studio's light; the rest keeps the photo's own.
        wrap: How far light reaches around: 0 stone-hard, 0.5 waxy.
        gloss: Strength of highlights.
        sharpness: Exponent of highlights.
        mirror: Strength of the reflected room, as of metal.
        metal: Share of the material's own colour in highlights and reflections.
        rim: Strength of the lamps behind.
        shadow: Depth of cast shadows.
        occlusion: Darkening of hollows.
        patina: Colour that gathers in hollows, or None.
        patina_amount: How much of it.
        wear: Brightening of what stands out.
    """

    studio: float = 1.0
    wrap: float = 0.15
    gloss: float = 0.0
    sharpness: float = 20.0
    mirror: float = 0.0
    metal: float = 0.0
    rim: float = 0.25
    shadow: float = 0.6
    occlusion: float = 0.8
    patina: Colour | None = None
    patina_amount: float = 0.0
    wear: float = 0.0


@dataclass(frozen=True)
class Detail:
    """What is kept of the photo's small differences, and what the material adds.

    Attributes:
        relief: Brightness as height: how far it tilts the surface.
        tone: Brightness as brightness.
        smooth: Rounds of averaging among neighbours of like colour: flat paint.
        tones: Number of steps of light; 0 leaves it continuous.
        lines: Darkness of the lines between parts and along creases.
        texture: What the material adds.
        texture_amount: How much of it.
        carved_eyes: Iris and pupil are engraved instead of painted.
    """

    relief: float = 0.0
    tone: float = 0.0
    smooth: int = 0
    tones: int = 0
    lines: float = 0.0
    texture: Texture = "none"
    texture_amount: float = 0.0
    carved_eyes: bool = False


@dataclass(frozen=True)
class Look:
    """A style without an image model.

    Attributes:
        skin: Of the skin; None leaves the photo's colours.
        hair: Of the hair; None joins it to the skin.
        cloth: Of the clothes; None joins them to the skin.
        eyes: Of the white of the eyes and the teeth; None joins them to the skin.
        material: Answer to light.
        vivid: Factor on the colourfulness of what keeps the photo's colours.
        contrast: The same for their lightness.
        lighten: Added to their lightness (Lab).
        hair_gloss: Highlight along the strands.
        detail: Small differences.
    """

    skin: Palette | None = None
    hair: Palette | None = None
    cloth: Palette | None = None
    eyes: Palette | None = None
    material: Material = field(default_factory=Material)
    vivid: float = 1.0
    contrast: float = 1.0
    lighten: float = 0.0
    hair_gloss: float = 0.0
    detail: Detail = field(default_factory=Detail)


@dataclass(frozen=True)
class Style:
    """One style.

    Attributes:
        name: What people type and a request stores.
        title: For menus.
        prompt: For the image model; the subject's words come before it.
        negative: What the image model shall avoid.
        look: The style without an image model.
        other_names: Understood as well.
    """

    name: str
    title: str
    prompt: str
    negative: str
    look: Look
    other_names: tuple[str, ...] = ()


_DULL = "blurry, low quality, deformed, extra faces, text, watermark"
_STATUE = Detail(relief=1.0, tone=0.5, carved_eyes=True)

_ROWS = (
    Style(
        "golden statue", "Golden Statue", "as a golden statue, polished solid gold, museum lighting",
        f"{_DULL}, skin, painted eyes",
        Look(
            skin=Palette((68, 8, 58), (4, 0.5, 3)),
            material=Material(wrap=0.1, gloss=0.8, sharpness=25, mirror=0.7, metal=0.85, rim=0.5),
            hair_gloss=0.5, detail=_STATUE,
        ),
        ("gold", "golden"),
    ),
    Style(
        "bronze", "Bronze", "as a bronze bust, dark patinated metal, green patina in the hollows, museum lighting",
        f"{_DULL}, skin, painted eyes",
        Look(
            skin=Palette((40, 13, 24), (4, 1, 2)),
            material=Material(
                wrap=0.1, gloss=0.6, sharpness=30, mirror=0.5, metal=0.7, rim=0.4, patina=(52, -18, 4),
                patina_amount=0.75, wear=0.4,
            ),
            hair_gloss=0.4, detail=_STATUE,
        ),
        ("bronze statue",),
    ),
    Style(
        "marble", "Marble", "as a white marble bust, classical sculpture, museum lighting",
        f"{_DULL}, skin, painted eyes",
        Look(
            skin=Palette((88, 0.5, 4), (2, 0, 0.5)),
            material=Material(wrap=0.35, gloss=0.15, sharpness=12, rim=0.2, shadow=0.5),
            hair_gloss=0.05, detail=Detail(relief=0.9, tone=0.3, texture="veins", texture_amount=0.5, carved_eyes=True),
        ),
        ("marble statue", "marble bust"),
    ),
    Style(
        "clay", "Clay", "as a clay sculpture, terracotta, hand-made, finger marks, studio lighting",
        f"{_DULL}, skin, painted eyes",
        Look(
            skin=Palette((58, 22, 28), (3, 1, 1)),
            material=Material(wrap=0.2, gloss=0.06, sharpness=6, rim=0.15),
            hair_gloss=0.0, detail=Detail(relief=1.0, tone=0.4, texture="prints", texture_amount=0.6, carved_eyes=True),
        ),
        ("terracotta",),
    ),
    Style(
        "3D cartoon", "3D Cartoon", "as a 3D cartoon character, animated film style, smooth shading, soft light",
        f"{_DULL}, photo, realistic",
        Look(
            material=Material(wrap=0.35, gloss=0.2, sharpness=15, rim=0.35, shadow=0.35, occlusion=0.6),
            hair_gloss=0.4, detail=Detail(smooth=6, tone=0.2, tones=3, lines=0.5),
        ),
        ("toon", "cartoon", "3d"),
    ),
    Style(
        "anime", "Anime", "as an anime character, cel shading, clean lines, vivid colours",
        f"{_DULL}, photo, realistic",
        Look(
            material=Material(wrap=0.3, gloss=0.0, rim=0.2, shadow=0.3, occlusion=0.4),
            hair_gloss=0.6, detail=Detail(smooth=8, tones=2, lines=0.8),
        ),
        ("manga",),
    ),
    Style(
        "oil paint", "Oil Paint", "as an oil painting, visible brush strokes, impasto, warm light",
        f"{_DULL}, photo",
        Look(
            material=Material(studio=0.4, gloss=0.1, sharpness=10, rim=0.1),
            detail=Detail(tone=0.6, texture="strokes", texture_amount=0.8),
        ),
        ("oil", "oil painting", "painting"),
    ),
    Style(
        "green orc", "Green Orc", "as a green orc, green skin, fantasy character, dramatic light",
        f"{_DULL}, human skin",
        Look(
            skin=Palette((46, -24, 30), (9, -2, 4), 2.0),
            hair=Palette((16, 0, 2), (7, 1, 2), 1.0),
            cloth=Palette((28, 5, 12), (10, 1, 3), 3.0),
            material=Material(wrap=0.2, gloss=0.35, sharpness=18, rim=0.3),
            hair_gloss=0.3, detail=Detail(relief=1.0, tone=0.8, texture="pores", texture_amount=0.5),
        ),
        ("orc",),
    ),
    Style(
        "realistic", "Realistic", "a realistic portrait, natural skin, soft studio light", f"{_DULL}, painting, cartoon",
        Look(material=Material(studio=0.0)), ("photo",),
    ),
)  # fmt: skip

STYLES: Mapping[str, Style] = {style.name: style for style in _ROWS}
"""Name to style, in the order of menus."""


def find_style(text: str) -> Style | None:
    """The preset that a text names, whatever its capitals, spaces, hyphens and underscores; None for any other text."""
    wanted = _plain(text)
    for style in _ROWS:
        if wanted in (_plain(name) for name in (style.name, *style.other_names)):
            return style
    return None


def _plain(text: str) -> str:
    return "".join(sign for sign in text.casefold() if sign.isalnum())


__all__ = ["STYLES", "Colour", "Detail", "Look", "Material", "Palette", "Style", "Texture", "find_style"]
