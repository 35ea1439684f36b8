"""Pictures and gradients of fixed scenes as small .npz files, and how far a back-end is from one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from backend.raster import Cameras, SplatTensors, rasterize
from tests.raster.scenes import make_scene, two_views, with_sh

FOLDER = Path(__file__).parent / "data"
INPUTS = ("means", "rotations_wxyz", "scales", "opacities", "sh", "w2c")
PICTURES = ("rgb", "alpha", "depth")
# A renderer: splats, two cameras, antialiased -> rgb [C, 3, H, W], alpha [C, H, W], expected depth [C, H, W].
Draw = Callable[[SplatTensors, Cameras, bool], tuple[Tensor, Tensor, Tensor]]
SCENES = {
    f"{'antialiased' if antialiased else 'classic'}_{count}": (count, seed, antialiased)
    for count, seed, antialiased in ((120, 11, False), (120, 11, True), (600, 12, True))
}


def with_backend(backend: str) -> Draw:
    """One of our back-ends as a renderer."""

    def draw(splats: SplatTensors, cameras: Cameras, antialiased: bool) -> tuple[Tensor, Tensor, Tensor]:
        output = rasterize(splats, cameras, antialiased=antialiased, outputs=PICTURES, backend=backend)  # type: ignore[arg-type]
        assert output.rgb is not None and output.alpha is not None and output.depth is not None
        return output.rgb, output.alpha, output.depth

    return draw


def factors(shape: tuple[int, ...]) -> Tensor:
    """Weights of the functional that is differentiated: in closed form, so that every machine has the same."""
    return torch.from_numpy(np.cos(1.0 + 0.7 * np.arange(int(np.prod(shape)))).reshape(shape))


def scene(name: str) -> tuple[SplatTensors, Cameras, bool]:
    """One of `SCENES`, float32, seen by two cameras."""
    count, seed, antialiased = SCENES[name]
    splats, cameras, _ = make_scene(count, seed, torch.float32)
    cameras = two_views(cameras)
    return with_sh(splats, 3), replace(cameras, w2c=cameras.w2c.float(), K=cameras.K.float()), antialiased


def draw_with_gradients(
    splats: SplatTensors, cameras: Cameras, antialiased: bool, draw: Draw, device: str = "cpu"
) -> dict[str, np.ndarray]:
    """Pictures by name, and gradients of the functional by "grad_" and the name of the input."""
    sources = [getattr(splats, name) for name in INPUTS[:5]] + [cameras.w2c]
    leaves = [t.to(device).clone().requires_grad_() for t in sources]
    views = replace(cameras, w2c=leaves[5], K=cameras.K.to(device))
    pictures = draw(SplatTensors(*leaves[:5]), views, antialiased)
    total = torch.zeros((), device=device)
    for name, picture in zip(PICTURES, pictures, strict=True):
        # Depth is a quotient: weigh it by alpha, or empty pixels would decide.
        weighed = picture * pictures[1].detach() if name == "depth" else picture
        total = total + (weighed * factors(tuple(picture.shape)).to(picture)).sum()
    total.backward()
    result = {name: picture.detach().cpu().numpy() for name, picture in zip(PICTURES, pictures, strict=True)}
    for name, leaf in zip(INPUTS, leaves, strict=True):
        result[f"grad_{name}"] = leaf.grad.cpu().numpy()
    return result


def record(name: str, draw: Draw, path: Path, made_by: str, device: str = "cpu") -> None:
    """Draw a scene and write its inputs, pictures and gradients."""
    splats, cameras, antialiased = scene(name)
    inputs = {key: getattr(splats, key).numpy() for key in INPUTS[:5]}
    frame = {"w2c": cameras.w2c.numpy(), "K": cameras.K.numpy(), "size_px": np.array([cameras.width, cameras.height])}
    results = draw_with_gradients(splats, cameras, antialiased, draw, device)
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, antialiased=antialiased, made_by=made_by, **inputs, **frame, **results)


def faults(path: Path, draw: Draw, device: str = "cpu") -> list[str]:
    """What differs between a recording and what a back-end makes of the same inputs; empty if nothing does.

    A pixel may differ by about 1/255 where the cut at alpha = 1/255 falls the other way through rounding.
    """
    with np.load(path, allow_pickle=False) as file:
        kept = {name: file[name] for name in file.files}
    splats = SplatTensors(*(torch.from_numpy(kept[name]) for name in INPUTS[:5]))
    width, height = (int(value) for value in kept["size_px"])
    cameras = Cameras(torch.from_numpy(kept["w2c"]), torch.from_numpy(kept["K"]), width, height)
    ours = draw_with_gradients(splats, cameras, bool(kept["antialiased"]), draw, device)
    wrong = []
    for name in ("rgb", "alpha"):
        error = np.abs(ours[name].astype(np.float64) - kept[name])
        if error.mean() > 1e-5 or (error > 2 / 255).mean() > 1e-3:
            wrong.append(f"{name}: mean {error.mean():.2e}, share above 2/255 {(error > 2 / 255).mean():.2e}")
    covered = kept["alpha"] > 0.05
    error = np.abs(ours["depth"] - kept["depth"])[covered] / kept["depth"][covered]
    if error.mean() > 1e-4:
        wrong.append(f"depth: mean relative {error.mean():.2e}")
    for name in (f"grad_{name}" for name in INPUTS):
        a, b = ours[name].astype(np.float64).ravel(), kept[name].astype(np.float64).ravel()
        distance = np.linalg.norm(a - b) / np.linalg.norm(b)
        cosine = a @ b / (np.linalg.norm(a) * np.linalg.norm(b))
        if distance > 1e-3 or cosine < 0.9999:
            wrong.append(f"{name}: relative {distance:.2e}, cosine {cosine:.6f}")
    return wrong
