"""Measure what a further photo from behind gives: `python scripts/quality_further.py [--figures dev1,dev2] [--dev]`.

Runs the method on oracle figures without and with a photo from behind (tests/oracles/back_photos.py) and compares both
with the true picture at 180 degrees: pixel by pixel, and block by block after the best small shift, since a stripe that
lies a centimetre off is no worse to look at than a rule's guess of it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

if TYPE_CHECKING:
    from scripts.quality_figures import BundleAvatar
    from tests.oracles.figures import FigureTruth

PHOTOS = ("round", "turned", "print_round", "print_turned")
BLOCK_PX, SHIFT_PX = 24, 6
"""Of the views, in which a person is about 330 px high: blocks of 12 cm, moved by 3 cm at most."""


def tolerant_psnr(drawn: np.ndarray, truth: np.ndarray) -> float:
    """PSNR in dB inside both outlines, of blocks after the best shift each, with one gain for all.

    Args:
        drawn: [H, W, 4] straight alpha, 0..1.
        truth: [H, W, 4] 0..1.
    """
    both = (drawn[..., 3] > 0.5) & (truth[..., 3] > 0.5)
    a, b = drawn[..., :3], truth[..., :3]
    gain = float((a[both] * b[both]).sum() / max(float((a[both] ** 2).sum()), 1e-9))
    steps = range(-SHIFT_PX, SHIFT_PX + 1, 2)
    errors = []
    for y, x in ((y, x) for y in steps for x in steps):
        moved, there = (np.roll(p, (y, x), axis=(0, 1)) for p in (gain * a, drawn[..., 3] > 0.5))
        counted = there & (truth[..., 3] > 0.5)
        errors.append((_blocks(np.square(moved - b).mean(axis=2) * counted), _blocks(counted.astype(float))))
    sums, counts = (np.stack(group) for group in zip(*errors, strict=True))
    enough = counts > 0.6 * counts.max(axis=0, keepdims=True)
    mean = np.where(enough & (counts > 8), sums / np.maximum(counts, 1), np.inf).min(axis=0)
    weight = counts.max(axis=0) * np.isfinite(mean)
    return float(-10 * np.log10((np.where(weight > 0, mean, 0) * weight).sum() / weight.sum()))


def _blocks(picture: np.ndarray) -> np.ndarray:
    height, width = (n // BLOCK_PX * BLOCK_PX for n in picture.shape)
    cut = picture[:height, :width].reshape(height // BLOCK_PX, BLOCK_PX, width // BLOCK_PX, BLOCK_PX)
    return cut.sum(axis=(1, 3))


def from_behind(avatar: BundleAvatar, truth: FigureTruth, wanted: np.ndarray) -> tuple[float, float, float]:
    """PSNR with one gain, the same after small shifts, and IoU, at 180 degrees."""
    from scripts.quality_figures import compare_views
    from tests.oracles.figures import VIEW_ZOOM

    height, width = wanted.shape[:2]
    drawn = avatar.draw(180, (width, height), VIEW_ZOOM)
    score = compare_views(drawn, wanted)
    return score.psnr_gain_db, tolerant_psnr(drawn, wanted), score.iou


def folders(given: argparse.Namespace) -> list[Path]:
    """Make the figures and their photos from behind, in a process of their own."""
    command = [sys.executable, "-m", "tests.oracles.back_photos", "--threads", str(given.threads)]
    command += ["--figures", given.figures] if given.figures else []
    command += ["--dev"] if given.dev else []
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        raise SystemExit("error: the figures could not be made")
    return [Path(line) for line in done.stdout.splitlines() if (Path(line) / "truth.npz").is_file()]


def measure(folder: Path, names: tuple[str, ...], given: argparse.Namespace) -> dict[str, tuple[float, float, float]]:
    """All measures of one figure by photo; "none" and "print_none" are without one."""
    from PIL import Image

    from scripts.quality import run_method
    from scripts.quality_figures import BundleAvatar
    from tests.oracles.figures import load_figure

    truth, made = load_figure(folder), {}
    views = {"": truth.views[180] / 255.0, "print": np.asarray(Image.open(folder / "back" / "print_180.png")) / 255.0}
    for name in ("none", *names):
        out = given.work / folder.name / name
        more = [] if name == "none" else [f"photos={folder / 'back' / f'{name}.png'}"]
        run_method(folder / "photo.png", out, [f"preset={given.preset}", *more], given.reuse)
        avatar = BundleAvatar(out)
        kinds = ("", "print") if name == "none" else ("print" if name.startswith("print") else "",)
        for kind in kinds:
            made[f"print_{name}" if kind and name == "none" else name] = from_behind(avatar, truth, views[kind])
    return made


def main(arguments: list[str] | None = None) -> int:
    """Command line."""
    from scripts.quality import Row

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--figures", default="", help="names separated by commas; default all")
    parser.add_argument("--dev", action="store_true", help="the development figures instead of the reported ones")
    parser.add_argument("--photos", default=",".join(PHOTOS), help="which photos from behind")
    parser.add_argument("--preset", default="fast")
    parser.add_argument("--reuse", action="store_true", help="measure the results that are there already")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--work", type=Path, default=ROOT / "out" / "quality_further")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    given = parser.parse_args(arguments)
    names = tuple(name for name in given.photos.split(",") if name)
    every = {folder.name: measure(folder, names, given) for folder in folders(given)}
    rows: list[Row] = []
    print(f"{'figure':<12}{'photo':<14}{'dB 180':>8}{'without':>9}{'shifted':>9}{'without':>9}{'IoU':>7}")
    for figure, made in every.items():
        for name in names:
            without = made["print_none" if name.startswith("print") else "none"]
            line = "".join(f"{a:>8.2f}{b:>9.2f}" for a, b in zip(made[name][:2], without[:2], strict=True))
            print(f"{figure:<12}{name:<14}{line}{made[name][2]:>7.3f}", flush=True)
    for name in names:
        base = "print_none" if name.startswith("print") else "none"
        for column, word in enumerate(("psnr_gain_180", "psnr_shifted_180")):
            value, against = (float(np.mean([made[n][column] for made in every.values()])) for n in (name, base))
            rows.append(Row(f"{word}_{name}", value, "dB", "no further photo", against, len(every)))
            print(f"{rows[-1].name:<34}{value:>7.2f} dB, without {against:.2f}")
    if given.json:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(json.dumps([row.to_json() for row in rows], indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
