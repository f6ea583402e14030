"""Sampling from a consistency model: jump to the end, add noise again, jump again."""

from __future__ import annotations

from torch import Tensor

from diffedu.prediction import combine
from diffedu.samplers.grid import SIGMA_MIN
from diffedu.samplers.walk import Look, Step, Walk, sampler, steps_of


@sampler
def consistency(
    look: Look, x: Tensor, times: Tensor, *, sigma_min: float = SIGMA_MIN
) -> Walk:
    """Jump to the end of the ODE's way, then go back to noise level s with new noise.

    x has shape (B, ...), times (steps + 1,). One step, to 0, is one look. It takes a
    consistency model: jumps to a posterior mean, as other denoisers answer, lose
    variance. `sigma_min` is the noise, over alpha, that the jump's end still has.

    Source: (arXiv 2303.01469, algorithm 1).
    """
    noise = look.noise()
    for index, t, s in steps_of(times):
        seen = look(x, t)
        reached = seen.x0
        if s > 0:
            alpha, sigma = (c.item() for c in look.schedule.coefficients(s))
            fresh = max(sigma**2 - (alpha * sigma_min) ** 2, 0.0) ** 0.5
            reached = combine(alpha, reached, fresh, noise(x, index))
        x = yield Step(index, t, s, x, reached, seen)
