"""How far uv or pip is, read from what it prints, and why it failed. Standard library only."""

from __future__ import annotations

import re
from pathlib import Path

_UNITS = {"b": 1, "kb": 1e3, "mb": 1e6, "gb": 1e9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
_REASONS = (
    (("No space left on device", "os error 28", "os error 112"), "the disk is full; free some space and try again"),
    (("Permission denied", "os error 13", "os error 5)", "WinError 5"), "a file may not be written; close programs "
     "that use the environment, see who owns its folder, and try again"),
    (("Read-only file system", "os error 30"), "the disk may only be read; choose another folder"),
    (("THESE PACKAGES DO NOT MATCH THE HASHES", "Hash mismatch", "hash mismatch"), "a package is not the one that is "
     "wanted (its sha256 differs); if the package index is a mirror, tell its owner"),
    (("CERTIFICATE_VERIFY_FAILED", "invalid peer certificate", "UnknownIssuer"), "the certificate of the package index "
     "is not known; set pip or uv up with your network's certificates"),
    (("Name or service not known", "Temporary failure in name resolution", "dns error", "failed to lookup address",
      "Failed to establish a new connection", "Network is unreachable", "Connection refused", "tcp connect error",
      "getaddrinfo failed", "error sending request", "client error (Connect)"),
     "the package index cannot be reached; check the network, or the proxy that pip or uv is set up for"),
    (("Read timed out", "operation timed out", "connection timed out"), "the package index answers too slowly; "
     "try again, it goes on where it stopped"),
    (("File name too long", "os error 206", "os error 63"), "the folder's path is too long; choose a shorter one"),
)  # fmt: skip


class UvMeter:
    """Reads `uv pip sync`: names and sizes of what it downloads, then what it installs."""

    def __init__(self, packages: int) -> None:
        """Expect so many packages."""
        self._packages = packages
        self._sizes: dict[str, float] = {}
        self._done: set[str] = set()
        self._installed = 0
        self._phase = "asking the package index"

    def take(self, line: str) -> None:
        """Read one line."""
        if found := re.match(r"\s*Downloading (\S+) \(([\d.]+)\s*([A-Za-z]+)\)", line):
            self._sizes[found[1]] = float(found[2]) * _UNITS.get(found[3].lower(), 1)
            self._phase = ""
        elif found := re.match(r"\s*Downloaded (\S+)", line):
            self._done.add(found[1])
        elif re.match(r"\s*Prepared \d+ package", line):
            self._phase = "unpacking"
        elif re.match(r"\s*Installed \d+ package", line):
            self._phase, self._installed = "installed", self._packages
        elif found := re.match(r"\s*Resolved (\d+) package", line):
            self._packages = int(found[1])
            self._phase = "downloading"

    @property
    def fraction(self) -> float:
        """0..1."""
        if self._installed:
            return 1.0
        total = sum(self._sizes.values())
        ready = sum(size for name, size in self._sizes.items() if name in self._done)
        unpacking = 0.85 if self._phase == "unpacking" else 0.0
        return max(0.8 * ready / total if total else 0.0, unpacking)

    @property
    def text(self) -> str:
        """For people."""
        if self._phase or not self._sizes:
            return self._phase
        waiting = {name: size for name, size in self._sizes.items() if name not in self._done}
        total = sum(self._sizes.values()) / 1e6
        ready = total - sum(waiting.values()) / 1e6
        largest = f": {max(waiting, key=waiting.__getitem__)}" if waiting else ""
        return f"downloading {len(self._done)} of {len(self._sizes)}, {ready:.0f} of {total:.0f} MB{largest}"


class PipMeter:
    """Reads `pip install`: it collects one package after the other, then installs all of them without a word."""

    def __init__(self, packages: int, folder: Path) -> None:
        """Expect so many packages in the environment `folder`."""
        self._packages, self._folder = max(packages, 1), folder
        self._collected = 0
        self._name = ""
        self._installing = False
        self._finished = False

    def take(self, line: str) -> None:
        """Read one line."""
        if found := re.match(r"\s*Collecting (\S+)", line):
            self._collected, self._name = self._collected + 1, found[1].split("==")[0]
        elif found := re.match(r"\s*(?:Downloading|Using cached) (\S+)(?:.* \((.*)\))?", line):
            self._name = Path(found[1]).name.split("-")[0] + (f" ({found[2]})" if found[2] else "")
        elif line.startswith("Installing collected packages"):
            self._installing = True
        elif line.startswith("Successfully installed"):
            self._finished = True

    @property
    def fraction(self) -> float:
        """0..1."""
        if self._finished:
            return 1.0
        if self._installing:
            return 0.7 + 0.3 * min(self._arrived() / self._packages, 1.0)
        return 0.7 * min(self._collected / self._packages, 1.0)

    @property
    def text(self) -> str:
        """For people."""
        if self._installing:
            return f"unpacking {min(self._arrived() + 1, self._packages)} of {self._packages}"
        if not self._collected:
            return "asking the package index"
        return f"downloading {self._collected} of {self._packages}: {self._name}"

    def _arrived(self) -> int:
        places = [*self._folder.glob("lib/python*/site-packages"), self._folder / "Lib" / "site-packages"]
        return sum(1 for place in places for _ in place.glob("*.dist-info"))


def lacks_torch(output: str) -> bool:
    """Whether the package index has no torch of the wanted build."""
    uv = re.search(r"no version of torch|torch\S* has no wheels", output)
    return bool(
        uv or re.search(r"No matching distribution found for torch==|Could not find a version.*torch==", output)
    )


def explain(tool: str, output: str) -> str:
    """Why uv or pip failed, one line with the next step."""
    for signs, meaning in _REASONS:
        if any(sign in output for sign in signs):
            return meaning
    if re.search(r"No matching distribution found for|there is no version of|was not found in the package reg", output):
        found = re.search(r"(?:No matching distribution found for |there is no version of |Because )([\w.-]+)", output)
        return f"the package index lacks {found[1] if found else 'a package'}; see where pip or uv takes packages from"
    lines = [line.strip() for line in output.splitlines() if re.match(r"\s*(error|ERROR|Caused by|×)", line)]
    return f"{tool} failed ({lines[-1][:160] if lines else 'no reason given'}); see the log and try again"
