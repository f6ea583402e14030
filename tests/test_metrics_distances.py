"""Distances between sets of features: closed forms, other libraries, invariances."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffedu import metrics

DISTANCES = {
    "frechet": metrics.frechet_distance,
    "kid": metrics.kid,
    "mmd": metrics.mmd,
    "mmd biased": lambda a, b: metrics.mmd(a, b, unbiased=False),
    "energy": metrics.energy_distance,
    "energy unbiased": lambda a, b: metrics.energy_distance(a, b, unbiased=True),
    "sliced": lambda a, b: metrics.sliced_wasserstein(a, b, torch.eye(a.shape[1])),
}
ZERO_ON_ITSELF = ["frechet", "mmd biased", "energy", "sliced"]


def draw(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=dtype)


def within_five_errors(values: torch.Tensor, expected: float) -> bool:
    error = float(values.std()) / len(values) ** 0.5
    return abs(float(values.mean()) - expected) < 5 * error


@pytest.mark.parametrize("name", DISTANCES)
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), n=st.integers(2, 40), d=st.integers(1, 6))
def test_symmetric_and_blind_to_the_order_of_samples(name, seed, n, d):
    a, b = draw(seed, n, d), draw(seed + 1, n + 3, d) * 1.5 + 0.3
    distance = DISTANCES[name]
    value = distance(a, b)
    assert value.shape == ()
    torch.testing.assert_close(value, distance(b, a), rtol=1e-8, atol=1e-8)
    shuffled = a[torch.randperm(n, generator=torch.Generator().manual_seed(seed))]
    torch.testing.assert_close(value, distance(shuffled, b), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", ZERO_ON_ITSELF)
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), n=st.integers(2, 40), d=st.integers(1, 6))
def test_zero_on_itself_and_never_negative(name, seed, n, d):
    a, b = draw(seed, n, d), draw(seed + 1, n, d)
    assert abs(float(DISTANCES[name](a, a.flip(0)))) < 1e-7
    assert float(DISTANCES[name](a, b)) >= 0


@pytest.mark.parametrize("name", DISTANCES)
def test_dtype_in_is_dtype_out_and_float32_loses_little(name):
    a, b = draw(0, 50, 4), draw(1, 60, 4) + 0.5
    exact, single = DISTANCES[name](a, b), DISTANCES[name](a.float(), b.float())
    assert exact.dtype == torch.float64
    assert single.dtype == (torch.float64 if name == "frechet" else torch.float32)
    torch.testing.assert_close(single.double(), exact, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", DISTANCES)
def test_blocks_of_pairs_change_nothing(name, monkeypatch):
    a, b = draw(0, 50, 4), draw(1, 61, 4) + 0.5
    whole = DISTANCES[name](a, b)
    monkeypatch.setattr("diffedu.metrics.pairs.BLOCK", 200)
    monkeypatch.setattr("diffedu.metrics.transport.BLOCK", 200)
    torch.testing.assert_close(DISTANCES[name](a, b), whole)


# Frechet


def test_frechet_of_equal_gaussians_is_zero_even_without_full_rank():
    a = draw(0, 40, 64) * 100  # fewer samples than dimensions
    assert float(metrics.frechet_distance(a, a)) < 1e-7
    mean, cov = metrics.mean_and_covariance(a)
    assert float(metrics.frechet_gaussian(mean, cov, mean, cov)) < 1e-7


@settings(max_examples=20, deadline=None)
@given(d=st.integers(1, 8), s=st.floats(0.1, 5), shift=st.floats(-3, 3))
def test_frechet_of_isotropic_gaussians_in_closed_form(d, s, shift):
    eye = torch.eye(d, dtype=torch.float64)
    zero = torch.zeros(d, dtype=torch.float64)
    value = metrics.frechet_gaussian(zero, eye, zero + shift, s**2 * eye)
    assert float(value) == pytest.approx(d * shift**2 + d * (1 - s) ** 2, abs=1e-9)


@pytest.mark.parametrize("n", [200, 20])
def test_frechet_agrees_with_scipy_and_torchmetrics(n):
    linalg = pytest.importorskip("scipy.linalg")
    fid = pytest.importorskip("torchmetrics.image.fid")
    a, b = draw(0, n, 10), draw(1, n, 10) @ draw(2, 10, 10) + 1
    moments = *metrics.mean_and_covariance(a), *metrics.mean_and_covariance(b)
    m1, c1, m2, c2 = moments
    root = torch.as_tensor(linalg.sqrtm((c1 @ c2).numpy()).real)
    expected = (m1 - m2).square().sum() + (c1 + c2 - 2 * root).trace()
    value = metrics.frechet_distance(a, b)
    torch.testing.assert_close(value, expected, rtol=1e-7, atol=0)
    torch.testing.assert_close(value, fid._compute_fid(*moments), rtol=1e-7, atol=0)


def test_frechet_bias_is_as_the_docstring_says():
    d, n, repeats = 4, 400, 200
    samples = draw(0, repeats, 2, n, d)
    values = torch.stack([metrics.frechet_distance(a, b) for a, b in samples])
    expected = (2 * d + d * (d + 1) / 2) / n
    # The terms of order 1 / n^2 are allowed for beside the Monte-Carlo error.
    assert abs(float(values.mean()) / expected - 1) < 0.1
    assert float(values.mean()) > 5 * float(values.std()) / repeats**0.5


def test_extrapolated_frechet_has_a_far_smaller_bias():
    generator = torch.Generator().manual_seed(0)
    samples = draw(1, 40, 2, 200, 4)
    plain = torch.stack([metrics.frechet_distance(a, b) for a, b in samples])
    better = torch.stack(
        [metrics.frechet_extrapolated(a, b, 8, generator) for a, b in samples]
    )
    assert abs(float(better.mean())) < 0.4 * float(plain.mean())


# Kernels


def brute_force_mmd(kernel, a, b):
    total_a = sum(kernel(x, y) for i, x in enumerate(a) for y in a[i + 1 :])
    total_b = sum(kernel(x, y) for i, x in enumerate(b) for y in b[i + 1 :])
    cross = sum(kernel(x, y) for x in a for y in b)
    n, m = len(a), len(b)
    pairs_a, pairs_b = n * (n - 1) / 2, m * (m - 1) / 2
    return total_a / pairs_a + total_b / pairs_b - 2 * cross / (n * m)


def test_kid_and_mmd_against_loops():
    a, b = draw(0, 9, 3), draw(1, 7, 3) + 1
    kid = brute_force_mmd(lambda x, y: (x @ y / 3 + 1) ** 3, a, b)
    torch.testing.assert_close(metrics.kid(a, b), kid)

    def gaussian(x, y):
        squared = (x - y).square().sum()
        return torch.exp(-squared / 8) / 2 + torch.exp(-squared / 0.5) / 2

    expected = brute_force_mmd(gaussian, a, b)
    torch.testing.assert_close(metrics.mmd(a, b, [2.0, 0.5]), expected)


def test_kid_agrees_with_torchmetrics():
    kid = pytest.importorskip("torchmetrics.image.kid")
    a, b = draw(0, 80, 12), draw(1, 80, 12) + 0.2
    torch.testing.assert_close(metrics.kid(a, b), kid.poly_mmd(a, b))


@pytest.mark.parametrize("name", ["kid", "mmd", "energy unbiased"])
def test_unbiased_distances_are_zero_on_average(name):
    samples = draw(0, 500, 2, 12, 3)
    values = torch.stack([DISTANCES[name](a, b) for a, b in samples])
    assert within_five_errors(values, 0.0)
    assert (values < 0).any()


def test_mmd_of_two_gaussians_in_closed_form():
    def cross(squared: float) -> float:  # E k(x, y), x and y N(., 1), bandwidth 1
        return math.sqrt(1 / 3) * math.exp(-squared / 6)

    samples = draw(0, 300, 2, 20, 1)
    values = torch.stack([metrics.mmd(a, b + 2) for a, b in samples])
    assert within_five_errors(values, 2 * cross(0) - 2 * cross(4))


@pytest.mark.parametrize(
    "function, loss",
    [
        (metrics.mmd, lambda gaps: 1 - (-gaps.square() / 2).exp()),
        (metrics.energy_distance, lambda gaps: gaps),
    ],
)
def test_biased_values_are_too_large_by_what_the_docstrings_say(function, loss):
    a, b = draw(0, 15, 2), draw(1, 20, 2)
    gap = function(a, b, unbiased=False) - function(a, b, unbiased=True)
    expected = sum(loss(torch.pdist(x)).mean() / len(x) for x in (a, b))
    torch.testing.assert_close(gap, expected)


def test_kid_subsets_have_kid_as_their_mean():
    a, b = draw(0, 400, 4), draw(1, 300, 4) + 0.5
    generator = torch.Generator().manual_seed(3)
    values = metrics.kid_subsets(a, b, subsets=200, size=50, generator=generator)
    assert values.shape == (200,)
    assert within_five_errors(values, float(metrics.kid(a, b)))
    generator.manual_seed(3)
    again = metrics.kid_subsets(a, b, subsets=200, size=50, generator=generator)
    assert torch.equal(values, again)


def test_energy_distance_agrees_with_scipy():
    stats = pytest.importorskip("scipy.stats")
    a, b = draw(0, 40, 1), draw(1, 55, 1) * 2
    expected = stats.energy_distance(a[:, 0].numpy(), b[:, 0].numpy()) ** 2
    assert float(metrics.energy_distance(a, b)) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("function", [metrics.mmd, metrics.energy_distance])
def test_gradients_are_finite_and_right(function):
    a, b = draw(0, 5, 2).requires_grad_(), draw(1, 4, 2)
    assert torch.autograd.gradcheck(lambda x: function(x, b), a)
