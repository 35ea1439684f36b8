"""What Style Aligned Sampling is worth, on heads of known truth: `python scripts/quality.py --method portrait`.

SAS against score distillation at four scales, each with the best of three learning rates (by identity, on people and
seeds of development), the same steps and Gaussians; then what every part of the method is worth. Each claim is the mean
over seeds with its 95 % interval (Student's t), and one that fails is printed as failed. The table is made in pieces
(`--minutes`): what was measured is kept in out/quality/portrait.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from scripts.quality_portrait_runs import (
    FACTORS,
    QUICK,
    SDS,
    STRIP_DEG,
    Budget,
    Case,
    Drawn,
    Runs,
    Score,
    drawn,
)

if TYPE_CHECKING:
    from scripts.quality import Row

SEEDS = tuple(range(10))
FACE_SEEDS = (10, 11, 12, 14)
"""Further ones for identity and faces, so that ten of all have an oracle that prefers faces."""

HELD_OUT_SEEDS = tuple(range(40, 50))
NETWORK_SEEDS = tuple(range(60, 70))
DEVELOPMENT_SEEDS = (100, 106)
QUICK_SEEDS = (6, 8)
ABLATIONS = ("no_identity", "no_around", "around_x4", "default_growth")
SCALE_PAIRS = (("zero", "sas_1", "sds_1"), ("weak", "sas_7.5", "sds_7.5"), ("strong", "sas", "sds_50"))
ENOUGH = 10
"""Seeds below which nothing is claimed."""

ASKED_SATURATION, ASKED_FAR = 0.25, 0.30
"""How much lower the saturation error and the number of stray Gaussians have to be, shares."""

Pairs = list[tuple[Score, Score]]


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and half of its 95 % interval; nan for the half with fewer than two values."""
    from scipy import stats

    some = np.asarray(values, float)
    if len(some) < 2:
        return float(some.mean()) if len(some) else float("nan"), float("nan")
    reach = stats.t.ppf(0.975, len(some) - 1) * some.std(ddof=1) / len(some) ** 0.5
    return float(some.mean()), float(reach)


class Table:
    """All runs of a table and what they say."""

    def __init__(self, runs: Runs, budget: Budget, people: int) -> None:
        """Nothing runs yet."""
        self.runs, self.budget, self.people = runs, budget, people
        self.factors: dict[str, float] = {}

    def case(self, variant: str, seed: int, **more: object) -> Case:
        """A reported run, with the learning rates that were chosen for its variant."""
        factor = self.factors.get(variant, self.factors.get("sas", 1.0))
        return replace(Case(variant, seed, factor, budget=self.budget), **more)  # pyright: ignore[reportArgumentType]

    def choose_rates(self, variants: Sequence[str]) -> None:
        """Best of three learning rates by mean identity, for every variant; on development people and seeds."""
        for variant in variants:
            found = {}
            for factor in FACTORS:
                cases = [
                    Case(variant, seed, factor, development=True, budget=self.budget) for seed in DEVELOPMENT_SEEDS
                ]
                scores = [score for case in cases if (score := self.runs(case)) is not None]
                if len(scores) == len(cases):
                    found[factor] = float(np.mean([score.identity for score in scores]))
            if found:
                self.factors[variant] = max(found, key=lambda factor: found[factor])
                shown = ", ".join(f"x{factor:g}: {value:+.2f}" for factor, value in found.items())
                print(f"learning rates of {variant}: x{self.factors[variant]:g} (identity {shown})", flush=True)

    def scores(self, variant: str, seeds: Sequence[int], **more: object) -> dict[int, Score]:
        """Of the seeds for which there was time."""
        made = {seed: self.runs(self.case(variant, seed, **more)) for seed in seeds}
        return {seed: score for seed, score in made.items() if score is not None}

    def pairs(self, one: str, other: str, seeds: Sequence[int], **more: object) -> dict[int, tuple[Score, Score]]:
        """Both variants of the seeds for which both ran."""
        first, second = self.scores(one, seeds, **more), self.scores(other, seeds, **more)
        return {seed: (first[seed], second[seed]) for seed in first if seed in second}

    def drawn(self, seed: int) -> Drawn:
        """What a reported seed decides."""
        return drawn(self.case("sas", seed), self.people)


