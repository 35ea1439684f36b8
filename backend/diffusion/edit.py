"""Pictures changed by an instruction: FLUX.2-klein-4B and Stable Diffusion 1.5 inpainting behind `ImageEditor`.

Where there is a mask, only the part around it is worked on, at the model's own size, and only the masked pixels are put
back: everything else is the input's, bit by bit.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from PIL import Image

from backend.context import Context
from backend.diffusion import gate
from backend.diffusion.interfaces import Source
from backend.diffusion.load import Folders, freed, load
from backend.diffusion.placement import Placement
from backend.diffusion.running import (
    PIXELS_1MP,
    StepWatch,
    fitted_size,
    noise_source,
    picture,
    placed,
    plain,
    resting,
)
from backend.errors import BAD_REQUEST, UserError


@dataclass(frozen=True)
class EditSettings:
    """How a picture is edited.

    Attributes:
        steps: Denoising steps.
        guidance: 1 for none.
        strength: Share of the steps that are done inside a mask: 1 begins at pure noise.
        whole_strength: The same without a mask, where the model does not look at the input besides.
        multiple: Sides of the working picture are multiples of this.
        smallest_px: Least side of the working picture.
        area_px: Most pixels of it.
        margin: What is seen around a mask, as a share of its box.
        negative: What the picture should not be; used with guidance.
    """

    steps: int
    guidance: float
    strength: float = 1.0
    whole_strength: float = 1.0
    multiple: int = 16
    smallest_px: int = 64
    area_px: int = PIXELS_1MP
    margin: float = 0.5
    negative: str = ""


KLEIN: Final = EditSettings(steps=4, guidance=1.0)
"""Distilled to four steps without guidance [model card]."""

INPAINT: Final = EditSettings(
    steps=30,
    guidance=7.5,
    whole_strength=0.6,
    multiple=64,
    smallest_px=512,
    area_px=768 * 768,
    negative="blurry, deformed, low quality, watermark",
)
"""Made for 512 px."""

MASK_LEAST: Final = 1 / 255
"""Below this a mask says "outside"."""


class _Editor:
    """What both editors have in common."""

    def __init__(self, source: Source, settings: EditSettings, placement: Placement) -> None:
        self.sources: tuple[Source, ...] = (source,)
        self.settings = settings
        self._placement = placement

    def edit(self, image: np.ndarray, instruction: str, mask: np.ndarray | None, context: Context) -> np.ndarray:
        """See `ImageEditor`.

        Raises:
            UserError: If the mask has another size than the picture, or the picture is too narrow.
            Cancelled: Within one denoising step.
        """
        whole = picture(image)
        if mask is None:
            edited = self._at_working_size(whole, None, instruction, context)
            return np.asarray(edited)
        soft = checked_mask(mask, image)
        box = mask_box(soft, self.settings.margin)
        if box is None:
            return image.copy()
        left, top, right, bottom = box
        part = Image.fromarray(np.rint(soft[top:bottom, left:right] * 255).astype(np.uint8))
        edited = self._at_working_size(whole.crop(box), part, instruction, context)
        return pasted(image, np.asarray(edited), soft, (left, top))

    def close(self) -> None:
        """Let go of the models' memory."""
        self._forget()
        freed(self._placement.device)

    def _at_working_size(
        self, shown: Image.Image, mask: Image.Image | None, instruction: str, context: Context
    ) -> Image.Image:
        s = self.settings
        width, height = fitted_size(shown.width, shown.height, s.multiple, s.smallest_px, s.area_px)
        size = (width, height)
        work = shown.resize(size, Image.Resampling.LANCZOS)
        where = None if mask is None else mask.resize(size, Image.Resampling.BILINEAR)
        watch = StepWatch(context, "edit the picture", s.steps)
        context.progress("edit the picture", 0, s.steps)
        with torch.no_grad():
            made = self._run(work, where, instruction, watch)
        return made.convert("RGB").resize(shown.size, Image.Resampling.LANCZOS)

    def _run(self, work: Image.Image, mask: Image.Image | None, instruction: str, watch: StepWatch) -> Image.Image:
        raise NotImplementedError

    def _forget(self) -> None:
        raise NotImplementedError


