"""Guidance against data whose exact score is known, and the style map against its laws."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from backend.diffusion import moments as channel_moments
from backend.diffusion.captured import CapturedGuidance
from backend.diffusion.face_adapter import ImageTokens
from backend.diffusion.guidance import (
    ANNEALED_STEPS,
    MVDREAM,
    MVDREAM_STEPS,
    SAS_STEPS,
    Guidance,
    TimeSteps,
    aligned,
    draw_steps,
    evaluate,
    guide,
    stacked,
)
from backend.diffusion.interfaces import Conditions
from backend.diffusion.moments import Moments, moments, transport
from backend.diffusion.views import (
    ViewControl,
    ViewTexts,
    face_share,
    view_conditions,
    view_prompts,
    view_weights,
)
from tests.oracles.analytic_denoiser import AnalyticDenoiser, Mixture, gaussian

SHAPE = (4, 3, 3)
SIZE = math.prod(SHAPE)


def covariance(size: int, generator: torch.Generator, spread: float = 1.0) -> Tensor:
    factor = torch.randn(size, size, generator=generator, dtype=torch.float64) / size**0.5
    return spread * (factor @ factor.T + 0.05 * torch.eye(size, dtype=torch.float64))


def mixture(generator: torch.Generator, count: int = 3) -> Mixture:
    means = 1.5 * torch.randn(count, SIZE, generator=generator, dtype=torch.float64)
    weights = torch.rand(count, generator=generator, dtype=torch.float64) + 0.2
    return Mixture(
        weights / weights.sum(), means, torch.stack([covariance(SIZE, generator, 0.3) for _ in range(count)])
    )


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(7)


@pytest.fixture
def denoiser(generator: torch.Generator) -> AnalyticDenoiser:
    wide = gaussian(torch.zeros(SIZE), 4 * torch.eye(SIZE))
    narrow = gaussian(torch.randn(SIZE, generator=generator), covariance(SIZE, generator))
    return AnalyticDenoiser((wide, narrow, mixture(generator)), SHAPE)


def posterior_mean(data: Mixture, noisy: np.ndarray, alpha: float, sigma: float) -> np.ndarray:
    """E[z_0 | z_t] by conditioning the joint Gaussian of z_0 and z_t, in numpy: a way that needs no score."""
    weights, means, covariances = (tensor.numpy() for tensor in (data.weights, data.means, data.covariances))
    logs, estimates = [], []
    for weight, mean, cov in zip(weights, means, covariances, strict=True):
        marginal = alpha**2 * cov + sigma**2 * np.eye(len(mean))
        residual = noisy - alpha * mean
        estimates.append(mean + alpha * cov @ np.linalg.solve(marginal, residual))
        logs.append(np.log(weight) - 0.5 * (residual @ np.linalg.solve(marginal, residual)))
        logs[-1] -= 0.5 * np.linalg.slogdet(marginal)[1]
    shares = np.exp(np.array(logs) - max(logs))
    return (shares / shares.sum()) @ np.array(estimates)


def clean_estimates(
    denoiser: AnalyticDenoiser, latents: Tensor, noise: Tensor, steps: Tensor, name: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Closed-form clean estimates [B, D], and alpha and sigma [B, 1]."""
    rows, alphas, sigmas = [], [], []
    for z, eps, step in zip(latents, noise, steps.tolist(), strict=True):
        a, s = float(denoiser.schedule.alphas[step]), float(denoiser.schedule.sigmas[step])
        rows.append(posterior_mean(denoiser.mixtures[name], (a * z + s * eps).flatten().numpy(), a, s))
        alphas.append([a])
        sigmas.append([s])
    return np.array(rows), np.array(alphas), np.array(sigmas)


def draws(generator: torch.Generator, batch: int) -> tuple[Tensor, Tensor, Tensor]:
    latents = torch.randn(batch, *SHAPE, generator=generator, dtype=torch.float64)
    noise = torch.randn(batch, *SHAPE, generator=generator, dtype=torch.float64)
    return latents, noise, torch.randint(30, 970, (batch,), generator=generator)


# ---- the oracle itself -----------------------------------------------------------------------------------------------


