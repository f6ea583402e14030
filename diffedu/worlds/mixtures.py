"""The oracle: a mixture of Gaussians, which knows everything in closed form.

Noised, conditioned on a label or on a linear measurement, it is a mixture again. So
its score, its best denoiser and its posterior are known at every noise level.
"""

from __future__ import annotations

from math import log, pi

import torch
from torch import Tensor

from diffedu.errors import capturing, require, require_finite
from diffedu.schedules import Schedule
from diffedu.tensors import normal_like
from diffedu.worlds.exact import MixtureDenoiser


class GaussianMixture:
    """sum_k w_k N(mean_k, C_k), with everything about it in closed form.

    Args:
        weights: shape (K,), positive; scaled to sum to 1.
        means: shape (K, D).
        stds: standard deviations, shape (K,) or (K, D), 0 allowed (points, flats).
        labels: the class of each component, shape (K,), integers from 0; each its own
            class unless given.
        covariances: instead of stds, shape (K, D, D), positive semi-definite.

    Raises:
        ValueError: for shapes that do not fit, NaN, or a covariance that is none.

    Means' dtype is everything's dtype. Samples have shape (N, D).
    """

    def __init__(
        self,
        weights: Tensor,
        means: Tensor,
        stds: Tensor | None = None,
        labels: Tensor | None = None,
        *,
        covariances: Tensor | None = None,
    ) -> None:
        means = torch.as_tensor(means)
        require(means.dim() == 2, f"means need shape (K, D), got {tuple(means.shape)}")
        count = means.shape[0]
        weights = torch.as_tensor(weights).to(means)
        ok = weights.shape == (count,) and bool((weights > 0).all())
        require(ok, f"weights need shape ({count},), all above 0; got {weights}")
        require((stds is None) != (covariances is None), "give stds or covariances")
        for name, value in (("means", means), ("weights", weights)):
            require_finite(value, name)
        self.weights, self.means = weights / weights.sum(), means
        # C_k = axes diag(spectrum) axes^T, with axes None where they are the usual ones
        self.spectrum, self.axes = _spectrum(means, stds, covariances)
        labels = torch.arange(count) if labels is None else torch.as_tensor(labels)
        ok = labels.shape == (count,) and not labels.is_floating_point()
        ok = ok and bool((labels >= 0).all())
        require(ok, f"labels need shape ({count},) and integers from 0, got {labels}")
        self.labels = labels.to(means.device)

    @property
    def dim(self) -> int:
        """D, the number of coordinates."""
        return self.means.shape[1]

    @property
    def covariances(self) -> Tensor:
        """C_k, shape (K, D, D)."""
        if self.axes is None:
            return torch.diag_embed(self.spectrum)
        return self.axes * self.spectrum[:, None] @ self.axes.mT

    def _with(self, weights: Tensor, means: Tensor, spectrum: Tensor, pick: Tensor):
        """Another mixture of the same axes; `pick` (K',) says of which components."""
        other = object.__new__(GaussianMixture)
        other.weights, other.means = weights / weights.sum(), means
        other.spectrum, other.labels = spectrum, self.labels[pick]
        other.axes = None if self.axes is None else self.axes[pick]
        return other

    def sample(
        self, n: int, generator: torch.Generator | None = None, labelled: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Draw n points, shape (n, D); with their labels (n,) if `labelled`."""
        require(n >= 1, f"cannot draw {n} samples")
        device = generator.device if generator is not None else self.means.device
        weights = self.weights.to(device)
        which = torch.multinomial(weights, n, replacement=True, generator=generator)
        which = which.to(self.means.device)
        noise = normal_like(self.means[which], generator)
        x = self.means[which] + self._rotate_back(noise, which)
        return (x, self.labels[which]) if labelled else x

    def _rotate_back(self, noise: Tensor, which: Tensor) -> Tensor:
        scaled = self.spectrum[which].sqrt() * noise
        if self.axes is None:
            return scaled
        return torch.einsum("nde,ne->nd", self.axes[which], scaled)

    def _offsets(self, x: Tensor) -> Tensor:
        """x - mean_k in the axes of component k: shape (N, K, D)."""
        ok = x.dim() == 2 and x.shape[1] == self.dim
        require(ok, f"points need shape (N, {self.dim}), got {tuple(x.shape)}")
        away = x[:, None] - self.means
        if self.axes is None:
            return away
        return torch.einsum("kde,nkd->nke", self.axes, away)

    def _require_density(self) -> None:
        """ValueError where a component is a point or flat: it has no density."""
        require(
            capturing() or bool((self.spectrum > 0).all()),
            "a component has a standard deviation of 0, so there is no density; "
            "look at it with noise, as in mixture.at(schedule, t) with t > 0",
        )

    def component_log_prob(self, x: Tensor) -> Tensor:
        """log(w_k N(x; mean_k, C_k)) in nats, shape (N, K), for x of shape (N, D)."""
        self._require_density()
        distance = (self._offsets(x).square() / self.spectrum).sum(-1)
        volume = self.spectrum.log().sum(-1) + self.dim * log(2 * pi)
        return self.weights.log() - 0.5 * (distance + volume)

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x) in nats, shape (N,), for x of shape (N, D)."""
        return self.component_log_prob(x).logsumexp(1)

    def responsibilities(self, x: Tensor) -> Tensor:
        """p(k | x), shape (N, K), for x of shape (N, D)."""
        return self.component_log_prob(x).softmax(1)

    def class_posterior(self, x: Tensor) -> Tensor:
        """p(label | x), shape (N, classes), for x of shape (N, D)."""
        shares = self.responsibilities(x)
        out = shares.new_zeros(len(x), int(self.labels.max()) + 1)
        return out.index_add(1, self.labels, shares)

    def score(self, x: Tensor) -> Tensor:
        """grad log p(x), shape (N, D), for x of shape (N, D)."""
        self._require_density()
        pull = -self._offsets(x) / self.spectrum
        if self.axes is not None:
            pull = torch.einsum("kde,nke->nkd", self.axes, pull)
        return (self.responsibilities(x)[..., None] * pull).sum(1)

    def guided_score(self, x: Tensor, label: int, scale: float) -> Tensor:
        """u + scale (c - u) of the scores with and without the label: (N, D).

        Source: (arXiv 2207.12598, eq. 6), whose w is scale - 1.
        """
        return torch.lerp(self.score(x), self.condition(label).score(x), scale)

    def condition(self, label: int) -> GaussianMixture:
        """p(x | label), the components of one class."""
        pick = (self.labels == label).nonzero().flatten()
        known = sorted(set(self.labels.tolist()))
        require(len(pick) > 0, f"no component has label {label}; there are {known}")
        return self._with(
            self.weights[pick], self.means[pick], self.spectrum[pick], pick
        )

    def noised(self, alpha: Tensor | float, sigma: Tensor | float) -> GaussianMixture:
        """The mixture of alpha x + sigma eps, for numbers alpha and sigma."""
        spectrum = alpha**2 * self.spectrum + sigma**2
        everyone = torch.arange(len(self.weights), device=self.means.device)
        means = alpha * self.means
        return self._with(self.weights, means, spectrum.to(means), everyone)

    def at(self, schedule: Schedule, t: Tensor | float) -> GaussianMixture:
        """The mixture of x_t at one time t on a path."""
        alpha, sigma = schedule.coefficients(t)
        require(alpha.dim() == 0, "at() takes one time; the denoiser takes a batch")
        return self.noised(alpha.item(), sigma.item())

    def posterior(self, A: Tensor, y: Tensor, noise_std: float) -> GaussianMixture:
        """p(x | y) for a measurement y = A x + noise_std eps: a mixture again.

        Args:
            A: the measurement, shape (M, D).
            y: what was measured, shape (M,).
            noise_std: its standard deviation, above 0.

        Raises:
            ValueError: for shapes that do not fit, or noise_std <= 0.
        """
        A, y = torch.as_tensor(A).to(self.means), torch.as_tensor(y).to(self.means)
        ok = A.dim() == 2 and A.shape[1] == self.dim and y.shape == A.shape[:1]
        require(
            ok,
            f"A needs shape (M, {self.dim}) and y (M,); got {tuple(A.shape)} and "
            f"{tuple(y.shape)}",
        )
        require(noise_std > 0, "noise_std must be above 0; a tiny one is nearly exact")
        covariances = self.covariances
        seen = A @ covariances @ A.T + noise_std**2 * torch.eye(len(y)).to(A)
        gain = torch.linalg.solve(seen, A @ covariances).mT
        missed = y - self.means @ A.T
        means = self.means + (gain @ missed[..., None]).squeeze(-1)
        left = torch.eye(self.dim).to(A) - gain @ A
        # Joseph's form stays symmetric and positive
        updated = left @ covariances @ left.mT + noise_std**2 * gain @ gain.mT
        fit = torch.distributions.MultivariateNormal(torch.zeros_like(missed), seen)
        weights = (self.weights.log() + fit.log_prob(missed)).softmax(0)
        kept = weights > torch.finfo(weights.dtype).tiny
        return GaussianMixture(
            weights[kept], means[kept], labels=self.labels[kept],
            covariances=updated[kept],
        )  # fmt: skip

    def denoiser(self, schedule: Schedule) -> MixtureDenoiser:
        """The best possible denoiser of this mixture on a path: the posterior mean."""
        return MixtureDenoiser(self, schedule)


def _spectrum(
    means: Tensor, stds: Tensor | None, covariances: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Variances along the axes (K, D), and the axes (K, D, D) or None."""
    if stds is not None:
        stds = torch.as_tensor(stds).to(means)
        ok = stds.shape in (means.shape[:1], means.shape)
        require(
            ok and bool((stds >= 0).all()),
            f"stds need shape ({len(means)},) or {tuple(means.shape)} and values of 0 "
            f"or more; got shape {tuple(stds.shape)}",
        )
        wide = stds[:, None].expand_as(means) if stds.dim() == 1 else stds
        return wide.square(), None
    covariances = torch.as_tensor(covariances).to(means)
    shape = (*means.shape, means.shape[1])
    given = tuple(covariances.shape)
    require(given == shape, f"covariances need shape {shape}, got {given}")
    require_finite(covariances, "covariances")
    spectrum, axes = torch.linalg.eigh(covariances)
    slack = 1e-5 * spectrum.abs().max()
    even = torch.allclose(covariances, covariances.mT, atol=float(slack))
    require(
        even and bool((spectrum >= -slack).all()),
        "covariances must be symmetric and positive semi-definite",
    )
    return spectrum.clamp(min=0), axes
