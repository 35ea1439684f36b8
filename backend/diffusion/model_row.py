"""What is known about one pretrained model; `registry` holds the table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Preset = Literal["8gb", "12gb", "24gb", "48gb", "apple", "cpu"]
"""Memory of the device that a row's figures are for."""

Role = Literal[
    "base", "inpainting", "control", "identity adapter", "multi-view", "orbit", "video", "edit", "surface", "features",
    "perceptual", "identity", "lift", "body pose", "matting", "parsing", "restoration", "albedo",
]  # fmt: skip
"""What a model does for a method; see `interfaces`."""


@dataclass(frozen=True)
class ModelFile:
    """One file of a repository.

    Attributes:
        path: In the repository, with "/"; "*" stands for any text without "/" (shards whose number is not known here).
        bytes: Its size; None where unknown.
        sha256: 64 hex digits; None where unknown.
    """

    path: str
    bytes: int | None = None
    sha256: str | None = None


@dataclass(frozen=True)
class Licence:
    """Terms of a model's weights.

    Attributes:
        name: SPDX identifier or the licence's own name; what the user accepts.
        url: Where its text is; empty where unknown.
        commercial: Commercial use is allowed (perhaps under conditions: see the row's note).
    """

    name: str
    url: str
    commercial: bool


@dataclass(frozen=True)
class Memory:
    """Gigabytes (1e9 bytes) of weights that stay on the device at one time, by preset; activations come on top.

    None: not offered there, or unknown. Computed from the parameter counts of the classes, not measured.
    """

    gb8: float | None = None
    gb12: float | None = None
    gb24: float | None = None
    gb48: float | None = None
    apple: float | None = None
    cpu: float | None = None


@dataclass(frozen=True)
class ModelRow:
    """One model.

    Attributes:
        id: Its name here: the folder's name and the word for `python -m backend models`.
        role: What it does.
        title: For people.
        terms: Its licence.
        memory: On the device.
        note: What people must know, what is unknown included.
        repository: "owner/name" on the hub; empty where the user brings the files.
        files: What is fetched; empty where nothing is.
        revision: 40 hex digits of the commit; None where the first download records it.
        gated: The hub asks for an account that accepted the licence.
    """

    id: str
    role: Role
    title: str
    terms: Licence
    memory: Memory
    note: str
    repository: str = ""
    files: tuple[ModelFile, ...] = ()
    revision: str | None = None
    gated: bool = False

    @property
    def licence(self) -> str:
        """Name of the licence."""
        return self.terms.name

    @property
    def licence_url(self) -> str:
        """Where the licence's text is."""
        return self.terms.url

    @property
    def commercial(self) -> bool:
        """Whether commercial use is allowed."""
        return self.terms.commercial

    @property
    def memory_gb(self) -> dict[Preset, float | None]:
        """Gigabytes of weights on the device, by preset."""
        at = self.memory
        return {"8gb": at.gb8, "12gb": at.gb12, "24gb": at.gb24, "48gb": at.gb48, "apple": at.apple, "cpu": at.cpu}

    @property
    def fetchable(self) -> bool:
        """Whether `models fetch` can get it."""
        return bool(self.repository and self.files)
