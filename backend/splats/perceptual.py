"""How different two pictures look: LPIPS where its weights are installed, a stated substitute where not.

LPIPS (Zhang et al. 2018, version 0.1, VGG16) is a fixed network of a few lines; only its numbers are missing. They come
from one local safetensors file that holds torchvision's VGG16 features ("features.0.weight" ... "features.28.bias",
IMAGENET1K_V1) and LPIPS's five linear layers ("lin0.model.1.weight" ... "lin4.model.1.weight"), under the names of
both sources. Nothing is downloaded and nothing is unpickled.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from backend.errors import MODEL_MISSING, UserError

VGG_BLOCKS = (((0, 3), (2, 64)), ((5, 64), (7, 128)), ((10, 128), (12, 256), (14, 256)),
              ((17, 256), (19, 512), (21, 512)), ((24, 512), (26, 512), (28, 512)))  # fmt: skip
"""(layer, input channels) of VGG16's convolutions; a block ends before the pooling, and its output is compared."""

VGG_WIDTHS = (64, 128, 256, 512, 512)
"""Output channels of the blocks."""

LEAST_SIZE_PX = 16
"""Four poolings must leave a pixel."""

INPUT_SHIFT = (-0.030, -0.088, -0.188)
INPUT_SCALE = (0.458, 0.448, 0.450)
"""LPIPS's ScalingLayer: ImageNet's mean and deviation for pictures in -1..1."""

NORM_FLOOR = 1e-10
"""LPIPS's normalize_tensor."""

PYRAMID_LEVELS = 4


class PerceptualLoss(Protocol):
    """A difference of pictures with a name that a result can record."""

    @property
    def name(self) -> str:
        """What was used, in words."""
        ...

    def __call__(self, image: Tensor, target: Tensor) -> Tensor:
        """Scalar >= 0, the mean over B pictures [B, 3, H, W], 0..1 display sRGB; the target gets no gradient."""
        ...


def perceptual_loss(weights: Path | None, device: str = "cpu") -> PerceptualLoss:
    """LPIPS from a weights file, or the substitute when there is none.

    Args:
        weights: The safetensors file; None where it is not installed.
        device: Torch device of the pictures.

    Raises:
        UserError: If a file is given and is missing, damaged or incomplete; code 3. There is no silent substitute.
    """
    return PyramidLoss() if weights is None else Lpips(load_lpips(weights, device))


class PyramidLoss:
    """The substitute: absolute differences of colours and of their slopes, on four halved sizes.

    Unlike one L1 it sees blur (lost slopes on the fine levels) and shifted tone (the coarse ones) apart; unlike LPIPS
    it forgives no texture that is merely displaced.
    """

    name = "pyramid of L1 colour and slope differences (LPIPS weights not installed)"

    def __call__(self, image: Tensor, target: Tensor) -> Tensor:
        """See `PerceptualLoss`; the unit is display sRGB, 0..1."""
        a, b = image, target.detach()
        total, levels = image.new_zeros(()), 0
        while levels < PYRAMID_LEVELS and min(a.shape[-2:]) >= 2:
            slopes = sum((functional.l1_loss(a.diff(dim=d), b.diff(dim=d)) for d in (2, 3)), image.new_zeros(()))
            total = total + 0.5 * functional.l1_loss(a, b) + 0.5 * slopes
            a, b, levels = functional.avg_pool2d(a, 2), functional.avg_pool2d(b, 2), levels + 1
        return total / max(levels, 1)


