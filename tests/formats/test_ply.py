"""INRIA PLY: round trips, foreign layouts, and damaged files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given

from blender_addon.shared import limits
from blender_addon.shared.formats import FormatError, common
from blender_addon.shared.formats.ply import read_ply, write_ply
from blender_addon.shared.gaussians import GaussianCloud
from tests.formats.clouds import clouds, temporary
from tests.shared.test_gaussians import random_cloud


def assert_same(a: GaussianCloud, b: GaussianCloud) -> None:
    np.testing.assert_array_equal(a.positions_m, b.positions_m)
    np.testing.assert_array_equal(a.sh_dc, b.sh_dc)
    np.testing.assert_array_equal(a.sh_rest, b.sh_rest)
    np.testing.assert_allclose(a.scales_m, b.scales_m, rtol=1e-6)
    np.testing.assert_allclose(a.opacities, b.opacities, atol=1e-6)
    np.testing.assert_allclose(a.rotations_wxyz, b.rotations_wxyz, atol=1e-6)


@pytest.mark.parametrize("degree", [0, 1, 2, 3, 4])
def test_round_trip(tmp_path: Path, degree: int) -> None:
    cloud = random_cloud(degree=degree)
    write_ply(tmp_path / "a.ply", cloud)
    assert_same(read_ply(tmp_path / "a.ply").cloud, cloud)
    assert [p.name for p in tmp_path.iterdir()] == ["a.ply"]


@given(cloud=clouds())
def test_what_is_stored_as_it_is_comes_back_bit_for_bit_and_the_rest_to_float32(cloud: GaussianCloud) -> None:
    with temporary("a.ply") as path:
        assert write_ply(path, cloud) == ()
        again = read_ply(path).cloud
    np.testing.assert_array_equal(again.positions_m, cloud.positions_m)
    np.testing.assert_array_equal(again.sh_dc, cloud.sh_dc)
    np.testing.assert_array_equal(again.sh_rest, cloud.sh_rest)
    # The logarithm is rounded to float32, so its exponential is off by |log| times half a step, and two roundings.
    logs = np.abs(np.log(cloud.scales_m.astype(np.float64)))
    error = np.abs(again.scales_m.astype(np.float64) / cloud.scales_m - 1)
    assert (error <= (logs + 4) * 2.0**-23).all()
    np.testing.assert_allclose(again.opacities, cloud.opacities, rtol=0, atol=2.0**-20)
    np.testing.assert_array_equal(again.opacities[cloud.opacities == 1], 1)
    np.testing.assert_array_equal(again.opacities[cloud.opacities == 0], 0)
    np.testing.assert_allclose(again.rotations_wxyz, cloud.rotations_wxyz, rtol=0, atol=2e-7)


@pytest.mark.parametrize("count", [2113, 2114, 2115, 50_000])
def test_blocks_and_threads_lose_no_row(tmp_path: Path, count: int) -> None:
    cloud = random_cloud(count, degree=3)
    write_ply(tmp_path / "a.ply", cloud)
    assert_same(read_ply(tmp_path / "a.ply").cloud, cloud)


def test_an_empty_cloud_can_be_written_and_says_on_reading_that_it_is_empty(tmp_path: Path) -> None:
    write_ply(tmp_path / "a.ply", random_cloud(3, degree=1).select(np.array([], int)))
    with pytest.raises(FormatError, match="holds no Gaussians"):
        read_ply(tmp_path / "a.ply")


def test_padded_to_degree_3_a_gaussian_has_62_floats(tmp_path: Path) -> None:
    cloud = random_cloud(count=7, degree=0)
    write_ply(tmp_path / "a.ply", cloud, degree=3)
    data = (tmp_path / "a.ply").read_bytes()
    header = data[: data.index(b"end_header\n") + 11]
    assert header.count(b"property float") == 62
    assert len(data) - len(header) == 7 * 62 * 4
    again = read_ply(tmp_path / "a.ply").cloud
    assert again.degree == 3
    assert not again.sh_rest.any()


def test_full_and_zero_opacity_survive(tmp_path: Path) -> None:
    cloud = random_cloud(count=2, degree=0)
    cloud = GaussianCloud(
        cloud.positions_m, cloud.scales_m, cloud.rotations_wxyz, np.array([1.0, 0.0]), cloud.sh_dc, cloud.sh_rest
    )
    write_ply(tmp_path / "a.ply", cloud)
    opacities = read_ply(tmp_path / "a.ply").cloud.opacities
    assert opacities[0] == 1
    assert opacities[1] < 1e-5


def shuffled(path: Path, order: str, names: list[str], columns: np.ndarray, before: bytes = b"") -> None:
    """A PLY of another tool: properties in any order, an extra one, another element in front."""
    kind = {"<": "binary_little_endian", ">": "binary_big_endian", "": "ascii"}[order]
    lines = ["ply", f"format {kind} 1.0", "comment made by another tool"]
    if before:
        lines += ["element chunk 2", "property uchar a"]
    lines += [f"element vertex {len(columns)}"] + [f"property float {n}" for n in names] + ["end_header", ""]
    if order:
        body = before + columns.astype(order + "f4").tobytes()
    else:
        body = b"7\n9\n" if before else b""
        body += "\n".join(" ".join(repr(float(v)) for v in row) for row in columns.astype(np.float32)).encode()
    path.write_bytes("\n".join(lines).encode() + body)


@pytest.mark.parametrize("order", ["<", ">", ""])
def test_any_order_of_properties_extra_ones_and_both_byte_orders(tmp_path: Path, order: str) -> None:
    cloud = random_cloud(count=11, degree=1)
    logit = np.log(cloud.opacities / (1 - cloud.opacities))
    columns = {f"f_rest_{k}": v for k, v in enumerate(cloud.sh_rest.transpose(2, 1, 0).reshape(9, -1))}
    columns |= {f"rot_{k}": 3 * cloud.rotations_wxyz[:, k] for k in range(4)}  # trained files are not normalised
    columns |= {"extra": np.arange(11.0), "opacity": logit, "z": cloud.positions_m[:, 2], "x": cloud.positions_m[:, 0]}
    columns |= {f"scale_{k}": np.log(cloud.scales_m[:, k]) for k in range(3)}
    columns |= {f"f_dc_{k}": cloud.sh_dc[:, k] for k in range(3)} | {"y": cloud.positions_m[:, 1]}
    shuffled(tmp_path / "a.ply", order, list(columns), np.stack(list(columns.values()), axis=1), b"\x07\x09")
    assert_same(read_ply(tmp_path / "a.ply").cloud, cloud)


def test_doubles_crlf_comments_and_other_elements(tmp_path: Path) -> None:
    cloud = random_cloud(count=5, degree=0)
    names = ["x", "y", "z", "f_dc_0", "f_dc_1", "f_dc_2", "opacity", *(f"scale_{k}" for k in range(3))]
    names += [f"rot_{k}" for k in range(4)]
    logit = np.log(cloud.opacities / (1 - cloud.opacities.astype(np.float64)))
    columns = [cloud.positions_m, cloud.sh_dc, logit[:, None], np.log(cloud.scales_m), cloud.rotations_wxyz]
    lines = ["ply", "format binary_little_endian 1.0", "comment", "comment a  b", "obj_info nothing"]
    lines += ["element camera 3", "property short id", "element vertex 5", *(f"property double {n}" for n in names)]
    lines += ["property int label", "element face 1", "property list uchar int vertex_indices", "end_header", ""]
    rows = np.empty(5, [("values", "<f8", len(names)), ("label", "<i4")])
    rows["values"], rows["label"] = np.concatenate(columns, axis=1), 7
    content = "\r\n".join(lines).encode() + bytes(6) + rows.tobytes() + b"\x03" + bytes(12)
    (tmp_path / "a.ply").write_bytes(content)
    result = read_ply(tmp_path / "a.ply")
    assert_same(result.cloud, cloud)
    notes = " ".join(result.notes)
    assert "label" in notes
    assert "camera" in notes
    assert "face" in notes


def with_rest(path: Path, count: int) -> np.ndarray:
    """A PLY with `count` f_rest properties after the others; returns them [5, count]."""
    base = random_cloud(count=5, degree=0)
    write_ply(path, base)
    data = path.read_bytes()
    end = data.index(b"end_header\n") + 11
    rest = np.random.default_rng(1).normal(size=(5, count)).astype("<f4")
    table = np.concatenate([np.frombuffer(data[end:], "<f4").reshape(5, 17), rest], axis=1)
    lines = "".join(f"property float f_rest_{k}\n" for k in range(count)).encode()
    path.write_bytes(data[:end].replace(b"end_header", lines + b"end_header") + table.tobytes())
    return rest


@pytest.mark.parametrize(("count", "kept"), [(7, 0), (12, 3), (51, 15), (75, 0), (9, 3), (72, 24)])
def test_odd_numbers_of_coefficients_keep_whole_bands_in_the_right_channels(
    tmp_path: Path, count: int, kept: int
) -> None:
    rest = with_rest(tmp_path / "a.ply", count)
    result = read_ply(tmp_path / "a.ply")
    assert result.cloud.sh_rest.shape == (5, kept, 3)
    if kept:
        channels = rest.reshape(5, 3, count // 3)[:, :, :kept]  # channel-major in the file
        np.testing.assert_array_equal(result.cloud.sh_rest, channels.transpose(0, 2, 1))
    said = any(f"{count} f_rest" in note for note in result.notes)
    assert said == (3 * kept != count)


def test_a_missing_coefficient_is_named(tmp_path: Path) -> None:
    with_rest(tmp_path / "a.ply", 9)
    data = (tmp_path / "a.ply").read_bytes()
    (tmp_path / "a.ply").write_bytes(data.replace(b"float f_rest_4\n", b"float f_rest_9\n"))
    with pytest.raises(FormatError, match="no f_rest_4"):
        read_ply(tmp_path / "a.ply")


def spoil(path: Path, column: int, row: int, value: float) -> None:
    """Overwrite one float of a file that `write_ply` made of a cloud of degree 0."""
    data = bytearray(path.read_bytes())
    end = data.index(b"end_header\n") + 11
    offset = end + 4 * (17 * row + column)
    data[offset : offset + 4] = np.float32(value).tobytes()
    path.write_bytes(bytes(data))


@pytest.mark.parametrize(
    ("column", "value"),
    [(0, np.nan), (2, np.inf), (6, -np.inf), (9, np.nan), (10, -np.inf), (11, np.inf), (12, 100.0), (13, np.nan)],
)
def test_damaged_rows_are_refused_or_dropped_and_counted_and_the_rest_stays(
    tmp_path: Path, column: int, value: float
) -> None:
    cloud = random_cloud(count=9, degree=0)
    write_ply(tmp_path / "a.ply", cloud)
    for row in (2, 7):
        spoil(tmp_path / "a.ply", column, row, value)
    with pytest.raises(FormatError, match="2 of 9 Gaussians hold values"):
        read_ply(tmp_path / "a.ply")
    result = read_ply(tmp_path / "a.ply", drop_invalid=True)
    assert result.dropped == 2
    assert any("2 damaged" in note for note in result.notes)
    assert_same(result.cloud, cloud.select(np.delete(np.arange(9), [2, 7])))


def test_a_zero_quaternion_is_damage_and_an_infinite_opacity_is_not(tmp_path: Path) -> None:
    cloud = random_cloud(count=9, degree=0)
    write_ply(tmp_path / "a.ply", cloud)
    for column in range(13, 17):
        spoil(tmp_path / "a.ply", column, 4, 0.0)
    spoil(tmp_path / "a.ply", 9, 0, np.inf)
    spoil(tmp_path / "a.ply", 9, 1, -np.inf)
    result = read_ply(tmp_path / "a.ply", drop_invalid=True)
    assert result.dropped == 1
    assert result.cloud.opacities[0] == 1
    assert result.cloud.opacities[1] == 0
    np.testing.assert_array_equal(result.cloud.positions_m, np.delete(cloud.positions_m, 4, axis=0))


def test_normals_and_unused_columns_may_hold_anything(tmp_path: Path) -> None:
    cloud = random_cloud(count=9, degree=0)
    write_ply(tmp_path / "a.ply", cloud)
    spoil(tmp_path / "a.ply", 3, 4, np.nan)
    assert_same(read_ply(tmp_path / "a.ply").cloud, cloud)


def test_nothing_but_damage_is_refused_even_when_damage_may_be_dropped(tmp_path: Path) -> None:
    write_ply(tmp_path / "a.ply", random_cloud(count=3, degree=0))
    for row in range(3):
        spoil(tmp_path / "a.ply", 0, row, np.nan)
    with pytest.raises(FormatError, match="all 3 Gaussians"):
        read_ply(tmp_path / "a.ply", drop_invalid=True)


def test_damaged_files_are_named_in_one_line(tmp_path: Path) -> None:
    cloud = random_cloud(degree=0)
    good = tmp_path / "good.ply"
    write_ply(good, cloud)
    data = good.read_bytes()
    end = data.index(b"end_header\n") + 11
    small = data[:end].replace(b"element vertex 50", b"element vertex %d") + bytes(100)
    cases = {
        "not a PLY": b"hello, I am a text file",
        "49 of 50 Gaussians": data[:-5],
        "header has no end": data[: end - 5],
        "no end within 64 KiB": data[: end - 11] + b"comment 0123456789abcdef\n" * 400_000,
        "announces 4000000000000 ": data.replace(b"element vertex 50", b"element vertex 4000000000000"),
        "announces 2147483648 ": small % 2**31,
        "announces 9223372036854775808 ": small % 2**63,
        "1 of 40000000 Gaussians": small % 40_000_000,
        "negative count": small % -5,
        "holds no Gaussians": small % 0,
        "'1e3', which is no count": small.replace(b"%d", b"1e3"),
        "no known format": data.replace(b"binary_little_endian", b"binary_middle_endian"),
        "makes no sense": data.replace(b"property float nx", b"property quark nx"),
        "property twice": data.replace(b"property float ny", b"property float nx"),
        "element vertex twice": data.replace(b"end_header", b"element vertex 50\nend_header"),
        "list properties": data.replace(b"property float ny", b"property list uchar int ny"),
        "no opacity": data.replace(b"property float opacity", b"property float opaqueness"),
        "no rotation": data.replace(b"property float rot_3", b"property float rot_4"),
        "not finite": data[:end] + np.full(50 * 17, np.nan, "<f4").tobytes(),
        "no vertex": data.replace(b"element vertex", b"element corner"),
    }
    for message, content in cases.items():
        bad = tmp_path / "bad.ply"
        bad.write_bytes(content)
        with pytest.raises(FormatError, match=message) as error:
            read_ply(bad)
        assert "\n" not in str(error.value)
        assert "bad.ply" in str(error.value)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"1 2 3\n", "cut short, 0 of 2"),
        (b"0 " * 16 + b"0\n", "cut short, 1 of 2"),
        ((b"0.5 " * 15 + b"0\n") * 2, "16 numbers a line, the header says 17"),
        (b"0 " * 16 + b"zero\n" + b"0 " * 17 + b"\n", "not 17 numbers"),
        (b"0" * 70_000 + b"\n" + b"0 " * 17 + b"\n", "more than 64 KiB"),
    ],
)
def test_damaged_ascii_is_named(tmp_path: Path, body: bytes, message: str) -> None:
    write_ply(tmp_path / "a.ply", random_cloud(count=2, degree=0))
    data = (tmp_path / "a.ply").read_bytes()
    header = data[: data.index(b"end_header\n") + 11].replace(b"binary_little_endian", b"ascii")
    (tmp_path / "a.ply").write_bytes(header + body)
    with pytest.raises(FormatError, match=message):
        read_ply(tmp_path / "a.ply")


def test_bytes_after_the_last_gaussian_are_ignored_and_said(tmp_path: Path) -> None:
    cloud = random_cloud(count=3, degree=0)
    write_ply(tmp_path / "a.ply", cloud)
    with (tmp_path / "a.ply").open("ab") as file:
        file.write(b"tail")
    result = read_ply(tmp_path / "a.ply")
    assert_same(result.cloud, cloud)
    assert any("4 bytes after" in note for note in result.notes)


def test_the_limit_of_gaussians_holds_before_anything_is_allocated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_ply(tmp_path / "a.ply", random_cloud(count=11, degree=0))
    monkeypatch.setattr(common, "MAX_SPLATS", 10)
    with pytest.raises(FormatError, match="more than 10"):
        read_ply(tmp_path / "a.ply")
    assert limits.MAX_SPLATS >= 10_000_000


@pytest.mark.parametrize("name", ["test-splat.3-points-from-train.ply", "angel-1000.ply"])
def test_files_of_other_tools_agree_with_plain_formulas(name: str) -> None:
    path = Path(__file__).parent / "data" / name
    data = path.read_bytes()
    end = data.index(b"end_header\n") + 11
    names = [line.split()[2] for line in data[:end].decode().splitlines() if line.startswith("property")]
    table = np.frombuffer(data[end:], "<f4").reshape(-1, len(names)).astype(np.float64)
    column = dict(zip(names, table.T, strict=True))
    result = read_ply(path)
    cloud = result.cloud
    assert result.axes == "y_down"
    np.testing.assert_array_equal(cloud.positions_m.T, [column[n] for n in "xyz"])
    np.testing.assert_allclose(cloud.scales_m.T, np.exp([column[f"scale_{k}"] for k in range(3)]), rtol=1e-5)
    np.testing.assert_allclose(cloud.opacities, 1 / (1 + np.exp(-column["opacity"])), atol=1e-6)
    quaternions = np.array([column[f"rot_{k}"] for k in range(4)])
    np.testing.assert_allclose(cloud.rotations_wxyz.T, quaternions / np.linalg.norm(quaternions, axis=0), atol=1e-6)
    np.testing.assert_array_equal(cloud.sh_dc.T, [column[f"f_dc_{k}"] for k in range(3)])
    for k in range(cloud.sh_rest.shape[1]):
        for c in range(3):
            np.testing.assert_array_equal(cloud.sh_rest[:, k, c], column[f"f_rest_{15 * c + k}"])
    assert (cloud.opacities[np.isposinf(column["opacity"])] == 1).all()


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    cloud = random_cloud(degree=3)
    write_ply(tmp_path / "a.ply", cloud)
    before = (tmp_path / "a.ply").read_bytes()
    with pytest.raises(ValueError, match="does not fit"):
        write_ply(tmp_path / "a.ply", cloud, degree=1)
    assert (tmp_path / "a.ply").read_bytes() == before
