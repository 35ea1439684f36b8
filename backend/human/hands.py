"""Wrist and fingers of one hand from mediapipe's 21 hand landmarks, after the body has been fitted."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse import csr_matrix
from scipy.spatial.transform import Rotation

from backend.human.camera import PinholeCamera
from backend.human.fit_losses import saturate
from backend.human.fit_model import DTYPE, relaxed_fingers, rodrigues
from backend.human.least_squares import SolveSettings, minimise
from backend.human.model import BodyModel

FINGER_JOINTS = 15
THUMB = slice(12, 15)  # order of a hand's joints: index, middle, pinky, ring, thumb, three each
ERROR_LIMIT = 0.12  # of the hand's length; a worse fit keeps the relaxed curl
LANDMARK_SD = 0.04  # of the hand's length in the image, mediapipe against the model's tie (renders)
DEPTH_SD = 0.4  # of a finger bone's direction away from the camera; mediapipe's hand depth is rough
LIMIT_SD_RAD = 0.05
# landmark pairs whose direction is compared: palm, then the fingers from thumb to little finger
_BONES = ((0, 5), (0, 9), (0, 17), (5, 17)) + tuple((f + k, f + k + 1) for f in (1, 5, 9, 13, 17) for k in range(3))
# roll of the forearm, bend aside, flexion that a relaxed wrist may take without discomfort (ranges of motion: anatomy)
_UNSEEN_TURNS_DEG = ((0, -40, 40, -80, 80), (0, -20, 20), (0, -35, 35, -65, 65))
_UNSEEN_ELBOW_DEG = (-10, 0, 10)  # the landmarks know the forearm to about this; 20 cost 12 cm on hands at the hip
_UNSEEN_TURN_COST = 0.06  # share of the hand that one radian (squared) outweighs
_UNSEEN_ELBOW_EFFORT = 40.0  # how much more than the wrist the elbow resists
# parameters: wrist 3, fingers 45, shift in the image 2 (over the hand's length), log size
_WRIST, _FINGERS, _SHIFT, _SIZE = slice(0, 3), slice(3, 48), slice(48, 50), 50


@dataclass(frozen=True)
class HandPose:
    """Result for one hand.

    Attributes:
        wrist: [3] local axis-angle of the wrist.
        fingers: [15, 3] local axis-angle.
        error: Mean distance of the landmarks over the hand's length in the image.
    """

    wrist: np.ndarray
    fingers: np.ndarray
    error: float


@dataclass(frozen=True)
class _Hand:
    """One hand's chain: joint 0 is the wrist, 1 to 15 the fingers; points folded with the weights."""

    joints: torch.Tensor
    base: torch.Tensor
    share: torch.Tensor
    carrier: torch.Tensor
    wrist_m: torch.Tensor

    def points(self, wrist: torch.Tensor, fingers: torch.Tensor) -> torch.Tensor:
        """[21, 3] landmarks in the world."""
        local = rodrigues(torch.cat([wrist[None], fingers]))
        root = self.carrier @ local[0]
        rotations, positions = [root], [self.wrist_m]
        first = root @ local[1::3]
        start = self.wrist_m + (root @ (self.joints[1::3] - self.joints[0])[..., None])[..., 0]
        second = first @ local[2::3]
        middle = start + (first @ (self.joints[2::3] - self.joints[1::3])[..., None])[..., 0]
        third = second @ local[3::3]
        end = middle + (second @ (self.joints[3::3] - self.joints[2::3])[..., None])[..., 0]
        turned = torch.cat([rotations[0][None], torch.stack([first, second, third], 1).reshape(-1, 3, 3)])
        moved = torch.cat([positions[0][None], torch.stack([start, middle, end], 1).reshape(-1, 3)])
        shift = moved - (turned @ self.joints[..., None])[..., 0]
        return torch.einsum("jab,kjb->ka", turned, self.base) + self.share @ shift


def hand_columns(side: int) -> list[int]:
    """Joint indices of wrist and fingers of side 0 (left) or 1 (right)."""
    return [20 + side, *range(25 + 15 * side, 40 + 15 * side)]


def _fold(
    body: BodyModel, vertices_m: np.ndarray, joints_m: np.ndarray, side: int, carrier: np.ndarray, wrist_m: np.ndarray
) -> _Hand:
    """Regressor rows of one hand with the shares of its 16 joints; what the forearm holds goes to the wrist."""
    rows = csr_matrix(body.hand_keypoints)[21 * side : 21 * side + 21]
    columns = hand_columns(side)
    weights = body.skin_weights[:, columns].astype(np.float64)
    weights[:, 0] += 1.0 - weights.sum(1)
    base = np.stack([rows @ (weights[:, [j]] * vertices_m) for j in range(len(columns))], axis=1)
    arrays = (joints_m[columns], base, np.asarray(rows @ weights), carrier, wrist_m)
    return _Hand(*(torch.tensor(np.asarray(a), dtype=DTYPE) for a in arrays))


