"""`python -m backend models` as a process: killed at any moment, offline, with a token, and what it says to programs.

Rows 33, 34 and 37 of the fault matrix.
"""

from __future__ import annotations

import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save

from backend.__main__ import main
from backend.diffusion import registry
from backend.diffusion.weights import Weights
from tests.diffusion.mock_hub import MockHub, mock_hub

ROOT = Path(__file__).resolve().parents[2]
ROW = registry.row("dinov2-base")  # its commit is pinned and no hash is
LICENCE = ("--accept", ROW.licence)
SECRET = "hf_the-right-token"

KEYRING = '''
import json, os, pathlib
from . import errors
def _file(): return pathlib.Path(os.environ["FAKE_KEYRING"])
def _all(): return json.loads(_file().read_text()) if _file().is_file() else {}
def get_password(service, name):
    if os.environ.get("LOCKED_KEYRING"): raise errors.KeyringError("locked")
    return _all().get(f"{service}/{name}")
def set_password(service, name, secret):
    if os.environ.get("LOCKED_KEYRING"): raise errors.KeyringError("locked " + secret)
    _file().write_text(json.dumps({**_all(), f"{service}/{name}": secret}))
def delete_password(service, name):
    _file().write_text(json.dumps({k: v for k, v in _all().items() if k != f"{service}/{name}"}))
'''  # fmt: skip


def content(seed: int, megabytes: float) -> bytes:
    return save({"w": torch.rand(int(megabytes * 250_000), generator=torch.Generator().manual_seed(seed))})


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    return {"config.json": b"{}", "preprocessor_config.json": b"{}", "model.safetensors": content(0, 6)}


@pytest.fixture
def hub(files: dict[str, bytes]) -> Iterator[MockHub]:
    assert ROW.revision is not None
    with mock_hub({ROW.repository: dict(files)}, ROW.revision) as hub:
        yield hub


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    kept = {
        k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy") and not k.startswith(("HF_", "EFF"))
    }
    return {**kept, "PYTHONPATH": str(ROOT), "EFFIGY_MODELS": str(tmp_path / "models"), "PYTHONSAFEPATH": "1"}


def start(environment: dict[str, str], *arguments: str, **options: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "backend", "models", *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.PIPE}
    return subprocess.Popen(command, env=environment, text=True, **{**pipes, **options})


def run_process(environment: dict[str, str], *arguments: str) -> tuple[int, list[dict[str, Any]], str]:
    """Exit code, JSON lines and all that was said."""
    process = start(environment, "--json", *arguments)
    out, err = process.communicate("", timeout=60)
    return process.returncode, [json.loads(line) for line in out.splitlines()], out + err


