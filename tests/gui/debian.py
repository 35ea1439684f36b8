"""A Debian root folder with a real Blender, its interface and a virtual screen; made once, outside the repository."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

SUITES = ("sid", "trixie")
"""The newest Blender first; the stable one where that cannot be installed on the day."""

PACKAGES = (
    "blender,xvfb,libgl1-mesa-dri,libegl1,libegl-mesa0,xdotool,x11-apps,imagemagick,python3-numpy,python3-zstandard,"
    "python3-cattr,python3-requests,python3-certifi,xauth,fonts-dejavu-core"
)

_DEVICES = (("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0))


class NoRootError(RuntimeError):
    """The root cannot be made here; one line with the reason."""


@dataclass(frozen=True)
class DebianRoot:
    """The folder and what of this machine is seen inside it.

    Attributes:
        folder: The root.
        suite: Which Debian it is.
    """

    folder: Path
    suite: str

    def run(
        self, script: str, mounts: Mapping[Path, str], variables: Mapping[str, str], timeout_s: float
    ) -> subprocess.CompletedProcess[str]:
        """Run a shell script inside, in a mount namespace of its own: nothing stays mounted afterwards.

        Args:
            script: For bash.
            mounts: Folder of this machine -> absolute path inside.
            variables: Environment variables of the script.
            timeout_s: All its processes are killed after this time.

        Returns:
            What it printed, standard error included, and its exit code.
        """
        lines = ["set -e", f"cd {shlex.quote(str(self.folder))}", "mount -t proc proc proc"]
        lines += ["mount -t tmpfs -o size=64m tmpfs dev", "mkdir dev/shm", "mount -t tmpfs -o size=512m tmpfs dev/shm"]
        lines += [f"mknod -m 666 dev/{name} c {major} {minor}" for name, major, minor in _DEVICES]
        lines += ["ln -s /proc/self/fd dev/fd", "mount -t tmpfs tmpfs tmp"]
        for outside, inside in mounts.items():
            place = shlex.quote("." + inside)
            lines += [f"mkdir -p {place}", f"mount --bind {shlex.quote(str(outside))} {place}"]
        settings = " ".join(f"{name}={shlex.quote(value)}" for name, value in variables.items())
        clean = f"env -i HOME=/root PATH=/usr/bin:/bin:/usr/sbin:/sbin LANG=C.UTF-8 {settings}"
        lines += [f"exec chroot . {clean} bash -c {shlex.quote(script)}"]
        # A process namespace of its own: what the script leaves running ends with it.
        command = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--propagation", "private", "bash", "-c"]
        return subprocess.run(
            [*command, "\n".join(lines)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            errors="replace", timeout=timeout_s, check=False,
        )  # fmt: skip


def find_or_make_root() -> DebianRoot:
    """The cached root, or a new one: about three minutes and 1.7 GB.

    EFFIGY_BLENDER_ROOTS names another folder for the roots than the user's cache.

    Raises:
        NoRootError: If none can be made.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "effigy"
    cache = Path(os.environ.get("EFFIGY_BLENDER_ROOTS") or cache)
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        raise NoRootError("a real Blender needs the superuser and `unshare` (util-linux), for a root folder of its own")
    reasons: list[str] = []
    for suite in SUITES:
        folder = cache / suite
        if (folder / "usr" / "bin" / "blender").exists():
            return DebianRoot(folder, suite)
        problem = _make(folder, suite)
        if not problem:
            return DebianRoot(folder, suite)
        print(f"!!! Debian {suite} with Blender cannot be installed today: {problem}", flush=True)
        reasons.append(f"{suite}: {problem}")
    raise NoRootError("; ".join(reasons))


def _make(folder: Path, suite: str) -> str:
    """Install into a folder beside it and rename; returns what went wrong, one line, or nothing."""
    if shutil.which("mmdebstrap") is None:
        return "mmdebstrap is not there (apt-get install mmdebstrap debian-archive-keyring)"
    unfinished = folder.with_name(f".{suite}.partial")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.parent.mkdir(parents=True, exist_ok=True)
    command = ["mmdebstrap", "--variant=minbase", f"--include={PACKAGES}", "--components=main"]
    # Signed lists of a suite that moves may have expired by days; the signature itself is still checked.
    command += ['--aptopt=Acquire::Check-Valid-Until "false"', "--skip=check/empty", suite, str(unfinished)]
    print(f"making a Debian {suite} with Blender, about three minutes ...", flush=True)
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode != 0:
        shutil.rmtree(unfinished, ignore_errors=True)
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        return lines[-1] if lines else f"mmdebstrap ended with {done.returncode}"
    unfinished.replace(folder)
    return ""
