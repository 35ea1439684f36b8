"""SOG: what an independent encoder wrote comes back, a real file opens, and damage is named."""

from __future__ import annotations

import json
import struct
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings

from backend.formats import FORMATS
from backend.formats.sog import read_sog
from blender_addon.shared.formats import FormatError, read_splats
from blender_addon.shared.gaussians import GaussianCloud
from tests.formats.clouds import clouds, turned_by
from tests.formats.sog_oracle import archive, sog, webp
from tests.shared.test_gaussians import random_cloud

DATA = Path(__file__).parent / "data"


def assert_near(got: GaussianCloud, cloud: GaussianCloud, version: int) -> None:
    """Within half a step of the tables, which span the cloud's own values."""

    def logs(x: np.ndarray) -> np.ndarray:
        return np.sign(x) * np.log1p(np.abs(x.astype(np.float64)))

    def half(values: np.ndarray, steps: int) -> float:
        return 0.51 * float(np.ptp(values)) / steps + 1e-5

    np.testing.assert_allclose(
        logs(got.positions_m), logs(cloud.positions_m), atol=half(logs(cloud.positions_m), 65535)
    )
    np.testing.assert_allclose(np.log(got.scales_m), np.log(cloud.scales_m), atol=half(np.log(cloud.scales_m), 255))
    np.testing.assert_allclose(got.sh_dc, cloud.sh_dc, atol=half(cloud.sh_dc, 255))
    if version == 2:
        np.testing.assert_allclose(got.opacities, cloud.opacities, atol=0.501 / 255)
    else:
        np.testing.assert_allclose(got.opacities, cloud.opacities, atol=0.51 * 16 / 255 / 4)  # a logit's slope is 1/4
    assert turned_by(got.rotations_wxyz, cloud.rotations_wxyz).max() < 1e-4  # three components within 0.0028 each
    np.testing.assert_allclose(got.sh_rest, cloud.sh_rest, atol=half(cloud.sh_rest, 255) if cloud.degree else 0)


def written(folder: Path, data: bytes) -> Path:
    path = folder / "a.sog"
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("degree", range(4))
def test_what_another_encoder_wrote_comes_back(tmp_path: Path, version: int, degree: int, method: int) -> None:
    cloud = random_cloud(150, degree, seed=degree)
    result = read_sog(written(tmp_path, archive(*sog(cloud, version, width=13), method)))
    assert (result.notes, result.dropped, result.axes) == ((), 0, "y_down")
    assert_near(result.cloud, cloud, version)
    for name in ("positions_m", "scales_m", "rotations_wxyz", "opacities", "sh_dc", "sh_rest"):
        array = getattr(result.cloud, name)
        assert array.dtype == np.float32 and array.flags.c_contiguous, name


@given(cloud=clouds(max_degree=3))
@settings(max_examples=25, deadline=None, derandomize=True)
def test_extreme_values_come_back(tmp_path_factory: pytest.TempPathFactory, cloud: GaussianCloud) -> None:
    got = read_sog(written(tmp_path_factory.mktemp("sog"), archive(*sog(cloud)))).cloud
    assert_near(got, cloud, 2)


def test_an_unpacked_archive_is_read_by_its_meta_json(tmp_path: Path) -> None:
    cloud = random_cloud(30, 2)
    meta, files = sog(cloud)
    meta = {"asset": {"generator": "another tool"}} | meta  # glTF has an entry of this name too
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "meta.json").write_text(json.dumps(meta))
    folder = read_splats(tmp_path / "meta.json", formats=FORMATS).cloud
    packed = read_splats(written(tmp_path, archive(meta, files)), formats=FORMATS).cloud
    np.testing.assert_array_equal(folder.positions_m, packed.positions_m)
    np.testing.assert_array_equal(folder.sh_rest, packed.sh_rest)
    (tmp_path / "quats.webp").unlink()
    with pytest.raises(FormatError, match="quats.webp is not beside it"):
        read_splats(tmp_path / "meta.json", formats=FORMATS)


