"""Chapter 4's checks of the continuous bound and of walking an ODE both ways."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor

from diffedu.checks.ch03_fields import random_field, whole
from diffedu.checks.machinery import Exercise, Function, Property

Inputs = dict[str, Any]


# A bound that knows only its ends


def _answers(g: Generator) -> Inputs:
    levels, batch, dim = whole(5, 9, g), whole(3, 7, g), whole(2, 5, g)
    gaps = 0.1 + torch.rand(levels, generator=g)
    log_snr = 2.0 - gaps.cumsum(0)
    x0 = torch.randn(batch, dim, generator=g)
    missed = torch.randn(levels, batch, dim, generator=g)
    return {"x0": x0, "x0_hats": x0 + 0.5 * missed, "log_snr": log_snr}


def _term(
    x0: Tensor,
    x0_hats: Tensor,
    log_snr: Tensor,
    weight: Function = torch.exp,
    half: float = 0.5,
    sign: float = -1.0,
    over: Function = lambda log_snr: log_snr,
) -> Tensor:
    height = weight(log_snr)[:, None] * (x0_hats - x0).square().sum(2)
    return sign * half * torch.trapezoid(height, over(log_snr), dim=0)


def _left(x0: Tensor, x0_hats: Tensor, log_snr: Tensor) -> Tensor:
    height = 0.5 * log_snr.exp()[:, None] * (x0_hats - x0).square().sum(2)
    return -(log_snr.diff()[:, None] * height[:-1]).sum(0)


def _right(x0: Tensor, x0_hats: Tensor, log_snr: Tensor) -> Tensor:
    height = 0.5 * log_snr.exp()[:, None] * (x0_hats - x0).square().sum(2)
    return -(log_snr.diff()[:, None] * height[1:]).sum(0)


def _mean_level(x0: Tensor, x0_hats: Tensor, log_snr: Tensor) -> Tensor:
    height = 0.5 * log_snr.exp()[:, None] * (x0_hats - x0).square().sum(2)
    return (log_snr[0] - log_snr[-1]) * height.mean(0)


def _mean_element(x0: Tensor, x0_hats: Tensor, log_snr: Tensor) -> Tensor:
    return _term(x0, x0_hats, log_snr) / x0.shape[1]


def _rooted(x0: Tensor, x0_hats: Tensor, log_snr: Tensor) -> Tensor:
    height = 0.5 * log_snr.exp()[:, None] * (x0_hats - x0).norm(dim=2)
    return -torch.trapezoid(height, log_snr, dim=0)


def _chain(x0: Tensor, x0_hats: Tensor, log_snr: Tensor, clean: bool) -> Tensor:
    """The sum of a chain's terms, with the error of one end of each step."""
    missed = (x0_hats - x0).square().sum(2)
    missed = missed[:-1] if clean else missed[1:]
    return -0.5 * (log_snr.exp().diff()[:, None] * missed).sum(0)


diffusion_term = Exercise(
    "diffusion_term",
    draw=_answers,
    truth=_term,
    mistakes={
        "the sign is wrong: the list of log-SNRs falls":
            lambda *a: _term(*a, sign=1.0),
        "the factor one half is missing":
            lambda *a: _term(*a, half=1.0),
        "the weight snr is missing: that would do for the error of the noise":
            lambda *a: _term(*a, weight=torch.ones_like),
        "the log-SNR itself is the weight, where the snr is":
            lambda *a: _term(*a, weight=lambda log_snr: log_snr),
        "the weight is 1 / snr":
            lambda *a: _term(*a, weight=lambda log_snr: (-log_snr).exp()),
        "the integral runs over the snr and has the weight snr as well":
            lambda *a: _term(*a, over=torch.exp),
        "a chain's sum: steps of the snr, each times the error at its noisier end":
            lambda *a: _chain(*a, clean=False),
        "steps of the snr, each times the error at its less noisy end":
            lambda *a: _chain(*a, clean=True),
        "the trapezoidal rule runs in the snr: the right integral, another rule":
            lambda *a: _term(*a, weight=torch.ones_like, over=torch.exp),
        "the root of the snr is the weight, where the snr is":
            lambda *a: _term(*a, weight=lambda log_snr: (log_snr / 2).exp()),
        "each step takes the height at one end, its less noisy one, not the mean of "
        "both": _left,
        "each step takes the height at its noisier end alone, not the mean of both":
            _right,
        "the heights are averaged as if the levels were evenly spaced":
            _mean_level,
        "the mean over the elements is taken, where nats a sample are asked":
            _mean_element,
        "the length of the error is taken, not its square":
            _rooted,
    },
)  # fmt: skip


# There and back


