"""EDM's stochastic sampler: a little noise before each step, then Heun's step.

The noise takes the state from t up to a noisier time by the path's own transition,
so that it works on any path; the step down is made in sigma / alpha.
"""

from __future__ import annotations

from math import inf

from torch import Tensor

from diffedu.errors import require
from diffedu.prediction import combine, for_batch
from diffedu.samplers.deterministic import _ddim_update, _exponential_step
from diffedu.samplers.walk import (
    Look,
    Step,
    Walk,
    sampler,
    steps_of,
)
from diffedu.schedules import Schedule

MOST_GROWTH = 2**0.5 - 1  # never more new noise than there is already


def churn_growth(
    level: float, steps: int, s_churn: float, s_tmin: float, s_tmax: float
) -> float:
    """gamma: by which share one step raises the noise level sigma / alpha.

    It is min(s_churn / steps, sqrt(2) - 1) within [s_tmin, s_tmax], else 0.

    Args:
        level: sigma / alpha before the step.
        steps: how many steps the walk has.
        s_churn: how much noise is added in all; 0 is none.
        s_tmin: the least level at which noise is added.
        s_tmax: the largest.

    Source: (arXiv 2206.00364, algorithm 2).
    """
    return min(s_churn / steps, MOST_GROWTH) if s_tmin <= level <= s_tmax else 0.0


def _level(path: Schedule, t: Tensor) -> float:
    return (-0.5 * path.log_snr(t)).exp().item()


def _raised(path: Schedule, t: Tensor, growth: float) -> Tensor:
    """The time at which sigma / alpha is 1 + growth of that at t; at most t = 1."""
    if growth == 0:
        return t
    raised = (path.log_snr(t).exp() / (1 + growth) ** 2).log()
    return path.time_of_log_snr(raised.clamp(min=path.log_snr(1.0))).clamp(min=t)


def _noised(path: Schedule, x: Tensor, t: Tensor, t_hat: Tensor, z: Tensor) -> Tensor:
    """x_t carried up to t_hat > t, by q(x_t_hat | x_t) if z is standard noise."""
    ratio = path.alpha(t_hat) / path.alpha(t)
    spread = path.transition_variance(t_hat, t).sqrt()
    return combine(for_batch(ratio, x), x, for_batch(spread, x), z)


@sampler
def edm_stochastic(
    look: Look,
    x: Tensor,
    times: Tensor,
    *,
    s_churn: float = 40.0,
    s_tmin: float = 0.05,
    s_tmax: float = 50.0,
    s_noise: float = 1.0,
    order: int = 2,
) -> Walk:
    """EDM's stochastic sampler: raise the noise level, then step down from there.

    x has shape (B, ...), times (steps + 1,). While sigma / alpha is within
    [s_tmin, s_tmax], each step first adds noise of standard deviation s_noise until
    the level has grown by gamma = min(s_churn / steps, sqrt(2) - 1), and no further
    than the path's level at t = 1. The step down is Heun's in sigma / alpha, or
    Euler's with `order` 1. With s_churn 0 nothing is random, and on the path edm()
    it is `heun`. The defaults are the paper's for ImageNet, but for its s_noise
    of 1.003. Where alpha is 0, the step down is DDIM's. A Step's `seen` is the look
    at the raised level.

    Source: (arXiv 2206.00364, algorithm 2).
    """
    require(s_churn >= 0, f"s_churn must be 0 or more, got {s_churn}")
    require(0 <= s_tmin <= s_tmax, f"need 0 <= s_tmin <= s_tmax: {s_tmin}, {s_tmax}")
    require(0 < s_noise < inf, f"s_noise must be above 0, got {s_noise}")
    require(order in (1, 2), f"order is 1 (Euler) or 2 (Heun), got {order}")
    path, noise = look.schedule, look.noise()
    for index, t, s in steps_of(times):
        growth = churn_growth(_level(path, t), len(times) - 1, s_churn, s_tmin, s_tmax)
        t_hat, x_hat = _raised(path, t, growth), x
        if t_hat > t:
            x_hat = _noised(path, x, t, t_hat, s_noise * noise(x, index))
        seen = look(x_hat, t_hat)
        reached = _ddim_update(seen, s)
        if s > 0 and order == 2 and seen.at.alpha > 0:
            ahead = look(reached, s)
            reached = _exponential_step(seen, (seen.eps + ahead.eps) / 2, s)
        x = yield Step(index, t, s, x, reached, seen)