def test_a_real_statue_stands_on_its_foot(tmp_path: Path) -> None:
    """Proportions that were looked at: a bust on a column, upright, 58,649 Gaussians of degree 0."""
    result = read_splats(DATA / "massa.sog", formats=FORMATS)
    cloud = result.cloud
    assert (len(cloud), cloud.degree, result.dropped) == (58649, 0, 0)
    low, high = np.percentile(cloud.positions_m, 1, axis=0), np.percentile(cloud.positions_m, 99, axis=0)
    assert (high - low)[1] > 2 * (high - low)[0]
    solid = cloud.select((cloud.opacities > 0.8) & (cloud.scales_m.max(axis=1) > 0.02))
    upper = solid.positions_m[:, 1] > np.median(cloud.positions_m[:, 1])
    brightness = solid.colours.mean(axis=1)
    assert brightness[upper].mean() > brightness[~upper].mean() + 0.2  # white marble above, the dark column below


# ---- damage

CLOUD = random_cloud(20, 1)


def changed(*names: str | int, to: Any) -> Callable[[], bytes]:
    def make() -> bytes:
        meta, files = sog(CLOUD)
        entry: Any = meta
        for name in names[:-1]:
            entry = entry[name]
        entry[names[-1]] = to
        return archive(meta, files)

    return make


def with_file(name: str, content: bytes | None) -> Callable[[], bytes]:
    def make() -> bytes:
        meta, files = sog(CLOUD)
        if content is None:
            del files[name]
        else:
            files[name] = content
        return archive(meta, files)

    return make


def with_meta(text: bytes) -> Callable[[], bytes]:
    return lambda: archive(text, sog(CLOUD)[1])


def lying_webp(width: int, height: int) -> bytes:
    """A few bytes that say they are a huge picture."""
    body = b"\x2f" + struct.pack("<I", (width - 1) | (height - 1) << 14) + bytes(8)
    return b"RIFF" + struct.pack("<I", len(body) + 12) + b"WEBPVP8L" + struct.pack("<I", len(body)) + body


def zip_bomb() -> bytes:
    meta, files = sog(CLOUD)
    return archive(meta, files | {"quats.webp": bytes(200_000_000)}, zipfile.ZIP_DEFLATED)


def lying_zip() -> bytes:
    """The directory says less than there is."""
    data = archive(*sog(CLOUD), zipfile.ZIP_DEFLATED)
    size = struct.pack("<I", len(json.dumps(sog(CLOUD)[0]).encode()))
    return data.replace(size, struct.pack("<I", 5))


