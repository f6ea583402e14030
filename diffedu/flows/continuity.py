"""Does a velocity carry a density along? The continuity equation, measured."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from diffedu.errors import require

Density = Callable[[Tensor, float], Tensor]
Velocity = Callable[[Tensor, float], Tensor]


def continuity_residual(
    log_density: Density, velocity: Velocity, x: Tensor, t: float, h: float = 1e-5
) -> Tensor:
    """d log p/dt + velocity . grad log p + div velocity: 0 where p is carried along.

    It is the continuity equation dp/dt + div(p velocity) = 0, divided by p. The rate
    in time is a central difference, the rest is automatic differentiation, with D
    passes for the divergence.

    Args:
        log_density: maps points (B, D) and a time to log p, shape (B,).
        velocity: maps points (B, D) and a time to dx/dt, shape (B, D).
        x: where to look, shape (B, D), best in float64.
        t: the time, at least h from 0 and 1.
        h: half the length of the difference in time.

    Returns:
        shape (B,), one over a unit of time.

    Raises:
        ValueError: if t is too close to an end.

    Source: (arXiv 2210.02747, appendix A).
    """
    require(h > 0 and h < t < 1 - h, f"need h < t < 1 - h, got t={t}, h={h}")
    later, earlier = log_density(x, t + h), log_density(x, t - h)
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        (slope,) = torch.autograd.grad(log_density(x, t).sum(), x)
        u = velocity(x, t)
        divergence = sum(
            torch.autograd.grad(u[:, i].sum(), x, retain_graph=True)[0][:, i]
            for i in range(x.shape[1])
        )
    carried = (u * slope).sum(1) + divergence
    return ((later - earlier) / (2 * h) + carried).detach()
