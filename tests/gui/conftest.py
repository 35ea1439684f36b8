"""One Debian root and one installed extension for all tests in a real Blender."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.gui.debian import DebianRoot, find_or_make_root
from tests.gui.desktop import Desktop


@pytest.fixture(scope="session")
def debian() -> DebianRoot:
    return find_or_make_root()


@pytest.fixture(scope="session")
def desktop(debian: DebianRoot, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desktop]:
    """EFFIGY_GUI_PICTURES names a folder that gets every screenshot at the end."""
    desktop = Desktop(debian, tmp_path_factory.mktemp("real-blender"))
    desktop.install()
    yield desktop
    keep = os.environ.get("EFFIGY_GUI_PICTURES")
    if keep:
        Path(keep).mkdir(parents=True, exist_ok=True)
        for picture in desktop.out.glob("*.png"):
            shutil.copy(picture, keep)
