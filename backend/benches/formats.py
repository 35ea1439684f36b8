"""Readers and writers of splat files against the bare transfer of their bytes."""

from __future__ import annotations

from backend.benches.measuring import Bench

BENCHES: dict[str, Bench] = {}
