"""Packages and models that the user may add: what each is for, whether it is here, and what happens without it.

Nothing of them is reimplemented. An adapter imports its package when it is used, inside `guarded`, so that whatever the
package would do by habit (unpickle a checkpoint, run code from the network) is refused in one line instead.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from backend.diffusion import gate
from backend.errors import INSTALL_MODELS, MODEL_MISSING, UserError


@dataclass(frozen=True)
class Addition:
    """Something that makes results better when it is there.

    Attributes:
        model_id: Row of the registry whose folder holds its weights; empty where it has none.
        name: For people.
        role: What it does.
        module: Name under which it is imported; "transformers" and "diffusers" come with the extra `diffusion`.
        install: Command that brings the package.
        fallback: What is done without it.
        licence: Of its code; that of its weights is in the registry.
    """

    model_id: str
    name: str
    role: str
    module: str
    install: str
    fallback: str
    licence: str


ADDITIONS: tuple[Addition, ...] = (
    Addition("marigold-normals", "Marigold normals", "normals of a picture", "diffusers", INSTALL_MODELS,
             "normals come from the fitted body alone", "Apache-2.0"),
    Addition("depth-anything", "Depth Anything 2 small", "depth of a picture", "transformers", INSTALL_MODELS,
             "depth comes from the fitted body alone", "Apache-2.0"),
    Addition("moge2", "MoGe-2", "points in metres, normals, field of view", "moge",
             "pip install git+https://github.com/microsoft/MoGe.git",
             "Marigold and Depth Anything, else the fitted body", "MIT"),
    Addition("dinov2-small", "DINOv2", "picture features", "transformers", INSTALL_MODELS,
             "the photo-only methods do without", "Apache-2.0"),
    Addition("clip-l", "CLIP", "similarity of pictures and texts", "transformers", INSTALL_MODELS,
             "the photo-only methods do without", "Apache-2.0"),
    Addition("lpips-vgg", "LPIPS", "perceptual loss", "safetensors", INSTALL_MODELS,
             "a pyramid of colour and slope differences", "BSD-2-Clause"),
    Addition("auraface", "AuraFace (insightface)", "identity of a face", "insightface", INSTALL_MODELS,
             "faces are held by landmarks and colours; no identity is measured", "MIT"),
    Addition("triposplat", "TripoSplat", "one picture to Gaussians", "triposplat",
             "git clone https://github.com/VAST-AI-Research/TripoSplat and put the folder on PYTHONPATH",
             "TRELLIS, else SV3D with a fit, else the silhouette-inflated shape", "MIT"),
    Addition("trellis", "TRELLIS", "one picture to Gaussians", "trellis",
             "git clone https://github.com/microsoft/TRELLIS, run its setup.sh and put the folder on PYTHONPATH",
             "TripoSplat, else SV3D with a fit, else the silhouette-inflated shape", "MIT"),
    Addition("matting", "ViTMatte", "soft edges of hair", "transformers", INSTALL_MODELS,
             "the mask of mediapipe refined along the picture's edges", "Apache-2.0"),
    Addition("parsing", "SegFormer or Sapiens 2", "clothes, skin and hair by pixel", "transformers", INSTALL_MODELS,
             "labels from colour models seeded at the landmarks", "Apache-2.0"),
    Addition("restoration", "GFPGAN by spandrel", "face super-resolution", "spandrel",
             "pip install spandrel==0.4.2 einops torchvision==0.28.0", "the face keeps the photo's resolution", "MIT"),
    Addition("albedo", "Marigold intrinsics", "colours without light", "diffusers", INSTALL_MODELS,
             "light is taken out by the fitted body's shading", "Apache-2.0"),
    Addition("sam3d-body", "SAM 3D Body", "body pose", "sam_3d_body",
             "accept the SAM License, git clone https://github.com/facebookresearch/sam-3d-body and "
             "put the folder on PYTHONPATH", "the pose landmarks of mediapipe", "SAM License"),
)  # fmt: skip


@dataclass(frozen=True)
class Availability:
    """One line of the doctor's table.

    Attributes:
        name: For people.
        role: What it does.
        installed: Package and weights are here.
        fallback: What is done without it.
        next_step: What would bring it; empty where it is installed.
    """

    name: str
    role: str
    installed: bool
    fallback: str
    next_step: str


def addition(model_id: str) -> Addition:
    """The row of an addition.

    Raises:
        KeyError: If there is none (a defect of ours).
    """
    return {row.model_id: row for row in ADDITIONS}[model_id]


def available(installed: Callable[[str], bool]) -> tuple[Availability, ...]:
    """All additions, for `doctor`; imports nothing.

    Args:
        installed: Whether a model's weights are here, such as `Weights.default().installed`.
    """
    table = []
    for row in ADDITIONS:
        package, weights = is_installed(row.module), installed(row.model_id)
        step = "" if package and weights else row.install if not package else _weights_step(row.model_id)
        table.append(Availability(row.name, row.role, package and weights, row.fallback, step))
    return tuple(table)


def is_installed(module: str) -> bool:
    """Whether a package could be imported; it is not."""
    try:
        return module in sys.modules or importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):  # a parent package that is broken or half loaded
        return False


def require(model_id: str) -> ModuleType:
    """Import the package of an addition; call it inside `guarded`.

    Raises:
        UserError: Code 3 with the command that installs it and what is done without it.
    """
    row = addition(model_id)
    gate.quiet_imports()
    if not is_installed(row.module):
        raise UserError(f"{row.name} is not installed: {row.install}; without it: {row.fallback}", MODEL_MISSING)
    try:
        return importlib.import_module(row.module)
    except ImportError as error:
        raise UserError(
            f"{row.name} is installed, but {error}; repair it ({row.install}); without it: {row.fallback}",
            MODEL_MISSING,
        ) from error


@contextmanager
def guarded(name: str, hub: Callable[..., Any] | None = None) -> Iterator[None]:
    """While a foreign package loads: it unpickles nothing, runs no code from the network and none from archives.

    The functions are replaced for the whole process; loading is never done by two threads at once.

    Args:
        name: Of the package, for the refusal.
        hub: Stands in for `torch.hub.load`, where the package gets a part of itself through it.

    Raises:
        UserError: Code 3 from inside, when the package tries.
    """
    import numpy as np
    import torch

    def refuse(what: str) -> Callable[..., Any]:
        def refused(*_: object, **__: object) -> Any:
            raise UserError(
                f"{name} wants to open {what}, which can run code; bring its weights as safetensors",
                MODEL_MISSING,
                "BAD_MODEL",
            )

        return refused

    plain = np.load

    def plain_arrays(*args: Any, **kwargs: Any) -> Any:
        if kwargs.get("allow_pickle"):
            return refuse("a pickled array")()
        return plain(*args, **kwargs)

    changes: list[tuple[Any, str, Any]] = [
        (torch, "load", refuse("a pickled checkpoint")),
        (torch.jit, "load", refuse("a TorchScript archive")),
        (torch.hub, "load", hub or refuse("code from a hub")),
        (torch.hub, "load_state_dict_from_url", refuse("a checkpoint from the network")),
        (torch.hub, "download_url_to_file", refuse("a file from the network")),
        (np, "load", plain_arrays),
    ]
    before = [(place, attribute, getattr(place, attribute)) for place, attribute, _ in changes]
    for place, attribute, value in changes:
        setattr(place, attribute, value)
    try:
        yield
    finally:
        for place, attribute, value in before:
            setattr(place, attribute, value)


def only_file(folder: Path, pattern: str, what: str) -> Path:
    """The one file of a folder that matches.

    Raises:
        UserError: If there is none or more than one.
    """
    found = sorted(path for path in folder.glob(pattern) if path.is_file())
    if len(found) != 1:
        raise UserError(
            f"{what} needs one {pattern} in {folder.name}, not {len(found)}; import the model again", MODEL_MISSING
        )
    return found[0]


def _weights_step(model_id: str) -> str:
    from backend.diffusion import registry

    fetchable = registry.row(model_id).fetchable
    return f"python -m backend models {f'fetch {model_id}' if fetchable else f'import {model_id} FOLDER'}"
