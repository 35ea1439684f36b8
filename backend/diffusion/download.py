"""Fetch one model: every file into a `.part` beside its place, resumed where it stopped, and taken only with its hash.

A fetch can be killed at any point, and the next one goes on from there: what is whole is recognised by its hash, what
is not is asked for from its last byte on. Nothing counts as installed before all files passed and the lock is written.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

from backend.context import Context
from backend.diffusion import gate, licences
from backend.diffusion.hub import Listing, RemoteFile, gated, list_files
from backend.diffusion.lock import Lock, LockedFile, locked, now, read_lock, strangers, write_lock
from backend.diffusion.model_row import ModelRow
from backend.diffusion.transport import (
    GatedError,
    InterruptedTransferError,
    MissingError,
    Transport,
    origin,
    read_block,
    refuse_web_page,
)
from backend.diffusion.weights import Weights, missing
from backend.errors import FAILED, MODEL_MISSING, NO_SPACE, UserError
from backend.files import PART, shown, sync_folder

BLOCK: Final = 1 << 18
SPARE_BYTES: Final = 500_000_000
"""Left free on the disk beside the model."""

_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)$")


@dataclass(frozen=True)
class Patience:
    """How hard a fetch tries.

    Attributes:
        attempts: In a row without a single new byte.
        wait_s: Before the second; every further one waits twice as long, at most a minute.
    """

    attempts: int = 6
    wait_s: float = 1.0


class _WrongContentError(Exception):
    """A file is whole and has another hash than the hub's listing."""


def plan(row: ModelRow, weights: Weights, transport: Transport, update: bool = False) -> Listing:
    """What a fetch would bring, exactly.

    Args:
        row: Of the registry.
        weights: The folder of models: what is locked there decides the commit, where the registry does not.
        transport: The way to the hub.
        update: Take the newest commit instead of the locked one.

    Raises:
        UserError: If the model cannot be fetched.
    """
    if not row.fetchable:
        raise UserError(missing(row, weights), MODEL_MISSING)
    lock = read_lock(weights.place(row.id))
    before = lock.revision if lock is not None and lock.origin == "hub" and not update else None
    try:
        return list_files(row, transport, row.revision or before or None)
    except InterruptedTransferError as error:
        raise _offline(row, error) from None


def fetch(
    row: ModelRow,
    weights: Weights,
    transport: Transport,
    context: Context,
    *,
    update: bool = False,
    patience: Patience = Patience(),  # noqa: B008  frozen
) -> Lock:
    """Bring one model to this machine, or what is missing or damaged of it.

    Args:
        row: Of the registry; its licence must have been accepted.
        weights: The folder of models.
        transport: The way to the hub.
        context: Progress in megabytes, and cancelling.
        update: Take the newest commit instead of the locked one.
        patience: With a bad line.

    Raises:
        UserError: Licence not accepted, no space, no connection, wrong content; what came so far is kept.
        Cancelled: What came so far is kept.
    """
    licences.require(weights.root, row)
    listing = plan(row, weights, transport, update)
    folder = weights.place(row.id)
    with weights.busy(row.id):
        tally = _Tally(context, row, listing.total_bytes)
        present = dict(_present(folder, listing, read_lock(folder), tally))
        _check_space(weights.root, folder, [file for file in listing.files if file.path not in present])
        for file in listing.files:
            if file.path not in present:
                present[file.path] = _fetch_file(folder, row, listing, file, transport, tally, patience)
        lock = Lock(row.id, "hub", listing.repository, listing.commit, now(), "published", present)
        if extra := strangers(folder, lock):
            raise UserError(
                f"{shown(folder / extra[0])} does not belong to {row.id}; remove it and fetch again", MODEL_MISSING
            )
        gate.check_folder(folder, onnx=row.role == "identity")
        write_lock(folder, lock)
    return lock


