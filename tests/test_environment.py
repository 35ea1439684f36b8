"""The checkout's environment: made once, known as good, repaired when half made or broken. Without any network."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "scripts"))  # the scripts run as files, not as a package
import environment  # noqa: E402


def plan(folder: Path, imports: tuple[str, ...] = ("json",)) -> environment.Plan:
    return environment.Plan(folder / ".venv", (), imports, sys.executable, needed_bytes=1)


def make(wanted: environment.Plan) -> list[str]:
    lines: list[str] = []
    environment.ensure(wanted, lines.append)
    return lines


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One finished environment, copied by the tests that break it."""
    folder = tmp_path_factory.mktemp("made")
    assert "ready" in make(plan(folder))[-1]
    return folder


@pytest.fixture
def copy(made: Path, tmp_path: Path) -> environment.Plan:
    shutil.copytree(made / ".venv", tmp_path / ".venv", symlinks=True)
    wanted = plan(tmp_path)
    assert environment.fault(wanted) == ""
    return wanted


def is_good(wanted: environment.Plan) -> bool:
    code = "import sys; print(sys.prefix)"
    answer = subprocess.run([wanted.interpreter, "-c", code], capture_output=True, text=True, check=False)
    return environment.fault(wanted) == "" and answer.stdout.strip() == str(wanted.folder)


def test_a_good_environment_is_left_alone(copy: environment.Plan) -> None:
    stamp = (copy.folder / environment.STAMP).stat()
    assert make(copy) == []
    assert (copy.folder / environment.STAMP).stat().st_mtime_ns == stamp.st_mtime_ns


def break_stamp(wanted: environment.Plan) -> None:
    (wanted.folder / environment.STAMP).unlink()


def break_stamp_text(wanted: environment.Plan) -> None:
    (wanted.folder / environment.STAMP).write_text('{"python": ')


def break_python(wanted: environment.Plan) -> None:
    wanted.interpreter.unlink()


def break_python_link(wanted: environment.Plan) -> None:
    wanted.interpreter.unlink()
    wanted.interpreter.symlink_to(wanted.folder / "gone")


def break_version(wanted: environment.Plan) -> None:
    (wanted.folder / environment.STAMP).write_text(json.dumps({"python": "3.11.99", "requirements": []}))


def break_everything(wanted: environment.Plan) -> None:
    shutil.rmtree(wanted.folder / "lib")
    break_stamp(wanted)


