"""Effigy's backend: one photo to a rigged Gaussian avatar. Knows torch, never bpy."""

__version__ = "0.1.0"
