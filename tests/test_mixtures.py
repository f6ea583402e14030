"""The oracle against autograd, Bayes, Monte Carlo and brute force."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import PATHS, mixture, within
from torch.testing import assert_close

from diffedu import EmpiricalDenoiser, GaussianMixture, schedules


def full_mixture() -> GaussianMixture:
    """Three tilted Gaussians in three dimensions, two classes."""
    generator = torch.Generator().manual_seed(5)
    root = torch.randn(3, 3, 3, generator=generator).double() / 2
    means = torch.randn(3, 3, generator=generator).double()
    weights, labels = torch.tensor([0.5, 0.2, 0.3]), torch.tensor([0, 1, 0])
    return GaussianMixture(weights, means, labels=labels, covariances=root @ root.mT)


BOTH = pytest.mark.parametrize("data", [mixture(), full_mixture()], ids=["iso", "full"])


def points(data: GaussianMixture, n: int = 50) -> torch.Tensor:
    return data.sample(n, torch.Generator().manual_seed(0))


@BOTH
def test_log_prob_against_torch(data: GaussianMixture) -> None:
    parts = torch.distributions.MultivariateNormal(data.means, data.covariances)
    choice = torch.distributions.Categorical(data.weights)
    known = torch.distributions.MixtureSameFamily(choice, parts)
    x = points(data)
    assert_close(data.log_prob(x), known.log_prob(x))


@BOTH
def test_score_is_the_gradient(data: GaussianMixture) -> None:
    x = points(data).requires_grad_()
    (gradient,) = torch.autograd.grad(data.log_prob(x).sum(), x)
    assert_close(data.score(x.detach()), gradient)


@BOTH
def test_samples_have_the_mixtures_moments(data: GaussianMixture) -> None:
    n = 200_000
    x = data.sample(n, torch.Generator().manual_seed(1))
    mean = data.weights @ data.means
    outer = data.covariances + data.means[:, :, None] * data.means[:, None]
    covariance = (data.weights[:, None, None] * outer).sum(0) - torch.outer(mean, mean)
    assert within(x.mean(0), mean, covariance.diag().sqrt() / n**0.5)
    away = x - mean
    products = away[:, :, None] * away[:, None]
    assert within(products.mean(0), covariance, products.std(0) / n**0.5)


@BOTH
@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_tweedie_holds_at_every_level(data: GaussianMixture, path) -> None:
    """x0 = (x + sigma^2 score) / alpha, with the noised mixture's own score."""
    for t in (0.05, 0.5, 0.9):
        noised = data.at(path, t)
        x = points(noised)
        alpha, sigma = path.coefficients(t)
        seen = data.denoiser(path)(x, t)
        assert_close(seen.score, noised.score(x), rtol=1e-6, atol=1e-7)
        want = (x + sigma**2 * noised.score(x)) / alpha
        assert_close(seen.x0, want, rtol=1e-5, atol=1e-6)


@BOTH
def test_noising_is_convolution(data: GaussianMixture) -> None:
    """The noised density is the mean of Gaussians around the data: Monte Carlo."""
    n = 100_000
    x0 = data.sample(n, torch.Generator().manual_seed(2))
    x = points(data, 5)
    kernel = torch.distributions.Normal(0.8 * x0, 0.6)
    density = kernel.log_prob(x[:, None]).sum(-1).exp()
    want = data.noised(0.8, 0.6).log_prob(x).exp()
    assert within(density.mean(1), want, density.std(1) / n**0.5)


@BOTH
def test_class_posterior_is_bayes(data: GaussianMixture) -> None:
    x = points(data)
    shares = data.class_posterior(x)
    prior = torch.stack([data.weights[data.labels == c].sum() for c in (0, 1)])
    joint = torch.stack([data.condition(c).log_prob(x) for c in (0, 1)], 1)
    assert_close(shares, (prior.log() + joint).softmax(1))
    assert_close(shares.sum(1), torch.ones(len(x)).double())


