"""Convert an installed model once: 16 bits where it is published in 32, or 8 bits for its large matrices.

File by file and piece by piece: memory holds a few megabytes whatever the model's size. The copy has the published
layout and its own lock; it lies beside the published one, which may then be removed.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from math import prod
from pathlib import Path
from typing import IO, Any, Final, Literal

from backend.context import Context
from backend.diffusion import gate
from backend.diffusion.adopt import replace_folder
from backend.diffusion.gate import BITS, Tensor
from backend.diffusion.int8 import SCALE, quantise
from backend.diffusion.lock import Lock, hash_file, locked, now, write_lock
from backend.diffusion.model_row import ModelRow
from backend.diffusion.weights import Weights
from backend.errors import FAILED, UserError
from backend.files import read_json, write_json

Target = Literal["bf16", "int8"]

PIECE: Final = 1 << 22
"""Elements that are in memory at a time, or one row of a matrix where that is more."""

SMALLEST: Final = 1 << 14
"""Elements of a tensor from which it is converted: norms, biases and tables keep their precision and cost nothing."""

SPARE_BYTES: Final = 500_000_000
"""Left free on the disk beside the copy."""

_WIDE: Final = ("F32", "F64")
_FLOATS: Final = ("F32", "F64", "F16", "BF16")
_DIFFUSERS: Final = "diffusion_pytorch_model"
_INDEX: Final = ".safetensors.index.json"

Plan = Mapping[str, str]
"""The type of every tensor of a file in the copy."""


def convert(row: ModelRow, weights: Weights, to: Target, context: Context) -> Lock:
    """Write the copy of a model in another storage.

    Args:
        row: Of the registry; the published model must be installed.
        weights: The folder of models.
        to: "bf16" halves what is published in 32 bits; "int8" also halves the matrices of the networks that diffusers
            loads (encoders of transformers stay at 16 bits), see `int8`.
        context: Progress in megabytes of the source, and cancelling.

    Returns:
        What was locked.

    Raises:
        UserError: If the model is not installed, has nothing to convert, or the disk is full.
        Cancelled: Nothing was changed.
    """
    source = weights.folder(row.id, "published")
    headers = {path: gate.check_safetensors(path) for path in sorted(source.rglob("*.safetensors"))}
    plans = {path: {name: _kind(path, name, entry, to) for name, entry in headers[path].items()} for path in headers}
    if all(plans[path][name] == entry.dtype for path in headers for name, entry in headers[path].items()):
        raise UserError(f"{row.id} has nothing to convert to {to}; use it as it is")
    _check_space(weights.root, headers, plans)
    target = weights.place(row.id, to)
    report = _report(context, row, to, sum(path.stat().st_size for path in headers))
    with weights.staging(row.id) as staging:
        for path in sorted(path for path in source.rglob("*") if path.is_file() and not path.name.endswith(_INDEX)):
            copy = staging / path.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            if path in headers:
                _convert_file(path, copy, headers[path], plans[path], report)
            else:
                shutil.copyfile(path, copy)
        for index in source.rglob(f"*{_INDEX}"):
            _write_index(index, staging / index.relative_to(source))
        gate.check_folder(staging, onnx=row.role == "identity")
        lock = _lock(row, weights, to, staging)
        replace_folder(staging, target)
        write_lock(target, lock)
    return lock


def _kind(path: Path, name: str, tensor: Tensor, to: Target) -> str:
    """What a tensor becomes."""
    if tensor.dtype not in _FLOATS or len(tensor.shape) < 2 or prod(tensor.shape) < SMALLEST:
        return tensor.dtype
    matrix = len(tensor.shape) == 2 and name.endswith(".weight") and "embed" not in name
    if to == "int8" and matrix and path.name.startswith(_DIFFUSERS):
        return "I8"
    return "BF16" if tensor.dtype in _WIDE else tensor.dtype


def _check_space(root: Path, headers: Mapping[Path, Mapping[str, Tensor]], plans: Mapping[Path, Plan]) -> None:
    bits = sum(prod(t.shape) * BITS[plans[path][name]] for path in headers for name, t in headers[path].items())
    needed, free = bits / 8, shutil.disk_usage(root).free
    if needed + SPARE_BYTES > free:
        raise UserError(
            f"the copy needs {needed / 1e9:.1f} GB and the disk of the models has {free / 1e9:.1f} GB free; make room",
            FAILED,
            "DISK_FULL",
        )


def _report(context: Context, row: ModelRow, to: str, total_bytes: int) -> Callable[[int], None]:
    total, done = max(total_bytes, 1) / 1e6, 0.0

    def seen(count: int) -> None:
        nonlocal done
        done += count / 1e6
        context.progress(f"convert {row.id}", min(done, total), total, to)

    return seen


def _convert_file(
    source: Path, copy: Path, tensors: Mapping[str, Tensor], plan: Plan, report: Callable[[int], None]
) -> None:
    """Write one file: its header first, then every tensor at its place."""
    header, places = _layout(tensors, plan)
    with source.open("rb") as given, copy.open("wb") as made:
        made.write(header)
        for name, tensor in tensors.items():
            if plan[name] == "I8":
                _write_matrix(given, made, tensor, places[name], places[name + SCALE], report)
            else:
                _write_plain(given, made, tensor, plan[name], places[name], report)
        made.flush()
        os.fsync(made.fileno())


def _layout(tensors: Mapping[str, Tensor], plan: Plan) -> tuple[bytes, dict[str, int]]:
    """The header of the copy, and the byte at which each of its tensors begins.

    Wide types come first, so that every tensor lies at a multiple of its own size, as readers expect.
    """
    entries = [(name, plan[name], list(tensor.shape)) for name, tensor in tensors.items()]
    entries += [(name + SCALE, "F32", [tensors[name].shape[0]]) for name in tensors if plan[name] == "I8"]
    entries.sort(key=lambda entry: -BITS[entry[1]])
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, dtype, shape in entries:
        end = at + prod(shape) * BITS[dtype] // 8
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, end]}
        at = end
    text = json.dumps(header, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)
    begin = 8 + len(text)
    places = {name: begin + header[name]["data_offsets"][0] for name, _, _ in entries}
    return len(text).to_bytes(8, "little") + text, places


def _write_plain(
    given: IO[bytes], made: IO[bytes], tensor: Tensor, dtype: str, place: int, report: Callable[[int], None]
) -> None:
    import torch

    made.seek(place)
    rows = 1 if not tensor.shape else tensor.shape[0]
    for block in _pieces(given, tensor, rows):
        if dtype == tensor.dtype:
            made.write(block)
        else:
            values = torch.frombuffer(bytearray(block), dtype=_torch_type(tensor.dtype)).to(_torch_type(dtype))
            made.write(values.view(torch.uint8).numpy().tobytes())
        report(len(block))


def _write_matrix(
    given: IO[bytes], made: IO[bytes], tensor: Tensor, place: int, scales_place: int, report: Callable[[int], None]
) -> None:
    import torch

    columns = tensor.shape[1]
    for block in _pieces(given, tensor, tensor.shape[0]):
        rows = torch.frombuffer(bytearray(block), dtype=_torch_type(tensor.dtype)).reshape(-1, columns)
        values, scales = quantise(rows)
        made.seek(place)
        made.write(values.numpy().tobytes())
        made.seek(scales_place)
        made.write(scales.numpy().tobytes())
        place += values.numel()
        scales_place += 4 * len(scales)
        report(len(block))


def _pieces(given: IO[bytes], tensor: Tensor, rows: int) -> Iterator[bytes]:
    """The bytes of a tensor in blocks of whole rows."""
    size = tensor.end - tensor.begin
    if not size:
        return
    row_bytes = size // rows
    step = max(1, PIECE * BITS[tensor.dtype] // 8 // row_bytes) * row_bytes
    for at in range(tensor.begin, tensor.end, step):
        given.seek(at)
        yield given.read(min(step, tensor.end - at))


def _torch_type(dtype: str) -> Any:
    import torch

    return {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}[dtype]


def _write_index(given: Path, made: Path) -> None:
    """The index of the copy's shards, read from their headers."""
    content = read_json(given)
    shards = sorted(set(content["weight_map"].values()))  # the gate has looked at it
    headers = {shard: gate.check_safetensors(made.parent / shard) for shard in shards}
    total = sum(entry.end - entry.begin for header in headers.values() for entry in header.values())
    places = {name: shard for shard, header in headers.items() for name in header}
    write_json(made, {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))})


def _lock(row: ModelRow, weights: Weights, to: Target, staging: Path) -> Lock:
    paths = sorted(path for path in staging.rglob("*") if path.is_file())
    files = {path.relative_to(staging).as_posix(): locked(path, hash_file(path)) for path in paths}
    published = weights.lock(row.id)
    revision = published.revision if published is not None else ""
    return Lock(row.id, "convert", row.repository, revision, now(), to, files)
