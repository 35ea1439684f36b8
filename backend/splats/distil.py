"""A network's displacements as few controls that Blender evaluates by itself.

In each region of the body the displacements are fitted by reduced-rank regression: as a linear function of the local
rotations of the joints that the region listens to, and of all such functions of a given rank the nearest (Izenman,
"Reduced-rank regression for the multivariate linear model", 1975). One rank is one control: a delta per Gaussian, and a
weight that follows the pose (blender_addon/shared/controls.py). Regions share out the number of controls by what each
further one explains.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from backend.splats.pose_deformation import BODY_JOINTS
from blender_addon.shared.controls import Control
from blender_addon.shared.skeleton import JOINT_NAMES

RIDGE = 1e-3
"""Of the regression, relative to the mean square of the poses' numbers: what few poses show is not believed."""


@dataclass(frozen=True)
class Region:
    """A part of the body.

    Attributes:
        name: Of its controls.
        members: int [M], Gaussians.
        joints: int [J], rows of the pose code that it listens to.
    """

    name: str
    members: np.ndarray
    joints: np.ndarray


@dataclass(frozen=True)
class Distilled:
    """Controls in place of a network.

    Attributes:
        rest_m: float32 [N, 3], the displacement of the rest pose, which every pose has.
        regions: In the order of the controls below.
        owners: int [K], region of each control.
        deltas_m: K arrays [M, 3] float32, for the region's members.
        codes: float64 [K, 21, 6], weights on the pose code.
    """

    rest_m: np.ndarray
    regions: tuple[Region, ...]
    owners: np.ndarray
    deltas_m: tuple[np.ndarray, ...]
    codes: np.ndarray

    def displacements(self, codes: np.ndarray) -> np.ndarray:
        """Displacements [P, N, 3], metres, in poses with codes [P, 21, 6]."""
        made = np.repeat(self.rest_m[None].astype(np.float64), len(codes), 0)
        for owner, delta, weights in zip(self.owners, self.deltas_m, self.codes, strict=True):
            made[:, self.regions[owner].members] += np.einsum("pjk,jk->p", codes, weights)[:, None, None] * delta
        return made

    def controls(self) -> list[Control]:
        """As the bundle's controls: position deltas in the rest pose's own axes, metres, one per Gaussian.

        They still have to be turned into the triangles' frames (`backend.splats.controls.to_triangle_frames`).
        """
        made = []
        for number, (owner, delta, weights) in enumerate(zip(self.owners, self.deltas_m, self.codes, strict=True)):
            region = self.regions[owner]
            dense = np.zeros((len(self.rest_m), 3), np.float32)
            dense[region.members] = delta
            pose = np.zeros((len(JOINT_NAMES), 6))
            pose[list(BODY_JOINTS)] = weights
            name = f"Pose {number + 1:02d} {region.name}"
            made.append(Control(name, {"position": dense}, group="Pose", description="Follows the pose", pose=pose))
        return made


@dataclass(frozen=True)
class Errors:
    """Relative RMS errors of displacements, each against the RMS of the network's own.

    Attributes:
        truncation: What no controls with these deltas could show, whatever their weights.
        coefficients: What weights that are linear in the pose lose of what these deltas could show.
        total: Of both together.
    """

    truncation: float
    coefficients: float
    total: float


def regions_of(weights: np.ndarray, listens: np.ndarray) -> tuple[Region, ...]:
    """Gaussians by the joint that carries them most; what deforms nothing has no region.

    Args:
        weights: [N, 55 or more] skinning weights.
        listens: [N, 21] see `joint_mask`.
    """
    first = weights[:, : len(JOINT_NAMES)].argmax(1)
    made = []
    for joint in (0, *BODY_JOINTS):
        members = np.flatnonzero((first == joint) & (listens.sum(1) > 0))
        if len(members):
            made.append(Region(JOINT_NAMES[joint].replace("_", " "), members, np.flatnonzero(listens[members[0]])))
    return tuple(made)


_LEG, _ARM = ("hip", "knee", "ankle", "foot"), ("collar", "shoulder", "elbow", "wrist")
LIMBS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("trunk", ("pelvis", "spine", "neck", "head")),
    *((f"{side} leg", tuple(f"{side} {part}" for part in _LEG)) for side in ("left", "right")),
    *((f"{side} arm", tuple(f"{side} {part}" for part in _ARM)) for side in ("left", "right")),
)
"""Limbs, and how the names of their regions begin."""


