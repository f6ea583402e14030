"""Checks of chapter 1's exercises: steps, schedules, forgetting, and the best denoiser.

Each compares with the formula, then with the mistakes that people make in it.
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from diffedu.checks.ch01_forgetting import steps_needed
from diffedu.checks.ch01_knowledge import (
    Inputs,
    between,
    denoise_bits,
    information,
    whole,
)
from diffedu.checks.machinery import Exercise

__all__ = [
    "compose",
    "denoise_bits",
    "information",
    "log_linear_betas",
    "steps_needed",
    "zero_terminal",
]

Step = tuple[Tensor, Tensor]


# Two steps are one


def _two_steps(g: Generator) -> Inputs:
    size = whole(3, 8, g)
    (a, c), (b, d) = between(0.3, 0.95, g, 2, size), between(0.2, 1.1, g, 2, size)
    return {"first": (a, b), "second": (c, d)}


def _compose(first: Step, second: Step, power: float = 2.0) -> Step:
    (a, b), (c, d) = first, second
    return a * c, (c**power * b**2 + d**2).sqrt()


compose = Exercise(
    "compose",
    draw=_two_steps,
    truth=_compose,
    returns=("scale", "std"),
    mistakes={
        "standard deviations are added where variances add": (
            lambda f, s: (f[0] * s[0], s[0] * f[1] + s[1])
        ),
        "the second step does not scale the noise of the first": (
            lambda f, s: _compose(f, s, power=0.0)
        ),
        "a variance is scaled by c, where it takes the square of a factor": (
            lambda f, s: _compose(f, s, power=1.0)
        ),
        "the two steps are taken in the wrong order": lambda f, s: _compose(s, f),
        "a variance is returned in place of a standard deviation": (
            lambda f, s: (f[0] * s[0], _compose(f, s)[1] ** 2)
        ),
        "the steps are taken for variance preserving ones, which they need not be": (
            lambda f, s: (f[0] * s[0], (1 - (f[0] * s[0]) ** 2).sqrt())
        ),
        "scale and std are exchanged in the result": (
            lambda f, s: _compose(f, s)[::-1]
        ),
    },
)


# A schedule by its log-SNR


def _straight_line(g: Generator) -> Inputs:
    high, low = between(3.0, 8.0, g, 2).tolist()
    return {"steps": whole(6, 30, g), "highest": high, "lowest": -low}


def _kept(steps: int, highest: float, lowest: float, factor: float = 1.0) -> Tensor:
    """alpha_bar along a straight line of log-SNR: shape (steps,)."""
    line = torch.linspace(highest, lowest, steps, dtype=torch.float64)
    return (factor * line).sigmoid()


def _betas(alpha_bar: Tensor) -> Tensor:
    return 1 - alpha_bar / torch.cat([alpha_bar.new_ones(1), alpha_bar[:-1]])


def _late(alpha_bar: Tensor) -> Tensor:
    return 1 - alpha_bar / torch.cat([alpha_bar[1:], alpha_bar.new_ones(1)])


def _still(alpha_bar: Tensor) -> Tensor:
    return 1 - alpha_bar / torch.cat([alpha_bar[:1], alpha_bar[:-1]])


def _differences(alpha_bar: Tensor) -> Tensor:
    return -torch.cat([alpha_bar.new_ones(1), alpha_bar]).diff()


log_linear_betas = Exercise(
    "log_linear_betas",
    draw=_straight_line,
    truth=lambda *line: _betas(_kept(*line)),
    mistakes={
        "the previous alpha_bar stands on the wrong side: step 0 comes from the data": (
            lambda *line: _late(_kept(*line))
        ),
        "differences of alpha_bar are taken; a beta is one minus a ratio": (
            lambda *line: _differences(_kept(*line))
        ),
        "alpha is used where alpha_bar, its square, belongs": (
            lambda *line: _betas(_kept(*line).sqrt())
        ),
        "the log-SNR is taken for lambda, its half": (
            lambda *line: _betas(_kept(*line, factor=2.0))
        ),
        "the line begins before step 0, which is to end at the highest log-SNR": (
            lambda n, high, low: _betas(_kept(n + 1, high, low)[1:])
        ),
        "it is alpha_bar; asked for are the betas": lambda *line: _kept(*line),
        "1 - alpha_bar: the noise so far, not a step's": lambda *line: 1 - _kept(*line),
        "the first step adds no noise, but it comes from data without any": (
            lambda *line: _still(_kept(*line))
        ),
        "the betas stand in reversed order": lambda *line: _betas(_kept(*line)).flip(0),
        "the line rises from lowest to highest; the log-SNR falls": (
            lambda n, high, low: _betas(_kept(n, low, high))
        ),
    },
)


# No signal at the end


def _short_chain(g: Generator) -> Inputs:
    return {"betas": between(0.02, 0.25, g, whole(6, 16, g)).sort().values}


def _root(betas: Tensor) -> Tensor:
    return (1 - betas).cumprod(0).sqrt()


def _stretched(kept: Tensor) -> Tensor:
    """Shifted to end at 0, stretched to begin where it did."""
    return (kept - kept[-1]) * kept[0] / (kept[0] - kept[-1])


zero_terminal = Exercise(
    "zero_terminal",
    draw=_short_chain,
    truth=lambda betas: _betas(_stretched(_root(betas)).square()),
    mistakes={
        "it is shifted but not stretched: the first alpha_bar must stay as it was": (
            lambda betas: _betas((_root(betas) - _root(betas)[-1]).square())
        ),
        "alpha_bar is shifted where its square root should be": (
            lambda betas: _betas(_stretched(_root(betas).square()))
        ),
        "only the last step was changed": (
            lambda betas: torch.cat([betas[:-1], betas.new_ones(1)])
        ),
        "the root is not squared again before the betas are computed": (
            lambda betas: _betas(_stretched(_root(betas)))
        ),
        "it is alpha_bar; asked for are the betas": (
            lambda betas: _stretched(_root(betas)).square()
        ),
        "the betas are shifted and stretched where the root of alpha_bar should be": (
            lambda betas: _stretched(betas)
        ),
        "1 - alpha_bar: the noise so far, not a step's": (
            lambda betas: 1 - _stretched(_root(betas)).square()
        ),
    },
)
