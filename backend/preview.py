"""Pictures of clouds and avatars: single views and the contact sheet."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from backend.context import Context
from backend.raster import Cameras, SplatTensors, rasterize
from backend.raster.cameras import orbit_camera
from backend.splats.deform import pose_avatar
from blender_addon.shared.avatar import Avatar
from blender_addon.shared.gaussians import GaussianCloud
from blender_addon.shared.skeleton import JOINT_NAMES

BACKGROUND = (0.92, 0.92, 0.92)
CELL_PX = 384
_FOCAL_PER_SIZE = 2.2  # a portrait lens, about 25 degrees across


def draw_cloud(cloud: GaussianCloud, cameras: Cameras) -> np.ndarray:
    """Draw a cloud's base colour over a light background.

    Args:
        cloud: Body frame, metres.
        cameras: One camera.

    Returns:
        [H, W, 3] uint8 RGB.
    """
    splats = SplatTensors(
        *(torch.from_numpy(a) for a in (cloud.positions_m, cloud.rotations_wxyz, cloud.scales_m, cloud.opacities))
    )
    colours = torch.from_numpy(np.ascontiguousarray(cloud.colours, np.float32))
    single = Cameras(cameras.w2c.float(), cameras.K.float(), cameras.width, cameras.height)
    with torch.no_grad():
        image = rasterize(
            splats, single, features=colours, background=torch.tensor(BACKGROUND), outputs=("features",)
        ).features
    assert image is not None
    return (image[0].clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()


def draw_view(
    cloud: GaussianCloud,
    azimuth_deg: float,
    elevation_deg: float = 0.0,
    size_px: int = 512,
    bounds_m: tuple[np.ndarray, np.ndarray] | None = None,
) -> np.ndarray:
    """Draw a cloud from around it, framed whole.

    Args:
        cloud: Body frame, metres.
        azimuth_deg: 0 front, 90 the subject's left side, 180 back.
        elevation_deg: Positive from above.
        size_px: Side of the picture.
        bounds_m: Lower and upper corner of what is framed; None frames the cloud without its outliers.

    Returns:
        [size, size, 3] uint8 RGB.
    """
    if bounds_m is None:
        bounds_m = (np.percentile(cloud.positions_m, 0.2, axis=0), np.percentile(cloud.positions_m, 99.8, axis=0))
    low, high = bounds_m
    extent = max(float((high - low)[1]), float(np.hypot(*(high - low)[[0, 2]])), 1e-3)
    camera = orbit_camera(
        (low + high) / 2,
        1.12 * extent * _FOCAL_PER_SIZE,
        azimuth_deg,
        elevation_deg,
        _FOCAL_PER_SIZE * size_px,
        size_px,
    )
    return draw_cloud(cloud, camera)


def preview_poses() -> dict[str, np.ndarray]:
    """The three poses of the contact sheet, each [55, 3] axis-angle: T-pose, a step, one arm waving."""
    step, wave = np.zeros((55, 3)), np.zeros((55, 3))
    bends = {
        "left_hip": (-0.5, 0, 0.03), "left_knee": (0.35, 0, 0), "right_hip": (0.3, 0, -0.03),
        "right_knee": (0.35, 0, 0), "left_shoulder": (0.3, 0.2, -1.15), "right_shoulder": (-0.3, 0.3, 1.15),
        "left_elbow": (0, -0.4, 0), "right_elbow": (0, 0.6, 0), "head": (0, 0.15, 0),
    }  # fmt: skip
    waves = {
        "left_shoulder": (0, -0.2, 0.5), "left_elbow": (0, -0.3, 0.9), "right_shoulder": (0, 0.1, 1.15),
        "right_elbow": (0, 0.3, 0), "head": (0, 0, -0.12), "left_hip": (0, 0, 0.06), "right_hip": (0, 0, -0.06),
    }  # fmt: skip
    for pose, values in ((step, bends), (wave, waves)):
        for name, value in values.items():
            pose[JOINT_NAMES.index(name)] = value
    return {"T-pose": np.zeros((55, 3)), "step": step, "wave": wave}


def photo_actions(avatar: Avatar) -> dict[str, float]:
    """The photo's shape key weights, its remainder included."""
    names = [str(n) for n in avatar.shape_key_names]
    return {**dict(zip(names, avatar.photo_actions.tolist(), strict=False)), "photo": 1.0}


