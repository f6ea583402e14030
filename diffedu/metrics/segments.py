"""How well pixels are labelled (mean IoU), and grouped without names (ARI)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import require, require_same_device, require_same_shape
from .inputs import double


def confusion(predicted: Tensor, truth: Tensor, classes: int | None = None) -> Tensor:
    """How often each class was given for each class: the confusion matrix.

    Args:
        predicted: class numbers, any shape, integers.
        truth: class numbers, the same shape.
        classes: how many classes there are, K; None is the largest number + 1.

    Returns:
        shape (K, K), int64: row is the true class, column the predicted one.

    Raises:
        TypeError: if one of them is no tensor of integers.
        ValueError: if shapes or devices differ, nothing is given, or a number is
            not in 0..K-1.
    """
    _check_labels(predicted, truth, "predicted and truth")
    predicted, truth = predicted.flatten().long(), truth.flatten().long()
    low = int(min(predicted.min(), truth.min()))
    high = int(max(predicted.max(), truth.max()))
    count = high + 1 if classes is None else classes
    require(
        low >= 0 and high < count,
        f"labels run from {low} to {high}, but {count} classes are 0 to {count - 1}; "
        "leave pixels without a label out first",
    )
    return torch.bincount(truth * count + predicted, minlength=count**2).reshape(
        count, count
    )


def class_iou(predicted: Tensor, truth: Tensor, classes: int | None = None) -> Tensor:
    """Intersection over union of every class, over all pixels together.

    Args, Raises: as `confusion`.

    Returns:
        shape (K,), float64 in [0, 1]; NaN for a class that neither has.
    """
    table = double(confusion(predicted, truth, classes))
    hits = table.diagonal()
    return hits / (table.sum(0) + table.sum(1) - hits)


def mean_iou(predicted: Tensor, truth: Tensor, classes: int | None = None) -> float:
    """The mean over the classes of intersection over union.

    The counts are summed over all images before they are divided, so that a part
    that is absent from one image costs nothing. A class that occurs neither in the
    prediction nor in the truth is left out of the mean; one that was predicted where
    it never is counts as 0.

    Args, Raises: as `confusion`.

    Returns:
        a number in [0, 1].
    """
    return float(class_iou(predicted, truth, classes).nanmean())


def adjusted_rand_index(a: Tensor, b: Tensor) -> float:
    """How far two groupings agree on which pairs belong together, beyond chance.

    Args:
        a: group numbers, any shape, integers; their names do not matter.
        b: group numbers, the same shape.

    Returns:
        1 for equal groupings, 0 on average for independent ones; it can be below 0.

    Raises:
        TypeError, ValueError: as `confusion`; also for fewer than two items.
    """
    _check_labels(a, b, "a and b")
    require(a.numel() >= 2, "a pair needs two items; one was given")
    a, b = (group.flatten().unique(return_inverse=True)[1] for group in (a, b))
    size = int(max(a.max(), b.max())) + 1
    table = double(confusion(a, b, size))
    both, first, second = map(_pairs, (table, table.sum(0), table.sum(1)))
    chance = first * second / _pairs(table.sum())
    # two trivial groupings leave no room above chance: they are equal
    room = (first + second) / 2 - chance
    return float((both - chance) / room) if room > 0 else 1.0


def _pairs(count: Tensor) -> Tensor:
    """How many pairs so many items form, summed over the tensor (any shape)."""
    return (count * (count - 1) / 2).sum()


def _check_labels(a: Tensor, b: Tensor, names: str) -> None:
    for x, name in zip((a, b), names.split(" and "), strict=True):
        require(
            isinstance(x, Tensor)
            and not (x.is_floating_point() or x.is_complex() or x.dtype == torch.bool),
            f"{name} must be a tensor of integers; got "
            f"{x.dtype if isinstance(x, Tensor) else type(x).__name__}",
            TypeError,
        )
    require_same_shape(a, b, names)
    require_same_device(a, b, names)
    require(a.numel() > 0, f"{names} are empty")
