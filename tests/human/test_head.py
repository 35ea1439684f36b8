"""The personal head of the astronaut: it matches the landmarks, its face moves as told, every Gaussian is bound."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.spatial import cKDTree

from backend.context import Context
from backend.human.face_rig import LOOK_DEGREES, eyeball_of
from backend.human.fit import BodyFit, fit_body
from backend.human.head import head_splats, personalise_head
from backend.human.head_fit import good_landmarks
from backend.human.head_view import lab_distance
from backend.human.head_warp import INNER_LIP_PAIRS, PhotoFrame, pixels
from backend.human.lids import lids_of
from backend.human.model import BodyModel, Region, load_default_body
from backend.human.personal import Personal, head_triangles
from backend.perception.labels import Label
from backend.perception.people import Person, find_person
from backend.splats.bound import BoundSplats, Kind
from blender_addon.shared.skeleton import FACIAL_ACTIONS

PORTRAIT = Path(__file__).parents[2] / "scripts" / "data" / "collins.png"


@pytest.fixture(scope="module")
def body() -> BodyModel:
    return load_default_body()


@pytest.fixture(scope="module")
def person() -> Person:
    return find_person(np.asarray(Image.open(PORTRAIT).convert("RGB")), 0, Context.quiet(seed=0))


@pytest.fixture(scope="module")
def fit(person: Person, body: BodyModel) -> BodyFit:
    return fit_body(person, body, Context.quiet(seed=0))


@pytest.fixture(scope="module")
def personal(person: Person, body: BodyModel, fit: BodyFit) -> Personal:
    return personalise_head(person, body, fit, Context.quiet(seed=0))


@pytest.fixture(scope="module")
def splats(person: Person, body: BodyModel, personal: Personal) -> BoundSplats:
    return head_splats(person, body, personal, Context.quiet(seed=0))


def _in_photo(body: BodyModel, personal: Personal, rest_m: np.ndarray) -> np.ndarray:
    """Vertices in the photo's camera."""
    frame = PhotoFrame.of(body, personal.joints_m, personal.pose, personal.translation_m, personal.camera)
    return frame.to_camera(rest_m.astype(np.float64))


def _hair_px(body: BodyModel, personal: Personal, splats: BoundSplats) -> np.ndarray:
    """Pixels [N, 2] of the hair's Gaussians in the working image."""
    hair = splats.select(splats.kind == Kind.HAIR)
    posed = _in_photo(body, personal, personal.photo_rest_m())
    return pixels(hair.posed(posed, personal.vertices_m, body.triangles).positions_m, personal.camera)


def test_the_photos_face_projects_onto_its_landmarks(person: Person, body: BodyModel, personal: Personal) -> None:
    rows = good_landmarks(body)
    uv = pixels(body.face_landmarks[rows] @ _in_photo(body, personal, personal.photo_rest_m()), personal.camera)
    distance = np.linalg.norm(uv - person.face_px[rows, :2], axis=1)
    assert np.median(distance) < 1.5
    neutral = pixels(body.face_landmarks[rows] @ _in_photo(body, personal, personal.vertices_m), personal.camera)
    assert np.linalg.norm(neutral - person.face_px[rows, :2], axis=1).max() > 2  # the smile is not in the neutral face


def test_only_the_head_leaves_the_body_fit(body: BodyModel, fit: BodyFit, personal: Personal) -> None:
    rest, _ = body.rest(fit.betas)
    moved = np.linalg.norm(personal.vertices_m - rest, axis=1)
    assert moved[body.regions == Region.BODY][body.skin_weights[body.regions == Region.BODY, 9] > 0.9].max() < 1e-5
    same = [i for i in range(55) if i not in (12, 15, 22, 23, 24)]
    np.testing.assert_allclose(personal.pose[same], fit.pose[same], atol=1e-9)


def test_the_neutral_mouth_is_closed_and_jaw_open_parts_it(body: BodyModel, personal: Personal) -> None:
    upper, lower = np.array(INNER_LIP_PAIRS).T
    neutral = body.face_landmarks @ personal.vertices_m
    assert abs((neutral[upper] - neutral[lower])[:, 1]).max() < 1.5e-3
    jaw = personal.action_offsets_m[FACIAL_ACTIONS.index("jawOpen")]
    opened = body.face_landmarks @ (personal.vertices_m + jaw)
    assert (opened[13] - opened[14])[1] > 0.015


