"""Chapter 9's checks on images: windows and mean colours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Generator, Tensor

from diffedu.checks.ch03_fields import whole
from diffedu.checks.machinery import Exercise, Function, Property

Inputs = dict[str, Any]
Images = Callable[[Tensor], Tensor]


# Windows


def _answers(g: Generator) -> Inputs:
    # the first two windows lie close, the others anywhere without a gap
    size, lefts = whole(4, 7, g), [0, 1]
    for _ in range(whole(1, 4, g)):
        lefts.append(lefts[-1] + whole(2, size + 1, g))
    shape = (len(lefts), whole(2, 4, g), whole(2, 5, g), size)
    return {
        "answers": torch.randn(shape, generator=g), "lefts": lefts,
        "weight": 0.2 + torch.rand(size, generator=g),
    }  # fmt: skip


def _fuse(
    answers: Tensor, lefts: list[int], weight: Tensor, power: float = 1.0,
    counted: float = 1.0,
) -> Tensor:  # fmt: skip
    size, width = len(weight), lefts[-1] + len(weight)
    total = answers.new_zeros(*answers.shape[1:3], width)
    count = answers.new_zeros(width)
    for left, answer in zip(lefts, answers, strict=True):
        total[..., left : left + size] += weight**power * answer
        count[left : left + size] += weight**counted
    return total / count


def _last_wins(answers: Tensor, lefts: list[int], weight: Tensor) -> Tensor:
    out = _fuse(answers, lefts, weight)
    for left, answer in zip(lefts, answers, strict=True):
        out[..., left : left + len(weight)] = answer
    return out


def _first_wins(answers: Tensor, lefts: list[int], weight: Tensor) -> Tensor:
    out = _fuse(answers, lefts, weight)
    for left, answer in reversed(list(zip(lefts, answers, strict=True))):
        out[..., left : left + len(weight)] = answer
    return out


def _sum(answers: Tensor, lefts: list[int], weight: Tensor) -> Tensor:
    number = torch.zeros_like(_fuse(answers, lefts, weight))
    for left in lefts:
        number[..., left : left + len(weight)] += 1
    return _fuse(answers, lefts, weight, 1.0, 0.0) * number


def _divided_by_number(answers: Tensor, lefts: list[int], weight: Tensor) -> Tensor:
    return _fuse(answers, lefts, weight, 1.0, 0.0)


def _one_divisor(answers: Tensor, lefts: list[int], weight: Tensor) -> Tensor:
    return _sum(answers, lefts, weight) / (len(lefts) * weight.sum())


def _halves(answers: Tensor, lefts: list[int], weight: Tensor) -> Tensor:
    out = torch.zeros_like(_fuse(answers, lefts, weight))
    seen = 0
    for left, answer in zip(lefts, answers, strict=True):
        old, new = seen - left, left + len(weight)
        out[..., left:seen] = (out[..., left:seen] + answer[..., :old]) / 2
        out[..., seen:new] = answer[..., old:]
        seen = new
    return out


fuse = Exercise(
    "fuse",
    draw=_answers,
    truth=_fuse,
    mistakes={
        "all windows count alike; the weights are not used":
            lambda a, lefts, w: _fuse(a, lefts, w, 0.0, 0.0),
        "the weighted answers are summed, and not divided by the sum of the weights":
            _sum,
        "the weighted answers are divided by the number of windows, not by the sum "
        "of their weights": _divided_by_number,
        "the weights are squared: the squares in the problem carry them once":
            lambda a, lefts, w: _fuse(a, lefts, w, 2.0, 2.0),
        "the answers are summed without weights, and divided by the weights' sum":
            lambda a, lefts, w: _fuse(a, lefts, w, 0.0, 1.0),
        "one divisor serves all columns; each has weights of its own": _one_divisor,
        "a later window counts as much as all before it: add up first, divide last":
            _halves,
        "each window overwrites the ones before it": _last_wins,
        "pixels that have an answer already are not averaged with later ones":
            _first_wins,
        "the weights are laid out from right to left":
            lambda a, lefts, w: _fuse(a, lefts, w.flip(0)),
    },
)  # fmt: skip


# Mean colours


def _pictures(g: Generator) -> Inputs:
    channels, size = 3, whole(2, 4, g)
    x = torch.randn(whole(3, 6, g), channels, size, size, generator=g)
    mix = torch.randn(channels, channels, generator=g)

    def clean(x_t: Tensor) -> Tensor:
        mixed = torch.einsum("ij,bjhw->bihw", mix.to(x_t), x_t)
        return torch.tanh(mixed + x_t.mean((2, 3), keepdim=True))

    target = 2 * torch.rand(channels, generator=g) - 1
    scale = 1 + 5 * float(torch.rand((), generator=g))
    return {"clean": clean, "x_t": x, "target": target, "scale": scale}


def _slope(energy: Function, clean: Images, x_t: Tensor) -> Tensor:
    x_t = x_t.detach().requires_grad_()
    with torch.enable_grad():
        return torch.autograd.grad(energy(clean(x_t)).sum(), x_t)[0]


def _colour(target: Tensor) -> Function:
    return lambda x0: (x0.mean((2, 3)) - target).square().sum(1)


def _push(clean: Images, x_t: Tensor, target: Tensor, scale: float) -> Tensor:
    return -scale * _slope(_colour(target), clean, x_t)


def _not_through(clean: Images, x_t: Tensor, target: Tensor, scale: float) -> Tensor:
    return -scale * _slope(_colour(target), lambda x0: x0, clean(x_t))


def _of_noisy(clean: Images, x_t: Tensor, target: Tensor, scale: float) -> Tensor:
    return -scale * _slope(_colour(target), lambda x: x, x_t)


def _grey(clean: Images, x_t: Tensor, target: Tensor, scale: float) -> Tensor:
    def energy(x0: Tensor) -> Tensor:
        return (x0.mean((1, 2, 3)) - target.mean()).square()

    return -scale * _slope(energy, clean, x_t)


def _of_batch(clean: Images, x_t: Tensor, target: Tensor, scale: float) -> Tensor:
    def energy(x0: Tensor) -> Tensor:
        return (x0.mean((0, 2, 3)) - target).square()

    return -scale * _slope(energy, clean, x_t)


def _of_sums(clean: Images, x_t: Tensor, target: Tensor, scale: float) -> Tensor:
    def energy(x0: Tensor) -> Tensor:
        return (x0.sum((2, 3)) - target).square()

    return -scale * _slope(energy, clean, x_t)


def _of_distance(clean: Images, x_t: Tensor, target: Tensor, scale: float) -> Tensor:
    def energy(x0: Tensor) -> Tensor:
        return (x0.mean((2, 3)) - target).norm(dim=1)

    return -scale * _slope(energy, clean, x_t)


def _each_pixel(clean: Images, x_t: Tensor, target: Tensor, scale: float) -> Tensor:
    def energy(x0: Tensor) -> Tensor:
        return (x0 - target[:, None, None]).square().mean((2, 3)).sum(1)

    return -scale * _slope(energy, clean, x_t)


def _works_without_gradients(answer: Function, g: Generator) -> bool:
    inputs = _pictures(g)
    with torch.no_grad():
        try:
            return not answer(*inputs.values()).requires_grad
        except RuntimeError:  # autograd's, where nothing requires a gradient
            return False


colour_push = Exercise(
    "colour_push",
    draw=_pictures,
    truth=_push,
    mistakes={
        "the sign: an energy is to fall, so the push goes down its slope":
            lambda *a: -_push(*a),
        "the scale is missing":
            lambda clean, x, target, scale: _push(clean, x, target, 1.0),
        "the slope is taken in x0, not through the network down to x_t":
            _not_through,
        "the mean colour of the noisy image is steered, not that of the clean one":
            _of_noisy,
        "one mean is taken over all channels, which is brightness and no colour":
            _grey,
        "each pixel is compared with the target; only their mean is asked for":
            _each_pixel,
        "one mean colour is taken of the whole batch": _of_batch,
        "pixels are summed, where their mean is the colour": _of_sums,
        "the distance is not squared": _of_distance,
        "a mean over the batch makes the push smaller the larger the batch is":
            lambda clean, x, *a: _push(clean, x, *a) / len(x),
        "a mean is taken over the channels, where a sum is asked":
            lambda *a: _push(*a) / 3,
        "a mean is taken over batch and channels, where sums are asked":
            lambda clean, x, *a: _push(clean, x, *a) / x[:, :, 0, 0].numel(),
        "the energy has a factor one half that is not asked for":
            lambda *a: _push(*a) / 2,
    },
    properties=(
        Property(
            "its value is right, but samplers run without gradients: turn them on "
            "inside, with torch.enable_grad(), and answer a tensor without a graph",
            _works_without_gradients,
        ),
    ),
)  # fmt: skip
