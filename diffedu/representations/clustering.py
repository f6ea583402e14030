"""k-means from scratch: groups of pixels that no label told apart."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from diffedu.errors import require, require_finite


@dataclass(frozen=True)
class KMeans:
    """Clusters that were found.

    `centres` (k, D); `labels` (N,) int64, the cluster of each row; `inertia`, the sum
    of squared distances to the own centre; `steps`, how many it took.
    """

    centres: Tensor
    labels: Tensor
    inertia: float
    steps: int

    def predict(self, x: Tensor) -> Tensor:
        """The nearest centre (N,) of each row of x (N, D)."""
        return squared_distances(x, self.centres).argmin(1)


def squared_distances(x: Tensor, centres: Tensor) -> Tensor:
    """Squared distances (N, k) of rows x (N, D) to centres (k, D), never below 0."""
    lengths = x.square().sum(1, keepdim=True) + centres.square().sum(1)
    return (lengths - 2 * x @ centres.T).clamp(min=0)


def kmeans(
    x: Tensor,
    k: int,
    *,
    restarts: int = 4,
    steps: int = 100,
    generator: torch.Generator | None = None,
) -> KMeans:
    """Lloyd's algorithm from k-means++ starts; the best of several.

    Args:
        x: rows, shape (N, D), N at least k.
        k: number of clusters.
        restarts: how many starts; the lowest inertia is kept.
        steps: the most steps a start takes; it ends where nothing moves.
        generator: source of the starts.

    Returns:
        a KMeans.

    Raises:
        ValueError: if x is no finite (N, D), or a number is out of range.
    """
    require(x.dim() == 2, f"rows are (N, D), got {tuple(x.shape)}; try as_pixels")
    require(1 <= k <= len(x), f"k is {k} for {len(x)} rows; take 1 to {len(x)}")
    require(restarts >= 1 and steps >= 1, "restarts and steps must be 1 or more")
    require_finite(x, "x")
    found = [_lloyd(x, plus_plus(x, k, generator), steps) for _ in range(restarts)]
    return min(found, key=lambda each: each.inertia)


def plus_plus(x: Tensor, k: int, generator: torch.Generator | None = None) -> Tensor:
    """Starting centres (k, D): rows of x (N, D), drawn far from those drawn before.

    Each row's chance is proportional to its squared distance to the nearest centre so
    far (Arthur and Vassilvitskii, 2007).
    """
    first = torch.randint(len(x), (1,), generator=generator)
    chosen = [x[first]]
    nearest = squared_distances(x, chosen[0])[:, 0]
    for _ in range(k - 1):
        # where all rows lie on centres already, any row will do
        weight = nearest if bool(nearest.sum() > 0) else torch.ones_like(nearest)
        # inverse of the cumulative sum: multinomial refuses more than 2^24 rows
        total = weight.double().cumsum(0)
        dart = torch.rand(1, generator=generator, dtype=torch.float64) * total[-1]
        row = torch.searchsorted(total, dart, right=True).clamp(max=len(x) - 1)
        chosen.append(x[row])
        nearest = torch.minimum(nearest, squared_distances(x, chosen[-1])[:, 0])
    return torch.cat(chosen)


def kmeans_step(x: Tensor, centres: Tensor) -> tuple[Tensor, Tensor]:
    """One step of Lloyd's: to the nearest centre, then each centre to its rows' mean.

    Args:
        x: shape (N, D).
        centres: shape (k, D).

    Returns:
        labels (N,) and new centres (k, D); a centre without rows stays where it is.
    """
    labels = squared_distances(x, centres).argmin(1)
    counts = torch.bincount(labels, minlength=len(centres))[:, None]
    sums = torch.zeros_like(centres).index_add_(0, labels, x)
    return labels, torch.where(counts > 0, sums / counts.clamp(min=1), centres)


def _lloyd(x: Tensor, centres: Tensor, steps: int) -> KMeans:
    """Steps from given centres until nothing moves; inertia of the last centres."""
    labels, taken = torch.full((len(x),), -1), 0
    while taken < steps:
        taken += 1
        new, centres = kmeans_step(x, centres)
        if torch.equal(new, labels):
            break
        labels = new
    low, labels = squared_distances(x, centres).min(1)
    return KMeans(centres, labels, float(low.double().sum()), taken)