def test_the_oracles_noise_is_the_gradient_of_its_density(denoiser: AnalyticDenoiser) -> None:
    for data in denoiser.mixtures:
        noisy = torch.randn(5, SIZE, dtype=torch.float64).requires_grad_()
        alpha, sigma = 0.8, 0.6
        (score,) = torch.autograd.grad(data.log_density(noisy, alpha, sigma).sum(), noisy)
        assert torch.allclose(data.noise(noisy, alpha, sigma), -sigma * score, atol=1e-10)


# ---- SDS -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [1, 2], ids=["gaussian", "mixture"])
@pytest.mark.parametrize("form", ["noise", "x0"])
@pytest.mark.parametrize("weight", ["one", "sigma_squared", "sigma_alpha"])
def test_the_gradient_is_the_closed_form(
    denoiser: AnalyticDenoiser, generator: torch.Generator, name: int, form: str, weight: str
) -> None:
    latents, noise, steps = draws(generator, 4)
    settings = Guidance(scale=7.5, form=form, weight=weight)  # pyright: ignore[reportArgumentType]
    result = evaluate(denoiser, latents, steps, noise, denoiser.named(name, 4), denoiser.named(0, 4), settings)
    wanted, alpha, sigma = clean_estimates(denoiser, latents, noise, steps, name)
    unwanted, _, _ = clean_estimates(denoiser, latents, noise, steps, 0)
    estimate = unwanted + 7.5 * (wanted - unwanted)
    difference = latents.flatten(1).numpy() - estimate
    if form == "noise":
        difference = difference * alpha / sigma
    factor = {"one": 1.0, "sigma_squared": sigma**2, "sigma_alpha": sigma * alpha}[weight]
    closed = factor * difference
    assert np.abs(result.gradient.flatten(1).numpy() - closed).max() <= 1e-5 * max(np.abs(closed).max(), 1.0)


def test_the_two_forms_agree_under_their_weights(denoiser: AnalyticDenoiser, generator: torch.Generator) -> None:
    """Noise form with sigma^2 and x0 form with sigma alpha are one gradient."""
    latents, noise, steps = draws(generator, 3)
    conditions = denoiser.named(2, 3), denoiser.named(0, 3)
    by_noise = Guidance(form="noise", weight="sigma_squared")
    by_clean = Guidance(form="x0", weight="sigma_alpha")
    first = evaluate(denoiser, latents, steps, noise, *conditions, by_noise).gradient
    second = evaluate(denoiser, latents, steps, noise, *conditions, by_clean).gradient
    assert torch.allclose(first, second, atol=1e-9)


def test_the_gradient_reaches_the_pictures_through_the_encoder(denoiser: AnalyticDenoiser) -> None:
    images = torch.rand(2, 3, 6, 6, dtype=torch.float64, requires_grad=True)
    result = guide(
        denoiser, images, denoiser.named(2, 2), denoiser.named(0, 2), Guidance(), progress=0.0, generator=seeded(3)
    )
    result.loss.backward()
    # The encoder is linear: its transpose carries the latents' gradient, mean over the views.
    spread = torch.einsum("ck,bchw->bkhw", denoiser.mixing, result.gradient / 2) / 4
    expected = spread.repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert images.grad is not None and torch.allclose(images.grad, expected, atol=1e-9)


def test_descent_ends_where_the_data_are(denoiser: AnalyticDenoiser, generator: torch.Generator) -> None:
    """With scale 1 and a Gaussian, the expected gradient vanishes at the mean only, and descent finds it."""
    data = denoiser.mixtures[1]
    latents = torch.zeros(8, *SHAPE, dtype=torch.float64)
    settings = Guidance(scale=1.0, weight="sigma_alpha", group=1)
    for step in range(300):
        steps = draw_steps(settings, denoiser.schedule, 8, step / 300, generator)
        noise = torch.randn(latents.shape, generator=generator, dtype=torch.float64)
        conditions = denoiser.named(1, 8), denoiser.named(0, 8)
        latents = (
            latents - 0.5 / (1 + step / 30) * evaluate(denoiser, latents, steps, noise, *conditions, settings).gradient
        )
    assert (latents.flatten(1).mean(0) - data.means[0]).square().mean().sqrt() < 0.05


