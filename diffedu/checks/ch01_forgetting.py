"""Check of chapter 1's exercise on how long a chain must be to forget its data.

It stands beside ch01.py, which imports it, and which the exercises import.
"""

from __future__ import annotations

from collections.abc import Callable
from math import log

import torch
from torch import Generator

from diffedu.checks.ch01_knowledge import Inputs, between, whole
from diffedu.checks.machinery import Exercise

# How long a chain has to be


def _divergence(variance: float) -> float:
    """KL(N(0, variance) || N(0, 1)) in nats."""
    return 0.5 * (variance - 1 - log(variance))


def _spread(variance: float, alpha_bar: float) -> float:
    return alpha_bar * variance + 1 - alpha_bar


def _end(steps: int) -> float:
    """The last alpha_bar of betas that run from 1e-4 to 0.02."""
    betas = torch.linspace(1e-4, 0.02, steps, dtype=torch.float64)
    return torch.log1p(-betas).sum().exp().item()


def _rescaled_end(steps: int) -> float:
    betas = torch.linspace(0.1 / steps, 20 / steps, steps, dtype=torch.float64)
    return (1 - betas).prod().item() if steps > 20 else 1.0


def _search(
    variance: float,
    tolerance: float,
    kl: Callable[[float], float] = _divergence,
    spread: Callable[[float, float], float] = _spread,
    end: Callable[[int], float] = _end,
) -> int:
    """The smallest T up to 3,000 at which the divergence is under the tolerance."""
    low, high = 1, 3000
    while high - low > 1:
        middle = (low + high) // 2
        near = kl(spread(variance, end(middle))) < tolerance
        low, high = (low, middle) if near else (middle, high)
    return high


def _by_table(variance: float, tolerance: float, size: int) -> int:
    """The steps that one fixed table of betas, for `size` steps, takes to get there."""
    betas = torch.linspace(1e-4, 0.02, size, dtype=torch.float64)
    ends = (1 - betas).cumprod(0).tolist()
    far = (_divergence(_spread(variance, end)) >= tolerance for end in ends)
    return 1 + sum(far)


def _tables(size: int) -> dict[str, Callable[[float, float], int]]:
    """The mistake of one table of betas, with the count and the index returned."""
    words = f"one table of {size:,} betas serves all T; each T has its own"
    return {
        words: lambda v, tol: _by_table(v, tol, size),
        f"{words}, and an index is returned": (
            lambda v, tol: _by_table(v, tol, size) - 1
        ),
    }


def _far_start(g: Generator) -> Inputs:
    """A tolerance halfway between the divergences of T - 1 and T steps."""
    steps = whole(140, 350, g)
    variance = round(between(2.5, 9.0, g).item(), 2)
    before, after = (_divergence(_spread(variance, _end(steps - n))) for n in (1, 0))
    return {"variance": variance, "tolerance": (before * after) ** 0.5}


steps_needed = Exercise(
    "steps_needed",
    draw=_far_start,
    truth=_search,
    mistakes={
        "the index of the last step is returned: T steps have indices 0 to T - 1": (
            lambda v, tol: _search(v, tol) - 1
        ),
        "one step too many is returned": lambda v, tol: _search(v, tol) + 1,
        "the divergence is taken the other way round, from N(0, 1) to the chain": (
            lambda v, tol: _search(v, tol, kl=lambda s: 0.5 * (1 / s - 1 + log(s)))
        ),
        "the factor one half is missing": lambda v, tol: _search(v, tol / 2),
        "the logarithm of the divergence is missing": (
            lambda v, tol: _search(v, tol, kl=lambda s: 0.5 * (s - 1))
        ),
        "it is in bits; asked for are nats": lambda v, tol: _search(v, tol * log(2)),
        "the data's variance is scaled by the square root of alpha_bar": (
            lambda v, tol: _search(v, tol, spread=lambda v, a: a**0.5 * v + 1 - a)
        ),
        "the betas shrink as T grows; here they always run from 1e-4 to 0.02": (
            lambda v, tol: _search(v, tol, end=_rescaled_end)
        ),
        **_tables(1000),
        **_tables(3000),
    },
)
