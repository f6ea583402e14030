"""Quality and diversity apart: precision and recall, and coverage of known modes.

One distance can't say which of the two a sampler lacks; guidance trades one for the
other, and these show both.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import require, require_finite, require_same_device
from .inputs import check_features, check_neighbours, check_pair, double, like_input
from .pairs import distances, row_blocks


class PrecisionRecall(NamedTuple):
    """Precision and recall, each of shape () and from 0 to 1."""

    precision: Tensor
    recall: Tensor


def precision_recall(real: Tensor, fake: Tensor, k: int = 3) -> PrecisionRecall:
    """How much of fake lies within real's manifold (precision), and the reverse.

    The manifold of a set is the union of balls around its samples, each as large as
    the distance to its k-th nearest neighbour in the set. Both values depend on n
    and k, and one outlier widens a manifold: compare at equal n, k and features.

    Args:
        real: features, shape (N, D).
        fake: features, shape (M, D).
        k: the neighbour that sets a radius, 1 <= k < min(N, M).

    Returns:
        (precision, recall), each of shape ().

    Raises:
        TypeError: if the features are no floating-point tensors.
        ValueError: if their shapes don't fit, k is no neighbour, or not finite.

    Source: (1904.06991, eq. 1 and eq. 2).
    """
    check_pair(real, fake, "real and fake")
    check_neighbours(k, min(len(real), len(fake)))
    x, y = double(real), double(fake)
    precision, recall = _share_within(y, x, k), _share_within(x, y, k)
    return PrecisionRecall(
        like_input(precision, real, fake), like_input(recall, real, fake)
    )


class ModeCoverage(NamedTuple):
    """How many samples lie at a mode, how they are shared out, how many modes are met.

    `quality` (): share of samples within the radius of their nearest mode;
    `shares` (K,): share of all samples at each mode; `covered` (): share of modes
    that have a sample.
    """

    quality: Tensor
    shares: Tensor
    covered: Tensor


def mode_coverage(x: Tensor, modes: Tensor, radius: float) -> ModeCoverage:
    """Whether samples of a mixture with known means lie at them, and at all of them.

    Args:
        x: samples, shape (N, D).
        modes: the mixture's means, shape (K, D).
        radius: how far from its mode a sample may lie; of a 2-D component with
            standard deviation s, 3 s holds 98.9 % of it.

    Returns:
        (quality, shares, covered).

    Raises:
        TypeError: if the inputs are no floating-point tensors.
        ValueError: if the shapes don't fit, a value is not finite, or radius <= 0.
    """
    check_features(x, "x", least=1)
    check_features(modes, "modes", least=1)
    require(
        x.shape[1] == modes.shape[1],
        f"x has {x.shape[1]} columns but modes has {modes.shape[1]}; D must be equal",
    )
    require_same_device(x, modes, "x and modes")
    require(radius > 0, f"radius is {radius}; it must be above 0")
    distance, nearest = distances(double(x), double(modes)).min(1)
    hits = nearest[distance <= radius]
    shares = torch.bincount(hits, minlength=len(modes)).double() / len(x)
    values = shares.sum(), shares, (shares > 0).double().mean()
    return ModeCoverage(*(like_input(value, x, modes) for value in values))


def neighbour_radii(x: Tensor, k: int) -> Tensor:
    """Each sample's distance to its k-th nearest other sample, in blocks.

    Args:
        x: features, shape (N, D).
        k: which neighbour, 1 <= k < N.

    Returns:
        shape (N,).

    Raises:
        ValueError: if x holds NaN or infinity, or k is no neighbour.
    """
    require_finite(x, "x")
    check_neighbours(k, len(x))
    # A sample is its own nearest (distance 0), hence k + 1.
    radii = [
        distances(x[rows], x).kthvalue(k + 1, dim=1).values
        for rows in row_blocks(len(x), len(x))
    ]
    return torch.cat(radii)


def _share_within(x: Tensor, manifold: Tensor, k: int) -> Tensor:
    """The share of x (N, D) that lies in a ball of the manifold (M, D): shape ()."""
    radii = neighbour_radii(manifold, k)
    inside = [
        (distances(x[rows], manifold) <= radii).any(1)
        for rows in row_blocks(len(x), len(manifold))
    ]
    return torch.cat(inside).double().mean()
