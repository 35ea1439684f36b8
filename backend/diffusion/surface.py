"""What a picture says about its surface: normals by Marigold, depth by Depth Anything, both by MoGe-2.

Axes are ours: x right, y down, z forward. Marigold's normals have x right, y up and z towards the observer
(`MarigoldImageProcessor.visualize_normals` of diffusers 0.42.1 says so), so y and z change their sign. MoGe-2's are in
OpenCV's axes already (README of microsoft/MoGe).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from backend.context import Context
from backend.diffusion import gate, outside
from backend.diffusion.interfaces import Surface, SurfaceEstimator
from backend.diffusion.load import Folders, load, read_tensors
from backend.diffusion.placement import Placement, choose
from backend.errors import MODEL_MISSING, UserError

if TYPE_CHECKING:
    from torch import nn

STAGE = "Look at the surface"
MARIGOLD_TO_CAMERA = np.array([1.0, -1.0, -1.0], np.float32)
MARIGOLD_STEPS = 10
"""What version 0.1 needs with its own scheduler (documentation of diffusers), where its index names no number."""
MARIGOLD_SIZE_PX = 768
"""The longer side on which it was trained, where its index names no number."""


class MarigoldNormals:
    """Normals by `MarigoldNormalsPipeline`."""

    def __init__(
        self, folders: Folders, placement: Placement, steps: int | None = None, size_px: int | None = None
    ) -> None:
        """Load it.

        Args:
            folders: Where the model `marigold-normals` lies.
            placement: Where it goes.
            steps: Denoising steps; None for the model's own number.
            size_px: Longer side of the picture that it sees, a multiple of 8; None for the model's own.

        Raises:
            UserError: Code 3 if the model is not there or not whole.
        """
        self.sources = (folders.source("marigold-normals"),)
        diffusers = gate.import_diffusers()
        self._pipeline = marigold_pipeline(
            diffusers.MarigoldNormalsPipeline, folders.folder("marigold-normals"), placement, "use_full_z_range"
        )
        self._steps, self._size_px = steps, size_px

    def estimate(self, image: np.ndarray, context: Context) -> Surface:
        """Normals of uint8 [H, W, 3]; the same for the same seed.

        Raises:
            Cancelled: Within one denoising step.
        """
        prediction = run_marigold(self._pipeline, image, self._steps, self._size_px, context)
        return Surface(normals=unit(prediction[0] * MARIGOLD_TO_CAMERA))


def marigold_pipeline(cls: Any, folder: Path, placement: Placement, *settings: str) -> Any:
    """A Marigold pipeline from its published folder; its empty prompt is encoded and the encoder let go.

    Args:
        cls: Of diffusers.
        folder: Of the model.
        placement: Where unet and decoder go.
        settings: Further entries of its index that the class takes.
    """
    diffusers, transformers = gate.import_diffusers(), gate.import_transformers()
    gate.check_folder(folder)
    index = json.loads((folder / "model_index.json").read_text("utf-8"))
    schedulers = {"DDIMScheduler": diffusers.DDIMScheduler, "LCMScheduler": diffusers.LCMScheduler}
    scheduler = schedulers[index["scheduler"][1]].from_pretrained(folder, subfolder="scheduler", local_files_only=True)
    tokenizer = transformers.CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
    encoder = load(transformers.CLIPTextModel, folder, "text_encoder", placement=Placement(dtype=torch.float32))
    with torch.no_grad():
        empty = tokenizer("", padding="do_not_pad", return_tensors="pt").input_ids
        embedding = encoder(empty)[0]
    del encoder
    pipeline = cls(
        unet=load(diffusers.UNet2DConditionModel, folder, "unet", placement=placement),
        vae=load(diffusers.AutoencoderKL, folder, "vae", placement=placement.differentiable),
        scheduler=scheduler,
        text_encoder=None,
        tokenizer=tokenizer,
        prediction_type=index.get("prediction_type") or cls.supported_prediction_types[0],
        default_denoising_steps=index.get("default_denoising_steps") or MARIGOLD_STEPS,
        default_processing_resolution=index.get("default_processing_resolution") or MARIGOLD_SIZE_PX,
        **{name: index[name] for name in settings if name in index},
    )
    pipeline.empty_text_embedding = embedding
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def run_marigold(pipeline: Any, image: np.ndarray, steps: int | None, size_px: int | None, context: Context) -> Any:
    """Its prediction float32 [targets, H, W, 3] for uint8 [H, W, 3].

    Raises:
        Cancelled: Within one denoising step.
    """
    generator = torch.Generator("cpu").manual_seed(context.seed)
    total = steps or pipeline.default_denoising_steps
    with stopping(pipeline.unet, context, total):
        out = pipeline(
            image.astype(np.float32) / 255,
            num_inference_steps=total,
            processing_resolution=size_px,
            generator=generator,
            output_type="np",
        )
    return np.asarray(out.prediction, np.float32)


@contextmanager
def stopping(module: nn.Module, context: Context, total: int) -> Iterator[None]:
    """Report and ask for cancelling before every call of a module: Marigold's pipelines have no callback."""
    done = 0

    def before(*_: object) -> None:
        nonlocal done
        context.progress(STAGE, min(done, total), total)
        done += 1

    handle = module.register_forward_pre_hook(before)
    try:
        yield
    finally:
        handle.remove()


