"""Body pose beyond mediapipe: SAM 3D Body by the package that the user installs after accepting its licence.

Read: facebookresearch/sam-3d-body at 2137f4e5 (`SAM3DBodyEstimator.process_one_image`, `build_models`, `MHRHead`) and
its list of 70 keypoints. As published it reads a pickle (`model.ckpt`), a TorchScript body (`mhr_model.pt`) and code
from a hub (its picture encoder). None of the three is opened here. Instead:

- `model.safetensors` holds the checkpoint's tensors, beside `model_config.json` (the package reads it as YAML, of which
  JSON is a part);
- the body comes from the package `mhr` (Apache-2.0), which the code prefers when it is there;
- the encoder comes from the installed package `dinov3`.

Its keypoints are retargeted to our 55 joints; the fit takes them like those of mediapipe.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from backend.context import Context
from backend.diffusion import gate, outside
from backend.diffusion.load import Folders, read_tensors
from backend.errors import MODEL_MISSING, UserError
from blender_addon.shared.skeleton import JOINT_NAMES

NAMES = (
    "nose left_eye right_eye left_ear right_ear left_shoulder right_shoulder left_elbow right_elbow left_hip right_hip "
    "left_knee right_knee left_ankle right_ankle left_big_toe left_small_toe left_heel right_big_toe right_small_toe "
    "right_heel "
    "right_thumb_tip right_thumb3 right_thumb2 right_thumb1 right_index_tip right_index3 right_index2 right_index1 "
    "right_middle_tip right_middle3 right_middle2 right_middle1 right_ring_tip right_ring3 right_ring2 right_ring1 "
    "right_pinky_tip right_pinky3 right_pinky2 right_pinky1 right_wrist "
    "left_thumb_tip left_thumb3 left_thumb2 left_thumb1 left_index_tip left_index3 left_index2 left_index1 "
    "left_middle_tip left_middle3 left_middle2 left_middle1 left_ring_tip left_ring3 left_ring2 left_ring1 "
    "left_pinky_tip left_pinky3 left_pinky2 left_pinky1 left_wrist "
    "left_olecranon right_olecranon left_cubital_fossa right_cubital_fossa left_acromion right_acromion neck"
).split()
"""The 70 keypoints (mhr70) in order; fingers count from the knuckle as SMPL-X does (the package from the tip)."""

POSE_LANDMARKS = (
    "nose left_eye left_eye left_eye right_eye right_eye right_eye left_ear right_ear - - left_shoulder right_shoulder "
    "left_elbow right_elbow left_wrist right_wrist left_pinky1 right_pinky1 left_index1 right_index1 left_thumb2 "
    "right_thumb2 left_hip right_hip left_knee right_knee left_ankle right_ankle left_heel right_heel left_big_toe "
    "right_big_toe"
).split()
"""Mediapipe's 33 pose landmarks as keypoints; "-" has none (the mouth)."""

BALL_SHARE = 0.7
"""Where the joint of the toes lies between the heel and the toes' tips."""

_DIRECT = {name: name for name in NAMES if name in JOINT_NAMES} | {
    "left_eye_smplhf": "left_eye",
    "right_eye_smplhf": "right_eye",
}
_FRAMES = (
    (("pelvis", "spine1", "spine2", "spine3"), ("left_hip", "right_hip", "neck")),
    (("left_collar", "right_collar"), ("left_shoulder", "right_shoulder", "neck")),
    (("head", "jaw"), ("left_eye_smplhf", "right_eye_smplhf", "neck")),
)
"""Joints without a keypoint, and three with one, whose place tells theirs."""


@dataclass(frozen=True)
class BodyPose:
    """Where the joints of one person are.

    Attributes:
        joints_m: float32 [55, 3], camera axes (x right, y down, z forward), origin in the camera.
        direct: bool [55]: seen as a keypoint; the others follow from their neighbours.
        landmarks_px: float32 [33, 2] mediapipe's pose landmarks in the picture.
        landmarks_m: float32 [33, 3] the same in space, camera axes, origin between the hips.
        present: bool [33] which of them there are.
        focal_px: Of the camera that was assumed.
    """

    joints_m: np.ndarray
    direct: np.ndarray
    landmarks_px: np.ndarray
    landmarks_m: np.ndarray
    present: np.ndarray
    focal_px: float


class Sam3dBody:
    """Joints of a person by SAM 3D Body."""

    def __init__(self, folders: Folders, device: str = "cuda") -> None:
        """Load it.

        Raises:
            UserError: Code 3 if a package is missing, or the weights are not there as safetensors.
        """
        folder = folders.folder("sam3d-body")
        gate.check_folder(folder)
        with outside.guarded("SAM 3D Body", hub=_encoder):
            package = outside.require("sam3d-body")
            if not outside.is_installed("mhr"):
                raise UserError(
                    "SAM 3D Body needs the body of the package mhr, since its own is a TorchScript archive: "
                    "pip install git+https://github.com/facebookresearch/MHR",
                    MODEL_MISSING,
                )
            model, config = _build(folder)
            self._estimator = package.SAM3DBodyEstimator(model.to(device).eval(), config)
        self.sources = (folders.source("sam3d-body"),)

    def estimate(
        self,
        image: np.ndarray,
        mask: np.ndarray,
        rest_joints_m: np.ndarray,
        context: Context,
        intrinsics_px: np.ndarray | None = None,
    ) -> BodyPose | None:
        """The person that the mask shows; None where it is not recognised.

        Args:
            image: uint8 [H, W, 3] RGB.
            mask: float32 [H, W], 0..1.
            rest_joints_m: [55, 3] of our body model, for the joints that have no keypoint.
            context: For cancelling.
            intrinsics_px: float [3, 3] of the camera; None lets the package assume one.
        """
        context.raise_if_cancelled()
        rows, columns = np.nonzero(mask > 0.5)
        if not len(rows):
            return None
        box = np.array([[columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]], np.float32)
        camera = None if intrinsics_px is None else torch.from_numpy(intrinsics_px.astype(np.float32))[None]
        people = self._estimator.process_one_image(
            image, bboxes=box, masks=(mask > 0.5)[None].astype(np.uint8), cam_int=camera
        )
        return body_pose(people[0], rest_joints_m) if people else None


