"""How long the stages of earlier jobs took, for a progress bar that runs evenly and an estimate of the rest."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

NEW_SHARE = 0.5
"""Weight of the newest job against all before."""

Kind = tuple[str, str]
"""Method and preset."""


class Timings:
    """Seconds per stage by kind of job, kept in a file that may be lost without harm."""

    def __init__(self, path: Path) -> None:
        """Read `path` if it is there."""
        self._path = path
        self._seconds: dict[str, list[float]] = _read(path)

    def estimate(self, kind: Kind, index: int, count: int, inside: float) -> tuple[float, float | None]:
        """Where a job stands.

        Args:
            kind: Method and preset.
            index: Number of the stage, from 1; 0 where unknown.
            count: How many stages.
            inside: Fraction of the stage that is done.

        Returns:
            Fraction of the whole job, and the seconds that remain (None without an earlier job of this kind).
        """
        if index < 1 or count < index:
            return 0.0, None
        known = self._seconds.get("/".join(kind))
        if known is None or len(known) != count or sum(known) <= 0:
            return (index - 1 + inside) / count, None
        done = sum(known[: index - 1]) + known[index - 1] * inside
        return done / sum(known), sum(known) - done

    def learn(self, kind: Kind, result: Path) -> None:
        """Take the stages' seconds from the result.json in a result's folder."""
        try:
            stages = json.loads((result / "result.json").read_text("utf-8"))["stages"]
            new = [float(stage["seconds"]) for stage in stages]
        except (OSError, ValueError, KeyError, TypeError):
            return  # nothing to learn from
        name = "/".join(kind)
        old = self._seconds.get(name, new)
        if len(old) == len(new):
            new = [NEW_SHARE * a + (1 - NEW_SHARE) * b for a, b in zip(new, old, strict=True)]
        self._seconds[name] = new
        with contextlib.suppress(OSError):  # only an estimate
            unfinished = self._path.with_name(self._path.name + ".part")
            unfinished.write_text(json.dumps(self._seconds) + "\n", "utf-8")
            unfinished.replace(self._path)


def _read(path: Path) -> dict[str, list[float]]:
    try:
        content: Any = json.loads(path.read_text("utf-8"))
        return {str(name): [float(value) for value in values] for name, values in content.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}
