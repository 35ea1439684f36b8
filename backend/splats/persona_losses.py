"""What one training frame asks of a PERSONA avatar: the paper's terms with the released code's weights.

Two branches are drawn for every frame: the Gaussians as the bones carry them (plain), and with the pose's displacement
(refined). Geometry is mostly learned from depth, normals, parts and masks, colour mostly from the plain branch: a video
model's texture swims, its outlines do not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from backend.raster import Cameras
from backend.splats.cloud_losses import depth_loss, l1_loss, mask_loss, photometric_loss
from backend.splats.perceptual import Lpips, PerceptualLoss
from backend.splats.persona import PersonaAvatar, PosedPersona, part_colours, vertex_normals
from backend.splats.persona_drawing import FrameDrawing, Pictures, draw_frame


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
        albedo: [3, H, W] the picture without light; None where nothing made it.
        labels: [H, W] of `Label`; None where nothing made them.
        face: The face by a camera of its own, of which image, mask and seam count; None without one.
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
    albedo: Tensor | None = None
    labels: Tensor | None = None
    face: TrainingFrame | None = None


@dataclass(frozen=True)
class Side:
    """Weights of one kind of frame (methods_avatars: table of section 1.4).

    Attributes:
        image: Shared colours, plain branch. refined_image: The same with the pose's displacement.
        own_refined_image: Auxiliary colours, with the displacement, without a gradient to the geometry.
        mask, geometry: Both branches. seam: Shared colours to the auxiliary ones inside the seam band.
        albedo: As `image`, against the picture without light.
        first_face: The face with the colours that it began with.
        eyes, hands: Where they show, against the template's mesh.
        face_patch: Of image, mask, seam and first face by the face's own camera.
    """

    image: float
    refined_image: float
    own_refined_image: float
    mask: float
    geometry: float
    seam: float
    albedo: float = 0.0
    first_face: float = 0.0
    eyes: float = 0.0
    hands: float = 0.0
    face_patch: float = 0.0


@dataclass(frozen=True)
class PersonaWeights:
    """Weights of all terms.

    Attributes:
        captured, generated: By kind of frame.
        in_seam: Factor on the picture's terms inside the seam band of a captured frame.
        perceptual: Of the perceptual term beside 0.8 L1 + 0.2 (1 - SSIM).
        depth: Of the scale-invariant depth term within the geometry's.
        positions, refined_positions, scales, colours: Of the Laplacians.
        hand_variation: Of the squared differences of neighbouring colours on hands.
        hand_own: Of shared colours to auxiliary ones on hands; no published figure was found.
        mouth: Of the mouth's inside to the mean colour round the lips; no published figure was found.
        layer_steps: Of the layer's squared steps along the normals, per square centimetre; ours.
    """

    captured: Side = Side(1.0, 0.1, 0.0, 1.0, 0.1, 1.0, albedo=1.0, first_face=1.0, eyes=1.0, face_patch=0.1)
    generated: Side = Side(1.0, 0.1, 1.0, 1.0, 1.0, 0.0, eyes=1.0, hands=50.0)
    in_seam: float = 0.1
    perceptual: float = 1.0
    depth: float = 0.01
    positions: float = 1e6
    refined_positions: float = 1e5
    scales: float = 1e6
    colours: float = 0.1
    hand_variation: float = 100.0
    hand_own: float = 0.1
    mouth: float = 1.0
    layer_steps: float = 0.1


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
    drawing = draw_frame(avatar, posed, frame, side_of(frame, weights))
    return total(frame_terms(frame, drawing, weights, perceptual), frame.image), posed


def side_of(frame: TrainingFrame, weights: PersonaWeights) -> Side:
    """The weights of this kind of frame."""
    return weights.captured if frame.captured else weights.generated


def total(terms: dict[str, Tensor], like: Tensor) -> Tensor:
    """Sum of terms; zero of `like`'s device where there are none."""
    return torch.stack(list(terms.values())).sum() if terms else like.new_zeros(())


