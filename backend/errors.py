"""Errors as values that a user can act on; everything else is a defect of ours."""

from __future__ import annotations

from typing import Final, Literal

ExitCode = Literal[0, 1, 2, 3]

DONE: Final = 0
FAILED: Final = 1
BAD_REQUEST: Final = 2
MODEL_MISSING: Final = 3


INSTALL: Final = "run scripts/demo.py once, or pip install effigy[cpu]"
"""Next step where a package of the backend is missing."""


class UserError(Exception):
    """Something that the user can put right.

    Attributes:
        message: One line: what is wrong and what to do next.
        code: Exit code of the command: 1 failed, 2 bad request, 3 a model or a device is missing.
    """

    def __init__(self, message: str, code: ExitCode = BAD_REQUEST) -> None:
        """Keep the message on one line, whatever text of another library it quotes."""
        self.message = " ".join(message.split())
        self.code: ExitCode = code
        super().__init__(self.message)


class Cancelled(Exception):
    """The user cancelled the job; not a failure."""


def missing_package(error: BaseException) -> str:
    """Name of the third-party package whose import failed; empty for anything else, parts of Effigy included."""
    name = (error.name or "").split(".")[0] if isinstance(error, ModuleNotFoundError) else ""
    return "" if name in ("backend", "blender_addon") else name
