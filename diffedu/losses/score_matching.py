"""Four ways to fit a score without its normalising constant.

Each takes `score`, a function from points (B, D) to vectors (B, D), and returns a mean
over the batch of half a squared length, up to a constant of the data.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from diffedu.errors import capturing, require, require_same_shape
from diffedu.tensors import normal_like, per_sample

Score = Callable[[Tensor], Tensor]


def _half_square(x: Tensor) -> Tensor:
    return 0.5 * x.flatten(1).square().sum(1)


def _require_points(x: Tensor) -> None:
    require(
        x.dim() == 2 and len(x) > 0,
        f"points need shape (B, D) with B >= 1, got {tuple(x.shape)}",
    )


def explicit_score_matching(score: Score, x: Tensor, true_score: Score) -> Tensor:
    """E |score - grad log p|^2 / 2: needs the truth, so it is for tests and figures.

    Args:
        score: from (B, D) to (B, D).
        x: points of the data, shape (B, D).
        true_score: the data's own, from (B, D) to (B, D).

    Source: Hyvarinen (2005).
    """
    _require_points(x)
    return _half_square(score(x) - true_score(x)).mean()


def implicit_score_matching(
    score: Score,
    x: Tensor,
    probes: int | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """E[|score|^2 / 2 + trace of its Jacobian], which equals ESM up to a constant.

    Args:
        score: from (B, D) to (B, D), row by row.
        x: points of the data, shape (B, D).
        probes: None for the exact trace (D passes back), else how many random signs
            estimate it (Hutchinson).
        generator: source of the signs.

    Source: Hyvarinen (2005), theorem 1.
    """
    _require_points(x)
    x, value = _with_gradient(score, x)
    trace = _exact_trace(value, x)
    if probes is not None:
        trace = _hutchinson_trace(value, x, probes, generator)
    return (_half_square(value) + trace).mean()


def _with_gradient(score: Score, x: Tensor) -> tuple[Tensor, Tensor]:
    """x as a leaf that collects gradients, and the score there."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        value = score(x)
    require_same_shape(x, value, "x and score(x)")
    return x, value


def _exact_trace(value: Tensor, x: Tensor) -> Tensor:
    """sum_i d value_i / d x_i for each row: (B,)."""
    columns = [
        torch.autograd.grad(value[:, i].sum(), x, create_graph=True)[0][:, i]
        for i in range(x.shape[1])
    ]
    return torch.stack(columns, 1).sum(1)


def _hutchinson_trace(
    value: Tensor, x: Tensor, probes: int, generator: torch.Generator | None
) -> Tensor:
    """The mean of sign^T J sign over random signs: (B,)."""
    require(probes >= 1, f"probes counts random vectors, got {probes}")
    total = torch.zeros_like(x[:, 0])
    for _ in range(probes):
        sign = normal_like(x, generator).sign()
        total = total + _along(value, x, sign)
    return total / probes


def _along(value: Tensor, x: Tensor, direction: Tensor) -> Tensor:
    """direction^T J direction for each row: (B,)."""
    product = (value * direction).sum()
    (row,) = torch.autograd.grad(product, x, create_graph=True)
    return (row * direction).sum(1)


def sliced_score_matching(
    score: Score,
    x: Tensor,
    projections: int = 1,
    generator: torch.Generator | None = None,
) -> Tensor:
    """E[v^T J v + (v^T score)^2 / 2] over Gaussian directions v.

    Args:
        score: from (B, D) to (B, D), row by row.
        x: points of the data, shape (B, D).
        projections: directions a point.
        generator: source of the directions.

    Source: (arXiv 1905.07088).
    """
    _require_points(x)
    require(projections >= 1, f"projections must be at least 1, got {projections}")
    x, value = _with_gradient(score, x)
    total = torch.zeros_like(x[:, 0])
    for _ in range(projections):
        v = normal_like(x, generator)
        total = total + _along(value, x, v) + 0.5 * (value * v).sum(1).square()
    return total.mean() / projections


def denoising_score_matching(
    score: Score,
    x: Tensor,
    sigma: Tensor | float,
    noise: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """E |score(x + sigma noise) + noise / sigma|^2 / 2: fits the noised data's score.

    Args:
        score: from (B, ...) to (B, ...), at the noise level sigma.
        x: points of the data, shape (B, ...).
        sigma: standard deviation of the noise, above 0: a number, or shape (B,).
        noise: standard noise, shape of x; fresh unless given.
        generator: source of fresh noise.

    Source: Vincent (2011); (arXiv 1907.05600, eq. 5).
    """
    require(x.dim() >= 2 and len(x) > 0, f"x needs (B, ...), got {tuple(x.shape)}")
    sigma = per_sample(torch.as_tensor(sigma).to(x), x)
    require(capturing() or bool((sigma > 0).all()), "sigma must be above 0")
    noise = normal_like(x, generator) if noise is None else noise
    require_same_shape(x, noise, "x and noise")
    return _half_square(score(x + sigma * noise) + noise / sigma).mean()
