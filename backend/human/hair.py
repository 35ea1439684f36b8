"""Hair as three jittered shells of strand-aligned Gaussians between the skull and the photo's outline.

The outline gives the thickness at the rim; the back takes the sides' thickness and tapers to the neck at the nape.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import cv2
import numpy as np
from scipy.ndimage import gaussian_filter1d
from scipy.spatial import cKDTree

from backend.human.hair_colour import HairLook, colour_hair, strand_directions
from backend.human.head_fit import EYES, SKULL_JOINTS
from backend.human.head_view import HeadView, sample
from backend.human.head_warp import PhotoFrame, ear_vertices, hidden_ears, pixels
from backend.human.model import BodyModel, Region
from backend.human.personal import Personal, head_triangles
from backend.human.zbuffer import depth_buffer
from backend.perception.people import Person
from backend.splats.bound import BoundSplats, Kind, bind_points

SHELLS = ((18000, 0.97, 0.03), (8000, 0.62, 0.10), (5000, 0.25, 0.10))
"""Per shell: points on the full sphere, share of the thickness, radial jitter as a share of the thickness."""
RAYS = 180
RIM_PX = 13
FLAT_M = 0.009
LONELY = 0.09
"""A tuft whose 12th neighbour is farther than this (radians; the full shells have 0.04) is dropped."""
LARGEST_EXCESS_M = 0.09
STRAND_REACH = 2.5
"""Half the visible length of a strand's Gaussian in units of the spacing (two deviations)."""
STILL_M = 0.0008
"""Hair hangs on triangles that no facial action moves by more than this."""


@dataclass(frozen=True)
class Ear:
    """Extent of one ear in rest space (m) and whether hair hides it on the photo."""

    front_m: float
    back_m: float
    top_m: float
    hidden: bool


@dataclass(frozen=True)
class Skull:
    """The head under the hair in rest space, and its rigid map to the camera.

    Attributes:
        centre_m: [3] origin of the shells, above the eyes in the middle of the skull.
        directions: [K, 3] unit directions of skull vertices; radii_m [K] their distances.
        radii_m: [K].
        turn: [3, 3] rest axes to camera axes; shift_m [3].
        shift_m: [3].
        eyes_m: [3] between the eyes; chin_y_m the chin's tip; unit_m the distance of the eyes.
        chin_y_m: Height.
        unit_m: Length.
        ears: Left and right ear.
        depth_m: [S, S] depth of the person without hair in the crop.
    """

    centre_m: np.ndarray
    directions: np.ndarray
    radii_m: np.ndarray
    turn: np.ndarray
    shift_m: np.ndarray
    eyes_m: np.ndarray
    chin_y_m: float
    unit_m: float
    ears: tuple[Ear, Ear]
    depth_m: np.ndarray

    def radius(self, directions: np.ndarray) -> np.ndarray:
        """[N] distance of the skin in unit directions [N, 3]."""
        distance, nearest = cKDTree(self.directions).query(directions, k=4)
        weight = 1 / (distance + 0.02) ** 2
        return (self.radii_m[nearest] * weight).sum(axis=1) / weight.sum(axis=1)

    def to_camera(self, points_m: np.ndarray) -> np.ndarray:
        """Rest points [N, 3] in the camera."""
        return points_m @ self.turn.T + self.shift_m

    def shows(self, points_m: np.ndarray, view: HeadView) -> tuple[np.ndarray, np.ndarray]:
        """Whether rest points [N, 3] lie in front of the bare person [N], and their pixels [N, 2]."""
        camera = self.to_camera(points_m)
        uv = pixels(camera, view.camera)
        cell = np.clip(uv.astype(int), 0, self.depth_m.shape[0] - 1)
        return camera[:, 2] < self.depth_m[cell[:, 1], cell[:, 0]] + 0.002, uv


