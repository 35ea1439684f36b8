"""Measure a method against figures of known truth: `python scripts/quality.py --method body [--quick] [--sheet DIR]`.

Makes the oracle figures (Cycles; cached under out/figures), runs the method on their photos, with and without the
outline layer, and prints mean and worst of every measure beside the baselines. `--portrait` measures the demo's
portrait instead, on an existing result folder or on a fresh one.

`--method portrait` measures the stylised portrait on oracle heads and diffusion models of known truth, in pieces
(`--minutes`), or with `--result DIR [--style TEXT] [--style-pictures FOLDER]` the published measures on a real result.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scripts.quality_figures import FigureScore

    Scores = Sequence[FigureScore]
    Measure = Callable[[Any], float]

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

PORTRAIT = ROOT / "scripts" / "data" / "collins.png"
TARGETS = {
    "joint_error": 60.0, "lean_error": 5.0, "yaw_error": 6.0, "iou_45": 0.80, "iou_-45": 0.80, "iou_90": 0.70,
    "psnr_gain_45": 21.0, "psnr_gain_-45": 21.0, "psnr_gain_90": 21.0, "psnr_gain_180": 21.0,
    "psnr_45": 18.0, "psnr_-45": 18.0, "psnr_90": 18.0, "psnr_180": 18.0,
    "portrait_alpha_iou": 0.97, "portrait_psnr": 28.0, "portrait_psnr_eroded": 32.0, "portrait_holes_worst": 0.005,
    "portrait_components_worst": 1.0,
}  # fmt: skip
"""What is asked for: at most for errors, holes and components, at least for the others."""
SMALLER_IS_BETTER = ("error", "holes", "components", "seconds", "specks")


@dataclass(frozen=True)
class Row:
    """One line of the JSON file; `ratio` is how many times better than `against` in the same run."""

    name: str
    value: float
    unit: str
    against: str = ""
    against_value: float | None = None
    n: int = 1
    note: str = ""

    @property
    def ratio(self) -> float | None:
        """How many times better than the baseline; None without one, or where it makes no sense."""
        if self.against_value is None or min(abs(self.value), abs(self.against_value)) < 1e-9:
            return None
        if any(word in self.name for word in SMALLER_IS_BETTER):
            return self.against_value / self.value
        return self.value / self.against_value

    def to_json(self) -> dict[str, object]:
        """The row as design section 9 lists it."""
        named = {"name": self.name, "value": self.value, "unit": self.unit, "against": self.against}
        measured = {"against_value": self.against_value, "ratio": self.ratio, "n": self.n}
        return {**named, **measured, "device": "cpu", "note": self.note}


def main(arguments: list[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: Without the program's name; None takes the process's own.

    Returns:
        The exit code.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", choices=["body", "portrait"], default="body")
    parser.add_argument("--quick", action="store_true", help="two figures, one pose")
    parser.add_argument("--figures", default="", help="names or numbers from 1, separated by commas")
    parser.add_argument("--poses", default="", help="1, 2 or 1,2")
    parser.add_argument("--dev", action="store_true", help="the development figures instead of the reported ones")
    parser.add_argument("--preset", default="balanced")
    parser.add_argument("--no-baseline", action="store_true", help="do not run without the outline layer")
    parser.add_argument("--reuse", action="store_true", help="measure the results that are there already")
    parser.add_argument("--portrait", nargs="?", const="", metavar="RESULT", help="the demo's portrait instead")
    parser.add_argument("--photo", type=Path, default=PORTRAIT, help="the photo of --portrait")
    parser.add_argument("--learned", action="store_true", help="the tables of avatars learned from generated frames")
    parser.add_argument("--only", default="", help="of --learned: names of tables, separated by commas")
    parser.add_argument("--seeds", type=int, default=10, help="of --learned: per line of a table")
    parser.add_argument("--tune", action="store_true", help="of --learned: look for the baselines' best rates first")
    parser.add_argument("--minutes", type=float, help="of --learned, --method portrait: begin no run after that long")
    parser.add_argument("--result", type=Path, help="of --method portrait: measure this result folder instead")
    parser.add_argument("--style", default="", help="of --result: the style's text")
    parser.add_argument("--style-pictures", type=Path, help="of --result: folder with pictures of the style")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--sheet", type=Path, help="folder for pictures to look at")
    parser.add_argument("--work", type=Path, default=ROOT / "out" / "quality")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    given = parser.parse_args(arguments)
    rows = measured(given)
    if given.json:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(json.dumps([row.to_json() for row in rows], indent=1) + "\n")
    return 0


def measured(given: argparse.Namespace) -> list[Row]:
    """What the arguments ask for."""
    if given.method == "portrait":
        # Of the importable module, so that there is one `Row`, also when this file is the program.
        from scripts.quality_portrait import measure_stylised
        from scripts.quality_portrait_result import measure_result

        return measure_result(given) if given.result else measure_stylised(given)
    if given.learned:
        from scripts.quality_persona import measure_learned

        return measure_learned(given)
    return measure_portrait(given) if given.portrait is not None else measure_figures(given)


def run_method(photo: Path, out: Path, settings: Sequence[str], reuse: bool) -> float:
    """Run `backend generate body` in a process of its own.

    Returns:
        Seconds, 0 if a result was there and may be used.

    Raises:
        SystemExit: If the method fails; its last lines are printed.
    """
    if reuse and (out / "avatar.npz").is_file():
        return 0.0
    out.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "backend", "generate", "body", "--image", str(photo), "--out", str(out)]
    for setting in settings:
        command += ["--set", setting]
    began = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"error: {photo} failed with code {done.returncode}: {(done.stderr or done.stdout)[-1500:]}")
    return time.perf_counter() - began


def figure_folders(given: argparse.Namespace) -> list[Path]:
    """Make the figures in a process of their own (bpy and mediapipe do not share one here); their folders."""
    figures, poses = given.figures or ("1,3" if given.quick else ""), given.poses or ("1" if given.quick else "1,2")
    command = [sys.executable, "-m", "tests.oracles.figures", "--threads", str(given.threads), "--poses", poses]
    command += ["--figures", figures] if figures else []
    command += ["--dev"] if given.dev else []
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        raise SystemExit("error: the figures could not be made")
    folders = [Path(line) for line in done.stdout.splitlines() if (Path(line) / "truth.npz").is_file()]
    if not folders:
        raise SystemExit(f"error: no figure is called {figures}")
    return folders


def measure_figures(given: argparse.Namespace) -> list[Row]:
    """Run and measure all chosen figures; prints two tables."""
    from scripts.quality_figures import BundleAvatar, score_avatar, score_cutout
    from scripts.quality_sheets import figure_sheet
    from tests.oracles.figures import load_figure

    avatars: dict[str, FigureScore] = {}
    painted: dict[str, FigureScore] = {}
    cutouts: dict[str, FigureScore] = {}
    seconds = []
    print(PER_FIGURE_HEAD)
    for folder in figure_folders(given):
        truth, name = load_figure(folder), folder.name
        results = {}
        for tag, settings in (("outline", ["outline=true"]), ("painted", ["outline=false"])):
            if tag == "painted" and given.no_baseline:
                continue
            out = given.work / folder.parent.name / tag / name
            took = run_method(folder / "photo.png", out, [*settings, f"preset={given.preset}"], given.reuse)
            seconds += [took] if tag == "outline" and took else []
            results[tag] = score_avatar(BundleAvatar(out), truth)
        avatars[name], pictures = results["outline"]
        cutouts[name] = score_cutout(truth)
        without = None
        if "painted" in results:
            painted[name], without = results["painted"]
        print(per_figure_line(name, avatars[name]), flush=True)
        if given.sheet:
            figure_sheet(given.sheet / f"{name}.png", truth, pictures, without)
    rows = table_rows(list(avatars.values()), list(painted.values()), list(cutouts.values()))
    if seconds:
        rows.append(Row("seconds_per_job_mean", sum(seconds) / len(seconds), "s", n=len(seconds)))
    print_table(rows)
    return rows


PER_FIGURE_HEAD = (
    f"{'figure':<18}{'joints mm':>10}{'scaled':>8}{'lean':>7}{'yaw':>7}"
    f"{'IoU 0':>8}{'45':>7}{'-45':>7}{'90':>7}{'180':>7}{'other':>7}{'dB 45':>8}{'90':>7}{'180':>7}"
)


def per_figure_line(name: str, score: FigureScore) -> str:
    """One figure's numbers; PSNR with one gain."""
    pose, views, other = score.pose, score.views, score.other
    assert pose is not None and other is not None
    line = f"{name:<18}{pose.root_mm:>10.0f}{pose.scaled_mm:>8.0f}{pose.lean_deg:>+7.1f}{pose.yaw_deg:>+7.1f}"
    line += f"{views[0].iou:>8.3f}" + "".join(f"{views[a].iou:>7.3f}" for a in (45, -45, 90, 180))
    line += f"{other.iou:>7.3f}{views[45].psnr_gain_db:>8.1f}"
    return line + "".join(f"{views[a].psnr_gain_db:>7.1f}" for a in (90, 180))


