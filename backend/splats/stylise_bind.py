"""A stylised head back on its rig: every Gaussian on the triangle of the proxy that it moves with.

The head was drawn in one pose with the mouth shut and the eyes open, and holds nothing of what these hide. So the
regions are treated apart:

- Skin: bound to the nearest triangle of the outer skin. What stands off it, such as hair, goes to the nearest triangle
  that facial actions leave alone, since a long lever on a cheek would wave with every smile.
- Lids and lips: a blink spreads skin that is squeezed into a line here, and a Gaussian across both lips would tear. The
  photo-only head has Gaussians laid out for these motions: they are taken, in the colours of the stylised skin around.
- Eyes, teeth, the inside of the mouth: the photo-only head's too, carried to the style by the map between the colours
  of both heads' skin; what was painted over them is left out.
- Below the neck: the photo-only bust, by the same map; its clothes the more, the further the style is from skin.
- Under all of it lies some of the photo-only skin in the stylised colours, so that no gap shows the inside.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from scipy.spatial import KDTree

from backend.diffusion import moments as channel_moments
from backend.human.lids import lids_of
from backend.human.membranes import nearest_on_triangles
from backend.human.model import BodyModel, Region
from backend.human.personal import Personal, head_triangles
from backend.splats.bound import BoundSplats, Kind, bind_points, concatenate, triangle_frames, wxyz_to_matrices
from backend.splats.head_start import HeadFrame
from blender_addon.shared.gaussians import GaussianCloud

STANDS_OFF_M = 0.012
"""Further from the skin a Gaussian is hair, a hat, an ear of the style: it goes to skin that does not move."""

STILL_M = 0.0015
"""Skin that no facial action moves further does not move."""

FLOATER_M = 0.12
"""Further from the skin than half a head nothing belongs to it."""

LIP_REACH_M = 0.006
"""Around the line between the lips the photo-only skin is taken."""

NEAR_CARE_M, LARGEST_NEAR_CARE_M = 0.012, 0.0025
"""Within the first of lids and lips no Gaussian is larger than the second: it would reach across."""

LID_SHARE = 0.5
"""From this share of `Lids.share` on skin is lid."""

OVERLAP = 1.7
"""So much further than the stylised skin is left out, the photo-only skin is taken: no gap shows between them."""

EYE_REACH = 1.12
"""Gaussians within this many radii of an eyeball's centre, that no skin is nearer to, are painted eyes."""

COLOUR_GAIN = 2.0
"""Largest stretch of colours outside the skin."""

STATUE = 0.25
"""From this distance between the skin's mean colours, display RGB, a style is a material."""

UNDERLAY, UNDER_NEAR, UNDER_M, UNDER_GROWN = 12_000, 8, 0.002, 1.6
"""How many Gaussians close gaps, how many neighbours say where the surface is, how far below it they lie, and how much
larger they are than in the photo-only head, of which they are a part."""

INNER_LIPS = (78, 191, 80, 81, 82, 13, 312, 311, 310, 415, 308, 95, 88, 178, 87, 14, 317, 402, 318, 324)
CHIN = 152
"""MediaPipe's landmarks."""


def frame_of(body: BodyModel, vertices_m: np.ndarray) -> HeadFrame:
    """The frame of the head of a rest proxy [V, 3]."""
    rest = np.asarray(vertices_m, np.float64)
    return HeadFrame.of(rest[body.regions == Region.HEAD], np.asarray(body.face_landmarks[CHIN] @ rest).ravel())


def start_triangles(body: BodyModel) -> np.ndarray:
    """[T] bool: the outer skin of head and neck, where Gaussians begin and where they are bound."""
    outside = body.outer[body.triangles].all(axis=1)
    skin = (body.regions[body.triangles] <= Region.HEAD).all(axis=1)
    return head_triangles(body) & outside & skin


