"""Which licences the user accepted, and when: nothing is downloaded before that."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from backend.diffusion.lock import now
from backend.diffusion.model_row import ModelRow
from backend.errors import BAD_REQUEST, UserError
from backend.files import read_json, write_json

FILE = "accepted-licences.json"
"""In the folder of models: by model, the licence's name and address and the date of acceptance."""


def accepted(root: Path, row: ModelRow) -> bool:
    """Whether the user accepted this very licence of the model; one that changed its name must be accepted anew."""
    entry = _read(root).get(row.id)
    return isinstance(entry, dict) and entry.get("licence") == row.licence


def accept(root: Path, row: ModelRow, licence: str) -> None:
    """Record that the user accepts a licence.

    Raises:
        UserError: If `licence` is not the model's.
    """
    if licence != row.licence:
        raise UserError(f"the licence of {row.id} is '{row.licence}', not '{licence}'; read {row.licence_url}")
    root.mkdir(parents=True, exist_ok=True)
    entry = {"licence": row.licence, "url": row.licence_url, "accepted": now(), "commercial": row.commercial}
    write_json(root / FILE, {**_read(root), row.id: entry})


def require(root: Path, row: ModelRow) -> None:
    """Stop where the licence is not accepted.

    Raises:
        UserError: Naming the licence, its address and the way to accept it.
    """
    if not accepted(root, row):
        raise UserError(f"{describe(row)}; to accept it add: --accept '{row.licence}'", BAD_REQUEST)


def describe(row: ModelRow) -> str:
    """One line about a model's licence."""
    kind = "commercial use allowed" if row.commercial else "NON-COMMERCIAL use only"
    return f"{row.title} has the licence {row.licence} ({kind}), to be read at {row.licence_url or '(unknown)'}"


def _read(root: Path) -> dict[str, Any]:
    content = read_json(root / FILE)
    return content if isinstance(content, dict) else {}
