"""The oracle figures by name: poses, clothes, looks, cameras. Data only: a figure is remade when its lines change."""

from __future__ import annotations

from dataclasses import dataclass, field

from tests.oracles.garments import Colour, Garment
from tests.oracles.looks import Face, HairKind
from tests.oracles.scene import Background, Light
from tests.oracles.stances import Arm, Leg, Stance


@dataclass(frozen=True)
class Shot:
    """How one photo is taken. focal: in picture heights; pitch: degrees, positive looks down; fill: share of height."""

    stance: Stance
    focal: float = 1.25
    pitch: float = 0.0
    fill: float = 0.88
    shift: float = 0.0
    background: Background = "plain"
    tint: Colour = (0.72, 0.74, 0.72)
    noise: float = 0.008
    light: Light = field(default_factory=Light)


@dataclass(frozen=True)
class FigureSpec:
    """One dressed figure: two photos and one more pose that a reposed avatar is compared in."""

    name: str
    body: str
    seed: int
    face: Face
    hair: HairKind
    hair_colour: Colour
    clothes: tuple[Garment, ...]
    shots: tuple[Shot, Shot]
    other: Stance


DOWN, HIP = Arm(74, 4, 10, 18), Arm(50, -18, 62, 95, 10)
BLACK, WHITE = (0.06, 0.06, 0.07), (0.90, 0.89, 0.86)
SNEAKER = Garment("shoes", (0.85, 0.85, 0.84), (0.95, 0.95, 0.93), loose_m=0.008, wrinkle_m=0.0, surface="leather")
BOOT = Garment(
    "shoes", (0.16, 0.10, 0.07), (0.05, 0.04, 0.04), loose_m=0.010, wrinkle_m=0.001, surface="leather",
    extra={"shaft_m": 0.10},
)  # fmt: skip
WALK = Stance(
    8, 4, 0, 4, -5, 0, Arm(74, 22, 15, 25), Arm(74, -18, 10, 15), Leg(-16, 0, 10), Leg(20, 0, 6, 2),
)  # fmt: skip
LEFT_LIGHT = Light((-3.0, 2.2, 1.6), 210.0, 1.2, 0.45)
RIGHT_LIGHT = Light((2.8, 2.6, 1.8), 210.0, 1.0, 0.42, (1.0, 0.95, 0.88))
TOP_LIGHT = Light((0.6, 3.6, 2.4), 180.0, 2.2, 0.6)
SOFT = Light((-0.8, 2.2, 3.6), 150.0, 3.0, 0.65)

