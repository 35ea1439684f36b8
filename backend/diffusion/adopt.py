"""Import: a model that the user already has, from a Hugging Face cache, a folder in the published layout or one file.

Its files are linked where the disk allows it (a second name, no second copy), else copied; nothing of the source is
changed. What is imported is held to what the registry knows, locked as it was found, and passes the same gate.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Final

from backend.context import Context
from backend.diffusion import gate
from backend.diffusion.lock import Lock, hash_file, is_commit, is_sha256, locked, now, safe_path, write_lock
from backend.diffusion.model_row import ModelFile, ModelRow
from backend.diffusion.weights import Weights
from backend.errors import MODEL_MISSING, UserError
from backend.files import shown

MOST_FILES: Final = 500
"""Of a model that the user brings; more is a folder of something else."""

_ONNX = ".onnx"
_OLD = "an old .bin or .ckpt is a pickle and is never opened here: get the model as .safetensors"


def adopt(row: ModelRow, weights: Weights, source: Path, context: Context, *, copy: bool = False) -> Lock:
    """Import a model.

    Args:
        row: Of the registry.
        weights: The folder of models.
        source: A Hugging Face cache (whole, of one repository, or one snapshot), a folder, or a single file.
        context: Progress in megabytes, and cancelling.
        copy: Never link.

    Returns:
        What was locked.

    Raises:
        UserError: If files are missing, are not what the registry knows, or do not pass the gate.
        Cancelled: Nothing was changed.
    """
    folder = weights.place(row.id)
    place, commit = find_source(row, source)
    if row.revision and commit and commit != row.revision:
        raise UserError(
            f"{shown(source)} holds commit {commit[:12]} of {row.repository}, but {row.revision[:12]} is wanted",
            MODEL_MISSING,
        )
    chosen = choose_files(row, place)
    with weights.staging(row.id) as staging:
        for name, path in chosen.items():
            _check_source(path, place)
            target = staging / name
            target.parent.mkdir(parents=True, exist_ok=True)
            _bring(path.resolve(), target, copy)
            context.raise_if_cancelled()
        gate.check_folder(staging, onnx=row.role == "identity")
        files = {name: locked(staging / name, sha) for name, sha in _hashes(row, staging, chosen, context)}
        lock = Lock(row.id, "import", row.repository, commit, now(), "published", files)
        replace_folder(staging, folder)
        write_lock(folder, lock)
    return lock


def find_source(row: ModelRow, source: Path) -> tuple[Path, str]:
    """The folder or file that holds the model, and the commit where the source says it.

    Raises:
        UserError: If there is nothing, or more than one snapshot to choose from.
    """
    if not source.exists():
        raise UserError(f"there is no {shown(source)}; name a folder or a file")
    if source.is_file():
        return source, ""
    name = "models--" + row.repository.replace("/", "--")
    repositories = [source] if source.name.startswith("models--") else [source / name, source / "hub" / name]
    for repository in repositories:
        if row.repository and (repository / "snapshots").is_dir():
            return _snapshot(row, repository)
    if source.parent.name == "snapshots" and is_commit(source.name):
        return source, source.name
    return source, ""


def _snapshot(row: ModelRow, repository: Path) -> tuple[Path, str]:
    found = {path.name: path for path in (repository / "snapshots").iterdir() if is_commit(path.name) and path.is_dir()}
    main = repository / "refs" / "main"
    for wanted in (row.revision, main.read_text("ascii", errors="replace").strip() if main.is_file() else None):
        if wanted in found:
            return found[wanted], wanted
    if row.revision or len(found) != 1:
        what = f"commit {row.revision[:12]}" if row.revision else "a single snapshot"
        raise UserError(f"{shown(repository)} does not hold {what}; name the snapshot's folder itself", MODEL_MISSING)
    return next((path, commit) for commit, path in found.items())


def choose_files(row: ModelRow, place: Path) -> dict[str, Path]:
    """Which files of a source become which of the model.

    The 32-bit file counts where the registry names its 16-bit variant, and shards where it names a single file.

    Raises:
        UserError: Naming what is missing.
    """
    if place.is_file():
        return {_name_of_single(row, place): place}
    if any(place.glob("models--*")):
        raise UserError(
            f"{shown(place)} is a cache of many models, and {row.id} is not among them; name its own folder"
        )
    if not row.files:
        suffixes = (*gate.READ, _ONNX) if row.role == "identity" else gate.READ
        chosen = {name: path for name, path in _tree(place) if path.suffix.lower() in suffixes}
        if len(chosen) > MOST_FILES:
            raise UserError(f"{shown(place)} holds {len(chosen)} files, more than any model has; name its own folder")
        if not any(path.suffix.lower() in (".safetensors", _ONNX) for path in chosen.values()):
            raise UserError(
                f"{shown(place)} holds no .safetensors (pickles are never taken: convert them first)", MODEL_MISSING
            )
        return chosen
    there = dict(_tree(place))
    prefix = os.path.commonpath([file.path for file in row.files]) if len(row.files) > 1 else ""
    if prefix and not any(name.startswith(f"{prefix}/") for name in there):
        there = {f"{prefix}/{name}": path for name, path in there.items()}  # the subfolder itself was named
    chosen, absent = {}, []
    for file in row.files:
        if found := _matching(file, there):
            chosen |= {name: there[name] for name in found}
        else:
            absent.append(file.path)
    if absent:
        more = f" and {len(absent) - 1} more" if len(absent) > 1 else ""
        raise UserError(
            f"{shown(place)} lacks {absent[0]}{more} of {row.id}; name the folder in which the published layout begins",
            MODEL_MISSING,
        )
    return chosen


def _name_of_single(row: ModelRow, path: Path) -> str:
    """A single file must be the model's only one, or carry the name of its only weights."""
    single = [file.path for file in row.files if file.path.endswith((".safetensors", _ONNX))]
    if not row.files and path.suffix.lower() in (".safetensors", *((_ONNX,) if row.role == "identity" else ())):
        return path.name
    if len(row.files) == 1 and path.suffix.lower() == PurePosixPath(single[0]).suffix:
        return single[0]
    raise UserError(
        f"{row.id} consists of {len(row.files)} files in folders; name the folder, not {path.name}"
        if row.files
        else f"{path.name} is no .safetensors file; {_OLD}"
    )


