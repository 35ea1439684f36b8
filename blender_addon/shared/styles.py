"""The styles of the method `portrait`: one row each.

A row serves both ways to make a portrait: its prompts go to the image model where one is installed, its look paints the
head where none is. To add a style, add a row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

Colour = tuple[float, float, float]
"""CIE Lab: lightness 0..100, a green to red, b blue to yellow."""

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp")

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
        hair: Of the hair; None joins it to the skin's palette, if there is one.
        cloth: Of the clothes; None as above.
        eyes: Of the eyes and the teeth; None as above.
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
_STATUE = Detail(relief=1.0, tone=0.9, carved_eyes=True)

_ROWS = (
    Style(
        "golden statue", "Golden Statue", "as a golden statue, polished solid gold, museum lighting",
        f"{_DULL}, skin, painted eyes",
        Look(
            skin=Palette((74, 9, 60), (4, 0.5, 3)),
            material=Material(
                wrap=0.05, gloss=0.9, sharpness=30, mirror=0.95, metal=0.85, rim=0.4, shadow=0.75, occlusion=1.0
            ),
            hair_gloss=0.5, detail=_STATUE,
        ),
        ("gold", "golden"),
    ),
    Style(
        "bronze", "Bronze", "as a bronze bust, dark patinated metal, green patina in the hollows, museum lighting",
        f"{_DULL}, skin, painted eyes",
        Look(
            skin=Palette((33, 16, 28), (3, 1, 2)),
            material=Material(
                wrap=0.05, gloss=0.55, sharpness=30, mirror=0.6, metal=0.97, rim=0.4, shadow=0.7, occlusion=1.0,
                patina=(46, -17, 3), patina_amount=0.7, wear=0.5,
            ),
            hair_gloss=0.4, detail=_STATUE,
        ),
        ("bronze statue",),
    ),
    Style(
        "marble", "Marble", "as a white marble bust, classical sculpture, museum lighting",
        f"{_DULL}, skin, painted eyes",
        Look(
            skin=Palette((83, 0.5, 4.5), (2, 0, 0.3), 0.3),
            material=Material(wrap=0.2, gloss=0.12, sharpness=14, rim=0.05, shadow=0.6, occlusion=0.95),
            hair_gloss=0.05, detail=Detail(relief=0.9, tone=0.8, texture="veins", texture_amount=0.9, carved_eyes=True),
        ),
        ("marble statue", "marble bust"),
    ),
    Style(
        "clay", "Clay", "as a clay sculpture, terracotta, hand-made, finger marks, studio lighting",
        f"{_DULL}, skin, painted eyes",
        Look(
            skin=Palette((58, 22, 28), (3, 1, 1)),
            material=Material(wrap=0.2, gloss=0.06, sharpness=6, rim=0.15),
            hair_gloss=0.0, detail=Detail(relief=1.0, tone=0.8, texture="prints", texture_amount=0.6, carved_eyes=True),
        ),
        ("terracotta",),
    ),
    Style(
        "3D cartoon", "3D Cartoon", "as a 3D cartoon character, animated film style, smooth shading, soft light",
        f"{_DULL}, photo, realistic",
        Look(
            material=Material(wrap=0.3, gloss=0.14, sharpness=9, rim=0.15, shadow=0.4, occlusion=0.8),
            vivid=1.35, contrast=0.6, lighten=4, hair_gloss=0.2, detail=Detail(smooth=10, tone=0.3),
        ),
        ("cartoon", "3d"),
    ),
    Style(
        "toon", "Toon", "as a comic book drawing, bold ink lines, flat colours in a few tones",
        f"{_DULL}, photo, realistic",
        Look(
            material=Material(wrap=0.35, rim=0.0, shadow=0.4, occlusion=0.4),
            vivid=1.5, contrast=0.7, lighten=7, hair_gloss=0.2,
            detail=Detail(smooth=12, tone=0.3, tones=2, lines=1.0),
        ),
        ("comic",),
    ),
    Style(
        "anime", "Anime", "as an anime character, cel shading, clean lines, vivid colours",
        f"{_DULL}, photo, realistic",
        Look(
            material=Material(wrap=0.4, rim=0.0, shadow=0.3, occlusion=0.3),
            vivid=1.4, contrast=0.5, lighten=14, hair_gloss=0.35, detail=Detail(smooth=14, tones=1, lines=0.9),
        ),
        ("manga",),
    ),
    Style(
        "oil paint", "Oil Paint", "as an oil painting, visible brush strokes, impasto, warm light",
        f"{_DULL}, photo",
        Look(
            material=Material(studio=0.65, wrap=0.2, gloss=0.12, sharpness=10, rim=0.2, shadow=0.5),
            vivid=1.3, contrast=1.1, hair_gloss=0.05, detail=Detail(tone=0.4, texture="strokes", texture_amount=1.0),
        ),
        ("oil", "oil painting", "painting"),
    ),
    Style(
        "green orc", "Green Orc", "as a green orc, green skin, fantasy character, dramatic light",
        f"{_DULL}, human skin",
        Look(
            skin=Palette((42, -19, 27), (10, -2, 4), 2.5),
            hair=Palette((12, 1, 3), (6, 0, 1), 0.5),
            cloth=Palette((28, 6, 14), (10, 1, 3), 3.0),
            eyes=Palette((66, 2, 36), (24, -2, 9), 2.0),
            material=Material(wrap=0.2, gloss=0.35, sharpness=18, rim=0.3),
            hair_gloss=0.08, detail=Detail(relief=1.2, tone=1.0, texture="pores", texture_amount=0.5),
        ),
        ("orc",),
    ),
    Style(
        "realistic", "Realistic", "a realistic portrait, natural skin, soft studio light",
        f"{_DULL}, painting, cartoon",
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


def style_settings(text: str) -> dict[str, str]:
    """The settings that a command line's `--style TEXT_OR_FILE` stands for.

    Raises:
        ValueError: If the text is a picture's name and there is no such file; one line.
    """
    if text.strip() and Path(text).is_file():
        return {"style": "", "style_image": text}
    if text.lower().endswith(PICTURES) and " " not in text.strip():
        raise ValueError(f"there is no picture {text}; give a file that is there, a preset or your own words")
    return {"style": text}


Way = Literal["palette", "sas", "edit", "none"]


def expected_way(
    style: str, has_picture: bool, way: str, *, installed: bool, editor: bool, fast: bool
) -> tuple[Way, str]:
    """Which way a portrait will go, and why, in a line for people.

    Args:
        style: Preset or own words.
        has_picture: A style picture is chosen.
        way: What was asked for: auto, palette, sas or edit.
        installed: The model of Style Aligned Sampling is there.
        editor: A model that edits pictures is there.
        fast: There is a graphics card to run it on.
    """
    known = has_picture or find_style(style) is not None
    if not style.strip() and not has_picture:
        return "none", "Name a style, or choose a style picture"
    if way == "edit":
        line = (
            "The photo is restyled first"
            if editor
            else "No image editor is installed: fetch flux2-klein, or choose Auto"
        )
        return ("edit" if editor else "none"), line
    if way == "sas" or (way == "auto" and installed and (fast or not known)):
        if not installed:
            return "none", "Stable Diffusion 1.5 is not installed: fetch sd15 in the preferences, or choose Auto"
        return "sas", "Style Aligned Sampling" + ("" if fast else "; without a graphics card it takes many hours")
    if not known:
        return "none", "Own words need an image model: fetch sd15 in the preferences, or choose a preset"
    why = "" if way == "palette" else ", as no image model is installed"
    if way == "auto" and installed:
        why = ", as the image model would take hours without a graphics card"
    return "palette", f"By palette and material, in about a minute{why}"


def _plain(text: str) -> str:
    return "".join(sign for sign in text.casefold() if sign.isalnum())


__all__ = [
    "PICTURES",
    "STYLES",
    "Colour",
    "Detail",
    "Look",
    "Material",
    "Palette",
    "Style",
    "Texture",
    "expected_way",
    "find_style",
    "style_settings",
]