def run(environment: dict[str, str], *arguments: str, given: str = "") -> tuple[int, list[dict[str, Any]], str]:
    """The same in this process, which is quicker."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        for name in set(os.environ) - set(environment):
            patch.delenv(name)
        for name, value in environment.items():
            patch.setenv(name, value)
        patch.setattr("sys.stdin", io.StringIO(given))
        patch.setattr("backend.models.watch_parent", lambda gone: None)
        code = main(["models", "--json", *arguments])
    said = out.getvalue()
    return code, [json.loads(line) for line in said.splitlines()], said + err.getvalue()


def test_a_fetch_that_is_killed_again_and_again_ends_with_the_right_files(
    hub: MockHub, environment: dict[str, str], files: dict[str, bytes]
) -> None:
    generator = random.Random(7)
    hub.faults.bytes_per_s = 6e6
    weights = Weights(Path(environment["EFFIGY_MODELS"]))
    part = weights.root / ROW.id / "model.safetensors.part"
    sizes = [0]
    for kill in range(6):
        process = start(environment, "fetch", ROW.id, *LICENCE, "--mirror", hub.base)
        until = sizes[-1] + generator.randrange(1, 900_000)
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and process.poll() is None:
            if part.is_file() and part.stat().st_size >= until or (kill == 0 and hub.seen):
                break
            time.sleep(0.002)
        process.kill()
        process.communicate()
        sizes.append(part.stat().st_size if part.is_file() else 0)
        assert not weights.installed(ROW.id)
    listed = {line["id"]: line for line in run(environment, "list")[1]}[ROW.id]
    assert listed["installed"] == [] and listed["partial_bytes"] >= sizes[-1]
    assert sizes == sorted(sizes) and sizes[-1] > sizes[1]  # nothing that came was lost
    hub.faults.bytes_per_s = 0.0
    code, lines, _ = run(environment, "fetch", ROW.id, *LICENCE, "--mirror", hub.base)
    assert code == 0 and lines[-1]["type"] == "done"
    folder = weights.folder(ROW.id)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == files
    last = [request for request in hub.file_requests() if "model.safetensors" in request.path][-1]
    assert last.headers.get("range") == f"bytes={sizes[-1]}-"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_cancels_and_says_so(hub: MockHub, environment: dict[str, str], number: signal.Signals) -> None:
    hub.faults.bytes_per_s = 1e6
    process = start(environment, "--json", "fetch", ROW.id, *LICENCE, "--mirror", hub.base)
    assert process.stdout is not None
    for line in process.stdout:
        if json.loads(line).get("done", 0) > 0.3:
            break
    begun = time.monotonic()
    process.send_signal(number)
    out, err = process.communicate(timeout=10)
    assert time.monotonic() - begun < 2.0
    assert process.returncode == 1 and json.loads(out.splitlines()[-1])["code"] == "CANCELLED" and not err


def test_a_program_is_told_the_plan_the_progress_and_the_end(hub: MockHub, environment: dict[str, str]) -> None:
    code, lines, _ = run(environment, "fetch", ROW.id, "--mirror", hub.base)
    assert code == 2 and lines[-1]["code"] == "BAD_REQUEST" and ROW.licence in lines[-1]["text"]
    assert hub.seen == []
    code, lines, _ = run(environment, "fetch", ROW.id, "--plan", "--mirror", hub.base)
    assert code == 0 and [line["type"] for line in lines] == ["plan"] and not hub.file_requests()
    total = lines[0]["bytes"]
    code, lines, _ = run(environment, "fetch", ROW.id, *LICENCE, "--mirror", hub.base)
    progress = [line for line in lines if line["type"] == "progress"]
    assert progress[-1]["done"] == progress[-1]["total"] == pytest.approx(total / 1e6, abs=1e-3)
    assert lines[-1] == {"type": "done", "model": ROW.id, "folder": lines[-1]["folder"], "bytes": total}
    code, lines, _ = run(environment, "list")
    found = {line["id"]: line for line in lines}
    assert len(found) == len(registry.ROWS)
    assert found[ROW.id]["installed"] == ["published"] and found[ROW.id]["bytes"] == total
    assert found[ROW.id]["accepted"] and not found["clip-l"]["accepted"]
    assert not found["sv3d-u"]["commercial"] and found["sv3d-u"]["gated"]


def test_verify_reads_everything_and_remove_removes_it(hub: MockHub, environment: dict[str, str]) -> None:
    run(environment, "fetch", ROW.id, *LICENCE, "--mirror", hub.base)
    hub.close()
    code, lines, _ = run(environment, "verify")
    assert code == 0 and lines[-1]["wrong"] == []
    path = Path(environment["EFFIGY_MODELS"]) / ROW.id / "model.safetensors"
    damaged = bytearray(path.read_bytes())
    damaged[-3] ^= 1
    times = path.stat()
    path.write_bytes(damaged)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))  # as a failing disk does it
    code, lines, _ = run(environment, "verify", ROW.id)
    assert code == 1 and lines[-1]["wrong"] == ["model.safetensors has changed (another sha256)"]
    derived = path.parent.with_name(f"{ROW.id}-diffusers")
    derived.mkdir()
    code, lines, _ = run(environment, "remove", ROW.id)
    assert code == 0 and not path.parent.exists() and not derived.exists()
    with Weights(Path(environment["EFFIGY_MODELS"])).busy(ROW.id):
        code, lines, _ = run(environment, "remove", ROW.id)
        assert code == 1 and "another process" in lines[-1]["text"]
    assert run(environment, "verify", ROW.id)[0] == 3


def test_offline_opens_no_socket_and_says_what_to_do(hub: MockHub, environment: dict[str, str]) -> None:
    """Row 33: whatever asks for the network gets an error, and what needs none works."""
    code, lines, _ = run_process(environment, "--offline", "fetch", ROW.id, *LICENCE, "--mirror", hub.base)
    assert code == 3 and lines[-1]["code"] == "OFFLINE" and "online access" in lines[-1]["text"]
    assert hub.seen == []
    run(environment, "fetch", ROW.id, *LICENCE, "--mirror", hub.base)
    assert run_process(environment, "--offline", "verify", ROW.id)[0] == 0


def test_loading_a_model_opens_no_socket(hub: MockHub, environment: dict[str, str]) -> None:
    """Row 33 for use: looking for a model, there or not, and reading it."""
    run(environment, "fetch", ROW.id, *LICENCE, "--mirror", hub.base)
    code = """
import sys
opened = []
sys.addaudithook(lambda event, _: opened.append(event) if event.startswith("socket.") else None)
from backend.diffusion.weights import Weights, installed_models
from backend.errors import UserError
weights = Weights.default()
assert weights.folder("dinov2-base").is_dir() and len(installed_models()) == 1
try:
    weights.folder("sd15")
    raise SystemExit("found")
except UserError as error:
    assert "models fetch sd15" in error.message and "model_index.json" in error.message
