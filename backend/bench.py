"""`bench`: how fast the parts are, each as a ratio against a named alternative measured in the same run."""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from backend.benches import all_benches
from backend.benches.measuring import Bench, Options, Row, absent_row
from backend.errors import DONE, MODEL_MISSING, UserError


def bench(names: list[str], json_file: Path | None, repeats: int | None = None) -> int:
    """Measure, print one row at a time, and write all rows.

    Args:
        names: Which benches; empty means all.
        json_file: Where the rows go as JSON, in the form that design section 9 fixes.
        repeats: Timed runs of each side; None leaves it to each bench.

    Returns:
        0.

    Raises:
        UserError: If a name is unknown, repeats is not positive, or a bench that was named needs what is not here.
    """
    benches = all_benches()
    unknown = [name for name in names if name not in benches]
    if unknown:
        raise UserError(f"there is no bench '{unknown[0]}'; there are {', '.join(benches)}")
    if repeats is not None and repeats < 1:
        raise UserError(f"--repeats must be at least 1, not {repeats}")
    rows: list[Row] = []
    for name in names or benches:
        with tempfile.TemporaryDirectory(prefix="effigy_bench_") as scratch:
            for row in _measure(benches[name], name, Options(repeats, Path(scratch)), asked=bool(names)):
                rows.append(row)
                print(as_line(row))
                sys.stdout.flush()
    if json_file is not None:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        json_file.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n", "utf-8")
    return DONE


def _measure(run: Bench, name: str, options: Options, asked: bool) -> list[Row]:
    """The rows of one bench; among all benches, one that cannot run here is a row that says so."""
    try:
        return run(options)
    except UserError as error:
        if asked or error.code != MODEL_MISSING:
            raise
        return [absent_row(name, "", "", error.message)]


def as_line(row: Row) -> str:
    """A row for people."""
    if row.value is None:
        return f"{row.name:<32} not measured: {row.note}"
    line = f"{row.name:<32} {row.value:.4g} {row.unit}"
    if row.against_value is not None:
        ratio = f", {row.ratio:.2f} times better" if row.ratio is not None else ""
        line += f" against {row.against_value:.4g} {row.unit} of {row.against}{ratio}"
    return f"{line} (n = {row.n}; {row.note})"
