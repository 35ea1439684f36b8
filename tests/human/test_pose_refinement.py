"""Poses are corrected by keypoints that were found again: derivatives, gains, and what must not pull."""

from __future__ import annotations

import numpy as np
from scipy.spatial.transform import Rotation

from backend.human.pose_refinement import RefineSettings, Skeleton, calibrate, refine_pose, smoothed, turned
from backend.human.pose_tracks import training_motions
from backend.human.video_camera import motion_camera
from tests.human.oracle_subject import figure, off_label, short, subject


def test_derivatives_are_those_of_the_landmarks() -> None:
    skeleton = Skeleton.of(subject().body, subject().rest_m, subject().personal.joints_m)
    pose = short().poses[5].astype(np.float64)
    local = Rotation.from_rotvec(pose).as_matrix()
    points, slopes = skeleton.derivatives(local)
    np.testing.assert_allclose(points, skeleton.landmarks(pose, np.zeros(3)), atol=1e-9)
    for joint, axis in ((0, 1), (4, 0), (9, 2), (16, 2), (19, 1)):
        turns = np.zeros((22, 3))
        turns[joint, axis] = 1e-6
        moved = skeleton.landmarks(turned(pose, turns), np.zeros(3))
        np.testing.assert_allclose((moved - points) / 1e-6, slopes[:, :, joint, axis], atol=1e-5)


def test_poses_off_by_one_to_three_degrees_are_corrected_to_less_than_half() -> None:
    """At the published size, keypoints exact up to one pixel, in every sixth frame of the whole first motion."""
    person, sequence = subject(), training_motions(figure().body.joints_m)[0]
    camera = motion_camera(person, [sequence])
    skeleton = Skeleton.of(person.body, person.rest_m, person.personal.joints_m)
    rng, settings = np.random.default_rng(0), RefineSettings()
    frames, shifts = slice(0, len(sequence), 6), person.translations_m(sequence)[::6]
    asked, true = sequence.poses[frames].astype(np.float64), off_label(sequence.poses)[frames]
    flat, deep = np.zeros((len(asked), 2)), np.zeros((len(asked), 2))
    for k, (pose, shown, shift) in enumerate(zip(asked, true, shifts, strict=True)):
        seen = camera.project(skeleton.landmarks(shown, shift)) + rng.normal(size=(33, 2))
        turns, move = refine_pose(skeleton, pose, shift, camera, seen, np.ones(33), settings)
        there = person.posed_m(shown, shift)[::20]
        for column, here in ((0, person.posed_m(pose, shift)), (1, person.posed_m(turned(pose, turns), shift + move))):
            flat[k, column] = np.linalg.norm(camera.project(here[::20]) - camera.project(there), axis=1).mean()
            deep[k, column] = np.linalg.norm(here[::20] - there, axis=1).mean()
    assert flat[:, 0].mean() > 1.5
    assert flat[:, 1].mean() < 0.4 * flat[:, 0].mean()
    assert deep[:, 1].mean() < 0.85 * deep[:, 0].mean()  # depth is not in a picture; smoothing over time adds to this


def test_a_wrong_landmark_does_not_pull_the_body_along() -> None:
    person, pose = subject(), short().poses[2].astype(np.float64)
    shift = person.translations_m(short())[2]
    camera = motion_camera(person, [short()])
    skeleton = Skeleton.of(person.body, person.rest_m, person.personal.joints_m)
    seen = camera.project(skeleton.landmarks(pose, shift))
    seen[15] += [150, 80]
    turns, move = refine_pose(skeleton, pose, shift, camera, seen, np.ones(33), RefineSettings())
    assert np.degrees(np.linalg.norm(turns, axis=1)).max() < 0.5 and np.linalg.norm(move) < 0.003


def test_a_detectors_own_habit_is_no_error_of_the_pose() -> None:
    person, sequence = subject(), training_motions(figure().body.joints_m)[0]
    camera = motion_camera(person, [sequence])
    poses, shifts = sequence.poses[::4].astype(np.float64), person.translations_m(sequence)[::4]
    skeleton = Skeleton.of(person.body, person.rest_m, person.personal.joints_m)
    habit = np.zeros((33, 3))
    habit[25], habit[11] = [0.0, -0.03, 0.02], [0.02, 0.02, 0.0]
    seen = np.stack(
        [camera.project(skeleton.shifted(habit).landmarks(p, s)) for p, s in zip(poses, shifts, strict=True)]
    )
    settings = RefineSettings(independent_share=0.2)
    found = calibrate(skeleton, poses, shifts, camera, seen, np.full((len(poses), 33), 0.2), 0.02, settings)
    for row in (25, 11):
        moved = (found.arms_m - skeleton.arms_m)[row].sum(0)
        assert np.linalg.norm(moved - habit[row]) < 0.3 * np.linalg.norm(habit[row])
    assert calibrate(skeleton, poses, shifts, camera, seen, np.ones((len(poses), 33)), 0.0, settings) is skeleton


def test_corrections_of_frames_that_do_not_count_come_from_their_neighbours() -> None:
    values = np.ones((9, 2, 3))
    values[4] = 50
    weights = np.ones(9)
    weights[4] = 0
    np.testing.assert_allclose(smoothed(values, weights, 1.5), 1.0)
    np.testing.assert_array_equal(smoothed(values, np.zeros(9), 1.5), 0)
    assert smoothed(values[:2], np.ones(2), 3.0).shape == (2, 2, 3)
