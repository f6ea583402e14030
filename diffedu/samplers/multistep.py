"""Multistep solvers: what earlier looks said bends the way, at one look a step.

In lambda the ODE's solution is x_s = sigma_s/sigma_t x + sigma_s int e^l x0(l) dl.
A solver of order n puts a polynomial through its last n looks in x0's place.
"""

from __future__ import annotations

from collections import deque
from math import expm1

from torch import Tensor

from diffedu.prediction import combine
from diffedu.samplers.walk import Look, Step, Walk, sampler, steps_of


def moments(h: float) -> tuple[float, float, float]:
    """int_0^h e^(l-h) l^n / n! dl for n = 0, 1, 2: what each derivative weighs.

    Args:
        h: the step in lambda, above 0.

    Short steps take the series, where the closed form would cancel.
    """
    if h < 1e-2:
        first = h - h**2 / 2 + h**3 / 6 - h**4 / 24
        second = h**2 / 2 - h**3 / 6 + h**4 / 24
        return first, second, h**3 / 6 - h**4 / 24 + h**5 / 120
    first = -expm1(-h)
    return first, h - first, h**2 / 2 - h + first


def derivatives(looks: list[tuple[float, Tensor]]) -> list[Tensor]:
    """x0 and its first one or two derivatives in lambda at the last look.

    Args:
        looks: (lambda, x0 of shape (B, ...)), one to three of them, the last one last.

    They are those of the polynomial through all looks, by Newton's divided
    differences, whatever the steps between.
    """
    (a, now), *earlier = looks[::-1]
    if not earlier:
        return [now]
    b, before = earlier[0]
    slope = (now - before) / (a - b)
    if len(earlier) == 1:
        return [now, slope]
    c, first = earlier[1]
    bend = (slope - (before - first) / (b - c)) / (a - c)
    # the second derivative is twice the second divided difference
    return [now, slope + (a - b) * bend, 2 * bend]


@sampler
def dpm_solver_pp_3m(look: Look, x: Tensor, times: Tensor) -> Walk:
    """DPM-Solver++(3M): x0 carried on along a parabola through the last three looks.

    x has shape (B, ...), times (steps + 1,). Order 3 with one look a step; the first
    two steps have fewer looks behind them, and are of order 1 and 2.

    Source: (arXiv 2211.01095), whose order-3 multistep solver stands in the released
    code. That code takes half of the second derivative here, which leaves order 2.
    """
    path = look.schedule
    lambdas = (0.5 * path.log_snr(times)).tolist()
    looks: deque[tuple[float, Tensor]] = deque(maxlen=3)
    for index, t, s in steps_of(times):
        seen = look(x, t)
        looks.append((lambdas[index], seen.x0))
        if s > 0:
            weights = moments(lambdas[index + 1] - lambdas[index])
            along = derivatives(list(looks))
            bent = sum(w * d for w, d in zip(weights, along, strict=False))
            alpha_s, sigma_s = (c.item() for c in path.coefficients(s))
            reached = combine(sigma_s / seen.at.sigma, x, alpha_s, bent)
        else:
            reached = seen.x0
        x = yield Step(index, t, s, x, reached, seen)