def test_rescaling_brings_the_spread_back(denoiser: AnalyticDenoiser, generator: torch.Generator) -> None:
    latents, noise, steps = draws(generator, 4)
    steps = steps[:1].expand(4)
    conditions = denoiser.named(1, 4), denoiser.named(0, 4)
    plain = evaluate(denoiser, latents, steps, noise, *conditions, Guidance(scale=1.0)).estimate
    strong = evaluate(denoiser, latents, steps, noise, *conditions, Guidance(scale=50.0)).estimate
    full = evaluate(denoiser, latents, steps, noise, *conditions, Guidance(scale=50.0, rescale=1.0)).estimate
    half = evaluate(denoiser, latents, steps, noise, *conditions, Guidance(scale=50.0, rescale=0.5)).estimate
    assert strong.std() > 1.5 * plain.std()
    assert abs(full.std() / plain.std() - 1) < 1e-6
    assert torch.allclose(half, 0.5 * (strong + full), atol=1e-8)


def test_a_group_shares_its_step_and_its_rescaling(denoiser: AnalyticDenoiser, generator: torch.Generator) -> None:
    """Four views at once: evaluating two groups together is evaluating each alone."""
    steps = draw_steps(MVDREAM, denoiser.schedule, 8, 0.5, generator)
    assert len(steps.reshape(2, 4).unique(dim=1)[0]) == 1
    latents, noise, _ = draws(generator, 8)
    both = evaluate(denoiser, latents, steps, noise, denoiser.named(2, 8), denoiser.named(0, 8), MVDREAM).gradient
    for part in (slice(0, 4), slice(4, 8)):
        conditions = denoiser.named(2, 4), denoiser.named(0, 4)
        alone = evaluate(denoiser, latents[part], steps[part], noise[part], *conditions, MVDREAM).gradient
        assert torch.allclose(both[part], alone, atol=1e-10)
    with pytest.raises(ValueError, match="groups of 4"):
        draw_steps(MVDREAM, denoiser.schedule, 6, 0.5, generator)


def test_two_halves_are_one_batch(denoiser: AnalyticDenoiser, generator: torch.Generator) -> None:
    latents, noise, steps = draws(generator, 3)
    conditions = denoiser.named(2, 3), denoiser.named(0, 3)
    together = evaluate(denoiser, latents, steps, noise, *conditions, Guidance())
    calls = denoiser.calls
    apart = evaluate(denoiser, latents, steps, noise, *conditions, Guidance(split=True))
    assert torch.equal(together.gradient, apart.gradient) and (calls, denoiser.calls) == (1, 3)


def test_a_seed_repeats_and_another_does_not(denoiser: AnalyticDenoiser) -> None:
    images = torch.rand(2, 3, 6, 6, dtype=torch.float64)
    runs = [
        guide(
            denoiser, images, denoiser.named(2, 2), denoiser.named(0, 2), Guidance(), progress=0.2,
            generator=seeded(seed),
        ).gradient
        for seed in (1, 1, 2)
    ]  # fmt: skip
    assert torch.equal(runs[0], runs[1]) and not torch.allclose(runs[0], runs[2])


# ---- the style map ---------------------------------------------------------------------------------------------------


def coloured(generator: torch.Generator, count: int, spread: float = 1.0) -> Tensor:
    """Latents [count, 4, 32, 32] whose channels are mixed and shifted."""
    mixing = spread * torch.randn(4, 4, generator=generator, dtype=torch.float64)
    values = torch.einsum("cd,bdhw->bchw", mixing, torch.randn(count, 4, 32, 32, generator=generator).double())
    return values + torch.randn(4, generator=generator, dtype=torch.float64)[:, None, None]


EXACT = Guidance(style_regulariser=0.0, style_gain=math.inf)


def errors(latents: Tensor, style: Moments, mask: Tensor | None = None) -> tuple[float, float]:
    """Relative errors of covariance and mean."""
    own = moments(latents, mask)
    scale = torch.linalg.matrix_norm(style.covariance)
    return (
        float(torch.linalg.matrix_norm(own.covariance - style.covariance) / scale),
        float(torch.linalg.vector_norm(own.mean - style.mean) / scale.sqrt()),
    )


