"""Hair and clothes of a PERSONA avatar: they follow their triangles, the pose's displacement, and what is learned."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from backend.context import Context
from backend.human.camera import PinholeCamera
from backend.human.frame_targets import PackedFrame
from backend.human.lbs import skin
from backend.splats.bound import BoundSplats, Kind
from backend.splats.optimise_persona import Learner, PersonaSettings, optimise_persona
from backend.splats.persona import PersonaAvatar, Template
from backend.splats.persona_drawing import Channels, drawn_together
from backend.splats.persona_layer import REACH_M, OutlineLayer, to_wxyz
from backend.splats.persona_targets import PersonaFrames, Target, cropped, shrunk
from blender_addon.shared.gaussians import wxyz_to_matrices
from tests.splats.test_persona import SIZE, SMALL, bent, camera, field, frame, template

COUNT = 40


def on_triangles(made: Template, count: int = COUNT) -> BoundSplats:
    """Gaussians above random triangles."""
    rng = np.random.default_rng(5)
    turns = rng.standard_normal((count, 4))
    turns /= np.linalg.norm(turns, axis=1, keepdims=True)
    ones = np.ones(count)
    offsets = np.c_[0.01 * rng.standard_normal((count, 2)), rng.uniform(0.01, 0.05, count)]
    return BoundSplats(
        rng.integers(0, len(made.triangles), count), rng.dirichlet(np.ones(3), count), offsets, turns,
        np.tile([0.03, 0.02, 0.005], (count, 1)), 0.8 * ones, rng.random((count, 3)), ones,
        np.where(ones * np.arange(count) % 2 > 0, Kind.HAIR, Kind.MEMBRANE), ones, ones, 0 * ones,
    )  # fmt: skip


def avatar(colour: float = 0.5) -> PersonaAvatar:
    torch.manual_seed(0)
    layer = OutlineLayer(on_triangles(template()), template().points_m, template().triangles)
    return PersonaAvatar(template(), field(), np.full((len(template()), 3), colour), SMALL, 10, layer=layer)


def test_it_follows_the_body_under_the_turn_of_a_bone() -> None:
    """Exactly as the bundle's binding carries it: the same numbers as `BoundSplats.posed` on the skinned proxy."""
    made, shift = avatar(), torch.tensor([0.1, 0.2, 0.3])
    pose = bent(70)
    pose[0] = torch.tensor([0.2, 0.6, -0.1])
    proxy = skin(made.points_m, made.joints_m, pose, made.surface_weights, shift).numpy()
    wanted = on_triangles(template()).posed(proxy, template().points_m, template().triangles)
    posed = made.pose(pose, shift).layer
    assert posed is not None
    np.testing.assert_allclose(posed.plain_m.detach(), wanted.positions_m, atol=1e-6)
    np.testing.assert_allclose(posed.refined_m.detach(), wanted.positions_m, atol=1e-6)
    np.testing.assert_allclose(posed.scales_m, wanted.scales_m, rtol=1e-5)
    turns = wxyz_to_matrices(posed.rotations_wxyz.numpy().astype(np.float64))
    np.testing.assert_allclose(turns, wxyz_to_matrices(wanted.rotations_wxyz.astype(np.float64)), atol=1e-5)
    np.testing.assert_allclose(posed.normals, turns[:, :, 2], atol=1e-5)
    still = made.pose(torch.zeros(55, 3), shift).layer
    assert still is not None and (posed.plain_m - still.plain_m).norm(dim=1).max() > 0.1


