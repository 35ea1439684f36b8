"""A backend of forty lines that behaves as its argument says: what the Blender side must survive. Stdlib only."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time


def say(**message: object) -> None:
    os.write(1, json.dumps(message).encode() + b"\n")


def main(mode: str) -> None:
    if mode == "crash":
        os.write(2, b"something terrible\n")
        os.kill(os.getpid(), signal.SIGSEGV)
    if mode == "silent":
        time.sleep(600)
    if mode == "stays":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    protocol = {"old": "0.9", "new": "2.0", "minor": "1.77", "odd": "x"}.get(mode, "1.0")
    device = {"kind": "cpu", "name": "a machine", "colour": "green"}
    say(type="hello", protocol=protocol, backend_version="9", pid=os.getpid(), device=device, mood="good")
    say(type="capabilities", methods=["body"])
    if mode == "minor":
        say(type="horoscope", text="a message of the future")
    if mode == "garbage":
        os.write(1, b"Segmentation fault (core dumped)\n")
    if mode == "flood":
        os.write(1, b"x" * 3_000_000 + b"\n")
    if mode == "mute":
        time.sleep(600)
    if mode == "closes output":
        os.close(1)
        time.sleep(600)
    for line in sys.stdin:
        answer(json.loads(line), mode)
    if mode == "stays":
        time.sleep(600)


def answer(message: dict[str, object], mode: str) -> None:
    kind, job_id = message["type"], message.get("job_id")
    if kind == "ping":
        say(type="pong")
    elif kind == "shutdown" and mode != "stays":
        sys.exit(0)
    elif kind == "cancel" and mode != "deaf":
        say(type="cancelling", job_id=job_id)
        say(type="cancelled", job_id=job_id)
    elif kind == "run":
        if mode == "refuses":
            say(type="error", code="BAD_REQUEST", text="no", job_id=job_id)
            return
        say(type="accepted", job_id=job_id)
        for step in range(1000 if mode == "chatty" else 3):
            say(type="progress", job_id=job_id, stage="Work", done=step, total=1000, index=1, count=2)
        if mode == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        if mode == "leaves a child":
            subprocess.Popen(["sleep", "600"])
            os.kill(os.getpid(), signal.SIGKILL)
        if mode in ("works", "deaf"):
            return
        path = {"lies": "../elsewhere.txt", "absolute": "/etc/hostname", "missing": "result/x"}.get(mode, "input.png")
        file = {"role": "input", "path": path, "bytes": 5, "sha256": "0" * 64}
        say(type="result", job_id=job_id, files=[file] if mode != "chatty" else [])
        if mode == "twice":
            say(type="failed", job_id=job_id, code="INTERNAL", text="after all")
        if mode == "retires":
            say(type="retiring", reason="enough")
            sys.exit(0)


if __name__ == "__main__":
    main(sys.argv[1])
