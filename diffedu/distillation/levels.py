"""Noise levels of consistency models: where they lie, how many, how often drawn.

And the distance in which two ends are compared.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from diffedu.errors import require

SIGMA_MIN, SIGMA_MAX, RHO = 0.002, 80.0, 7.0


def noise_levels(
    count: int,
    sigma_min: float = SIGMA_MIN,
    sigma_max: float = SIGMA_MAX,
    rho: float = RHO,
) -> Tensor:
    """`count` rising noise levels sigma / alpha, of equal steps in their rho-th root.

    Returns:
        shape (count,), float64, from sigma_min to sigma_max.

    Raises:
        ValueError: for fewer than 2 levels, or ends that do not rise.

    Source: (arXiv 2206.00364, eq. 5), rising as in (arXiv 2303.01469).
    """
    require(count >= 2, f"a pair needs at least 2 noise levels, got {count}")
    ends = f"need 0 < sigma_min < sigma_max, got {sigma_min} and {sigma_max}"
    require(0 < sigma_min < sigma_max, ends)
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    levels = torch.linspace(low, high, count, dtype=torch.float64) ** rho
    levels[0], levels[-1] = sigma_min, sigma_max
    return levels


def curriculum(step: int, steps: int, first: int = 10, last: int = 1280) -> int:
    """How many noise levels a training step uses: doubled again and again.

    Args:
        step: training steps done, from 0.
        steps: training steps in all.
        first: intervals between levels at the start.
        last: the most there will be.

    Source: (arXiv 2310.14189, section 3.4).
    """
    require(0 <= step, f"step counts from 0, got {step}")
    require(1 <= first <= last, f"need 1 <= first <= last, got {first} and {last}")
    doublings = math.floor(math.log2(last / first)) + 1
    each = max(steps // doublings, 1)
    return min(first * 2 ** (step // each), last) + 1


def likely_levels(levels: Tensor, mean: float = -1.1, std: float = 2.0) -> Tensor:
    """How often each pair of levels is drawn: a log-normal, cut at the levels.

    Args:
        levels: rising noise levels, shape (N,).
        mean, std: of the logarithm of the noise level.

    Returns:
        probabilities, shape (N - 1,).

    Source: (arXiv 2310.14189, section 3.5).
    """
    edges = torch.erf((levels.log() - mean) / (std * 2**0.5))
    return edges.diff() / (edges[-1] - edges[0])


def pseudo_huber(a: Tensor, b: Tensor, c: float | None = None) -> Tensor:
    """sqrt(|a - b|^2 + c^2) - c for each sample: (B, ...) -> (B,).

    Args:
        a, b: shape (B, ...).
        c: where the square turns into the distance; 0.00054 sqrt(D) if None.

    Source: (arXiv 2310.14189, section 3.3).
    """
    gap = (a - b).flatten(1)
    c = 0.00054 * gap.shape[1] ** 0.5 if c is None else c
    return (gap.square().sum(1) + c**2).sqrt() - c


def refuse_checkpoint(options: dict[str, object]) -> None:
    """ValueError if `training.fit` would be asked to go on from a checkpoint."""
    require(
        options.get("checkpoint") is None,
        "a distillation can't go on from a checkpoint: it has stages that a checkpoint "
        "doesn't know; leave checkpoint= out",
    )
