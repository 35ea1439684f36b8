"""SPZ: laws of the quantisation, versions against each other and a second encoder, files of other tools, damage."""

from __future__ import annotations

import gzip
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings

from backend.formats.zstandard_codec import ZstandardCodec
from blender_addon.shared.axes import y_down_to_body_cloud
from blender_addon.shared.formats import FormatError, ReadResult, read_splats, write_splats
from blender_addon.shared.formats import spz as spz_module
from blender_addon.shared.formats.ply import read_ply
from blender_addon.shared.formats.spz import StandardZstd, read_spz, write_spz
from blender_addon.shared.gaussians import GaussianCloud
from tests.formats.clouds import clouds, covariances, ellipsoids_turned_by, turned_by
from tests.formats.spz_oracle import Parts, parts
from tests.shared.test_gaussians import radiance, random_cloud, unit_directions

DATA = Path(__file__).parent / "data"
LAWS = settings(max_examples=60, deadline=None, derandomize=True)


def read(path: Path) -> ReadResult:
    return read_spz(path, zstd=ZstandardCodec())


def through(folder: Path, cloud: GaussianCloud, version: int) -> GaussianCloud:
    path = folder / f"v{version}.spz"
    write_spz(path, cloud, version=4 if version == 4 else 3, zstd=ZstandardCodec())
    return read(path).cloud


def read_bytes(folder: Path, data: bytes) -> GaussianCloud:
    (folder / "bytes.spz").write_bytes(data)
    return read(folder / "bytes.spz").cloud


def assert_within_quantisation(got: GaussianCloud, cloud: GaussianCloud) -> None:
    np.testing.assert_allclose(got.positions_m, cloud.positions_m, rtol=1e-6, atol=0.5 / 4096 + 1e-7)
    logs = np.clip(np.log(cloud.scales_m), -10, 255 / 16 - 10)
    np.testing.assert_allclose(np.log(got.scales_m), logs, rtol=0, atol=0.5 / 16 + 1e-5)
    np.testing.assert_allclose(got.opacities, cloud.opacities, rtol=0, atol=0.5 / 255 + 1e-6)
    colours = np.clip(cloud.sh_dc, -0.5 / 0.15, 0.5 / 0.15)
    np.testing.assert_allclose(got.sh_dc, colours, rtol=0, atol=0.5 / (255 * 0.15) + 1e-5)
    assert ellipsoids_turned_by(got.rotations_wxyz, cloud.rotations_wxyz).max() < 4e-6  # 3 components within 0.0007
    harmonics = np.clip(cloud.sh_rest, -1, 127 / 128)
    steps = np.array([4.5] * 3 + [8.5] * 21)[: cloud.sh_rest.shape[1], None] / 128
    assert (np.abs(got.sh_rest - harmonics) <= steps + 1e-6).all()


@pytest.mark.parametrize("version", [3, 4])
@given(cloud=clouds())
@LAWS
def test_round_trip_stays_within_the_quantisation(
    tmp_path_factory: pytest.TempPathFactory, version: int, cloud: GaussianCloud
) -> None:
    got = through(tmp_path_factory.mktemp("spz"), cloud, version)
    assert_within_quantisation(got, cloud)
    assert turned_by(got.rotations_wxyz, cloud.rotations_wxyz).max() < 4e-6


@given(cloud=clouds())
@LAWS
def test_what_was_read_is_written_the_same(tmp_path_factory: pytest.TempPathFactory, cloud: GaussianCloud) -> None:
    folder = tmp_path_factory.mktemp("spz")
    once = through(folder, cloud, 3)
    twice = through(folder, once, 3)
    for name in ("positions_m", "scales_m", "opacities", "sh_dc", "sh_rest"):
        np.testing.assert_array_equal(getattr(once, name), getattr(twice, name), name)
    assert turned_by(once.rotations_wxyz, twice.rotations_wxyz).max() < 4e-6


