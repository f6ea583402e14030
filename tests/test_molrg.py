"""The low-rank mixture: equal to the oracle, and its curve has one summit."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffedu import schedules
from diffedu.representations import LowRankMixture, low_rank_mixture, typical_snr

SIGMAS = torch.logspace(-2, 2, 61, dtype=torch.float64)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def summits(curve: torch.Tensor) -> int:
    """How often an inner point lies above both neighbours."""
    inner = curve[1:-1]
    return int(((inner > curve[:-2]) & (inner > curve[2:])).sum())


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    sigma=st.floats(0.02, 20),
    delta=st.floats(0.1, 0.9),
    slanted=st.booleans(),
)
def test_posterior_mean_is_the_oracles(seed, sigma, delta, slanted):
    mixture = low_rank_mixture(3, 12, 2, delta, seeded(seed))
    if slanted:  # subspaces that are not orthogonal to each other
        draw = torch.randn(3, 12, 2, dtype=torch.float64, generator=seeded(seed))
        mixture = LowRankMixture(torch.linalg.qr(draw).Q, delta)
    x = 2 * torch.randn(20, 12, dtype=torch.float64, generator=seeded(seed + 1))
    noised = mixture.mixture().noised(1.0, sigma)
    torch.testing.assert_close(
        mixture.responsibilities(x, sigma), noised.responsibilities(x)
    )
    # Tweedie: the posterior mean from the oracle's score
    expected = x + sigma**2 * noised.score(x)
    torch.testing.assert_close(mixture.posterior_mean(x, sigma), expected)


def test_posterior_mean_is_the_denoisers_on_any_path():
    mixture, path = low_rank_mixture(3, 12, 2, 0.3, seeded()), schedules.cosine()
    x = torch.randn(20, 12, dtype=torch.float64, generator=seeded(1))
    t = torch.tensor(0.4, dtype=torch.float64)
    alpha, sigma = (float(v) for v in path.coefficients(t))
    found = mixture.posterior_mean(x / alpha, sigma / alpha)
    expected = mixture.mixture().denoiser(path)(x, t).x0
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


def test_samples_have_the_covariance_of_their_class():
    mixture = low_rank_mixture(2, 6, 2, 0.3, seeded())
    x, label = mixture.sample(40_000, seeded(1))
    covariances = mixture.mixture().covariances
    for k in range(2):
        own = x[label == k]
        assert len(own) == pytest.approx(20_000, rel=0.05)
        torch.testing.assert_close(
            own.mean(0), torch.zeros(6).double(), atol=0.04, rtol=0
        )
        torch.testing.assert_close(own.T.cov(), covariances[k], atol=0.05, rtol=0)


def test_subspaces_are_orthonormal_and_orthogonal():
    bases = low_rank_mixture(4, 20, 5, 0.3, seeded()).bases
    columns = bases.mT.reshape(20, 20)
    torch.testing.assert_close(columns @ columns.T, torch.eye(20).double())


def test_class_snr_in_a_loop():
    mixture = low_rank_mixture(3, 10, 2, 0.3, seeded())
    x, label = mixture.sample(50, seeded(1))
    ratios = []
    for k in range(3):
        parts = [(x[label == k] @ u).square().sum(1).mean() for u in mixture.bases]
        ratios.append(parts[k] / (sum(parts) - parts[k]))
    expected = torch.stack(ratios).mean()
    torch.testing.assert_close(mixture.class_snr(x, label), expected)


@pytest.mark.parametrize("noisy", [False, True])
@pytest.mark.parametrize("seed", range(12))
def test_the_curve_has_one_summit(noisy, seed):
    mixture = low_rank_mixture(generator=seeded(seed))
    curve = mixture.snr_curve(SIGMAS, 1500, noisy, seeded(100 + seed))
    assert summits(curve) == 1
    best = float(SIGMAS[curve.argmax()])
    assert (0.2 < best < 0.5) if noisy else (0.4 < best < 0.9)
    assert float(curve.max()) > (1.3 if noisy else 5) * float(curve[0])


@pytest.mark.parametrize("noisy", [False, True])
def test_the_curves_ends(noisy):
    """Without noise the data's own ratio; in endless noise nothing is known."""
    mixture = low_rank_mixture(generator=seeded())
    ends = torch.tensor([1e-6, 1e6], dtype=torch.float64)
    x0, label = mixture.sample(20_000, seeded(1))
    curve = mixture.snr_curve(ends, 20_000, noisy, seeded(1))
    own = float(mixture.class_snr(x0, label))
    assert float(curve[0]) == pytest.approx(own, rel=1e-4)
    assert own == pytest.approx(1 / (2 * 0.3**2), rel=0.03)
    far = 0.5 if noisy else own  # pure noise has as much in each of the three
    assert float(curve[1]) == pytest.approx(far, rel=0.03 if noisy else 1e-4)


