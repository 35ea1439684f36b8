"""A face as a vector: insightface on ONNX files that lie on this machine.

By default the recogniser is AuraFace's (Apache-2.0) and mediapipe finds the face, because the detectors published
beside it are InsightFace's and not for commercial use. A user may bring a whole pack of InsightFace (non-commercial),
which `FaceAnalysis` then runs.

The code of insightface 2.1 is MIT and needs no network, but given a name instead of a folder it would download a pack:
it is only ever given a folder, and its download function is replaced by a refusal. Of a pack only the detector and the
recogniser are opened: a third kind of model in it (3D landmarks) would make insightface unpickle a file of its own.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import cv2
import numpy as np

from backend.diffusion import gate, outside
from backend.diffusion.interfaces import FaceIdentity, Source
from backend.diffusion.load import Folders
from backend.errors import MODEL_MISSING, UserError

DETECTION_THRESHOLD = 0.5
"""insightface's default."""

MARGIN = 0.5
"""Frame around a tight crop, of its size: detectors need to see a head's surroundings."""

RIGHT_IRIS, LEFT_IRIS, NOSE_TIP, MOUTH_RIGHT, MOUTH_LEFT = slice(468, 473), slice(473, 478), 4, 61, 291
"""Of mediapipe's 478 landmarks; left and right are the subject's."""

MODULES = ("detection", "recognition")
Kind = Literal["detection", "recognition", "other"]


class ArcFace:
    """`FaceIdentity` by insightface's recogniser alone, on a face that mediapipe finds."""

    def __init__(self, folder: Path, source: Source, device: str = "cpu") -> None:
        """Load the recogniser.

        Args:
            folder: With its `.onnx` file; others in it are not opened.
            source: What it is, for the result.
            device: "cpu" or "cuda"; CUDA needs onnxruntime-gpu, else the CPU does it.

        Raises:
            UserError: Code 3 if insightface is not installed or there is no recogniser in the folder.
        """
        self.sources = (source,)
        gate.check_folder(folder, onnx=True)
        with outside.guarded("insightface"):
            module = outside.require("auraface")
            forbid_downloads()
            path = _models(folder, ("recognition",))["recognition"]
            self._model = module.model_zoo.get_model(str(path), providers=_providers(device))
        self._model.prepare(-1 if device == "cpu" else 0)

    def embed(self, image: np.ndarray) -> np.ndarray | None:
        """Unit vector float32 [D] of the largest face of uint8 [H, W, 3] RGB; None where no face is found."""
        found = find_face(image)
        return None if found is None else self.embed_at(image, five_points(found))

    def embed_at(self, image: np.ndarray, points_px: np.ndarray) -> np.ndarray:
        """Unit vector float32 [D] of the face with these `five_points` [5, 2]."""
        from insightface.utils.face_align import norm_crop

        crop = norm_crop(_bgr(image), points_px.astype(np.float32), self._model.input_size[0])
        return _unit(self._model.get_feat(crop).reshape(-1))


class FacePack:
    """`FaceIdentity` by insightface's `FaceAnalysis` on a pack that the user brings."""

    def __init__(self, folder: Path, source: Source, device: str = "cpu") -> None:
        """Load detector and recogniser; see `ArcFace`.

        Raises:
            UserError: Code 3 if insightface is not installed or the pack lacks one of the two.
        """
        self.sources = (source,)
        gate.check_folder(folder, onnx=True)
        with outside.guarded("insightface"):
            module = outside.require("auraface")
            forbid_downloads()
            models = _models(folder, MODULES)
            # A folder with links to the two and nothing else; the detector opens its file again for each new size.
            self._stage = tempfile.TemporaryDirectory(prefix="pack-", ignore_cleanup_errors=True)
            for path in models.values():
                _link(path, Path(self._stage.name) / path.name)
            self._app = module.app.FaceAnalysis(
                name=self._stage.name,
                root=self._stage.name,
                allowed_modules=list(MODULES),
                providers=_providers(device),
            )
        # Without a size it looks in a large square and in a small one, for faces that fill the picture.
        self._app.prepare(ctx_id=-1 if device == "cpu" else 0, det_thresh=DETECTION_THRESHOLD, det_size=None)

    def embed(self, image: np.ndarray) -> np.ndarray | None:
        """Unit vector float32 [D] of the largest face of uint8 [H, W, 3] RGB; None where no face is found."""
        faces = self._app.get(_bgr(image)) or self._app.get(_bgr(_framed(image)))
        if not faces:
            return None
        largest = max(faces, key=lambda face: float(np.prod(face.bbox[2:4] - face.bbox[0:2])))
        return _unit(largest.embedding)


