"""Check of chapter 4b's coupling layer: both directions and the log-determinant."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor

from diffedu.checks.ch03_fields import Field, random_field, whole
from diffedu.checks.machinery import Exercise, Function

Inputs = dict[str, Any]


def _coupled(g: Generator) -> Inputs:
    size, dim = whole(4, 9, g), whole(3, 6, g)
    mask = torch.zeros(dim)
    mask[torch.randperm(dim, generator=g)[: whole(1, dim, g)]] = 1.0
    inner = random_field(dim, g)
    tilt = random_field(dim, g)

    def net(kept: Tensor) -> Tensor:
        return torch.cat([0.4 * inner(kept), tilt(kept)], 1)

    v = torch.randn(size, dim, generator=g)
    backward = bool(torch.rand((), generator=g) < 0.5)
    return {"v": v, "mask": mask, "net": net, "inverse": backward}


def _couple(
    v: Tensor, mask: Tensor, net: Field, inverse: bool, sign: float = -1.0,
    det: float = -1.0, seen: Function = lambda v, mask: v * mask,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    a, c = net(seen(v, mask)).chunk(2, dim=1)
    if inverse:
        moved = (v - c) * (sign * a).exp()
        log_det = det * ((1 - mask) * a).sum(1)
    else:
        moved = v * a.exp() + c
        log_det = ((1 - mask) * a).sum(1)
    return mask * v + (1 - mask) * moved, log_det


def _no_shift_first(v: Tensor, mask: Tensor, net: Field, inverse: bool) -> Any:
    a, c = net(v * mask).chunk(2, dim=1)
    right, log_det = _couple(v, mask, net, inverse)
    wrong = mask * v + (1 - mask) * (v * (-a).exp() - c)
    return (wrong if inverse else right), log_det


def _scaled_shift(v: Tensor, mask: Tensor, net: Field, inverse: bool) -> Any:
    a, c = net(v * mask).chunk(2, dim=1)
    moved = v * (-a).exp() - c if inverse else (v + c) * a.exp()
    sign = -1 if inverse else 1
    return mask * v + (1 - mask) * moved, sign * ((1 - mask) * a).sum(1)


def _all_scales(v: Tensor, mask: Tensor, net: Field, inverse: bool) -> Any:
    a, _ = net(v * mask).chunk(2, dim=1)
    moved, _ = _couple(v, mask, net, inverse)
    return moved, (-1 if inverse else 1) * a.sum(1)


def _kept_lost(v: Tensor, mask: Tensor, net: Field, inverse: bool) -> Any:
    moved, log_det = _couple(v, mask, net, inverse)
    return (1 - mask) * moved, log_det


def _flipped(v: Tensor, mask: Tensor, net: Field, inverse: bool) -> Any:
    return _couple(v, 1 - mask, net, inverse)


def _moving_seen(v: Tensor, mask: Tensor, net: Field, inverse: bool) -> Any:
    return _couple(v, mask, net, inverse, seen=lambda v, mask: v * (1 - mask))


def _all_moved(v: Tensor, mask: Tensor, net: Field, inverse: bool) -> Any:
    a, c = net(v * mask).chunk(2, dim=1)
    moved = (v - c) * (-a).exp() if inverse else v * a.exp() + c
    return mask * v + moved, _couple(v, mask, net, inverse)[1]


def _no_exponential(v: Tensor, mask: Tensor, net: Field, inverse: bool) -> Any:
    a, c = net(v * mask).chunk(2, dim=1)
    moved = (v - c) / a if inverse else v * a + c
    log_det = (-1 if inverse else 1) * ((1 - mask) * a.abs().log()).sum(1)
    return mask * v + (1 - mask) * moved, log_det


def _summed_stretches(v: Tensor, mask: Tensor, net: Field, inverse: bool) -> Any:
    a, _ = net(v * mask).chunk(2, dim=1)
    moved, _ = _couple(v, mask, net, inverse)
    return moved, (-1 if inverse else 1) * ((1 - mask) * a.exp()).sum(1)


def _determinant(v: Tensor, mask: Tensor, net: Field, inverse: bool) -> Any:
    moved, log_det = _couple(v, mask, net, inverse)
    return moved, log_det.exp()


def _swapped(v: Tensor, mask: Tensor, net: Field, inverse: bool) -> Any:
    def other(kept: Tensor) -> Tensor:
        return torch.cat(net(kept).chunk(2, dim=1)[::-1], 1)

    return _couple(v, mask, other, inverse)


def _averaged(v: Tensor, mask: Tensor, net: Field, inverse: bool) -> Any:
    moved, log_det = _couple(v, mask, net, inverse)
    return moved, log_det / v.shape[1]


coupling = Exercise(
    "coupling",
    draw=_coupled,
    truth=_couple,
    draws=10,
    returns=("moved", "log_det"),
    mistakes={
        "the network sees all of v, and then no inverse exists; it may see b v":
            lambda *a: _couple(*a, seen=lambda v, mask: v),
        "the network sees what moves, and the way back does not have it; it may see "
        "what stays":
            _moving_seen,
        "1 - b is missing: both parts are added where one should stand":
            _all_moved,
        "a is taken for the stretch itself, where it is its logarithm":
            _no_exponential,
        "the log-determinant adds up stretches, where their logarithms add up":
            _summed_stretches,
        "the mask is turned round: what it keeps moves":
            _flipped,
        "the inverse leaves the stretch as it was, where it must undo it":
            lambda *a: _couple(*a, sign=1.0),
        "the inverse has the log-determinant of the forward map; it is asked for "
        "the map that is applied":
            lambda *a: _couple(*a, det=1.0),
        "the inverse divides before it takes off the shift":
            _no_shift_first,
        "the shift is stretched too: it is added after the stretch":
            _scaled_shift,
        "the log-determinant counts the coordinates that stay":
            _all_scales,
        "the kept coordinates are lost":
            _kept_lost,
        "the determinant itself is returned; its logarithm is asked":
            _determinant,
        "a and c are exchanged: the network's first half stretches":
            _swapped,
        "the log-determinant is a mean over coordinates, where they add up":
            _averaged,
        "the direction is exchanged: inverse=True goes from noise to data":
            lambda v, mask, net, inverse: _couple(v, mask, net, not inverse),
    },
)  # fmt: skip
