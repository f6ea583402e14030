"""The variational bound with infinitely many steps, as an integral over log-SNR.

-log p(x0) <= prior + 1/2 integral of E|eps - eps_hat|^2 d log-SNR + reconstruction. Of
the schedule only its two ends are left.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log

import torch
from torch import Tensor

from diffedu.denoiser import DenoiserBase
from diffedu.errors import require, require_finite
from diffedu.losses import decoder_nll, denoising, gaussian_kl
from diffedu.schedules import Schedule
from diffedu.tensors import normal_like


@dataclass
class ContinuousBound:
    """The three terms of the bound on -log p(x0), each in nats a sample.

    Attributes:
        prior: KL(q(x at t_max | x0) || the prior), shape (B,).
        diffusion: the integral over log-SNR, shape (B,).
        reconstruction: -log p(x0 | x at t_min), shape (B,).
        dimensions: the number of elements of a sample.
    """

    prior: Tensor
    diffusion: Tensor
    reconstruction: Tensor
    dimensions: int

    @property
    def total(self) -> Tensor:
        """The whole bound on -log p(x0), nats a sample, shape (B,)."""
        return self.prior + self.diffusion + self.reconstruction

    @property
    def bits_per_dim(self) -> Tensor:
        """The whole bound in bits an element, shape (B,)."""
        return self.total / (self.dimensions * log(2))


def continuous_bound(
    denoise: DenoiserBase,
    x0: Tensor,
    *,
    looks: int = 32,
    ends: tuple[float, float] | None = None,
    bin_width: float | None = None,
    generator: torch.Generator | None = None,
    **condition: Tensor | None,
) -> ContinuousBound:
    """The continuous bound, estimated at random noise levels.

    The levels are stratified: look j of a sample draws its log-SNR from the j-th of
    `looks` equal parts. The estimate is unbiased for any number of looks.

    Args:
        denoise: any denoiser.
        x0: data, shape (B, ...).
        looks: noise levels for each sample.
        ends: the log-SNR at t_max and t_min; the path's own unless given.
        bin_width: for data on levels, their distance, so that the last term is that
            of the levels; None for the density itself.
        generator: source of levels and noise.
        **condition: passed to the denoiser.

    Returns:
        a ContinuousBound, in nats a sample; differentiable.

    Raises:
        ValueError: for NaN in x0, fewer than 1 look, or ends that the path never has.

    Source: (arXiv 2107.00630, section 5).
    """
    require_finite(x0, "x0")
    require(looks >= 1, f"the bound needs at least 1 look, got {looks}")
    path = denoise.schedule
    low, high = _ends(path, ends)
    seen = []
    for j in range(looks):
        part = (j + _uniform(x0, generator)) / looks
        t = path.time_of_log_snr(high + (low - high) * part)
        seen.append(
            denoising(
                denoise, x0, "snr", t=t, per_sample=True, generator=generator,
                **condition,
            )
        )  # fmt: skip
    dimensions = x0[0].numel()
    # 1/2 integral of SNR |x0 - x0_hat|^2 = (high - low) / 2 times its mean level
    diffusion = 0.5 * (high - low) * dimensions * torch.stack(seen).mean(0)
    prior = _prior(x0, path, low)
    last = _reconstruction(x0, high, bin_width, generator)
    return ContinuousBound(prior, diffusion, last, dimensions)


def _ends(path: Schedule, ends: tuple[float, float] | None) -> tuple[float, float]:
    """log-SNR at t_max and at t_min."""
    if ends is None:
        return path.log_snr(path.t_max).item(), path.log_snr(path.t_min).item()
    low, high = ends
    require(low < high, f"ends are (lowest, highest) log-SNR, got {ends}")
    return float(low), float(high)


def _uniform(x0: Tensor, generator: torch.Generator | None) -> Tensor:
    """One number in [0, 1) a sample, (B,), of x0's dtype and device."""
    device = generator.device if generator is not None else x0.device
    u = torch.rand(len(x0), device=device, generator=generator)
    return u.to(x0.device).to(x0.dtype)


def _prior(x0: Tensor, path: Schedule, log_snr: float) -> Tensor:
    """KL(N(alpha x0, sigma^2) || N(0, alpha^2 + sigma^2)) summed over elements: (B,).

    The second is the law of `schedule.prior_sample`.
    """
    t = path.time_of_log_snr(torch.tensor(log_snr, dtype=torch.float64))
    alpha, sigma = (c.item() for c in path.coefficients(t))
    log_var_q = x0.new_tensor(2 * log(sigma))
    log_var_p = x0.new_tensor(log(alpha**2 + sigma**2))
    kl = gaussian_kl(alpha * x0, log_var_q, torch.zeros_like(x0), log_var_p)
    return kl.flatten(1).sum(1)


def _reconstruction(
    x0: Tensor,
    log_snr: float,
    bin_width: float | None,
    generator: torch.Generator | None,
) -> Tensor:
    """-log N(x0; x / alpha, (sigma / alpha)^2) at the clean end, over elements: (B,).

    Source: (arXiv 2107.00630).
    """
    level = x0.new_tensor(-log_snr)  # log (sigma / alpha)^2
    mean = x0 + (0.5 * level).exp() * normal_like(x0, generator)
    return decoder_nll(x0, mean, level, bin_width).flatten(1).sum(1)