def table_rows(avatars: Scores, painted: Scores, cutouts: Scores) -> list[Row]:
    """Mean and worst of every measure beside both baselines.

    Args:
        avatars: `FigureScore` of the method, one per photo.
        painted: The same without the outline layer, or empty.
        cutouts: The same of the flat cut-out.
    """
    rows: list[Row] = []

    def add(name: str, unit: str, of: Measure, big: bool, baseline: str = "", others: Scores = ()) -> None:
        for kind in ("mean", "worst"):
            value, reference = _reduce([of(s) for s in avatars], kind, big), None
            if others:
                reference = _reduce([of(s) for s in others], kind, big)
            rows.append(Row(f"{name}_{kind}", value, unit, baseline if others else "", reference, len(avatars)))

    add("joint_error", "mm", lambda s: s.pose.scaled_mm, False, "painted body", painted)
    add("joint_error_unscaled", "mm", lambda s: s.pose.root_mm, False)
    add("lean_error", "deg", lambda s: abs(s.pose.lean_deg), False)
    add("yaw_error", "deg", lambda s: abs(s.pose.yaw_deg), False)
    add("iou_0", "", lambda s: s.views[0].iou, True, "painted body", painted)
    for azimuth in (45, -45, 90, 180):
        for baseline, others in (("painted body", painted), ("flat cut-out", cutouts)):
            add(f"iou_{azimuth}", "", lambda s, a=azimuth: s.views[a].iou, True, baseline, others)
    add("iou_other_pose", "", lambda s: s.other.iou, True, "painted body", painted)
    for azimuth in (0, 45, -45, 90, 180):
        add(f"psnr_{azimuth}", "dB", lambda s, a=azimuth: s.views[a].psnr_db, True, "painted body", painted)
        add(f"psnr_gain_{azimuth}", "dB", lambda s, a=azimuth: s.views[a].psnr_gain_db, True, "painted body", painted)
    add("psnr_gain_other_pose", "dB", lambda s: s.other.psnr_gain_db, True, "painted body", painted)
    rows += gain_rows(avatars, painted, cutouts)
    return [row for n, row in enumerate(rows) if row.against or row.name not in {r.name for r in rows[:n]}]


