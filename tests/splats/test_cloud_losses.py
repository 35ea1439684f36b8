"""Terms of the loss: what they are zero for, what they ignore, and their gradients."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial import Delaunay

from backend.splats.cloud_losses import (
    depth_loss,
    depth_normals,
    l1_loss,
    mask_loss,
    normal_loss,
    photometric_loss,
    sparsity,
    ssim_loss,
)
from backend.splats.mesh_laplacian import Laplacian, bound_laplacian, cotangent_laplacian, laplacian_loss

Arrays = tuple[np.ndarray, np.ndarray]


def pictures(seed: int, height: int = 20, width: int = 24) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    image, target = torch.rand(2, 3, height, width, generator=generator, dtype=torch.float64)
    return image, target, torch.rand(height, width, generator=generator, dtype=torch.float64)


def test_losses_are_zero_for_equal_pictures_and_where_nothing_counts() -> None:
    image, target, weight = pictures(0)
    for loss in (l1_loss, ssim_loss, photometric_loss):
        assert float(loss(image, image, weight)) == pytest.approx(0, abs=1e-12)
        assert float(loss(image, target, weight * 0)) == 0
        assert float(loss(image, target, weight)) > 0.05
    assert float(l1_loss(image, image + 0.25)) == pytest.approx(0.25)
    assert float(mask_loss(torch.full((4, 4), 0.25), torch.ones(4, 4))) == pytest.approx(0.75)


def test_weights_are_a_mean_that_ignores_the_rest() -> None:
    image, target, _ = pictures(1)
    weight = torch.zeros(20, 24, dtype=torch.float64)
    weight[5:9, 3:7] = 0.3
    inside = l1_loss(image[:, 5:9, 3:7], target[:, 5:9, 3:7])
    assert float(l1_loss(image, target, weight)) == pytest.approx(float(inside))


def test_ssim_in_torch_is_the_compiled_one() -> None:
    image, target, weight = pictures(2)
    wanted = torch.nn.Parameter(image.float())
    compiled = ssim_loss(wanted, target.float(), weight.float())
    compiled.backward()
    exact = image.clone().requires_grad_()
    plain = ssim_loss(exact, target, weight)
    plain.backward()
    assert float(compiled.detach()) == pytest.approx(float(plain.detach()), rel=1e-5)
    assert wanted.grad is not None and exact.grad is not None
    assert float((wanted.grad - exact.grad).norm() / exact.grad.norm()) < 1e-4


def test_gradients_are_right() -> None:
    image, target, weight = pictures(3, 8, 9)
    image.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: ssim_loss(x, target, weight), image)
    depth = (image[0].detach() + 1).requires_grad_()
    for kind in ("metric", "scale_invariant"):
        assert torch.autograd.gradcheck(lambda x, kind=kind: depth_loss(x, target[0] + 1, weight, kind), depth)
    assert torch.autograd.gradcheck(lambda x: normal_loss(x, target, weight), image)
    intrinsics = torch.tensor([[10.0, 0, 4.5], [0, 10, 4], [0, 0, 1]])
    assert torch.autograd.gradcheck(lambda x: normal_loss(depth_normals(x, intrinsics), target, weight), depth)


@settings(max_examples=30, deadline=None)
@given(factor=st.floats(0.01, 100), seed=st.integers(0, 1000))
def test_scale_invariant_depth_ignores_a_factor_and_only_that(factor: float, seed: int) -> None:
    depth, target, weight = pictures(seed)
    depth, target = depth[0] + 0.5, target[0] + 0.5
    loss = float(depth_loss(depth, target, weight, "scale_invariant"))
    assert float(depth_loss(factor * depth, target, weight, "scale_invariant")) == pytest.approx(loss, rel=1e-6)
    assert float(depth_loss(factor * depth, depth, weight, "scale_invariant")) == pytest.approx(0, abs=1e-12)
    assert loss > 1e-3
    assert float(depth_loss(depth + 0.3, depth, weight)) == pytest.approx(0.3)


def test_unknown_depths_and_normals_count_for_nothing_and_leave_the_gradient_finite() -> None:
    depth, target, weight = (t.clone() for t in pictures(4))
    depth, target = depth[0] + 1, target[0] + 1
    full = float(depth_loss(depth[:, 6:], target[:, 6:], weight[:, 6:], "scale_invariant"))
    depth[:, :3], target[:, 3:6] = 0, 0
    depth.requires_grad_()
    loss = depth_loss(depth, target, weight, "scale_invariant")
    loss.backward()
    assert float(loss.detach()) == pytest.approx(full, rel=1e-9)
    assert depth.grad is not None and bool(depth.grad.isfinite().all()) and not depth.grad[:, :6].any()
    normals = torch.zeros(3, 4, 4, requires_grad=True)
    loss = normal_loss(normals, torch.ones(3, 4, 4), torch.ones(4, 4))
    loss.backward()
    assert float(loss.detach()) == 0 and normals.grad is not None and bool(normals.grad.isfinite().all())


@pytest.mark.parametrize("degrees", [0.0, 30.0, 90.0, 180.0])
def test_normal_loss_is_one_minus_the_cosine(degrees: float) -> None:
    a = torch.tensor([0.0, 0.0, 2.0])[:, None, None].expand(3, 5, 5)
    turn = math.radians(degrees)
    b = torch.tensor([math.sin(turn), 0.0, math.cos(turn)])[:, None, None].expand(3, 5, 5)
    assert float(normal_loss(a, b, torch.ones(5, 5))) == pytest.approx(1 - math.cos(turn), abs=1e-6)


def test_normals_of_depth_are_exact_on_a_plane_and_turn_with_the_camera() -> None:
    intrinsics = torch.tensor([[40.0, 0, 15], [0, 40, 12], [0, 0, 1]], dtype=torch.float64)
    normal = torch.tensor([0.3, -0.2, -0.9], dtype=torch.float64)
    normal = normal / normal.norm()
    y, x = torch.meshgrid(torch.arange(24.0) + 0.5, torch.arange(30.0) + 0.5, indexing="ij")
    rays = torch.stack([(x - 15) / 40, (y - 12) / 40, torch.ones(24, 30)]).double()
    depth = (normal * torch.tensor([0.0, 0, 2])).sum() / torch.einsum("c,chw->hw", normal, rays)
    found = depth_normals(depth, intrinsics)
    torch.testing.assert_close(found[:, 1:-1, 1:-1], normal[:, None, None].expand(3, 22, 28))
    assert not found[:, 0].any() and not found[:, :, -1].any()
    w2c = torch.eye(4, dtype=torch.float64)
    w2c[:3, :3] = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64))[0]
    world = depth_normals(depth, intrinsics, w2c)
    torch.testing.assert_close(torch.einsum("ij,jhw->ihw", w2c[:3, :3], world), found)


def test_sparsity_is_the_papers() -> None:
    assert float(sparsity(torch.full((4,), 0.5), torch.full((4, 3), 0.2))) == pytest.approx(0.01 * 0.5 + 0.01 * 0.2)


def flat_mesh(seed: int = 0) -> Arrays:
    """Vertices [V, 3] and triangles [T, 3] of an uneven flat mesh, tilted in space."""
    rng = np.random.default_rng(seed)
    plane = np.concatenate([rng.uniform(-1, 1, (150, 2)), [[-1, -1], [1, -1], [1, 1], [-1, 1]]])
    triangles = Delaunay(plane).simplices.astype(np.int32)
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    return np.concatenate([plane, np.zeros((154, 1))], 1) @ turn.T, triangles


def operators(mesh: Arrays, seed: int = 0) -> dict[str, tuple[Laplacian, np.ndarray]]:
    """Both operators on a mesh, with the points where their values sit."""
    vertices, triangles = mesh
    rng = np.random.default_rng(seed)
    index = rng.integers(0, len(triangles), 900)
    bary = rng.dirichlet(np.ones(3), 900)
    feet = np.einsum("nk,nkc->nc", bary, vertices[triangles[index]])
    return {
        "cotangent": (cotangent_laplacian(vertices, triangles), vertices),
        "bound": (bound_laplacian(index, bary, vertices, triangles), feet),
    }


@pytest.mark.parametrize("kind", ["cotangent", "bound"])
def test_constants_and_slopes_on_a_flat_mesh_cost_nothing_and_bends_do(kind: str) -> None:
    laplacian, points = operators(flat_mesh())[kind]
    p = torch.from_numpy(points)
    assert float(laplacian.counts.mean()) > 0.8
    assert float(laplacian_loss(laplacian, torch.ones(len(p), 2).double())) < 1e-20
    linear = p @ torch.tensor([[0.3, 1.0], [-2.0, 0.5], [0.7, 0.1]]).double() + 4
    assert float(laplacian_loss(laplacian, linear)) < 1e-12
    bent = (p**2).sum(1)
    assert float(laplacian_loss(laplacian, bent)) > 1e-5
    assert float(laplacian_loss(laplacian, bent, reference=bent + linear[:, 0])) < 1e-12


@pytest.mark.parametrize("kind", ["cotangent", "bound"])
def test_descending_the_laplacian_removes_noise(kind: str) -> None:
    laplacian, points = operators(flat_mesh(1), 1)[kind]
    slope = torch.from_numpy(points) @ torch.tensor([1.0, 2.0, -1.0]).double()
    noise = 0.1 * torch.randn(len(points), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    values = (slope + noise).requires_grad_()
    adam = torch.optim.Adam([values], lr=0.01)
    first = float(laplacian_loss(laplacian, values.detach()))
    for _ in range(150):
        adam.zero_grad()
        laplacian_loss(laplacian, values).backward()
        adam.step()
    inner = laplacian.counts > 0
    assert float(laplacian_loss(laplacian, values.detach())) < 0.02 * first
    assert float((values.detach() - slope)[inner].std()) < 0.6 * float(noise[inner].std())


def test_gaussians_without_neighbours_or_in_a_row_do_no_harm() -> None:
    vertices = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [9, 0, 0], [10, 0, 0], [9, 1, 0.0]])
    triangles = np.array([[0, 1, 2], [3, 4, 5]], np.int32)
    bary = np.array([[0.8, 0.1, 0.1], [0.6, 0.2, 0.2], [0.4, 0.3, 0.3], [1 / 3, 1 / 3, 1 / 3]])
    laplacian = bound_laplacian(np.array([0, 0, 0, 1]), bary, vertices, triangles)
    assert laplacian.counts.tolist()[3] == 0
    values = torch.randn(4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert bool(laplacian.differences(values).isfinite().all())
    assert float(laplacian_loss(laplacian, torch.ones(4, 1).double())) < 1e-20
    alone = bound_laplacian(np.array([0]), bary[:1], vertices, triangles)
    assert float(laplacian_loss(alone, torch.ones(1, 1))) == 0
