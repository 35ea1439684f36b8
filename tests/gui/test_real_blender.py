"""The add-on in a real Blender with its interface: installed as a zip, clicked with a mouse, looked at.

`python3 scripts/test.py --real-blender` runs these. A missing part fails: nothing here is skipped.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.gui.debian import DebianRoot, find_or_make_root

pytestmark = pytest.mark.gui

ROOT = Path(__file__).resolve().parent.parent.parent
PHOTO = ROOT / "scripts" / "data" / "collins.png"
SCREEN = (1600, 900)

_START = """
mkdir -p /tmp/user
python3 {root}/scripts/build_extension.py --output /out/dist
blender --command extension install-file -r user_default -e /out/dist/effigy-*.zip
Xvfb :91 -screen 0 1600x900x24 +extension GLX > /dev/null 2>&1 &
export DISPLAY=:91
for k in $(seq 50); do xdotool getmouselocation > /dev/null 2>&1 && break; sleep 0.2; done
blender --window-geometry 0 0 1600 900 -P {root}/tests/gui/inside_gui.py > /out/blender.log 2>&1 &
field() { python3 -c "import json,sys; s = json.load(open('/out/state.json')); print($1)" 2> /dev/null || true; }
wait_for() { for k in $(seq $2); do [ "$(field "$1")" = True ] && return 0; sleep 0.5; done
  echo "waited in vain for: $1"; import -window root /out/timeout.png; tail -20 /out/blender.log; exit 1; }
keep() { cp /out/state.json /out/$1.json; import -window root /out/$1.png; }
wait_for "s['photo'] != ''" 120
"""

_CLICKS = """
xdotool mousemove 700 600 sleep 0.5 key Escape sleep 1
# The tab of the sidebar, then the button below the photo's thumbnail and the parameters.
read X Y W H <<< "$(field "' '.join(map(str, s['regions']['UI']))")"
TAB_X=$((X + W - 9))
xdotool mousemove $TAB_X 320 sleep 0.5 click 1 sleep 3
keep panel
xdotool mousemove 1165 449 sleep 1 click 1
wait_for "len(s['jobs']) == 1" 60
wait_for "s['jobs'][0][3] > 0.2" 900
keep running
wait_for "len(s['rigs']) == 1 or s['jobs'][0][1] == 'failed'" 1800
sleep 6
keep done
xdotool mousemove 600 600 sleep 0.5 key ctrl+z
wait_for "len(s['rigs']) == 0" 60
sleep 6
keep undone
xdotool key ctrl+shift+z
wait_for "len(s['rigs']) == 1" 60
sleep 6
keep redone
"""

_BATCH = """
mkdir -p /out/batch
blender -b -P {root}/scripts/batch.py -- --method body --input {photo} --output /out/batch --set preset=fast
"""


@pytest.fixture(scope="module")
def debian() -> DebianRoot:
    return find_or_make_root()


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("real-blender")
    yield folder
    keep = os.environ.get("EFFIGY_GUI_PICTURES")
    if keep:
        Path(keep).mkdir(parents=True, exist_ok=True)
        for picture in folder.glob("*.png"):
            shutil.copy(picture, keep)


def run_inside(debian: DebianRoot, out: Path, script: str, timeout_s: float) -> None:
    python = Path(sys.prefix)
    mounts = {out: "/out", ROOT: str(ROOT), python: str(python), Path(sys.base_prefix): sys.base_prefix}
    variables = {
        "BLENDER_USER_RESOURCES": "/tmp/user", "LIBGL_ALWAYS_SOFTWARE": "1", "EFFIGY_PHOTO": str(PHOTO),
        "EFFIGY_BACKEND_PYTHON": sys.executable, "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1",
    }  # fmt: skip
    text = script.replace("{root}", str(ROOT)).replace("{photo}", str(PHOTO))
    done = debian.run(text, mounts, variables, timeout_s)
    assert done.returncode == 0, done.stdout[-3000:]


@pytest.fixture(scope="module")
def clicked(debian: DebianRoot, out: Path) -> Path:
    run_inside(debian, out, _START + _CLICKS, 1800)
    return out


def state(folder: Path, name: str) -> dict[str, object]:
    return json.loads((folder / f"{name}.json").read_text("utf-8"))


def picture(folder: Path, name: str) -> np.ndarray:
    image = np.asarray(Image.open(folder / f"{name}.png").convert("RGB")).astype(int)
    assert image.shape == (SCREEN[1], SCREEN[0], 3)
    return image


def share_of_suit(image: np.ndarray) -> float:
    """Share of the 3D view in the orange of the portrait's suit."""
    view = image[60:800, 60:1020]
    red, green, blue = (view[..., k] for k in range(3))
    return float(((red > 150) & (green > 40) & (green < 130) & (blue < 90) & (red - green > 70)).mean())


def test_generate_avatar_by_mouse_gives_a_selected_avatar(clicked: Path) -> None:
    done = state(clicked, "done")
    assert done["jobs"][0][1] == "done", done["jobs"]
    assert len(done["rigs"]) == 1 and done["active"] == done["rigs"][0]
    assert done["splats"][0] > 20_000 and done["made_by"] != [""]
    # The outline of the selected cube is orange too.
    assert share_of_suit(picture(clicked, "panel")) < 0.004
    assert share_of_suit(picture(clicked, "done")) > 0.02, "the avatar is not to be seen"


def test_one_undo_takes_the_avatar_and_nothing_else(clicked: Path) -> None:
    undone, redone = state(clicked, "undone"), state(clicked, "redone")
    assert undone["rigs"] == [] and undone["splats"] == []
    assert undone["cube_x"] == pytest.approx(2.0), "the artist's own step before was undone too"
    assert redone["rigs"] == state(clicked, "done")["rigs"]
    assert share_of_suit(picture(clicked, "undone")) < 0.004
    assert share_of_suit(picture(clicked, "redone")) > 0.02


def test_batch_runs_in_a_real_blender(debian: DebianRoot, out: Path) -> None:
    run_inside(debian, out, _BATCH, 900)
    summary = json.loads((out / "batch" / "summary.json").read_text("utf-8"))
    assert [row["code"] for row in summary["items"]] == [0]
    assert list((out / "batch").rglob("avatar.blend"))
