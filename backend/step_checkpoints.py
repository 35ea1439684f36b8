"""Where a long loop of a stage keeps its state, so that a killed job goes on at the iteration where it stopped."""

from __future__ import annotations

import re
import shutil
import time
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from backend.files import PART, whole_file

_NAME = re.compile(r"[a-z][a-z0-9-]{0,30}")
_KEY, _STEP = "checkpoint key", "checkpoint step"
KEPT = 2
"""The newest ones stay: if the last is damaged, the one before it is taken."""
LARGEST_SHARE = 0.05
"""Part of the time that saving may take."""


@dataclass(frozen=True)
class Step:
    """State of a loop.

    Attributes:
        step: How many iterations are done.
        arrays: What the loop saved, by name.
    """

    step: int
    arrays: Mapping[str, np.ndarray]


class Keeper(Protocol):
    """What `Context.checkpoint` offers to a loop."""

    def due(self) -> bool:
        """Whether it is time to save: some seconds since the last time, and rarer where saving is slow."""
        ...

    def save(self, name: str, step: int, arrays: Mapping[str, np.ndarray], key: str = "") -> None:
        """Keep the state after `step` iterations of the loop `name`.

        Args:
            name: Of the loop, unique in its stage: lower-case letters, digits and hyphens.
            step: Iterations done.
            arrays: Everything that the next iteration depends on: parameters, moments, states of generators.
            key: What must be equal for a resume, e.g. the settings as text; what has another key is not loaded.
        """
        ...

    def load(self, name: str, key: str = "") -> Step | None:
        """The newest whole state with this key, or None."""
        ...


class NoKeeper:
    """Keeps nothing: for tests, tools and stages outside a job."""

    def due(self) -> bool:
        """Never."""
        return False

    def save(self, name: str, step: int, arrays: Mapping[str, np.ndarray], key: str = "") -> None:
        """Do nothing."""

    def load(self, name: str, key: str = "") -> Step | None:
        """There is nothing."""
        return None


class StepCheckpoints:
    """Keeps states as uncompressed .npz files in a folder, never pickled, each written as a whole."""

    def __init__(self, folder: Path, interval_s: float = 10.0, clock: Callable[[], float] = time.monotonic) -> None:
        """Use `folder`, which is made when the first state is saved."""
        self._folder = folder
        self._interval_s = interval_s
        self._clock = clock
        self._next = clock() + interval_s

    def due(self) -> bool:
        """Whether `interval_s` have passed, or the time that keeps saving below its share."""
        return self._clock() >= self._next

    def save(self, name: str, step: int, arrays: Mapping[str, np.ndarray], key: str = "") -> None:
        """See `Keeper`.

        Raises:
            ValueError: If a name is not allowed, or an array holds objects.
        """
        began = self._clock()
        _check_name(name)
        if any(array.dtype.hasobject for array in arrays.values()):
            raise ValueError("an object array cannot be kept")
        if _KEY in arrays or _STEP in arrays:
            raise ValueError(f"{_KEY!r} and {_STEP!r} are names of this module")
        self._folder.mkdir(parents=True, exist_ok=True)
        with whole_file(self._folder / f"{name}.{step:09d}.npz") as file:
            np.savez(file, **{_KEY: np.array(key), _STEP: np.array(step)}, **arrays)
        for old in self._files(name)[KEPT:]:
            old.unlink(missing_ok=True)
        now = self._clock()
        self._next = now + max(self._interval_s, (now - began) / LARGEST_SHARE)

    def load(self, name: str, key: str = "") -> Step | None:
        """See `Keeper`; a damaged file is passed over."""
        _check_name(name)
        for path in self._files(name):
            try:
                with np.load(path, allow_pickle=False) as file:
                    arrays = {item: file[item] for item in file.files}
                found_key, step = str(arrays.pop(_KEY)), int(arrays.pop(_STEP))
            except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
                continue
            if found_key == key:
                return Step(step, arrays)
        return None

    def remove(self) -> None:
        """Remove all states: the stage has its result."""
        if self._folder.is_dir():
            shutil.rmtree(self._folder)

    def _files(self, name: str) -> list[Path]:
        """Newest first."""
        found = [path for path in self._folder.glob(f"{name}.*.npz") if not path.name.endswith(PART)]
        return sorted(found, reverse=True)


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise ValueError(f"a loop's name has lower-case letters, digits and hyphens, not {name!r}")
