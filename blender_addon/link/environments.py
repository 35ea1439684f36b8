"""The backend's environments on the disk: which is finished, which is in use, how one is removed. No bpy.

They lie side by side in one folder, named by version, accelerator and the digest of their requirements. One is used
only when its state file says that `doctor` found it complete; an older finished one serves until then.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from ..shared.file_lock import ENVIRONMENT_IN_USE, ENVIRONMENT_STATE, try_lock

ROOT = Path(__file__).resolve().parent.parent.parent
"""Root of the checkout or of the installed extension: `backend` and `blender_addon` lie in it."""

REQUIREMENTS = Path(__file__).resolve().parent.parent / "requirements"
PREFIX = "backend-"
_REMOVED = ".removed-"


@dataclass(frozen=True)
class Environment:
    """What the state file of an environment says.

    Attributes:
        folder: Where it lies; not in the file.
        state: "ready" when `doctor` found it complete; else "incomplete".
        step: Where an incomplete one stopped.
        accelerator: cpu, cuda or mac.
        requirements: sha256 of its requirements file.
        python: Version of its Python.
        tool: What made it: uv or pip, with version.
        made_s: When, seconds since 1970.
    """

    folder: Path
    state: Literal["incomplete", "ready"] = "incomplete"
    step: str = ""
    accelerator: str = ""
    requirements: str = ""
    python: str = ""
    tool: str = ""
    made_s: float = 0.0

    @property
    def interpreter(self) -> Path:
        """Its Python."""
        return self.folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")

    @property
    def usable(self) -> bool:
        """Whether it was found complete and its Python is still there."""
        return self.state == "ready" and self.interpreter.exists()


def environments_folder(user_folder: Path) -> Path:
    """Where the environments of an extension with this user folder lie."""
    return user_folder / "environments"


def backend_version() -> str:
    """Version of the backend beside this add-on, read without importing it."""
    found = re.search(r'^__version__ = "([^"]+)"', (ROOT / "backend" / "__init__.py").read_text("utf-8"), re.MULTILINE)
    return found[1] if found else "0"


def wanted_name(accelerator: str, requirements: Path | None = None) -> str:
    """Folder name of the environment that this add-on wants."""
    digest = requirements_digest(requirements or REQUIREMENTS / f"{accelerator}.txt")
    return f"{PREFIX}{backend_version()}-{accelerator}-{digest[:8]}"


def requirements_digest(requirements: Path) -> str:
    """sha256 of a requirements file, the same with either kind of line end."""
    return hashlib.sha256(requirements.read_bytes().replace(b"\r\n", b"\n")).hexdigest()


def read(folder: Path) -> Environment:
    """What the environment in `folder` is; an incomplete one if it does not say."""
    try:
        content = json.loads((folder / ENVIRONMENT_STATE).read_text("utf-8"))
        names = {name: content[name] for name in asdict(Environment(folder)) if name in content and name != "folder"}
        if content["state"] in ("incomplete", "ready"):
            return Environment(folder, **names)
    except (OSError, ValueError, KeyError, TypeError):
        pass  # half made, or damaged: both mean that it is not to be used
    return Environment(folder)


def write(environment: Environment) -> Environment:
    """Write the state file, whole or not at all.

    Raises:
        OSError: If it cannot be written.
    """
    stamped = replace(environment, made_s=round(time.time(), 3))
    content = asdict(stamped)
    del content["folder"]
    part = environment.folder / (ENVIRONMENT_STATE + ".part")
    with part.open("w", encoding="utf-8") as file:
        json.dump(content, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    part.replace(environment.folder / ENVIRONMENT_STATE)
    return stamped


def all_in(root: Path) -> list[Environment]:
    """Every environment of a folder, the newest first."""
    if not root.is_dir():
        return []
    found = [read(path) for path in root.iterdir() if path.name.startswith(PREFIX) and path.is_dir()]
    return sorted(found, key=lambda environment: environment.made_s, reverse=True)


def best(root: Path) -> Environment | None:
    """The environment to use: a finished one that this version wants, else the newest finished one."""
    usable = [environment for environment in all_in(root) if environment.usable]
    wanted = {wanted_name(path.stem, path) for path in REQUIREMENTS.glob("*.txt")}
    fitting = [environment for environment in usable if environment.folder.name in wanted]
    return (fitting or usable or [None])[0]


def is_in_use(folder: Path) -> bool:
    """Whether a backend process uses the environment (POSIX; on Windows the removal itself tells)."""
    path = folder / ENVIRONMENT_IN_USE
    if os.name == "nt" or not path.exists():
        return False
    try:
        with path.open("ab") as file:
            return not try_lock(file)
    except OSError:
        return False  # of a folder that may not be written, which its removal will say


def remove(folder: Path) -> bool:
    """Remove an environment, or anything else beside one, unless a process uses it.

    Returns:
        Whether it is gone. What is left of a removal that failed half-way has a name that nobody takes for one.
    """
    if not folder.exists() and not folder.is_symlink():
        return True
    if folder.is_symlink() or folder.is_file():
        folder.unlink()
        return True
    if is_in_use(folder):
        return False
    aside = folder.with_name(f"{_REMOVED}{folder.name}-{time.time_ns()}")
    try:
        folder.rename(aside)  # Windows refuses while a file inside is open
    except OSError:
        return False
    shutil.rmtree(aside, ignore_errors=True)
    return True


def sweep(root: Path, keep: Path) -> list[Path]:
    """Remove every environment but `keep`, and remains of earlier removals.

    Returns:
        Those that are still in use.
    """
    for path in root.glob(f"{_REMOVED}*"):
        shutil.rmtree(path, ignore_errors=True)
    others = [path for path in root.iterdir() if path.name.startswith(PREFIX) and path != keep]
    return [path for path in others if not remove(path)]
