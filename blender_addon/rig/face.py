"""The facial actions by region, as an artist looks for them."""

from __future__ import annotations

from collections.abc import Mapping

from ..shared.skeleton import FACIAL_ACTIONS

_PREFIXES: Mapping[str, tuple[str, ...]] = {
    "Brows": ("brow",),
    "Eyes": ("eye",),
    "Jaw": ("jaw",),
    "Mouth": ("mouth",),
    "Cheeks": ("cheek",),
    "Nose": ("nose",),
    "Tongue": ("tongue",),
}

FACE_REGIONS: Mapping[str, tuple[str, ...]] = {
    region: tuple(name for name in FACIAL_ACTIONS if name.startswith(prefixes))
    for region, prefixes in _PREFIXES.items()
}
"""Region -> its actions; every action is in one region."""

PHOTO_SHAPE = "photo"
"""The shape key of what the actions do not explain of the photo's face."""


def region_actions(region: str) -> tuple[str, ...]:
    """Actions of a region, or of the whole face for "ALL", what is left of the photo's face included."""
    return (*FACIAL_ACTIONS, PHOTO_SHAPE) if region == "ALL" else FACE_REGIONS[region]


MIRRORED_ACTIONS: tuple[tuple[str, str], ...] = tuple(
    (name, name.replace("Left", "Right")) for name in FACIAL_ACTIONS if name.endswith("Left")
)
"""Pairs of actions that change places in a mirror; `jawLeft` and `mouthLeft`, which say a direction, as well."""


def region_rows(region: str) -> list[tuple[str, tuple[str, ...]]]:
    """Rows of sliders: label and one action, or left and right."""
    rows: dict[str, list[str]] = {}
    single = {"jawLeft", "jawRight", "mouthLeft", "mouthRight"}
    for name in FACE_REGIONS[region]:
        stem = name if name in single else name.removesuffix("Left").removesuffix("Right")
        rows.setdefault(stem, []).append(name)
    prefix = _PREFIXES[region][0]
    return [(_words(stem.removeprefix(prefix)) or region, tuple(names)) for stem, names in rows.items()]


def _words(name: str) -> str:
    """`LookDown` as `Look Down`."""
    return "".join(f" {c}" if c.isupper() else c for c in name).strip()
