from __future__ import annotations

import gc
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from backend import memory
from backend.context import Context, QuietSink
from backend.diffusion import gate, registry
from backend.diffusion.edit import INPAINT, Inpaint
from backend.diffusion.interfaces import PoseTrack, Source
from backend.diffusion.placement import (
    FOOTPRINTS,
    PRESET_BYTES,
    Footprint,
    Placement,
    _offload_to_memory,
    _store,
    check,
    choose,
    choose_for,
    ladder,
    limited,
    measured,
    needed_bytes,
    place,
    preset_of,
    resident_bytes,
    threads,
    tile,
)
from backend.diffusion.resting import blocks
from backend.diffusion.video import VideoSettings, WanVACE
from backend.errors import MODEL_MISSING, UserError
from tests.diffusion.tiny_video import noise_picture, one_thread, write_inpaint, write_vace  # noqa: F401

gate.quiet_imports()

from diffusers import AutoencoderKL, UNet2DConditionModel, WanTransformer3DModel  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")

MIDDLE = {
    "sample_size": 16, "block_out_channels": (64, 128), "layers_per_block": 2, "norm_num_groups": 8,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "cross_attention_dim": 64, "attention_head_dim": 8,
}  # fmt: skip
"""17.6 MB in 32 bit: large enough that norms and biases hardly count."""


def middle_unet() -> Any:
    torch.manual_seed(0)
    return UNet2DConditionModel(**MIDDLE).eval().requires_grad_(False)


