"""Where Gaussians are added and removed while a cloud is optimised, never above a budget.

`GradientDensifier` follows 3DGS (arXiv:2308.04079) as gsplat 1.5.3's `DefaultStrategy` does: what the picture pulls at
strongly is cloned where small and split where large. A placement decides where the new ones go: by the parent's own
covariance (`default_densifier`), or along the surface (`surface_guided.surface_guided_densifier`). The MCMC variant is
in `relocation`. All of them are called right after the optimiser's step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from backend.splats.cloud_parameters import CloudParameters

SPLIT_SHRINK = 1.6
"""Both halves of a split Gaussian are this much smaller (3DGS: 0.8 times their number)."""


@dataclass(frozen=True)
class Densified:
    """What one call changed, in numbers of Gaussians."""

    cloned: int = 0
    split: int = 0
    pruned: int = 0
    moved: int = 0

    @property
    def changed(self) -> bool:
        """Whether rows changed."""
        return bool(self.cloned or self.split or self.pruned or self.moved)


class Densifier(Protocol):
    """One way to change the number of Gaussians; deterministic for a generator's state."""

    def before_backward(self, info: dict[str, Any]) -> None:
        """Ask the rasteriser's information on one drawing to keep what `step` needs."""
        ...

    def loss(self, parameters: CloudParameters) -> Tensor | None:
        """A term that this way of densifying needs in the loss, if any."""
        ...

    def step(
        self,
        parameters: CloudParameters,
        infos: Sequence[dict[str, Any]],
        iteration: int,
        generator: torch.Generator,
    ) -> Densified:
        """Look at the gradients of this iteration and, when it is time, change rows.

        Args:
            parameters: The leaves, after the optimiser's step.
            infos: The rasteriser's information on every drawing of this iteration, in gsplat's layout, after the
                backward pass.
            iteration: From 0.
            generator: On the CPU; the only source of chance.

        Raises:
            ValueError: If there are more Gaussians than the budget.
        """
        ...

    def state_dict(self) -> dict[str, Any]:
        """What must survive between two iterations, as arrays and plain values."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        ...


class NoDensifier:
    """The number of Gaussians stays."""

    def before_backward(self, info: dict[str, Any]) -> None:
        """Nothing to keep."""

    def loss(self, parameters: CloudParameters) -> None:
        """None."""

    def step(
        self,
        parameters: CloudParameters,
        infos: Sequence[dict[str, Any]],
        iteration: int,
        generator: torch.Generator,
    ) -> Densified:
        """Change nothing."""
        return Densified()

    def state_dict(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing."""


