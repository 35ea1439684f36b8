"""Generated frames: poses found again and corrected, wrong frames refused and counted, targets with their fallbacks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from backend.context import Context
from backend.diffusion.interfaces import Source, Surface
from backend.errors import MODEL_MISSING, Cancelled, UserError
from backend.human import frame_checks as checks
from backend.human.first_texture import first_texture
from backend.human.frame_targets import Helpers, Pictured, plain_mask, vertex_labels
from backend.human.generated_motion import (
    CheckedMotion,
    FrameSettings,
    GeneratedMotion,
    check_motion,
    generate_motion,
    photo_of,
    report_of,
)
from backend.human.installed_helpers import installed_helpers
from backend.human.pose_refinement import Skeleton
from backend.human.pose_tracks import PoseSequence, training_motions
from backend.human.skin_field import FieldSettings, diffuse
from backend.human.training_frames import TrainingSet, training_frames, training_set
from backend.human.video_camera import motion_camera, motion_track, reference_picture
from backend.perception.labels import Label
from backend.splats.light import to_linear
from backend.splats.optimise_persona import PersonaSettings, optimise_persona
from backend.splats.persona import PersonaAvatar, make_template
from backend.splats.persona_losses import PersonaWeights, frame_loss
from backend.splats.pose_deformation import DeformationSettings
from blender_addon.shared.skeleton import JOINT_NAMES
from tests.human.oracle_subject import (
    FRAMES,
    HEIGHT,
    WIDTH,
    KnowingDetector,
    SkinnedVideo,
    figure,
    landmarks,
    motion,
    off_label,
    render,
    short,
    subject,
    truly_shown,
)
from tests.oracles.bodies import Array
from tests.oracles.mesh_renderer import Lamp
from tests.oracles.video_defects import Defects, OracleVideo

SETTINGS = FrameSettings(WIDTH, HEIGHT, captured_px=320, face_px=96, texture_frames=12)
CONTEXT = Context.quiet(seed=0)


def checked(
    spoil: Callable[[int, np.ndarray], np.ndarray] = lambda _, frame: frame,
    numbers: tuple[int, ...] = (0,) * FRAMES,
    shown: Callable[[Array], Array] = off_label,
) -> CheckedMotion:
    """The short motion, shown with faults and looked at."""
    camera = motion_camera(subject(), [short()], WIDTH, HEIGHT)
    video = SkinnedVideo(numbers, shown, spoil)
    made = generate_motion(subject(), short(), camera, video, CONTEXT, SETTINGS)
    detector = KnowingDetector(shown(short().poses), short().pelvis_m, camera, numbers)
    return check_motion(subject(), made, Helpers(detector), CONTEXT, SETTINGS)


@lru_cache(maxsize=1)
def clean() -> CheckedMotion:
    return checked()


@lru_cache(maxsize=1)
def template_mix():  # noqa: ANN201
    person = subject()
    return make_template(
        person.rest_m, person.body.triangles, person.body.skin_weights, person.personal.joints_m, subdivisions=0
    ).mix


@lru_cache(maxsize=1)
def learned_from() -> TrainingSet:
    """All targets of the clean motion."""
    return training_set(subject(), [clean()], Helpers(), CONTEXT, SETTINGS, template_mix())


def surface_error_px(made: CheckedMotion, poses: Array, shifts: Array) -> Array:
    """[F] mean distance in the picture of the body in some poses to the body as it is really shown."""
    person, camera = subject(), made.made.camera
    true, place = off_label(short().poses), person.translations_m(short())
    errors = []
    for frame in range(FRAMES):
        here = camera.project(person.posed_m(poses[frame], shifts[frame])[::20])
        there = camera.project(person.posed_m(true[frame], place[frame])[::20])
        errors.append(np.linalg.norm(here - there, axis=1).mean())
    return np.array(errors)


# --- the camera and the reference


def test_the_camera_holds_the_whole_motion_and_stands_no_farther_than_it_must() -> None:
    person, motions = subject(), training_motions(figure().body.joints_m)
    camera = motion_camera(person, motions)
    assert (camera.width, camera.height, camera.fx, camera.cx, camera.cy) == (576, 1024, 2000.0, 288.0, 512.0)
    pixels = []
    for sequence in motions:
        for pose, shift in zip(sequence.poses[::56], person.translations_m(sequence)[::56], strict=True):
            pixels.append(camera.project(person.posed_m(pose, shift)[person.body.outer]))
    points = np.concatenate(pixels)
    assert points.min() > 8 and (points < [568, 1016]).all()
    skeleton = Skeleton.of(person.body, person.rest_m, person.personal.joints_m)
    marks = np.concatenate([
        camera.project(skeleton.landmarks(pose, shift))
        for sequence in motions
        for pose, shift in zip(sequence.poses[::5], person.translations_m(sequence)[::5], strict=True)
    ])  # fmt: skip
    free = min(marks[:, 0].min(), 576 - marks[:, 0].max(), marks[:, 1].min(), 1024 - marks[:, 1].max())
    assert free < 0.06 * 1024  # the margin, and the length of a finger


def test_the_reference_is_the_person_on_white_where_the_motion_begins() -> None:
    person, sequence = subject(), motion()
    camera = motion_camera(person, [sequence], WIDTH, HEIGHT)
    shift = person.translations_m(sequence)[0]
    picture = reference_picture(person, sequence.poses[0], shift, camera)
    assert picture.shape == (HEIGHT, WIDTH, 3) and (picture[:2] == 255).all() and (picture[:, :2] == 255).all()
    shown = render(0, sequence.poses[0], sequence.pelvis_m[0], camera).rgba[..., 3] > 127
    here = plain_mask(picture)[0] > 0.5
    assert (here & shown).sum() / (here | shown).sum() > 0.8


def test_the_track_says_what_the_frames_will_show() -> None:
    camera = motion_camera(subject(), [short()], WIDTH, HEIGHT)
    track = motion_track(subject(), short(), camera)
    assert track.poses is not None
    np.testing.assert_array_equal(track.poses, short().poses)
    wrist = JOINT_NAMES.index("left_wrist")
    marks = camera.project(landmarks(0, short().poses[4], short().pelvis_m[4]))
    assert np.linalg.norm(track.joints_px[4, wrist] - marks[15]) < 0.02 * HEIGHT
    assert track.focal_px == camera.fx and track.w2c is not None


def test_a_motion_can_be_made_in_pieces_each_with_its_own_reference() -> None:
    camera = motion_camera(subject(), [short()], WIDTH, HEIGHT)
    pieces, whole = SkinnedVideo((0,) * FRAMES), SkinnedVideo((0,) * FRAMES)
    one = generate_motion(subject(), short(), camera, whole, CONTEXT, SETTINGS)
    other = generate_motion(subject(), short(), camera, pieces, CONTEXT, replace(SETTINGS, frames_per_call=7))
    np.testing.assert_array_equal(one.frames, other.frames)
    assert [len(track.joints_px) for track in pieces.asked] == [7, 7, 4]
    assert (pieces.references[0] != pieces.references[1]).any()
    context = Context.quiet()
    context.cancel_event.set()
    with pytest.raises(Cancelled):
        generate_motion(subject(), short(), camera, whole, context, SETTINGS)


# --- poses


def test_in_a_video_the_body_comes_to_lie_on_the_picture() -> None:
    made = clean()
    before = surface_error_px(made, short().poses, subject().translations_m(short()))
    after = surface_error_px(made, made.poses, made.translations_m)
    assert after.mean() < 0.6 * before.mean()  # a pixel of noise is a third of these small frames' error
    assert np.nanmedian(made.errors_px[:, 1]) < np.nanmedian(made.errors_px[:, 0])


# --- what is refused


def test_a_clean_video_stays_whole() -> None:
    assert clean().reasons == ("",) * FRAMES
    report = report_of([clean()], SETTINGS)
    assert report.kept == report.asked == FRAMES and report.warnings == ()


@pytest.mark.parametrize(("joints", "words"), [(checks.ARM_JOINTS, "arms"), (checks.LEG_JOINTS, "legs")])
def test_limbs_that_do_each_others_movement_are_found(joints: tuple[str, ...], words: str) -> None:
    """Over both motions, no false alarm, and four of five where the limbs are elsewhere by more than 20 cm."""
    person = subject()
    skeleton = Skeleton.of(person.body, person.rest_m, person.personal.joints_m)
    found, alarms, moved = [], [], []
    for number, sequence in enumerate(training_motions(figure().body.joints_m)):
        camera = motion_camera(person, [sequence])
        at = list(range(number, len(sequence), 14))
        true = truly_shown(sequence.poses, Defects(number, ("labels",)))[at]
        wrong = np.stack([checks.mirrored_limbs(pose, joints) for pose in true])
        pelvis, shifts = sequence.pelvis_m[at], person.translations_m(sequence)
        for poses, result in ((true, alarms), (wrong, found)):
            detector = KnowingDetector(poses, pelvis, camera, [0] * len(at), bones_m=0.03)
            for frame in at:
                seen = detector.detect(np.zeros((8, 8, 3), np.uint8))
                assert seen is not None
                asked = sequence.poses[frame].astype(np.float64)
                reading = checks.swapped(
                    skeleton, asked, shifts[frame], camera, seen, detector.noise, checks.CheckSettings()
                )
                result.append(words in reading)
        pairs = zip(true, wrong, strict=True)
        moved += [skeleton.landmarks(a, np.zeros(3)) - skeleton.landmarks(b, np.zeros(3)) for a, b in pairs]
    assert not any(alarms)
    far = np.linalg.norm(moved, axis=-1).max(1) > 0.20
    assert far.sum() > 10 and np.array(found)[far].mean() > 0.8


def spoiled(change: Callable[[np.ndarray], np.ndarray]) -> tuple[np.ndarray, CheckedMotion]:
    """Which frames were changed, and what is found."""
    wrong = np.arange(FRAMES) % 6 == 3
    return wrong, checked(lambda k, frame: change(frame) if wrong[k] else frame)


def test_swapped_limbs_in_a_video_are_counted() -> None:
    wrong = np.zeros(FRAMES, bool)
    wrong[[0, 1, 12]] = True

    def shown(poses: Array) -> Array:
        made = off_label(poses)
        for frame in np.flatnonzero(wrong):
            made[frame] = checks.mirrored_limbs(made[frame], checks.ARM_JOINTS)
        return made

    moved = np.array([
        np.linalg.norm(landmarks(0, a, p) - landmarks(0, b, p), axis=1).max()
        for a, b, p in zip(off_label(short().poses), shown(short().poses), short().pelvis_m, strict=True)
    ])  # fmt: skip
    made = checked(shown=shown)
    found = np.array([reason == "swap" for reason in made.reasons])
    assert (moved > 0.4).any() and found[moved > 0.4].all() and not found[~wrong].any()
    assert sum(report_of([made], SETTINGS).swaps.values()) == found.sum()


def test_another_person_is_found_by_colours() -> None:
    wrong = np.arange(FRAMES) % 6 == 3
    made = checked(numbers=tuple(int(other) for other in wrong))
    assert np.array_equal(np.array(made.reasons) == "identity", wrong)
    assert all(not reason for reason, other in zip(made.reasons, wrong, strict=True) if not other)


def test_outlines_that_do_not_match_are_found() -> None:
    def with_object(frame: np.ndarray) -> np.ndarray:
        made = frame.copy()
        made[HEIGHT // 2 : HEIGHT // 2 + 110, WIDTH // 2 : WIDTH // 2 + 70] = (60, 90, 120)
        return made

    def without_legs(frame: np.ndarray) -> np.ndarray:
        made = frame.copy()
        made[HEIGHT * 11 // 20 :] = 255
        return made

    for change in (with_object, without_legs):
        wrong, made = spoiled(change)
        assert np.array_equal(np.array([bool(reason) for reason in made.reasons]), wrong)
        assert {made.reasons[k] for k in np.flatnonzero(wrong)} <= {"outline", "identity", "blur"}


def test_extreme_blur_is_found_and_the_oracles_usual_blur_is_not() -> None:
    wrong, made = spoiled(lambda frame: cv2.GaussianBlur(frame, (0, 0), 2.6))
    assert np.array_equal(np.array(made.reasons) == "blur", wrong)
    _, usual = spoiled(lambda frame: cv2.GaussianBlur(frame, (0, 0), 2.0 * HEIGHT / 1024))
    assert usual.reasons == ("",) * FRAMES


def test_frames_without_anybody_and_too_few_good_ones() -> None:
    class Blind:
        noise = checks.DetectorNoise()

        def detect(self, image: np.ndarray) -> None:
            return None

    made = check_motion(subject(), clean().made, Helpers(Blind()), CONTEXT, SETTINGS)
    assert set(made.reasons) == {"nobody"}
    with pytest.raises(UserError, match=r"18 of 18 generated frames were left out: nobody found 18\. Try another") as e:
        report_of([made], SETTINGS)
    assert e.value.code == 1


def test_an_embedding_decides_where_there_is_one() -> None:
    class Colour:
        """Tells people by the mean colour of the middle of the head."""

        sources = (Source("test identity", "1", "MIT", True),)

        def embed(self, image: np.ndarray) -> np.ndarray:
            size = len(image)
            patch = image[size * 4 // 10 : size * 7 // 10, size * 4 // 10 : size * 6 // 10].astype(float)
            red = patch[..., 0].mean() < 150
            return np.array([0.0, 1.0] if red else [1.0, 0.0], np.float32)

    wrong = set(range(9, FRAMES, 2))
    numbers = tuple(int(k in wrong) for k in range(FRAMES))
    camera = clean().made.camera
    made = generate_motion(subject(), short(), camera, SkinnedVideo(numbers, off_label), CONTEXT, SETTINGS)
    detector = KnowingDetector(off_label(short().poses), short().pelvis_m, camera, numbers)
    blind = replace(SETTINGS.check, looks=100.0, face_colour=100.0, off_m=1.0, outline=0.0, focus=0.0)
    settings = replace(SETTINGS, check=blind)
    for model, some in ((Colour(), True), (None, False)):
        detector = replace(detector, frame=0)
        helpers = Helpers(detector, identity=lambda model=model: model)
        found = check_motion(subject(), made, helpers, CONTEXT, settings)
        named = {k for k, reason in enumerate(found.reasons) if reason == "identity"}
        assert named <= wrong and bool(named) == some
        assert ("test identity" in found.made_by["identity of generated frames"]) == some


# --- targets


def test_a_training_set_holds_photo_and_frames_with_all_targets() -> None:
    made = learned_from()
    assert len(made.frames) == 1 + FRAMES
    assert [frame.captured for frame in made.frames] == [True] + [False] * FRAMES
    for number in (0, 4):
        frame = made.frames[number]
        height, width = frame.mask.shape
        assert frame.image.shape == (3, height, width) and (frame.cameras.width, frame.cameras.height) == (
            width,
            height,
        )
        assert frame.depth is not None and frame.normals is not None
        known = frame.depth > 0
        assert 0.4 < known.sum() / (frame.mask > 0.5).sum() <= 1
        torch.testing.assert_close(frame.normals.norm(dim=0)[known], torch.ones(int(known.sum())), atol=0.02, rtol=0)
    assert made.frames[0].seam is not None and made.frames[4].seam is None
    assert 0.02 < float(made.frames[0].seam.mean()) < 0.4
    assert made.albedo[0].shape == made.frames.packed[0].image.shape
    assert made.face is not None and made.face.image.shape == (96, 96, 3)
    assert isinstance(made.frames[1:3][0].image, torch.Tensor) and len(made.frames[1:3]) == 2
    notes = "\n".join(made.report.generators)
    for words in (
        "white background",
        "proxy's own surface",
        "carried by the proxy",
        "taken out",
        "cubic",
        "colours of",
    ):
        assert words in notes


def test_depth_and_camera_of_a_crop_are_those_of_the_body() -> None:
    """Where the frame's depth says a surface is, the posed body is."""
    from scipy.spatial import cKDTree

    packed = learned_from().frames.packed[7]
    frame = packed.unpack()
    assert frame.depth is not None
    rows, columns = np.nonzero(frame.depth.numpy())
    depth = frame.depth.numpy()[rows, columns].astype(np.float64)
    c = packed.camera
    rays = np.stack([(columns + 0.5 - c.cx) / c.fx, (rows + 0.5 - c.cy) / c.fy, np.ones(len(rows))], 1)
    points = c.to_world(rays * depth[:, None])
    posed = subject().posed_m(packed.pose, packed.translation_m)
    assert np.percentile(cKDTree(posed).query(points)[0], 99) < 0.03


