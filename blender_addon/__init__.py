"""Effigy: one photo to a rigged Gaussian avatar.

Nothing here imports Blender before `register`, so that the backend can import `blender_addon.shared` as it stands.
"""

from __future__ import annotations

ADDON_ID: str = ".".join(__package__.split(".")[:3]) if (__package__ or "").startswith("bl_ext.") else __package__ or ""
"""`bl_ext.<repository>.effigy` as an extension, the package name in a checkout; preferences and user folders use it."""


def register() -> None:
    """Add the operators, the panel and the load handler to Blender."""
    from . import registration

    registration.register()


def unregister() -> None:
    """Remove what `register` added; tolerant of what is already gone."""
    from . import registration

    registration.unregister()