def test_the_typical_points_curve():
    """The closed form: the same ends, one summit, and the right place and order."""
    levels = SIGMAS[::2]
    for noisy in (False, True):
        typical = typical_snr(levels, 3, 5, 0.3, noisy)
        mixture = low_rank_mixture(generator=seeded())
        curve = mixture.snr_curve(levels, 4000, noisy, seeded(1))
        assert summits(typical) == 1
        ends = torch.tensor([0, -1])
        torch.testing.assert_close(typical[ends], curve[ends], rtol=0.05, atol=0)
        assert 1 <= float(typical.max() / curve.max()) < 2.5
        assert 0.5 < float(levels[typical.argmax()] / levels[curve.argmax()]) < 2


def test_the_typical_point_is_exact_where_energies_hardly_vary():
    """In high dimensions every point is typical: the law of large numbers."""
    mixture = low_rank_mixture(2, 800, 400, 0.7, seeded())
    sigmas = torch.tensor([0.3, 1.0, 3.0, 6.0], dtype=torch.float64)
    found = mixture.snr_curve(sigmas, 100, generator=seeded(1))
    expected = typical_snr(sigmas, 2, 400, 0.7)
    torch.testing.assert_close(found, expected, rtol=0.03, atol=0)
    assert float(expected.max() / expected.min()) > 2, "there is a summit"


def test_without_a_subspace_there_is_no_summit():
    """The control: with nearly equal spread on and off, no noise level helps much."""
    mixture = low_rank_mixture(delta=0.95, generator=seeded())
    curve = mixture.snr_curve(SIGMAS, 1500, generator=seeded(1))
    assert float(curve.max() / curve[0]) < 1.1


@pytest.mark.parametrize(
    "call, says",
    [
        (lambda: LowRankMixture(torch.eye(3), 0.3), "need shape"),
        (lambda: LowRankMixture(torch.ones(2, 3, 1), 0.3), "orthonormal"),
        (
            lambda: LowRankMixture(torch.eye(3)[None, :, :1].repeat(2, 1, 1), 1.5),
            "delta",
        ),
        (lambda: low_rank_mixture(3, 10, 4), "do not fit"),
        (lambda: low_rank_mixture(1, 10, 4), "do not fit"),
        (lambda: low_rank_mixture().energies(torch.ones(3, 4)), "need shape"),
        (lambda: low_rank_mixture().posterior_mean(torch.ones(3, 50), -1), "sigma is"),
        (lambda: low_rank_mixture().snr_curve(torch.ones(2, 2)), "sigmas have"),
        (
            lambda: low_rank_mixture().class_snr(
                torch.ones(3, 50).double(), torch.ones(2).long()
            ),
            "label has shape",
        ),
        (
            lambda: low_rank_mixture().class_snr(
                torch.ones(3, 50).double(), torch.ones(3).long()
            ),
            "no point",
        ),
    ],
)
def test_mistakes_are_answered(call, says):
    with pytest.raises(ValueError, match=says):
        call()