@BOTH
def test_labels_condition_the_denoiser(data: GaussianMixture) -> None:
    path = schedules.cosine()
    x = points(data.at(path, 0.5), 6)
    label = torch.tensor([0, 1, -1, 0, 1, 0])
    keep = torch.tensor([True, True, True, False, True, True])
    seen = data.denoiser(path)(x, 0.5, label=label, keep=keep).x0
    for i, wanted in enumerate([0, 1, None, None, 1, 0]):
        alone = data if wanted is None else data.condition(wanted)
        assert_close(seen[i], alone.denoiser(path)(x[i : i + 1], 0.5).x0[0])


def test_guided_score_is_the_conditional_at_scale_one() -> None:
    data = mixture()
    x = points(data)
    conditional = data.condition(1).score(x)
    assert torch.equal(data.guided_score(x, 1, 1.0), conditional)
    assert torch.equal(data.guided_score(x, 1, 0.0), data.score(x))
    want = data.score(x) + 3 * (conditional - data.score(x))
    assert_close(data.guided_score(x, 1, 3.0), want)


@BOTH
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), noise=st.floats(0.3, 2.0))
def test_posterior_is_bayes_up_to_a_constant(data, seed: int, noise: float) -> None:
    """log p(x) + log p(y | x) - log p(x | y) is the same number everywhere."""
    generator = torch.Generator().manual_seed(seed)
    A = torch.randn(2, data.dim, generator=generator).double()
    y = torch.randn(2, generator=generator).double()
    x = points(data, 20)
    given_y = torch.distributions.Normal(x @ A.T, noise).log_prob(y).sum(1)
    difference = data.log_prob(x) + given_y - data.posterior(A, y, noise).log_prob(x)
    assert_close(difference, difference[:1].expand_as(difference), rtol=0, atol=1e-6)


def test_low_rank_data_and_points_are_allowed() -> None:
    """Standard deviation 0: the denoiser is the empirical one."""
    path = schedules.cosine()
    data = torch.randn(6, 3, generator=torch.Generator().manual_seed(0)).double()
    mix = GaussianMixture(torch.ones(6), data, torch.zeros(6))
    exact, empirical = mix.denoiser(path), EmpiricalDenoiser(data, path)
    for t in (0.02, 0.3, 0.9):
        x = mix.at(path, t).sample(10, torch.Generator().manual_seed(1))
        assert_close(exact(x, t).x0, empirical(x, t).x0, rtol=1e-6, atol=1e-8)


def test_empirical_denoiser_against_brute_force_on_images() -> None:
    path = schedules.edm()
    generator = torch.Generator().manual_seed(0)
    data = torch.randn(7, 1, 4, 4, generator=generator).double()
    labels = torch.tensor([0, 0, 1, 1, 1, 2, 2])
    x, t = torch.randn(3, 1, 4, 4, generator=generator).double(), 0.02
    squares = (x[:, None] - data).square().flatten(2).sum(2)
    logits = -squares / (2 * path.sigma(t) ** 2)
    want = torch.einsum("bn,nchw->bchw", logits.softmax(1), data)
    denoise = EmpiricalDenoiser(data, path, labels)
    assert_close(denoise(x, t).x0, want)
    seen = denoise(x, t, label=torch.tensor([1, -1, 2]))
    assert_close(seen.x0[1], want[1])
    allowed = logits[0, 2:5].softmax(0)
    assert_close(seen.x0[0], torch.einsum("n,nchw->chw", allowed, data[2:5]))


@pytest.mark.parametrize("shape", [(), (3,)])
def test_empirical_denoiser_at_pure_noise_is_the_mean(shape: tuple) -> None:
    """alpha = 0 leaves every point as likely, also within a class."""
    data = torch.randn(6, 2, generator=torch.Generator().manual_seed(0)).double()
    labels, x = torch.tensor([0, 0, 0, 1, 1, 1]), torch.ones(3, 2).double()
    for path in (schedules.cosine(), schedules.flow()):
        denoise, t = EmpiricalDenoiser(data, path, labels), torch.ones(shape)
        assert_close(denoise(x, t).x0, data.mean(0).expand(3, 2))
        seen = denoise(x, t, label=torch.tensor(1)).x0
        assert_close(seen, data[3:].mean(0).expand(3, 2))


