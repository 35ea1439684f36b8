"""Refine bound Gaussians until their picture is the photo, and leave alone what the photo does not show."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from backend.context import Context
from backend.human.camera import PinholeCamera
from backend.raster import Cameras, SplatTensors, rasterize
from backend.splats.blend import Blend, blend_of
from backend.splats.bound import BoundSplats, Kind
from backend.splats.detail import DetailSettings, split_for_detail
from backend.splats.losses import (
    Neighbourhood,
    View,
    alpha_loss,
    box_of_mask,
    make_view,
    photometric_loss,
    roughness,
)
from backend.splats.parameters import GatedAdam, Posing, SplatParameters
from backend.splats.polish import (
    PolishSettings,
    colour_range,
    counted_pixels,
    facing_camera,
    opened_gates,
    polished_colours,
)
from backend.splats.render import BACKGROUND, to_cameras, to_tensors, to_uint8

STAGE = "optimise"
HAIR_COVER = (0.5, 0.9)
"""What shows less than the first share of itself between strands is left alone, more than the second is free."""
LEAST_DRAWN_PX = 1e-4


@dataclass(frozen=True)
class OptimiseSettings:
    """How long and how fast; the rates are Adam's steps at the start, falling to a tenth along a half cosine."""

    iterations: int = 200
    size_px: int = 512  # longer side of the whole view, and of the face crop
    colour_rate: float = 0.03  # display sRGB
    opacity_rate: float = 0.03  # logit
    scale_rate: float = 0.03  # log
    offset_rate: float = 0.08  # of the Gaussian's in-plane scale
    alpha_weight: float = 0.5
    final_whole_views: int = 40  # the last ones, in which the silhouette counts more
    final_alpha_factor: float = 5.0
    roughness_weight: float = 0.02
    scale_drift_weight: float = 0.005
    preview_every: int = 50
    detail: DetailSettings | None = DetailSettings()  # None: no Gaussian is split
    polish: PolishSettings | None = PolishSettings()  # None: gradient steps only


