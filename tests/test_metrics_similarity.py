"""CKA and CKNNA: their invariances, their definition written out, their limits."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffedu import metrics

SIMILARITIES = {
    "cka": metrics.cka,
    "cka rbf": lambda a, b: metrics.cka(a, b, kernel="rbf"),
    "cknna": lambda a, b: metrics.cknna(a, b, k=10),
}


def draw(seed: int, *shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def pair(seed: int, n: int = 40) -> tuple[torch.Tensor, torch.Tensor]:
    a = draw(seed, n, 5)
    return a, torch.tanh(a @ draw(seed + 1, 5, 3)) + 0.3 * draw(seed + 2, n, 3)


@pytest.mark.parametrize("name", SIMILARITIES)
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), scale=st.floats(0.01, 100))
def test_invariances(name, seed, scale):
    a, b = pair(seed)
    similarity = SIMILARITIES[name]
    value = similarity(a, b)
    rotation = torch.linalg.qr(draw(seed + 3, 5, 5)).Q
    order = torch.randperm(len(a), generator=torch.Generator().manual_seed(seed))
    swapped = 0.02 if name == "cknna" else 1e-9  # CKNNA is only nearly symmetric
    torch.testing.assert_close(similarity(b, a), value, rtol=0, atol=swapped)
    torch.testing.assert_close(similarity(scale * a @ rotation, b), value)
    torch.testing.assert_close(similarity(a[order], b[order]), value)
    torch.testing.assert_close(similarity(a, a), torch.ones_like(value))
    if name != "cknna":
        torch.testing.assert_close(similarity(a + 7, b), value)
        assert abs(float(value)) <= 1 + 1e-9


@pytest.mark.parametrize("name", SIMILARITIES)
def test_blocks_and_precision_change_little(name, monkeypatch):
    a, b = pair(0)
    whole = SIMILARITIES[name](a, b)
    single = SIMILARITIES[name](a.float(), b.float())
    assert whole.dtype == torch.float64 and single.dtype == torch.float32
    torch.testing.assert_close(single.double(), whole, rtol=1e-4, atol=1e-5)
    monkeypatch.setattr("diffedu.metrics.pairs.BLOCK", 100)
    torch.testing.assert_close(SIMILARITIES[name](a, b), whole)


def hsic(k: torch.Tensor, l: torch.Tensor) -> torch.Tensor:
    """The unbiased estimator as a U-statistic: over ordered fours of samples."""
    n = len(k)
    distinct = torch.tensor(
        [
            (i, j, q, r)
            for i in range(n)
            for j in range(n)
            for q in range(n)
            for r in range(n)
            if len({i, j, q, r}) == 4
        ]
    )
    i, j, q, r = distinct.T
    return (k[i, j] * (l[i, j] + l[q, r] - 2 * l[i, q])).mean()


def test_cka_is_the_ratio_of_u_statistics():
    a, b = draw(0, 8, 3), draw(1, 8, 2)
    k, l = a @ a.T, b @ b.T
    expected = hsic(k, l) / (hsic(k, k) * hsic(l, l)).sqrt()
    torch.testing.assert_close(metrics.cka(a, b), expected)


def test_cka_of_unrelated_wide_features_is_zero_on_average():
    draws = draw(0, 200, 2, 12, 60)  # wider than many: where the biased form says 1
    values = torch.stack([metrics.cka(a, b) for a, b in draws])
    assert abs(float(values.mean())) < 5 * float(values.std()) / len(values) ** 0.5
    centred = draws - draws.mean(2, keepdim=True)
    k = centred @ centred.mT
    biased = (k[:, 0] * k[:, 1]).sum((1, 2)) / k.flatten(2).norm(dim=2).prod(1)
    assert float(biased.mean()) > 0.6


def test_cknna_by_dense_matrices():
    a, b = pair(5, n=30)
    a, b = (x / x.norm(dim=1, keepdim=True) for x in (a, b))

    def neighbours(x: torch.Tensor) -> torch.Tensor:
        k = x @ x.T - 9 * torch.eye(len(x))
        rank = (k[:, None, :] > k[:, :, None]).sum(2)  # how many lie nearer
        return rank < 6

    def aligned(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        mask = neighbours(x) & neighbours(y)
        k, l = mask * (x @ x.T), mask * (y @ y.T)
        n, one = len(x), torch.ones(len(x), dtype=x.dtype)
        product, sums = k @ l, k.sum() * l.sum()
        return (
            product.trace()
            + sums / ((n - 1) * (n - 2))
            - 2 * (one @ product @ one) / (n - 2)
        )

    expected = aligned(a, b) / (aligned(a, a) * aligned(b, b)).sqrt()
    torch.testing.assert_close(metrics.cknna(a, b, k=6), expected)
    rows = torch.linspace(0.5, 2, 30, dtype=a.dtype)[:, None]  # lengths don't count
    torch.testing.assert_close(metrics.cknna(a * rows, b, k=6), expected)
    assert not torch.allclose(metrics.cknna(a * rows, b, 6, normalize=False), expected)


def test_cknna_with_every_neighbour_is_cka():
    a, b = pair(9, n=25)
    value = metrics.cknna(a, b, k=24, normalize=False)
    torch.testing.assert_close(value, metrics.cka(a, b))


def test_cknna_sees_neighbourhoods_that_cka_overlooks():
    a = draw(0, 200, 8)
    a[:2] *= 100  # two outliers are all that CKA sees
    unrelated = draw(1, 200, 8)
    unrelated[:2] = a[:2]
    assert float(metrics.cka(a, unrelated)) > 0.9
    assert float(metrics.cknna(a, unrelated)) < 0.3