def test_estimators_take_the_place_of_the_proxy_and_are_named() -> None:
    class Flat:
        sources = (Source("test surface", "abc", "MIT", True),)

        def estimate(self, image: np.ndarray, context: Context) -> Surface:
            normals = np.zeros((*image.shape[:2], 3), np.float32)
            normals[..., 2] = -1
            rows = np.linspace(0.2, 0.8, image.shape[0], dtype=np.float32)[:, None]
            return Surface(normals, np.broadcast_to(rows, image.shape[:2]))

    class Parser:
        sources = (Source("test parser", "", "MIT", True),)

        def parse(self, image: np.ndarray, context: Context, mask: np.ndarray | None = None) -> np.ndarray:
            return np.full(image.shape[:2], int(Label.OTHER), np.uint8)

    class Grey:
        sources = (Source("test albedo", "", "MIT", True),)

        def albedo(self, image: np.ndarray, context: Context) -> np.ndarray:
            return np.full_like(image, 9)

    helpers = Helpers(surface=lambda: (Flat(),), parsing=lambda: Parser(), albedo=lambda: Grey())
    few = replace(clean(), reasons=("", "", *("pose",) * (FRAMES - 2)))
    made = training_set(subject(), [few], helpers, CONTEXT, replace(SETTINGS, least_share=0.0))
    frame = made.frames[1]
    assert frame.normals is not None and frame.depth is not None
    inside = frame.mask > 0.5
    away = -np.asarray(made.frames.packed[1].camera.w2c)[2, :3]  # towards the camera
    np.testing.assert_allclose(frame.normals[:, inside].mean(1).numpy(), away, atol=0.02)
    assert (made.albedo[0] == 9).all() and (made.frames.packed[1].labels == Label.OTHER).all()
    assert any("test surface" in line for line in made.report.generators)
    assert made.texture is None


