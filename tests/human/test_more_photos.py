"""Further photographs: a back view is fitted with the first photo's shape and becomes a captured frame."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from backend.context import Context
from backend.errors import UserError
from backend.human.camera import PinholeCamera
from backend.human.first_texture import first_texture
from backend.human.fit import FitSettings
from backend.human.frame_targets import Helpers
from backend.human.generated_motion import photo_of
from backend.human.model import load_default_body
from backend.human.more_photos import FurtherPhoto, fit_further, fit_more_photos, same_exposure, with_fixed_shape
from backend.human.training_frames import training_set
from backend.human.video_camera import Subject, motion_camera
from backend.human.zbuffer import view_mesh
from backend.perception.people import Person, find_person
from backend.perception.photo import Photo
from backend.splats.persona import make_template
from blender_addon.shared.skeleton import JOINT_NAMES
from tests.human.oracle_subject import LAYER_LABELS, figure, landmarks, motion, render, still, subject

CONTEXT = Context.quiet(seed=0)
TINT = np.array([0.8, 0.9, 1.0])


def pose() -> np.ndarray:
    made = motion().poses[0].astype(np.float64)
    made[0] = [0.0, np.pi, 0.0]
    return made


@lru_cache(maxsize=1)
def seen_from_behind() -> tuple[np.ndarray, np.ndarray, PinholeCamera, np.ndarray]:
    """Image, mask, camera and labels of the figure from behind, in warmer light."""
    shown = still(pose())
    camera = motion_camera(subject(), [shown], 360, 640)
    picture = render(0, pose(), shown.pelvis_m[0], camera)
    alpha = picture.rgba[..., 3:] / 255.0
    image = np.round(picture.rgba[..., :3] * TINT * alpha + 190 * (1 - alpha)).astype(np.uint8)
    names = np.array([LAYER_LABELS[name] for name in figure().layers] + [0], np.uint8)
    return image, alpha[..., 0].astype(np.float32), camera, names[picture.layer]


@lru_cache(maxsize=1)
def person_from_behind() -> Person:
    """What a perfect detector says of it."""
    image, mask, camera, labels = seen_from_behind()
    marks = landmarks(0, pose(), still(pose()).pelvis_m[0])
    world = camera.to_camera(marks)
    return replace(
        subject().person, image=image, mask=mask, labels=labels, keypoints_px=camera.project(marks),
        keypoint_visibility=np.ones(33), keypoints_world_m=world - world[[23, 24]].mean(0), face_px=np.zeros((0, 3)),
    )  # fmt: skip


@lru_cache(maxsize=1)
def fitted() -> FurtherPhoto:
    bare = replace(load_default_body(), template_m=np.asarray(subject().rest_m, np.float32))
    one_start = FitSettings(yaw_starts_deg=(0.0,))
    return fit_further(person_from_behind(), "back.png", subject(), bare, np.zeros(20), CONTEXT, one_start)


def test_the_shape_cannot_change_any_more() -> None:
    body, betas = load_default_body(), np.linspace(-1, 1, 20)
    made = with_fixed_shape(body, betas)
    for numbers in (np.zeros(20), np.ones(20)):
        np.testing.assert_array_equal(made.rest(numbers)[0], body.rest(betas)[0])


def test_a_back_view_is_fitted_where_it_is_seen() -> None:
    found = fitted()
    facing = Rotation.from_rotvec(found.fit.pose[0]).as_matrix()[:, 2]
    assert found.fit.camera.w2c[2, :3] @ facing > 0.85  # away from the camera
    shown = found.picture
    covered = view_mesh(subject().posed_m(shown.pose, shown.translation_m), subject().body.triangles, shown.camera)
    inside = covered.nearest.covered & (shown.mask > 0.5)
    assert inside.sum() / covered.nearest.covered.sum() > 0.85
    assert found.warnings == () or all(line.startswith("back.png") for line in found.warnings)


def test_its_light_is_brought_to_the_first_photos() -> None:
    before, after = seen_from_behind()[0].astype(float), fitted().picture.image.astype(float)
    coat = seen_from_behind()[3] == LAYER_LABELS["top"]
    gain = after[coat].mean(0) / before[coat].mean(0)
    assert gain[0] > gain[2]  # the tint took most from red
    assert gain.max() < 1.8


def test_other_clothes_are_named() -> None:
    person = person_from_behind()
    red = np.where((person.labels == LAYER_LABELS["top"])[..., None], np.array([210, 20, 30]), person.image)
    red = np.where((person.labels == LAYER_LABELS["skirt"])[..., None], np.array([210, 190, 30]), red).astype(np.uint8)
    assert not any("clothes differ" in line for line in fitted().warnings)
    other = replace(person, image=red)
    assert not same_exposure(replace(fitted().picture, image=red), other, subject().person)[1]
    assert same_exposure(fitted().picture, person, subject().person)[1]


def test_it_becomes_a_captured_frame_and_gives_the_back_its_colours() -> None:
    person: Subject = subject()
    photo = fitted().picture
    made = training_set(person, [], Helpers(), CONTEXT, more_photos=[photo])
    assert [frame.captured for frame in made.frames] == [True, True]
    assert len(made.albedo) == 2 and made.report.asked == 0
    mix = make_template(
        person.rest_m, person.body.triangles, person.body.skin_weights, person.personal.joints_m, subdivisions=0
    ).mix
    first = person.body.skin_weights.argmax(1) == JOINT_NAMES.index("spine3")
    rest = np.asarray(person.rest_m)
    back = first & person.body.outer & (rest[:, 2] < np.percentile(rest[first, 2], 20))
    one = first_texture(person, mix, [photo_of(person)], [])
    two = first_texture(person, mix, [photo_of(person), photo], [])
    assert one.from_photo[back].max() == 0 and two.from_photo[back].mean() > 0.8


def test_perception_takes_a_back_view_only_where_it_is_allowed() -> None:
    image = seen_from_behind()[0]
    with pytest.raises(UserError, match="from behind"):
        find_person(image, 0, CONTEXT)
    person = find_person(image, 0, CONTEXT, from_behind=True)
    assert not len(person.face_px) and not any("face" in line for line in person.warnings)
    assert person.keypoints_px[11, 0] < person.keypoints_px[12, 0]


def test_a_photo_without_anybody_is_named() -> None:
    image = np.full((200, 160, 3), 120, np.uint8)
    photo = Photo(image, None, (160, 200), "", Path("side.png"), "png", ())
    with pytest.raises(UserError, match=r"side\.png: No person"):
        fit_more_photos([photo], subject(), load_default_body(), np.zeros(20), CONTEXT)
