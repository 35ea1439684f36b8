"""The rasteriser against the first experiments and against plain torch."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from backend.benches.measuring import Bench, Options, Row, absent_row, interleaved, time_row

if TYPE_CHECKING:
    from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent.parent
PROTOTYPE = ROOT / "tests" / "raster" / "prototype"

# Floor, as in the notes on the first experiments: operations that one pixel-Gaussian pair cannot do without, at what
# one core of a laptop does in such code when its vector units are busy all the time.
FLOPS_PER_PAIR = 110
GIGAFLOPS_PER_THREAD = 45.0


def prototype(name: str) -> ModuleType | None:
    """A file of the first experiments, or None where there is only the installed package."""
    if not PROTOTYPE.is_dir():
        return None
    if str(PROTOTYPE.parent) not in sys.path:
        sys.path.append(str(PROTOTYPE.parent))
    return importlib.import_module(f"prototype.{name}")


def projected_scene(count: int, size_px: int) -> tuple[list[Tensor], Tensor, Tensor]:
    """2D Gaussians of the experiments' scene: [centres, conics, opacities, features] with gradients, depths, radii."""
    import torch

    scene, projection = prototype("scene"), prototype("projection")
    assert scene is not None and projection is not None
    means, rotations, scales, opacities, _, view, intrinsics = scene.scene(count, size_px, size_px)
    with torch.no_grad():
        centres, conics, opacities, depths, radii = projection.Proj.apply(
            means, rotations, scales, opacities, view, intrinsics, size_px, size_px, True
        )
    features = torch.rand(count, 4, generator=torch.Generator().manual_seed(1))
    return [t.requires_grad_() for t in (centres, conics, opacities, features)], depths, radii


def forward_backward(draw: Callable[..., Any], leaves: list[Tensor]) -> Callable[[], None]:
    """One drawing and its gradients, as a run to be timed."""

    def run() -> None:
        for leaf in leaves:
            leaf.grad = None
        image, alpha = draw()
        (image.sum() + alpha.sum()).backward()

    return run


def raster_20k_256(options: Options) -> list[Row]:
    """Drawing alone, without projection and SH."""
    return _raster("raster_forward_backward_20k_256", 20_000, 256, options)


def _raster(name: str, count: int, size_px: int, options: Options) -> list[Row]:
    import torch

    from backend.raster import portable

    old = prototype("tiles")
    if old is None:
        return [absent_row(name, "ms", "the numba prototype", "needs a checkout with tests/raster/prototype")]
    leaves, depths, radii = projected_scene(count, size_px)
    projected = portable.Projected(
        *(leaf[None] for leaf in leaves[:3]), depths[None], radii[None, :, None].repeat(1, 1, 2)
    )
    times = interleaved(
        {
            "ours": forward_backward(lambda: portable.draw(projected, leaves[3][None], size_px, size_px), leaves),
            "theirs": forward_backward(lambda: old.Rast.apply(*leaves, depths, radii, size_px, size_px), leaves),
        },
        options.repeats or 25,
    )
    pairs = count_pairs(leaves, size_px)
    ours = times["ours"]
    floor_ms = pairs * FLOPS_PER_PAIR / (GIGAFLOPS_PER_THREAD * 1e6 * torch.get_num_threads())
    note = (
        f"{ours.least_ms * 1e6 / pairs:.1f} ns per pixel-Gaussian pair, {pairs / 1e6:.2f} M pairs, 4 channels; "
        f"{ours.least_ms / floor_ms:.1f} times the floor of {floor_ms:.2f} ms ({FLOPS_PER_PAIR} flops per pair at an "
        f"assumed {GIGAFLOPS_PER_THREAD:.0f} GFLOP/s per thread)"
    )
    return [time_row(name, ours, "the numba prototype", times["theirs"], note)]


def count_pairs(leaves: list[Tensor], size_px: int) -> int:
    """How many (pixel, Gaussian) pairs have an alpha of at least 1/255."""
    import numpy as np

    centres, conics, opacities = (t.detach().double().numpy() for t in leaves[:3])
    pairs = 0
    for (x, y), (a, b, c), opacity in zip(centres, conics, opacities, strict=True):
        if opacity < 1 / 255 or a * c <= b * b:
            continue
        reach = 2 * np.log(255 * opacity)
        half_w, half_h = np.sqrt(reach * c / (a * c - b * b)), np.sqrt(reach * a / (a * c - b * b))
        dx = np.arange(max(0, int(x - half_w - 1)), min(size_px, int(x + half_w + 1))) + 0.5 - x
        dy = (np.arange(max(0, int(y - half_h - 1)), min(size_px, int(y + half_h + 1))) + 0.5 - y)[:, None]
        pairs += int((a * dx * dx + 2 * b * dx * dy + c * dy * dy <= reach).sum())
    return pairs


BENCHES: dict[str, Bench] = {
    "raster_forward_backward_20k_256": raster_20k_256,
}
