"""Compare a body avatar with an oracle figure: joints, lean, yaw, silhouettes and colours from other sides.

The measures take arrays; only `BundleAvatar` knows the method's result. Baselines: the flat cut-out, made here.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage
from scipy.signal import fftconvolve

from tests.oracles.figures import AZIMUTHS_DEG, VIEW_ZOOM, FigureTruth

if TYPE_CHECKING:
    from blender_addon.shared.avatar import Avatar
    from blender_addon.shared.gaussians import GaussianCloud

BODY_JOINTS = 22
"""SMPL-X's body joints: pelvis to wrists."""
PELVIS, LEFT_HIP, RIGHT_HIP, SPINE3, LEFT_SHOULDER, RIGHT_SHOULDER = 0, 1, 2, 9, 16, 17
SILHOUETTE_ALPHA = 0.5
MAX_PSNR_DB = 99.0


@dataclass(frozen=True)
class ViewScore:
    """Agreement of two pictures after the best shift.

    Attributes:
        iou: Of the silhouettes.
        psnr_db: Over pixels inside both silhouettes.
        psnr_gain_db: The same after one brightness factor for all pixels and channels.
    """

    iou: float
    psnr_db: float
    psnr_gain_db: float


@dataclass(frozen=True)
class PoseScore:
    """Error of a posed skeleton.

    Attributes:
        root_mm: Mean distance of the body joints, pelvis on pelvis.
        scaled_mm: The same after the best scale about the pelvis.
        scale: That factor, applied to the avatar.
        lean_deg: Avatar's pitch from pelvis to spine3 minus the truth's, in the plane of gravity and viewing direction.
        yaw_deg: Avatar's turn of the shoulder and hip line about the vertical minus the truth's.
    """

    root_mm: float
    scaled_mm: float
    scale: float
    lean_deg: float
    yaw_deg: float


@dataclass(frozen=True)
class FigureScore:
    """All measures of one avatar against one figure; `pose` is None for pictures without a skeleton."""

    pose: PoseScore | None
    views: dict[int, ViewScore]
    other: ViewScore | None


def best_shift(moving: np.ndarray, fixed: np.ndarray) -> tuple[int, int]:
    """Whole-pixel shift (rows, columns) of boolean `moving` [H, W] that overlaps most with `fixed` [H, W]."""
    if not moving.any() or not fixed.any():
        return 0, 0
    overlap = fftconvolve(fixed.astype(np.float64), moving[::-1, ::-1].astype(np.float64))
    row, column = np.unravel_index(int(overlap.argmax()), overlap.shape)
    return int(row) - moving.shape[0] + 1, int(column) - moving.shape[1] + 1


def shifted(image: np.ndarray, shift: tuple[int, int]) -> np.ndarray:
    """A picture [H, W, ...] moved by whole pixels, zeros moved in."""
    made = np.zeros_like(image)
    (rows, columns), (height, width) = shift, image.shape[:2]
    if abs(rows) >= height or abs(columns) >= width:
        return made
    to = (slice(max(rows, 0), height + min(rows, 0)), slice(max(columns, 0), width + min(columns, 0)))
    take = (slice(max(-rows, 0), height - max(rows, 0)), slice(max(-columns, 0), width - max(columns, 0)))
    made[to] = image[take]
    return made


def compare_views(drawn: np.ndarray, truth: np.ndarray) -> ViewScore:
    """Compare two pictures with straight alpha.

    Args:
        drawn: [H, W, 4] 0..1, moved to fit.
        truth: [H, W, 4] 0..1.

    Raises:
        ValueError: If the sizes differ.
    """
    if drawn.shape != truth.shape:
        raise ValueError(f"pictures of {drawn.shape} and {truth.shape} cannot be compared")
    there = truth[..., 3] > SILHOUETTE_ALPHA
    drawn = shifted(drawn, best_shift(drawn[..., 3] > SILHOUETTE_ALPHA, there))
    here = drawn[..., 3] > SILHOUETTE_ALPHA
    both, either = here & there, here | there
    if not both.any():
        return ViewScore(0.0, 0.0, 0.0)
    a, b = drawn[both][:, :3], truth[both][:, :3]
    gain = float((a * b).sum() / max(float((a * a).sum()), 1e-12))
    return ViewScore(float(both.sum() / either.sum()), _psnr_db(a, b), _psnr_db(gain * a, b))


