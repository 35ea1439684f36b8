"""Readers and writers of splat files against the bare transfer of their bytes.

Nothing that returns activated, regrouped arrays comes near a plain copy of the file's bytes: the ratios are below 1.
What is asked for is 3.5 times `np.fromfile` for reading a PLY and 4 times `tofile` for writing it; the other formats'
rows have no limit and show where time goes.
"""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from backend.benches.measuring import Bench, Options, Row, interleaved, time_row, value_row
from backend.formats import FORMATS
from blender_addon.shared.formats.ply import read_ply, write_ply
from blender_addon.shared.gaussians import SH_REST_COUNTS, GaussianCloud

_MILLION = 1_000_000
_READ_LIMIT, _WRITE_LIMIT, _MEMORY_LIMIT = 3.5, 4.0, 1.2


def ply_read_1m(options: Options) -> list[Row]:
    """Reading a PLY of 1M Gaussians of degree 3 (248 MB) into a cloud, and the memory that it takes meanwhile."""
    path = options.scratch / "cloud.ply"
    write_ply(path, _cloud(_MILLION, 3))
    times = interleaved(
        {"ours": lambda: read_ply(path), "bytes": lambda: np.fromfile(path, np.uint8)}, options.repeats or 7
    )
    factor = times["ours"].least_ms / times["bytes"].least_ms
    note = f"{factor:.2f} times as long, at most {_READ_LIMIT} is asked for; {_size(path)}"
    rows = [time_row("ply_read_1m", times["ours"], "np.fromfile of the same file", times["bytes"], note)]
    peak = _peak_bytes(lambda: read_ply(path))
    size = path.stat().st_size
    note = f"{peak / size:.2f} times the file, at most {_MEMORY_LIMIT} is asked for; the cloud included"
    return [*rows, value_row("ply_read_1m_memory", peak / 1e6, "MB", "size of the file", size / 1e6, 1, note)]


def ply_write_1m(options: Options) -> list[Row]:
    """Writing the same cloud as a PLY."""
    cloud = _cloud(_MILLION, 3)
    path, bare = options.scratch / "cloud.ply", options.scratch / "bytes.bin"
    write_ply(path, cloud)
    raw = np.fromfile(path, np.uint8)
    times = interleaved(
        {"ours": lambda: write_ply(path, cloud), "bytes": lambda: raw.tofile(bare)}, options.repeats or 7
    )
    factor = times["ours"].least_ms / times["bytes"].least_ms
    note = f"{factor:.2f} times as long, at most {_WRITE_LIMIT} is asked for; {_size(path)}"
    return [time_row("ply_write_1m", times["ours"], "tofile of the same bytes", times["bytes"], note)]


def splat_formats_100k(options: Options) -> list[Row]:
    """Reading and writing 100k Gaussians of degree 3 in every format that is written, against PLY."""
    cloud = _cloud(100_000, 3)
    rows: list[Row] = []
    for row in FORMATS:
        if row.write is None:
            continue
        path = options.scratch / f"cloud{row.suffixes[0]}"
        ply = options.scratch / "against.ply"
        write_ply(ply, cloud)
        runs: dict[str, Callable[[], object]] = {
            "write": partial(row.write, path, cloud),
            "read": partial(row.read, path),
            "ply write": partial(write_ply, ply, cloud),
            "ply read": partial(read_ply, ply),
        }
        times = interleaved(runs, options.repeats or 3)
        name = row.name.replace(" ", "_")
        for verb in ("read", "write"):
            against = f"PLY, {verb}"
            rows.append(time_row(f"{name}_{verb}_100k", times[verb], against, times[f"ply {verb}"], _size(path)))
    return rows


def _cloud(count: int, degree: int) -> GaussianCloud:
    rng = np.random.default_rng(0)
    turns = rng.normal(size=(count, 4)).astype(np.float32)
    return GaussianCloud(
        rng.normal(size=(count, 3)),
        rng.uniform(0.001, 0.1, (count, 3)),
        turns / np.linalg.norm(turns, axis=1, keepdims=True),
        rng.uniform(0.01, 0.99, count),
        rng.normal(size=(count, 3)),
        0.1 * rng.standard_normal((count, SH_REST_COUNTS[degree], 3), np.float32),
    )


def _size(path: Path) -> str:
    return f"{path.stat().st_size / 1e6:.0f} MB"


def _peak_bytes(run: Callable[[], object]) -> int:
    """Most bytes held at one time by what the run allocated, its result included; numpy reports its arrays."""
    tracemalloc.start()
    try:
        result = run()
        peak = tracemalloc.get_traced_memory()[1]
        del result
        return peak
    finally:
        tracemalloc.stop()


BENCHES: dict[str, Bench] = {
    "ply_read_1m": ply_read_1m,
    "ply_write_1m": ply_write_1m,
    "splat_formats_100k": splat_formats_100k,
}
