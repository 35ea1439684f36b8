"""Posing a bundle: the laws that Blender's side has to obey too."""

from __future__ import annotations

import numpy as np
import pytest

from backend.human.model import load_default_body
from backend.human.posing import photo_expression_m, pose_proxy
from backend.splats.avatar import build_avatar
from backend.splats.deform import deform_cloud, pose_avatar, pose_vertices
from blender_addon.shared.gaussians import wxyz_to_matrices
from blender_addon.shared.skeleton import axis_angle_to_matrices
from tests.splats.avatars import make_avatar, make_personal, make_splats


def test_the_rest_pose_is_the_file() -> None:
    cloud, avatar = make_avatar()
    again = pose_avatar(cloud, avatar, np.zeros((55, 3)))
    np.testing.assert_allclose(again.positions_m, cloud.positions_m, atol=1e-5)
    np.testing.assert_allclose(again.scales_m, cloud.scales_m, rtol=1e-4)
    np.testing.assert_allclose(
        wxyz_to_matrices(again.rotations_wxyz), wxyz_to_matrices(cloud.rotations_wxyz), atol=1e-4
    )


def test_turning_the_root_turns_everything_rigidly() -> None:
    cloud, avatar = make_avatar()
    pose = np.zeros((55, 3))
    pose[0] = [0.3, -1.1, 0.2]
    turn, shift = axis_angle_to_matrices(pose[0]), np.array([0.5, 0.1, -2.0])
    turned = pose_avatar(cloud, avatar, pose, shift)
    pelvis = avatar.joints_m[0]
    expected = (cloud.positions_m - pelvis) @ turn.T + pelvis + shift
    np.testing.assert_allclose(turned.positions_m, expected, atol=5e-6)
    np.testing.assert_allclose(turned.scales_m, cloud.scales_m, rtol=1e-4)
    np.testing.assert_allclose(
        wxyz_to_matrices(turned.rotations_wxyz), turn @ wxyz_to_matrices(cloud.rotations_wxyz), atol=1e-4
    )


def test_the_bundle_poses_as_the_bound_splats_do() -> None:
    body = load_default_body()
    personal = make_personal(body)
    splats = make_splats(body, personal.vertices_m)
    cloud, avatar = build_avatar(body, personal, np.zeros(20), personal.vertices_m, splats)
    rest = personal.vertices_m + photo_expression_m(personal)
    posed = pose_proxy(body, rest, personal.joints_m, personal.pose, personal.translation_m)
    expected = splats.posed(posed, personal.vertices_m, body.triangles)
    names = [str(n) for n in avatar.shape_key_names]
    actions = dict(zip(names, avatar.photo_actions.tolist(), strict=False))
    vertices = pose_vertices(avatar, avatar.photo_pose, avatar.photo_translation_m, actions)
    # The bundle keeps eight bones a vertex, the body model up to nine.
    np.testing.assert_allclose(vertices, posed, atol=2e-4)
    actual = deform_cloud(cloud, avatar, vertices)
    np.testing.assert_allclose(actual.positions_m, expected.positions_m, atol=1e-3)
    np.testing.assert_allclose(actual.scales_m, expected.scales_m, rtol=0.02)


def test_a_larger_body_is_the_same_body() -> None:
    body = load_default_body()
    personal = make_personal(body)
    splats = make_splats(body, personal.vertices_m)
    height = float(np.ptp(personal.vertices_m[:, 1]))
    small, _ = build_avatar(body, personal, np.zeros(20), personal.vertices_m, splats)
    large, avatar = build_avatar(body, personal, np.zeros(20), personal.vertices_m, splats, height_m=1.2 * height)
    np.testing.assert_allclose(large.positions_m, 1.2 * small.positions_m, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(large.scales_m, 1.2 * small.scales_m, rtol=1e-5)
    again = pose_avatar(large, avatar, np.zeros((55, 3)))
    np.testing.assert_allclose(again.positions_m, large.positions_m, atol=1e-5)


def test_an_unknown_action_is_no_silent_zero() -> None:
    _, avatar = make_avatar()
    with pytest.raises(KeyError):
        pose_vertices(avatar, np.zeros((55, 3)), actions={"smirk": 1.0})
