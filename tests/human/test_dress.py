"""Dressing a synthetic person: the default body seen by a known camera, with a mask and colours made here."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest

from backend.context import Context
from backend.human.camera import PinholeCamera
from backend.human.cover import body_splats
from backend.human.dress import Dressed, dress, find_held_objects
from backend.human.garments import FEET, FIRST_CLOTH, HANDS, LEGS, Part, garment_codes, vertex_parts
from backend.human.held import outer_triangles, posed_body_m
from backend.human.membranes import nearest_on_triangles, without_tails
from backend.human.model import BodyModel, load_default_body
from backend.human.personal import Personal, head_triangles
from backend.human.zbuffer import depth_buffer, view_mesh
from backend.perception.people import Label, Person
from backend.splats.bound import BoundSplats, Kind
from blender_addon.shared.skeleton import JOINT_NAMES

SHIRT, TROUSERS, SKIN, SHOE = ([200, 60, 50], [40, 50, 110], [215, 165, 140], [30, 28, 25])
HEIGHT, WIDTH = 480, 360
PAINT = {Label.UPPER: SHIRT, Label.LOWER: TROUSERS, Label.SKIN: SKIN, Label.SHOES: SHOE}


@pytest.fixture(scope="module")
def body() -> BodyModel:
    return load_default_body()


@pytest.fixture(scope="module")
def personal(body: BodyModel) -> Personal:
    rest, joints = body.rest(np.zeros(20))
    pose = np.zeros((55, 3))
    pose[JOINT_NAMES.index("left_shoulder"), 2] = -0.8
    pose[JOINT_NAMES.index("right_shoulder"), 2] = 0.8
    w2c = np.diag([1.0, -1.0, -1.0, 1.0])
    w2c[:3, 3] = [0, 0.85, 3.2]
    camera = PinholeCamera(w2c, 780.0, 780.0, WIDTH / 2, HEIGHT / 2, WIDTH, HEIGHT)
    count = len(rest)
    return Personal(
        rest, joints, pose, np.zeros(3), camera, np.zeros(52), np.zeros((52, count, 3), np.float32),
        np.zeros((count, 3), np.float32), np.zeros((HEIGHT, WIDTH), np.float32), False,
    )  # fmt: skip


def _labels_of(body: BodyModel, personal: Personal, hem_m: float) -> tuple[np.ndarray, np.ndarray]:
    """Labels [H, W] of the bare body and its cover [H, W]; the shirt ends at `hem_m` above the floor."""
    posed, _ = posed_body_m(body, personal, personal.vertices_m)
    view = view_mesh(posed, body.triangles[outer_triangles(body)], personal.camera)
    parts = vertex_parts(body)
    heights = personal.vertices_m[:, 1]
    per_vertex = np.where(heights < hem_m, Label.LOWER, Label.UPPER)
    per_vertex[np.isin(parts, HANDS) | (parts == Part.HEAD)] = Label.SKIN
    per_vertex[np.isin(parts, FEET)] = Label.SHOES
    per_vertex[parts == Part.LEFT_ARM] = per_vertex[parts == Part.RIGHT_ARM] = Label.UPPER
    covered = view.nearest.covered
    labels = np.zeros((HEIGHT, WIDTH), np.uint8)
    labels[covered] = per_vertex[view.triangles[view.nearest.triangle[covered], 0]]
    return labels, covered


def _grown(labels: np.ndarray, covered: np.ndarray, grow_px: int, kept: np.ndarray) -> np.ndarray:
    """Labels of clothes `grow_px` wider than the body, except near `kept` pixels (head, hands)."""
    distance, index = cv2.distanceTransformWithLabels(
        (~covered).astype(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
    )
    table = np.zeros(index.max() + 1, np.uint8)
    table[index[covered]] = labels[covered]
    spread = table[index]
    near_bare = cv2.dilate(kept.astype(np.uint8), np.ones((9, 9), np.uint8)) > 0
    out = np.where((distance <= grow_px) & ~near_bare, spread, 0)
    out[covered] = labels[covered]
    return out.astype(np.uint8)


def _person(labels: np.ndarray, image: np.ndarray | None = None) -> Person:
    if image is None:
        image = np.full((HEIGHT, WIDTH, 3), 235, np.uint8)
        for label, colour in PAINT.items():
            image[labels == label] = colour
        noise = np.random.default_rng(0).normal(0, 4, image.shape)
        image = np.clip(image + noise, 0, 255).astype(np.uint8)
    none = np.zeros((0, 2))
    keypoints = np.tile([WIDTH / 2, 40.0], (33, 1))
    keypoints[11], keypoints[12] = (230, 130), (130, 130)
    return Person(
        image, (labels > 0).astype(np.float32), labels, keypoints, np.ones(33), np.ones(33), np.zeros((33, 3)),
        np.zeros((0, 3)), none, none, np.zeros((0, 3)), np.zeros((0, 3)), (),
    )  # fmt: skip


@pytest.fixture(scope="module")
def coat(body: BodyModel, personal: Personal) -> Person:
    """A loose coat, 8 px (3 cm) wider than the body, down to 0.62 m; trousers below."""
    labels, covered = _labels_of(body, personal, 0.62)
    bare = np.isin(labels, (Label.SKIN, Label.SHOES))
    return _person(_grown(labels, covered, 8, bare))


@pytest.fixture(scope="module")
def nothing_held() -> np.ndarray:
    return np.zeros((HEIGHT, WIDTH), bool)


@pytest.fixture(scope="module")
def dressed(coat: Person, body: BodyModel, personal: Personal, nothing_held: np.ndarray) -> Dressed:
    return dress(coat, body, personal, nothing_held, True, Context.quiet(seed=0))


@pytest.fixture(scope="module")
def splats(
    coat: Person, body: BodyModel, personal: Personal, dressed: Dressed, nothing_held: np.ndarray
) -> BoundSplats:
    return body_splats(coat, body, personal, dressed, nothing_held, Context.quiet(seed=0))


def _iou(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / (a | b).sum())


def test_depth_buffer_is_perspective_correct_and_keeps_the_nearer_side() -> None:
    uv = np.array([[0.0, 0], [20, 0], [0, 20], [0, 0], [20, 0], [0, 20]])
    z = np.array([1.0, 2.0, 1.0, 3.0, 3.0, 3.0])
    triangles = np.array([[3, 4, 5], [0, 1, 2]])
    near = depth_buffer(uv, z, triangles, 20, 20)
    assert near.triangle[2, 3] == 1
    assert near.depth_m[2, 9] == pytest.approx(1 / (1 - 9.5 / 20 + 9.5 / 20 / 2), rel=1e-6)
    assert depth_buffer(uv, z, triangles, 20, 20, farthest=True).triangle[2, 3] == 0
    assert not near.covered[19, 19]


def test_shell_reaches_the_mask(coat: Person, body: BodyModel, personal: Personal, dressed: Dressed) -> None:
    triangles = body.triangles[outer_triangles(body)]
    mask = coat.mask > 0.5
    posed, _ = posed_body_m(body, personal, personal.vertices_m)
    before = _iou(view_mesh(posed, triangles, personal.camera).nearest.covered, mask)
    after = _iou(view_mesh(dressed.posed_m, triangles, personal.camera).nearest.covered, mask)
    assert before < 0.8
    assert after > 0.93


def test_head_and_hands_stay(body: BodyModel, personal: Personal, dressed: Dressed) -> None:
    still = np.zeros(len(personal.vertices_m), bool)
    still[body.triangles[head_triangles(body)]] = True
    still |= np.isin(vertex_parts(body), HANDS)
    moved = np.linalg.norm(dressed.vertices_m - personal.vertices_m, axis=1)
    assert moved[still].max() < 1e-6
    assert moved[vertex_parts(body) == Part.TRUNK].max() > 0.015
    assert moved.max() < 0.15


def test_posed_is_the_rest_pose_skinned(body: BodyModel, personal: Personal, dressed: Dressed) -> None:
    posed, _ = posed_body_m(body, personal, dressed.vertices_m)
    np.testing.assert_allclose(posed, dressed.posed_m, atol=1e-5)


def test_hem_is_found_all_round_and_has_a_step(body: BodyModel, personal: Personal, dressed: Dressed) -> None:
    parts = vertex_parts(body)
    for leg in LEGS:
        heights = np.arange(0.3, 0.75, 0.005)
        points = np.stack([np.full(len(heights), 0.1), heights, np.zeros(len(heights))], axis=1)
        codes = dressed.rings.at(points, np.full(len(heights), leg, np.uint8))
        changes = heights[1:][np.diff(codes.astype(int)) != 0]
        assert len(changes) == 1
        assert abs(changes[0] - 0.62) < 0.03
        assert (codes >= FIRST_CLOTH).all()
    code = dressed.rings.at(dressed.undressed_m, parts)
    edges = np.concatenate([body.triangles[:, [0, 1]], body.triangles[:, [1, 2]]])
    across = edges[np.isin(parts[edges], LEGS).all(axis=1) & (code[edges[:, 0]] != code[edges[:, 1]])]
    heights_m = dressed.undressed_m[across, 1]
    assert len(across) > 20
    assert np.abs(np.ptp(heights_m, axis=1)).max() < 0.02  # the mesh has an edge at the hem


def test_without_outline_the_body_stays_bare(
    coat: Person, body: BodyModel, personal: Personal, nothing_held: np.ndarray
) -> None:
    plain = dress(coat, body, personal, nothing_held, False, Context.quiet(seed=0))
    np.testing.assert_allclose(plain.vertices_m, personal.vertices_m, atol=1e-7)
    assert plain.membranes == ()


def test_splats_are_sound(body: BodyModel, splats: BoundSplats) -> None:
    for name in ("bary", "offsets_m", "rotations_wxyz", "scales_m", "colours", "confidence"):
        assert np.isfinite(getattr(splats, name)).all()
    np.testing.assert_allclose(np.linalg.norm(splats.rotations_wxyz, axis=1), 1, atol=1e-5)
    assert (splats.scales_m > 0).all()
    assert splats.colours.min() >= 0 and splats.colours.max() <= 1
    on_head = head_triangles(body)[splats.triangles]
    assert not on_head[splats.kind != Kind.HAIR].any()
    assert outer_triangles(body)[splats.triangles].all()
    assert 20_000 < len(splats) < 70_000
    assert (splats.shape_gate[splats.confidence == 0] == 0).all()
    assert (splats.opacities >= splats.opacity_floor).all()


def _group(splats: BoundSplats, body: BodyModel, dressed: Dressed) -> tuple[np.ndarray, np.ndarray]:
    """Rest positions [N, 3] and parts [N] of the splats."""
    posed = splats.posed(dressed.vertices_m, dressed.vertices_m, body.triangles)
    return posed.positions_m, vertex_parts(body)[body.triangles[splats.triangles, 0]]


def test_the_unseen_back_wears_the_same_clothes(body: BodyModel, dressed: Dressed, splats: BoundSplats) -> None:
    where, part = _group(splats, body, dressed)
    palette = np.array([SHIRT, TROUSERS, SKIN, SHOE]) / 255
    nearest = np.linalg.norm(splats.colours[:, None] - palette[None], axis=2).argmin(axis=1)
    unseen = splats.confidence == 0
    trunk, leg = unseen & (part == Part.TRUNK), unseen & np.isin(part, LEGS)
    assert (nearest[trunk] == 0).mean() > 0.98
    assert (nearest[leg & (where[:, 1] > 0.68)] == 0).mean() > 0.97
    assert (nearest[leg & (where[:, 1] < 0.56) & (where[:, 1] > 0.2)] == 1).mean() > 0.97
    hand = np.isin(part, HANDS)
    beyond_cuff = np.abs(where[:, 0]) > np.percentile(np.abs(where[hand, 0]), 20)
    assert (nearest[hand & beyond_cuff] == 2).mean() > 0.98
    assert (nearest[np.isin(part, FEET) & (where[:, 1] < 0.06)] == 3).mean() > 0.95


def test_a_scooped_neckline_is_closed_behind(body: BodyModel, personal: Personal, nothing_held: np.ndarray) -> None:
    labels, covered = _labels_of(body, personal, 0.62)
    neck = personal.joints_m[JOINT_NAMES.index("neck")]
    column, row = personal.camera.project(neck[None])[0]
    scoop = np.zeros_like(labels)
    cv2.ellipse(scoop, (int(column), int(row)), (34, 30), 0, 0, 360, 1, -1)
    labels[(scoop > 0) & (labels == Label.UPPER)] = Label.SKIN
    person, quiet = _person(labels), Context.quiet(seed=0)
    worn = dress(person, body, personal, nothing_held, True, quiet)
    splats = body_splats(person, body, personal, worn, nothing_held, quiet)
    where, part = _group(splats, body, worn)
    middle = (part == Part.TRUNK) & (np.abs(where[:, 0]) < 0.06) & (np.abs(where[:, 1] - neck[1] + 0.05) < 0.03)
    red = np.linalg.norm(splats.colours - np.array(SHIRT) / 255, axis=1) < 0.25
    behind = where[:, 2] < neck[2] - 0.03
    assert red[middle & behind].mean() > 0.9
    assert red[middle & (splats.confidence > 0.5)].mean() < 0.3


def test_seen_cloth_has_the_photos_colour(splats: BoundSplats) -> None:
    sure = splats.confidence > 0.6
    palette = np.array([SHIRT, TROUSERS, SKIN, SHOE]) / 255
    distance = np.linalg.norm(splats.colours[sure, None] - palette[None], axis=2).min(axis=1)
    assert sure.sum() > 2000
    assert np.percentile(distance, 95) < 0.08


def _with_box(person: Person, corner: tuple[int, int], colour: list[int]) -> tuple[Person, np.ndarray]:
    """The person with a 55 px box in front, labelled as clothes as a colour model might."""
    row, column = corner
    box = np.zeros((HEIGHT, WIDTH), bool)
    box[row : row + 55, column : column + 55] = True
    image, labels = person.image.copy(), person.labels.copy()
    image[box] = colour
    labels[box] = Label.UPPER
    changed = replace(person, image=image, labels=labels, mask=np.maximum(person.mask, box.astype(np.float32)))
    return changed, box


def test_a_held_box_is_found_and_the_sleeve_is_not(coat: Person, body: BodyModel, personal: Personal) -> None:
    assert not find_held_objects(coat, body, personal).any()
    posed, _ = posed_body_m(body, personal, personal.vertices_m)
    wrist = personal.camera.project(posed[vertex_parts(body) == Part.LEFT_HAND]).mean(axis=0)
    held_box, box = _with_box(coat, (int(wrist[1]) - 20, int(wrist[0]) - 8), [40, 160, 60])
    held = find_held_objects(held_box, body, personal)
    assert held[box].mean() > 0.9
    assert held[~box].sum() < 0.15 * box.sum()
    splats = body_splats(
        held_box,
        body,
        personal,
        dress(held_box, body, personal, held, True, Context.quiet(seed=0)),
        held,
        Context.quiet(seed=0),
    )
    green = (splats.colours[:, 1] > splats.colours[:, 0] + 0.15) & (splats.colours[:, 1] > splats.colours[:, 2] + 0.15)
    assert green.mean() < 2e-3


def test_the_flank_of_a_wide_skirt_is_no_held_object(body: BodyModel, personal: Personal) -> None:
    person, _, _ = _in_skirt(body, personal, 0.3)
    labels = person.labels.copy()
    hem = int(np.nonzero(labels == Label.UPPER)[0].max())
    for r in range(hem - 60, hem + 1):
        own = np.flatnonzero(labels[r] == Label.UPPER)
        wide = 40 * (r - hem + 60) // 60
        labels[r, own.min() - wide : own.max() + wide] = Label.UPPER
    wide_skirt = _person(labels)
    # one flank in the shade: of another colour than the rest
    shade = np.arange(WIDTH)[None, :] < WIDTH // 2 - 35
    image = wide_skirt.image.copy()
    image[shade & (labels == Label.UPPER)] = (90, 28, 120)
    assert not find_held_objects(replace(wide_skirt, image=image), body, personal).any()


def test_garment_codes_follow_colour_not_the_waist() -> None:
    labels = np.zeros((100, 60), np.uint8)
    labels[:50, 10:50], labels[50:, 10:50] = Label.UPPER, Label.LOWER
    image = np.full((100, 60, 3), 255, np.uint8)
    image[:70], image[70:] = SHIRT, TROUSERS
    codes = garment_codes(image, labels, labels > 0)
    assert len(np.unique(codes[:68, 12:48])) == 1
    assert len(np.unique(codes[72:, 12:48])) == 1
    assert codes[60, 30] != codes[80, 30]
    assert (codes[:, :10] == Label.NONE).all()


def test_a_striped_shirt_is_one_garment_and_a_badge_makes_no_pattern() -> None:
    labels = np.zeros((200, 80), np.uint8)
    labels[:, 10:70] = Label.UPPER
    striped = np.full((200, 80, 3), SHIRT, np.uint8)
    striped[(np.arange(200) // 6) % 2 == 0] = TROUSERS
    assert len(np.unique(garment_codes(striped, labels, labels > 0)[labels > 0])) == 1
    badge = np.full((200, 80, 3), SHIRT, np.uint8)
    badge[40:70, 20:50] = TROUSERS
    codes = garment_codes(badge, labels, labels > 0)
    assert codes[55, 35] != codes[150, 35]


def test_stripes_half_in_hard_light_stay_one_garment() -> None:
    labels = np.zeros((200, 80), np.uint8)
    labels[:, 10:70] = Label.UPPER
    shirt = np.full((200, 80, 3), (240, 238, 232), np.uint8)
    shirt[(np.arange(200) // 6) % 2 == 0] = (205, 45, 40)
    lit = shirt.copy()
    lit[:, 40:] = (shirt[:, 40:] * 0.68).astype(np.uint8)
    codes = garment_codes(lit, labels, labels > 0)
    main = np.bincount(codes[labels > 0]).argmax()
    assert (codes[labels > 0] == main).mean() > 0.97


def _in_skirt(body: BodyModel, personal: Personal, hem_m: float = 0.55) -> tuple[Person, np.ndarray, np.ndarray]:
    """A person in a flared skirt down to `hem_m`, the leg vertices [V] and all vertices' heights [V]."""
    labels, covered = _labels_of(body, personal, hem_m)
    labels = _grown(labels, covered, 4, np.isin(labels, (Label.SKIN, Label.SHOES)))
    posed, _ = posed_body_m(body, personal, personal.vertices_m)
    legs = np.isin(vertex_parts(body), LEGS)
    heights = personal.vertices_m[:, 1]
    top = float(np.percentile(heights[legs], 98))
    rows = {}
    for y in (top, hem_m):
        uv = personal.camera.project(posed[legs & (np.abs(heights - y) < 0.02)])
        rows[y] = (uv[:, 1].mean(), uv[:, 0].min(), uv[:, 0].max())
    (high, left, right), (low, hem_left, hem_right) = rows[top], rows[hem_m]
    flare = np.array([[left, high], [right, high], [hem_right + 18, low], [hem_left - 18, low]])
    cv2.fillPoly(labels, [flare.astype(np.int32)], (int(Label.UPPER),))
    return _person(labels), legs, heights