def test_labels_are_the_photos_and_reach_what_it_does_not_show() -> None:
    labels, body = vertex_labels(subject()), subject().body
    first = body.skin_weights.argmax(1)
    for name, wanted in (("spine3", Label.UPPER), ("left_knee", Label.LOWER), ("left_index2", Label.SKIN)):
        part = (first == JOINT_NAMES.index(name)) & body.outer
        assert (labels[part] == wanted).mean() > 0.7
    assert (labels != Label.NONE).all()


def test_the_mask_of_a_plain_background_keeps_white_clothes() -> None:
    picture = np.full((80, 60, 3), 254, np.uint8)
    cv2.rectangle(picture, (20, 10), (40, 70), (200, 60, 60), 2)
    picture[12:68, 23:38] = 253  # white on white, inside an edge
    rng = np.random.default_rng(0)
    picture = np.clip(picture + rng.normal(0, 1.5, picture.shape), 0, 255).astype(np.uint8)
    mask, plain = plain_mask(picture)
    assert plain and mask[40, 30] == 1 and mask[5, 5] == 0
    assert (mask > 0.5).sum() == pytest.approx(23 * 63, rel=0.06)
    assert not plain_mask(rng.integers(0, 255, (80, 60, 3), np.uint8))[1]


def test_first_colours_come_from_the_photo_then_from_the_video() -> None:
    made = learned_from().texture
    assert made is not None
    person = subject()
    normals_back = person.body.skin_weights.argmax(1) == JOINT_NAMES.index("spine3")
    rest = np.asarray(person.rest_m)
    front = normals_back & (rest[:, 2] > np.percentile(rest[normals_back, 2], 80)) & person.body.outer
    back = normals_back & (rest[:, 2] < np.percentile(rest[normals_back, 2], 20)) & person.body.outer
    assert made.from_photo[front].mean() > 0.6 and made.from_photo[back].max() == 0
    assert made.generated[back].mean() > 0.9
    green = made.colours[back][made.generated[back]]
    assert (green[:, 1] > green[:, 0]).mean() > 0.9  # the oracle's coat is green
    assert np.isfinite(made.colours).all() and made.colours.min() >= 0 and made.colours.max() <= 1
    alone = first_texture(person, template_mix(), [photo_of(person)], [])
    assert not alone.generated.any() and (alone.colours[back][:, 1] > alone.colours[back][:, 0]).mean() > 0.8


