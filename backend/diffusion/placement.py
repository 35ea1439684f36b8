"""Where a model's numbers lie while it works, so that it fits the memory there is.

`choose` goes down a ladder from fast to lean and takes the first rung that fits the budget; `place` carries it out:

- storage fp8: weights rest as float8 and are cast to the working dtype layer by layer (half the memory of 16 bits);
  int8 and nf4 are the same idea with better numbers and need an optional package.
- offload model: whole models by turns; group: blocks, with the next one on its way; sequential: single layers. On an
  accelerator they rest in the machine's memory, on the CPU in a file that is mapped, not read.
- tiling: pictures are decoded in pieces.
"""

from __future__ import annotations

import contextlib
import importlib.util
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import nn

from backend import memory
from backend.context import Context
from backend.diffusion.resting import blocks, rest_on_disk
from backend.errors import FAILED, MODEL_MISSING, UserError

Storage = Literal["same", "fp8", "int8", "nf4"]
Offload = Literal["none", "model", "group", "sequential"]
Preset = Literal["8gb", "12gb", "24gb", "48gb", "apple", "cpu"]

PRESET_BYTES: Mapping[Preset, int] = {"8gb": 8 * 10**9, "12gb": 12 * 10**9, "24gb": 24 * 10**9, "48gb": 48 * 10**9}
"""Memory of the card; what is free of it is the budget. Apple and CPU have what the machine has."""

QUANTISERS: Mapping[Storage, str] = {"int8": "torchao", "nf4": "bitsandbytes"}
"""Optional packages behind a storage."""

FP8 = torch.float8_e4m3fn

GROUP_SHARE = 0.12
"""Part of a model that lies on the device under group offload: two blocks of about forty, and what is in no block."""

MANY_BLOCKS = 12
"""From here on blocks are small enough to travel whole."""

LEAF_SHARE = 0.02
"""The same under sequential offload: the largest layer."""

STORED_SHARE: Mapping[Storage, float] = {"same": 1.0, "fp8": 0.55, "int8": 0.55, "nf4": 0.32}
"""Against 16 bits, of a transformer; norms and embeddings keep theirs, a UNet's convolutions too under int8 and nf4."""

TILED_SHARE = 0.35
"""Working memory with tiles against without, where the decoder's picture is what fills it."""

T = TypeVar("T")


@dataclass(frozen=True)
class Placement:
    """Where and how a model's numbers lie.

    Attributes:
        device: Torch device on which the model works.
        dtype: In which it works.
        storage: In which its weights rest.
        offload: What leaves the device while it does not work.
        tiling: Pictures are decoded in tiles and one by one.
        folder: Where weights rest that lie neither on the device nor in memory; None: a temporary folder. On the CPU
            every offload uses it, on an accelerator only when it is given.
    """

    device: str = "cpu"
    dtype: torch.dtype = torch.float32
    storage: Storage = "same"
    offload: Offload = "none"
    tiling: bool = False
    folder: Path | None = None

    @property
    def differentiable(self) -> Placement:
        """The same for a model through which a gradient passes: its weights stay as and where they are.

        The backward pass reads the weights again, when a cast or moved copy of them is gone.
        """
        return replace(self, storage="same", offload="none")

    def __str__(self) -> str:
        """For a log or a table."""
        parts = [self.device, str(self.dtype).removeprefix("torch.")]
        parts += [] if self.storage == "same" else [f"stored as {self.storage}"]
        parts += [] if self.offload == "none" else [f"{self.offload} offload"]
        return ", ".join([*parts, "tiles"] if self.tiling else parts)


@dataclass(frozen=True)
class Footprint:
    """What a model takes, for a choice beforehand.

    Attributes:
        weights_bytes: All its parts at 16 bits.
        largest_bytes: The largest part that works at a time, at 16 bits.
        working_bytes: Activations at its usual picture size, beside the weights.
        dtype: Half precision that it was made for; float16 overflows in some transformers.
        castable: fp8 storage is harmless for it.
    """

    weights_bytes: int
    largest_bytes: int
    working_bytes: int
    dtype: torch.dtype = torch.float16
    castable: bool = True


