"""The linear probe: what a linear classifier reads from frozen features.

Every choice is made on a validation split of the training rows. The test rows are
used once, and rows that occur in both sets are refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import require, require_same_device
from .inputs import at_least_float32, check_features
from .logistic import Probe, logistic

STRENGTHS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)


@dataclass(frozen=True)
class LinearProbe:
    """A fitted probe and what it scored.

    `accuracy`: on the test rows, from 0 to 1. `strength`: the L2 strength chosen.
    `validation_accuracy`: at that strength, from the training rows alone.
    `classes` (C,), `mean` (D,), `scale` (D,), `weight` (C, D), `bias` (C,): the probe.
    """

    accuracy: float
    strength: float
    validation_accuracy: float
    classes: Tensor
    mean: Tensor
    scale: Tensor
    weight: Tensor
    bias: Tensor

    def logits(self, x: Tensor) -> Tensor:
        """Class scores (N, C) of features (N, D)."""
        return (x - self.mean) / self.scale @ self.weight.T + self.bias

    def predict(self, x: Tensor) -> Tensor:
        """The class label (N,) of each row of features (N, D)."""
        return self.classes[self.logits(x).argmax(1)]


def linear_probe(
    train_x: Tensor,
    train_y: Tensor,
    test_x: Tensor,
    test_y: Tensor,
    strengths: Sequence[float] = STRENGTHS,
    validation: float = 0.2,
    generator: torch.Generator | None = None,
) -> LinearProbe:
    """Fit logistic regression to frozen features and score it on others.

    Features are standardised with the mean and std of the rows fitted to. The L2
    strength with the best accuracy on a validation split, drawn from the training
    rows class by class, is chosen (of equals the strongest); then all training rows
    are fitted with it. Deterministic but for the split.

    Args:
        train_x: features, shape (N, D).
        train_y: integer labels, shape (N,).
        test_x: features, shape (M, D), of the same dtype.
        test_y: integer labels, shape (M,), each a class of train_y.
        strengths: of the penalty strength / 2 * |weight|^2 beside the mean
            cross-entropy in nats.
        validation: share of the training rows that choose the strength, at most 1/2.
        generator: draws the split.

    Returns:
        a LinearProbe.

    Raises:
        TypeError: if features are no floating-point tensors or labels no integers.
        ValueError: if shapes, dtypes or devices don't fit, values are not finite, a
            test row is a training row (`shared_rows`), a test class is not in
            train_y, train_y has one class, or an option is out of its range.
    """
    _check_split(train_x, train_y, "train", least=4)
    _check_split(test_x, test_y, "test", least=1)
    check_strengths(strengths)
    _check_two_sets(train_x, train_y, test_x, test_y)
    train_x, test_x = (at_least_float32(x.detach()) for x in (train_x, test_x))
    classes, y = train_y.long().unique(return_inverse=True)
    fit, held = split_rows(y, validation, generator)
    scores = {}
    for strength in sorted(strengths, reverse=True):
        probe = logistic(train_x[fit], y[fit], len(classes), strength)
        scores[strength] = _accuracy(probe, train_x[held], y[held])
    best = max(scores, key=scores.__getitem__)  # the first of equals: the strongest
    probe = logistic(train_x, y, len(classes), best)
    accuracy = _accuracy(probe, test_x, torch.searchsorted(classes, test_y.long()))
    return LinearProbe(accuracy, best, scores[best], classes, *probe)


def shared_rows(train: Tensor, test: Tensor) -> Tensor:
    """Which test rows occur among the training rows too, value by value.

    Use it on the images: features made with fresh noise hide a leak.

    Args:
        train: shape (N, ...).
        test: shape (M, ...), of the same dtype and row shape.

    Returns:
        indices of such test rows, shape (L,), empty if the sets are apart.

    Raises:
        ValueError: if dtype or row shape differ, or a row has no axis of its own.
    """
    require(
        min(train.dim(), test.dim()) >= 2,
        f"train has shape {tuple(train.shape)} and test {tuple(test.shape)}; "
        "both must be (N, ...), one row a sample",
    )
    require(
        train.dtype == test.dtype and train.shape[1:] == test.shape[1:],
        f"train rows are {tuple(train.shape[1:])} of {train.dtype}, test rows "
        f"{tuple(test.shape[1:])} of {test.dtype}; equal rows could not be seen",
    )
    seen = set(_contents(train))
    shared = [i for i, row in enumerate(_contents(test)) if row in seen]
    return torch.tensor(shared, dtype=torch.long)


def _accuracy(probe: Probe, x: Tensor, y: Tensor) -> float:
    mean, scale, weight, bias = probe
    guess = ((x - mean) / scale @ weight.T + bias).argmax(1)
    return int((guess == y).sum()) / len(y)


def split_rows(
    y: Tensor, validation: float, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """Rows to fit and rows held back, of every class the same share.

    Args:
        y: numbers of classes, shape (N,).
        validation: the share held back, above 0 and at most 1/2.
        generator: draws which.

    Returns:
        two sets of indices, together all of the N rows.

    Raises:
        ValueError: if the share is out of its range, or no row.
    """
    require(
        0 < validation <= 0.5,
        f"validation is {validation}; it is a share above 0, at most 0.5",
    )
    device = generator.device if generator is not None else "cpu"
    order = torch.randperm(len(y), generator=generator, device=device).to(y.device)
    order = order[y[order].argsort(stable=True)]
    # Evenly spaced in an order by class, so every class gives the same share.
    counts = (torch.arange(len(y) + 1, device=y.device) * validation).round()
    held = counts.diff() > 0
    require(
        bool(held.any()),
        f"{validation} of {len(y)} training rows is no row; raise validation",
    )
    return order[~held], order[held]


def _contents(x: Tensor) -> list[bytes]:
    """The bytes of every row (N, ...); 0.0 and -0.0 are the same."""
    x = x.detach().cpu().flatten(1)
    x = x + 0 if x.is_floating_point() else x
    rows = x.contiguous().view(torch.uint8).numpy()
    return [row.tobytes() for row in rows]


def _check_split(x: Tensor, y: Tensor, name: str, least: int) -> None:
    check_features(x, f"{name}_x", least)
    require(
        isinstance(y, Tensor) and not y.is_floating_point() and not y.is_complex(),
        f"{name}_y must be a tensor of integers; got "
        f"{y.dtype if isinstance(y, Tensor) else type(y).__name__}",
        TypeError,
    )
    require(
        y.shape == x.shape[:1],
        f"{name}_y has shape {tuple(y.shape)}; for {len(x)} rows it is ({len(x)},)",
    )
    require_same_device(x, y, f"{name}_x and {name}_y")


def _check_two_sets(
    train_x: Tensor, train_y: Tensor, test_x: Tensor, test_y: Tensor
) -> None:
    require_same_device(train_x, test_x, "train_x and test_x")
    leak = shared_rows(train_x, test_x)
    require(
        len(leak) == 0,
        f"{len(leak)} of {len(test_x)} test rows are training rows too, the first at "
        f"{leak[:3].tolist()}; draw the two sets apart (see metrics.shared_rows)",
    )
    classes = train_y.unique()
    require(len(classes) >= 2, "train_y holds one class; a probe needs two or more")
    missing = test_y[~torch.isin(test_y, classes)].unique()
    require(
        len(missing) == 0,
        f"test_y holds classes that train_y lacks: {missing[:5].tolist()}",
    )


def check_strengths(strengths: Sequence[float]) -> None:
    """Raise ValueError unless there is one or more, none negative or infinite."""
    require(
        len(strengths) > 0 and all(0 <= s < float("inf") for s in strengths),
        f"strengths is {strengths}; give one or more numbers, none below 0",
    )
