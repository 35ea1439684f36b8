"""The files that a request names: which parameters they are, what is taken, and what they are called inside a job.

What the user gives are paths. What a job stores are names relative to its folder, `photos-0.png`, where the copies
lie; a method's stage finds them by `folder / name`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, get_type_hints

from .methods import SEVERAL, Request


@dataclass(frozen=True)
class FileKind:
    """What a parameter's files may be.

    Attributes:
        noun: For people.
        endings: What a file browser offers, lower case, with the dot.
        by_ending: Files with another ending are refused; pictures are told by their content.
        largest_bytes: Of one file.
    """

    noun: str
    endings: tuple[str, ...]
    by_ending: bool
    largest_bytes: int = 512 << 20


KINDS: Mapping[str, FileKind] = {
    "picture": FileKind("a picture", (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp"), by_ending=False),
    "motion": FileKind("a motion file", (".npz", ".bvh"), by_ending=True),
}


@dataclass(frozen=True)
class FileParameter:
    """A parameter that names files.

    Attributes:
        name: The field's.
        label: For people.
        kind: What the files may be.
        several: It names any number of files, else one or none.
    """

    name: str
    label: str
    kind: FileKind
    several: bool


def file_parameters(request: Request | type[Request]) -> tuple[FileParameter, ...]:
    """The parameters of a request that name files, in their order."""
    hints = get_type_hints(request if isinstance(request, type) else type(request))
    return tuple(
        FileParameter(item.name, item.metadata["label"], KINDS[item.metadata["files"]], hints[item.name] == SEVERAL)
        for item in fields(request)
        if item.metadata.get("files")
    )


def named_files(request: Request) -> dict[str, tuple[str, ...]]:
    """What the request's file parameters name, by parameter; those that name nothing are left out."""
    named: dict[str, tuple[str, ...]] = {}
    for parameter in file_parameters(request):
        value: Any = getattr(request, parameter.name)
        if value:
            named[parameter.name] = value if parameter.several else (value,)
    return named


def with_files(request: Request, files: Mapping[str, tuple[str, ...]]) -> Request:
    """The request with other names in its file parameters; parameters that are not in `files` stay."""
    several = {parameter.name: parameter.several for parameter in file_parameters(request)}
    changes: dict[str, Any] = {name: names if several[name] else names[0] for name, names in files.items()}
    return replace(request, **changes)


def located(request: Request, folder: Path) -> Request:
    """The request with whole paths: what is relative counts from `folder`."""
    return with_files(
        request, {name: tuple(str(folder / text) for text in texts) for name, texts in named_files(request).items()}
    )


def for_job(request: Request) -> tuple[Request, dict[str, Path]]:
    """What a job stores and what has to be copied into its folder.

    Args:
        request: Its files are paths.

    Returns:
        The request with names relative to the job's folder, and the source of each of these names.

    Raises:
        ValueError: If a file is not there, empty, too large or of another kind; one line that names the parameter.
    """
    stored: dict[str, tuple[str, ...]] = {}
    sources: dict[str, Path] = {}
    named = named_files(request)
    for parameter in file_parameters(request):
        names: list[str] = []
        for number, text in enumerate(named.get(parameter.name, ())):
            path = Path(text)
            if problem := _problem(parameter.kind, path):
                raise ValueError(f"{parameter.label}: {problem}")
            names.append(f"{parameter.name}-{number}{safe_ending(path)}")
            sources[names[-1]] = path
        if names:
            stored[parameter.name] = tuple(names)
    return with_files(request, stored), sources


def safe_ending(path: Path) -> str:
    """The file's ending in lower case if it is harmless, else nothing; contents are looked at anyway."""
    ending = path.suffix.lower()
    return ending if re.fullmatch(r"\.[a-z0-9]{1,5}", ending) else ""


def _problem(kind: FileKind, path: Path) -> str:
    """Why a file cannot be taken, and what to do; empty if it can."""
    try:
        size = path.stat().st_size
    except (OSError, ValueError) as error:  # a NUL in the name is a ValueError
        reason = getattr(error, "strerror", None) or "its name is no file's"
        return f"{str(path)[:300]} cannot be read ({reason}); choose it again or leave it out"
    endings = ", ".join(kind.endings)
    if not path.is_file():
        return f"{path} is no file; choose {kind.noun}"
    if kind.by_ending and path.suffix.lower() not in kind.endings:
        return f"{path.name} is not {kind.noun}; choose one that ends in {endings}"
    if not size:
        return f"{path.name} is empty; choose {kind.noun}"
    if size > kind.largest_bytes:
        return f"{path.name} has {size / 1e6:.0f} MB; choose one of at most {kind.largest_bytes >> 20} MB"
    return ""


__all__ = [
    "KINDS",
    "FileKind",
    "FileParameter",
    "file_parameters",
    "for_job",
    "located",
    "named_files",
    "safe_ending",
    "with_files",
]
