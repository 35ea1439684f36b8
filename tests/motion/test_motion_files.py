"""Motion files and their way onto an avatar: laws of retargeting, real files, damaged files."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from blender_addon.motion.bvh import Bvh, MotionError, read_bvh, write_bvh
from blender_addon.motion.poses import Motion, local_rotations, posed_joints, world_rotations
from blender_addon.motion.retarget import RetargetSettings, retarget_bvh
from blender_addon.motion.smplx_npz import read_smplx_npz, relaxed_hands, retarget_smplx
from blender_addon.motion.walk import walk_pose
from blender_addon.shared.bone_names import bone_name, match_joints
from blender_addon.shared.skeleton import JOINT_NAMES, PARENTS, axis_angle_to_matrices
from tests.blender.synthetic import make_avatar

DATA = Path(__file__).parent / "data"
REAL = sorted(DATA.glob("*.bvh"))
PLAIN = RetargetSettings(fps=30.0, keep_contacts=False, face_front=False)
Z_UP = np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])


@pytest.fixture(scope="module")
def joints() -> np.ndarray:
    return make_avatar(10)[1].joints_m.astype(np.float64)


def walking() -> tuple[np.ndarray, np.ndarray]:
    """Local rotations [28, 55, 3, 3] of a walk and a path [28, 3]."""
    rotations = axis_angle_to_matrices(walk_pose(28))
    steps = np.arange(28)[:, None]
    return rotations, steps * np.array([0.004, 0.0, 0.03])


def as_bvh(joints: np.ndarray, rotations: np.ndarray, path: np.ndarray, axes: np.ndarray, unit: float) -> Bvh:
    """Our own skeleton as another program would store it: other axes, other unit, other names."""
    moved = unit * joints @ axes.T
    offsets = np.where(PARENTS[:, None] >= 0, moved - moved[np.maximum(PARENTS, 0)], 0.0)
    names = tuple(bone_name(joint, "mixamo") or joint for joint in JOINT_NAMES)
    roots = unit * (joints[0] + path) @ axes.T
    return Bvh(names, PARENTS.astype(int), offsets, np.zeros_like(offsets), axes @ rotations @ axes.T, roots, 1 / 30)


def world_of(motion: Motion) -> np.ndarray:
    return world_rotations(axis_angle_to_matrices(motion.pose))


def test_a_bvh_file_keeps_skeleton_and_motion(tmp_path: Path, joints: np.ndarray) -> None:
    rng = np.random.default_rng(0)
    rotations = axis_angle_to_matrices(rng.normal(0, 1.2, (7, 55, 3)))
    path = rng.normal(size=(7, 3))
    names = [bone_name(joint, "unreal") or joint for joint in JOINT_NAMES]
    write_bvh(tmp_path / "a.bvh", names, PARENTS, joints, rotations, path, 1 / 24)
    back = read_bvh(tmp_path / "a.bvh")
    order = [back.names.index(name) for name in names]
    assert sorted(back.names) == sorted(names) and back.frame_seconds == pytest.approx(1 / 24, abs=1e-7)
    np.testing.assert_allclose(back.rotations[:, order], rotations, atol=2e-7)
    np.testing.assert_allclose(back.positions, path, atol=1e-6)
    np.testing.assert_allclose(back.rest()[order], joints - joints[0], atol=1e-5)


@pytest.mark.parametrize("axes", [np.eye(3), Z_UP], ids=["y up", "z up"])
@pytest.mark.parametrize("unit", [1.0, 100.0])
def test_our_own_skeleton_comes_back_as_it_was(joints: np.ndarray, axes: np.ndarray, unit: float) -> None:
    rotations, path = walking()
    motion = retarget_bvh("walk", as_bvh(joints, rotations, path, axes, unit), joints, PLAIN)
    without_face = [j for j, name in enumerate(JOINT_NAMES) if name != "jaw" and "eye" not in name]
    np.testing.assert_allclose(
        world_of(motion)[:, without_face], world_rotations(rotations)[:, without_face], atol=1e-6
    )
    np.testing.assert_allclose(motion.translation_m[:, [0, 2]], path[:, [0, 2]], atol=1e-9)


def test_another_rest_pose_gives_the_same_movement(joints: np.ndarray) -> None:
    """A skeleton that rests with its arms at its sides points its limbs as ours does."""
    rotations, path = walking()
    hang = np.broadcast_to(np.eye(3), (55, 3, 3)).copy()
    for side, sign in (("left", 1.0), ("right", -1.0)):
        hang[JOINT_NAMES.index(f"{side}_shoulder")] = axis_angle_to_matrices(np.array([0, 0, -sign * 1.3]))
    turned = world_rotations(hang)
    rest = posed_joints(joints, hang)
    world = world_rotations(rotations) @ np.swapaxes(turned, -1, -2)
    other = as_bvh(rest, local_rotations(world), path, np.eye(3), 1.0)
    motion = retarget_bvh("walk", other, joints, PLAIN)
    ours = posed_joints(joints, axis_angle_to_matrices(motion.pose))
    # The roll of a bone about itself cannot be told from where it points: fingers may lie a little differently.
    np.testing.assert_allclose(ours[:, :22], posed_joints(joints, rotations)[:, :22], atol=1e-6)


def test_a_taller_skeleton_walks_as_far_in_steps(joints: np.ndarray) -> None:
    rotations, path = walking()
    motion = retarget_bvh("walk", as_bvh(1.4 * joints, rotations, 1.4 * path, np.eye(3), 1.0), joints, PLAIN)
    np.testing.assert_allclose(motion.translation_m[:, [0, 2]], path[:, [0, 2]], atol=1e-9)


def test_speed_place_and_front(joints: np.ndarray) -> None:
    rotations, path = walking()
    turn = axis_angle_to_matrices(np.array([0, 2.0, 0]))
    rotations = rotations.copy()
    rotations[:, 0] = turn @ rotations[:, 0]
    source = as_bvh(joints, rotations, path @ turn.T, np.eye(3), 1.0)
    fast = retarget_bvh("walk", source, joints, RetargetSettings(30.0, 2.0, True, False, True))
    assert len(fast.pose) == 14
    assert np.abs(fast.translation_m[:, [0, 2]]).max() == 0
    front = world_of(fast)[0, 0] @ [0, 0, 1]
    assert abs(np.arctan2(front[0], front[2])) < 1e-9


@pytest.mark.parametrize("path", REAL, ids=lambda path: path.stem)
def test_real_files_stand_upright_and_do_not_slide(path: Path, joints: np.ndarray) -> None:
    bvh = read_bvh(path)
    found = match_joints(bvh.names)
    assert {"spine1", "spine3", "neck", "left_collar", "right_wrist", "left_foot", "right_ankle"} <= found.keys()

    def slips(settings: RetargetSettings) -> tuple[float, np.ndarray]:
        motion = retarget_bvh(path.stem, bvh, joints, settings)
        posed = posed_joints(joints, axis_angle_to_matrices(motion.pose)) + motion.translation_m[:, None]
        speeds = []
        for side in ("left", "right"):
            ankle = posed[:, JOINT_NAMES.index(f"{side}_ankle")]
            low = ankle[1:, 1] < ankle[:, 1].min() + 0.02
            speeds.append(np.linalg.norm(np.diff(ankle, axis=0)[:, [0, 2]], axis=1)[low] * settings.fps)
        return float(np.median(np.concatenate(speeds))), posed

    sliding, _ = slips(RetargetSettings(keep_contacts=False))
    held, posed = slips(RetargetSettings())
    assert held < 0.002 < sliding, "metres per second of feet on the floor"
    head, feet = JOINT_NAMES.index("head"), [JOINT_NAMES.index(f"{s}_ankle") for s in ("left", "right")]
    assert (posed[:, head, 1] > posed[:, feet, 1].min(axis=1) + 0.6).all(), "upside down or lying"
    assert posed[:, feet, 1].min() > 0.0, "a foot is below the floor"
    knees = [JOINT_NAMES.index(f"{s}_knee") for s in ("left", "right")]
    lengths = np.linalg.norm(posed[:, feet] - posed[:, knees], axis=-1)
    np.testing.assert_allclose(lengths, np.broadcast_to(lengths[0], lengths.shape), atol=1e-9)


def amass(joint_count: int, rate: str, axes: np.ndarray) -> dict[str, np.ndarray]:
    pose = walk_pose(28)
    flat = pose if joint_count == 55 else np.concatenate([pose[:, :22], pose[:, 25:]], axis=1)
    quarter = {True: np.zeros(3), False: np.array([np.pi / 2, 0, 0])}[np.array_equal(axes, np.eye(3))]
    turn = axis_angle_to_matrices(quarter)
    flat = flat.copy()
    flat[:, 0] = quarter  # the walk's root hardly turns; standing is enough here
    _, path = walking()
    return {
        "poses": flat.reshape(28, -1), "trans": path @ turn.T, rate: np.array(30.0), "betas": np.zeros(16),
        "gender": np.array("neutral"),
    }  # fmt: skip


@pytest.mark.parametrize("joint_count", [52, 55])
@pytest.mark.parametrize("rate", ["mocap_frame_rate", "mocap_framerate", "fps"])
@pytest.mark.parametrize("axes", [np.eye(3), Z_UP], ids=["y up", "z up"])
def test_every_layout_of_smplx_motion_is_one_motion(
    tmp_path: Path, joints: np.ndarray, joint_count: int, rate: str, axes: np.ndarray
) -> None:
    np.savez(tmp_path / "m.npz", **amass(joint_count, rate, axes))
    motion = retarget_smplx("m", read_smplx_npz(tmp_path / "m.npz"), joints, PLAIN)
    expected = walk_pose(28)
    expected[:, 0] = 0
    np.testing.assert_allclose(world_of(motion), world_rotations(axis_angle_to_matrices(expected)), atol=1e-6)
    moved = motion.translation_m[-1, [0, 2]] / walking()[1][-1, [0, 2]]
    np.testing.assert_allclose(moved, moved[0], rtol=1e-6)
    assert 0.7 < moved[0] < 1.4


class _Canary:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (exec, ("raise SystemExit('a pickle was loaded')",))


def test_objects_in_a_motion_file_are_never_unpickled(tmp_path: Path) -> None:
    arrays = amass(55, "fps", np.eye(3)) | {"gender": np.array([_Canary()], dtype=object)}
    np.savez(tmp_path / "m.npz", **arrays)
    assert b"a pickle was loaded" in (tmp_path / "m.npz").read_bytes()
    assert len(read_smplx_npz(tmp_path / "m.npz").pose) == 28
    (tmp_path / "p.npz").write_bytes(pickle.dumps(_Canary()))
    with pytest.raises(MotionError):
        read_smplx_npz(tmp_path / "p.npz")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t[:900], "not a BVH file"),
        (lambda t: t[: len(t) // 3], "numbers for"),
        (lambda t: t[: t.index("}")] + "MOTION", "cut short"),
        (lambda t: t.replace("HIERARCHY", "SOMETHING"), "not a BVH file"),
        (lambda t: t.replace("Frames: 125", "Frames: 1000000000"), "numbers for"),
        (lambda t: t.replace("Frame Time: .03333", "Frame Time: 0"), "frame time"),
        (lambda t: t.replace("OFFSET", "OFFSET nan", 1), "number"),
        (lambda t: t.replace("CHANNELS 3", "CHANNELS 999999999", 1), "makes no sense|channel|cut short"),
        (lambda t: t.replace("Xrotation", "Wrotation", 1), "unknown channel"),
        (lambda t: t[: t.rindex(" ")], "numbers for"),
        (lambda t: t + " word", "damaged"),
    ],
)
def test_a_damaged_bvh_is_one_line(tmp_path: Path, change: object, words: str) -> None:
    text = (DATA / "cmu1_jumping_jacks.bvh").read_text("utf-8")
    damaged = tmp_path / "damaged.bvh"
    damaged.write_text(change(text), "utf-8")  # type: ignore[operator]
    with pytest.raises(MotionError, match=words) as caught:
        read_bvh(damaged)
    assert "damaged.bvh" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"betas": np.zeros(16)}, "no poses"),
        ({"poses": np.zeros((5, 71))}, "66, 72, 156, 165 numbers"),
        ({"poses": np.full((5, 165), np.nan)}, "no numbers"),
        ({"poses": np.zeros((5, 165)), "trans": np.zeros((4, 3))}, "trans"),
        ({"poses": np.zeros((5, 165)), "fps": np.array(0.0)}, "frames a second"),
    ],
)
def test_a_wrong_npz_is_one_line(tmp_path: Path, joints: np.ndarray, arrays: dict[str, np.ndarray], words: str) -> None:
    np.savez(tmp_path / "wrong.npz", **arrays)
    with pytest.raises(MotionError, match=words) as caught:
        read_smplx_npz(tmp_path / "wrong.npz")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("joint_count", [22, 24])
def test_a_body_without_fingers_gets_hands_at_ease(tmp_path: Path, joints: np.ndarray, joint_count: int) -> None:
    pose = walk_pose(28)
    pose[:, 0] = 0
    flat = np.concatenate([pose[:, :22], np.ones((28, joint_count - 22, 3))], axis=1).reshape(28, -1)
    np.savez(tmp_path / "m.npz", poses=flat, fps=30)
    source = read_smplx_npz(tmp_path / "m.npz")
    assert any("no fingers" in note for note in source.notes) and any("no trans" in note for note in source.notes)
    world = world_of(retarget_smplx("m", source, joints, PLAIN))
    expected = world_rotations(axis_angle_to_matrices(pose))
    np.testing.assert_allclose(world[:, :22], expected[:, :22], atol=1e-6)
    tips = posed_joints(joints, axis_angle_to_matrices(source.pose))[0]
    straight = posed_joints(joints, np.broadcast_to(np.eye(3), (55, 3, 3)))
    for side in ("left", "right"):
        hand, tip = JOINT_NAMES.index(f"{side}_wrist"), JOINT_NAMES.index(f"{side}_middle3")
        bent, flat_hand = (np.linalg.norm(p[tip] - p[hand]) for p in (tips, straight))
        assert 0.7 * flat_hand < bent < 0.999 * flat_hand, "the fingers are not bent a little"


def test_hands_count_from_the_mean_hand_where_the_file_or_the_user_says_so(tmp_path: Path) -> None:
    arrays = amass(55, "fps", np.eye(3))
    np.savez(tmp_path / "plain.npz", **arrays)
    np.savez(tmp_path / "mean.npz", **arrays, flat_hand_mean=np.array(False))
    flat = read_smplx_npz(tmp_path / "plain.npz")
    assert flat.notes == ()
    np.testing.assert_array_equal(flat.pose, arrays["poses"].reshape(28, 55, 3))
    from_mean = read_smplx_npz(tmp_path / "mean.npz")
    assert "mean hand" in from_mean.notes[0]
    np.testing.assert_array_equal(from_mean.pose[:, :25], flat.pose[:, :25])
    np.testing.assert_allclose(from_mean.pose[:, 25:] - flat.pose[:, 25:], np.tile(relaxed_hands(), (28, 1, 1)))
    np.testing.assert_array_equal(read_smplx_npz(tmp_path / "plain.npz", "mean").pose, from_mean.pose)
    np.testing.assert_array_equal(read_smplx_npz(tmp_path / "mean.npz", "flat").pose, flat.pose)


def test_a_body_on_the_floor_stands_where_the_user_says_what_is_up(tmp_path: Path, joints: np.ndarray) -> None:
    """Lying on the back in a Y-up file looks like standing in a Z-up one: only the user can know."""
    pose = np.zeros((5, 165))
    pose[:, 0] = -np.pi / 2
    np.savez(tmp_path / "m.npz", poses=pose, trans=np.zeros((5, 3)), fps=30)
    source = read_smplx_npz(tmp_path / "m.npz")
    head_above = {}
    for up in ("auto", "y", "z"):
        settings = RetargetSettings(30.0, keep_contacts=False, face_front=False, up=up)
        local = axis_angle_to_matrices(retarget_smplx("m", source, joints, settings).pose[0])
        posed = posed_joints(joints, local)
        head_above[up] = posed[JOINT_NAMES.index("head"), 1] - posed[0, 1]
    assert abs(head_above["y"]) < 0.1 and abs(head_above["z"]) > 0.5 and head_above["auto"] == head_above["z"]


def test_slow_motion_has_poses_between_those_of_the_file(joints: np.ndarray) -> None:
    """Half the speed at the same frame rate: every second frame is the file's, those between lie half way."""
    rotations, path = walking()
    slow = retarget_bvh(
        "slow",
        as_bvh(joints, rotations, path, np.eye(3), 1.0),
        joints,
        RetargetSettings(30.0, 0.5, False, False, False),
    )
    assert len(slow.pose) == 55
    local = axis_angle_to_matrices(slow.pose)
    np.testing.assert_allclose(world_rotations(local)[::2, :22], world_rotations(rotations)[:, :22], atol=1e-6)
    steps = np.swapaxes(local[:-1], -1, -2) @ local[1:]
    angles = np.arccos(np.clip((np.trace(steps, axis1=-2, axis2=-1) - 1) / 2, -1, 1))[:, :22]
    np.testing.assert_allclose(angles[::2], angles[1::2], atol=1e-5)
    np.testing.assert_allclose(slow.translation_m[1::2, [0, 2]], (path[:-1] + path[1:])[:, [0, 2]] / 2, atol=1e-9)


def test_names_of_other_rigs_lead_back(joints: np.ndarray) -> None:
    for convention in ("mixamo", "rigify", "vrm", "unreal"):
        names = [bone_name(joint, convention) for joint in JOINT_NAMES]
        expected = {joint: name for joint, name in zip(JOINT_NAMES, names, strict=True) if name}
        assert len(set(expected.values())) == len(expected), "two joints share a name"
        assert match_joints(list(expected.values())) == expected
