"""Rows 20, 21, 22 and 24 of the fault matrix over all formats; row 23, SPZ's own, is in test_spz.py.

Every case is read correctly or refused in one line that names the defect, with memory bounded by the file's size.
"""

from __future__ import annotations

import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from backend.formats import FORMATS
from blender_addon.shared.formats import FormatError, ReadResult, read_splats, write_splats
from blender_addon.shared.formats.ply import read_ply, write_ply
from blender_addon.shared.gaussians import GaussianCloud
from blender_addon.shared.limits import MAX_SPLATS
from tests.shared.test_gaussians import random_cloud

FLOAT_FORMATS = (".ply", ".glb", ".splat")  # formats that store positions and scales as they are
FIELDS = ("positions_m", "scales_m", "rotations_wxyz", "opacities", "sh_dc", "sh_rest")


def read_measured(path: Path, *, drop_invalid: bool = False) -> ReadResult:
    """Read, and hold the reader to its memory: 4 times the file and 200 MB."""
    tracemalloc.start()
    try:
        return read_splats(path, formats=FORMATS, drop_invalid=drop_invalid)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 4 * path.stat().st_size + 200_000_000


def refuse(path: Path, content: bytes, words: str) -> None:
    path.write_bytes(content)
    with pytest.raises(FormatError, match=words) as caught:
        read_measured(path)
    text = str(caught.value)
    assert text.startswith(path.name + ": ") and "\n" not in text and "; " in text


# ---- row 20: PLY structure

NAMES = "x y z f_dc_0 f_dc_1 f_dc_2 opacity scale_0 scale_1 scale_2 rot_0 rot_1 rot_2 rot_3".split()
VALUES = np.random.default_rng(0).uniform(-1, 1, (3, len(NAMES))).astype(np.float32)


def header(
    count: object = 3,
    order: str = "binary_little_endian",
    names: list[str] | None = None,
    more: str = "",
    end: str = "\n",
) -> bytes:
    lines = ["ply", f"format {order} 1.0", *more.splitlines(), f"element vertex {count}"]
    lines += [f"property float {name}" for name in names or NAMES]
    return (end.join([*lines, "end_header"]) + end).encode()


def rows(kind: str = "<f4", values: np.ndarray = VALUES) -> bytes:
    return values.astype(kind).tobytes()


def text_rows(values: np.ndarray = VALUES, end: str = "\n") -> bytes:
    return "".join(" ".join(f"{v:.9g}" for v in row) + end for row in values.tolist()).encode()


@pytest.mark.parametrize("count", [2**31, 2**32, 2**63, 2**64, 10**19])
@pytest.mark.parametrize("order", ["binary_little_endian", "binary_big_endian", "ascii"])
def test_a_huge_count_in_a_hundred_bytes(tmp_path: Path, count: int, order: str) -> None:
    refuse(tmp_path / "a.ply", header(count, order) + b"0 1 2", f"announces {count} Gaussians")


@pytest.mark.parametrize("count", [MAX_SPLATS, 10_000_000, 4])
def test_a_count_within_the_limit_but_beyond_the_file(tmp_path: Path, count: int) -> None:
    refuse(tmp_path / "a.ply", header(count) + rows(), f"cut short, 3 of {count} Gaussians")