def test_the_map_reproduces_the_styles_mean_and_covariance(generator: torch.Generator) -> None:
    style = moments(coloured(generator, 20))
    for spread in (0.1, 1.0, 3.0):
        estimate = coloured(generator, 4, spread)
        assert max(errors(aligned(estimate, style, EXACT), style)) < 1e-6
    regularised = replace(EXACT, style_regulariser=1e-3)
    assert max(errors(aligned(coloured(generator, 4), style, regularised), style)) < 2e-3


def test_the_map_is_the_cheapest_of_those_with_the_same_result(generator: torch.Generator) -> None:
    """Whitening and colouring, and the printed map's eigenvector form put right, move the values further."""
    style, estimate = moments(coloured(generator, 20)), coloured(generator, 4)
    own = moments(estimate)
    ours = aligned(estimate, style, EXACT)
    (ts, vs), (tg, vg) = eigen(style.covariance), eigen(own.covariance)
    whitening = ts @ vs.sqrt() @ ts.T @ tg @ vg.inverse().sqrt() @ tg.T
    direct = ts @ vs.sqrt() @ vg.inverse().sqrt() @ tg.T
    for other in (whitening, direct):
        moved = channel_moments.apply(other, own, style, estimate)
        assert max(errors(moved, style)) < 1e-6
        assert (ours - estimate).square().mean() < (moved - estimate).square().mean()


def eigen(matrix: Tensor) -> tuple[Tensor, Tensor]:
    values, vectors = torch.linalg.eigh(matrix)
    return vectors, torch.diag(values)


def test_equal_statistics_are_left_alone(generator: torch.Generator) -> None:
    estimate = coloured(generator, 2)
    assert torch.allclose(aligned(estimate, moments(estimate), EXACT), estimate, atol=1e-9)


def test_the_roots_are_those_of_an_eigendecomposition(generator: torch.Generator) -> None:
    for spread in (1e-6, 1e-3, 1.0):
        values = torch.tensor([spread, 0.03, 0.5, 2.0], dtype=torch.float64)
        vectors, _ = torch.linalg.qr(torch.randn(4, 4, generator=generator, dtype=torch.float64))
        matrix = vectors @ torch.diag(values) @ vectors.T
        root, inverse = channel_moments.square_roots(matrix)
        assert torch.allclose(root, vectors @ torch.diag(values.sqrt()) @ vectors.T, atol=1e-9)
        assert torch.allclose(inverse @ root, torch.eye(4, dtype=torch.float64), atol=1e-6)


def test_the_gain_is_capped_and_only_where_it_is_too_large(generator: torch.Generator) -> None:
    vectors, _ = torch.linalg.qr(torch.randn(4, 4, generator=generator, dtype=torch.float64))
    spreads = torch.tensor([0.001, 0.2, 1.0, 2.0], dtype=torch.float64)
    zero = torch.zeros(4, dtype=torch.float64)
    origin = Moments(zero, vectors @ torch.diag(spreads**2) @ vectors.T)
    style = Moments(zero, vectors @ torch.diag(torch.full((4,), 1.0, dtype=torch.float64)) @ vectors.T)
    matrix = transport(origin, style, regulariser=0.0, gain=4.0)
    gains = vectors.T @ matrix @ vectors
    expected = torch.diag(torch.tensor([4.0, 4.0, 1.0, 0.5], dtype=torch.float64))
    assert torch.allclose(gains, expected, atol=1e-6)


def test_a_flat_estimate_is_not_blown_up(generator: torch.Generator) -> None:
    style = moments(coloured(generator, 20))
    flat = torch.full((2, 4, 8, 8), 0.3, dtype=torch.float64) + 1e-4 * torch.randn(2, 4, 8, 8, generator=generator)
    moved = aligned(flat, style, Guidance())
    assert torch.isfinite(moved).all()
    assert (moved - style.mean[:, None, None]).abs().max() < 4.0 * 1e-4 * 6
    assert torch.isfinite(aligned(torch.zeros_like(flat), style, EXACT)).all()


