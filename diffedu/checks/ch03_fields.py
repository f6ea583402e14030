"""Random fields for chapter 3's checks, and the check of how far one is a gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Generator, Tensor

from diffedu.checks.machinery import Exercise, Function, Property

Inputs = dict[str, Any]
Field = Callable[[Tensor], Tensor]


def whole(low: int, high: int, g: Generator) -> int:
    """A whole number from low to high - 1."""
    return int(torch.randint(low, high, (), generator=g))


def random_field(dim: int, g: Generator) -> Field:
    """A smooth vector field on R^dim that is no gradient: (B, dim) -> (B, dim)."""
    into = torch.randn(5, dim, generator=g)
    out = torch.randn(dim, 5, generator=g)
    return lambda x: torch.tanh(x @ into.T.to(x)) @ out.T.to(x)


def with_slope(score: Field, x: Tensor) -> tuple[Tensor, Tensor]:
    """The score at x (B, D), and its Jacobian (B, D, D): [b, i, j] = ds_i / dx_j."""
    x = x.detach().requires_grad_()
    value = score(x)
    rows = [
        torch.autograd.grad(value[:, i].sum(), x, retain_graph=True)[0]
        for i in range(x.shape[1])
    ]
    return value.detach(), torch.stack(rows, 1)


# How far a field is from being a gradient


def _points(g: Generator) -> Inputs:
    dim = whole(2, 6, g)
    x = torch.randn(whole(4, 9, g), dim, generator=g)
    return {"score": random_field(dim, g), "x": x}


def _from_slope(read: Function) -> Function:
    return lambda score, x: read(with_slope(score, x)[1])


def _size(matrix: Tensor) -> Tensor:
    return matrix.square().sum((1, 2)).sqrt()


def _precise(answer: Function, g: Generator) -> bool:
    """In float64 nothing but rounding is left; difference quotients leave more."""
    batch = _points(g)
    x = batch["x"].double()
    right = _from_slope(lambda J: _size(J - J.mT))(batch["score"], x)
    error = torch.as_tensor(answer(batch["score"], x)) - right
    return bool(error.abs().max() < 1e-11)


asymmetry = Exercise(
    "asymmetry",
    draw=_points,
    truth=_from_slope(lambda J: _size(J - J.mT)),
    tolerance=3e-3,  # coarse answers pass here, and are told why below
    mistakes={
        "the Jacobian and its transpose are added, where their difference is asked":
            _from_slope(lambda J: _size(J + J.mT)),
        "this is the norm of the Jacobian itself; nothing is transposed":
            _from_slope(_size),
        "the square root of the sum is missing":
            _from_slope(lambda J: (J - J.mT).square().sum((1, 2))),
        "each pair of axes is counted once; the sum runs over all i and j":
            _from_slope(lambda J: _size(J - J.mT) / 2**0.5),
        "the antisymmetric part has a factor one half that is not asked for":
            _from_slope(lambda J: _size(J - J.mT) / 2),
        "the divergence: the trace of the Jacobian":
            _from_slope(lambda J: J.diagonal(dim1=1, dim2=2).sum(1)),
        "absolute values are summed, where squares are":
            _from_slope(lambda J: (J - J.mT).abs().sum((1, 2))),
        "the norm runs over the batch too: one number a point is asked":
            _from_slope(lambda J: (J - J.mT).norm().expand(len(J))),
    },
    properties=(
        Property(
            "it is right to a few digits, which is not precise enough: take the "
            "derivatives by autograd, not by differences, in the dtype of x",
            _precise,
        ),
    ),
)  # fmt: skip