def optimise_to_photo(
    splats: BoundSplats,
    posed_proxy_m: np.ndarray,
    rest_proxy_m: np.ndarray,
    triangles: np.ndarray,
    camera: PinholeCamera,
    image: np.ndarray,
    mask: np.ndarray,
    held: np.ndarray,
    face_box_px: tuple[float, float, float, float] | None,
    settings: OptimiseSettings,
    context: Context,
) -> BoundSplats:
    """Fit offset, in-plane scales, opacity and colour of every Gaussian, as far as its gates let it.

    Discs that are coarser than the photo's detail are split first. Colours are solved for in closed form before the
    gradient steps, so that these start from the best picture of the geometry they find, and once more after them.

    Args:
        splats: N Gaussians bound to the proxy.
        posed_proxy_m: [V, 3] the proxy in the photo's pose and expression.
        rest_proxy_m: [V, 3] the proxy at rest.
        triangles: [T, 3] vertex indices.
        camera: of the photo.
        image: uint8 [H, W, 3].
        mask: float [H, W] 0..1, the person with what they hold.
        held: bool [H, W], what they hold; has no influence.
        face_box_px: x0, y0, x1, y1 of the face in the photo; every second step looks at it. None: whole view only.
        settings: see there.
        context: progress, preview, cancel and seed.

    Returns:
        The Gaussians in their order, but for those that were split, whose parts come last; gates, confidence, kind and
        binding as they were.

    Raises:
        ValueError: If the mask is empty or the picture's arrays differ in size.
        Cancelled: If the user cancelled.
    """
    _check_sizes(camera, image, mask, held)
    if len(splats) == 0 or settings.iterations == 0:
        return splats
    whole = make_view(camera, image, mask, held, box_of_mask(mask), settings.size_px)
    face = None if face_box_px is None else make_view(camera, image, mask, held, face_box_px, settings.size_px)
    schedule = _schedule(settings, whole, face)
    proxy = (posed_proxy_m, rest_proxy_m, triangles)
    where = counted_pixels(mask, held)
    splats, seen = _split(splats, proxy, camera, image, where, settings.detail)
    parameters = SplatParameters(splats, Posing.of(splats, posed_proxy_m, rest_proxy_m, triangles))
    free = uncovered_by_hair(parameters, splats.kind, [view for view in (whole, face) if view is not None])
    polish = None
    if settings.polish is not None:
        gate = free * opened_gates(splats, seen.uncovered, facing_camera(splats.posed(*proxy), camera))
        polish = _Polish.of(parameters, gate, camera, image, where, settings.polish)
        parameters.limit_colours(*polish.limits)
        polish(parameters, seen)
    neighbours = Neighbourhood.of(parameters.posed()[0].means.detach().numpy(), splats.kind)
    adam = GatedAdam(
        [
            (parameters.colours, splats.colour_gate * free, settings.colour_rate),
            (parameters.offsets, splats.shape_gate * free, settings.offset_rate),
            (parameters.log_scales, splats.shape_gate * free, settings.scale_rate),
            (parameters.logits, splats.shape_gate * free, settings.opacity_rate),
        ]
    )
    generator = torch.Generator().manual_seed(context.seed)
    key = f"{len(splats)} {context.seed} {settings}"
    kept = context.checkpoint.load(STAGE, key)
    if kept is not None:
        adam.restore(kept.arrays)
        generator.set_state(torch.from_numpy(kept.arrays["generator"]))
    for step, (view, alpha_weight) in enumerate(schedule):
        if kept is not None and step < kept.step:
            continue
        background = torch.rand(3, generator=generator)
        adam.zero_grad()
        loss = _loss(parameters, neighbours, view, background, alpha_weight, settings)
        loss.backward()
        adam.step(0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * step / settings.iterations)))
        parameters.clamp_()
        if context.checkpoint.due():
            context.checkpoint.save(STAGE, step + 1, adam.state() | {"generator": generator.get_state().numpy()}, key)
        context.progress(STAGE, step + 1, settings.iterations, f"loss {float(loss.detach()):.4f}")
        if (step + 1) % settings.preview_every == 0:
            context.preview(_preview(parameters, whole))
    if polish is not None:
        polish(parameters)
    return parameters.bound()


def _split(
    splats: BoundSplats,
    proxy: tuple[np.ndarray, np.ndarray, np.ndarray],
    camera: PinholeCamera,
    image: np.ndarray,
    where: np.ndarray,
    settings: DetailSettings | None,
) -> tuple[BoundSplats, Blend]:
    """The Gaussians, with finer ones where the photo has detail, and what the photo's camera sees of them."""
    posed = splats.posed(*proxy)
    seen = blend_of(to_tensors(posed), to_cameras(camera), where)
    if settings is None:
        return splats, seen
    finer = split_for_detail(splats, posed, seen.uncovered, camera, image, where, settings)
    if finer is splats:
        return splats, seen
    return finer, blend_of(to_tensors(finer.posed(*proxy)), to_cameras(camera), where)


@dataclass(frozen=True)
class _Polish:
    """Solves for the colours of the geometry that was reached, at the photo's own resolution."""

    cameras: Cameras
    where: np.ndarray  # [H, W] bool, the P pixels that count
    target: np.ndarray  # [P, 3] the photo there
    gate: np.ndarray  # [N]
    limits: tuple[np.ndarray, np.ndarray]  # [N, 3] each
    settings: PolishSettings

    @classmethod
    def of(
        cls,
        parameters: SplatParameters,
        gate: np.ndarray,
        camera: PinholeCamera,
        image: np.ndarray,
        where: np.ndarray,
        settings: PolishSettings,
    ) -> _Polish:
        """With limits from where the Gaussians are now."""
        with torch.no_grad():
            posed, colours = parameters.posed()
        limits = colour_range(image, where, camera, posed.means.numpy(), colours.numpy(), settings)
        target = np.asarray(image, np.float32)[where] / 255
        return cls(to_cameras(camera), where, target, gate, limits, settings)

    @torch.no_grad()
    def __call__(self, parameters: SplatParameters, seen: Blend | None = None) -> None:
        """Change the colours; `seen` is made anew where it is not given."""
        posed, colours = parameters.posed()
        seen = blend_of(posed, self.cameras, self.where) if seen is None else seen
        before = colours.numpy()
        after = polished_colours(before, self.gate, seen, self.target, self.limits, self.settings)
        parameters.colours.add_(torch.from_numpy(after - before))
        parameters.clamp_()


