"""What a large model does for a method, each behind one small interface.

Real implementations live in this package; tests put oracles of known ground truth in their place. Pictures are uint8
[H, W, 3] RGB in display sRGB unless said otherwise, and cameras follow OpenCV: x right, y down, z forward.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from torch import Tensor

from backend.context import Context


@dataclass(frozen=True)
class Source:
    """What made a result; goes into result.json.

    Attributes:
        name: Name of the model, for people.
        revision: 40 hex digits of the published commit, or the package's version; empty where unknown.
        licence: SPDX identifier or the licence's own name.
        commercial: Commercial use is allowed.
    """

    name: str
    revision: str
    licence: str
    commercial: bool

    def __str__(self) -> str:
        """One line for result.json and the panel."""
        about = [part for part in (self.revision[:12], self.licence) if part]
        return f"{self.name} ({', '.join(about)}{'' if self.commercial else ', non-commercial'})"


class Generator(Protocol):
    """Every model behind an interface says what it is."""

    @property
    def sources(self) -> tuple[Source, ...]:
        """All models that take part, adapters included."""
        ...


@dataclass(frozen=True)
class PoseTrack:
    """How the person moves before one camera, in joints of SMPL-X's order.

    Attributes:
        joints_px: float32 [F, 55, 2], pixels of the frame, y down.
        joint_depths_m: float32 [F, 55], distance along the camera's axis.
        face_px: float32 [F, 68, 2] landmarks in the order of iBUG 68; NaN where the face is not seen.
        hands_px: float32 [F, 2, 21, 2] left and right hand, wrist first, thumb to little finger; NaN where not seen.
        width: Of a frame, pixels.
        height: Of a frame, pixels.
        frames_per_second: Of the track.
        poses: float32 [F, 55, 3], the rotations behind the joints, axis-angle in the parent's frame; None if unknown.
        pelvis_m: float32 [F, 3], where the pelvis is in the world; None if unknown.
        w2c: float64 [4, 4], the fixed camera; None if unknown.
        focal_px: Its focal length; the principal point is the middle of the picture.
        head_px: float32 [F, 5, 2], nose, left eye, right eye, left ear, right ear; NaN where hidden; None: guessed from
            the joints and the face.
        toes_px: float32 [F, 2, 2], front of the left and the right foot; None: guessed from the joints.
        faces: uint8 [F, S, S, 3], a face, anybody's, that makes the wished expressions; None: the model chooses.
    """

    joints_px: np.ndarray
    joint_depths_m: np.ndarray
    face_px: np.ndarray
    hands_px: np.ndarray
    width: int
    height: int
    frames_per_second: float
    poses: np.ndarray | None = None
    pelvis_m: np.ndarray | None = None
    w2c: np.ndarray | None = None
    focal_px: float = 0.0
    head_px: np.ndarray | None = None
    toes_px: np.ndarray | None = None
    faces: np.ndarray | None = None


class VideoGenerator(Generator, Protocol):
    """One person of a picture in prescribed poses."""

    def generate(self, reference: np.ndarray, track: PoseTrack, prompt: str, context: Context) -> np.ndarray:
        """Frames uint8 [F, height, width, 3] of the person of `reference` (uint8 [H, W, 3]), one per pose.

        Raises:
            Cancelled: Within one denoising step.
        """
        ...


@dataclass(frozen=True)
class Orbit:
    """Pictures around an object.

    Attributes:
        frames: uint8 [F, H, W, 3].
        latents: float32 [F, C, h, w], scaled as the model's own decoder wants them.
        azimuths_deg: float32 [F], clockwise from above as SV3D counts, 0 = the input view.
        elevations_deg: float32 [F], of the camera above the object.
    """

    frames: np.ndarray
    latents: np.ndarray
    azimuths_deg: np.ndarray
    elevations_deg: np.ndarray


class OrbitGenerator(Generator, Protocol):
    """One picture of an object on white to its other sides."""

    def orbit(
        self, image: np.ndarray, azimuths_deg: Sequence[float], elevations_deg: Sequence[float], context: Context
    ) -> Orbit:
        """The object of `image` (uint8 [H, W, 3], square, white background) from every angle; the last is the input."""
        ...


@dataclass(frozen=True)
class Lifted:
    """Gaussians that a model made of one picture, in its own frame: Y up, the picture seen from +Z, largest side 1.

    Attributes:
        positions: float32 [N, 3].
        scales: float32 [N, 3], linear.
        rotations_wxyz: float32 [N, 4].
        opacities: float32 [N], 0..1.
        colours: float32 [N, 3], display sRGB 0..1.
    """

    positions: np.ndarray
    scales: np.ndarray
    rotations_wxyz: np.ndarray
    opacities: np.ndarray
    colours: np.ndarray


class LiftGenerator(Generator, Protocol):
    """One picture to Gaussians."""

    def lift(self, image: np.ndarray, mask: np.ndarray, context: Context) -> Lifted:
        """Gaussians of what `mask` (float32 [H, W], 0..1) shows of `image` (uint8 [H, W, 3])."""
        ...


@dataclass(frozen=True)
class NoiseSchedule:
    """The forward process z_t = alpha_t z_0 + sigma_t eps, variance preserving.

    Attributes:
        alphas: [T], square root of the cumulative product; float64 where the device has it, else float32.
        sigmas: [T], sqrt(1 - alphas^2).
        prediction: What the network itself predicts; `Denoiser.predict` always returns the noise.
    """

    alphas: Tensor
    sigmas: Tensor
    prediction: Literal["epsilon", "v"]

    @property
    def steps(self) -> int:
        """T, the number of time steps."""
        return len(self.alphas)


@dataclass(frozen=True)
class Conditions:
    """What the noise prediction depends on; a batch of B latents.

    Texts and pictures are embedded once, beforehand, so that the encoders need not stay in memory.

    Attributes:
        text: [B, L, D] embedding of the prompt.
        image_tokens: [B, K, D] tokens of a face or of a reference picture, or None.
        image_scale: How much the image tokens count, one number or [B].
        control_images: One [B, 3, H, W] in 0..1 per control network, in the order of the denoiser's own.
        control_scales: One factor per control network, each a number or [B].
        cameras: [B, 4, 4] camera to world of multi-view models (their axes), or None.
        image_latents: [G, C, h, w] of the reference picture of image-conditioned multi-view models, one per group of
            views, or None.
    """

    text: Tensor
    image_tokens: Tensor | None = None
    image_scale: float | Tensor = 1.0
    control_images: tuple[Tensor, ...] = ()
    control_scales: tuple[float | Tensor, ...] = ()
    cameras: Tensor | None = None
    image_latents: Tensor | None = None


class Denoiser(Generator, Protocol):
    """A latent diffusion model as guidance sees it."""

    @property
    def schedule(self) -> NoiseSchedule:
        """The forward process that it was trained with."""
        ...

    def encode(self, images: Tensor) -> Tensor:
        """Pictures [B, 3, H, W] in 0..1 to scaled latents [B, C, h, w]; differentiable in the pictures."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Scaled latents to pictures [B, 3, H, W] in 0..1."""
        ...

    def predict(self, noisy: Tensor, timesteps: Tensor, conditions: Conditions) -> Tensor:
        """The noise in `noisy` [B, C, h, w] at `timesteps` (int64 [B]); no gradient passes through the network."""
        ...


