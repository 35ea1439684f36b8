"""LPIPS from a local file, and the substitute that says that it is one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from backend.errors import MODEL_MISSING, UserError
from backend.splats.perceptual import expected_shapes, perceptual_loss

safetensors = pytest.importorskip("safetensors.torch")

VGG16_CHANNELS = (64, 64, "pool", 128, 128, "pool", 256, 256, 256, "pool", 512, 512, 512, "pool", 512, 512, 512)


def random_weights(seed: int = 0) -> dict[str, torch.Tensor]:
    """He-scaled weights under the names of the file, linear layers >= 0 as LPIPS's are."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in expected_shapes().items():
        values = torch.randn(shape, generator=generator)
        spread = (2 / (shape[1] * 9)) ** 0.5 if len(shape) == 4 and name.startswith("features") else 0.1
        weights[name] = values.abs() if name.startswith("lin") else values * spread
    return weights


@pytest.fixture(scope="module")
def weights_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "lpips_vgg16.safetensors"
    safetensors.save_file(random_weights(), path)
    return path


def torchvisions_vgg16() -> nn.Sequential:
    """The layers of torchvision.models.vgg16().features up to relu5_3, so that names of weights are its own."""
    layers: list[nn.Module] = []
    inputs = 3
    for width in VGG16_CHANNELS:
        if isinstance(width, str):
            layers.append(nn.MaxPool2d(2, 2))
        else:
            layers += [nn.Conv2d(inputs, width, 3, padding=1), nn.ReLU()]
            inputs = width
    return nn.Sequential(*layers)


def papers_formula(weights: dict[str, torch.Tensor], image: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Zhang et al. 2018, eq. 1, in float64 and from torch's own layers."""
    features = torchvisions_vgg16().double()
    named = {name.removeprefix("features."): w.double() for name, w in weights.items() if name.startswith("features")}
    features.load_state_dict(named)
    shift = torch.tensor([-0.030, -0.088, -0.188], dtype=torch.float64)[:, None, None]
    scale = torch.tensor([0.458, 0.448, 0.450], dtype=torch.float64)[:, None, None]
    x, y = ((2 * picture.double() - 1 - shift) / scale for picture in (image, target))
    total = torch.zeros((), dtype=torch.float64)
    block = 0
    for number, layer in enumerate(features):
        x, y = layer(x), layer(y)
        if number in (3, 8, 15, 22, 29):
            a, b = (t / (torch.sqrt((t**2).sum(1, keepdim=True)) + 1e-10) for t in (x, y))
            linear = weights[f"lin{block}.model.1.weight"].double()[0]
            total = total + (linear * (a - b) ** 2).sum(1).mean()
            block += 1
    return total


def test_lpips_is_the_papers_formula(weights_file: Path) -> None:
    generator = torch.Generator().manual_seed(1)
    image, target = torch.rand(2, 2, 3, 32, 48, generator=generator)
    loss = perceptual_loss(weights_file)
    assert loss.name == "LPIPS 0.1 (VGG16)"
    image.requires_grad_()
    value = loss(image, target)
    value.backward()
    exact = image.detach().double().requires_grad_()
    wanted = papers_formula(random_weights(), exact, target)
    wanted.backward()
    assert float(value.detach()) == pytest.approx(float(wanted.detach()), rel=1e-5)
    assert image.grad is not None and exact.grad is not None
    assert float((image.grad - exact.grad).norm() / exact.grad.norm()) < 1e-4


def test_without_weights_the_substitute_says_so() -> None:
    loss = perceptual_loss(None)
    assert "not installed" in loss.name and "LPIPS" in loss.name


@pytest.mark.parametrize("installed", [True, False])
def test_equal_pictures_cost_nothing_and_flat_ones_have_finite_gradients(installed: bool, weights_file: Path) -> None:
    loss = perceptual_loss(weights_file if installed else None)
    picture = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert float(loss(picture, picture)) == pytest.approx(0, abs=1e-9)
    black = torch.zeros(1, 3, 32, 32, requires_grad=True)
    value = loss(black, picture)
    value.backward()
    assert float(value.detach()) > 0 and black.grad is not None and bool(black.grad.isfinite().all())


def test_the_substitute_sees_blur_and_tone_and_not_size() -> None:
    loss = perceptual_loss(None)
    picture = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    blurred = nn.functional.avg_pool2d(nn.functional.pad(picture, (2, 2, 2, 2), mode="reflect"), 5, 1)
    assert float(loss(blurred, picture)) > 2 * float(loss(0.98 * picture, picture))
    assert float(loss(picture * 0.5, picture)) > float(loss(picture * 0.9, picture))
    two = torch.cat([picture, picture], 3)
    assert float(loss(two * 0.5, two)) == pytest.approx(float(loss(picture * 0.5, picture)), rel=0.02)


def test_a_wrong_file_is_named_and_never_replaced_in_silence(tmp_path: Path, weights_file: Path) -> None:
    cases = {}
    cases["missing.safetensors"] = "not found"
    (tmp_path / "text.safetensors").write_text("not weights at all")
    cases["text.safetensors"] = "no readable"
    (tmp_path / "cut.safetensors").write_bytes(weights_file.read_bytes()[:100_000])
    cases["cut.safetensors"] = "no readable"
    small = {"features.0.bias": torch.zeros(64)}
    safetensors.save_file(small, tmp_path / "small.safetensors")
    cases["small.safetensors"] = "lacks features.0.weight"
    wrong = {name: torch.zeros(1) for name in expected_shapes()}
    safetensors.save_file(wrong, tmp_path / "wrong.safetensors")
    cases["wrong.safetensors"] = "has shape"
    for name, words in cases.items():
        with pytest.raises(UserError, match=words) as caught:
            perceptual_loss(tmp_path / name)
        assert caught.value.code == MODEL_MISSING and name in caught.value.message


def test_pictures_that_do_not_fit_are_refused(weights_file: Path) -> None:
    loss = perceptual_loss(weights_file)
    for shape in ((1, 3, 8, 64), (3, 32, 32), (1, 4, 32, 32)):
        with pytest.raises(ValueError, match="LPIPS compares"):
            loss(torch.zeros(shape), torch.zeros(shape))
