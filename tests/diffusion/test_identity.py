from __future__ import annotations

import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from backend.errors import MODEL_MISSING, UserError
from backend.perception.identity import (
    ArcFace,
    FacePack,
    find_face,
    five_points,
    forbid_downloads,
    identity,
    similarity,
)
from backend.perception.photo import read_photo
from tests.diffusion.tiny_vision import Shelf

PORTRAIT = Path(__file__).parents[2] / "scripts" / "data" / "collins.png"


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    from tests.diffusion.tiny_faces import write_auraface, write_buffalo

    return Shelf(tmp_path_factory.mktemp("models"), auraface=write_auraface, insightface_pack=write_buffalo)


@pytest.fixture(scope="module")
def face() -> np.ndarray:
    """The head of a real portrait."""
    image = read_photo(PORTRAIT).image
    found = find_face(image)
    assert found is not None
    low, high = found[:, :2].min(0), found[:, :2].max(0)
    size = high - low
    (x0, y0), (x1, y1) = np.maximum(low - 0.6 * size, 0).astype(int), (high + 0.5 * size).astype(int)
    return np.ascontiguousarray(image[y0:y1, x0:x1])


def blob(seed: int, size: int = 96) -> np.ndarray:
    """A bright square with a pattern of its own on black: a face to the tiny detector."""
    image = np.zeros((320, 320, 3), np.uint8)
    pattern = np.random.default_rng(seed).integers(200, 256, (4, 4, 3), np.uint8)
    image[100 : 100 + size, 120 : 120 + size] = cv2.resize(pattern, (size, size), interpolation=cv2.INTER_NEAREST)
    return image


def test_the_five_points_lie_on_the_face(face: np.ndarray) -> None:
    found = find_face(face)
    assert found is not None
    eye, other_eye, nose, mouth, other_mouth = five_points(found)
    assert eye[0] < nose[0] < other_eye[0] and mouth[0] < other_mouth[0]
    assert max(eye[1], other_eye[1]) < nose[1] < min(mouth[1], other_mouth[1])


def test_auraface_embeds_the_face_that_mediapipe_finds(shelf: Shelf, face: np.ndarray) -> None:
    network = ArcFace(shelf.folder("auraface"), shelf.source("auraface"))
    vector = network.embed(face)
    assert vector is not None and vector.shape == (512,) and vector.dtype == np.float32
    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)
    again = network.embed(face)
    assert again is not None
    np.testing.assert_array_equal(vector, again)
    mirrored = network.embed(np.ascontiguousarray(face[:, ::-1]))
    assert mirrored is not None and similarity(vector, mirrored) < 0.9999


def test_the_crop_follows_the_face(shelf: Shelf, face: np.ndarray) -> None:
    """The same face elsewhere, larger and turned gives nearly the same vector; another part of the picture does not."""
    network = ArcFace(shelf.folder("auraface"), shelf.source("auraface"))
    found = find_face(face)
    assert found is not None
    points = five_points(found)
    turn = cv2.getRotationMatrix2D((face.shape[1] / 2, face.shape[0] / 2), 15, 1.3)
    turn[:, 2] += 60
    moved = cv2.warpAffine(face, turn, (face.shape[1] * 2, face.shape[0] * 2), flags=cv2.INTER_CUBIC)
    one = network.embed_at(face, points)
    assert similarity(one, network.embed_at(moved, points @ turn[:, :2].T + turn[:, 2])) > 0.995
    assert similarity(one, network.embed_at(face, points + [0.3 * face.shape[1], 0])) < 0.95


def test_no_face_is_none(shelf: Shelf) -> None:
    empty = np.full((120, 120, 3), 127, np.uint8)
    assert ArcFace(shelf.folder("auraface"), shelf.source("auraface")).embed(empty) is None
    pack = FacePack(shelf.folder("insightface-pack"), shelf.source("insightface-pack"))
    assert pack.embed(np.zeros((120, 120, 3), np.uint8)) is None


def test_a_pack_runs_through_face_analysis(shelf: Shelf) -> None:
    pack = FacePack(shelf.folder("insightface-pack"), shelf.source("insightface-pack"))
    first, again, other = (pack.embed(blob(seed)) for seed in (0, 0, 1))
    assert first is not None and again is not None and other is not None
    assert first.shape == (512,) and np.linalg.norm(first) == pytest.approx(1, abs=1e-5)
    np.testing.assert_array_equal(first, again)
    assert similarity(first, other) < 0.9999
    assert sorted(pack._app.models) == ["detection", "recognition"]


def test_only_two_models_of_a_pack_are_opened(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    """The 3D landmarks would make insightface unpickle a file of its own."""
    from insightface.model_zoo import landmark

    def opened(name: str) -> None:
        raise AssertionError(f"{name} was unpickled")

    monkeypatch.setattr(landmark, "get_object", opened)
    monkeypatch.setattr(sys.modules["insightface.model_zoo.model_zoo"], "Landmark", opened)
    FacePack(shelf.folder("insightface-pack"), shelf.source("insightface-pack"))


def test_insightface_cannot_download(shelf: Shelf, tmp_path: Path) -> None:
    from insightface.app import FaceAnalysis

    forbid_downloads()
    with pytest.raises(UserError, match="wanted to download https://.*buffalo_l"):
        FaceAnalysis(name="buffalo_l", root=str(tmp_path))
    assert not list(tmp_path.rglob("*.onnx"))


def test_the_default_is_auraface_then_the_users_pack_then_nothing(shelf: Shelf, tmp_path: Path) -> None:
    from tests.diffusion.tiny_faces import write_buffalo

    assert isinstance(identity(shelf), ArcFace)
    assert isinstance(identity(Shelf(tmp_path / "b", insightface_pack=write_buffalo)), FacePack)
    assert identity(Shelf(tmp_path / "c")) is None


def test_a_pack_without_a_recogniser_says_so(shelf: Shelf, tmp_path: Path) -> None:
    from tests.diffusion.tiny_faces import write_detector

    other = Shelf(tmp_path, auraface=lambda to: write_detector(to / "det_10g.onnx"))
    with pytest.raises(UserError, match="no model for recognition"):
        ArcFace(other.folder("auraface"), other.source("auraface"))


def test_a_graph_that_reads_elsewhere_is_refused(shelf: Shelf, tmp_path: Path) -> None:
    import onnx
    from onnx import TensorProto

    from tests.diffusion.tiny_faces import write_auraface

    write_auraface(tmp_path)
    model = onnx.load(str(tmp_path / "glintr100.onnx"))
    tensor = TensorProto(name="far", data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    tensor.external_data.append(onnx.StringStringEntryProto(key="location", value="../../far"))
    model.graph.initializer.append(tensor)
    (tmp_path / "glintr100.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(UserError, match="reads the file"):
        ArcFace(tmp_path, shelf.source("auraface"))


def test_without_insightface_one_line_says_what_is_done_instead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backend.diffusion.outside.is_installed", lambda module: False)
    with pytest.raises(UserError, match="no identity is measured") as caught:
        ArcFace(tmp_path, Shelf(tmp_path).source("auraface"))
    assert caught.value.code == MODEL_MISSING
