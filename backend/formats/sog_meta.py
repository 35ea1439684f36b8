"""`meta.json` of a SOG: what the bytes of its pictures mean, checked."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from blender_addon.shared.formats.common import FormatError

_LARGEST: Final = 1e30
_LOG_LIMIT: Final = 80.0  # exp(80) still fits float32; a larger logarithm in a file is damage


@dataclass(frozen=True)
class Codebook:
    """What a byte of each channel means.

    Attributes:
        values: [C, V] for C channels; one row serves all channels.
    """

    values: np.ndarray

    def look_up(self, path: Path, codes: np.ndarray) -> np.ndarray:
        """float32 of the shape of `codes` [..., 3] uint8, contiguous.

        Raises:
            FormatError: If a code is beyond the book.
        """
        length = self.values.shape[1]
        if length < 256 and codes.size and int(codes.max()) >= length:
            raise FormatError(path, f"uses entry {int(codes.max())} of a codebook of {length}")
        if len(self.values) == 1:
            return np.ascontiguousarray(self.values[0][codes])  # numpy promises no order of what it gathers
        return np.stack([self.values[c][codes[..., c]] for c in range(codes.shape[-1])], axis=-1)


@dataclass(frozen=True)
class Meta:
    """The checked content.

    Attributes:
        path: For messages.
        version: 1 or 2.
        count: Gaussians.
        mins: [3] lower limits of the positions' logarithms.
        maxs: [3] upper limits.
        means_files: Pictures of the low and the high byte.
        quats_file: Picture of the rotations.
        scales_file: Picture of the scales.
        scales: Natural logarithms in metres.
        sh0_file: Picture of degree-0 coefficients and opacity.
        sh0: Degree-0 coefficients.
        opacity_limits: Logits at bytes 0 and 255 (version 1); None where the byte is the opacity itself.
        bands: Degree of the spherical harmonics; 0 also where version 1 leaves it to the palette's width.
        palette_count: Entries of the palette; 0 where it is not said.
        shn_files: Pictures of palette and labels, or none.
        shn: Higher coefficients.
        notes: For the user.
    """

    path: Path
    version: int
    count: int
    mins: tuple[float, ...]
    maxs: tuple[float, ...]
    means_files: tuple[str, ...]
    quats_file: str
    scales_file: str
    scales: Codebook
    sh0_file: str
    sh0: Codebook
    opacity_limits: tuple[float, float] | None
    bands: int
    palette_count: int
    shn_files: tuple[str, ...]
    shn: Codebook
    notes: tuple[str, ...]

    def opacities(self, codes: np.ndarray) -> np.ndarray:
        """[N] float32 from the alpha bytes [N]."""
        if self.opacity_limits is None:
            return codes / np.float32(255)
        low, high = self.opacity_limits
        return (1 / (1 + np.exp(-(low + (high - low) * (codes / 255.0))))).astype(np.float32)


def parse_meta(path: Path, text: bytes) -> Meta:
    """Read and check meta.json.

    Args:
        path: For messages.
        text: Its bytes.

    Raises:
        FormatError: Naming the entry that is missing or wrong.
    """
    try:
        content = json.loads(text.decode("utf-8"))
    except (ValueError, RecursionError):
        raise FormatError(path, "its meta.json is no JSON") from None
    reader = _Entries(path, content)
    version = reader.whole("version", default=1)
    if version not in (1, 2):
        raise FormatError(path, f"is SOG version {version}; versions 1 and 2 are read")
    mins, maxs = reader.numbers("means", "mins", length=3), reader.numbers("means", "maxs", length=3)
    if max(map(abs, (*mins, *maxs))) > _LOG_LIMIT:
        raise FormatError(path, f"the limits of its positions are beyond exp({_LOG_LIMIT:.0f})")
    shn_files = reader.files("shN", "files", length=2) if reader.has("shN") else ()
    bands = reader.whole("shN", "bands") if shn_files and version == 2 else 0
    if not 0 <= bands <= 3:
        raise FormatError(path, f"says spherical harmonics of degree {bands}; SOG has 0 to 3")
    book = reader.codebook if version == 2 else reader.ramp
    alpha = [reader.numbers("sh0", end, length=4)[3] for end in ("mins", "maxs")] if version == 1 else None
    aliasing = reader.has("antialias") and content["antialias"] is True
    notes = ("was trained with antialiasing (mip splatting), which the record does not keep",) if aliasing else ()
    return Meta(
        path=path,
        version=version,
        count=reader.whole("count") if version == 2 else reader.whole("means", "shape", 0),
        mins=mins,
        maxs=maxs,
        means_files=reader.files("means", "files", length=2),
        quats_file=reader.files("quats", "files", length=1)[0],
        scales_file=reader.files("scales", "files", length=1)[0],
        scales=book("scales", 3),
        sh0_file=reader.files("sh0", "files", length=1)[0],
        sh0=book("sh0", 3),
        opacity_limits=(alpha[0], alpha[1]) if alpha else None,
        bands=bands,
        palette_count=reader.whole("shN", "count", default=0) if shn_files else 0,
        shn_files=shn_files if bands or version == 1 else (),
        shn=book("shN", 1) if shn_files else Codebook(np.zeros((1, 256), np.float32)),
        notes=notes,
    )


class _Entries:
    """Entries of the file by the names that lead to them."""

    def __init__(self, path: Path, content: Any) -> None:
        self._path = path
        self._content = content

    def get(self, *names: str | int) -> Any:
        """The entry, None if it is not there."""
        value = self._content
        for name in names:
            if isinstance(name, str) and isinstance(value, dict):
                value = value.get(name)
            elif isinstance(name, int) and isinstance(value, list) and name < len(value):
                value = value[name]
            else:
                return None
        return value

    def has(self, *names: str) -> bool:
        """Whether the entry is there."""
        return self.get(*names) is not None

    def whole(self, *names: str | int, default: int | None = None) -> int:
        """A whole number."""
        value = self.get(*names)
        if value is None and default is not None:
            return default
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool):
            raise self._wrong(names, "is no whole number")
        if abs(value) >= 1 << 64:
            raise self._wrong(names, "is a number of more than 64 bits")
        return value

    def numbers(self, *names: str, length: int) -> tuple[float, ...]:
        """So many finite numbers; one serves for all where the file has a single one."""
        value = self.get(*names)
        value = [value] * length if isinstance(value, int | float) else value
        if not isinstance(value, list) or len(value) < length:
            raise self._wrong(names, f"is no list of {length} numbers")
        return tuple(self._number(names, item) for item in value[:length])

    def codebook(self, name: str, channels: int) -> Codebook:
        """The one table of all channels (version 2)."""
        del channels
        value = self.get(name, "codebook")
        if not isinstance(value, list) or not 1 <= len(value) <= 256:
            raise self._wrong((name, "codebook"), "is no list of 1 to 256 numbers")
        return Codebook(np.array([[self._number((name, "codebook"), item) for item in value]], np.float32))

    def ramp(self, name: str, channels: int) -> Codebook:
        """Equal steps between two limits, for each channel (version 1)."""
        low, high = (np.array(self.numbers(name, end, length=channels)) for end in ("mins", "maxs"))
        steps = np.arange(256) / 255
        return Codebook((low[:, None] + (high - low)[:, None] * steps).astype(np.float32))

    def files(self, *names: str, length: int) -> tuple[str, ...]:
        """Names of so many pictures, which may not lead elsewhere."""
        value = self.get(*names)
        if not isinstance(value, list) or len(value) < length or not all(isinstance(n, str) for n in value[:length]):
            raise self._wrong(names, f"is no list of {length} file names")
        for name in value[:length]:
            if not name or name in (".", "..") or set(name) & set("/\\:\0") or not name.isprintable():
                raise self._wrong(names, f"leads out of the archive ({name[:40]!r})")
        return tuple(value[:length])

    def _number(self, names: tuple[str | int, ...], value: Any) -> float:
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise self._wrong(names, "holds something that is no number")
        if not -_LARGEST <= value <= _LARGEST:  # not of nan; a whole number may have any length
            raise self._wrong(names, "holds a number that is not finite")
        return float(value)

    def _wrong(self, names: tuple[str | int, ...], defect: str) -> FormatError:
        return FormatError(self._path, f"in its meta.json, {'.'.join(map(str, names))} {defect}")
