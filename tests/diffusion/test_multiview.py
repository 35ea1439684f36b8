"""MVDream and ImageDream against an independent slow forward pass, and what their conditions do."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from backend.context import Context
from backend.diffusion import multiview
from backend.diffusion.guidance import MVDREAM as RECIPE
from backend.diffusion.guidance import guide
from backend.diffusion.interfaces import Conditions
from backend.diffusion.latent_model import embed_texts
from backend.diffusion.multiview import MultiView, cameras, embed_reference, load_multi_view
from backend.diffusion.placement import Placement
from backend.diffusion.sampling import sample
from backend.errors import Cancelled, UserError
from tests.diffusion.mv_reference import Shape, Slow, random_network
from tests.diffusion.tiny import IMAGEDREAM, MVDREAM, TinyFactory

CPU = Placement()
QUIET = Context.quiet()


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def factory(tmp_path_factory: pytest.TempPathFactory) -> TinyFactory:
    return TinyFactory(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def mvdream(factory: TinyFactory) -> MultiView:
    model = load_multi_view(factory, CPU, QUIET)
    assert model.size_px == 256
    model.size_px = 64  # as tiny as the rest
    return model


@pytest.fixture(scope="module")
def imagedream(factory: TinyFactory) -> MultiView:
    model = load_multi_view(factory, CPU, QUIET, model_id="imagedream")
    model.size_px = 64
    return model


@pytest.fixture
def conditions() -> Conditions:
    generator = torch.Generator().manual_seed(3)
    return Conditions(
        text=torch.randn(8, 7, MVDREAM.context_dim, generator=generator),
        cameras=torch.randn(8, 4, 4, generator=generator),
    )


def noisy(seed: int = 1, count: int = 8) -> Tensor:
    return torch.randn(count, 4, 8, 8, generator=torch.Generator().manual_seed(seed))


TIMES = torch.tensor([900, 700, 500, 300, 40, 21, 999, 0])


def test_mvdream_agrees_with_the_slow_forward_pass(mvdream: MultiView, conditions: Conditions) -> None:
    slow = Slow(random_network(MVDREAM), MVDREAM)
    assert conditions.cameras is not None
    expected = slow(noisy(), TIMES, conditions.text, conditions.cameras.reshape(8, 16), frames=4)
    ours = mvdream.predict(noisy(), TIMES, conditions)
    assert (ours - expected).abs().max() < 1e-5 * max(1.0, float(expected.abs().max()))
    apart = slow(noisy(), TIMES, conditions.text, conditions.cameras.reshape(8, 16), frames=1)
    assert (ours - apart).abs().max() > 1e-2  # the views do see each other


def test_a_deeper_network_agrees_too(tmp_path: Path, conditions: Conditions) -> None:
    """Three levels, two blocks each, attention at two of them: the names of all block kinds."""
    shape = Shape(channel_mult=(1, 2, 2), num_res_blocks=2, attention_resolutions=(1, 2), context_dim=32)
    unet = tmp_path / "published" / "unet"
    unet.mkdir(parents=True)
    save_file(random_network(shape, 5), unet / "diffusion_pytorch_model.safetensors")
    (unet / "config.json").write_text(json.dumps(shape.config()), "utf-8")
    own = multiview.convert(tmp_path / "published", tmp_path / "own", QUIET)
    from diffusers import UNet2DConditionModel

    from backend.diffusion.load import load

    network = load(UNet2DConditionModel, own, placement=CPU)
    multiview.see_across(network, 4)
    assert conditions.cameras is not None
    camera = conditions.cameras.reshape(8, 16)
    expected = Slow(random_network(shape, 5), shape)(noisy(), TIMES, conditions.text, camera, frames=4)
    with torch.no_grad():
        ours = network(noisy(), TIMES, conditions.text, class_labels=camera).sample
    assert (ours - expected).abs().max() < 1e-5 * max(1.0, float(expected.abs().max()))


def test_imagedream_agrees_with_the_slow_forward_pass(
    factory: TinyFactory, imagedream: MultiView, conditions: Conditions
) -> None:
    """Fifth frame without noise and camera, 16 tokens of a Resampler with keys and values of their own."""
    generator = torch.Generator().manual_seed(9)
    features = torch.randn(2, 10, IMAGEDREAM.clip_dim, generator=generator)
    picture = torch.randn(2, 4, 8, 8, generator=generator)
    slow = Slow(random_network(IMAGEDREAM), IMAGEDREAM)
    assert conditions.cameras is not None

    def five(part: Tensor, fifth: Tensor) -> Tensor:
        return torch.cat([torch.cat([part[4 * k : 4 * k + 4], fifth[k : k + 1]]) for k in range(2)])

    expected = slow(
        five(noisy(), torch.zeros(2, 4, 8, 8)),
        five(TIMES, TIMES[::4]),
        five(conditions.text, conditions.text[::4]),
        five(conditions.cameras.reshape(8, 16), torch.zeros(2, 16)),
        frames=5,
        features=features.repeat_interleave(5, 0),
        picture=picture,
    )
    tokens = slow.resample(features).repeat_interleave(4, 0)
    own = Conditions(conditions.text, tokens, cameras=conditions.cameras, image_latents=picture)
    ours = imagedream.predict(noisy(), TIMES, own)
    kept = expected.unflatten(0, (2, 5))[:, :4].flatten(0, 1)
    assert (ours - kept).abs().max() < 1e-5 * max(1.0, float(kept.abs().max()))


def test_the_resampler_is_read_from_the_published_names(factory: TinyFactory, imagedream: MultiView) -> None:
    from backend.diffusion.face_adapter import projection, read_adapter

    file = factory.folder("imagedream").with_name("imagedream-diffusers") / multiview.IMAGE_FILE
    features = torch.randn(2, 10, IMAGEDREAM.clip_dim)
    with torch.no_grad():
        ours = projection(read_adapter(file))(features)
    expected = Slow(random_network(IMAGEDREAM), IMAGEDREAM).resample(features)
    assert imagedream.reads_image and torch.allclose(ours, expected, atol=1e-5)


def test_every_published_tensor_is_used(factory: TinyFactory, mvdream: MultiView, imagedream: MultiView) -> None:
    for model_id in ("mvdream", "imagedream"):
        published = load_file(factory.folder(model_id) / "unet" / "diffusion_pytorch_model.safetensors")
        own = factory.folder(model_id).with_name(f"{model_id}-diffusers")
        converted = [tensor for file in own.glob("*.safetensors") for tensor in load_file(file).values()]
        assert sum(t.numel() for t in converted) == sum(t.numel() for t in published.values())


def test_two_steps_repeat_with_a_seed_and_change_with_a_condition(
    mvdream: MultiView, factory: TinyFactory, conditions: Conditions
) -> None:
    texts = embed_texts(factory.folder("mvdream"), ["a red knight", "a blue owl", ""], CPU, QUIET)
    poses = cameras(orbit([0, 90, 180, 270]))

    def picture(text: int = 0, turn: Tensor = poses, seed: int = 1) -> Tensor:
        positive, negative = (
            Conditions(texts[k : k + 1].expand(4, -1, -1), cameras=turn) for k in (text, 2)
        )  # fmt: skip
        return sample(mvdream, noisy(seed, 4), positive, negative, context=QUIET, steps=2)

    first = picture()
    assert torch.equal(first, picture()) and torch.isfinite(first).all()
    assert mvdream.decode(first).shape == (4, 3, 64, 64)
    for other in (picture(text=1), picture(turn=cameras(orbit([45, 135, 225, 315]))), picture(seed=2)):
        assert (other - first).abs().max() > 1e-3


def test_groups_do_not_see_each_other_but_their_views_do(mvdream: MultiView, conditions: Conditions) -> None:
    changed = noisy()
    changed[2] += 1.0
    difference = (mvdream.predict(changed, TIMES, conditions) - mvdream.predict(noisy(), TIMES, conditions)).abs()
    assert (difference.amax((1, 2, 3))[:4] > 1e-4).all() and difference[4:].max() < 1e-6


def test_imagedreams_picture_changes_what_it_says(
    factory: TinyFactory, imagedream: MultiView, conditions: Conditions
) -> None:
    outputs = []
    for seed in (1, 1, 2):
        image = torch.rand(3, 40, 50, generator=torch.Generator().manual_seed(seed))
        tokens, latents, none = embed_reference(factory, image, imagedream, CPU, QUIET)
        assert tokens.positive.shape == (1, 16, IMAGEDREAM.context_dim) and not none.any()
        own = Conditions(
            conditions.text,
            tokens.for_batch(8)[0],
            cameras=conditions.cameras,
            image_latents=latents.expand(2, -1, -1, -1),
        )
        outputs.append(imagedream.predict(noisy(), TIMES, own))
    assert torch.equal(outputs[0], outputs[1]) and (outputs[2] - outputs[0]).abs().max() > 1e-4
    with pytest.raises(ValueError, match="ImageDream needs"):
        imagedream.predict(noisy(), TIMES, conditions)


def test_the_four_view_loss_reaches_the_pictures(mvdream: MultiView, conditions: Conditions) -> None:
    images = torch.rand(4, 3, 64, 64, requires_grad=True)
    positive, negative = (
        Conditions(conditions.text[k : k + 1].expand(4, -1, -1), cameras=cameras(orbit([0, 90, 180, 270])))
        for k in (0, 5)
    )
    result = guide(
        mvdream, images, positive, negative, RECIPE, progress=0.5, generator=torch.Generator().manual_seed(0)
    )
    result.loss.backward()
    assert images.grad is not None and torch.isfinite(images.grad).all() and (images.grad.amax((1, 2, 3)) > 0).all()
    with pytest.raises(ValueError, match="groups of 4"):
        mvdream.predict(noisy(count=3), TIMES[:3], conditions)


def orbit(azimuths_deg: list[float], elevation_deg: float = 15.0, distance_m: float = 2.5) -> np.ndarray:
    """World to camera [B, 4, 4], OpenCV, of cameras that look at the origin; azimuth 0 is at +Z."""
    poses = []
    for azimuth in np.deg2rad(azimuths_deg):
        up = np.deg2rad(elevation_deg)
        back = np.array([np.cos(up) * np.sin(azimuth), np.sin(up), np.cos(up) * np.cos(azimuth)])
        right = np.cross([0, 1, 0], back)
        right /= np.linalg.norm(right)
        c2w = np.eye(4)
        c2w[:3, :3] = np.stack([right, -np.cross(back, right), -back], 1)
        c2w[:3, 3] = distance_m * back
        poses.append(np.linalg.inv(c2w))
    return np.stack(poses)


@pytest.mark.parametrize("front", [0.0, 90.0])
def test_cameras_are_those_of_the_published_recipe(front: float) -> None:
    """OpenGL camera on a unit orbit, its rows (x, y, z) become (x, -z, y)."""
    for azimuth in (0.0, 30.0, 200.0):
        angle, up = np.deg2rad(azimuth + front), np.deg2rad(15.0)
        back = np.array([np.cos(up) * np.sin(angle), np.sin(up), np.cos(up) * np.cos(angle)])
        right = np.array([np.cos(angle), 0, -np.sin(angle)])
        opengl = np.eye(4)
        opengl[:3] = np.stack([right, np.cross(back, right), back, back], 1)
        opengl[2] *= -1
        opengl[[1, 2]] = opengl[[2, 1]]
        ours = cameras(orbit([azimuth]), front)[0].numpy()
        assert np.allclose(ours, opengl, atol=1e-6)


def test_a_network_is_converted_once_and_a_broken_one_is_told(factory: TinyFactory, tmp_path: Path) -> None:
    own = multiview.convert(factory.folder("mvdream"), tmp_path / "own", QUIET)
    stamp = (own / "diffusion_pytorch_model.safetensors").stat().st_mtime_ns
    assert multiview.convert(factory.folder("mvdream"), own, QUIET) == own
    assert (own / "diffusion_pytorch_model.safetensors").stat().st_mtime_ns == stamp
    tensors = random_network(MVDREAM)

    def without(name: str) -> Callable[[], Path]:
        def make() -> Path:
            folder = tmp_path / name / "unet"
            folder.mkdir(parents=True)
            kept = {key: tensor for key, tensor in tensors.items() if key != name}
            save_file(kept, folder / "diffusion_pytorch_model.safetensors")
            (folder / "config.json").write_text(json.dumps(MVDREAM.config()), "utf-8")
            return folder.parent

        return make

    with pytest.raises(UserError, match=r"camera_embed\.2\.bias"):
        multiview.convert(without("camera_embed.2.bias")(), tmp_path / "a", QUIET)
    with pytest.raises(UserError, match="as published"):
        folder = without("out.2.bias")()
        (folder / "unet" / "config.json").write_text(json.dumps({"_class_name": "MultiViewUNetModel"}), "utf-8")
        multiview.convert(folder, tmp_path / "b", QUIET)
    assert not (tmp_path / "a" / "config.json").exists()


def test_cancelling_ends_a_conversion_and_a_picture(
    factory: TinyFactory, mvdream: MultiView, conditions: Conditions, tmp_path: Path
) -> None:
    context = Context.quiet()
    context.cancel_event.set()
    with pytest.raises(Cancelled):
        multiview.convert(factory.folder("mvdream"), tmp_path / "own", context)
    with pytest.raises(Cancelled):
        sample(mvdream, noisy(), conditions, conditions, context=context, steps=2)
