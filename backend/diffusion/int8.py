"""8-bit weights on the disk: symmetric, one scale per row of a matrix.

In a file, a matrix `NAME` [rows, columns] is stored as I8 and beside it `NAME.int8_scale` F32 [rows]; the matrix is
their product, row by row. A scale is the row's largest magnitude / 127, so zero stays zero and the error is at most
half a step. Everything else in the file is as it is in the 16-bit copy.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import torch
    from torch import Tensor

SCALE: Final = ".int8_scale"
"""Ending of the scales' name."""

_MAX: Final = 127


def quantise(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """A matrix [rows, columns] as int8 [rows, columns] and scales float32 [rows]; a row of zeros has scale 1."""
    import torch

    rows = matrix.to(torch.float32)
    largest = rows.abs().amax(dim=1)
    scales = torch.where(largest > 0, largest / _MAX, torch.ones_like(largest))
    return (rows / scales[:, None]).round().clamp(-_MAX, _MAX).to(torch.int8), scales


def dequantise(values: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    """The matrix [rows, columns] in `dtype`, of int8 values and float32 scales [rows]."""
    import torch

    return (values.to(torch.float32) * scales[:, None]).to(dtype)


def restore(tensors: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """The tensors of one file under their own names, its 8-bit matrices in `dtype`; files without any pass unchanged.

    Raises:
        ValueError: If a matrix lacks its scales, or scales their matrix.
    """
    import torch

    plain = {name: tensor for name, tensor in tensors.items() if not name.endswith(SCALE)}
    for name in (name.removesuffix(SCALE) for name in tensors if name.endswith(SCALE)):
        values, scales = plain.get(name), tensors[name + SCALE]
        if values is None or values.dtype != torch.int8 or scales.shape != values.shape[:1]:
            raise ValueError(f"{name} and its scales do not belong together")
        plain[name] = dequantise(values, scales, dtype)
    return plain
