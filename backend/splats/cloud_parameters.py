"""Leaves of free (unbound) Gaussians with their activations and one Adam each, in gsplat's own layout.

`CloudParameters.params` and `.optimizers` are the two dicts that gsplat's strategies take: "means", "scales" (log),
"quats", "opacities" (logit), "sh0" and "shN". Every change of the number of Gaussians goes through `rearrange`, which
carries Adam's moments with the rows that stay and starts new rows at zero.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import Parameter

from backend.raster import SplatTensors
from blender_addon.shared.gaussians import SH_REST_COUNTS, GaussianCloud

NAMES = ("means", "scales", "quats", "opacities", "sh0", "shN")

OPACITY_MARGIN = 2.0**-20
"""Opacities are kept this far from 0 and 1 before a logit; what is that close reads back as 0 or 1."""

SMALLEST_SCALE_M = 1e-12
"""Scales leave this range neither way, so that exp of a leaf stays a valid float32 scale."""
LARGEST_SCALE_M = 1e12

ADAM_EPSILON = 1e-15
"""INRIA's and gsplat's: gradients of single Gaussians are often below Adam's usual 1e-8."""


@dataclass(frozen=True)
class LearningRates:
    """Adam's step sizes; defaults are those of INRIA's 3DGS (arguments/__init__.py, OptimizationParams).

    Attributes:
        means: At the start, in units of the scene's extent (position_lr_init).
        means_final: At the end (position_lr_final); between them the rate falls exponentially.
        scales: Of log scales (scaling_lr).
        quats: Of unnormalised quaternions (rotation_lr).
        opacities: Of logits (opacity_lr of the paper's version; INRIA's newest has 0.025).
        sh0: Of degree-0 coefficients (feature_lr).
        shN: Of higher coefficients (feature_lr / 20).
    """

    means: float = 1.6e-4
    means_final: float = 1.6e-6
    scales: float = 5e-3
    quats: float = 1e-3
    opacities: float = 5e-2
    sh0: float = 2.5e-3
    shN: float = 2.5e-3 / 20  # noqa: N815 - gsplat's name

    def means_at(self, iteration: int, iterations: int) -> float:
        """Rate of the means at an iteration, in scene extents: exponential from `means` to `means_final`.

        Args:
            iteration: 0..iterations; later ones stay at the final rate.
            iterations: Length of the decay.
        """
        share = min(max(iteration / max(iterations, 1), 0.0), 1.0)
        return math.exp((1 - share) * math.log(self.means) + share * math.log(self.means_final))


