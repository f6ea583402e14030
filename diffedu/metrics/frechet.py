"""The Frechet distance between two Gaussians fitted to features (FID's formula).

With another network's features than Inception's it is not an FID: name the features.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import require, require_finite
from .inputs import check_features, check_pair, draw_rows


def frechet_distance(a: Tensor, b: Tensor) -> Tensor:
    """The squared Frechet distance between Gaussians fitted to two sets of features.

    |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)), as FID is printed: squared, no root.

    It is biased upwards, by about c / n: two samples of size n from one Gaussian with
    covariance 1 in D dimensions lie (2 D + D (D + 1) / 2) / n apart on average, 0.22
    for D = 64 and n = 10,000. So compare only distances at equal n, print the floor
    (real against real), or use `frechet_extrapolated`; with n < D it says little.

    Args:
        a: features, shape (N, D).
        b: features, shape (M, D).

    Returns:
        shape (), float64 on the CPU, in squared units of the features.

    Raises:
        TypeError: if the features are no floating-point tensors.
        ValueError: if their shapes don't fit, fewer than 2 samples, or not finite.

    Source: (1706.08500, eq. 6).
    """
    check_pair(a, b)
    return frechet_gaussian(*mean_and_covariance(a), *mean_and_covariance(b))


def frechet_gaussian(
    mean1: Tensor, cov1: Tensor, mean2: Tensor, cov2: Tensor
) -> Tensor:
    """The squared Frechet (Wasserstein-2) distance between two Gaussians.

    The trace of (C1 C2)^(1/2) is the sum of singular values of C1^(1/2) C2^(1/2), with
    the roots from the eigenvalues of each. A covariance of deficient rank costs no
    precision then; the eigenvalues of C1 C2 itself would lose half of the digits.

    Args:
        mean1, mean2: shape (D,).
        cov1, cov2: shape (D, D), symmetric and positive semi-definite.

    Returns:
        shape (), float64 on the CPU.

    Raises:
        ValueError: if a shape is another, a value not finite, or a matrix is not
            symmetric or has an eigenvalue below 0.

    Source: (1706.08500, eq. 6).
    """
    require(
        mean1.dim() == 1 and mean1.shape == mean2.shape,
        f"the means have shapes {tuple(mean1.shape)} and {tuple(mean2.shape)}; "
        "both must be (D,)",
    )
    mean1, mean2 = (x.detach().cpu().double() for x in (mean1, mean2))
    root1, root2 = (_root(_checked(c, len(mean1))) for c in (cov1, cov2))
    require_finite(mean1 - mean2, "the difference of the means")
    traces = root1.square().sum() + root2.square().sum()
    overlap = torch.linalg.svdvals(root1 @ root2).sum()
    # Never below 0 but for rounding.
    return ((mean1 - mean2).square().sum() + traces - 2 * overlap).clamp(min=0)


def frechet_extrapolated(
    a: Tensor, b: Tensor, points: int = 15, generator: torch.Generator | None = None
) -> Tensor:
    """The Frechet distance at infinite n: the intercept of a line in 1/n.

    Random parts of both sets, from a fifth to all of each, are compared, and a line in
    1/fraction fitted. (The paper takes parts of the generated set alone; taking both
    removes the real set's bias too.) What is left of the bias is of order 1/n^2; the
    result may be below 0.

    Args:
        a: features, shape (N, D), N >= 20.
        b: features, shape (M, D), M >= 20.
        points: how many sizes, at least 2.
        generator: draws the parts.

    Returns:
        shape (), float64 on the CPU.

    Raises:
        TypeError, ValueError: as `frechet_distance`, or if `points` < 2.

    Source: (1911.07023).
    """
    check_pair(a, b, least=20)
    require(points >= 2, f"points is {points}; a line needs at least 2")
    fractions = torch.linspace(0.2, 1, points, dtype=torch.float64)
    values = [_at_fraction(a, b, float(f), generator) for f in fractions]
    design = torch.stack([torch.ones_like(fractions), 1 / fractions], dim=1)
    return torch.linalg.lstsq(design, torch.stack(values)[:, None]).solution[0, 0]


def mean_and_covariance(x: Tensor) -> tuple[Tensor, Tensor]:
    """The mean and unbiased covariance of features, in float64 on the CPU.

    Args:
        x: features, shape (N, D), N >= 2.

    Returns:
        the mean (D,), and the covariance (D, D) with N - 1 in its denominator.

    Raises:
        TypeError, ValueError: if x is no such tensor or not finite.
    """
    check_features(x, "x")
    x = x.detach().cpu().double()
    mean = x.mean(0)
    return mean, (x - mean).T @ (x - mean) / (len(x) - 1)


def _root(cov: Tensor) -> Tensor:
    """A matrix R (D, D) with R^2 = cov, symmetric."""
    values, vectors = torch.linalg.eigh(cov)
    lowest, size = float(values[0]), float(values.abs().max())
    require(
        lowest >= -1e-6 * size,
        f"a covariance has the eigenvalue {lowest:.3g}; none may be below 0",
    )
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T


def _checked(cov: Tensor, d: int) -> Tensor:
    """The covariance in float64 on the CPU, or an error that says what it lacks."""
    cov = cov.detach().cpu().double()
    require(
        cov.shape == (d, d),
        f"a covariance has shape {tuple(cov.shape)}; with means of {d} it is {(d, d)}",
    )
    require_finite(cov, "a covariance")
    skew = float((cov - cov.T).abs().max())
    require(
        skew <= 1e-6 * float(cov.abs().max()),
        f"a covariance differs from its transpose by {skew:.3g}; it must be symmetric",
    )
    return (cov + cov.T) / 2


def _at_fraction(
    a: Tensor, b: Tensor, fraction: float, generator: torch.Generator | None
) -> Tensor:
    """The distance between random parts, this fraction of each set."""
    parts = [draw_rows(x, round(fraction * len(x)), generator) for x in (a, b)]
    return frechet_distance(*parts)