class ImageEditor(Generator, Protocol):
    """A picture changed as an instruction says."""

    def edit(self, image: np.ndarray, instruction: str, mask: np.ndarray | None, context: Context) -> np.ndarray:
        """`image` (uint8 [H, W, 3]) edited, same size; outside `mask` (float32 [H, W], 0..1) it stays as it is."""
        ...


class FaceIdentity(Generator, Protocol):
    """A face as a vector that stays equal for one person."""

    def embed(self, image: np.ndarray) -> np.ndarray | None:
        """Unit vector float32 [D] of the largest face of uint8 [H, W, 3]; None where no face is found."""
        ...


@dataclass(frozen=True)
class Surface:
    """What a picture says about the surface it shows.

    Attributes:
        normals: float32 [H, W, 3], unit, camera axes (x right, y down, z forward: a wall that faces the camera has
            (0, 0, -1)); None where the estimator has none.
        disparity: float32 [H, W], 0 far to 1 near, up to scale and shift; None where the estimator has none.
    """

    normals: np.ndarray | None = None
    disparity: np.ndarray | None = None


class SurfaceEstimator(Generator, Protocol):
    """Normals or depth of one picture."""

    def estimate(self, image: np.ndarray, context: Context) -> Surface:
        """Of uint8 [H, W, 3]."""
        ...
