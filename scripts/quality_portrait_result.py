"""The published measures on a real portrait: `python scripts/quality.py --method portrait --result DIR [--style TEXT]`.

120 views in a circle: how like the photo they are to CLIP, how like the style's words, how saturated (in percent), as
in the paper's table; beside it how like the person's face is to a face recogniser, and how far the saturation is from
that of pictures of the style (`--style-pictures FOLDER`). A measure whose model is not installed is left out, and the
table says which.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from backend.diffusion.load import Folders
from backend.errors import UserError

if TYPE_CHECKING:
    from scripts.quality import Row

VIEWS, SIZE_PX = 120, 320
WHITE = 1.0
PAPER = {"clip_identity": 58.63, "clip_style": 32.79, "saturation": 50.61}
"""Of the paper's full method, on its own fifty results: another set of photos, so nothing to compete with."""


def measure_result(given: argparse.Namespace) -> list[Row]:
    """Measure a result folder; prints a table.

    Raises:
        SystemExit: If the folder holds no avatar.
    """
    from backend.diffusion.weights import Weights
    from scripts.quality import print_table
    from scripts.quality_figures import BundleAvatar

    if not (given.result / "avatar.npz").is_file():
        raise SystemExit(f"error: {given.result} holds no avatar; give the folder of a finished portrait")
    avatar = BundleAvatar(given.result)
    around = [avatar.draw(360.0 * k / VIEWS, (SIZE_PX, SIZE_PX)) for k in range(VIEWS)]
    photo = np.asarray(Image.open(given.photo).convert("RGB"))
    pictures = style_pictures(given.style_pictures)
    rows = score_views(
        framed(np.stack(around)), photo, given.style or style_text(given.result), Weights.default(), pictures
    )
    print_table(rows)
    return rows


def framed(views: np.ndarray) -> np.ndarray:
    """The square of views [V, H, W, 4] that holds the subject in all of them, with a margin; one frame for all."""
    seen = (views[..., 3] > 0.05).any(0)
    if not seen.any():
        return views
    rows, columns = np.flatnonzero(seen.any(1)), np.flatnonzero(seen.any(0))
    middle = (rows[0] + rows[-1]) / 2, (columns[0] + columns[-1]) / 2
    reach = int(0.55 * max(np.ptp(rows), np.ptp(columns)) + 2)
    wide = np.pad(views, ((0, 0), (reach, reach), (reach, reach), (0, 0)))
    top, left = (round(value) for value in middle)
    return wide[:, top : top + 2 * reach, left : left + 2 * reach]


def style_text(folder: Path) -> str:
    """The words of the style that a result was asked for; empty where it says none."""
    from blender_addon.shared.styles import find_style

    try:
        request = json.loads((folder / "result.json").read_text())["request"]
    except (OSError, ValueError, KeyError):
        return ""
    asked = str(request.get("style", "")) if isinstance(request, dict) else ""
    named = find_style(asked) if asked else None
    return asked if named is None else named.prompt


def style_pictures(folder: Path | None) -> list[np.ndarray]:
    """Pictures uint8 [H, W, 3] of a folder; none without one."""
    if folder is None:
        return []
    names = sorted(path for path in folder.iterdir() if path.suffix.lower() in (".png", ".jpg", ".jpeg", ".webp"))
    return [np.asarray(Image.open(path).convert("RGB")) for path in names]


def score_views(
    views: np.ndarray, photo: np.ndarray, style: str, folders: Folders, pictures: list[np.ndarray]
) -> list[Row]:
    """All measures for which there is what they need.

    Args:
        views: [V, H, W, 4] straight alpha, 0..1, from around, the first from the photo's side.
        photo: uint8 [H, W, 3].
        style: Words; empty leaves out what needs them.
        folders: Of the models.
        pictures: uint8 [H, W, 3] of the style, plain backgrounds; empty leaves out the error to them.
    """
    from scripts.quality import Row

    count = len(views)
    own = mean_saturation(views)
    rows = [Row("saturation", own, "%", n=count, note=paper("saturation"))]
    if pictures:
        theirs = float(np.mean([mean_saturation(_opaque(picture)[None]) for picture in pictures]))
        rows.append(
            Row("saturation_error", abs(own - theirs), "%", n=count, note=f"{len(pictures)} pictures: {theirs:.2f} %")
        )
    else:
        print("without the style's pictures (--style-pictures) there is no saturation error")
    shown = torch.from_numpy(over_white(views)).float().permute(0, 3, 1, 2)
    return rows + clip_rows(shown, photo, style, folders) + face_rows(shown, photo, folders)


