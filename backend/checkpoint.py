"""Frozen dataclasses of arrays to one .npz file and back, without pickle.

A file holds the numeric arrays as they are and one text, "tree", that says how they are nested. Strings, numbers,
None, tuples, lists, dicts with text keys, enums, paths, scipy CSR matrices and dataclasses are kept with their types.
Only classes of the packages that the reader names are made, through their ordinary constructors, so that their own
checks run.
"""

from __future__ import annotations

import dataclasses
import enum
import importlib
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse

from backend.files import whole_file

PACKAGES = ("backend", "blender_addon")


class CheckpointError(Exception):
    """The file cannot be read as a checkpoint; the caller makes the value anew."""


def save(path: Path, value: object) -> None:
    """Write `value` to `path` atomically (uncompressed .npz).

    Raises:
        TypeError: If some part of the value has no flat form; the message names the part.
    """
    arrays: dict[str, np.ndarray] = {}
    tree = json.dumps(_flatten(value, "value", arrays))
    with whole_file(path) as file:
        np.savez(file, tree=np.array(tree), **arrays)


def load(path: Path, packages: tuple[str, ...] = PACKAGES) -> Any:
    """Read what `save` wrote.

    Args:
        path: The file.
        packages: Top-level packages whose dataclasses and enums may be made.

    Raises:
        CheckpointError: If the file is missing, damaged, or names a class outside `packages`.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        return _build(json.loads(str(arrays["tree"])), arrays, packages)
    except CheckpointError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"{path.name} cannot be read: {error}") from error


def _flatten(value: Any, where: str, arrays: dict[str, np.ndarray]) -> Any:
    """JSON form of `value`; arrays go into `arrays` under their place's name."""
    if isinstance(value, enum.Enum):
        return {"enum": _name(type(value)), "name": value.name}
    if isinstance(value, np.generic):  # before float, which np.float64 is too
        return {"scalar": _keep(np.asarray(value), where, arrays)}
    if value is None or isinstance(value, bool | int | float | str):
        return _exact(value)
    if isinstance(value, np.ndarray):
        return {"array": _keep(value, where, arrays)}
    if sparse.issparse(value):
        csr = sparse.csr_array(value) if isinstance(value, sparse.sparray) else sparse.csr_matrix(value)
        parts = {part: _keep(getattr(csr, part), f"{where}.{part}", arrays) for part in ("data", "indices", "indptr")}
        return {"csr": parts, "shape": [int(n) for n in csr.shape or ()], "is_array": isinstance(csr, sparse.sparray)}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = [field.name for field in dataclasses.fields(value) if field.init]
        inner = {name: _flatten(getattr(value, name), f"{where}.{name}", arrays) for name in fields}
        return {"class": _name(type(value)), "fields": inner}
    if isinstance(value, tuple | list):
        kind = "tuple" if isinstance(value, tuple) else "list"
        if hasattr(value, "_fields"):
            raise TypeError(f"{where}: a named tuple has no flat form; use a dataclass")
        return {kind: [_flatten(item, f"{where}.{i}", arrays) for i, item in enumerate(value)]}
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {"dict": {key: _flatten(item, f"{where}.{key}", arrays) for key, item in value.items()}}
    if isinstance(value, Path):
        return {"path": str(value)}
    raise TypeError(f"{where}: {type(value).__name__} has no flat form; use arrays, plain values or dataclasses")


def _exact(value: bool | int | float | str | None) -> Any:
    """Plain JSON, but for floats: their hexadecimal form also keeps infinities and NaN."""
    return {"float": value.hex()} if isinstance(value, float) else value


def _keep(array: np.ndarray, where: str, arrays: dict[str, np.ndarray]) -> str:
    if array.dtype.hasobject:
        raise TypeError(f"{where}: an object array has no flat form")
    arrays[where] = array
    return where


def _name(cls: type) -> str:
    if "<locals>" in cls.__qualname__:
        raise TypeError(f"{cls.__qualname__}: a class inside a function cannot be found again")
    return f"{cls.__module__}:{cls.__qualname__}"


def _build(tree: Any, arrays: dict[str, np.ndarray], packages: tuple[str, ...]) -> Any:
    if not isinstance(tree, dict):
        return tree
    match tree:
        case {"float": text}:
            return float.fromhex(text)
        case {"array": name}:
            return arrays[name]
        case {"scalar": name}:
            return arrays[name][()]
        case {"tuple": items}:
            return tuple(_build(item, arrays, packages) for item in items)
        case {"list": items}:
            return [_build(item, arrays, packages) for item in items]
        case {"dict": items}:
            return {key: _build(item, arrays, packages) for key, item in items.items()}
        case {"path": text}:
            return Path(text)
        case {"enum": name, "name": member}:
            return _find(name, packages, enum.Enum)[member]
        case {"csr": parts, "shape": shape, "is_array": is_array}:
            make = sparse.csr_array if is_array else sparse.csr_matrix
            return make((arrays[parts["data"]], arrays[parts["indices"]], arrays[parts["indptr"]]), shape=tuple(shape))
        case {"class": name, "fields": fields}:
            cls = _find(name, packages, None)
            return cls(**{key: _build(item, arrays, packages) for key, item in fields.items()})
    raise CheckpointError(f"unknown entry {sorted(tree)}")


def _find(name: str, packages: tuple[str, ...], base: type | None) -> Any:
    module_name, _, path = name.partition(":")
    if module_name.split(".")[0] not in packages:
        raise CheckpointError(f"{name} is outside {', '.join(packages)}")
    try:
        found: Any = importlib.import_module(module_name)
    except ImportError as error:
        raise CheckpointError(f"{name} is gone") from error
    for part in path.split("."):
        found = getattr(found, part)
    if not isinstance(found, type) or not (issubclass(found, base) if base else dataclasses.is_dataclass(found)):
        raise CheckpointError(f"{name} is no {'enum' if base else 'dataclass'}")
    return found
