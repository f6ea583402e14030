"""Denoisers that are known exactly: of a Gaussian mixture, and of a finite data set.

Both are the posterior mean E[x0 | x_t]: no network can do better on that data.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from diffedu.denoiser import DenoiserBase, checked_inputs
from diffedu.errors import capturing, require, require_finite
from diffedu.prediction import Prediction
from diffedu.schedules import Schedule
from diffedu.tensors import per_sample

if TYPE_CHECKING:
    from diffedu.worlds.mixtures import GaussianMixture


class MixtureDenoiser(DenoiserBase):
    """E[x0 | x_t] of a Gaussian mixture, exact at every noise level.

    Args:
        mixture: the data.
        schedule: the path x_t lies on.
    """

    def __init__(self, mixture: GaussianMixture, schedule: Schedule) -> None:
        super().__init__()
        self.mixture, self.schedule = mixture, schedule

    def forward(
        self,
        x: Tensor,
        t: Tensor | float,
        label: Tensor | None = None,
        keep: Tensor | None = None,
    ) -> Prediction:
        """Look at x_t (B, D) at t () or (B,), with labels (B,) of -1 or more."""
        t = checked_inputs(x, t)
        mixture = self.mixture
        alpha, sigma = (per_sample(c.to(x), x) for c in self.schedule.coefficients(t))
        alpha, sigma = (c.reshape(-1, 1, 1) for c in (alpha, sigma))
        spread = alpha**2 * mixture.spectrum + sigma**2
        away = self._away(x, alpha)
        logits = -0.5 * (away.square() / spread + spread.log()).sum(-1)
        logits = logits + mixture.weights.log()
        logits = logits.masked_fill(excluded(mixture.labels, label, keep), -torch.inf)
        # v of one component: alpha eps - sigma x0, without cancellation at either end
        pull = alpha * sigma * (1 - mixture.spectrum) / spread * away
        if mixture.axes is not None:
            pull = torch.einsum("kde,nke->nkd", mixture.axes, pull)
        v = (logits.softmax(1)[..., None] * (pull - sigma * mixture.means)).sum(1)
        return Prediction(x, t, self.schedule, "v", v)

    def _away(self, x: Tensor, alpha: Tensor) -> Tensor:
        """x - alpha mean_k in the axes of component k, shape (B, K, D)."""
        away = x[:, None] - alpha * self.mixture.means
        if self.mixture.axes is None:
            return away
        return torch.einsum("kde,nkd->nke", self.mixture.axes, away)


class EmpiricalDenoiser(DenoiserBase):
    """E[x0 | x_t] when the data are exactly these N points, each as likely.

    This is the best any network can do on its training set, and it can only ever
    repeat that set.

    Args:
        data: shape (N, ...).
        schedule: the path x_t lies on.
        labels: of the points, integers, shape (N,).

    Raises:
        ValueError: for empty data, NaN, or labels of another length.

    Source: (arXiv 2206.00364, eq. 57).
    """

    def __init__(
        self, data: Tensor, schedule: Schedule, labels: Tensor | None = None
    ) -> None:
        super().__init__()
        shape = tuple(data.shape)
        require(data.dim() >= 2 and len(data) > 0, f"data need (N, ...), got {shape}")
        require_finite(data, "data")
        ok = labels is None or labels.shape == data.shape[:1]
        require(ok, f"labels need shape ({len(data)},)")
        self.schedule, self.labels = schedule, labels
        self.register_buffer("data", data, persistent=False)

    def forward(
        self,
        x: Tensor,
        t: Tensor | float,
        label: Tensor | None = None,
        keep: Tensor | None = None,
    ) -> Prediction:
        """Look at x_t of shape (B, ...) at t of shape () or (B,)."""
        t = checked_inputs(x, t)
        fits = x.shape[1:] == self.data.shape[1:]
        shape = tuple(self.data.shape[1:])
        require(fits, f"x_t must have samples of shape {shape}, got {tuple(x.shape)}")
        weights = self.weights(x, t, label, keep)
        x0 = (weights @ self.data.flatten(1).to(x)).reshape(x.shape)
        return Prediction(x, t, self.schedule, "x0", x0)

    def weights(
        self,
        x: Tensor,
        t: Tensor | float,
        label: Tensor | None = None,
        keep: Tensor | None = None,
    ) -> Tensor:
        """How likely each data point stands behind x_t: shape (B, N)."""
        alpha, sigma = (c.to(x) for c in self.schedule.coefficients(t))
        blind = alpha == 0  # nothing of the data is left: all points are as likely
        alpha = alpha.masked_fill(blind, 1.0)
        centred = x / per_sample(alpha, x)
        # distances are taken directly: the expanded square loses digits as sigma -> 0
        distance = torch.cdist(
            centred.flatten(1),
            self.data.flatten(1).to(x),
            compute_mode="donot_use_mm_for_euclid_dist",
        )
        level = (sigma / alpha).reshape(-1, 1)
        logits = -0.5 * (distance / level).square()
        logits = logits.masked_fill(blind.reshape(-1, 1), 0.0)
        if label is not None:
            require(self.labels is not None, "this EmpiricalDenoiser has no labels")
            labels = self.labels.to(x.device)
            logits = logits.masked_fill(excluded(labels, label, keep), -torch.inf)
        return logits.softmax(1)


def excluded(labels: Tensor, label: Tensor | None, keep: Tensor | None) -> Tensor:
    """Which of the labels (K,) each sample rules out: shape (B, K), or () for none.

    Args:
        labels: of the components or data points, shape (K,).
        label: what each sample asks for, shape (B,) or (); -1 asks for nothing.
        keep: who keeps their label, shape (B,) or (), bool.

    Raises:
        ValueError: for a label that nothing has.
    """
    if label is None:
        return torch.zeros((), dtype=torch.bool, device=labels.device)
    label = label.reshape(-1, 1)
    asks = label != -1 if keep is None else (label != -1) & keep.reshape(-1, 1)
    out = asks & (label != labels)
    if not capturing() and bool(out.all(1).any()):
        known = sorted(set(labels.tolist()))
        raise ValueError(f"some label asked for is unknown; known are {known}")
    return out
