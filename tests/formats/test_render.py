"""`python -m backend render` of files of other tools: the same Gaussians give the same picture in every format."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from backend import __main__ as command_line

DATA = Path(__file__).parent / "data"


def picture(tmp_path: Path, name: str, *options: str) -> np.ndarray:
    out = tmp_path / "a.png"
    assert command_line.main(["render", str(DATA / name), "--out", str(out), "--size", "96", *options]) == 0
    return np.asarray(Image.open(out).convert("RGB")).astype(int)


def test_a_compressed_and_a_plain_ply_of_the_same_splats_look_alike(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = picture(tmp_path, "angel-1000.ply")
    assert "which way is up" in capsys.readouterr().err
    assert np.abs(plain - plain[0, 0]).max() > 50  # something is drawn
    packed = picture(tmp_path, "angel-1000.compressed.ply")
    assert np.abs(plain - packed).max() <= 2
    # The file is Y up in truth. Half a turn about X: what was seen from the front is seen from behind, upside down.
    upright = picture(tmp_path, "angel-1000.ply", "--from-axes", "y_up", "--azimuth", "180")
    turned = upright[::-1, ::-1]
    assert np.abs(plain - turned).mean() < 0.25 * np.abs(plain - upright).mean()


def test_a_file_that_is_no_splat_file_is_a_bad_request_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.ply").write_text("hello", "utf-8")
    assert command_line.main(["render", str(tmp_path / "a.ply"), "--out", str(tmp_path / "a.png")]) == 2
    error = capsys.readouterr().err.strip()
    assert "not a PLY file" in error
    assert "\n" not in error
