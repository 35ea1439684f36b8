"""The gate in front of every loader of diffusers, transformers and peft: only safetensors, no code, nothing from a net.

The libraries' own switches are not enough: diffusers still loads pickled LoRAs and IP-Adapters when told not to, and a
`model_index.json` may name modules. So no loader sees a folder that did not pass here, and the libraries are imported
only through `import_diffusers` and its sisters, which set their switches first.
"""

from __future__ import annotations

import importlib
import json
import os
import stat
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import Any, Final

from backend.diffusion.gate_onnx import external_files
from backend.errors import MODEL_MISSING, UserError
from backend.files import shown

LARGEST_HEADER: Final = 100_000_000
"""Bytes; the limit of the safetensors library itself."""

LARGEST_JSON: Final = 64_000_000
"""Bytes of a configuration or a tokenizer; the largest of the published ones have 34 MB."""

BITS: Final[Mapping[str, int]] = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32,
    "F32": 32, "C64": 64, "F64": 64, "I64": 64, "U64": 64,
}  # fmt: skip
"""Bits of one element by its name in a header."""

SWITCHES: Final[Mapping[str, str]] = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_XET": "1",
    "DIFFUSERS_DISABLE_REMOTE_CODE": "1",
    "DO_NOT_TRACK": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
"""Environment of the libraries; they read it when they are imported."""

_TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
READ: Final = (".safetensors", ".json", ".txt", ".model", ".jinja")
"""What a loader may open. A sentencepiece `.model` and a template are data: the first is protobuf, the second is
rendered in transformers' sandbox."""
_IGNORED: Final = (".md", ".rst", ".part", ".png", ".jpg", ".jpeg", ".webp", ".gif", ".gitattributes", ".gitignore")
_IGNORED_NAMES: Final = ("license", "licence", "notice", ".ds_store", "thumbs.db", "desktop.ini")
_REMOTE_CODE: Final = ("auto_map", "custom_pipeline", "custom_pipelines", "trust_remote_code")
_MODULES: Final = ("diffusers", "transformers", "stable_diffusion")
"""What a pipeline's index may name; the third is diffusers' own, for the safety checker of Stable Diffusion 1.5."""


@dataclass(frozen=True)
class Tensor:
    """One entry of a safetensors header.

    Attributes:
        dtype: A key of `BITS`.
        shape: Of the tensor.
        begin: First byte, counted from the file's start.
        end: After its last byte.
    """

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def check_safetensors(path: Path) -> dict[str, Tensor]:
    """Read the header of a safetensors file and hold every promise in it against the file's size.

    Returns:
        The tensors by name, in the order of their data.

    Raises:
        UserError: BAD_MODEL, if the file is anything else than a whole safetensors file.
    """
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(8), "little") if size >= 8 else -1
        if length < 2 or length > size - 8:
            raise _refusal(path, f"its header would have {length} bytes, the file has {size}" if size > 8 else "empty")
        if length > LARGEST_HEADER:
            raise _refusal(path, f"its header has {length} bytes, more than {LARGEST_HEADER}")
        text = file.read(length)
    header = _parse_json(path, text, duplicates=False)
    if not text.startswith(b"{") or not isinstance(header, dict):
        raise _refusal(path, "its header is no JSON object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _refusal(path, "its metadata are no texts")
    tensors = {name: _tensor(path, name, entry, 8 + length) for name, entry in header.items()}
    ordered = dict(sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)))
    at = 8 + length
    for name, tensor in ordered.items():
        if tensor.begin != at:
            raise _refusal(path, f"{name!r:.80} {'overlaps another' if tensor.begin < at else 'follows a gap'}")
        at = tensor.end
    if at != size:
        raise _refusal(path, f"its tensors end at byte {at}, the file at {size}")
    return ordered


def _tensor(path: Path, name: str, entry: Any, data: int) -> Tensor:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise _refusal(path, f"the entry of {name!r:.80} is incomplete")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS:
        raise _refusal(path, f"{name!r:.80} has the unknown type {dtype!r:.40}")
    if not _whole_numbers(shape) or len(shape) > 16 or not _whole_numbers(offsets) or len(offsets) != 2:
        raise _refusal(path, f"shape or offsets of {name!r:.80} are wrong")
    if prod(shape) * BITS[dtype] != (offsets[1] - offsets[0]) * 8:
        raise _refusal(path, f"{name!r:.80} has another size than its shape")
    return Tensor(dtype, tuple(shape), data + offsets[0], data + offsets[1])


def _whole_numbers(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 2**63 for value in values)


def check_folder(folder: Path, *, onnx: bool = False) -> None:
    """Look at every file of a model's folder before a loader may: only what cannot run code is let through.

    Args:
        folder: In a published layout; a snapshot of a Hugging Face cache may link to its own blobs.
        onnx: Also let ONNX graphs through (no code, but they may name further files: those must lie inside).

    Raises:
        UserError: BAD_MODEL naming the first file that is refused, or NO_MODEL if there is no such folder.
    """
    if not folder.is_dir():
        raise UserError(f"there is no folder {shown(folder)}; fetch or import the model again", MODEL_MISSING)
    for path in sorted(_files_under(folder)):
        suffix = path.suffix.lower()
        if suffix == ".safetensors":
            check_safetensors(path)
        elif suffix == ".onnx" and onnx:
            _check_onnx(path, folder)
        elif suffix in READ:
            _check_text(path)
        elif not (suffix in _IGNORED or path.name.lower() in _IGNORED_NAMES):
            raise _refusal(path, "only .safetensors are loaded" if suffix else "a file of this kind is never opened")


