"""Stand-ins for packages that users install, with the call signatures of the published code (read where each adapter
says it). Their answers follow from picture and seed, so that a test sees what reached them."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn


def install(monkeypatch: pytest.MonkeyPatch, name: str, **members: object) -> types.ModuleType:
    """Put a module, and the packages that it lies in, where imports find them."""
    parts = name.split(".")
    for depth in range(1, len(parts) + 1):
        path = ".".join(parts[:depth])
        module = sys.modules.get(path) or types.ModuleType(path)
        if not isinstance(getattr(module, "__path__", None), list):
            module.__path__ = []  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, path, module)
        if depth > 1:
            setattr(sys.modules[".".join(parts[: depth - 1])], parts[depth - 1], module)
    for key, value in members.items():
        setattr(sys.modules[name], key, value)
    return sys.modules[name]


class MoGeModel(nn.Module):
    """Of moge.model.v2; a wall that leans as the left half of the picture is bright."""

    def __init__(self, encoder: dict, neck: dict, num_tokens_range: list[int] | None = None, **_: object) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(1))

    @classmethod
    def from_pretrained(cls, path: str, model_kwargs: dict | None = None, **_: object) -> MoGeModel:
        return cls(**torch.load(path, map_location="cpu", weights_only=True)["model_config"])

    @torch.inference_mode()
    def infer(
        self, image: Tensor, num_tokens: int | None = None, resolution_level: int = 9, force_projection: bool = True,
        apply_mask: Any = True, fov_x: Any = None, use_fp16: bool = True,
    ) -> dict[str, Tensor]:  # fmt: skip
        assert image.ndim == 3 and float(image.max()) <= 1
        depth = self.scale + image.mean(0) + 1
        depth[0] = torch.inf
        normal = torch.stack([torch.zeros_like(depth), torch.zeros_like(depth), -2 * torch.ones_like(depth)], -1)
        normal[0] = 0
        return {"depth": depth, "normal": normal, "mask": depth.isfinite()}


class TripoGaussian:
    """Of triposplat: a point at each corner of a box whose height (z) is twice its width."""

    def __init__(self, seed: int, brightness: float) -> None:
        corners = torch.tensor([[x, y, z] for x in (0, 1) for y in (0, 1) for z in (0, 2)], dtype=torch.float32)
        self.get_xyz = corners * 0.1 + 0.01 * seed
        self.get_scaling = torch.full((8, 3), 0.02)
        self.get_opacity = torch.full((8, 1), 0.5)
        self._rotation = torch.zeros(8, 4)
        self.rots_bias = torch.tensor([1.0, 0, 0, 0])
        self._features_dc = torch.full((8, 1, 3), brightness)


class TripoSplatPipeline:
    """Of triposplat."""

    def __init__(
        self, ckpt_path: str, decoder_path: str, dinov3_path: str, flux2_vae_encoder_path: str, rmbg_path: str,
        device: str = "cuda",
    ) -> None:  # fmt: skip
        for path in (ckpt_path, decoder_path, dinov3_path, flux2_vae_encoder_path, rmbg_path):
            load_file(path)

    def run(
        self, image: Any, seed: int = 42, steps: int = 20, guidance_scale: float = 3.0, shift: float = 3.0,
        num_gaussians: int = 262144, erode_radius: int = 1, show_progress: bool = False,
        callback: Callable[[int, int], None] | None = None,
    ) -> tuple[TripoGaussian, Any]:  # fmt: skip
        assert image.mode == "RGBA" and 32768 <= num_gaussians <= 262144
        for step in range(steps):
            if callback is not None:
                callback(step + 1, steps)
        pixels = np.asarray(image, np.float64)
        seen = pixels[pixels[..., 3] > 127][:, :3].mean() / 255
        return TripoGaussian(seed, float(seen) - 0.5), image


class TrellisGaussian(TripoGaussian):
    """Of trellis: properties instead of the raw rotation."""

    @property
    def get_rotation(self) -> Tensor:
        return torch.nn.functional.normalize(self._rotation + self.rots_bias)

    @property
    def get_features(self) -> Tensor:
        return self._features_dc


class TrellisImageTo3DPipeline:
    """Of trellis.pipelines; its picture encoder comes through torch.hub."""

    def __init__(self) -> None:
        self.models: dict[str, nn.Module] = {}

    @staticmethod
    def from_pretrained(path: str) -> TrellisImageTo3DPipeline:
        assert (Path(path) / "pipeline.json").is_file()
        pipeline = TrellisImageTo3DPipeline()
        pipeline.models["image_cond_model"] = torch.hub.load(
            "facebookresearch/dinov2", "dinov2_vitl14_reg", pretrained=True
        )
        for name in ("sparse_structure_flow_model", "slat_flow_model"):
            pipeline.models[name] = nn.Linear(1, 1)
        return pipeline

    def to(self, device: torch.device) -> None:
        for model in self.models.values():
            model.to(device)

    @torch.no_grad()
    def run(
        self, images: Any, num_samples: int = 1, seed: int = 42, sparse_structure_sampler_params: dict | None = None,
        slat_sampler_params: dict | None = None, formats: Any = ("mesh", "gaussian", "radiance_field"),
        preprocess_image: bool = True,
    ) -> dict[str, list[TrellisGaussian]]:  # fmt: skip
        assert images.mode == "RGBA" and list(formats) == ["gaussian"]
        pixels = torch.from_numpy(np.array(images.convert("RGB"))).permute(2, 0, 1)[None].float() / 255
        pixels = torch.nn.functional.interpolate(pixels, (56, 56))
        tokens = self.models["image_cond_model"](pixels, is_training=True)["x_prenorm"]
        for name in ("sparse_structure_flow_model", "slat_flow_model"):
            for _ in range(3):
                self.models[name](torch.zeros(1))
        return {"gaussian": [TrellisGaussian(seed, float(tokens.mean().tanh()))]}


class FaceNetwork(nn.Module):
    """GFPGAN as spandrel builds it: -1..1 in and out, and the colours of the middle steps beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.zeros(1))

    def forward(
        self, x: Tensor, return_latents: bool = False, return_rgb: bool = True, randomize_noise: bool = True
    ) -> tuple[Tensor, list[Tensor]]:
        assert x.shape[1:] == (3, 512, 512) and not randomize_noise and float(x.min()) >= -1
        return (x * self.gain).clamp(-1.2, 1.2), []


