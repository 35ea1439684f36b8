"""Which Python runs the backend, and how the child process is started. Standard library only."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from . import environments
from .environments import ROOT

_SECRET = ("TOKEN", "SECRET", "PASSWORD", "PASSWD", "CREDENTIAL", "API_KEY", "ACCESS_KEY", "PRIVATE_KEY")
"""Variables whose names hold one of these are not for a process that works on other people's files."""


NO_BACKEND = (
    "the backend is not installed; press Install Backend in the add-on's preferences "
    "(from a checkout: run scripts/demo.py once, or give --backend-python)"
)


class NoBackendError(RuntimeError):
    """No Python for the backend; the message is one line with the next step."""


def find_backend_python(given: str | None = None, environments_root: Path | None = None) -> Path:
    """The Python that runs the backend.

    The first of: `given` (a command line's --backend-python), the variable EFFIGY_BACKEND_PYTHON, a finished
    environment in `environments_root`, the checkout's `.venv`, this process's Python if it has torch.

    Raises:
        NoBackendError: If none is there, or the one that was asked for does not exist.
    """
    for source, path in (
        ("--backend-python", given),
        ("EFFIGY_BACKEND_PYTHON", os.environ.get("EFFIGY_BACKEND_PYTHON")),
    ):
        if path:
            if not Path(path).is_file():
                raise NoBackendError(f"{source} names {path}, which is not there; give a Python that has the backend")
            return Path(path)
    for candidate in _environments(environments_root):
        if candidate.is_file():
            return candidate
    if Path(sys.executable).name.startswith("python") and importlib.util.find_spec("torch") is not None:
        return Path(sys.executable)
    raise NoBackendError(NO_BACKEND)


def backend_command(python: Path, *arguments: str) -> list[str]:
    """The command line of a backend process: isolated from the working directory and the user's own packages."""
    return [str(python), "-P", "-s", "-u", "-m", "backend", *arguments]


def backend_environment(cache: Path | None = None) -> dict[str, str]:
    """Environment variables of a backend process: this root is its only import path, and no secrets.

    Args:
        cache: Where Python and numba may keep compiled files; None leaves the caller's choice.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "__PYVENV"))}
    kept = {name: value for name, value in kept.items() if not any(word in name.upper() for word in _SECRET)}
    kept |= {"PYTHONPATH": str(ROOT), "PYTHONNOUSERSITE": "1", "PYTHONIOENCODING": "utf-8"}
    if cache is not None:
        kept |= {"PYTHONPYCACHEPREFIX": str(cache / "pycache"), "NUMBA_CACHE_DIR": str(cache / "numba")}
    return kept


def start_backend(python: Path, arguments: Sequence[str], cache: Path | None = None) -> subprocess.Popen[str]:
    """Start a backend process whose output and errors arrive as text through two pipes.

    Raises:
        NoBackendError: If the Python cannot be started.
    """
    try:
        return subprocess.Popen(
            backend_command(python, *arguments),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            errors="replace",
            env=backend_environment(cache),
        )
    except OSError as error:
        raise NoBackendError(f"{python} cannot be started ({error.strerror}); give another --backend-python") from error


def _environments(root: Path | None) -> Iterator[Path]:
    found = environments.best(root) if root is not None else None
    if found is not None:
        yield found.interpreter
    yield ROOT / ".venv" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
