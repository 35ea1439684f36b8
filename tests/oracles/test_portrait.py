"""The portrait's oracles against what is known of them: exact scores, obeyed conditions, measures to be trusted."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from backend.diffusion.interfaces import Conditions
from backend.diffusion.multiview import cameras
from backend.diffusion.views import ViewControl, view_conditions
from tests.oracles import portrait_heads as heads
from tests.oracles import portrait_model as model
from tests.oracles.portrait_measures import FILE, IDENTITY_DEG, Measures, count_runs, shots, two_faced_shots, worn
from tests.oracles.portrait_network import WEIGHTS, LearntPortraits

STYLES = ("toon", "gold", "marble")
SEED = 555


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def bank() -> model.Bank:
    return model.make_bank(3, SEED, STYLES)


@pytest.fixture(scope="module")
def measures() -> Measures:
    return Measures()


def told(bank: model.Bank, style: str, azimuth: float, person: int | None = None, marks: bool = False) -> Conditions:
    tokens = None if person is None else model.identity_tokens(bank.traits[person])
    w2c = heads.world_to_camera(azimuth)
    drawing = model.draw_marks(w2c, heads.focal_px(64))[None]
    controls = [ViewControl(drawing, 1.0, of_face=True)] if marks else []
    sides = torch.tensor([azimuth]), torch.zeros(1)
    texts = model.view_texts(bank, style)
    return view_conditions(texts, model.no_text(bank), *sides, face=tokens, face_scale=1.0, controls=controls)[0]


def weights(single: model.Portraits, conditions: Conditions) -> Tensor:
    """Shares [K, S, A, E] of the bank's pictures."""
    return torch.softmax(single.log_weights(conditions), 1)[0].reshape(single.bank.latents.shape[:4])


# ---- heads -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("style", heads.STYLES)
def test_no_style_is_a_gaussian_of_colours(style: str) -> None:
    """The strongest direction of the style's colours is not normally distributed."""
    painted = np.concatenate([heads.colours(heads.make_head(row), style) for row in heads.draw_traits(6, SEED)])
    centred = painted - painted.mean(0)
    along = centred @ np.linalg.eigh(np.cov(centred.T))[1][:, -1]
    assert stats.kstest(along / along.std(), "norm").statistic > 0.05


def test_a_head_is_one_unit_high_and_faces_the_camera_at_azimuth_zero() -> None:
    head = heads.make_head(np.zeros(10))
    assert abs(np.ptp(head.points[:, 1]) - 1) < 0.03
    nose = head.points[head.points[:, 2].argmax()]
    assert abs(nose[0]) < 0.02 and -0.25 < nose[1] < 0.05
    white = (
        np.tile([1.0, 0.0, 0.0], (len(head.points), 1)) * (heads.features(head.points, head.traits)["iris"])[:, None]
    )
    seen = {azimuth: heads.picture(head, white, azimuth)[0][0] for azimuth in (0, 90, 180)}
    assert seen[0].sum() > 20 and seen[180].sum() == 0
    columns = (seen[90].sum(0) * np.arange(64)).sum() / seen[90].sum()
    assert columns < 32, "from its left side the face looks to the left of the picture"


def test_latents_are_linear_and_small_pictures_come_back(bank: model.Bank) -> None:
    pictures, _ = model.style_pictures(bank, "gold", 4, 0)
    other = torch.rand(4, 3, 64, 64)
    both = model.encode(0.3 * pictures + 0.7 * other)
    assert torch.allclose(both, 0.3 * model.encode(pictures) + 0.7 * model.encode(other), atol=1e-5)
    coarse = torch.nn.functional.avg_pool2d(pictures, 8)
    back = torch.nn.functional.avg_pool2d(model.decode(model.encode(pictures)), 8)
    assert (coarse - back).abs().mean() < 0.02


# ---- the exact models ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [60, 400, 900])
def test_the_noise_is_that_of_the_density(bank: model.Bank, step: int) -> None:
    """Against the joint Gaussian of z_0 and z_t in float64, with whole covariance matrices."""
    single = model.Portraits(bank, spread=0.5, face_bias=0.4)
    conditions = told(bank, "gold", 30.0, 1, marks=True)
    generator = torch.Generator().manual_seed(step)
    a, s = float(single.schedule.alphas[step]), float(single.schedule.sigmas[step])
    clean = bank.latents[1, 1, 4, 0] + 0.3 * torch.randn(4, 16, 16, generator=generator)
    noisy = a * clean + s * torch.randn(4, 16, 16, generator=generator)
    found = single.predict(noisy[None], torch.tensor([step]), conditions)[0].double()

    size = clean.numel()
    kernel = model.FLOOR**2 * torch.eye(size, dtype=torch.float64)
    kernel += 0.25 * bank.basis.double() @ torch.diag(bank.variances.double()) @ bank.basis.double().T
    marginal = a**2 * kernel + s**2 * torch.eye(size, dtype=torch.float64)
    items = bank.latents.flatten(4).flatten(0, 3).double()
    apart = noisy.flatten().double() - a * items
    solved = torch.linalg.solve(marginal, apart.T).T
    logs = -0.5 * (apart * solved).sum(1) + single.log_weights(conditions)[0].double()
    shares = torch.softmax(logs, 0)
    mean = shares @ items + a * (kernel @ (shares @ solved))
    wanted = (noisy.flatten().double() - a * mean) / s
    assert (found.flatten() - wanted).abs().max() < 2e-3 * max(1.0, float(wanted.abs().max()))


