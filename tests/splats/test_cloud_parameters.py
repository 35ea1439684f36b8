"""Leaves of free Gaussians: exact round trips, rows that move with their Adam state, rates, gsplat's layout."""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from backend import checkpoint
from backend.splats.cloud_parameters import NAMES, CloudParameters, LearningRates, camera_extent_m
from blender_addon.shared.gaussians import GaussianCloud
from tests.splats.clouds import leaves, random_cloud, steps


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), degree=st.integers(0, 4), size=st.floats(-7, 4))
def test_a_cloud_comes_back_within_the_stated_limits(seed: int, degree: int, size: float) -> None:
    cloud = random_cloud(50, seed, degree)
    cloud = GaussianCloud(
        cloud.positions_m * 10**size, cloud.scales_m * 10**size, cloud.rotations_wxyz,
        np.concatenate([[0, 1, 1e-9, 1 - 2**-24, 1e-5, 1 - 1e-5], cloud.opacities[6:]]), cloud.sh_dc, cloud.sh_rest,
    )  # fmt: skip
    back = CloudParameters.from_cloud(cloud, 1.0).to_cloud()
    for exact in ("positions_m", "sh_dc", "sh_rest"):
        np.testing.assert_array_equal(getattr(back, exact), getattr(cloud, exact))
    np.testing.assert_allclose(back.scales_m, cloud.scales_m, rtol=4e-6)
    np.testing.assert_allclose(back.rotations_wxyz, cloud.rotations_wxyz, atol=2e-7)
    np.testing.assert_allclose(back.opacities, cloud.opacities, atol=2e-6)
    np.testing.assert_array_equal(back.opacities[:4], [0, 1, 0, 1])


def test_activations_are_what_the_record_says() -> None:
    cloud = random_cloud(30, 0, 2)
    parameters = CloudParameters.from_cloud(cloud, 1.0)
    with torch.no_grad():
        parameters.params["quats"] *= 7.0  # leaves need no unit length
    splats = parameters.activated()
    np.testing.assert_allclose(splats.scales.detach(), cloud.scales_m, rtol=1e-5)
    np.testing.assert_allclose(splats.opacities.detach(), cloud.opacities, atol=2e-6)
    np.testing.assert_allclose(splats.rotations_wxyz.detach(), cloud.rotations_wxyz, atol=1e-6)
    shapes = [tuple(parameters.activated(degree).sh.shape) for degree in (None, 0, 1, 4)]
    assert shapes == [(30, 9, 3), (30, 1, 3), (30, 4, 3), (30, 9, 3)]
    np.testing.assert_array_equal(splats.sh.detach()[:, 0], cloud.sh_dc)
    np.testing.assert_array_equal(splats.sh.detach()[:, 1:], cloud.sh_rest)


def test_another_degree_keeps_what_both_have() -> None:
    cloud = random_cloud(10, 1, 2)
    more = CloudParameters.from_cloud(cloud, 1.0, degree=3).to_cloud()
    np.testing.assert_array_equal(more.sh_rest[:, :8], cloud.sh_rest)
    assert not more.sh_rest[:, 8:].any()
    assert CloudParameters.from_cloud(cloud, 1.0, degree=1).degree == 1
    with pytest.raises(ValueError, match="degree"):
        CloudParameters.from_cloud(cloud, 1.0, degree=5)


def test_moving_rows_commutes_with_optimising_them() -> None:
    """Carried moments: rearranging between two steps changes nothing but the order."""
    order = torch.randperm(40, generator=torch.Generator().manual_seed(3))
    moved, stayed = leaves(40, 0, 1), leaves(40, 0, 1)
    for parameters in (moved, stayed):
        steps(parameters, 5)
    moved.rearrange(order)
    for parameters in (moved, stayed):
        steps(parameters, 5)
    for name in NAMES:
        torch.testing.assert_close(moved.params[name], stayed.params[name][order], rtol=0, atol=0)


