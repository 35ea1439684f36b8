"""What goes into a checkpoint comes out of it, and nothing else is ever made from one."""

from __future__ import annotations

import enum
import json
import math
import zipfile
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import sparse

from backend import checkpoint
from backend.human.camera import PinholeCamera
from backend.pipeline import Outcome

HERE = (*checkpoint.PACKAGES, __name__.split(".")[0])


class Side(enum.IntEnum):
    LEFT = 1
    RIGHT = 2


@dataclass(frozen=True)
class Inner:
    points_m: np.ndarray
    side: Side
    note: str = "é\n\0"


@dataclass(frozen=True)
class Outer:
    inner: Inner
    many: tuple[Inner, ...]
    table: dict[str, Any]
    matrix: sparse.csr_matrix
    path: Path
    nothing: None = None
    flag: bool = True
    count: int = 2**62
    derived: float = field(init=False, default=0.0)

    def __post_init__(self) -> None:
        object.__setattr__(self, "derived", float(self.inner.points_m.sum()))


def example() -> Outer:
    rng = np.random.default_rng(3)
    inner = Inner(rng.normal(size=(4, 3)).astype(np.float32), Side.RIGHT)
    empty = Inner(np.zeros((0, 3), np.float64), Side.LEFT, "")
    table = {"list": [1, 2.5, "three", None], "nan": math.nan, "inf": -math.inf}
    table |= {"f64": np.float64(0.1), "u8": np.uint8(7), "flag": np.bool_(True)}
    return Outer(inner, (inner, empty), table, sparse.random(5, 9, 0.4, "csr", random_state=1), Path("a/b"))


def same(a: Any, b: Any) -> bool:
    if type(a) is not type(b):
        return False
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and np.array_equal(a, b)
    if sparse.issparse(a):
        return a.shape == b.shape and a.dtype == b.dtype and (a != b).nnz == 0
    if hasattr(a, "__dataclass_fields__"):
        return all(same(getattr(a, f.name), getattr(b, f.name)) for f in fields(a))
    if isinstance(a, tuple | list):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, float):
        return a == b or (math.isnan(a) and math.isnan(b))
    return a == b


def test_round_trip_keeps_values_and_types(tmp_path: Path) -> None:
    value = (example(), Outcome(("photo only",), ("a", "b")), np.arange(6).reshape(2, 3), "text", None)
    checkpoint.save(tmp_path / "c.npz", value)
    assert same(checkpoint.load(tmp_path / "c.npz", HERE), value)
    assert [p.name for p in tmp_path.iterdir()] == ["c.npz"]


def test_the_makers_checks_run_on_load(tmp_path: Path) -> None:
    camera = PinholeCamera(np.eye(4), 500.0, 500.0, 10.0, 10.0, 20, 20)
    checkpoint.save(tmp_path / "c.npz", camera)
    with np.load(tmp_path / "c.npz") as file:
        arrays = dict(file)
    arrays["value.w2c"] = np.eye(4) * 2  # not rigid
    np.savez(tmp_path / "c.npz", **arrays)
    with pytest.raises(checkpoint.CheckpointError, match="rigid"):
        checkpoint.load(tmp_path / "c.npz")


@pytest.mark.parametrize("value", [object(), {1: 2}, {"a": [np.array([None])]}, lambda: 0, {1, 2}])
def test_what_has_no_flat_form_is_refused_by_name(tmp_path: Path, value: object) -> None:
    with pytest.raises(TypeError, match="value"):
        checkpoint.save(tmp_path / "c.npz", value)
    assert not (tmp_path / "c.npz").exists()


def write_tree(path: Path, tree: object) -> None:
    np.savez(path, tree=np.array(json.dumps(tree)))


@pytest.mark.parametrize(
    "name", ["subprocess:Popen", "os:system", "backend.checkpoint:load", "backend.nothing:X", "backend.pipeline:Gone"]
)
def test_only_own_dataclasses_are_made(tmp_path: Path, name: str) -> None:
    write_tree(tmp_path / "c.npz", {"class": name, "fields": {}})
    with pytest.raises(checkpoint.CheckpointError):
        checkpoint.load(tmp_path / "c.npz")


def test_damaged_files_are_one_kind_of_error(tmp_path: Path) -> None:
    path = tmp_path / "c.npz"
    checkpoint.save(path, example())
    whole = path.read_bytes()
    for damaged in (b"", whole[:100], whole[: len(whole) // 2], b"text", whole[:200] + b"\xff" * 400 + whole[600:]):
        path.write_bytes(damaged)
        with pytest.raises(checkpoint.CheckpointError):
            checkpoint.load(path, HERE)
    with pytest.raises(checkpoint.CheckpointError):
        checkpoint.load(tmp_path / "missing.npz")


def test_pickled_arrays_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.npz"
    np.savez(path, tree=np.array({"a": 1}, dtype=object))
    with pytest.raises(checkpoint.CheckpointError):
        checkpoint.load(path)
    assert zipfile.is_zipfile(path)