def _gb(weights: float, largest: float, working: float, dtype: torch.dtype = torch.float16) -> Footprint:
    return Footprint(int(weights * 1e9), int(largest * 1e9), int(working * 1e9), dtype)


FOOTPRINTS: Mapping[str, Footprint] = {
    # Weights are counted from the classes themselves (exact); working memory is an estimate until it is measured with
    # `python -m backend bench diffusion_table`.
    "sd15": _gb(2.14, 1.72, 2.5),
    "sd15-inpaint": _gb(2.14, 1.72, 2.5),
    "sd15-control-adapter": _gb(4.2, 2.44, 3.0),
    "mvdream": _gb(2.6, 1.74, 2.5),
    "portrait": _gb(4.6, 1.77, 3.0),
    "portrait-split": _gb(4.6, 1.77, 2.0),
    "imagedream": _gb(3.9, 1.85, 2.8),
    "svd": _gb(4.51, 3.05, 6.0),
    "sv3d-u": _gb(4.51, 3.05, 5.0),
    "sv3d-p": _gb(4.51, 3.05, 5.0),
    "wan-animate": _gb(47.4, 34.6, 7.0, torch.bfloat16),
    "wan-vace": _gb(15.9, 11.4, 5.0, torch.bfloat16),
    "flux2-klein": _gb(15.9, 8.0, 3.0, torch.bfloat16),
    "marigold-normals": _gb(2.6, 1.74, 2.0),
    "depth-anything": _gb(0.05, 0.05, 0.5),
    "dinov2-small": _gb(0.05, 0.05, 0.2),
    "dinov2-base": _gb(0.18, 0.18, 0.3),
    "clip-l": _gb(0.86, 0.86, 0.3),
}
"""By the registry's ids; `sd15-control-adapter` is SD 1.5 with one control network and the face adapter, `portrait`
the same beside MVDream, without their text and image encoders, which have left by then, and `portrait-split` that with
both halves of the guidance one after the other."""


def preset_of(device: str, memory_bytes: int) -> Preset:
    """The memory preset of a machine.

    Args:
        device: "cpu", "mps" or "cuda" with or without a number.
        memory_bytes: Of the device.
    """
    kind = torch.device(device).type
    if kind in ("cpu", "mps"):
        return "cpu" if kind == "cpu" else "apple"
    # A card sold as 24 GB has 23.5e9 to 25.7e9 bytes, of which some are always taken.
    fitting: list[Preset] = [name for name, size in PRESET_BYTES.items() if memory_bytes >= 0.9 * size]
    return fitting[-1] if fitting else "8gb"


def budget_bytes(context: Context) -> int:
    """What a model may take of the context's device; 0 where the system does not tell."""
    if context.memory_bytes:
        return context.memory_bytes
    kind = torch.device(context.device).type
    return memory.budget("cuda" if kind == "cuda" else "cpu").allowed_bytes


def choose(footprint: Footprint | str, context: Context) -> Placement:
    """The fastest placement that fits.

    Args:
        footprint: The model's, or the id of one in `FOOTPRINTS`.
        context: Says the device and the budget.

    Raises:
        UserError: If not even the leanest fits; OUT_OF_MEMORY, with needed against allowed.
    """
    size = FOOTPRINTS[footprint] if isinstance(footprint, str) else footprint
    allowed = budget_bytes(context)
    rungs = ladder(size, context.device)
    for placement in rungs:
        if not allowed or needed_bytes(size, placement) <= allowed:
            return placement
    needed = needed_bytes(size, rungs[-1])
    raise UserError(
        f"the model needs {needed / 1e9:.1f} GB even in its leanest placement, {allowed / 1e9:.1f} GB may be used; "
        "raise the memory limit, close other programs or choose a smaller model",
        FAILED,
        "OUT_OF_MEMORY",
    )


def choose_for(preset: Preset, footprint: Footprint | str, context: Context) -> Placement:
    """`choose` for a machine of another size, as a table shows it; the share that others use is taken off."""
    if preset in PRESET_BYTES:
        context = replace(context, device="cuda", memory_bytes=int(PRESET_BYTES[preset] * memory.PRESET_SHARE["best"]))
    return choose(footprint, context)


