"""The frame of `bench`: names, rows and what it says; how fast anything is, is not judged here."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

import pytest

from backend import benches
from backend.__main__ import main
from backend.bench import as_line
from backend.benches.measuring import Options, Row, absent_row, interleaved, time_row, value_row

COLUMNS = ["name", "value", "unit", "against", "against_value", "ratio", "n", "device", "note"]


def test_rows_have_the_columns_that_are_agreed() -> None:
    assert [field.name for field in fields(Row)] == COLUMNS


def test_the_rows_of_the_design_exist() -> None:
    names = benches.all_benches()
    assert {"raster_forward_backward_20k_256", "iteration_20k_256_sh3", "iteration_100k_512_sh3"} <= set(names)


def test_both_sides_take_turns_and_warm_up_uncounted() -> None:
    order: list[str] = []
    times = interleaved({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, repeats=3, warm_up=2)
    assert "".join(order) == "ab" * 5
    assert all(len(side.seconds) == 3 for side in times.values())


def test_a_ratio_above_one_is_better_whatever_the_unit() -> None:
    assert value_row("x", 2.0, "ms", "y", 4.0, 1, "").ratio == 2
    assert value_row("x", 8.0, "dB", "y", 4.0, 1, "", better="higher").ratio == 2
    assert value_row("x", 8.0, "MB", "", None, 1, "").ratio is None
    times = interleaved({"a": lambda: None, "b": lambda: None}, repeats=4)
    row = time_row("x", times["a"], "b", times["b"], "note")
    assert row.n == 4 and row.ratio == row.against_value / row.value


def test_the_command_prints_and_writes_its_rows(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def bench(options: Options) -> list[Row]:
        (options.scratch / "something").write_text("", "utf-8")
        return [value_row("one", 2.0, "ms", "theirs", 5.0, options.repeats or 1, "because"),
                absent_row("two", "ms", "theirs", "no CUDA device")]  # fmt: skip

    monkeypatch.setattr("backend.bench.all_benches", lambda: {"mine": bench})
    file = tmp_path / "new" / "rows.json"
    assert main(["bench", "mine", "--json", str(file), "--repeats", "7"]) == 0
    rows = json.loads(file.read_text("utf-8"))
    assert [list(row) for row in rows] == [COLUMNS, COLUMNS]
    assert (rows[0]["ratio"], rows[0]["n"], rows[1]["value"]) == (2.5, 7, None)
    printed = capsys.readouterr().out.splitlines()
    assert "2.50 times better" in printed[0] and "no CUDA device" in printed[1]


@pytest.mark.parametrize(
    ("arguments", "says"), [(["nothing"], "there is no bench"), (["--repeats", "0"], "at least 1")]
)
def test_a_wrong_request_is_said_in_one_line(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", *arguments]) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1


def test_a_row_without_anything_to_compare_with_is_a_line_too() -> None:
    assert "3 MB (n = 1" in as_line(value_row("x", 3.0, "MB", "", None, 1, "peak"))
