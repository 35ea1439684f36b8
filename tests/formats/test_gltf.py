"""glTF KHR_gaussian_splatting: the ratified text as laws, transforms, colour spaces, and damaged files."""

from __future__ import annotations

import base64
import copy
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blender_addon.shared.formats import FormatError, find_reader
from blender_addon.shared.formats.gltf import read_gltf, write_gltf
from blender_addon.shared.gaussians import SH_C0, GaussianCloud, matrices_to_wxyz
from tests.formats.clouds import clouds, covariances, temporary, turned_by
from tests.shared.test_gaussians import radiance, random_cloud, random_rotations, unit_directions

DATA = Path(__file__).parent / "data"
PREFIX = "KHR_gaussian_splatting:"
Document = dict[str, Any]


def take_apart(data: bytes) -> tuple[Document, bytes]:
    """JSON and binary chunk of a .glb, read by the letter of the specification."""
    magic, version, total, size, kind = struct.unpack("<4sII I4s", data[:20])
    assert (magic, version, total, kind) == (b"glTF", 2, len(data), b"JSON")
    assert size % 4 == 0
    binary_size, binary_kind = struct.unpack("<I4s", data[20 + size : 28 + size])
    assert (binary_kind, binary_size) == (b"BIN\0", len(data) - 28 - size)
    return json.loads(data[20 : 20 + size]), data[28 + size :]


def put_together(document: Document, binary: bytes) -> bytes:
    text = json.dumps(document).encode()
    text += b" " * (-len(text) % 4)
    binary += bytes(-len(binary) % 4)
    head = struct.pack("<4sII", b"glTF", 2, 28 + len(text) + len(binary))
    chunks = struct.pack("<I4s", len(text), b"JSON") + text + struct.pack("<I4s", len(binary), b"BIN\0") + binary
    return head + chunks


def made(path: Path, cloud: GaussianCloud) -> tuple[Document, bytes]:
    """A valid document to change."""
    write_gltf(path, cloud)
    return take_apart(path.read_bytes())


def values(document: Document, binary: bytes, index: int) -> np.ndarray:
    """An accessor of a file that we wrote, by the specification."""
    accessor = document["accessors"][index]
    view = document["bufferViews"][accessor["bufferView"]]
    kind = {5126: "<f4", 5123: "<u2"}[accessor["componentType"]]
    width = {"SCALAR": 1, "VEC3": 3, "VEC4": 4}[accessor["type"]]
    assert view["byteOffset"] % 4 == 0
    flat = np.frombuffer(binary, kind, accessor["count"] * width, view["byteOffset"])
    return flat.reshape(-1, width)


def replaced(document: Document, binary: bytes, name: str, array: np.ndarray, normalised: bool) -> bytes:
    """The file with one attribute stored as another component type, at the end of the buffer."""
    document = copy.deepcopy(document)
    component = {"i1": 5120, "u1": 5121, "i2": 5122, "u2": 5123, "f4": 5126}[array.dtype.str[1:]]
    index = document["meshes"][0]["primitives"][0]["attributes"][name]
    document["accessors"][index] |= {"componentType": component, "normalized": normalised, "bufferView": index}
    view = {"buffer": 0, "byteOffset": len(binary), "byteLength": array.nbytes}
    document["bufferViews"][index] = view
    document["buffers"][0]["byteLength"] += array.nbytes
    return put_together(document, binary + array.tobytes())


@given(cloud=clouds())
def test_round_trip_is_exact_but_for_degree_4(cloud: GaussianCloud) -> None:
    with temporary("a.glb") as path:
        notes = write_gltf(path, cloud)
        result = read_gltf(path)
    again = result.cloud
    np.testing.assert_array_equal(again.positions_m, cloud.positions_m)
    np.testing.assert_array_equal(again.scales_m, cloud.scales_m)
    np.testing.assert_array_equal(again.opacities, cloud.opacities)
    np.testing.assert_array_equal(again.sh_dc, cloud.sh_dc)
    np.testing.assert_array_equal(again.sh_rest, cloud.sh_rest[:, :15])
    np.testing.assert_allclose(again.rotations_wxyz, cloud.rotations_wxyz, rtol=0, atol=2e-7)
    assert (result.axes, result.colour_space, result.notes) == ("y_up", "srgb", ())
    assert any("degree 3" in note for note in notes) == bool(cloud.sh_rest[:, 15:].any())