def test_conditions_are_obeyed(bank: model.Bank) -> None:
    single = model.Portraits(bank, face_bias=0.0)
    shares = weights(single, told(bank, "gold", 0.0, 2, marks=True))
    assert shares[:, 1].sum() > 0.999, "the style"
    assert shares[2].sum() > 0.95, "the person"
    assert shares.sum((0, 1, 3))[[35, 0, 1]].sum() > 0.95, "the marks' side"
    back = weights(single, told(bank, "gold", 180.0, 2, marks=True))
    assert back.sum((0, 1, 3))[9:28].sum() > 0.95, "the text's side"
    assert abs(float(back[2].sum()) - 1 / 3) < 1e-3, "nobody is recognised from behind"
    anybody = weights(single, Conditions(model.no_text(bank)))
    assert torch.allclose(anybody, torch.full_like(anybody, 1 / anybody.numel()), rtol=1e-3)


def test_the_bias_is_a_share_of_fronts_that_no_text_undoes(bank: model.Bank) -> None:
    for bias in (0.0, 0.5, 0.9):
        back = weights(model.Portraits(bank, face_bias=bias), told(bank, "gold", 180.0))
        front = float(back.sum((0, 1, 3))[[34, 35, 0, 1, 2]].sum())
        assert abs(front - bias) < 0.05


def test_large_scales_overshoot_at_large_noise(bank: model.Bank) -> None:
    """Scale 50 asks for latents many times outside of all pictures; at little noise both densities agree."""
    single = model.Portraits(bank, spread=0.4, face_bias=0.0)
    wanted, unwanted = told(bank, "gold", 0.0, 0, marks=True), Conditions(model.no_text(bank))
    clean, beyond = bank.latents[0, 1, 0, 0][None], {}
    for step in (300, 850):
        a, s = float(single.schedule.alphas[step]), float(single.schedule.sigmas[step])
        noisy = a * clean + s * torch.randn(clean.shape, generator=torch.Generator().manual_seed(3))
        ways = [single.predict(noisy, torch.tensor([step]), told_so) for told_so in (wanted, unwanted)]
        beyond[step] = float((49 * s / a * (ways[0] - ways[1])).square().mean().sqrt() / clean.std())
    assert beyond[300] < 0.05 and beyond[850] > 5


def test_four_views_agree_on_one_head(bank: model.Bank) -> None:
    """From noisy views of one person in one style it finds just these, whatever the first azimuth."""
    several = model.FourViews(bank, spread=0.0)
    azimuths = [40.0, 130.0, 220.0, 310.0]
    poses = cameras(np.stack([heads.world_to_camera(azimuth) for azimuth in azimuths]))
    found, elevations = model.directions(poses)
    assert torch.allclose(found.float(), torch.tensor(azimuths), atol=1e-3) and elevations.abs().max() < 1e-3
    clean = torch.stack([bank.latents[1, 2, round(azimuth / 10), 0] for azimuth in azimuths])
    step = 700
    a, s = float(several.schedule.alphas[step]), float(several.schedule.sigmas[step])
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(1))
    conditions = Conditions(model.plain_text(bank, "marble").expand(4, -1, -1), cameras=poses)
    predicted = several.predict(a * clean + s * noise, torch.full((4,), step), conditions)
    estimate = (a * clean + s * noise - s * predicted) / a
    assert (estimate - clean).square().mean() < 0.02 * clean.square().mean()
    with pytest.raises(ValueError, match="groups of 4"):
        several.predict(noise[:3], torch.full((3,), step), conditions)


# ---- the measures ----------------------------------------------------------------------------------------------------