@dataclass(frozen=True)
class Outline:
    """What the photo says about the hair's extent.

    Attributes:
        thetas: [A] image angles about the centre, y down.
        excess_m: [A] hair beyond the skull at the rim, 0 where none shows.
        top_m: Typical excess above the head.
        side_m: Typical excess at the sides.
        low_y_m: Rest height of the hair's lower end at the sides.
        nape_y_m: Rest height of its lower end at the back.
    """

    thetas: np.ndarray
    excess_m: np.ndarray
    top_m: float
    side_m: float
    low_y_m: float
    nape_y_m: float


@dataclass(frozen=True)
class Strands:
    """Hair points in rest space: positions, unit directions from the centre, normals, shell share, spacing; N each."""

    positions_m: np.ndarray
    directions: np.ndarray
    normals: np.ndarray
    share: np.ndarray
    spacing_m: np.ndarray

    def select(self, index: np.ndarray) -> Strands:
        """The points at `index`."""
        return Strands(*(getattr(self, n)[index] for n in self.__dataclass_fields__))


@dataclass(frozen=True)
class HairShell:
    """The hair's Gaussians and what lies under them.

    Attributes:
        splats: The Gaussians.
        centre_m: [3] centre of the shells.
        directions: [N, 3] of the Gaussians.
        radii_m: [N] their distances from the centre.
        scalp_colour: [3] of skin below the hair.
        hidden_ears: Left and right ear lie under the hair.
        reach: Points this near (radians) to three Gaussians lie under them.
    """

    splats: BoundSplats
    centre_m: np.ndarray
    directions: np.ndarray
    radii_m: np.ndarray
    scalp_colour: np.ndarray
    hidden_ears: tuple[bool, bool]
    reach: float = field(default=0.055)

    def covers(self, points_m: np.ndarray) -> np.ndarray:
        """[N] bool: points [N, 3] in rest space that lie under hair."""
        if not len(self.directions):
            return np.zeros(len(points_m), bool)
        arm = points_m - self.centre_m
        length = np.linalg.norm(arm, axis=1)
        distance, nearest = cKDTree(self.directions).query(arm / length[:, None], k=3)
        return (distance[:, 2] < self.reach) & (length < self.radii_m[nearest].max(axis=1) + 0.004)


def hair_splats(person: Person, view: HeadView, body: BodyModel, personal: Personal, frame: PhotoFrame) -> HairShell:
    """Build the hair.

    Args:
        person: The person on the photo.
        view: The head's crop.
        body: The body model.
        personal: The personalised head.
        frame: Rest space to the camera.
    """
    skull = _skull(view, body, personal, frame)
    area = float((view.hair > 0.5).sum()) / (np.pi * (0.4 * view.face_height_px) ** 2)
    if area < 0.05:  # bald
        return _no_hair(skull)
    outline = _outline(view, skull)
    strands = _keep(view, skull, outline, _shell_points(skull, outline, view))
    if len(strands.share) < 200:
        return _no_hair(skull)
    along = strand_directions(view, skull, strands)
    tucked = _tucked(view, skull, strands, along)
    strands, along = strands.select(tucked), along[tucked]
    look = colour_hair(view, skull, strands, along)
    splats = _bound(body, personal, skull, strands, along, look)
    radii = np.linalg.norm(strands.positions_m - skull.centre_m, axis=1)
    hidden = (skull.ears[0].hidden, skull.ears[1].hidden)
    return HairShell(splats, skull.centre_m, strands.directions, radii, look.middle * 0.55, hidden)


def _no_hair(skull: Skull) -> HairShell:
    zero, three = np.zeros(0), np.zeros((0, 3))
    empty = BoundSplats(zero, three, three, np.zeros((0, 4)), three, zero, three, zero, zero, zero, zero, zero)
    hidden = (skull.ears[0].hidden, skull.ears[1].hidden)
    return HairShell(empty, skull.centre_m, three, zero, np.zeros(3), hidden)


