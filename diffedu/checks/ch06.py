"""Checks of chapter 6's exercises: steps, codes, targets, the boundary, the ledger."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Generator, Tensor

from diffedu.checks.ch06_students import (
    consistency_f,
    levels,
    pays_after,
    size,
    student_target,
)
from diffedu.checks.machinery import Exercise, Inputs

__all__ = [
    "consistency_f",
    "eta_step",
    "line_step",
    "pays_after",
    "slerp",
    "student_target",
]


# --- exercise 1 ---------------------------------------------------------------------


def _eta_inputs(g: Generator) -> Inputs:
    x, eps, z = torch.randn(3, *size(g), generator=g)
    low, high = levels(g, len(x))
    eta = 0.2 + 0.7 * torch.rand((), generator=g).item()
    return {"x": x, "eps": eps, "abar_t": low, "abar_s": high, "eta": eta, "z": z}


def _variance(a_t: Tensor, a_s: Tensor, eta: float) -> Tensor:
    return eta**2 * (1 - a_s) / (1 - a_t) * (1 - a_t / a_s)


def _eta(
    x: Tensor,
    eps: Tensor,
    abar_t: Tensor,
    abar_s: Tensor,
    eta: float,
    z: Tensor,
    variance: Callable[..., Tensor] = _variance,
    kept: Callable[..., Tensor] = lambda a_s, var: (1 - a_s - var).sqrt(),
    fresh: Callable[[Tensor], Tensor] = torch.sqrt,
    root: Callable[[Tensor], Tensor] = torch.sqrt,
    scale: Callable[[Tensor], Tensor] = torch.sqrt,
) -> Tensor:
    a_t, a_s = abar_t[:, None], abar_s[:, None]
    x0 = (x - root(1 - a_t) * eps) / scale(a_t)
    var = variance(a_t, a_s, eta)
    return a_s.sqrt() * x0 + kept(a_s, var) * eps + fresh(var) * z


eta_step = Exercise(
    "eta_step",
    draw=_eta_inputs,
    truth=_eta,
    mistakes={
        "all of 1 - abar_s is kept before eps, so that with z there is too much noise":
            lambda *a: _eta(*a, kept=lambda a_s, var: (1 - a_s).sqrt()),
        "the direction term has tau in place of what tau leaves":
            lambda *a: _eta(*a, kept=lambda a_s, var: var.sqrt()),
        "tau squared stands before z: a square root is missing there":
            lambda *a: _eta(*a, fresh=lambda var: var),
        "eta is not squared in tau squared":
            lambda *a: _eta(*a, variance=lambda t, s, e: _variance(t, s, e**0.5)),
        "the predicted noise is used again where fresh noise z belongs":
            lambda x, eps, t, s, eta, z: _eta(x, eps, t, s, eta, eps),
        "eta is ignored: this is the step for eta = 1":
            lambda x, eps, t, s, eta, z: _eta(x, eps, t, s, 1.0, z),
        "eta is ignored: this is the step for eta = 0":
            lambda x, eps, t, s, eta, z: _eta(x, eps, t, s, 0.0, z),
        "the square root of 1 - abar is missing where x0 is computed":
            lambda *a: _eta(*a, root=lambda v: v),
        "the fresh noise is missing": lambda *a: _eta(*a, fresh=torch.zeros_like),
        "x0 is not divided by the root of abar_t":
            lambda *a: _eta(*a, scale=torch.ones_like),
        "x0 is divided by abar_t and not by its root":
            lambda *a: _eta(*a, scale=lambda v: v),
        "tau is taken off before eps: variances are subtracted, not deviations":
            lambda *a: _eta(*a, kept=lambda a_s, var: (1 - a_s).sqrt() - var.sqrt()),
        "tau squared is eta squared times 1 - abar_s: two of its factors are missing":
            lambda *a: _eta(*a, variance=lambda t, s, e: e**2 * (1 - s)),
    },
)  # fmt: skip


# --- exercise 2 ---------------------------------------------------------------------


def _line_inputs(g: Generator) -> Inputs:
    x, m, d = torch.randn(3, *size(g), generator=g)
    low, high = levels(g, 1)
    pairs = (torch.cat([a, (1 - a**2).sqrt()]) for a in (low, high))
    return {"x": x, "m": m, "d": d} | dict(zip(("at_t", "at_s"), pairs, strict=True))


def _line(
    x: Tensor,
    m: Tensor,
    d: Tensor,
    at_t: Tensor,
    at_s: Tensor,
    span: float = 1.0,
    steep: Callable[..., Tensor] = lambda h, flat: h - flat,
    ahead: int = 0,
    level: Callable[[Tensor], Tensor] = lambda h: 1 - (-h).exp(),
) -> Tensor:
    h = span * ((at_s[0] / at_s[1]).log() - (at_t[0] / at_t[1]).log())
    flat = level(h)
    return at_s[1] / at_t[1] * x + at_s[ahead] * (flat * m + steep(h, flat) * d)


def _line_by_alpha(
    x: Tensor, m: Tensor, d: Tensor, at_t: Tensor, at_s: Tensor
) -> Tensor:
    right = _line(x, m, d, at_t, at_s)
    return right + (at_s[0] / at_t[0] - at_s[1] / at_t[1]) * x


line_step = Exercise(
    "line_step",
    draw=_line_inputs,
    truth=_line,
    mistakes={
        "the slope d is left out, which is DDIM":
            lambda *a: _line(*a, steep=lambda h, flat: 0 * h),
        "x0 is taken from the middle of the step, as 2M does, and not integrated":
            lambda *a: _line(*a, steep=lambda h, flat: h / 2 * flat),
        "x0 is taken from the end of the step":
            lambda *a: _line(*a, steep=lambda h, flat: h * flat),
        "the exponential is left out of the slope's integral":
            lambda *a: _line(*a, steep=lambda h, flat: h**2 / 2),
        "h is a difference of log-SNR, twice that of lambda":
            lambda *a: _line(*a, span=2.0),
        "h has the wrong sign: lambda rises along the walk":
            lambda *a: _line(*a, span=-1.0),
        "sigma_s stands where alpha_s belongs: e^lambda_s is missing":
            lambda *a: _line(*a, ahead=1),
        "x is scaled by the ratio of alphas, which belongs to the step in eps":
            _line_by_alpha,
        "the weight of m is e^h - 1: pull e^lambda_s out, not e^lambda_t":
            lambda *a: _line(*a, level=torch.expm1),
        "1 - e^-h has the wrong sign in the weight of d":
            lambda *a: _line(*a, steep=lambda h, flat: h + flat),
        "the weight of d has the wrong sign":
            lambda *a: _line(*a, steep=lambda h, flat: flat - h),
        "alpha_s is missing before the two terms of x0":
            lambda x, m, d, t, s: _line(x, m / s[0], d / s[0], t, s),
        "alpha_t stands where alpha_s belongs":
            lambda x, m, d, t, s: _line(x, m * t[0] / s[0], d * t[0] / s[0], t, s),
        "x is not scaled by the ratio of sigmas":
            lambda x, m, d, t, s: _line(x * t[1] / s[1], m, d, t, s),
    },
)  # fmt: skip


# --- exercise 3 ---------------------------------------------------------------------


def _codes(g: Generator) -> Inputs:
    batch, dim = size(g)
    a, b = torch.randn(2, batch, dim, generator=g)
    # lengths that differ, so that they show where they enter the angle; below 1, so
    # that an arccosine of the bare product exists
    a, b = (v / v.norm(dim=1, keepdim=True) for v in (a, b))
    a, b = ((0.5 + 0.4 * torch.rand(batch, 1, generator=g)) * v for v in (a, b))
    return {"a": a, "b": b, "u": 0.1 + 0.3 * torch.rand((), generator=g).item()}


def _angle(a: Tensor, b: Tensor) -> Tensor:
    return torch.cosine_similarity(a, b, dim=1).acos()[:, None]


def _slerp(
    a: Tensor, b: Tensor, u: float, angle: Callable[..., Tensor] = _angle
) -> Tensor:
    theta = angle(a, b)
    return (((1 - u) * theta).sin() * a + (u * theta).sin() * b) / theta.sin()


def _rescaled(a: Tensor, b: Tensor, u: float) -> Tensor:
    line = torch.lerp(a, b, u)
    return line * a.norm(dim=1, keepdim=True) / line.norm(dim=1, keepdim=True)


def _of_units(a: Tensor, b: Tensor, u: float) -> Tensor:
    normal = torch.nn.functional.normalize
    return _slerp(normal(a, dim=1), normal(b, dim=1), u)


slerp = Exercise(
    "slerp",
    draw=_codes,
    truth=_slerp,
    mistakes={
        "the straight line between the two": torch.lerp,
        "the ends are exchanged: at u = 0 it must be a":
            lambda a, b, u: _slerp(a, b, 1 - u),
        "the straight line, stretched to a's length; the angle is not divided evenly":
            _rescaled,
        "the result has length 1: only the angle is about directions": _of_units,
        "the division by sin(theta) is missing":
            lambda a, b, u: _slerp(a, b, u) * _angle(a, b).sin(),
        "the cosine stands where the angle belongs: acos is missing":
            lambda a, b, u: _slerp(
                a, b, u, lambda a, b: torch.cosine_similarity(a, b, dim=1)[:, None]),
        "one angle is taken for the whole batch":
            lambda a, b, u: _slerp(
                a, b, u, lambda a, b: torch.cosine_similarity(
                    a.flatten(), b.flatten(), dim=0).acos()),
        "the product a . b is not divided by both lengths in the angle":
            lambda a, b, u: _slerp(
                a, b, u, lambda a, b: (a * b).sum(1, keepdim=True).acos()),
        "the angle is taken for a right one: a and b are not exactly orthogonal":
            lambda a, b, u: _slerp(
                a, b, u, lambda a, b: torch.full_like(a[:, :1], torch.pi / 2)),
        "directions and lengths are interpolated apart; the formula has a and b whole":
            lambda a, b, u: _of_units(a, b, u) * torch.lerp(
                a.norm(dim=1, keepdim=True), b.norm(dim=1, keepdim=True), u),
        "root weights, as for independent noises; they leave the circle":
            lambda a, b, u: (1 - u) ** 0.5 * a + u**0.5 * b,
    },
    tolerance=1e-3,
)  # fmt: skip
