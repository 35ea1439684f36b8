"""Small clouds, cameras and views that several tests share."""

from __future__ import annotations

import numpy as np
import torch

from backend.splats.cloud_parameters import CloudParameters
from blender_addon.shared.gaussians import GaussianCloud


def random_cloud(count: int, seed: int, degree: int = 0, radius_m: float = 0.36) -> GaussianCloud:
    """Gaussians of all shapes and opacities in a ball around the origin."""
    rng = np.random.default_rng(seed)
    rotations = rng.normal(size=(count, 4))
    return GaussianCloud(
        positions_m=ball(count, rng, radius_m),
        scales_m=np.exp(rng.normal(np.log(0.03), 0.4, (count, 3))),
        rotations_wxyz=rotations / np.linalg.norm(rotations, axis=1, keepdims=True),
        opacities=rng.uniform(0, 1, count),
        sh_dc=rng.normal(0, 0.8, (count, 3)),
        sh_rest=rng.normal(0, 0.1, (count, (degree + 1) ** 2 - 1, 3)),
    )


def grey_start(count: int, seed: int, radius_m: float = 0.36) -> GaussianCloud:
    """Round grey Gaussians that fill a ball: what an optimisation without any knowledge starts from."""
    rng = np.random.default_rng(seed)
    spacing = radius_m * (4.2 / count) ** (1 / 3)
    return GaussianCloud.from_colours(
        ball(count, rng, radius_m),
        np.full((count, 3), 0.5 * spacing),
        np.tile([1.0, 0, 0, 0], (count, 1)),
        np.full(count, 0.3),
        np.full((count, 3), 0.5),
    )


def ball(count: int, rng: np.random.Generator, radius_m: float) -> np.ndarray:
    """Points [count, 3], uniform in a ball."""
    directions = rng.normal(size=(count, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    return directions * radius_m * rng.random((count, 1)) ** (1 / 3)


def leaves(count: int, seed: int, degree: int = 0) -> CloudParameters:
    """Leaves of a random cloud in a scene of extent 1 m."""
    return CloudParameters.from_cloud(random_cloud(count, seed, degree), 1.0)


def steps(parameters: CloudParameters, count: int, seed: int = 0) -> None:
    """Adam steps against a loss that pulls every number of every row, the same for a row wherever it stands."""
    targets = {name: torch.sin(leaf.detach() * 37) for name, leaf in parameters.params.items()}
    for _ in range(count):
        parameters.zero_grad()
        loss = sum(((leaf - targets[name]) ** 2).sum() for name, leaf in parameters.params.items())
        assert isinstance(loss, torch.Tensor)
        loss.backward()
        parameters.optimizer_step()


def fake_info(parameters: CloudParameters, gradients: torch.Tensor, radii: torch.Tensor | None = None) -> dict:
    """The rasteriser's information on one camera, with given gradients [N, 2] to the projected positions."""
    means2d = torch.zeros(1, len(parameters), 2, requires_grad=True)
    kept = means2d * 1.0
    kept.retain_grad()
    (kept * gradients[None]).sum().backward()
    radii = torch.full((1, len(parameters), 2), 5) if radii is None else radii
    return {"means2d": kept, "radii": radii, "gaussian_ids": None, "width": 64, "height": 64, "n_cameras": 1}
