"""SV3D and SVD: the network against the published forward pass, the file's conversion, the sampling."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from backend.context import Context, QuietSink
from backend.diffusion import orbit
from backend.diffusion.interfaces import Source
from backend.diffusion.load import load
from backend.diffusion.orbit_convert import convert_sv3d
from backend.diffusion.placement import Placement
from backend.errors import Cancelled, UserError
from tests.diffusion.slow_video_unet import camera_vector
from tests.diffusion.tiny_sv3d import HEAD, UNIT, VISION_HEAD, random_cameras, write_sv3d
from tests.diffusion.tiny_video import StopAfter, one_thread, write_svd

SOURCE = Source("tiny", "", "CC0-1.0", True)
TINY = orbit.OrbitSettings(steps=2, size_px=64, decoded_at_a_time=3)
pytestmark = pytest.mark.usefixtures("one_thread")
assert one_thread


def converted(tmp: Path, cameras: bool, timed: bool) -> Path:
    write_sv3d(tmp / "file.safetensors", cameras, timed)
    kind = "sv3d-p" if cameras else "sv3d-u"
    return convert_sv3d(
        tmp / "file.safetensors",
        tmp / "ready",
        kind,
        Context.quiet(),
        dtype=torch.float32,
        head_size=HEAD,
        vision_head_size=VISION_HEAD,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return converted(tmp_path_factory.mktemp("sv3d"), cameras=True, timed=False)


@pytest.fixture(scope="module")
def model(folder: Path) -> orbit.SV3D:
    return orbit.SV3D(folder, SOURCE, Placement(), Context.quiet(), TINY)


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)


def circle(frames: int = 5) -> tuple[list[float], list[float]]:
    azimuths, elevations = orbit.level_circle(10.0, frames)
    return list(azimuths), list(elevations)


@pytest.mark.parametrize("cameras", [True, False], ids=["sv3d-p", "sv3d-u"])
def test_the_network_is_the_published_one(tmp_path: Path, cameras: bool) -> None:
    """From the published file through conversion and loading to the same numbers."""
    from backend.diffusion.orbit_network import OrbitUNet

    slow = write_sv3d(tmp_path / "file.safetensors", cameras, timed=False, seed=7)
    kind = "sv3d-p" if cameras else "sv3d-u"
    ready = convert_sv3d(
        tmp_path / "file.safetensors",
        tmp_path / "ready",
        kind,
        Context.quiet(),
        dtype=torch.float32,
        head_size=HEAD,
        vision_head_size=VISION_HEAD,
    )
    net = load(OrbitUNet, ready, "unet", placement=Placement())
    assert net.has_cameras == cameras
    generator, frames = torch.Generator().manual_seed(1), 3
    x = torch.randn(2, frames, 8, 16, 8, generator=generator)
    noise = torch.tensor([-0.4, 1.1])
    context = torch.randn(2, 1, 32, generator=generator)
    views = torch.cat([random_cameras(frames, 2), random_cameras(frames, 3)])
    views = views if cameras else views[..., :1]
    with torch.no_grad():
        fast = net(x, noise, context, views).sample
        vector = camera_vector(views.flatten(0, 1), UNIT)
        wide = context.repeat_interleave(frames, 0)
        truth = slow(x.flatten(0, 1), noise.repeat_interleave(frames), wide, vector, frames).unflatten(0, (2, frames))
    assert truth.std() > 0.1
    assert (fast - truth).abs().max() < 1e-5


def test_with_one_camera_for_all_frames_it_is_svd(folder: Path) -> None:
    """The only difference to SVD is whose camera it is: SVD's own pass with the same embedding gives the same."""
    from backend.diffusion.orbit_network import OrbitUNet, VideoUNet

    net = load(OrbitUNet, folder, "unet", placement=Placement())
    base = load(VideoUNet, folder, "unet", placement=Placement())
    base.add_time_proj = torch.nn.Identity()  # the embedding comes ready made
    x, context = torch.randn(1, 4, 8, 8, 8, generator=torch.Generator().manual_seed(0)), torch.ones(1, 1, 32)
    views = random_cameras(1, 5).expand(1, 4, 3)
    with torch.no_grad():
        same = base(x, torch.tensor([0.3]), context, net.camera_embedding(views)[:, 0]).sample
        assert (net(x, torch.tensor([0.3]), context, views).sample - same).abs().max() < 1e-5