# ---- the claims ------------------------------------------------------------------------------------------------------


def claim_row(
    name: str, values: Sequence[float], unit: str, held: bool, text: str, ours: float, against: str, theirs: float
) -> Row:
    """A margin with its interval, and whether the claim holds."""
    from scripts.quality import Row

    mean, reach = interval(values)
    verdict = ("held" if held else "FAILED") if len(values) >= ENOUGH else "too few seeds to claim"
    note = f"{verdict}: {text}; margin {mean:+.3f} +- {reach:.3f} (95 %, n = {len(values)})"
    return Row(name, ours, unit, against, theirs, len(values), note)


def saturation_rows(name: str, pairs: dict[int, tuple[Score, Score]], rival: str) -> list[Row]:
    """SAS against the chosen rival: saturation error, and identity that must not be lower."""
    ours, theirs = zip(*pairs.values(), strict=True)
    errors = [a.saturation_error for a in ours], [b.saturation_error for b in theirs]
    means = float(np.mean(errors[0])), float(np.mean(errors[1]))
    margins = [b - a for a, b in zip(*errors, strict=True)]
    mean, reach = interval(margins)
    lower = 1 - means[0] / max(means[1], 1e-9)
    held = lower >= ASKED_SATURATION and mean - reach > 0
    text = f"{100 * lower:.0f} % lower than {rival}, asked for {100 * ASKED_SATURATION:.0f} %"
    rows = [claim_row(f"{name}_saturation_error", margins, "", held, text, means[0], rival, means[1])]
    spread = [b.saturation_distance - a.saturation_distance for a, b in pairs.values()]
    mean, reach = interval(spread)
    distances = (
        float(np.mean([s.saturation_distance for s in ours])),
        float(np.mean([s.saturation_distance for s in theirs])),
    )
    text = "the whole distribution of saturation is nearer to the style's"
    rows.append(
        claim_row(
            f"{name}_saturation_distance_error", spread, "", mean - reach > 0, text, distances[0], rival, distances[1]
        )
    )
    gains = [a.identity - b.identity for a, b in pairs.values()]
    mean, reach = interval(gains)
    identities = float(np.mean([s.identity for s in ours])), float(np.mean([s.identity for s in theirs]))
    text = "identity is equal (its interval reaches 0) or better"
    rows.append(claim_row(f"{name}_identity", gains, "", mean + reach >= 0, text, identities[0], rival, identities[1]))
    return rows


def identity_row(pairs: dict[int, tuple[Score, Score]]) -> Row:
    """Without the identity's tokens, identity drops."""
    gains = [a.identity - b.identity for a, b in pairs.values()]
    mean, reach = interval(gains)
    ours, theirs = (float(np.mean([pair[k].identity for pair in pairs.values()])) for k in (0, 1))
    return claim_row(
        "identity_term", gains, "", mean - reach > 0, "identity drops without its tokens", ours, "no_identity", theirs
    )


def face_rows(name: str, pairs: dict[int, tuple[Score, Score]], biased: Sequence[int]) -> list[Row]:
    """Without the four-view term a second face appears, with it none; over the seeds whose oracle prefers faces."""
    some = [pairs[seed] for seed in biased if seed in pairs]
    if not some:
        return []
    counts = [float(np.mean([pair[k].faces > 1 for pair in some])) for k in (0, 1)]
    clear = [pair[1].second_face - pair[0].second_face for pair in some]
    mean, reach = interval(clear)
    text = (
        f"a second face in {100 * counts[1]:.0f} % of the heads without the four views and in {100 * counts[0]:.0f} % "
        "with them (asked for: some, and none)"
    )
    held = counts[1] > 0 and counts[0] == 0
    rows = [claim_row(f"{name}_second_faces", [b.faces - a.faces for a, b in some], "", held, text, counts[0],
                      "no_around", counts[1])]  # fmt: skip
    means = [float(np.mean([pair[k].second_face for pair in some])) for k in (0, 1)]
    text = "the clearest face beyond 100 degrees is weaker with the four views"
    return [*rows, claim_row(f"{name}_back_face", clear, "", mean - reach > 0, text, means[0], "no_around", means[1])]


