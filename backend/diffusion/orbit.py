"""One picture to views all around: SV3D behind `OrbitGenerator`, and SVD, the video model it was made from.

The sampling is the published one: EDM's noise levels with Euler steps, no guidance at the input view rising to its most
at the far side (a triangle over the frames), a nearly clean input picture, and the input itself as the last frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from backend.context import Context
from backend.diffusion import gate
from backend.diffusion.interfaces import Orbit, Source
from backend.diffusion.load import Folders, freed, load
from backend.diffusion.orbit_convert import Kind, convert_sv3d
from backend.diffusion.placement import Placement
from backend.diffusion.running import StepWatch, as_uint8, noise_source, picture, placed, plain, resting
from backend.errors import BAD_REQUEST, UserError

FRAMES: Final = 21
"""Of a published orbit."""

CONVERTED: Final = "-diffusers"
"""Ending of the folder beside a model's own that holds what was converted once."""


@dataclass(frozen=True)
class OrbitSettings:
    """How an orbit is sampled; the defaults are the published ones.

    Attributes:
        steps: Denoising steps.
        guidance_least: At the input view.
        guidance_most: At the far side.
        noise: Standard deviation of what is added to the input picture, in -1..1.
        size_px: Side of the frames; a multiple of 64.
        decoded_at_a_time: Frames; fewer take less memory.
    """

    steps: int = 50
    guidance_least: float = 1.0
    guidance_most: float = 2.5
    noise: float = 1e-5
    size_px: int = 576
    decoded_at_a_time: int = 7

    def __post_init__(self) -> None:
        """Check the size.

        Raises:
            ValueError: If `size_px` is not a multiple of 64.
        """
        if self.size_px <= 0 or self.size_px % 64:
            raise ValueError(f"size_px is a multiple of 64, not {self.size_px}")


class SV3D:
    """`OrbitGenerator` on SV3D."""

    def __init__(
        self,
        folder: Path,
        source: Source,
        placement: Placement,
        context: Context,
        settings: OrbitSettings = OrbitSettings(),
    ) -> None:
        """Load it.

        Args:
            folder: In diffusers' layout; see `prepared`.
            source: What it is.
            placement: Where it works.
            context: For cancelling.
            settings: Of the sampling.

        Raises:
            UserError: If the folder is not that of SV3D.
        """
        gate.quiet_imports()
        from backend.diffusion.orbit_network import OrbitUNet

        self.sources: tuple[Source, ...] = (source,)
        self.settings = settings
        self._pipe = _pipeline(OrbitUNet, folder, placement, context)

    @classmethod
    def of(cls, folders: Folders, model_id: Kind, placement: Placement, context: Context) -> SV3D:
        """The installed model `model_id`, converted first if that has not been done.

        Raises:
            UserError: Code 3 if it is not installed.
        """
        return cls(prepared(folders, model_id, context), folders.source(model_id), placement, context)

    @property
    def any_orbit(self) -> bool:
        """Whether cameras can be chosen; the other model knows one level circle only."""
        return self._pipe.unet.has_cameras

    def orbit(
        self, image: np.ndarray, azimuths_deg: Sequence[float], elevations_deg: Sequence[float], context: Context
    ) -> Orbit:
        """See `OrbitGenerator`; azimuths count from that of the last frame, which is the input's.

        Raises:
            UserError: If the picture is not square, or the model does not know this orbit.
            Cancelled: Within one step.
        """
        if image.ndim != 3 or image.shape[0] != image.shape[1]:
            raise UserError(f"an orbit starts from a square picture, not {list(image.shape)}", BAD_REQUEST)
        azimuths, elevations = orbit_angles(azimuths_deg, elevations_deg)
        if not self.any_orbit and not _is_level_circle(azimuths, elevations):
            raise UserError(
                "this model knows one orbit: even steps at one elevation; choose the model sv3d-p for another",
                BAD_REQUEST,
            )
        size = (self.settings.size_px, self.settings.size_px)
        shown = picture(image).resize(size, Image.Resampling.LANCZOS)
        with torch.no_grad():
            frames, latents = self._sample(shown, cameras(azimuths, elevations, self.settings.noise), context)
        frames[-1] = np.asarray(shown)
        return Orbit(frames, latents, azimuths.astype(np.float32), elevations.astype(np.float32))

    def close(self) -> None:
        """Let go of the model's memory."""
        device = str(self._pipe._execution_device)
        del self._pipe
        freed(device)

    def _sample(self, shown: Image.Image, views: Tensor, context: Context) -> tuple[np.ndarray, np.ndarray]:
        pipe, s, count = self._pipe, self.settings, len(views)
        device, dtype = pipe._execution_device, pipe.unet.dtype
        random = noise_source(context.seed)
        watch = StepWatch(context, "orbit", s.steps)
        context.progress("orbit", 0, s.steps)
        embedding = pipe._encode_image(shown, device, 1, False).to(dtype)
        pixels = pipe.video_processor.preprocess(shown, height=s.size_px, width=s.size_px)
        noisy = pixels + s.noise * torch.randn(pixels.shape, generator=random)
        behind = pipe._encode_vae_image(noisy, device, 1, False).to(dtype)
        clean = pipe._encode_vae_image(pixels, device, 1, False).float()
        context.raise_if_cancelled()
        behind = behind[:, None].repeat(1, count, 1, 1, 1)
        seen = views if self.any_orbit else views[:, :1]
        seen = seen[None].to(device)
        scale = guidance_over_frames(count, s.guidance_least, s.guidance_most).to(device)[None, :, None, None, None]

        pipe.scheduler.set_timesteps(s.steps, device=device)
        shape = (1, count, behind.shape[2], *behind.shape[3:])
        latents = torch.randn(shape, generator=random).to(device) * pipe.scheduler.init_noise_sigma
        for step in pipe.scheduler.timesteps:
            scaled = pipe.scheduler.scale_model_input(latents, step).to(dtype)
            # One pass after the other: half the memory of both at once, and a place to stop in between.
            without = self._predict(scaled, torch.zeros_like(behind), step, torch.zeros_like(embedding), seen)
            context.raise_if_cancelled()
            given = self._predict(scaled, behind, step, embedding, seen)
            latents = pipe.scheduler.step(without + scale * (given - without), step, latents).prev_sample
            watch(pipe, 0, step, {})
        context.raise_if_cancelled()
        frames = _decode(pipe, latents, s.decoded_at_a_time, context)
        pipe.maybe_free_model_hooks()
        ready = (latents[0].float() / pipe.vae.config.scaling_factor).cpu()
        ready[-1] = clean[0].cpu()
        return frames, ready.numpy()

    def _predict(self, latents: Tensor, behind: Tensor, step: Tensor, embedding: Tensor, views: Tensor) -> Tensor:
        sample = torch.cat([latents, behind], dim=2)
        return self._pipe.unet(sample, step, encoder_hidden_states=embedding, added_time_ids=views).sample.float()


