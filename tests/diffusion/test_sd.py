"""Stable Diffusion 1.5 with control networks and face adapters, from folders in the published layout."""

from __future__ import annotations

import gc
import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from backend.benches import guidance as bench
from backend.context import Context
from backend.diffusion.face_adapter import (
    Adapter,
    ImageTokens,
    clip_features,
    clip_pixels,
    embed_identity,
    embed_picture,
    face_crop,
    read_adapter,
)
from backend.diffusion.guidance import SAS, Guidance, guide
from backend.diffusion.interfaces import Conditions
from backend.diffusion.latent_model import load_coder, read_schedule
from backend.diffusion.load import load
from backend.diffusion.moments import moments
from backend.diffusion.placement import Placement
from backend.diffusion.sampling import sample, style_of
from backend.diffusion.stable_diffusion import (
    DEPTH_CONTROL,
    FACE_CONTROL,
    POSE_CONTROL,
    StableDiffusion,
    embed_face,
    embed_prompts,
    load_stable_diffusion,
    read_identity_adapter,
    read_plus_face,
)
from backend.errors import Cancelled, UserError
from tests.diffusion.tiny import IDENTITY_SIZE, TinyFactory

CPU = Placement()
QUIET = Context.quiet()
CONTROLS = (FACE_CONTROL, POSE_CONTROL, DEPTH_CONTROL)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def factory(tmp_path_factory: pytest.TempPathFactory) -> TinyFactory:
    return TinyFactory(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def model(factory: TinyFactory) -> StableDiffusion:
    """With everything: three control networks and plus-face."""
    adapter = read_plus_face(factory, QUIET)
    source = factory.source("ip-adapter-plus-face")
    return load_stable_diffusion(factory, CPU, QUIET, controls=CONTROLS, adapter=adapter, adapter_source=source)


@pytest.fixture(scope="module")
def texts(factory: TinyFactory) -> Tensor:
    return embed_prompts(factory, ["a marble bust", "a knight in blue", ""], CPU, QUIET)


@pytest.fixture(scope="module")
def faces(factory: TinyFactory) -> tuple[ImageTokens, ImageTokens]:
    adapter = read_plus_face(factory, QUIET)
    first, second = (
        embed_face(factory, adapter, torch.rand(3, 70, 70, generator=seeded(k)), CPU, QUIET) for k in (1, 2)
    )
    return first, second


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noisy(count: int = 2, seed: int = 1) -> Tensor:
    return torch.randn(count, 4, 8, 8, generator=seeded(seed))


def pictures(count: int, seed: int) -> tuple[Tensor, ...]:
    return tuple(torch.rand(count, 3, 64, 64, generator=seeded(10 * seed + k)) for k in range(3))


def conditions(texts: Tensor, face: Tensor, *, text: int = 0, seed: int = 1, count: int = 2) -> Conditions:
    return Conditions(
        texts[text : text + 1].expand(count, -1, -1),
        face.expand(count, -1, -1),
        control_images=pictures(count, seed),
        control_scales=(1.0, 1.0, 1.0),
    )


# ---- it works, and every condition counts ----------------------------------------------------------------------------


def test_two_steps_repeat_with_a_seed_and_change_with_every_condition(
    model: StableDiffusion, texts: Tensor, faces: tuple[ImageTokens, ImageTokens]
) -> None:
    first, second = faces

    def latents(positive: Conditions, seed: int = 1) -> Tensor:
        negative = replace(positive, text=texts[2:].expand(2, -1, -1), image_tokens=first.negative.expand(2, -1, -1))
        return sample(model, noisy(seed=seed), positive, negative, context=QUIET, steps=2)

    base = conditions(texts, first.positive)
    result = latents(base)
    assert torch.equal(result, latents(base)) and model.decode(result).shape == (2, 3, 64, 64)
    changed = {"seed": latents(base, seed=2), "prompt": latents(conditions(texts, first.positive, text=1))}
    changed["identity"] = latents(conditions(texts, second.positive))
    for k, name in enumerate(("face mesh", "pose", "depth")):
        images = list(base.control_images)
        images[k] = pictures(2, 7)[k]
        changed[name] = latents(replace(base, control_images=tuple(images)))
    for name, other in changed.items():
        assert (other - result).abs().max() > 1e-3, name


def test_scales_count_per_view(model: StableDiffusion, texts: Tensor, faces: tuple[ImageTokens, ImageTokens]) -> None:
    """A view whose face and controls count nothing is predicted as if there were none; the other is not."""
    full = conditions(texts, faces[0].positive)
    share = torch.tensor([0.0, 1.0])
    faded = replace(full, image_scale=share, control_scales=(share, share, share))
    none = replace(full, image_scale=0.0, control_scales=(0.0, 0.0, 0.0))
    times = torch.tensor([500, 500])
    full_out, faded_out, none_out = (model.predict(noisy(), times, c) for c in (full, faded, none))
    assert torch.allclose(faded_out[0], none_out[0], atol=1e-6)
    assert torch.allclose(faded_out[1], full_out[1], atol=1e-6)
    assert (full_out - none_out).abs().amax((1, 2, 3)).min() > 1e-3


def test_without_face_and_controls_it_is_diffusers_own_unet(factory: TinyFactory, texts: Tensor) -> None:
    from diffusers import UNet2DConditionModel

    plain = load_stable_diffusion(factory, CPU, QUIET, controls=())
    unet: Any = UNet2DConditionModel.from_pretrained(
        factory.folder("sd15"), subfolder="unet", variant="fp16", use_safetensors=True, local_files_only=True
    )
    times = torch.tensor([10, 900])
    text = texts[:1].expand(2, -1, -1)
    with torch.no_grad():
        expected = unet(noisy(), times, text).sample
    assert torch.allclose(plain.predict(noisy(), times, Conditions(text)), expected, atol=1e-5)
    assert [str(source) for source in plain.sources] == ["sd15 (000000000000, random)"]


def pipeline_with(factory: TinyFactory, file: Path) -> Any:
    """Diffusers' own pipeline with its own reading of an adapter."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel

    unet: Any = UNet2DConditionModel.from_pretrained(
        factory.folder("sd15"), subfolder="unet", variant="fp16", use_safetensors=True, local_files_only=True
    )
    steps = DDIMScheduler(steps_offset=1, clip_sample=False)
    pipeline: Any = StableDiffusionPipeline(
        vae=None, text_encoder=None, tokenizer=None, unet=unet, scheduler=steps,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # pyright: ignore[reportArgumentType]  # fmt: skip
    pipeline.load_ip_adapter(str(file.parent), subfolder="", weight_name=file.name, image_encoder_folder=None)
    return pipeline


def test_plus_face_agrees_with_diffusers_own_adapter(factory: TinyFactory, texts: Tensor) -> None:
    file = factory.folder("ip-adapter-plus-face") / "models" / "ip-adapter-plus-face_sd15.safetensors"
    adapter = read_adapter(file)
    features = torch.randn(1, 17, 32, generator=seeded(4))
    from backend.diffusion.face_adapter import projection

    with torch.no_grad():
        tokens = projection(adapter)(features)
    own = load_stable_diffusion(factory, CPU, QUIET, controls=(), adapter=adapter)
    text, times = texts[:1].expand(2, -1, -1), torch.tensor([700, 20])
    ours = own.predict(noisy(), times, Conditions(text, tokens.expand(2, -1, -1), image_scale=1.0))
    unet = pipeline_with(factory, file).unet
    with torch.no_grad():
        expected = unet(
            noisy(), times, text, added_cond_kwargs={"image_embeds": [features[None].expand(2, -1, -1, -1)]}
        ).sample
    assert torch.allclose(ours, expected, atol=1e-4)


def test_face_id_agrees_with_diffusers_own_adapter_lora_included(factory: TinyFactory, texts: Tensor) -> None:
    adapter = read_identity_adapter(factory, QUIET)
    file = factory.folder("ip-adapter-faceid") / "ip-adapter-faceid_sd15.safetensors"
    identity = torch.nn.functional.normalize(torch.randn(IDENTITY_SIZE, generator=seeded(5)), dim=0)
    tokens = embed_identity(adapter, identity)
    assert tokens.positive.shape == (1, 4, 32)
    own = load_stable_diffusion(factory, CPU, QUIET, controls=(), adapter=adapter)
    text, times = texts[:1].expand(2, -1, -1), torch.tensor([700, 20])
    batch = torch.cat([tokens.negative, tokens.positive])
    ours = own.predict(noisy(), times, Conditions(text, batch))
    unet = pipeline_with(factory, file).unet
    both = torch.stack([torch.zeros_like(identity), identity])[:, None, :]
    with torch.no_grad():
        expected = unet(noisy(), times, text, added_cond_kwargs={"image_embeds": [both[:, None]]}).sample
    assert torch.allclose(ours, expected, atol=1e-4)
    without = load_stable_diffusion(factory, CPU, QUIET, controls=()).predict(noisy(), times, Conditions(text))
    assert (ours - without).abs().amax((1, 2, 3)).min() > 1e-3


def test_the_guidance_reaches_the_pictures_through_everything(
    model: StableDiffusion, texts: Tensor, faces: tuple[ImageTokens, ImageTokens]
) -> None:
    positive = conditions(texts, faces[0].positive)
    negative = replace(positive, text=texts[2:].expand(2, -1, -1), image_tokens=faces[0].negative.expand(2, -1, -1))
    style = moments(torch.randn(3, 4, 8, 8, generator=seeded(8)))
    mask = torch.zeros(2, 1, 64, 64)
    mask[:, :, 16:48, 16:48] = 1.0
    for settings in (Guidance(weight="sigma_alpha"), SAS):
        images = torch.rand(2, 3, 64, 64, generator=seeded(6)).requires_grad_()
        result = guide(
            model, images, positive, negative, settings, progress=0.5, generator=seeded(0), mask=mask, style=style
        )
        result.loss.backward()
        assert images.grad is not None and torch.isfinite(images.grad).all()
        # The gradient is the encoder's transpose of the latents' gradient.
        again = images.detach().clone().requires_grad_()
        (model.encode(again) * result.gradient / 2).sum().backward()
        assert again.grad is not None
        assert torch.allclose(images.grad, again.grad, atol=1e-4 * float(again.grad.abs().max()))
        assert all(parameter.grad is None for parameter in model.unet.parameters())


def test_the_benchs_iteration_works(model: StableDiffusion) -> None:
    """What `bench sds_sd15_512` times on a GPU, here at 64 px: plain and as for a recording, the same seed."""
    own = bench.conditions_like(model, 64, 1, "cpu")
    plain, recorded = (bench.iteration(model, own, 64, captured)() for captured in (False, True))
    assert plain.shape == (1, 3, 64, 64) and torch.isfinite(plain).all() and plain.any()
    assert bench.counted_teraflops(bench.iteration(model, own, 64, False)) > 0
    assert recorded.shape == plain.shape


def test_the_full_size_is_the_published_one() -> None:
    """Millions of parameters of the published models, counted without memory for them."""
    full = bench.full_size("meta", torch.float16)
    sizes = [sum(p.numel() for p in part.parameters()) for part in (full.unet, full.controls[0], full.coder.vae)]
    # 859.5 of the UNet and 19.2 of plus-face's keys and values; 361.3; 83.7.
    assert [round(size / 1e6, 1) for size in sizes] == [878.7, 361.3, 83.7]


def test_half_precision_is_near(factory: TinyFactory, model: StableDiffusion, texts: Tensor) -> None:
    placement = Placement(dtype=torch.bfloat16)
    half = load_stable_diffusion(factory, placement, QUIET, controls=())
    times, own = torch.tensor([500, 500]), Conditions(texts[:1].expand(2, -1, -1))
    full = load_stable_diffusion(factory, CPU, QUIET, controls=()).predict(noisy(), times, own)
    near = half.predict(noisy(), times, own)
    assert near.dtype == torch.float32 and half.unet.dtype == torch.bfloat16
    assert 0 < (near - full).abs().max() < 0.1 * full.abs().max()


@pytest.mark.parametrize("size", [1e-8, 1.0, 1e6])
def test_gradients_of_any_size_pass_an_encoder_in_half_precision(
    factory: TinyFactory, model: StableDiffusion, size: float
) -> None:
    coder = load_coder(factory.folder("sd15"), Placement(dtype=torch.float16), QUIET)
    weights = size * torch.randn(1, 4, 8, 8, generator=seeded(2))
    gradients = []
    for encode in (model.encode, coder.encode):
        images = torch.rand(1, 3, 64, 64, generator=seeded(1)).requires_grad_()
        (encode(images).float() * weights).sum().backward()
        assert images.grad is not None and images.grad.dtype == torch.float32
        gradients.append(images.grad)
    assert (gradients[1] - gradients[0]).norm() < 0.02 * gradients[0].norm()


def test_adapters_work_under_every_placement(factory: TinyFactory, texts: Tensor, tmp_path: Path) -> None:
    adapter = read_plus_face(factory, QUIET)
    tokens = torch.randn(2, 16, 32, generator=seeded(3))
    own = Conditions(texts[:1].expand(2, -1, -1), tokens)
    outputs = []
    for placement in (CPU, Placement(offload="sequential", folder=tmp_path), Placement(storage="fp8")):
        placed = load_stable_diffusion(factory, placement, QUIET, controls=(), adapter=adapter)
        outputs.append(placed.predict(noisy(), torch.tensor([500, 20]), own))
    assert torch.allclose(outputs[1], outputs[0], atol=1e-5)
    assert (outputs[2] - outputs[0]).abs().max() < 0.3 * outputs[0].abs().max()


def everything(image: Tensor) -> Tensor:
    return torch.ones_like(image[:, :1, ::8, ::8])


def test_styles_are_sampled_once(factory: TinyFactory, texts: Tensor) -> None:
    plain = load_stable_diffusion(factory, CPU, QUIET, controls=())
    runs = [
        style_of(
            plain, Conditions(texts[k : k + 1]), Conditions(texts[2:]), (4, 8, 8), context=QUIET,
            generator=seeded(seed), images=2, mask_of=everything,
        )
        for k, seed in ((0, 1), (0, 1), (1, 1))
    ]  # fmt: skip
    assert runs[0].covariance.shape == (4, 4) and torch.equal(runs[0].mean, runs[1].mean)
    assert not torch.allclose(runs[0].mean, runs[2].mean)


def test_encoders_leave_memory(factory: TinyFactory, texts: Tensor, faces: tuple[ImageTokens, ImageTokens]) -> None:
    from transformers import CLIPTextModel, CLIPVisionModelWithProjection

    gc.collect()
    alive = [thing for thing in gc.get_objects() if type(thing) in (CLIPTextModel, CLIPVisionModelWithProjection)]
    assert alive == [] and not texts.requires_grad and texts.shape == (3, 77, 32)


def test_a_long_prompt_is_cut_and_told(factory: TinyFactory) -> None:
    told: list[str] = []

    class Sink:
        def progress(self, *_: object) -> None: ...
        def preview(self, *_: object) -> None: ...
        def warning(self, code: str, text: str) -> None:
            told.append(text)

    context = replace(Context.quiet(), sink=Sink())
    assert embed_prompts(factory, ["y" * 200], CPU, context).shape == (1, 77, 32)
    assert len(told) == 1 and "75 tokens" in told[0]


# ---- adapters and pictures -------------------------------------------------------------------------------------------


def test_pictures_reach_clip_as_its_own_processor_would_send_them() -> None:
    from PIL import Image
    from transformers import CLIPImageProcessorPil

    generator = seeded(2)
    image = torch.nn.functional.interpolate(torch.rand(1, 3, 30, 40, generator=generator), (300, 400), mode="bicubic")
    image = (image[0].clamp(0, 1) * 255).round() / 255
    pil = Image.fromarray((image * 255).byte().permute(1, 2, 0).numpy())
    expected = torch.as_tensor(CLIPImageProcessorPil()(pil, return_tensors="pt").pixel_values)
    ours = clip_pixels(image, 224)
    assert ours.shape == expected.shape == (1, 3, 224, 224)
    assert (ours - expected).abs().max() < 0.03  # two steps of 8 bits


def test_both_kinds_of_published_image_encoders_give_the_same_features(factory: TinyFactory, tmp_path: Path) -> None:
    """With projection and an old constant (IP-Adapter), and without either (ImageDream)."""
    published = factory.folder("ip-adapter-plus-face") / "models" / "image_encoder"
    bare = tmp_path / "bare"
    shutil.copytree(published, bare)
    tensors = load_file(published / "model.safetensors")
    assert {"visual_projection.weight", "vision_model.embeddings.position_ids"} < set(tensors)
    kept = {k: v for k, v in tensors.items() if not k.startswith("visual") and not k.endswith("position_ids")}
    save_file(kept, bare / "model.safetensors")
    image = torch.rand(3, 50, 60, generator=seeded(1))
    first, second = (clip_features(folder, image, CPU, QUIET) for folder in (published, bare))
    assert torch.equal(first[0], second[0]) and first[0].shape == (1, 17, 32) and not torch.equal(*first)
    # The last but one layer: one layer, of three, is left out, and the norm after it too.
    from transformers import CLIPVisionModel

    encoder: Any = load(CLIPVisionModel, bare, placement=CPU)
    with torch.no_grad():
        hidden = encoder.pre_layrnorm(encoder.embeddings(clip_pixels(image, 224)))
        for layer in encoder.encoder.layers[:-1]:
            hidden = layer(hidden, None)
    assert torch.allclose(first[0], hidden, atol=1e-5)
    pooled, _ = clip_features(published, image, CPU, QUIET, pooled=True)
    assert pooled.shape == (1, 24)
    with pytest.raises(UserError, match=r"lacks visual_projection\.weight"):
        clip_features(bare, image, CPU, QUIET, pooled=True)


def test_a_face_is_cut_out_square_also_at_the_border() -> None:
    image = torch.arange(3 * 40 * 60).reshape(3, 40, 60).float()
    points = torch.tensor([[50.0, 10.0], [58.0, 26.0]])
    crop = face_crop(image, points, margin=0.5)
    assert crop.shape == (3, 32, 32)
    assert torch.equal(crop[:, 0:30, :22], image[:, 2:32, 38:60]) and not crop[:, :, 22:].any()


def test_adapters_of_the_wrong_kind_are_told(factory: TinyFactory, tmp_path: Path) -> None:
    plus, identity = read_plus_face(factory, QUIET), read_identity_adapter(factory, QUIET)
    encoder = factory.folder("ip-adapter-plus-face") / "models" / "image_encoder"
    with pytest.raises(UserError, match="identity vector"):
        embed_picture(identity, encoder, torch.rand(3, 8, 8), CPU, QUIET)
    with pytest.raises(UserError, match="picture of the face"):
        embed_identity(plus, torch.zeros(IDENTITY_SIZE))
    tensors = load_file(factory.folder("ip-adapter-faceid") / "ip-adapter-faceid_sd15.safetensors")
    for name, part in {
        "no_layers": {k: v for k, v in tensors.items() if k.startswith("image_proj")},
        "foreign": tensors | {"unet.conv.weight": torch.zeros(1)},
    }.items():
        save_file(part, tmp_path / f"{name}.safetensors")
        with pytest.raises(UserError, match=name):
            read_adapter(tmp_path / f"{name}.safetensors")


def cut(adapter: Adapter, **changes: Tensor) -> Adapter:
    return replace(adapter, attention={**adapter.attention, **changes})


def test_an_adapter_for_another_unet_is_refused(factory: TinyFactory) -> None:
    plus, identity = read_plus_face(factory, QUIET), read_identity_adapter(factory, QUIET)
    fewer = {k: v for k, v in plus.attention.items() if not k.startswith("3.")}
    wrong = {
        "layer 3": replace(plus, attention=fewer),
        "shape": cut(plus, **{"1.to_k_ip.weight": torch.zeros(32, 768)}),
        "another UNet": cut(plus, **{"31.to_k_ip.weight": torch.zeros(32, 32)}),
        "does not fit": cut(identity, **{"0.to_q_lora.up.weight": torch.zeros(320, 4)}),
    }
    for match, adapter in wrong.items():
        with pytest.raises(UserError, match=match):
            load_stable_diffusion(factory, CPU, QUIET, controls=(), adapter=adapter)


# ---- loading ---------------------------------------------------------------------------------------------------------


def control_class() -> Any:
    from diffusers import ControlNetModel

    return ControlNetModel


Change = Callable[[dict[str, Tensor]], dict[str, Tensor]]
CHANGES: dict[str, tuple[Change, str]] = {
    "missing": (lambda t: {k: v for k, v in t.items() if k != "conv_in.bias"}, r"lacks conv_in\.bias"),
    "surplus": (lambda t: t | {"extra.weight": torch.zeros(2)}, r"has extra\.weight"),
    "shape": (lambda t: t | {"conv_in.bias": torch.zeros(5)}, r"conv_in\.bias has shape \[5\]"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_file_that_is_not_the_model_is_told_in_one_line(factory: TinyFactory, tmp_path: Path, name: str) -> None:
    change, match = CHANGES[name]
    folder = tmp_path / "broken"
    shutil.copytree(factory.folder(POSE_CONTROL), folder)
    file = folder / "diffusion_pytorch_model.fp16.safetensors"
    save_file(change(load_file(file)), file)
    with pytest.raises(UserError, match=match) as raised:
        load(control_class(), folder, placement=CPU)
    assert file.name in raised.value.message and "\n" not in raised.value.message


@pytest.mark.parametrize("name", ["missing", "surplus", "shape"])
def test_transformers_files_are_held_to_the_same(factory: TinyFactory, tmp_path: Path, name: str) -> None:
    from transformers import CLIPVisionModelWithProjection

    folder = tmp_path / "broken"
    shutil.copytree(factory.folder("ip-adapter-plus-face") / "models" / "image_encoder", folder)
    file = folder / "model.safetensors"
    tensors = load_file(file)
    key = "visual_projection.weight"
    changed = {
        "missing": {k: v for k, v in tensors.items() if k != key},
        "surplus": tensors | {"extra.weight": torch.zeros(2)},
        "shape": tensors | {key: torch.zeros(5, 5)},
    }[name]
    save_file(changed, file)
    with pytest.raises(UserError, match=r"model\.safetensors") as raised:
        load(CLIPVisionModelWithProjection, folder, placement=CPU)
    assert ("extra.weight" if name == "surplus" else key) in raised.value.message


def test_what_is_no_safetensors_is_never_opened(factory: TinyFactory, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(factory.folder(POSE_CONTROL), folder)
    (folder / "diffusion_pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(UserError, match=r"\.bin"):
        load(control_class(), folder, placement=CPU)
    (folder / "diffusion_pytorch_model.bin").unlink()
    file = folder / "diffusion_pytorch_model.fp16.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(UserError, match=file.name.replace(".", r"\.")):
        load(control_class(), folder, placement=CPU)
    file.unlink()
    with pytest.raises(UserError, match="there is no diffusion_pytorch_model") as raised:
        load(control_class(), folder, placement=CPU)
    assert raised.value.code == 3


def test_shards_load_one_by_one_and_can_be_cancelled_between(factory: TinyFactory, tmp_path: Path) -> None:
    from diffusers import UNet2DConditionModel

    whole = load(UNet2DConditionModel, factory.folder("sd15"), "unet", placement=CPU)
    folder = tmp_path / "shards"
    whole.save_pretrained(folder, max_shard_size="400KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    again = load(UNet2DConditionModel, folder, placement=CPU)
    for (name, first), second in zip(whole.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(first, second), name
    assert not any(parameter.requires_grad for parameter in again.parameters()) and not again.training

    class After(threading.Event):
        """Set from the third time that it is asked."""

        asked = 0

        def is_set(self) -> bool:
            self.asked += 1
            return self.asked > 2

    event = After()
    with pytest.raises(Cancelled):
        load(UNet2DConditionModel, folder, placement=CPU, context=replace(QUIET, cancel_event=event))
    assert event.asked == 3  # before the first shard but one, not after the last


def test_a_job_can_be_cancelled_between_components_and_steps(factory: TinyFactory, texts: Tensor) -> None:
    context = Context.quiet()
    context.cancel_event.set()
    with pytest.raises(Cancelled):
        load_stable_diffusion(factory, CPU, context)
    with pytest.raises(Cancelled):
        embed_prompts(factory, ["a"], CPU, context)
    plain = load_stable_diffusion(factory, CPU, QUIET, controls=())
    asked = Context.quiet()
    calls = 0
    predict = plain.predict

    def count(*given: Any) -> Tensor:
        nonlocal calls
        calls += 1
        asked.cancel_event.set()
        return predict(*given)

    plain.predict = count  # pyright: ignore[reportAttributeAccessIssue]
    own = Conditions(texts[:1])
    with pytest.raises(Cancelled):
        sample(plain, noisy(1), own, own, context=asked, steps=20)
    assert calls == 1


def test_schedules_are_those_of_diffusers(factory: TinyFactory, tmp_path: Path) -> None:
    from diffusers import DDIMScheduler

    schedule = read_schedule(factory.folder("sd15"), "cpu")
    other = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    assert torch.allclose(schedule.alphas.float() ** 2, other.alphas_cumprod, atol=1e-6)
    assert torch.allclose(schedule.alphas**2 + schedule.sigmas**2, torch.ones(1000, dtype=torch.float64))
    assert schedule.prediction == "epsilon" and schedule.steps == 1000
    (tmp_path / "scheduler").mkdir()
    (tmp_path / "scheduler" / "scheduler_config.json").write_text("{}", "utf-8")
    with pytest.raises(UserError, match="scheduler_config"):
        read_schedule(tmp_path, "cpu")
