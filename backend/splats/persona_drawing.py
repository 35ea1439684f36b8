"""What is drawn of a PERSONA avatar for one training frame: several pictures in one pass of the rasteriser.

The published loop draws colours, auxiliary colours, masks, depth, normals and parts one after the other, some twenty
passes for a frame. Here each branch is one pass with many channels, and a switch per channel says whether the geometry
gets its gradient: colours and parts move the Gaussians through the drawing, depth and normals only through their own
values.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from backend.raster import Cameras, SplatTensors, rasterize
from backend.splats.persona import Branch, PersonaAvatar, PosedPersona

if TYPE_CHECKING:
    from backend.splats.persona_losses import Side, TrainingFrame

Pictures = Mapping[str, Tensor]
"""[C, H, W] by name, premultiplied, and "alpha" [H, W]."""


@dataclass(frozen=True)
class Channels:
    """Something that every Gaussian carries.

    Attributes:
        name: Of the picture.
        values: [N, C].
        moves: Whether the geometry gets the picture's gradient.
    """

    name: str
    values: Tensor
    moves: bool


Drawer = Callable[[SplatTensors, Cameras, Sequence[Channels]], Pictures]


def drawn_together(splats: SplatTensors, cameras: Cameras, channels: Sequence[Channels]) -> Pictures:
    """All channels in one pass.

    Args:
        splats: N Gaussians.
        cameras: One camera.
        channels: What to draw; may be empty, then only alpha is drawn.
    """
    widths = [channel.values.shape[1] for channel in channels]
    moves = [channel.moves for channel, width in zip(channels, widths, strict=True) for _ in range(width)]
    if not channels:
        alone = rasterize(splats, cameras, outputs=("alpha",)).alpha
        assert alone is not None
        return {"alpha": alone[0]}
    features = torch.cat([channel.values for channel in channels], 1)
    drawn = rasterize(
        splats, cameras, features=features, outputs=("features", "alpha"), geometry_gradient=moves
    )  # fmt: skip
    assert drawn.features is not None and drawn.alpha is not None
    parts = drawn.features[0].split(widths)
    return {channel.name: part for channel, part in zip(channels, parts, strict=True)} | {"alpha": drawn.alpha[0]}


def drawn_one_by_one(splats: SplatTensors, cameras: Cameras, channels: Sequence[Channels]) -> Pictures:
    """The same pictures, a pass for each and one for alpha: what `drawn_together` is measured against."""
    made = dict(drawn_together(splats, cameras, ()))
    for channel in channels:
        made[channel.name] = drawn_together(splats, cameras, [channel])[channel.name]
    return made


@dataclass(frozen=True)
class FrameDrawing:
    """All pictures of an avatar that one frame asks for.

    Attributes:
        plain, refined: Of the two branches.
        mesh: "eyes" and "hands" of the template itself; None where no term asks for them.
        patch: Of the face's own camera; None where the frame has no face patch.
        passes: How often the rasteriser ran.
    """

    plain: Pictures
    refined: Pictures
    mesh: Pictures | None
    patch: Pictures | None
    passes: int


def draw_frame(
    avatar: PersonaAvatar,
    posed: PosedPersona,
    frame: TrainingFrame,
    side: Side,
    drawer: Drawer = drawn_together,
) -> FrameDrawing:
    """Draw what the terms of a frame need.

    Args:
        avatar: What is learned.
        posed: The avatar in the frame's pose.
        frame: The picture.
        side: Weights of this kind of frame; what has no weight is not drawn.
        drawer: How channels become pictures.
    """
    passes = 0

    def draw(splats: SplatTensors, cameras: Cameras, channels: Sequence[Channels]) -> Pictures:
        nonlocal passes
        passes += 1 if drawer is drawn_together else 1 + len(channels)
        return drawer(splats, cameras, channels)

    pictures = {}
    for branch in ("plain", "refined"):
        channels = _branch_channels(avatar, posed, frame, side, branch)
        pictures[branch] = draw(avatar.splats(posed, branch), frame.cameras, channels)
    masks = _mesh_channels(avatar, side)
    mesh = None
    if masks:
        with torch.no_grad():
            mesh = draw(avatar.template_splats(posed), frame.cameras, masks)
    patch = None
    if frame.face is not None and side.face_patch:
        channels = _patch_channels(avatar, frame.face, side)
        patch = draw(avatar.splats(posed, "plain"), frame.face.cameras, channels)
    return FrameDrawing(pictures["plain"], pictures["refined"], mesh, patch, passes)


def _branch_channels(
    avatar: PersonaAvatar, posed: PosedPersona, frame: TrainingFrame, side: Side, branch: Branch
) -> list[Channels]:
    colours = avatar.all_colours()
    channels = [Channels("colours", colours, True)]
    seam = bool(side.seam) and frame.seam is not None
    own = branch == "refined" and bool(side.own_refined_image)
    if own or seam:
        channels.append(Channels("own", avatar.all_colours(own=True), False))
    if seam:
        channels.append(Channels("still colours", colours, False))
    if side.geometry:
        if frame.depth is not None:
            w2c = frame.cameras.w2c[0]
            depth = posed.means_m(branch) @ w2c[2, :3] + w2c[2, 3]
            channels.append(Channels("depth", depth[:, None], False))
        if frame.normals is not None:
            channels.append(Channels("normals", avatar.all_normals(posed, branch), False))
        if frame.labels is not None:
            channels.append(Channels("parts", avatar.all_parts(), True))
    if branch == "plain":
        if side.first_face:
            channels += _first_face(avatar)
        channels += _mesh_channels(avatar, side)
    return channels


def _first_face(avatar: PersonaAvatar) -> list[Channels]:
    """The colours that it began with, and where its face shows: what aligns the face's geometry."""
    first = avatar.all_first_colours()
    return [Channels("first colours", first, True), Channels("face", avatar.in_face, False)]


def _mesh_channels(avatar: PersonaAvatar, side: Side) -> list[Channels]:
    made = [Channels("eyes", avatar.in_eyes, True)] if side.eyes else []
    return made + ([Channels("hands", avatar.in_hands, True)] if side.hands else [])


def _patch_channels(avatar: PersonaAvatar, face: TrainingFrame, side: Side) -> list[Channels]:
    colours = avatar.all_colours()
    channels = [Channels("colours", colours, True)]
    if side.seam and face.seam is not None:
        channels += [
            Channels("own", avatar.all_colours(own=True), False),
            Channels("still colours", colours, False),
        ]
    return channels + (_first_face(avatar) if side.first_face else [])


__all__ = ["Channels", "Drawer", "FrameDrawing", "Pictures", "draw_frame", "drawn_one_by_one", "drawn_together"]
