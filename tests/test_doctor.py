"""Doctor: each part that is absent or unusable is named with its remedy; the exit code says if the method runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from backend import doctor
from backend.doctor import Finding, Subject
from blender_addon.shared import file_lock
from blender_addon.shared.protocol import Device

ROOT = Path(__file__).parent.parent


def test_it_says_ready_here_as_json_and_for_people(tmp_path: Path) -> None:
    settings = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "backend", "doctor", "--json", "--jobs", str(tmp_path / "jobs")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=settings)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    report = json.loads(done.stdout)
    assert report["ready"] is True
    names = {row["name"]: row for row in report["findings"]}
    wanted = {"python", "packages", "torch", "torch calculates", "rasteriser", "gpu", "cuda rasteriser", "codecs"}
    wanted |= {"mediapipe models", "body model", "own body", "memory", "disk", "jobs folder", "diffusion models"}
    assert wanted <= set(names)
    assert all(row["state"] in ("ok", "none", "missing") for row in report["findings"])
    assert not (tmp_path / "jobs").exists(), "it only looks"


def test_a_missing_part_is_an_exit_code_and_a_remedy(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    findings = (Finding("torch", "not installed", "missing", "install it"), Finding("gpu", "none", "none"))
    monkeypatch.setattr(doctor, "examine", lambda subject: findings)
    assert doctor.doctor(as_json=False) == 3
    text = capsys.readouterr().out
    assert "torch                not installed  -> install it" in text and "cannot run" in text
    assert doctor.doctor(as_json=True) == 3
    assert json.loads(capsys.readouterr().out)["ready"] is False


def test_absent_and_broken_libraries_differ(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert doctor._library("nothing", "effigy_no_such_module").state == "missing"
    (tmp_path / "effigy_broken.py").write_text(
        "print('noise')\nraise OSError('libfoo.so: cannot open shared object')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    broken = doctor._library("broken", "effigy_broken")
    assert broken.state == "missing" and "libfoo.so" in broken.value and "Repair" in broken.next_step


def test_what_depends_on_an_absent_library_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    def fake(name: str, module: str) -> Finding:
        return Finding(name, "not installed", "missing", "install it")

    monkeypatch.setattr(doctor, "_library", fake)
    found = {finding.name: finding for finding in doctor.examine()}
    assert found["rasteriser"].state == "none" and "without torch and numba" in found["rasteriser"].value
    assert found["torch"].state == "missing"


def test_packages_are_held_to_the_pins(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = doctor.pinned((doctor.REQUIREMENTS / "cpu.txt").read_text("utf-8"), "photo")
    assert wanted["numpy"] == "1.26.4" and wanted["torch"].startswith("2.13.0") and "diffusers" not in wanted
    assert doctor._packages("photo").state == "ok"
    real = doctor.importlib.metadata.version

    def older(name: str) -> str:
        return "1.0" if name == "numba" else real(name)

    monkeypatch.setattr(doctor.importlib.metadata, "version", older)
    other = doctor._packages("photo")
    assert other.state == "none" and "numba 1.0 instead of" in other.value and "Repair" in other.next_step

    def gone(name: str) -> str:
        raise doctor.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(doctor.importlib.metadata, "version", gone)
    assert doctor._packages("photo").state == "missing" and doctor._packages("models").state == "none"


@pytest.mark.parametrize(
    ("version", "bits", "state"), [((3, 11), 8, "ok"), ((3, 14), 8, "missing"), ((3, 12), 4, "missing")]
)
def test_the_wrong_python_is_named(
    monkeypatch: pytest.MonkeyPatch, version: tuple[int, int], bits: int, state: str
) -> None:
    monkeypatch.setattr(doctor, "sys", SimpleNamespace(version_info=(*version, 0)))
    monkeypatch.setattr(doctor.struct, "calcsize", lambda kind: bits)
    found = doctor._python()
    assert found.state == state and bool(found.next_step) == (state == "missing")


def test_the_environment_says_what_made_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert doctor._environment() == [], "a checkout's Python is none of the add-on's making"
    state = {"state": "ready", "tool": "uv", "accelerator": "cuda", "python": doctor.platform.python_version()}
    (tmp_path / file_lock.ENVIRONMENT_STATE).write_text(json.dumps(state))
    monkeypatch.setattr(doctor.sys, "prefix", str(tmp_path))
    assert doctor._environment()[0].state == "ok" and "made by uv for cuda" in doctor._environment()[0].value
    assert doctor._accelerator() == "cuda"
    (tmp_path / file_lock.ENVIRONMENT_STATE).write_text(json.dumps(state | {"python": "3.11.0rc1"}))
    assert "Repair" in doctor._environment()[0].next_step
    (tmp_path / file_lock.ENVIRONMENT_STATE).write_text("{")
    assert doctor._environment()[0].state == "none" and doctor._accelerator() in ("cpu", "mac")


@pytest.mark.parametrize(
    ("device", "fault", "state", "words"),
    [
        (Device("cpu", "x"), "", "none", "everything runs on the CPU"),
        (Device("cuda", "RTX", 24 << 30, 0, "570.1"), "driver 570.1 is too old for CUDA 13.0", "none", "not usable"),
        (Device("cuda", "RTX", 24 << 30, 0, "580.65"), "", "ok", "RTX, 25.8 GB, driver 580.65"),
    ],
)
def test_30_the_device_and_why_it_cannot_be_used(
    monkeypatch: pytest.MonkeyPatch, device: Device, fault: str, state: str, words: str
) -> None:
    """Row 30: the cause is named, and no device is no failure."""
    from backend import device as devices

    monkeypatch.setattr(devices, "query_device", lambda patience_s: device)
    monkeypatch.setattr(devices, "cuda_fault", lambda: fault)
    found = doctor._cuda()
    assert found.state == state and words in found.value and found.next_step == fault


def test_folders_that_cannot_be_written_and_files_that_cannot_be_used(tmp_path: Path) -> None:
    assert doctor._writable("jobs folder", tmp_path / "not" / "there" / "yet").state == "ok"
    stuck = doctor._writable("jobs folder", Path("/proc/self"))
    assert stuck.state == "missing" and "another folder" in stuck.next_step
    (tmp_path / "body.npz").write_bytes(b"PK nothing")
    own = doctor._own_body(tmp_path / "body.npz")
    assert own.state == "none" and "plain arrays" in own.value and own.next_step
    assert doctor._own_body(tmp_path / "absent.npz").state == "none" and doctor._own_body(None).next_step == ""


def test_a_missing_body_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(doctor, "BODY", tmp_path / "gone.npz")
    assert doctor._body_model().state == "missing"


def test_little_memory_and_little_space_are_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(doctor, "free_bytes", lambda: int(1e9))
    monkeypatch.setattr(doctor, "total_bytes", lambda: int(8e9))
    assert "close other programs" in doctor._memory().next_step
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda place: SimpleNamespace(free=int(1e9)))
    assert "move the jobs" in doctor._disk(Subject((("jobs folder", tmp_path),))).next_step


def test_a_trial_that_raises_anything_is_a_finding() -> None:
    def trial() -> Finding:
        raise RuntimeError("first line\nthe reason")

    found = doctor._try("part", [], trial)
    assert found.state == "missing" and "the reason" in found.value and "\n" not in found.value
