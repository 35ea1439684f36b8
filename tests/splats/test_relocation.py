"""Markov chain densification: the relocation's laws by integration and by rendering, noise, movement, budget."""

from __future__ import annotations

import importlib
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from backend.raster import Cameras, SplatTensors, rasterize
from backend.splats.cloud_parameters import CloudParameters
from backend.splats.relocation import McmcDensifier, McmcSettings, _draw, relocated
from tests.splats.clouds import leaves, random_cloud, steps


@settings(max_examples=60, deadline=None)
@given(opacity=st.floats(1e-4, 0.9999), copies=st.integers(1, 51))
def test_the_copies_together_look_like_the_one(opacity: float, copies: int) -> None:
    """At the centre the same transmittance; along a line through it the same integral of the joint opacity."""
    old = torch.tensor([opacity], dtype=torch.float64)
    new, scales = relocated(old, torch.ones(1, 3, dtype=torch.float64), torch.tensor([copies]))
    assert 1 - (1 - float(new)) ** copies == pytest.approx(opacity, rel=1e-9)
    x = np.linspace(-60, 60, 240_001)
    joint = 1 - (1 - float(new) * np.exp(-0.5 * (x / float(scales[0, 0])) ** 2)) ** copies
    assert joint.sum() * (x[1] - x[0]) == pytest.approx(opacity * math.sqrt(2 * math.pi), rel=1e-6)


def test_one_copy_is_the_same_gaussian_and_more_than_the_table_count_as_its_end() -> None:
    opacities, scales = torch.tensor([0.3, 0.9]), torch.rand(2, 3)
    same = relocated(opacities, scales, torch.tensor([1, 0]))
    torch.testing.assert_close(same[0], opacities)
    torch.testing.assert_close(same[1], scales)
    many, most = (relocated(opacities, scales, torch.tensor([n, n])) for n in (500, 51))
    torch.testing.assert_close(many[1], most[1], rtol=0, atol=0)


def test_the_formula_is_the_papers_double_sum() -> None:
    for opacity, n in ((0.2, 2), (0.7, 5), (0.95, 12)):
        new = 1 - (1 - opacity) ** (1 / n)
        total = sum(
            math.comb(i - 1, k) * (-1) ** k / math.sqrt(k + 1) * new ** (k + 1)
            for i in range(1, n + 1)
            for k in range(i)
        )
        scales = relocated(
            torch.tensor([opacity], dtype=torch.float64), torch.full((1, 3), 2.0).double(), torch.tensor([n])
        )[1]
        assert float(scales[0, 1]) == pytest.approx(2.0 * opacity / total, rel=1e-9)


