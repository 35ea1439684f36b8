"""Set-up, then every test: `python3 scripts/test.py [--real-blender] [pytest arguments]`. Standard library only."""

from __future__ import annotations

import subprocess
import sys

import environment

# One thread per library: tests repeat exactly, and several small kernels do not fight for two cores.
ONE_THREAD = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")}


def main() -> int:
    """Check the environment and the style and run the tests, each one whatever the others say.

    Returns:
        0 if all pass, else the exit code of the first that failed.
    """
    arguments = sys.argv[1:]
    real_blender = "--real-blender" in arguments
    arguments = [argument for argument in arguments if argument != "--real-blender"]
    python = str(environment.ready("cpu", "diffusion", "blender", "dev"))
    for blender in environment.OTHER_BLENDERS:
        environment.ready_other_blender(blender)
    settings = environment.clean_environment() | ONE_THREAD
    if not real_blender:
        arguments = ["-m", "not gui", *arguments]
    failures: dict[str, int] = {}
    for command in (["pip", "check"], ["ruff", "check", "--quiet", "."], ["pytest", *arguments]):
        print(f"--- {' '.join(command)}", flush=True)
        code = subprocess.call([python, "-m", *command], cwd=environment.ROOT, env=settings)
        if code:
            failures[command[0]] = code
    print("--- " + (f"failed: {', '.join(failures)}" if failures else "all passed"))
    return next(iter(failures.values()), 0)


if __name__ == "__main__":
    sys.exit(environment.main_guard(main))
