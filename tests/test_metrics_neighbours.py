"""Precision, recall and coverage: cases that can be counted by hand."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffedu import metrics
from diffedu.metrics.neighbours import neighbour_radii


def draw(seed: int, *shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def test_precision_and_recall_on_a_line():
    real = torch.tensor([[0.0], [1.0], [2.0], [10.0], [11.0]])
    fake = torch.tensor([[0.5], [0.6], [2.9], [100.0]])
    # k=1: real radii 1, 1, 1, 1, 1; fake radii .1, .1, 2.3, 97.1
    value = metrics.precision_recall(real, fake, k=1)
    assert float(value.precision) == 0.75
    assert float(value.recall) == pytest.approx(0.8)  # 1, 2, 10 and 11


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), k=st.integers(1, 5))
def test_a_set_covers_itself_and_blocks_change_nothing(seed, k):
    a, b = draw(seed, 20, 3), draw(seed + 1, 30, 3) * 2
    assert metrics.precision_recall(a, a, k) == (1.0, 1.0)
    whole = metrics.precision_recall(a, b, k)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("diffedu.metrics.pairs.BLOCK", 64)
        assert metrics.precision_recall(a, b, k) == whole
    assert metrics.precision_recall(b, a, k) == (whole.recall, whole.precision)


def test_each_lack_shows_in_its_own_number():
    real, narrow = draw(0, 400, 2), draw(1, 400, 2) * 0.2
    dropped = metrics.precision_recall(real, narrow)
    assert dropped.precision > 0.95 and dropped.recall < 0.5
    spread = metrics.precision_recall(real, draw(1, 400, 2) * 4)
    assert spread.precision < 0.5 and spread.recall > 0.7


def test_neighbour_radii_agree_with_sklearn():
    neighbours = pytest.importorskip("sklearn.neighbors")
    x = draw(0, 50, 4)
    found = neighbours.NearestNeighbors(n_neighbors=4).fit(x.numpy())
    expected = torch.as_tensor(found.kneighbors(x.numpy())[0][:, 3])
    torch.testing.assert_close(neighbour_radii(x, 3), expected)


def test_copies_have_radius_zero():
    x = torch.zeros(6, 2)
    assert torch.equal(neighbour_radii(x, 3), torch.zeros(6))


def test_mode_coverage_counts():
    modes = torch.tensor([[0.0, 0.0], [5.0, 0.0], [0.0, 5.0]])
    x = torch.tensor([[0.1, 0.0], [0.0, 0.2], [5.0, 0.3], [2.5, 0.0]])
    value = metrics.mode_coverage(x, modes, radius=0.5)
    assert float(value.quality) == 0.75
    assert value.shares.tolist() == [0.5, 0.25, 0.0]
    assert float(value.covered) == pytest.approx(2 / 3)


def test_three_standard_deviations_hold_what_the_docstring_says():
    x = draw(0, 20_000, 2)
    value = metrics.mode_coverage(x, torch.zeros(1, 2, dtype=x.dtype), radius=3.0)
    error = (0.989 * 0.011 / len(x)) ** 0.5
    assert abs(float(value.quality) - 0.98889) < 5 * error