class DepthAnything:
    """Disparity by Depth Anything 2 (transformers)."""

    def __init__(self, folders: Folders, placement: Placement) -> None:
        """Load it.

        Raises:
            UserError: Code 3 if the model `depth-anything` is not there or not whole.
        """
        self.sources = (folders.source("depth-anything"),)
        transformers, folder = gate.import_transformers(), folders.folder("depth-anything")
        self._processor = transformers.DPTImageProcessorPil.from_pretrained(folder, local_files_only=True)
        self._model = load(transformers.DepthAnythingForDepthEstimation, folder, placement=placement)
        self._placement = placement

    def estimate(self, image: np.ndarray, context: Context) -> Surface:
        """Disparity of uint8 [H, W, 3]: what is near has large values."""
        context.raise_if_cancelled()
        pixels = self._processor(images=image, return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            out = self._model(pixel_values=pixels.to(self._placement.device, self._placement.dtype))
        sized = self._processor.post_process_depth_estimation(out, target_sizes=[image.shape[:2]])
        return Surface(disparity=to_unit_range(sized[0]["predicted_depth"].float().cpu().numpy()))


class MoGe2:
    """Normals and disparity by the `moge` package (signatures of microsoft/MoGe at 637e23e2, moge/model/v2.py).

    The package's own `from_pretrained` reads a pickle; here the network is built from `config.json` (its
    `model_config`) and takes its numbers from `model.safetensors`.
    """

    def __init__(self, folders: Folders, placement: Placement) -> None:
        """Load it.

        Raises:
            UserError: Code 3 if the package or the weights are not there, or the weights are not whole.
        """
        with outside.guarded("MoGe-2"):
            outside.require("moge2")
            from moge.model.v2 import MoGeModel  # pyright: ignore[reportMissingImports]

            folder = folders.folder("moge2")
            gate.check_folder(folder)
            config = folder / "config.json"
            if not config.is_file():
                raise UserError("MoGe-2 needs config.json beside its model.safetensors; import it again", MODEL_MISSING)
            model = MoGeModel(**json.loads(config.read_text("utf-8")))
            found = model.load_state_dict(read_tensors(folder / "model.safetensors"), strict=False)
        if found.missing_keys:
            raise UserError(f"the weights of MoGe-2 lack {found.missing_keys[0]}; import them again", MODEL_MISSING)
        self.sources = (folders.source("moge2"),)
        self._model = model.to(placement.device).eval().requires_grad_(False)
        self._half = placement.dtype == torch.float16

    def estimate(self, image: np.ndarray, context: Context) -> Surface:
        """Normals, and the inverse of the depth where there is any; the sky has normal 0 0 -1 and disparity 0."""
        context.raise_if_cancelled()
        pixels = torch.from_numpy(image.copy()).permute(2, 0, 1).float() / 255
        found = self._model.infer(pixels, use_fp16=self._half)
        depth = found["depth"].float().cpu().numpy()
        near = np.where(np.isfinite(depth) & (depth > 0), 1 / np.maximum(depth, 1e-6), 0)
        disparity = to_unit_range(near, np.isfinite(depth))
        normals = found.get("normal")
        return Surface(None if normals is None else unit(normals.float().cpu().numpy()), disparity)


def surface_estimators(folders: Folders, context: Context) -> tuple[SurfaceEstimator, ...]:
    """What is installed, best first, ready to work; empty where nothing is.

    MoGe-2 answers for normals and depth; without it Marigold for normals and Depth Anything for depth. Without either
    the methods take both from the fitted body (`outside.ADDITIONS` states it).
    """

    def installed(model_id: str, cls: Callable[[Folders, Placement], SurfaceEstimator], size: str) -> Any:
        try:
            folders.folder(model_id)
            return cls(folders, choose(size, context))
        except UserError as error:
            if error.kind != "NO_MODEL":
                raise
            return None

    if both := installed("moge2", MoGe2, "marigold-normals"):
        return (both,)
    normals = installed("marigold-normals", MarigoldNormals, "marigold-normals")
    depth = installed("depth-anything", DepthAnything, "depth-anything")
    return tuple(estimator for estimator in (normals, depth) if estimator is not None)


def unit(vectors: np.ndarray) -> np.ndarray:
    """Of length 1, float32 [..., 3]; what has none faces the camera."""
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    facing = np.array([0.0, 0.0, -1.0], np.float32)
    return np.where(length > 1e-6, vectors / np.maximum(length, 1e-6), facing).astype(np.float32)


def to_unit_range(values: np.ndarray, known: np.ndarray | None = None) -> np.ndarray:
    """Float32 [H, W] from 0 (the least known value) to 1 (the largest); unknown ones 0, and all 0 where all agree."""
    known = np.isfinite(values) if known is None else known
    if not known.any():
        return np.zeros(values.shape, np.float32)
    least, most = float(values[known].min()), float(values[known].max())
    scaled = (np.where(known, values, least) - least) / max(most - least, 1e-12)
    return scaled.astype(np.float32)
