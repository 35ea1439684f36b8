"""Every full-size network with random weights: time of a step, peak memory, and share of the hardware's matrix rate.

One row for each network and memory preset. The placement is the one that a card of that size would get, and the
allocator is held to that size, so that the table also says whether the choice is right. Needs a CUDA device.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from backend.benches.measuring import Bench, Options, Row, absent_row, interleaved
from backend.errors import MODEL_MISSING, UserError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from backend.diffusion.placement import Placement

TABLE = "diffusion_table"
NO_GPU = f"{TABLE} needs a CUDA device and there is none here: python -m backend bench {TABLE} where there is one"
AGAINST = "its products at the device's matrix rate"
STEPS = 3
"""Timed steps of a network where the command does not say."""

LARGE = 0.02
"""Random weights are uniform up to this."""


@dataclass(frozen=True)
class Network:
    """What takes the steps of one model.

    Attributes:
        name: In the table.
        footprint: Key of `placement.FOOTPRINTS`, from which the placement follows.
        parameters: Exact number of weights of the published model.
        build: Makes it, on whatever device is the default.
        inputs: Makes the arguments of one step at the model's usual size, for a device and a dtype.
        what: The step, in words.
    """

    name: str
    footprint: str
    parameters: int
    build: Callable[[], nn.Module]
    inputs: Callable[[str, torch.dtype], Mapping[str, Any]]
    what: str


def noise(device: str, dtype: torch.dtype, *shape: int) -> Tensor:
    """Random numbers."""
    import torch

    return torch.randn(shape, device=device, dtype=dtype)


def sd15_unet() -> nn.Module:
    """Stable Diffusion 1.5."""
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    return UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)


def sd15_inputs(device: str, dtype: torch.dtype) -> Mapping[str, Any]:
    """512 px with and without the prompt."""
    return {
        "sample": noise(device, dtype, 2, 4, 64, 64),
        "timestep": 500,
        "encoder_hidden_states": noise(device, dtype, 2, 77, 768),
    }


def mvdream_unet() -> nn.Module:
    """MVDream: Stable Diffusion 2.1 that sees four views at once and knows their cameras."""
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    from backend.diffusion.multiview import see_across

    unet = UNet2DConditionModel(
        sample_size=32,
        cross_attention_dim=1024,
        attention_head_dim=(5, 10, 20, 20),  # pyright: ignore[reportArgumentType]
        use_linear_projection=True,
        class_embed_type="projection",
        projection_class_embeddings_input_dim=16,
    )
    see_across(unet, 4)
    return unet


def mvdream_inputs(device: str, dtype: torch.dtype) -> Mapping[str, Any]:
    """Four views of 256 px with and without the prompt."""
    return {
        "sample": noise(device, dtype, 8, 4, 32, 32),
        "timestep": 500,
        "encoder_hidden_states": noise(device, dtype, 8, 77, 1024),
        "class_labels": noise(device, dtype, 8, 16),
    }


def marigold_unet() -> nn.Module:
    """Marigold: Stable Diffusion 2 whose input is picture and prediction."""
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=96,
        in_channels=8,
        cross_attention_dim=1024,
        attention_head_dim=(5, 10, 20, 20),  # pyright: ignore[reportArgumentType]
        use_linear_projection=True,
    )


def marigold_inputs(device: str, dtype: torch.dtype) -> Mapping[str, Any]:
    """768 px."""
    return {
        "sample": noise(device, dtype, 1, 8, 96, 96),
        "timestep": 500,
        "encoder_hidden_states": noise(device, dtype, 1, 2, 1024),
    }


def orbit_unet() -> nn.Module:
    """SV3D-p; SVD has the same size."""
    from backend.diffusion.orbit_network import OrbitUNet

    network: Any = OrbitUNet  # its constructor is wrapped by diffusers
    return network(projection_class_embeddings_input_dim=1280, num_frames=21, num_attention_heads=(5, 10, 20, 20))


def orbit_inputs(device: str, dtype: torch.dtype) -> Mapping[str, Any]:
    """21 frames of 576 px with and without the picture."""
    return {
        "sample": noise(device, dtype, 2, 21, 8, 72, 72),
        "timestep": 1.0,
        "encoder_hidden_states": noise(device, dtype, 2, 1, 1024),
        "added_time_ids": noise(device, dtype, 2, 21, 3),
    }


def wan_animate() -> nn.Module:
    """Wan 2.2 Animate 14B."""
    from diffusers.models.transformers.transformer_wan_animate import WanAnimateTransformer3DModel

    return WanAnimateTransformer3DModel(added_kv_proj_dim=5120)


def wan_animate_inputs(device: str, dtype: torch.dtype) -> Mapping[str, Any]:
    """A segment of 77 frames at 480 by 832, one pass (it is distilled to work without guidance)."""
    import torch

    latents = (77 - 1) // 4 + 1
    return {
        "hidden_states": noise(device, dtype, 1, 36, latents + 1, 60, 104),
        "timestep": torch.full((1,), 500, device=device, dtype=torch.int64),
        "encoder_hidden_states": noise(device, dtype, 1, 512, 4096),
        "encoder_hidden_states_image": noise(device, dtype, 1, 257, 1280),
        "pose_hidden_states": noise(device, dtype, 1, 16, latents, 60, 104),
        "face_pixel_values": noise(device, dtype, 1, 3, 77, 512, 512),
    }


def wan_vace() -> nn.Module:
    """Wan 2.1 VACE 1.3B."""
    from diffusers.models.transformers.transformer_wan_vace import WanVACETransformer3DModel

    return WanVACETransformer3DModel(
        num_attention_heads=12,
        ffn_dim=8960,
        num_layers=30,
        vace_layers=list(range(0, 30, 2)),
    )


def wan_vace_inputs(device: str, dtype: torch.dtype) -> Mapping[str, Any]:
    """81 frames at 480 by 832 and a reference picture, one of the two passes of guidance."""
    import torch

    latents = (81 - 1) // 4 + 1 + 1
    return {
        "hidden_states": noise(device, dtype, 1, 16, latents, 60, 104),
        "timestep": torch.full((1,), 500, device=device, dtype=torch.int64),
        "encoder_hidden_states": noise(device, dtype, 1, 512, 4096),
        "control_hidden_states": noise(device, dtype, 1, 96, latents, 60, 104),
        "control_hidden_states_scale": torch.ones(15, device=device, dtype=dtype),
    }


def klein() -> nn.Module:
    """FLUX.2 klein 4B."""
    from diffusers.models.transformers.transformer_flux2 import Flux2Transformer2DModel

    return Flux2Transformer2DModel(
        num_layers=5, num_single_layers=20, num_attention_heads=24, joint_attention_dim=7680, guidance_embeds=False
    )


def klein_inputs(device: str, dtype: torch.dtype) -> Mapping[str, Any]:
    """1024 px beside a reference of the same size, one of four steps."""
    import torch

    pixels, words = 2 * 64 * 64, 512
    return {
        "hidden_states": noise(device, dtype, 1, pixels, 128),
        "encoder_hidden_states": noise(device, dtype, 1, words, 7680),
        "timestep": torch.full((1,), 0.5, device=device, dtype=dtype),
        "img_ids": torch.zeros(1, pixels, 4, device=device),
        "txt_ids": torch.zeros(1, words, 4, device=device),
    }


def dino() -> nn.Module:
    """DINOv2 base."""
    from transformers import Dinov2Config, Dinov2Model

    return Dinov2Model(Dinov2Config(image_size=518, patch_size=14))


def dino_inputs(device: str, dtype: torch.dtype) -> Mapping[str, Any]:
    """Eight pictures of 224 px."""
    return {"pixel_values": noise(device, dtype, 8, 3, 224, 224)}


NETWORKS: tuple[Network, ...] = (
    Network("sd15", "sd15", 859_520_964, sd15_unet, sd15_inputs, "512 px, both passes of guidance"),
    Network("mvdream", "mvdream", 867_572_164, mvdream_unet, mvdream_inputs, "four views of 256 px, both passes"),
    Network("marigold", "marigold-normals", 865_922_244, marigold_unet, marigold_inputs, "768 px"),
    Network("sv3d_p", "sv3d-p", 1_525_278_442, orbit_unet, orbit_inputs, "21 frames of 576 px, both passes"),
    Network("wan_animate", "wan-animate", 17_274_816_884, wan_animate, wan_animate_inputs, "77 frames of 480 by 832"),
    Network("wan_vace", "wan-vace", 2_153_972_032, wan_vace, wan_vace_inputs, "81 frames of 480 by 832, one pass"),
    Network("klein", "flux2-klein", 3_875_544_576, klein, klein_inputs, "1024 px beside a reference"),
    Network("dinov2_base", "dinov2-base", 86_580_480, dino, dino_inputs, "eight pictures of 224 px"),
)


def diffusion_table(options: Options) -> list[Row]:
    """All networks by all presets.

    Raises:
        UserError: Code 3 without a CUDA device.
    """
    import torch

    if not torch.cuda.is_available():
        raise UserError(NO_GPU, MODEL_MISSING, "NO_DEVICE")
    from backend.benches.guidance import matrix_rate
    from backend.diffusion.placement import PRESET_BYTES

    rate = matrix_rate()
    return [
        preset_row(network, preset, options, rate)  # pyright: ignore[reportArgumentType]
        for network in NETWORKS
        for preset in PRESET_BYTES
    ]


def preset_row(network: Network, preset: Any, options: Options, rate: float) -> Row:
    """One network as a card of the preset's size would run it; a shortage is a row too."""
    import torch

    from backend import memory
    from backend.context import Context
    from backend.diffusion.placement import PRESET_BYTES, choose_for

    name, total = f"step_{network.name}_{preset}", torch.cuda.get_device_properties("cuda").total_memory
    if total < 0.9 * PRESET_BYTES[preset]:
        return absent_row(name, "ms", AGAINST, f"this card has {total / 1e9:.0f} GB only")
    allowed = int(PRESET_BYTES[preset] * memory.PRESET_SHARE["best"])
    context = replace(Context.quiet(device="cuda"), memory_bytes=allowed, scratch=options.scratch)
    placement = choose_for(preset, network.footprint, context)
    try:
        return step_row(name, network, placement, context, options.repeats or STEPS, rate)
    except torch.OutOfMemoryError as error:
        return absent_row(name, "ms", AGAINST, f"did not fit {allowed / 1e9:.1f} GB as {placement}: {error}"[:200])
    finally:
        memory.free_caches()


