"""Checks of chapter 8's exercises: adaLN-Zero, receptive fields, costs, mixers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from diffedu.checks.machinery import Exercise, Function, Property

__all__ = [
    "adaln_zero",
    "dit_operations",
    "receptive_field",
    "state_scan",
    "windowed_attention",
]

Inputs = dict[str, Any]
Mixer = Callable[[Tensor], Tensor]


def _whole(low: int, high: int, g: Generator) -> int:
    """A whole number from low to high - 1."""
    return int(torch.randint(low, high, (), generator=g))


# adaLN-Zero


def _smooth(width: int, n: int, g: Generator) -> Mixer:
    """A random map of tokens (B, n, width) that mixes tokens and features."""
    across = torch.randn(n, n, generator=g) / n**0.5
    within = torch.randn(width, width, generator=g) / width**0.5
    return lambda h: torch.tanh(across.to(h) @ h @ within.to(h)) + 0.3


def _block(g: Generator) -> Inputs:
    size, n, width, length = (_whole(2, 6, g) for _ in range(4))
    width = 2 * width + 2
    return {
        "h": torch.randn(size, n, width, generator=g) + 0.5,
        "c": torch.randn(size, length, generator=g),
        "weight": torch.randn(6 * width, length, generator=g),
        "bias": torch.randn(6 * width, generator=g),
        "mix": _smooth(width, n, g),
        "feed": _smooth(width, n, g),
    }


def _norm(h: Tensor) -> Tensor:
    return F.layer_norm(h, h.shape[-1:], eps=1e-6)


def _adaln(
    h: Tensor, c: Tensor, weight: Tensor, bias: Tensor, mix: Mixer, feed: Mixer,
    order: tuple[int, ...] = (0, 1, 2), one: float = 1.0, norm: Mixer = _norm,
    keep: float = 1.0, gate_all: bool = False, old: bool = False, open_: float = 0.0,
) -> Tensor:  # fmt: skip
    parts = (c @ weight.T + bias)[:, None].chunk(6, dim=2)
    start = h
    for function, three in ((mix, parts[:3]), (feed, parts[3:])):
        shift, scale, gate = (three[i] for i in order)
        seen = start if old else h
        inner = function((one + scale) * norm(seen) + shift)
        h = (
            (gate + open_) * (h + inner)
            if gate_all
            else keep * h + (gate + open_) * inner
        )
    return h


def _is_identity(answer: Function, g: Generator) -> bool:
    drawn = _block(g)
    drawn["weight"].zero_()
    drawn["bias"].zero_()
    return torch.equal(answer(*drawn.values()), drawn["h"])


adaln_zero = Exercise(
    "adaln_zero",
    draw=_block,
    truth=_adaln,
    mistakes={
        "the scale multiplies by itself: 1 is missing, so a zero scale erases all":
            lambda *a: _adaln(*a, one=0.0),
        "shift and scale are exchanged":
            lambda *a: _adaln(*a, order=(1, 0, 2)),
        "the order within each three is shift, scale, gate; the gate comes first here":
            lambda *a: _adaln(*a, order=(1, 2, 0)),
        "the norm is missing":
            lambda *a: _adaln(*a, norm=lambda h: h),
        "the gate multiplies the shortcut too: at the start nothing would pass":
            lambda *a: _adaln(*a, gate_all=True),
        "the shortcut is missing":
            lambda *a: _adaln(*a, keep=0.0),
        "the gate is 1 plus its vector, so that a new block isn't the identity":
            lambda *a: _adaln(*a, open_=1.0),
        "the second half is given the block's input; it works on what the first "
        "half answered":
            lambda *a: _adaln(*a, old=True),
        "only the first half of the block is there":
            lambda h, c, w, b, mix, feed: _adaln(h, c, w, b, mix, torch.zeros_like),
        "mix and feed are exchanged":
            lambda h, c, w, b, mix, feed: _adaln(h, c, w, b, feed, mix),
    },
    properties=(
        Property(
            "with weight and bias at zero the block must be the identity, exactly",
            _is_identity,
        ),
    ),
)  # fmt: skip


# The receptive field


def _stack(g: Generator) -> Inputs:
    depth = _whole(3, 7, g)
    kernels = [2 * _whole(0, 4, g) + 1 for _ in range(depth)]
    strides = [1 + int(torch.rand((), generator=g) < 0.5) for _ in range(depth)]
    return {"kernels": [*kernels, 3], "strides": [2, *strides]}


def _field(
    kernels: list[int], strides: list[int], late: bool = False, minus: int = 1,
    start: int = 1,
) -> int:  # fmt: skip
    seen, jump = start, 1
    for kernel, stride in zip(kernels, strides, strict=True):
        if late:
            jump *= stride
        seen += (kernel - minus) * jump
        if not late:
            jump *= stride
    return seen


def _ones(strides: list[int]) -> list[int]:
    return [1 for _ in strides]


receptive_field = Exercise(
    "receptive_field",
    draw=_stack,
    truth=_field,
    mistakes={
        "a layer's own stride is counted for it; only the strides before it are":
            lambda k, s: _field(k, s, late=True),
        "the strides are ignored: after a stride of 2 a pixel is two pixels wide":
            lambda k, s: _field(k, _ones(s)),
        "each layer adds its kernel's size less one; here the whole size is added":
            lambda k, s: _field(k, s, minus=0),
        "the count starts at 0, but with no layer at all one pixel is seen":
            lambda k, s: _field(k, s, start=0),
        "strides are added up, where they multiply":
            lambda k, s: 1 + sum(
                (k[i] - 1) * (1 + sum(v - 1 for v in s[:i])) for i in range(len(k))
            ),
        "the layers are walked from the last to the first":
            lambda k, s: _field(k[::-1], s[::-1]),
    },
)  # fmt: skip


# What a DiT costs


def _shape(g: Generator) -> Inputs:
    patch = 2 ** _whole(0, 3, g)
    grid, heads = _whole(3, 9, g), _whole(2, 9, g)
    return {
        "size": patch * grid, "patch": patch, "width": 8 * heads,
        "depth": _whole(2, 7, g),
    }  # fmt: skip


def _operations(
    size: int, patch: int, width: int, depth: int, square: float = 2.0,
    linear: float = 12.0, modulation: float = 6.0, per_token: bool = False,
    two: int = 2, n: int | None = None,
) -> float:  # fmt: skip
    n = (size // patch) ** 2 if n is None else n
    spoken = modulation * width**2 * (n if per_token else 1)
    each = linear * n * width**2 + square * n**2 * width + spoken
    return float(two * depth * each)


dit_operations = Exercise(
    "dit_operations",
    draw=_shape,
    truth=_operations,
    mistakes={
        "the products of attention are missing, the part that grows with N squared":
            lambda *a: _operations(*a, square=0.0),
        "attention has two products, scores and the weighted mean; one is counted":
            lambda *a: _operations(*a, square=1.0),
        "a multiplication with its addition counts as two operations":
            lambda *a: _operations(*a, two=1),
        "the layer of the condition is missing":
            lambda *a: _operations(*a, modulation=0.0),
        "the condition's layer runs once an image, not once a token":
            lambda *a: _operations(*a, per_token=True),
        "the number of tokens is that of one side; an image has its square":
            lambda s, p, w, d: _operations(s, p, w, d, n=s // p),
        "the number of tokens is that of the pixels; a patch is one token":
            lambda s, p, w, d: _operations(s, p, w, d, n=s * s),
        "the linear layers of the two-layer network are missing or too small":
            lambda *a: _operations(*a, linear=4.0),
        "attention's output layer is missing":
            lambda *a: _operations(*a, linear=11.0),
        "one block is counted, not all of them":
            lambda s, p, w, d: _operations(s, p, w, 1),
    },
    relative=True,
)  # fmt: skip


# Attention in windows


def _tokens(g: Generator) -> Inputs:
    size, heads, window, d = (_whole(2, 5, g) for _ in range(4))
    n = window * _whole(2, 5, g)
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


def _masked_late(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    run = torch.arange(q.shape[2]) // window
    weights = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)
    return (weights * (run[:, None] == run)) @ v


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
        "the softmax runs over the queries; each query's weights must sum to 1":
            lambda *a: _windows(*a, dim=-2),
        "a window gathers every so-manyth token; it is a run of neighbours":
            lambda *a: _windows(*a, strided=True),
        "each token has a window around itself; here the row is cut into runs":
            _banded,
        "weights are set to zero after the softmax, so they no longer sum to 1":
            _masked_late,
    },
)  # fmt: skip


# A diagonal state-space model


def _run(g: Generator) -> Inputs:
    size, width, states, n = (_whole(2, 5, g) for _ in range(4))
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
        "what goes in is not weighed":
            lambda u, decay, into, out: _scan(u, decay, into**0, out),
        "what comes out is not weighed":
            lambda u, decay, into, out: _scan(u, decay, into, out**0),
    },
)  # fmt: skip
