"""Row 25 of the fault matrix: motion files that are damaged, hostile or only say half."""

from __future__ import annotations

import io
import resource
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from blender_addon.motion import smplx_npz
from blender_addon.motion.bvh import MotionError, read_bvh
from blender_addon.motion.retarget import MAX_FRAMES, RetargetSettings, resample
from blender_addon.motion.smplx_npz import MAX_SOURCE_FRAMES, read_smplx_npz

ROOT = Path(__file__).parent.parent.parent


def motion(frames: int = 6, joints: int = 55, **more: object) -> dict[str, object]:
    return {"poses": np.zeros((frames, 3 * joints)), "trans": np.zeros((frames, 3)), "fps": np.array(30.0), **more}


def refuse(path: Path, words: str) -> None:
    with pytest.raises(MotionError, match=words) as caught:
        read_smplx_npz(path)
    assert path.name in str(caught.value) and "\n" not in str(caught.value)


class _Canary:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return Path.write_text, (self.path, "code ran")


@pytest.mark.parametrize("name", ["gender", "poses", "trans", "fps"])
def test_pickled_objects_run_no_code(tmp_path: Path, name: str) -> None:
    canary, file = tmp_path / "canary", tmp_path / "m.npz"
    np.savez(file, **{**motion(), name: np.array([_Canary(canary)], dtype=object)})  # type: ignore[arg-type]
    # The check itself can fail: a loader that unpickles does run it.
    np.load(file, allow_pickle=True)[name]
    assert canary.read_text() == "code ran"
    canary.unlink()
    if name == "poses":
        refuse(file, "no poses")
    else:
        assert len(read_smplx_npz(file).pose) == 6
    assert not canary.exists()


def entry(header: dict[str, object], body: bytes) -> bytes:
    """An .npy with whatever header."""
    text = repr(header).encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + body


def write_zip(path: Path, entries: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return path


def test_a_zip_bomb_is_refused_before_it_unpacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand times its size once unpacked; the limit is lowered to what a test can write in a second."""
    path = tmp_path / "bomb.npz"
    size = 264_000_000
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        with archive.open("poses.npy", "w") as file:
            file.write(entry({"descr": "<f4", "fortran_order": False, "shape": (size // 660, 165)}, b""))
            for _ in range(4):
                file.write(bytes(size // 4))
    assert path.stat().st_size < size / 200
    monkeypatch.setattr(smplx_npz, "MAX_ARCHIVE_BYTES", size // 2)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refuse(path, "unpacks to more than")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50 * 1024


LIES: dict[str, tuple[dict[str, object], bytes, str]] = {
    "promises 2^40 numbers": (
        {"descr": "<f8", "fortran_order": False, "shape": (6, 1 << 40)}, bytes(64), "promises",
    ),
    "promises rows that are not there": (
        {"descr": "<f8", "fortran_order": False, "shape": (6, 165)}, bytes(64), "promises",
    ),
    "10^6 frames": (
        {"descr": "<f4", "fortran_order": False, "shape": (1_000_000, 165)}, b"", f"at most {MAX_SOURCE_FRAMES}",
    ),
    "a negative size": ({"descr": "<f8", "fortran_order": False, "shape": (-6, 165)}, bytes(64), "promises|damaged"),
    "no such type": ({"descr": "quark", "fortran_order": False, "shape": (6, 165)}, bytes(64), "damaged"),
}  # fmt: skip


@pytest.mark.parametrize("name", LIES)
def test_a_header_that_lies_is_refused(tmp_path: Path, name: str) -> None:
    header, body, words = LIES[name]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refuse(write_zip(tmp_path / "lie.npz", {"poses.npy": entry(header, body)}), words)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 1024, "allocated what was promised"


DAMAGED: dict[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "text": lambda: b"no archive\n" * 50,
    "cut short": lambda: saved(motion())[:-40],
    "a flipped bit in the middle": lambda: flipped(saved(motion(joints=55, frames=40))),
}


def saved(arrays: dict[str, object]) -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
    return file.getvalue()


def flipped(data: bytes) -> bytes:
    return data[:90] + bytes([data[90] ^ 0xFF]) + data[91:]


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_archive_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "m.npz").write_bytes(DAMAGED[name]())
    refuse(tmp_path / "m.npz", "not an .npz file, or damaged|damaged")


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"trans": np.zeros((6, 3))}, "no poses"),
        (motion(0), "numbers a frame"),
        (motion(joints=23), "numbers a frame"),
        (motion(joints=0), "numbers a frame"),
        ({**motion(), "poses": np.full((6, 165), np.nan)}, "no numbers"),
        ({**motion(), "poses": np.full((6, 165), np.inf)}, "no numbers"),
        ({**motion(), "trans": np.full((6, 3), np.nan)}, "trans"),
        ({**motion(), "fps": np.array(np.nan)}, "frames a second"),
        ({"root_orient": np.zeros((6, 3)), "pose_body": np.zeros((5, 63))}, "differ in length"),
        ({"root_orient": np.array(3.0), "pose_body": np.zeros((5, 63))}, "differ in length|has no"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_missing_and_senseless_values_are_refused(tmp_path: Path, arrays: dict[str, object], words: str) -> None:
    np.savez(tmp_path / "m.npz", **arrays)  # type: ignore[arg-type]
    refuse(tmp_path / "m.npz", words)


@pytest.mark.parametrize("joints", [22, 24, 52, 55])
def test_every_usual_number_of_joints_is_read(tmp_path: Path, joints: int) -> None:
    np.savez(tmp_path / "m.npz", **motion(joints=joints))  # type: ignore[arg-type]
    source = read_smplx_npz(tmp_path / "m.npz")
    assert source.pose.shape == (6, 55, 3) and np.isfinite(source.pose).all()
    assert bool(source.notes) == (joints < 52), "what is padded is said"


def test_a_missing_frame_rate_is_said(tmp_path: Path) -> None:
    arrays = motion()
    del arrays["fps"]
    np.savez(tmp_path / "m.npz", **arrays)  # type: ignore[arg-type]
    source = read_smplx_npz(tmp_path / "m.npz")
    assert source.rate == 30.0 and any("no frame rate" in note for note in source.notes)


def test_a_motion_too_long_to_be_keyed_is_refused() -> None:
    with pytest.raises(MotionError, match=f"at most {MAX_FRAMES}"):
        resample(1_000_000, 1 / 30, RetargetSettings(30.0), first=0)
    assert len(resample(1_000_000, 1 / 300, RetargetSettings(24.0), first=0).low) < MAX_FRAMES


def test_a_long_bvh_takes_memory_in_proportion(tmp_path: Path) -> None:
    head, _, tail = (ROOT / "tests/motion/data/cmu1_jumping_jacks.bvh").read_text().partition("MOTION")
    lines = tail.strip().splitlines()
    rows = lines[2:] * 60
    path = tmp_path / "long.bvh"
    path.write_text(head + "MOTION\nFrames: " + str(len(rows)) + "\n" + lines[1] + "\n" + "\n".join(rows) + "\n")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    bvh = read_bvh(path)
    added = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    assert len(bvh.rotations) == len(rows)
    assert added < 12 * path.stat().st_size