ROW_20: dict[str, tuple[bytes, str]] = {
    "negative count": (header(-1) + rows(), "negative count -1|announces -1"),
    "count is no number": (header("many") + rows(), "many"),
    "count of 400 digits": (header("9" * 400) + rows(), "count"),
    "fewer bytes than promised": (header() + rows()[:-1], "cut short, 2 of 3 Gaussians"),
    "fewer lines than promised": (header(order="ascii") + text_rows(VALUES[:2]), "cut short, 2 of 3 Gaussians"),
    "a word in a line": (header(order="ascii") + text_rows().replace(b".", b"x", 1), "not 14 numbers|a line"),
    "list property": (
        header().replace(b"property float x\n", b"property list uchar int x\n") + rows(),
        "list properties",
    ),
    "missing property": (header(names=NAMES[:6] + NAMES[7:]) + rows(), "no opacity"),
    "duplicate property": (header(names=[*NAMES, "x"]) + rows(), "a property twice .x of vertex"),
    "unknown type": (header().replace(b"float x", b"quark x") + rows(), "quark|makes no sense"),
    "10 MB header": (header(more="comment " + "x" * 10_000_000) + rows(), "header"),
    "10 MB header of lines": (header(more="comment x\n" * 1_000_000) + rows(), "header"),
    "header without end": (header()[:-11] + bytes(5000), "header"),
    "no format": (header().replace(b"format binary_little_endian 1.0\n", b"") + rows(), "format"),
    "an unknown format": (header(order="binary_middle_endian") + rows(), "format"),
    "a huge element in front": (
        header(more="element camera 9999999999999999999\nproperty float a") + rows(),
        "cut short",
    ),
    "no vertices": (b"ply\nformat ascii 1.0\nelement face 3\nproperty float x\nend_header\n", "no vertex"),
    "empty": (b"", "nothing|empty|not a PLY|no splat file"),
    "three letters": (b"ply", "not a PLY|header|no splat file"),
}


@pytest.mark.parametrize("name", ROW_20)
def test_a_damaged_ply_is_refused_with_the_defect_in_one_line(tmp_path: Path, name: str) -> None:
    content, words = ROW_20[name]
    refuse(tmp_path / "damaged.ply", content, words)


