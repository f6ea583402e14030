"""The probability-flow ODE as a normalizing flow: codes, and exact log-likelihoods.

Walked upwards it maps data to noise, one to one. How a density changes on the way is
the integral of the velocity's divergence, so that no normalising constant is needed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from math import log, pi

import torch
from torch import Tensor

from diffedu import samplers
from diffedu.denoiser import DenoiserBase
from diffedu.errors import lookup, require, require_finite
from diffedu.likelihood.divergence import (
    PROBES,
    draw_probes,
    exact_divergence,
    hutchinson_divergence,
)
from diffedu.losses import bits_offset
from diffedu.samplers.walk import checked_times
from diffedu.schedules import Schedule

# of x (B, ...) and t (): the velocity, and what is added up on the way, (P, B)
Slope = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
METHODS = {"euler": samplers.euler, "heun": samplers.heun}


@dataclass
class Likelihood:
    """log p(x0) of a batch and what it is made of.

    Attributes:
        log_prob: log p(x0) in nats, shape (B,).
        prior: the log-density of the latent, nats, shape (B,).
        volume: the log of how much the map to the latent stretches, nats, (B,).
        standard_error: of log_prob, from the spread over probes, shape (B,): 0 for
            the exact divergence, NaN with a single probe, which has no spread.
        latent: where x0 arrives at t_max, shape of x0.
    """

    log_prob: Tensor
    prior: Tensor
    volume: Tensor
    standard_error: Tensor
    latent: Tensor

    def bits_per_dim(self, bin_width: float | None = None) -> Tensor:
        """-log p(x0) in bits an element, shape (B,).

        Args:
            bin_width: for dequantised data, the distance of two levels: the bits are
                then those of the levels (an upper bound on average), not of a density.
        """
        dimensions = self.latent[0].numel()
        offset = 0.0 if bin_width is None else bits_offset(bin_width)
        return -self.log_prob / (dimensions * log(2)) + offset


def _rising(schedule: Schedule, times: Tensor | None, steps: int) -> Tensor:
    """The walk's times turned round, (N + 1,); by default even in log-SNR."""
    if times is None:
        times = samplers.time_grid(schedule, steps, "log_snr", end=schedule.t_min)
    times = checked_times(times)
    require(
        times[-1] > 0,
        "a likelihood or a code starts where there is a little noise: let times end at "
        f"schedule.t_min = {schedule.t_min:g}, not at 0",
    )
    return times.flip(0)


def _integrate(
    slope: Slope, x: Tensor, times: Tensor, method: str
) -> tuple[Tensor, Tensor]:
    """Up the rising times: where x (B, ...) ends, and what was added up, (P, B)."""
    lookup(METHODS, method, "method")
    total: Tensor | float = 0.0
    for t, s in pairwise(times.unbind()):
        length = (s - t).item()
        u, rate = slope(x, t)
        ahead = torch.add(x, u, alpha=length)
        if method == "heun":
            u_ahead, rate_ahead = slope(ahead, s)
            ahead = torch.add(x, u + u_ahead, alpha=0.5 * length)
            rate = 0.5 * (rate + rate_ahead)
        x, total = ahead, total + length * rate
    return x, total


def _prior_log_prob(x: Tensor, schedule: Schedule, t: Tensor) -> Tensor:
    """log N(x; 0, alpha^2 + sigma^2), the law of `schedule.prior_sample`: (B,)."""
    alpha, sigma = (c.item() for c in schedule.coefficients(t))
    variance = alpha**2 + sigma**2
    distance = x.flatten(1).square().sum(1) / variance
    return -0.5 * (distance + x[0].numel() * log(2 * pi * variance))


