"""One iteration of score distillation with full-size models of random weights, as it would run with real ones."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from backend.benches.measuring import Bench, Options, Row, absent_row, interleaved, time_row

if TYPE_CHECKING:
    import torch

    from backend.diffusion.interfaces import Conditions, Denoiser
    from backend.diffusion.stable_diffusion import StableDiffusion

NO_GPU = "did not run: there is no CUDA device here"
TARGET_MS = 25.0
"""Of one iteration at 512 px on an H100-class card."""

TEXT_SIZE, TEXT_LENGTH, FACE_TOKENS = 768, 77, 16


def full_size(device: str, dtype: torch.dtype) -> StableDiffusion:
    """Stable Diffusion 1.5 with one control network and plus-face, of random weights made on the device."""
    import torch

    from backend.diffusion import gate

    gate.import_diffusers().utils.logging.set_verbosity_error()
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.controlnets.controlnet import ControlNetModel
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    from backend.diffusion.attention import ImageTokenAttention
    from backend.diffusion.interfaces import NoiseSchedule
    from backend.diffusion.latent_model import PictureCoder
    from backend.diffusion.stable_diffusion import StableDiffusion

    with torch.device(device):
        unet: Any = UNet2DConditionModel(cross_attention_dim=TEXT_SIZE, attention_head_dim=8)
        control: Any = ControlNetModel(cross_attention_dim=TEXT_SIZE, attention_head_dim=8)
        coder: Any = AutoencoderKL
        vae = coder(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(128, 256, 512, 512),
            layers_per_block=2,
            latent_channels=4,
        )
        processors = dict(unet.attn_processors)
        for name in processors:
            if name.endswith("attn2.processor"):
                layer = unet.get_submodule(name.removesuffix(".processor"))
                processors[name] = ImageTokenAttention(TEXT_SIZE, layer.to_k.out_features)
        unet.set_attn_processor(processors)
        betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
        cumulative = (1 - betas).cumprod(0)
    for model in (unet, control, vae):
        model.to(dtype).eval().requires_grad_(False)
    schedule = NoiseSchedule(cumulative.sqrt(), (1 - cumulative).sqrt(), "epsilon")
    return StableDiffusion(unet, PictureCoder(vae), schedule, (control,))


def conditions_like(model: StableDiffusion, size_px: int, views: int, device: str) -> tuple[Conditions, Conditions]:
    """Random conditions for a batch of views: text, face tokens, one drawing per control network."""
    import torch

    from backend.diffusion.interfaces import Conditions

    wide = model.unet.config.cross_attention_dim
    images = tuple(torch.rand(views, 3, size_px, size_px, device=device) for _ in model.controls)

    def one() -> Conditions:
        return Conditions(
            torch.randn(views, TEXT_LENGTH, wide, device=device),
            torch.randn(views, FACE_TOKENS, wide, device=device),
            control_images=images,
            control_scales=(torch.ones(views, device=device),) * len(images),
        )

    return one(), one()


def iteration(
    model: Denoiser, conditions: tuple[Conditions, Conditions], size_px: int, captured: bool
) -> Callable[[], Any]:
    """One whole iteration as a run to be timed: encode, predict, align with a style, gradient at the picture.

    Args:
        model: The denoiser.
        conditions: Positive and negative, of the views to be guided.
        size_px: Of the rendered pictures.
        captured: Replay recordings instead of launching every kernel.
    """
    import torch

    from backend.diffusion.captured import CapturedGuidance
    from backend.diffusion.guidance import SAS, guide
    from backend.diffusion.moments import Moments

    text = conditions[0].text
    device = text.device
    images = torch.rand(len(text), 3, size_px, size_px, device=device, requires_grad=True)
    mask = torch.ones(len(text), 1, size_px, size_px, device=device)
    generator = torch.Generator(device).manual_seed(0)
    style = Moments(torch.zeros(4, device=device), torch.eye(4, device=device))
    replayed = CapturedGuidance(model, SAS, style) if captured else None

    def run() -> torch.Tensor:
        images.grad = None
        if replayed is not None:
            result = replayed(images, *conditions, progress=0.5, generator=generator, mask=mask)
        else:
            result = guide(model, images, *conditions, SAS, progress=0.5, generator=generator, mask=mask, style=style)
        result.loss.backward()
        if device.type == "cuda":
            torch.cuda.synchronize()
        assert images.grad is not None
        return images.grad

    return run


def sds_sd15_512(options: Options) -> list[Row]:
    """SAS with SD 1.5, a control network and plus-face at 512 px, gradient through the encoder; recorded and eager."""
    import torch

    name, against = "sds_sd15_512", "the same, eager"
    if not torch.cuda.is_available():
        return [absent_row(name, "ms", against, NO_GPU)]
    model = full_size("cuda", torch.float16)
    conditions = conditions_like(model, 512, 1, "cuda")
    eager, recorded = (iteration(model, conditions, 512, captured) for captured in (False, True))
    teraflops = counted_teraflops(eager)
    repeats = options.repeats or 50
    times = interleaved({"ours": recorded, "theirs": eager}, repeats, warm_up=5)
    rate = matrix_rate()
    reached = teraflops / (times["ours"].least_ms * 1e-3)
    note = (
        f"target {TARGET_MS:.0f} ms on an H100-class card; {teraflops:.2f} TFLOP, {reached:.0f} TFLOP/s, "
        f"{100 * reached / rate:.0f} % of a large product's {rate:.0f}; "
        f"peak memory {torch.cuda.max_memory_allocated() / 1e9:.1f} GB"
    )
    return [time_row(name, times["ours"], against, times["theirs"], note, torch.cuda.get_device_name())]


def sds_sd15_512_compiled(options: Options) -> list[Row]:
    """The same with torch.compile for the networks (which takes minutes once) against eager."""
    import torch

    name, against = "sds_sd15_512_compiled", "the same, eager"
    if not torch.cuda.is_available():
        return [absent_row(name, "ms", against, NO_GPU)]
    model = full_size("cuda", torch.float16)
    conditions = conditions_like(model, 512, 1, "cuda")
    eager = iteration(model, conditions, 512, captured=False)
    before = interleaved({"eager": eager}, options.repeats or 20, warm_up=5)["eager"]
    began = time.perf_counter()
    for network in (model.unet, *model.controls, model.coder.vae.encoder):
        network.compile()
    recorded = iteration(model, conditions, 512, captured=True)
    recorded()
    waited = time.perf_counter() - began
    after = interleaved({"ours": recorded}, options.repeats or 50, warm_up=5)["ours"]
    note = f"compiled and recorded; {waited:.0f} s to compile; eager measured before, not in turns"
    return [time_row(name, after, against, before, note, torch.cuda.get_device_name())]


def counted_teraflops(run: Callable[[], Any]) -> float:
    """Products and convolutions of one run."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops() / 1e12


