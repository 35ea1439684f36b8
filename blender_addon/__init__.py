"""Effigy: one photo to a rigged Gaussian avatar.

Nothing here imports Blender before `register`, so that the backend can import `blender_addon.shared` as it stands.
"""

from __future__ import annotations

_PACKAGE = __package__ or ""
ADDON_ID: str = ".".join(_PACKAGE.split(".")[:3]) if _PACKAGE.startswith("bl_ext.") else _PACKAGE
"""`bl_ext.<repository>.effigy` as an extension, the package name in a checkout; preferences and user folders use it."""


def register() -> None:
    """Add the operators, the panel and the load handler to Blender."""
    from . import registration

    registration.register()


def unregister() -> None:
    """Remove what `register` added; tolerant of what is already gone."""
    from . import registration

    registration.unregister()
