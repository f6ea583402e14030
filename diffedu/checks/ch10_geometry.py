"""Chapter 10's checks on the geometry of features: spread, similarity, pooling."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Generator, Tensor
from torch.nn.functional import normalize

from diffedu.checks.ch03_fields import whole
from diffedu.checks.machinery import Exercise

Inputs = dict[str, Any]


# Alignment and uniformity


def _views(g: Generator) -> Inputs:
    shape = whole(9, 14, g), whole(4, 8, g)
    a = torch.randn(shape, generator=g) + 0.5
    return {"a": a, "b": a + 0.4 * torch.randn(shape, generator=g)}


def _spread(
    a: Tensor, b: Tensor, length: Callable[[Tensor], Tensor] = normalize,
    power: float = 2.0, rate: float = 2.0, kernel: float = 2.0, own: bool = False,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    a, b = length(a), length(b)
    apart = (a - b).norm(dim=1) ** power
    far = (a[:, None] - a[None]).norm(dim=2) ** kernel
    pairs = far if own else far[~torch.eye(len(a), dtype=torch.bool)]
    return apart.mean(), (-rate * pairs).exp().mean().log()


def _wrong_pairs(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    apart = torch.cdist(normalize(a), normalize(b)).square().mean()
    return apart, _spread(a, b)[1]


def _across(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    far = torch.cdist(normalize(a), normalize(b)).square()
    return _spread(a, b)[0], (-2 * far).exp().mean().log()


def _log_inside(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    far = torch.cdist(normalize(a), normalize(a)).square()
    off = far[~torch.eye(len(a), dtype=torch.bool)]
    return _spread(a, b)[0], -2 * off.mean()


alignment_uniformity = Exercise(
    "alignment_uniformity",
    draw=_views,
    truth=_spread,
    returns=("alignment", "uniformity"),
    relative=True,
    mistakes={
        "the features are not scaled to length 1 first":
            lambda a, b: _spread(a, b, length=lambda x: x),
        "columns are scaled to length 1, where rows must be":
            lambda a, b: _spread(a, b, length=lambda x: normalize(x, dim=0)),
        "a sample's distance to itself is counted in the uniformity":
            lambda a, b: _spread(a, b, own=True),
        "alignment takes distances, where squared ones are asked":
            lambda a, b: _spread(a, b, power=1.0),
        "alignment compares every sample of a with every sample of b":
            _wrong_pairs,
        "uniformity takes distances, where squared ones are asked":
            lambda a, b: _spread(a, b, kernel=1.0),
        "the factor 2 before the squared distance is missing in the uniformity":
            lambda a, b: _spread(a, b, rate=1.0),
        "uniformity compares a with b, where pairs within a are asked":
            _across,
        "the logarithm stands inside the mean of the uniformity":
            _log_inside,
        "the logarithm of the uniformity is missing":
            lambda a, b: (_spread(a, b)[0], _spread(a, b)[1].exp()),
        "the two results are exchanged":
            lambda a, b: _spread(a, b)[::-1],
    },
)  # fmt: skip


# CKA


def _two_sets(g: Generator) -> Inputs:
    n, width = whole(24, 33, g), whole(4, 7, g)
    a = torch.randn(n, width, generator=g) + 0.3 * torch.randn(width, generator=g)
    b = a @ torch.randn(width, width + 2, generator=g)
    return {"a": a, "b": b + torch.randn(n, width + 2, generator=g)}


def _hsic(k: Tensor, l: Tensor) -> Tensor:  # noqa: E741
    n = len(k)
    whole_ = k.sum() * l.sum() / ((n - 1) * (n - 2))
    return ((k * l).sum() + whole_ - 2 / (n - 2) * (k.sum(0) @ l.sum(0))) / (
        n * (n - 3)
    )


def _biased(k: Tensor, l: Tensor) -> Tensor:  # noqa: E741
    k, l = (m - m.mean(0) - m.mean(1, keepdim=True) + m.mean() for m in (k, l))  # noqa: E741
    return (k * l).sum()


def _cosine(k: Tensor, l: Tensor) -> Tensor:  # noqa: E741
    return (k * l).sum()


def _no_diagonal(k: Tensor) -> Tensor:
    return k - torch.diag(k.diagonal())


def _cka(
    a: Tensor, b: Tensor, hsic: Callable[[Tensor, Tensor], Tensor] = _hsic,
    off: Callable[[Tensor], Tensor] = _no_diagonal, power: float = 0.5,
) -> Tensor:  # fmt: skip
    k, l = off(a @ a.T), off(b @ b.T)  # noqa: E741
    return hsic(k, l) / (hsic(k, k) * hsic(l, l)).abs() ** power


cka = Exercise(
    "cka",
    draw=_two_sets,
    truth=_cka,
    tolerance=1e-3,
    mistakes={
        "the diagonals are not set to 0: each sample is compared with itself":
            lambda a, b: _cka(a, b, off=lambda m: m),
        "it is the biased form, which grows with the width":
            lambda a, b: _cka(a, b, _biased, off=lambda m: m),
        "it is the biased form on matrices without their diagonals":
            lambda a, b: _cka(a, b, _biased),
        "the matrices are not centred: only their products are summed":
            lambda a, b: _cka(a, b, _cosine),
        "the matrices are not centred, and their diagonals are kept":
            lambda a, b: _cka(a, b, _cosine, off=lambda m: m),
        "it is not divided by the root of both similarities with oneself":
            lambda a, b: _cka(a, b, power=0.0),
        "the square root in the denominator is missing":
            lambda a, b: _cka(a, b, power=1.0),
        "the term with the sums of both matrices is missing":
            lambda a, b: _cka(a, b, lambda k, m: (k * m).sum()
                - 2 / (len(k) - 2) * (k.sum(0) @ m.sum(0))),
        "the mixed term of the column sums is missing":
            lambda a, b: _cka(a, b, lambda k, m: (k * m).sum()
                + k.sum() * m.sum() / ((len(k) - 1) * (len(k) - 2))),
        "the mixed term has the factor 1; it is subtracted twice":
            lambda a, b: _cka(a, b, lambda k, m: (k * m).sum()
                + k.sum() * m.sum() / ((len(k) - 1) * (len(k) - 2))
                - (k.sum(0) @ m.sum(0)) / (len(k) - 2)),
    },
)  # fmt: skip


# Attention pooling


def _maps(g: Generator) -> Inputs:
    shape = whole(7, 10, g), whole(3, 6, g), whole(3, 5, g), whole(2, 4, g)
    h = torch.randn(shape, generator=g)
    return {"h": h, "query": 1.5 * torch.randn(shape[1], generator=g)}


def _attend(
    h: Tensor, query: Tensor, scale: Callable[[int], float] = lambda c: c**-0.5,
    weigh: Callable[[Tensor], Tensor] = lambda s: s.softmax(1),
) -> Tensor:  # fmt: skip
    places = h.flatten(2)  # (B, C, P)
    scores = torch.einsum("c,bcp->bp", query, places) * scale(h.shape[1])
    return torch.einsum("bp,bcp->bc", weigh(scores), places)


def _over_channels(h: Tensor, query: Tensor) -> Tensor:
    places = h.flatten(2)
    return (
        ((query[:, None] * places) * h.shape[1] ** -0.5).softmax(1).mul(places).sum(2)
    )


attend = Exercise(
    "attend",
    draw=_maps,
    truth=_attend,
    mistakes={
        "the scores are not divided by the root of the width":
            lambda h, q: _attend(h, q, scale=lambda c: 1.0),
        "the scores are divided by the width, where its root is asked":
            lambda h, q: _attend(h, q, scale=lambda c: 1 / c),
        "the softmax runs over the samples, where the places of each are weighed":
            lambda h, q: _attend(h, q, weigh=lambda s: s.softmax(0)),
        "the softmax runs over the channels, where the places are weighed":
            _over_channels,
        "the softmax is missing: the weights must sum to 1":
            lambda h, q: _attend(h, q, weigh=lambda s: s),
        "the weights are exponentials that are not divided by their sum":
            lambda h, q: _attend(h, q, weigh=lambda s: s.exp()),
        "it is mean pooling: the query is not used":
            lambda h, q: _attend(h, 0 * q),
        "only the place with the highest score is kept":
            lambda h, q: _attend(h, q, weigh=lambda s: torch.nn.functional.one_hot(
                s.argmax(1), s.shape[1]).to(s)),
        "the weighted places are averaged once more, where their sum is asked":
            lambda h, q: _attend(h, q) / h[0, 0].numel(),
        "the query looks for what is least like it: the sign is wrong":
            lambda h, q: _attend(h, -q),
    },
)  # fmt: skip
