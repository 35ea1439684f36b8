"""The user's own folders, by operating system."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

_WINDOWS = {"data": ("LOCALAPPDATA", "AppData/Local"), "cache": ("LOCALAPPDATA", "AppData/Local")}
_MAC = {"data": "Library/Application Support", "cache": "Library/Caches"}
_OTHERS = {"data": ("XDG_DATA_HOME", ".local/share"), "cache": ("XDG_CACHE_HOME", ".cache")}


def user_folder(kind: Literal["data", "cache"], environment: Mapping[str, str], platform: str) -> Path:
    """Effigy's folder for what stays ("data") or can be made again ("cache"); it need not exist.

    Args:
        kind: Which.
        environment: Such as `os.environ`.
        platform: Such as `sys.platform`.
    """
    home = Path.home()
    if platform == "darwin":
        return home / _MAC[kind] / "effigy"
    variable, below = (_WINDOWS if platform == "win32" else _OTHERS)[kind]
    return Path(environment.get(variable) or home / below) / "effigy"
