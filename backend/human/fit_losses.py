"""Residuals of the body fit: what the photo says, what bodies do and what gravity does.

Every residual is divided by the standard deviation with which it is known, so the cost is a negative log posterior and
no further weights are needed. Directions "dz" are per unit of bone length, positive away from the camera.

Origin of the figures in this file: "renders" = 240 renders of the default body in random shapes, poses, clothes and
cameras seen by mediapipe 0.10.21, against the known truth; "anatomy" = usual ranges of motion; "tuned" = chosen on
renders that were kept apart from the reported figures.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from backend.human.fit_model import BODY_JOINTS, DTYPE, SHAPE_COUNT, FitModel, PointSet, rodrigues

# Parameter vector: yaw | pelvis tilt x, z | pelvis in the image (x, y over depth), log depth | camera pitch | floor
YAW, TILT, PLACE, PITCH, FLOOR = 0, slice(1, 3), slice(3, 6), 6, 7
POSE = slice(8, 8 + 3 * (BODY_JOINTS - 1))
BETAS = slice(POSE.stop, POSE.stop + SHAPE_COUNT)
PARAMETERS = BETAS.stop
# Switches: upright prior 0..1, robust scale of key points in standard deviations, weight of world x and y directions
SWITCH_UPRIGHT, SWITCH_ROBUST, SWITCH_FLAT = 0, 1, 2

PITCH_MEAN_RAD = np.radians(2.0)  # cameras are held at chest to eye height and look a little down
PITCH_SD_RAD = np.radians(3.0)  # photos are taken level; 6 degrees let the pitch absorb the lean (measured earlier)
# the camera's pitch from what tilts with it, degrees: constant, per unit of mediapipe's dz from shoulders to ankles,
# per cm that the toes lie below the heels in the picture, per cm of the nose below the ears, per unit of the face
# mesh's depth over its height. Ridge regression on 112 oracle photos (development bodies): rms 2.5 left out of 4.0
PITCH_CLUES_DEG = (-7.55, 11.3, 0.90, 1.30, -13.9)
PITCH_HEAD_DEG, PITCH_HEAD_LIMIT_DEG = -0.46, 3.5  # mean of the head's two there; people also bow their heads
PITCH_CLUES_SD_RAD = np.radians(2.5)
TILT_SD_RAD = np.radians(7.0)  # pelvis of upright people, tuned
FREE_TILT_SD_RAD = np.radians(60.0)
# joint, joint, mean and sd of the pitch against the model's rest in degrees, tuned: people stand a little less
# hollow-backed than the T-pose
SPINE_SEGMENTS = ((0, 9, 3.5, 3.5), (9, 12, 0.0, 4.0), (12, 15, 0.0, 8.0))
SOLE_SD_M = 0.02  # height of a standing sole against the common floor, and of heel against toe
BALANCE_SD_M = 0.15  # pelvis over the middle of the ankles; robust, because walking and leaning break it
FACE_SD_M = 0.012  # 3D face tie and mediapipe's face landmark together, renders
LIMIT_SD_RAD = 0.03
TORSO_SD_M = 0.015
SHAPE_SD = 0.7  # shape numbers; at 1 they follow the landmarks' errors, tuned
SILHOUETTE_SD_M = 0.03

# mediapipe's 33 pose landmarks
NOSE, LEFT_EAR, RIGHT_EAR = 0, 7, 8
SHOULDERS, ELBOWS, WRISTS, HIPS, KNEES, ANKLES = (11, 12), (13, 14), (15, 16), (23, 24), (25, 26), (27, 28)
HEELS, TOES = (29, 30), (31, 32)
# precision of a landmark against `FitSettings.keypoint_sd_m`: shoulders, elbows, hips and hands are hidden by flesh and
# clothes; tuned
LANDMARK_PRECISION = {11: 0.7, 12: 0.7, 13: 0.75, 14: 0.75, 23: 0.8, 24: 0.8} | dict.fromkeys(range(15, 23), 0.8)
# mediapipe turns nearly frontal people too frontal: truth over its dz, at 0 and far from it (renders: 1.3 below 0.2,
# 1.05 above)
LINE_GAIN = 1.05
LINE_GAIN_FRONTAL, LINE_FRONTAL = 0.35, 0.3
# first landmark, second, gain and offset that undo mediapipe's bias of dz, sd of dz: renders; the offsets of legs and
# trunk and the sds of the lines across the body tuned; gain and offset of the arms are in ARM_DZ
BONES = (
    (11, 13, 1.0, 0.0, 0.20), (12, 14, 1.0, 0.0, 0.20), (13, 15, 1.0, 0.0, 0.22), (14, 16, 1.0, 0.0, 0.22),
    (23, 25, 1.0, -0.03, 0.18), (24, 26, 1.0, -0.03, 0.18), (25, 27, 1.0, -0.08, 0.17), (26, 28, 1.0, -0.08, 0.17),
    (12, 11, LINE_GAIN, 0.0, 0.28), (24, 23, LINE_GAIN, 0.0, 0.14),
    (23, 11, 1.0, 0.07, 0.20), (24, 12, 1.0, 0.07, 0.20), (8, 7, 1.0, 0.0, 0.20),
)  # fmt: skip
ARMS = 4  # the first rows of BONES; the error in the turn of the shoulders is theirs too: they turn with them
# dz of upper arm and forearm, linear in: mediapipe's dz | length in the picture over the usual one, minus 1 (a short
# arm points at the camera more often than away) | metres that the wrist lies outside the hip, or outside the elbow (a
# hand that comes in rests on the hip or belly) | turn of mediapipe's shoulders, that side away positive, rad | 1.
# Least squares on 240 renders and 112 oracle photos with equal weight: rms 0.25 and 0.25 (mediapipe's dz with gain and
# offset) to 0.21 and 0.21; from either set to the other 0.24 and 0.22
ARM_DZ = ((0.41, 0.76, -0.47, 0.36, 0.146), (0.32, 0.86, -0.91, 0.26, -0.122))
ARM_LENGTHS_M = (0.27, 0.235)
# a hand that disappears behind the body: elbow back, hand forward to the hip (dz, sd of upper arm and forearm; tuned)
HIDDEN_ARM = ((0.40, 0.30), (-0.30, 0.35))
# heel to toe in the picture of a foot turned aside (25.6 cm on 52 oracle photos, 23.3 cm on renders); from the sine of
# the turn: mean of both feet known to 2.9 and 4.1 degrees there, against 6.6 and 7.5 from mediapipe's depth
FOOT_LENGTH_M = 0.245
FOOT_SPLAY_RAD = np.radians(10.0)  # mediapipe's depth turns each foot outwards by this (renders); the mean is exact
FOOT_SIDEWAYS_RAD = np.radians([45.0, 65.0])  # here the depth takes over from the sine
FOOT_SD_RAD = np.radians(8.0)  # one foot's direction
FEET_SD_RAD = np.radians(4.0)  # mean of both: the best single clue for the yaw of standing people
SYMMETRY_SD_RAD = 0.10  # feet point to both sides of where the pelvis faces (tuned)


@dataclass(frozen=True)
class Observation:
    """What the photo says, in pixels and tensors.

    Attributes:
        focal_px: Focal length.
        centre_px: [2] principal point.
        keypoints_px: [33, 2].
        keypoint_precision: [33] one over the standard deviation in px; 0 where not seen.
        bones: [M, 2] landmark pairs.
        bone_directions: [M, 3] camera-frame directions of unit length (x right, y down, z away), offset corrected.
        shoulders_yaw_rad: Turn of the line from right to left shoulder for which the directions of the arms hold.
        bone_precision: [M, 3] one over the standard deviation; 0 where not seen.
        feet_yaw_rad: [2] direction of left and right foot about gravity, 0 towards the camera, splay corrected.
        face_px: [F, 2] landmarks that belong to `Parts.face`.
        face_precision: One over the standard deviation in px.
        feet_seen: [4] 0..1 for left heel, right heel, left toe, right toe.
        distance_px: [H, W] distance to the mask outside it, or None without a mask.
        pixels_per_m: Rough scale at the person.
        pitch_rad: The camera's pitch by its clues if the person stands, and its standard deviation.
    """

    focal_px: float
    centre_px: torch.Tensor
    keypoints_px: torch.Tensor
    keypoint_precision: torch.Tensor
    bones: torch.Tensor
    bone_directions: torch.Tensor
    bone_precision: torch.Tensor
    shoulders_yaw_rad: float
    feet_yaw_rad: torch.Tensor
    face_px: torch.Tensor
    face_precision: float
    feet_seen: torch.Tensor
    distance_px: torch.Tensor | None
    pixels_per_m: float
    pitch_rad: tuple[float, float]


@dataclass(frozen=True)
class Parts:
    """Point sets and rest measures of the body model, made once per fit.

    Attributes:
        model: Kinematics.
        keypoints: The 33 landmarks.
        face: Some face landmarks.
        surface: Vertices for the silhouette.
        rest_pitch_rad: Pitch of the `SPINE_SEGMENTS` at rest.
        sole_height_m: [4] heights above the sole of left heel, right heel, left toe, right toe at rest.
        rest_balance_m: Pelvis ahead of the ankles at rest.
        torso_axes_m: Half width and half depth of the torso, and its centre ahead of spine2.
    """

    model: FitModel
    keypoints: PointSet
    face: PointSet
    surface: PointSet
    rest_pitch_rad: tuple[float, ...]
    sole_height_m: torch.Tensor
    rest_balance_m: float
    torso_axes_m: tuple[float, float, float]


@dataclass(frozen=True)
class PosePrior:
    """Gaussian with soft limits on the 21 local rotations, radians, each [21, 3]."""

    mean: torch.Tensor
    sd: torch.Tensor
    low: torch.Tensor
    high: torch.Tensor


@dataclass(frozen=True)
class Posed:
    """A body under one parameter vector; world axes with the pelvis at the origin.

    Attributes:
        rotations: [22, 3, 3] world rotations.
        joints_m: [22, 3] world positions.
        keypoints_m: [33, 3].
        unposed: What `FitModel.place` needs for further points: betas, rest joints.
        w2c: [3, 3] camera rotation.
        shift_m: [3] camera translation.
    """

    rotations: torch.Tensor
    joints_m: torch.Tensor
    keypoints_m: torch.Tensor
    unposed: tuple[torch.Tensor, torch.Tensor]
    w2c: torch.Tensor
    shift_m: torch.Tensor

    def to_camera(self, points_m: torch.Tensor) -> torch.Tensor:
        """World points [N, 3] in the camera's frame."""
        return points_m @ self.w2c.T + self.shift_m


