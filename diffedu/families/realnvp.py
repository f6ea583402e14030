"""RealNVP: an invertible network whose log-determinant is a sum, so log p is exact.

Data go in and standard noise comes out; the inverse draws samples. It is the discrete
relative of a diffusion model's probability-flow ODE.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from diffedu.errors import require
from diffedu.families.cost import mlp, require_points
from diffedu.families.vae import gaussian_log_prob
from diffedu.nets.conditions import require_positive
from diffedu.tensors import normal_like


class Coupling(nn.Module):
    """An affine coupling: some coordinates stay, and say how the others move.

    z = b x + (1 - b) (x exp(log_scale) + shift), where log_scale and shift are
    functions of b x alone (arXiv 1605.08803, eq. 9). The log-scale is a tanh times a
    learned factor, so that it starts tame.

    Args:
        mask: b, shape (D,): 1 or True for the coordinates that stay.
        width: number of hidden features.
        depth: number of hidden layers.

    Raises:
        ValueError: if the mask keeps all coordinates, or none.
    """

    def __init__(self, mask: Tensor, width: int = 64, depth: int = 2) -> None:
        super().__init__()
        mask = torch.as_tensor(mask)
        require(mask.dim() == 1, f"the mask needs shape (D,), got {tuple(mask.shape)}")
        kept = int(mask.bool().sum())
        require(
            0 < kept < len(mask),
            f"the mask keeps {kept} of {len(mask)} coordinates; some must stay and "
            "some must move",
        )
        self.register_buffer("mask", mask.bool())
        self.net = mlp(len(mask), 2 * len(mask), width, depth)
        self.reach = nn.Parameter(torch.ones(len(mask)))

    def move(self, kept: Tensor) -> tuple[Tensor, Tensor]:
        """log_scale and shift, 0 where the mask is 1, from b x: each (B, D)."""
        raw, shift = self.net(kept).chunk(2, dim=1)
        log_scale = self.reach * torch.tanh(raw)
        return log_scale.masked_fill(self.mask, 0), shift.masked_fill(self.mask, 0)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """z (B, D) and log |det dz/dx| (B,) of x (B, D)."""
        require_points(x, len(self.mask))
        log_scale, shift = self.move(x * self.mask)
        return x * log_scale.exp() + shift, log_scale.sum(1)

    def inverse(self, z: Tensor) -> Tensor:
        """The x (B, D) that the layer maps to z (B, D), exactly."""
        require_points(z, len(self.mask), "z")
        log_scale, shift = self.move(z * self.mask)
        return (z - shift) * torch.exp(-log_scale)


class RealNVP(nn.Module):
    """Couplings with alternating masks between data and standard noise.

    Args:
        dim: length of x, at least 2.
        layers: number of couplings; each coordinate moves in every second one.
        width: number of hidden features of each coupling's network.
        depth: number of its hidden layers.

    Raises:
        ValueError: if a number is not a whole one above 0, or dim is 1.
    """

    def __init__(
        self, dim: int = 2, layers: int = 8, width: int = 64, depth: int = 2
    ) -> None:
        super().__init__()
        require_positive(dim=dim, layers=layers)
        require(dim >= 2, "a coupling needs at least 2 coordinates, got dim=1")
        self.dim = dim
        even = torch.arange(dim) % 2 == 0
        masks = [even if i % 2 == 0 else ~even for i in range(layers)]
        self.couplings = nn.ModuleList(Coupling(m, width, depth) for m in masks)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """From data to noise.

        Args:
            x: shape (B, dim).

        Returns:
            z of shape (B, dim), and log |det dz/dx|, shape (B,).

        Raises:
            ValueError: if x has another shape.
        """
        log_det = x.new_zeros(x.shape[:1])
        for coupling in self.couplings:
            x, change = coupling(x)
            log_det = log_det + change
        return x, log_det

    def inverse(self, z: Tensor) -> Tensor:
        """From noise to data: shape (B, dim) both, the exact inverse of the call."""
        for coupling in reversed(self.couplings):
            z = coupling.inverse(z)
        return z

    def log_prob(self, x: Tensor) -> Tensor:
        """The exact log p(x) in nats, shape (B,), for x of shape (B, dim).

        log N(z; 0, I) + log |det dz/dx| (arXiv 1605.08803, eq. 3).
        """
        z, log_det = self(x)
        return gaussian_log_prob(z, z.new_zeros(()), z.new_zeros(())) + log_det

    def loss(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """The mean of -log p(x) in nats over x (B, dim), shape (); draws nothing."""
        return -self.log_prob(x).mean()

    @torch.no_grad()
    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw n points, shape (n, dim)."""
        require(n >= 1, f"cannot draw {n} samples")
        like = next(self.parameters())
        return self.inverse(normal_like(like.new_empty(n, self.dim), generator))