def step_row(name: str, network: Network, placement: Placement, context: Any, repeats: int, rate: float) -> Row:
    """Time and memory of one step as it is placed.

    Args:
        name: Of the row.
        network: What is measured.
        placement: Where and how it lies.
        context: Its `memory_bytes` is the limit that holds.
        repeats: Timed steps.
        rate: Of the device, TFLOP/s, from `guidance.matrix_rate`.
    """
    import torch

    from backend.diffusion import gate
    from backend.diffusion.placement import limited, place

    gate.quiet_imports()
    began = time.perf_counter()
    host = placement.offload != "none"
    model = place(random_network(network, placement.dtype, "cpu" if host else placement.device), placement)
    made_s = time.perf_counter() - began
    inputs = network.inputs(placement.device, placement.dtype)

    def step() -> None:
        with torch.no_grad():
            model(**inputs)
        if placement.device.startswith("cuda"):
            torch.cuda.synchronize()

    with limited(context) as peak:
        times = interleaved({"step": step}, repeats)["step"]
    floor_ms = teraflops(network) / rate * 1e3
    note = (
        f"{network.what}; {placement}; peak {peak.bytes / 1e9:.2f} GB of {context.memory_bytes / 1e9:.1f} allowed; "
        f"{100 * floor_ms / times.least_ms:.0f} % of {rate:.0f} TFLOP/s; {made_s:.0f} s to make and place"
    )
    device = torch.cuda.get_device_name() if placement.device.startswith("cuda") else placement.device
    return Row(name, times.least_ms, "ms", AGAINST, floor_ms, floor_ms / times.least_ms, repeats, device, note)


