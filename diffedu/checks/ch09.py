"""Checks of chapter 9's exercises: conventions, overshoot, intervals, and the rest.

Windows, classifiers and energies are in their own modules.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor

from diffedu.checks.ch03_fields import whole
from diffedu.checks.ch09_classifier import noisy_loss
from diffedu.checks.ch09_pictures import colour_push, fuse
from diffedu.checks.machinery import Exercise, Property

__all__ = [
    "colour_push",
    "fuse",
    "guide",
    "interval_guided",
    "noisy_loss",
    "two_gaussians",
]

Inputs = dict[str, Any]


# Both conventions


def _looks(g: Generator) -> Inputs:
    u, c = torch.randn(2, whole(3, 7, g), whole(2, 5, g), generator=g)
    amount = 0.3 + 3 * float(torch.rand((), generator=g))
    # draws have seeds in a row, so that they take turns
    convention = ("scale", "w")[g.initial_seed() % 2]
    return {"u": u, "c": c, "amount": amount, "convention": convention}


def _guide(u: Tensor, c: Tensor, amount: float, convention: str) -> Tensor:
    scale = amount if convention == "scale" else amount + 1
    return u + scale * (c - u)


OTHER = {"scale": "w", "w": "scale"}


def _exact_at_one(answer: Any, g: Generator) -> bool:
    u, c = torch.randn(2, 64, 3, generator=g)
    return torch.equal(answer(u, c, 1.0, "scale"), c)


guide = Exercise(
    "guide",
    draw=_looks,
    truth=_guide,
    mistakes={
        "the two conventions are exchanged":
            lambda u, c, a, name: _guide(u, c, a, OTHER[name]),
        "the amount is always taken for a scale":
            lambda u, c, a, name: _guide(u, c, a, "scale"),
        "the amount is always taken for a w":
            lambda u, c, a, name: _guide(u, c, a, "w"),
        "w is scale + 1 here; it is scale - 1":
            lambda u, c, a, name: _guide(u, c, a - 2 * (name == "w"), name),
        "w is 1 - scale here; it is scale - 1":
            lambda u, c, a, name: _guide(u, c, a if name == "scale" else -a, name),
        "the push is there, and not what it is added to":
            lambda u, c, a, name: _guide(u, c, a, name) - u,
        "u and c are exchanged":
            lambda u, c, a, name: _guide(c, u, a, name),
        "the push is added to c, which counts the condition once too often":
            lambda u, c, a, name: _guide(u, c, a, name) + c - u,
        "u is added, where what exceeds 1 must be taken away":
            lambda u, c, a, name: 2 * c * (a + (name == "w")) - _guide(u, c, a, name),
    },
    properties=(
        Property(
            "its value is right up to rounding, but scale 1 must give c bit by bit; "
            "look for torch.lerp, or for weights that are exactly 1 and 0",
            _exact_at_one,
        ),
    ),
)  # fmt: skip


# Two Gaussians


def _variances(g: Generator) -> Inputs:
    scale = 1.2 + 4 * float(torch.rand((), generator=g))
    var_c = 0.2 + torch.rand((), generator=g)
    return {"scale": scale, "var_c": var_c, "var_u": var_c * (1.3 + 2 * torch.rand(
        (), generator=g))}  # fmt: skip


def _two(scale: float, var_c: Tensor, var_u: Tensor) -> tuple[Tensor, Tensor]:
    tilted = 1 / (scale / var_c + (1 - scale) / var_u)
    return var_c**scale * var_u ** (1 - scale), tilted


two_gaussians = Exercise(
    "two_gaussians",
    draw=_variances,
    truth=_two,
    returns=("of the ODE", "tilted"),
    relative=True,
    mistakes={
        "the scale is taken for w":
            lambda s, c, u: _two(s + 1, c, u),
        "the conditional and the unconditional variance are exchanged":
            lambda s, c, u: _two(s, u, c),
        "standard deviations are returned, where variances are asked":
            lambda s, c, u: tuple(v.sqrt() for v in _two(s, c, u)),
        "the two results are exchanged":
            lambda s, c, u: _two(s, c, u)[::-1],
        "the ODE's result is the tilted one; solve the equation":
            lambda s, c, u: (_two(s, c, u)[1],) * 2,
        "the exponents of the ODE's two variances are exchanged":
            lambda s, c, u: (_two(s, u, c)[0], _two(s, c, u)[1]),
        "the ODE's exponent of var_u has the wrong sign; the two sum to 1":
            lambda s, c, u: (c**s * u ** (s - 1), _two(s, c, u)[1]),
        "variances are mixed for the ODE, where their logarithms are":
            lambda s, c, u: (s * c + (1 - s) * u, _two(s, c, u)[1]),
        "p(x) is not taken away in the tilted density":
            lambda s, c, u: (_two(s, c, u)[0], c / s),
        "p(x) is multiplied into the tilted density; its weight is below zero":
            lambda s, c, u: (_two(s, c, u)[0], 1 / (s / c + (s - 1) / u)),
        "p(x) enters the tilted density as p(x) to the power 1":
            lambda s, c, u: (_two(s, c, u)[0], 1 / (s / c + 1 / u)),
        "variances are mixed in the tilted density, where their inverses are":
            lambda s, c, u: (_two(s, c, u)[0], s * c + (1 - s) * u),
        "the ODE's exponents lack the half of dx/dv, so that x is its own square":
            lambda s, c, u: (_two(s, c, u)[0] ** 2, _two(s, c, u)[1]),
        "the ODE's exponents have the half twice: x is squared to a variance":
            lambda s, c, u: (_two(s, c, u)[0] ** 0.5, _two(s, c, u)[1]),
        "the precision is returned, where the tilted density's variance is asked":
            lambda s, c, u: (_two(s, c, u)[0], 1 / _two(s, c, u)[1]),
    },
)  # fmt: skip


# An interval for each sample


def _levels(g: Generator) -> Inputs:
    u, c = torch.randn(2, 12, whole(2, 5, g), generator=g)
    low = 0.2 + 0.3 * float(torch.rand((), generator=g))
    high = low + 1 + float(torch.rand((), generator=g))
    level = 3 * torch.rand(12, generator=g)
    # one inside, one on each edge, one on either side
    level[:5] = torch.tensor([(low + high) / 2, low, high, low / 2, 2 * high])
    scale = 2 + float(torch.rand((), generator=g))
    return {"u": u, "c": c, "level": level.double(), "scale": scale,
            "low": float(level[1]), "high": float(level[2])}  # fmt: skip


def _interval(
    u: Tensor, c: Tensor, level: Tensor, scale: float, low: float, high: float,
    off: float = 1.0, inside: Any = None,
) -> Tensor:  # fmt: skip
    test = inside or (lambda level: (level > low) & (level <= high))
    strength = torch.where(test(level), scale, off)[:, None]
    return u + strength * (c - u)


interval_guided = Exercise(
    "interval_guided",
    draw=_levels,
    truth=_interval,
    mistakes={
        "outside of the interval the unconditional model speaks; the plain "
        "conditional one should":
            lambda *a: _interval(*a, off=0.0),
        "guidance is on outside of the interval and off inside":
            lambda *a: _interval(*a, inside=lambda v: (v <= a[4]) | (v > a[5])),
        "the lower end counts as inside":
            lambda *a: _interval(*a, inside=lambda v: (v >= a[4]) & (v <= a[5])),
        "the upper end counts as outside":
            lambda *a: _interval(*a, inside=lambda v: (v > a[4]) & (v < a[5])),
        "both ends are on the wrong side":
            lambda *a: _interval(*a, inside=lambda v: (v >= a[4]) & (v < a[5])),
        "only the lower end is asked":
            lambda *a: _interval(*a, inside=lambda v: v > a[4]),
        "only the upper end is asked":
            lambda *a: _interval(*a, inside=lambda v: v <= a[5]),
        "the scale is taken for w":
            lambda u, c, level, s, low, high: _interval(u, c, level, s + 1, low, high),
        "outside of the interval nothing is predicted; the plain conditional "
        "prediction stands there":
            lambda *a: _interval(*a) * ((a[2] > a[4]) & (a[2] <= a[5]))[:, None],
        "inside of the interval u and c are exchanged":
            lambda *a: torch.where(((a[2] > a[4]) & (a[2] <= a[5]))[:, None],
                                   a[1] + a[3] * (a[0] - a[1]), a[1]),
        "all samples are guided: the whole batch follows one level or any of them, "
        "or the two comparisons are joined by an or":
            lambda *a: _interval(*a, inside=lambda v: v == v),
        "no sample is guided: all levels of the batch are asked at once, or the two "
        "comparisons exclude each other":
            lambda *a: _interval(*a, inside=lambda v: v != v),
    },
)  # fmt: skip
