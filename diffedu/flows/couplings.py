"""Which x0 goes with which x1: the exact assignment, and Sinkhorn's soft one.

A coupling is a joint distribution with the two given marginals. The independent one
makes paths cross; the cheapest one doesn't.
"""

from __future__ import annotations

from math import log

import numpy as np
import torch
from torch import Tensor

from diffedu.errors import lookup, require, require_finite, require_same_shape


def squared_distances(x0: Tensor, x1: Tensor) -> Tensor:
    """|x0_i - x1_j|^2 for x0 (N, ...) and x1 (M, ...): shape (N, M), float64."""
    flat = x0.flatten(1).double(), x1.flatten(1).double()
    return torch.cdist(*flat, compute_mode="donot_use_mm_for_euclid_dist").square()


def assignment(cost: Tensor) -> Tensor:
    """The cheapest way to give each row a column of its own, exactly.

    Rows come one at a time. For each the shortest path to a free column is searched
    among reduced costs, which prices keep above 0, and pairs are exchanged along it
    (the Hungarian method in the form of Jonker and Volgenant): O(N^3).

    Args:
        cost: shape (N, N), finite.

    Returns:
        the column of each row, shape (N,), int64: a permutation.

    Raises:
        ValueError: if the cost is not square or not finite.
    """
    square = cost.dim() == 2 and cost.shape[0] == cost.shape[1] and len(cost) > 0
    require(square, f"cost needs shape (N, N) with N > 0, got {tuple(cost.shape)}")
    require_finite(cost, "cost")
    table = cost.detach().cpu().double().numpy()
    row_of, of_column = np.full(len(table), -1), np.zeros(len(table))
    of_row = np.zeros(len(table))
    for row in range(len(table)):
        free, before = _shortest_path(table, row, row_of, of_row, of_column)
        while free >= 0:  # each column on the path takes over its forerunner's row
            step = before[free]
            row_of[free] = row_of[step] if step >= 0 else row
            free = step
    columns = np.empty(len(table), dtype=np.int64)
    columns[row_of] = np.arange(len(table))
    return torch.from_numpy(columns).to(cost.device)


def _shortest_path(
    cost: np.ndarray,
    row: int,
    row_of: np.ndarray,
    of_row: np.ndarray,
    of_column: np.ndarray,
) -> tuple[int, np.ndarray]:
    """The nearest free column from a row, and the column before each on its path.

    Dijkstra's search on cost - of_row - of_column, from columns on to the rows they
    belong to; the prices change in place, so that the path costs 0 afterwards.
    """
    distance = np.full(len(cost), np.inf)
    is_open = np.ones(len(cost), dtype=bool)
    before = np.full(len(cost), -1)
    done, at, way, here = [], -1, 0.0, row
    while True:
        reached = cost[here] - of_column + (way - of_row[here])
        better = is_open & (reached < distance)
        distance[better], before[better] = reached[better], at
        at = int(np.where(is_open, distance, np.inf).argmin())
        way = distance[at]
        if row_of[at] < 0:
            break
        done.append(at)
        is_open[at], here = False, row_of[at]
    saved = way - distance[done]
    of_row[row] += way
    of_row[row_of[done]] += saved
    of_column[done] -= saved
    return at, before


def sinkhorn(cost: Tensor, temperature: float, rounds: int = 200) -> Tensor:
    """The coupling with least mean cost minus temperature times entropy.

    Rows and columns of exp(-cost / temperature) are scaled in turn until both sum to
    what they must, in logarithms, so that nothing underflows.

    Args:
        cost: shape (N, M).
        temperature: above 0, in the cost's unit; towards 0 the plan becomes an
            assignment, and needs more rounds.
        rounds: how often rows and columns are scaled.

    Returns:
        the plan, shape (N, M): columns sum to 1 / M, rows to 1 / N in the limit.

    Raises:
        ValueError: for a temperature or rounds not above 0, or a cost not finite.

    Source: Cuturi (arXiv 1306.0895).
    """
    require(temperature > 0 and rounds >= 1, "need temperature > 0 and rounds >= 1")
    require(cost.dim() == 2, f"cost needs shape (N, M), got {tuple(cost.shape)}")
    require_finite(cost, "cost")
    plan = -cost / temperature
    n, m = cost.shape
    for _ in range(rounds):
        plan = plan - plan.logsumexp(1, keepdim=True) - log(n)
        plan = plan - plan.logsumexp(0, keepdim=True) - log(m)
    return plan.exp()


def _exact(
    cost: Tensor, temperature: float, generator: torch.Generator | None
) -> Tensor:
    return assignment(cost)


def _soft(cost: Tensor, temperature: float, generator: torch.Generator | None):
    plan = sinkhorn(cost, temperature * cost.mean().item())
    return torch.multinomial(plan.to(cost), 1, generator=generator)[:, 0]


METHODS = {"exact": _exact, "sinkhorn": _soft}


def minibatch_ot(
    x0: Tensor,
    x1: Tensor,
    method: str = "exact",
    temperature: float = 0.05,
    generator: torch.Generator | None = None,
) -> Tensor:
    """x1 in the order that brings it close to x0: the batch's optimal transport.

    The samples of a batch are coupled: that is its purpose. The plan of a batch is
    not the plan of the distributions; their difference shrinks as batches grow, and
    in many dimensions slowly.

    Args:
        x0: shape (B, ...).
        x1: shape of x0.
        method: "exact", the cheapest permutation for squared distances, or
            "sinkhorn": each x0 draws a partner from the soft plan, so that some x1
            may come twice and others not at all.
        temperature: Sinkhorn's, in units of the mean squared distance.
        generator: source of Sinkhorn's draws.

    Returns:
        the partner of each x0, shape (B, ...).

    Raises:
        ValueError: for an unknown method, or shapes that differ.

    Source: (arXiv 2302.00482; arXiv 2304.14772).
    """
    choose = lookup(METHODS, method, "method")
    require_same_shape(x0, x1, "x0 and x1")
    with torch.no_grad():
        order = choose(squared_distances(x0, x1), temperature, generator)
    return x1[order.to(x1.device)]