def _prior(side: int, wrist: np.ndarray) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Mean, standard deviation, lower and upper limit of the 48 angles, radians (ranges of motion: anatomy).

    A left finger bends about -z; x is the bone's axis, y spreads. The thumb turns about all axes.
    """
    sign = -1.0 if side == 0 else 1.0
    mean = np.zeros((16, 3))
    sd = np.full((16, 3), 0.04)
    mean[0], sd[0] = wrist, (0.8, 0.35, 0.5)
    mean[1:] = relaxed_fingers()[hand_columns(side)[1:]]
    sd[1::3, 1], sd[1:, 2] = 0.18, 0.55
    sd[1:][THUMB] = 0.35
    flexed = np.array([-0.35, 1.8])
    low, high = np.full((16, 3), -1.7), np.full((16, 3), 1.7)
    low[1:, 2], high[1:, 2] = sorted(sign * flexed)
    low[1:][THUMB], high[1:][THUMB] = -1.2, 1.2
    return tuple(torch.tensor(a.reshape(-1), dtype=DTYPE) for a in (mean, sd, low, high))  # type: ignore[return-value]


def fit_hand(
    body: BodyModel,
    rest: tuple[np.ndarray, np.ndarray],
    side: int,
    forearm_rotation: np.ndarray,
    wrist_m: np.ndarray,
    wrist: np.ndarray,
    landmarks_px: np.ndarray,
    landmarks_world_m: np.ndarray,
    camera: PinholeCamera,
) -> HandPose | None:
    """Turn wrist and fingers so that the landmarks lie on each other.

    The forearm stays; the hand may shift and scale in the image, because the body's wrist is only known to 2 cm.

    Args:
        body: The body model.
        rest: Rest vertices [V, 3] and joints [55, 3] of the person's shape, metres.
        side: 0 left, 1 right.
        forearm_rotation: [3, 3] world rotation of the elbow joint.
        wrist_m: [3] world position of the wrist.
        wrist: [3] local axis-angle of the wrist that the body fit found.
        landmarks_px: [21, 2].
        landmarks_world_m: [21, 3] x right, y down, z away, or [0, 3].
        camera: The photo's camera.

    Returns:
        The pose, or None when the landmarks do not fit a hand (error above `ERROR_LIMIT`).
    """
    hand = _fold(body, rest[0].astype(np.float64), rest[1].astype(np.float64), side, forearm_rotation, wrist_m)
    target = torch.tensor(np.asarray(landmarks_px, np.float64), dtype=DTYPE)
    length = float((target[9] - target[0]).norm() + (target[12] - target[9]).norm())
    reach = camera.fx * 0.17 / float(camera.to_camera(wrist_m[None])[0, 2])
    length = max(length, 0.5 * reach, 1.0)  # a hand that points at the camera is short but no smaller
    mean, sd, low, high = _prior(side, wrist)
    w2c = torch.tensor(camera.w2c, dtype=DTYPE)
    centre = torch.tensor([camera.cx, camera.cy], dtype=DTYPE)
    pairs = torch.tensor(_BONES)
    away: torch.Tensor | None = None  # mediapipe's depth of each bone's direction
    if len(landmarks_world_m) == 21:
        ends = torch.tensor(np.asarray(landmarks_world_m, np.float64), dtype=DTYPE)
        bones = ends[pairs[:, 1]] - ends[pairs[:, 0]]
        away = (bones / bones.norm(dim=1, keepdim=True).clamp(min=1e-6))[:, 2]

    def error(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        points = hand.points(x[_WRIST], x[_FINGERS].reshape(FINGER_JOINTS, 3))
        points = points @ w2c[:3, :3].T + w2c[:3, 3]
        root = points[0].detach()
        points = root + (points - points[0]) * torch.exp(x[_SIZE])
        pixels = points[:, :2] / points[:, 2:].clamp(min=0.2) * camera.fx + centre
        at_root = root[:2] / root[2].clamp(min=0.2) * camera.fx + centre
        return (pixels - at_root - target + target[0]) / length + x[_SHIFT], points

    def residuals(x: torch.Tensor, switches: torch.Tensor) -> torch.Tensor:
        flat, points = error(x)
        rows = [saturate(flat / LANDMARK_SD, switches[0]).reshape(-1)]
        if away is not None:
            d = points[pairs[:, 1]] - points[pairs[:, 0]]
            dz = (d / d.norm(dim=1, keepdim=True).clamp(min=1e-6))[:, 2]
            rows.append(saturate(((dz - away) / DEPTH_SD)[:, None], 3.0)[:, 0])
        angles = x[:48]
        rows += [
            (angles - mean) / sd,
            torch.relu(low - angles) / LIMIT_SD_RAD,
            torch.relu(angles - high) / LIMIT_SD_RAD,
        ]
        rows += [x[_SHIFT] / 0.05, (x[_SIZE] / 0.1)[None]]
        return torch.cat(rows)

    start = torch.zeros((3, 51), dtype=DTYPE)
    start[:, :48] = mean
    start[:, 0] += torch.tensor([0.0, -1.2, 1.2], dtype=DTYPE)  # the palm may face either way
    switches = torch.full((3, 1), 30.0, dtype=DTYPE)
    x, cost = minimise(residuals, start, switches, SolveSettings(iterations=12))
    best = x[cost.argmin()][None]
    best, _ = minimise(residuals, best, torch.full((1, 1), 4.0, dtype=DTYPE), SolveSettings(iterations=12))
    with torch.no_grad():
        distance = float(error(best[0])[0].norm(dim=1).mean())
    if not np.isfinite(distance) or distance > ERROR_LIMIT:
        return None
    angles = best[0].numpy()
    return HandPose(angles[_WRIST].copy(), angles[_FINGERS].reshape(FINGER_JOINTS, 3).copy(), distance)


def turn_unseen_hand(
    body: BodyModel,
    rest: tuple[np.ndarray, np.ndarray],
    side: int,
    forearm_rotation: np.ndarray,
    elbow_m: np.ndarray,
    wrist: np.ndarray,
    other: np.ndarray,
    camera: PinholeCamera,
) -> tuple[np.ndarray, np.ndarray]:
    """Turn a hand that nobody saw to where the photo does not contradict it.

    A hand in plain view would have been found. Where the fitted one covers pixels that show something else, elbow and
    wrist bend within their range until least of the hand does; a small turn is preferred to a large one.

    Args:
        body: The body model.
        rest: Rest vertices [V, 3] and joints [55, 3] of the person's shape, metres.
        side: 0 left, 1 right.
        forearm_rotation: [3, 3] world rotation of the elbow joint.
        elbow_m: [3] world position of the elbow.
        wrist: [3] local axis-angle of the wrist that the body fit found.
        other: [H, W] bool, pixels that show clothes or a held object.
        camera: The photo's camera.

    Returns:
        Rotation [3, 3] to append to the elbow's, and the wrist's local axis-angle [3].
    """
    vertices, joints = (a.astype(np.float64) for a in rest)
    forearm = joints[20 + side] - joints[18 + side]
    # the fingers keep their curl, so the landmarks turn about the wrist like one piece
    hand = _fold(body, vertices, joints, side, np.eye(3), np.zeros(3))
    fingers = torch.tensor(relaxed_fingers()[hand_columns(side)[1:]], dtype=DTYPE)
    piece = hand.points(torch.zeros(3, dtype=DTYPE), fingers).numpy()
    elbows = Rotation.from_euler("yz", list(itertools.product(_UNSEEN_ELBOW_DEG, repeat=2)), degrees=True)
    turns = Rotation.from_euler("xyz", list(itertools.product(*_UNSEEN_TURNS_DEG)), degrees=True)
    wrists = Rotation.from_rotvec(wrist) * turns
    carriers = forearm_rotation @ elbows.as_matrix()
    points = np.einsum("eab,wbc,kc->ewka", carriers, wrists.as_matrix(), piece)
    points += (elbow_m + carriers @ forearm)[:, None, None]
    pixels = camera.project(points.reshape(-1, 3)).astype(int)
    inside = (pixels >= 0).all(axis=1) & (pixels < other.shape[::-1]).all(axis=1)
    pixels = np.where(inside[:, None], pixels, 0)
    wrong = (other[pixels[:, 1], pixels[:, 0]] & inside).reshape(points.shape[:3]).mean(axis=2)
    effort = np.square(turns.as_rotvec()).sum(1) + _UNSEEN_ELBOW_EFFORT * np.square(elbows.as_rotvec()).sum(1)[:, None]
    elbow, turn = np.unravel_index(np.argmin(wrong + _UNSEEN_TURN_COST * effort), wrong.shape)
    return elbows[int(elbow)].as_matrix(), wrists[int(turn)].as_rotvec()
