"""The body fit on landmarks of known bodies: no detector, so that an error is the fit's own."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from backend.context import Context
from backend.errors import UserError
from backend.human.camera import PinholeCamera
from backend.human.fit import BodyFit, fit_body
from backend.human.fit_model import relaxed_fingers
from backend.human.hands import fit_hand, hand_columns, turn_unseen_hand
from backend.human.lbs import joint_transforms, skin
from backend.human.model import BodyModel, load_default_body
from backend.perception.people import Person

WIDTH, HEIGHT, FOCAL = 600, 800, 960.0
LEGS = [23, 24, 25, 26, 27, 28, 29, 30, 31, 32]
MIRRORED_MARKS = [0, 4, 5, 6, 1, 2, 3, 8, 7, 10, 9] + [i + 1 if i % 2 else i - 1 for i in range(11, 33)]
MIRRORED_JOINTS = [0, 2, 1, 3, 5, 4, 6, 8, 7, 9, 11, 10, 12, 14, 13, 15, 17, 16, 19, 18, 21, 20]


@pytest.fixture(scope="module")
def body() -> BodyModel:
    """The default body."""
    return load_default_body()


def standing_pose(yaw_deg: float) -> np.ndarray:
    """[55, 3]: one arm bent towards the camera, the other hanging, a small step."""
    pose = relaxed_fingers()
    pose[0] = [0.0, np.radians(yaw_deg), 0.0]
    pose[1], pose[4] = [-0.25, 0.0, 0.0], [0.2, 0.0, 0.0]
    pose[16], pose[17] = [0.0, 0.0, -1.2], [0.0, 0.0, 1.1]
    pose[19] = [0.0, 1.2, 0.0]
    return pose


def camera_at(distance_m: float = 2.7, height_m: float = 0.95) -> PinholeCamera:
    """A level camera in front of the figure."""
    w2c = np.diag([1.0, -1.0, -1.0, 1.0])
    w2c[:3, 3] = 0.0, height_m, distance_m
    return PinholeCamera(w2c, FOCAL, FOCAL, WIDTH / 2, HEIGHT / 2, WIDTH, HEIGHT)


def posed_joints(body: BodyModel, pose: np.ndarray, betas: np.ndarray) -> np.ndarray:
    """[55, 3] joints with the pelvis where the rest pose has it."""
    joints = torch.tensor(body.rest(betas)[1], dtype=torch.float64)
    return joint_transforms(joints, torch.tensor(pose))[1].numpy()


def posed_vertices(body: BodyModel, pose: np.ndarray, betas: np.ndarray) -> np.ndarray:
    """[V, 3] vertices under the product's own skinning, pelvis where the rest pose has it."""
    vertices, joints = (torch.tensor(a) for a in body.rest(betas))
    return skin(vertices, joints, torch.tensor(pose, dtype=torch.float32), torch.tensor(body.skin_weights)).numpy()


def person_of(body: BodyModel, pose: np.ndarray, betas: np.ndarray, camera: PinholeCamera) -> Person:
    """What a perfect detector would say about a figure that stands at the origin."""
    posed = posed_vertices(body, pose, betas)
    marks = np.asarray(body.pose_keypoints @ posed, np.float64)
    world = camera.to_camera(marks)
    world = world - 0.5 * (world[23] + world[24])
    # a silhouette that contains the figure: the fit may use it only as a bound
    mask = np.ones((HEIGHT, WIDTH), np.float32)
    face = np.zeros((0, 3))
    none, none_m = np.zeros((0, 2)), np.zeros((0, 3))
    return Person(
        image=np.zeros((HEIGHT, WIDTH, 3), np.uint8),
        mask=mask,
        labels=np.zeros((HEIGHT, WIDTH), np.uint8),
        keypoints_px=camera.project(marks),
        keypoint_visibility=np.ones(33),
        keypoint_spread_px=np.zeros(33),
        keypoints_world_m=world,
        face_px=face,
        left_hand_px=none,
        right_hand_px=none,
        left_hand_world_m=none_m,
        right_hand_world_m=none_m,
        warnings=(),
    )


def fitted_joints(body: BodyModel, fit: BodyFit) -> np.ndarray:
    """[22, 3] joints in the world, pelvis at the origin."""
    joints = posed_joints(body, fit.pose.astype(np.float64), fit.betas)[:22]
    return joints - joints[0]


def yaw_deg(joints: np.ndarray) -> float:
    """Turn of the hips about gravity, degrees."""
    across = joints[1] - joints[2]
    return float(np.degrees(np.arctan2(-across[2], across[0])))


