"""One person of a picture in prescribed poses: Wan2.2-Animate and Wan2.1-VACE behind `VideoGenerator`.

A long motion is made in segments; each begins with the last frames of the one before. The prompt is read once and its
encoder leaves before the video model comes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Final, Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from backend.context import Context
from backend.diffusion import gate
from backend.diffusion.interfaces import PoseTrack, Source
from backend.diffusion.load import Folders, freed, load
from backend.diffusion.placement import Placement
from backend.diffusion.prompt_embeddings import LENGTH, embed_prompts
from backend.diffusion.running import (
    StepWatch,
    as_uint8,
    fitted_size,
    noise_source,
    picture,
    placed,
    plain,
    resting,
)
from backend.diffusion.skeleton_video import vace_frames, wan_animate_frames
from backend.errors import BAD_REQUEST, UserError

PROMPT: Final = "视频中的人在做动作"
"""Wan-Animate's own, "the person in the video is moving": taken where there is none."""

NEGATIVE: Final = (
    "色调艳丽，过曝，静态，细节模糊不清，字幕，风格，作品，画作，画面，静止，整体发灰，最差质量，低质量，JPEG压缩残留，丑陋的，"
    "残缺的，多余的手指，画得不好的手部，画得不好的脸部，畸形的，毁容的，形态畸形的肢体，手指融合，静止不动的画面，杂乱的背景，"
    "三条腿，背景人很多，倒着走"
)
"""Wan's own: what a video should not be (overexposed, static, blurred, deformed, ...)."""

_MULTIPLE: Final = 16
_STRIDE: Final = 4
"""Frames that share a latent: segments have 4n + 1."""


@dataclass(frozen=True)
class VideoSettings:
    """How a video is sampled.

    Attributes:
        steps: Denoising steps of a segment.
        guidance: 1 for none, which takes half the time.
        segment: Frames of a segment, 4n + 1.
        overlap: Frames that it takes over from the one before.
        area_px: Most pixels of a frame while it is made.
        smallest_px: Least side of a frame while it is made.
        prompt_tokens: Length of the prompt's embedding.
    """

    steps: int
    guidance: float
    segment: int
    overlap: int
    area_px: int
    smallest_px: int = 16
    prompt_tokens: int = LENGTH

    def __post_init__(self) -> None:
        """Check the lengths.

        Raises:
            ValueError: If the segment is not 4n + 1, or not longer than its overlap.
        """
        if self.segment % _STRIDE != 1 or not 1 <= self.overlap < self.segment or self.overlap % _STRIDE != 1:
            raise ValueError(f"segment {self.segment} and overlap {self.overlap} are 4n + 1, the second the smaller")


ANIMATE: Final = VideoSettings(steps=20, guidance=1.0, segment=77, overlap=1, area_px=1280 * 720)
"""As published; the overlap may also be 5."""

VACE: Final = VideoSettings(steps=50, guidance=5.0, segment=81, overlap=5, area_px=832 * 480)
"""As published for the 1.3B model; the overlap is ours."""


