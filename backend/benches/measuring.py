"""Rows of `bench`, and the paired timing behind them."""

from __future__ import annotations

import gc
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Better = Literal["lower", "higher"]


@dataclass(frozen=True)
class Options:
    """What the command line says about how to measure."""

    repeats: int | None = None
    """Timed runs of each side; None leaves it to the bench."""
    scratch: Path = Path(".")
    """An empty folder for files of the bench, removed afterwards."""


@dataclass(frozen=True)
class Row:
    """One measured figure beside that of a named alternative from the same run."""

    name: str
    value: float | None
    """The figure (for times the minimum of n); None where it cannot be had here, and `note` says why."""
    unit: str
    against: str
    """What it is compared with; empty where nothing is."""
    against_value: float | None
    ratio: float | None
    """How many times better than `against`."""
    n: int
    """How often each side was measured."""
    device: str
    note: str


Bench = Callable[[Options], list[Row]]


@dataclass(frozen=True)
class Times:
    """Seconds of single runs, in the order in which they were made."""

    seconds: tuple[float, ...]

    @property
    def least_ms(self) -> float:
        """The least disturbed run."""
        return 1e3 * min(self.seconds)

    @property
    def median_ms(self) -> float:
        """The usual run."""
        return 1e3 * statistics.median(self.seconds)


def interleaved(runs: dict[str, Callable[[], object]], repeats: int, warm_up: int = 1) -> dict[str, Times]:
    """Time several things in turns, so that what else happens on the machine meets all of them alike.

    Args:
        runs: What to time, by name. Each run must leave things as it found them.
        repeats: Rounds that count.
        warm_up: Rounds before, which compile and fill caches.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(warm_up + repeats):
        for name, run in runs.items():
            # Garbage is collected outside the clock: it belongs to whoever ran before.
            gc.collect()
            start = time.perf_counter()
            run()
            if turn >= warm_up:
                seconds[name].append(time.perf_counter() - start)
    return {name: Times(tuple(values)) for name, values in seconds.items()}


def time_row(name: str, ours: Times, against: str, theirs: Times, note: str, device: str | None = None) -> Row:
    """A row in milliseconds: the minima and their ratio; the medians go into the note."""
    medians = f"medians {ours.median_ms:.3g} against {theirs.median_ms:.3g} ms: {theirs.median_ms / ours.median_ms:.2f}"
    return value_row(
        name, ours.least_ms, "ms", against, theirs.least_ms, len(ours.seconds), f"{medians}; {note}", device=device
    )


def value_row(
    name: str,
    value: float,
    unit: str,
    against: str,
    against_value: float | None,
    n: int,
    note: str,
    better: Better = "lower",
    device: str | None = None,
) -> Row:
    """A row of any unit; `ratio` says how many times better, whichever direction is better."""
    ratio = None
    if against_value is not None and value and against_value:
        ratio = against_value / value if better == "lower" else value / against_value
    return Row(name, value, unit, against, against_value, ratio, n, device or cpu(), note)


def absent_row(name: str, unit: str, against: str, why: str) -> Row:
    """A row for what cannot be measured on this machine."""
    return Row(name, None, unit, against, None, None, 0, "none", why)


def cpu() -> str:
    """The processor and how many of its threads torch may use."""
    import torch

    return f"{_processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads used"


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    if information.is_file():
        for line in information.read_text("utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
