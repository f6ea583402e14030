"""Wasserstein distances: exact in one dimension, and averaged over directions.

In one dimension the optimal coupling pairs quantiles, so sorting solves it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import capturing, require, require_finite, require_same_device
from ..tensors import normal_like
from .inputs import check_pair, check_tensor, double, like_input

BLOCK = 2**22  # projected values held at once: 32 MB in float64


def wasserstein_1d(a: Tensor, b: Tensor, p: float = 2) -> Tensor:
    """The Wasserstein-p distance between two samples on the line, exactly.

    The integral of |quantile of a - quantile of b|^p, to the power 1/p. Both quantile
    functions are steps, so unequal N and M cost no accuracy.

    Args:
        a: samples, shape (..., N).
        b: samples, shape (..., M), with the same axes before the last.
        p: the power, at least 1.

    Returns:
        shape (...), in the samples' dtype and unit. Differentiable, except where it
        is 0.

    Raises:
        TypeError: if the samples are no floating-point tensors.
        ValueError: if the shapes don't fit, a set is empty, a value not finite, or
            p < 1.
    """
    for x, name in ((a, "a"), (b, "b")):
        check_tensor(x, name)
        require(
            x.dim() >= 1 and x.shape[-1] > 0,
            f"{name} has shape {tuple(x.shape)}; the last axis holds the samples",
        )
        require_finite(x, name)
    require(
        a.shape[:-1] == b.shape[:-1],
        f"a has shape {tuple(a.shape)} but b has {tuple(b.shape)}; "
        "only the last axis may differ",
    )
    require_same_device(a, b, "a and b")
    _check_power(p)
    return like_input(_transport_cost(double(a), double(b), p) ** (1 / p), a, b)


def sliced_wasserstein(
    a: Tensor,
    b: Tensor,
    projections: int | Tensor = 128,
    generator: torch.Generator | None = None,
    p: float = 2,
) -> Tensor:
    """The sliced Wasserstein-p distance: W_p along random directions, averaged.

    (mean over directions of W_p^p)^(1/p). To compare several samplers, pass the same
    directions to each. Two finite samples of one distribution are not 0 apart.

    Args:
        a: samples, shape (N, D).
        b: samples, shape (M, D).
        projections: how many directions to draw, or the directions, shape (P, D), of
            any length above 0.
        generator: draws them.
        p: the power, at least 1.

    Returns:
        shape (), in the samples' dtype and unit. Differentiable, except at 0.

    Raises:
        TypeError: if the samples are no floating-point tensors.
        ValueError: if their shapes don't fit, fewer than 2 samples, not finite, p < 1,
            or there is no direction.

    Source: (1804.01947).
    """
    check_pair(a, b)
    _check_power(p)
    x, y = double(a), double(b)
    directions = _directions(projections, x, generator)
    step = max(1, BLOCK // (len(a) + len(b)))
    costs = [_transport_cost(d @ x.T, d @ y.T, p) for d in directions.split(step)]
    return like_input(torch.cat(costs).mean() ** (1 / p), a, b)


def _transport_cost(a: Tensor, b: Tensor, p: float) -> Tensor:
    """W_p^p between samples (..., N) and (..., M) on the line: shape (...)."""
    n, m = a.shape[-1], b.shape[-1]
    a, b = a.sort(-1).values, b.sort(-1).values
    if n == m:
        return (a - b).abs().pow(p).mean(-1)
    # Both quantile functions jump at multiples of m or of n, in units of 1 / (n m).
    steps_a = torch.arange(n, device=a.device) * m
    steps_b = torch.arange(m, device=a.device) * n
    left = torch.cat([steps_a, steps_b]).sort().values
    widths = torch.diff(left, append=left.new_tensor([n * m]))
    gaps = (a[..., left // m] - b[..., left // n]).abs()
    return (gaps.pow(p) * widths / (n * m)).sum(-1)


def _directions(
    projections: int | Tensor, like: Tensor, generator: torch.Generator | None
) -> Tensor:
    """Unit vectors (P, D), drawn or given."""
    if isinstance(projections, int):
        require(projections >= 1, f"projections is {projections}; take at least 1")
        projections = normal_like(like.new_empty(projections, like.shape[1]), generator)
    require(
        projections.dim() == 2
        and len(projections) > 0
        and projections.shape[1] == like.shape[1],
        f"projections has shape {tuple(projections.shape)}; "
        f"directions for these samples are (P, {like.shape[1]})",
    )
    directions = projections.to(like)
    lengths = directions.norm(dim=1, keepdim=True)
    require(
        capturing() or bool(((lengths > 0) & lengths.isfinite()).all()),
        "a direction is 0 or not finite; each must point somewhere",
    )
    return directions / lengths


def _check_power(p: float) -> None:
    require(1 <= p < float("inf"), f"p is {p}; the power is finite and at least 1")
