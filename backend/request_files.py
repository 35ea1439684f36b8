"""The files that a request names, on their way into a job: looked at before it begins, copied when it does."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from backend.errors import BAD_REQUEST, FAILED, UserError
from backend.perception.photo import read_photo
from blender_addon.shared.methods import Request
from blender_addon.shared.request_files import KINDS, FileKind, file_parameters, for_job

LARGEST_ARRAYS_BYTES = 1 << 30
"""Of all arrays of an .npz motion together, unpacked; half an hour of SMPL-X motion takes 60 MB."""


@dataclass(frozen=True)
class RequestFiles:
    """What a request's files are.

    Attributes:
        request: Its files are named as inside the job.
        sources: Where each of these names comes from.
        sha256: Hash of each, by name.
    """

    request: Request
    sources: Mapping[str, Path]
    sha256: Mapping[str, str]


def read_files(request: Request) -> RequestFiles:
    """Look at every file that a request names.

    Args:
        request: Its files are paths.

    Raises:
        UserError: If a file is not there or cannot be used; one line that names the parameter.
    """
    try:
        stored, sources = for_job(request)
    except ValueError as error:
        raise UserError(str(error)) from error
    hashes: dict[str, str] = {}
    for parameter in file_parameters(request):
        for name, path in sources.items():
            if name.rpartition("-")[0] == parameter.name:
                hashes[name] = _checked(path, parameter.kind, parameter.label)
    return RequestFiles(stored, sources, hashes)


def copy_files(files: RequestFiles, folder: Path) -> None:
    """Put the files into the job's folder under their names there.

    Raises:
        UserError: If one has changed or vanished since it was looked at.
    """
    for name, source in files.sources.items():
        try:
            data = source.read_bytes()
        except OSError as error:
            raise UserError(f"{source} cannot be read any more ({error.strerror}); start the job again") from error
        if hashlib.sha256(data).hexdigest() != files.sha256[name]:
            raise UserError(f"{source.name} changed while the job began; start it again", FAILED)
        (folder / name).write_bytes(data)


def _checked(path: Path, kind: FileKind, label: str) -> str:
    """Hash of the file's bytes, after a look at its content."""
    try:
        if kind is KINDS["picture"]:
            return read_photo(path).sha256
        if kind is KINDS["motion"]:
            _check_motion(path)
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except UserError as error:
        code = "BAD_IMAGE" if kind is KINDS["picture"] else "BAD_REQUEST"
        raise UserError(f"{label}: {error.message}", BAD_REQUEST, code) from error
    except OSError as error:
        raise UserError(f"{label}: {path} cannot be read ({error.strerror}); choose it again") from error


def _check_motion(path: Path) -> None:
    """Whether a file is of its kind at all, before a job begins; its numbers are checked where they are read."""
    if path.suffix.lower() == ".bvh":
        with path.open("rb") as file:
            if not file.read(4096).lstrip(b"\xef\xbb\xbf \t\r\n").upper().startswith(b"HIERARCHY"):
                raise UserError(f"{path.name} is no BVH motion; choose another")
        return
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(item.file_size for item in archive.infolist())
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise UserError(f"{path.name} is no .npz motion or is damaged; choose another") from error
    if size > LARGEST_ARRAYS_BYTES:
        raise UserError(f"{path.name} unpacks to {size / 1e6:.0f} MB; {LARGEST_ARRAYS_BYTES >> 20} MB are read")


__all__ = ["RequestFiles", "copy_files", "read_files"]