def uncovered_by_hair(parameters: SplatParameters, kind: np.ndarray, views: list[View]) -> np.ndarray:
    """[N] 0..1: share of its steps that a Gaussian takes for what hair leaves of it in the views; 1 for hair itself.

    Skin that glimmers between strands would turn white or black for a part of a pixel, and shows from the side.

    Args:
        parameters: N Gaussians.
        kind: [N] `Kind`.
        views: What the optimisation looks at; the one that shows most counts.
    """
    bare = np.flatnonzero(kind != Kind.HAIR)
    share, free = np.zeros(len(kind)), np.ones(len(kind))
    if len(bare) == len(kind) or not len(bare):
        return free
    with torch.no_grad():
        posed = parameters.posed()[0]
    rows = torch.from_numpy(bare)
    uncovered = SplatTensors(
        *(part[rows] for part in (posed.means, posed.rotations_wxyz, posed.scales, posed.opacities))
    )
    for view in views:
        whole, alone = _drawn_weight(posed, view)[bare], _drawn_weight(uncovered, view)
        shown = np.where(alone > LEAST_DRAWN_PX, whole / np.maximum(alone, LEAST_DRAWN_PX), 0)
        share[bare] = np.maximum(share[bare], shown)
    low, high = HAIR_COVER
    free[bare] = np.clip((share[bare] - low) / (high - low), 0, 1)
    return free


def _drawn_weight(posed: SplatTensors, view: View) -> np.ndarray:
    """[N] sum over all pixels of what each Gaussian contributes."""
    ones = torch.ones(len(posed.means), 1, requires_grad=True)
    drawn = rasterize(posed, view.cameras, features=ones, outputs=("features",)).features
    assert drawn is not None
    (weight,) = torch.autograd.grad(drawn.sum(), ones)
    return weight[:, 0].numpy()


def _check_sizes(camera: PinholeCamera, image: np.ndarray, mask: np.ndarray, held: np.ndarray) -> None:
    size = (camera.height, camera.width)
    for name, array in (("image", image), ("mask", mask), ("held", held)):
        if array.shape[:2] != size:
            raise ValueError(f"{name} is {array.shape[1]} x {array.shape[0]} px, the camera {size[1]} x {size[0]} px")


def _schedule(settings: OptimiseSettings, whole: View, face: View | None) -> list[tuple[View, float]]:
    """View and weight of the alpha loss for every step; whole view and face take turns, the whole view comes last."""
    steps: list[tuple[View, float]] = []
    whole_views_left = settings.final_whole_views
    for back in range(settings.iterations):
        if face is not None and back % 2:
            steps.append((face, settings.alpha_weight))
            continue
        final = whole_views_left > 0
        whole_views_left -= 1
        steps.append((whole, settings.alpha_weight * (settings.final_alpha_factor if final else 1.0)))
    return steps[::-1]


def _loss(
    parameters: SplatParameters,
    neighbours: Neighbourhood,
    view: View,
    background: Tensor,
    alpha_weight: float,
    settings: OptimiseSettings,
) -> Tensor:
    posed, colours = parameters.posed()
    output = rasterize(posed, view.cameras, features=colours)
    drawn, alpha = output.features[0], output.alpha[0]
    loss = photometric_loss(drawn, alpha, view, background) + alpha_weight * alpha_loss(alpha, view)
    loss = loss + settings.roughness_weight * roughness(parameters.offsets[:, 2], neighbours)
    return loss + settings.scale_drift_weight * parameters.log_scales.square().mean()


@torch.no_grad()
def _preview(parameters: SplatParameters, view: View) -> np.ndarray:
    posed, colours = parameters.posed()
    output = rasterize(posed, view.cameras, features=colours, background=torch.tensor(BACKGROUND))
    return to_uint8(output.features[0].permute(1, 2, 0).numpy())