def break_kind(wanted: environment.Plan) -> None:
    shutil.rmtree(wanted.folder)
    wanted.folder.write_text("a file")


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (break_stamp, "half made"),
        (break_stamp_text, "half made"),
        (break_python, "broken"),
        (break_python_link, "broken"),
        (break_version, "broken"),
        (break_everything, "half made"),
        (break_kind, "half made"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_damage_is_seen(copy: environment.Plan, damage: Callable[[environment.Plan], None], reason: str) -> None:
    damage(copy)
    assert environment.fault(copy).startswith(reason)


@pytest.mark.parametrize("damages", [(break_python_link,), (break_everything, break_python)])
def test_damage_is_repaired(copy: environment.Plan, damages: tuple[Callable[[environment.Plan], None], ...]) -> None:
    for damage in damages:
        damage(copy)
    reason = environment.fault(copy)
    assert reason in make(copy)[0]
    assert is_good(copy)


def test_a_package_that_does_not_import_is_seen(copy: environment.Plan) -> None:
    site = next(copy.folder.glob("lib/python*/site-packages"))
    (site / "fragile.py").write_text("import json\n")
    wanted = replace(copy, imports=("fragile",))
    assert environment.fault(wanted) == ""
    (site / "fragile.py").write_text("raise ImportError('a shared library is gone')\n")
    assert "a shared library is gone" in environment.fault(wanted)


def test_a_longer_list_is_a_change_and_a_shorter_one_is_not(copy: environment.Plan) -> None:
    assert environment.fault(replace(copy, requirements=("some-package==1.0",))) == "changed"
    stamp = json.loads((copy.folder / environment.STAMP).read_text())
    stamp["requirements"] = ["some-package==1.0", "other==2.0"]
    (copy.folder / environment.STAMP).write_text(json.dumps(stamp))
    assert environment.fault(replace(copy, requirements=("some-package==1.0",))) == ""


def test_a_failed_installation_is_one_line_and_is_never_taken_for_good(
    copy: environment.Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    wanted = replace(copy, requirements=("effigy-no-such-package==1.0",))
    with pytest.raises(environment.SetupError, match="index lacks a package") as caught:
        environment.ensure(wanted, lambda line: None)
    assert "\n" not in str(caught.value) and "setup.log" in str(caught.value)
    assert "effigy-no-such-package" in (wanted.folder / "setup.log").read_text()
    assert environment.fault(wanted).startswith("half made")
    assert environment.fault(copy).startswith("half made")


def test_a_full_disk_is_said_before_anything_is_made(tmp_path: Path) -> None:
    wanted = replace(plan(tmp_path), needed_bytes=10**18)
    with pytest.raises(environment.SetupError, match="GB are free"):
        environment.ensure(wanted, lambda line: None)
    assert not wanted.folder.exists()


def test_two_processes_make_it_once(tmp_path: Path) -> None:
    wanted = plan(tmp_path)
    assert environment.fault(wanted) == "not there yet"
    said: list[list[str]] = [[], []]
    threads = [threading.Thread(target=environment.ensure, args=(wanted, said[i].append)) for i in range(2)]
    for thread in threads:
        thread.start()
        time.sleep(0.3)
    for thread in threads:
        thread.join()
    assert is_good(wanted)
    assert sum("ready" in line for lines in said for line in lines) == 1
    assert "waiting" in said[1][0]


def test_the_callers_settings_do_not_leak_but_the_index_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PYTHONPATH", "PYTHONHOME", "PIP_TARGET", "PIP_PREFIX", "VIRTUAL_ENV"):
        monkeypatch.setenv(name, "/somewhere")
    monkeypatch.setenv("PIP_INDEX_URL", "file:///index")
    monkeypatch.setenv("PIP_USER", "1")
    clean = environment.clean_environment()
    assert not {"PYTHONPATH", "PYTHONHOME", "PIP_TARGET", "PIP_PREFIX", "VIRTUAL_ENV"} & set(clean)
    assert clean["PIP_INDEX_URL"] == "file:///index" and clean["PIP_USER"] == "0" and clean["PYTHONNOUSERSITE"] == "1"


def test_pips_words_become_one_progress_line(tmp_path: Path) -> None:
    said: list[str] = []
    display = environment.Display(plan(tmp_path), said.append, live=False)
    for line in ("Collecting torch==2.13.0", "  Downloading torch-2.13.0-cp311.whl (191.8 MB)"):
        display.update(line)
    assert display.text() == "collecting package 1: torch (191.8 MB)"
    display.update("Installing collected packages: mpmath, ml_dtypes, torch")
    assert said[-1].endswith("installing package 1 of 3: mpmath")
    site = tmp_path / ".venv" / "lib" / "python3.11" / "site-packages"
    for name in ("mpmath-1.3.0.dist-info", "ml_dtypes-0.5.dist-info"):
        (site / name).mkdir(parents=True)
    assert display.text() == "installing package 3 of 3: torch"


def test_every_requirement_has_one_exact_version() -> None:
    everything = environment.read_requirements(("cpu", "blender", "dev", "diffusion", "cuda", "cluster"))
    names = [requirement.split("==")[0] for requirement in everything]
    assert len(names) == len(set(names)) and "torch" in names and "numpy" in names
    assert all(requirement.count("==") >= 1 and "[" not in requirement for requirement in everything)
    assert set(environment.read_requirements(("cpu",))) < set(everything)


def test_the_scripts_need_nothing_but_the_standard_library() -> None:
    code = "import sys; sys.path.insert(0, 'scripts'); import environment, demo, test; print(len(environment.LEAKS))"
    command = [sys.executable, "-I", "-S", "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
