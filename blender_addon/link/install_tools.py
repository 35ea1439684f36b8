"""What an environment is made with: uv, found or downloaded, else a Python of this machine. Standard library only."""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import re
import shutil
import ssl
import subprocess
import sys
import tarfile
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

PYTHONS = ("3.11", "3.12")
"""What the backend runs on, the best tried first."""

LEAST_UV = (0, 8)
"""Older ones lack options that are used here."""

_MOST_MEMBERS = 100
_LARGEST_UV_BYTES = 200_000_000
_QUESTION = "import sys, struct, venv, ensurepip; print(*sys.version_info[:2], struct.calcsize('P') * 8)"


class InstallError(Exception):
    """The backend cannot be installed; the message is one line with the next step."""

    def __init__(self, message: str) -> None:
        """Keep the message on one line, whatever it quotes."""
        super().__init__(" ".join(message.split()))


class InstallCancelled(Exception):
    """The user cancelled."""


@dataclass(frozen=True)
class UvRelease:
    """A release of uv: everything that is downloaded before there is a tool that checks digests itself.

    Attributes:
        version: Of uv.
        address: Folder of the archives.
        archives: File name and sha256 by `sys.platform` and machine.
    """

    version: str = "0.13.0"
    address: str = "https://github.com/astral-sh/uv/releases/download/0.13.0"
    archives: Mapping[tuple[str, str], tuple[str, str]] = field(
        default_factory=lambda: {
            ("linux", "x86_64"): (
                "uv-x86_64-unknown-linux-gnu.tar.gz",
                "1468ebd5a5541121837c5a2817b9972ba6090fa6caa3d142620850a47fb75154",
            ),
            ("win32", "amd64"): (
                "uv-x86_64-pc-windows-msvc.zip",
                "088962f9e7b7bd9ea740c04c650b2a21c8928c345bd99ac24350dc924dba656c",
            ),
            ("darwin", "arm64"): (
                "uv-aarch64-apple-darwin.tar.gz",
                "a9c1b29002cf3c83f07fa9cd8a887a3be0107d90e23189721221e7257db8e3d6",
            ),
        }
    )

    def archive(self) -> tuple[str, str]:
        """File name and sha256 for this machine; empty where there is none."""
        return self.archives.get((sys.platform, platform.machine().lower()), ("", ""))


def find_uv(tools: Path, environment: Mapping[str, str]) -> Path | None:
    """A uv of this machine, or one that was downloaded before; None if there is none that is new enough.

    Args:
        tools: Folder of downloaded ones.
        environment: Variables of the processes that are started.
    """
    name = "uv.exe" if os.name == "nt" else "uv"
    home = Path(environment.get("HOME") or Path.home())
    found = shutil.which("uv", path=environment.get("PATH"))
    usual = [home / ".local" / "bin" / name, home / ".cargo" / "bin" / name, tools / name]
    for path in ([Path(found)] if found else []) + usual:
        if path.is_file() and uv_version(path, environment) >= LEAST_UV:
            return path
    return None


def uv_version(uv: Path, environment: Mapping[str, str]) -> tuple[int, ...]:
    """Version of a uv; empty if it does not start."""
    answer = _ask([str(uv), "--version"], environment)
    found = re.match(r"uv (\d+)\.(\d+)", answer)
    return (int(found[1]), int(found[2])) if found else ()


def download_uv(
    release: UvRelease, tools: Path, progress: Callable[[int, int], None], is_cancelled: Callable[[], bool]
) -> Path:
    """Download and unpack uv. An interrupted download goes on where it stopped.

    Args:
        release: Which.
        tools: Folder for it; made if it is missing.
        progress: Told the bytes that are there and, 0 if unknown, all of them.
        is_cancelled: Asked between two blocks.

    Returns:
        The program.

    Raises:
        InstallError: If it cannot be reached, or is not what it should be: nothing of it is used then.
        InstallCancelled: If it was cancelled.
    """
    name, digest = release.archive()
    if not name:
        raise InstallError(f"there is no uv for {platform.machine()} on {sys.platform}; install uv or Python 3.12")
    tools.mkdir(parents=True, exist_ok=True)
    part = tools / (name + ".part")
    try:
        _download(f"{release.address}/{name}", part, progress, is_cancelled)
    except (OSError, ValueError) as error:  # URLError and TimeoutError are OSErrors
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
        raise InstallError(f"uv cannot be downloaded ({reason}); check the network and try again") from error
    actual = hashlib.sha256(part.read_bytes()).hexdigest()
    if actual != digest:
        part.unlink()
        raise InstallError(f"the downloaded {name} is not the one of uv {release.version} (sha256 differs); try again")
    program = _unpack(part, name, tools)
    part.unlink()
    return program


