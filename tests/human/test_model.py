"""The default body: what every part of Effigy relies on when it poses, fits or dresses it."""

from __future__ import annotations

import zipfile

import numpy as np
import pytest
from scipy.spatial.distance import pdist

from backend.human import lbs
from backend.human.model import DEFAULT_BODY_FILE, BodyModel, Region, load_default_body
from blender_addon.shared.skeleton import FACIAL_ACTIONS, JOINT_NAMES

FLIP = np.array([-1.0, 1.0, 1.0])


def swapped(names: tuple[str, ...], pairs: tuple[tuple[str, str], ...]) -> np.ndarray:
    """Index of each name with left and right exchanged."""

    def other(name: str) -> str:
        for a, b in pairs:
            if a in name:
                return name.replace(a, b)
            if b in name:
                return name.replace(b, a)
        return name

    return np.array([names.index(other(name)) for name in names])


@pytest.fixture(scope="module")
def body() -> BodyModel:
    return load_default_body()


@pytest.fixture(scope="module")
def joints(body: BodyModel) -> dict[str, np.ndarray]:
    return dict(zip(JOINT_NAMES, body.rest(np.zeros(20))[1], strict=True))


def jaw_turned(body: BodyModel, degrees: float) -> np.ndarray:
    """Displacement [V, 3] by a jaw rotation, metres."""
    vertices, rest = body.rest(np.zeros(20))
    pose = np.zeros((55, 3))
    pose[JOINT_NAMES.index("jaw"), 0] = np.radians(degrees)
    return lbs.apply_transforms(lbs.vertex_transforms(rest, pose, body.skin_weights), vertices) - vertices


def action(body: BodyModel, name: str) -> np.ndarray:
    return body.action_dirs_m[..., FACIAL_ACTIONS.index(name)]