Placement = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(positions of all that stay [S, 3], parents' positions [M, 3], offsets drawn from the parents' covariances [M, 3])
-> offsets [M, 3] of the new Gaussians from their parents."""


@dataclass(frozen=True)
class GradientSettings:
    """Defaults are those of 3DGS and gsplat; iterations count optimiser steps from 0.

    Attributes:
        budget: Most Gaussians at any time. Where more want to grow, those with the largest gradients do.
        gradient: Mean length of the gradient to the projected position, in half frame sizes, above which one grows.
        size: In scene extents: up to here the largest axis is cloned, above it split.
        start: No change up to this iteration.
        stop: No change from this iteration on.
        every: Iterations between two changes.
        prune_opacity: Gaussians below are removed.
        prune_size: In scene extents: larger ones are removed, once `prune_size_after` iterations have passed.
        prune_size_after: gsplat takes its `reset_every`.
        reset_every: Iterations between two resets of all opacities to twice `prune_opacity`; 0 for never. gsplat 1.5.3
            never resets: its condition `step % reset_every == 0 & step > 0` is always false (gsplat pull request 776).
        share_opacity: Two Gaussians at one place let through what their parent did (arXiv:2404.06109, "revised
            opacity"), instead of hiding twice as much.
    """

    budget: int
    gradient: float = 2e-4
    size: float = 0.01
    start: int = 500
    stop: int = 15_000
    every: int = 100
    prune_opacity: float = 0.005
    prune_size: float = 0.1
    prune_size_after: int = 3000
    reset_every: int = 3000
    share_opacity: bool = False


class GradientDensifier:
    """Clones and splits by the gradient in the picture, prunes the transparent and the huge."""

    def __init__(self, settings: GradientSettings, place: Placement, move_clones: bool) -> None:
        """Take a placement.

        Args:
            settings: See there.
            place: Where new Gaussians go.
            move_clones: Whether a clone gets an offset too, or lies on its parent as in 3DGS.
        """
        self.settings = settings
        self._place = place
        self._move_clones = move_clones
        self._pull: Tensor | None = None  # [N] sum of gradient lengths
        self._seen: Tensor | None = None  # [N] in how many pictures

    def before_backward(self, info: dict[str, Any]) -> None:
        """Keep the gradient of the projected positions."""
        info["means2d"].retain_grad()

    def loss(self, parameters: CloudParameters) -> None:
        """None."""

    @torch.no_grad()
    def step(
        self,
        parameters: CloudParameters,
        infos: Sequence[dict[str, Any]],
        iteration: int,
        generator: torch.Generator,
    ) -> Densified:
        """Observe, and grow, prune or reset when it is time; see `Densifier`."""
        s = self.settings
        check_budget(parameters, s.budget)
        if iteration >= s.stop:
            return Densified()
        for info in infos:
            self._observe(len(parameters), info)
        done = Densified()
        if iteration > s.start and iteration % s.every == 0 and self._pull is not None:
            done = self._change(parameters, iteration, generator)
            self._pull = self._seen = None
        if s.reset_every and iteration > 0 and iteration % s.reset_every == 0:
            ceiling = float(torch.logit(torch.tensor(2 * s.prune_opacity)))
            parameters.params["opacities"].clamp_(max=ceiling)
            parameters.forget_moments(None, ("opacities",))
        return done

    def _observe(self, count: int, info: dict[str, Any]) -> None:
        """Add this iteration's gradients; packed and unpacked information of gsplat's layout."""
        gradient = info["means2d"].grad
        if gradient is None:
            raise ValueError("means2d has no gradient: call before_backward, then loss.backward, then step")
        half_frame = gradient.new_tensor([info["width"] / 2, info["height"] / 2]) * info["n_cameras"]
        lengths = (gradient * half_frame).norm(dim=-1)
        visible = (info["radii"] > 0).all(-1)
        ids = info.get("gaussian_ids")
        if lengths.ndim == 1 and ids is not None:
            rows, lengths = ids[visible], lengths[visible]
        else:
            rows, lengths = torch.where(visible)[1], lengths[visible]
        none = lengths.new_zeros(count)
        pull = none.clone() if self._pull is None else self._pull.to(none)
        seen = none.clone() if self._seen is None else self._seen.to(none)
        self._pull = pull.index_add_(0, rows, lengths)
        self._seen = seen.index_add_(0, rows, torch.ones_like(lengths))

    def _change(self, parameters: CloudParameters, iteration: int, generator: torch.Generator) -> Densified:
        """Plan first, then change the rows once, so that not even an intermediate state passes the budget."""
        s = self.settings
        assert self._pull is not None and self._seen is not None
        splats = parameters.activated()
        largest = splats.scales.max(1).values
        pull = self._pull / self._seen.clamp_min(1)
        wants, small = pull > s.gradient, largest <= s.size * parameters.extent_m
        limit = s.prune_size * parameters.extent_m if iteration > s.prune_size_after else float("inf")
        dead = splats.opacities < s.prune_opacity
        gone = dead | ((largest > limit) & ~(wants & ~small))
        grows = wants & ~gone
        room = s.budget - len(parameters) + int(gone.sum())
        if int(grows.sum()) > room:
            ranked = torch.argsort(torch.where(grows, pull, -torch.ones_like(pull)), descending=True, stable=True)
            grows = torch.zeros_like(grows).index_fill_(0, ranked[:room], True)
            gone |= (largest > limit) & ~grows
        cloned, split = (grows & small).nonzero()[:, 0], (grows & ~small).nonzero()[:, 0]
        # All that want to split draw, so that the stream of chance does not depend on the budget; as gsplat's does.
        wide = (wants & ~small).nonzero()[:, 0]
        drawn = normals((2, len(wide), 3), generator).to(splats.means)[:, torch.isin(wide, split)]
        clone_noise = normals((1, len(cloned), 3), generator).to(splats.means) if self._move_clones else None
        stay = splats.means[~gone]
        added = [self._copies(parameters, cloned, clone_noise, stay, 1.0)]
        halves = self._copies(parameters, split, drawn, stay, SPLIT_SHRINK)
        fits = halves["scales"].exp().max(1).values <= limit
        added.append({name: rows[fits] for name, rows in halves.items()})
        if s.share_opacity:
            parameters.params["opacities"][cloned] = shared_opacity(parameters.params["opacities"][cloned])
        keep = ~gone & ~torch.zeros_like(gone).index_fill_(0, split, True)
        parameters.rearrange(keep.nonzero()[:, 0], {k: torch.cat([a[k] for a in added]) for k in added[0]})
        return Densified(cloned=len(cloned), split=len(split), pruned=int(gone.sum()) + int((~fits).sum()))

    def _copies(
        self, parameters: CloudParameters, rows: Tensor, noise: Tensor | None, stay: Tensor, shrink: float
    ) -> dict[str, Tensor]:
        """New rows like those of `rows`, one per noise [B, M, 3] (or one on its parent): first all first ones."""
        repeats = 1 if noise is None else len(noise)
        copies = {name: leaf[rows].repeat(repeats, *[1] * (leaf.ndim - 1)) for name, leaf in parameters.params.items()}
        copies["scales"] = copies["scales"] if shrink == 1.0 else torch.log(copies["scales"].exp() / shrink)
        if self.settings.share_opacity:
            copies["opacities"] = shared_opacity(copies["opacities"])
        if noise is not None and len(rows):
            splats = parameters.activated()
            centres, axes = splats.means[rows], rotation_matrices(splats.rotations_wxyz[rows])
            offsets = torch.einsum("nij,nj,bnj->bni", axes, splats.scales[rows], noise).reshape(-1, 3)
            copies["means"] = copies["means"] + self._place(stay, centres.repeat(repeats, 1), offsets)
        return copies

    def state_dict(self) -> dict[str, Any]:
        """The sums since the last change."""
        pairs = {"pull": self._pull, "seen": self._seen}
        return {name: value.cpu().numpy().copy() for name, value in pairs.items() if value is not None}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with the sums of `state_dict`; on the CPU until the next observation."""
        pull, seen = (torch.from_numpy(np.array(state[k])) if k in state else None for k in ("pull", "seen"))
        self._pull, self._seen = pull, seen


def default_densifier(settings: GradientSettings) -> GradientDensifier:
    """3DGS: clones lie on their parents, halves are drawn from the parent's covariance."""
    return GradientDensifier(settings, lambda _stay, _centres, offsets: offsets, move_clones=False)


def shared_opacity(logits: Tensor) -> Tensor:
    """Logits of two Gaussians that together let through what one with `logits` did: 1 - sqrt(1 - o)."""
    transparent = torch.sigmoid(-logits.double())
    return torch.logit(1 - transparent.sqrt(), 1e-7).to(logits.dtype)


def check_budget(parameters: CloudParameters, budget: int) -> None:
    """Raise ValueError if there are already more Gaussians than the budget."""
    if len(parameters) > budget:
        raise ValueError(f"the cloud has {len(parameters)} Gaussians, more than its budget of {budget}")


def normals(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Standard normal numbers, float32, on the CPU: the same on every device."""
    return torch.randn(shape, generator=generator)


def rotation_matrices(rotations_wxyz: Tensor) -> Tensor:
    """Rotation matrices [N, 3, 3] of unit quaternions [N, 4], w first."""
    w, x, y, z = rotations_wxyz.unbind(1)
    rows = [
        1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
        2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
        2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
    ]  # fmt: skip
    return torch.stack(rows, 1).reshape(-1, 3, 3)