class ModelLoader:
    """Of spandrel."""

    purpose = "FaceSR"

    def __init__(self, device: Any = None, registry: Any = None) -> None: ...

    def load_from_file(self, path: str | Path) -> Any:
        if not str(path).endswith(".safetensors"):
            torch.load(path, map_location="cpu")
        network = FaceNetwork()
        network.load_state_dict(load_file(path))
        return types.SimpleNamespace(model=network, purpose=self.purpose, scale=1)


class SAM3DBody(nn.Module):
    """Of sam_3d_body.models.meta_arch: its body is another package's, its encoder comes through torch.hub."""

    def __init__(self, config: dict) -> None:
        super().__init__()
        self.backbone = torch.hub.load("facebookresearch/dinov3", config["backbone"], source="github", pretrained=False)
        self.head = nn.Linear(2, 3)
        self.mhr = nn.Linear(1, 1)

    @property
    def device(self) -> torch.device:
        return self.head.weight.device


class SAM3DBodyEstimator:
    """Of sam_3d_body: answers the keypoints that the test told."""

    told: dict[str, np.ndarray] = {}

    def __init__(
        self, sam_3d_body_model: Any, model_cfg: Any, human_detector: Any = None, human_segmentor: Any = None,
        fov_estimator: Any = None,
    ) -> None:  # fmt: skip
        self.calls: list[dict[str, Any]] = []

    def process_one_image(
        self, img: Any, bboxes: Any = None, masks: Any = None, cam_int: Any = None, det_cat_id: int = 0,
        bbox_thr: float = 0.5, nms_thr: float = 0.3, use_mask: bool = False, inference_type: str = "full",
    ) -> list[dict[str, Any]]:  # fmt: skip
        assert bboxes.shape == (1, 4) and masks.shape == (1, *img.shape[:2])
        self.calls.append({"bboxes": bboxes, "cam_int": cam_int})
        return [self.told] if self.told else []
