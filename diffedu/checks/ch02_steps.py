"""Checks of chapter 2's exercises on chains: the posterior, a step, the weights."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from diffedu.checks.machinery import Exercise

Function = Callable[[Tensor], Tensor]


def _betas(generator: torch.Generator) -> Tensor:
    length = int(torch.randint(6, 15, (), generator=generator))
    return (0.02 + 0.3 * torch.rand(length, generator=generator)).sort().values


def _tables(betas: Tensor) -> tuple[Tensor, Tensor]:
    """abar with step k, and abar before it: (T,) each."""
    abar = (1 - betas).cumprod(0)
    return abar, torch.cat([torch.ones_like(abar[:1]), abar[:-1]])


def _padded_late(betas: Tensor) -> tuple[Tensor, Tensor]:
    abar = (1 - betas).cumprod(0)
    return abar, torch.cat([abar[1:], torch.ones_like(abar[:1])])


def _rolled(betas: Tensor) -> tuple[Tensor, Tensor]:
    abar = (1 - betas).cumprod(0)
    return abar, abar.roll(1)


def _clamped(betas: Tensor) -> tuple[Tensor, Tensor]:
    abar = (1 - betas).cumprod(0)
    return abar, torch.cat([abar[:1], abar[:-1]])


def _not_multiplied(betas: Tensor) -> tuple[Tensor, Tensor]:
    kept = 1 - betas
    return kept, torch.cat([torch.ones_like(kept[:1]), kept[:-1]])


def _posterior_inputs(generator: torch.Generator) -> dict[str, object]:
    batch, dim = torch.randint(4, 8, (2,), generator=generator).tolist()
    x0, x_k = torch.randn(2, batch, dim + 4, generator=generator)
    betas = _betas(generator)
    k = torch.randint(len(betas), (batch,), generator=generator)
    k[0], k[1] = 0, len(betas) - 1
    return {"x0": x0, "x_k": x_k, "betas": betas, "k": k}


def _of_x_k(beta: Tensor, before: Tensor) -> Tensor:
    return (1 - beta).sqrt() * (1 - before)


def _posterior(
    x0: Tensor,
    x_k: Tensor,
    betas: Tensor,
    k: Tensor,
    tables: Callable[[Tensor], tuple[Tensor, Tensor]] = _tables,
    of_x_k: Callable[[Tensor, Tensor], Tensor] = _of_x_k,
    of_x0: Function = torch.sqrt,
) -> tuple[Tensor, Tensor]:
    abar, before = (table[k][:, None] for table in tables(betas))
    beta = betas[k][:, None]
    mean = of_x0(before) * beta * x0 + of_x_k(beta, before) * x_k
    return mean / (1 - abar), (beta * (1 - before) / (1 - abar)).squeeze(1)


def _large(*inputs: Tensor) -> tuple[Tensor, Tensor]:
    return _posterior(*inputs)[0], inputs[2][inputs[3]]


def _variance_of_second(x0: Tensor, x_k: Tensor, betas: Tensor, k: Tensor) -> tuple:
    mean, _ = _posterior(x0, x_k, betas, k)
    return mean, _posterior(x0, x_k, betas, k.clamp(min=1))[1]


posterior = Exercise(
    "posterior",
    draw=_posterior_inputs,
    truth=_posterior,
    mistakes={
        "the survey's eq. 5 as it is printed, which Bayes' rule refuses": (
            lambda *a: _posterior(*a, of_x_k=lambda b, p: p.sqrt() * (1 - p))
        ),
        "the factor of x_k lacks its square root": lambda *a: _posterior(
            *a, of_x_k=lambda b, p: (1 - b) * (1 - p)
        ),
        "the factor of x0 lacks its square root": lambda *a: _posterior(
            *a, of_x0=lambda p: p
        ),
        "the table of the previous alpha_bar is padded at the wrong end": (
            lambda *a: _posterior(*a, tables=_padded_late)
        ),
        "1 - beta stands where alpha_bar, its running product, belongs": (
            lambda *a: _posterior(*a, tables=_not_multiplied)
        ),
        "the variance is that of the step forwards": _large,
        "alpha_bar[k - 1] without a 1 in front; it is wrong only where k = 0": (
            lambda *a: _posterior(*a, tables=_rolled)
        ),
        "alpha_bar[0] stands before index 0, where 1 belongs; it is wrong only "
        "where k = 0": lambda *a: _posterior(*a, tables=_clamped),
        "the variance at k = 0 is the next one's; it should be 0": _variance_of_second,
        "x0 and x_k are exchanged": lambda x0, x_k, b, k: _posterior(x_k, x0, b, k),
    },
    returns=("mean", "variance"),
)


def _step_inputs(generator: torch.Generator) -> dict[str, object]:
    batch, dim = torch.randint(4, 8, (2,), generator=generator).tolist()
    x, eps, z = torch.randn(3, batch, dim + 4, generator=generator)
    fraction = 0.1 + 0.3 * torch.rand(batch, dim + 4, generator=generator)
    # at k = 0 a formula without its own case gives 0 * inf here
    fraction[:, 0] = 1.0
    betas = _betas(generator)
    # the walk's last two steps, where variances matter, are a third of the draws each
    anywhere = int(torch.randint(len(betas), (), generator=generator))
    k = (0, 1, anywhere)[int(torch.randint(3, (), generator=generator))]
    return {"x": x, "eps": eps, "f": fraction, "betas": betas, "k": k, "z": z}


def _in_log(fraction: Tensor, small: Tensor, large: Tensor) -> Tensor:
    return (fraction * large.log() + (1 - fraction) * small.log()).exp()


def _mean(x: Tensor, eps: Tensor, beta: Tensor, abar: Tensor, root: Function) -> Tensor:
    return (x - beta / root(1 - abar) * eps) / (1 - beta).sqrt()


def _step(
    x: Tensor,
    eps: Tensor,
    f: Tensor,
    betas: Tensor,
    k: int,
    z: Tensor,
    between: Callable[[Tensor, Tensor, Tensor], Tensor] = _in_log,
    tables: Callable[[Tensor], tuple[Tensor, Tensor]] = _tables,
    root: Function = torch.sqrt,
    std: Function = torch.sqrt,
    last: bool = False,
    kept: bool = False,
) -> Tensor:
    beta, (abar, before) = betas[k], (table[k] for table in tables(betas))
    mean = _mean(x, eps, beta, abar, root)
    mean = mean * ((1 - beta) / abar).sqrt() if kept else mean
    small = beta * (1 - before) / (1 - abar)
    if k == 0:
        return mean + std(beta) * z if last else mean
    return mean + std(between(f, small, beta)) * z


def _without_case(
    x: Tensor, eps: Tensor, f: Tensor, betas: Tensor, k: int, z: Tensor
) -> Tensor:
    right = _step(x, eps, f, betas, k, z)
    return right if k else right.masked_fill(f == 1, torch.nan)


ancestral_step = Exercise(
    "ancestral_step",
    draw=_step_inputs,
    truth=_step,
    mistakes={
        "noise is added in the last step, too": lambda *a: _step(*a, last=True),
        "the predicted noise is used again as fresh noise": lambda x, e, f, b, k, z: (
            _step(x, e, f, b, k, e)
        ),
        "the square root of 1 - alpha_bar is missing": lambda *a: _step(
            *a, root=lambda v: v
        ),
        "the variance is used as a standard deviation": lambda *a: _step(
            *a, std=lambda v: v
        ),
        "variances are blended, where their logarithms are asked": lambda *a: _step(
            *a, between=lambda f, small, large: f * large + (1 - f) * small
        ),
        "the two bounds of the variance are exchanged": lambda *a: _step(
            *a, between=lambda f, small, large: _in_log(f, large, small)
        ),
        "the fraction is read as lying in [-1, 1]": lambda *a: _step(
            *a, between=lambda f, small, large: _in_log((f + 1) / 2, small, large)
        ),
        "the table of the previous alpha_bar is padded at the wrong end": (
            lambda *a: _step(*a, tables=_padded_late)
        ),
        "1 - beta stands where alpha_bar, its running product, belongs": (
            lambda *a: _step(*a, tables=_not_multiplied)
        ),
        "alpha_bar stands where 1 - beta belongs; it is right only for k = 0": (
            lambda *a: _step(*a, kept=True)
        ),
        "f has no effect: the variance is always the small one": (
            lambda *a: _step(*a, between=lambda f, small, large: small)
        ),
        "f has no effect: the variance is always the large one": (
            lambda *a: _step(*a, between=lambda f, small, large: large)
        ),
        "k = 0 has no case of its own: the small variance is 0 there and its "
        "logarithm infinite, which fails where f is 1": _without_case,
    },
    draws=30,
)


def _weight(
    betas: Tensor,
    tables: Callable[[Tensor], tuple[Tensor, Tensor]] = _tables,
    large: bool = False,
    power: int = 2,
    kept: bool = False,
) -> Tensor:
    abar, before = tables(betas)
    variance = betas if large else betas * (1 - before) / (1 - abar)
    share = abar if kept else 1 - betas
    return (betas**power / (2 * variance * share * (1 - abar)))[1:]


def _weight_of_x0(betas: Tensor) -> Tensor:
    abar = _tables(betas)[0]
    return _weight(betas) * (abar / (1 - abar))[1:]


vlb_weight = Exercise(
    "vlb_weight",
    draw=lambda generator: {"betas": _betas(generator)},
    truth=_weight,
    mistakes={
        "the half of the divergence is missing": lambda b: 2 * _weight(b),
        "beta is not squared": lambda b: _weight(b, power=1),
        "the variance of the step forwards": lambda b: _weight(b, large=True),
        "alpha_bar stands where 1 - beta belongs": lambda b: _weight(b, kept=True),
        "1 - beta stands where alpha_bar, its running product, belongs": (
            lambda b: _weight(b, tables=_not_multiplied)
        ),
        "the table of the previous alpha_bar is padded at the wrong end": (
            lambda b: _weight(b, tables=_padded_late)
        ),
        "the weight of x0's error, where that of eps is asked": _weight_of_x0,
    },
    relative=True,
)
