"""The bundle on disk: round trip, and every way it may be damaged."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

from blender_addon.shared.avatar import Avatar, BundleError, read_bundle, read_result, write_bundle
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