def camera_rotation(pitch: torch.Tensor) -> torch.Tensor:
    """[3, 3] world (Y up) to camera for a camera without roll that looks along -Z and down by `pitch` radians."""
    c, s = torch.cos(pitch), torch.sin(pitch)
    zero, one = torch.zeros_like(c), torch.ones_like(c)
    return torch.stack([one, zero, zero, zero, -c, s, zero, -s, -c]).reshape(3, 3)


def root_rotation(x: torch.Tensor) -> torch.Tensor:
    """[3, 3] global orientation: the pelvis is tilted in its own frame, then turned by the yaw about gravity."""
    zero = torch.zeros_like(x[YAW])
    turn = rodrigues(torch.stack([zero, x[YAW], zero]))
    return turn @ rodrigues(torch.stack([x[TILT][0], zero, x[TILT][1]]))


def pose_body(x: torch.Tensor, parts: Parts) -> Posed:
    """Kinematics of a parameter vector [PARAMETERS]."""
    betas = x[BETAS]
    joints = parts.model.rest_joints(betas)
    local = torch.cat([root_rotation(x)[None], rodrigues(x[POSE].reshape(-1, 3))])
    rotations, positions = parts.model.kinematics(joints, local)
    positions = positions - joints[0]
    depth = torch.exp(x[PLACE][2])
    shift = torch.stack([x[PLACE][0] * depth, x[PLACE][1] * depth, depth])
    keypoints = parts.model.place(parts.keypoints, betas, joints, rotations, positions)
    return Posed(rotations, positions, keypoints, (betas, joints), camera_rotation(x[PITCH]), shift)


