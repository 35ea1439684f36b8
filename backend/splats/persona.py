"""PERSONA's avatar (M. Sim and G. Moon, arXiv 2508.09973): Gaussians on a subdivided body that deform with the pose.

One isotropic Gaussian per vertex, opaque. It has a place and a size of its own, the colour that the photograph and all
frames agree on, and an auxiliary colour that generated frames may have for themselves. What a pose does to clothes is
a displacement in the canonical pose (`pose_deformation`); the bones then carry it, with weights diffused from the skin
(`skin_field`), so that points far from the body do not tear.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy import sparse
from scipy.spatial import cKDTree
from torch import Tensor, nn

from backend.human.lbs import TwistBones, rotation_matrices, skinning_transforms
from backend.human.skin_field import FIRST_FINGER, SkinField
from backend.raster import Cameras, RasterOutput, SplatTensors, rasterize
from backend.splats.pose_deformation import DeformationSettings, PoseDeformation, joint_mask, pose_code
from blender_addon.shared.skeleton import JOINT_NAMES

OPACITY = 0.999
"""Fixed. The paper's is 1; a rasteriser needs a rest of light for the gradient."""

EXPRESSIVE = tuple(JOINT_NAMES.index(name) for name in ("jaw", "left_eye_smplhf", "right_eye_smplhf"))
NEIGHBOURS = 3
"""A Gaussian begins as wide as the mean distance to so many others (the released code's knn-3)."""

LOGIT_MARGIN = 0.02
"""Colours begin at least so far from black and from full, where a sigmoid has no slope."""


@dataclass(frozen=True)
class Template:
    """The body that the Gaussians sit on, in its rest (T) pose.

    Attributes:
        points_m: float32 [N, 3]. triangles: int [T, 3]. mix: [N, V] of the mesh's vertices.
        weights: float32 [N, 55 or more] skinning weights of the surface; helper bones behind the joints.
        joints_m: float32 [55, 3]. twist: The helper bones, or None.
        action_offsets_m: float32 [A, N, 3] of the facial actions.
        own_weights: bool [N], hands and face, which keep the surface's weights.
        still: bool [N], hands, expressive face and eyes, which the pose does not deform.
        listens: float32 [N, 21], see `joint_mask`.
    """

    points_m: np.ndarray
    triangles: np.ndarray
    mix: sparse.csr_matrix
    weights: np.ndarray
    joints_m: np.ndarray
    twist: TwistBones | None
    action_offsets_m: np.ndarray
    own_weights: np.ndarray
    still: np.ndarray
    listens: np.ndarray

    def __len__(self) -> int:
        """Number of Gaussians."""
        return len(self.points_m)


def make_template(
    vertices_m: np.ndarray,
    triangles: np.ndarray,
    weights: np.ndarray,
    joints_m: np.ndarray,
    *,
    twist: TwistBones | None = None,
    action_offsets_m: np.ndarray | None = None,
    subdivisions: int = 2,
    hops: int = DeformationSettings.hops,
) -> Template:
    """Subdivide a rest mesh.

    Args:
        vertices_m: [V, 3].
        triangles: [T, 3].
        weights: [V, 55 or more].
        joints_m: [55, 3].
        twist: Helper bones; their columns stand behind the joints'.
        action_offsets_m: [A, V, 3] of the facial actions; None for none.
        subdivisions: Every one splits each triangle into four (the paper: 2).
        hops: See `joint_mask`.
    """
    mix, faces = _subdivided(len(vertices_m), np.asarray(triangles, np.int64), subdivisions)
    fine = np.asarray(mix @ weights, np.float32)
    bones = weights[:, : len(JOINT_NAMES)]
    hand_or_face = bones[:, FIRST_FINGER:].sum(1) + bones[:, list(EXPRESSIVE)].sum(1)
    offsets = np.zeros((0, len(vertices_m), 3)) if action_offsets_m is None else action_offsets_m
    moved = np.linalg.norm(offsets, axis=-1).max(0, initial=0) > 5e-4
    keeps = np.asarray(mix @ (hand_or_face > 0.3).astype(float)) > 0
    return Template(
        points_m=np.asarray(mix @ vertices_m, np.float32),
        triangles=faces,
        mix=mix,
        weights=fine,
        joints_m=np.asarray(joints_m, np.float32),
        twist=twist,
        action_offsets_m=np.stack([mix @ offset for offset in offsets]).astype(np.float32)
        if len(offsets)
        else np.zeros((0, mix.shape[0], 3), np.float32),
        own_weights=keeps,
        still=keeps | (np.asarray(mix @ moved.astype(float)) > 0),
        listens=joint_mask(fine, hops),
    )


def _subdivided(count: int, triangles: np.ndarray, times: int) -> tuple[sparse.csr_matrix, np.ndarray]:
    """Mixtures of the first vertices [N, V] and triangles after splitting every triangle in four `times` times."""
    mix = sparse.identity(count, format="csr")
    for _ in range(times):
        a, b, c = triangles.T
        sides = np.sort(np.concatenate([np.stack(pair, 1) for pair in ((a, b), (b, c), (c, a))]), 1)
        edges, inverse = np.unique(sides, axis=0, return_inverse=True)
        ab, bc, ca = inverse.reshape(3, -1) + mix.shape[0]
        rows = np.repeat(np.arange(len(edges)), 2)
        halves = sparse.csr_matrix((np.full(len(rows), 0.5), (rows, edges.ravel())), (len(edges), mix.shape[0]))
        triangles = np.concatenate([np.stack(t, 1) for t in ((a, ab, ca), (ab, b, bc), (ca, bc, c), (ab, bc, ca))])
        mix = sparse.vstack([mix, halves @ mix]).tocsr()
    return mix, triangles


