"""Conditioning pictures: drawn as the control networks saw them in their training."""

from __future__ import annotations

import importlib

import numpy as np
import pytest
import torch

from backend.diffusion.control import (
    BODY_COLOURS,
    BODY_LIMBS,
    FACE_CHAINS,
    as_tensor,
    depth_image,
    draw_face_mesh,
    draw_openpose,
    face_edges,
    openpose_from_mediapipe,
    openpose_from_smplx,
)
from blender_addon.shared.skeleton import JOINT_NAMES


def face(size: float = 200.0, at: tuple[float, float] = (256.0, 256.0)) -> np.ndarray:
    """478 points at places of their own, the irises apart from the rest."""
    generator = np.random.default_rng(0)
    return np.asarray(at) + size * (generator.random((478, 2)) - 0.5)


def colours(image: np.ndarray) -> set[tuple[int, ...]]:
    return {tuple(int(v) for v in colour) for colour in np.unique(image.reshape(-1, 3), axis=0)}


def test_the_face_has_mediapipes_own_edges() -> None:
    connections = importlib.import_module("mediapipe.python.solutions.face_mesh_connections")
    ours = {frozenset(edge) for edge in face_edges()}
    assert ours == {frozenset(edge) for edge in connections.FACEMESH_CONTOURS}
    names = ("FACE_OVAL", "LEFT_EYE", "LEFT_EYEBROW", "RIGHT_EYE", "RIGHT_EYEBROW", "LIPS")
    for (_, chains), name in zip(FACE_CHAINS, names, strict=True):
        part = {frozenset(pair) for chain in chains for pair in zip(chain, chain[1:], strict=False)}
        assert part == {frozenset(edge) for edge in getattr(connections, f"FACEMESH_{name}")}, name


def test_the_face_is_what_mediapipe_draws_for_the_training() -> None:
    """Pixel for pixel: mediapipe's own drawing in the published colours, channels turned round at the end."""
    drawing = importlib.import_module("mediapipe.python.solutions.drawing_utils")
    from mediapipe.framework.formats import landmark_pb2

    points = np.floor(face()) + 0.25
    landmarks = landmark_pb2.NormalizedLandmarkList(
        landmark=[landmark_pb2.NormalizedLandmark(x=x / 512, y=y / 512, z=0) for x, y in points]
    )
    expected = np.zeros((512, 512, 3), np.uint8)
    for colour, chains in FACE_CHAINS:  # part by part: sets have no order, and where lines cross the last one wins
        edges = [pair for chain in chains for pair in zip(chain, chain[1:], strict=False)]
        style = drawing.DrawingSpec(color=colour[::-1], thickness=2)
        for edge in edges:
            drawing.draw_landmarks(expected, landmarks, [edge], None, style)
    expected = expected[:, :, ::-1]
    ours = draw_face_mesh(points[:468], 512, 512)
    assert (ours != expected).any(2).mean() < 0.002  # a pixel of rounding at some ends


def test_the_person_s_sides_have_their_colours() -> None:
    assert colours(draw_face_mesh(face(), 512, 512)) == {
        (0, 0, 0), (10, 200, 10), (10, 180, 10),  # outline, lips
        (10, 200, 180), (10, 220, 180), (10, 200, 250),  # left eye, brow, iris
        (180, 200, 10), (180, 220, 10), (250, 200, 10),  # right eye, brow, iris
    }  # fmt: skip


def test_faces_at_the_border_and_none_at_all() -> None:
    assert not draw_face_mesh(np.zeros((0, 3)), 64, 64).any()
    partly = draw_face_mesh(face(at=(0.0, 0.0)), 512, 512)
    assert partly.any() and not partly[200:, 200:].any()
    assert not draw_face_mesh(face(at=(1e7, -1e7)), 64, 64).any()
    gone = face()
    gone[:] = np.nan
    assert not draw_face_mesh(gone, 64, 64).any()


def test_lines_grow_with_the_picture() -> None:
    small, large = draw_face_mesh(face(), 512, 512), draw_face_mesh(2 * face(), 1024, 1024)
    assert 3.0 < large.any(2).sum() / small.any(2).sum() < 5.0