class CloudParameters:
    """N Gaussians as leaves that an optimiser moves.

    Attributes:
        params: Leaves by gsplat's names: means [N, 3] metres, scales [N, 3] log metres, quats [N, 4] wxyz of any
            length, opacities [N] logit, sh0 [N, 1, 3], shN [N, K, 3]. Replaced by new leaves when rows change.
        optimizers: One Adam per leaf, under the same names.
        extent_m: Radius of the scene; the unit of the means' learning rate and of size thresholds.
        rates: Learning rates.
    """

    def __init__(self, leaves: dict[str, Tensor], extent_m: float, rates: LearningRates) -> None:
        """Take the leaves as they are; use `from_cloud` for a cloud.

        Raises:
            ValueError: If the extent is not positive, or a leaf is missing or has another shape than documented.
        """
        if not (math.isfinite(extent_m) and extent_m > 0):
            raise ValueError(f"extent_m must be positive, not {extent_m}")
        _check(leaves)
        self.extent_m = extent_m
        self.rates = rates
        self.params = {name: Parameter(leaves[name].detach().clone()) for name in NAMES}
        fast = all(p.device.type in ("cpu", "cuda") for p in self.params.values())
        self.optimizers = {
            name: torch.optim.Adam([p], lr=self._rate(name, 0, 1), eps=ADAM_EPSILON, fused=fast)
            for name, p in self.params.items()
        }

    @classmethod
    def from_cloud(
        cls,
        cloud: GaussianCloud,
        extent_m: float,
        rates: LearningRates | None = None,
        degree: int | None = None,
        device: str = "cpu",
    ) -> CloudParameters:
        """Leaves of a cloud.

        `to_cloud` returns the same cloud within float32: positions and coefficients bit for bit, scales within 4e-6
        of their value, rotations within 2e-7, opacities within 2e-6 (all of them measured by a test); opacities within
        2^-20 of 0 or 1 come back as 0 or 1.

        Args:
            cloud: N Gaussians.
            extent_m: See the class.
            rates: None for the defaults.
            degree: Spherical harmonics degree to optimise, 0 to 4; None keeps the cloud's. Missing coefficients are 0.
            device: Torch device.

        Raises:
            ValueError: If `degree` is outside 0..4 or the extent is not positive.
        """
        wanted = cloud.degree if degree is None else degree
        if wanted not in range(len(SH_REST_COUNTS)):
            raise ValueError(f"degree must be 0 to {len(SH_REST_COUNTS) - 1}, not {degree}")
        rest = np.zeros((len(cloud), SH_REST_COUNTS[wanted], 3), np.float32)
        shared = min(rest.shape[1], cloud.sh_rest.shape[1])
        rest[:, :shared] = cloud.sh_rest[:, :shared]
        opacities = torch.from_numpy(cloud.opacities.astype(np.float64)).clamp(OPACITY_MARGIN, 1 - OPACITY_MARGIN)
        scales = torch.from_numpy(cloud.scales_m.astype(np.float64)).clamp(SMALLEST_SCALE_M, LARGEST_SCALE_M)
        leaves = {
            "means": torch.from_numpy(cloud.positions_m),
            "scales": scales.log().float(),
            "quats": torch.from_numpy(cloud.rotations_wxyz),
            "opacities": torch.logit(opacities).float(),
            "sh0": torch.from_numpy(cloud.sh_dc)[:, None, :],
            "shN": torch.from_numpy(rest),
        }
        return cls({name: leaf.to(device) for name, leaf in leaves.items()}, extent_m, rates or LearningRates())

    def __len__(self) -> int:
        """Number of Gaussians."""
        return len(self.params["means"])

    @property
    def degree(self) -> int:
        """Spherical harmonics degree, 0 to 4."""
        return SH_REST_COUNTS.index(self.params["shN"].shape[1])

    def activated(self, degree: int | None = None) -> SplatTensors:
        """What the rasteriser takes, differentiable in the leaves; quaternions of length 1.

        Args:
            degree: Highest spherical harmonics degree in it; None for all that there are.
        """
        p = self.params
        count = p["shN"].shape[1] if degree is None else SH_REST_COUNTS[min(degree, self.degree)]
        return SplatTensors(
            p["means"],
            torch.nn.functional.normalize(p["quats"], dim=1),
            p["scales"].exp(),
            torch.sigmoid(p["opacities"]),
            torch.cat([p["sh0"], p["shN"][:, :count]], 1),
        )

    @torch.no_grad()
    def to_cloud(self) -> GaussianCloud:
        """The Gaussians as they are now.

        Raises:
            ValueError: If a leaf is no longer finite; the message names the field.
        """
        p = {name: leaf.detach().double().cpu() for name, leaf in self.params.items()}
        opacities = torch.sigmoid(p["opacities"])
        opacities = torch.where(opacities <= OPACITY_MARGIN * 1.01, torch.zeros_like(opacities), opacities)
        opacities = torch.where(opacities >= 1 - OPACITY_MARGIN * 1.01, torch.ones_like(opacities), opacities)
        return GaussianCloud(
            self.params["means"].detach().cpu().numpy(),
            p["scales"].exp().clamp(SMALLEST_SCALE_M, LARGEST_SCALE_M).numpy(),
            torch.nn.functional.normalize(p["quats"], dim=1).numpy(),
            opacities.numpy(),
            self.params["sh0"][:, 0].detach().cpu().numpy(),
            self.params["shN"].detach().cpu().numpy(),
        )

    def _rate(self, name: str, iteration: int, iterations: int) -> float:
        if name == "means":
            return self.rates.means_at(iteration, iterations) * self.extent_m
        return float(getattr(self.rates, name))

    def set_rates(self, iteration: int, iterations: int) -> None:
        """Learning rates of an iteration: the means' falls exponentially over `iterations`, the others stay."""
        for name, optimizer in self.optimizers.items():
            optimizer.param_groups[0]["lr"] = self._rate(name, iteration, iterations)

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for optimizer in self.optimizers.values():
            optimizer.zero_grad(set_to_none=True)

    def optimizer_step(self) -> None:
        """One step of every Adam; leaves without a gradient stay."""
        for optimizer in self.optimizers.values():
            optimizer.step()

    @torch.no_grad()
    def rearrange(self, keep: Tensor, added: dict[str, Tensor] | None = None) -> None:
        """Replace the rows: first those of `keep` in that order, with Adam's moments, then new ones with none.

        Args:
            keep: int64 [M] rows that stay.
            added: New rows by name, each [P, ...]; names that lack get an error. None adds nothing.

        Raises:
            ValueError: If `added` lacks a leaf or its row counts differ.
        """
        if added is not None and (set(added) != set(NAMES) or len({len(rows) for rows in added.values()}) != 1):
            raise ValueError(f"added rows must be given for each of {', '.join(NAMES)}, equally many")
        for name, old in list(self.params.items()):
            extra = old[:0] if added is None else added[name].to(old)
            new = Parameter(torch.cat([old[keep], extra]))
            optimizer = self.optimizers[name]
            state = optimizer.state.pop(old, {})
            for key in ("exp_avg", "exp_avg_sq"):
                if key in state:
                    state[key] = torch.cat([state[key][keep], torch.zeros_like(extra)])
            if state:
                optimizer.state[new] = state
            optimizer.param_groups[0]["params"] = [new]
            self.params[name] = new

    @torch.no_grad()
    def forget_moments(self, rows: Tensor | None, names: tuple[str, ...]) -> None:
        """Set Adam's moments to zero for rows [M] (None: all) of the named leaves."""
        for name in names:
            state = self.optimizers[name].state.get(self.params[name], {})
            for key in ("exp_avg", "exp_avg_sq"):
                if key in state:
                    state[key][slice(None) if rows is None else rows] = 0

    def state_dict(self) -> dict[str, np.ndarray]:
        """Leaves and Adam's state as arrays, for `backend.checkpoint.save`; exact."""
        state: dict[str, np.ndarray] = {}
        for name, leaf in self.params.items():
            state[name] = leaf.detach().cpu().numpy().copy()
            for key, value in self.optimizers[name].state.get(leaf, {}).items():
                state[f"{name}.{key}"] = torch.as_tensor(value).detach().cpu().numpy().copy()
        return state

    def load_state_dict(self, state: dict[str, np.ndarray]) -> None:
        """Go on exactly where `state_dict` was taken; the number of Gaussians may differ from now.

        Raises:
            ValueError: If a leaf is missing or has a wrong shape.
        """
        leaves = {name: torch.from_numpy(np.array(state[name])) for name in NAMES if name in state}
        _check(leaves)
        for name, leaf in leaves.items():
            device = self.params[name].device
            new, optimizer = Parameter(leaf.to(device)), self.optimizers[name]
            optimizer.state.clear()
            moments = {
                key: torch.from_numpy(np.array(state[f"{name}.{key}"])).to(device)
                for key in ("step", "exp_avg", "exp_avg_sq")
                if f"{name}.{key}" in state
            }
            if moments:
                optimizer.state[new] = moments
            optimizer.param_groups[0]["params"] = [new]
            self.params[name] = new