def test_it_takes_the_displacement_of_its_triangle_along() -> None:
    made = avatar()
    layer = made.layer
    assert layer is not None
    corners = made.points_m[layer.corners]
    turn = torch.tensor([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    away = torch.tensor([0.03, 0.0, 0.01]).expand_as(corners)
    still, turned = layer.pose(corners, away), layer.pose(corners @ turn.T, away)
    torch.testing.assert_close(still.refined_m - still.plain_m, away[:1].expand(COUNT, 3), atol=1e-6, rtol=0)
    torch.testing.assert_close(
        turned.refined_m - turned.plain_m, (away @ turn.T)[:1].expand(COUNT, 3), atol=1e-6, rtol=0
    )


def test_matrices_become_quaternions_whichever_way_they_turn() -> None:
    rng = np.random.default_rng(0)
    quaternions = rng.standard_normal((200, 4))
    quaternions[:8] = np.concatenate([np.eye(4), -np.eye(4)])
    quaternions /= np.linalg.norm(quaternions, axis=1, keepdims=True)
    found = to_wxyz(torch.as_tensor(wxyz_to_matrices(quaternions))).numpy()
    np.testing.assert_allclose(np.abs((found * quaternions).sum(1)), 1, atol=1e-9)


def test_what_is_learned_goes_back_to_where_it_came_from() -> None:
    made = avatar()
    layer = made.layer
    assert layer is not None
    before = on_triangles(template())
    np.testing.assert_allclose(layer.learned().offsets_m, before.offsets_m, atol=1e-7)
    with torch.no_grad():
        layer.steps_m += 1.0
        layer.colour_logits.fill_(2.0)
    after = layer.learned()
    np.testing.assert_allclose(after.offsets_m[:, 2] - before.offsets_m[:, 2], REACH_M, atol=1e-6)
    np.testing.assert_allclose(after.colours, 1 / (1 + np.exp(-2.0)), atol=1e-6)
    np.testing.assert_array_equal(after.opacities, before.opacities)
    np.testing.assert_array_equal(after.triangles, before.triangles)


def test_one_drawing_shows_body_and_layer() -> None:
    made = avatar(0.2)
    assert len(made) == len(template()) + COUNT
    posed = made.pose(torch.zeros(55, 3), torch.zeros(3))
    shown = made.picture(posed, camera(), behind=0.0)
    assert made.layer is not None
    alone = PersonaAvatar(template(), field(), np.full((len(template()), 3), 0.2), SMALL)
    bare = alone.picture(alone.pose(torch.zeros(55, 3), torch.zeros(3)), camera(), behind=0.0)
    assert (shown - bare).abs().max() > 0.2 and bare.max() < 0.21


def test_its_colours_are_learned_and_its_opacity_is_not() -> None:
    frames = [frame(0.0, True), frame(20.0), frame(60.0)]
    made = avatar()
    assert made.layer is not None
    before = {name: leaf.detach().clone() for name, leaf in made.layer.named_parameters()}
    opacities = made.layer.opacities.clone()
    optimise_persona(made, frames, PersonaSettings(epochs=2), Context.quiet())
    for name, leaf in made.layer.named_parameters():
        assert (leaf - before[name]).abs().max() > 0, name
    assert torch.equal(made.layer.opacities, opacities)
    assert made.layer.normal_offsets_m.abs().max() <= REACH_M


def test_a_stopped_learner_goes_on_to_the_same_layer(tmp_path: Path) -> None:
    frames, settings = [frame(0.0, True), frame(20.0), frame(60.0)], PersonaSettings()
    whole = Learner(avatar(), frames, settings, None)
    order = [0, 1, 0, 2, 1, 0]
    for number in order:
        whole.step(number, late=False)
    part = Learner(avatar(), frames, settings, None)
    for number in order[:3]:
        part.step(number, late=False)
    np.savez(tmp_path / "state.npz", **part.state())
    again = Learner(avatar(), frames, settings, None)
    with np.load(tmp_path / "state.npz") as kept:
        again.take_up(dict(kept))
    for number in order[3:]:
        again.step(number, late=False)
    for (name, one), (_, two) in zip(whole.modules.named_parameters(), again.modules.named_parameters(), strict=True):
        assert torch.equal(one, two), name


# --- frames at a preset's size


def packed(width: int = 60, height: int = 100) -> PackedFrame:
    y, x = np.mgrid[:height, :width]
    mask = np.where((abs(x - 30) < 15) & (abs(y - 50) < 35), 255, 0).astype(np.uint8)
    normals = np.zeros((height, width, 3), np.int8)
    normals[mask > 0] = [0, 0, 127]
    w2c = np.diag([1.0, -1.0, -1.0, 1.0])
    w2c[2, 3] = 3.0
    return PackedFrame(
        np.stack([x, y, x + y], 2).astype(np.uint8), mask, (3 * (mask > 0)).astype(np.uint8),
        np.where(mask > 0, 2000, 0).astype(np.uint16), 2.0, normals, mask > 0, np.zeros((55, 3), np.float32),
        np.zeros(3, np.float32), np.zeros(52, np.float32),
        PinholeCamera(w2c, 90.0, 90.0, 30.0, 50.0, width, height), True,
    )  # fmt: skip


def test_frames_shrink_with_their_cameras() -> None:
    large = packed()
    small = shrunk(large, 50)
    assert small.image.shape == (50, 30, 3) and small.labels.shape == small.mask.shape == (50, 30)
    point = np.array([[0.2, 0.1, 0.0]])
    np.testing.assert_allclose(small.camera.project(point), large.camera.project(point) / 2)
    seen = Target(small, small.image, large).unpack()
    assert seen.depth is not None and seen.normals is not None and seen.labels is not None and seen.albedo is not None
    inside = seen.mask > 0.9
    assert float(seen.depth[inside].mean()) == pytest.approx(2.2, abs=1e-4)
    torch.testing.assert_close(seen.normals[:, inside].norm(dim=0), torch.ones(int(inside.sum())), atol=0.01, rtol=0)
    assert set(seen.labels[inside].tolist()) == {3} and seen.face is not None
    torch.testing.assert_close(seen.albedo, seen.image)
    assert shrunk(large, 100) is large


def test_a_changed_pixel_changes_the_name_of_the_frames() -> None:
    one = packed()
    other = packed()
    other.image[3, 4] += 1
    names = {PersonaFrames([Target(one, albedo)]).digest() for albedo in (None, one.image, other.image)}
    names |= {PersonaFrames([Target(other)]).digest(), PersonaFrames([Target(one, None, other)]).digest()}
    assert len(names) == 5 and PersonaFrames([Target(packed())]).digest() in names


def test_a_crop_shows_the_same_person() -> None:
    seen = frame(20.0)
    near = cropped(seen, 1)
    assert near.cameras.width < SIZE and near.mask.shape == (near.cameras.height, near.cameras.width)
    made = avatar(0.8)
    posed = made.pose(bent(20), torch.zeros(3))
    pictures = [
        drawn_together(made.splats(posed, "plain"), each.cameras, [Channels("a", made.all_colours(), True)])["a"]
        for each in (seen, near)
    ]
    top = int(float(seen.cameras.K[0, 1, 2] - near.cameras.K[0, 1, 2]))
    left = int(float(seen.cameras.K[0, 0, 2] - near.cameras.K[0, 0, 2]))
    window = pictures[0][:, top : top + near.cameras.height, left : left + near.cameras.width]
    torch.testing.assert_close(pictures[1], window, atol=1e-5, rtol=0)
