"""Laws of the oracle figures in motion: the cloth is cloth, and a video's faults are those that were asked for."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest

from backend.context import Context
from backend.diffusion.interfaces import PoseTrack
from backend.errors import Cancelled
from tests.oracles.bodies import Array, rotation_matrix
from tests.oracles.cloth import ClothSettings, ClothSimulation, Sweep
from tests.oracles.mesh_renderer import Lamp, Picture, draw
from tests.oracles.meshes import Mesh, icosphere, vertex_normals
from tests.oracles.moving_figures import MovingFigure, make_moving, place
from tests.oracles.scene import look_from
from tests.oracles.stances import Arm, Leg, Stance, pose_of
from tests.oracles.video_defects import DEVELOPED, HELD_OUT, KINDS, Defects, OracleVideo, shown_poses
from tests.oracles.wardrobe import DEVELOPMENT

FRAMES = 4


@lru_cache(maxsize=1)
def figure() -> MovingFigure:
    """The development figure with coat and skirt."""
    return make_moving(DEVELOPMENT[0], 1)


@lru_cache(maxsize=1)
def track() -> PoseTrack:
    """From standing to a high step, small."""
    body = figure().body
    first = pose_of(body, Stance())
    last = pose_of(body, Stance(left_leg=Leg(60, 5, 70), left_arm=Arm(20, 30, 0, 40), lean=15))
    poses = np.stack([first + (last - first) * share for share in np.linspace(0, 1, FRAMES)])
    camera = look_from(np.array([0, 0.85, 0]), 3.2, 2, 1.5 * 160, (112, 160))
    flat = np.zeros((FRAMES, 55, 3), np.float32)
    return PoseTrack(
        joints_px=flat[..., :2], joint_depths_m=flat[..., 0], face_px=np.zeros((FRAMES, 68, 2), np.float32),
        hands_px=np.zeros((FRAMES, 2, 21, 2), np.float32), width=112, height=160, frames_per_second=6.0, poses=poses,
        pelvis_m=np.tile(body.joints_m[0], (FRAMES, 1)), w2c=camera.w2c, focal_px=camera.focal_px,
    )  # fmt: skip


@lru_cache(maxsize=16)
def video(*kinds: str, seed: int = 3, strength: float = 1.0) -> list[Picture]:
    """The track shown with some kinds of defect."""
    return list(OracleVideo(figure(), Defects(seed, kinds, strength), warm_up=3).pictures(track()))  # type: ignore[arg-type]


def colours(pictures: list[Picture]) -> Array:
    return np.stack([picture.rgba for picture in pictures]).astype(float)


def test_cloth_keeps_its_lengths_stays_outside_the_body_and_hangs_from_its_pins() -> None:
    body, settings = figure().body, ClothSettings()
    for layer in figure().clothed:
        before = place(body, np.zeros((55, 3)), body.joints_m[0])
        simulation = ClothSimulation(layer.cloth, before, settings)
        for share in np.linspace(0.1, 1, 10):
            posed = place(body, track().poses[-1] * share, body.joints_m[0])
            points = simulation.step(Sweep(before, posed, settings.substeps))
            before = posed
        edges, lengths, _, _ = layer.cloth.constraints()
        now = np.linalg.norm(points[edges[:, 0]] - points[edges[:, 1]], axis=1)
        assert np.median(now / lengths) == pytest.approx(1, abs=0.04), layer.name
        assert np.percentile(now / lengths, 90) < 1.25, layer.name
        pinned = layer.cloth.pinned
        assert pinned.any() and not pinned.all()
        np.testing.assert_allclose(points[pinned], simulation.skinned_m(posed)[pinned], atol=1e-9)
        surface = Sweep(before, posed, 1).surfaces[-1]
        nearest = surface[2].query(points[~pinned])[1]
        height = ((points[~pinned] - surface[0][nearest]) * surface[1][nearest]).sum(1)
        assert np.percentile(height, 1) > 0, layer.name


def test_a_pose_moves_loose_cloth_away_from_where_skinning_puts_it() -> None:
    moved = np.stack([picture.value for picture in video()])
    layers = np.stack([picture.layer for picture in video()])
    cloth = layers >= len(figure().skinned)
    assert moved[~cloth].max() == 0
    assert (moved[-1] > 0.02).sum() > 0.1 * cloth[-1].sum()


def test_the_renderer_shows_the_nearest_surface_at_its_depth() -> None:
    points, triangles = icosphere(3)
    near = Mesh(points * 0.2 + [0, 0, 0.5], triangles, np.tile([1.0, 0.0, 0.0], (len(points), 1)), "skin")
    far = Mesh(points * 0.6, triangles, np.tile([0.0, 0.0, 1.0], (len(points), 1)), "skin")
    camera = look_from(np.zeros(3), 3.0, 0, 200, (101, 101))
    for meshes in ([near, far], [far, near]):
        picture = draw(meshes, camera, Lamp())
        assert picture.depth_m[50, 50] == pytest.approx(2.3, abs=0.01)
        assert picture.rgba[50, 50, 0] > 100 and picture.rgba[50, 50, 2] == 0
    radius_px = 200 * np.tan(np.arcsin(0.6 / 3.0))
    assert (picture.rgba[..., 3] / 255).sum() == pytest.approx(np.pi * radius_px**2, rel=0.01)
    assert picture.rgba[0, 0, 3] == 0 and picture.layer[0, 0] == -1


def test_normals_point_outwards() -> None:
    points, triangles = icosphere(2)
    np.testing.assert_allclose(vertex_normals(points, triangles), points, atol=0.02)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "blur"])
def test_a_kind_of_defect_shows_and_without_strength_there_is_none(kind: str) -> None:
    truth, faulty = colours(video()), colours(video(kind))
    assert np.abs(faulty - truth)[1:].mean() > 0.05
    np.testing.assert_array_equal(colours(video(kind, strength=0.0)), truth)


def test_blur_takes_detail_away_and_leaves_the_brightness() -> None:
    large = replace(
        track(),
        width=336,
        height=480,
        focal_px=3 * track().focal_px,
        poses=track().poses[:1],
        pelvis_m=track().pelvis_m[:1],
    )
    sharp, blurred = (
        next(OracleVideo(figure(), Defects(9, ("blur",), strength), warm_up=2).pictures(large)).rgba / 255.0
        for strength in (0.0, 2.0)
    )
    inside = (sharp[..., 3] == 1) & (blurred[..., 3] == 1)
    detail = [np.abs(np.diff(rgba[..., :3], axis=1))[inside[:, 1:]].mean() for rgba in (sharp, blurred)]
    assert detail[1] < 0.9 * detail[0]
    assert blurred[..., :3][inside].mean() == pytest.approx(sharp[..., :3][inside].mean(), rel=0.02)


def test_a_seed_repeats_itself_and_another_differs() -> None:
    again = list(OracleVideo(figure(), Defects(3, ("drift",)), warm_up=3).pictures(track()))
    np.testing.assert_array_equal(colours(again), colours(video("drift")))
    assert np.abs(colours(video("drift", seed=4)) - colours(video("drift"))).max() > 5


def test_drift_grows_with_time() -> None:
    error = np.abs(colours(video("drift")) - colours(video()))[..., :3].mean((1, 2, 3))
    assert error[0] == 0
    assert (np.diff(error) > 0).all()


def test_labels_are_off_by_one_to_three_degrees_and_only_hands_have_wrong_fingers() -> None:
    poses = np.tile(track().poses[2], (200, 1, 1))
    for seed in range(3):
        shown = shown_poses(poses, Defects(seed, ("labels",)))
        angles = np.array([_angle(a, b) for a, b in zip(poses[::20, 18], shown[::20, 18], strict=True)])
        assert 0 < np.median(angles) <= angles.max() < 3.05
        np.testing.assert_array_equal(shown[:, 25:], poses[:, 25:])
        fingers = shown_poses(poses, Defects(seed, ("hands",)))
        np.testing.assert_array_equal(fingers[:, :20], poses[:, :20])
        assert np.abs(fingers[:, 25:] - poses[:, 25:]).max() > 0.3


def test_one_kind_is_held_out_and_a_cancelled_video_ends() -> None:
    assert HELD_OUT not in DEVELOPED and {HELD_OUT, *DEVELOPED} == set(KINDS)
    context = Context.quiet()
    context.cancel_event.set()
    with pytest.raises(Cancelled):
        OracleVideo(figure(), Defects(1)).generate(np.zeros((8, 8, 3), np.uint8), track(), "", context)
    with pytest.raises(ValueError, match="needs the track's poses"):
        next(OracleVideo(figure(), Defects(1)).pictures(replace(track(), poses=None)))


def _angle(first: Array, second: Array) -> float:
    turn = rotation_matrix(first).T @ rotation_matrix(second)
    return float(np.degrees(np.arccos(np.clip((np.trace(turn) - 1) / 2, -1, 1))))
