"""Terms of PERSONA's loss: what each may move, that it is nothing at its target, and that it pulls the right way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest
import torch

from backend.human.model import Region
from backend.human.skin_field import FieldSettings, SkinField, diffuse
from backend.perception.labels import Label
from backend.raster import Cameras
from backend.splats import persona_drawing
from backend.splats.optimise_persona import Learner, PersonaSettings, schedule, terms_left_out
from backend.splats.perceptual import PyramidLoss
from backend.splats.persona import PersonaAvatar, Template, make_template, part_colours
from backend.splats.persona_drawing import Channels, draw_frame, drawn_one_by_one, drawn_together
from backend.splats.persona_layer import OutlineLayer
from backend.splats.persona_losses import PersonaWeights, Side, TrainingFrame, frame_loss, frame_terms, side_of
from backend.splats.persona_smoothness import Smoothness
from backend.splats.persona_zones import Zone, find_zones
from backend.splats.pose_deformation import DeformationSettings
from blender_addon.shared.skeleton import JOINT_NAMES
from tests.oracles.meshes import icosphere
from tests.splats.test_persona import bent, joints
from tests.splats.test_persona_layer import on_triangles

SIZE = 40
SMALL = DeformationSettings(plane_size=16, features=4, width=16)
NOTHING = Side(0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
PUBLISHED = PersonaWeights()
FREE = replace(PUBLISHED, captured=NOTHING, generated=NOTHING)
"""No term of a frame has a weight."""


@lru_cache(maxsize=1)
def parted() -> tuple[Template, SkinField]:
    """A ball with a face in front, in it an eye above and a mouth below, a hand on one side, an elbow above."""
    points, triangles = icosphere(3)
    weights = np.zeros((len(points), 55))
    weights[:, JOINT_NAMES.index("left_elbow")] = np.clip(points[:, 1], 0, 1) * 0.3
    hand = points[:, 0] < -0.6
    eye = (points[:, 2] > 0.7) & (points[:, 1] > 0.25)
    mouth = (points[:, 2] > 0.7) & (points[:, 1] < -0.4)
    weights[hand] = np.eye(55)[JOINT_NAMES.index("left_wrist")]
    weights[:, 0] = 1 - weights[:, 1:].sum(1)
    regions = np.select([eye, mouth], [Region.LEFT_EYE, Region.MOUTH], Region.BODY)
    smile = np.zeros((1, len(points), 3))
    smile[0, (points[:, 2] > 0.5) & ~hand, 1] = 0.01
    made = make_template(
        0.4 * points, triangles, weights, joints(), action_offsets_m=smile, regions=regions, subdivisions=0, hops=20
    )  # fmt: skip
    return made, diffuse(made.points_m, made.weights, FieldSettings(resolution=12, steps=5))


def avatar(colour: float = 0.5, layer: bool = True) -> PersonaAvatar:
    template, field = parted()
    torch.manual_seed(0)
    outline = None
    if layer:
        splats = on_triangles(template, 12)
        outline = OutlineLayer(splats, template.points_m, template.triangles)
    colours = np.full((len(template), 3), colour)
    made = PersonaAvatar(template, field, colours, SMALL, 10, layer=outline)
    torch.nn.init.normal_(made.deformation.layers[-1].weight, std=0.1)  # as if it had learned something
    return made


def in_two_colours() -> PersonaAvatar:
    """One whose own colours have left the shared ones."""
    made = avatar()
    with torch.no_grad():
        made.own_colour_logits += 0.3
        assert made.layer is not None
        made.layer.own_colour_logits += 0.3
    return made


def camera() -> Cameras:
    w2c = torch.diag(torch.tensor([1.0, -1.0, -1.0, 1.0]))[None].clone()
    w2c[0, 2, 3] = 2.0
    return Cameras(w2c, torch.tensor([[[70.0, 0, SIZE / 2], [0, 70.0, SIZE / 2], [0, 0, 1.0]]]), SIZE, SIZE)


def frame(captured: bool, whole: bool = True) -> TrainingFrame:
    """A picture of somebody else with every target."""
    generator = torch.Generator().manual_seed(3)
    y, x = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    mask = ((x - SIZE / 2) ** 2 + (y - SIZE / 2) ** 2 < 12**2).float()
    normals = torch.zeros(3, SIZE, SIZE)
    normals[2] = 1
    made = TrainingFrame(
        torch.rand(3, SIZE, SIZE, generator=generator), mask, bent(30), torch.zeros(3), torch.zeros(1), camera(),
        captured, depth=2 + 0.1 * torch.rand(SIZE, SIZE, generator=generator), normals=normals,
        seam=((x % 8) < 2).float() * mask if captured else None,
        albedo=torch.rand(3, SIZE, SIZE, generator=generator) if captured else None,
        labels=torch.where(y > SIZE // 2, int(Label.LOWER), int(Label.UPPER)) * mask.long(),
    )  # fmt: skip
    return replace(made, face=replace(made, face=None)) if captured and whole else made


def gradients(made: PersonaAvatar, seen: TrainingFrame, weights: PersonaWeights) -> dict[str, float]:
    """Largest gradient of every parameter; 0 where none arrives."""
    loss, _ = frame_loss(made, seen, weights, PyramidLoss())
    loss.backward()
    return {
        name: 0.0 if leaf.grad is None else float(leaf.grad.abs().max()) for name, leaf in made.named_parameters()
    }  # fmt: skip


GEOMETRY = {"mean_offsets_m", "log_scales", "layer.steps_m"}
SHARED, OWN, PARTS = "colour_logits", "own_colour_logits", "part_logits"
NETWORK = "deformation.layers.0.weight"
EVERYTHING = {*GEOMETRY, SHARED, OWN, PARTS, NETWORK}
RULES = [
    ("captured", "image", {*GEOMETRY, SHARED}),
    ("captured", "albedo", {*GEOMETRY, SHARED}),
    ("captured", "refined_image", {*GEOMETRY, SHARED, NETWORK}),
    ("captured", "first_face", GEOMETRY),
    ("captured", "seam", {SHARED}),
    ("captured", "eyes", GEOMETRY),
    ("generated", "hands", GEOMETRY),
    ("generated", "mask", {*GEOMETRY, NETWORK}),
    ("generated", "own_refined_image", {OWN}),
    ("generated", "geometry", {*GEOMETRY, PARTS, NETWORK}),
]


@pytest.mark.parametrize(("kind", "term", "moved"), RULES)
def test_a_term_moves_what_it_should_and_nothing_else(kind: str, term: str, moved: set[str]) -> None:
    side = replace(NOTHING, **{term: 1.0})
    found = gradients(in_two_colours(), frame(kind == "captured", whole=False), replace(FREE, **{kind: side}))
    for name in EVERYTHING:
        if name in moved:
            assert found[name] > 1e-9, name
        else:
            assert found[name] == 0, name
    if SHARED in moved:
        assert found["layer.colour_logits"] > 1e-9
    assert (found["layer_part_logits"] > 0) == (PARTS in moved)


def test_the_face_patch_moves_colours_and_places() -> None:
    weights = replace(FREE, captured=replace(NOTHING, image=1.0, first_face=1.0, face_patch=1.0))
    seen = frame(True)
    assert seen.face is not None
    dark = replace(seen, image=torch.zeros_like(seen.image), mask=torch.zeros_like(seen.mask))
    near, far = (gradients(avatar(), each, weights) for each in (seen, replace(seen, face=None)))
    assert near[SHARED] != far[SHARED] and near[OWN] == 0 and near[NETWORK] == 0
    assert gradients(avatar(), dark, weights)["mean_offsets_m"] > 0


def test_the_pose_gets_no_gradient_through_the_network() -> None:
    made = avatar()
    pose = bent(40).requires_grad_()
    assert not made.pose(pose.detach(), torch.zeros(3)).displacement_m.detach().abs().max() == 0
    posed = made.pose(pose, torch.zeros(3))
    (found,) = torch.autograd.grad(posed.displacement_m.sum(), pose, allow_unused=True)
    assert found is None
    (found,) = torch.autograd.grad(posed.plain_m.square().sum(), pose)
    assert found.abs().max() > 0


def test_what_pictures_say_of_the_template_is_nothing_at_the_template() -> None:
    """An avatar that is as it began covers its eyes and hands as the mesh does; a moved one does not."""
    made, seen = avatar(), frame(False)
    weights = replace(FREE, generated=replace(NOTHING, eyes=1.0, hands=1.0))
    terms = _terms(made, seen, weights)
    assert max(float(terms[name].detach()) for name in ("eyes", "hands")) < 1e-6  # rounding of a logarithm
    with torch.no_grad():
        made.mean_offsets_m[torch.as_tensor(parted()[0].zones == Zone.HAND)] += 0.05
    moved = _terms(made, seen, weights)
    assert moved["hands"] > 1e-4


def _terms(made: PersonaAvatar, seen: TrainingFrame, weights: PersonaWeights) -> dict[str, torch.Tensor]:
    posed = made.pose(seen.pose, seen.translation_m, seen.actions)
    return frame_terms(seen, draw_frame(made, posed, seen, side_of(seen, weights)), weights, None)


def test_every_likeness_is_nothing_before_its_own_picture() -> None:
    made, seen = avatar(0.7), frame(True)
    with torch.no_grad():
        made.deformation.layers[-1].weight.zero_()  # both branches alike
        posed = made.pose(seen.pose, seen.translation_m, seen.actions)
        image = made.picture(posed, camera(), behind=0.3)
        alpha = drawn_together(made.splats(posed, "plain"), camera(), ())["alpha"]
    same = replace(seen, image=image, albedo=image, mask=alpha, labels=None, depth=None, normals=None)
    same = replace(same, face=replace(same, face=None))
    terms = _terms(made, same, PUBLISHED)
    assert {"image", "albedo", "refined image", "mask", "first face", "seam", "face patch", "eyes"} <= set(terms)
    # over its own background a picture still differs where alpha is neither 0 nor 1, by its own softness
    for name in ("mask", "seam", "eyes"):
        assert float(terms[name].detach()) < 1e-6, name
    other = _terms(avatar(0.2), same, PUBLISHED)
    for name in ("image", "albedo", "refined image", "first face"):
        assert terms[name] < 0.25 * other[name], name


@pytest.mark.parametrize("branch", ["plain", "refined"])
def test_parts_are_learned_from_labels(branch: str) -> None:
    made, seen = avatar(), frame(False)
    weights = replace(FREE, generated=replace(NOTHING, geometry=1.0))
    seen = replace(seen, depth=None, normals=None, labels=torch.full((SIZE, SIZE), int(Label.LOWER)))
    wanted = part_colours(torch.tensor(int(Label.LOWER)))
    before = _terms(made, seen, weights)["parts"]
    before.backward()
    assert made.part_logits.grad is not None
    visible = made.part_logits.grad.abs().sum(1) > 0
    assert (torch.sign(-made.part_logits.grad[visible]) == torch.sign(wanted - 0.5)).all()
    with torch.no_grad():
        made.part_logits += 4 * torch.sign(wanted - 0.5)
        assert made.layer_part_logits is not None
        made.layer_part_logits.copy_(4 * torch.sign(wanted - 0.5).expand(len(made.layer_part_logits), 3))
    assert _terms(made, seen, weights)["parts"] < 0.1 * before


def test_depth_moves_places_only_through_depth() -> None:
    """A Gaussian behind the target is pulled forward, not to the side."""
    made = avatar(layer=False)
    made.deforms = False
    seen = replace(frame(False), normals=None, labels=None, pose=torch.zeros(55, 3))
    plane = replace(seen, depth=torch.where(torch.arange(SIZE)[None] < SIZE // 2, 1.5, 2.5).expand(SIZE, SIZE))
    weights = replace(FREE, generated=replace(NOTHING, geometry=1.0))
    _terms(made, plane, weights)["depth"].backward()
    assert made.mean_offsets_m.grad is not None
    sideways = made.mean_offsets_m.grad[:, :2].abs().max()
    assert sideways < 1e-6 * made.mean_offsets_m.grad[:, 2].abs().max()
    assert made.log_scales.grad is None or made.log_scales.grad.abs().max() == 0


def test_the_gaussians_own_terms_are_nothing_where_they_should_be() -> None:
    made = avatar()
    smooth = Smoothness(made)
    hands, lips, mouth = smooth.hands, smooth.lips, smooth.mouth
    assert len(hands) > 10 and len(lips) > 5 and len(mouth) > 3
    colours = torch.full((len(parted()[0]), 3), 0.4)
    assert smooth.hand_variation(colours) == 0 and smooth.mouth_loss(colours) < 1e-6
    colours[hands[::2]] = 0.6
    assert smooth.hand_variation(colours) > 0
    colours[lips] = torch.linspace(0.1, 0.5, len(lips))[:, None]
    colours[mouth] = 0.3
    assert float(smooth.mouth_loss(colours)) == pytest.approx(0, abs=1e-6)
    # on hands and face the template's own shape costs nothing, on the body a bend does
    posed = made.pose(torch.zeros(55, 3), torch.zeros(3))
    bend = smooth.operator(made.points_m) - smooth.template_bend
    body = torch.as_tensor(parted()[0].zones == Zone.BODY)
    assert bend[~body].abs().max() < 1e-7 and bend[body].abs().max() > 1e-4
    terms = smooth.terms(made, posed, PUBLISHED)
    assert terms["plain hands"] == 0 and terms["hands to own colours"] == 0 and terms["layer steps"] == 0


@pytest.mark.parametrize(
    ("name", "moved"),
    [
        ("plain hands", {SHARED}),
        ("hands to own colours", {SHARED}),
        ("mouth", {SHARED}),
        ("smooth colours", {SHARED}),
        ("smooth sizes", {"log_scales"}),
        ("smooth places", {"mean_offsets_m"}),
        ("smooth folds", {"mean_offsets_m", NETWORK}),
        ("layer steps", {"layer.steps_m"}),
    ],
)
def test_what_holds_the_gaussians_moves_only_what_it_holds(name: str, moved: set[str]) -> None:
    made = avatar()
    with torch.no_grad():
        for leaf in (made.colour_logits, made.own_colour_logits, made.log_scales):
            leaf += 0.3 * torch.randn_like(leaf)
        made.mean_offsets_m += 0.01 * torch.randn_like(made.mean_offsets_m)
        assert made.layer is not None
        made.layer.steps_m += 0.002
    posed = made.pose(bent(30), torch.zeros(3))
    Smoothness(made).terms(made, posed, PUBLISHED)[name].backward()
    found = {key for key, leaf in made.named_parameters() if leaf.grad is not None and leaf.grad.abs().max() > 0}
    assert found & {*EVERYTHING, "layer.colour_logits"} == moved


def test_lips_do_not_follow_the_mouth() -> None:
    made = avatar()
    with torch.no_grad():
        made.colour_logits += 0.5 * torch.randn_like(made.colour_logits)
    smooth = Smoothness(made)
    smooth.mouth_loss(made.colours).backward()
    assert made.colour_logits.grad is not None
    assert made.colour_logits.grad[smooth.lips].abs().max() == 0
    assert made.colour_logits.grad[smooth.mouth].abs().max() > 0


def test_one_pass_draws_what_a_pass_each_draws() -> None:
    found = []
    for drawer in (drawn_together, drawn_one_by_one):
        made, seen = avatar(), frame(True)
        posed = made.pose(seen.pose, seen.translation_m, seen.actions)
        drawing = draw_frame(made, posed, seen, PUBLISHED.captured, drawer)
        loss = torch.stack(list(frame_terms(seen, drawing, PUBLISHED, None).values())).sum()
        loss.backward()
        assert made.mean_offsets_m.grad is not None
        found.append((float(loss.detach()), made.mean_offsets_m.grad, drawing.passes))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-3, atol=1e-7)
    assert found[1][2] >= 20


@pytest.mark.parametrize("captured", [True, False])
def test_a_step_needs_at_most_eight_passes(captured: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    count = 0
    real: Callable[..., object] = persona_drawing.rasterize

    def counted(*given: object, **named: object) -> object:
        nonlocal count
        count += 1
        return real(*given, **named)

    monkeypatch.setattr(persona_drawing, "rasterize", counted)
    settings = PersonaSettings(refine_poses=False)
    learner = Learner(avatar(), [frame(True), frame(False)], settings, PyramidLoss())
    learner.step(0 if captured else 1, late=False)
    assert count == (4 if captured else 3)  # of the eight that the time on a card leaves


def test_what_has_no_target_is_named() -> None:
    frames = [frame(True), frame(False)]
    assert terms_left_out(avatar(), frames, PersonaSettings(), PyramidLoss()) == ()
    bare = [replace(each, albedo=None, face=None, labels=None, depth=None) for each in frames]
    words = terms_left_out(avatar(), bare, PersonaSettings(), None)
    assert words == (
        "no depth", "no parts", "no colours without light", "no face patch", "no perceptual likeness",
    )  # fmt: skip


def test_a_short_schedule_stays_half_and_half() -> None:
    frames = [frame(True, whole=False), *(frame(False) for _ in range(9))]
    for most in (11, 18, 30):
        order = schedule(frames, PersonaSettings(epochs=2, most_steps=most), seed=0)
        assert most - 2 < len(order) <= most
        assert (order == 0).sum() * 2 == len(order)


def test_presets_grow() -> None:
    fast, balanced, best = (PersonaSettings.of(preset) for preset in ("fast", "balanced", "best"))
    assert best.epochs == 5 and best.picture_px == 1024 and best.subdivisions == 2 and best.face_px == 256
    assert best.weights == fast.weights == PUBLISHED
    assert fast.most_steps <= 2000 and fast.picture_px <= 256 and not fast.lpips
    assert fast.picture_px < balanced.picture_px < best.picture_px
    assert fast.requery_every > balanced.requery_every > best.requery_every
    slow = [PersonaSettings.of(preset, "cpu") for preset in ("fast", "balanced", "best")]
    assert slow[0] == fast and not any(each.lpips for each in slow)
    assert slow[0].most_steps < slow[1].most_steps < slow[2].most_steps and slow[2].picture_px > slow[1].picture_px


def test_zones_of_the_ball() -> None:
    template, _ = parted()
    points = template.points_m / 0.4
    assert (template.zones[points[:, 0] < -0.7] == Zone.HAND).all()
    assert (template.zones[(points[:, 2] > 0.75) & (points[:, 1] > 0.3) & (points[:, 0] > -0.5)] == Zone.EYE).all()
    assert (template.zones[points[:, 2] < -0.5] != Zone.FACE).all()
    assert {Zone.BODY, Zone.BORDER, Zone.FACE, Zone.LIPS, Zone.MOUTH} <= set(template.zones.tolist())
    assert template.still[template.zones == Zone.HAND].all()
    weights = np.zeros((3, 55))
    weights[:, JOINT_NAMES.index("left_foot")] = 1
    assert (find_zones(weights, np.zeros(3, bool), np.array([[0, 1, 2]])) == Zone.FOOT).all()


def test_channels_keep_their_names() -> None:
    made = avatar(layer=False)
    posed = made.pose(torch.zeros(55, 3), torch.zeros(3))
    channels = [Channels("a", made.all_colours(), True), Channels("b", made.in_eyes, False)]
    drawn = drawn_together(made.splats(posed, "plain"), camera(), channels)
    assert drawn["a"].shape == (3, SIZE, SIZE) and drawn["b"].shape == (1, SIZE, SIZE)
    assert drawn["alpha"].shape == (SIZE, SIZE)