class Lpips:
    """LPIPS 0.1 on VGG16."""

    name = "LPIPS 0.1 (VGG16)"

    def __init__(self, weights: dict[str, Tensor]) -> None:
        """Take the tensors of `expected_shapes`, all on one device; they receive no gradient."""
        self._weights = {name: tensor.detach() for name, tensor in weights.items()}

    def __call__(self, image: Tensor, target: Tensor) -> Tensor:
        """See `PerceptualLoss`.

        Raises:
            ValueError: If the pictures are no [B, 3, H, W] of at least 16 px, or differ in shape.
        """
        return self.against(target)(image)

    def against(self, target: Tensor) -> Callable[[Tensor], Tensor]:
        """The loss of pictures before one target [B, 3, H, W], whose features are found once.

        Raises:
            ValueError: As the loss itself, when it is asked.
        """
        wanted: list[Tensor] = []

        def loss(image: Tensor) -> Tensor:
            if (
                image.shape != target.shape
                or image.ndim != 4
                or image.shape[1] != 3
                or min(image.shape[2:]) < LEAST_SIZE_PX
            ):
                raise ValueError(
                    f"LPIPS compares pictures [B, 3, H, W] of at least {LEAST_SIZE_PX} px, "
                    f"not {list(image.shape)} and {list(target.shape)}"
                )
            if not wanted:
                with torch.no_grad():
                    wanted.extend(self.features(target))
            total = image.new_zeros(())
            for block, (ours, theirs) in enumerate(zip(self.features(image), wanted, strict=True)):
                linear = self._weights[f"lin{block}.model.1.weight"].to(ours)
                total = total + functional.conv2d((ours - theirs).square(), linear).mean()
            return total

        return loss

    def features(self, image: Tensor) -> list[Tensor]:
        """The five compared feature maps of [B, 3, H, W] 0..1, of unit length per pixel."""
        shift, scale = (torch.tensor(v).to(image)[:, None, None] for v in (INPUT_SHIFT, INPUT_SCALE))
        x = (2 * image - 1 - shift) / scale
        maps = []
        for number, block in enumerate(VGG_BLOCKS):
            x = functional.max_pool2d(x, 2) if number else x
            for layer, _ in block:
                kernel, bias = (self._weights[f"features.{layer}.{part}"].to(x) for part in ("weight", "bias"))
                x = functional.relu(functional.conv2d(x, kernel, bias, padding=1))
            # The floor is added to the length, as LPIPS does, inside the root only to keep its gradient finite at zero.
            length = (x.square().sum(1, keepdim=True) + torch.finfo(x.dtype).tiny).sqrt()
            maps.append(x / (length + NORM_FLOOR))
        return maps


def expected_shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes of the weights file."""
    shapes: dict[str, tuple[int, ...]] = {}
    for number, block in enumerate(VGG_BLOCKS):
        for layer, inputs in block:
            shapes[f"features.{layer}.weight"] = (VGG_WIDTHS[number], inputs, 3, 3)
            shapes[f"features.{layer}.bias"] = (VGG_WIDTHS[number],)
        shapes[f"lin{number}.model.1.weight"] = (1, VGG_WIDTHS[number], 1, 1)
    return shapes


def load_lpips(path: Path, device: str = "cpu") -> dict[str, Tensor]:
    """Read and check the weights file; tensors of other layers (VGG's classifier) are not read.

    Raises:
        UserError: Code 3, naming the file and what is wrong with it.
    """
    next_step = "put the weights in place again or go on without them"
    if not path.is_file():
        raise UserError(f"LPIPS weights not found: {path.name}; {next_step}", MODEL_MISSING)
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt", device=device) as file:
            present = set(file.keys())
            missing = [name for name in expected_shapes() if name not in present]
            weights = {name: file.get_tensor(name) for name in expected_shapes() if name in present}
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path.name} is no readable safetensors file ({error}); {next_step}", MODEL_MISSING) from error
    if missing:
        raise UserError(f"{path.name} lacks {missing[0]}; {next_step}", MODEL_MISSING)
    for name, shape in expected_shapes().items():
        if tuple(weights[name].shape) != shape or not weights[name].is_floating_point():
            found = list(weights[name].shape)
            raise UserError(
                f"{path.name}: {name} has shape {found}, expected {list(shape)}; {next_step}", MODEL_MISSING
            )
    return {name: tensor.float() for name, tensor in weights.items()}
