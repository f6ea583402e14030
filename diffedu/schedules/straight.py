"""The paths that do not keep the variance: VE, EDM, flow and sub-VP."""

from __future__ import annotations

from dataclasses import dataclass
from math import log

import torch
from torch import Tensor

from diffedu.errors import require
from diffedu.schedules.path import Schedule, as_time


@dataclass(frozen=True)
class VarianceExploding(Schedule):
    """alpha = 1 and sigma geometric in t (arXiv 2011.13456, eq. 31)."""

    sigma_min: float = 0.01
    sigma_max: float = 50.0
    name = "ve"

    def __post_init__(self) -> None:
        ok = 0 < self.sigma_min < self.sigma_max
        require(ok, "ve needs 0 < sigma_min < sigma_max")

    def _alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        growth = log(self.sigma_max / self.sigma_min)
        return torch.ones_like(t), self.sigma_min * torch.exp(growth * t)

    def rates(self, t: Tensor | float) -> tuple[Tensor, Tensor]:
        """0 and sigma log(sigma_max / sigma_min), of t's shape () or (B,)."""
        t = as_time(t)
        growth = log(self.sigma_max / self.sigma_min)
        return torch.zeros_like(t), growth * self._alpha_sigma(t)[1]

    def _time_of_log_snr(self, log_snr: Tensor) -> Tensor:
        growth = log(self.sigma_max / self.sigma_min)
        return (-0.5 * log_snr - log(self.sigma_min)) / growth


@dataclass(frozen=True)
class EDM(Schedule):
    """alpha = 1 and sigma = sigma_max t: time is noise (arXiv 2206.00364, table 1)."""

    sigma_max: float = 80.0
    name = "edm"

    def __post_init__(self) -> None:
        require(self.sigma_max > 0, "edm needs sigma_max > 0")

    def _alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ones_like(t), self.sigma_max * t

    def rates(self, t: Tensor | float) -> tuple[Tensor, Tensor]:
        """0 and sigma_max, of t's shape () or (B,)."""
        t = as_time(t)
        return torch.zeros_like(t), torch.full_like(t, self.sigma_max)

    def _time_of_log_snr(self, log_snr: Tensor) -> Tensor:
        return torch.exp(-0.5 * log_snr) / self.sigma_max


@dataclass(frozen=True)
class Flow(Schedule):
    """alpha = 1 - t and sigma = t: straight lines (arXiv 2210.02747, 2209.03003)."""

    name = "flow"

    def _alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return 1 - t, t.clone()

    def rates(self, t: Tensor | float) -> tuple[Tensor, Tensor]:
        """-1 and 1, of t's shape () or (B,)."""
        t = as_time(t)
        return -torch.ones_like(t), torch.ones_like(t)

    def _time_of_log_snr(self, log_snr: Tensor) -> Tensor:
        return torch.sigmoid(-0.5 * log_snr)


@dataclass(frozen=True)
class SubVariancePreserving(Schedule):
    """The linear path's alpha with less noise: sigma = 1 - alpha^2, not its root.

    Its variance stays below the VP path's, and meets it at both ends.

    Source: (arXiv 2011.13456, eq. 12).
    """

    beta_min: float = 0.1
    beta_max: float = 20.0
    name = "sub_vp"

    def __post_init__(self) -> None:
        ok = 0 < self.beta_min <= self.beta_max
        require(ok, "sub_vp needs 0 < beta_min <= beta_max")

    def _alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        total = self.beta_min * t + 0.5 * (self.beta_max - self.beta_min) * t**2
        return torch.exp(-0.5 * total), -torch.expm1(-total)

    def rates(self, t: Tensor | float) -> tuple[Tensor, Tensor]:
        """-beta alpha / 2 and beta alpha^2, of t's shape () or (B,)."""
        t = as_time(t)
        alpha = self._alpha_sigma(t)[0]
        beta = self.beta_min + (self.beta_max - self.beta_min) * t
        return -0.5 * beta * alpha, beta * alpha**2

    def _time_of_log_snr(self, log_snr: Tensor) -> Tensor:
        # sigma / alpha = 1 / alpha - alpha = 2 sinh(total / 2)
        total = 2 * torch.asinh(0.5 * torch.exp(-0.5 * log_snr))
        slope = self.beta_max - self.beta_min
        root = (self.beta_min**2 + 2 * slope * total).sqrt()
        return 2 * total / (self.beta_min + root)
