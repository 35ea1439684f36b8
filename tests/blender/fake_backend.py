"""Stands in for the backend's Python in tests of batch.py: takes the same command line, writes the synthetic bundle.

`generate` fails with code 2 for a photo whose name contains "bad"; `render` writes one byte per frame. Each call is
a line of the file that FAKE_BACKEND_CALLS names.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from tests.blender.synthetic import write_synthetic_bundle


def main() -> int:
    arguments = sys.argv[sys.argv.index("backend") + 1 :]
    with Path(os.environ["FAKE_BACKEND_CALLS"]).open("a") as calls:
        print(*arguments, file=calls)
    out = Path(arguments[arguments.index("--out") + 1])
    if arguments[0] == "render":
        out.mkdir()
        for source in arguments[1 : arguments.index("--out")]:
            (out / f"{Path(source).stem}.png").write_bytes(b"x")
        return 0
    if "bad" in Path(arguments[arguments.index("--image") + 1]).name:
        print("error: nobody is in the photo; take another", file=sys.stderr)
        return 2
    print("person 1/1", flush=True)
    write_synthetic_bundle(out, 500)
    return 0


if __name__ == "__main__":
    sys.exit(main())