def test_strength_blends_and_zero_is_plain_distillation(denoiser: AnalyticDenoiser, generator: torch.Generator) -> None:
    latents, noise, _ = draws(generator, 4)
    steps = torch.full((4,), 400)
    style = moments(coloured(generator, 20))
    conditions = denoiser.named(2, 4), denoiser.named(0, 4)

    def target(strength: float, with_style: bool = True) -> Tensor:
        settings = Guidance(scale=7.5, style_strength=strength)
        chosen = style if with_style else None
        result = evaluate(denoiser, latents, steps, noise, *conditions, settings, style=chosen)
        assert torch.allclose(result.gradient, latents - result.target)  # towards the target, never away from it
        return result.target

    assert torch.equal(target(0.0), target(1.0, with_style=False))
    assert torch.allclose(target(0.5), 0.5 * (target(0.0) + target(1.0)), atol=1e-12)


def test_statistics_are_those_of_the_mask(generator: torch.Generator) -> None:
    style, estimate = moments(coloured(generator, 20)), coloured(generator, 3)
    mask = torch.zeros(3, 1, 32, 32, dtype=torch.float64)
    mask[:, :, 4:20, 6:28] = 1.0
    painted = torch.where(mask > 0, estimate, torch.full_like(estimate, 9.0))  # a background of any colour
    moved = aligned(painted, style, EXACT, mask)
    assert torch.equal(moved * (1 - mask), painted * (1 - mask))
    assert max(errors(moved, style, mask)) < 1e-6
    other = torch.where(mask > 0, estimate, torch.full_like(estimate, -3.0))
    assert torch.allclose(aligned(other, style, EXACT, mask) * mask, moved * mask, atol=1e-9)


def test_statistics_are_pooled_over_the_views(generator: torch.Generator) -> None:
    """Views of different brightness keep their difference; each alone would lose it."""
    style = moments(coloured(generator, 20))
    views = coloured(generator, 2)
    views[1] += 2.0
    pooled = aligned(views, style, EXACT)
    apart = torch.cat([aligned(view[None], style, EXACT) for view in views])
    assert max(errors(pooled, style)) < 1e-6
    assert (apart.mean((2, 3))[0] - apart.mean((2, 3))[1]).abs().max() < 1e-6
    assert (pooled.mean((2, 3))[0] - pooled.mean((2, 3))[1]).abs().max() > 0.1


def test_a_masks_weights_count_in_the_pictures_loss(denoiser: AnalyticDenoiser, generator: torch.Generator) -> None:
    """The mask comes at the pictures' size; where it is empty the target is the plain estimate."""
    images = torch.rand(2, 3, 6, 6, dtype=torch.float64)
    mask = torch.zeros(2, 1, 6, 6)
    mask[..., :4] = 1.0
    style = moments(coloured(generator, 20))
    result = guide(
        denoiser, images, denoiser.named(2, 2), denoiser.named(0, 2), Guidance(), progress=0.0, generator=generator,
        mask=mask, style=style,
    )  # fmt: skip
    assert torch.equal(result.target[..., 2], result.estimate[..., 2])
    assert not torch.allclose(result.target[..., :2], result.estimate[..., :2])


def test_a_style_needs_the_clean_form(denoiser: AnalyticDenoiser, generator: torch.Generator) -> None:
    latents, noise, steps = draws(generator, 1)
    conditions = denoiser.named(1, 1), denoiser.named(0, 1)
    with pytest.raises(ValueError, match="x0"):
        evaluate(
            denoiser, latents, steps, noise, *conditions, Guidance(form="noise"), style=moments(coloured(generator, 1))
        )


# ---- the counter-example: the equations as the paper prints them -----------------------------------------------------


def printed_estimate(latents: Tensor, predicted: Tensor, noise: Tensor, alpha: float, beta: float) -> Tensor:
    """Equation 12 as printed; its beta is not defined, sigma is the likeliest reading."""
    return alpha * latents + beta * (predicted - noise)


def printed_map(estimate: Tensor, style: Moments) -> Tensor:
    """Equation 13 as printed: T_s V_s^-1/2 V_g^-1/2 T_g^-1 (z' - mu_g) + mu_g."""
    own = moments(estimate)
    (ts, vs), (tg, vg) = eigen(style.covariance), eigen(own.covariance)
    matrix = ts @ vs.inverse().sqrt() @ vg.inverse().sqrt() @ tg.inverse()
    return channel_moments.apply(matrix, own, own, estimate)