def far_row(pairs: dict[int, tuple[Score, Score]]) -> Row:
    """Growth along the surface leaves fewer Gaussians further than 1 cm from it."""
    ours, theirs = (float(np.mean([pair[k].far for pair in pairs.values()])) for k in (0, 1))
    margins = [float(b.far - a.far) for a, b in pairs.values()]
    mean, reach = interval(margins)
    fewer = 1 - ours / max(theirs, 1e-9)
    text = f"{100 * fewer:.0f} % fewer further than 1 cm, asked for {100 * ASKED_FAR:.0f} %"
    held = fewer >= ASKED_FAR and mean - reach > 0
    return claim_row("surface_guided_far_holes", margins, "Gaussians", held, text, ours, "default_growth", theirs)


def strength_rows(
    name: str,
    pairs: dict[int, tuple[Score, Score]],
    strength: Callable[[int], float],
    gain: Callable[[Score, Score], float],
) -> list[Row]:
    """A gain against the defect's strength: none, and the weaker and the stronger half of the rest."""
    from scripts.quality import Row

    order = sorted(pairs, key=strength)
    none = [seed for seed in order if strength(seed) == 0]
    rest = [seed for seed in order if strength(seed) > 0]
    half = len(rest) // 2
    rows = []
    for word, seeds in (("zero", none), ("weak", rest[:half]), ("strong", rest[half:])):
        if not seeds:
            continue
        mean, reach = interval([gain(*pairs[seed]) for seed in seeds])
        shown = f"strength {min(map(strength, seeds)):.2f} to {max(map(strength, seeds)):.2f}, +- {reach:.3f}"
        rows.append(Row(f"{name}_gain_{word}", mean, "", n=len(seeds), note=shown))
    return rows


# ---- the table -------------------------------------------------------------------------------------------------------


def variant_rows(table: Table, variants: Sequence[str], seeds: Sequence[int]) -> list[Row]:
    """Mean and interval of what is measured, per variant."""
    from scripts.quality import Row

    print(f"\n{'variant':<18}{'n':>3}{'identity':>16}{'recog.':>8}{'saturation error':>20}{'distance':>10}"
          f"{'faces>1':>9}{'back face':>11}{'far':>8}{'s':>7}")  # fmt: skip
    rows = []
    for variant in variants:
        scores = list(table.scores(variant, seeds).values())
        if not scores:
            continue
        identity, error = interval([s.identity for s in scores]), interval([s.saturation_error for s in scores])
        means = {
            key: float(np.mean([getattr(s, key) for s in scores]))
            for key in ("recognised", "saturation_distance", "second_face", "far", "seconds")
        }
        doubled = float(np.mean([s.faces > 1 for s in scores]))
        print(f"{variant:<18}{len(scores):>3}{identity[0]:>9.3f} +-{identity[1]:.3f}{means['recognised']:>8.2f}"
              f"{error[0]:>12.4f} +-{error[1]:.4f}{means['saturation_distance']:>10.4f}{doubled:>9.2f}"
              f"{means['second_face']:>11.2f}{means['far']:>8.0f}{means['seconds']:>7.1f}")  # fmt: skip
        for name, (value, reach) in (("identity", identity), ("saturation_error", error)):
            rows.append(Row(f"portrait_{variant}_{name}", value, "", n=len(scores), note=f"+- {reach:.4f} (95 %)"))
        rows.append(Row(f"portrait_{variant}_second_faces", doubled, "", n=len(scores)))
        rows.append(Row(f"portrait_{variant}_far_holes", means["far"], "Gaussians", n=len(scores)))
    return rows


def scale_rows(table: Table, seeds: Sequence[int]) -> list[Row]:
    """What the style map gains in saturation error where guidance overshoots not at all, a little, and most."""
    from scripts.quality import Row

    rows = []
    for word, ours, theirs in SCALE_PAIRS:
        pairs = table.pairs(ours, theirs, seeds)
        if pairs:
            mean, reach = interval([b.saturation_error - a.saturation_error for a, b in pairs.values()])
            note = f"{ours} against {theirs}, +- {reach:.4f}"
            rows.append(Row(f"sas_saturation_gain_{word}", mean, "", n=len(pairs), note=note))
    return rows


