"""Samplers of the probability-flow ODE, and DDIM, which can also add noise.

DDIM keeps (x0, eps) over a step; Euler and Heun step in t along the velocity; the
DPM-Solvers step in lambda, half the log-SNR. The step to 0 is DDIM's for all.
"""

from __future__ import annotations

from itertools import pairwise
from math import expm1

import torch
from torch import Tensor

from diffedu.denoiser import DenoiserBase
from diffedu.errors import require
from diffedu.prediction import Prediction, combine, for_batch
from diffedu.samplers.walk import (
    Look,
    Step,
    Walk,
    checked_times,
    require_signal,
    sampler,
    steps_of,
)
from diffedu.schedules.path import as_time


def _ddim_update(
    seen: Prediction, s: Tensor, eta: float = 0.0, noise: Tensor | None = None
) -> Tensor:
    """x_s = alpha_s x0 + sqrt(sigma_s^2 - eta^2 var) eps + eta sqrt(var) noise."""
    path, x = seen.schedule, seen.x
    alpha, sigma = path.coefficients(s)
    if eta == 0:
        return seen.mix(for_batch(alpha, x), for_batch(sigma, x))
    variance = eta**2 * path.posterior_coefficients(as_time(seen.t), s)[2]
    kept = for_batch((sigma.square() - variance).clamp(min=0).sqrt(), x)
    mean = seen.mix(for_batch(alpha, x), kept)
    fresh = noise if noise is not None else torch.zeros_like(x)
    return combine(1.0, mean, for_batch(variance.sqrt(), x), fresh)


def ddim_step(
    denoise: DenoiserBase,
    x: Tensor,
    t: Tensor | float,
    s: Tensor | float,
    *,
    eta: float = 0.0,
    noise: Tensor | None = None,
    **condition: Tensor | None,
) -> Tensor:
    """One DDIM step from t to s, in either direction.

    Args:
        denoise: any denoiser.
        x: the state at t, shape (B, ...).
        t: the time it has, shape () or (B,), above 0.
        s: the time to reach, shape () or (B,).
        eta: 0 deterministic, 1 the ancestral step (needs s < t).
        noise: standard noise of x's shape, needed when eta > 0.
        **condition: passed to the denoiser.

    Returns:
        the state at s, shape of x.

    Source: (arXiv 2010.02502, eq. 12).
    """
    require(eta == 0 or noise is not None, "eta > 0 needs noise= of x's shape")
    return _ddim_update(denoise(x, t, **condition), as_time(s), eta, noise)


@sampler
def ddim(look: Look, x: Tensor, times: Tensor, *, eta: float = 0.0) -> Walk:
    """DDIM: each step keeps x0 and eps as they were seen.

    x has shape (B, ...), times (steps + 1,). `eta` runs from 0, deterministic, to 1,
    the ancestral sampler of the small variance.

    Source: (arXiv 2010.02502, eqs. 12 and 16), on any path.
    """
    require(0 <= eta <= 1, f"eta runs from 0 to 1, got {eta}")
    noise = look.noise()
    for index, t, s in steps_of(times):
        seen = look(x, t)
        noisy = eta > 0 and s > 0
        fresh = noise(x, index) if noisy else None
        reached = _ddim_update(seen, s, eta if noisy else 0.0, fresh)
        x = yield Step(index, t, s, x, reached, seen)


def ddim_invert(
    denoise: DenoiserBase,
    x0: Tensor,
    times: Tensor,
    *,
    refine: int = 0,
    **condition: Tensor | None,
) -> Tensor:
    """The x_T from which DDIM walks to x0: the same steps, upwards.

    Args:
        denoise: any denoiser.
        x0: the end of the walk, shape (B, ...), at times[-1].
        times: the falling times of that walk, shape (steps + 1,).
        refine: fixed-point iterations a step. 0 is the usual inversion, which looks
            at the lower end of each step; more solve for the state whose step
            down leads back here.
        **condition: passed to the denoiser.

    Returns:
        the state at times[0], shape of x0.

    Source: (arXiv 2010.02502, section 5.4); the iterations, (arXiv 2309.04907).
    """
    require(refine >= 0, f"refine counts iterations, got {refine}")
    require(x0.dim() >= 2, f"x0 needs shape (B, ...), got {tuple(x0.shape)}")
    require_signal(denoise.schedule, checked_times(times))
    x = x0
    wants_grad = torch.is_grad_enabled() and x0.requires_grad
    with torch.set_grad_enabled(wants_grad):
        for t, s in pairwise(checked_times(times).flip(0).unbind()):
            x = _invert_step(denoise, x, t, s, refine, condition)
    return x


