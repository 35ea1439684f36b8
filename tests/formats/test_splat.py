""".splat: round trips within a byte, the same Gaussians as the PLY beside it, and damaged files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given

from blender_addon.shared.formats import FormatError, read_splats
from blender_addon.shared.formats.ply import read_ply
from blender_addon.shared.formats.splat import read_splat, write_splat
from blender_addon.shared.gaussians import SH_C0, GaussianCloud
from tests.formats.clouds import clouds, temporary, turned_by
from tests.shared.test_gaussians import random_cloud

DATA = Path(__file__).parent / "data"


@given(cloud=clouds())
def test_round_trip_within_the_formats_steps(cloud: GaussianCloud) -> None:
    with temporary("a.splat") as path:
        notes = write_splat(path, cloud)
        assert path.stat().st_size == 32 * len(cloud)
        again = read_splat(path).cloud
    np.testing.assert_array_equal(again.positions_m, cloud.positions_m)
    np.testing.assert_array_equal(again.scales_m, cloud.scales_m)
    np.testing.assert_allclose(again.opacities, cloud.opacities, rtol=0, atol=0.5001 / 255)
    np.testing.assert_allclose(again.sh_dc * SH_C0 + 0.5, cloud.colours, rtol=0, atol=0.5001 / 255)
    # Each component is off by half a step of 1/128, by a whole one at +1, which has no byte of its own.
    assert (turned_by(again.rotations_wxyz, cloud.rotations_wxyz) < 2 * 2.0**-14).all()
    assert again.degree == 0
    assert any("spherical harmonics" in note for note in notes) == bool(cloud.sh_rest.any())


def test_blocks_and_threads_lose_no_row(tmp_path: Path) -> None:
    cloud = random_cloud(40_000, degree=0)
    write_splat(tmp_path / "a.splat", cloud)
    again = read_splat(tmp_path / "a.splat").cloud
    np.testing.assert_array_equal(again.positions_m, cloud.positions_m)
    np.testing.assert_array_equal(again.scales_m, cloud.scales_m)


def test_the_file_of_another_tool_holds_the_gaussians_of_its_ply() -> None:
    name = "test-splat.3-points-from-train"
    ours, theirs = read_splat(DATA / f"{name}.splat").cloud, read_ply(DATA / f"{name}.ply").cloud
    np.testing.assert_array_equal(ours.positions_m, theirs.positions_m)
    np.testing.assert_allclose(ours.scales_m, theirs.scales_m, rtol=1e-6)
    np.testing.assert_allclose(ours.opacities, theirs.opacities, atol=1.001 / 255)  # it cuts, and we round
    np.testing.assert_allclose(ours.colours, theirs.colours, atol=1.001 / 255)
    assert (turned_by(ours.rotations_wxyz, theirs.rotations_wxyz) < 2e-4).all()


def test_both_arrive_in_the_body_frame_alike() -> None:
    name = "test-splat.3-points-from-train"
    ours, theirs = read_splats(DATA / f"{name}.splat"), read_splats(DATA / f"{name}.ply")
    assert ours.axes == theirs.axes == "y_up"
    np.testing.assert_array_equal(ours.cloud.positions_m, theirs.cloud.positions_m)
    raw = read_ply(DATA / f"{name}.ply").cloud.positions_m
    np.testing.assert_array_equal(theirs.cloud.positions_m, raw * [1, -1, -1])


def test_colours_out_of_range_are_clipped_and_counted(tmp_path: Path) -> None:
    cloud = random_cloud(2, degree=0)
    bright = GaussianCloud(
        cloud.positions_m, cloud.scales_m, cloud.rotations_wxyz, cloud.opacities, [[0, 9, 0], [0, 0, -9]], cloud.sh_rest
    )
    (note,) = write_splat(tmp_path / "a.splat", bright)
    assert "2 colour values" in note
    np.testing.assert_allclose(read_splat(tmp_path / "a.splat").cloud.colours, bright.colours, atol=0.5001 / 255)


def test_damaged_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.splat"
    cloud = random_cloud(3, degree=0)
    write_splat(path, cloud)
    data = bytearray(path.read_bytes())
    path.write_bytes(data[:-1])
    with pytest.raises(FormatError, match="a.splat: has 31 bytes more than 2 whole Gaussians"):
        read_splat(path)
    path.write_bytes(b"")
    with pytest.raises(FormatError, match="no Gaussians"):
        read_splat(path)
    data[32 + 12 : 32 + 16] = np.float32(0).tobytes()  # scale of the second
    data[64 + 28 : 64 + 32] = bytes([128] * 4)  # quaternion of the third
    path.write_bytes(data)
    with pytest.raises(FormatError, match="2 of 3 Gaussians hold values"):
        read_splat(path)
    result = read_splat(path, drop_invalid=True)
    assert result.dropped == 2
    np.testing.assert_array_equal(result.cloud.positions_m, cloud.positions_m[:1])
