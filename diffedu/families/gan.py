"""A generative adversarial network: a generator, a judge, and the game between them.

It has no likelihood: samples are all it gives. The game needs a loop of its own, since
`training.fit` lowers one loss in all parameters, and here each player has another one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from diffedu.errors import require
from diffedu.families.cost import mlp
from diffedu.nets.conditions import require_positive
from diffedu.tensors import normal_like
from diffedu.training.optimise import EMA


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """-log D(x) - log(1 - D(g(z))), each a mean, in nats, shape ().

    Args:
        real: logits of data, any shape; D is their sigmoid.
        fake: logits of samples, any shape.

    Source: (arXiv 1406.2661, eq. 1, with its sign turned).
    """
    return softplus(-real).mean() + softplus(fake).mean()


def generator_loss(fake: Tensor, saturating: bool = False) -> Tensor:
    """-log D(g(z)), or log(1 - D(g(z))) as in the minimax game, mean, shape ().

    The second one's gradient fades where the discriminator is sure.

    Args:
        fake: logits of samples, any shape.
        saturating: whether to take the minimax loss.

    Source: (arXiv 1406.2661, section 3).
    """
    return -softplus(fake).mean() if saturating else softplus(-fake).mean()


def gradient_penalty(discriminator: nn.Module, real: Tensor) -> Tensor:
    """The mean squared length of the logit's gradient at data: R1, without gamma/2.

    Args:
        discriminator: maps (B, D) to logits, (B, 1) or (B,).
        real: data, shape (B, D).

    Returns:
        shape (), differentiable in the discriminator's weights.

    Source: (arXiv 1801.04406, section 4).
    """
    with torch.enable_grad():
        x = real.detach().requires_grad_()
        logits = discriminator(x).sum()
        (slope,) = torch.autograd.grad(logits, x, create_graph=True)
    return slope.flatten(1).square().sum(1).mean()


class GAN(nn.Module):
    """A generator and a discriminator for vectors.

    Args:
        dim: length of x.
        latent: length of z.
        width: number of hidden features of both networks.
        depth: number of hidden layers of both networks.

    Raises:
        ValueError: if one of the numbers is not a whole one above 0.
    """

    def __init__(
        self, dim: int = 2, latent: int = 2, width: int = 64, depth: int = 2
    ) -> None:
        super().__init__()
        self.dim, self.latent = dim, latent
        self.generator = mlp(latent, dim, width, depth)
        self.discriminator = mlp(dim, 1, width, depth)

    def forward(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Make n points that a gradient can flow through, shape (n, dim)."""
        require(n >= 1, f"cannot draw {n} samples")
        like = next(self.parameters())
        return self.generator(normal_like(like.new_empty(n, self.latent), generator))

    @torch.no_grad()
    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw n points, shape (n, dim)."""
        return self(n, generator)


@dataclass
class Round:
    """One round of the game.

    Attributes:
        step: rounds done, 1 to the number asked for.
        model: a GAN whose generator's weights are averaged; it goes on changing.
        discriminator_loss: in nats, without the penalty.
        generator_loss: in nats.
        penalty: R1's mean squared gradient, without gamma/2; 0 if there is none.
    """

    step: int
    model: GAN
    discriminator_loss: float
    generator_loss: float
    penalty: float


def play(
    gan: GAN,
    batches: Callable[[int], Tensor],
    steps: int = 2000,
    lr: float = 1e-3,
    gamma: float = 1.0,
    saturating: bool = False,
    ema: float = 0.99,
    generator: torch.Generator | None = None,
) -> Iterator[Round]:
    """Train both players, one round for each turn of the caller's loop.

    A round is one step of the discriminator and then one of the generator, by Adam
    without momentum, which a game's rotating gradients turn into swings.

    Args:
        gan: what is trained, in place.
        batches: from the step to data, shape (B, dim).
        steps: number of rounds.
        lr: learning rate of both players.
        gamma: strength of R1, at least 0.
        saturating: whether the generator takes the minimax loss.
        ema: decay of the averaged weights.
        generator: source of z.

    Returns:
        an iterator over the `Round`s.

    Raises:
        ValueError: if a number is out of range.
    """
    require_positive(steps=steps)
    require(gamma >= 0, f"gamma must be at least 0, got {gamma}; 0 is no penalty")
    return _rounds(gan, batches, steps, lr, gamma, saturating, ema, generator)


def _rounds(
    gan: GAN,
    batches: Callable[[int], Tensor],
    steps: int,
    lr: float,
    gamma: float,
    saturating: bool,
    ema: float,
    generator: torch.Generator | None,
) -> Iterator[Round]:
    average = EMA(gan, ema)
    players = gan.discriminator, gan.generator
    judge, maker = (_adam(player, lr) for player in players)
    for step in range(steps):
        real = batches(step)
        fake = gan.sample(len(real), generator)
        logits = gan.discriminator(real), gan.discriminator(fake)
        judged = discriminator_loss(*logits)
        slope = judged.new_zeros(())
        if gamma:
            slope = gradient_penalty(gan.discriminator, real)
        _descend(judge, judged + gamma / 2 * slope)

        made = gan.discriminator(gan(len(real), generator))
        fooled = generator_loss(made, saturating)
        _descend(maker, fooled)
        average.update()
        numbers = judged.item(), fooled.item(), slope.item()
        yield Round(step + 1, average.module, *numbers)


def _adam(player: nn.Module, lr: float) -> torch.optim.Optimizer:
    return torch.optim.Adam(player.parameters(), lr=lr, betas=(0.0, 0.99), fused=True)


def _descend(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """One step down; only this player's gradients were cleared, and only it moves."""
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