def bend_deg(joints: np.ndarray, first: int, middle: int, last: int) -> float:
    """Angle between two bones in a row, degrees; 0 is straight."""
    a, b = joints[middle] - joints[first], joints[last] - joints[middle]
    return float(np.degrees(np.arccos(a @ b / np.linalg.norm(a) / np.linalg.norm(b))))


def aligned_errors_m(found: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """[22] joint errors after removing position and scale."""
    truth = truth - truth[0]
    return np.linalg.norm(found * (found * truth).sum() / (found**2).sum() - truth, axis=1)


@pytest.fixture(scope="module")
def turned(body: BodyModel) -> dict[float, BodyFit]:
    """Fits of the same stance turned to both sides."""
    betas = np.zeros(20)
    return {
        yaw: fit_body(person_of(body, standing_pose(yaw), betas, camera_at()), body, Context.quiet(seed=0))
        for yaw in (-30.0, 30.0)
    }


@pytest.mark.parametrize("yaw", [-30.0, 30.0])
def test_recovers_joints_and_yaw(body: BodyModel, turned: dict[float, BodyFit], yaw: float) -> None:
    """With exact landmarks only the priors and the detector's known biases remain as error."""
    found = fitted_joints(body, turned[yaw])
    errors = aligned_errors_m(found, posed_joints(body, standing_pose(yaw), np.zeros(20))[:22])
    assert errors.mean() < 0.035
    assert errors.max() < 0.11
    assert abs(yaw_deg(found) - yaw) < 8.0
    assert turned[yaw].lean_prior_used


def test_world_is_gravity_aligned(body: BodyModel, turned: dict[float, BodyFit]) -> None:
    """No roll, soles on the floor, and the camera shows the body where the landmarks are."""
    fit = turned[30.0]
    right = fit.camera.w2c[0, :3]
    np.testing.assert_allclose(right, [1.0, 0.0, 0.0], atol=1e-9)
    posed = posed_vertices(body, fit.pose, fit.betas) + fit.translation_m
    assert abs(posed[:, 1].min()) < 0.03
    person = person_of(body, standing_pose(30.0), np.zeros(20), camera_at())
    pixels = fit.camera.project(np.asarray(body.pose_keypoints @ posed, np.float64))
    error = np.linalg.norm(pixels - person.keypoints_px, axis=1)
    assert np.median(error) < 0.012 * HEIGHT
    assert fit.keypoint_error_px < 0.02 * HEIGHT


@pytest.mark.parametrize("side", [0, 1])
def test_arm_that_points_at_the_camera_stays_in_front(body: BodyModel, side: int) -> None:
    """In the picture it is as short as one that points away; the detector's depth decides."""
    pose = standing_pose(0.0)
    pose[16 + side], pose[18 + side] = [0.0, (-1.2 if side == 0 else 1.2), 0.0], [0.0, 0.0, 0.0]
    fit = fit_body(person_of(body, pose, np.zeros(20), camera_at()), body, Context.quiet(seed=0))
    arm = fitted_joints(body, fit)[20 + side] - fitted_joints(body, fit)[16 + side]
    assert arm[2] / np.linalg.norm(arm) > 0.8


@pytest.mark.parametrize("pitch", [-9.0, 9.0])
def test_camera_that_looks_up_or_down(body: BodyModel, pitch: float) -> None:
    """Legs and feet tell from how high the photo was taken; the body stays upright under either camera."""
    c, s = np.cos(np.radians(pitch)), np.sin(np.radians(pitch))
    w2c = np.eye(4)
    w2c[:3, :3] = [[1.0, 0.0, 0.0], [0.0, -c, s], [0.0, -s, -c]]
    w2c[:3, 3] = -w2c[:3, :3] @ [0.0, 0.9 + 2.7 * s, 2.7 * c]
    camera = replace(camera_at(), w2c=w2c)
    fit = fit_body(person_of(body, standing_pose(0.0), np.zeros(20), camera), body, Context.quiet(seed=0))
    found = np.degrees(np.arctan2(-fit.camera.w2c[2, 1], -fit.camera.w2c[1, 1]))
    assert abs(found - pitch) < 0.75 * abs(pitch)  # nearer to the truth than a level camera, with room for the prior
    trunk = fitted_joints(body, fit)[12]
    assert trunk[1] / np.linalg.norm(trunk) > np.cos(np.radians(8.0))


def test_half_body_stands_upright(body: BodyModel) -> None:
    """A portrait without legs: they hang straight down together below an upright trunk."""
    person = person_of(body, standing_pose(10.0), np.zeros(20), camera_at(1.5, 1.35))
    hidden = person.keypoint_visibility.copy()
    hidden[LEGS] = 0.02
    fit = fit_body(replace(person, keypoint_visibility=hidden), body, Context.quiet(seed=0))
    joints, rest = fitted_joints(body, fit), body.rest(np.zeros(20))[1]
    for hip, knee, ankle in ((1, 4, 7), (2, 5, 8)):
        # the model's knee joint lies ahead of the line from hip to ankle, so its own rest pose is the measure
        assert abs(bend_deg(joints, hip, knee, ankle) - bend_deg(rest, hip, knee, ankle)) < 5.0
        down = joints[ankle] - joints[hip]
        assert -down[1] / np.linalg.norm(down) > np.cos(np.radians(6.0))
    trunk = joints[12] - joints[0]
    assert trunk[1] / np.linalg.norm(trunk) > np.cos(np.radians(8.0))


def test_mirrored_photo_gives_mirrored_pose(body: BodyModel, turned: dict[float, BodyFit]) -> None:
    """Left and right are treated alike."""
    person = person_of(body, standing_pose(30.0), np.zeros(20), camera_at())
    flipped = replace(
        person,
        keypoints_px=(np.array([WIDTH, 0]) + person.keypoints_px * [-1, 1])[MIRRORED_MARKS],
        keypoints_world_m=(person.keypoints_world_m * [-1, 1, 1])[MIRRORED_MARKS],
    )
    mirrored = fitted_joints(body, fit_body(flipped, body, Context.quiet(seed=0)))
    straight = fitted_joints(body, turned[30.0])
    np.testing.assert_allclose((mirrored * [-1, 1, 1])[MIRRORED_JOINTS], straight, atol=0.03)


def test_scale_of_the_image_does_not_matter(body: BodyModel, turned: dict[float, BodyFit]) -> None:
    """The same photo with twice the pixels gives the same pose and place."""
    person = person_of(body, standing_pose(30.0), np.zeros(20), camera_at())
    double = replace(
        person,
        image=np.zeros((2 * HEIGHT, 2 * WIDTH, 3), np.uint8),
        mask=np.ones((2 * HEIGHT, 2 * WIDTH), np.float32),
        keypoints_px=2.0 * person.keypoints_px,
    )
    fit = fit_body(double, body, Context.quiet(seed=0))
    np.testing.assert_allclose(fit.pose, turned[30.0].pose, atol=0.02)
    np.testing.assert_allclose(fit.camera.w2c, turned[30.0].camera.w2c, atol=0.03)
    assert fit.camera.fx == pytest.approx(2.0 * turned[30.0].camera.fx)


def test_same_input_same_answer(body: BodyModel, turned: dict[float, BodyFit]) -> None:
    """Nothing is drawn at random."""
    person = person_of(body, standing_pose(30.0), np.zeros(20), camera_at())
    again = fit_body(person, body, Context.quiet(seed=5))
    np.testing.assert_array_equal(again.pose, turned[30.0].pose)
    np.testing.assert_array_equal(again.betas, turned[30.0].betas)


def test_lying_figure_releases_the_upright_prior(body: BodyModel) -> None:
    """The prior that people stand must give way when the photo clearly shows something else."""
    pose = standing_pose(0.0)
    pose[0] = [0.0, 0.0, np.radians(80.0)]
    fit = fit_body(person_of(body, pose, np.zeros(20), camera_at(3.5)), body, Context.quiet(seed=0))
    assert not fit.lean_prior_used
    spine = fitted_joints(body, fit)[12]
    assert spine[1] / np.linalg.norm(spine) < np.cos(np.radians(60.0))
    assert any("lean" in warning for warning in fit.warnings)


@pytest.mark.parametrize("side", [0, 1])
def test_hand_landmarks_move_the_fingers(body: BodyModel, side: int) -> None:
    """A fist and an open hand differ by a radian per joint and must be told apart."""
    betas, camera, columns = np.zeros(20), camera_at(), hand_columns(side)
    sign = -1.0 if side == 0 else 1.0
    rest = body.rest(betas)
    for bend in (0.1, 1.0):
        pose = standing_pose(0.0)
        pose[columns[1:13], 2] = sign * bend
        posed = posed_vertices(body, pose, betas)
        marks = np.asarray(body.hand_keypoints @ posed, np.float64)[21 * side : 21 * side + 21]
        turn, place = joint_transforms(torch.tensor(rest[1], dtype=torch.float64), torch.tensor(pose))
        world = camera.to_camera(marks)
        found = fit_hand(
            body, rest, side, turn[18 + side].numpy(), place[20 + side].numpy(), np.zeros(3),
            camera.project(marks), world - world[0], camera,
        )  # fmt: skip
        assert found is not None
        assert found.error < 0.05
        mean = np.abs(found.fingers[:12, 2]).mean()
        assert abs(mean - bend) < 0.35


def test_scattered_hand_landmarks_are_refused(body: BodyModel) -> None:
    """Landmarks that form no hand must not tie the fingers in knots."""
    rest, camera = body.rest(np.zeros(20)), camera_at()
    pixels = np.random.default_rng(0).uniform(250, 350, (21, 2))
    pixels[9], pixels[12] = pixels[0] + [20, 0], pixels[0] + [35, 0]
    assert fit_hand(body, rest, 0, np.eye(3), rest[1][20], np.zeros(3), pixels, np.zeros((0, 3)), camera) is None


def unseen_hand(
    body: BodyModel, side: int, other: np.ndarray
) -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray, np.ndarray]:
    """Turn one hand of the standing figure: (elbow turn, wrist), the hand's pixels before and after."""
    pose, betas, camera = standing_pose(0.0), np.zeros(20), camera_at()
    rest = body.rest(betas)
    turn, place = joint_transforms(torch.tensor(rest[1], dtype=torch.float64), torch.tensor(pose))
    elbow, wrist = 18 + side, 20 + side
    found = turn_unseen_hand(
        body, rest, side, turn[elbow].numpy(), place[elbow].numpy(), pose[wrist], other, camera
    )  # fmt: skip
    turned = pose.copy()
    turned[elbow] = (Rotation.from_rotvec(pose[elbow]) * Rotation.from_matrix(found[0])).as_rotvec()
    turned[wrist] = found[1]
    before, after = (
        camera.project(np.asarray(body.hand_keypoints @ posed_vertices(body, p, betas), np.float64))[21 * side :][:21]
        for p in (pose, turned)
    )
    return found, before, after