@pytest.mark.parametrize(("side", "upper", "lower"), [("Left", 386, 374), ("Right", 159, 145)])
def test_a_blink_closes_the_lids_over_the_eyeball(
    body: BodyModel, personal: Personal, side: str, upper: int, lower: int
) -> None:
    neutral = body.face_landmarks @ personal.vertices_m
    blink = personal.action_offsets_m[FACIAL_ACTIONS.index(f"eyeBlink{side}")]
    closed = body.face_landmarks @ (personal.vertices_m + blink)
    opening = (neutral[upper] - neutral[lower])[1]
    assert opening > 0.005
    assert abs((closed[upper] - closed[lower])[1]) < 0.08 * opening
    eye = Region.LEFT_EYE if side == "Left" else Region.RIGHT_EYE
    centre, radius = eyeball_of(body, personal.vertices_m.astype(np.float64), eye)
    assert np.linalg.norm(closed[upper] - centre) > 0.97 * radius
    assert abs(blink[body.regions == eye]).max() == 0


def test_closed_lids_are_skin_with_a_line_of_lashes(body: BodyModel, personal: Personal, splats: BoundSplats) -> None:
    lids = lids_of(body, personal)
    skin = splats.select(splats.kind == Kind.SKIN)
    faces = body.triangles[skin.triangles]
    share = np.einsum("nk,nk->n", skin.bary, lids.share[faces])
    at = np.einsum("nk,nkc->nc", skin.bary, lids.closed_m[faces])
    to_margin, nearest = cKDTree(lids.margin_m).query(at)
    above = (at - lids.margin_m[nearest])[:, 1]
    outer = body.outer[faces].any(axis=1)
    lid = outer & (share > 0.9) & (to_margin > 0.003)
    assert lid.sum() > 200
    around = outer & (share == 0) & (skin.confidence > 0.8) & (to_margin > 0.008) & (to_margin < 0.025)
    tone = np.median(skin.colours[around], axis=0)
    assert lab_distance(np.median(skin.colours[lid], axis=0), tone, lightness=1) < 14
    assert np.percentile(lab_distance(skin.colours[lid], tone, lightness=1), 90) < 22
    lash = outer & (share > 0.9) & (to_margin < 0.0005) & (abs(above) < 0.0005)
    assert lash.sum() > 10
    assert skin.colours[lash].mean() < 0.75 * skin.colours[lid].mean()
    # what the photo wants on the open lids would be spread over the closed eye
    assert skin.colour_gate[share > 0.99].max() < 0.03 and skin.shape_gate[share > 0.99].max() < 0.02
    # but the line of lashes, dark when open and when closed, may follow what shows of it
    assert np.median(skin.colour_gate[lash]) > 0.005 > 4 * np.median(skin.colour_gate[lid])


@pytest.mark.parametrize("weights", [{}, {"mouthSmileLeft": 0.8, "mouthSmileRight": 0.8, "jawOpen": 0.3}])
def test_the_upper_teeth_stay_behind_the_lips(body: BodyModel, personal: Personal, weights: dict[str, float]) -> None:
    moved = personal.vertices_m.astype(np.float64)
    for name, weight in weights.items():
        moved = moved + weight * personal.action_offsets_m[FACIAL_ACTIONS.index(name)]
    teeth = moved[body.regions == Region.UPPER_TEETH]
    upper, lower = np.array(INNER_LIP_PAIRS).T
    lips = np.vstack([body.face_landmarks[[78, 308]] @ moved, body.face_landmarks[[*upper, *lower]] @ moved])
    lips = lips[np.argsort(lips[:, 0])]
    front = np.interp(teeth[:, 0], lips[:, 0], lips[:, 2])
    assert (teeth[:, 2] < front + 0.001).all()