def test_a_skirt_is_a_tube_as_deep_as_it_is_wide(body: BodyModel, personal: Personal, nothing_held: np.ndarray) -> None:
    person, legs, _ = _in_skirt(body, personal)
    worn = dress(person, body, personal, nothing_held, True, Context.quiet(seed=0))
    assert worn.skirt is not None
    count = len(personal.vertices_m)
    assert worn.under_skirt[:count][legs].sum() > 100
    assert not worn.under_skirt[:count][np.isin(vertex_parts(body), HANDS + FEET)].any()
    hem = worn.skirt.rest_m[worn.skirt.rest_m[:, 1] < worn.skirt.shape.hem_m + 0.03]
    assert abs(worn.skirt.shape.hem_m - 0.55) < 0.04
    bare = personal.vertices_m[legs & (np.abs(personal.vertices_m[:, 1] - 0.6) < 0.04)]
    wide, deep = np.ptp(hem[:, 0]), np.ptp(hem[:, 2])
    assert wide > np.ptp(bare[:, 0]) + 0.1
    assert 0.6 < deep / wide < 1.1
    drawn = view_mesh(worn.posed_m, worn.body(body).triangles[outer_triangles(worn.body(body))], personal.camera)
    assert _iou(drawn.nearest.covered, person.mask > 0.5) > 0.95


