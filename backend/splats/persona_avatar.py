"""A learned PERSONA avatar as an avatar bundle holds it: Gaussians on the proxy's triangles, and controls.

The network's avatar carries each Gaussian by a weight field of its own; in a bundle a triangle of the proxy does.
Where a Gaussian rests is exact. What the field and the triangle do differently in a pose is small and follows the pose,
as the learned displacement does, so both are distilled together: as places in the triangle's frame.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from backend.context import Context
from backend.human.lbs import apply_transforms, rotation_matrices, vertex_transforms
from backend.splats.bound import BoundSplats, Kind, concatenate, triangle_frames
from backend.splats.distil import Distilled, Errors, distil, errors, limbs_of, regions_of
from backend.splats.persona import OPACITY, Branch, PersonaAvatar, Template
from backend.splats.pose_deformation import BODY_JOINTS, joint_mask, pose_code
from blender_addon.shared.controls import Controls, pack_controls
from blender_addon.shared.skeleton import JOINT_NAMES

OUTLINE = (Kind.HAIR, Kind.MEMBRANE)
"""What stands beside the proxy: the photo-only path's outline layer, which is learned too (`persona_layer`)."""

INSIDE = (Kind.EYE, Kind.TEETH, Kind.MOUTH)
"""What the photo-only path draws finer than the proxy's mesh."""

STAGE = "Distil into controls"
RIDGE = 0.1
"""Of the regression: with a hundredth of it, motions that the avatar was not learned from were worse with controls than
without (measured on an oracle figure: 12 mm against 7; now 4)."""

LIMBS = ((1, 4, 7, 10), (2, 5, 8, 11), (3, 6, 9), (12, 15), (13, 16, 18, 20), (14, 17, 19, 21))
"""Joints that bend together: both legs, the trunk, neck and head, both arms."""

SHAKEN_RAD = 0.25
"""Standard deviation about each axis of every body joint."""

CLOSED, GROWN = 0.45, 1.5
"""A Gaussian is at least so wide, of the mean distance to its neighbours on the mesh; and that at most so wide, of its
size at the beginning, so that edges that were torn apart draw no blots."""

TRIED = 24
"""Poses in which triangles are compared."""

FARTHEST_M = 0.06
"""No control moves a Gaussian farther in the poses that it is distilled from: what seems to is a triangle that turns
over."""

LOOKED_AT = 60
"""Poses in which errors are measured; all of them would take gigabytes."""

EYES = tuple(JOINT_NAMES.index(f"{side}_eye_smplhf") for side in ("left", "right"))


@dataclass(frozen=True)
class Carrier:
    """The proxy that carries the Gaussians.

    Attributes:
        vertices_m: [V, 3] rest proxy with clothes.
        triangles: [T, 3].
        outer: bool [V], vertices that can be seen from outside.
    """

    vertices_m: np.ndarray
    triangles: np.ndarray
    outer: np.ndarray


@dataclass(frozen=True)
class BoundPersona:
    """A learned avatar without its network.

    Attributes:
        splats: All Gaussians, the learned ones first.
        distilled: What the pose does to the learned ones, in the frames of their triangles.
        learned: Number of learned Gaussians.
        fit: Relative errors over the poses that it was distilled from.
        binding_m: RMS distance, over those poses, of the network's avatar without displacement to the same bound to
            triangles, metres.
        moved_m: RMS displacement of the network over those poses, metres.
        made_by: What made the avatar, a line each.
    """

    splats: BoundSplats
    distilled: Distilled
    learned: int
    fit: Errors
    binding_m: float
    moved_m: float
    made_by: tuple[str, ...] = ()

    def controls(self, scale: float = 1.0) -> Controls:
        """The bundle's controls for an avatar that is `scale` times as large as the learned one."""
        rest = len(self.splats) - self.learned
        made = []
        for control in self.distilled.controls():
            deltas = np.pad(control.deltas["position"], ((0, rest), (0, 0))) * np.float32(scale)
            made.append(replace(control, deltas={"position": deltas}))
        return pack_controls(made)