def matrix_rate(size: int = 8192, repeats: int = 20) -> float:
    """TFLOP/s of one large float16 product on this device: what its matrix units give when they are kept busy."""
    import torch

    a, b = (torch.randn(size, size, device="cuda", dtype=torch.float16) for _ in range(2))
    for _ in range(3):
        torch.mm(a, b)
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(repeats):
        torch.mm(a, b)
    torch.cuda.synchronize()
    return 2 * size**3 * repeats / (time.perf_counter() - began) / 1e12


def style_map(options: Options) -> list[Row]:
    """The style map of one iteration, four views at 512 px, against one by eigendecompositions."""
    import torch

    from backend.diffusion.guidance import SAS, aligned
    from backend.diffusion.moments import Moments, apply, moments

    name, against = "style_map_4x64", "eigendecompositions"
    if not torch.cuda.is_available():
        return [absent_row(name, "ms", against, f"{NO_GPU}, and only there an eigendecomposition waits for the host")]
    device = "cuda"
    estimate = torch.randn(4, 4, 64, 64, device=device)
    style = Moments(torch.zeros(4, device=device), torch.eye(4, device=device))

    def ours() -> None:
        aligned(estimate, style, SAS)
        torch.cuda.synchronize()

    def root(matrix: torch.Tensor, power: float) -> torch.Tensor:
        values, vectors = torch.linalg.eigh(matrix)
        return vectors @ torch.diag(values.clamp_min(1e-12) ** power) @ vectors.T

    def theirs() -> None:
        own, wanted = moments(estimate), style.to(estimate)
        half, inverse = root(own.covariance, 0.5), root(own.covariance, -0.5)
        matrix = inverse @ root(half @ wanted.covariance @ half, 0.5) @ inverse
        values, vectors = torch.linalg.eigh(matrix)
        apply(vectors @ torch.diag(values.clamp_max(4.0)) @ vectors.T, own, wanted, estimate)
        torch.cuda.synchronize()

    times = interleaved({"ours": ours, "theirs": theirs}, options.repeats or 20)
    note = "products only, so that it can be recorded and never waits for the host"
    return [time_row(name, times["ours"], against, times["theirs"], note, torch.cuda.get_device_name())]


BENCHES: dict[str, Bench] = {
    "sds_sd15_512": sds_sd15_512,
    "sds_sd15_512_compiled": sds_sd15_512_compiled,
    "style_map_4x64": style_map,
}
