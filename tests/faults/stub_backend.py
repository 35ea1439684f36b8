"""The real backend with one more method, `stub`, whose request says what goes wrong. Run as `python stub_backend.py`.

Its libraries are loaded in half a second, so that many jobs of the protocol can be tried.
"""

from __future__ import annotations

import argparse
import faulthandler
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import backend.methods
from backend.serve import ServeOptions, serve
from blender_addon.shared import methods
from blender_addon.shared.methods import parameter
from blender_addon.shared.protocol import Capabilities

SIZE = 20_000


@dataclass(frozen=True)
class StubRequest:
    """What the stub does."""

    preset: str = parameter("fast", "Preset", "")
    trouble: str = parameter("", "Trouble", "What goes wrong in the middle of the loop.")
    steps: int = parameter(20, "Steps", "", minimum=0, maximum=100_000)
    step_s: float = parameter(0.0, "Seconds per step", "", minimum=0.0, maximum=60.0)
    seed: int = parameter(0, "Seed", "", minimum=0, maximum=2**31 - 1)
    walks: tuple[str, ...] = parameter((), "Walks", "Read when the result is written.", files="motion")

    def __post_init__(self) -> None:
        methods._check(self)  # type: ignore[arg-type]


def stages(request: StubRequest, models: object) -> list[object]:
    from backend.pipeline import Stage

    return [
        Stage("Begin", ("request",), ("start",), _begin),
        Stage("Loop", ("request", "start"), ("end",), _loop, economies=("half the size",)),
        Stage("Write", ("request", "end", "folder"), ("outcome",), _write, keep=False),
    ]


def _begin(request: StubRequest, context: object) -> object:
    import numpy as np

    return np.random.default_rng(request.seed).random(SIZE)


def _loop(request: StubRequest, start: object, context: object) -> object:
    """A loop whose result depends on every step before, with a generator whose state counts too."""
    import numpy as np

    first, values, generator = 0, start, np.random.default_rng(request.seed + 1)
    kept = context.checkpoint.load("loop", f"steps {request.steps}")
    if kept:
        first, values = kept.step, kept.arrays["values"]
        generator.bit_generator.advance(int(kept.arrays["drawn"]))
    if request.trouble == "finishable":
        with context.finishable():
            while not context.finish_asked:
                context.progress("loop", 1, 2, "as long as it takes")
                time.sleep(0.01)
    for step in range(first, request.steps):
        if step == request.steps // 2:
            _go_wrong(request.trouble, context)
        time.sleep(request.step_s)
        values = np.sin(values * 1.7 + generator.random(SIZE))
        arrays = {"values": values, "drawn": np.array((step + 1) * SIZE)}
        context.checkpoint.save("loop", step + 1, arrays, f"steps {request.steps}")
        context.progress("loop", step + 1, request.steps, f"step {step + 1}")
        if step % 5 == 0:
            context.preview((np.resize(values, (32, 32, 3)) * 127 + 128).astype(np.uint8))
    return values


def _go_wrong(trouble: str, context: object) -> None:
    import numpy as np

    match trouble:
        case "" | "fill" | "warn" | "finishable":
            pass
        case "print":
            print("printed on stdout", flush=True)
            os.write(1, b'{"type":"result"}\n\xff\xfe\x00 binary on fd 1\n')
            os.system("echo from a child process")
        case "read":
            print("read", repr(sys.stdin.read()), flush=True)
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "segfault":
            faulthandler._sigsegv()
        case "fail":
            raise RuntimeError("a defect\nin two lines")
        case "stuck":
            (context.scratch / "stuck").touch()
            time.sleep(600)
        case "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        case "exhaust":
            np.zeros(2**55, np.uint8)
        case "exhaust once":
            if context.economy == 0:
                np.zeros(2**55, np.uint8)
        case "socket":
            socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        case "orphan":
            subprocess.Popen(["sleep", "600"])
            os.kill(os.getpid(), signal.SIGKILL)
        case "package":
            import effigy_no_such_package  # noqa: F401  # pyright: ignore
        case _:
            raise ValueError(trouble)


def _write(request: StubRequest, end: object, folder: Path, context: object) -> object:
    import numpy as np

    from backend.pipeline import Outcome

    with (folder / "values.npy").open("wb") as file:
        np.save(file, end)
    (folder / "read.txt").write_bytes(b"".join((folder / name).read_bytes() for name in request.walks))
    if request.trouble == "fill":
        with (folder / "large.bin").open("wb") as file:
            for _ in range(200):
                file.write(bytes(1_000_000))
    return Outcome(("stub",), ("mind the gap",) if request.trouble == "warn" else ())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--jobs", type=Path, required=True)
    parser.add_argument("--offline", action="store_true")
    parser.add_argument("--keep-days", type=float)
    parser.add_argument("--import-s", type=float, default=0.0, help="the libraries take so long")
    options = parser.parse_args()

    def capabilities() -> Capabilities:
        time.sleep(options.import_s)
        return Capabilities(("stub",))

    serve(ServeOptions(options.jobs, options.keep_days, offline=options.offline), capabilities=capabilities)


if __name__ == "__main__":
    backend.methods.METHODS = {"stub": "__main__:stages"}  # type: ignore[misc]
    methods.REQUESTS = {"stub": StubRequest}  # type: ignore[misc,dict-item]
    main()