class _Tally:
    """Megabytes of one model that are here, out of all."""

    def __init__(self, context: Context, row: ModelRow, total_bytes: int) -> None:
        self.context = context
        self._stage = f"fetch {row.id}"
        self._total = max(total_bytes, 1) / 1e6
        self._whole = 0

    def show(self, bytes_of_file: int, path: str) -> None:
        """So much of the current file is here; stops if the user cancelled."""
        self.context.progress(self._stage, (self._whole + bytes_of_file) / 1e6, self._total, path)

    def finish(self, file: RemoteFile) -> None:
        """The file is whole."""
        self._whole += file.bytes
        self.show(0, file.path)


def _present(folder: Path, listing: Listing, lock: Lock | None, tally: _Tally) -> Iterator[tuple[str, LockedFile]]:
    """Files that are here already: known by their hash, which the lock vouches for where it can."""
    for file in listing.files:
        path = folder / file.path
        if not path.is_file() or path.stat().st_size != file.bytes:
            continue
        entry = lock.files.get(file.path) if lock is not None else None
        vouched = entry is not None and entry.sha256 == file.sha256
        if entry is None or not vouched or path.stat().st_mtime_ns != entry.modified_ns:
            digests = _Digests(file)
            with path.open("rb") as source:
                while block := source.read(BLOCK):
                    digests.update(block)
                    tally.context.raise_if_cancelled()
            if not digests.right():
                continue
            entry = locked(path, digests.sha256)
        tally.finish(file)
        yield file.path, entry


def _check_space(root: Path, folder: Path, files: list[RemoteFile]) -> None:
    root.mkdir(parents=True, exist_ok=True)
    parts = (_part(folder, file) for file in files)
    here = sum(part.stat().st_size for part in parts if part.is_file())
    needed = sum(file.bytes for file in files) - here
    free = shutil.disk_usage(root).free
    if files and needed + SPARE_BYTES > free:
        raise UserError(
            f"the model needs {needed / 1e9:.1f} GB more and the disk of the models has {free / 1e9:.1f} GB free; "
            "make room, or choose another folder of models (EFFIGY_MODELS)",
            FAILED,
            "DISK_FULL",
        )


def _part(folder: Path, file: RemoteFile) -> Path:
    return folder / f"{file.path}{PART}"


class _Digests:
    """The hashes of a file while it comes: ours, and git's own of a small one."""

    def __init__(self, file: RemoteFile) -> None:
        self._file = file
        self._sha256 = hashlib.sha256()
        self._git = hashlib.sha1(b"blob %d\0" % file.bytes, usedforsecurity=False)

    def update(self, block: bytes) -> None:
        """Take the next bytes."""
        self._sha256.update(block)
        if self._file.sha256 is None:
            self._git.update(block)

    @property
    def sha256(self) -> str:
        """Of all bytes so far, as hex digits."""
        return self._sha256.hexdigest()

    def right(self) -> bool:
        """Whether it is what the hub's listing says."""
        if self._file.sha256 is not None:
            return self.sha256 == self._file.sha256
        return self._file.git_sha1 is None or self._git.hexdigest() == self._file.git_sha1


def _fetch_file(
    folder: Path,
    row: ModelRow,
    listing: Listing,
    file: RemoteFile,
    transport: Transport,
    tally: _Tally,
    patience: Patience,
) -> LockedFile:
    """One file, in as many attempts as the line needs; a wrong hash after a resumed one is tried once more anew."""
    part = _part(folder, file)
    part.parent.mkdir(parents=True, exist_ok=True)
    fruitless, wrong = 0, 0
    while True:
        before = part.stat().st_size if part.is_file() else 0
        try:
            sha256 = _continue(part, listing.address(file), file, transport, tally)
            break
        except GatedError:
            raise gated(row, transport) from None
        except MissingError as error:
            raise UserError(f"{error}: {file.path} of {row.repository}; try another mirror", MODEL_MISSING) from None
        except _WrongContentError:
            part.unlink(missing_ok=True)
            wrong += 1
            if wrong > (1 if before else 0):
                host = origin(transport.base).host
                raise UserError(
                    f"{file.path} of {row.id} has another hash than it must have; it was thrown away. Do not trust "
                    f"{host}; try another mirror or another network",
                    FAILED,
                    "BAD_MODEL",
                ) from None
        except InterruptedTransferError as error:
            after = part.stat().st_size if part.is_file() else 0
            fruitless = 0 if after > before else fruitless + 1
            if fruitless >= patience.attempts:
                raise _offline(row, error) from None
            _wait(tally.context, min(patience.wait_s * 2**fruitless, 60.0))
    target = folder / file.path
    part.replace(target)
    sync_folder(target.parent)
    tally.finish(file)
    return locked(target, sha256)