def frame_terms(
    frame: TrainingFrame, drawing: FrameDrawing, weights: PersonaWeights, perceptual: PerceptualLoss | None
) -> dict[str, Tensor]:
    """Every term of a frame by name, with its weight. What has no weight or no target is not there.

    Args:
        frame: The picture.
        drawing: What `draw_frame` made of the avatar.
        weights: Of the terms.
        perceptual: None leaves the perceptual term out.
    """
    side, plain, refined = side_of(frame, weights), drawing.plain, drawing.refined
    compare = _Likeness(frame.seam, weights, perceptual)
    terms: dict[str, Tensor] = {}
    if side.image:
        terms["image"] = side.image * compare(over(plain, "colours", frame.image), frame.image)
    if side.refined_image:
        terms["refined image"] = side.refined_image * compare(over(refined, "colours", frame.image), frame.image)
    if side.own_refined_image:
        own = over(refined, "own", frame.image, refined["alpha"].detach())
        terms["own refined image"] = side.own_refined_image * compare(own, frame.image)
    if side.albedo and frame.albedo is not None:
        terms["albedo"] = side.albedo * compare(over(plain, "colours", frame.albedo), frame.albedo)
    if side.mask:
        terms["mask"] = side.mask * (mask_loss(plain["alpha"], frame.mask) + mask_loss(refined["alpha"], frame.mask))
    if side.geometry:
        for branch in (plain, refined):
            for name, term in geometry_terms(frame, branch, weights.depth).items():
                terms[name] = terms.get(name, 0) + side.geometry * term
    if side.seam and frame.seam is not None:
        terms["seam"] = side.seam * (seam_loss(plain, frame.seam) + seam_loss(refined, frame.seam))
    if side.first_face:
        terms["first face"] = side.first_face * first_face_loss(plain, frame)
    if drawing.mesh is not None:
        if side.eyes:
            terms["eyes"] = side.eyes * l1_loss(plain["eyes"], drawing.mesh["eyes"])
        if side.hands:
            terms["hands"] = side.hands * l1_loss(plain["hands"], drawing.mesh["hands"])
    if drawing.patch is not None and frame.face is not None:
        patch = patch_terms(frame.face, drawing.patch, weights, perceptual)
        terms["face patch"] = side.face_patch * total(patch, frame.image)
    return terms


class _Likeness:
    """0.8 L1 + 0.2 (1 - SSIM) + perceptual, less inside the seam band."""

    def __init__(self, seam: Tensor | None, weights: PersonaWeights, perceptual: PerceptualLoss | None) -> None:
        self._counts = None if seam is None else torch.where(seam > 0, weights.in_seam, 1.0)
        self._weight, self._perceptual = weights.perceptual, perceptual
        self._last: tuple[Tensor, Callable[[Tensor], Tensor]] | None = None

    def __call__(self, picture: Tensor, target: Tensor) -> Tensor:
        loss = photometric_loss(picture, target, self._counts)
        if self._perceptual is None or not self._weight:
            return loss
        if self._counts is not None:
            picture = picture * self._counts
        # half the bits are enough for features, and twice as fast where there are matrix units for them
        with torch.autocast(picture.device.type, torch.bfloat16, enabled=picture.device.type == "cuda"):
            return loss + self._weight * self._against(self._perceptual, target)(picture[None]).float()

    def _against(self, perceptual: PerceptualLoss, target: Tensor) -> Callable[[Tensor], Tensor]:
        """Pictures before one target come one after the other: its features are found once."""
        if self._last is None or self._last[0] is not target:
            shown = (target if self._counts is None else target * self._counts)[None]
            ready = perceptual.against(shown) if isinstance(perceptual, Lpips) else partial(perceptual, target=shown)
            self._last = target, ready
        return self._last[1]


def over(pictures: Pictures, name: str, behind: Tensor, alpha: Tensor | None = None) -> Tensor:
    """Premultiplied colours [3, H, W] over a picture [3, H, W], so that its background costs nothing."""
    return pictures[name] + (1 - (pictures["alpha"] if alpha is None else alpha)) * behind


def geometry_terms(frame: TrainingFrame, branch: Pictures, depth_weight: float) -> dict[str, Tensor]:
    """Depth, normals and parts of one branch, where there are targets."""
    made: dict[str, Tensor] = {}
    alpha = branch["alpha"]
    inside = frame.mask * (alpha.detach() > 0.5)
    if frame.depth is not None:
        depth = branch["depth"][0] / alpha.detach().clamp_min(1e-3)
        made["depth"] = depth_weight * depth_loss(depth, frame.depth, inside, "scale_invariant")
    if frame.normals is not None:
        made["normals"] = normals_loss(branch["normals"], frame.normals, inside)
    if frame.labels is not None:
        made["parts"] = parts_loss(branch, frame.labels)
    return made


