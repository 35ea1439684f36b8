"""What the models are told about views of a head: prompt by side, the person's face, landmarks, cameras.

A face's conditions hold where a face is seen: tokens and drawing count in full within 45 degrees of the front and not
at all beyond 100 (`backend.diffusion.views`). The landmarks are those of the head in space, projected into each view:
the photo's own on every view would ask for a frontal face all round.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from backend.diffusion.control import as_tensor, draw_face_mesh
from backend.diffusion.face_adapter import ImageTokens
from backend.diffusion.interfaces import Conditions
from backend.diffusion.multiview import MVDREAM_FRONT_DEG, cameras
from backend.diffusion.views import ViewControl, ViewTexts, view_conditions
from backend.raster import Cameras
from backend.splats.stylise_views import Views


@dataclass(frozen=True)
class HeadConditions:
    """For single views of a person's head; a `stylise.Teacher`'s conditions.

    Attributes:
        texts: The prompt for four sides, on the device.
        negative: [1, L, D].
        face: Tokens of the person's face; None: identity by the landmarks only.
        face_scale: Of the face adapter at the front; 0 switches it off.
        landmarks: [468 or 478, 3] MediaPipe's points on the head, in its frame; None without a control network.
        control_scale: Of the face's control network at the front; the paper's is 1.
    """

    texts: ViewTexts
    negative: Tensor
    face: ImageTokens | None = None
    face_scale: float = 0.8
    landmarks: np.ndarray | None = None
    control_scale: float = 1.0

    def __call__(self, views: Views) -> tuple[Conditions, Conditions]:
        """Positive and negative conditions of views."""
        like = self.texts.embeddings
        controls = ()
        if self.landmarks is not None:
            pictures = as_tensor(landmark_pictures(self.landmarks, views.cameras), like)
            controls = (ViewControl(pictures, self.control_scale, of_face=True),)
        azimuths, elevations = views.azimuths_deg.to(like.device), views.elevations_deg.to(like.device)
        return view_conditions(
            self.texts,
            self.negative,
            azimuths,
            elevations,
            face=self.face,
            face_scale=self.face_scale,
            controls=controls,
        )


@dataclass(frozen=True)
class AroundConditions:
    """For groups of four views: one prompt, and the cameras say the rest.

    Attributes:
        text: [1, L, D], on the device.
        negative: [1, L, D].
        front_deg: Azimuth that the model calls the front.
    """

    text: Tensor
    negative: Tensor
    front_deg: float = MVDREAM_FRONT_DEG

    def __call__(self, views: Views) -> tuple[Conditions, Conditions]:
        """Positive and negative conditions of views."""
        count = len(views)
        poses = cameras(views.cameras.w2c.cpu().numpy(), self.front_deg).to(self.text.device)
        own, other = (part.expand(count, -1, -1) for part in (self.text, self.negative))
        return Conditions(own, cameras=poses), Conditions(other, cameras=poses)


def landmark_pictures(landmarks: np.ndarray, views: Cameras) -> np.ndarray:
    """What the face's control network wants to see of each view.

    Args:
        landmarks: [468 or 478, 3] in the head's frame. Rows with NaN are left out.
        views: [B] cameras.

    Returns:
        uint8 [B, H, W, 3].
    """
    return np.stack([draw_face_mesh(points, views.width, views.height) for points in projected(landmarks, views)])


def projected(points: np.ndarray, views: Cameras) -> np.ndarray:
    """Points [N, 3] in the pixels of every view, float64 [B, N, 2]; NaN behind a camera."""
    w2c, intrinsics = (part.detach().cpu().double().numpy() for part in (views.w2c, views.K))
    seen = np.einsum("bij,nj->bni", w2c[:, :3, :3], np.asarray(points, np.float64)) + w2c[:, None, :3, 3]
    depth = np.where(seen[..., 2:] > 1e-6, seen[..., 2:], np.nan)
    return np.einsum("bij,bnj->bni", intrinsics, seen / depth)[..., :2]


def plain_conditions(denoiser_controls: int, text: Tensor, size_px: int) -> Conditions:
    """Conditions of a prompt alone [1, L, D], for a model that has control networks: empty drawings, without weight."""
    empty = torch.zeros(len(text), 3, size_px, size_px, device=text.device)
    return Conditions(text, control_images=(empty,) * denoiser_controls, control_scales=(0.0,) * denoiser_controls)
