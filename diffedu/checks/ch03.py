"""Checks of chapter 3's exercises: losses of scores, annealing, exclusion, energies.

Fields and energies are drawn afresh as small random functions, so that nothing but the
right formula fits all draws.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor

from diffedu.checks.ch03_chains import accept_probability, and_not_step
from diffedu.checks.ch03_fields import (
    Field,
    asymmetry,
    random_field,
    whole,
    with_slope,
)
from diffedu.checks.ch03_plan import annealing_plan
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


SHAPE = (
    "its value is right, but it must be a tensor of shape () that can be "
    "differentiated; look for .item() or float()"
)


def _is_scalar(loss: Any) -> bool:
    return isinstance(loss, Tensor) and loss.shape == ()


# Denoising score matching on any path


def _noisy_batch(g: Generator) -> Inputs:
    size, dim = whole(4, 9, g), whole(2, 5, g)
    x0, eps = torch.randn(2, size, dim, generator=g)
    alpha, sigma = 0.3 + torch.rand(2, size, generator=g)
    return {
        "score": random_field(dim, g), "x0": x0, "alpha": alpha, "sigma": sigma,
        "eps": eps,
    }  # fmt: skip


def _dsm(
    score: Field, x0: Tensor, alpha: Tensor, sigma: Tensor, eps: Tensor,
    power: float = 1.0, sign: float = 1.0, noisy: bool = True,
) -> Tensor:  # fmt: skip
    alpha, sigma = alpha[:, None], sigma[:, None]
    x_t = alpha * x0 + sigma * eps if noisy else x0
    return 0.5 * (score(x_t) + sign * eps / sigma**power).square().sum(1).mean()


def _dsm_weighted(
    score: Field, x0: Tensor, alpha: Tensor, sigma: Tensor, eps: Tensor
) -> Tensor:
    def scaled(x_t: Tensor) -> Tensor:  # so that sigma times the residual is left
        return sigma[:, None] * score(x_t) + (1 - 1 / sigma[:, None]) * eps

    return _dsm(scaled, x0, alpha, sigma, eps)


def _dsm_from_clean(
    score: Field, x0: Tensor, alpha: Tensor, sigma: Tensor, eps: Tensor
) -> Tensor:
    def shifted(x_t: Tensor) -> Tensor:  # alpha is left out of x_t - alpha x0
        return score(x_t) + ((alpha - 1) / sigma**2)[:, None] * x0

    return _dsm(shifted, x0, alpha, sigma, eps)


def _dsm_on(answer: Function, net: Function, g: Generator) -> Any:
    batch = _noisy_batch(g)
    x0, eps = torch.randn(2, len(batch["x0"]), 3, generator=g)
    return answer(net, x0, batch["alpha"], batch["sigma"], eps)


def _dsm_scalar(answer: Function, g: Generator) -> bool:
    return _is_scalar(_dsm_on(answer, torch.nn.Linear(3, 3), g))


def _dsm_trains(answer: Function, g: Generator) -> bool:
    net, start = torch.nn.Linear(3, 3), g.get_state()
    slopes = []
    for loss_of in (answer, _dsm):
        g.set_state(start)
        loss = _dsm_on(loss_of, net, g)
        if not loss.requires_grad:
            return False
        slopes += torch.autograd.grad(loss, net.weight)
    return torch.allclose(*slopes, rtol=1e-3, atol=1e-4)


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
        "alpha is missing in the target, whose mean is alpha x0":
            _dsm_from_clean,
        "the loss is weighed by sigma squared; here no weight is asked":
            _dsm_weighted,
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
    properties=(
        Property(SHAPE, _dsm_scalar),
        Property(
            "its value is right, but its gradient does not reach the score's weights; "
            "look for detach or no_grad",
            _dsm_trains,
        ),
    ),
)  # fmt: skip


# Hutchinson's estimate of implicit score matching


def _probed_batch(g: Generator) -> Inputs:
    size, dim, count = whole(4, 9, g), whole(2, 5, g), whole(2, 6, g)
    x = torch.randn(size, dim, generator=g)
    probes = torch.randn(count, size, dim, generator=g).sign()
    return {"score": random_field(dim, g), "x": x, "probes": probes}


def _sliced(score: Field, x: Tensor, probes: Tensor) -> Tensor:
    value, slope = with_slope(score, x)
    halves = 0.5 * (probes * value).sum(2).square().mean(0)
    return (halves + _hutchinson(slope, probes)).mean()


def _ism(
    score: Field, x: Tensor, probes: Tensor, trace: Function | None = None,
    half: float = 0.5,
) -> Tensor:  # fmt: skip
    value, slope = with_slope(score, x)
    traces = (trace or _hutchinson)(slope, probes)
    return (half * value.square().sum(1) + traces).mean()


def _hutchinson(slope: Tensor, probes: Tensor) -> Tensor:
    return torch.einsum("pbi,bij,pbj->pb", probes, slope, probes).mean(0)


def _ism_scalar(answer: Function, g: Generator) -> bool:
    x = torch.randn(5, 3, generator=g)
    return _is_scalar(answer(torch.nn.Linear(3, 3), x, x[None].sign()))


def _trainable(answer: Function, g: Generator) -> bool:
    net = torch.nn.Linear(3, 3)
    x = torch.randn(5, 3, generator=g)
    loss = answer(net, x, torch.randn(2, 5, 3, generator=g).sign())
    if not loss.requires_grad:
        return False
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
        "the score is squared along the probes, which is sliced score matching; "
        "here its whole length is": _sliced,
        "the squared score is missing: this is the trace alone":
            lambda *a: _ism(*a, half=0.0),
    },
    properties=(
        Property(SHAPE, _ism_scalar),
        Property(
            "its value is right, but the trace does not reach the network's weights; "
            "look at create_graph",
            _trainable,
        ),
    ),
)  # fmt: skip