REPORTED: tuple[FigureSpec, ...] = (
    FigureSpec(
        "coat", "tall_slim", 101, Face((0.90, 0.74, 0.66), (0.74, 0.36, 0.36), (0.35, 0.50, 0.62), (0.40, 0.26, 0.16)),
        "long", (0.36, 0.19, 0.09),
        (
            Garment("bottom", (0.13, 0.14, 0.20), loose_m=0.008, end_loose_m=0.012),
            BOOT,
            Garment("top", (0.45, 0.12, 0.14), (0.10, 0.06, 0.06), "placket", 0.026, 0.030, 2.0 - 0.08, hem_m=0.10,
                    wrinkle_m=0.004),
            Garment("skirt", (0.45, 0.12, 0.14), (0.12, 0.07, 0.06), "placket", 0.035, hem_m=0.22, flare=0.22,
                    folds=9, extra={"belt": 1.0, "fold_m": 0.012}),
            Garment("collar", (0.40, 0.10, 0.12), extra={"wide": 1.12}),
        ),
        (
            Shot(Stance(-14, 3, 0, 4, 12, 2, Arm(70, 8, 15, 30), Arm(62, 14, 30, 60), Leg(4, 2), Leg(-4, 2)),
                 1.35, 4, background="gradient", tint=(0.62, 0.68, 0.70), light=LEFT_LIGHT),
            Shot(Stance(18, 5, 0, -6, -14, 0, HIP, Arm(58, 42, 5, 35), Leg(18, 1, 8), Leg(-10, 2, 4)),
                 1.1, -4, background="texture", tint=(0.78, 0.72, 0.64), noise=0.014, light=TOP_LIGHT),
        ),
        WALK,
    ),
    FigureSpec(
        "hoodie", "broad_short_legs", 102,
        Face((0.76, 0.56, 0.43), (0.62, 0.34, 0.30), (0.30, 0.20, 0.12), (0.10, 0.07, 0.05)),
        "short", (0.09, 0.07, 0.06),
        (
            Garment("bottom", (0.24, 0.31, 0.45), (0.2, 0.2, 0.3), loose_m=0.014, end_loose_m=0.022, leg=1.93,
                    wrinkle_m=0.004, rise_m=0.055),
            SNEAKER,
            Garment("top", (0.42, 0.46, 0.44), (0.30, 0.34, 0.33), "logo", 0.030, 0.032, 1.95, hem_m=0.03,
                    neck_m=0.085, wrinkle_m=0.006, over_m=0.030, extra={"band": 1.0}),
            Garment("hood", (0.40, 0.44, 0.42), wrinkle_m=0.003),
        ),
        (
            Shot(Stance(10, 2, 0, 0, -8, 4, Arm(66, 18, 45, 70), Arm(70, 2, 10, 20), Leg(2, 3), Leg(0, 3)),
                 1.2, 2, tint=(0.80, 0.79, 0.76), light=SOFT),
            Shot(Stance(-22, 7, 0, 5, 16, 0, Arm(20, 20, 0, 35), Arm(66, 10, 20, 45), Leg(-8, 3, 6), Leg(16, 2, 10)),
                 1.5, 7, background="gradient", tint=(0.52, 0.58, 0.50), noise=0.012, light=RIGHT_LIGHT),
        ),
        WALK,
    ),
    FigureSpec(
        "dress", "pear", 103, Face((0.42, 0.28, 0.20), (0.45, 0.20, 0.19), (0.16, 0.10, 0.06), (0.06, 0.04, 0.03)),
        "curly", (0.10, 0.06, 0.045),
        (
            Garment("shoes", (0.75, 0.20, 0.16), (0.12, 0.05, 0.05), loose_m=0.006, wrinkle_m=0, surface="leather",
                    extra={"shaft_m": -0.02}),
            Garment("top", (0.93, 0.77, 0.25), (0.20, 0.32, 0.45), "dots", 0.008, 0.022, 0.75, hem_m=0.12,
                    neck_m=0.105, wrinkle_m=0.002),
            Garment("skirt", (0.93, 0.77, 0.25), (0.20, 0.32, 0.45), "dots", 0.020, hem_m=0.34, flare=0.42, folds=11,
                    extra={"belt": 1.0, "fold_m": 0.022}),
        ),
        (
            Shot(Stance(-6, 2, 2, 0, 10, -2, HIP, Arm(68, 6, 10, 25), Leg(3, -2), Leg(-3, 0)),
                 1.0, 0, background="texture", tint=(0.66, 0.74, 0.80), light=TOP_LIGHT),
            Shot(Stance(20, 4, 0, 0, -10, 0, Arm(38, 25, 0, 20), Arm(30, 8, 0, 25), Leg(-12, 0, 8), Leg(14, 0, 6)),
                 1.4, 5, tint=(0.86, 0.82, 0.78), noise=0.012, light=LEFT_LIGHT),
        ),
        WALK,
    ),
    FigureSpec(
        "wide_trousers", "lanky", 104,
        Face((0.93, 0.81, 0.75), (0.80, 0.50, 0.48), (0.40, 0.50, 0.36), (0.52, 0.36, 0.20)),
        "bald_beard", (0.50, 0.29, 0.13),
        (
            SNEAKER,
            Garment("top", (0.90, 0.88, 0.84), (0.16, 0.22, 0.40), "stripes", 0.010, 0.018, 1.9, hem_m=0.165,
                    wrinkle_m=0.003),
            Garment("bottom", (0.30, 0.25, 0.18), loose_m=0.022, end_loose_m=0.058, leg=1.93, wrinkle_m=0.006),
        ),
        (
            Shot(Stance(22, 4, 0, 0, -12, 2, Arm(72, -4, 10, 15), Arm(60, 45, 10, 30), Leg(4, 3), Leg(-4, 3)),
                 1.3, 6, tint=(0.60, 0.64, 0.70), light=RIGHT_LIGHT),
            Shot(Stance(-10, 1, -3, 6, 6, 3, Arm(8, 10, 0, 15), Arm(12, 5, 0, 20), Leg(12, 5, 4), Leg(-8, 6, 4)),
                 0.95, -6, background="texture", tint=(0.70, 0.66, 0.60), noise=0.014, light=SOFT),
        ),
        WALK,
    ),
    FigureSpec(
        "shirt_shorts", "child_like", 105,
        Face((0.58, 0.40, 0.29), (0.58, 0.30, 0.27), (0.20, 0.13, 0.08), (0.07, 0.05, 0.04)),
        "bob", (0.07, 0.05, 0.05),
        (
            Garment("bottom", (0.74, 0.66, 0.48), (0.60, 0.52, 0.36), loose_m=0.020, end_loose_m=0.040, leg=0.82,
                    wrinkle_m=0.004, rise_m=0.05),
            SNEAKER,
            Garment("top", (0.80, 0.28, 0.22), (0.95, 0.90, 0.82), "checks", 0.030, 0.036, 0.95, hem_m=0.02,
                    neck_m=0.085, wrinkle_m=0.005, over_m=0.034),
        ),
        (
            Shot(Stance(4, 1, 0, 0, 4, 0, DOWN, Arm(70, 10, 20, 40), Leg(0, 1), Leg(2, 1)),
                 1.6, 8, background="gradient", tint=(0.74, 0.70, 0.62), light=TOP_LIGHT),
            Shot(Stance(-24, 6, 0, 0, 18, 0, Arm(64, 30, 20, 65), Arm(24, 0, 0, 30), Leg(20, 0, 14), Leg(-14, 0, 8)),
                 1.2, 3, tint=(0.56, 0.66, 0.62), noise=0.012, light=LEFT_LIGHT),
        ),
        WALK,
    ),
    FigureSpec(
        "sports", "old_athlete", 106,
        Face((0.27, 0.18, 0.135), (0.34, 0.17, 0.15), (0.10, 0.06, 0.04), (0.05, 0.04, 0.035)),
        "bun", (0.30, 0.29, 0.28),
        (
            Garment("bottom", BLACK, (0.20, 0.75, 0.70), "side_stripe", 0.004, 0.004, leg=1.75, wrinkle_m=0.0012,
                    rise_m=0.10, surface="shiny"),
            SNEAKER,
            Garment("top", (0.16, 0.42, 0.68), (0.92, 0.92, 0.90), "logo", 0.005, 0.006, 0.0, hem_m=0.05,
                    neck_m=0.095, wrinkle_m=0.0015, over_m=0.011),
        ),
        (
            Shot(Stance(-18, 3, 0, 0, 10, 0, Arm(68, 12, 15, 35), HIP, Leg(6, 3), Leg(-6, 3)),
                 1.15, -2, tint=(0.82, 0.84, 0.86), light=SOFT),
            Shot(Stance(14, 8, 0, -8, -10, -4, Arm(40, 50, 0, 45), Arm(56, -20, 0, 50), Leg(-18, 1, 14),
                        Leg(26, 1, 18, 0)),
                 1.4, 4, background="gradient", tint=(0.60, 0.56, 0.54), noise=0.012, light=RIGHT_LIGHT),
        ),
        WALK,
    ),
)  # fmt: skip

