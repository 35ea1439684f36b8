"""The table of models: every row can be read, fetched or imported as it says, and says what is unknown."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

import pytest

from backend.diffusion import registry
from backend.diffusion.gate import READ
from backend.diffusion.lock import is_commit, is_sha256, safe_path
from backend.diffusion.model_row import ModelRow
from backend.diffusion.registry import ROWS
from backend.errors import UserError

WANTED = """sd15 sd15-inpaint control-mediapipe-face control-openpose control-depth ip-adapter-plus-face
    ip-adapter-faceid mvdream imagedream svd sv3d-u sv3d-p wan-animate wan-vace flux2-klein marigold-normals
    depth-anything dinov2-small clip-l auraface triposplat trellis moge2 sam3d-body matting""".split()


@pytest.fixture(params=ROWS, ids=lambda row: row.id)
def row(request: pytest.FixtureRequest) -> ModelRow:
    return request.param


def test_every_model_of_the_methods_has_one_row() -> None:
    ids = [row.id for row in ROWS]
    assert len(ids) == len(set(ids))
    assert set(WANTED) <= set(ids)
    assert registry.row("sd15").repository == "stable-diffusion-v1-5/stable-diffusion-v1-5"


def test_an_unknown_model_is_named() -> None:
    with pytest.raises(UserError, match="no model 'sd16'.*models list"):
        registry.row("sd16")


def test_a_row_is_complete(row: ModelRow) -> None:
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", row.id)  # a folder's name on every system
    assert row.title and row.note and row.licence
    assert row.licence == "unknown" or urlsplit(row.licence_url).scheme == "https"
    assert row.licence != "unknown" or not row.commercial  # what nobody read allows nothing
    assert bool(row.repository) == bool(row.files) == row.fetchable
    assert not row.repository or re.fullmatch(r"[\w.-]+/[\w.-]+", row.repository)
    assert row.revision is None or is_commit(row.revision)
    assert all(value is None or 0 < value < 100 for value in row.memory_gb.values())


def test_the_files_are_such_as_the_gate_lets_through(row: ModelRow) -> None:
    paths = [file.path for file in row.files]
    assert len(paths) == len(set(paths))
    for file in row.files:
        assert safe_path(file.path.replace("*", "x"))
        assert "*" not in file.path.rpartition("/")[0]
        onnx = (".onnx",) if row.role == "identity" else ()
        assert file.path.endswith(("/*", *READ, *onnx))
        assert file.bytes is None or file.bytes > 0
        assert file.sha256 is None or is_sha256(file.sha256)


def test_what_is_unknown_is_said(row: ModelRow) -> None:
    known = row.revision is not None and all(file.bytes and file.sha256 for file in row.files)
    assert known or not row.fetchable or "unknown" in row.note


def test_no_fact_is_there_twice_for_different_files() -> None:
    """A hash that was copied to the wrong line would show here: only the decoder of SD 1.5 and its like are shared."""
    hashes = [(file.sha256, file.path.rpartition("/")[2]) for row in ROWS for file in row.files if file.sha256]
    for sha256 in {sha256 for sha256, _ in hashes}:
        assert len({name for other, name in hashes if other == sha256}) == 1


def test_nothing_of_insightface_is_ever_fetched() -> None:
    for row in ROWS:
        if "InsightFace" in row.licence:
            assert not row.fetchable and not row.commercial
        assert not any("scrfd" in file.path or "det_10g" in file.path for file in row.files)