def body_pose(found: dict[str, Any], rest_joints_m: np.ndarray) -> BodyPose:
    """From one entry of the package's answer.

    Args:
        found: With `pred_keypoints_3d` [70, 3], `pred_keypoints_2d` [70, 2], `pred_cam_t` [3] and `focal_length`.
        rest_joints_m: [55, 3] of our body model.
    """
    keypoints = np.asarray(found["pred_keypoints_3d"], np.float64)
    pixels = np.asarray(found["pred_keypoints_2d"], np.float64)
    joints, direct = retarget(keypoints, rest_joints_m)
    rows = [NAMES.index(name) if name != "-" else 0 for name in POSE_LANDMARKS]
    hips = (keypoints[NAMES.index("left_hip")] + keypoints[NAMES.index("right_hip")]) / 2
    return BodyPose(
        joints_m=(joints + np.asarray(found["pred_cam_t"], np.float64)).astype(np.float32),
        direct=direct,
        landmarks_px=pixels[rows].astype(np.float32),
        landmarks_m=(keypoints[rows] - hips).astype(np.float32),
        present=np.array([name != "-" for name in POSE_LANDMARKS]),
        focal_px=float(np.asarray(found["focal_length"]).reshape(-1)[0]),
    )


def retarget(keypoints_m: np.ndarray, rest_joints_m: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """70 keypoints to our 55 joints.

    Args:
        keypoints_m: [70, 3] in any right-handed axes.
        rest_joints_m: [55, 3] of our body model at rest.

    Returns:
        Joints [55, 3] in the same axes, and bool [55]: whether the joint is itself a keypoint.
    """
    at = {name: keypoints_m[number] for number, name in enumerate(NAMES)}
    joints = np.zeros((len(JOINT_NAMES), 3))
    direct = np.zeros(len(JOINT_NAMES), bool)
    for joint, keypoint in _DIRECT.items():
        number = JOINT_NAMES.index(joint)
        joints[number], direct[number] = at[keypoint], True
    for side in ("left", "right"):
        tips = (at[f"{side}_big_toe"] + at[f"{side}_small_toe"]) / 2
        heel = at[f"{side}_heel"]
        joints[JOINT_NAMES.index(f"{side}_foot")] = heel + BALL_SHARE * (tips - heel)
    for names, frame in _FRAMES:
        corners = [JOINT_NAMES.index(name) for name in frame]
        wanted = [JOINT_NAMES.index(name) for name in names]
        scale, turn, shift = _similarity(rest_joints_m[corners], joints[corners])
        joints[wanted] = scale * rest_joints_m[wanted] @ turn.T + shift
    return joints, direct


def _similarity(source: np.ndarray, target: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    """Scale, rotation and shift that bring points [K, 3] nearest to others (Umeyama 1991); never a mirror."""
    a, b = source - source.mean(0), target - target.mean(0)
    u, sizes, vt = np.linalg.svd(b.T @ a)
    signs = np.array([1.0, 1.0, np.linalg.det(u @ vt)])
    turn = u * signs @ vt
    scale = float((sizes * signs).sum() / max((a**2).sum(), 1e-12))
    return scale, turn, target.mean(0) - scale * turn @ source.mean(0)


def _build(folder: Path) -> tuple[Any, Any]:
    """The network from its configuration, with the numbers of the safetensors file."""
    from sam_3d_body.models.meta_arch import SAM3DBody  # pyright: ignore[reportMissingImports]
    from sam_3d_body.utils.config import get_config  # pyright: ignore[reportMissingImports]

    for name in ("model_config.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise UserError(
                f"SAM 3D Body needs {name} (its own model.ckpt is a pickle and stays closed): convert it and import "
                "the folder again",
                MODEL_MISSING,
            )
    config = get_config(str(folder / "model_config.json"))
    model = SAM3DBody(config)
    found = model.load_state_dict(read_tensors(folder / "model.safetensors"), strict=False)
    missing = [name for name in found.missing_keys if ".mhr." not in f".{name}"]
    if missing:
        raise UserError(f"the weights of SAM 3D Body lack {missing[0]}; import them again", MODEL_MISSING)
    return model, config


def _encoder(repository: str, name: str, *_: object, **settings: Any) -> Any:
    """For `torch.hub.load`: DINOv3 from the installed package, without weights."""
    if "dinov3" not in repository or not outside.is_installed("dinov3"):
        raise UserError(
            f"SAM 3D Body asks for {name} of {repository}, which is code from a hub: "
            "pip install git+https://github.com/facebookresearch/dinov3",
            MODEL_MISSING,
        )
    make = getattr(importlib.import_module("dinov3.hub.backbones"), name)
    return make(**{key: value for key, value in settings.items() if key != "source"})
