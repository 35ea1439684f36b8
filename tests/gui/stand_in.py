"""Stands in for the backend in tests of the interface: the real protocol, jobs of seconds, trouble by the photo's name.

Called as the backend's Python would be. A photo whose name begins with `quick` is done at once, `slow` takes
EFFIGY_STAND_IN_S seconds; `fails`, `closes`, `outside`, `size`, `hash` and `damaged` say what goes wrong. The avatar is
the bundle that EFFIGY_STAND_IN_BUNDLE names, else synthetic tubes.
"""

from __future__ import annotations

import hashlib
import json
import os
import queue
import shutil
import sys
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from blender_addon.shared import protocol
from blender_addon.shared.protocol import (
    Accepted,
    Cancel,
    Cancelled,
    Cancelling,
    Capabilities,
    Device,
    Failed,
    File,
    Hello,
    Ping,
    Pong,
    Preview,
    Progress,
    Result,
    Run,
)
from tests.blender.synthetic import write_synthetic_bundle

STAGES = ("Find the person", "Fit the body", "Match the photo")
STEP_S = 0.02


def say(message: protocol.BackendMessage) -> None:
    os.write(1, protocol.encode(message))


class StandIn:
    def __init__(self, jobs: Path) -> None:
        self.jobs = jobs
        self.seconds = float(os.environ.get("EFFIGY_STAND_IN_S", "4"))
        self.orders: queue.SimpleQueue[Run] = queue.SimpleQueue()
        self.cancelled: set[str] = set()
        threading.Thread(target=self.listen, daemon=True).start()

    def listen(self) -> None:
        """Take what Blender says; the end of the input is the end of the process, whatever is being done."""
        for line in sys.stdin.buffer:
            message = protocol.decode_client(line)
            if isinstance(message, Run):
                say(Accepted(message.job_id))
                self.cancelled.discard(message.job_id)
                self.orders.put(message)
            elif isinstance(message, Cancel):
                say(Cancelling(message.job_id))
                self.cancelled.add(message.job_id)
            elif isinstance(message, Ping):
                say(Pong())
            else:
                break
        os._exit(0)

    def work(self) -> None:
        say(Hello(protocol.PROTOCOL, "stand-in", os.getpid(), Device()))
        say(Capabilities(("body",)))
        while True:
            order = self.orders.get()
            folder = self.jobs / order.job_id
            trouble = json.loads((folder / "request.json").read_text("utf-8"))["name"].split(".")[0].split("_")[0]
            self.note(folder, "running")
            say(self.end(order, folder, trouble))

    def note(self, folder: Path, state: str) -> None:
        (folder / "state.json").write_text(json.dumps({"state": state, "pid": os.getpid()}), "utf-8")

    def end(self, order: Run, folder: Path, trouble: str) -> protocol.BackendMessage:
        """Do a job and return how it ended."""
        say(Preview(order.job_id, order.image))
        steps = 3 if trouble == "quick" else max(int(self.seconds / STEP_S), 3)
        for step in range(steps):
            if order.job_id in self.cancelled:
                self.note(folder, "cancelled")
                return Cancelled(order.job_id)
            place = step / steps * len(STAGES)
            number = int(place)
            note = f"step {step + 1} of {steps}"
            say(Progress(order.job_id, STAGES[number], place - number, 1.0, note, number + 1, len(STAGES)))
            time.sleep(STEP_S)
        if trouble == "closes":
            os.close(1)
            time.sleep(600)
        if trouble == "fails":
            (folder / "log.txt").write_text("what the artist need not see\n", "utf-8")
            text, hint = "nobody can be seen in the photo", "choose a photo that shows a person"
            return Failed(order.job_id, "BAD_IMAGE", text, hint, retryable=False, log="log.txt")
        return self.result(order, folder, trouble)

    def result(self, order: Run, folder: Path, trouble: str) -> Result:
        made, given = folder / "result", os.environ.get("EFFIGY_STAND_IN_BUNDLE")
        if given:
            shutil.copytree(given, made)
        else:
            write_synthetic_bundle(made, 4000)
        if trouble == "damaged":
            (made / "avatar.npz").write_bytes(b"PK\x03\x04 but no more")
        about = {
            "method": order.method, "request": dict(order.request), "generators": ["stand-in"],
            "warnings": ["the light comes from one side"],
            "stages": [{"name": name, "seconds": self.seconds / 3} for name in STAGES],
        }  # fmt: skip
        (made / "result.json").write_text(json.dumps(about), "utf-8")
        (made / "log.txt").write_text("made by a stand-in\n", "utf-8")
        files = []
        for role, name in (("gaussians", "gaussians.ply"), ("avatar", "avatar.npz"), ("result", "result.json")):
            data = (made / name).read_bytes()
            files.append(File(role, f"result/{name}", len(data), hashlib.sha256(data).hexdigest()))
        last = files[-1]
        lies = {
            "outside": File("result", "../outside.txt", 1, last.sha256),
            "size": File("result", last.path, last.bytes + 1, last.sha256),
            "hash": File("result", last.path, last.bytes, "0" * 64),
        }
        files[-1] = lies.get(trouble, last)
        self.note(folder, "done")
        return Result(order.job_id, tuple(files))


if __name__ == "__main__":
    StandIn(Path(sys.argv[sys.argv.index("--jobs") + 1])).work()
