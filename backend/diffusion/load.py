"""From a folder in the published layout to a model that works, and nothing but tensors on the way.

Every file passes the gate first; classes are named by the caller and never by the files; what a file has too much or
too little is an error with its name, not a warning. Loading stops between components and between shards.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from backend.context import Context
from backend.diffusion import gate, int8
from backend.diffusion.interfaces import Source
from backend.diffusion.placement import Placement, place
from backend.errors import MODEL_MISSING, UserError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

M = TypeVar("M", bound="nn.Module")

STEMS = ("diffusion_pytorch_model", "model")
"""Names of weights files as diffusers and transformers publish them."""

VARIANT = "fp16"
"""The 16-bit variant: taken where a folder has nothing else, or where it is asked for."""

AGAIN = "fetch it again: python -m backend models verify"


class Folders(Protocol):
    """Where models lie: `weights.Weights`, or a test's own."""

    def folder(self, model_id: str) -> Path:
        """Local folder in the published layout.

        Raises:
            UserError: Code 3 if the model is not there.
        """
        ...

    def source(self, model_id: str) -> Source:
        """What it is, for the result."""
        ...


def load(
    cls: type[M],
    folder: Path,
    subfolder: str | None = None,
    *,
    placement: Placement,
    variant: str | None = None,
    context: Context | None = None,
    spare: Sequence[str] = (),
) -> M:
    """A model of diffusers or transformers, ready to work: evaluation mode, no gradients for its weights.

    Args:
        cls: The class itself; what the folder's config names is not looked at.
        folder: Of the whole model.
        subfolder: Of this component.
        placement: Where it goes.
        variant: "fp16" for `*.fp16.safetensors`; None takes the plain file, or the variant if there is no plain one.
        context: For cancelling.
        spare: Regular expressions of tensors that the file may have beyond what the class needs, such as the other
            half of CLIP.

    Raises:
        UserError: If a file is missing, fails the gate, or does not hold exactly this model's tensors.
        Cancelled: Between shards.
    """
    base = folder / subfolder if subfolder else folder
    context = context or Context.quiet()
    context.raise_if_cancelled()
    gate.check_folder(base)
    gate.quiet_imports()
    from diffusers.models.modeling_utils import ModelMixin

    files, variant = weights_files(base, variant)
    for file in files:
        gate.check_safetensors(file)
    if issubclass(cls, ModelMixin):
        model = _load_diffusers(cls, base, files, placement.dtype, context, spare)
    else:
        model = _load_transformers(cls, base, files, placement.dtype, variant, spare)
    context.raise_if_cancelled()
    model.eval().requires_grad_(False)
    return place(model, placement)


def weights_files(base: Path, variant: str | None = None) -> tuple[list[Path], str | None]:
    """The safetensors files of one component, in order, and the variant that they are.

    Args:
        base: Folder of the component.
        variant: As in `load`.

    Raises:
        UserError: Code 3 if there are none or a shard is missing.
    """
    for tried in (variant,) if variant else (None, VARIANT):
        dot = f".{tried}" if tried else ""
        for stem in STEMS:
            single = base / f"{stem}{dot}.safetensors"
            if single.is_file():
                return [single], tried
            for index in (base / f"{stem}.safetensors.index{dot}.json", base / f"{stem}{dot}.safetensors.index.json"):
                if index.is_file():
                    return _shards(index), tried
    wanted = f"{STEMS[0]}{f'.{variant}' if variant else ''}.safetensors"
    raise UserError(f"there is no {wanted} in {_short(base)}; fetch the model: python -m backend models", MODEL_MISSING)


def _shards(index: Path) -> list[Path]:
    try:
        names = sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{_short(index)} lists no shards ({error}); {AGAIN}") from error
    files = [index.parent / name for name in names]
    for file in files:
        # A shard lies beside its index: a list cannot point elsewhere.
        if file.name != str(file.relative_to(index.parent)) or not file.is_file():
            raise UserError(f"{_short(index)} names {file.name}, which is not beside it; {AGAIN}", MODEL_MISSING)
    return files


def read_tensors(path: Path, context: Context | None = None) -> dict[str, Tensor]:
    """All tensors of one safetensors file, on the CPU; matrices that `models convert` stored in 8 bits as bfloat16.

    Raises:
        UserError: If the file fails the gate.
    """
    import torch
    from safetensors.torch import load_file

    if context is not None:
        context.raise_if_cancelled()
    gate.check_safetensors(path)
    try:
        return int8.restore(load_file(path), torch.bfloat16)
    except ValueError as error:
        raise UserError(f"{_short(path)}: {error}; {AGAIN}", MODEL_MISSING, "BAD_MODEL") from error


def read_shapes(paths: Sequence[Path]) -> dict[str, tuple[int, ...]]:
    """Names and shapes from the headers of checked files; scales of 8-bit matrices belong to these."""
    from safetensors import safe_open

    shapes: dict[str, tuple[int, ...]] = {}
    for path in paths:
        with safe_open(path, framework="pt") as file:
            names = [name for name in file.keys() if not name.endswith(int8.SCALE)]  # noqa: SIM118
            shapes |= {name: tuple(file.get_slice(name).get_shape()) for name in names}
    return shapes


