"""How alike two representations of the same samples are: CKA and CKNNA.

Row i of both feature sets must come from the same sample; the widths may differ.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..errors import lookup, require
from .inputs import check_neighbours, check_pair, double, like_input
from .pairs import row_blocks

Gram = Callable[[Tensor, Tensor], Tensor]


def cka(a: Tensor, b: Tensor, kernel: str = "linear", bandwidth: float = 1.0) -> Tensor:
    """Centred kernel alignment with the unbiased HSIC, from -1 to 1.

    1 for features equal up to rotation, scale and shift; 0 on average for unrelated
    ones, at any width. (The biased form tends to 1 there when D exceeds N.)

    Args:
        a: features, shape (N, D), N >= 4.
        b: features, shape (N, E), row i from the same sample.
        kernel: "linear", or "rbf": exp(-|x - y|^2 / (2 h^2)).
        bandwidth: h of "rbf", in units of the median distance within each set.

    Returns:
        shape (), in the features' dtype (summed in float64).

    Raises:
        TypeError: if the features are no floating-point tensors.
        ValueError: if the shapes don't fit, fewer than 4 samples, not finite, all rows
            equal, the kernel unknown, or the bandwidth not above 0.

    Source: (1905.00414, eq. 4) with (2010.15327, eq. 3).
    """
    _check_paired(a, b)
    require(bandwidth > 0, f"bandwidth is {bandwidth}; it must be above 0")
    make = lookup({"linear": _linear, "rbf": _rbf}, kernel, "kernel")
    x, y = (double(z) - double(z).mean(0) for z in (a, b))
    gram_x, gram_y = make(x, bandwidth), make(y, bandwidth)
    cross = _hsic(gram_x, gram_y, x, y)
    own = _hsic(gram_x, gram_x, x, x), _hsic(gram_y, gram_y, y, y)
    return like_input(_normalised(cross, *own), a, b)


def cknna(a: Tensor, b: Tensor, k: int = 10, normalize: bool = True) -> Tensor:
    """CKA that looks only at pairs who are near neighbours in both representations.

    Of each row of both kernels (inner products) only the neighbours shared by a and b,
    among the k nearest of each, are kept, and the unbiased HSIC of what is left is
    normalised as in CKA. With k = N - 1 it is CKA of the features as used here.
    This is the order of the authors' released code, which others' numbers follow: it
    masks first and centres then. Neighbourhood is not mutual, so swapping a and b
    changes the value a little (.003 of .58 for 40 samples, less for more).

    Args:
        a: features, shape (N, D), N >= 4.
        b: features, shape (N, E), row i from the same sample.
        k: how many neighbours, 2 <= k < N.
        normalize: scale every row to length 1 first, as the authors do; else nearness
            is the bare inner product.

    Returns:
        shape (), in the features' dtype (summed in float64).

    Raises:
        TypeError: if the features are no floating-point tensors.
        ValueError: if the shapes don't fit, fewer than 4 samples, not finite, k out of
            range, or too few neighbours to normalise by.

    Source: (2405.07987).
    """
    _check_paired(a, b)
    check_neighbours(k, len(a))
    require(k >= 2, f"k is {k}; CKNNA needs at least 2 neighbours")
    x, y = double(a), double(b)
    if normalize:
        x, y = (torch.nn.functional.normalize(z, dim=1) for z in (x, y))
    near_x, near_y = _nearest(x, k), _nearest(y, k)
    cross = _masked_hsic(x, y, _common(near_x, near_y))
    own = _masked_hsic(x, x, _edges(near_x)), _masked_hsic(y, y, _edges(near_y))
    return like_input(_normalised(cross, *own), a, b)


def _check_paired(a: Tensor, b: Tensor) -> None:
    """Raise unless rows belong together, 4 or more, and not all equal."""
    check_pair(a, b, least=4, paired=True)
    for x, name in ((a, "a"), (b, "b")):
        require(
            bool((x != x[0]).any()),
            f"all rows of {name} are equal: there is no similarity to compare",
        )


def _normalised(cross: Tensor, own_a: Tensor, own_b: Tensor) -> Tensor:
    """cross / sqrt(own_a own_b), or an error where that is not defined."""
    require(
        float(own_a) > 0 and float(own_b) > 0,
        "a representation's similarity with itself is not above 0, so it can't be "
        "normalised; take more samples, or a larger k",
    )
    return cross / (own_a * own_b).sqrt()


def _linear(x: Tensor, bandwidth: float) -> Gram:
    return lambda u, v: u @ v.T


def _rbf(x: Tensor, bandwidth: float) -> Gram:
    """The Gaussian kernel, its width relative to x's median distance."""
    some = x[:: max(1, len(x) // 1000)]  # a thousand rows tell the median
    width = bandwidth * torch.nn.functional.pdist(some).median()
    require(float(width) > 0, "half of the rows are equal: the rbf kernel has no width")
    return lambda u, v: (-torch.cdist(u, v).square() / (2 * width**2)).exp()


def _hsic(gram_a: Gram, gram_b: Gram, x: Tensor, y: Tensor) -> Tensor:
    """Unbiased HSIC of x (N, D) and y (N, E), in blocks of rows: shape ()."""
    n, products = len(x), 0.0
    sums_a, sums_b = [], []
    for rows in row_blocks(n, 2 * n):
        block_a, block_b = gram_a(x[rows], x), gram_b(y[rows], y)
        for block in (block_a, block_b):
            block.diagonal(rows.start).zero_()  # no sample is compared with itself
        products = products + (block_a * block_b).sum()
        sums_a.append(block_a.sum(1))
        sums_b.append(block_b.sum(1))
    return _combine(products, torch.cat(sums_a), torch.cat(sums_b))


def _combine(products: Tensor, sums_a: Tensor, sums_b: Tensor) -> Tensor:
    """Unbiased HSIC from tr(K L), the column sums of K and the row sums of L.

    (Song et al., JMLR 13, 2012, eq. 5), diagonals set to 0 before.
    """
    n = len(sums_a)
    whole = sums_a.sum() * sums_b.sum() / ((n - 1) * (n - 2))
    mixed = 2 * (sums_a @ sums_b) / (n - 2)
    return (products + whole - mixed) / (n * (n - 3))


def _nearest(x: Tensor, k: int) -> Tensor:
    """The k rows with the largest inner product, for each row: (N, k) indices."""
    near = []
    for rows in row_blocks(len(x), len(x)):
        values = x[rows] @ x.T
        values.diagonal(rows.start).fill_(-torch.inf)  # no one is his own neighbour
        near.append(values.topk(k, dim=1).indices)
    return torch.cat(near)


def _edges(near: Tensor) -> Tensor:
    """Neighbours (N, k) as a list of pairs: (2, N k)."""
    rows = torch.arange(len(near), device=near.device)
    return torch.stack([rows.repeat_interleave(near.shape[1]), near.flatten()])


def _common(near_x: Tensor, near_y: Tensor) -> Tensor:
    """The pairs (2, E) that are neighbours in both lists (N, k)."""
    edges_x, edges_y = _edges(near_x), _edges(near_y)
    return edges_x[:, torch.isin(_code(edges_x), _code(edges_y))]


def _code(edges: Tensor) -> Tensor:
    """One number for each pair of rows (2, E)."""
    return edges[0] * 2**31 + edges[1]


def _masked_hsic(x: Tensor, y: Tensor, edges: Tensor) -> Tensor:
    """Unbiased HSIC of two kernels that are 0 except at edges (2, E): shape ()."""
    i, j = edges
    in_x, in_y = (z[i] * z[j] for z in (x, y))
    in_x, in_y = in_x.sum(1), in_y.sum(1)
    mutual = torch.isin(_code(edges), _code(edges.flip(0)))  # tr(K L) pairs ij with ji
    zeros = x.new_zeros(len(x))
    columns, rows = zeros.index_add(0, j, in_x), zeros.index_add(0, i, in_y)
    return _combine((in_x * in_y)[mutual].sum(), columns, rows)
