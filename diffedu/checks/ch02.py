"""Checks of chapter 2's exercises: the posterior, conversions, bits, blends, a step."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from diffedu.checks.ch02_steps import ancestral_step, posterior, vlb_weight
from diffedu.checks.machinery import Exercise

__all__ = [
    "ancestral_step",
    "bits_per_dim",
    "convert",
    "dual_x0",
    "posterior",
    "vlb_weight",
]

KINDS = ("eps", "x0", "v", "score")


def _levels(generator: torch.Generator, batch: int) -> tuple[Tensor, Tensor]:
    """alpha and sigma of a variance-preserving path, each (B,), both well above 0."""
    angle = 0.3 + torch.rand(batch, generator=generator)
    return angle.cos(), angle.sin()


def _shape(generator: torch.Generator) -> tuple[int, int]:
    batch, dim = torch.randint(4, 9, (2,), generator=generator).tolist()
    return batch, dim + 5


def _conversion_inputs(generator: torch.Generator) -> dict[str, object]:
    batch, dim = _shape(generator)
    x, value = torch.randn(2, batch, dim, generator=generator)
    kind = KINDS[int(torch.randint(4, (), generator=generator))]
    alpha, sigma = _levels(generator, batch)
    return {"x": x, "value": value, "kind": kind, "alpha": alpha, "sigma": sigma}


def _x0_from_eps(x: Tensor, eps: Tensor, a: Tensor, s: Tensor) -> Tensor:
    return (x - s * eps) / a


def _readings(
    x0: Tensor, x: Tensor, a: Tensor, s: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    eps = (x - a * x0) / s
    return x0, eps, a * eps - s * x0, -eps / s


X0_OF: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]] = {
    "eps": _x0_from_eps,
    "x0": lambda x, value, a, s: value,
    "v": lambda x, v, a, s: a * x - s * v,
    "score": lambda x, score, a, s: (x + s**2 * score) / a,
}


def _convert(
    x: Tensor,
    value: Tensor,
    kind: str,
    alpha: Tensor,
    sigma: Tensor,
    read: Callable[..., tuple[Tensor, ...]] = _readings,
    **other: Callable[..., Tensor],
) -> tuple[Tensor, ...]:
    a, s = alpha[:, None], sigma[:, None]
    return read((X0_OF | other)[kind](x, value, a, s), x, a, s)


def _survey_v(x0: Tensor, x: Tensor, a: Tensor, s: Tensor) -> tuple[Tensor, ...]:
    x0, eps, _, score = _readings(x0, x, a, s)
    return x0, eps, a**2 * eps - s**2 * x, score


def _minus_v(x0: Tensor, x: Tensor, a: Tensor, s: Tensor) -> tuple[Tensor, ...]:
    x0, eps, v, score = _readings(x0, x, a, s)
    return x0, eps, -v, score


def _exchanged_v(x0: Tensor, x: Tensor, a: Tensor, s: Tensor) -> tuple[Tensor, ...]:
    x0, eps, _, score = _readings(x0, x, a, s)
    return x0, eps, s * eps - a * x0, score


def _reordered(*order: int) -> Callable[..., tuple[Tensor, ...]]:
    def read(x0: Tensor, x: Tensor, a: Tensor, s: Tensor) -> tuple[Tensor, ...]:
        four = _readings(x0, x, a, s)
        return tuple(four[i] for i in order)

    return read


def _score_divided(power: int, sign: float) -> Callable[..., tuple[Tensor, ...]]:
    def read(x0: Tensor, x: Tensor, a: Tensor, s: Tensor) -> tuple[Tensor, ...]:
        x0, eps, v, _ = _readings(x0, x, a, s)
        return x0, eps, v, sign * eps / s**power

    return read


convert = Exercise(
    "convert",
    draw=_conversion_inputs,
    truth=_convert,
    mistakes={
        "v as the survey misprints it": lambda *a: _convert(*a, read=_survey_v),
        "v with the other sign where it is made": lambda *a: _convert(
            *a, read=_minus_v
        ),
        "v with the other sign where x0 is read from it": lambda *a: _convert(
            *a, v=lambda x, v, a, s: a * x + s * v
        ),
        "the score is not divided by sigma": lambda *a: _convert(
            *a, read=_score_divided(0, -1.0)
        ),
        "the score is divided by the variance instead of sigma": lambda *a: _convert(
            *a, read=_score_divided(2, -1.0)
        ),
        "the score has the sign of eps": (
            lambda *a: _convert(*a, read=_score_divided(1, 1.0))
        ),
        "sigma stands where its square belongs in reading x0 from the score": (
            lambda *a: _convert(*a, score=lambda x, v, a, s: (x + s * v) / a)
        ),
        "the division by alpha is missing where x0 is read from eps": (
            lambda *a: _convert(*a, eps=lambda x, eps, a, s: x - s * eps)
        ),
        "v with alpha and sigma exchanged": lambda *a: _convert(*a, read=_exchanged_v),
        "the square roots of alpha and sigma; they are asked as they are": (
            lambda *a: _convert(*a[:3], a[3].sqrt(), a[4].sqrt())
        ),
        "the right four in another order; asked is x0, eps, v, score": (
            lambda *a: _convert(*a, read=_reordered(1, 0, 2, 3))
        ),
        "the right four, but v and the score are exchanged": lambda *a: _convert(
            *a, read=_reordered(0, 1, 3, 2)
        ),
    },
    returns=("x0", "eps", "v", "score"),
    draws=40,
)


def _bits_inputs(generator: torch.Generator) -> dict[str, object]:
    batch, dim = _shape(generator)
    levels = torch.randint(17, (batch, dim), generator=generator)
    levels[:, 0], levels[:, 1] = 0, 16
    x0 = levels / 8 - 1
    std = 0.05 + 0.2 * torch.rand(batch, dim, generator=generator)
    mean = x0 + std * (2 * torch.rand(batch, dim, generator=generator) - 1)
    return {"x0": x0, "mean": mean, "log_variance": 2 * std.log()}


def _masses(
    x0: Tensor, mean: Tensor, std: Tensor, half: float = 1 / 16, edges: bool = True
) -> Tensor:
    top = torch.special.ndtr((x0 + half - mean) / std)
    bottom = torch.special.ndtr((x0 - half - mean) / std)
    if edges:
        top = torch.where(x0 > 0.99, torch.ones_like(top), top)
        bottom = torch.where(x0 < -0.99, torch.zeros_like(bottom), bottom)
    return top - bottom


def _bits(x0: Tensor, mean: Tensor, log_variance: Tensor, **how: object) -> Tensor:
    std = torch.exp(log_variance / 2)
    return -_masses(x0, mean, std, **how).log2().mean(1)


def _density_bits(x0: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    distance = (x0 - mean).square() / log_variance.exp()
    return (distance + log_variance + math.log(2 * math.pi)).mean(1) / math.log(4)


bits_per_dim = Exercise(
    "bits_per_dim",
    draw=_bits_inputs,
    truth=_bits,
    mistakes={
        "nats: the logarithm has another base": lambda *a: _bits(*a) * math.log(2),
        "a sum over the elements": lambda x0, m, v: _bits(x0, m, v) * x0.shape[1],
        "the outer two levels end at their bins' edges": lambda *a: _bits(
            *a, edges=False
        ),
        "bins of twice the width": lambda *a: _bits(*a, half=1 / 8),
        "the variance is used as a standard deviation": lambda x0, m, v: _bits(
            x0, m, 2 * v
        ),
        "a density at the point, where the mass of a bin is asked": _density_bits,
        "a log-likelihood: the sign is missing": lambda *a: -_bits(*a),
    },
    tolerance=1e-3,
)


def _dual_inputs(generator: torch.Generator) -> dict[str, object]:
    batch, dim = _shape(generator)
    x, eps_hat, x0_hat = torch.randn(3, batch, dim, generator=generator)
    r = 0.1 + 0.3 * torch.rand(batch, generator=generator)
    alpha, sigma = _levels(generator, batch)
    inputs = {"x": x, "eps_hat": eps_hat, "x0_hat": x0_hat, "r": r}
    return inputs | {"alpha": alpha, "sigma": sigma}


def _blend(
    x: Tensor,
    eps_hat: Tensor,
    x0_hat: Tensor,
    r: Tensor,
    alpha: Tensor,
    sigma: Tensor,
    convert: Callable[..., Tensor] = _x0_from_eps,
) -> Tensor:
    from_eps = convert(x, eps_hat, alpha[:, None], sigma[:, None])
    return r[:, None] * from_eps + (1 - r[:, None]) * x0_hat


dual_x0 = Exercise(
    "dual_x0",
    draw=_dual_inputs,
    truth=_blend,
    mistakes={
        "r weighs the other estimate": lambda x, e, x0, r, a, s: _blend(
            x, e, x0, 1 - r, a, s
        ),
        "eps is blended as if it were an x0: it was not converted": lambda *a: _blend(
            *a, convert=lambda x, eps, a, s: eps
        ),
        "the division by alpha is missing": lambda *a: _blend(
            *a, convert=lambda x, eps, a, s: x - s * eps
        ),
        "x and sigma eps are not divided alike": lambda *a: _blend(
            *a, convert=lambda x, eps, a, s: x / a - s * eps
        ),
        "alpha and sigma are squared or rooted once too often": lambda *a: _blend(
            *a, convert=lambda x, eps, a, s: (x - s.sqrt() * eps) / a.sqrt()
        ),
        "the two weights do not sum to 1": lambda x, e, x0, r, a, s: (
            _blend(x, e, x0, r, a, s) + r[:, None] * x0
        ),
    },
)