@pytest.mark.parametrize("copies", [2, 4, 9])
def test_rendered_copies_have_the_alpha_of_the_one(copies: int) -> None:
    """Through the dense rasteriser: the same alpha at the centre, the same sum along the central row."""
    size, opacity = 129, 0.8
    camera = Cameras(
        torch.eye(4)[None].double(), torch.tensor([[[100.0, 0, 64.5], [0, 100, 64.5], [0, 0, 1]]]).double(), size, size
    )

    def alpha(count: int, opacity: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        means = torch.tensor([[0.0, 0, 1]]).double().repeat(count, 1)
        turned = torch.tensor([[1.0, 0, 0, 0]]).double().repeat(count, 1)
        splats = SplatTensors(means, turned, scale.repeat(count, 1), opacity.repeat(count))
        output = rasterize(
            splats, camera, features=torch.ones(count, 1).double(), antialiased=False, backend="reference"
        )
        assert output.alpha is not None
        return output.alpha[0]

    start = torch.tensor([opacity]).double(), torch.full((1, 3), 0.12).double()
    one = alpha(1, *start)
    many = alpha(copies, *relocated(*start, torch.tensor([copies])))
    assert float(many[64, 64]) == pytest.approx(float(one[64, 64]), abs=1e-6)
    # The rasteriser cuts both at an alpha of 1/255, the copies a little earlier.
    assert float(many[64].sum()) == pytest.approx(float(one[64].sum()), rel=0.02)


def test_dead_gaussians_move_onto_living_ones_and_the_number_stays() -> None:
    parameters = leaves(60, 0)
    with torch.no_grad():
        parameters.params["opacities"][:20] = -9.0
        parameters.params["opacities"][20:] = 1.5
    steps(parameters, 1)
    with torch.no_grad():
        parameters.params["opacities"][:20] = -9.0
    living = parameters.params["means"][20:].detach().clone()
    settings = McmcSettings(budget=60, start=0, every=1, noise=0.0)
    done = McmcDensifier(settings).step(parameters, [], 1, torch.Generator().manual_seed(0))
    assert done.moved == 20 and done.cloned == 0 and len(parameters) == 60
    moved = parameters.params["means"][:20].detach()
    assert (moved[:, None] == living[None]).all(2).any(1).all()
    assert float(torch.sigmoid(parameters.params["opacities"].detach()).min()) > 0.005


def test_moving_and_adding_are_gsplats_bit_for_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    """With our torch relocation in place of its CUDA kernel and the same rows drawn."""
    ops = importlib.import_module("gsplat.strategy.ops")
    strategy = importlib.import_module("gsplat.strategy").MCMCStrategy(cap_max=75)

    def compute_relocation(opacities, scales, ratios, binoms):  # noqa: ANN001, ANN202
        return relocated(opacities, scales, ratios)

    monkeypatch.setattr(ops, "compute_relocation", compute_relocation)
    generator = torch.Generator().manual_seed(7)
    monkeypatch.setattr(ops, "_multinomial_sample", lambda weights, n, replacement: _draw(weights, n, generator))
    ours, theirs = leaves(70, 2, 1), leaves(70, 2, 1)
    for parameters in (ours, theirs):
        with torch.no_grad():
            parameters.params["opacities"][::3] = -7.0
        steps(parameters, 2)
    binoms = strategy.initialize_state()["binoms"]
    moved = strategy._relocate_gs(theirs.params, theirs.optimizers, binoms)
    added = strategy._add_new_gs(theirs.params, theirs.optimizers, binoms)
    settings = McmcSettings(budget=75, start=0, every=1, noise=0.0)
    done = McmcDensifier(settings).step(ours, [], 1, torch.Generator().manual_seed(7))
    assert (done.moved, done.cloned) == (moved, added) and moved > 10 and added == 3
    for name, leaf in ours.params.items():
        torch.testing.assert_close(leaf, theirs.params[name], rtol=0, atol=0)
        moments = [p.optimizers[name].state[p.params[name]]["exp_avg"] for p in (ours, theirs)]
        torch.testing.assert_close(*moments, rtol=0, atol=0)


def test_where_nothing_lives_nothing_moves() -> None:
    parameters = leaves(8, 0)
    with torch.no_grad():
        parameters.params["opacities"][:] = -12.0
    settings = McmcSettings(budget=8, start=0, every=1)
    done = McmcDensifier(settings).step(parameters, [], 1, torch.Generator().manual_seed(0))
    assert not done.changed


def test_noise_has_the_gaussians_own_covariance_and_spares_the_opaque() -> None:
    """The step is covariance times white noise, so its covariance is rate^2 Sigma^2."""
    count = 4000
    cloud = random_cloud(1, 4).select(np.zeros(count, int))
    parameters = CloudParameters.from_cloud(cloud, 1.0)
    with torch.no_grad():
        parameters.params["opacities"][:] = -20.0
        parameters.params["opacities"][0] = 3.0
    before = parameters.params["means"].detach().clone()
    McmcDensifier(McmcSettings(budget=count)).step(parameters, [], 0, torch.Generator().manual_seed(1))
    moved = (parameters.params["means"].detach() - before).double()
    assert float(moved[0].norm()) < 1e-9
    splats = CloudParameters.from_cloud(cloud.select(np.array([0])), 1.0).activated()
    w, x, y, z = splats.rotations_wxyz[0].detach().double().tolist()
    turn = torch.tensor(
        [[1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
         [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
         [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)]]
    ).double()  # fmt: skip
    sigma = turn @ torch.diag(splats.scales[0].detach().double() ** 2) @ turn.T
    fade = 1 / (1 + math.exp(-100 * 0.005))
    expected = (1.6e-4 * 5e5 * fade) ** 2 * sigma @ sigma
    found = moved[1:].T @ moved[1:] / (count - 1)
    assert float((found - expected).norm() / expected.norm()) < 0.1