def test_what_is_written_follows_the_specification(tmp_path: Path) -> None:
    cloud = random_cloud(7, degree=3)
    document, binary = made(tmp_path / "a.glb", cloud)
    assert document["extensionsUsed"] == ["KHR_gaussian_splatting"]
    assert "extensionsRequired" not in document
    (primitive,) = document["meshes"][0]["primitives"]
    assert primitive["mode"] == 0
    extension = primitive["extensions"]["KHR_gaussian_splatting"]
    assert extension["kernel"] == "ellipse"
    assert extension["colorSpace"] == "srgb_rec709_display"
    attributes = {name: values(document, binary, k) for name, k in primitive["attributes"].items()}
    np.testing.assert_array_equal(attributes[PREFIX + "ROTATION"], np.roll(cloud.rotations_wxyz, -1, axis=1))
    np.testing.assert_array_equal(attributes[PREFIX + "SCALE"], cloud.scales_m)
    np.testing.assert_array_equal(attributes[PREFIX + "OPACITY"][:, 0], cloud.opacities)
    np.testing.assert_array_equal(attributes[PREFIX + "SH_DEGREE_0_COEF_0"], cloud.sh_dc)
    np.testing.assert_array_equal(attributes[PREFIX + "SH_DEGREE_2_COEF_4"], cloud.sh_rest[:, 7])
    np.testing.assert_array_equal(attributes[PREFIX + "SH_DEGREE_3_COEF_6"], cloud.sh_rest[:, 14])
    position = document["accessors"][primitive["attributes"]["POSITION"]]
    assert position["min"] == cloud.positions_m.min(axis=0).tolist()
    assert position["max"] == cloud.positions_m.max(axis=0).tolist()
    colour = attributes["COLOR_0"] / 65535  # linear, and the opacity
    srgb = np.where(colour[:, :3] <= 0.0031308, 12.92 * colour[:, :3], 1.055 * colour[:, :3] ** (1 / 2.4) - 0.055)
    np.testing.assert_allclose(srgb, cloud.colours, atol=2e-4)
    np.testing.assert_allclose(colour[:, 3], cloud.opacities, atol=1e-5)


def test_a_text_file_with_a_data_uri_or_a_file_beside_it(tmp_path: Path) -> None:
    cloud = random_cloud(5, degree=1)
    document, binary = made(tmp_path / "a.glb", cloud)
    inside, beside = copy.deepcopy(document), copy.deepcopy(document)
    uri = "data:application/octet-stream;base64," + base64.b64encode(binary).decode()
    inside["buffers"][0]["uri"] = uri
    beside["buffers"][0]["uri"] = "my%20splats.bin"
    (tmp_path / "my splats.bin").write_bytes(binary)
    for text in (inside, beside):
        path = tmp_path / "b.gltf"
        path.write_text(json.dumps(text), "utf-8")
        assert find_reader(path).name == "gltf"
        np.testing.assert_array_equal(read_gltf(path).cloud.sh_rest, cloud.sh_rest)


@pytest.mark.parametrize(
    ("kind", "top", "normalised", "tolerance"),
    [("i1", 127, True, 0.5001 / 127), ("<i2", 32767, True, 0.5001 / 32767)],
)
def test_rotations_of_integers(tmp_path: Path, kind: str, top: int, normalised: bool, tolerance: float) -> None:
    cloud = random_cloud(50, degree=0)
    document, binary = made(tmp_path / "a.glb", cloud)
    xyzw = np.roll(cloud.rotations_wxyz, -1, axis=1)
    data = replaced(document, binary, PREFIX + "ROTATION", np.rint(xyzw * top).astype(kind), normalised)
    (tmp_path / "a.glb").write_bytes(data)
    again = read_gltf(tmp_path / "a.glb").cloud.rotations_wxyz
    assert (turned_by(again, cloud.rotations_wxyz) < 4 * tolerance**2 + 2e-7).all()  # and float32
    np.testing.assert_allclose(np.linalg.norm(again, axis=1), 1, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "kind", "top", "normalised"),
    [
        ("SCALE", "u1", 255, True),
        ("SCALE", "<u2", 65535, True),
        ("SCALE", "u1", 1, False),
        ("SCALE", "<u2", 1, False),
        ("OPACITY", "u1", 255, True),
        ("OPACITY", "<u2", 65535, True),
    ],
)
def test_scales_and_opacities_of_integers(tmp_path: Path, name: str, kind: str, top: int, normalised: bool) -> None:
    document, binary = made(tmp_path / "a.glb", random_cloud(3, degree=0))
    stored = np.array([[1, 2, 3], [100, 50, 255], [7, 7, 7]] if name == "SCALE" else [0, 100, 255], kind)
    (tmp_path / "a.glb").write_bytes(replaced(document, binary, PREFIX + name, stored, normalised))
    cloud = read_gltf(tmp_path / "a.glb").cloud
    found = cloud.scales_m if name == "SCALE" else cloud.opacities
    np.testing.assert_allclose(found, stored.astype(np.float64) / top, rtol=1e-6)


