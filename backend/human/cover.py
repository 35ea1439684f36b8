"""The dressed person as Gaussians: discs on body, skirt and sheets, coloured by the photo and by rule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import cv2
import numpy as np
from scipy.spatial import cKDTree

from backend.human.dress import SPACING_M, Dressed, hands_seen
from backend.human.garments import ARMS, FEET, FIRST_CLOTH, HANDS, LEGS, Part, Rings, axis_m, vertex_parts
from backend.human.held import outer_triangles
from backend.human.membranes import Membrane
from backend.human.model import BodyModel
from backend.human.personal import Personal, head_triangles
from backend.human.shell import average_operator, mesh_links, smoothed_normals
from backend.human.skirt import HIDDEN_DEPTH_M, legs_below
from backend.human.zbuffer import view_mesh
from backend.perception.people import Label, Person
from backend.splats.bound import BoundSplats, Kind, bind_points, concatenate, triangle_frames
from backend.splats.colour import SEEN, blend_weight, gates, photo_confidence, sample_photo, to_lab, to_rgb
from backend.splats.fill import FillSurface, fill_colours
from backend.splats.light import Light, find_light, relit
from backend.splats.surface import SurfaceSamples, disc_frames, sample_surface, vertex_normals
from blender_addon.shared.skeleton import JOINT_NAMES

if TYPE_CHECKING:
    from backend.context import Context

NAPE_M = 0.2
"""How far below the neck's joint a neckline that is higher behind may lie in front."""

BORDER_M = 0.006
"""Width of the blend into the fill where the picture ends."""


@dataclass(frozen=True)
class DiscSettings:
    """Sizes of the body's discs, from the prototype's table of shifts and sigmas.

    Attributes:
        spacing_m: On clothes.
        hand_spacing_m: Fingers are 15 mm thick.
        finest_px: Spacing where the photo has detail, in pixels of the working image.
        finest_m: The same, never below.
        most: Number of discs above which the detail is thinned.
        sigma: Standard deviation in spacings.
        thickness: Standard deviation across, in spacings.
        inward: Shift along the normal in spacings, so that the visible edge lies on the surface.
        opacity: Of every disc.
        opacity_floor: What an optimiser leaves.
    """

    spacing_m: float = SPACING_M
    hand_spacing_m: float = 0.0042
    finest_px: float = 1.2
    finest_m: float = 0.0022
    most: int = 58_000
    sigma: float = 0.65
    thickness: float = 0.15
    inward: float = 0.6
    opacity: float = 0.95
    opacity_floor: float = 0.9


def body_splats(
    person: Person, body: BodyModel, personal: Personal, dressed: Dressed, held: np.ndarray, context: Context
) -> BoundSplats:
    """Gaussians of everything but the head: discs on the dressed proxy and on its membranes.

    Args:
        person: The photo.
        body: The body model.
        personal: The fitted person.
        dressed: From `dress`.
        held: [H, W] bool, pixels of held objects: never a colour.
        context: Progress, cancelling and seed.
    """
    settings = DiscSettings()
    stage = "Cover the body"
    context.progress(stage, 0, 2, "discs")
    body, personal = dressed.body(body), dressed.wearer(personal)
    photo = _PhotoView.of(person, body, personal, dressed, held)
    parts = vertex_parts(body)
    parts[_skirt_start(dressed) :] = Part.TRUNK
    subset = np.flatnonzero(outer_triangles(body) & ~head_triangles(body) & ~_inside_skirt(body, dressed))
    spacing = _spacing(person, body, dressed, photo, parts, subset, settings)
    samples = sample_surface(dressed.vertices_m, body.triangles, subset, spacing, context.seed)
    context.raise_if_cancelled()
    context.progress(stage, 1, 2, "colours")
    shell, light = _shell_splats(person, body, personal, dressed, photo, parts, samples, settings, context.seed)
    sheets = [_membrane_splats(person, body, dressed, photo, m, light, settings) for m in dressed.membranes]
    context.progress(stage, 2, 2)
    return concatenate([shell, *sheets])


