"""The ladder that is climbed down when memory runs out, tried with an allocator that we decide about."""

from __future__ import annotations

import errno
import gc
import importlib
import weakref
from dataclasses import dataclass, field

import numpy as np
import pytest

from backend.errors import UserError
from backend.memory import Shortage, budget, free_bytes, is_exhaustion, run_with_ladder, total_bytes, wanted_bytes


@dataclass
class Allocator:
    """Has `size` bytes; what is allocated stays until it is released."""

    size: int
    used: int = 0
    log: list[str] = field(default_factory=list)

    def allocate(self, count: int) -> None:
        self.log.append(f"take {count}")
        if self.used + count > self.size:
            raise MemoryError(f"Unable to allocate {count} B for an array")
        self.used += count

    def release(self) -> None:
        self.log.append("release")
        self.used = 0

    def free(self) -> int:
        return self.size - self.used


def climb(memory: Allocator, rungs: list[int]) -> tuple[int, list[str]]:
    said: list[str] = []

    def attempt(rung: int) -> int:
        memory.allocate(rung)
        return rung

    return run_with_ladder(attempt, rungs, lambda r, s: said.append(f"{r}: {s}"), memory.release, memory.free), said


def test_what_fits_is_done_as_it_is() -> None:
    assert climb(Allocator(100), [100, 50]) == (100, [])


def test_freed_caches_may_be_enough() -> None:
    memory = Allocator(100, used=60)
    assert climb(memory, [80, 50]) == (80, [])
    assert memory.log == ["take 80", "release", "take 80"]


def test_smaller_work_with_a_warning() -> None:
    memory = Allocator(100)
    said = [f"{rung}: {Shortage(before, 100)}" for rung, before in ((200, 400), (100, 200))]
    assert climb(memory, [400, 200, 100]) == (100, said)
    assert [line for line in memory.log if line != "release"] == ["take 400", "take 400", "take 200", "take 100"]


def test_the_end_of_the_ladder_names_needed_and_free() -> None:
    memory = Allocator(3_000_000_000)
    with pytest.raises(UserError, match=r"8\.0 GB more were needed, 3\.0 GB were free.*preset fast") as caught:
        climb(memory, [16_000_000_000, 8_000_000_000])
    assert caught.value.kind == "OUT_OF_MEMORY" and caught.value.code == 1


def test_a_failed_attempt_is_let_go_before_the_next() -> None:
    """Its arrays hang on the exception's traceback, and are what the next attempt needs."""
    alive: list[weakref.ref[np.ndarray]] = []

    def attempt(rung: int) -> int:
        gc.disable()  # a reference cycle would hide behind the collector
        assert all(reference() is None for reference in alive)
        if rung == 0:
            return 1
        array = np.zeros(1000)
        alive.append(weakref.ref(array))
        raise MemoryError

    try:
        assert run_with_ladder(attempt, [2, 1, 0], lambda r, s: None, lambda: None, lambda: 0) == 1
    finally:
        gc.enable()
    assert len(alive) == 3


def test_other_errors_pass() -> None:
    def attempt(rung: int) -> int:
        raise KeyError("a defect")

    with pytest.raises(KeyError):
        run_with_ladder(attempt, [1, 2], lambda r, s: None)


@pytest.mark.parametrize(
    ("error", "wanted"),
    [
        (MemoryError(), 0),
        (MemoryError("Unable to allocate 1.50 GiB for an array with shape (3,)"), 3 * 2**29),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1234 bytes."), 1234),
        (RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has"), 20 * 2**20),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), 0),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), 0),
    ],
)
def test_exhaustion_has_many_names(error: BaseException, wanted: int) -> None:
    assert is_exhaustion(error) and wanted_bytes(error) == wanted


@pytest.mark.parametrize("error", [RuntimeError("shape mismatch"), OSError(errno.ENOENT, "x"), ValueError()])
def test_what_is_no_exhaustion(error: BaseException) -> None:
    assert not is_exhaustion(error)


def test_real_allocations_are_recognised() -> None:
    torch = importlib.import_module("torch")
    for make in (lambda: np.zeros(2**56, np.uint8), lambda: torch.zeros(2**56, dtype=torch.uint8)):
        with pytest.raises((MemoryError, RuntimeError)) as caught:
            make()
        assert is_exhaustion(caught.value) and wanted_bytes(caught.value) == 2**56


def test_the_budget_is_a_share_of_what_is_free() -> None:
    assert 0 < free_bytes() <= total_bytes()
    fast, best = budget("cpu", "fast"), budget("cpu", "best")
    assert 0 < fast.allowed_bytes < best.allowed_bytes <= total_bytes()
    assert budget("cpu", "best", limit_bytes=1000).allowed_bytes == 1000
