"""The table of formats: what is found by content and by name, and axes both ways with the harmonics turned."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from blender_addon.shared.axes import BODY_TO_BLENDER, Y_DOWN_TO_BODY, rotate_cloud
from blender_addon.shared.formats import (
    SHARED_FORMATS,
    Axes,
    FormatError,
    SplatFormat,
    find_reader,
    find_writer,
    read_splats,
    write_splats,
)
from blender_addon.shared.formats.ply import read_ply, write_ply
from tests.formats.clouds import covariances
from tests.shared.test_gaussians import radiance, random_cloud, unit_directions

TURNS: dict[Axes, np.ndarray] = {"y_up": np.eye(3), "y_down": Y_DOWN_TO_BODY, "z_up": BODY_TO_BLENDER.T}
"""From the file's axes to the body frame."""

WITH_HARMONICS = [row for row in SHARED_FORMATS if row.name != "splat"]


@pytest.mark.parametrize("row", WITH_HARMONICS, ids=lambda row: row.name)
def test_a_format_holds_its_own_axes_and_comes_back_to_the_body_frame(tmp_path: Path, row: SplatFormat) -> None:
    cloud = random_cloud(200, degree=3)
    cloud.positions_m[:, 0] = np.linspace(-2, 2, 200)  # far enough apart to be sorted by it again
    path = tmp_path / f"a{row.suffixes[0]}"
    write_splats(path, cloud)
    inside = row.read(path)
    assert inside.axes == row.axes
    turned = rotate_cloud(inside.cloud, TURNS[row.axes])
    again = read_splats(path)
    assert again.axes == "y_up"
    np.testing.assert_allclose(again.cloud.positions_m, turned.positions_m, atol=1e-6)
    np.testing.assert_allclose(covariances(again.cloud), covariances(turned), atol=1e-7)
    directions = unit_directions(20)
    np.testing.assert_allclose(radiance(again.cloud, directions), radiance(turned, directions), atol=1e-5)
    # And what was written is what was read, within the coarsest format's steps, in whatever order.
    ours, theirs = (c.select(np.argsort(c.positions_m[:, 0])) for c in (cloud, again.cloud))
    np.testing.assert_allclose(theirs.positions_m, ours.positions_m, atol=0.005)
    np.testing.assert_allclose(covariances(theirs), covariances(ours), atol=1e-3)
    np.testing.assert_allclose(radiance(theirs, directions), radiance(ours, directions), atol=0.3)


@pytest.mark.parametrize("axes", TURNS)
def test_a_ply_that_says_its_axes_is_believed(tmp_path: Path, axes: Axes) -> None:
    cloud = random_cloud(20, degree=3)
    write_ply(tmp_path / "a.ply", cloud, axes=axes)
    assert read_ply(tmp_path / "a.ply").axes == axes
    again = read_splats(tmp_path / "a.ply").cloud
    expected = rotate_cloud(cloud, TURNS[axes])
    np.testing.assert_allclose(again.positions_m, expected.positions_m, atol=1e-6)
    np.testing.assert_allclose(covariances(again), covariances(expected), atol=1e-7)
    directions = unit_directions(20)
    np.testing.assert_allclose(radiance(again, directions), radiance(cloud, directions @ TURNS[axes]), atol=1e-5)


def test_a_ply_that_says_nothing_counts_as_y_down_unless_the_caller_knows_better(tmp_path: Path) -> None:
    cloud = random_cloud(20, degree=1)
    path = tmp_path / "a.ply"
    write_ply(path, cloud)
    path.write_bytes(path.read_bytes().replace(b"comment axes: y_up\n", b""))
    assumed = read_splats(path)
    np.testing.assert_array_equal(assumed.cloud.positions_m, cloud.positions_m * np.float32([1, -1, -1]))
    assert any("which way is up" in note for note in assumed.notes)
    np.testing.assert_array_equal(read_splats(path, axes="y_up").cloud.positions_m, cloud.positions_m)
    # nerfstudio's exporter says this of its Z-up world.
    path.write_bytes(path.read_bytes().replace(b"\nelement", b"\ncomment Vertical Axis: z\nelement", 1))
    turned = cloud.positions_m @ TURNS["z_up"].T.astype(np.float32)
    np.testing.assert_allclose(read_splats(path).cloud.positions_m, turned, atol=1e-6)


def test_half_a_turn_and_back_changes_no_bit(tmp_path: Path) -> None:
    cloud = random_cloud(100, degree=4)
    write_splats(tmp_path / "a.ply", cloud)
    again = read_splats(tmp_path / "a.ply").cloud
    np.testing.assert_array_equal(again.positions_m, cloud.positions_m)
    np.testing.assert_array_equal(again.sh_dc, cloud.sh_dc)
    np.testing.assert_array_equal(again.sh_rest, cloud.sh_rest)
    signs = np.sign(np.einsum("ij,ij->i", again.rotations_wxyz, cloud.rotations_wxyz))
    np.testing.assert_allclose(signs[:, None] * again.rotations_wxyz, cloud.rotations_wxyz, rtol=0, atol=1e-7)


@pytest.mark.parametrize("row", SHARED_FORMATS, ids=lambda row: row.name)
def test_content_wins_over_the_name(tmp_path: Path, row: SplatFormat) -> None:
    for suffix in row.suffixes:
        if suffix == ".gltf":  # written as .glb only
            continue
        right, wrong = tmp_path / f"a{suffix}", tmp_path / "a.unknown"
        write_splats(right, random_cloud(10, degree=0))
        assert find_reader(right).name == row.name
        assert find_writer(right)[0].name == row.name
        wrong.write_bytes(right.read_bytes())
        if row.name == "splat":  # it has no mark of its own
            with pytest.raises(FormatError, match="no splat file"):
                find_reader(wrong)
        else:
            assert find_reader(wrong).name == row.name


def test_upper_case_suffixes_and_the_longest_one(tmp_path: Path) -> None:
    assert find_writer(tmp_path / "A.PLY")[0].name == "ply"
    assert find_writer(tmp_path / "a.b.COMPRESSED.ply")[0].name == "compressed ply"


def test_what_cannot_be_written_is_refused_and_names_what_can(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"choose one of .*\.ply.*\.glb"):
        write_splats(tmp_path / "a.obj", random_cloud(1, degree=0))
    read_only = tuple(replace(row, write=None) if row.name == "splat" else row for row in SHARED_FORMATS)
    with pytest.raises(FormatError, match="only read"):
        write_splats(tmp_path / "a.splat", random_cloud(1, degree=0), formats=read_only)
    with pytest.raises(FormatError, match="no Gaussians to write"):
        write_splats(tmp_path / "a.ply", random_cloud(1, degree=0).select(np.array([], int)))
    assert list(tmp_path.iterdir()) == []


def test_errors_are_one_printable_line_whatever_the_name() -> None:
    text = str(FormatError("dir/a\nb\x1b[31m.ply", "is bad"))
    assert text.isprintable()
    assert text.startswith("a?b?[31m.ply: is bad; ")


@pytest.mark.parametrize("suffix", [".ply", ".compressed.ply", ".splat", ".glb", ".spz"])
def test_an_empty_file_and_one_byte_are_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    for content in (b"", b"p"):
        path.write_bytes(content)
        with pytest.raises(FormatError, match=f"a{suffix}: "):
            read_splats(path)
