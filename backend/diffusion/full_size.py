"""Networks of published size with random weights, and the inputs of one denoising step: for measuring time and memory.

On the device "meta" nothing is allocated: parameters and operations can be counted there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

from backend.diffusion import gate
from backend.errors import BAD_REQUEST, UserError


@dataclass(frozen=True)
class FullSize:
    """One network and what it is asked in one step.

    Attributes:
        name: Id of the model in the registry.
        model: On its device, in evaluation mode, without gradients.
        inputs: Arguments of its forward pass.
        passes: How many such passes a step of the pipeline takes, guidance included.
        note: Size of the work, for a table.
    """

    name: str
    model: nn.Module
    inputs: Mapping[str, Any]
    passes: int
    note: str

    @property
    def parameters(self) -> int:
        """How many numbers the network has."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    def step(self) -> Tensor:
        """One denoising step as the pipeline does it, without the sampler's own few operations."""
        with torch.no_grad():
            return [self.model(**self.inputs, return_dict=False)[0] for _ in range(self.passes)][-1]

    def operations(self) -> int:
        """Floating-point operations of a step, counted on the device "meta"."""
        from torch.utils.flop_counter import FlopCounterMode

        alone = build_full_size(self.name, "meta")
        with FlopCounterMode(display=False) as counter:
            alone.step()
        return counter.get_total_flops()


@dataclass(frozen=True)
class _Plan:
    make: Callable[[], nn.Module]
    inputs: Mapping[str, tuple[int, ...]]
    passes: int
    note: str
    numbers: Mapping[str, float]


def full_size_names() -> tuple[str, ...]:
    """Ids that `build_full_size` knows."""
    return tuple(_PLANS)


def build_full_size(name: str, device: str = "meta", dtype: torch.dtype = torch.bfloat16) -> FullSize:
    """A published network with random weights.

    Args:
        name: One of `full_size_names`.
        device: Where; "meta" allocates nothing.
        dtype: Of weights and inputs.

    Raises:
        UserError: If there is no such name.
    """
    if name not in _PLANS:
        raise UserError(f"no full-size model is called {name}; there are {', '.join(_PLANS)}", BAD_REQUEST)
    gate.quiet_imports()
    from accelerate import init_empty_weights

    plan = _PLANS[name]()
    with init_empty_weights():  # tables that a network computes for itself are made all the same
        model = plan.make()
    _fill(model, device, dtype)
    random = {key: _input(shape, device, dtype) for key, shape in plan.inputs.items()}
    numbers = {
        key: torch.tensor([value], dtype=torch.float32 if device == "meta" else dtype, device=device)
        for key, value in plan.numbers.items()
    }
    return FullSize(name, model.eval().requires_grad_(False), {**random, **numbers}, plan.passes, plan.note)


def _input(shape: tuple[int, ...], device: str, dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, device=device, dtype=dtype).normal_()


def _fill(model: nn.Module, device: str, dtype: torch.dtype) -> None:
    """Small random weights made on the device, in the precision in which each would be loaded."""
    exact = set(getattr(model, "_keep_in_fp32_modules", None) or ())
    for path, module in model.named_modules():
        for key, parameter in list(module.named_parameters(recurse=False)):
            kept = exact & {*path.split("."), key}
            values = torch.empty(parameter.shape, dtype=torch.float32 if kept else dtype, device=device)
            module.register_parameter(key, nn.Parameter(values.normal_(std=0.02), requires_grad=False))
        for key, buffer in list(module.named_buffers(recurse=False)):
            setattr(module, key, buffer.to(device))


def _svd() -> _Plan:
    from backend.diffusion.orbit_network import VideoUNet

    inputs = {
        "sample": (2, 25, 8, 72, 128),
        "encoder_hidden_states": (2, 1, 1024),
        "added_time_ids": (2, 3),
    }
    return _Plan(VideoUNet, inputs, 1, "25 frames of 1024 x 576 px, both guidance passes at once", {"timestep": 0.5})


def _sv3d(cameras: bool) -> _Plan:
    from backend.diffusion.orbit_network import OrbitUNet

    inputs = {
        "sample": (1, 21, 8, 72, 72),
        "encoder_hidden_states": (1, 1, 1024),
        "added_time_ids": (1, 21, 3 if cameras else 1),
    }
    width = 1280 if cameras else 256
    return _Plan(
        lambda: OrbitUNet(projection_class_embeddings_input_dim=width),  # pyright: ignore[reportCallIssue]
        inputs,
        2,
        "21 frames of 576 px, guidance passes one by one",
        {"timestep": 0.5},
    )


def _wan_animate() -> _Plan:
    from diffusers.models.transformers.transformer_wan_animate import WanAnimateTransformer3DModel

    inputs = {
        "hidden_states": (1, 36, 21, 60, 104),
        "encoder_hidden_states": (1, 512, 4096),
        "encoder_hidden_states_image": (1, 257, 1280),
        "pose_hidden_states": (1, 16, 20, 60, 104),
        "face_pixel_values": (1, 3, 77, 512, 512),
    }
    return _Plan(
        lambda: WanAnimateTransformer3DModel(added_kv_proj_dim=5120),
        inputs,
        1,
        "77 frames of 832 x 480 px",
        {"timestep": 500.0},
    )


def _wan_vace() -> _Plan:
    from diffusers.models.transformers.transformer_wan_vace import WanVACETransformer3DModel

    inputs = {
        "hidden_states": (1, 16, 22, 60, 104),
        "encoder_hidden_states": (1, 512, 4096),
        "control_hidden_states": (1, 96, 22, 60, 104),
    }
    return _Plan(
        lambda: WanVACETransformer3DModel(
            num_attention_heads=12, ffn_dim=8960, num_layers=30, vace_layers=list(range(0, 30, 2))
        ),
        inputs,
        2,
        "81 frames of 832 x 480 px and a reference",
        {"timestep": 500.0},
    )


def _klein() -> _Plan:
    from diffusers.models.transformers.transformer_flux2 import Flux2Transformer2DModel

    inputs = {
        "hidden_states": (1, 2 * 4096, 128),
        "encoder_hidden_states": (1, 512, 7680),
        "txt_ids": (512, 4),
        "img_ids": (2 * 4096, 4),
    }
    return _Plan(
        lambda: Flux2Transformer2DModel(
            num_layers=5,
            num_single_layers=20,
            num_attention_heads=24,
            joint_attention_dim=7680,
            guidance_embeds=False,
        ),
        inputs,
        1,
        "1024 px with one picture to edit",
        {"timestep": 0.5},
    )


_PLANS: Final[Mapping[str, Callable[[], _Plan]]] = {
    "svd": _svd,
    "sv3d-u": lambda: _sv3d(cameras=False),
    "sv3d-p": lambda: _sv3d(cameras=True),
    "wan-animate": _wan_animate,
    "wan-vace": _wan_vace,
    "flux2-klein": _klein,
}