def gain_rows(avatars: Scores, painted: Scores, cutouts: Scores) -> list[Row]:
    """IoU minus the baseline's, figure by figure, over the views at 45, -45 and 90 degrees."""
    rows = []
    for word, baseline, others in (("painted", "painted body", painted), ("cutout", "flat cut-out", cutouts)):
        if not others:
            continue
        for name, azimuths in (("45", (45, -45)), ("90", (90,))):
            gains = [
                sum(a.views[z].iou - b.views[z].iou for z in azimuths) / len(azimuths)
                for a, b in zip(avatars, others, strict=True)
            ]
            for kind in ("mean", "worst"):
                note = f"{baseline}; asked for at least 0.10"
                rows.append(
                    Row(f"iou_gain_{name}_over_{word}_{kind}", _reduce(gains, kind, True), "", n=len(gains), note=note)
                )
    return rows


def _reduce(values: Sequence[float], kind: str, big: bool) -> float:
    if kind == "mean":
        return float(sum(values) / len(values))
    return float(min(values) if big else max(values))


def print_table(rows: Sequence[Row]) -> None:
    """Print the rows with what is asked for; mean and worst of a measure share a line."""
    print(f"\n{'measure':<28}{'mean':>9}{'worst':>9} {'unit':<5}{'asked':>7}   against (mean, worst)")
    lines: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        lines.setdefault((row.name.removesuffix("_mean").removesuffix("_worst"), row.against), []).append(row)
    for (key, _), group in lines.items():
        target = next((TARGETS[n] for n in (key, *(r.name for r in group)) if n in TARGETS), None)
        values = "".join(f"{row.value:>9.3f}" for row in group).ljust(18)
        against = ", ".join(f"{row.against_value:.3f}" for row in group if row.against_value is not None)
        shown = "" if target is None else f"{target:g}"
        print(f"{key:<28}{values} {group[0].unit:<5}{shown:>7}   {group[0].against} {against} {group[0].note}".rstrip())


def measure_portrait(given: argparse.Namespace) -> list[Row]:
    """Measure the demo's portrait; prints a table, writes turntable and expressions to `--sheet`."""
    from scripts.quality_figures import BundleAvatar
    from scripts.quality_sheets import expression_sheet, score_portrait, turntable_sheet

    folder = Path(given.portrait) if given.portrait else given.work / "portrait"
    took = 0.0 if given.portrait else run_method(given.photo, folder, [f"preset={given.preset}"], given.reuse)
    avatar = BundleAvatar(folder)
    if given.sheet:
        turntable_sheet(given.sheet / "portrait_turntable.png", avatar)
        expression_sheet(given.sheet / "portrait_expressions.png", avatar)
    scores = score_portrait(given.photo, avatar, given.sheet)
    holes = ", ".join(f"{100 * h:.2f}" for h in scores.holes)
    rows = [
        Row("portrait_alpha_iou", scores.alpha_iou, ""),
        Row("portrait_psnr", scores.psnr_db, "dB"),
        Row("portrait_psnr_eroded", scores.psnr_eroded_db, "dB"),
        Row("portrait_holes_mean", sum(scores.holes) / len(scores.holes), "", n=12, note=f"percent: {holes}"),
        Row("portrait_holes_worst", max(scores.holes), "", n=12),
        Row("portrait_components_worst", max(scores.components), "", n=12, note=str(scores.components)),
        Row("portrait_cloud_components", scores.cloud_components, "", note=f"{scores.cloud_specks} specks"),
    ]
    rows += [Row("portrait_seconds", took, "s")] if took else []
    print_table(rows)
    return rows


def _with_environment() -> None:
    """Go on in the project's environment when this Python lacks the backend's packages."""
    if all(importlib.util.find_spec(name) for name in ("torch", "mediapipe", "bpy")):
        return
    import environment

    python = str(environment.ready("cpu", "blender"))
    os.execv(python, [python, str(Path(__file__).resolve()), *sys.argv[1:]])


if __name__ == "__main__":
    _with_environment()
    sys.exit(main())