class Klein(_Editor):
    """`ImageEditor` on FLUX.2-klein-4B: it looks at the picture while it follows the instruction."""

    def __init__(
        self, folder: Path, source: Source, placement: Placement, context: Context, settings: EditSettings = KLEIN
    ) -> None:
        """Load it.

        Args:
            folder: In the published layout.
            source: What it is.
            placement: Where it works.
            context: For cancelling.
            settings: Of the sampling.

        Raises:
            UserError: If the folder is not that of klein.
        """
        super().__init__(source, settings, placement)
        gate.quiet_imports()
        from diffusers.models.autoencoders.autoencoder_kl_flux2 import AutoencoderKLFlux2
        from diffusers.models.transformers.transformer_flux2 import Flux2Transformer2DModel
        from diffusers.pipelines.flux2.pipeline_flux2_klein import Flux2KleinPipeline
        from diffusers.pipelines.flux2.pipeline_flux2_klein_inpaint import Flux2KleinInpaintPipeline
        from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
        from transformers import Qwen3ForCausalLM
        from transformers.models.qwen2.tokenization_qwen2 import Qwen2Tokenizer

        rest = resting(placement)
        self.pipe: Any = placed(
            Flux2KleinPipeline(
                scheduler=plain(FlowMatchEulerDiscreteScheduler, folder, "scheduler"),
                vae=load(AutoencoderKLFlux2, folder, "vae", placement=rest, context=context),
                text_encoder=load(Qwen3ForCausalLM, folder, "text_encoder", placement=rest, context=context),
                tokenizer=plain(Qwen2Tokenizer, folder, "tokenizer"),
                transformer=load(Flux2Transformer2DModel, folder, "transformer", placement=rest, context=context),
                is_distilled=True,
            ),
            placement,
        )
        # The same parts, placed once: nothing is in memory twice.
        self._masked: Any = Flux2KleinInpaintPipeline(**self.pipe.components, is_distilled=True)
        self._masked.set_progress_bar_config(disable=True)

    @classmethod
    def of(cls, folders: Folders, placement: Placement, context: Context) -> Klein:
        """The installed model.

        Raises:
            UserError: Code 3 if it is not installed.
        """
        return cls(folders.folder("flux2-klein"), folders.source("flux2-klein"), placement, context)

    def _run(self, work: Image.Image, mask: Image.Image | None, instruction: str, watch: StepWatch) -> Image.Image:
        s = self.settings
        common: dict[str, Any] = {
            "prompt": instruction,
            "image": work,
            "num_inference_steps": s.steps,
            "guidance_scale": s.guidance,
            "generator": noise_source(watch.context.seed),
            "callback_on_step_end": watch,
        }
        pipe, call = self.pipe, self.pipe
        if mask is not None:
            call = self._masked
            common |= {"mask_image": mask, "strength": s.strength}
        with _freed_after(pipe.maybe_free_model_hooks):
            return call(height=work.height, width=work.width, **common).images[0]

    def _forget(self) -> None:
        self.pipe = self._masked = None


