"""Back and hair from a model that makes Gaussians of one picture, where one is installed.

What it makes stands in a frame of its own, of unknown size, and its person is not quite ours. A similarity and a smooth
field bring it onto the dressed proxy in the photo's pose; what then lies where the photo shows nothing replaces what
was filled by rule, bound to the same triangles, in the colours that the photo has beside it. The front stays the
photo's. A lift that does not become this person is left out, with the reason.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from scipy.spatial import cKDTree

from backend.diffusion.interfaces import Lifted, LiftGenerator
from backend.human.outline_flow import detail_flow, joined, outline_flow, pulled
from backend.human.registration import Field, Points, Similarity, align, outward_normals, smooth_field
from backend.human.video_camera import Subject
from backend.splats.bound import BoundSplats, Kind, PosedSplats, bind_points, concatenate, triangle_frames
from backend.splats.colour import SEEN, blend_weight, to_lab, to_rgb
from backend.splats.light import to_display, to_linear
from backend.splats.polish import facing_camera
from backend.splats.render import render, to_cameras
from blender_addon.shared.gaussians import matrices_to_wxyz, wxyz_product, wxyz_to_matrices
from blender_addon.shared.skeleton import JOINT_NAMES

if TYPE_CHECKING:
    from backend.context import Context

STAGE = "Lift the photo"
TO_CAMERA = np.diag([1.0, -1.0, -1.0])
"""From a lift's axes (y up, seen from +z) to a camera's (y down, z forward)."""

_FINGERS = JOINT_NAMES.index("left_index1")
_HANDS = (JOINT_NAMES.index("left_wrist"), JOINT_NAMES.index("right_wrist"))


@dataclass(frozen=True)
class LiftSettings:
    """When a lift is believed, and how far.

    Attributes:
        points: Of either surface, for the registration.
        unseen_trust: Of the dressed proxy where the photo does not show it; hair_trust: of hair there.
        turns_deg: About the vertical: not every model has its front where the picture is seen from.
        largest_gap: Mean distance after the registration above which it is another shape, of the height.
        least_cover: Share of the person's surface that must have lifted Gaussians within `cover_reach` of the height.
        least_iou: Of its outline with the photo's, from the photo's camera.
        largest_colour: Median difference in Lab from what the photo shows, after levelling.
        reach: How far from the proxy lifted Gaussians may lie, of the height; hair_reach: beside hair.
        replaces: A Gaussian of the rule goes where lifted ones lie this near, of the height.
        under: So far below the lift what stays of the rule lies at least, of the height.
        decay: Over which the border's difference in colour fades, of the height.
        opaque: Fainter Gaussians are dropped.
    """

    points: int = 4000
    unseen_trust: float = 0.35
    hair_trust: float = 0.1
    turns_deg: tuple[float, ...] = (0.0, 90.0, 180.0, 270.0)
    largest_gap: float = 0.018
    least_cover: float = 0.85
    cover_reach: float = 0.025
    least_iou: float = 0.82
    largest_colour: float = 24.0
    reach: float = 0.035
    hair_reach: float = 0.08
    replaces: float = 0.014
    under: float = 0.0015
    decay: float = 0.06
    opaque: float = 0.05


@dataclass(frozen=True)
class LiftReport:
    """How well a lift became the person, lengths of the height.

    Attributes:
        gap: Mean distance of surfaces. cover, iou, colour: As in `LiftSettings`. turn_deg: The start that was best.
    """

    gap: float
    cover: float
    iou: float
    colour: float
    turn_deg: float

    def refusal(self, settings: LiftSettings) -> str:
        """Why it is not the person; empty if it is."""
        if self.gap > settings.largest_gap:
            return f"its surface stays {100 * self.gap:.1f} % of the height away"
        if self.cover < settings.least_cover:
            return f"it covers {100 * self.cover:.0f} % of the person"
        if self.iou < settings.least_iou:
            return f"its outline agrees with the photo's by {100 * self.iou:.0f} %"
        if self.colour > settings.largest_colour:
            return f"its colours differ from the photo's by {self.colour:.0f} in Lab"
        return ""


@dataclass(frozen=True)
class WithLift:
    """Gaussians after a lift.

    Attributes:
        splats: With the lifted ones last; as they were where it was refused.
        used: It was not refused. report: How well it fits. warnings: For the artist. made_by: Models, by name.
    """

    splats: BoundSplats
    used: bool
    report: LiftReport
    warnings: tuple[str, ...] = ()
    made_by: tuple[str, ...] = ()


def lift_back(
    generator: LiftGenerator,
    splats: BoundSplats,
    subject: Subject,
    context: Context,
    settings: LiftSettings = LiftSettings(),
) -> WithLift:
    """Lift the photo and take back and hair from it; see `add_lifted`.

    Raises:
        Cancelled: If the user cancelled.
        UserError: If the model cannot run.
    """
    person = subject.person
    lifted = generator.lift(person.image, np.asarray(person.mask, np.float32), context.part(STAGE, 0, 70, 100))
    made = add_lifted(splats, subject, lifted, context.part(STAGE, 70, 100, 100), settings)
    return replace(made, made_by=tuple(str(source) for source in generator.sources) if made.used else ())


def add_lifted(
    splats: BoundSplats, subject: Subject, lifted: Lifted, context: Context, settings: LiftSettings = LiftSettings()
) -> WithLift:
    """Replace what was filled by rule.

    Args:
        splats: N Gaussians on the subject's proxy.
        subject: Who is in the photo.
        lifted: Of the photo.
        context: Progress, cancelling, seed.
        settings: See there.

    Returns:
        The Gaussians and how it went.
    """
    stage = "Bring the lift onto the person"
    context.progress(stage, 0, 3)
    scene = _Scene.of(subject, splats)
    solid = _Solid.of(lifted, settings)
    if len(solid.places) < 500:
        return _refused(splats, LiftReport(1.0, 0.0, 0.0, 100.0, 0.0), "it is nearly empty")
    placed, turn = _place(solid, scene, context.seed, settings)
    context.progress(stage, 1, 3)
    report = _judge(placed, scene, turn, settings)
    reason = report.refusal(settings)
    if reason:
        return _refused(splats, report, reason)
    placed = _levelled(placed, scene)
    context.progress(stage, 2, 3)
    made = _replace(splats, placed, scene, subject, settings)
    context.progress(stage, 3, 3)
    return WithLift(made, True, report)


def _refused(splats: BoundSplats, report: LiftReport, reason: str) -> WithLift:
    line = f"The lifted back and hair were not used: {reason}; back and hair are filled by rule."
    return WithLift(splats, False, report, (line,))


@dataclass(frozen=True)
class _Scene:
    """The person as it stands in the photo.

    Attributes:
        subject: Who. posed: The Gaussians. proxy_m: [V, 3]. normals: [N, 3]. seen: [N] 0..1, the photo's share.
        confidence: [N]. kinds: [N] `Kind`. triangles: [N]. height_m: Of the proxy.
    """

    subject: Subject
    posed: PosedSplats
    proxy_m: np.ndarray
    normals: np.ndarray
    seen: np.ndarray
    confidence: np.ndarray
    kinds: np.ndarray
    triangles: np.ndarray
    height_m: float

    @staticmethod
    def of(subject: Subject, splats: BoundSplats) -> _Scene:
        personal = subject.personal
        pose, shift = np.asarray(personal.pose, np.float64), np.asarray(personal.translation_m, np.float64)
        proxy = subject.posed_m(pose, shift, np.asarray(personal.actions))
        posed = splats.posed(proxy, subject.rest_m, subject.body.triangles)
        normals = wxyz_to_matrices(posed.rotations_wxyz)[:, :, 2]
        height = float(np.ptp(posed.positions_m[:, 1]))
        return _Scene(
            subject, posed, proxy, normals, blend_weight(splats.confidence), splats.confidence, splats.kind,
            splats.triangles, height,
        )  # fmt: skip

    def surface(self, seed: int, settings: LiftSettings) -> tuple[Points, np.ndarray]:
        """Points on it with how far they are trusted, and their rows."""
        rows = np.flatnonzero(np.isin(self.kinds, (Kind.SKIN, Kind.CLOTH, Kind.HAIR, Kind.MEMBRANE)))
        # evenly over the surface: the face has more Gaussians than a leg
        cell = np.floor(self.posed.positions_m[rows] / (0.006 * self.height_m)).astype(np.int64)
        _, first = np.unique(cell, axis=0, return_index=True)
        rows = rows[np.sort(first)]
        rows = np.sort(np.random.default_rng(seed).permutation(rows)[: settings.points])
        ruled = np.where(self.kinds[rows] == Kind.HAIR, settings.hair_trust, settings.unseen_trust)
        trust = np.maximum(self.seen[rows], ruled)
        return Points(self.posed.positions_m[rows].astype(np.float64), self.normals[rows], trust), rows


@dataclass(frozen=True)
class _Solid:
    """A lift's Gaussians that show anything: places [M, 3], turns [M, 4], scales [M, 3], opacities [M], rgb [M, 3]."""

    places: np.ndarray
    turns: np.ndarray
    scales: np.ndarray
    opacities: np.ndarray
    rgb: np.ndarray

    @staticmethod
    def of(lifted: Lifted, settings: LiftSettings) -> _Solid:
        """Without faint ones and without specks that float beside."""
        arrays = (lifted.positions, lifted.rotations_wxyz, lifted.scales, lifted.opacities, lifted.colours)
        sums = np.sum([np.asarray(a, np.float64).reshape(len(a), -1).sum(axis=1) for a in arrays if len(a)], axis=0)
        rows = np.flatnonzero(np.isfinite(sums) & (lifted.opacities > settings.opaque)) if np.ndim(sums) else []
        if len(rows) > 20:
            apart = cKDTree(lifted.positions[rows]).query(lifted.positions[rows], k=9)[0][:, -1]
            rows = rows[apart < 6 * float(np.median(apart))]
        return _Solid(*(np.asarray(a[rows], np.float64) for a in arrays))

    def select(self, rows: np.ndarray) -> _Solid:
        return _Solid(*(a[rows] for a in (self.places, self.turns, self.scales, self.opacities, self.rgb)))

    def moved(self, by: Similarity) -> _Solid:
        turn = matrices_to_wxyz(by.rotation[None])
        turns = wxyz_product(np.repeat(turn, len(self.turns), axis=0), self.turns)
        return replace(self, places=by.places(self.places), turns=turns, scales=by.scale * self.scales)

    def bent(self, field: Field) -> _Solid:
        return replace(self, places=self.places + field.at(self.places))