@pytest.mark.parametrize(
    ("name", "axis", "sign"), [("eyeLookOutLeft", 0, 1), ("eyeLookInLeft", 0, -1), ("eyeLookUpLeft", 1, 1)]
)
def test_a_look_turns_the_iris(body: BodyModel, personal: Personal, name: str, axis: int, sign: int) -> None:
    ball = body.regions == Region.LEFT_EYE
    points = personal.vertices_m[ball].astype(np.float64)
    centre, _ = eyeball_of(body, personal.vertices_m.astype(np.float64), Region.LEFT_EYE)
    iris = points[:, 2].argmax()
    turned = points + personal.action_offsets_m[FACIAL_ACTIONS.index(name), ball]
    before, after = points[iris] - centre, turned[iris] - centre
    angle = np.degrees(np.arccos(before @ after / np.linalg.norm(before) / np.linalg.norm(after)))
    assert angle == pytest.approx(LOOK_DEGREES, abs=2)
    assert sign * (after - before)[axis] > 0.003
    np.testing.assert_allclose(
        np.linalg.norm(turned - centre, axis=1), np.linalg.norm(points - centre, axis=1), rtol=1e-3
    )


def test_every_gaussian_hangs_on_the_head(body: BodyModel, splats: BoundSplats) -> None:
    assert head_triangles(body)[splats.triangles].all()
    assert 50_000 < len(splats) < 100_000
    assert {Kind.SKIN, Kind.HAIR, Kind.EYE, Kind.TEETH, Kind.MOUTH} <= set(splats.kind)
    assert np.isfinite(splats.offsets_m).all() and np.isfinite(splats.rotations_wxyz).all()
    assert splats.colours.min() >= 0 and splats.colours.max() <= 1
    assert (splats.colour_gate[splats.kind == Kind.MOUTH] == 0).all()


def test_hair_lies_inside_the_person(person: Person, body: BodyModel, personal: Personal, splats: BoundSplats) -> None:
    uv = _hair_px(body, personal, splats)
    height, width = person.mask.shape
    rows, columns = np.clip(uv[:, 1].astype(int), 0, height - 1), np.clip(uv[:, 0].astype(int), 0, width - 1)
    reach = 5  # px; the face is 106 px high
    wide = np.max(
        [np.roll(person.mask, (dy, dx), (0, 1)) for dy in (-reach, 0, reach) for dx in (-reach, 0, reach)], axis=0
    )
    assert (wide[rows, columns] > 0.3).mean() > 0.995


def test_the_back_of_the_head_is_hair(body: BodyModel, personal: Personal, splats: BoundSplats) -> None:
    at = splats.posed(personal.vertices_m, personal.vertices_m, body.triangles).positions_m
    eyes = personal.joints_m[[23, 24]].mean(axis=0)
    behind = (at[:, 2] < eyes[2] - 0.13) & (abs(at[:, 1] - eyes[1]) < 0.05)
    outer = behind & (at[:, 2] < np.percentile(at[behind, 2], 40))
    assert outer.sum() > 300
    hair = splats.colours[splats.kind == Kind.HAIR].mean(axis=0)
    cheek = splats.colours[(splats.kind == Kind.SKIN) & (splats.confidence > 0.9)].mean(axis=0)
    nearer = np.linalg.norm(splats.colours[outer] - hair, axis=1) < np.linalg.norm(
        splats.colours[outer] - cheek, axis=1
    )
    assert nearer.mean() > 0.99


def test_the_same_photo_gives_the_same_head(
    person: Person, body: BodyModel, fit: BodyFit, personal: Personal, splats: BoundSplats
) -> None:
    again = personalise_head(person, body, fit, Context.quiet(seed=0))
    np.testing.assert_array_equal(again.vertices_m, personal.vertices_m)
    np.testing.assert_array_equal(again.action_offsets_m, personal.action_offsets_m)
    twice = head_splats(person, body, again, Context.quiet(seed=0))
    np.testing.assert_array_equal(twice.colours, splats.colours)
    np.testing.assert_array_equal(twice.offsets_m, splats.offsets_m)


def test_without_a_face_the_models_head_gets_the_hair_of_the_photo(
    person: Person, body: BodyModel, fit: BodyFit
) -> None:
    faceless = replace(person, face_px=np.zeros((0, 3)))
    plain = personalise_head(faceless, body, fit, Context.quiet(seed=0))
    assert not plain.has_face
    np.testing.assert_allclose(plain.vertices_m, body.rest(fit.betas)[0], atol=1e-6)
    out = head_splats(faceless, body, plain, Context.quiet(seed=0))
    assert (out.kind == Kind.HAIR).sum() > 1000
    skin = out.colours[(out.kind == Kind.SKIN) & (out.confidence > 0.5)]
    assert np.linalg.norm(skin.mean(axis=0) - np.median(person.image[person.labels == Label.SKIN], axis=0) / 255) < 0.25