DAMAGE: dict[str, tuple[Callable[[], bytes], str]] = {
    "no zip": (lambda: b"PK\x03\x04" + bytes(40), "zip archive is damaged"),
    "cut short": (lambda: archive(*sog(CLOUD))[:-50], "zip archive is damaged"),
    "no meta": (lambda: archive(b"{}", {}).replace(b"meta.json", b"meta.jsom"), "has no meta.json"),
    "checksum": (lambda: archive(*sog(CLOUD)).replace(b"codebook", b"c0debook"), "zip archive is damaged"),
    "lying directory": (lying_zip, "zip archive is damaged|holds|is no JSON"),
    "zip bomb": (zip_bomb, "quats.webp unpacks to 200000000 bytes"),
    "many members": (lambda: archive({}, {f"{k}": b"" for k in range(100)}), "has 101 members"),
    "very many members": (lambda: archive({}, {f"{k}": b"" for k in range(2000)}), "directory for far more than"),
    "no JSON": (with_meta(b"{"), "meta.json is no JSON"),
    "deep JSON": (with_meta(b"[" * 100_000), "meta.json is no JSON"),
    "another text": (with_meta(b"\xff\xfe\x00"), "meta.json is no JSON"),
    "a list": (with_meta(b"[]"), "means.mins is no list of 3 numbers"),
    "version 3": (changed("version", to=3), "is SOG version 3; versions 1 and 2"),
    "count missing": (changed("count", to=None), "count is no whole number"),
    "count without end": (changed("count", to=1e300), "count is a number of more than 64 bits"),
    "count 0": (changed("count", to=0), "holds no Gaussians"),
    "count negative": (changed("count", to=-5), "announces -5 Gaussians"),
    "count beyond the limit": (changed("count", to=2**63), "announces 9223372036854775808 Gaussians"),
    "count beyond the file": (changed("count", to=40_000_000), "40000000 Gaussians, more than"),
    "count beyond the picture": (changed("count", to=90), "means_l.webp is 4 x 5 pixels, too few for 90"),
    "limits not finite": (changed("means", "mins", 1, to=float("nan")), "means.mins holds a number that is not finite"),
    "limits huge": (changed("means", "maxs", 1, to=10**400), "means.maxs holds a number that is not finite"),
    "limits too far": (changed("means", "maxs", 1, to=500), "limits of its positions are beyond"),
    "limits are text": (changed("means", "maxs", to="far"), "means.maxs is no list of 3 numbers"),
    "no codebook": (changed("scales", "codebook", to=[]), "scales.codebook is no list of 1 to 256 numbers"),
    "short codebook": (changed("scales", "codebook", to=[0.1] * 7), "entry 255 of a codebook of 7"),
    "codebook of text": (changed("sh0", "codebook", 9, to="red"), "sh0.codebook holds something that is no number"),
    "scales overflow": (changed("scales", "codebook", to=[1e4] * 256), "20 of 20 Gaussians hold values"),
    "degree 4": (changed("shN", "bands", to=4), "degree 4; SOG has 0 to 3"),
    "degree of another palette": (changed("shN", "bands", to=2), "palette of spherical harmonics is 192 pixels wide"),
    "palette too small": (changed("shN", "count", to=3), "names entry 19 of a palette of 3"),
    "way out": (changed("quats", "files", to=["../quats.webp"]), "quats.files leads out of the archive"),
    "absolute way out": (changed("quats", "files", to=["/etc/passwd"]), "quats.files leads out of the archive"),
    "no file names": (changed("means", "files", to=["one"]), "means.files is no list of 2 file names"),
    "picture missing": (with_file("quats.webp", None), "has no quats.webp in it"),
    "picture is text": (with_file("quats.webp", b"text"), "quats.webp is no WebP"),
    "picture bomb": (with_file("quats.webp", lying_webp(16384, 16384)), "quats.webp is 16384 x 16384 .* far too many"),
    "picture cut short": (with_file("quats.webp", lying_webp(5, 5)), "quats.webp is no readable picture"),
    "picture too small": (with_file("quats.webp", webp([(0, 0, 0, 255)] * 6, 3)), "quats.webp is 3 x 2 .* too few"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_file_is_refused_with_the_defect_in_one_line(tmp_path: Path, name: str) -> None:
    make, words = DAMAGE[name]
    path = written(tmp_path, make())
    tracemalloc.start()
    try:
        with pytest.raises(FormatError, match=words) as caught:
            read_sog(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 * path.stat().st_size + 200_000_000
    assert str(caught.value).startswith("a.sog: ") and "\n" not in str(caught.value)


def test_what_is_odd_but_readable_is_noted(tmp_path: Path) -> None:
    meta, files = sog(random_cloud(20, 0))
    lossy = files | {"scales.webp": webp([(90, 90, 90)] * 20, 4, lossless=False)}
    notes = read_sog(written(tmp_path, archive(meta | {"antialias": True}, lossy))).notes
    assert any("scales.webp is packed with loss" in note for note in notes)
    assert any("antialiasing" in note for note in notes)
    untagged = files | {"quats.webp": webp([(90, 90, 90, 3)] * 20, 4)}
    result = read_sog(written(tmp_path, archive(meta, untagged)))
    assert any("20 Gaussians had no rotation" in note for note in result.notes)
    np.testing.assert_array_equal(result.cloud.rotations_wxyz, [[1, 0, 0, 0]] * 20)


def test_damaged_gaussians_are_left_out_on_request(tmp_path: Path) -> None:
    cloud = random_cloud(20, 0)
    meta, files = sog(cloud)
    meta["scales"]["codebook"][255] = 1e4  # the largest of all scales, infinite once it is no logarithm
    path = written(tmp_path, archive(meta, files))
    with pytest.raises(FormatError, match="1 of 20 Gaussians hold values"):
        read_sog(path)
    result = read_sog(path, drop_invalid=True)
    assert (len(result.cloud), result.dropped) == (19, 1)
    assert "1 damaged Gaussians" in result.notes[0]


def test_a_checksum_is_a_real_one() -> None:
    """The spoiled archive above fails by its checksum, not by its JSON."""
    data = archive(*sog(CLOUD)).replace(b"codebook", b"c0debook")
    text = json.dumps(sog(CLOUD)[0]).replace("codebook", "c0debook").encode()
    assert text in data and struct.pack("<I", zlib.crc32(text)) not in data
