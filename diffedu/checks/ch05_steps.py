"""Checks of chapter 5's exercises on samplers: churn, and a step of third order."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor

from diffedu.checks.machinery import Exercise, Function, Property

Inputs = dict[str, Any]
CAP = 2**0.5 - 1


def _number(low: float, high: float, g: Generator) -> float:
    return low + (high - low) * torch.rand((), generator=g).item()


# Raising the noise level


def _state(g: Generator) -> Inputs:
    """Inside the range, on a limit, and beyond the cap: gamma is never 0."""
    x, z = 2 * torch.randn(2, 5, 3, generator=g)
    steps = int(torch.randint(20, 60, (), generator=g))
    low, high = _number(0.05, 0.5, g), _number(2.0, 20.0, g)
    inside = _number(low, high, g)
    case = int(torch.randint(0, 5, (), generator=g))
    sigma = [inside, inside, inside, low, high][case]
    churn = _number(0.05, 0.35, g) * steps
    # one walk in five asks for more than the cap allows
    churn = 0.7 * steps if case == 1 else churn
    knobs = (churn, low, high, _number(1.05, 1.3, g))
    return {"x": x, "sigma": sigma, "steps": steps, "knobs": knobs, "z": z}


def _raise(
    x: Tensor,
    sigma: float,
    steps: int,
    knobs: tuple[float, float, float, float],
    z: Tensor,
    *,
    share: Function = lambda churn, n: min(churn / n, CAP),
    inside: Function = lambda low, s, high: low <= s <= high,
    spread: Function = lambda raised, s: (raised**2 - s**2) ** 0.5,
    level: Function = lambda s, gamma, noise: (1 + gamma) * s,
) -> tuple[Tensor, float]:
    churn, low, high, size = knobs
    gamma = share(churn, steps) if inside(low, sigma, high) else 0.0
    raised = (1 + gamma) * sigma
    return x + spread(raised, sigma) * size * z, level(sigma, gamma, size)


def _by_raised(x, sigma, steps, knobs, z):
    """The raised level is compared with the range."""
    churn, low, high, size = knobs
    raised = (1 + min(churn / steps, CAP)) * sigma
    raised = raised if low <= raised <= high else sigma
    return x + (raised**2 - sigma**2) ** 0.5 * size * z, raised


def _added(x, sigma, steps, knobs, z):
    """gamma is added to the level."""
    raised = sigma + min(knobs[0] / steps, CAP)
    return x + (raised**2 - sigma**2) ** 0.5 * knobs[3] * z, raised


def _but(**change: Function) -> Function:
    return lambda *inputs: _raise(*inputs, **change)


def _without_size(x, sigma, steps, knobs, z):
    return _raise(x, sigma, steps, (*knobs[:3], 1.0), z)


def _size_squared(x, sigma, steps, knobs, z):
    return _raise(x, sigma, steps, (*knobs[:3], knobs[3] ** 2), z)


def _exchanged(x, sigma, steps, knobs, z):
    churn, low, high, size = knobs
    return _raise(x, sigma, steps, (size, low, high, churn), z)


def _rests(answer: Function, factor: float, limit: int, g: Generator) -> bool:
    """Whether nothing is raised at `factor` times a limit of the range."""
    inputs = _state(g)
    inputs["sigma"] = factor * inputs["knobs"][limit]
    state, level = answer(*inputs.values())
    rests = abs(float(level) - inputs["sigma"]) < 1e-4 * inputs["sigma"]
    return rests and torch.allclose(state, inputs["x"], atol=1e-4)


def _answers(answer: Function, g: Generator) -> bool:
    """Whether something is returned outside the range too."""
    inputs = _state(g)
    inputs["sigma"] = 2.0 * inputs["knobs"][2]
    return answer(*inputs.values()) is not None


def _below(answer: Function, g: Generator) -> bool:
    return _rests(answer, 0.5, 1, g)


def _above(answer: Function, g: Generator) -> bool:
    return _rests(answer, 2.0, 2, g)


def _either(answer: Function, g: Generator) -> bool:
    return _below(answer, g) or _above(answer, g)


raise_level = Exercise(
    "raise_level",
    draw=_state,
    truth=_raise,
    returns=("the raised state", "the raised level"),
    draws=40,  # so that every case occurs
    mistakes={
        "the levels are subtracted, where their squares are":
            _but(spread=lambda raised, s: raised - s),
        "the root of the difference of squares is missing":
            _but(spread=lambda raised, s: raised**2 - s**2),
        "the noise has the whole raised level, where only the missing part is added":
            _but(spread=lambda raised, s: raised),
        "the root of the difference of the levels, where their squares belong":
            _but(spread=lambda raised, s: (raised - s) ** 0.5),
        "gamma is added to the level: it is a share of it":
            _added,
        "nothing is ever raised: the level is never in the range; compare the order "
        "of the four knobs":
            _but(inside=lambda *_: False),
        "S_churn and S_noise are exchanged: compare the order of the four knobs":
            _exchanged,
        "the raised level is looked up in the range, where the old one belongs":
            _by_raised,
        "the limits of the range are left out, where they belong to it":
            _but(inside=lambda low, s, high: low < s < high),
        "the upper limit is left out of the range, where it belongs to it":
            _but(inside=lambda low, s, high: low <= s < high),
        "the lower limit is left out of the range, where it belongs to it":
            _but(inside=lambda low, s, high: low < s <= high),
        "the larger of the share and the cap, where the smaller one is asked":
            _but(share=lambda churn, n: max(churn / n, CAP)),
        "the cap on gamma is missing":
            _but(share=lambda churn, n: churn / n),
        "the cap is sqrt(2), where it is 1 less":
            _but(share=lambda churn, n: min(churn / n, 2**0.5)),
        "S_churn is not divided by the number of steps":
            _but(share=lambda churn, n: min(churn, CAP)),
        "S_noise is left out":
            _without_size,
        "S_noise comes in squared":
            _size_squared,
        "S_noise scales the level too; the network is told the level without it":
            _but(level=lambda s, gamma, size: (s**2 + size**2 * s**2 * (
                (1 + gamma) ** 2 - 1)) ** 0.5),
        "the state is raised and the level is not":
            _but(level=lambda s, gamma, size: s),
        "gamma is returned in place of the level":
            _but(level=lambda s, gamma, size: gamma),
    },
    properties=(
        Property("it returned None above the range of levels; is a `return` missing?",
                 _answers),
        Property("the range of levels is ignored: outside it x and sigma stay as "
                 "they are", _either),
        Property("the upper limit of the range is ignored: above it x and sigma "
                 "stay as they are", _above),
        Property("the lower limit of the range is ignored: below it x and sigma "
                 "stay as they are", _below),
    ),
)  # fmt: skip


# A multistep method of third order


def _remembered(g: Generator) -> Inputs:
    x = torch.randn(4, 3, generator=g)
    slopes = torch.randn(3, 4, 3, generator=g)
    falls = 0.7 - 0.35 * torch.rand(3, generator=g)
    top = 1 + 5 * torch.rand(1, generator=g)
    sigmas = torch.cat([top, top * falls.cumprod(0)])
    return {"x": x, "slopes": slopes, "sigmas": sigmas}


def _powers(u: Tensor) -> Tensor:
    """1, u and u^2 along a last axis, shape (..., 3)."""
    return torch.stack([torch.ones_like(u), u, u**2], -1)


def _weigh(slopes: Tensor, sigmas: Tensor, moments: Tensor) -> Tensor:
    """The parabola's coefficients, weighted by one number for each power."""
    # inverse[k, j]: of u^k in the parabola that is 1 at sigma_j, 0 at the others
    inverse = torch.linalg.inv(_powers(sigmas[:3]))
    return torch.einsum("k,kj,jbd->bd", moments, inverse, slopes)