def project(points_camera: torch.Tensor, seen: Observation) -> torch.Tensor:
    """Pixels [N, 2]; points behind 0.2 m are held in front of the camera."""
    return points_camera[:, :2] / points_camera[:, 2:].clamp(min=0.2) * seen.focal_px + seen.centre_px


def saturate(residual: torch.Tensor, scale: torch.Tensor | float) -> torch.Tensor:
    """Geman-McClure: residual vectors [..., D] whose length cannot exceed `scale` standard deviations."""
    squared = residual.square().sum(-1, keepdim=True)
    return residual / torch.sqrt(1.0 + squared / scale**2)


def photo_residuals(
    body: Posed, x: torch.Tensor, parts: Parts, seen: Observation, switches: torch.Tensor
) -> torch.Tensor:
    """Landmarks, face and bone directions: the part of the cost that two fits are compared by."""
    camera = body.to_camera(body.keypoints_m)
    robust = switches[SWITCH_ROBUST]
    flat = (project(camera, seen) - seen.keypoints_px) * seen.keypoint_precision[:, None]
    ends = camera[seen.bones[:, 1]] - camera[seen.bones[:, 0]]
    direction = ends / ends.norm(dim=1, keepdim=True).clamp(min=1e-6)
    away = (direction - _turned_arms(camera, seen)) * seen.bone_precision
    away = torch.cat([away[:, :2] * switches[SWITCH_FLAT], away[:, 2:]], 1)
    rows = [saturate(flat, robust).reshape(-1), saturate(away[..., None], 3.0).reshape(-1)]
    rows.append(_feet_directions(body, seen))
    if len(seen.face_px):
        face = parts.model.place(parts.face, *body.unposed, body.rotations, body.joints_m)
        error = (project(body.to_camera(face), seen) - seen.face_px) * seen.face_precision
        rows.append(saturate(error, robust).reshape(-1))
    return torch.cat(rows)