@given(cloud=clouds())
@LAWS
def test_versions_2_3_and_4_of_a_cloud_agree(tmp_path_factory: pytest.TempPathFactory, cloud: GaussianCloud) -> None:
    folder = tmp_path_factory.mktemp("spz")
    oldest, older = (read_bytes(folder, parts(cloud, version).gzipped()) for version in (2, 3))
    newest = through(folder, cloud, 4)
    for other in (oldest, older):
        np.testing.assert_array_equal(other.positions_m, newest.positions_m)
        np.testing.assert_allclose(other.scales_m, newest.scales_m, rtol=0.0646)  # a tie may round to the next byte
        np.testing.assert_allclose(other.opacities, newest.opacities, atol=1.01 / 255)
        np.testing.assert_allclose(other.sh_dc, newest.sh_dc, atol=1.01 / (255 * 0.15))
        np.testing.assert_allclose(other.sh_rest, newest.sh_rest, atol=0.126)
    assert turned_by(older.rotations_wxyz, newest.rotations_wxyz).max() < 4e-6
    signs = np.sign(np.einsum("ij,ij->i", oldest.rotations_wxyz, newest.rotations_wxyz))[:, None]
    assert np.abs(oldest.rotations_wxyz * signs - newest.rotations_wxyz)[:, 1:].max() < 0.02


@pytest.mark.parametrize("version", [3, 4])
@pytest.mark.parametrize("degree", range(5))
def test_the_bytes_are_those_of_a_second_encoder(tmp_path: Path, version: int, degree: int) -> None:
    cloud = random_cloud(300, degree, seed=degree)
    path = tmp_path / "a.spz"
    write_spz(path, cloud, version=4 if version == 4 else 3, zstd=ZstandardCodec())
    written = path.read_bytes()
    oracle = parts(cloud, version)
    if version == 3:
        assert gzip.decompress(written) == oracle.unzipped()
    else:
        level = [zstandard.ZstdCompressor(level=12).compress(s) for s in oracle.streams if s]
        assert written == oracle.zstd(level)


def test_more_gaussians_than_are_decoded_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cloud = random_cloud(1000, 1)
    whole = through(tmp_path, cloud, 3)
    monkeypatch.setattr("blender_addon.shared.formats.spz_values._CHUNK", 7)
    parted = through(tmp_path, cloud, 3)
    for name in ("positions_m", "scales_m", "rotations_wxyz", "opacities", "sh_dc", "sh_rest"):
        np.testing.assert_array_equal(getattr(whole, name), getattr(parted, name))


def test_far_positions_are_stored_coarser_and_it_says_so(tmp_path: Path) -> None:
    cloud = random_cloud(4, 0)
    far = GaussianCloud(cloud.positions_m * 1e5, *(getattr(cloud, n) for n in FIELDS[1:]))
    notes = write_spz(tmp_path / "a.spz", far)
    assert any("steps of" in note for note in notes)
    got = read(tmp_path / "a.spz").cloud.positions_m
    np.testing.assert_allclose(got, far.positions_m, rtol=0, atol=np.abs(far.positions_m).max() / 2**23)


FIELDS = ("positions_m", "scales_m", "rotations_wxyz", "opacities", "sh_dc", "sh_rest")


def test_positions_that_no_number_of_bits_reaches_are_refused(tmp_path: Path) -> None:
    cloud = random_cloud(1, 0)
    far = GaussianCloud(cloud.positions_m * 0 + 1e7, *(getattr(cloud, n) for n in FIELDS[1:]))
    with pytest.raises(FormatError, match="10000|1e\\+07"):
        write_spz(tmp_path / "a.spz", far)
    assert list(tmp_path.iterdir()) == []


def test_what_the_format_cannot_hold_is_counted(tmp_path: Path) -> None:
    cloud = random_cloud(10, 1)
    scales = cloud.scales_m.copy()
    scales[:3, 1] = 1e-9
    harmonics = cloud.sh_rest * 0.1
    harmonics[4, 2, 0] = -2
    odd = GaussianCloud(*(getattr(cloud, n) for n in FIELDS))
    odd = GaussianCloud(odd.positions_m, scales, odd.rotations_wxyz, odd.opacities, odd.sh_dc, harmonics)
    notes = write_spz(tmp_path / "a.spz", odd)
    assert any(note.startswith("3 Gaussians have scales") for note in notes), notes
    assert any(note.startswith("1 Gaussians have spherical harmonics") for note in notes), notes


# ---- files of other tools