def test_people_are_told_apart_and_faces_counted(measures: Measures) -> None:
    """Of people, sides and wear that were not learnt from; 1 face, 2 on a two-faced head, 1 with a weak ghost."""
    rng, generator = np.random.default_rng(SEED), torch.Generator().manual_seed(SEED)
    people = torch.from_numpy(heads.draw_traits(12, SEED)).float()
    own, others, known = [], [], []
    sides = np.arange(0, 360, 10.0)
    for k in range(6):
        head = heads.make_head(people[k].double().numpy())
        front = torch.from_numpy(shots(head, IDENTITY_DEG, rng))
        for number, style in enumerate(heads.STYLES):
            pictures = worn(front[:, number].contiguous(), generator)
            own.append(measures.identity(pictures, style, people[k]))
            others.append(measures.identity(pictures, style, people[k - 1]))
            known.append(measures.recognised(pictures, style, k, people))
        if k < 2:
            around = torch.from_numpy(shots(head, sides, rng))
            for number, style in enumerate(heads.STYLES):
                assert measures.faces(worn(around[:, number].contiguous(), generator), style).count == 1
                for share, count in ((1.0, 2), (0.3, 1)):
                    double = torch.from_numpy(two_faced_shots(head, sides, [style], share)[:, 0])
                    assert measures.faces(worn(double, generator), style).count == count
    assert np.mean(own) > 0.65 and np.mean(others) < 0.25 and np.mean(known) > 0.75


def test_runs_of_sides_are_counted_around_the_circle() -> None:
    def seen(*azimuths: int) -> np.ndarray:
        return np.isin(np.arange(36) * 10, azimuths)

    assert count_runs(seen()) == 0
    assert count_runs(seen(350, 0, 10)) == 1
    assert count_runs(seen(350, 0, 170, 180)) == 2
    assert count_runs(seen(0, 10, 90)) == 1, "a single side is noise"
    assert count_runs(np.ones(36, bool)) == 3


# ---- the learnt files ------------------------------------------------------------------------------------------------


def test_learnt_files_are_those_of_the_text_and_small() -> None:
    text = Path(FILE).with_name("portrait.md").read_text()
    for path in (FILE, WEIGHTS):
        assert hashlib.sha256(path.read_bytes()).hexdigest() in text, path.name
    assert sum(path.stat().st_size for path in (FILE, WEIGHTS)) < 10e6


def test_the_network_obeys_and_prefers_faces(measures: Measures) -> None:
    """Sampled: people are told apart in the style, and from behind some pictures show a face, but not all."""
    network = LearntPortraits()
    people = torch.from_numpy(heads.draw_traits(2, SEED + 1)).float()
    some = model.Bank(people, heads.STYLES, torch.zeros(2, 7, 36, 2, 4, 16, 16), torch.zeros(1024, 1), torch.zeros(1))
    fronts = [told(some, "patina", 0.0, person) for person in (0, 1) for _ in range(5)]
    rows = fronts + [told(some, "patina", 180.0) for _ in range(14)]
    tokens = torch.zeros(24, 1, 11)
    for k in range(10):
        tokens[k] = model.identity_tokens(people[k // 5]).positive[0]
    scale = (torch.arange(24) < 10).float()
    wanted = Conditions(torch.cat([row.text for row in rows]), tokens, scale)
    unwanted = Conditions(torch.zeros_like(wanted.text), torch.zeros_like(tokens), scale)
    pictures = sampled(network, wanted, unwanted, 3.0)
    own, other = (
        [measures.identity(pictures[k : k + 1], "patina", people[abs(k // 5 - flip)]) for k in range(10)]
        for flip in (0, 1)
    )
    assert np.mean(own) > 0.35 and np.mean(own) > np.mean(other) + 0.3
    assert measures.faces(pictures[:10], "patina").scores.min() > 0
    small = [measures.faces(pictures[k : k + 1].repeat(3, 1, 1, 1), "patina").scores[1] for k in range(10, 24)]
    assert max(small) > 0.3 and min(small) < -0.3


def sampled(
    network: LearntPortraits, wanted: Conditions, unwanted: Conditions, scale: float, steps: int = 20
) -> Tensor:
    """Pictures by DDIM."""
    latents = torch.randn(len(wanted.text), *model.SHAPE, generator=torch.Generator().manual_seed(SEED))
    times = torch.linspace(980, 20, steps).long()
    for number, time in enumerate(times):
        index = time.repeat(len(latents))
        plain = network.predict(latents, index, unwanted)
        noise = plain + scale * (network.predict(latents, index, wanted) - plain)
        a, s = float(network.schedule.alphas[time]), float(network.schedule.sigmas[time])
        latents = (latents - s * noise) / a
        if number + 1 < steps:
            after = times[number + 1]
            latents = float(network.schedule.alphas[after]) * latents + float(network.schedule.sigmas[after]) * noise
    return model.decode(latents)
