"""Bad input through the real command: exit code, one line on stderr, nothing half-written left."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parent.parent.parent
PORTRAIT = ROOT / "scripts" / "data" / "collins.png"


def backend(*arguments: object, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "backend", *(str(argument) for argument in arguments)]
    settings = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=cwd, env=settings, capture_output=True, text=True, check=False)


def generate(image: Path, out: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return backend("generate", "body", "--image", image, "--out", out, *more)


def assert_refused(done: subprocess.CompletedProcess[str], words: str, code: int = 2) -> None:
    lines = done.stderr.strip().splitlines()
    assert done.returncode == code, done.stderr
    assert len(lines) == 1 and lines[0].startswith("error: "), done.stderr
    assert words in lines[0], lines[0]


def huge_header() -> bytes:
    """A PNG of 2 kB that promises 100,000 x 100,000 pixels, 30 GB once decoded."""
    chunks = [b"IHDR" + struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0), b"IDAT" + zlib.compress(bytes(2000))]
    packed = (struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def clouds() -> np.ndarray:
    """A picture with content but nobody in it."""
    rng = np.random.default_rng(0)
    field = Image.fromarray(rng.integers(0, 255, (6, 8, 3), np.uint8)).resize((640, 480), Image.Resampling.BICUBIC)
    return np.asarray(field)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("empty.png", b"", "empty"),
        ("truncated.png", PORTRAIT.read_bytes()[:20_000], "damaged or cut off"),
        ("text.jpg", b"not a picture at all\n" * 50, "not a picture"),
        ("huge.png", huge_header(), "megapixels"),
        ("missing.png", None, "cannot be read"),
    ],
)
def test_files_that_are_no_photo(tmp_path: Path, name: str, content: bytes | None, words: str) -> None:
    image = tmp_path / name
    if content is not None:
        image.write_bytes(content)
    before = sorted(tmp_path.iterdir())
    assert_refused(generate(image, tmp_path / "out" / "avatar"), words)
    assert sorted(tmp_path.iterdir()) == before


def test_a_photo_without_a_person(tmp_path: Path) -> None:
    Image.fromarray(clouds()).save(tmp_path / "nobody.png")
    assert_refused(generate(tmp_path / "nobody.png", tmp_path / "out" / "avatar"), "person")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["nobody.png"]


def test_a_person_seen_from_behind(tmp_path: Path) -> None:
    """One of the test figures of tests/oracles, rendered at 180 degrees."""
    assert_refused(generate(Path(__file__).parent / "data" / "back_view.png", tmp_path / "out"), "behind")
    assert list(tmp_path.iterdir()) == []


def test_a_person_who_is_not_there(tmp_path: Path) -> None:
    assert_refused(generate(PORTRAIT, tmp_path / "out", "--set", "person=3"), "person=3")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_job_leaves_an_earlier_result_as_it_was(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "result.json").write_text("{}")
    (out / "mine.txt").write_text("mine")
    Image.fromarray(clouds()).save(tmp_path / "nobody.png")
    assert_refused(generate(tmp_path / "nobody.png", out), "person")
    assert sorted(path.name for path in out.iterdir()) == ["mine.txt", "result.json"]


def test_an_output_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    assert_refused(generate(PORTRAIT, tmp_path / "file" / "out"), "--out")
    assert_refused(generate(PORTRAIT, tmp_path / "file"), "--out")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_an_output_without_rights(tmp_path: Path) -> None:
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    assert_refused(generate(PORTRAIT, locked / "out"), "cannot be written")
    assert list(locked.iterdir()) == []


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs Linux")
def test_an_output_where_nobody_may_write(tmp_path: Path) -> None:
    assert_refused(generate(PORTRAIT, Path("/proc/effigy/out")), "cannot be written")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("generate", "nonsense", "--image", PORTRAIT, "--out", "OUT"), "body"),
        (("generate", "body", "--image", PORTRAIT), "--out"),
        (("generate", "body", "--image", PORTRAIT, "--out", "OUT", "--set", "person"), "name=value"),
        (("generate", "body", "--image", PORTRAIT, "--out", "OUT", "--set", "nose=2"), "nose"),
        (("generate", "body", "--image", PORTRAIT, "--out", "OUT", "--set", "person=-1"), "person"),
        (("generate", "body", "--image", PORTRAIT, "--out", "OUT", "--set", "seed=1", "--set", "seed=2"), "twice"),
        (("generate", "body", "--image", PORTRAIT, "--out", "OUT", "--preset", "heroic"), "preset"),
        (("render", "nothing", "--out", "a.png"), "nothing"),
        (("render", PORTRAIT, "--out", "a.png"), "cannot be read"),
        (("render", PORTRAIT, "--out", "a.jpg"), ".png"),
        (("dance",), "dance"),
    ],
)
def test_wrong_command_lines(tmp_path: Path, arguments: tuple[object, ...], words: str) -> None:
    assert_refused(backend(*arguments, cwd=tmp_path), words)
    assert list(tmp_path.iterdir()) == []


def test_doctor_names_what_is_not_there() -> None:
    done = backend("doctor")
    assert done.returncode in (0, 3) and done.stderr == ""
    lines = {line[:20].strip(): line[21:].strip() for line in done.stdout.splitlines()}
    assert lines["identity embedding"] == "none"
    assert lines["torch"].startswith("2.13.0") and "portable" in lines["rasteriser"]
