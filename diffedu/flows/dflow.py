"""D-Flow: change the source of an ODE until its end costs little."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from diffedu.errors import require, require_finite


def d_flow(
    solve: Callable[[Tensor], Tensor],
    x1: Tensor,
    cost: Callable[[Tensor], Tensor],
    steps: int = 20,
    prior: float = 0.0,
) -> Tensor:
    """The source whose end x0 = solve(x1) costs least, by L-BFGS from x1.

    The gradient passes through the whole solve, and so is bent towards directions in
    which the flow can move its end: towards data. It finds a low cost; it doesn't
    draw from a posterior.

    The samples of a batch are coupled: L-BFGS takes one step length for all.

    Args:
        solve: maps sources (B, ...) to ends (B, ...), with gradients, such as
            `lambda x: samplers.heun(denoise, x, times)`.
        x1: where to begin, shape (B, ...), usually noise.
        cost: maps ends (B, ...) to costs, shape (B,).
        steps: iterations of L-BFGS.
        prior: weight of -log of the density of |x1|, a chi distribution for noise.

    Returns:
        the sources found, shape (B, ...).

    Raises:
        ValueError: for steps below 1, a negative prior, a cost of another shape, or
            an end that does not depend on the source.

    Source: (arXiv 2402.14017, algorithm 1).
    """
    require(steps >= 1 and prior >= 0, "need steps >= 1 and prior >= 0")
    require_finite(x1, "x1")
    x1 = x1.detach().clone().requires_grad_()
    search = torch.optim.LBFGS([x1], max_iter=steps, line_search_fn="strong_wolfe")

    def total() -> Tensor:
        search.zero_grad()
        ends = solve(x1)
        require(ends.requires_grad, "solve(x1) has no gradient; look for no_grad")
        costs = cost(ends)
        require(costs.shape == (len(x1),), f"cost needs (B,), got {costs.shape}")
        loss = costs.sum() + prior * _surprise(x1).sum() if prior else costs.sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        search.step(total)
    return x1.detach()


def _surprise(x1: Tensor) -> Tensor:
    """-log of chi's density at the length of each source, less a constant: (B,)."""
    square = x1.flatten(1).square().sum(1)
    return square / 2 - (x1[0].numel() - 1) * square.clamp(min=1e-12).log() / 2
