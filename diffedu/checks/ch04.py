"""Checks of chapter 4's exercises: sub-VP, the family of reverse equations, probes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor

from diffedu.checks.ch03_fields import random_field, whole
from diffedu.checks.ch04_walks import diffusion_term, ode_walk
from diffedu.checks.machinery import Exercise, Property

__all__ = ["diffusion_term", "family_step", "ode_walk", "sub_vp", "volume"]

Inputs = dict[str, Any]


# The sub-VP SDE


def _rates(g: Generator) -> Inputs:
    low, gap = torch.rand(2, generator=g).tolist()
    t = 0.02 + 0.97 * torch.rand(whole(4, 9, g), generator=g)
    return {"t": t, "beta_min": 0.1 + low, "beta_max": 2.0 + low + 6 * gap}


def _sub_vp(
    t: Tensor,
    low: float,
    high: float,
    power: float = 1.0,
    total_rule: float = 0.5,
    g_rule: str = "sub",
    half: float = 0.5,
) -> tuple[Tensor, Tensor, Tensor]:
    beta = low + (high - low) * t
    total = low * t + total_rule * (high - low) * t**2
    spread = -torch.expm1(-total)
    g_squared = {
        "sub": beta * -torch.expm1(-2 * total),
        "vp": beta,
        "once": beta * spread,
    }[g_rule]
    root = torch.ones_like(beta) if g_rule == "bare" else g_squared.sqrt()
    return torch.exp(-half * total), spread**power, root


def _squared_g(t: Tensor, low: float, high: float) -> tuple[Tensor, Tensor, Tensor]:
    alpha, sigma, g = _sub_vp(t, low, high)
    return alpha, sigma, g**2


def _rate_for_integral(
    t: Tensor, low: float, high: float
) -> tuple[Tensor, Tensor, Tensor]:
    """beta(t) t in the place of the integral of beta."""
    return _sub_vp(t, low, high, total_rule=1.0)


def _halved(t: Tensor, low: float, high: float) -> tuple[Tensor, Tensor, Tensor]:
    alpha, _, g = _sub_vp(t, low, high)
    return alpha, 1 - alpha, g


def _swapped(t: Tensor, low: float, high: float) -> tuple[Tensor, Tensor, Tensor]:
    alpha, sigma, g = _sub_vp(t, low, high)
    return sigma, alpha, g


def _half_rooted(t: Tensor, low: float, high: float) -> tuple[Tensor, Tensor, Tensor]:
    alpha, sigma, g = _sub_vp(t, low, high)
    return alpha, sigma, g**2 / (low + (high - low) * t).sqrt()


sub_vp = Exercise(
    "sub_vp",
    draw=_rates,
    truth=_sub_vp,
    returns=("alpha", "sigma", "g"),
    mistakes={
        "sigma is that of the VP path, which has more noise":
            lambda *a: _sub_vp(*a, power=0.5),
        "the variance is returned, where the standard deviation is asked":
            lambda *a: _sub_vp(*a, power=2.0),
        "beta times t stands in the place of the integral of beta":
            _rate_for_integral,
        "the noise of the VP SDE: the factor that makes g smaller is missing":
            lambda *a: _sub_vp(*a, g_rule="vp"),
        "the exponent in g has the factor 2 missing":
            lambda *a: _sub_vp(*a, g_rule="once"),
        "g squared is returned: the root is missing":
            _squared_g,
        "alpha is squared: the drift has a factor one half":
            lambda *a: _sub_vp(*a, half=1.0),
        "the exponent in sigma has alpha's factor one half":
            _halved,
        "alpha and sigma are exchanged":
            _swapped,
        "the root in g reaches over beta alone":
            _half_rooted,
    },
)  # fmt: skip


# One step of the family


def _state(g: Generator) -> Inputs:
    shape = whole(4, 9, g), whole(2, 5, g)
    x, score, z = torch.randn(3, *shape, generator=g)
    f, diffusion, length, kappa = torch.rand(4, generator=g).tolist()
    return {
        "x": x, "score": score, "f": -0.5 - 2 * f, "g": 1.0 + diffusion,
        "length": 0.01 + 0.05 * length, "kappa": 0.3 + 0.5 * kappa, "z": z,
    }  # fmt: skip


def _family(
    x: Tensor,
    score: Tensor,
    f: float,
    g: float,
    length: float,
    kappa: float,
    z: Tensor,
    share: float | None = None,
    forward: float = 1.0,
    root: float = 0.5,
    noise: float | None = None,
    power: float = 2.0,
    sign: float = -1.0,
    weigh: bool = True,
) -> Tensor:
    share = (1 + kappa**2) / 2 if share is None else share
    drift = forward * f * x + sign * share * g**power * score
    noise = kappa if noise is None else noise
    return x - drift * (length if weigh else 1.0) + noise * g * length**root * z


family_step = Exercise(
    "family_step",
    draw=_state,
    truth=_family,
    mistakes={
        "the score always has the factor one half, which is the ODE's":
            lambda *a: _family(*a, share=0.5),
        "the score always has the factor one, which is the SDE's":
            lambda *a: _family(*a, share=1.0),
        "kappa is not squared in the factor of the score":
            lambda *a: _family(*a, share=(1 + a[5]) / 2),
        "only kappa squared is halved: the 1 belongs to the fraction too":
            lambda *a: _family(*a, share=1 + a[5] ** 2 / 2),
        "the sum is squared in the score's factor, where kappa alone is":
            lambda *a: _family(*a, share=(1 + a[5]) ** 2 / 2),
        "g is not squared in front of the score":
            lambda *a: _family(*a, power=1.0),
        "the noise grows with the length of the step, not with its root":
            lambda *a: _family(*a, root=1.0),
        "the noise is not multiplied by the root of the length":
            lambda *a: _family(*a, root=0.0),
        "the bracket is not multiplied by the length of the step":
            lambda *a: _family(*a, weigh=False),
        "g is squared in front of the noise too":
            lambda *a: _family(*a, noise=a[5] * a[3]),
        "the noise has kappa squared":
            lambda *a: _family(*a, noise=a[5] ** 2),
        "the noise has its full size, without kappa":
            lambda *a: _family(*a, noise=1.0),
        "the sign of the score is wrong: the step moves away from the data":
            lambda *a: _family(*a, sign=1.0),
        "the drift f x is not turned round: time runs down":
            lambda *a: _family(*a, forward=-1.0),
        "the whole bracket is not turned round: time runs down":
            lambda *a: _family(*a, forward=-1.0, sign=1.0),
        "the drift f x is missing":
            lambda *a: _family(*a, forward=0.0),
    },
)  # fmt: skip


# A likelihood with probes


class MovingField:
    """A smooth field that changes with time: `field(x, t)`, (B, D) -> (B, D)."""

    def __init__(self, dim: int, g: Generator) -> None:
        self.first, self.second = random_field(dim, g), random_field(dim, g)

    def __call__(self, x: Tensor, t: Tensor | float) -> Tensor:
        """The field at x of shape (B, dim) and t of shape ()."""
        return self.first(x) + t * self.second(x)


def _walk(g: Generator) -> Inputs:
    dim, batch = whole(2, 4, g), whole(4, 7, g)
    gaps = 0.05 + 0.2 * torch.rand(whole(3, 6, g), generator=g)
    times = 0.05 + torch.cat([torch.zeros(1), gaps.cumsum(0)]) / 2
    probes = torch.randn(whole(3, 6, g), batch, dim, generator=g).sign()
    x = torch.randn(batch, dim, generator=g)
    field = MovingField(dim, g)
    return {"velocity": field, "x": x, "times": times, "probes": probes}


def _rate(field: MovingField, x: Tensor, t: Tensor, probes: Tensor, again: bool = True):
    """The velocity, and one estimate of its divergence a probe, (P, B)."""
    x = x.detach().requires_grad_()
    u = field(x, t)
    rows = [torch.autograd.grad(u, x, xi.to(u), retain_graph=True)[0] for xi in probes]
    rows = torch.stack(rows)
    return u.detach(), (rows * probes if again else rows).sum(2)


def _sums(
    field: MovingField, x: Tensor, times: Tensor, probes: Tensor, move: bool = True,
    at_end: bool = False, again: bool = True, weigh: bool = True,
) -> Tensor:  # fmt: skip
    total = torch.zeros_like(probes[:, :, 0])
    for t, s in zip(times[:-1], times[1:], strict=True):
        u, rate = _rate(field, x, s if at_end else t, probes, again)
        total = total + ((s - t) if weigh else 1.0) * rate
        x = x + (s - t) * u if move else x
    return total


def _read(total: Tensor, correction: int = 1, root: float = 0.5):
    return total.mean(0), total.std(0, correction=correction) / len(total) ** root


def _stepwise(
    field: MovingField, x: Tensor, times: Tensor, probes: Tensor, power: int
) -> tuple[Tensor, Tensor]:
    """The spread of each step by itself: added up, or its square (power 2) is."""
    total, spread = torch.zeros_like(probes[:, :, 0]), torch.zeros_like(x[:, 0])
    for t, s in zip(times[:-1], times[1:], strict=True):
        u, rate = _rate(field, x, t, probes)
        total = total + (s - t) * rate
        spread = spread + ((s - t) * rate).std(0) ** power
        x = x + (s - t) * u
    return total.mean(0), spread ** (1 / power) / len(probes) ** 0.5


def _by_heun(field: MovingField, x: Tensor, times: Tensor, probes: Tensor):
    total = torch.zeros_like(probes[:, :, 0])
    for t, s in zip(times[:-1], times[1:], strict=True):
        u, rate = _rate(field, x, t, probes)
        u_s, rate_s = _rate(field, x + (s - t) * u, s, probes)
        total = total + (s - t) / 2 * (rate + rate_s)
        x = x + (s - t) / 2 * (u + u_s)
    return _read(total)


def _variance(*a: Any) -> tuple[Tensor, Tensor]:
    total = _sums(*a)
    return total.mean(0), total.var(0) / len(total) ** 0.5


def _renewed(field: MovingField, x: Tensor, times: Tensor, probes: Tensor):
    """One probe a step, as if they were to be drawn anew."""
    total: Tensor | float = 0.0
    for i, (t, s) in enumerate(zip(times[:-1], times[1:], strict=True)):
        u, rate = _rate(field, x, t, probes)
        total = total + (s - t) * rate.roll(i, 0)
        x = x + (s - t) * u
    return _read(total)


def _plain(answer: Any, g: Generator) -> bool:
    """On a straight field A x all probes' sums are known; the mean is the trace."""
    matrix = torch.randn(3, 3, generator=g).double()
    x, times = torch.randn(5, 3, generator=g).double(), torch.linspace(0.1, 0.9, 5)
    signs = torch.eye(3).double()[:, None].expand(3, 5, 3) * 3**0.5
    mean, _ = answer(lambda y, t: y @ matrix.T, x, times.double(), signs)
    want = 0.8 * matrix.trace()
    return bool((mean - want).abs().max() < 1e-6)