def _turned_arms(camera: torch.Tensor, seen: Observation) -> torch.Tensor:
    """[M, 3] directions of the bones, those of the arms turned with the shoulders of keypoints [33, 3]."""
    across = camera[SHOULDERS[0]] - camera[SHOULDERS[1]]
    turn = torch.atan2(across[2], across[0]) - seen.shoulders_yaw_rad
    x, y, z = seen.bone_directions[:ARMS].unbind(1)
    c, s = torch.cos(turn), torch.sin(turn)
    arms = torch.stack([c * x - s * z, y, s * x + c * z], 1)
    return torch.cat([arms, seen.bone_directions[ARMS:]])


def _feet_directions(body: Posed, seen: Observation) -> torch.Tensor:
    """Each foot's direction about gravity, and their mean, which is known far better: [3]."""
    ahead = body.joints_m[[10, 11]] - body.joints_m[[7, 8]]
    turn = torch.atan2(ahead[:, 0], ahead[:, 2]) - seen.feet_yaw_rad
    turn = torch.atan2(torch.sin(turn), torch.cos(turn))
    share = torch.minimum(seen.feet_seen[:2], seen.feet_seen[2:])
    each = share * saturate(turn[:, None] / FOOT_SD_RAD, 3.0)[:, 0]
    both = share.min() * saturate(turn.mean()[None, None] / FEET_SD_RAD, 3.0)[0]
    return torch.cat([each, both])