def test_a_scale_of_zero_is_allowed_and_said(tmp_path: Path) -> None:
    document, binary = made(tmp_path / "a.glb", random_cloud(2, degree=0))
    stored = np.array([[1, 2, 0], [1, 1, 1]], "<f4")
    (tmp_path / "a.glb").write_bytes(replaced(document, binary, PREFIX + "SCALE", stored, False))
    result = read_gltf(tmp_path / "a.glb")
    assert 0 < result.cloud.scales_m[0, 2] < 1e-6
    assert any("1 scales of 0" in note for note in result.notes)


def under(document: Document, binary: bytes, path: Path, *nodes: Document) -> GaussianCloud:
    """Read the file with its mesh under the last of nested nodes."""
    document = copy.deepcopy(document)
    chain = [dict(node) for node in nodes]
    for k, node in enumerate(chain[:-1]):
        node["children"] = [k + 1]
    chain[-1]["mesh"] = 0
    document["nodes"] = chain
    path.write_bytes(put_together(document, binary))
    return read_gltf(path).cloud


@given(seed=st.integers(0, 1000), scale=st.floats(0.01, 100))
def test_nodes_move_turn_and_scale_gaussians_and_their_harmonics(seed: int, scale: float) -> None:
    cloud = random_cloud(20, degree=3, seed=seed)
    turn, offset = random_rotations(1, seed)[0], np.array([1.0, -2.0, 3.0])
    w, x, y, z = matrices_to_wxyz(turn)
    with temporary("a.glb") as path:
        document, binary = made(path, cloud)
        parent = {"translation": offset.tolist(), "rotation": [float(v) for v in (x, y, z, w)]}
        again = under(document, binary, path, parent, {"scale": [scale] * 3})
        matrix = np.eye(4)
        matrix[:3, :3], matrix[:3, 3] = turn * scale, offset
        same = under(document, binary, path, {"matrix": matrix.T.ravel().tolist()})
    np.testing.assert_allclose(again.positions_m, scale * cloud.positions_m @ turn.T + offset, rtol=1e-4, atol=1e-4)
    expected = scale**2 * turn @ covariances(cloud) @ turn.T
    np.testing.assert_allclose(covariances(again), expected, rtol=1e-3, atol=1e-6 * scale**2)
    directions = unit_directions(10)
    np.testing.assert_allclose(radiance(again, directions), radiance(cloud, directions @ turn), atol=1e-4)
    np.testing.assert_allclose(covariances(same), covariances(again), rtol=1e-3, atol=1e-6 * scale**2)


