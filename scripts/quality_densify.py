"""Measure the densifications on a textured torus: `python scripts/quality_densify.py [--quick] [--json F] [--sheet P]`.

Every kind starts from a few grey Gaussians and grows to the budget; "none" starts with the whole budget, so that all
end with equally many. PSNR is over views that no optimisation saw. A margin is the mean over seeds with its 95 %
interval.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402

from backend.context import Context  # noqa: E402
from backend.raster import Cameras  # noqa: E402
from backend.splats.cloud_parameters import CloudParameters, LearningRates  # noqa: E402
from backend.splats.densify import Densifier, GradientSettings, NoDensifier, default_densifier  # noqa: E402
from backend.splats.optimise_cloud import (  # noqa: E402
    CloudSettings,
    FitViews,
    TargetView,
    optimise_cloud,
    picture,
)
from backend.splats.relocation import McmcDensifier, McmcSettings  # noqa: E402
from backend.splats.surface_guided import surface_guided_densifier  # noqa: E402
from blender_addon.shared.gaussians import GaussianCloud  # noqa: E402
from tests.oracles.textured_torus import Pictures, photograph  # noqa: E402

KINDS = ("none", "default", "default_shared_opacity", "surface", "mcmc")

RATES = LearningRates(means=4e-3, means_final=4e-5, scales=1e-2, sh0=1e-2)
"""For some hundred steps in a scene of 1 m; the defaults are for 30,000."""

START_RADIUS_M = 0.4
"""The start fills a ball, of which the torus takes a fifth: a start without knowledge."""


@dataclass(frozen=True)
class TableSettings:
    """How much to measure.

    Attributes:
        seeds: Runs per kind, each with a start, a torus turned at random and an order of views of its own.
        iterations: Optimiser steps.
        size_px: Side of the pictures.
        views: Pictures; every fourth is kept back for the measure.
        start: Gaussians at the start, but for "none".
        budget: Gaussians at the end.
    """

    seeds: int = 10
    iterations: int = 1500
    size_px: int = 96
    views: int = 24
    start: int = 400
    budget: int = 1600


QUICK = TableSettings(seeds=2, iterations=350, size_px=64, views=16, start=100, budget=400)


def make_densifier(kind: str, settings: TableSettings) -> Densifier:
    """One of `KINDS`, with the schedule of a short run: growth from a tenth to seven tenths of it."""
    steps = settings.iterations
    when = {"start": steps // 10, "every": max(10, steps // 30), "stop": int(0.7 * steps)}
    gradient = GradientSettings(settings.budget, size=0.03, prune_size=0.5, reset_every=0, **when)
    makers: dict[str, Callable[[], Densifier]] = {
        "none": NoDensifier,
        "default": lambda: default_densifier(gradient),
        "default_shared_opacity": lambda: default_densifier(replace(gradient, share_opacity=True)),
        "surface": lambda: surface_guided_densifier(gradient),
        # The noise is a factor on the means' rate, which is 25 times 3DGS's here.
        "mcmc": lambda: McmcDensifier(
            McmcSettings(
                settings.budget, noise=2e4, growth=(settings.budget / settings.start) ** 0.1, least_opacity=0.02, **when
            )
        ),
    }
    return makers[kind]()


def grey_ball(count: int, seed: int, radius_m: float = START_RADIUS_M) -> GaussianCloud:
    """Round grey Gaussians that fill a ball around the origin, as wide as half their spacing."""
    rng = np.random.default_rng(seed)
    directions = rng.normal(size=(count, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    spacing = radius_m * (4 * np.pi / 3 / count) ** (1 / 3)
    return GaussianCloud.from_colours(
        directions * radius_m * rng.random((count, 1)) ** (1 / 3),
        np.full((count, 3), 0.5 * spacing),
        np.tile([1.0, 0, 0, 0], (count, 1)),
        np.full(count, 0.3),
        np.full((count, 3), 0.5),
    )


def target_views(pictures: Pictures) -> list[TargetView]:
    """One view per picture."""
    size = pictures.images.shape[-1]
    return [
        TargetView(
            Cameras(torch.from_numpy(pictures.w2c[[i]]), torch.from_numpy(pictures.intrinsics[[i]]), size, size),
            torch.from_numpy(pictures.images[i]),
            torch.from_numpy(pictures.masks[i]),
        )
        for i in range(len(pictures.images))
    ]


def target_picture(view: TargetView) -> np.ndarray:
    """A view [H, W, 3], 0..1, over the mid grey of `optimise_cloud.picture`."""
    mask = torch.ones_like(view.image[0]) if view.mask is None else view.mask
    return (view.image * mask + 0.5 * (1 - mask)).permute(1, 2, 0).numpy()


def psnr(parameters: CloudParameters, views: list[TargetView]) -> float:
    """Over mid grey, of all pixels of all views together, dB."""
    errors = [np.square(picture(parameters, v.cameras) / 255.0 - target_picture(v)).mean() for v in views]
    return -10 * float(np.log10(np.mean(errors)))


@cache
def _views(count: int, size_px: int, seed: int) -> list[TargetView]:
    return target_views(photograph(count, size_px, seed))


def fit(kind: str, seed: int, settings: TableSettings) -> tuple[CloudParameters, list[TargetView]]:
    """One run; returns what it reached and the views that it never saw."""
    views = _views(settings.views, settings.size_px, seed)
    count = settings.budget if kind == "none" else settings.start
    parameters = CloudParameters.from_cloud(grey_ball(count, seed), 1.0, RATES)
    train = [view for number, view in enumerate(views) if number % 4]
    steps = CloudSettings(iterations=settings.iterations, preview_every=0)
    optimise_cloud(parameters, FitViews(train), make_densifier(kind, settings), steps, Context.quiet(seed))
    return parameters, views[::4]


def margin(values: list[float], against: list[float]) -> tuple[float, float]:
    """Mean difference of paired values, and half of its 95 % interval (Student's t)."""
    from scipy import stats

    difference = np.subtract(values, against)
    if len(difference) < 2:
        return float(difference.mean()), float("nan")
    reach = stats.t.ppf(0.975, len(difference) - 1) * difference.std(ddof=1) / len(difference) ** 0.5
    return float(difference.mean()), float(reach)


def main(arguments: list[str] | None = None) -> int:
    """Print the table; write rows and pictures where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="2 seeds, 64 px, 350 iterations")
    parser.add_argument("--seeds", type=int, help="runs per kind")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS, help="which, 'none' is always measured")
    parser.add_argument("--json", type=Path, help="rows as JSON")
    parser.add_argument("--sheet", type=Path, help="PNG: a row per kind, the truth below")
    given = parser.parse_args(arguments)
    settings = QUICK if given.quick else TableSettings()
    settings = replace(settings, seeds=given.seeds or settings.seeds)
    scores: dict[str, list[float]] = {}
    rows, strips = [], []
    for kind in ("none", *[k for k in given.kinds if k != "none"]):
        counts = []
        for seed in range(settings.seeds):
            parameters, unseen = fit(kind, seed, settings)
            scores.setdefault(kind, []).append(psnr(parameters, unseen))
            counts.append(len(parameters))
            if seed == 0:
                strips.append(np.concatenate([picture(parameters, v.cameras) for v in unseen], 1))
                truth = np.concatenate([np.uint8(255 * target_picture(v)) for v in unseen], 1)
        gain, reach = margin(scores[kind], scores["none"])
        mean = float(np.mean(scores[kind]))
        print(
            f"{kind:<24} {mean:6.2f} dB  {gain:+5.2f} +- {reach:4.2f}  {min(counts)}-{max(counts)} splats", flush=True
        )
        rows.append(
            {
                "name": f"densify_{kind}_psnr",
                "value": mean,
                "unit": "dB",
                "against": "densify_none_psnr",
                "against_value": float(np.mean(scores["none"])),
                "ratio": None,
                "n": settings.seeds,
                "device": "cpu",
                "note": f"margin {gain:+.2f} +- {reach:.2f} dB (95 %), {max(counts)} splats, views never seen",
            }  # fmt: skip
        )
    if given.json:
        given.json.write_text(json.dumps(rows, indent=1))
    if given.sheet:
        from PIL import Image

        Image.fromarray(np.concatenate([*strips, truth])).save(given.sheet)
    return 0


if __name__ == "__main__":
    sys.exit(main())