def _parabola(x: Tensor, slopes: Tensor, sigmas: Tensor, start: int = 2) -> Tensor:
    """By the coefficients of the parabola, and its primitive function."""
    a, b = sigmas[start], sigmas[3]
    moments = torch.stack([(b**k - a**k) / k for k in (1, 2, 3)])
    return x + _weigh(slopes, sigmas, moments)


def _midpoint(x: Tensor, slopes: Tensor, sigmas: Tensor) -> Tensor:
    a, b = sigmas[2], sigmas[3]
    return x + (b - a) * _weigh(slopes, sigmas, _powers((a + b) / 2))


def _trapezoid(x: Tensor, slopes: Tensor, sigmas: Tensor) -> Tensor:
    a, b = sigmas[2], sigmas[3]
    return x + (b - a) / 2 * _weigh(slopes, sigmas, _powers(a) + _powers(b))


def _constant(weights: tuple[float, float, float]) -> Function:
    def step(x: Tensor, slopes: Tensor, sigmas: Tensor) -> Tensor:
        w = torch.tensor(weights).to(slopes)
        mean = torch.einsum("j,jbd->bd", w, slopes)
        return x + (sigmas[3] - sigmas[2]) * mean

    return step


def _second(x: Tensor, slopes: Tensor, sigmas: Tensor) -> Tensor:
    """The straight line through the last two slopes."""
    h, before = sigmas[3] - sigmas[2], sigmas[2] - sigmas[1]
    rise = (slopes[2] - slopes[1]) / before
    return x + h * slopes[2] + h**2 / 2 * rise


multistep = Exercise(
    "multistep",
    draw=_remembered,
    truth=_parabola,
    mistakes={
        "the weights 23, -16, 5 (over 12) are for steps of equal length":
            _constant((5 / 12, -16 / 12, 23 / 12)),
        "Euler's step: only the newest slope is used":
            _constant((0.0, 0.0, 1.0)),
        "the mean of the three slopes":
            _constant((1 / 3, 1 / 3, 1 / 3)),
        "second order: the oldest slope is not used":
            _second,
        "the slopes are taken from the newest to the oldest":
            lambda x, slopes, sigmas: _parabola(x, slopes.flip(0), sigmas),
        "the sign of the step is wrong: the levels fall":
            lambda x, slopes, sigmas: 2 * x - _parabola(x, slopes, sigmas),
        "the integral starts at sigma_1, where it starts at sigma_2":
            lambda *a: _parabola(*a, start=1),
        "the integral starts at sigma_0, where it starts at sigma_2":
            lambda *a: _parabola(*a, start=0),
        "the midpoint rule: exact for lines, and this is a parabola":
            _midpoint,
        "the trapezoidal rule: exact for lines, and this is a parabola":
            _trapezoid,
        "the increment is twice too large: Simpson's rule divides by 6":
            lambda x, *a: 2 * _parabola(x, *a) - x,
        "the increment is returned without the state":
            lambda x, slopes, sigmas: _parabola(x, slopes, sigmas) - x,
    },
)  # fmt: skip
