"""Stochastic interpolants: a path between two data sets, with noise on the way.

x_t = a x0 + b x1 + gamma z. One regression learns E[a' x0 + b' x1 | x_t], a second
E[z | x_t]; together they are the velocity of an ODE, the score, and so a whole family
of SDEs with the same marginals.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from math import pi
from typing import NamedTuple

import torch
from torch import Tensor, nn

from diffedu.errors import lookup, require, require_same_shape
from diffedu.samplers.walk import checked_times
from diffedu.tensors import batch_mean, normal_like, per_sample


class Motion(NamedTuple):
    """What moves x_t: the velocity of the ODE and the score, both of x's shape."""

    velocity: Tensor
    score: Tensor


def _linear(t: Tensor) -> tuple[Tensor, ...]:
    return 1 - t, t, -torch.ones_like(t), torch.ones_like(t)


def _trigonometric(t: Tensor) -> tuple[Tensor, ...]:
    angle = pi / 2 * t
    cos, sin = angle.cos(), angle.sin()
    return cos, sin, -pi / 2 * sin, pi / 2 * cos


WEIGHTS = {"linear": _linear, "trigonometric": _trigonometric}


@dataclass(frozen=True)
class Interpolant:
    """x_t = a(t) x0 + b(t) x1 + gamma(t) z with gamma = noise sqrt(t (1 - t)).

    Args:
        noise: how much noise is put in on the way; 0 is flow matching between pairs.
        weights: "linear", 1 - t and t, or "trigonometric", cos and sin of pi t / 2.

    Raises:
        ValueError: for negative noise or unknown weights.

    Source: (arXiv 2303.08797, section 4); gamma without noise, (arXiv 2209.15571).
    """

    noise: float = 0.0
    weights: str = "linear"

    def __post_init__(self) -> None:
        require(self.noise >= 0, f"noise must be 0 or more, got {self.noise}")
        lookup(WEIGHTS, self.weights, "weights")

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """a, b and gamma at t, each of t's shape () or (B,)."""
        a, b, *_ = WEIGHTS[self.weights](t)
        return a, b, self.noise * (t * (1 - t)).clamp(min=0).sqrt()

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """a', b' and gamma gamma', which is finite where gamma' is not: t's shape."""
        *_, a_rate, b_rate = WEIGHTS[self.weights](t)
        return a_rate, b_rate, self.noise**2 * (0.5 - t)

    def at(self, x0: Tensor, x1: Tensor, t: Tensor, z: Tensor) -> Tensor:
        """x_t for x0, x1 and z of shape (B, ...), t of shape () or (B,)."""
        a, b, gamma = (per_sample(c, x0).to(x0) for c in self.coefficients(t))
        return a * x0 + b * x1 + gamma * z


class InterpolantNet(nn.Module):
    """A network of both regressions: called as `field(x, t)`, it answers a Motion.

    Args:
        net: called as `net(x, t)`; its first half of channels is the estimate of
            a' x0 + b' x1, its second half that of z.
        interpolant: the path.
    """

    def __init__(self, net: nn.Module, interpolant: Interpolant) -> None:
        super().__init__()
        self.net, self.interpolant = net, interpolant

    def means(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """E[a' x0 + b' x1 | x_t] and E[z | x_t], each of x's shape (B, ...)."""
        return self.net(x, t.to(x).expand(len(x))).chunk(2, dim=1)

    def forward(self, x: Tensor, t: Tensor) -> Motion:
        """Velocity and score at x (B, ...) and t () or (B,), strictly inside (0, 1).

        Source: (arXiv 2303.08797, section 2): score = -E[z | x] / gamma, and the
        velocity is the first mean plus gamma' E[z | x].
        """
        between = bool(((t > 0) & (t < 1)).all())
        noisy = self.interpolant.noise > 0
        require(between and noisy, "a score needs noise > 0 and t inside (0, 1)")
        drift, z = self.means(x, t)
        gamma = per_sample(self.interpolant.coefficients(t)[2], x).to(x)
        heat = per_sample(self.interpolant.rates(t)[2], x).to(x)
        score = -z / gamma
        return Motion(drift - heat * score, score)


def interpolant_loss(
    field: InterpolantNet,
    x0: Tensor,
    x1: Tensor,
    t: Tensor | None = None,
    z: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Both regressions at once, the squared errors added: shape ().

    Args:
        field: the network.
        x0: what stands at t = 0, shape (B, ...).
        x1: what stands at t = 1, shape of x0.
        t: times, shape (B,) or (); uniform unless given.
        z: noise, shape of x0; fresh unless given.
        generator: source of times and noise.

    Raises:
        ValueError: if x0 and x1 differ in shape.

    Source: (arXiv 2303.08797, section 2), the losses of v and of the denoiser.
    """
    require_same_shape(x0, x1, "x0 and x1")
    if t is None:
        device = generator.device if generator is not None else x0.device
        t = torch.rand(len(x0), generator=generator, device=device).to(x0)
    z = normal_like(x0, generator) if z is None else z
    a_rate, b_rate, _ = field.interpolant.rates(t)
    target = per_sample(a_rate, x0) * x0 + per_sample(b_rate, x0) * x1
    drift, seen = field.means(field.interpolant.at(x0, x1, t, z), t)
    both = (drift - target).square() + (seen - z).square()
    return batch_mean(both).mean()


def interpolant_sample(
    field: Callable[[Tensor, Tensor], Motion],
    x1: Tensor,
    times: Tensor,
    diffusion: float | Callable[[Tensor], Tensor | float] = 0.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """From x1 to x0 by the SDE of the chosen diffusion, or by the ODE at 0.

    Every step is x - h (velocity - diffusion score) + sqrt(2 diffusion h) z, since
    time falls. Each diffusion has the same marginals.

    Args:
        field: answers a Motion at x and t: a MixtureBridge or an InterpolantNet.
        x1: where to start, shape (B, ...).
        times: falling, shape (steps + 1,).
        diffusion: a number, or a function of t (), that is 0 or more.
        generator: source of noise.

    Returns:
        where the walk ends, shape (B, ...); without gradients.

    Source: (arXiv 2303.08797, section 2), the backward SDE, by Euler's method.
    """
    for x in _walk(field, x1, times, diffusion, generator):
        end = x
    return end


@torch.no_grad()
def _walk(
    field: Callable[[Tensor, Tensor], Motion],
    x: Tensor,
    times: Tensor,
    diffusion: float | Callable[[Tensor], Tensor | float],
    generator: torch.Generator | None,
) -> Iterator[Tensor]:
    for t, s in pairwise(checked_times(times).unbind()):
        h, size = (t - s).item(), diffusion(t) if callable(diffusion) else diffusion
        size = float(size)
        require(size >= 0, f"diffusion must be 0 or more, got {size} at t={t:g}")
        motion = field(x, t)
        x = x - h * motion.velocity
        if size > 0:
            fresh = normal_like(x, generator)
            x = x + h * size * motion.score + (2 * size * h) ** 0.5 * fresh
        yield x
