"""Files of a request in a job: looked at before it begins, copied, hashed, found by the stages and by a resume."""

from __future__ import annotations

import threading
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from backend import generate
from backend.__main__ import main
from backend.context import Context, QuietSink
from backend.errors import UserError
from backend.generate import Finished, JobFailedError, Order, perform
from backend.pipeline import Outcome, Stage
from backend.request_files import copy_files, read_files
from blender_addon.shared.methods import BodyRequest, Request
from blender_addon.shared.request_files import KINDS, FileParameter


def picture(path: Path, shade: int) -> str:
    Image.new("RGB", (80, 80), (shade, 120, 150)).save(path)
    return str(path)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[list[bytes]]:
    """What a method of one stage reads: the further photos."""
    read: list[list[bytes]] = []

    def look(request: BodyRequest, folder: Path, context: Context) -> Outcome:
        read.append([(folder / name).read_bytes() for name in request.photos])
        return Outcome(("a look",))

    def stages(method: str, request: Request, models: object) -> list[Stage]:
        return [Stage("Look", ("request", "folder"), ("outcome",), look, keep=False)]

    monkeypatch.setattr(generate, "stages_of", stages)
    return read


def order(folder: Path, *photos: str, resume: bool = False) -> Order:
    return Order("body", BodyRequest(photos=photos), folder / "front.png", folder / "out", resume)


def do(wanted: Order) -> Finished:
    return perform(wanted, QuietSink(), threading.Event())


def test_stages_find_copies_by_the_names_of_the_stored_request(tmp_path: Path, seen: list[list[bytes]]) -> None:
    picture(tmp_path / "front.png", 1)
    back, side = picture(tmp_path / "von hinten.PNG", 2), picture(tmp_path / "b.bmp", 3)
    contents = [Path(path).read_bytes() for path in (back, side)]
    wanted = order(tmp_path, back, side)
    done = do(wanted)
    assert seen == [contents]
    stored = generate.jobs.read_json(done.folder / "result.json")
    assert stored["request"]["photos"] == ["photos-0.png", "photos-1.bmp"]
    assert {item["path"] for item in stored["files"]} >= {"input.png", "photos-0.png", "photos-1.bmp"}
    assert do(replace(wanted, resume=True)).already, "the same files are the same job"
    copies = tuple(str(done.folder / name) for name in stored["request"]["photos"])
    assert do(order(tmp_path, *copies, resume=True)).already, "wherever they lie"
    picture(tmp_path / "b.bmp", 4)
    assert not do(replace(wanted, resume=True)).already, "other content is another job"
    assert len(seen) == 2 and not do(order(tmp_path, resume=True)).already


def test_a_job_without_further_files_is_described_as_before(tmp_path: Path, seen: list[list[bytes]]) -> None:
    picture(tmp_path / "front.png", 1)
    stored = generate.jobs.read_json(do(order(tmp_path)).folder / "result.json")
    assert "files_sha256" not in stored and stored["request"]["photos"] == []


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "More photos: .*back.png cannot be read"), (b"", "empty"), (b"text", "More photos: back.png is not a pic")],
)
def test_a_file_that_cannot_be_used_stops_the_job_before_it_begins(
    tmp_path: Path, seen: list[list[bytes]], content: bytes | None, words: str
) -> None:
    picture(tmp_path / "front.png", 1)
    if content is not None:
        (tmp_path / "back.png").write_bytes(content)
    with pytest.raises(JobFailedError, match=words) as caught:
        do(order(tmp_path, str(tmp_path / "back.png")))
    assert "\n" not in str(caught.value) and caught.value.failure.code == 2
    assert seen == [] and not (tmp_path / "out").exists()


def test_a_file_that_changes_or_vanishes_meanwhile_is_a_line(tmp_path: Path) -> None:
    back = Path(picture(tmp_path / "back.png", 2))
    files = read_files(BodyRequest(photos=(str(back),)))
    picture(back, 9)
    with pytest.raises(UserError, match="back.png changed"):
        copy_files(files, tmp_path)
    back.unlink()
    with pytest.raises(UserError, match="any more"):
        copy_files(files, tmp_path)


def test_motions_are_looked_at_as_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    walk, bomb, text = tmp_path / "walk.npz", tmp_path / "bomb.npz", tmp_path / "text.bvh"
    np.savez(walk, poses=np.zeros((2, 165)))
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("poses.npy", bytes(3_000_000))
    text.write_text("MOTION")
    monkeypatch.setattr("backend.request_files.LARGEST_ARRAYS_BYTES", 2_000_000)
    # as for a request whose files are motions
    row = FileParameter("photos", "Motions", KINDS["motion"], several=True)
    for module in ("backend.request_files", "blender_addon.shared.request_files"):
        monkeypatch.setattr(f"{module}.file_parameters", lambda request: (row,))
    assert list(read_files(BodyRequest(photos=(str(walk),))).sha256) == ["photos-0.npz"]
    damaged = tmp_path / "damaged.npz"
    damaged.write_bytes(walk.read_bytes()[:-30])
    for path, words in ((bomb, "unpacks to 3 MB"), (text, "no BVH motion"), (damaged, "is damaged")):
        with pytest.raises(UserError, match=f"Motions: .*{words}"):
            read_files(BodyRequest(photos=(str(path),)))


def test_the_command_line_takes_photos_both_ways(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[Mapping[str, object]] = []

    def note(method: str, image: Path, out: Path, settings: Mapping[str, object], *rest: object) -> int:
        asked.append(settings)
        return 0

    monkeypatch.setattr(generate, "generate", note)
    start = ["generate", "body", "--image", "a.png", "--out", str(tmp_path / "out")]
    assert main([*start, "--photo", "b, c.png", "--photo", "d.png", "--preset", "fast"]) == 0
    assert main([*start, "--set", "photos=b.png,d.png"]) == 0
    assert asked == [{"preset": "fast", "photos": ("b, c.png", "d.png")}, {"photos": "b.png,d.png"}]
    assert main([*start, "--set", "photos=b.png", "--photo", "d.png"]) == 2
    assert "use one of them" in capsys.readouterr().err
