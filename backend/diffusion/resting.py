"""Weights that rest in a file and are mapped, not read, while their layer works.

accelerate's hooks do the exchange; here are the file (safetensors, each tied weight once) and the choice of what comes
together. A forward pass leaves nothing of the weights in memory but pages that the system may drop at any time.
"""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn


class Resting(Mapping[str, Tensor]):
    """The tensors of one safetensors file, mapped when they are asked for; tied ones under each of their names."""

    def __init__(self, path: Path, first_names: Mapping[str, str]) -> None:
        """Map a file.

        Args:
            path: Of the file.
            first_names: Every name of a tensor, and the one under which it lies in the file.
        """
        from safetensors import safe_open

        self._file: Any = safe_open(path, framework="pt", device="cpu")
        self._first = first_names

    def __getitem__(self, name: str) -> Tensor:
        """A view of the file."""
        return self._file.get_tensor(self._first[name])

    def __iter__(self) -> Iterator[str]:
        """All names."""
        return iter(self._first)

    def __len__(self) -> int:
        """How many names."""
        return len(self._first)


def rest_on_disk(
    module: nn.Module, device: str, together: Literal["none", "model", "group", "sequential"], folder: Path | None
) -> None:
    """Write the weights to a file and let them come to the device only while they work.

    Args:
        module: Any; adapters have to be in it already. Its weights are on the meta device afterwards.
        device: Where it works.
        together: What comes at a time: the whole model, a block, or a layer.
        folder: Parent of the file's folder, which goes with the module; None for the system's temporary one.
    """
    from accelerate.hooks import AlignDevicesHook, add_hook_to_module, attach_align_device_hook
    from safetensors.torch import save_file

    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    place = Path(tempfile.mkdtemp(prefix="resting-", dir=folder))
    weakref.finalize(module, shutil.rmtree, place, ignore_errors=True)
    path = place / "weights.safetensors"
    state, names = module.state_dict(), first_names(module)
    save_file({name: state[name].contiguous() for name in dict.fromkeys(names.values())}, path)
    common = {"execution_device": torch.device(device), "offload": True, "offload_buffers": False}
    resting = Resting(path, names)
    if together == "model":
        # One hook, which pipelines ask for the device: in a chain of hooks they would not find it.
        add_hook_to_module(
            module, AlignDevicesHook(**common, weights_map=resting, place_submodules=True, io_same_device=True)
        )
        return
    whole = sorted({type(block).__name__ for block in blocks(module)}) if together == "group" else None
    add_hook_to_module(module, AlignDevicesHook(io_same_device=True), append=True)
    attach_align_device_hook(module, **common, weights_map=resting, preload_module_classes=whole)


def first_names(module: nn.Module) -> dict[str, str]:
    """Every name in the state and the first name of the same numbers."""
    first: dict[tuple[int, torch.Size], str] = {}
    return {name: first.setdefault((t.data_ptr(), t.shape), name) for name, t in module.state_dict().items()}


def blocks(module: nn.Module) -> list[nn.Module]:
    """The repeated parts: of the classes that the model itself names, else the children of its lists."""
    for attribute in ("_repeated_blocks", "_no_split_modules"):
        names = set(getattr(module, attribute, None) or ())
        found = [part for part in module.modules() if type(part).__name__ in names]
        if found:
            return found
    lists = [part for part in module.modules() if isinstance(part, nn.ModuleList | nn.Sequential)]
    return [child for part in lists for child in part]
