"""What the hub says about one model: its commit, and of every file that we want size and hash."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import quote

from backend.diffusion.gate import READ
from backend.diffusion.lock import is_commit, is_sha256, safe_path
from backend.diffusion.model_row import ModelRow
from backend.diffusion.registry import HUB
from backend.diffusion.transport import GatedError, MissingError, Transport, origin
from backend.errors import FAILED, MODEL_MISSING, UserError

MIRROR = "EFFIGY_HUB"
"""Environment variable with a mirror's address; HF_ENDPOINT, the libraries' own, is taken too."""


@dataclass(frozen=True)
class RemoteFile:
    """One file of a repository at one commit.

    Attributes:
        path: In the repository and in our folder.
        bytes: Its size.
        sha256: 64 hex digits, or None for a small file, of which the hub knows
        git_sha1: the name that git gives it (40 hex digits), or None.
    """

    path: str
    bytes: int
    sha256: str | None
    git_sha1: str | None


@dataclass(frozen=True)
class Listing:
    """The files of one model.

    Attributes:
        repository: "owner/name".
        commit: 40 hex digits.
        files: Those that we want, by path.
    """

    repository: str
    commit: str
    files: tuple[RemoteFile, ...]

    @property
    def total_bytes(self) -> int:
        """All files together."""
        return sum(file.bytes for file in self.files)

    def address(self, file: RemoteFile) -> str:
        """Path of a file below the hub's address."""
        return f"{quote(self.repository)}/resolve/{self.commit}/{quote(file.path)}"


def base_address(given: str | None = None, environment: Mapping[str, str] = os.environ) -> str:
    """The hub: what the user gave, else the variables EFFIGY_HUB and HF_ENDPOINT, else the public one."""
    return given or environment.get(MIRROR) or environment.get("HF_ENDPOINT") or HUB


def list_files(row: ModelRow, transport: Transport, revision: str | None) -> Listing:
    """Ask the hub for the files of a model.

    Args:
        row: Of the registry; what it knows of a file must agree with the hub.
        transport: The way to the hub.
        revision: The commit; None asks for the newest (and its answer is then locked).

    Raises:
        UserError: If the hub has it not, wants an account, or says something else than the registry.
        InterruptedTransferError: If the connection fails.
    """
    host = origin(transport.base).host
    try:
        answer = transport.json(f"api/models/{quote(row.repository)}/revision/{revision or 'main'}?blobs=true")
    except GatedError:
        raise gated(row, transport) from None
    except MissingError:
        what = f"commit {revision[:12]} of {row.repository}" if revision else row.repository
        raise UserError(
            f"{host} does not have {what} (or it is private); get {row.id} elsewhere and import it", MODEL_MISSING
        ) from None
    try:
        commit, siblings = answer["sha"], answer["siblings"]
        found = {entry["rfilename"]: _remote_file(entry) for entry in siblings if safe_path(entry["rfilename"])}
        if not is_commit(commit):
            raise ValueError("no commit")
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise UserError(f"{host} gives no proper listing of {row.repository} ({error}); try another", FAILED) from error
    if revision and commit != revision:
        raise UserError(f"{host} answers with commit {commit[:12]} instead of {revision[:12]}; try another", FAILED)
    return Listing(row.repository, commit, _wanted(row, found, host))


def gated(row: ModelRow, transport: Transport) -> UserError:
    """What to do when the hub wants an account."""
    host = origin(transport.base).host
    if transport.token(host):
        step = f"accept its licence with your account at {transport.base}/{row.repository}, then try again"
    else:
        step = (
            f"accept its licence at {transport.base}/{row.repository}, make a token for reading, and store it with "
            "python -m backend models token"
        )
    return UserError(f"{host} gives {row.title} only to those who accepted its licence; {step}", MODEL_MISSING)


def _remote_file(entry: Any) -> RemoteFile:
    lfs = entry.get("lfs") or {}
    size, sha256, blob = lfs.get("size", entry.get("size")), lfs.get("sha256"), entry.get("blobId")
    if type(size) is not int or not 0 <= size < 2**50:
        raise ValueError(f"no size of {entry['rfilename'][:80]}")
    if sha256 is not None and not is_sha256(sha256):
        raise ValueError(f"no hash of {entry['rfilename'][:80]}")
    return RemoteFile(entry["rfilename"], size, sha256, blob if is_commit(blob) and sha256 is None else None)


def _wanted(row: ModelRow, found: Mapping[str, RemoteFile], host: str) -> tuple[RemoteFile, ...]:
    """Those of the files that the row names, each once; what the registry knows must be what the hub says."""
    wanted: dict[str, RemoteFile] = {}
    for file in row.files:
        matches = [path for path in found if _matches(path, file.path)]
        if not matches:
            raise UserError(f"{host} has no {file.path} in {row.repository}; the registry must be corrected", FAILED)
        for path in matches:
            remote = found[path]
            if (file.bytes or remote.bytes) != remote.bytes or (file.sha256 or remote.sha256) != remote.sha256:
                raise UserError(
                    f"{host} has another {path} of {row.id} than the registry; nothing was downloaded", FAILED
                )
            wanted[path] = remote
    return tuple(wanted[path] for path in sorted(wanted))


def _matches(path: str, pattern: str) -> bool:
    if "*" not in pattern:
        return path == pattern
    place, wanted = PurePosixPath(path), PurePosixPath(pattern)
    readable = place.suffix.lower() in READ
    return readable and place.parent == wanted.parent and fnmatchcase(place.name, wanted.name)