def mean_saturation(views: np.ndarray) -> float:
    """Mean HSV saturation, percent, of all pixels that the subject covers; views [V, H, W, 4], 0..1.

    Opaque pictures count whole but for what is nearly their corners' colour.
    """
    inside = views[..., 3] > 0.9
    if inside.all():
        corner = views[:, :1, :1, :3]
        inside = np.abs(views[..., :3] - corner).max(-1) > 0.04
    colours = views[..., :3][inside]
    if not len(colours):
        return 0.0
    high, low = colours.max(-1), colours.min(-1)
    return 100 * float(((high - low) / np.maximum(high, 1 / 255)).mean())


def _opaque(picture: np.ndarray) -> np.ndarray:
    return np.concatenate([picture / 255.0, np.ones((*picture.shape[:2], 1))], -1)


def over_white(views: np.ndarray) -> np.ndarray:
    """[V, H, W, 3] before white."""
    alpha = views[..., 3:]
    return np.clip(views[..., :3] * alpha + WHITE * (1 - alpha), 0, 1)


def clip_rows(shown: Tensor, photo: np.ndarray, style: str, folders: Folders) -> list[Row]:
    """CLIP's cosines times 100: of views and photo, and of views and the style's words."""
    from backend.diffusion.features import Clip
    from backend.diffusion.placement import Placement
    from scripts.quality import Row

    try:
        clip = Clip(folders, Placement())
    except UserError as error:
        print(f"without CLIP there is no clip_identity and no clip_style: {error}")
        return []
    with torch.no_grad():
        seen = torch.cat([clip.embed_images(part) for part in shown.split(16)])
        wanted = clip.embed_images(torch.from_numpy(photo.copy()).float().permute(2, 0, 1)[None] / 255)
        identity = 100 * float((seen @ wanted.T).mean())
        rows = [Row("clip_identity", identity, "", n=len(shown), note=paper("clip_identity"))]
        if style:
            value = 100 * float((seen @ clip.embed_texts([style]).T.to(seen)).mean())
            rows.append(Row("clip_style", value, "", n=len(shown), note=paper("clip_style")))
        else:
            print("without the style's words (--style TEXT) there is no clip_style")
    return rows


def face_rows(shown: Tensor, photo: np.ndarray, folders: Folders) -> list[Row]:
    """The recogniser's cosine of the photo's face and the views' faces, over those views in which it finds one."""
    from backend.perception.identity import identity, similarity
    from scripts.quality import Row

    recogniser = identity(folders)
    if recogniser is None:
        print("without a face recogniser (auraface or insightface-pack) there is no face_similarity")
        return []
    wanted = recogniser.embed(photo)
    if wanted is None:
        print("the recogniser finds no face in the photo: no face_similarity")
        return []
    frames = shown.permute(0, 2, 3, 1).mul(255).round().byte().numpy()
    found = [vector for frame in frames if (vector := recogniser.embed(np.ascontiguousarray(frame))) is not None]
    if not found:
        return [Row("face_similarity", 0.0, "", n=0, note="no face found in any view")]
    value = float(np.mean([similarity(vector, wanted) for vector in found]))
    return [Row("face_similarity", value, "", n=len(found), note=f"a face in {len(found)} of {len(frames)} views")]


def paper(name: str) -> str:
    """What the paper has, for a note."""
    return f"the paper's own set of photos: {PAPER[name]}"