def _place(solid: _Solid, scene: _Scene, seed: int, settings: LiftSettings) -> tuple[_Solid, float]:
    """The lift on the person, and the turn that it needed."""
    rows, normals = outward_normals(solid.places, seed, most=settings.points)
    source = Points(solid.places[rows], normals, np.ones(len(rows)))
    target, target_rows = scene.surface(seed, settings)
    shown = scene.seen[target_rows] > 0.5
    wanted = to_lab(scene.posed.colours[target_rows[shown]])
    best: tuple[float, Similarity, float] | None = None
    for turn in settings.turns_deg:
        found, gap = align(source, target, _start(solid, scene, turn))
        tree = cKDTree(found.places(solid.places[rows]))
        near = tree.query(target.places[shown])[1]
        colour = float(np.median(np.abs(to_lab(solid.rgb[rows])[near] - wanted).sum(axis=1)))
        # a person is nearly the same from before and behind: then the colours decide
        cost = gap / scene.height_m + 0.01 * colour / settings.largest_colour
        if best is None or cost < best[0]:
            best = (cost, found, turn)
    assert best is not None
    field = smooth_field(best[1].moved(source), target, seed)
    return _slid(solid.moved(best[1]).bent(field), scene, seed), best[2]


def _slid(placed: _Solid, scene: _Scene, seed: int) -> _Solid:
    """The lift moved along its surface, until it shows stripes, seams and outline where the photo does.

    Distances of surfaces do not tell how far one has slid on the other. What lies behind follows what lies in front.
    """
    camera, person = scene.subject.personal.camera, scene.subject.person
    ones = np.full(len(placed.places), 0.95)
    drawn = PosedSplats(placed.places, placed.turns, placed.scales, ones, placed.rgb)
    colours, alpha = (picture[0] for picture in render(drawn, to_cameras(camera)))
    mask = np.asarray(person.mask, np.float32)
    flow = outline_flow(alpha, mask)
    both = (alpha > 0.5) & (pulled(mask, flow) > 0.5)
    flow = joined(flow, detail_flow(colours, pulled(person.image, flow) / 255.0, both))
    uv, depth = camera.project(placed.places), camera.to_camera(placed.places)[:, 2]
    size = np.array([camera.width, camera.height])
    x, y = np.clip(np.floor(uv), 0, size - 1).astype(int).T
    nearest = np.full((camera.height // 3 + 1, camera.width // 3 + 1), np.inf)
    np.minimum.at(nearest, (y // 3, x // 3), depth)
    front = (depth < nearest[y // 3, x // 3] + 0.006 * scene.height_m) & ((uv >= 0) & (uv < size)).all(axis=1)
    rows = np.flatnonzero(front)
    rows = np.sort(np.random.default_rng(seed).permutation(rows)[:4000])
    if len(rows) < 200:
        return placed
    across = flow[y[rows], x[rows]] * (depth[rows] / camera.fx)[:, None]
    moves = across @ camera.w2c[:2, :3]
    return placed.bent(Field(placed.places[rows], moves, 0.02 * scene.height_m))


def _start(solid: _Solid, scene: _Scene, turn_deg: float) -> Similarity:
    """As the picture shows it: as high as the person, its middle on the person's, turned about the vertical."""
    camera = scene.subject.personal.camera
    angle = np.radians(turn_deg)
    about = np.array([[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]])
    rotation = camera.w2c[:3, :3].T @ TO_CAMERA @ about
    turned, points = solid.places @ rotation.T, scene.posed.positions_m
    low, high = np.percentile(turned, (0.5, 99.5), axis=0)
    near, far = np.percentile(points, (0.5, 99.5), axis=0)
    scale = float((far - near)[1] / max(float((high - low)[1]), 1e-9))
    return Similarity(scale, rotation, (near + far) / 2 - scale * (low + high) / 2)


def _judge(placed: _Solid, scene: _Scene, turn_deg: float, settings: LiftSettings) -> LiftReport:
    """How well a placed lift is the person."""
    height = scene.height_m
    body = np.flatnonzero(np.isin(scene.kinds, (Kind.SKIN, Kind.CLOTH)))
    body = body[:: max(1, len(body) // 8000)]
    apart, near = cKDTree(placed.places).query(scene.posed.positions_m[body])
    away = cKDTree(scene.posed.positions_m).query(placed.places[:: max(1, len(placed.places) // 8000)])[0]
    gap = 0.5 * (np.minimum(apart, 0.1 * height).mean() + np.minimum(away, 0.1 * height).mean()) / height
    cover = float((apart < settings.cover_reach * height).mean())
    camera = to_cameras(scene.subject.personal.camera)
    ones = np.full(len(placed.places), 0.95)
    drawn = PosedSplats(placed.places, placed.turns, placed.scales, ones, placed.rgb)
    alpha, mask = render(drawn, camera)[1][0] > 0.5, np.asarray(scene.subject.person.mask) > 0.5
    iou = float((alpha & mask).sum() / max(int((alpha | mask).sum()), 1))
    shown = scene.seen[body] > 0.5
    colour = 0.0
    if shown.any():
        ours, theirs = scene.posed.colours[body[shown]], placed.rgb[near[shown]]
        gain = _gain(ours, theirs)
        off = to_lab(to_display(to_linear(theirs) * gain)) - to_lab(ours)
        colour = float(np.median(np.linalg.norm(off, axis=1)))
    return LiftReport(float(gap), cover, iou, colour, turn_deg)


def _gain(wanted: np.ndarray, given: np.ndarray, largest: float = 1.8) -> np.ndarray:
    """[3] factor of linear light that brings given colours [N, 3] to wanted ones [N, 3] on the whole."""
    logs = np.log(np.maximum(to_linear(wanted), 2e-3) / np.maximum(to_linear(given), 2e-3))
    return np.clip(np.exp(np.median(logs, axis=0)), 1 / largest, largest)


def _levelled(placed: _Solid, scene: _Scene) -> _Solid:
    """The lift in the photo's colours, each kind of surface by its own factor where enough of it is shown."""
    shown = np.flatnonzero((scene.seen > 0.5) & np.isin(scene.kinds, (Kind.SKIN, Kind.CLOTH, Kind.HAIR)))
    if len(shown) < 200:
        return placed
    shown = shown[:: max(1, len(shown) // 20000)]
    near = cKDTree(placed.places).query(scene.posed.positions_m[shown])[1]
    ours, theirs = scene.posed.colours[shown], placed.rgb[near]
    every = _gain(ours, theirs)
    kind = scene.kinds[cKDTree(scene.posed.positions_m).query(placed.places)[1]]
    gains = np.tile(every, (len(placed.places), 1))
    for which in (Kind.SKIN, Kind.CLOTH, Kind.HAIR):
        mine = scene.kinds[shown] == which
        if mine.sum() >= 150:
            gains[kind == which] = _gain(ours[mine], theirs[mine])
    return replace(placed, rgb=to_display(to_linear(placed.rgb) * gains))


def _replace(
    splats: BoundSplats, placed: _Solid, scene: _Scene, subject: Subject, settings: LiftSettings
) -> BoundSplats:
    """The rule's Gaussians out, the lift's in, and both alike at the border."""
    body, height = subject.body, scene.height_m
    dominant = body.skin_weights[body.triangles[scene.triangles, 0]].argmax(axis=1)
    hand = (dominant >= _FINGERS) | np.isin(dominant, _HANDS)
    open_kind = np.isin(scene.kinds, (Kind.SKIN, Kind.CLOTH, Kind.HAIR, Kind.MEMBRANE))
    ruled = open_kind & ~hand & (scene.seen < 0.5) & ~_before_face(scene)
    tree = cKDTree(scene.posed.positions_m)
    apart, near = tree.query(placed.places, k=6)
    reach = np.where(scene.kinds[near[:, 0]] == Kind.HAIR, settings.hair_reach, settings.reach) * height
    taken = (ruled[near].mean(axis=1) > 0.5) & (apart[:, 0] < reach) & open_kind[near[:, 0]]
    # nothing may stand before what the photo shows
    taken &= ~_hides_the_photo(placed, scene)
    if taken.sum() < 100:
        return splats
    rows = np.flatnonzero(taken)
    new, feet = placed.select(rows), near[rows, 0]
    rgb = _joined(new, placed, scene, settings)
    gone, under = _behind_lift(new, ruled, scene, settings)
    bound = _bound(new, rgb, feet, splats, scene, subject)
    mixed = _towards_lift(splats, placed, scene)
    colours = mixed.colours.copy()
    colours[under] = rgb[cKDTree(new.places).query(scene.posed.positions_m[under], k=4)[1]].mean(axis=1)
    return concatenate([replace(mixed, colours=colours).select(~gone), bound])


def _behind_lift(
    new: _Solid, ruled: np.ndarray, scene: _Scene, settings: LiftSettings
) -> tuple[np.ndarray, np.ndarray]:
    """Which Gaussians [N] would stand before the lift and go, and rows of those that stay under it, in its colours.

    A lift has holes, through which the inside of the front would be seen.
    """
    rows = np.flatnonzero(ruled)
    apart, near = cKDTree(new.places).query(scene.posed.positions_m[rows], k=3)
    reach = np.where(scene.kinds[rows] == Kind.HAIR, 2.5, 1.0) * settings.replaces * scene.height_m
    covered = apart[:, -1] < reach
    out = ((new.places[near].mean(axis=1) - scene.posed.positions_m[rows]) * scene.normals[rows]).sum(axis=1)
    before = covered & (out < settings.under * scene.height_m)
    gone = np.zeros(len(scene.kinds), bool)
    gone[rows[before]] = True
    return gone, rows[covered & ~before]


def _before_face(scene: _Scene) -> np.ndarray:
    """[N] bool: turned towards the camera and bare; lids, lips and ears that the photo hides stay the rule's."""
    facing = facing_camera(scene.posed, scene.subject.personal.camera)
    return (scene.kinds == Kind.SKIN) & (facing > 0.3)


def _hides_the_photo(placed: _Solid, scene: _Scene) -> np.ndarray:
    """[M] bool: nearer to the camera than what the photo shows at its pixel, or outside the photo's outline."""
    camera = scene.subject.personal.camera
    size = np.array([camera.width, camera.height])

    def pixels(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        uv = np.floor(camera.project(points) / 3).astype(int)
        return np.clip(uv, 0, size // 3), camera.to_camera(points)[:, 2]

    nearest = np.full(tuple(size // 3 + 1), np.inf)
    shown = scene.seen > 0.5
    at, depth = pixels(scene.posed.positions_m[shown])
    np.minimum.at(nearest, (at[:, 0], at[:, 1]), depth)
    at, depth = pixels(placed.places)
    front = depth < nearest[at[:, 0], at[:, 1]] + 0.004 * scene.height_m
    mask = np.asarray(scene.subject.person.mask)
    uv = np.floor(camera.project(placed.places)).astype(int)
    inside = ((uv >= 0) & (uv < size)).all(axis=1)
    x, y = np.clip(uv, 0, size - 1).T
    return (front & np.isfinite(nearest[at[:, 0], at[:, 1]])) | (inside & (mask[y, x] < 0.3))


def _joined(new: _Solid, placed: _Solid, scene: _Scene, settings: LiftSettings) -> np.ndarray:
    """[M, 3] colours of what comes in, with the border's difference carried a little way in."""
    border = np.flatnonzero((scene.confidence > SEEN) & (scene.confidence < 0.5) & (scene.kinds != Kind.MOUTH))
    if len(border) < 50:
        return new.rgb
    theirs = placed.rgb[cKDTree(placed.places).query(scene.posed.positions_m[border], k=4)[1]].mean(axis=1)
    apart = np.clip(to_lab(scene.posed.colours[border]) - to_lab(theirs), (-14, -10, -10), (14, 10, 10))
    distance, near = cKDTree(scene.posed.positions_m[border]).query(new.places, k=16)
    weight = np.exp(-distance / (settings.decay * scene.height_m))
    mean = (weight[..., None] * apart[near]).sum(axis=1) / np.maximum(weight.sum(axis=1), 1e-9)[:, None]
    return to_rgb(to_lab(new.rgb) + weight.mean(axis=1)[:, None] * mean)


def _towards_lift(splats: BoundSplats, placed: _Solid, scene: _Scene) -> BoundSplats:
    """What stays, with the rule's part of its colour taken from the lift."""
    mixed = np.flatnonzero((scene.seen < 1) & np.isin(scene.kinds, (Kind.SKIN, Kind.CLOTH, Kind.HAIR)))
    if not len(mixed):
        return splats
    distance, near = cKDTree(placed.places).query(scene.posed.positions_m[mixed], k=4)
    close = distance[:, 0] < 0.02 * scene.height_m
    part = (1 - scene.seen[mixed]) * scene.seen[mixed] * 2 * close
    colours = splats.colours.copy()
    colours[mixed] += part[:, None] * (placed.rgb[near].mean(axis=1) - colours[mixed])
    return replace(splats, colours=np.clip(colours, 0, 1))


def _bound(
    new: _Solid, rgb: np.ndarray, feet: np.ndarray, splats: BoundSplats, scene: _Scene, subject: Subject
) -> BoundSplats:
    """Lifted Gaussians bound where the Gaussian of the rule beside each is bound, so that both move alike."""
    triangles, bary = splats.triangles[feet], splats.bary[feet]
    offsets, turns = bind_points(
        new.places, wxyz_to_matrices(new.turns), triangles, bary, scene.proxy_m, subject.body.triangles
    )
    faces = subject.body.triangles[triangles]
    posed, rest = (triangle_frames(v, faces)[1] for v in (scene.proxy_m, subject.rest_m))
    stretch = np.clip(posed / np.maximum(rest, 1e-9), 0.5, 2.0)
    count = len(feet)
    return BoundSplats(
        triangles=triangles,
        bary=bary,
        offsets_m=offsets,
        rotations_wxyz=turns,
        scales_m=np.maximum(new.scales / stretch[:, None], 1e-5),
        opacities=np.clip(new.opacities, 0, 1),
        colours=np.clip(rgb, 0, 1),
        confidence=np.zeros(count),
        kind=splats.kind[feet],
        colour_gate=np.zeros(count),
        shape_gate=np.zeros(count),
        opacity_floor=np.zeros(count),
    )


__all__ = ["LiftReport", "LiftSettings", "WithLift", "add_lifted", "lift_back"]
