"""The extension as it is laid out for packing; Blender's own validation is part of the tests in a real Blender."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from scripts.build_extension import BuildError, build, stage


@pytest.fixture(scope="module")
def staged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("effigy")
    stage(folder)
    return folder


def test_the_manifest_lies_at_the_root_and_nowhere_else(staged: Path) -> None:
    manifests = [path.relative_to(staged).as_posix() for path in staged.rglob("blender_manifest.toml")]
    assert manifests == ["blender_manifest.toml"]
    manifest = tomllib.loads((staged / "blender_manifest.toml").read_text("utf-8"))
    assert manifest["id"] == "effigy" and manifest["type"] == "add-on"
    assert not list(staged.rglob("__pycache__")), "compiled files of this machine"
    assert {path.name for path in staged.rglob("requirements/*.txt")} == {"cpu.txt", "cuda.txt", "mac.txt"}
    assert (staged / "LICENSE").is_file() and (staged / "NOTICE").is_file()


def test_a_backend_started_from_the_extension_imports_both_packages(staged: Path, tmp_path: Path) -> None:
    code = (
        "import json, backend, blender_addon.shared.protocol, backend.human.model as m; "
        "print(json.dumps([backend.__file__, m.load_default_body().name]))"
    )
    command = [sys.executable, "-P", "-s", "-c", code]
    environment = {"PYTHONPATH": str(staged), "PYTHONPYCACHEPREFIX": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    where, body = json.loads(done.stdout)
    assert Path(where).is_relative_to(staged) and "default body" in body


def test_a_missing_blender_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="--blender") as caught:
        build(str(tmp_path / "no-blender"), tmp_path)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob("*.zip"))
