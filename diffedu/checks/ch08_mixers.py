"""Checks of chapter 8's mixers: attention in windows, and a diagonal scan."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor
from torch.utils.flop_counter import FlopCounterMode

from diffedu.checks.machinery import Exercise, Function, Property

Inputs = dict[str, Any]


def whole(low: int, high: int, g: Generator) -> int:
    """A whole number from low to high - 1."""
    return int(torch.randint(low, high, (), generator=g))


# Attention in windows


def _tokens(g: Generator) -> Inputs:
    size, heads, window, d = (whole(2, 5, g) for _ in range(4))
    n = window * whole(2, 5, g)
    q, k, v = 1.5 * torch.randn(3, size, heads, n, d, generator=g)
    return {"q": q, "k": k, "v": v, "window": window}


def _attend(q: Tensor, k: Tensor, v: Tensor, scale: float, dim: int = -1) -> Tensor:
    return (q @ k.transpose(-1, -2) / scale).softmax(dim) @ v


def _windows(
    q: Tensor, k: Tensor, v: Tensor, window: int, power: float = 0.5, dim: int = -1,
    strided: bool = False,
) -> Tensor:  # fmt: skip
    runs = (-1, window) if not strided else (window, -1)
    cut = [x.unflatten(2, runs) for x in (q, k, v)]
    if strided:
        cut = [x.transpose(2, 3) for x in cut]
    out = _attend(*cut, scale=q.shape[-1] ** power, dim=dim)
    return (out.transpose(2, 3) if strided else out).flatten(2, 3)


def _banded(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    place = torch.arange(q.shape[2])
    near = (place[:, None] - place).abs() < window
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    return scores.masked_fill(~near, -torch.inf).softmax(-1) @ v


def _masked_with_zero(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    run = torch.arange(q.shape[2]) // window
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    return (scores * (run[:, None] == run)).softmax(-1) @ v


def _masked_late(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    run = torch.arange(q.shape[2]) // window
    weights = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)
    return (weights * (run[:, None] == run)) @ v


def _saves(answer: Function, g: Generator) -> bool:
    """Eight runs of 8 must cost an eighth of all pairs, or half as much again."""
    q, k, v = torch.randn(3, 1, 2, 64, 4, generator=g)
    with FlopCounterMode(display=False) as counter:
        answer(q, k, v, 8)
    return counter.get_total_flops() <= 1.5 * 4 * 2 * 64 * 8 * 4


windowed_attention = Exercise(
    "windowed_attention",
    draw=_tokens,
    truth=_windows,
    mistakes={
        "every token sees every other: there are no windows":
            lambda q, k, v, window: _attend(q, k, v, q.shape[-1] ** 0.5),
        "the scores are not divided by the square root of d":
            lambda *a: _windows(*a, power=0.0),
        "the scores are divided by d, not by its square root":
            lambda *a: _windows(*a, power=1.0),
        "the scores are divided by the root of the window; it is that of d":
            lambda q, k, v, m: _windows(q * (q.shape[-1] / m) ** 0.5, k, v, m),
        "queries and keys are exchanged":
            lambda q, k, v, m: _windows(k, q, v, m),
        "the row is cut into `window` runs; each run has `window` tokens":
            lambda q, k, v, m: _windows(q, k, v, q.shape[2] // m),
        "scores outside the run are set to zero, and exp(0) is 1":
            _masked_with_zero,
        "the softmax runs over the queries; each query's weights must sum to 1":
            lambda *a: _windows(*a, dim=-2),
        "a window gathers every so-manyth token; it is a run of neighbours":
            lambda *a: _windows(*a, strided=True),
        "each token has a window around itself; here the row is cut into runs":
            _banded,
        "weights are set to zero after the softmax, so they no longer sum to 1":
            _masked_late,
    },
    properties=(
        Property(
            "its values are right, but it multiplies all pairs of tokens and masks "
            "most of them: nothing is saved",
            _saves,
        ),
    ),
)  # fmt: skip


# A diagonal state-space model


def _run(g: Generator) -> Inputs:
    size, width, states, n = (whole(2, 5, g) for _ in range(4))
    u = torch.randn(size, width, n + 2, generator=g)
    decay = 0.4 + 0.5 * torch.rand(width, states, generator=g)
    into, out = torch.randn(2, width, states, generator=g)
    return {"u": u, "decay": decay, "into": into, "out": out}


def _scan(
    u: Tensor, decay: Tensor, into: Tensor, out: Tensor, late: bool = False,
    mean: bool = False,
) -> Tensor:  # fmt: skip
    h = torch.zeros(len(u), *decay.shape, dtype=u.dtype)
    answers = []
    for now in u.unbind(2):
        before, h = h, decay * h + into * now[:, :, None]
        seen = out * (before if late else h)
        answers.append(seen.mean(-1) if mean else seen.sum(-1))
    return torch.stack(answers, dim=2)


def _scan_twice(u: Tensor, decay: Tensor, into: Tensor, out: Tensor) -> Tensor:
    """The decay acts on the new input too."""
    return _scan(u, decay, decay * into, out)


state_scan = Exercise(
    "state_scan",
    draw=_run,
    truth=_scan,
    mistakes={
        "the answer is read before the token is taken in: shifted by one":
            lambda *a: _scan(*a, late=True),
        "a mean is taken over the states, where they are summed":
            lambda *a: _scan(*a, mean=True),
        "the decay acts on the new token as well as on the old state":
            _scan_twice,
        "the row is run from its end":
            lambda u, *a: _scan(u.flip(2), *a).flip(2),
        "the state is not carried on: each token is answered alone":
            lambda u, decay, into, out: _scan(u, 0 * decay, into, out),
        "the state does not decay":
            lambda u, decay, into, out: _scan(u, decay**0, into, out),
        "the decay is exponentiated; here a is the factor of a step itself":
            lambda u, decay, *a: _scan(u, decay.exp(), *a),
        "the factor 2 of complex states is there; these are real":
            lambda *a: 2 * _scan(*a),
        "the input is added to the answer; there is no direct term here":
            lambda u, *a: _scan(u, *a) + u,
        "what goes in is not weighed":
            lambda u, decay, into, out: _scan(u, decay, into**0, out),
        "what comes out is not weighed":
            lambda u, decay, into, out: _scan(u, decay, into, out**0),
    },
)  # fmt: skip
