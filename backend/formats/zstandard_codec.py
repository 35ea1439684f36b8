"""The zstd codec of SPZ version 4, from the `zstandard` package.

Python 3.14 has one in its standard library; the backend runs on 3.11 and 3.12, where `zstandard` (BSD) is the
binding of the reference library. It is imported when it is needed: nothing else has to wait for it.
"""

from __future__ import annotations

from typing import Final

LEVEL: Final = 12
"""Of the reference writer."""


class ZstandardCodec:
    """See `blender_addon.shared.formats.spz.Zstd`."""

    def decompress(self, data: bytes, limit: int) -> bytes:
        """The first `limit` bytes, at most, of the frames.

        Raises:
            ValueError: If the data are damaged or cut short.
        """
        import zstandard

        try:
            # The library's own limit for windows, 128 MB, holds: a frame cannot ask for more memory than that.
            decompressor = zstandard.ZstdDecompressor()
            with decompressor.stream_reader(data, read_size=len(data) or 1, read_across_frames=True) as reader:
                return reader.read(limit)
        except zstandard.ZstdError as error:
            raise ValueError(str(error)) from None

    def compress(self, data: bytes) -> bytes:
        """One frame, which says how many bytes are in it."""
        import zstandard

        return zstandard.ZstdCompressor(level=LEVEL).compress(data)