def random_network(network: Network, dtype: torch.dtype, device: str) -> nn.Module:
    """Of full size, uniform weights; made empty first, since initialisers are slow."""
    import torch

    with torch.device("meta"):
        model = network.build()
    keep = set(getattr(model, "_keep_in_fp32_modules", None) or ())
    for name, parameter in model.named_parameters():
        if not keep & set(name.split(".")):
            parameter.data = parameter.data.to(dtype)
    model.to_empty(device=device)
    fast = "cuda" if torch.cuda.is_available() else device
    generator = torch.Generator(fast).manual_seed(0)
    for parameter in model.parameters():
        values = torch.empty(parameter.shape, device=fast, dtype=parameter.dtype)
        parameter.data.copy_(values.uniform_(-LARGE, LARGE, generator=generator))
    _make_buffers(model, device)
    return model.eval().requires_grad_(False)


def _make_buffers(model: nn.Module, device: str) -> None:
    """Tables of positions and the like, which are computed, not learned: from the parts that make them."""
    import torch

    for part in model.modules():
        for name, buffer in part.named_buffers(recurse=False):
            # Their values do not change what a step costs; finite they have to be.
            values = torch.zeros(buffer.shape, dtype=buffer.dtype, device=device)
            part.register_buffer(name, values, persistent=name not in part._non_persistent_buffers_set)


def teraflops(network: Network) -> float:
    """Products and convolutions of one step, counted without doing them."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):
        model = network.build().eval().to("meta")  # a few numbers of SVD are made on the CPU regardless
        inputs = network.inputs("meta", torch.float32)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(**inputs)
    return counter.get_total_flops() / 1e12


BENCHES: dict[str, Bench] = {TABLE: diffusion_table}