def identity(folders: Folders, device: str = "cpu") -> FaceIdentity | None:
    """The first that is installed, ready to work: AuraFace, then the user's pack; None where there is neither.

    Without one no identity is measured: faces are held by their landmarks and colours, and `doctor` says so.
    """
    for model_id, cls in (("auraface", ArcFace), ("insightface-pack", FacePack)):
        try:
            return cls(folders.folder(model_id), folders.source(model_id), device)
        except UserError as error:
            if error.kind != "NO_MODEL":
                raise
    return None


def similarity(one: np.ndarray, other: np.ndarray) -> float:
    """Cosine of two unit vectors [D]: 1 for the same picture, about 0 for strangers."""
    return float(one @ other)


def find_face(image: np.ndarray) -> np.ndarray | None:
    """Mediapipe's landmarks [478, 3], px, of the largest face of uint8 [H, W, 3]; None where there is none."""
    from backend.perception.landmarks import detect_face, detect_faces, detect_pose

    if faces := detect_faces(image):
        return faces[0]
    rows, columns = (int(side * MARGIN) for side in image.shape[:2])
    if faces := detect_faces(_framed(image)):
        return faces[0] - [columns, rows, 0]
    pose = detect_pose(image)  # small faces: the body says where to look closer
    found = np.zeros((0, 3)) if pose is None else detect_face(image, pose)
    return found if len(found) else None


def five_points(face_px: np.ndarray) -> np.ndarray:
    """Eyes, nose tip and mouth corners [5, 2], those on the picture's left first, of landmarks [478, 3]."""
    flat = face_px[:, :2]
    return np.array(
        [flat[RIGHT_IRIS].mean(0), flat[LEFT_IRIS].mean(0), flat[NOSE_TIP], flat[MOUTH_RIGHT], flat[MOUTH_LEFT]]
    )


def forbid_downloads() -> None:
    """What insightface does not find, it downloads: from now on it cannot, whatever it is asked."""
    import importlib

    def refused(url: str, *_: object, **__: object) -> None:
        raise UserError(f"insightface wanted to download {url}; import the pack instead", MODEL_MISSING)

    for name in ("insightface.utils.storage", "insightface.utils.download"):
        importlib.import_module(name).__dict__["download_file"] = refused


def _models(folder: Path, wanted: Sequence[Kind]) -> dict[Kind, Path]:
    found: dict[Kind, Path] = {}
    for path in sorted(folder.glob("*.onnx")):
        found.setdefault(_kind(path), path)
    if missing := [kind for kind in wanted if kind not in found]:
        raise UserError(f"{folder.name} has no model for {missing[0]}; import the pack again", MODEL_MISSING)
    return {kind: found[kind] for kind in wanted}


def _kind(path: Path) -> Kind:
    """By inputs and outputs, as insightface's own router decides."""
    import onnx

    graph = onnx.load(str(path), load_external_data=False).graph
    weights = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in weights]
    if len(graph.output) >= 5:
        return "detection"
    sides = [side.dim_value for side in inputs[0].type.tensor_type.shape.dim][2:4]
    square = len(sides) == 2 and sides[0] == sides[1] and sides[0] >= 112 and sides[0] % 16 == 0 and sides[0] != 192
    return "recognition" if square and len(inputs) == 1 and len(graph.output) == 1 else "other"


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source.resolve(), target)
    except OSError:  # another disk, or a system without links
        shutil.copyfile(source, target)


def _providers(device: str) -> list[str]:
    import onnxruntime

    there = onnxruntime.get_available_providers()
    gpu = ["CUDAExecutionProvider"] if device.startswith("cuda") and "CUDAExecutionProvider" in there else []
    return [*gpu, "CPUExecutionProvider"]


def _framed(image: np.ndarray) -> np.ndarray:
    rows, columns = (int(side * MARGIN) for side in image.shape[:2])
    return cv2.copyMakeBorder(image, rows, rows, columns, columns, cv2.BORDER_REPLICATE)


def _bgr(image: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(image[..., ::-1])  # insightface counts colours as OpenCV does


def _unit(vector: np.ndarray) -> np.ndarray:
    vector = np.asarray(vector, np.float32)
    return vector / max(float(np.linalg.norm(vector)), 1e-12)