def _files_under(folder: Path) -> Iterator[Path]:
    """All files; links lead to places inside the folder, or to the blobs of the cache that the folder belongs to."""
    root = folder.resolve()
    allowed = [root]
    if root.parent.name == "snapshots":
        allowed.append(root.parent.parent / "blobs")
    pending = [root]
    while pending:
        for entry in os.scandir(pending.pop()):
            path = Path(entry.path)
            if entry.is_symlink():
                target = path.resolve()
                if not any(target.is_relative_to(place) for place in allowed) or target.is_dir():
                    raise _refusal(path, f"it is a link to {shown(target)}")
            if entry.is_dir():
                pending.append(path)
            elif stat.S_ISREG(entry.stat().st_mode):
                yield path
            else:
                raise _refusal(path, "it is no regular file")


def _check_text(path: Path) -> None:
    """A configuration, a vocabulary or a template: text and nothing else, and no pointer to code."""
    if path.stat().st_size > LARGEST_JSON:
        raise _refusal(path, f"more than {LARGEST_JSON // 1_000_000} MB are no configuration")
    text = path.read_bytes()
    if path.suffix.lower() == ".model":  # sentencepiece: a protobuf that begins with its first piece
        if not text.startswith(b"\n"):
            raise _refusal(path, "it is no sentencepiece model")
        return
    try:
        words = text.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _refusal(path, "its content is no text") from error
    if "\0" in words:
        raise _refusal(path, "its content is no text")
    if path.suffix.lower() != ".json":
        return
    content = _parse_json(path, words)
    if code := _remote_code(content):
        raise _refusal(path, f"it asks for code of its own ({code})")
    if path.name == "model_index.json":
        _check_modules(path, content)
    if path.name.endswith(".index.json"):
        _check_shards(path, content)


def _remote_code(content: Any) -> str:
    """The first key, at any depth, by which the libraries would load Python from a folder; empty if there is none."""
    pending = [content]
    while pending:
        value = pending.pop()
        if isinstance(value, dict):
            if found := [key for key in _REMOTE_CODE if value.get(key)]:
                return found[0]
            pending += [inner for inner in value.values() if isinstance(inner, dict | list)]
        elif isinstance(value, list):
            pending += [inner for inner in value if isinstance(inner, dict | list)]
    return ""


def _check_modules(path: Path, content: Any) -> None:
    for name, value in content.items() if isinstance(content, dict) else ():
        pair = isinstance(value, list) and len(value) == 2
        if pair and value[0] is not None and value[0] not in _MODULES:
            raise _refusal(path, f"{name} names the module {value[0]!r:.60}")


def _check_shards(path: Path, content: Any) -> None:
    """An index of shards names safetensors beside itself, all of them there."""
    shards = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(shards, dict) or not all(isinstance(name, str) for name in shards.values()):
        raise _refusal(path, "it has no map of the shards")
    for name in set(shards.values()):
        if PurePosixPath(name).name != name or "\\" in name or not name.endswith(".safetensors"):
            raise _refusal(path, f"it names {name!r:.80}")
        if not (path.parent / name).is_file():
            raise _refusal(path, f"its shard {name} is not there")


def _check_onnx(path: Path, folder: Path) -> None:
    root = folder.resolve()
    for name in external_files(path):
        if Path(name).is_absolute() or not (path.parent / name).resolve().is_relative_to(root):
            raise _refusal(path, f"it reads the file {name!r:.80}")


def _parse_json(path: Path, text: bytes | str, duplicates: bool = True) -> Any:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        content = dict(pairs)
        if len(content) != len(pairs):
            raise ValueError("a name comes twice")
        return content

    try:
        return json.loads(text, object_pairs_hook=None if duplicates else unique)
    except (ValueError, RecursionError) as error:
        raise _refusal(path, f"no proper JSON ({error})"[:200]) from error


def _refusal(path: Path, why: str) -> UserError:
    return UserError(
        f"{shown(path)} is not loaded: {why}; remove it and fetch the model again", MODEL_MISSING, "BAD_MODEL"
    )


def quiet_imports() -> None:
    """Set the switches of the model libraries: no network, no telemetry, no code from folders, no token.

    Raises:
        RuntimeError: If they were imported before without them (a defect of ours: they read them only once).
    """
    loaded = sys.modules.get("huggingface_hub.constants")
    if loaded is not None and not loaded.HF_HUB_OFFLINE:
        raise RuntimeError("huggingface_hub was imported before backend.diffusion.gate.quiet_imports()")
    os.environ.update(SWITCHES)
    for name in _TOKENS:
        os.environ.pop(name, None)


def import_diffusers() -> ModuleType:
    """The module, imported with its switches set."""
    return _import("diffusers")


def import_transformers() -> ModuleType:
    """The module, imported with its switches set."""
    return _import("transformers")


def import_peft() -> ModuleType:
    """The module, imported with its switches set."""
    return _import("peft")


def _import(name: str) -> ModuleType:
    quiet_imports()
    return importlib.import_module(name)
