"""How long the add-on holds Blender's interface up: `python -m tests.gui.measure BUNDLE [--splats N] [--json FILE]`.

The design allows 50 ms while something is waited for, and 0.3 s for the insertion of 100k Gaussians. Needs what the
tests in a real Blender need.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from blender_addon.shared.avatar import read_bundle, write_bundle
from tests.gui.debian import NoRootError, find_or_make_root
from tests.gui.desktop import Desktop
from tests.gui.test_faults import STAND_IN

_PLAY = """
export EFFIGY_STAND_IN_S=3 EFFIGY_STAND_IN_BUNDLE=/out/bundle
timeout 280 blender --window-geometry 0 0 1200 800 -P {root}/tests/gui/inside_measure.py > /out/measure.log 2>&1
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path, help="a real avatar's folder")
    parser.add_argument("--splats", type=int, default=100_000, help="so many of its Gaussians")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        out = Path(temporary)
        count = thin_bundle(options.bundle, out / "bundle", options.splats)
        try:
            desktop = Desktop(find_or_make_root(), out, (1200, 800))
        except NoRootError as error:
            print(f"no real Blender: {error}", file=sys.stderr)
            return 1
        desktop.install()
        desktop.play(STAND_IN + _PLAY, timeout_s=300)
        measured = json.loads((out / "measured.json").read_text("utf-8"))
    rows = list(table(measured, count))
    for row in rows:
        print(f"{row['name']:34} {row['value']:8.1f} {row['unit']}  ({row['note']})")
    if options.json is not None:
        options.json.write_text(json.dumps(rows, indent=1) + "\n", "utf-8")
    return 0


def thin_bundle(source: Path, target: Path, most: int) -> int:
    """Copy a bundle with at most `most` of its Gaussians; returns how many it has."""
    cloud, avatar = read_bundle(source)
    keep = np.sort(np.random.default_rng(0).permutation(len(cloud))[:most])
    bound = {name: getattr(avatar, name)[keep] for name in vars(avatar) if name.startswith("bind_")}
    target.mkdir()
    write_bundle(target, cloud.select(keep), replace(avatar, **bound))
    return len(keep)


def table(measured: dict, count: int) -> list[dict[str, object]]:
    """Rows as `bench --json` has them."""
    idle, running = measured["gaps_ms"]["idle"], measured["gaps_ms"]["running"]
    late = f"without a job {max(idle, default=0):.0f} ms; both with the redraws of software drawing"
    return [
        *longest("interface_tick", measured["ticks_ms"], "while a job runs"),
        *longest("interface_panel_draw", measured["draws_ms"], "of the two panels that follow a job"),
        row("interface_timer_late_longest", max(running), f"how late a timer of 5 ms comes; {late}"),
        *longest("interface_insert", measured["inserts_ms"], f"{count} Gaussians, undo step included"),
    ]


def longest(name: str, times: list[tuple[float, float]], what: str) -> list[dict[str, object]]:
    """Longest and median by the clock and of the processor."""
    wall, cpu = np.array(times).T
    note = f"{what}; {len(wall)} times, median {np.median(wall):.1f} ms, shortest {wall.min():.1f} ms"
    more = f"of the main thread's processor time; median {np.median(cpu):.1f} ms"
    return [row(f"{name}_longest", float(wall.max()), note), row(f"{name}_longest_cpu", float(cpu.max()), more)]


def row(name: str, value: float, note: str) -> dict[str, object]:
    return {"name": name, "value": value, "unit": "ms", "n": 1, "device": "cpu", "note": note}


if __name__ == "__main__":
    sys.exit(main())