def bind_persona(
    avatar: PersonaAvatar,
    carrier: Carrier,
    outline: BoundSplats,
    poses: np.ndarray,
    controls: int,
    context: Context,
) -> BoundPersona:
    """Bind a learned avatar and distil what its pose does.

    Args:
        avatar: On any device.
        carrier: The proxy that its template was subdivided from.
        outline: The photo-only path's Gaussians, of which eyes and mouth are taken; hair and loose sheets are the
            avatar's layer.
        poses: [P, 55, 3] axis-angle, at least as many as controls.
        controls: At most so many.
        context: Progress and cancelling.

    Raises:
        ValueError: If there are fewer poses than controls.
        Cancelled: If the user cancelled.
    """
    kept = _kept(avatar.template, carrier, outline)
    avatar.asked, avatar.requery_every = (None, 0), 1 << 30  # it does not change any more
    anchors = _anchors(avatar, carrier, kept, poses[:: max(1, len(poses) // TRIED)])
    plain_rest, rest = anchors.places(avatar, np.zeros((55, 3)))
    codes = np.stack([_code(pose) for pose in poses])
    local = np.empty((len(poses), *rest.shape), np.float32)
    looked_at = np.unique(np.linspace(0, len(poses) - 1, min(LOOKED_AT, len(poses))).astype(int))
    plain = np.empty((len(looked_at), *rest.shape), np.float32)
    for number, pose in enumerate(poses):
        context.progress(STAGE, number, len(poses))
        without, moved = anchors.places(avatar, pose)
        local[number] = rest + _shortened(moved - rest, FARTHEST_M)
        plain[looked_at == number] = without
    limbs = limbs_of(regions_of(anchors.weights, anchors.listens))
    distilled = distil(local, codes, rest, limbs, controls, RIDGE)
    moves = anchors.listens.any(1)[:, None]
    found = errors(distilled, np.where(moves, local[looked_at], rest), codes[looked_at])
    inside = outline.select(np.isin(outline.kind, INSIDE))
    parts = [_splats(avatar, anchors, rest, kept), inside]
    if avatar.layer is not None:
        layer = avatar.layer.learned()
        parts.insert(1, replace(layer, offsets_m=rest[len(kept) :]))
    return BoundPersona(
        concatenate(parts), distilled, len(rest), found, _rms(plain - plain_rest), _rms(local[looked_at] - plain)
    )


@dataclass(frozen=True)
class _Anchors:
    """Which triangle carries each of the kept Gaussians, the body's and then the layer's, and what it listens to.

    Attributes:
        triangles: [M]. bary: [M, 3]. weights: [M, B] skinning. listens: [M, 21], zero for what the pose does not move.
        kept: Rows of the avatar's Gaussians. carrier: The proxy.
    """

    triangles: np.ndarray
    bary: np.ndarray
    weights: np.ndarray
    listens: np.ndarray
    kept: np.ndarray
    carrier: Carrier

    def places(self, avatar: PersonaAvatar, pose: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Places in the triangles' frames, two arrays [M, 3] float32: without and with the network's displacement."""
        means, vertices = _posed(avatar, self.carrier, pose)
        faces = self.carrier.triangles[self.triangles]
        frames, _ = triangle_frames(vertices, faces)
        foot = np.einsum("nk,nkc->nc", self.bary, vertices[faces])
        offsets = (means[branch][self.kept] - foot for branch in ("plain", "refined"))
        plain, refined = (np.einsum("nji,nj->ni", frames, off).astype(np.float32) for off in offsets)
        return plain, refined


def _anchors(avatar: PersonaAvatar, carrier: Carrier, kept: np.ndarray, poses: np.ndarray) -> _Anchors:
    template = avatar.template
    triangles = _steadiest(avatar, carrier, poses)[kept]
    mix, rows, faces = template.mix[kept], np.arange(len(kept)), carrier.triangles[triangles]
    bary = np.stack([np.asarray(mix[rows, faces[:, corner]]).ravel() for corner in range(3)], 1)
    weights = template.weights[kept]
    listens = np.where(template.still[kept][:, None], 0, template.listens[kept])
    if avatar.layer is None:
        return _Anchors(triangles, bary, weights, listens, kept, carrier)
    layer = avatar.layer.splats
    on = np.einsum("nk,nkb->nb", layer.bary, template.weights[carrier.triangles[layer.triangles]])
    return _Anchors(
        np.concatenate([triangles, layer.triangles]),
        np.concatenate([bary, layer.bary]),
        np.concatenate([weights, on]),
        np.concatenate([listens, joint_mask(on)]),
        np.concatenate([kept, len(template) + np.arange(len(layer))]),
        carrier,
    )


def _steadiest(avatar: PersonaAvatar, carrier: Carrier, poses: np.ndarray) -> np.ndarray:
    """[N] of the triangles that meet in each point of the template the one that carries its Gaussian best.

    A triangle in an armpit may turn over where the body about it hardly moves, and throw about what stands off it.
    """
    template = avatar.template
    points, triangles = candidates(template, len(carrier.triangles))
    cost, first = np.zeros(len(points)), None
    for pose in (np.zeros((55, 3)), *poses):
        means, vertices = _posed(avatar, carrier, pose)
        frames, _ = triangle_frames(vertices, carrier.triangles)
        off = (means["plain"][: len(template)] - template.mix @ vertices)[points]
        local = np.einsum("nji,nj->ni", frames[triangles], off)
        first = local if first is None else first
        cost += ((local - first) ** 2).sum(1)
    order = np.lexsort([triangles, cost, points])
    best = order[np.flatnonzero(np.diff(points[order], prepend=-1))]
    found = np.zeros(len(template), np.int64)
    found[points[best]] = triangles[best]
    return found


@torch.no_grad()
def _posed(avatar: PersonaAvatar, carrier: Carrier, pose: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Means [N + M, 3] of both branches, and the proxy's vertices [V, 3], float64."""
    template, rest = avatar.template, np.asarray(carrier.vertices_m, np.float64)
    turns = torch.as_tensor(np.asarray(pose, np.float32)).to(avatar.mean_offsets_m)
    posed = avatar.pose(turns, torch.zeros_like(turns[0]))
    weights = template.weights[: len(rest)].astype(np.float64)  # subdivision keeps the proxy's own points first
    vertices = apply_transforms(vertex_transforms(template.joints_m, pose, weights, None, template.twist), rest)
    branches: tuple[Branch, ...] = ("plain", "refined")
    return {branch: _numpy(posed.means_m(branch)).astype(np.float64) for branch in branches}, vertices


def poses_to_distil(poses: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Poses [count, 55, 3] to distil from: of motions [P, 55, 3], of limbs from several of them, and shaken ones.

    What the controls do in a pose unlike all these is a straight line from them, while the network's answer is bounded:
    the wider the poses, the less they part.
    """
    rng = np.random.default_rng(seed)
    poses = np.asarray(poses, np.float64)
    few = count // 4
    real = poses[np.unique(np.linspace(0, len(poses) - 1, count - 2 * few).astype(int))]
    mixed = np.zeros((few, *poses.shape[1:]))
    for limb in LIMBS:
        joints = list(limb)
        mixed[:, joints] = poses[rng.integers(0, len(poses), few)][:, joints]
    shaken = poses[rng.integers(0, len(poses), few)].copy()
    shaken[:, list(BODY_JOINTS)] += rng.normal(0, SHAKEN_RAD, (few, len(BODY_JOINTS), 3))
    return np.concatenate([real, mixed, shaken])


def candidates(template: Template, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Every pair of a point of the template and one of `count` proxy triangles that it lies on: two arrays [E].

    Subdivision appends the parts of all triangles in their order, so that a part's number gives its triangle back.
    """
    parents = np.arange(len(template.triangles)) % count
    pairs = np.unique(template.triangles.ravel() * count + np.repeat(parents, 3))
    return pairs // count, pairs % count


def _shortened(vectors: np.ndarray, longest: float) -> np.ndarray:
    """Vectors [M, 3] of at most that length."""
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors * np.minimum(1, longest / np.maximum(length, 1e-12))


def _code(pose: np.ndarray) -> np.ndarray:
    """[21, 6] float64."""
    return pose_code(rotation_matrices(torch.as_tensor(np.asarray(pose, np.float64)))).numpy()


def _kept(template: Template, carrier: Carrier, outline: BoundSplats) -> np.ndarray:
    """Rows of the template that become Gaussians: not those that the photo-only path draws finer."""
    eye = template.weights[:, list(EYES)].sum(1) > 0.5
    inner = np.asarray(template.mix @ carrier.outer.astype(float)) < 0.5
    drop = np.zeros(len(template), bool)
    if (outline.kind == Kind.EYE).any():
        drop |= eye
    if np.isin(outline.kind, (Kind.TEETH, Kind.MOUTH)).any():
        drop |= inner & ~eye
    return np.flatnonzero(~drop)


def _splats(avatar: PersonaAvatar, anchors: _Anchors, offsets_m: np.ndarray, kept: np.ndarray) -> BoundSplats:
    """The body's Gaussians; all are round, so that their turn is nobody's business."""
    count = len(kept)
    return BoundSplats(
        triangles=anchors.triangles[:count],
        bary=anchors.bary[:count],
        offsets_m=offsets_m[:count],
        rotations_wxyz=np.tile([1.0, 0.0, 0.0, 0.0], (count, 1)),
        scales_m=np.repeat(closed_scales(avatar)[kept, None], 3, 1),
        opacities=np.full(count, OPACITY),
        colours=_numpy(avatar.colours)[kept],
        confidence=np.ones(count),
        kind=np.full(count, Kind.SKIN),
        colour_gate=np.zeros(count),
        shape_gate=np.zeros(count),
        opacity_floor=np.zeros(count),
    )


def closed_scales(avatar: PersonaAvatar) -> np.ndarray:
    """Sizes [N] that leave no gap to the neighbours: learned ones, and a share of the distance where they are smaller.

    What no frame sees closely, flanks under the arms and the ends of hair, may be learned too small for where it went.
    """
    template, learned = avatar.template, _numpy(avatar.scales_m)
    places = template.points_m + _numpy(avatar.mean_offsets_m)
    sides = np.concatenate([template.triangles[:, pair] for pair in ([0, 1], [1, 2], [2, 0])])
    length = np.linalg.norm(places[sides[:, 0]] - places[sides[:, 1]], axis=1)
    total, count = np.zeros(len(template)), np.zeros(len(template))
    for end in (0, 1):
        np.add.at(total, sides[:, end], length)
        np.add.at(count, sides[:, end], 1)
    wanted = np.minimum(CLOSED * total / np.maximum(count, 1), GROWN * _numpy(avatar.first_scales_m))
    return np.maximum(learned, wanted).astype(np.float32)


def _numpy(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy()


def _rms(vectors: np.ndarray) -> float:
    """Root of the mean squared length of [..., 3]."""
    return float(np.sqrt((vectors.astype(np.float64) ** 2).sum(-1).mean()))