def _skirt_start(dressed: Dressed) -> int:
    """Row of the first vertex that is a skirt's."""
    return len(dressed.vertices_m) - (0 if dressed.skirt is None else len(dressed.skirt.rest_m))


def _inside_skirt(body: BodyModel, dressed: Dressed) -> np.ndarray:
    """[T] bool: triangles that a skirt hides from all sides."""
    if dressed.skirt is None:
        return np.zeros(len(body.triangles), bool)
    levels = dressed.skirt.shape.levels_m
    hidden = dressed.under_skirt & (dressed.posed_m[:, 1] < levels[-1] - 0.01)
    hidden &= dressed.undressed_m[:, 1] > dressed.skirt.shape.hem_m + HIDDEN_DEPTH_M
    return hidden[body.triangles].all(axis=1)


@dataclass(frozen=True)
class _PhotoView:
    """The photo as the discs see it: surface_depth_m [H, W], usable [H, W] bool pixels, px_m metres per pixel."""

    surface_depth_m: np.ndarray
    usable: np.ndarray
    px_m: float
    personal: Personal

    @staticmethod
    def of(person: Person, body: BodyModel, personal: Personal, dressed: Dressed, held: np.ndarray) -> _PhotoView:
        view = view_mesh(dressed.posed_m, body.triangles[outer_triangles(body)], personal.camera)
        depth = view.nearest.depth_m
        px_m = float(np.median(depth[view.nearest.covered])) / personal.camera.fx
        depth = depth.copy()
        for sheet in dressed.membranes:
            nearer = sheet.front & sheet.seen
            rows, columns = sheet.pixels[nearer].T
            z = personal.camera.to_camera(sheet.points_m[nearer])[:, 2]
            depth[rows, columns] = np.minimum(depth[rows, columns], z)
        # one pixel and more at the mask's edge is mixed with the background
        rounds = max(1, round(max(person.mask.shape) / 500))
        mask = ((person.mask > 0.5) & ~held).astype(np.uint8)
        usable = cv2.erode(mask, np.ones((3, 3), np.uint8), iterations=rounds, borderValue=1) > 0
        return _PhotoView(depth, usable, px_m, personal)

    def border_share(self, uv_px: np.ndarray) -> np.ndarray:
        """[N] 0..1: rises over `BORDER_M` from the picture's border, so that a cut-off person fades into the fill."""
        height, width = self.usable.shape
        inside = np.minimum(np.minimum(uv_px[:, 0], width - uv_px[:, 0]), np.minimum(uv_px[:, 1], height - uv_px[:, 1]))
        return np.clip((inside * self.px_m - 0.002) / BORDER_M, 0, 1)


def _spacing(
    person: Person,
    body: BodyModel,
    dressed: Dressed,
    photo: _PhotoView,
    parts: np.ndarray,
    subset: np.ndarray,
    settings: DiscSettings,
) -> np.ndarray:
    """Wanted spacing [S] on each triangle: finer on hands and where the photo shows detail."""
    faces = body.triangles[subset]
    base = np.where(np.isin(parts[faces[:, 0]], HANDS), settings.hand_spacing_m, settings.spacing_m)
    grey = cv2.cvtColor(person.image, cv2.COLOR_RGB2GRAY).astype(np.float32) / 255
    contrast = np.sqrt(np.maximum(cv2.blur(grey**2, (5, 5)) - cv2.blur(grey, (5, 5)) ** 2, 0))
    contrast = cv2.blur(contrast * photo.usable, (5, 5))
    camera = photo.personal.camera
    corners = dressed.posed_m[faces].astype(np.float64)
    centre = corners.mean(axis=1)
    normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    view = centre - camera.position_m
    facing = -(normal * view).sum(1) / np.maximum(np.linalg.norm(normal, axis=1) * np.linalg.norm(view, axis=1), 1e-12)
    p = camera.to_camera(centre)
    uv = camera.project(centre)
    sure = photo_confidence(facing, p[:, 2], uv, photo.surface_depth_m, photo.usable) > 0.1
    column = np.clip(uv[:, 0].astype(int), 0, person.mask.shape[1] - 1)
    row = np.clip(uv[:, 1].astype(int), 0, person.mask.shape[0] - 1)
    detail = np.where(sure, np.clip((contrast[row, column] - 0.02) / 0.08, 0, 1), 0.0)
    finest = np.maximum(settings.finest_px * p[:, 2] / camera.fx, settings.finest_m)
    rest = dressed.vertices_m[faces].astype(np.float64)
    area = 0.5 * np.linalg.norm(np.cross(rest[:, 1] - rest[:, 0], rest[:, 2] - rest[:, 0]), axis=1)
    for _ in range(12):
        spacing = base + detail * (np.minimum(finest, base) - base)
        if (area / spacing**2).sum() <= settings.most:
            break
        finest = 1.15 * finest
    return spacing