class SVD:
    """Stable Video Diffusion: a picture begins to move; no say in how. The base of adapters for orbits."""

    def __init__(self, folder: Path, source: Source, placement: Placement, context: Context) -> None:
        """Load it.

        Args:
            folder: In the published layout.
            source: What it is.
            placement: Where it works.
            context: For cancelling.

        Raises:
            UserError: If the folder is not that of SVD.
        """
        gate.quiet_imports()
        from backend.diffusion.orbit_network import VideoUNet

        self.sources: tuple[Source, ...] = (source,)
        self.pipe = _pipeline(VideoUNet, folder, placement, context)

    def animate(
        self,
        image: np.ndarray,
        context: Context,
        *,
        frames: int = 25,
        steps: int = 25,
        motion: int = 127,
        decoded_at_a_time: int = 4,
    ) -> np.ndarray:
        """Frames uint8 [F, H, W, 3] that begin at `image` (uint8 [H, W, 3], sides multiples of 64).

        Args:
            image: Made for 576 x 1024 px.
            context: Progress, cancelling, seed.
            frames: How many.
            steps: Denoising steps.
            motion: How much moves, 1 to 255.
            decoded_at_a_time: Frames; fewer take less memory.

        Raises:
            UserError: If the picture's sides are not multiples of 64.
            Cancelled: Within one step.
        """
        height, width = image.shape[:2]
        if height % 64 or width % 64:
            raise UserError(f"the sides of the picture are multiples of 64, not {width} x {height}", BAD_REQUEST)
        context.progress("video", 0, steps)
        try:
            made = self.pipe(
                picture(image),
                height=height,
                width=width,
                num_frames=frames,
                num_inference_steps=steps,
                motion_bucket_id=motion,
                generator=noise_source(context.seed),
                output_type="latent",
                # This pipeline knows no other way to stop than an exception in its callback.
                callback_on_step_end=StepWatch(context, "video", steps),
            ).frames
            with torch.no_grad():
                return _decode(self.pipe, made, decoded_at_a_time, context)
        finally:
            self.pipe.maybe_free_model_hooks()


