"""Standard input and output for the protocol alone."""

from __future__ import annotations

import os
import sys

from backend.errors import BAD_REQUEST, UserError


def take_pipes() -> tuple[int, int]:
    """Move standard input and output aside, before any library is loaded.

    What a library prints, from Python or from native code, goes to standard error afterwards, and one that reads finds
    an empty input.

    Returns:
        Descriptors to read from and to write to; child processes do not inherit them.

    Raises:
        UserError: If one of the two is closed.
    """
    sys.stdout.flush()
    try:
        source, target = os.dup(0), os.dup(1)
    except OSError as error:
        raise UserError("serve talks over its standard input and output; do not close them", BAD_REQUEST) from error
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    if sys.platform == "win32":
        import msvcrt

        for descriptor in (source, target):
            msvcrt.setmode(descriptor, os.O_BINARY)  # no carriage returns
    return source, target
