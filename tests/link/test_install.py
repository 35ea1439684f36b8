"""Installing the backend: by uv or by pip, interrupted anywhere, twice at once, from hostile or absent sources."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from blender_addon.link import environments, install
from blender_addon.link.backend_python import NoBackendError, find_backend_python
from blender_addon.link.install import Installation
from tests.link.tiny_index import TinyIndex, finish, until, wait

STEPS = ("venv", "packages:effigy_tiny_one", "packages:effigy_tiny_two")
AWKWARD = "Jörg's Blender ü 日本 & Co"


@pytest.fixture
def index(tmp_path: Path) -> TinyIndex:
    return TinyIndex.make(tmp_path / "index")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / AWKWARD / "environments"


def version_in(python: Path) -> str:
    code = "import effigy_tiny_one as one, effigy_tiny_two as two; print(one.VERSION, two.VERSION)"
    return subprocess.run([python, "-I", "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_32_an_installed_environment_is_found_and_is_separate(index: TinyIndex, root: Path) -> None:
    """Row 32: the user's folder has spaces, quotes and letters beyond ASCII."""
    order = index.order(root)
    assert finish(order).state == "ready"
    made = environments.read(order.folder)
    assert made.usable and made.tool == "uv" and made.python.startswith(order.versions[0])
    assert version_in(made.interpreter) == "1.0 1.0"
    assert environments.best(root) == made
    code = "import sys; print(sys.prefix)"
    prefix = subprocess.run([made.interpreter, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert Path(prefix) == order.folder


def test_a_second_order_finds_everything_done(index: TinyIndex, root: Path) -> None:
    assert finish(index.order(root)).state == "ready"
    index.heal()
    assert finish(index.order(root)).state == "ready"
    assert index.steps() == []


@pytest.mark.parametrize("step", STEPS)
def test_35_a_cancelled_installation_is_incomplete_and_goes_on(index: TinyIndex, root: Path, step: str) -> None:
    """Row 35."""
    order = index.order(root)
    index.hang(step)
    running = Installation(order)
    until((index.folder / "hanging").exists)
    assert running.progress.state == "running" and 0 < running.progress.fraction < 1
    running.cancel()
    assert wait(running, 5).state == "cancelled"
    assert environments.best(root) is None
    index.heal()
    assert finish(order).state == "ready"
    assert version_in(environments.read(order.folder).interpreter) == "1.0 1.0"
    if step != "venv":
        assert "venv" not in index.steps(), "the environment itself was whole"


@pytest.mark.parametrize("step", STEPS)
def test_12_35_blender_dies_while_it_installs(index: TinyIndex, root: Path, step: str) -> None:
    """Row 35, with SIGKILL; and what was left running keeps the next one waiting (row 12)."""
    order = index.order(root)
    index.hang(step)
    code = (
        "import sys, time; from pathlib import Path; from tests.link.tiny_index import TinyIndex; "
        "from blender_addon.link.install import Installation; index = TinyIndex(Path(sys.argv[1])); "
        "Installation(index.order(Path(sys.argv[2]))); time.sleep(60)"
    )
    blender = subprocess.Popen([sys.executable, "-c", code, str(index.folder), str(root)], cwd=install_root())
    until((index.folder / "hanging").exists)
    blender.kill()
    blender.wait()
    assert environments.best(root) is None
    index.heal()
    running = Installation(order)
    until(lambda: "installing here" in running.progress.text)
    assert running.progress.state == "running"
    end_orphans(index)
    assert wait(running).state == "ready"
    assert version_in(environments.read(order.folder).interpreter) == "1.0 1.0"


def install_root() -> Path:
    return Path(__file__).resolve().parent.parent.parent


def end_orphans(index: TinyIndex) -> None:
    """Kill what a killed Blender left: the stand-ins for uv of this test's own folder."""
    needle = str(index.folder / "bin" / "uv").encode()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and needle in (entry / "cmdline").read_bytes():
            os.kill(int(entry.name), signal.SIGKILL)


def test_35_an_environment_that_does_not_work_is_never_used(index: TinyIndex, root: Path) -> None:
    order = replace(index.order(root), check=index.order(root, "2.0").check)
    done = finish(order)
    assert done.state == "failed" and done.text.startswith("packages: ") and "Repair" in done.text
    assert "\n" not in done.text
    assert environments.best(root) is None and environments.read(order.folder).step == "check"
    assert finish(index.order(root)).state == "ready"


def test_35_a_damaged_environment_is_repaired(index: TinyIndex, root: Path) -> None:
    order = index.order(root)
    assert finish(order).state == "ready"
    site = next(order.folder.glob("lib/python*/site-packages"))
    (site / "effigy_tiny_two.py").unlink()
    assert finish(order).state == "ready", "an order to install trusts the state file ..."
    assert finish(replace(order, mode="repair")).state == "ready"
    assert version_in(environments.read(order.folder).interpreter) == "1.0 1.0"
    shutil.rmtree(order.folder / "bin")
    assert environments.best(root) is None, "... but not without its Python"
    assert finish(order).state == "ready"


def test_35_the_old_environment_serves_until_the_new_one_works(index: TinyIndex, root: Path) -> None:
    """Row 35: a failed upgrade."""
    old = index.order(root)
    assert finish(old).state == "ready"
    new = index.order(root, "2.0")
    assert new.folder != old.folder
    index.fail("packages:effigy_tiny_two")
    assert finish(new).state == "failed"
    best = environments.best(root)
    assert best is not None and best.folder == old.folder and version_in(best.interpreter) == "1.0 1.0"
    index.heal()
    assert finish(new).state == "ready"
    best = environments.best(root)
    assert best is not None and best.folder == new.folder and version_in(best.interpreter) == "2.0 2.0"
    assert not old.folder.exists(), "the old one goes when the new one works"


def test_12_an_environment_in_use_is_not_taken_away(index: TinyIndex, root: Path) -> None:
    old, new = index.order(root), index.order(root, "2.0")
    assert finish(old).state == "ready"
    code = "from backend.in_use import hold_environment; kept = hold_environment(); print(kept is not None); input()"
    process = subprocess.Popen(
        [environments.read(old.folder).interpreter, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        env={"PYTHONPATH": str(install_root())}, text=True,
    )  # fmt: skip
    assert process.stdin is not None and process.stdout is not None
    assert process.stdout.readline().strip() == "True"
    assert "jobs" in finish(replace(old, mode="repair")).text
    assert finish(new).state == "ready" and environments.read(old.folder).usable
    removal = finish(replace(new, mode="remove"))
    assert removal.state == "failed" and "in use" in removal.text
    process.stdin.close()
    process.wait(10)
    assert finish(replace(new, mode="remove")).state == "removed"
    assert not [path for path in root.iterdir() if path.is_dir()]


def test_what_was_in_use_goes_later_but_never_while_somebody_installs(index: TinyIndex, root: Path) -> None:
    new = index.order(root, "2.0")
    assert finish(index.order(root)).state == finish(new).state == "ready"
    older = root / "backend-0.0.1-cpu-00000000"
    older.mkdir()
    index.hang("venv")
    third = Installation(index.order(root, "2.0", mode="repair", accelerator="mac"))
    until((index.folder / "hanging").exists)
    install.tidy(root, new.folder)
    assert older.exists()
    third.cancel()
    wait(third, 5)
    install.tidy(root, new.folder)
    assert not older.exists() and new.folder.exists()


def test_12_two_installers_at_once_make_it_once(index: TinyIndex, root: Path) -> None:
    """Row 12."""
    index.hang("packages:effigy_tiny_one")
    first = Installation(index.order(root))
    until((index.folder / "hanging").exists)
    second = Installation(index.order(root))
    until(lambda: f"process {os.getpid()}" in second.progress.text)
    third = Installation(index.order(root))
    until(lambda: "installing here" in third.progress.text)
    third.cancel()
    assert wait(third, 5).state == "cancelled", "waiting can be cancelled"
    first.cancel()
    wait(first, 5)
    index.heal()
    assert wait(second).state == "ready"
    assert index.steps().count("packages:effigy_tiny_one") == 1


def test_a_package_with_another_digest_is_refused(index: TinyIndex, root: Path) -> None:
    done = finish(index.order(root, requirements=index.requirements(digest="0" * 64)))
    assert done.state == "failed" and "sha256 differs" in done.text and environments.best(root) is None


def test_33_without_online_access_nothing_is_opened_or_written(
    index: TinyIndex, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Row 33."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a socket was opened, or a process started")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(subprocess, "Popen", refuse)
    done = finish(index.order(root, online=False))
    assert done.state == "failed" and "online access is off" in done.text and "System" in done.text
    assert not root.exists()


@pytest.mark.skipif(os.geteuid() == 0 and not Path("/proc/self/mounts").exists(), reason="the superuser may write")
def test_32_a_folder_that_cannot_be_written_is_one_line(index: TinyIndex, tmp_path: Path) -> None:
    """Row 32: read-only; a file in the folder's place stops the superuser too."""
    (tmp_path / "user").write_text("a file")
    done = finish(index.order(tmp_path / "user" / "environments"))
    assert done.state == "failed" and "cannot be written" in done.text and "another folder" in done.text
    assert "\n" not in done.text


def test_too_little_space_is_said_before_the_start(index: TinyIndex, root: Path) -> None:
    done = finish(index.order(root, needed_bytes=10**18))
    assert done.state == "failed" and "GB are needed" in done.text and str(root) in done.text
    assert index.steps() == []


def test_32_windows_long_paths_are_counted(index: TinyIndex, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Row 32: more than 259 characters, where the system does not allow them."""
    monkeypatch.setattr(install.sys, "platform", "win32")
    monkeypatch.setattr(install, "supported", lambda: "")
    done = finish(index.order(root / ("long" * 20)))
    assert done.state == "failed" and "too long a path for Windows" in done.text and "at most" in done.text


def test_neither_uv_nor_python_is_one_line(index: TinyIndex, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(install, "find_pythons", lambda *_: {})
    done = finish(index.order(root, caller=index.variables(uv=False)))
    assert done.state == "failed" and "install" in done.text and "\n" not in done.text
    assert index.order(root).versions[0] in done.text


def test_nothing_of_the_caller_leaks_in(index: TinyIndex, root: Path) -> None:
    bad = index.folder / "bad"
    bad.mkdir()
    (bad / "effigy_tiny_one.py").write_text("VERSION = 'leaked'\n")
    caller = index.variables() | {"PYTHONPATH": str(bad), "PYTHONHOME": str(bad), "PIP_TARGET": str(bad)}
    order = index.order(root, caller=caller)
    assert finish(order).state == "ready"
    assert [path.name for path in bad.iterdir() if path.name != "__pycache__"] == ["effigy_tiny_one.py"]


def test_the_backend_is_started_only_from_a_finished_environment(
    index: TinyIndex, root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from blender_addon.link import backend_python

    monkeypatch.setattr(backend_python, "ROOT", tmp_path)
    monkeypatch.delenv("EFFIGY_BACKEND_PYTHON", raising=False)
    monkeypatch.setattr(backend_python.importlib.util, "find_spec", lambda name: None)
    order = index.order(root)
    index.fail("packages:effigy_tiny_two")
    assert finish(order).state == "failed"
    with pytest.raises(NoBackendError, match="Install Backend"):
        find_backend_python(None, root)
    index.heal()
    assert finish(order).state == "ready"
    assert find_backend_python(None, root) == order.folder / "bin" / "python"
    state = order.folder / environments.ENVIRONMENT_STATE
    state.write_text(json.dumps(json.loads(state.read_text()) | {"state": "incomplete"}))
    with pytest.raises(NoBackendError):
        find_backend_python(None, root)


def test_pip_makes_it_where_there_is_no_uv(index: TinyIndex, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real pip with an index on the disk; a wrong digest, then the right ones."""
    python = {index.order(root).versions[0]: Path(sys.executable)}
    monkeypatch.setattr(install, "find_pythons", lambda *_: python)
    caller = index.variables(uv=False)
    wrong = index.order(root, caller=caller, requirements=index.requirements(digest="0" * 64))
    done = finish(wrong)
    assert done.state == "failed" and "sha256 differs" in done.text, done
    order = index.order(root, caller=caller)
    assert finish(order).state == "ready"
    made = environments.read(order.folder)
    assert made.tool == "pip" and version_in(made.interpreter) == "1.0 1.0"
    site = next(order.folder.glob("lib/python*/site-packages"))
    (site / "effigy_tiny_one.py").write_text("VERSION = 'broken'\n")
    assert finish(replace(order, mode="repair")).state == "ready"
    assert version_in(made.interpreter) == "1.0 1.0"


def test_the_real_uv_makes_it(index: TinyIndex, root: Path) -> None:
    uv = Path(sys.executable).parent / "uv"
    assert uv.is_file(), "uv is one of the tests' own packages"
    (index.folder / "bin" / "uv").unlink()
    (index.folder / "bin" / "uv").symlink_to(uv)
    order = index.order(root, caller=index.variables() | {"UV_PYTHON_DOWNLOADS": "never"}, pythons=("3.11", "3.12"))
    order = replace(
        order, caller=dict(order.caller) | {"PATH": f"{index.folder / 'bin'}:{Path(sys.base_prefix) / 'bin'}"}
    )
    wrong = finish(replace(order, requirements=index.requirements(digest="0" * 64)))
    assert wrong.state == "failed" and "sha256 differs" in wrong.text, wrong
    done = finish(order)
    assert done.state == "ready", done
    assert version_in(environments.read(order.folder).interpreter) == "1.0 1.0"
    assert finish(replace(order, mode="repair")).state == "ready"