def _skull(view: HeadView, body: BodyModel, personal: Personal, frame: PhotoFrame) -> Skull:
    rest = personal.vertices_m.astype(np.float64)
    weight = body.skin_weights[:, list(SKULL_JOINTS)].sum(axis=1)
    eyes = personal.joints_m[list(EYES)]
    unit = float(np.linalg.norm(eyes[0] - eyes[1]))
    chin = float((body.face_landmarks[[152]] @ rest)[0, 1])
    ears = ear_vertices(body)
    head = (weight > 0.5) & (body.regions == Region.HEAD) & body.outer
    centre = np.array([eyes[:, 0].mean(), eyes[:, 1].mean() + 0.47 * unit, 0.0])
    centre[2] = (rest[head, 2].max() - 0.5 * unit + rest[head, 2].min()) / 2
    chosen = head_triangles(body)
    on = np.zeros(len(rest), bool)
    on[np.unique(body.triangles[chosen])] = True
    arms = rest[on & body.outer & (ears == 0) & (body.regions <= Region.HEAD)] - centre
    radii = np.linalg.norm(arms, axis=1)
    rigid = weight > 0.97
    posed = frame.to_camera(personal.photo_rest_m().astype(np.float64))
    size = view.mask.shape[0]
    solid = body.triangles[body.outer[body.triangles].all(axis=1)]
    hidden = hidden_ears(view, posed, ears) if personal.has_face else (True, True)
    return Skull(
        centre_m=centre,
        directions=arms / radii[:, None],
        radii_m=radii,
        turn=frame.linear[rigid].mean(axis=0),
        shift_m=frame.shift[rigid].mean(axis=0),
        eyes_m=eyes.mean(axis=0),
        chin_y_m=chin,
        unit_m=unit,
        ears=(_ear(rest[ears == 1], hidden[0]), _ear(rest[ears == -1], hidden[1])),
        depth_m=depth_buffer(pixels(posed, view.camera), posed[:, 2], solid, size, size).depth_m,
    )


def _ear(points_m: np.ndarray, hidden: bool) -> Ear:
    return Ear(float(points_m[:, 2].max()), float(points_m[:, 2].min()), float(points_m[:, 1].max()), hidden)


def _outline(view: HeadView, skull: Skull) -> Outline:
    """Thickness of the hair at the rim by angle, and where it ends at the sides and the back."""
    centre_camera = skull.to_camera(skull.centre_m[None])
    centre = pixels(centre_camera, view.camera)[0]
    m_per_px = centre_camera[0, 2] / view.camera.fx
    thetas = np.linspace(-np.pi, np.pi, RAYS + 1)[:-1]
    rim = _rim_radius(view, skull, centre, thetas)
    hair = _hair_radius(view, centre, thetas, rim)
    hairy = hair > 0
    excess = np.clip(np.where(hairy, hair - rim, 0) * m_per_px, 0, LARGEST_EXCESS_M)
    excess = np.where(hairy, gaussian_filter1d(excess, 1.5, mode="wrap"), 0)
    level = np.minimum(abs(thetas), np.pi - abs(thetas)) < 0.6
    side = float(np.median(excess[level & hairy])) if (level & hairy).any() else 0.008
    top = float(np.median(excess[abs(thetas + np.pi / 2) < 0.5]))
    ends = []
    for sign in (-1, 1):
        on_side = hairy & (np.cos(thetas) * sign > 0.15)
        ends.append((np.sin(thetas) * hair)[on_side].max() if on_side.any() else 0.0)
    low = float(skull.centre_m[1] - np.mean(ends) * m_per_px)
    nape = min(low, skull.eyes_m[1] - 1.3 * skull.unit_m) - 0.01
    nape = max(nape, skull.chin_y_m - 0.012) if low > skull.chin_y_m - 0.03 else low
    return Outline(thetas, excess, top, max(side, 0.006), low, float(nape))


