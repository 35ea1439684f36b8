"""Rows 1, 2, 4, 5, 7, 10, 33 and 37 of the fault matrix: the serving process seen through its pipes."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from backend.parent import MAIN_THREAD
from blender_addon.link import process
from tests.faults.client import (
    ROOT,
    STUB,
    Client,
    descendants,
    environment,
    half_files,
    is_alive,
    listening_ports,
    make_job,
    real_command,
    serving,
    wait_until,
)

linux = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks into /proc")

PARENT = """
import json, os, subprocess, sys, time
child = subprocess.Popen(sys.argv[2:], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=os.environ)
child.stdin.write(sys.argv[1].encode() + b"\\n")
child.stdin.flush()
for line in child.stdout:
    if json.loads(line)["type"] == "progress":
        break
print(child.pid, flush=True)
time.sleep(600)
"""


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Client]:
    with serving(tmp_path) as client:
        yield client


@pytest.fixture(scope="module")
def common(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    with serving(tmp_path_factory.mktemp("common")) as client:
        yield client


@pytest.fixture
def shared(common: Client) -> Client:
    """One backend for the tests that leave it as it was."""
    common.forget()
    assert common.child.poll() is None
    return common


def order(job_id: str, **request: object) -> str:
    return json.dumps({"type": "run", "job_id": job_id, "method": "stub", "request": request, "image": "input.png"})


@linux
@pytest.mark.parametrize(("trouble", "by_system"), [("", False), ("stuck", True)])
def test_01_the_backend_goes_with_a_killed_parent_and_its_job_can_be_resumed(
    tmp_path: Path, trouble: str, by_system: bool
) -> None:
    jobs = tmp_path / "jobs"
    folder = make_job(jobs, "one")
    line = order("one", steps=120, step_s=0.02, trouble=trouble)
    command = [sys.executable, "-c", PARENT, line, sys.executable, "-u", str(STUB), "--jobs", str(jobs)]
    settings = environment() | ({MAIN_THREAD: "1"} if by_system else {})
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=settings, stderr=subprocess.DEVNULL)
    assert parent.stdout
    pid = int(parent.stdout.readline())
    assert is_alive(pid)
    wait_until(lambda: list(folder.rglob(trouble or "loop.*.npz")), "the loop")
    parent.kill()
    parent.wait()
    parent.stdout.close()
    wait_until(lambda: not is_alive(pid), "the end of an orphan", 5)
    assert not (folder / "result").exists()
    if trouble == "":
        with serving(tmp_path) as client:
            client.run("one", new=False, resume=True, steps=120, step_s=0.02)
            assert client.wait_end("one")["type"] == "result"
        resumed = [stage["resumed"] for stage in json.loads((folder / "result" / "result.json").read_text())["stages"]]
        assert resumed == [True, False, False] and half_files(folder) == []


def test_02_a_killed_backend_leaves_what_a_resume_needs(tmp_path: Path) -> None:
    with serving(tmp_path) as client:
        folder = client.run("one", trouble="kill")
        assert client.wait_exit() == -9
        assert client.terminals("one") == []
        assert json.loads((folder / "state.json").read_text())["state"] == "running"
        assert not (folder / "result").exists()


def test_01_both_sides_mean_the_same_variable() -> None:
    assert process.MAIN_THREAD == MAIN_THREAD


def test_04_what_libraries_print_goes_to_the_log(client: Client) -> None:
    folder = client.run("one", trouble="print")
    assert client.wait_end("one")["type"] == "result"
    assert client.bad_lines == []
    log = (folder / "result" / "log.txt").read_bytes()
    for text in (b"printed on stdout", b"binary on fd 1", b"from a child process"):
        assert text in log
    client.run("two", trouble="read")
    assert client.wait_end("two")["type"] == "result"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"nonsense", "no JSON"),
        (b"\xff\xfe{}", "no JSON"),
        (b"[1, 2]", "no JSON object"),
        (b'{"type": 3}', "no JSON object"),
        (b"{}", "no JSON object"),
        (b'{"type": "dance"}', "dance"),
        (b'{"type": "hello"}', "hello"),
        (b'{"type": "cancel"}', "cancel.job_id is missing"),
        (b'{"type": "cancel", "job_id": 7}', "wrong type"),
        (b'{"type": "run", "job_id": "a", "method": "stub", "request": [], "image": "x"}', "run.request"),
        (b'{"type": "ping", "x": NaN}', "NaN"),
        (b'{"type": "ping", "x": "\\ud800"}', "no JSON"),
        (b"[" * 100_000, "nested"),
        (b"x" * 2_100_000, "more than"),
        (b'{"type": "ping", "x": ' + b"9" * 100_000 + b"}", "no JSON"),
    ],
)
def test_05_a_line_that_is_no_message_is_answered_and_the_next_works(shared: Client, line: bytes, words: str) -> None:
    shared.send_bytes(line + b"\n")
    assert words in shared.wait("error", code="PROTOCOL")["text"]
    shared.send_bytes(b'\r\n\n{"type":"ping","unknown":[1]}\r\n')
    shared.wait("pong")
    assert len(shared.of("error")) == 1


def test_05_messages_in_pieces_and_together(client: Client) -> None:
    make_job(client.jobs, "one")
    for byte in order("one", steps=1).encode() + b"\n":
        client.send_bytes(bytes([byte]))
    assert client.wait_end("one")["type"] == "result"
    client.send_bytes(b'{"type":"ping"}\n{"type":"ping"}\n{"type":"pi')
    client.wait("pong", count=2)
    client.send_bytes(b'ng"}\n')
    client.wait("pong", count=3)


def test_07_ids_that_are_used_unknown_or_over(client: Client) -> None:
    client.run("one", steps=200, step_s=0.02)
    client.run("two", steps=1)
    client.send(type="run", job_id="one", method="stub", request={}, image="input.png")
    assert "known already" in client.wait("error", job_id="one")["text"]
    client.send(type="cancel", job_id="nobody")
    assert "no such job" in client.wait("error", job_id="nobody")["text"]
    client.send(type="cancel", job_id="one")
    client.wait("cancelling", job_id="one")
    assert client.wait_end("one")["type"] == "cancelled"
    assert client.wait_end("two")["type"] == "result"
    client.send(type="cancel", job_id="two")
    assert "ended already" in client.wait("error", job_id="two")["text"]
    assert len(client.terminals("one")) == len(client.terminals("two")) == 1


def test_07_a_job_that_improves_itself_ends_early_with_what_it_has(client: Client) -> None:
    client.run("one", steps=1, trouble="finishable")
    client.run("two", steps=1, trouble="finishable")
    assert client.wait("finishable", job_id="one")["possible"] is True
    client.send(type="finish", job_id="two")  # waits: it takes the wish along
    client.send(type="finish", job_id="nobody")
    assert "no such job" in client.wait("error", job_id="nobody")["text"]
    client.send(type="finish", job_id="one")
    assert client.wait_end("one")["type"] == client.wait_end("two")["type"] == "result"
    assert [m["possible"] for m in client.messages if m["type"] == "finishable"][:2] == [True, False]
    client.send(type="finish", job_id="one")
    assert "ended already" in client.wait("error", job_id="one")["text"]


@pytest.mark.parametrize("seed", [1, 2])
def test_07_one_end_per_job_whatever_the_order(client: Client, seed: int) -> None:
    rng = random.Random(seed)
    expected: set[str] = set()
    for number in range(25):
        job_id = f"many-{rng.randrange(8)}"
        kind = rng.choice(["run", "run", "cancel", "ping", "noise"])
        if kind == "run":
            if job_id not in expected:
                make_job(client.jobs, job_id)
            expected.add(job_id)
            trouble = rng.choice(["", "", "fail", "warn"])
            request = {"steps": rng.randrange(6), "step_s": 0.01, "trouble": trouble}
            client.send(type="run", job_id=job_id, method="stub", request=request, image="input.png")
        elif kind == "cancel":
            client.send(type="cancel", job_id=job_id)
        elif kind == "ping":
            client.send(type="ping")
        else:
            client.send_bytes(b"noise %d\n" % number)
        time.sleep(rng.choice([0, 0, 0.01, 0.05]))
    for job_id in expected:
        client.wait_end(job_id)
    client.send(type="shutdown")
    assert client.wait_exit() == 0
    for job_id in expected:
        kinds = [m["type"] for m in client.messages if m.get("job_id") == job_id and m["type"] != "error"]
        assert kinds[0] == "accepted" and kinds.count("accepted") == 1
        assert kinds[-1] in ("result", "failed", "cancelled") and len(client.terminals(job_id)) == 1


def test_10_a_closed_input_ends_it_with_code_0(client: Client) -> None:
    client.run("one", steps=1000, step_s=0.02)
    client.wait("progress", job_id="one")
    assert client.child.stdin
    client.child.stdin.close()
    assert client.wait_exit() == 0
    assert "Traceback" not in client.log.read_text()


def test_10_a_closed_output_ends_it_with_code_0(tmp_path: Path) -> None:
    jobs = tmp_path / "jobs"
    make_job(jobs, "one")
    reader, writer = os.pipe()
    command = [sys.executable, "-u", str(STUB), "--jobs", str(jobs)]
    with (tmp_path / "log").open("wb") as log:
        child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=writer, stderr=log, env=environment())
    os.close(writer)
    os.close(reader)
    assert child.stdin
    child.stdin.write(order("one").encode() + b"\n")
    child.stdin.flush()
    assert child.wait(60) == 0
    child.stdin.close()
    assert "Traceback" not in (tmp_path / "log").read_text()


def test_a_shutdown_cancels_what_runs_and_waits(client: Client) -> None:
    client.run("one", steps=1000, step_s=0.02)
    client.run("two", steps=1)
    client.wait("progress", job_id="one")
    client.send(type="shutdown")
    assert client.wait_exit() == 0
    assert [m["type"] for m in client.terminals("one") + client.terminals("two")] == ["cancelled", "cancelled"]


@pytest.mark.parametrize("job_id", ["../x", "/etc", "c:", "a\0b", "con", "com1", "ü", "A", "", "x" * 300, "a/b", "."])
def test_18_a_jobs_name_cannot_leave_the_folder(shared: Client, job_id: str) -> None:
    before = sorted(shared.jobs.parent.rglob("*"))
    shared.send(type="run", job_id=job_id, method="stub", request={}, image="input.png")
    assert shared.wait("error", job_id=job_id)["code"] == "BAD_REQUEST"
    assert sorted(shared.jobs.parent.rglob("*")) == before


@pytest.mark.parametrize("image", ["../../secret.png", "/etc/hostname", "c:/x.png", "link.png", "a\\b.png", "."])
def test_18_a_photo_lies_in_the_jobs_folder(shared: Client, image: str) -> None:
    make_job(shared.jobs, other := shared.new_id())
    folder = make_job(shared.jobs, job_id := shared.new_id())
    os.symlink(shared.jobs / other / "input.png", folder / "link.png")
    shared.send(type="run", job_id=job_id, method="stub", request={}, image=image)
    failed = shared.wait("failed", job_id=job_id)
    assert failed["code"] == "BAD_REQUEST" and "folder" in failed["text"]


def test_18_a_job_folder_that_is_a_link_is_refused(client: Client, tmp_path: Path) -> None:
    make_job(tmp_path / "elsewhere", "one")
    os.symlink(tmp_path / "elsewhere" / "one", client.jobs / "one")
    client.send(type="run", job_id="one", method="stub", request={}, image="input.png")
    assert client.wait("failed", job_id="one")["code"] == "BAD_REQUEST"
    assert sorted(path.name for path in (tmp_path / "elsewhere" / "one").iterdir()) == ["input.png", "request.json"]


@pytest.mark.parametrize(
    ("method", "request_", "code", "words"),
    [
        ("nothing", {}, "BAD_REQUEST", "nothing"),
        ("stub", {"nose": 1}, "BAD_REQUEST", "nose"),
        ("stub", {"steps": -1}, "BAD_REQUEST", "steps must lie between"),
        ("stub", {"steps": 1.5}, "BAD_REQUEST", "whole number"),
        ("stub", {"seed": 10**30}, "BAD_REQUEST", "seed"),
        ("stub", {"step_s": 1e400}, "BAD_REQUEST", "step_s"),
        ("stub", {"trouble": "fail"}, "INTERNAL", "a defect in two lines"),
        ("stub", {"trouble": "package"}, "NO_MODEL", "effigy_no_such_package is not installed"),
    ],
)
def test_17_what_cannot_be_done_is_one_line_with_a_code(
    shared: Client, method: str, request_: dict[str, object], code: str, words: str
) -> None:
    folder = make_job(shared.jobs, job_id := shared.new_id())
    text = json.dumps({"type": "run", "job_id": job_id, "method": method, "request": request_, "image": "input.png"})
    shared.send_bytes(text.replace("Infinity", "1e999").encode() + b"\n")
    failed = shared.wait("failed", job_id=job_id)
    assert failed["code"] == code and words in failed["text"] and "\n" not in failed["text"] + failed["hint"]
    assert "Traceback" not in failed["text"]
    if failed["log"]:
        assert "Traceback" in (folder / failed["log"]).read_text()
    assert not (folder / "result").exists() and not (folder / ".result.partial").exists()
    assert shared.child.poll() is None


def test_13_a_photo_that_is_none_is_a_bad_image(shared: Client) -> None:
    folder = make_job(shared.jobs, job_id := shared.new_id())
    (folder / "input.png").write_bytes(b"nothing of the kind")
    shared.run(job_id, new=False)
    assert shared.wait("failed", job_id=job_id)["code"] == "BAD_IMAGE"


@linux
def test_33_37_no_socket_is_opened_and_offline_says_so(tmp_path: Path) -> None:
    with serving(tmp_path, "--offline") as client:
        client.run("one", trouble="socket")
        failed = client.wait("failed", job_id="one")
        assert failed["code"] == "OFFLINE" and "online access" in failed["text"]
        client.run("two", steps=100, step_s=0.02)
        client.wait("progress", job_id="two", stage="Loop")
        assert listening_ports(client.child.pid) == []
        assert descendants(client.child.pid) == []


@linux
def test_33_37_the_real_backend_with_all_its_libraries_opens_no_socket(tmp_path: Path) -> None:
    with serving(tmp_path, "--offline", command=real_command) as client:
        hello = client.wait("hello")
        assert hello["protocol"].startswith("1.") and hello["pid"] == client.child.pid
        assert hello["device"]["kind"] in ("cpu", "cuda") and hello["device"]["name"]
        capabilities = client.wait("capabilities")
        assert "body" in capabilities["methods"] and capabilities["problem"] == ""
        assert listening_ports(client.child.pid) == []


@linux
def test_37_the_look_at_sockets_sees_one() -> None:
    import socket

    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        assert listening_ports(os.getpid())


def test_hello_comes_before_any_library_is_loaded() -> None:
    code = "import backend.serve, sys; print([n for n in ('numpy', 'torch', 'PIL', 'scipy') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_25_26_a_poisoned_checkpoint_is_never_unpickled(tmp_path: Path) -> None:
    """A job folder may come from anywhere: what lies in it is read without pickle, and the stage runs again."""
    canary = tmp_path / "canary"
    poison = np.array([_Poison(canary)], dtype=object)
    with serving(tmp_path) as client:
        folder = client.run("one", trouble="kill", steps=6)
        client.wait_exit()
    checkpoints = list((folder / ".result.partial" / "checkpoints").rglob("*.npz"))
    assert len(checkpoints) >= 2
    for path in checkpoints:
        np.savez(path, tree=poison, values=poison, **{"checkpoint key": poison})
    assert not canary.exists()
    with serving(tmp_path) as client:
        client.run("one", new=False, resume=True, trouble="kill", steps=6)
        client.wait_exit()
    assert not canary.exists()
    (folder / "input.png").write_bytes(checkpoints[0].read_bytes())
    with serving(tmp_path) as client:
        client.run("one", new=False)
        assert client.wait("failed", job_id="one")["code"] == "BAD_IMAGE"
    assert not canary.exists()


class _Poison:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_25_the_canary_sings() -> None:
    """The poison of the test before works where pickle is allowed."""
    import io
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        canary = Path(folder) / "canary"
        file = io.BytesIO()
        np.savez(file, x=np.array([_Poison(canary)], dtype=object))
        file.seek(0)
        np.load(file, allow_pickle=True)["x"]
        assert canary.exists()