def test_light_is_taken_out_of_the_photo() -> None:
    """Compared with the oracle's own colours, whatever the brightness of the whole."""
    person, made = subject(), learned_from()
    packed, photo = made.frames.packed[0], photo_of(person)
    pelvis = photo.translation_m + person.personal.joints_m[0]
    even = render(0, photo.pose, pelvis, photo.camera, Lamp(1.0, 0.0, 0.0))
    truth = replace(photo, image=even.rgba[..., :3]).framed(longest_px=SETTINGS.captured_px).image
    inside = packed.mask > 250
    spreads = []
    for image in (packed.image, made.albedo[0]):
        ratio = np.log((to_linear(image[inside] / 255.0) + 0.01) / (to_linear(truth[inside] / 255.0) + 0.01)).mean(1)
        spreads.append(float(np.std(ratio)))
    assert spreads[1] < 0.9 * spreads[0]
    assert made.albedo[0][inside].mean() == pytest.approx(packed.image[inside].mean(), rel=0.1)


def test_an_avatar_learns_from_the_store() -> None:
    """The frames are what the optimiser takes, and begin nearer to the pictures than grey does."""
    person, made = subject(), learned_from()
    assert made.texture is not None
    weights = person.body.skin_weights
    template = make_template(person.rest_m, person.body.triangles, weights, person.personal.joints_m, subdivisions=0)
    template = replace(template, action_offsets_m=np.zeros((0, len(template), 3), np.float32))
    field = diffuse(template.points_m, template.weights, FieldSettings(resolution=24, steps=10))
    small = DeformationSettings(plane_size=16, features=4, width=16)
    losses = []
    for colours in (made.texture.colours, np.full_like(made.texture.colours, 0.5)):
        torch.manual_seed(0)
        avatar = PersonaAvatar(template, field, colours, small)
        with torch.no_grad():
            losses.append(float(frame_loss(avatar, made.frames[6], PersonaWeights(), None)[0]))
    assert losses[0] < losses[1]
    settings = PersonaSettings(epochs=1)
    corrections = optimise_persona(avatar, made.frames[:2], settings, CONTEXT)
    assert len(corrections.bodies) == 2
    assert all(torch.isfinite(leaf).all() for leaf in avatar.parameters())


