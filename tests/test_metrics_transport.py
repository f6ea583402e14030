"""Wasserstein distances: SciPy, repeated samples, and shifts in closed form."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffedu import metrics


def draw(seed: int, *shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), n=st.integers(1, 30), m=st.integers(1, 30))
def test_wasserstein_1d_agrees_with_scipy(seed, n, m):
    stats = pytest.importorskip("scipy.stats")
    a, b = draw(seed, n), draw(seed + 1, m) * 2 + 1
    expected = stats.wasserstein_distance(a.numpy(), b.numpy())
    value = metrics.wasserstein_1d(a, b, p=1)
    assert float(value) == pytest.approx(expected, rel=1e-9)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), n=st.integers(1, 12), m=st.integers(1, 12))
def test_unequal_sizes_are_those_of_repeated_samples(seed, n, m):
    a, b = draw(seed, 2, n), draw(seed + 1, 2, m)
    repeated = a.repeat_interleave(m, 1), b.repeat_interleave(n, 1)
    for p in (1, 2, 3):
        value = metrics.wasserstein_1d(a, b, p)
        torch.testing.assert_close(value, metrics.wasserstein_1d(*repeated, p))


def test_sliced_wasserstein_of_a_shift():
    a = draw(0, 60, 3)
    shift = torch.tensor([1.0, 2.0, 2.0], dtype=torch.float64)
    axes = 5 * torch.eye(3)  # the length of a direction doesn't count
    value = metrics.sliced_wasserstein(a, a + shift, axes)
    assert float(value) == pytest.approx(math.sqrt(3))  # (mean of 1, 4, 4)^(1/2)
    generator = torch.Generator().manual_seed(0)
    drawn = metrics.sliced_wasserstein(a, a + shift, 4000, generator)
    # |shift|^2 / D = 3; cos^2 has standard deviation .298 in three dimensions.
    assert abs(float(drawn) ** 2 - 3) < 5 * 9 * 0.298 / math.sqrt(4000)


def test_sliced_wasserstein_draws_from_the_generator_alone():
    a, b = draw(0, 30, 3), draw(1, 40, 3)
    generators = [torch.Generator().manual_seed(7) for _ in range(2)]
    values = [metrics.sliced_wasserstein(a, b, 16, g) for g in generators]
    assert torch.equal(*values)