class _Video:
    """What both models have in common: `model_id` in the registry, and how they were published to be sampled."""

    model_id: ClassVar[str]
    published: ClassVar[VideoSettings]
    _stage = "video"

    def __init__(
        self,
        folder: Path,
        source: Source,
        placement: Placement,
        context: Context,
        settings: VideoSettings | None = None,
        prompts: Path | None = None,
    ) -> None:
        """Remember what to load; the video model itself is loaded after the prompt has been read.

        Args:
            folder: In the published layout.
            source: What it is.
            placement: Where everything works, one thing at a time.
            context: For cancelling.
            settings: Of the sampling; None as published.
            prompts: Where embeddings of prompts are remembered; the job's scratch folder if None.
        """
        context.raise_if_cancelled()
        self.sources: tuple[Source, ...] = (source,)
        self.settings = settings or self.published
        self._folder, self._placement, self._prompts = folder, placement, prompts
        self._pipe: Any = None

    @classmethod
    def of(cls, folders: Folders, placement: Placement, context: Context, prompts: Path | None = None) -> Self:
        """The installed model.

        Raises:
            UserError: Code 3 if it is not installed.
        """
        folder, source = folders.folder(cls.model_id), folders.source(cls.model_id)
        return cls(folder, source, placement, context, prompts=prompts)

    def generate(self, reference: np.ndarray, track: PoseTrack, prompt: str, context: Context) -> np.ndarray:
        """See `VideoGenerator`.

        Raises:
            UserError: If the track has no frame, or its frames have an impossible shape.
            Cancelled: Within one denoising step.
        """
        count = len(track.joints_px)
        if not count:
            raise UserError("a motion needs at least one frame", BAD_REQUEST)
        shown = picture(reference)
        s = self.settings
        width, height = fitted_size(track.width, track.height, _MULTIPLE, s.smallest_px, s.area_px)
        texts = (prompt or PROMPT, NEGATIVE) if s.guidance > 1 else (prompt or PROMPT,)
        embeddings = embed_prompts(
            self._folder, texts, self._placement, context, cache=self._prompts, length=s.prompt_tokens
        )
        if self._pipe is None:
            context.progress("load the video model", 0, 1)
            self._pipe = self._ready(context)
        work = resized(track, width, height)
        pieces = segments(count, s.segment, s.overlap)
        watch = StepWatch(context, self._stage, s.steps * len(pieces))
        context.progress(self._stage, 0, watch.total)
        frames: list[np.ndarray] = []
        with torch.no_grad(), _freed_after(self._pipe):
            for made in self._segments(shown, work, pieces, embeddings, watch):
                context.raise_if_cancelled()
                frames.extend(made)
                context.preview(made[-1])
        size = (track.width, track.height)
        whole = frames[:count]
        if size != (width, height):
            whole = [np.asarray(Image.fromarray(f).resize(size, Image.Resampling.LANCZOS)) for f in whole]
        return np.stack(whole)

    def close(self) -> None:
        """Let go of the model's memory."""
        self._pipe = None
        freed(self._placement.device)

    def _ready(self, context: Context) -> Any:
        """The pipeline at its place; its autoencoder in 32 bit, as published, where memory is not short."""
        gate.quiet_imports()
        from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan

        pipe = placed(self._load(context), self._placement)
        exact = self._placement if self._placement.tiling else replace(self._placement, dtype=torch.float32)
        pipe.vae = load(AutoencoderKLWan, self._folder, "vae", placement=exact, context=context)
        return pipe

    def _load(self, context: Context) -> Any:
        """Everything but text encoder and autoencoder."""
        raise NotImplementedError

    def _segments(
        self,
        reference: Image.Image,
        track: PoseTrack,
        pieces: list[np.ndarray],
        embeddings: list[Tensor],
        watch: StepWatch,
    ) -> Iterator[np.ndarray]:
        """New frames uint8 [F, h, w, 3] of every segment in turn."""
        raise NotImplementedError


