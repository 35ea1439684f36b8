"""What learned avatars must show, by oracle: `python scripts/quality.py --method body --learned [--quick]`.

Oracle figures of known truth perform both training motions; an avatar learns from their pictures, in two ways that a
table compares; pictures in poses that were held out judge. Every seed has a figure and defects of its own, and both
ways see the same pictures, the same first colours and the same number of steps. A line says what was asked for and
whether it is met: the mean over the seeds, where the interval of 95 % excludes zero. Results of single seeds are kept
under the work folder, so that a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from scipy import stats

from backend.splats.persona import Branch, PersonaAvatar
from scripts.quality import Row
from scripts.quality_persona_controls import control_scores, fitted
from scripts.quality_persona_oracle import SIZES, View, perform, sights, specs, template_of
from scripts.quality_persona_runs import Arm, learn, score
from scripts.quality_persona_sheet import write_sheet
from tests.oracles.video_defects import DEVELOPED, HELD_OUT, Defects, Kind

VERSION = 1
"""Of what a kept result means; a change of the method or the oracle asks for another work folder."""

LEAST_SEEDS = 10
"""A claim of fewer is not sure."""

COST_DB = 0.2
"""What may be lost where there is no defect."""

RATES = (1.0, 0.3, 3.0)
QUICK_STEPS = 60
Results = Mapping[str, Mapping[str, float]]

FIRST_SEED = {False: 1, True: 101}
"""Of the development and of the reported runs."""


@dataclass(frozen=True)
class Case:
    """One comparison.

    Attributes:
        name: Of its rows. title: What it is about.
        view: Camera. cells_m: Sides of the template's cells, coarse and, on the joints `fine`, fine.
        every: Of the performance's frames one in so many is shown.
        without, with_: What is compared; the gain is that of the second over the first.
        target_db: Gain asked for, of the region.
        kinds: Kinds of defect. strengths: Of them, each a line of the table.
        plain: See `perform`. hung: Clothes follow the bones, without simulation.
        rate: Factor on the first one's rates, the best of `RATES` on the development figures (`--tune` looks again).
        at_zero: Whether the gain is asked for without defects too.
        halves_shift: Whether the colour's shift is asked to be halved.
    """

    name: str
    title: str
    view: View
    cells_m: tuple[float, float]
    fine: tuple[str, ...]
    every: int
    without: Arm
    with_: Arm
    target_db: float
    kinds: tuple[Kind, ...]
    strengths: tuple[float, ...] = (0.0, 1.0)
    plain: bool = False
    hung: bool = False
    rate: float = 1.0
    at_zero: bool = False
    halves_shift: bool = False


STEPS = 240
HEAD = ("head", "jaw", "left_eye", "right_eye", "neck")
HANDS = ("left_wrist", "right_wrist", *(f"{side}_{finger}{k}" for side in ("left", "right")
         for finger in ("index", "middle", "ring", "pinky", "thumb") for k in (1, 2, 3)))  # fmt: skip
CHEST = ("spine1", "spine2", "spine3", "left_collar", "right_collar", "left_shoulder", "right_shoulder")
CASES = (
    Case(
        "deformation", "held-out poses, moving cloth: deformation on against off", "body", (0.022, 0.03),
        (*HEAD, *HANDS), 4, Arm(STEPS, deform=False), Arm(STEPS), 1.0, DEVELOPED, plain=True, at_zero=True,
    ),
    Case(
        "linear", "the same with a network that is linear in the pose, as controls are", "body", (0.022, 0.03),
        (*HEAD, *HANDS), 4, Arm(STEPS, deform=False), Arm(STEPS, linear=True), 1.0, DEVELOPED, (0.0,), plain=True,
        at_zero=True,
    ),
    Case(
        "balanced", "face under identity drift: balanced against uniform sampling", "face", (0.05, 0.009),
        HEAD, 6, Arm(STEPS, deform=False, sampling="uniform"), Arm(STEPS, deform=False), 1.5, ("drift",),
        (0.0, 0.5, 1.0), hung=True, halves_shift=True,
    ),
    Case(
        "weighting", "chest under texture swimming: geometry-weighted against image-weighted", "chest", (0.05, 0.012),
        CHEST, 4, Arm(STEPS, image_weighted=True), Arm(STEPS), 1.0, ("swimming",), hung=True,
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Piece:
    """One seed of one line of one table: the figure, its defects, how they are learned from."""

    case: Case
    reported: bool
    number: int
    kinds: tuple[Kind, ...]
    strength: float
    rate: float = 1.0

    @property
    def figure(self) -> str:
        """Its name; the figures take turns."""
        names = specs(self.reported)
        return names[self.number % len(names)]

    @property
    def seed(self) -> int:
        """Of the defects and of the learning."""
        return FIRST_SEED[self.reported] + self.number

    def file(self, work: Path) -> Path:
        """Where its result is kept."""
        about = repr((VERSION, self, SIZES[self.case.view]))
        digest = hashlib.sha256(about.encode()).hexdigest()[:12]
        return work / self.case.name / f"{self.figure}_{self.seed}_{self.strength:g}_{digest}.json"


def measure(piece: Piece, work: Path, sheet: Path | None = None) -> Results:
    """Learn both ways and score them; what is kept already is read, but for a sheet of pictures."""
    file = piece.file(work)
    if file.is_file() and sheet is None:
        return json.loads(file.read_text())
    case, began = piece.case, time.perf_counter()
    performance = perform(piece.figure, work, plain=case.plain, hung=case.hung)
    frames = range(0, len(performance.poses), case.every)
    body = performance.figure.body
    template = template_of(body, case.cells_m[0], case.fine, case.cells_m[1])
    shown = list(sights(performance, frames, case.view, Defects(piece.seed, piece.kinds, piece.strength)))
    learned_from = [one.frame for one, k in zip(shown, frames, strict=True) if not performance.held_out[k]]
    unseen = [k for k in frames if performance.held_out[k]]
    truth = list(sights(performance, unseen, case.view, Defects(piece.seed, ())))
    made: dict[str, dict[str, float]] = {}
    avatars: dict[str, PersonaAvatar] = {}
    for name, arm in (("without", replace(case.without, rate=piece.rate)), ("with", case.with_)):
        avatar = learn(template, body.name, learned_from, arm, piece.seed)
        avatars[name] = avatar
        branch: Branch = "refined" if arm.deform else "plain"
        made[name] = asdict(score(avatar, truth, branch))
        if case.view == "body":
            wrong = list(sights(performance, unseen[::3], case.view, Defects(piece.seed, ("labels",))))
            made[name]["told_db"] = score(avatar, wrong, branch).region_db
            made[name]["fitted_db"] = score(
                avatar, [fitted(avatar, one, arm.deform) for one in wrong], branch
            ).region_db
    if case.view == "body" and piece.strength == 0:
        poses = performance.poses
        made["controls"] = control_scores(
            avatars["with"], poses[~performance.held_out], poses[performance.held_out], truth[::3], piece.seed,
            body.joint_names,
        )  # fmt: skip
    made["about"] = {"seconds": time.perf_counter() - began, "gaussians": len(template), "frames": len(learned_from)}
    if sheet is not None:
        write_sheet(
            sheet / f"{case.name}_{piece.figure}_{piece.seed}_{piece.strength:g}.png", avatars, truth, performance
        )
    file.parent.mkdir(parents=True, exist_ok=True)
    file.with_suffix(".part").write_text(json.dumps(made))
    file.with_suffix(".part").replace(file)
    return made


@dataclass(frozen=True)
class Mean:
    """Of differences over seeds: mean, half of the 95 % interval (Student's), how many."""

    value: float
    half: float
    n: int

    @property
    def sure(self) -> bool:
        """Whether the interval excludes zero."""
        return abs(self.value) > self.half


def mean_of(values: Sequence[float]) -> Mean:
    """Mean and interval; without an interval where there is one value."""
    count = len(values)
    half = float("inf")
    if count > 1:
        half = float(stats.t.ppf(0.975, count - 1) * np.std(values, ddof=1) / np.sqrt(count))
    return Mean(float(np.mean(values)), half, count)


@dataclass(frozen=True)
class Line:
    """One line of the printed table, and its row of the JSON file."""

    name: str
    unit: str
    mean: Mean
    target: float | None
    at_least: bool = True
    note: str = ""

    @property
    def verdict(self) -> str:
        """Whether what is asked for is met; empty where nothing is asked for."""
        if self.target is None:
            return ""
        value, sure = self.mean.value, self.mean.sure and self.mean.n >= LEAST_SEEDS
        if not (value >= self.target if self.at_least else value <= self.target):
            return "FAILED"
        return "met" if sure or self.target <= 0 else "FAILED (not sure)"

    def row(self) -> Row:
        """As the JSON file has it."""
        half = f"95 % interval +- {self.mean.half:.3g}" if self.mean.n > 1 else ""
        about = [half, self.note]
        if self.target is not None:
            about.append(f"asked {'>=' if self.at_least else '<='} {self.target:g}: {self.verdict}")
        return Row(self.name, self.mean.value, self.unit, n=self.mean.n, note="; ".join(a for a in about if a))


def lines_of(
    case: Case, strength: float, kinds: tuple[Kind, ...], results: Sequence[Results], asked: bool
) -> list[Line]:
    """What a table says of one strength; only full strength of the developed kinds, and zero, are asked for."""
    about = f"{'+'.join(kinds) if strength else 'no defect'}, strength {strength:g}"
    name = f"{case.name}_{'held_out_' if kinds == (HELD_OUT,) else ''}{strength:g}"

    def each(way: str, measure_: str) -> list[float]:
        return [result[way][measure_] for result in results]

    def gain(measure_: str) -> Mean:
        return mean_of([b - a for a, b in zip(each("without", measure_), each("with", measure_), strict=True)])

    target = None
    if asked:
        target = case.target_db if strength or case.at_zero else -COST_DB
    made = [
        Line(f"{name}_without", "dB", mean_of(each("without", "region_db")), None, note=about),
        Line(f"{name}_with", "dB", mean_of(each("with", "region_db")), None),
        Line(f"{name}_gain", "dB", gain("region_db"), target),
        Line(f"{name}_person_gain", "dB", gain("person_db"), None),
    ]
    if case.halves_shift:
        ratios = [b / max(a, 1e-6) for a, b in zip(each("without", "shift"), each("with", "shift"), strict=True)]
        wanted = 0.5 if asked and strength else None
        made.append(Line(f"{name}_shift_ratio", "", mean_of(ratios), wanted, at_least=False, note="colour shift"))
    if all("fitted_db" in result["with"] for result in results):
        made += [
            Line(f"{name}_told_poses_gain", "dB", gain("told_db"), None, note="test poses 1 to 3 degrees wrong"),
            Line(f"{name}_fitted_poses_gain", "dB", gain("fitted_db"), None, note="the same, fitted, avatar frozen"),
            Line(f"{name}_told_poses_with", "dB", mean_of(each("with", "told_db")), None),
            Line(f"{name}_fitted_poses_with", "dB", mean_of(each("with", "fitted_db")), None),
        ]
    if strength == 0.0 and all("controls" in result for result in results):
        made += control_lines(case.name, results)
    return made


def control_lines(name: str, results: Sequence[Results]) -> list[Line]:
    """Controls against the network."""
    made = [Line(f"{name}_network_rms", "mm", mean_of([r["controls"]["rms_mm"] for r in results]), None)]
    for count, most in ((24, 0.15), (96, 0.07)):
        for what in ("truncation", "coefficients", "total"):
            values = [result["controls"][f"{what}_{count}"] for result in results]
            wanted = most if what == "total" else None
            made.append(Line(f"{name}_controls_{count}_{what}_error", "", mean_of(values), wanted, at_least=False))
        values = [result["controls"][f"db_{count}"] for result in results]
        made.append(Line(f"{name}_controls_{count}_db", "dB", mean_of(values), 35.0))
    return made


def chosen_rate(case: Case, given: argparse.Namespace) -> float:
    """Factor on the first way's rate: the best of three on the development figures, at full strength."""
    if given.quick or not given.tune:
        return case.rate
    found = {}
    for rate in RATES:
        pieces = [Piece(case, False, number, case.kinds, 1.0, rate) for number in range(2)]
        found[rate] = np.mean([measure(piece, given.work)["without"]["region_db"] for piece in pieces])
        print(f"  {case.name}: rate x {rate:g}: {found[rate]:.2f} dB on the development figures", flush=True)
    return max(found, key=lambda rate: found[rate])


def measure_learned(given: argparse.Namespace) -> list[Row]:
    """Measure all tables, or those named by `--only`; prints them and gives their rows."""
    torch.set_num_threads(given.threads)
    began, rows = time.perf_counter(), []
    given.work = given.work / "learned"
    for case in CASES:
        if given.only and case.name not in given.only.split(","):
            continue
        case = small(case) if given.quick else case
        print(f"\n{case.title}\n{'':<38}{'mean':>9} {'95 %':>8} {'n':>3} unit   asked    verdict", flush=True)
        rate = chosen_rate(case, given)
        count = 1 if given.quick else given.seeds
        strengths = [(s, case.kinds, True) for s in case.strengths]
        if not given.quick:
            strengths.append((1.0, (HELD_OUT,), False))
        for strength, kinds, asked in strengths:
            results: list[Results] = []
            for number in range(count):
                piece = Piece(case, not (given.dev or given.quick), number, kinds, strength, rate)
                late = given.minutes and time.perf_counter() - began > 60 * given.minutes
                if late and not piece.file(given.work).is_file():
                    break
                results.append(measure(piece, given.work, given.sheet))
            if results:
                lines = lines_of(case, strength, kinds, results, asked and not given.quick)
                rows += [line.row() for line in lines]
                print("\n".join(printed(line) for line in lines), flush=True)
    return rows


def printed(line: Line) -> str:
    """One line of the table."""
    asked = "" if line.target is None else f"{'>=' if line.at_least else '<='} {line.target:g}"
    half = "" if line.mean.n < 2 else f"{line.mean.half:.3f}"
    text = f"{line.name:<38}{line.mean.value:>9.3f} {half:>8} {line.mean.n:>3} {line.unit:<6} {asked:<8} {line.verdict}"
    return f"{text:<84}{line.note}".rstrip()


def small(case: Case) -> Case:
    """A minute's version of a case: few frames, few steps, no simulation."""
    without, with_ = (replace(arm, steps=QUICK_STEPS) for arm in (case.without, case.with_))
    return replace(case, without=without, with_=with_, every=12, hung=True, strengths=(1.0,))