def _shell_splats(
    person: Person,
    body: BodyModel,
    personal: Personal,
    dressed: Dressed,
    photo: _PhotoView,
    parts: np.ndarray,
    samples: SurfaceSamples,
    settings: DiscSettings,
    seed: int,
) -> tuple[BoundSplats, Light]:
    """Discs on the proxy, coloured from the photo and by rule; and the photo's light."""
    camera = personal.camera
    posed = samples.interpolate(dressed.posed_m, body.triangles)
    posed_normal = _unit(samples.interpolate(vertex_normals(dressed.posed_m, body.triangles), body.triangles))
    view = posed - camera.position_m
    facing = -(posed_normal * view).sum(axis=1) / np.linalg.norm(view, axis=1)
    depth = camera.to_camera(posed)[:, 2]
    uv = camera.project(posed)
    confidence = photo_confidence(facing, depth, uv, photo.surface_depth_m, photo.usable)
    confidence *= photo.border_share(uv)
    colours = sample_photo(person.image, uv, samples.spacing_m * camera.fx / np.maximum(depth, 0.05))

    part = parts[body.triangles[samples.triangles, 0]]
    bare = samples.interpolate(dressed.undressed_m, body.triangles)
    ring = dressed.rings.at(bare, part)
    under_skirt = samples.interpolate(dressed.under_skirt.astype(np.float64), body.triangles) > 0.5
    ring = _rings_round_skirt(dressed, bare, ring, under_skirt, body.triangles[samples.triangles, 0])
    neck, shoulder = (personal.joints_m[JOINT_NAMES.index(name)] for name in ("neck", "left_shoulder"))
    normal = _unit(samples.interpolate(vertex_normals(dressed.vertices_m, body.triangles), body.triangles))
    ring = _rings_at_nape(dressed.rings, bare, normal, part, ring, float(neck[1]), abs(float(shoulder[0])))
    label, confidence = _labels(person, dressed, uv, part, ring, under_skirt, confidence)
    surface = FillSurface(
        bare, normal, _family(part), _side(part), axis_m(bare, part), label.astype(int), samples.spacing_m**2
    )
    trust = np.where(confidence > SEEN, confidence * samples.spacing_m**2, 0.0)
    lit = _unit(samples.interpolate(_cloth_normals(body, dressed, camera.w2c[2, :3]), body.triangles))
    light = find_light(lit, colours, label, trust, camera.position_m - posed.mean(axis=0), seed)
    falling = light.at(lit)
    defaults, overall = _default_colours(person, photo, part, label, relit(colours, 1 / falling), confidence)
    # the face, where unseen skin takes its colour from, looks at the camera
    defaults[int(Label.SKIN)] = relit(defaults[int(Label.SKIN)][None], 1 / light.at(-_unit(view).mean(axis=0)[None]))[0]
    rgb = fill_colours(surface, colours, confidence, defaults, overall, seed, falling)

    spacing = samples.spacing_m[:, None]
    centre = samples.positions_m - settings.inward * spacing * normal
    offsets, rotations = bind_points(
        centre, disc_frames(normal), samples.triangles, samples.bary, dressed.vertices_m, body.triangles
    )
    colour_gate, shape_gate = gates(confidence, facing)
    count = len(samples)
    skin = label == Label.SKIN
    made = BoundSplats(
        triangles=samples.triangles,
        bary=samples.bary,
        offsets_m=offsets,
        rotations_wxyz=rotations,
        scales_m=spacing * np.array([[settings.sigma, settings.sigma, settings.thickness]]),
        opacities=np.full(count, settings.opacity),
        colours=rgb,
        confidence=confidence,
        kind=np.where(skin, Kind.SKIN, Kind.CLOTH),
        colour_gate=colour_gate,
        shape_gate=shape_gate,
        opacity_floor=np.full(count, settings.opacity_floor),
    )
    return made, light


