"""Why some noise makes features better: a mixture of low-rank Gaussians.

Each class lies near a subspace of its own. Here the posterior mean and all it knows
of the class are exact, at any noise level, so the curve of feature quality over noise
can be derived. Noise is added on the path with alpha 1: x + sigma eps.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from diffedu.errors import require
from diffedu.tensors import normal_like
from diffedu.worlds.mixtures import GaussianMixture


@dataclass(frozen=True)
class LowRankMixture:
    """Classes near K subspaces of rank d: x0 = U_k a + delta (I - U_k U_k') e.

    a and e are standard normal and the classes equally likely, so that class k is
    N(0, U_k U_k' + delta^2 (I - U_k U_k')). Every class has the mean 0.

    Args:
        bases: U, shape (K, D, d): orthonormal columns, K >= 2, d < D.
        delta: standard deviation off the subspace, in (0, 1); 1 on it.

    Raises:
        ValueError: if a shape or number does not fit, or a basis is not orthonormal.

    Source: (2502.05743), there the noisy MoLRG.
    """

    bases: Tensor
    delta: float

    def __post_init__(self) -> None:
        shape = tuple(self.bases.shape)
        ok = len(shape) == 3 and shape[0] >= 2 and 1 <= shape[2] < shape[1]
        require(ok, f"bases need shape (K, D, d) with K >= 2, d < D; got {shape}")
        require(0 < self.delta < 1, f"delta is {self.delta}; it lies in (0, 1)")
        gram = self.bases.mT @ self.bases
        off = float((gram - torch.eye(shape[2]).to(gram)).abs().max())
        require(
            off < 1e-4,
            f"the columns of a basis are orthonormal up to {off:.2g}; take the Q of "
            "torch.linalg.qr",
        )

    def sample(
        self, n: int, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Draw n points x0 (n, D) and their classes (n,)."""
        classes, dim, rank = self.bases.shape
        device = generator.device if generator is not None else "cpu"
        label = torch.randint(classes, (n,), generator=generator, device=device)
        label = label.to(self.bases.device)
        a = normal_like(self.bases.new_empty(n, rank), generator)
        e = normal_like(self.bases.new_empty(n, dim), generator)
        # U_k (a - delta U_k' e) + delta e, for the class of each point
        pull = torch.einsum("kde,nd->nke", self.bases, e)
        all_classes = torch.einsum(
            "kde,nke->nkd", self.bases, a[:, None] - self.delta * pull
        )
        return all_classes[torch.arange(n), label] + self.delta * e, label

    def energies(self, x: Tensor) -> Tensor:
        """|U_k' x|^2, how much of x lies in each subspace: (N, D) -> (N, K)."""
        dim = self.bases.shape[1]
        ok = x.dim() == 2 and x.shape[1] == dim
        require(ok, f"points need shape (N, {dim}), got {tuple(x.shape)}")
        return torch.einsum("kde,nd->nke", self.bases, x).square().sum(-1)

    def responsibilities(self, x: Tensor, sigma: float) -> Tensor:
        """p(class | x0 + sigma eps = x): a softmax of the energies, (N, K).

        Args:
            x: shape (N, D).
            sigma: the noise level, 0 or more.
        """
        require(sigma >= 0, f"sigma is {sigma}; it must be 0 or more")
        return (sharpness(self.delta, sigma) * self.energies(x)).softmax(1)

    def posterior_mean(self, x: Tensor, sigma: float) -> Tensor:
        """E[x0 | x0 + sigma eps = x], the best denoiser's answer: (N, D).

        Each class shrinks x by 1 / (1 + sigma^2) in its subspace and by
        delta^2 / (delta^2 + sigma^2) off it; the classes are weighed as they are
        likely. It may be asked about points without noise too.

        Args, Raises: as `responsibilities`.
        """
        weight = self.responsibilities(x, sigma)
        inside, outside = shrinkages(self.delta, sigma)
        parts = torch.einsum("kde,nd->nke", self.bases, x)
        within = torch.einsum("kde,nke,nk->nd", self.bases, parts, weight)
        return outside * x + (inside - outside) * within

    def class_snr(self, features: Tensor, label: Tensor) -> Tensor:
        """Energy in the subspace of one's own class over that in all the others'.

        The ratio of the two means over the points of a class, averaged over classes.

        Args:
            features: shape (N, D), such as posterior means.
            label: classes (N,).

        Returns:
            shape ().

        Raises:
            ValueError: if a shape does not fit, or a class has no point.

        Source: (2502.05743).
        """
        energy = self.energies(features)
        require(
            label.shape == energy.shape[:1],
            f"label has shape {tuple(label.shape)} for {len(energy)} points",
        )
        own = torch.nn.functional.one_hot(label, energy.shape[1]).to(energy)
        count = own.sum(0)
        require(bool((count > 0).all()), f"a class has no point: {count.tolist()}")
        signal = own.T @ (own * energy).sum(1) / count
        noise = own.T @ ((1 - own) * energy).sum(1) / count
        return (signal / noise).mean()

    def snr_curve(
        self,
        sigmas: Tensor,
        n: int = 2000,
        noisy: bool = False,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Class SNR of the posterior mean at each noise level, with common noise.

        The same n points and, if noisy, the same eps serve all levels, so that the
        curve is as smooth as the truth.

        Args:
            sigmas: noise levels, shape (S,).
            n: how many points.
            noisy: show the denoiser x0 + sigma eps; else x0 itself.
            generator: draws points and noise.

        Returns:
            shape (S,).

        Raises:
            ValueError: as `class_snr`, or if sigmas are not (S,).
        """
        require(
            sigmas.dim() == 1 and len(sigmas) > 0,
            f"sigmas have shape {tuple(sigmas.shape)}; they are (S,)",
        )
        x0, label = self.sample(n, generator)
        eps = normal_like(x0, generator) if noisy else torch.zeros_like(x0)
        levels = sigmas.tolist()
        curve = [
            self.class_snr(self.posterior_mean(x0 + s * eps, s), label) for s in levels
        ]
        return torch.stack(curve)

    def mixture(self) -> GaussianMixture:
        """The same distribution as the course's oracle."""
        classes, dim, _ = self.bases.shape
        onto = self.bases @ self.bases.mT
        off = torch.eye(dim).to(onto) - onto
        zeros = self.bases.new_zeros(classes, dim)
        covariances = onto + self.delta**2 * off
        return GaussianMixture(zeros[:, 0] + 1, zeros, covariances=covariances)


def low_rank_mixture(
    classes: int = 3,
    dim: int = 50,
    rank: int = 5,
    delta: float = 0.3,
    generator: torch.Generator | None = None,
) -> LowRankMixture:
    """A LowRankMixture (float64) of random subspaces that are orthogonal to each other.

    Args:
        classes: K, 2 or more.
        dim: D, at least K times the rank.
        rank: d, 1 or more.
        delta: as LowRankMixture.
        generator: draws the subspaces.

    Raises:
        ValueError: if there is no room for them.
    """
    require(
        min(classes - 1, rank) >= 1 and classes * rank <= dim,
        f"{classes} orthogonal subspaces of rank {rank} do not fit {dim} dimensions",
    )
    device = generator.device if generator is not None else "cpu"
    draw = torch.randn(
        dim, classes * rank, dtype=torch.float64, generator=generator, device=device
    )
    columns = torch.linalg.qr(draw).Q
    bases = columns.T.reshape(classes, rank, dim).mT
    return LowRankMixture(bases.contiguous(), delta)


def shrinkages(delta: float, sigma: Tensor | float) -> tuple:
    """The posterior mean's factors in the subspace and off it; sigma any shape."""
    return 1 / (1 + sigma**2), delta**2 / (delta**2 + sigma**2)


def sharpness(delta: float, sigma: Tensor | float) -> Tensor | float:
    """How much a unit of energy tells of the class; sigma any shape.

    Half the difference of the precisions off the subspace and on it, as
    log p(x | k) = sharpness |U_k' x|^2 + what does not depend on k.
    """
    return (1 / (delta**2 + sigma**2) - 1 / (1 + sigma**2)) / 2


def typical_snr(
    sigmas: Tensor, classes: int, rank: int, delta: float, noisy: bool = False
) -> Tensor:
    """The class SNR of a point with average energies, in closed form.

    With each energy replaced by its mean, class k's point keeps in subspace l
    the share `w_l inside + (1 - w_l) outside` of what it had there, where w is the
    softmax of the mean energies. It is exact as sigma goes to 0 or infinity, and an
    approximation between, as points with unusual energies doubt their class sooner.

    Args:
        sigmas: noise levels, any shape.
        classes, rank, delta: as `low_rank_mixture`.
        noisy: as `LowRankMixture.snr_curve`.

    Returns:
        sigmas' shape.

    Source: after (2502.05743), derived here anew.
    """
    added = sigmas**2 if noisy else torch.zeros_like(sigmas)
    own, other = rank * (1 + added), rank * (delta**2 + added)
    odds = (sharpness(delta, sigmas) * (other - own)).exp()
    weight = 1 / (1 + (classes - 1) * odds)
    inside, outside = shrinkages(delta, sigmas)
    kept = outside + (inside - outside) * weight
    leaked = outside + (inside - outside) * (1 - weight) / (classes - 1)
    return own * kept**2 / ((classes - 1) * other * leaked**2)
