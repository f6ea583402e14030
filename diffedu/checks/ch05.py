"""Checks of chapter 5's exercises: the scalings, their loss, and where to train.

The exercises on samplers are in `ch05_steps`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Generator, Tensor

from diffedu.checks.ch05_steps import multistep, raise_level
from diffedu.checks.machinery import Exercise, Function

__all__ = ["matched", "multistep", "raise_level", "raw_loss", "wrapped"]

Inputs = dict[str, Any]
Net = Callable[[Tensor, Tensor], Tensor]


def _whole(low: int, high: int, g: Generator) -> int:
    return int(torch.randint(low, high, (), generator=g))


def _number(low: float, high: float, g: Generator) -> float:
    return low + (high - low) * torch.rand((), generator=g).item()


def _net(dim: int, g: Generator) -> Net:
    """A network that mixes its coordinates and both of its inputs."""
    W = torch.randn(dim, dim, generator=g)
    return lambda x, c: torch.tanh(x @ W.to(x) + c[:, None])


def _levels(n: int, g: Generator) -> Tensor:
    """n levels from 0.05 to 8, evenly in the logarithm."""
    return 10 ** (-1.3 + 2.2 * torch.rand(n, generator=g))


# The scalings around a network


def _noisy(g: Generator) -> Inputs:
    n, dim = _whole(3, 8, g), _whole(2, 5, g)
    mean, std = _number(0.3, 1.5, g), _number(0.3, 0.9, g)
    x = mean + 2 * torch.randn(n, dim, generator=g)
    F = _net(dim, g)
    return {"F": F, "x": x, "sigma": _levels(n, g), "mean": mean, "std": std}


def _wrapped(F, x, sigma, mean, std, **change: Function) -> Tensor:
    """x0 with some of the scalings replaced by functions of (level, std)."""
    level = sigma[:, None]
    root = (level**2 + std**2).sqrt()
    usual = {
        "c_skip": lambda s, d: d**2 / root**2,
        "c_out": lambda s, d: s * d / root,
        "c_in": lambda s, d: 1 / root,
        "c_noise": lambda s, d: s.log() / 4,
        "seen": lambda s, d: x - mean,
        "kept": lambda s, d: x - mean,
        "back": lambda s, d: mean,
    }
    value = {k: f(level, std) for k, f in (usual | change).items()}
    answer = F(value["c_in"] * value["seen"], value["c_noise"][:, 0])
    return value["back"] + value["c_skip"] * value["kept"] + value["c_out"] * answer


def _with(**change: Function) -> Function:
    return lambda *inputs: _wrapped(*inputs, **change)


def _uncentred(F, x, sigma, mean, std) -> Tensor:
    return _wrapped(F, x, sigma, 0.0, std)


def _mean_square(F, x, sigma, mean, std) -> Tensor:
    return _wrapped(F, x, sigma, mean, (mean**2 + std**2) ** 0.5)


def _input_by_mean_square(F, x, sigma, mean, std) -> Tensor:
    square = mean**2 + std**2
    by = {"c_in": lambda s, d: 1 / (s**2 + square).sqrt()}
    return _wrapped(F, x, sigma, mean, std, **by)


def _std_as_variance(F, x, sigma, mean, std) -> Tensor:
    return _wrapped(F, x, sigma, mean, std**0.5)


wrapped = Exercise(
    "wrapped",
    draw=_noisy,
    truth=_wrapped,
    mistakes={
        "the mean is left out: this is right for centred data alone":
            _uncentred,
        "the mean is taken off and not put back":
            _with(back=lambda s, d: 0.0),
        "the network's input is not centred":
            lambda F, x, s, m, d: _wrapped(F, x, s, m, d, seen=lambda *_: x),
        "the skipped input is not centred":
            lambda F, x, s, m, d: _wrapped(F, x, s, m, d, kept=lambda *_: x),
        "the mean square stands where the variance about the mean belongs":
            _mean_square,
        "the input is scaled by the mean square; the input too is centred, so the "
        "variance about the mean belongs there":
            _input_by_mean_square,
        "std is taken for a variance: its square is missing":
            _std_as_variance,
        "the network's answer is subtracted, where it is added":
            _with(c_out=lambda s, d: -_c_out(s, d)),
        "the input is not scaled":
            _with(c_in=lambda s, d: torch.ones_like(s)),
        "the root is missing in the scaling of the input":
            _with(c_in=lambda s, d: 1 / (s**2 + d**2)),
        "the root is missing in the scaling of the output":
            _with(c_out=lambda s, d: s * d / (s**2 + d**2)),
        "c_skip has the noise's variance above the line, so its ends are exchanged":
            _with(c_skip=lambda s, d: s**2 / (s**2 + d**2)),
        "c_skip lacks its squares":
            _with(c_skip=lambda s, d: d / (s + d)),
        "c_out is sigma: the output's variance is 1 at small noise alone":
            _with(c_out=lambda s, d: s),
        "c_out is the data's deviation: unit variance at large noise alone":
            _with(c_out=lambda s, d: d),
        "the network is told sigma itself, not a quarter of its logarithm":
            _with(c_noise=lambda s, d: s),
        "the quarter is missing where the network is told the noise level":
            _with(c_noise=lambda s, d: s.log()),
    },
)  # fmt: skip


# The loss of the raw network


def _pairs(g: Generator) -> Inputs:
    n, dim = _whole(3, 8, g), _whole(2, 5, g)
    x0, eps = torch.randn(2, n, dim, generator=g)
    F, sigma_data = _net(dim, g), _number(0.3, 0.8, g)
    sigma = _levels(n, g)
    return {"F": F, "x0": x0, "eps": eps, "sigma": sigma, "sigma_data": sigma_data}


def _raw(
    F: Net,
    x0: Tensor,
    eps: Tensor,
    sigma: Tensor,
    sigma_data: float,
    target: Function | None = None,
    scaled: bool = True,
    c: Function | None = None,
    seen: Function = lambda x, x0: x,
) -> Tensor:
    level = sigma[:, None]
    root = (level**2 + sigma_data**2).sqrt()
    usual = (level / sigma_data * x0 - sigma_data * eps) / root
    wanted = usual if target is None else target(x0, eps, level, sigma_data)
    x = seen(x0 + level * eps, x0)
    told = sigma.log() / 4 if c is None else c(sigma)
    return (F(x / root if scaled else x, told) - wanted).square().mean(1)


def _c_out(s: Tensor, d: float) -> Tensor:
    return s * d / (s**2 + d**2).sqrt()


def _aim(target: Function) -> Function:
    return lambda *inputs: _raw(*inputs, target=target)


def _of_x0(F, x0, eps, sigma, sigma_data, power: int = 2) -> Tensor:
    raw = _raw(F, x0, eps, sigma, sigma_data)
    return _c_out(sigma, sigma_data) ** power * raw


raw_loss = Exercise(
    "raw_loss",
    draw=_pairs,
    truth=_raw,
    mistakes={
        "the target is x0 itself: the network is asked for the data at every level":
            _aim(lambda x0, eps, s, d: x0),
        "the target is eps itself: the network is asked for the noise at every level":
            _aim(lambda x0, eps, s, d: eps),
        "the target has the opposite sign":
            _aim(lambda x0, eps, s, d:
                 -(s / d * x0 - d * eps) / (s**2 + d**2).sqrt()),
        "the target is not divided by c_out":
            _aim(lambda x0, eps, s, d:
                 x0 - d**2 / (s**2 + d**2) * (x0 + s * eps)),
        "the target is multiplied by c_out, where it is divided":
            _aim(lambda x0, eps, s, d: _c_out(s, d) * (
                x0 - d**2 / (s**2 + d**2) * (x0 + s * eps))),
        "c_skip multiplies the clean x0, where the noisy x belongs":
            _aim(lambda x0, eps, s, d: (x0 - d**2 / (s**2 + d**2) * x0) / _c_out(s, d)),
        "the skip is left out of the target":
            _aim(lambda x0, eps, s, d: x0 / _c_out(s, d)),
        "the network's input is not scaled":
            lambda *a: _raw(*a, scaled=False),
        "the network is told sigma itself, not a quarter of its logarithm":
            lambda *a: _raw(*a, c=lambda s: s),
        "the quarter is missing where the network is told the noise level":
            lambda *a: _raw(*a, c=torch.log),
        "the squared error of x0, without the weight 1 / c_out^2":
            _of_x0,
        "it is divided by c_out^2 once more: that is in the raw target already":
            lambda *a: _of_x0(*a, power=-2),
        "the network gets the clean x0, where the noisy x belongs":
            lambda *a: _raw(*a, seen=lambda x, x0: x0),
        "the squares are summed over the elements, where their mean is asked":
            lambda F, x0, *a: x0.shape[1] * _raw(F, x0, *a),
        "the mean runs over the batch too: one value a sample is asked":
            lambda *a: _raw(*a).mean().expand(len(a[1])),
    },
)  # fmt: skip


# Where there is something to learn


def _curve(g: Generator) -> Inputs:
    """A best loss that dips once, at levels of uneven distance in the logarithm."""
    n = _whole(25, 40, g)
    u = (-5 + 8 * torch.rand(n, generator=g)).sort().values
    centre, size = _number(-2.0, 0.5, g), _number(0.5, 1.0, g)
    dip = torch.exp(-0.5 * ((u - centre) / size) ** 2)
    chance = 0.05 * torch.rand(n, generator=g)
    return {"sigmas": u.exp(), "best": 1 - 0.7 * dip + chance}


def _matched(sigmas, best, *, along=torch.log, cut=0.0, gap=None, rule=None) -> Any:
    u = along(sigmas)
    weight = (1 - best).clamp(min=cut) if gap is None else gap(best)
    integrate = torch.trapezoid if rule is None else rule
    total = integrate(weight, u)
    mean = integrate(weight * u, u) / total
    variance = integrate(weight * (u - mean) ** 2, u) / total
    return mean, variance.sqrt()


def _variance(sigmas, best) -> Any:
    mean, std = _matched(sigmas, best)
    return mean, std**2


def _about_zero(sigmas, best) -> Any:
    mean, std = _matched(sigmas, best)
    return mean, (std**2 + mean**2).sqrt()


matched = Exercise(
    "matched",
    draw=_curve,
    truth=_matched,
    returns=("P_mean", "P_std"),
    mistakes={
        "the integrals run over sigma, where they run over its logarithm":
            lambda s, b: _matched(s, b, rule=lambda f, u: torch.trapezoid(f, u.exp())),
        "this is the mean of sigma, where that of its logarithm is asked":
            lambda s, b: _matched(s, b, along=lambda v: v),
        "the logarithm is to base 10":
            lambda s, b: _matched(s, b, along=torch.log10),
        "plain sums: the levels are not evenly spaced, and the trapezoidal rule "
        "weighs them by their distance":
            lambda s, b: _matched(s, b, rule=lambda f, u: f.sum()),
        "a best loss above 1 makes a gap below 0, which should count as 0":
            lambda s, b: _matched(s, b, cut=-torch.inf),
        "the weights are the best loss itself, where the gap below 1 is asked":
            lambda s, b: _matched(s, b, gap=lambda best: best),
        "the variance is returned, where its root is asked":
            _variance,
        "the root of the mean square, where the mean belongs taken off first":
            _about_zero,
        "the two are returned in the other order: the mean comes first":
            lambda s, b: _matched(s, b)[::-1],
    },
)  # fmt: skip