class WanAnimate(_Video):
    """`VideoGenerator` on Wan2.2-Animate 14B: skeleton video, face video, reference."""

    model_id = "wan-animate"
    published = ANIMATE

    def _load(self, context: Context) -> Any:
        from diffusers.models.transformers.transformer_wan_animate import WanAnimateTransformer3DModel
        from diffusers.pipelines.wan.pipeline_wan_animate import WanAnimatePipeline
        from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler
        from transformers import CLIPImageProcessorPil, CLIPVisionModel

        folder, rest = self._folder, resting(self._placement)
        return WanAnimatePipeline(
            tokenizer=None,  # pyright: ignore[reportArgumentType]
            text_encoder=None,  # pyright: ignore[reportArgumentType]
            vae=None,  # pyright: ignore[reportArgumentType]
            scheduler=plain(UniPCMultistepScheduler, folder, "scheduler"),
            image_processor=plain(CLIPImageProcessorPil, folder, "image_processor"),
            image_encoder=load(CLIPVisionModel, folder, "image_encoder", placement=rest, context=context),
            transformer=load(WanAnimateTransformer3DModel, folder, "transformer", placement=rest, context=context),
        )

    def _segments(
        self,
        reference: Image.Image,
        track: PoseTrack,
        pieces: list[np.ndarray],
        embeddings: list[Tensor],
        watch: StepWatch,
    ) -> Iterator[np.ndarray]:
        pipe, s = self._pipe, self.settings
        device, dtype = pipe._execution_device, pipe.transformer.dtype
        random = noise_source(watch.context.seed)
        texts = [embedding.to(device, dtype) for embedding in embeddings]
        fixed = {"generator": random, "device": device}
        pixels = pipe.vae_image_processor.preprocess(
            reference, height=track.height, width=track.width, resize_mode="fill"
        ).to(device, dtype=torch.float32)
        seen = pipe.encode_image(reference, device).to(dtype)
        watch.context.raise_if_cancelled()
        shown = pipe.prepare_reference_image_latents(pixels, 1, **fixed)
        before: Tensor | None = None
        for number, indices in enumerate(pieces):
            part = taken(track, indices)
            poses = pipe.video_processor.preprocess_video(
                [Image.fromarray(frame) for frame in wan_animate_frames(part)], height=track.height, width=track.width
            )
            pose_latents = pipe.prepare_pose_latents(poses.to(device, dtype=torch.float32), 1, **fixed).to(dtype)
            watch.context.raise_if_cancelled()
            faces = self._faces(part).to(device, dtype)
            carried = pipe.prepare_prev_segment_cond_latents(
                before,
                segment_frame_length=len(indices),
                start_frame=number,
                height=track.height,
                width=track.width,
                prev_segment_cond_frames=s.overlap,
                task="animate",
                **fixed,
            )
            known = torch.cat([shown, carried], dim=2)
            latents = pipe.prepare_latents(
                1,
                num_channels_latents=pipe.vae.config.z_dim,
                height=track.height,
                width=track.width,
                num_frames=len(indices),
                dtype=torch.float32,
                **fixed,
            )
            latents = self._denoise(latents, known, texts, seen, pose_latents, faces, watch)
            made = self._decode(latents)
            made = made[:, :, s.overlap :] if number else made
            before = made[:, :, -s.overlap :]
            yield as_uint8(made[0].permute(1, 2, 3, 0) / 2 + 0.5)

    def _faces(self, part: PoseTrack) -> Tensor:
        """Pictures of the face in -1..1 [1, 3, F, S, S]; black, the model's own word for none, where there are none."""
        size, count = self._pipe.transformer.config.motion_encoder_size, len(part.joints_px)
        if part.faces is None:
            return torch.full((1, 3, count, size, size), -1.0)
        frames = [Image.fromarray(face) for face in part.faces]
        return self._pipe.video_processor.preprocess_video(frames, height=size, width=size)

    def _denoise(
        self,
        latents: Tensor,
        known: Tensor,
        texts: list[Tensor],
        seen: Tensor,
        poses: Tensor,
        faces: Tensor,
        watch: StepWatch,
    ) -> Tensor:
        pipe, s = self._pipe, self.settings
        pipe.scheduler.set_timesteps(s.steps, device=latents.device)  # its memory of earlier steps begins anew
        for step in pipe.scheduler.timesteps:
            sample = torch.cat([latents, known], dim=1).to(pipe.transformer.dtype)

            def predict(name: str, text: Tensor, face: Tensor, sample: Tensor = sample, step: Tensor = step) -> Tensor:
                with pipe.transformer.cache_context(name):
                    return pipe.transformer(
                        hidden_states=sample,
                        timestep=step.expand(1),
                        encoder_hidden_states=text,
                        encoder_hidden_states_image=seen,
                        pose_hidden_states=poses,
                        face_pixel_values=face,
                        return_dict=False,
                    )[0]

            flow = predict("cond", texts[0], faces)
            if s.guidance > 1:
                watch.context.raise_if_cancelled()
                without = predict("uncond", texts[1], torch.full_like(faces, -1.0))
                flow = without + s.guidance * (flow - without)
            latents = pipe.scheduler.step(flow, step, latents, return_dict=False)[0]
            watch(pipe, 0, step, {})
        return latents

    def _decode(self, latents: Tensor) -> Tensor:
        """Frames [1, 3, F, h, w] in -1..1, without the latent that stands for the reference."""
        vae = self._pipe.vae
        numbers = latents[:, :, 1:].to(vae.dtype)
        mean, deviation = (
            torch.tensor(values, device=numbers.device, dtype=numbers.dtype).view(1, -1, 1, 1, 1)
            for values in (vae.config.latents_mean, vae.config.latents_std)
        )
        return vae.decode(numbers * deviation + mean, return_dict=False)[0]


