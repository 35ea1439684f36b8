"""Writing SOG: what is written is read again within its steps, by our reader and by plain Pillow."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from PIL import Image

from backend.formats import FORMATS
from backend.formats.sog import read_sog
from backend.formats.sog_write import write_sog
from blender_addon.shared.formats import FormatError, read_splats, write_splats
from blender_addon.shared.formats.ply import write_ply
from blender_addon.shared.gaussians import SH_REST_COUNTS, GaussianCloud
from tests.formats.clouds import clouds, temporary, turned_by
from tests.shared.test_gaussians import radiance, random_cloud, unit_directions

STATUE = Path(__file__).parent / "data" / "massa.sog"


def by_place(cloud: GaussianCloud) -> GaussianCloud:
    """In the order of x, which the caller keeps apart."""
    return cloud.select(np.argsort(cloud.positions_m[:, 0], kind="stable"))


@pytest.mark.parametrize("degree", range(4))
@pytest.mark.parametrize("count", [1, 2, 64, 65, 2000])
def test_a_cloud_comes_back_within_its_steps(tmp_path: Path, count: int, degree: int) -> None:
    cloud = random_cloud(count, degree)
    cloud.positions_m[:, 0] = np.linspace(-3, 3, count)
    lost = write_sog(tmp_path / "a.sog", cloud)
    back = by_place(read_sog(tmp_path / "a.sog").cloud)
    assert len(back) == count and back.degree == (degree if cloud.sh_rest.any() else 0)
    step = np.log1p(np.abs(cloud.positions_m)).max() * 2 / 65535
    np.testing.assert_allclose(back.positions_m, cloud.positions_m, atol=1.01 * step * 4)
    for got, true in ((np.log(back.scales_m), np.log(cloud.scales_m)), (back.sh_dc, cloud.sh_dc)):
        # A codebook that fits the values does better than as many equal steps.
        equal_steps = float(np.ptp(true)) / 255 / np.sqrt(12)
        assert np.sqrt(np.mean((got - true) ** 2)) < equal_steps + 1e-6
        assert np.abs(got - true).max() < 8 * float(np.ptp(true)) / 255 + 1e-6
    np.testing.assert_allclose(back.opacities, cloud.opacities, atol=0.501 / 255)
    assert turned_by(back.rotations_wxyz, cloud.rotations_wxyz).max() < 1e-4
    if degree:
        # A palette as large as the cloud holds every row; only its codebook rounds.
        assert np.sqrt(np.mean((back.sh_rest - cloud.sh_rest) ** 2)) < float(np.ptp(cloud.sh_rest)) / 255
        assert any("kinds" in line for line in lost)


@settings(max_examples=40, deadline=None)
@given(clouds(max_degree=4))
def test_extreme_values_are_written(cloud: GaussianCloud) -> None:
    with temporary("a.sog") as path:
        write_sog(path, cloud)
        assert len(read_sog(path).cloud) == len(cloud)


def test_many_kinds_of_harmonics_become_few_that_look_alike(tmp_path: Path) -> None:
    """More Gaussians than the palette has entries: harmonics of a few hundred kinds, with a little noise, keep."""
    rng = np.random.default_rng(0)
    cloud = random_cloud(6000, 3)
    kinds = rng.normal(0, 0.5, (300, SH_REST_COUNTS[3], 3))
    noisy = kinds[rng.integers(0, 300, 6000)] + rng.normal(0, 0.01, (6000, SH_REST_COUNTS[3], 3))
    positions = np.array(cloud.positions_m)
    positions[:, 0] = np.linspace(-3, 3, 6000)
    cloud = GaussianCloud(positions, cloud.scales_m, cloud.rotations_wxyz, cloud.opacities, cloud.sh_dc, noisy)
    write_sog(tmp_path / "a.sog", cloud)
    back = by_place(read_sog(tmp_path / "a.sog").cloud)
    assert np.sqrt(np.mean((back.sh_rest - noisy) ** 2)) < 0.02
    directions = unit_directions(20)
    assert np.abs(radiance(back, directions) - radiance(cloud, directions)).mean() < 0.02


def test_pictures_are_lossless_and_named_by_the_meta(tmp_path: Path) -> None:
    write_sog(tmp_path / "a.sog", random_cloud(100, 1))
    with zipfile.ZipFile(tmp_path / "a.sog") as archive:
        meta = json.loads(archive.read("meta.json"))
        named = {name for part in meta.values() if isinstance(part, dict) for name in part.get("files", ())}
        assert named | {"meta.json"} == set(archive.namelist())
        assert meta["version"] == 2 and meta["count"] == 100 and meta["shN"]["bands"] == 1
        for name in named:
            assert archive.read(name)[12:16] in (b"VP8L", b"VP8X")
            with Image.open(io.BytesIO(archive.read(name))) as picture:
                assert picture.width % 4 == 0 or "centroids" in name


def test_the_same_cloud_gives_the_same_pictures(tmp_path: Path) -> None:
    for name in "ab":
        write_sog(tmp_path / f"{name}.sog", random_cloud(5000, 2))
    parts = []
    for name in "ab":
        with zipfile.ZipFile(tmp_path / f"{name}.sog") as archive:
            parts.append({n: archive.read(n) for n in archive.namelist()})
    assert parts[0] == parts[1]


def test_the_table_writes_it_turned_and_small(tmp_path: Path) -> None:
    cloud = read_splats(STATUE, formats=FORMATS).cloud
    write_splats(tmp_path / "a.sog", cloud, formats=FORMATS)
    write_ply(tmp_path / "a.ply", cloud)
    again = read_splats(tmp_path / "a.sog", formats=FORMATS).cloud
    np.testing.assert_allclose(np.median(again.positions_m, axis=0), np.median(cloud.positions_m, axis=0), atol=1e-3)
    assert (tmp_path / "a.sog").stat().st_size < (tmp_path / "a.ply").stat().st_size / 5
    write_splats(tmp_path / "meta.json", cloud, formats=FORMATS)
    unpacked = read_splats(tmp_path / "meta.json", formats=FORMATS).cloud
    np.testing.assert_array_equal(unpacked.positions_m, again.positions_m)
    with pytest.raises(FormatError, match="no Gaussians"):
        write_sog(tmp_path / "none.sog", cloud.select(np.zeros(0, int)))
    assert not (tmp_path / "none.sog").exists()
