"""The paths that keep the variance: linear, cosine, sigmoid, log-linear.

Each class writes alpha and sigma so that neither loses digits where it is small.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import cos, cosh, pi, sin, tanh
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from diffedu.errors import capturing, require
from diffedu.schedules.path import Schedule, as_time

if TYPE_CHECKING:
    from diffedu.schedules.chain import Chain


class VariancePreserving(Schedule):
    """A path with alpha^2 + sigma^2 = 1, so that rates follow from alpha's alone."""

    def _alpha_rate(self, t: Tensor) -> Tensor:
        raise NotImplementedError

    def rates(self, t: Tensor | float) -> tuple[Tensor, Tensor]:
        """d alpha/dt and -alpha alpha' / sigma, each of t's shape () or (B,).

        Raises:
            ValueError: where a rate is infinite, as sigma's is at t = 0.
        """
        t = as_time(t)
        alpha, sigma = self.coefficients(t)
        alpha_rate = self._alpha_rate(t)
        sigma_rate = -alpha * alpha_rate / sigma
        require(
            capturing() or bool((alpha_rate + sigma_rate).isfinite().all()),
            f'on the path "{self.name}" alpha or sigma changes infinitely fast at an '
            "end of time; ask for rates (or a velocity) from schedule.t_min to t_max",
        )
        return alpha_rate, sigma_rate

    def chain(self, steps: int) -> Chain:
        """The discrete chain of this path: beta_k = 1 - abar_k / abar_{k-1}, <= 0.999.

        Args:
            steps: the number T of noising steps, at least 2.

        Source: (arXiv 2102.09672, eq. 17 and the clipping below it).
        """
        from diffedu.schedules.chain import Chain

        require(steps >= 2, f"a chain needs at least 2 steps, got {steps}")
        times = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
        log_kept = self.alpha(times).log().mul(2).diff()
        return Chain((-torch.expm1(log_kept)).clamp(max=0.999))


@dataclass(frozen=True)
class Linear(VariancePreserving):
    """The VP SDE with beta(t) rising linearly (arXiv 2011.13456, eq. 33)."""

    beta_min: float = 0.1
    beta_max: float = 20.0
    name = "linear"

    def __post_init__(self) -> None:
        ok = 0 < self.beta_min <= self.beta_max
        require(ok, "linear needs 0 < beta_min <= beta_max")

    def _alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        total = self.beta_min * t + 0.5 * (self.beta_max - self.beta_min) * t**2
        return torch.exp(-0.5 * total), torch.sqrt(-torch.expm1(-total))

    def _alpha_rate(self, t: Tensor) -> Tensor:
        beta = self.beta_min + (self.beta_max - self.beta_min) * t
        return -0.5 * beta * self.alpha(t)

    def _time_of_log_snr(self, log_snr: Tensor) -> Tensor:
        total = torch.nn.functional.softplus(-log_snr)
        slope = self.beta_max - self.beta_min
        root = (self.beta_min**2 + 2 * slope * total).sqrt()
        return 2 * total / (self.beta_min + root)

    def chain(self, steps: int) -> Chain:
        """DDPM's table: betas evenly from beta_min / T to beta_max / T.

        For the default path and T = 1000 these are 1e-4 to 0.02 (arXiv 2006.11239,
        section 4). The chain is not this path sampled: its abar ends at 4.04e-5.
        """
        from diffedu.schedules.chain import Chain

        require(
            steps > self.beta_max,
            f"{steps} steps give betas up to {self.beta_max / steps:.3g}, and a beta "
            f"must stay below 1; take more than {self.beta_max:g} steps",
        )
        ends = self.beta_min / steps, self.beta_max / steps
        return Chain(torch.linspace(*ends, steps, dtype=torch.float64))