def test_a_file_of_another_tool_holds_the_splats_of_its_ply() -> None:
    got = read(DATA / "test-splat.3-points-from-train.spz").cloud
    source = DATA / "test-splat.3-points-from-train.ply"
    assert_within_quantisation(got, y_down_to_body_cloud(read_ply(source).cloud))
    assert_within_quantisation(got, read_splats(source).cloud)


@pytest.mark.parametrize("version", [3, 4])
def test_the_reference_library_wrote_the_same_cloud(tmp_path: Path, version: int) -> None:
    """Degree 4, by @adobe/spz 0.2.3; rotations went through its floats once more, so a step may differ."""
    cloud = random_cloud(5, 4, seed=9)
    got = read(DATA / f"reference-v{version}.spz").cloud
    own = through(tmp_path, cloud, version)
    for name in ("positions_m", "scales_m", "opacities", "sh_dc", "sh_rest"):
        np.testing.assert_array_equal(getattr(got, name), getattr(own, name), name)
    assert_within_quantisation(got, cloud)


def test_the_smallest_files_of_splat_transform() -> None:
    old, new = read(DATA / "minimal-v2.spz"), read(DATA / "minimal-v4.spz")
    for result, depth in ((old, -1), (new, 1)):
        cloud = result.cloud
        assert (len(cloud), cloud.degree, result.notes, result.axes) == (4, 0, (), "y_up")
        np.testing.assert_allclose(cloud.positions_m[:, 0], [-1, 0, -1, 0])
        np.testing.assert_allclose(cloud.positions_m[:, 2], [depth, depth, 0, 0])
        np.testing.assert_allclose(cloud.opacities, 0.9, atol=0.5 / 255)
        np.testing.assert_allclose(cloud.scales_m, 0.1, rtol=0.035)
        np.testing.assert_allclose(cloud.rotations_wxyz, [[1, 0, 0, 0]] * 4, atol=0.0045)


# ---- extensions


def record(kind: int, content: bytes) -> bytes:
    return struct.pack("<II", kind, len(content)) + content


SYSTEMS = "LDB RDB LUB RUB LDF RDF LUF RUF LFD RFD LFU RFU LBD RBD LBU RBU".split()


@pytest.mark.parametrize("container", ["gzip", "zstd"])
@pytest.mark.parametrize("value", range(1, 17))
def test_a_named_coordinate_system_is_brought_to_right_up_back(tmp_path: Path, value: int, container: str) -> None:
    letters = {"R": [1, 0, 0], "L": [-1, 0, 0], "U": [0, 1, 0], "D": [0, -1, 0], "B": [0, 0, 1], "F": [0, 0, -1]}
    matrix = np.array([letters[c] for c in SYSTEMS[value - 1]], float).T  # columns: where the stored axes point
    stored = parts(random_cloud(5, 4, seed=value), 3 if container == "gzip" else 4)
    plain = read_bytes(tmp_path, stored.gzipped() if container == "gzip" else stored.zstd())
    stored.flags, stored.extensions = 2, record(0xADBE0003, struct.pack("<I", value))
    got = read_bytes(tmp_path, stored.gzipped() if container == "gzip" else stored.zstd())
    np.testing.assert_allclose(got.positions_m, plain.positions_m @ matrix.T, atol=1e-6)
    np.testing.assert_allclose(covariances(got), matrix @ covariances(plain) @ matrix.T, atol=1e-7)
    directions = unit_directions(20)
    seen = radiance(got, directions @ matrix.T)
    np.testing.assert_allclose(seen, radiance(plain, directions), atol=1e-5)


def test_foreign_extensions_and_the_antialiasing_flag_are_noted(tmp_path: Path) -> None:
    for version in (3, 4):
        stored = parts(random_cloud(2, 0), version)
        stored.flags, stored.extensions = 3, record(0xADBE0002, bytes(12)) + record(0x12340001, b"abc")
        path = tmp_path / "a.spz"
        path.write_bytes(stored.zstd() if version == 4 else stored.gzipped())
        notes = read(path).notes
        assert any("2 extensions were ignored (0xadbe0002, 0x12340001)" in note for note in notes)
        assert any("antialiasing" in note for note in notes)


# ---- zstd codecs


