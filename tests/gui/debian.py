"""A Debian root folder with a real Blender, its interface and a virtual screen; made once, outside the repository.

`python -m tests.gui.debian` makes it and prints where it is. Standard library only.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

SUITES = ("sid", "trixie")
"""The newest Blender first; the stable one where that cannot be installed on the day."""

PACKAGES = (
    "blender,xvfb,libgl1-mesa-dri,libegl1,libegl-mesa0,xdotool,x11-apps,imagemagick,python3-numpy,python3-zstandard,"
    "python3-cattr,python3-requests,python3-certifi,xauth,fonts-dejavu-core"
)

TOOLS = ("mmdebstrap", "debian-archive-keyring")
"""What makes a root; installed on a Debian that lacks it."""

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
    """The cached root, or a new one: one to three minutes and 1.7 GB.

    EFFIGY_BLENDER_ROOTS names another folder for the roots than the user's cache.

    Raises:
        NoRootError: If none can be made.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "effigy"
    cache = Path(os.environ.get("EFFIGY_BLENDER_ROOTS") or cache)
    if problem := _unusable_machine():
        raise NoRootError(problem)
    reasons: list[str] = []
    for suite in SUITES:
        folder = cache / suite
        if (folder / "usr" / "bin" / "blender").exists():
            return DebianRoot(folder, suite)
        with _lock(cache):
            problem = "" if (folder / "usr" / "bin" / "blender").exists() else _make(folder, suite)
        if not problem:
            return DebianRoot(folder, suite)
        print(f"!!! Debian {suite} with Blender cannot be installed today: {problem}", flush=True)
        reasons.append(f"{suite}: {problem}")
    raise NoRootError("no Debian with Blender can be installed: " + "; ".join(reasons))


@contextlib.contextmanager
def _lock(cache: Path) -> Iterator[None]:
    """One maker at a time; the system drops the lock when its holder ends."""
    import fcntl

    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "roots.lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _unusable_machine() -> str:
    """Why a root could not be entered here, one line; empty if it can."""
    if os.name != "posix" or os.geteuid() != 0:
        return "a real Blender with its interface needs the superuser, for a root folder of its own (sudo)"
    if shutil.which("unshare") is None:
        return "a real Blender with its interface needs `unshare` (util-linux)"
    probe = ["unshare", "--mount", "--pid", "--fork", "--propagation", "private", "true"]
    if subprocess.run(probe, capture_output=True, check=False).returncode != 0:
        return "this machine does not allow mount namespaces (`unshare --mount`): a container without that right?"
    if Path(sys.base_prefix) in (Path("/"), Path("/usr")):
        # The backend's Python is seen inside at its own place, where the root has its own system.
        return f"Python is the system's own ({sys.base_prefix}): use one with a folder of its own (pyenv, uv)"
    return ""


def _install_tools() -> str:
    """Install mmdebstrap by apt; returns what went wrong, one line, or nothing."""
    if shutil.which("apt-get") is None:
        return "mmdebstrap is not there, and no apt-get that could install it"
    print(f"installing {' and '.join(TOOLS)} ...", flush=True)
    settings = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    done = None
    for command in (["install", "-y", *TOOLS], ["update"], ["install", "-y", *TOOLS]):
        done = subprocess.run(["apt-get", *command], capture_output=True, text=True, env=settings, check=False)
        if shutil.which("mmdebstrap") is not None:
            return ""
    lines = [line for line in done.stderr.splitlines() if line.strip()] if done else []
    return f"mmdebstrap cannot be installed ({lines[-1] if lines else 'apt-get failed'})"


def _make(folder: Path, suite: str) -> str:
    """Install into a folder beside it and rename; returns what went wrong, one line, or nothing."""
    if shutil.which("mmdebstrap") is None and (problem := _install_tools()):
        return problem
    unfinished = folder.with_name(f".{suite}.partial")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.parent.mkdir(parents=True, exist_ok=True)
    command = ["mmdebstrap", "--variant=minbase", f"--include={PACKAGES}", "--components=main"]
    # Signed lists of a suite that moves may have expired by days; the signature itself is still checked.
    command += ['--aptopt=Acquire::Check-Valid-Until "false"', "--skip=check/empty", suite, str(unfinished)]
    print(f"making a Debian {suite} with Blender in {folder}, one to three minutes ...", flush=True)
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode != 0:
        shutil.rmtree(unfinished, ignore_errors=True)
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        return lines[-1] if lines else f"mmdebstrap ended with {done.returncode}"
    unfinished.replace(folder)
    return ""


def main() -> int:
    """Make the root.

    Returns:
        0 if it is there, else 1 after one line that says what is missing.
    """
    try:
        root = find_or_make_root()
    except NoRootError as error:
        print(f"no real Blender: {error}", file=sys.stderr)
        return 1
    newest = "" if root.suite == SUITES[0] else f"  !!! not the newest: Debian {SUITES[0]} could not be installed"
    print(f"{root.folder}: Debian {root.suite}, {_version(root)}{newest}")
    return 0


def _version(root: DebianRoot) -> str:
    done = root.run("blender --version | head -1", {}, {}, 60)
    return (done.stdout.strip().splitlines() or ["no answer"])[-1]


if __name__ == "__main__":
    sys.exit(main())