def _tree(place: Path) -> Iterator[tuple[str, Path]]:
    for path in sorted(place.rglob("*")):
        name = path.relative_to(place).as_posix()
        if path.is_file() and safe_path(name) and not any(part.startswith(".") for part in PurePosixPath(name).parts):
            yield name, path


def _matching(file: ModelFile, there: Mapping[str, Path]) -> list[str]:
    """The file itself, its pattern, its 32-bit sister, or its shards with their index."""
    if "*" in file.path:
        parent, pattern = PurePosixPath(file.path).parent, PurePosixPath(file.path).name
        names = [name for name in there if PurePosixPath(name).parent == parent]
        return [
            name
            for name in names
            if fnmatchcase(PurePosixPath(name).name, pattern) and PurePosixPath(name).suffix in gate.READ
        ]
    for name in (file.path, file.path.replace(".fp16.", ".")):
        if name in there:
            return [name]
        shards = name.replace(".safetensors", "-*-of-*.safetensors")
        index = name.replace(".safetensors", ".safetensors.index.json")
        found = [other for other in there if fnmatchcase(other, shards)]
        if name.endswith(".safetensors") and found and index in there:
            return [*found, index]
    return []


def _check_source(path: Path, place: Path) -> None:
    """A link may lead to the source itself or to the blobs of its own cache."""
    root = place.resolve() if place.is_dir() else place.resolve().parent
    allowed = [root]
    if root.parent.name == "snapshots":
        allowed.append(root.parent.parent / "blobs")
    if not any(path.resolve().is_relative_to(folder) for folder in allowed):
        raise UserError(f"{shown(path)} is a link to somewhere else; it was not followed", MODEL_MISSING, "BAD_MODEL")


def _bring(source: Path, target: Path, copy: bool) -> None:
    if not copy:
        try:
            target.hardlink_to(source)
            return
        except OSError:
            pass  # another disk, or a system without links: a copy it is
    shutil.copyfile(source, target)


def _hashes(row: ModelRow, staging: Path, chosen: Mapping[str, Path], context: Context) -> Iterator[tuple[str, str]]:
    """The hash of every file, held to the registry's and to the name of a cache's blob."""
    known = {file.path: file for file in row.files}
    total, done = max(sum((staging / name).stat().st_size for name in chosen), 1), 0

    def seen(count: int) -> None:
        nonlocal done
        done += count
        context.progress(f"import {row.id}", done / 1e6, total / 1e6)

    for name, source in chosen.items():
        sha256 = hash_file(staging / name, seen)
        file, blob = known.get(name), source.resolve().name
        wanted = {file.sha256 if file else None, blob if is_sha256(blob) else None} - {None}
        if wanted - {sha256} or (file and file.bytes not in (None, (staging / name).stat().st_size)):
            raise UserError(
                f"{shown(source)} is not the published file (another sha256); it was not taken", MODEL_MISSING
            )
        yield name, sha256


def replace_folder(staging: Path, folder: Path) -> None:
    """Put a finished folder in the place of an older one."""
    older = staging.with_name(f"{staging.name}.old")
    if folder.exists():
        folder.replace(older)
    staging.replace(folder)
    shutil.rmtree(older, ignore_errors=True)
