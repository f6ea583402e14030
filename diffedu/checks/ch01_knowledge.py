"""Checks of chapter 1's exercises on what is left to know: nats, and the mean of bits.

They stand beside ch01.py, which imports them, and which the exercises import.
"""

from __future__ import annotations

from math import log
from typing import Any

import torch
from torch import Generator, Tensor

from diffedu.checks.machinery import Exercise

Inputs = dict[str, Any]


def between(low: float, high: float, generator: Generator, *shape: int) -> Tensor:
    """Uniform numbers between low and high, of the given shape.

    Args:
        low: the smallest.
        high: the largest.
        generator: the source of random numbers.
        shape: of the result.
    """
    return low + (high - low) * torch.rand(shape, generator=generator)


def whole(low: int, high: int, generator: Generator) -> int:
    """A whole number from low up to, and without, high, drawn from the generator."""
    return int(torch.randint(low, high, (), generator=generator))


# What is left to know


def _gaussian_data(g: Generator) -> Inputs:
    dims, batch = whole(3, 9, g), whole(3, 9, g)
    kept = between(0.05, 0.95, g, batch)
    return {"variances": between(0.2, 4.0, g, dims), "alpha_bar": kept}


def _snrs(variances: Tensor, alpha_bar: Tensor) -> Tensor:
    """snr times variance for each time and direction: shape (B, D)."""
    return (alpha_bar / (1 - alpha_bar))[:, None] * variances


def _nats(snrs: Tensor) -> Tensor:
    return 0.5 * torch.log1p(snrs).sum(1)


information = Exercise(
    "information",
    draw=_gaussian_data,
    truth=lambda v, a: _nats(_snrs(v, a)),
    mistakes={
        "the factor one half is missing": lambda v, a: 2 * _nats(_snrs(v, a)),
        "it is in bits; asked for are nats": lambda v, a: _nats(_snrs(v, a)) / log(2),
        "signal and noise are exchanged": lambda v, a: _nats(_snrs(v, 1 - a)),
        "the sum over directions stands inside the logarithm": (
            lambda v, a: _nats(_snrs(v, a).sum(1, keepdim=True))
        ),
        "alpha_bar is squared; it is a power already": (
            lambda v, a: _nats((a**2 / (1 - a) ** 2)[:, None] * v)
        ),
        "alpha_bar stands where the snr should be": (
            lambda v, a: _nats(a[:, None] * v)
        ),
        "the 1 inside the logarithm is missing": (
            lambda v, a: 0.5 * _snrs(v, a).log().sum(1)
        ),
        "the entropy of the noise is not taken off": (
            lambda v, a: 0.5 * (a[:, None] * v + 1 - a[:, None]).log().sum(1)
        ),
    },
)


# Bits seen through noise


def _noisy_bits(g: Generator) -> Inputs:
    batch, dims = whole(3, 7, g), whole(2, 6, g)
    return {
        "x": torch.randn(batch, dims, generator=g),
        "alpha": between(0.3, 0.8, g, batch),
        "sigma": between(0.6, 1.4, g, batch),
        "p": between(0.1, 0.9, g, dims),
    }


def _odds(
    x: Tensor, alpha: Tensor, sigma: Tensor, p: Tensor, power: int = 2, prior: float = 1
) -> Tensor:
    """The log-odds of +1 given x: shape (B, D)."""
    pull = 2 * alpha[:, None] * x / sigma[:, None] ** power
    return pull + prior * (p / (1 - p)).log()


denoise_bits = Exercise(
    "denoise_bits",
    draw=_noisy_bits,
    truth=lambda *given: (_odds(*given) / 2).tanh(),
    mistakes={
        "the likelier bit is returned; asked for is the mean": (
            lambda *given: _odds(*given).sign()
        ),
        "the prior p is not used": lambda *given: (_odds(*given, prior=0) / 2).tanh(),
        "the prior enters twice": lambda *given: (_odds(*given, prior=2) / 2).tanh(),
        "the prior pulls the wrong way": (
            lambda *given: (_odds(*given, prior=-1) / 2).tanh()
        ),
        "sigma is not squared": lambda *given: (_odds(*given, power=1) / 2).tanh(),
        "the pull of x is halved: expand the squares before dividing by 2 sigma^2": (
            lambda x, a, s, p: (_odds(x, a / 2, s, p) / 2).tanh()
        ),
        "tanh takes the log-odds where half of them belongs": (
            lambda *given: _odds(*given).tanh()
        ),
        "it is the probability of +1; asked for is the mean, between -1 and 1": (
            lambda *given: _odds(*given).sigmoid()
        ),
        "alpha is missing: in x_t the bits stand at plus and minus alpha": (
            lambda x, a, s, p: (_odds(x, torch.ones_like(a), s, p) / 2).tanh()
        ),
        "x is divided by alpha; the exponent has their product": (
            lambda x, a, s, p: (_odds(x, 1 / a, s, p) / 2).tanh()
        ),
    },
)
