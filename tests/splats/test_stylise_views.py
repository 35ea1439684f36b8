"""Where a stylised head begins, from where it is looked at, what the models are told, and how it gets onto its rig."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial import KDTree

from backend.diffusion.face_adapter import ImageTokens
from backend.diffusion.views import ViewTexts
from backend.human.face_rig import action_index
from backend.human.model import Region
from backend.raster.cameras import orbit_cameras
from backend.splats.bound import BoundSplats, Kind
from backend.splats.head_start import HeadFrame, head_start, with_points
from backend.splats.render import render
from backend.splats.stylise_bind import bind_stylised, clothes, frame_of, start_triangles
from backend.splats.stylise_teachers import AroundConditions, HeadConditions, landmark_pictures, projected
from backend.splats.stylise_views import FACE_CAMERAS, CameraSampling, draw_groups, draw_views, views_at
from blender_addon.shared.gaussians import GaussianCloud
from tests.splats.head_stand_in import EYE, HAIR, INSIDE, bust
from tests.splats.shapes import ellipsoid


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# ---- the start -------------------------------------------------------------------------------------------------------


def test_the_start_is_the_papers_and_even() -> None:
    vertices, triangles = ellipsoid()
    cloud = head_start(vertices, triangles)
    assert len(cloud) == 10_000 and (cloud.opacities == np.float32(0.2)).all() and (cloud.sh_dc == 0).all()
    assert np.allclose(cloud.scales_m, 0.02) and (cloud.rotations_wxyz == [1, 0, 0, 0]).all()
    radius = np.linalg.norm(cloud.positions_m / [0.38, 0.5, 0.42], axis=1)
    assert (radius > 0.95).all() and (radius < 1.0 + 1e-6).all()
    octants = np.bincount(((cloud.positions_m > 0) @ [1, 2, 4]).astype(int), minlength=8)
    assert octants.min() > 0.94 * octants.max()
    assert np.allclose(head_start(vertices, triangles, count=2500).scales_m, 0.04)  # spacing doubles, so does the size
    again, other = head_start(vertices, triangles), head_start(vertices, triangles, seed=1)
    assert np.array_equal(cloud.positions_m, again.positions_m)
    assert not np.array_equal(cloud.positions_m, other.positions_m)
    with pytest.raises(ValueError, match="no area"):
        head_start(vertices, triangles[:0])


def test_flat_gaussians_lie_in_the_surface() -> None:
    cloud = head_start(*ellipsoid(), count=500, flatness=0.2)
    w, x, y, z = cloud.rotations_wxyz.T
    third = np.stack([2 * (x * z + w * y), 2 * (y * z - w * x), 1 - 2 * (x * x + y * y)], axis=1)
    outwards = cloud.positions_m / np.square([0.38, 0.5, 0.42])
    outwards /= np.linalg.norm(outwards, axis=1, keepdims=True)
    assert np.median((third * outwards).sum(1)) > 0.98


def test_hair_gets_its_share_of_the_start() -> None:
    cloud = head_start(*ellipsoid(), count=1000)
    points = np.random.default_rng(0).normal([0, 2, 0], 0.01, (3000, 3))
    moved = with_points(cloud, points)
    assert (moved.positions_m[:, 1] > 1.5).sum() == 400
    assert (with_points(cloud, points[:30]).positions_m[:, 1] > 1.5).sum() == 30
    assert with_points(cloud, points[:0]) is cloud


def test_metres_and_head_heights_round_trip() -> None:
    frame = HeadFrame(np.array([0.02, 1.55, 0.04]), 0.2317)
    rng = np.random.default_rng(0)
    points = rng.normal(0, 0.2, (500, 3)) + frame.centre_m
    assert np.abs(frame.to_metres(frame.to_unit(points)) - points).max() < 1e-15
    cloud = GaussianCloud.from_colours(
        points.astype(np.float32), rng.uniform(1e-3, 1e-2, (500, 3)), np.tile([1.0, 0, 0, 0], (500, 1)),
        rng.random(500), rng.random((500, 3)),
    )  # fmt: skip
    unit = frame.cloud_to_unit(cloud)
    back = frame.cloud_to_metres(unit)
    assert np.allclose(unit.scales_m * np.float32(0.2317), cloud.scales_m, rtol=1e-6)
    assert np.abs(back.positions_m - cloud.positions_m).max() < 2.4e-7  # a step of float32 at this height
    assert np.allclose(back.scales_m, cloud.scales_m, rtol=3e-7)
    assert np.array_equal(back.opacities, cloud.opacities) and np.array_equal(back.sh_dc, cloud.sh_dc)
    for wrong in ((np.zeros(2), 1.0), (np.zeros(3), 0.0), (np.array([np.nan, 0, 0]), 1.0)):
        with pytest.raises(ValueError, match="frame"):
            HeadFrame(*wrong)


def test_the_frame_is_the_heads_own() -> None:
    own = bust()
    frame = frame_of(own.body, own.vertices_m)
    assert 0.18 < frame.height_m < 0.28
    head = frame.to_unit(own.vertices_m[own.body.regions == Region.HEAD])
    assert head[:, 1].max() == pytest.approx(0.5)
    chin = frame.to_unit(np.asarray(own.body.face_landmarks[152] @ own.vertices_m).ravel())
    assert chin[1] == pytest.approx(-0.5) and abs(chin[0]) < 0.02 and chin[2] > 0.2
    eyes = np.asarray(own.body.face_landmarks[[159, 386]] @ own.vertices_m)
    assert frame.to_unit(eyes)[:, 2].min() > 0.2  # the face looks along +z
    assert start_triangles(own.body).sum() > 2000


# ---- the views -------------------------------------------------------------------------------------------------------


def test_views_obey_their_ranges() -> None:
    sampling = CameraSampling()
    views = draw_views(sampling, 4000, 128, seeded())
    assert views.size_px == 128 and len(views) == 4000
    azimuths, elevations = views.azimuths_deg.numpy(), views.elevations_deg.numpy()
    assert elevations.min() >= -10 and elevations.max() <= 30 and azimuths.min() >= -180 and azimuths.max() < 180
    behind = np.mean(np.abs(azimuths) > 90)
    assert 0.2 < behind < 0.32  # half of the half that comes from all round
    assert abs(np.mean(np.abs(azimuths) < 45) - (0.5 * 0.8 + 0.5 * 0.25)) < 0.05
    w2c, focal = views.cameras.w2c.numpy(), views.cameras.K[:, 0, 0].numpy()
    places = -np.einsum("bji,bj->bi", w2c[:, :3, :3], w2c[:, :3, 3])
    target = np.array(sampling.target)
    distance = np.linalg.norm(places - target, axis=1)
    assert np.abs(np.degrees(np.arctan2(places[:, 0], places[:, 2])) - azimuths).mean() < 3  # 90 is the left side, +x
    assert (places[np.abs(azimuths) < 30, 2] > 0).all()
    fields = 2 * np.degrees(np.arctan(64 / focal))
    assert fields.min() > 17.9 and fields.max() < 32.1
    fill = focal / distance / 128  # of one head height at the target
    assert fill.min() > 0.45 and fill.max() < 0.66
    wrongs: tuple[dict[str, Any], ...] = (
        {"fill": (0.6, 0.5)},
        {"fov_deg": (0.0, 30.0)},
        {"elevation_deg": (-10, 90)},
        {"front_share": 2.0},
    )
    for wrong in wrongs:
        with pytest.raises(ValueError, match=next(iter(wrong))):
            CameraSampling(**wrong)


def test_groups_are_four_views_a_quarter_turn_apart() -> None:
    views = draw_groups(CameraSampling(), 50, 64, seeded())
    azimuths = views.azimuths_deg.reshape(50, 4)
    steps = (azimuths.roll(-1, 1) - azimuths) % 360
    assert torch.allclose(steps, torch.full_like(steps, 90.0), atol=1e-3)
    elevations = views.elevations_deg.reshape(50, 4)
    assert (elevations == elevations[:, :1]).all() and elevations.min() >= 0 and elevations.max() <= 30
    focal = views.cameras.K[:, 0, 0].reshape(50, 4)
    assert (focal == focal[:, :1]).all()
    assert azimuths[:, 0].std() > 80  # any beginning


def test_close_ups_show_the_face_large_and_from_the_front() -> None:
    views = draw_views(FACE_CAMERAS, 500, 512, seeded())
    assert views.azimuths_deg.abs().quantile(0.9) < 50
    nose = np.array([[0.0, -0.08, 0.45]])
    px = projected(nose, views.cameras)[:, 0]
    assert ((px > 0) & (px < 512)).all(1).mean() > 0.9
    focal, w2c = views.cameras.K[:, 0, 0].numpy(), views.cameras.w2c.numpy()
    depth = (w2c[:, :3, :3] @ nose[0] + w2c[:, :3, 3])[:, 2]
    height = focal / depth  # pixels of one head height
    assert 480 < np.median(height) < 760  # so the whole head would need a picture of about 1024 px


def test_resizing_keeps_the_view() -> None:
    views = draw_views(CameraSampling(), 5, 64, seeded())
    points = np.random.default_rng(0).normal(0, 0.3, (20, 3))
    assert np.allclose(projected(points, views.resized(256).cameras), 4 * projected(points, views.cameras))
    assert views.resized(64) is views
    assert projected(np.array([[0, 0, 100.0]]), views_at((0.0,), 64).cameras).shape == (1, 1, 2)
    assert np.isnan(projected(np.array([[0, 0, 100.0]]), views_at((0.0,), 64).cameras)).all()  # behind the camera


# ---- what is told ----------------------------------------------------------------------------------------------------


def test_identity_is_whole_in_front_and_gone_at_the_side() -> None:
    own = bust()
    frame = frame_of(own.body, own.vertices_m)
    landmarks = frame.to_unit(np.asarray(own.body.face_landmarks @ own.vertices_m))
    face = ImageTokens(torch.ones(1, 2, 4), torch.zeros(1, 2, 4))
    told = HeadConditions(ViewTexts(torch.eye(4)[:, None]), torch.zeros(1, 1, 4), face, 0.8, landmarks, 1.0)
    views = views_at((0.0, 45.0, -45.0, 72.5, 100.0, 150.0, 180.0), 128)
    positive, negative = told(views)
    strength = torch.as_tensor(positive.image_scale) / 0.8
    assert strength.tolist() == pytest.approx([1, 1, 1, 0.5, 0, 0, 0], abs=1e-5)
    (control,) = positive.control_scales
    assert torch.as_tensor(control).tolist() == pytest.approx([1, 1, 1, 0.5, 0, 0, 0], abs=1e-5)
    assert torch.equal(torch.as_tensor(negative.control_scales[0]), torch.as_tensor(control))
    assert positive.text[[0, 6], 0].argmax(1).tolist() == [0, 2] and positive.control_images[0].shape == (
        7,
        3,
        128,
        128,
    )
    without = replace(told, face=None, landmarks=None)(views)[0]
    assert without.image_tokens is None and without.control_images == ()
    assert torch.as_tensor(replace(told, face_scale=0.0)(views)[0].image_scale).eq(0).all()


def test_landmarks_are_those_of_the_head_in_every_view() -> None:
    own = bust()
    frame = frame_of(own.body, own.vertices_m)
    landmarks = frame.to_unit(np.asarray(own.body.face_landmarks @ own.vertices_m))
    views = views_at((0.0, 60.0, -60.0), 256)
    nose, left, right = (projected(landmarks[[k]], views.cameras)[:, 0] for k in (1, 263, 33))
    assert abs(nose[0, 0] - 128) < 4 and nose[1, 0] < 100 and nose[2, 0] > 156  # turns away with the head
    assert left[0, 0] > right[0, 0]  # the person's left is on the picture's right
    pictures = landmark_pictures(landmarks, views.cameras)
    assert pictures.shape == (3, 256, 256, 3) and pictures.dtype == np.uint8 and (pictures > 0).any((1, 2, 3)).all()


def test_four_views_are_told_their_cameras() -> None:
    views = draw_groups(CameraSampling(jitter=(0.0, 0.0, 0.0), target=(0.0, 0.0, 0.0)), 1, 64, seeded())
    positive, negative = AroundConditions(torch.ones(1, 3, 5), torch.zeros(1, 3, 5))(views)
    assert positive.text.shape == (4, 3, 5) and not negative.text.any() and positive.cameras is not None
    assert torch.allclose(positive.cameras[:, :3, 3].norm(dim=1), torch.ones(4), atol=1e-5)


# ---- back on the rig -------------------------------------------------------------------------------------------------

GOLD = (0.85, 0.65, 0.15)


def golden(count: int = 4000) -> tuple[GaussianCloud, BoundSplats]:
    """A gilded stand-in in metres, also painted over the eyes and standing off the crown; and bound."""
    own = bust()
    frame = frame_of(own.body, own.vertices_m)
    unit = frame.to_unit(own.vertices_m)
    cloud = head_start(unit, own.body.triangles[start_triangles(own.body)], count=count, scale=0.012)
    eyes = unit[np.isin(own.body.regions, (Region.LEFT_EYE, Region.RIGHT_EYE))]
    positions = cloud.positions_m.copy()
    positions[:100] = eyes[eyes[:, 2].argsort()[-100:]]
    positions[100:160] = np.array([0, 0.62, 0.0]) + np.random.default_rng(0).normal(0, 0.03, (60, 3))
    positions[160:170] = [0, 3, 0]
    colours = np.tile(np.array(GOLD, np.float32), (count, 1)) + np.random.default_rng(1).normal(0, 0.04, (count, 3))
    gilded = GaussianCloud.from_colours(
        positions, cloud.scales_m, cloud.rotations_wxyz, np.full(count, 0.9), np.clip(colours, 0, 1)
    )
    metres = frame.cloud_to_metres(gilded)
    return metres, bind_stylised(metres, own.body, own.personal, own.vertices_m, own.splats)


def test_the_rest_pose_is_the_heads_own() -> None:
    own, (cloud, bound) = bust(), golden()
    posed = bound.posed(own.vertices_m, own.vertices_m, own.body.triangles)
    painted = bound.confidence == 0.5
    away, row = KDTree(cloud.positions_m).query(posed.positions_m[painted])
    assert painted.sum() > 3000 and away.max() < 1e-6
    turned = np.abs((posed.rotations_wxyz[painted] * cloud.rotations_wxyz[row]).sum(1))
    assert turned.min() > 1 - 1e-5
    assert (posed.scales_m[painted] <= cloud.scales_m[row] * (1 + 1e-5)).all()  # smaller near lids and lips only


def test_regions_are_bound_by_their_own_rules() -> None:
    own, (_, bound) = bust(), golden()
    kinds = {Kind(k) for k in np.unique(bound.kind)}
    assert {Kind.SKIN, Kind.HAIR, Kind.EYE, Kind.MOUTH} <= kinds
    region = own.body.regions[own.body.triangles[bound.triangles]].min(axis=1)
    ours = bound.confidence == 0.5
    assert (region[ours] <= Region.HEAD).all()  # nothing painted is glued to an eyeball or a tooth
    posed = bound.posed(own.vertices_m, own.vertices_m, own.body.triangles).positions_m
    assert posed[:, 1].max() < own.vertices_m[:, 1].max() + 0.06  # the floaters three heads above are gone
    eyes = own.vertices_m[own.body.regions == Region.LEFT_EYE]
    centre, radius = eyes.mean(0), 0.5 * np.ptp(eyes[:, 0])
    painted = ours & (np.linalg.norm(posed - centre, axis=1) < 0.9 * radius)
    assert painted.sum() == 0


def test_blinks_and_an_open_jaw_move_it_and_hair_stays() -> None:
    own, (_, bound) = bust(), golden()
    rest = own.vertices_m.astype(np.float64)

    def moved(action: str) -> np.ndarray:
        posed = rest + own.personal.action_offsets_m[action_index(action)]
        both = (bound.posed(v, rest, own.body.triangles).positions_m for v in (rest, posed))
        return np.linalg.norm(np.subtract(*both), axis=1)

    jaw, blink = moved("jawOpen"), moved("eyeBlinkLeft")
    assert jaw.max() > 0.015 and blink.max() > 0.004
    hair = bound.kind == Kind.HAIR
    assert hair.sum() > 30 and jaw[hair].max() < 0.002
    lids = blink > 0.003
    assert lids.any() and (bound.confidence[lids] == 1.0).all()  # laid out for the motion, not painted
    assert np.abs(bound.colours[lids].mean(0) - GOLD).max() < 0.08  # in the style's colour


def test_what_is_taken_from_the_photo_has_the_styles_colours() -> None:
    _, bound = golden()
    skin = bound.colours[bound.kind == Kind.SKIN].mean(0)
    assert np.abs(skin - GOLD).max() < 0.08
    eyes, mouth = (bound.colours[bound.kind == kind].mean(0) for kind in (Kind.EYE, Kind.MOUTH))
    assert eyes.sum() > skin.sum() > mouth.sum()  # light and dark stay what they are
    assert mouth.max() < 0.55 and np.ptp(mouth) < 0.6
    assert (np.abs(eyes - EYE).max() > 0.02) and (np.abs(mouth - INSIDE).max() > 0.02)
    assert np.abs(bound.colours[bound.kind == Kind.HAIR].mean(0) - HAIR).max() > 0.3  # the style's, not the photo's


def test_no_gap_shows_the_inside_of_the_head() -> None:
    """Few and small Gaussians leave gaps; what lies under them has the style's colours."""
    own, (_, bound) = bust(), golden(700)
    frame = frame_of(own.body, own.vertices_m)
    posed = bound.posed(own.vertices_m, own.vertices_m, own.body.triangles)
    front = orbit_cameras(frame.centre_m, 1.2, [0], 0, 1.2 * 160 / 0.3, 160)
    picture, alpha = render(posed, front)
    inside = picture[0, 50:110, 55:105][alpha[0, 50:110, 55:105] > 0.5]
    assert len(inside) > 2000 and (inside.sum(1) < 1.0).mean() < 0.02
    under = (bound.confidence == 1.0) & (bound.kind == Kind.SKIN)
    assert under.sum() > 1000 and np.abs(bound.colours[under].mean(0) - GOLD).max() < 0.1


def test_clothes_follow_a_material_and_stay_a_persons() -> None:
    rng = np.random.default_rng(0)
    skin, cloth = rng.normal([0.8, 0.6, 0.5], 0.03, (500, 3)), rng.normal([0.2, 0.3, 0.7], 0.05, (500, 3))
    assert np.allclose(clothes(cloth, skin, skin), cloth)
    gilded = clothes(cloth, skin, rng.normal(GOLD, 0.05, (500, 3)))
    assert np.abs(gilded.mean(0) - GOLD).max() < 0.05
    assert len(clothes(cloth[:0], skin, skin)) == 0


def test_a_cloud_elsewhere_is_refused() -> None:
    own, (cloud, _) = bust(), golden()
    away = replace(cloud, positions_m=cloud.positions_m + np.array([0, 0, 5], np.float32))
    with pytest.raises(ValueError, match="on the head"):
        bind_stylised(away, own.body, own.personal, own.vertices_m, own.splats)
