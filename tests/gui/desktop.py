"""A virtual screen in the Debian root, with the add-on installed from its zip as an artist would."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.gui.debian import DebianRoot

ROOT = Path(__file__).resolve().parent.parent.parent

_INSTALL = """
python3 {root}/scripts/build_extension.py --output /out/dist
blender --command extension install-file -r user_default -e /out/dist/effigy-*.zip
"""

_SCREEN = """
# The display's number is left to the server: several of these may run on one machine.
Xvfb -displayfd 5 -screen 0 {width}x{height}x24 +extension GLX 5> /tmp/display > /dev/null 2>&1 &
for k in $(seq 100); do [ -s /tmp/display ] && break; sleep 0.1; done
export DISPLAY=:$(cat /tmp/display)
field() { python3 -c "import json,sys; s = json.load(open('/out/state.json')); print($1)" 2> /dev/null || true; }
wait_for() { for k in $(seq $2); do [ "$(field "$1")" = True ] && return 0; sleep 0.5; done
  echo "waited in vain for: $1"; import -window root /out/timeout.png; tail -20 /out/blender.log; exit 1; }
attempt() { for k in 1 2 3 4 5 6; do eval "$2"; for j in $(seq 12); do [ "$(field "$1")" = True ] && return 0
  sleep 0.5; done; xdotool key Escape sleep 1; done
  echo "tried in vain: $2"; import -window root /out/timeout.png; tail -20 /out/blender.log; exit 1; }
keep() { cp /out/state.json /out/$1.json; import -window root /out/$1.png; }
"""


@dataclass(frozen=True)
class Desktop:
    """Where scripts run.

    Attributes:
        debian: The root.
        out: Folder of this machine, seen as /out: pictures, logs, the installed extension.
        screen_px: Width and height.
        more_mounts: Other folders of this machine -> path inside.
    """

    debian: DebianRoot
    out: Path
    screen_px: tuple[int, int] = (1600, 900)
    more_mounts: Mapping[Path, str] = field(default_factory=dict)

    def install(self) -> None:
        """Build the zip with the Blender inside and install it there; done once per folder."""
        if not (self.out / "dist").is_dir():
            (self.out / "user").mkdir(parents=True)
            self._run(_INSTALL, {}, 200)

    def play(self, script: str, variables: Mapping[str, str] | None = None, timeout_s: float = 600) -> str:
        """Run a script with a display.

        Args:
            script: For bash; `{root}` is the checkout, /out the folder. It may use the functions above.
            variables: More environment variables.
            timeout_s: Everything is killed after this time.

        Returns:
            What it printed.
        """
        width, height = self.screen_px
        start = _SCREEN.replace("{width}", str(width)).replace("{height}", str(height))
        return self._run(start + script, variables or {}, timeout_s)

    def _run(self, script: str, variables: Mapping[str, str], timeout_s: float) -> str:
        mounts = {self.out: "/out", ROOT: str(ROOT), Path(sys.prefix): sys.prefix, **self.more_mounts}
        mounts |= {Path(sys.base_prefix): sys.base_prefix}
        settings = {
            "BLENDER_USER_RESOURCES": "/out/user", "LIBGL_ALWAYS_SOFTWARE": "1",
            "EFFIGY_BACKEND_PYTHON": sys.executable, "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1", **variables,
        }  # fmt: skip
        try:
            done = self.debian.run(script.replace("{root}", str(ROOT)), mounts, settings, timeout_s)
        except subprocess.TimeoutExpired as error:
            raise AssertionError(f"no end after {timeout_s} s: {(error.output or b'')[-3000:]}") from error
        assert done.returncode == 0, done.stdout[-4000:]
        return done.stdout
