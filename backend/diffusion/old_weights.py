"""A weights file of the old kind, which a user brings, as safetensors; once, and in a process of its own.

Models are never read from such files. This command is: it reads tensors only (torch's `weights_only`, which refuses
everything else), in a process without Effigy's jobs, keys or network, and writes what the gate accepts.

    python -m backend.diffusion.old_weights IN.bin OUT.safetensors
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from backend.errors import UserError

PATIENCE_S = 300.0
"""A file of some hundred megabytes takes seconds."""


def convert_old(source: Path, target: Path) -> None:
    """Write the tensors of `source` to the safetensors file `target`, in a process of its own.

    Args:
        source: A `.bin`, `.pt`, `.pth` or `.ckpt` of torch, such as IP-Adapter-FaceID's.
        target: Written as a whole or not at all.

    Raises:
        UserError: If the file holds anything else than tensors.
    """
    command = [sys.executable, "-P", "-s", "-m", "backend.diffusion.old_weights", str(source), str(target)]
    root = Path(__file__).resolve().parents[2]
    try:
        done = subprocess.run(
            command, env=_environment(root), capture_output=True, text=True, timeout=PATIENCE_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise UserError(f"{source.name} was not converted within {PATIENCE_S:.0f} s") from error
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or ["it ended without a word"])[-1]
        raise UserError(f"{source.name} cannot be converted: {reason[:200]}; it must hold tensors and nothing else")


def _environment(root: Path) -> dict[str, str]:
    """Only what Python needs to start: no tokens, no proxies."""
    import os

    kept = {name: os.environ[name] for name in ("PATH", "SYSTEMROOT", "TEMP", "TMP", "HOME") if name in os.environ}
    return {**kept, "PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1"}


def main(arguments: list[str]) -> int:
    """Convert one file: the part that runs in a process of its own."""
    import torch
    from safetensors.torch import save_file

    from backend.offline import forbid_connections

    source, target = (Path(argument) for argument in arguments)
    forbid_connections()
    tensors = dict(named_tensors(torch.load(source, map_location="cpu", weights_only=True)))
    if not tensors:
        raise ValueError("there are no tensors in it")
    unfinished = target.with_name(f"{target.name}.part")
    save_file(tensors, unfinished)
    unfinished.replace(target)
    return 0


def named_tensors(content: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Tensors of nested dictionaries under their dotted names, each with memory of its own.

    Raises:
        ValueError: If there is anything else.
    """
    import torch

    if isinstance(content, torch.Tensor):
        yield prefix, content.detach().clone().contiguous()
    elif isinstance(content, dict) and all(isinstance(key, str) for key in content):
        for key, value in content.items():
            yield from named_tensors(value, f"{prefix}.{key}" if prefix else key)
    else:
        raise ValueError(f"{prefix or 'the file'} is a {type(content).__name__}, no tensor")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