def test_the_printed_estimate_is_not_the_clean_one(denoiser: AnalyticDenoiser, generator: torch.Generator) -> None:
    """For one known picture (a Gaussian without spread) the one-step estimate is that picture, at every time step."""
    picture = torch.randn(SIZE, generator=generator, dtype=torch.float64)
    point = AnalyticDenoiser((gaussian(picture, torch.zeros(SIZE, SIZE)),), SHAPE)
    latents, noise, _ = draws(generator, 1)
    for step in (100, 500, 900):
        alpha, sigma = float(point.schedule.alphas[step]), float(point.schedule.sigmas[step])
        noisy = alpha * latents + sigma * noise
        predicted = point.predict(noisy, torch.tensor([step]), point.named(0, 1))
        result = evaluate(
            point, latents, torch.tensor([step]), noise, point.named(0, 1), point.named(0, 1), Guidance(scale=1.0)
        )
        assert (result.estimate.flatten() - picture).abs().max() < 1e-8
        printed = printed_estimate(latents, predicted, noise, alpha, sigma)
        assert (printed.flatten() - picture).abs().max() > 0.3


def test_the_printed_map_fails_the_laws(generator: torch.Generator) -> None:
    style, estimate = moments(coloured(generator, 20)), coloured(generator, 4)
    in_covariance, in_mean = errors(printed_map(estimate, style), style)
    assert in_covariance > 0.1 and in_mean > 0.1


def test_the_printed_sign_leads_away_from_the_style(generator: torch.Generator) -> None:
    """Equation 14 descends along (z'_m - z): the statistics move away, ours move towards the style's."""
    style = moments(coloured(generator, 20))
    start = coloured(generator, 4)
    towards, away = start.clone(), start.clone()
    for _ in range(20):
        towards = towards - 0.1 * (towards - aligned(towards, style, EXACT))
        away = away - 0.1 * (aligned(away, style, EXACT) - away)
    before, after, printed = (errors(latents, style) for latents in (start, towards, away))
    assert max(after) < 0.3 * max(before) and max(printed) > max(before)


# ---- time steps, views, conditions -----------------------------------------------------------------------------------


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_time_steps_follow_their_schedule() -> None:
    assert SAS_STEPS.at(0.2) == (0.02, 0.98) and SAS_STEPS.at(1 / 3) == (0.02, 0.5) and SAS_STEPS.at(1.0) == (0.02, 0.5)
    low, high = MVDREAM_STEPS.at(0.4)
    assert low == pytest.approx(0.5) and high == pytest.approx(0.74)
    assert MVDREAM_STEPS.at(0.9) == (0.02, 0.5)
    falling = [int(ANNEALED_STEPS.draw(p, 1, 1000, seeded(0))) for p in (0.0, 0.5, 1.0)]
    assert falling == [980, 500, 20]
    drawn = SAS_STEPS.draw(0.9, 4000, 1000, seeded(0))
    assert 20 <= int(drawn.min()) < 30 and 490 < int(drawn.max()) <= 500
    for keys in (((0.0, 0.5, 0.2),), ((0.5, 0.1, 0.2), (0.0, 0.1, 0.2)), ()):
        with pytest.raises(ValueError, match="time steps"):
            TimeSteps(keys)


def test_views_weigh_their_prompts() -> None:
    azimuths = torch.tensor([0.0, 90.0, -90.0, 180.0, 45.0, 10.0, 370.0])
    elevations = torch.tensor([0.0, 0.0, 0.0, 0.0, 0.0, 80.0, 0.0])
    weights = view_weights(azimuths, elevations)
    assert torch.allclose(weights.sum(1), torch.ones(7))
    assert weights[:4].argmax(1).tolist() == [0, 1, 1, 2] and weights[5].argmax() == 3
    assert torch.allclose(weights[4], torch.tensor([0.5, 0.5, 0.0, 0.0]))
    texts = ViewTexts(torch.eye(4)[:, None, :])
    assert torch.allclose(texts.at(azimuths, elevations)[:, 0], weights)
    assert view_prompts("a knight")[2] == "a knight, back view"


