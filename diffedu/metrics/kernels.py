"""Distances between sets from means over pairs: KID, MMD, energy distance.

All are differences of three means, within a, within b and between them. Leaving out
the pairs of a sample with itself makes the estimate unbiased; it may fall below 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..errors import require
from .inputs import check_pair, double, draw_rows, like_input
from .pairs import Kernel, distances, mean_over_others, mean_over_pairs


def kid(a: Tensor, b: Tensor) -> Tensor:
    """KID's formula: the unbiased squared MMD with the kernel (x.y / D + 1)^3.

    Unlike the Frechet distance its mean doesn't depend on n; it can be negative.

    Args:
        a: features, shape (N, D).
        b: features, shape (M, D).

    Returns:
        shape (), in the features' dtype (summed in float64).

    Raises:
        TypeError: if the features are no floating-point tensors.
        ValueError: if their shapes don't fit, fewer than 2 samples, or not finite.

    Source: (1801.01401).
    """
    check_pair(a, b)
    return _squared_mmd(_cubic, a, b, unbiased=True)


def kid_subsets(
    a: Tensor,
    b: Tensor,
    subsets: int = 100,
    size: int = 1000,
    generator: torch.Generator | None = None,
) -> Tensor:
    """KID on random subsets: their mean is what papers print, their std its spread.

    Args:
        a: features, shape (N, D), N >= size.
        b: features, shape (M, D), M >= size.
        subsets: how many pairs of subsets.
        size: samples in each, drawn without replacement.
        generator: draws them.

    Returns:
        shape (subsets,), in the features' dtype.

    Raises:
        TypeError, ValueError: as `kid`, or if a set has fewer than `size` samples.

    Source: (1801.01401).
    """
    check_pair(a, b)
    fewest = min(len(a), len(b))
    require(
        subsets >= 1 and 2 <= size <= fewest,
        f"{subsets} subsets of {size} from {fewest} samples; "
        f"take at least one, of 2 to {fewest}",
    )
    draws = [
        (draw_rows(a, size, generator), draw_rows(b, size, generator))
        for _ in range(subsets)
    ]
    return torch.stack([_squared_mmd(_cubic, *pair, unbiased=True) for pair in draws])


def mmd(
    a: Tensor,
    b: Tensor,
    bandwidth: float | Sequence[float] = 1.0,
    unbiased: bool = True,
) -> Tensor:
    """The squared maximum mean discrepancy with the kernel exp(-|x - y|^2 / (2 h^2)).

    Differentiable, so it serves as a loss too.

    Args:
        a: samples, shape (N, D).
        b: samples, shape (M, D).
        bandwidth: h in units of the samples; of several, the mean kernel is taken.
        unbiased: leave out the pairs of a sample with itself. With False the result
            is never negative and 0 for equal sets, but too large by about (1 -
            kernel's mean) (1/N + 1/M).

    Returns:
        shape (), in the samples' dtype (summed in float64).

    Raises:
        TypeError: if the samples are no floating-point tensors.
        ValueError: if their shapes don't fit, fewer than 2, not finite, or a
            bandwidth is not above 0.

    Source: (Gretton et al., JMLR 13, 2012, lemma 6).
    """
    check_pair(a, b)
    widths = torch.as_tensor(bandwidth, dtype=torch.float64).flatten().tolist()
    require(
        len(widths) > 0 and all(0 < h < float("inf") for h in widths),
        f"bandwidth is {bandwidth}; every bandwidth must be a number above 0",
    )
    return _squared_mmd(_gaussian(widths), a, b, unbiased)


def energy_distance(a: Tensor, b: Tensor, unbiased: bool = False) -> Tensor:
    """The energy distance 2 E|x - y| - E|x - x'| - E|y - y'|.

    0 only if the distributions are equal, and without a bandwidth to choose.
    (SciPy's function of that name returns the square root, in one dimension.)

    Args:
        a: samples, shape (N, D).
        b: samples, shape (M, D).
        unbiased: leave out the pairs of a sample with itself. With False the result
            is never negative and 0 for equal sets, but too large by
            E|x - x'| / N + E|y - y'| / M.

    Returns:
        shape (), in the samples' dtype and unit (summed in float64). Differentiable.

    Raises:
        TypeError: if the samples are no floating-point tensors.
        ValueError: if their shapes don't fit, fewer than 2, or not finite.

    Source: (Szekely & Rizzo, J. Stat. Plan. Inference 143, 2013).
    """
    check_pair(a, b)
    return _squared_mmd(lambda x, y: -distances(x, y), a, b, unbiased)


def _squared_mmd(kernel: Kernel, a: Tensor, b: Tensor, unbiased: bool) -> Tensor:
    """E k(x, x') + E k(y, y') - 2 E k(x, y), in blocks: shape ()."""
    x, y = double(a), double(b)
    within = mean_over_others if unbiased else _mean_with_itself
    value = within(kernel, x) + within(kernel, y) - 2 * mean_over_pairs(kernel, x, y)
    return like_input(value, a, b)


def _mean_with_itself(kernel: Kernel, x: Tensor) -> Tensor:
    """The mean over all pairs of one set (N, D), each sample with itself included."""
    return mean_over_pairs(kernel, x, x)


def _cubic(x: Tensor, y: Tensor) -> Tensor:
    """KID's kernel between rows: (n, D), (m, D) -> (n, m)."""
    return (x @ y.T / x.shape[1] + 1) ** 3


def _gaussian(widths: list[float]) -> Callable[[Tensor, Tensor], Tensor]:
    """The mean of Gaussian kernels: (n, D), (m, D) -> (n, m)."""

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        squared = x.square().sum(1)[:, None] + y.square().sum(1) - 2 * x @ y.T
        squared = squared.clamp(min=0)
        return sum((-squared / (2 * h * h)).exp() for h in widths) / len(widths)

    return kernel
