"""An energy-based model: any function is a density up to its constant.

Its gradient of the likelihood needs samples of the model, which Langevin chains give;
in two dimensions a grid gives the constant, so that its likelihood can be checked.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from diffedu.errors import require, require_same_shape
from diffedu.families.cost import mlp, require_points
from diffedu.tensors import normal_like

EnergyFunction = Callable[[Tensor], Tensor]


class EnergyModel(nn.Module):
    """E(x) = net(x) + |x|^2 / 2, a density exp(-E) / Z.

    The bowl |x|^2 / 2 keeps Z finite: the network grows at most linearly.

    Args:
        dim: length of x.
        width: number of hidden features.
        depth: number of hidden layers.

    Raises:
        ValueError: if one of the numbers is not a whole one above 0.
    """

    def __init__(self, dim: int = 2, width: int = 64, depth: int = 2) -> None:
        super().__init__()
        self.dim = dim
        self.net = mlp(dim, 1, width, depth)

    def forward(self, x: Tensor) -> Tensor:
        """E(x) in nats, shape (B,), for x of shape (B, dim)."""
        require_points(x, self.dim)
        return self.net(x)[:, 0] + x.square().sum(1) / 2

    @torch.no_grad()
    def log_partition(self, limit: float = 4.0, points: int = 400) -> Tensor:
        """log Z by the midpoint rule on [-limit, limit]^dim, in float64, shape ().

        Args:
            limit: half the side of the box.
            points: cells along an axis.

        Raises:
            ValueError: for dim above 2, where a grid takes too many cells.
        """
        require(
            self.dim <= 2,
            f"a grid of {points} cells an axis has {points}^{self.dim} cells; "
            "log_partition is for dim 1 and 2",
        )
        require(limit > 0 and points >= 1, "limit and points must be above 0")
        like = next(self.parameters())
        cell = 2 * limit / points
        axis = -limit + cell * (torch.arange(points, dtype=torch.float64) + 0.5)
        grid = torch.cartesian_prod(*[axis] * self.dim).reshape(-1, self.dim)
        energies = [self(part.to(like)).double() for part in grid.split(2**16)]
        volume = self.dim * torch.tensor(cell, dtype=torch.float64).log()
        return (-torch.cat(energies)).logsumexp(0) + volume


def contrastive_loss(energy: EnergyFunction, real: Tensor, fake: Tensor) -> Tensor:
    """mean E(real) - mean E(fake), shape (): its gradient is that of -log p.

    Its value is no likelihood, and falling is not what it does when training works.

    Args:
        energy: maps (B, D) to (B,).
        real: data, shape (B, D).
        fake: samples of the model, shape (M, D); no gradient flows into them.

    Source: (arXiv 1903.08689, section 3).
    """
    return energy(real).mean() - energy(fake.detach()).mean()


def langevin(
    energy: EnergyFunction,
    x: Tensor,
    step: float,
    steps: int,
    generator: torch.Generator | None = None,
    noise: Tensor | None = None,
) -> Tensor:
    """x <- x - step grad E(x) + sqrt(2 step) z, a number of times.

    Args:
        energy: maps (B, D) to (B,), row by row.
        x: where the chains start, shape (B, D).
        step: size of a step, above 0.
        steps: how many, at least 1.
        generator: source of z.
        noise: z, shape (steps, B, D); fresh unless given.

    Returns:
        where the chains end, shape (B, D), without a gradient.

    Raises:
        ValueError: if a number is out of range or the noise has another shape.

    Source: (arXiv 1903.08689, section 3, whose step size is twice this one).
    """
    require(step > 0 and steps >= 1, f"got step={step} and steps={steps}; above 0 both")
    if noise is not None:
        require_same_shape(x.expand(steps, *x.shape), noise, "the chains and noise")
    x = x.detach()
    for i in range(steps):
        z = normal_like(x, generator) if noise is None else noise[i]
        x = x - step * slope(energy, x) + (2 * step) ** 0.5 * z
    return x


def slope(energy: EnergyFunction, x: Tensor) -> Tensor:
    """grad E at x (B, D), for E of each row: (B, D), without a gradient of its own."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        return torch.autograd.grad(energy(x).sum(), x)[0]


class Chains:
    """Langevin chains that go on where they stopped: a sample buffer.

    Between two walks the model has changed a little, so that a few steps keep up with
    it; a small share starts anew each time, so that no region is forgotten
    (arXiv 1903.08689, section 3.2). With restart=1 every walk is a short one from
    noise.

    Args:
        size: number of chains.
        dim: length of x.
        box: chains start uniformly in [-box, box]^dim.
        restart: the share of chains that start anew at each walk, from 0 to 1.
        generator: source of starts and steps.

    Raises:
        ValueError: if a number is out of range.
    """

    def __init__(
        self,
        size: int,
        dim: int = 2,
        box: float = 2.0,
        restart: float = 0.05,
        generator: torch.Generator | None = None,
    ) -> None:
        require(size >= 1 and dim >= 1, f"got size={size} and dim={dim}; at least 1")
        require(box > 0, f"box must be above 0, got {box}")
        require(0 <= restart <= 1, f"restart is a share from 0 to 1, got {restart}")
        self.box, self.restart, self.generator = box, restart, generator
        self.x = self._start(torch.empty(size, dim))

    def _start(self, like: Tensor) -> Tensor:
        """Uniform points of the shape of `like` (N, dim)."""
        u = torch.rand(like.shape, generator=self.generator, dtype=like.dtype)
        return self.box * (2 * u - 1)

    def walk(self, energy: EnergyFunction, step: float, steps: int) -> Tensor:
        """Restart a few chains, move all of them on, and answer where they are.

        Args:
            energy: maps (B, D) to (B,).
            step: size of a Langevin step.
            steps: how many.

        Returns:
            shape (size, dim), without a gradient.
        """
        anew = torch.rand(len(self.x), generator=self.generator) < self.restart
        start = torch.where(anew[:, None], self._start(self.x), self.x)
        self.x = langevin(energy, start, step, steps, self.generator)
        return self.x