def test_a_face_fades_as_it_turns_away() -> None:
    share = face_share(torch.tensor([0.0, 45.0, -45.0, 72.5, 100.0, 180.0, -260.0]))
    assert share.tolist() == pytest.approx([1.0, 1.0, 1.0, 0.5, 0.0, 0.0, 0.0], abs=1e-6)
    angles = torch.linspace(0, 180, 200)
    assert (face_share(angles).diff() <= 0).all()


def test_views_have_conditions_of_their_own() -> None:
    azimuths = torch.tensor([0.0, 72.5, 180.0])
    face = ImageTokens(torch.ones(1, 2, 4), torch.zeros(1, 2, 4))
    drawings = torch.rand(3, 3, 8, 8)
    positive, negative = view_conditions(
        ViewTexts(torch.eye(4)[:, None, :]), torch.full((1, 1, 4), 9.0), azimuths, torch.zeros(3), face=face,
        face_scale=0.8, controls=(ViewControl(drawings, 0.5, of_face=True), ViewControl(drawings)),
    )  # fmt: skip
    assert positive.text[:, 0].argmax(1).tolist() == [0, 1, 2] and (negative.text == 9).all()
    assert positive.image_tokens is not None and negative.image_tokens is not None
    assert positive.image_tokens.all() and not negative.image_tokens.any()
    shares = [torch.as_tensor(scale).tolist() for scale in (positive.image_scale, *positive.control_scales)]
    assert shares == [pytest.approx([0.8, 0.4, 0.0], abs=1e-6), pytest.approx([0.5, 0.25, 0.0], abs=1e-6), [1, 1, 1]]
    stacked((negative, positive))


def test_conditions_stack_with_their_scales() -> None:
    one = Conditions(
        torch.zeros(2, 1, 1), control_images=(torch.zeros(2, 3, 4, 4),), control_scales=(torch.tensor([1.0, 0.5]),)
    )
    two = Conditions(torch.ones(1, 1, 1), control_images=(torch.ones(1, 3, 4, 4),), control_scales=(0.25,))
    both = stacked((one, two))
    assert both.text.flatten().tolist() == [0, 0, 1] and both.control_images[0].shape == (3, 3, 4, 4)
    (scales,) = both.control_scales
    assert isinstance(scales, Tensor) and scales.tolist() == [1.0, 0.5, 0.25]
    assert both.image_scale == 1.0 and both.cameras is None
    with pytest.raises(ValueError, match="image_tokens"):
        stacked((one, replace(two, image_tokens=torch.zeros(1, 4, 8))))


# ---- recordings ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("with_mask", [True, False])
def test_recorded_guidance_is_the_plain_one(denoiser: AnalyticDenoiser, with_mask: bool) -> None:
    """Without a GPU nothing is recorded, but all is taken apart and put together as for a recording."""
    mask = torch.ones(2, 1, 6, 6) if with_mask else None
    style = moments(coloured(seeded(5), 5))
    extra = {"image_scale": torch.tensor([0.5, 1.0]), "control_images": (torch.rand(2, 3, 6, 6),)}
    positive = replace(denoiser.named(2, 2), control_scales=(0.3,), **extra)
    negative = replace(denoiser.named(0, 2), control_scales=(0.7,), **extra)
    seen: list[Conditions] = []
    predict = denoiser.predict
    denoiser.predict = lambda noisy, steps, given: (seen.append(given), predict(noisy, steps, given))[1]
    settings = Guidance(scale=20.0, rescale=0.5)
    recorded = CapturedGuidance(denoiser, settings, style)
    for seed in (1, 2):
        images = torch.rand(2, 3, 6, 6, dtype=torch.float64, requires_grad=True)
        common = {"progress": 0.3, "mask": mask}
        first = guide(denoiser, images, positive, negative, settings, style=style, generator=seeded(seed), **common)
        second = recorded(images, positive, negative, generator=seeded(seed), **common)
        assert torch.equal(first.gradient, second.gradient) and torch.equal(first.target, second.target)
        assert torch.equal(first.loss, second.loss) and torch.equal(first.timesteps, second.timesteps)
    for given in seen:
        assert given.control_images[0].shape == (4, 3, 6, 6)
        (scales,) = given.control_scales
        assert isinstance(scales, Tensor) and scales.tolist() == pytest.approx([0.7, 0.7, 0.3, 0.3])
