"""Chapter 6's checks of students, consistency models and the ledger."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Generator, Tensor

from diffedu.checks.machinery import Exercise, Inputs


def size(g: Generator) -> tuple[int, int]:
    """Batch and width, each from 3 to 6."""
    return tuple(torch.randint(3, 7, (2,), generator=g).tolist())


def levels(g: Generator, batch: int) -> tuple[Tensor, Tensor]:
    """Signal at a noisier and at a cleaner level, each (batch,)."""
    low = 0.1 + 0.35 * torch.rand(batch, generator=g)
    return low, low + 0.15 + 0.3 * torch.rand(batch, generator=g)


# --- exercise 4 ---------------------------------------------------------------------


def _landing(g: Generator) -> Inputs:
    x_t, x_s = torch.randn(2, *size(g), generator=g)
    low, high = levels(g, len(x_t))
    high[-1] = 1.0  # one sample arrives at the data
    at_t, at_s = (torch.stack([a, (1 - a**2).sqrt()]) for a in (low, high))
    return {"x_t": x_t, "x_s": x_s, "at_t": at_t, "at_s": at_s}


def _target(
    x_t: Tensor,
    x_s: Tensor,
    at_t: Tensor,
    at_s: Tensor,
    ratio: Callable[..., Tensor] = lambda t, s: s[1] / t[1],
    sign: float = -1.0,
    keep: float = 1.0,
) -> Tensor:
    at_t, at_s = at_t[:, :, None], at_s[:, :, None]
    r = ratio(at_t, at_s)
    return (x_s - r * x_t) / (at_s[0] + sign * keep * r * at_t[0])


student_target = Exercise(
    "student_target",
    draw=_landing,
    truth=_target,
    mistakes={
        "x_s itself: the student answers an x0, not where the step lands":
            lambda x_t, x_s, t, s: x_s,
        "x_s divided by alpha_s: its noise is still in it":
            lambda x_t, x_s, t, s: x_s / s[0][:, None],
        "the sign in the denominator is wrong": lambda *a: _target(*a, sign=1.0),
        "x_t's own x0 is forgotten in the denominator: eps depends on it too":
            lambda *a: _target(*a, keep=0.0),
        "the denominator is missing":
            lambda x_t, x_s, t, s: x_s - (s[1] / t[1])[:, None] * x_t,
        "the roles of t and s are exchanged":
            lambda x_t, x_s, t, s: _target(x_s, x_t, s, t),
        "the sign in the numerator is wrong":
            lambda x_t, x_s, t, s: _target(-x_t, x_s, t, s),
        "the ratio of sigmas is missing before x_t":
            lambda x_t, x_s, t, s: (
                (x_s - x_t) / (s[0] - s[1] / t[1] * t[0])[:, None]),
        "the ratio of sigmas is missing in the denominator":
            lambda x_t, x_s, t, s: (
                (x_s - (s[1] / t[1])[:, None] * x_t) / (s[0] - t[0])[:, None]),
        "multiplied by the denominator":
            lambda x_t, x_s, t, s: (
                (x_s - (s[1] / t[1])[:, None] * x_t)
                * (s[0] - s[1] / t[1] * t[0])[:, None]),
        "the sigmas are squared":
            lambda *a: _target(*a, ratio=lambda t, s: (s[1] / t[1]) ** 2),
    },
)  # fmt: skip


# --- exercise 5 ---------------------------------------------------------------------


def _boundary_inputs(g: Generator) -> Inputs:
    x, F = torch.randn(2, *size(g), generator=g)
    smallest = 0.05 + 0.1 * torch.rand((), generator=g).item()
    sigma = smallest + 2 * torch.rand(len(x), generator=g)
    sigma[-1] = smallest  # the last: a batch of one should tell right from wrong
    data = 0.4 + 0.4 * torch.rand((), generator=g).item()
    return {"x": x, "F": F, "sigma": sigma, "sigma_data": data, "sigma_min": smallest}


def _consistency(
    x: Tensor,
    F: Tensor,
    sigma: Tensor,
    sigma_data: float,
    sigma_min: float,
    skip: Callable[..., Tensor] = lambda s, e, d: d**2 / ((s - e) ** 2 + d**2),
    out: Callable[..., Tensor] = lambda s, e, d: d * (s - e) / (s**2 + d**2).sqrt(),
) -> Tensor:
    at = (sigma[:, None], sigma_min, sigma_data)
    return skip(*at) * x + out(*at) * F


consistency_f = Exercise(
    "consistency_f",
    draw=_boundary_inputs,
    truth=_consistency,
    mistakes={
        "EDM's coefficients, whose identity is at sigma = 0":
            lambda x, F, s, d, e: _consistency(x, F, s, d, 0.0),
        "sigma_min is left out of c_out":
            lambda *a: _consistency(
                *a, out=lambda s, e, d: d * s / (s**2 + d**2).sqrt()),
        "sigma_min is left out of c_skip":
            lambda *a: _consistency(*a, skip=lambda s, e, d: d**2 / (s**2 + d**2)),
        "sigma_min is taken off under the root too":
            lambda *a: _consistency(
                *a, out=lambda s, e, d: d * (s - e) / ((s - e) ** 2 + d**2).sqrt()),
        "the square root in c_out is missing":
            lambda *a: _consistency(
                *a, out=lambda s, e, d: d * (s - e) / (s**2 + d**2)),
        "sigma_data is not squared in c_skip":
            lambda *a: _consistency(*a, skip=lambda s, e, d: d / ((s - e) ** 2 + d)),
        "sigma_data is missing before c_out":
            lambda *a: _consistency(
                *a, out=lambda s, e, d: (s - e) / (s**2 + d**2).sqrt()),
        "x and F have each other's coefficient":
            lambda x, F, s, d, e: _consistency(F, x, s, d, e),
        "c_out is taken as 1 - c_skip":
            lambda *a: _consistency(
                *a, out=lambda s, e, d: 1 - d**2 / ((s - e) ** 2 + d**2)),
        "sigma - sigma_min is missing in c_out, so that F speaks at the boundary":
            lambda *a: _consistency(
                *a, out=lambda s, e, d: d / (s**2 + d**2).sqrt()),
        "x is scaled by c_in too, which is only for what the network sees":
            lambda x, F, s, d, e: _consistency(
                x / (s**2 + d**2).sqrt()[:, None], F, s, d, e),
        "F's term has the wrong sign":
            lambda x, F, s, d, e: _consistency(x, -F, s, d, e),
        "x is left out: without it nothing is the identity":
            lambda *a: _consistency(*a, skip=lambda s, e, d: 0 * s),
    },
)  # fmt: skip


# --- exercise 6 ---------------------------------------------------------------------


def _ledger_inputs(g: Generator) -> Inputs:
    halvings = int(torch.randint(2, 8, (), generator=g))
    # small numbers, in which rounding would show
    steps, batch = (int(n) for n in torch.randint(5, 40, (2,), generator=g))
    after = int(torch.randint(2, 6, (), generator=g))
    before = after * 2**halvings
    return {"halvings": halvings, "steps": steps, "batch": batch,
            "nfe_before": before, "nfe_after": after}  # fmt: skip


def _pays(
    halvings: int,
    steps: int,
    batch: int,
    nfe_before: int,
    nfe_after: int,
    unit: int = 5,
) -> Tensor:
    saved = nfe_before - nfe_after
    return torch.tensor(halvings * steps * batch * unit / saved, dtype=torch.float64)


pays_after = Exercise(
    "pays_after",
    draw=_ledger_inputs,
    truth=_pays,
    mistakes={
        "three passes a sample: the teacher's or the pass backward are left out":
            lambda *a: _pays(*a, unit=3),
        "four passes a sample: the teacher takes two, a pass backward counts as two":
            lambda *a: _pays(*a, unit=4),
        "the teacher's passes are counted backward too":
            lambda *a: _pays(*a, unit=9),
        "the batch is left out": lambda h, n, b, x, y: _pays(h, n, 1, x, y),
        "only one halving is counted": lambda h, n, b, x, y: _pays(1, n, b, x, y),
        "divided by what a sample used to cost: it still costs something":
            lambda h, n, b, x, y: _pays(h, n, b, x, 0),
        "upside down": lambda *a: 1 / _pays(*a),
        "divided by the ratio of the costs; what a sample saves is their difference":
            lambda h, n, b, x, y: _pays(h, n, b, x / y, 0),
        "a factor 2 ** halvings: each halving takes as many steps as the others":
            lambda h, n, b, x, y: _pays(2**h, n, b, x, y),
        "rounded up: the number is wanted as it is":
            lambda *a: _pays(*a).ceil(),
        "rounded down: the number is wanted as it is":
            lambda *a: _pays(*a).floor(),
        "rounded: the number is wanted as it is": lambda *a: _pays(*a).round(),
        "what is spent, not after how many samples it is saved":
            lambda h, n, b, x, y: _pays(h, n, b, 1, 0),
    },
)  # fmt: skip
