"""Skeletons for video models: the points, their order and colours, and what is hidden."""

from __future__ import annotations

import dataclasses
from functools import lru_cache

import numpy as np
import pytest
import torch

from backend.diffusion.interfaces import PoseTrack
from backend.diffusion.pose_track import IBUG_68, chain, pose_track
from backend.diffusion.skeleton_video import FACE, face_crop, openpose, vace_frames, wan_animate_frames, whole_body
from backend.errors import UserError
from backend.human.camera import PinholeCamera
from backend.human.fit_model import relaxed_fingers
from backend.human.lbs import joint_transforms
from backend.human.model import load_default_body
from blender_addon.shared.skeleton import JOINT_NAMES

W2C = np.diag([1.0, -1.0, -1.0, 1.0]) + np.array([[0, 0, 0, 0], [0, 0, 0, 0.9], [0, 0, 0, 3.4], [0, 0, 0, 0]])
CAMERA = PinholeCamera(W2C, 1250, 1250, 240, 416, 480, 832)
OPENPOSE = (
    *("nose", "neck", "right_shoulder", "right_elbow", "right_wrist", "left_shoulder", "left_elbow", "left_wrist"),
    *("right_hip", "right_knee", "right_ankle", "left_hip", "left_knee", "left_ankle", "right_eye", "left_eye"),
    *("right_ear", "left_ear", "left_toes", "right_toes"),
)


def motion(*turns_rad: float) -> np.ndarray:
    poses = np.stack([relaxed_fingers()] * len(turns_rad))
    poses[:, 16, 2], poses[:, 17, 2] = -1.1, 1.1
    poses[:, 0, 1] = turns_rad
    return poses


@lru_cache
def track(*turns_rad: float) -> PoseTrack:
    body = load_default_body()
    vertices, joints = body.rest(np.zeros(20))
    poses = motion(*turns_rad)
    return pose_track(body, vertices, joints, poses, np.zeros((len(poses), 3)), CAMERA, 16.0)


def test_joints_are_where_the_body_models_own_kinematics_puts_them() -> None:
    body = load_default_body()
    _, joints = body.rest(np.zeros(20))
    pose = np.random.default_rng(0).normal(0, 0.4, (55, 3))
    rotations, places = chain(joints, pose)
    expected = joint_transforms(torch.from_numpy(joints).double(), torch.from_numpy(pose))
    assert np.allclose(rotations, expected[0], atol=1e-6) and np.allclose(places, expected[1], atol=1e-6)


def test_points_on_the_skin_lie_by_their_joints() -> None:
    """Seen from the front: sides are the body's own, hands begin at the wrists, toes are below the ankles."""
    front = track(0.0)
    joints = dict(zip(JOINT_NAMES, front.joints_px[0], strict=True))
    nose, left_eye, right_eye, left_ear, right_ear = front.head_px[0]
    assert right_ear[0] < right_eye[0] < nose[0] < left_eye[0] < left_ear[0]  # the body's left is to the right
    assert np.linalg.norm(left_eye - joints["left_eye_smplhf"]) < 8
    for side, word in enumerate(("left", "right")):
        assert np.linalg.norm(front.hands_px[0, side, 0] - joints[f"{word}_wrist"]) < 15
        assert np.linalg.norm(front.hands_px[0, side, 5] - joints[f"{word}_index1"]) < 15
        assert front.toes_px[0, side, 1] > joints[f"{word}_ankle"][1]
    assert len(set(IBUG_68)) == 68
    face = front.face_px[0]
    assert np.isfinite(face).all() and face[8, 1] == face[:, 1].max()  # the chin
    assert face[36:42, 0].max() < face[42:48, 0].min()  # iBUG counts the eyes from the picture's left


def test_what_looks_away_is_hidden() -> None:
    turned = track(0.0, 1.2, np.pi, -1.2)
    seen = np.isfinite(turned.head_px).all(axis=-1)
    assert seen[0].all()
    # Turned to the picture's right, the right ear is seen and the left is not; and the other way round.
    assert seen[1].tolist() == [True, False, True, False, True]
    assert seen[3].tolist() == [True, True, False, True, False]
    assert not seen[2, :3].any() and np.isnan(turned.face_px[2]).all()


def test_the_order_is_openposes() -> None:
    front = track(0.0)
    joints = dict(zip(JOINT_NAMES, front.joints_px[0].astype(np.float64), strict=True))
    joints |= dict(zip(("nose", "left_eye", "right_eye", "left_ear", "right_ear"), front.head_px[0], strict=True))
    joints |= {"left_toes": front.toes_px[0, 0], "right_toes": front.toes_px[0, 1]}
    joints["neck"] = (joints["left_shoulder"] + joints["right_shoulder"]) / 2
    points = openpose(whole_body(front))[0]
    assert np.allclose(points, [joints[name] for name in OPENPOSE], atol=1e-3)