def _rim_radius(view: HeadView, skull: Skull, centre_px: np.ndarray, thetas: np.ndarray) -> np.ndarray:
    """[A] outermost projected skull by angle, px."""
    above = skull.centre_m + skull.directions * skull.radii_m[:, None]
    above = above[above[:, 1] > skull.chin_y_m - 0.02]
    polar = pixels(skull.to_camera(above), view.camera) - centre_px
    angle, radius = np.arctan2(polar[:, 1], polar[:, 0]), np.linalg.norm(polar, axis=1)
    out = np.zeros(len(thetas))
    for i, theta in enumerate(thetas):
        near = abs((angle - theta + np.pi) % (2 * np.pi) - np.pi) < 0.05
        out[i] = radius[near].max() if near.any() else 0.0
    return out


def _hair_radius(view: HeadView, centre_px: np.ndarray, thetas: np.ndarray, rim_px: np.ndarray) -> np.ndarray:
    """[A] outer end of the hair that starts at the skull's rim, px; 0 where there is none."""
    size = view.mask.shape[0]
    radii = np.arange(4, size, dtype=np.float64)
    x = centre_px[0] + np.cos(thetas)[:, None] * radii
    y = centre_px[1] + np.sin(thetas)[:, None] * radii
    inside = (x > 1) & (x < size - 1) & (y > 1) & (y < size - 1)
    uv = np.stack([x.ravel(), y.ravel()], axis=1)
    hair = (sample(view.hair, uv).reshape(x.shape) > 0.5) & inside
    mask = (sample(view.mask, uv).reshape(x.shape) > 0.5) & inside
    out = np.zeros(len(thetas))
    for i in range(len(thetas)):
        exit_at = int(np.argmin(mask[i])) if not mask[i].all() else len(radii) - 1
        start = int(np.clip(0.85 * rim_px[i] - 4, 0, len(radii) - 1))
        run = np.flatnonzero(hair[i, start:exit_at])
        if not len(run):
            continue
        end = start + run[-1]
        if end > 0.93 * rim_px[i] - 4 and len(run) > 0.6 * (end - start - run[0]):
            out[i] = radii[exit_at] if exit_at - end < 0.12 * exit_at else radii[end]
    return out


def _shell_points(skull: Skull, outline: Outline, view: HeadView) -> Strands:
    """Points of all shells over the full sphere; hidden ones are drawn in until they project inside the mask."""
    parts = [_one_shell(skull, outline, view, *shell, seed=k + 1) for k, shell in enumerate(SHELLS)]
    directions, positions, share, spacing = (np.concatenate([p[i] for p in parts]) for i in range(4))
    _, near = cKDTree(positions).query(positions, k=14)
    arms = positions[near] - positions[near].mean(axis=1, keepdims=True)
    normals = np.linalg.eigh(np.einsum("nki,nkj->nij", arms, arms))[1][:, :, 0]
    normals *= np.sign((normals * directions).sum(axis=1, keepdims=True))
    normals = normals + directions
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    return Strands(positions, directions, normals, share, spacing)


