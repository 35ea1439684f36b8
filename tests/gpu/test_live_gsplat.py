"""The cuda back-end against gsplat called directly and against the portable one, where CUDA works."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from backend.raster import SplatTensors, cuda, rasterize
from tests.gpu.record_gsplat import draw_with_gsplat
from tests.raster.recordings import SCENES, faults, record, scene, with_backend
from tests.raster.scenes import make_scene, tensors

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def _needs_gsplat() -> None:
    if cuda.why_not():
        pytest.skip(f"the cuda back-end does not work here: {cuda.why_not()}")


@pytest.mark.parametrize("name", SCENES)
def test_gsplat_portable_and_cuda_agree(name: str, tmp_path: Path) -> None:
    path = tmp_path / "live.npz"
    record(name, draw_with_gsplat, path, "gsplat, live", "cuda")
    assert faults(path, with_backend("cuda"), "cuda") == []
    assert faults(path, with_backend("portable")) == []


def test_auto_takes_cuda_and_every_output_agrees_with_portable() -> None:
    splats, cameras, antialiased = scene("antialiased_600")
    _, _, features = make_scene(600, 12, torch.float32)
    there = SplatTensors(*[t.cuda() for t in (*tensors(splats), splats.sh)])
    options = {"outputs": ("rgb", "features", "alpha", "median_depth", "normal"), "antialiased": antialiased}
    switch = [True, False, True, False]
    ours = rasterize(there, cameras, features=features.cuda(), geometry_gradient=switch, **options)
    theirs = rasterize(splats, cameras, features=features, geometry_gradient=switch, **options)
    for name in options["outputs"]:
        assert getattr(ours, name).is_cuda
        error = (getattr(ours, name).cpu() - getattr(theirs, name)).abs()
        assert (error > 0.02).double().mean() < 2e-3, name