def orbit_angles(azimuths_deg: Sequence[float], elevations_deg: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Azimuths in [0, 360) counted from the last one, and elevations; float64 [F].

    Raises:
        UserError: If the lists differ in length, are empty, or an elevation is beyond the poles.
    """
    azimuths, elevations = np.asarray(azimuths_deg, np.float64), np.asarray(elevations_deg, np.float64)
    if azimuths.ndim != 1 or azimuths.shape != elevations.shape or not len(azimuths):
        raise UserError("an orbit has one azimuth and one elevation per frame", BAD_REQUEST)
    if not (np.isfinite(azimuths).all() and (np.abs(elevations) <= 90).all()):
        raise UserError("elevations lie between -90 and 90 degrees", BAD_REQUEST)
    return (azimuths - azimuths[-1]) % 360.0, elevations


def level_circle(elevation_deg: float = 10.0, frames: int = FRAMES) -> tuple[np.ndarray, np.ndarray]:
    """Azimuths and elevations of the published orbit: even steps, the input view last; float64 [F] each."""
    return np.linspace(0.0, 360.0, frames + 1)[1:] % 360.0, np.full(frames, elevation_deg)


def cameras(azimuths_deg: np.ndarray, elevations_deg: np.ndarray, noise: float) -> Tensor:
    """What SV3D is told of each frame: noise level, polar angle from the pole, azimuth; float32 [F, 3], radians."""
    polar = np.deg2rad(90.0 - elevations_deg)
    rows = np.stack([np.full_like(polar, noise), polar, np.deg2rad(azimuths_deg)], axis=1)
    return torch.from_numpy(rows).float()


def guidance_over_frames(count: int, least: float, most: float) -> Tensor:
    """The triangle: `least` at both ends of the orbit, which are the input view, `most` in the middle; float32 [F]."""
    if count == 1:
        return torch.tensor([least])
    place = torch.linspace(0, 1, count)
    return least + (most - least) * 2 * (place - (place + 0.5).floor()).abs()


def prepared(folders: Folders, model_id: Kind, context: Context) -> Path:
    """The folder of an installed SV3D in diffusers' layout; the published file is converted beside it once.

    Raises:
        UserError: Code 3 if it is not installed.
    """
    folder = folders.folder(model_id)
    if (folder / "unet").is_dir():
        return folder
    ready = folder.with_name(folder.name + CONVERTED)
    file = folder / f"{model_id.replace('-', '_')}.safetensors"
    return ready if ready.is_dir() else convert_sv3d(file, ready, model_id, context)


def _is_level_circle(azimuths: np.ndarray, elevations: np.ndarray) -> bool:
    even, _ = level_circle(0.0, len(azimuths))
    turn = np.abs((azimuths - even + 180.0) % 360.0 - 180.0)
    return bool(turn.max() < 0.5 and np.ptp(elevations) < 0.5)


def _pipeline(network: type[Any], folder: Path, placement: Placement, context: Context) -> Any:
    """The library's container of the parts, which knows how to offload them and how to encode the picture."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.autoencoders.autoencoder_kl_temporal_decoder import AutoencoderKLTemporalDecoder
    from diffusers.pipelines.stable_video_diffusion.pipeline_stable_video_diffusion import StableVideoDiffusionPipeline
    from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
    from transformers import CLIPImageProcessorPil, CLIPVisionModelWithProjection

    rest = resting(placement)
    timed = '"AutoencoderKLTemporalDecoder"' in (folder / "vae" / "config.json").read_text("utf-8")
    autoencoder: Any = AutoencoderKLTemporalDecoder if timed else AutoencoderKL
    pipe: Any = StableVideoDiffusionPipeline(
        vae=None,  # pyright: ignore[reportArgumentType]
        image_encoder=load(CLIPVisionModelWithProjection, folder, "image_encoder", placement=rest, context=context),
        unet=load(network, folder, "unet", placement=rest, context=context),
        scheduler=plain(EulerDiscreteScheduler, folder, "scheduler"),
        feature_extractor=plain(CLIPImageProcessorPil, folder, "feature_extractor"),
    )
    placed(pipe, placement)
    # This autoencoder overflows in half precision: it works in float32 by itself, and is small enough for that.
    exact = replace(placement, dtype=torch.float32)
    pipe.vae = load(autoencoder, folder, "vae", placement=exact, context=context)
    return pipe


def _decode(pipe: Any, latents: Tensor, at_a_time: int, context: Context) -> np.ndarray:
    """Frames uint8 [F, H, W, 3] of latents [1, F, C, h, w]."""
    parts = []
    for first in range(0, latents.shape[1], at_a_time):
        context.raise_if_cancelled()
        some = latents[:, first : first + at_a_time].to(pipe.vae.dtype)
        decoded = pipe.decode_latents(some, some.shape[1], some.shape[1])
        parts.append(as_uint8(decoded[0].permute(1, 2, 3, 0) / 2 + 0.5))
    return np.concatenate(parts)