def _rings_at_nape(
    rings: Rings,
    bare_m: np.ndarray,
    normals: np.ndarray,
    part: np.ndarray,
    ring: np.ndarray,
    neck_m: float,
    shoulder_m: float,
) -> np.ndarray:
    """[N] codes of the rings; behind, what is worn on the shoulders reaches up to the neck.

    A neckline is cut lower in front than behind, so that the rings, which the front votes for, leave the nape bare.

    Args:
        rings: Of the person.
        bare_m: [N, 3] places on the undressed body in the T-pose.
        normals: [N, 3] there; +z is the front.
        part: [N] `Part`.
        ring: [N] codes.
        neck_m: Height of the neck's joint.
        shoulder_m: Distance of the shoulders' joints from the middle.
    """
    out = ring.copy()
    bare = (part == Part.TRUNK) & (ring == Label.SKIN) & (normals[:, 2] < 0) & (bare_m[:, 1] < neck_m)
    for arm, side in zip(ARMS, (bare_m[:, 0] >= 0, bare_m[:, 0] < 0), strict=True):
        place = np.array([[shoulder_m if arm == ARMS[0] else -shoulder_m, neck_m, 0.0]])
        worn = rings.at(place, np.array([arm], np.uint8))[0]
        if worn >= FIRST_CLOTH:
            out[bare & side & (bare_m[:, 1] > neck_m - NAPE_M)] = worn
    return out


def _rings_round_skirt(
    dressed: Dressed, bare_m: np.ndarray, ring: np.ndarray, under_skirt: np.ndarray, vertex: np.ndarray
) -> np.ndarray:
    """[N] codes of the rings, corrected: a skirt is its cloth down to its own hem, the legs under it are not.

    Args:
        dressed: From `dress`.
        bare_m: [N, 3] places on the undressed body in the T-pose.
        ring: [N] codes found along trunk and legs.
        under_skirt: [N] bool.
        vertex: [N] a vertex of the triangle that carries each disc.
    """
    if dressed.skirt is None:
        return ring
    own = vertex >= _skirt_start(dressed)
    cloths = ring[own & (ring >= FIRST_CLOTH)]
    code = int(np.bincount(cloths).argmax()) if len(cloths) else FIRST_CLOTH
    below = legs_below(dressed.rings, dressed.skirt.shape.hem_m, code)
    side = (bare_m[:, 0] < 0).astype(int)
    low = under_skirt & (bare_m[:, 1] < dressed.skirt.shape.hem_m + 2 * HIDDEN_DEPTH_M)
    out = np.where(low & (ring == code), below[side], ring)
    return np.where(own & ((ring < FIRST_CLOTH) | (ring == below[side])), code, out)


def _stretch(body: BodyModel, dressed: Dressed, triangles: np.ndarray) -> np.ndarray:
    """[N] factor by which `BoundSplats.posed` enlarges discs on these triangles in the photo's pose."""
    faces = body.triangles[triangles]
    posed, rest = (triangle_frames(v, faces)[1] for v in (dressed.posed_m, dressed.vertices_m))
    return np.clip(posed / np.maximum(rest, 1e-9), 0.5, 2.0)


