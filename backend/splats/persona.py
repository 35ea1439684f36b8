"""PERSONA's avatar (M. Sim and G. Moon, arXiv 2508.09973): Gaussians on a subdivided body that deform with the pose.

One isotropic Gaussian per vertex, opaque. It has a place and a size of its own, the colour that the photograph and all
frames agree on, an auxiliary colour that generated frames may have for themselves, and the colour of its part in a
labelled picture. What a pose does to clothes is a displacement in the canonical pose (`pose_deformation`); the bones
then carry it, with weights diffused from the skin (`skin_field`), so that points far from the body do not tear. Hair
and what hangs beside the body are a layer of their own (`persona_layer`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from scipy import sparse
from scipy.spatial import cKDTree
from torch import Tensor, nn

from backend.human.lbs import TwistBones, rotation_matrices, skinning_transforms
from backend.human.skin_field import FIRST_FINGER, SkinField
from backend.perception.labels import Label
from backend.raster import Cameras, RasterOutput, SplatTensors, rasterize
from backend.splats.persona_layer import LOGIT_MARGIN, OutlineLayer, PosedLayer
from backend.splats.persona_zones import IN_FACE, Zone, find_zones, mixed
from backend.splats.pose_deformation import DeformationSettings, PoseDeformation, joint_mask, pose_code
from blender_addon.shared.skeleton import JOINT_NAMES

OPACITY = 0.999
"""Fixed. The paper's is 1; a rasteriser needs a rest of light for the gradient."""

EXPRESSIVE = tuple(JOINT_NAMES.index(name) for name in ("jaw", "left_eye_smplhf", "right_eye_smplhf"))
NEIGHBOURS = 3
"""A Gaussian begins as wide as the mean distance to so many others (the released code's knn-3)."""

PART_COLOURS = {Label.NONE: (0.0, 0.0, 0.0), Label.SKIN: (1.0, 0.0, 0.0), Label.HAIR: (0.0, 1.0, 0.0),
                Label.UPPER: (0.0, 0.0, 1.0), Label.LOWER: (1.0, 1.0, 0.0), Label.SHOES: (0.0, 1.0, 1.0),
                Label.OTHER: (1.0, 0.0, 1.0)}  # fmt: skip
"""Labels as colours: pictures of parts are compared like pictures."""

