"""Checks of chapter 7's exercises: paths, straightness, couplings; see also
`ch07_gradients` for bridges and steering.
"""

from __future__ import annotations

from math import log
from typing import Any

import torch
from torch import Generator, Tensor

from diffedu.checks.ch07_gradients import bridge_loss, steer
from diffedu.checks.machinery import Exercise, Function, Property

__all__ = ["bend", "bridge_loss", "sinkhorn", "steer", "to_flow"]

Inputs = dict[str, Any]


def _whole(low: int, high: int, g: Generator) -> int:
    return int(torch.randint(low, high, (), generator=g))


# From any path to the flow path


def _points(g: Generator) -> Inputs:
    size, dim = _whole(4, 9, g), _whole(2, 5, g)
    x, eps = torch.randn(2, size, dim, generator=g)
    alpha, sigma = 0.3 + torch.rand(2, size, generator=g)
    return {"x": x, "eps": eps, "alpha": alpha, "sigma": sigma}


def _to_flow(x: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor) -> tuple:
    total = alpha + sigma
    x0 = (x - sigma[:, None] * eps) / alpha[:, None]
    return x / total[:, None], sigma / total, eps - x0


def _other(change: Function) -> Function:
    """The right answer with one part of it changed."""

    def answer(x: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor) -> tuple:
        return change(*_to_flow(x, eps, alpha, sigma), x, eps, alpha, sigma)

    return answer


def _hypot(x: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor) -> tuple:
    total = torch.hypot(alpha, sigma)
    *_, velocity = _to_flow(x, eps, alpha, sigma)
    return x / total[:, None], sigma / total, velocity


def _powers(x: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor) -> tuple:
    point, _, velocity = _to_flow(x, eps, alpha, sigma)
    return point, sigma**2 / (alpha**2 + sigma**2), velocity


to_flow = Exercise(
    "to_flow",
    draw=_points,
    truth=_to_flow,
    returns=("point", "time", "velocity"),
    mistakes={
        "the velocity has the sign of papers in which data stand at time 1":
            _other(lambda p, t, u, *_: (p, t, -u)),
        "the time is counted from noise to data: it must be 1 where all is noise":
            _other(lambda p, t, u, *_: (p, 1 - t, u)),
        "the time is sigma itself, which is true of the flow path only":
            _other(lambda p, t, u, x, e, a, s: (p, s, u)),
        "the time is a ratio of powers, where one of amplitudes is needed":
            _powers,
        "the point is not scaled: its two weights must add up to 1":
            _other(lambda p, t, u, x, *_: (x, t, u)),
        "it is scaled so that the squares of the weights add up to 1":
            _hypot,
        "the velocity is v, alpha eps - sigma x0":
            _other(lambda p, t, u, x, e, a, s: (
                p, t, a[:, None] * e - s[:, None] * (e - u))),
        "x0 is not divided by alpha in the velocity":
            _other(lambda p, t, u, x, e, a, s: (p, t, e - a[:, None] * (e - u))),
        "x0 is not divided by 1 - tau, its weight in the scaled point":
            _other(lambda p, t, u, *rest: (p, t, rest[1] - (1 - t)[:, None] * (
                rest[1] - u))),
        "the velocity is eps minus the point; it must be eps - x0":
            _other(lambda p, t, u, x, e, *_: (p, t, e - p)),
        "the velocity is eps - x; x0 has to be found first":
            _other(lambda p, t, u, x, e, *_: (p, t, e - x)),
        "the velocity is scaled with the point; eps and x0 are the same on each path":
            _other(lambda p, t, u, x, e, a, s: (p, t, u / (a + s)[:, None])),
        "the point is divided by alpha alone":
            _other(lambda p, t, u, x, e, a, s: (x / a[:, None], t, u)),
        "the time is sigma / alpha, which does not end at 1":
            _other(lambda p, t, u, x, e, a, s: (p, s / a, u)),
    },
)  # fmt: skip


# Straightness and the error of one step


def _walk(g: Generator) -> Inputs:
    steps, size, dim = _whole(4, 8, g), _whole(3, 7, g), _whole(2, 5, g)
    cuts = 0.2 + torch.rand(steps, generator=g)
    below = (cuts / cuts.sum()).cumsum(0)[:-1]
    ends = torch.ones(1), torch.zeros(1)
    times = torch.cat([ends[0], 1 - below, ends[1]])
    return {"velocities": torch.randn(steps, size, dim, generator=g), "times": times}


