"""One picture to Gaussians by packages that the user installs: TripoSplat, TRELLIS.

Both give Gaussians in a cube from -0.5 to 0.5 with z up and the front towards -y, which is turned into ours: y up,
front towards +z. The front is where the model believes it, which for TRELLIS need not be the picture's view: whoever
places the object tries the four quarter turns.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from backend.context import Context
from backend.diffusion import gate, outside
from backend.diffusion.interfaces import Lifted, LiftGenerator
from backend.diffusion.load import Folders, load
from backend.diffusion.placement import Placement
from backend.errors import MODEL_MISSING, UserError

STAGE = "Lift the picture"
SH_C0 = 0.28209479177387814
"""Degree-0 spherical harmonic: colour = SH_C0 * f_dc + 0.5."""

TRIPOSPLAT_FILES = {
    "ckpt_path": "diffusion_models/triposplat_fp16.safetensors",
    "decoder_path": "vae/triposplat_vae_decoder_fp16.safetensors",
    "dinov3_path": "clip_vision/dino_v3_vit_h.safetensors",
    "flux2_vae_encoder_path": "vae/flux2-vae.safetensors",
    "rmbg_path": "background_removal/birefnet.safetensors",
}
"""Arguments of its pipeline and the files of VAST-AI/TripoSplat as its own demo names them."""

TRELLIS_ENCODER = "dinov2"
"""Subfolder with facebook/dinov2-with-registers-large, which TRELLIS itself would get as code from a hub."""

Z_UP_TO_Y_UP = np.array([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, -1.0, 0.0]])
"""(x, y, z) -> (x, z, -y)."""

_TURN_WXYZ = np.array([np.sqrt(0.5), -np.sqrt(0.5), 0.0, 0.0])
"""The same as a quaternion: -90 degrees about x."""


class TripoSplat:
    """`triposplat.TripoSplatPipeline` (VAST-AI-Research/TripoSplat, read in a copy at 324e29cf; MIT, safetensors).

    It needs a CUDA device: the package itself creates its Gaussians there.
    """

    def __init__(self, folders: Folders, device: str = "cuda", gaussians: int = 131072, steps: int = 20) -> None:
        """Load it.

        Args:
            folders: Where the model `triposplat` lies, in its published layout.
            device: Torch device.
            gaussians: 32768 to 262144.
            steps: Of the flow's integration.

        Raises:
            UserError: Code 3 if the package or a file of its weights is not there.
        """
        folder = folders.folder("triposplat")
        gate.check_folder(folder)
        with outside.guarded("TripoSplat"):
            package = outside.require("triposplat")
            files = {name: str(_there(folder / path)) for name, path in TRIPOSPLAT_FILES.items()}
            self._pipeline = package.TripoSplatPipeline(**files, device=device)
        self.sources = (folders.source("triposplat"),)
        self._gaussians, self._steps = gaussians, steps

    def lift(self, image: np.ndarray, mask: np.ndarray, context: Context) -> Lifted:
        """Gaussians of what `mask` (float32 [H, W], 0..1) shows of `image` (uint8 [H, W, 3]).

        Raises:
            Cancelled: Within one step.
        """

        def report(step: int, total: int) -> None:
            context.progress(STAGE, step, total)

        context.progress(STAGE, 0, self._steps)
        gaussian, _ = self._pipeline.run(
            cut_out(image, mask),
            seed=context.seed,
            steps=self._steps,
            num_gaussians=self._gaussians,
            callback=report,
        )
        rotations = gaussian._rotation + gaussian.rots_bias[None]
        return lifted(gaussian.get_xyz, gaussian.get_scaling, rotations, gaussian.get_opacity, gaussian._features_dc)


class Trellis:
    """`trellis.pipelines.TrellisImageTo3DPipeline` (microsoft/TRELLIS at 06feb3a3; MIT, safetensors).

    Its picture encoder would come as code from a hub; it is transformers' DINOv2 with registers instead, whose numbers
    lie in the subfolder `dinov2`. Needs a CUDA device with 16 GB.
    """

    def __init__(self, folders: Folders, device: str = "cuda") -> None:
        """Load it.

        Raises:
            UserError: Code 3 if the package or a file of its weights is not there.
        """
        folder = folders.folder("trellis")
        gate.check_folder(folder)
        encoder = HubDino(folder / TRELLIS_ENCODER)
        with outside.guarded("TRELLIS", hub=encoder.stand_in):
            outside.require("trellis")
            from trellis.pipelines import TrellisImageTo3DPipeline  # pyright: ignore[reportMissingImports]

            _there(folder / "pipeline.json")
            self._pipeline = TrellisImageTo3DPipeline.from_pretrained(str(folder))
        self._pipeline.to(torch.device(device))
        self.sources = (folders.source("trellis"),)

    def lift(self, image: np.ndarray, mask: np.ndarray, context: Context) -> Lifted:
        """Gaussians of what `mask` (float32 [H, W], 0..1) shows of `image` (uint8 [H, W, 3]).

        Raises:
            Cancelled: Within one step of either flow.
        """
        flows = [self._pipeline.models[name] for name in ("sparse_structure_flow_model", "slat_flow_model")]
        handles = [flow.register_forward_pre_hook(lambda *_: context.raise_if_cancelled()) for flow in flows]
        try:
            context.progress(STAGE, 0, 1)
            out = self._pipeline.run(cut_out(image, mask), seed=context.seed, formats=["gaussian"])
        finally:
            for handle in handles:
                handle.remove()
        context.progress(STAGE, 1, 1)
        found = out["gaussian"][0]
        return lifted(found.get_xyz, found.get_scaling, found.get_rotation, found.get_opacity, found.get_features)


class HubDino(nn.Module):
    """DINOv2 with registers as its own repository's code would answer: `model(x, is_training=True)["x_prenorm"]`."""

    def __init__(self, folder: Path) -> None:
        """Remember where facebook/dinov2-with-registers-large lies."""
        super().__init__()
        self._folder = folder
        self.model: nn.Module | None = None

    def stand_in(self, repository: str, name: str, **_: object) -> HubDino:
        """For `torch.hub.load`; loads the model.

        Raises:
            UserError: If anything else than this encoder is asked for, or its weights are not there.
        """
        if "dinov2" not in repository or not name.endswith("_reg"):
            raise UserError(f"TRELLIS asks for {name} of {repository}, which is code from a hub", MODEL_MISSING)
        transformers = gate.import_transformers()
        self.model = load(transformers.Dinov2WithRegistersModel, self._folder, placement=Placement())
        return self

    def forward(self, image: Tensor, is_training: bool = True) -> dict[str, Tensor]:
        """Tokens [B, 1 + registers + patches, D] before the last norm, of normalised pictures [B, 3, H, W]."""
        if self.model is None:
            raise RuntimeError("the encoder was not loaded")
        return {"x_prenorm": self.model(pixel_values=image, output_hidden_states=True).hidden_states[-1]}


