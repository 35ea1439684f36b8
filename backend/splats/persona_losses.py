"""What one training frame asks of a PERSONA avatar: the paper's terms with the released code's weights.

Two branches are drawn for every frame: the Gaussians as the bones carry them (plain), and with the pose's displacement
(refined). Geometry is mostly learned from depth, normals and masks, colour mostly from the plain branch: a video
model's texture swims, its outlines do not.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from backend.raster import Cameras
from backend.splats.cloud_losses import depth_loss, l1_loss, mask_loss, normal_loss, photometric_loss
from backend.splats.mesh_laplacian import Laplacian, laplacian_loss
from backend.splats.perceptual import PerceptualLoss
from backend.splats.persona import PersonaAvatar, PosedPersona


@dataclass(frozen=True)
class TrainingFrame:
    """One picture of the person in a known pose.

    Attributes:
        image: float32 [3, H, W] display sRGB. mask: float32 [H, W], 0..1.
        pose: [55, 3] axis-angle. translation_m: [3]. actions: [A] facial actions.
        cameras: One camera of the picture's size.
        captured: A photograph; otherwise a model made it.
        depth: [H, W] any unit, 0 where unknown; None where no estimator is installed.
        normals: [3, H, W] world axes, zero where unknown; None where no estimator is installed.
        seam: [H, W] 0 or 1: where the photograph's colours end; None for generated frames.
    """

    image: Tensor
    mask: Tensor
    pose: Tensor
    translation_m: Tensor
    actions: Tensor
    cameras: Cameras
    captured: bool
    depth: Tensor | None = None
    normals: Tensor | None = None
    seam: Tensor | None = None


PUBLISHED_EDGE_M = 0.005
"""Mean edge of SMPL-X's mesh after two subdivisions, by estimate: the Laplacians' weights were chosen on it."""


@dataclass(frozen=True)
class Side:
    """Weights of one kind of frame (methods_avatars: table of section 1.4)."""

    image: float
    refined_image: float
    own_refined_image: float
    mask: float
    geometry: float
    seam: float


@dataclass(frozen=True)
class PersonaWeights:
    """Weights of all terms.

    Attributes:
        captured, generated: By kind of frame.
        in_seam: Factor on the picture's terms inside the seam band of a captured frame.
        perceptual: Of the perceptual term beside 0.8 L1 + 0.2 (1 - SSIM).
        depth: Of the scale-invariant depth term within the geometry's.
        positions, refined_positions, scales, colours: Of the Laplacians.
    """

    captured: Side = Side(1.0, 0.1, 0.0, 1.0, 0.1, 1.0)
    generated: Side = Side(1.0, 0.1, 1.0, 1.0, 1.0, 0.0)
    in_seam: float = 0.1
    perceptual: float = 1.0
    depth: float = 0.01
    positions: float = 1e6
    refined_positions: float = 1e5
    scales: float = 1e6
    colours: float = 0.1


def frame_loss(
    avatar: PersonaAvatar, frame: TrainingFrame, weights: PersonaWeights, perceptual: PerceptualLoss | None
) -> tuple[Tensor, PosedPersona]:
    """The loss of one frame, without the terms on the Gaussians themselves, and the Gaussians in its pose.

    Args:
        avatar: What is learned.
        frame: The picture.
        weights: Of the terms.
        perceptual: None leaves the perceptual term out.
    """
    posed = avatar.pose(frame.pose, frame.translation_m, frame.actions)
    side = weights.captured if frame.captured else weights.generated
    plain = _Branch(avatar, frame, posed.plain_m)
    refined = _Branch(avatar, frame, posed.refined_m)
    counts = torch.ones_like(frame.mask)
    if frame.seam is not None:
        counts = torch.where(frame.seam > 0, weights.in_seam, counts)

    def likeness(picture: Tensor) -> Tensor:
        total = photometric_loss(picture, frame.image, counts)
        if perceptual is None:
            return total
        return total + weights.perceptual * perceptual((picture * counts)[None], (frame.image * counts)[None])

    loss = side.image * likeness(plain.picture(plain.colours))
    loss = loss + side.refined_image * likeness(refined.picture(refined.colours))
    if side.own_refined_image:
        own = refined.picture(refined.own_colours, refined.alpha.detach())
        loss = loss + side.own_refined_image * likeness(own)
    for branch in (plain, refined):
        loss = loss + side.mask * mask_loss(branch.alpha, frame.mask)
        loss = loss + side.geometry * branch.geometry(weights.depth)
        if side.seam and frame.seam is not None and frame.seam.any():
            loss = loss + side.seam * l1_loss(branch.shared_colours, branch.own_colours.detach(), frame.seam)
    return loss, posed


class _Branch:
    """One drawing of all that is compared.

    Shared colours, own colours, shared colours again without a gradient to the geometry, depth and normals: only the
    first move the geometry through the drawing; depth and normals move it through their own values.
    """

    _GEOMETRY = (True, True, True, *(False,) * 10)

    def __init__(self, avatar: PersonaAvatar, frame: TrainingFrame, means_m: Tensor) -> None:
        w2c = frame.cameras.w2c[0]
        depth = means_m @ w2c[2, :3] + w2c[2, 3]
        normals = vertex_normals(means_m, avatar.faces)
        features = torch.cat([avatar.colours, avatar.own_colours, avatar.colours, depth[:, None], normals], 1)
        drawn = avatar.draw(means_m, frame.cameras, features, list(self._GEOMETRY))
        assert drawn.features is not None and drawn.alpha is not None
        self._frame = frame
        self.alpha = drawn.alpha[0]
        self.colours, self.own_colours, self.shared_colours, depth, self._normals = drawn.features[0].split(
            [3, 3, 3, 1, 3]
        )
        self._depth = depth[0] / self.alpha.detach().clamp_min(1e-3)

    def picture(self, colours: Tensor, alpha: Tensor | None = None) -> Tensor:
        """Premultiplied colours [3, H, W] over the frame's own background, which then costs nothing."""
        return colours + (1 - (self.alpha if alpha is None else alpha)) * self._frame.image

    def geometry(self, depth_weight: float) -> Tensor:
        """Depth and normals where there are targets."""
        frame = self._frame
        total = self.alpha.new_zeros(())
        inside = frame.mask * (self.alpha.detach() > 0.5)
        if frame.depth is not None:
            total = total + depth_weight * depth_loss(self._depth, frame.depth, inside, "scale_invariant")
        if frame.normals is not None:
            total = total + l1_loss(self._normals, frame.normals, inside)
            total = total + normal_loss(self._normals, frame.normals, inside)
        return total


