"""Every splat format that the backend reads and writes: those of the add-on, and those whose codec needs a library.

`python -m backend convert` and `render` look files up in FORMATS; the add-on alone has `SHARED_FORMATS`.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from backend.formats.sog import is_sog, read_sog
from backend.formats.sog_write import write_sog
from backend.formats.zstandard_codec import ZstandardCodec
from blender_addon.shared.formats import SHARED_FORMATS, SplatFormat
from blender_addon.shared.formats.spz import read_spz, write_spz

__all__ = ["FORMATS", "with_spz_version"]


def _with_library(row: SplatFormat) -> SplatFormat:
    if row.name != "spz":
        return row
    return replace(row, read=partial(read_spz, zstd=ZstandardCodec()), write=partial(write_spz, zstd=ZstandardCodec()))


FORMATS: tuple[SplatFormat, ...] = (
    # Before glTF, which is JSON too.
    SplatFormat("sog", (".sog", "meta.json"), "y_down", is_sog, read_sog, write_sog),
    *(_with_library(row) for row in SHARED_FORMATS),
)
"""The table for `read_splats(path, formats=FORMATS)`."""


def with_spz_version(version: int) -> tuple[SplatFormat, ...]:
    """The table whose SPZ writer writes version 3 or 4."""
    writer = partial(write_spz, version=4 if version == 4 else 3, zstd=ZstandardCodec())
    return tuple(replace(row, write=writer) if row.name == "spz" else row for row in FORMATS)
