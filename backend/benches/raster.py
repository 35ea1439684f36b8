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

NO_CHECKOUT = "needs a checkout with tests/raster/prototype"

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


def as_projected(leaves: list[Tensor], depths: Tensor, radii: Tensor) -> Any:
    """The 2D Gaussians of `projected_scene` as the portable back-end wants them, for one camera."""
    from backend.raster import portable

    centres, conics, opacities = (leaf[None] for leaf in leaves[:3])
    return portable.Projected(centres, conics, opacities, depths[None], radii[None, :, None].repeat(1, 1, 2))


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
        return [absent_row(name, "ms", "the numba prototype", NO_CHECKOUT)]
    leaves, depths, radii = projected_scene(count, size_px)
    projected = as_projected(leaves, depths, radii)
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


def torch_tiles_20k_256(options: Options) -> list[Row]:
    """The same drawing in plain torch, at the tile size at which it is fastest here."""
    import torch

    from backend.raster import portable

    name, size_px = "raster_torch_tiles_20k_256", 256
    plain = prototype("torch_tiles")
    if plain is None:
        return [absent_row(name, "ms", "tile-batched torch", NO_CHECKOUT)]
    leaves, depths, radii = projected_scene(20_000, size_px)
    projected = as_projected(leaves, depths, radii)

    def in_torch(tile: int) -> Callable[[], None]:
        return forward_backward(lambda: plain.draw(*leaves, depths, radii, size_px, size_px, tile), leaves)

    trials = interleaved({str(tile): in_torch(tile) for tile in (4, 8, 16)}, 1)
    tile = int(min(trials, key=lambda key: trials[key].least_ms))
    ours = forward_backward(lambda: portable.draw(projected, leaves[3][None], size_px, size_px), leaves)
    times = interleaved({"ours": ours, "torch": in_torch(tile)}, options.repeats or 5)
    note = f"torch is fastest with tiles of {tile} px; {torch.get_num_threads()} threads each"
    return [time_row(name, times["ours"], "tile-batched torch", times["torch"], note)]


def iteration_20k_256(options: Options) -> list[Row]:
    """A whole optimiser step, small."""
    return _iteration("iteration_20k_256_sh3", 20_000, 256, options, 20)


def iteration_100k_512(options: Options) -> list[Row]:
    """A whole optimiser step, large."""
    return _iteration("iteration_100k_512_sh3", 100_000, 512, options, 8)


def _iteration(name: str, count: int, size_px: int, options: Options, repeats: int) -> list[Row]:
    old = {part: prototype(part) for part in ("scene", "projection", "tiles")}
    if old["scene"] is None:
        return [absent_row(name, "ms", "the numba prototype", NO_CHECKOUT)]

    def with_prototype(splats: list[Tensor], view: Tensor, intrinsics: Tensor) -> Tensor:
        means, rotations, scales, opacities, sh = splats
        centres, conics, opacities_2d, depths, radii = old["projection"].Proj.apply(
            means, rotations, scales, opacities, view, intrinsics, size_px, size_px, True
        )
        colours = old["scene"].sh_eval(3, sh, means + view[:3, :3].T @ view[:3, 3])
        return old["tiles"].Rast.apply(centres, conics, opacities_2d, colours, depths, radii, size_px, size_px)[0]

    runs = {
        "ours": _optimiser_step(old["scene"], count, size_px, _draw_ours(size_px), "cpu"),
        "theirs": _optimiser_step(old["scene"], count, size_px, with_prototype, "cpu"),
    }
    times = interleaved(runs, options.repeats or repeats, warm_up=2)
    note = f"SH 3, antialiased, L1, fused Adam; {times['ours'].least_ms:.0f} s per 1000 steps at the least"
    return [time_row(name, times["ours"], "the numba prototype", times["theirs"], note)]


def _draw_ours(size_px: int, backend: Any = "auto") -> Callable[..., Tensor]:
    from backend.raster import Cameras, SplatTensors, rasterize

    def draw(splats: list[Tensor], view: Tensor, intrinsics: Tensor) -> Tensor:
        cameras = Cameras(view[None], intrinsics[None], size_px, size_px)
        image = rasterize(SplatTensors(*splats), cameras, outputs=("rgb",), backend=backend).rgb
        assert image is not None
        return image[0]

    return draw


def _optimiser_step(
    scene: ModuleType, count: int, size_px: int, draw: Callable[..., Tensor], device: str
) -> Callable[[], None]:
    """Activations, projection, SH 3, drawing, L1, all gradients and Adam over 59 numbers per Gaussian, as one run."""
    import torch

    *splats, view, intrinsics = (t.to(device) for t in scene.scene(count, size_px, size_px))
    means, rotations, scales, opacities, sh = splats
    leaves = [means, rotations, scales.log(), torch.logit(opacities), sh]
    leaves = [leaf.detach().clone().requires_grad_() for leaf in leaves]
    # So small a rate changes nothing that could be timed: every step is the same work.
    optimiser = torch.optim.Adam(leaves, lr=1e-9, fused=True)
    target = torch.rand(3, size_px, size_px, generator=torch.Generator().manual_seed(2)).to(device)

    def run() -> None:
        optimiser.zero_grad(set_to_none=True)
        activated = [leaves[0], leaves[1], leaves[2].exp(), leaves[3].sigmoid(), leaves[4]]
        (draw(activated, view, intrinsics) - target).abs().mean().backward()
        optimiser.step()
        if device != "cpu":
            torch.cuda.synchronize()

    return run


def iteration_cuda_100k_1024(options: Options) -> list[Row]:
    """A whole optimiser step of the cuda back-end, against gsplat called directly."""
    import torch

    name, size_px = "iteration_cuda_100k_1024_sh3", 1024
    scene = prototype("scene")
    if scene is None:
        return [absent_row(name, "ms", "gsplat called directly", NO_CHECKOUT)]
    if not torch.cuda.is_available():
        return [absent_row(name, "ms", "gsplat called directly", "no CUDA device")]
    from backend.raster import cuda

    fault = cuda.why_not()
    if fault:
        return [absent_row(name, "ms", "gsplat called directly", fault)]
    from gsplat.rendering import rasterization

    def directly(splats: list[Tensor], view: Tensor, intrinsics: Tensor) -> Tensor:
        image, _, _ = rasterization(
            *splats, view[None], intrinsics[None], size_px, size_px, sh_degree=3, packed=False,
            rasterize_mode="antialiased",
        )  # fmt: skip
        return image[0].permute(2, 0, 1)

    runs = {
        "ours": _optimiser_step(scene, 100_000, size_px, _draw_ours(size_px, "cuda"), "cuda"),
        "theirs": _optimiser_step(scene, 100_000, size_px, directly, "cuda"),
    }
    times = interleaved(runs, options.repeats or 30, warm_up=5)
    note = "SH 3, antialiased, L1, fused Adam"
    device = torch.cuda.get_device_name()
    return [time_row(name, times["ours"], "gsplat called directly", times["theirs"], note, device=device)]


BENCHES: dict[str, Bench] = {
    "raster_forward_backward_20k_256": raster_20k_256,
    "raster_torch_tiles_20k_256": torch_tiles_20k_256,
    "iteration_20k_256_sh3": iteration_20k_256,
    "iteration_100k_512_sh3": iteration_100k_512,
    "iteration_cuda_100k_1024_sh3": iteration_cuda_100k_1024,
}
