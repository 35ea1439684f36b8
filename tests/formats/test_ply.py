"""INRIA PLY: round trips, foreign layouts, and damaged files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from blender_addon.shared.formats import FormatError
from blender_addon.shared.formats.ply import read_ply, write_ply
from blender_addon.shared.gaussians import GaussianCloud
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


def test_damaged_files_are_named_in_one_line(tmp_path: Path) -> None:
    cloud = random_cloud(degree=0)
    good = tmp_path / "good.ply"
    write_ply(good, cloud)
    data = good.read_bytes()
    end = data.index(b"end_header\n") + 11
    cases = {
        "not a PLY": b"hello, I am a text file",
        "cut short": data[:-5],
        "header has no end": data[: end - 5],
        "announces": data.replace(b"element vertex 50", b"element vertex 4000000000000"),
        "no known format": data.replace(b"binary_little_endian", b"binary_middle_endian"),
        "makes no sense": data.replace(b"property float nx", b"property quark nx"),
        "property twice": data.replace(b"property float ny", b"property float nx"),
        "no opacity": data.replace(b"property float opacity", b"property float opaqueness"),
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


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    cloud = random_cloud(degree=3)
    write_ply(tmp_path / "a.ply", cloud)
    before = (tmp_path / "a.ply").read_bytes()
    with pytest.raises(ValueError, match="does not fit"):
        write_ply(tmp_path / "a.ply", cloud, degree=1)
    assert (tmp_path / "a.ply").read_bytes() == before
