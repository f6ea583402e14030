"""Alignment and uniformity: how views of one image, and all images, lie on a sphere.

A contrastive loss weighs the two against each other. Features are scaled to length 1.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..errors import require
from .inputs import check_features, check_pair, double, like_input
from .pairs import row_blocks


def alignment(a: Tensor, b: Tensor, power: float = 2.0) -> Tensor:
    """The mean distance to a power between two views of the same samples.

    0 for equal views; 2 on average for unrelated ones at power 2, and at most 4.

    Args:
        a, b: features, shape (N, D); row i of both is a view of sample i.
        power: the distance's exponent, above 0.

    Returns:
        shape (), in the features' dtype.

    Raises:
        TypeError: if the features are no floating-point tensors.
        ValueError: if the shapes are unequal, a value is not finite, a row is zero,
            or the power is not above 0.

    Source: (2005.10242).
    """
    check_pair(a, b, least=1, paired=True)
    check_pair(a, b, least=1)
    require(power > 0, f"power is {power}; it must be above 0")
    gaps = (_on_sphere(a, "a") - _on_sphere(b, "b")).norm(dim=1)
    return like_input(gaps.pow(power).mean(), a, b)


def uniformity(x: Tensor, t: float = 2.0) -> Tensor:
    """The log of the mean Gaussian potential between two different samples.

    The lower, the more evenly the samples spread: 0 if all are one point, and about
    2 t^2 / D - 2 t for many that point anywhere, if D is large beside t.

    Args:
        x: features, shape (N, D), N >= 2.
        t: the potential is exp(-t distance^2), t above 0.

    Returns:
        shape (), in the features' dtype (summed in float64).

    Raises:
        TypeError: if the features are no floating-point tensor.
        ValueError: if the shape does not fit, a value is not finite, a row is zero,
            or t is not above 0.

    Source: (2005.10242).
    """
    check_features(x, "x")
    require(t > 0, f"t is {t}; it must be above 0")
    points, n = _on_sphere(x, "x"), len(x)
    sums = []
    for rows in row_blocks(n, n):
        square = (2 - 2 * points[rows] @ points.T).clamp(min=0)
        square.diagonal(rows.start).fill_(torch.inf)  # no sample meets itself
        sums.append((-t * square).flatten().logsumexp(0))
    value = torch.stack(sums).logsumexp(0) - math.log(n * (n - 1))
    return like_input(value, x, x)


def _on_sphere(x: Tensor, name: str) -> Tensor:
    """Rows of x (N, D) in float64, scaled to length 1."""
    x = double(x)
    length = x.norm(dim=1, keepdim=True)
    require(
        bool((length > 0).all()),
        f"{int((length == 0).sum())} rows of {name} are zero and have no direction",
    )
    return x / length
