"""What the preferences say to the backend: which Python, which folders, which arguments."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import bpy

from . import ADDON_ID
from .link import environments
from .link.backend_python import backend_environment, find_backend_python


def preferences(context: bpy.types.Context) -> Any:
    """The add-on's preferences; None where it runs from a checkout without being enabled as an add-on."""
    addon = context.preferences.addons.get(ADDON_ID)
    return addon.preferences if addon is not None else None


def user_folder() -> Path:
    """The extension's own folder, which survives updates; made if it is missing."""
    if ADDON_ID.startswith("bl_ext."):
        return Path(bpy.utils.extension_path_user(ADDON_ID, create=True))
    return Path(bpy.utils.user_resource("DATAFILES", path="effigy", create=True))


def chosen_path(context: bpy.types.Context, name: str) -> Path | None:
    """A path of the preferences; None where it is empty."""
    own = preferences(context)
    text = getattr(own, name, "") if own is not None else ""
    return Path(bpy.path.abspath(text)) if text else None


def backend_python(context: bpy.types.Context) -> Path:
    """The Python that runs the backend: the preferences' choice, else the usual places.

    Raises:
        NoBackendError: If there is none; one line.
    """
    given = chosen_path(context, "backend_python")
    return find_backend_python(str(given) if given else None, environments_root(context))


def environments_root(context: bpy.types.Context) -> Path:
    """Folder of the backend's environments."""
    return chosen_path(context, "environment_folder") or environments.environments_folder(user_folder())


def jobs_folder(context: bpy.types.Context) -> Path:
    """Folder of the jobs."""
    return chosen_path(context, "jobs_folder") or user_folder() / "jobs"


def models_folder(context: bpy.types.Context) -> Path:
    """Folder of the pretrained models."""
    return chosen_path(context, "models_folder") or user_folder() / "models"


def is_installed(context: bpy.types.Context, *models: str) -> bool:
    """Whether one of these models lies in the folder of models, in any storage; looks at names only."""
    folder = models_folder(context)
    names = (f"{model}{kind}" for model in models for kind in ("", "@bf16", "@int8"))
    return any((folder / f"{name}.lock.json").is_file() for name in names)


def backend_variables(context: bpy.types.Context) -> dict[str, str]:
    """Environment variables of the backend's processes."""
    return backend_environment(user_folder() / "cache") | {"EFFIGY_MODELS": str(models_folder(context))}


def serve_arguments(context: bpy.types.Context) -> list[str]:
    """What `serve` is told by the preferences: memory, device, own body, no network without Blender's online access."""
    own = preferences(context)
    out = [] if online() else ["--offline"]
    if own is not None and own.memory_gb > 0:
        out += ["--memory-gb", f"{own.memory_gb:g}"]
    if own is not None and own.device != "auto":
        out += ["--device", own.device]
    if body := chosen_path(context, "smplx_file"):
        out += ["--smplx", str(body)]
    return out


def online() -> bool:
    """Whether Blender may use the network."""
    return bool(getattr(bpy.app, "online_access", False))


def pythons_of_blender() -> tuple[Path, ...]:
    """Where Blender's own Python lies, unless it is the system's."""
    own = Path(sys.prefix)
    return () if own in (Path("/usr"), Path("/usr/local")) else (own,)
