"""Marks the environment that this process runs in as used, so that an installer does not take it away."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import IO

from blender_addon.shared.file_lock import ENVIRONMENT_IN_USE, ENVIRONMENT_STATE, try_lock


def hold_environment() -> IO[bytes] | None:
    """Hold the environment until the process ends; whoever calls this keeps what it returns.

    Returns:
        The open lock; None where this Python is no environment of the add-on's making, or it may not be written.
    """
    folder = Path(sys.prefix)
    if not (folder / ENVIRONMENT_STATE).is_file():
        return None
    try:
        file = (folder / ENVIRONMENT_IN_USE).open("ab")
    except OSError:
        return None  # read-only: nobody removes it either
    try_lock(file, shared=True)
    return file
