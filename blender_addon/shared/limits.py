"""Limits that both sides hold to, and why."""

from __future__ import annotations

MAX_SPLATS = 50_000_000
"""A header that announces more is refused before anything is allocated (50 M splats of degree 3 are 12 GB)."""

MAX_ARCHIVE_BYTES = 2 * 1024**3
"""Unpacked size of an avatar's arrays that a reader accepts; a real avatar has about 20 MB."""

OPACITY_LOGIT_MAX = 1.0 - 2.0**-20
"""Opacity is clamped to this before a logit is taken; what is read back this close to 1 is 1."""