@dataclass(frozen=True)
class PosedPersona:
    """Means [N, 3] in the world: without and with the pose's displacement, and that displacement [N, 3], metres."""

    plain_m: Tensor
    refined_m: Tensor
    displacement_m: Tensor


class PersonaAvatar(nn.Module):
    """What is learned of a person."""

    def __init__(
        self,
        template: Template,
        field: SkinField,
        colours: np.ndarray,
        deformation: DeformationSettings | None = None,
        requery_every: int = 1,
    ) -> None:
        """Begin on the template.

        Args:
            template: The body.
            field: Weights off its surface.
            colours: [N, 3] display sRGB 0..1.
            deformation: Sizes of the network.
            requery_every: The field is asked again after so many calls of `pose`; 1 as published. Points move little
                from one step to the next, and on a processor the question costs more than the drawing.
        """
        super().__init__()
        self.template, self.field, self.requery_every = template, field, requery_every
        points = torch.as_tensor(template.points_m)
        self.mean_offsets_m = nn.Parameter(torch.zeros_like(points))
        self.log_scales = nn.Parameter(torch.as_tensor(_first_scales(template.points_m)).log())
        logits = torch.logit(torch.as_tensor(colours, dtype=torch.float32).clamp(LOGIT_MARGIN, 1 - LOGIT_MARGIN))
        self.colour_logits = nn.Parameter(logits)
        self.own_colour_logits = nn.Parameter(logits.clone())
        self.deformation = PoseDeformation(deformation)
        for name, values in (
            ("points_m", points),
            ("joints_m", torch.as_tensor(template.joints_m)),
            ("surface_weights", torch.as_tensor(template.weights)),
            ("action_offsets_m", torch.as_tensor(template.action_offsets_m)),
            ("moves", torch.as_tensor(~template.still).float()[:, None]),
            ("listens", torch.as_tensor(template.listens)),
            ("faces", torch.as_tensor(template.triangles)),
        ):
            self.register_buffer(name, values, persistent=False)
        self._middle = points.mean(0)
        sides = template.points_m[template.triangles]
        self.mean_edge_m = float(np.linalg.norm(sides - np.roll(sides, 1, axis=1), axis=-1).mean())
        self.deforms = True
        self.asked: tuple[Tensor | None, int] = (None, 0)  # the field's last answer, and how often it was needed

    @property
    def scales_m(self) -> Tensor:
        """[N] standard deviations."""
        return self.log_scales.exp()

    @property
    def colours(self) -> Tensor:
        """[N, 3] display sRGB 0..1, which all frames share."""
        return self.colour_logits.sigmoid()

    @property
    def own_colours(self) -> Tensor:
        """[N, 3] display sRGB 0..1, which only generated frames have."""
        return self.own_colour_logits.sigmoid()

    def pose(self, pose: Tensor, translation_m: Tensor, actions: Tensor | None = None) -> PosedPersona:
        """Where the Gaussians are.

        Args:
            pose: [55, 3] axis-angle; the network's view of it gets no gradient.
            translation_m: [3] added last.
            actions: [A] facial actions; None for a neutral face.
        """
        canonical = self.points_m + self.mean_offsets_m
        if actions is not None and len(self.action_offsets_m):
            canonical = canonical + torch.einsum("a,anc->nc", actions, self.action_offsets_m)
        code = pose_code(rotation_matrices(pose.detach()))
        displacement = torch.zeros_like(canonical)
        if self.deforms:
            displacement = self.moves * self.deformation(self.points_m - self._middle.to(pose), code, self.listens)
        bones = skinning_transforms(self.joints_m, pose, self.template.twist)
        matrices = (self.skin_weights(canonical) @ bones.reshape(-1, 12)).reshape(-1, 3, 4)
        plain, refined = (
            (matrices[:, :, :3] @ at[..., None])[..., 0] + matrices[:, :, 3] + translation_m
            for at in (canonical, canonical + displacement)
        )
        return PosedPersona(plain, refined, displacement)

    @torch.no_grad()
    def skin_weights(self, canonical_m: Tensor) -> Tensor:
        """[N, bones] of Gaussians at `canonical_m` [N, 3]; no gradient passes through the question."""
        weights, calls = self.asked
        if weights is None or calls % self.requery_every == 0:
            weights = torch.zeros_like(self.surface_weights)
            weights[:, self.field.bones] = self.field.around(canonical_m, self.scales_m)
            keeps = torch.as_tensor(self.template.own_weights, device=weights.device)[:, None]
            weights = torch.where(keeps, self.surface_weights, weights)
        self.asked = (weights, calls + 1)
        return weights

    def draw(
        self, means_m: Tensor, cameras: Cameras, features: Tensor, geometry_gradient: bool | list[bool] = True
    ) -> RasterOutput:
        """Features [N, F] and alpha of Gaussians at `means_m` [N, 3]."""
        scales = self.scales_m[:, None].expand(-1, 3)
        turn = torch.zeros_like(means_m[:, :1])
        splats = SplatTensors(
            means_m, torch.cat([turn + 1, turn, turn, turn], 1), scales, torch.full_like(means_m[:, 0], OPACITY)
        )
        return rasterize(
            splats, cameras, features=features, outputs=("features", "alpha"), geometry_gradient=geometry_gradient
        )


def _first_scales(points_m: np.ndarray) -> np.ndarray:
    """[N] float32: mean distance to the nearest others, at least a tenth of a millimetre."""
    distance = cKDTree(points_m).query(points_m, k=NEIGHBOURS + 1)[0][:, 1:]
    return np.maximum(distance.mean(1), 1e-4).astype(np.float32)
