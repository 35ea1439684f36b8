"""The Blenders that the tests run: Python interpreters with a bpy wheel."""

from __future__ import annotations

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
OTHERS = ("bpy42", "bpy50")
BLENDERS = ("this", *OTHERS)


def find_blender(name: str) -> str:
    """The interpreter of one of `BLENDERS`; EFFIGY_BPY42_PYTHON and EFFIGY_BPY50_PYTHON name others.

    A missing one fails the test: a check that is left out silently would look like one that passed.
    """
    if name == "this":
        return sys.executable
    folder = "Scripts/python.exe" if os.name == "nt" else "bin/python"
    path = Path(os.environ.get(f"EFFIGY_{name.upper()}_PYTHON") or ROOT / f".venv-{name}" / folder)
    assert path.is_file(), f"{path} is not there; `python3 scripts/test.py` makes it"
    return str(path)