def _download(address: str, part: Path, progress: Callable[[int, int], None], is_cancelled: Callable[[], bool]) -> None:
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(address, headers={"User-Agent": "effigy"})
    if have:
        request.add_header("Range", f"bytes={have}-")
    opener = urllib.request.build_opener(_NoDowngrade(), urllib.request.HTTPSHandler(context=_certificates()))
    try:
        answer = opener.open(request, timeout=30)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # it is whole already, or longer than it should be: the digest will tell
            return
        raise
    with answer, part.open("ab" if answer.status == 206 else "wb") as file:
        have = file.tell()
        length = answer.headers.get("Content-Length", "")
        total = have + int(length) if length.isdigit() else 0
        while block := answer.read(1 << 16):
            if is_cancelled():
                raise InstallCancelled
            file.write(block)
            have += len(block)
            if have > _LARGEST_UV_BYTES:
                raise ValueError("it is larger than any uv")
            progress(have, total)
    if total and have != total:
        raise ValueError("the connection broke off")


class _NoDowngrade(urllib.request.HTTPRedirectHandler):
    """Follows redirections, but never from an encrypted address to a plain one."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        if req.full_url.startswith("https:") and not newurl.startswith("https:"):
            raise urllib.error.URLError("it was redirected to an address without encryption")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _certificates() -> ssl.SSLContext:
    """The system's certificates; those that come with Blender's Python where it knows none of the system's."""
    context = ssl.create_default_context()
    if not context.cert_store_stats()["x509_ca"] and not ssl.get_default_verify_paths().capath:
        with contextlib.suppress(ImportError):
            import certifi  # pyright: ignore[reportMissingImports]  part of Blender's Python

            context.load_verify_locations(certifi.where())
    return context


def _unpack(archive: Path, name: str, tools: Path) -> Path:
    """Take the one program out of an archive that was checked already, and trust its names no more for that.

    Raises:
        InstallError: If the archive holds anything that does not belong there.
    """
    program = "uv.exe" if name.endswith(".zip") else "uv"
    unfinished = tools / (program + ".part")
    try:
        with _members(archive, name) as members:
            wanted = [read for path, read in members if path.rsplit("/", 1)[-1] == program]
            if len(wanted) != 1:
                raise InstallError(f"{name} has no {program}; install uv or Python 3.12 yourself")
            with wanted[0]() as source, unfinished.open("wb") as target:
                shutil.copyfileobj(source, target)
    except (tarfile.TarError, zipfile.BadZipFile, OSError) as error:
        raise InstallError(f"{name} cannot be unpacked ({error}); try again") from error
    unfinished.chmod(0o755)
    unfinished.replace(tools / program)
    return tools / program


@contextlib.contextmanager
def _members(archive: Path, name: str) -> Iterator[list[tuple[str, Callable[[], IO[bytes]]]]]:
    """Files of an archive and how each is opened; refuses it whole if one name or kind is not harmless."""
    found: list[tuple[str, Callable[[], IO[bytes]]]] = []
    if name.endswith(".zip"):
        with zipfile.ZipFile(archive) as zipped:
            entries = zipped.infolist()
            _check_members([entry.filename for entry in entries], sum(entry.file_size for entry in entries))
            for entry in entries:
                kind = entry.external_attr >> 28  # the upper half is Unix' mode
                if kind not in (0, 0o4, 0o10):
                    raise InstallError(f"the archive of uv has a link in it ({entry.filename!r}); it is not used")
                if not entry.is_dir():
                    found.append((entry.filename, lambda entry=entry: zipped.open(entry)))
            yield found
        return
    with tarfile.open(archive, "r:gz") as tarred:
        paths: list[str] = []
        size = 0
        for member in tarred:  # one after the other: a bomb is noticed before it has been listed
            paths.append(member.name)
            size += member.size
            _check_members(paths[-1:], size, len(paths))
            if not (member.isreg() or member.isdir()):
                raise InstallError(f"the archive of uv has a link in it ({member.name!r}); it is not used")
            if member.isreg():
                found.append((member.name, lambda member=member: _opened(tarred.extractfile(member))))
        yield found


