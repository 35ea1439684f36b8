"""The backend installed by the add-on's own button in a real Blender newer than Python 3.12, and a job run through it.

Real packages come from the index that this machine is set up for: 0.7 GB to download, 2.3 GB on the disk, two to six
minutes. Therefore only when asked for: `EFFIGY_INSTALL_TEST=1 pytest tests/gui/test_install_backend.py -s`.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlparse

import pytest

from blender_addon.link.package_sources import pip_settings
from tests.gui.debian import DebianRoot
from tests.gui.desktop import ROOT, Desktop

pytestmark = [
    pytest.mark.gui,
    pytest.mark.skipif(os.environ.get("EFFIGY_INSTALL_TEST") != "1", reason="large; ask with EFFIGY_INSTALL_TEST=1"),
]

_BUTTON = {"--online-mode": (400, 445), "--offline-mode": (400, 475)}
"""Install Backend, px, in a window of 1600 x 900; offline it lies below a line that says so."""

_START = """
export PATH=/out/bin:$PATH
blender {mode} --window-geometry 0 0 1600 900 -P {root}/tests/gui/inside_install.py > /out/blender.log 2>&1 &
wait_for "s['regions'] != {}" 120
sleep 4
keep before{mode}
xdotool mousemove {x} {y} sleep 1 click 1
"""

_OFFLINE = """
sleep 4
keep offline
"""

_INSTALL = """
wait_for "s['installing']" 20
began=$(date +%s)
wait_for "s['progress'][2] > 0.2 or not s['installing']" 600
keep installing
wait_for "not s['installing']" 1800
echo "$(( $(date +%s) - began ))" > /out/install.seconds
wait_for "s['findings'] != [] or s['environment'] == []" 240
sleep 2
keep installed
touch /out/make
began=$(date +%s)
wait_for "len(s['rigs']) == 1 or (s['jobs'] != [] and s['jobs'][0][1] == 'failed')" 1800
echo "$(( $(date +%s) - began ))" > /out/job.seconds
sleep 2
keep made
"""


def sources() -> tuple[dict[str, str], dict[Path, str]]:
    """This machine's settings of pip as variables, and the folders and files that they name, to be seen inside too."""
    settings = pip_settings(os.environ)
    variables = {"PIP_" + key.upper().replace("-", "_"): " ".join(text.split()) for key, text in settings.items()}
    variables |= {
        name: os.environ[name] for name in ("SSL_CERT_FILE", "HTTPS_PROXY", "ALL_PROXY") if name in os.environ
    }
    words = " ".join(variables.values()).split()
    places = [Path(unquote(urlparse(word).path)) for word in words if word.startswith(("file:", "/"))]
    # Of a local index the folder above is mounted: its pages point to files beside them. Of a file its folder.
    folders = {place.parent for place in places if place.exists()}
    return variables, {folder: str(folder) for folder in folders if folder not in (Path("/"), Path("/etc"))}


@pytest.fixture(scope="module")
def desktop(debian: DebianRoot, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desktop]:
    """A user who has never installed the backend; uv, if this machine has one, and a Python 3.11 on the PATH."""
    out = tmp_path_factory.mktemp("install-backend")
    (out / "bin").mkdir()
    beside = Path(sys.prefix) / "bin" / "uv"
    uv = beside if beside.is_file() else Path(shutil.which("uv") or "")
    if uv.is_file():
        shutil.copy(uv.resolve(), out / "bin" / "uv")
    python = "python{}.{}".format(*sys.version_info[:2])
    (out / "bin" / python).symlink_to(Path(sys.base_prefix) / "bin" / python)
    made = Desktop(debian, out, more_mounts=sources()[1])
    made.install()
    yield made
    keep = os.environ.get("EFFIGY_GUI_PICTURES")
    if keep:
        Path(keep).mkdir(parents=True, exist_ok=True)
        for picture in out.glob("*.png"):
            shutil.copy(picture, Path(keep) / f"preferences-{picture.name}")
    shutil.rmtree(out / "user", ignore_errors=True)


def play(desktop: Desktop, script: str, mode: str, timeout_s: float) -> None:
    start = _START.replace("{mode}", mode).replace("{x}", str(_BUTTON[mode][0])).replace("{y}", str(_BUTTON[mode][1]))
    variables = sources()[0] | {"EFFIGY_BACKEND_PYTHON": "", "EFFIGY_PHOTO": str(ROOT / "scripts/data/collins.png")}
    (desktop.out / "state.json").unlink(missing_ok=True)
    desktop.play(start + script, variables, timeout_s)


def state(desktop: Desktop, name: str) -> dict[str, object]:
    return json.loads((desktop.out / f"{name}.json").read_text("utf-8"))


def test_33_without_online_access_the_button_does_nothing(desktop: Desktop) -> None:
    """Row 33."""
    play(desktop, _OFFLINE, "--offline-mode", 120)
    after = state(desktop, "offline")
    assert after["online"] is False and after["progress"] == [] and after["environment"] == []


def test_the_button_installs_and_a_job_runs_through_it(desktop: Desktop) -> None:
    play(desktop, _INSTALL, "--online-mode", 3600)
    before, installing, installed, made = (
        state(desktop, name) for name in ("before--online-mode", "installing", "installed", "made")
    )
    assert tuple(before["python"]) > (3, 12) and before["environment"] == []
    assert installing["installing"] is True and 0 < installing["progress"][2] < 1
    assert installed["progress"][0] == "ready", installed["progress"]
    accelerator, python, tool, interpreter = installed["environment"]
    assert accelerator == "cpu" and python.startswith("3.1") and interpreter.startswith("/out/user/")
    assert all(row["state"] != "missing" for row in installed["findings"])
    assert made["jobs"][0][1] == "done", made["jobs"]
    assert len(made["rigs"]) == 1 and made["splats"][0] > 20_000
    log = (desktop.out / "blender.log").read_text("utf-8", errors="replace")
    assert "Traceback" not in log, log[-3000:]
    seconds = [(desktop.out / f"{name}.seconds").read_text().strip() for name in ("install", "job")]
    print(f"\nBlender {before['version']}, by {tool}: installed in {seconds[0]} s, job in {seconds[1]} s")
