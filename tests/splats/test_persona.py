"""PERSONA's avatar: template, what each term may move, balanced sampling, resume, and that a pose's fold is learned."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch

from backend.context import Context
from backend.errors import Cancelled
from backend.human.lbs import skin
from backend.human.skin_field import FieldSettings, SkinField, diffuse
from backend.raster import Cameras
from backend.splats.optimise_persona import PersonaSettings, PoseCorrections, optimise_persona, schedule
from backend.splats.persona import PersonaAvatar, Template, make_template
from backend.splats.persona_losses import PersonaWeights, Side, TrainingFrame, frame_loss, vertex_normals
from backend.splats.pose_deformation import DeformationSettings
from backend.step_checkpoints import StepCheckpoints
from blender_addon.shared.skeleton import JOINT_NAMES, PARENTS
from tests.oracles.meshes import icosphere

ELBOW, SIZE = JOINT_NAMES.index("left_elbow"), 48
SMALL = DeformationSettings(plane_size=24, features=8, width=32)
NOTHING = Side(0.0, 0.0, 0.0, 0.0, 0.0, 0.0)


@lru_cache(maxsize=1)
def joints() -> np.ndarray:
    """A stick figure about the origin; only its hierarchy matters."""
    made = np.zeros((55, 3))
    for joint, parent in enumerate(PARENTS):
        if parent >= 0:
            made[joint] = made[parent] + 0.1 * np.array([np.cos(joint), np.sin(joint), 0.3])
    return made


@lru_cache(maxsize=2)
def template(subdivisions: int = 0) -> Template:
    """A ball that the pelvis carries, with an elbow's share in its upper half."""
    points, triangles = icosphere(3)
    weights = np.zeros((len(points), 55))
    weights[:, ELBOW] = np.clip(points[:, 1], 0, 1) * 0.3
    weights[:, 0] = 1 - weights[:, ELBOW]
    return make_template(0.4 * points, triangles, weights, joints(), subdivisions=subdivisions, hops=20)


@lru_cache(maxsize=1)
def field() -> SkinField:
    return diffuse(template().points_m, template().weights, FieldSettings(resolution=16, steps=10))


def avatar(colour: float = 0.5) -> PersonaAvatar:
    torch.manual_seed(0)
    return PersonaAvatar(template(), field(), np.full((len(template()), 3), colour), SMALL, requery_every=10)


def camera() -> Cameras:
    w2c = torch.diag(torch.tensor([1.0, -1.0, -1.0, 1.0]))[None].clone()
    w2c[0, 2, 3] = 2.0
    return Cameras(w2c, torch.tensor([[[70.0, 0, SIZE / 2], [0, 70.0, SIZE / 2], [0, 0, 1.0]]]), SIZE, SIZE)


def bent(degrees: float) -> torch.Tensor:
    pose = torch.zeros(55, 3)
    pose[ELBOW, 2] = np.radians(degrees)
    return pose


def frame(degrees: float = 0.0, captured: bool = False, fold_m: float = 0.0, colour: float = 0.8) -> TrainingFrame:
    """The ball as it truly looks: a fold pushes one side out, as far as the elbow is bent."""
    truth = avatar(colour)
    side = torch.as_tensor(template().points_m[:, 0] > 0.1).float()[:, None]
    with torch.no_grad():
        means = truth.pose(bent(degrees), torch.zeros(3)).plain_m
        means = means + side * torch.tensor([fold_m * float(np.sin(np.radians(degrees))), 0.0, 0.0])
        drawn = truth.draw(means, camera(), truth.colours)
        normals = truth.draw(means, camera(), vertex_normals(means, truth.faces)).features
    assert drawn.features is not None and drawn.alpha is not None and normals is not None
    image = (drawn.features[0] + (1 - drawn.alpha[0]) * 0.2).float()
    return TrainingFrame(
        image, drawn.alpha[0], bent(degrees), torch.zeros(3), torch.zeros(0), camera(), captured, normals=normals[0]
    )


def test_the_template_is_the_subdivided_body() -> None:
    coarse, fine = template(0), template(1)
    assert len(fine.triangles) == 4 * len(coarse.triangles)
    assert len(fine) == len(coarse) + 3 * len(coarse.triangles) // 2
    np.testing.assert_array_equal(fine.points_m[: len(coarse)], coarse.points_m)
    np.testing.assert_allclose(fine.weights.sum(1), 1, atol=1e-6)
    sides = fine.points_m[fine.triangles]
    assert np.linalg.norm(sides[:, 0] - sides[:, 1], axis=1).max() < 0.06