def gaussian_loss(avatar: PersonaAvatar, posed: PosedPersona, laplacian: Laplacian, weights: PersonaWeights) -> Tensor:
    """Smoothness of places, sizes and colours over the body; places and sizes as squared metres.

    A Laplacian grows with the square of the mesh's edges where a surface is bent, and a size with the edge itself: the
    published weights are brought from the published mesh to this one, so that a coarser body is not held stiffer.
    """
    finer = PUBLISHED_EDGE_M / avatar.mean_edge_m
    template = avatar.points_m
    total = weights.positions * finer**4 * laplacian_loss(laplacian, avatar.mean_offsets_m + template, template)
    total = total + weights.refined_positions * finer**4 * laplacian_loss(laplacian, posed.displacement_m)
    total = total + weights.scales * finer**2 * laplacian_loss(laplacian, avatar.scales_m)
    return total + weights.colours * laplacian_loss(laplacian, avatar.colours)


def vertex_normals(points_m: Tensor, faces: Tensor) -> Tensor:
    """Unit normals [N, 3] of a mesh's vertices; faces [T, 3]."""
    a, b, c = points_m[faces].unbind(1)
    face = torch.linalg.cross(b - a, c - a)
    total = torch.zeros_like(points_m)
    for corner in range(3):
        total = total.index_add(0, faces[:, corner], face)
    return torch.nn.functional.normalize(total, dim=1, eps=1e-12)
