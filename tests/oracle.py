"""A mixture whose everything is known, as a network of each parametrisation."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from diffedu import Denoiser, GaussianMixture, schedules
from diffedu.prediction import PARAMETRISATIONS, Point
from diffedu.schedules import Schedule

NAMES = tuple(PARAMETRISATIONS)
PATHS = {
    **{name: make() for name, make in schedules.CATALOGUE.items()},
    "ddpm_chain": schedules.linear().chain(1000).schedule,
    "cosine_chain": schedules.cosine().chain(1000).schedule,
}


def mixture(dtype: torch.dtype = torch.float64) -> GaussianMixture:
    """Two classes of two overlapping modes each, in two dimensions."""
    means = torch.tensor([[1.0, 0.2], [-0.9, 0.6], [0.1, -0.8], [0.4, 0.9]])
    weights = torch.tensor([0.2, 0.4, 0.3, 0.1])
    stds = torch.tensor([0.5, 0.4, 0.6, 0.45])
    labels = torch.tensor([0, 1, 1, 0])
    return GaussianMixture(weights, means.to(dtype), stds, labels)


class OracleNet(nn.Module):
    """The network that answers the mixture's posterior mean, in any form."""

    def __init__(self, data: GaussianMixture, path: Schedule, predicts: str) -> None:
        super().__init__()
        self.exact, self.path, self.predicts = data.denoiser(path), path, predicts

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        if self.predicts == "edm":
            t = self.path.time_of_log_snr(-8 * t)  # t is ln(sigma / alpha) / 4
            alpha, sigma = self.path.coefficients(t)
            x = x * torch.sqrt(sigma**2 + 0.25 * alpha**2)[:, None]
        seen = self.exact(x, t, label=label)
        kind = PARAMETRISATIONS[self.predicts]
        return kind.target(seen.x0, seen.eps, Point(self.path, t, x))


def oracle(path: Schedule, predicts: str, data: GaussianMixture | None = None):
    """The exact denoiser of a mixture as a Denoiser of the given parametrisation."""
    data = data or mixture()
    return Denoiser(OracleNet(data, path, predicts), path, predicts)


def within(estimate: Tensor, truth: Tensor, standard_error: Tensor | float) -> bool:
    """Whether an estimate lies within 5 standard errors everywhere."""
    return bool(((estimate - truth).abs() <= 5 * standard_error).all())


def std_error_of_variance(variance: Tensor, n: int) -> Tensor:
    """Of the sample variance of n Gaussian draws."""
    return variance * math.sqrt(2 / (n - 1))
