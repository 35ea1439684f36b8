"""Rows of a file in blocks that stay in a core's cache, worked on by a few threads; numpy lets go of the lock."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

import numpy as np

from ..arrays import Array
from ..gaussians import GaussianCloud
from .common import FormatError, refuse_damage

_BLOCK_BYTES = 1 << 19  # a block and what it is turned into stay in a core's second-level cache


@dataclass(frozen=True)
class CloudArrays:
    """The fields of a cloud while they are filled block by block, and which rows are good.

    Whoever fills them leaves unit quaternions and judges every row: `to_cloud` does not look at the values again.
    """

    positions: Array
    scales: Array
    rotations: Array
    opacities: Array
    sh_dc: Array
    sh_rest: Array
    good: Array

    @classmethod
    def empty(cls, count: int, rest_count: int) -> CloudArrays:
        """For `count` Gaussians with `rest_count` higher coefficients; called when the file is known to hold them."""
        shapes = ((count, 3), (count, 3), (count, 4), (count,), (count, 3), (count, rest_count, 3))
        return cls(*(np.empty(shape, np.float32) for shape in shapes), good=np.empty(count, bool))

    def rows(self, start: int, stop: int) -> CloudArrays:
        """Views of the rows start..stop."""
        part = slice(start, stop)
        fields = (self.positions, self.scales, self.rotations, self.opacities, self.sh_dc, self.sh_rest, self.good)
        return CloudArrays(*(field[part] for field in fields))

    def to_cloud(self, path: Path, *, drop_invalid: bool) -> tuple[GaussianCloud, int]:
        """The cloud and how many damaged rows were left out.

        Raises:
            FormatError: If there are damaged rows and they may not be dropped, or if no row is good.
        """
        fields = (self.positions, self.scales, self.rotations, self.opacities, self.sh_dc, self.sh_rest)
        dropped = len(self.good) - int(np.count_nonzero(self.good))
        if dropped:
            refuse_damage(path, dropped, len(self.good), drop_invalid=drop_invalid)
            fields = tuple(field[self.good] for field in fields)
        return GaussianCloud.of_checked(*fields), dropped


def in_runs(count: int, stride: int, work: Callable[[tuple[int, int], int], None]) -> None:
    """Call `work(span, rows a block)` for runs that together are `count` rows of `stride` bytes, in a few threads.

    Args:
        count: Rows.
        stride: Bytes of a row in the file.
        work: Does rows span[0]..span[1], so many at a time.
    """
    if count == 0:
        return
    workers = max(1, min(8, os.cpu_count() or 1))  # beyond that memory is what is waited for
    rows = max(64, _BLOCK_BYTES // stride)
    run = max(rows, -(-count // (4 * workers)))
    if count <= run:
        work((0, count), rows)
        return
    with ThreadPoolExecutor(workers) as pool:
        jobs = [pool.submit(work, (start, min(start + run, count)), rows) for start in range(0, count, run)]
        for job in jobs:
            job.result()


def read_fully(path: Path, file: FileIO, part: Array) -> None:
    """Fill a contiguous array from an unbuffered file.

    Raises:
        FormatError: If the file ends before.
    """
    view = part.view(np.uint8).data.cast("B")
    done = 0
    while done < len(view):
        got = file.readinto(view[done:])
        if not got:
            raise FormatError(path, "got shorter while it was read")
        done += got


def write_fully(file: FileIO, view: memoryview) -> None:
    """Write all bytes to an unbuffered file.

    Raises:
        OSError: If they cannot be written.
    """
    done = 0
    while done < len(view):
        done += file.write(view[done:])