def _cloth_normals(body: BodyModel, dressed: Dressed, forward: np.ndarray) -> np.ndarray:
    """[V, 3] normals in the photo's pose without toes and creases, which cloth does not have."""
    posed = np.asarray(dressed.posed_m, np.float64)
    average = average_operator(mesh_links(body.triangles, len(posed), None, 1.0))
    triangles = body.triangles[outer_triangles(body)]
    normals = smoothed_normals(posed, triangles, average, rounds=4)
    feet = np.isin(vertex_parts(body), FEET)
    normals[feet] = smoothed_normals(posed, triangles, average, rounds=30)[feet]
    # what lies under a skirt is as dark as its back
    normals[dressed.under_skirt] = forward
    return normals


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def _family(part: np.ndarray) -> np.ndarray:
    """[N] int: parts that share rows of colour."""
    family = np.zeros(len(part), int)
    for k, group in enumerate((ARMS, HANDS, FEET), start=1):
        family[np.isin(part, group)] = k
    return family


def _side(part: np.ndarray) -> np.ndarray:
    """[N] int: 1 left, -1 right, 0 trunk."""
    side = np.zeros(len(part), int)
    for group in (ARMS, HANDS, LEGS, FEET):
        side[part == group[0]], side[part == group[1]] = 1, -1
    return side


