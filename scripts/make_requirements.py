"""Make the backend's hash-pinned requirements: `python scripts/make_requirements.py [--uv PATH]`.

Writes blender_addon/requirements/{cpu,cuda,mac}.txt from the extras of pyproject.toml, one file per accelerator, for
Python 3.11 and 3.12. They hold names, versions, markers and sha256 of wheels, and no address: whoever installs them
takes the packages from the index that their machine is set up for. Needs uv and `packaging`; asks the package index.

Each file has sections: `photo` is all that the photo-only methods need, `models` what the published models need on
top, `gsplat` the CUDA rasteriser. `python -m backend doctor` reads them too.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from packaging.markers import Marker

sys.path.insert(0, str(Path(__file__).resolve().parent))
from environment import read_requirements  # noqa: E402  the scripts run as files, not as a package

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "blender_addon" / "requirements"
PYTHONS = ("3.11", "3.12")
SECTIONS = (("photo", "cpu"), ("models", "diffusion"), ("gsplat", "cuda"))
"""Section and the extra whose packages, less those of the sections before, are in it."""


@dataclass(frozen=True)
class Accelerator:
    """One file.

    Attributes:
        name: Of the file.
        extra: Extra of pyproject.toml with everything that is in it.
        systems: `sys_platform` and `platform_machine` of the machines that it is for. mediapipe 0.10.21 has no wheel
            for Linux or Windows on ARM, torch 2.13 none for Macs with an Intel processor.
        cuda: Whether torch is the build with CUDA.
    """

    name: str
    extra: str
    systems: tuple[tuple[str, str], ...]
    cuda: bool = False


ACCELERATORS = (
    Accelerator("cpu", "diffusion", (("linux", "x86_64"), ("win32", "AMD64"))),
    Accelerator("cuda", "cuda", (("linux", "x86_64"), ("win32", "AMD64")), cuda=True),
    Accelerator("mac", "diffusion", (("darwin", "arm64"),)),
)

TORCH_VERSION = "2.13.0"
TORCH_BUILDS: Mapping[tuple[str, bool], tuple[str, tuple[str, ...]]] = {
    # torch without CUDA for Linux: CPython 3.11, 3.12.
    ("linux", False): (
        "+cpu",
        (
            "6746dbcbeb526eb61330b76b41ff1b4eb848951103a892eeb080dfa2b264667b",
            "4ca4a9394b0c771238a4f73590fdbbc4debad85ed0fa63d026ae1b085da7d6e2",
        ),
    ),
    # torch with CUDA 13.0 for Windows: CPython 3.12. The digest of the wheel for 3.11 is not known here.
    ("win32", True): ("+cu130", ("2efab1e83604ca628c6d85b9e188c153690980498d1297081a9dad704919303c",)),
}
"""Builds that PyTorch's own index has and the general one has not, by system and CUDA: local version and sha256.

The other two are the general index's own wheels: with CUDA 13 for Linux, without CUDA for Windows.
"""

_CUDA_LIBRARIES = ("nvidia-", "cuda-", "triton")
"""What only torch's CUDA build for Linux needs."""

_SUPERSEDED = ("opencv-python", "opencv-python-headless", "opencv-contrib-python-headless")
"""Needed by name only: opencv-contrib-python is the same and more, in the same folder, and must not be overwritten."""


@dataclass(frozen=True)
class Entry:
    """One package: name, version, marker (empty: always) and sha256 of its wheels."""

    name: str
    version: str
    marker: str
    hashes: tuple[str, ...]

    def text(self) -> str:
        """As pip and uv read it."""
        marker = f" ; {self.marker}" if self.marker else ""
        return " \\\n    ".join([f"{self.name}=={self.version}{marker}", *(f"--hash=sha256:{h}" for h in self.hashes)])


def parse(text: str) -> list[Entry]:
    """The entries of a requirements file."""
    entries: list[Entry] = []
    for line in text.replace("\\\n", " ").splitlines():
        found = re.match(r"([A-Za-z0-9._-]+)==(\S+)\s*(?:;\s*(.*?))?\s*(--hash=.*)?$", line.strip())
        if found:
            hashes = re.findall(r"--hash=sha256:([0-9a-f]{64})", found[4] or "")
            entries.append(Entry(found[1], found[2], (found[3] or "").strip(), tuple(hashes)))
    return entries


def compile_extra(uv: str, extra: str) -> list[Entry]:
    """What uv finds for an extra: everything it needs, on all systems.

    Raises:
        SystemExit: If uv fails; it has said why.
    """
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "pyproject.toml", Path(folder) / "out.txt"
        source.write_text(_project(read_requirements((extra,))), "utf-8")
        command = [uv, "pip", "compile", "--quiet", "--universal", "--generate-hashes", "--no-emit-index-url"]
        command += ["--no-emit-find-links", "--no-header", "--no-annotate", "--only-binary", ":all:"]
        command += ["--python-version", PYTHONS[0], "--output-file", str(target), str(source)]
        if subprocess.run(command, check=False, cwd=folder).returncode:
            raise SystemExit(f"uv found no solution for the extra {extra}")
        return parse(target.read_text("utf-8"))


