"""Picture sheets to look at, and the demo portrait's measures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from backend.human.camera import PinholeCamera
from scripts.quality_figures import BundleAvatar, cutout_view, draw_straight, orbit_w2c
from tests.oracles.figures import AZIMUTHS_DEG, FigureTruth

GREY = 0.86
CELL_PX = 360
EXPRESSIONS: dict[str, dict[str, float]] = {
    "neutral": {},
    "photo": {"photo": 1.0},
    "blink": {"eyeBlinkLeft": 1.0, "eyeBlinkRight": 1.0},
    "smile": {"mouthSmileLeft": 1.0, "mouthSmileRight": 1.0},
    "jaw open": {"jawOpen": 1.0},
    "look aside": {
        "eyeLookOutLeft": 1.0, "eyeLookInRight": 1.0,
    },
}  # fmt: skip
HEAD_YAWS_DEG = (0, 30, -30)


def on_grey(rgba: np.ndarray) -> np.ndarray:
    """A straight-alpha picture [H, W, 4] 0..1 on light grey, uint8 [H, W, 3]."""
    alpha = rgba[..., 3:]
    return np.round(255 * np.clip(rgba[..., :3] * alpha + GREY * (1 - alpha), 0, 1)).astype(np.uint8)


def write_sheet(path: Path, rows: Sequence[Sequence[tuple[str, np.ndarray]]], height_px: int = CELL_PX) -> None:
    """Write labelled pictures in rows.

    Args:
        path: PNG file; its folder is made.
        rows: Of (label, uint8 [H, W, 3]).
        height_px: Every picture is scaled to this height.
    """
    bands = []
    for row in rows:
        cells = []
        for label, picture in row:
            width = round(height_px * picture.shape[1] / picture.shape[0])
            cell = Image.fromarray(picture).resize((width, height_px), Image.Resampling.LANCZOS)
            ImageDraw.Draw(cell).text((6, 4), label, fill=(0, 0, 0), stroke_width=1, stroke_fill=(255, 255, 255))
            cells.append(np.asarray(cell))
        bands.append(np.concatenate(cells, 1))
    width = max(band.shape[1] for band in bands)
    padded = [np.pad(b, ((0, 0), (0, width - b.shape[1]), (0, 0)), constant_values=255) for b in bands]
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.concatenate(padded)).save(path)


def figure_sheet(
    path: Path, truth: FigureTruth, drawn: Mapping[str, np.ndarray], without: Mapping[str, np.ndarray] | None
) -> None:
    """Write one figure's sheet: truth, avatar, avatar without the outline layer, cut-out; one column per view."""
    photo = truth.photo
    other = truth.other_view / 255.0
    rows = [
        [("photo", photo), *((f"truth {a}", on_grey(truth.views[a] / 255.0)) for a in AZIMUTHS_DEG)]
        + [("truth, other pose", on_grey(other))],
        [(f"avatar {a}", on_grey(drawn[str(a)])) for a in (0, *AZIMUTHS_DEG)]
        + [("other pose", on_grey(drawn["other"]))],
    ]
    if without is not None:
        rows.append(
            [(f"no outline {a}", on_grey(without[str(a)])) for a in (0, *AZIMUTHS_DEG)]
            + [("other pose", on_grey(without["other"]))]
        )
    rows.append([("photo", photo), *((f"cut-out {a}", on_grey(cutout_view(truth, a))) for a in AZIMUTHS_DEG)])
    write_sheet(path, rows)


def turntable_sheet(path: Path, avatar: BundleAvatar) -> None:
    """Write 12 azimuths of the photo's pose, from a level camera that frames the whole avatar."""
    size = (CELL_PX, CELL_PX)
    low, high = avatar.photo_cloud.positions_m.min(0), avatar.photo_cloud.positions_m.max(0)
    cells = [
        (str(a), on_grey(_draw_around(avatar, (low + high) / 2, float(np.linalg.norm(high - low)), a, size)))
        for a in range(0, 360, 30)
    ]
    write_sheet(path, [cells[:6], cells[6:]])


def _draw_around(
    avatar: BundleAvatar, centre_m: np.ndarray, extent_m: float, azimuth_deg: float, size: tuple[int, int]
) -> np.ndarray:
    w2c = np.diag([1.0, -1.0, -1.0, 1.0])  # from +Z, level
    w2c[:3, 3] = -w2c[:3, :3] @ (centre_m + np.array([0, 0, 2.5 * extent_m]))
    intrinsics = np.array([[2.3 * size[0], 0, size[0] / 2], [0, 2.3 * size[0], size[1] / 2], [0, 0, 1.0]])
    return draw_straight(avatar.photo_cloud, orbit_w2c(w2c, centre_m, azimuth_deg), intrinsics, size)