def test_new_rows_start_without_moments_and_the_old_keep_theirs() -> None:
    parameters = leaves(20, 0, 1)
    steps(parameters, 3)
    before = {
        name: parameters.optimizers[name].state[leaf]["exp_avg"].clone() for name, leaf in parameters.params.items()
    }
    keep = torch.tensor([4, 0, 19])
    added = {name: leaf[[7, 8]].detach().clone() for name, leaf in parameters.params.items()}
    parameters.rearrange(keep, added)
    assert len(parameters) == 5
    for name, leaf in parameters.params.items():
        moments = parameters.optimizers[name].state[leaf]["exp_avg"]
        torch.testing.assert_close(moments[:3], before[name][keep], rtol=0, atol=0)
        assert not moments[3:].any()
        torch.testing.assert_close(leaf[3:], added[name], rtol=0, atol=0)
    steps(parameters, 1)
    with pytest.raises(ValueError, match="added rows"):
        parameters.rearrange(keep, {"means": torch.zeros(1, 3)})


def test_forgotten_moments_are_those_of_the_rows_alone() -> None:
    parameters = leaves(10, 0)
    steps(parameters, 3)
    parameters.forget_moments(torch.tensor([2]), NAMES)
    for name, leaf in parameters.params.items():
        moments = parameters.optimizers[name].state[leaf]["exp_avg_sq"]
        assert not moments[2].any()
        assert leaf.numel() == 0 or moments[3].any()


def test_a_checkpoint_goes_on_to_the_same_numbers(tmp_path: Path) -> None:
    straight, stopped, fresh = leaves(15, 0, 1), leaves(15, 0, 1), leaves(9, 5, 1)
    for parameters in (straight, stopped):
        steps(parameters, 4)
    checkpoint.save(tmp_path / "state.npz", stopped.state_dict())
    fresh.load_state_dict(checkpoint.load(tmp_path / "state.npz"))
    for parameters in (straight, fresh):
        steps(parameters, 4)
    for name in NAMES:
        torch.testing.assert_close(fresh.params[name], straight.params[name], rtol=0, atol=0)


def test_the_rate_of_the_means_falls_exponentially_with_the_extent() -> None:
    rates = LearningRates(means=1e-2, means_final=1e-4)
    seen = [rates.means_at(i, 100) for i in (0, 50, 100, 500)]
    np.testing.assert_allclose(seen, [1e-2, 1e-3, 1e-4, 1e-4], rtol=1e-9)
    parameters = CloudParameters.from_cloud(random_cloud(5, 0), extent_m=3.0, rates=rates)
    parameters.set_rates(50, 100)
    assert parameters.optimizers["means"].param_groups[0]["lr"] == pytest.approx(3e-3)
    assert parameters.optimizers["scales"].param_groups[0]["lr"] == rates.scales


def test_extent_of_cameras() -> None:
    w2c = np.tile(np.eye(4), (2, 1, 1))
    w2c[1, :3, :3] = np.diag([-1.0, 1, -1])
    w2c[0, :3, 3], w2c[1, :3, 3] = [0, 0, 2], [0, 0, 2]  # centres at z = -2 and z = +2
    assert camera_extent_m(w2c) == pytest.approx(1.1 * 2)
    with pytest.raises(ValueError, match="one point"):
        camera_extent_m(w2c[:1])


@pytest.mark.parametrize(
    "wrong", [{"means": torch.zeros(3, 2)}, {"shN": torch.zeros(3, 2, 3)}, {"quats": torch.zeros(2, 4)}]
)
def test_wrong_leaves_are_named(wrong: dict[str, torch.Tensor]) -> None:
    good = {name: leaf.detach() for name, leaf in leaves(3, 0).params.items()}
    with pytest.raises(ValueError, match=next(iter(wrong))):
        CloudParameters({**good, **wrong}, 1.0, LearningRates())
    with pytest.raises(ValueError, match="extent"):
        CloudParameters(good, 0.0, LearningRates())


def test_gsplats_strategies_accept_the_dicts() -> None:
    strategy = importlib.import_module("gsplat.strategy")
    parameters = leaves(5, 0, 1)
    for kind in (strategy.DefaultStrategy, strategy.MCMCStrategy):
        kind().check_sanity(parameters.params, parameters.optimizers)