def _labels(
    person: Person,
    dressed: Dressed,
    uv_px: np.ndarray,
    part: np.ndarray,
    ring: np.ndarray,
    under_skirt: np.ndarray,
    confidence: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Label [N] of each disc, and its confidence [N] without pixels that belong to something else.

    Seen discs carry the photo's label, the others that of their ring. Pixels on hands and arms that contradict the
    ring, and skin near a hand that lies on the clothes, come from a limb that the pose missed by a little; legs under a
    skirt are only seen where their own colour is.
    """
    height, width = person.mask.shape
    row = np.clip(np.floor(uv_px[:, 1]).astype(int), 0, height - 1)
    column = np.clip(np.floor(uv_px[:, 0]).astype(int), 0, width - 1)
    pixel = dressed.codes[row, column]
    limb = np.isin(part, ARMS + HANDS)
    # on an arm: skin for cloth, cloth for skin, or a cloth that only trunk and legs wear
    worn = np.unique(ring[np.isin(part, ARMS)])
    foreign = ((pixel == Label.SKIN) != (ring == Label.SKIN)) | (
        (pixel >= FIRST_CLOTH) & np.isin(pixel, np.unique(ring[np.isin(part, LEGS)])) & ~np.isin(pixel, worn)
    )
    contradicts = limb & (pixel != ring) & (foreign | np.isin(part, HANDS)) & (pixel != Label.HAIR)
    lost = [hand for hand, seen in zip(HANDS, hands_seen(person), strict=True) if not seen]
    hands = np.concatenate([person.left_hand_px, person.right_hand_px])
    size = max(float(np.linalg.norm(person.keypoints_px[11] - person.keypoints_px[12])), 10.0)
    near_hand = np.zeros(len(uv_px), bool)
    if len(hands):
        near_hand = cKDTree(hands).query(uv_px)[0] < 0.15 * size
    hand_on_cloth = ~limb & (pixel == Label.SKIN) & (ring != Label.SKIN) & near_hand
    hidden = under_skirt & (pixel != ring)
    out = np.where(contradicts | np.isin(part, lost) | hand_on_cloth | hidden, 0.0, confidence).astype(np.float32)
    seen = (blend_weight(out) > 0.5) & (pixel != Label.NONE)
    return np.where(seen, pixel, ring), out


def _default_colours(
    person: Person,
    photo: _PhotoView,
    part: np.ndarray,
    label: np.ndarray,
    colours: np.ndarray,
    confidence: np.ndarray,
) -> tuple[dict[int, np.ndarray], np.ndarray]:
    """Colours of labels nobody saw: skin from the face, shoes from the darkened lower clothes; and of anything else."""
    seen = confidence > 0.2
    face = (person.labels == Label.SKIN) & photo.usable
    if len(person.face_px):
        hull = np.zeros(person.mask.shape, np.uint8)
        cv2.fillConvexPoly(hull, cv2.convexHull(person.face_px[:468, :2].astype(np.float32)).astype(np.int32), (1,))
        face &= hull > 0
    pixels = person.image[face].astype(np.float32) / 255
    skin = to_rgb(np.median(to_lab(pixels), axis=0)[None])[0] if len(pixels) > 30 else np.array([0.78, 0.60, 0.50])
    defaults = {int(Label.SKIN): skin}
    cloth = seen & (label >= FIRST_CLOTH) & ~np.isin(part, HANDS)
    lower, trunk = cloth & np.isin(part, LEGS), cloth & (part == Part.TRUNK)
    base = next((m for m in (lower, trunk, cloth) if m.sum() > 300), None)
    overall = np.array([35.0, 0.0, 0.0])
    if base is not None:
        common = np.bincount(label[base]).argmax()
        overall = np.median(to_lab(colours[base & (label == common)]), axis=0)
    if not (seen & (label == Label.SHOES)).any():
        defaults[int(Label.SHOES)] = to_rgb((np.array([10.0, 0, 0]) + overall * [0.22, 0.22, 0.22])[None])[0]
    return defaults, to_rgb(overall[None])[0]


def _membrane_splats(
    person: Person,
    body: BodyModel,
    dressed: Dressed,
    photo: _PhotoView,
    sheet: Membrane,
    light: Light,
    settings: DiscSettings,
) -> BoundSplats:
    """Discs of a sheet: its front in the photo's colours, its back in their local mean under the light there."""
    camera = photo.personal.camera
    row, column = sheet.pixels.T
    count = len(row)
    inside = np.zeros(person.mask.shape, np.float32)
    inside[sheet.pixels[sheet.seen, 0], sheet.pixels[sheet.seen, 1]] = 1.0
    area = (cv2.dilate(inside, np.ones((7, 7), np.uint8)) > 0) & photo.usable
    smooth = _masked_blur(person.image.astype(np.float32) / 255, area, 0.04 / photo.px_m)
    uv = np.stack([column + 0.5, row + 0.5], axis=1)
    sharp = sample_photo(person.image, uv, np.full(count, sheet.spacing_m / photo.px_m))
    confidence = np.where(sheet.front & sheet.seen & photo.usable[row, column], 0.8, 0.0)
    view = sheet.points_m - camera.position_m
    towards = light.at(-_unit(view).mean(axis=0)[None])
    behind = relit(smooth[row, column], light.at(sheet.normals) / towards)
    colours = np.where(confidence[:, None] > 0, sharp, behind)

    offsets, rotations = bind_points(
        sheet.points_m, disc_frames(sheet.normals), sheet.triangles, sheet.bary, dressed.posed_m, body.triangles
    )
    scale = sheet.spacing_m / _stretch(body, dressed, sheet.triangles)
    facing = -(sheet.normals * view).sum(axis=1) / np.linalg.norm(view, axis=1)
    colour_gate, shape_gate = gates(confidence, facing)
    return BoundSplats(
        triangles=sheet.triangles,
        bary=sheet.bary,
        offsets_m=offsets,
        rotations_wxyz=rotations,
        scales_m=scale[:, None] * np.array([[1.2 * settings.sigma, 1.2 * settings.sigma, settings.thickness]]),
        opacities=np.full(count, settings.opacity),
        colours=colours,
        confidence=confidence,
        kind=np.full(count, Kind.HAIR if sheet.hair else Kind.MEMBRANE),
        colour_gate=colour_gate,
        shape_gate=shape_gate,
        opacity_floor=np.full(count, settings.opacity_floor),
    )


def _masked_blur(photo: np.ndarray, area: np.ndarray, sigma_px: float) -> np.ndarray:
    """[H, W, 3] mean colour of the usable pixels around, weighted by distance."""
    weight = area.astype(np.float32)
    if not area.any():
        return photo
    mean = photo[area].mean(axis=0)
    sigma = max(sigma_px, 1.0)
    total = cv2.GaussianBlur(weight, (0, 0), sigma) + 1e-4
    return (cv2.GaussianBlur(photo * weight[..., None], (0, 0), sigma) + 1e-4 * mean) / total[..., None]


__all__ = ["DiscSettings", "body_splats"]