def _offline(row: ModelRow, error: Exception) -> UserError:
    return UserError(
        f"{row.id} could not be fetched: {error}; what came so far is kept. "
        "Run the same command again, or import a copy",
        FAILED,
        "OFFLINE",
    )


def _wait(context: Context, seconds: float) -> None:
    context.cancel_event.wait(seconds)
    context.raise_if_cancelled()


def _continue(part: Path, address: str, file: RemoteFile, transport: Transport, tally: _Tally) -> str:
    """Bring what is missing of a file, and check the whole.

    Returns:
        Its sha256.

    Raises:
        InterruptedTransferError: The connection was cut; `part` holds what came.
        _WrongContentError: The whole has another hash.
    """
    digests, done = _Digests(file), 0
    with part.open("r+b" if part.is_file() else "w+b") as target:
        while done <= file.bytes and (block := target.read(BLOCK)):  # what came before is hashed again
            digests.update(block)
            done += len(block)
            tally.show(done, file.path)
        if done < file.bytes:
            with contextlib.closing(transport.open(address, {"Range": f"bytes={done}-"} if done else {})) as answer:
                refuse_web_page(answer, transport.base)
                if done and not _resumes(answer, file, done):
                    digests, done = _Digests(file), 0
                    target.seek(0)
                    target.truncate()
                for block in _blocks(answer, file.bytes - done):
                    _write(target, block)
                    digests.update(block)
                    done += len(block)
                    tally.show(done, file.path)
        if done != file.bytes or not digests.right():
            raise _WrongContentError
        target.flush()
        os.fsync(target.fileno())
    return digests.sha256


def _resumes(answer: http.client.HTTPResponse, file: RemoteFile, done: int) -> bool:
    """Whether the answer goes on at byte `done`; a server without ranges begins anew instead.

    Raises:
        InterruptedTransferError: If it is another part of the file, or of another file.
    """
    if answer.status == 200:
        return False
    found = _RANGE.match(answer.headers.get("Content-Range", ""))
    if found is None or int(found[1]) != done or found[3] not in ("*", str(file.bytes)):
        raise InterruptedTransferError("the server sends another part of the file than asked for")
    return True


def _blocks(answer: http.client.HTTPResponse, wanted: int) -> Iterator[bytes]:
    """The body, exactly `wanted` bytes of it.

    Raises:
        UserError: If the server announces another size.
        InterruptedTransferError: If fewer come.
    """
    announced = answer.headers.get("Content-Length")
    if announced is not None and announced != str(wanted):
        raise UserError(
            f"the server announces {announced[:30]} bytes where the listing says {wanted}; nothing was taken. "
            "Try another mirror",
            FAILED,
            "BAD_MODEL",
        )
    while wanted:
        block = read_block(answer, min(BLOCK, wanted))
        if not block:
            raise InterruptedTransferError(f"the connection ended {wanted} bytes too early")
        wanted -= len(block)
        yield block


def _write(target: IO[Any], block: bytes) -> None:
    try:
        target.write(block)
    except OSError as error:
        if error.errno in NO_SPACE:
            text = "the disk of the models is full; make room and run the same command again: what came is kept"
            raise UserError(text, FAILED, "DISK_FULL") from error
        raise
