"""The type of numpy arrays in the contract: shapes and element types stand in names and docstrings."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]
"""Any array. numpy's own generic is only half known to type checkers without an element type."""

__all__ = ["Array"]