@pytest.mark.parametrize("order", ["binary_little_endian", "binary_big_endian", "ascii"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_orders_and_line_ends_are_read_the_same(tmp_path: Path, order: str, end: str) -> None:
    data = {"ascii": text_rows(end=end), "binary_little_endian": rows(), "binary_big_endian": rows(">f4")}[order]
    (tmp_path / "a.ply").write_bytes(header(order=order, end=end) + data)
    cloud = read_measured(tmp_path / "a.ply").cloud
    np.testing.assert_allclose(cloud.positions_m, VALUES[:, :3] * [1, -1, -1], rtol=1e-6)
    np.testing.assert_allclose(np.log(cloud.scales_m), VALUES[:, 7:10], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("order", ["binary_little_endian", "ascii"])
def test_trailing_data_is_ignored_and_noted(tmp_path: Path, order: str) -> None:
    data = rows() if order != "ascii" else text_rows()
    (tmp_path / "a.ply").write_bytes(header(order=order) + data + b"1 2 3 and more")
    result = read_measured(tmp_path / "a.ply")
    assert len(result.cloud) == 3
    if order != "ascii":
        assert any("14 bytes" in note for note in result.notes), result.notes


# ---- row 21: f_rest of 7, 12, 51, 75


@pytest.mark.parametrize(("count", "kept"), [(7, 0), (12, 3), (51, 15), (75, 0)])
def test_an_odd_number_of_higher_coefficients_warns_and_keeps_the_channels_apart(
    tmp_path: Path, count: int, kept: int
) -> None:
    """As in Blender: not divisible by 3 or above degree 4 is left out. Each value says its channel and its place."""
    per_channel = count // 3
    rest = np.array([[100 * (k // per_channel) + k % per_channel for k in range(count)]] * 3, np.float32) / 1000
    names = [*NAMES, *(f"f_rest_{k}" for k in range(count))]
    (tmp_path / "a.ply").write_bytes(header(names=names) + rows(values=np.hstack([VALUES, rest])))
    result = read_ply(tmp_path / "a.ply")
    assert result.cloud.sh_rest.shape == (3, kept, 3)
    assert any(f"{count} f_rest" in note for note in result.notes), result.notes
    want = np.array([[[100 * c + k for c in range(3)] for k in range(kept)]] * 3, np.float32).reshape(3, kept, 3) / 1000
    np.testing.assert_allclose(result.cloud.sh_rest, want, rtol=1e-6)


# ---- row 22: values that no Gaussian has


def spoil(data: bytes, field: str, index: int, before: np.ndarray, after: np.ndarray) -> bytes:
    """Replace a Gaussian's stored floats, found by their bytes."""
    old, new = before.astype("<f4").tobytes(), np.broadcast_to(after, before.shape).astype("<f4").tobytes()
    assert data.count(old) == 1, f"{field} of Gaussian {index} is not there once"
    return data.replace(old, new)


def spoiled_file(folder: Path, suffix: str, field: str, value: float) -> tuple[Path, GaussianCloud]:
    """A file of 20 Gaussians of which number 7 has a bad value, and the cloud as it was."""
    path = folder / ("a" + suffix)
    write_splats(path, random_cloud(20, 0), formats=FORMATS)
    row = next(row for row in FORMATS if suffix in row.suffixes)
    stored = row.read(path).cloud
    before = getattr(stored, field)[7]
    if suffix == ".ply" and field == "scales_m":
        floats = np.frombuffer(path.read_bytes()[-20 * 68 :], "<f4").reshape(20, 17)
        before = floats[7, 10:13]
        with np.errstate(divide="ignore", invalid="ignore"):
            value = float(np.log(value))
    if suffix == ".glb" and field == "rotations_wxyz":
        before = np.roll(before, -1)
    path.write_bytes(spoil(path.read_bytes(), field, 7, before, np.float32(value)))
    return path, read_splats_before(folder, suffix)


def read_splats_before(folder: Path, suffix: str) -> GaussianCloud:
    path = folder / ("good" + suffix)
    write_splats(path, random_cloud(20, 0), formats=FORMATS)
    return read_splats(path, formats=FORMATS).cloud


BAD = [
    ("positions_m", float("nan")),
    ("positions_m", float("inf")),
    ("positions_m", float("-inf")),
    ("scales_m", 0.0),
    ("scales_m", float("inf")),
    ("scales_m", float("nan")),
    ("rotations_wxyz", 0.0),
    ("rotations_wxyz", float("nan")),
]


@pytest.mark.parametrize(("field", "value"), BAD)
@pytest.mark.parametrize("suffix", FLOAT_FORMATS)
def test_a_bad_value_is_counted_and_the_rest_stays_as_it_was(
    tmp_path: Path, suffix: str, field: str, value: float
) -> None:
    if suffix == ".splat" and field == "rotations_wxyz":
        pytest.skip(".splat stores rotations as bytes; see the test of the zero quaternion below")
    path, before = spoiled_file(tmp_path, suffix, field, value)
    with pytest.raises(FormatError, match="1 of 20 Gaussians hold values that are not finite or that no Gaussian has"):
        read_splats(path, formats=FORMATS)
    result = read_measured(path, drop_invalid=True)
    assert result.dropped == 1 and any(note.startswith("1 damaged Gaussians") for note in result.notes)
    rest = before.select(np.arange(20) != 7)
    for name in FIELDS:
        np.testing.assert_array_equal(getattr(result.cloud, name), getattr(rest, name), name)


def test_a_zero_quaternion_of_bytes_is_damage(tmp_path: Path) -> None:
    path = tmp_path / "a.splat"
    write_splats(path, random_cloud(20, 0))
    data = bytearray(path.read_bytes())
    data[7 * 32 + 28 : 8 * 32] = bytes([128] * 4)
    path.write_bytes(data)
    with pytest.raises(FormatError, match="1 of 20"):
        read_splats(path)
    assert read_splats(path, drop_invalid=True).dropped == 1


@pytest.mark.parametrize(("logit", "opacity"), [(float("inf"), 1.0), (float("-inf"), 0.0), (1e30, 1.0), (-1e30, 0.0)])
def test_an_infinite_logit_is_full_or_no_opacity(tmp_path: Path, logit: float, opacity: float) -> None:
    values = VALUES.copy()
    values[1, 6] = logit
    (tmp_path / "a.ply").write_bytes(header() + rows(values=values))
    result = read_measured(tmp_path / "a.ply")
    assert (len(result.cloud), result.dropped) == (3, 0)
    assert result.cloud.opacities[1] == opacity


def test_a_logit_that_is_no_number_is_damage(tmp_path: Path) -> None:
    values = VALUES.copy()
    values[1, 6] = np.nan
    (tmp_path / "a.ply").write_bytes(header() + rows(values=values))
    with pytest.raises(FormatError, match="1 of 3"):
        read_splats(tmp_path / "a.ply")
    assert read_splats(tmp_path / "a.ply", drop_invalid=True).dropped == 1


def replaced(cloud: GaussianCloud, **fields: np.ndarray) -> GaussianCloud:
    return GaussianCloud(*(fields.get(name, getattr(cloud, name)) for name in FIELDS))


@pytest.mark.parametrize("suffix", [".ply", ".compressed.ply", ".glb", ".splat", ".spz"])
def test_an_invisible_cloud_and_a_far_floater_are_read_as_they_are(tmp_path: Path, suffix: str) -> None:
    cloud = random_cloud(20, 0)
    path = tmp_path / ("a" + suffix)
    write_splats(path, replaced(cloud, opacities=np.zeros(20)), formats=FORMATS)
    assert read_measured(path).cloud.opacities.max() < 1e-5
    positions = cloud.positions_m.copy()
    positions[3] = [1000.0, -2000.0, 500.0]
    write_splats(path, replaced(cloud, positions_m=positions), formats=FORMATS)
    got = read_measured(path).cloud.positions_m
    np.testing.assert_allclose(got[np.abs(got).max(axis=1).argmax()], positions[3], rtol=2e-3)


@pytest.mark.parametrize("suffix", FLOAT_FORMATS)
def test_nothing_but_damage_is_refused_even_if_it_may_be_dropped(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / ("a" + suffix)
    write_splats(path, random_cloud(1, 0), formats=FORMATS)
    row = next(row for row in FORMATS if suffix in row.suffixes)
    before = row.read(path).cloud.positions_m[0]
    path.write_bytes(spoil(path.read_bytes(), "positions_m", 0, before, np.float32(np.nan)))
    with pytest.raises(FormatError, match="all 1 Gaussians hold"):
        read_splats(path, formats=FORMATS, drop_invalid=True)


# ---- row 24: none, one, and very many


@pytest.mark.parametrize("suffix", [".ply", ".compressed.ply", ".glb", ".splat", ".spz"])
def test_none_is_refused_and_one_is_read(tmp_path: Path, suffix: str) -> None:
    one = random_cloud(1, 0)
    with pytest.raises(FormatError, match="no Gaussians to write"):
        write_splats(tmp_path / ("none" + suffix), one.select(np.zeros(0, int)), formats=FORMATS)
    assert list(tmp_path.iterdir()) == []
    write_splats(tmp_path / ("one" + suffix), one, formats=FORMATS)
    assert len(read_measured(tmp_path / ("one" + suffix)).cloud) == 1


EMPTY: dict[str, Callable[[], bytes]] = {
    "none.ply": lambda: header(0),
    "none.splat": lambda: b"",
    "none.glb": lambda: b"glTF" + struct.pack("<II", 2, 12),
}


@pytest.mark.parametrize("name", EMPTY)
def test_a_file_without_gaussians_is_refused_with_a_text(tmp_path: Path, name: str) -> None:
    refuse(tmp_path / name, EMPTY[name](), "holds no Gaussians|no primitive|JSON|no splat|is empty|cut short")


@pytest.mark.parametrize("suffix", [".ply", ".splat", ".spz"])
def test_many_gaussians_take_bounded_memory(tmp_path: Path, suffix: str) -> None:
    """A million of degree 0, as large as a test may be; the bound grows with the file, so ten million keep it too."""
    rng = np.random.default_rng(0)
    count = 1_000_000
    cloud = random_cloud(1, 0).select(np.zeros(count, int))
    cloud = replaced(cloud, positions_m=rng.normal(size=(count, 3)).astype(np.float32))
    path = tmp_path / ("many" + suffix)
    if suffix == ".ply":
        write_ply(path, cloud)
    else:
        write_splats(path, cloud, formats=FORMATS)
    assert len(read_measured(path).cloud) == count
