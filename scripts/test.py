"""Set-up, then every test: `python3 scripts/test.py [--real-blender] [pytest arguments]`. Standard library only."""

from __future__ import annotations

import subprocess
import sys

import environment

# One thread per library: tests repeat exactly, and several small kernels do not fight for two cores.
ONE_THREAD = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")}


def main() -> int:
    """Check the environment and the style, then run the tests.

    Returns:
        pytest's exit code, or that of the check that failed first.
    """
    arguments = sys.argv[1:]
    real_blender = "--real-blender" in arguments
    arguments = [argument for argument in arguments if argument != "--real-blender"]
    python = str(environment.ready("cpu", "blender", "dev"))
    settings = environment.clean_environment() | ONE_THREAD
    if not real_blender:
        arguments = ["-m", "not gui", *arguments]
    for command in (["pip", "check"], ["ruff", "check", "."], ["pytest", *arguments]):
        print(f"--- {' '.join(command)}", flush=True)
        code = subprocess.call([python, "-m", *command], cwd=environment.ROOT, env=settings)
        if code:
            return code
    return 0


if __name__ == "__main__":
    sys.exit(environment.main_guard(main))