def _nearest(
    points: np.ndarray, rest: np.ndarray, body: BodyModel, chosen: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Triangle [N] of those that are chosen [T], barycentric foot point [N, 3] and distance [N] of points [N, 3]."""
    triangles, bary = nearest_on_triangles(points, rest, body.triangles, np.flatnonzero(chosen))
    foot = np.einsum("nk,nkc->nc", bary, rest[body.triangles[triangles]])
    return triangles, bary, np.linalg.norm(points - foot, axis=1)


def bind_stylised(
    cloud_m: GaussianCloud, body: BodyModel, personal: Personal, vertices_m: np.ndarray, base: BoundSplats
) -> BoundSplats:
    """The stylised head on its rig; see the module.

    Args:
        cloud_m: The result in metres, rest pose, neutral face.
        body: The body model or bust.
        personal: The person on it.
        vertices_m: [V, 3] rest proxy.
        base: The photo-only head on the same triangles.

    Returns:
        On the triangles of `body`.

    Raises:
        ValueError: If nothing of the cloud is on the head.
    """
    rest = np.asarray(vertices_m, np.float64)
    skin, kept = _bind_skin(cloud_m, body, personal, rest)
    dressed = _dressed(body, base)[skin.triangles] & (skin.kind == Kind.SKIN)
    skin, kept = skin.select(~dressed), kept[~dressed]
    if not len(skin):
        raise ValueError("nothing of the stylised head lies on the head")
    own = base.posed(rest, rest, body.triangles).positions_m.astype(np.float64)
    on_care = care_vertices(body, personal, rest, OVERLAP)[body.triangles[base.triangles]].any(axis=1)
    on_head = start_triangles(body)[base.triangles]
    inner = np.isin(base.kind, (Kind.EYE, Kind.TEETH, Kind.MOUTH))
    cloth = base.kind == Kind.CLOTH
    is_skin = np.isin(base.kind, (Kind.SKIN, Kind.MEMBRANE))
    care = is_skin & on_care
    lowest = float(np.percentile(kept, 1, axis=0)[1])
    below = ~inner & ~care & ~cloth & (~on_head | (own[:, 1] < lowest)) & (own[:, 1] < lowest + STANDS_OFF_M)
    face = is_skin & on_head
    skin_colours = base.colours[face if face.any() else is_skin]
    colours = base.colours.astype(np.float64)
    colours[care] = _from_around(own[care], kept, skin)
    other = inner | below | cloth
    colours[other] = _mapped(base.colours[other], skin_colours, skin.colours)
    colours[cloth] = clothes(colours[cloth], skin_colours, skin.colours)
    repainted = replace(base, colours=np.clip(colours, 0, 1))
    under = _underlay(repainted.select((base.kind == Kind.SKIN) & on_head & ~care), body, rest, skin, kept)
    return concatenate([skin, under, repainted.select(care | other)])


def _dressed(body: BodyModel, base: BoundSplats) -> np.ndarray:
    """[T] bool: triangles on which the photo-only head has clothes: they cover what was drawn on the neck."""
    shares = np.zeros((2, len(body.triangles)))
    for row, kinds in enumerate(((Kind.CLOTH,), (Kind.SKIN, Kind.HAIR))):
        np.add.at(shares[row], base.triangles[np.isin(base.kind, kinds)], 1.0)
    return shares[0] > shares[1]


def clothes(colours: np.ndarray, skin: np.ndarray, styled: np.ndarray) -> np.ndarray:
    """Clothes [N, 3] by how far the style took the skin: a statue's are of its material, a person's keep their own."""
    if not len(colours):
        return colours
    share = min(float(np.linalg.norm(styled.mean(0) - skin.mean(0))) / STATUE, 1.0)
    return (1 - share) * colours + share * _mapped(colours, colours, styled)


def _underlay(
    base: BoundSplats, body: BodyModel, rest: np.ndarray, skin: BoundSplats, painted: np.ndarray
) -> BoundSplats:
    """Photo-only skin a little below the stylised one and in its colours: no gap shows what is inside the head."""
    base = base.select(np.arange(0, len(base), max(round(len(base) / UNDERLAY), 1)))
    if not len(base):
        return base
    own = base.posed(rest, rest, body.triangles).positions_m.astype(np.float64)
    frames, _ = triangle_frames(rest, body.triangles[base.triangles])
    away, near = KDTree(painted).query(own, min(UNDER_NEAR, len(painted)))
    away, near = away.reshape(len(own), -1), near.reshape(len(own), -1)
    height = np.einsum("nkc,nc->nk", painted[near] - own[:, None], frames[:, :, 2])
    depth = np.minimum(np.median(height, axis=1), 0.0) - UNDER_M
    offsets = base.offsets_m.astype(np.float64)
    offsets[:, 2] += depth
    # Where the stylised head is elsewhere, there is nothing to lie under.
    there = (away[:, 0] < STANDS_OFF_M) & (depth > -STANDS_OFF_M)
    scales = base.scales_m * np.array([UNDER_GROWN, UNDER_GROWN, 1.0])
    made = replace(base, offsets_m=offsets, scales_m=scales, colours=np.clip(_from_around(own, painted, skin), 0, 1))
    return made.select(there)


def care_vertices(body: BodyModel, personal: Personal, rest_m: np.ndarray, reach: float = 1.0) -> np.ndarray:
    """[V] bool: skin of lids and lips, whose motion needs Gaussians that are laid out for it; wider with `reach`."""
    lids = lids_of(body, personal).share > LID_SHARE / reach
    line = np.asarray(body.face_landmarks[list(INNER_LIPS)] @ rest_m)
    near = KDTree(line).query(rest_m)[0] < reach * LIP_REACH_M
    return (lids | near) & (body.regions == Region.HEAD)


def _bind_skin(
    cloud: GaussianCloud, body: BodyModel, personal: Personal, rest: np.ndarray
) -> tuple[BoundSplats, np.ndarray]:
    """What of the cloud is skin or stands off it, bound; and its positions."""
    points = cloud.positions_m.astype(np.float64)
    chosen = start_triangles(body)
    travel = np.linalg.norm(personal.action_offsets_m, axis=2).max(axis=0)
    still = chosen & (travel[body.triangles] < STILL_M).all(axis=1)
    triangles, bary, away = _nearest(points, rest, body, chosen)
    far = away > STANDS_OFF_M
    if still.any() and far.any():
        triangles[far], bary[far], _ = _nearest(points[far], rest, body, still)
    on_care = care_vertices(body, personal, rest)
    keep = (away < FLOATER_M) & (cloud.opacities > 1 / 255) & ~_painted_inside(points, away, body, rest)
    keep &= far | ~on_care[body.triangles[triangles]].any(axis=1)
    scales = cloud.scales_m.astype(np.float64)
    if on_care.any():
        near = KDTree(rest[on_care]).query(points)[0] < NEAR_CARE_M
        scales[near] = np.minimum(scales[near], LARGEST_NEAR_CARE_M)
    rotations = wxyz_to_matrices(cloud.rotations_wxyz)
    offsets, quaternions = bind_points(points, rotations, triangles, bary, rest, body.triangles)
    count = len(points)
    bound = BoundSplats(
        triangles=triangles,
        bary=bary,
        offsets_m=offsets,
        rotations_wxyz=quaternions,
        scales_m=scales,
        opacities=cloud.opacities,
        colours=np.clip(cloud.colours, 0, 1),
        confidence=np.full(count, 0.5),
        kind=np.where(far, int(Kind.HAIR), int(Kind.SKIN)),
        colour_gate=np.zeros(count),
        shape_gate=np.zeros(count),
        opacity_floor=np.zeros(count),
    )
    return bound.select(keep), points[keep]


def _painted_inside(points: np.ndarray, away: np.ndarray, body: BodyModel, rest: np.ndarray) -> np.ndarray:
    """[N] bool: painted over an eye or in the mouth: something inner is nearer than the skin."""
    inside = np.zeros(len(points), bool)
    regions = body.regions[body.triangles]
    for region in (Region.LEFT_EYE, Region.RIGHT_EYE):
        ball = rest[body.regions == region]
        if len(ball):
            low, high = ball.min(axis=0), ball.max(axis=0)
            radius = 0.5 * float((high - low)[:2].mean())
            from_centre = np.linalg.norm(points - 0.5 * (low + high), axis=1)
            inside |= (from_centre < EYE_REACH * radius) & (abs(from_centre - radius) < away)
    mouth = (regions >= Region.MOUTH).all(axis=1)
    if mouth.any():
        inside |= _nearest(points, rest, body, mouth)[2] < away
    return inside


def _from_around(points: np.ndarray, around: np.ndarray, skin: BoundSplats, count: int = 12) -> np.ndarray:
    """Colours [N, 3] of the nearest stylised Gaussians, by opacity and distance."""
    if not len(points):
        return np.zeros((0, 3))
    away, near = KDTree(around).query(points, min(count, len(around)))
    away, near = away.reshape(len(points), -1), near.reshape(len(points), -1)
    width = np.maximum(away[:, :1], 1e-4)
    weight = skin.opacities[near] * np.exp(-0.5 * (away / (2 * width)) ** 2) + 1e-9
    return np.einsum("nk,nkc->nc", weight / weight.sum(axis=1, keepdims=True), skin.colours[near])


def _mapped(colours: np.ndarray, skin: np.ndarray, styled: np.ndarray) -> np.ndarray:
    """Colours [N, 3] by the cheapest map from the photo-only skin's statistics to the stylised skin's."""
    own, wanted = (channel_moments.moments(_as_channels(values)) for values in (skin, styled))
    matrix = channel_moments.transport(own, wanted, gain=COLOUR_GAIN)
    moved = channel_moments.apply(matrix, own, wanted, _as_channels(colours))
    return np.clip(moved[0, :, 0].T.numpy(), 0, 1)


def _as_channels(colours: np.ndarray) -> torch.Tensor:
    """[N, 3] as [1, 3, 1, N]."""
    return torch.from_numpy(np.ascontiguousarray(colours.T, np.float64))[None, :, None]