def test_the_camera_embedding_knows_differences_only_by_their_size() -> None:
    """Law of a sinusoid: the product of two embeddings depends on the angle between the cameras alone."""
    from backend.diffusion.orbit_network import sinusoid

    angles = torch.linspace(0, 2 * math.pi, 9, dtype=torch.float64)
    embedded = sinusoid(angles, 64).double()
    assert torch.allclose((embedded**2).sum(-1), torch.full((9,), 32.0, dtype=torch.float64), atol=1e-5)
    products = embedded @ embedded.T
    for gap in range(9):
        along = torch.diagonal(products, gap)
        assert torch.allclose(along, along[:1].expand_as(along), atol=1e-5)
    wanted = sum(math.cos(float(angles[3]) * 10_000 ** (-k / 32)) for k in range(32))
    assert abs(float(products[0, 3]) - wanted) < 1e-5


def test_a_camera_reaches_its_own_frame_first(folder: Path) -> None:
    """Without what mixes the frames, another camera changes its own frame and no other."""
    from backend.diffusion.orbit_network import OrbitUNet

    net = load(OrbitUNet, folder, "unet", placement=Placement())
    for name, parameter in net.named_parameters():
        if name.endswith("mix_factor"):
            parameter.data.fill_(100.0)  # only what lies in one frame counts
    x, context = torch.randn(1, 4, 8, 8, 8, generator=torch.Generator().manual_seed(0)), torch.ones(1, 1, 32)
    views = random_cameras(4, 5)
    other = views.clone()
    other[0, 2, 2] += 1.0
    with torch.no_grad():
        change = net(x, torch.tensor([0.3]), context, views).sample - net(x, torch.tensor([0.3]), context, other).sample
    by_frame = change.abs().amax(dim=(0, 2, 3, 4))
    assert by_frame[2] > 1e-3 and by_frame[[0, 1, 3]].max() < 1e-6


def test_guidance_is_a_triangle_over_the_frames() -> None:
    scale = orbit.guidance_over_frames(21, 1.0, 2.5)
    assert scale[0] == scale[-1] == 1.0 and scale[10] == 2.5
    assert torch.allclose(scale, scale.flip(0)) and (scale.diff()[:10] > 0).all()


def test_noise_levels_are_the_published_ones(model: orbit.SV3D) -> None:
    scheduler = model._pipe.scheduler
    scheduler.set_timesteps(50)
    ramp = np.linspace(0, 1, 50)
    wanted = (700.0 ** (1 / 7) + ramp * (0.002 ** (1 / 7) - 700.0 ** (1 / 7))) ** 7
    assert np.allclose(scheduler.sigmas[:-1].numpy(), wanted, rtol=1e-4) and scheduler.sigmas[-1] == 0
    assert np.allclose(scheduler.timesteps.numpy(), 0.25 * np.log(wanted), atol=1e-4)


def test_an_orbit_ends_at_the_input(model: orbit.SV3D, image: np.ndarray) -> None:
    made = model.orbit(image, *circle(), Context.quiet())
    assert made.frames.shape == (5, 64, 64, 3) and made.latents.shape == (5, 4, 8, 8)
    assert np.array_equal(made.frames[-1], image) and made.azimuths_deg[-1] == 0
    assert np.allclose(made.azimuths_deg, [72, 144, 216, 288, 0])


def test_same_seed_same_orbit_and_every_condition_counts(model: orbit.SV3D, image: np.ndarray) -> None:
    azimuths, elevations = circle()
    first = model.orbit(image, azimuths, elevations, Context.quiet()).frames
    assert np.array_equal(first, model.orbit(image, azimuths, elevations, Context.quiet()).frames)
    others = {
        "seed": model.orbit(image, azimuths, elevations, Context.quiet(seed=1)),
        "azimuth": model.orbit(image, [azimuths[0] + 20, *azimuths[1:]], elevations, Context.quiet()),
        "elevation": model.orbit(image, azimuths, [60.0] * 5, Context.quiet()),
        "picture": model.orbit(255 - image, azimuths, elevations, Context.quiet()),
    }
    for name, other in others.items():
        assert not np.array_equal(first[:-1], other.frames[:-1]), name


def test_turning_all_azimuths_changes_nothing(model: orbit.SV3D, image: np.ndarray) -> None:
    """They count from the input view."""
    azimuths, elevations = circle()
    turned = [(a + 77.0) for a in azimuths]
    first = model.orbit(image, azimuths, elevations, Context.quiet())
    assert np.array_equal(first.frames, model.orbit(image, turned, elevations, Context.quiet()).frames)