def test_a_skirt_stays_whole_when_the_legs_stride(
    body: BodyModel, personal: Personal, nothing_held: np.ndarray
) -> None:
    person, _, _ = _in_skirt(body, personal)
    worn = dress(person, body, personal, nothing_held, True, Context.quiet(seed=0))
    assert worn.skirt is not None
    whole, wearer = worn.body(body), worn.wearer(personal)
    assert len(whole.template_m) == len(wearer.vertices_m) == len(worn.vertices_m) == len(worn.posed_m)
    posed, _ = posed_body_m(whole, wearer, worn.vertices_m)
    np.testing.assert_allclose(posed, worn.posed_m, atol=1e-5)
    pose = np.zeros((55, 3))
    pose[JOINT_NAMES.index("left_hip"), 0], pose[JOINT_NAMES.index("right_hip"), 0] = -0.5, 0.5
    stride, _ = posed_body_m(whole, replace(wearer, pose=pose), worn.vertices_m)
    faces = whole.triangles[len(body.triangles) :]
    assert faces.min() == len(personal.vertices_m)
    edges = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    before, after = (np.linalg.norm(v[edges[:, 0]] - v[edges[:, 1]], axis=1) for v in (worn.vertices_m, stride))
    assert (after / before).max() < 2.5  # split between the thighs, the front's edges would grow tenfold