def _psnr_db(a: np.ndarray, b: np.ndarray) -> float:
    error = float(np.square(a - b).mean())
    return min(MAX_PSNR_DB, -10 * np.log10(error)) if error > 0 else MAX_PSNR_DB


def compare_poses(
    joints_m: np.ndarray, w2c: np.ndarray, truth_joints_m: np.ndarray, truth_w2c: np.ndarray
) -> PoseScore:
    """Compare two posed skeletons, each in its own gravity-aligned world with its own camera.

    Args:
        joints_m: [55, 3] of the avatar, Y up.
        w2c: [4, 4] OpenCV camera of the avatar's photo.
        truth_joints_m: [55, 3].
        truth_w2c: [4, 4].
    """
    mine = _in_camera(joints_m, w2c)
    true = _in_camera(truth_joints_m, truth_w2c)
    scale = float((mine * true).sum() / (mine * mine).sum())
    lean = _lean_deg(joints_m, w2c) - _lean_deg(truth_joints_m, truth_w2c)
    yaw = _yaw_deg(joints_m, w2c) - _yaw_deg(truth_joints_m, truth_w2c)
    return PoseScore(
        root_mm=1000 * float(np.linalg.norm(mine - true, axis=1)[1:].mean()),
        scaled_mm=1000 * float(np.linalg.norm(scale * mine - true, axis=1)[1:].mean()),
        scale=scale,
        lean_deg=lean,
        yaw_deg=float((yaw + 180) % 360 - 180),
    )


def _in_camera(joints_m: np.ndarray, w2c: np.ndarray) -> np.ndarray:
    """Body joints in the camera's axes, relative to the pelvis, [22, 3]."""
    local = np.asarray(joints_m, np.float64)[:BODY_JOINTS] @ w2c[:3, :3].T
    return local - local[PELVIS]


