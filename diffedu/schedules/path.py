"""The noising path x_t = alpha(t) x0 + sigma(t) eps, and all that follows from it.

A schedule is two functions of time and their rates. Everything else here (signal
to noise, the posterior between two times, where a walk starts) is derived once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property

import torch
from torch import Tensor

from diffedu.errors import capturing, require, require_same_device, require_same_shape
from diffedu.tensors import normal_like, per_sample

LOWEST_LOG_SNR = -12.0  # sampling starts where alpha / sigma is e^-6
HIGHEST_LOG_SNR = 13.0  # likelihoods integrate down to sigma / alpha = e^-6.5


def as_time(t: Tensor | float) -> Tensor:
    """Time as a tensor of shape () or (B,), every value in [0, 1] or a ValueError."""
    t = t if isinstance(t, Tensor) else torch.tensor(t, dtype=torch.float64)
    t = t if t.is_floating_point() else t.double()
    if not capturing() and not _inside(t):
        raise ValueError(
            "time runs from 0 (data) to 1 (noise); got values from "
            f"{t.min().item():g} to {t.max().item():g}. An index k of a chain of T "
            "steps stands at t = (k + 1) / T"
        )
    return t


def _inside(t: Tensor) -> bool:
    if t.dim() == 0:
        return 0 <= t.item() <= 1
    return bool(((t >= 0) & (t <= 1)).all())


class Schedule(ABC):
    """A Gaussian noising path, x_t = alpha(t) x0 + sigma(t) eps.

    Times have shape () or (B,), of any floating dtype: float64 in, float64 out. At
    t = 0 every path is clean: alpha is 1 and sigma 0.
    """

    name: str = "schedule"
    steps: int | None = None  # the length of the chain behind a table, else None

    @abstractmethod
    def _alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """alpha and sigma at t > 0, both accurate to the last digits."""

    @abstractmethod
    def rates(self, t: Tensor | float) -> tuple[Tensor, Tensor]:
        """d alpha/dt and d sigma/dt at t of shape () or (B,)."""

    @abstractmethod
    def _time_of_log_snr(self, log_snr: Tensor) -> Tensor:
        """The inverse of log_snr, unchecked."""

    def coefficients(self, t: Tensor | float) -> tuple[Tensor, Tensor]:
        """alpha(t) and sigma(t), each of t's shape; ValueError outside [0, 1]."""
        t = as_time(t)
        if self._known and t.dim() == 0 and t.is_cpu and not t.requires_grad:
            known = self._known.get((t.item(), t.dtype))
            if known is not None:
                return known
        alpha, sigma = self._alpha_sigma(t)
        clean = t == 0
        return alpha.masked_fill(clean, 1.0), sigma.masked_fill(clean, 0.0)

    @cached_property
    def _known(self) -> dict[tuple[float, torch.dtype], tuple[Tensor, Tensor]]:
        return {}

    @contextmanager
    def remembering(self, times: Tensor) -> Iterator[None]:
        """Inside, `coefficients` has its answers for times (N,), on the CPU, ready."""
        alpha, sigma = self.coefficients(times)
        if not alpha.requires_grad:
            keys = [(t, times.dtype) for t in times.tolist()]
            self._known.update(zip(keys, zip(alpha, sigma, strict=True), strict=True))
        try:
            yield
        finally:
            self._known.clear()

    def alpha(self, t: Tensor | float) -> Tensor:
        """How much of the data is left at t, shape of t."""
        return self.coefficients(t)[0]

    def sigma(self, t: Tensor | float) -> Tensor:
        """The standard deviation of the noise at t, shape of t."""
        return self.coefficients(t)[1]

    def log_snr(self, t: Tensor | float) -> Tensor:
        """log(alpha^2 / sigma^2), strictly falling in t; infinite where sigma is 0."""
        alpha, sigma = self.coefficients(t)
        return 2 * (alpha.log() - sigma.log())

    def snr(self, t: Tensor | float) -> Tensor:
        """alpha^2 / sigma^2, the signal-to-noise ratio (arXiv 2107.00630, eq. 2)."""
        return self.log_snr(t).exp()

    def sde(self, t: Tensor | float) -> tuple[Tensor, Tensor]:
        """f and g of dx = f x dt + g dw, the SDE with this path's marginals.

        f = alpha'/alpha and g^2 = 2 sigma (sigma' - f sigma), each of t's shape () or
        (B,); ValueError where alpha is 0 or a rate infinite (arXiv 2011.13456, eq. 5).
        """
        t = as_time(t)
        alpha, sigma = self.coefficients(t)
        require(
            capturing() or bool((alpha > 0).all()),
            f'alpha is 0 on the path "{self.name}" at t={t.max().item():g}, and its '
            f"SDE divides by it; ask up to schedule.t_max = {self.t_max:g}",
        )
        alpha_rate, sigma_rate = self.rates(t)
        drift = alpha_rate / alpha
        return drift, (2 * sigma * (sigma_rate - drift * sigma)).sqrt()

    @property
    def terminal_snr(self) -> float:
        """The signal-to-noise ratio at t = 1: how much data is left at the end."""
        return self.snr(1.0).item()

    def time_of_log_snr(self, log_snr: Tensor | float) -> Tensor:
        """The time at which the path has this log-SNR, of the same shape.

        Raises:
            ValueError: if the path never has it.
        """
        log_snr = torch.as_tensor(log_snr)
        log_snr = log_snr if log_snr.is_floating_point() else log_snr.double()
        t = self._time_of_log_snr(log_snr)
        slack = 4 * torch.finfo(t.dtype).eps
        if not capturing() and not bool(((t >= -slack) & (t <= 1 + slack)).all()):
            raise ValueError(
                f'the path "{self.name}" has log-SNR from {self.log_snr(1.0):.4g} at '
                f"t=1 up to {self.log_snr(1e-9):.4g}; asked for "
                f"{log_snr.min().item():.4g} to {log_snr.max().item():.4g}. Choose "
                "times between the two, or a wider path"
            )
        return t.clamp(0, 1)

    @cached_property
    def t_max(self) -> float:
        """Where sampling starts: the largest time with log-SNR >= -12."""
        if self.log_snr(1.0) >= LOWEST_LOG_SNR:
            return 1.0
        return self.time_of_log_snr(torch.tensor(LOWEST_LOG_SNR).double()).item()

    @cached_property
    def t_min(self) -> float:
        """Where likelihoods end: the first time with log-SNR <= 13, at least 1e-5."""
        if self.log_snr(1e-5) <= HIGHEST_LOG_SNR:
            return 1e-5
        return self.time_of_log_snr(torch.tensor(HIGHEST_LOG_SNR).double()).item()

    def add_noise(self, x0: Tensor, t: Tensor | float, eps: Tensor) -> Tensor:
        """x_t = alpha x0 + sigma eps, for x0 and eps of shape (B, ...), t () or (B,).

        Raises:
            ValueError: if x0 and eps differ in shape or device, or t is out of range.

        Source: (arXiv 2006.11239, eq. 4).
        """
        require_same_shape(x0, eps, "x0 and eps")
        require_same_device(x0, eps, "x0 and eps")
        alpha, sigma = (per_sample(c, x0).to(x0) for c in self.coefficients(t))
        return alpha * x0 + sigma * eps

    def kept(self, t: Tensor, s: Tensor) -> Tensor:
        """The ratio SNR(t) / SNR(s) in [0, 1]: the share of knowledge of x_s in x_t."""
        return (self.log_snr(t) - self.log_snr(s)).exp()

    def posterior(
        self, x0: Tensor, x_t: Tensor, t: Tensor | float, s: Tensor | float
    ) -> tuple[Tensor, Tensor]:
        """Mean and variance of q(x_s | x_t, x0) for s < t.

        Args:
            x0: the clean data, shape (B, ...).
            x_t: the noisy data at t, same shape.
            t: the time of x_t, shape () or (B,).
            s: an earlier time, shape () or (B,).

        Returns:
            the mean, shape (B, ...), and the variance, shape () or (B, 1, ..., 1).

        Raises:
            ValueError: if s is not before t, or shapes differ.

        Source: (arXiv 2006.11239, eq. 7), for any two times as in
        (arXiv 2107.00630).
        """
        require_same_shape(x0, x_t, "x0 and x_t")
        t, s = as_time(t), as_time(s)
        if not capturing() and not bool((s < t).all()):
            raise ValueError("the posterior q(x_s | x_t, x0) needs s < t")
        weight_x0, weight_xt, variance = (
            per_sample(c, x0).to(x0) for c in self.posterior_coefficients(t, s)
        )
        return weight_x0 * x0 + weight_xt * x_t, variance

    def posterior_coefficients(
        self, t: Tensor, s: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The weights of x0 and x_t in the posterior mean, and the variance.

        With r = SNR(t) / SNR(s) they are alpha_s (1 - r), sigma_s sqrt(r) / sigma_t
        and sigma_s^2 (1 - r); t and s of shape () or (B,), as the results.
        """
        alpha_s, sigma_s = self.coefficients(s)
        log_kept = self.log_snr(t) - self.log_snr(s)
        forgotten = -torch.expm1(log_kept)
        weight_xt = sigma_s * (log_kept / 2).exp() / self.sigma(t)
        return alpha_s * forgotten, weight_xt, sigma_s.square() * forgotten

    def transition_variance(self, t: Tensor, s: Tensor) -> Tensor:
        """The variance of q(x_t | x_s), a chain's beta: s < t of shape () or (B,)."""
        log_kept = self.log_snr(t) - self.log_snr(s)
        return self.sigma(t).square() * -torch.expm1(log_kept)

    def prior_sample(
        self,
        shape: tuple[int, ...],
        t: Tensor | float,
        generator: torch.Generator | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """A start for the walk at t: N(0, alpha^2 + sigma^2), right for unit variance.

        Args:
            shape: of the batch to draw, (B, ...).
            t: the time to start at, shape () or (B,).
            generator: source of the noise; its device is where the sample lies.
            dtype: of the sample.
        """
        device = generator.device if generator is not None else None
        noise = normal_like(torch.empty(shape, dtype=dtype, device=device), generator)
        alpha, sigma = self.coefficients(t)
        return per_sample(torch.hypot(alpha, sigma), noise).to(noise) * noise