def test_legs_under_a_skirt_are_not_its_cloth(body: BodyModel, personal: Personal, nothing_held: np.ndarray) -> None:
    person, _, _ = _in_skirt(body, personal)
    quiet = Context.quiet(seed=0)
    worn = dress(person, body, personal, nothing_held, True, quiet)
    assert worn.skirt is not None
    splats = body_splats(person, body, personal, worn, nothing_held, quiet)
    own = splats.triangles >= len(body.triangles)
    nearest = np.linalg.norm(splats.colours[:, None] - np.array([SHIRT, TROUSERS, SKIN, SHOE])[None] / 255, axis=2)
    assert own.sum() > 3000
    assert (nearest.argmin(axis=1)[own] == 0).mean() > 0.97
    where = splats.posed(worn.vertices_m, worn.vertices_m, worn.body(body).triangles).positions_m
    leg = np.isin(vertex_parts(body)[body.triangles], LEGS).all(axis=1)
    on_leg = np.append(leg, np.zeros(len(worn.skirt.triangles), bool))[splats.triangles]
    assert on_leg.sum() > 2000
    assert where[on_leg, 1].max() < worn.skirt.shape.hem_m + 0.15  # what the skirt hides is not made


def test_a_ring_on_both_sides_of_the_neck_goes_round_behind_it(
    coat: Person, body: BodyModel, personal: Personal, nothing_held: np.ndarray
) -> None:
    labels = coat.labels.copy()
    neck = JOINT_NAMES.index("neck")
    posed, _ = posed_body_m(body, personal, personal.vertices_m)
    near = np.asarray(body.skin_weights[:, : len(JOINT_NAMES)]).argmax(axis=1) == neck
    column, row = personal.camera.project(posed[near]).mean(axis=0)
    ring = np.zeros_like(labels)
    cv2.ellipse(ring, (int(column), int(row)), (44, 16), 0, 0, 360, 1, -1)
    labels[(ring > 0) & (labels == Label.NONE)] = Label.UPPER
    worn = dress(_person(labels), body, personal, nothing_held, True, Context.quiet(seed=0))
    hidden = [m for m in worn.membranes if not m.seen.all()]
    assert len(hidden) == 1
    behind = hidden[0].points_m[~hidden[0].seen]
    side = (behind - posed[near].mean(axis=0)) @ personal.camera.w2c[0, :3]
    assert (np.histogram(side, 5, (-0.05, 0.05))[0] > 5).all()
    depth = personal.camera.to_camera(behind[np.abs(side) < 0.03])[:, 2]
    assert depth.min() > personal.camera.to_camera(posed[near])[:, 2].max() - 0.02


def test_nearest_on_triangles_finds_the_foot_point() -> None:
    vertices = np.array([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [5, 5, 0], [6, 5, 0], [5, 6, 0]])
    triangles = np.array([[0, 1, 2], [3, 4, 5]])
    chosen, bary = nearest_on_triangles(
        np.array([[0.2, 0.3, 0.7], [5.1, 5.1, -1]]), vertices, triangles, np.array([0, 1])
    )
    np.testing.assert_array_equal(chosen, [0, 1])
    np.testing.assert_allclose(np.einsum("nk,nkc->nc", bary, vertices[triangles[chosen]])[0], [0.2, 0.3, 0], atol=1e-9)


def test_a_sheet_loses_lines_one_point_wide_and_keeps_its_block() -> None:
    block = [(r, c) for r in range(4) for c in range(3)]
    tail = [(r, 1) for r in range(4, 9)]
    rows, columns = without_tails(*np.array([*block, *tail]).T)
    kept = set(zip(rows.tolist(), columns.tolist(), strict=True))
    assert kept >= set(block) and len(kept & set(tail)) <= 1
    assert len(without_tails(np.zeros(0, int), np.zeros(0, int))[0]) == 0
