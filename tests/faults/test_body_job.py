"""Rows 29, 33 and 37 of the fault matrix with the real `body` job: memory that really runs out, and what is open."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest

from tests.faults.client import ROOT, Client, half_files, listening_ports, make_job, real_command, serving

PORTRAIT = ROOT / "scripts" / "data" / "collins.png"
SPARE_BYTES = 3_000_000
STAGE, NEXT_STAGE = "Dress the body", "Place the Gaussians"
PATIENCE_S = 300.0


def run_body(client: Client, resume: bool = False) -> None:
    request = {"preset": "fast"}
    client.send(type="run", job_id="one", method="body", request=request, image="input.png", resume=resume)


def address_space_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[0]) * resource.getpagesize()


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="limits another process (Linux)")
def test_29_33_37_memory_runs_out_in_the_body_job_and_a_fresh_process_goes_on(tmp_path: Path) -> None:
    folder = make_job(tmp_path / "jobs", "one", PORTRAIT)
    with serving(tmp_path, "--offline", command=real_command) as client:
        run_body(client)
        client.wait("progress", job_id="one", stage=STAGE, patience_s=PATIENCE_S)
        limit = address_space_bytes(client.child.pid) + SPARE_BYTES
        resource.prlimit(client.child.pid, resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
        failed = client.wait("failed", job_id="one")
        assert failed["code"] == "OUT_OF_MEMORY", failed
        assert "needed" in failed["text"] and "free" in failed["text"] and "\n" not in failed["text"]
        assert "Error" in (folder / failed["log"]).read_text()
        client.wait("retiring")
        assert client.wait_exit() == 0
    assert not (folder / "result").exists()
    with serving(tmp_path, "--offline", command=real_command) as client:
        run_body(client, resume=True)
        client.wait("progress", job_id="one", stage=NEXT_STAGE, patience_s=PATIENCE_S)
        assert listening_ports(client.child.pid) == []
        client.send(type="cancel", job_id="one")
        assert client.wait_end("one")["type"] == "cancelled"
        begun = {message["stage"] for message in client.of("progress", job_id="one") if message["note"] == ""}
    assert begun <= {"Load the body", STAGE, NEXT_STAGE}
    assert half_files(folder) == []