def _bend(
    velocities: Tensor, times: Tensor, even: bool = False, sign: float = 1.0,
    reduce: Function = torch.sum, squared: bool = False,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    h = -times.diff()[:, None, None]
    h = torch.full_like(h, 1 / len(h)) if even else h
    whole = (h * velocities).sum(0)
    each = (sign * whole - velocities).square()
    error = (velocities[0] - whole).norm(dim=1)
    return reduce((h * each).sum(0), 1), error**2 if squared else error


def _last_step(velocities: Tensor, times: Tensor) -> tuple[Tensor, Tensor]:
    S, _ = _bend(velocities, times)
    whole = (-times.diff()[:, None, None] * velocities).sum(0)
    return S, (velocities[-1] - whole).norm(dim=1)


def _unweighted(velocities: Tensor, times: Tensor) -> tuple[Tensor, Tensor]:
    S, error = _bend(velocities, times)
    whole = (-times.diff()[:, None, None] * velocities).sum(0)
    return (whole - velocities).square().sum(2).mean(0), error


def _moved(
    velocities: Tensor, times: Tensor, displacement: Function, power: int = 1
) -> tuple[Tensor, Tensor]:
    """S and the error with another displacement, or another power of the lengths."""
    h = -times.diff()[:, None, None]
    whole = displacement(velocities, h)
    S = (h**power * (whole - velocities).square()).sum((0, 2))
    return S, (velocities[0] - whole).norm(dim=1)


def _whole_way(velocities: Tensor, h: Tensor) -> Tensor:
    return (h * velocities).sum(0)


def _short_step(velocities: Tensor, times: Tensor) -> tuple[Tensor, Tensor]:
    h = -times.diff()[:, None, None]
    missed = h[0] * velocities[0] - _whole_way(velocities, h)
    return _bend(velocities, times)[0], missed.norm(dim=1)


bend = Exercise(
    "bend",
    draw=_walk,
    truth=_bend,
    returns=("S", "error"),
    mistakes={
        "the steps are taken to be equally long; use times":
            lambda *a: _bend(*a, even=True),
        "S is averaged over the steps without their lengths":
            _unweighted,
        "the displacement has the wrong sign: times fall, so their differences are "
        "below 0": lambda *a: _bend(*a, sign=-1.0),
        "S is a mean over the coordinates, where a squared length sums them":
            lambda *a: _bend(*a, reduce=torch.mean),
        "the error is squared, where a distance is asked":
            lambda *a: _bend(*a, squared=True),
        "the single step takes the last velocity; it starts at t = 1":
            _last_step,
        "S is not squared: it is an integral of squared distances":
            lambda v, t: ((-t.diff()[:, None] * (
                (-t.diff()[:, None, None] * v).sum(0) - v).norm(dim=2)).sum(0),
                _bend(v, t)[1]),
        "S is a sum over the steps without their lengths":
            lambda *a: _moved(*a, _whole_way, power=0),
        "the lengths in S are squared too; they stand outside the square":
            lambda *a: _moved(*a, _whole_way, power=2),
        "x1 - x0 is the sum of the velocities without the lengths of their steps":
            lambda *a: _moved(*a, lambda v, h: v.sum(0)),
        "x1 - x0 is the plain mean of the velocities; weigh each by its step's length":
            lambda *a: _moved(*a, lambda v, h: v.mean(0)),
        "the single step has the first step's length; it must go all the way":
            _short_step,
    },
)  # fmt: skip


# Sinkhorn


def _cost(g: Generator) -> Inputs:
    n, m = _whole(4, 8, g), _whole(4, 8, g)
    m = m + 1 if m == n else m
    return {
        "cost": 2 * torch.rand(n, m, generator=g),
        "temperature": 0.2 + torch.rand((), generator=g).item(),
        "rounds": _whole(1, 4, g),
    }


def _sinkhorn(
    cost: Tensor, temperature: float, rounds: int, axes: tuple[int, ...] = (1, 0),
    sums: bool = False, sign: float = -1.0,
) -> Tensor:  # fmt: skip
    plan = sign * cost / temperature
    for _ in range(rounds):
        for axis in axes:
            wanted = 0.0 if sums else -log(cost.shape[1 - axis])
            plan = plan - plan.logsumexp(axis, keepdim=True) + wanted
    return plan.exp()


def _at_once(cost: Tensor, temperature: float, rounds: int) -> Tensor:
    plan, (n, m) = -cost / temperature, cost.shape
    for _ in range(rounds):
        sums = plan.logsumexp(1, keepdim=True) + plan.logsumexp(0, keepdim=True)
        plan = plan - sums - log(n) - log(m)
    return plan.exp()


def _exchanged(cost: Tensor, temperature: float, rounds: int) -> Tensor:
    n, m = cost.shape
    return _sinkhorn(cost, temperature, rounds) * m / n


def _at_low_temperature(answer: Function, g: Generator) -> bool:
    """Whether the plan is right, also where exp(-cost / temperature) is 0."""
    cost = torch.rand(6, 6, generator=g) + 0.5
    plan = torch.as_tensor(answer(cost, 0.001, 50)).double()
    return torch.allclose(plan, _sinkhorn(cost.double(), 0.001, 50), atol=5e-3)


sinkhorn = Exercise(
    "sinkhorn",
    draw=_cost,
    truth=_sinkhorn,
    mistakes={
        "only the rows are scaled":
            lambda *a: _sinkhorn(*a, axes=(1,)),
        "only the columns are scaled":
            lambda *a: _sinkhorn(*a, axes=(0,)),
        "the columns are scaled before the rows":
            lambda *a: _sinkhorn(*a, axes=(0, 1)),
        "rows and columns are scaled to sum to 1, so that the plan does not":
            lambda *a: _sinkhorn(*a, sums=True),
        "the sign of the cost is wrong: the dearest pairs are preferred":
            lambda *a: _sinkhorn(*a, sign=1.0),
        "the cost is multiplied by the temperature":
            lambda c, t, r: _sinkhorn(c, 1 / t, r),
        "the temperature is left out":
            lambda c, t, r: _sinkhorn(c, 1.0, r),
        "the logarithm of the plan is returned":
            lambda *a: _sinkhorn(*a).log(),
        "there is one round only":
            lambda c, t, r: _sinkhorn(c, t, 1),
        "the columns sum to 1/N: each of the M columns must sum to 1/M, and dividing "
        "by N at the end serves square costs only": _exchanged,
        "rows and columns are scaled at once; the columns' sums need the new rows":
            _at_once,
    },
    properties=(
        Property(
            "it is right for mild temperatures, but underflows for small ones: work "
            "with logarithms until the end",
            _at_low_temperature,
        ),
    ),
)  # fmt: skip
