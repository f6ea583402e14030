"""A variational autoencoder: latents, a Gaussian decoder, and two bounds on log p(x).

p(x) = integral of N(x; decode(z), std^2 I) N(z; 0, I) dz, which nobody integrates; an
encoder proposes the z that matter.
"""

from __future__ import annotations

from math import log, pi

import torch
from torch import Tensor, nn

from diffedu.errors import require, require_same_shape
from diffedu.families.cost import mlp, require_points
from diffedu.tensors import normal_like


def gaussian_log_prob(x: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """log N(x; mean, diag(exp(log_std)^2)) in nats, summed over the last axis.

    The three broadcast to (..., D); the result has shape (...).
    """
    squares = ((x - mean) * torch.exp(-log_std)).square() + 2 * log_std + log(2 * pi)
    return -0.5 * squares.sum(-1)


def standard_kl(mean: Tensor, log_std: Tensor) -> Tensor:
    """KL(N(mean, exp(log_std)^2) || N(0, 1)) of each element, in nats.

    Both of one shape, which is the result's (arXiv 1312.6114, appendix B).
    """
    return 0.5 * (mean.square() + torch.expm1(2 * log_std) - 2 * log_std)


class VAE(nn.Module):
    """A VAE for vectors, with a Gaussian encoder and a Gaussian decoder.

    The decoder's standard deviation is one number for all elements. Learning it
    balances the two terms of the bound (arXiv 2006.13202), but it must start small:
    where it starts as wide as the data, latents are useless and stay so.

    Args:
        dim: length of x.
        latent: length of z.
        width: number of hidden features of both networks.
        depth: number of hidden layers of both networks.
        std: the decoder's standard deviation, or where it starts if it is learned.
        learn_std: whether it is learned.

    Raises:
        ValueError: if a number is not above 0.
    """

    def __init__(
        self,
        dim: int = 2,
        latent: int = 2,
        width: int = 64,
        depth: int = 2,
        std: float = 0.2,
        learn_std: bool = True,
    ) -> None:
        super().__init__()
        require(std > 0, f"std must be above 0, got {std}")
        self.dim, self.latent = dim, latent
        self.encoder = mlp(dim, 2 * latent, width, depth)
        self.decoder = mlp(latent, dim, width, depth)
        start = torch.tensor(float(std)).log()
        self.log_std = nn.Parameter(start, requires_grad=learn_std)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The posterior's mean and log of its standard deviation.

        Args:
            x: shape (B, dim).

        Returns:
            two tensors of shape (B, latent).

        Raises:
            ValueError: if x has another shape.
        """
        require_points(x, self.dim)
        mean, log_std = self.encoder(x).chunk(2, dim=1)
        return mean, log_std

    def log_joint(self, x: Tensor, z: Tensor) -> Tensor:
        """log p(x | z) + log p(z) in nats.

        Args:
            x: shape (B, dim).
            z: shape (..., B, latent).

        Returns:
            shape (..., B).
        """
        seen = gaussian_log_prob(x, self.decoder(z), self.log_std)
        return seen + gaussian_log_prob(z, z.new_zeros(()), z.new_zeros(()))

    def elbo(
        self,
        x: Tensor,
        generator: torch.Generator | None = None,
        noise: Tensor | None = None,
    ) -> Tensor:
        """A lower bound on log p(x): one latent a sample, the KL term exact.

        Args:
            x: shape (B, dim).
            generator: source of the noise.
            noise: standard noise, shape (B, latent); fresh unless given.

        Returns:
            nats, shape (B,).

        Raises:
            ValueError: if a shape does not fit.

        Source: (arXiv 1312.6114, eq. 10).
        """
        mean, log_std = self.encode(x)
        z = mean + log_std.exp() * _noise(mean, generator, noise)
        seen = gaussian_log_prob(x, self.decoder(z), self.log_std)
        return seen - standard_kl(mean, log_std).sum(1)

    def importance_bound(
        self,
        x: Tensor,
        draws: int = 64,
        generator: torch.Generator | None = None,
        noise: Tensor | None = None,
    ) -> Tensor:
        """log of the mean of p(x, z) / q(z | x) over several z: a tighter bound.

        On average it rises with the number of draws, and its limit is log p(x).

        Args:
            x: shape (B, dim).
            draws: how many latents a sample.
            generator: source of the noise.
            noise: standard noise, shape (draws, B, latent); fresh unless given.

        Returns:
            nats, shape (B,).

        Raises:
            ValueError: if a shape does not fit, or draws is below 1.

        Source: (arXiv 1509.00519).
        """
        require(draws >= 1, f"draws must be at least 1, got {draws}")
        mean, log_std = self.encode(x)
        eps = _noise(mean.expand(draws, *mean.shape), generator, noise)
        z = mean + log_std.exp() * eps
        log_ratio = self.log_joint(x, z) - gaussian_log_prob(z, mean, log_std)
        return log_ratio.logsumexp(0) - log(draws)

    def loss(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """The negative bound, in nats: the mean over x of shape (B, dim), shape ()."""
        return -self.elbo(x, generator).mean()

    @torch.no_grad()
    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw n points, the decoder's noise included: shape (n, dim)."""
        require(n >= 1, f"cannot draw {n} samples")
        like = self.log_std
        z = _noise(like.new_empty(n, self.latent), generator)
        x = self.decoder(z)
        return x + like.exp() * _noise(x, generator)


def _noise(
    like: Tensor, generator: torch.Generator | None, given: Tensor | None = None
) -> Tensor:
    """Standard noise of the shape, dtype and device of `like`, unless given."""
    if given is None:
        return normal_like(like, generator)
    require_same_shape(like, given, "the latent and noise")
    return given