def test_without_zstd_version_4_is_refused_and_version_3_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spz_module, "standard_zstd", lambda: None)
    with pytest.raises(FormatError, match="minimal-v4.spz: SPZ version 4 is packed with zstd, which this Python lacks"):
        read_spz(DATA / "minimal-v4.spz")
    with pytest.raises(FormatError, match="zstd"):
        write_spz(tmp_path / "a.spz", random_cloud(1, 0), version=4)
    assert len(read_spz(DATA / "minimal-v2.spz").cloud) == 4
    write_splats(tmp_path / "b.spz", random_cloud(3, 2))
    assert len(read_splats(tmp_path / "b.spz").cloud) == 3


class OneShot:
    """The decompressor of `compression.zstd` as Python 3.14 documents it, on this Python's package."""

    def __init__(self) -> None:
        self.eof = False

    def decompress(self, data: bytes, max_length: int = -1) -> bytes:
        inner = zstandard.ZstdDecompressor().decompressobj()
        unpacked = inner.decompress(data)
        self.eof = len(unpacked) <= max_length and inner.eof
        self.unused_data = inner.unused_data if self.eof else b""
        return unpacked[:max_length]


def test_the_standard_librarys_zstd_serves_as_well(tmp_path: Path) -> None:
    module = SimpleNamespace(
        ZstdDecompressor=OneShot,
        ZstdError=zstandard.ZstdError,
        compress=lambda data, level: zstandard.compress(data, level),
    )
    codec = StandardZstd(module)
    write_spz(tmp_path / "a.spz", random_cloud(20, 3), version=4, zstd=codec)
    read_spz(tmp_path / "a.spz", zstd=codec)
    frame = codec.compress(bytes(100))
    assert codec.decompress(frame, 101) == bytes(100)
    assert codec.decompress(frame, 50) == bytes(50)
    for some in (codec, ZstandardCodec()):
        assert some.decompress(frame + codec.compress(b"abc"), 1000) == bytes(100) + b"abc"
        assert some.decompress(frame + codec.compress(b"abc"), 102) == bytes(100) + b"ab"
    for damaged in (frame[:-1], b"none", frame + b"none"):
        with pytest.raises(ValueError):
            codec.decompress(damaged, 101)


# ---- damage: row 23 of the fault matrix, and 24 as far as it is SPZ's


def spoiled(written_as: int = 3, **fields: object) -> Parts:
    stored = parts(random_cloud(6, 1), written_as)
    for name, value in fields.items():
        setattr(stored, name, value)
    return stored


def frames_with(index: int, content: bytes) -> list[bytes]:
    streams = spoiled(4).streams
    return [zstandard.compress(content if k == index else s) for k, s in enumerate(streams)]


