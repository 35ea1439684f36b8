"""Errors as values that a user can act on; everything else is a defect of ours."""

from __future__ import annotations

import errno
from dataclasses import dataclass
from typing import Final, Literal

from blender_addon.shared.protocol import FailureCode

ExitCode = Literal[0, 1, 2, 3]

DONE: Final = 0
FAILED: Final = 1
BAD_REQUEST: Final = 2
MODEL_MISSING: Final = 3


INSTALL: Final = "press Repair in the add-on's preferences (from a checkout: run scripts/demo.py once)"
"""Next step where a package of the backend is missing."""

INSTALL_MODELS: Final = "press Repair in the add-on's preferences (from a checkout: pip install '.[diffusion]')"
"""The same for the libraries of published models. No name of a package index: Effigy is on none, and whoever takes the
name there is somebody else."""

NO_SPACE: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What the system says when a disk, a quota or a file's largest size is used up."""

_KINDS: Final[dict[int, FailureCode]] = {FAILED: "INTERNAL", BAD_REQUEST: "BAD_REQUEST", MODEL_MISSING: "NO_MODEL"}


class UserError(Exception):
    """Something that the user can put right.

    Attributes:
        message: One line: what is wrong and what to do next.
        code: Exit code of the command: 1 failed, 2 bad request, 3 a model or a device is missing.
        kind: The protocol's name of the failure.
    """

    def __init__(self, message: str, code: ExitCode = BAD_REQUEST, kind: FailureCode | None = None) -> None:
        """Keep the message on one line, whatever text of another library it quotes."""
        self.message = " ".join(message.split())
        self.code: ExitCode = code
        self.kind: FailureCode = kind or _KINDS.get(code, "INTERNAL")
        super().__init__(self.message)


class Cancelled(Exception):
    """The user cancelled the job; not a failure."""


@dataclass(frozen=True)
class Failure:
    """What is said about a job that could not be done.

    Attributes:
        kind: The protocol's name of the failure.
        text: What is wrong, one line.
        hint: What to do next, one line; empty where the text says it.
        code: Exit code of the command.
        defect: Nobody foresaw this: the log belongs in a report.
    """

    kind: FailureCode
    text: str
    hint: str = ""
    code: ExitCode = FAILED
    defect: bool = False


def failure_of(error: BaseException) -> Failure:
    """What to say about any exception that ended a job."""
    if isinstance(error, UserError):
        return Failure(error.kind, error.message, code=error.code)
    if isinstance(error, MemoryError):
        return Failure("OUT_OF_MEMORY", "the memory is full", "close other programs or use the preset fast")
    if package := missing_package(error):
        return Failure("NO_MODEL", f"{package} is not installed", INSTALL, MODEL_MISSING)
    if full := full_disk(error):
        return Failure("DISK_FULL", f"the disk is full ({full.strerror})", "free some space and try again")
    reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
    return Failure("INTERNAL", f"the job failed ({reason})", "please report it with its log", defect=True)


def full_disk(error: BaseException) -> OSError | None:
    """The full disk or quota behind an exception; a zip file that cannot be closed any more hides it behind another."""
    at: BaseException | None = error
    while at is not None:
        if isinstance(at, OSError) and at.errno in NO_SPACE:
            return at
        at = at.__cause__ or at.__context__
    return None


def missing_package(error: BaseException) -> str:
    """Name of the third-party package whose import failed; empty for anything else, parts of Effigy included."""
    name = (error.name or "").split(".")[0] if isinstance(error, ModuleNotFoundError) else ""
    return "" if name in ("backend", "blender_addon") else name