class WanVACE(_Video):
    """`VideoGenerator` on Wan2.1-VACE 1.3B: skeleton video and reference; for small cards."""

    model_id = "wan-vace"
    published = VACE

    def _load(self, context: Context) -> Any:
        from diffusers.models.transformers.transformer_wan_vace import WanVACETransformer3DModel
        from diffusers.pipelines.wan.pipeline_wan_vace import WanVACEPipeline
        from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler

        folder, rest = self._folder, resting(self._placement)
        return WanVACEPipeline(
            tokenizer=None,  # pyright: ignore[reportArgumentType]
            text_encoder=None,  # pyright: ignore[reportArgumentType]
            vae=None,  # pyright: ignore[reportArgumentType]
            scheduler=plain(UniPCMultistepScheduler, folder, "scheduler"),  # pyright: ignore[reportArgumentType]
            transformer=load(WanVACETransformer3DModel, folder, "transformer", placement=rest, context=context),
        )

    def _segments(
        self,
        reference: Image.Image,
        track: PoseTrack,
        pieces: list[np.ndarray],
        embeddings: list[Tensor],
        watch: StepWatch,
    ) -> Iterator[np.ndarray]:
        s, random = self.settings, noise_source(watch.context.seed)
        black, white = (Image.new("RGB", (track.width, track.height), (v, v, v)) for v in (0, 255))
        before: list[Image.Image] = []
        for indices in pieces:
            drawn = [Image.fromarray(frame) for frame in vace_frames(taken(track, indices))]
            # Where the mask is black a frame is kept: so a segment goes on from the last frames of the one before.
            kept = len(before)
            video = [*before, *drawn[kept:]]
            mask = [black] * kept + [white] * (len(drawn) - kept)
            made = self._pipe(
                video=video,
                mask=mask,
                reference_images=[reference],
                height=track.height,
                width=track.width,
                num_frames=len(video),
                num_inference_steps=s.steps,
                guidance_scale=s.guidance,
                prompt_embeds=embeddings[0],
                negative_prompt_embeds=embeddings[1] if s.guidance > 1 else None,
                generator=random,
                output_type="np",
                callback_on_step_end=watch,
            ).frames[0]
            fresh = as_uint8(made)[kept:]
            before = [Image.fromarray(frame) for frame in fresh[-s.overlap :]]
            yield fresh


def segments(count: int, length: int, overlap: int) -> list[np.ndarray]:
    """Which poses each segment shows; the first `overlap` of a later one were the last of the one before.

    Past the end the motion runs backwards, so that every segment is whole. A motion that is shorter than a segment
    gets a shorter one.

    Args:
        count: Poses, at least 1.
        length: Frames of a segment, 4n + 1.
        overlap: Less than `length`.

    Returns:
        int [S] indices of poses per segment; without the overlaps they begin with 0 to count - 1 in order.
    """
    if count <= length:
        length = -(-(count - 1) // _STRIDE) * _STRIDE + 1
        return [_reflected(np.arange(max(length, _STRIDE + 1)), count)]
    starts = range(0, count - overlap, length - overlap)
    return [_reflected(np.arange(start, start + length), count) for start in starts]


def taken(track: PoseTrack, indices: np.ndarray) -> PoseTrack:
    """The frames of a track at `indices`."""
    return replace(
        track,
        joints_px=track.joints_px[indices],
        joint_depths_m=track.joint_depths_m[indices],
        face_px=track.face_px[indices],
        hands_px=track.hands_px[indices],
        head_px=None if track.head_px is None else track.head_px[indices],
        toes_px=None if track.toes_px is None else track.toes_px[indices],
        faces=None if track.faces is None else track.faces[indices],
        poses=None,
        pelvis_m=None,
    )


def resized(track: PoseTrack, width: int, height: int) -> PoseTrack:
    """The same track in a picture of another size."""
    scale = np.array([width / track.width, height / track.height], np.float32)
    return replace(
        track,
        joints_px=track.joints_px * scale,
        face_px=track.face_px * scale,
        hands_px=track.hands_px * scale,
        head_px=None if track.head_px is None else track.head_px * scale,
        toes_px=None if track.toes_px is None else track.toes_px * scale,
        width=width,
        height=height,
        focal_px=track.focal_px * float(scale[0]),
    )


def _reflected(indices: np.ndarray, count: int) -> np.ndarray:
    if count == 1:
        return np.zeros_like(indices)
    period = 2 * (count - 1)
    folded = indices % period
    return np.where(folded < count, folded, period - folded)


@contextlib.contextmanager
def _freed_after(pipe: Any) -> Iterator[None]:
    """What a pipeline brought onto the device goes back, also after a cancelled step."""
    try:
        yield
    finally:
        pipe.maybe_free_model_hooks()
