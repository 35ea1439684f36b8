"""Build the installable extension: `python3 scripts/build_extension.py [--blender PATH] [--repository DIR]`.

Puts the manifest and a one-line `__init__.py` at the root with `blender_addon/` and `backend/` beside them, and lets
Blender's own command line validate and pack it. `--repository` also makes a static folder that Blender can install
from, when it is put on any web server or disk.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
_INIT = '''"""The extension's entry: the add-on itself is the package beside this file."""

from .blender_addon import register, unregister

__all__ = ["register", "unregister"]
'''
_LEFT_OUT = shutil.ignore_patterns("__pycache__", "*.py[cod]", "*.nbi", "*.nbc", "blender_manifest.toml")


class BuildError(RuntimeError):
    """The extension could not be built; the message is one line."""


def main(arguments: list[str] | None = None) -> int:
    """Build.

    Returns:
        The exit code.
    """
    parser = argparse.ArgumentParser(description="Build the installable extension with Blender's own command line.")
    parser.add_argument("--blender", default="blender", help="the Blender that validates and packs (4.2 or newer)")
    parser.add_argument("--output", type=Path, default=ROOT / "dist", help="folder of the zip")
    parser.add_argument("--repository", type=Path, help="also make a static repository in this folder")
    options = parser.parse_args(arguments)
    try:
        package = build(options.blender, options.output)
        if options.repository is not None:
            make_repository(options.blender, package, options.repository)
    except BuildError as error:
        print(error, file=sys.stderr)
        return 1
    print(package)
    return 0


def stage(folder: Path) -> None:
    """Lay the extension's files out in an empty folder."""
    for name in ("blender_addon", "backend"):
        shutil.copytree(ROOT / name, folder / name, ignore=_LEFT_OUT)
    shutil.copyfile(ROOT / "blender_addon" / "blender_manifest.toml", folder / "blender_manifest.toml")
    for name in ("LICENSE", "NOTICE", "README.md", "pyproject.toml"):
        shutil.copyfile(ROOT / name, folder / name)
    (folder / "__init__.py").write_text(_INIT, "utf-8")


def build(blender: str, output: Path) -> Path:
    """Validate and pack.

    Args:
        blender: Name or path of the program.
        output: Folder for the zip; made if it is missing.

    Returns:
        The zip.

    Raises:
        BuildError: If Blender is not there, or refuses the extension.
    """
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        staged, packed = Path(temporary) / "effigy", Path(temporary) / "packed"
        staged.mkdir()
        packed.mkdir()
        stage(staged)
        _blender(blender, "validate", str(staged))
        _blender(blender, "build", "--source-dir", str(staged), "--output-dir", str(packed))
        found = list(packed.glob("*.zip"))
        if len(found) != 1:
            raise BuildError(f"{blender} made {len(found)} files instead of one zip")
        target = output / found[0].name
        shutil.move(found[0], target)
    return target


def make_repository(blender: str, package: Path, folder: Path) -> None:
    """A static repository with this one extension.

    Raises:
        BuildError: If Blender refuses.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(package, folder / package.name)
    _blender(blender, "server-generate", "--repo-dir", str(folder))


def _blender(blender: str, *arguments: str) -> None:
    command = [blender, "--command", "extension", *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise BuildError(f"{blender} cannot be started ({error.strerror}); give a Blender with --blender") from error
    lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    if done.returncode != 0:
        raise BuildError(f"{arguments[0]} failed: {lines[-1] if lines else f'exit code {done.returncode}'}")


if __name__ == "__main__":
    sys.exit(main())