def ladder(size: Footprint, device: str) -> list[Placement]:
    """All placements for a device, from fast to lean."""
    kind = torch.device(device).type
    if kind == "mps":
        # One memory for both processors: what leaves the device can only go to the disk. There is no float8.
        fast = Placement(device, size.dtype)
        return [fast, replace(fast, tiling=True), replace(fast, tiling=True, offload="sequential")]
    if kind == "cpu":
        # float32 is the fastest on most processors; then 16 bits, then the file.
        fast, half = Placement(device, torch.float32), Placement(device, torch.bfloat16, tiling=True)
        casts = [replace(half, storage="fp8")] if size.castable else []
        return [
            fast,
            replace(fast, tiling=True),
            half,
            *casts,
            replace(half, offload="group"),
            replace(half, offload="sequential"),
        ]
    fast = Placement(device, size.dtype)
    small: Storage = "fp8" if size.castable else "same"
    return list(
        dict.fromkeys(
            [
                fast,
                replace(fast, offload="model"),
                replace(fast, offload="model", tiling=True),
                replace(fast, offload="model", tiling=True, storage=small),
                replace(fast, offload="group", tiling=True),
                replace(fast, offload="group", tiling=True, storage=small),
                replace(fast, offload="sequential", tiling=True),
            ]
        )
    )


def needed_bytes(size: Footprint, placement: Placement) -> int:
    """Memory of the device that a placement takes at its peak, as estimated beforehand."""
    width = 2.0 if placement.dtype == torch.float32 else 1.0  # against 16 bits
    stored = STORED_SHARE[placement.storage] * (width if placement.storage == "same" else 1.0)
    resident = {
        "none": size.weights_bytes * stored,
        "model": size.largest_bytes * stored,
        "group": size.largest_bytes * stored * GROUP_SHARE,
        "sequential": size.largest_bytes * stored * LEAF_SHARE,
    }[placement.offload]
    return int(resident + size.working_bytes * width * (TILED_SHARE if placement.tiling else 1.0))


def place(thing: T, placement: Placement) -> T:
    """Put a model, or every model of a pipeline, where the placement says; in evaluation mode or not, as it was.

    Args:
        thing: A torch module, or a diffusers pipeline.
        placement: Where to.

    Returns:
        The same object.

    Raises:
        UserError: Code 3 where the placement needs a package that is not installed or a device that is not there.
    """
    check(placement)
    if isinstance(thing, nn.Module):
        _place_module(thing, placement)
        return thing
    parts = {name: part for name, part in _parts(thing).items() if isinstance(part, nn.Module)}
    if placement.offload == "model" and torch.device(placement.device).type != "cpu":
        for part in parts.values():
            _cast(part, placement.dtype)
            _store(part, _kept(part, placement))
        _pipeline(thing).enable_model_cpu_offload(device=placement.device)
    else:
        for part in parts.values():
            _place_module(part, placement)
    if placement.tiling:
        for part in parts.values():
            tile(part)
    return thing


def check(placement: Placement) -> None:
    """Whether a placement can be carried out here.

    Raises:
        UserError: Code 3, with the next step.
    """
    kind = torch.device(placement.device).type
    if kind == "cuda" and not torch.cuda.is_available():
        raise UserError("no CUDA device is here; choose the device cpu", MODEL_MISSING, "NO_DEVICE")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise UserError("no Apple GPU is here; choose the device cpu", MODEL_MISSING, "NO_DEVICE")
    if placement.storage == "fp8" and kind == "mps":
        raise UserError("Apple GPUs have no 8 bit floats; choose storage same", MODEL_MISSING, "NO_DEVICE")
    package = QUANTISERS.get(placement.storage)
    if package and importlib.util.find_spec(package) is None:
        raise UserError(
            f"storage {placement.storage} needs {package}: pip install {package}, or choose fp8", MODEL_MISSING
        )
    if placement.storage == "nf4" and kind != "cuda":
        raise UserError("storage nf4 needs a CUDA device; choose fp8", MODEL_MISSING, "NO_DEVICE")