def _level(w2c: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The camera's right and viewing direction, both made horizontal and of unit length."""
    forward = np.array([w2c[2, 0], 0.0, w2c[2, 2]])
    forward /= np.linalg.norm(forward)
    return np.array([-forward[2], 0.0, forward[0]]), forward


def _lean_deg(joints_m: np.ndarray, w2c: np.ndarray) -> float:
    """Pitch from pelvis to spine3 towards the camera, 0 is upright."""
    _, forward = _level(w2c)
    spine = joints_m[SPINE3] - joints_m[PELVIS]
    return float(np.degrees(np.arctan2(-spine @ forward, spine[1])))


def _yaw_deg(joints_m: np.ndarray, w2c: np.ndarray) -> float:
    """Turn of the line through shoulders and hips relative to the camera, 0 faces it."""
    right, forward = _level(w2c)
    line = joints_m[LEFT_SHOULDER] - joints_m[RIGHT_SHOULDER] + joints_m[LEFT_HIP] - joints_m[RIGHT_HIP]
    return float(np.degrees(np.arctan2(line @ forward, line @ right)))


def orbit_w2c(w2c: np.ndarray, centre_m: np.ndarray, azimuth_deg: float) -> np.ndarray:
    """The camera [4, 4] turned about the vertical axis through a point; +90 sees the left side of who faces it."""
    a = np.radians(azimuth_deg)
    turn = np.array([[np.cos(a), 0, -np.sin(a)], [0, 1, 0], [np.sin(a), 0, np.cos(a)]])
    about = np.eye(4)
    about[:3, :3], about[:3, 3] = turn, centre_m - turn @ centre_m
    return w2c @ about


class BundleAvatar:
    """A finished result folder, drawn and posed through the backend."""

    def __init__(self, folder: Path) -> None:
        """Read the bundle.

        Args:
            folder: Result folder of a `body` job.
        """
        from backend.preview import photo_actions
        from backend.splats.deform import pose_avatar
        from blender_addon.shared.avatar import read_bundle

        self.cloud, self.avatar = read_bundle(folder)
        self._pose_avatar = pose_avatar
        self.actions = photo_actions(self.avatar)
        self.photo_cloud = pose_avatar(
            self.cloud, self.avatar, self.avatar.photo_pose, self.avatar.photo_translation_m, self.actions
        )

    @property
    def w2c(self) -> np.ndarray:
        """[4, 4] camera of the photo."""
        return np.asarray(self.avatar.photo_w2c, np.float64)

    def photo_vertices_m(self) -> np.ndarray:
        """[V, 3] the proxy in the photo's pose and expression, world."""
        from backend.splats.deform import pose_vertices

        return pose_vertices(self.avatar, self.avatar.photo_pose, self.avatar.photo_translation_m, self.actions)

    def joints_m(self) -> np.ndarray:
        """[55, 3] joints in the photo's pose, world."""
        return posed_joints(self.avatar)

    def centre_m(self) -> np.ndarray:
        """[3] middle of the avatar's bounding box in the photo's pose, stray splats left out."""
        points = self.photo_cloud.positions_m[self.photo_cloud.opacities > 0.3]
        low, high = np.percentile(points, (0.02, 99.98), axis=0)
        return (low + high) / 2

    def draw(
        self, azimuth_deg: float, size_px: tuple[int, int], zoom: float = 1.0, cloud: GaussianCloud | None = None
    ) -> np.ndarray:
        """Draw the photo's pose (or `cloud`) from around the avatar's centre.

        Args:
            azimuth_deg: 0 is the photo's view.
            size_px: Width and height.
            zoom: Factor on the photo's focal length.
            cloud: Another pose.

        Returns:
            [H, W, 4] straight alpha, 0..1.
        """
        width, height = size_px
        factor = width / float(self.avatar.photo_size_px[0])
        fx, fy, cx, cy = (float(v) * factor for v in self.avatar.photo_intrinsics_px)
        intrinsics = np.array([[fx * zoom, 0, (cx - width / 2) * zoom + width / 2], [0, 0, 0], [0, 0, 1.0]])
        intrinsics[1] = [0, fy * zoom, (cy - height / 2) * zoom + height / 2]
        w2c = orbit_w2c(self.w2c, self.centre_m(), azimuth_deg)
        return draw_straight(self.photo_cloud if cloud is None else cloud, w2c, intrinsics, size_px)

    def in_pose(self, pose: np.ndarray, world_turn_deg: float) -> GaussianCloud:
        """The avatar in another pose, its pelvis where the photo has it.

        Args:
            pose: [55, 3] axis-angle.
            world_turn_deg: Turn about the vertical that brings the pose's world to the avatar's.
        """
        from scipy.spatial.transform import Rotation

        turned = np.array(pose, np.float64)
        turn = Rotation.from_euler("y", world_turn_deg, degrees=True)
        turned[0] = (turn * Rotation.from_rotvec(turned[0])).as_rotvec()
        return self._pose_avatar(self.cloud, self.avatar, turned, self.avatar.photo_translation_m)


def posed_joints(avatar: Avatar) -> np.ndarray:
    """[55, 3] world joints of the photo's pose."""
    import torch

    from backend.human.lbs import joint_transforms

    joints, pose = (torch.from_numpy(np.asarray(a, np.float64)) for a in (avatar.joints_m, avatar.photo_pose))
    _, positions = joint_transforms(joints, pose)
    return positions.numpy() + avatar.photo_translation_m


def draw_straight(
    cloud: GaussianCloud, w2c: np.ndarray, intrinsics_px: np.ndarray, size_px: tuple[int, int]
) -> np.ndarray:
    """Draw a cloud without background; [H, W, 4] straight alpha, 0..1."""
    import torch

    from backend.raster import Cameras, SplatTensors, rasterize

    arrays = (cloud.positions_m, cloud.rotations_wxyz, cloud.scales_m, cloud.opacities)
    splats = SplatTensors(*(torch.from_numpy(np.ascontiguousarray(a, np.float32)) for a in arrays))
    matrices = (torch.from_numpy(np.asarray(m, np.float32))[None] for m in (w2c, intrinsics_px))
    with torch.no_grad():
        output = rasterize(
            splats, Cameras(*matrices, *size_px), features=torch.from_numpy(np.float32(cloud.colours).copy())
        )
    assert output.features is not None and output.alpha is not None
    alpha = output.alpha[0].numpy()[..., None]
    colours = output.features[0].permute(1, 2, 0).numpy() / np.maximum(alpha, 1e-4)
    return np.concatenate([np.clip(colours, 0, 1), alpha], -1)


def camera_azimuth_deg(w2c: np.ndarray) -> float:
    """Where a camera stands, degrees about the vertical from +Z towards +X."""
    _, forward = _level(w2c)
    return float(np.degrees(np.arctan2(-forward[0], -forward[2])))


def score_avatar(avatar: BundleAvatar, truth: FigureTruth) -> tuple[FigureScore, dict[str, np.ndarray]]:
    """Measure an avatar against its figure.

    Returns:
        The scores, and the avatar's pictures by name (azimuths and "other"), [H, W, 4] 0..1.
    """
    height, width = truth.other_view.shape[:2]
    pictures = {str(a): avatar.draw(a, (width, height), VIEW_ZOOM) for a in AZIMUTHS_DEG}
    turn = camera_azimuth_deg(avatar.w2c) - camera_azimuth_deg(truth.camera.w2c)
    other = avatar.in_pose(truth.other_pose, turn)
    pictures["other"] = avatar.draw(0, (width, height), VIEW_ZOOM, other)
    pictures["0"] = avatar.draw(0, (truth.photo.shape[1], truth.photo.shape[0]))
    pose = compare_poses(avatar.joints_m(), avatar.w2c, truth.joints_m, truth.camera.w2c)
    score = FigureScore(pose, _against(pictures, truth), compare_views(pictures["other"], truth.other_view / 255.0))
    return score, pictures


def _against(pictures: dict[str, np.ndarray], truth: FigureTruth) -> dict[int, ViewScore]:
    front = np.concatenate([truth.photo / 255.0, truth.alpha[..., None]], -1)
    views = {0: front} | {a: v / 255.0 for a, v in truth.views.items()}
    return {a: compare_views(pictures[str(a)], view) for a, view in views.items()}


def cutout_view(truth: FigureTruth, azimuth_deg: float) -> np.ndarray:
    """The flat cut-out: the photo's true silhouette on an upright plane through the pelvis that faces the camera.

    Returns:
        What the camera of that azimuth sees of it, [h, w, 4] straight alpha, 0..1.
    """
    camera = truth.view_camera(azimuth_deg)
    v, u = np.mgrid[0 : camera.height, 0 : camera.width] + 0.5
    rays = np.stack([u - camera.width / 2, v - camera.height / 2, np.full(u.shape, camera.focal_px)], -1)
    rays = rays / camera.focal_px @ camera.w2c[:3, :3]
    eye = -camera.w2c[:3, :3].T @ camera.w2c[:3, 3]
    _, normal = _level(truth.camera.w2c)
    facing = rays @ normal
    safe = np.where(np.abs(facing) < 1e-9, 1e-9, facing)
    reach = ((truth.joints_m[PELVIS] - eye) @ normal) / safe
    hits = eye + rays * reach[..., None]
    uv = truth.camera.project(hits.reshape(-1, 3)).reshape(*u.shape, 2)
    front = np.concatenate([truth.photo / 255.0, truth.alpha[..., None]], -1)
    at = [uv[..., 1] - 0.5, uv[..., 0] - 0.5]
    seen = np.stack([ndimage.map_coordinates(front[..., k], at, order=1, cval=0.0) for k in range(4)], -1)
    seen[(reach <= 0) | (np.abs(facing) < 1e-9)] = 0
    return seen


def score_cutout(truth: FigureTruth) -> FigureScore:
    """Measure the flat cut-out at the other views (it has no skeleton and no other pose)."""
    views = {a: compare_views(cutout_view(truth, a), view / 255.0) for a, view in truth.views.items()}
    return FigureScore(None, views, None)