volume = Exercise(
    "volume",
    draw=_walk,
    truth=lambda *a: _read(_sums(*a)),
    returns=("mean", "standard error"),
    mistakes={
        "the points never move: x is not stepped along":
            lambda *a: _read(_sums(*a, move=False)),
        "the velocity is taken at the end of each step, which is not Euler's method":
            lambda *a: _read(_sums(*a, at_end=True)),
        "the row of the backward pass is not multiplied by the probe again":
            lambda *a: _read(_sums(*a, again=False)),
        "the divergences are summed without the length of their steps":
            lambda *a: _read(_sums(*a, weigh=False)),
        "the sign: the volume grows where the divergence is positive":
            lambda *a: _read(-_sums(*a)),
        "the standard deviation over the probes is not divided by the root of P":
            lambda *a: _read(_sums(*a), root=0.0),
        "the standard deviation is divided by P, not by its root":
            lambda *a: _read(_sums(*a), root=1.0),
        "the spread has P below the sum, where P - 1 belongs":
            lambda *a: _read(_sums(*a), correction=0),
        "the errors of the steps are added up; the spread is that of the whole sums":
            lambda *a: _stepwise(*a, power=1),
        "the variances of the steps are added, as if each step had its own probes":
            lambda *a: _stepwise(*a, power=2),
        "the variance over the probes is taken: a root is missing":
            _variance,
        "Heun's method, where Euler's is asked":
            _by_heun,
        "the probes change from step to step; each is kept for its whole walk":
            _renewed,
    },
    properties=(
        Property("it is wrong for a straight field, whose trace is known", _plain),
    ),
)  # fmt: skip
