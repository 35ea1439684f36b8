"""Pictures of portrait styles: `python -m scripts.portrait_pictures [--photo FILE] [--out PNG] [STYLE ...]`.

The bust is made once, then painted in every style that is named; four by default. No model is used.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from backend.context import Context, TerminalSink
from backend.diffusion.weights import Weights
from backend.methods.portrait import stages
from backend.perception.photo import read_photo
from backend.pipeline import run
from backend.preview import draw_bust, draw_head, photo_actions
from backend.splats.avatar import build_avatar
from backend.splats.palette import Canvas
from blender_addon.shared.avatar import Avatar
from blender_addon.shared.gaussians import GaussianCloud
from blender_addon.shared.methods import PortraitRequest
from blender_addon.shared.styles import STYLES, find_style

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "scripts" / "data"
DEFAULT_STYLES = ("golden statue", "marble", "3D cartoon", "green orc")
VIEWS_DEG = (0.0, 45.0, 180.0)
CELL_PX, LARGEST_BYTES = 280, 700_000
BUST_STAGE = "Cut the bust"


def main() -> int:
    """Make the bust, paint it, write the sheet.

    Returns:
        The exit code.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("styles", nargs="*", metavar="STYLE", help="presets; four if none is named")
    parser.add_argument("--photo", type=Path, default=DATA / "collins.png", metavar="FILE")
    parser.add_argument("--out", type=Path, default=DATA / "portrait_styles.png", metavar="PNG")
    options = parser.parse_args()
    chosen = [find_style(name) for name in options.styles or DEFAULT_STYLES]
    if None in chosen:
        parser.error(f"the presets are {', '.join(STYLES)}")
    began = time.monotonic()
    bust, betas = make_bust(options.photo)
    canvas = Canvas.of(bust)
    columns: list[list[np.ndarray]] = []
    acting: list[np.ndarray] = []
    for style in chosen:
        assert style is not None
        splats = canvas.paint(style.look, None, 1.0)
        cloud, avatar = build_avatar(bust.body, bust.personal, betas, bust.vertices_m, splats)
        columns.append([draw_bust(cloud, avatar, photo_actions(avatar), 0.0, view, CELL_PX) for view in VIEWS_DEG])
        acting = acting or faces(cloud, avatar, len(chosen))
    rows = [np.concatenate(row, axis=1) for row in zip(*columns, strict=True)]
    sheet = np.concatenate([*rows, np.concatenate(acting, axis=1)])
    size = write_small(options.out, sheet)
    print(
        f"{options.out}: {sheet.shape[1]} x {sheet.shape[0]} px, {size / 1e3:.0f} kB, {time.monotonic() - began:.0f} s"
    )
    return 0


def make_bust(photo: Path) -> tuple:
    """The photo-only bust of a photo, and its shape numbers."""
    request, nothing = PortraitRequest(style="realistic"), Weights(Path("no models"))
    chain = stages(request, nothing)
    last = next(k for k, stage in enumerate(chain) if stage.name == BUST_STAGE)
    with tempfile.TemporaryDirectory() as folder:
        given = {
            "photo": read_photo(photo), "request": request, "folder": Path(folder), "own_body": None, "models": nothing
        }  # fmt: skip
        context = Context(Path(folder), sink=TerminalSink(sys.stdout))
        values = run(chain[: last + 1], given, context).values
    return values["bust"], values["fit"].betas


def faces(cloud: GaussianCloud, avatar: Avatar, count: int) -> list[np.ndarray]:
    """Close-ups of the first style: as on the photo, blink, open jaw, blink with brows; as many as fit."""
    actions = (
        photo_actions(avatar),
        {"eyeBlinkLeft": 1.0, "eyeBlinkRight": 1.0},
        {"jawOpen": 0.65},
        {"eyeBlinkLeft": 1.0, "mouthSmileLeft": 0.8, "mouthSmileRight": 0.8, "browInnerUp": 0.7},
    )
    return [draw_head(cloud, avatar, actions[k % len(actions)], 0.0, CELL_PX) for k in range(count)]


def write_small(path: Path, picture: np.ndarray) -> int:
    """Write a PNG with as many colours as `LARGEST_BYTES` allow; its size in bytes."""
    image = Image.fromarray(picture)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, optimize=True)
    for colours in (256, 128, 64):
        if path.stat().st_size <= LARGEST_BYTES:
            break
        image.quantize(colours, method=Image.Quantize.MAXCOVERAGE, kmeans=2, dither=Image.Dither.FLOYDSTEINBERG).save(
            path, optimize=True
        )
    return path.stat().st_size


if __name__ == "__main__":
    sys.exit(main())