def _way(g: Generator) -> Inputs:
    dim, batch = whole(2, 4, g), whole(4, 7, g)
    gaps = 0.05 + 0.2 * torch.rand(whole(3, 6, g), generator=g)
    times = 0.05 + torch.cat([torch.zeros(1), gaps.cumsum(0)]) / 2
    if whole(0, 2, g):
        times = times.flip(0)
    first, second = random_field(dim, g), random_field(dim, g)
    return {
        "velocity": lambda x, t: first(x) + t * second(x),
        "x": torch.randn(batch, dim, generator=g),
        "times": times,
    }


def _heun(
    velocity: Function,
    x: Tensor,
    times: Tensor,
    second: bool = True,
    guess: bool = True,
    later: bool = True,
    turn: float = 1.0,
    share: float = 0.5,
) -> Tensor:
    for t, s in zip(times[:-1], times[1:], strict=True):
        h, u = turn * (s - t), velocity(x, t)
        ahead = x + h * u if guess else x
        u_s = velocity(ahead, s if later else t)
        x = x + h * (share * (u + u_s) if second else u)
    return x


def _end_slope(velocity: Function, x: Tensor, times: Tensor) -> Tensor:
    for t, s in zip(times[:-1], times[1:], strict=True):
        h = s - t
        x = x + h * velocity(x + h * velocity(x, t), s)
    return x


def _from_guess(velocity: Function, x: Tensor, times: Tensor) -> Tensor:
    for t, s in zip(times[:-1], times[1:], strict=True):
        h, u = s - t, velocity(x, t)
        ahead = x + h * u
        x = ahead + h / 2 * (u + velocity(ahead, s))
    return x


def _midpoint(velocity: Function, x: Tensor, times: Tensor) -> Tensor:
    for t, s in zip(times[:-1], times[1:], strict=True):
        h = s - t
        x = x + h * velocity(x + h / 2 * velocity(x, t), (t + s) / 2)
    return x


def _even(velocity: Function, x: Tensor, times: Tensor) -> Tensor:
    """The right velocities, but every step as long as the mean one."""
    h = (times[-1] - times[0]) / (len(times) - 1)
    for t, s in zip(times[:-1], times[1:], strict=True):
        u = velocity(x, t)
        x = x + h / 2 * (u + velocity(x + h * u, s))
    return x


def _unsigned(velocity: Function, x: Tensor, times: Tensor) -> Tensor:
    falls = times[0] > times[-1]
    return _heun(velocity, x, times, turn=-1.0 if falls else 1.0)


def _both_ways(answer: Function, g: Generator) -> bool:
    """A rotation by the angle of the times, there and back."""
    x = torch.randn(4, 2, generator=g).double()
    times = torch.linspace(0, 1, 60).double()

    def turn(y: Tensor, t: Tensor) -> Tensor:
        return torch.stack([-y[:, 1], y[:, 0]], 1)

    up = torch.as_tensor(answer(turn, x, times))
    back = torch.as_tensor(answer(turn, up, times.flip(0)))
    return bool((back - x).abs().max() < 1e-3 and (up - x).abs().max() > 0.1)


ode_walk = Exercise(
    "ode_walk",
    draw=_way,
    truth=_heun,
    draws=12,  # so that both directions are among them
    mistakes={
        "Euler's method: the second slope is missing":
            lambda *a: _heun(*a, second=False),
        "the second slope is taken at the old point, not at the guess":
            lambda *a: _heun(*a, guess=False),
        "the second slope is taken at the old time":
            lambda *a: _heun(*a, later=False),
        "the walk always runs in one direction, or the wrong one":
            lambda *a: _heun(*a, turn=-1.0),
        "the steps have no sign: falling times go up as well":
            _unsigned,
        "the times are sorted: falling times go up as well":
            lambda v, x, times: _heun(v, x, times.sort().values),
        "the times are sorted: rising times go down as well":
            lambda v, x, times: _heun(v, x, times.sort(descending=True).values),
        "all steps have one length, but the times are uneven":
            _even,
        "the two slopes are added, where their mean belongs":
            lambda *a: _heun(*a, share=1.0),
        "only the slope at the end of the step is used":
            _end_slope,
        "the mean slope is added to the guess, not to the old point":
            _from_guess,
        "the midpoint method, which is of second order too, but another":
            _midpoint,
        "only the last step of the walk is done":
            lambda v, x, times: _heun(v, x, times[-2:]),
        "the last step of the walk is left out":
            lambda v, x, times: _heun(v, x, times[:-1]),
    },
    properties=(
        Property("it does not come back from a rotation by the same times", _both_ways),
    ),
)  # fmt: skip