def _opened(file: IO[bytes] | None) -> IO[bytes]:
    assert file is not None, "a regular member can be opened"
    return file


def _check_members(paths: Sequence[str], size: int, count: int = 0) -> None:
    for path in paths:
        parts = path.replace("\\", "/").split("/")
        if path.startswith(("/", "\\")) or ".." in parts or ":" in path or "\0" in path:
            raise InstallError(f"the archive of uv has a file outside itself ({path!r}); it is not used")
    if max(count, len(paths)) > _MOST_MEMBERS or size > _LARGEST_UV_BYTES:
        raise InstallError("the archive of uv holds more than uv; it is not used")


def find_pythons(environment: Mapping[str, str], forbidden: Sequence[Path] = ()) -> dict[str, Path]:
    """Pythons of this machine that can make an environment, by version.

    Args:
        environment: Variables of the processes that are started; its PATH is searched.
        forbidden: Folders whose Pythons are left alone: Blender's own.
    """
    found: dict[str, Path] = {}
    for candidate in dict.fromkeys(_candidates(environment)):
        if len(found) == len(PYTHONS):
            break
        if any(_is_below(candidate, folder) for folder in forbidden):
            continue
        words = _ask([str(candidate), "-I", "-c", _QUESTION], environment).split()
        if len(words) == 3 and words[2] == "64" and ".".join(words[:2]) in PYTHONS:
            found.setdefault(".".join(words[:2]), candidate)
    return found


def _candidates(environment: Mapping[str, str]) -> Iterator[Path]:
    search = environment.get("PATH", "")
    home = Path(environment.get("HOME") or Path.home())
    for version in PYTHONS:
        for name in (f"python{version}",) if os.name != "nt" else ():
            if found := shutil.which(name, path=search):
                yield Path(found)
    if os.name == "nt":
        for version in PYTHONS:
            place = _ask(["py", f"-{version}", "-I", "-c", "import sys; print(sys.executable)"], environment).strip()
            if place:
                yield Path(place)
        local = Path(environment.get("LOCALAPPDATA") or home / "AppData" / "Local")
        for version in PYTHONS:
            folder = f"Python{version.replace('.', '')}"
            for base in (local / "Programs" / "Python", Path(environment.get("PROGRAMFILES", r"C:\Program Files"))):
                yield from [base / folder / "python.exe"] if (base / folder / "python.exe").is_file() else []
    for name in ("python3", "python"):
        if found := shutil.which(name, path=search):
            yield Path(found)
    for version in PYTHONS:
        for base in ("/usr/local/bin", "/usr/bin", "/opt/homebrew/bin"):
            yield from [Path(base) / f"python{version}"] if (Path(base) / f"python{version}").is_file() else []
        framework = Path("/Library/Frameworks/Python.framework/Versions") / version / "bin" / f"python{version}"
        yield from [framework] if framework.is_file() else []
        yield from sorted((home / ".pyenv" / "versions").glob(f"{version}.*/bin/python{version}"), reverse=True)


def _is_below(path: Path, folder: Path) -> bool:
    try:
        return path.resolve().is_relative_to(folder.resolve())
    except OSError:
        return False


def _ask(command: Sequence[str], environment: Mapping[str, str]) -> str:
    """Output of a short command; empty if it fails. Only ever called in the installer's own thread."""
    hidden: dict[str, Any] = {"creationflags": 0x08000000} if sys.platform == "win32" else {}
    try:
        done = subprocess.run(
            list(command), capture_output=True, text=True, encoding="utf-8", errors="replace", timeout=20, check=False,
            stdin=subprocess.DEVNULL, env=dict(environment), **hidden,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""