class Inpaint(_Editor):
    """`ImageEditor` on Stable Diffusion 1.5 inpainting: for cards of 8 GB; it reads a description, not a command."""

    def __init__(
        self, folder: Path, source: Source, placement: Placement, context: Context, settings: EditSettings = INPAINT
    ) -> None:
        """Load it.

        Args:
            folder: In the published layout.
            source: What it is.
            placement: Where it works.
            context: For cancelling.
            settings: Of the sampling.

        Raises:
            UserError: If the folder is not that of the inpainting model.
        """
        super().__init__(source, settings, placement)
        gate.quiet_imports()
        from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
        from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
        from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_inpaint import (
            StableDiffusionInpaintPipeline,
        )
        from diffusers.schedulers.scheduling_ddim import DDIMScheduler
        from transformers import CLIPTextModel, CLIPTokenizer

        rest = resting(placement)
        text = load(CLIPTextModel, folder, "text_encoder", placement=rest, context=context, spare=(r"\.position_ids$",))
        unet: Any = load(UNet2DConditionModel, folder, "unet", placement=rest, context=context)
        if unet.config.in_channels != 9:
            raise UserError(
                f"this model takes {unet.config.in_channels} channels, inpainting 9; choose sd15-inpaint", BAD_REQUEST
            )
        self.pipe: Any = placed(
            StableDiffusionInpaintPipeline(
                vae=load(AutoencoderKL, folder, "vae", placement=rest, context=context),
                text_encoder=text,
                tokenizer=plain(CLIPTokenizer, folder, "tokenizer"),
                unet=unet,
                scheduler=plain(DDIMScheduler, folder, "scheduler"),
                safety_checker=None,  # pyright: ignore[reportArgumentType]
                feature_extractor=None,  # pyright: ignore[reportArgumentType]
                requires_safety_checker=False,
            ),
            placement,
        )

    @classmethod
    def of(cls, folders: Folders, placement: Placement, context: Context) -> Inpaint:
        """The installed model.

        Raises:
            UserError: Code 3 if it is not installed.
        """
        return cls(folders.folder("sd15-inpaint"), folders.source("sd15-inpaint"), placement, context)

    def _run(self, work: Image.Image, mask: Image.Image | None, instruction: str, watch: StepWatch) -> Image.Image:
        s = self.settings
        with _freed_after(self.pipe.maybe_free_model_hooks):
            return self.pipe(
                prompt=instruction,
                negative_prompt=s.negative or None,
                image=work,
                mask_image=mask if mask is not None else Image.new("L", work.size, 255),
                height=work.height,
                width=work.width,
                strength=s.strength if mask is not None else s.whole_strength,
                num_inference_steps=s.steps,
                guidance_scale=s.guidance,
                generator=noise_source(watch.context.seed),
                callback_on_step_end=watch,
            ).images[0]

    def _forget(self) -> None:
        self.pipe = None


def checked_mask(mask: np.ndarray, image: np.ndarray) -> np.ndarray:
    """The mask as float32 [H, W] in 0..1; what is hardly masked is not.

    Raises:
        UserError: If it has another size than the picture, or holds numbers that are not finite.
    """
    if mask.shape != image.shape[:2]:
        raise UserError(f"the mask is {list(mask.shape)}, the picture {list(image.shape[:2])}", BAD_REQUEST)
    soft = np.asarray(mask, np.float32)
    if not np.isfinite(soft).all():
        raise UserError("the mask holds numbers that are not finite", BAD_REQUEST)
    soft = np.clip(soft, 0.0, 1.0)
    return np.where(soft < MASK_LEAST, np.float32(0), soft)


def mask_box(mask: np.ndarray, margin: float) -> tuple[int, int, int, int] | None:
    """The box of a mask, grown by `margin` of its larger side: left, top, right, bottom in px; None if it is empty."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return None
    height, width = mask.shape
    top, bottom, left, right = int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1
    # Square where the picture allows it: models like squares, and see as much beside the mask as above it.
    side = round(max(bottom - top, right - left) * (1 + 2 * margin))
    grow_x, grow_y = max(side - (right - left), 0), max(side - (bottom - top), 0)
    left, right = max(left - grow_x // 2, 0), min(right + grow_x - grow_x // 2, width)
    top, bottom = max(top - grow_y // 2, 0), min(bottom + grow_y - grow_y // 2, height)
    return left, top, right, bottom


def pasted(image: np.ndarray, part: np.ndarray, mask: np.ndarray, corner: tuple[int, int]) -> np.ndarray:
    """`image` with `part` put at `corner` (left, top) where the mask is; where the mask is 0 nothing changes.

    Args:
        image: uint8 [H, W, 3].
        part: uint8 [h, w, 3].
        mask: float32 [H, W] in 0..1.
        corner: Of the part, px.
    """
    left, top = corner
    window = (slice(top, top + part.shape[0]), slice(left, left + part.shape[1]))
    share = mask[window][..., None]
    mixed = image[window] * (1.0 - share) + part * share
    result = image.copy()
    result[window] = np.where(share > 0, np.rint(mixed).astype(np.uint8), image[window])
    return result


@contextlib.contextmanager
def _freed_after(free: Callable[[], object]) -> Iterator[None]:
    try:
        yield
    finally:
        free()
