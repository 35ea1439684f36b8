"""Learned controls with numpy: the laws behind the formulas that Blender's nodes are compared with."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from backend.errors import UserError
from backend.render import parse_controls
from backend.splats.controls import control_weights, rotation_vectors_to_wxyz, shift_opacities, to_triangle_frames
from backend.splats.deform import pose_avatar
from blender_addon.shared.avatar import Avatar
from blender_addon.shared.controls import STEPS, Channel, Control, pack_controls
from blender_addon.shared.gaussians import GaussianCloud, wxyz_to_matrices
from blender_addon.shared.skeleton import JOINT_NAMES, axis_angle_to_matrices
from tests.splats.avatars import make_avatar

REST = np.zeros((len(JOINT_NAMES), 3))


def with_controls(*controls: Control) -> tuple[GaussianCloud, Avatar]:
    cloud, avatar = make_avatar()
    return cloud, replace(avatar, controls=pack_controls(controls))


def test_a_slider_adds_its_deltas_in_the_rest_pose() -> None:
    cloud, avatar = make_avatar()
    rng = np.random.default_rng(0)
    moved = rng.normal(0, 0.02, (len(cloud), 3))
    turned = rng.normal(0, 0.4, (len(cloud), 3))
    control = Control(
        "all",
        {
            "position": to_triangle_frames(moved, avatar),
            "log_scale": np.full((len(cloud), 3), 0.5),
            "rotation": turned,
            "radiance": np.full((len(cloud), 3), -0.25),
            "opacity_logit": np.full(len(cloud), 1.0),
        },
        -2.0,
        2.0,
    )
    avatar = replace(avatar, controls=pack_controls([control]))
    before = pose_avatar(cloud, avatar, REST)
    after = pose_avatar(cloud, avatar, REST, sliders={"all": -1.0})
    np.testing.assert_allclose(after.positions_m, before.positions_m - moved, atol=2.0 ** STEPS["position"])
    np.testing.assert_allclose(after.scales_m, before.scales_m * np.exp(-0.5), rtol=1e-5)
    np.testing.assert_allclose(after.sh_dc, before.sh_dc + 0.25, atol=1e-6)
    logit = np.log(before.opacities / (1.0 - before.opacities)) - 1.0
    np.testing.assert_allclose(after.opacities, 1.0 / (1.0 + np.exp(-logit)), atol=1e-5)
    between = np.swapaxes(wxyz_to_matrices(before.rotations_wxyz), 1, 2) @ wxyz_to_matrices(after.rotations_wxyz)
    np.testing.assert_allclose(between, axis_angle_to_matrices(-turned), atol=2e-3)


def test_the_rest_pose_is_the_file_whatever_follows_the_pose() -> None:
    pose = np.random.default_rng(1).normal(size=(len(JOINT_NAMES), 6))
    pose[0] = 0.0
    deltas = np.ones((400, 3))
    cloud, avatar = with_controls(Control("folds", {"position": deltas, "radiance": deltas}, pose=pose))
    np.testing.assert_allclose(pose_avatar(cloud, avatar, REST).positions_m, cloud.positions_m, atol=1e-5)
    bent = REST.copy()
    bent[0] = (0.3, 1.0, -0.2)
    weights = control_weights(avatar, bent)
    assert weights is not None and not weights.any(), "the turn of the whole body is no pose"
    bent[JOINT_NAMES.index("left_elbow")] = (0.0, 1.0, 0.0)
    assert abs(control_weights(avatar, bent)[0]) > 0.1  # type: ignore[index]


def test_a_coefficient_is_linear_in_the_rotation_matrix() -> None:
    joint = JOINT_NAMES.index("right_knee")
    weights = np.zeros((3, len(JOINT_NAMES), 6))
    weights[0, joint, 1], weights[1, joint, 3], weights[2, joint, 0] = 1.0, 2.0, -1.0
    controls = [Control(f"c{k}", {"rotation": np.ones((400, 3))}, pose=w) for k, w in enumerate(weights)]
    _, avatar = with_controls(*controls)
    pose = REST.copy()
    pose[joint] = (0.0, 0.0, np.pi / 6)
    # Rotation by 30 degrees about z: columns (cos, sin, 0) and (-sin, cos, 0).
    expected = [0.5, 2.0 * -0.5, -(np.sqrt(3) / 2 - 1.0)]
    found = control_weights(avatar, pose)
    assert found is not None
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_opacities_stay_between_their_ends() -> None:
    opacities = np.array([0.0, 1e-4, 0.5, 0.9999, 1.0], np.float32)
    np.testing.assert_array_equal(shift_opacities(opacities, np.zeros(5)), opacities)
    for logit in (-500.0, -3.0, 3.0, 500.0):
        shifted = shift_opacities(opacities, np.full(5, logit))
        assert (shifted >= 0).all() and (shifted <= 1).all() and (np.diff(shifted) >= 0).all()
    assert shift_opacities(opacities, np.full(5, -20.0))[-1] < 0.01, "what is opaque can be made clear"
    assert shift_opacities(opacities, np.full(5, 20.0))[0] > 0.99, "what is clear can be made opaque"


def test_no_turn_is_no_turn() -> None:
    vectors = np.array([[0.0, 0.0, 0.0], [1e-9, 0.0, 0.0], [np.pi, 0.0, 0.0]])
    expected = [[1, 0, 0, 0], [1, 5e-10, 0, 0], [0, 1, 0, 0]]
    np.testing.assert_allclose(rotation_vectors_to_wxyz(vectors), expected, atol=1e-12)


def test_values_of_sliders_are_checked_against_their_ranges() -> None:
    pose = np.zeros((len(JOINT_NAMES), 6))
    deltas: dict[Channel, np.ndarray] = {"position": np.ones((400, 3))}
    _, avatar = with_controls(Control("hair", deltas, -0.5, 2.0), Control("folds", deltas, pose=pose))
    assert parse_controls({"hair": "-0.25", "jawOpen": "0.5"}, avatar) == ({"jawOpen": 0.5}, {"hair": -0.25})
    for given, words in (
        ({"hair": "2.5"}, "from -0.5 to 2"),
        ({"jawOpen": "1.5"}, "from 0 to 1"),
        ({"hair": "x"}, "x"),
    ):
        with pytest.raises(UserError, match=words):
            parse_controls(given, avatar)
    with pytest.raises(UserError, match="it has: hair, "):
        parse_controls({"folds": "1"}, avatar)
    with pytest.raises(KeyError):
        pose_avatar(*with_controls(Control("hair", deltas)), REST, sliders={"hat": 1.0})