def person() -> np.ndarray:
    """OpenPose's points of somebody who faces the camera: their right is on the picture's left."""
    return np.array(
        [[256, 90], [256, 150], [200, 150], [170, 220], [150, 290], [312, 150], [342, 220], [362, 290], [220, 300]]
        + [[215, 390], [212, 480], [292, 300], [297, 390], [300, 480], [244, 80], [268, 80], [228, 88], [284, 88]],
        np.float32,
    )


def test_openpose_limbs_and_points() -> None:
    image = draw_openpose(person(), 512, 512)
    for k, (x, y) in enumerate(person().astype(int)):
        assert tuple(image[y, x]) == BODY_COLOURS[k]
    for (first, second), colour in zip(BODY_LIMBS, BODY_COLOURS, strict=False):
        x, y = (0.5 * (person()[first] + person()[second])).astype(int)
        if np.linalg.norm(person()[first] - person()[second]) > 20:
            assert tuple(image[y, x]) == tuple(int(0.6 * value) for value in colour)
    hidden = person()
    hidden[4] = np.nan
    without = draw_openpose(hidden, 512, 512)
    assert not (without == BODY_COLOURS[4]).all(2).any() and (without == BODY_COLOURS[7]).all(2).any()


def test_hands_and_face_of_openpose() -> None:
    hands = np.full((2, 21, 2), np.nan)
    hands[0] = 300 + 40 * np.random.default_rng(1).random((21, 2))
    face_px = 100 + 50 * np.random.default_rng(2).random((68, 2))
    image = draw_openpose(np.full((18, 2), np.nan), 512, 512, hands_px=hands, face_px=face_px)
    found = colours(image)
    assert (255, 255, 255) in found and (0, 0, 255) in found and (255, 0, 0) in found
    assert all(tuple(image[int(y), int(x)]) == (0, 0, 255) for x, y in hands[0])


def test_points_of_smplx_and_of_mediapipe() -> None:
    joints = np.arange(110, dtype=np.float32).reshape(55, 2)
    ibug = 1000 + np.arange(136, dtype=np.float32).reshape(68, 2)
    points = openpose_from_smplx(joints, ibug)
    assert np.array_equal(points[4], joints[JOINT_NAMES.index("right_wrist")])
    assert np.array_equal(points[13], joints[JOINT_NAMES.index("left_ankle")])
    assert np.array_equal(points[15], joints[JOINT_NAMES.index("left_eye_smplhf")])
    assert np.array_equal(points[0], ibug[30]) and np.array_equal(points[17], ibug[16])
    assert np.isnan(openpose_from_smplx(joints)[[0, 16, 17]]).all()
    keypoints = np.arange(66, dtype=np.float32).reshape(33, 2)
    seen = np.ones(33)
    seen[15] = 0.1  # the left wrist
    points = openpose_from_mediapipe(keypoints, seen)
    assert np.array_equal(points[1], 0.5 * (keypoints[11] + keypoints[12])) and np.isnan(points[7]).all()
    assert np.array_equal(points[2], keypoints[12]) and np.array_equal(points[14], keypoints[5])
    assert np.array_equal(points[16], keypoints[8])


def test_depth_is_near_white_on_black() -> None:
    depth = torch.full((2, 8, 8), 99.0)
    mask = torch.zeros(2, 8, 8)
    mask[:, 2:6, 2:6] = 1.0
    depth[:, 2:6, 2:6] = torch.linspace(1.0, 3.0, 4)
    image = depth_image(depth, mask)
    assert image.shape == (2, 3, 8, 8) and not image[:, :, 0].any()
    row = image[0, 0, 3, 2:6]
    assert row[0] == 1.0 and row[3] == pytest.approx(0.1) and (row.diff() < 0).all()
    assert not depth_image(depth, torch.zeros(2, 8, 8)).any()


def test_drawings_become_conditions() -> None:
    image = draw_openpose(person(), 512, 512)
    tensor = as_tensor(image[None])
    assert tensor.shape == (1, 3, 512, 512) and tensor.max() == 1.0
    assert np.array_equal((tensor[0].permute(1, 2, 0).numpy() * 255).round().astype(np.uint8), image)
