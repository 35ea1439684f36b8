"""gsplat's own densification runs on the portable back-end, by the information that `rasterize` returns."""

from __future__ import annotations

import torch
from gsplat.strategy import DefaultStrategy
from torch import Tensor

from backend.raster import Cameras, SplatTensors, rasterize
from tests.raster.scenes import make_scene, two_views, with_sh


def test_information_has_gsplats_layout_and_the_gradient_per_camera() -> None:
    splats, cameras, features = make_scene(60)
    means = splats.means.clone().requires_grad_()
    output = rasterize(SplatTensors(means, *[splats.rotations_wxyz, splats.scales, splats.opacities]),
                       two_views(cameras), features=features)  # fmt: skip
    info = output.info
    info["means2d"].retain_grad()
    assert output.features is not None
    output.features[1].sum().backward()
    assert info["means2d"].shape == (2, 60, 2) and info["radii"].shape == (2, 60, 2)
    assert info["radii"].dtype == torch.int32 and info["gaussian_ids"] is None
    assert (info["width"], info["height"], info["n_cameras"]) == (cameras.width, cameras.height, 2)
    gradient = info["means2d"].grad
    assert not gradient[0].any() and gradient[1].any(), "only the second camera's picture was asked for"
    culled = (info["radii"] == 0).any(2)
    assert culled.any() and not gradient[culled].any()


def test_gsplats_default_strategy_grows_and_prunes() -> None:
    """A few large Gaussians in front of many small ones as the target: the strategy splits, duplicates and prunes."""
    target_splats, cameras, _ = make_scene(300, dtype=torch.float32)
    target_splats = with_sh(target_splats, 0)
    cameras = Cameras(cameras.w2c.float(), cameras.K.float(), cameras.width, cameras.height)
    with torch.no_grad():
        target = rasterize(target_splats, cameras).rgb
    start, _, _ = make_scene(40, seed=7, dtype=torch.float32)
    params = {
        "means": start.means,
        "quats": start.rotations_wxyz,
        "scales": (start.scales * 2).log(),
        "opacities": torch.cat([torch.full((35,), 0.5), torch.full((5,), -7.0)]),  # logits; five are nearly invisible
        "sh": torch.zeros(40, 1, 3),
    }
    params = {name: torch.nn.Parameter(value.clone()) for name, value in params.items()}
    optimisers = {name: torch.optim.Adam([value], lr=1e-2) for name, value in params.items()}
    strategy = DefaultStrategy(refine_start_iter=5, refine_every=10, refine_stop_iter=25, grow_grad2d=5e-5)
    strategy.check_sanity(params, optimisers)
    state = strategy.initialize_state(scene_scale=1.0)
    losses, counts = [], []
    torch.manual_seed(0)  # splitting draws offsets
    for step in range(40):
        loss, info = step_loss(params, cameras, target)
        strategy.step_pre_backward(params, optimisers, state, step, info)
        loss.backward()
        strategy.step_post_backward(params, optimisers, state, step, info, packed=False)
        for optimiser in optimisers.values():
            optimiser.step()
            optimiser.zero_grad()
        losses.append(float(loss.detach()))
        counts.append(len(params["means"]))
    assert counts[9] == 40 and counts[10] > 40, "growth at the first refinement"
    assert torch.sigmoid(params["opacities"]).min() > strategy.prune_opa / 2, "what is nearly invisible went"
    assert losses[-1] < 0.7 * losses[0]


def step_loss(params: dict[str, torch.nn.Parameter], cameras: Cameras, target: Tensor) -> tuple[Tensor, dict]:
    splats = SplatTensors(params["means"], params["quats"], params["scales"].exp(), params["opacities"].sigmoid(),
                          params["sh"])  # fmt: skip
    output = rasterize(splats, cameras)
    assert output.rgb is not None
    return (output.rgb - target).abs().mean(), output.info