def test_an_untrained_avatar_is_the_skinned_body() -> None:
    held = replace(template(), own_weights=np.ones(len(template()), bool))
    made = PersonaAvatar(held, field(), np.full((len(held), 3), 0.5), SMALL)
    posed = made.pose(bent(70), torch.tensor([0.1, 0.2, 0.3]))
    expected = skin(
        torch.as_tensor(held.points_m), torch.as_tensor(held.joints_m), bent(70), torch.as_tensor(held.weights),
        torch.tensor([0.1, 0.2, 0.3]),
    )  # fmt: skip
    torch.testing.assert_close(posed.plain_m, expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(posed.refined_m, posed.plain_m, atol=0, rtol=0)


def test_hands_and_faces_keep_their_weights_and_stay_still() -> None:
    points, triangles = icosphere(2)
    weights = np.zeros((len(points), 55))
    weights[:, JOINT_NAMES.index("left_index2")] = points[:, 0] > 0
    weights[:, JOINT_NAMES.index("spine3")] = points[:, 0] <= 0
    smile = np.zeros((1, len(points), 3))
    smile[0, :, 1] = 0.01 * (points[:, 1] < -0.5)
    made = make_template(points, triangles, weights, joints(), action_offsets_m=smile, subdivisions=1)
    right = made.points_m[:, 0] > 0.5
    assert made.own_weights[right].all() and made.still[right].all()
    left = (made.points_m[:, 0] < -0.5) & (made.points_m[:, 1] > -0.2)
    assert not made.own_weights[left].any() and not made.still[left].any()
    assert made.still[made.points_m[:, 1] < -0.8].all()
    assert made.action_offsets_m.shape == (1, len(made), 3)


def test_every_generated_frame_brings_exactly_one_captured_frame() -> None:
    frames = [frame(captured=True), frame(captured=True), *(frame() for _ in range(7))]
    order = schedule(frames, PersonaSettings(epochs=3), seed=1)
    captured = np.isin(order, [0, 1])
    assert len(order) == 3 * 14 and captured.sum() == 3 * 7
    assert (np.bincount(order, minlength=9)[2:] == 3).all()
    assert abs((order == 0).sum() - (order == 1).sum()) <= 1
    uniform = schedule(frames, PersonaSettings(epochs=3, sampling="uniform"), seed=1)
    assert len(uniform) == len(order) and np.ptp(np.bincount(uniform, minlength=9)) <= 3
    for lonely in (frames[:1], frames[2:]):
        with pytest.raises(ValueError, match="at least one captured and one generated"):
            schedule(lonely, PersonaSettings(), seed=1)


@pytest.mark.parametrize(
    ("side", "moved", "kept"),
    [
        (replace(NOTHING, own_refined_image=1.0), "own_colour_logits", "mean_offsets_m"),
        (replace(NOTHING, refined_image=1.0), "mean_offsets_m", "own_colour_logits"),
        (replace(NOTHING, mask=1.0), "mean_offsets_m", "colour_logits"),
        (replace(NOTHING, geometry=1.0), "mean_offsets_m", "colour_logits"),
    ],
)
def test_a_term_moves_only_what_it_may(side: Side, moved: str, kept: str) -> None:
    made = avatar()
    with torch.no_grad():
        made.mean_offsets_m += 0.03 * torch.randn(len(template()), 3)
    loss, _ = frame_loss(made, frame(30), PersonaWeights(generated=side), None)
    loss.backward()
    gradients = {name: leaf.grad for name, leaf in made.named_parameters()}
    assert gradients[moved] is not None and gradients[moved].abs().max() > 1e-9
    assert gradients[kept] is None or gradients[kept].abs().max() < 1e-12


def test_the_background_costs_nothing() -> None:
    made, seen = avatar(0.8), frame()
    near = torch.nn.functional.max_pool2d(seen.mask[None], 11, 1, 5)[0]
    empty = (near < 1e-3).expand(3, -1, -1)
    assert empty.any()
    noisy = replace(seen, image=torch.where(empty, torch.rand(3, SIZE, SIZE), seen.image))
    side = Side(1.0, 0.1, 1.0, 1.0, 0.0, 0.0)
    losses = [frame_loss(made, one, PersonaWeights(generated=side), None)[0].item() for one in (seen, noisy)]
    assert losses[1] == pytest.approx(losses[0], rel=0.01)


def test_a_fold_that_follows_the_pose_is_learned() -> None:
    angles = np.linspace(15, 75, 5)
    frames = [frame(0.0, True, 0.06), *(frame(degrees, False, 0.06) for degrees in angles)]
    errors = {}
    for deform in (False, True):
        made = avatar(0.8)
        weights = PersonaWeights(positions=1.0, refined_positions=1.0, scales=1.0)
        settings = PersonaSettings(epochs=10, deform=deform, refine_poses=False, weights=weights)
        optimise_persona(made, frames, settings, Context.quiet())
        unseen = frame(45.0, False, 0.06)
        with torch.no_grad():
            posed = made.pose(unseen.pose, unseen.translation_m)
            drawn = made.draw(posed.refined_m, camera(), made.colours)
        assert drawn.alpha is not None
        errors[deform] = float((drawn.alpha[0] - unseen.mask).abs().sum())
    assert errors[True] < 0.75 * errors[False]


def test_a_stopped_run_goes_on_to_the_same_avatar(tmp_path: Path) -> None:
    frames = [frame(0.0, True), *(frame(degrees) for degrees in (20.0, 50.0, 80.0))]
    settings = PersonaSettings(epochs=3)

    def learn(context: Context) -> tuple[PersonaAvatar, PoseCorrections]:
        made = avatar()
        return made, optimise_persona(made, frames, settings, context)

    whole, corrections = learn(Context.quiet())

    class StopsAt(StepCheckpoints):
        def save(self, name: str, step: int, arrays, key: str = "") -> None:  # noqa: ANN001
            super().save(name, step, arrays, key)
            if step == 11:
                context.cancel_event.set()

    context = replace(Context.quiet(), checkpoint=StopsAt(tmp_path, interval_s=0.0, clock=lambda: 0.0))
    with pytest.raises(Cancelled):
        learn(context)
    again, corrections_again = learn(replace(Context.quiet(), checkpoint=StepCheckpoints(tmp_path)))
    for first, second in ((whole, again), (corrections, corrections_again)):
        for (name, one), (_, two) in zip(first.named_parameters(), second.named_parameters(), strict=True):
            assert torch.equal(one, two), name


def test_poses_of_photographs_are_not_changed() -> None:
    frames = [frame(0.0, True), frame(20.0), frame(60.0)]
    corrections = optimise_persona(avatar(), frames, PersonaSettings(epochs=2), Context.quiet())
    assert corrections.bodies[0].abs().max() == 0
    assert corrections.bodies[1].abs().max() > 0 and corrections.bodies[2].abs().max() < np.radians(3)