def run(unet: Any, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    noisy, text = (torch.randn(shape, generator=generator).to(dtype) for shape in ((1, 4, 16, 16), (1, 7, 64)))
    with torch.no_grad():
        return unet(noisy, 5, text).sample.float()


class Looking(TorchDispatchMode):
    """Remembers the most bytes of a model's parameters that were in memory while any of its layers multiplied."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.most = model, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if str(func).split(".")[1] in ("convolution", "addmm", "mm"):
            self.most = max(self.most, resident_bytes(self.model))
        return func(*args, **(kwargs or {}))


def most_resident(unet: nn.Module) -> int:
    with Looking(unet) as looking:
        run(unet)
    return looking.most


@pytest.fixture(scope="module")
def plain() -> Any:
    return middle_unet()


def test_fp8_storage_takes_a_quarter_of_32_bit_and_works_on_a_cpu(plain: Any) -> None:
    full = resident_bytes(plain)
    unet = place(middle_unet(), Placement(storage="fp8"))
    assert resident_bytes(unet) < 0.26 * full
    assert most_resident(unet) < 0.40 * full  # one layer at a time is in 32 bit
    wanted, found = run(plain), run(unet)
    assert resident_bytes(unet) < 0.26 * full
    assert 0 < (found - wanted).norm() / wanted.norm() < 0.15
    assert torch.equal(found, run(unet))


@pytest.mark.parametrize(("offload", "share"), [("group", 0.2), ("sequential", 0.1)])
def test_offload_on_a_cpu_keeps_the_weights_in_a_file(plain: Any, tmp_path: Path, offload: Any, share: float) -> None:
    full = resident_bytes(plain)
    unet = place(middle_unet(), Placement(offload=offload, folder=tmp_path / "rest"))
    assert resident_bytes(unet) == 0
    assert 0 < most_resident(unet) < share * full
    assert resident_bytes(unet) == 0
    torch.testing.assert_close(run(unet), run(plain), rtol=1e-4, atol=1e-5)
    size = sum(path.stat().st_size for path in (tmp_path / "rest").rglob("*.safetensors"))
    assert full <= size < 1.05 * full
    del unet
    gc.collect()  # hooks and modules hold each other
    assert not list((tmp_path / "rest").iterdir())


def test_a_whole_model_comes_and_goes_with_model_offload(plain: Any, tmp_path: Path) -> None:
    unet = place(middle_unet(), Placement(offload="model", folder=tmp_path))
    assert resident_bytes(unet) == 0
    assert most_resident(unet) == resident_bytes(plain)
    assert resident_bytes(unet) == 0


@pytest.mark.parametrize("storage", ["same", "fp8"])
@pytest.mark.parametrize("offload", ["model", "group", "sequential"])
def test_offload_to_the_machines_memory_changes_no_number(offload: Any, storage: Any) -> None:
    """The way of accelerators, walked on the CPU: the same hooks, from memory to memory."""
    unet, whole = middle_unet(), place(middle_unet(), Placement(storage=storage))
    placement = Placement(storage=storage, offload=offload)
    _store(unet, placement)
    _offload_to_memory(unet, placement)
    torch.testing.assert_close(run(unet), run(whole), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(run(unet), run(whole), rtol=1e-4, atol=1e-5)


def test_the_limit_is_put_on_the_right_card_and_taken_off(monkeypatch: pytest.MonkeyPatch) -> None:
    shares: list[tuple[float, int]] = []
    monkeypatch.setattr("torch.cuda.current_device", lambda: 3)
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda number: SimpleNamespace(total_memory=40 * 10**9))
    monkeypatch.setattr("torch.cuda.set_per_process_memory_fraction", lambda share, at: shares.append((share, at)))
    for name in ("synchronize", "reset_peak_memory_stats"):
        monkeypatch.setattr(f"torch.cuda.{name}", lambda device: None)
    monkeypatch.setattr("torch.cuda.max_memory_allocated", lambda device: 7)
    for device, number in (("cuda", 3), ("cuda:1", 1)):
        with limited(replace(Context.quiet(device=device), memory_bytes=10**10)) as peak:
            assert shares == [(0.25, number)]
        assert peak.bytes == 7 and shares.pop() == (1.0, number) and shares.pop() == (0.25, number)


def test_fp8_and_offload_together(plain: Any, tmp_path: Path) -> None:
    unet = place(middle_unet(), Placement(storage="fp8", offload="group", folder=tmp_path))
    size = sum(path.stat().st_size for path in tmp_path.rglob("*.safetensors"))
    assert resident_bytes(unet) == 0 and size < 0.27 * resident_bytes(plain)
    whole = place(middle_unet(), Placement(storage="fp8"))
    torch.testing.assert_close(run(unet), run(whole), rtol=0, atol=1e-5)


def test_16_bit_halves(plain: Any) -> None:
    unet = place(middle_unet(), Placement(dtype=torch.bfloat16))
    assert resident_bytes(unet) * 2 == resident_bytes(plain)
    assert run(unet, torch.bfloat16).isfinite().all()


def test_a_model_that_keeps_some_parts_in_32_bit_is_left_so() -> None:
    network = nn.Sequential(nn.Linear(4, 4).bfloat16(), nn.LayerNorm(4))
    place(network, Placement(dtype=torch.bfloat16))
    assert network[0].weight.dtype == torch.bfloat16 and network[1].weight.dtype == torch.float32


def test_tied_weights_rest_once_and_are_found_twice(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Embedding(50, 8), nn.Linear(8, 50, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, numbers: Tensor) -> Tensor:
            return self.head(self.embed(numbers))

    network = Tied().requires_grad_(False)
    wanted = network(torch.arange(5))
    place(network, Placement(offload="sequential", folder=tmp_path))
    torch.testing.assert_close(network(torch.arange(5)), wanted)
    assert next(tmp_path.rglob("*.safetensors")).stat().st_size < 2 * 50 * 8 * 4


def test_gradients_pass_through_a_model_that_is_placed_for_them() -> None:
    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, norm_num_groups=4,
    ).requires_grad_(False)  # fmt: skip
    lean = Placement(storage="fp8", offload="sequential", tiling=True)
    place(vae, lean.differentiable)
    image = torch.rand(1, 3, 16, 16, requires_grad=True)
    vae.encode(image).latent_dist.mean.sum().backward()
    assert image.grad is not None and image.grad.abs().sum() > 0
    assert (lean.differentiable.storage, lean.differentiable.offload) == ("same", "none")


def test_a_pipelines_decoder_keeps_its_numbers_and_is_tiled() -> None:
    from diffusers import DDIMScheduler, MarigoldDepthPipeline

    vae = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4)
    parts = {"text_encoder": None, "tokenizer": None, "prediction_type": "depth"}
    pipeline = MarigoldDepthPipeline(middle_unet(), vae, DDIMScheduler(), **parts)
    assert place(pipeline, Placement(storage="fp8", tiling=True)) is pipeline
    assert {p.dtype for p in vae.parameters()} == {torch.float32}
    assert torch.float8_e4m3fn in {p.dtype for p in pipeline.unet.parameters()}
    assert vae.use_tiling and vae.use_slicing
    tile(nn.Linear(2, 2))  # what has no tiles is left alone


LEAN = [
    *(Placement(offload=offload) for offload in ("model", "group", "sequential")),
    Placement(storage="fp8"),
    Placement(storage="fp8", offload="group"),
    Placement(dtype=torch.bfloat16, storage="fp8", tiling=True),
]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pipelines")
    write_vace(folder / "vace")
    write_inpaint(folder / "inpaint")
    return folder


@pytest.mark.parametrize("placement", LEAN, ids=str)
def test_whole_pipelines_run_wherever_their_parts_lie(tiny: Path, tmp_path: Path, placement: Placement) -> None:
    """Text encoders, transformers, UNets and decoders as the methods use them; moving changes no number."""
    quiet, source = Context.quiet(), Source("tiny", "", "CC0-1.0", True)
    placement = replace(placement, folder=tmp_path / "rest")

    def edited(at: Placement) -> np.ndarray:
        small = replace(INPAINT, steps=2, smallest_px=64)
        return Inpaint(tiny / "inpaint", source, at, quiet, small).edit(noise_picture(64, 64), "a man", None, quiet)

    def filmed(at: Placement) -> np.ndarray:
        settings = VideoSettings(steps=1, guidance=2.0, segment=5, overlap=1, area_px=32 * 32, prompt_tokens=16)
        points = np.full((5, 55, 2), 16, np.float32)
        faces, hands = np.full((5, 68, 2), 16, np.float32), np.full((5, 2, 21, 2), 16, np.float32)
        track = PoseTrack(points, np.ones((5, 55), np.float32), faces, hands, 32, 32, 16.0)
        return WanVACE(tiny / "vace", source, at, quiet, settings).generate(
            noise_picture(32, 32), track, "a man", quiet
        )

    for run in (edited, filmed):
        found = run(placement)
        if placement.storage == "same":
            np.testing.assert_allclose(found.astype(int), run(Placement()), atol=1)
        else:
            assert found.std() > 1


def test_blocks_are_what_repeats() -> None:
    wan = WanTransformer3DModel(num_attention_heads=2, attention_head_dim=12, ffn_dim=16, num_layers=3, text_dim=8)
    assert [type(block).__name__ for block in blocks(wan)] == ["WanTransformerBlock"] * 3
    assert len(blocks(nn.Sequential(nn.Linear(2, 2), nn.ReLU()))) == 2


@pytest.mark.parametrize("model_id", sorted(FOOTPRINTS))
@pytest.mark.parametrize("preset", sorted(PRESET_BYTES))
def test_every_model_fits_every_card_or_says_what_it_needs(model_id: str, preset: Any) -> None:
    allowed = int(PRESET_BYTES[preset] * memory.PRESET_SHARE["best"])
    placement = choose_for(preset, model_id, Context.quiet())
    assert placement.device == "cuda" and needed_bytes(FOOTPRINTS[model_id], placement) <= allowed


def test_the_footprints_are_of_models_of_the_registry() -> None:
    for model_id in set(FOOTPRINTS) - {"sd15-control-adapter", "portrait", "portrait-split"}:
        assert registry.row(model_id).id == model_id


def test_a_larger_card_never_gets_a_leaner_placement() -> None:
    for model_id, footprint in FOOTPRINTS.items():
        rungs = ladder(footprint, "cuda")
        places = [rungs.index(choose_for(preset, model_id, Context.quiet())) for preset in PRESET_BYTES]
        assert places == sorted(places, reverse=True), model_id


def test_the_choices_that_the_presets_are_for() -> None:
    quiet = Context.quiet()
    assert choose_for("8gb", "sd15", quiet) == Placement("cuda", torch.float16)
    assert choose_for("48gb", "wan-animate", quiet).offload == "model"
    assert choose_for("24gb", "wan-animate", quiet).offload in ("model", "group")
    assert choose_for("8gb", "wan-animate", quiet).offload in ("group", "sequential")
    assert choose_for("24gb", "flux2-klein", quiet) == Placement("cuda", torch.bfloat16)
    assert choose_for("8gb", "flux2-klein", quiet).storage == "fp8"


def test_the_ladders_lead_down_and_name_only_what_the_device_has() -> None:
    for device in ("cuda", "cpu", "mps"):
        for footprint in FOOTPRINTS.values():
            rungs = ladder(footprint, device)
            assert needed_bytes(footprint, rungs[-1]) < 0.6 * needed_bytes(footprint, rungs[0])
            assert all(rung.device == device for rung in rungs)
            assert device != "mps" or all(rung.storage == "same" for rung in rungs)
    stays = Footprint(10**9, 10**9, 10**9, castable=False)
    assert all(rung.storage == "same" for device in ("cuda", "cpu") for rung in ladder(stays, device))


def test_the_budget_of_the_context_decides() -> None:
    size = Footprint(2_000_000_000, 2_000_000_000, 500_000_000)
    wide, narrow = (replace(Context.quiet(), memory_bytes=amount) for amount in (10**10, 2 * 10**9))
    assert choose(size, wide) == Placement("cpu", torch.float32)
    lean = choose(size, narrow)
    assert lean != choose(size, wide) and needed_bytes(size, lean) <= 2 * 10**9
    with pytest.raises(UserError, match="0.1 GB may be used") as caught:
        choose(size, replace(Context.quiet(), memory_bytes=10**8))
    assert caught.value.kind == "OUT_OF_MEMORY"


def test_presets_by_device_and_memory() -> None:
    amounts = {4: "8gb", 8.3: "8gb", 12.6: "12gb", 16: "12gb", 25.4: "24gb", 47.5: "48gb", 141: "48gb"}
    for gigabytes, preset in amounts.items():
        assert preset_of("cuda:1", int(gigabytes * 1e9)) == preset
    assert (preset_of("cpu", 10**12), preset_of("mps", 1)) == ("cpu", "apple")


@pytest.mark.parametrize(
    ("placement", "words"),
    [
        (Placement(storage="int8"), "pip install torchao"),
        (Placement(storage="nf4"), "pip install bitsandbytes"),
        (Placement(device="cuda"), "no CUDA device"),
        (Placement(device="mps"), "no Apple GPU"),
    ],
)
def test_what_is_not_there_is_one_line_with_the_next_step(
    placement: Placement, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backend.diffusion.placement.importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    with pytest.raises(UserError, match=words) as caught:
        place(nn.Linear(2, 2), placement)
    assert caught.value.code == MODEL_MISSING


def test_nf4_without_a_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("backend.diffusion.placement.importlib.util.find_spec", lambda name: object())
    with pytest.raises(UserError, match="CUDA"):
        check(Placement(storage="nf4"))


def test_memory_is_measured_and_too_much_is_told() -> None:
    with measured("cpu") as peak:
        held = torch.ones(64 * 2**20, dtype=torch.uint8)
    if peak.bytes:  # where the system tells
        assert peak.bytes >= 0.9 * held.numel()

    class Warnings(QuietSink):
        said: list[str] = []

        def warning(self, code: str, text: str) -> None:
            self.said.append(text)

    context = replace(Context.quiet(), sink=Warnings(), memory_bytes=10**6)
    with limited(context) as peak:
        again = torch.ones(64 * 2**20, dtype=torch.uint8)
    del again
    assert bool(peak.bytes) == bool(Warnings.said)


def test_threads_are_given_back() -> None:
    before = torch.get_num_threads()
    with threads(1):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before


def test_a_placement_reads_well() -> None:
    text = str(Placement("cuda", torch.float16, "fp8", "model", True))
    assert text == "cuda, float16, stored as fp8, model offload, tiles"