def log_prob(
    denoise: DenoiserBase,
    x0: Tensor,
    *,
    steps: int = 100,
    method: str = "heun",
    divergence: str = "exact",
    probes: int = 1,
    times: Tensor | None = None,
    generator: torch.Generator | None = None,
    **condition: Tensor | None,
) -> Likelihood:
    """log p(x0) of the model that samples by the probability-flow ODE.

    log p(x0) = log N(latent) + integral of div u dt + D log alpha(t_min), along the
    ODE dx/dt = u(x, t) from x = alpha x0 at t_min to the latent at t_max.

    Args:
        denoise: any denoiser.
        x0: data, shape (B, ...); dequantise levels first.
        steps: of the solver, evenly in log-SNR.
        method: heun (two looks a step) or euler (one).
        divergence: exact (D passes backwards a look), or Hutchinson's estimate from
            rademacher or gaussian probes (one pass a probe).
        probes: for each sample, kept for the whole walk.
        times: falling times instead of `steps`, shape (N + 1,), the last above 0.
        generator: source of the probes.
        **condition: passed to the denoiser.

    Returns:
        a Likelihood, in nats, without gradient.

    Raises:
        ValueError: for NaN in x0, an unknown method or divergence, or times that do
            not fall or end at 0.

    Source: (arXiv 2011.13456, appendix D.2); the formula (arXiv 1806.07366, eq. 8).
    """
    require_finite(x0, "x0")
    lookup({"exact": None, **PROBES}, divergence, "divergence")
    path, x0 = denoise.schedule, x0.detach()
    times = _rising(path, times, steps)
    grow = exact_divergence
    if divergence != "exact":
        xi = draw_probes(x0, probes, divergence, generator)
        grow = partial(hutchinson_divergence, probes=xi)

    def slope(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        return grow(lambda y: denoise(y, t, **condition).velocity, x)

    start = path.alpha(times[0]).item()
    with path.remembering(times):
        latent, grown = _integrate(slope, start * x0, times, method)
    grown = grown.reshape(-1, len(x0)) + x0[0].numel() * log(start)
    prior, volume = _prior_log_prob(latent, path, times[-1]), grown.mean(0)
    error = torch.zeros_like(volume)
    if divergence != "exact":
        error = grown.std(0) / probes**0.5 if probes > 1 else error + torch.nan
    return Likelihood(prior + volume, prior, volume, error, latent)


def encode(
    denoise: DenoiserBase,
    x0: Tensor,
    *,
    steps: int = 50,
    method: str = "heun",
    times: Tensor | None = None,
    **condition: Tensor | None,
) -> Tensor:
    """The latent of x0: where the probability-flow ODE carries it at t_max.

    Args:
        denoise: any denoiser.
        x0: data, shape (B, ...).
        steps: of the solver, evenly in log-SNR.
        method: heun or euler.
        times: falling times instead of `steps`, shape (N + 1,), the last above 0.
        **condition: passed to the denoiser.

    Returns:
        the latent, shape of x0; with gradients if x0 requires them.

    Raises:
        ValueError: as `log_prob`.

    Source: (arXiv 2011.13456, section 4.3); by DDIM's steps, `samplers.ddim_invert`.
    """
    require_finite(x0, "x0")
    times = _rising(denoise.schedule, times, steps)
    nothing = x0.new_zeros(len(x0))

    def slope(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        return denoise(x, t, **condition).velocity, nothing

    start = denoise.schedule.alpha(times[0]).item()
    wants_grad = torch.is_grad_enabled() and x0.requires_grad
    with torch.set_grad_enabled(wants_grad):
        return _integrate(slope, start * x0, times, method)[0]


def decode(
    denoise: DenoiserBase,
    latent: Tensor,
    *,
    steps: int = 50,
    method: str = "heun",
    times: Tensor | None = None,
    **condition: Tensor | None,
) -> Tensor:
    """The data of a latent: `encode` the other way, with the same arguments.

    Args:
        denoise: any denoiser.
        latent: shape (B, ...), at t_max.
        steps: of the solver, evenly in log-SNR.
        method: heun or euler.
        times: falling times instead of `steps`, shape (N + 1,), the last above 0.
        **condition: passed to the denoiser.

    Returns:
        x0, shape of the latent, up to the solver's error; with gradients if the
        latent requires them.

    Raises:
        ValueError: as `log_prob`.
    """
    walk = lookup(METHODS, method, "method")
    times = _rising(denoise.schedule, times, steps).flip(0)
    x = walk(denoise, latent, times, **condition)
    return x / denoise.schedule.alpha(times[-1]).item()
