"""Set-up, then every test: `python3 scripts/test.py [--real-blender] [pytest arguments]`. Standard library only.

With `--real-blender` the tests in a real Blender with its interface run too, and a machine where that cannot be had
fails. With `--real-blender-if-possible` such a machine is told so, loudly, at the beginning and at the end.
"""

from __future__ import annotations

import os
import subprocess
import sys

import environment

# One thread per library: tests repeat exactly, and several small kernels do not fight for two cores.
ONE_THREAD = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")}


REAL_BLENDER = "--real-blender"
IF_POSSIBLE = "--real-blender-if-possible"
MOST_BESIDE = 4
"""Files of tests at a time: each process has its own torch, about 1 GB."""
NO_TESTS = 5
"""pytest's exit code where it found none, which is right for one of its two runs where arguments choose."""


def main() -> int:
    """Check the environment and the style and run the tests, each one whatever the others say.

    Returns:
        0 if all pass, else the exit code of the first that failed.
    """
    options = [argument for argument in sys.argv[1:] if argument in (REAL_BLENDER, IF_POSSIBLE)]
    arguments = [argument for argument in sys.argv[1:] if argument not in options]
    python = str(environment.ready("cpu", "diffusion", "blender", "dev"))
    for blender in environment.OTHER_BLENDERS:
        environment.ready_other_blender(blender)
    settings = environment.clean_environment() | ONE_THREAD
    without = "" if options else "they were not asked for"
    if options:
        print("--- a real Blender", flush=True)
        if subprocess.call([python, "-m", "tests.gui.debian"], cwd=environment.ROOT, env=settings):
            if REAL_BLENDER in options:
                print("--- failed: a real Blender was asked for and cannot be had here")
                return 1
            without = "it cannot be had here, see above"
            print("!!! THE TESTS IN A REAL BLENDER DO NOT RUN: " + without, flush=True)
    # Each file in one process, for its fixtures; as many files at a time as there are cores. Tests with real
    # windows come after, alone.
    beside = ["-n", str(min(os.cpu_count() or 1, MOST_BESIDE)), "--dist", "loadfile"]
    commands = [["pip", "check"], ["ruff", "check", "--quiet", "."], ["pytest", "-m", "not gui", *beside, *arguments]]
    commands += [] if without else [["pytest", "-m", "gui", *arguments]]
    failures: dict[str, int] = {}
    empty = 0
    for command in commands:
        print(f"--- {' '.join(command)}", flush=True)
        code = subprocess.call([python, "-m", *command], cwd=environment.ROOT, env=settings)
        empty += code == NO_TESTS
        if code not in (0, NO_TESTS):
            failures[command[0]] = code
    if empty == (1 if without else 2):
        failures["pytest"] = NO_TESTS
    missing = f" (without those in a real Blender: {without})" if without else ""
    print("--- " + (f"failed: {', '.join(failures)}" if failures else "all passed") + missing)
    return next(iter(failures.values()), 0)


if __name__ == "__main__":
    sys.exit(environment.main_guard(main))