def test_the_mixture_keeps_its_dtype() -> None:
    for dtype in (torch.float32, torch.float64):
        data = mixture(dtype)
        x = points(data)
        assert x.dtype == data.score(x).dtype == dtype
        assert data.denoiser(schedules.cosine())(x, 0.5).x0.dtype == dtype
        assert data.sample(3, labelled=True)[1].dtype == torch.int64


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"weights": torch.ones(3)}, "weights need shape"),
        ({"weights": torch.tensor([1.0, -1.0])}, "weights need shape"),
        ({"means": torch.zeros(2)}, "means need shape"),
        ({"means": torch.full((2, 2), float("nan"))}, "means holds"),
        ({"stds": torch.ones(3)}, "stds need shape"),
        ({"stds": -torch.ones(2)}, "stds need shape"),
        ({"stds": None}, "give stds or covariances"),
        ({"labels": torch.zeros(3).long()}, "labels need shape"),
        ({"labels": torch.zeros(2)}, "labels need shape"),
        ({"labels": torch.tensor([0, -1])}, "integers from 0"),
        ({"stds": None, "covariances": torch.ones(2, 2)}, "covariances need shape"),
        ({"stds": None, "covariances": -torch.eye(2).expand(2, 2, 2)}, "semi-definite"),
    ],
)
def test_impossible_mixtures_are_refused(arguments: dict, message: str) -> None:
    usual = {
        "weights": torch.ones(2),
        "means": torch.zeros(2, 2),
        "stds": torch.ones(2),
    }
    with pytest.raises(ValueError, match=message):
        GaussianMixture(**(usual | arguments))


def test_bad_calls_are_refused() -> None:
    data, path = mixture(), schedules.cosine()
    with pytest.raises(ValueError, match="points need shape"):
        data.log_prob(torch.zeros(3, 5).double())
    with pytest.raises(ValueError, match="no component has label 7"):
        data.condition(7)
    with pytest.raises(ValueError, match="cannot draw"):
        data.sample(0)
    with pytest.raises(ValueError, match="one time"):
        data.at(path, torch.tensor([0.1, 0.2]))
    with pytest.raises(ValueError, match="A needs shape"):
        data.posterior(torch.ones(1, 3), torch.ones(1), 0.1)
    with pytest.raises(ValueError, match="noise_std"):
        data.posterior(torch.ones(1, 2), torch.ones(1), 0.0)
    with pytest.raises(ValueError, match="unknown; known are"):
        data.denoiser(path)(torch.zeros(2, 2).double(), 0.5, torch.tensor([0, 9]))
    with pytest.raises(ValueError, match="unknown; known are"):
        data.denoiser(path)(torch.zeros(2, 2).double(), 0.5, torch.tensor([0, -2]))
    point = GaussianMixture(torch.ones(1), torch.zeros(1, 2), torch.zeros(1))
    for asked in (point.log_prob, point.score, point.class_posterior):
        with pytest.raises(ValueError, match="there is no density"):
            asked(torch.ones(1, 2))


def test_bad_empirical_denoisers_are_refused() -> None:
    path, x = schedules.cosine(), torch.zeros(2, 3)
    with pytest.raises(ValueError, match="data need"):
        EmpiricalDenoiser(torch.zeros(0, 3), path)
    with pytest.raises(ValueError, match="data holds"):
        EmpiricalDenoiser(x / 0, path)
    with pytest.raises(ValueError, match="labels need shape"):
        EmpiricalDenoiser(x, path, torch.zeros(3))
    with pytest.raises(ValueError, match="has no labels"):
        EmpiricalDenoiser(x, path)(x, 0.5, label=torch.zeros(2).long())
    with pytest.raises(ValueError, match="samples of shape"):
        EmpiricalDenoiser(x, path)(torch.zeros(2, 4), 0.5)
