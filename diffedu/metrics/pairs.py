"""Sums over all pairs of two sets, a block of rows at a time.

20,000 x 20,000 pairs in float64 would take 3.2 GB at once; a block takes 8 MB.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

BLOCK = 2**20  # pairs held at once: 8 MB in float64, faster than larger blocks

Kernel = Callable[[Tensor, Tensor], Tensor]


def row_blocks(n: int, m: int) -> Iterator[slice]:
    """Slices of n rows so that each block of rows has about BLOCK pairs with m."""
    step = max(1, BLOCK // max(m, 1))
    return (slice(i, min(i + step, n)) for i in range(0, n, step))


def distances(a: Tensor, b: Tensor) -> Tensor:
    """Euclidean distances (N, M) between rows of a (N, D) and b (M, D).

    Taken from differences, so that equal rows are exactly 0 apart.
    """
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")


def mean_over_pairs(kernel: Kernel, a: Tensor, b: Tensor) -> Tensor:
    """The mean of kernel(a_i, b_j) over all pairs, in blocks.

    Args:
        kernel: takes (n, D) and (M, D), answers (n, M).
        a: shape (N, D).
        b: shape (M, D).

    Returns:
        shape ().
    """
    blocks = row_blocks(len(a), len(b))
    return sum(kernel(a[rows], b).sum() for rows in blocks) / (len(a) * len(b))


def mean_over_others(kernel: Kernel, a: Tensor) -> Tensor:
    """The mean of kernel(a_i, a_j) over pairs with i != j, in blocks.

    Args:
        kernel: takes (n, D) and (N, D), answers (n, N).
        a: shape (N, D), N >= 2.

    Returns:
        shape ().
    """
    total = 0.0
    for rows in row_blocks(len(a), len(a)):
        values = kernel(a[rows], a)
        total = total + values.sum() - values.diagonal(rows.start).sum()
    return total / (len(a) * (len(a) - 1))