def tile(part: nn.Module) -> None:
    """Let a decoder work in tiles and slices, where it can."""
    for name in ("enable_tiling", "enable_slicing"):
        enable: Callable[[], None] | None = getattr(part, name, None)
        if enable is not None:
            with contextlib.suppress(NotImplementedError):  # the library's decoder of SVD has the name only
                enable()


def resident_bytes(module: nn.Module, device: str | None = None) -> int:
    """Bytes of parameters and buffers that lie in memory now, each storage once.

    Args:
        module: Any.
        device: Only on this one; None: on all, but not those that are only promised (meta).
    """
    seen: dict[int, int] = {}
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.device.type == "meta" or (device is not None and tensor.device.type != torch.device(device).type):
            continue
        for part in _stored(tensor):
            seen[part.data_ptr()] = part.numel() * part.element_size()
    return sum(seen.values())


def _stored(tensor: torch.Tensor) -> list[torch.Tensor]:
    """The plain tensors behind one: a quantised weight has several, such as numbers and scales."""
    flatten = getattr(tensor, "__tensor_flatten__", None)
    return [tensor] if flatten is None else [getattr(tensor, name) for name in flatten()[0]]


@dataclass
class Peak:
    """The most memory that was taken, beside what was there before.

    Attributes:
        bytes: 0 until the measurement ends, and where the system does not tell.
    """

    bytes: int = 0


@contextmanager
def measured(device: str) -> Iterator[Peak]:
    """Measure the peak memory of what runs inside.

    Args:
        device: Where it runs. On CUDA the allocator is asked, on the CPU the process's resident memory (whose reset
            only Linux has), on Apple only the end is known.
    """
    kind, peak = torch.device(device).type, Peak()
    if kind == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        yield peak
        torch.cuda.synchronize(device)
        peak.bytes = torch.cuda.max_memory_allocated(device)
    elif kind == "mps":
        yield peak
        peak.bytes = torch.mps.driver_allocated_memory()
    else:
        memory.free_caches()
        memory.reset_peak()
        before = memory.resident_bytes()
        yield peak
        peak.bytes = max(memory.peak_bytes() - before, 0)