DEVELOPMENT: tuple[FigureSpec, ...] = (
    FigureSpec(
        "dev1", "dev_woman", 201, Face((0.86, 0.68, 0.57), (0.70, 0.36, 0.35), (0.30, 0.36, 0.22), (0.25, 0.16, 0.10)),
        "bob", (0.28, 0.17, 0.10),
        (
            Garment("bottom", (0.16, 0.16, 0.18), loose_m=0.008, end_loose_m=0.012),
            BOOT,
            Garment("top", (0.30, 0.42, 0.34), (0.12, 0.10, 0.06), "placket", 0.024, 0.028, 1.92, hem_m=0.10,
                    wrinkle_m=0.004),
            Garment("skirt", (0.30, 0.42, 0.34), (0.14, 0.10, 0.06), "placket", 0.032, hem_m=0.16, flare=0.28,
                    folds=8, extra={"belt": 1.0}),
            Garment("collar", (0.26, 0.38, 0.30), extra={"wide": 1.12}),
        ),
        (
            Shot(Stance(12, 3, 0, 0, -8, 2, Arm(68, 10, 20, 40), Arm(66, 6, 10, 25), Leg(6, 1), Leg(-4, 2)),
                 1.3, 3, background="gradient", tint=(0.70, 0.68, 0.72), light=LEFT_LIGHT),
            Shot(Stance(-16, 5, 0, 0, 10, 0, Arm(52, 38, 5, 40), HIP, Leg(-10, 1, 6), Leg(16, 1, 8)),
                 1.15, 5, tint=(0.76, 0.80, 0.74), noise=0.012, light=TOP_LIGHT),
        ),
        WALK,
    ),
    FigureSpec(
        "dev2", "dev_man", 202, Face((0.50, 0.34, 0.25), (0.52, 0.28, 0.25), (0.18, 0.11, 0.07), (0.05, 0.04, 0.03)),
        "short", (0.06, 0.05, 0.05),
        (
            SNEAKER,
            Garment("bottom", (0.62, 0.56, 0.44), loose_m=0.018, end_loose_m=0.030, leg=1.93, wrinkle_m=0.005,
                    rise_m=0.05),
            Garment("top", (0.86, 0.84, 0.80), (0.70, 0.16, 0.14), "stripes", 0.024, 0.036, 1.05, hem_m=0.02,
                    wrinkle_m=0.005, over_m=0.032),
        ),
        (
            Shot(Stance(-12, 2, 0, 0, 8, 0, Arm(70, 14, 20, 45), Arm(70, 0, 10, 20), Leg(4, 2), Leg(-2, 3)),
                 1.2, 1, background="texture", tint=(0.70, 0.72, 0.76), light=SOFT),
            Shot(Stance(20, 4, 0, 0, -12, 2, Arm(24, 15, 0, 30), Arm(60, 35, 20, 55), Leg(18, 2, 8), Leg(-10, 2, 6)),
                 1.4, 4, background="gradient", tint=(0.60, 0.62, 0.56), noise=0.012, light=RIGHT_LIGHT),
        ),
        WALK,
    ),
)  # fmt: skip
