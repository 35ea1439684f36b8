"""The folder of models on this machine: what is installed, where it lies, and whether it is still what was locked."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from backend.diffusion import gate, registry
from backend.diffusion.exclusive import exclusive
from backend.diffusion.lock import Lock, check, read_lock
from backend.diffusion.registry import ModelRow
from backend.errors import MODEL_MISSING, UserError
from backend.files import shown
from backend.user_folders import user_folder

if TYPE_CHECKING:
    from backend.diffusion.interfaces import Source

Storage = Literal["published", "bf16", "int8"]
"""How the weights of a folder are stored: as they were published, or converted once by `models convert`."""

STORAGES: tuple[Storage, ...] = ("published", "bf16", "int8")

FOLDER = "EFFIGY_MODELS"
"""Environment variable with the folder of models."""


def default_folder(environment: Mapping[str, str] = os.environ, platform: str = sys.platform) -> Path:
    """The folder of models: the variable EFFIGY_MODELS, else effigy/models in the user's data folder."""
    if environment.get(FOLDER):
        return Path(environment[FOLDER]).expanduser()
    return user_folder("data", environment, platform) / "models"


@dataclass(frozen=True)
class Weights:
    """The folder of models.

    Attributes:
        root: One folder per model inside, named by its id (converted ones: id@bf16, id@int8), its lock beside it.
    """

    root: Path

    @classmethod
    def default(cls) -> Weights:
        """The user's folder of models."""
        return cls(default_folder())

    def place(self, model_id: str, storage: Storage = "published") -> Path:
        """Where a model lies or would lie, there or not.

        Raises:
            UserError: If there is no such model.
        """
        name = registry.row(model_id).id
        return self.root / (name if storage == "published" else f"{name}@{storage}")

    def lock(self, model_id: str, storage: Storage = "published") -> Lock | None:
        """What was locked when it was installed; None if it is not."""
        return read_lock(self.place(model_id, storage))

    def busy(self, model_id: str) -> AbstractContextManager[None]:
        """While the block runs no other process changes the model; UserError if one does."""
        refusal = f"{model_id} is being changed by another process; wait for it"
        return exclusive(self.place(model_id).with_name(f"{model_id}.busy"), refusal)

    @contextmanager
    def staging(self, model_id: str) -> Iterator[Path]:
        """A new folder for a model in the making, removed at the end; what a process that died left is removed first.

        Raises:
            UserError: If another process changes the model.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        with self.busy(model_id):
            for left in self.root.glob(f".{model_id}.*"):
                shutil.rmtree(left, ignore_errors=True)
            folder = self.root / f".{model_id}.new"
            try:
                yield folder
            finally:
                shutil.rmtree(folder, ignore_errors=True)

    def partial_bytes(self, model_id: str) -> int:
        """What a fetch that did not end has brought so far."""
        folder = self.place(model_id)
        if self.lock(model_id) is not None or not folder.is_dir():
            return 0
        return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())

    def installed(self, model_id: str, storage: Storage | None = None) -> bool:
        """Whether a model is there (unread: `folder` looks closer); with no storage given, in any."""
        kinds = STORAGES if storage is None else (storage,)
        return any(self.lock(model_id, kind) is not None and self.place(model_id, kind).is_dir() for kind in kinds)

    def folder(self, model_id: str, storage: Storage | None = None) -> Path:
        """The folder of an installed model in its published layout, held against its lock and passed by the gate.

        Args:
            model_id: Row of the registry.
            storage: Which one; None takes what was converted to bf16 if it is there, else the published one, else
                the one in 8 bits (which loads as bfloat16).

        Raises:
            UserError: NO_MODEL if it is not installed, BAD_MODEL if a file changed; both name the command that helps.
        """
        row = registry.row(model_id)
        kinds: tuple[Storage, ...] = ("bf16", "published", "int8") if storage is None else (storage,)
        for kind in kinds:
            folder = self.place(model_id, kind)
            lock = read_lock(folder)
            if lock is not None and folder.is_dir():
                _hold(row, folder, lock)
                return folder
        raise UserError(missing(row, self, storage), MODEL_MISSING)

    def source(self, model_id: str) -> Source:
        """What goes into result.json about a model; its revision is what was locked, or the registry's."""
        from backend.diffusion.interfaces import Source  # knows torch, which listing models does not need

        row = registry.row(model_id)
        locks = (self.lock(model_id, kind) for kind in STORAGES)
        revision = next((lock.revision for lock in locks if lock is not None), row.revision or "")
        return Source(row.title, revision, row.licence, row.commercial)


def missing(row: ModelRow, weights: Weights, storage: Storage | None = None) -> str:
    """One line: a model is not there, where it belongs, and the command that brings it."""
    if storage in ("bf16", "int8"):
        step = f"run: python -m backend models convert {row.id} --to {storage}"
    elif row.fetchable:
        step = f"run: python -m backend models fetch {row.id}"
    else:
        where = row.licence_url or "see its note"
        step = f"get it yourself ({where}) and run: python -m backend models import {row.id} FOLDER"
    first = (
        f"{row.files[0].path} and the rest" if len(row.files) > 1 else row.files[0].path if row.files else "its files"
    )
    place = f"{first} belong into {shown(weights.place(row.id, storage or 'published'))}"
    return f"the model {row.id} ({row.title}) is not installed ({place}); {step}"


def _hold(row: ModelRow, folder: Path, lock: Lock) -> None:
    again = f"run: python -m backend models {'fetch' if row.fetchable else 'import'} {row.id}"
    if row.revision and lock.origin == "hub" and lock.revision != row.revision:
        text = f"{row.id} is installed at commit {lock.revision[:12]}, but {row.revision[:12]} is wanted; {again}"
        raise UserError(text, MODEL_MISSING, "BAD_MODEL")
    if wrong := check(folder, lock):
        raise UserError(f"the model {row.id} is damaged: {wrong[0]}; {again}", MODEL_MISSING, "BAD_MODEL")
    gate.check_folder(folder, onnx=row.role == "identity")


@dataclass(frozen=True)
class Installed:
    """One model that is there.

    Attributes:
        row: What is known of it.
        storage: How its weights are stored.
        bytes: On the disk.
        lock: What was locked.
    """

    row: ModelRow
    storage: Storage
    bytes: int
    lock: Lock


def installed_models(root: Path | None = None) -> tuple[Installed, ...]:
    """All models that are there, in the registry's order; nothing is read but the locks."""
    weights = Weights(root or default_folder())
    found = []
    for row in registry.ROWS:
        for kind in STORAGES:
            lock = weights.lock(row.id, kind)
            if lock is not None and weights.place(row.id, kind).is_dir():
                found.append(Installed(row, kind, lock.total_bytes, lock))
    return tuple(found)
