"""Record gsplat's pictures and gradients: `python -m tests.gpu.record_gsplat [FOLDER]`, on a machine with CUDA.

The files go to tests/raster/data and are compared with the portable back-end on every run of the tests.
"""

from __future__ import annotations

import sys
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor

from backend.raster import Cameras, SplatTensors, cuda
from tests.raster.recordings import FOLDER, SCENES, record


def draw_with_gsplat(splats: SplatTensors, cameras: Cameras, antialiased: bool) -> tuple[Tensor, Tensor, Tensor]:
    """gsplat called directly, not through our back-end."""
    from gsplat.rendering import rasterization

    assert splats.sh is not None
    image, alpha, _ = rasterization(
        splats.means, splats.rotations_wxyz, splats.scales, splats.opacities, splats.sh, cameras.w2c, cameras.K,
        cameras.width, cameras.height, sh_degree=round(splats.sh.shape[1] ** 0.5) - 1, packed=False,
        render_mode="RGB+ED", rasterize_mode="antialiased" if antialiased else "classic",
    )  # fmt: skip
    return image[..., :3].permute(0, 3, 1, 2), alpha[..., 0], image[..., 3]


def main() -> int:
    """Record every scene.

    Returns:
        0, or 3 where gsplat does not run.
    """
    fault = cuda.why_not()
    if fault:
        print(f"error: nothing was recorded: {fault}", file=sys.stderr)
        return 3
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER
    made_by = f"gsplat {version('gsplat')}, torch {torch.__version__}, {torch.cuda.get_device_name()}"
    for name in SCENES:
        path = folder / f"gsplat_{name}.npz"
        record(name, draw_with_gsplat, path, made_by, "cuda")
        print(f"{path}: {path.stat().st_size / 1e3:.0f} kB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
