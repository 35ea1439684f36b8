"""scripts/batch.py as real processes: with the bpy wheel, and as Blender runs it."""

from __future__ import annotations

import json
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tests.blender.interpreters import ROOT

pytestmark = pytest.mark.blender

BATCH = ROOT / "scripts" / "batch.py"
PORTRAIT = ROOT / "scripts" / "data" / "collins.png"
MOTION = ROOT / "tests" / "motion" / "data" / "cmu1_jumping_jacks.bvh"
# What `blender -b -P batch.py -- ...` does, with the wheel: Blender's own argv, and the script run as __main__.
AS_BLENDER = "import runpy, sys; sys.argv[0] = 'blender'; runpy.run_path(sys.argv[3], run_name='__main__')"


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An executable that answers as the backend's Python; its calls are in calls.txt beside it."""
    script = tmp_path / "python-fake"
    here = Path(__file__).parent / "fake_backend.py"
    script.write_text(f'#!/bin/sh\nPYTHONPATH="{ROOT}" exec "{sys.executable}" "{here}" "$@"\n')
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("FAKE_BACKEND_CALLS", str(tmp_path / "calls.txt"))
    return script


def batch(*arguments: object, blender: bool = False) -> subprocess.CompletedProcess[str]:
    if blender:
        program = shutil.which("blender")
        start = [program, "-b", "-P"] if program else [sys.executable, "-c", AS_BLENDER, "-b", "-P"]
        command = [*start, str(BATCH), "--"]
    else:
        command = [sys.executable, str(BATCH)]
    return subprocess.run([*command, *map(str, arguments)], capture_output=True, text=True, check=False, cwd=ROOT)


def error_line(done: subprocess.CompletedProcess[str]) -> str:
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "Traceback" not in done.stderr, done.stderr
    return lines[0]