def limbs_of(regions: tuple[Region, ...]) -> tuple[Region, ...]:
    """Regions joined to five limbs, which listen to all that their parts listen to.

    Neighbours move alike: few controls show more when one spans a limb than when each has a joint's own Gaussians.
    """
    made = []
    for name, begins in LIMBS:
        parts = [region for region in regions if region.name.startswith(begins)]
        if parts:
            members = np.sort(np.concatenate([part.members for part in parts]))
            made.append(Region(name, members, np.unique(np.concatenate([part.joints for part in parts]))))
    return tuple(made)


def distil(
    displacements_m: np.ndarray,
    codes: np.ndarray,
    rest_m: np.ndarray,
    regions: tuple[Region, ...],
    controls: int,
    ridge: float = RIDGE,
) -> Distilled:
    """Fit.

    Args:
        displacements_m: [P, N, 3] of the network in P poses.
        codes: [P, 21, 6] of those poses, see `pose_code`; zero is the rest pose.
        rest_m: [N, 3] of the network in the rest pose.
        regions: Of the Gaussians.
        controls: How many there may be in all.
        ridge: See `RIDGE`; more of it keeps the controls small in poses unlike all of these.

    Raises:
        ValueError: If there are fewer poses than controls.
    """
    if len(codes) < controls:
        raise ValueError(f"{controls} controls cannot be learned from {len(codes)} poses")
    found: list[tuple[float, int, np.ndarray, np.ndarray]] = []
    for owner, region in enumerate(regions):
        moved = displacements_m[:, region.members] - rest_m[region.members]
        seen = codes[:, region.joints].reshape(len(codes), -1).astype(np.float64)
        for power, delta, weights in _ranks(moved.reshape(len(codes), -1).astype(np.float64), seen, controls, ridge):
            full = np.zeros(codes.shape[1:])
            full[region.joints] = weights.reshape(-1, codes.shape[2])
            found.append((power, owner, delta.reshape(-1, 3).astype(np.float32), full))
    found.sort(key=lambda each: -each[0])
    kept = sorted(found[:controls], key=lambda each: (each[1], -each[0]))
    return Distilled(
        np.asarray(rest_m, np.float32),
        regions,
        np.array([each[1] for each in kept], np.int64),
        tuple(each[2] for each in kept),
        np.array([each[3] for each in kept]).reshape(len(kept), *codes.shape[1:]),
    )


def _ranks(moved: np.ndarray, seen: np.ndarray, most: int, ridge: float) -> list[tuple[float, np.ndarray, np.ndarray]]:
    """Reduced-rank regression of `moved` [P, D] on `seen` [P, F]: explained power, delta [D], weights [F] per rank."""
    floor = ridge * float((seen**2).mean() or 1.0) * len(seen)
    normal = seen.T @ seen + floor * np.eye(seen.shape[1])
    slopes = np.linalg.solve(normal, seen.T @ moved)
    # The nearest function of lower rank: principal directions of the fitted values, found in the small space of F.
    root = np.linalg.cholesky(normal)
    left, sizes, right = np.linalg.svd(root.T @ slopes, full_matrices=False)
    into = np.linalg.solve(root.T, left)
    made = []
    for rank in range(min(most, int((sizes > 1e-9 * max(sizes[0], 1e-30)).sum()))):
        made.append((float(sizes[rank] ** 2), right[rank] * sizes[rank], into[:, rank]))
    return made


def errors(distilled: Distilled, displacements_m: np.ndarray, codes: np.ndarray) -> Errors:
    """How far the controls are from the network in poses [P, 21, 6] with its displacements [P, N, 3]."""
    size = np.sqrt((displacements_m.astype(np.float64) ** 2).mean())
    wanted = displacements_m - distilled.rest_m
    best = np.zeros_like(wanted, dtype=np.float64)
    for owner, region in enumerate(distilled.regions):
        own = [delta.ravel() for at, delta in zip(distilled.owners, distilled.deltas_m, strict=True) if at == owner]
        if own:
            basis, _ = np.linalg.qr(np.stack(own, 1).astype(np.float64))
            flat = wanted[:, region.members].reshape(len(codes), -1)
            best[:, region.members] = (flat @ basis @ basis.T).reshape(len(codes), -1, 3)
    made = distilled.displacements(codes) - distilled.rest_m
    rms = [
        float(np.sqrt(((a - b) ** 2).mean()) / max(size, 1e-12))
        for a, b in ((wanted, best), (best, made), (wanted, made))
    ]
    return Errors(*rms)
