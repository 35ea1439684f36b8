"""Set-up, then the demo: one photo to a rigged avatar in out/demo. `python3 scripts/demo.py`. Standard library only."""

from __future__ import annotations

import subprocess
import sys
import time

import environment

PHOTO = environment.ROOT / "scripts" / "data" / "collins.png"
OUTPUT = environment.ROOT / "out" / "demo"
RESULTS = ("avatar.blend", "gaussians.ply", "preview.png", "walk")


def main() -> int:
    """Make the avatar of the demo's portrait, a `.blend` with it and a short walk as frames.

    Returns:
        0 if every result is there, else the job's exit code.
    """
    python = str(environment.ready("cpu", "blender"))
    # batch.py skips finished inputs, and this command is meant to show the job each time it is run.
    (OUTPUT / "summary.json").unlink(missing_ok=True)
    command = [python, "-u", str(environment.ROOT / "scripts" / "batch.py"), "--method", "body", "--input", str(PHOTO)]
    command += ["--output", str(OUTPUT), "--motion", "walk", "--render"]
    began = time.monotonic()
    code = subprocess.call(command, cwd=environment.ROOT, env=environment.clean_environment())
    if code:
        return code
    missing = [name for name in RESULTS if not (OUTPUT / name).exists()]
    if missing:
        print(f"error: the job ended without {', '.join(missing)}: see {OUTPUT / 'log.txt'}", file=sys.stderr)
        return 1
    print(f"\nThe job took {time.monotonic() - began:.0f} s.")
    for name in RESULTS:
        path = OUTPUT / name
        frames = f" ({len(list(path.glob('*.png')))} frames)" if path.is_dir() else ""
        print(f"  {path.relative_to(environment.ROOT)}{frames}")
    return 0


if __name__ == "__main__":
    sys.exit(environment.main_guard(main))