# --- all of it, with the oracle's own faults


def test_from_person_to_training_frames_with_the_faulty_oracle() -> None:
    whole = training_motions(figure().body.joints_m)[0]
    part = slice(0, 32, 8)
    sequence = PoseSequence(whole.name, whole.poses[part], whole.pelvis_m[part], 0 * whole.actions[part], 2.0)
    defects = Defects(11, ("drift", "blur", "labels"))
    camera = motion_camera(subject(), [sequence], WIDTH, HEIGHT)
    detector = KnowingDetector(truly_shown(sequence.poses, defects), sequence.pelvis_m, camera, (0,) * 4)
    video = OracleVideo(figure(), defects, warm_up=1)
    made = training_frames(subject(), [sequence], video, Helpers(detector), CONTEXT, SETTINGS, template_mix())
    assert made.report.kept >= 3 and len(made.frames) == 1 + made.report.kept
    assert "oracle of moving figures" in "\n".join(made.report.generators)
    assert made.report.error_px[1] < made.report.error_px[0]


def test_a_generator_that_gives_other_frames_is_named() -> None:
    class Short(SkinnedVideo):
        def generate(self, *arguments: object) -> np.ndarray:  # type: ignore[override]
            return np.zeros((2, HEIGHT, WIDTH, 3), np.uint8)

    with pytest.raises(UserError, match="install it again"):
        generate_motion(subject(), short(), clean().made.camera, Short((0,)), CONTEXT, SETTINGS)


