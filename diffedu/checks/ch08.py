"""Checks of chapter 8's exercises: adaLN-Zero, receptive fields, costs, mixers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from diffedu.checks.ch08_mixers import state_scan, whole, windowed_attention
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


# adaLN-Zero


def _smooth(width: int, n: int, g: Generator) -> Mixer:
    """A random map of tokens (B, n, width) that mixes tokens and features."""
    across = torch.randn(n, n, generator=g) / n**0.5
    within = torch.randn(width, width, generator=g) / width**0.5
    return lambda h: torch.tanh(across.to(h) @ h @ within.to(h)) + 0.3


def _block(g: Generator) -> Inputs:
    size, n, width, length = (whole(2, 6, g) for _ in range(4))
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


def _over_tokens(h: Tensor) -> Tensor:
    return _norm(h.transpose(1, 2)).transpose(1, 2)


def _adaln(
    h: Tensor, c: Tensor, weight: Tensor, bias: Tensor, mix: Mixer, feed: Mixer,
    order: Any = range(6), one: float = 1.0, norm: Mixer = _norm, late: bool = False,
    keep: float = 1.0, gate_all: bool = False, old: bool = False, open_: float = 0.0,
) -> Tensor:  # fmt: skip
    parts = (c @ weight.T + bias)[:, None].chunk(6, dim=2)
    parts, start = [parts[i] for i in order], h
    for function, (shift, scale, gate) in ((mix, parts[:3]), (feed, parts[3:])):
        seen = start if old else h
        inner = (one + scale) * (seen if late else norm(seen)) + shift
        inner = function(norm(inner) if late else inner)
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
            lambda *a: _adaln(*a, order=(1, 0, 2, 4, 3, 5)),
        "the order within each three is shift, scale, gate; the gate comes first here":
            lambda *a: _adaln(*a, order=(1, 2, 0, 4, 5, 3)),
        "scale and gate are exchanged":
            lambda *a: _adaln(*a, order=(0, 2, 1, 3, 5, 4)),
        "the two halves have each other's vectors":
            lambda *a: _adaln(*a, order=(3, 4, 5, 0, 1, 2)),
        "the second half has the first half's gate":
            lambda *a: _adaln(*a, order=(0, 1, 2, 3, 4, 2)),
        "the bias of the linear layer is missing":
            lambda h, c, w, b, *f: _adaln(h, c, w, 0 * b, *f),
        "a SiLU acts on the condition; here c comes as it is":
            lambda h, c, *a: _adaln(h, F.silu(c), *a),
        "the norm comes after scale and shift, which it undoes in part":
            lambda *a: _adaln(*a, late=True),
        "the norm runs over the tokens, not over a token's features":
            lambda *a: _adaln(*a, norm=_over_tokens),
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
    depth = whole(3, 7, g)
    kernels = [2 * whole(0, 4, g) + 1 for _ in range(depth)]
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
        "all strides are taken for 2":
            lambda k, s: _field(k, [2 for _ in s]),
        "only the layer before counts; the product runs over all before it":
            lambda k, s: 1 + sum((a - 1) * b for a, b in zip(k, [1, *s], strict=False)),
        "the strides after a layer count, not those before: last to first":
            lambda k, s: _field(k[::-1], s[::-1]),
    },
)  # fmt: skip


# What a DiT costs


def _shape(g: Generator) -> Inputs:
    patch = 2 ** whole(0, 3, g)
    grid, heads = whole(3, 9, g), whole(2, 9, g)
    return {
        "size": patch * grid, "patch": patch, "width": 8 * heads,
        "depth": whole(2, 7, g),
    }  # fmt: skip


def _operations(
    size: int, patch: int, width: int, depth: int, square: float = 2.0,
    linear: float = 12.0, modulation: float = 6.0, times: str = "",
    two: int = 2, n: int | None = None, length: int | None = None,
) -> float:  # fmt: skip
    n = (size // patch) ** 2 if n is None else n
    spoken = modulation * width**2
    spoken *= {"token": n, "network": 1 / depth}.get(times, 1)
    each = linear * n * width**2 + square * n**2 * (length or width) + spoken
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
            lambda *a: _operations(*a, times="token"),
        "the condition's layer is counted once; every block has its own":
            lambda *a: _operations(*a, times="network"),
        "each of the N squared scores is a product of length w, not 1":
            lambda *a: _operations(*a, length=1),
        "queries, keys and values are three layers' work; one is counted":
            lambda *a: _operations(*a, linear=10.0),
        "4 w^2 a token are missing: attention's layers or half of the network":
            lambda *a: _operations(*a, linear=8.0),
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