def played_frames(blend: Path) -> list[int]:
    """First and last frame of what a saved file plays."""
    code = (
        "import bpy, sys; bpy.ops.wm.open_mainfile(filepath=sys.argv[1]); "
        "rig = next(ob for ob in bpy.data.objects if ob.type == 'ARMATURE'); scene = bpy.context.scene; "
        "action = rig.animation_data.action; assert tuple(action.frame_range) == (scene.frame_start, scene.frame_end); "
        "print('FRAMES', scene.frame_start, scene.frame_end)"
    )
    command = [sys.executable, "-c", code, str(blend)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    line = next(line for line in done.stdout.splitlines() if line.startswith("FRAMES "))
    return [int(word) for word in line.split()[1:]]


def test_folder_of_photos(tmp_path: Path, fake: Path) -> None:
    photos, out = tmp_path / "photos", tmp_path / "out"
    photos.mkdir()
    for name in ("anna.jpg", "bad.png", "anna.png", "notes.txt", ".hidden.jpg"):
        (photos / name).write_bytes(name.encode())
    wanted = ("--method", "body", "--input", photos, "--output", out, "--backend-python", fake, "--set", "seed=3")
    done = batch(*wanted, "--render")
    assert done.returncode == 2 and "nobody is in the photo" in error_line(done), done.stderr
    assert "person 1/1" in done.stdout, "the backend's progress is not shown"
    rows = {Path(row["input"]).name: row for row in json.loads((out / "summary.json").read_text())["items"]}
    assert {name: (row["state"], row["code"]) for name, row in rows.items()} == {
        "anna.jpg": ("done", 0), "anna.png": ("done", 0), "bad.png": ("failed", 2),
    }  # fmt: skip
    for name in ("anna_jpg", "anna_png"):
        assert (out / name / "avatar.blend").stat().st_size > 10_000
        assert (out / name / "gaussians.ply").is_file()
        frames = sorted(path.name for path in (out / name / "walk").iterdir())
        assert frames[0] == "frame_001.png" and len(frames) >= 20
    assert not (out / "bad").exists(), "a failed input left something behind"
    assert not list(out.rglob("*.partial")), "a temporary folder stayed"
    files = {row["path"]: row["bytes"] for row in rows["anna.jpg"]["files"]}
    assert {"avatar.blend", "gaussians.ply", "avatar.npz", "walk/frame_001.png"} <= set(files)

    calls = (tmp_path / "calls.txt").read_text().splitlines()
    assert all("--set seed=3" in call for call in calls if call.startswith("generate"))
    (photos / "bad.png").unlink()
    assert batch(*wanted, "--render").returncode == 0
    assert (tmp_path / "calls.txt").read_text().splitlines() == calls, "finished inputs were not skipped"


def test_one_photo_as_blender_runs_it(tmp_path: Path, fake: Path) -> None:
    out = tmp_path / "out"
    done = batch(
        "--method", "body", "--input", PORTRAIT, "--output", out, "--backend-python", fake, "--motion", MOTION,
        blender=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (out / "avatar.blend").is_file() and not (out / "motion").exists()
    assert played_frames(out / "avatar.blend") == [1, 100], "four seconds at 24 frames a second"
    assert json.loads((out / "summary.json").read_text())["items"][0]["state"] == "done"


@pytest.mark.parametrize(
    ("change", "words", "blender"),
    [
        ({"--input": "missing.jpg"}, "not there", True),
        ({"--input": "empty"}, "no pictures", False),
        ({"--method": "statue"}, "statue", True),
        ({"--set": "height_m=9"}, "height_m", False),
        ({"--motion": "dance.npz"}, "not there", False),
        ({"--photo": "gone.png"}, "More photos: gone.png cannot be read", False),
        ({"--motion": PORTRAIT}, "no motion file", False),
        ({"--output": "text.jpg"}, "is a file", True),
        ({"--output": "/proc/no/rights"}, "cannot be written", False),
        ({"--nonsense": "1"}, "--nonsense", True),
    ],
)
def test_bad_request(tmp_path: Path, fake: Path, change: dict[str, str], words: str, blender: bool) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.jpg").write_text("no picture")
    options = {"--method": "body", "--input": PORTRAIT, "--output": "out", "--backend-python": fake} | change
    paths = ("--input", "--output")
    flat = [x for name, value in options.items() for x in (name, tmp_path / value if name in paths else value)]
    done = batch(*flat, blender=blender)
    assert done.returncode == 2 and words in error_line(done), done.stderr
    assert not (tmp_path / "out").exists() and not (tmp_path / "calls.txt").exists()


def test_further_photos_are_handed_on_and_part_of_what_counts_as_finished(tmp_path: Path, fake: Path) -> None:
    back, out = tmp_path / "back, left.png", tmp_path / "out"
    back.write_bytes(b"one")
    wanted = ("--method", "body", "--input", PORTRAIT, "--output", out, "--backend-python", fake, "--photo", back)
    for count, content in ((1, b"one"), (1, b"one"), (2, b"two")):
        back.write_bytes(content)
        assert batch(*wanted).returncode == 0
        calls = (tmp_path / "calls.txt").read_text().splitlines()
        assert len(calls) == count and calls[-1].count(f"--photo {back}") == 1
    folder = batch("--method", "body", "--input", PORTRAIT.parent, "--output", out, "--photo", back)
    assert folder.returncode == 2 and "one person" in error_line(folder)


def test_a_text_file_as_photo_through_the_real_backend(tmp_path: Path) -> None:
    text = tmp_path / "text.jpg"
    text.write_text("not a picture at all\n" * 50)
    paths = ("--input", text, "--output", tmp_path / "out", "--backend-python", sys.executable)
    done = batch("--method", "body", *paths, blender=True)
    assert done.returncode == 2 and "not a picture" in error_line(done), done.stderr
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["summary.json"]


def test_no_backend(tmp_path: Path) -> None:
    done = batch("--method", "body", "--input", PORTRAIT, "--output", tmp_path / "out", "--backend-python", "nowhere")
    assert done.returncode == 3 and "nowhere" in error_line(done)
    assert not (tmp_path / "out").exists()