def gravity_residuals(
    body: Posed, x: torch.Tensor, parts: Parts, seen: Observation, upright: torch.Tensor
) -> torch.Tensor:
    """Camera pitch, upright spine relative to the model's own rest pitch, soles on one floor, pelvis over the feet."""
    mean, sd = seen.pitch_rad
    mean, sd = (upright * a + (1.0 - upright) * b for a, b in ((mean, PITCH_MEAN_RAD), (sd, PITCH_SD_RAD)))
    rows = [((x[PITCH] - mean) / sd)[None]]
    tilt_sd = upright * TILT_SD_RAD + (1.0 - upright) * FREE_TILT_SD_RAD
    rows.append(x[TILT] / tilt_sd)
    turn = rodrigues(torch.stack([torch.zeros_like(x[YAW]), -x[YAW], torch.zeros_like(x[YAW])]))
    for (first, second, mean, sd), rest in zip(SPINE_SEGMENTS, parts.rest_pitch_rad, strict=True):
        d = turn @ (body.joints_m[second] - body.joints_m[first])
        pitch = torch.atan2(d[2], d[1]) - rest - np.radians(mean)
        pitch = torch.atan2(torch.sin(pitch), torch.cos(pitch))
        rows.append((upright * pitch / np.radians(sd))[None])
    feet = torch.stack([body.keypoints_m[i] for i in (*HEELS, *TOES)])
    height = feet[:, 1] - parts.sole_height_m - x[FLOOR]
    below = torch.relu(-height)
    rows.append(upright * seen.feet_seen * saturate(height[:, None] / SOLE_SD_M, 2.5)[:, 0])
    rows.append(upright * seen.feet_seen * below / SOLE_SD_M)
    ankles = 0.5 * (body.joints_m[7] + body.joints_m[8])
    lead = turn @ (body.joints_m[0] - ankles)
    offset = torch.stack([lead[0], lead[2] - parts.rest_balance_m]) / BALANCE_SD_M
    rows.append(upright * seen.feet_seen.min() * saturate(offset, 2.0))
    rows.append((x[FLOOR] + 0.9)[None])  # keeps the floor determined when no foot is seen
    return torch.cat(rows)


def body_residuals(body: Posed, x: torch.Tensor, parts: Parts, prior: PosePrior) -> torch.Tensor:
    """Pose prior, joint limits, shape prior, symmetric feet and arms that do not enter the torso."""
    pose = x[POSE].reshape(-1, 3)
    rows = [
        ((pose - prior.mean) / prior.sd).reshape(-1),
        (torch.relu(prior.low - pose) / LIMIT_SD_RAD).reshape(-1),
        (torch.relu(pose - prior.high) / LIMIT_SD_RAD).reshape(-1),
        x[BETAS] / SHAPE_SD,
        ((pose[0, 1] + pose[1, 1] + pose[6, 1] + pose[7, 1]) / SYMMETRY_SD_RAD)[None],
        _arms_in_torso(body, parts),
    ]
    return torch.cat(rows)


def _arms_in_torso(body: Posed, parts: Parts) -> torch.Tensor:
    """How deep forearms and hands are inside the torso's elliptic cylinder, over `TORSO_SD_M`."""
    width, depth, ahead = parts.torso_axes_m
    joints = body.joints_m
    points = torch.stack(
        [p for s in (0, 1) for p in (
            0.5 * (joints[18 + s] + joints[20 + s]), joints[20 + s],
            0.5 * (body.keypoints_m[17 + s] + body.keypoints_m[19 + s]),
        )]
    )  # fmt: skip
    local = (points - joints[6]) @ body.rotations[6]
    low, high = ((joints[j] - joints[6]) @ body.rotations[6] for j in (0, 9))
    beside = torch.sigmoid((local[:, 1] - low[1] + 0.05) / 0.02) * torch.sigmoid((high[1] + 0.10 - local[:, 1]) / 0.02)
    radius = torch.sqrt((local[:, 0] / width) ** 2 + ((local[:, 2] - ahead) / depth) ** 2 + 1e-9)
    return beside * torch.relu(1.0 - radius) * depth / TORSO_SD_M