def covered(pixels: np.ndarray, other: np.ndarray) -> float:
    """Share of points [N, 2] that lie on marked pixels."""
    column, row = np.clip(pixels.astype(int), 0, [WIDTH - 1, HEIGHT - 1]).T
    return float(other[row, column].mean())


@pytest.mark.parametrize("side", [0, 1])
def test_unseen_hand_leaves_what_the_photo_shows_there(body: BodyModel, side: int) -> None:
    """Cloth where the fitted hand would be seen: the hand turns until it covers less of it."""
    _, before, _ = unseen_hand(body, side, np.zeros((HEIGHT, WIDTH), bool))
    other = np.zeros((HEIGHT, WIDTH), bool)
    # cloth from the knuckles on to the side away from the trunk, as a coat's skirt beside the hand
    edge = int(np.median(before[:, 0]))
    if side == 0:
        other[:, edge:] = True
    else:
        other[:, :edge] = True
    _, before, after = unseen_hand(body, side, other)
    assert covered(before, other) > 0.3
    assert covered(after, other) < covered(before, other) - 0.15
    # wrist and fingers stay near where they were: a small turn, no new arm
    assert np.linalg.norm(after[0] - before[0]) < 0.12 * HEIGHT


@pytest.mark.parametrize("side", [0, 1])
def test_unseen_hand_over_background_stays(body: BodyModel, side: int) -> None:
    """Nothing contradicts the hand, so nothing is turned, even with cloth elsewhere in the photo."""
    _, before, _ = unseen_hand(body, side, np.zeros((HEIGHT, WIDTH), bool))
    other = np.ones((HEIGHT, WIDTH), bool)
    (x0, y0), (x1, y1) = before.min(0).astype(int) - 3, before.max(0).astype(int) + 4
    other[y0:y1, x0:x1] = False
    (turn, wrist), _, after = unseen_hand(body, side, other)
    np.testing.assert_allclose(turn, np.eye(3), atol=1e-9)
    np.testing.assert_allclose(wrist, standing_pose(0.0)[20 + side], atol=1e-9)
    np.testing.assert_allclose(after, before, atol=1e-3)


def test_too_few_landmarks_is_a_plain_error(body: BodyModel) -> None:
    """An empty photo ends in one line that says what to do."""
    person = person_of(body, standing_pose(0.0), np.zeros(20), camera_at())
    with pytest.raises(UserError, match="shows"):
        fit_body(replace(person, keypoint_visibility=np.zeros(33)), body, Context.quiet(seed=0))
