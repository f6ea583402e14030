"""The check of chapter 3's plan for annealed Langevin dynamics: it runs the plan."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from diffedu import samplers, schedules
from diffedu.checks.machinery import Exercise, Function, Property
from diffedu.worlds.mixtures import GaussianMixture

CHAINS, BUDGET = 16_000, 100


def _plan(answer: Function) -> tuple[Tensor, int, float]:
    sigmas, steps, step = answer()
    return torch.as_tensor(sigmas, dtype=torch.float64), int(steps), float(step)


def _returns(answer: Function, g: Generator) -> bool:
    return answer() is not None


def _three_parts(answer: Function, g: Generator) -> bool:
    plan = answer()
    return isinstance(plan, tuple | list) and len(plan) == 3


def _whole_steps(answer: Function, g: Generator) -> bool:
    steps = answer()[1]
    try:
        return int(steps) == float(steps) and int(steps) > 0
    except (TypeError, ValueError, RuntimeError):  # a list, or a tensor of many
        return False


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


def _width(answer: Function, g: Generator) -> Tensor:
    """The heavy spot's standard deviation along each axis, shape (2,)."""
    x = run_plan(*_plan(answer), g, chains=2000)
    return x[x.sum(1) > 0].std(0)


def _not_wide(answer: Function, g: Generator) -> bool:
    return bool(_width(answer, g).max() < 1.2)


def _not_narrow(answer: Function, g: Generator) -> bool:
    return bool(_width(answer, g).min() > 0.8)


annealing_plan = Exercise(
    "annealing_plan",
    properties=(
        Property("it returned None; is the `return` missing?", _returns),
        Property("it must return three things: the levels, the number of steps at "
                 "each, and step", _three_parts),
        Property("the number of steps must be one whole number above 0, the same for "
                 "every level", _whole_steps),
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
        Property("it finds the weight, but the spots are too wide: a step shrinks like "
                 "sigma squared, so points can't contract after a sudden drop of the "
                 "noise; fall evenly down to about 0.5", _not_wide),
        Property("it finds the weight, but the spots are too narrow", _not_narrow),
    ),
)  # fmt: skip