@contextmanager
def limited(context: Context) -> Iterator[Peak]:
    """`measured`, and the budget holds: on CUDA the allocator refuses more, elsewhere too much is told.

    Inside, running out is an ordinary out-of-memory error, which `memory.run_with_ladder` understands.
    """
    allowed, device = context.memory_bytes, torch.device(context.device)
    held, number = allowed > 0 and device.type == "cuda", device.index
    if held:
        number = torch.cuda.current_device() if number is None else number
        total = torch.cuda.get_device_properties(number).total_memory
        torch.cuda.set_per_process_memory_fraction(min(allowed / total, 1.0), number)
    try:
        with measured(context.device) as peak:
            yield peak
    finally:
        if held:
            torch.cuda.set_per_process_memory_fraction(1.0, number)
    if allowed and peak.bytes > allowed:
        context.warn(f"a model took {peak.bytes / 1e9:.1f} GB, more than the {allowed / 1e9:.1f} GB that it was given")


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Use so many processor threads inside; tiny models are fastest with one."""
    before = torch.get_num_threads()
    torch.set_num_threads(max(count, 1))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _parts(pipeline: object) -> Mapping[str, object]:
    components = getattr(pipeline, "components", None)
    if not isinstance(components, Mapping):
        raise TypeError(f"{type(pipeline).__name__} is neither a module nor a pipeline")
    return components


def _pipeline(thing: object) -> Any:
    return thing  # diffusers' pipelines share no typed base for what is called here


def _is_coder(part: nn.Module) -> bool:
    return "Autoencoder" in type(part).__name__


def _kept(part: nn.Module, placement: Placement) -> Placement:
    """Encoders and decoders of pictures keep their numbers, and their layers come one by one.

    They are small, their colours suffer from 8 bits, and the blocks of Wan's hand lists to each other to write into,
    of which the hooks around a block would make copies.
    """
    if not _is_coder(part):
        return placement
    return replace(
        placement, storage="same", offload="sequential" if placement.offload == "group" else placement.offload
    )


def _place_module(module: nn.Module, placement: Placement) -> None:
    check(placement)
    placement = _kept(module, placement)
    _cast(module, placement.dtype)
    kind = torch.device(placement.device).type
    if placement.offload == "none":
        if placement.storage in QUANTISERS:
            module.to(placement.device)
            _store(module, placement)
        else:
            _store(module, placement)
            module.to(placement.device)
    else:
        _store(module, placement)
        if kind in ("cpu", "mps") or placement.folder is not None:
            rest_on_disk(module, placement.device, placement.offload, placement.folder)
        else:
            _offload_to_memory(module, placement)
    if placement.tiling:
        tile(module)


def _cast(module: nn.Module, dtype: torch.dtype) -> None:
    """Into the working dtype; a model of mixed dtypes was loaded so on purpose, and keeps them."""
    present = {tensor.dtype for tensor in module.parameters() if tensor.is_floating_point()}
    if len(present) == 1 and present != {dtype}:
        module.to(dtype)


def _store(module: nn.Module, placement: Placement) -> None:
    if placement.storage == "fp8":
        from diffusers.hooks.layerwise_casting import DEFAULT_SKIP_MODULES_PATTERN, apply_layerwise_casting

        if hasattr(module, "enable_layerwise_casting"):
            _pipeline(module).enable_layerwise_casting(storage_dtype=FP8, compute_dtype=placement.dtype)
        else:
            # transformers takes the dtype of its first weights, the embeddings, for that in which a model works, and
            # T5 that of those which it wants in 32 bit: both keep theirs.
            full = tuple(rf"\b{re.escape(name)}\b" for name in getattr(module, "_keep_in_fp32_modules", None) or ())
            patterns = (*DEFAULT_SKIP_MODULES_PATTERN, *full)
            apply_layerwise_casting(module, FP8, placement.dtype, patterns, skip_modules_classes=(nn.Embedding,))
    elif placement.storage == "int8":
        from torchao.quantization import Int8WeightOnlyConfig, quantize_  # pyright: ignore[reportMissingImports]

        quantize_(module, Int8WeightOnlyConfig())
    elif placement.storage == "nf4":
        _store_as_nf4(module, placement.dtype)


def _store_as_nf4(module: nn.Module, dtype: torch.dtype) -> None:
    import bitsandbytes as bnb  # pyright: ignore[reportMissingImports]

    for parent in list(module.modules()):
        for name, layer in list(parent.named_children()):
            if type(layer) is not nn.Linear:
                continue
            packed = bnb.nn.Linear4bit(
                layer.in_features, layer.out_features, layer.bias is not None, compute_dtype=dtype, quant_type="nf4"
            )
            packed.weight = bnb.nn.Params4bit(layer.weight.data.cpu(), requires_grad=False, quant_type="nf4")
            packed.bias = layer.bias
            setattr(parent, name, packed.to(layer.weight.device))


def _offload_to_memory(module: nn.Module, placement: Placement) -> None:
    """To the machine's memory, from an accelerator."""
    if placement.offload == "model":
        from accelerate import cpu_offload

        # It comes for each call and goes after it: which model follows is known to a pipeline only.
        cpu_offload(module, torch.device(placement.device), preload_module_classes=[type(module).__name__])
    elif placement.offload == "group":
        from diffusers.hooks.group_offloading import apply_group_offloading

        # Streams bring the next part while this one works; pinned copies are made one part at a time. The blocks of a
        # UNet are few and large: its layers come one by one.
        stream = torch.device(placement.device).type == "cuda"
        apply_group_offloading(
            module,
            onload_device=torch.device(placement.device),
            offload_device=torch.device("cpu"),
            offload_type="block_level" if len(blocks(module)) >= MANY_BLOCKS else "leaf_level",
            num_blocks_per_group=1,
            use_stream=stream,
            low_cpu_mem_usage=True,
        )
    else:
        from accelerate import cpu_offload

        cpu_offload(module, torch.device(placement.device))
