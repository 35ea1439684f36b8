"""Training frames at the size a preset learns from, with every target that was made.

Frames are kept packed (a byte per number) at their final size and become tensors on the device when they are looked at:
what travels there is a quarter of what it becomes.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import cv2
import numpy as np
import torch

from backend.human.camera import PinholeCamera
from backend.human.frame_targets import FrameStore, PackedFrame, unpacked_colours
from backend.raster import Cameras
from backend.splats.persona_losses import TrainingFrame

if TYPE_CHECKING:
    from backend.human.training_frames import TrainingSet

MARGIN_PX = 6
"""Of background that stays round a person: outlines are soft, and SSIM looks three pixels far."""

FAINT = 0.02
"""A mask below it is no person."""


@dataclass(frozen=True)
class Target:
    """A packed frame with what belongs to it.

    Attributes:
        frame: Its picture and targets.
        albedo: uint8 [H, W, 3], or None.
        face: The same person's face by a camera of its own, or None.
    """

    frame: PackedFrame
    albedo: np.ndarray | None = None
    face: PackedFrame | None = None

    @property
    def captured(self) -> bool:
        """Whether it is a photograph."""
        return self.frame.captured

    def unpack(self, device: str = "cpu") -> TrainingFrame:
        """The frame as the optimiser takes it."""
        albedo = None if self.albedo is None else unpacked_colours(self.albedo, device)
        face = None if self.face is None else self.face.unpack(device)
        return replace(self.frame.unpack(device), albedo=albedo, face=face)


class PersonaFrames(FrameStore[Target]):
    """Frames with all that belongs to them, which become tensors when they are looked at."""

    def digest(self) -> str:
        """Names all pictures, targets and poses."""
        made = hashlib.sha256()
        for target in self.packed:
            made.update(b"" if target.albedo is None else np.ascontiguousarray(target.albedo).tobytes())
            for frame in (target.frame, target.face):
                if frame is None:
                    continue
                camera = frame.camera
                made.update(repr((frame.nearest_m, frame.captured, camera.intrinsics_px.tolist())).encode())
                arrays = (frame.image, frame.mask, frame.labels, frame.depth_steps, frame.normals, frame.seam)
                arrays += (frame.pose, frame.translation_m, frame.actions, camera.w2c)
                for array in arrays:
                    made.update(b"" if array is None else np.ascontiguousarray(array).tobytes())
        return made.hexdigest()


def persona_frames(training: TrainingSet, picture_px: int, face_px: int, device: str = "cpu") -> PersonaFrames:
    """What an avatar is learned from, at a preset's size.

    Args:
        training: Frames with all targets, the photographs first.
        picture_px: Longest side of a picture of the person; larger ones are shrunk (`PersonaSettings.picture_px`).
        face_px: Side of the face patch (`PersonaSettings.face_px`).
        device: Where the frames become tensors.
    """
    made = []
    for number, frame in enumerate(training.frames.packed):
        albedo = training.albedo[number] if number < len(training.albedo) else None
        small = shrunk(frame, picture_px)
        if albedo is not None:
            albedo = _resized(albedo, small.camera, cv2.INTER_AREA)
        face = shrunk(training.face, face_px) if number == 0 and training.face is not None else None
        made.append(Target(small, albedo, face))
    return PersonaFrames(made, device)


def shrunk(frame: PackedFrame, longest_px: int) -> PackedFrame:
    """A frame whose longest side is at most `longest_px`."""
    camera = frame.camera
    scale = longest_px / max(camera.width, camera.height)
    if scale >= 1:
        return frame
    width, height = max(round(camera.width * scale), 1), max(round(camera.height * scale), 1)
    sx, sy = width / camera.width, height / camera.height
    small = PinholeCamera(
        camera.w2c, camera.fx * sx, camera.fy * sy, camera.cx * sx, camera.cy * sy, width, height
    )  # fmt: skip
    normals = _resized(frame.normals.astype(np.float32), small, cv2.INTER_AREA)
    length = np.linalg.norm(normals, axis=-1, keepdims=True)
    normals = np.where(length > 64, normals * (127 / np.maximum(length, 1)), 0)
    return replace(
        frame,
        image=_resized(frame.image, small, cv2.INTER_AREA),
        mask=_resized(frame.mask, small, cv2.INTER_AREA),
        labels=_resized(frame.labels, small, cv2.INTER_NEAREST),
        depth_steps=_resized(frame.depth_steps, small, cv2.INTER_NEAREST),
        normals=np.round(normals).astype(np.int8),
        seam=None if frame.seam is None else _resized(frame.seam.astype(np.uint8), small, cv2.INTER_NEAREST) > 0,
        camera=small,
    )


def _resized(image: np.ndarray, camera: PinholeCamera, how: int) -> np.ndarray:
    return cv2.resize(image, (camera.width, camera.height), interpolation=how)


def cropped(frame: TrainingFrame, margin_px: int = MARGIN_PX) -> TrainingFrame:
    """A frame without the background far from the person; stored frames are cropped already.

    Pixels cost as much where nothing is; the losses are means, so that a crop changes their weight against the terms
    on the Gaussians alike for all frames.
    """
    rows, columns = (torch.nonzero((frame.mask > FAINT).any(axis))[:, 0] for axis in (1, 0))
    if not len(rows):
        return frame
    height, width = frame.mask.shape
    top, bottom = max(int(rows[0]) - margin_px, 0), min(int(rows[-1]) + margin_px + 1, height)
    left, right = max(int(columns[0]) - margin_px, 0), min(int(columns[-1]) + margin_px + 1, width)
    shift = torch.zeros_like(frame.cameras.K)
    shift[:, 0, 2], shift[:, 1, 2] = left, top
    changes = {
        name: None if value is None else value[..., top:bottom, left:right].contiguous()
        for name in ("image", "mask", "depth", "normals", "seam", "albedo", "labels")
        for value in (getattr(frame, name),)
    }
    cameras = Cameras(frame.cameras.w2c, frame.cameras.K - shift, right - left, bottom - top)
    return replace(frame, cameras=cameras, **changes)


__all__ = ["PersonaFrames", "Target", "cropped", "persona_frames", "shrunk"]