@dataclass(frozen=True)
class Cosine(VariancePreserving):
    """The path whose alpha is a cosine (arXiv 2102.09672, eq. 17)."""

    offset: float = 0.008
    name = "cosine"

    def __post_init__(self) -> None:
        require(self.offset >= 0, "cosine needs an offset of 0 or more")

    @property
    def _start(self) -> float:
        return 0.5 * pi * self.offset / (1 + self.offset)

    @property
    def _speed(self) -> float:
        return 0.5 * pi / (1 + self.offset)

    def _alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        alpha = torch.sin(self._speed * (1 - t)) / cos(self._start)
        # sin(a - b) sin(a + b) = cos^2 b - cos^2 a keeps sigma's digits near t = 0
        angle = self._speed * t
        sigma_sq = torch.sin(angle) * torch.sin(angle + 2 * self._start)
        return alpha, sigma_sq.clamp(min=0).sqrt() / cos(self._start)

    def _alpha_rate(self, t: Tensor) -> Tensor:
        return -self._speed * torch.cos(self._speed * (1 - t)) / cos(self._start)

    def _time_of_log_snr(self, log_snr: Tensor) -> Tensor:
        alpha, sigma = log_snr.sigmoid().sqrt(), (-log_snr).sigmoid().sqrt()
        c, s = cos(self._start), sigma.new_tensor(sin(self._start))
        angle = torch.atan2(torch.hypot(sigma * c, s), alpha * c)
        return (angle - self._start) / self._speed


@dataclass(frozen=True)
class Sigmoid(VariancePreserving):
    """The path whose alpha^2 is a piece of a sigmoid (arXiv 2212.11972, 2301.10972).

    alpha^2 runs from 1 to 0 as sigmoid(-z) does while z goes from start to end, over
    the temperature.
    """

    start: float = -3.0
    end: float = 3.0
    temperature: float = 1.0
    name = "sigmoid"

    def __post_init__(self) -> None:
        ok = self.start < self.end and self.temperature > 0
        require(ok, "sigmoid needs start < end and a temperature above 0")

    @property
    def _ends(self) -> tuple[float, float]:
        return self.start / self.temperature, self.end / self.temperature

    @property
    def _span(self) -> float:
        low, high = self._ends
        return (tanh(high / 2) - tanh(low / 2)) / 2  # sigmoid(high) - sigmoid(low)

    def _rise(self, near: Tensor, length: Tensor, far: float) -> Tensor:
        """sigmoid(near + length) - sigmoid(near), without cancellation."""
        both = 2 * torch.cosh(near / 2) * cosh(far / 2)
        return torch.sinh(length / 2) / both

    def _alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        low, high = self._ends
        z = low + (high - low) * t
        alpha_sq = self._rise(z, (high - low) * (1 - t), high) / self._span
        sigma_sq = self._rise(z, (high - low) * t, low) / self._span
        return alpha_sq.sqrt(), sigma_sq.sqrt()

    def _alpha_rate(self, t: Tensor) -> Tensor:
        low, high = self._ends
        z = low + (high - low) * t
        slope = (high - low) / (4 * torch.cosh(z / 2) ** 2)
        return -slope / (2 * self._span * self.alpha(t))

    def _time_of_log_snr(self, log_snr: Tensor) -> Tensor:
        low, high = self._ends
        # sigmoid(z) - sigmoid(low) = sigma^2 span, written in tanh(z / 2)
        sigma_sq, alpha_sq = (-log_snr).sigmoid(), log_snr.sigmoid()
        half = alpha_sq * tanh(low / 2) + sigma_sq * tanh(high / 2)
        return (2 * torch.atanh(half) - low) / (high - low)


@dataclass(frozen=True)
class LogLinear(VariancePreserving):
    """The path whose log-SNR falls in a straight line (arXiv 2107.00630)."""

    highest: float = 12.0
    lowest: float = -12.0
    name = "log_linear"

    def __post_init__(self) -> None:
        require(self.lowest < self.highest, "log_linear needs lowest < highest")

    def _log_snr(self, t: Tensor) -> Tensor:
        return self.highest + (self.lowest - self.highest) * t

    def _alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        log_snr = self._log_snr(t)
        return log_snr.sigmoid().sqrt(), (-log_snr).sigmoid().sqrt()

    def _alpha_rate(self, t: Tensor) -> Tensor:
        alpha, sigma = self._alpha_sigma(t)
        return 0.5 * (self.lowest - self.highest) * alpha * sigma.square()

    def _time_of_log_snr(self, log_snr: Tensor) -> Tensor:
        return (log_snr - self.highest) / (self.lowest - self.highest)
