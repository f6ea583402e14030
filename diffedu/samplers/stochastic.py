"""Samplers that add noise on the way: ancestral, reverse SDE, correctors, Langevin."""

from __future__ import annotations

from torch import Tensor

from diffedu.errors import lookup, require
from diffedu.prediction import Number, Prediction, combine, for_batch
from diffedu.samplers.walk import (
    Look,
    Step,
    Walk,
    require_signal,
    sampler,
    steps_of,
)


def _small(seen: Prediction, t: Tensor, s: Tensor) -> Number:
    """The variance of q(x_s | x_t, x0): right if the data is one point."""
    return for_batch(seen.schedule.posterior_coefficients(t, s)[2], seen.x)


def _large(seen: Prediction, t: Tensor, s: Tensor) -> Number:
    """The variance of q(x_t | x_s), a chain's beta: right if the data is N(0, I)."""
    return for_batch(seen.schedule.transition_variance(t, s), seen.x)


def _learned(seen: Prediction, t: Tensor, s: Tensor) -> Number:
    """Between the two, in log, where the network says (arXiv 2102.09672, eq. 15)."""
    require(
        seen.variance_fraction is not None,
        'variance="learned" needs a Denoiser made with learns_variance=True',
    )
    low, high = _small(seen, t, s), _large(seen, t, s)
    return low * (high / low) ** seen.variance_fraction


VARIANCES = {"small": _small, "large": _large, "learned": _learned}


def _ancestral_update(
    seen: Prediction, t: Tensor, s: Tensor, variance: Number, noise: Tensor
) -> Tensor:
    """The posterior's mean with x0 as it was seen, and noise of the given variance."""
    of_x0, of_x, _ = seen.schedule.posterior_coefficients(t, s)
    mean = combine(for_batch(of_x0, seen.x), seen.x0, for_batch(of_x, seen.x), seen.x)
    return combine(1.0, mean, variance**0.5, noise)


@sampler
def ancestral(look: Look, x: Tensor, times: Tensor, *, variance: str = "small") -> Walk:
    """DDPM's sampler: draw x_s from q(x_s | x_t, x0), with x0 as the denoiser sees it.

    x has shape (B, ...); times (steps + 1,) are a chain's own, or fewer. `variance` is
    small (the posterior's), large (the transition's) or learned.

    Source: (arXiv 2006.11239, algorithm 2), respaced as in (arXiv 2102.09672).
    """
    chosen = lookup(VARIANCES, variance, "variance")
    noise = look.noise()
    for index, t, s in steps_of(times):
        seen = look(x, t)
        reached = seen.x0
        if s > 0:
            size = chosen(seen, t, s)
            reached = _ancestral_update(seen, t, s, size, noise(x, index))
        x = yield Step(index, t, s, x, reached, seen)


@sampler
def euler_maruyama(look: Look, x: Tensor, times: Tensor) -> Walk:
    """The reverse SDE dx = (f x - g^2 score) dt + g dw by Euler's method.

    x has shape (B, ...), times (steps + 1,); f and g are `schedule.sde(t)`.

    Source: (arXiv 2011.13456, eq. 6); Anderson (1982).
    """
    require_signal(look.schedule, times)
    noise = look.noise()
    for index, t, s in steps_of(times):
        seen = look(x, t)
        reached = seen.x0
        if s > 0:
            drift, spread = (c.item() for c in look.schedule.sde(t))
            length = (t - s).item()
            move = combine(drift * -length, x, spread**2 * length, seen.score)
            reached = combine(spread * length**0.5, noise(x, index), 1.0, x + move)
        x = yield Step(index, t, s, x, reached, seen)


def _length(x: Tensor) -> Tensor:
    """The mean length of a batch's samples: shape (), for x of shape (B, ...)."""
    return x.flatten(1).norm(dim=1).mean()


@sampler
def predictor_corrector(
    look: Look, x: Tensor, times: Tensor, *, corrections: int = 1, snr: float = 0.16
) -> Walk:
    """An ancestral step to each level, then Langevin steps at that level.

    x has shape (B, ...), times (steps + 1,). `corrections` counts the Langevin steps
    after each ancestral one, and `snr` is the r of their size, 2 (r |noise| /
    |score|)^2. Each step takes 1 + corrections draws of noise.

    The samples of a batch are coupled: as in the paper, both lengths are means over
    the batch, since one sample's score can be near 0 and its step without bound.

    Source: (arXiv 2011.13456, algorithms 4 and 5), whose VP step has a factor alpha_i:
    here (alpha_t / alpha_s)^2, which is 1 on VE paths. They tune r for each path, to
    0.16 for VE and 0.01 for VP.
    """
    require(corrections >= 0 and snr > 0, "need corrections >= 0 and snr > 0")
    noise = look.noise(1 + corrections)
    for index, t, s in steps_of(times):
        seen = look(x, t)
        reached = seen.x0
        if s > 0:
            size = _small(seen, t, s)
            kept = (look.schedule.alpha(t) / look.schedule.alpha(s)).item() ** 2
            reached = _ancestral_update(seen, t, s, size, noise(x, index, 0))
            for inner in range(1, corrections + 1):
                score = look(reached, s).score
                fresh = noise(x, index, inner)
                ratio = snr * _length(fresh) / _length(score)
                step = 2 * kept * ratio.square()
                reached = _langevin(reached, score, step, fresh)
        x = yield Step(index, t, s, x, reached, seen)


def _langevin(x: Tensor, score: Tensor, step: Number, noise: Tensor) -> Tensor:
    """x + step score + sqrt(2 step) noise, which leaves p fixed as step -> 0."""
    return x + step * score + (2 * step) ** 0.5 * noise


@sampler
def annealed_langevin(
    look: Look,
    x: Tensor,
    times: Tensor,
    *,
    steps_per_level: int = 10,
    step: float = 0.1,
) -> Walk:
    """Langevin steps at each noise level in turn, from the most noise to the least.

    x has shape (B, ...), and its distribution hardly matters. Of the times, shape
    (levels + 1,), the last is 0 and each other is a level; the walk ends on the
    denoiser's x0 at the last level. `step` is the step size in units of sigma^2 (the
    paper's alpha_i / (2 sigma_i^2)). Each level takes steps_per_level draws of noise.
    Between levels x is scaled by the ratio of the alphas, which is 1 on VE paths.

    Source: (arXiv 1907.05600, algorithm 1); the last denoising (arXiv 2009.05475).
    """
    require(times[-1] == 0, "annealed Langevin ends on clean data: let times end in 0")
    require(steps_per_level >= 1 and step > 0, "need steps_per_level >= 1 and step > 0")
    path = look.schedule
    require_signal(path, times)
    noise = look.noise(steps_per_level)
    for index, t, s in steps_of(times):
        start, size = x, step * path.sigma(t).item() ** 2
        for inner in range(steps_per_level):
            x = _langevin(x, look(x, t).score, size, noise(x, index, inner))
        seen = look(x, t)
        ratio = (path.alpha(s) / path.alpha(t)).item()
        reached = ratio * x if s > 0 else seen.x0
        x = yield Step(index, t, s, start, reached, seen)