def expression_sheet(path: Path, avatar: BundleAvatar) -> None:
    """Write neutral, photo, blink, smile, jaw open and look aside at yaw 0, 30 and -30 of the head in the T-pose."""
    from backend.splats.deform import pose_avatar
    from blender_addon.shared.skeleton import JOINT_NAMES

    head = JOINT_NAMES.index("head")
    eyes = avatar.avatar.joints_m[[JOINT_NAMES.index("left_eye_smplhf"), JOINT_NAMES.index("right_eye_smplhf")]]
    centre = (avatar.avatar.joints_m[head] + 2 * eyes.mean(0)) / 3
    pose = np.zeros((55, 3))
    for side, sign in (("left", -1.0), ("right", 1.0)):
        pose[JOINT_NAMES.index(f"{side}_shoulder"), 2] = 1.15 * sign
    size = (CELL_PX, CELL_PX)
    intrinsics = np.array([[4.6 * size[0], 0, size[0] / 2], [0, 4.6 * size[0], size[1] / 2], [0, 0, 1.0]])
    w2c = np.diag([1.0, -1.0, -1.0, 1.0])
    w2c[:3, 3] = -w2c[:3, :3] @ (centre + np.array([0, 0, 1.5]))
    rows: list[list[tuple[str, np.ndarray]]] = [[] for _ in HEAD_YAWS_DEG]
    for name, actions in EXPRESSIONS.items():
        cloud = pose_avatar(avatar.cloud, avatar.avatar, pose, actions=actions)
        for row, yaw in zip(rows, HEAD_YAWS_DEG, strict=True):
            picture = draw_straight(cloud, orbit_w2c(w2c, centre, yaw), intrinsics, size)
            row.append((f"{name} {yaw}", on_grey(picture)))
    write_sheet(path, rows)


@dataclass(frozen=True)
class PortraitScores:
    """The demo portrait's figures; holes are shares 0..1, one per azimuth."""

    alpha_iou: float
    psnr_db: float
    psnr_eroded_db: float
    holes: tuple[float, ...]
    components: tuple[int, ...]
    cloud_components: int
    cloud_specks: int


def score_portrait(photo_path: Path, avatar: BundleAvatar, sheet: Path | None) -> PortraitScores:
    """Measure an avatar against its own photo: the mask, colours, holes and parts.

    Held objects are no part of the avatar and are left out; they are found again with the method's own rule.

    Args:
        photo_path: The photo that the avatar was made from.
        avatar: The result.
        sheet: Folder for a picture of photo, mask, avatar and difference; None for none.
    """
    from backend.context import Context
    from backend.human.fit import fit_body
    from backend.human.head import personalise_head
    from backend.human.held import find_held_objects
    from backend.human.model import load_default_body
    from backend.perception.people import find_person
    from backend.perception.photo import read_photo
    from backend.splats.bound import PosedSplats
    from backend.splats.measure import cloud_parts, orbit_scores, photo_scores

    context, body = Context.quiet(), load_default_body()
    person = find_person(read_photo(photo_path).image, 0, context)
    personal = personalise_head(person, body, fit_body(person, body, context), context)
    held = find_held_objects(person, body, personal)
    cloud = avatar.photo_cloud
    splats = PosedSplats(cloud.positions_m, cloud.rotations_wxyz, cloud.scales_m, cloud.opacities, cloud.colours)
    full = PinholeCamera(
        avatar.w2c,
        *(float(v) for v in avatar.avatar.photo_intrinsics_px),
        *(int(v) for v in avatar.avatar.photo_size_px),
    )
    image, mask, held, camera = _at_512(person.image, person.mask, held, full)
    front = photo_scores(splats, camera, image, mask, held)
    around = orbit_scores(splats, 512, (avatar.photo_vertices_m(), avatar.avatar.triangles))
    parts, specks = cloud_parts(splats)
    if sheet is not None:
        drawn = draw_straight(cloud, camera.w2c, camera.intrinsics_px, (camera.width, camera.height))
        difference = np.abs(on_grey(drawn).astype(int) - image.astype(int)).clip(0, 85).astype(np.uint8) * 3
        shown = np.where((mask > 0.5)[..., None] & ~held[..., None], image, 255).astype(np.uint8)
        cells = [("photo", image), ("mask without held objects", shown), ("avatar", on_grey(drawn))]
        write_sheet(sheet / "portrait_front.png", [[*cells, ("difference x 3", difference)]], 512)
    return PortraitScores(
        front.alpha_iou, front.psnr_db, front.psnr_eroded_db, around.holes, around.components, parts, specks
    )


def _at_512(
    image: np.ndarray, mask: np.ndarray, held: np.ndarray, camera: PinholeCamera
) -> tuple[np.ndarray, np.ndarray, np.ndarray, PinholeCamera]:
    """Photo, mask, held objects and camera with the long side at 512 px."""
    import cv2

    factor = 512 / max(camera.width, camera.height)
    size = (round(camera.width * factor), round(camera.height * factor))
    across, down = size[0] / camera.width, size[1] / camera.height
    small = [cv2.resize(a, size, interpolation=cv2.INTER_AREA) for a in (image, np.float32(mask), np.float32(held))]
    scaled = PinholeCamera(
        camera.w2c, camera.fx * across, camera.fy * down, camera.cx * across, camera.cy * down, *size
    )
    return small[0], small[1], small[2] > 0.5, scaled