def colour_at(frame: np.ndarray, point: np.ndarray) -> tuple[int, ...]:
    return tuple(int(v) for v in frame[int(point[1]), int(point[0])])


def test_wan_animates_colours() -> None:
    """Points in full colour, limbs at 60 %; a hue circle over the fingers, blue knuckles."""
    front = track(0.0)
    frame, points = wan_animate_frames(front)[0], openpose(whole_body(front))[0]
    assert colour_at(frame, points[3]) == (255, 255, 0)  # right elbow
    assert colour_at(frame, points[13]) == (85, 0, 255)  # left ankle
    assert colour_at(frame, points[18]) == (200, 200, 0)  # left toes
    assert colour_at(frame, (2 * points[1] + points[0]) / 3) == (0, 0, 153)  # neck to nose
    assert colour_at(frame, points[13] + 0.5 * (points[18] - points[13])) == (153, 0, 51)
    tip = whole_body(front)[0, 95]  # of the left thumb
    assert colour_at(frame, tip) == (0, 0, 255)
    assert not (frame == 255).all(axis=-1).any()  # no face: it is told in another way


def test_vaces_colours_are_stored_in_reverse_with_a_face() -> None:
    front = dataclasses.replace(track(0.0), width=480, height=832)
    frame, points = vace_frames(front)[0], openpose(whole_body(front))[0]
    # At 60 %, and a little less where the line is scaled down to two pixels.
    shoulder = np.array(colour_at(frame, (points[1] + points[2]) / 2))
    assert shoulder[2] > 100 and (shoulder[:2] < 20).all()  # neck to right shoulder: red, stored as blue
    assert (frame[..., :].min(axis=-1) > 200).sum() > 50  # white face points
    hands = vace_frames(front, hands=True)[0]
    assert (hands != frame).any() and (vace_frames(track(np.pi))[0].min(axis=-1) < 128).all()  # no face from behind


def test_moving_the_motion_moves_the_picture() -> None:
    """By whole pixels, since the drawing rounds to them."""
    names = ("joints_px", "hands_px", "head_px", "toes_px")
    turned = track(0.3)
    exact = {name: getattr(turned, name).astype(np.float64) for name in names}
    first = wan_animate_frames(dataclasses.replace(turned, **exact))[0]
    moved = wan_animate_frames(dataclasses.replace(turned, **{name: exact[name] + (7, -5) for name in names}))[0]
    assert first.any() and np.array_equal(moved[:-5, 7:], first[5:, :-7])


def test_points_outside_the_picture_are_not_drawn() -> None:
    front = track(0.0)
    cut = dataclasses.replace(front, height=500)
    points = whole_body(cut)[0]
    assert np.isnan(points[15:17]).all() and np.isfinite(points[5:7]).all()
    assert wan_animate_frames(cut).shape == (1, 500, 480, 3)


def test_joints_alone_are_enough_for_a_skeleton() -> None:
    front = track(0.0)
    bare = dataclasses.replace(front, head_px=None, toes_px=None)
    full, guessed = openpose(whole_body(front))[0], openpose(whole_body(bare))[0]
    assert np.nanmax(np.linalg.norm(full - guessed, axis=1)) < 40 and np.isfinite(guessed).all()
    blank = dataclasses.replace(bare, face_px=np.full_like(front.face_px, np.nan))
    assert np.isfinite(openpose(whole_body(blank))[0, 1:14]).all()
    assert np.isnan(whole_body(blank)[0, FACE]).all()


def test_the_face_is_cut_as_published() -> None:
    """1.3 times the landmarks' area, three quarters of what is added in height above them."""
    picture = np.zeros((400, 400, 3), np.uint8)
    picture[..., 0], picture[..., 1] = np.arange(400)[None] // 2, np.arange(400)[:, None] // 2
    crop = face_crop(picture, np.array([[100.0, 150.0], [200.0, 250.0], [np.nan, np.nan]]))
    assert crop.shape == (512, 512, 3)
    grow = (1.3**0.5 - 1) * 100
    corners = [(crop[0, 0, :2]), (crop[-1, -1, :2])]
    assert np.allclose(corners[0], [(100 - grow / 2) / 2, (150 - 0.75 * grow) / 2], atol=1.1)
    assert np.allclose(corners[1], [(200 + grow / 2) / 2, (250 + 0.25 * grow) / 2], atol=1.1)
    assert not face_crop(picture, np.full((68, 2), np.nan)).any()


def test_a_motion_behind_the_camera_is_refused() -> None:
    body = load_default_body()
    vertices, joints = body.rest(np.zeros(20))
    with pytest.raises(UserError, match="behind the camera"):
        pose_track(body, vertices, joints, motion(0.0), np.array([[0, 0, 5.0]]), CAMERA, 16.0)
    with pytest.raises(UserError, match="a motion has"):
        pose_track(body, vertices, joints, motion(0.0)[:0], np.zeros((0, 3)), CAMERA, 16.0)