def _project(requirements: Iterable[str]) -> str:
    """A pyproject.toml that limits the solution to the Pythons and systems that are meant."""
    systems = dict.fromkeys(system for accelerator in ACCELERATORS for system in accelerator.systems)
    end = int(PYTHONS[-1].split(".")[1]) + 1
    common = f"python_full_version < '3.{end}' and implementation_name == 'cpython'"
    where = [f"{common} and sys_platform == '{name}' and platform_machine == '{machine}'" for name, machine in systems]
    lines = ["[project]", 'name = "wanted"', 'version = "0"', f'requires-python = ">={PYTHONS[0]}"']
    lines += [f"dependencies = {json.dumps(list(requirements))}", "[tool.uv]", f"environments = {json.dumps(where)}"]
    return "\n".join(lines)


def fit(entries: Iterable[Entry], accelerator: Accelerator) -> list[Entry]:
    """The entries that some machine of this accelerator installs, with the markers that still tell them apart."""
    machines = [(python, *system) for python in PYTHONS for system in accelerator.systems]
    out: list[Entry] = []
    for entry in entries:
        if entry.name == "torch":
            out += _torch(entry, accelerator)
            continue
        if entry.name in _SUPERSEDED or (entry.name.startswith(_CUDA_LIBRARIES) and not accelerator.cuda):
            continue
        wanted = [_holds(entry.marker, *machine) for machine in machines]
        if any(wanted):
            marker = _shortest_marker(entry.marker, wanted, machines)
            out.append(Entry(entry.name, entry.version, marker, entry.hashes))
    return out


def _shortest_marker(marker: str, wanted: Sequence[bool], machines: Sequence[tuple[str, str, str]]) -> str:
    """What tells these machines apart as `marker` does; uv's own speaks of all machines and is long."""
    systems = [f"sys_platform == '{name}'" for name in dict.fromkeys(system for _, system, _ in machines)]
    pythons = [f"python_version == '{python}'" for python in PYTHONS]
    both = [f"{python} and {system}" for python in pythons for system in systems]
    for candidate in ("", *systems, *pythons, *both):
        if [_holds(candidate, *machine) for machine in machines] == list(wanted):
            return candidate
    return marker


def _torch(entry: Entry, accelerator: Accelerator) -> list[Entry]:
    if entry.version != TORCH_VERSION:
        raise SystemExit(f"TORCH_BUILDS has the digests of {TORCH_VERSION}, pyproject.toml wants {entry.version}")
    systems = list(dict.fromkeys(system for system, _ in accelerator.systems))
    out: list[Entry] = []
    for system in systems:
        local, hashes = TORCH_BUILDS.get((system, accelerator.cuda), ("", entry.hashes))
        marker = f"sys_platform == '{system}'" if len(systems) > 1 else ""
        out.append(Entry("torch", entry.version + local, marker, hashes))
    return out


def _holds(marker: str, python: str, system: str, machine: str) -> bool:
    values = {
        "python_version": python, "python_full_version": f"{python}.9", "sys_platform": system,
        "platform_machine": machine, "implementation_name": "cpython", "platform_python_implementation": "CPython",
        "os_name": "nt" if system == "win32" else "posix",
        "platform_system": {"linux": "Linux", "win32": "Windows", "darwin": "Darwin"}[system],
    }  # fmt: skip
    return not marker or Marker(marker).evaluate(values)


def render(accelerator: Accelerator, compiled: Mapping[str, Sequence[Entry]]) -> str:
    """The text of one file.

    Args:
        accelerator: Which.
        compiled: Entries by extra; those of a later section repeat those of the earlier ones.
    """
    pythons = " and ".join(PYTHONS)
    lines = [
        f"# Effigy's backend, accelerator {accelerator.name}, Python {pythons}; made by scripts/make_requirements.py",
        f"# extra: {accelerator.extra}",
    ]
    written: set[str] = set()
    everything = fit(compiled[accelerator.extra], accelerator)
    for section, extra in SECTIONS:
        names = {entry.name for entry in compiled[extra]}
        entries = [entry for entry in everything if entry.name in names and entry.name not in written]
        if entries:
            lines += ["", f"# section: {section}", *(entry.text() for entry in entries)]
        written |= {entry.name for entry in entries}
        if extra == accelerator.extra:
            break
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> int:
    """Write the files.

    Returns:
        The exit code.
    """
    parser = argparse.ArgumentParser(description="Make the backend's hash-pinned requirements.")
    parser.add_argument("--uv", default=shutil.which("uv") or "uv", help="the uv that resolves them")
    parser.add_argument("--output", type=Path, default=FOLDER, help="folder of the files")
    options = parser.parse_args(arguments)
    extras = dict.fromkeys(extra for _, extra in SECTIONS)
    compiled = {extra: compile_extra(options.uv, extra) for extra in extras}
    options.output.mkdir(parents=True, exist_ok=True)
    for accelerator in ACCELERATORS:
        path = options.output / f"{accelerator.name}.txt"
        path.write_text(render(accelerator, compiled), "utf-8")
        print(f"{path}: {len(parse(path.read_text('utf-8')))} packages")
    return 0


if __name__ == "__main__":
    sys.exit(main())
