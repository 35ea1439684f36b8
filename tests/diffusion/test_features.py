from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from backend.diffusion import gate
from backend.diffusion.features import Clip, Dino, Preparation, lpips
from backend.diffusion.placement import Placement
from backend.errors import UserError
from backend.splats.perceptual import perceptual_loss
from tests.diffusion.tiny_video import noise_picture, one_thread  # noqa: F401
from tests.diffusion.tiny_vision import Shelf, write_clip, write_dino, write_lpips

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    root = tmp_path_factory.mktemp("models")
    return Shelf(root, dinov2_small=write_dino, clip_l=write_clip, lpips_vgg=write_lpips)


@pytest.fixture(scope="module")
def dino(shelf: Shelf) -> Dino:
    return Dino(shelf, Placement())


@pytest.fixture(scope="module")
def clip(shelf: Shelf) -> Clip:
    return Clip(shelf, Placement())


def smooth_pictures(count: int, height: int, width: int, seed: int = 0) -> Tensor:
    coarse = torch.rand(count, 3, 5, 5, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 1)


@pytest.mark.parametrize(
    ("model_id", "processor"), [("dinov2-small", "BitImageProcessorPil"), ("clip-l", "CLIPImageProcessorPil")]
)
@pytest.mark.parametrize("size", [(90, 131), (131, 90), (64, 64)])
def test_pictures_are_prepared_as_the_published_processor_does(
    shelf: Shelf, model_id: str, processor: str, size: tuple[int, int]
) -> None:
    cls = getattr(gate.import_transformers(), processor)
    theirs = cls.from_pretrained(shelf.folder(model_id), local_files_only=True)
    images = (smooth_pictures(1, *size) * 255).round() / 255
    pixels = (images[0].permute(1, 2, 0) * 255).round().byte().numpy()
    wanted = theirs(images=pixels, return_tensors="pt")["pixel_values"]
    ours = Preparation.of(theirs)(images)
    assert ours.shape == wanted.shape
    # Theirs rounds to bytes after resizing: half a byte in units of the deviation.
    assert (ours - wanted).abs().max() < 1.2 / 255 / 0.22


def test_dino_embeds_pictures_differentiably(dino: Dino) -> None:
    images = smooth_pictures(2, 70, 80).requires_grad_(True)
    vectors = dino.embed(images)
    assert vectors.shape == (2, 16)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(2))
    vectors[:, 0].sum().backward()
    assert images.grad is not None and images.grad.abs().sum() > 0
    assert (vectors[0] - vectors[1]).abs().max() > 1e-3
    torch.testing.assert_close(dino.embed(images), vectors, rtol=0, atol=0)


def test_dinos_gradient_is_the_difference_quotient(dino: Dino) -> None:
    images = smooth_pictures(1, 64, 64).mul(0.8).add(0.1).requires_grad_(True)
    direction = smooth_pictures(1, 64, 64, 3) - 0.5
    (gradient,) = torch.autograd.grad(dino.embed(images)[0, :4].sum(), images)
    step = 1e-2
    with torch.no_grad():
        ahead, behind = (dino.embed(images + sign * step * direction)[0, :4].sum() for sign in (1, -1))
    assert float((gradient * direction).sum()) == pytest.approx(float(ahead - behind) / (2 * step), rel=0.02, abs=1e-3)


def test_dinos_patches_lie_where_the_picture_has_them(dino: Dino) -> None:
    images = smooth_pictures(1, 42, 56)
    features = dino.patches(images)
    assert features.shape == (1, 3, 4, 16)
    changed = images.clone()
    changed[..., :14, 42:] = 1 - changed[..., :14, 42:]  # the top right patch
    moved = (dino.patches(changed) - features).norm(dim=-1)[0]
    assert moved.argmax() == 3


def test_the_same_picture_is_most_similar(dino: Dino) -> None:
    images, others = smooth_pictures(1, 64, 64, 0), smooth_pictures(1, 64, 64, 1)
    assert float(dino.similarity(images, images)) == pytest.approx(1, abs=1e-6)
    assert float(dino.similarity(images, others)) < 0.9999


def test_clip_puts_pictures_and_texts_into_one_space(clip: Clip) -> None:
    images = smooth_pictures(3, 40, 50).requires_grad_(True)
    scores = clip.similarity(images, ["a man", "a cat on the roof"])
    assert scores.shape == (3, 2) and scores.abs().max() <= 1
    scores.sum().backward()
    assert images.grad is not None and images.grad.abs().sum() > 0
    texts = clip.embed_texts(["a man", "a cat on the roof", "a man"])
    torch.testing.assert_close(texts[0], texts[2])
    assert (texts[0] - texts[1]).abs().max() > 1e-3
    # A longer text beside it pads the shorter one, which must not change it.
    torch.testing.assert_close(clip.embed_texts(["a man"])[0], texts[0], atol=1e-5, rtol=0)


def test_a_text_that_is_too_long_is_cut(clip: Clip) -> None:
    assert clip.embed_texts(["x " * 500]).shape == (1, 24)


def test_clips_direction_of_a_way_is_one_for_that_way(clip: Clip) -> None:
    before, after = smooth_pictures(1, 32, 32, 0), smooth_pictures(1, 32, 32, 1)
    there = clip.directional(before, after, "a photo", "a painting")
    back = clip.directional(after, before, "a photo", "a painting")
    torch.testing.assert_close(there, -back)


def test_lpips_reads_both_published_files_as_the_one_file_reader_does(shelf: Shelf, tmp_path: Path) -> None:
    folder = shelf.folder("lpips-vgg")
    both = load_file(folder / "vgg16.safetensors") | load_file(folder / "lpips.safetensors")
    save_file(both, tmp_path / "one.safetensors")
    image, target = smooth_pictures(1, 32, 32, 0), smooth_pictures(1, 32, 32, 1)
    ours, theirs = lpips(shelf), perceptual_loss(tmp_path / "one.safetensors")
    torch.testing.assert_close(ours(image, target), theirs(image, target), rtol=0, atol=0)
    assert float(ours(image, image)) == 0 < float(ours(image, target))


def test_lpips_says_which_layer_is_missing(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path, lpips_vgg=write_lpips)
    (shelf.folder("lpips-vgg") / "lpips.safetensors").unlink()
    with pytest.raises(UserError, match="lin0.model.1.weight is missing"):
        lpips(shelf)


def test_weights_of_another_shape_are_refused(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path, dinov2_small=write_dino)
    path = shelf.folder("dinov2-small") / "model.safetensors"
    tensors = load_file(path)
    tensors.pop("layernorm.weight")
    save_file(tensors, path)
    with pytest.raises(UserError, match="lacks layernorm.weight"):
        Dino(shelf, Placement())


def test_what_is_not_installed_is_said(tmp_path: Path) -> None:
    for make in (Dino, Clip):
        with pytest.raises(UserError) as caught:
            make(Shelf(tmp_path), Placement())
        assert caught.value.kind == "NO_MODEL"


def test_pictures_of_numpy_work_too(dino: Dino) -> None:
    image = torch.from_numpy(noise_picture(60, 60)).permute(2, 0, 1)[None].float() / 255
    assert np.isfinite(dino.embed(image).detach().numpy()).all()