def test_pictures_are_cropped_to_the_person() -> None:
    photo: Pictured = photo_of(subject())
    small = photo.framed(longest_px=100)
    assert max(small.image.shape[:2]) == 100 and small.mask.shape == small.image.shape[:2]
    point = subject().personal.joints_m[JOINT_NAMES.index("neck")][None] + photo.translation_m
    here, there = photo.camera.project(point)[0], small.camera.project(point)[0]
    assert 0 < there[0] < small.image.shape[1] and 0 < there[1] < small.image.shape[0]
    colour = photo.image[int(here[1]), int(here[0])].astype(int)
    assert np.abs(colour - small.image[int(there[1]), int(there[0])]).max() < 90


def test_generated_motion_keeps_what_made_it() -> None:
    made: GeneratedMotion = clean().made
    assert made.sources == ("oracle of skinned figures (GPL-3.0-or-later)",)


def test_models_that_are_not_installed_are_not_missed(tmp_path: Path) -> None:
    class Nothing:
        def folder(self, model_id: str) -> Path:
            raise UserError(f"{model_id} is not installed", MODEL_MISSING)

        def source(self, model_id: str) -> Source:
            raise AssertionError(model_id)

    class Broken(Nothing):
        def folder(self, model_id: str) -> Path:
            return tmp_path

        def source(self, model_id: str) -> Source:
            return Source(model_id, "", "MIT", True)

    found = installed_helpers(Nothing(), CONTEXT)
    assert isinstance(found.detector, checks.MediapipeKeypoints) and found.surface() == ()
    assert [make() for make in (found.identity, found.matting, found.parsing, found.albedo, found.face)] == [None] * 5
    with pytest.raises((UserError, OSError)):
        installed_helpers(Broken(), CONTEXT).matting()
