"""Generative classifiers: against Bayes' rule, by hand, and with wrong input."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from diffedu import GaussianMixture, schedules
from diffedu.representations import (
    DiffusionClassifier,
    denoising_errors,
    diffusion_classify,
    even_places,
    likelihood_classify,
)

PATH = schedules.cosine()
MEANS = torch.tensor([[-1.0, 0.0], [1.0, 0.0], [0.0, 1.5]], dtype=torch.float64)
WORLD = GaussianMixture([0.6, 0.3, 0.1], MEANS, [0.5, 0.7, 0.9])
DENOISE = WORLD.denoiser(PATH)
THREE = {"label": torch.arange(3)}


def dice(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_scores_are_log_likelihoods_in_nats():
    x0, _ = WORLD.sample(40, dice(), labelled=True)
    classify = DiffusionClassifier(DENOISE, THREE, looks=(512,), batch=4096)
    errors = classify.errors(x0, dice(1))
    log_p = torch.stack([WORLD.condition(c).log_prob(x0) for c in range(3)], 1)
    gap = (errors[..., 0] - errors[..., 1]) + (log_p[:, 0] - log_p[:, 1])
    each = gap.mean(0)
    bound = 5 * gap.std(0) / 512**0.5
    assert bool((each.abs() < bound + 0.02).all())


def test_uniform_weighting_is_another_number():
    x0 = WORLD.sample(40, dice())
    nats = DiffusionClassifier(DENOISE, THREE, looks=(64,)).errors(x0, dice(1))
    plain = DiffusionClassifier(
        DENOISE, THREE, looks=(64,), weighting="uniform"
    ).errors(x0, dice(1))
    ratio = (nats[..., 0] - nats[..., 2]).mean() / (
        plain[..., 0] - plain[..., 2]
    ).mean()
    assert abs(ratio - 1) > 0.5


def test_prior_moves_the_posterior_by_bayes_rule():
    x0 = WORLD.sample(20, dice())
    prior = WORLD.weights.log()
    flat = diffusion_classify(DENOISE, x0, THREE, dice(1), looks=(8,))
    told = diffusion_classify(DENOISE, x0, THREE, dice(1), looks=(8,), log_prior=prior)
    assert_close(told.score, flat.score + prior)
    assert_close(told.log_posterior, (flat.log_posterior + prior).log_softmax(1))


def test_paired_differences_vary_less():
    x0 = WORLD.sample(50, dice())
    spread = {}
    for paired in (True, False):
        classify = DiffusionClassifier(DENOISE, THREE, looks=(32,), paired=paired)
        errors = classify.errors(x0, dice(2))
        spread[paired] = (errors[..., 0] - errors[..., 1]).var(0).mean()
    assert spread[True] < 0.7 * spread[False]


def test_errors_are_the_equation():
    x0 = WORLD.sample(6, dice())
    t, eps = torch.linspace(0.1, 0.9, 6).double(), torch.randn(x0.shape).double()
    found = denoising_errors(DENOISE, x0, THREE, t, eps, batch=4)
    for c in range(3):
        seen = DENOISE(PATH.add_noise(x0, t, eps), t, label=torch.full((6,), c)).eps
        assert_close(found[:, c], (seen - eps).square().sum(1))


def test_noise_and_times_of_their_own_are_used():
    x0 = WORLD.sample(5, dice())
    t = torch.rand(5, 3, generator=dice(1), dtype=torch.float64) * 0.8 + 0.1
    eps = torch.randn(5, 3, 2, generator=dice(2), dtype=torch.float64)
    found = denoising_errors(DENOISE, x0, THREE, t, eps)
    for c in range(3):
        alone = denoising_errors(DENOISE, x0, THREE, t[:, c], eps[:, c])
        assert_close(found[:, c], alone[:, c])


def test_rounds_agree_with_the_table_and_count_their_looks():
    x0 = WORLD.sample(30, dice())
    classify = DiffusionClassifier(DENOISE, THREE, looks=(2, 6, 9), keep=(2, 2, 1))
    verdict, table = classify(x0, dice(3)), classify.errors(x0, dice(3))
    assert verdict.evaluations == 30 * (2 * 3 + 4 * 2 + 3 * 2)
    assert bool((verdict.alive.sum(1) == 1).all())
    dropped = table[:2].mean(0).argmax(1)
    final = table.mean(0).scatter(1, dropped[:, None], torch.inf).argmin(1)
    assert bool((verdict.prediction == final).all())
    kept = -table[:2].mean(0).gather(1, dropped[:, None])
    assert_close(verdict.score.gather(1, dropped[:, None]), kept)


def test_samples_of_a_batch_are_not_coupled():
    x0 = WORLD.sample(4, dice())
    t, eps = torch.full((4,), 0.3).double(), torch.randn(4, 2).double()
    together = denoising_errors(DENOISE, x0, THREE, t, eps)
    alone = denoising_errors(DENOISE, x0[2:3], THREE, t[2:3], eps[2:3])
    assert_close(together[2:3], alone)


def test_likelihood_classifier_is_bayes_rule():
    x0 = WORLD.sample(12, dice())
    verdict = likelihood_classify(
        DENOISE, x0, THREE, steps=60, log_prior=WORLD.weights.log()
    )
    exact = WORLD.class_posterior(x0)
    assert (verdict.log_posterior.exp() - exact).abs().max() < 0.01
    assert verdict.evaluations == 60 * 2 * 3 * 12


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 70), st.integers(0, 2**31))
def test_places_lie_evenly_however_early_one_stops(looks, seed):
    places = even_places(looks, (2,), dice(seed))
    assert places.shape == (looks, 2)
    assert bool(((places >= 0) & (places < 1)).all())
    full = 1 << (looks.bit_length() - 1)  # a whole power of two: one place a cell
    cells = ((places[:full] - places[:1]) % 1 * full + 0.5).floor() % full
    assert bool((cells.sort(0).values == torch.arange(full)[:, None]).all())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"looks": ()}, "looks must rise"),
        ({"looks": (4, 4)}, "looks must rise"),
        ({"looks": (4, 8), "keep": (2,)}, "keep needs 2 numbers"),
        ({"looks": (4, 8), "keep": (1, 2)}, "keep needs 2 numbers"),
        ({"looks": (4,), "keep": (0,)}, "keep needs 1 numbers"),
        ({"looks": (4,), "keep": (4,)}, "keep needs 1 numbers"),
        ({"weighting": "unifrom"}, 'did you mean "uniform"'),
        ({"ends": (3.0, -3.0)}, "ends are"),
        ({"log_prior": torch.zeros(2)}, "log_prior needs shape"),
    ],
)
def test_wrong_settings_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        DiffusionClassifier(DENOISE, THREE, **options)


@pytest.mark.parametrize(
    "conditions",
    [{}, {"label": torch.arange(1)}, {"a": torch.arange(2), "b": torch.arange(3)}],
)
def test_conditions_need_one_row_a_class(conditions):
    with pytest.raises(ValueError, match="one row a class"):
        diffusion_classify(DENOISE, MEANS, conditions)


def test_nan_and_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match="NaN"):
        diffusion_classify(DENOISE, MEANS * torch.nan, THREE)
    t = torch.full((3,), 0.5).double()
    with pytest.raises(ValueError, match="noise has shape"):
        denoising_errors(DENOISE, MEANS, THREE, t, torch.zeros(2, 2).double())
    with pytest.raises(ValueError, match="t has shape"):
        denoising_errors(DENOISE, MEANS, THREE, t[:, None], torch.zeros(3, 2).double())
