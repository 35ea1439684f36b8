"""A package index of two tiny wheels on the disk, a stand-in for uv that can be told to hang, and an installer."""

from __future__ import annotations

import base64
import hashlib
import os
import sys
import time
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from blender_addon.link.install import Installation, Order, Progress
from blender_addon.link.install_tools import UvRelease

FAKE_UV = '''#!{python}
"""Does what uv does, in a hundredth of the time; stops for ever where the file `hang` says."""
import hashlib, pathlib, re, subprocess, sys, time, zipfile

here = pathlib.Path({folder!r})

def maybe_hang(step):
    with (here / "steps").open("a") as file:
        file.write(step + "\\n")
    if (here / "hang").exists() and (here / "hang").read_text() == step:
        (here / "hanging").touch()
        time.sleep(600)
    if (here / "fail").exists() and (here / "fail").read_text() == step:
        sys.exit("error: told to fail")

arguments = sys.argv[1:]
if arguments == ["--version"]:
    print("uv 0.13.0")
elif arguments[0] == "venv":
    target = pathlib.Path(arguments[-1])
    if arguments[arguments.index("--python") + 1] != "{version}":
        sys.exit("error: no such Python")
    target.mkdir(parents=True)
    maybe_hang("venv")
    subprocess.run([{python!r}, "-I", "-m", "venv", "--without-pip", str(target)], check=True)
else:
    assert arguments[:2] == ["pip", "sync"], arguments
    assert "--require-hashes" in arguments and "--only-binary" in arguments, arguments
    environment = pathlib.Path(arguments[arguments.index("--python") + 1]).parent.parent
    site = next(environment.glob("lib/python*/site-packages"))
    text = pathlib.Path(arguments[-1]).read_text().replace("\\\\\\n", " ")
    for name, version, digest in re.findall(r"(\\S+)==(\\S+)\\s+--hash=sha256:(\\S+)", text):
        wheel = here / "wheels" / f"{{name}}-{{version}}-py3-none-any.whl"
        if hashlib.sha256(wheel.read_bytes()).hexdigest() != digest:
            sys.exit("error: Hash mismatch for " + name)
        if (site / f"{{name}}-{{version}}.dist-info").exists() and "--reinstall" not in arguments:
            continue
        print(f"Downloading {{name}} (1.0MiB)", file=sys.stderr, flush=True)
        (site / f"{{name}}-{{version}}.dist-info").mkdir(exist_ok=True)
        maybe_hang("packages:" + name)
        zipfile.ZipFile(wheel).extractall(site)
'''


def make_wheel(folder: Path, name: str, version: str) -> Path:
    """A wheel whose module says its version."""
    info = f"{name}-{version}.dist-info"
    files = {
        f"{name}.py": f"VERSION = {version!r}\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    rows = []
    for path, text in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        rows.append(f"{path},sha256={digest},{len(text)}")
    files[f"{info}/RECORD"] = "\n".join([*rows, f"{info}/RECORD,,"]) + "\n"
    wheel = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as zipped:
        for path, text in files.items():
            zipped.writestr(path, text)
    return wheel


@dataclass(frozen=True)
class TinyIndex:
    """A folder with wheels, requirements and a stand-in for uv."""

    folder: Path

    @classmethod
    def make(cls, folder: Path) -> TinyIndex:
        (folder / "wheels").mkdir(parents=True)
        for name in ("effigy_tiny_one", "effigy_tiny_two"):
            for version in ("1.0", "2.0"):
                make_wheel(folder / "wheels", name, version)
        (folder / "bin").mkdir()
        uv = folder / "bin" / "uv"
        version = "{}.{}".format(*sys.version_info[:2])
        uv.write_text(FAKE_UV.format(python=sys.executable, folder=str(folder), version=version))
        uv.chmod(0o755)
        return cls(folder)

    def requirements(self, version: str = "1.0", digest: str = "") -> Path:
        path = self.folder / f"requirements-{version}{'-wrong' if digest else ''}.txt"
        lines = []
        for name in ("effigy_tiny_one", "effigy_tiny_two"):
            wheel = self.folder / "wheels" / f"{name}-{version}-py3-none-any.whl"
            real = hashlib.sha256(wheel.read_bytes()).hexdigest()
            lines.append(f"{name}=={version} \\\n    --hash=sha256:{digest or real}\n")
        path.write_text("".join(lines))
        return path

    def variables(self, uv: bool = True) -> dict[str, str]:
        """Variables of an installer; without uv its PATH holds nothing."""
        home = self.folder / "home"
        home.mkdir(exist_ok=True)
        return {
            "PATH": str(self.folder / "bin") if uv else str(self.folder / "nothing"), "HOME": str(home),
            "PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(self.folder / "wheels"),
            "PIP_NO_CACHE_DIR": "1", "LANG": "C.UTF-8",
        }  # fmt: skip

    def order(self, root: Path, version: str = "1.0", **changes: object) -> Order:
        settings: dict[str, object] = {
            "requirements": self.requirements(version), "check": check(version), "needed_bytes": 1,
            "caller": self.variables(), "release": UvRelease("0", "http://127.0.0.1:9", {}),
            "pythons": ("{}.{}".format(*sys.version_info[:2]),),
        }  # fmt: skip
        settings |= {"accelerator": "cpu"}
        return Order(root, **(settings | changes))  # type: ignore[arg-type]

    def hang(self, step: str) -> None:
        (self.folder / "hang").write_text(step)
        (self.folder / "hanging").unlink(missing_ok=True)

    def fail(self, step: str) -> None:
        (self.folder / "fail").write_text(step)

    def heal(self) -> None:
        for name in ("hang", "fail", "hanging", "steps"):
            (self.folder / name).unlink(missing_ok=True)

    def steps(self) -> list[str]:
        path = self.folder / "steps"
        return path.read_text().split() if path.exists() else []


def check(version: str) -> Callable[[Path], list[str]]:
    """What stands for doctor: both modules import and have the right version."""
    code = (
        "import json, sys\n"
        "try:\n"
        "    import effigy_tiny_one as one, effigy_tiny_two as two\n"
        f"    wrong = [m.__name__ for m in (one, two) if m.VERSION != {version!r}]\n"
        "except ImportError as error:\n"
        "    wrong = [str(error)]\n"
        "rows = [{'name': 'packages', 'value': name, 'state': 'missing', 'next_step': ''} for name in wrong]\n"
        "print(json.dumps({'findings': rows}))\n"
        "sys.exit(3 if wrong else 0)\n"
    )
    return lambda python: [str(python), "-I", "-c", code]


def finish(order: Order, timeout_s: float = 60.0) -> Progress:
    """Do an order to its end."""
    installation = Installation(order)
    return wait(installation, timeout_s)


def wait(installation: Installation, timeout_s: float = 60.0) -> Progress:
    end = time.monotonic() + timeout_s
    while installation.is_running:
        assert time.monotonic() < end, installation.progress
        time.sleep(0.01)
    return installation.progress


def until(condition: Callable[[], bool], timeout_s: float = 30.0) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def environment_with(base: Mapping[str, str], **more: str) -> dict[str, str]:
    return {**base, **more}
