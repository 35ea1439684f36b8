"""Make the README's pictures of Blender anew: `python -m tests.gui.pictures [--out DIR] [--bundle DIR]`.

Needs what the tests in a real Blender need, and some minutes: the avatar is made by a real job, whose panel is shown
before, during and after. With `--bundle` a finished avatar is taken, and only the views of it are made.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from PIL import Image

from tests.gui.debian import NoRootError, find_or_make_root
from tests.gui.desktop import ROOT, Desktop

STATES = ("ready", "running", "done", "failed")
GAP_PX = 16
BACKGROUND = (24, 24, 24)

_PLAY = """
timeout 1700 blender --window-geometry 0 0 {width} {height} -P {root}/tests/gui/inside_pictures.py > /out/log 2>&1
grep -A20 Traceback /out/log && exit 1 || true
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "scripts" / "data")
    parser.add_argument("--bundle", type=Path, help="a finished avatar")
    parser.add_argument("--screenshots", type=Path, help="keep the uncut ones here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        shots = options.screenshots or Path(temporary)
        mounts = {options.bundle: "/bundle"} if options.bundle else {}
        try:
            desktop = Desktop(find_or_make_root(), shots, (1600, 1150), mounts)
        except NoRootError as error:
            print(f"no real Blender: {error}", file=sys.stderr)
            return 1
        desktop.install()
        variables = {"EFFIGY_PICTURE_BUNDLE": "/bundle" if options.bundle else ""}
        script = _PLAY.replace("{width}", "1600").replace("{height}", "1150")
        desktop.play(script, variables, timeout_s=1750)
        options.out.mkdir(parents=True, exist_ok=True)
        if not options.bundle:
            save(panels(shots), options.out / "blender_panel.png", 128)
        view = cut(shots, "posed", "AREA")
        save(view.crop((view.width - 1000, 54, view.width, 874)), options.out / "blender_view.png", 256)
        save(Image.open(shots / "f12.png").convert("RGB"), options.out / "blender_render.png", 256)
    return 0


def cut(shots: Path, name: str, region: str) -> Image.Image:
    """A part of a screenshot."""
    x, y, width, height = json.loads((shots / f"{name}.json").read_text("utf-8"))[region]
    return Image.open(shots / f"{name}.png").convert("RGB").crop((x, y, x + width, y + height))


def panels(shots: Path) -> Image.Image:
    """The panel in its states, beside each other, cut below the longest."""
    parts = [cut(shots, name, "UI") for name in STATES]
    width = sum(part.width for part in parts) + GAP_PX * (len(parts) - 1)
    picture = Image.new("RGB", (width, parts[0].height), BACKGROUND)
    x = 0
    for part in parts:
        picture.paste(part, (x, 0))
        x += part.width + GAP_PX
    return picture


def save(picture: Image.Image, path: Path, colours: int) -> None:
    """As a small PNG with a palette."""
    palette = picture.quantize(colours, method=Image.Quantize.MEDIANCUT, kmeans=3)
    picture.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG).save(path, optimize=True)
    print(f"{path}: {picture.width} x {picture.height}, {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    sys.exit(main())