def test_file_is_small_plain_and_without_time_stamps() -> None:
    assert DEFAULT_BODY_FILE.stat().st_size < 4_000_000
    with zipfile.ZipFile(DEFAULT_BODY_FILE) as archive:
        assert {entry.date_time for entry in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        names = archive.namelist()
    with np.load(DEFAULT_BODY_FILE, allow_pickle=False) as file:
        assert sorted(f"{key}.npy" for key in file.files) == names
        assert all(file[key].dtype.kind in "iufbU" for key in file.files)


def test_weights_and_rows_sum_to_one(body: BodyModel) -> None:
    for weights in (body.skin_weights, body.twist.skin_weights):
        assert (weights >= 0).all() and (weights.sum(1) == 1.0).all()
    assert np.array_equal(body.twist.merged_weights(), body.skin_weights)
    assert (body.twist.skin_weights[:, 55:].max(0) > 0.95).all()
    for rows in (body.joint_regressor, body.pose_keypoints, body.hand_keypoints, body.face_landmarks):
        assert np.asarray(rows.sum(1)) == pytest.approx(1.0, abs=1e-5)


def test_arrays_are_read_only(body: BodyModel) -> None:
    with pytest.raises(ValueError, match="read-only"):
        body.template_m[0] = 0.0


def test_stands_on_the_floor_in_t_pose_facing_front(body: BodyModel, joints: dict[str, np.ndarray]) -> None:
    for seed in range(5):
        vertices, rest = body.rest(np.random.default_rng(seed).standard_normal(20))
        assert abs(vertices[:, 1].min()) < 0.01
        ankles = rest[[JOINT_NAMES.index("left_ankle"), JOINT_NAMES.index("right_ankle")]].mean(0)
        assert np.abs(ankles[[0, 2]]).max() < 0.005
        assert 1.0 < np.ptp(vertices[:, 1]) < 2.5
    arm = np.stack([joints[f"left_{name}"] for name in ("shoulder", "elbow", "wrist", "middle1", "middle2", "middle3")])
    assert np.ptp(arm[:, 1]) < 0.02 and (np.diff(arm[:, 0]) > 0.01).all()
    nose = (body.face_landmarks @ body.template_m)[1]
    assert nose[2] > joints["head"][2] + 0.08 and joints["left_foot"][2] > joints["left_ankle"][2] + 0.05


def test_surface_is_closed_and_faces_outwards(body: BodyModel) -> None:
    skin = body.triangles[(body.regions[body.triangles] < Region.UPPER_TEETH).all(1)]
    edges = np.sort(skin[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2), axis=1)
    assert (np.unique(edges, axis=0, return_counts=True)[1] == 2).all()
    a, b, c = (body.template_m[skin[:, k]] for k in range(3))
    assert 0.04 < (a * np.cross(b, c)).sum() / 6.0 < 0.15  # cubic metres


def test_left_and_right_are_mirror_images(body: BodyModel) -> None:
    mirror = body.mirror
    assert np.array_equal(mirror[mirror], np.arange(len(mirror)))
    sides = swapped(JOINT_NAMES, (("left_", "right_"),))
    actions = swapped(FACIAL_ACTIONS, (("Left", "Right"),))
    assert np.abs(body.template_m[mirror] * FLIP - body.template_m).max() < 1e-4
    assert np.abs(body.skin_weights[mirror][:, sides] - body.skin_weights).max() < 1e-3
    assert np.abs(body.shape_dirs_m[mirror] * FLIP[:, None] - body.shape_dirs_m).max() < 1e-4
    assert np.abs((body.action_dirs_m[mirror] * FLIP[:, None])[..., actions] - body.action_dirs_m).max() < 1e-4
    rest = body.rest(np.ones(20))[1]
    assert np.abs(rest[sides] * FLIP - rest).max() < 1e-4


def test_jaw_rotation_parts_the_lips(body: BodyModel) -> None:
    """15 degrees open the middle of the inner lips by over 8 mm and tear nothing outside the mouth's corners."""
    moved = jaw_turned(body, 15.0)
    points, shift = body.face_landmarks @ body.template_m, body.face_landmarks @ moved
    gap = shift[13, 1] - shift[14, 1]
    assert gap > 0.008
    # Upper lip and nose stay, chin and lower lip go with the jaw.
    for n in (0, 1, 2, 37, 267):
        assert np.linalg.norm(shift[n]) < 0.002, n
    jaw = body.rest(np.zeros(20))[1][JOINT_NAMES.index("jaw")]
    for n in (14, 17, 152):
        turn = 2.0 * np.sin(np.radians(7.5)) * np.linalg.norm((points[n] - jaw)[1:])
        assert np.linalg.norm(shift[n]) > 0.85 * turn, n
    # The opening closes towards the corners, where both lips meet.
    rows = [(82, 87), (81, 178), (80, 88), (191, 95)]
    gaps = [gap, *(float(shift[upper, 1] - shift[lower, 1]) for upper, lower in rows)]
    assert gaps[-1] < 0.75 * gaps[0]
    # Beyond the corners nothing parts: neighbours on the skin move together.
    edges = body.triangles[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2)
    width = np.abs(points[[61, 291], 0]).max()
    skin = (body.regions == Region.HEAD) & body.outer & (np.abs(body.template_m[:, 0]) > width + 0.003)
    edges = edges[skin[edges].all(1)]
    apart = np.linalg.norm(moved[edges[:, 0]] - moved[edges[:, 1]], axis=1)
    assert (apart / np.linalg.norm(np.diff(body.template_m[edges], axis=1)[:, 0], axis=1)).max() < 0.6
    assert apart.max() < 0.006


def test_jaw_weights_follow_jaw_open(body: BodyModel) -> None:
    """The jaw joint moves the skin of the head as jawOpen does; the tongue and the lower teeth go along."""
    skin = (body.regions == Region.HEAD) & (body.skin_weights[:, JOINT_NAMES.index("neck")] < 0.05)
    turned, shaped = jaw_turned(body, 22.9)[skin], action(body, "jawOpen")[skin]
    assert np.sqrt(((turned - shaped) ** 2).sum(1).mean()) < 0.15 * np.sqrt((shaped**2).sum(1).mean())


def test_teeth_stay_behind_the_lips_and_move_rigidly(body: BodyModel) -> None:
    upper, lower = body.regions == Region.UPPER_TEETH, body.regions == Region.LOWER_TEETH
    jaw = JOINT_NAMES.index("jaw")
    assert (body.skin_weights[lower, jaw] == 1).all() and (body.skin_weights[upper, jaw] == 0).all()
    assert not body.action_dirs_m[upper].any()
    before = body.template_m[lower]
    for name in ("jawOpen", "jawLeft", "jawRight", "jawForward"):
        after = before + action(body, name)[lower]
        assert np.abs(pdist(after) - pdist(before)).max() < 2e-4, name
        assert np.linalg.norm(after - before, axis=1).max() > 0.003, name
    assert np.abs(action(body, "mouthSmileLeft")[lower]).max() == 0
    # From the front something of the skin or of the mouth's bag lies before every tooth.
    skin = np.isin(body.regions, (Region.HEAD, Region.MOUTH))
    front = body.template_m[skin & (body.template_m[:, 2] > 0.1)]
    for tooth in body.template_m[upper | lower]:
        near = np.linalg.norm((front - tooth)[:, :2], axis=1) < 0.004
        assert front[near, 2].max() > tooth[2] + 0.001
    # Teeth follow the shape: they keep their place behind the lips.
    for seed in range(3):
        vertices, _ = body.rest(1.5 * np.random.default_rng(seed).standard_normal(20))
        lips = (body.face_landmarks @ vertices)[[13, 14]].mean(0)
        edge = vertices[upper].reshape(-1, 28, 3)[2, 13:15].mean(0)
        assert 0.001 < lips[2] - edge[2] < 0.012 and abs(lips[1] - edge[1]) < 0.006


def test_eyes_turn_about_their_centres(body: BodyModel, joints: dict[str, np.ndarray]) -> None:
    for side, region in (("left", Region.LEFT_EYE), ("right", Region.RIGHT_EYE)):
        eye = body.regions == region
        centre = joints[f"{side}_eye_smplhf"]
        depth = body.template_m[eye] - centre
        radius = np.linalg.norm(depth[depth[:, 2] < 0.6 * depth[:, 2].max()], axis=1)  # the cornea bulges
        assert 0.012 < radius.mean() < 0.018 and radius.std() < 0.0005
        assert (body.skin_weights[eye, JOINT_NAMES.index(f"{side}_eye_smplhf")] > 0.99).all()
        assert (centre[0] > 0) == (side == "left")


def test_actions_do_what_they_are_called(body: BodyModel) -> None:
    marks = body.face_landmarks
    blink, smile = marks @ action(body, "eyeBlinkLeft"), marks @ action(body, "mouthSmileLeft")
    assert blink[386, 1] < -0.004 and np.abs(blink[159]).max() < 1e-3  # upper lids, left and right
    assert smile[291, 1] > 0.003 and smile[291, 0] > 0.003 and np.abs(smile[61]).max() < 2e-3
    brow = marks @ action(body, "browInnerUp")
    assert brow[[55, 285], 1].min() > 0.002


def test_regions_and_outer_surface(body: BodyModel, joints: dict[str, np.ndarray]) -> None:
    inside = np.isin(body.regions, (Region.MOUTH, Region.TONGUE, Region.UPPER_TEETH, Region.LOWER_TEETH))
    assert not body.outer[inside].any()
    for region in Region:
        assert (body.regions == region).sum() > 50, region
    head = body.regions == Region.HEAD
    assert body.outer[body.regions == Region.BODY].mean() > 0.98 and body.outer[head].mean() > 0.7
    hidden = head & ~body.outer  # lids' insides, sockets, nostrils, ear canals: all within the head
    assert np.linalg.norm(body.template_m[hidden] - joints["head"], axis=1).max() < 0.25
    assert body.outer[body.template_m[:, 1].argmax()]
    assert np.array_equal(body.outer, body.outer[body.mirror])


def test_pose_keypoints_lie_where_they_are_called(body: BodyModel, joints: dict[str, np.ndarray]) -> None:
    vertices, rest = body.rest(np.random.default_rng(0).standard_normal(20))
    points = body.pose_keypoints @ vertices
    names = {11: "left_shoulder", 13: "left_elbow", 15: "left_wrist", 23: "left_hip", 25: "left_knee", 27: "left_ankle"}
    for n, name in names.items():
        assert np.linalg.norm(points[n] - rest[JOINT_NAMES.index(name)]) < 0.045, name
        assert np.abs(points[n] * FLIP - points[n + 1]).max() < 1e-3, name
    for n in (29, 31):  # heel behind the ankle, toes before it, both near the floor
        assert points[n, 1] < 0.06
    assert points[29, 2] < points[27, 2] - 0.02 < points[31, 2] - 0.10
    assert points[7, 0] > points[2, 0] > points[0, 0] > points[8, 0]
    assert points[2, 1] > points[9, 1] and points[9, 0] > 0 > points[10, 0]
    assert int(np.diff(body.pose_keypoints.indptr).max()) <= 80


def test_hand_keypoints_run_out_along_the_fingers(body: BodyModel) -> None:
    left, right = (body.hand_keypoints @ body.template_m).reshape(2, 21, 3)
    assert np.abs(left * FLIP - right).max() < 2e-3
    for finger in range(5):
        chain = left[[0, *range(1 + 4 * finger, 5 + 4 * finger)]]
        assert (np.diff(chain[:, 0]) > 0.004).all()
        assert 0.015 < np.linalg.norm(chain[4] - chain[3]) < 0.045
    thumb, index, pinky = left[4], left[8], left[20]
    assert thumb[2] > index[2] > pinky[2]  # palms down


def test_face_landmarks_lie_on_the_face(body: BodyModel, joints: dict[str, np.ndarray]) -> None:
    points = body.face_landmarks @ body.template_m
    error = body.face_landmark_error
    assert np.median(error) < 0.003 and (error > 0.007).sum() < 25
    assert set(np.diff(body.face_landmarks.indptr)) <= {1, 2, 3}
    used = np.unique(body.face_landmarks.indices)
    assert (body.regions[used] == Region.HEAD).all() and body.outer[used].all()
    assert np.linalg.norm(points - joints["head"], axis=1).max() < 0.2
    pairs = ((33, 263), (133, 362), (61, 291), (234, 454), (159, 386), (145, 374), (70, 300), (98, 327))
    for right, left in pairs:
        assert np.linalg.norm(points[right] * FLIP - points[left]) < 0.002, (right, left)
    for n in (10, 152, 1, 4, 13, 14, 168):
        assert abs(points[n, 0]) < 0.0015, n
    assert points[10, 1] > points[168, 1] > points[1, 1] > points[13, 1] > points[14, 1] > points[152, 1]
    # Lips are tied apart: what jawOpen does to the upper inner lip it does not do to the lower one.
    opened = body.face_landmarks @ action(body, "jawOpen")
    assert opened[[82, 13, 312], 1].min() > -0.006 and opened[[87, 14, 317], 1].max() < -0.02