def write_contact_sheet(path: Path, photo: np.ndarray, cloud: GaussianCloud, avatar: Avatar, context: Context) -> None:
    """Write preview.png: the photo, front, both sides, back, three poses, and the face at rest and in action.

    Args:
        path: File to write.
        photo: [H, W, 3] uint8 RGB.
        cloud: The avatar's rest cloud.
        avatar: Its arrays.
        context: Progress and cancelling.
    """
    stage = "contact sheet"
    cells = [_letterbox(photo, CELL_PX)]
    shown = pose_avatar(cloud, avatar, avatar.photo_pose, actions=photo_actions(avatar))
    for azimuth in (0.0, 45.0, 90.0, 180.0, 270.0):
        cells.append(draw_view(shown, azimuth, size_px=CELL_PX))
        context.progress(stage, len(cells), 12)
    poses = preview_poses()
    for name, azimuth in (("T-pose", 0.0), ("step", 30.0), ("wave", -20.0)):
        cells.append(draw_view(pose_avatar(cloud, avatar, poses[name]), azimuth, 5.0, CELL_PX))
        context.progress(stage, len(cells), 12)
    for actions, azimuth in (
        ({}, 30.0),
        ({"mouthSmileLeft": 0.8, "mouthSmileRight": 0.8}, 0.0),
        ({"eyeBlinkLeft": 1.0, "eyeBlinkRight": 1.0, "jawOpen": 0.4}, 0.0),
    ):
        cells.append(draw_head(cloud, avatar, actions, azimuth, CELL_PX))
        context.progress(stage, len(cells), 12)
    rows = [np.concatenate(cells[k : k + 4], axis=1) for k in range(0, 12, 4)]
    part = path.with_name(path.name + ".part")
    Image.fromarray(np.concatenate(rows)).save(part, format="PNG")
    os.replace(part, path)


def write_bust_sheet(path: Path, photo: np.ndarray, cloud: GaussianCloud, avatar: Avatar, context: Context) -> None:
    """Write preview.png of a bust: the photo, views around, and the face in action.

    Args:
        path: File to write.
        photo: [H, W, 3] uint8 RGB.
        cloud: The bust's rest cloud.
        avatar: Its arrays.
        context: Progress and cancelling.
    """
    cells = [_letterbox(photo, CELL_PX)]
    expression = photo_actions(avatar)
    for azimuth in (0.0, 40.0, 90.0, 180.0):
        cells.append(draw_bust(cloud, avatar, expression, azimuth_deg=azimuth))
        context.progress("contact sheet", len(cells), 8)
    for actions, turn in BUST_ACTIONS:
        cells.append(draw_bust(cloud, avatar, actions, turn))
        context.progress("contact sheet", len(cells), 8)
    rows = [np.concatenate(cells[k : k + 4], axis=1) for k in range(0, 8, 4)]
    part = path.with_name(path.name + ".part")
    Image.fromarray(np.concatenate(rows)).save(part, format="PNG")
    os.replace(part, path)


BUST_ACTIONS: tuple[tuple[dict[str, float], float], ...] = (
    ({"eyeBlinkLeft": 1.0, "eyeBlinkRight": 1.0}, 0.0),
    ({"jawOpen": 0.6}, 0.0),
    ({"mouthPucker": 0.6, "browInnerUp": 0.6}, -25.0),
)
"""Facial actions and turn of the head (degrees to the subject's left) on a bust's contact sheet."""


def draw_bust(
    cloud: GaussianCloud,
    avatar: Avatar,
    actions: dict[str, float] | None = None,
    turn_deg: float = 0.0,
    azimuth_deg: float = 0.0,
    size_px: int = CELL_PX,
) -> np.ndarray:
    """Draw a bust whole.

    Args:
        cloud: Its rest cloud.
        avatar: Its arrays.
        actions: Weights of facial actions.
        turn_deg: Turn of neck and head to the subject's left.
        azimuth_deg: 0 front, 90 the subject's left side.
        size_px: Side of the picture.

    Returns:
        [size, size, 3] uint8 RGB.
    """
    pose = np.zeros((55, 3))
    for name in ("neck", "head"):
        pose[JOINT_NAMES.index(name), 1] = np.radians(turn_deg) / 2
    bounds = (np.percentile(cloud.positions_m, 0.2, axis=0), np.percentile(cloud.positions_m, 99.8, axis=0))
    return draw_view(pose_avatar(cloud, avatar, pose, actions=actions), azimuth_deg, 0.0, size_px, bounds)


def draw_head(
    cloud: GaussianCloud, avatar: Avatar, actions: dict[str, float], azimuth_deg: float, size_px: int
) -> np.ndarray:
    """A close-up of the head with facial actions, arms down, seen from `azimuth_deg`; [size, size, 3] uint8."""
    pose = np.zeros((55, 3))
    for side, sign in (("left", -1.0), ("right", 1.0)):
        pose[JOINT_NAMES.index(f"{side}_shoulder"), 2] = 1.15 * sign
    posed = pose_avatar(cloud, avatar, pose, actions=actions)
    head = avatar.joints_m[JOINT_NAMES.index("head")]
    centre = head + np.array([0, 0.06, 0.02])
    camera = orbit_camera(centre, 1.4, azimuth_deg, 0, 1.4 * size_px / 0.40, size_px)
    return draw_cloud(posed, camera)


def _letterbox(image: np.ndarray, size_px: int) -> np.ndarray:
    """The image fitted into a square of `size_px` on the background colour."""
    picture = Image.fromarray(image)
    picture.thumbnail((size_px, size_px), Image.Resampling.LANCZOS)
    canvas = Image.new("RGB", (size_px, size_px), tuple(round(255 * c) for c in BACKGROUND))
    canvas.paste(picture, ((size_px - picture.width) // 2, (size_px - picture.height) // 2))
    return np.asarray(canvas)