def test_the_fixed_orbit_refuses_another(tmp_path: Path, image: np.ndarray) -> None:
    fixed = orbit.SV3D(converted(tmp_path, cameras=False, timed=False), SOURCE, Placement(), Context.quiet(), TINY)
    assert not fixed.any_orbit
    assert fixed.orbit(image, *circle(), Context.quiet()).frames.shape == (5, 64, 64, 3)
    with pytest.raises(UserError, match="sv3d-p"):
        fixed.orbit(image, [10.0, 20.0, 0.0], [0.0] * 3, Context.quiet())


def test_a_decoder_with_time_is_understood(tmp_path: Path, image: np.ndarray) -> None:
    ready = converted(tmp_path, cameras=True, timed=True)
    model = orbit.SV3D(ready, SOURCE, Placement(), Context.quiet(), TINY)
    assert type(model._pipe.vae).__name__ == "AutoencoderKLTemporalDecoder"
    assert model.orbit(image, *circle(), Context.quiet()).frames.shape == (5, 64, 64, 3)


def test_the_picture_decoder_is_renamed_as_diffusers_does(tmp_path: Path, folder: Path) -> None:
    """Diffusers has its own converter of still autoencoders; both agree on every tensor that it knows."""
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint
    from safetensors.torch import load_file

    write_sv3d(tmp_path / "file.safetensors", cameras=True, timed=False)
    published = load_file(tmp_path / "file.safetensors")
    encoder, decoder = "conditioner.embedders.1.encoder.", "first_stage_model."
    ldm = {f"first_stage_model.{n.removeprefix(encoder)}": t for n, t in published.items() if n.startswith(encoder)}
    ldm |= {name: tensor for name, tensor in published.items() if name.startswith(decoder)}
    config = json.loads((folder / "vae" / "config.json").read_text("utf-8"))
    theirs = convert_ldm_vae_checkpoint(ldm, config)
    ours = load_file(folder / "vae" / "diffusion_pytorch_model.safetensors")
    assert set(ours) == {name for name in theirs if not name.startswith("post_quant_conv")}
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name].reshape(tensor.shape)), name


def test_a_file_that_is_something_else_leaves_nothing(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    write_sv3d(tmp_path / "file.safetensors", cameras=True, timed=False)
    tensors = load_file(tmp_path / "file.safetensors")
    tensors.pop("model.diffusion_model.middle_block.1.time_stack.0.ff.net.2.bias")
    save_file(tensors, tmp_path / "less.safetensors")
    with pytest.raises(UserError, match="ff.net.2.bias"):
        convert_sv3d(tmp_path / "less.safetensors", tmp_path / "ready", "sv3d-p", Context.quiet())
    (tmp_path / "pickle.safetensors").write_bytes(b"\x80\x04" + b"0" * 64)
    with pytest.raises(UserError):
        convert_sv3d(tmp_path / "pickle.safetensors", tmp_path / "ready", "sv3d-p", Context.quiet())
    context = Context.quiet()
    context.cancel_event.set()
    with pytest.raises(Cancelled):
        convert_sv3d(tmp_path / "file.safetensors", tmp_path / "ready", "sv3d-p", context)
    assert {path.name for path in tmp_path.iterdir()} == {f"{n}.safetensors" for n in ("file", "less", "pickle")}


def test_a_cancelled_orbit_stops_within_a_step(folder: Path, image: np.ndarray) -> None:
    many = dataclasses.replace(TINY, steps=40)
    model = orbit.SV3D(folder, SOURCE, Placement(), Context.quiet(), many)
    stop = StopAfter(3)
    with pytest.raises(Cancelled):
        model.orbit(image, *circle(), stop.context)
    assert stop.calls == 3
    assert isinstance(stop, QuietSink)


def test_svd_moves_a_picture(tmp_path: Path, image: np.ndarray) -> None:
    model = orbit.SVD(write_svd(tmp_path / "svd"), SOURCE, Placement(), Context.quiet())
    first = model.animate(image, Context.quiet(), frames=3, steps=2)
    assert first.shape == (3, 64, 64, 3)
    assert np.array_equal(first, model.animate(image, Context.quiet(), frames=3, steps=2))
    assert not np.array_equal(first, model.animate(255 - image, Context.quiet(), frames=3, steps=2))
    assert not np.array_equal(first, model.animate(image, Context.quiet(), frames=3, steps=2, motion=10))
    stop = StopAfter(2)
    with pytest.raises(Cancelled):
        model.animate(image, stop.context, frames=3, steps=30)
    assert stop.calls == 2
    with pytest.raises(UserError, match="multiples of 64"):
        model.animate(image[:60], Context.quiet())
    lean = orbit.SVD(tmp_path / "svd", SOURCE, Placement(offload="group", tiling=True), Context.quiet())
    assert np.array_equal(first, lean.animate(image, Context.quiet(), frames=3, steps=2))