def lift_generator(folders: Folders, device: str = "cuda") -> LiftGenerator:
    """TripoSplat, else TRELLIS.

    Raises:
        UserError: Code 3 if neither is installed: one line with both steps and what is done without them.
    """
    reasons = []
    for make in (TripoSplat, Trellis):
        try:
            return make(folders, device)
        except UserError as error:
            if error.kind != "NO_MODEL":
                raise
            reasons.append(error.message)
    raise UserError(" / ".join(reasons), MODEL_MISSING)


def lifted(positions: Tensor, scales: Tensor, rotations: Tensor, opacities: Tensor, dc: Tensor) -> Lifted:
    """From a package's tensors (z up, in its own cube) to ours (y up, centred, largest side 1).

    Args:
        positions: [N, 3].
        scales: [N, 3], linear.
        rotations: [N, 4], w first, of any length.
        opacities: [N, 1], 0..1.
        dc: [N, 1, 3] or [N, 3, 1] degree-0 coefficients.
    """
    xyz, linear, turns, alphas, f_dc = (
        t.detach().float().cpu().numpy().astype(np.float64) for t in (positions, scales, rotations, opacities, dc)
    )
    xyz = xyz @ Z_UP_TO_Y_UP.T
    least, most = xyz.min(0), xyz.max(0)
    factor = 1 / max(float((most - least).max()), 1e-9)
    turned = _product(_TURN_WXYZ, turns / np.maximum(np.linalg.norm(turns, axis=1, keepdims=True), 1e-12))
    return Lifted(
        positions=((xyz - (least + most) / 2) * factor).astype(np.float32),
        scales=(linear * factor).astype(np.float32),
        rotations_wxyz=turned.astype(np.float32),
        opacities=np.clip(alphas.reshape(-1), 0, 1).astype(np.float32),
        colours=np.clip(f_dc.reshape(-1, 3) * SH_C0 + 0.5, 0, 1).astype(np.float32),
    )


def cut_out(image: np.ndarray, mask: np.ndarray) -> Any:
    """RGBA picture of PIL: both packages take the alpha as the mask and then use no remover of their own."""
    from PIL import Image

    alpha = np.clip(mask * 255 + 0.5, 0, 255).astype(np.uint8)
    return Image.fromarray(np.dstack([image, alpha]), "RGBA")


def _there(path: Path) -> Path:
    if not path.is_file():
        raise UserError(f"{path.name} is not in the model's folder; import it again", MODEL_MISSING)
    return path


def _product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Quaternion [4] times quaternions [N, 4], w first."""
    w, v = a[0], a[1:]
    real = w * b[:, 0] - b[:, 1:] @ v
    return np.column_stack([real, w * b[:, 1:] + b[:, :1] * v + np.cross(v, b[:, 1:])])