def _one_shell(
    skull: Skull, outline: Outline, view: HeadView, count: int, share: float, jitter: float, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    i = np.arange(count) + 0.5
    polar, turn = np.arccos(1 - 2 * i / count), np.pi * (1 + 5**0.5) * i + seed
    directions = np.c_[np.cos(turn) * np.sin(polar), np.cos(polar), np.sin(turn) * np.sin(polar)]
    directions += 0.3 / np.sqrt(count) * rng.standard_normal(directions.shape)
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    skin = skull.radius(directions)
    thickness = _thickness(skull, outline, directions, skin)
    outward = thickness * (share + jitter * abs(rng.standard_normal(count))) + 0.002
    outward = _drawn_in(skull, view, directions, skin, outward)
    points = skull.centre_m + directions * (skin + outward)[:, None]
    spacing = np.sqrt(4 * np.pi / count) * (skin + outward)
    return directions, points, np.full(count, share), spacing


def _drawn_in(
    skull: Skull, view: HeadView, directions: np.ndarray, skin_m: np.ndarray, outward_m: np.ndarray
) -> np.ndarray:
    """[N] outward distances with which hair behind the head does not stick out beside it on the photo; smooth."""
    hidden = (directions @ skull.turn.T)[:, 2] > -0.1
    share = np.ones(len(directions))
    for _ in range(16):
        shown, uv = skull.shows(skull.centre_m + directions * (skin_m + share * outward_m)[:, None], view)
        share = np.where(hidden & shown & (sample(view.hair, uv) < 0.5), 0.93 * share, share)
    _, near = cKDTree(directions).query(directions, k=16)
    smooth = share[near].mean(axis=1)
    return np.maximum(outward_m * np.where(hidden, np.minimum(smooth, share + 0.06), share), 0.001)


def _thickness(skull: Skull, outline: Outline, directions: np.ndarray, skin_m: np.ndarray) -> np.ndarray:
    """[N] metres of hair on the skull by direction."""
    in_camera = directions @ skull.turn.T
    across = in_camera[:, 0] ** 2 + in_camera[:, 1] ** 2
    angle = np.arctan2(in_camera[:, 1], in_camera[:, 0])
    rim = np.interp(angle, outline.thetas, outline.excess_m, period=2 * np.pi)
    behind = across * np.where(rim > 0, rim, outline.side_m) + (1 - across) * 0.9 * outline.side_m
    front = float(np.clip(0.35 * outline.top_m, 0.005, 0.014))
    full = np.where(in_camera[:, 2] > 0, behind, across**2 * rim + (1 - across**2) * front)
    height = skull.centre_m[1] + directions[:, 1] * skin_m
    taper = np.clip((height - _lower_edge(skull, outline, directions[:, 0] * skin_m)) / 0.04, 0.04, 1)
    taper = taper * taper * (3 - 2 * taper)
    back = np.clip(in_camera[:, 2] + 0.1, 0, 0.3) / 0.3
    return full * (1 - (1 - taper) * back * (1 - across**3))


def _lower_edge(skull: Skull, outline: Outline, x_m: np.ndarray) -> np.ndarray:
    """[N] height of the hair's lower end behind the ears: the nape in the middle, the seen ends at the sides."""
    side = max(outline.low_y_m, outline.nape_y_m)
    bow = np.clip(abs(x_m - skull.centre_m[0]) / (1.25 * skull.unit_m), 0, 1) ** 4
    return outline.nape_y_m + (side - outline.nape_y_m) * bow


def _keep(view: HeadView, skull: Skull, outline: Outline, strands: Strands) -> Strands:
    """Drop points over bare skin: what the photo would show must carry its hair label, the rest obeys anatomy."""
    shown, uv = skull.shows(strands.positions_m, view)
    label = sample(view.hair, uv)
    # at the rim a few pixels of tolerance: the shell is smoother than the outline, and the skull itself may stand out
    rim = (strands.directions @ skull.turn.T)[:, 2] > -0.15
    height = np.linalg.norm(strands.positions_m - skull.centre_m, axis=1) - skull.radius(strands.directions)
    person = sample(view.mask, uv)
    for where, reach in ((rim, RIM_PX), ((person < 0.5) & (height < FLAT_M), 2 * RIM_PX + 1)):
        wide = cv2.dilate(view.hair, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (reach, RIM_PX // 2)))
        label = np.where(where, sample(wide, uv), label)
    # what hides behind neck and ears must not peep out beside them
    low = strands.positions_m[:, 1] < skull.eyes_m[1]
    deep = cv2.erode(view.mask, np.ones((2 * RIM_PX + 1, 2 * RIM_PX + 1), np.uint8))
    behind = _may_have_hair(skull, outline, strands) & (~low | (sample(deep, uv) > 0.5))
    kept = strands.select(np.where(shown, label > 0.5, behind))
    if len(kept.share) < 20:
        return kept
    lonely = cKDTree(kept.directions).query(kept.directions, k=12)[0][:, -1] > LONELY
    return kept.select(~lonely)


def _tucked(view: HeadView, skull: Skull, strands: Strands, along: np.ndarray) -> np.ndarray:
    """[N] bool: strands below the eyes whose ends do not peep out beside what they hang behind."""
    low = strands.positions_m[:, 1] < skull.eyes_m[1]
    kept = np.ones(len(low), bool)
    for sign in (-1, 1):
        ends = strands.positions_m + sign * STRAND_REACH * strands.spacing_m[:, None] * along
        hair = sample(cv2.dilate(view.hair, np.ones((3, 3), np.uint8)), pixels(skull.to_camera(ends), view.camera))
        person = sample(view.mask, pixels(skull.to_camera(ends), view.camera))
        kept &= ~low | (hair > 0.3) | (person > 0.5)
    return kept


def _may_have_hair(skull: Skull, outline: Outline, strands: Strands) -> np.ndarray:
    """[N] bool for unseen points: above the nape and behind the ears, or where the rim beside has hair."""
    x, y, z = strands.positions_m.T
    left, right = skull.ears
    pick = np.where(x > skull.centre_m[0], 0, 1)
    front, back, top = (np.array([getattr(e, n) for e in skull.ears])[pick] for n in ("front_m", "back_m", "top_m"))
    hidden = np.array([e.hidden for e in skull.ears])[pick]
    limit = np.where(hidden.astype(bool) | (y > top), front - 0.08 * skull.unit_m, back + 0.15 * skull.unit_m)
    in_camera = strands.directions @ skull.turn.T
    across = in_camera[:, 0] ** 2 + in_camera[:, 1] ** 2
    rim = np.interp(np.arctan2(in_camera[:, 1], in_camera[:, 0]), outline.thetas, outline.excess_m, period=2 * np.pi)
    beside = (rim > 0.002) & (across > 0.6) & (z < skull.eyes_m[2] - 0.3 * skull.unit_m)
    beside &= hidden.astype(bool) | (y > top - 0.25 * skull.unit_m)
    allowed = (z < limit) | (y > skull.eyes_m[1] + 0.5 * skull.unit_m) | beside
    return allowed & ((y > _lower_edge(skull, outline, x)) | beside)


def _bound(
    body: BodyModel, personal: Personal, skull: Skull, strands: Strands, along: np.ndarray, look: HairLook
) -> BoundSplats:
    """Bind the hair to the nearest triangles of the scalp that no expression moves."""
    rest = personal.vertices_m.astype(np.float64)
    still = np.abs(personal.action_offsets_m).max(axis=(0, 2)) < STILL_M
    still &= (body.skin_weights[:, list(SKULL_JOINTS)].sum(axis=1) > 0.95) & (body.regions == Region.HEAD) & body.outer
    triangles = np.flatnonzero(head_triangles(body) & still[body.triangles].all(axis=1))
    feet = skull.centre_m + strands.directions * skull.radius(strands.directions)[:, None]
    triangles = triangles[cKDTree(rest[body.triangles[triangles]].mean(axis=1)).query(feet)[1]]
    n = len(triangles)
    bary = np.full((n, 3), 1 / 3)
    rotations = np.stack([along, np.cross(strands.normals, along), strands.normals], axis=2)
    offsets, quaternions = bind_points(strands.positions_m, rotations, triangles, bary, rest, body.triangles)
    spacing = strands.spacing_m
    return BoundSplats(
        triangles=triangles,
        bary=bary,
        offsets_m=offsets,
        rotations_wxyz=quaternions,
        scales_m=np.stack([1.24 * spacing, 0.39 * spacing, 0.16 * spacing], axis=1),
        opacities=np.where(strands.share < 0.5, 0.95, 0.9),
        colours=np.clip(look.colours, 0, 1),
        confidence=look.confidence,
        kind=np.full(n, Kind.HAIR),
        colour_gate=np.clip(0.06 + look.confidence, 0, 1),
        shape_gate=np.clip(0.25 + look.confidence, 0, 1),
        opacity_floor=np.full(n, 0.3),
    )
