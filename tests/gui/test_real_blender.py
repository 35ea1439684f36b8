"""The add-on in a real Blender with its interface: installed as a zip, clicked with a mouse, looked at.

`python3 scripts/test.py --real-blender` runs these. A missing part fails: nothing here is skipped.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.gui.desktop import Desktop

pytestmark = pytest.mark.gui

SCREEN = (1600, 900)

_START = """
mkdir -p /out/photos
cp {root}/scripts/data/collins.png /out/photos/
rm -rf /out/user/extensions/.user/user_default/effigy/jobs
blender --window-geometry 0 0 1600 900 -P {root}/tests/gui/inside_gui.py > /out/blender.log 2>&1 &
wait_for "s['browser'] != []" 240
sleep 3
"""

_CLICKS = """
xdotool mousemove 700 600 sleep 0.5 key Escape sleep 1
read X Y W H <<< "$(field "' '.join(map(str, s['regions']['UI']))")"
TAB_X=$((X + W - 9))
attempt "s['tab'] == 'Effigy'" "xdotool mousemove $TAB_X 320 sleep 0.5 click 1"
keep empty
drop() {  # drags the only photo of the File Browser to a place; a menu asks what it is, U is the avatar's photo
  xdotool mousemove 1378 275 sleep 1 mousedown 1 sleep 0.5
  for n in 1 2 3 4 5 6; do xdotool mousemove_relative -- -6 3 sleep 0.15; done
  xdotool mousemove $1 $2 sleep 0.5 mousemove_relative 3 3 sleep 0.5 mouseup 1 sleep 1.5
  keep $3
  xdotool key u
}
attempt "s['photo'] == 'collins.png'" "drop 500 700 drop_on_view"
# The cross behind its name takes it off again.
attempt "s['photo'] == ''" "xdotool mousemove 1263 127 sleep 0.5 click 1"
attempt "s['photo'] == 'collins.png'" "drop 1150 160 drop_on_panel"
sleep 3
# Fast, of the row of presets.
attempt "s['preset'] == 'fast'" "xdotool mousemove 1075 313 sleep 0.5 click 1"
sleep 1
keep panel
# Folded settings leave Generate Avatar where it is, however many parameters the method has.
attempt "len(s['jobs']) == 1" "xdotool mousemove 1110 344 click 1 sleep 2 mousemove 1165 380 sleep 1 click 1"
wait_for "s['jobs'][0][3] > 0.6" 900
sleep 2
keep running
wait_for "len(s['rigs']) == 1 or s['jobs'][0][1] == 'failed'" 1800
sleep 8
keep done
xdotool mousemove 600 600 sleep 0.5 key ctrl+z
wait_for "len(s['rigs']) == 0" 120
sleep 8
keep undone
xdotool key ctrl+shift+z
wait_for "len(s['rigs']) == 1" 120
sleep 8
keep redone
"""

_BATCH = """
mkdir -p /out/batch /out/photos
cp {root}/scripts/data/collins.png /out/photos/
blender -b -P {root}/scripts/batch.py -- --method body --input /out/photos --output /out/batch --set preset=fast
"""


@pytest.fixture(scope="module")
def clicked(desktop: Desktop) -> Path:
    desktop.play(_START + _CLICKS, timeout_s=1800)
    return desktop.out


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


def test_a_photo_is_dropped_on_the_view_and_on_the_panel(clicked: Path) -> None:
    assert state(clicked, "empty")["photo"] == state(clicked, "drop_on_view")["photo"] == ""
    assert state(clicked, "panel")["photo"] == "collins.png"
    assert state(clicked, "panel")["objects"] == ["Camera", "Cube", "Light"], "the drop made a reference image"


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


def test_blender_prints_no_traceback(clicked: Path) -> None:
    log = (clicked / "blender.log").read_text("utf-8", errors="replace")
    assert "Traceback" not in log, log[-3000:]


def test_batch_runs_in_a_real_blender(desktop: Desktop) -> None:
    desktop.play(_BATCH, timeout_s=900)
    summary = json.loads((desktop.out / "batch" / "summary.json").read_text("utf-8"))
    assert [row["code"] for row in summary["items"]] == [0]
    assert list((desktop.out / "batch").rglob("avatar.blend"))