def claim_rows(table: Table, seeds: Sequence[int], variants: Sequence[str]) -> list[Row]:
    """All claims about the variants, on the seeds for whose runs there was time."""
    identity = {v: [s.identity for s in table.scores(v, seeds).values()] for v in SDS if v in variants}
    measured = {v: float(np.mean(values)) for v, values in identity.items() if len(values) > 1}
    if not measured:
        return []
    rival = max(measured, key=lambda variant: measured[variant])
    rows = []
    main = table.pairs("sas", rival, seeds)
    if main:
        rows += saturation_rows("sas", main, rival)
    further = () if seeds is QUICK_SEEDS else FACE_SEEDS
    if pairs := table.pairs("sas", "no_identity", (*seeds, *further)):
        rows.append(identity_row(pairs))
    for name, variant in (("four_views", "sas"), ("four_views_x4", "around_x4")):
        if "no_around" not in variants:
            break
        pairs = table.pairs(variant, "no_around", (*seeds, *further))
        rows += face_rows(name, pairs, [seed for seed in pairs if table.drawn(seed).face_bias > 0])
        rows += strength_rows(
            name, pairs, lambda seed: table.drawn(seed).face_bias, lambda a, b: b.second_face - a.second_face
        )
    if pairs := table.pairs("sas", "default_growth", seeds):
        rows.append(far_row(pairs))
    if seeds is SEEDS:
        for name, more, other in (
            ("held_out_style", {"held_out": True}, HELD_OUT_SEEDS),
            ("network", {"kind": "network"}, NETWORK_SEEDS),
        ):
            if pairs := table.pairs("sas", rival, other, **more):
                rows += saturation_rows(name, pairs, rival)
        rows += scale_rows(table, seeds)
    return rows


def print_claims(rows: Sequence[Row]) -> None:
    """One line each."""
    print()
    for row in rows:
        against = "" if row.against_value is None else f" against {row.against_value:.4f} ({row.against})"
        print(f"{row.name:<34}{row.value:>9.4f}{against}  {row.note}")


def sheet(table: Table, variants: Sequence[str], seeds: Sequence[int], folder: Path) -> None:
    """A picture per seed: a row per variant from eight sides, the truth below."""
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    for seed in seeds:
        cases = [table.case(variant, seed) for variant in variants]
        strips = [path for case in cases if (path := table.runs.strip(case)).is_file()]
        if strips:
            rows = [np.asarray(Image.open(path)) for path in (*strips, table.runs.truth(cases[0]))]
            big = np.concatenate(rows).repeat(2, 0).repeat(2, 1)
            Image.fromarray(big).save(folder / f"portrait_{seed}.png")
            print(f"{folder / f'portrait_{seed}.png'}: {', '.join(v.stem for v in strips)}, truth; {STRIP_DEG}")


def measure_stylised(given: argparse.Namespace) -> list[Row]:
    """The table, or its short form; see `scripts/quality.py` for the arguments."""
    budget, seeds = (QUICK, QUICK_SEEDS) if given.quick else (Budget(), SEEDS)
    until = None if given.minutes is None else time.monotonic() + 60 * given.minutes
    runs = Runs(given.work / "portrait", until)
    table = Table(runs, budget, budget.people)
    rivals = ("sds_50",) if given.quick else tuple(SDS)
    ablations = ("no_identity", "default_growth") if given.quick else ABLATIONS
    variants = ("sas", *rivals, *ablations)
    if not given.quick:
        table.choose_rates(("sas", *rivals))
    for seed in seeds:  # seed by seed, so that a table whose time ran out has all variants of the first seeds
        for variant in variants:
            runs(table.case(variant, seed))
    rows = variant_rows(table, variants, seeds) + claim_rows(table, seeds, variants)
    print_claims([row for row in rows if row.note and not row.name.startswith("portrait_")])
    if runs.left_out:
        print(f"{runs.left_out} runs had no time; the same command goes on with them")
    if given.sheet:
        sheet(table, variants, seeds[:4], given.sheet)
    return rows
