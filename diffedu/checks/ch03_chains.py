"""Checks of chapter 3 that concern chains: an exclusion, an acceptance."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Generator, Tensor

from diffedu.checks.machinery import Exercise, Function

Inputs = dict[str, Any]
Energy = Callable[[Tensor], Tensor]


# One Langevin step on p1 / p2^strength


def _two_scores(g: Generator) -> Inputs:
    size, dim = int(torch.randint(3, 8, (), generator=g)), 2
    x, z, m1, m2 = torch.randn(4, size, dim, generator=g)
    return {
        "x": x,
        "score_1": lambda y: torch.sin(m1[0].to(y)) - 1.5 * y,
        "score_2": lambda y: m2[0].to(y) - 0.4 * y + torch.cos(y),
        "strength": 0.3 + float(torch.rand((), generator=g)),
        "step": 0.02 + 0.1 * float(torch.rand((), generator=g)),
        "z": z,
    }


def _exclude_ncsn(
    x: Tensor, score_1: Function, score_2: Function, strength: float, step: float,
    z: Tensor,
) -> Tensor:  # fmt: skip
    return _exclude(x, score_1, score_2, strength, step / 2, z)


def _exclude(
    x: Tensor, score_1: Function, score_2: Function, strength: float, step: float,
    z: Tensor, sign: float = -1.0, noise: Function = lambda d: (2 * d) ** 0.5,
) -> Tensor:  # fmt: skip
    score = score_1(x) + sign * strength * score_2(x)
    return x + step * score + noise(step) * z


and_not_step = Exercise(
    "and_not_step",
    draw=_two_scores,
    truth=_exclude,
    mistakes={
        "the scores are added, which is AND: both are wanted":
            lambda *a: _exclude(*a, sign=1.0),
        "the strength is missing before the second score":
            lambda x, a, b, s, d, z: _exclude(x, a, b, 1.0, d, z),
        "the strength multiplies the first score":
            lambda x, a, b, s, d, z: _exclude(
                x, lambda y: s * a(y), b, 1.0, d, z),
        "the strength multiplies the whole difference":
            lambda x, a, b, s, d, z: _exclude(
                x, lambda y: s * a(y), b, s, d, z),
        "the scores are exchanged: this keeps p2 and excludes p1":
            lambda x, a, b, s, d, z: _exclude(
                x, lambda y: -s * a(y), lambda y: -b(y) / s, s, d, z),
        "the score is subtracted from x, which walks downhill":
            lambda x, a, b, s, d, z: _exclude(
                x, lambda y: -a(y), b, -s, d, z),
        "the 2 under the root of the noise is missing":
            lambda *a: _exclude(*a, noise=lambda d: d**0.5),
        "the noise is scaled by the step, not by a root of it":
            lambda *a: _exclude(*a, noise=lambda d: d),
        "the noise is scaled by 2 step, and the root of it is missing":
            lambda *a: _exclude(*a, noise=lambda d: 2 * d),
        "the other paper's step: step / 2 before the score and root of step before "
        "the noise; here it is step, and root of 2 step": _exclude_ncsn,
        "the noise is missing: this climbs and does not sample":
            lambda *a: _exclude(*a, noise=lambda d: 0.0),
    },
)  # fmt: skip


# The probability of accepting a proposal, from an energy


def _proposal(g: Generator) -> Inputs:
    size, dim = int(torch.randint(5, 10, (), generator=g)), 3
    x, move, centre, bend = torch.randn(4, size, dim, generator=g)
    return {
        "energy": lambda y: (
            0.7 * (y - centre[0].to(y)).square().sum(1)
            + torch.sin(y @ bend[0].to(y))
        ),
        "x": x,
        "y": x + 0.4 * move,
        "step": 0.1 + 0.2 * float(torch.rand((), generator=g)),
    }  # fmt: skip


def _slope(energy: Energy, x: Tensor) -> Tensor:
    x = x.detach().requires_grad_()
    return torch.autograd.grad(energy(x).sum(), x)[0]


def _log_proposal(
    energy: Energy, start: Tensor, end: Tensor, step: float, sign: float = -1.0,
    spread: float = 4.0,
) -> Tensor:  # fmt: skip
    ahead = start + sign * step * _slope(energy, start)
    return -(end - ahead).square().sum(1) / (spread * step)


def _log_accept(
    energy: Energy, x: Tensor, y: Tensor, step: float, ratio: float = 1.0,
    correct: float = 1.0, **how: float,
) -> Tensor:  # fmt: skip
    back = _log_proposal(energy, y, x, step, **how)
    ahead = _log_proposal(energy, x, y, step, **how)
    return ratio * (energy(x) - energy(y)) + correct * (back - ahead)


def _accept(*args: Any, **how: float) -> Tensor:
    return _log_accept(*args, **how).clamp(max=0).exp()


def _accept_one_slope(energy: Energy, x: Tensor, y: Tensor, step: float) -> Tensor:
    push = step * _slope(energy, x)
    back, ahead = (x - y + push).square().sum(1), (y - x + push).square().sum(1)
    return (energy(x) - energy(y) + (ahead - back) / (4 * step)).clamp(max=0).exp()


accept_probability = Exercise(
    "accept_probability",
    draw=_proposal,
    truth=_accept,
    mistakes={
        "the log-ratio of the densities has the wrong sign: a high energy is unlikely":
            lambda *a: _accept(*a, ratio=-1.0),
        "the density of the proposal is left out, as if it were symmetric":
            lambda *a: _accept(*a, correct=0.0),
        "the proposals there and back are exchanged":
            lambda *a: _accept(*a, correct=-1.0),
        "the energies are left out: only the proposals are compared":
            lambda *a: _accept(*a, ratio=0.0),
        "the proposal moves up the energy; the score is minus its gradient":
            lambda *a: _accept(*a, sign=1.0),
        "the gradient at x is used for the way back too, which starts from y":
            _accept_one_slope,
        "the proposal's variance is taken to be step, where it is 2 step":
            lambda *a: _accept(*a, spread=2.0),
        "the logarithm is returned, not the probability":
            lambda *a: _log_accept(*a).clamp(max=0),
        "it is not cut at 1, and a probability must be":
            lambda *a: _log_accept(*a).exp(),
        "the density's ratio alone is cut at 1, before the proposals come in":
            lambda e, x, y, d: (
                (e(x) - e(y)).clamp(max=0).exp()
                * _log_accept(e, x, y, d, ratio=0.0).exp()
            ),
    },
)  # fmt: skip
