"""The bundle on disk: round trip, and every way it may be damaged."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from blender_addon.shared.avatar import Avatar, BundleError, read_bundle, read_result, write_bundle
from blender_addon.shared.controls import Control, pack_controls
from tests.splats.avatars import make_avatar


def test_round_trip(tmp_path: Path) -> None:
    cloud, avatar = make_avatar()
    write_bundle(tmp_path, cloud, avatar)
    cloud_again, avatar_again = read_bundle(tmp_path)
    assert cloud_again.degree == 0
    np.testing.assert_array_equal(cloud_again.positions_m, cloud.positions_m)
    for field in fields(Avatar):
        np.testing.assert_array_equal(getattr(avatar_again, field.name), getattr(avatar, field.name))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["avatar.npz", "gaussians.ply"]


def test_the_arrays_need_no_pickle(tmp_path: Path) -> None:
    write_bundle(tmp_path, *make_avatar())
    with np.load(tmp_path / "avatar.npz", allow_pickle=False) as data:
        assert all(data[name].dtype != object for name in data.files)


def test_damage_is_named_in_one_line(tmp_path: Path) -> None:
    cloud, avatar = make_avatar()
    with pytest.raises(BundleError, match="missing"):
        read_bundle(tmp_path)
    write_bundle(tmp_path, cloud, avatar)
    whole = (tmp_path / "avatar.npz").read_bytes()
    for content in (b"", whole[: len(whole) // 2], b"PK\x03\x04 not a zip"):
        (tmp_path / "avatar.npz").write_bytes(content)
        with pytest.raises(BundleError) as error:
            read_bundle(tmp_path)
        assert "\n" not in str(error.value)
    with pytest.raises(BundleError, match="bindings"):
        write_bundle(tmp_path, cloud.select(np.arange(10)), avatar)
    write_bundle(tmp_path / ".", cloud, avatar)
    (tmp_path / "result.json").write_text("[1, 2]")
    with pytest.raises(BundleError, match="JSON object"):
        read_result(tmp_path)


def test_controls_round_trip_exactly(tmp_path: Path) -> None:
    cloud, avatar = make_avatar(count=50)
    rng = np.random.default_rng(0)
    pose = np.zeros((55, 6))
    pose[4:9] = rng.normal(size=(5, 6))
    made = [
        Control("longer hair", {"position": rng.normal(0, 0.01, (50, 3)), "opacity_logit": rng.normal(size=50)}, -1, 1),
        Control("folds", {"radiance": np.where(rng.random((50, 1)) < 0.2, 1e6, 0.0) * np.ones(3)}, pose=pose),
        Control("nothing", {"rotation": np.zeros((50, 3))}, 0.5, 2.0, 1.0, "Group", "Tooltip"),
    ]
    write_bundle(tmp_path, cloud, replace(avatar, controls=pack_controls(made)))
    again = read_bundle(tmp_path)[1].controls
    assert again is not None and again.sliders == [0, 2] and again.followers == [1]
    moved = again.bases["position"].delta(0, 50)
    np.testing.assert_allclose(moved, made[0].deltas["position"], atol=2.0**-14)
    assert np.array_equal(moved * 2.0**13, np.rint(moved * 2.0**13)), "no whole steps"
    wide = Control("age", {"proxy": np.full((9, 3), 0.0003)}, 20.0, 80.0, 35.0)
    far = 45.0 * pack_controls([wide]).bases["proxy"].delta(0, 9)
    np.testing.assert_allclose(far, 45.0 * 0.0003, atol=2.0**-15, err_msg="the steps of a wide slider add up")
    # What is too large for the usual step gets a coarser one, and what is zero is not stored.
    np.testing.assert_allclose(again.bases["radiance"].delta(0, 50), made[1].deltas["radiance"], rtol=1e-4)
    assert len(again.bases["radiance"].indices) == np.count_nonzero(made[1].deltas["radiance"][:, 0])
    assert len(again.bases["rotation"].indices) == 0
    rest = np.tile(np.eye(3), (55, 1, 1))
    assert not again.pose_coefficients(rest).any()
    np.testing.assert_array_equal(again.weights(np.zeros(3), {"longer hair": 0.5, "nothing": 0.75}), [0.5, 0.0, -0.25])


def controls_with(**changes: np.ndarray | None) -> dict[str, Any]:
    """Arrays of two good controls, some of them replaced; None removes one."""
    deltas = np.ones((5, 3))
    good = pack_controls([Control("one", {"position": deltas}), Control("two", {"position": deltas})])
    return {name: value for name, value in (good.to_arrays() | changes).items() if value is not None}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"control_version": np.array(2)}, "version 2"),
        ({"control_version": None}, "version 0"),
        ({"control_ranges": None}, "control_ranges is missing"),
        ({"control_position_steps": None}, "control_position_steps is missing"),
        ({"control_names": np.array("one")}, "cannot be read"),
        ({"control_position_indices": np.array(3)}, "cannot be read"),
        ({"control_version": np.array("one")}, "cannot be read"),
        ({"control_mood": np.zeros(2)}, "control_mood"),
        ({"control_names": np.array(["one", "one"])}, "same name"),
        ({"control_names": np.array(["one", 'a"]["b'])}, "no name of a control"),
        ({"control_names": np.array(["one", "jawOpen"])}, "another part of the rig"),
        ({"control_names": np.array(["one", "effigy_betas"])}, "another part of the rig"),
        ({"control_ranges": np.array([[0, 1, 2], [0, 1, 0]], np.float32)}, "range of a slider"),
        ({"control_ranges": np.full((2, 3), np.nan, np.float32)}, "not finite"),
        ({"control_pose_weights": np.ones((2, 55, 6), np.float32)}, "weights of a pose"),
        ({"control_pose_weights": np.zeros((2, 22, 6), np.float32)}, "shape"),
        ({"control_position_starts": np.array([0, 7, 6])}, "divide"),
        ({"control_position_starts": np.array([0, 5, 11])}, "divide"),
        ({"control_position_controls": np.array([0, 2])}, "outside its table of 2"),
        ({"control_position_indices": np.array([*range(5), 0, 1, 2, 3, 5])}, "outside its table of 5"),
        ({"control_position_indices": np.array([*range(5), 0, 1, 2, 2, 4])}, "does not rise"),
        ({"control_position_indices": np.array([*range(5), -1, 1, 2, 3, 4])}, "does not rise"),
        ({"control_position_steps": np.ones((10, 3), np.float32)}, "type"),
        ({"control_position_exponents": np.array([90, 0], np.int8)}, "outside"),
    ],
)
def test_damaged_controls_are_named_in_one_line(
    tmp_path: Path, change: dict[str, np.ndarray | None], message: str
) -> None:
    cloud, avatar = make_avatar(count=5)
    write_bundle(tmp_path, cloud, avatar)
    with np.load(tmp_path / "avatar.npz") as data:
        plain: dict[str, Any] = {name: data[name] for name in data.files}
    np.savez(tmp_path / "avatar.npz", **plain, **controls_with())
    assert read_bundle(tmp_path)[1].controls is not None
    np.savez(tmp_path / "avatar.npz", **plain, **controls_with(**change))
    with pytest.raises(BundleError, match=message) as error:
        read_bundle(tmp_path)
    assert "\n" not in str(error.value) and "avatar.npz" in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"triangles": np.full((5, 3), 10**6, np.int32), "uvs": np.zeros((5, 3, 2))}, "points outside"),
        ({"photo_w2c": np.full((4, 4), np.nan)}, "not finite"),
        ({"joints_m": np.zeros((22, 3))}, "joints_m has shape"),
        ({"joint_names": np.array(["hip"] * 55)}, "SMPL-X"),
        ({"shape_key_names": np.array(["smirk"] * 53)}, "facial actions"),
    ],
)
def test_an_avatar_that_does_not_fit_together_is_refused(change: dict[str, np.ndarray], message: str) -> None:
    _, avatar = make_avatar(count=5)
    with pytest.raises(BundleError, match=message):
        replace(avatar, **change)