def normals_loss(normals: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """L1 + 1 - cosine, a mean over the weights [H, W]; pixels without a target count as wrong as they are drawn.

    Args:
        normals: [3, H, W] drawn, of any length.
        target: [3, H, W] unit, or zero where unknown: there the cosine does not count.
        weight: [H, W].
    """
    # sums of squares rather than norms: torch's norms over planes are slow on a processor
    length = ((normals * normals).sum(0) + 1e-12).sqrt()
    aligned = (normals * target).sum(0) / length
    known = (target * target).sum(0)
    difference = (normals - target).abs().mean(0) + known * (1 - aligned)
    return (difference * weight).sum() / weight.sum().clamp_min(1e-6)


def parts_loss(branch: Pictures, labels: Tensor) -> Tensor:
    """L1 between pictures of parts [H, W] in the colours of their labels."""
    target = part_colours(labels).permute(2, 0, 1)
    return l1_loss(over(branch, "parts", target), target)


def seam_loss(branch: Pictures, seam: Tensor) -> Tensor:
    """L1 of the shared colours to the auxiliary ones inside the band [H, W]; neither moves the geometry."""
    return l1_loss(branch["still colours"], branch["own"].detach(), seam)


def first_face_loss(branch: Pictures, frame: TrainingFrame) -> Tensor:
    """L1 between the picture and the face in the colours that it began with: only the geometry can follow."""
    where = branch["face"][0].detach() * frame.mask
    return l1_loss(over(branch, "first colours", frame.image), frame.image, where)


def patch_terms(
    face: TrainingFrame, patch: Pictures, weights: PersonaWeights, perceptual: PerceptualLoss | None
) -> dict[str, Tensor]:
    """The face by its own camera: likeness, mask, seam and first colours, each as in the whole picture."""
    side = weights.captured
    compare = _Likeness(face.seam, weights, perceptual)
    terms = {
        "image": side.image * compare(over(patch, "colours", face.image), face.image),
        "mask": side.mask * mask_loss(patch["alpha"], face.mask),
    }
    if side.seam and face.seam is not None:
        terms["seam"] = side.seam * seam_loss(patch, face.seam)
    if side.first_face:
        terms["first face"] = side.first_face * first_face_loss(patch, face)
    return terms


def left_out(
    avatar: PersonaAvatar, frames: Iterable[TrainingFrame], weights: PersonaWeights, perceptual: PerceptualLoss | None
) -> tuple[str, ...]:
    """Terms that have a weight but nothing to be compared with, a line each.

    Args:
        avatar: What is learned.
        frames: One captured and one generated frame are enough.
        weights: Of the terms.
        perceptual: None where the perceptual term is left out.
    """
    wanted: dict[str, bool] = {}

    def ask(name: str, weight: float, there: bool) -> None:
        if weight:
            wanted[name] = wanted.get(name, False) or there

    for frame in frames:
        side = side_of(frame, weights)
        ask("depth", side.geometry * weights.depth, frame.depth is not None)
        ask("normals", side.geometry, frame.normals is not None)
        ask("parts", side.geometry, frame.labels is not None)
        ask("colours without light", side.albedo, frame.albedo is not None)
        ask("seam band", side.seam, frame.seam is not None)
        ask("face patch", side.face_patch, frame.face is not None)
        ask("face in its first colours", side.first_face, bool(avatar.in_face.any()))
        ask("eyes against the mesh", side.eyes, bool(avatar.in_eyes.any()))
        ask("hands against the mesh", side.hands, bool(avatar.in_hands.any()))
    ask("perceptual likeness", weights.perceptual, perceptual is not None)
    return tuple(f"no {name}" for name, there in wanted.items() if not there)


__all__ = [
    "PersonaWeights",
    "Side",
    "TrainingFrame",
    "frame_loss",
    "frame_terms",
    "left_out",
    "side_of",
    "vertex_normals",
]
