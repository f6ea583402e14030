"""The oracle between two data sets: an interpolant of two mixtures is a mixture."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from diffedu.errors import require
from diffedu.flows.interpolants import Interpolant, Motion
from diffedu.tensors import per_sample

if TYPE_CHECKING:
    from diffedu.worlds.mixtures import GaussianMixture


class MixtureBridge(nn.Module):
    """The exact velocity and score of x_t = a x0 + b x1 + gamma z for two mixtures.

    x0 and x1 are independent. Given one component of each, all is Gaussian; the rest
    is a mean over pairs of components.

    Args:
        data: the mixture at t = 0.
        source: the mixture at t = 1, of the same dimension.
        interpolant: the path; `Interpolant()` is the straight one without noise.

    Raises:
        ValueError: for other dimensions, or covariances that are not diagonal.
    """

    def __init__(
        self,
        data: GaussianMixture,
        source: GaussianMixture,
        interpolant: Interpolant | None = None,
    ) -> None:
        super().__init__()
        same = data.dim == source.dim
        require(same, f"dimensions differ: {data.dim} and {source.dim}")
        diagonal = data.axes is None and source.axes is None
        require(diagonal, "make both mixtures with stds; covariances are not taken")
        self.data, self.source = data, source
        self.interpolant = Interpolant() if interpolant is None else interpolant

    def forward(self, x: Tensor, t: Tensor | float) -> Motion:
        """Velocity and score at x (B, D) and t () or (B,), each of shape (B, D)."""
        t = torch.as_tensor(t, dtype=x.dtype)
        path = self.interpolant
        a, b, gamma = (_pairwise(c, x) for c in path.coefficients(t))
        a_rate, b_rate, heat = (_pairwise(c, x) for c in path.rates(t))
        # axes: sample, component of x0, component of x1, coordinate
        mean_0, mean_1 = self.data.means[:, None], self.source.means[None]
        var_0, var_1 = self.data.spectrum[:, None], self.source.spectrum[None]
        spread = a**2 * var_0 + b**2 * var_1 + gamma**2
        away = (x[:, None, None] - a * mean_0 - b * mean_1) / spread
        drift = a_rate * mean_0 + b_rate * mean_1
        drift = drift + (a_rate * a * var_0 + b_rate * b * var_1 + heat) * away
        share = self._shares(away, spread)[..., None]
        return Motion((share * drift).sum((1, 2)), -(share * away).sum((1, 2)))

    def _shares(self, away: Tensor, spread: Tensor) -> Tensor:
        """How likely each pair of components stands behind x: (B, K0, K1)."""
        logits = -0.5 * (away.square() * spread + spread.log()).sum(-1)
        logits = logits + self.data.weights.log()[:, None] + self.source.weights.log()
        return logits.flatten(1).softmax(1).reshape(logits.shape)


def _pairwise(value: Tensor, x: Tensor) -> Tensor:
    """A coefficient of shape () or (B,) with the axes of (B, K0, K1, D)."""
    return per_sample(value, x[:, :, None, None])