assert not opened, opened
"""
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def keyring(tmp_path: Path, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A keyring library of our own, as the real one behaves; its content is a file for the test to look at."""
    package = tmp_path / "packages" / "keyring"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(KEYRING)
    (package / "errors.py").write_text("class KeyringError(Exception): pass\n")
    monkeypatch.syspath_prepend(str(package.parent))
    for name in [name for name in sys.modules if name.split(".")[0] == "keyring"]:
        monkeypatch.delitem(sys.modules, name)
    environment["FAKE_KEYRING"] = str(tmp_path / "keyring.json")
    yield tmp_path / "keyring.json"
    for name in [name for name in sys.modules if name.split(".")[0] == "keyring"]:
        del sys.modules[name]


def test_the_token_lives_in_the_keyring_only(
    hub: MockHub, environment: dict[str, str], keyring: Path, tmp_path: Path
) -> None:
    """Row 37: the token is in no argument, no file, no line that is said, and goes to the hub alone."""
    hub.faults.gated = True
    said = []
    code, lines, text = run(environment, "fetch", ROW.id, *LICENCE, "--mirror", hub.base)
    said.append(text)
    assert code == 3 and "models token" in lines[-1]["text"] and ROW.repository in lines[-1]["text"]
    code, _, text = run(environment, "token", "--mirror", hub.base, given=f"{SECRET}\n")
    said.append(text)
    assert code == 0 and json.loads(keyring.read_text()) == {"effigy/127.0.0.1": SECRET}
    code, _, text = run(environment, "fetch", ROW.id, *LICENCE, "--mirror", hub.base)
    said.append(text)
    assert code == 0
    hub.faults.portal = True
    said.append(run(environment, "fetch", ROW.id, "--update", *LICENCE, "--mirror", hub.base)[2])
    assert not any(SECRET in text for text in said)
    assert not any("authorization" in request.headers for request in hub.file_requests())
    written = [path for path in tmp_path.rglob("*") if path.is_file() and path != keyring]
    assert written and not any(SECRET.encode() in path.read_bytes() for path in written)
    code, _, _ = run(environment, "token", "--forget", "--mirror", hub.base)
    assert code == 0 and json.loads(keyring.read_text()) == {}


def test_a_locked_or_missing_keyring_is_said_in_one_line(
    hub: MockHub, environment: dict[str, str], keyring: Path
) -> None:
    environment["LOCKED_KEYRING"] = "1"
    code, lines, text = run(environment, "token", given=f"{SECRET}\n")
    assert code == 3 and "unlock it" in lines[-1]["text"] and SECRET not in text
    hub.faults.gated = True
    code, lines, _ = run(environment, "fetch", ROW.id, *LICENCE, "--mirror", hub.base)
    assert code == 3 and "models token" in lines[-1]["text"]
    for wrong in ("", "two words\n", "kurz\n", "hf_ä" * 5 + "\n"):
        assert run(environment, "token", given=wrong)[0] == 2


def test_without_the_keyring_library_one_line_names_it(environment: dict[str, str]) -> None:
    hide = "import sys\nsys.modules['keyring'] = None\n"
    code = f"{hide}import importlib.util as u\nreal = u.find_spec\nu.find_spec = lambda n, *a: None if n == 'keyring' "
    code += "else real(n, *a)\nfrom backend.__main__ import main\nsys.exit(main(['models', 'token']))"
    process = subprocess.run(
        [sys.executable, "-c", code], env=environment, input=SECRET, capture_output=True, text=True, check=False
    )
    assert process.returncode == 3 and len(process.stderr.splitlines()) == 1
    assert "package keyring" in process.stderr and SECRET not in process.stdout + process.stderr


def test_the_mirror_is_taken_from_the_environment_too(hub: MockHub, environment: dict[str, str]) -> None:
    for name in ("EFFIGY_HUB", "HF_ENDPOINT"):
        code, lines, _ = run({**environment, name: hub.base}, "fetch", "--plan", ROW.id)
        assert code == 0 and lines[0]["commit"] == ROW.revision
    code, lines, _ = run({**environment, "HF_ENDPOINT": "http://mirror.example"}, "fetch", "--plan", ROW.id)
    assert code == 2 and "https://" in lines[-1]["text"]


def test_import_and_convert_are_commands(environment: dict[str, str], tmp_path: Path) -> None:
    source = tmp_path / "mine"
    source.mkdir()
    (source / "model.safetensors").write_bytes(save({"wide.weight": torch.rand(200, 300)}))
    code, lines, _ = run(environment, "import", "albedo", str(source))
    assert code == 0 and lines[-1]["type"] == "done"
    code, lines, _ = run(environment, "convert", "albedo", "--to", "bf16")
    assert code == 0 and lines[-1]["folder"].endswith("albedo@bf16")
    code, lines, _ = run(environment, "import", "nothing", str(source))
    assert code == 2 and "no model 'nothing'" in lines[-1]["text"]