def _check(leaves: dict[str, Tensor]) -> None:
    """Raise ValueError unless every leaf is there with its shape."""
    missing = [name for name in NAMES if name not in leaves]
    if missing:
        raise ValueError(f"the leaf {missing[0]} is missing")
    count, higher = len(leaves["means"]), leaves["shN"].shape[1] if leaves["shN"].ndim == 3 else -1
    shapes = {
        "means": (count, 3), "scales": (count, 3), "quats": (count, 4), "opacities": (count,),
        "sh0": (count, 1, 3), "shN": (count, higher, 3),
    }  # fmt: skip
    for name, shape in shapes.items():
        if tuple(leaves[name].shape) != shape:
            raise ValueError(f"{name} must have shape {list(shape)}, not {list(leaves[name].shape)}")
    if higher not in SH_REST_COUNTS:
        raise ValueError(f"shN has {higher} coefficients, expected one of {SH_REST_COUNTS}")


def camera_extent_m(w2c: np.ndarray) -> float:
    """INRIA's scene extent: 1.1 times the largest distance of a camera from the cameras' mean, metres.

    Args:
        w2c: [C, 4, 4] world to camera.

    Raises:
        ValueError: If all cameras stand at one point; take the subject's radius instead.
    """
    rotations, translations = np.asarray(w2c, np.float64)[:, :3, :3], np.asarray(w2c, np.float64)[:, :3, 3]
    centres = -np.einsum("cji,cj->ci", rotations, translations)
    extent = 1.1 * float(np.linalg.norm(centres - centres.mean(0), axis=1).max())
    if extent < 1e-9:
        raise ValueError("all cameras stand at one point, which gives no extent; use the subject's radius")
    return extent
