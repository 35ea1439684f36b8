"""`python -m backend convert`: real processes over real and made files, exit codes, what is said to be lost."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from backend import __main__ as command_line
from backend.convert import QUANTISATION
from backend.formats import FORMATS
from blender_addon.shared.formats import read_splats, write_splats
from blender_addon.shared.formats.ply import read_ply, write_ply
from blender_addon.shared.gaussians import GaussianCloud
from tests.formats.clouds import covariances
from tests.shared.test_gaussians import radiance, random_cloud, unit_directions

ROOT = Path(__file__).parents[2]
DATA = Path(__file__).parent / "data"
WRITABLE = [row for row in FORMATS if row.write is not None]
SUFFIXES = [suffix for row in WRITABLE for suffix in row.suffixes if suffix != ".gltf"]  # written as .glb


def run(*words: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "backend", "convert", *map(str, words)],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


def call(capsys: pytest.CaptureFixture[str], *words: str | Path) -> tuple[int, str, str]:
    """The command in this process: exit code, standard output, standard error."""
    code = command_line.main(["convert", *map(str, words)])
    output = capsys.readouterr()
    return code, output.out, output.err


def assert_alike(a: GaussianCloud, b: GaussianCloud) -> None:
    """The same Gaussians to the eye, in the same order."""
    assert len(a) == len(b)
    np.testing.assert_allclose(a.positions_m, b.positions_m, atol=0.01)
    np.testing.assert_allclose(a.scales_m, b.scales_m, rtol=0.1, atol=1e-3)
    np.testing.assert_allclose(a.opacities, b.opacities, atol=0.02)
    np.testing.assert_allclose(a.colours, b.colours, atol=0.02)
    np.testing.assert_allclose(covariances(a), covariances(b), atol=1e-3)


def in_order(cloud: GaussianCloud) -> GaussianCloud:
    """Sorted along x, for formats that store Gaussians in an order of their own."""
    return cloud.select(np.argsort(cloud.positions_m[:, 0], kind="stable"))


def spread_cloud(count: int, degree: int) -> GaussianCloud:
    """Gaussians in steps along x, so that the order can be found again; colours that every format holds."""
    cloud = random_cloud(count, degree)
    positions = cloud.positions_m.copy()
    positions[:, 0] = np.random.default_rng(1).permutation(count) * 0.1
    return GaussianCloud(
        positions, cloud.scales_m, cloud.rotations_wxyz, cloud.opacities, np.clip(cloud.sh_dc, -1.7, 1.7), cloud.sh_rest
    )


def test_several_thousand_gaussians_through_real_processes(tmp_path: Path) -> None:
    cloud = spread_cloud(5000, 3)
    write_ply(tmp_path / "start.ply", cloud, axes="y_up")
    steps = ["start.ply", "a.spz", "b.spz", "end.ply"]
    for source, target, more in zip(steps[:-1], steps[1:], (["--spz-version", "4"], [], []), strict=True):
        done = run(source, target, *more, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(f"{source} -> {target}: 5000 Gaussians, spherical harmonics of degree 3")
    assert (tmp_path / "a.spz").read_bytes()[:4] == b"NGSP" and (tmp_path / "b.spz").read_bytes()[:2] == b"\x1f\x8b"
    assert_alike(read_splats(tmp_path / "end.ply").cloud, cloud)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(steps)


def test_a_failing_process_says_one_line_and_writes_nothing(tmp_path: Path) -> None:
    (tmp_path / "damaged.spz").write_bytes((DATA / "test-splat.3-points-from-train.spz").read_bytes()[:60])
    done = run("damaged.spz", "out.ply", cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith("error: damaged.spz: the gzip stream is ") or "cut short" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["damaged.spz"]


@pytest.mark.parametrize("source", [row.name for row in WRITABLE])
@pytest.mark.parametrize("target", SUFFIXES)
def test_any_to_any(tmp_path: Path, capsys: pytest.CaptureFixture[str], source: str, target: str) -> None:
    cloud = spread_cloud(300, 1)
    row = next(row for row in WRITABLE if row.name == source)
    first = tmp_path / ("first" + row.suffixes[0])
    write_splats(first, cloud, formats=FORMATS)
    code, said, _ = call(capsys, first, tmp_path / ("second" + target))
    assert code == 0 and "  lost: " in said
    got = read_splats(tmp_path / ("second" + target), formats=FORMATS)
    assert_alike(in_order(got.cloud), in_order(cloud))


def test_a_sog_becomes_any_format(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for suffix in SUFFIXES:
        assert call(capsys, DATA / "massa.sog", tmp_path / ("a" + suffix))[0] == 0, suffix
        assert len(read_splats(tmp_path / ("a" + suffix), formats=FORMATS).cloud) == 58649


def test_every_lossy_format_says_what_it_cannot_keep() -> None:
    assert set(QUANTISATION) == {row.name for row in WRITABLE} - {"ply", "gltf"}  # those two store float32


def test_a_lossless_way_says_so_and_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_ply(tmp_path / "a.ply", random_cloud(50, 4), axes="y_down")
    code, said, _ = call(capsys, tmp_path / "a.ply", tmp_path / "b.ply")
    assert code == 0 and "lost: nothing" in said
    a, b = read_ply(tmp_path / "a.ply").cloud, read_ply(tmp_path / "b.ply").cloud
    np.testing.assert_allclose(a.positions_m, b.positions_m, atol=1e-6)
    np.testing.assert_allclose(a.sh_rest, b.sh_rest, atol=1e-6)
    np.testing.assert_allclose(a.opacities, b.opacities, atol=1e-6)


def test_a_lower_degree_is_said_to_be_lost_and_a_higher_one_is_filled(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cloud = random_cloud(20, 2)
    write_ply(tmp_path / "a.ply", cloud)
    _, said, _ = call(capsys, tmp_path / "a.ply", tmp_path / "b.ply", "--degree", "1")
    assert "lost: spherical harmonics above degree 1 (the cloud has degree 2)" in said
    lower = read_ply(tmp_path / "b.ply").cloud
    assert lower.degree == 1
    _, said, _ = call(capsys, tmp_path / "a.ply", tmp_path / "c.ply", "--degree", "3")
    assert "lost: nothing" in said
    higher = read_ply(tmp_path / "c.ply").cloud
    assert higher.degree == 3 and not higher.sh_rest[:, 8:].any() and higher.sh_rest[:, :8].any()


@pytest.mark.parametrize("axes", ["y_up", "y_down", "z_up"])
def test_axes_turn_positions_shapes_and_harmonics_together(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], axes: str
) -> None:
    cloud = random_cloud(30, 3)
    turn = {"y_up": np.eye(3), "y_down": np.diag([1.0, -1, -1]), "z_up": np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])}
    write_ply(tmp_path / "a.ply", cloud, axes="y_up")
    assert call(capsys, tmp_path / "a.ply", tmp_path / "b.ply", "--axes", axes)[0] == 0
    result = read_ply(tmp_path / "b.ply")
    assert result.axes == axes
    np.testing.assert_allclose(result.cloud.positions_m, cloud.positions_m @ turn[axes].T, atol=1e-5)
    np.testing.assert_allclose(covariances(result.cloud), turn[axes] @ covariances(cloud) @ turn[axes].T, atol=1e-6)
    directions = unit_directions(20)
    np.testing.assert_allclose(
        radiance(result.cloud, directions @ turn[axes].T), radiance(cloud, directions), atol=1e-4
    )
    # A file that is read with the axes it was written with is the first one again, whatever its header says.
    call(capsys, tmp_path / "b.ply", tmp_path / "c.ply", "--from-axes", axes, "--axes", "y_up")
    np.testing.assert_allclose(read_ply(tmp_path / "c.ply").cloud.positions_m, cloud.positions_m, atol=1e-5)


def test_damaged_gaussians_are_left_out_only_on_request(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_ply(tmp_path / "a.ply", random_cloud(20, 0))
    data = bytearray((tmp_path / "a.ply").read_bytes())
    data[-17 * 4 : -16 * 4] = np.float32(np.nan).tobytes()  # x of the last of 20 rows of 17 floats
    (tmp_path / "a.ply").write_bytes(data)
    code, _, error = call(capsys, tmp_path / "a.ply", tmp_path / "b.ply")
    assert code == 2 and "1 of 20 Gaussians" in error and not (tmp_path / "b.ply").exists()
    code, said, _ = call(capsys, tmp_path / "a.ply", tmp_path / "b.ply", "--drop-invalid")
    assert code == 0 and "1 damaged Gaussians" in said and len(read_ply(tmp_path / "b.ply").cloud) == 19


def test_an_avatars_folder_stands_for_its_gaussians(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "avatar").mkdir()
    cloud = random_cloud(10, 0)
    write_ply(tmp_path / "avatar" / "gaussians.ply", cloud, axes="y_up")
    assert call(capsys, tmp_path / "avatar", tmp_path / "new" / "a.spz")[0] == 0
    got = read_splats(tmp_path / "new" / "a.spz").cloud
    np.testing.assert_allclose(got.positions_m, cloud.positions_m, atol=1e-3)


def test_the_input_is_never_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.ply"
    write_ply(path, random_cloud(5, 0))
    before = path.read_bytes()
    (tmp_path / "link.ply").symlink_to(path)
    os.link(path, tmp_path / "hard.ply")
    for target in (path, tmp_path / "." / "a.ply", tmp_path / "link.ply", tmp_path / "hard.ply"):
        code, _, error = call(capsys, path, target)
        assert code == 2 and "is the file to be read" in error
        assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["nowhere.ply", "b.ply"], 2, "nowhere.ply cannot be read (No such file"),
        (["a.ply", "b.obj"], 2, "b.obj: has no known suffix"),
        (["a.ply", "b.spz", "--axes", "z_up"], 2, "--axes is for .ply and .splat"),
        (["a.ply", "a.ply/b.ply"], 1, "cannot be written"),
        (["text.txt", "b.ply"], 2, "text.txt: is no splat file"),
        (["empty.ply", "b.ply"], 2, "empty.ply: "),
    ],
)
def test_bad_requests_get_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    code: int,
    said: str,
) -> None:
    write_ply(tmp_path / "a.ply", random_cloud(5, 0))
    (tmp_path / "text.txt").write_text("no splats here")
    (tmp_path / "empty.ply").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    got, output, error = call(capsys, *words)
    assert (got, output, error.count("\n")) == (code, "", 1)
    assert said in error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.ply", "empty.ply", "text.txt"]


def test_a_missing_package_is_exit_code_3(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "zstandard", None)
    code, _, error = call(capsys, DATA / "minimal-v4.spz", tmp_path / "a.ply")
    assert code == 3 and "zstandard is not installed" in error
