"""The lock of one installed model: what its first download or import found, and what every later use is held to."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from backend.errors import MODEL_MISSING, UserError
from backend.files import read_json, shown, write_json

Origin = Literal["hub", "import", "convert"]

_VERSION = 1
_BLOCK = 1 << 20


@dataclass(frozen=True)
class LockedFile:
    """One file.

    Attributes:
        bytes: Its size.
        sha256: 64 hex digits.
        modified_ns: When its content was last found right: a file with this size and time is not read again.
    """

    bytes: int
    sha256: str
    modified_ns: int


@dataclass(frozen=True)
class Lock:
    """One model.

    Attributes:
        model: Its id in the registry.
        origin: Where the files came from.
        repository: On the hub; empty for what the user brought.
        revision: 40 hex digits of the commit; empty where nobody can know it.
        when: Date and time of the installation, ISO 8601.
        storage: "published", or what the weights were converted to.
        files: By path in the folder, with "/".
    """

    model: str
    origin: Origin
    repository: str
    revision: str
    when: str
    storage: str
    files: Mapping[str, LockedFile]

    @property
    def total_bytes(self) -> int:
        """All files together."""
        return sum(file.bytes for file in self.files.values())


def now() -> str:
    """The time for a lock: UTC, seconds."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def lock_path(folder: Path) -> Path:
    """Where the lock of a model's folder lies: beside it, so that replacing the folder does not replace the lock."""
    return folder.with_name(f"{folder.name}.lock.json")


def read_lock(folder: Path) -> Lock | None:
    """The lock of a model's folder; None if there is none.

    Raises:
        UserError: BAD_MODEL, if it is damaged.
    """
    path = lock_path(folder)
    if not path.is_file():
        return None
    content = read_json(path)
    try:
        if content["version"] != _VERSION:
            raise ValueError("another version")
        files = {str(name): _locked_file(entry) for name, entry in content["files"].items()}
        texts = {key: str(content[key]) for key in ("model", "origin", "repository", "revision", "when", "storage")}
        if texts["origin"] not in ("hub", "import", "convert") or not all(map(_inside, files)):
            raise ValueError("a value that was never written here")
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise UserError(
            f"{shown(path)} is damaged; remove it and fetch the model again", MODEL_MISSING, "BAD_MODEL"
        ) from error
    return Lock(files=files, **texts)  # type: ignore[arg-type]


def write_lock(folder: Path, lock: Lock) -> None:
    """Write the lock of a model's folder as a whole."""
    content: dict[str, Any] = {"version": _VERSION, **asdict(replace(lock, files={}))}
    content["files"] = {name: asdict(file) for name, file in sorted(lock.files.items())}
    write_json(lock_path(folder), content)


def locked(path: Path, sha256: str) -> LockedFile:
    """The entry of a file that was just found to have this hash."""
    state = path.stat()
    return LockedFile(state.st_size, sha256, state.st_mtime_ns)


def check(folder: Path, lock: Lock, *, thorough: bool = False, seen: Callable[[int], None] | None = None) -> list[str]:
    """Hold a folder against its lock.

    Args:
        folder: Of the model.
        lock: Of the model.
        thorough: Read every file; else only those whose size or time changed since they were last read.
        seen: Called with the number of bytes that were read; may raise to stop.

    Returns:
        One line per file that is missing, changed or not in the lock; empty if all is right.
    """
    wrong, fresh = [], dict(lock.files)
    for name, entry in lock.files.items():
        path = folder / name
        if not path.is_file():
            wrong.append(f"{name} is missing")
        elif path.stat().st_size != entry.bytes:
            wrong.append(f"{name} has {path.stat().st_size} bytes instead of {entry.bytes}")
        elif thorough or path.stat().st_mtime_ns != entry.modified_ns:
            if hash_file(path, seen) != entry.sha256:
                wrong.append(f"{name} has changed (another sha256)")
            else:
                fresh[name] = locked(path, entry.sha256)
        elif seen is not None:
            seen(entry.bytes)
    wrong += [f"{name} is not part of the model" for name in strangers(folder, lock)]
    if not wrong and fresh != lock.files:
        with contextlib.suppress(OSError):  # a folder for reading only: the file is read again next time
            write_lock(folder, replace(lock, files=fresh))
    return wrong


def strangers(folder: Path, lock: Lock) -> list[str]:
    """Files that a loader could open although nobody locked them."""
    found = (path for path in folder.rglob("*") if path.is_file() or path.is_symlink())
    names = (path.relative_to(folder).as_posix() for path in found if path.suffix != ".part")
    return sorted(name for name in names if name not in lock.files and not _harmless(name))


def _harmless(name: str) -> bool:
    return name.rsplit("/", 1)[-1].lower() in (".ds_store", "thumbs.db", "desktop.ini")


def hash_file(path: Path, seen: Callable[[int], None] | None = None) -> str:
    """Sha256 of a file, 64 hex digits; `seen` gets the bytes of each block and may raise to stop."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
            if seen is not None:
                seen(len(block))
    return digest.hexdigest()


def _locked_file(entry: Any) -> LockedFile:
    size, sha256, modified = entry["bytes"], entry["sha256"], entry["modified_ns"]
    if type(size) is not int or type(modified) is not int or not is_sha256(sha256):
        raise ValueError("a file's entry is wrong")
    return LockedFile(size, sha256, modified)


def is_sha256(text: Any) -> bool:
    """Whether a value is 64 lower-case hex digits."""
    return isinstance(text, str) and len(text) == 64 and set(text) <= set("0123456789abcdef")


def is_commit(text: Any) -> bool:
    """Whether a value is 40 lower-case hex digits."""
    return isinstance(text, str) and len(text) == 40 and set(text) <= set("0123456789abcdef")


def _inside(name: str) -> bool:
    return safe_path(name)


def safe_path(name: str) -> bool:
    """Whether a file's name from outside stays inside the folder that it is joined to, on every system."""
    parts = name.split("/")
    plain = all(part and part not in (".", "..") and not part.endswith((".", " ")) for part in parts)
    return plain and len(name) < 400 and not set(name) & set('\\:*?"<>|') and name.isprintable()
