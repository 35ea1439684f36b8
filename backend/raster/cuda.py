"""The CUDA back-end: gsplat, where it really works."""

from __future__ import annotations


def why_not() -> str:
    """Why gsplat cannot be used here, in one line; empty if it can."""
    return "this version has none"