DAMAGE: dict[str, tuple[Callable[[], bytes], str]] = {
    "nothing in it": (lambda: b"", "is no SPZ file"),
    "bad magic in gzip": (lambda: spoiled(magic=b"NGSQ").gzipped(), "is gzip, but no SPZ"),
    "short in gzip": (lambda: gzip.compress(b"NGSP"), "is gzip, but no SPZ"),
    "version 1": (lambda: spoiled(version=1).gzipped(), "SPZ version 1 in gzip"),
    "version 5 in gzip": (lambda: spoiled(version=5).gzipped(), "SPZ version 5 in gzip"),
    "version 5": (lambda: spoiled(4, version=5).zstd(), "SPZ version 5 without gzip"),
    "version 3 without gzip": (lambda: spoiled().unzipped() + bytes(32), "SPZ version 3 without gzip"),
    "degree 5": (lambda: spoiled(degree=5).gzipped(), "degree 5; 0 to 4"),
    "degree 5, version 4": (lambda: spoiled(4, degree=5).zstd(), "degree 5; 0 to 4"),
    "reserved byte": (lambda: spoiled(reserved=1).gzipped(), "reserved byte .* is 1"),
    "reserved bytes": (lambda: spoiled(4, reserved=1).zstd(), "reserved bytes"),
    "reserved flag": (lambda: spoiled(flags=0x80).gzipped(), "reserved flags set .0x80"),
    "fractional bits": (lambda: spoiled(fractional_bits=200).gzipped(), "200 fractional bits"),
    "count 0": (lambda: spoiled(count=0).gzipped(), "holds no Gaussians"),
    "count 0, version 4": (lambda: spoiled(4, count=0).zstd([], []), "holds no Gaussians"),
    "count too large": (lambda: spoiled(count=7).gzipped(), "cut short, 6 of 7 Gaussians"),
    "count beyond the limit": (lambda: spoiled(count=2**32 - 1).gzipped(), "announces 4294967295 Gaussians"),
    "count beyond the file": (lambda: spoiled(count=40_000_000).gzipped(), "40000000 Gaussians, more than"),
    "count too small": (lambda: spoiled(count=3, flags=2).gzipped(), "extension 0x........ says it holds"),
    "gzip cut short": (lambda: spoiled().gzipped()[:-30], "cut short|damaged"),
    "gzip without its end": (lambda: spoiled().gzipped()[:-8], "gzip stream is cut short before its checksum"),
    "gzip checksum": (lambda: spoiled().gzipped()[:-8] + bytes(8), "gzip stream is damaged"),
    "gzip bomb": (lambda: spoiled(streams=[bytes(100_000_000)]).gzipped(), "more is packed in it than the 6"),
    "extension past the end": (
        lambda: spoiled(flags=2, extensions=struct.pack("<II", 1, 99) + b"ab").gzipped(),
        "extension 0x00000001 says it holds 99 bytes, 2 are left",
    ),
    "extension cut short": (lambda: spoiled(4, flags=2, extensions=b"abc").zstd(), "extension record is cut short"),
    "no such system": (
        lambda: spoiled(4, flags=2, extensions=record(0xADBE0003, struct.pack("<I", 17))).zstd(),
        "coordinate system that is not known",
    ),
    "header cut short": (lambda: spoiled(4).zstd()[:20], "cut short, 0 of 1 headers"),
    "table past the end": (lambda: spoiled(4).zstd(offset=10**9), "table of streams at byte 1000000000 lies outside"),
    "table inside the header": (lambda: spoiled(4).zstd(offset=8), "table of streams at byte 8"),
    "wrong stream count": (lambda: spoiled(4).zstd(stream_count=5), "has 5 streams, 6 belong to degree 1"),
    "size lie in the table": (
        lambda: spoiled(4).zstd(sizes=[54, 6, 19, 18, 24, 54]),
        "stream of colours says it holds 19 bytes, 6 Gaussians take 18",
    ),
    "stream holds less": (lambda: spoiled(4).zstd(frames_with(3, bytes(17)), SIZES), "stream of scales holds 17 of 18"),
    "stream holds more": (lambda: spoiled(4).zstd(frames_with(3, bytes(19)), SIZES), "of scales holds more than 18"),
    "zstd bomb": (lambda: spoiled(4).zstd(frames_with(0, bytes(10**8)), SIZES), "positions holds more than 54"),
    "no zstd": (lambda: spoiled(4).zstd([b"abcdefgh"] * 6, SIZES), "stream of positions is damaged"),
    "frames cut short": (lambda: spoiled(4).zstd()[:-5], "cut short, the streams end at byte"),
}
SIZES = [54, 6, 18, 18, 24, 54]


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_file_is_refused_with_the_defect_in_one_line(tmp_path: Path, name: str) -> None:
    make, words = DAMAGE[name]
    path = tmp_path / "damaged.spz"
    path.write_bytes(make())
    tracemalloc.start()
    try:
        with pytest.raises(FormatError, match=words) as caught:
            read(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 * path.stat().st_size + 200_000_000
    text = str(caught.value)
    assert text.startswith("damaged.spz: ") and "\n" not in text and "; " in text


def test_trailing_bytes_are_ignored_and_noted(tmp_path: Path) -> None:
    path = tmp_path / "a.spz"
    for data in (spoiled().gzipped() + b"more", spoiled(extensions=b"more").gzipped(), spoiled(4).zstd() + b"more"):
        path.write_bytes(data)
        result = read(path)
        assert len(result.cloud) == 6
        assert any(note.startswith("4 bytes after the") for note in result.notes)


def test_a_quarter_of_a_million_equal_gaussians_are_no_bomb(tmp_path: Path) -> None:
    """A file may be packed a thousand times, as long as what comes out is small."""
    cloud = random_cloud(1, 0).select(np.zeros(250_000, int))
    for version in (3, 4):
        assert len(through(tmp_path, cloud, version)) == 250_000
    assert (tmp_path / "v4.spz").stat().st_size < 10_000