Branch = Literal["plain", "refined"]


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
        zones: uint8 [N] of `Zone`.
        coarse: int [T', 3] the triangles before subdivision, of the first points.
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
    zones: np.ndarray
    coarse: np.ndarray

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
    regions: np.ndarray | None = None,
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
        regions: [V] of `backend.human.model.Region`; None where the body has none: no mouth is known then.
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
    zones = mixed(find_zones(weights, moved, np.asarray(triangles), regions), mix)
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
        still=keeps | (np.asarray(mix @ moved.astype(float)) > 0) | (zones == Zone.HAND),
        listens=joint_mask(fine, hops),
        zones=zones,
        coarse=np.asarray(triangles, np.int64),
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
    """An avatar in a pose.

    Attributes:
        plain_m: [N, 3] means in the world, without the pose's displacement.
        refined_m: [N, 3] with it.
        displacement_m: [N, 3] metres, in the canonical pose.
        template_m: [N, 3] where the template's own points are in this pose; no gradient.
        layer: The outline's Gaussians, or None.
    """

    plain_m: Tensor
    refined_m: Tensor
    displacement_m: Tensor
    template_m: Tensor
    layer: PosedLayer | None = None

    def means_m(self, branch: Branch) -> Tensor:
        """[N + M, 3] of the body's Gaussians and then of the layer's."""
        body = self.plain_m if branch == "plain" else self.refined_m
        if self.layer is None:
            return body
        return torch.cat([body, self.layer.plain_m if branch == "plain" else self.layer.refined_m])


class PersonaAvatar(nn.Module):
    """What is learned of a person."""

    points_m: Tensor
    joints_m: Tensor
    surface_weights: Tensor
    action_offsets_m: Tensor
    movers: Tensor
    network_points_m: Tensor
    listens: Tensor
    faces: Tensor
    own_weights: Tensor
    first_scales_m: Tensor
    first_colours: Tensor
    in_face: Tensor
    in_eyes: Tensor
    in_hands: Tensor
    layer: OutlineLayer | None
    layer_part_logits: nn.Parameter | None

    def __init__(
        self,
        template: Template,
        field: SkinField,
        colours: np.ndarray,
        deformation: DeformationSettings | None = None,
        requery_every: int = 1,
        *,
        own_colours: np.ndarray | None = None,
        labels: np.ndarray | None = None,
        layer: OutlineLayer | None = None,
    ) -> None:
        """Begin on the template.

        Args:
            template: The body.
            field: Weights off its surface.
            colours: [N, 3] display sRGB 0..1, as `FirstTexture.colours`.
            deformation: Sizes of the network.
            requery_every: The field is asked again after so many calls of `pose`; 1 as published. Points move little
                from one step to the next, and on a processor the question costs more than the drawing.
            own_colours: [N, 3] as `FirstTexture.own_colours`; None begins with `colours`.
            labels: uint8 [N] of `Label`, what labelled pictures show the points as; None begins with grey.
            layer: Hair and loose clothes, or None.
        """
        super().__init__()
        self.template, self.field, self.requery_every = template, field, requery_every
        self.layer = layer
        points = torch.as_tensor(template.points_m)
        first = torch.as_tensor(np.array(colours, np.float32))
        self.mean_offsets_m = nn.Parameter(torch.zeros_like(points))
        scales = torch.as_tensor(_first_scales(template.points_m))
        self.log_scales = nn.Parameter(scales.log())
        self.colour_logits = nn.Parameter(_logits(first))
        own = first if own_colours is None else torch.as_tensor(np.array(own_colours, np.float32))
        self.own_colour_logits = nn.Parameter(_logits(own))
        self.part_logits = nn.Parameter(_part_logits(labels, len(template)))
        self.layer_part_logits = None if layer is None else nn.Parameter(_part_logits(layer.labels, len(layer)))
        self.deformation = PoseDeformation(deformation)
        movers = np.flatnonzero(~template.still)
        middle = points.mean(0)
        for name, values in (
            ("points_m", points),
            ("joints_m", torch.as_tensor(template.joints_m)),
            ("surface_weights", torch.as_tensor(template.weights)),
            ("action_offsets_m", torch.as_tensor(template.action_offsets_m)),
            ("movers", torch.as_tensor(movers)),
            ("network_points_m", points[torch.as_tensor(movers)] - middle),
            ("listens", torch.as_tensor(template.listens[movers])),
            ("faces", torch.as_tensor(template.triangles)),
            ("own_weights", torch.as_tensor(template.own_weights)[:, None]),
            ("first_scales_m", scales),
            ("first_colours", first),
            ("in_face", _column(np.isin(template.zones, IN_FACE), layer)),
            ("in_eyes", _column(template.zones == Zone.EYE, layer)),
            ("in_hands", _column(template.zones == Zone.HAND, layer)),
        ):
            self.register_buffer(name, values, persistent=False)
        self.deforms = True
        self.asked: tuple[Tensor | None, int] = (None, 0)  # the field's last answer, and how often it was needed

    def __len__(self) -> int:
        """Number of Gaussians, those of the layer too."""
        return len(self.template) + (0 if self.layer is None else len(self.layer))

    @property
    def scales_m(self) -> Tensor:
        """[N] standard deviations of the body's Gaussians."""
        return self.log_scales.exp()

    @property
    def colours(self) -> Tensor:
        """[N, 3] display sRGB 0..1 of the body's Gaussians, which all frames share."""
        return self.colour_logits.sigmoid()

    @property
    def own_colours(self) -> Tensor:
        """[N, 3] display sRGB 0..1 of the body's Gaussians, which only generated frames have."""
        return self.own_colour_logits.sigmoid()

    def all_colours(self, own: bool = False) -> Tensor:
        """[N + M, 3] shared colours, or own ones, of the body's Gaussians and then of the layer's."""
        body = self.own_colour_logits if own else self.colour_logits
        if self.layer is None:
            return body.sigmoid()
        return torch.cat([body, self.layer.own_colour_logits if own else self.layer.colour_logits]).sigmoid()

    def all_first_colours(self) -> Tensor:
        """[N + M, 3] what it began with; nothing is learned of it."""
        return self.first_colours if self.layer is None else torch.cat([self.first_colours, self.layer.first_colours])

    def all_parts(self) -> Tensor:
        """[N + M, 3] colours in pictures of parts."""
        if self.layer_part_logits is None:
            return self.part_logits.sigmoid()
        return torch.cat([self.part_logits, self.layer_part_logits]).sigmoid()

    def all_normals(self, posed: PosedPersona, branch: Branch) -> Tensor:
        """[N + M, 3] unit normals in the world."""
        normals = vertex_normals(posed.plain_m if branch == "plain" else posed.refined_m, self.faces)
        return normals if posed.layer is None else torch.cat([normals, posed.layer.normals])

    def pose(self, pose: Tensor, translation_m: Tensor, actions: Tensor | None = None) -> PosedPersona:
        """Where the Gaussians are.

        Args:
            pose: [55, 3] axis-angle; the network's view of it gets no gradient.
            translation_m: [3] added last.
            actions: [A] facial actions; None for a neutral face.
        """
        surface = self.points_m
        if actions is not None and len(self.action_offsets_m):
            surface = surface + torch.einsum("a,anc->nc", actions, self.action_offsets_m)
        canonical = surface + self.mean_offsets_m
        bones = skinning_transforms(self.joints_m, pose, self.template.twist).reshape(-1, 12)
        matrices = (self.skin_weights(canonical) @ bones).reshape(-1, 3, 4)
        turns, shifts = matrices[:, :, :3], matrices[:, :, 3] + translation_m
        plain = (turns * canonical[:, None]).sum(2) + shifts
        displacement, refined = torch.zeros_like(plain), plain
        if self.deforms and len(self.movers):
            code = pose_code(rotation_matrices(pose.detach()))
            moved = self.deformation(self.network_points_m, code, self.listens)
            displacement = displacement.index_copy(0, self.movers, moved)
            refined = plain + (turns * displacement[:, None]).sum(2)
        with torch.no_grad():
            template = (turns * surface[:, None]).sum(2) + shifts
        layer = None
        if self.layer is not None:  # on the proxy itself, which is what carries it in the bundle
            rows = self.layer.corners
            carried = (self.surface_weights[rows] @ bones).reshape(-1, 3, 4)
            corners = (carried[:, :, :3] * surface[rows][:, None]).sum(2) + carried[:, :, 3] + translation_m
            layer = self.layer.pose(corners, displacement[rows])
        return PosedPersona(plain, refined, displacement, template, layer)

    @torch.no_grad()
    def skin_weights(self, canonical_m: Tensor) -> Tensor:
        """[N, bones] of Gaussians at `canonical_m` [N, 3]; no gradient passes through the question."""
        weights, calls = self.asked
        if weights is None or calls % self.requery_every == 0:
            weights = torch.zeros_like(self.surface_weights)
            weights[:, self.field.bones] = self.field.around(canonical_m, self.scales_m)
            weights = torch.where(self.own_weights, self.surface_weights, weights)
        self.asked = (weights, calls + 1)
        return weights

    def splats(self, posed: PosedPersona, branch: Branch) -> SplatTensors:
        """All N + M Gaussians in a pose, for drawing."""
        means = posed.means_m(branch)
        scales = self.scales_m[:, None].expand(-1, 3)
        turns = _unturned(len(self.template), means)
        opacities = torch.full_like(means[: len(self.template), 0], OPACITY)
        if posed.layer is not None and self.layer is not None:
            scales = torch.cat([scales, posed.layer.scales_m])
            turns = torch.cat([turns, posed.layer.rotations_wxyz])
            opacities = torch.cat([opacities, self.layer.opacities])
        return SplatTensors(means, turns, scales, opacities)

    @torch.no_grad()
    def template_splats(self, posed: PosedPersona) -> SplatTensors:
        """All N + M Gaussians as if the body's had stayed the template's: the mesh, drawn like the avatar itself."""
        whole = self.splats(posed, "plain")
        means, scales = whole.means.detach().clone(), whole.scales.detach().clone()
        means[: len(self.template)] = posed.template_m
        scales[: len(self.template)] = self.first_scales_m[:, None]
        return SplatTensors(means, whole.rotations_wxyz.detach(), scales, whole.opacities)

    def picture(
        self, posed: PosedPersona, cameras: Cameras, branch: Branch = "refined", own: bool = False, behind: float = 1.0
    ) -> Tensor:
        """[3, H, W] display sRGB before a grey of `behind` (1: white)."""
        background = torch.full((3,), behind).to(posed.plain_m)
        drawn = rasterize(
            self.splats(posed, branch), cameras, features=self.all_colours(own), background=background,
            outputs=("features",),
        )  # fmt: skip
        assert drawn.features is not None
        return drawn.features[0]

    def draw(
        self, means_m: Tensor, cameras: Cameras, features: Tensor, geometry_gradient: bool | list[bool] = True
    ) -> RasterOutput:
        """Features [N, F] and alpha of the body's Gaussians alone at `means_m` [N, 3]."""
        scales = self.scales_m[:, None].expand(-1, 3)
        opacities = torch.full_like(means_m[:, 0], OPACITY)
        splats = SplatTensors(means_m, _unturned(len(means_m), means_m), scales, opacities)
        return rasterize(
            splats, cameras, features=features, outputs=("features", "alpha"), geometry_gradient=geometry_gradient
        )


def vertex_normals(points_m: Tensor, faces: Tensor) -> Tensor:
    """Unit normals [N, 3] of a mesh's vertices; faces [T, 3]."""
    a, b, c = points_m[faces].unbind(1)
    face = torch.linalg.cross(b - a, c - a)
    total = torch.zeros_like(points_m)
    for corner in range(3):
        total = total.index_add(0, faces[:, corner], face)
    return total / ((total * total).sum(1, keepdim=True) + 1e-24).sqrt()


def part_colours(labels: Tensor) -> Tensor:
    """[..., 3] of labels [...]."""
    table = torch.tensor([PART_COLOURS[label] for label in Label], device=labels.device)
    return table[labels.long()]


def _part_logits(labels: np.ndarray | None, count: int) -> Tensor:
    return torch.zeros(count, 3) if labels is None else _logits(part_colours(torch.as_tensor(np.asarray(labels))))


def _logits(colours: Tensor) -> Tensor:
    return torch.logit(colours.clamp(LOGIT_MARGIN, 1 - LOGIT_MARGIN))


def _column(chosen: np.ndarray, layer: OutlineLayer | None) -> Tensor:
    """[N + M, 1] 1 where a point of the body is chosen; the layer never is."""
    body = torch.as_tensor(chosen).float()
    return (body if layer is None else torch.cat([body, torch.zeros(len(layer))]))[:, None]


def _unturned(count: int, like: Tensor) -> Tensor:
    turns = like.new_zeros(count, 4)
    turns[:, 0] = 1
    return turns


def _first_scales(points_m: np.ndarray) -> np.ndarray:
    """[N] float32: mean distance to the nearest others, at least a tenth of a millimetre."""
    distance = cKDTree(points_m).query(points_m, k=NEIGHBOURS + 1)[0][:, 1:]
    return np.maximum(distance.mean(1), 1e-4).astype(np.float32)