def silhouette_residuals(body: Posed, parts: Parts, seen: Observation) -> torch.Tensor:
    """One-sided: surface points outside the mask pay their distance to it; filling the mask is not asked for."""
    if seen.distance_px is None:
        return torch.zeros(0, dtype=DTYPE)
    points = parts.model.place(parts.surface, *body.unposed, body.rotations, body.joints_m)
    pixels = project(body.to_camera(points), seen)
    height, width = seen.distance_px.shape
    at = pixels - 0.5
    column = at[:, 0].detach().clamp(0, width - 2).floor().long()
    row = at[:, 1].detach().clamp(0, height - 2).floor().long()
    u, v = at[:, 0] - column, at[:, 1] - row
    inside = ((u >= 0) & (u <= 1) & (v >= 0) & (v <= 1)).to(DTYPE)
    field = seen.distance_px
    top = field[row, column] * (1 - u) + field[row, column + 1] * u
    bottom = field[row + 1, column] * (1 - u) + field[row + 1, column + 1] * u
    distance = (top * (1 - v) + bottom * v) * inside / seen.pixels_per_m
    # neighbouring vertices say the same: about 40 independent ones
    share = (40.0 / max(len(points), 40)) ** 0.5
    return share * saturate(distance[:, None] / SILHOUETTE_SD_M, 3.0)[:, 0]


def pose_prior(unseen_joints: np.ndarray, hang_rad: tuple[float, float]) -> PosePrior:
    """How people hold themselves.

    Means: arms hang at 65 degrees below the T-pose and draw the collar bones down, elbows slightly bent. Limits:
    anatomy. Standard deviations: wide for what the photo shows (tuned), 3 degrees for what it does not show.

    Args:
        unseen_joints: [22] bool, joints whose limb is not in the photo.
        hang_rad: Rotation about z that makes the left and the right leg vertical.
    """
    mean, sd = np.zeros((BODY_JOINTS, 3)), np.full((BODY_JOINTS, 3), 0.25)
    low, high = np.full((BODY_JOINTS, 3), -3.5), np.full((BODY_JOINTS, 3), 3.5)
    for side, sign in ((0, 1.0), (1, -1.0)):
        sd[1 + side] = 0.45, 0.30, 0.22
        low[1 + side, 0], high[1 + side, 0] = -2.2, 0.7
        sd[4 + side] = 0.50, 0.06, 0.04
        mean[4 + side, 0], low[4 + side, 0], high[4 + side, 0] = 0.08, -0.03, 2.5
        sd[7 + side], sd[10 + side] = (0.25, 0.15, 0.10), 0.05
        mean[13 + side, 2], sd[13 + side] = -0.10 * sign, (0.10, 0.05, 0.12)
        mean[16 + side, 2], sd[16 + side] = -1.15 * sign, (0.75, 0.75, 0.85)
        mean[18 + side, 1], sd[18 + side] = -0.5 * sign, (0.5, 0.6, 0.06)
        bound = (low, high) if sign > 0 else (high, low)
        bound[0][18 + side, 1], bound[1][18 + side, 1] = -2.6 * sign, 0.0
        sd[20 + side] = 0.3, 0.25, 0.3
        if unseen_joints[1 + side]:
            mean[1 + side, 2] = hang_rad[side]
        if unseen_joints[4 + side]:
            mean[4 + side, 0] = 0.02
    sd[[3, 6, 9]] = 0.09, 0.04, 0.09
    sd[12], sd[15] = (0.12, 0.30, 0.12), (0.20, 0.30, 0.15)
    sd[unseen_joints] = np.minimum(sd[unseen_joints], 0.05)
    rows = slice(1, BODY_JOINTS)
    return PosePrior(*(torch.tensor(a[rows], dtype=DTYPE) for a in (mean, sd, low, high)))
