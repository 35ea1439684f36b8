"""Compressed PLY: steps of the chunks' bounds, a file of another tool, and damaged files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blender_addon.shared.formats import FormatError, find_reader
from blender_addon.shared.formats.compressed_ply import CHUNK, read_compressed_ply, write_compressed_ply
from blender_addon.shared.formats.ply import read_ply
from blender_addon.shared.gaussians import SH_C0, GaussianCloud
from tests.formats.clouds import clouds, temporary, turned_by
from tests.shared.test_gaussians import random_cloud

DATA = Path(__file__).parent / "data"


def steps(values: np.ndarray, levels: tuple[int, ...]) -> np.ndarray:
    """[N, 3] the largest error that values [N, 3] may have: half a step between the bounds of their chunk."""
    result = np.empty(values.shape)
    for start in range(0, len(values), CHUNK):
        part = values[start : start + CHUNK].astype(np.float64)
        result[start : start + CHUNK] = np.ptp(part, axis=0) / (2 * np.array(levels))
        result[start : start + CHUNK] += 3e-7 * np.abs(part).max(axis=0) + 1e-12  # float32
    return result


def assert_within_steps(again: GaussianCloud, cloud: GaussianCloud) -> None:
    levels = (2047, 1023, 2047)
    errors = np.abs(again.positions_m.astype(np.float64) - cloud.positions_m)
    assert (errors <= steps(cloud.positions_m, levels)).all()
    logs = np.clip(np.log(cloud.scales_m), -20, 20)
    assert (np.abs(np.log(again.scales_m) - logs) <= steps(logs, levels) + 1e-5).all()
    colours, again_colours = (c.sh_dc * np.float32(SH_C0) + np.float32(0.5) for c in (cloud, again))
    assert (np.abs(again_colours - colours) <= steps(colours, (255, 255, 255)) + 1e-6).all()
    np.testing.assert_allclose(again.opacities, cloud.opacities, rtol=0, atol=0.5001 / 255)
    # Three components are off by half a step of sqrt(2) / 1023; the fourth, at least 1/2, follows from them.
    assert (turned_by(again.rotations_wxyz, cloud.rotations_wxyz) < 6 * (2**0.5 / 2046) ** 2).all()
    rest = cloud.sh_rest[:, : again.sh_rest.shape[1]]
    np.testing.assert_allclose(again.sh_rest, rest, rtol=0, atol=1 / 64 + 1e-6)  # half of 8 / 256


@given(cloud=clouds())
def test_round_trip_within_half_a_step(cloud: GaussianCloud) -> None:
    with temporary("a.compressed.ply") as path:
        notes = write_compressed_ply(path, cloud, sort=False)
        again = read_compressed_ply(path).cloud
    assert_within_steps(again, cloud)
    assert again.degree == min(cloud.degree, 3)
    assert any("degree 3" in note for note in notes) == bool(cloud.sh_rest[:, 15:].any())


@pytest.mark.parametrize(("count", "degree"), [(255, 1), (256, 2), (257, 3), (5000, 3)])
def test_chunks_that_are_full_and_not(tmp_path: Path, count: int, degree: int) -> None:
    cloud = random_cloud(count, degree=degree)
    write_compressed_ply(tmp_path / "a.compressed.ply", cloud, sort=False)
    assert_within_steps(read_compressed_ply(tmp_path / "a.compressed.ply").cloud, cloud)


def test_sorting_keeps_the_gaussians_and_narrows_the_chunks(tmp_path: Path) -> None:
    cloud = random_cloud(20_000, degree=1)
    errors = []
    for sort in (False, True):
        notes = write_compressed_ply(tmp_path / "a.compressed.ply", cloud, sort=sort)
        again = read_compressed_ply(tmp_path / "a.compressed.ply").cloud
        # Opacity and colour are coarse, so the Gaussian is found again by its position.
        nearest = [int(np.linalg.norm(again.positions_m - p, axis=1).argmin()) for p in cloud.positions_m[:200]]
        found = again.select(np.array(nearest))
        errors.append(float(np.abs(found.positions_m - cloud.positions_m[:200]).mean()))
        np.testing.assert_allclose(found.opacities, cloud.opacities[:200], atol=0.5001 / 255)
        np.testing.assert_allclose(found.sh_rest, cloud.sh_rest[:200], atol=1 / 64 + 1e-6)
        assert len(set(nearest)) == 200
        assert any("order" in note for note in notes) == sort
    assert errors[1] < 0.5 * errors[0]


def test_a_file_of_another_tool_unpacks_as_that_tool_unpacks_it() -> None:
    ours = read_compressed_ply(DATA / "angel-1000.compressed.ply")
    theirs = read_ply(DATA / "angel-1000.ply").cloud
    assert ours.axes == "y_down"
    np.testing.assert_allclose(ours.cloud.positions_m, theirs.positions_m, atol=1e-6)
    np.testing.assert_allclose(ours.cloud.scales_m, theirs.scales_m, rtol=1e-5)
    np.testing.assert_allclose(ours.cloud.opacities, theirs.opacities, atol=1e-6)
    np.testing.assert_allclose(ours.cloud.sh_dc, theirs.sh_dc, atol=1e-5)
    assert (turned_by(ours.cloud.rotations_wxyz, theirs.rotations_wxyz) < 1e-6).all()


@given(values=st.lists(st.floats(-3.99, 3.99), min_size=9, max_size=9))
def test_harmonics_keep_their_channel_and_their_sign(values: list[float]) -> None:
    base = random_cloud(1, degree=0)
    rest = np.array(values, np.float32).reshape(1, 3, 3)
    cloud = GaussianCloud(base.positions_m, base.scales_m, base.rotations_wxyz, base.opacities, base.sh_dc, rest)
    with temporary("a.compressed.ply") as path:
        assert write_compressed_ply(path, cloud) == ()
        again = read_compressed_ply(path).cloud.sh_rest
    # The byte's step is 1/32 and its middle is read back; the lowest and the highest byte are read as -4 and 4.
    np.testing.assert_allclose(again, rest, rtol=0, atol=1 / 32)


def test_it_is_told_from_a_plain_ply_by_its_content(tmp_path: Path) -> None:
    path = tmp_path / "renamed.ply"
    path.write_bytes((DATA / "angel-1000.compressed.ply").read_bytes())
    assert find_reader(path).name == "compressed ply"
    with pytest.raises(FormatError, match="is a compressed PLY"):
        read_ply(path)


def test_damaged_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.compressed.ply"
    write_compressed_ply(path, random_cloud(300, degree=1))
    data = path.read_bytes()
    end = data.index(b"end_header\n") + 11
    infinite = bytearray(data)
    infinite[end : end + 4] = np.float32(np.inf).tobytes()
    cases = {
        "2599 of 2700|299 of 300 rows of sh": data[:-1],
        "0 of 300 rows of sh": data[: -300 * 9],
        "2 chunks for 600 Gaussians": data.replace(b"element vertex 300", b"element vertex 600"),
        "299 rows of sh for 300": data.replace(b"element sh 300", b"element sh 299"),
        "no element chunk": data.replace(b"element chunk", b"element block"),
        "no packed_scale": data.replace(b"uint packed_scale", b"uint parked_scale"),
        "stores packed_color as f4": data.replace(b"uint packed_color", b"float packed_color"),
        "no max_scale_z": data.replace(b"float max_scale_z", b"float mux_scale_z"),
        "no max_b": data.replace(b"float max_b", b"float mux_b"),
        "announces 4000000000": data.replace(b"vertex 300", b"vertex 4000000000"),
        "in ascii": data.replace(b"binary_little_endian", b"ascii"),
        "256 of 300 Gaussians hold values": bytes(infinite),
    }
    for message, content in cases.items():
        path.write_bytes(content)
        with pytest.raises(FormatError, match=message) as error:
            read_compressed_ply(path)
        assert "\n" not in str(error.value)


def test_a_damaged_chunk_can_be_dropped(tmp_path: Path) -> None:
    path = tmp_path / "a.compressed.ply"
    write_compressed_ply(path, random_cloud(300, degree=0), sort=False)
    whole = read_compressed_ply(path).cloud
    data = bytearray(path.read_bytes())
    end = data.index(b"end_header\n") + 11
    data[end : end + 4] = np.float32(np.nan).tobytes()
    path.write_bytes(bytes(data))
    result = read_compressed_ply(path, drop_invalid=True)
    assert result.dropped == CHUNK
    np.testing.assert_array_equal(result.cloud.positions_m, whole.positions_m[CHUNK:])