def _invert_step(
    denoise: DenoiserBase,
    x: Tensor,
    t: Tensor,
    s: Tensor,
    refine: int,
    condition: dict[str, Tensor | None],
) -> Tensor:
    """From x at t up to the x_s at s > t whose DDIM step down to t is x."""
    low, high = (denoise.schedule.coefficients(time) for time in (t, s))
    (alpha, sigma), (alpha_s, sigma_s) = ([c.item() for c in p] for p in (low, high))
    ratio = alpha_s / alpha
    # nothing is denoised at t = 0, so the first look is at s there
    look = (x, t) if t > 0 else (ratio * x, s)
    for _ in range(refine + 1):
        eps = denoise(*look, **condition).eps
        guess = combine(ratio, x, sigma_s - ratio * sigma, eps)
        look = guess, s
    return guess


@sampler
def euler(look: Look, x: Tensor, times: Tensor) -> Walk:
    """Euler's method in t along velocity = alpha' x0 + sigma' eps: order 1.

    x has shape (B, ...), times (steps + 1,).

    Source: (arXiv 2011.13456, eq. 13, the probability-flow ODE).
    """
    for index, t, s in steps_of(times):
        seen = look(x, t)
        if s > 0:
            reached = torch.add(x, seen.velocity, alpha=(s - t).item())
        else:
            reached = _ddim_update(seen, s)
        x = yield Step(index, t, s, x, reached, seen)


@sampler
def heun(look: Look, x: Tensor, times: Tensor) -> Walk:
    """Heun's method in t: Euler's step, then the mean of both ends' velocities.

    x has shape (B, ...), times (steps + 1,). Order 2, with two looks a step, one on
    the step to 0.

    Source: (arXiv 2206.00364, algorithm 1).
    """
    for index, t, s in steps_of(times):
        seen = look(x, t)
        if s > 0:
            half = 0.5 * (s - t).item()
            guess = torch.add(x, seen.velocity, alpha=2 * half)
            ahead = look(guess, s)
            reached = torch.add(x, seen.velocity + ahead.velocity, alpha=half)
        else:
            reached = _ddim_update(seen, s)
        x = yield Step(index, t, s, x, reached, seen)


def _exponential_step(seen: Prediction, eps: Tensor, s: Tensor) -> Tensor:
    """x_s = alpha_s/alpha_t x - sigma_s (e^h - 1) eps, the ODE's step for constant eps.

    The bracket is computed as sigma_s - sigma_t alpha_s / alpha_t, in double precision.
    """
    alpha_s, sigma_s = (c.item() for c in seen.schedule.coefficients(s))
    ratio = alpha_s / seen.at.alpha
    return combine(ratio, seen.x, sigma_s - ratio * seen.at.sigma, eps)


@sampler
def dpm_solver_2(look: Look, x: Tensor, times: Tensor) -> Walk:
    """DPM-Solver-2: half a step in lambda, then the whole step with eps seen there.

    x has shape (B, ...), times (steps + 1,). Order 2, with two looks a step, one on
    the step to 0.

    Source: (arXiv 2206.00927, algorithm 1).
    """
    path = look.schedule
    require_signal(path, times)
    for index, t, s in steps_of(times):
        seen = look(x, t)
        if s > 0:
            t_middle = path.time_of_log_snr((path.log_snr(t) + path.log_snr(s)) / 2)
            halfway = _exponential_step(seen, seen.eps, t_middle)
            eps = look(halfway, t_middle).eps
            reached = _exponential_step(seen, eps, s)
        else:
            reached = _ddim_update(seen, s)
        x = yield Step(index, t, s, x, reached, seen)


@sampler
def dpm_solver_pp_2m(look: Look, x: Tensor, times: Tensor) -> Walk:
    """DPM-Solver++(2M): x0 carried on in a straight line from the last two looks.

    x has shape (B, ...), times (steps + 1,). Order 2, with one look a step.

    Source: (arXiv 2211.01095, algorithm 2).
    """
    path = look.schedule
    lambdas = (0.5 * path.log_snr(times)).tolist()
    before: Tensor | None = None
    for index, t, s in steps_of(times):
        seen = look(x, t)
        if s > 0:
            h = lambdas[index + 1] - lambdas[index]
            ahead = seen.x0
            if before is not None:
                ratio = h / (2 * (lambdas[index] - lambdas[index - 1]))
                ahead = torch.lerp(before, seen.x0, 1 + ratio)
            alpha_s, sigma_s = (c.item() for c in path.coefficients(s))
            shrink = sigma_s / seen.at.sigma
            reached = combine(shrink, x, -alpha_s * expm1(-h), ahead)
            before = seen.x0
        else:
            reached = _ddim_update(seen, s)
        x = yield Step(index, t, s, x, reached, seen)