def test_an_uneven_scale_of_a_node_gives_the_exact_ellipsoids(tmp_path: Path) -> None:
    cloud = random_cloud(200, degree=2)
    document, binary = made(tmp_path / "a.glb", cloud)
    turn = random_rotations(1, 3)[0]
    w, x, y, z = (float(v) for v in matrices_to_wxyz(turn))
    again = under(document, binary, tmp_path / "a.glb", {"rotation": [x, y, z, w], "scale": [0.5, 3.0, 2.0]})
    linear = turn * [0.5, 3.0, 2.0]
    np.testing.assert_allclose(covariances(again), linear @ covariances(cloud) @ linear.T, rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(again.positions_m, cloud.positions_m @ linear.T, atol=1e-5)
    directions = unit_directions(10)
    np.testing.assert_allclose(radiance(again, directions), radiance(cloud, directions @ turn), atol=1e-4)


@pytest.mark.parametrize("scale", [[-1.0, 1.0, 1.0], [1.0, 0.0, 1.0]])
def test_a_node_that_mirrors_or_flattens_is_refused(tmp_path: Path, scale: list[float]) -> None:
    document, binary = made(tmp_path / "a.glb", random_cloud(3, degree=0))
    with pytest.raises(FormatError, match="shears, mirrors or flattens"):
        under(document, binary, tmp_path / "a.glb", {"scale": scale})


def test_primitives_of_several_degrees_and_meshes_without_gaussians(tmp_path: Path) -> None:
    cloud = random_cloud(4, degree=2)
    document, binary = made(tmp_path / "a.glb", cloud)
    (primitive,) = document["meshes"][0]["primitives"]
    plain = copy.deepcopy(primitive)
    plain["attributes"] = {
        n: k for n, k in primitive["attributes"].items() if "DEGREE_1" not in n and "DEGREE_2" not in n
    }
    mesh = {"attributes": {"POSITION": 0}, "mode": 0}
    document["meshes"] = [{"primitives": [plain, mesh]}, {"primitives": [primitive]}]
    document["nodes"] = [{"mesh": 0}, {"mesh": 1, "translation": [10, 0, 0]}, {"mesh": 1}]
    document["scenes"] = [{"nodes": [0, 1]}]
    (tmp_path / "a.glb").write_bytes(put_together(document, binary))
    result = read_gltf(tmp_path / "a.glb")
    assert len(result.cloud) == 8  # the third node is not in the scene
    assert not result.cloud.sh_rest[:4].any()
    np.testing.assert_array_equal(result.cloud.sh_rest[4:], cloud.sh_rest)
    np.testing.assert_array_equal(result.cloud.positions_m[4:], cloud.positions_m + np.array([10, 0, 0], np.float32))
    assert any("1 primitives of meshes[0] that are no Gaussians" in note for note in result.notes)


def encode(linear: np.ndarray) -> np.ndarray:
    """The sRGB transfer function of IEC 61966-2-1."""
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def test_linear_colours_become_display_ones(tmp_path: Path) -> None:
    base = random_cloud(50, degree=1)
    linear = np.random.default_rng(0).uniform(0.05, 0.9, (50, 3))
    errors = []
    for strength in (0.0, 1e-2, 2e-2):
        cloud = GaussianCloud(
            base.positions_m,
            base.scales_m,
            base.rotations_wxyz,
            base.opacities,
            (linear - 0.5) / SH_C0,
            strength * base.sh_rest,
        )
        document, binary = made(tmp_path / "a.glb", cloud)
        extension = document["meshes"][0]["primitives"][0]["extensions"]["KHR_gaussian_splatting"]
        extension["colorSpace"] = "lin_rec709_display"
        (tmp_path / "a.glb").write_bytes(put_together(document, binary))
        result = read_gltf(tmp_path / "a.glb")
        assert result.colour_space == "linear"
        assert any("linear colours" in note for note in result.notes)
        directions = unit_directions(20)
        expected = encode(radiance(cloud, directions) + 0.5)
        errors.append(float(np.abs(radiance(result.cloud, directions) + 0.5 - expected).max()))
    assert errors[0] < 1e-5
    # What is left of the harmonics' first-order conversion is of second order: twice as strong, four times as wrong.
    assert 1e-6 < errors[1] < 1e-3
    assert 3 < errors[2] / errors[1] < 5


def test_unknown_values_of_open_fields_are_taken_as_the_usual_ones_and_said(tmp_path: Path) -> None:
    cloud = random_cloud(3, degree=0)
    document, binary = made(tmp_path / "a.glb", cloud)
    extension = document["meshes"][0]["primitives"][0]["extensions"]["KHR_gaussian_splatting"]
    extension |= {"kernel": "customShape", "colorSpace": "unheard of", "extensions": {"EXT_shape": {}}}
    (tmp_path / "a.glb").write_bytes(put_together(document, binary))
    result = read_gltf(tmp_path / "a.glb")
    notes = " ".join(result.notes)
    assert "customShape" in notes
    assert "unheard of" in notes
    assert "EXT_shape" in notes
    np.testing.assert_array_equal(result.cloud.positions_m, cloud.positions_m)


def test_a_file_of_another_tool_by_the_draft_with_logarithms_of_scales() -> None:
    result = read_gltf(DATA / "khr_conformance_matrix.glb")
    cloud = result.cloud
    assert len(cloud) == 15
    assert cloud.degree == 3
    assert any("logarithms" in note for note in result.notes)
    np.testing.assert_array_equal(cloud.positions_m, np.tile([1, 2, 3], (15, 1)))
    # In the order of its nodes: three kinds of rotation, five of scale, three of opacity, four degrees.
    usual = [0.0, 0.5, -0.5]
    logs = [usual] * 3 + [[0.2, -0.1, 0.7], [1, -2, 3], [1, 0, -1], [2, -3, 4], [1, 0, -1]] + [usual] * 7
    np.testing.assert_allclose(np.log(cloud.scales_m), logs, atol=1e-5)
    opacities = [0.25] * 8 + [0.75, 64 / 255, 16384 / 65535] + [0.25] * 4
    np.testing.assert_allclose(cloud.opacities, opacities, atol=1e-6)
    assert (turned_by(cloud.rotations_wxyz, np.tile([0.0, 1, 0, 0], (15, 1))) < 1e-6).all()  # xyzw (1, 0, 0, 0)
    np.testing.assert_allclose(cloud.sh_dc[3], [0.1, 0.2, 0.3], atol=1e-6)  # the one in sRGB
    linear = np.array([0.1, 0.2, 0.3]) * SH_C0 + 0.5
    np.testing.assert_allclose(cloud.sh_dc[0] * SH_C0 + 0.5, encode(linear), atol=1e-5)
    # Coefficient k of the file is k + 0.1, 0.2, 0.3; the conversion scales each channel alike.
    factor = cloud.sh_rest[14, 0] / [1.1, 1.2, 1.3]
    expected = (np.arange(1, 16)[:, None] + [0.1, 0.2, 0.3]) * factor
    np.testing.assert_allclose(cloud.sh_rest[14], expected, rtol=1e-5)


Change = Callable[[Document], object]


def change_view(**fields: Any) -> Change:
    return lambda d: d["bufferViews"][2].update(fields)


def change_accessor(**fields: Any) -> Change:
    return lambda d: d["accessors"][2].update(fields)


def change_attributes(**fields: Any) -> Change:
    return lambda d: d["meshes"][0]["primitives"][0]["attributes"].update(fields)


DAMAGES: dict[str, Change] = {
    "more than its buffer view holds": change_accessor(count=4),
    "announces 9007199254740992 elements": change_accessor(count=2**53),
    "count in its JSON is 9223372036854775808": change_accessor(count=2**63),
    "count in its JSON is -1": change_accessor(count=-1),
    "count in its JSON is True": change_accessor(count=True),
    "announces 0 elements": change_accessor(count=0),
    r"bufferViews\[99\]": change_accessor(bufferView=99),
    "is sparse": change_accessor(sparse={"count": 1}),
    "not VEC4 of 5126": change_accessor(type="VEC3"),
    "of 5125": change_accessor(componentType=5125),
    "neither true nor false": change_accessor(normalized=1),
    "ends beyond its buffer": change_view(byteOffset=10**9),
    "stride of 1 bytes": change_view(byteStride=1),
    "stride of 4000 bytes": change_view(byteStride=4000),
    "compressed by an extension": change_view(extensions={"EXT_meshopt_compression": {}}),
    r"buffers\[7\]": change_view(buffer=7),
    "has no POSITION": lambda d: d["meshes"][0]["primitives"][0]["attributes"].pop("POSITION"),
    r"accessors\[nine\]": change_attributes(POSITION="nine"),
    "degree 1 are not complete": lambda d: d["meshes"][0]["primitives"][0]["attributes"].pop(
        PREFIX + "SH_DEGREE_1_COEF_1"
    ),
    "degree 3 are not complete": change_attributes(**{PREFIX + f"SH_DEGREE_3_COEF_{n}": 5 for n in range(7)}),
    "not of the mode POINTS": lambda d: d["meshes"][0]["primitives"][0].pop("mode"),
    "3 positions and 1 of another": change_accessor(count=1),
    r"meshes\[5\]": lambda d: d["nodes"][0].update(mesh=5),
    "its own ancestor": lambda d: d["nodes"][0].update(children=[0]),
    "not 3 numbers": lambda d: d["nodes"][0].update(scale=[1, 2]),
    "out of range": lambda d: d["nodes"][0].update(translation=[1e300, 0, 0]),
    "rotation of length 0": lambda d: d["nodes"][0].update(rotation=[0, 0, 0, 0]),
    "no primitive with": lambda d: d["meshes"][0]["primitives"][0].pop("extensions"),
    "needs the extension EXT_meshopt": lambda d: d.update(extensionsRequired=["EXT_meshopt_compression"]),
    "packed by KHR_gaussian_splatting_compression": lambda d: d["meshes"][0]["primitives"][0]["extensions"][
        "KHR_gaussian_splatting"
    ].update(extensions={"KHR_gaussian_splatting_compression_spz_2": {}}),
    "glTF version '3.0'": lambda d: d["asset"].update(version="3.0"),
    "nodes in its JSON is no list": lambda d: d.update(nodes={}),
    "asset in its JSON is no object": lambda d: d.update(asset=[]),
    "byteLength": lambda d: d["buffers"][0].update(byteLength=10**9),
    "not in the same folder": lambda d: d["buffers"][0].update(uri="https://example.org/a.bin"),
    r"same folder \(../a.bin\)": lambda d: d["buffers"][0].update(uri="%2e%2e/a.bin"),
    r"same folder \(/etc/passwd\)": lambda d: d["buffers"][0].update(uri="/etc/passwd"),
    r"is missing \(b.bin\)": lambda d: d["buffers"][0].update(uri="b.bin"),
    "damaged base64": lambda d: d["buffers"][0].update(uri="data:;base64,$$$"),
    "not base64": lambda d: d["buffers"][0].update(uri="data:text/plain,abc"),
}


@pytest.mark.parametrize("message", DAMAGES)
def test_a_damaged_document_is_refused_in_one_line_that_names_the_defect(tmp_path: Path, message: str) -> None:
    document, binary = made(tmp_path / "a.glb", random_cloud(3, degree=1))
    DAMAGES[message](document)
    if message == "byteLength":
        message = "bytes"
    (tmp_path / "a.glb").write_bytes(put_together(document, binary))
    with pytest.raises(FormatError, match=message) as error:
        read_gltf(tmp_path / "a.glb")
    assert "\n" not in str(error.value)
    assert str(error.value).startswith("a.glb: ")


def test_a_damaged_container_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.glb"
    document, binary = made(path, random_cloud(3, degree=0))
    data = path.read_bytes()
    longer = struct.pack("<I", struct.unpack("<I", data[12:16])[0] + 4000)
    cases = {
        "cut short": data[:-1],
        "within the GLB header": data[:10],
        "GLB version 1": data[:4] + struct.pack("<I", 1) + data[8:],
        "ends beyond the file": data[:12] + longer + data[16:],
        "first chunk of the GLB is not JSON": data[:16] + b"NOSJ" + data[20:],
        "cannot be parsed": data.replace(b'"asset"', b'"asset;'),
        "JSON cannot be parsed": put_together(document, binary).replace(b'"scene": 0,', b'"scene":NaN'),
        "JSON is no object": b"[1]",
        "JSON is too large": b'{"asset":[' + b"{}," * 2_000_000 + b"{}]}",
        "parsed": b'{"asset":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    }
    for message, content in cases.items():
        path.write_bytes(content)
        with pytest.raises(FormatError, match=message) as error:
            read_gltf(path)
        assert len(str(error.value)) < 300


def test_instances_cannot_blow_a_small_file_up(tmp_path: Path) -> None:
    cloud = random_cloud(1000, degree=0)
    document, binary = made(tmp_path / "a.glb", cloud)
    document["nodes"] = [{"mesh": 0}] * 5_000
    document["scenes"] = [{"nodes": list(range(5_000))}]
    (tmp_path / "a.glb").write_bytes(put_together(document, binary))
    with pytest.raises(FormatError, match="instances its splats"):
        read_gltf(tmp_path / "a.glb")
    document["nodes"] = [{"mesh": 0}] * 20_000
    document["scenes"] = [{"nodes": list(range(20_000))}]
    (tmp_path / "a.glb").write_bytes(put_together(document, binary))
    with pytest.raises(FormatError, match="more than 10000 times"):
        read_gltf(tmp_path / "a.glb")


def test_damaged_gaussians_are_refused_or_dropped_and_counted(tmp_path: Path) -> None:
    cloud = random_cloud(6, degree=1)
    document, binary = made(tmp_path / "a.glb", cloud)
    for name, bad in (("OPACITY", 1.5), ("SCALE", -0.1), ("SH_DEGREE_1_COEF_2", np.nan), ("ROTATION", 0.0)):
        index = document["meshes"][0]["primitives"][0]["attributes"][PREFIX + name]
        array = values(document, binary, index).copy()
        array[2] = bad
        (tmp_path / "a.glb").write_bytes(replaced(document, binary, PREFIX + name, array, False))
        with pytest.raises(FormatError, match="1 of 6 Gaussians"):
            read_gltf(tmp_path / "a.glb")
        result = read_gltf(tmp_path / "a.glb", drop_invalid=True)
        assert result.dropped == 1
        np.testing.assert_array_equal(result.cloud.positions_m, np.delete(cloud.positions_m, 2, axis=0))


def test_only_glb_is_written(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="suffix .glb"):
        write_gltf(tmp_path / "a.gltf", random_cloud(1, degree=0))
    assert list(tmp_path.iterdir()) == []
