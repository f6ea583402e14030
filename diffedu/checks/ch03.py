"""Checks of chapter 3's exercises: losses of scores, annealing, exclusion, energies.

Fields and energies are drawn afresh as small random functions, so that nothing but the
right formula fits all draws.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Generator, Tensor

from diffedu.checks.ch03_chains import accept_probability, and_not_step, annealing_plan
from diffedu.checks.machinery import Exercise, Function, Property

__all__ = [
    "accept_probability",
    "and_not_step",
    "annealing_plan",
    "asymmetry",
    "dsm_loss",
    "ism_estimate",
]

Inputs = dict[str, Any]
Field = Callable[[Tensor], Tensor]


def _whole(low: int, high: int, g: Generator) -> int:
    return int(torch.randint(low, high, (), generator=g))


def _field(dim: int, g: Generator) -> Field:
    """A smooth vector field on R^dim that is no gradient: (B, dim) -> (B, dim)."""
    into = torch.randn(5, dim, generator=g)
    out = torch.randn(dim, 5, generator=g)
    return lambda x: torch.tanh(x @ into.T.to(x)) @ out.T.to(x)


def _with_slope(score: Field, x: Tensor) -> tuple[Tensor, Tensor]:
    """The score at x (B, D), and its Jacobian (B, D, D): [b, i, j] = ds_i / dx_j."""
    x = x.detach().requires_grad_()
    value = score(x)
    rows = [
        torch.autograd.grad(value[:, i].sum(), x, retain_graph=True)[0]
        for i in range(x.shape[1])
    ]
    return value.detach(), torch.stack(rows, 1)


# Denoising score matching on any path


def _noisy_batch(g: Generator) -> Inputs:
    size, dim = _whole(4, 9, g), _whole(2, 5, g)
    x0, eps = torch.randn(2, size, dim, generator=g)
    alpha, sigma = 0.3 + torch.rand(2, size, generator=g)
    return {
        "score": _field(dim, g), "x0": x0, "alpha": alpha, "sigma": sigma, "eps": eps,
    }  # fmt: skip


def _dsm(
    score: Field, x0: Tensor, alpha: Tensor, sigma: Tensor, eps: Tensor,
    power: float = 1.0, sign: float = 1.0, noisy: bool = True,
) -> Tensor:  # fmt: skip
    alpha, sigma = alpha[:, None], sigma[:, None]
    x_t = alpha * x0 + sigma * eps if noisy else x0
    return 0.5 * (score(x_t) + sign * eps / sigma**power).square().sum(1).mean()


dsm_loss = Exercise(
    "dsm_loss",
    draw=_noisy_batch,
    truth=_dsm,
    mistakes={
        "the sign of the target is wrong: the score points away from the noise":
            lambda *a: _dsm(*a, sign=-1.0),
        "the noise in the target is not divided by sigma":
            lambda *a: _dsm(*a, power=0.0),
        "the noise in the target is divided by sigma squared; x_t - alpha x0 would be":
            lambda *a: _dsm(*a, power=2.0),
        "the score is asked at the clean x0":
            lambda *a: _dsm(*a, noisy=False),
        "alpha is missing where x_t is made":
            lambda s, x0, a, sigma, eps: _dsm(s, x0, a**0, sigma, eps),
        "sigma is squared where x_t is made: it is a standard deviation":
            lambda s, x0, a, sigma, eps: _dsm(
                lambda x: s(x + (sigma**2 - sigma)[:, None] * eps), x0, a, sigma, eps
            ),
        "the factor one half is missing":
            lambda *a: 2 * _dsm(*a),
        "a mean is taken over the elements of a sample, where a squared length sums":
            lambda *a: _dsm(*a) / a[1].shape[1],
        "a sum is taken over the batch, where a mean is asked":
            lambda *a: _dsm(*a) * len(a[1]),
    },
)  # fmt: skip


# Hutchinson's estimate of implicit score matching


def _probed_batch(g: Generator) -> Inputs:
    size, dim, count = _whole(4, 9, g), _whole(2, 5, g), _whole(2, 6, g)
    x = torch.randn(size, dim, generator=g)
    probes = torch.randn(count, size, dim, generator=g).sign()
    return {"score": _field(dim, g), "x": x, "probes": probes}


def _ism(
    score: Field, x: Tensor, probes: Tensor, trace: Function | None = None,
    half: float = 0.5,
) -> Tensor:  # fmt: skip
    value, slope = _with_slope(score, x)
    traces = (trace or _hutchinson)(slope, probes)
    return (half * value.square().sum(1) + traces).mean()


def _hutchinson(slope: Tensor, probes: Tensor) -> Tensor:
    return torch.einsum("pbi,bij,pbj->pb", probes, slope, probes).mean(0)


def _trainable(answer: Function, g: Generator) -> bool:
    net = torch.nn.Linear(3, 3)
    x = torch.randn(5, 3, generator=g)
    loss = answer(net, x, torch.randn(2, 5, 3, generator=g).sign())
    (slope,) = torch.autograd.grad(loss, net.weight, allow_unused=True)
    with torch.no_grad():
        s = net(x)
    # the trace adds exactly 1 to the diagonal, on average over signs without noise
    diagonal = (s[:, :, None] * x[:, None]).mean(0).diagonal() + 1
    return torch.allclose(slope.diagonal(), diagonal, atol=1e-4)


ism_estimate = Exercise(
    "ism_estimate",
    draw=_probed_batch,
    truth=_ism,
    mistakes={
        "the probes are summed, where their mean is the estimate":
            lambda *a: _ism(*a, trace=lambda J, p: len(p) * _hutchinson(J, p)),
        "only the first probe is used":
            lambda s, x, p: _ism(s, x, p[:1]),
        "the row of the backward pass is not multiplied by the probe again":
            lambda *a: _ism(*a, trace=lambda J, p: torch.einsum(
                "pbi,bij->pb", p, J).mean(0)),
        "the gradient of the summed score is taken, without any probe":
            lambda *a: _ism(*a, trace=lambda J, p: J.sum((1, 2))),
        "the factor one half before the squared score is missing":
            lambda *a: _ism(*a, half=1.0),
        "the trace has the factor one half, which belongs to the squared score":
            lambda *a: _ism(*a, trace=lambda J, p: 0.5 * _hutchinson(J, p)),
        "the sign of the trace is wrong":
            lambda *a: _ism(*a, trace=lambda J, p: -_hutchinson(J, p)),
        "the squared score is missing: this is the trace alone":
            lambda *a: _ism(*a, half=0.0),
    },
    properties=(
        Property(
            "its value is right, but the trace does not reach the network's weights; "
            "look at create_graph",
            _trainable,
        ),
    ),
)  # fmt: skip


# How far a field is from being a gradient


def _points(g: Generator) -> Inputs:
    dim = _whole(2, 6, g)
    x = torch.randn(_whole(4, 9, g), dim, generator=g)
    return {"score": _field(dim, g), "x": x}


def _from_slope(read: Function) -> Function:
    return lambda score, x: read(_with_slope(score, x)[1])


def _size(matrix: Tensor) -> Tensor:
    return matrix.square().sum((1, 2)).sqrt()


asymmetry = Exercise(
    "asymmetry",
    draw=_points,
    truth=_from_slope(lambda J: _size(J - J.mT)),
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
)  # fmt: skip
