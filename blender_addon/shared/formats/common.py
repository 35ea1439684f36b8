"""What every reader and writer of splat files shares: the error, the result, the size guards, the checks of rows.

Readers look at a file's size before they allocate anything that a header announces, and say in one line what is wrong.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np

from ..arrays import Array
from ..gaussians import SH_REST_COUNTS, GaussianCloud
from ..limits import MAX_SPLATS

Axes = Literal["y_up", "y_down", "z_up"]
"""Right-handed axes of a file. `y_up` is the body frame (glTF, SPZ's RUB), `y_down` what INRIA's code and most
trainers write (RDF), `z_up` Blender's."""

ColourSpace = Literal["srgb", "linear"]
"""What a file's colours are composited and stored in; a `GaussianCloud` is always display sRGB."""

GET_IT_AGAIN = "get the file again or export it once more"

LOG_SCALE_LIMIT = 80.0
"""exp(80) still fits float32; a larger value in a file is damage."""


class FormatError(ValueError):
    """A splat file that cannot be read or written; the message is one line: file, defect, what to do next."""

    def __init__(self, path: str | os.PathLike[str], defect: str, next_step: str = GET_IT_AGAIN) -> None:
        """Name the file, what is wrong with it, and what to do next."""
        text = f"{Path(path).name}: {defect}; {next_step}"
        super().__init__("".join(c if c.isprintable() else "?" for c in text))


@dataclass(frozen=True)
class ReadResult:
    """A cloud out of a file, and what the reader did besides.

    Attributes:
        cloud: The Gaussians; colours in display sRGB whatever the file has.
        axes: Of `cloud`. A format's own reader leaves the file's axes; `read_splats` turns to the body frame.
        colour_space: Of the file.
        dropped: Gaussians left out because a value of theirs was none that a Gaussian can have.
        notes: What was ignored, assumed or changed; one line each, for the user.
    """

    cloud: GaussianCloud
    axes: Axes
    colour_space: ColourSpace = "srgb"
    dropped: int = 0
    notes: tuple[str, ...] = ()

    def noting(self, *notes: str) -> ReadResult:
        """The same with more notes."""
        return replace(self, notes=(*self.notes, *notes))


def require_count(path: Path, count: int) -> None:
    """Refuse a file without Gaussians, or one that announces more than fits.

    Raises:
        FormatError: Saying which.
    """
    if count < 0:
        raise FormatError(path, f"announces {count} Gaussians, which is no count")
    if count == 0:
        raise FormatError(path, "holds no Gaussians", "nothing can be made of it; choose another file")
    if count > MAX_SPLATS:
        raise FormatError(
            path,
            f"announces {count} Gaussians, more than {MAX_SPLATS} are not read",
            "split it or choose a smaller file",
        )


def require_bytes(path: Path, available: int, count: int, stride: int, what: str = "Gaussians") -> None:
    """Compare count x stride with the bytes that there are, before anything is allocated.

    Args:
        path: For the message.
        available: Bytes left in the file (or in the unpacked stream).
        count: Rows that the header announces.
        stride: Bytes of a row; the least that one can take where rows differ.
        what: Name of the rows.

    Raises:
        FormatError: If they do not fit.
    """
    if count * stride > available:
        whole = max(0, available) // stride
        raise FormatError(path, f"cut short, {whole} of {count} {what} are there")


def valid_rows(positions: Array, scales: Array, rotations: Array, opacities: Array, *others: Array) -> Array:
    """[N] bool: rows that a Gaussian can have, judged on activated values.

    Args:
        positions: [N, 3].
        scales: [N, 3] linear; 0, and what is beyond exp(+-80), is damage.
        rotations: [N, 4], normalised or not; a zero quaternion is damage.
        opacities: [N], 0..1.
        *others: [N, ...] that only have to be finite.
    """
    with np.errstate(all="ignore"):
        good = np.isfinite(positions).all(axis=1)
        logs = np.log(scales)
        good &= (np.abs(logs) <= LOG_SCALE_LIMIT).all(axis=1)  # not of nan, -inf and inf
        squares = np.einsum("ij,ij->i", rotations, rotations)
        good &= np.isfinite(squares) & (squares > 1e-24)
        good &= (opacities >= 0) & (opacities <= 1)
        for other in others:
            good &= np.isfinite(other).reshape(len(other), -1).all(axis=1)
    return good


def normalised(rotations: Array) -> Array:
    """Quaternions [N, 4] of length 1; those that have it to float32 precision stay bit for bit."""
    squares = np.einsum("ij,ij->i", rotations, rotations)
    factors = 1.0 / np.sqrt(squares)
    factors[np.abs(squares - 1.0) < 1e-6] = 1.0
    return rotations * factors[:, None]


def checked_cloud(
    path: Path,
    positions: Array,
    scales: Array,
    rotations: Array,
    opacities: Array,
    sh_dc: Array,
    sh_rest: Array,
    *,
    drop_invalid: bool,
) -> tuple[GaussianCloud, int]:
    """A cloud of activated arrays out of a file; rotations are normalised here.

    Args:
        path: For the message.
        positions: [N, 3].
        scales: [N, 3] linear.
        rotations: [N, 4] wxyz, of any length.
        opacities: [N].
        sh_dc: [N, 3].
        sh_rest: [N, K, 3].
        drop_invalid: Leave damaged rows out instead of refusing the file.

    Returns:
        The cloud and how many rows were left out.

    Raises:
        FormatError: If there are damaged rows and they may not be dropped, or if no row is good.
    """
    arrays = (positions, scales, rotations, opacities, sh_dc, sh_rest)
    good = valid_rows(*arrays)
    dropped = int(len(good) - np.count_nonzero(good))
    if dropped:
        refuse_damage(path, dropped, len(good), drop_invalid=drop_invalid)
        positions, scales, rotations, opacities, sh_dc, sh_rest = (a[good] for a in arrays)
    return GaussianCloud(positions, scales, normalised(rotations), opacities, sh_dc, sh_rest), dropped


def refuse_damage(path: Path, damaged: int, count: int, *, drop_invalid: bool) -> None:
    """Refuse a file with damaged rows, unless they may be dropped and good ones are left.

    Raises:
        FormatError: If it is refused.
    """
    if not drop_invalid:
        raise FormatError(
            path,
            f"{damaged} of {count} Gaussians hold values that are not finite or that no Gaussian has",
            "read it with the damaged ones dropped, or get the file again",
        )
    if damaged == count:
        raise FormatError(path, f"all {count} Gaussians hold values that are not finite or that no Gaussian has")


def dropped_notes(dropped: int) -> tuple[str, ...]:
    """The note about rows that were left out, if any were."""
    return (f"{dropped} damaged Gaussians (not finite, or of no size) were left out",) if dropped else ()


def limit_degree(cloud: GaussianCloud, degree: int) -> tuple[GaussianCloud, tuple[str, ...]]:
    """The cloud with no spherical harmonics above `degree`, and the note about what was lost, if anything was."""
    if cloud.degree <= degree:
        return cloud, ()
    kept = cloud.sh_rest[:, : SH_REST_COUNTS[degree]]
    lost = cloud.sh_rest[:, SH_REST_COUNTS[degree] :].any()
    note = f"spherical harmonics above degree {degree} (the cloud has degree {cloud.degree}) were left out"
    return replace(cloud, sh_rest=kept), (note,) if lost else ()


def reserve(file: BinaryIO, size: int) -> None:
    """Reserve the bytes that a file will have, where the system can: a full disk shows now, and ext4 writes 4 x faster.

    Raises:
        OSError: If there is no room.
    """
    if not hasattr(os, "posix_fallocate") or size == 0:
        return
    try:
        os.posix_fallocate(file.fileno(), 0, size)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):  # a file system that cannot reserve
            raise


@contextmanager
def atomic_file(path: Path) -> Generator[BinaryIO, None, None]:
    """Open a file for writing that appears under its name only when it is whole."""
    part = path.with_name(path.name + ".part")
    try:
        with part.open("wb") as file:
            yield file
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
