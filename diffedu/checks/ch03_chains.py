"""Checks of chapter 3 that concern chains: a plan, an exclusion, an acceptance."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Generator, Tensor

from diffedu import samplers, schedules
from diffedu.checks.machinery import Exercise, Function, Property
from diffedu.worlds.mixtures import GaussianMixture

Inputs = dict[str, Any]
Energy = Callable[[Tensor], Tensor]
CHAINS, BUDGET = 16_000, 100


# A plan for annealed Langevin dynamics


def _plan(answer: Function) -> tuple[Tensor, int, float]:
    sigmas, steps, step = answer()
    return torch.as_tensor(sigmas, dtype=torch.float64), int(steps), float(step)


def _falls(answer: Function, g: Generator) -> bool:
    return bool((_plan(answer)[0].diff() < 0).all())


def _within_budget(answer: Function, g: Generator) -> bool:
    sigmas, steps, _ = _plan(answer)
    return len(sigmas) * steps <= BUDGET


def _ends_low(answer: Function, g: Generator) -> bool:
    return bool(_plan(answer)[0][-1] <= 0.5)


def _stable(answer: Function, g: Generator) -> bool:
    """Below 2 a step contracts at every level, whose narrowest width is sigma."""
    return 0 < _plan(answer)[2] < 1


def run_plan(
    sigmas: Tensor, steps: int, step: float, g: Generator, chains: int = CHAINS
) -> Tensor:
    """Anneal chains from a square around two spots; the samples, shape (chains, 2).

    Args:
        sigmas: falling noise levels, shape (levels,).
        steps: Langevin steps a level.
        step: their size in units of sigma^2.
        g: source of the start and the noise.
        chains: how many.
    """
    centres = torch.tensor([[-5.0, -5.0], [5.0, 5.0]], dtype=torch.float64)
    far = GaussianMixture([0.2, 0.8], centres, torch.ones(2))
    path = schedules.ve(sigma_min=sigmas[-1].item() / 2, sigma_max=sigmas[0].item())
    times = path.time_of_log_snr((-2 * sigmas.log()).clamp(min=path.log_snr(1.0)))
    times = torch.cat([times, torch.zeros(1, dtype=torch.float64)])
    x = 16 * torch.rand(chains, 2, generator=g, dtype=torch.float64) - 8
    return samplers.annealed_langevin(
        far.denoiser(path), x, times, steps_per_level=steps, step=step, generator=g
    )


def _weight_found(answer: Function, g: Generator) -> bool:
    x = run_plan(*_plan(answer), g)
    return abs((x.sum(1) > 0).double().mean().item() - 0.8) <= 0.06


def _width_found(answer: Function, g: Generator) -> bool:
    x = run_plan(*_plan(answer), g, chains=2000)
    heavy = x[x.sum(1) > 0]
    return bool((heavy.std(0) - 1).abs().max() < 0.2)


annealing_plan = Exercise(
    "annealing_plan",
    properties=(
        Property("the noise levels do not fall: annealing starts with most noise",
                 _falls),
        Property("it takes more than 100 steps, counting those of every level",
                 _within_budget),
        Property("its last noise level is above 0.5, too much to stop at", _ends_low),
        Property("its step must lie between 0 and 1, in units of sigma squared",
                 _stable),
        Property("it misses the weight of the heavy spot by more than 0.06: points no "
                 "longer change sides below some level, so look at what is spent above",
                 _weight_found),
        Property("it finds the weight, but the spots have a wrong width", _width_found),
    ),
)  # fmt: skip


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
