"""Mean IoU and the adjusted Rand index: against scikit-learn, and at their edges."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import adjusted_rand_score, confusion_matrix, jaccard_score

from diffedu import metrics


def labels(seed: int, n: int = 200, k: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    truth = torch.randint(k, (n,), generator=g)
    keep = torch.rand(n, generator=g) < 0.6
    return torch.where(keep, truth, torch.randint(k, (n,), generator=g)), truth


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**31), st.integers(1, 60), st.integers(1, 6))
def test_both_agree_with_sklearn(seed: int, n: int, k: int) -> None:
    a, b = labels(seed, n, k)
    mean = jaccard_score(b.numpy(), a.numpy(), average="macro", zero_division=0)
    assert metrics.mean_iou(a, b) == pytest.approx(mean, abs=1e-12)
    if n >= 2:
        ari = adjusted_rand_score(b.numpy(), a.numpy())
        assert metrics.adjusted_rand_index(a, b) == pytest.approx(ari, abs=1e-9)


def test_confusion_has_the_truth_in_rows() -> None:
    a, b = labels(0)
    table = metrics.confusion(a, b, 4).numpy()
    assert np.array_equal(table, confusion_matrix(b.numpy(), a.numpy()))


def test_an_absent_class_is_left_out_and_an_invented_one_counts() -> None:
    truth = torch.tensor([0, 0, 1, 1])
    assert metrics.mean_iou(truth, truth, classes=9) == 1.0
    invented = torch.tensor([0, 0, 1, 2])
    assert metrics.mean_iou(invented, truth) == pytest.approx((1 + 0.5 + 0) / 3)
    assert metrics.class_iou(truth, truth, 3)[2].isnan()


def test_rand_index_ignores_names_and_is_0_by_chance() -> None:
    _, truth = labels(1, 20_000)
    assert metrics.adjusted_rand_index(7 - truth, truth) == pytest.approx(1.0)
    other = torch.randint(5, truth.shape, generator=torch.Generator().manual_seed(3))
    assert abs(metrics.adjusted_rand_index(other, truth)) < 1e-3
    assert metrics.adjusted_rand_index(truth * 0, truth * 0) == 1.0


@pytest.mark.parametrize(
    ("a", "b", "error", "words"),
    [
        (torch.zeros(3), torch.zeros(3), TypeError, "integers"),
        (torch.zeros(3).bool(), torch.zeros(3).long(), TypeError, "integers"),
        (torch.zeros(3).long(), torch.zeros(4).long(), ValueError, "equal"),
        (torch.zeros(0).long(), torch.zeros(0).long(), ValueError, "empty"),
    ],
)
def test_bad_inputs_are_refused(a, b, error, words) -> None:
    for measure in (metrics.mean_iou, metrics.adjusted_rand_index):
        with pytest.raises(error, match=words):
            measure(a, b)


def test_labels_out_of_range_and_lone_items_are_refused() -> None:
    with pytest.raises(ValueError, match="0 to 1"):
        metrics.mean_iou(torch.tensor([0, 2]), torch.tensor([0, 1]), classes=2)
    with pytest.raises(ValueError, match="0 to"):
        metrics.mean_iou(torch.tensor([-1, 2]), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="two items"):
        metrics.adjusted_rand_index(torch.tensor([0]), torch.tensor([0]))