def adopt(
    model: nn.Module, tensors: Mapping[str, Tensor], dtype: torch.dtype, where: str, spare: Sequence[str] = ()
) -> None:
    """Give a module exactly these tensors.

    Args:
        model: May have been made on the meta device.
        tensors: By the module's own names.
        dtype: For the floating ones.
        where: What the tensors come from, for the error.
        spare: As in `load`.

    Raises:
        UserError: If a tensor is missing, left over or of another shape.
    """
    check_names(model, {name: tuple(tensor.shape) for name, tensor in tensors.items()}, where, spare)
    wanted = model.state_dict()
    parts = {name: _cast(tensor, dtype) for name, tensor in tensors.items() if name in wanted}
    model.load_state_dict(parts, strict=False, assign=True)


def check_names(model: nn.Module, found: Mapping[str, tuple[int, ...]], where: str, spare: Sequence[str] = ()) -> None:
    """The tensors of a file are those of the model.

    Raises:
        UserError: One line with the file's name, the first offender and how many more there are.
    """
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    name = type(model).__name__
    if missing := [key for key in wanted if key not in found]:
        raise UserError(f"{where} lacks {missing[0]}{_more(missing)}, which {name} needs; {AGAIN}")
    surplus = [key for key in found if key not in wanted and not any(re.search(pattern, key) for pattern in spare)]
    if surplus:
        raise UserError(f"{where} has {surplus[0]}{_more(surplus)}, which {name} does not know; {AGAIN}")
    if other := [key for key, shape in wanted.items() if found[key] != shape]:
        key = other[0]
        raise UserError(
            f"{where}: {key} has shape {list(found[key])}, {name} needs {list(wanted[key])}{_more(other)}; {AGAIN}"
        )


def _load_diffusers(
    cls: type[Any], base: Path, files: list[Path], dtype: torch.dtype, context: Context, spare: Sequence[str]
) -> Any:
    """Shard by shard, so that a job can be cancelled in between and one shard at a time is in memory twice."""
    from accelerate import init_empty_weights

    where = _short(files[0]) if len(files) == 1 else _short(base)
    with init_empty_weights():
        model = cls.from_config(_config(cls, base))
    # Old files call the parts of attention otherwise; diffusers knows how to rename them.
    found = read_shapes(files)
    model._fix_state_dict_keys_on_load(found)
    check_names(model, found, where, [*spare, *(cls._keys_to_ignore_on_load_unexpected or ())])
    full = tuple(cls._keep_in_fp32_modules or ())
    wanted = set(model.state_dict())
    for file in files:
        tensors = read_tensors(file, context)
        model._fix_state_dict_keys_on_load(tensors)
        kept = {name: _cast(t, dtype, name, full) for name, t in tensors.items() if name in wanted}
        model.load_state_dict(kept, strict=False, assign=True)
    return model


def _config(cls: type[Any], base: Path) -> Any:
    try:
        return cls.load_config(base, local_files_only=True)
    except (OSError, ValueError) as error:
        raise UserError(f"{_short(base / 'config.json')} cannot be read ({error}); {AGAIN}", MODEL_MISSING) from error


def _load_transformers(
    cls: type[Any], base: Path, files: list[Path], dtype: torch.dtype, variant: str | None, spare: Sequence[str]
) -> Any:
    """By transformers' own loader: it renames between its versions, and knows ties and buffers."""
    where = _short(files[0]) if len(files) == 1 else _short(base)
    try:
        with _quiet():
            model, about = cls.from_pretrained(
                base,
                variant=variant,
                dtype=dtype,
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # told below, by name
            )
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        raise UserError(f"{where} is not a {cls.__name__} ({error}); {AGAIN}") from error
    name = cls.__name__
    if missing := sorted(about["missing_keys"]):
        raise UserError(f"{where} lacks {missing[0]}{_more(missing)}, which {name} needs; {AGAIN}")
    surplus = [key for key in sorted(about["unexpected_keys"]) if not any(re.search(p, key) for p in spare)]
    if surplus:
        raise UserError(f"{where} has {surplus[0]}{_more(surplus)}, which {name} does not know; {AGAIN}")
    if other := sorted(about["mismatched_keys"]):
        key, found, wanted = other[0]
        raise UserError(f"{where}: {key} has shape {list(found)}, {name} needs {list(wanted)}{_more(other)}; {AGAIN}")
    return model


class _quiet:
    """No bars and reports of transformers while it loads: ours say what matters."""

    def __enter__(self) -> None:
        from transformers.utils import logging

        self._level, self._bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
        logging.set_verbosity_error()
        logging.disable_progress_bar()

    def __exit__(self, *_: object) -> None:
        from transformers.utils import logging

        logging.set_verbosity(self._level)
        if self._bars:
            logging.enable_progress_bar()


def _cast(tensor: Tensor, dtype: torch.dtype, name: str = "", full: Sequence[str] = ()) -> Tensor:
    """In the working dtype; modules that are known to need float32 keep it, integers stay."""
    import torch

    if not tensor.is_floating_point():
        return tensor
    return tensor.to(torch.float32 if set(name.split(".")) & set(full) else dtype)


def _more(names: Sequence[object]) -> str:
    return f" and {len(names) - 1} more" if len(names) > 1 else ""


def _short(path: Path) -> str:
    """The last parts of a path: enough to find a file, without the user's folders."""
    return "/".join(path.parts[-3:])


def freed(device: str) -> None:
    """Give memory of what was just deleted back to the device."""
    import gc

    import torch

    gc.collect()
    if torch.device(device).type == "cuda":
        torch.cuda.empty_cache()
